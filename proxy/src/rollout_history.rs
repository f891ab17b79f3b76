//! How the evidence about each rollout has grown, and when which verdict fell. Kept here and not by whoever looks: the
//! person who opens a page because a candidate was rolled back has not been watching.
//!
//! Bounded: when there are as many points as [`POINTS_MAX`], every second one goes and from then on half as many come, so
//! that the points always cover the whole of a rollout, minutes or days.

use crate::refused::unix_ms;
use policies::{CanaryStatus, GateStatus, Phase, Record};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

const POINTS_MAX: usize = 120;
const MARKS_MAX: usize = 64;
/// Between the first points, ms: what fails at every request is rolled back within a few of them.
const EVERY_MS: u64 = 100;

/// Of all rollouts, by model.
#[derive(Debug, Default)]
pub struct RolloutHistory(Mutex<BTreeMap<String, Course>>);

#[derive(Debug, Default)]
struct Course {
    arms: (u64, u64),
    every_ms: u64,
    is_over: bool,
    shown: History,
}

/// What a reader gets of one rollout.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct History {
    /// Oldest first.
    pub points: Vec<Point>,
    /// Verdicts, oldest first.
    pub marks: VecDeque<Mark>,
}

/// The evidence at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// When.
    pub unix_ms: u64,
    /// From 1.
    pub step: usize,
    /// Of each gate, in the order in which the rollout shows them: how much there is that the candidate is worse and that it
    /// is well, as parts of what it takes to roll back and to pass.
    pub gates: Vec<(f64, f64)>,
}

/// A verdict.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mark {
    /// When.
    pub unix_ms: u64,
    /// About which step, from 1.
    pub step: usize,
    /// In the word of the metric.
    pub verdict: String,
    /// Why.
    pub why: String,
}

impl RolloutHistory {
    /// Whether the next point of a rollout is due that has been seen before.
    pub(crate) fn is_due(&self, now: SystemTime) -> bool {
        self.lock().values().any(|course| course.is_due(unix_ms(now)))
    }

    /// Takes a point of every rollout whose next point is due; of one that is over only if it is the first. Forgets
    /// rollouts that are gone.
    pub(crate) fn sample(&self, rollouts: &BTreeMap<String, CanaryStatus>, now: SystemTime) {
        let now = unix_ms(now);
        let mut courses = self.lock();
        courses.retain(|model, _| rollouts.contains_key(model));
        for (model, rollout) in rollouts {
            let course = courses.entry(model.clone()).or_default();
            course.be_of((rollout.baseline, rollout.candidate));
            course.is_over = match rollout.phase {
                Phase::Running | Phase::Paused => false,
                Phase::RolledBack | Phase::Promoted => true,
            };
            if course.is_due(now) {
                course.push(now, rollout.step, &rollout.gates);
            }
        }
    }

    /// Takes down a verdict with the numbers that it was given for.
    pub(crate) fn mark(&self, model: &str, record: &Record, now: SystemTime) {
        let now = unix_ms(now);
        let mut courses = self.lock();
        let Some(course) = courses.get_mut(model) else { return };
        // A point of the step that follows may have come between the verdict and this: it would seem to begin twice.
        course.shown.points.pop_if(|last| last.step > record.step);
        course.push(now, record.step, &record.gates);
        if course.shown.marks.len() == MARKS_MAX {
            course.shown.marks.pop_front();
        }
        let (verdict, why) = (record.verdict.as_str().to_owned(), record.why.clone());
        course.shown.marks.push_back(Mark { unix_ms: now, step: record.step, verdict, why });
    }

    /// Of one rollout.
    pub fn of(&self, model: &str) -> History {
        self.lock().get(model).map(|course| course.shown.clone()).unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Course>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Course {
    /// Begins anew if it is of other versions.
    fn be_of(&mut self, arms: (u64, u64)) {
        if self.arms != arms || self.every_ms == 0 {
            *self = Self { arms, every_ms: EVERY_MS, ..Self::default() };
        }
    }

    fn is_due(&self, now: u64) -> bool {
        let due = |last: &Point| !self.is_over && now >= last.unix_ms + self.every_ms;
        self.shown.points.last().is_none_or(due)
    }

    fn push(&mut self, unix_ms: u64, step: usize, gates: &[GateStatus]) {
        if self.shown.points.len() == POINTS_MAX {
            let mut at = 0;
            self.shown.points.retain(|_| {
                at += 1;
                at % 2 == 1
            });
            self.every_ms *= 2;
        }
        let parts =
            |gate: &GateStatus| (rounded(gate.worse / gate.roll_back_at), rounded(gate.rare / gate.pass_at));
        self.shown.points.push(Point { unix_ms, step, gates: gates.iter().map(parts).collect() });
    }
}

/// A chart has no use for more digits.
fn rounded(part: f64) -> f64 {
    (part * 1e5).round() / 1e5
}

#[cfg(test)]
mod tests {
    use super::*;
    use policies::{Command, Ledger};
    use std::time::{Duration, Instant, UNIX_EPOCH};

    #[test]
    fn points_thin_out_and_cover_the_whole_and_a_verdict_is_marked() {
        let (ledger, now) = (Ledger::new(), Instant::now());
        let policy = |candidate: u64| {
            let text =
                format!("models: {{m: {{canary: {{baseline: 1, candidate: {candidate}, steps: [10]}}}}}}");
            policies::parse(&text, "p").unwrap()
        };
        ledger.roll_out(&policy(2), now);
        let history = RolloutHistory::default();
        let second = |second| UNIX_EPOCH + Duration::from_secs(second);
        for at in 0..1000 {
            history.sample(&ledger.rollouts(), second(at));
        }
        assert!(history.is_due(second(2000)) && !history.is_due(second(0)));
        let points = history.of("m").points;
        assert!((60..=120).contains(&points.len()), "{}", points.len());
        assert!(points[0].unix_ms == 0 && points.last().unwrap().unix_ms > 980_000);
        ledger.command("m", Command::Abort, "enough", now).unwrap();
        for (model, record) in ledger.judge(now) {
            history.mark(&model, &record, second(1000));
        }
        history.sample(&ledger.rollouts(), second(2000));
        let History { points, marks } = history.of("m");
        assert_eq!((marks.len(), marks[0].verdict.as_str(), marks[0].unix_ms), (1, "roll_back", 1_000_000));
        assert!(marks[0].why.contains("enough"), "{}", marks[0].why);
        assert_eq!(points.last().unwrap().unix_ms, 1_000_000, "what is over has no more points");
        ledger.roll_out(&policy(3), now);
        history.sample(&ledger.rollouts(), second(2001));
        assert_eq!((history.of("m").points.len(), history.of("m").marks.len()), (1, 0), "another candidate");
        let mut ahead = ledger.rollouts();
        ahead.get_mut("m").unwrap().step = 2;
        history.sample(&ahead, second(2002));
        ledger.command("m", Command::Abort, "enough", now).unwrap();
        ledger.judge(now).iter().for_each(|(model, record)| history.mark(model, record, second(2003)));
        let steps: Vec<_> = history.of("m").points.iter().map(|point| point.step).collect();
        assert_eq!(steps, [1, 1], "what followed the verdict was seen before it");
        ledger.roll_out(&policies::Snapshot::default(), now);
        history.sample(&ledger.rollouts(), second(2002));
        assert_eq!(history.of("m"), History::default());
        assert!(!history.is_due(second(2003)), "nothing is rolled out");
    }
}
