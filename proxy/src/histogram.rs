//! Counts how often a quantity was how large. Decides which sizes are told apart: four between a size and its double,
//! so that a quantile is right to an eighth. `/metrics` gets the doublings alone.
//!
//! An observation is two additions to counters that nobody locks; prometheus-client's own histogram takes a lock, and
//! shows its counts to nobody but Prometheus.

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::{MetricType, TypedMetric};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counts that threads share. Cloning shares them, too.
#[derive(Clone, Debug)]
pub struct Histogram(Arc<Counts>);

#[derive(Debug)]
struct Counts {
    scale: Scale,
    sum: AtomicU64,
    /// The last one is for what is larger than any bound.
    buckets: Box<[AtomicU64]>,
}

/// What is counted, and how finely.
#[derive(Debug)]
struct Scale {
    /// The smallest difference that is told apart.
    unit: f64,
    /// Of the sum, which is kept in whole numbers.
    sum_unit: f64,
    /// The bounds that Prometheus gets are units times 2 to these powers.
    powers: std::ops::RangeInclusive<u32>,
}

/// 100 µs to 26 s for Prometheus; from 6.25 µs for those who read the counts.
const SECONDS: Scale = Scale { unit: 6.25e-6, sum_unit: 1e-9, powers: 4..=22 };
/// 5 µs to 2.6 s.
const SHORT_TIMES: Scale = Scale { unit: 1.25e-6, sum_unit: 1e-9, powers: 2..=21 };
/// 1/128 to 1.
const PARTS: Scale = Scale { unit: 1.0 / 128.0, sum_unit: 1e-6, powers: 0..=7 };
/// An eighth to eight times.
const TIMES: Scale = Scale { unit: 1.0 / 64.0, sum_unit: 1e-6, powers: 3..=9 };
/// 1 to 1,024.
const ROWS: Scale = Scale { unit: 1.0, sum_unit: 1.0, powers: 0..=10 };

impl Histogram {
    /// Of times, in seconds.
    pub fn of_seconds() -> Self {
        Self::new(SECONDS)
    }

    /// Of times of which many are short, in seconds.
    pub fn of_short_times() -> Self {
        Self::new(SHORT_TIMES)
    }

    /// Of parts of a whole, 0 to 1.
    pub fn of_parts() -> Self {
        Self::new(PARTS)
    }

    /// Of how many times as much something was than it was expected to be.
    pub fn of_times() -> Self {
        Self::new(TIMES)
    }

    /// Of rows.
    pub fn of_rows() -> Self {
        Self::new(ROWS)
    }

    fn new(scale: Scale) -> Self {
        let buckets = (0..=bucket_below(*scale.powers.end()) + 1).map(|_| AtomicU64::new(0)).collect();
        Self(Arc::new(Counts { scale, sum: AtomicU64::new(0), buckets }))
    }

    /// Counts one.
    pub fn observe(&self, value: f64) {
        let Counts { scale, sum, buckets } = &*self.0;
        // What is no number, or below zero, counts as zero.
        let steps = ((value / scale.unit).ceil() as u64).saturating_sub(1);
        let bucket = bucket_of(steps).min(buckets.len() - 1);
        buckets[bucket].fetch_add(1, Ordering::Relaxed);
        sum.fetch_add((value / scale.sum_unit).round() as u64, Ordering::Relaxed);
    }

    /// What was counted so far, with values multiplied by `factor`.
    pub fn read(&self, factor: f64) -> Distribution {
        let Counts { scale, sum, buckets } = &*self.0;
        let counts = buckets.iter().map(|count| count.load(Ordering::Relaxed));
        let bound = |bucket| upper(bucket) as f64 * scale.unit * factor;
        let from = |bucket: usize| bucket.checked_sub(1).map_or(0.0, bound);
        let filled: Vec<(f64, f64, u64)> = counts
            .enumerate()
            .filter(|(_, count)| *count > 0)
            .map(|(bucket, count)| (from(bucket), bound(bucket), count))
            .collect();
        Distribution {
            count: filled.iter().map(|(_, _, count)| count).sum(),
            sum: sum.load(Ordering::Relaxed) as f64 * scale.sum_unit * factor,
            buckets: filled,
        }
    }
}

impl EncodeMetric for Histogram {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        let Counts { scale, sum, buckets } = &*self.0;
        let counts: Vec<u64> = buckets.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        let mut from = 0;
        let mut bounds = Vec::new();
        for power in scale.powers.clone() {
            let to = bucket_below(power) + 1;
            bounds.push(((1_u64 << power) as f64 * scale.unit, counts[from..to].iter().sum()));
            from = to;
        }
        bounds.push((f64::INFINITY, counts[from..].iter().sum()));
        let sum = sum.load(Ordering::Relaxed) as f64 * scale.sum_unit;
        encoder.encode_histogram::<NoLabelSet>(sum, counts.iter().sum(), &bounds, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

impl TypedMetric for Histogram {
    const TYPE: MetricType = MetricType::Histogram;
}

/// Counts as a reader gets them. They only grow: what was between two readings is their difference.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Distribution {
    /// How many there were.
    pub count: u64,
    /// All of them together.
    pub sum: f64,
    /// How many were larger than the first and at most the second; where there were none, nothing stands. The last bound is
    /// of what is larger than any.
    pub buckets: Vec<(f64, f64, u64)>,
}

impl Distribution {
    /// What has come since an earlier reading.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let had =
            |from: f64| earlier.buckets.iter().find(|bucket| bucket.0 == from).map_or(0, |bucket| bucket.2);
        let buckets =
            self.buckets.iter().map(|(from, to, count)| (*from, *to, count.saturating_sub(had(*from))));
        Self {
            count: self.count.saturating_sub(earlier.count),
            sum: self.sum - earlier.sum,
            buckets: buckets.filter(|bucket| bucket.2 > 0).collect(),
        }
    }

    /// The value that this part of all are below, as if those of a bucket were evenly spread; `None` of nothing.
    pub fn quantile(&self, part: f64) -> Option<f64> {
        let mut left = self.count as f64 * part;
        for (from, to, count) in &self.buckets {
            let count = *count as f64;
            if left <= count {
                return Some(from + (to - from) * (left / count));
            }
            left -= count;
        }
        self.buckets.last().map(|(_, to, _)| *to)
    }

    /// `None` of nothing.
    pub fn mean(&self) -> Option<f64> {
        (self.count > 0).then(|| self.sum / self.count as f64)
    }
}

/// Where a value stands that takes so many whole steps and a part of another.
fn bucket_of(steps: u64) -> usize {
    if steps < 4 {
        return steps as usize;
    }
    let octave = u64::from(steps.ilog2());
    ((octave - 1) * 4 + ((steps >> (octave - 2)) & 3)) as usize
}

/// The largest value of a bucket, in units.
fn upper(bucket: usize) -> u64 {
    match bucket as u64 {
        bucket @ 0..4 => bucket + 1,
        bucket => (5 + bucket % 4) << (bucket / 4 - 1),
    }
}

/// The bucket that ends at 2 to this power.
fn bucket_below(power: u32) -> usize {
    bucket_of((1 << power) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_counted_under_the_next_bound() {
        for steps in (0..5000).chain([1 << 20, (1 << 21) + 77, (1 << 22) - 1]) {
            let bucket = bucket_of(steps);
            assert!(steps < upper(bucket), "{steps}");
            assert!(bucket == 0 || steps >= upper(bucket - 1), "{steps}");
            assert!(upper(bucket) as f64 / (steps + 1) as f64 <= 1.25, "{steps}");
        }
        for power in 0..22 {
            assert_eq!(upper(bucket_below(power)), 1 << power);
        }
    }

    #[test]
    fn rows_are_told_apart_up_to_eight_and_what_is_too_large_is_not_lost() {
        let rows = Histogram::of_rows();
        [1.0, 1.0, 3.0, 8.0, 5000.0, f64::NAN].into_iter().for_each(|value| rows.observe(value));
        let read = rows.read(1.0);
        assert_eq!((read.count, read.sum), (6, 5013.0));
        assert_eq!(read.buckets[..3], [(0.0, 1.0, 3), (2.0, 3.0, 1), (7.0, 8.0, 1)]);
        assert_eq!((read.buckets[3].0, read.buckets[3].2), (1024.0, 1));
    }

    #[test]
    fn prometheus_gets_the_doublings() {
        let mut registry = prometheus_client::registry::Registry::default();
        let times = Histogram::of_seconds();
        registry.register("t", "T", times.clone());
        times.observe(0.000_02);
        times.observe(0.000_15);
        times.observe(100.0);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            "t_sum 100.0001",
            "t_count 3",
            "t_bucket{le=\"0.0001\"} 1",
            "t_bucket{le=\"0.0002\"} 2",
            "t_bucket{le=\"26.2144\"} 2",
            "t_bucket{le=\"+Inf\"} 3",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
        assert_eq!(text.matches("t_bucket").count(), 20, "{text}");
        let read = times.read(1e6);
        assert_eq!(read.buckets[0], (18.75, 25.0, 1), "in µs, and finer");
    }

    #[test]
    fn a_reader_gets_quantiles_of_what_was_between_two_readings() {
        let rows = Histogram::of_rows();
        (0..100).for_each(|_| rows.observe(1.0));
        let before = rows.read(1.0);
        for value in [2.0, 2.0, 4.0, 8.0] {
            rows.observe(value);
        }
        let between = rows.read(1.0).since(&before);
        assert_eq!((between.count, between.sum, between.mean()), (4, 16.0, Some(4.0)));
        assert_eq!(
            (between.quantile(0.5), between.quantile(0.75), between.quantile(1.0)),
            (Some(2.0), Some(4.0), Some(8.0))
        );
        assert_eq!((Distribution::default().quantile(0.5), Distribution::default().mean()), (None, None));
    }
}
