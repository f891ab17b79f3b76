//! Who answers what chance has divided between versions. Requests count themselves here, each with a few additions and no
//! lock; what the counts show is found out elsewhere, in `mismatch.rs`. Decides what counts, and as whose; never who answers.
//!
//! ```text
//!                        answered by 1   by 2   by another version   by nobody
//!   given to version 1       9,012         0             0               3
//!   given to version 2         310       691             0               2      version 1 answered in its place
//! ```
//!
//! What counts is what chance or the sticky key has decided in a split or in a step of a rollout: not what rules, paths and a
//! declared `without_key` send somewhere, and not copies for shadows. The test of `ratio.rs` holds for units that know nothing
//! of each other, so a request that drew is one, and so is a user: the first answer that it gets counts, and no other. How users
//! are told apart is in `tally/users.rs`.
//!
//! A window ends when the declared shares change, and after a day: what was well for long would hide what is not now.

mod mismatch;
mod users;

use std::mem::offset_of;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::attribute::Attribute;
use crate::prefetch::{prefetch, prefetch_start};
use crate::units::Version;
use mismatch::Look;
pub use mismatch::{Mismatch, SplitStatus, VersionShare};
use users::Users;

/// After so long it is asked anew.
const WINDOW: Duration = Duration::from_secs(24 * 60 * 60);

/// Of so many requests of users one is looked at to see whether they are all of one user.
const LOOKED_AT: u64 = 16;

/// That many have to be looked at before it says anything.
const LOOKS_MIN: u64 = 64;

/// Where chance or the sticky key has put a request, and under which shares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drawn {
    /// The version that is to answer.
    pub(crate) version: Version,
    /// Which of those that have a share this is, in the order of [`Declared`]; of one whose share is too small, none.
    pub(crate) place: u32,
    /// Which shares those were, see [`Declared`].
    pub(crate) mark: u64,
}

impl Drawn {
    /// The version that is to answer.
    pub fn version(&self) -> Version {
        self.version
    }
}

/// Why another version has answered than the one that was drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Instead {
    /// It was not ready.
    NotReady,
    /// Its breaker had tripped.
    Fallback,
    /// It had lost its share while the request came.
    RolledBack,
    /// The engine had nothing to run it on when the request came there.
    Retry,
}

impl Instead {
    const ALL: [Self; 4] = [Self::NotReady, Self::Fallback, Self::RolledBack, Self::Retry];

    /// The word for it in spans and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotReady => "not_ready",
            Self::Fallback => "fallback",
            Self::RolledBack => "rolled_back",
            Self::Retry => "retry",
        }
    }

    fn in_words(self) -> &'static str {
        match self {
            Self::NotReady => "it was not ready",
            Self::Fallback => "its breaker had tripped",
            Self::RolledBack => "it had been rolled back",
            Self::Retry => "it was gone when they came to it",
        }
    }
}

/// Shares that add up to 1, and a number by which a request that was drawn under them is known.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Declared {
    pub(crate) mark: u64,
    /// None is 0.
    pub(crate) shares: Vec<(Version, f64)>,
}

impl Declared {
    /// What is drawn where a version gets the request.
    pub(crate) fn drawn(&self, version: Version) -> Drawn {
        let place = self.shares.iter().position(|(known, _)| *known == version);
        Drawn { version, place: place.map_or(u32::MAX, |place| place as u32), mark: self.mark }
    }

    /// `parts` are of the same whole.
    pub(crate) fn new(parts: &[(Version, u64)]) -> Self {
        let whole: f64 = parts.iter().map(|(_, part)| *part as f64).sum();
        let positive = parts.iter().filter(|(_, part)| *part > 0);
        let shares = positive.map(|(version, part)| (*version, *part as f64 / whole)).collect();
        Self { mark: mark(parts), shares }
    }
}

/// The number of these parts, quickly: it is computed for requests.
pub(crate) fn mark(parts: &[(Version, u64)]) -> u64 {
    let mix = |mark: u64, number: u64| (mark ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    parts.iter().fold(0, |mark, (version, part)| mix(mix(mark, version.0), *part))
}

/// The counts of one window.
#[derive(Debug)]
#[repr(C)] // what each request needs lies together, and first
pub(crate) struct Tally {
    pub(crate) mark: u64,
    versions: Box<[(Version, f64)]>,
    units: Matrix,
    users: Users,
    /// Requests of users who are counted among the units already, and those of users that nobody has answered.
    others: Matrix,
    majority: Mutex<Majority>,
    instead: [AtomicU64; Instead::ALL.len()],
    pub(crate) key: Option<Attribute>,
    began: Instant,
    look: Mutex<Look>,
}

impl Tally {
    pub(crate) fn new(declared: &Declared, key: Option<Attribute>, now: Instant) -> Self {
        let versions = declared.shares.len();
        Self {
            mark: declared.mark,
            versions: declared.shares.clone().into(),
            units: Matrix::new(versions),
            users: Users::default(),
            others: Matrix::new(versions),
            majority: Mutex::default(),
            instead: Default::default(),
            key,
            began: now,
            look: Mutex::default(),
        }
    }

    /// Of users who are told apart in the same way, from now on.
    pub(crate) fn anew(&self, declared: &Declared, now: Instant) -> Self {
        Self::new(declared, self.key.clone(), now)
    }

    pub(crate) fn declared(&self) -> Declared {
        Declared { mark: self.mark, shares: self.versions.to_vec() }
    }

    pub(crate) fn is_over(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.began) >= WINDOW
    }

    /// Whether there is anything to divide.
    pub(crate) fn is_divided(&self) -> bool {
        self.versions.len() > 1
    }

    /// Counts a request that is over: who has answered it, if anybody, and why that was not the version that was drawn.
    pub(crate) fn count(
        &self,
        drawn: Drawn,
        key: Option<u64>,
        answered: Option<Version>,
        instead: Option<Instead>,
    ) {
        let place = |version: Version| self.versions.iter().position(|(known, _)| *known == version);
        if drawn.mark != self.mark || !self.is_divided() {
            return; // under other shares
        }
        let row = drawn.place as usize;
        if row >= self.versions.len() {
            return;
        }
        let column = match answered {
            Some(version) if version == drawn.version => Column::Version(row),
            Some(version) => place(version).map_or(Column::Another, Column::Version),
            None => Column::Nobody,
        };
        // Where the key lies on the ring is what decides who answers: its place here must have nothing to do with it.
        let is_unit = key.is_none_or(|key| column != Column::Nobody && self.users.is_new(mixed(key)));
        let matrix = if is_unit { &self.units } else { &self.others };
        let before = matrix.count(row, column);
        if let Some(instead) = instead {
            self.instead[instead as usize].fetch_add(1, Ordering::Relaxed);
        }
        if let Some(key) = key
            && mixed(before.wrapping_add(1)).is_multiple_of(LOOKED_AT)
            && let Ok(mut majority) = self.majority.try_lock()
        {
            majority.vote(key);
        }
    }

    /// What each request needs of it.
    pub(crate) fn prefetch(&self) {
        prefetch_start(self, offset_of!(Self, majority));
    }

    /// What is counted if the version answers that was drawn: where users have left their marks, and where most of their requests
    /// count, which are not their first ones.
    pub(crate) fn prefetch_counts(&self, drawn: Drawn, key: Option<u64>) {
        let row = drawn.place as usize;
        if row >= self.versions.len() {
            return;
        }
        key.into_iter().for_each(|key| self.users.prefetch(mixed(key)));
        let matrix = if key.is_some() { &self.others } else { &self.units };
        prefetch(matrix.cell(row, Column::Version(row)));
    }

    /// The part of these versions' requests that nobody has answered.
    fn unanswered(&self, rows: &[usize]) -> f64 {
        let all: u64 = rows.iter().map(|row| self.given(*row)).sum();
        rows.iter().map(|row| self.nobody(*row)).sum::<u64>() as f64 / all.max(1) as f64
    }

    fn nobody(&self, row: usize) -> u64 {
        self.units.at(row, Column::Nobody) + self.others.at(row, Column::Nobody)
    }

    fn given(&self, row: usize) -> u64 {
        self.units.row(row) + self.others.row(row)
    }

    /// Requests of a version that others have answered.
    fn replaced(&self, row: usize) -> u64 {
        let of = |matrix: &Matrix| {
            matrix.row(row) - matrix.at(row, Column::Version(row)) - matrix.at(row, Column::Nobody)
        };
        of(&self.units) + of(&self.others)
    }

    fn shares(&self) -> Vec<f64> {
        self.versions.iter().map(|(_, share)| *share).collect()
    }
}

/// By which version requests were answered that were given to each.
#[derive(Debug)]
struct Matrix {
    versions: usize,
    cells: Box<[AtomicU64]>,
}

/// Who has answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Column {
    /// The version at this place.
    Version(usize),
    /// One that is not part of the split.
    Another,
    Nobody,
}

impl Matrix {
    fn new(versions: usize) -> Self {
        Self { versions, cells: (0..versions * (versions + 2)).map(|_| AtomicU64::new(0)).collect() }
    }

    fn cell(&self, row: usize, column: Column) -> &AtomicU64 {
        let column = match column {
            Column::Version(at) => at,
            Column::Another => self.versions,
            Column::Nobody => self.versions + 1,
        };
        &self.cells[row * (self.versions + 2) + column]
    }

    /// One more; how many there were.
    fn count(&self, row: usize, column: Column) -> u64 {
        self.cell(row, column).fetch_add(1, Ordering::Relaxed)
    }

    fn at(&self, row: usize, column: Column) -> u64 {
        self.cell(row, column).load(Ordering::Relaxed)
    }

    /// All that was given to a version.
    fn row(&self, row: usize) -> u64 {
        let of_versions: u64 = (0..self.versions).map(|at| self.at(row, Column::Version(at))).sum();
        of_versions + self.at(row, Column::Another) + self.at(row, Column::Nobody)
    }

    /// What each version has answered.
    fn columns(&self) -> Vec<u64> {
        let of = |at| (0..self.versions).map(|row| self.at(row, Column::Version(at))).sum();
        (0..self.versions).map(of).collect()
    }

    /// What was given to each version and answered by somebody.
    fn answered_by_row(&self) -> Vec<u64> {
        (0..self.versions).map(|row| self.row(row) - self.at(row, Column::Nobody)).collect()
    }
}

/// Whether most votes are for one key (Boyer and Moore, 1981): each vote for another one takes one away.
#[derive(Debug, Default)]
struct Majority {
    key: u64,
    surplus: u64,
    votes: u64,
}

impl Majority {
    fn vote(&mut self, key: u64) {
        self.votes += 1;
        if self.surplus == 0 {
            self.key = key;
        }
        if self.key == key { self.surplus += 1 } else { self.surplus -= 1 }
    }

    /// At least how many percent of the votes one key has, if that is half of them.
    fn percent(&self) -> Option<f64> {
        let is_most = self.votes >= LOOKS_MIN && 2 * self.surplus >= self.votes;
        is_most.then(|| self.surplus as f64 / self.votes as f64 * 100.0)
    }
}

/// As good as a draw (SplitMix64).
fn mixed(number: u64) -> u64 {
    let mixed = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests;
