//! The body of an answer: pieces of messages, then the trailers that end it. Decides in which portions they are handed to
//! HTTP/2: in small ones, so that what a slow reader has not taken yet waits here, where it is counted, and not in the
//! connection's buffer.

use super::connection::{Connection, Overdue};
use super::exchange::Exchange;
use super::message::{ACCEPT_ENCODING, ACCEPTED, Coding, ENCODING, Outgoing};
use super::status;
use crate::refusal::Refusal;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, header};
use http_body::{Body, Frame};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

/// Handed over at once; HTTP/2 cuts it into frames.
const PORTION: usize = 64 << 10;

/// The answer to a request that has one.
pub(super) fn answer(
    mut exchange: Exchange,
    message: Outgoing,
    coding: Option<Coding>,
    connection: &Arc<Connection>,
) -> Response<tonic::body::Body> {
    exchange.answer();
    let mut response = Response::new(tonic::body::Body::empty());
    describe(response.headers_mut(), coding);
    exchange.describe(response.headers_mut());
    let message = match coding {
        Some(coding) => message.compressed(coding),
        None => message,
    };
    let body = Whole {
        _overdue: connection.writing(message.len()),
        pieces: message.pieces,
        exchange: Some(exchange),
    };
    *response.body_mut() = tonic::body::Body::new(body);
    response
}

/// What every answer with messages says of itself.
pub(super) fn describe(headers: &mut HeaderMap, coding: Option<Coding>) {
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static(ACCEPTED));
    if let Some(coding) = coding {
        headers.insert(ENCODING, HeaderValue::from_static(coding.name()));
    }
}

/// The answer to a request that has none.
pub(super) fn refuse(mut exchange: Exchange, refusal: &Refusal) -> Response<tonic::body::Body> {
    exchange.refuse(refusal);
    let mut response = Response::new(tonic::body::Body::empty());
    let headers = response.headers_mut();
    *headers = status::metadata(refusal);
    describe(headers, None);
    exchange.describe(headers);
    exchange.close();
    response
}

/// One message and the end.
struct Whole {
    pieces: VecDeque<Bytes>,
    /// Until its end is handed over.
    exchange: Option<Exchange>,
    _overdue: Overdue,
}

impl Body for Whole {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Some(portion) = portion(&mut self.pieces) {
            return Poll::Ready(Some(Ok(Frame::data(portion))));
        }
        Poll::Ready(self.exchange.take().map(|exchange| {
            exchange.close();
            Ok(Frame::trailers(status::ok()))
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.exchange.is_none()
    }
}

/// The next of what is left.
pub(super) fn portion(pieces: &mut VecDeque<Bytes>) -> Option<Bytes> {
    let piece = pieces.front_mut()?;
    if piece.len() > PORTION { Some(piece.split_to(PORTION)) } else { pieces.pop_front() }
}
