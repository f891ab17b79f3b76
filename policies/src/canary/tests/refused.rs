//! Users whose requests a version refuses, by how often they ask.

use super::*;

/// How a rollout is left of users who each ask so often in each window of a second, and of whose requests each is refused with one of these
/// chances, the baseline's or the candidate's. They are eight, too few to show that one version fails more often; who ask but once, forty.
fn left(requests: u32, of_each: [f64; 2], seed: u64) -> Phase {
    let canary = "steps: [50], dwell: 10s, sticky: {header: user}, gates: {errors: {at_most: 5}}";
    let mut world = World::new(canary, seed);
    let users: u32 = if requests == 1 { 40 } else { 8 };
    for _ in 0..if requests == 1_000 { 24 } else { 100 } {
        for user in 0..users.into() {
            let is_candidate = user % 2 == 0;
            for _ in 0..requests {
                let is_refused = world.dice.falls(of_each[usize::from(is_candidate)]);
                let sight = if is_refused { Sight::Refused } else { FAST };
                world.canary.witness(world.assigned(is_candidate), Some(user), sight, world.now);
            }
            world.now += Duration::from_secs(1) / users;
        }
        world.canary.judge(world.now);
    }
    world.canary.phase
}

#[test]
fn refusals_that_may_be_hold_no_rollout_and_twice_as_many_do_however_often_users_ask() {
    for requests in [1, 10, 100, 1_000] {
        for seed in 0..if requests == 1_000 { 1 } else { 5 } {
            for of_each in [[0.0, 0.012], [0.005, 0.012], [0.1, 0.1], [0.6, 0.6]] {
                assert_eq!(left(requests, of_each, seed), Phase::Promoted, "{requests} {of_each:?} {seed}");
            }
            for of_each in [[0.0, 0.1], [0.0, 0.6], [0.1, 0.6]] {
                assert_ne!(left(requests, of_each, seed), Phase::Promoted, "{requests} {of_each:?} {seed}");
            }
        }
    }
}
