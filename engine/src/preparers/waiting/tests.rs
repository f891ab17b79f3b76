//! Who waits, one decision at a time; and traces of too much work, in simulated time. No thread, no clock.

use super::*;
use crate::curve::RUNS_SETTLED;
use crate::preprocess::Kind;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::VecDeque;

const THREADS: usize = 2;

const WORD: Work = Work { kind: Kind::Text, pixels: 1000 };

fn ms(ms: f64) -> Duration {
    Duration::from_secs_f64(ms / 1e3)
}

/// Requests are their ids.
struct World {
    waiting: Waiting<u64>,
    now: Instant,
    shed: Vec<u64>,
}

impl World {
    fn new(requests: u64, bytes: usize) -> Self {
        let now = Instant::now();
        Self {
            waiting: Waiting::new(Limits { rows: requests, bytes, run_bytes: 0 }, THREADS, now),
            now,
            shed: Vec::new(),
        }
    }

    /// One for which threads have become used to so long.
    fn used_to(takes: f64) -> Self {
        let mut world = Self::new(100, 100_000);
        for id in 0..RUNS_SETTLED as u64 {
            world.push(1000 + id, |_| {}).expect("nothing waits");
            world.run(ms(takes));
        }
        world
    }

    fn push(&mut self, id: u64, change: impl FnOnce(&mut Asks)) -> Result<(), Refusal> {
        let mut asks = Asks {
            connection: 1,
            id,
            version: 7,
            work: WORD,
            bytes: 100,
            deadline: None,
            after: After::default(),
            priority: Priority::Normal,
            criticality: Criticality::Normal,
            tenant: 0,
        };
        change(&mut asks);
        self.waiting.push(asks, || id, &mut self.shed, self.now)
    }

    fn push_due(&mut self, id: u64, due: f64) -> Result<(), Refusal> {
        let deadline = self.now + ms(due);
        self.push(id, |asks| asks.deadline = Some(deadline))
    }

    /// Who is prepared next.
    fn begin(&mut self) -> Option<(u64, Begun)> {
        self.waiting.next(self.now)?.work
    }

    fn run(&mut self, takes: Duration) -> u64 {
        let (id, begun) = self.begin().expect("one waits");
        self.now += takes;
        self.waiting.finish(begun, Ended::Ran, self.now);
        id
    }

    fn run_all(&mut self) -> Vec<u64> {
        std::iter::from_fn(|| {
            let (id, begun) = self.begin()?;
            self.waiting.finish(begun, Ended::Failed, self.now);
            Some(id)
        })
        .collect()
    }
}

#[test]
fn who_would_be_late_is_told_at_once_how_long_it_would_wait() {
    let mut world = World::used_to(10.0);
    for id in 0..10 {
        assert_eq!(world.push_due(id, 300.0), Ok(()));
    }
    assert_eq!(world.push_due(10, 55.0), Ok(()), "it goes before them");
    let pushed = (20..30).map(|id| world.push_due(id, 45.0));
    let told = pushed.skip_while(Result::is_ok).collect::<Vec<_>>();
    // Seven before it, two at a time: who had more to spare as well, after half of that.
    assert_eq!(told, [const { Err(Refusal::TooLate { wait: Duration::from_millis(35) }) }; 4]);
    assert_eq!(world.push_due(31, 5.0), Err(Refusal::Hopeless), "no thread is that fast");
}

#[test]
fn who_is_slow_once_in_a_while_does_not_cost_all_others_their_turn() {
    let mut world = World::used_to(10.0);
    for id in 0..200 {
        world.push(id, |_| {}).unwrap();
        world.run(ms(if id % 8 == 0 { 40.0 } else { 10.0 }));
    }
    world.push(500, |_| {}).unwrap();
    assert_eq!(world.push_due(501, 30.0), Ok(()));
}

#[test]
fn what_lanes_will_take_is_left_of_the_deadline() {
    let mut world = World::used_to(10.0);
    let push = |world: &mut World, id: u64, due: f64, backlog: f64, run: f64, criticality: Criticality| {
        let (deadline, run) = (world.now + ms(due), ms(run));
        let after = After { backlog: ms(backlog), adds: run, run, lanes: 1, ..After::default() };
        world.push(id, |asks| {
            (asks.deadline, asks.after, asks.criticality) = (Some(deadline), after, criticality);
        })
    };
    let too_late = |wait: f64| Err(Refusal::TooLate { wait: ms(wait) });
    assert_eq!(
        push(&mut world, 1, 400.0, 0.0, 500.0, Criticality::Sheddable),
        Ok(()),
        "it may be faster by now"
    );
    assert_eq!(push(&mut world, 2, 400.0, 0.0, 10.0, Criticality::Sheddable), too_late(500.0));
    assert_eq!(push(&mut world, 3, 400.0, 0.0, 10.0, Criticality::Normal), Ok(()), "that would make way");
    assert_eq!(push(&mut world, 4, 400.0, 380.0, 10.0, Criticality::Normal), too_late(390.0));
    world.run_all();
    assert_eq!(push(&mut world, 5, 400.0, 370.0, 10.0, Criticality::Sheddable), Ok(()), "none is left");
    assert_eq!(
        push(&mut world, 6, 300.0, 300.0, 0.0, Criticality::Critical),
        Ok(()),
        "both go on at the same time"
    );
}

#[test]
fn what_comes_of_a_version_that_leaves_a_lane_to_others_makes_only_its_own_wait() {
    let mut world = World::used_to(10.0);
    let push = |world: &mut World, id: u64, version: u32, at_once: usize, run: f64| {
        let (deadline, run) = (world.now + ms(400.0), ms(run));
        let bound = Bound { version, lanes: 1, at_once };
        let after = After { backlog: Duration::ZERO, adds: run, run, bound, lanes: 2 };
        world.push(id, |asks| (asks.deadline, asks.after) = (Some(deadline), after))
    };
    let too_late = |wait: f64| Err(Refusal::TooLate { wait: ms(wait) });
    for id in 0..4 {
        // The third goes behind the first two, one after the other.
        assert_eq!(push(&mut world, id, 1, 1, 140.0).is_ok(), id < 2, "{id}");
    }
    assert_eq!(push(&mut world, 5, 2, 2, 10.0), Ok(()), "the other lane has nothing to do");
    world.run_all();
    assert_eq!(push(&mut world, 6, 2, 2, 1000.0), Ok(()), "it may be faster by now");
    assert_eq!(push(&mut world, 7, 3, 2, 10.0), Ok(()), "one run of a second leaves a lane as well");
    assert_eq!(push(&mut world, 8, 2, 2, 1000.0), Ok(()));
    assert_eq!(push(&mut world, 9, 3, 2, 10.0), too_late(1005.0), "two do not");
    world.run_all();
    assert!(world.waiting.coming.is_empty(), "nothing comes any more");
}

#[test]
fn the_most_urgent_goes_first_and_nobody_who_has_expired_goes_at_all() {
    let mut world = World::new(100, 100_000);
    for (id, due) in [(1, 500.0), (2, 100.0), (3, 50.0)] {
        world.push_due(id, due).unwrap();
    }
    world.push(4, |_| {}).unwrap();
    world.push(5, |asks| asks.priority = Priority::High).unwrap();
    world.now += ms(60.0);
    let turn = world.waiting.next(world.now).unwrap();
    assert_eq!(turn.late, [(3, Refusal::Expired)]);
    assert_eq!(turn.work.map(|(id, _)| id), Some(2));
    assert_eq!(world.run_all(), [1, 5, 4]);
}

#[test]
fn the_less_critical_make_room_and_of_equals_those_of_whom_most_wait() {
    let mut world = World::new(4, 100_000);
    for id in 1..=4 {
        world.push(id, |asks| asks.tenant = 1).unwrap();
    }
    let full = Err(Refusal::Overloaded { wait: Duration::ZERO });
    assert_eq!(world.push(5, |asks| asks.tenant = 1), full);
    assert_eq!(world.push(6, |asks| asks.criticality = Criticality::Sheddable), full);
    assert_eq!(world.push(7, |asks| asks.tenant = 2), Ok(()));
    assert_eq!(world.push(8, |asks| asks.tenant = 2), Ok(()));
    assert_eq!(world.push(9, |asks| asks.tenant = 2), full, "that would leave the first with less");
    assert_eq!(world.push(10, |asks| asks.criticality = Criticality::Critical), Ok(()));
    assert_eq!(world.shed.len(), 3);
    assert_eq!(world.shed[..2], [4, 3]);
}

#[test]
fn who_leaves_leaves_its_room() {
    let mut world = World::new(2, 100_000);
    world.push(1, |_| {}).unwrap();
    world.push(2, |asks| asks.connection = 2).unwrap();
    assert_eq!((world.waiting.cancel(1, 2), world.waiting.cancel(1, 1)), (None, Some(1)));
    assert_eq!(world.push(3, |_| {}), Ok(()));
    assert_eq!(world.waiting.cancel_connection(2), [2]);
    assert_eq!((world.run_all(), world.waiting.bytes()), (vec![3], 0));
}

#[test]
fn what_has_become_fast_again_is_tried_once_in_a_while_and_known_after_some_runs() {
    let mut world = World::used_to(300.0);
    assert_eq!(world.push_due(1, 200.0), Err(Refusal::Hopeless));
    for id in 2..5 {
        world.now += ms(1500.0);
        assert_eq!(world.push_due(id, 200.0), Ok(()), "it was not tried for long");
        world.run(ms(5.0));
    }
    assert_eq!(world.push_due(5, 200.0), Ok(()));
}

/// Milliseconds of a thread that a request takes, and what is known of that before.
type Takes = fn(&mut StdRng) -> (f64, Work);

/// What comes is too much, for so many seconds.
struct Trace {
    takes: Takes,
    /// Milliseconds of the only lane.
    run: f64,
    /// So many times as much as can be done.
    load: f64,
}

#[derive(Debug, Default)]
struct Report {
    /// Of what threads or the lane can do, how much was done in time.
    goodput: f64,
    /// Of what was prepared, how much was late when it had run.
    in_vain: f64,
    /// Of those who were not answered in time, how many were told at once.
    at_once: f64,
    /// Of those of a tenant who asks for little, how many were answered in time.
    modest: f64,
    /// Of those that do not take long, as many.
    short: f64,
}

/// One in so many is of that tenant.
const MODEST: u64 = 16;

const SLO: f64 = 200.0;
const SECONDS: f64 = 30.0;
const WARM: f64 = 2.0;

struct Request {
    takes: f64,
    is_long: bool,
    came: Instant,
    deadline: Instant,
}

impl Trace {
    fn report(&self) -> Report {
        let seed = 11;
        let mut rng = StdRng::seed_from_u64(seed);
        let mean = (0..20_000).map(|_| (self.takes)(&mut rng).0).sum::<f64>() / 20_000.0;
        let per_second = (THREADS as f64 * 1e3 / mean).min(1e3 / self.run);
        let gap = 1.0 / (per_second * self.load);
        let mut world = World::new(1024, 1 << 30);
        let origin = world.now;
        let (end, warm) = (origin + ms(SECONDS * 1e3), origin + ms(WARM * 1e3));
        let mut requests: Vec<Request> = Vec::new();
        let mut next_arrival = origin;
        let mut threads: Vec<(Instant, u64, Begun)> = Vec::new();
        let mut lane: VecDeque<u64> = VecDeque::new();
        let mut runs: Option<(Instant, u64)> = None;
        let (mut in_time, mut prepared, mut in_vain, mut refused, mut late) = (0, 0, 0, 0, 0);
        let (mut modest, mut short) = (0, 0);
        while world.now < end {
            let now = world.now;
            let counts = |request: &Request| request.came >= warm && request.deadline < end;
            if next_arrival <= now {
                let (takes, work) = (self.takes)(&mut rng);
                let (id, deadline) = (requests.len() as u64, now + ms(SLO));
                requests.push(Request { takes, is_long: work.is_long(), came: now, deadline });
                let before = lane.len() as f64 * self.run;
                let backlog = ms(before) + runs.map_or(Duration::ZERO, |(due, _)| due - now);
                let pushed = world.push(id, |asks| {
                    (asks.deadline, asks.work) = (Some(deadline), work);
                    let run = ms(self.run);
                    asks.after = After { backlog, adds: run, run, lanes: 1, ..After::default() };
                    asks.tenant = u64::from(id.is_multiple_of(MODEST));
                });
                let told = usize::from(pushed.is_err()) + std::mem::take(&mut world.shed).len();
                if counts(&requests[id as usize]) {
                    refused += told;
                }
                next_arrival = now + ms(-(1.0 - rng.random::<f64>()).ln() * gap * 1e3);
            }
            for (_, id, begun) in threads.extract_if(.., |(due, ..)| *due <= now) {
                world.waiting.finish(begun, Ended::Ran, now);
                // Lanes have a rule of their own for who would be late.
                let before = lane.len() as f64 * self.run;
                let before = ms(before + self.run) + runs.map_or(Duration::ZERO, |(due, _)| due - now);
                let request = &requests[id as usize];
                if now + before <= request.deadline {
                    lane.push_back(id);
                } else if counts(request) {
                    (prepared, in_vain) = (prepared + 1, in_vain + 1);
                }
            }
            if let Some((_, id)) = runs.take_if(|(due, _)| *due <= now)
                && let request = &requests[id as usize]
                && counts(request)
            {
                prepared += 1;
                let is_late = now > request.deadline;
                in_vain += usize::from(is_late);
                in_time += usize::from(!is_late);
                modest += usize::from(!is_late && id.is_multiple_of(MODEST));
                short += usize::from(!is_late && !request.is_long);
            }
            if runs.is_none() {
                runs = lane.pop_front().map(|id| (now + ms(self.run), id));
            }
            while threads.len() < THREADS
                && let Some(turn) = world.waiting.next(now)
            {
                late += turn.late.iter().filter(|(id, _)| counts(&requests[*id as usize])).count();
                let Some((id, begun)) = turn.work else { continue };
                let Request { takes, deadline, .. } = requests[id as usize];
                assert!(deadline > now, "seed {seed}: it has expired");
                threads.push((now + ms(takes), id, begun));
            }
            let due = threads.iter().map(|(due, ..)| *due).chain(runs.map(|(due, _)| due)).min();
            world.now = due.map_or(next_arrival, |due| due.min(next_arrival)).max(now);
        }
        let counts = |request: &&Request| request.came >= warm && request.deadline < end;
        let all_modest = requests.iter().step_by(MODEST as usize).filter(counts);
        let all_short = requests.iter().filter(counts).filter(|request| !request.is_long);
        Report {
            goodput: in_time as f64 / (SECONDS - WARM - SLO / 1e3) / per_second,
            in_vain: in_vain as f64 / prepared as f64,
            at_once: refused as f64 / (refused + late + in_vain) as f64,
            modest: modest as f64 / all_modest.count() as f64,
            short: short as f64 / all_short.count() as f64,
        }
    }
}

/// What a request takes.
const TAKES: [(&str, Takes); 4] = [
    ("steady", |_| (10.0, WORD)),
    ("noisy", |rng| (10.0 * rng.random_range(0.7..1.3), WORD)),
    ("often disturbed", |rng| (if rng.random() { 6.0 } else { 14.0 }, WORD)),
    ("small and large", |rng| match rng.random_ratio(1, 8) {
        true => (45.0, Work { pixels: 100_000, ..WORD }),
        false => (5.0, WORD),
    }),
];

#[test]
fn too_much_to_prepare_costs_at_most_a_twentieth_of_what_can_be_prepared() {
    for (name, takes) in TAKES {
        for load in [1.3, 2.5] {
            let report = Trace { takes, run: 2.0, load }.report();
            println!("{name}, {load} times: {report:?}");
            assert!(report.goodput >= 0.95, "{name}, {load} times: {report:?}");
            assert!(report.in_vain <= 0.02, "{name}, {load} times: {report:?}");
            assert!(report.at_once >= 0.8, "{name}, {load} times: {report:?}");
        }
    }
}

#[test]
fn too_much_to_run_costs_at_most_a_twentieth_of_what_can_be_run_and_little_is_prepared_in_vain() {
    for (name, takes) in TAKES {
        for load in [1.3, 2.5] {
            let report = Trace { takes, run: 12.0, load }.report();
            println!("{name}, {load} times: {report:?}");
            assert!(report.goodput >= 0.95, "{name}, {load} times: {report:?}");
            assert!(report.in_vain <= 0.1, "{name}, {load} times: {report:?}");
        }
    }
}

#[test]
fn words_are_answered_in_time_beside_more_pictures_than_can_be_prepared() {
    let takes: Takes = |rng| match rng.random_ratio(1, 6) {
        true => (90.0, Work { kind: Kind::Jpeg, pixels: 42_000_000 }),
        false => (0.05, WORD),
    };
    for load in [1.3, 4.0] {
        let report = Trace { takes, run: 1.0, load }.report();
        println!("{load} times: {report:?}");
        assert!(report.short >= 0.99, "{load} times: {report:?}");
    }
}

#[test]
fn a_tenant_who_asks_for_little_hardly_notices_one_who_floods() {
    for (name, takes) in TAKES {
        // A fifth of what can be done, beside three times as much.
        let report = Trace { takes, run: 2.0, load: 0.2 * MODEST as f64 }.report();
        println!("{name}: {report:?}");
        // Where every second run takes more than twice as long as the others, nobody knows as well who will be in time.
        assert!(report.modest >= 0.9, "{name}: {report:?}");
    }
}
