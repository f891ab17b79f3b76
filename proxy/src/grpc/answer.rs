//! The body of an answer: pieces of messages, then the trailers that end it. Decides in which portions they are handed to
//! HTTP/2: in small ones, so that what a slow reader has not taken yet waits here, and not in the connection's buffer. The room
//! of an answer is given back once all of it has left that buffer as well.

use super::connection::{Connection, Overdue};
use super::exchange::Exchange;
use super::message::{ACCEPT_ENCODING, ACCEPTED, Coding, ENCODING, Outgoing};
use super::status;
use crate::refusal::Refusal;
use crate::slots::Slot;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, header};
use http_body::{Body, Frame};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

/// Handed over at once; HTTP/2 cuts it into frames.
pub(super) const PORTION: usize = 64 << 10;

/// The answer to a request that has one.
pub(super) fn answer(
    mut exchange: Exchange,
    message: Outgoing,
    coding: Option<Coding>,
    connection: &Arc<Connection>,
) -> Response<tonic::body::Body> {
    let message = match coding {
        Some(coding) => message.compressed(coding),
        None => message,
    };
    exchange.answer(message.len());
    let mut response = Response::new(tonic::body::Body::empty());
    describe(response.headers_mut(), coding);
    exchange.describe(response.headers_mut());
    let overdue = connection.writing(Instant::now());
    let leaving = Leaving::new(message, exchange.record.slot.take(), overdue);
    let body = Whole { leaving, exchange: Some(exchange) };
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
    leaving: Leaving,
    /// Until its end is handed over.
    exchange: Option<Exchange>,
}

impl Body for Whole {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Some(portion) = self.leaving.portion(Instant::now()) {
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

/// A message that is being written.
#[derive(Debug)]
pub(super) struct Leaving {
    pieces: VecDeque<Bytes>,
    taken: Arc<Taken>,
}

/// What a message takes for as long as any of it is here.
#[derive(Debug)]
struct Taken {
    _room: Option<Slot>,
    overdue: Overdue,
}

/// A piece, with what the message takes.
struct Piece {
    bytes: Bytes,
    _taken: Arc<Taken>,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Leaving {
    /// One that has this room.
    pub(super) fn new(message: Outgoing, room: Option<Slot>, overdue: Overdue) -> Self {
        let taken = Arc::new(Taken { _room: room, overdue });
        let owned = |bytes| Bytes::from_owner(Piece { bytes, _taken: taken.clone() });
        let pieces = message.pieces.into_iter().map(owned).collect();
        Self { pieces, taken }
    }

    /// The next of what is left, for which there is place.
    pub(super) fn portion(&mut self, now: Instant) -> Option<Bytes> {
        let piece = self.pieces.front_mut()?;
        let portion =
            if piece.len() > PORTION { piece.split_to(PORTION) } else { self.pieces.pop_front()? };
        self.taken.overdue.go_on(self.pieces.is_empty(), now);
        Some(portion)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slots::Slots;
    use policies::Room;

    #[test]
    fn the_room_of_an_answer_comes_back_when_the_last_of_it_has_left_or_nobody_wants_it() {
        let (slots, connection) = (Arc::new(Slots::new(10, 1 << 20)), Arc::new(Connection::default()));
        let leaving = || {
            let mut slot = slots.enter(Room::ALL).unwrap();
            slot.answer(100_001).unwrap();
            let pieces = VecDeque::from([Bytes::from_static(b"."), vec![7; 100_000].into()]);
            Leaving::new(Outgoing { pieces }, Some(slot), connection.writing(Instant::now()))
        };
        let mut whole = leaving();
        let mut portions: Vec<_> = std::iter::from_fn(|| whole.portion(Instant::now())).collect();
        assert_eq!(portions.iter().map(Bytes::len).collect::<Vec<_>>(), [1, PORTION, 100_000 - PORTION]);
        drop(whole);
        for _ in 0..3 {
            assert_eq!((slots.bytes().0, slots.requests().0), (100_001, 1), "HTTP/2 has some of it");
            portions.pop();
        }
        assert_eq!((slots.bytes().0, slots.requests().0), (0, 0));
        let mut left = leaving();
        let _ = left.portion(Instant::now());
        assert_eq!(slots.bytes().0, 100_001);
        drop(left);
        assert_eq!((slots.bytes().0, slots.requests().0), (0, 0));
    }
}
