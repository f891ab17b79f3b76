//! What the engine has said of the tensors of its versions: kept here for those who look, and told to rollouts. Decides
//! names and labels; how far something has moved, the engine says.
//!
//! Names of tensors are those that the models' authors declare, a few for each version, so no client can make the number of
//! series grow.

use crate::histogram::Distribution;
use crate::status::{Drift, Moved};
use policies::DriftSight;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use wire::{Confidence, DriftSide, TensorDrift, VersionDrift};

/// The latest of each version that answers. Cloning shares it.
#[derive(Clone, Debug, Default)]
pub struct Drifts(Arc<Mutex<BTreeMap<(String, u64), VersionDrift>>>);

impl Drifts {
    /// The engine has said this.
    pub fn take(&self, news: Vec<VersionDrift>) {
        let mut all = self.lock();
        news.into_iter().for_each(|drift| drop(all.insert((drift.name.clone(), drift.version), drift)));
    }

    /// Forgets all but those that answer now, by the number of their load.
    pub fn retain(&self, answers: impl Fn(&str, u64, u64) -> bool) {
        self.lock().retain(|(model, version), drift| answers(model, *version, drift.load));
    }

    /// Forgets what an engine has said that is gone.
    pub fn clear(&self) {
        self.lock().clear();
    }

    /// Of one version, for those who look.
    pub fn of(&self, model: &str, version: u64) -> Option<Drift> {
        self.lock().get(&(model.to_owned(), version)).map(shown)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(String, u64), VersionDrift>> {
        self.0.lock().expect("no panic while it is held")
    }
}

/// What it means for a rollout, as of `now`; nothing before a window was compared.
pub(crate) fn sight(drift: &VersionDrift, now: Instant) -> Option<DriftSight> {
    if drift.windows == 0 {
        return None; // lengths alone do not tell what a model is given, nor when
    }
    let ended = now.checked_sub(Duration::from_millis(drift.ended_ms))?;
    let furthest =
        drift.tensors.iter().max_by_key(|tensor| (tensor.least_millionths, tensor.bits_millionths))?;
    Some(DriftSight {
        what: words(furthest),
        least: furthest.least_millionths,
        most: drift.tensors.iter().map(|tensor| tensor.most_millionths).max()?,
        rows: furthest.rows.into(),
        began: ended.checked_sub(Duration::from_millis(drift.lasted_ms))?,
        ended,
    })
}

fn words(tensor: &TensorDrift) -> String {
    let column = tensor.column.map(|column| format!(", column {column},")).unwrap_or_default();
    match tensor.side() {
        DriftSide::Input => format!("input `{}`{column}", tensor.name),
        DriftSide::Output => format!("output `{}`{column}", tensor.name),
        DriftSide::Confidence => "the confidence".into(),
    }
}

fn side(tensor: &TensorDrift) -> &'static str {
    match tensor.side() {
        DriftSide::Input => "input",
        DriftSide::Output => "output",
        DriftSide::Confidence => "confidence",
    }
}

fn bits(millionths: u32) -> f64 {
    f64::from(millionths) / 1e6
}

fn shown(drift: &VersionDrift) -> Drift {
    let moved = |tensor: &TensorDrift| Moved {
        side: side(tensor).into(),
        name: tensor.name.clone(),
        column: tensor.column,
        bits: bits(tensor.bits_millionths),
        least: bits(tensor.least_millionths),
        most: bits(tensor.most_millionths),
        rows: tensor.rows,
    };
    Drift {
        rows: drift.seen,
        has_reference: drift.has_reference,
        windows: drift.windows,
        tensors: drift.tensors.iter().map(moved).collect(),
        confidence: drift.confidence.as_ref().map(distribution).unwrap_or_default(),
    }
}

fn distribution(confidence: &Confidence) -> Distribution {
    let tenths = confidence.tenths.iter().enumerate().filter(|(_, count)| **count > 0);
    Distribution {
        count: confidence.tenths.iter().sum(),
        sum: confidence.sum_millionths as f64 / 1e6,
        buckets: tenths.map(|(at, count)| (at as f64 / 10.0, (at + 1) as f64 / 10.0, *count)).collect(),
    }
}

/// What a metric shows of a tensor.
type Shown = fn(&TensorDrift) -> u32;

const METRICS: [(&str, &str, Shown); 3] = [
    (
        "penstock_drift_bits",
        "How far a tensor has moved from the version's first rows: Jensen-Shannon divergence, 0 to 1 bit",
        |tensor| tensor.bits_millionths,
    ),
    (
        "penstock_drift_least_bits",
        "By how much at least; 0 unless it is more than chance explains",
        |tensor| tensor.least_millionths,
    ),
    ("penstock_drift_most_bits", "By how much at most, as far as so many rows can tell", |tensor| {
        tensor.most_millionths
    }),
];

impl Collector for Drifts {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let all = self.lock();
        if all.is_empty() {
            return Ok(());
        }
        for (name, help, shown) in METRICS {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for ((model, version), drift) in &*all {
                for tensor in &drift.tensors {
                    let labels = [
                        ("model", model.clone()),
                        ("version", version.to_string()),
                        ("side", side(tensor).to_owned()),
                        ("tensor", tensor.name.clone()),
                    ];
                    ConstGauge::new(bits(shown(tensor))).encode(metric.encode_family(&labels)?)?;
                }
            }
        }
        let help = "Rows whose tensors were looked at, of those that the engine has answered";
        let mut metric = encoder.encode_descriptor("penstock_drift_rows", help, None, MetricType::Counter)?;
        for ((model, version), drift) in &*all {
            let labels = [("model", model.clone()), ("version", version.to_string())];
            ConstCounter::new(drift.seen).encode(metric.encode_family(&labels)?)?;
        }
        if all.values().all(|drift| drift.confidence.is_none()) {
            return Ok(());
        }
        let help = "How probable versions held the class to be that they held most probable, of the rows that were looked at";
        let mut metric =
            encoder.encode_descriptor("penstock_confidence", help, None, MetricType::Histogram)?;
        for ((model, version), drift) in &*all {
            let Some(confidence) = &drift.confidence else { continue };
            let labels = [("model", model.clone()), ("version", version.to_string())];
            let tenths = confidence.tenths.iter().enumerate();
            let mut bounds: Vec<_> = tenths.map(|(at, count)| ((at + 1) as f64 / 10.0, *count)).collect();
            bounds.push((f64::INFINITY, 0));
            let (sum, count) = (confidence.sum_millionths as f64 / 1e6, confidence.tenths.iter().sum());
            metric.encode_family(&labels)?.encode_histogram::<NoLabelSet>(sum, count, &bounds, None)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exposition::Exposition::OpenMetrics;
    use crate::metrics::Metrics;

    #[test]
    fn lengths_without_a_window_of_rows_mean_nothing_to_a_rollout() {
        let now = Instant::now();
        let lengths_only = VersionDrift { windows: 0, ended_ms: 0, lasted_ms: 0, ..told(1) };
        assert!(sight(&told(1), now).is_some() && sight(&lengths_only, now).is_none());
    }

    fn told(load: u64) -> VersionDrift {
        let tensor = |side: DriftSide, name: &str, least, most| TensorDrift {
            side: side as i32,
            name: name.into(),
            bits_millionths: 250_000,
            least_millionths: least,
            most_millionths: most,
            column: (side == DriftSide::Input).then_some(3),
            rows: 600,
        };
        VersionDrift {
            name: "digits".into(),
            version: 2,
            load,
            seen: 1880,
            has_reference: true,
            windows: 1,
            ended_ms: 100,
            lasted_ms: 5000,
            tensors: vec![
                tensor(DriftSide::Input, "pixels", 125_000, 400_000),
                tensor(DriftSide::Output, "a \"b\"\n", 0, 500_000),
            ],
            confidence: Some(Confidence {
                tenths: vec![0, 0, 0, 0, 0, 1, 0, 0, 0, 3],
                sum_millionths: 3_350_000,
            }),
        }
    }

    #[test]
    fn what_the_engine_says_stands_in_metrics_under_the_version_and_tensor() {
        let metrics = Metrics::new();
        assert!(!metrics.encode(OpenMetrics).contains("drift"), "nothing was said");
        metrics.drifts.take(vec![told(1)]);
        let text = metrics.encode(OpenMetrics);
        for line in [
            r#"penstock_drift_bits{model="digits",version="2",side="input",tensor="pixels"} 0.25"#,
            r#"penstock_drift_least_bits{model="digits",version="2",side="input",tensor="pixels"} 0.125"#,
            r#"penstock_drift_most_bits{model="digits",version="2",side="output",tensor="a \"b\"\n"} 0.5"#,
            r#"penstock_drift_rows_total{model="digits",version="2"} 1880"#,
            r#"penstock_confidence_bucket{le="0.6",model="digits",version="2"} 1"#,
            r#"penstock_confidence_bucket{le="+Inf",model="digits",version="2"} 4"#,
            r#"penstock_confidence_sum{model="digits",version="2"} 3.35"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in {text}");
        }
    }

    #[test]
    fn a_version_of_other_files_begins_anew() {
        let drifts = Drifts::default();
        drifts.take(vec![told(1)]);
        drifts.retain(|model, version, load| (model, version, load) == ("digits", 2, 1));
        let shown = drifts.of("digits", 2).unwrap();
        assert_eq!((shown.rows, shown.tensors[0].column, shown.confidence.count), (1880, Some(3), 4));
        drifts.retain(|_, _, load| load == 7);
        assert_eq!(drifts.of("digits", 2), None);
    }

    #[test]
    fn rollouts_are_told_of_the_tensor_that_has_moved_most_and_of_all_that_may_have() {
        let now = Instant::now() + Duration::from_secs(60);
        let sight = sight(&told(1), now).unwrap();
        assert_eq!(
            (now - sight.ended, sight.ended - sight.began),
            (Duration::from_millis(100), Duration::from_secs(5))
        );
        assert_eq!(
            (sight.what.as_str(), sight.least, sight.most),
            ("input `pixels`, column 3,", 125_000, 500_000)
        );
        assert_eq!(super::sight(&VersionDrift { tensors: Vec::new(), ..told(1) }, now), None);
    }
}
