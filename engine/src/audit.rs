//! Looks again, now and then, at what has run: one request of a batch is run once more by itself, after its answer has left, and a
//! last time if it is answered otherwise; and a model that has passed for one that only reads what it keeps is asked whether it has
//! written to that. One lane at a time does so, within what its batch had claimed: what comes meanwhile is told how long that takes.
//! A trial sees made-up rows, this sees what callers send. Decides when it looks, whether a version's rows depend on each other after
//! all, and how its requests run from then on; the rest is the queue's.

use crate::batcher::{Grouping, Piece};
use crate::job::Job;
use crate::model::{Model, Output};
use crate::split::rows_of;
use crate::values::apart_of_largest;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// The first batches of a version are looked at,
const FIRST: u32 = 4;

/// and then one in so long.
pub(crate) const EVERY: Duration = Duration::from_secs(60);

/// A row that differs by less, of the largest number of its output, may have been computed in another order.
const CLEARLY: f64 = 0.01;

/// So many answers have to differ: the larger of two numbers that are nearly the same may be either.
const DIFFERING: u32 = 3;

/// So many that are alike make good for one of them.
const ALIKE: u32 = 16;

/// What was found out of a version that had passed its trial, and how its requests run since.
#[derive(Debug, PartialEq)]
pub(crate) struct Found {
    pub(crate) why: &'static str,
    pub(crate) grouping: Grouping,
}

/// Rows depend on each other.
pub(crate) const MIXES: Found = Found {
    why: "not batched any more: requests that ran with others were answered otherwise than alone",
    grouping: Grouping::Alone,
};

/// Where one row becomes two and another none, the number is right, and callers get each other's rows.
pub(crate) const MISCOUNTS: Found = Found {
    why: "not batched any more: it has given another number of rows than went in",
    grouping: Grouping::Alone,
};

/// One after another they may all be right.
pub(crate) const WRITES: Found = Found {
    why: "not batched any more: it has written to tensors of its own, which two runs at once would share",
    grouping: Grouping::Serial,
};

/// What was looked at of a version.
#[derive(Debug, Default)]
pub(crate) struct Audit {
    every: Option<Duration>,
    /// Of what draws its answers no difference shows anything.
    draws: bool,
    state: Mutex<State>,
    mixes: OnceLock<()>,
    miscounts: OnceLock<()>,
    writes: OnceLock<()>,
}

#[derive(Debug, Default)]
struct State {
    rows: Due,
    differed: u32,
    /// Since that was last counted.
    alike: u32,
    writes: Due,
}

/// When to look.
#[derive(Debug, Default)]
struct Due {
    looked: u32,
    next: Option<Instant>,
}

impl Due {
    fn is_now(&mut self, every: Duration, now: Instant) -> bool {
        let is_due = self.looked < FIRST || self.next.is_none_or(|next| next <= now);
        if is_due {
            self.looked = self.looked.saturating_add(1);
            self.next = Some(now + every);
        }
        is_due
    }
}

/// A batch that is to be looked at.
pub(crate) struct Sample {
    pieces: Vec<Piece<Arc<Job>>>,
    outputs: Vec<Output>,
    /// Which of them runs again.
    at: usize,
}

impl Audit {
    /// One batch is looked at in so long, after the first ones; none at all where that is not said. Whether the version `draws` its
    /// answers.
    pub(crate) fn of(every: Option<Duration>, draws: bool) -> Self {
        Self { every, draws, ..Self::default() }
    }

    /// What was found out, if anything: the worst of it.
    pub(crate) fn found(&self) -> Option<&'static Found> {
        let writes = self.writes.get().map(|()| &WRITES);
        let miscounts = || self.miscounts.get().map(|()| &MISCOUNTS);
        writes.or_else(miscounts).or_else(|| self.mixes.get().map(|()| &MIXES))
    }

    /// A run has given another number of rows than went in. Whether that was not known before.
    pub(crate) fn has_miscounted(&self) -> bool {
        self.miscounts.set(()).is_ok()
    }

    /// Whether it is shown now, and was not before, that a model which only reads what it keeps has written to it. To be asked
    /// after a run; looks as often as at batches.
    pub(crate) fn finds_writes(&self, model: &dyn Model, now: Instant) -> bool {
        let Some(every) = self.every.filter(|_| self.writes.get().is_none()) else { return false };
        let is_due = self.lock().writes.is_now(every, now);
        is_due && model.has_written() && self.writes.set(()).is_ok()
    }

    /// The batch that has just been answered, if it is to be looked at.
    pub(crate) fn sample(
        &self,
        pieces: &[Piece<Arc<Job>>],
        outputs: Vec<Output>,
        now: Instant,
    ) -> Option<Sample> {
        let every = self.every.filter(|_| pieces.len() > 1 && !self.draws && self.found().is_none())?;
        let mut state = self.lock();
        if !state.rows.is_now(every, now) {
            return None;
        }
        let at = state.rows.looked as usize % pieces.len();
        Some(Sample { pieces: pieces.to_vec(), outputs, at })
    }

    /// Nobody has the time to look at this one: the next batch is due.
    pub(crate) fn not_now(&self) {
        let mut state = self.lock();
        (state.rows.looked, state.rows.next) = (state.rows.looked.saturating_sub(1), None);
    }

    /// Notes that a request of that batch was answered as it is `alone`, if it was; else it is to be asked once more.
    pub(crate) fn is_alike(&self, sample: &Sample, alone: Option<&[Output]>) -> bool {
        let is_alike = alone.is_some_and(|alone| !differ(alone, &sample.answers()));
        if is_alike {
            let mut state = self.lock();
            state.alike += 1;
            if state.alike >= ALIKE {
                (state.alike, state.differed) = (0, state.differed.saturating_sub(1));
            }
        }
        is_alike
    }

    /// Notes what one that was answered otherwise is answered `alone`, twice in a row, if it is; whether it is shown by that, and
    /// was not before, that rows of this version depend on each other.
    pub(crate) fn note(&self, alone: [Option<&[Output]>; 2]) -> bool {
        let is_the_same = match alone {
            [Some(alone), Some(again)] => {
                let again: Vec<&[u8]> = again.iter().map(|output| &output.bytes[..]).collect();
                !differ(alone, &again)
            }
            // With others it was answered.
            [None, None] => true,
            _ => false,
        };
        if !is_the_same {
            return false;
        }
        let mut state = self.lock();
        (state.differed, state.alike) = (state.differed + 1, 0);
        state.rows.next = None;
        state.differed >= DIFFERING && self.mixes.set(()).is_ok()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn differ(outputs: &[Output], others: &[&[u8]]) -> bool {
    let apart = |(output, other): (&Output, &&[u8])| apart_of_largest(output.datatype, &output.bytes, other);
    outputs.len() != others.len() || outputs.iter().zip(others).map(apart).any(|apart| apart > CLEARLY)
}

impl Sample {
    /// The request that is to run by itself.
    pub(crate) fn piece(&self) -> &Piece<Arc<Job>> {
        &self.pieces[self.at]
    }

    /// What it was answered.
    fn answers(&self) -> Vec<&[u8]> {
        let before = self.pieces[..self.at].iter().map(|piece| piece.rows as usize).sum();
        self.outputs.iter().map(|output| rows_of(output, before, self.piece().rows)).collect()
    }
}
