//! What became of one request, counted once at its end. The only caller of metrics and spans on the request
//! path; decides nothing.

use crate::infer::Chosen;
use crate::metrics::Metrics;
use crate::refusal::Refusal;
use crate::slots::Slot;
use crate::trace::{Facts, Trace, Tracer};
use policies::{Drawn, Instead, Ledger};
use prometheus_client::metrics::gauge::Gauge;
use std::sync::Arc;
use std::time::Instant;
use wire::Timing;

/// Filled in as a request goes; lives in pingora's per-request context.
#[derive(Debug)]
pub struct Record {
    /// When the head was complete.
    pub started: Instant,
    /// Route with placeholders.
    pub route: &'static str,
    /// HTTP method.
    pub method: http::Method,
    /// Policy generation that was pinned, 0 before that.
    pub generation: u64,
    /// Who was asked.
    pub version: Option<(String, u64)>,
    /// Why that version.
    pub pick: Option<&'static str>,
    /// Under which label the policy knows it.
    pub label: Option<Arc<str>>,
    /// What chance or its sticky key has decided, and where that key lies.
    pub drawn: Option<(Drawn, Option<u64>)>,
    /// Why another version is asked than that.
    pub instead: Option<Instead>,
    /// Its room among the requests in flight, until its answer is written.
    pub slot: Option<Slot>,
    /// Its places among its caller's requests, likewise.
    pub places: Option<policies::Places>,
    /// Kept for export.
    pub trace: Option<Trace>,
    /// Status sent, 0 if none was.
    pub status: u16,
    /// Why there was no answer.
    pub refusal: Option<&'static str>,
    /// Whether the request passed the version's breaker, and how it ended there.
    pub outcome: Option<policies::Outcome>,
    /// The engine's report.
    pub timing: Option<Timing>,
    /// What is left to the caller at the limit that is nearest to being used up.
    pub quota: Option<policies::Quota>,
    _in_flight: InFlight,
}

impl Record {
    /// A request that has just begun.
    pub fn begin(metrics: &Metrics) -> Self {
        Self {
            started: Instant::now(),
            route: "",
            method: http::Method::GET,
            generation: 0,
            version: None,
            pick: None,
            label: None,
            drawn: None,
            instead: None,
            slot: None,
            places: None,
            trace: None,
            status: 0,
            refusal: None,
            outcome: None,
            timing: None,
            quota: None,
            _in_flight: InFlight::enter(&metrics.in_flight),
        }
    }

    /// Notes who is asked.
    pub(crate) fn choose(&mut self, model: &str, chosen: Chosen) {
        self.version = Some((model.to_owned(), chosen.number));
        self.pick = Some(chosen.reason);
        self.label = chosen.label;
        (self.drawn, self.instead) = (chosen.drawn, chosen.instead);
    }

    /// Notes that another version answers than the chosen one, and why.
    pub(crate) fn divert(&mut self, version: u64, why: Instead) {
        if let Some((_, asked)) = &mut self.version {
            *asked = version;
        }
        (self.pick, self.label, self.instead) = (Some(why.as_str()), None, Some(why));
    }

    /// Notes a refusal.
    pub fn refuse(&mut self, refusal: &Refusal) {
        self.refusal = Some(refusal.reason());
    }

    /// Counts it.
    pub fn close(&self, metrics: &Metrics, ledger: &Ledger, tracer: Option<&Tracer>) {
        if let Some(reason) = self.refusal {
            metrics.refuse(reason);
        }
        if let (Some((model, version)), Some((drawn, key))) = (&self.version, self.drawn) {
            let is_answered = self.outcome == Some(policies::Outcome::Served);
            let answered = is_answered.then_some(policies::Version(*version));
            ledger.count(model, drawn, key, answered, self.instead);
        }
        if let (Some((model, version)), Some(outcome)) = (&self.version, self.outcome) {
            let version = metrics.version(model, *version);
            match outcome {
                policies::Outcome::Served => version.served.inc(),
                policies::Outcome::Failed => version.failed.inc(),
                policies::Outcome::Refused => version.refused.inc(),
                policies::Outcome::Abandoned => version.abandoned.inc(),
            };
            version.latency.observe(self.started.elapsed().as_secs_f64());
            if let Some(timing) = &self.timing {
                version.queue.observe(timing.queue_us as f64 / 1e6);
                version.batch_rows.observe(f64::from(timing.batch_rows));
            }
        }
        if let (Some(trace), Some(tracer)) = (&self.trace, tracer) {
            tracer.finish(trace, &self.facts());
        }
    }

    fn facts(&self) -> Facts<'_> {
        Facts {
            route: self.route,
            method: self.method.as_str(),
            status: self.status,
            model: self.version.as_ref().map(|(model, _)| model.as_str()),
            version: self.version.as_ref().map(|(_, version)| *version),
            pick: self.pick,
            label: self.label.as_deref(),
            generation: self.generation,
            refusal: self.refusal,
            timing: self.timing.as_ref(),
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
