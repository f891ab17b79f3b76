//! Every state that a small breaker can come to with up to four requests out, in steps of a tick, until nothing new is found.
//!
//! None has more probes out than slots, counted by who was let in and when; what is over and what was cancelled changes nothing; of
//! probes that nobody hears of it leaves; from each a version that is healthy from then on passes again; and callers' faults trip
//! none that was not tried for as long as a probe is given. Where a share trips it, that is counted once more, by hand.

use std::collections::HashSet;

use super::*;

const TICK: Duration = Duration::from_secs(1);

/// How long a share is counted, in ticks.
const WINDOW: u32 = 2;

/// So many requests are let in at most while as many count: an end to what would have none.
const COUNTED_MAX: usize = 5;

const OUTCOMES: [Outcome; 5] =
    [Outcome::Served, Outcome::Refused, Outcome::Failed, Outcome::Lost, Outcome::Abandoned];

/// A breaker, its requests, and what is known of both.
struct Found {
    breaker: Breaker,
    out: Vec<Permit>,
    now: Instant,
    /// For how many ticks a probe was out, since probing began or one was served.
    tried: u64,
    /// What counts in a share since it passes: when it ended, and whether it was what the share is of.
    counted: Vec<(Instant, bool)>,
}

impl Found {
    fn copy(&self) -> Self {
        let Self { ref breaker, ref out, now, tried, ref counted } = *self;
        let out = out.iter().map(copied).collect();
        Self { breaker: breaker.clone(), out, now, tried, counted: counted.clone() }
    }

    /// Without this request.
    fn taking(&self, at: usize) -> (Self, Permit) {
        let mut rest = self.copy();
        let permit = rest.out.remove(at);
        (rest, permit)
    }

    fn leases(&self) -> &[Lease] {
        match &self.breaker.state {
            State::Probing(probes) => &probes.leases,
            State::Passing { .. } | State::Tripped { .. } => &[],
        }
    }

    /// What matters of it: times from now on, permits by whether they still count.
    fn seen(&self) -> Vec<u64> {
        let Self { breaker, out, now, .. } = self;
        let ticks = |at: Instant| (at.saturating_duration_since(*now).as_nanos() / TICK.as_nanos()) as u64;
        let age = |at: Instant| ((*now - at).as_nanos() / TICK.as_nanos()).min(3) as u64;
        let has_lost = breaker.lost.is_some_and(|lost| *now - lost < LOSS);
        let mut all = vec![u64::from(breaker.trips.min(3)), u64::from(has_lost), self.tried];
        match &breaker.state {
            State::Passing { failures, .. } => {
                // Where only a share trips it they grow for ever.
                let counts = breaker.policy.failures != NonZeroU32::MAX;
                all.extend([0, if counts { u64::from(*failures) } else { 0 }]);
            }
            State::Tripped { until } => all.extend([1, ticks(*until)]),
            State::Probing(probes) => {
                let tried = (probes.tried.as_nanos() / TICK.as_nanos()).min(3) as u64;
                all.extend([2, u64::from(probes.served), tried, probes.since.map_or(9, age)]);
                all.extend(probes.leases.iter().map(|lease| 10 + ticks(lease.due)));
            }
        }
        all.extend(self.counted.iter().map(|(at, is_such)| 20 + 2 * age(*at) + u64::from(*is_such)));
        // How slow an answer will be is told from when it was asked for.
        let slow =
            |permit: &Permit| if breaker.policy.slow.is_some() { 1000 * age(permit.entered) } else { 0 };
        let mut permits: Vec<u64> = out
            .iter()
            .map(|permit| match permit.kind {
                // It may still be there.
                Kind::Probe { .. } if permit.generation != breaker.generation => 200 + age(permit.entered),
                Kind::Ordinary if permit.generation != breaker.generation => 100,
                Kind::Ordinary => 101 + slow(permit),
                Kind::Probe { ticket } => {
                    let lease = self.leases().iter().position(|lease| lease.ticket == ticket);
                    102 + lease.map_or(50, |at| at as u64) + slow(permit)
                }
            })
            .collect();
        permits.sort_unstable();
        all.extend(permits);
        all
    }

    /// A tick later.
    fn later(&self) -> Self {
        let mut later = self.copy();
        later.now += TICK;
        later.breaker.catch_up(later.now);
        later.tried = (self.tried + u64::from(!self.leases().is_empty())).min(2);
        later.forget(self.breaker.generation);
        later
    }

    /// What does not count any more, after a step that began in this generation.
    fn forget(&mut self, generation: u64) {
        let now = self.now;
        self.counted.retain(|(at, _)| now < *at + WINDOW * TICK);
        self.counted.sort_unstable();
        if self.breaker.generation != generation {
            self.tried = 0;
            self.counted.clear();
        }
    }

    /// Whether an outcome counts in a share, and as what that is of.
    fn counts(&self, permit: &Permit, outcome: Outcome) -> Option<bool> {
        let policy = &self.breaker.policy;
        if !has_share(policy) {
            return None;
        }
        let is_slow = policy.slow.is_some_and(|slow| self.now - permit.entered > slow.over);
        let is_first = self.breaker.lost.is_none_or(|lost| self.now - lost >= LOSS);
        match outcome {
            Outcome::Failed => Some(policy.failing.is_some()),
            Outcome::Lost if is_first => Some(policy.failing.is_some()),
            Outcome::Served => Some(is_slow),
            Outcome::Refused | Outcome::Lost if is_slow => Some(true),
            Outcome::Refused | Outcome::Lost | Outcome::Abandoned => None,
        }
    }

    /// After one of its requests has ended so; whether a share has tripped it.
    fn settled(&self, at: usize, outcome: Outcome) -> (Self, bool) {
        let (mut after, permit) = self.taking(at);
        let (generation, is_probe) = (self.breaker.generation, permit.is_probe());
        let is_void = permit.generation != generation;
        let counts = self.counts(&permit, outcome).filter(|_| !is_void && !is_probe);
        after.breaker.settle(permit, outcome, self.now);
        let has_changed = after.breaker.generation != generation;
        if is_void {
            let (without, _) = self.taking(at);
            assert_eq!(after.seen(), without.seen(), "{outcome:?} from before changes {:?}", self.breaker);
        }
        if !is_void && is_probe && has_changed && matches!(outcome, Outcome::Refused | Outcome::Abandoned) {
            assert_eq!(self.tried, 2, "{:?} was not tried for long", self.breaker);
        }
        after.counted.extend(counts.map(|is_such| (self.now, is_such)));
        let trips = counts.is_some() && after.has_too_many();
        if !is_void && !is_probe {
            let in_a_row = match self.breaker.state {
                State::Passing { failures, .. } => failures + 1 >= self.breaker.policy.failures.get(),
                State::Tripped { .. } | State::Probing(_) => false,
            };
            assert_eq!(has_changed && !in_a_row, trips && !in_a_row, "{outcome:?}: {:?}", after.counted);
        }
        after.forget(generation);
        if !is_void && is_probe && outcome == Outcome::Served {
            after.tried = 0;
        }
        (after, trips)
    }

    fn has_too_many(&self) -> bool {
        let policy = &self.breaker.policy;
        let Some(share) = policy.failing.or(policy.slow.map(|slow| slow.at_most)) else { return false };
        let all = self.counted.len() as u64;
        let such = self.counted.iter().filter(|(_, is_such)| *is_such).count() as u64;
        all >= u64::from(policy.of_at_least.get()) && such * 1_000_000 >= all * u64::from(share)
    }

    fn has_room(&self) -> bool {
        let passes = matches!(self.breaker.state, State::Passing { .. });
        let is_counted = passes && has_share(&self.breaker.policy);
        self.out.len() < 4 && !(is_counted && self.counted.len() + self.out.len() >= COUNTED_MAX)
    }

    fn check(&self) {
        let Self { breaker, out, now, .. } = self;
        let policy = &breaker.policy;
        let is_out = |permit: &&Permit| permit.is_probe() && *now < permit.entered + policy.probe_timeout;
        let waiting = out.iter().filter(is_out).count();
        let served = match &breaker.state {
            State::Probing(probes) => probes.served as usize,
            State::Passing { .. } | State::Tripped { .. } => 0,
        };
        let most = policy.probes.get() as usize;
        assert!(waiting <= most && served + self.leases().len() <= most, "{breaker:?} has let in {out:?}");
        if !self.leases().is_empty() {
            let left = breaker.clone().state(*now + policy.probe_timeout);
            assert_ne!(left, BreakerState::Probing, "{breaker:?} waits for ever");
        }
        let (mut breaker, mut now) = (breaker.clone(), *now);
        for _ in 0..20 {
            if breaker.state(now) == BreakerState::Passing {
                return;
            }
            match breaker.enter(now) {
                Ok(permit) => breaker.settle(permit, Outcome::Served, now),
                Err(_) => now += TICK,
            }
        }
        panic!("{breaker:?} does not pass again");
    }
}

fn has_share(policy: &BreakerPolicy) -> bool {
    policy.failing.is_some() || policy.slow.is_some()
}

fn copied(permit: &Permit) -> Permit {
    Permit { ..*permit }
}

/// How many states there are, and how often a share has tripped it.
fn explore(policy: BreakerPolicy) -> (usize, u32) {
    let (mut seen, mut trips) = (HashSet::new(), 0);
    let breaker = Breaker::new(policy);
    let mut found =
        vec![Found { breaker, out: Vec::new(), now: Instant::now(), tried: 0, counted: Vec::new() }];
    while let Some(state) = found.pop() {
        if !seen.insert(state.seen()) {
            continue;
        }
        state.check();
        found.push(state.later());
        if state.has_room() {
            let (mut next, generation) = (state.copy(), state.breaker.generation);
            next.out.extend(next.breaker.enter(next.now).ok());
            next.forget(generation);
            found.push(next);
        }
        for at in 0..state.out.len() {
            for outcome in OUTCOMES {
                let (after, has_tripped) = state.settled(at, outcome);
                trips += u32::from(has_tripped);
                found.push(after);
            }
            let (mut dropped, permit) = state.taking(at);
            let before = (state.breaker.generation, state.leases().len());
            let had_slot = usize::from(permit.is_probe() && permit.generation == before.0);
            dropped.breaker.abandon(permit);
            let after = (dropped.breaker.generation, dropped.leases().len());
            assert_eq!(
                after,
                (before.0, before.1 - had_slot),
                "who is cancelled gives a slot back, and no more"
            );
            found.push(dropped);
            // Nobody ever hears of it again.
            found.push(state.taking(at).0);
        }
    }
    (seen.len(), trips)
}

fn small(probes: u32) -> BreakerPolicy {
    BreakerPolicy {
        failures: NonZeroU32::new(2).unwrap(),
        open_for: 2 * TICK,
        max_open_for: 4 * TICK,
        probes: NonZeroU32::new(probes).unwrap(),
        probe_timeout: 2 * TICK,
        window: WINDOW * TICK,
        of_at_least: NonZeroU32::new(3).unwrap(),
        ..BreakerPolicy::default()
    }
}

#[test]
fn every_state_is_explored_and_none_is_a_wedge() {
    for probes in 1..=3 {
        let (states, _) = explore(small(probes));
        assert!(states > 500, "{states} states with {probes} probes");
    }
}

#[test]
fn every_state_is_explored_where_a_share_of_failures_trips_it() {
    for probes in 1..=3 {
        let policy = BreakerPolicy { failures: NonZeroU32::MAX, failing: Some(600_000), ..small(probes) };
        let (states, trips) = explore(policy);
        assert!(states > 1000 && trips > 100, "{states} states and {trips} trips with {probes} probes");
    }
}

#[test]
fn every_state_is_explored_where_a_share_of_slow_answers_trips_it() {
    for probes in 1..=3 {
        let slow = Some(SlowPolicy { over: TICK, at_most: 600_000 });
        let policy = BreakerPolicy { failures: NonZeroU32::MAX, slow, ..small(probes) };
        let (states, trips) = explore(policy);
        assert!(states > 1000 && trips > 100, "{states} states and {trips} trips with {probes} probes");
    }
}
