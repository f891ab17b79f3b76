//! THE request path: one function, one line per stage. Each stage is a file of its own; this one only says
//! in which order they come and what passes between them.
//!
//! Cheap refusals come first, and so does the choice of a version, unless the policy asks for something of the body. A rate
//! limit is spent before the body is read, because reading it is what the limit protects; a request that is refused later
//! has spent it. Rows and bytes are reserved, and given back by whoever has had nothing for them.

mod elsewhere;
mod once_more;
mod verdict;

use crate::body::{BodyLimits, Encoding};
use crate::call::{Call, Inferred};
use crate::caller::Caller;
use crate::deadline::Deadline;
use crate::decode::InferRequest;
use crate::directory::{Directory, Models};
use crate::field;
use crate::label::labelled;
use crate::link::{LinkError, Pending};
use crate::links::Links;
use crate::metrics::Metrics;
use crate::pulse::SOON;
use crate::record::Record;
use crate::refusal::Refusal;
use crate::remote::Remotes;
use crate::route::Target;
use crate::shadow::{Answer, COPY, Copy, Shadows, ToServer};
use crate::slots::Slots;
use crate::trace::Trace;
use crate::translated;
use bytes::Bytes;
use elsewhere::{declaration, likely};
use once_more::{Again, Unanswered};
use policies::{
    Assignment, Criticality, Drawn, Field, Instead, Ledger, Limited, Live, ModelPolicy, Outcome, Pass, Sight,
    Snapshot, Standing, Usage, Version,
};
use rand::Rng;
use std::sync::Arc;
use std::time::{Duration, Instant};
use verdict::{is_paid_for, outcome, sight};
use wire::{Frame, Infer, ModelEntry, Reply, Status};

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
    pub links: Arc<Links>,
    /// Copies for other versions.
    pub shadows: Shadows,
    /// Size and time of bodies.
    pub body: BodyLimits,
    /// Room for requests.
    pub slots: Arc<Slots>,
    /// The way to versions that other servers answer.
    pub remotes: Arc<Remotes>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

impl Path {
    /// The version that stands for a model of which none was named: the one that answers most, if it is ready.
    pub(crate) fn typical<'a>(&self, models: &Models, target: Target<'a>) -> Target<'a> {
        let mostly = || {
            let version = self.ledger.mostly(&self.live.load().snapshot, target.model)?.0;
            models.is_ready(target.model, version).then_some(version)
        };
        Target { pinned: target.pinned.or_else(mostly), ..target }
    }

    /// Answers one infer request.
    pub async fn infer<C: Call>(
        &self,
        call: &mut C,
        target: Target<'_>,
        record: &mut Record,
    ) -> Result<C::Answer, Refusal> {
        let generation = self.live.load(); // pinned: one request, one generation
        record.generation = generation.number;
        let snapshot = &generation.snapshot;
        let standing = snapshot.standing(&Caller::new(call.head()));
        let mut slot = self.slots.enter(snapshot.room(standing.criticality))?;
        let models = self.directory.load();
        let target = match call.label() {
            Some(label) => labelled(snapshot, &models, target.model, label)?,
            None => target,
        };
        let early = match asks_of_body(snapshot, target) {
            None => Some(self.choose(snapshot, &models, target, &Caller::new(call.head()), record)?),
            Some(_) => must_be_there(snapshot, &models, target).map(|()| None)?,
        };
        let most = Deadline::at_most(snapshot.deadline(target.model), call.timeout()?);
        if let Some(chosen) = &early {
            let gate = models.gate(target.model, chosen.number).filter(|_| is_told_by_others(standing));
            if let Some(retry_after) = gate.and_then(|gate| gate.check(most, record.started)) {
                self.witness((target, &models), chosen.by, Some(Sight::Unanswered), record.started);
                let why = "more waits than can be answered in time".into();
                return Err(Refusal::Busy { why, retry_after });
            }
        }
        let head = Caller::new(call.head());
        record.places = Some(self.ledger.occupy(snapshot, target.model, &head).map_err(Refusal::Crowded)?);
        let admitted = self.ledger.admit(snapshot, target.model, &head, || call.length(), record.started);
        let admitted = admitted.map_err(|refused| limited(record, refused))?;
        record.quota.clone_from(&admitted.quota);
        let may_be_remote = match &early {
            Some(chosen) => snapshot.remote(target.model, Version(chosen.number)).is_some(),
            None => snapshot.model(target.model).is_some_and(ModelPolicy::has_remotes),
        };
        let encoding = if may_be_remote { Encoding::Any } else { Encoding::Known };
        let body = call.read(&self.body, encoding, &mut slot).await?;
        let plain = call.inflate(body.clone(), &self.body, &mut slot).await;
        let body = Body { as_it_came: body, plain };
        record.slot = Some(slot);
        record.stages.read = Some(Instant::now());
        let entry = match &early {
            Some(chosen) => declaration(snapshot, &models, target.model, chosen.number),
            None => likely(snapshot, &models, target.model),
        };
        // What another server is asked may be in words that only it understands, and what is read by the declaration of a
        // version that has not been chosen yet may be fine by that of the one that is.
        let is_decided = !may_be_remote && (early.is_some() || !call.is_read_by_declaration());
        let request = match body.decode(call, entry) {
            Ok(request) => Some(request),
            Err(_) if !is_decided => None,
            Err(refusal) => {
                if let Some(chosen) = &early {
                    let sight = sight::<()>(&Err(refusal.clone()), Duration::ZERO, Duration::ZERO);
                    self.witness((target, &models), chosen.by, sight, Instant::now());
                }
                return Err(refusal);
            }
        };
        let of_body =
            asks_of_body(snapshot, target).and_then(|field| body.field(call, request.as_ref(), field));
        let chosen = match early {
            Some(chosen) => chosen,
            None => {
                let caller = Caller::with_body(call.head(), of_body.as_deref());
                self.choose(snapshot, &models, target, &caller, record)?
            }
        };
        let (version, by) = (chosen.number, chosen.by);
        let now = Instant::now();
        let (head, usage) = (Caller::new(call.head()), usage(request.as_ref(), body.len()));
        let charged = self.ledger.charge(snapshot, target.model, &head, admitted, usage, now);
        let charged = charged.map_err(|refused| limited(record, refused))?;
        record.quota = charged.quota;
        let mut reserved = charged.reserved;
        let deadline = Deadline::of(most, request.as_ref(), now);
        // Reading the body may have taken long.
        let (confirmed, assigned) = self.ledger.confirm(target.model, Version(version), by.assigned);
        let by = By { assigned, ..by };
        if confirmed.0 != version {
            record.divert(confirmed.0, Instead::RolledBack);
        }
        let version = confirmed.0;
        let _under_way = assigned.and_then(|assigned| self.ledger.ask(target.model, assigned));
        let (version, by, pass) = match self.enter(snapshot, target.model, version, now) {
            Ok(pass) => (version, by, pass),
            Err(tripped) => {
                self.witness((target, &models), by, Some(Sight::Unanswered), now);
                let (instead, pass) =
                    self.fall_back(snapshot, &models, target, version, now).ok_or(tripped)?;
                record.divert(instead, Instead::Fallback);
                (instead, By { assigned: None, ..by }, pass)
            }
        };
        let is_as_declared = || {
            let declares = declaration(snapshot, &models, target.model, version);
            declares.map(|entry| entry.version) == entry.map(|entry| entry.version)
        };
        // Else it is read anew, as the version takes it that has come in between.
        let request = request.filter(|_| !call.is_read_by_declaration() || is_as_declared());
        let of_body = of_body.as_deref();
        let mut asking = Asking { snapshot, models, target, version, by, of_body, standing, deadline, now };
        reserved.settle();
        let mut attempt = self.attempt(call, &body, request, (&asking, pass), record).await;
        if let Err(unanswered) = &attempt.answer
            && let Some((again, pass)) = self.once_more(call, &unanswered.again, &asking, record).await
        {
            if again.version != asking.version {
                self.witness((target, &asking.models), asking.by, attempt.sight, attempt.ended);
            }
            asking = again;
            attempt = self.attempt(call, &body, None, (&asking, pass), record).await;
        }
        if !attempt.is_paid_for {
            reserved.give_back();
        }
        self.witness((target, &asking.models), asking.by, attempt.sight, attempt.ended);
        attempt.answer.map_err(|unanswered| unanswered.refusal)
    }

    /// Tells the rollout that has assigned a request what became of it.
    fn witness(&self, (target, models): (Target<'_>, &Models), by: By, sight: Option<Sight>, now: Instant) {
        if let Some((assigned, sight)) = by.assigned.zip(sight) {
            // What both sides refuse, whoever sends it to whom, says nothing about either.
            if sight == Sight::Refused && take_the_same(models, target.model, assigned.versions()) {
                return;
            }
            let key = (by.caller != 0).then_some(by.caller);
            self.ledger.witness(target.model, assigned, key, sight, now);
        }
    }

    /// Has a version answer that a request has entered. What was decoded is gone with it, and decoded anew where it is asked
    /// for again.
    async fn attempt<C: Call>(
        &self,
        call: &mut C,
        body: &Body,
        request: Option<InferRequest>,
        (asking, pass): (&Asking<'_>, Pass),
        record: &mut Record,
    ) -> Attempt<C::Answer> {
        let (model, version) = (asking.target.model, asking.version);
        let entry = declaration(asking.snapshot, &asking.models, model, version);
        let read = |call: &mut C| body.decode(call, entry);
        let answer = match asking.snapshot.remote(model, Version(version)) {
            // Boxed: they are ten times what waiting for the engine takes, and every request would carry it.
            Some(remote) => match call.forward() {
                Some(head) => {
                    let copy = request.and_then(|mut request| {
                        asking.snapshot.model(model)?.shadow()?;
                        let infer = self.engine_request(&mut request, asking, record);
                        self.copy(call, (&infer, &request), body, asking)
                    });
                    let asked = ((head, body.as_it_came.clone()), copy);
                    let answer = Box::pin(self.elsewhere(call, remote, asked, asking, record)).await;
                    answer.map_err(Into::into)
                }
                None => match request.map_or_else(|| read(call), Ok) {
                    Ok(request) => {
                        let asked = self.in_other_words(call, remote, (request, entry), body, asking, record);
                        Box::pin(asked).await.map(|answer| (answer, Ok(()))).map_err(Into::into)
                    }
                    Err(refusal) => Err(refusal.into()),
                },
            },
            None => match request.map_or_else(|| read(call), Ok) {
                Ok(request) => {
                    let answer = self.here(call, request, body, asking, record).await;
                    answer.map(|answer| (answer, Ok(())))
                }
                Err(refusal) => Err(refusal.into()),
            },
        };
        let is_lost = answer.as_ref().is_err_and(|unanswered| unanswered.is_lost);
        // What is passed on as it is may be a refusal, in another server's words.
        let (answer, said) = match answer {
            Ok((answer, said)) => (Ok(answer), said),
            Err(unanswered) => {
                let said = Err(unanswered.refusal.clone());
                (Err(unanswered), said)
            }
        };
        let (outcome, ended) = (if is_lost { Outcome::Lost } else { outcome(&said) }, Instant::now());
        record.outcome = Some(outcome);
        pass.settle(outcome, ended);
        let most = asking.snapshot.deadline(asking.target.model);
        let sight = if is_lost { Some(Sight::Lost) } else { sight(&said, ended - asking.now, most) };
        Attempt { answer, sight, is_paid_for: is_paid_for(&said), ended }
    }

    /// Has the engine answer.
    async fn here<C: Call>(
        &self,
        call: &mut C,
        mut request: InferRequest,
        body: &Body,
        asking: &Asking<'_>,
        record: &mut Record,
    ) -> Result<C::Answer, Unanswered> {
        let Asking { ref models, target, version, deadline, now, .. } = *asking;
        if request.is_of_a_sequence {
            let why = "parameter `sequence_id`: sequences are not supported";
            return Err(Refusal::Unsupported(why.into()).into());
        }
        let infer = self.engine_request(&mut request, asking, record);
        let copy = self.copy(call, (&infer, &request), body, asking);
        let counters = self.metrics.version(target.model, version);
        let _waiting = counters.statistics.wait();
        record.asked = Some(counters);
        let answer = match self.ask(call, &infer, &mut request, &deadline, record).await {
            Ok((reply, frame)) => {
                let (model, entry) = (target.model, models.entry(target.model, version));
                let inferred = Inferred { model, version, entry, reply: &reply, payload: &frame.payload };
                let answer = call.encode(&request, inferred);
                if let Some(copy) = copy {
                    self.shadows.send(copy, Answer::Engine(reply.outputs, frame.payload));
                }
                answer.map_err(Unanswered::from)
            }
            Err(unanswered) => Err(unanswered),
        };
        let gate = models.gate(target.model, version).filter(|_| is_told_by_others(asking.standing));
        // What is too late for a request that goes first or runs last is not for others.
        if let (Err(Unanswered { refusal: Refusal::Busy { retry_after, .. }, .. }), Some(gate), 0..=2) =
            (&answer, gate, infer.criticality)
        {
            gate.shut(deadline.left(now), deadline.left(now) + *retry_after, now);
        }
        answer
    }

    fn engine_request(&self, request: &mut InferRequest, asking: &Asking<'_>, record: &Record) -> Infer {
        let Asking { target, version, deadline, now, .. } = asking;
        let mut infer = engine_request(target.model, *version, request, deadline, record, *now);
        infer.caller = asking.by.caller;
        stand(&mut infer, asking.standing);
        infer
    }

    /// A copy for the shadow, if the policy and the dice want one.
    fn copy<C: Call>(
        &self,
        call: &C,
        (infer, request): (&Infer, &InferRequest),
        body: &Body,
        asking: &Asking<'_>,
    ) -> Option<Copy> {
        let Asking { snapshot, models, target, by, .. } = asking;
        let policy = snapshot.model(target.model)?.shadow()?;
        let version = policy.version();
        let is_a_copy = call.head().headers.contains_key(COPY);
        if version.0 == infer.version || is_a_copy || !policy.takes(rand::rng().random()) {
            return None;
        }
        let (payload, server) = (&request.payload, snapshot.remote(target.model, version));
        let is_server = |version| snapshot.remote(target.model, version).is_some();
        // Another server ranks them itself; whole outputs are not to be compared with them.
        if request.outputs.iter().any(|output| output.classes > 0)
            && server.is_some() != is_server(Version(infer.version))
        {
            self.shadows.drop_one(target.model, version.0);
            return None;
        }
        let server = match server {
            None => None,
            Some(remote) => {
                let (head, body) = match call.forward() {
                    Some(head) => (head, body.as_it_came.clone()),
                    None => {
                        let parameters = call.parameters(body.plain.as_ref().ok()?).ok()?;
                        translated::written((infer, payload), parameters, &call.head().headers)
                    }
                };
                Some(ToServer::new(remote, head, body))
            }
        };
        self.shadows.copy(policy, models, (infer, payload), server, by.assigned)
    }

    /// The version that answers.
    fn choose(
        &self,
        snapshot: &Snapshot,
        models: &Models,
        target: Target<'_>,
        caller: &Caller<'_>,
        record: &mut Record,
    ) -> Result<Chosen, Refusal> {
        match self.pick(snapshot, models, target, caller) {
            Some(chosen) if is_ready(snapshot, models, target.model, chosen.number) => {
                record.choose(target.model, &chosen);
                Ok(chosen)
            }
            other => {
                if let Some((drawn, key)) = other.as_ref().and_then(|chosen| chosen.drawn) {
                    self.ledger.count(target.model, drawn, key, None, Some(Instead::NotReady));
                }
                Err(unavailable(models, target, other.map(|chosen| chosen.number)))
            }
        }
    }

    /// The version that is pinned by the path, else picked by the policy, else the highest that is ready. Whether the first
    /// two are, is not asked.
    fn pick(
        &self,
        snapshot: &Snapshot,
        models: &Models,
        target: Target<'_>,
        caller: &Caller<'_>,
    ) -> Option<Chosen> {
        let is_ready = |version: Version| is_ready(snapshot, models, target.model, version.0);
        let draw = || rand::rng().random();
        let picked = || self.ledger.pick(snapshot, target.model, caller, draw(), is_ready);
        let unassigned = |number, reason| Chosen { number, reason, ..Chosen::default() };
        match target.pinned {
            Some(number) => Some(unassigned(number, PINNED)),
            None => match picked() {
                Some(pick) => Some(Chosen {
                    number: pick.version.0,
                    label: pick.label,
                    reason: pick.reason.as_str(),
                    by: By { caller: pick.key.unwrap_or(0), assigned: pick.assigned },
                    drawn: pick.drawn.map(|drawn| (drawn, pick.key)),
                    instead: pick.instead,
                }),
                None => models.highest_ready(target.model).map(|number| unassigned(number, "highest")),
            },
        }
    }

    fn enter(&self, snapshot: &Snapshot, model: &str, version: u64, now: Instant) -> Result<Pass, Refusal> {
        self.ledger.enter(snapshot, model, Version(version), now).map_err(|tripped| Refusal::Tripped {
            model: model.to_owned(),
            version,
            retry_after: tripped.retry_after,
        })
    }

    /// The version that answers in place of one that has tripped, unless that was asked for by number.
    fn fall_back(
        &self,
        snapshot: &Snapshot,
        models: &Models,
        target: Target<'_>,
        from: u64,
        now: Instant,
    ) -> Option<(u64, Pass)> {
        if target.pinned.is_some() {
            return None;
        }
        let is_ready = |version: Version| is_ready(snapshot, models, target.model, version.0);
        let (version, pass) = self.ledger.fall_back(snapshot, target.model, Version(from), is_ready, now)?;
        Some((version.0, pass))
    }

    /// Sends the request and waits for its reply, its deadline, or its client's departure.
    async fn ask<C: Call>(
        &self,
        call: &mut C,
        infer: &Infer,
        request: &mut InferRequest,
        deadline: &Deadline,
        record: &mut Record,
    ) -> Result<(Reply, Frame), Unanswered> {
        let link = self.links.worker().await.map_err(Refusal::from)?;
        let sent = link.send(infer, std::mem::take(&mut request.payload));
        let mut pending = sent.map_err(|error| match error {
            LinkError::Down(_) => {
                Unanswered { refusal: error.into(), again: Again::Ask(None), is_lost: false }
            }
            LinkError::Backlog(_) | LinkError::TooLong { .. } => Refusal::from(error).into(),
        })?;
        record.stages.sent = Some(Instant::now());
        let frame = wait(call, &mut pending, deadline).await.map_err(|refusal| {
            let is_lost = matches!(refusal, Refusal::EngineDown(_));
            Unanswered { is_lost, ..Unanswered::from(refusal) }
        })?;
        record.stages.answered = Some(Instant::now());
        let mut reply: Reply = prost::Message::decode(frame.metadata.clone())
            .map_err(|error| Refusal::Internal(format!("the engine's reply does not decode: {error}")))?;
        record.timing = reply.timing.take();
        let (refusal, again) = match Status::try_from(reply.status) {
            Ok(Status::Ok) => return Ok((reply, frame)),
            Ok(Status::InvalidArgument) => (Refusal::Invalid(reply.message), Again::Never),
            // It was there when it was chosen.
            Ok(Status::NotFound) => (Refusal::NotReady(reply.message), Again::Choose),
            Ok(Status::Overloaded) => {
                let wait = Duration::from_micros(reply.retry_after_us);
                let retry_after = wait.saturating_sub(Duration::from_micros(infer.budget_us));
                // Asking again would feed the overload.
                (Refusal::Busy { why: reply.message, retry_after }, Again::Never)
            }
            Ok(Status::DeadlineExceeded) => (deadline.exceeded(), Again::Never),
            Ok(Status::ModelFailed) => (Refusal::ModelFailed(reply.message), Again::Never),
            Ok(Status::Unavailable) => (Refusal::EngineDown(reply.message), Again::Ask(Some(link))),
            Ok(Status::DeviceLost) => (Refusal::EngineDown(reply.message), Again::Never),
            Ok(Status::Internal) => (Refusal::Internal(reply.message), Again::Never),
            Err(_) => {
                let why = format!("the engine replied with unknown status {}", reply.status);
                (Refusal::Internal(why), Again::Never)
            }
        };
        let is_lost = reply.status == Status::DeviceLost as i32;
        Err(Unanswered { refusal, again, is_lost })
    }
}

/// A body that was read.
struct Body {
    as_it_came: Bytes,
    /// Without what it was compressed with on its way.
    plain: Result<Bytes, Refusal>,
}

impl Body {
    fn decode<C: Call>(&self, call: &mut C, entry: Option<&ModelEntry>) -> Result<InferRequest, Refusal> {
        call.decode(self.plain.as_ref().map_err(Refusal::clone)?, entry)
    }

    /// What a policy asks of it; nothing if that is not there, or cannot be read here.
    fn field<C: Call>(&self, call: &C, request: Option<&InferRequest>, field: &Field) -> Option<String> {
        match field {
            Field::Parameter(name) => call.parameter(self.plain.as_ref().ok()?, name),
            Field::Input(name) => field::first_element(request?, name),
        }
    }

    /// Bytes of it, as it is read here if it can be.
    fn len(&self) -> usize {
        self.plain.as_ref().map_or(self.as_it_came.len(), Bytes::len)
    }
}

/// What came of asking a version.
struct Attempt<A> {
    answer: Result<A, Unanswered>,
    /// What that says about the version in a rollout.
    sight: Option<Sight>,
    /// Whether its rows and bytes are.
    is_paid_for: bool,
    ended: Instant,
}

/// Why a version answers that the path names.
pub(crate) const PINNED: &str = "pinned";

/// What has been decided about a request that is answered.
struct Asking<'a> {
    snapshot: &'a Snapshot,
    models: Arc<Models>,
    target: Target<'a>,
    version: u64,
    by: By,
    /// What the policy has asked of the body.
    of_body: Option<&'a str>,
    standing: Standing,
    deadline: Deadline,
    now: Instant,
}

/// Whom a rollout takes a request for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct By {
    /// Who asks, as a hash of the sticky key; 0 without one.
    caller: u64,
    /// On which side of the rollout chance has put it.
    assigned: Option<Assignment>,
}

/// The version that was chosen, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Chosen {
    pub(crate) number: u64,
    pub(crate) label: Option<Arc<str>>,
    pub(crate) reason: &'static str,
    pub(crate) by: By,
    /// What chance or the sticky key has decided, and where that key lies.
    pub(crate) drawn: Option<(Drawn, Option<u64>)>,
    /// Why it is another version than that.
    pub(crate) instead: Option<Instead>,
}

/// Why a limit lets nothing through; the caller is told what is left there.
fn limited(record: &mut Record, refused: Limited) -> Refusal {
    let Limited { limit, retry_after, never, quota } = refused;
    let most = quota.limit.burst.get();
    record.quota = Some(quota);
    match never {
        Some(got) => Refusal::Oversized { limit, most, got: got.get() },
        None => Refusal::Limited { limit, retry_after },
    }
}

/// What could not be read counts as one row.
fn usage(request: Option<&InferRequest>, bytes: usize) -> Usage {
    let inputs = request.into_iter().flat_map(|request| &request.inputs);
    let rows = inputs.filter_map(|input| input.shape.first()).max();
    Usage { rows: rows.copied().unwrap_or(1).max(1), bytes: bytes as u64 }
}

/// What has to be read of the body before a version can be chosen. One in the path is chosen already.
fn asks_of_body<'a>(snapshot: &'a Snapshot, target: Target<'_>) -> Option<&'a Field> {
    match target.pinned {
        Some(_) => None,
        None => snapshot.model(target.model)?.asks_of_body(),
    }
}

/// Before a body is read for it, somebody has to be there who might answer.
fn must_be_there(snapshot: &Snapshot, models: &Models, target: Target<'_>) -> Result<(), Refusal> {
    let has_remotes = snapshot.model(target.model).is_some_and(ModelPolicy::has_remotes);
    let is_there = has_remotes || models.connected && models.highest_ready(target.model).is_some();
    if is_there { Ok(()) } else { Err(unavailable(models, target, None)) }
}

/// Whether two versions refuse the same requests.
fn take_the_same(models: &Models, model: &str, (one, other): (Version, Version)) -> bool {
    let takes = |version: Version| models.entry(model, version.0).map(|entry| entry.takes);
    takes(one).is_some_and(|one| one != 0 && Some(one) == takes(other))
}

/// Whether another server is well, its breaker finds out.
fn is_ready(snapshot: &Snapshot, models: &Models, model: &str, version: u64) -> bool {
    models.is_ready(model, version) || snapshot.remote(model, Version(version)).is_some()
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

fn engine_request(
    model: &str,
    version: u64,
    request: &mut InferRequest,
    deadline: &Deadline,
    record: &Record,
    now: Instant,
) -> Infer {
    Infer {
        model: model.to_owned(),
        version,
        budget_us: deadline.left(now).as_micros().max(1) as u64,
        inputs: std::mem::take(&mut request.inputs),
        outputs: request.outputs.iter().map(|output| output.name.clone()).collect(),
        trace: record.sampling.kept().map(Trace::to_wire),
        priority: request.priority,
        ..Infer::default()
    }
}

/// Whether what is too late for others is for this request: not where it goes after them, or has a share of its own.
fn is_told_by_others(standing: Standing) -> bool {
    standing.tenant == 0 && standing.criticality >= Criticality::Normal
}

/// A caller can make its request less critical, as a low priority does, and never more.
fn stand(infer: &mut Infer, standing: Standing) {
    infer.tenant = standing.tenant;
    infer.criticality = match standing.criticality {
        _ if infer.priority > 2 => 3,
        Criticality::Critical => 1,
        Criticality::Normal => 2,
        Criticality::Sheddable => 3,
    };
}

async fn wait<C: Call>(call: &mut C, pending: &mut Pending, deadline: &Deadline) -> Result<Frame, Refusal> {
    // Most answers come before it is worth watching for anything else.
    if deadline.left(Instant::now()) > 2 * SOON
        && let Some(answer) = pending.answer_soon().await
    {
        return Ok(answer?);
    }
    tokio::select! {
        biased;
        answer = pending.answer() => Ok(answer?),
        () = call.gone() => Err(Refusal::ClientGone),
        () = tokio::time::sleep_until(deadline.at.into()) => Err(deadline.exceeded()),
    }
}

impl From<LinkError> for Refusal {
    fn from(error: LinkError) -> Self {
        match error {
            LinkError::Down(_) => Self::EngineDown(error.to_string()),
            LinkError::Backlog(_) => Self::Overloaded(error.to_string()),
            LinkError::TooLong { what, limit } => Self::TooLarge { what, limit },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_can_make_its_request_less_critical_and_never_more() {
        let stands = |criticality, priority| {
            let mut infer = Infer { priority, ..Infer::default() };
            stand(&mut infer, Standing { criticality, tenant: 7 });
            (infer.criticality, infer.tenant)
        };
        let all = [Criticality::Critical, Criticality::Normal, Criticality::Sheddable];
        assert_eq!(all.map(|criticality| stands(criticality, 1)), [(1, 7), (2, 7), (3, 7)]);
        assert_eq!(all.map(|criticality| stands(criticality, 3)), [(3, 7), (3, 7), (3, 7)]);
    }
}
