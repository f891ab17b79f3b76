//! Traces: which requests are kept, and under which identity. A request that is not kept costs one coin; what spans are made
//! of one that is stands in [`crate::spans`].
//!
//! Whether a request is sampled is its caller's decision, or chance's. One that fails, is refused or takes long is kept in any
//! case, as many of them as [`NOTABLE_PER_SECOND`], apart from what is its caller's mistake, of which as many are: that is only
//! known at its end, when the engine has not been told. So the engine names the batch to everybody; where nobody in it was
//! traced from the start, its span is told in each trace that is kept.

use crate::export::{Collector, Export, SpanCounts};
use crate::spans::{self, Facts, SpanParts};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId};
use opentelemetry::{Context, InstrumentationScope};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use rand::Rng;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};
use wire::TraceContext;

/// Where traces go and how many.
#[derive(Clone, Debug, PartialEq)]
pub struct TraceConfig {
    /// Who takes them.
    pub collector: Collector,
    /// Share of requests without a `traceparent` that are kept, 0 to 1.
    pub sample: f64,
    /// A request that takes longer is kept.
    pub slow: Duration,
}

/// Requests that are kept for what has become of them, per second: a flood of refusals is not one of spans.
const NOTABLE_PER_SECOND: NonZeroU32 = NonZeroU32::new(100).expect("it is not zero");

/// Whoever has none was sent by nobody who traces (W3C Trace Context).
static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
static TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Keeps and exports. One per process.
#[derive(Debug)]
pub struct Tracer {
    configured: f64,
    /// Bits of the share that is in force.
    sample: AtomicU64,
    slow: Duration,
    notable: DefaultDirectRateLimiter,
    /// For those that are their callers' mistakes: a client that makes many must not hide what is ours.
    mistaken: DefaultDirectRateLimiter,
    counts: SpanCounts,
    propagator: TraceContextPropagator,
    scope: InstrumentationScope,
    export: Export,
}

/// Whose doing it is that a request has no good answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// What was asked cannot be answered, or may not.
    Callers,
    /// Anything else.
    Ours,
}

/// A request that is kept.
#[derive(Clone, Debug)]
pub struct Trace {
    pub(crate) context: SpanContext,
    pub(crate) parent: SpanContext,
    pub(crate) started: SystemTime,
}

/// What is known of a request's trace at its start.
#[derive(Clone, Debug, Default)]
pub enum Sampling {
    /// It is kept.
    Kept(Trace),
    /// It is not, by the decision of whoever has called it.
    Declined(SpanContext),
    /// It is not.
    #[default]
    Left,
}

impl Sampling {
    /// What is kept from the start.
    pub fn kept(&self) -> Option<&Trace> {
        match self {
            Self::Kept(trace) => Some(trace),
            Self::Declined(_) | Self::Left => None,
        }
    }
}

impl Trace {
    fn under(parent: SpanContext, started: SystemTime) -> Self {
        let mut dice = rand::rng();
        let trace_id = if parent.is_valid() { parent.trace_id() } else { TraceId::from_bytes(dice.random()) };
        let span_id = SpanId::from_bytes(dice.random());
        let state = parent.trace_state().clone();
        let context = SpanContext::new(trace_id, span_id, TraceFlags::SAMPLED, false, state);
        Self { context, parent, started }
    }

    /// In 32 hexadecimal digits.
    pub fn id(&self) -> String {
        self.context.trace_id().to_string()
    }

    /// The same as another server is told it that is asked in this span, and what other vendors have said: as much of it as the
    /// specification has room for, and maybe nothing (W3C Trace Context).
    pub(crate) fn to_headers(&self, span: SpanId) -> [(HeaderName, String); 2] {
        let parent = format!("00-{}-{span}-01", self.context.trace_id());
        [(TRACEPARENT.clone(), parent), (TRACESTATE.clone(), self.context.trace_state().header())]
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
    pub fn new(config: &TraceConfig, counts: SpanCounts) -> anyhow::Result<Self> {
        Ok(Self {
            configured: config.sample,
            sample: AtomicU64::new(config.sample.to_bits()),
            slow: config.slow,
            notable: RateLimiter::direct(Quota::per_second(NOTABLE_PER_SECOND)),
            mistaken: RateLimiter::direct(Quota::per_second(NOTABLE_PER_SECOND)),
            counts: counts.clone(),
            propagator: TraceContextPropagator::new(),
            scope: InstrumentationScope::builder("penstock").with_version(env!("CARGO_PKG_VERSION")).build(),
            export: Export::new(&config.collector, counts)?,
        })
    }

    /// Share of the requests without a `traceparent` that are kept, 0 to 1.
    pub fn sample(&self) -> f64 {
        f64::from_bits(self.sample.load(Ordering::Relaxed))
    }

    /// Keeps so many of them from now on; `None` means as many as are configured.
    pub fn set_sample(&self, sample: Option<f64>) {
        self.sample.store(sample.unwrap_or(self.configured).to_bits(), Ordering::Relaxed);
    }

    /// Whether this request is kept, whose head was complete when it `started`: as its caller decided, else by `coin` in `0..1`. A
    /// malformed `traceparent`, or several, count as none, as the specification asks.
    pub fn begin(&self, headers: &HeaderMap, coin: f64, started: Instant) -> Sampling {
        let parent = if has_parent(headers) {
            let states = states(headers);
            let headers = Headers { all: headers, states: states.as_deref() };
            let context = self.propagator.extract_with_context(&Context::new(), &headers);
            context.span().span_context().clone()
        } else {
            SpanContext::NONE
        };
        match (parent.is_valid(), parent.is_sampled()) {
            (true, false) => Sampling::Declined(parent),
            (true, true) => Sampling::Kept(Trace::under(parent, ago(started.elapsed()))),
            (false, _) if coin < self.sample() => {
                Sampling::Kept(Trace::under(parent, ago(started.elapsed())))
            }
            (false, _) => Sampling::Left,
        }
    }

    /// The trace of a request that has ended and is kept: from its start, or for what has become of it. It took so long, and may
    /// have failed.
    pub fn keep(&self, sampling: &Sampling, failed: Option<Fault>, took: Duration) -> Option<Trace> {
        let is_notable = || {
            let room = match failed {
                Some(Fault::Callers) => &self.mistaken,
                Some(Fault::Ours) => &self.notable,
                None if took > self.slow => &self.notable,
                None => return false,
            };
            let has_room = room.check().is_ok();
            if !has_room {
                self.counts.passed_over.inc();
            }
            has_room
        };
        let parent = match sampling {
            Sampling::Kept(trace) => return Some(trace.clone()),
            _ if !is_notable() => return None,
            Sampling::Declined(parent) => parent.clone(),
            Sampling::Left => SpanContext::NONE,
        };
        Some(Trace::under(parent, ago(took)))
    }

    /// Hands over the spans of a finished request.
    pub fn finish(&self, trace: &Trace, facts: &Facts<'_>, now: Instant) {
        for span in spans::of_request(trace, facts, now) {
            self.take(span);
        }
    }

    /// Hands over a verdict about a canary, with its numbers.
    pub fn verdict(&self, model: &str, verdict: &policies::Record) {
        let trace = Trace::under(SpanContext::NONE, SystemTime::now());
        self.take(spans::of_verdict(trace.context, model, verdict));
    }

    fn take(&self, span: SpanParts) {
        self.export.take(span.into_data(self.scope.clone()));
    }

    /// Sends what waits, for at most `time_max`. Blocks; for the end of the process.
    pub fn shutdown(&self, time_max: Duration) {
        self.export.shutdown(time_max);
    }
}

/// So long ago, by the clock that the engine has as well.
fn ago(time: Duration) -> SystemTime {
    SystemTime::now().checked_sub(time).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// Of two parents nobody knows which one it is.
fn has_parent(headers: &HeaderMap) -> bool {
    let mut all = headers.get_all(&TRACEPARENT).iter();
    match (all.next(), all.next()) {
        (Some(only), None) => is_well_formed(only.as_bytes()),
        (None, _) | (Some(_), Some(_)) => false,
    }
}

/// As the specification has it; the propagator takes shorter ids and signs as well, and makes another trace of them.
fn is_well_formed(traceparent: &[u8]) -> bool {
    let mut fields = traceparent.split(|byte| *byte == b'-');
    let mut is_hex = |length| {
        let is_digit = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        fields.next().is_some_and(|field| field.len() == length && field.iter().all(is_digit))
    };
    is_hex(2) && is_hex(32) && is_hex(16) && is_hex(2)
}

/// What other vendors have said, in one header or in several; nothing unless all of it is as the specification has it (W3C Trace
/// Context, section 3.3.1).
fn states(headers: &HeaderMap) -> Option<String> {
    let all: Result<Vec<_>, _> = headers.get_all(&TRACESTATE).iter().map(HeaderValue::to_str).collect();
    let all = all.ok()?.join(",");
    let mut members =
        all.split(',').map(|member| member.trim_matches([' ', '\t'])).filter(|member| !member.is_empty());
    members.all(is_member).then_some(all)
}

/// Whether this is `key=value` of one vendor.
fn is_member(member: &str) -> bool {
    const BYTES_MAX: usize = 256;
    let Some((key, value)) = member.split_once('=') else { return false };
    let begins = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let is_key = key.len() <= BYTES_MAX
        && key.bytes().next().is_some_and(begins)
        && key.bytes().all(|byte| begins(byte) || b"_-*/@".contains(&byte));
    // Spaces at its end are gone, and commas divide.
    is_key
        && (1..=BYTES_MAX).contains(&value.len())
        && value.bytes().all(|byte| matches!(byte, b' '..=b'~') && byte != b'=')
}

struct Headers<'a> {
    all: &'a HeaderMap,
    /// In place of those that came.
    states: Option<&'a str>,
}

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        if TRACESTATE == key { self.states } else { self.all.get(key)?.to_str().ok() }
    }

    fn keys(&self) -> Vec<&str> {
        self.all.keys().map(http::HeaderName::as_str).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_traceparents_none_is_the_parent() {
        let parent = HeaderValue::from_static("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
        let mut headers = HeaderMap::new();
        assert!(!has_parent(&headers));
        headers.append(&TRACEPARENT, parent.clone());
        assert!(has_parent(&headers));
        headers.append(&TRACEPARENT, parent);
        assert!(!has_parent(&headers));
    }

    #[test]
    fn what_other_vendors_say_is_passed_on_whole_or_not_at_all() {
        let of = |headers: &[&str]| {
            let mut all = HeaderMap::new();
            for header in headers {
                all.append(&TRACESTATE, HeaderValue::from_str(header).unwrap());
            }
            states(&all)
        };
        let passed = |headers: &[&str]| of(headers).unwrap_or_else(|| panic!("{headers:?}"));
        assert_eq!(passed(&["rojo=00f0, congo=t61 x,"]), "rojo=00f0, congo=t61 x,");
        assert_eq!(passed(&["1-tenant*/_@sys=1", "b=2"]), "1-tenant*/_@sys=1,b=2");
        let long = format!("{}={}", "k".repeat(256), "v".repeat(256));
        assert_eq!(passed(&[&long]), long);
        let (key, value) = (format!("{}=v", "k".repeat(257)), format!("k={}", "v".repeat(257)));
        for text in
            [",,=,===", "a=1,=", "a=1,b", "a=", "A=1", "_a=1", "a b=1", "a=1=2", "a=\t1", &key, &value]
        {
            assert_eq!(of(&[text]), None, "{text}");
        }
        assert_eq!(of(&["a=1", "=="]), None);
    }

    #[test]
    fn a_malformed_traceparent_is_none() {
        let of = |text: &str| is_well_formed(text.as_bytes());
        assert!(of("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"));
        assert!(of("cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-what-the-future-brings"));
        for text in [
            "",
            "00",
            "00-+af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-1",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
        ] {
            assert!(!of(text), "{text}");
        }
    }
}
