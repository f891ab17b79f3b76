//! The gate of a rollout that asks whether the candidate's world is the one that it was made for: how far its inputs and its
//! answers have moved from its reference. Decides what that means for the rollout; how far, others have measured.
//!
//! | the candidate, by `at_most`   | the baseline  | what is done                                                    |
//! |-------------------------------|---------------|-----------------------------------------------------------------|
//! | is shown to be beyond it      | shown to be within | rolled back: the one that answers the same callers does well |
//! | is shown to be beyond it      | is not        | held: the world has changed, and a rollback would not change it |
//! | is shown to be within it      | whatever      | may go on                                                       |
//! | neither, or nothing is known  | whatever      | held                                                            |
//!
//! What is known is of whole windows of rows, and only of those that have ended in this step.

use crate::canary::{GateStatus, Millionths, share_of_all};
use crate::units::Version;

/// How far what a version is given and answers has moved from its reference, by its last whole window of rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriftSight {
    /// The tensor that has moved most, in words.
    pub what: String,
    /// It has moved at least so far: Jensen–Shannon divergence, in millionths of a bit. More is shown beyond chance.
    pub least: u32,
    /// Nothing has moved further than this.
    pub most: u32,
    /// Rows of the window.
    pub rows: u64,
    /// Windows so far; fewer than before are those of another process.
    pub windows: u64,
}

/// What is known of both versions in this step.
#[derive(Clone, Debug)]
pub(crate) struct DriftGate {
    at_most: Millionths,
    baseline: Arm,
    candidate: Arm,
}

#[derive(Clone, Debug, Default)]
struct Arm {
    sight: Option<DriftSight>,
    /// Windows that had ended when the step began, as far as anybody knows.
    over: u64,
}

/// What it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Finding {
    Passed,
    RollBack(String),
    Hold(String),
    Unknown(String),
}

impl DriftGate {
    pub(crate) const NAME: &str = "drift";

    pub(crate) fn new(at_most: Millionths) -> Self {
        Self { at_most, baseline: Arm::default(), candidate: Arm::default() }
    }

    /// Goes on under another limit.
    pub(crate) fn become_like(&mut self, at_most: Millionths) {
        self.at_most = at_most;
    }

    pub(crate) fn hear(&mut self, is_candidate: bool, sight: DriftSight) {
        let arm = if is_candidate { &mut self.candidate } else { &mut self.baseline };
        if sight.windows < arm.over {
            arm.over = 0; // another process counts
        }
        if sight.windows > arm.over {
            arm.sight = Some(sight);
        }
    }

    /// The next step begins: what was seen before says nothing about it.
    pub(crate) fn begin_step(&mut self) {
        for arm in [&mut self.baseline, &mut self.candidate] {
            if let Some(sight) = arm.sight.take() {
                arm.over = sight.windows;
            }
        }
    }

    pub(crate) fn finding(&self, baseline: Version, candidate: Version) -> Finding {
        let Some(DriftSight { what, least, most, rows, .. }) = &self.candidate.sight else {
            return Finding::Unknown(format!(
                "drift: no window of rows of version {candidate} was compared with its reference in this step"
            ));
        };
        let at_most = bits(self.at_most);
        if *least > self.at_most {
            let (least, moved) = (bits(*least), format!("{what} of version {candidate}"));
            return match &self.baseline.sight {
                Some(sight) if sight.most <= self.at_most => Finding::RollBack(format!(
                    "{moved} has moved by {least} bits at least from its reference, of {at_most} that may be, and nothing of \
                     version {baseline} has: {rows} rows"
                )),
                Some(sight) if sight.least > self.at_most => Finding::Hold(format!(
                    "drift: {moved} has moved by {least} bits at least, and so has {} of version {baseline}",
                    sight.what
                )),
                _ => Finding::Hold(format!(
                    "drift: {moved} has moved by {least} bits at least, and version {baseline} is not shown to be any better"
                )),
            };
        }
        if *most > self.at_most {
            let most = bits(*most);
            return Finding::Hold(format!(
                "drift: up to {most} bits by {rows} rows is not shown to be below {at_most} bits"
            ));
        }
        Finding::Passed
    }

    /// In parts of what it takes, each of which is 1.
    pub(crate) fn numbers(&self) -> GateStatus {
        let at_most = f64::from(self.at_most);
        let (worse, rare, requests) = match &self.candidate.sight {
            Some(sight) => {
                (f64::from(sight.least) / at_most, at_most / f64::from(sight.most.max(1)), sight.rows)
            }
            None => (0.0, 0.0, 0),
        };
        GateStatus { gate: Self::NAME, worse, roll_back_at: 1.0, rare, pass_at: 1.0, requests, events: 0 }
    }
}

fn bits(millionths: u32) -> f64 {
    (share_of_all(millionths) * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sight(least: u32, most: u32, windows: u64) -> DriftSight {
        DriftSight { what: "input `pixels`".into(), least, most, rows: 512, windows }
    }

    fn found(baseline: Option<DriftSight>, candidate: Option<DriftSight>) -> Finding {
        let mut gate = DriftGate::new(100_000);
        baseline.into_iter().for_each(|sight| gate.hear(false, sight));
        candidate.into_iter().for_each(|sight| gate.hear(true, sight));
        gate.finding(Version(1), Version(2))
    }

    #[test]
    fn what_is_not_known_never_passes_and_never_rolls_back() {
        let (well, unsure) = (sight(0, 50_000, 1), sight(0, 400_000, 1));
        assert_eq!(found(None, Some(well.clone())), Finding::Passed, "whatever the baseline does");
        assert!(matches!(found(Some(well.clone()), None), Finding::Unknown(_)));
        assert!(matches!(found(None, None), Finding::Unknown(_)));
        assert!(matches!(found(Some(well), Some(unsure)), Finding::Hold(_)));
    }

    #[test]
    fn a_candidate_that_alone_has_moved_is_rolled_back_and_one_that_moves_with_the_baseline_is_held() {
        let (well, unsure, far) = (sight(0, 50_000, 1), sight(0, 400_000, 1), sight(300_000, 700_000, 1));
        let Finding::RollBack(why) = found(Some(well), Some(far.clone())) else { panic!("it must be") };
        assert!(why.contains("input `pixels` of version 2 has moved by 0.3 bits at least"), "{why}");
        for baseline in [Some(far.clone()), Some(unsure), None] {
            assert!(matches!(found(baseline, Some(far.clone())), Finding::Hold(_)));
        }
    }

    #[test]
    fn only_windows_that_end_in_a_step_count_for_it() {
        let mut gate = DriftGate::new(100_000);
        gate.hear(true, sight(0, 50_000, 7));
        assert_eq!(gate.finding(Version(1), Version(2)), Finding::Passed);
        gate.begin_step();
        gate.hear(true, sight(0, 50_000, 7));
        assert!(matches!(gate.finding(Version(1), Version(2)), Finding::Unknown(_)), "it ended before");
        gate.hear(true, sight(0, 50_000, 8));
        assert_eq!(gate.finding(Version(1), Version(2)), Finding::Passed);
        gate.begin_step();
        gate.hear(true, sight(0, 50_000, 1));
        assert_eq!(gate.finding(Version(1), Version(2)), Finding::Passed, "of another process");
    }

    #[test]
    fn its_numbers_are_parts_of_what_it_takes() {
        let mut gate = DriftGate::new(100_000);
        assert_eq!((gate.numbers().worse, gate.numbers().rare), (0.0, 0.0));
        gate.hear(true, sight(50_000, 200_000, 1));
        assert_eq!((gate.numbers().worse, gate.numbers().rare, gate.numbers().requests), (0.5, 0.5, 512));
        gate.hear(true, sight(0, 0, 2));
        assert!(gate.numbers().rare.is_finite());
    }
}
