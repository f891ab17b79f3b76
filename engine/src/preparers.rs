//! Threads that pre-process: what callers send becomes what the model takes, before it enters the queue. Decides what may
//! wait for that, and does nothing for those who need it no more.
//!
//! It takes milliseconds, which neither the thread that reads nor a lane has: others would wait for them. These threads go
//! after both.
//!
//! ```text
//!   connection ─▶ preparers ─▶ connection ─▶ queue
//!       raw          tensors       enters, unless it was cancelled meanwhile
//! ```

use crate::connection::Mailbox;
use crate::job::{Refusal, Request, Terms};
use crate::lane::text_of;
use crate::model::Version;
use crate::preprocess::Room;
use crate::schedule;
use bytes::Bytes;
use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, mpsc};
use wire::Infer;

/// Requests that may wait for it, be at it, or be done and not yet in the queue.
pub(crate) const REQUESTS_MAX: usize = 1024;

/// Requests of more rows than this leave one of several threads to those of fewer.
const LONG: u64 = 8;

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
    threads: usize,
    bytes_max: usize,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Task>,
    /// With those that wait, and those that are done and not in the queue.
    requests: usize,
    bytes: usize,
    /// Of those that are at it, how many have many rows.
    long: usize,
    /// What one takes, of those seen lately.
    typical: Duration,
    ending: Ending,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Ending {
    #[default]
    No,
    /// Nothing may come any more.
    Closed,
    /// Threads end.
    Over,
}

struct Task {
    raw: Raw,
    /// Whether it has many rows.
    is_long: bool,
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
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            wake: Condvar::new(),
            emptied: Notify::new(),
            room: Room::new(DECODING_BYTES_MAX),
            threads,
            bytes_max,
        });
        // Ends those that have been started, should one fail to.
        let this = Arc::new(Self { shared: Arc::clone(&shared) });
        for number in 0..threads {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new().name(format!("prepare-{number}")).spawn(move || {
                schedule::after_lanes();
                while let Some(task) = shared.next() {
                    let is_long = task.is_long;
                    shared.work(task);
                    shared.end(is_long);
                }
            })?;
        }
        Ok(this)
    }

    /// Lets a request wait; `tensor_bytes` is the most that its tensors will have. What becomes of it is sent to `done`, unless
    /// nobody waits for it by then.
    pub(crate) fn submit(
        &self,
        raw: Raw,
        tensor_bytes: usize,
        done: &mpsc::Sender<Prepared>,
    ) -> Result<(), Refusal> {
        let bytes = raw.terms.metadata_bytes.saturating_add(raw.payload.len()).saturating_add(tensor_bytes);
        let mut state = self.shared.lock();
        if state.ending != Ending::No {
            return Err(Refusal::Stopping);
        }
        // One that is larger than all may be gets its turn when there is no other.
        let is_full = state.bytes.saturating_add(bytes) > self.shared.bytes_max && state.requests > 0;
        if is_full || state.requests == REQUESTS_MAX {
            let runs = state.requests.div_ceil(self.shared.threads.max(1));
            let wait = state.typical.saturating_mul(u32::try_from(runs).unwrap_or(u32::MAX));
            return Err(Refusal::Overloaded { wait });
        }
        state.requests += 1;
        state.bytes += bytes;
        let place = Place { shared: Arc::clone(&self.shared), bytes };
        let rows = raw.infer.inputs.iter().filter_map(|input| input.shape.first()).max();
        let is_long = rows.is_some_and(|rows| *rows > LONG);
        state.waiting.push_back(Task { raw, is_long, done: done.clone(), place });
        drop(state);
        self.shared.wake.notify_one();
        Ok(())
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
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        drop(waiting);
        self.shared.wake.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic under this lock")
    }

    fn next(&self) -> Option<Task> {
        let long_max = self.threads.saturating_sub(1).max(1);
        let first =
            |state: &State| state.waiting.iter().position(|task| !task.is_long || state.long < long_max);
        let is_idle = |state: &mut State| first(state).is_none() && state.ending != Ending::Over;
        let mut state = self.wake.wait_while(self.lock(), is_idle).expect("no panic under this lock");
        let at = first(&state)?;
        let task = state.waiting.remove(at)?;
        state.long += usize::from(task.is_long);
        Some(task)
    }

    fn end(&self, is_long: bool) {
        if is_long {
            self.lock().long -= 1;
            self.wake.notify_one();
        }
    }

    fn work(&self, task: Task) {
        let Task { raw, done, place, .. } = task;
        if raw.cancelled.load(Ordering::Relaxed) || !raw.mailbox.is_open() {
            return;
        }
        let Raw { version, infer, payload, mut terms, cancelled, mailbox } = raw;
        let began = Instant::now();
        let deadline = terms.deadline;
        let is_wanted = || {
            !cancelled.load(Ordering::Relaxed)
                && mailbox.is_open()
                && deadline.is_none_or(|deadline| Instant::now() < deadline)
        };
        let result = if is_wanted() {
            self.prepare(&version, infer, &payload, &is_wanted)
        } else {
            Err(Refusal::Expired)
        };
        let ended = Instant::now();
        self.learn(ended - began);
        terms.prepared = ended.saturating_duration_since(terms.received);
        // As many fit as may be under way; an error means that the connection is gone.
        let _ = done.try_send(Prepared { terms, result, cancelled, place });
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

    /// A running mean, in which each counts for a sixteenth.
    fn learn(&self, took: Duration) {
        let mut state = self.lock();
        state.typical = if state.typical.is_zero() { took } else { (state.typical * 15 + took) / 16 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scripted::{Scripted, catalog_of, rows_spec, terms};
    use socket::Socket;
    use std::task::{Context, Poll, Waker};
    use wire::TensorMeta;

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
            self.submit_rows(id, 1, payload, tensor_bytes)
        }

        fn submit_rows(
            &self,
            id: u64,
            rows: u64,
            payload: usize,
            tensor_bytes: usize,
        ) -> Result<(), Refusal> {
            let input = TensorMeta { shape: vec![rows], ..TensorMeta::default() };
            let raw = Raw {
                version: Arc::clone(&self.version),
                infer: Infer { inputs: vec![input], ..Infer::default() },
                payload: Bytes::from(vec![0; payload]),
                terms: terms(id),
                mailbox: Arc::clone(&self.mailbox),
                cancelled: Arc::default(),
            };
            self.preparers.submit(raw, tensor_bytes, &self.done)
        }

        /// Takes the first out of the line, as if it had been done and was in the queue.
        fn finish(&self) {
            let task = self.preparers.shared.lock().waiting.pop_front();
            drop(task.unwrap());
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
            assert!((0..REQUESTS_MAX as u64).all(|id| world.submit(id, 0, 0).is_ok()));
            assert_eq!(world.submit(9999, 0, 0), FULL);
        });
    }

    #[test]
    fn requests_of_many_rows_leave_a_thread_to_others() {
        on_a_runtime(|| {
            let world = World::new(usize::MAX);
            for (id, rows) in [(1, 80), (2, 80), (3, 1), (4, LONG)] {
                assert_eq!(world.submit_rows(id, rows, 0, 0), Ok(()));
            }
            let shared = &world.preparers.shared;
            let next = || shared.next().map(|task| task.raw.terms.id);
            assert_eq!((next(), next(), next()), (Some(1), Some(3), Some(4)));
            shared.end(true);
            assert_eq!(next(), Some(2));
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
