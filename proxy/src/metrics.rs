//! Every metric, declared once: what is counted as requests come and go stands here, what is set anew at each scrape in
//! [`scraped`], and what the engine says of itself in [`engine`]. Decides names, labels and buckets; never when to count (that is
//! [`crate::record`]'s). What was counted goes some time after what it was counted of, see [`gone`].
//!
//! Label values come from the policy, the engine's index and closed lists, never from what a client sent, so
//! that no client can make the number of series grow.

mod engine;
mod gone;
mod saved;
mod scraped;

use crate::drift::Drifts;
use crate::export::SpanCounts;
use crate::exposition::{Exposition, Plain};
use crate::histogram::Histogram;
use crate::record::Retry;
use crate::refusal::Refusal;
use crate::refused::Refused;
use crate::shadow;
use crate::statistics::Statistics;
use crate::status::Copies;
use crate::triton_metrics::TritonMetrics;
pub use engine::EngineHealth;
use gone::Present;
use policies::Verdict;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::exemplar::HistogramWithExemplars;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::exponential_buckets;
use prometheus_client::registry::{Metric, Registry, Unit};
pub use saved::{Part, Saved};
use scraped::Scraped;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, RwLock};

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct VersionLabels {
    model: String,
    version: u64,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RefusalLabels {
    reason: &'static str,
    /// Empty where none was found: what a client calls one is no label.
    model: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RetryLabels {
    model: String,
    version: u64,
    reason: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct VerdictLabels {
    model: String,
    verdict: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OutcomeLabels {
    model: String,
    version: u64,
    outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ClosedLabels {
    closed: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct StageLabels {
    stage: &'static str,
}

/// Which trace is an example of what was observed.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct TraceLabel {
    /// In 32 hexadecimal digits.
    pub trace_id: String,
}

/// Where the time of answered requests goes in this process, seconds. What is missing of the whole time was in the engine:
/// in its queue and in the model, see [`VersionMetrics`].
#[derive(Clone, Debug)]
pub struct StageMetrics {
    /// The pick of a version, and the limits that need no body.
    pub admit: Histogram,
    /// The body as it comes.
    pub read: Histogram,
    /// The body as tensors, its limits, and whoever answers.
    pub decode: Histogram,
    /// The way to the engine and back.
    pub link: Histogram,
    /// The answer as the client's protocol has it, until the client's socket has taken it.
    pub reply: Histogram,
}

/// Handles of one version, resolved once: the request path hashes no labels.
#[derive(Debug)]
pub struct VersionMetrics {
    /// Requests by outcome, see [`policies::Outcome`].
    pub served: Counter,
    /// The version's own failures.
    pub failed: Counter,
    /// What says nothing about the version: callers' mistakes, overload, missed deadlines, a lost engine.
    pub refused: Counter,
    /// Clients that went away.
    pub abandoned: Counter,
    /// From the end of the request head to the answer, seconds.
    pub latency: HistogramWithExemplars<TraceLabel>,
    /// The same, for those who look.
    pub whole: Histogram,
    /// Of that, in the proxy and on the way to the engine and back, seconds; for those who look, see [`StageMetrics`].
    pub proxy: Histogram,
    /// In the engine's queue, seconds.
    pub queue: Histogram,
    /// From leaving the engine's queue to the end of the batch, seconds.
    pub run: Histogram,
    /// Rows of each batch.
    pub batch_rows: Histogram,
    /// Rows that ran together with each request's own; for those who look.
    pub rows_together: Histogram,
    /// Of the elements that a batch was given, the part that is padding.
    pub batch_padding: Histogram,
    /// What a batch took, divided by what it was expected to take when it was formed.
    pub over_expected: Histogram,
    /// The same and more, as Triton counts it.
    pub statistics: Arc<Statistics>,
}

pub(crate) type VersionMap = HashMap<String, HashMap<u64, Arc<VersionMetrics>>>;

/// Refusals of one model, by reason as [`Refusal::REASONS`] has it.
type RefusalCounters = [Counter; Refusal::REASONS.len()];

/// Of requests that reached a version, as [`policies::Outcome`] has them; what was lost is refused.
const OUTCOMES: [&str; 4] = ["served", "failed", "refused", "abandoned"];

type Exemplary = HistogramWithExemplars<TraceLabel>;
type PerVersion = Family<VersionLabels, Histogram, fn() -> Histogram>;

/// All metrics of the process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    outcomes: Family<OutcomeLabels, Counter>,
    latency: Family<VersionLabels, Exemplary, fn() -> Exemplary>,
    queue: PerVersion,
    run: PerVersion,
    batch_rows: PerVersion,
    batch_padding: PerVersion,
    over_expected: PerVersion,
    refusals: Family<RefusalLabels, Counter>,
    canary_verdicts: Family<VerdictLabels, Counter>,
    retries: Family<RetryLabels, Counter>,
    shadows: Family<OutcomeLabels, Counter>,
    /// Batches by why they had no more rows, as [`wire::Closed::ALL`] has it.
    batches: [Counter; wire::Closed::ALL.len()],
    /// What a scrape sets.
    pub(crate) scraped: Scraped,
    versions: Arc<RwLock<VersionMap>>,
    /// Of every model that has any, and of none.
    refused_models: RwLock<HashMap<String, RefusalCounters>>,
    /// Of what there are series.
    present: Mutex<Present>,
    /// Held by whoever makes series or takes them away, which may have to wait for a scrape: nobody counts in series that are going, and
    /// whose series are there does not wait.
    changing: Mutex<()>,
    /// Where the time goes.
    pub stages: StageMetrics,
    /// What became of spans.
    pub spans: SpanCounts,
    /// Requests without an answer, for people.
    pub refused: Refused,
    /// How far tensors have moved, as the engine says.
    pub drifts: Drifts,
    /// Requests being worked on.
    pub in_flight: Gauge,
    /// Number of the policy in force.
    pub policy_generation: Gauge<u64, AtomicU64>,
    /// Whether what is to outlive the process is on the disk.
    pub state_saved: Saved,
    /// Policy files that were refused.
    pub policy_rejected: Counter,
    /// Times the engine was started.
    pub engine_starts: Counter,
    /// 1 while the engine is connected.
    pub engine_up: Gauge,
    /// What it holds and has under way, while it is there.
    pub engine: EngineHealth,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Registers everything.
    pub fn new() -> Self {
        let mut root = Registry::default();
        let versions: Arc<RwLock<VersionMap>> = Arc::default();
        let drifts = Drifts::default();
        root.register_collector(Box::new(drifts.clone()));
        root.register_collector(Box::new(TritonMetrics(versions.clone())));
        let process = Scraped::of_process(&mut root);
        let registry = root.sub_registry_with_prefix("penstock");
        let engine = EngineHealth::default();
        registry.register_collector(Box::new(engine.clone()));
        let metrics = Self {
            stages: stages(registry),
            outcomes: added(registry, "requests", "Infer requests that reached a version, by outcome"),
            latency: added_in_seconds(
                registry,
                "request_duration",
                "Whole time in the proxy of a request that a version has answered, or failed at",
                Family::new_with_constructor(seconds_of_traces),
            ),
            queue: added_in_seconds(
                registry,
                "engine_queue_duration",
                "Wait in the engine's queue",
                Family::new_with_constructor(Histogram::of_seconds),
            ),
            run: added_in_seconds(
                registry,
                "engine_run_duration",
                "From leaving the engine's queue to the end of the batch",
                Family::new_with_constructor(Histogram::of_seconds),
            ),
            spans: SpanCounts {
                exported: added(registry, "spans_exported", "Spans that the collector has taken"),
                passed_over: added(
                    registry,
                    "traces_passed_over",
                    "Requests that failed, were refused or took long and of which no trace was kept, since there were more than a hundred in a second",
                ),
                lost: added(
                    registry,
                    "spans_lost",
                    "Spans that were lost: the collector did not take them, or too many waited for it",
                ),
            },
            batches: batches(registry),
            batch_rows: added_of_versions(
                registry,
                "batch_rows",
                "Rows of each batch of which an answer has told",
                Histogram::of_rows,
            ),
            batch_padding: added_of_versions(
                registry,
                "batch_padding_ratio",
                "Of the elements that a batch was given, the part that is padding",
                Histogram::of_parts,
            ),
            over_expected: added_of_versions(
                registry,
                "engine_run_over_expected_ratio",
                "Time that a batch took, divided by the time that it was expected to take when it was formed",
                Histogram::of_times,
            ),
            refusals: added(
                registry,
                "refusals",
                "Requests that got no answer, by reason, and by model where there is one of the name that was asked for",
            ),
            canary_verdicts: added(registry, "canary_verdicts", "Verdicts on rollouts"),
            retries: added(
                registry,
                "retries",
                "Requests that the engine did not run, or that another server did not begin to answer, and that were to be asked once more, by the version that did not and by what came of it",
            ),
            shadows: added(
                registry,
                "shadows",
                "Copies of requests for a shadow, by whether it said the same",
            ),
            in_flight: added(registry, "requests_in_flight", "Requests being worked on"),
            state_saved: Saved::new(added(
                registry,
                "state_saved",
                "Whether what is to outlive the process is in its state file and those beside it; 1 where none is configured",
            )),
            policy_generation: added(registry, "policy_generation", "Number of the policy in force"),
            policy_rejected: added(registry, "policy_rejected", "Policy files that were refused"),
            engine_starts: added(registry, "engine_starts", "Times the engine was started"),
            engine_up: added(registry, "engine_up", "1 while the engine is connected"),
            scraped: Scraped::new(registry, process),
            engine,
            drifts,
            versions,
            refused_models: RwLock::default(),
            present: Mutex::default(),
            changing: Mutex::default(),
            refused: Refused::default(),
            registry: Registry::default(),
        };
        metrics.expect_refusals("");
        Self { registry: root, ..metrics }
    }

    /// The handles of a version that has been asked before.
    pub fn known(&self, model: &str, version: u64) -> Option<Arc<VersionMetrics>> {
        let known = self.versions.read().expect("never poisoned: no panic while held");
        known.get(model)?.get(&version).cloned()
    }

    /// The handles of a version that exists.
    pub fn version(&self, model: &str, version: u64) -> Arc<VersionMetrics> {
        if let Some(handles) = self.known(model, version) {
            return handles;
        }
        let _changing = self.changing();
        // Somebody may have been faster.
        if let Some(handles) = self.known(model, version) {
            return handles;
        }
        let handles = Arc::new(self.resolve(model, version));
        let mut known = self.versions.write().expect("never poisoned: no panic while held");
        known.entry(model.to_owned()).or_default().insert(version, handles.clone());
        handles
    }

    fn changing(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().expect("never poisoned: no panic while held")
    }

    /// The counters of all versions that have been asked anything, by model and number.
    pub fn statistics(&self) -> BTreeMap<(String, u64), Arc<Statistics>> {
        let known = self.versions.read().expect("never poisoned: no panic while held");
        let all = known.iter().flat_map(|(model, versions)| {
            versions
                .iter()
                .map(move |(number, counters)| ((model.clone(), *number), counters.statistics.clone()))
        });
        all.collect()
    }

    fn resolve(&self, model: &str, version: u64) -> VersionMetrics {
        let labels = VersionLabels { model: model.to_owned(), version };
        let outcome = |outcome| {
            self.outcomes.get_or_create_owned(&OutcomeLabels { model: model.to_owned(), version, outcome })
        };
        let [served, failed, refused, abandoned] = OUTCOMES.map(outcome);
        VersionMetrics {
            served,
            failed,
            refused,
            abandoned,
            latency: self.latency.get_or_create_owned(&labels),
            whole: Histogram::of_seconds(),
            proxy: Histogram::of_seconds(),
            queue: self.queue.get_or_create_owned(&labels),
            run: self.run.get_or_create_owned(&labels),
            batch_rows: self.batch_rows.get_or_create_owned(&labels),
            rows_together: Histogram::of_rows(),
            batch_padding: self.batch_padding.get_or_create_owned(&labels),
            over_expected: self.over_expected.get_or_create_owned(&labels),
            statistics: Arc::default(),
        }
    }

    /// Counts the batches of a version that an answer tells of.
    pub(crate) fn count_batches(&self, version: &VersionMetrics, runs: &[wire::Run]) {
        for run in runs {
            self.batches[run.closed() as usize].inc();
            version.batch_rows.observe(run.rows.into());
            version.batch_padding.observe(f64::from(run.padding_millionths) / 1e6);
            run.over_expected().into_iter().for_each(|times| version.over_expected.observe(times));
        }
    }

    /// Shows that a model has had no refusals yet, of any reason: what is born as 1 has not increased.
    fn expect_refusals(&self, model: &str) {
        self.refusals_of(model, |_| ());
    }

    /// Counts a refusal of a model that exists, or of none.
    pub fn refuse(&self, reason: &'static str, model: &str) {
        let place = Refusal::REASONS.iter().position(|known| *known == reason);
        debug_assert!(place.is_some(), "{reason} is not among those that begin as nothing");
        self.refusals_of(model, |counters| place.map(|place| counters[place].inc()));
    }

    /// Does something with the counters of a model, which are there from then on.
    fn refusals_of<T>(&self, model: &str, then: impl Fn(&RefusalCounters) -> T) -> T {
        let known = || self.refused_models.read().expect("never poisoned: no panic while held");
        if let Some(counters) = known().get(model) {
            return then(counters);
        }
        let _changing = self.changing();
        let counter =
            |reason| self.refusals.get_or_create_owned(&RefusalLabels { reason, model: model.to_owned() });
        let counters = Refusal::REASONS.map(counter);
        let done = then(&counters);
        let mut known = self.refused_models.write().expect("never poisoned: no panic while held");
        known.insert(model.to_owned(), counters);
        done
    }

    /// Counts a request that was to be asked once more.
    pub(crate) fn count_retry(&self, model: &str, retry: Retry, is_answered: bool) {
        let Retry { version, reason, .. } = retry;
        // It has no other series if others answer all that it gets; they go together.
        self.version(model, version);
        let labels =
            RetryLabels { model: model.to_owned(), version, reason, outcome: retry.outcome(is_answered) };
        self.retries.get_or_create_owned(&labels).inc();
    }

    /// Counts what became of a copy for a shadow.
    pub(crate) fn count_shadow(&self, model: &str, version: u64, outcome: shadow::Outcome) {
        let labels = OutcomeLabels { model: model.to_owned(), version, outcome: outcome.as_str() };
        self.shadows.get_or_create_owned(&labels).inc();
    }

    /// What became of all copies for a shadow.
    pub(crate) fn copies(&self, model: &str, version: u64) -> Copies {
        let count = |outcome: shadow::Outcome| {
            let labels = OutcomeLabels { model: model.to_owned(), version, outcome: outcome.as_str() };
            self.shadows.get(&labels).map_or(0, |counter| counter.get())
        };
        Copies {
            agreed: count(shadow::Outcome::Agreed),
            disagreed: count(shadow::Outcome::Disagreed),
            failed: count(shadow::Outcome::Failed),
            dropped: count(shadow::Outcome::Dropped),
        }
    }

    /// Counts a verdict on a rollout.
    pub fn count_verdict(&self, model: &str, verdict: Verdict) {
        self.verdicts(model, verdict).inc();
    }

    fn verdicts(&self, model: &str, verdict: Verdict) -> Counter {
        let labels = VerdictLabels { model: model.to_owned(), verdict: verdict.as_str() };
        self.canary_verdicts.get_or_create_owned(&labels)
    }

    /// All of them as text.
    pub fn encode(&self, form: Exposition) -> String {
        use prometheus_client::encoding::text::encode;
        match form {
            Exposition::OpenMetrics => {
                let mut text = String::new();
                encode(&mut text, &self.registry).expect("a String takes any text");
                text
            }
            Exposition::Text => {
                let mut plain = Plain::default();
                encode(&mut plain, &self.registry).expect("a String takes any text");
                plain.finish()
            }
        }
    }
}

/// 100 µs to 26 s, with traces as examples.
fn seconds_of_traces() -> Exemplary {
    HistogramWithExemplars::new(exponential_buckets(0.000_1, 2.0, 19))
}

fn stages(registry: &mut Registry) -> StageMetrics {
    let durations: Family<StageLabels, Histogram, fn() -> Histogram> = added_in_seconds(
        registry,
        "stage_duration",
        "Time of answered requests in the proxy, by stage; the rest is in the engine",
        Family::new_with_constructor(Histogram::of_short_times),
    );
    let stage = |stage| durations.get_or_create_owned(&StageLabels { stage });
    StageMetrics {
        admit: stage("admit"),
        read: stage("read"),
        decode: stage("decode"),
        link: stage("link"),
        reply: stage("reply"),
    }
}

fn batches(registry: &mut Registry) -> [Counter; wire::Closed::ALL.len()] {
    let help = "Batches of which an answer has told, by why they had no more rows";
    let batches: Family<ClosedLabels, Counter> = added(registry, "batches", help);
    wire::Closed::ALL.map(|closed| batches.get_or_create_owned(&ClosedLabels { closed: closed.as_word() }))
}

/// A metric that is registered under this name.
fn added<M: Metric + Clone + Default>(registry: &mut Registry, name: &str, help: &str) -> M {
    let metric = M::default();
    registry.register(name, help, metric.clone());
    metric
}

fn added_of_versions(
    registry: &mut Registry,
    name: &str,
    help: &str,
    histogram: fn() -> Histogram,
) -> PerVersion {
    let histograms = PerVersion::new_with_constructor(histogram);
    registry.register(name, help, histograms.clone());
    histograms
}

fn added_in_seconds<M: Metric + Clone>(registry: &mut Registry, name: &str, help: &str, metric: M) -> M {
    registry.register_with_unit(name, help, Unit::Seconds, metric.clone());
    metric
}

#[cfg(test)]
mod tests;
