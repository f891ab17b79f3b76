//! The generic cell rate algorithm (ITU-T I.371), asked without being told to remember.
//!
//! A bucket's whole state is one time: its *level*, until when what it let through is paid for. governor computes
//! what one more arrival does to it, but stores the answer at once, and cannot take it back when another limit then
//! refuses the same request. So it is given a store that stores nothing: the level travels in and out as the key, and
//! the limiter decides later whether the new one counts. What is left is a function from a level and a time to the
//! next level or the wait.

use std::cell::Cell;
use std::hash::{Hash, Hasher};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::StateStore;
use governor::{Quota, RateLimiter};

use crate::units::Rate;

/// Nanoseconds since the ledger's first moment.
pub(crate) type Moment = Nanos;

/// The rule of one limit: one arrival per interval, and a burst of them after a pause.
#[derive(Debug)]
pub(crate) struct Gcra {
    limiter: RateLimiter<Level, Nowhere, Told, NoOpMiddleware<Moment>>,
    burst: NonZeroU32,
}

impl Gcra {
    pub(crate) fn new(rate: Rate, burst: NonZeroU32) -> Self {
        let quota = Quota::with_period(rate.interval()).expect("the interval of a rate is at least 1 ns");
        Self { limiter: RateLimiter::new(quota.allow_burst(burst), Nowhere, Told(AtomicU64::new(0))), burst }
    }

    /// What an arrival of so many units at `now` makes of a bucket at `level`; `None` is a bucket that nothing has arrived
    /// at, and so is every level that has passed.
    pub(crate) fn arrive(
        &self,
        level: Option<Moment>,
        units: NonZeroU32,
        now: Moment,
    ) -> Result<Moment, Refusal> {
        // governor multiplies before it looks, and what a client may send is enough for an overflow.
        if units > self.burst {
            return Err(Refusal::TooMuch);
        }
        self.limiter.clock().0.fetch_max(now.as_u64(), Ordering::Relaxed);
        let level = Level(Cell::new(level.map_or(0, Nanos::as_u64)));
        match self.limiter.check_key_n(&level, units) {
            Ok(Ok(())) => Ok(Nanos::new(level.0.get())),
            Ok(Err(until)) => Err(Refusal::TooSoon(until.wait_time_from(now))),
            Err(_) => Err(Refusal::TooMuch),
        }
    }

    /// When something last arrived, at whichever bucket.
    pub(crate) fn latest(&self) -> Moment {
        self.limiter.clock().0.load(Ordering::Relaxed).into()
    }
}

/// Why an arrival is not let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Until this time has passed, exactly.
    TooSoon(Duration),
    /// It is more than a bucket ever holds.
    TooMuch,
}

/// A clock that says what it was last told; it never goes back, as threads may bring their times in any order.
#[derive(Debug)]
struct Told(AtomicU64);

impl Clock for Told {
    type Instant = Moment;

    fn now(&self) -> Moment {
        self.0.load(Ordering::Relaxed).into()
    }
}

/// A level on its way through governor; 0 is none.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Level(Cell<u64>);

/// governor wants keys that could be filed; this one never is.
impl Hash for Level {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.get().hash(state);
    }
}

#[derive(Debug)]
struct Nowhere;

impl StateStore for Nowhere {
    type Key = Level;

    fn measure_and_replace<T, F, E>(&self, level: &Level, measure: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let before = level.0.get();
        let (answer, next) = measure((before > 0).then(|| before.into()))?;
        level.0.set(next.as_u64());
        Ok(answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: NonZeroU32 = NonZeroU32::MIN;

    fn ms(milliseconds: u64) -> Moment {
        Nanos::new(milliseconds * 1_000_000)
    }

    #[test]
    fn a_burst_then_one_per_interval() {
        let gcra = Gcra::new("10/s".parse().unwrap(), NonZeroU32::new(2).unwrap());
        let once = gcra.arrive(None, ONE, ms(1000)).unwrap();
        let twice = gcra.arrive(Some(once), ONE, ms(1000)).unwrap();
        assert_eq!(
            gcra.arrive(Some(twice), ONE, ms(1000)),
            Err(Refusal::TooSoon(Duration::from_millis(100)))
        );
        assert_eq!(gcra.arrive(Some(twice), ONE, ms(1099)), Err(Refusal::TooSoon(Duration::from_millis(1))));
        let third = gcra.arrive(Some(twice), ONE, ms(1100)).unwrap();
        assert_eq!(third, ms(1300), "three intervals are spent from the first arrival on");
    }

    #[test]
    fn more_than_a_burst_is_too_much_however_much_it_is() {
        let gcra = Gcra::new("10/m".parse().unwrap(), NonZeroU32::new(10).unwrap());
        for units in [11, u32::MAX] {
            assert_eq!(gcra.arrive(None, NonZeroU32::new(units).unwrap(), ms(0)), Err(Refusal::TooMuch));
        }
        assert_eq!(gcra.arrive(None, NonZeroU32::new(10).unwrap(), ms(0)), Ok(ms(60_000)));
    }

    /// A bucket that is kept as what it is: tokens that come back with time, in units of 1/`interval`. A million schedules of
    /// ten arrivals each, of one unit or several.
    #[test]
    fn it_decides_as_a_bucket_of_tokens_does() {
        let mut seed = 1_u64;
        let mut dice = |sides: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % sides
        };
        for schedule in 0..1_000_000 {
            let (interval, burst) = (1_000 * (1 + dice(20)), 1 + dice(5));
            let per_second = 1_000_000_000 / interval;
            let Ok(rate) = format!("{per_second}/s").parse::<crate::units::Rate>() else { continue };
            let interval = rate.interval().as_nanos() as u64;
            let gcra = Gcra::new(rate, NonZeroU32::new(burst as u32).unwrap());
            let full = burst * interval;
            let (mut level, mut tokens, mut now, mut looked) = (None, full, 1_000_000, 1_000_000);
            for _ in 0..10 {
                now += dice(2 * interval);
                tokens = full.min(tokens + now - looked);
                looked = now;
                let units = 1 + dice(burst + 1);
                let cost = units * interval;
                let answer = gcra.arrive(level, NonZeroU32::new(units as u32).unwrap(), Nanos::new(now));
                match answer {
                    Ok(next) => {
                        assert!(
                            tokens >= cost,
                            "schedule {schedule}: {units} units at {now}, {tokens} of {full}"
                        );
                        (tokens, level) = (tokens - cost, Some(next));
                    }
                    Err(Refusal::TooMuch) => assert!(units > burst, "schedule {schedule}"),
                    Err(Refusal::TooSoon(wait)) => {
                        let exact = Duration::from_nanos(cost - tokens);
                        assert_eq!(wait, exact, "schedule {schedule}: {units} units at {now}");
                    }
                }
            }
        }
    }

    #[test]
    fn measuring_spends_nothing() {
        let gcra = Gcra::new("1/h".parse().unwrap(), NonZeroU32::MIN);
        assert_eq!(gcra.arrive(None, ONE, ms(5)), gcra.arrive(None, ONE, ms(5)));
    }

    #[test]
    fn a_level_that_has_passed_is_no_level() {
        let gcra = Gcra::new("10/s".parse().unwrap(), NonZeroU32::new(2).unwrap());
        let level = gcra.arrive(None, ONE, ms(0)).unwrap();
        assert_eq!(gcra.arrive(Some(level), ONE, level), gcra.arrive(None, ONE, level));
    }
}
