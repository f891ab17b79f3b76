//! Which users of a split have been counted. Decides whether a user is new; forgets nobody.
//!
//! A user is a place, one of 131,072, that follows from its key. Who finds its place taken counts as known: so many users are never
//! told apart from each other, and more than there are places are not counted.
//!
//! ```text
//!   place     1 0110 0010 1100 1010        one of 16 lines, and within it the rest of the place as a mark
//!   line 10   │ 5677 │ 22 │ 7010 │ - │ …   32 marks, in the order in which they came, 5677 being that of this place (from 1 on); of more users, the place's bit
//! ```
//!
//! Most splits have few users, and a sidecar may have a thousand splits: a bit for each place would be 16 kB for each of them, of which
//! each request touches another part, and it is memory that a decision waits for. So the first users of a split are marks in a
//! kilobyte. A line that is full stays so, and whoever is not in it is one of the bits: nobody is ever in both.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};

use crate::prefetch::prefetch;

const PLACES: u64 = 1 << 17;
const LINES: u64 = 16;
const MARKS: usize = 32;

/// The users that were counted; threads may ask at the same time.
#[derive(Debug, Default)]
pub(super) struct Users {
    few: OnceLock<Box<[Line; LINES as usize]>>,
    many: OnceLock<Box<[AtomicU64]>>,
}

/// What is read for one user is one line of the cache.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Line([AtomicU16; MARKS]);

impl Users {
    /// Whether nobody was here before; somebody has been, from now on. `hash` is evenly distributed.
    pub(super) fn is_new(&self, hash: u64) -> bool {
        let place = hash % PLACES;
        let few = self.few.get_or_init(Box::default);
        few[(place % LINES) as usize]
            .takes((place / LINES) as u16 + 1)
            .unwrap_or_else(|| self.is_new_of_many(place))
    }

    /// What is read of it first, once it is asked.
    pub(super) fn prefetch(&self, hash: u64) {
        if let Some(few) = self.few.get() {
            prefetch(&few[(hash % PLACES % LINES) as usize]);
        }
    }

    fn is_new_of_many(&self, place: u64) -> bool {
        let bits = self.many.get_or_init(|| (0..PLACES / 64).map(|_| AtomicU64::new(0)).collect());
        let (word, bit) = (&bits[(place / 64) as usize], 1 << (place % 64));
        word.load(Ordering::Relaxed) & bit == 0 && word.fetch_or(bit, Ordering::Relaxed) & bit == 0
    }
}

impl Line {
    /// Whether the mark, which is not 0, was not there before and is now; nothing where it is not and there is no room.
    fn takes(&self, mark: u16) -> Option<bool> {
        for place in &self.0 {
            let taken = match place.load(Ordering::Relaxed) {
                // Another thread may be faster, with the same mark or another one.
                0 => match place.compare_exchange(0, mark, Ordering::Relaxed, Ordering::Relaxed) {
                    Ok(_) => return Some(true),
                    Err(taken) => taken,
                },
                taken => taken,
            };
            if taken == mark {
                return Some(false);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::Barrier;
    use std::thread;

    use super::*;
    use crate::tally::mixed;

    #[test]
    fn each_user_is_new_once_however_many_there_are() {
        let (users, mut known) = (Users::default(), HashSet::new());
        for hash in (0..20_000).map(mixed) {
            assert_eq!(users.is_new(hash), known.insert(hash % PLACES), "user {}", known.len());
            assert!(!users.is_new(hash), "user {}", known.len());
        }
        assert!(users.many.get().is_some(), "these are many");
        assert!(known.iter().all(|place| !users.is_new(*place)), "nobody is forgotten");
    }

    #[test]
    fn places_that_differ_in_little_are_told_apart() {
        let users = Users::default();
        assert_eq!((0..PLACES).filter(|place| users.is_new(*place)).count() as u64, PLACES);
        assert!(!(0..PLACES).any(|place| users.is_new(place)));
    }

    #[test]
    fn a_few_hundred_users_take_a_kilobyte() {
        let users = Users::default();
        assert!((0..256).map(mixed).all(|hash| users.is_new(hash)));
        assert!(users.many.get().is_none());
        assert_eq!(size_of::<[Line; LINES as usize]>(), 1024);
    }

    /// Two at the same place at the same moment are rare, so they meet in many splits.
    #[test]
    fn of_threads_that_count_the_same_users_one_is_told_that_each_is_new() {
        const SPLITS: u64 = 300;
        const USERS: u64 = 1_000;
        let splits: Vec<Users> = (0..SPLITS).map(|_| Users::default()).collect();
        let begin = Barrier::new(2);
        let count = || -> Vec<usize> {
            let count = |users: &Users| {
                begin.wait();
                (0..USERS).map(mixed).filter(|hash| users.is_new(*hash)).count()
            };
            splits.iter().map(count).collect()
        };
        let [one, other] = thread::scope(|scope| {
            let both = [scope.spawn(count), scope.spawn(count)];
            both.map(|thread| thread.join().expect("no panic"))
        });
        let places: HashSet<u64> = (0..USERS).map(|user| mixed(user) % PLACES).collect();
        assert!(one.iter().zip(&other).all(|(one, other)| one + other == places.len()), "{one:?} {other:?}");
    }
}
