//! How long it takes until another engine is started.

use std::time::Duration;

/// Pauses between starts: short at first, doubling while engines keep dying young.
#[derive(Debug)]
pub(super) struct Pause {
    next: Duration,
}

impl Pause {
    const SHORTEST: Duration = Duration::from_millis(100);
    const LONGEST: Duration = Duration::from_secs(10);
    /// An engine that lived this long did not die of its start.
    const HEALTHY: Duration = Duration::from_secs(30);

    pub(super) fn new() -> Self {
        Self { next: Self::SHORTEST }
    }

    pub(super) fn after(&mut self, lived: Duration) -> Duration {
        if lived >= Self::HEALTHY {
            self.next = Self::SHORTEST;
        }
        let pause = self.next;
        self.next = (self.next * 2).min(Self::LONGEST);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_while_engines_die_young_and_shrink_after_a_long_life() {
        let mut pause = Pause::new();
        let young = Duration::from_secs(1);
        let pauses: Vec<u128> = (0..9).map(|_| pause.after(young).as_millis()).collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
        assert_eq!(pause.after(Pause::HEALTHY), Pause::SHORTEST);
    }
}
