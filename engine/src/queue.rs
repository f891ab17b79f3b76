//! The one place that shares the [`Batcher`]: connections put work in, lanes sleep until there is some. The lock
//! is held for the batcher's own work only, never while a model runs or a socket is written.

use crate::batcher::{Batch, Batcher, Bucket, Claim, Grouping, Limits, Next, Refused, Ticket};
use crate::job::{Job, Refusal};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Instant;

/// What a connection asks of the queue.
pub(crate) enum Order {
    /// Let it wait for a lane.
    Run(Box<Job>),
    /// Forget it, if it still waits.
    Cancel { connection: u64, id: u64 },
}

/// Work that waits, shared by connections and lanes.
pub(crate) struct Queue {
    state: Mutex<State>,
    /// One for each lane.
    wakes: Vec<Condvar>,
}

struct State {
    batcher: Batcher<Box<Job>>,
    /// Lanes that sleep. The one that fell asleep last is woken first: its caches are still warm, and at low load
    /// the others are left alone.
    idle: Vec<usize>,
    stopping: bool,
}

impl Queue {
    pub(crate) fn new(limits: Limits, lanes: usize) -> Self {
        let state = State { batcher: Batcher::new(limits), idle: Vec::new(), stopping: false };
        Self { state: Mutex::new(state), wakes: (0..lanes).map(|_| Condvar::new()).collect() }
    }

    /// Carries out `orders`, in order, and empties them. Gives back the jobs that may not wait.
    pub(crate) fn submit(&self, orders: &mut Vec<Order>, now: Instant) -> Vec<(Box<Job>, Refusal)> {
        let mut refused = Vec::new();
        if orders.is_empty() {
            return refused;
        }
        let mut state = self.lock();
        for order in orders.drain(..) {
            match order {
                Order::Run(job) if state.stopping => refused.push((job, Refusal::Stopping)),
                Order::Run(job) => match state.batcher.push(ticket(job), now) {
                    Ok(()) => {}
                    Err(Refused::Overloaded(job)) => refused.push((job, Refusal::Overloaded)),
                    Err(Refused::Duplicate(job)) => {
                        let id = job.id;
                        refused.push((job, Refusal::Duplicate { id }));
                    }
                },
                Order::Cancel { connection, id } => drop(state.batcher.cancel(connection, id)),
            }
        }
        self.wake_one(state);
        refused
    }

    /// The next batch for a lane, as soon as there is one; `None` when the engine stops and nothing is left.
    pub(crate) fn next(&self, lane: usize) -> Option<Batch<Box<Job>>> {
        let mut state = self.lock();
        loop {
            match state.batcher.next(Instant::now()) {
                Next::Run(batch) => {
                    // One wake-up leads to the next while there is work, so that none is made for nothing.
                    self.wake_one(state);
                    return Some(batch);
                }
                Next::Idle if state.stopping && state.batcher.is_empty() => return None,
                Next::Idle => {
                    state.idle.push(lane);
                    state = self.wakes[lane]
                        .wait_while(state, |state| state.idle.contains(&lane))
                        .expect("no panic under the queue's lock");
                }
            }
        }
    }

    /// Takes back the claim of a batch that has run.
    pub(crate) fn finish(&self, claim: Claim) {
        let mut state = self.lock();
        state.batcher.finish(claim);
        if state.stopping {
            self.wake_all(state);
        } else {
            self.wake_one(state);
        }
    }

    /// Removes all that one connection has waiting.
    pub(crate) fn cancel_connection(&self, connection: u64) {
        // Named, so that the jobs are freed after the lock is.
        let cancelled = self.lock().batcher.cancel_connection(connection);
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
        let woken = if state.batcher.has_next() { state.idle.pop() } else { None };
        drop(state);
        if let Some(lane) = woken {
            self.wakes[lane].notify_one();
        }
    }

    fn wake_all(&self, mut state: MutexGuard<'_, State>) {
        state.idle.clear();
        drop(state);
        self.wakes.iter().for_each(Condvar::notify_one);
    }
}

fn ticket(job: Box<Job>) -> Ticket<Box<Job>> {
    let version = &job.request.version;
    let free = match version.grouping {
        Grouping::Together { .. } => job.request.free_dimensions(),
        // Nothing runs with anything else: one queue holds them all.
        Grouping::Alone | Grouping::Serial => Vec::new(),
    };
    Ticket {
        connection: job.mailbox.connection,
        id: job.id,
        bucket: Bucket { version: version.key, free },
        grouping: version.grouping,
        rows: job.request.rows,
        bytes: job.bytes,
        deadline: job.deadline,
        payload: job,
    }
}
