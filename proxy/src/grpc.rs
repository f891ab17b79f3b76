//! gRPC: the Open Inference Protocol's service as Triton has it, health checking and reflection. Decides which method is
//! asked, and how a request outlives its client for as long as it takes to count it; what is answered is decided where
//! REST's answers are.
//!
//! ```text
//! listen ─▶ connection ─▶ answer ─┬─ ModelInfer, ModelStreamInfer   message ─▶ call ─▶ Path::infer ─▶ encode
//!                                 ├─ the service's other methods    methods
//!                                 └─ health, reflection
//! ```
//!
//! HTTP/2 is hyper's, and so are its limits on what a client may send; messages are cut and compressed here, because the
//! bytes of tensors are to be copied as seldom as possible.

mod answer;
mod call;
mod connection;
mod decode;
mod encode;
mod exchange;
mod extensions;
mod fields;
mod health;
mod listen;
mod message;
mod methods;
mod parameters;
mod status;
mod stream;

pub use listen::Listen;

use crate::infer::InferPath;
use crate::readiness::Readiness;
use crate::record::Watchers;
use crate::refusal::Refusal;
use crate::repository::Repository;
use crate::route::Target;
use call::GrpcCall;
use connection::Connection;
use exchange::Exchange;
use http::{HeaderValue, Request, Response, StatusCode, header, request};
use hyper::body::Incoming;
use message::{Coding, Messages};
use methods::Method;
use std::convert::Infallible;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::sync::oneshot;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic_health::pb::health_server::HealthServer;

type Answering<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// What spans call a method that is not known (semantic conventions, RPC).
const OTHER: &str = "_OTHER";

/// A service of somebody else's making.
type Handler = Box<dyn Fn(Request<Incoming>) -> Answering<Response<Body>> + Send + Sync>;

/// What answers.
pub struct Grpc {
    path: Arc<InferPath>,
    repository: Repository,
    readiness: Readiness,
    watchers: Watchers,
    health: Handler,
    reflection: Handler,
    reflection_alpha: Handler,
}

impl fmt::Debug for Grpc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grpc").finish_non_exhaustive()
    }
}

impl Grpc {
    /// Answers with what also answers over HTTP.
    pub fn new(
        path: Arc<InferPath>,
        repository: Repository,
        readiness: Readiness,
        watchers: Watchers,
    ) -> Self {
        let described = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(protocol::DESCRIPTION)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        let compiled = "descriptions are made by the compiler";
        Self {
            path,
            repository,
            watchers,
            health: handler(HealthServer::new(health::Health { readiness: readiness.clone() })),
            reflection: handler(described().build_v1().expect(compiled)),
            reflection_alpha: handler(described().build_v1alpha().expect(compiled)),
            readiness,
        }
    }

    /// Answers one request.
    async fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
        connection: Arc<Connection>,
    ) -> Response<Body> {
        if let Some(refused) = is_no_grpc(&request) {
            return refused;
        }
        let path = request.uri().path();
        let (service, method) =
            path.strip_prefix('/').and_then(|path| path.split_once('/')).unwrap_or((path, ""));
        match service {
            "grpc.health.v1.Health" => return (self.health)(request).await,
            "grpc.reflection.v1.ServerReflection" => return (self.reflection)(request).await,
            "grpc.reflection.v1alpha.ServerReflection" => return (self.reflection_alpha)(request).await,
            _ => {}
        }
        let known = match service {
            protocol::SERVICE => Method::of_name(method),
            _ => Err(Refusal::Unsupported(format!("there is no service `{service}` here"))),
        };
        let (head, body) = request.into_parts();
        let method = match known {
            Ok(method) => method,
            Err(refusal) => return answer::refuse(Exchange::begin(&self, &head.headers, OTHER), &refusal),
        };
        let coding = match Coding::of_request(&head.headers) {
            Ok(coding) => coding,
            Err(refusal) => {
                return answer::refuse(Exchange::begin(&self, &head.headers, method.route()), &refusal);
            }
        };
        let messages = Messages::new(body, coding);
        let coding = Coding::of_answer(coding, &head.headers);
        match method {
            Method::ModelInfer => self.infer(head, messages, (method.route(), coding), connection).await,
            Method::ModelStreamInfer => {
                let grpc = self.clone();
                let began =
                    stream::answer(grpc, head.clone(), messages, (method.route(), coding), &connection);
                began.unwrap_or_else(|refusal| {
                    answer::refuse(Exchange::begin(&self, &head.headers, method.route()), &refusal)
                })
            }
            Method::Ask(question) => {
                let exchange = Exchange::begin(&self, &head.headers, method.route());
                match self.ask(question, messages).await {
                    Ok(message) => answer::answer(exchange, message, coding, &connection),
                    Err(refusal) => answer::refuse(exchange, &refusal),
                }
            }
        }
    }

    async fn infer(
        self: Arc<Self>,
        head: request::Parts,
        messages: Messages<Incoming>,
        (route, coding): (&'static str, Option<Coding>),
        connection: Arc<Connection>,
    ) -> Response<Body> {
        let (waits, gone) = oneshot::channel();
        let work = async move {
            let mut exchange = Exchange::begin(&self, &head.headers, route);
            let answer = async {
                let mut call = GrpcCall::alone(head, messages, &self.path, gone).await?;
                let names = call.names().clone();
                let target = Target { model: &names.model, pinned: names.version };
                self.path.infer(&mut call, target, &mut exchange.record).await
            };
            match answer.await {
                Ok(message) => answer::answer(exchange, message, coding, &connection),
                Err(refusal) => answer::refuse(exchange, &refusal),
            }
        };
        Awaited { work: Some(Box::pin(work)), waits: Some(waits) }.await
    }
}

/// Work that goes on when nobody waits for it any more, until it has noticed: who leaves is to be counted, witnessed and
/// settled as over HTTP, and the engine told. HTTP/2 says that a client has left by dropping what it waits for.
struct Awaited<T: Send + 'static> {
    work: Option<Answering<T>>,
    waits: Option<oneshot::Sender<Infallible>>,
}

impl<T: Send + 'static> Future for Awaited<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        let work = self.work.as_mut().expect("it is not polled again after it was ready");
        let polled = work.as_mut().poll(context);
        if polled.is_ready() {
            self.work = None;
        }
        polled
    }
}

impl<T: Send + 'static> Drop for Awaited<T> {
    fn drop(&mut self) {
        drop(self.waits.take());
        // Without a runtime the process is ending.
        if let (Some(work), Ok(runtime)) = (self.work.take(), tokio::runtime::Handle::try_current()) {
            runtime.spawn(async move { drop(work.await) });
        }
    }
}

fn handler<S>(service: S) -> Handler
where
    S: Service<Request<Incoming>, Response = Response<Body>, Error = Infallible>
        + Clone
        + Send
        + Sync
        + 'static,
    S::Future: Send + 'static,
{
    Box::new(move |request| {
        let mut service = service.clone();
        Box::pin(async move {
            let Ok(response) = service.call(request).await;
            response
        })
    })
}

/// The answer to what is HTTP/2 but no gRPC.
fn is_no_grpc(request: &Request<Incoming>) -> Option<Response<Body>> {
    let refuse = |status| {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = status;
        response
    };
    if request.method() != http::Method::POST {
        let mut response = refuse(StatusCode::METHOD_NOT_ALLOWED);
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("POST"));
        return Some(response);
    }
    let content_type = request.headers().get(header::CONTENT_TYPE);
    let subtype = content_type.and_then(|value| value.as_bytes().strip_prefix(b"application/grpc"));
    match subtype {
        Some(b"" | b"+proto" | [b';', ..]) => None,
        _ => Some(refuse(StatusCode::UNSUPPORTED_MEDIA_TYPE)),
    }
}
