//! An inference over gRPC, as the request path sees it. Decides how long its caller waits, and when it has gone; reading
//! and writing are [`super::message`]'s, [`super::decode`]'s and [`super::encode`]'s.
//!
//! The model's name stands inside of the message, and limits are to be spent before it is read: so as much of it is read
//! as it takes to know the name, which is the first portion.

use super::decode::{self, Names};
use super::encode::{Form, encode};
use super::message::{Messages, Outgoing, Prefix};
use super::parameters::parameters;
use crate::body::{BodyLimits, Encoding};
use crate::call::{Call, Inferred};
use crate::deadline::{TIMEOUT, header_number};
use crate::decode::InferRequest;
use crate::infer::InferPath;
use crate::refusal::Refusal;
use crate::remote::Passed;
use crate::slots::Slot;
use crate::translated::Parameters;
use bytes::Bytes;
use http::{HeaderMap, Method, request};
use hyper::body::Incoming;
use policies::Tensors;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;
use wire::ModelEntry;

/// A request of the Open Inference Protocol over gRPC.
pub(super) struct GrpcCall {
    head: Arc<request::Parts>,
    /// When its client stops waiting, if it says so in the metadata.
    until: Option<Instant>,
    message: Message,
    names: Names,
    form: Form,
    /// Ends when nobody waits for the answer any more.
    gone: Option<oneshot::Receiver<Infallible>>,
}

enum Message {
    /// Not all of it has been read.
    Coming(Messages<Incoming>, Prefix),
    Here(Bytes),
}

impl GrpcCall {
    /// A request of its own, of which as much is read as tells who is asked.
    pub(super) async fn alone(
        head: request::Parts,
        mut messages: Messages<Incoming>,
        path: &InferPath,
        gone: oneshot::Receiver<Infallible>,
    ) -> Result<Self, Refusal> {
        let (head, limits) = (Arc::new(head), &path.body);
        let until = until(&head.headers, Instant::now())?;
        let begin = async {
            let prefix =
                messages.next().await?.ok_or_else(|| Refusal::Invalid("there is no message".into()))?;
            prefix.fits(limits.bytes_max)?;
            let names = match messages.arrived(prefix) {
                Some((message, true)) => Some(Names::of(message)?),
                Some((beginning, false)) => Names::of_beginning(beginning),
                None => None,
            };
            if let Some(names) = names {
                return Ok((Message::Coming(messages, prefix), names));
            }
            // Its room is given back at once, and taken again when it is let in.
            let mut slot = path.room_for(&head)?;
            prefix.reserve(limits.bytes_max, &mut slot)?;
            let message = messages.rest(prefix, limits.bytes_max, &mut slot).await?;
            let names = Names::of(&message)?;
            Ok((Message::Here(message), names))
        };
        let (message, names) = within(limits, begin).await?;
        Ok(Self { head, until, message, names, form: Form::Alone, gone: Some(gone) })
    }

    /// One of the requests of a stream, read whole.
    pub(super) fn of_stream(
        head: Arc<request::Parts>,
        until: Option<Instant>,
        (message, names): (Bytes, Names),
        gone: oneshot::Receiver<Infallible>,
    ) -> Self {
        Self { head, until, message: Message::Here(message), names, form: Form::InStream, gone: Some(gone) }
    }

    /// Who is asked.
    pub(super) fn names(&self) -> &Names {
        &self.names
    }
}

impl Call for GrpcCall {
    type Answer = Outgoing;

    fn head(&self) -> &request::Parts {
        &self.head
    }

    fn timeout(&self) -> Result<Option<Duration>, Refusal> {
        let header = header_number(&self.head.headers, &TIMEOUT)?.map(|ms| Duration::from_millis(ms as u64));
        let left = self.until.map(|until| until.saturating_duration_since(Instant::now()));
        Ok(header.into_iter().chain(left).min())
    }

    fn length(&self) -> Option<u64> {
        Some(match &self.message {
            Message::Here(message) => message.len() as u64,
            Message::Coming(_, prefix) => prefix.len() as u64,
        })
    }

    async fn read(&mut self, limits: &BodyLimits, _: Encoding, slot: &mut Slot) -> Result<Bytes, Refusal> {
        match &mut self.message {
            Message::Here(message) => {
                slot.reserve(message.len())?;
                Ok(message.clone())
            }
            Message::Coming(messages, prefix) => {
                prefix.reserve(limits.bytes_max, slot)?;
                within(limits, messages.rest(*prefix, limits.bytes_max, slot)).await
            }
        }
    }

    fn decode(&mut self, body: &Bytes, _: Option<&ModelEntry>) -> Result<InferRequest, Refusal> {
        decode::decode(body, &self.names)
    }

    fn parameter(&self, body: &Bytes, name: &str) -> Option<String> {
        decode::parameter_of(body, name)
    }

    fn parameters(&self, body: &Bytes) -> Result<Parameters, Refusal> {
        parameters(body)
    }

    fn forward(&self, _: Tensors) -> Option<(Method, HeaderMap)> {
        None
    }

    fn encode(&self, request: &InferRequest, inferred: Inferred<'_>) -> Result<Outgoing, Refusal> {
        encode(request, inferred, self.form)
    }

    fn pass(&self, _: Passed) -> Outgoing {
        unreachable!("`forward` says that no other server speaks this protocol")
    }

    fn bytes(answer: &Outgoing) -> usize {
        answer.len()
    }

    async fn gone(&mut self) {
        if let Some(gone) = &mut self.gone {
            let Err(_dropped) = gone.await;
            self.gone = None;
        }
    }
}

/// Reads a message that has begun, within the time that one may take.
pub(super) async fn within<T>(
    limits: &BodyLimits,
    reading: impl Future<Output = Result<T, Refusal>>,
) -> Result<T, Refusal> {
    let waited = limits.time_max;
    tokio::time::timeout(waited, reading).await.map_err(|_| Refusal::BodyTimeout { waited })?
}

/// When the client stops waiting: `grpc-timeout` counts from when it has asked.
pub(super) fn until(headers: &HeaderMap, now: Instant) -> Result<Option<Instant>, Refusal> {
    let Some(value) = headers.get("grpc-timeout") else { return Ok(None) };
    let text = value.to_str().unwrap_or_default();
    let timeout = timeout(text)
        .ok_or_else(|| Refusal::Invalid(format!("grpc-timeout `{text}` is not up to 8 digits and a unit")))?;
    Ok(now.checked_add(timeout))
}

fn timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(number * 3600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_has_up_to_eight_digits_and_a_unit() {
        assert_eq!(timeout("2S"), Some(Duration::from_secs(2)));
        assert_eq!(timeout("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        assert_eq!(timeout("1500u"), Some(Duration::from_micros(1500)));
        for nonsense in ["", "S", "2", "2s", "-2S", "+2S", "123456789S", "2.5S", "2 S", "2ü"] {
            assert_eq!(timeout(nonsense), None, "{nonsense}");
        }
    }

    #[test]
    fn it_counts_from_when_the_client_has_asked() {
        let (mut headers, now) = (HeaderMap::new(), Instant::now());
        assert_eq!(until(&headers, now), Ok(None));
        headers.insert("grpc-timeout", "300m".parse().unwrap());
        assert_eq!(until(&headers, now), Ok(Some(now + Duration::from_millis(300))));
        headers.insert("grpc-timeout", "soon".parse().unwrap());
        assert!(until(&headers, now).is_err());
    }
}
