//! THE request path: one function, one line per stage. Each stage is a file of its own; this one only says
//! in which order they come and what passes between them.
//!
//! Cheap refusals come first and nothing is spent on a request that a later stage would refuse anyway, except
//! that a rate limit is spent by requests whose body then turns out to be malformed: reading a body is what the
//! limit protects.

use crate::body::{self, BodyLimits};
use crate::caller::Caller;
use crate::decode::InferRequest;
use crate::directory::{Directory, Models};
use crate::encode::{Encoded, encode};
use crate::link::{LinkError, Links, Pending};
use crate::record::Record;
use crate::refusal::Refusal;
use crate::route::Target;
use http::HeaderMap;
use pingora::protocols::http::ServerSession;
use policies::{Generation, Ledger, Live, Outcome, Snapshot, Version};
use rand::Rng;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use wire::{Frame, Infer, Reply, Status};

/// Everything the path needs; shared by all requests.
#[derive(Debug)]
pub struct Path {
    /// The policy in force.
    pub live: Arc<Live>,
    /// What limits and breakers remember.
    pub ledger: Arc<Ledger>,
    /// What the engine has.
    pub directory: Arc<Directory>,
    /// The way to it.
    pub links: Links,
    /// Size and time of bodies.
    pub body: BodyLimits,
    /// Requests being worked on.
    pub slots: Slots,
}

/// Most answers come sooner; only after this is the client's socket watched for a disconnect.
const WATCH_CLIENT_AFTER: Duration = Duration::from_millis(5);

impl Path {
    /// Answers one infer request.
    pub async fn infer(
        &self,
        session: &mut ServerSession,
        target: Target<'_>,
        record: &mut Record,
    ) -> Result<Encoded, Refusal> {
        let _slot = self.slots.enter()?;
        let generation = self.pin(record);
        let models = self.directory.load();
        let version = choose(&generation.snapshot, &models, target, &session.req_header().headers, record)?;
        self.admit(&generation.snapshot, target.model, &session.req_header().headers)?;
        let body = body::read(session, &self.body).await?;
        let mut request = InferRequest::decode(&body, json_len(&session.req_header().headers)?)?;
        let deadline = Deadline::of(
            &generation.snapshot,
            target.model,
            &session.req_header().headers,
            &request,
            record.started,
        )?;
        let infer = engine_request(target.model, version, &mut request, &deadline, record);
        let pass = self
            .ledger
            .enter(&generation.snapshot, target.model, Version(version), Instant::now())
            .map_err(|tripped| Refusal::Tripped {
                model: target.model.to_owned(),
                version,
                retry_after: tripped.retry_after,
            })?;
        let answer = self.ask(session, &infer, &mut request, &deadline, record).await;
        let outcome = outcome(&answer, &deadline);
        record.outcome = Some(outcome);
        pass.settle(outcome, Instant::now());
        let (reply, frame) = answer?;
        encode(&request, target.model, version, &reply, &frame.payload)
    }

    /// One request, one generation.
    fn pin(&self, record: &mut Record) -> Arc<Generation> {
        let generation = self.live.load();
        record.generation = generation.number;
        generation
    }

    fn admit(&self, snapshot: &Snapshot, model: &str, headers: &HeaderMap) -> Result<(), Refusal> {
        self.ledger
            .admit(snapshot, model, &Caller::new(headers), Instant::now())
            .map_err(|limited| Refusal::Limited { limit: limited.limit, retry_after: limited.retry_after })
    }

    /// Sends the request and waits for its reply, its deadline, or its client's departure.
    async fn ask(
        &self,
        session: &mut ServerSession,
        infer: &Infer,
        request: &mut InferRequest,
        deadline: &Deadline,
        record: &mut Record,
    ) -> Result<(Reply, Frame), Refusal> {
        let link = self.links.worker().await?;
        let mut pending = link.send(infer, std::mem::take(&mut request.payload))?;
        let frame = wait(session, &mut pending, deadline).await?;
        let mut reply: Reply = prost::Message::decode(frame.metadata.clone())
            .map_err(|error| Refusal::Internal(format!("the engine's reply does not decode: {error}")))?;
        record.timing = reply.timing.take();
        match reply.status() {
            Status::Ok => Ok((reply, frame)),
            Status::InvalidArgument => Err(Refusal::Invalid(reply.message)),
            Status::NotFound => Err(Refusal::NotReady(reply.message)), // it was there when it was chosen
            Status::Overloaded => Err(Refusal::Overloaded(reply.message)),
            Status::DeadlineExceeded => Err(deadline.exceeded()),
            Status::ModelFailed => Err(Refusal::ModelFailed(reply.message)),
            Status::Internal => Err(Refusal::Internal(reply.message)),
        }
    }
}

/// The version that answers: pinned by the path, else picked by the policy, else the highest that is ready.
fn choose(
    snapshot: &Snapshot,
    models: &Models,
    target: Target<'_>,
    headers: &HeaderMap,
    record: &mut Record,
) -> Result<u64, Refusal> {
    let model = target.model;
    let picked = || snapshot.model(model)?.pick(&Caller::new(headers), rand::rng().random());
    let (version, pick) = match target.pinned {
        Some(version) => (Some(version), "pinned"),
        None => match picked() {
            Some(pick) => (Some(pick.version.0), pick.reason.as_str()),
            None => (models.highest_ready(model), "highest"),
        },
    };
    let Some(version) = version.filter(|version| models.is_ready(model, *version)) else {
        return Err(unavailable(models, target, version));
    };
    record.version = Some((model.to_owned(), version));
    record.pick = Some(pick);
    Ok(version)
}

/// Why nothing answers: unknown (404) or not now (503).
fn unavailable(models: &Models, target: Target<'_>, version: Option<u64>) -> Refusal {
    let model = target.model;
    if !models.connected {
        return Refusal::EngineDown("it is starting or restarting".into());
    }
    if let Err(unknown) = models.find(target) {
        return unknown;
    }
    let Some(version) = version else {
        return Refusal::NotReady(format!("no version of model `{model}` is ready"));
    };
    match models.entry(model, version) {
        None => Refusal::NotReady(format!(
            "the policy names version {version} of model `{model}`, which is not there"
        )),
        Some(entry) => {
            let reason = if entry.reason.is_empty() { "it is being loaded" } else { &entry.reason };
            Refusal::NotReady(format!("version {version} of model `{model}` is not ready: {reason}"))
        }
    }
}

fn json_len(headers: &HeaderMap) -> Result<Option<usize>, Refusal> {
    number(headers, "inference-header-content-length")
}

fn number(headers: &HeaderMap, name: &str) -> Result<Option<usize>, Refusal> {
    let Some(value) = headers.get(name) else { return Ok(None) };
    let parsed = value.to_str().ok().and_then(|text| text.trim().parse().ok());
    parsed.map(Some).ok_or_else(|| Refusal::Invalid(format!("header {name} is not a whole number")))
}

/// When the caller stops waiting.
#[derive(Clone, Copy, Debug)]
struct Deadline {
    at: Instant,
    given: Duration,
    /// The caller shortened it: missing it says nothing about the version.
    by_caller: bool,
}

impl Deadline {
    /// The policy's, or the caller's own (header `x-request-timeout-ms`, parameter `timeout`) if that is sooner.
    fn of(
        snapshot: &Snapshot,
        model: &str,
        headers: &HeaderMap,
        request: &InferRequest,
        started: Instant,
    ) -> Result<Self, Refusal> {
        let policy = snapshot.deadline(model);
        let header = number(headers, "x-request-timeout-ms")?.map(|ms| Duration::from_millis(ms as u64));
        let own = [header, request.timeout].into_iter().flatten().min().filter(|own| *own < policy);
        let given = own.unwrap_or(policy);
        Ok(Self { at: started + given, given, by_caller: own.is_some() })
    }

    fn left(&self) -> Duration {
        self.at.saturating_duration_since(Instant::now())
    }

    fn exceeded(&self) -> Refusal {
        Refusal::DeadlineExceeded { deadline: self.given }
    }
}

fn engine_request(
    model: &str,
    version: u64,
    request: &mut InferRequest,
    deadline: &Deadline,
    record: &Record,
) -> Infer {
    Infer {
        model: model.to_owned(),
        version,
        budget_us: deadline.left().as_micros().max(1) as u64,
        inputs: std::mem::take(&mut request.inputs),
        outputs: request.outputs.iter().map(|output| output.name.clone()).collect(),
        trace: record.trace.as_ref().map(|trace| trace.to_wire()),
    }
}

async fn wait(
    session: &mut ServerSession,
    pending: &mut Pending,
    deadline: &Deadline,
) -> Result<Frame, Refusal> {
    let soon = deadline.left().min(WATCH_CLIENT_AFTER);
    if let Ok(answer) = tokio::time::timeout(soon, pending.answer()).await {
        return Ok(answer?);
    }
    tokio::select! {
        biased;
        answer = pending.answer() => Ok(answer?),
        // The body has been read: what can still come is the end of the connection.
        _ = session.read_body_or_idle(true) => Err(Refusal::ClientGone),
        () = tokio::time::sleep_until(deadline.at.into()) => Err(deadline.exceeded()),
    }
}

impl From<LinkError> for Refusal {
    fn from(error: LinkError) -> Self {
        match error {
            LinkError::Down(_) => Self::EngineDown(error.to_string()),
            LinkError::Backlog(_) => Self::Overloaded(error.to_string()),
        }
    }
}

/// What an answer says about the version that was asked.
fn outcome<T>(answer: &Result<T, Refusal>, deadline: &Deadline) -> Outcome {
    match answer {
        Ok(_) => Outcome::Served,
        Err(Refusal::ModelFailed(_) | Refusal::Internal(_)) => Outcome::Failed,
        Err(Refusal::DeadlineExceeded { .. }) if !deadline.by_caller => Outcome::Failed,
        Err(Refusal::ClientGone) => Outcome::Abandoned,
        // A lost engine takes all versions with it and says nothing about any of them.
        Err(
            Refusal::DeadlineExceeded { .. }
            | Refusal::EngineDown(_)
            | Refusal::NotReady(_)
            | Refusal::Overloaded(_)
            | Refusal::Invalid(_)
            | Refusal::NotFound(_)
            | Refusal::Method { .. }
            | Refusal::TooLarge { .. }
            | Refusal::BodyTimeout { .. }
            | Refusal::Limited { .. }
            | Refusal::Tripped { .. },
        ) => Outcome::Refused,
    }
}

/// Bounds the requests being worked on, and with them the memory of their bodies.
#[derive(Debug)]
pub struct Slots {
    taken: AtomicUsize,
    most: usize,
}

impl Slots {
    /// Room for `most` requests.
    pub fn new(most: usize) -> Self {
        Self { taken: AtomicUsize::new(0), most }
    }

    fn enter(&self) -> Result<Slot<'_>, Refusal> {
        let slot = Slot(self);
        if self.taken.fetch_add(1, Ordering::Relaxed) < self.most {
            Ok(slot)
        } else {
            Err(Refusal::Overloaded(format!("{} requests are in flight already", self.most)))
        }
    }
}

/// Given back when dropped.
struct Slot<'a>(&'a Slots);

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_given_back() {
        let slots = Slots::new(1);
        let first = slots.enter().unwrap();
        assert!(matches!(slots.enter(), Err(Refusal::Overloaded(_))));
        drop(first);
        assert!(slots.enter().is_ok());
    }

    #[test]
    fn only_the_versions_own_failures_count_against_it() {
        let deadline = |by_caller| Deadline { at: Instant::now(), given: Duration::ZERO, by_caller };
        let judge = |refusal, by_caller| outcome::<()>(&Err(refusal), &deadline(by_caller));
        assert_eq!(outcome(&Ok(()), &deadline(false)), Outcome::Served);
        assert_eq!(judge(Refusal::ModelFailed("x".into()), false), Outcome::Failed);
        assert_eq!(judge(deadline(false).exceeded(), false), Outcome::Failed);
        assert_eq!(
            judge(deadline(true).exceeded(), true),
            Outcome::Refused,
            "a caller cannot trip a breaker by impatience"
        );
        assert_eq!(judge(Refusal::EngineDown("gone".into()), false), Outcome::Refused);
        assert_eq!(judge(Refusal::Invalid("x".into()), false), Outcome::Refused);
        assert_eq!(judge(Refusal::ClientGone, false), Outcome::Abandoned);
    }
}
