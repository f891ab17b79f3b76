//! What is set anew at each scrape, from what others keep: how versions, breakers, limits, rollouts and splits are at that moment.
//! Decides what is shown of them, and that nothing is shown of what is there no more; counts nothing.

use super::{Metrics, VersionLabels, added};
use crate::readiness::VersionReadiness;
use policies::{BreakerState, BreakerStatus, CanaryStatus, Cost, Snapshot, Spent, SplitStatus, Verdict};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

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

/// What a scrape sets.
#[derive(Debug)]
pub(crate) struct Scraped {
    /// Bytes of this process that are in memory.
    pub(crate) resident_bytes: Gauge<u64, AtomicU64>,
    /// Bytes that bodies have in the memory that is shared with the engine.
    pub(crate) shared_bytes: Gauge<u64, AtomicU64>,
    /// Lines of the access log that were dropped.
    pub(crate) access_dropped: Counter,
    /// Whether the policy file says what is in force.
    pub(crate) policy_file_in_force: Gauge,
    breaker: Family<VersionLabels, Gauge>,
    version_ready: Family<VersionLabels, Gauge>,
    version_named: Family<VersionLabels, Gauge>,
    limit_rate: Family<LimitUnitLabels, Gauge<f64, AtomicU64>>,
    limit_burst: Family<LimitUnitLabels, Gauge>,
    limit_in_flight_max: Family<LimitLabels, Gauge>,
    limit_spent: Family<LimitLabels, Gauge<f64, AtomicU64>>,
    limit_callers: Family<LimitLabels, Gauge<u64, AtomicU64>>,
    limit_exhausted: Family<LimitLabels, Gauge<u64, AtomicU64>>,
    limit_refusals: Family<LimitLabels, Counter>,
    canary_share: Family<VersionLabels, Gauge<f64, AtomicU64>>,
    canary_step: Family<VersionLabels, Gauge>,
    canary_evidence: Family<EvidenceLabels, Gauge<f64, AtomicU64>>,
    split_share: Family<VersionLabels, Gauge<f64, AtomicU64>>,
    split_evidence: Family<ModelLabels, Gauge<f64, AtomicU64>>,
    split_mismatch: Family<MismatchLabels, Gauge>,
}

impl Scraped {
    /// As Prometheus' libraries call it, so that everybody's dashboards have it: among metrics that have no prefix.
    pub(super) fn of_process(root: &mut Registry) -> Gauge<u64, AtomicU64> {
        added(root, "process_resident_memory_bytes", "Bytes of this process that are in memory")
    }

    /// Registers them.
    pub(super) fn new(registry: &mut Registry, resident_bytes: Gauge<u64, AtomicU64>) -> Self {
        let shared_bytes = Gauge::default();
        let help = "Memory that bodies have of what is shared with the engine";
        registry.register_with_unit("shared", help, Unit::Bytes, Gauge::clone(&shared_bytes));
        Self {
            resident_bytes,
            shared_bytes,
            access_dropped: added(
                registry,
                "access_log_dropped",
                "Lines of the access log that were dropped because standard output did not take them in time",
            ),
            policy_file_in_force: added(
                registry,
                "policy_file_in_force",
                "Whether the policy file says what is in force; 1 where none is configured",
            ),
            breaker: added(
                registry,
                "breaker_state",
                "0 passing, 1 probing, also if the next request is to be the probe, 2 tripped",
            ),
            version_ready: added(
                registry,
                "version_ready",
                "1 while a version answers; of another server's, its breaker tells",
            ),
            version_named: added(
                registry,
                "version_named",
                "1 while the policy sends a version requests, be it in place of one that fails, or copies of them",
            ),
            limit_rate: added(
                registry,
                "limit_rate",
                "Units per second that a limit lets each caller have in the long run",
            ),
            limit_burst: added(
                registry,
                "limit_burst",
                "Units that a limit lets each caller have at once after a pause",
            ),
            limit_in_flight_max: added(
                registry,
                "limit_in_flight_max",
                "Requests of a caller that a limit lets be under way at once",
            ),
            limit_spent: added(
                registry,
                "limit_spent_ratio",
                "What the busiest caller of a limit has spent, of what that lets each have at once",
            ),
            limit_callers: added(registry, "limit_callers", "Callers that have spent some of a limit"),
            limit_exhausted: added(
                registry,
                "limit_exhausted_callers",
                "Callers that have spent all of a limit: one more would be refused",
            ),
            limit_refusals: added(
                registry,
                "limit_refusals",
                "Requests that a limit of the policy has refused",
            ),
            canary_share: added(
                registry,
                "canary_share",
                "Share of the requests that a candidate gets, of 1",
            ),
            canary_step: added(registry, "canary_step", "Step of a rollout, from 1"),
            canary_evidence: added(
                registry,
                "canary_evidence",
                "Evidence that a candidate is worse, as a share of what it takes to roll it back",
            ),
            split_share: added(
                registry,
                "split_share",
                "Share of a split that the policy declares for a version, of 1",
            ),
            split_evidence: added(
                registry,
                "split_evidence",
                "Evidence that the shares which are seen are not those that were declared, as a share of what it takes to say so",
            ),
            split_mismatch: added(
                registry,
                "split_mismatch",
                "1 where the shares which are seen are not those that were declared, by the most likely cause",
            ),
        }
    }
}

impl Metrics {
    /// Shows these breakers and no others.
    pub fn set_breakers(&self, breakers: &[BreakerStatus]) {
        self.scraped.breaker.clear();
        for BreakerStatus { model, version, state } in breakers {
            let state = match state {
                BreakerState::Passing => 0,
                BreakerState::Tripped { retry_after } if !retry_after.is_zero() => 2,
                BreakerState::Tripped { .. } | BreakerState::Probing => 1,
            };
            let labels = VersionLabels { model: model.to_string(), version: version.0 };
            self.scraped.breaker.get_or_create_owned(&labels).set(state);
        }
    }

    /// Shows these versions and no others.
    pub fn set_versions(&self, versions: &BTreeMap<(String, u64), VersionReadiness>) {
        let Scraped { version_ready, version_named, .. } = &self.scraped;
        version_ready.clear();
        version_named.clear();
        for ((model, version), readiness) in versions {
            self.expect_refusals(model);
            let labels = VersionLabels { model: model.clone(), version: *version };
            version_ready.get_or_create_owned(&labels).set(readiness.is_ready.into());
            version_named.get_or_create_owned(&labels).set(readiness.is_named.into());
        }
    }

    /// Shows the limits of this policy and no others, with how much of each is spent.
    pub fn set_limits(&self, snapshot: &Snapshot, spent: &BTreeMap<String, Spent>) {
        let Scraped { limit_rate, limit_burst, limit_in_flight_max, limit_refusals, .. } = &self.scraped;
        let Scraped { limit_spent, limit_callers, limit_exhausted, .. } = &self.scraped;
        limit_rate.clear();
        limit_burst.clear();
        limit_in_flight_max.clear();
        limit_refusals.clear();
        limit_spent.clear();
        limit_callers.clear();
        limit_exhausted.clear();
        for (name, Spent { most, of, callers, exhausted }) in spent {
            let labels = LimitLabels { limit: name.clone() };
            limit_spent.get_or_create_owned(&labels).set(f64::from(*most) / f64::from(*of));
            limit_callers.get_or_create_owned(&labels).set(*callers);
            limit_exhausted.get_or_create_owned(&labels).set(*exhausted);
        }
        for limit in snapshot.limits() {
            let unit = match limit.cost {
                Cost::Requests => "requests",
                Cost::Rows => "rows",
                Cost::Bytes => "bytes",
            };
            let labels = LimitUnitLabels { limit: limit.name.to_string(), unit };
            limit_rate.get_or_create_owned(&labels).set(limit.rate.per_second());
            limit_burst.get_or_create_owned(&labels).set(limit.burst.get().into());
            self.set_limit_refusals(&limit.name);
        }
        for crowd in snapshot.crowds() {
            let labels = LimitLabels { limit: crowd.name.to_string() };
            limit_in_flight_max.get_or_create_owned(&labels).set(crowd.in_flight_max.get().into());
            self.set_limit_refusals(&crowd.name);
        }
    }

    fn set_limit_refusals(&self, name: &str) {
        let labels = LimitLabels { limit: name.to_owned() };
        let counter = self.scraped.limit_refusals.get_or_create_owned(&labels);
        counter.inner().store(self.refused.by_limit(name), Ordering::Relaxed);
    }

    /// Shows these rollouts and no others.
    pub fn set_rollouts(&self, rollouts: &BTreeMap<String, CanaryStatus>) {
        let Scraped { canary_share, canary_step, canary_evidence, .. } = &self.scraped;
        canary_share.clear();
        canary_step.clear();
        canary_evidence.clear();
        for (model, rollout) in rollouts {
            for verdict in Verdict::ALL {
                self.verdicts(model, verdict); // what is born as 1 has not increased
            }
            let labels = VersionLabels { model: model.clone(), version: rollout.candidate };
            canary_share.get_or_create_owned(&labels).set(rollout.percent / 100.0);
            canary_step.get_or_create_owned(&labels).set(rollout.step as i64);
            for gate in &rollout.gates {
                let labels = EvidenceLabels { model: model.clone(), gate: gate.gate };
                canary_evidence.get_or_create_owned(&labels).set(gate.worse / gate.roll_back_at);
            }
        }
    }

    /// Shows these splits and no others.
    pub fn set_splits(&self, splits: &BTreeMap<String, SplitStatus>) {
        let Scraped { split_share, split_evidence, split_mismatch, .. } = &self.scraped;
        split_share.clear();
        split_evidence.clear();
        split_mismatch.clear();
        for (model, split) in splits {
            let model = model.clone();
            if let Some(mismatch) = &split.mismatch {
                let labels = MismatchLabels { model: model.clone(), cause: mismatch.cause };
                split_mismatch.get_or_create_owned(&labels).set(1);
            }
            for share in &split.versions {
                let labels = VersionLabels { model: model.clone(), version: share.version };
                split_share.get_or_create_owned(&labels).set(share.declared_percent / 100.0);
            }
            let evidence = split_evidence.get_or_create_owned(&ModelLabels { model });
            evidence.set(split.evidence / split.mismatch_at);
        }
    }
}
