//! When a version counts as failing, and how it is let back in.
//!
//! ```text
//!     `failures` in a row, or too many in `window`    the wait is over and a request comes
//!   Passing ────────────────────────▶ Tripped ────────────────────────────────────────────▶ Probing
//!      ▲                                 ▲       a probe failed, or had no answer in time       │ │
//!      │                                 └──────────────── wait doubles ────────────────────────┘ │
//!      └──────────────────────────────────── every probe served ──────────────────────────────────┘
//! ```
//!
//! Each change of state starts a new *generation*. A permit carries the generation it was given in, and an outcome
//! from an older one is void: an answer that was in flight while the version tripped says nothing about it now.
//!
//! It cannot wedge. A probe slot is a lease: it comes back when the probe is settled, dropped or cancelled, and a
//! probe that is silent for `probe_timeout` has failed. So a request that is refused while probing is refused for a
//! bounded time, whatever becomes of the probes. And probing itself fails when a probe comes back without an answer
//! after as long, not counting the time in which none was out: callers who give up early would else be let in, one after
//! the other, for ever. Time is an argument; nothing happens between calls.

use std::mem::offset_of;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use crate::canary::SlowPolicy;
use crate::outcome::Outcome;
use crate::units::{Millionths, share_of_all};
use crate::window::{Counts, Window};

/// When a version counts as failing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)] // what each end of a request is held against lies together, and first
pub struct BreakerPolicy {
    /// Failures in a row that trip it. Answers to refused and abandoned requests neither count nor interrupt.
    pub failures: NonZeroU32,
    /// A share of fewer requests says nothing.
    pub(crate) of_at_least: NonZeroU32,
    /// The share of failures that trips it as well.
    pub(crate) failing: Option<Millionths>,
    /// And of slow answers.
    pub(crate) slow: Option<SlowPolicy>,
    /// How long it refuses after the first trip; doubles with every probing that fails, without jitter.
    pub open_for: Duration,
    /// The longest it refuses.
    pub max_open_for: Duration,
    /// Probes let in at once, and that must be served before everyone may enter.
    pub probes: NonZeroU32,
    /// A probe without an outcome for this long has failed.
    pub probe_timeout: Duration,
    /// How far back shares are counted.
    pub(crate) window: Duration,
}

impl Default for BreakerPolicy {
    /// 5 failures in a row, no shares; refuses for 10 s, at most 60 s; one probe, which has 10 s.
    fn default() -> Self {
        Self {
            failures: NonZeroU32::new(5).expect("5 is not 0"),
            open_for: Duration::from_secs(10),
            max_open_for: Duration::from_secs(60),
            probes: NonZeroU32::MIN,
            probe_timeout: Duration::from_secs(10),
            window: Duration::from_secs(10),
            of_at_least: NonZeroU32::new(20).expect("20 is not 0"),
            failing: None,
            slow: None,
        }
    }
}

/// A request refused because the version it picked is failing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the version is failing and refuses for {retry_after:?}")]
pub struct Tripped {
    /// The time until the state changes at the latest: the rest of the wait, or of the oldest probe's time.
    pub retry_after: Duration,
}

/// What a breaker does at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerState {
    /// Everyone may enter.
    Passing,
    /// Nobody may enter before the wait is over; then the next request is a probe.
    Tripped {
        /// The rest of the wait; zero when the next request becomes a probe.
        retry_after: Duration,
    },
    /// A few requests are let in to see whether the version has recovered.
    Probing,
}

/// What a breaker does and how its version fares, to be compared with another one's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) since: Since,
    /// So much goes wrong lately that chance may trip it.
    pub(crate) ails: bool,
}

impl Standing {
    /// Of a version that nobody has entered yet.
    pub(crate) const FRESH: Self = Self { since: Since::Passing(None), ails: false };
}

/// Since when a breaker does what it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Since {
    /// Everyone may enter since a probing was served; nothing: it has never tripped.
    Passing(Option<Instant>),
    /// Nobody but probes may: that request entered then whose end has tripped it, the last time.
    Tripped(Instant),
}

/// The right to enter once, which must come back with an outcome.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Permit {
    generation: u64,
    kind: Kind,
    entered: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Ordinary,
    Probe { ticket: u64 },
}

impl Permit {
    pub(crate) fn is_probe(&self) -> bool {
        matches!(self.kind, Kind::Probe { .. })
    }
}

/// The state of one version of one model.
#[derive(Clone, Debug)]
#[repr(C)] // what each request needs lies together, and first
pub(crate) struct Breaker {
    generation: u64,
    state: State,
    /// How those have ended who were let in as everyone was.
    lately: Window,
    policy: BreakerPolicy,
    /// Trips since it last passed; the wait doubles with each.
    trips: u32,
    /// When the loss of an engine was last counted.
    lost: Option<Instant>,
    since: Since,
}

/// How far back a version's requests say whether it ails.
const LATELY: Duration = Duration::from_secs(2);

/// A version ails where so many of its requests go wrong that chance trips its breaker once in `2^CHANCE` requests, or sooner.
const CHANCE: f64 = 15.0;

/// One loss of an engine takes many requests, which end one shortly after the other; the next engine takes longer to come up.
const LOSS: Duration = Duration::from_millis(500);

#[derive(Clone, Debug)]
enum State {
    Passing { failures: u32, window: Window },
    Tripped { until: Instant },
    Probing(Probes),
}

/// The slots of one probing: each is vacant, leased or served.
#[derive(Clone, Debug, Default)]
struct Probes {
    /// How long one was out, since the first or since one was served: until the last time that all were back,
    tried: Duration,
    /// and since when one is again.
    since: Option<Instant>,
    /// Oldest first; never longer than `policy.probes`.
    leases: Vec<Lease>,
    served: u32,
    next_ticket: u64,
}

#[derive(Clone, Debug)]
struct Lease {
    ticket: u64,
    entered: Instant,
    due: Instant,
}

impl Breaker {
    /// Of its bytes, those at its beginning that are needed for each request.
    pub(crate) const NEEDED: usize = offset_of!(Self, policy) + offset_of!(BreakerPolicy, open_for);

    pub(crate) fn new(policy: BreakerPolicy) -> Self {
        let since = Since::Passing(None);
        let lately = Window::new(LATELY);
        Self { policy, state: passing(&policy), generation: 0, trips: 0, lost: None, since, lately }
    }

    /// # Errors
    /// [`Tripped`] while the wait lasts and while every probe slot is taken.
    pub(crate) fn enter(&mut self, now: Instant) -> Result<Permit, Tripped> {
        self.catch_up(now);
        if let State::Tripped { until } = self.state {
            if now < until {
                return Err(Tripped { retry_after: until - now });
            }
            self.become_state(State::Probing(Probes::default()));
        }
        let kind = match &mut self.state {
            State::Passing { .. } => Kind::Ordinary,
            State::Probing(probes) => probes.lease(&self.policy, now)?,
            State::Tripped { .. } => unreachable!("left above"),
        };
        Ok(Permit { generation: self.generation, kind, entered: now })
    }

    pub(crate) fn settle(&mut self, permit: Permit, outcome: Outcome, now: Instant) {
        self.catch_up(now);
        if permit.generation != self.generation {
            return;
        }
        let outcome = self.judged(outcome, now);
        match (&mut self.state, permit.kind) {
            (State::Passing { failures, window }, Kind::Ordinary) => {
                match outcome {
                    Outcome::Served => *failures = 0,
                    Outcome::Failed | Outcome::Lost => *failures += 1,
                    Outcome::Refused | Outcome::Abandoned => {}
                }
                let in_a_row = *failures >= self.policy.failures.get();
                let wrong = self.policy.wrong(outcome, permit.entered, now);
                if let Some((failed, slow)) = wrong {
                    self.lately.count(failed, slow, now);
                }
                if in_a_row || self.policy.is_too_much(window, wrong, now) {
                    self.trip(permit.entered, now);
                }
            }
            (State::Probing(probes), Kind::Probe { ticket }) => {
                probes.give_back(ticket, now);
                let is_slow = self.policy.is_slow(permit.entered, now);
                match outcome {
                    // It would trip again over the next ones.
                    Outcome::Served if is_slow => self.trip(permit.entered, now),
                    Outcome::Served => {
                        probes.serve(now);
                        if probes.served >= self.policy.probes.get() {
                            (self.trips, self.since) = (0, Since::Passing(Some(now)));
                            self.become_state(passing(&self.policy));
                        }
                    }
                    Outcome::Failed | Outcome::Lost => self.trip(permit.entered, now),
                    Outcome::Refused | Outcome::Abandoned if probes.last(self.policy.probe_timeout, now) => {
                        self.trip(permit.entered, now);
                    }
                    Outcome::Refused | Outcome::Abandoned => {}
                }
            }
            (State::Passing { .. } | State::Tripped { .. } | State::Probing(_), _) => {
                unreachable!("a generation gives out one kind of permit, and none while tripped")
            }
        }
    }

    /// Each loss of an engine counts once against every version that it had requests of: one that causes them has nothing
    /// else between them, the others are answered as soon as the next engine is there.
    fn judged(&mut self, outcome: Outcome, now: Instant) -> Outcome {
        match outcome {
            Outcome::Lost if self.lost.is_some_and(|lost| now.saturating_duration_since(lost) < LOSS) => {
                Outcome::Refused
            }
            Outcome::Lost => {
                self.lost = Some(now);
                Outcome::Lost
            }
            Outcome::Served | Outcome::Refused | Outcome::Failed | Outcome::Abandoned => outcome,
        }
    }

    /// The permit was dropped: nobody will say how the request ended. Needs no time, because it changes no state; nor does
    /// it say how long the version was tried.
    pub(crate) fn abandon(&mut self, permit: Permit) {
        if let (State::Probing(probes), Kind::Probe { ticket }) = (&mut self.state, permit.kind)
            && permit.generation == self.generation
        {
            probes.forget(ticket);
        }
    }

    pub(crate) fn state(&mut self, now: Instant) -> BreakerState {
        self.catch_up(now);
        match self.state {
            State::Passing { .. } => BreakerState::Passing,
            State::Tripped { until } => {
                BreakerState::Tripped { retry_after: until.saturating_duration_since(now) }
            }
            State::Probing(_) => BreakerState::Probing,
        }
    }

    pub(crate) fn standing(&mut self, now: Instant) -> Standing {
        self.catch_up(now);
        Standing { since: self.since, ails: self.policy.may_be_tripped_by_chance(self.lately.counts(now)) }
    }

    /// Goes on under other settings, if what it has seen says as much under them; whether it does.
    pub(crate) fn follow(&mut self, policy: BreakerPolicy) -> bool {
        let goes_on = self.policy.counts_like(&policy);
        if goes_on {
            self.policy = policy;
        }
        goes_on
    }

    /// Whether forgetting this breaker would change nothing.
    pub(crate) fn is_fresh(&self) -> bool {
        let has_shares = self.policy.failing.is_some() || self.policy.slow.is_some();
        matches!(self.state, State::Passing { failures: 0, .. }) && !has_shares
    }

    /// A probe that is overdue failed at the moment it was due, whether or not anybody looked then.
    fn catch_up(&mut self, now: Instant) {
        if let State::Probing(probes) = &self.state
            && let Some(oldest) = probes.leases.first()
            && oldest.due <= now
        {
            let Lease { entered, due, .. } = *oldest;
            self.trip(entered, due);
        }
    }

    /// A request has tripped it that entered then.
    fn trip(&mut self, entered: Instant, at: Instant) {
        self.since = Since::Tripped(entered);
        let doublings = self.trips.min(31);
        let wait = self.policy.open_for.saturating_mul(1 << doublings).min(self.policy.max_open_for);
        self.trips = self.trips.saturating_add(1);
        self.become_state(State::Tripped { until: at + wait });
    }

    fn become_state(&mut self, state: State) {
        self.generation += 1;
        self.state = state;
    }
}

impl BreakerPolicy {
    /// Whether both come to the same from the same requests. How long a probe may take, which is the model's deadline
    /// unless the policy says otherwise, concerns only probes to come.
    pub(crate) fn counts_like(&self, other: &Self) -> bool {
        Self { probe_timeout: other.probe_timeout, ..*self } == *other
    }

    /// Whether a request that ended so has failed, and whether it was slow; nothing where that says nothing.
    fn wrong(&self, outcome: Outcome, entered: Instant, now: Instant) -> Option<(bool, bool)> {
        let is_slow = self.is_slow(entered, now);
        match outcome {
            Outcome::Failed | Outcome::Lost => Some((true, false)),
            Outcome::Served => Some((false, is_slow)),
            // What took so long and came to nothing was not answered in time.
            Outcome::Refused if is_slow => Some((false, true)),
            Outcome::Refused | Outcome::Abandoned => None,
        }
    }

    fn is_slow(&self, entered: Instant, now: Instant) -> bool {
        self.slow.is_some_and(|slow| now.saturating_duration_since(entered) > slow.over)
    }

    /// Counts how a request ended; whether too many fail or are slow.
    fn is_too_much(&self, window: &mut Window, wrong: Option<(bool, bool)>, now: Instant) -> bool {
        let Some((failed, slow)) = wrong.filter(|_| self.failing.is_some() || self.slow.is_some()) else {
            return false;
        };
        let counts = window.count(failed, slow, now);
        let is_above = |count: u32, share: Millionths| {
            u64::from(count) * 1_000_000 >= u64::from(counts.all) * u64::from(share)
        };
        counts.all >= self.of_at_least.get()
            && (self.failing.is_some_and(|share| is_above(counts.failed, share))
                || self.slow.is_some_and(|slow| is_above(counts.slow, slow.at_most)))
    }

    /// Whether a version of which this has become ails. One request that goes wrong is none too many.
    fn may_be_tripped_by_chance(&self, counts: Counts) -> bool {
        let Counts { all, failed, slow } = counts;
        let is_above = |count: u32, most: f64| f64::from(count) > 1.0 + most * f64::from(all);
        let in_a_row = self.failures.get();
        let of_share = |share| most_by_chance(share_of_all(share), self.of_at_least.get());
        is_above(failed, most_by_chance(1.0, in_a_row))
            || self.failing.is_some_and(|share| is_above(failed, of_share(share)))
            || self.slow.is_some_and(|policy| is_above(slow, of_share(policy.at_most)))
    }
}

/// How often each request may go wrong, so that a share of `of` of them that follow each other do so once in `2^CHANCE` times: there are
/// at most `2^(of · H(share))` ways to choose which, `H` being the entropy in bits, each of which has the chance `p^(of · share)`.
fn most_by_chance(share: f64, of: u32) -> f64 {
    let of = f64::from(of);
    let wrong = (share * of).ceil().clamp(1.0, of);
    let bits = |part: f64| if part > 0.0 { -part * part.log2() } else { 0.0 };
    let entropy = bits(wrong / of) + bits(1.0 - wrong / of);
    (-(CHANCE + of * entropy) / wrong).exp2()
}

fn passing(policy: &BreakerPolicy) -> State {
    State::Passing { failures: 0, window: Window::new(policy.window) }
}

impl Probes {
    fn lease(&mut self, policy: &BreakerPolicy, now: Instant) -> Result<Kind, Tripped> {
        let taken = self.leases.len() + self.served as usize;
        debug_assert!(taken <= policy.probes.get() as usize, "no more slots than probes");
        if let Some(oldest) = self.leases.first()
            && taken == policy.probes.get() as usize
        {
            return Err(Tripped { retry_after: oldest.due.saturating_duration_since(now) });
        }
        self.since.get_or_insert(now);
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.leases.push(Lease { ticket, entered: now, due: now + policy.probe_timeout });
        Ok(Kind::Probe { ticket })
    }

    /// Whether it has been tried for so long.
    fn last(&self, long: Duration, now: Instant) -> bool {
        self.tried + since(self.since, now) >= long
    }

    fn give_back(&mut self, ticket: u64, now: Instant) {
        let tried = self.tried + since(self.since, now);
        self.forget(ticket);
        if self.leases.is_empty() {
            self.tried = tried;
        }
    }

    fn forget(&mut self, ticket: u64) {
        self.leases.retain(|lease| lease.ticket != ticket);
        if self.leases.is_empty() {
            self.since = None;
        }
    }

    fn serve(&mut self, now: Instant) {
        self.served += 1;
        self.tried = Duration::ZERO;
        self.since = self.since.map(|_| now);
    }
}

fn since(began: Option<Instant>, now: Instant) -> Duration {
    began.map_or(Duration::ZERO, |began| now.saturating_duration_since(began))
}

#[cfg(test)]
mod tests;
