//! What the breakers of both versions do to how these can be compared. Chance divides requests evenly, and breakers do not: the version
//! that gets more of them trips first where both fail alike, and comes back first. From then on what fails on one side is turned away
//! many a second, and on the other it is not, or is turned away when the first answers again.
//!
//! ```text
//!   baseline   ███ fails ░░░░░░░░░░░░░ turned away ░░░░░░░░░░░░░░│ answers ───────────────────▶
//!   candidate  ████████████ fails ░░░░░░░░░░░░ turned away ░░░░░░░░░░░░░░░░░░░░░░░│ answers ──▶
//!              Passing│ OneTripped │ Unlike                                       │ Passing
//! ```
//!
//! So what goes wrong while one of them has tripped is heard in bursts, of both sides together: all of the one is turned away, and of the
//! other what fails. What goes wrong where the other one did not let through all the while, when it tripped or since, is not compared: it
//! may be the end of what both have had, and who comes back first is chance. A version that goes on failing fails its next probe,
//! which the other one does not.
//!
//! Where both fail now and then, chance trips one of them: all of that one is turned away then, and of the other what fails. So it is
//! compared only as long as the other one does so well that chance does not trip it; else it is not until that breaker trips again,
//! or lets through.

use std::time::Instant;

use crate::breaker::{Since, Standing};

/// How they stand to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Breakers {
    /// Both let everyone in.
    Passing,
    /// One does not, and the other one does since before that and does well.
    OneTripped,
    /// Neither does, or one of them only since the other one does not, or it has not done well.
    Unlike,
}

impl Breakers {
    /// `by_chance` is the last trip that may have been so.
    pub(crate) fn of(both: [Standing; 2], by_chance: Option<Instant>) -> Self {
        match both.map(|one| one.since) {
            [Since::Passing(_), Since::Passing(_)] => Self::Passing,
            [Since::Passing(since), Since::Tripped(by)] | [Since::Tripped(by), Since::Passing(since)]
                if since.is_none_or(|since| since <= by) && by_chance != Some(by) =>
            {
                Self::OneTripped
            }
            [Since::Passing(_) | Since::Tripped(_), Since::Tripped(_)]
            | [Since::Tripped(_), Since::Passing(_)] => Self::Unlike,
        }
    }
}

/// The trip of one of them, if the other one does not so well that chance does not trip it.
pub(super) fn tripped_by_chance(both: [Standing; 2]) -> Option<Instant> {
    match both {
        [
            Standing { since: Since::Passing(_), ails: true, .. },
            Standing { since: Since::Tripped(by), .. },
        ]
        | [
            Standing { since: Since::Tripped(by), .. },
            Standing { since: Since::Passing(_), ails: true, .. },
        ] => Some(by),
        _ => None,
    }
}
