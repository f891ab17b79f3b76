//! The one place that shares the [`Batcher`]: connections put work in, lanes sleep until there is some. The lock
//! is held for the batcher's own work only, never while a model runs or a socket is written.

use crate::batcher::{
    Batch, Batcher, Bound, Bucket, Claim, Ended, Grouping, Limits, Next, Piece, Refused, Ticket,
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
                    state.running[lane] = Some(Running { claim, pieces });
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
        let mut state = self.lock();
        state.running[lane] = None;
        state.looking.take_if(|looking| *looking == lane);
        state.batcher.finish(claim, ended, Instant::now());
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

    /// Where nobody waits any more for what a lane runs, nor for what any other does, and something else waits: what 99 of 100 such
    /// runs take at most, if that is known. As long as a lane is left, or comes back, nobody misses this one.
    pub(crate) fn abandoned(&self, lane: usize, now: Instant) -> Option<Duration> {
        let running = {
            let state = self.lock();
            if state.looking.is_some() || state.batcher.is_empty() {
                return None;
            }
            state.running.clone()
        };
        let is_awaited = |Piece { job, .. }: &Piece<Arc<Job>>| job.is_wanted() && !job.has_expired(now);
        let is_held = |running: &Option<Running>| {
            running.as_ref().is_some_and(|running| !running.pieces.iter().any(is_awaited))
        };
        let Running { pieces, .. } = running[lane].as_ref().filter(|_| running.iter().all(is_held))?;
        let bucket = bucket_of(&pieces.first()?.job.request, false);
        let rows = pieces.iter().map(|piece| piece.rows).sum();
        self.lock().batcher.slow(&bucket, rows)
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
    let at_once = version.grouping.at_once(version.way.at_once);
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
mod tests {
    use super::*;
    use crate::mailbox::Mailbox;
    use crate::scripted::{Scripted, catalog_of, one_row, rows_spec, terms};
    use crate::suspects::MEMORY;
    use socket::Socket;
    use wire::{Datatype, TensorMeta};

    /// A queue for one lane, and a version of which nothing runs.
    struct World {
        queue: Queue,
        version: Arc<Version>,
        mailbox: Arc<Mailbox>,
        _ends: (tokio::runtime::Runtime, tokio::net::UnixStream),
    }

    impl World {
        fn new() -> Self {
            Self::of_connection(1)
        }

        fn of_connection(number: u64) -> Self {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
            let entered = runtime.enter();
            let (ours, theirs) = tokio::net::UnixStream::pair().unwrap();
            let mailbox = Arc::new(Mailbox::new(number, 1 << 20, Arc::new(Socket::new(ours).unwrap())));
            drop(entered);
            let spec = rows_spec(&[("x", 1)], &[("y", 1)], 4);
            let catalog = catalog_of("m", 1, Scripted::new(spec, |_| unreachable!("nothing runs")));
            let version = Arc::clone(catalog.find("m", 1).ok().unwrap());
            let queue = Queue::new(Limits::halving(10, 2000), 1);
            Self { queue, version, mailbox, _ends: (runtime, theirs) }
        }

        /// A job of one row.
        fn job(&self, id: u64, caller: u64) -> Arc<Job> {
            let terms = Terms { caller, ..terms(id) };
            Arc::new(Job::new(one_row(&self.version, &[0.0]), terms, Arc::clone(&self.mailbox)))
        }

        fn submit(&self, jobs: &[&Arc<Job>], now: Instant) {
            let mut refused = Vec::new();
            let mut orders = jobs.iter().map(|job| Order::Run(Arc::clone(job))).collect();
            self.queue.submit(&mut orders, &mut refused, now);
            assert!(refused.is_empty(), "{refused:?}");
        }

        /// How many jobs the next batch has.
        fn run(&self) -> usize {
            let Batch { pieces, claim, .. } = self.queue.next(0).unwrap();
            self.queue.finish(0, claim, Ended::Failed);
            pieces.len()
        }
    }

    #[test]
    fn a_job_that_is_forgotten_does_not_take_another_of_its_id_along() {
        let world = World::new();
        let (before, after, now) = (world.job(7, 0), world.job(7, 0), Instant::now());
        world.submit(&[&before], now);
        let ran = world.queue.next(0).unwrap();
        // The first has its answer, and whoever has read it asks again under the same id.
        world.submit(&[&after], now);
        world.queue.forget(&before);
        assert_eq!(world.queue.under_way(), 2, "the run, and what waits");
        world.queue.forget(&after);
        assert_eq!(world.queue.under_way(), 1);
        world.queue.finish(0, ran.claim, Ended::Ran);
    }

    #[test]
    fn at_the_moment_a_cancel_is_heard_the_queue_has_lost_what_waited_and_its_bytes() {
        let (world, now) = (World::new(), Instant::now());
        let jobs: Vec<_> = (1..=3).map(|id| world.job(id, 0)).collect();
        world.submit(&jobs.iter().collect::<Vec<_>>(), now);
        let freed: Vec<_> = jobs.iter().map(Arc::downgrade).collect();
        let one = jobs[0].bytes;
        drop(jobs);
        let cancel = |id| {
            let mut orders = vec![Order::Cancel { connection: 1, id }];
            world.queue.submit(&mut orders, &mut Vec::new(), now);
            (world.queue.under_way(), world.queue.bytes())
        };
        assert_eq!((world.queue.under_way(), world.queue.bytes()), (3, 3 * one));
        assert_eq!([cancel(2), cancel(1), cancel(9)], [(2, 2 * one), (1, one), (1, one)]);
        assert_eq!(freed.iter().filter(|job| job.upgrade().is_some()).count(), 1, "nothing leaks");
        assert_eq!(cancel(3), (0, 0));
        assert!(freed.iter().all(|job| job.upgrade().is_none()));
    }

    #[test]
    fn a_connection_that_is_lost_takes_its_thousand_waiting_jobs_along_and_nobody_elses() {
        let (mut world, other, now) = (World::new(), World::of_connection(2), Instant::now());
        world.queue = Queue::new(Limits::halving(1001, 1 << 20), 1);
        let jobs: Vec<_> = (0..1000).map(|id| world.job(id, 0)).collect();
        let theirs = other.job(7, 0);
        world.submit(&jobs.iter().chain([&theirs]).collect::<Vec<_>>(), now);
        let freed: Vec<_> = jobs.iter().map(Arc::downgrade).collect();
        drop(jobs);
        world.queue.cancel_connection(1);
        assert!(freed.iter().all(|job| job.upgrade().is_none()), "nothing leaks");
        assert_eq!((world.queue.under_way(), world.queue.bytes()), (1, theirs.bytes));
        let ran = world.queue.next(0).unwrap();
        assert!(ran.pieces.len() == 1 && Arc::ptr_eq(&ran.pieces[0].job, &theirs));
        world.queue.finish(0, ran.claim, Ended::Ran);
        assert_eq!((world.queue.under_way(), world.queue.bytes()), (0, 0));
    }

    #[test]
    fn what_runs_when_it_is_cancelled_is_answered_no_more_and_its_mates_are() {
        let (world, now) = (World::new(), Instant::now());
        let jobs: Vec<_> = (1..=3).map(|id| world.job(id, 0)).collect();
        world.submit(&jobs.iter().collect::<Vec<_>>(), now);
        let ran = world.queue.next(0).unwrap();
        assert_eq!(ran.pieces.len(), 3);
        let mut orders = vec![Order::Cancel { connection: 1, id: 2 }];
        world.queue.submit(&mut orders, &mut Vec::new(), now);
        assert_eq!(world.queue.under_way(), 1, "the run goes on");
        assert_eq!([true, false, true], [0, 1, 2].map(|at: usize| jobs[at].may_answer()));
        world.queue.finish(0, ran.claim, Ended::Ran);
        assert_eq!((world.queue.under_way(), world.queue.bytes()), (0, 0));
    }

    #[test]
    fn a_run_is_abandoned_once_the_last_of_its_callers_has_gone_or_is_late_if_such_runs_are_known() {
        let (world, now) = (World::new(), Instant::now());
        let (leaver, patient) = (world.job(1, 0), world.job(2, 0));
        let deadline = now + Duration::from_secs(1);
        let late = Job::new(
            one_row(&world.version, &[0.0]),
            Terms { deadline: Some(deadline), ..terms(3) },
            Arc::clone(&world.mailbox),
        );
        world.submit(&[&leaver, &patient, &Arc::new(late)], now);
        let run = world.queue.next(0).unwrap();
        let runs_of = |rows| {
            let mut curve = Curve::default();
            (0..5).for_each(|_| curve.observe(rows, Duration::from_millis(10)));
            world.queue.seed(&bucket_of(&leaver.request, false), curve);
        };
        runs_of(3);
        leaver.cancel();
        let next = world.job(4, 0);
        world.submit(&[&next], now);
        assert_eq!(world.queue.abandoned(0, deadline), None, "one has no deadline, and waits");
        patient.cancel();
        assert_eq!(world.queue.abandoned(0, now), None, "one has time left");
        assert_eq!(world.queue.abandoned(0, deadline), Some(Duration::from_millis(15)));
        world.queue.submit(&mut vec![Order::Cancel { connection: 1, id: 4 }], &mut Vec::new(), now);
        assert_eq!(world.queue.abandoned(0, deadline), None, "nothing else needs the lane");
        world.submit(&[&world.job(5, 0)], now);
        runs_of(1);
        assert_eq!(world.queue.abandoned(0, deadline), None, "so many rows have not run");
        world.queue.finish(0, run.claim, Ended::Ran);
        runs_of(3);
        assert_eq!(world.queue.abandoned(0, deadline), None, "it is back");
    }

    #[test]
    fn who_comes_while_a_batch_is_divided_is_refused_if_its_parts_take_too_long() {
        let (world, now) = (World::new(), Instant::now());
        let mut curve = Curve::default();
        (0..5).for_each(|_| [1, 2, 4].iter().for_each(|rows| curve.observe(*rows, Duration::from_secs(1))));
        world.queue.seed(&bucket_of(&world.job(0, 0).request, false), curve);
        let run = |first: u64| {
            let jobs: Vec<_> = (first..first + 2).map(|id| world.job(id, 0)).collect();
            world.submit(&jobs.iter().collect::<Vec<_>>(), now);
            world.queue.next(0).unwrap().claim
        };
        for first in 0..20 {
            let claim = run(100 + 2 * first);
            world.queue.finish(0, claim, Ended::Divided { failed: 1, left: 0 });
        }
        let claim = run(5);
        let ask = |id| {
            let terms = Terms { deadline: Some(Instant::now() + Duration::from_millis(2500)), ..terms(id) };
            let job = Job::new(one_row(&world.version, &[0.0]), terms, Arc::clone(&world.mailbox));
            let mut refused = Vec::new();
            world.queue.submit(&mut vec![Order::Run(Arc::new(job))], &mut refused, Instant::now());
            refused
        };
        assert!(ask(9).is_empty(), "a run is back in a second");
        world.queue.divides(0);
        assert!(matches!(ask(10)[..], [(10, Refusal::TooLate { .. })]), "and its parts in two more");
        world.queue.finish(0, claim, Ended::Divided { failed: 1, left: 0 });
        assert!(ask(11).is_empty());
    }

    #[test]
    fn one_lane_at_a_time_looks_again_and_what_it_does_is_reckoned_with() {
        let (world, now) = (World::new(), Instant::now());
        let queue = Queue::new(Limits::halving(10, 2000), 2);
        let mut orders: Vec<_> = (1..=2).map(|id| Order::Run(world.job(id, 0))).collect();
        let take = |lane, order| {
            queue.submit(&mut vec![order], &mut Vec::new(), now);
            queue.next(lane).unwrap().claim
        };
        let mut first = take(0, orders.remove(0));
        let mut second = take(1, orders.remove(0));
        assert!(queue.may_look(0, &mut first, 1) && !queue.may_look(1, &mut second, 1));
        assert_eq!(queue.running(), 2, "it holds what its batch has claimed");
        queue.finish(0, first, Ended::Ran);
        assert!(queue.may_look(1, &mut second, 1));
        queue.finish(1, second, Ended::Ran);
        let mut third = take(0, Order::Run(world.job(3, 0)));
        queue.stop();
        assert!(!queue.may_look(0, &mut third, 1), "whoever stops it waits");
        queue.finish(0, third, Ended::Ran);
        assert_eq!((queue.under_way(), queue.bytes()), (0, 0));
    }

    #[test]
    fn what_needs_several_runs_is_refused_once_it_is_known_that_rows_depend_on_each_other() {
        let (world, now) = (World::new(), Instant::now());
        let ask = |id| {
            let meta = TensorMeta {
                name: "x".into(),
                datatype: Datatype::Fp32 as u32,
                shape: vec![5, 1],
                ..TensorMeta::default()
            };
            let request =
                Request::check_for(&world.version, vec![meta], Vec::new(), vec![0; 20].into()).unwrap();
            let job = Arc::new(Job::new(request, terms(id), Arc::clone(&world.mailbox)));
            let mut refused = Vec::new();
            world.queue.submit(&mut vec![Order::Run(job)], &mut refused, now);
            refused
        };
        assert!(ask(1).is_empty(), "it runs in two pieces");
        assert!(world.version.audit.has_miscounted());
        let refused = ask(2);
        assert!(matches!(refused[..], [(2, Refusal::TooManyRows { rows: 5, most: 4 })]), "{refused:?}");
    }

    /// Until so many lanes sleep, and none is on its way.
    fn all_sleep(queue: &Queue, lanes: usize) {
        let sleep = || {
            let state = queue.lock();
            state.idle.len() == lanes && state.called.is_none()
        };
        while !sleep() {
            std::thread::yield_now();
        }
    }

    #[test]
    fn what_is_announced_wakes_one_lane_which_sleeps_again_if_nothing_comes() {
        let World { version, mailbox, _ends, .. } = World::new();
        let queue = Arc::new(Queue::new(Limits::halving(10, 2000), 2));
        let (ran, runs) = std::sync::mpsc::channel();
        let lanes: Vec<_> = (0..2)
            .map(|lane| {
                let (queue, ran) = (Arc::clone(&queue), ran.clone());
                std::thread::spawn(move || {
                    while let Some(Batch { pieces, claim, .. }) = queue.next(lane) {
                        ran.send((lane, pieces.len())).unwrap();
                        queue.finish(lane, claim, Ended::Ran);
                    }
                })
            })
            .collect();
        for id in 1..100 {
            all_sleep(&queue, 2);
            let announced = queue.announce().expect("both sleep");
            let state = queue.lock();
            // Unless it has waited long enough meanwhile, it is awake or will be, and nobody else is.
            let called = state.called;
            assert_eq!(state.idle.len(), if called.is_some() { 1 } else { 2 });
            drop(state);
            if id % 2 == 0 {
                drop(announced);
                continue; // it was refused before it could wait
            }
            let job = Arc::new(Job::new(one_row(&version, &[0.0]), terms(id), Arc::clone(&mailbox)));
            queue.submit(&mut vec![Order::Run(job)], &mut Vec::new(), Instant::now());
            drop(announced);
            let (lane, pieces) = runs.recv().unwrap();
            assert_eq!(pieces, 1);
            assert!(called.is_none_or(|called| called == lane), "lane {lane} ran in place of {called:?}");
        }
        queue.stop();
        lanes.into_iter().for_each(|lane| lane.join().unwrap());
    }

    #[test]
    fn what_waits_of_a_version_that_miscounts_runs_alone_from_the_moment_that_this_is_known() {
        let (world, now) = (World::new(), Instant::now());
        let jobs: Vec<_> = (1..=3).map(|id| world.job(id, 0)).collect();
        world.submit(&jobs.iter().collect::<Vec<_>>(), now);
        assert!(world.version.audit.has_miscounted());
        world.queue.regroup(&world.version);
        world.submit(&[&world.job(4, 0)], now);
        (0..4).for_each(|_| assert_eq!(world.run(), 1));
    }

    #[test]
    fn what_waits_of_a_version_that_writes_to_its_own_tensors_runs_one_after_the_other() {
        let (world, now) = (World::new(), Instant::now());
        world.submit(&[&world.job(1, 0), &world.job(2, 0)], now);
        let mut state = world.queue.lock();
        state.batcher.regroup(world.version.key, (Grouping::Serial, u32::MAX), usize::MAX);
        let Next::Run(first) = state.batcher.next(now) else { panic!("there is work") };
        assert_eq!(first.pieces.len(), 1);
        assert!(matches!(state.batcher.next(now), Next::Idle), "the first one runs");
        state.batcher.finish(first.claim, Ended::Ran, now);
        assert!(matches!(state.batcher.next(now), Next::Run(_)));
    }

    #[test]
    fn who_has_made_batches_fail_runs_alone_for_a_while_and_with_others_after_it() {
        let (world, now) = (World::new(), Instant::now());
        let (guilty, other) = (world.job(1, 66), world.job(2, 77));
        (0..2).for_each(|_| world.queue.convict(&guilty));
        world.submit(&[&guilty, &other], now);
        assert_eq!([world.run(), world.run()], [1, 1]);
        let convicted_by = Instant::now();
        world.submit(&[&world.job(3, 66), &world.job(4, 77)], convicted_by + MEMORY);
        assert_eq!(world.run(), 2, "it is forgotten");
    }
}
