//! Turns requests away before their bodies are read, while the engine is known to have too much work for them. The
//! engine's refusal says how long a request would have waited; nobody with as little time has a chance until enough
//! of that work is done. An estimate, so it errs on the side of asking again: the gate opens by itself, and the first
//! request through it finds out.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What waits may be cancelled, so the engine is asked again after this at the latest.
const SHUT_MAX: Duration = Duration::from_secs(1);

/// The gate of one model version.
#[derive(Debug)]
pub(crate) struct Gate {
    origin: Instant,
    /// Until when it is shut, µs since `origin`.
    until: AtomicU64,
    /// For requests that have at most so much time, µs.
    budget: AtomicU64,
}

impl Default for Gate {
    fn default() -> Self {
        Self { origin: Instant::now(), until: AtomicU64::new(0), budget: AtomicU64::new(0) }
    }
}

impl Gate {
    /// The engine has refused a request that had `budget` left, because it would have waited for `wait`.
    pub(crate) fn shut(&self, budget: Duration, wait: Duration, now: Instant) {
        let Some(over) = wait.checked_sub(budget).filter(|over| !over.is_zero()) else { return };
        self.budget.store(micros(budget), Ordering::Relaxed);
        let over = over.min(SHUT_MAX);
        self.until.store(micros(now.saturating_duration_since(self.origin) + over), Ordering::Relaxed);
    }

    /// How long a request that has `budget` should stay away; `None` if it may pass.
    pub(crate) fn check(&self, budget: Duration, now: Instant) -> Option<Duration> {
        let until = self.until.load(Ordering::Relaxed);
        let left = until.checked_sub(micros(now.saturating_duration_since(self.origin)))?;
        let hopeless = left > 0 && micros(budget) <= self.budget.load(Ordering::Relaxed);
        hopeless.then(|| Duration::from_micros(left))
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn it_is_shut_for_the_hasty_until_enough_work_is_done() {
        let gate = Gate::default();
        let now = gate.origin + ms(1000);
        assert_eq!(gate.check(ms(1), now), None);
        gate.shut(ms(200), ms(350), now);
        assert_eq!(gate.check(ms(200), now + ms(50)), Some(ms(100)));
        assert_eq!(gate.check(ms(20), now + ms(50)), Some(ms(100)));
        assert_eq!(gate.check(ms(201), now + ms(50)), None, "it has more time than the one that was refused");
        assert_eq!(gate.check(ms(200), now + ms(150)), None);
    }

    #[test]
    fn however_long_the_wait_it_is_asked_again_soon() {
        let gate = Gate::default();
        gate.shut(ms(100), ms(200_000), gate.origin);
        assert_eq!(gate.check(ms(100), gate.origin + SHUT_MAX), None);
    }

    #[test]
    fn a_wait_that_fits_shuts_nothing() {
        let gate = Gate::default();
        gate.shut(ms(200), ms(200), gate.origin);
        assert_eq!(gate.check(ms(1), gate.origin), None);
    }
}
