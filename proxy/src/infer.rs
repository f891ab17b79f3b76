//! THE request path: in which order the stages of a request come, and what passes between them. What a stage decides stands in a
//! file of its own.
//!
//! Cheap refusals come first, and so does the choice of a version, unless the policy asks for something of the body. A rate
//! limit is spent before the body is read, because reading it is what the limit protects; a request that is refused later
//! has spent it. Rows and bytes are reserved, and given back by whoever has had nothing for them.

mod choose;
mod elsewhere;
mod engine;
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
use crate::links::Links;
use crate::metrics::Metrics;
use crate::record::Record;
use crate::refusal::Refusal;
use crate::remote::{self, Remotes};
use crate::route::Target;
use crate::shadow::{Answer, COPY, Copy, Shadows, ToServer};
use crate::slots::{Slot, Slots};
use crate::translated;
use bytes::Bytes;
pub(crate) use choose::{By, Chosen, PINNED};
use choose::{asks_of_body, is_ready, must_be_there};
use elsewhere::{declaration, likely};
use once_more::Unanswered;
use policies::{
    Admitted, Criticality, Field, Instead, Ledger, Limited, Live, ModelPolicy, Outcome, Pass, Sight,
    Snapshot, Standing, Tripped, UnderWay, Usage, Version,
};
use rand::Rng;
use std::sync::Arc;
use std::time::{Duration, Instant};
use verdict::{is_paid_for, outcome, sight, turned_away};
use wire::{Infer, ModelEntry};

/// Everything the path needs; shared by all requests.
#[derive(Debug)]
pub struct InferPath {
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

impl InferPath {
    /// The version that stands for a model of which none was named: the one that answers most, if it is ready.
    pub(crate) fn typical<'a>(&self, models: &Models, target: Target<'a>) -> Target<'a> {
        let mostly = || {
            let version = self.ledger.mostly(&self.live.load().snapshot, target.model)?.0;
            models.is_ready(target.model, version).then_some(version)
        };
        Target { pinned: target.pinned.or_else(mostly), ..target }
    }

    /// Room for a request with this head, of which nothing else is known yet.
    pub(crate) fn room_for(&self, head: &http::request::Parts) -> Result<Slot, Refusal> {
        let generation = self.live.load();
        let snapshot = &generation.snapshot;
        self.slots.enter_as(snapshot, snapshot.standing(&Caller::new(head)))
    }

    /// Answers one infer request.
    pub async fn infer<C: Call>(
        &self,
        call: &mut C,
        target: Target<'_>,
        record: &mut Record,
    ) -> Result<C::Answer, Refusal> {
        let answer = self.answer(call, target, record).await;
        let knows = |name| self.live.load().snapshot.model(name).is_some() || self.directory.load().has(name);
        if answer.is_err() && record.version.is_none() && knows(target.model) {
            record.model = Some(target.model.to_owned());
        }
        answer
    }

    async fn answer<C: Call>(
        &self,
        call: &mut C,
        target: Target<'_>,
        record: &mut Record,
    ) -> Result<C::Answer, Refusal> {
        let generation = self.live.load(); // pinned: one request, one generation
        record.generation = generation.number;
        let snapshot = &generation.snapshot;
        let standing = snapshot.standing(&Caller::new(call.head()));
        let mut slot = self.slots.enter_as(snapshot, standing)?;
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
        if let Some(chosen) = early.as_ref().filter(|_| is_told_by_others(standing)) {
            let of_policy = snapshot.deadline(target.model);
            self.must_be_in_time((target, &models), chosen, (most, of_policy), record.started)?;
        }
        let admitted = self.admit(call, snapshot, target, record)?;
        if let Some(chosen) = &early {
            self.must_not_fail(snapshot, (target, &models), chosen, record.started)?;
        }
        let may_be_remote = match &early {
            Some(chosen) => snapshot.remote(target.model, Version(chosen.number)).is_some(),
            None => snapshot.model(target.model).is_some_and(ModelPolicy::has_remotes),
        };
        if may_be_remote {
            // Before a version is asked: what the head says of it is its caller's doing.
            remote::hops(&call.head().headers)?;
        }
        let body = self.read(call, may_be_remote, &mut slot).await?;
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
                    let sight = sight::<()>(&Err(refusal.clone()), Duration::ZERO, (most, most));
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
        let now = Instant::now();
        let (head, usage) = (Caller::new(call.head()), usage(request.as_ref(), body.len()));
        let charged = self.ledger.charge(snapshot, target.model, &head, admitted, usage, now);
        let charged = charged.map_err(|refused| limited(record, refused))?;
        record.quota = charged.quota;
        let mut reserved = charged.reserved;
        let deadline = Deadline::of(most, request.as_ref(), now);
        let (version, by, pass) = self.pass(snapshot, (target, &models), &chosen, record, now)?;
        let by = by.within(deadline.given, snapshot.deadline(target.model));
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
                // It has been told, and how long another version takes says nothing of this one.
                drop(attempt.under_way.take());
            }
            asking = again;
            attempt = self.attempt(call, &body, None, (&asking, pass), record).await;
        }
        if !attempt.is_paid_for {
            reserved.give_back();
        }
        self.witness((target, &asking.models), asking.by, attempt.sight, attempt.ended);
        drop(attempt.under_way);
        let answer = attempt.answer.map_err(|unanswered| unanswered.refusal)?;
        // The version has done its part, and the request is paid for, whether or not there is room to write what came of it.
        drop(body);
        record.slot.as_mut().map_or(Ok(()), |slot| slot.answer(C::bytes(&answer)))?;
        Ok(answer)
    }

    /// Turns away what the engine predicts to wait for longer than it can, before its body is read.
    fn must_be_in_time(
        &self,
        (target, models): (Target<'_>, &Models),
        chosen: &Chosen,
        (most, of_policy): (Duration, Duration),
        now: Instant,
    ) -> Result<(), Refusal> {
        let gate = models.gate(target.model, chosen.number);
        let Some(retry_after) = gate.and_then(|gate| gate.check(most, now)) else { return Ok(()) };
        let by = chosen.by.within(most, of_policy);
        self.witness((target, models), by, Some(turned_away(most, of_policy)), now);
        Err(Refusal::Busy { why: "more waits than can be answered in time".into(), retry_after })
    }

    /// Turns away whom the chosen version would not let in, before its body is read.
    fn must_not_fail(
        &self,
        snapshot: &Snapshot,
        (target, models): (Target<'_>, &Models),
        chosen: &Chosen,
        now: Instant,
    ) -> Result<(), Refusal> {
        let version = Version(chosen.number);
        let Some(Tripped { retry_after }) = self.ledger.refuses(snapshot, target.model, version, now) else {
            return Ok(());
        };
        self.witness((target, models), chosen.by, Some(Sight::Tripped), now);
        Err(Refusal::Tripped { model: target.model.to_owned(), version: version.0, retry_after })
    }

    /// Spends what can be spent without the body.
    fn admit<C: Call>(
        &self,
        call: &C,
        snapshot: &Snapshot,
        target: Target<'_>,
        record: &mut Record,
    ) -> Result<Admitted, Refusal> {
        let head = Caller::new(call.head());
        record.places = Some(self.ledger.occupy(snapshot, target.model, &head).map_err(Refusal::Crowded)?);
        let admitted = self.ledger.admit(snapshot, target.model, &head, || call.length(), record.started);
        let admitted = admitted.map_err(|refused| limited(record, refused))?;
        record.quota.clone_from(&admitted.quota);
        record.stages.admitted = Some(Instant::now());
        Ok(admitted)
    }

    async fn read<C: Call>(
        &self,
        call: &mut C,
        may_be_remote: bool,
        slot: &mut Slot,
    ) -> Result<Body, Refusal> {
        let encoding = if may_be_remote { Encoding::Any } else { Encoding::Known };
        let as_it_came = call.read(&self.body, encoding, slot).await?;
        let plain = call.inflate(as_it_came.clone(), &self.body, slot).await;
        Ok(Body { as_it_came, plain })
    }

    /// The way past the breaker of the chosen version, or of the one that answers meanwhile. Reading the body may have taken
    /// long: a rollout may be over by now.
    fn pass(
        &self,
        snapshot: &Snapshot,
        (target, models): (Target<'_>, &Models),
        chosen: &Chosen,
        record: &mut Record,
        now: Instant,
    ) -> Result<(u64, By, Pass), Refusal> {
        let (early, decided) = (Version(chosen.number), (chosen.picked, chosen.by.assigned));
        let (Version(version), assigned) = self.ledger.confirm(snapshot, target.model, early, decided);
        let by = By { assigned, ..chosen.by };
        if version != chosen.number {
            record.divert(version, Instead::RolledBack);
        }
        match self.enter(snapshot, target.model, version, now) {
            Ok(pass) => Ok((version, by, pass)),
            Err(tripped) => {
                self.witness((target, models), by, Some(Sight::Tripped), now);
                let (instead, pass) =
                    self.fall_back(snapshot, models, target, version, now).ok_or(tripped)?;
                record.divert(instead, Instead::Fallback);
                Ok((instead, By { assigned: None, ..by }, pass))
            }
        }
    }

    /// Tells the rollout that has assigned a request what became of it.
    fn witness(&self, (target, models): (Target<'_>, &Models), by: By, sight: Option<Sight>, now: Instant) {
        if let Some((assigned, sight)) = by.assigned.zip(sight) {
            // What both sides refuse, whoever sends it to whom, says nothing about either.
            if sight == Sight::Refused && take_the_same(models, target.model, assigned.versions()) {
                return;
            }
            self.ledger.witness(target.model, assigned, by.caller, sight, now);
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
        let under_way = asking.by.assigned.and_then(|assigned| self.ledger.ask(model, assigned));
        let entry = declaration(asking.snapshot, &asking.models, model, version);
        let read = |call: &mut C| body.decode(call, entry);
        let answer = match asking.snapshot.remote(model, Version(version)) {
            // Boxed: they are ten times what waiting for the engine takes, and every request would carry it.
            Some(remote) => match call.forward(remote.tensors()) {
                Some(head) => {
                    let copy = request.and_then(|mut request| {
                        asking.snapshot.model(model)?.shadow()?;
                        let infer = self.engine_request(&mut request, asking, record);
                        self.copy(call, (&infer, &request), body, asking)
                    });
                    let asked = self.elsewhere(call, remote, (head, copy), body, asking, record);
                    let answer = Box::pin(asked).await;
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
            Ok((answer, said)) => {
                if let Err(refusal) = &said {
                    record.refuse(refusal);
                }
                (Ok(answer), said)
            }
            Err(unanswered) => {
                let said = Err(unanswered.refusal.clone());
                (Err(unanswered), said)
            }
        };
        let (outcome, ended) = (if is_lost { Outcome::Lost } else { outcome(&said) }, Instant::now());
        record.outcome = Some(outcome);
        pass.settle(outcome, ended);
        let most = asking.snapshot.deadline(asking.target.model);
        let given = asking.deadline.given;
        let sight = if is_lost { Some(Sight::Lost) } else { sight(&said, ended - asking.now, (given, most)) };
        if let Some(under_way) = &under_way {
            under_way.ended(ended - asking.now, sight);
        }
        Attempt { answer, sight, is_paid_for: is_paid_for(&said), ended, under_way }
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
            self.shadows.drop_one(target.model, version.0, by.assigned);
            return None;
        }
        let server = match server {
            None => None,
            Some(remote) => {
                let (head, body) = match call.forward(remote.tensors()) {
                    Some(head) => (head, body.as_it_came.clone()),
                    None => {
                        let parameters = call.parameters(body.plain.as_ref().ok()?).ok()?;
                        let headers = &call.head().headers;
                        translated::written((infer, payload), parameters, headers, remote.tensors()).ok()?
                    }
                };
                Some(ToServer::new(remote, head, body))
            }
        };
        self.shadows.copy(policy, models, (infer, payload), server, by.assigned)
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

    /// Whether it does not agree with itself, is JSON only to who reads `NaN`, or has datatypes that are unknown here: whatever its
    /// model takes, an answer of this status says no more about a version. What is compressed in an unknown way may be readable there.
    /// Many servers read `NaN`, and 503 is what is said of one that is not there as well.
    fn is_malformed<C: Call>(&self, call: &mut C, answered: http::StatusCode) -> bool {
        let decoded = |call: &mut C| self.plain.as_ref().ok().map(|plain| call.decode(plain, None));
        !call.is_read_by_declaration()
            && match decoded(call) {
                Some(Ok(request)) => {
                    request.has_bare_words && answered == http::StatusCode::INTERNAL_SERVER_ERROR
                }
                Some(Err(refusal)) => matches!(refusal, Refusal::Invalid(_)),
                None => false,
            }
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
    /// For as long as the rollout has not been told.
    under_way: Option<UnderWay>,
}

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

/// Whether two versions refuse the same requests.
fn take_the_same(models: &Models, model: &str, (one, other): (Version, Version)) -> bool {
    let takes = |version: Version| models.entry(model, version.0).map(|entry| entry.takes);
    takes(one).is_some_and(|one| one != 0 && Some(one) == takes(other))
}

/// Whether what is too late for others is for this request: not where it goes after them, or has a share of its own.
fn is_told_by_others(standing: Standing) -> bool {
    standing.tenant == 0 && standing.criticality >= Criticality::Normal
}
