//! Callers' deadlines of which the baseline misses more than one in ten, so that a miss says nothing alone: more of the candidate's
//! are for a person to judge.

use super::*;

const CANARY: &str = "steps: [50], dwell: 20s, sticky: {header: user}, gates: {errors: {at_most: 5}}";

/// So many users on each side, each of whom asks ten times a second for something that takes the one side and the other too long so
/// often, until the step is over or a minute has passed.
fn asked(seed: u64, users: u64, [of_baseline, of_candidate]: [f64; 2]) -> World {
    let mut world = World::new(CANARY, seed);
    for at in 0..600 * 2 * users {
        let user = at % (2 * users);
        let is_candidate = user.is_multiple_of(2);
        let misses = world.dice.falls(if is_candidate { of_candidate } else { of_baseline });
        let sight = if misses { Sight::Late(ms(100)) } else { FAST };
        let assigned = world.assigned(is_candidate).within(ms(100), ms(2_000));
        world.canary.witness(assigned, Some(user), sight, world.now);
        if user + 1 == 2 * users {
            world.now += ms(100);
            world.canary.judge(world.now);
        }
        if world.canary.phase != Phase::Running {
            break;
        }
    }
    world
}

#[test]
fn a_candidate_that_misses_most_deadlines_gets_no_more_where_the_baseline_misses_some() {
    let mut held = 0;
    for users in [4, 6, 20] {
        for seed in 0..10 {
            let mut world = asked(seed, users, [0.15, 0.8]);
            assert_ne!(world.canary.phase, Phase::Promoted, "{users} {seed}");
            if world.canary.phase == Phase::RolledBack {
                continue;
            }
            // Where by chance the baseline has missed few for a while, what the candidate missed then counts against what may fail.
            held += u32::from(world.waits_for().contains("deadlines that its callers have brought"));
            world.restarted(CANARY);
            assert!(world.canary.gates[0].why_missing(Version(2), Version(1)).is_some(), "{users} {seed}");
        }
    }
    assert!(held >= 15, "{held} of 30");
}

#[test]
fn versions_that_miss_as_many_are_rarely_held_for_it() {
    for users in [4, 12] {
        let held = (0..60).filter(|seed| {
            let world = asked(*seed, users, [0.2, 0.2]);
            world.waits_for().contains("deadlines")
        });
        let held = held.count();
        assert!(held <= 3, "{held} of 60 of {users} users");
    }
}
