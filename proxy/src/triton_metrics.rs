//! The metrics that Triton has, under its names, from the counters of its statistics extension. Decides names and units;
//! counts nothing.
//!
//! OpenMetrics wants counters to end in `_total`, which Triton's do not: they are written as `unknown`, and whoever asks
//! Prometheus for a rate by Triton's name gets it.

use crate::metrics::VersionMap;
use crate::statistics::{Failure, StatisticDuration, Totals};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use std::fmt;
use std::sync::{Arc, RwLock};

/// Shows all versions at each scrape.
#[derive(Debug)]
pub(crate) struct TritonMetrics(pub(crate) Arc<RwLock<VersionMap>>);

/// What a metric shows of a version.
type Shown = fn(&Totals) -> u64;

const METRICS: [(&str, &str, Shown); 9] = [
    ("nv_inference_request_success", "Requests that were answered", |all| all.success.count),
    ("nv_inference_count", "Rows of the requests that were answered", |all| all.rows),
    ("nv_inference_exec_count", "Runs of the model, of however many rows", |all| all.runs),
    ("nv_inference_request_duration_us", "Whole time of the requests that were answered, µs", |all| {
        micros(all.success)
    }),
    ("nv_inference_queue_duration_us", "Their wait in the engine, µs", |all| micros(all.queue)),
    ("nv_inference_compute_input_duration_us", "Laying their inputs side by side, µs", |all| {
        micros(all.compute_input)
    }),
    ("nv_inference_compute_infer_duration_us", "Computing, µs", |all| micros(all.compute_infer)),
    ("nv_inference_compute_output_duration_us", "Cutting outputs into answers, µs", |all| {
        micros(all.compute_output)
    }),
    ("nv_inference_pending_request_count", "Requests that wait for the engine, or run in it", |all| {
        all.waiting
    }),
];

impl Collector for TritonMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut all = Vec::new();
        for (model, versions) in self.0.read().expect("never poisoned: no panic while held").iter() {
            for (version, counters) in versions {
                all.push(((model.clone(), *version), counters.statistics.totals()));
            }
        }
        if all.is_empty() {
            return Ok(());
        }
        all.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        for (name, help, shown) in METRICS {
            let is_gauge = name.ends_with("pending_request_count");
            let kind = if is_gauge { MetricType::Gauge } else { MetricType::Unknown };
            let mut metric = encoder.encode_descriptor(name, help, None, kind)?;
            for ((model, version), totals) in &all {
                let labels = [("model", model.clone()), ("version", version.to_string())];
                ConstGauge::new(shown(totals)).encode(metric.encode_family(&labels)?)?;
            }
        }
        let help = "Requests that were not answered, by reason";
        let mut metric =
            encoder.encode_descriptor("nv_inference_request_failure", help, None, MetricType::Unknown)?;
        for ((model, version), totals) in &all {
            for (why, failed) in Failure::ALL.into_iter().zip(totals.failures) {
                let labels = [
                    ("model", model.clone()),
                    ("reason", why.as_str().to_owned()),
                    ("version", version.to_string()),
                ];
                ConstGauge::new(failed.count).encode(metric.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

fn micros(sum: StatisticDuration) -> u64 {
    sum.ns / 1000
}
