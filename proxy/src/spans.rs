//! What spans a kept request is made of. They are built once, at its end, from the moments that its record has noted and
//! the engine's report; decides nothing about which requests are kept.
//!
//! ```text
//! client's span ─▶ POST /v2/models/{model}/infer   (server)
//!                    ├─ admit                      a version is picked, and limits are asked that need no body
//!                    ├─ read                       the body as it comes
//!                    ├─ decode                     limits of what it holds, the version's breaker; the pick, where that asks the body
//!                    ├─ link                       to the engine, with the wait for the thread, which others have as well
//!                    ├─ engine pre-processing      where the model declares it
//!                    ├─ engine queue               links to the batch that it waited for
//!                    ├─ engine run                 of those that do not tell of the batch; links to it
//!                    ├─ batch                      once per batch, under its first traced member; links to all of them
//!                    │    ├─ gather                the inputs of all rows are laid side by side
//!                    │    ├─ execute               the model
//!                    │    └─ split                 its outputs are cut into answers
//!                    ├─ link                       back; both ways, and the wait there, where the engine does not tell of it
//!                    ├─ POST                       another server's answer (client); that server's own span is under it
//!                    ├─ link, decode               of a request that is asked once more: before the attempt that counts
//!                    └─ reply                      written for the client, and taken by it
//! canary verdict                                    on its own, as long as the step has lasted
//! ```

use crate::infer::PINNED;
use crate::record::{Elsewhere, Retry, Stages};
use crate::refusal::Refusal;
use crate::trace::Trace;
use opentelemetry::trace::{Link, SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};
use opentelemetry_semantic_conventions::attribute as semconv;
use rand::Rng;
use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use wire::{Timing, TraceContext};

/// What a finished request says of itself.
#[derive(Debug)]
pub struct Facts<'a> {
    /// When its head was complete.
    pub started: Instant,
    /// When it got further.
    pub stages: Stages,
    /// Its id, as the client was told it.
    pub request_id: &'a str,
    /// Route with placeholders, not the path: a span name must not carry identifiers.
    pub route: &'static str,
    /// HTTP method,
    pub method: &'a str,
    /// and path, without what a query may hold.
    pub path: &'a str,
    /// HTTP status, or what it would be.
    pub status: u16,
    /// gRPC status, where that was spoken; the route is the method's full name then.
    pub grpc_status: Option<&'static str>,
    /// Which model was asked for.
    pub model: Option<&'a str>,
    /// Which version answered or failed.
    pub version: Option<u64>,
    /// Why that version.
    pub pick: Option<&'static str>,
    /// Its label in the policy.
    pub label: Option<&'a str>,
    /// Policy generation, 0 where none was asked.
    pub generation: u64,
    /// How it ended with the version, if it came so far.
    pub outcome: Option<policies::Outcome>,
    /// Why it was asked twice, if it was.
    pub retry: Option<&'static str>,
    /// Reason of a refusal,
    pub refusal: Option<&'static str>,
    /// and what its caller was told.
    pub refused: Option<&'a Refusal>,
    /// The engine's report.
    pub timing: Option<&'a Timing>,
    /// Of another server that was asked.
    pub(crate) elsewhere: Option<&'a Elsewhere>,
}

/// A client's path or method is told up to here.
const TOLD_BYTES_MAX: usize = 256;

const KNOWN_METHODS: [&str; 8] = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"];

/// One span, before it is a library's.
#[derive(Debug)]
pub(crate) struct SpanParts {
    context: SpanContext,
    parent: SpanId,
    kind: SpanKind,
    name: Cow<'static, str>,
    from: SystemTime,
    to: SystemTime,
    attributes: Vec<KeyValue>,
    links: Vec<Linked>,
    status: Status,
}

/// Another span, and what is to be known of it from here.
type Linked = (SpanContext, Vec<KeyValue>);

/// The spans of a request that has ended `now`.
pub(crate) fn of_request(trace: &Trace, facts: &Facts<'_>, now: Instant) -> Vec<SpanParts> {
    let moment = |instant: Instant| trace.started + instant.saturating_duration_since(facts.started);
    let mut spans = vec![server(trace, facts, moment(now))];
    let Stages { admitted, read, sent, answered, before } = facts.stages;
    // Whoever was asked first, and whoever has answered last.
    let elsewhere = facts.elsewhere.and_then(|elsewhere| Some(elsewhere.ended?.0));
    let first = facts.elsewhere.map(|elsewhere| elsewhere.before.as_deref().unwrap_or(elsewhere).sent);
    let asked = sent.into_iter().chain(first).min();
    let told = answered.into_iter().chain(elsewhere).max();
    let before = before.map(|(sent, answered)| (Some(sent), Some(answered)));
    let (first_asked, last_told) = before.unwrap_or((asked, told));
    if let Some(sent) = sent {
        let way = (moment(sent), answered.map(moment));
        match facts.timing {
            Some(timing) => spans.extend(in_engine(trace, facts, timing, way)),
            // It has said nothing of what it has done, or has not answered at all.
            None => spans.push(link(trace, facts, way.0, moment(answered.unwrap_or(now)))),
        }
    }
    if let Some(elsewhere) = facts.elsewhere {
        spans.extend(clients(trace, facts, elsewhere, &moment, now));
    }
    let stages = [
        ("admit", Some(facts.started), admitted),
        ("read", admitted, read),
        ("decode", read, first_asked),
        ("link", before.and_then(|(sent, _)| sent), before.and_then(|(_, answered)| answered)),
        ("decode", before.and_then(|(_, answered)| answered), asked),
        ("reply", told.max(last_told), Some(now)),
    ];
    for (name, from, to) in stages {
        if let (Some(from), Some(to)) = (from, to) {
            spans.push(child(trace, name, moment(from), moment(to)));
        }
    }
    spans
}

/// The way to the engine, or back, of an attempt.
fn link(trace: &Trace, facts: &Facts<'_>, from: SystemTime, to: SystemTime) -> SpanParts {
    let before = facts.stages.before.is_some() || facts.elsewhere.is_some();
    let attributes = resends(before.into()).into_iter().collect();
    SpanParts { attributes, ..child(trace, "link", from, to) }
}

/// Which attempt it is, unless it is the first (semantic conventions, HTTP client spans).
fn resends(before: i64) -> Option<KeyValue> {
    (before > 0).then(|| KeyValue::new(semconv::HTTP_REQUEST_RESEND_COUNT, before))
}

/// How another server was asked: over a connection that was kept, and once more if that was closed; and one before it that was not
/// there.
fn clients(
    trace: &Trace,
    facts: &Facts<'_>,
    elsewhere: &Elsewhere,
    moment: &dyn Fn(Instant) -> SystemTime,
    now: Instant,
) -> Vec<SpanParts> {
    let Elsewhere { span, sent, resent, ended, before, .. } = elsewhere;
    let (ended, how) = ended.unwrap_or((now, Err("abandoned")));
    let mut spans =
        before.as_deref().map(|before| clients(trace, facts, before, moment, now)).unwrap_or_default();
    let before = i64::from(facts.stages.before.is_some()) + spans.len() as i64;
    let closed = |resent: Instant| {
        let span = SpanId::from_bytes(rand::rng().random());
        let how = Err(Retry::CONNECTION_CLOSED);
        client(trace, elsewhere, (span, before), (moment(*sent), moment(resent)), how)
    };
    let last = (*span, before + i64::from(resent.is_some()));
    let times = (moment(resent.unwrap_or(*sent)), moment(ended));
    spans.extend(resent.map(closed));
    spans.push(client(trace, elsewhere, last, times, how));
    spans
}

/// Of one request to another server (semantic conventions, HTTP client spans).
fn client(
    trace: &Trace,
    Elsewhere { method, url, host, port, .. }: &Elsewhere,
    (span, before): (SpanId, i64),
    (sent, ended): (SystemTime, SystemTime),
    how: Result<http::StatusCode, &'static str>,
) -> SpanParts {
    let mut attributes = vec![
        KeyValue::new(semconv::HTTP_REQUEST_METHOD, known(method.as_str())),
        KeyValue::new(semconv::SERVER_ADDRESS, host.clone()),
        KeyValue::new(semconv::SERVER_PORT, i64::from(*port)),
        KeyValue::new(semconv::URL_FULL, url.clone()),
    ];
    attributes.extend(resends(before));
    let failure = match how {
        Ok(status) => {
            attributes.push(KeyValue::new(semconv::HTTP_RESPONSE_STATUS_CODE, i64::from(status.as_u16())));
            // To whoever has asked, each of these is an error.
            (status.is_client_error() || status.is_server_error()).then(|| status.as_str().to_owned())
        }
        Err(reason) => Some(reason.to_owned()),
    };
    let mut status = Status::Unset;
    if let Some(failure) = failure {
        attributes.push(KeyValue::new(semconv::ERROR_TYPE, failure));
        status = Status::error("");
    }
    SpanParts {
        context: sampled(trace.context.trace_id(), span),
        kind: SpanKind::Client,
        attributes,
        status,
        ..child(trace, known(method.as_str()), sent, ended)
    }
}

fn server(trace: &Trace, facts: &Facts<'_>, ended: SystemTime) -> SpanParts {
    let (name, mut attributes) = match facts.grpc_status {
        None => of_http(facts),
        Some(status) => of_grpc(facts.route, status),
    };
    if facts.generation > 0 {
        attributes.push(KeyValue::new("penstock.generation", facts.generation as i64));
    }
    attributes.push(KeyValue::new("penstock.request_id", facts.request_id.to_owned()));
    attributes.extend(facts.model.map(|model| KeyValue::new("penstock.model", model.to_owned())));
    if let (Some(model), Some(version)) = (facts.model, facts.version) {
        attributes.push(KeyValue::new("penstock.version", version as i64));
        // Which version somebody gets is a flag with variants (semantic conventions, feature flags; not yet stable there).
        attributes.push(KeyValue::new("feature_flag.key", model.to_owned()));
        attributes.push(KeyValue::new("feature_flag.provider.name", "penstock"));
        attributes.push(KeyValue::new("feature_flag.result.variant", version.to_string()));
        attributes.extend(facts.pick.map(|pick| KeyValue::new("feature_flag.result.reason", reason(pick))));
    }
    attributes.extend(facts.pick.map(|pick| KeyValue::new("penstock.pick", pick)));
    attributes.extend(facts.label.map(|label| KeyValue::new("penstock.label", label.to_owned())));
    attributes.extend(facts.retry.map(|reason| KeyValue::new("penstock.retry", reason)));
    attributes.extend(facts.refusal.map(|reason| KeyValue::new("penstock.refusal", reason)));
    attributes.extend(facts.refused.map(|refusal| KeyValue::new("error.message", refusal.to_string())));
    // A client's mistake is no error of the server (semantic conventions, HTTP server spans).
    let status = match facts.status {
        500.. => {
            let kind = facts.refusal.map_or_else(|| facts.status.to_string().into(), Cow::Borrowed);
            attributes.push(KeyValue::new(semconv::ERROR_TYPE, kind));
            Status::error(facts.refusal.unwrap_or_default())
        }
        _ => Status::Unset,
    };
    SpanParts {
        context: trace.context.clone(),
        parent: trace.parent.span_id(),
        kind: SpanKind::Server,
        name: name.into(),
        from: trace.started,
        to: ended,
        attributes,
        links: Vec::new(),
        status,
    }
}

/// What the semantic conventions call the reason of a pick.
fn reason(pick: &'static str) -> &'static str {
    match pick {
        "sticky" | "random" => "split",
        "rule" => "targeting_match",
        "without_key" | "highest" => "default",
        PINNED => "static",
        // Another one answers in its place.
        _ => "unknown",
    }
}

fn of_http(facts: &Facts<'_>) -> (String, Vec<KeyValue>) {
    let method = known(facts.method);
    let told = |text: &str| text[..text.floor_char_boundary(TOLD_BYTES_MAX)].to_owned();
    let mut attributes = vec![
        KeyValue::new(semconv::HTTP_REQUEST_METHOD, method),
        KeyValue::new(semconv::HTTP_RESPONSE_STATUS_CODE, i64::from(facts.status)),
        KeyValue::new(semconv::URL_PATH, told(facts.path)),
        KeyValue::new(semconv::URL_SCHEME, "http"),
    ];
    let original = (method == OTHER_METHOD).then(|| told(facts.method));
    attributes.extend(original.map(|method| KeyValue::new(semconv::HTTP_REQUEST_METHOD_ORIGINAL, method)));
    attributes.extend((!facts.route.is_empty()).then(|| KeyValue::new(semconv::HTTP_ROUTE, facts.route)));
    let name = if method == OTHER_METHOD { "HTTP" } else { method };
    (format!("{name} {}", facts.route).trim_end().to_owned(), attributes)
}

const OTHER_METHOD: &str = "_OTHER";

/// What a client makes up must not become a name (semantic conventions, HTTP spans).
fn known(method: &str) -> &'static str {
    KNOWN_METHODS.into_iter().find(|known| *known == method).unwrap_or(OTHER_METHOD)
}

fn of_grpc(method: &'static str, status: &'static str) -> (String, Vec<KeyValue>) {
    let attributes = vec![
        KeyValue::new("rpc.system.name", "grpc"),
        KeyValue::new("rpc.method", method),
        KeyValue::new("rpc.response.status_code", status),
    ];
    (method.to_owned(), attributes)
}

fn child(trace: &Trace, name: &'static str, from: SystemTime, to: SystemTime) -> SpanParts {
    under(&trace.context, name, from, to)
}

fn under(parent: &SpanContext, name: &'static str, from: SystemTime, to: SystemTime) -> SpanParts {
    SpanParts {
        context: sampled(parent.trace_id(), SpanId::from_bytes(rand::rng().random())),
        parent: parent.span_id(),
        kind: SpanKind::Internal,
        name: name.into(),
        from,
        to,
        attributes: Vec::new(),
        links: Vec::new(),
        status: Status::Unset,
    }
}

/// The way there and back, the wait in the queue, and the batch if it is this request's to tell: that of its first traced member; else, where none
/// was, anybody's who is kept for what has become of it, each in its own trace. An engine that was not told of the trace
/// says how long both took, not when: they are taken to have begun when the request was `sent`.
fn in_engine(
    trace: &Trace,
    facts: &Facts<'_>,
    timing: &Timing,
    (sent, answered): (SystemTime, Option<SystemTime>),
) -> Vec<SpanParts> {
    let model: Arc<str> = facts.model.unwrap_or_default().into();
    let model = || KeyValue::new("penstock.model", model.clone());
    let version = facts.version.and_then(|version| i64::try_from(version).ok());
    let received = match timing.received_unix_ns {
        0 => sent,
        ns => SystemTime::UNIX_EPOCH + Duration::from_nanos(ns),
    };
    let prepared = received + Duration::from_micros(timing.prepare_us);
    let dequeued = prepared + Duration::from_micros(timing.queue_us);
    let ran = dequeued + Duration::from_micros(timing.run_us);
    let position = position(timing.position);
    let told_in = trace_of(timing.batch_trace_high, timing.batch_trace_low);
    let batch = (timing.batch_id > 0).then(|| {
        let trace_id = told_in.unwrap_or(trace.context.trace_id());
        sampled(trace_id, SpanId::from_bytes(timing.batch_id.to_be_bytes()))
    });
    let links: Vec<Linked> = batch.iter().map(|batch| (batch.clone(), Vec::new())).collect();
    // Its clock is that of the wall, which may be set while a request is under way.
    let link = |from: SystemTime, to: SystemTime| (from < to).then(|| link(trace, facts, from, to));
    let back = |from: SystemTime| answered.and_then(|answered| link(from, answered));
    let mut spans: Vec<_> = link(sent, received).into_iter().collect();
    if timing.prepare_us > 0 {
        let attributes = vec![model()];
        spans.push(SpanParts { attributes, ..child(trace, "engine pre-processing", received, prepared) });
    }
    let attributes = vec![model(), position.clone()];
    let queue = child(trace, "engine queue", prepared, dequeued);
    spans.push(SpanParts { attributes, links: links.clone(), ..queue });
    let members = match (&timing.batch, told_in) {
        (Some(batch), _) => {
            let members = batch.members.iter().zip(&batch.positions);
            members
                .filter_map(|(member, at)| Some((context_of(member)?, vec![self::position(*at)])))
                .collect()
        }
        (None, None) => vec![(trace.context.clone(), vec![position.clone()])],
        (None, Some(_)) => Vec::new(),
    };
    let size = [
        model(),
        KeyValue::new("penstock.version", version.unwrap_or_default()),
        KeyValue::new("penstock.batch.rows", i64::from(timing.batch_rows)),
        KeyValue::new("penstock.batch.requests", i64::from(timing.batch_requests)),
        KeyValue::new("penstock.batch.closed", timing.closed().as_word()),
        KeyValue::new("penstock.batch.padding", f64::from(timing.padding_millionths) / 1e6),
    ];
    let Some(context) = batch.filter(|_| !members.is_empty()) else {
        let attributes = size.into_iter().chain([position]).collect();
        spans.push(SpanParts { attributes, links, ..child(trace, "engine run", dequeued, ran) });
        spans.extend(back(ran));
        return spans;
    };
    let stages = stages(&context, timing, dequeued);
    let ended = stages.last().map_or(ran, |last| last.to.max(ran));
    let run = child(trace, "batch", dequeued, ended);
    spans.push(SpanParts { context, attributes: size.into(), links: members, ..run });
    spans.extend(stages);
    spans.extend(back(ended));
    spans
}

/// Where the time of a batch went.
fn stages(batch: &SpanContext, timing: &Timing, dequeued: SystemTime) -> Vec<SpanParts> {
    let Some(phases) = timing.phases else { return Vec::new() };
    let mut from = dequeued;
    let stages = [("gather", phases.input_ns), ("execute", phases.infer_ns), ("split", phases.output_ns)];
    let stage = |(name, ns): (&'static str, u64)| {
        let began = from;
        from += Duration::from_nanos(ns);
        under(batch, name, began, from)
    };
    stages.into_iter().map(stage).collect()
}

fn position(rows: u32) -> KeyValue {
    KeyValue::new("penstock.batch.position", i64::from(rows))
}

/// A verdict about a canary, which took as long as its step.
pub(crate) fn of_verdict(context: SpanContext, model: &str, verdict: &policies::Record) -> SpanParts {
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
    SpanParts {
        context,
        parent: SpanId::INVALID,
        kind: SpanKind::Internal,
        name: "canary verdict".into(),
        from: to.checked_sub(verdict.after).unwrap_or(to),
        to,
        attributes,
        links: Vec::new(),
        status: Status::Unset,
    }
}

impl SpanParts {
    pub(crate) fn into_data(self, scope: InstrumentationScope) -> SpanData {
        let mut links = SpanLinks::default();
        links.links =
            self.links.into_iter().map(|(context, attributes)| Link::new(context, attributes, 0)).collect();
        SpanData {
            parent_span_is_remote: self.kind == SpanKind::Server,
            span_context: self.context,
            parent_span_id: self.parent,
            span_kind: self.kind,
            name: self.name,
            start_time: self.from,
            end_time: self.to,
            attributes: self.attributes,
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links,
            status: self.status,
            instrumentation_scope: scope,
        }
    }
}

fn context_of(wire: &TraceContext) -> Option<SpanContext> {
    let trace_id = TraceId::from_bytes(wire.trace_id.as_ref().try_into().ok()?);
    let span_id = SpanId::from_bytes(wire.span_id.as_ref().try_into().ok()?);
    Some(sampled(trace_id, span_id))
}

fn trace_of(high: u64, low: u64) -> Option<TraceId> {
    let id = TraceId::from(u128::from(high) << 64 | u128::from(low));
    (id != TraceId::INVALID).then_some(id)
}

fn sampled(trace_id: TraceId, span_id: SpanId) -> SpanContext {
    SpanContext::new(trace_id, span_id, TraceFlags::SAMPLED, false, TraceState::NONE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use opentelemetry::Value;

    const MS: Duration = Duration::from_millis(1);

    fn facts(started: Instant, stages: Stages) -> Facts<'static> {
        Facts {
            started,
            stages,
            request_id: "order-7",
            route: "/v2/models/{model}/infer",
            method: "POST",
            path: "/v2/models/m/infer",
            status: 200,
            grpc_status: None,
            model: Some("m"),
            version: Some(1),
            pick: None,
            label: None,
            generation: 3,
            outcome: None,
            retry: None,
            refusal: None,
            refused: None,
            timing: None,
            elsewhere: None,
        }
    }

    fn trace() -> Trace {
        let context = sampled(TraceId::from(7), SpanId::from(7));
        Trace { context, parent: SpanContext::NONE, started: SystemTime::UNIX_EPOCH + 1000 * MS }
    }

    fn attribute<'a>(span: &'a SpanParts, key: &str) -> Option<&'a Value> {
        let mut all = span.attributes.iter();
        all.find(|attribute| attribute.key.as_str() == key).map(|attribute| &attribute.value)
    }

    /// The children of an answered request, in ms from its start.
    fn children(timing: &Timing) -> Vec<(Cow<'static, str>, i128, i128)> {
        let started = Instant::now();
        let at = |ms: u32| Some(started + ms * MS);
        let stages = Stages { admitted: at(1), read: at(2), sent: at(3), answered: at(9), before: None };
        children_of(&Facts { timing: Some(timing), ..facts(started, stages) })
    }

    /// The same of one that has ended 10 ms after its start.
    fn children_of(facts: &Facts<'_>) -> Vec<(Cow<'static, str>, i128, i128)> {
        let trace = trace();
        let spans = of_request(&trace, facts, facts.started + 10 * MS);
        let ms = |time: SystemTime| {
            time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis() as i128 - 1000
        };
        let under = |span: &SpanParts| span.parent == trace.context.span_id();
        let mut children: Vec<_> =
            spans.into_iter().filter(under).map(|span| (span.name, ms(span.from), ms(span.to))).collect();
        children.sort_by_key(|(_, from, _)| *from);
        children
    }

    #[test]
    fn no_time_of_an_answered_request_is_in_no_stage() {
        let told = Timing {
            received_unix_ns: 1_005_000_000,
            prepare_us: 1000,
            queue_us: 1000,
            run_us: 1000,
            ..Timing::default()
        };
        let name = |name: &'static str, from, to| (Cow::Borrowed(name), from, to);
        let (before, after) =
            ([name("admit", 0, 1), name("read", 1, 2), name("decode", 2, 3)], name("reply", 9, 10));
        let engine = [
            name("link", 3, 5),
            name("engine pre-processing", 5, 6),
            name("engine queue", 6, 7),
            name("engine run", 7, 8),
            name("link", 8, 9),
        ];
        assert_eq!(children(&told), [&before[..], &engine, std::slice::from_ref(&after)].concat());
        // An engine that does not say when.
        let untold = Timing { received_unix_ns: 0, prepare_us: 0, ..told };
        let engine = [name("engine queue", 3, 4), name("engine run", 4, 5), name("link", 5, 9)];
        assert_eq!(children(&untold), [&before[..], &engine, &[after]].concat());
    }

    fn elsewhere(sent: Instant, resent: Option<Instant>, ended: Instant) -> Elsewhere {
        Elsewhere {
            span: SpanId::from(9),
            method: http::Method::POST,
            url: "http://there/infer".into(),
            host: "there".into(),
            port: 80,
            sent,
            resent,
            ended: Some((ended, Ok(http::StatusCode::OK))),
            before: None,
        }
    }

    #[test]
    fn each_attempt_of_a_request_has_a_span_of_its_own_which_says_which_it_is() {
        let started = Instant::now();
        let at = |ms: u32| started + ms * MS;
        let name = |name: &'static str, from, to| (Cow::Borrowed(name), from, to);
        let first = [name("admit", 0, 1), name("read", 1, 2), name("decode", 2, 3), name("link", 3, 5)];
        let before = Some((at(3), at(5)));
        let stages = Stages { admitted: Some(at(1)), read: Some(at(2)), before, ..Stages::default() };
        let here = Stages { sent: Some(at(6)), answered: Some(at(9)), ..stages };
        let second = [name("decode", 5, 6), name("link", 6, 9), name("reply", 9, 10)];
        assert_eq!(children_of(&facts(started, here)), [&first[..], &second].concat());
        // The policy names another server's version meanwhile, and that has closed the connection that was kept.
        let there = elsewhere(at(6), Some(at(7)), at(9));
        let asked = Facts { elsewhere: Some(&there), ..facts(started, stages) };
        let second = [name("decode", 5, 6), name("POST", 6, 7), name("POST", 7, 9), name("reply", 9, 10)];
        assert_eq!(children_of(&asked), [&first[..], &second].concat());
        let resends = |facts: &Facts<'_>, of: &str| {
            let spans = of_request(&trace(), facts, at(10));
            let of = spans.iter().filter(|span| span.name == of);
            let text = |span: &SpanParts, key: &str| attribute(span, key).map(|value| value.to_string());
            of.map(|span| (text(span, "http.request.resend_count"), text(span, "error.type")))
                .collect::<Vec<_>>()
        };
        let count = |count: &str| Some(count.to_owned());
        let mut links = resends(&facts(started, here), "link");
        links.sort();
        assert_eq!(links, [(None, None), (count("1"), None)]);
        let closed = (count("1"), count("connection_closed"));
        assert_eq!(resends(&asked, "POST"), [closed, (count("2"), None)]);
        // A server that is not there, and another one or the engine that is asked in its place.
        let gone = Elsewhere { ended: Some((at(4), Err("remote"))), ..elsewhere(at(3), None, at(4)) };
        let stages = Stages { before: None, ..stages };
        let instead = Elsewhere { before: Some(Box::new(gone)), ..elsewhere(at(6), None, at(9)) };
        let asked_instead = Facts { elsewhere: Some(&instead), ..facts(started, stages) };
        let tried = [&first[..3], &[name("POST", 3, 4)]].concat();
        let second = [name("POST", 6, 9), name("reply", 9, 10)];
        assert_eq!(children_of(&asked_instead), [&tried[..], &second].concat());
        let not_there = (None, Some("remote".to_owned()));
        assert_eq!(resends(&asked_instead, "POST"), [not_there.clone(), (count("1"), None)]);
        let asked_here =
            Facts { elsewhere: instead.before.as_deref(), ..facts(started, Stages { before: None, ..here }) };
        assert_eq!(
            children_of(&asked_here),
            [&tried[..], &[name("link", 6, 9), name("reply", 9, 10)]].concat()
        );
        assert_eq!(
            (resends(&asked_here, "POST"), resends(&asked_here, "link")),
            (vec![not_there], vec![(count("1"), None)])
        );
        let spans = of_request(&trace(), &asked, at(10));
        let answered = spans.iter().rfind(|span| span.name == "POST").expect("a span");
        assert_eq!(answered.context.span_id(), there.span, "the other server's own span is under it");
    }

    #[test]
    fn a_clock_that_was_set_meanwhile_makes_no_stage_that_ends_before_it_begins() {
        for received_ms in [1, 1000, 1100] {
            let timing = Timing { received_unix_ns: received_ms * 1_000_000, ..Timing::default() };
            let all = children(&timing);
            assert!(all.iter().all(|(_, from, to)| from <= to), "{all:?}");
        }
    }

    #[test]
    fn a_server_span_has_what_the_conventions_ask_of_one() {
        let (trace, now) = (trace(), Instant::now());
        let plain = facts(now, Stages::default());
        let span = |facts: &Facts<'_>| server(&trace, facts, trace.started);
        let text = |span: &SpanParts, key: &str| attribute(span, key).map(|value| value.to_string());
        let answered = span(&plain);
        assert_eq!(answered.name, "POST /v2/models/{model}/infer");
        assert_eq!(text(&answered, "url.path").as_deref(), Some("/v2/models/m/infer"));
        assert_eq!(text(&answered, "url.scheme").as_deref(), Some("http"));
        assert_eq!(text(&answered, "penstock.generation").as_deref(), Some("3"));
        for absent in ["http.request.method_original", "error.type", "penstock.refusal"] {
            assert_eq!(text(&answered, absent), None, "{absent}");
        }

        let refused = span(&Facts { status: 429, refusal: Some("rate_limited"), ..plain });
        assert_eq!(refused.status, Status::Unset);
        assert_eq!(text(&refused, "error.type"), None, "it is its caller's");
        assert_eq!(text(&refused, "penstock.refusal").as_deref(), Some("rate_limited"));
        let failed =
            span(&Facts { status: 500, refusal: Some("model_failed"), ..facts(now, Stages::default()) });
        assert_eq!(text(&failed, "error.type").as_deref(), Some("model_failed"));
        let unready = span(&Facts { status: 503, ..facts(now, Stages::default()) });
        assert_eq!(text(&unready, "error.type").as_deref(), Some("503"));
        assert_eq!(unready.status, Status::error(""));

        let long = "é".repeat(1000);
        let other =
            Facts { method: "BREW", route: "", path: &long, generation: 0, ..facts(now, Stages::default()) };
        let other = span(&other);
        assert_eq!((&*other.name, text(&other, "http.request.method").as_deref()), ("HTTP", Some("_OTHER")));
        assert_eq!(text(&other, "http.request.method_original").as_deref(), Some("BREW"));
        assert_eq!(text(&other, "url.path").map(|path| path.len()), Some(TOLD_BYTES_MAX));
        assert_eq!(text(&other, "penstock.generation"), None, "no policy was asked");
    }
}
