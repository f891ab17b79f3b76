//! The second port: dashboard, metrics, status and health for those who watch the process rather than use it. Never
//! serves inference, and changes nothing.

use crate::access::AccessLog;
use crate::dashboard;
use crate::exposition::Exposition;
use crate::overview::{Asker, Overview};
use async_trait::async_trait;
use http::{HeaderValue, Method, Response, StatusCode, Version, header};
use pingora::apps::http_app::ServeHttp;
use pingora::http::RequestHeader;
use pingora::protocols::http::ServerSession;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// Serves the dashboard, `/metrics`, `/status` and `/v2/health/*`.
#[derive(Debug)]
pub struct Monitor {
    /// What is shown.
    pub overview: Overview,
    /// Whose dropped lines are counted.
    pub access: Option<Arc<AccessLog>>,
}

#[async_trait]
impl ServeHttp for Monitor {
    async fn response(&self, session: &mut ServerSession) -> Response<Vec<u8>> {
        if wants_to_close(session.req_header()) {
            session.set_keepalive(None); // pingora has just switched it on for everybody
        }
        let head = session.req_header();
        if ![Method::GET, Method::HEAD].contains(&head.method) {
            let why = r#"{"error":"what is here is only looked at: GET or HEAD"}"#;
            let mut answer = respond(StatusCode::METHOD_NOT_ALLOWED, "application/json", why.into());
            answer.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            return answer;
        }
        match head.uri.path() {
            "/" => dashboard::page(),
            "/metrics" => self.show_metrics(Exposition::of_answer(&head.headers)),
            "/status" => show_status(&self.overview, Asker::Watcher),
            "/v2/health/live" => respond(StatusCode::OK, "application/json", r#"{"live":true}"#.into()),
            "/v2/health/ready" => match self.overview.readiness.server() {
                Ok(()) => respond(StatusCode::OK, "application/json", r#"{"ready":true}"#.into()),
                Err(reason) => {
                    let body = serde_json::json!({"ready": false, "reason": reason}).to_string();
                    respond(StatusCode::SERVICE_UNAVAILABLE, "application/json", body)
                }
            },
            _ => respond(
                StatusCode::NOT_FOUND,
                "application/json",
                r#"{"error":"here are / for people, /metrics, /status, /v2/health/live and /v2/health/ready"}"#.into(),
            ),
        }
    }
}

impl Monitor {
    fn show_metrics(&self, form: Exposition) -> Response<Vec<u8>> {
        let Overview { metrics, ledger, links, live, readiness, policy, .. } = &self.overview;
        let (generation, now) = (live.load(), Instant::now());
        metrics.set_versions(&readiness.versions());
        metrics.set_limits(&generation.snapshot, &ledger.spent(&generation.snapshot, now));
        metrics.set_breakers(&ledger.breakers(now));
        metrics.set_rollouts(&ledger.rollouts());
        metrics.set_splits(&ledger.splits(now));
        metrics.scraped.policy_file_in_force.set(policy.read().1.is_none().into());
        metrics.scraped.resident_bytes.set(resident_bytes());
        metrics.scraped.shared_bytes.set(links.shared_bytes().0 as u64);
        if let Some(access) = &self.access {
            metrics.scraped.access_dropped.inner().store(access.dropped(), Ordering::Relaxed);
        }
        let mut answer = respond(StatusCode::OK, form.content_type(), metrics.encode(form));
        answer.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
        answer
    }
}

/// Bytes of this process that are in memory; 0 where the system does not tell.
fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
    pages * rustix::param::page_size() as u64
}

/// All that the process says of itself, see [`crate::status`].
pub(crate) fn show_status(overview: &Overview, asker: Asker) -> Response<Vec<u8>> {
    let status = serde_json::to_string(&overview.status(asker)).expect("names and numbers");
    let mut answer = respond(StatusCode::OK, "application/json", status);
    answer.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

fn wants_to_close(head: &RequestHeader) -> bool {
    let close = head
        .headers
        .get(header::CONNECTION)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"close"));
    close || head.version == Version::HTTP_10
}

pub(crate) fn respond(status: StatusCode, content_type: &'static str, body: String) -> Response<Vec<u8>> {
    Response::builder()
        .status(status)
        .header(header::CONTENT_TYPE, content_type)
        .header(header::CONTENT_LENGTH, body.len())
        .body(body.into_bytes())
        .expect("status and headers are constants")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_in_memory() {
        assert!(resident_bytes() > 1 << 20);
    }
}
