//! How long it takes until lanes are free for one more job: from what runs on them, and what waits before it.
//!
//! Not all work divided by all lanes: that has somebody wait for a long run though the lane beside it is idle. What waits of a
//! version has no more lanes than it may have, and than it has runs. So the wait is the smallest `T` after which lanes have
//! more time than is asked of them:
//!
//! ```text
//!   sum over lanes of max(0, T - back)  >  sum over versions of min(work, lane time that it may have until T)
//! ```
//!
//! where a lane that is idle is `back` at once. A prediction: it reckons with work that can be cut where one likes.

use super::Running;
use std::time::{Duration, Instant};

/// How much of the lanes a version may have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bound {
    /// Which one, by its key.
    pub version: u32,
    /// How many lanes' share of the cores one run of it takes.
    pub lanes: usize,
    /// Runs of it at the same time, at most.
    pub at_once: usize,
}

impl Bound {
    /// The share of one run, of so many lanes.
    fn one(self, lanes: usize) -> usize {
        self.lanes.clamp(1, lanes)
    }

    /// So many lanes its runs may have, of so many.
    fn most(self, lanes: usize) -> usize {
        self.at_once.max(1).saturating_mul(self.one(lanes)).min(lanes)
    }

    /// Its runs.
    fn of(self, running: &[Busy]) -> impl Iterator<Item = &Busy> {
        running.iter().filter(move |busy| busy.version == self.version)
    }

    /// How many these are, and the lanes that they have.
    fn has(self, running: &[Busy]) -> (usize, usize) {
        self.of(running).fold((0, 0), |(runs, lanes), busy| (runs + 1, lanes + busy.lanes))
    }
}

/// What waits before a job.
#[derive(Clone, Debug, Default)]
pub(crate) struct Before(Vec<Ahead>);

/// Of one version.
#[derive(Clone, Debug)]
struct Ahead {
    bound: Bound,
    runs: u64,
    /// Lane time of all of them.
    work: Duration,
}

/// A run that is not back.
struct Busy {
    left: Duration,
    version: u32,
    lanes: usize,
}

impl Before {
    /// So many runs wait, which take so much lane time together.
    pub(crate) fn add(&mut self, bound: Bound, runs: u64, work: Duration) {
        self.0.push(Ahead { bound, runs, work });
    }

    /// How long a job of this version waits for its turn on so many lanes if nothing runs.
    pub(crate) fn wait_on_idle(self, own: Bound, lanes: usize) -> Duration {
        self.wait(own, lanes, Vec::new())
    }

    /// How long it does while these run.
    pub(super) fn wait_behind(self, own: Bound, lanes: usize, running: &[Running], now: Instant) -> Duration {
        let busy = |running: &Running| Busy {
            left: running.left(now),
            version: running.bucket.version,
            lanes: running.lanes.min(lanes),
        };
        let mut running: Vec<Busy> = running.iter().map(busy).collect();
        running.sort_unstable_by_key(|busy| busy.left);
        self.wait(own, lanes, running)
    }

    fn wait(mut self, own: Bound, lanes: usize, running: Vec<Busy>) -> Duration {
        let lanes = lanes.max(1);
        let Self(ahead) = &mut self;
        ahead.sort_unstable_by_key(|ahead| ahead.bound.version);
        // Lanes that have nothing to do, less those that work would have more than there are; and when that changes.
        let mut idle = lanes as i64;
        let mut changes = Vec::with_capacity(2 * running.len() + ahead.len());
        for busy in &running {
            idle -= busy.lanes as i64;
            changes.push((busy.left, busy.lanes as i64));
        }
        let free = idle;
        let mut width = own.one(lanes);
        let mut own_ahead = &[][..];
        for ahead in ahead.chunk_by(|a, b| a.bound.version == b.bound.version) {
            let bound = ahead[0].bound;
            if bound.version == own.version {
                own_ahead = ahead;
            }
            let (begun, taken) = bound.has(&running);
            // Nothing begins behind one that may run and for which the cores do not suffice yet.
            if begun < bound.at_once && free < bound.one(lanes) as i64 {
                width = width.max(bound.one(lanes));
            }
            let (runs, work) = sum(ahead);
            let wanted = runs.saturating_mul(bound.one(lanes)).min(lanes);
            let has = bound.most(lanes).saturating_sub(taken).min(wanted);
            idle -= has as i64;
            let take = |at, more: usize| changes.push((at, -(more as i64)));
            let (done, had) = until_done(work, has, wanted, bound.of(&running), take);
            changes.push((done, had as i64));
        }
        changes.sort_unstable_by_key(|(at, _)| *at);
        until_idle(width as i64, idle, &changes).max(turn(own, own_ahead, lanes, &running))
    }
}

/// When it is a job's turn among those of its own version, however many lanes are free.
fn turn(own: Bound, ahead: &[Ahead], lanes: usize, running: &[Busy]) -> Duration {
    let bound = Bound { at_once: own.at_once.min(lanes / own.one(lanes)).max(1), ..own };
    let (begun, taken) = bound.has(running);
    let (runs, work) = sum(ahead);
    if begun.saturating_add(runs) < bound.at_once {
        return Duration::ZERO;
    }
    let most = bound.most(lanes);
    until_done(work, most.saturating_sub(taken), most, bound.of(running), |_, _| {}).0
}

/// Runs and their lane time.
fn sum(ahead: &[Ahead]) -> (usize, Duration) {
    let runs: u64 = ahead.iter().map(|ahead| ahead.runs).sum();
    (usize::try_from(runs).unwrap_or(usize::MAX), ahead.iter().map(|ahead| ahead.work).sum())
}

/// When work is done that has so many lanes and takes over those of its version's runs as they come back, until it has as many as
/// it wants; and how many it has then.
fn until_done<'a>(
    work: Duration,
    mut has: usize,
    wanted: usize,
    running: impl Iterator<Item = &'a Busy>,
    mut take: impl FnMut(Duration, usize),
) -> (Duration, usize) {
    let (mut at, mut rest) = (Duration::ZERO, work);
    // The first that is back comes first.
    for busy in running {
        let done = times(busy.left - at, has);
        if has > 0 && done >= rest {
            break;
        }
        rest -= done;
        at = busy.left;
        let more = busy.lanes.min(wanted - has);
        has += more;
        take(at, more);
    }
    (at + rest / has.max(1) as u32, has)
}

/// When so many lanes have nothing to do, and nothing is left that could not be done before.
fn until_idle(width: i64, mut idle: i64, changes: &[(Duration, i64)]) -> Duration {
    let (mut at, mut owed) = (Duration::ZERO, Duration::ZERO);
    for (change, by) in changes {
        let until = change.saturating_sub(at);
        if idle > 0 {
            let paid = owed / idle as u32;
            if idle >= width && paid < until {
                return at + paid;
            }
            owed = owed.saturating_sub(times(until, idle as usize));
        } else {
            owed = owed.saturating_add(times(until, idle.unsigned_abs() as usize));
        }
        at = *change;
        idle += by;
    }
    at + owed / idle.max(1) as u32
}

fn times(time: Duration, lanes: usize) -> Duration {
    time.saturating_mul(u32::try_from(lanes).unwrap_or(u32::MAX))
}
