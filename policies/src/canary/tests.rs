//! Rollouts by the thousand, in simulated time.

mod deadlines;
mod few_users;
mod idle;
mod late_failures;
mod middling;
mod outages;
mod refused;
mod waiting;

use super::*;
use crate::evidence::tests::Dice;
use crate::pick::Target;
use crate::{Snapshot, parse};

mod alike;

const FAST: Sight = Sight::Answered(Duration::from_millis(10));
fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

const SLOW: Sight = Sight::Answered(Duration::from_millis(300));

fn snapshot(canary: &str) -> Snapshot {
    let text = format!(
        "models: {{digits: {{labels: {{old: 1, new: 2}}, canary: {{baseline: old, candidate: new, {canary}}}}}}}"
    );
    parse(&text, "p.yaml").unwrap_or_else(|errors| panic!("{errors}"))
}

fn policy(canary: &str) -> CanaryPolicy {
    snapshot(canary).model("digits").unwrap().canary.clone().unwrap()
}

/// A rollout, a clock and dice.
struct World {
    canary: Canary,
    now: Instant,
    dice: Dice,
}

impl World {
    fn new(canary: &str, seed: u64) -> Self {
        let now = Instant::now();
        Self { canary: Canary::new(policy(canary), Beginnings::default(), now), now, dice: Dice(seed) }
    }

    fn assigned(&self, is_candidate: bool) -> Assignment {
        let share = self.canary.share();
        let (baseline, candidate, begun) = (Version(1), Version(2), Some(self.canary.begun));
        Assignment { baseline, candidate, is_candidate, share, begun, slow_over: None, brought: None }
    }

    fn tell(&mut self, is_candidate: bool, sight: Sight) {
        self.canary.witness(self.assigned(is_candidate), None, sight, self.now);
    }

    /// The baseline has answered somebody, and the candidate a copy.
    fn compare(&mut self, key: Option<u64>, agrees: bool) {
        self.canary.compared(self.assigned(false), key, Some(agrees), self.now);
    }

    /// A request of somebody new; the chances are those of a failure.
    fn request(&mut self, of_baseline: f64, of_candidate: f64) {
        let is_candidate = self.dice.falls(percent(self.canary.share()) / 100.0);
        let fails = self.dice.falls(if is_candidate { of_candidate } else { of_baseline });
        self.tell(is_candidate, if fails { Sight::Failed } else { FAST });
    }

    /// Time passes, in which the candidate answers somebody, and the rollout is looked at.
    fn work(&mut self, seconds: u64) -> Option<Verdict> {
        self.now += Duration::from_secs(seconds);
        self.tell(true, FAST);
        self.wait(0)
    }

    fn wait(&mut self, seconds: u64) -> Option<Verdict> {
        self.now += Duration::from_secs(seconds);
        self.canary.judge(self.now);
        self.canary.news().pop().map(|record| record.verdict)
    }
}

#[test]
fn a_candidate_that_does_well_gets_more_step_by_step_and_then_all() {
    let mut world = World::new("steps: [10, 50], dwell: 1m", 1);
    assert_eq!(percent(world.canary.share()), 10.0);
    assert_eq!(world.wait(59), None);
    (0..600).for_each(|_| world.tell(true, FAST));
    assert_eq!(world.wait(1), Some(Verdict::Advance));
    assert_eq!(percent(world.canary.share()), 50.0);
    assert_eq!(world.wait(60), Some(Verdict::InsufficientData), "each step has to be earned");
    (0..600).for_each(|_| world.tell(true, FAST));
    assert_eq!(world.wait(1), Some(Verdict::Advance));
    assert_eq!((world.canary.phase.clone(), world.canary.share()), (Phase::Promoted, ALL));
}

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

/// When a request ends, after how long, and with what; and what counts it.
type Ending<Counted> = (Instant, Duration, Sight, Counted);

/// What the candidate is asked, and who waits for it.
#[derive(Default)]
struct Traffic {
    /// The next to end is the last.
    under_way: Vec<Ending<UnderWay>>,
}

impl Traffic {
    /// So many a second, to both sides alike, until the candidate has come to the next step; after how many looks, of which there are ten a
    /// second.
    fn flow(
        &mut self,
        world: &mut World,
        (per_second, seconds): (u32, u32),
        sight: impl Fn(&mut Dice) -> (Duration, Sight),
    ) -> Option<u32> {
        let step = world.canary.step;
        for tick in 0..seconds * 10 {
            let due = |tick: u32| tick * per_second / 10;
            self.tick(world, due(tick + 1) - due(tick), &sight);
            if world.canary.step > step {
                return Some(tick);
            }
        }
        None
    }

    /// So many requests come, a tenth of a second passes, and the rollout is looked at.
    fn tick(&mut self, world: &mut World, requests: u32, sight: impl Fn(&mut Dice) -> (Duration, Sight)) {
        for _ in 0..requests {
            let (took, sight) = sight(&mut world.dice);
            self.under_way.push((world.now + took, took, sight, world.canary.asked().begin()));
        }
        world.now += Duration::from_millis(100);
        self.under_way.sort_by_key(|(ends, ..)| std::cmp::Reverse(*ends));
        while let Some((_, took, sight, under_way)) = self.under_way.pop_if(|(ends, ..)| *ends <= world.now) {
            under_way.ended(took, Some(sight));
            [true, false].into_iter().for_each(|arm| world.tell(arm, sight));
        }
        world.canary.judge(world.now);
    }
}

fn answered(millis: u64) -> (Duration, Sight) {
    let took = Duration::from_millis(millis);
    (took, Sight::Answered(took))
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

/// Users who ask one thing after the other, each on its side, and do not wait for longer than `patience` says.
fn ask_in_turn(
    world: &mut World,
    (users, seconds): (u64, u32),
    took: impl Fn(&mut Dice, bool) -> Option<Duration>,
    patience: impl Fn(&mut Dice) -> Duration,
) {
    let asked = world.canary.asked();
    let mut under_way: Vec<Option<Ending<Option<UnderWay>>>> = Vec::new();
    under_way.resize_with(users as usize, || None);
    for tick in 0..u64::from(seconds) * 100 {
        for (user, slot) in (0..users).zip(&mut under_way) {
            let is_candidate = user % 2 == 0;
            if let Some((_, took, sight, under_way)) = slot.take_if(|(ends, ..)| *ends <= world.now) {
                world.canary.witness(world.assigned(is_candidate), Some(user), sight, world.now);
                under_way.iter().for_each(|under_way| under_way.ended(took, Some(sight)));
            } else if slot.is_none() && (tick + user) % 10 == 0 {
                let waits = patience(&mut world.dice);
                let took = took(&mut world.dice, is_candidate).filter(|took| *took < waits);
                let (took, sight) =
                    took.map_or((waits, Sight::Gone(waits)), |took| (took, Sight::Answered(took)));
                *slot = Some((world.now + took, took, sight, is_candidate.then(|| asked.begin())));
            }
        }
        world.now += Duration::from_millis(10);
        if tick % 10 == 0 {
            world.canary.judge(world.now);
        }
    }
}

#[test]
fn a_candidate_that_hangs_for_those_who_do_not_wait_gets_no_more() {
    let canary = "steps: [50], dwell: 10s, sticky: {header: user}, gates: {errors: {at_most: 10}}";
    let all = |hangs: f64| {
        move |dice: &mut Dice, is_candidate: bool| (!is_candidate || !dice.falls(hangs)).then_some(ms(5))
    };
    for seed in 0..20 {
        // They bring a deadline, or leave when they have had enough.
        for least in [500, 200] {
            let patience = |dice: &mut Dice| if dice.falls(0.5) { ms(least) } else { ms(500) };
            let mut world = World::new(canary, seed);
            ask_in_turn(&mut world, (8, 120), all(0.6), patience);
            let errors = &world.canary.gates[0];
            assert_ne!(world.canary.phase, Phase::Promoted, "seed {seed}, {:?}", world.canary.history);
            assert!(errors.events * 2 > errors.requests, "{} of {}", errors.events, errors.requests);
            let mut world = World::new(canary, seed);
            ask_in_turn(&mut world, (8, 120), all(0.0), patience);
            assert_eq!(world.canary.phase, Phase::Promoted, "seed {seed}, {:?}", world.canary.history);
        }
        // Nearly all that answers take is nearly all that they wait for.
        let mut world = World::new(canary, seed);
        let narrow = |dice: &mut Dice, is_candidate: bool| {
            let took = if dice.falls(0.5) { ms(380) } else { ms(420) };
            all(0.6)(dice, is_candidate).map(|_| took)
        };
        ask_in_turn(&mut world, (8, 120), narrow, |_| ms(500));
        assert_ne!(world.canary.phase, Phase::Promoted, "seed {seed}, {:?}", world.canary.history);
        let mut world = World::new(canary, seed);
        ask_in_turn(&mut world, (100, 60), all(0.6), |_| ms(500));
        assert_eq!(world.canary.phase, Phase::RolledBack, "with so many users it is shown soon");
    }
}

/// Half of the callers wait for half as long as an answer takes, with either version.
#[test]
fn impatience_alone_holds_up_nothing_and_rolls_back_nothing() {
    let canary = "steps: [50], dwell: 10s, sticky: {header: user}, gates: {errors: {at_most: 10}}";
    for seed in 0..20 {
        let mut world = World::new(canary, seed);
        let took = |dice: &mut Dice, _: bool| Some(if dice.falls(0.5) { ms(90) } else { ms(110) });
        let patience = |dice: &mut Dice| if dice.falls(0.5) { ms(50) } else { ms(1_000) };
        ask_in_turn(&mut world, (40, 120), took, patience);
        assert_eq!(world.canary.phase, Phase::Promoted, "seed {seed}, {:?}", world.canary.history);
    }
}

#[test]
fn a_client_that_chooses_its_version_and_does_not_wait_for_it_rolls_nothing_back() {
    let mut world = World::new("steps: [10], dwell: 1h, sticky: {header: user}", 1);
    let tell = |world: &mut World, is_candidate, user, sight| {
        world.canary.witness(world.assigned(is_candidate), Some(user), sight, world.now);
        world.now += Duration::from_millis(200);
    };
    for user in 0..30 {
        [true, false].into_iter().for_each(|arm| tell(&mut world, arm, user, answered(5).1));
    }
    for user in 100..200 {
        tell(&mut world, true, user, Sight::Gone(ms(1)));
    }
    let errors = &world.canary.gates[0];
    assert_eq!((world.canary.phase.clone(), errors.worse(), errors.requests), (Phase::Running, 1.0, 30));
    for user in 200..206 {
        tell(&mut world, true, user, Sight::Gone(ms(300)));
    }
    assert_eq!(world.canary.phase, Phase::RolledBack, "these would have had an answer from the baseline");
}

/// A hundred requests a second of so many users in turn, of whom each is on the side of its number's parity; what becomes of a request
/// of this user on this side, and the deadline that it has brought.
fn ask_by_turns(
    world: &mut World,
    (users, seconds): (u64, u64),
    ends: impl Fn(&mut Dice, u64, bool) -> (Sight, Option<Duration>),
) {
    for tick in 0..seconds * 100 {
        let user = tick * 7 % users;
        let is_candidate = user % 2 == 0;
        let (sight, brought) = ends(&mut world.dice, user, is_candidate);
        let assigned = world.assigned(is_candidate).within(brought.unwrap_or(Duration::MAX), Duration::MAX);
        world.canary.witness(assigned, Some(user), sight, world.now);
        world.now += ms(10);
        if tick % 10 == 0 {
            world.canary.judge(world.now);
        }
    }
}

const KEYED: &str = "steps: [50], dwell: 10s, sticky: {header: user}, gates: {errors: {at_most: 10}}";

/// Seven in ten are in haste and the others are not: what those wait for says nothing about what the hasty would have had.
#[test]
fn a_candidate_that_answers_no_hasty_caller_is_rolled_back_however_long_the_baseline_takes_for_others() {
    for seed in 0..20 {
        let mut world = World::new(KEYED, seed);
        ask_by_turns(&mut world, (40, 60), |_, user, is_candidate| match (user % 10 < 7, is_candidate) {
            (true, true) => (Sight::Late(ms(100)), Some(ms(100))),
            (true, false) => (answered(5).1, Some(ms(100))),
            (false, _) => (answered(300).1, None),
        });
        assert_eq!(world.canary.phase, Phase::RolledBack, "{:?}", world.canary.history);
    }
}

/// A client without a key that waits for nothing, at sixty requests a second on both sides alike, and is answered by the baseline never
/// or hardly ever; beside it the candidate answers nobody, five times a second.
#[test]
fn who_waits_for_nothing_hides_no_candidate_that_answers_nobody() {
    for met in [0.0, 0.02] {
        let mut took: Vec<Duration> = (0..100)
            .map(|seed| {
                let mut world = World::new("steps: [10], dwell: 1h", seed);
                let begin = world.now;
                while world.canary.phase == Phase::Running && world.now < begin + ms(600_000) {
                    world.now += ms(1);
                    if world.dice.falls(0.06) {
                        let is_candidate = world.dice.falls(0.1);
                        let assigned = world.assigned(is_candidate).within(ms(1), ms(1_000));
                        let is_met = !is_candidate && world.dice.falls(met);
                        let sight = if is_met { FAST } else { Sight::Late(ms(1)) };
                        world.canary.witness(assigned, None, sight, world.now);
                    }
                    if world.dice.falls(0.05) {
                        let is_candidate = world.dice.falls(0.1);
                        world.tell(is_candidate, if is_candidate { Sight::Late(ms(1_000)) } else { FAST });
                    }
                }
                world.now - begin
            })
            .collect();
        took.sort_unstable();
        assert!(took[50] <= ms(3_000) && took[99] <= ms(20_000), "{met}: {:?} and {:?}", took[50], took[99]);
    }
}

/// They leave at once as often as nothing holds up either side, both are held up now and then, and some requests fail alone.
#[test]
fn with_clients_who_wait_for_nothing_one_in_twenty_rollouts_at_most_is_rolled_back_for_nothing() {
    let mut rolled_back = 0;
    for seed in 0..1_000 {
        let mut world = World::new("steps: [10], dwell: 1h", seed);
        let mut stalled = false;
        for _ in 0..2_000 {
            world.now += ms(20);
            if world.dice.falls(0.02) {
                stalled = !stalled;
            }
            let is_candidate = world.dice.falls(0.1);
            let assigned = world.assigned(is_candidate);
            let (assigned, sight) = if world.dice.falls(0.3) {
                (assigned.within(ms(1), ms(1_000)), Sight::Late(ms(1)))
            } else if stalled {
                (assigned, Sight::Late(ms(1_000)))
            } else {
                (assigned, if world.dice.falls(0.01) { Sight::Failed } else { FAST })
            };
            world.canary.witness(assigned, None, sight, world.now);
        }
        rolled_back += u32::from(world.canary.phase == Phase::RolledBack);
    }
    assert!(rolled_back <= 50, "{rolled_back} of 1,000");
}

/// One who always ends late, 250 times a second, on the baseline's side.
#[test]
fn a_key_that_says_nothing_new_hides_nobody() {
    let mut world = World::new("steps: [10], dwell: 1h, sticky: {header: user}", 1);
    let mut failed = 0;
    for at in 0..10_000 {
        world.now += ms(4);
        world.canary.witness(world.assigned(false), Some(0), Sight::Late(ms(1_000)), world.now);
        if at % 50 == 49 && world.canary.phase == Phase::Running {
            failed += 1;
            world.canary.witness(world.assigned(true), Some(failed), Sight::Late(ms(1_000)), world.now);
        }
    }
    assert_eq!((world.canary.phase.clone(), failed), (Phase::RolledBack, 4));
}

/// Some of the hasty get an answer from neither version, and some only now and then.
#[test]
fn deadlines_that_both_versions_miss_roll_nothing_back_and_hold_up_nothing_for_good() {
    let (mut rolled_back, mut held) = (0, 0);
    for seed in 0..200 {
        let mut world = World::new(KEYED, seed);
        let missing = 0.2 * (seed % 4) as f64;
        ask_by_turns(&mut world, (40, 60), |dice, user, _| match user % 5 {
            0 => (Sight::Late(ms(30)), Some(ms(30))),
            1 if dice.falls(missing) => (Sight::Late(ms(100)), Some(ms(100))),
            1 => (answered(5).1, Some(ms(100))),
            _ => (answered(5).1, None),
        });
        rolled_back += u32::from(world.canary.phase == Phase::RolledBack);
        held += u32::from(world.canary.phase == Phase::Running);
    }
    assert!(rolled_back <= 10 && held <= 10, "{rolled_back} rolled back and {held} held of 200");
}

/// Who forges users and knows which are the candidate's has it asked for what no version answers within this deadline.
#[test]
fn who_brings_a_deadline_of_which_nothing_is_known_holds_the_rollout_and_rolls_nothing_back() {
    let mut world = World::new(KEYED, 1);
    let well = |world: &mut World| ask_by_turns(world, (40, 10), |_, _, _| (answered(5).1, None));
    let forged = |world: &mut World| {
        for user in 100..120 {
            let assigned = world.assigned(true).within(ms(30), ms(1_000));
            world.canary.witness(assigned, Some(user), Sight::Late(ms(30)), world.now);
            world.now += ms(200);
        }
    };
    well(&mut world);
    forged(&mut world);
    well(&mut world);
    assert_eq!((world.canary.phase.clone(), world.canary.gates[0].worse()), (Phase::Running, 1.0));
    let record = world.canary.news().pop().unwrap();
    let why = "errors: 20 of the last 20 who left sooner than version 1 is known to answer are version 2's, where its share of \
               the requests makes 10.0: a person has to say so";
    assert_eq!((record.verdict, &*record.why), (Verdict::Hold, why));
    // As does a restart, which forgets nothing.
    let kept = serde_json::to_string(&world.canary.progress(world.now)).unwrap();
    world.canary = Canary::new(policy(KEYED), Beginnings::default(), world.now);
    world.canary.restore(&serde_json::from_str(&kept).unwrap(), world.now);
    (0..70).for_each(|_| well(&mut world));
    assert_eq!(world.canary.phase, Phase::Running);
    (0..60).for_each(|_| well(&mut world));
    assert_eq!(world.canary.phase, Phase::Promoted, "nobody has left it for so long");
}

/// Nobody knows what they would have waited for; it is the candidate's all the same.
#[test]
fn a_timeout_of_clients_that_only_the_candidate_exceeds_holds_the_rollout_until_a_person_says_so() {
    for seed in 0..4 {
        let mut world = World::new(KEYED, seed);
        ask_by_turns(&mut world, (40, 1_500), |_, user, is_candidate| match (user % 10 < 7, is_candidate) {
            (true, true) => (Sight::Gone(ms(100)), None),
            (true, false) => (answered(5).1, None),
            (false, _) => (answered(300).1, None),
        });
        assert_eq!(world.canary.phase, Phase::Running, "{:?}", world.canary.history);
        let why = &world.canary.history.back().unwrap().why;
        assert!(why.contains("a person has to say so"), "{why}");
        world.canary.command(Command::Promote, "they have to wait longer", world.now).unwrap();
        assert_eq!(world.canary.phase, Phase::Promoted);
    }
}

/// Who leaves is held against the candidate by what the baseline takes now.
#[test]
fn a_rollout_that_is_begun_again_learns_anew_how_long_the_baseline_takes_and_one_that_was_paused_knows() {
    let heard = |commands: [Command; 2], took: u64| {
        let mut world = World::new("steps: [10], dwell: 1h, sticky: {header: user}", 1);
        let leave = |world: &mut World| {
            world.canary.witness(world.assigned(true), Some(7), Sight::Gone(ms(100)), world.now);
            world.canary.gates[0].requests
        };
        (0..100).for_each(|_| world.tell(false, answered(5).1));
        assert_eq!(leave(&mut world), 1, "it would have had an answer");
        world.canary.command(commands[0], "", world.now).unwrap();
        world.canary.command(commands[1], "", world.now).unwrap();
        let first = leave(&mut world);
        (0..50).for_each(|_| world.tell(false, answered(took).1));
        (first, leave(&mut world))
    };
    assert_eq!(heard([Command::Abort, Command::Resume], 200), (0, 0), "the baseline takes longer now");
    assert_eq!(heard([Command::Abort, Command::Resume], 5), (0, 1));
    assert_eq!(heard([Command::Pause, Command::Resume], 5), (2, 3));
}

/// What one side alone refuses is heard against the baseline and not of what may be.
#[test]
fn a_verdict_tells_the_numbers_that_it_was_made_of() {
    let mut world = World::new("steps: [10], dwell: 1h", 1);
    (0..30).for_each(|_| world.tell(true, FAST));
    world.tell(false, Sight::Failed);
    while world.canary.phase == Phase::Running {
        world.tell(true, Sight::Refused);
    }
    let record = world.canary.news().pop().unwrap();
    let heard = record.gates[0].heard;
    assert_eq!((record.gates[0].events, heard.all, heard.of_candidate), (0, 5, 4));
    let why = "version 2 fails more often than version 1: 4 of the last 5 failures are its, where its share of the requests makes 0.5";
    assert_eq!(record.why, why);
    let kept = serde_json::to_string(&record).unwrap();
    assert_eq!(serde_json::from_str::<Record>(&kept).unwrap(), record);
}

#[test]
fn what_its_gates_are_about_changes_and_what_ended_soon_is_not_all_that_is_known() {
    let with = |over: &str| {
        policy(&format!(
            "steps: [10], dwell: 10s, gates: {{errors: {{at_most: 5}}, latency: {{over: {over}, at_most: 5}}}}"
        ))
    };
    let now = Instant::now();
    let mut world = World { canary: Canary::new(with("1s"), Beginnings::default(), now), now, dice: Dice(1) };
    (0..1000).for_each(|_| world.tell(true, FAST));
    world.now += Duration::from_secs(9);
    world.canary.follow(&with("2s"), world.now);
    assert!(world.canary.gates.iter().all(|gate| gate.requests == 0));
    world.now += Duration::from_secs(9);
    world.canary.judge(world.now);
    assert_eq!(world.canary.news().len(), 0, "the step lasts as long as any");
    let told = with("1s").found_anew(&with("2s"));
    assert_eq!(told, ": what its gates are about has changed, and its step begins anew");
    let tighter = policy("steps: [10], gates: {errors: {at_most: 1}, latency: {over: 1s, at_most: 5}}");
    assert_eq!(with("1s").found_anew(&tighter), ", and has to pass errors anew");
}

#[test]
fn without_data_nothing_ever_advances() {
    let mut world = World::new("steps: [50], dwell: 1s", 1);
    assert_eq!(world.wait(1), Some(Verdict::InsufficientData));
    for _ in 0..10_000 {
        world.tell(false, FAST);
        assert_eq!(world.wait(60), None, "and that is told once");
    }
    assert_eq!((world.canary.step, world.canary.phase.clone()), (0, Phase::Running));
}

/// 10,000 rollouts that hear too little of their candidate, each of another length.
#[test]
fn too_little_data_advances_nobody() {
    for seed in 0..10_000 {
        let mut world = World::new("steps: [10], dwell: 1m, gates: {errors: {at_most: 5}}", seed);
        let heard = seed % 50; // 59 without a failure would do
        for _ in 0..heard {
            world.tell(true, FAST);
            world.tell(false, FAST);
        }
        assert_eq!(world.wait(60), Some(Verdict::InsufficientData), "seed {seed}");
        assert_eq!(world.wait(86_400), None, "seed {seed}");
        assert_eq!((world.canary.step, world.canary.phase.clone()), (0, Phase::Running), "seed {seed}");
    }
}

/// One request in a thousand fails at the baseline and one in a hundred at the candidate, which a threshold of 5 % lets pass.
#[test]
fn a_candidate_ten_times_as_bad_is_rolled_back_though_it_is_below_every_threshold() {
    let caught = |seed| {
        let mut world = World::new("steps: [10], dwell: 24h, gates: {errors: {at_most: 5}}", seed);
        (0..100_000).for_each(|_| world.request(0.001, 0.01));
        let record = world.canary.news().pop();
        world.canary.phase == Phase::RolledBack
            && record.is_some_and(|record| record.why.contains("fails more often than version 1"))
    };
    let rolled_back = (0..200).filter(|seed| caught(*seed)).count();
    assert!(rolled_back >= 198, "{rolled_back} of 200");
}

#[test]
fn what_was_under_way_when_it_was_rolled_back_says_nothing_once_it_has_begun_again() {
    let mut world = World::new("steps: [10, 50], dwell: 1m", 1);
    let of_before = world.assigned(true);
    (0..100).for_each(|_| world.tell(false, FAST));
    (0..50).for_each(|_| world.tell(true, Sight::Failed));
    assert_eq!(world.canary.phase, Phase::RolledBack);
    let now = world.now;
    world.canary.command(Command::Resume, "mended", now).unwrap();
    (0..50).for_each(|user| world.canary.witness(of_before, Some(user), Sight::Failed, now));
    assert_eq!((world.canary.phase.clone(), world.canary.gates[0].requests), (Phase::Running, 0));
}

#[test]
fn a_candidate_that_fails_more_is_rolled_back_at_once_and_gets_nothing() {
    let mut world = World::new("steps: [10, 50], dwell: 1h", 1);
    for _ in 0..1000 {
        world.request(0.0, 1.0);
    }
    assert_eq!((world.canary.phase.clone(), world.canary.share()), (Phase::RolledBack, 0));
    let record = world.canary.news().pop().unwrap();
    assert_eq!(record.verdict, Verdict::RollBack);
    assert!(record.why.starts_with("version 2 fails more often than version 1: "), "{}", record.why);
    assert!(record.gates[0].worse >= 20.0 && record.gates[0].requests < 10, "{record:?}");
    let snapshot = snapshot("sticky: {header: user}");
    let pick = |share| {
        let stage = Stage { share, ..Stage::NOT_BEGUN };
        snapshot.model("digits").unwrap().pick(&[("user", "ana")], 0, |_| stage).unwrap()
    };
    assert_eq!((pick(ALL).version, pick(0).version), (Version(2), Version(1)), "sticky users as well");
}

#[test]
fn what_fails_everywhere_is_not_the_candidates_fault_and_no_reason_to_advance() {
    let mut world = World::new("steps: [50], dwell: 1s", 3);
    for _ in 0..20_000 {
        world.request(0.5, 0.5);
    }
    assert_eq!(world.wait(1), Some(Verdict::Hold));
    assert_eq!(world.canary.phase, Phase::Running);
}

#[test]
fn a_candidate_that_was_well_for_long_is_still_rolled_back_soon() {
    let mut world = World::new("steps: [10, 50], dwell: 1s", 5);
    for _ in 0..200_000 {
        world.request(0.002, 0.002);
    }
    assert_eq!(world.wait(1), Some(Verdict::Advance));
    let mut needed = 0;
    while world.canary.phase == Phase::Running {
        world.request(0.002, 0.05);
        needed += 1;
    }
    assert!(needed < 2_000, "{needed}");
}

#[test]
fn slow_answers_and_late_ones_are_judged_like_failures() {
    let gates = "steps: [50], dwell: 1s, gates: {latency: {over: 200ms, at_most: 5}}";
    let mut world = World::new(gates, 1);
    for _ in 0..40 {
        world.tell(false, FAST);
        world.tell(true, SLOW);
    }
    assert_eq!(world.canary.phase, Phase::RolledBack);
    assert!(world.canary.news()[0].why.starts_with("version 2 is slow more often"));
    let mut world = World::new("steps: [50], dwell: 1s", 1);
    for _ in 0..20 {
        world.now += Duration::from_millis(100);
        world.tell(true, Sight::Late(Duration::from_secs(1)));
    }
    assert_eq!(world.canary.phase, Phase::RolledBack, "without a gate for latency, late is failed");
}

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
fn faults_have_a_gate_of_their_own_which_overload_and_impatience_do_not_touch() {
    let gates = "steps: [50], dwell: 1s, gates: {errors: {at_most: 50}, faults: {at_most: 0.5}}";
    let mut world = World::new(gates, 1);
    for at in 0..2_000 {
        world.now += Duration::from_millis(100);
        let sight = match at % 10 {
            0 => Sight::Unanswered,
            1 => Sight::Late(Duration::from_secs(1)),
            _ => FAST,
        };
        // Of what goes unanswered together, the first counts.
        let first = at / 10 % 2 == 0;
        [first, !first].into_iter().for_each(|arm| world.tell(arm, sight));
    }
    assert_eq!(world.wait(1), Some(Verdict::Advance));
    let mut world = World::new(gates, 1);
    for at in 0..2_000 {
        let sight = if at % 50 == 0 { Sight::Failed } else { FAST };
        [true, false].into_iter().for_each(|arm| world.tell(arm, sight));
    }
    assert_eq!(world.wait(1), Some(Verdict::Hold));
    let why = &world.canary.history.back().unwrap().why;
    assert_eq!(why, "faults: 40 of 2000 is not shown to be below 0.5 %");
    let mut world = World::new(gates, 1);
    for _ in 0..10 {
        world.now += Duration::from_millis(100);
        world.tell(true, Sight::Lost);
    }
    world.wait(1);
    assert_eq!(world.canary.phase, Phase::RolledBack, "an engine that goes down with it each time");
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

/// A rollout whose answers a shadow compares.
fn compared(at_most: f64, seed: u64) -> World {
    let text = format!(
        "models: {{digits: {{canary: {{baseline: 1, candidate: 2, steps: [10, 50], dwell: 1s,
           gates: {{disagreement: {{at_most: {at_most}}}}}}}, shadow: {{version: 2}}}}}}"
    );
    let policy = parse(&text, "p").unwrap().model("digits").unwrap().canary.clone().unwrap();
    let now = Instant::now();
    World { canary: Canary::new(policy, Beginnings::default(), now), now, dice: Dice(seed) }
}

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
fn a_candidate_that_has_fallen_silent_does_not_advance_on_what_it_did_before() {
    let mut world = World::new("steps: [10, 50], dwell: 10m", 1);
    (0..600).for_each(|_| world.tell(true, FAST));
    assert_eq!(world.wait(600), Some(Verdict::InsufficientData));
    assert!(world.canary.history[0].why.starts_with("version 2 has answered nobody for 60s"));
    world.tell(true, FAST);
    assert_eq!(world.wait(1), Some(Verdict::Advance));
}

#[test]
fn what_is_found_is_told_once_however_rarely_anybody_asks_and_anew_after_a_person_stepped_in() {
    let mut world = World::new("steps: [50], dwell: 1m", 3);
    (0..2_000).for_each(|_| world.request(0.5, 0.5));
    assert_eq!(world.work(60), Some(Verdict::Hold));
    for _ in 0..100 {
        assert_eq!(world.wait(600), None, "that nobody asked for a while changes nothing");
        assert_eq!(world.work(1), None);
    }
    for command in [Command::Pause, Command::Resume] {
        world.canary.command(command, "", world.now).unwrap();
    }
    world.canary.news();
    assert_eq!(world.work(60), Some(Verdict::Hold), "a person's word hides nothing");
    for command in [Command::Abort, Command::Resume] {
        world.canary.command(command, "", world.now).unwrap();
    }
    (0..2_000).for_each(|_| world.request(0.5, 0.5));
    world.canary.news();
    assert_eq!(world.work(60), Some(Verdict::Hold));
}

#[test]
fn another_gate_is_another_reason() {
    let mut world = World::new("steps: [50], dwell: 1s, gates: {latency: {over: 200ms, at_most: 5}}", 1);
    (0..50).for_each(|_| [false, true].into_iter().for_each(|arm| world.tell(arm, Sight::Failed)));
    (0..400).for_each(|_| world.tell(true, FAST));
    assert_eq!(world.wait(1), Some(Verdict::Hold));
    assert!(world.canary.history[0].why.starts_with("errors: "));
    (0..20_000).for_each(|_| world.tell(true, FAST));
    (0..2_000).for_each(|_| [false, true].into_iter().for_each(|arm| world.tell(arm, SLOW)));
    assert_eq!(world.wait(1), Some(Verdict::Hold));
    assert!(world.canary.history[1].why.starts_with("latency: "), "{:?}", world.canary.history[1]);
}

#[test]
fn a_version_that_turns_bad_after_a_long_time_in_one_step_is_found_out_soon() {
    let mut world = World::new("steps: [10], dwell: 24h", 5);
    for _ in 0..1_000_000 {
        world.now += Duration::from_millis(10);
        world.request(0.002, 0.002);
    }
    let mut needed = 0;
    while world.canary.phase == Phase::Running {
        world.now += Duration::from_millis(10);
        world.request(0.002, 0.05);
        needed += 1;
    }
    assert!(needed < 4_000, "{needed}");
}

#[test]
fn a_person_may_pause_resume_promote_abort_and_begin_again() {
    let mut world = World::new("steps: [10, 50], dwell: 1m", 1);
    let now = world.now;
    let mut say = |command| world.canary.command(command, "why not", now);
    assert_eq!(say(Command::Resume), Err("the rollout is running".into()));
    assert_eq!(say(Command::Pause), Ok(()));
    assert_eq!(say(Command::Pause), Err("the rollout is paused".into()));
    (0..600).for_each(|_| world.tell(true, FAST));
    world.canary.news();
    assert_eq!(world.wait(3600), None, "paused");
    let now = world.now;
    assert_eq!(world.canary.command(Command::Resume, "", now), Ok(()));
    world.canary.news();
    assert_eq!(world.work(59), None, "the step begins again");
    assert_eq!(world.work(1), Some(Verdict::Advance));
    assert_eq!(world.canary.command(Command::Promote, "", now), Ok(()));
    assert_eq!(world.canary.share(), ALL);
    assert_eq!(world.canary.command(Command::Abort, "it smells", now), Ok(()));
    assert_eq!(world.canary.share(), 0);
    assert_eq!(world.canary.news().pop().unwrap().why, "aborted by a person: it smells");
    assert_eq!(world.canary.command(Command::Resume, "", now), Ok(()));
    assert_eq!((percent(world.canary.share()), world.canary.gates[0].requests), (10.0, 0));
}

#[test]
fn progress_survives_a_reload_and_a_restart_of_the_same_rollout_only() {
    let mut world = World::new("steps: [10, 50], dwell: 1m", 1);
    (0..600).for_each(|_| world.tell(true, FAST));
    world.work(60);
    world.canary.follow(&policy("steps: [1, 5, 50, 80], dwell: 2m"), world.now);
    assert_eq!((percent(world.canary.share()), world.canary.step), (50.0, 2));
    let progress = world.canary.progress(world.now + Duration::from_secs(30));

    let later = world.now + Duration::from_secs(3600);
    let mut next = Canary::new(policy("steps: [1, 5, 50, 80], dwell: 2m"), Beginnings::default(), later);
    next.restore(&progress, later);
    let restored = next.progress(later);
    assert_eq!((percent(next.share()), restored.dwelt), (50.0, Duration::from_secs(30)));
    // Another process begins to rise where the step is not the same.
    let mut next = Canary::new(policy("steps: [5, 60, 90], dwell: 2m"), Beginnings::default(), later);
    next.restore(&progress, later);
    assert_eq!((percent(next.share()), next.progress(later).dwelt), (5.0, Duration::ZERO));

    let other =
        CanaryPolicy { candidate: Target { version: Version(3), label: None }, ..policy("steps: [10]") };
    let mut next = Canary::new(other, Beginnings::default(), later);
    next.restore(&progress, later);
    assert_eq!(percent(next.share()), 10.0, "another candidate begins at the beginning");
    let stale = world.assigned(true);
    (0..100).for_each(|_| next.witness(stale, None, Sight::Failed, later));
    assert_eq!(next.phase, Phase::Running, "what another candidate did is not this one's fault");
}

#[test]
fn who_looks_or_saves_often_does_not_make_one_user_many() {
    let looked_at = |looks: usize| {
        let mut world = World::new("steps: [10], dwell: 10m", 1);
        for _ in 0..20 {
            world.canary.witness(world.assigned(true), Some(7), FAST, world.now);
            (0..looks).for_each(|_| drop(world.canary.progress(world.now)));
        }
        (world.canary.progress(world.now).gates, world.canary.gates[0].rare)
    };
    assert_eq!(looked_at(0), looked_at(3));
}

#[test]
fn verdicts_survive_a_restart_in_bounded_number_and_are_not_told_twice() {
    let mut world = World::new("steps: [10, 50], dwell: 1m", 1);
    (0..600).for_each(|_| world.tell(true, FAST));
    assert_eq!(world.wait(60), Some(Verdict::InsufficientData));
    assert_eq!(world.work(1), Some(Verdict::Advance));
    (0..50).for_each(|_| world.tell(true, Sight::Failed));
    let mut told = world.canary.status().verdicts;
    assert_eq!(told.len(), 3);
    let restarted = |world: &mut World| {
        let kept = serde_json::to_string(&world.canary.progress(world.now)).unwrap();
        let mut next = Canary::new(policy("steps: [10, 50], dwell: 1m"), Beginnings::default(), world.now);
        next.restore(&serde_json::from_str(&kept).unwrap(), world.now);
        next
    };
    world.canary = restarted(&mut world);
    assert_eq!(world.canary.status().verdicts, told);
    assert!(world.canary.news().is_empty(), "they were told by the process before");
    for _ in 0..40 {
        for command in [Command::Resume, Command::Abort] {
            world.canary.command(command, "again", world.now).unwrap();
        }
    }
    told = world.canary.status().verdicts;
    world.canary = restarted(&mut world);
    assert_eq!(world.canary.status().verdicts, told[told.len() - KEPT..]);
    let of_another_release = serde_json::to_string(&told[0]).unwrap().replace("errors", "novelty");
    assert_eq!(serde_json::from_str::<Record>(&of_another_release).unwrap().gates[0].gate, "unknown");
}

#[test]
fn a_restart_keeps_no_evidence_about_another_limit() {
    let gates = |errors: u32, over: u32| {
        format!(
            "steps: [10], dwell: 1h, gates: {{errors: {{at_most: {errors}}}, latency: {{over: {over}ms, at_most: 5}}}}"
        )
    };
    let mut world = World::new(&gates(1, 200), 1);
    (0..100).for_each(|_| world.tell(true, FAST));
    (0..2).for_each(|_| world.tell(true, Sight::Failed));
    (0..2).for_each(|_| world.tell(true, SLOW));
    let progress = world.canary.progress(world.now);
    let restarted = |gates: &str| {
        let mut next = Canary::new(policy(gates), Beginnings::default(), world.now);
        next.restore(&progress, world.now);
        next.numbers().iter().map(|gate| (gate.worse > 1.0, gate.requests)).collect::<Vec<_>>()
    };
    assert_eq!(restarted(&gates(1, 200)), [(true, 104), (true, 102)]);
    assert_eq!(
        restarted(&gates(3, 200)),
        [(true, 0), (true, 102)],
        "that it is worse does not depend on the limit"
    );
    assert_eq!(restarted(&gates(1, 400)), [(true, 104), (false, 0)], "another slowness is another event");

    let mut world = compared(2.0, 1);
    (0..3).for_each(|_| world.compare(None, false));
    let progress = world.canary.progress(world.now);
    let mut next = compared(50.0, 1).canary;
    next.restore(&progress, world.now);
    assert_eq!((next.gates[1].worse(), next.gates[1].requests), (1.0, 0), "more may disagree now");
}

/// By which users who had left, and what was refused, were counted before.
#[test]
fn a_state_file_of_other_rules_is_read_and_nothing_is_known_by_those() {
    let mut world = World::new("steps: [10], dwell: 1h, sticky: {header: user}", 1);
    world.tell(true, Sight::Failed);
    let mut kept = serde_json::to_value(world.canary.progress(world.now)).unwrap();
    let errors = kept["gates"]["errors"].as_object_mut().unwrap();
    errors.retain(|name, _| name != "left" && name != "refusing");
    let asked = serde_json::json!({"askings": [], "asked": 1, "ended": 0.0});
    errors.insert("leavers".into(), serde_json::json!([asked, asked]));
    errors.insert(
        "refusals".into(),
        serde_json::json!({"of_candidate": 900, "by_share": 1.0, "variance": 1.0}),
    );
    let keys =
        serde_json::json!({"of_candidate": 9, "all": 9, "by_share": 1.0, "variance": 1.0, "seen": 1.0});
    let refused = serde_json::json!({"refused": 900, "others": 100, "explained": 0.0, "keys": keys});
    errors.insert("refused".into(), refused);
    let (worse, read) = (world.canary.gates[0].worse(), serde_json::from_value(kept).unwrap());
    world.canary = Canary::new(
        policy("steps: [10], dwell: 1h, sticky: {header: user}"),
        Beginnings::default(),
        world.now,
    );
    world.canary.restore(&read, world.now);
    let errors = &world.canary.gates[0];
    assert_eq!((errors.worse(), errors.requests), (worse, 1));
    assert_eq!(errors.why_asked(Version(2), Version(1)), None);
    assert_eq!(errors.why_refusing(Version(2), Version(1)), None);
}

#[test]
fn evidence_survives_restarts_even_if_they_come_more_often_than_a_verdict_takes() {
    let mut world = World::new("steps: [10], dwell: 1h", 3);
    for _ in 0..200 {
        for _ in 0..100 {
            world.now += Duration::from_millis(100);
            world.request(0.01, 0.05);
        }
        let progress = world.canary.progress(world.now);
        let (requests, phase) = (world.canary.gates[0].requests, world.canary.phase.clone());
        world.canary = Canary::new(policy("steps: [10], dwell: 1h"), Beginnings::default(), world.now);
        world.canary.restore(&progress, world.now);
        assert_eq!(world.canary.phase, phase);
        assert_eq!(world.canary.gates[0].requests, requests);
    }
    assert_eq!(world.canary.phase, Phase::RolledBack);
}

/// 1 % of the baseline's requests fail and 3 % of the candidate's, which has a tenth of all.
#[test]
fn a_candidate_that_fails_three_times_as_often_is_rolled_back_within_3500_requests() {
    let mut needed: Vec<u32> = (0..1_000)
        .map(|seed| {
            let mut world = World::new("steps: [10, 50], dwell: 24h", seed);
            let is_open = |world: &World| world.canary.phase == Phase::Running;
            (0..100_000).find(|_| {
                world.request(0.01, 0.03);
                !is_open(&world)
            })
        })
        .map(|needed| needed.unwrap_or(u32::MAX))
        .collect();
    needed.sort_unstable();
    assert!(needed[500] <= 3_500, "median {}", needed[500]);
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

/// 10,000 rollouts of a candidate that is as good, under a base rate that drifts, with users who fail in fits.
#[test]
fn a_candidate_that_is_no_worse_is_rolled_back_at_most_once_in_twenty() {
    let mut dice = Dice(17);
    let mut rolled_back = 0;
    for seed in 0..10_000u64 {
        let mut world = World::new("steps: [1, 10, 50], dwell: 1m", seed);
        for step in 0..3 {
            for at in 0..100u64 {
                let rate = 0.02 + 0.1 * at as f64 / 100.0;
                // One user with ten requests: all of them fail, or none.
                let key = seed << 20 | step << 10 | at;
                let assigned = world.assigned(dice.falls(percent(world.canary.share()) / 100.0));
                if dice.falls(rate) {
                    (0..10).for_each(|_| world.canary.witness(assigned, Some(key), Sight::Failed, world.now));
                }
            }
            world.now += Duration::from_secs(60);
            if world.canary.phase == Phase::Running && world.canary.step < 2 {
                world.canary.decide(Verdict::Advance, "the ramp of this test".into(), world.now);
            }
        }
        rolled_back += u32::from(world.canary.phase == Phase::RolledBack);
    }
    assert!(rolled_back <= 500, "{rolled_back} of 10,000");
}

#[test]
fn a_share_is_exact_and_those_who_have_the_candidate_keep_it() {
    let policy = policy("sticky: {header: user}");
    let on_candidate = |share: Millionths| -> Vec<bool> {
        let picks = (0..20_000).map(|user| {
            policy.pick(&[("user", user.to_string().as_str())], 0, Stage { share, ..Stage::NOT_BEGUN })
        });
        picks.map(|pick| pick.version == Version(2)).collect()
    };
    let mut before = on_candidate(0);
    assert!(before.iter().all(|on| !on));
    for share in [10_000, 100_000, 500_000, 999_999, ALL] {
        let now = on_candidate(share);
        assert!(before.iter().zip(&now).all(|(before, now)| !before || *now));
        let got = now.iter().filter(|on| **on).count() as f64 / 20_000.0;
        assert!((got - f64::from(share) / 1e6).abs() < 0.015, "{got} at {share}");
        before = now;
    }
    assert!(before.iter().all(|on| *on));
    let drawn = super::tests::policy("steps: [10]");
    assert_eq!(
        drawn.pick(&[("user", "ana")], u64::MAX, Stage { share: 1, ..Stage::NOT_BEGUN }).version,
        Version(2)
    );
    assert_eq!(
        drawn.pick(&[("user", "ana")], u64::MAX, Stage { share: 0, ..Stage::NOT_BEGUN }).version,
        Version(1)
    );
}

#[test]
fn files_that_are_replaced_have_to_show_everything_anew() {
    let mut world = World::new("steps: [10, 50], dwell: 1m", 1);
    (0..600).for_each(|_| world.tell(true, FAST));
    world.tell(true, Sight::Failed);
    world.wait(59);
    let (late, worse) = (world.assigned(true), world.canary.gates[0].worse());
    assert!(worse > 1.0);
    world.canary.begin_step_anew(Version(2), world.now);
    assert_eq!(world.canary.news()[0].why, "the files of version 2 were replaced: the step begins anew");
    assert_eq!(world.canary.gates[0].worse(), 1.0);
    (0..600).for_each(|_| world.canary.witness(late, None, FAST, world.now));
    assert_eq!(world.canary.gates[0].requests, 0, "these were for the files before");
    (0..600).for_each(|_| world.tell(true, FAST));
    assert_eq!(world.wait(59), None, "nor has it lasted long enough");
    assert_eq!(world.work(1), Some(Verdict::Advance));
    world.canary.begin_step_anew(Version(1), world.now);
    assert_eq!(
        (percent(world.canary.share()), world.canary.gates[0].requests),
        (50.0, 0),
        "it keeps its step"
    );
    world.canary.command(Command::Abort, "", world.now).unwrap();
    world.canary.news();
    world.canary.begin_step_anew(Version(2), world.now);
    assert_eq!((world.canary.phase.clone(), world.canary.news().len()), (Phase::RolledBack, 0));
}

impl World {
    /// A window of rows of this version ends, and so far have its tensors moved.
    fn drift(&mut self, version: u64, least: u32, most: u32) {
        let (began, ended) = (self.now, self.now + Duration::from_secs(5));
        self.now = ended;
        let sight = DriftSight { what: "output `y`".into(), least, most, rows: 600, began, ended };
        self.canary.drifted(Version(version), sight, self.now);
    }
}

#[test]
fn a_candidate_whose_world_is_not_known_to_be_its_own_gets_no_more_and_one_whose_is_does() {
    let mut world = World::new("steps: [10, 50], dwell: 1m, gates: {drift: {at_most: 0.1}}", 1);
    (0..600).for_each(|_| world.tell(true, FAST));
    assert_eq!(world.work(60), Some(Verdict::InsufficientData));
    let why = world.canary.status().verdicts.pop().unwrap().why;
    assert!(why.contains("no window of rows of version 2"), "{why}");
    world.drift(2, 0, 300_000);
    assert_eq!(world.work(1), Some(Verdict::Hold), "it may be as much as 0.3");
    world.drift(2, 0, 90_000);
    assert_eq!(world.work(1), Some(Verdict::Advance));
    (0..600).for_each(|_| world.tell(true, FAST));
    assert_eq!(world.work(60), Some(Verdict::InsufficientData), "each step asks anew");
    world.drift(2, 0, 90_000);
    assert_eq!(world.work(1), Some(Verdict::Advance));
    assert_eq!(world.canary.phase, Phase::Promoted);
}

#[test]
fn a_candidate_that_alone_has_moved_is_rolled_back_at_once_and_a_world_that_has_moved_only_holds() {
    let canary = "steps: [10], dwell: 1h, gates: {drift: {at_most: 0.1}}";
    let mut world = World::new(canary, 1);
    for _ in 0..10 {
        world.drift(1, 200_000, 400_000);
        world.drift(2, 200_000, 400_000);
    }
    assert_eq!(world.canary.phase, Phase::Running);
    (0..600).for_each(|_| world.tell(true, FAST));
    assert_eq!(world.work(3600), Some(Verdict::Hold));
    assert_eq!(world.canary.status().gates.last().map(|gate| (gate.gate, gate.worse)), Some(("drift", 2.0)));
    world.drift(1, 0, 50_000);
    assert_eq!(world.canary.phase, Phase::Running);
    world.drift(2, 200_000, 400_000);
    assert_eq!(world.canary.phase, Phase::RolledBack);
    assert!(world.canary.news().pop().unwrap().why.contains("nothing of version 1 has"));

    let kept = serde_json::to_string(&world.canary.progress(world.now)).unwrap();
    let mut next = Canary::new(policy(canary), Beginnings::default(), world.now);
    next.restore(&serde_json::from_str(&kept).unwrap(), world.now);
    assert_eq!(next.phase, Phase::RolledBack);
    assert_eq!(next.status().verdicts, world.canary.status().verdicts, "a restart keeps the gate's name");
}

#[test]
fn what_moves_changes_nothing_for_those_who_have_not_asked() {
    let mut world = World::new("steps: [10], dwell: 1m", 1);
    (0..10).for_each(|round| world.drift(1 + round % 2, 900_000, 1_000_000));
    (0..600).for_each(|_| world.tell(true, FAST));
    assert_eq!(world.work(60), Some(Verdict::Advance));
}

#[test]
fn how_far_tensors_may_move_is_a_part_of_a_bit_and_of_this_engine() {
    let says = |canary: &str, rest: &str| {
        let text = format!(
            "models: {{m: {{canary: {{baseline: 1, candidate: 2, gates: {{drift: {canary}}}}}, {rest}}}}}"
        );
        parse(&text, "p").map(|_| ()).map_err(|errors| errors.to_string())
    };
    assert_eq!(says("{at_most: 0.05}", ""), Ok(()));
    for wrong in
        ["{at_most: 0}", "{at_most: 1}", "{at_most: .nan}", "{at_most: -0.1}", "{at_most: 0.12345678}"]
    {
        assert!(says(wrong, "").unwrap_err().contains("expected 0.0001 to 0.9999 bits"), "{wrong}");
    }
    let remote = "remote: {2: {url: 'http://triton/v2/models/m/infer'}}";
    assert!(says("{at_most: 0.1}", remote).unwrap_err().contains("nobody knows how far it has moved"));
}
