//! What happens between two requests of a connection, and how an answer is written. Decides nothing about inference: that is
//! [`crate::infer`]'s.
//!
//! Pingora accepts connections and speaks HTTP. Its proxying is not entered: the engine is reached over our own link, and what
//! another server answers takes the same path.

use crate::body;
use crate::call::{HttpAnswer, HttpCall, JSON_LEN};
use crate::compression::{Coding, WORTH_COMPRESSING};
use crate::describe;
use crate::dialect::{Dialect, management, v1};
use crate::infer::{InferPath, PINNED};
use crate::label;
use crate::openapi;
use crate::page::Page;
use crate::readiness::Readiness;
use crate::record::{Record, Watchers};
use crate::refusal::Refusal;
use crate::remote::Passed;
use crate::repository::Repository;
use crate::request_id::REQUEST_ID;
use crate::route::{self, Route, Target};
use crate::slow_reader;
use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, Method, StatusCode, Version, header};
use percent_encoding::percent_decode_str;
use pingora::ErrorType;
use pingora::apps::{HttpPersistentSettings, HttpServerApp, HttpServerOptions, ReusedHttpStream};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::http::ServerSession;
use pingora::server::ShutdownWatch;
use serde::Serialize;
use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;
use utoipa::ToSchema;
use wire::Action;

/// The HTTP service.
#[derive(Debug)]
pub struct Service {
    /// The infer path.
    pub path: Arc<InferPath>,
    /// What is loaded.
    pub repository: Repository,
    /// Whether traffic may come.
    pub readiness: Readiness,
    /// Who is told of requests that are over.
    pub watchers: Watchers,
    /// What pingora is told of connections.
    pub options: HttpServerOptions,
}

/// A connection that stays silent between requests for this long is closed.
const KEEPALIVE_SECONDS: u64 = 75;
/// A client that stops reading or writing in the middle of a message for this long is dropped.
pub(crate) const STALL_MAX: Duration = Duration::from_secs(30);

pub(crate) const VERSION: HeaderName = HeaderName::from_static("x-penstock-version");
const PICK: HeaderName = HeaderName::from_static("x-penstock-pick");
pub(crate) const GENERATION: HeaderName = HeaderName::from_static("x-penstock-generation");
pub(crate) const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
pub(crate) const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

#[async_trait]
impl HttpServerApp for Service {
    /// One request. The connection, if it is there for another.
    async fn process_new_http(
        self: &Arc<Self>,
        mut session: ServerSession,
        shutdown: &ShutdownWatch,
    ) -> Option<ReusedHttpStream> {
        if !self.has_request(&mut session, shutdown).await {
            return None;
        }
        if *shutdown.borrow() {
            session.set_keepalive(None);
        }
        let mut record = Record::begin(&self.watchers.metrics);
        let written = self.respond(&mut session, &mut record).await;
        if written.is_err() && record.refusal.is_none() {
            record.refuse(&Refusal::ClientGone);
        }
        record.close(session.req_header().uri.path(), &self.watchers);
        written.ok()?; // a client that leaves is no error of ours
        let settings = HttpPersistentSettings::for_session(&session);
        let reusable = session.finish().await.ok()??;
        Some(ReusedHttpStream::from_reusable_stream(reusable, settings))
    }

    fn server_options(&self) -> Option<&HttpServerOptions> {
        Some(&self.options)
    }
}

impl Service {
    /// Whether the connection brings another request, of which the head has been read. What has come before the end is answered.
    async fn has_request(&self, session: &mut ServerSession, shutdown: &ShutdownWatch) -> bool {
        let mut shutdown = shutdown.clone();
        let read = tokio::select! {
            biased;
            read = session.read_request() => read,
            _ = shutdown.wait_for(|has_begun| *has_begun) => return false,
        };
        let refused = match read {
            Ok(true) => match unacceptable(session.req_header()) {
                None => return true,
                Some(refusal) => refusal,
            },
            Err(error) if error.etype == ErrorType::InvalidHTTPHeader => Refusal::Invalid(unreadable(&error)),
            Ok(false) | Err(_) => return false, // it has left
        };
        self.watchers.metrics.refuse(refused.reason(), "");
        if let Ok((head, body)) = Answer::refusal(Dialect::OpenInference, &refused).last() {
            let _ = session.write_error_response(head, body).await; // it may have left
        }
        session.shutdown().await;
        false
    }

    async fn respond(&self, session: &mut ServerSession, record: &mut Record) -> pingora::Result<()> {
        set_timeouts(session);
        record.identify(&session.req_header().headers, &self.watchers);
        let dialect = Dialect::of_path(session.req_header().uri.path());
        let answer = match self.answer(session, record).await {
            Ok(answer) => answer,
            Err(refusal) => {
                record.refuse(&refusal);
                if record.version.is_none() {
                    record.ask_in_vain(session.req_header().uri.path());
                }
                if matches!(refusal, Refusal::ClientGone) {
                    record.status = refusal.status().as_u16();
                    session.set_keepalive(None);
                    return Ok(());
                }
                body::discard(session).await;
                Answer::refusal(dialect, &refusal)
            }
        };
        record.status = answer.status.as_u16();
        if self.readiness.drain.has_begun() {
            session.set_keepalive(None); // the client's next request is for another process
        }
        write(session, answer, record).await?;
        body::linger(session).await;
        Ok(())
    }

    async fn answer(&self, session: &mut ServerSession, record: &mut Record) -> Result<Answer, Refusal> {
        // Cheap to clone, and the path must outlive the reads of the body.
        let uri = session.req_header().uri.clone();
        record.method = session.req_header().method.clone();
        let path = decoded(uri.path())?;
        let route = Route::parse(&record.method, &path)?;
        record.route = route.name();
        match route {
            Route::Infer(dialect, address) => {
                let mut call = HttpCall::new(session, dialect, address.label(), &self.path.links);
                let answer = self.path.infer(&mut call, address.target(), record).await?;
                let answer = Answer::inferred(answer).compressed(&session.req_header().headers).await;
                if let (Some(_), Some(slot)) = (answer.coding, &mut record.slot) {
                    slot.keep(answer.body.len());
                }
                Ok(answer)
            }
            Route::Server => Ok(Answer::json(StatusCode::OK, &describe::server(self.repository.control))),
            Route::Live => Ok(Answer::json(StatusCode::OK, &describe::live())),
            Route::Ready => Ok(Answer::readiness(None, self.readiness.server(), record)),
            Route::Model(target) => {
                let models = self.path.directory.load();
                Ok(Answer::json(
                    StatusCode::OK,
                    &describe::model(&models, self.path.typical(&models, target))?,
                ))
            }
            Route::Repository => Ok(Answer::json(StatusCode::OK, &self.repository.index(session).await?)),
            Route::Order(action, target) => {
                self.repository.order(session, action, target).await?;
                Ok(Answer::empty())
            }
            Route::Extension(extension) => self.extension(session, extension).await,
            Route::ModelReady(target) => {
                Ok(Answer::readiness(Some(target.model), self.readiness.target(target)?, record))
            }
            Route::Index => {
                let accepts_html = accepts_html(session);
                let host = session.get_header(header::HOST).and_then(|host| host.to_str().ok());
                let here = session.server_addr().map(ToString::to_string);
                Ok(Answer::page(accepts_html, self.page(host.or(here.as_deref()))))
            }
            Route::OpenApi => Ok(Answer { body: openapi::json(), ..Answer::empty() }),
            Route::V1(question) => self.v1(question),
            Route::TorchServe(question) => self.torchserve(session, question, record).await,
        }
    }

    fn page(&self, host: Option<&str>) -> Page {
        let (models, generation) = (self.path.directory.load(), self.path.live.load());
        Page::new(&models, &generation.snapshot, &self.path.ledger, host)
    }

    /// Questions of TensorFlow Serving's and KServe V1's clients.
    fn v1(&self, question: route::v1::Question<'_>) -> Result<Answer, Refusal> {
        use route::v1::Question;
        let models = self.path.directory.load();
        let target = |address| label::target(&self.path.live.load().snapshot, &models, address);
        Ok(match question {
            Question::Models => Answer::json(StatusCode::OK, &v1::names(&models)),
            Question::Status(address) => {
                let target = target(address)?;
                let is_ready = self.readiness.target(target)?.is_ok();
                Answer::json(StatusCode::OK, &v1::status(&models, target, is_ready)?)
            }
            Question::Metadata(address) => {
                let target = self.path.typical(&models, target(address)?);
                Answer::json(StatusCode::OK, &v1::metadata(&models, target)?)
            }
        })
    }

    /// Questions of TorchServe's clients.
    async fn torchserve(
        &self,
        session: &mut ServerSession,
        question: route::torchserve::Question<'_>,
        record: &mut Record,
    ) -> Result<Answer, Refusal> {
        use route::torchserve::Question;
        let models = self.path.directory.load();
        let uri = session.req_header().uri.clone();
        let query = uri.query().unwrap_or_default();
        let ok = StatusCode::OK;
        Ok(match question {
            Question::Ping => {
                let readiness = self.readiness.server();
                record.is_unready = readiness.is_err();
                let status = if readiness.is_ok() { ok } else { StatusCode::SERVICE_UNAVAILABLE };
                Answer::json(status, &management::health(readiness))
            }
            Question::Models => Answer::json(ok, &management::list(&models, query)?),
            Question::Describe(target) => {
                Answer::json(ok, &management::describe(&models, self.path.typical(&models, target))?)
            }
            Question::DescribeAll(model) => Answer::json(ok, &management::describe_all(&models, model)?),
            Question::Register => {
                let target = Target { model: management::registered(query)?, pinned: None };
                self.repository.order(session, Action::Load, target).await?;
                Answer::json(ok, &management::done(target, "registered"))
            }
            Question::Unregister(target) => {
                self.repository.order(session, Action::Unload, target).await?;
                Answer::json(ok, &management::done(target, "unregistered"))
            }
        })
    }
}

/// A slash that is encoded would divide a path for us, and not for whoever stands before us and lets only some paths through.
fn decoded(path: &str) -> Result<Cow<'_, str>, Refusal> {
    let slashes = |text: &str| memchr::memchr_iter(b'/', text.as_bytes()).count();
    let decoded = percent_decode_str(path).decode_utf8();
    let decoded = decoded.map_err(|_| Refusal::NotFound("the path is not UTF-8".into()))?;
    if matches!(decoded, Cow::Owned(_)) && slashes(&decoded) > slashes(path) {
        return Err(Refusal::NotFound(format!("no such path: {path}")));
    }
    Ok(decoded)
}

/// What is wrong with the head of a request.
fn unreadable(error: &pingora::Error) -> String {
    let why = match (&error.cause, &error.context) {
        (Some(cause), _) => cause.to_string(),
        (None, Some(context)) => context.to_string(),
        (None, None) => error.etype.as_str().to_owned(),
    };
    format!("the head of the request is not HTTP/1.1: {why}")
}

/// Why a connection cannot go on after this head, if it cannot.
fn unacceptable(head: &RequestHeader) -> Option<Refusal> {
    if head.method == Method::CONNECT {
        // It would turn what follows into something else than HTTP (RFC 9110, 9.3.6).
        return Some(Refusal::Method { allow: "GET, POST" });
    }
    // Several are refused as the head is read.
    if head.version == Version::HTTP_11 && !head.headers.contains_key(header::HOST) {
        // RFC 9112, 3.2.
        return Some(Refusal::Invalid("the request has no Host header".into()));
    }
    // Where such a body ends, nobody here knows (RFC 9112, 6.1).
    let mut codings = head.headers.get_all(header::TRANSFER_ENCODING).iter();
    let unknown = codings.find(|coding| !coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked"))?;
    let named = String::from_utf8_lossy(unknown.as_bytes());
    Some(Refusal::Unsupported(format!("transfer coding `{named}`; known is chunked")))
}

/// Whether a person with a browser asks.
fn accepts_html(session: &ServerSession) -> bool {
    let accepted = session.get_header(header::ACCEPT).and_then(|accept| accept.to_str().ok());
    accepted.is_some_and(|accept| accept.contains("text/html"))
}

fn set_timeouts(session: &mut ServerSession) {
    // Pingora keeps connections open for ever unless told so at each request; where it has already decided
    // to close, that stands.
    if session.get_keepalive().is_some() {
        session.set_keepalive(Some(KEEPALIVE_SECONDS));
    }
    session.set_read_timeout(Some(STALL_MAX));
    // A client may send its next request before this one is answered (RFC 9112, 9.3.2).
    session.set_pipelining_enabled(true);
}

/// What the protocol says of readiness, and why not.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ReadyBody<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    ready: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// A whole response.
#[derive(Debug)]
pub(crate) struct Answer {
    status: StatusCode,
    content_type: &'static str,
    /// Those of another server's answer, in place of ours.
    passed: Option<HeaderMap>,
    body: Bytes,
    json_len: Option<usize>,
    /// Whether another client would get it compressed, or as it is.
    varies: bool,
    coding: Option<Coding>,
    retry_after: Option<Duration>,
    allow: Option<&'static str>,
}

impl Answer {
    pub(crate) fn json(status: StatusCode, body: &impl Serialize) -> Self {
        let body = serde_json::to_vec(body).expect("our own types serialise").into();
        Self { status, body, ..Self::empty() }
    }

    fn empty() -> Self {
        Self {
            status: StatusCode::OK,
            content_type: "application/json",
            passed: None,
            body: Bytes::new(),
            json_len: None,
            varies: false,
            coding: None,
            retry_after: None,
            allow: None,
        }
    }

    /// For a person, with a browser or without.
    fn page(is_html: bool, page: Page) -> Self {
        let (content_type, text) = if is_html {
            ("text/html; charset=utf-8", page.html())
        } else {
            ("text/plain; charset=utf-8", page.text())
        };
        Self { content_type, body: text.into(), ..Self::empty() }
    }

    fn inferred(answer: HttpAnswer) -> Self {
        let encoded = match answer {
            HttpAnswer::Here(encoded) => encoded,
            HttpAnswer::Elsewhere(Passed { status, headers, body, .. }) => {
                return Self { status, passed: Some(headers), body, ..Self::empty() };
            }
        };
        let content_type =
            if encoded.json_len.is_some() { "application/octet-stream" } else { "application/json" };
        Self { content_type, body: encoded.body, json_len: encoded.json_len, ..Self::empty() }
    }

    /// As its client wants it. Only what has been inferred is compressed, as Triton does: its asyncio client accepts
    /// compressed answers to all that it asks, and inflates no others.
    async fn compressed(self, headers: &HeaderMap) -> Self {
        if self.passed.is_some() || self.body.len() < WORTH_COMPRESSING {
            return self;
        }
        let mut answer = Self { varies: true, ..self };
        if let Some(coding) = Coding::of_answer(headers)
            && let Some(body) = coding.compress(&answer.body).await
        {
            (answer.body, answer.coding) = (body.into(), Some(coding));
        }
        answer
    }

    /// 503 rather than Triton's 400: every prober takes both for "not ready", and only this says "not now".
    fn readiness(name: Option<&str>, readiness: Result<(), String>, record: &mut Record) -> Self {
        record.is_unready = readiness.is_err();
        let status = if readiness.is_ok() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        Self::json(status, &ReadyBody { name, ready: readiness.is_ok(), reason: readiness.err() })
    }

    fn refusal(dialect: Dialect, refusal: &Refusal) -> Self {
        let body = dialect.refusal(refusal);
        let allow = match refusal {
            Refusal::Method { allow } => Some(*allow),
            Refusal::Invalid(_)
            | Refusal::OutputsTooLarge(_)
            | Refusal::NotFound(_)
            | Refusal::Forbidden(_)
            | Refusal::Unsupported(_)
            | Refusal::TooLarge { .. }
            | Refusal::Encoding { .. }
            | Refusal::BodyTimeout { .. }
            | Refusal::Limited { .. }
            | Refusal::Oversized { .. }
            | Refusal::Crowded(_)
            | Refusal::Overloaded(_)
            | Refusal::Busy { .. }
            | Refusal::Tripped { .. }
            | Refusal::NotReady(_)
            | Refusal::EngineDown(_)
            | Refusal::DeadlineExceeded { .. }
            | Refusal::ModelFailed(_)
            | Refusal::RemoteFailed(_)
            | Refusal::RemoteUnreachable(_)
            | Refusal::RemoteTimeout { .. }
            | Refusal::Looping { .. }
            | Refusal::Internal(_)
            | Refusal::ClientGone => None,
        };
        Self { retry_after: refusal.retry_after(), allow, ..Self::json(refusal.status(), &body) }
    }
}

impl Answer {
    /// To a request of which nothing is known, after which the connection is closed.
    fn last(self) -> pingora::Result<(ResponseHeader, Bytes)> {
        let mut head = ResponseHeader::build_no_case(self.status, Some(3))?;
        head.insert_header(header::CONTENT_TYPE, self.content_type)?;
        head.set_content_length(self.body.len())?;
        if let Some(allow) = self.allow {
            head.insert_header(header::ALLOW, allow)?;
        }
        Ok((head, self.body))
    }
}

async fn write(session: &mut ServerSession, answer: Answer, record: &Record) -> pingora::Result<()> {
    let mut head = ResponseHeader::build_no_case(answer.status, Some(8))?;
    match &answer.passed {
        None => head.insert_header(header::CONTENT_TYPE, answer.content_type)?,
        Some(headers) => {
            for (name, value) in headers {
                head.append_header(name.clone(), value.clone())?;
            }
        }
    }
    head.set_content_length(answer.body.len())?;
    if let Some(id) = &record.request_id {
        head.insert_header(REQUEST_ID, id.header().clone())?;
    }
    if let Some((_, version)) = &record.version {
        head.insert_header(VERSION, *version)?;
    }
    if record.pick == Some(PINNED) {
        head.insert_header(PICK, PINNED)?;
    }
    if record.generation > 0 {
        head.insert_header(GENERATION, record.generation)?;
    }
    if let Some(quota) = &record.quota {
        head.insert_header(RATE_LIMIT_POLICY, quota.limit.field())?;
        head.insert_header(RATE_LIMIT, quota.field())?;
    }
    if let Some(json_len) = answer.json_len {
        head.insert_header(JSON_LEN, json_len)?;
    }
    if answer.varies {
        head.insert_header(header::VARY, "accept-encoding")?;
    }
    if let Some(coding) = answer.coding {
        head.insert_header(header::CONTENT_ENCODING, coding.name())?;
    }
    if let Some(retry_after) = answer.retry_after {
        // Whole seconds, rounded up: earlier would be refused again.
        head.insert_header(
            header::RETRY_AFTER,
            retry_after.as_nanos().div_ceil(1_000_000_000).max(1) as u64,
        )?;
    }
    if let Some(allow) = answer.allow {
        head.insert_header(header::ALLOW, allow)?;
    }
    let bodiless = session.req_header().method == Method::HEAD;
    let body = if bodiless { Bytes::new() } else { answer.body };
    slow_reader::write(session, head, body).await
}
