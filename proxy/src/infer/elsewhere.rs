//! Versions that another server answers: how one is asked, as the request came where its caller speaks that server's protocol, in
//! other words where not. Decides only that; which version answers, the path decides.

use super::{Asking, Body, InferPath};
use crate::call::{Call, Inferred};
use crate::decode::InferRequest;
use crate::directory::Models;
use crate::record::{Elsewhere, Record, Retry};
use crate::refusal::Refusal;
use crate::remote::{ANSWER_BYTES_MAX, Passed, Stale};
use crate::request_id::REQUEST_ID;
use crate::shadow::{Answer, Copy, Written};
use crate::translated;
use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use policies::{Remote, Snapshot, Version};
use std::collections::BTreeMap;
use std::time::Instant;
use wire::{ModelEntry, ModelState};

/// To a body that does not agree with itself Triton and MLServer answer the first, and TorchServe the second. Nobody could have done better,
/// and whoever sends a few of them would have the version taken from everybody.
const FAILED: [StatusCode; 2] = [StatusCode::INTERNAL_SERVER_ERROR, StatusCode::SERVICE_UNAVAILABLE];

/// What a server is asked: method, headers, body.
type Asked = ((Method, HeaderMap), Bytes);

impl InferPath {
    /// Has another server answer a request as it came; and what that answer says about the version.
    pub(super) async fn elsewhere<C: Call>(
        &self,
        call: &mut C,
        remote: &Remote,
        (head, copy): ((Method, HeaderMap), Option<Copy>),
        body: &Body,
        asking: &Asking<'_>,
        record: &mut Record,
    ) -> Result<(C::Answer, Result<(), Refusal>), Refusal> {
        let asked = (head, body.as_it_came.clone());
        let passed = self.exchange(call, remote, asked, asking, record).await?;
        let said = match passed.refusal() {
            None => Ok(()),
            Some(Refusal::RemoteFailed(_))
                if FAILED.contains(&passed.status) && body.is_malformed(call, passed.status) =>
            {
                let status = passed.status.as_u16();
                let why = format!("the other server answered {status}, and nobody here could read it");
                Err(Refusal::Invalid(why))
            }
            Some(refusal) => Err(refusal),
        };
        if let (Some(copy), Ok(())) = (copy, &said) {
            self.shadows.send(copy, Answer::Server(Written::of(&passed)));
        }
        Ok((call.pass(passed), said))
    }

    /// Has another server answer who asks in a way that it does not understand.
    pub(super) async fn in_other_words<C: Call>(
        &self,
        call: &mut C,
        remote: &Remote,
        (mut request, entry): (InferRequest, Option<&ModelEntry>),
        body: &Body,
        asking: &Asking<'_>,
        record: &mut Record,
    ) -> Result<C::Answer, Refusal> {
        let infer = self.engine_request(&mut request, asking, record);
        let copy = self.copy(call, (&infer, &request), body, asking);
        let parameters = call.parameters(body.plain.as_ref().map_err(Refusal::clone)?)?;
        let (tensors, headers) = ((&infer, &request.payload), &call.head().headers);
        let asked = translated::written(tensors, parameters, headers, remote.tensors())?;
        let passed = self.exchange(call, remote, asked, asking, record).await?;
        let (reply, payload) = translated::answer(passed).await?;
        translated::settle_classes(&mut request, &reply, entry.is_some())?;
        let (model, version) = (asking.target.model, asking.version);
        let inferred = Inferred { model, version, entry, reply: &reply, payload: &payload };
        let answer = call.encode(&request, inferred)?;
        if let Some(copy) = copy {
            self.shadows.send(copy, Answer::Engine(reply.outputs, payload));
        }
        Ok(answer)
    }

    /// Asks another server, for as long as somebody waits for it.
    async fn exchange<C: Call>(
        &self,
        call: &mut C,
        remote: &Remote,
        ((method, mut headers), body): Asked,
        asking: &Asking<'_>,
        record: &mut Record,
    ) -> Result<Passed, Refusal> {
        // Lines there and here are of one request, whoever has made up its id.
        if let Some(id) = &record.request_id {
            headers.insert(REQUEST_ID, id.header().clone());
        }
        let (model, version) = (asking.target.model, Version(asking.version));
        let before = record.elsewhere.take();
        let asked = Elsewhere { before, ..Elsewhere::begin(remote, &method) };
        let elsewhere = record.elsewhere.insert(Box::new(asked));
        let (retry, resent) = (&mut record.retry, &mut elsewhere.resent);
        let may_repeat = |stale| {
            let may = match stale {
                Stale::Unsent => true,
                Stale::Unanswered => self.ledger.may_repeat(asking.snapshot, model, version),
            };
            let reason = Retry::CONNECTION_CLOSED;
            // That it was asked once more already, and why, says more.
            if !retry.is_some_and(|retry| retry.is_asked) {
                *retry = Some(Retry { version: asking.version, reason, is_asked: may });
            }
            *resent = may.then(Instant::now);
            may
        };
        let trace = record.sampling.kept().map(|trace| trace.to_headers(elsewhere.span));
        let of_policy = asking.snapshot.deadline(model);
        let terms = (&asking.deadline, of_policy, trace);
        let room = (ANSWER_BYTES_MAX, self.remotes.room()?);
        let asked = self.remotes.ask(remote, (&method, &headers), body, terms, room, may_repeat);
        let answer = tokio::select! {
            biased;
            answer = asked => answer,
            () = call.gone() => Err(Refusal::ClientGone),
        };
        let given = asking.deadline.given;
        let haste = (given < of_policy).then_some(given);
        let answer = answer.map(|passed| Passed { haste, ..passed }).map_err(|refusal| match refusal {
            // Nothing else waits there for what this request waits for, as on lanes here; and nobody was in more haste.
            Refusal::DeadlineExceeded { deadline, .. } if haste.is_none() => {
                Refusal::RemoteTimeout { waited: deadline }
            }
            refusal => refusal,
        });
        elsewhere.end(answer.as_ref().map(|passed| passed.status).map_err(Refusal::reason));
        answer
    }
}

/// What a version takes. Of another server's it is not known, and taken to be what the versions here take.
pub(super) fn declaration<'m>(
    snapshot: &Snapshot,
    models: &'m Models,
    model: &str,
    version: u64,
) -> Option<&'m ModelEntry> {
    match snapshot.remote(model, Version(version)) {
        None => models.entry(model, version),
        Some(_) => likely(snapshot, models, model),
    }
}

/// What a request is read by as long as nobody knows who answers, or where that is another server: the highest version that is
/// ready here, or was until the engine went, of those that the policy may choose if there are any.
pub(super) fn likely<'m>(snapshot: &Snapshot, models: &'m Models, model: &str) -> Option<&'m ModelEntry> {
    let ready = || {
        let versions = models.versions(model).into_iter().flat_map(BTreeMap::values);
        versions.rev().filter(|entry| entry.state() == ModelState::Ready)
    };
    let may_be_chosen = |entry: &&ModelEntry| {
        snapshot.model(model).is_some_and(|policy| policy.may_choose(Version(entry.version)))
    };
    ready().find(may_be_chosen).or_else(|| ready().next())
}
