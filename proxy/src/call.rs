//! One inference request in the protocol in which it came: what the request path asks of it. Decides how a request is
//! read and how its answer is written; never whether it is let in, nor who answers.
//!
//! The path is the same for all protocols. What differs between them stands in the implementations of [`Call`].

use crate::body::{self, BodyLimits, Encoding};
use crate::deadline::{TIMEOUT, header_number};
use crate::decode::InferRequest;
use crate::dialect::{self, Dialect, Form, tf_serving, torchserve};
use crate::encode::{Encoded, encode};
use crate::field;
use crate::links::Links;
use crate::raw_request;
use crate::refusal::Refusal;
use crate::remote::Passed;
use crate::slots::Slot;
use crate::translated::Parameters;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header, request};
use pingora::protocols::http::ServerSession;
use policies::Tensors;
use std::fmt;
use std::time::Duration;
use wire::{ModelEntry, Reply};

/// The header that says how much of a body is JSON, where tensors follow as bytes.
pub(crate) const JSON_LEN: HeaderName = HeaderName::from_static("inference-header-content-length");

/// A request that is under way.
pub trait Call: Send {
    /// An answer in the protocol's own form.
    type Answer: Send;

    /// What the policy may know of who asks.
    fn head(&self) -> &request::Parts;

    /// The label under which a version is asked for, in place of its number.
    fn label(&self) -> Option<&str> {
        None
    }

    /// How long the caller waits, if that is said outside of the body.
    fn timeout(&self) -> Result<Option<Duration>, Refusal>;

    /// How many bytes of body are coming, if that is said; they may grow where it is compressed.
    fn length(&self) -> Option<u64>;

    /// The whole body, within `limits`; `slot` makes room for it.
    fn read(
        &mut self,
        limits: &BodyLimits,
        encoding: Encoding,
        slot: &mut Slot,
    ) -> impl Future<Output = Result<Bytes, Refusal>> + Send;

    /// A body that was read, without what it was compressed with on its way; `slot` makes room for what it grows to.
    fn inflate(
        &mut self,
        body: Bytes,
        _limits: &BodyLimits,
        _slot: &mut Slot,
    ) -> impl Future<Output = Result<Bytes, Refusal>> + Send {
        std::future::ready(Ok(body))
    }

    /// The tensors of an inflated body for a model that takes what `entry` says, if the engine has it.
    fn decode(&mut self, body: &Bytes, entry: Option<&ModelEntry>) -> Result<InferRequest, Refusal>;

    /// Whether a body says nothing of datatypes, and means what the model declares: another version may take it otherwise.
    fn is_read_by_declaration(&self) -> bool {
        false
    }

    /// A parameter of the request in an inflated body, if it is a text, a whole number or a truth value. Only asked for where
    /// the policy names one.
    fn parameter(&self, body: &Bytes, name: &str) -> Option<String>;

    /// What an inflated body says beside its tensors, for another server that is asked in other words.
    fn parameters(&self, body: &Bytes) -> Result<Parameters, Refusal>;

    /// What another server that takes tensors so is to be asked, beside the body as it came; `None` where it does not understand that.
    fn forward(&self, tensors: Tensors) -> Option<(Method, HeaderMap)>;

    /// The engine's answer to `request`.
    fn encode(&self, request: &InferRequest, inferred: Inferred<'_>) -> Result<Self::Answer, Refusal>;

    /// The answer of another server to what [`Call::forward`] gave.
    fn pass(&self, passed: Passed) -> Self::Answer;

    /// Bytes of an answer that need room while it is written. One that is passed on has its own since it was read.
    fn bytes(answer: &Self::Answer) -> usize;

    /// Returns once nobody waits for the answer any more. The body has been read.
    fn gone(&mut self) -> impl Future<Output = ()> + Send;
}

/// What the engine has computed. Its tensors are not to be trusted to lie inside the payload.
#[derive(Clone, Copy, Debug)]
pub struct Inferred<'a> {
    /// The model that has answered.
    pub model: &'a str,
    /// Its version.
    pub version: u64,
    /// What the engine says of that version.
    pub entry: Option<&'a ModelEntry>,
    /// Where each output lies in `payload`.
    pub reply: &'a Reply,
    /// The outputs' bytes.
    pub payload: &'a Bytes,
}

/// A request over HTTP, in one of the protocols whose clients are understood.
pub struct HttpCall<'s> {
    session: &'s mut ServerSession,
    dialect: Dialect,
    label: Option<&'s str>,
    /// With whom memory is shared.
    links: &'s Links,
    /// How the answer is to be formed, once the body has been read.
    form: Form,
}

/// An answer over HTTP.
#[derive(Debug)]
pub enum HttpAnswer {
    /// The engine's.
    Here(Encoded),
    /// Another server's, in its own words, whatever they are.
    Elsewhere(Passed),
}

impl fmt::Debug for HttpCall<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpCall").field("dialect", &self.dialect).finish_non_exhaustive()
    }
}

impl<'s> HttpCall<'s> {
    /// A request whose head has been read, and the label in its path.
    pub fn new(
        session: &'s mut ServerSession,
        dialect: Dialect,
        label: Option<&'s str>,
        links: &'s Links,
    ) -> Self {
        Self { session, dialect, label, links, form: Form::default() }
    }

    /// Whether the tensors go on as they come: others are written anew.
    fn is_plain_binary(&self) -> bool {
        let headers = &self.head().headers;
        headers.contains_key(&JSON_LEN) && !headers.contains_key(header::CONTENT_ENCODING)
    }
}

impl Call for HttpCall<'_> {
    type Answer = HttpAnswer;

    fn head(&self) -> &request::Parts {
        self.session.req_header()
    }

    fn label(&self) -> Option<&str> {
        self.label
    }

    fn timeout(&self) -> Result<Option<Duration>, Refusal> {
        let ms = header_number(&self.head().headers, &TIMEOUT)?;
        Ok(ms.map(|ms| Duration::from_millis(ms as u64)))
    }

    fn length(&self) -> Option<u64> {
        let length = header_number(&self.head().headers, &header::CONTENT_LENGTH).ok()??;
        Some(length as u64)
    }

    async fn read(
        &mut self,
        limits: &BodyLimits,
        encoding: Encoding,
        slot: &mut Slot,
    ) -> Result<Bytes, Refusal> {
        let links = self.is_plain_binary().then_some(self.links);
        body::read(self.session, limits, encoding, slot, links).await
    }

    async fn inflate(&mut self, body: Bytes, limits: &BodyLimits, slot: &mut Slot) -> Result<Bytes, Refusal> {
        body::inflate(self.session, body, limits, slot).await
    }

    fn decode(&mut self, body: &Bytes, entry: Option<&ModelEntry>) -> Result<InferRequest, Refusal> {
        let (request, form) = match self.dialect {
            Dialect::OpenInference => {
                let json_len = header_number(&self.head().headers, &JSON_LEN)?;
                if json_len == Some(0) {
                    return raw_request::decode(body, entry);
                }
                return InferRequest::decode(body, json_len);
            }
            Dialect::TfServing => tf_serving::decode(body, dialect::declared(entry)?)?,
            Dialect::TorchServe => torchserve::decode(&self.head().headers, body, dialect::declared(entry)?)?,
        };
        self.form = form;
        Ok(request)
    }

    fn is_read_by_declaration(&self) -> bool {
        match self.dialect {
            Dialect::OpenInference => {
                header_number(&self.head().headers, &JSON_LEN).is_ok_and(|json_len| json_len == Some(0))
            }
            Dialect::TfServing | Dialect::TorchServe => true,
        }
    }

    fn parameter(&self, body: &Bytes, name: &str) -> Option<String> {
        let json_len = header_number(&self.head().headers, &JSON_LEN).ok()?;
        field::parameter(body.get(..json_len.unwrap_or(body.len()))?, name)
    }

    fn parameters(&self, body: &Bytes) -> Result<Parameters, Refusal> {
        match self.dialect {
            Dialect::OpenInference => {
                let json_len = header_number(&self.head().headers, &JSON_LEN)?.unwrap_or(body.len());
                Ok(Parameters::of_json(body.get(..json_len).unwrap_or_default()))
            }
            Dialect::TfServing | Dialect::TorchServe => Ok(Parameters::default()),
        }
    }

    fn forward(&self, tensors: Tensors) -> Option<(Method, HeaderMap)> {
        let headers = &self.head().headers;
        match (self.dialect, tensors) {
            (Dialect::OpenInference, Tensors::Json) if headers.contains_key(&JSON_LEN) => None,
            (Dialect::OpenInference, Tensors::Binary | Tensors::Json) => {
                Some((self.head().method.clone(), forwarded(headers)))
            }
            (Dialect::TfServing | Dialect::TorchServe, Tensors::Binary | Tensors::Json) => None,
        }
    }

    fn encode(&self, request: &InferRequest, inferred: Inferred<'_>) -> Result<HttpAnswer, Refusal> {
        let body = match self.dialect {
            Dialect::OpenInference => return encode(request, inferred).map(HttpAnswer::Here),
            Dialect::TfServing => tf_serving::encode(self.form, &inferred)?,
            Dialect::TorchServe => torchserve::encode(self.form, &inferred)?,
        };
        Ok(HttpAnswer::Here(Encoded { body, json_len: None }))
    }

    fn pass(&self, passed: Passed) -> HttpAnswer {
        HttpAnswer::Elsewhere(passed)
    }

    fn bytes(answer: &HttpAnswer) -> usize {
        match answer {
            HttpAnswer::Here(encoded) => encoded.body.len(),
            HttpAnswer::Elsewhere(_) => 0,
        }
    }

    async fn gone(&mut self) {
        // What can still come is the end of the connection.
        let _ = self.session.read_body_or_idle(true).await;
    }
}

/// Headers for another server. curl calls every body a form unless it is told otherwise, and this protocol has no forms: some
/// servers would refuse what is answered here.
fn forwarded(headers: &HeaderMap) -> HeaderMap {
    let mut headers = headers.clone();
    let form = b"application/x-www-form-urlencoded";
    if headers.get(header::CONTENT_TYPE).is_some_and(|media| media.as_bytes().starts_with(form)) {
        let is_json = !headers.contains_key(&JSON_LEN);
        let media = if is_json { "application/json" } else { "application/octet-stream" };
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media));
    }
    headers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_curl_calls_a_form_is_called_what_it_is() {
        let forwarded = |media: &'static str, more: Option<HeaderName>| {
            let mut headers = HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static(media))]);
            headers.extend(more.map(|name| (name, HeaderValue::from_static("7"))));
            forwarded(&headers)[header::CONTENT_TYPE].to_str().unwrap().to_owned()
        };
        let form = "application/x-www-form-urlencoded";
        assert_eq!(forwarded(form, None), "application/json");
        assert_eq!(forwarded(form, Some(JSON_LEN)), "application/octet-stream");
        assert_eq!(forwarded("text/plain", None), "text/plain", "what is meant is left as it is");
    }
}
