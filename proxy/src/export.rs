//! The way out for spans: OTLP over gRPC or HTTP, in batches, from a thread of its own. Decides what is dropped when the
//! collector is slow or away: spans, and nothing else, and each one is counted.

use futures_util::TryFutureExt;
use opentelemetry::KeyValue;
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{BatchConfigBuilder, BatchSpanProcessor, SpanData, SpanProcessor};
use opentelemetry_semantic_conventions::attribute as semconv;
use prometheus_client::metrics::counter::Counter;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

/// Where spans go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Collector {
    /// Its address, such as `http://127.0.0.1:4317`.
    pub endpoint: String,
    /// What it speaks.
    pub protocol: Otlp,
}

/// The forms of OTLP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Otlp {
    /// gRPC, usually on port 4317.
    #[default]
    Grpc,
    /// Protobuf over HTTP, usually on port 4318.
    Http,
}

/// What became of spans that were handed over.
#[derive(Clone, Debug, Default)]
pub struct SpanCounts {
    /// The collector has them.
    pub exported: Counter,
    /// They were lost: the collector did not take them, or too many waited for it.
    pub lost: Counter,
    /// Requests worth a trace that were not kept, since there were too many of them.
    pub passed_over: Counter,
}

/// Spans that wait for the collector at most.
const WAITING_MAX: usize = 16 << 10;

/// A collector that has not answered after this will not.
const EXPORT_MAX: Duration = Duration::from_secs(5);

/// The way to one collector. Ends when dropped; see [`Export::shutdown`].
#[derive(Debug)]
pub struct Export {
    processor: BatchSpanProcessor,
    waiting: Arc<AtomicUsize>,
    counts: SpanCounts,
    /// The exporter's connection lives on it.
    _runtime: tokio::runtime::Runtime,
}

impl Export {
    /// Starts in the background. A collector that is not there is no error.
    pub fn new(collector: &Collector, counts: SpanCounts) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .thread_name("otlp")
            .build()?;
        let inner = {
            let _entered = runtime.enter();
            match collector.protocol {
                Otlp::Grpc => SpanExporter::builder()
                    .with_tonic()
                    .with_endpoint(&collector.endpoint)
                    .with_timeout(EXPORT_MAX)
                    .build()?,
                Otlp::Http => SpanExporter::builder()
                    .with_http()
                    .with_protocol(Protocol::HttpBinary)
                    .with_endpoint(traces_of(&collector.endpoint))
                    .with_timeout(EXPORT_MAX)
                    .build()?,
            }
        };
        let waiting = Arc::new(AtomicUsize::new(0));
        let exporter = Counted {
            inner: Arc::new(inner),
            runtime: runtime.handle().clone(),
            waiting: waiting.clone(),
            counts: counts.clone(),
            endpoint: collector.endpoint.clone(),
            is_away: AtomicBool::new(false),
        };
        let batches = BatchConfigBuilder::default()
            .with_max_queue_size(WAITING_MAX)
            .with_scheduled_delay(Duration::from_secs(1))
            .build();
        let mut processor = BatchSpanProcessor::builder(exporter).with_batch_config(batches).build();
        let version = KeyValue::new(semconv::SERVICE_VERSION, env!("CARGO_PKG_VERSION"));
        let resource = Resource::builder().with_attribute(version);
        let is_named = std::env::var_os("OTEL_SERVICE_NAME").is_some();
        let resource = if is_named { resource } else { resource.with_service_name("penstock") };
        processor.set_resource(&resource.build());
        Ok(Self { processor, waiting, counts, _runtime: runtime })
    }

    /// Takes a finished span; never waits.
    pub fn take(&self, span: SpanData) {
        // The processor has room for as many, so that none is lost there, where nobody counts.
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= WAITING_MAX {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            self.counts.lost.inc();
            return;
        }
        self.processor.on_end(span);
    }

    /// Sends what waits, for at most `time_max`. Blocks; for the end of the process.
    pub fn shutdown(&self, time_max: Duration) {
        // A collector that is away at the end costs its spans and nothing else.
        let _ = self.processor.shutdown_with_timeout(time_max);
    }
}

/// OTLP/HTTP has a path of its own for traces; who gives another one means it.
fn traces_of(endpoint: &str) -> String {
    let has_path =
        endpoint.split_once("://").is_some_and(|(_, rest)| rest.trim_end_matches('/').contains('/'));
    if has_path { endpoint.to_owned() } else { format!("{}/v1/traces", endpoint.trim_end_matches('/')) }
}

/// Counts what it exports.
#[derive(Debug)]
struct Counted {
    inner: Arc<SpanExporter>,
    runtime: tokio::runtime::Handle,
    waiting: Arc<AtomicUsize>,
    counts: SpanCounts,
    endpoint: String,
    /// It has not taken what it was last sent.
    is_away: AtomicBool,
}

impl Counted {
    /// Once each time that it goes or comes back.
    fn tell(&self, ended: &OTelSdkResult) {
        let was_away = self.is_away.swap(ended.is_err(), Ordering::Relaxed);
        match ended {
            Err(error) if !was_away => {
                tracing::warn!("the collector at {} takes no spans, they are lost: {error}", self.endpoint);
            }
            Ok(()) if was_away => tracing::info!("the collector at {} takes spans again", self.endpoint),
            Ok(()) | Err(_) => {}
        }
    }
}

impl opentelemetry_sdk::trace::SpanExporter for Counted {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let (inner, count) = (self.inner.clone(), batch.len());
        // The processor's thread has no runtime, which timeouts and sockets need.
        let exporting = self.runtime.spawn(async move { inner.export(batch).await });
        let ended = exporting.map_err(|error| OTelSdkError::InternalFailure(error.to_string())).await;
        let ended = ended.flatten();
        self.waiting.fetch_sub(count, Ordering::Relaxed);
        self.tell(&ended);
        let counter = if ended.is_ok() { &self.counts.exported } else { &self.counts.lost };
        counter.inc_by(count as u64);
        ended
    }

    fn shutdown_with_timeout(&self, time_max: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(time_max)
    }

    fn set_resource(&mut self, resource: &Resource) {
        Arc::get_mut(&mut self.inner).expect("nothing is exported yet").set_resource(resource);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_without_a_path_gets_that_of_traces() {
        assert_eq!(traces_of("http://127.0.0.1:4318"), "http://127.0.0.1:4318/v1/traces");
        assert_eq!(traces_of("http://127.0.0.1:4318/"), "http://127.0.0.1:4318/v1/traces");
        assert_eq!(traces_of("http://collector/custom/traces"), "http://collector/custom/traces");
    }
}
