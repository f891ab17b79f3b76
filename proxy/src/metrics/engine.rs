//! What the engine last said of what it holds and has under way. While there is none, nothing is shown: what one held that is
//! gone would look like what one holds that is well. `penstock_engine_up` says which it is.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use wire::{DeviceMemory, Health};

/// What it said last, shared by who hears it and who shows it.
#[derive(Clone, Debug, Default)]
pub struct EngineHealth(Arc<Mutex<Option<Health>>>);

impl EngineHealth {
    /// It has said this.
    pub(crate) fn hear(&self, health: Health) {
        *self.lock() = Some(health);
    }

    /// It is gone.
    pub(crate) fn forget(&self) {
        *self.lock() = None;
    }

    /// What it said last; nothing while it is away, or has only just come.
    pub(crate) fn last(&self) -> Option<Health> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Health>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a metric shows of it.
type Shown = fn(&Health) -> u64;

const METRICS: [(&str, &str, Shown); 10] = [
    ("engine_under_way", "Requests that wait in the engine, and runs that have not ended", |health| {
        health.under_way
    }),
    ("engine_running", "Batches that run in the engine", |health| health.running),
    ("engine_waiting", "Requests that wait in the engine", |health| {
        health.under_way.saturating_sub(health.running)
    }),
    (
        "engine_request_bytes",
        "Bytes of requests that wait or run in the engine, with the copies that runs are made from and their outputs",
        |health| health.request_bytes,
    ),
    (
        "engine_request_bytes_max",
        "Bytes that requests in the engine may hold, with the copies that runs are made from and their outputs",
        |health| health.request_bytes_max,
    ),
    ("engine_resident_bytes", "Bytes of the engine that are in memory", |health| health.resident_bytes),
    ("engine_memory_bytes", "Bytes that the engine may hold; beyond it another one takes over", |health| {
        health.memory_bytes
    }),
    ("device_held_bytes", "Bytes of the GPU's memory that the engine holds", |health| {
        device(health).held_bytes
    }),
    ("device_free_bytes", "Bytes of the GPU's memory that nobody holds", |health| device(health).free_bytes),
    ("device_total_bytes", "Bytes of the GPU's memory; 0 without one", |health| device(health).total_bytes),
];

fn device(health: &Health) -> DeviceMemory {
    health.device.unwrap_or_default()
}

impl Collector for EngineHealth {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(health) = self.last() else { return Ok(()) };
        for (name, help, shown) in METRICS {
            let metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            ConstGauge::new(shown(&health)).encode(metric)?;
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
    fn what_an_engine_holds_is_shown_for_as_long_as_there_is_one() {
        let metrics = Metrics::new();
        let shown = || {
            let text = metrics.encode(OpenMetrics);
            let is_its =
                |line: &&str| line.starts_with("penstock_engine_") || line.starts_with("penstock_device_");
            let names =
                text.lines().filter(is_its).filter(|line| !line.starts_with("penstock_engine_starts"));
            names.map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(shown(), ["penstock_engine_up 0"], "none has come yet");
        let device = Some(DeviceMemory { held_bytes: 1, free_bytes: 2, total_bytes: 3 });
        let health = Health { resident_bytes: 7, under_way: 5, running: 2, device, ..Health::default() };
        metrics.engine.hear(health);
        metrics.engine_up.set(1);
        let there = shown();
        for line in [
            "penstock_engine_up 1",
            "penstock_engine_resident_bytes 7",
            "penstock_engine_running 2",
            "penstock_engine_waiting 3",
            "penstock_device_held_bytes 1",
        ] {
            assert!(there.iter().any(|found| found == line), "{line} is not in {there:?}");
        }
        assert_eq!(there.len(), 1 + METRICS.len(), "{there:?}");
    }
}
