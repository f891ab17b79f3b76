//! What a version has done since this process started, in the terms of Triton's statistics extension. Counts what comes
//! back from the engine, copies for a shadow included; decides nothing. Served over HTTP and gRPC, and under Triton's names
//! among the metrics.
//!
//! ```text
//!  arrival ─▶ queue ─▶ compute_input ─▶ compute_infer ─▶ compute_output ─▶ answer      one request: `success`
//!                     └────────────── one run of its batch ────────────┘              one batch: `batch_stats`
//! ```
//!
//! Each member of a batch counts the whole run as its own, as Triton does; the run itself is counted once, because one
//! member's reply tells of it. What was larger than a batch counts its last run, and the others as waiting.

use crate::refusal::Refusal;
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};
use utoipa::ToSchema;
use wire::{Phases, Timing};

/// The counters of one version.
#[derive(Debug, Default)]
pub struct Statistics {
    success: Sum,
    failures: [Sum; Failure::ALL.len()],
    queue: Sum,
    compute_input: Sum,
    compute_infer: Sum,
    compute_output: Sum,
    rows: AtomicU64,
    runs: AtomicU64,
    waiting: AtomicU64,
    last_unix_ms: AtomicU64,
    /// By the rows of a run; locked once per run.
    by_rows: Mutex<BTreeMap<u32, RunSums>>,
}

/// Triton's words for why there was no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The model failed.
    Backend,
    /// Its client went away.
    Canceled,
    /// There was no room or no time for it.
    Rejected,
    /// Anything else.
    Other,
}

impl Failure {
    /// Every one of them.
    pub const ALL: [Self; 4] = [Self::Backend, Self::Canceled, Self::Rejected, Self::Other];

    /// As the label of Triton's metric.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Backend => "BACKEND",
            Self::Canceled => "CANCELED",
            Self::Rejected => "REJECTED",
            Self::Other => "OTHER",
        }
    }

    /// What a refusal counts as.
    pub fn of(refusal: &Refusal) -> Self {
        match refusal {
            Refusal::ModelFailed(_)
            | Refusal::RemoteFailed(_)
            | Refusal::RemoteUnreachable(_)
            | Refusal::RemoteTimeout { .. } => Self::Backend,
            Refusal::ClientGone => Self::Canceled,
            Refusal::Overloaded(_)
            | Refusal::Busy { .. }
            | Refusal::Tripped { .. }
            | Refusal::Limited { .. }
            | Refusal::Crowded(_)
            | Refusal::Oversized { .. }
            | Refusal::DeadlineExceeded { .. } => Self::Rejected,
            Refusal::Looping { .. }
            | Refusal::Invalid(_)
            | Refusal::OutputsTooLarge(_)
            | Refusal::NotFound(_)
            | Refusal::Forbidden(_)
            | Refusal::Unsupported(_)
            | Refusal::Method { .. }
            | Refusal::TooLarge { .. }
            | Refusal::Encoding { .. }
            | Refusal::BodyTimeout { .. }
            | Refusal::NotReady(_)
            | Refusal::EngineDown(_)
            | Refusal::Internal(_) => Self::Other,
        }
    }
}

/// How often, and how long in all.
#[derive(Debug, Default)]
struct Sum {
    count: AtomicU64,
    ns: AtomicU64,
}

#[derive(Clone, Copy, Debug, Default)]
struct RunSums {
    count: u64,
    phases: Phases,
}

impl Statistics {
    /// A request was answered after so long.
    pub(crate) fn served(&self, took: Duration, timing: Option<&Timing>, now: SystemTime) {
        self.success.add(nanos(took));
        let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.last_unix_ms.fetch_max(since.as_millis() as u64, Ordering::Relaxed);
        if let Some(timing) = timing {
            let phases = timing.phases.unwrap_or_default();
            self.queue.add(timing.queue_us.saturating_mul(1000));
            self.compute_input.add(phases.input_ns);
            self.compute_infer.add(phases.infer_ns);
            self.compute_output.add(phases.output_ns);
            self.rows.fetch_add(timing.rows.into(), Ordering::Relaxed);
        }
    }

    /// A request was not answered, after so long.
    pub(crate) fn failed(&self, took: Duration, why: Failure) {
        self.failures[why as usize].add(nanos(took));
    }

    /// The runs that a reply tells of, whatever became of it.
    pub(crate) fn ran(&self, timing: &Timing) {
        if timing.runs.is_empty() {
            return;
        }
        self.runs.fetch_add(timing.runs.len() as u64, Ordering::Relaxed);
        let mut by_rows = self.by_rows.lock().unwrap_or_else(PoisonError::into_inner);
        for run in &timing.runs {
            let sums = by_rows.entry(run.rows).or_default();
            let phases = run.phases.unwrap_or_default();
            sums.count += 1;
            sums.phases.input_ns += phases.input_ns;
            sums.phases.infer_ns += phases.infer_ns;
            sums.phases.output_ns += phases.output_ns;
        }
    }

    /// Counts a request as waiting for the engine for as long as the guard lives.
    pub(crate) fn wait(self: &Arc<Self>) -> Waiting {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        Waiting(Arc::clone(self))
    }

    /// What Triton's metrics show.
    pub(crate) fn totals(&self) -> Totals {
        Totals {
            success: self.success.read(),
            failures: self.failures.each_ref().map(Sum::read),
            queue: self.queue.read(),
            compute_input: self.compute_input.read(),
            compute_infer: self.compute_infer.read(),
            compute_output: self.compute_output.read(),
            rows: self.rows.load(Ordering::Relaxed),
            runs: self.runs.load(Ordering::Relaxed),
            waiting: self.waiting.load(Ordering::Relaxed),
        }
    }

    /// What Triton's statistics extension shows.
    pub fn of_model(&self, model: &str, version: u64) -> ModelStatistics {
        let totals = self.totals();
        let fail = |sum: StatisticDuration, one: StatisticDuration| StatisticDuration {
            count: sum.count + one.count,
            ns: sum.ns + one.ns,
        };
        let by_rows = self.by_rows.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let batch = |(rows, RunSums { count, phases }): (u32, RunSums)| BatchStatistics {
            batch_size: rows,
            compute_input: StatisticDuration { count, ns: phases.input_ns },
            compute_infer: StatisticDuration { count, ns: phases.infer_ns },
            compute_output: StatisticDuration { count, ns: phases.output_ns },
        };
        ModelStatistics {
            name: model.to_owned(),
            version: version.to_string(),
            last_inference: self.last_unix_ms.load(Ordering::Relaxed),
            inference_count: totals.rows,
            execution_count: totals.runs,
            inference_stats: InferStatistics {
                success: totals.success,
                fail: totals.failures.into_iter().fold(StatisticDuration::default(), fail),
                queue: totals.queue,
                compute_input: totals.compute_input,
                compute_infer: totals.compute_infer,
                compute_output: totals.compute_output,
                cache_hit: StatisticDuration::default(),
                cache_miss: StatisticDuration::default(),
            },
            batch_stats: by_rows.into_iter().map(batch).collect(),
        }
    }
}

/// A request that waits for the engine.
#[derive(Debug)]
#[must_use = "it waits for as long as this lives"]
pub(crate) struct Waiting(Arc<Statistics>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Sum {
    fn add(&self, ns: u64) {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.ns.fetch_add(ns, Ordering::Relaxed);
    }

    fn read(&self) -> StatisticDuration {
        let (count, ns) = (self.count.load(Ordering::Relaxed), self.ns.load(Ordering::Relaxed));
        StatisticDuration { count, ns }
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// All counters but those by batch size.
#[derive(Debug)]
pub(crate) struct Totals {
    pub(crate) success: StatisticDuration,
    /// In the order of [`Failure::ALL`].
    pub(crate) failures: [StatisticDuration; Failure::ALL.len()],
    pub(crate) queue: StatisticDuration,
    pub(crate) compute_input: StatisticDuration,
    pub(crate) compute_infer: StatisticDuration,
    pub(crate) compute_output: StatisticDuration,
    pub(crate) rows: u64,
    pub(crate) runs: u64,
    pub(crate) waiting: u64,
}

/// Answer of the statistics extension, field by field as Triton has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct AllStatistics {
    /// By name, then version.
    pub model_stats: Vec<ModelStatistics>,
}

/// One version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct ModelStatistics {
    /// Of the model.
    pub name: String,
    /// A whole number.
    pub version: String,
    /// When the last request was answered, ms since 1970; 0 if none was.
    pub last_inference: u64,
    /// Rows of the requests that were answered.
    pub inference_count: u64,
    /// Runs of the model, of however many rows.
    pub execution_count: u64,
    /// By request.
    pub inference_stats: InferStatistics,
    /// By run.
    pub batch_stats: Vec<BatchStatistics>,
}

/// Sums over requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct InferStatistics {
    /// Requests that were answered, from the end of their head to the end of their answer.
    pub success: StatisticDuration,
    /// Those that were not.
    pub fail: StatisticDuration,
    /// Waiting in the engine; this and what follows is of requests that were answered.
    pub queue: StatisticDuration,
    /// Laying the inputs of all rows side by side.
    pub compute_input: StatisticDuration,
    /// Computing.
    pub compute_infer: StatisticDuration,
    /// Cutting the outputs into answers.
    pub compute_output: StatisticDuration,
    /// There is no cache.
    pub cache_hit: StatisticDuration,
    /// There is no cache.
    pub cache_miss: StatisticDuration,
}

/// Runs of so many rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct BatchStatistics {
    /// Rows of each.
    pub batch_size: u32,
    /// As of [`InferStatistics`], once per run.
    pub compute_input: StatisticDuration,
    /// Likewise.
    pub compute_infer: StatisticDuration,
    /// Likewise.
    pub compute_output: StatisticDuration,
}

/// How often, and how long in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct StatisticDuration {
    /// How often.
    pub count: u64,
    /// How long in all, ns.
    pub ns: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::Run;

    const PHASES: Phases = Phases { input_ns: 1, infer_ns: 20, output_ns: 300 };

    fn timing(rows: u32, runs: &[u32]) -> Timing {
        let run = |rows: &u32| Run { rows: *rows, phases: Some(PHASES), ..Run::default() };
        Timing {
            queue_us: 5,
            rows,
            phases: Some(PHASES),
            runs: runs.iter().map(run).collect(),
            ..Timing::default()
        }
    }

    fn sum(count: u64, ns: u64) -> StatisticDuration {
        StatisticDuration { count, ns }
    }

    #[test]
    fn a_batch_is_counted_once_and_its_time_for_each_of_its_requests() {
        let statistics = Statistics::default();
        let now = SystemTime::UNIX_EPOCH + Duration::from_millis(77);
        for timing in [timing(1, &[3]), timing(2, &[]), timing(40, &[32, 8])] {
            statistics.served(Duration::from_nanos(1000), Some(&timing), now);
            statistics.ran(&timing);
        }
        let told = statistics.of_model("m", 2);
        assert_eq!((told.name.as_str(), told.version.as_str(), told.last_inference), ("m", "2", 77));
        assert_eq!((told.inference_count, told.execution_count), (43, 3));
        let all = told.inference_stats;
        assert_eq!((all.success, all.fail, all.queue), (sum(3, 3000), sum(0, 0), sum(3, 15_000)));
        assert_eq!(
            (all.compute_input, all.compute_infer, all.compute_output),
            (sum(3, 3), sum(3, 60), sum(3, 900))
        );
        let sizes: Vec<_> =
            told.batch_stats.iter().map(|batch| (batch.batch_size, batch.compute_infer)).collect();
        assert_eq!(sizes, [(3, sum(1, 20)), (8, sum(1, 20)), (32, sum(1, 20))]);
    }

    #[test]
    fn failures_are_told_apart_and_add_up() {
        let statistics = Arc::new(Statistics::default());
        statistics.failed(Duration::from_nanos(5), Failure::of(&Refusal::ModelFailed("x".into())));
        statistics.failed(Duration::from_nanos(6), Failure::of(&Refusal::Overloaded("x".into())));
        assert_eq!(statistics.of_model("m", 1).inference_stats.fail, sum(2, 11));
        assert_eq!(statistics.totals().failures.map(|sum| sum.count), [1, 0, 1, 0]);
        let waiting = (statistics.wait(), statistics.wait());
        assert_eq!(statistics.totals().waiting, 2);
        drop(waiting);
        assert_eq!(statistics.totals().waiting, 0);
    }
}
