//! Holds a load back while others are answered: after each of its runs it sleeps for a multiple of what the run took, so
//! that its runs have about a quarter of a core, in pieces of one run; what happens between runs, such as compiling, is not
//! held back. A kernel's low priority alone does not do that: cores that are never idle make everybody who wakes up wait.
//! Decides by whether lanes have begun anything since it last looked; a load that nobody is answered beside is never delayed.

use crate::model::{Gathered, Model, ModelError, Output};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// So many times what a run took.
const REST: u32 = 3;

/// One rest is no longer than this.
const REST_MAX: Duration = Duration::from_millis(100);

/// How fast a load goes on; shared by its threads, and by who watches it.
pub struct Pace {
    /// Batches that lanes have begun.
    begun: Box<dyn Fn() -> u64 + Send + Sync>,
    at_first: u64,
    seen: AtomicU64,
    runs: AtomicU64,
    now: fn() -> Instant,
}

impl Pace {
    /// Beside lanes that have begun so many batches.
    pub(crate) fn beside(begun: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        let at_first = begun();
        let seen = AtomicU64::new(at_first);
        Self { begun: Box::new(begun), at_first, seen, runs: AtomicU64::new(0), now: Instant::now }
    }

    /// Beside nobody.
    pub fn alone() -> Self {
        Self::beside(|| 0)
    }

    /// Beside nobody, in a world in which time only passes where a test says so.
    #[cfg(test)]
    pub(crate) fn in_a_world() -> Self {
        Self { now: world::now, ..Self::alone() }
    }

    /// Runs the model, says how long that took, and rests if anybody was answered meanwhile.
    pub(crate) fn run(
        &self,
        model: &dyn Model,
        inputs: &[Gathered<'_>],
    ) -> (Result<Vec<Output>, ModelError>, Duration) {
        let began = (self.now)();
        let outputs = model.run(inputs);
        let took = (self.now)() - began;
        self.runs.fetch_add(1, Ordering::Relaxed);
        let begun = (self.begun)();
        if self.seen.swap(begun, Ordering::Relaxed) != begun {
            thread::sleep((REST * took).min(REST_MAX));
        }
        (outputs, took)
    }

    /// Whether lanes have begun anything since the load began.
    pub(crate) fn others_are_answered(&self) -> bool {
        (self.begun)() != self.at_first
    }

    /// Runs that have ended: a load of which this stands still has hung.
    pub(crate) fn runs(&self) -> u64 {
        self.runs.load(Ordering::Relaxed)
    }
}

/// A time of each thread's own: what runs beside another takes no longer for it.
#[cfg(test)]
pub(crate) mod world {
    use super::*;
    use std::cell::Cell;

    thread_local!(static NOW: Cell<Instant> = Cell::new(Instant::now()));

    pub(super) fn now() -> Instant {
        NOW.get()
    }

    pub(crate) fn advance(time: Duration) {
        NOW.set(NOW.get() + time);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scripted::{Scripted, output_fp32, rows_spec};
    use std::sync::Arc;

    #[test]
    fn a_load_rests_only_beside_others_and_a_rest_is_not_part_of_what_a_run_took() {
        let begun = Arc::new(AtomicU64::new(7));
        let lanes = Arc::clone(&begun);
        let pace = Pace::beside(move || lanes.load(Ordering::Relaxed));
        let model = Scripted::new(rows_spec(&[], &[("y", 1)], 8), |_| {
            thread::sleep(Duration::from_millis(20));
            Ok(vec![output_fp32("y", &[1, 1], &[0.0])])
        });
        let rests = || {
            let began = Instant::now();
            let (outputs, took) = pace.run(&model, &[]);
            assert!(outputs.is_ok());
            began.elapsed() >= (1 + REST) * took
        };
        assert!(!rests() && !pace.others_are_answered());
        begun.store(9, Ordering::Relaxed);
        assert!(rests() && pace.others_are_answered());
        assert!(!rests(), "nothing has begun since");
        assert!(pace.others_are_answered(), "since the load began something has");
        assert_eq!(pace.runs(), 3);
    }
}
