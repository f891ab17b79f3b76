//! Who waits for a thread that pre-processes: in which order, who is told at once that it would be late, and who goes where
//! there is too little room or time. Sans-IO: `now` is an argument.
//!
//! It is the [`Batcher`] once more, so that a request meets the same rules before both: threads are its lanes, and a run is one
//! request. What preparing takes goes by the [`Work`] that there is, which of a picture is ten thousand times as much as of a
//! word; so requests of a version that are about as much of one kind are one bucket, which learns from its own runs. Those that
//! take long leave a thread to the others, of whatever version.
//!
//! ```text
//!   now                                                             deadline
//!    ├── waits for a thread ──┬── is prepared ──┬── is run ─────────────────┤
//!    │                                          └ the batcher's deadline    │
//!    ├── lanes: what waits there, then what comes from here ──┬── is run ───┤
//! ```
//!
//! Threads and lanes work at the same time, so that it is late if either of them makes it so; their times are not added.

use crate::batcher::{
    Batcher, Before, Bound, Bucket, Claim, Criticality, Ended, Grouping, Limits, Next, Priority, Refused,
    Ticket,
};
use crate::job::Refusal;
use crate::preprocess::Work;
use foldhash::fast::RandomState;
use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

/// Requests that wait, by whose they are and what they ask.
pub(super) struct Waiting<T> {
    /// Knows them by numbers.
    batcher: Batcher<u64>,
    tasks: HashMap<u64, Waits<T>, RandomState>,
    threads: usize,
    number: u64,
    /// What they, and those that are prepared, will take of the lanes' time, by version.
    coming: BTreeMap<u32, Coming>,
}

/// What comes of one version.
#[derive(Debug)]
struct Coming {
    bound: Bound,
    /// How many, and the lane time of these, by how critical they are.
    by_criticality: [(u64, Duration); 3],
}

struct Waits<T> {
    task: T,
    work: Work,
    deadline: Option<Instant>,
    share: Share,
}

/// What it will take of the lanes' time.
#[derive(Clone, Copy, Debug)]
struct Share {
    version: u32,
    criticality: Criticality,
    adds: Duration,
}

/// What one asks for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asks {
    /// Who asks.
    pub(super) connection: u64,
    /// Its name for the request, unique among its waiting ones.
    pub(super) id: u64,
    /// Key of the version.
    pub(super) version: u32,
    /// What is to be done.
    pub(super) work: Work,
    /// What it holds.
    pub(super) bytes: usize,
    pub(super) deadline: Option<Instant>,
    pub(super) after: After,
    pub(super) priority: Priority,
    pub(super) criticality: Criticality,
    pub(super) tenant: u64,
}

/// What comes after pre-processing, as far as that is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct After {
    /// So long it would wait for lanes behind what runs, and what waits and will not make way.
    pub(crate) backlog: Duration,
    /// What it takes of the lanes' time at least, when it runs with others.
    pub(crate) adds: Duration,
    /// How long its own run takes.
    pub(crate) run: Duration,
    /// What its version may have of the lanes.
    pub(crate) bound: Bound,
    /// How many there are.
    pub(crate) lanes: usize,
}

impl After {
    /// What of a deadline is for the run, which may be a slow one, and for one that may just have begun. But what runs took once
    /// is not believed without end: half of the time is left in any case, or nothing would be learned that is better.
    fn runs(self, left: Duration) -> Duration {
        (self.run.saturating_mul(2) + self.run / 2).min(left / 2)
    }
}

/// What a thread is to do.
pub(super) struct Turn<T> {
    /// Whom to tell that they are late, and how.
    pub(super) late: Vec<(T, Refusal)>,
    /// Whom to prepare.
    pub(super) work: Option<(T, Begun)>,
}

/// The right to prepare one, to be given back after that.
#[must_use]
pub(super) struct Begun {
    claim: Claim,
    share: Share,
    /// What it takes as a rule, if that is known.
    pub(super) expected: Option<Duration>,
}

impl<T> Waiting<T> {
    pub(super) fn new(limits: Limits, threads: usize, now: Instant) -> Self {
        let threads = threads.max(1);
        Self {
            batcher: Batcher::new(limits, threads, now),
            tasks: HashMap::default(),
            threads,
            number: 0,
            coming: BTreeMap::new(),
        }
    }

    /// Lets one wait, which is made only then; adds those to `shed` that have to go for it.
    pub(super) fn push(
        &mut self,
        asks: Asks,
        make: impl FnOnce() -> T,
        shed: &mut Vec<T>,
        now: Instant,
    ) -> Result<(), Refusal> {
        let Asks { after, deadline, .. } = asks;
        if deadline.is_some_and(|deadline| deadline <= now) {
            return Err(Refusal::Expired);
        }
        let left = deadline.map(|deadline| deadline.saturating_duration_since(now));
        // Those that are less critical make way there, if it comes to that.
        let lanes = left.map_or(Duration::ZERO, |_| after.backlog + self.wait_for_coming(&asks));
        if !lanes.is_zero() && left.is_some_and(|left| lanes + after.runs(left) > left) {
            return Err(Refusal::TooLate { wait: lanes });
        }
        let prepared_by = left.map(|left| now + (left - after.runs(left)));
        let number = self.number;
        let ticket = Ticket {
            connection: asks.connection,
            id: asks.id,
            bucket: bucket(&asks),
            grouping: Grouping::Alone,
            lanes: 1,
            at_once: self.bound(asks.work).at_once,
            rows: 1,
            // One that is larger than all may be gets its turn when there is no other.
            bytes: asks.bytes.min(self.batcher.limits().bytes),
            run_bytes: 0,
            deadline: prepared_by,
            priority: asks.priority,
            criticality: asks.criticality,
            tenant: asks.tenant,
            payload: number,
        };
        let mut gone = Vec::new();
        self.batcher.push(ticket, &mut gone, now).map_err(|refused| match refused {
            Refused::Overloaded { wait, .. } => Refusal::Overloaded { wait: wait.max(lanes) },
            Refused::TooLate { wait, .. } => Refusal::TooLate { wait: wait.max(lanes) },
            Refused::Hopeless(_) => Refusal::Hopeless,
            Refused::TooLarge(_) => unreachable!("it has one row, and no more bytes than fit"),
            Refused::Duplicate(_) => Refusal::Duplicate { id: asks.id },
        })?;
        self.number += 1;
        shed.extend(gone.into_iter().map(|number| self.remove(number).task));
        let share = Share { version: after.bound.version, criticality: asks.criticality, adds: after.adds };
        self.come(share, after.bound);
        self.tasks.insert(number, Waits { task: make(), work: asks.work, deadline, share });
        Ok(())
    }

    /// What a thread that is idle is to do, if there is anything.
    pub(super) fn next(&mut self, now: Instant) -> Option<Turn<T>> {
        let Next::Run(batch) = self.batcher.next(now) else { return None };
        let late: Vec<_> = batch.late.into_iter().map(|number| self.remove(number)).collect();
        // They are of one bucket.
        let backlog = late.first().map_or(Duration::ZERO, |waits| self.backlog(waits.work, now));
        let tell = |Waits { task, deadline, .. }: Waits<T>| match deadline {
            Some(deadline) if deadline <= now => (task, Refusal::Expired),
            _ => (task, Refusal::TooLate { wait: backlog }),
        };
        let late = late.into_iter().map(tell).collect();
        let work = match batch.pieces.first() {
            Some(piece) => {
                // It comes until it is prepared.
                let Waits { task, share, .. } = self.take(piece.job);
                let (claim, expected) = (batch.claim, batch.expected);
                Some((task, Begun { claim, share, expected }))
            }
            None => {
                self.batcher.finish(batch.claim, Ended::Failed, now);
                None
            }
        };
        Some(Turn { late, work })
    }

    /// Whether [`Self::next`] would give something.
    pub(super) fn has_next(&self, now: Instant) -> bool {
        self.batcher.has_next(now)
    }

    /// One has been prepared, or not.
    pub(super) fn finish(&mut self, begun: Begun, ended: Ended, now: Instant) {
        let Begun { claim, share, .. } = begun;
        self.gone(share);
        self.batcher.finish(claim, ended, now);
    }

    /// Removes one that nobody waits for any more.
    pub(super) fn cancel(&mut self, connection: u64, id: u64) -> Option<T> {
        let number = self.batcher.cancel(connection, id)?;
        Some(self.remove(number).task)
    }

    /// Removes all that one connection has waiting.
    pub(super) fn cancel_connection(&mut self, connection: u64) -> Vec<T> {
        let numbers = self.batcher.cancel_connection(connection);
        numbers.into_iter().map(|number| self.remove(number).task).collect()
    }

    /// All that wait, when nothing will be asked of this any more.
    pub(super) fn take_all(&mut self) -> Vec<T> {
        self.tasks.drain().map(|(_, waits)| waits.task).collect()
    }

    /// How long one of such work that comes now would wait for a thread, if it had to wait for all.
    pub(super) fn backlog(&self, work: Work, now: Instant) -> Duration {
        self.batcher.backlog(self.bound(work), now)
    }

    /// What such work may have of the threads.
    fn bound(&self, work: Work) -> Bound {
        let at_once = if work.is_long() { self.threads.saturating_sub(1).max(1) } else { usize::MAX };
        Bound { version: u32::from(work.is_long()), lanes: 1, at_once }
    }

    /// Bytes of those that wait or are prepared.
    pub(super) fn bytes(&self) -> usize {
        self.batcher.bytes()
    }

    /// How long one would wait for lanes behind what comes from here and does not make way for it.
    fn wait_for_coming(&self, asks: &Asks) -> Duration {
        let mut before = Before::default();
        for Coming { bound, by_criticality } in self.coming.values() {
            let stay = &by_criticality[..=asks.criticality as usize];
            let runs = stay.iter().map(|(runs, _)| runs).sum();
            before.add(*bound, runs, stay.iter().map(|(_, adds)| *adds).sum());
        }
        before.wait_on_idle(asks.after.bound, asks.after.lanes)
    }

    fn come(&mut self, share: Share, bound: Bound) {
        if share.adds.is_zero() {
            return;
        }
        let none = || Coming { bound, by_criticality: Default::default() };
        let coming = self.coming.entry(share.version).or_insert_with(none);
        let (runs, adds) = &mut coming.by_criticality[share.criticality as usize];
        *runs += 1;
        *adds += share.adds;
    }

    fn gone(&mut self, share: Share) {
        if share.adds.is_zero() {
            return;
        }
        let coming = self.coming.get_mut(&share.version).expect("it has come");
        let (runs, adds) = &mut coming.by_criticality[share.criticality as usize];
        *runs -= 1;
        *adds -= share.adds;
        if coming.by_criticality.iter().all(|(runs, _)| *runs == 0) {
            self.coming.remove(&share.version);
        }
    }

    fn remove(&mut self, number: u64) -> Waits<T> {
        let waits = self.take(number);
        self.gone(waits.share);
        waits
    }

    /// One that is not waiting any more, and comes all the same.
    fn take(&mut self, number: u64) -> Waits<T> {
        self.tasks.remove(&number).expect("who waits has a task")
    }
}

/// Requests that take about as long. Those that take long are one version to the batcher, whichever they are for: only so many of
/// all of them may be at it.
fn bucket(asks: &Asks) -> Bucket {
    let Work { kind, .. } = asks.work;
    let free = vec![u64::from(asks.version), kind as u64, u64::from(asks.work.octave())];
    Bucket { version: u32::from(asks.work.is_long()), free, suspect: false }
}

#[cfg(test)]
mod tests;
