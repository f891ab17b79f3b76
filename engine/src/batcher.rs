//! Decides which waiting jobs run together, when, and which need not wait at all because they would be late.
//! Sans-IO: `now` is an argument, jobs are opaque, no thread, no clock, no tensor.
//!
//! Jobs wait in one queue per [`Bucket`] (a model version and the shape its rows share), most urgent first. A
//! batch is formed at the moment a lane asks, so a job that was cancelled or has expired by then costs nothing
//! and harms nobody, and jobs of another shape never cut a batch short: they stand in another queue.
//!
//! ```text
//!            push ─▶ queue of bucket A: [t=3 ms][t=9 ms]…  ─┐ heads: the most urgent job of each queue
//!            push ─▶ queue of bucket B: [t=1 ms]…          ─┴▶ next: takes from the queue with the first head
//! ```
//!
//! There is no delay to tune. Each bucket has a [`Curve`], learned from its own runs, and three rules use it:
//! - **Size**: as much of what waits as makes rows faster, up to the limit; less if the first deadline leaves no time.
//! - **Waiting**: an idle lane waits for the next arrival only if that is expected to lower the sum of all latencies
//!   (what the joint run saves exceeds what those who are here lose), and no deadline is at stake.
//! - **Admission**: a job is refused at once if what stands before it will take too long.
//!
//! Urgency is the deadline, or [`PATIENCE`] where that is sooner, plus [`HEAD_START`] for each step of lower
//! priority: so neither a priority nor a deadline can starve anybody.

use crate::curve::{Curve, size_of};
use foldhash::fast::RandomState;
use std::borrow::Cow;
use std::collections::btree_map::Entry as TreeEntry;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

/// No job is less urgent than one whose deadline is this long after its arrival.
pub const PATIENCE: Duration = Duration::from_secs(1);

/// By so much a job precedes those of the next lower priority.
pub const HEAD_START: Duration = Duration::from_millis(250);

/// Waiting for less than this is not worth falling asleep.
const WAIT_MIN: Duration = Duration::from_micros(100);

/// Buckets whose curves are kept; beyond it the one that was not used for longest is forgotten.
const PROFILES_MAX: usize = 1024;

/// A prediction that has not been tried for so long refuses nobody: what was slow once may be fast again, and only a
/// run can tell.
const TRIED_WITHIN: Duration = Duration::from_secs(1);

/// Of runs shorter than this, one in so many is learned from: learning would cost as much as they do.
const SHORT: Duration = Duration::from_millis(1);
const SHORT_SAMPLE: u64 = 8;

/// One run of so many is of a size that may be as good as the one that looks best.
const EXPLORE_EVERY: u64 = 32;

/// What stands before a job is counted in slots of urgency this wide.
const SLOT: Duration = Duration::from_millis(4);

/// What may wait at most.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Rows of all jobs together; a job counts as one at least.
    pub rows: u64,
    /// Tensor bytes of all jobs together.
    pub bytes: usize,
}

/// Jobs of one bucket may share a run.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Bucket {
    /// Which model version, by the number the library gave it.
    pub version: u32,
    /// Dimensions that the model leaves free and that must agree within a batch; empty (and free to clone) for
    /// models whose shapes are fixed.
    pub free: Vec<u64>,
    /// Its jobs are kept from those of others: their callers have made batches fail.
    pub suspect: bool,
}

/// How the jobs of a bucket may run. All jobs of a bucket say the same.
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

/// Who goes first. A head start, not a right of way: see [`HEAD_START`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// Before the others.
    High,
    /// Unless somebody says otherwise.
    #[default]
    Normal,
    /// After the others.
    Low,
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
    /// Runs of its version at the same time, at most; at least 1.
    pub at_once: usize,
    /// Rows it adds to a batch, at least 1.
    pub rows: u32,
    /// Bytes it holds while it waits.
    pub bytes: usize,
    /// When its answer becomes worthless.
    pub deadline: Option<Instant>,
    /// Who goes first.
    pub priority: Priority,
    /// The job itself.
    pub payload: T,
}

/// Why a job may not wait; it is handed back.
#[derive(Debug, PartialEq, Eq)]
pub enum Refused<T> {
    /// As many rows or bytes wait as may.
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
    /// It alone is more than may ever wait.
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
    /// To be run; none when all that was left of a queue had expired.
    pub pieces: Vec<Piece<T>>,
    /// To be told that they are late: their deadline has passed, or will before they can have run.
    pub late: Vec<T>,
    /// How long a job that came now would wait for its turn.
    pub backlog: Duration,
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
    bucket: Bucket,
    number: u64,
    rows: u32,
    began: Instant,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// As it should.
    Ran,
    /// Otherwise; how long it took says nothing.
    Failed,
    /// For want of memory: fewer rows may fit.
    OutOfMemory,
}

/// The waiting jobs.
#[derive(Debug)]
pub struct Batcher<T> {
    limits: Limits,
    lanes: usize,
    origin: Instant,
    queues: HashMap<Bucket, Queue<T>, RandomState>,
    /// First place of each queue.
    heads: BTreeMap<Place, Bucket>,
    /// Where each job stands, for cancellation.
    places: HashMap<(u64, u64), (Bucket, Place), RandomState>,
    profiles: HashMap<Bucket, Profile, RandomState>,
    versions: HashMap<u32, Version>,
    /// Claims that are out, and when they are expected back.
    running: Vec<Running>,
    /// Rows that waited, and how long they would take, when the last batch was formed.
    calm: (u64, Duration),
    rows: u64,
    bytes: usize,
    pushed: u64,
    claimed: u64,
}

/// Position in a queue; the arrival number makes it unique.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    urgency: Instant,
    arrival: u64,
}

#[derive(Debug)]
struct Queue<T> {
    grouping: Grouping,
    at_once: usize,
    waiting: BTreeMap<Place, Waiting<T>>,
    rows: u64,
    /// Rows by slot of urgency.
    slots: BTreeMap<u64, u64>,
    /// Since when a lane waits for more.
    held_since: Option<Instant>,
}

#[derive(Debug)]
struct Running {
    number: u64,
    version: u32,
    back: Instant,
}

#[derive(Debug)]
struct Waiting<T> {
    ticket: Ticket<T>,
    /// Rows that have left already, in pieces.
    gone: u32,
}

/// What is known of a bucket, whether or not something waits in it.
#[derive(Debug)]
struct Profile {
    curve: Curve,
    efficient: Option<u32>,
    arrivals: Arrivals,
    used: u64,
    /// Runs that have ended, and those that were learned from.
    ended: u64,
    runs: u64,
    /// When a run of so many rows last ended.
    ran: BTreeMap<u32, Instant>,
}

#[derive(Debug, Default)]
struct Arrivals {
    last: Option<Instant>,
    gap: Option<Duration>,
}

#[derive(Debug, Default)]
struct Version {
    running: usize,
    /// Rows that memory has room for, if a run has failed for want of it.
    cap: Option<u32>,
}

impl<T: Clone> Batcher<T> {
    /// An empty one, for so many lanes.
    pub fn new(limits: Limits, lanes: usize, now: Instant) -> Self {
        Self {
            limits,
            lanes,
            origin: now,
            queues: HashMap::default(),
            heads: BTreeMap::new(),
            places: HashMap::default(),
            profiles: HashMap::default(),
            versions: HashMap::new(),
            running: Vec::new(),
            calm: (0, Duration::ZERO),
            rows: 0,
            bytes: 0,
            pushed: 0,
            claimed: 0,
        }
    }

    /// Lets a job wait.
    pub fn push(&mut self, ticket: Ticket<T>, now: Instant) -> Result<(), Refused<T>> {
        if u64::from(ticket.rows) > self.limits.rows || ticket.bytes > self.limits.bytes {
            return Err(Refused::TooLarge(ticket.payload));
        }
        let is_full = self.rows + u64::from(ticket.rows) > self.limits.rows;
        if is_full || ticket.bytes > self.limits.bytes - self.bytes {
            return Err(Refused::Overloaded { wait: self.backlog(now), job: ticket.payload });
        }
        if self.places.contains_key(&(ticket.connection, ticket.id)) {
            return Err(Refused::Duplicate(ticket.payload));
        }
        self.profile(&ticket.bucket).arrivals.observe(now);
        let soonest = ticket.deadline.map_or(now + PATIENCE, |deadline| deadline.min(now + PATIENCE));
        let urgency = soonest + HEAD_START * ticket.priority as u32;
        if let Some(deadline) = ticket.deadline
            && !self.is_calm(deadline.saturating_duration_since(now))
            && self.is_tried(&ticket.bucket, ticket.grouping.piece(ticket.rows), now)
            && let Some(forecast) = self.forecast(&ticket, urgency, now)
            && now + forecast.answered > deadline
        {
            return Err(Refused::TooLate { job: ticket.payload, wait: forecast.waits });
        }
        let place = Place { urgency, arrival: self.pushed };
        self.pushed += 1;
        self.bytes += ticket.bytes;
        self.rows += u64::from(ticket.rows);
        self.places.insert((ticket.connection, ticket.id), (ticket.bucket.clone(), place));
        let slot = self.slot(urgency);
        let queue = self.queues.entry(ticket.bucket.clone()).or_insert_with(|| Queue::new(&ticket));
        debug_assert_eq!(queue.grouping, ticket.grouping, "a bucket runs in one way");
        let head = queue.waiting.first_key_value().map(|(head, _)| *head);
        if head.is_none_or(|head| place < head) {
            if let Some(head) = head {
                self.heads.remove(&head);
            }
            self.heads.insert(place, ticket.bucket.clone());
        }
        queue.rows += u64::from(ticket.rows);
        *queue.slots.entry(slot).or_default() += u64::from(ticket.rows);
        queue.waiting.insert(place, Waiting { ticket, gone: 0 });
        Ok(())
    }

    /// What a lane that is idle at `now` is to do: run the most urgent job, and with it others of its bucket, in
    /// their order.
    pub fn next(&mut self, now: Instant) -> Next<T> {
        let Some(bucket) = self.heads.values().find(|bucket| self.may_run(bucket)).cloned() else {
            return Next::Idle;
        };
        if let Some(until) = self.worth_waiting(&bucket, now) {
            return Next::Wait(until);
        }
        Next::Run(self.take(bucket, now))
    }

    /// Takes back the claim of a batch, and learns from it.
    pub fn finish(&mut self, claim: Claim, ended: Ended, now: Instant) {
        self.running.retain(|running| running.number != claim.number);
        let version = self.versions.entry(claim.bucket.version).or_default();
        version.running -= 1;
        match (ended, &mut version.cap) {
            // A single row says nothing about how many fit.
            (Ended::OutOfMemory, cap) if claim.rows > 1 => {
                *cap = Some((claim.rows / 2).min(cap.unwrap_or(u32::MAX)));
            }
            // What has fitted once may grow; it is halved again if that was too much.
            (Ended::Ran, Some(cap)) if claim.rows >= *cap => *cap = cap.saturating_add(1),
            (Ended::Ran | Ended::Failed | Ended::OutOfMemory, _) => {}
        }
        let took = now.saturating_duration_since(claim.began);
        if ended != Ended::Ran || claim.rows == 0 {
            return;
        }
        let profile = self.profile(&claim.bucket);
        profile.ended += 1;
        // There are many short runs, and they are much alike.
        if took >= SHORT || profile.ended.is_multiple_of(SHORT_SAMPLE) {
            profile.ran.insert(size_of(claim.rows), now);
            self.learn(claim.bucket, claim.rows, took);
        }
    }

    /// Learns from a run that was no batch of its own: a warm-up.
    pub fn learn(&mut self, bucket: Bucket, rows: u32, took: Duration) {
        let profile = self.profile(&bucket);
        profile.curve.observe(rows, took);
        profile.runs += 1;
        if profile.runs < 16 || profile.runs.is_multiple_of(16) {
            profile.efficient = profile.curve.efficient(u32::MAX);
        }
    }

    /// Forgets what was learned about a version of which nothing waits or runs.
    pub fn forget(&mut self, version: u32) {
        self.profiles.retain(|bucket, _| bucket.version != version);
        self.versions.remove(&version);
    }

    /// Removes a waiting job.
    pub fn cancel(&mut self, connection: u64, id: u64) -> Option<T> {
        let (bucket, place) = self.places.remove(&(connection, id))?;
        let slot = self.slot(place.urgency);
        let queue = self.queues.get_mut(&bucket).expect("a waiting job stands in a queue");
        let TreeEntry::Occupied(found) = queue.waiting.entry(place) else {
            unreachable!("a waiting job stands at its place");
        };
        let Waiting { ticket, gone } = found.remove();
        let rows = u64::from(ticket.rows - gone);
        queue.leave(slot, rows);
        self.rows -= rows;
        self.bytes -= ticket.bytes;
        if self.heads.remove(&place).is_some() {
            self.reopen(bucket);
        }
        Some(ticket.payload)
    }

    /// Removes all that one connection has waiting.
    pub fn cancel_connection(&mut self, connection: u64) -> Vec<T> {
        let ids: Vec<u64> = self.places.keys().filter(|key| key.0 == connection).map(|key| key.1).collect();
        ids.into_iter().filter_map(|id| self.cancel(connection, id)).collect()
    }

    /// Jobs that wait.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether no job waits.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Whether [`Batcher::next`] would give something, now or soon.
    pub fn has_next(&self) -> bool {
        self.heads.values().any(|bucket| self.may_run(bucket))
    }

    /// How long a job that comes now would wait for its turn, as far as that is known.
    pub fn backlog(&self, now: Instant) -> Duration {
        let waiting: Duration =
            self.queues.iter().map(|(bucket, queue)| self.work(bucket, queue, queue.rows)).sum();
        self.per_lane(waiting + self.residual(now))
    }

    /// Puts a queue back among the heads; forgets it when nothing waits in it.
    fn reopen(&mut self, bucket: Bucket) {
        match self.queues[&bucket].waiting.first_key_value() {
            Some((head, _)) => {
                self.heads.insert(*head, bucket);
            }
            None => {
                self.queues.remove(&bucket);
            }
        }
    }

    fn may_run(&self, bucket: &Bucket) -> bool {
        let running = self.versions.get(&bucket.version).map_or(0, |version| version.running);
        running < self.queues[bucket].at_once
    }

    /// Forms a batch.
    fn take(&mut self, bucket: Bucket, now: Instant) -> Batch<T> {
        let Plan { pieces, late } = self.plan(&bucket, now);
        let (head, _) = self.queues[&bucket].waiting.first_key_value().expect("a head stands in a queue");
        self.heads.remove(head);
        let mut rows = 0;
        let take = |this: &mut Self, place: Place, most: u32| {
            let slot = this.slot(place.urgency);
            let queue = this.queues.get_mut(&bucket).expect("the plan was made of it");
            let TreeEntry::Occupied(mut found) = queue.waiting.entry(place) else {
                unreachable!("the plan was made of what waits");
            };
            let waiting = found.get_mut();
            let first = waiting.gone;
            let piece = most.min(waiting.ticket.rows - first);
            waiting.gone += piece;
            let job = waiting.ticket.payload.clone();
            if waiting.gone == waiting.ticket.rows {
                let Waiting { ticket, .. } = found.remove();
                this.places.remove(&(ticket.connection, ticket.id));
                this.bytes -= ticket.bytes;
            }
            queue.leave(slot, u64::from(piece));
            this.rows -= u64::from(piece);
            Piece { job, first, rows: piece }
        };
        let late = late.into_iter().map(|place| take(self, place, u32::MAX).job).collect();
        let pieces: Vec<_> = pieces
            .into_iter()
            .map(|(place, piece)| {
                rows += piece;
                take(self, place, piece)
            })
            .collect();
        self.queues.get_mut(&bucket).expect("nobody removed it").held_since = None;
        self.reopen(bucket.clone());
        let number = self.claimed;
        self.claimed += 1;
        self.versions.entry(bucket.version).or_default().running += 1;
        let curve = self.known(&bucket).map(|profile| &profile.curve);
        let takes = curve.and_then(|curve| curve.typical(rows)).unwrap_or_default();
        self.running.push(Running { number, version: bucket.version, back: now + takes });
        let backlog = self.backlog(now);
        self.calm = (self.rows, backlog);
        Batch { pieces, late, backlog, claim: Claim { bucket, number, rows, began: now } }
    }

    /// Which jobs run now, with how many rows each, and which are late.
    fn plan(&self, bucket: &Bucket, now: Instant) -> Plan {
        let queue = &self.queues[bucket];
        let most = match queue.grouping {
            Grouping::Together { max_rows } => self.capped(bucket.version, max_rows),
            Grouping::Alone | Grouping::Serial => u32::MAX,
        };
        let profile = self.known(bucket);
        let typical = |rows: u32| profile.and_then(|profile| profile.curve.typical(rows)).unwrap_or_default();
        let slow = |rows: u32| profile.and_then(|profile| profile.curve.slow(rows)).unwrap_or_default();
        // More waits than one efficient batch: then small batches for hasty jobs would make everybody late.
        let efficient = profile.and_then(|profile| profile.efficient).map(|rows| rows.min(most));
        let pressed = efficient.filter(|rows| queue.rows > u64::from(*rows));
        let mut plan = Plan { pieces: Vec::new(), late: Vec::new() };
        // After each piece: all rows, and the first deadline.
        let mut sums: Vec<(u32, Option<Instant>)> = Vec::new();
        for (place, waiting) in &queue.waiting {
            let (rows, earliest) = sums.last().copied().unwrap_or_default();
            let piece = (waiting.ticket.rows - waiting.gone).min(most);
            let shortest = typical(pressed.map_or(piece, |efficient| efficient.max(piece)));
            let is_late = |deadline| {
                deadline <= now || (deadline < now + shortest && self.is_tried(bucket, piece, now))
            };
            if waiting.ticket.deadline.is_some_and(is_late) {
                plan.late.push(*place);
                continue;
            }
            let has_room = match queue.grouping {
                Grouping::Together { .. } => rows.saturating_add(piece) <= most,
                Grouping::Alone | Grouping::Serial => sums.is_empty(),
            };
            if !has_room {
                break;
            }
            let earliest = [earliest, waiting.ticket.deadline].into_iter().flatten().min();
            sums.push((rows + piece, earliest));
            plan.pieces.push((*place, piece));
        }
        let Some((all, _)) = sums.last() else { return plan };
        let fill = profile.map_or(*all, |profile| match profile.runs % EXPLORE_EVERY {
            0 => profile.curve.explore(*all),
            _ => profile.curve.fill(*all),
        });
        let in_time = |takes: &dyn Fn(u32) -> Duration, (rows, earliest): (u32, Option<Instant>)| {
            earliest.is_none_or(|earliest| now + takes(rows) <= earliest)
        };
        let fits = |takes: &dyn Fn(u32) -> Duration| {
            sums.iter().rposition(|sum| sum.0 <= fill && in_time(takes, *sum))
        };
        let last = if pressed.is_some() { fits(&typical) } else { fits(&slow).or_else(|| fits(&typical)) };
        plan.pieces.truncate(last.unwrap_or(0) + 1);
        plan
    }

    /// Whether somebody with so much time need not be told when his turn would come: little more waits than when the
    /// last batch was formed, and that was a small part of it.
    fn is_calm(&self, budget: Duration) -> bool {
        let (rows, backlog) = self.calm;
        budget >= PATIENCE && backlog <= budget / 16 && self.rows <= 2 * rows + 8
    }

    /// Whether what is predicted of so many rows has been seen lately: a run of as many, or more.
    fn is_tried(&self, bucket: &Bucket, rows: u32, now: Instant) -> bool {
        let Some(profile) = self.known(bucket) else { return false };
        let mut ran = profile.ran.range(rows..).map(|(_, ran)| ran);
        ran.any(|ran| now.saturating_duration_since(*ran) < TRIED_WITHIN)
    }

    fn known(&self, bucket: &Bucket) -> Option<&Profile> {
        self.profiles.get(&*shared(bucket))
    }

    fn capped(&self, version: u32, max_rows: u32) -> u32 {
        let cap = self.versions.get(&version).and_then(|version| version.cap);
        cap.map_or(max_rows, |cap| cap.min(max_rows))
    }

    /// Until when to wait for more to join what is there, if that is better for all of them together.
    ///
    /// Running `k` jobs now and the next arrival after them costs, in summed latency,
    /// `k·L(R) + L(R) + L(r)`; waiting `w` for it and running all together, `k·(w + L(R+r)) + L(R+r)`. So waiting
    /// pays up to `w = ((k+1)·(L(R) − L(R+r)) + L(r)) / k`, if an arrival is to be expected within it.
    fn worth_waiting(&mut self, bucket: &Bucket, now: Instant) -> Option<Instant> {
        // Somebody else could use the lane.
        if self.queues.len() > 1 {
            return None;
        }
        let queue = &self.queues[bucket];
        let Grouping::Together { max_rows } = queue.grouping else { return None };
        let profile = self.known(bucket)?;
        let (gap, last) = (profile.arrivals.gap?, profile.arrivals.last?);
        let jobs = queue.waiting.len() as f64;
        let here = u32::try_from(queue.rows).ok()?;
        let one = here.div_ceil(queue.waiting.len() as u32);
        if !profile.curve.reaches_down_to(one) {
            return None;
        }
        let joint = here.checked_add(one).filter(|rows| *rows <= self.capped(bucket.version, max_rows))?;
        let seconds = |rows| profile.curve.typical(rows).map(|typical| typical.as_secs_f64());
        let pays = ((jobs + 1.0) * (seconds(here)? - seconds(joint)?) + seconds(one)?) / jobs;
        let held = queue.held_since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        let left = Duration::try_from_secs_f64(pays).ok()?.checked_sub(held)?;
        // An arrival that is overdue is not coming.
        let expected = (2 * gap).checked_sub(now.saturating_duration_since(last))?;
        let mut wait = left.min(expected);
        let slow = profile.curve.slow(joint)?;
        for waiting in queue.waiting.values() {
            if let Some(deadline) = waiting.ticket.deadline {
                wait = wait.min(deadline.saturating_duration_since(now).saturating_sub(slow));
            }
        }
        if left < gap || wait < WAIT_MIN {
            return None;
        }
        let queue = self.queues.get_mut(bucket).expect("it was just there");
        queue.held_since.get_or_insert(now);
        Some(now + wait)
    }

    /// When a job that came now would be answered.
    fn forecast(&self, ticket: &Ticket<T>, urgency: Instant, now: Instant) -> Option<Forecast> {
        let own = self.known(&ticket.bucket)?;
        let slot = self.slot(urgency);
        let mut before = self.residual(now);
        let mut with = 0;
        for (bucket, queue) in &self.queues {
            let rows = queue.rows_until(slot);
            if *bucket == ticket.bucket {
                with = rows;
            } else {
                before += self.work(bucket, queue, rows);
            }
        }
        let (full_batches, last) = match ticket.grouping {
            Grouping::Together { max_rows } => {
                let full = own.efficient?.min(self.capped(ticket.bucket.version, max_rows)).max(1);
                let all = with + u64::from(ticket.rows);
                let last = (all - 1) % u64::from(full) + 1;
                (own.curve.typical(full)?.mul_f64((all - last) as f64 / f64::from(full)), last as u32)
            }
            Grouping::Alone | Grouping::Serial => {
                let one = own.curve.typical(ticket.rows)?;
                (one.mul_f64(with as f64 / f64::from(ticket.rows)), ticket.rows)
            }
        };
        let at_once = ticket.grouping.at_once(ticket.at_once).min(self.lanes);
        let mut waits = self.per_lane(before) + full_batches / at_once as u32;
        let first_back = |running: &mut dyn Iterator<Item = &Running>| {
            running.map(|running| running.back.saturating_duration_since(now)).min().unwrap_or_default()
        };
        if self.running.len() >= self.lanes {
            waits = waits.max(first_back(&mut self.running.iter()));
        }
        let own_running = || self.running.iter().filter(|running| running.version == ticket.bucket.version);
        if own_running().count() >= at_once {
            waits = waits.max(first_back(&mut own_running()));
        }
        // Who finds nothing before it gets the benefit of the doubt.
        let run = if waits.is_zero() { own.curve.typical(last)? } else { own.curve.slow(last)? };
        Some(Forecast { waits, answered: waits + run })
    }

    /// Lane time of so many rows of a queue; nothing where nothing is known.
    fn work(&self, bucket: &Bucket, queue: &Queue<T>, rows: u64) -> Duration {
        let Some(profile) = self.known(bucket) else { return Duration::ZERO };
        let batch = match queue.grouping {
            Grouping::Together { max_rows } => {
                profile.efficient.map(|full| full.min(self.capped(bucket.version, max_rows)))
            }
            Grouping::Alone | Grouping::Serial => {
                u32::try_from(queue.rows.div_ceil(queue.waiting.len().max(1) as u64)).ok()
            }
        };
        let Some(batch) = batch.map(|batch| batch.max(1)) else { return Duration::ZERO };
        if rows <= u64::from(batch) {
            return if rows == 0 { None } else { profile.curve.typical(rows as u32) }.unwrap_or_default();
        }
        profile.curve.typical(batch).unwrap_or_default().mul_f64(rows as f64 / f64::from(batch))
    }

    /// Lane time of what runs.
    fn residual(&self, now: Instant) -> Duration {
        self.running.iter().map(|running| running.back.saturating_duration_since(now)).sum()
    }

    fn per_lane(&self, work: Duration) -> Duration {
        work / self.lanes as u32
    }

    fn slot(&self, urgency: Instant) -> u64 {
        (urgency.saturating_duration_since(self.origin).as_millis() / SLOT.as_millis()) as u64
    }

    /// What is known of a bucket; of a suspect one, what is known of the others.
    fn profile(&mut self, bucket: &Bucket) -> &mut Profile {
        let bucket = &*shared(bucket);
        if self.profiles.len() >= PROFILES_MAX && !self.profiles.contains_key(bucket) {
            let oldest = self.profiles.iter().min_by_key(|(_, profile)| profile.used);
            let oldest = oldest.map(|(bucket, _)| bucket.clone()).expect("there are many");
            self.profiles.remove(&oldest);
        }
        let used = self.pushed;
        let profile = match self.profiles.entry(bucket.clone()) {
            Entry::Occupied(found) => found.into_mut(),
            Entry::Vacant(place) => place.insert(Profile::new()),
        };
        profile.used = used;
        profile
    }
}

impl Grouping {
    fn at_once(self, measured: usize) -> usize {
        match self {
            Self::Together { .. } | Self::Alone => measured.max(1),
            Self::Serial => 1,
        }
    }

    /// Rows of the largest run that so many rows take.
    fn piece(self, rows: u32) -> u32 {
        match self {
            Self::Together { max_rows } => rows.min(max_rows),
            Self::Alone | Self::Serial => rows,
        }
    }
}

/// The bucket whose profile is meant: suspects are no slower than others.
fn shared(bucket: &Bucket) -> Cow<'_, Bucket> {
    if bucket.suspect {
        Cow::Owned(Bucket { suspect: false, ..bucket.clone() })
    } else {
        Cow::Borrowed(bucket)
    }
}

struct Plan {
    pieces: Vec<(Place, u32)>,
    late: Vec<Place>,
}

/// From now.
struct Forecast {
    waits: Duration,
    answered: Duration,
}

impl<T> Queue<T> {
    fn new(first: &Ticket<T>) -> Self {
        Self {
            grouping: first.grouping,
            at_once: first.grouping.at_once(first.at_once),
            waiting: BTreeMap::new(),
            rows: 0,
            slots: BTreeMap::new(),
            held_since: None,
        }
    }

    /// Rows that are at least as urgent.
    fn rows_until(&self, slot: u64) -> u64 {
        self.slots.range(..=slot).map(|(_, rows)| rows).sum()
    }

    fn leave(&mut self, slot: u64, rows: u64) {
        self.rows -= rows;
        let TreeEntry::Occupied(mut found) = self.slots.entry(slot) else {
            unreachable!("rows that wait are counted in their slot");
        };
        *found.get_mut() -= rows;
        if *found.get() == 0 {
            found.remove();
        }
    }
}

impl Profile {
    fn new() -> Self {
        Self {
            curve: Curve::default(),
            efficient: None,
            arrivals: Arrivals::default(),
            used: 0,
            ended: 0,
            runs: 0,
            ran: BTreeMap::new(),
        }
    }
}

impl Arrivals {
    /// Exponentially weighted mean of the gaps between arrivals.
    fn observe(&mut self, now: Instant) {
        if let Some(last) = self.last {
            let gap = now.saturating_duration_since(last);
            self.gap = Some(self.gap.map_or(gap, |mean| (mean * 7 + gap) / 8));
        }
        self.last = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOGETHER: Grouping = Grouping::Together { max_rows: 4 };

    /// A batcher and a clock that moves when told to. Jobs are their ids; the bucket decides how they run.
    struct World {
        batcher: Batcher<u64>,
        now: Instant,
        claims: Vec<Claim>,
    }

    #[derive(Clone, Debug, PartialEq, Eq)]
    enum Step {
        Run(Vec<u64>),
        RunAfterExpired(Vec<u64>, Vec<u64>),
        Wait(Duration),
        Idle,
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    impl World {
        fn new(rows: u64, bytes: usize) -> Self {
            let now = Instant::now();
            Self { batcher: Batcher::new(Limits { rows, bytes }, 1, now), now, claims: Vec::new() }
        }

        fn ticket(&self, id: u64, version: u32, free: u64) -> Ticket<u64> {
            let grouping = [TOGETHER, Grouping::Alone, Grouping::Serial][version as usize % 3];
            Ticket {
                connection: 1,
                id,
                bucket: Bucket { version, free: vec![free], suspect: false },
                grouping,
                at_once: usize::MAX,
                rows: 1,
                bytes: 10,
                deadline: None,
                priority: Priority::Normal,
                payload: id,
            }
        }

        fn push(&mut self, ticket: Ticket<u64>) -> bool {
            self.batcher.push(ticket, self.now).is_ok()
        }

        fn push_plain(&mut self, ids: &[u64], version: u32, free: u64) {
            for id in ids {
                let ticket = self.ticket(*id, version, free);
                assert!(self.push(ticket));
            }
        }

        fn push_due(&mut self, id: u64, free: u64, due: Duration) {
            let ticket = Ticket { deadline: Some(self.now + due), ..self.ticket(id, 0, free) };
            assert!(self.push(ticket));
        }

        fn step(&mut self) -> Step {
            match self.batcher.next(self.now) {
                Next::Idle => Step::Idle,
                Next::Wait(until) => Step::Wait(until - self.now),
                Next::Run(batch) => {
                    self.claims.push(batch.claim);
                    let jobs = batch.pieces.into_iter().map(|piece| piece.job).collect();
                    if batch.late.is_empty() {
                        Step::Run(jobs)
                    } else {
                        Step::RunAfterExpired(jobs, batch.late)
                    }
                }
            }
        }

        fn finish_all(&mut self) {
            for claim in self.claims.drain(..) {
                self.batcher.finish(claim, Ended::Failed, self.now);
            }
        }
    }

    #[test]
    fn an_idle_lane_takes_what_is_there_at_once() {
        let mut world = World::new(10, 1000);
        assert_eq!(world.step(), Step::Idle);
        world.push_plain(&[1], 0, 0);
        assert_eq!(world.step(), Step::Run(vec![1]));
        assert_eq!(world.step(), Step::Idle);
    }

    #[test]
    fn a_batch_fills_up_to_the_row_limit_in_order_of_arrival() {
        let mut world = World::new(10, 1000);
        world.push_plain(&[1, 2, 3, 4, 5], 0, 0);
        assert_eq!(world.step(), Step::Run(vec![1, 2, 3, 4]));
        assert_eq!(world.step(), Step::Run(vec![5]));
    }

    #[test]
    fn another_shape_does_not_cut_a_batch_short() {
        let mut world = World::new(10, 1000);
        world.push_plain(&[1], 0, 7);
        world.push_plain(&[2], 0, 8);
        world.push_plain(&[3], 0, 7);
        assert_eq!(world.step(), Step::Run(vec![1, 3]));
        assert_eq!(world.step(), Step::Run(vec![2]));
    }

    #[test]
    fn the_nearest_deadline_leaves_first_and_takes_its_bucket_along() {
        let mut world = World::new(10, 1000);
        world.push_plain(&[1], 0, 7);
        world.push_due(2, 8, ms(900));
        world.push_due(3, 8, ms(20));
        world.push_due(4, 7, ms(50));
        assert_eq!(world.step(), Step::Run(vec![3, 2]));
        assert_eq!(world.step(), Step::Run(vec![4, 1]));
    }

    #[test]
    fn a_job_without_deadline_overtakes_once_it_has_waited_long() {
        let mut world = World::new(10, 1000);
        world.push_plain(&[1], 0, 7);
        world.now += ms(990);
        world.push_due(2, 8, ms(20));
        assert_eq!(world.step(), Step::Run(vec![1]));
    }

    #[test]
    fn expired_jobs_are_handed_back_and_never_run() {
        let mut world = World::new(10, 1000);
        world.push_due(1, 0, ms(5));
        world.push_due(2, 0, ms(50));
        world.push_due(3, 0, ms(6));
        world.now += ms(6);
        assert_eq!(world.step(), Step::RunAfterExpired(vec![2], vec![1, 3]));
        world.push_due(4, 0, ms(1));
        world.now += ms(1);
        assert_eq!(world.step(), Step::RunAfterExpired(vec![], vec![4]));
        assert_eq!(world.step(), Step::Idle);
    }

    #[test]
    fn a_cancelled_job_is_gone_even_from_the_head() {
        let mut world = World::new(10, 1000);
        world.push_plain(&[1, 2], 0, 0);
        assert_eq!(world.batcher.cancel(1, 1), Some(1));
        assert_eq!(world.batcher.cancel(1, 1), None);
        assert_eq!(world.step(), Step::Run(vec![2]));
    }

    #[test]
    fn a_lost_connection_takes_its_jobs_along_and_no_others() {
        let mut world = World::new(10, 1000);
        world.push_plain(&[1, 2], 0, 0);
        let other = Ticket { connection: 2, ..world.ticket(1, 0, 0) };
        assert!(world.push(other));
        let mut gone = world.batcher.cancel_connection(1);
        gone.sort_unstable();
        assert_eq!(gone, [1, 2]);
        assert_eq!(world.step(), Step::Run(vec![1]));
    }

    #[test]
    fn a_full_queue_refuses_by_rows_and_by_bytes() {
        let mut world = World::new(2, 1000);
        world.push_plain(&[1, 2], 0, 0);
        let third = world.ticket(3, 0, 0);
        assert!(matches!(world.batcher.push(third, world.now), Err(Refused::Overloaded { job: 3, .. })));

        let mut world = World::new(10, 25);
        world.push_plain(&[1, 2], 0, 0);
        let third = world.ticket(3, 0, 0);
        assert!(matches!(world.batcher.push(third, world.now), Err(Refused::Overloaded { job: 3, .. })));
        assert_eq!(world.batcher.cancel(1, 2), Some(2));
        world.push_plain(&[3], 0, 0);
    }

    #[test]
    fn an_id_that_waits_already_is_refused() {
        let mut world = World::new(10, 1000);
        world.push_plain(&[1], 0, 0);
        let again = world.ticket(1, 0, 9);
        assert!(matches!(world.batcher.push(again, world.now), Err(Refused::Duplicate(1))));
        assert_eq!(world.batcher.len(), 1);
    }

    #[test]
    fn jobs_that_must_be_alone_run_one_by_one_on_many_lanes() {
        let mut world = World::new(10, 1000);
        world.push_plain(&[1, 2], 1, 0);
        assert_eq!(world.step(), Step::Run(vec![1]));
        assert_eq!(world.step(), Step::Run(vec![2]));
    }

    #[test]
    fn a_serial_bucket_waits_for_its_claim_and_holds_up_nobody_else() {
        let mut world = World::new(10, 1000);
        world.push_plain(&[1, 2], 2, 0);
        assert_eq!(world.step(), Step::Run(vec![1]));
        assert_eq!(world.step(), Step::Idle);
        world.push_plain(&[3], 2, 0);
        world.push_plain(&[4], 0, 0);
        assert_eq!(world.step(), Step::Run(vec![4]));
        world.finish_all();
        assert_eq!(world.step(), Step::Run(vec![2]));
        world.finish_all();
        assert_eq!(world.step(), Step::Run(vec![3]));
        world.finish_all();
        assert!(world.batcher.queues.is_empty() && world.batcher.heads.is_empty());
    }

    #[test]
    fn a_job_larger_than_a_batch_runs_in_pieces_and_its_last_rows_take_others_along() {
        let mut world = World::new(100, 1000);
        let large = Ticket { rows: 9, ..world.ticket(1, 0, 0) };
        assert!(world.push(large));
        world.push_plain(&[2, 3], 0, 0);
        let mut pieces = || match world.batcher.next(world.now) {
            Next::Run(batch) => {
                batch.pieces.iter().map(|piece| (piece.job, piece.first, piece.rows)).collect()
            }
            Next::Wait(_) | Next::Idle => Vec::new(),
        };
        assert_eq!(pieces(), [(1, 0, 4)]);
        assert_eq!(pieces(), [(1, 4, 4)]);
        assert_eq!(pieces(), [(1, 8, 1), (2, 0, 1), (3, 0, 1)]);
        assert_eq!(pieces(), []);
    }

    #[test]
    fn the_rest_of_a_large_job_can_be_cancelled() {
        let mut world = World::new(100, 1000);
        let large = Ticket { rows: 9, ..world.ticket(1, 0, 0) };
        assert!(world.push(large));
        assert_eq!(world.step(), Step::Run(vec![1]));
        assert_eq!(world.batcher.cancel(1, 1), Some(1));
        assert_eq!((world.step(), world.batcher.rows, world.batcher.bytes), (Step::Idle, 0, 0));
    }

    #[test]
    fn priority_is_a_head_start_and_no_more() {
        let mut world = World::new(10, 1000);
        let low = Ticket { priority: Priority::Low, ..world.ticket(1, 1, 0) };
        assert!(world.push(low));
        world.push_plain(&[2], 1, 0);
        let high = Ticket { priority: Priority::High, ..world.ticket(3, 1, 0) };
        assert!(world.push(high));
        assert_eq!(world.step(), Step::Run(vec![3]));
        assert_eq!(world.step(), Step::Run(vec![2]));
        world.now += 2 * HEAD_START + ms(1);
        let high = Ticket { priority: Priority::High, ..world.ticket(4, 1, 0) };
        assert!(world.push(high));
        assert_eq!(world.step(), Step::Run(vec![1]), "it has waited longer than the head start");
    }

    impl World {
        /// What a run of so many rows takes, told often enough to be believed.
        fn learn(&mut self, version: u32, free: u64, took: &[(u32, u64)]) {
            for _ in 0..5 {
                for (rows, took) in took {
                    let bucket = Bucket { version, free: vec![free], suspect: false };
                    self.batcher.learn(bucket, *rows, ms(*took));
                }
            }
            let bucket = Bucket { version, free: vec![free], suspect: false };
            for (rows, _) in took {
                self.batcher.profile(&bucket).ran.insert(*rows, self.now);
            }
        }
    }

    #[test]
    fn a_job_that_would_be_late_is_refused_at_once_with_its_wait() {
        let mut world = World::new(100, 10_000);
        world.learn(0, 0, &[(1, 10), (4, 20)]);
        for id in 0..8 {
            world.push_due(id, 0, ms(500));
        }
        // Two batches of 4 stand before it; alone it takes 10 ms, 15 when something goes wrong.
        let late = Ticket { deadline: Some(world.now + ms(50)), ..world.ticket(50, 0, 0) };
        assert!(world.push(late), "a tight deadline goes first");
        let late = Ticket { deadline: Some(world.now + ms(501)), ..world.ticket(51, 0, 0) };
        assert!(world.push(late));
        let late = Ticket { deadline: Some(world.now + ms(9)), ..world.ticket(52, 0, 0) };
        let Err(Refused::TooLate { job: 52, wait }) = world.batcher.push(late, world.now) else {
            panic!("10 ms of work do not fit into 9")
        };
        assert_eq!(wait, Duration::ZERO, "nothing stands before it");
    }

    #[test]
    fn what_runs_and_other_buckets_count_into_the_wait() {
        let mut world = World::new(100, 10_000);
        world.learn(0, 0, &[(1, 10), (4, 20)]);
        world.learn(0, 7, &[(1, 30)]);
        world.push_plain(&[1, 2, 3, 4], 0, 0);
        assert_eq!(world.step(), Step::Run(vec![1, 2, 3, 4]));
        world.push_plain(&[5], 0, 7);
        world.now += ms(5);
        // 15 ms are left of what runs, and 30 stand before a job without haste.
        let backlog = |world: &World| (world.batcher.backlog(world.now).as_secs_f64() * 1e3).round();
        assert_eq!(backlog(&world), 45.0);
        let patient = Ticket { deadline: Some(world.now + PATIENCE), ..world.ticket(6, 0, 0) };
        assert!(world.push(patient));
        world.finish_all();
        assert_eq!(backlog(&world), 40.0);
    }

    #[test]
    fn a_deadline_that_leaves_time_for_less_gets_a_smaller_batch() {
        let mut world = World::new(100, 10_000);
        world.learn(0, 0, &[(1, 10), (2, 14), (4, 22)]);
        world.push_due(1, 0, ms(25));
        for id in 2..5 {
            world.push_due(id, 0, ms(400));
        }
        // Half as long again has to be reckoned with: 21 ms for two rows, 27 for three.
        assert_eq!(world.step(), Step::Run(vec![1, 2]));
    }

    #[test]
    fn who_cannot_be_in_time_any_more_is_told_so_and_not_run() {
        let mut world = World::new(100, 10_000);
        world.push_due(1, 0, ms(20));
        world.push_due(2, 0, ms(200));
        world.learn(0, 0, &[(1, 30), (4, 30)]);
        assert_eq!(world.step(), Step::RunAfterExpired(vec![2], vec![1]));
    }

    #[test]
    fn what_was_too_slow_once_is_tried_again() {
        let mut world = World::new(100, 10_000);
        world.learn(0, 0, &[(1, 300), (4, 300)]);
        let hasty =
            |world: &World, id| Ticket { deadline: Some(world.now + ms(200)), ..world.ticket(id, 0, 0) };
        let ticket = hasty(&world, 1);
        assert!(!world.push(ticket));
        world.now += TRIED_WITHIN;
        let ticket = hasty(&world, 2);
        assert!(world.push(ticket));
        assert_eq!(world.step(), Step::Run(vec![2]));
    }

    #[test]
    fn a_step_in_the_curve_is_not_stepped_over() {
        let mut world = World::new(100, 10_000);
        let mut ids = 0..;
        let mut push = |world: &mut World, count: usize| {
            let ids: Vec<u64> = ids.by_ref().take(count).collect();
            world.push_plain(&ids, 0, 0);
        };
        world.learn(0, 0, &[(1, 10), (2, 10), (3, 10), (4, 40)]);
        push(&mut world, 4);
        assert_eq!(world.step(), Step::Run(vec![0, 1, 2]));
        assert_eq!(world.step(), Step::Run(vec![3]));
    }

    #[test]
    fn an_idle_lane_waits_for_an_arrival_that_saves_more_than_it_costs() {
        let mut world = World::new(100, 10_000);
        world.learn(0, 0, &[(1, 10), (4, 10)]);
        for id in 0..8 {
            world.push_plain(&[id], 0, 0);
            assert!(matches!(world.step(), Step::Run(_) | Step::Wait(_)));
            world.now += ms(1);
        }
        while world.step() != Step::Idle {
            world.now += ms(1);
        }
        // One every millisecond, 10 ms a run whatever its size: worth two gaps, not the 10 ms that it might be.
        world.push_plain(&[20], 0, 0);
        let Step::Wait(wait) = world.step() else { panic!("waiting pays") };
        assert!(wait > ms(1) && wait < ms(6), "{wait:?}");
        world.now += wait;
        assert_eq!(world.step(), Step::Run(vec![20]), "nobody came");
    }

    #[test]
    fn nobody_waits_for_a_rare_arrival_nor_when_nothing_is_saved_nor_against_a_deadline() {
        let mut world = World::new(100, 10_000);
        world.learn(0, 0, &[(1, 10), (2, 10), (4, 10)]);
        world.learn(3, 0, &[(1, 10), (2, 20), (4, 40)]);
        for id in 0..6 {
            world.push_plain(&[id], 0, 0);
            assert_eq!(world.step(), Step::Run(vec![id]));
            world.now += ms(100);
        }
        for id in 10..30 {
            world.push_plain(&[id], 3, 0);
            assert_eq!(world.step(), Step::Run(vec![id]), "linear");
            world.now += ms(1);
        }
        let mut world = World::new(100, 10_000);
        world.learn(0, 0, &[(1, 10), (2, 10), (4, 10)]);
        for id in 0..8 {
            world.push_due(id, 0, Duration::from_micros(15_050));
            assert_eq!(world.step(), Step::Run(vec![id]), "15 ms are for a slow run");
            world.finish_all();
            world.now += ms(1);
        }
    }

    #[test]
    fn nobody_waits_because_of_how_long_much_larger_batches_take() {
        let mut world = World::new(100, 10_000);
        world.learn(0, 0, &[(32, 500)]);
        for id in 0..8 {
            world.push_plain(&[id], 0, 0);
            assert_eq!(world.step(), Step::Run(vec![id]));
            world.now += ms(20);
        }
    }

    #[test]
    fn memory_that_ran_out_halves_the_batch_and_is_tried_again_row_by_row() {
        let mut world = World::new(100, 10_000);
        let mut run = |ended| {
            for id in 0..4 {
                let ticket = world.ticket(id, 0, 0);
                world.push(ticket);
            }
            let Next::Run(batch) = world.batcher.next(world.now) else { panic!("there is work") };
            world.batcher.finish(batch.claim, ended, world.now);
            batch.pieces.len()
        };
        assert_eq!(run(Ended::OutOfMemory), 4);
        assert_eq!(run(Ended::Ran), 2);
        assert_eq!(run(Ended::Ran), 3);
        assert_eq!(run(Ended::OutOfMemory), 4);
        assert_eq!(run(Ended::Failed), 2);
        assert_eq!(run(Ended::Ran), 2);
    }

    #[test]
    fn shapes_without_number_do_not_fill_memory() {
        let mut world = World::new(100, 10_000);
        for free in 0..2 * PROFILES_MAX as u64 {
            world.push_plain(&[free], 0, free);
            assert_eq!(world.step(), Step::Run(vec![free]));
            world.finish_all();
        }
        assert_eq!(world.batcher.profiles.len(), PROFILES_MAX);
    }
}
