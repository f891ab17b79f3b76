//! What a gate watches: which requests say that it has happened, and whose doing it is. Decides nothing about how often it may.

use std::time::Duration;

use crate::canary::{Breakers, Patience, Sight};
use crate::drift::DriftGate;

/// What is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// There was no answer.
    Error,
    /// It took longer than this.
    Slow(Duration),
    /// Whoever runs the version says that it has failed, or has gone with the request.
    Fault,
    /// A copy of a request that the baseline has answered got another answer from the candidate.
    Disagreement,
}

/// Of all gates, with the one that counts no events.
pub(crate) const NAMES: [&str; 5] = [
    Event::Error.gate(),
    Event::Slow(Duration::ZERO).gate(),
    Event::Fault.gate(),
    Event::Disagreement.gate(),
    DriftGate::NAME,
];

impl Event {
    pub(crate) const fn gate(self) -> &'static str {
        match self {
            Self::Error => "errors",
            Self::Slow(_) => "latency",
            Self::Fault => "faults",
            Self::Disagreement => "disagreement",
        }
    }

    /// What is slow, where that is what is watched.
    pub(super) fn over(self) -> Option<Duration> {
        match self {
            Self::Slow(over) => Some(over),
            Self::Error | Self::Fault | Self::Disagreement => None,
        }
    }

    /// Whether what counts is that it happens to the candidate more often than to the baseline; else more often than the
    /// policy allows, because to the baseline it cannot happen.
    pub(super) fn is_compared_with_the_baseline(self) -> bool {
        match self {
            Self::Error | Self::Slow(_) | Self::Fault => true,
            Self::Disagreement => false,
        }
    }

    /// Whether a request shows that the event happened; nothing where it shows nothing.
    pub(super) fn happened(self, sight: Sight, patience: Patience, key: Option<u64>) -> Option<bool> {
        match (self, sight) {
            (Self::Error, Sight::Answered(_)) => Some(false),
            // The baseline's full queue balances the candidate's.
            (
                Self::Error,
                Sight::Failed
                | Sight::Lost
                | Sight::Tripped
                | Sight::Unanswered
                | Sight::Refused
                | Sight::Unsendable,
            ) => Some(true),
            (Self::Error, Sight::Late(_) | Sight::Gone(_)) => {
                (patience != Patience::Short || key.is_none()).then_some(true)
            }
            (Self::Slow(over), Sight::Answered(took)) => Some(took > over),
            // Who gave up early says nothing.
            (Self::Slow(over), Sight::Late(took) | Sight::Gone(took)) => (took > over).then_some(true),
            (
                Self::Slow(_),
                Sight::Failed
                | Sight::Lost
                | Sight::Tripped
                | Sight::Unanswered
                | Sight::Refused
                | Sight::Unsendable,
            ) => None,
            (Self::Fault, Sight::Answered(_)) => Some(false),
            (Self::Fault, Sight::Failed | Sight::Lost) => Some(true),
            // Nobody blames the version for it.
            (
                Self::Fault,
                Sight::Late(_)
                | Sight::Gone(_)
                | Sight::Tripped
                | Sight::Unanswered
                | Sight::Refused
                | Sight::Unsendable,
            ) => None,
            (Self::Disagreement, Sight::Compared { agrees }) => Some(!agrees),
            (Self::Disagreement, _) | (_, Sight::Compared { .. } | Sight::NotCompared) => None,
        }
    }

    /// Whether it can happen to both as often, while their breakers do this.
    pub(super) fn can_be_compared(self, breakers: Breakers) -> bool {
        match (self, breakers) {
            (_, Breakers::Passing) | (Self::Error, Breakers::OneTripped) => true,
            (_, Breakers::Unlike) => false,
            // Who is turned away is neither slow nor at fault.
            (Self::Slow(_) | Self::Fault | Self::Disagreement, Breakers::OneTripped) => false,
        }
    }

    /// Whether it is the version's, and so counts against what the policy allows, and not the caller's.
    pub(super) fn is_the_versions(self, sight: Sight, patience: Patience) -> bool {
        match (self, sight) {
            (Self::Error, Sight::Refused | Sight::Unsendable) => false,
            (Self::Error, Sight::Late(_) | Sight::Gone(_)) => patience == Patience::Long,
            (Self::Error | Self::Slow(_) | Self::Fault | Self::Disagreement, _) => true,
        }
    }
}
