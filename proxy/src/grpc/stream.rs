//! `ModelStreamInfer`: many requests over one stream, worked on at once, answered in their order, as Triton does. Decides
//! how many of them are under way; a request that fails is answered with its error, and the stream goes on.
//!
//! Each is a request of its own for policies, limits and metrics.

use super::answer::{Leaving, describe};
use super::call::{GrpcCall, until, within};
use super::connection::Connection;
use super::decode::Names;
use super::exchange::Exchange;
use super::message::{Coding, Messages, Outgoing};
use super::{Grpc, status};
use crate::refusal::Refusal;
use crate::route::Target;
use crate::slots::Slot;
use bytes::Bytes;
use http::{HeaderMap, Response, request};
use http_body::{Body, Frame};
use hyper::body::Incoming;
use protocol::inference::{ModelInferResponse, ModelStreamInferResponse};
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;
use tokio::sync::{mpsc, oneshot};

/// Requests of one stream that are under way or wait for their turn to be answered.
const AT_ONCE: usize = 32;

/// With `triton_grpc_error: true` in its metadata, the first error ends the stream, as its status.
const ENDS_AT_ERROR: &str = "triton_grpc_error";

/// A stream, as all of its requests know it.
struct Stream {
    grpc: Arc<Grpc>,
    head: Arc<request::Parts>,
    until: Option<Instant>,
    route: &'static str,
    coding: Option<Coding>,
}

/// A request that has been read, and its place in the order.
struct Asked {
    answer: oneshot::Receiver<Answer>,
    /// Dropped when nobody waits for the answer any more.
    _waits: oneshot::Sender<Infallible>,
}

/// What is said to one request.
enum Answer {
    Message(Outgoing, Option<Exchange>),
    /// The last of the stream.
    Status(HeaderMap),
}

/// Begins to answer.
pub(super) fn answer(
    grpc: Arc<Grpc>,
    head: request::Parts,
    messages: Messages<Incoming>,
    codings: (&'static str, Option<Coding>),
    connection: &Arc<Connection>,
) -> Result<Response<tonic::body::Body>, Refusal> {
    let (route, coding) = codings;
    let until = until(&head.headers, Instant::now())?;
    let (asked, answers) = mpsc::channel(AT_ONCE);
    let stream = Arc::new(Stream { grpc, head: Arc::new(head), until, route, coding });
    tokio::spawn(async move { stream.read(messages, asked).await });
    let body = Answers {
        answers: Some(answers),
        next: None,
        leaving: None,
        exchange: None,
        connection: connection.clone(),
    };
    let mut response = Response::new(tonic::body::Body::new(body));
    describe(response.headers_mut(), coding);
    Ok(response)
}

impl Stream {
    /// Reads requests until the client has no more, or takes no more answers.
    async fn read(self: Arc<Self>, mut messages: Messages<Incoming>, asked: mpsc::Sender<Asked>) {
        loop {
            let Ok(place) = asked.reserve().await else { return };
            let next = tokio::select! {
                next = self.next(&mut messages) => next,
                () = asked.closed() => return,
            };
            let (answer, receiver) = oneshot::channel();
            let (waits, gone) = oneshot::channel();
            place.send(Asked { answer: receiver, _waits: waits });
            match next {
                Ok(None) => return drop(answer.send(Answer::Status(status::ok()))),
                Ok(Some(Ok((message, slot)))) => {
                    let stream = self.clone();
                    tokio::spawn(async move { answer.send(stream.infer(message, slot, gone).await) });
                }
                Ok(Some(Err(refusal))) => {
                    let exchange = Exchange::begin(&self.grpc, &self.head.headers, self.route);
                    drop(answer.send(self.refuse(exchange, &refusal, "")));
                }
                // Those that are under way know it themselves.
                Err(Refusal::ClientGone) => return,
                // Where the next message would begin, nobody knows.
                Err(refusal) => {
                    let mut exchange = Exchange::begin(&self.grpc, &self.head.headers, self.route);
                    exchange.refuse(&refusal);
                    exchange.close();
                    return drop(answer.send(Answer::Status(status::metadata(&refusal))));
                }
            }
        }
    }

    /// The next message, if there is one, and room for it; an error on the outside ends the stream.
    async fn next(
        &self,
        messages: &mut Messages<Incoming>,
    ) -> Result<Option<Result<(Bytes, Slot), Refusal>>, Refusal> {
        let Some(prefix) = messages.next().await? else { return Ok(None) };
        let limits = &self.grpc.path.body;
        let slot = self.grpc.path.room_for(&self.head).and_then(|mut slot| {
            prefix.reserve(limits.bytes_max, &mut slot)?;
            Ok(slot)
        });
        match slot {
            Ok(mut slot) => {
                let message = within(limits, messages.rest(prefix, limits.bytes_max, &mut slot)).await;
                match message {
                    Ok(message) => Ok(Some(Ok((message, slot)))),
                    // What cannot be inflated has been read all the same.
                    Err(refusal @ (Refusal::TooLarge { .. } | Refusal::Overloaded(_))) => {
                        Ok(Some(Err(refusal)))
                    }
                    Err(refusal) => Err(refusal),
                }
            }
            Err(refusal) => {
                within(limits, messages.skip(prefix)).await?;
                Ok(Some(Err(refusal)))
            }
        }
    }

    async fn infer(&self, message: Bytes, slot: Slot, gone: oneshot::Receiver<Infallible>) -> Answer {
        let mut exchange = Exchange::begin(&self.grpc, &self.head.headers, self.route);
        let names = match Names::of(&message) {
            Ok(names) => names,
            Err(refusal) => return self.refuse(exchange, &refusal, ""),
        };
        let mut call = GrpcCall::of_stream(self.head.clone(), self.until, (message, names.clone()), gone);
        drop(slot); // taken again when it is let in, before anybody else has a turn on this thread
        let target = Target { model: &names.model, pinned: names.version };
        match self.grpc.path.infer(&mut call, target, &mut exchange.record).await {
            Ok(message) => {
                let message = self.coded(message);
                exchange.answer(message.len());
                Answer::Message(message, Some(exchange))
            }
            Err(refusal) => self.refuse(exchange, &refusal, &names.id),
        }
    }

    fn refuse(&self, mut exchange: Exchange, refusal: &Refusal, id: &str) -> Answer {
        exchange.refuse(refusal);
        exchange.close();
        if self.head.headers.get(ENDS_AT_ERROR).is_some_and(|value| value == "true") {
            return Answer::Status(status::metadata(refusal));
        }
        let message = ModelStreamInferResponse {
            error_message: refusal.message(),
            infer_response: Some(ModelInferResponse { id: id.to_owned(), ..ModelInferResponse::default() }),
        };
        Answer::Message(self.coded(Outgoing::of(&message)), None)
    }

    fn coded(&self, message: Outgoing) -> Outgoing {
        match self.coding {
            Some(coding) => message.compressed(coding),
            None => message,
        }
    }
}

/// The answers, in the order of the requests.
struct Answers {
    /// `None` once the last has been said.
    answers: Option<mpsc::Receiver<Asked>>,
    next: Option<Asked>,
    leaving: Option<Leaving>,
    /// Of the message that is leaving.
    exchange: Option<Exchange>,
    connection: Arc<Connection>,
}

impl Body for Answers {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = &mut *self;
        loop {
            if let Some(portion) = this.leaving.as_mut().and_then(|leaving| leaving.portion(Instant::now())) {
                return Poll::Ready(Some(Ok(Frame::data(portion))));
            }
            this.leaving = None;
            if let Some(exchange) = this.exchange.take() {
                exchange.close();
            }
            let Some(answers) = &mut this.answers else { return Poll::Ready(None) };
            if this.next.is_none() {
                this.next = ready!(answers.poll_recv(context));
            }
            let Some(next) = &mut this.next else {
                this.answers = None;
                return Poll::Ready(None);
            };
            let answer = ready!(Pin::new(&mut next.answer).poll(context));
            this.next = None;
            match answer {
                Ok(Answer::Message(message, mut exchange)) => {
                    let room = exchange.as_mut().and_then(|exchange| exchange.record.slot.take());
                    let overdue = this.connection.writing(Instant::now());
                    this.leaving = Some(Leaving::new(message, room, overdue));
                    this.exchange = exchange;
                }
                Ok(Answer::Status(trailers)) => {
                    this.answers = None;
                    return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
                }
                Err(_) => {
                    let lost = Refusal::Internal("the request was dropped".into());
                    this.answers = None;
                    return Poll::Ready(Some(Ok(Frame::trailers(status::metadata(&lost)))));
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.answers.is_none() && self.leaving.is_none()
    }
}
