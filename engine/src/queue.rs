//! The one place that shares the [`Batcher`]: connections put work in, lanes sleep until there is some. The lock
//! is held for the batcher's own work only, never while a model runs or a socket is written.

use crate::batcher::{
    Batch, Batcher, Bound, Bucket, Claim, Ended, Grouping, Limits, Next, Piece, Priority, Refused, Ticket,
};
use crate::curve::Curve;
use crate::job::{Job, Refusal, Request, Terms};
use crate::model::Version;
use crate::preparers::After;
use crate::split;
use crate::suspects::Suspects;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::thread::Thread;
use std::time::{Duration, Instant};

/// A lane that was woken for work that is still being read waits for it awake for so long at most.
const AWAKE_MAX: Duration = Duration::from_micros(100);

/// Whoever was turned away for want of lanes or room is told how long it would wait, and comes back after about that. Until then and for
/// so much longer it counts as one who waits,
const TURNED_AWAY: Duration = Duration::from_secs(4);

/// but no longer than that.
const TURNED_AWAY_MAX: Duration = Duration::from_secs(30);

/// Where nobody waits for anything that runs, and lanes have neither begun nor ended anything but copies for so long, nobody is served.
/// Longer than from one look of the watchdog to the next, so that nothing is missed in between.
const AT_A_STANDSTILL: Duration = Duration::from_secs(2);

/// What a connection asks of the queue.
pub(crate) enum Order {
    /// Let it wait for a lane.
    Run(Arc<Job>),
    /// Nobody wants it any more: if it waits, it is forgotten; if it runs, that is the last that is done for it.
    Cancel { connection: u64, id: u64 },
}

/// Work that waits, shared by connections and lanes.
pub(crate) struct Queue {
    state: Mutex<State>,
    /// The lanes' threads, each from its first question on.
    lanes: Vec<OnceLock<Thread>>,
    /// Lanes that sleep, for those who do not hold the lock.
    asleep: AtomicUsize,
    /// Something is being read that will probably be submitted soon.
    announced: AtomicBool,
    /// Batches that lanes have taken.
    begun: AtomicU64,
    /// Bytes of replies that no proxy has read yet.
    unread: Arc<AtomicUsize>,
}

type Pieces = Arc<[Piece<Arc<Job>>]>;

#[derive(Clone)]
struct Running {
    /// The number of its claim.
    claim: u64,
    pieces: Pieces,
}

impl Running {
    /// Whether nobody waits any more for anything that it runs.
    fn is_given_up(&self, now: Instant) -> bool {
        let is_awaited = |Piece { job, .. }: &Piece<Arc<Job>>| {
            job.terms.priority != Priority::Last && job.is_wanted() && !job.has_expired(now)
        };
        !self.pieces.iter().any(is_awaited)
    }
}

struct State {
    batcher: Batcher<Arc<Job>>,
    suspects: Suspects,
    /// Lanes that sleep. The one that fell asleep last is woken first: its caches are still warm, and at low load
    /// the others are left alone.
    idle: Vec<usize>,
    /// A lane that was woken for what is announced, and is on its way.
    called: Option<usize>,
    /// What each lane runs.
    running: Vec<Option<Running>>,
    /// The lane that runs a request once more which it has answered.
    looking: Option<usize>,
    /// When a lane last began a batch that was not of copies alone, or was done with one.
    moved: Instant,
    /// Until when somebody is missed who was turned away since then, for want of lanes or room.
    turned_away: Option<Instant>,
    stopping: bool,
}

impl Queue {
    pub(crate) fn new(limits: Limits, lanes: usize) -> Self {
        let state = State {
            batcher: Batcher::new(limits, lanes, Instant::now()),
            suspects: Suspects::default(),
            idle: Vec::new(),
            called: None,
            running: vec![None; lanes],
            looking: None,
            turned_away: None,
            moved: Instant::now(),
            stopping: false,
        };
        Self {
            state: Mutex::new(state),
            lanes: (0..lanes).map(|_| OnceLock::new()).collect(),
            asleep: AtomicUsize::new(0),
            announced: AtomicBool::new(false),
            begun: AtomicU64::new(0),
            unread: Arc::default(),
        }
    }

    /// Where connections count bytes of replies that they have not got rid of.
    pub(crate) fn unread(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.unread)
    }

    /// Some of these were read: there may be room now for what has waited for it.
    pub(crate) fn was_read(&self) {
        let mut state = self.lock();
        state.batcher.unread(self.unread.load(Ordering::Relaxed));
        self.wake_one(state);
    }

    /// Says that a request has come which is still to be read and checked: if it would be the only one, a lane that sleeps
    /// wakes up meanwhile, which takes about as long. To be dropped once it was submitted, or was not.
    pub(crate) fn announce(self: &Arc<Self>) -> Option<Announcement> {
        if self.asleep.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let mut state = self.lock();
        if state.called.is_some() || !state.batcher.is_empty() {
            return None;
        }
        let lane = self.pop_idle(&mut state)?;
        state.called = Some(lane);
        self.announced.store(true, Ordering::Release);
        drop(state);
        self.wake(lane);
        Some(Announcement(Arc::clone(self)))
    }

    /// Carries out `orders`, in order, and empties them. Adds the jobs that may not wait to `refused`, and tells those
    /// that have to go for others.
    pub(crate) fn submit(&self, orders: &mut Vec<Order>, refused: &mut Vec<(u64, Refusal)>, now: Instant) {
        if orders.is_empty() {
            return;
        }
        // Freed after the lock is.
        let (mut cancelled, mut shed) = (Vec::new(), Vec::new());
        let mut state = self.lock();
        for order in orders.drain(..) {
            match order {
                Order::Run(job) if state.stopping => refused.push((job.terms.id, Refusal::Stopping)),
                Order::Run(job) => {
                    let id = job.terms.id;
                    let found = job.request.version.audit.found().map(|found| found.grouping);
                    if found.is_some()
                        && let Err(refusal) = job.request.fits_one_run()
                    {
                        refused.push((id, refusal));
                        continue;
                    }
                    let apart =
                        found.or_else(|| state.suspects.is_suspect(&job, now).then_some(Grouping::Alone));
                    if let Err(refusal) = state.batcher.push(ticket(job, apart), &mut shed, now) {
                        match &refusal {
                            Refused::TooLate { job, wait } if state.lacks_lanes(&job.request.version) => {
                                state.turn_away(job.terms.priority, *wait, now);
                            }
                            Refused::Overloaded { job, wait } => {
                                state.turn_away(job.terms.priority, *wait, now)
                            }
                            _ => {}
                        }
                        refused.push((id, into_refusal(id, refusal, state.batcher.limits())));
                    }
                }
                Order::Cancel { connection, id } => {
                    let waiting = state.batcher.cancel(connection, id);
                    if let Some(job) = waiting.as_ref().or_else(|| state.running(connection, id)) {
                        job.cancel();
                    }
                    cancelled.push(waiting);
                }
            }
        }
        let shed = state.told(shed, now);
        // What has come is there for whoever was called for it.
        self.announced.store(false, Ordering::Release);
        self.wake_one(state);
        shed.iter().for_each(|(job, refusal)| split::turn_away(job, refusal));
    }

    /// The next batch for a lane, as soon as there is one; `None` when the engine stops and nothing is left.
    pub(crate) fn next(&self, lane: usize) -> Option<Batch<Arc<Job>>> {
        let mut state = self.lock();
        loop {
            let now = Instant::now();
            state.batcher.unread(self.unread.load(Ordering::Relaxed));
            let until = match state.batcher.next(now) {
                Next::Run(batch) => {
                    let (claim, pieces) = (batch.claim.number(), Arc::clone(&batch.pieces));
                    let begun = Running { claim, pieces };
                    state.moved_on(&begun, now);
                    state.running[lane] = Some(begun);
                    if batch.pieces.is_empty()
                        && batch.late.iter().any(|job| job.terms.priority != Priority::Last)
                    {
                        // It comes back as whoever was told so at once.
                        state.turn_away(Priority::Normal, Duration::ZERO, now);
                    }
                    // One wake-up leads to the next while there is work, so that none is made for nothing.
                    self.wake_one(state);
                    self.begun.fetch_add(1, Ordering::Relaxed);
                    return Some(batch);
                }
                Next::Idle if state.stopping && state.batcher.is_empty() => return None,
                Next::Idle => None,
                Next::Wait(until) => Some(until),
            };
            state = self.sleep(lane, until, state);
        }
    }

    /// Until the lane is woken, or the time has come.
    fn sleep<'a>(
        &'a self,
        lane: usize,
        until: Option<Instant>,
        mut state: MutexGuard<'a, State>,
    ) -> MutexGuard<'a, State> {
        let _ = self.lanes[lane].set(std::thread::current());
        state.idle.push(lane);
        self.asleep.store(state.idle.len(), Ordering::Relaxed);
        loop {
            drop(state);
            match until {
                None => std::thread::park(),
                Some(until) => std::thread::park_timeout(until.saturating_duration_since(Instant::now())),
            }
            self.wait_awake();
            state = self.lock();
            if !state.idle.contains(&lane) {
                break;
            }
            if until.is_some_and(|until| until <= Instant::now()) {
                state.idle.retain(|idle| *idle != lane);
                self.asleep.store(state.idle.len(), Ordering::Relaxed);
                break;
            }
        }
        state.called.take_if(|called| *called == lane);
        state
    }

    /// For what is announced. Whoever fell asleep for the lock would have to be woken once more.
    fn wait_awake(&self) {
        let until = Instant::now() + AWAKE_MAX;
        while self.announced.load(Ordering::Acquire) && Instant::now() < until {
            std::thread::yield_now();
        }
    }

    /// Whether a lane may run so many rows once more that it has answered, under the claim that it has: one lane at a time.
    pub(crate) fn may_look(&self, lane: usize, claim: &mut Claim, rows: u32) -> bool {
        let mut state = self.lock();
        let may = !state.stopping && state.looking.is_none();
        if may {
            state.looking = Some(lane);
            state.batcher.extend(claim, rows, Instant::now());
        }
        may
    }

    /// The batch that a lane runs has failed, and its parts are to run.
    pub(crate) fn divides(&self, lane: usize) {
        let mut state = self.lock();
        let State { batcher, running, .. } = &mut *state;
        let Some(Running { claim, pieces }) = &running[lane] else { return };
        let deadlines: Option<Vec<_>> = pieces.iter().map(|piece| piece.job.terms.deadline).collect();
        let until = deadlines.and_then(|all| all.into_iter().max());
        batcher.divides(*claim, until, Instant::now());
    }

    /// Takes back the claim of the batch that a lane has run.
    pub(crate) fn finish(&self, lane: usize, claim: Claim, ended: Ended) {
        let (mut state, now) = (self.lock(), Instant::now());
        if let Some(ended) = state.running[lane].take() {
            state.moved_on(&ended, now);
        }
        state.looking.take_if(|looking| *looking == lane);
        state.batcher.finish(claim, ended, now);
        if state.stopping {
            self.wake_all(state);
        } else {
            self.wake_one(state);
        }
    }

    /// Takes over what a calibration has learned. Made by the caller, who may be slow: lanes wait for the lock.
    pub(crate) fn seed(&self, bucket: &Bucket, curve: Curve) {
        self.lock().batcher.seed(bucket, curve);
    }

    /// Removes what is left of a job whose answer is known.
    pub(crate) fn forget(&self, job: &Arc<Job>) {
        let mut state = self.lock();
        // Whoever has read that answer may have asked something else under its id.
        let waiting = state.batcher.waiting(job.mailbox.connection, job.terms.id);
        let is_left = waiting.is_some_and(|waiting| Arc::ptr_eq(waiting, job));
        let rest = is_left.then(|| state.batcher.cancel(job.mailbox.connection, job.terms.id));
        // Freed after the lock is.
        drop(state);
        drop(rest);
    }

    /// What a request will meet here that is to be prepared first, as far as that is known.
    pub(crate) fn after(&self, version: &Version, rows: u64, terms: &Terms, now: Instant) -> After {
        let rows = version.rows_of(rows);
        // Of one whose shape is only known once it is prepared, what was found out when the version was loaded has to do.
        let bucket = Bucket { version: version.key, free: Vec::new(), suspect: false };
        let bound = bound_of(version);
        let state = self.lock();
        let backlog = state.batcher.backlog_before(bound, terms.criticality, terms.tenant, now);
        let takes = state.batcher.takes(&bucket, version.grouping, rows);
        drop(state);
        let (run, with_others) = takes.unwrap_or_else(|| version.takes(rows));
        let lanes = self.lanes.len();
        After { backlog, adds: with_others * version.way.lanes.min(lanes) as u32, run, bound, lanes }
    }

    /// Somebody was turned away before coming here, who would wait for so long.
    pub(crate) fn turn_away(&self, version: &Version, priority: Priority, wait: Duration, now: Instant) {
        let mut state = self.lock();
        if state.lacks_lanes(version) {
            state.turn_away(priority, wait, now);
        }
    }

    /// What such runs as that of this lane take at most, as far as [`Batcher::slow`] tells, if others are held up while nobody waits any
    /// more for what any lane runs.
    pub(crate) fn abandoned(&self, lane: usize, now: Instant) -> Option<Duration> {
        let running = self.lock().running.clone();
        if !running.iter().flatten().all(|running| running.is_given_up(now)) {
            return None;
        }
        let pieces = &running[lane].as_ref()?.pieces;
        let bucket = bucket_of(&pieces.first()?.job.request, false);
        let rows = pieces.iter().map(|piece| piece.rows).sum();
        let state = self.lock();
        state.batcher.slow(&bucket, rows).filter(|_| state.is_held_up(now))
    }

    /// Batches that lanes have taken since the start.
    pub(crate) fn begun(&self) -> u64 {
        self.begun.load(Ordering::Relaxed)
    }

    /// Jobs that wait, and runs that have not ended.
    pub(crate) fn under_way(&self) -> u64 {
        let state = self.lock();
        (state.batcher.len() + state.batcher.running()) as u64
    }

    /// Runs that have not ended.
    pub(crate) fn running(&self) -> u64 {
        self.lock().batcher.running() as u64
    }

    /// Those for which nobody waits any more.
    pub(crate) fn given_up(&self, now: Instant) -> u64 {
        let running = self.lock().running.clone();
        running.iter().flatten().filter(|running| running.is_given_up(now)).count() as u64
    }

    /// Bytes of jobs that wait or run, and those that runs take beside.
    pub(crate) fn bytes(&self) -> usize {
        self.lock().batcher.bytes()
    }

    /// What was found out of a version while it serves holds for what waits of it as well.
    pub(crate) fn regroup(&self, version: &Version) {
        let Some(found) = version.audit.found() else { return };
        let mut state = self.lock();
        let most = match version.grouping {
            Grouping::Together { max_rows } => max_rows,
            Grouping::Alone | Grouping::Serial => u32::MAX,
        };
        let in_pieces = state.batcher.regroup(version.key, (found.grouping, most), version.way.at_once);
        // A lane may be waiting for more that would run together.
        self.wake_one(state);
        for job in in_pieces {
            split::turn_away(&job, &Refusal::TooManyRows { rows: job.request.rows.into(), most });
        }
    }

    /// Forgets what was learned about a version that no job needs any more.
    pub(crate) fn forget_version(&self, version: u32) {
        // Named, so that it is freed after the lock is.
        let forgotten = self.lock().batcher.forget(version);
        drop(forgotten);
    }

    /// Notes that a job made a batch fail that ran without it.
    pub(crate) fn convict(&self, job: &Job) {
        self.lock().suspects.convict(job, Instant::now());
    }

    /// Removes all that one connection has waiting.
    pub(crate) fn cancel_connection(&self, connection: u64) {
        let mut state = self.lock();
        // Named, so that the jobs are freed after the lock is.
        let cancelled = state.batcher.cancel_connection(connection);
        // Others may have waited for what was kept for these.
        state.batcher.unread(self.unread.load(Ordering::Relaxed));
        self.wake_one(state);
        drop(cancelled);
    }

    /// From now on nothing may enter; lanes end when nothing is left.
    pub(crate) fn stop(&self) {
        let mut state = self.lock();
        state.stopping = true;
        self.wake_all(state);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic under the queue's lock")
    }

    /// Wakes a lane if one sleeps and there is something for it: each wake-up is a system call.
    fn wake_one(&self, mut state: MutexGuard<'_, State>) {
        // Who is on its way finds all that there is.
        let is_needed = state.called.is_none() && state.batcher.has_next(Instant::now());
        let woken = if is_needed { self.pop_idle(&mut state) } else { None };
        drop(state);
        if let Some(lane) = woken {
            self.wake(lane);
        }
    }

    fn pop_idle(&self, state: &mut State) -> Option<usize> {
        let lane = state.idle.pop();
        self.asleep.store(state.idle.len(), Ordering::Relaxed);
        lane
    }

    fn wake(&self, lane: usize) {
        self.lanes[lane].get().expect("it has fallen asleep").unpark();
    }

    fn wake_all(&self, mut state: MutexGuard<'_, State>) {
        let idle = std::mem::take(&mut state.idle);
        self.asleep.store(0, Ordering::Relaxed);
        drop(state);
        idle.into_iter().for_each(|lane| self.wake(lane));
    }
}

/// Work is on its way; see [`Queue::announce`].
pub(crate) struct Announcement(Arc<Queue>);

impl Drop for Announcement {
    fn drop(&mut self) {
        self.0.announced.store(false, Ordering::Release);
    }
}

impl State {
    fn turn_away(&mut self, priority: Priority, wait: Duration, now: Instant) {
        if priority != Priority::Last {
            let until = now + wait.saturating_add(TURNED_AWAY).min(TURNED_AWAY_MAX);
            self.turned_away = self.turned_away.max(Some(until));
        }
    }

    /// A lane begins this, or is done with it: whoever was turned away may find one now.
    fn moved_on(&mut self, with: &Running, now: Instant) {
        if with.pieces.iter().any(|piece| piece.job.terms.priority != Priority::Last) {
            (self.moved, self.turned_away) = (now, None);
        }
    }

    fn is_one_idle(&self) -> bool {
        self.running.iter().any(Option::is_none)
    }

    fn lacks_lanes(&self, version: &Version) -> bool {
        !self.is_one_idle() || self.batcher.lacks_lanes(bound_of(version))
    }

    /// Whether somebody waits, or comes back before long, while all is at a standstill: as long as others are served, nobody is a reason
    /// to take the engine from them.
    fn is_held_up(&self, now: Instant) -> bool {
        let is_at_a_standstill = now.saturating_duration_since(self.moved) >= AT_A_STANDSTILL;
        let is_missed = self.turned_away.is_some_and(|until| now <= until);
        is_at_a_standstill && (is_missed || self.batcher.is_awaited(now))
    }

    /// A job that a lane runs, or a piece of it.
    fn running(&self, connection: u64, id: u64) -> Option<&Arc<Job>> {
        let mut jobs =
            self.running.iter().flatten().flat_map(|running| running.pieces.iter()).map(|piece| &piece.job);
        jobs.find(|job| (job.mailbox.connection, job.terms.id) == (connection, id))
    }

    /// What those are told that had to go for others.
    fn told(&self, shed: Vec<Arc<Job>>, now: Instant) -> Vec<(Arc<Job>, Refusal)> {
        let mut waits: Option<(u32, Duration)> = None;
        let told = shed.into_iter().map(|job| {
            if job.has_expired(now) {
                return (job, Refusal::Expired);
            }
            let version = &job.request.version;
            let known = waits.filter(|(key, _)| *key == version.key);
            let (_, wait) = *waits
                .insert(known.unwrap_or_else(|| (version.key, self.batcher.backlog(bound_of(version), now))));
            (job, Refusal::Shed { wait })
        });
        told.collect()
    }
}

fn bound_of(version: &Version) -> Bound {
    let grouping = version.audit.found().map_or(version.grouping, |found| found.grouping);
    let at_once = grouping.at_once(version.way.at_once);
    Bound { version: version.key, lanes: version.way.lanes, at_once }
}

fn bucket_of(request: &Request, suspect: bool) -> Bucket {
    Bucket { version: request.version.key, free: request.free_dimensions(), suspect }
}

/// A job that may run with others, or runs apart from them in that way.
fn ticket(job: Arc<Job>, apart: Option<Grouping>) -> Ticket<Arc<Job>> {
    let version = &job.request.version;
    Ticket {
        connection: job.mailbox.connection,
        id: job.terms.id,
        bucket: bucket_of(&job.request, apart.is_some()),
        grouping: apart.unwrap_or(version.grouping),
        lanes: version.way.lanes,
        at_once: version.way.at_once,
        rows: job.request.rows,
        bytes: job.bytes,
        run_bytes: job.run_bytes,
        deadline: job.terms.deadline,
        priority: job.terms.priority,
        criticality: job.terms.criticality,
        tenant: job.terms.tenant,
        payload: job,
    }
}

fn into_refusal(id: u64, refused: Refused<Arc<Job>>, limits: Limits) -> Refusal {
    match refused {
        Refused::Overloaded { wait, .. } => Refusal::Overloaded { wait },
        Refused::TooLate { wait, .. } => Refusal::TooLate { wait },
        Refused::Hopeless(_) => Refusal::Hopeless,
        Refused::TooLarge(job) if u64::from(job.request.rows) > limits.rows => {
            Refusal::TooLarge { what: "rows", got: job.request.rows.into(), most: limits.rows }
        }
        Refused::TooLarge(job) => {
            let what = "bytes of inputs, a copy of them and outputs";
            let got = job.bytes.saturating_add(job.run_bytes);
            Refusal::TooLarge { what, got: got as u64, most: limits.all_bytes() as u64 }
        }
        Refused::Duplicate(_) => Refusal::Duplicate { id },
    }
}

#[cfg(test)]
mod tests;
