//! What a running process says of itself at `/status`: the one answer from which the dashboard and `penstock top` are
//! made. Only its form; who fills it in is `overview.rs`.
//!
//! Counts only grow while a process runs, so that a reader makes rates from two readings, over whatever time it likes, and
//! any number of readers may look. Fields come, and none goes or changes its meaning.

use crate::fixed::AtRestart;
use crate::histogram::Distribution;
use crate::policy_state::Rejected;
use crate::refused::Recent;
use crate::rollout_history::History;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One reading.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// Version of the program.
    pub penstock: String,
    /// When this was read, ms since 1970.
    pub unix_ms: u64,
    /// How long the process has run, ms. Counts begin with it.
    pub uptime_ms: u64,
    /// Why the process is not ready for traffic; `None` if it is.
    pub not_ready: Option<String>,
    /// Where a person may change something, if the configuration allows it anywhere.
    pub admin: Option<String>,
    /// Whether this was asked there.
    pub may_change: bool,
    /// What is not as the configuration says by now.
    pub at_restart: AtRestart,
    /// The engine.
    pub engine: Engine,
    /// Requests that are being worked on.
    pub traffic: Traffic,
    /// The policy file.
    pub policy: Policy,
    /// Models that the policy or the engine knows, by name.
    pub models: BTreeMap<String, Model>,
    /// All versions of them, ordered by model and number.
    pub versions: Vec<Version>,
    /// Rollouts by model.
    pub canaries: BTreeMap<String, Canary>,
    /// How the requests of each model that are divided have been answered, as `policies::SplitStatus` has it.
    pub splits: serde_json::Value,
    /// Limits by name.
    pub limits: BTreeMap<String, Limit>,
    /// Requests without an answer.
    pub refusals: Refusals,
}

/// The engine, as it was last heard of.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Engine {
    /// Whether it is there.
    pub connected: bool,
    /// Such as `cpu`; empty before it is known.
    pub device: String,
    /// How often one was started; all but the first are restarts or successors.
    pub starts: u64,
    /// Requests that wait, and runs that have not ended, a second ago at most.
    pub under_way: u64,
    /// Bytes of those requests, with the copies that runs are made from and their outputs.
    pub request_bytes: u64,
    /// Bytes that these may be; models have the rest of `memory_bytes`.
    pub request_bytes_max: u64,
    /// Bytes of it that are in memory.
    pub resident_bytes: u64,
    /// Bytes that it may hold.
    pub memory_bytes: u64,
    /// Where models run on a GPU.
    pub gpu: Option<Gpu>,
}

/// The memory of a GPU.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Gpu {
    /// Bytes that the engine holds.
    pub held_bytes: u64,
    /// Bytes that nobody holds.
    pub free_bytes: u64,
    /// Bytes in all.
    pub total_bytes: u64,
}

/// What is under way, and how much may be.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Traffic {
    /// Infer requests.
    pub in_flight: u64,
    /// At most.
    pub in_flight_max: u64,
    /// Bytes of their bodies, and of answers that are being written.
    pub body_bytes: u64,
    /// At most.
    pub body_bytes_max: u64,
    /// Bytes that bodies have in the memory that is shared with the engine, in whole blocks.
    pub shared_bytes: u64,
    /// At most; 0 where no memory is shared.
    pub shared_bytes_max: u64,
}

/// Which policy is in force.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Policy {
    /// Its number.
    pub generation: u64,
    /// Since when, ms since 1970.
    pub since_unix_ms: u64,
    /// Files that were refused.
    pub rejected_count: u64,
    /// The file as it stands, if that is not in force.
    pub rejected: Option<Rejected>,
}

/// How the policy treats a model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Model {
    /// `canary`, `split`, or `highest`: its highest ready version answers.
    pub decided_by: String,
    /// Whether rules decide first: shares are then of the requests that are left.
    pub has_rules: bool,
    /// What divides the requests: weights or the step of a rollout. A version with several labels is there several times.
    pub shares: Vec<Share>,
    /// The version that gets copies.
    pub shadow: Option<u64>,
    /// The policy in words.
    pub says: Vec<String>,
}

/// A declared share.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Share {
    /// Who gets it.
    pub version: u64,
    /// Under which label.
    pub label: Option<String>,
    /// How much.
    pub percent: f64,
}

/// One version of a model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Version {
    /// The model.
    pub model: String,
    /// Its number.
    pub version: u64,
    /// `loading`, `ready`, `unavailable`; `away` while the engine that has it ready is not connected; `remote` if another server answers
    /// it; `missing` if only the policy knows it, be it by a rule, a label or a fallback.
    pub state: String,
    /// Whether it is unavailable because somebody has unloaded it.
    pub unloaded: bool,
    /// Whether the policy sends it requests, be it in place of a version that fails, or copies of them.
    pub named: bool,
    /// Why it is unavailable or not batched, where another server is and why that was not reached in the last minute, or what follows
    /// from its being missing; else empty.
    pub reason: String,
    /// Rows that run together at most; 1: never batched; 0: the first dimension is not a batch.
    pub max_batch: u32,
    /// Threads of each run.
    pub threads: u32,
    /// Runs at the same time.
    pub at_once: u32,
    /// Which form runs.
    pub form: String,
    /// How long runs took when it was loaded.
    pub curve: Vec<CurvePoint>,
    /// Whether it is let to answer; `None` before its first request.
    pub breaker: Option<Breaker>,
    /// How its requests ended.
    pub outcomes: Outcomes,
    /// Where their time went, µs.
    pub times: Times,
    /// Rows that ran together, for each request.
    pub batch_rows: Distribution,
    /// If it gets copies: what became of them.
    pub copies: Option<Copies>,
    /// How far its tensors have moved; `None` before any was looked at.
    pub drift: Option<Drift>,
}

impl Version {
    /// Whether it does not answer and somebody may want it to. Nobody does where it was unloaded and the policy sends it nothing.
    pub(crate) fn is_lacking(&self) -> bool {
        match self.state.as_str() {
            "missing" => true,
            "unavailable" => !self.unloaded || self.named,
            _ => false,
        }
    }
}

/// How far what a version is given and answers has moved from its first rows, by a sample.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Drift {
    /// Rows that were looked at.
    pub rows: u64,
    /// Whether enough of them were for something to compare with.
    pub has_reference: bool,
    /// Windows of rows that were compared.
    pub windows: u64,
    /// What the last of them has shown.
    pub tensors: Vec<Moved>,
    /// How probable the version held its answers to be, 0 to 1; empty unless it says so.
    pub confidence: Distribution,
}

/// How far one tensor has moved: Jensen–Shannon divergences, 0 to 1 bit.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Moved {
    /// `input`, `output` or `confidence`.
    pub side: String,
    /// Its name.
    pub name: String,
    /// The column that has moved most, where each is looked at by itself.
    pub column: Option<u32>,
    /// The best guess.
    pub bits: f64,
    /// At least; 0 unless it is more than chance explains.
    pub least: f64,
    /// At most.
    pub most: f64,
    /// Rows of the window.
    pub rows: u32,
}

/// How long a run of so many rows takes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CurvePoint {
    /// Rows.
    pub rows: u32,
    /// Typically, µs.
    pub us: u64,
}

/// What a breaker does.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Breaker {
    /// `passing`, `probing` or `tripped`.
    pub state: String,
    /// While it is tripped: the time until it lets a probe through, ms.
    pub retry_after_ms: Option<u64>,
}

/// Requests of a version, by how they ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcomes {
    /// Answered.
    pub served: u64,
    /// The version failed.
    pub failed: u64,
    /// Turned away for reasons that say nothing about the version.
    pub refused: u64,
    /// The client left.
    pub abandoned: u64,
}

impl Outcomes {
    /// All of them.
    pub fn sum(&self) -> u64 {
        self.served + self.failed + self.refused + self.abandoned
    }
}

/// Where time goes, µs. The stages are of requests that the engine has answered.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Times {
    /// From the end of a request's head to its answer, or to the version's failure.
    pub whole: Distribution,
    /// Of that: in the proxy and between the two processes.
    pub proxy: Distribution,
    /// In the engine's queue.
    pub queue: Distribution,
    /// From leaving the queue to the end of the run.
    pub run: Distribution,
}

/// What became of copies for a shadow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Copies {
    /// The shadow has said the same.
    pub agreed: u64,
    /// It has not.
    pub disagreed: u64,
    /// It did not answer.
    pub failed: u64,
    /// There was no room.
    pub dropped: u64,
}

/// How far a rollout is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Canary {
    /// The version that answered before.
    pub baseline: u64,
    /// The version that is rolled out.
    pub candidate: u64,
    /// `running`, `paused`, `rolled_back` or `promoted`.
    pub phase: String,
    /// From 1.
    pub step: usize,
    /// Of all steps.
    pub steps: usize,
    /// The candidate's share now.
    pub percent: f64,
    /// And in each step.
    pub step_percents: Vec<f64>,
    /// How long each step lasts at least, ms.
    pub dwell_ms: u64,
    /// How long this one has lasted, ms; 0 unless it is running.
    pub in_step_ms: u64,
    /// What keeps it from ending although it has lasted for long enough, by what is known now.
    pub waits_for: Option<String>,
    /// The numbers of the running step.
    pub gates: Vec<Gate>,
    /// What was decided, oldest first.
    pub verdicts: Vec<Verdict>,
    /// How the evidence has grown.
    pub history: History,
}

/// The numbers of one gate.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Gate {
    /// `errors`, `latency`, `faults`, `disagreement` or `drift`.
    pub gate: String,
    /// Evidence that the candidate is worse: the likelihood of what was seen if it is, against that if it is not.
    pub worse: f64,
    /// So much evidence rolls back.
    pub roll_back_at: f64,
    /// Evidence that the event is rare enough, likewise.
    pub rare: f64,
    /// So much evidence lets the gate pass.
    pub pass_at: f64,
    /// Requests of the candidate in this step.
    pub requests: u64,
    /// Those to which the event happened.
    pub events: u64,
    /// What `worse` is made of.
    #[serde(default)]
    pub heard: policies::Grounds,
}

/// A verdict with its numbers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// When, as time that had passed in this step.
    pub after: std::time::Duration,
    /// The step it is about, from 1.
    pub step: usize,
    /// The candidate's share in that step, in percent.
    pub percent: f64,
    /// What is done, in the word of the metric.
    pub verdict: String,
    /// Why.
    pub why: String,
    /// Whether somebody has said so, whatever the gates say. An older one does not say.
    #[serde(default)]
    pub by_person: bool,
    /// The numbers.
    pub gates: Vec<Gate>,
}

/// A limit of the policy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limit {
    /// What it lets through, in words.
    pub says: String,
    /// Requests that it has refused.
    pub refused: u64,
    /// Units that its busiest caller has spent and time has not brought back; of requests under way, how many it has.
    pub spent: u32,
    /// A caller may have so many at once.
    pub allowed: u32,
    /// Callers that have spent anything. Who they are is not told.
    pub callers: u64,
    /// Those of them that would be refused one more.
    pub exhausted: u64,
}

impl Limit {
    /// What its busiest caller has spent of what it may, in percent.
    pub fn spent_percent(&self) -> f64 {
        100.0 * f64::from(self.spent) / f64::from(self.allowed.max(1))
    }
}

/// Requests without an answer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Refusals {
    /// How many, by the word of the metric.
    pub by_reason: BTreeMap<String, u64>,
    /// The latest of each kind, the newest first.
    pub recent: Vec<Recent>,
}
