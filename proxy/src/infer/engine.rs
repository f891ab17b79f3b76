//! What the engine is asked, and what its reply means: an answer, or why there is none and whether asking again may help. Decides
//! how long to wait; never which version is asked.

use super::once_more::{Again, Unanswered};
use super::{Asking, InferPath};
use crate::call::Call;
use crate::deadline::Deadline;
use crate::decode::InferRequest;
use crate::link::{LinkError, Pending};
use crate::pulse::SOON;
use crate::record::Record;
use crate::refusal::Refusal;
use crate::trace::Trace;
use policies::{Criticality, Standing};
use std::time::{Duration, Instant};
use wire::{Frame, Infer, Reply, Status};

impl InferPath {
    /// What it is asked. Takes inputs and outputs out of the request.
    pub(super) fn engine_request(
        &self,
        request: &mut InferRequest,
        asking: &Asking<'_>,
        record: &Record,
    ) -> Infer {
        let mut infer = Infer {
            model: asking.target.model.to_owned(),
            version: asking.version,
            budget_us: asking.deadline.left(asking.now).as_micros().max(1) as u64,
            inputs: std::mem::take(&mut request.inputs),
            outputs: request.outputs.iter().map(|output| output.name.clone()).collect(),
            trace: record.sampling.kept().map(Trace::to_wire),
            priority: request.priority,
            caller: asking.by.caller.unwrap_or_default(),
            ..Infer::default()
        };
        stand(&mut infer, asking.standing);
        infer
    }

    /// Sends the request and waits for its reply, its deadline, or its client's departure.
    pub(super) async fn ask<C: Call>(
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
            Ok(Status::OutputsTooLarge) => (Refusal::OutputsTooLarge(reply.message), Again::Never),
            // It was there when it was chosen.
            Ok(Status::NotFound) => (Refusal::NotReady(reply.message), Again::Choose),
            Ok(Status::Overloaded) => {
                let wait = Duration::from_micros(reply.retry_after_us);
                let retry_after = wait.saturating_sub(Duration::from_micros(infer.budget_us));
                // Asking again would feed the overload.
                (Refusal::Busy { why: reply.message, retry_after }, Again::Never)
            }
            Ok(Status::DeadlineExceeded) => {
                (deadline.would_be_exceeded(&reply.message, Instant::now()), Again::Never)
            }
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
