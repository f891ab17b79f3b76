//! Reads a request body whole, within its limits of size and time. Never interprets it.
//!
//! Pingora answers no `Expect: 100-continue` for a body that is read here, times no body as a whole, and limits
//! no size: all three are this file's. Large ones are read past it, see [`crate::large_body`].

use crate::compression::Coding;
use crate::deadline::header_number;
use crate::growing::Growing;
use crate::large_body::{self, LargeBody};
use crate::links::Links;
use crate::refusal::Refusal;
use crate::slots::Slot;
use bytes::{BufMut, Bytes, BytesMut};
use http::header;
use pingora::ErrorType;
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

/// Which Content-Encoding the reader of a body understands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// Those of [`Coding`].
    Known,
    /// Whatever it is: somebody else reads it.
    Any,
}

/// The whole body of the current request; `slot` makes room for it. A large one is read into memory that is shared with the
/// engine if `links` are given, and there is room.
pub async fn read(
    session: &mut ServerSession,
    limits: &BodyLimits,
    encoding: Encoding,
    slot: &mut Slot,
    links: Option<&Links>,
) -> Result<Bytes, Refusal> {
    if encoding == Encoding::Known {
        Coding::of_body(&session.req_header().headers)?;
    }
    let declared = header_number(&session.req_header().headers, &header::CONTENT_LENGTH)?;
    if declared.is_some_and(|length| length > limits.bytes_max) {
        return Err(Refusal::TooLarge { what: "the body", limit: limits.bytes_max });
    }
    slot.reserve(declared.unwrap_or(0))?;
    let large = declared.and_then(|bytes| Some((LargeBody::begin(session, bytes)?, bytes)));
    if expects_continue(session) {
        session.write_continue_response().await.map_err(|_| Refusal::ClientGone)?;
    }
    let body = async {
        match large {
            Some((large, bytes)) => collect_large(session, large, bytes, links).await,
            None => collect(session, declared, limits, slot).await,
        }
    };
    let read = tokio::time::timeout(limits.time_max, body).await;
    let read = read.unwrap_or(Err(Refusal::BodyTimeout { waited: limits.time_max }));
    if matches!(read, Err(Refusal::Invalid(_))) {
        session.set_keepalive(None); // where it ends, and another request begins, is not known
    }
    read
}

/// The whole body of the current request, inflated.
pub(crate) async fn read_plain(
    session: &mut ServerSession,
    limits: &BodyLimits,
    slot: &mut Slot,
) -> Result<Bytes, Refusal> {
    let body = read(session, limits, Encoding::Known, slot, None).await?;
    inflate(session, body, limits, slot).await
}

/// A body that was read, without what it was compressed with; `slot` makes room for what it grows to.
pub(crate) async fn inflate(
    session: &mut ServerSession,
    body: Bytes,
    limits: &BodyLimits,
    slot: &mut Slot,
) -> Result<Bytes, Refusal> {
    match Coding::of_body(&session.req_header().headers)? {
        // Where there is nothing to say, nobody says it in gzip.
        Some(coding) if !body.is_empty() => coding.inflate(body, limits, slot).await,
        Some(_) | None => Ok(body),
    }
}

async fn collect_large(
    session: &mut ServerSession,
    large: LargeBody,
    bytes: usize,
    links: Option<&Links>,
) -> Result<Bytes, Refusal> {
    if let Some(mut place) = links.and_then(|links| links.place(bytes)) {
        large.read(session, &mut place.as_mut()).await?;
        return Ok(place.freeze());
    }
    let mut whole = BytesMut::with_capacity(bytes);
    large.read(session, &mut (&mut whole).limit(bytes)).await?;
    Ok(whole.freeze())
}

async fn collect(
    session: &mut ServerSession,
    declared: Option<usize>,
    limits: &BodyLimits,
    slot: &mut Slot,
) -> Result<Bytes, Refusal> {
    let mut whole = Growing::up_to(limits.bytes_max, "the body");
    while let Some(chunk) = session.read_request_body().await.map_err(|error| unreadable(&error, limits))? {
        if whole.is_empty() && declared == Some(chunk.len()) {
            return Ok(chunk); // most bodies come in one piece
        }
        if let Some(length) = declared
            && whole.is_empty()
        {
            whole.expect(length);
        }
        whole.append(&chunk, slot)?;
    }
    Ok(whole.freeze())
}

/// Why a body ended early: its client left, stalled, or does not know how to write one.
fn unreadable(error: &pingora::Error, limits: &BodyLimits) -> Refusal {
    match error.etype() {
        ErrorType::ConnectionClosed | ErrorType::ReadError => Refusal::ClientGone,
        ErrorType::ReadTimedout => Refusal::BodyTimeout { waited: limits.time_max },
        _ => Refusal::Invalid("the body is not framed as its head says".into()),
    }
}

/// Makes room for the next request on this connection after a refusal that left a small body unread: it is read
/// away, so that refusing does not cost the client its connection.
pub async fn discard(session: &mut ServerSession) {
    const WORTH_READING: usize = 64 << 10;
    let declared = header_number(&session.req_header().headers, &header::CONTENT_LENGTH).ok().flatten();
    if declared.is_some_and(|length| length <= WORTH_READING) && !expects_continue(session) {
        // Failing means that the client is gone or slow; the close that follows is right for both.
        let _ = tokio::time::timeout(Duration::from_millis(100), session.drain_request_body()).await;
    }
}

/// Reads on for a moment after an answer that left a body unread. Closing at once would make the system send a
/// reset, which can overtake the answer (RFC 9112, 9.6).
pub async fn linger(session: &mut ServerSession) {
    const BYTES_MAX: usize = 16 << 20;
    const SILENCE_MAX: Duration = Duration::from_millis(200);
    let mut read = large_body::skip(session, BYTES_MAX, SILENCE_MAX).await;
    if session.is_body_done() || expects_continue(session) {
        return;
    }
    while read < BYTES_MAX {
        match tokio::time::timeout(SILENCE_MAX, session.read_request_body()).await {
            Ok(Ok(Some(chunk))) => read += chunk.len(),
            Ok(Ok(None) | Err(_)) | Err(_) => return,
        }
    }
}

/// HTTP/1.0 knows no interim answers, and has to be spared them (RFC 9110, section 10.1.1).
fn expects_continue(session: &ServerSession) -> bool {
    let knows_them = session.req_header().version > http::Version::HTTP_10;
    knows_them
        && session
            .get_header(header::EXPECT)
            .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}
