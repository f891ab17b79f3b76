//! What jobs hold in memory. One that waits holds what it has brought. What its runs take beside, a copy of that and outputs, it
//! holds from the claim of its first rows on until the last claim with rows of it is back: by then it has been answered. Each has
//! a share of what may be held. For want of the first a job is refused, for want of the second it goes on waiting, and nobody
//! is refused for outputs that nothing has made yet.
//!
//! A batch has no more jobs than there is room for. But one job has its turn as soon as nothing else has any room, however much
//! it takes: so no more is held than may be, but by that one. Answers that have left, and that nobody has read yet, take room as well: else
//! whoever asks for more than is read would fill the memory with them.
//!
//! While the most urgent job waits for room, whatever is given back is kept for it. Others may have what was free already, so
//! that small runs go on beside large ones, and nobody waits for ever behind them.

use super::Limits;
use std::sync::Arc;

/// What a job holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) bytes: usize,
    pub(super) run_bytes: usize,
}

/// What is held for a run.
#[derive(Debug, Default)]
pub(super) struct Hold {
    /// For jobs that have no other.
    whole: Held,
    /// For those that run in pieces: whoever lets go last gives back all.
    shared: Vec<Arc<Held>>,
}

/// What a batch may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    run_bytes: usize,
    /// While nothing else holds any: a job that takes at least so much may have its turn, however much that is.
    alone_from: Option<usize>,
    /// The rest is kept for somebody more urgent.
    pub(super) is_rest: bool,
}

impl Room {
    /// Whether a run that takes so much already may take so much more.
    pub(super) fn has(self, taken: usize, more: usize) -> bool {
        let is_alone = || taken == 0 && self.alone_from.is_some_and(|bytes| more >= bytes);
        taken.saturating_add(more) <= self.run_bytes || is_alone()
    }
}

/// The one owner of what is held.
#[derive(Debug)]
pub(super) struct Budget {
    limits: Limits,
    held: Held,
    /// Bytes of answers that wait to be read.
    unread: usize,
    /// While the most urgent job waits for room: what was given back since it does.
    kept: Option<usize>,
}

impl Budget {
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits, held: Held::default(), unread: 0, kept: None }
    }

    /// Bytes of all that wait and run.
    pub(super) fn bytes(&self) -> usize {
        self.held.bytes + self.held.run_bytes
    }

    /// Whether a job may ever wait and run.
    pub(super) fn is_enough_for(&self, job: Held) -> bool {
        job.bytes <= self.limits.bytes && job.bytes.saturating_add(job.run_bytes) <= self.limits.all_bytes()
    }

    /// How many bytes too few there are for a job that is to wait.
    pub(super) fn lacks(&self, bytes: usize) -> usize {
        (self.held.bytes + bytes).saturating_sub(self.limits.bytes)
    }

    /// A job waits.
    pub(super) fn wait(&mut self, job: Held) {
        self.held.bytes += job.bytes;
    }

    /// One that waited is gone, and has not run.
    pub(super) fn leave(&mut self, job: Held) {
        self.held.bytes -= job.bytes;
    }

    /// All rows of a job are in one run.
    pub(super) fn run(&mut self, job: Held, run: &mut Hold) {
        self.held.run_bytes += job.run_bytes;
        run.whole.bytes += job.bytes;
        run.whole.run_bytes += job.run_bytes;
    }

    /// A job begins to run in pieces.
    pub(super) fn begin(&mut self, job: Held) -> Arc<Held> {
        self.held.run_bytes += job.run_bytes;
        Arc::new(job)
    }

    /// A run is back.
    pub(super) fn give_back(&mut self, Hold { whole, shared }: Hold) {
        self.less(whole);
        shared.into_iter().for_each(|share| self.let_go(share));
    }

    /// A piece is back, or will not run.
    pub(super) fn let_go(&mut self, share: Arc<Held>) {
        if let Some(job) = Arc::into_inner(share) {
            self.less(job);
        }
    }

    fn less(&mut self, held: Held) {
        self.held.bytes -= held.bytes;
        self.held.run_bytes -= held.run_bytes;
        if let Some(kept) = &mut self.kept {
            *kept += held.run_bytes;
        }
    }

    /// What the most urgent job may have.
    pub(super) fn room(&self) -> Room {
        let taken = self.held.run_bytes.saturating_add(self.unread);
        let run_bytes = self.limits.run_bytes.saturating_sub(taken);
        // Whoever does not read must not keep one waiting for ever that is larger than all room.
        let alone_from = if self.unread == 0 { 0 } else { self.limits.run_bytes + 1 };
        let is_all = self.held.run_bytes == 0;
        Room { run_bytes, alone_from: is_all.then_some(alone_from), is_rest: false }
    }

    /// So many bytes of answers wait to be read by now.
    pub(super) fn unread(&mut self, bytes: usize) {
        if let Some(kept) = &mut self.kept {
            *kept = (*kept + self.unread).saturating_sub(bytes);
        }
        self.unread = bytes;
    }

    /// What others may have while it waits for room.
    pub(super) fn rest(&self) -> Room {
        let Room { run_bytes, .. } = self.room();
        Room { run_bytes: run_bytes.saturating_sub(self.kept.unwrap_or(0)), alone_from: None, is_rest: true }
    }

    /// Whether the most urgent job waits for room.
    pub(super) fn keep(&mut self, waits: bool) {
        self.kept = waits.then(|| self.kept.unwrap_or(0));
    }

    /// How many rows of a job's kind there is room for in one run.
    pub(super) fn rows(&self, rows: u32, job: Held) -> u32 {
        let rows = (self.limits.run_bytes as u128 * u128::from(rows)).checked_div(job.run_bytes as u128);
        rows.and_then(|rows| u32::try_from(rows).ok()).unwrap_or(u32::MAX).max(1)
    }
}

impl Hold {
    /// A piece of a job is in this run.
    pub(super) fn share(&mut self, share: Arc<Held>) {
        self.shared.push(share);
    }
}
