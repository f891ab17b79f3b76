//! Answers that a shadow finds to differ from the baseline's.

use super::*;

#[test]
fn a_candidate_that_answers_otherwise_is_rolled_back_and_one_that_agrees_is_not_held_up() {
    let run = |every: u32| {
        let mut world = compared(2.0, 1);
        (0..600).for_each(|_| world.tell(true, FAST));
        for at in 0..400 {
            world.compare(None, at % every != 1);
        }
        let verdict = world.work(1);
        (world.canary.phase.clone(), verdict)
    };
    assert_eq!(run(1_000), (Phase::Running, Some(Verdict::Advance)));
    assert_eq!(run(10).0, Phase::RolledBack);
    let (phase, verdict) = run(50);
    assert_eq!(
        (phase, verdict),
        (Phase::Running, Some(Verdict::Hold)),
        "as many as are allowed show nothing"
    );
}

#[test]
fn a_user_who_is_always_answered_otherwise_is_one_witness_however_long_it_takes() {
    let mut world = compared(2.0, 1);
    for _ in 0..1_000 {
        world.now += Duration::from_secs(10);
        world.compare(Some(7), false);
    }
    assert_eq!(world.canary.phase, Phase::Running);
    (0..5).for_each(|user| world.compare(Some(user), false));
    assert_eq!(world.canary.phase, Phase::RolledBack, "six are no coincidence");
}

#[test]
fn a_candidate_that_agreed_for_long_and_does_no_more_is_found_out_soon() {
    for agreed in [0, 10_000, 10_499] {
        let mut world = compared(2.0, 1);
        (0..agreed).for_each(|_| world.compare(None, true));
        let needed = (1..).find(|_| {
            world.compare(None, false);
            world.canary.phase == Phase::RolledBack
        });
        assert!(needed <= Some(30), "{needed:?} after {agreed} that agreed");
    }
}

/// Those that are dropped under pressure, or fail, may be the ones that differ.
#[test]
fn agreement_of_the_few_copies_that_could_be_compared_shows_nothing() {
    for (missed, verdict) in [(600, Verdict::Advance), (601, Verdict::InsufficientData)] {
        let mut world = compared(2.0, 1);
        (0..600).for_each(|_| world.tell(true, FAST));
        (0..600).for_each(|_| world.compare(None, true));
        for _ in 0..missed {
            world.canary.compared(world.assigned(false), None, None, world.now);
        }
        let progress = serde_json::to_string(&world.canary.progress(world.now)).unwrap();
        world.canary.restore(&serde_json::from_str(&progress).unwrap(), world.now);
        assert_eq!(world.work(1), Some(verdict));
        let why = &world.canary.history.back().unwrap().why;
        let says = "disagreement: 600 of 1201 copies were compared; at least half of them have to be";
        assert_eq!(why == says, verdict == Verdict::InsufficientData, "{why}");
        if verdict == Verdict::InsufficientData {
            world.compare(None, true);
            assert_eq!(world.work(1), Some(Verdict::Advance), "as many as were missed");
        }
        let copies = world.canary.gates.iter().map(|gate| gate.requests + gate.missed).sum::<u64>();
        assert_eq!((world.canary.step, copies), (1, 0), "the next step counts its own");
        let mut world = compared(2.0, 1);
        world.compare(None, false);
        let worse = world.canary.gates[1].worse();
        world.canary.compared(world.assigned(false), None, None, world.now);
        assert_eq!(world.canary.gates[1].worse(), worse, "it is no evidence against it either");
    }
}

/// As many disagree as may, through two steps: half of them drawn anew, half users who ask again and again, of whom
/// some are answered otherwise now and then and some always.
#[test]
fn a_candidate_that_disagrees_as_often_as_it_may_is_rolled_back_at_most_once_in_twenty() {
    let mut rolled_back = 0;
    for seed in 0..1_000 {
        let mut world = compared(2.0, seed);
        let always: Vec<bool> = (0..200).map(|_| world.dice.falls(0.02)).collect();
        for round in 0..10 {
            for (user, always) in (0..).zip(&always) {
                let disagrees = if user % 2 == 0 { *always } else { world.dice.falls(0.02) };
                world.compare(Some(user), !disagrees);
            }
            for _ in 0..100 {
                let disagrees = world.dice.falls(0.02);
                world.compare(None, !disagrees);
            }
            world.now += Duration::from_secs(60);
            if round == 5 && world.canary.phase == Phase::Running {
                world.canary.decide(Verdict::Advance, "the ramp of this test".into(), world.now);
            }
        }
        rolled_back += u32::from(world.canary.phase == Phase::RolledBack);
    }
    // Two gates share the chance.
    assert!(rolled_back <= 25, "{rolled_back} of 1,000");
}
