//! What the batcher is told of jobs, and what it says: the words that it shares with those who bring jobs and those who run them.
//! Decides nothing.

use super::before::Bound;
use super::budget::{Held, Hold};
use super::{HEAD_START, RIGHT_OF_WAY};
use std::sync::Arc;
use std::time::{Duration, Instant};
use wire::Closed;

/// What may be held at most.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Rows of all jobs that wait; a job counts as one at least.
    pub rows: u64,
    /// Bytes of all jobs that wait or run.
    pub bytes: usize,
    /// Bytes that their runs take beside. One job may have more, if nothing else has any.
    pub run_bytes: usize,
}

impl Limits {
    /// So many rows; one half of so many bytes for jobs, and one for what their runs take beside.
    pub fn halving(rows: u64, bytes: usize) -> Self {
        Self { rows, bytes: bytes / 2, run_bytes: bytes - bytes / 2 }
    }

    /// Bytes that may be held in all.
    pub fn all_bytes(self) -> usize {
        self.bytes.saturating_add(self.run_bytes)
    }
}

/// Jobs of one bucket may share a run.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Bucket {
    /// Which model version, by the number the library gave it.
    pub version: u32,
    /// Dimensions that the model leaves free and that must agree within a batch; empty (and free to clone) for
    /// models whose shapes are fixed.
    pub free: Vec<u64>,
    /// Its jobs are kept from those of others: their callers have made batches fail, or it was found that its rows depend on others.
    pub suspect: bool,
}

/// How the jobs of a bucket may run. All jobs of a bucket say the same, or the last one knows better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grouping {
    /// Rows of several jobs in one run, on any number of lanes. A job that has more runs in pieces.
    Together {
        /// Rows of one run at most.
        max_rows: u32,
    },
    /// One job per run, on any number of lanes.
    Alone,
    /// One job per run, and one run at a time.
    Serial,
}

/// Who goes first. A head start, not a right of way, but before the last: see [`HEAD_START`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// Before the others.
    High,
    /// Unless somebody says otherwise.
    #[default]
    Normal,
    /// After the others.
    Low,
    /// When nothing else waits.
    Last,
}

impl Priority {
    /// By how much it is less urgent than the highest.
    pub(super) fn behind(self) -> Duration {
        match self {
            Self::High => Duration::ZERO,
            Self::Normal => HEAD_START,
            Self::Low => 2 * HEAD_START,
            Self::Last => RIGHT_OF_WAY,
        }
    }
}

/// Who goes when there is not enough for all: the last first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Criticality {
    /// After the others.
    Critical,
    /// Unless somebody says otherwise.
    #[default]
    Normal,
    /// Before the others.
    Sheddable,
}

/// A job and what the batcher must know about it.
#[derive(Debug)]
pub struct Ticket<T> {
    /// Who asked.
    pub connection: u64,
    /// Its name for the job, unique among its waiting ones.
    pub id: u64,
    /// Whom it may run with.
    pub bucket: Bucket,
    /// How that bucket runs.
    pub grouping: Grouping,
    /// How many lanes' share of the cores one run of its version takes; at least 1.
    pub lanes: usize,
    /// Runs of its version at the same time, at most; at least 1.
    pub at_once: usize,
    /// Rows it adds to a batch, at least 1.
    pub rows: u32,
    /// Bytes it holds while it waits and runs.
    pub bytes: usize,
    /// Bytes that its runs take beside, from the first one on until the last is back.
    pub run_bytes: usize,
    /// When its answer becomes worthless.
    pub deadline: Option<Instant>,
    /// Who goes first.
    pub priority: Priority,
    /// Who has to make room for whom.
    pub criticality: Criticality,
    /// With whom it shares what it is given room for; 0 for all of whom nobody says.
    pub tenant: u64,
    /// The job itself.
    pub payload: T,
}

/// Why a job may not wait; it is handed back.
#[derive(Debug, PartialEq, Eq)]
pub enum Refused<T> {
    /// As many rows wait as may, or those that wait and run have as many bytes.
    Overloaded {
        /// The job.
        job: T,
        /// How long what waits is expected to take.
        wait: Duration,
    },
    /// It would be answered after its deadline.
    TooLate {
        /// The job.
        job: T,
        /// How long it is expected to wait.
        wait: Duration,
    },
    /// It would be answered after its deadline, even if it did not have to wait.
    Hopeless(T),
    /// It alone is more than may ever be held.
    TooLarge(T),
    /// A job of this connection and id waits already.
    Duplicate(T),
}

/// What a lane that asks is to do.
#[derive(Debug)]
pub enum Next<T> {
    /// Run these.
    Run(Batch<T>),
    /// Ask again then, or when something was pushed.
    Wait(Instant),
    /// Nothing can run now.
    Idle,
}

/// Jobs that left the queue together.
#[derive(Debug)]
pub struct Batch<T> {
    /// To be run, those of a connection one after the other; none when all that was left of a queue had expired.
    pub pieces: Arc<[Piece<T>]>,
    /// To be told that they are late: their deadline has passed, or will before they can have run.
    pub late: Vec<T>,
    /// Why there are no more pieces.
    pub closed: Closed,
    /// What it takes as a rule, if that is known.
    pub expected: Option<Duration>,
    /// To be given back after the run.
    pub claim: Claim,
}

/// A job's part in a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece<T> {
    /// The job.
    pub job: T,
    /// Its first row that runs.
    pub first: u32,
    /// How many run; all of them, unless the job is larger than a batch.
    pub rows: u32,
}

/// The right to run a batch, one of those that its version may have out at a time.
#[derive(Debug)]
#[must_use]
pub struct Claim {
    pub(super) bucket: Bucket,
    pub(super) number: u64,
    pub(super) jobs: u32,
    pub(super) rows: u32,
    pub(super) hold: Hold,
    pub(super) began: Instant,
    /// It is learned from, however short it is.
    pub(super) explores: bool,
    /// When it was over, if what it has claimed is used for longer.
    pub(super) ran: Option<Instant>,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// As it should.
    Ran,
    /// In parts, because it had failed, and some of its jobs had answers.
    Divided {
        /// So many of its jobs failed alone as well.
        failed: u32,
        /// So many left before they could run again.
        left: u32,
    },
    /// Otherwise; how long it took says nothing.
    Failed,
    /// For want of memory: fewer rows may fit.
    OutOfMemory,
}

impl Claim {
    /// Which one it is.
    pub fn number(&self) -> u64 {
        self.number
    }
}

impl Grouping {
    /// Runs of a version at the same time, at most, if so many are of use.
    pub(crate) fn at_once(self, measured: usize) -> usize {
        match self {
            Self::Together { .. } | Self::Alone => measured.max(1),
            Self::Serial => 1,
        }
    }

    /// Rows of the largest run that so many rows take.
    pub(super) fn piece(self, rows: u32) -> u32 {
        match self {
            Self::Together { max_rows } => rows.min(max_rows),
            Self::Alone | Self::Serial => rows,
        }
    }
}

impl<T> Ticket<T> {
    /// What its version may have.
    pub(super) fn bound(&self) -> Bound {
        let at_once = self.grouping.at_once(self.at_once);
        Bound { version: self.bucket.version, lanes: self.lanes, at_once }
    }

    pub(super) fn held(&self) -> Held {
        Held { bytes: self.bytes, run_bytes: self.run_bytes }
    }
}
