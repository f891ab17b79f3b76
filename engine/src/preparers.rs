//! Threads that pre-process: what callers send becomes what the model takes, before it enters the queue. Who waits for them,
//! and who need not, is decided in [`waiting`]; nothing is done for those who need it no more.
//!
//! It takes milliseconds, which neither the thread that reads nor a lane has: others would wait for them. These threads go
//! after both.
//!
//! ```text
//!   connection ─▶ preparers ─▶ connection ─▶ queue
//!       raw          tensors       enters, unless it was cancelled meanwhile
//! ```

mod waiting;

use crate::batcher::{Ended, Limits};
use crate::job::{Refusal, Request, Terms};
use crate::lane::text_of;
use crate::mailbox::Mailbox;
use crate::model::Version;
use crate::preprocess::{Needs, Room};
use crate::schedule;
use bytes::Bytes;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, mpsc};
pub(crate) use waiting::After;
use waiting::{Asks, Begun, Turn, Waiting};
use wire::Infer;

/// Requests that may wait for it.
const WAITING_MAX: usize = 1024;

/// With those that are at it, or done and not yet in the queue.
pub(crate) const REQUESTS_MAX: usize = 2 * WAITING_MAX;

/// What decoders may hold at the same time.
const DECODING_BYTES_MAX: u64 = 512 << 20;

/// A request as it came.
pub(crate) struct Raw {
    pub(crate) version: Arc<Version>,
    pub(crate) infer: Infer,
    pub(crate) payload: Bytes,
    pub(crate) terms: Terms,
    pub(crate) mailbox: Arc<Mailbox>,
    /// Becomes true when nobody waits for it any more.
    pub(crate) cancelled: Arc<AtomicBool>,
}

impl Raw {
    /// As many as the largest of its inputs has.
    pub(crate) fn rows(&self) -> u64 {
        self.infer.inputs.iter().filter_map(|input| input.shape.first()).copied().max().unwrap_or(1)
    }
}

/// What has become of it.
pub(crate) struct Prepared {
    pub(crate) terms: Terms,
    pub(crate) result: Result<Request, Refusal>,
    pub(crate) cancelled: Arc<AtomicBool>,
    /// Held until it is in the queue, which counts it from then on.
    pub(crate) place: Place,
}

/// The threads; they end when nobody holds this any more.
pub(crate) struct Preparers {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    wake: Condvar,
    emptied: Notify,
    room: Room,
    bytes_max: usize,
}

struct State {
    waiting: Waiting<Task>,
    /// With those that wait, and those that are done and not in the queue.
    requests: usize,
    bytes: usize,
    ending: Ending,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    No,
    /// Nothing may come any more.
    Closed,
    /// Threads end.
    Over,
}

struct Task {
    raw: Raw,
    done: mpsc::Sender<Prepared>,
    place: Place,
}

/// What a request takes of the bounds, until this is dropped.
pub(crate) struct Place {
    shared: Arc<Shared>,
    bytes: usize,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.requests -= 1;
        state.bytes -= self.bytes;
        if state.requests == 0 {
            self.shared.emptied.notify_waiters();
        }
    }
}

impl Preparers {
    /// So many threads, for requests of so many bytes: those that came, and those of the tensors that they become.
    pub(crate) fn start(threads: usize, bytes_max: usize) -> io::Result<Arc<Self>> {
        let limits = Limits { rows: WAITING_MAX as u64, bytes: bytes_max, run_bytes: 0 };
        let state = State {
            waiting: Waiting::new(limits, threads, Instant::now()),
            requests: 0,
            bytes: 0,
            ending: Ending::No,
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            wake: Condvar::new(),
            emptied: Notify::new(),
            room: Room::new(DECODING_BYTES_MAX),
            bytes_max,
        });
        // Ends those that have been started, should one fail to.
        let this = Arc::new(Self { shared: Arc::clone(&shared) });
        for number in 0..threads {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new().name(format!("prepare-{number}")).spawn(move || {
                schedule::after_lanes();
                while let Some(Turn { late, work }) = shared.next() {
                    late.into_iter().for_each(|(task, refusal)| task.turn_away(refusal));
                    if let Some((task, begun)) = work {
                        let ended = shared.work(task, begun.expected);
                        shared.finish(begun, ended);
                    }
                }
            })?;
        }
        Ok(this)
    }

    /// Lets a request wait that needs so much; `after` is what comes when its tensors are there. What becomes of it is sent to
    /// `done`, unless nobody waits for it by then; and so is what becomes of those that have to go for it.
    pub(crate) fn submit(
        &self,
        raw: Raw,
        needs: Needs,
        after: After,
        done: &mpsc::Sender<Prepared>,
        now: Instant,
    ) -> Result<(), Refusal> {
        let Needs { tensor_bytes, work } = needs;
        let bytes = raw.terms.metadata_bytes.saturating_add(raw.payload.len()).saturating_add(tensor_bytes);
        let asks = Asks {
            connection: raw.mailbox.connection,
            id: raw.terms.id,
            version: raw.version.key,
            work,
            bytes,
            deadline: raw.terms.deadline,
            after,
            priority: raw.terms.priority,
            criticality: raw.terms.criticality,
            tenant: raw.terms.tenant,
        };
        let place = Place { shared: Arc::clone(&self.shared), bytes };
        let mut shed = Vec::new();
        let mut state = self.shared.lock();
        // From here on the place counts, whatever becomes of it.
        state.requests += 1;
        state.bytes += bytes;
        let mut task = Some(Task { raw, done: done.clone(), place });
        let admitted = state.admit(asks, self.shared.bytes_max, &mut task, &mut shed, now);
        let wait = if shed.is_empty() { Duration::ZERO } else { state.waiting.backlog(work, now) };
        // Places take the lock.
        drop(state);
        if admitted.is_ok() {
            self.shared.wake.notify_one();
        }
        shed.into_iter().for_each(|task| {
            let is_over = task.raw.terms.deadline.is_some_and(|deadline| deadline <= now);
            task.turn_away(if is_over { Refusal::Expired } else { Refusal::Shed { wait } });
        });
        admitted
    }

    /// Removes one that nobody waits for any more, if it waits.
    pub(crate) fn cancel(&self, connection: u64, id: u64) {
        // Named, so that it is freed after the lock is.
        let cancelled = self.shared.lock().waiting.cancel(connection, id);
        drop(cancelled);
    }

    /// Removes all that one connection has waiting.
    pub(crate) fn cancel_connection(&self, connection: u64) {
        let cancelled = self.shared.lock().waiting.cancel_connection(connection);
        drop(cancelled);
    }

    /// Requests that wait, are at it, or are done and not yet in the queue.
    pub(crate) fn under_way(&self) -> u64 {
        self.shared.lock().requests as u64
    }

    /// Bytes of those, and of the tensors that they become.
    pub(crate) fn bytes(&self) -> usize {
        self.shared.lock().bytes
    }

    /// From now on nothing may come; returns when all that has come is in the queue.
    pub(crate) async fn close(&self) {
        self.shared.lock().ending = Ending::Closed;
        loop {
            let emptied = self.shared.emptied.notified();
            if self.under_way() == 0 {
                return;
            }
            emptied.await;
        }
    }
}

impl Drop for Preparers {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.ending = Ending::Over;
        // Freed after the lock is: places take it.
        let waiting = state.waiting.take_all();
        drop(state);
        drop(waiting);
        self.shared.wake.notify_all();
    }
}

impl State {
    /// Takes `task` if it may wait. It has been counted already.
    fn admit(
        &mut self,
        asks: Asks,
        bytes_max: usize,
        task: &mut Option<Task>,
        shed: &mut Vec<Task>,
        now: Instant,
    ) -> Result<(), Refusal> {
        if self.ending != Ending::No {
            return Err(Refusal::Stopping);
        }
        // What is done leaves its bytes to what waits only when it is in the queue, and makes way for nobody.
        let of_others = self.bytes - asks.bytes;
        let is_full = of_others > self.waiting.bytes() && self.bytes > bytes_max;
        if is_full || self.requests > REQUESTS_MAX {
            return Err(Refusal::Overloaded {
                wait: self.waiting.backlog(asks.work, now).max(asks.after.backlog),
            });
        }
        self.waiting.push(asks, || task.take().expect("it is made once"), shed, now)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic under this lock")
    }

    fn next(&self) -> Option<Turn<Task>> {
        let mut state = self.lock();
        while state.ending != Ending::Over {
            if let Some(turn) = state.waiting.next(Instant::now()) {
                return Some(turn);
            }
            state = self.wake.wait(state).expect("no panic under this lock");
        }
        None
    }

    fn finish(&self, begun: Begun, ended: Ended) {
        let mut state = self.lock();
        let now = Instant::now();
        state.waiting.finish(begun, ended, now);
        // One that takes long may wait for this one's end, while those that sleep have found nothing that they may do.
        let has_next = state.waiting.has_next(now);
        drop(state);
        if has_next {
            self.wake.notify_one();
        }
    }

    fn work(&self, task: Task, expected: Option<Duration>) -> Ended {
        let Task { raw, done, place } = task;
        if raw.cancelled.load(Ordering::Relaxed) || !raw.mailbox.is_open() {
            return Ended::Failed;
        }
        let Raw { version, infer, payload, mut terms, cancelled, mailbox } = raw;
        let (began, deadline) = (Instant::now(), terms.deadline);
        let is_late = || deadline.is_some_and(|deadline| deadline <= Instant::now());
        let is_wanted = || !cancelled.load(Ordering::Relaxed) && mailbox.is_open() && !is_late();
        let result = self.prepare(&version, infer, &payload, &is_wanted);
        let took = began.elapsed();
        let ended = match &result {
            Ok(_) => Ended::Ran,
            // It would have taken longer still: who did not learn from that would let others begin in vain for ever.
            Err(Refusal::Expired) if expected.map_or_else(is_late, |expected| took > expected) => Ended::Ran,
            Err(_) => Ended::Failed,
        };
        terms.prepared = (began + took).saturating_duration_since(terms.received);
        // As many fit as may be under way; an error means that the connection is gone.
        let _ = done.try_send(Prepared { terms, result, cancelled, place });
        ended
    }

    /// Decoders are others' code: where one panics, it is the fault of what it was given.
    fn prepare(
        &self,
        version: &Arc<Version>,
        infer: Infer,
        payload: &Bytes,
        is_wanted: &dyn Fn() -> bool,
    ) -> Result<Request, Refusal> {
        let preprocess = version.preprocess.as_ref().expect("only what is to be pre-processed comes here");
        let Infer { inputs, outputs, .. } = infer;
        version.drift.observe_lengths(&inputs, payload, Instant::now());
        let work = || {
            let (inputs, tensors) = preprocess.apply(inputs, payload, &self.room, is_wanted)?;
            Request::check_for(version, inputs, outputs, tensors)
        };
        catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
            tracing::warn!(
                model = version.name,
                version = version.number,
                "pre-processing: {}",
                text_of(&*panic)
            );
            Err(Refusal::Undecodable)
        })
    }
}

impl Task {
    fn turn_away(self, refusal: Refusal) {
        let Self { raw: Raw { terms, cancelled, .. }, done, place } = self;
        let _ = done.try_send(Prepared { terms, result: Err(refusal), cancelled, place });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preprocess::{Kind, Work};
    use crate::scripted::{Scripted, catalog_of, rows_spec, terms};
    use socket::Socket;
    use std::task::{Context, Poll, Waker};

    /// Nobody works here, so that everything waits.
    struct World {
        preparers: Arc<Preparers>,
        version: Arc<Version>,
        mailbox: Arc<Mailbox>,
        done: mpsc::Sender<Prepared>,
        _ends: (mpsc::Receiver<Prepared>, tokio::net::UnixStream),
    }

    impl World {
        fn new(bytes_max: usize) -> Self {
            let spec = rows_spec(&[("x", 1)], &[("y", 1)], 4);
            let catalog = catalog_of("m", 1, Scripted::new(spec, |_| unreachable!("nothing runs")));
            let version = Arc::clone(catalog.find("m", 1).ok().unwrap());
            let (ours, theirs) = tokio::net::UnixStream::pair().unwrap();
            let mailbox = Arc::new(Mailbox::new(1, 1 << 20, Arc::new(Socket::new(ours).unwrap())));
            let (done, results) = mpsc::channel(REQUESTS_MAX);
            let preparers = Preparers::start(0, bytes_max).unwrap();
            Self { preparers, version, mailbox, done, _ends: (results, theirs) }
        }

        fn submit(&self, id: u64, payload: usize, tensor_bytes: usize) -> Result<(), Refusal> {
            let work = Work { kind: Kind::Text, pixels: 1 };
            self.submit_work(id, payload, Needs { tensor_bytes, work })
        }

        fn submit_work(&self, id: u64, payload: usize, needs: Needs) -> Result<(), Refusal> {
            let raw = Raw {
                version: Arc::clone(&self.version),
                infer: Infer::default(),
                payload: Bytes::from(vec![0; payload]),
                terms: terms(id),
                mailbox: Arc::clone(&self.mailbox),
                cancelled: Arc::default(),
            };
            self.preparers.submit(raw, needs, After::default(), &self.done, Instant::now())
        }

        /// Takes the first out of the line, as if it had been done and was in the queue.
        fn finish(&self) {
            let (task, begun) = self.begin();
            self.preparers.shared.finish(begun, Ended::Failed);
            drop(task);
        }

        fn begin(&self) -> (Task, Begun) {
            let turn = self.preparers.shared.lock().waiting.next(Instant::now());
            turn.and_then(|turn| turn.work).expect("one waits")
        }
    }

    fn on_a_runtime(test: impl FnOnce()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        let _entered = runtime.enter();
        test();
    }

    const FULL: Result<(), Refusal> = Err(Refusal::Overloaded { wait: Duration::ZERO });

    #[test]
    fn what_waits_is_bounded_in_bytes_with_those_of_the_tensors_to_be() {
        on_a_runtime(|| {
            let world = World::new(100);
            assert_eq!(world.submit(1, 20, 30), Ok(()));
            assert_eq!(world.submit(2, 0, 31), FULL);
            assert_eq!(world.submit(3, 0, 30), Ok(()));
            world.finish();
            assert_eq!(world.submit(4, 10, 40), Ok(()));
            world.finish();
            world.finish();
            assert_eq!(world.submit(5, 10, 1000), Ok(()), "it is alone");
            assert_eq!((world.submit(6, 0, 0), world.preparers.under_way()), (FULL, 1));
        });
    }

    #[test]
    fn what_waits_is_bounded_in_requests() {
        on_a_runtime(|| {
            let world = World::new(usize::MAX);
            assert!((0..WAITING_MAX as u64).all(|id| world.submit(id, 0, 0).is_ok()));
            assert_eq!(world.submit(9999, 0, 0), FULL);
        });
    }

    #[test]
    fn requests_that_take_long_leave_a_thread_to_others() {
        on_a_runtime(|| {
            let world = World::new(usize::MAX);
            // As many bytes came of each.
            for (id, pixels) in [(1, 42_000_000), (2, 42_000_000), (3, 300_000), (4, 64)] {
                let needs = Needs { tensor_bytes: 0, work: Work { kind: Kind::Jpeg, pixels } };
                assert_eq!(world.submit_work(id, 100, needs), Ok(()));
            }
            let begin = || {
                let (task, begun) = world.begin();
                (task.raw.terms.id, begun)
            };
            let (first, long) = begin();
            assert_eq!((first, begin().0, begin().0), (1, 3, 4));
            world.preparers.shared.finish(long, Ended::Failed);
            assert_eq!(begin().0, 2);
        });
    }

    #[test]
    fn closing_takes_until_all_that_came_is_in_the_queue() {
        on_a_runtime(|| {
            let world = World::new(1000);
            assert_eq!(world.submit(1, 0, 0), Ok(()));
            let mut closing = std::pin::pin!(world.preparers.close());
            let mut look = || closing.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            assert_eq!(look(), Poll::Pending);
            assert_eq!(world.submit(2, 0, 0), Err(Refusal::Stopping));
            world.finish();
            assert_eq!(look(), Poll::Ready(()));
        });
    }
}
