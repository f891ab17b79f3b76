//! Candidates that are dead when their step is over, whatever they have shown before.

use super::*;
use crate::{Ledger, Outcome};

const CANARY: &str = "steps: [50, 60], dwell: 40s, sticky: {header: user}, gates: {errors: {at_most: 10}}";

impl World {
    /// Each of these users of the candidate gets this, twenty times a second.
    fn serve(&mut self, users: u64, seconds: u32, sight: Sight) {
        for tick in 0..u64::from(20 * seconds) {
            self.now += ms(50);
            self.canary.witness(self.assigned(true), Some(tick % users), sight, self.now);
            self.canary.judge(self.now);
        }
    }
}

#[test]
fn a_candidate_that_fails_whoever_comes_gets_no_more_by_what_it_has_shown_before() {
    let mut world = World::new(CANARY, 1);
    world.serve(7, 39, FAST);
    // Of what windows that are over have shown, each gate has passed; and of three users nobody can tell whether it is the candidate.
    world.serve(3, 2, Sight::Failed);
    assert_eq!(
        (world.canary.phase.clone(), world.canary.step),
        (Phase::Running, 0),
        "{:?}",
        world.canary.history
    );
    assert_ne!(world.waits_for(), "");
    world.serve(7, 60, FAST);
    assert_eq!(world.canary.step, 1, "{}", world.waits_for());
}

#[test]
fn what_this_window_has_shown_counts_as_well_as_those_that_are_over() {
    let mut world = World::new(CANARY, 1);
    world.serve(7, 36, FAST);
    assert!(world.canary.gates[0].has_passed(0));
    // Three of seven users fail, and who comes last is answered.
    for user in 0..7 {
        let sight = if user < 3 { Sight::Failed } else { FAST };
        world.canary.witness(world.assigned(true), Some(user), sight, world.now);
    }
    assert!(!world.canary.gates[0].has_passed(0));
    assert!(world.canary.gates[0].rare.value() >= 20.0, "by windows that are over");
}

#[test]
fn one_whose_newest_request_has_failed_waits_for_an_answer_and_no_longer() {
    let mut world = World::new("steps: [10, 50], dwell: 1m", 1);
    (0..2_000).for_each(|_| world.tell(true, FAST));
    world.now += Duration::from_secs(60);
    world.tell(true, FAST);
    world.tell(true, Sight::Failed);
    assert_eq!(world.wait(0), None, "{:?}", world.canary.history);
    let why = "every gate has passed, and version 2 has failed 1 since it last answered: it has to answer";
    assert_eq!((world.waits_for(), world.canary.step), (why, 0));
    world.tell(true, FAST);
    assert_eq!((world.wait(0), world.canary.step), (Some(Verdict::Advance), 1));
}

#[test]
fn one_whose_breaker_has_tripped_gets_no_more() {
    let snapshot = snapshot("steps: [50, 60], dwell: 1m, gates: {errors: {at_most: 50}}");
    let (ledger, begun) = (Ledger::new(), Instant::now());
    ledger.roll_out(&snapshot, begun);
    let candidates = |ledger: &Ledger| {
        let picks = [0, u64::MAX]
            .map(|draw| ledger.pick(&snapshot, "digits", &[("user", "x")], draw, |_| true).unwrap());
        picks.into_iter().find(|pick| pick.version == Version(2)).unwrap().assigned.unwrap()
    };
    let answer = |now| (0..400).for_each(|_| ledger.witness("digits", candidates(&ledger), None, FAST, now));
    // Whoever chooses a version is no evidence, and trips its breaker.
    for _ in 0..5 {
        ledger.enter(&snapshot, "digits", Version(2), begun).unwrap().settle(Outcome::Failed, begun);
    }
    let now = begun + Duration::from_secs(60);
    answer(now);
    ledger.judge(now);
    let status = &ledger.rollouts()["digits"];
    let why = "the breaker of version 2 has tripped: it has to let everyone in";
    assert_eq!((status.step, status.waits_for.as_deref()), (1, Some(why)));
    ledger.enter(&snapshot, "digits", Version(2), now).unwrap().settle(Outcome::Served, now);
    ledger.judge(now);
    assert_eq!(ledger.rollouts()["digits"].step, 2);
}
