//! A rollout in steps: which share of the requests the candidate gets, and what has to be known before it gets more.
//!
//! ```text
//!      every gate passed, and the step has lasted, or a person says so     after the last step
//!   step 1 ──▶ step 2 ──▶ ... ──▶ last step ─────────────────────▶ promoted: all requests
//!      └──────────┴───────────────┴─ a gate failed, or a person says so ─────▶ rolled back: none
//! ```
//!
//! A gate watches one event, failures or slow answers (see `gate.rs`). It fails when the event happens to the candidate
//! more often than its share explains; it passes when the event is shown to happen to fewer of the candidate's requests
//! than the policy allows. Nothing happens by default: without requests neither is ever shown, and the step is held; and
//! so it is when the candidate has answered nobody lately, has failed whoever came last or has tripped its breaker, whatever it has
//! shown before.
//!
//! Beside these a rollout may have a gate on its tensors, see `drift.rs`.
//!
//! Only requests that were assigned by chance or by the sticky key are evidence. Time is an argument; nothing happens
//! between calls.

mod breakers;
mod by_person;
mod hanging;
mod judging;
mod patience;
mod policy;
mod report;
mod restart;
mod taken;
#[cfg(test)]
mod tests;
mod times;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::breaker::Standing;
use crate::drift::{DriftGate, DriftSight, Finding as Drifted};
use crate::gate::{ALPHA, Event, Gate, Witness};
use crate::shadow::Comparison;
use crate::units::{ALL, Millionths, Version, percent};

pub(crate) use breakers::Breakers;
pub use by_person::Command;
pub(crate) use hanging::Asked;
use hanging::Hanging;
pub use hanging::UnderWay;
use judging::Finding;
pub(crate) use patience::{AnswerTimes, Patience};
pub use policy::Assignment;
pub(crate) use policy::{CanaryPolicy, Servers, SlowPolicy, Stage};
pub use report::{CanaryStatus, GateStatus, Grounds, Phase, Progress, Record, Verdict};
pub(crate) use taken::Taken;

/// Verdicts that are remembered.
const HISTORY: usize = 64;

/// On which of other steps a candidate goes on that has this share: never on one of a larger share, unless all are.
pub(crate) fn step_of(share: Millionths, steps: &[Millionths]) -> usize {
    steps.iter().rposition(|step| *step <= share).unwrap_or(0)
}

/// Numbers by which what was assigned under other circumstances is known to say nothing. They are never the same for two rollouts.
#[derive(Clone, Debug, Default)]
pub(crate) struct Beginnings(Arc<AtomicU32>);

impl Beginnings {
    fn next(&self) -> u32 {
        self.0.fetch_add(1, Ordering::Relaxed).wrapping_add(1)
    }
}

/// What became of a request, as far as it says something about its version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sight {
    /// It was answered after so long.
    Answered(Duration),
    /// The version failed.
    Failed,
    /// The engine went down as it ran.
    Lost,
    /// There was no answer in time, which was so long: the policy's, or what its caller has brought.
    Late(Duration),
    /// Its client has left after so long.
    Gone(Duration),
    /// The version does not take what was sent; another one might have.
    Refused,
    /// What it has answered is too large to send; another one's might not be.
    Unsendable,
    /// A copy of it that the candidate has answered has been compared.
    Compared {
        /// With what the client got.
        agrees: bool,
    },
    /// A copy of it that the candidate was to answer was not compared: there was no room or time for it, or no answer.
    NotCompared,
    /// Its breaker turned it away.
    Tripped,
    /// It was turned away or lost otherwise: too much waits for the version, the engine went down.
    Unanswered,
}

impl Sight {
    /// Whether the version has failed whoever sent it.
    fn is_a_failure(self, patience: Patience) -> bool {
        match self {
            Self::Failed | Self::Lost | Self::Tripped | Self::Unanswered => true,
            Self::Late(_) | Self::Gone(_) => patience == Patience::Long,
            Self::Answered(_)
            | Self::Refused
            | Self::Unsendable
            | Self::Compared { .. }
            | Self::NotCompared => false,
        }
    }

    /// What holds up or turns away one request does so to others at the same time.
    pub(crate) fn comes_in_bursts(self) -> bool {
        match self {
            // An engine takes with it all that it had.
            Self::Lost | Self::Late(_) | Self::Gone(_) | Self::Tripped | Self::Unanswered => true,
            Self::Answered(_)
            | Self::Failed
            | Self::Refused
            | Self::Unsendable
            | Self::Compared { .. }
            | Self::NotCompared => false,
        }
    }
}

/// The progress of one rollout.
#[derive(Debug)]
pub(crate) struct Canary {
    policy: CanaryPolicy,
    beginnings: Beginnings,
    /// What was assigned under another number says nothing.
    begun: u32,
    phase: Phase,
    step: usize,
    entered: Instant,
    gates: Vec<Gate>,
    drift: Option<DriftGate>,
    /// Which files of the baseline and of the candidate answer, as far as anybody has said.
    files: (u64, u64),
    /// When the candidate last answered, and how many requests it has failed since.
    answered: Option<Instant>,
    failed_since: u32,
    /// How long the baseline's take.
    usual: Arc<AnswerTimes>,
    /// What the baseline takes.
    taken: Arc<Taken>,
    hanging: Hanging,
    /// What the breakers of the baseline and of the candidate do, as of the last request or look.
    breakers: [Standing; 2],
    /// The last trip of one of them that may have been by chance.
    by_chance: Option<Instant>,
    /// Since when every gate has passed at every look.
    passed: Option<Instant>,
    /// What was last found when it was judged, so that it is told once; nothing since a person has stepped in.
    judged: Option<Finding>,
    /// What keeps the step from ending, as of the last look; nothing until it has lasted for as long as the policy says.
    waits_for: Option<String>,
    history: VecDeque<Record>,
    /// Of `history`, those that nobody has been told of.
    untold: usize,
}

impl Canary {
    pub(crate) fn new(policy: CanaryPolicy, beginnings: Beginnings, now: Instant) -> Self {
        let taken = Arc::default();
        let gates = gates(&policy, &taken, now);
        let drift = policy.drifting_at_most.map(|at_most| DriftGate::new(at_most, now));
        Self {
            policy,
            begun: beginnings.next(),
            beginnings,
            phase: Phase::Running,
            step: 0,
            entered: now,
            gates,
            drift,
            files: (0, 0),
            answered: None,
            failed_since: 0,
            usual: Arc::default(),
            taken,
            hanging: Hanging::new(now),
            breakers: [Standing::FRESH; 2],
            by_chance: None,
            passed: None,
            judged: None,
            waits_for: None,
            history: VecDeque::new(),
            untold: 0,
        }
    }

    /// Since when the candidate is judged.
    pub(crate) fn begun(&self) -> u32 {
        self.begun
    }

    /// What its evidence is about.
    pub(crate) fn about(&self) -> u64 {
        self.policy.about
    }

    /// How long the baseline's answers take. Those that say nothing else may be told to this alone.
    pub(crate) fn usual(&self) -> Arc<AnswerTimes> {
        Arc::clone(&self.usual)
    }

    /// What the baseline takes of each user, likewise.
    pub(crate) fn taken(&self) -> Arc<Taken> {
        Arc::clone(&self.taken)
    }

    /// What the candidate is asked.
    pub(crate) fn asked(&self) -> Arc<Asked> {
        self.hanging.asked()
    }

    /// What is under way says nothing any more.
    fn begin_anew(&mut self) {
        self.begun = self.beginnings.next();
    }

    /// The candidate's share of the requests.
    pub(crate) fn share(&self) -> Millionths {
        match self.phase {
            Phase::Running | Phase::Paused => self.policy.steps[self.step],
            Phase::RolledBack => 0,
            Phase::Promoted => ALL,
        }
    }

    /// Goes on under a policy that rolls out the same. Evidence that the candidate is worse stays; a step of another share
    /// has to be earned anew.
    pub(crate) fn follow(&mut self, policy: &CanaryPolicy, now: Instant) {
        debug_assert_eq!(self.policy.versions_of_arms(), policy.versions_of_arms());
        if self.policy == *policy {
            return;
        }
        let before = std::mem::replace(&mut self.policy, policy.clone());
        let is_other = is_another(before.comparison.as_ref(), policy.comparison.as_ref());
        let mut old = std::mem::take(&mut self.gates);
        old.retain(|gate| !(is_other && gate.event == Event::Disagreement));
        for mut gate in gates(policy, &self.taken, now) {
            if let Some(at) = old.iter().position(|old| old.event.gate() == gate.event.gate()) {
                let new = std::mem::replace(&mut gate, old.swap_remove(at));
                gate.become_like(new);
            }
            self.gates.push(gate);
        }
        self.drift = policy.drifting_at_most.map(|at_most| {
            let mut gate = self.drift.take().unwrap_or_else(|| DriftGate::new(at_most, now));
            gate.become_like(at_most);
            gate
        });
        if !self.go_to(before.steps[self.step]) {
            self.begin_step(now);
        }
        if before.servers != policy.servers {
            self.ask_others(before.servers.candidate != policy.servers.candidate, now);
        }
        if before.about != policy.about {
            // What is under way is compared as before, and slow by what was slow before. Without it, what ended soon must not be
            // all that is known.
            self.begin_anew();
            self.gates.iter_mut().for_each(|gate| gate.forget_step(now));
            (self.entered, self.answered, self.failed_since, self.judged) = (now, None, 0, None);
        }
    }

    /// What was found in another step has to be found anew.
    fn begin_step(&mut self, now: Instant) {
        (self.entered, self.passed, self.waits_for) = (now, None, None);
        self.gates.iter_mut().for_each(|gate| gate.begin_step(now));
        self.drift.iter_mut().for_each(|gate| gate.begin_step(now));
        // Who is the baseline's in one step may be the candidate's in the next one.
        self.usual.forget_keys();
    }

    /// To the last step of no larger share, or to the first; whether it is of that share.
    fn go_to(&mut self, share: Millionths) -> bool {
        self.step = step_of(share, &self.policy.steps);
        self.policy.steps[self.step] == share
    }

    /// What the breakers of the baseline and of the candidate do now. Call it before anything that is told of requests, and before looks.
    pub(crate) fn see_breakers(&mut self, breakers: [Standing; 2]) {
        self.breakers = breakers;
        self.by_chance = breakers::tripped_by_chance(breakers).or(self.by_chance);
    }

    /// What became of a request that chance had put on one side. May roll back.
    pub(crate) fn witness(&mut self, assigned: Assignment, key: Option<u64>, sight: Sight, now: Instant) {
        if !self.is_open() || (assigned.baseline, assigned.candidate) != self.policy.versions_of_arms() {
            return;
        }
        let Assignment { is_candidate, share, begun, brought, .. } = assigned;
        if begun != Some(self.begun) {
            return;
        }
        // By what was known before it, whichever side it is on: else the baseline's would be judged by themselves.
        let patience = match (sight, brought) {
            (Sight::Gone(waited), _) => self.usual.of_leaving(waited),
            (Sight::Late(_), Some(brought)) => self.usual.of_deadline(brought),
            _ => Patience::Long,
        };
        match (sight, brought) {
            (Sight::Answered(_), _) if is_candidate => (self.answered, self.failed_since) = (Some(now), 0),
            (Sight::Answered(took), _) => self.usual.hear(took, brought),
            (Sight::Late(_) | Sight::Gone(_), Some(brought)) if !is_candidate => self.usual.miss(brought),
            _ => {}
        }
        if is_candidate && sight.is_a_failure(patience) {
            self.failed_since = self.failed_since.saturating_add(1);
        }
        if let (Sight::Answered(_), Some(key), false) = (sight, key, is_candidate) {
            self.usual.hear_key(key);
        }
        let breakers = Breakers::of(self.breakers, self.by_chance);
        let witness = Witness { is_candidate, share, key, sight, patience, breakers };
        let mut is_evidence = false;
        for gate in &mut self.gates {
            is_evidence |= gate.hear(witness, now);
        }
        if is_evidence {
            self.roll_back_if_worse(now);
        }
    }

    /// The only place that looks whether the evidence is enough; whether it was. The bound may have come down to it: a policy with
    /// fewer gates has a lower one.
    fn roll_back_if_worse(&mut self, now: Instant) -> bool {
        let roll_back_at = self.roll_back_at();
        let worse = self.gates.iter().find(|gate| self.is_open() && gate.worse() >= roll_back_at);
        let Some(gate) = worse else { return false };
        let why = gate.why_worse(self.candidate(), self.policy.baseline.version);
        self.decide(Verdict::RollBack, why, now);
        true
    }

    /// Nothing is decided.
    fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Running | Phase::Paused)
    }

    /// What became of a copy for the candidate, of a request that was assigned to the baseline: whether the answers agree, nothing
    /// where there are none to compare.
    pub(crate) fn compared(
        &mut self,
        assigned: Assignment,
        key: Option<u64>,
        agrees: Option<bool>,
        now: Instant,
    ) {
        let of_candidate = Assignment { is_candidate: true, ..assigned };
        let sight = agrees.map_or(Sight::NotCompared, |agrees| Sight::Compared { agrees });
        self.witness(of_candidate, key, sight, now);
    }

    /// How far the tensors of one of its versions have moved. May roll back.
    pub(crate) fn drifted(&mut self, version: Version, sight: DriftSight, now: Instant) {
        let is_open = self.is_open();
        let (baseline, candidate) = self.policy.versions_of_arms();
        let Some(drift) = self.drift.as_mut().filter(|_| is_open) else { return };
        drift.hear(version == candidate, sight);
        if let Drifted::RollBack(why) = drift.finding(baseline, candidate) {
            self.decide(Verdict::RollBack, why, now);
        }
    }

    /// These files of one of its versions answer now; 0 where nobody knows which.
    pub(crate) fn made_of(&mut self, version: Version, files: u64, now: Instant) {
        if files == 0 || !self.is_here(version) {
            return;
        }
        let before = std::mem::replace(self.files_of(version), files);
        if before != 0 && before != files {
            self.begin_step_anew(version, now);
        }
    }

    /// The same where nobody has said anything about it.
    pub(crate) fn begins_with(&mut self, version: Version, files: u64) {
        let is_here = self.is_here(version);
        let known = self.files_of(version);
        if is_here && *known == 0 {
            *known = files;
        }
    }

    /// Whether the engine here answers it, and no other server.
    fn is_here(&self, version: Version) -> bool {
        let Servers { baseline, candidate } = &self.policy.servers;
        if version == self.candidate() { candidate.is_none() } else { baseline.is_none() }
    }

    fn files_of(&mut self, version: Version) -> &mut u64 {
        if version == self.candidate() { &mut self.files.1 } else { &mut self.files.0 }
    }

    /// Other files of one of its versions answer now: what was found out about those before says nothing about them. What
    /// is decided stays decided.
    pub(crate) fn begin_step_anew(&mut self, version: Version, now: Instant) {
        if !self.is_here(version) {
            return;
        }
        self.forget_evidence(
            format!("the files of version {version} were replaced: the step begins anew"),
            now,
        );
    }

    /// Other servers answer now. A candidate that another one answers is another candidate, and begins at the first step, also where
    /// all was given to the one before; but nobody is trusted under the number of one that was rolled back before a person says so.
    fn ask_others(&mut self, is_another_candidate: bool, now: Instant) {
        self.files = (0, 0);
        let why = match &self.phase {
            Phase::Running | Phase::Paused | Phase::Promoted if is_another_candidate => {
                if self.phase == Phase::Promoted {
                    self.phase = Phase::Running;
                }
                self.step = 0;
                format!("another server answers version {}: it begins at the first step", self.candidate())
            }
            Phase::Running | Phase::Paused | Phase::RolledBack | Phase::Promoted => {
                "another server is asked: the step begins anew".to_owned()
            }
        };
        self.forget_evidence(why, now);
    }

    /// What was found out says nothing any more, for this reason. What is decided stays decided.
    fn forget_evidence(&mut self, why: String, now: Instant) {
        if !self.is_open() {
            return;
        }
        self.note(Verdict::Hold, why, now);
        self.begin_anew();
        self.gates = gates(&self.policy, &self.taken, now);
        self.drift.iter_mut().for_each(|gate| gate.begin_step(now));
        (self.entered, self.answered, self.failed_since, self.judged) = (now, None, 0, None);
        self.usual.forget();
        self.hanging.forget();
    }

    /// The verdicts that were not told yet.
    pub(crate) fn news(&mut self) -> Vec<Record> {
        let first = self.history.len() - std::mem::take(&mut self.untold).min(self.history.len());
        self.history.range(first..).cloned().collect()
    }

    pub(crate) fn status(&self) -> CanaryStatus {
        CanaryStatus {
            baseline: self.policy.baseline.version.0,
            candidate: self.candidate().0,
            phase: self.phase.clone(),
            step: self.step + 1,
            steps: self.policy.steps.len(),
            percent: percent(self.share()),
            step_percents: self.policy.steps.iter().map(|step| percent(*step)).collect(),
            dwell_ms: self.policy.dwell.as_millis() as u64,
            waits_for: self.waits_for.clone(),
            gates: self.numbers(),
            verdicts: self.history.iter().cloned().collect(),
        }
    }

    fn candidate(&self) -> Version {
        self.policy.candidate.version
    }

    fn roll_back_at(&self) -> f64 {
        self.gates.len() as f64 / ALPHA
    }

    fn decide(&mut self, verdict: Verdict, why: String, now: Instant) {
        self.note(verdict, why, now);
        match verdict {
            Verdict::RollBack => self.phase = Phase::RolledBack,
            Verdict::Advance if self.step + 1 == self.policy.steps.len() => self.phase = Phase::Promoted,
            Verdict::Advance => {
                self.step += 1;
                self.begin_step(now);
            }
            Verdict::Hold | Verdict::InsufficientData => {}
        }
    }

    fn note(&mut self, verdict: Verdict, why: String, now: Instant) {
        if self.history.len() == HISTORY {
            self.history.pop_front();
        }
        self.history.push_back(Record {
            after: now.saturating_duration_since(self.entered),
            step: self.step + 1,
            percent: percent(self.share()),
            verdict,
            why,
            by_person: false,
            gates: self.numbers(),
        });
        self.untold += 1;
    }

    fn numbers(&self) -> Vec<GateStatus> {
        // JSON knows no infinity.
        let finite = |value: f64| value.min(1e12);
        let numbers = |gate: &Gate| GateStatus {
            gate: gate.event.gate(),
            worse: finite(gate.worse()),
            roll_back_at: self.roll_back_at(),
            rare: finite(gate.rare.value()),
            pass_at: 1.0 / ALPHA,
            requests: gate.requests,
            events: gate.events,
            heard: gate.grounds(),
        };
        self.gates.iter().map(numbers).chain(self.drift.as_ref().map(DriftGate::numbers)).collect()
    }
}

/// Whether answers are compared in another way than before.
fn is_another(before: Option<&Comparison>, now: Option<&Comparison>) -> bool {
    before.zip(now).is_some_and(|(before, now)| before != now)
}

fn gates(policy: &CanaryPolicy, taken: &Arc<Taken>, now: Instant) -> Vec<Gate> {
    let gate = |event, at_most| Gate::new((event, at_most), policy.dwell, taken, now);
    let errors = gate(Event::Error, policy.failing_at_most);
    let slow = policy.slow.map(|slow| gate(Event::Slow(slow.over), slow.at_most));
    let faults = policy.faulty_at_most.map(|most| gate(Event::Fault, most));
    let disagreement = policy.disagreeing_at_most.map(|most| gate(Event::Disagreement, most));
    [errors].into_iter().chain(slow).chain(faults).chain(disagreement).collect()
}
