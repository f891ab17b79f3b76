//! What became of one request, counted once at its end. The only caller of metrics and spans on the request
//! path; decides nothing.

use crate::access::{AccessLog, Line, Moment, Us};
use crate::infer::Chosen;
use crate::metrics::{Metrics, TraceLabel, VersionMetrics};
use crate::refusal::Refusal;
use crate::request_id::RequestId;
use crate::slots::Slot;
use crate::spans::Facts;
use crate::statistics::Failure;
use crate::trace::{Fault, Sampling, Tracer};
use http::HeaderMap;
use opentelemetry::trace::SpanId;
use policies::{Drawn, Instead, Label, Ledger, Remote};
use prometheus_client::metrics::gauge::Gauge;
use rand::Rng;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use wire::Timing;

/// Who is told of requests that are over.
#[derive(Clone, Debug)]
pub struct Watchers {
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// What limits, breakers and splits remember.
    pub ledger: Arc<Ledger>,
    /// Present when traces are on.
    pub tracer: Option<Arc<Tracer>>,
    /// Present when there is an access log.
    pub access: Option<Arc<AccessLog>>,
}

/// When a request got further; `None` where it did not.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stages {
    /// Its head was enough to let it in.
    pub admitted: Option<Instant>,
    /// Its body was complete.
    pub read: Option<Instant>,
    /// It was decoded, and went to the engine.
    pub sent: Option<Instant>,
    /// The engine's answer came.
    pub answered: Option<Instant>,
    /// Of an attempt before this one, which was not run: when it went to the engine, and when that was known.
    pub before: Option<(Instant, Instant)>,
}

impl Stages {
    /// What comes now is about another attempt.
    fn again(&mut self) {
        if let (Some(sent), Some(answered)) = (self.sent.take(), self.answered.take()) {
            self.before = Some((sent, answered));
        }
    }
}

/// Filled in as a request goes, over HTTP or gRPC.
#[derive(Debug)]
pub struct Record {
    /// When the head was complete.
    pub started: Instant,
    /// When it got further.
    pub stages: Stages,
    /// What ties its line, its span and its answer together; `None` before its head is known.
    pub request_id: Option<RequestId>,
    /// Route with placeholders.
    pub route: &'static str,
    /// What was asked for, where that leads to no version; not more than a line has room for.
    pub path: Option<String>,
    /// HTTP method.
    pub method: http::Method,
    /// Policy generation that was pinned, 0 before that.
    pub generation: u64,
    /// A model that exists, of which no version was chosen.
    pub model: Option<String>,
    /// Who was asked.
    pub version: Option<(String, u64)>,
    /// Why that version.
    pub pick: Option<&'static str>,
    /// Under which label the policy knows it.
    pub label: Option<Label>,
    /// What chance or its sticky key has decided, and where that key lies.
    pub drawn: Option<(Drawn, Option<u64>)>,
    /// The version in whose place the one above is asked, and why; the last one, if it was several times another.
    pub instead: Option<(policies::Version, Instead)>,
    /// Its room among the requests in flight, until its answer is written.
    pub slot: Option<Slot>,
    /// Its places among its caller's requests, likewise.
    pub places: Option<policies::Places>,
    /// Whether it is kept for export.
    pub sampling: Sampling,
    /// Status sent, 0 if none was.
    pub status: u16,
    /// The same in gRPC's words, where that was spoken.
    pub grpc_status: Option<&'static str>,
    /// Why there was no answer.
    pub refusal: Option<&'static str>,
    /// Whether what it asked for was readiness, and there is none: an answer like any other, and yet worth a line.
    pub is_unready: bool,
    /// The same as Triton counts it.
    pub failure: Failure,
    /// The counters of the version that the engine was asked for.
    pub asked: Option<Arc<VersionMetrics>>,
    /// The refusal itself, for those who look.
    pub refused: Option<Refusal>,
    /// Whether the request passed the version's breaker, and how it ended there.
    pub outcome: Option<policies::Outcome>,
    /// Why it was to be asked once more, if it was, and whether it has been.
    pub(crate) retry: Option<Retry>,
    /// The engine's report.
    pub timing: Option<Timing>,
    /// Of another server that was asked, the last one. Boxed: few requests go there, and all would carry it.
    pub(crate) elsewhere: Option<Box<Elsewhere>>,
    /// What is left to the caller at the limit that is nearest to being used up.
    pub quota: Option<policies::Quota>,
    _in_flight: InFlight,
}

impl Record {
    /// A request that has just begun.
    pub fn begin(metrics: &Metrics) -> Self {
        Self {
            started: Instant::now(),
            stages: Stages::default(),
            request_id: None,
            route: "",
            path: None,
            method: http::Method::GET,
            generation: 0,
            model: None,
            version: None,
            pick: None,
            label: None,
            drawn: None,
            instead: None,
            slot: None,
            places: None,
            sampling: Sampling::default(),
            status: 0,
            grpc_status: None,
            refusal: None,
            is_unready: false,
            failure: Failure::Other,
            asked: None,
            refused: None,
            outcome: None,
            retry: None,
            timing: None,
            elsewhere: None,
            quota: None,
            _in_flight: InFlight::enter(&metrics.in_flight),
        }
    }

    /// Notes what the head says of the request itself.
    pub fn identify(&mut self, headers: &HeaderMap, watchers: &Watchers) {
        let mut dice = rand::rng();
        self.request_id = Some(RequestId::of(headers, dice.random()));
        if let Some(tracer) = &watchers.tracer {
            self.sampling = tracer.begin(headers, dice.random(), self.started);
        }
    }

    /// Notes who is asked.
    pub(crate) fn choose(&mut self, model: &str, chosen: &Chosen) {
        self.version = Some((model.to_owned(), chosen.number));
        self.pick = Some(chosen.reason);
        self.label.clone_from(&chosen.label);
        (self.drawn, self.instead) = (chosen.drawn, chosen.instead);
    }

    /// Notes that another version answers than the chosen one, and why.
    pub(crate) fn divert(&mut self, version: u64, why: Instead) {
        if let Some((_, asked)) = &mut self.version {
            self.instead = Some((policies::Version(*asked), why));
            *asked = version;
        }
        (self.pick, self.label) = (Some(why.as_str()), None);
    }

    /// Notes what was asked for, in vain.
    pub(crate) fn ask_in_vain(&mut self, path: &str) {
        const BYTES_MAX: usize = 256;
        self.path = Some(path[..path.floor_char_boundary(BYTES_MAX)].to_owned());
    }

    /// Notes that it is asked once more, and why. What the engine has said until now is not about that.
    pub(crate) fn ask_again(&mut self, retry: Retry) {
        self.retry = Some(retry);
        self.stages.again();
        self.timing = None;
    }

    /// Notes a refusal.
    pub fn refuse(&mut self, refusal: &Refusal) {
        self.refusal = Some(refusal.reason());
        self.failure = Failure::of(refusal);
        self.refused = Some(refusal.clone());
    }

    /// Tells everybody; the request for this path is over.
    pub fn close(&self, path: &str, Watchers { metrics, ledger, tracer, access }: &Watchers) {
        let now = Instant::now();
        let failed = match &self.refused {
            Some(refusal) if refusal.status().is_client_error() => Some(Fault::Callers),
            Some(_) => Some(Fault::Ours),
            None => (self.outcome == Some(policies::Outcome::Failed)).then_some(Fault::Ours),
        };
        let kept = |tracer: &Arc<Tracer>| tracer.keep(&self.sampling, failed, now - self.started);
        let trace = tracer.as_ref().and_then(kept);
        if let Some(reason) = self.refusal {
            metrics.refuse(reason, self.model().unwrap_or_default());
        }
        if let (Some((model, _)), Some(retry)) = (&self.version, self.retry) {
            metrics.count_retry(model, retry, self.refusal.is_none());
        }
        if let Some(refusal) = &self.refused {
            metrics.refused.note(refusal, (self.model(), self.number()), SystemTime::now());
        }
        if let (Some((model, version)), Some((drawn, key))) = (&self.version, self.drawn) {
            let is_answered = self.outcome() == Some(policies::Outcome::Served);
            let answered = is_answered.then_some(policies::Version(*version));
            ledger.count(model, drawn, key, answered, self.instead.map(|(_, why)| why));
        }
        if let (Some((model, version)), Some(outcome)) = (&self.version, self.outcome()) {
            let version = self.asked.clone().unwrap_or_else(|| metrics.version(model, *version));
            let took = now - self.started;
            // Who is turned away at once makes nothing faster.
            if matches!(outcome, policies::Outcome::Served | policies::Outcome::Failed) {
                let example = trace.as_ref().map(|trace| TraceLabel { trace_id: trace.id() });
                version.latency.observe(took.as_secs_f64(), example, None);
                version.whole.observe(took.as_secs_f64());
            }
            self.count(metrics, &version, outcome, took);
            self.observe_stages(metrics, now);
        }
        if let Some(access) = access.as_ref().filter(|access| access.wants(self.reason().is_some())) {
            access.write(&self.line(trace.as_ref().map(|trace| trace.id()), now));
        }
        if let (Some(trace), Some(tracer)) = (&trace, tracer) {
            tracer.finish(trace, &self.facts(path), now);
        }
    }

    /// How it ended for its caller: one that was answered, and whose answer had no room here, is turned away.
    fn outcome(&self) -> Option<policies::Outcome> {
        match self.outcome {
            Some(policies::Outcome::Served) if self.refused.is_some() => Some(policies::Outcome::Refused),
            outcome => outcome,
        }
    }

    /// Counts it as one of the version that was asked.
    fn count(&self, metrics: &Metrics, version: &VersionMetrics, outcome: policies::Outcome, took: Duration) {
        let (statistics, timing) = (&version.statistics, self.timing.as_ref());
        if outcome == policies::Outcome::Served {
            statistics.served(took, timing, SystemTime::now());
        } else {
            statistics.failed(took, self.failure);
        }
        match outcome {
            policies::Outcome::Served => version.served.inc(),
            policies::Outcome::Failed => version.failed.inc(),
            policies::Outcome::Refused | policies::Outcome::Lost => version.refused.inc(),
            policies::Outcome::Abandoned => version.abandoned.inc(),
        };
        let Some(timing) = timing else { return };
        statistics.ran(timing);
        metrics.count_batches(version, &timing.runs);
        let [prepare, queue, run] =
            [timing.prepare_us, timing.queue_us, timing.run_us].map(|us| us as f64 / 1e6);
        version.proxy.observe((took.as_secs_f64() - prepare - queue - run).max(0.0));
        version.queue.observe(queue);
        version.run.observe(run);
        version.rows_together.observe(f64::from(timing.batch_rows));
    }

    /// Why there was no answer, or the one that nobody hopes for.
    fn reason(&self) -> Option<&'static str> {
        self.refusal.or(self.is_unready.then_some("not_ready"))
    }

    fn observe_stages(&self, metrics: &Metrics, now: Instant) {
        let Stages {
            admitted: Some(admitted),
            read: Some(read),
            sent: Some(sent),
            answered: Some(answered),
            before,
        } = self.stages
        else {
            return;
        };
        let in_vain = before.map(|(sent, answered)| answered - sent).unwrap_or_default();
        // Where the engine has answered, another server was not there: that is none of these stages.
        let elsewhere = self.elsewhere.as_ref().and_then(|asked| Some(asked.ended?.0 - asked.sent));
        let engine = self
            .timing
            .as_ref()
            .map(|timing| Duration::from_micros(timing.prepare_us + timing.queue_us + timing.run_us));
        let stages = &metrics.stages;
        stages.admit.observe((admitted - self.started).as_secs_f64());
        stages.read.observe((read - admitted).as_secs_f64());
        let decode = (sent - read).saturating_sub(in_vain + elsewhere.unwrap_or_default());
        stages.decode.observe(decode.as_secs_f64());
        let link = (answered - sent).saturating_sub(engine.unwrap_or_default());
        stages.link.observe((in_vain + link).as_secs_f64());
        stages.reply.observe((now - answered).as_secs_f64());
    }

    fn line(&self, trace_id: Option<String>, now: Instant) -> Line<'_> {
        let timing = self.timing.as_ref();
        Line {
            time: Moment(SystemTime::now()),
            request_id: self.id(),
            trace_id,
            method: self.method.as_str(),
            route: self.route,
            path: self.path.as_deref(),
            status: self.status,
            reason: self.reason(),
            model: self.model(),
            version: self.number(),
            pick: self.pick,
            instead_of: self.instead.map(|(other, _)| other.0).filter(|other| Some(*other) != self.number()),
            retry: self.asked_again(),
            generation: self.generation,
            duration: Us((now - self.started).as_micros() as u64),
            queue: timing.map(|timing| Us(timing.queue_us)),
            run: timing.map(|timing| Us(timing.run_us)),
            batch_rows: timing.map(|timing| timing.batch_rows),
            remote: self.elsewhere.as_ref().and_then(|elsewhere| {
                let (ended, _) = elsewhere.ended?;
                Some(Us((ended - elsewhere.sent).as_micros() as u64))
            }),
        }
    }

    /// Why it was asked once more, if it was.
    fn asked_again(&self) -> Option<&'static str> {
        self.retry.filter(|retry| retry.is_asked).map(|retry| retry.reason)
    }

    /// Whose request it was, if it was one of a model that exists.
    fn model(&self) -> Option<&str> {
        self.version.as_ref().map(|(model, _)| model).or(self.model.as_ref()).map(String::as_str)
    }

    fn number(&self) -> Option<u64> {
        self.version.as_ref().map(|(_, version)| *version)
    }

    fn id(&self) -> &str {
        self.request_id.as_ref().map_or("", RequestId::as_str)
    }

    fn facts<'a>(&'a self, path: &'a str) -> Facts<'a> {
        Facts {
            started: self.started,
            stages: self.stages,
            request_id: self.id(),
            route: self.route,
            method: self.method.as_str(),
            path,
            status: self.status,
            grpc_status: self.grpc_status,
            model: self.model(),
            version: self.number(),
            pick: self.pick,
            label: self.label.as_deref(),
            generation: self.generation,
            outcome: self.outcome,
            retry: self.asked_again(),
            refusal: self.refusal,
            refused: self.refused.as_ref(),
            timing: self.timing.as_ref(),
            elsewhere: self.elsewhere.as_deref(),
        }
    }
}

/// What became of a request that another server was asked to answer.
#[derive(Debug)]
pub(crate) struct Elsewhere {
    /// The span in which it was asked, should it be kept.
    pub(crate) span: SpanId,
    pub(crate) method: http::Method,
    /// Without what a query may hold.
    pub(crate) url: String,
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) sent: Instant,
    /// When it was sent once more, over another connection.
    pub(crate) resent: Option<Instant>,
    /// When its answer was here, or it was clear that none comes; its status, or why there is none. `None` if the request was
    /// dropped before that.
    pub(crate) ended: Option<(Instant, Result<http::StatusCode, &'static str>)>,
    /// Another server that was asked before it, and was not there.
    pub(crate) before: Option<Box<Self>>,
}

impl Elsewhere {
    pub(crate) fn begin(remote: &Remote, method: &http::Method) -> Self {
        Self {
            span: SpanId::from_bytes(rand::rng().random()),
            method: method.clone(),
            url: remote.address(),
            host: remote.host().to_owned(),
            port: remote.port(),
            sent: Instant::now(),
            resent: None,
            ended: None,
            before: None,
        }
    }

    pub(crate) fn end(&mut self, how: Result<http::StatusCode, &'static str>) {
        self.ended = Some((Instant::now(), how));
    }
}

/// A request that the engine did not run, or that another server has not begun to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Retry {
    /// Who has not run it, or not begun to answer.
    pub(crate) version: u64,
    /// Why.
    pub(crate) reason: &'static str,
    /// Whether it was asked once more, or too many were already.
    pub(crate) is_asked: bool,
}

impl Retry {
    pub(crate) const REASONS: [&str; 4] =
        [Self::UNLOADED, Self::ENGINE_REPLACED, Self::CONNECTION_CLOSED, Self::UNREACHABLE];
    pub(crate) const OUTCOMES: [&str; 3] = ["answered", "unanswered", "over_budget"];
    /// The version is gone.
    pub(crate) const UNLOADED: &str = "unloaded";
    /// Another engine has taken over.
    pub(crate) const ENGINE_REPLACED: &str = "engine_replaced";
    /// Another server had closed the connection that was kept for it.
    pub(crate) const CONNECTION_CLOSED: &str = "connection_closed";
    /// Another server is not there: the fallback of its version is asked.
    pub(crate) const UNREACHABLE: &str = "unreachable";

    pub(crate) fn outcome(self, is_answered: bool) -> &'static str {
        let [answered, unanswered, over_budget] = Self::OUTCOMES;
        match self.is_asked {
            true if is_answered => answered,
            true => unanswered,
            false => over_budget,
        }
    }
}

/// Counts a request as in flight for as long as it lives, whatever ends it.
#[derive(Debug)]
struct InFlight(Gauge);

impl InFlight {
    fn enter(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exposition::Exposition::OpenMetrics;

    fn watched(access: Option<AccessLog>) -> (Arc<Metrics>, Watchers) {
        let metrics = Arc::new(Metrics::new());
        let ledger = Arc::new(Ledger::new());
        let access = access.map(Arc::new);
        (metrics.clone(), Watchers { metrics, ledger, tracer: None, access })
    }

    #[test]
    fn a_refusal_is_counted_under_the_model_that_was_asked_whether_or_not_a_version_was_chosen() {
        let (metrics, watchers) = watched(None);
        let known = |record: &mut Record| record.model = Some("m".to_owned());
        let chosen = |record: &mut Record| record.version = Some(("m".to_owned(), 1));
        let unknown = |_: &mut Record| ();
        for prepare in [&known as &dyn Fn(&mut Record), &chosen, &unknown] {
            let mut record = Record::begin(&metrics);
            prepare(&mut record);
            record.refuse(&Refusal::NotReady("not yet".into()));
            record.close("/", &watchers);
        }
        let text = metrics.encode(OpenMetrics);
        assert!(text.contains(r#"penstock_refusals_total{reason="not_ready",model="m"} 2"#), "{text}");
        assert!(text.contains(r#"penstock_refusals_total{reason="not_ready",model=""} 1"#), "{text}");
    }

    #[test]
    fn the_time_of_an_attempt_that_was_not_run_is_spent_on_the_link() {
        let (metrics, watchers) = watched(None);
        let mut record = Record::begin(&metrics);
        let started = record.started;
        let at = |ms| Some(started + Duration::from_millis(ms));
        record.version = Some(("m".to_owned(), 1));
        record.outcome = Some(policies::Outcome::Served);
        record.stages = Stages { admitted: at(0), read: at(1), sent: at(2), answered: at(102), before: None };
        record.ask_again(Retry { version: 1, reason: Retry::ENGINE_REPLACED, is_asked: true });
        (record.stages.sent, record.stages.answered) = (at(103), at(203));
        record.timing = Some(Timing { run_us: 90_000, ..Timing::default() });
        record.close("/", &watchers);
        let spent = |stage: &crate::histogram::Histogram| stage.read(1e3).sum.round();
        assert_eq!((spent(&metrics.stages.decode), spent(&metrics.stages.link)), (2.0, 110.0));
    }

    #[test]
    fn a_batch_of_eight_requests_is_one_batch() {
        let (metrics, watchers) = watched(None);
        for member in 0..8 {
            // One of them tells of the run.
            let runs = (member == 0).then(|| wire::Run { rows: 8, ..wire::Run::default() });
            let runs = runs.into_iter().collect();
            let mut record = Record::begin(&metrics);
            record.version = Some(("m".to_owned(), 1));
            record.outcome = Some(policies::Outcome::Served);
            record.timing =
                Some(Timing { batch_rows: 8, batch_requests: 8, rows: 1, runs, ..Timing::default() });
            record.close("/", &watchers);
        }
        let text = metrics.encode(OpenMetrics);
        assert!(text.contains(r#"penstock_batch_rows_count{model="m",version="1"} 1"#), "{text}");
        assert!(text.contains(r#"penstock_batch_rows_sum{model="m",version="1"} 8.0"#), "{text}");
        let seen = metrics.version("m", 1).rows_together.read(1.0);
        assert_eq!((seen.count, seen.sum), (8, 64.0), "as each of its requests has seen it");
    }

    #[test]
    fn a_503_of_readiness_has_a_line_with_its_reason_and_counts_as_no_refusal() {
        use crate::access::AccessConfig;
        use crate::log::Format;
        let (mut read, write) = std::io::pipe().unwrap();
        let access = AccessLog::to(AccessConfig { sample: 0.0, format: Format::Json }, write);
        let (metrics, watchers) = watched(Some(access));
        for is_unready in [true, false] {
            let mut record = Record::begin(&metrics);
            (record.status, record.is_unready) = (if is_unready { 503 } else { 200 }, is_unready);
            record.close("/", &watchers);
        }
        watchers.access.as_ref().unwrap().close();
        drop(watchers);
        let mut lines = String::new();
        std::io::Read::read_to_string(&mut read, &mut lines).unwrap();
        assert_eq!(lines.lines().count(), 1, "{lines}");
        assert!(lines.contains(r#""status":503,"reason":"not_ready""#), "{lines}");
        let text = metrics.encode(OpenMetrics);
        assert!(text.contains(r#"penstock_refusals_total{reason="not_ready",model=""} 0"#), "{text}");
    }
}
