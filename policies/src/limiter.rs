//! One rate limit: a bucket per caller, bounded in number, that never forgets a debt.
//!
//! A bucket whose level has passed is indistinguishable from one that never was, so only such buckets are dropped.
//! While every place is taken by a bucket that still owes, callers not yet known share one overflow bucket: a flood of
//! invented keys can slow down new callers, but it can neither grow the memory nor wash anybody's debt away. Who gets a
//! place owes what the overflow bucket does, because nobody remembers whose debt that is: else a caller could have a
//! burst there and another one of its own, again and again. So nobody ever has more than the limit says, under one key,
//! nor under invented ones more than the places and the overflow bucket give together.
//!
//! Asking and spending are two steps under one lock: [`Limiter::open`] locks, [`Bucket::arrive`] asks, and only
//! [`Bucket::spend`] and [`Bucket::reserve`] change a level; what was reserved may be given back, see `reservation.rs`.

mod callers;
#[cfg(test)]
mod oracle;
mod reservation;

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::attribute::{Attribute, Attributes};
use crate::gcra::{Gcra, Moment, Refusal};
use crate::ledger::Spent;
use crate::units::Rate;

use callers::{Caller, Callers, Number, Roll};
pub(crate) use reservation::Reservation;
use reservation::{Reservations, Spot};

/// A rate limit as the policy states it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitPolicy {
    /// Its name, unique in a snapshot.
    pub name: Arc<str>,
    /// What tells callers apart; those without it share one bucket. `None`: everyone shares one bucket.
    pub key: Option<Attribute>,
    /// The models it covers; `None` is every model.
    pub models: Option<BTreeSet<Arc<str>>>,
    /// What is counted.
    pub cost: Cost,
    /// How many a caller may have in the long run.
    pub rate: Rate,
    /// How many may come at once after a pause.
    pub burst: NonZeroU32,
    /// How many callers are told apart at a time.
    pub max_keys: NonZeroU32,
}

impl LimitPolicy {
    /// Whether requests to `model` must pass this limit.
    pub fn covers(&self, model: &str) -> bool {
        self.models.as_ref().is_none_or(|models| models.contains(model))
    }
}

/// What a limit counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cost {
    /// Requests.
    #[default]
    Requests,
    /// Rows that are asked about.
    Rows,
    /// Bytes of bodies.
    Bytes,
}

/// What is left to a caller at one limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quota {
    /// Which.
    pub limit: Arc<LimitPolicy>,
    /// Units that would be let through at once.
    pub remaining: u32,
    /// Until all of them are there again, if nothing comes.
    pub reset: Duration,
}

impl Quota {
    /// Whether no larger a part of it is left than of the other one; units of several limits are not alike.
    pub(crate) fn is_as_near_as(&self, other: &Self) -> bool {
        let part = |one: &Self, of: &Self| u64::from(one.remaining) * u64::from(of.limit.burst.get());
        part(self, other) <= part(other, self)
    }

    /// As the field `RateLimit` has it (draft-ietf-httpapi-ratelimit-headers-10); seconds are rounded up.
    pub fn field(&self) -> String {
        format!("{};r={};t={}", quoted(&self.limit.name), self.remaining, seconds(self.reset))
    }
}

impl LimitPolicy {
    /// As the field `RateLimit-Policy` has it: a full burst, and the time in which it comes back.
    pub fn field(&self) -> String {
        let window = self.rate.interval().saturating_mul(self.burst.get());
        format!("{};q={};w={}", quoted(&self.name), self.burst, seconds(window))
    }
}

fn seconds(time: Duration) -> u128 {
    time.as_nanos().div_ceil(1_000_000_000)
}

/// A string of RFC 9651, which is ASCII that can be seen, and spaces.
fn quoted(name: &str) -> String {
    let mut text = String::from('"');
    for letter in name.chars() {
        match letter {
            '"' | '\\' => text.extend(['\\', letter]),
            ' '..='~' => text.push(letter),
            _ => text.push('_'),
        }
    }
    text.push('"');
    text
}

/// A request that came too early.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("limit `{limit}` lets the next request through in {retry_after:?}")]
pub struct Limited {
    /// The limit that asks for the longest wait.
    pub limit: Arc<str>,
    /// The exact time until every limit would let this caller through, if nothing else comes meanwhile.
    pub retry_after: Duration,
    /// Units of the request, if they are more than may ever come at once.
    pub never: Option<NonZeroU32>,
    /// What is left there.
    pub quota: Quota,
}

/// The levels of one limit.
#[derive(Debug)]
pub(crate) struct Limiter {
    pub(crate) policy: Arc<LimitPolicy>,
    gcra: Gcra,
    callers: Callers,
    buckets: Mutex<Buckets>,
}

/// What a request locks.
#[derive(Debug, Default)]
struct Buckets {
    roll: Roll,
    /// Of callers that are not told apart, because there is no key or no room.
    shared: Option<Moment>,
    reservations: Reservations,
}

impl Limiter {
    /// Places of callers that are looked at: enough for all that a policy tells apart unless it says otherwise.
    const PLACES_SEEN: usize = 1 << 18;

    pub(crate) fn new(policy: Arc<LimitPolicy>) -> Self {
        let gcra = Gcra::new(policy.rate, policy.burst);
        Self { policy, gcra, callers: Callers::new(), buckets: Mutex::default() }
    }

    /// Locks the limit and finds the caller's bucket. Callers lock limits in the order of their names.
    pub(crate) fn open(&self, caller: &impl Attributes, now: Moment) -> Bucket<'_> {
        let number = self.number(caller);
        self.find(self.lock(), number, now)
    }

    /// By which a caller is known here. Computed before the lock is taken: a key is as long as its caller likes.
    fn number(&self, caller: &impl Attributes) -> Option<Number> {
        self.policy.key.as_ref().map(|key| self.callers.number(&key.of(caller).unwrap_or_default()))
    }

    /// The same for a caller who has a reservation here: the bucket of that, for as long as it owes anything.
    pub(crate) fn open_again(
        &self,
        reservation: &Reservation,
        caller: &impl Attributes,
        now: Moment,
    ) -> Bucket<'_> {
        let number = self.number(caller);
        let buckets = self.lock();
        let is_open = buckets.reservations.end(reservation.spot, reservation.ticket).is_some();
        let has_place = || number.is_some_and(|number| self.callers.find(&buckets.roll, number).is_some());
        match reservation.spot {
            Spot::Own(number) if is_open => self.find(buckets, Some(number), now),
            // Who has a place by now, and owes there what is reserved, has no other bucket beside it.
            Spot::Shared if is_open && !has_place() => {
                let level = buckets.shared;
                Bucket { limiter: self, buckets, place: Place::Shared, level, now }
            }
            Spot::Own(_) | Spot::Shared => self.find(buckets, number, now),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Buckets> {
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find<'a>(
        &'a self,
        mut buckets: MutexGuard<'a, Buckets>,
        number: Option<Number>,
        now: Moment,
    ) -> Bucket<'a> {
        let known = number.and_then(|number| self.callers.find(&buckets.roll, number));
        let (place, level) = match (known, number) {
            (Some(caller), Some(number)) => (Place::Own(caller, number), Some(caller.level())),
            // What it may have spent when there was no room for it.
            (None, Some(number)) if self.make_room(&mut buckets, now) => (Place::New(number), buckets.shared),
            (_, Some(_) | None) => (Place::Shared, buckets.shared),
        };
        Bucket { limiter: self, buckets, place, level, now }
    }

    /// Makes a reservation smaller by so many units, as far as time has not paid for them.
    fn take_back(&self, reservation: &Reservation, units: u32) {
        let mut buckets = self.lock();
        let unpaid = self.unpaid(&buckets, reservation, units);
        if unpaid == 0 {
            return;
        }
        let without = |level: Moment| Moment::new(level.as_u64() - unpaid);
        match reservation.spot {
            Spot::Own(number) => {
                if let Some(caller) = self.callers.find(&buckets.roll, number) {
                    caller.set_level(&mut buckets.roll, without(caller.level()));
                }
            }
            Spot::Shared => buckets.shared = buckets.shared.map(without),
        }
        buckets.reservations.take_out(reservation.spot, reservation.ticket, unpaid);
    }

    /// What is spent of a reservation stays so.
    fn forget(&self, reservation: &Reservation) {
        self.lock().reservations.close(reservation.spot, reservation.ticket);
    }

    /// So many units of a reservation, as far as time has not paid for them: nanoseconds.
    fn unpaid(&self, buckets: &Buckets, reservation: &Reservation, units: u32) -> u64 {
        let (end, now) = (buckets.reservations.end(reservation.spot, reservation.ticket), self.gcra.latest());
        let left = end.map_or(0, |end| end.as_u64().saturating_sub(now.as_u64()));
        left.min(self.time_of(units))
    }

    fn time_of(&self, units: u32) -> u64 {
        (self.policy.rate.interval().as_nanos() as u64).saturating_mul(units.into())
    }

    /// What is left to a caller whose bucket is at this level.
    pub(crate) fn quota(&self, level: Option<Moment>, now: Moment) -> Quota {
        let (remaining, reset) = self.left(level, now);
        Quota { limit: Arc::clone(&self.policy), remaining, reset }
    }

    /// Units that a bucket at this level would let through at once, and until when it is full again.
    fn left(&self, level: Option<Moment>, now: Moment) -> (u32, Duration) {
        let owed = level.map_or(0, |level| level.as_u64().saturating_sub(now.as_u64()));
        let interval = self.policy.rate.interval().as_nanos().max(1) as u64;
        let used = u32::try_from(owed.div_ceil(interval)).unwrap_or(u32::MAX);
        (self.policy.burst.get().saturating_sub(used), Duration::from_nanos(owed))
    }

    /// How much is spent, nearly: a caller who comes to another place meanwhile may be missed, or seen twice.
    pub(crate) fn spent(&self, now: Moment) -> Spent {
        let burst = self.policy.burst.get();
        let mut spent = Spent { of: burst, ..Spent::default() };
        let (mut highest, nothing_left) = (None, self.time_of(burst - 1));
        let mut see = |level: Moment| {
            let owed = level.as_u64().saturating_sub(now.as_u64());
            spent.callers += u64::from(owed > 0);
            spent.exhausted += u64::from(owed > nothing_left);
            highest = highest.max(Some(level));
        };
        let (shared, further) = {
            let buckets = self.lock();
            (buckets.shared, buckets.roll.further())
        };
        shared.into_iter().for_each(&mut see);
        self.callers.levels(further).take(Self::PLACES_SEEN).for_each(see);
        spent.most = burst - self.left(highest, now).0;
        spent
    }

    #[cfg(test)]
    pub(crate) fn has_no_reservations(&self) -> bool {
        self.lock().reservations.is_empty()
    }

    #[cfg(test)]
    fn remembered(&self) -> u32 {
        self.lock().roll.remembered()
    }

    /// Looks at the next few buckets and drops those that owe nothing any more; tells whether one more fits. A few per
    /// new key are enough to keep up with arrivals, and no request ever waits for a sweep of them all.
    fn make_room(&self, buckets: &mut Buckets, now: Moment) -> bool {
        const LOOKS: usize = 4;
        for number in self.callers.rested(&mut buckets.roll, LOOKS, now) {
            self.callers.forget(&mut buckets.roll, number);
            if !buckets.reservations.is_empty() {
                buckets.reservations.close_all(Spot::Own(number));
            }
        }
        buckets.roll.remembered() < self.policy.max_keys.get()
    }

    /// Has the processor fetch the bucket of a caller.
    pub(crate) fn prefetch(&self, caller: &impl Attributes) {
        self.number(caller).into_iter().for_each(|number| self.callers.prefetch(number));
    }
}

/// One caller's bucket, locked.
pub(crate) struct Bucket<'a> {
    limiter: &'a Limiter,
    buckets: MutexGuard<'a, Buckets>,
    place: Place<'a>,
    level: Option<Moment>,
    now: Moment,
}

#[derive(Clone, Copy)]
enum Place<'a> {
    Own(&'a Caller, Number),
    New(Number),
    Shared,
}

impl Bucket<'_> {
    /// The level after so many more units, which are not yet spent.
    pub(crate) fn arrive(&self, units: NonZeroU32) -> Result<Moment, Refusal> {
        self.limiter.gcra.arrive(self.level, units, self.now)
    }

    /// The level once a request has so many units in all, and how many these are more than it has `reserved`. Whoever is
    /// refused has nothing reserved any more, and waits the longer for what time has paid of that.
    pub(crate) fn grow(
        &self,
        reserved: &Reservation,
        units: NonZeroU32,
    ) -> Result<Option<(Moment, NonZeroU32)>, Refusal> {
        if units > self.limiter.policy.burst {
            return Err(Refusal::TooMuch);
        }
        let Some(more) = NonZeroU32::new(units.get().saturating_sub(reserved.units.get())) else {
            return Ok(None);
        };
        let grown = self.arrive(more).map_err(|refusal| match refusal {
            Refusal::TooSoon(wait) => {
                let paid = self.limiter.time_of(reserved.units.get()) - self.unpaid(reserved);
                Refusal::TooSoon(wait + Duration::from_nanos(paid))
            }
            Refusal::TooMuch => Refusal::TooMuch,
        });
        grown.map(|level| Some((level, more)))
    }

    /// As it is now.
    pub(crate) fn level(&self) -> Option<Moment> {
        self.level
    }

    /// As it is once this is given back.
    pub(crate) fn level_without(&self, reserved: &Reservation) -> Option<Moment> {
        self.level.map(|level| Moment::new(level.as_u64() - self.unpaid(reserved)))
    }

    /// What of it time has not paid for; nothing in another bucket than this.
    fn unpaid(&self, reserved: &Reservation) -> u64 {
        let is_here = match self.place {
            Place::Own(_, number) => reserved.spot == Spot::Own(number),
            Place::Shared => reserved.spot == Spot::Shared,
            Place::New(_) => false,
        };
        if is_here { self.limiter.unpaid(&self.buckets, reserved, reserved.units.get()) } else { 0 }
    }

    /// Makes the answer of [`Bucket::arrive`] the level, and unlocks.
    pub(crate) fn spend(mut self, level: Moment) {
        self.become_level(level);
    }

    /// The same for units that may be given back.
    pub(crate) fn reserve(mut self, limiter: &Arc<Limiter>, level: Moment, units: NonZeroU32) -> Reservation {
        debug_assert!(std::ptr::eq(self.limiter, &raw const **limiter), "it is a bucket of this limit");
        let spot = self.become_level(level);
        let ticket = self.buckets.reservations.open(spot, level);
        Reservation::new(Arc::clone(limiter), (spot, ticket), units)
    }

    fn become_level(&mut self, level: Moment) -> Spot {
        let roll = &mut self.buckets.roll;
        match self.place {
            Place::Own(caller, number) => {
                caller.set_level(roll, level);
                Spot::Own(number)
            }
            Place::New(number) => {
                self.limiter.callers.remember(roll, number, level);
                Spot::Own(number)
            }
            Place::Shared => {
                self.buckets.shared = Some(level);
                Spot::Shared
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use governor::nanos::Nanos;

    use super::*;

    fn limiter(rate: &str, burst: u32, max_keys: u32) -> Limiter {
        Limiter::new(Arc::new(LimitPolicy {
            name: "per-user".into(),
            key: Some(Attribute::Header("user".into())),
            models: None,
            cost: Cost::Requests,
            rate: rate.parse().unwrap(),
            burst: NonZeroU32::new(burst).unwrap(),
            max_keys: NonZeroU32::new(max_keys).unwrap(),
        }))
    }

    fn ask(limiter: &Limiter, user: &str, at_ms: u64) -> Result<(), u64> {
        let caller = [("user", user)];
        let bucket = limiter.open(&caller, Nanos::new(at_ms * 1_000_000));
        let level = bucket.arrive(NonZeroU32::MIN).map_err(|refusal| match refusal {
            Refusal::TooSoon(wait) => wait.as_millis() as u64,
            Refusal::TooMuch => u64::MAX,
        })?;
        bucket.spend(level);
        Ok(())
    }

    #[test]
    fn callers_without_the_key_share_one_bucket() {
        let limiter = limiter("10/s", 1, 100);
        assert_eq!(ask(&limiter, "", 0), Ok(()));
        let nobody = limiter.open(&[("cookie:user", "ana")], Nanos::new(0)).arrive(NonZeroU32::MIN);
        assert_eq!(nobody, Err(Refusal::TooSoon(Duration::from_millis(100))));
        assert_eq!(ask(&limiter, "ana", 0), Ok(()));
    }

    #[test]
    fn asking_without_spending_leaves_no_trace() {
        let limiter = limiter("1/h", 1, 100);
        assert!(limiter.open(&[("user", "ana")], Nanos::new(0)).arrive(NonZeroU32::MIN).is_ok());
        assert_eq!(limiter.remembered(), 0);
        assert_eq!(ask(&limiter, "ana", 0), Ok(()));
    }

    #[test]
    fn when_all_places_owe_new_callers_share_the_overflow_bucket() {
        let limiter = limiter("10/s", 1, 2);
        assert_eq!(ask(&limiter, "ana", 0), Ok(()));
        assert_eq!(ask(&limiter, "ben", 0), Ok(()));
        assert_eq!(ask(&limiter, "eve-1", 10), Ok(()), "the overflow bucket was empty");
        assert_eq!(ask(&limiter, "eve-2", 10), Err(100), "and is shared by all invented names");
        assert_eq!(ask(&limiter, "ana", 20), Err(80), "a flood of new names does not refill a known bucket");
        assert_eq!(limiter.remembered(), 2);
    }

    #[test]
    fn a_rested_bucket_gives_its_place_to_a_new_caller() {
        let limiter = limiter("10/s", 1, 2);
        assert_eq!(ask(&limiter, "ana", 0), Ok(()));
        assert_eq!(ask(&limiter, "ben", 50), Ok(()));
        assert_eq!(ask(&limiter, "eve", 100), Ok(()), "ana owes nothing since 100 ms");
        assert_eq!(ask(&limiter, "ben", 100), Err(50), "ben still did");
        assert_eq!(limiter.remembered(), 2);
    }

    #[test]
    fn callers_with_long_keys_are_told_apart() {
        let limiter = limiter("10/s", 1, 100);
        let token = |end: char| format!("{}{end}", "a".repeat(8000));
        for key in ["a".repeat(65), token('b'), token('c')] {
            assert_eq!((ask(&limiter, &key, 0), ask(&limiter, &key, 0)), (Ok(()), Err(100)));
        }
        assert_eq!(limiter.remembered(), 3);
    }
}
