//! One rate limit: a bucket per caller, bounded in number, that never forgets a debt.
//!
//! A bucket whose level has passed is indistinguishable from one that never was, so only such buckets are dropped.
//! While every place is taken by a bucket that still owes, callers not yet known share one overflow bucket: a flood of
//! invented keys can slow down new callers, but it can neither grow the memory nor wash anybody's debt away. (A caller
//! who moves from the overflow bucket to a place of its own starts fresh, as it would under another invented key.)
//!
//! Asking and spending are two steps under one lock: [`Limiter::open`] locks, [`Bucket::arrive`] asks, and only
//! [`Bucket::spend`] changes a level.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::attribute::{Attribute, Attributes};
use crate::gcra::{Gcra, Moment};
use crate::units::Rate;

/// A rate limit as the policy states it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitPolicy {
    /// Its name, unique in a snapshot.
    pub name: Arc<str>,
    /// What tells callers apart; those without it share one bucket. `None`: everyone shares one bucket.
    pub key: Option<Attribute>,
    /// The models it covers; `None` is every model.
    pub models: Option<BTreeSet<Arc<str>>>,
    /// How often a caller may come in the long run.
    pub rate: Rate,
    /// How many requests may come at once after a pause.
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

/// A request that came too early.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("limit `{limit}` lets the next request through in {retry_after:?}")]
pub struct Limited {
    /// The limit that asks for the longest wait.
    pub limit: Arc<str>,
    /// The exact time until every limit would let this caller through, if nothing else comes meanwhile.
    pub retry_after: Duration,
}

/// The levels of one limit.
#[derive(Debug)]
pub(crate) struct Limiter {
    pub(crate) policy: Arc<LimitPolicy>,
    gcra: Gcra,
    buckets: Mutex<Buckets>,
}

#[derive(Debug, Default)]
struct Buckets {
    levels: HashMap<Arc<str>, Moment>,
    /// The keys of `levels` in the order in which they are looked at for dropping.
    queue: VecDeque<Arc<str>>,
    overflow: Option<Moment>,
}

impl Limiter {
    /// A longer key is not remembered but shares the overflow bucket, so that memory is bounded in bytes as well.
    const LONGEST_KEY: usize = 256;

    pub(crate) fn new(policy: Arc<LimitPolicy>) -> Self {
        let gcra = Gcra::new(policy.rate, policy.burst);
        Self { policy, gcra, buckets: Mutex::default() }
    }

    /// Locks the limit and finds the caller's bucket. Callers lock limits in the order of their names.
    pub(crate) fn open<'a>(&'a self, caller: &'a impl Attributes, now: Moment) -> Bucket<'a> {
        let key = self.policy.key.as_ref().and_then(|key| key.of(caller)).unwrap_or("");
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let (place, level) = match buckets.levels.get(key).copied() {
            Some(level) => (Place::Own(key), Some(level)),
            None if key.len() <= Self::LONGEST_KEY && buckets.make_room(self.policy.max_keys, now) => {
                (Place::New(key), None)
            }
            None => (Place::Overflow, buckets.overflow),
        };
        Bucket { gcra: &self.gcra, buckets, place, level, now }
    }

    #[cfg(test)]
    fn remembered(&self) -> usize {
        self.buckets.lock().unwrap().levels.len()
    }
}

impl Buckets {
    /// Looks at the next few buckets and drops those that owe nothing any more; tells whether one more fits. A few per
    /// new key are enough to keep up with arrivals, and no request ever waits for a sweep of them all.
    fn make_room(&mut self, max_keys: NonZeroU32, now: Moment) -> bool {
        const LOOKS: usize = 4;
        for _ in 0..LOOKS.min(self.queue.len()) {
            let key = self.queue.pop_front().expect("the loop is no longer than the queue");
            if self.levels[&key] > now {
                self.queue.push_back(key);
            } else {
                self.levels.remove(&key);
            }
        }
        debug_assert_eq!(self.levels.len(), self.queue.len(), "every remembered key is in the queue once");
        self.levels.len() < max_keys.get() as usize
    }
}

/// One caller's bucket, locked.
pub(crate) struct Bucket<'a> {
    gcra: &'a Gcra,
    buckets: MutexGuard<'a, Buckets>,
    place: Place<'a>,
    level: Option<Moment>,
    now: Moment,
}

enum Place<'a> {
    Own(&'a str),
    New(&'a str),
    Overflow,
}

impl Bucket<'_> {
    /// The level after one more request, which is not yet spent.
    ///
    /// # Errors
    /// The exact time until this bucket would let one through.
    pub(crate) fn arrive(&self) -> Result<Moment, Duration> {
        self.gcra.arrive(self.level, self.now)
    }

    /// Makes the answer of [`Bucket::arrive`] the level, and unlocks.
    pub(crate) fn spend(mut self, level: Moment) {
        match self.place {
            Place::Own(key) => {
                *self.buckets.levels.get_mut(key).expect("found under this lock") = level;
            }
            Place::New(key) => {
                let key: Arc<str> = key.into();
                self.buckets.queue.push_back(Arc::clone(&key));
                self.buckets.levels.insert(key, level);
            }
            Place::Overflow => self.buckets.overflow = Some(level),
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
            rate: rate.parse().unwrap(),
            burst: NonZeroU32::new(burst).unwrap(),
            max_keys: NonZeroU32::new(max_keys).unwrap(),
        }))
    }

    fn ask(limiter: &Limiter, user: &str, at_ms: u64) -> Result<(), u64> {
        let caller = [("user", user)];
        let bucket = limiter.open(&caller, Nanos::new(at_ms * 1_000_000));
        let level = bucket.arrive().map_err(|wait| wait.as_millis() as u64)?;
        bucket.spend(level);
        Ok(())
    }

    #[test]
    fn callers_without_the_key_share_one_bucket() {
        let limiter = limiter("10/s", 1, 100);
        assert_eq!(ask(&limiter, "", 0), Ok(()));
        let nobody = limiter.open(&[("cookie:user", "ana")], Nanos::new(0)).arrive();
        assert_eq!(nobody, Err(Duration::from_millis(100)));
        assert_eq!(ask(&limiter, "ana", 0), Ok(()));
    }

    #[test]
    fn asking_without_spending_leaves_no_trace() {
        let limiter = limiter("1/h", 1, 100);
        assert!(limiter.open(&[("user", "ana")], Nanos::new(0)).arrive().is_ok());
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
    fn a_key_too_long_to_remember_is_still_limited() {
        let limiter = limiter("10/s", 1, 100);
        assert_eq!(ask(&limiter, &"a".repeat(257), 0), Ok(()));
        assert_eq!(ask(&limiter, &"b".repeat(8000), 0), Err(100));
        assert_eq!(limiter.remembered(), 0);
    }
}
