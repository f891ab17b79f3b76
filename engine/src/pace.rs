//! Holds a load back while others are answered: after each of its runs it sleeps for a multiple of what the run took, so
//! that it has a quarter of a core at most, in pieces of one run. A kernel's low priority alone does not do that: cores
//! that are never idle make everybody who wakes up wait. Decides by whether lanes have begun anything since it last looked;
//! a load that nobody is answered beside is never delayed.

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
    seen: AtomicU64,
    runs: AtomicU64,
}

impl Pace {
    /// Beside lanes that have begun so many batches.
    pub(crate) fn beside(begun: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        let seen = AtomicU64::new(begun());
        Self { begun: Box::new(begun), seen, runs: AtomicU64::new(0) }
    }

    /// Beside nobody.
    pub fn alone() -> Self {
        Self::beside(|| 0)
    }

    /// Runs the model, says how long that took, and rests if anybody was answered meanwhile.
    pub(crate) fn run(
        &self,
        model: &dyn Model,
        inputs: &[Gathered<'_>],
    ) -> (Result<Vec<Output>, ModelError>, Duration) {
        let began = Instant::now();
        let outputs = model.run(inputs);
        let took = began.elapsed();
        self.runs.fetch_add(1, Ordering::Relaxed);
        if self.others_are_answered() {
            thread::sleep((REST * took).min(REST_MAX));
        }
        (outputs, took)
    }

    /// Whether lanes have begun anything since this was last asked.
    pub(crate) fn others_are_answered(&self) -> bool {
        let begun = (self.begun)();
        self.seen.swap(begun, Ordering::Relaxed) != begun
    }

    /// Runs that have ended: a load of which this stands still has hung.
    pub(crate) fn runs(&self) -> u64 {
        self.runs.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scripted::{Scripted, output_fp32, rows_spec};
    use std::sync::Arc;

    #[test]
    fn a_load_rests_only_beside_others() {
        let begun = Arc::new(AtomicU64::new(7));
        let lanes = Arc::clone(&begun);
        let pace = Pace::beside(move || lanes.load(Ordering::Relaxed));
        assert!(!pace.others_are_answered());
        begun.store(9, Ordering::Relaxed);
        assert!(pace.others_are_answered());
        assert!(!pace.others_are_answered(), "nothing has begun since");
    }

    #[test]
    fn a_rest_is_not_part_of_what_a_run_took() {
        let begun = AtomicU64::new(0);
        let pace = Pace::beside(move || begun.fetch_add(1, Ordering::Relaxed));
        let model = Scripted::new(rows_spec(&[], &[("y", 1)], 8), |_| {
            thread::sleep(Duration::from_millis(20));
            Ok(vec![output_fp32("y", &[1, 1], &[0.0])])
        });
        let began = Instant::now();
        let (outputs, took) = pace.run(&model, &[]);
        assert!(outputs.is_ok() && pace.runs() == 1);
        assert!(began.elapsed() >= (1 + REST) * took, "{took:?}");
    }
}
