//! What an answer, or that there is none, says about the version that was asked: to its breaker, and to a rollout; and whether
//! the caller pays for it. Every way to end is judged here and nowhere else.

use crate::refusal::Refusal;
use policies::{Outcome, Sight};
use std::time::Duration;

/// What an answer after so long says about the version in a rollout; nothing if the version was not asked. A request had `given`,
/// of `most` by the policy.
pub(super) fn sight<T>(
    answer: &Result<T, Refusal>,
    took: Duration,
    (given, most): (Duration, Duration),
) -> Option<Sight> {
    match answer {
        Ok(_) => Some(Sight::Answered(took)),
        Err(
            Refusal::ModelFailed(_)
            | Refusal::RemoteFailed(_)
            | Refusal::RemoteUnreachable(_)
            | Refusal::Internal(_),
        ) => Some(Sight::Failed),
        Err(Refusal::DeadlineExceeded { .. } | Refusal::RemoteTimeout { .. }) => Some(Sight::Late(took)),
        Err(Refusal::ClientGone) => Some(Sight::Gone(took)),
        Err(Refusal::Busy { .. }) => Some(turned_away(given, most)),
        // It was asked, and another one may have known how.
        Err(Refusal::Invalid(_) | Refusal::Unsupported(_)) => Some(Sight::Refused),
        Err(Refusal::OutputsTooLarge(_)) => Some(Sight::Unsendable),
        Err(Refusal::Tripped { .. }) => Some(Sight::Tripped),
        Err(Refusal::EngineDown(_) | Refusal::NotReady(_) | Refusal::Overloaded(_)) => {
            Some(Sight::Unanswered)
        }
        Err(
            Refusal::NotFound(_)
            | Refusal::Forbidden(_)
            | Refusal::Method { .. }
            | Refusal::TooLarge { .. }
            | Refusal::Oversized { .. }
            | Refusal::Crowded(_)
            | Refusal::Encoding { .. }
            | Refusal::BodyTimeout { .. }
            | Refusal::Looping { .. }
            | Refusal::Limited { .. },
        ) => None,
    }
}

/// Of a request that would have waited for longer than it can: who brings less time than the policy gives would have been late.
pub(super) fn turned_away(given: Duration, most: Duration) -> Sight {
    if given < most { Sight::Late(given) } else { Sight::Unanswered }
}

/// What an answer says about the version that was asked.
pub(super) fn outcome<T>(answer: &Result<T, Refusal>) -> Outcome {
    match answer {
        Ok(_) => Outcome::Served,
        Err(
            Refusal::ModelFailed(_)
            | Refusal::RemoteFailed(_)
            | Refusal::RemoteUnreachable(_)
            | Refusal::RemoteTimeout { .. }
            | Refusal::Internal(_),
        ) => Outcome::Failed,
        Err(Refusal::ClientGone) => Outcome::Abandoned,
        // A missed deadline may be another model's doing, on the lanes that they share, or its caller's impatience.
        // An engine that is not there says nothing about any version; one that went with the request is the caller's to tell.
        Err(
            Refusal::DeadlineExceeded { .. }
            | Refusal::EngineDown(_)
            | Refusal::NotReady(_)
            | Refusal::Overloaded(_)
            | Refusal::Busy { .. }
            | Refusal::Invalid(_)
            | Refusal::OutputsTooLarge(_)
            | Refusal::NotFound(_)
            | Refusal::Forbidden(_)
            | Refusal::Method { .. }
            | Refusal::Unsupported(_)
            | Refusal::TooLarge { .. }
            | Refusal::Oversized { .. }
            | Refusal::Crowded(_)
            | Refusal::Encoding { .. }
            | Refusal::BodyTimeout { .. }
            | Refusal::Looping { .. }
            | Refusal::Limited { .. }
            | Refusal::Tripped { .. },
        ) => Outcome::Refused,
    }
}

/// Whether a request that was sent has cost its caller the rows and bytes that it has: it has run, or whether it has is not
/// known and that is the caller's own doing. Else whoever leaves in time would compute for nothing.
pub(super) fn is_paid_for<T>(answer: &Result<T, Refusal>) -> bool {
    match answer {
        Ok(_)
        | Err(
            Refusal::ModelFailed(_)
            | Refusal::OutputsTooLarge(_)
            | Refusal::Internal(_)
            | Refusal::DeadlineExceeded { .. }
            | Refusal::RemoteTimeout { .. }
            | Refusal::ClientGone,
        ) => true,
        Err(
            Refusal::RemoteFailed(_)
            | Refusal::RemoteUnreachable(_)
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
            | Refusal::Looping { .. }
            | Refusal::Limited { .. }
            | Refusal::Tripped { .. },
        ) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_turned_away_does_not_pay_and_who_left_does() {
        let pays = |refusal| is_paid_for::<()>(&Err(refusal));
        assert!(is_paid_for(&Ok(())) && pays(Refusal::ModelFailed("x".into())) && pays(Refusal::ClientGone));
        assert!(pays(Refusal::OutputsTooLarge("x".into())), "it has run");
        let busy = Refusal::Busy { why: "x".into(), retry_after: Duration::ZERO };
        assert!(!pays(busy) && !pays(Refusal::EngineDown("x".into())) && !pays(Refusal::Invalid("x".into())));
    }

    #[test]
    fn who_is_turned_away_and_waits_for_less_than_the_policy_lets_would_have_been_late() {
        let (short, long) = (Duration::from_millis(1), Duration::from_secs(1));
        let busy = |given| {
            let refusal = Refusal::Busy { why: "x".into(), retry_after: Duration::ZERO };
            sight::<()>(&Err(refusal), Duration::ZERO, (given, long))
        };
        assert_eq!((busy(short), busy(long)), (Some(Sight::Late(short)), Some(Sight::Unanswered)));
    }

    /// It would be taken for the caller's mistake where both versions declare the same inputs.
    #[test]
    fn outputs_that_are_too_large_are_no_failure_and_are_heard_of_a_version_like_what_it_refuses() {
        let answer = Err::<(), _>(Refusal::OutputsTooLarge("x".into()));
        let second = Duration::from_secs(1);
        assert_eq!(sight(&answer, second, (second, second)), Some(Sight::Unsendable));
        assert_eq!(outcome(&answer), Outcome::Refused);
    }

    #[test]
    fn only_the_versions_own_failures_count_against_it() {
        let judge = |refusal| outcome::<()>(&Err(refusal));
        assert_eq!(outcome(&Ok(())), Outcome::Served);
        assert_eq!(judge(Refusal::ModelFailed("x".into())), Outcome::Failed);
        assert_eq!(judge(Refusal::Internal("x".into())), Outcome::Failed);
        assert_eq!(
            judge(Refusal::DeadlineExceeded { deadline: Duration::ZERO, predicted: None }),
            Outcome::Refused
        );
        assert_eq!(judge(Refusal::RemoteTimeout { waited: Duration::ZERO }), Outcome::Failed);
        assert_eq!(judge(Refusal::EngineDown("gone".into())), Outcome::Refused);
        assert_eq!(judge(Refusal::Invalid("x".into())), Outcome::Refused);
        assert_eq!(judge(Refusal::ClientGone), Outcome::Abandoned);
    }
}
