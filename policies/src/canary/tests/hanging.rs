//! Requests that hang, and those that only look so: what has not ended is not known to be well.

use super::*;

#[test]
fn a_candidate_whose_bad_answers_are_still_to_come_gets_no_more() {
    let mut world = World::new("steps: [10, 50], dwell: 2s, gates: {errors: {at_most: 5}}", 1);
    // A third of its requests hangs, until a deadline that is later than the end of the step.
    let asked = world.canary.asked();
    let hanging: Vec<_> = (0..500).map(|_| asked.begin()).collect();
    (0..1000).for_each(|_| world.tell(true, FAST));
    for _ in 0..20 {
        world.now += Duration::from_millis(100);
        world.canary.judge(world.now);
    }
    let record = world.canary.news().pop().unwrap();
    assert_eq!((record.verdict, world.canary.step), (Verdict::Hold, 0));
    let why = "errors: 0 of 1000 is not shown to be below 5 % while 500 more take longer than its answers do";
    assert_eq!(record.why, why);
    world.now += Duration::from_secs(8);
    drop(hanging);
    (0..500).for_each(|_| {
        world.tell(true, Sight::Late(Duration::from_secs(10)));
        world.now += Duration::from_millis(200);
    });
    assert_eq!(world.canary.phase, Phase::RolledBack);
}

#[test]
fn as_many_as_an_answer_takes_are_under_way_at_a_time_and_hold_up_nothing() {
    let mut world = World::new("steps: [10, 50], dwell: 10m, gates: {errors: {at_most: 5}}", 1);
    // Ten a second, for ten seconds each.
    let held = Traffic::default().flow(&mut world, (10, 700), |_| answered(10_000));
    assert!(
        held.is_some_and(|held| held <= 6_001),
        "{held:?} tenths of a second, of which a step lasts 6,000"
    );
}

/// One answer after the other, so that one is always under way: after those that show enough, a few more are waited for.
#[test]
fn users_whose_answers_take_longer_than_a_step_is_looked_back_on_are_no_reason_to_hold_it() {
    for (dwell, least, most) in [("60s", 10_000, 20_000), ("5s", 2_000, 4_000), ("2s", 2_000, 2_000)] {
        for (users, seed) in [(1, 1), (2, 2), (3, 3), (3, 4)] {
            let canary = format!("steps: [50, 60], dwell: {dwell}, gates: {{errors: {{at_most: 10}}}}");
            let mut world = World::new(&canary, seed);
            let asked = world.canary.asked();
            let mut under_way: Vec<Option<Ending<UnderWay>>> = Vec::new();
            under_way.resize_with(users, || None);
            let (mut answers, needs) = (0, world.canary.gates[0].rare.needs(ALPHA));
            while world.canary.step == 0 && answers < 1_000 {
                for slot in &mut under_way {
                    if let Some((_, took, sight, under_way)) = slot.take_if(|(ends, ..)| *ends <= world.now) {
                        under_way.ended(took, Some(sight));
                        [true, false].into_iter().for_each(|arm| world.tell(arm, sight));
                        answers += 1;
                    }
                    let (now, dice) = (world.now, &mut world.dice);
                    slot.get_or_insert_with(|| {
                        let parts = (0..10).filter(|_| dice.falls(0.5)).count() as u64;
                        let (took, sight) = answered(least + (most - least) * parts / 10);
                        (now + took, took, sight, asked.begin())
                    });
                }
                world.now += ms(100);
                world.canary.judge(world.now);
            }
            let more = answers - needs;
            assert!(more <= 6 * users as u64, "{dwell}, {users} users: {more} more than {needs} answers");
        }
    }
}

#[test]
fn what_hangs_of_the_first_requests_after_an_idle_night_is_not_hidden_by_those_that_are_answered_at_once() {
    let mut world = World::new("steps: [50, 60], dwell: 2s, gates: {errors: {at_most: 5}}", 1);
    let mut traffic = Traffic::default();
    (0..60).for_each(|_| traffic.tick(&mut world, 0, |_| answered(5)));
    traffic.tick(&mut world, 200, |dice| answered(if dice.falls(0.15) { 60_000 } else { 5 }));
    (0..50).for_each(|_| traffic.tick(&mut world, 0, |_| answered(5)));
    assert_eq!(world.canary.step, 0, "{:?}", world.canary.history);
}

#[test]
fn what_hung_when_a_process_ended_is_not_shown_to_be_well_by_that() {
    let mut world = World::new("steps: [50, 60], dwell: 2s, gates: {errors: {at_most: 5}}", 1);
    let asked = world.canary.asked();
    let hanging: Vec<_> = (0..50).map(|_| asked.begin()).collect();
    (0..200).for_each(|_| world.tell(true, FAST));
    for _ in 0..30 {
        world.now += Duration::from_millis(100);
        world.canary.judge(world.now);
    }
    assert_eq!((world.canary.step, world.canary.hanging.count(world.now)), (0, 50));
    let progress = serde_json::to_string(&world.canary.progress(world.now)).unwrap();
    drop(hanging);
    let mut next = World::new("steps: [50, 60], dwell: 2s, gates: {errors: {at_most: 5}}", 1);
    next.canary.restore(&serde_json::from_str(&progress).unwrap(), next.now);
    next.now += Duration::from_secs(3);
    next.tell(true, FAST);
    next.canary.judge(next.now);
    assert_eq!((next.canary.step, next.canary.gates[0].requests), (0, 1), "the step began anew");
}

#[test]
fn an_hour_without_requests_does_not_make_those_that_come_then_look_like_hanging() {
    for idle in [0, 60, 3600] {
        let mut world = World::new("steps: [50, 60], dwell: 10s, gates: {errors: {at_most: 5}}", 1);
        let mut traffic = Traffic::default();
        world.canary.command(Command::Pause, "", world.now).unwrap();
        traffic.flow(&mut world, (1, idle), |_| answered(500));
        world.canary.command(Command::Resume, "", world.now).unwrap();
        let held = traffic.flow(&mut world, (160, 60), |_| answered(500)).unwrap();
        assert!(held <= 105, "{held} tenths of a second after {idle} s, of which a step lasts 100");
        let mut world = World::new("steps: [50, 60], dwell: 10s, gates: {errors: {at_most: 5}}", idle.into());
        let mixed = |dice: &mut Dice| answered(if dice.falls(0.5) { 50 } else { 950 });
        let held = Traffic::default().flow(&mut world, (160, 60), mixed).unwrap();
        assert!(held <= 150, "{held} tenths of a second, where answers take now more and now less");
        let mut world = World::new("steps: [50, 60], dwell: 10s, gates: {errors: {at_most: 0.01}}", 1);
        let mut traffic = Traffic::default();
        traffic.flow(&mut world, (1, idle.max(10)), |_| answered(500));
        traffic.flow(&mut world, (160, 20), |_| answered(500));
        assert_eq!((world.canary.step, world.canary.hanging.count(world.now)), (0, 0), "after {idle} s");
    }
}

#[test]
fn answers_that_may_be_slow_and_failures_that_take_long_are_no_more_under_way_than_they_have_to_be() {
    let gates =
        "steps: [50, 60], dwell: 10s, gates: {errors: {at_most: 10}, latency: {over: 1s, at_most: 10}}";
    let mut world = World::new(gates, 1);
    let slow = |dice: &mut Dice| if dice.falls(0.03) { answered(5_000) } else { answered(10) };
    let held = Traffic::default().flow(&mut world, (100, 60), slow);
    assert!(held.is_some_and(|held| held <= 450), "{held:?} {:?}", world.canary.history);
    let mut world = World::new("steps: [50, 60], dwell: 10s, gates: {errors: {at_most: 10}}", 1);
    let failing = |dice: &mut Dice| if dice.falls(0.03) { (ms(5_000), Sight::Refused) } else { answered(10) };
    let held = Traffic::default().flow(&mut world, (100, 60), failing);
    assert!(held.is_some_and(|held| held <= 450), "{held:?} {:?}", world.canary.history);
}

/// However lucky the moment at which it is looked at.
#[test]
fn a_candidate_that_begins_to_hang_after_it_has_shown_enough_gets_no_more() {
    for seed in 0..20 {
        let mut world = World::new("steps: [50, 60], dwell: 10s, gates: {errors: {at_most: 5}}", seed);
        let mut traffic = Traffic::default();
        assert_eq!(traffic.flow(&mut world, (40, 9), |_| answered(20)), None);
        let hangs = |dice: &mut Dice| {
            if dice.falls(0.6) { (ms(9_000), Sight::Late(ms(9_000))) } else { answered(20) }
        };
        assert_eq!(traffic.flow(&mut world, (40, 60), hangs), None, "{:?}", world.canary.history);
    }
}

/// Ten at a time, half of them on the candidate's side, for a step that is shorter than those who hang wait: right after a burst most
/// of what is under way has only just begun.
#[test]
fn bursts_of_requests_do_not_hide_those_that_hang_in_a_step_that_is_shorter_than_they_wait() {
    let advanced = |hangs: f64, seed: u64| {
        let mut world = World::new("steps: [50, 60], dwell: 2s, gates: {errors: {at_most: 5}}", seed);
        let mut traffic = Traffic::default();
        let sight = |dice: &mut Dice| {
            if dice.falls(hangs) {
                return (ms(8_000), Sight::Late(ms(8_000)));
            }
            // Two thirds of a second on average, exponentially distributed.
            let even: f64 = (0..30).map(|bit| if dice.falls(0.5) { 0.5f64.powi(bit + 1) } else { 0.0 }).sum();
            answered((-667.0 * (1.0 - even).ln()) as u64)
        };
        (0..400).find(|_| {
            let burst = (0..10).filter(|_| world.dice.falls(0.5)).count();
            traffic.tick(&mut world, burst as u32, sight);
            world.canary.step > 0
        })
    };
    for seed in 0..60 {
        let advanced_at = advanced(0.12, seed);
        assert_eq!(advanced_at, None, "seed {seed}");
    }
    let held: Vec<_> = (0..20).map(|seed| advanced(0.0, seed)).collect();
    assert!(held.iter().all(|held| held.is_some_and(|held| held <= 350)), "tenths of a second: {held:?}");
}
