//! What is one witness: users who fail again and again, and what goes unanswered together.

use super::*;

#[test]
fn users_who_always_fail_are_one_witness_each_however_long_it_takes() {
    let mut world = World::new("steps: [10], dwell: 1h", 1);
    for _ in 0..1_000 {
        world.now += Duration::from_secs(59);
        for user in [0, 1, 0, 1] {
            let assigned = world.assigned(true);
            world.canary.witness(assigned, Some(user), Sight::Failed, world.now);
        }
    }
    assert_eq!(world.canary.phase, Phase::Running);
    world.canary.judge(world.now + Duration::from_secs(3600));
    assert_eq!(world.canary.gates[0].rare.witnesses(), 2_000, "each says once in ten seconds how it fares");
    for user in 2..6 {
        let assigned = world.assigned(true);
        world.canary.witness(assigned, Some(user), Sight::Failed, world.now);
    }
    assert_eq!(world.canary.phase, Phase::RolledBack, "six are no coincidence");
}

/// Both versions answer a session's first request, and fail what comes then. Nothing is worse about the candidate, but nobody
/// is to be sent there by the first answers alone.
#[test]
fn what_goes_well_first_does_not_hide_what_fails_then() {
    let mut world = World::new("steps: [50], dwell: 10m, sticky: {header: user}", 1);
    let round = |world: &mut World, sights: [Sight; 2]| {
        for user in 0..600 {
            let assigned = world.assigned(user % 2 == 0);
            sights.into_iter().for_each(|sight| world.canary.witness(assigned, Some(user), sight, world.now));
        }
        world.now += Duration::from_secs(10);
    };
    (0..60).for_each(|_| round(&mut world, [FAST, Sight::Failed]));
    assert_eq!(world.wait(0), Some(Verdict::Hold));
    let held = world.canary.history.back().unwrap();
    assert_eq!(held.why, "errors: 18000 of 36000 is not shown to be below 1 %");
    let mut world = World::new("steps: [50], dwell: 10m, sticky: {header: user}", 1);
    (0..60).for_each(|_| round(&mut world, [FAST, FAST]));
    assert_eq!(world.work(1), Some(Verdict::Advance));
}

/// Who asks a thousand times as much as the others, and gets a failure now and then, is not failing all the time.
#[test]
fn who_asks_much_counts_with_the_part_that_fails() {
    let mut world =
        World::new("steps: [50], dwell: 10m, sticky: {header: user}, gates: {errors: {at_most: 5}}", 1);
    for _ in 0..60 {
        for user in 0..10 {
            let assigned = world.assigned(true);
            for at in 0..100 {
                let sight = if at == 50 { Sight::Failed } else { FAST };
                world.canary.witness(assigned, Some(user), sight, world.now);
                let baseline = world.assigned(false);
                world.canary.witness(baseline, Some(1000 + user), sight, world.now);
            }
        }
        world.now += Duration::from_secs(10);
    }
    assert_eq!(world.work(1), Some(Verdict::Advance), "{:?}", world.canary.numbers());
}

/// Ten thousand rollouts of versions that fail as often as may be, for users who ask several times and of whom some fail
/// always: the candidate gets more in at most one of twenty.
#[test]
fn a_candidate_that_fails_as_often_as_it_may_advances_at_most_once_in_twenty() {
    let mut advanced = 0;
    for seed in 0..10_000 {
        let gates = "steps: [50], dwell: 10s, sticky: {header: user}, gates: {errors: {at_most: 20}}";
        let mut world = World::new(gates, seed);
        for round in 0..20 {
            for user in 0..16 {
                let fails_always = world.dice.falls(0.1);
                let assigned = world.assigned(user % 2 == 0);
                for _ in 0..3 {
                    let fails = fails_always || world.dice.falls(0.1 / 0.9);
                    let (key, sight) = (round << 8 | user, if fails { Sight::Failed } else { FAST });
                    world.canary.witness(assigned, Some(key), sight, world.now);
                }
            }
            world.now += Duration::from_secs(1);
            world.canary.judge(world.now);
        }
        advanced += u32::from(world.canary.phase == Phase::Promoted);
    }
    assert!(advanced <= 500, "{advanced} of 10,000");
}

#[test]
fn one_stall_is_one_witness() {
    let mut world = World::new("steps: [10], dwell: 1h", 1);
    (0..1_000).for_each(|_| world.tell(true, Sight::Late(Duration::from_secs(1))));
    assert_eq!(world.canary.phase, Phase::Running);
    for _ in 0..5 {
        world.now += Duration::from_millis(100);
        world.tell(true, Sight::Unanswered);
    }
    assert_eq!(world.canary.phase, Phase::RolledBack, "a candidate that answers nobody is soon found out");
    let why = &world.canary.history.back().unwrap().why;
    assert!(
        why.contains("of the last 4 failures") || why.contains("of the last 3 failures"),
        "a stall is one: {why}"
    );
}

/// Fifty requests each 300 ms, a tenth of them the candidate's, of which each side fails at some, after so long.
fn batches(
    (of_baseline, baseline_after): (f64, u64),
    (of_candidate, candidate_after): (f64, u64),
    seed: u64,
) -> World {
    let mut world = World::new("steps: [10], dwell: 1h", seed);
    for _ in 0..100 {
        let fails = |world: &mut World, of: f64| (0..50).filter(|_| world.dice.falls(of)).count();
        let mut sides = [
            (baseline_after, false, fails(&mut world, 0.9 * of_baseline)),
            (candidate_after, true, fails(&mut world, 0.1 * of_candidate)),
        ];
        sides.sort_unstable();
        let began = world.now;
        for (after, is_candidate, failures) in sides {
            world.now = began + ms(after);
            (0..failures).for_each(|_| world.tell(is_candidate, Sight::Unanswered));
        }
        world.now = began + ms(300);
        world.canary.judge(world.now);
    }
    world
}

#[test]
fn which_side_fails_sooner_neither_hides_nor_makes_a_candidate_that_fails_more_often() {
    let rolled_back = |baseline, candidate| {
        (0..200).filter(|seed| batches(baseline, candidate, *seed).canary.phase == Phase::RolledBack).count()
    };
    for (baseline_after, candidate_after) in [(40, 5), (5, 40), (5, 5)] {
        let alike = rolled_back((0.2, baseline_after), (0.2, candidate_after));
        assert!(
            alike <= 10,
            "{alike} of 200 that are alike, after {baseline_after} and {candidate_after} ms"
        );
        let worse = rolled_back((0.05, baseline_after), (1.0, candidate_after));
        assert_eq!(worse, 200, "after {baseline_after} and {candidate_after} ms");
    }
}

#[test]
fn what_turns_everybody_away_is_nobodys_fault_and_what_turns_the_candidates_away_is() {
    for (of_baseline, expected) in [(0.1, Phase::Running), (0.0, Phase::RolledBack)] {
        let mut world = World::new("steps: [10], dwell: 1h", 4);
        for _ in 0..20_000 {
            let is_candidate = world.dice.falls(0.1);
            let is_lost = world.dice.falls(if is_candidate { 0.1 } else { of_baseline });
            world.now += Duration::from_millis(20);
            world.tell(is_candidate, if is_lost { Sight::Unanswered } else { FAST });
        }
        assert_eq!(world.canary.phase, expected);
    }
}

/// Of users who always fail, whichever version answers them, through three steps and half an hour.
#[test]
fn users_who_fail_everywhere_roll_back_at_most_one_rollout_in_twenty() {
    for users in [1, 3, 10] {
        let mut dice = Dice(users);
        let mut rolled_back = 0;
        for seed in 0..2_000 {
            let mut world = World::new("steps: [10, 25, 50], dwell: 1m", seed);
            // Where each stands on the ring.
            let places: Vec<f64> = (0..users)
                .map(|_| (0..20).map(|bit| if dice.falls(0.5) { 0.5f64.powi(bit + 1) } else { 0.0 }).sum())
                .collect();
            for minute in 0..30 {
                for (user, place) in (0..users).zip(&places) {
                    let is_candidate = *place < percent(world.canary.share()) / 100.0;
                    let assigned = world.assigned(is_candidate);
                    world.canary.witness(assigned, Some(user), Sight::Failed, world.now);
                }
                world.now += Duration::from_secs(60);
                if minute % 10 == 9 && world.canary.phase == Phase::Running && world.canary.step < 2 {
                    world.canary.decide(Verdict::Advance, "the ramp of this test".into(), world.now);
                }
            }
            rolled_back += u32::from(world.canary.phase == Phase::RolledBack);
        }
        assert!(rolled_back <= 100, "{rolled_back} of 2,000 with {users} users");
    }
}
