//! Looks again, now and then, at what has run together: one request of a batch is run once more by itself, after its answer has left.
//! A trial sees made-up rows, this sees what callers send. Decides when a batch is looked at, and whether a version's rows depend on
//! each other after all; what follows from that is the queue's.

use crate::batcher::Piece;
use crate::job::Job;
use crate::model::Output;
use crate::split::rows_of;
use crate::values::apart_of_largest;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The first batches of a version are looked at,
const FIRST: u32 = 4;

/// and then one in so long.
pub(crate) const EVERY: Duration = Duration::from_secs(60);

/// A row that differs by less, of the largest number of its output, may have been computed in another order.
const CLEARLY: f64 = 0.01;

/// So many answers have to differ: the larger of two numbers that are nearly the same may be either.
const DIFFERING: u32 = 3;

/// What is shown of a version whose rows were found to depend on each other.
pub(crate) const WHY: &str =
    "not batched any more: requests that ran with others were answered otherwise than alone";

/// What was looked at of a version.
#[derive(Debug, Default)]
pub(crate) struct Audit {
    every: Option<Duration>,
    state: Mutex<State>,
    mixes: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    looked: u32,
    differed: u32,
    next: Option<Instant>,
}

/// A batch that is to be looked at.
pub(crate) struct Sample {
    pieces: Vec<Piece<Arc<Job>>>,
    outputs: Vec<Output>,
    /// Which of them runs again.
    at: usize,
}

impl Audit {
    /// One batch is looked at in so long, after the first ones; none at all where that is not said.
    pub(crate) fn of(every: Option<Duration>) -> Self {
        Self { every, ..Self::default() }
    }

    /// Whether rows of this version depend on what runs with them.
    pub(crate) fn mixes(&self) -> bool {
        self.mixes.load(Ordering::Relaxed)
    }

    /// The batch that has just been answered, if it is to be looked at.
    pub(crate) fn sample(
        &self,
        pieces: &[Piece<Arc<Job>>],
        outputs: Vec<Output>,
        now: Instant,
    ) -> Option<Sample> {
        let every = self.every.filter(|_| pieces.len() > 1 && !self.mixes())?;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = state.looked < FIRST || state.next.is_none_or(|next| next <= now);
        if !is_due {
            return None;
        }
        state.looked = state.looked.saturating_add(1);
        state.next = Some(now + every);
        let at = state.looked as usize % pieces.len();
        Some(Sample { pieces: pieces.to_vec(), outputs, at })
    }

    /// Notes what a request of that batch is answered `alone`, twice in a row; whether it is shown by that, and was not before, that
    /// rows of this version depend on each other.
    pub(crate) fn note(&self, sample: &Sample, alone: &[Output], again: &[Output]) -> bool {
        let again: Vec<&[u8]> = again.iter().map(|output| &output.bytes[..]).collect();
        // Of what draws its answers nothing is shown.
        if !differ(alone, &sample.answers()) || differ(alone, &again) {
            return false;
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.differed += 1;
        state.next = None;
        if state.differed >= DIFFERING {
            self.mixes.store(true, Ordering::Relaxed);
        }
        state.differed == DIFFERING
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
