//! What a rollout tells of itself: verdicts with their numbers, how far it is, and what of it outlives a restart. Decides
//! nothing.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};

use super::{CanaryPolicy, step_of};
use crate::gate::{self, Kept};
use crate::shadow::Comparison;
use crate::units::{ALL, Millionths, Version};

/// Of a rollout whose policy has gone.
const KEPT_OF_ENDED: usize = 2;

/// What is to be done about a rollout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The candidate gets the next step's share.
    Advance,
    /// It has shown enough, but not that it is good enough; or the step has not lasted long enough.
    Hold,
    /// It gets nothing any more.
    RollBack,
    /// It has not answered enough requests to show anything.
    InsufficientData,
}

impl Verdict {
    /// Each of them.
    pub const ALL: [Self; 4] = [Self::Advance, Self::Hold, Self::RollBack, Self::InsufficientData];

    /// The word for it in metrics and spans.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Advance => "advance",
            Self::Hold => "hold",
            Self::RollBack => "roll_back",
            Self::InsufficientData => "insufficient_data",
        }
    }
}

/// A verdict with its numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// When, as time that had passed in this step.
    pub after: Duration,
    /// The step it is about, from 1.
    pub step: usize,
    /// The candidate's share in that step, in percent.
    pub percent: f64,
    /// What is done.
    pub verdict: Verdict,
    /// Why, in words.
    pub why: String,
    /// Whether somebody has said so, whatever the gates say.
    #[serde(default)]
    pub by_person: bool,
    /// The numbers.
    pub gates: Vec<GateStatus>,
}

/// The numbers of one gate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GateStatus {
    /// `errors`, `latency`, `faults`, `disagreement` or `drift`.
    #[serde(deserialize_with = "gate_name")]
    pub gate: GateName,
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
    /// What `worse` is made of; none of what was kept before this was.
    #[serde(default)]
    pub heard: Grounds,
}

/// What the evidence that a candidate is worse is made of, in its last asking: the question is asked anew again and again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Grounds {
    /// Events that were heard, the baseline's too; of disagreement, answers that were compared.
    pub all: u32,
    /// Those that are the candidate's alone; of disagreement, those that differ.
    pub of_candidate: u32,
    /// What goes unanswered together is heard as one: the parts of these that are the candidate's, together. None where this was not
    /// kept yet.
    #[serde(default)]
    pub parts: f64,
    /// So many of the candidate would be no evidence: its share of them; of disagreement, what is allowed.
    pub by_share: f64,
}

impl Grounds {
    /// One more, which is the candidate's or not, and would be with this probability.
    pub(crate) fn hear(&mut self, is_candidate: bool, share: f64) {
        self.all = self.all.saturating_add(1);
        self.of_candidate = self.of_candidate.saturating_add(u32::from(is_candidate));
        self.by_share += share;
    }

    /// One more, of which this part is the candidate's.
    pub(crate) fn hear_part(&mut self, of_candidate: f64, share: f64) {
        if of_candidate >= 1.0 {
            return self.hear(true, share);
        }
        self.hear(false, share);
        self.parts += of_candidate;
    }

    /// How much of it is the candidate's.
    pub(crate) fn in_words(&self) -> String {
        let Self { of_candidate, parts, .. } = *self;
        if parts == 0.0 {
            of_candidate.to_string()
        } else {
            format!("{:.1}", f64::from(of_candidate) + parts)
        }
    }
}

/// Called so that it is not taken for text that is borrowed from what is read.
type GateName = &'static str;

fn gate_name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<&'static str, D::Error> {
    let name = String::deserialize(deserializer)?;
    // What another release has written must not keep this one from starting.
    Ok(gate::NAMES.into_iter().find(|known| *known == name).unwrap_or("unknown"))
}

/// How far a rollout is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// It goes on by itself.
    Running,
    /// A person has stopped it where it is.
    Paused,
    /// The candidate gets nothing.
    RolledBack,
    /// The candidate gets everything.
    Promoted,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::RolledBack => "rolled back",
            Self::Promoted => "promoted",
        })
    }
}

/// What is kept of a rollout over a restart.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    pub(super) baseline: u64,
    pub(super) candidate: u64,
    /// The candidate's share in the step that it had come to.
    pub(super) millionths: Millionths,
    pub(super) phase: Phase,
    pub(super) dwelt: Duration,
    /// Which files of the baseline and of the candidate it is about; 0 where nobody has said.
    #[serde(default)]
    pub(super) files: (u64, u64),
    /// Requests of the candidate that hung.
    #[serde(default)]
    pub(super) hanging: u32,
    /// Which servers it is about; nothing in what was kept before this was.
    #[serde(default)]
    pub(super) servers: Option<[String; 2]>,
    #[serde(default)]
    pub(super) comparison: Option<Comparison>,
    pub(super) gates: BTreeMap<String, Kept>,
    /// The last few, oldest first.
    #[serde(default)]
    pub(super) verdicts: Vec<Record>,
}

impl Progress {
    /// How long the running step has lasted; nothing unless it goes on by itself.
    pub fn dwelt(&self) -> Duration {
        self.dwelt
    }

    /// Baseline and candidate.
    pub(crate) fn versions(&self) -> (Version, Version) {
        (Version(self.baseline), Version(self.candidate))
    }

    /// As it is remembered once its policy has gone: without most of its history, and without evidence but that by which it was
    /// rolled back. A step that goes on from here begins anew.
    pub(crate) fn of_ended(mut self) -> Self {
        let old = self.verdicts.len().saturating_sub(KEPT_OF_ENDED);
        self.verdicts.drain(..old);
        if !self.is_rolled_back() {
            self.gates.clear();
            self.dwelt = Duration::ZERO;
        }
        self
    }

    pub(crate) fn phase(&self) -> &Phase {
        &self.phase
    }

    pub(crate) fn is_rolled_back(&self) -> bool {
        self.phase == Phase::RolledBack
    }

    /// Whether a rollout by this policy goes on from here: its candidate has to be what it was, unless that was rolled back.
    pub(crate) fn is_of(&self, policy: &CanaryPolicy) -> bool {
        let [_, asked] = policy.servers.names();
        let is_same = self.servers.as_ref().is_none_or(|[_, candidate]| *candidate == asked);
        self.versions() == policy.versions_of_arms() && (is_same || self.is_rolled_back())
    }

    /// Takes down which files of a version answer now; whether the candidate is still what it was, or was rolled back.
    pub(crate) fn learn(&mut self, version: Version, files: u64) -> bool {
        if version.0 == self.baseline {
            self.files.0 = files;
        }
        if !self.has_candidate_here(version) {
            return true;
        }
        let before = std::mem::replace(&mut self.files.1, files);
        before == files || before == 0 || self.is_rolled_back()
    }

    /// Whether this is its candidate, and the engine here answers it.
    pub(crate) fn has_candidate_here(&self, version: Version) -> bool {
        let is_here = self.servers.as_ref().is_none_or(|[_, candidate]| candidate.is_empty());
        version.0 == self.candidate && is_here
    }

    /// The candidate's share when it was last under way.
    pub(crate) fn share_of_step(&self) -> Millionths {
        self.share(&[self.millionths])
    }

    /// The candidate's share where a rollout in these steps goes on from here.
    pub(crate) fn share(&self, steps: &[Millionths]) -> Millionths {
        match self.phase {
            Phase::RolledBack => 0,
            Phase::Promoted => ALL,
            Phase::Running | Phase::Paused => steps[step_of(self.millionths, steps)],
        }
    }
}

/// What one rollout shows of itself.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CanaryStatus {
    /// The version that answered before.
    pub baseline: u64,
    /// The version that is rolled out.
    pub candidate: u64,
    /// How far it is.
    pub phase: Phase,
    /// From 1.
    pub step: usize,
    /// Of all steps.
    pub steps: usize,
    /// The candidate's share, in percent.
    pub percent: f64,
    /// Its share in each step.
    pub step_percents: Vec<f64>,
    /// How long each step lasts at least, ms.
    pub dwell_ms: u64,
    /// What keeps the running step from ending although it has lasted for so long, by what is known now; the last verdict has it as it
    /// was when that was first found.
    pub waits_for: Option<String>,
    /// The numbers of the running step.
    pub gates: Vec<GateStatus>,
    /// What was decided, oldest first.
    pub verdicts: Vec<Record>,
}
