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

#[test]
fn a_candidate_that_takes_less_than_the_baseline_is_found_out_and_invalid_input_holds_nobody_up() {
    let mut world = World::new("steps: [50], dwell: 1s", 1);
    (0..20).for_each(|_| world.tell(true, Sight::Refused));
    assert_eq!(world.canary.phase, Phase::RolledBack);
    let mut world = World::new("steps: [50], dwell: 1s", 1);
    for _ in 0..600 {
        world.tell(true, FAST);
        world.tell(false, Sight::Refused);
    }
    assert_eq!(world.wait(1), Some(Verdict::Advance));
}

/// Eight users are too few to show that it fails more often.
#[test]
fn a_candidate_that_refuses_what_the_baseline_takes_gets_no_more_and_one_that_refuses_the_same_does() {
    let refusing =
        |chance: f64, sight: Sight| move |dice: &mut Dice| if dice.falls(chance) { sight } else { FAST };
    let canary = "steps: [50], dwell: 10s, sticky: {header: user}, gates: {errors: {at_most: 5}}";
    for seed in 0..6 {
        let sight = if seed % 2 == 0 { Sight::Refused } else { Sight::Unsendable };
        let mut world = World::new(canary, seed);
        let (some, none) = (refusing(0.6, sight), refusing(0.0, sight));
        ask_by_turns(&mut world, (8, 150), |dice, _, is_candidate| {
            (if is_candidate { some(dice) } else { none(dice) }, None)
        });
        assert_eq!(world.canary.phase, Phase::Running, "{:?}", world.canary.history);
        let why = &world.canary.history.back().unwrap().why;
        let told = why.starts_with("errors: version 2 refuses ")
            && why.contains(
                " % of what it is asked, where what version 1 refuses makes 0.0 % and 5 % may fail: ",
            );
        assert!(told, "{why}");
        let kept = serde_json::to_string(&world.canary.progress(world.now)).unwrap();
        world.canary = Canary::new(policy(canary), Beginnings::default(), world.now);
        world.canary.restore(&serde_json::from_str(&kept).unwrap(), world.now);
        ask_by_turns(&mut world, (8, 1), |_, _, _| (FAST, None));
        assert_eq!(world.canary.phase, Phase::Running, "nor does a restart forget it");
        for chance in [0.02, 0.2, 0.6] {
            let mut world = World::new(canary, seed);
            let same = refusing(chance, sight);
            ask_by_turns(&mut world, (8, 150), |dice, _, _| (same(dice), None));
            assert_eq!(world.canary.phase, Phase::Promoted, "{:?}", world.canary.history);
        }
    }
}

#[test]
fn what_was_refused_holds_no_step_after_the_one_that_a_person_has_let_go() {
    let canary = "steps: [50, 60], dwell: 10s, sticky: {header: user}, gates: {errors: {at_most: 5}}";
    let ask = |world: &mut World, chance: f64| {
        ask_by_turns(world, (8, 30), |dice, _, is_candidate| {
            (if is_candidate && dice.falls(chance) { Sight::Refused } else { FAST }, None)
        });
    };
    // All who ask few times are refused something, or more than chance makes of many.
    for seed in 0..4 {
        for (afterwards, phase) in [(0.0, Phase::Promoted), (0.6, Phase::Running)] {
            let mut world = World::new(canary, seed);
            ask(&mut world, 0.6);
            assert!(
                world.waits_for().contains("a person has to say whose fault that is"),
                "{}",
                world.waits_for()
            );
            world.canary.command(Command::Advance { from: None }, "it is theirs", world.now).unwrap();
            assert_eq!((world.canary.step, percent(world.canary.share())), (1, 60.0));
            ask(&mut world, afterwards);
            assert_eq!(world.canary.phase, phase, "{:?}", world.canary.history);
            let asks = world.waits_for().contains("a person has to say whose fault that is");
            assert_eq!(asks, phase == Phase::Running, "it refuses them in this step as well");
        }
    }
}
