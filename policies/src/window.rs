//! How requests ended in the last while, counted exactly in ten buckets of time. An average that fades would let a
//! burst of failures weigh less than it does.

use std::time::{Duration, Instant};

const BUCKETS: usize = 10;

/// What is counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) all: u32,
    pub(crate) failed: u32,
    pub(crate) slow: u32,
}

/// Counts of the last nine to ten tenths of a time.
#[derive(Clone, Debug)]
pub(crate) struct Window {
    /// Of one bucket.
    width: Duration,
    /// When the newest bucket began.
    began: Option<Instant>,
    newest: usize,
    buckets: [Counts; BUCKETS],
}

impl Window {
    pub(crate) fn new(length: Duration) -> Self {
        let width = (length / BUCKETS as u32).max(Duration::from_nanos(1));
        Self { width, began: None, newest: 0, buckets: [Counts::default(); BUCKETS] }
    }

    /// Counts one more.
    pub(crate) fn count(&mut self, failed: bool, slow: bool, now: Instant) {
        self.turn_to(now);
        let newest = &mut self.buckets[self.newest];
        newest.all = newest.all.saturating_add(1);
        newest.failed = newest.failed.saturating_add(failed.into());
        newest.slow = newest.slow.saturating_add(slow.into());
    }

    /// What all add up to.
    pub(crate) fn counts(&mut self, now: Instant) -> Counts {
        self.turn_to(now);
        let add = |sum: Counts, bucket: &Counts| Counts {
            all: sum.all.saturating_add(bucket.all),
            failed: sum.failed.saturating_add(bucket.failed),
            slow: sum.slow.saturating_add(bucket.slow),
        };
        self.buckets.iter().fold(Counts::default(), add)
    }

    fn turn_to(&mut self, now: Instant) {
        let began = *self.began.get_or_insert(now);
        let passed = now.saturating_duration_since(began);
        if passed < self.width {
            return; // nearly always, and without a division
        }
        let turns = passed.as_nanos() / self.width.as_nanos();
        for _ in 0..turns.min(BUCKETS as u128) {
            self.newest = (self.newest + 1) % BUCKETS;
            self.buckets[self.newest] = Counts::default();
        }
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
            window.count(failed, slow, at);
            window.counts(at)
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
}
