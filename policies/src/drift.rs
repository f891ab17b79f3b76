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
//! What is known is of whole windows of rows, and only of those that have ended in this step. Windows of two versions do not
//! end together: where the world changes for both, one of them says so first. So a candidate is rolled back only if the
//! baseline's window lies between two of its own.
//!
//! ```text
//!   candidate  ├── beyond ──┤├── beyond ──┤├── beyond ──┤
//!   baseline            ├──── ? ────┤├── within ──┤          rolled back at the end of the candidate's third
//! ```

use crate::canary::{GateStatus, Grounds};
use crate::units::{Millionths, Version, share_of_all};
use std::time::Instant;

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
    /// When the window began.
    pub began: Instant,
    /// When it ended.
    pub ended: Instant,
}

/// What is known of both versions in this step.
#[derive(Clone, Debug)]
pub(crate) struct DriftGate {
    at_most: Millionths,
    /// When the step began.
    entered: Instant,
    baseline: Option<DriftSight>,
    candidate: Option<DriftSight>,
    /// When the first of the candidate's windows ended of which all have been beyond what may be.
    beyond_since: Option<Instant>,
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

    pub(crate) fn new(at_most: Millionths, now: Instant) -> Self {
        Self { at_most, entered: now, baseline: None, candidate: None, beyond_since: None }
    }

    /// Goes on under another limit.
    pub(crate) fn become_like(&mut self, at_most: Millionths) {
        if self.at_most != at_most {
            (self.at_most, self.beyond_since) = (at_most, None);
        }
    }

    pub(crate) fn hear(&mut self, is_candidate: bool, sight: DriftSight) {
        if sight.ended <= self.entered {
            return;
        }
        if !is_candidate {
            self.baseline = Some(sight);
            return;
        }
        self.beyond_since = (sight.least > self.at_most).then(|| self.beyond_since.unwrap_or(sight.ended));
        self.candidate = Some(sight);
    }

    /// The next step begins: what was seen before says nothing about it.
    pub(crate) fn begin_step(&mut self, now: Instant) {
        *self = Self::new(self.at_most, now);
    }

    pub(crate) fn finding(&self, baseline: Version, candidate: Version) -> Finding {
        let Some(DriftSight { what, least, most, rows, ended, .. }) = &self.candidate else {
            return Finding::Unknown(format!(
                "drift: no window of rows of version {candidate} was compared with its reference in this step"
            ));
        };
        let at_most = bits(self.at_most);
        if *least > self.at_most {
            let (least, moved) = (bits(*least), format!("{what} of version {candidate}"));
            let since = self.beyond_since.unwrap_or(*ended);
            let is_between = |sight: &DriftSight| sight.began >= since && sight.ended <= *ended;
            return match &self.baseline {
                Some(sight) if sight.most <= self.at_most && is_between(sight) => Finding::RollBack(format!(
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
        let (worse, rare, requests) = match &self.candidate {
            Some(sight) => {
                (f64::from(sight.least) / at_most, at_most / f64::from(sight.most.max(1)), sight.rows)
            }
            None => (0.0, 0.0, 0),
        };
        let (roll_back_at, pass_at, events, heard) = (1.0, 1.0, 0, Grounds::default());
        GateStatus { gate: Self::NAME, worse, roll_back_at, rare, pass_at, requests, events, heard }
    }
}

fn bits(millionths: u32) -> f64 {
    (share_of_all(millionths) * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// Windows of five seconds, told when they end.
    struct World {
        gate: DriftGate,
        began: Instant,
    }

    const WITHIN: (u32, u32) = (0, 50_000);
    const UNSURE: (u32, u32) = (0, 400_000);
    const BEYOND: (u32, u32) = (300_000, 700_000);

    impl World {
        fn new() -> Self {
            let began = Instant::now();
            Self { gate: DriftGate::new(100_000, began), began }
        }

        fn hear(&mut self, is_candidate: bool, ended: u64, (least, most): (u32, u32)) -> Finding {
            let ended = self.began + Duration::from_secs(ended);
            let began = ended - Duration::from_secs(5);
            let what = "input `pixels`".into();
            self.gate.hear(is_candidate, DriftSight { what, least, most, rows: 512, began, ended });
            self.gate.finding(Version(1), Version(2))
        }

        fn candidate(&mut self, ended: u64, found: (u32, u32)) -> Finding {
            self.hear(true, ended, found)
        }

        fn baseline(&mut self, ended: u64, found: (u32, u32)) -> Finding {
            self.hear(false, ended, found)
        }
    }

    #[test]
    fn what_is_not_known_never_passes_and_never_rolls_back() {
        let mut world = World::new();
        assert!(matches!(world.baseline(5, WITHIN), Finding::Unknown(_)));
        assert!(matches!(world.candidate(5, UNSURE), Finding::Hold(_)));
        assert_eq!(world.candidate(10, WITHIN), Finding::Passed);
        assert_eq!(world.baseline(10, BEYOND), Finding::Passed, "whatever the baseline does");
    }

    #[test]
    fn a_candidate_that_alone_has_moved_is_rolled_back() {
        let mut world = World::new();
        world.baseline(4, WITHIN);
        assert!(matches!(world.candidate(5, BEYOND), Finding::Hold(_)));
        assert!(matches!(world.baseline(9, WITHIN), Finding::Hold(_)), "a part of it is from before");
        assert!(matches!(world.candidate(10, BEYOND), Finding::Hold(_)));
        assert!(
            matches!(world.baseline(14, WITHIN), Finding::Hold(_)),
            "the candidate may be well again by now"
        );
        let Finding::RollBack(why) = world.candidate(15, BEYOND) else { panic!("it must be") };
        assert!(why.contains("input `pixels` of version 2 has moved by 0.3 bits at least"), "{why}");
    }

    #[test]
    fn a_world_that_moves_for_both_holds_whoever_says_so_first() {
        for first in [false, true] {
            let mut world = World::new();
            world.baseline(4, WITHIN);
            world.candidate(4, WITHIN);
            for round in 1..20 {
                let ended = 5 * round;
                assert!(!matches!(world.hear(first, ended, BEYOND), Finding::RollBack(_)));
                assert!(!matches!(world.hear(!first, ended + 3, BEYOND), Finding::RollBack(_)));
            }
            let Finding::Hold(why) = world.candidate(100, BEYOND) else { panic!("it must be held") };
            assert!(why.contains("and so has input `pixels` of version 1"), "{why}");
        }
    }

    #[test]
    fn a_while_in_which_both_had_moved_rolls_nobody_back() {
        let mut world = World::new();
        world.candidate(5, BEYOND);
        world.baseline(8, BEYOND);
        world.baseline(13, WITHIN);
        assert_eq!(world.candidate(10, WITHIN), Finding::Passed);
        assert!(matches!(world.candidate(20, BEYOND), Finding::Hold(_)), "it begins anew");
    }

    #[test]
    fn a_baseline_of_which_little_is_known_is_no_reason() {
        let mut world = World::new();
        for ended in [5, 10, 15] {
            assert!(
                matches!(world.candidate(ended, BEYOND), Finding::Hold(_)),
                "nothing is known of the baseline"
            );
        }
        world.baseline(20, UNSURE);
        assert!(matches!(world.candidate(25, BEYOND), Finding::Hold(_)));
    }

    #[test]
    fn only_windows_that_end_in_a_step_count_for_it() {
        let mut world = World::new();
        assert_eq!(world.candidate(5, WITHIN), Finding::Passed);
        world.gate.begin_step(world.began + Duration::from_secs(6));
        assert!(matches!(world.candidate(5, WITHIN), Finding::Unknown(_)), "it ended before");
        assert_eq!(world.candidate(10, WITHIN), Finding::Passed);
    }

    #[test]
    fn its_numbers_are_parts_of_what_it_takes() {
        let mut world = World::new();
        assert_eq!((world.gate.numbers().worse, world.gate.numbers().rare), (0.0, 0.0));
        world.candidate(5, (50_000, 200_000));
        let numbers = world.gate.numbers();
        assert_eq!((numbers.worse, numbers.rare, numbers.requests), (0.5, 0.5, 512));
        world.candidate(10, (0, 0));
        assert!(world.gate.numbers().rare.is_finite());
    }
}
