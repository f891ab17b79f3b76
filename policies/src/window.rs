//! How requests ended in the last while, counted exactly in ten buckets of time. An average that fades would let a
//! burst of failures weigh less than it does. Requests count in 64 bytes; the buckets lie elsewhere, and are looked at once for each of
//! them.

use std::time::{Duration, Instant};

const BUCKETS: usize = 10;

/// What is counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) all: u32,
    pub(crate) failed: u32,
    pub(crate) slow: u32,
}

impl Counts {
    fn plus(self, other: Self) -> Self {
        Self {
            all: self.all.saturating_add(other.all),
            failed: self.failed.saturating_add(other.failed),
            slow: self.slow.saturating_add(other.slow),
        }
    }
}

/// Counts of the last nine to ten tenths of a time.
#[derive(Clone, Debug)]
pub(crate) struct Window {
    /// When the newest bucket began.
    began: Option<Instant>,
    /// Of one bucket.
    width: Duration,
    newest: Counts,
    /// What the others add up to.
    older: Counts,
    past: Box<Past>,
}

#[derive(Clone, Debug, Default)]
struct Past {
    /// Which bucket is the newest; what is in it is out of date.
    at: usize,
    buckets: [Counts; BUCKETS],
}

impl Window {
    pub(crate) fn new(length: Duration) -> Self {
        let width = (length / BUCKETS as u32).max(Duration::from_nanos(1));
        let (newest, older, past) = Default::default();
        Self { began: None, width, newest, older, past }
    }

    /// Counts one more; what all add up to.
    pub(crate) fn count(&mut self, failed: bool, slow: bool, now: Instant) -> Counts {
        self.turn_to(now);
        self.newest = self.newest.plus(Counts { all: 1, failed: failed.into(), slow: slow.into() });
        self.older.plus(self.newest)
    }

    /// What all add up to.
    pub(crate) fn counts(&mut self, now: Instant) -> Counts {
        self.turn_to(now);
        self.older.plus(self.newest)
    }

    fn turn_to(&mut self, now: Instant) {
        let began = *self.began.get_or_insert(now);
        let passed = now.saturating_duration_since(began);
        if passed < self.width {
            return; // without a division
        }
        let turns = passed.as_nanos() / self.width.as_nanos();
        let Past { at, buckets } = &mut *self.past;
        buckets[*at] = self.newest;
        for _ in 0..turns.min(BUCKETS as u128) {
            *at = (*at + 1) % BUCKETS;
            buckets[*at] = Counts::default();
        }
        self.newest = Counts::default();
        self.older = buckets.iter().copied().fold(Counts::default(), Counts::plus);
        let rest = passed.as_nanos() % self.width.as_nanos();
        self.began = now.checked_sub(Duration::from_nanos(u64::try_from(rest).unwrap_or(0)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_older_than_the_window_does_not_count() {
        let (mut window, start) = (Window::new(Duration::from_secs(10)), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        let mut count = |failed, slow, at| {
            let counts = window.count(failed, slow, at);
            assert_eq!(window.counts(at), counts);
            counts
        };
        for ms in (0..10_000).step_by(100) {
            count(true, false, at(ms));
        }
        assert_eq!(count(false, true, at(9_999)), Counts { all: 101, failed: 100, slow: 1 });
        assert_eq!(count(false, false, at(10_000)), Counts { all: 92, failed: 90, slow: 1 });
        assert_eq!(count(false, false, at(18_999)), Counts { all: 13, failed: 10, slow: 1 });
        assert_eq!(count(false, false, at(19_000)), Counts { all: 3, failed: 0, slow: 0 });
        assert_eq!(count(true, false, at(1_000_000)), Counts { all: 1, failed: 1, slow: 0 });
        assert_eq!(count(true, false, at(0)).all, 2, "a clock that goes back harms nobody");
    }

    #[test]
    fn what_each_request_needs_is_64_bytes() {
        assert_eq!(size_of::<Window>(), 64);
    }
}
