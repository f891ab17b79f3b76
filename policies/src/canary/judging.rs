//! Whether a step is over: all that the candidate has to have shown before it gets more, one after the other, and in words what is
//! missing. Looks only when it is asked to; what rolls back at once is heard in the parent.

use std::fmt::Write;
use std::time::{Duration, Instant};

use super::{Canary, Phase, Verdict};
use crate::breaker::Since;
use crate::drift::{DriftGate, Finding as Drifted};
use crate::gate::{ALPHA, Gate};
use crate::units::Millionths;

/// Before it gets more, the candidate has to have answered somebody within this part of the step's least length, or within a second;
/// or within so many times as long as it takes to know that a request hangs, because where answers take long they come rarely.
const LATELY: u32 = 10;
const LATELY_BY_ANSWERS: u32 = 2;

/// What came out when a rollout was judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Finding {
    /// The candidate's, which is the step's.
    share: Millionths,
    verdict: Verdict,
    /// Which gate was the reason.
    gate: Option<&'static str>,
}

impl Canary {
    /// Looks whether the step is over. Call it a few times a second.
    pub(crate) fn judge(&mut self, now: Instant) {
        self.hanging.look(now);
        self.waits_for = None;
        self.gates.iter_mut().for_each(|gate| _ = gate.settle(now));
        if self.roll_back_if_worse(now) || self.phase != Phase::Running {
            return;
        }
        let (lasted, hangs_after) = (now.saturating_duration_since(self.entered), self.hanging.hangs_after());
        let left = self.policy.dwell.max(self.hanging.known_after()).saturating_sub(lasted);
        let has_dwelt = lasted >= self.policy.dwell;
        if !has_dwelt && left > hangs_after {
            self.passed = None;
            return;
        }
        self.gates.iter_mut().for_each(|gate| gate.look(now));
        let (verdict, gate, why) = self.verdict(self.hanging.count(now), now);
        self.passed = (verdict == Verdict::Advance).then(|| self.passed.unwrap_or(now));
        if !has_dwelt {
            return;
        }
        // What came with the last answers that were missing, as after an idle night, may hang.
        let known_in =
            self.passed.map(|since| hangs_after.saturating_sub(now.saturating_duration_since(since)));
        let waits = known_in.filter(|known_in| !known_in.is_zero() && self.hanging.under_way() > 0);
        let lasts = (!left.is_zero() && verdict != Verdict::RollBack).then(|| self.why_it_lasts(left));
        self.waits_for = match (verdict, waits, &lasts) {
            (Verdict::Hold | Verdict::InsufficientData, ..) => Some(why.clone()),
            (Verdict::Advance, Some(known_in), None) => Some(self.why_it_waits(known_in)),
            (Verdict::Advance, ..) => lasts.clone(),
            (Verdict::RollBack, ..) => None,
        };
        let (verdict, gate, why) = match lasts {
            Some(lasts) => (Verdict::Hold, None, lasts),
            // It is soon over, and not told to those who read of it later.
            None if waits.is_some() => return,
            None if verdict == Verdict::Advance && self.failed_since > 0 => {
                self.waits_for = Some(self.why_it_waits_for_an_answer());
                return;
            }
            None => (verdict, gate, why),
        };
        let found = Some(Finding { share: self.share(), verdict, gate });
        if verdict == Verdict::Advance || self.judged != found {
            self.judged = found;
            self.decide(verdict, why, now);
        }
    }

    /// What is to be done, the gate that keeps it from more if one does, and why. Whether it has answered lately is asked
    /// last: it changes with each answer where those are few, and is a reason only when nothing else is missing.
    fn verdict(&self, hanging: u32, now: Instant) -> (Verdict, Option<&'static str>, String) {
        let (version, baseline) = (self.candidate(), self.policy.baseline.version);
        let asked = |gate: &Gate| Some((gate.event.gate(), gate.why_asked(version, baseline)?));
        if let Some((name, why)) = self.gates.iter().find_map(asked) {
            return (Verdict::Hold, Some(name), why);
        }
        for gate in &self.gates {
            let (witnesses, needs) = (gate.rare.witnesses(), gate.rare.needs(ALPHA));
            if witnesses < needs {
                let name = gate.event.gate();
                let mut why = if self.policy.stickiness.is_some() {
                    let every = gate.window_length;
                    format!(
                        "{name}: users were heard {witnesses} times, each once in {every:?}; {needs} times are needed"
                    )
                } else {
                    format!("{name}: {witnesses} requests, at least {needs} are needed")
                };
                if let Some(silent) = self.why_silent(now) {
                    write!(why, "; {silent}").expect("a String takes all");
                }
                return (Verdict::InsufficientData, Some(name), why);
            }
        }
        if let Some(gate) = self.gates.iter().find(|gate| gate.has_missed_most()) {
            let (name, compared, all) = (gate.event.gate(), gate.requests, gate.requests + gate.missed);
            let why =
                format!("{name}: {compared} of {all} copies were compared; at least half of them have to be");
            return (Verdict::InsufficientData, Some(name), why);
        }
        if let Some(gate) = self.gates.iter().find(|gate| !gate.has_passed(hanging)) {
            let (events, requests) = (gate.events, gate.requests);
            let (name, most) = (gate.event.gate(), gate.percent_at_most());
            let mut why = format!("{name}: {events} of {requests} is not shown to be below {most} %");
            if gate.has_passed(0) {
                write!(why, " while {hanging} more take longer than its answers do")
                    .expect("a String takes all");
            }
            return (Verdict::Hold, Some(name), why);
        }
        let refusing = |gate: &Gate| {
            let few = || gate.why_refusing_all(version, (baseline, self.usual.keys()));
            let misses = || gate.why_missing(version, baseline);
            let why = gate.why_refusing(version, baseline).or_else(few).or_else(misses)?;
            Some((gate.event.gate(), why))
        };
        if let Some((name, why)) = self.gates.iter().find_map(refusing) {
            return (Verdict::Hold, Some(name), why);
        }
        if let Some(drift) = &self.drift {
            let (baseline, candidate) = self.policy.versions_of_arms();
            let (verdict, why) = match drift.finding(baseline, candidate) {
                Drifted::Passed => (Verdict::Advance, String::new()),
                Drifted::RollBack(why) => (Verdict::RollBack, why),
                Drifted::Hold(why) => (Verdict::Hold, why),
                Drifted::Unknown(why) => (Verdict::InsufficientData, why),
            };
            if verdict != Verdict::Advance {
                return (verdict, Some(DriftGate::NAME), why);
            }
        }
        match self.why_tripped().or_else(|| self.why_silent(now)) {
            Some(why) => (Verdict::InsufficientData, None, why),
            None => (Verdict::Advance, None, "every gate has passed".into()),
        }
    }

    fn why_it_lasts(&self, left: Duration) -> String {
        let (version, known_after) = (self.candidate(), self.hanging.known_after());
        format!(
            "a step lasts for {known_after:?}, until it is known of what version {version} is asked whether it hangs: {} to go",
            rounded_up(left)
        )
    }

    fn why_it_waits(&self, known_in: Duration) -> String {
        format!(
            "every gate has passed, and {} requests are under way of which it is known in {} at the earliest whether they hang",
            self.hanging.under_way(),
            rounded_up(known_in)
        )
    }

    fn why_it_waits_for_an_answer(&self) -> String {
        let (version, failed) = (self.candidate(), self.failed_since);
        format!(
            "every gate has passed, and version {version} has failed {failed} since it last answered: it has to answer"
        )
    }

    /// That it is not let in who is to be answered by the candidate.
    fn why_tripped(&self) -> Option<String> {
        let Since::Tripped(_) = self.breakers[1].since else { return None };
        let version = self.candidate();
        Some(format!("the breaker of version {version} has tripped: it has to let everyone in"))
    }

    /// That the candidate has answered nobody lately.
    fn why_silent(&self, now: Instant) -> Option<String> {
        let version = self.candidate();
        let by_answers = self.hanging.hangs_after() * LATELY_BY_ANSWERS;
        let lately = (self.policy.dwell / LATELY).max(Duration::from_secs(1)).max(by_answers);
        match self.answered {
            None => Some(format!("version {version} has answered nobody yet")),
            Some(answered) if now.saturating_duration_since(answered) > lately => {
                Some(format!("version {version} has answered nobody for {lately:?}"))
            }
            Some(_) => None,
        }
    }
}

/// To be read.
fn rounded_up(time: Duration) -> String {
    format!("{:?}", Duration::from_millis(time.as_millis().div_ceil(100) as u64 * 100))
}
