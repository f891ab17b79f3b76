//! The breaker by hand.
//!
//! Tests whose names begin with `no_wedge` each stand for a way in which another breaker is known to shut a version out for good,
//! or to let everybody at it, once it only lets probes in; the line above each says what that one did.

mod explored;

use proptest::prelude::*;

use super::*;

/// A breaker and a clock that moves only when told. Times are milliseconds.
struct World {
    breaker: Breaker,
    now: Instant,
}

impl World {
    fn new(policy: BreakerPolicy) -> Self {
        Self { breaker: Breaker::new(policy), now: Instant::now() }
    }

    /// Trips on the third failure; refuses for 1 s, then 2 s, then 3 s; two probes with 500 ms each.
    fn small() -> Self {
        Self::new(BreakerPolicy {
            failures: NonZeroU32::new(3).unwrap(),
            open_for: Duration::from_millis(1000),
            max_open_for: Duration::from_millis(3000),
            probes: NonZeroU32::new(2).unwrap(),
            probe_timeout: Duration::from_millis(500),
            ..BreakerPolicy::default()
        })
    }

    fn advance(&mut self, ms: u64) {
        self.now += Duration::from_millis(ms);
    }

    fn enter(&mut self) -> Result<Permit, u64> {
        self.breaker.enter(self.now).map_err(|tripped| tripped.retry_after.as_millis() as u64)
    }

    fn settle(&mut self, permit: Permit, outcome: Outcome) {
        self.breaker.settle(permit, outcome, self.now);
    }

    /// A request that enters and ends at once.
    fn request(&mut self, outcome: Outcome) {
        let permit = self.enter().expect("the breaker lets the request in");
        self.settle(permit, outcome);
    }

    fn state(&mut self) -> BreakerState {
        self.breaker.state(self.now)
    }

    fn trip(&mut self) {
        for _ in 0..self.breaker.policy.failures.get() {
            self.request(Outcome::Failed);
        }
    }
}

#[test]
fn each_loss_of_an_engine_is_one_failure_of_every_version_that_it_had_requests_of() {
    let lose = |world: &mut World| {
        let under_way: Vec<_> = (0..10).map(|_| world.enter().expect("it lets all in")).collect();
        for permit in under_way {
            world.advance(1);
            world.settle(permit, Outcome::Lost);
        }
        world.advance(1000);
    };
    let (mut culprit, mut neighbour) = (World::small(), World::small());
    for loss in 1..=3 {
        lose(&mut culprit);
        lose(&mut neighbour);
        neighbour.request(Outcome::Served);
        assert_eq!(culprit.state() == BreakerState::Passing, loss < 3, "loss {loss}");
    }
    assert_eq!(neighbour.state(), BreakerState::Passing, "it was answered between them");
}

/// It went from passing to probing: the wait was left out, and its few probes were spent while the version was still failing.
#[test]
fn no_wedge_because_a_trip_leaves_out_the_wait_which_is_exact() {
    let mut world = World::small();
    world.request(Outcome::Failed);
    world.request(Outcome::Failed);
    assert_eq!(world.state(), BreakerState::Passing);
    world.request(Outcome::Failed);
    assert_eq!(world.enter(), Err(1000));
    world.advance(999);
    assert_eq!(world.enter(), Err(1));
    world.advance(1);
    assert!(world.enter().is_ok_and(|permit| permit.is_probe()));
}

#[test]
fn a_share_of_failures_trips_what_never_fails_often_in_a_row() {
    let failing = Some(500_000);
    let mut world = World::new(BreakerPolicy { failing, ..BreakerPolicy::default() });
    for _ in 0..9 {
        world.request(Outcome::Failed);
        world.request(Outcome::Served);
    }
    assert_eq!(world.state(), BreakerState::Passing, "19 requests are too few to say");
    world.advance(11_000);
    for _ in 0..10 {
        assert_eq!(world.state(), BreakerState::Passing, "what is long ago does not count");
        world.request(Outcome::Served);
        world.request(Outcome::Failed);
    }
    assert!(matches!(world.state(), BreakerState::Tripped { .. }));
}

#[test]
fn slow_answers_and_missed_deadlines_trip_it_where_that_is_asked_for() {
    let slow = Some(SlowPolicy { over: Duration::from_millis(100), at_most: 800_000 });
    for (outcome, ms, trips) in [
        (Outcome::Served, 101, true),
        (Outcome::Refused, 101, true),
        (Outcome::Served, 100, false),
        (Outcome::Abandoned, 500, false),
    ] {
        let mut world = World::new(BreakerPolicy { slow, ..BreakerPolicy::default() });
        for _ in 0..20 {
            let permit = world.enter().unwrap();
            world.advance(ms);
            world.settle(permit, outcome);
        }
        assert_eq!(matches!(world.state(), BreakerState::Tripped { .. }), trips, "{outcome:?} {ms}");
    }
}

#[test]
fn an_answer_ends_the_row_but_a_refusal_does_not() {
    let mut world = World::small();
    for outcome in [Outcome::Failed, Outcome::Failed, Outcome::Served, Outcome::Failed, Outcome::Failed] {
        world.request(outcome);
    }
    assert_eq!(world.state(), BreakerState::Passing);
    world.request(Outcome::Refused);
    world.request(Outcome::Abandoned);
    world.request(Outcome::Failed);
    assert_eq!(world.enter(), Err(1000));
}

#[test]
fn all_probes_must_be_served_before_everyone_may_enter() {
    let mut world = World::small();
    world.trip();
    world.advance(1000);
    world.request(Outcome::Served);
    assert_eq!(world.state(), BreakerState::Probing);
    world.request(Outcome::Served);
    assert_eq!(world.state(), BreakerState::Passing);
}

#[test]
fn probes_may_come_slowly() {
    let mut world = World::small();
    world.trip();
    world.advance(1000);
    world.request(Outcome::Served);
    world.advance(3_600_000);
    world.request(Outcome::Served);
    assert_eq!(world.state(), BreakerState::Passing, "an hour without requests is not a failed probe");
}

#[test]
fn the_wait_doubles_up_to_its_limit_and_starts_over_after_recovery() {
    let mut world = World::small();
    world.trip();
    for wait in [1000, 2000, 3000, 3000] {
        assert_eq!(world.enter(), Err(wait));
        world.advance(wait);
        world.request(Outcome::Failed);
    }
    world.advance(3000);
    world.request(Outcome::Served);
    world.request(Outcome::Served);
    world.trip();
    assert_eq!(world.enter(), Err(1000));
}

#[test]
fn no_more_probes_than_slots() {
    let mut world = World::small();
    world.trip();
    world.advance(1000);
    let _first = world.enter().unwrap();
    world.advance(100);
    let _second = world.enter().unwrap();
    assert_eq!(world.enter(), Err(400), "until the first probe is due");
}

/// A probe whose caller left before the answer's head kept its slot, as only answers had somebody who gave it back.
#[test]
fn no_wedge_by_a_probe_that_is_dropped_cancelled_or_refused_which_gives_its_slot_back() {
    let mut world = World::small();
    world.trip();
    world.advance(1000);
    let (first, second) = (world.enter().unwrap(), world.enter().unwrap());
    world.breaker.abandon(first);
    world.settle(second, Outcome::Refused);
    let _third = world.enter().expect("a slot is free");
    let _fourth = world.enter().expect("so is the other");
    assert_eq!(world.state(), BreakerState::Probing);
}

/// It counted probes that it had sent and waited, for as long as it took, until all of them were reported.
#[test]
fn no_wedge_by_a_probe_of_which_nobody_reports_anything_which_has_failed_when_it_is_due() {
    let mut world = World::small();
    world.trip();
    world.advance(1000);
    let silent = world.enter().unwrap();
    world.advance(600);
    assert_eq!(world.enter(), Err(1900), "two seconds from when it was due, 100 ms ago");
    world.settle(silent, Outcome::Served);
    assert_eq!(world.state(), BreakerState::Tripped { retry_after: Duration::from_millis(1900) });
}

/// Whether it was open was asked by what also took a slot, and who only asked never gave one back.
#[test]
fn no_wedge_by_questions_about_the_state_which_take_no_slot() {
    let mut world = World::small();
    world.trip();
    world.advance(1000);
    let ask = |world: &mut World, expected: BreakerState| {
        (0..10).for_each(|_| assert_eq!(world.state(), expected));
    };
    ask(&mut world, BreakerState::Tripped { retry_after: Duration::ZERO });
    let first = world.enter().expect("questions have taken neither slot");
    ask(&mut world, BreakerState::Probing);
    let second = world.enter().expect("nor the second one");
    ask(&mut world, BreakerState::Probing);
    world.settle(first, Outcome::Served);
    ask(&mut world, BreakerState::Probing);
    world.settle(second, Outcome::Served);
    ask(&mut world, BreakerState::Passing);
}

#[test]
fn callers_who_give_up_early_do_not_keep_it_probing() {
    let mut world = World::small();
    world.trip();
    world.advance(1000);
    for _ in 0..4 {
        let probe = world.enter().unwrap();
        world.advance(100);
        world.settle(probe, Outcome::Refused);
    }
    assert_eq!(world.state(), BreakerState::Probing);
    let probe = world.enter().unwrap();
    world.advance(100);
    world.settle(probe, Outcome::Abandoned);
    assert_eq!(world.enter(), Err(2000), "as long as one silent probe is given");
}

#[test]
fn callers_faults_do_not_trip_it_however_far_apart_they_are() {
    let mut world = World::small();
    world.trip();
    world.advance(1000);
    for _ in 0..10 {
        world.request(Outcome::Refused);
        world.advance(60_000);
    }
    assert_eq!(world.state(), BreakerState::Probing, "without a probe the version is not tried");
    let (first, second) = (world.enter().unwrap(), world.enter().unwrap());
    world.advance(300);
    world.settle(first, Outcome::Served);
    world.advance(199);
    world.settle(second, Outcome::Refused);
    world.advance(60_000);
    let third = world.enter().unwrap();
    world.advance(300);
    world.settle(third, Outcome::Refused);
    assert_eq!(world.state(), BreakerState::Probing, "499 ms since one was served");
    let fourth = world.enter().unwrap();
    world.advance(1);
    world.settle(fourth, Outcome::Abandoned);
    assert_eq!(world.enter(), Err(2000));
}

#[test]
fn a_slow_probe_has_failed_where_slow_answers_trip() {
    let slow = Some(SlowPolicy { over: Duration::from_millis(100), at_most: 800_000 });
    let mut world = World::new(BreakerPolicy { slow, ..BreakerPolicy::default() });
    world.trip();
    world.advance(10_000);
    let probe = world.enter().unwrap();
    world.advance(101);
    world.settle(probe, Outcome::Served);
    assert_eq!(world.enter(), Err(20_000));
    world.advance(20_000);
    world.request(Outcome::Served);
    assert_eq!(world.state(), BreakerState::Passing);
}

#[test]
fn a_version_ails_where_so_much_goes_wrong_that_chance_may_trip_it_and_only_lately() {
    let default = BreakerPolicy::default();
    let row = |failures| BreakerPolicy { failures: NonZeroU32::new(failures).unwrap(), ..default };
    let failing = BreakerPolicy { failing: Some(500_000), ..row(1_000) };
    let slow = Some(SlowPolicy { over: Duration::from_millis(100), at_most: 500_000 });
    let slow = BreakerPolicy { slow, ..row(1_000) };
    // So many, of which one goes wrong; each for itself, which trips nothing.
    for (policy, ails, is_well) in
        [(row(3), 31, 36), (row(5), 7, 9), (row(10), 2, 3), (failing, 11, 13), (slow, 11, 13)]
    {
        for (every, expected) in [(ails, true), (is_well, false)] {
            let mut world = World::new(policy);
            for request in 1..=3_000 {
                let is_wrong = request % every == 0;
                let permit = world.enter().unwrap();
                let entered = world.now;
                let outcome =
                    if is_wrong && policy.slow.is_none() { Outcome::Failed } else { Outcome::Served };
                if is_wrong && policy.slow.is_some() {
                    world.now += Duration::from_millis(101);
                }
                world.settle(permit, outcome);
                world.now = entered + Duration::from_micros(600);
            }
            let now = world.now;
            let standing = world.breaker.standing(now);
            assert_eq!(
                (standing.since, standing.ails),
                (Since::Passing(None), expected),
                "{policy:?} {every}"
            );
            assert!(!world.breaker.standing(now + LATELY).ails);
        }
    }
    let mut world = World::new(default);
    world.request(Outcome::Failed);
    assert!(!world.breaker.standing(world.now).ails, "one is none too many");
    world.request(Outcome::Failed);
    assert!(world.breaker.standing(world.now).ails);
}

/// Any answer was the verdict on a probe, also to a request that had come before the trip.
#[test]
fn no_wedge_by_answers_from_before_the_trip_which_decide_nothing() {
    let mut world = World::small();
    let (good, bad) = (world.enter().unwrap(), world.enter().unwrap());
    world.trip();
    world.advance(1000);
    let _probe = world.enter().unwrap();
    world.settle(good, Outcome::Served);
    world.settle(bad, Outcome::Failed);
    assert_eq!(world.state(), BreakerState::Probing);
}

#[derive(Clone, Debug)]
enum Event {
    Advance { ms: u64 },
    Enter,
    Settle { index: usize, outcome: Outcome },
    Drop { index: usize },
    Forget { index: usize },
}

fn event() -> impl Strategy<Value = Event> {
    let outcome = prop::sample::select(vec![
        Outcome::Served,
        Outcome::Refused,
        Outcome::Failed,
        Outcome::Failed,
        Outcome::Abandoned,
    ]);
    prop_oneof![
        (0..800_u64).prop_map(|ms| Event::Advance { ms }),
        Just(Event::Enter),
        (0..8_usize, outcome).prop_map(|(index, outcome)| Event::Settle { index, outcome }),
        (0..8_usize).prop_map(|index| Event::Drop { index }),
        (0..8_usize).prop_map(|index| Event::Forget { index }),
    ]
}

proptest! {
    /// Whatever happens, no more than `probes` are out at a time; and a version that is healthy from then on is
    /// passing again after one full wait, one silent probe and as many requests as it takes.
    #[test]
    fn it_cannot_wedge(events in prop::collection::vec(event(), 0..200)) {
        let mut world = World::small();
        let probes = world.breaker.policy.probes.get() as usize;
        let mut out: Vec<(Permit, Instant)> = Vec::new();
        for event in events {
            match event {
                Event::Advance { ms } => world.advance(ms),
                Event::Enter => {
                    if let Ok(permit) = world.enter() {
                        out.push((permit, world.now));
                    }
                }
                Event::Settle { index, outcome } if index < out.len() => {
                    let (permit, _) = out.remove(index);
                    world.settle(permit, outcome);
                }
                Event::Drop { index } if index < out.len() => world.breaker.abandon(out.remove(index).0),
                // A pass that leaks: nobody ever hears of it again.
                Event::Forget { index } if index < out.len() => drop(out.remove(index)),
                Event::Settle { .. } | Event::Drop { .. } | Event::Forget { .. } => {}
            }
            let timeout = world.breaker.policy.probe_timeout;
            let waiting = out.iter().filter(|(permit, since)| permit.is_probe() && world.now < *since + timeout);
            prop_assert!(waiting.count() <= probes);
        }

        let mut waited = 0;
        while world.state() != BreakerState::Passing {
            match world.enter() {
                Ok(permit) => world.settle(permit, Outcome::Served),
                Err(wait) => {
                    waited += wait;
                    world.advance(wait);
                }
            }
            prop_assert!(waited <= 3000 + 500 + 3000, "a silent probe's time and a wait, at most after another wait");
        }
    }

    #[test]
    fn a_refused_request_that_waits_as_told_is_a_probe(advance in 0..5000_u64, trips in 1..6_u32) {
        let mut world = World::small();
        world.trip();
        for _ in 1..trips {
            let wait = world.enter().unwrap_err();
            world.advance(wait);
            world.request(Outcome::Failed);
        }
        world.advance(advance);
        if let Err(wait) = world.enter() {
            world.advance(wait);
            prop_assert!(world.enter().is_ok_and(|permit| permit.is_probe()));
        }
    }
}
