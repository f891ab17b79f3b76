//! THE request path: one function, one line per stage. Each stage is a file of its own; this one only says
//! in which order they come and what passes between them.
//!
//! Cheap refusals come first. A rate limit is spent before the body is read, because reading it is what the limit
//! protects; a request that is refused later has spent it.

use crate::body::{BodyLimits, Encoding};
use crate::call::{Call, Inferred};
use crate::caller::Caller;
use crate::deadline::Deadline;
use crate::decode::InferRequest;
use crate::directory::{Directory, Models};
use crate::link::{LinkError, Links, Pending};
use crate::metrics::Metrics;
use crate::pulse::SOON;
use crate::record::Record;
use crate::refusal::Refusal;
use crate::remote::Remotes;
use crate::route::Target;
use crate::shadow::Shadows;
use crate::slots::Slots;
use crate::trace::Trace;
use bytes::Bytes;
use policies::{
    Assignment, Criticality, Drawn, Instead, Ledger, Limited, Live, ModelPolicy, Outcome, Pass, Remote,
    Sight, Snapshot, Standing, Usage, Version,
};
use rand::Rng;
use std::sync::Arc;
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
    pub links: Arc<Links>,
    /// Copies for other versions.
    pub shadows: Shadows,
    /// Size and time of bodies.
    pub body: BodyLimits,
    /// Room for requests.
    pub slots: Arc<Slots>,
    /// The way to versions that other servers answer.
    pub remotes: Remotes,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

impl Path {
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
        let chosen = self.choose(snapshot, &models, target, call.head())?;
        let (version, caller, assigned) = (chosen.number, chosen.caller, chosen.assigned);
        record.choose(target.model, chosen);
        let witness = |assigned: Option<Assignment>, sight: Option<Sight>, now| {
            if let Some((assigned, sight)) = assigned.zip(sight) {
                self.ledger.witness(target.model, assigned, (caller != 0).then_some(caller), sight, now);
            }
        };
        let gate = models.gate(target.model, version).filter(|_| is_told_by_others(standing));
        let most = Deadline::at_most(snapshot.deadline(target.model), call.timeout()?);
        if let Some(retry_after) = gate.and_then(|gate| gate.check(most, record.started)) {
            witness(assigned, Some(Sight::Unanswered), record.started);
            return Err(Refusal::Busy { why: "more waits than can be answered in time".into(), retry_after });
        }
        let head = Caller::new(call.head());
        record.places = Some(self.ledger.occupy(snapshot, target.model, &head).map_err(Refusal::Crowded)?);
        let admitted = self.ledger.admit(snapshot, target.model, &head, record.started);
        let admitted = admitted.map_err(|refused| limited(record, refused))?;
        record.quota.clone_from(&admitted.quota);
        let is_remote = snapshot.remote(target.model, Version(version)).is_some();
        let encoding = if is_remote { Encoding::Any } else { Encoding::Known };
        let body = call.read(&self.body, encoding, &mut slot).await?;
        let plain = call.inflate(body.clone(), &self.body, &mut slot).await;
        record.slot = Some(slot);
        record.stages.read = Some(Instant::now());
        let decode = |call: &mut C, version| {
            let plain = plain.as_ref().map_err(Refusal::clone)?;
            call.decode(plain, models.entry(target.model, version))
        };
        // What another server is asked may be in words that only it understands.
        let request = if is_remote { decode(call, version).ok() } else { Some(decode(call, version)?) };
        let now = Instant::now();
        let bytes = plain.as_ref().map_or(body.len(), Bytes::len);
        let (head, usage) = (Caller::new(call.head()), usage(request.as_ref(), bytes));
        let charged = self.ledger.charge(snapshot, target.model, &head, admitted, usage, now);
        record.quota = charged.map_err(|refused| limited(record, refused))?;
        let deadline = Deadline::of(most, request.as_ref(), now);
        // Reading the body may have taken long.
        let (confirmed, assigned) = self.ledger.confirm(target.model, Version(version), assigned);
        if confirmed.0 != version {
            record.divert(confirmed.0, Instead::RolledBack);
        }
        let version = confirmed.0;
        let (version, assigned, pass) = match self.enter(snapshot, target.model, version, now) {
            Ok(pass) => (version, assigned, pass),
            Err(tripped) => {
                witness(assigned, Some(Sight::Unanswered), now);
                let (instead, pass) =
                    self.fall_back(snapshot, &models, target, version, now).ok_or(tripped)?;
                record.divert(instead, Instead::Fallback);
                (instead, None, pass)
            }
        };
        let asking =
            Asking { snapshot, models: &models, target, version, caller, assigned, standing, deadline, now };
        let answer = match snapshot.remote(target.model, Version(version)) {
            Some(remote) => self.elsewhere(call, remote, body, &asking, record).await,
            None => match request.map_or_else(|| decode(call, version), Ok) {
                Ok(request) => self.here(call, request, &asking, record).await.map(|answer| (answer, Ok(()))),
                Err(refusal) => Err(refusal),
            },
        };
        // What is passed on as it is may be a refusal, in another server's words.
        let (answer, said) = match answer {
            Ok((answer, said)) => (Ok(answer), said),
            Err(refusal) => (Err(refusal.clone()), Err(refusal)),
        };
        let outcome = outcome(&said);
        record.outcome = Some(outcome);
        let ended = Instant::now();
        witness(assigned, sight(&said, ended - now), ended);
        pass.settle(outcome, ended);
        answer
    }

    /// Has the engine answer.
    async fn here<C: Call>(
        &self,
        call: &mut C,
        mut request: InferRequest,
        asking: &Asking<'_>,
        record: &mut Record,
    ) -> Result<C::Answer, Refusal> {
        let Asking { snapshot, models, target, version, deadline, now, .. } = *asking;
        let mut infer = engine_request(target.model, version, &mut request, &deadline, record, now);
        infer.caller = asking.caller;
        stand(&mut infer, asking.standing);
        let shadow = snapshot.model(target.model).and_then(ModelPolicy::shadow);
        let copy = shadow.and_then(|policy| {
            let (assigned, coin) = (asking.assigned, rand::rng().random());
            self.shadows.copy(policy, models, (&infer, &request.payload), assigned, coin)
        });
        let counters = self.metrics.version(target.model, version);
        let _waiting = counters.statistics.wait();
        record.asked = Some(counters);
        let answer = match self.ask(call, &infer, &mut request, &deadline, record).await {
            Ok((reply, frame)) => {
                let (model, entry) = (target.model, models.entry(target.model, version));
                let inferred = Inferred { model, version, entry, reply: &reply, payload: &frame.payload };
                let answer = call.encode(&request, inferred);
                if let Some(copy) = copy {
                    self.shadows.send(copy, reply, frame.payload);
                }
                answer
            }
            Err(refusal) => Err(refusal),
        };
        let gate = models.gate(target.model, version).filter(|_| is_told_by_others(asking.standing));
        // What is too late for a request that goes first or runs last is not for others.
        if let (Err(Refusal::Busy { retry_after, .. }), Some(gate), 0..=2) =
            (&answer, gate, infer.criticality)
        {
            gate.shut(deadline.left(now), deadline.left(now) + *retry_after, now);
        }
        answer
    }

    /// Has another server answer; and what that answer says about the version.
    async fn elsewhere<C: Call>(
        &self,
        call: &mut C,
        remote: &Remote,
        body: Bytes,
        asking: &Asking<'_>,
        record: &Record,
    ) -> Result<(C::Answer, Result<(), Refusal>), Refusal> {
        let (method, headers) = call.forward()?;
        let asked =
            self.remotes.ask(remote, (&method, &headers), body, (&asking.deadline, record.sampling.kept()));
        let passed = tokio::select! {
            biased;
            answer = asked => answer?,
            () = call.gone() => return Err(Refusal::ClientGone),
        };
        let said = passed.refusal().map_or(Ok(()), Err);
        Ok((call.pass(passed), said))
    }

    /// The version that answers: pinned by the path, else picked by the policy, else the highest that is ready.
    fn choose(
        &self,
        snapshot: &Snapshot,
        models: &Models,
        target: Target<'_>,
        head: &http::request::Parts,
    ) -> Result<Chosen, Refusal> {
        let is_ready = |version: Version| is_ready(snapshot, models, target.model, version.0);
        let draw = || rand::rng().random();
        let picked = || self.ledger.pick(snapshot, target.model, &Caller::new(head), draw(), is_ready);
        let unassigned = |number, reason| Chosen { number, reason, ..Chosen::default() };
        let chosen = match target.pinned {
            Some(number) => Some(unassigned(number, "pinned")),
            None => match picked() {
                Some(pick) => Some(Chosen {
                    number: pick.version.0,
                    label: pick.label,
                    reason: pick.reason.as_str(),
                    caller: pick.key.unwrap_or(0),
                    assigned: pick.assigned,
                    drawn: pick.drawn.map(|drawn| (drawn, pick.key)),
                    instead: pick.instead,
                }),
                None => models.highest_ready(target.model).map(|number| unassigned(number, "highest")),
            },
        };
        match chosen {
            Some(chosen) if is_ready(Version(chosen.number)) => Ok(chosen),
            other => {
                if let Some((drawn, key)) = other.as_ref().and_then(|chosen| chosen.drawn) {
                    self.ledger.count(target.model, drawn, key, None, Some(Instead::NotReady));
                }
                Err(unavailable(models, target, other.map(|chosen| chosen.number)))
            }
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
    ) -> Result<(Reply, Frame), Refusal> {
        let link = self.links.worker().await?;
        let mut pending = link.send(infer, std::mem::take(&mut request.payload))?;
        record.stages.sent = Some(Instant::now());
        let frame = wait(call, &mut pending, deadline).await?;
        record.stages.answered = Some(Instant::now());
        let mut reply: Reply = prost::Message::decode(frame.metadata.clone())
            .map_err(|error| Refusal::Internal(format!("the engine's reply does not decode: {error}")))?;
        record.timing = reply.timing.take();
        match Status::try_from(reply.status) {
            Ok(Status::Ok) => Ok((reply, frame)),
            Ok(Status::InvalidArgument) => Err(Refusal::Invalid(reply.message)),
            Ok(Status::NotFound) => Err(Refusal::NotReady(reply.message)), // it was there when it was chosen
            Ok(Status::Overloaded) => {
                let wait = Duration::from_micros(reply.retry_after_us);
                let retry_after = wait.saturating_sub(Duration::from_micros(infer.budget_us));
                Err(Refusal::Busy { why: reply.message, retry_after })
            }
            Ok(Status::DeadlineExceeded) => Err(deadline.exceeded()),
            Ok(Status::ModelFailed) => Err(Refusal::ModelFailed(reply.message)),
            Ok(Status::Unavailable) => Err(Refusal::EngineDown(reply.message)),
            Ok(Status::Internal) => Err(Refusal::Internal(reply.message)),
            Err(_) => {
                Err(Refusal::Internal(format!("the engine replied with unknown status {}", reply.status)))
            }
        }
    }
}

/// What has been decided about a request that is answered.
struct Asking<'a> {
    snapshot: &'a Snapshot,
    models: &'a Models,
    target: Target<'a>,
    version: u64,
    caller: u64,
    assigned: Option<Assignment>,
    standing: Standing,
    deadline: Deadline,
    now: Instant,
}

/// The version that was chosen, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Chosen {
    pub(crate) number: u64,
    pub(crate) label: Option<Arc<str>>,
    pub(crate) reason: &'static str,
    /// Who asks, as a hash of the sticky key; 0 without one.
    pub(crate) caller: u64,
    /// On which side of a rollout chance has put it.
    pub(crate) assigned: Option<Assignment>,
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

/// What an answer after so long says about the version in a rollout; nothing if the version was not asked.
fn sight<T>(answer: &Result<T, Refusal>, took: Duration) -> Option<Sight> {
    match answer {
        Ok(_) => Some(Sight::Answered(took)),
        Err(Refusal::ModelFailed(_) | Refusal::RemoteFailed(_) | Refusal::Internal(_)) => Some(Sight::Failed),
        Err(Refusal::DeadlineExceeded { .. }) => Some(Sight::Late(took)),
        Err(Refusal::ClientGone) => Some(Sight::Gone(took)),
        Err(Refusal::Invalid(_)) => Some(Sight::Refused),
        Err(
            Refusal::EngineDown(_)
            | Refusal::NotReady(_)
            | Refusal::Overloaded(_)
            | Refusal::Busy { .. }
            | Refusal::Tripped { .. },
        ) => Some(Sight::Unanswered),
        Err(
            Refusal::NotFound(_)
            | Refusal::Forbidden(_)
            | Refusal::Method { .. }
            | Refusal::Unsupported(_)
            | Refusal::TooLarge { .. }
            | Refusal::Oversized { .. }
            | Refusal::Crowded(_)
            | Refusal::Encoding { .. }
            | Refusal::BodyTimeout { .. }
            | Refusal::Limited { .. },
        ) => None,
    }
}

/// What an answer says about the version that was asked.
fn outcome<T>(answer: &Result<T, Refusal>) -> Outcome {
    match answer {
        Ok(_) => Outcome::Served,
        Err(Refusal::ModelFailed(_) | Refusal::RemoteFailed(_) | Refusal::Internal(_)) => Outcome::Failed,
        Err(Refusal::ClientGone) => Outcome::Abandoned,
        // A missed deadline may be another model's doing, on the lanes that they share, or its caller's impatience.
        // A lost engine takes all versions with it and says nothing about any of them.
        Err(
            Refusal::DeadlineExceeded { .. }
            | Refusal::EngineDown(_)
            | Refusal::NotReady(_)
            | Refusal::Overloaded(_)
            | Refusal::Busy { .. }
            | Refusal::Invalid(_)
            | Refusal::NotFound(_)
            | Refusal::Forbidden(_)
            | Refusal::Method { .. }
            | Refusal::Unsupported(_)
            | Refusal::TooLarge { .. }
            | Refusal::Oversized { .. }
            | Refusal::Crowded(_)
            | Refusal::Encoding { .. }
            | Refusal::BodyTimeout { .. }
            | Refusal::Limited { .. }
            | Refusal::Tripped { .. },
        ) => Outcome::Refused,
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

    #[test]
    fn only_the_versions_own_failures_count_against_it() {
        let judge = |refusal| outcome::<()>(&Err(refusal));
        assert_eq!(outcome(&Ok(())), Outcome::Served);
        assert_eq!(judge(Refusal::ModelFailed("x".into())), Outcome::Failed);
        assert_eq!(judge(Refusal::Internal("x".into())), Outcome::Failed);
        assert_eq!(
            judge(Refusal::DeadlineExceeded { deadline: std::time::Duration::ZERO }),
            Outcome::Refused
        );
        assert_eq!(judge(Refusal::EngineDown("gone".into())), Outcome::Refused);
        assert_eq!(judge(Refusal::Invalid("x".into())), Outcome::Refused);
        assert_eq!(judge(Refusal::ClientGone), Outcome::Abandoned);
    }
}
