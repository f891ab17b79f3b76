//! A lane: one OS thread that runs batches, one after the other. It decides what becomes of a batch that fails:
//! each member runs again alone, from its original bytes, so that only the one that the model cannot take fails.
//! It holds no lock while a model runs.

use crate::job::{Job, Refusal};
use crate::model::{Gathered, ModelError, Output, Rows};
use crate::queue::Queue;
use crate::split::{self, Ran};
use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use wire::Status;

/// Details of failures are logged this often at most: whoever can make a model fail must not fill the disk.
const LOG_EVERY: Duration = Duration::from_secs(1);

/// Starts the lanes. The receiver ends when all of them have.
pub(crate) fn start(count: usize, queue: &Arc<Queue>) -> std::io::Result<mpsc::Receiver<Infallible>> {
    let (alive, ended) = mpsc::channel(1);
    for number in 0..count {
        let mut lane = Lane { number, queue: Arc::clone(queue), logged: None, unlogged: 0 };
        let alive = alive.clone();
        std::thread::Builder::new().name(format!("lane-{number}")).spawn(move || {
            let _alive = alive;
            // Models are guarded one by one, so a panic here is the engine's own mistake. A supervisor that starts a
            // new engine helps; a lane that is silently gone does not.
            if catch_unwind(AssertUnwindSafe(|| lane.run())).is_err() {
                std::process::abort();
            }
        })?;
    }
    Ok(ended)
}

struct Lane {
    number: usize,
    queue: Arc<Queue>,
    logged: Option<Instant>,
    unlogged: u64,
}

/// Why a batch gave no answers.
struct Failure {
    status: Status,
    error: ModelError,
}

impl Lane {
    fn run(&mut self) {
        while let Some(batch) = self.queue.next(self.number) {
            for job in &batch.expired {
                expire(job);
            }
            let mut jobs = batch.jobs;
            if !jobs.is_empty() {
                // Replies to one connection then leave together.
                jobs.sort_unstable_by_key(|job| job.mailbox.connection);
                self.answer(&jobs);
            }
            self.queue.finish(batch.claim);
        }
    }

    fn answer(&mut self, jobs: &[Box<Job>]) {
        let started = Instant::now();
        match attempt(jobs) {
            Ok(outputs) => {
                split::reply(jobs, &outputs, Ran { started, ended: Instant::now(), rows: rows_of(jobs) });
            }
            Err(failure) => {
                self.log(&jobs[0], &failure);
                match jobs {
                    [job] => split::fail(&job.mailbox, job.id, failure.status, &failure.error.message),
                    jobs => jobs.chunks(1).for_each(|alone| self.answer_alone(alone)),
                }
            }
        }
    }

    /// Runs one member of a batch that failed, if anybody still waits for it.
    fn answer_alone(&mut self, alone: &[Box<Job>]) {
        let job = &alone[0];
        if job.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            expire(job);
        } else if job.mailbox.is_open() {
            self.answer(alone);
        }
    }

    fn log(&mut self, job: &Job, failure: &Failure) {
        let now = Instant::now();
        if self.logged.is_some_and(|logged| now < logged + LOG_EVERY) {
            self.unlogged += 1;
            return;
        }
        let version = &job.request.version;
        tracing::warn!(
            model = version.name,
            version = version.number,
            detail = ?failure.error.detail,
            not_logged = self.unlogged,
            "the model failed: {}",
            failure.error.message
        );
        (self.logged, self.unlogged) = (Some(now), 0);
    }
}

fn rows_of(jobs: &[Box<Job>]) -> u32 {
    jobs.iter().map(|job| job.request.rows).sum()
}

/// Runs jobs of one bucket together. A panic is a failure like any other.
fn attempt(jobs: &[Box<Job>]) -> Result<Vec<Output>, Failure> {
    let model = &*jobs[0].request.version.model;
    let failed = |status, error| Failure { status, error };
    let outputs = catch_unwind(AssertUnwindSafe(|| model.run(&gather(jobs))))
        .map_err(|panic| failed(Status::Internal, ModelError::new(format!("panic: {}", text_of(&*panic)))))?
        .map_err(|error| failed(Status::ModelFailed, error))?;
    model
        .spec()
        .check_outputs(u64::from(rows_of(jobs)), &outputs)
        .map_err(|wrong| failed(Status::ModelFailed, ModelError::new(wrong.to_string())))?;
    Ok(outputs)
}

fn expire(job: &Job) {
    split::fail(&job.mailbox, job.id, Refusal::Expired.status(), &Refusal::Expired.to_string());
}

/// What a panic said.
pub(crate) fn text_of(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message")
}

/// The inputs of all jobs, one after the other. Nothing is copied yet: that is the model's one copy.
fn gather(jobs: &[Box<Job>]) -> Vec<Gathered<'_>> {
    let first = &jobs[0].request;
    let has_rows = matches!(first.version.model.spec().rows, Rows::UpTo(_));
    debug_assert!(has_rows || jobs.len() == 1, "without rows there is nothing to put together");
    let mut gathered = Vec::with_capacity(first.inputs.len());
    for (position, given) in first.inputs.iter().enumerate() {
        let mut shape = given.shape.clone();
        if has_rows {
            shape[0] = u64::from(rows_of(jobs));
        }
        let parts = jobs.iter().map(|job| job.request.part(position)).collect();
        gathered.push(Gathered { slot: given.slot, datatype: given.datatype, shape, parts });
    }
    gathered
}
