//! Traces: which requests are kept, and the spans made of them. Spans are built once, at the end, from the
//! timestamps of a [`Trace`] and the engine's report; a request that is not kept costs one coin.
//!
//! ```text
//! client's span ─▶ POST /v2/models/{model}/infer   (server)
//!                    ├─ engine queue               links to the batch that it waited for
//!                    └─ batch                      once per batch, under its first traced member; links to all of them
//! canary verdict                                    on its own, as long as the step has lasted
//! ```
//!
//! The exporter's trouble never reaches a request: a full queue drops spans, an absent collector is retried
//! by the library in its own thread.

use http::HeaderMap;
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{
    Link, SpanContext, SpanId, SpanKind, Status, TraceContextExt, TraceFlags, TraceId, TraceState,
};
use opentelemetry::{Context, InstrumentationScope, KeyValue};
use opentelemetry_otlp::WithExportConfig;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, SpanData, SpanEvents, SpanLinks, SpanProcessor,
};
use opentelemetry_semantic_conventions::attribute as semconv;
use rand::Rng;
use std::time::{Duration, SystemTime};
use wire::{Timing, TraceContext};

/// Where traces go and how many.
#[derive(Clone, Debug, PartialEq)]
pub struct TraceConfig {
    /// OTLP/gRPC collector, such as `http://127.0.0.1:4317`.
    pub endpoint: String,
    /// Share of requests without a `traceparent` that are kept, 0 to 1.
    pub sample: f64,
}

/// Keeps and exports. One per process.
#[derive(Debug)]
pub struct Tracer {
    sample: f64,
    propagator: TraceContextPropagator,
    scope: InstrumentationScope,
    processor: BatchSpanProcessor,
    /// The exporter's connection lives on it.
    _runtime: tokio::runtime::Runtime,
}

/// A request that is kept.
#[derive(Clone, Debug)]
pub struct Trace {
    context: SpanContext,
    parent: SpanContext,
    started: SystemTime,
}

/// What a finished request says of itself.
#[derive(Debug)]
pub struct Facts<'a> {
    /// Route with placeholders, not the path: a span name must not carry identifiers.
    pub route: &'static str,
    /// HTTP method.
    pub method: &'a str,
    /// HTTP status.
    pub status: u16,
    /// Which model was asked for.
    pub model: Option<&'a str>,
    /// Which version answered or failed.
    pub version: Option<u64>,
    /// Why that version.
    pub pick: Option<&'static str>,
    /// Its label in the policy.
    pub label: Option<&'a str>,
    /// Policy generation.
    pub generation: u64,
    /// Reason of a refusal.
    pub refusal: Option<&'static str>,
    /// The engine's report.
    pub timing: Option<&'a Timing>,
}

const KNOWN_METHODS: [&str; 8] = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"];

impl Trace {
    /// The same as other servers are told it (W3C Trace Context).
    pub(crate) fn to_header(&self) -> String {
        format!("00-{}-{}-01", self.context.trace_id(), self.context.span_id())
    }

    /// The identity that travels to the engine.
    pub fn to_wire(&self) -> TraceContext {
        TraceContext {
            trace_id: bytes::Bytes::copy_from_slice(&self.context.trace_id().to_bytes()),
            span_id: bytes::Bytes::copy_from_slice(&self.context.span_id().to_bytes()),
        }
    }
}

impl Tracer {
    /// Starts exporting in the background. A collector that is not there is no error.
    pub fn new(config: &TraceConfig) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .thread_name("otlp")
            .build()?;
        let exporter = {
            let _entered = runtime.enter();
            opentelemetry_otlp::SpanExporter::builder()
                .with_tonic()
                .with_endpoint(&config.endpoint)
                .with_timeout(Duration::from_secs(5))
                .build()?
        };
        let batches = BatchConfigBuilder::default()
            .with_max_queue_size(16 << 10)
            .with_scheduled_delay(Duration::from_secs(1))
            .build();
        let mut processor = BatchSpanProcessor::builder(exporter).with_batch_config(batches).build();
        processor.set_resource(&Resource::builder().with_service_name("penstock").build());
        Ok(Self {
            sample: config.sample,
            propagator: TraceContextPropagator::new(),
            scope: InstrumentationScope::builder("penstock").with_version(env!("CARGO_PKG_VERSION")).build(),
            processor,
            _runtime: runtime,
        })
    }

    /// Whether this request is kept: as its caller decided, else by `coin` in `0..1`. A malformed
    /// `traceparent` counts as none, as the specification asks.
    pub fn begin(&self, headers: &HeaderMap, coin: f64) -> Option<Trace> {
        let parent = if headers.contains_key("traceparent") {
            let context = self.propagator.extract_with_context(&Context::new(), &Headers(headers));
            context.span().span_context().clone()
        } else {
            SpanContext::NONE
        };
        let kept = if parent.is_valid() { parent.is_sampled() } else { coin < self.sample };
        kept.then(|| {
            let mut dice = rand::rng();
            let trace_id =
                if parent.is_valid() { parent.trace_id() } else { TraceId::from_bytes(dice.random()) };
            let context = SpanContext::new(
                trace_id,
                SpanId::from_bytes(dice.random()),
                TraceFlags::SAMPLED,
                false,
                parent.trace_state().clone(),
            );
            Trace { context, parent, started: SystemTime::now() }
        })
    }

    /// Hands over the spans of a finished request.
    pub fn finish(&self, trace: &Trace, facts: &Facts<'_>) {
        // What a client makes up must not become a name (semantic conventions, HTTP spans).
        let method = KNOWN_METHODS.into_iter().find(|known| *known == facts.method).unwrap_or("_OTHER");
        let mut attributes = vec![
            KeyValue::new(semconv::HTTP_REQUEST_METHOD, method),
            KeyValue::new(semconv::HTTP_RESPONSE_STATUS_CODE, i64::from(facts.status)),
            KeyValue::new("penstock.generation", facts.generation as i64),
        ];
        attributes.extend((!facts.route.is_empty()).then(|| KeyValue::new(semconv::HTTP_ROUTE, facts.route)));
        attributes.extend(facts.model.map(|model| KeyValue::new("penstock.model", model.to_owned())));
        attributes.extend(facts.version.map(|version| KeyValue::new("penstock.version", version as i64)));
        attributes.extend(facts.pick.map(|pick| KeyValue::new("penstock.pick", pick)));
        attributes.extend(facts.label.map(|label| KeyValue::new("penstock.label", label.to_owned())));
        attributes.extend(facts.refusal.map(|reason| KeyValue::new(semconv::ERROR_TYPE, reason)));
        // A client's mistake is no error of the server (semantic conventions, HTTP server spans).
        let status = if facts.status >= 500 {
            Status::error(facts.refusal.unwrap_or_default())
        } else {
            Status::Unset
        };
        self.export(SpanParts {
            context: trace.context.clone(),
            parent: trace.parent.span_id(),
            kind: SpanKind::Server,
            name: format!("{method} {}", facts.route).trim_end().to_owned().into(),
            from: trace.started,
            to: SystemTime::now(),
            attributes,
            links: Vec::new(),
            status,
        });
        if let Some(timing) = facts.timing {
            self.finish_engine(trace, facts.model.unwrap_or_default(), timing);
        }
    }

    /// Hands over a verdict about a canary, with its numbers.
    pub fn verdict(&self, model: &str, verdict: &policies::Record) {
        let mut dice = rand::rng();
        let (trace_id, span_id) = (TraceId::from_bytes(dice.random()), SpanId::from_bytes(dice.random()));
        let to = SystemTime::now();
        let mut attributes = vec![
            KeyValue::new("penstock.model", model.to_owned()),
            KeyValue::new("penstock.canary.verdict", verdict.verdict.as_str()),
            KeyValue::new("penstock.canary.why", verdict.why.clone()),
            KeyValue::new("penstock.canary.step", verdict.step as i64),
            KeyValue::new("penstock.canary.percent", verdict.percent),
        ];
        for gate in &verdict.gates {
            let name = |what: &str| format!("penstock.canary.{}.{what}", gate.gate);
            attributes.extend([
                KeyValue::new(name("requests"), gate.requests as i64),
                KeyValue::new(name("events"), gate.events as i64),
                KeyValue::new(name("worse"), gate.worse),
                KeyValue::new(name("rare"), gate.rare),
            ]);
        }
        self.export(SpanParts {
            context: SpanContext::new(trace_id, span_id, TraceFlags::SAMPLED, false, TraceState::NONE),
            parent: SpanId::INVALID,
            kind: SpanKind::Internal,
            name: "canary verdict".into(),
            from: to.checked_sub(verdict.after).unwrap_or(to),
            to,
            attributes,
            links: Vec::new(),
            status: Status::Unset,
        });
    }

    fn finish_engine(&self, trace: &Trace, model: &str, timing: &Timing) {
        let Some(batch) = &timing.batch else { return };
        let Some(batch_context) = batch.span.as_ref().and_then(context_of) else { return };
        let received = SystemTime::UNIX_EPOCH + Duration::from_nanos(timing.received_unix_ns);
        let dequeued = received + Duration::from_micros(timing.queue_us);
        let sibling = |span_id| {
            SpanContext::new(trace.context.trace_id(), span_id, TraceFlags::SAMPLED, false, TraceState::NONE)
        };
        self.export(SpanParts {
            context: sibling(SpanId::from_bytes(rand::rng().random())),
            parent: trace.context.span_id(),
            kind: SpanKind::Internal,
            name: "engine queue".into(),
            from: received,
            to: dequeued,
            attributes: vec![KeyValue::new("penstock.model", model.to_owned())],
            links: vec![batch_context.clone()],
            status: Status::Unset,
        });
        if batch.members.is_empty() {
            return; // another member of the batch exports its span
        }
        self.export(SpanParts {
            context: batch_context,
            parent: trace.context.span_id(),
            kind: SpanKind::Internal,
            name: "batch".into(),
            from: dequeued,
            to: dequeued + Duration::from_micros(timing.run_us),
            attributes: vec![
                KeyValue::new("penstock.model", model.to_owned()),
                KeyValue::new("penstock.batch.rows", i64::from(timing.batch_rows)),
                KeyValue::new("penstock.batch.requests", i64::from(timing.batch_requests)),
            ],
            links: batch.members.iter().filter_map(context_of).collect(),
            status: Status::Unset,
        });
    }

    fn export(&self, parts: SpanParts) {
        let mut links = SpanLinks::default();
        links.links = parts.links.into_iter().map(|context| Link::new(context, Vec::new(), 0)).collect();
        self.processor.on_end(SpanData {
            parent_span_is_remote: parts.kind == SpanKind::Server,
            span_context: parts.context,
            parent_span_id: parts.parent,
            span_kind: parts.kind,
            name: parts.name,
            start_time: parts.from,
            end_time: parts.to,
            attributes: parts.attributes,
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links,
            status: parts.status,
            instrumentation_scope: self.scope.clone(),
        });
    }

    /// Sends what waits, for at most `time_max`. Blocks; for the end of the process.
    pub fn shutdown(&self, time_max: Duration) {
        // A collector that is away at the end costs its spans and nothing else.
        let _ = self.processor.shutdown_with_timeout(time_max);
    }
}

struct SpanParts {
    context: SpanContext,
    parent: SpanId,
    kind: SpanKind,
    name: std::borrow::Cow<'static, str>,
    from: SystemTime,
    to: SystemTime,
    attributes: Vec<KeyValue>,
    links: Vec<SpanContext>,
    status: Status,
}

fn context_of(wire: &TraceContext) -> Option<SpanContext> {
    let trace_id = TraceId::from_bytes(wire.trace_id.as_ref().try_into().ok()?);
    let span_id = SpanId::from_bytes(wire.span_id.as_ref().try_into().ok()?);
    Some(SpanContext::new(trace_id, span_id, TraceFlags::SAMPLED, false, TraceState::NONE))
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}
