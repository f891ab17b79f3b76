//! Fills in what the process says of itself, see [`Status`]. Reads what others keep and changes nothing; costs a request
//! nothing but the counters that it moves anyway.

use crate::directory::{Directory, Models};
use crate::fixed::Fixed;
use crate::links::Links;
use crate::metrics::{Metrics, VersionMetrics};
use crate::policy_state::PolicyState;
use crate::readiness::Readiness;
use crate::refused::unix_ms;
use crate::remote::Remotes;
use crate::rollout_history::RolloutHistory;
use crate::slots::Slots;
use crate::status::{
    Breaker, Canary, CurvePoint, Engine, Gate, Gpu, Limit, Model, Outcomes, Policy, Refusals, Share, Status,
    Times, Traffic, Verdict, Version,
};
use policies::{
    BreakerState, BreakerStatus, CanaryStatus, GateStatus, Ledger, Live, Phase, Record, Snapshot, Spent,
};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use wire::{DeviceMemory, Health, ModelEntry};

/// Where everything is read.
#[derive(Clone, Debug)]
pub struct Overview {
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// How limits, breakers and rollouts are.
    pub ledger: Arc<Ledger>,
    /// The policy in force.
    pub live: Arc<Live>,
    /// And the file that says it.
    pub policy: Arc<PolicyState>,
    /// What is fixed, and may be changed in its file.
    pub fixed: Arc<Fixed>,
    /// What the engine has.
    pub directory: Arc<Directory>,
    /// The way to it.
    pub links: Arc<Links>,
    /// The ways to other servers.
    pub remotes: Arc<Remotes>,
    /// Room for requests.
    pub slots: Arc<Slots>,
    /// Whether traffic may come.
    pub readiness: Readiness,
    /// How evidence has grown.
    pub history: Arc<RolloutHistory>,
    /// The admin port, if there is one.
    pub admin: Option<SocketAddr>,
    /// When the process began.
    pub started: Instant,
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asker {
    /// Somebody who watches.
    Watcher,
    /// Somebody at the admin port, who may change something as well.
    Admin,
}

const MICROSECONDS: f64 = 1e6;

impl Overview {
    /// A reading as of now.
    pub fn status(&self, asker: Asker) -> Status {
        let now = Instant::now();
        let generation = self.live.load();
        let (since_unix_ms, rejected) = self.policy.read();
        Status {
            penstock: env!("CARGO_PKG_VERSION").into(),
            unix_ms: unix_ms(SystemTime::now()),
            uptime_ms: milliseconds(now - self.started),
            not_ready: self.readiness.server().err(),
            admin: self.admin.map(|admin| admin.to_string()),
            may_change: asker == Asker::Admin,
            at_restart: self.fixed.last(),
            engine: self.engine(),
            traffic: self.traffic(),
            policy: Policy {
                generation: generation.number,
                since_unix_ms,
                rejected_count: self.metrics.policy_rejected.get(),
                rejected,
            },
            models: self.models(&generation.snapshot),
            versions: self.versions(&generation.snapshot, now),
            canaries: self.canaries(now),
            splits: serde_json::to_value(self.ledger.splits(now)).expect("names and numbers"),
            limits: self.limits(&generation.snapshot, now),
            refusals: Refusals {
                by_reason: self.metrics.refused.by_reason(),
                recent: self.metrics.refused.recent(),
            },
        }
    }

    fn engine(&self) -> Engine {
        let Health {
            under_way, request_bytes, request_bytes_max, resident_bytes, memory_bytes, device, ..
        } = self.metrics.engine.last().unwrap_or_default();
        let gpu = |DeviceMemory { held_bytes, free_bytes, total_bytes }| Gpu {
            held_bytes,
            free_bytes,
            total_bytes,
        };
        Engine {
            connected: self.directory.load().connected,
            device: self.links.device(),
            starts: self.metrics.engine_starts.get(),
            under_way,
            request_bytes,
            request_bytes_max,
            resident_bytes,
            memory_bytes,
            gpu: device.map(gpu),
        }
    }

    fn traffic(&self) -> Traffic {
        let ((in_flight, in_flight_max), (body_bytes, body_bytes_max)) =
            (self.slots.requests(), self.slots.bytes());
        let (shared_bytes, shared_bytes_max) = self.links.shared_bytes();
        Traffic {
            in_flight: in_flight as u64,
            in_flight_max: in_flight_max as u64,
            body_bytes: body_bytes as u64,
            body_bytes_max: body_bytes_max as u64,
            shared_bytes: shared_bytes as u64,
            shared_bytes_max: shared_bytes_max as u64,
        }
    }

    fn models(&self, snapshot: &Snapshot) -> BTreeMap<String, Model> {
        let models = self.directory.load();
        let names = models.entries().map(|entry| entry.name.as_str());
        let names: BTreeSet<&str> = names.chain(snapshot.models().map(|(name, _)| name)).collect();
        names.into_iter().map(|name| (name.to_owned(), self.model(snapshot, name))).collect()
    }

    fn model(&self, snapshot: &Snapshot, name: &str) -> Model {
        let policy = snapshot.model(name);
        let shares = self.ledger.shares(snapshot, name).into_iter().map(|share| Share {
            version: share.version.0,
            label: share.label.map(|label| label.to_string()),
            // What a ring of 2^64 points makes of 10 % is no 10 in a double.
            percent: (share.percent * 1e6).round() / 1e6,
        });
        let shares: Vec<_> = shares.collect();
        let decided_by = match (policy.is_some_and(|policy| policy.has_canary()), shares.is_empty()) {
            (true, _) => "canary",
            (false, false) => "split",
            (false, true) => "highest",
        };
        Model {
            decided_by: decided_by.into(),
            has_rules: policy.is_some_and(|policy| policy.has_rules()),
            shares,
            shadow: policy.and_then(|policy| policy.shadow()).map(|shadow| shadow.version().0),
            says: policy.map(|policy| policy.lines()).unwrap_or_default(),
        }
    }

    fn versions(&self, snapshot: &Snapshot, now: Instant) -> Vec<Version> {
        let models = self.directory.load();
        let mut all = versions(&models, snapshot, &self.ledger);
        if !models.connected {
            all.values_mut().filter(|version| version.state == READY).for_each(wait_for_engine);
        }
        for (model, policy) in snapshot.models() {
            for (number, remote) in policy.remotes() {
                let version = all.get_mut(&(model.to_owned(), number.0));
                if let (Some(version), Some((ago, why))) = (version, self.remotes.unreachable(remote, now)) {
                    let ago = ago.as_secs();
                    version.reason = format!("{remote}, which could not be reached {ago} s ago: {why}");
                }
            }
        }
        for breaker in self.ledger.breakers(now) {
            if let Some(version) = all.get_mut(&(breaker.model.to_string(), breaker.version.0)) {
                version.breaker = Some(shown(&breaker));
            }
        }
        let readiness = self.readiness.versions();
        for ((model, number), version) in &mut all {
            version.named = readiness.get(&(model.clone(), *number)).is_some_and(|version| version.is_named);
            if let Some(counted) = self.metrics.known(model, *number) {
                count(version, &counted);
            }
            version.drift = self.metrics.drifts.of(model, *number);
            let shadow = snapshot.model(model).and_then(|policy| policy.shadow());
            if shadow.is_some_and(|shadow| shadow.version().0 == *number) {
                version.copies = Some(self.metrics.copies(model, *number));
            }
        }
        all.into_values().collect()
    }

    fn canaries(&self, now: Instant) -> BTreeMap<String, Canary> {
        let progress = self.ledger.progress(now);
        let canary = |(model, status): (String, CanaryStatus)| {
            let dwelt = progress.get(&model).map(|progress| progress.dwelt()).unwrap_or_default();
            let canary = Canary {
                baseline: status.baseline,
                candidate: status.candidate,
                phase: word_of(&status.phase).into(),
                step: status.step,
                steps: status.steps,
                percent: status.percent,
                step_percents: status.step_percents,
                dwell_ms: status.dwell_ms,
                in_step_ms: milliseconds(dwelt),
                waits_for: status.waits_for,
                gates: status.gates.into_iter().map(gate).collect(),
                verdicts: status.verdicts.into_iter().map(verdict).collect(),
                history: self.history.of(&model),
            };
            (model, canary)
        };
        self.ledger.rollouts().into_iter().map(canary).collect()
    }

    fn limits(&self, snapshot: &Snapshot, now: Instant) -> BTreeMap<String, Limit> {
        let spent = self.ledger.spent(snapshot, now);
        let limit = |(name, says): (String, String)| {
            let refused = self.metrics.refused.by_limit(&name);
            let Spent { most, of, callers, exhausted } = spent.get(&name).copied().unwrap_or_default();
            (name, Limit { says, refused, spent: most, allowed: of, callers, exhausted })
        };
        snapshot.limit_lines().into_iter().map(limit).collect()
    }
}

/// Those of the engine, those of other servers, and those that only the policy names, for whatever purpose; by model and number.
fn versions(models: &Models, snapshot: &Snapshot, ledger: &Ledger) -> BTreeMap<(String, u64), Version> {
    let mut all = BTreeMap::new();
    for entry in models.entries() {
        all.insert((entry.name.clone(), entry.version), loaded(entry));
    }
    for (model, policy) in snapshot.models() {
        for (version, remote) in policy.remotes() {
            let version = named(model, version.0, "remote", remote.to_string());
            all.insert((model.to_owned(), version.version), version);
        }
        let is_there = |version: policies::Version| models.entry(model, version.0).is_some();
        let missing = ledger.missing_versions(snapshot, model, is_there);
        for number in policy.mentioned() {
            let mut reason = "no such version is loaded".to_owned();
            missing.iter().filter(|one| one.version == number).for_each(|one| reason.extend(["; ", &one.so]));
            let version = || named(model, number.0, "missing", reason);
            all.entry((model.to_owned(), number.0)).or_insert_with(version);
        }
    }
    all
}

/// As the engine's index has it.
const READY: &str = "ready";

fn wait_for_engine(version: &mut Version) {
    version.state = "away".into();
    version.reason = "the engine is not connected".into();
}

fn loaded(entry: &ModelEntry) -> Version {
    let curve = entry.curve.iter().map(|point| CurvePoint { rows: point.rows, us: point.typical_us });
    Version {
        model: entry.name.clone(),
        version: entry.version,
        state: entry.state().as_word().into(),
        unloaded: entry.unloaded,
        reason: entry.reason.clone(),
        max_batch: entry.max_batch,
        threads: entry.threads,
        at_once: entry.at_once,
        form: entry.form.clone(),
        curve: curve.collect(),
        ..Version::default()
    }
}

fn named(model: &str, version: u64, state: &str, reason: String) -> Version {
    Version { model: model.into(), version, state: state.into(), reason, ..Version::default() }
}

fn shown(breaker: &BreakerStatus) -> Breaker {
    let (state, retry_after) = match breaker.state {
        BreakerState::Passing => ("passing", None),
        BreakerState::Probing => ("probing", None),
        BreakerState::Tripped { retry_after } => ("tripped", Some(milliseconds(retry_after))),
    };
    Breaker { state: state.into(), retry_after_ms: retry_after }
}

fn count(version: &mut Version, counted: &VersionMetrics) {
    version.outcomes = Outcomes {
        served: counted.served.get(),
        failed: counted.failed.get(),
        refused: counted.refused.get(),
        abandoned: counted.abandoned.get(),
    };
    version.times = Times {
        whole: counted.whole.read(MICROSECONDS),
        proxy: counted.proxy.read(MICROSECONDS),
        queue: counted.queue.read(MICROSECONDS),
        run: counted.run.read(MICROSECONDS),
    };
    version.batch_rows = counted.rows_together.read(1.0);
}

fn word_of(phase: &Phase) -> &'static str {
    match phase {
        Phase::Running => "running",
        Phase::Paused => "paused",
        Phase::RolledBack => "rolled_back",
        Phase::Promoted => "promoted",
    }
}

fn gate(gate: GateStatus) -> Gate {
    let GateStatus { gate, worse, roll_back_at, rare, pass_at, requests, events, heard } = gate;
    Gate { gate: gate.into(), worse, roll_back_at, rare, pass_at, requests, events, heard }
}

fn verdict(record: Record) -> Verdict {
    let Record { after, step, percent, verdict, why, by_person, gates } = record;
    let (verdict, gates) = (verdict.as_str().into(), gates.into_iter().map(gate).collect());
    Verdict { after, step, percent, verdict, why, by_person, gates }
}

fn milliseconds(time: Duration) -> u64 {
    time.as_millis() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use policies::Grounds;
    use wire::{Index, ModelState};

    #[test]
    fn whoever_the_policy_names_and_nobody_has_is_missing_with_what_follows_from_it() {
        let ready = ModelState::Ready as i32;
        let entry = ModelEntry { name: "m".into(), version: 1, state: ready, ..ModelEntry::default() };
        let directory = Directory::default();
        directory.publish(Index { models: vec![entry], ..Index::default() });
        let told = |policy: &str| {
            let snapshot = policies::parse(&format!("models: {{m: {{{policy}}}}}"), "p").unwrap();
            let ledger = Ledger::new();
            ledger.roll_out(&snapshot, Instant::now());
            let all = versions(&directory.load(), &snapshot, &ledger);
            let missing = all.into_values().filter(|version| version.state == "missing");
            missing.map(|version| format!("{}: {}", version.version, version.reason)).collect::<Vec<_>>()
        };
        let rules = "rules: [{when: {header: h, equals: x}, use: 7}, {when: {header: h, equals: y}, use: 1}]";
        let rule = "whom a rule sends there is refused";
        for (policy, number, so) in [
            (rules, 7, rule),
            ("labels: {next: 6}", 6, "who asks for it is refused"),
            ("breaker: {fallback: {version: 5}}", 5, "nobody can fall back to it"),
            ("shadow: {version: 4, percent: 1}", 4, "copies for it fail"),
            ("canary: {baseline: 1, candidate: 3, steps: [10]}", 3, "until it is, version 1 answers for it"),
            ("split: {weights: {1: 1, 2: 1}}", 2, "its requests are refused"),
        ] {
            assert_eq!(told(policy), [format!("{number}: no such version is loaded; {so}")]);
        }
        let both = told(&format!("{rules}, breaker: {{fallback: {{version: 7}}}}"));
        assert_eq!(both, [format!("7: no such version is loaded; {rule}; nobody can fall back to it")]);
        assert_eq!(told("remote: {9: {url: 'http://there/infer'}}, labels: {there: 9}"), [""; 0]);
    }

    #[test]
    fn a_gate_says_what_its_evidence_is_made_of_as_the_admin_port_does() {
        let heard = Grounds { all: 20, of_candidate: 3, parts: 0.0, by_share: 2.0 };
        let status = GateStatus {
            gate: "errors",
            worse: 2.0,
            roll_back_at: 20.0,
            rare: 15.0,
            pass_at: 20.0,
            requests: 160,
            events: 3,
            heard,
        };
        let there = serde_json::to_value(&status).unwrap();
        assert_eq!(serde_json::to_value(gate(status)).unwrap(), there);
    }
}
