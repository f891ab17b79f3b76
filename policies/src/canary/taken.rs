//! How much of each user the baseline has taken in this window, and not refused: what it refuses a user weighs by how often that one
//! asks, see `gate/refusals.rs`. Without a lock: it hears of nearly every request.
//!
//! Users are counted in places, and not by name, so that there is no end of users who need room. Two that share a place are each
//! taken to have asked as often as both, which says less of what they were refused, and nothing about others.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};

/// A thousand users are most of them alone in theirs.
const PLACES: usize = 16_384;

/// Requests that the baseline has taken.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    /// Its number, which begins anew at some time: of a place that nobody comes to until then it is not known how old it is.
    window: AtomicU16,
    /// From the first key on: where nobody has one, there are none.
    places: OnceLock<Box<Places>>,
}

/// The window of the last request above, and so many in it below.
type Places = [AtomicU32; PLACES];

impl Taken {
    /// One of this key. What others count meanwhile may be lost, which is little.
    pub(crate) fn hear(&self, key: u64) {
        let places = self.places.get_or_init(|| Box::new([const { AtomicU32::new(0) }; PLACES]));
        let count = self.of(key).min(u32::from(u16::MAX) - 1) + 1;
        let window = u32::from(self.window.load(Ordering::Relaxed));
        places[place(key)].store(window << u16::BITS | count, Ordering::Relaxed);
    }

    /// At least so many of this key, if they are fewer than can be counted.
    pub(crate) fn of(&self, key: u64) -> u32 {
        let Some(places) = self.places.get() else { return 0 };
        let place = places[place(key)].load(Ordering::Relaxed);
        let is_of_window = place >> u16::BITS == u32::from(self.window.load(Ordering::Relaxed));
        if is_of_window { place & u32::from(u16::MAX) } else { 0 }
    }

    /// Another window begins.
    pub(crate) fn forget(&self) {
        self.window.fetch_add(1, Ordering::Relaxed);
    }
}

/// A key is a hash.
fn place(key: u64) -> usize {
    key as usize % PLACES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_key_is_known_at_least_how_often_it_came_in_this_window() {
        let taken = Taken::default();
        assert_eq!((taken.of(7), taken.places.get().is_some()), (0, false), "nobody has a key");
        for _ in 0..3 {
            (0..3 * PLACES as u64).for_each(|key| taken.hear(key));
            (0..1_000).for_each(|_| taken.hear(7));
            assert_eq!([7, 8, 7 + PLACES as u64].map(|key| taken.of(key)), [1_003, 3, 1_003]);
            (0..100_000).for_each(|_| taken.hear(8));
            assert_eq!([8, 7, 9].map(|key| taken.of(key)), [65_535, 1_003, 3], "and no other's is touched");
            taken.forget();
            assert_eq!([7, 8].map(|key| taken.of(key)), [0, 0]);
        }
    }
}
