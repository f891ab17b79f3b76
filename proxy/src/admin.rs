//! The third port, on loopback and only if it is configured: what a person may change while the process runs.
//! Decides who may ask; what is done is the ledger's.

use crate::monitor::respond;
use async_trait::async_trait;
use http::{Method, Response, StatusCode};
use percent_encoding::percent_decode_str;
use pingora::apps::http_app::ServeHttp;
use pingora::protocols::http::ServerSession;
use policies::{Command, CommandError, Ledger};
use std::sync::Arc;
use std::time::Instant;

/// Serves `GET /canaries` and `POST /canaries/{model}/{pause|resume|promote|abort}?reason=…`.
#[derive(Debug)]
pub struct Admin {
    /// Where canaries are.
    pub ledger: Arc<Ledger>,
}

/// Characters of a reason that are kept.
const REASON_MAX: usize = 200;

#[async_trait]
impl ServeHttp for Admin {
    async fn response(&self, session: &mut ServerSession) -> Response<Vec<u8>> {
        let head = session.req_header();
        // A page in somebody's browser reaches loopback as well, and says where it comes from.
        if head.headers.contains_key(http::header::ORIGIN) {
            return refuse(StatusCode::FORBIDDEN, "this is not for browsers");
        }
        let path: Vec<&str> = head.uri.path().split('/').skip(1).collect();
        match (&head.method, &path[..]) {
            (&Method::GET, ["canaries"]) => self.show(),
            (&Method::POST, ["canaries", model, word]) => {
                let model = percent_decode_str(model).decode_utf8_lossy();
                self.obey(&model, word, &reason(head.uri.query().unwrap_or("")))
            }
            _ => refuse(
                StatusCode::NOT_FOUND,
                "here are GET /canaries and POST /canaries/{model}/{pause|resume|promote|abort}?reason=...",
            ),
        }
    }
}

impl Admin {
    fn show(&self) -> Response<Vec<u8>> {
        let body = serde_json::to_string(&self.ledger.rollouts()).expect("names and numbers");
        respond(StatusCode::OK, "application/json", body)
    }

    fn obey(&self, model: &str, word: &str, reason: &str) -> Response<Vec<u8>> {
        let command = match word {
            "pause" => Command::Pause,
            "resume" => Command::Resume,
            "promote" => Command::Promote,
            "abort" => Command::Abort,
            _ => {
                return refuse(
                    StatusCode::NOT_FOUND,
                    "a canary can be paused, resumed, promoted and aborted",
                );
            }
        };
        match self.ledger.command(model, command, reason, Instant::now()) {
            Ok(status) => {
                let body = serde_json::to_string(&status).expect("names and numbers");
                respond(StatusCode::OK, "application/json", body)
            }
            Err(unknown @ CommandError::NoCanary(_)) => refuse(StatusCode::NOT_FOUND, &unknown.to_string()),
            Err(not_now @ CommandError::NotNow(_)) => {
                refuse(StatusCode::CONFLICT, &format!("cannot {word}: {not_now}"))
            }
        }
    }
}

fn reason(query: &str) -> String {
    let reason =
        query.split('&').find_map(|pair| pair.strip_prefix("reason=")).unwrap_or("").replace('+', " ");
    let reason = percent_decode_str(&reason).decode_utf8_lossy();
    reason.chars().filter(|letter| !letter.is_control()).take(REASON_MAX).collect()
}

fn refuse(status: StatusCode, why: &str) -> Response<Vec<u8>> {
    respond(status, "application/json", serde_json::json!({"error": why}).to_string())
}
