//! Every metric, declared once. Decides names, labels and buckets; never when to count (that is
//! [`crate::record`]'s).
//!
//! Label values come from the policy, the engine's index and closed lists, never from what a client sent, so
//! that no client can make the number of series grow.

use crate::drift::Drifts;
use crate::export::SpanCounts;
use crate::exposition::{Exposition, Plain};
use crate::histogram::Histogram;
use crate::readiness::VersionReadiness;
use crate::refusal::Refusal;
use crate::refused::Refused;
use crate::shadow;
use crate::statistics::Statistics;
use crate::status::Copies;
use crate::triton_metrics::TritonMetrics;
use policies::{BreakerState, BreakerStatus, CanaryStatus, Cost, Snapshot, SplitStatus, Verdict};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::exemplar::HistogramWithExemplars;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::exponential_buckets;
use prometheus_client::registry::{Registry, Unit};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};

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
struct EvidenceLabels {
    model: String,
    gate: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ModelLabels {
    model: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct LimitLabels {
    limit: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct LimitUnitLabels {
    limit: String,
    unit: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct MismatchLabels {
    model: String,
    cause: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RetryLabels {
    model: String,
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
    /// Admission, and the body as it comes.
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

/// All metrics of the process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    outcomes: Family<OutcomeLabels, Counter>,
    latency:
        Family<VersionLabels, HistogramWithExemplars<TraceLabel>, fn() -> HistogramWithExemplars<TraceLabel>>,
    queue: Family<VersionLabels, Histogram, fn() -> Histogram>,
    run: Family<VersionLabels, Histogram, fn() -> Histogram>,
    batch_rows: Family<VersionLabels, Histogram, fn() -> Histogram>,
    batch_padding: Family<VersionLabels, Histogram, fn() -> Histogram>,
    over_expected: Family<VersionLabels, Histogram, fn() -> Histogram>,
    breaker: Family<VersionLabels, Gauge>,
    version_ready: Family<VersionLabels, Gauge>,
    version_named: Family<VersionLabels, Gauge>,
    /// Models whose refusals are shown, also where there were none.
    expected: Mutex<BTreeSet<String>>,
    limit_rate: Family<LimitUnitLabels, Gauge<f64, AtomicU64>>,
    limit_burst: Family<LimitUnitLabels, Gauge>,
    limit_in_flight_max: Family<LimitLabels, Gauge>,
    limit_refusals: Family<LimitLabels, Counter>,
    refusals: Family<RefusalLabels, Counter>,
    canary_share: Family<VersionLabels, Gauge<f64, AtomicU64>>,
    canary_step: Family<VersionLabels, Gauge>,
    canary_evidence: Family<EvidenceLabels, Gauge<f64, AtomicU64>>,
    canary_verdicts: Family<VerdictLabels, Counter>,
    split_share: Family<VersionLabels, Gauge<f64, AtomicU64>>,
    split_evidence: Family<ModelLabels, Gauge<f64, AtomicU64>>,
    split_mismatch: Family<MismatchLabels, Gauge>,
    retries: Family<RetryLabels, Counter>,
    shadows: Family<OutcomeLabels, Counter>,
    /// Batches by why they had no more rows, as [`wire::Closed::ALL`] has it.
    batches: [Counter; wire::Closed::ALL.len()],
    /// Where the time goes.
    pub stages: StageMetrics,
    /// What became of spans.
    pub spans: SpanCounts,
    /// Lines of the access log that were dropped.
    pub access_dropped: Counter,
    versions: Arc<RwLock<VersionMap>>,
    /// Requests without an answer, for people.
    pub refused: Refused,
    /// How far tensors have moved, as the engine says.
    pub drifts: Drifts,
    /// Requests being worked on.
    pub in_flight: Gauge,
    /// Number of the policy in force.
    pub policy_generation: Gauge<u64, AtomicU64>,
    /// Whether what is to outlive the process is in its file.
    pub state_saved: Gauge,
    /// Bytes that bodies have in the memory that is shared with the engine.
    pub shared_bytes: Gauge<u64, AtomicU64>,
    /// Policy files that were refused.
    pub policy_rejected: Counter,
    /// Times the engine was started.
    pub engine_starts: Counter,
    /// 1 while the engine is connected.
    pub engine_up: Gauge,
    /// Requests that wait in the engine, and runs that have not ended.
    pub engine_under_way: Gauge<u64, AtomicU64>,
    /// Runs that have not ended.
    pub engine_running: Gauge<u64, AtomicU64>,
    /// Requests that wait in the engine.
    pub engine_waiting: Gauge<u64, AtomicU64>,
    /// Bytes of what waits and runs in the engine, with the copies that runs are made from and their outputs.
    pub engine_request_bytes: Gauge<u64, AtomicU64>,
    /// Bytes that these may be.
    pub engine_request_bytes_max: Gauge<u64, AtomicU64>,
    /// Bytes of this process that are in memory.
    pub resident_bytes: Gauge<u64, AtomicU64>,
    /// Bytes of the engine that are in memory.
    pub engine_resident_bytes: Gauge<u64, AtomicU64>,
    /// Bytes that the engine may hold.
    pub engine_memory_bytes: Gauge<u64, AtomicU64>,
    /// Bytes of the GPU's memory that the engine holds; 0 without one.
    pub device_held_bytes: Gauge<u64, AtomicU64>,
    /// Bytes of the GPU's memory that nobody holds.
    pub device_free_bytes: Gauge<u64, AtomicU64>,
    /// Bytes of the GPU's memory in all.
    pub device_total_bytes: Gauge<u64, AtomicU64>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// 100 µs to 26 s, with traces as examples.
    fn seconds_of_traces() -> HistogramWithExemplars<TraceLabel> {
        HistogramWithExemplars::new(exponential_buckets(0.000_1, 2.0, 19))
    }

    /// Registers everything.
    pub fn new() -> Self {
        let mut root = Registry::default();
        let registry = root.sub_registry_with_prefix("penstock");
        let durations: Family<StageLabels, Histogram, fn() -> Histogram> =
            Family::new_with_constructor(Histogram::of_short_times);
        let stage = |stage| durations.get_or_create_owned(&StageLabels { stage });
        let stages = StageMetrics {
            read: stage("read"),
            decode: stage("decode"),
            link: stage("link"),
            reply: stage("reply"),
        };
        registry.register_with_unit(
            "stage_duration",
            "Time of answered requests in the proxy, by stage; the rest is in the engine",
            Unit::Seconds,
            durations,
        );
        let batches: Family<ClosedLabels, Counter> = Family::default();
        registry.register(
            "batches",
            "Batches of which an answer has told, by why they had no more rows",
            batches.clone(),
        );
        let of =
            |closed: wire::Closed| batches.get_or_create_owned(&ClosedLabels { closed: closed.as_word() });
        let metrics = Self {
            batches: wire::Closed::ALL.map(of),
            stages,
            spans: SpanCounts::default(),
            access_dropped: Counter::default(),
            outcomes: Family::default(),
            latency: Family::new_with_constructor(Self::seconds_of_traces),
            run: Family::new_with_constructor(Histogram::of_seconds),
            queue: Family::new_with_constructor(Histogram::of_seconds),
            batch_rows: Family::new_with_constructor(Histogram::of_rows),
            batch_padding: Family::new_with_constructor(Histogram::of_parts),
            over_expected: Family::new_with_constructor(Histogram::of_times),
            breaker: Family::default(),
            version_ready: Family::default(),
            version_named: Family::default(),
            expected: Mutex::default(),
            limit_rate: Family::default(),
            limit_burst: Family::default(),
            limit_in_flight_max: Family::default(),
            limit_refusals: Family::default(),
            resident_bytes: Gauge::default(),
            refusals: Family::default(),
            canary_share: Family::default(),
            canary_step: Family::default(),
            canary_evidence: Family::default(),
            canary_verdicts: Family::default(),
            split_share: Family::default(),
            split_evidence: Family::default(),
            split_mismatch: Family::default(),
            retries: Family::default(),
            shadows: Family::default(),
            versions: Arc::default(),
            refused: Refused::default(),
            drifts: Drifts::default(),
            in_flight: Gauge::default(),
            policy_generation: Gauge::default(),
            state_saved: Gauge::default(),
            shared_bytes: Gauge::default(),
            policy_rejected: Counter::default(),
            engine_starts: Counter::default(),
            engine_up: Gauge::default(),
            engine_under_way: Gauge::default(),
            engine_running: Gauge::default(),
            engine_waiting: Gauge::default(),
            engine_request_bytes: Gauge::default(),
            engine_request_bytes_max: Gauge::default(),
            engine_resident_bytes: Gauge::default(),
            engine_memory_bytes: Gauge::default(),
            device_held_bytes: Gauge::default(),
            device_free_bytes: Gauge::default(),
            device_total_bytes: Gauge::default(),
            registry: Registry::default(),
        };
        registry.register(
            "requests",
            "Infer requests that reached a version, by outcome",
            metrics.outcomes.clone(),
        );
        registry.register_with_unit(
            "request_duration",
            "Whole time of a request in the proxy",
            Unit::Seconds,
            metrics.latency.clone(),
        );
        registry.register_with_unit(
            "engine_queue_duration",
            "Wait in the engine's queue",
            Unit::Seconds,
            metrics.queue.clone(),
        );
        registry.register_with_unit(
            "engine_run_duration",
            "From leaving the engine's queue to the end of the batch",
            Unit::Seconds,
            metrics.run.clone(),
        );
        registry.register(
            "spans_exported",
            "Spans that the collector has taken",
            metrics.spans.exported.clone(),
        );
        registry.register(
            "traces_passed_over",
            "Requests that failed, were refused or took long and of which no trace was kept, since there were more than a hundred in a second",
            metrics.spans.passed_over.clone(),
        );
        registry.register(
            "spans_lost",
            "Spans that were lost: the collector did not take them, or too many waited for it",
            metrics.spans.lost.clone(),
        );
        registry.register(
            "access_log_dropped",
            "Lines of the access log that were dropped because standard output did not take them in time",
            metrics.access_dropped.clone(),
        );
        registry.register(
            "batch_rows",
            "Rows of each batch of which an answer has told",
            metrics.batch_rows.clone(),
        );
        registry.register(
            "batch_padding_ratio",
            "Of the elements that a batch was given, the part that is padding",
            metrics.batch_padding.clone(),
        );
        registry.register(
            "engine_run_over_expected_ratio",
            "Time that a batch took, divided by the time that it was expected to take when it was formed",
            metrics.over_expected.clone(),
        );
        registry.register("breaker_state", "0 passing, 1 probing, 2 tripped", metrics.breaker.clone());
        registry.register(
            "version_ready",
            "1 while a version answers; of another server's, its breaker tells",
            metrics.version_ready.clone(),
        );
        registry.register(
            "version_named",
            "1 while the policy sends a version requests, or copies of them",
            metrics.version_named.clone(),
        );
        registry.register(
            "limit_rate",
            "Units per second that a limit lets each caller have in the long run",
            metrics.limit_rate.clone(),
        );
        registry.register(
            "limit_burst",
            "Units that a limit lets each caller have at once after a pause",
            metrics.limit_burst.clone(),
        );
        registry.register(
            "limit_in_flight_max",
            "Requests of a caller that a limit lets be under way at once",
            metrics.limit_in_flight_max.clone(),
        );
        registry.register(
            "limit_refusals",
            "Requests that a limit of the policy has refused",
            metrics.limit_refusals.clone(),
        );
        registry.register(
            "refusals",
            "Requests that got no answer, by reason, and by model where there is one of the name that was asked for",
            metrics.refusals.clone(),
        );
        registry.register(
            "canary_share",
            "Share of the requests that a candidate gets, of 1",
            metrics.canary_share.clone(),
        );
        registry.register("canary_step", "Step of a rollout, from 1", metrics.canary_step.clone());
        registry.register(
            "canary_evidence",
            "Evidence that a candidate is worse, as a share of what it takes to roll it back",
            metrics.canary_evidence.clone(),
        );
        registry.register("canary_verdicts", "Verdicts on rollouts", metrics.canary_verdicts.clone());
        registry.register(
            "split_share",
            "Share of a split that the policy declares for a version, of 1",
            metrics.split_share.clone(),
        );
        registry.register(
            "split_evidence",
            "Evidence that the shares which are seen are not those that were declared, as a share of what it takes to say so",
            metrics.split_evidence.clone(),
        );
        registry.register(
            "split_mismatch",
            "1 where the shares which are seen are not those that were declared, by the most likely cause",
            metrics.split_mismatch.clone(),
        );
        registry.register(
            "retries",
            "Requests that the engine did not run and that were to be asked once more, by what came of it",
            metrics.retries.clone(),
        );
        registry.register(
            "shadows",
            "Copies of requests for a shadow, by whether it said the same",
            metrics.shadows.clone(),
        );
        metrics.expect_refusals("");
        registry.register("requests_in_flight", "Requests being worked on", metrics.in_flight.clone());
        registry.register_with_unit(
            "shared",
            "Memory that bodies have of what is shared with the engine",
            Unit::Bytes,
            metrics.shared_bytes.clone(),
        );
        registry.register(
            "state_saved",
            "Whether what is to outlive the process is in its state file; 1 where none is configured",
            metrics.state_saved.clone(),
        );
        registry.register(
            "policy_generation",
            "Number of the policy in force",
            metrics.policy_generation.clone(),
        );
        registry.register(
            "policy_rejected",
            "Policy files that were refused",
            metrics.policy_rejected.clone(),
        );
        registry.register("engine_starts", "Times the engine was started", metrics.engine_starts.clone());
        registry.register("engine_up", "1 while the engine is connected", metrics.engine_up.clone());
        registry.register(
            "engine_under_way",
            "Requests that wait in the engine, and runs that have not ended",
            metrics.engine_under_way.clone(),
        );
        registry.register("engine_running", "Batches that run in the engine", metrics.engine_running.clone());
        registry.register(
            "engine_waiting",
            "Requests that wait in the engine",
            metrics.engine_waiting.clone(),
        );
        registry.register(
            "engine_request_bytes",
            "Bytes of requests that wait or run in the engine, with the copies that runs are made from and their outputs",
            metrics.engine_request_bytes.clone(),
        );
        registry.register(
            "engine_request_bytes_max",
            "Bytes that requests in the engine may hold, with the copies that runs are made from and their outputs",
            metrics.engine_request_bytes_max.clone(),
        );
        registry.register(
            "engine_resident_bytes",
            "Bytes of the engine that are in memory",
            metrics.engine_resident_bytes.clone(),
        );
        registry.register(
            "engine_memory_bytes",
            "Bytes that the engine may hold; beyond it another one takes over",
            metrics.engine_memory_bytes.clone(),
        );
        for (name, help, gauge) in [
            (
                "device_held_bytes",
                "Bytes of the GPU's memory that the engine holds",
                &metrics.device_held_bytes,
            ),
            ("device_free_bytes", "Bytes of the GPU's memory that nobody holds", &metrics.device_free_bytes),
            ("device_total_bytes", "Bytes of the GPU's memory; 0 without one", &metrics.device_total_bytes),
        ] {
            registry.register(name, help, gauge.clone());
        }
        // As Prometheus' libraries call it, so that everybody's dashboards have it.
        root.register(
            "process_resident_memory_bytes",
            "Bytes of this process that are in memory",
            metrics.resident_bytes.clone(),
        );
        root.register_collector(Box::new(metrics.drifts.clone()));
        root.register_collector(Box::new(TritonMetrics(metrics.versions.clone())));
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
        let handles = Arc::new(self.resolve(model, version));
        let mut known = self.versions.write().expect("never poisoned: no panic while held");
        known.entry(model.to_owned()).or_default().entry(version).or_insert(handles).clone()
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
        VersionMetrics {
            served: outcome("served"),
            failed: outcome("failed"),
            refused: outcome("refused"),
            abandoned: outcome("abandoned"),
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
        for reason in Refusal::REASONS {
            self.refusals.get_or_create_owned(&RefusalLabels { reason, model: model.to_owned() });
        }
    }

    /// A model has gone, and its series go with it.
    fn forget_refusals(&self, model: &str) {
        for reason in Refusal::REASONS {
            self.refusals.remove(&RefusalLabels { reason, model: model.to_owned() });
        }
    }

    /// Counts a refusal of a model that exists, or of none.
    pub fn refuse(&self, reason: &'static str, model: &str) {
        debug_assert!(
            Refusal::REASONS.contains(&reason),
            "{reason} began as nothing: its first burst would not be seen"
        );
        self.refusals.get_or_create_owned(&RefusalLabels { reason, model: model.to_owned() }).inc();
    }

    /// Shows these breakers and no others.
    pub fn set_breakers(&self, breakers: &[BreakerStatus]) {
        self.breaker.clear();
        breakers.iter().for_each(|breaker| self.set_breaker(breaker));
    }

    /// Shows these versions and no others.
    pub fn set_versions(&self, versions: &BTreeMap<(String, u64), VersionReadiness>) {
        self.version_ready.clear();
        self.version_named.clear();
        let models: BTreeSet<String> = versions.keys().map(|(model, _)| model.clone()).collect();
        let mut before = self.expected.lock().expect("no panic under this lock");
        before.difference(&models).for_each(|model| self.forget_refusals(model));
        models.difference(&before).for_each(|model| self.expect_refusals(model));
        *before = models;
        drop(before);
        for ((model, version), readiness) in versions {
            let labels = VersionLabels { model: model.clone(), version: *version };
            self.version_ready.get_or_create_owned(&labels).set(readiness.is_ready.into());
            self.version_named.get_or_create_owned(&labels).set(readiness.is_named.into());
        }
    }

    /// Shows the limits of this policy and no others.
    pub fn set_limits(&self, snapshot: &Snapshot) {
        self.limit_rate.clear();
        self.limit_burst.clear();
        self.limit_in_flight_max.clear();
        self.limit_refusals.clear();
        for limit in snapshot.limits() {
            let unit = match limit.cost {
                Cost::Requests => "requests",
                Cost::Rows => "rows",
                Cost::Bytes => "bytes",
            };
            let labels = LimitUnitLabels { limit: limit.name.to_string(), unit };
            self.limit_rate.get_or_create_owned(&labels).set(limit.rate.per_second());
            self.limit_burst.get_or_create_owned(&labels).set(limit.burst.get().into());
            self.set_limit_refusals(&limit.name);
        }
        for crowd in snapshot.crowds() {
            let labels = LimitLabels { limit: crowd.name.to_string() };
            self.limit_in_flight_max.get_or_create_owned(&labels).set(crowd.in_flight_max.get().into());
            self.set_limit_refusals(&crowd.name);
        }
    }

    fn set_limit_refusals(&self, name: &str) {
        let counter = self.limit_refusals.get_or_create_owned(&LimitLabels { limit: name.to_owned() });
        counter.inner().store(self.refused.by_limit(name), Ordering::Relaxed);
    }

    /// Shows these rollouts and no others.
    pub fn set_rollouts(&self, rollouts: &BTreeMap<String, CanaryStatus>) {
        self.canary_share.clear();
        self.canary_step.clear();
        self.canary_evidence.clear();
        for (model, rollout) in rollouts {
            for verdict in Verdict::ALL {
                self.verdicts(model, verdict); // what is born as 1 has not increased
            }
            let labels = VersionLabels { model: model.clone(), version: rollout.candidate };
            self.canary_share.get_or_create_owned(&labels).set(rollout.percent / 100.0);
            self.canary_step.get_or_create_owned(&labels).set(rollout.step as i64);
            for gate in &rollout.gates {
                let labels = EvidenceLabels { model: model.clone(), gate: gate.gate };
                self.canary_evidence.get_or_create_owned(&labels).set(gate.worse / gate.roll_back_at);
            }
        }
    }

    /// Shows these splits and no others.
    pub fn set_splits(&self, splits: &BTreeMap<String, SplitStatus>) {
        self.split_share.clear();
        self.split_evidence.clear();
        self.split_mismatch.clear();
        for (model, split) in splits {
            let model = model.clone();
            if let Some(mismatch) = &split.mismatch {
                let labels = MismatchLabels { model: model.clone(), cause: mismatch.cause };
                self.split_mismatch.get_or_create_owned(&labels).set(1);
            }
            for share in &split.versions {
                let labels = VersionLabels { model: model.clone(), version: share.version };
                self.split_share.get_or_create_owned(&labels).set(share.declared_percent / 100.0);
            }
            let evidence = self.split_evidence.get_or_create_owned(&ModelLabels { model });
            evidence.set(split.evidence / split.mismatch_at);
        }
    }

    /// Counts a request that was to be asked once more.
    pub(crate) fn count_retry(&self, model: &str, reason: &'static str, outcome: &'static str) {
        let labels = RetryLabels { model: model.to_owned(), reason, outcome };
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

    fn set_breaker(&self, breaker: &BreakerStatus) {
        let state = match breaker.state {
            BreakerState::Passing => 0,
            BreakerState::Probing => 1,
            BreakerState::Tripped { .. } => 2,
        };
        let labels = VersionLabels { model: breaker.model.to_string(), version: breaker.version.0 };
        self.breaker.get_or_create_owned(&labels).set(state);
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

#[cfg(test)]
mod tests {
    use super::*;
    use Exposition::OpenMetrics;

    #[test]
    fn a_version_is_resolved_once_and_counted_under_its_labels() {
        let metrics = Metrics::new();
        metrics.version("digits", 2).served.inc();
        metrics.version("digits", 2).served.inc();
        metrics.refuse("rate_limited", "digits");
        let text = metrics.encode(OpenMetrics);
        assert!(
            text.contains(r#"penstock_requests_total{model="digits",version="2",outcome="served"} 2"#),
            "{text}"
        );
        assert!(
            text.contains(r#"penstock_refusals_total{reason="rate_limited",model="digits"} 1"#),
            "{text}"
        );
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn whatever_a_model_is_called_its_series_are_a_line_each() {
        let metrics = Metrics::new();
        metrics.version("a \"b\"\n\\c", 1).served.inc();
        let text = metrics.encode(OpenMetrics);
        let line = r#"penstock_requests_total{model="a \"b\"\n\\c",version="1",outcome="served"} 1"#;
        assert!(text.lines().any(|found| found == line), "{text}");
        assert!(text.lines().all(|line| line.starts_with('#')
            || line.starts_with("penstock_")
            || line.starts_with("process_")
            || line.starts_with("nv_")));
    }

    #[test]
    fn batches_are_counted_once_with_what_was_padding_and_how_long_they_took_against_what_was_expected() {
        let metrics = Metrics::new();
        let phases = wire::Phases { input_ns: 100_000, infer_ns: 800_000, output_ns: 100_000 };
        let run = wire::Run {
            rows: 8,
            phases: Some(phases),
            closed: wire::Closed::Full as i32,
            expected_us: 500,
            padding_millionths: 250_000,
        };
        let unknown = wire::Run { expected_us: 0, padding_millionths: 0, ..run };
        metrics.count_batches(&metrics.version("digits", 2), &[run, unknown]);
        let text = metrics.encode(OpenMetrics);
        for line in [
            r#"penstock_batches_total{closed="full"} 2"#,
            r#"penstock_batch_rows_count{model="digits",version="2"} 2"#,
            r#"penstock_batch_rows_sum{model="digits",version="2"} 16.0"#,
            r#"penstock_batch_padding_ratio_sum{model="digits",version="2"} 0.25"#,
            r#"penstock_batch_padding_ratio_bucket{le="0.0078125",model="digits",version="2"} 1"#,
            r#"penstock_batch_padding_ratio_bucket{le="0.25",model="digits",version="2"} 2"#,
            r#"penstock_engine_run_over_expected_ratio_count{model="digits",version="2"} 1"#,
            r#"penstock_engine_run_over_expected_ratio_bucket{le="1.0",model="digits",version="2"} 0"#,
            r#"penstock_engine_run_over_expected_ratio_bucket{le="2.0",model="digits",version="2"} 1"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in {text}");
        }
    }

    #[test]
    fn limits_are_shown_as_the_policy_has_them_with_what_each_has_refused() {
        let metrics = Metrics::new();
        let policy = "limits: [{name: per-user, key: {header: u}, rate: 90/m, burst: 5, cost: rows}, {name: at-once, in_flight_max: 3}]";
        let policy = policies::parse(policy, "policies.yaml").unwrap();
        let limited = Refusal::Limited { limit: "per-user".into(), retry_after: std::time::Duration::ZERO };
        metrics.refused.note(&limited, (None, None), std::time::SystemTime::now());
        metrics.set_limits(&policy);
        let text = metrics.encode(OpenMetrics);
        for line in [
            r#"penstock_limit_rate{limit="per-user",unit="rows"} 1.5"#,
            r#"penstock_limit_burst{limit="per-user",unit="rows"} 5"#,
            r#"penstock_limit_in_flight_max{limit="at-once"} 3"#,
            r#"penstock_limit_refusals_total{limit="per-user"} 1"#,
            r#"penstock_limit_refusals_total{limit="at-once"} 0"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in {text}");
        }
        metrics.set_limits(&Snapshot::default());
        assert!(!metrics.encode(OpenMetrics).contains("per-user"), "a limit that is gone");
    }

    #[test]
    fn versions_are_shown_with_whether_they_answer_and_whether_the_policy_names_them() {
        let metrics = Metrics::new();
        let missing = VersionReadiness { is_ready: false, is_named: true };
        metrics.set_versions(&[(("m".to_owned(), 2), missing)].into());
        let text = metrics.encode(OpenMetrics);
        for line in [
            r#"penstock_version_ready{model="m",version="2"} 0"#,
            r#"penstock_version_named{model="m",version="2"} 1"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in {text}");
        }
        metrics.set_versions(&BTreeMap::new());
        assert!(!metrics.encode(OpenMetrics).contains("version_ready"));
    }

    #[test]
    fn refusals_are_counted_by_model_and_begin_at_zero_for_every_model_that_exists() {
        let metrics = Metrics::new();
        let readiness = VersionReadiness { is_ready: true, is_named: false };
        metrics.refuse("overloaded", "m");
        metrics.set_versions(&[(("m".to_owned(), 1), readiness), (("m".to_owned(), 2), readiness)].into());
        metrics.refuse("not_found", "");
        let text = metrics.encode(OpenMetrics);
        for line in [
            r#"penstock_refusals_total{reason="overloaded",model="m"} 1"#,
            r#"penstock_refusals_total{reason="deadline",model="m"} 0"#,
            r#"penstock_refusals_total{reason="not_found",model=""} 1"#,
            r#"penstock_refusals_total{reason="deadline",model=""} 0"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in {text}");
        }
        metrics.set_versions(&BTreeMap::new());
        let text = metrics.encode(OpenMetrics);
        assert!(!text.contains(r#"model="m""#), "they go with their model: {text}");
    }

    #[test]
    fn names_of_triton_stand_beside_ours_as_they_are() {
        let metrics = Metrics::new();
        assert!(!metrics.encode(OpenMetrics).contains("nv_inference"), "nothing has been asked");
        let counters = metrics.version("digits", 2);
        let timing = wire::Timing { queue_us: 7, rows: 3, ..wire::Timing::default() };
        let took = std::time::Duration::from_micros(90);
        counters.statistics.served(took, Some(&timing), std::time::SystemTime::now());
        counters.statistics.failed(took, crate::statistics::Failure::Rejected);
        let text = metrics.encode(OpenMetrics);
        for line in [
            r#"nv_inference_request_success{model="digits",version="2"} 1"#,
            r#"nv_inference_count{model="digits",version="2"} 3"#,
            r#"nv_inference_exec_count{model="digits",version="2"} 0"#,
            r#"nv_inference_request_duration_us{model="digits",version="2"} 90"#,
            r#"nv_inference_queue_duration_us{model="digits",version="2"} 7"#,
            r#"nv_inference_request_failure{model="digits",reason="REJECTED",version="2"} 1"#,
            r#"nv_inference_request_failure{model="digits",reason="BACKEND",version="2"} 0"#,
            "# TYPE nv_inference_pending_request_count gauge",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in {text}");
        }
    }

    /// Prometheus' own parser of text 0.0.4, where it is installed or `configs/prometheus/check.sh` has fetched it.
    fn promtool() -> Option<std::process::Command> {
        let cache = std::env::var_os("PENSTOCK_CACHE").map(std::path::PathBuf::from);
        let cache =
            cache.or_else(|| Some(std::path::Path::new(&std::env::var_os("HOME")?).join(".cache/penstock")));
        let fetched = cache?.join("promtool/promtool");
        let runs =
            |name: &std::path::Path| std::process::Command::new(name).arg("--version").output().is_ok();
        let found = ["promtool".into(), fetched].into_iter().find(|name: &std::path::PathBuf| runs(name))?;
        Some(std::process::Command::new(found))
    }

    #[test]
    fn whoever_knows_only_text_gets_all_metrics_in_a_text_that_prometheus_reads() {
        use std::io::Write;
        use std::process::Stdio;
        let metrics = Metrics::new();
        let counters = metrics.version("a } # {", 1);
        counters.latency.observe(0.01, Some(TraceLabel { trace_id: "0af7651916cd43dd".into() }), None);
        counters.served.inc();
        let readiness = VersionReadiness { is_ready: true, is_named: true };
        metrics.set_versions(&[(("m".to_owned(), 2), readiness)].into());
        let limits = "limits: [{name: a, rate: 3/s, burst: 5}, {name: b, in_flight_max: 3}]";
        metrics.set_limits(&policies::parse(limits, "policies.yaml").unwrap());
        let (open, text) = (metrics.encode(OpenMetrics), metrics.encode(Exposition::Text));
        assert!(open.contains("# {trace_id=") && open.ends_with("# EOF\n"), "{open}");
        assert!(text.contains("# TYPE penstock_requests_total counter\n"), "{text}");
        assert!(!text.contains("trace_id") && !text.contains("# EOF") && !text.contains("# UNIT"), "{text}");
        let samples = |text: &str| text.lines().filter(|line| !line.starts_with('#')).count();
        assert_eq!(samples(&open), samples(&text));
        let Some(mut promtool) = promtool() else {
            return eprintln!("there is no promtool: what it says of the text is NOT checked");
        };
        promtool.args(["check", "metrics"]).stdin(Stdio::piped()).stderr(Stdio::piped());
        let mut checks = promtool.spawn().unwrap();
        checks.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        let checked = checks.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&checked.stderr);
        assert!(!said.contains("error while linting"), "{said}");
        // Names that are Triton's are not ours to choose.
        let ours: Vec<_> = said.lines().filter(|line| line.starts_with("penstock")).collect();
        assert!(ours.is_empty(), "{ours:?}");
    }
}
