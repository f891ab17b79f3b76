//! Reads a request body whole, within its limits of size and time. Never interprets it.
//!
//! Pingora answers no `Expect: 100-continue` for a body that is read here, times no body as a whole, and limits
//! no size: all three are this file's.

use crate::refusal::Refusal;
use bytes::{Bytes, BytesMut};
use http::header;
use pingora::protocols::http::ServerSession;
use std::time::Duration;

/// How much and how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BodyLimits {
    /// Largest body, bytes.
    pub bytes_max: usize,
    /// From the end of the head to the end of the body.
    pub time_max: Duration,
}

/// The whole body of the current request.
pub async fn read(session: &mut ServerSession, limits: &BodyLimits) -> Result<Bytes, Refusal> {
    let too_large = Refusal::TooLarge { limit: limits.bytes_max };
    let declared = declared_length(session)?;
    if declared.is_some_and(|length| length > limits.bytes_max) {
        return Err(too_large);
    }
    if expects_continue(session) {
        session.write_continue_response().await.map_err(|_| Refusal::ClientGone)?;
    }
    tokio::time::timeout(limits.time_max, collect(session, declared, limits.bytes_max))
        .await
        .map_err(|_| Refusal::BodyTimeout { waited: limits.time_max })?
}

async fn collect(
    session: &mut ServerSession,
    declared: Option<usize>,
    bytes_max: usize,
) -> Result<Bytes, Refusal> {
    let mut whole = BytesMut::new();
    while let Some(chunk) = session.read_request_body().await.map_err(|_| Refusal::ClientGone)? {
        if whole.is_empty() && declared == Some(chunk.len()) {
            return Ok(chunk); // most bodies come in one piece
        }
        if whole.len() + chunk.len() > bytes_max {
            return Err(Refusal::TooLarge { limit: bytes_max });
        }
        if whole.is_empty() {
            whole.reserve(declared.unwrap_or(chunk.len()));
        }
        whole.extend_from_slice(&chunk);
    }
    Ok(whole.freeze())
}

/// Makes room for the next request on this connection after a refusal that left the body unread: a small body
/// is read away, so that refusing does not cost the client its connection. A large one, or one that the client
/// holds back until it is told to continue, is not waited for, and pingora then closes.
pub async fn discard(session: &mut ServerSession) {
    const WORTH_READING: usize = 64 << 10;
    let declared = declared_length(session).ok().flatten();
    if declared.is_some_and(|length| length <= WORTH_READING) && !expects_continue(session) {
        // Failing means that the client is gone or slow; the close that follows is right for both.
        let _ = tokio::time::timeout(Duration::from_millis(100), session.drain_request_body()).await;
    }
}

fn declared_length(session: &ServerSession) -> Result<Option<usize>, Refusal> {
    let Some(value) = session.get_header(header::CONTENT_LENGTH) else { return Ok(None) };
    let parsed = value.to_str().ok().and_then(|text| text.trim().parse().ok());
    parsed.map(Some).ok_or_else(|| Refusal::Invalid("Content-Length is not a number".into()))
}

fn expects_continue(session: &ServerSession) -> bool {
    session
        .get_header(header::EXPECT)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}
