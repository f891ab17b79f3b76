//! The second port: metrics, status and health for those who watch the process rather than use it. Never serves
//! inference.

use crate::access::AccessLog;
use crate::directory::Directory;
use crate::metrics::Metrics;
use crate::readiness::Readiness;
use async_trait::async_trait;
use http::{Response, StatusCode, Version, header};
use pingora::apps::http_app::ServeHttp;
use pingora::http::RequestHeader;
use pingora::protocols::http::ServerSession;
use policies::Ledger;
use std::sync::Arc;
use std::time::Instant;

/// Serves `/metrics`, `/status` and `/v2/health/*`.
#[derive(Debug)]
pub struct Monitor {
    /// What is shown.
    pub metrics: Arc<Metrics>,
    /// Whose dropped lines are counted.
    pub access: Option<Arc<AccessLog>>,
    /// Where breakers are read.
    pub ledger: Arc<Ledger>,
    /// Whether traffic may come.
    pub readiness: Readiness,
    /// What the engine has.
    pub directory: Arc<Directory>,
}

#[async_trait]
impl ServeHttp for Monitor {
    async fn response(&self, session: &mut ServerSession) -> Response<Vec<u8>> {
        if wants_to_close(session.req_header()) {
            session.set_keepalive(None); // pingora has just switched it on for everybody
        }
        match session.req_header().uri.path() {
            "/metrics" => self.show_metrics(),
            "/status" => respond(StatusCode::OK, "application/json", self.status().to_string()),
            "/v2/health/live" => respond(StatusCode::OK, "application/json", r#"{"live":true}"#.into()),
            "/v2/health/ready" => match self.readiness.server() {
                Ok(()) => respond(StatusCode::OK, "application/json", r#"{"ready":true}"#.into()),
                Err(reason) => {
                    let body = serde_json::json!({"ready": false, "reason": reason}).to_string();
                    respond(StatusCode::SERVICE_UNAVAILABLE, "application/json", body)
                }
            },
            _ => respond(
                StatusCode::NOT_FOUND,
                "application/json",
                r#"{"error":"here are /metrics, /status, /v2/health/live and /v2/health/ready"}"#.into(),
            ),
        }
    }
}

impl Monitor {
    fn status(&self) -> serde_json::Value {
        let (models, metrics) = (self.directory.load(), &self.metrics);
        let total = metrics.device_total_bytes.get();
        let gpu = (total > 0).then(|| {
            serde_json::json!({
                "held_bytes": metrics.device_held_bytes.get(),
                "free_bytes": metrics.device_free_bytes.get(),
                "total_bytes": total,
            })
        });
        serde_json::json!({
            "engine": {
                "connected": models.connected,
                "resident_bytes": metrics.engine_resident_bytes.get(),
                "memory_bytes": metrics.engine_memory_bytes.get(),
                "gpu": gpu,
            },
            "versions": models.described(),
            "canaries": self.ledger.rollouts(),
            "splits": self.ledger.splits(Instant::now()),
        })
    }

    fn show_metrics(&self) -> Response<Vec<u8>> {
        self.metrics.set_breakers(&self.ledger.breakers(Instant::now()));
        self.metrics.set_rollouts(&self.ledger.rollouts());
        self.metrics.set_splits(&self.ledger.splits(Instant::now()));
        if let Some(access) = &self.access {
            self.metrics.access_dropped.set(access.dropped());
        }
        respond(
            StatusCode::OK,
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
            self.metrics.encode(),
        )
    }
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
