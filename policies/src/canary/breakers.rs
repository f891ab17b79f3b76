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

use crate::breaker::Since;

/// How they stand to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Breakers {
    /// Both let everyone in.
    Passing,
    /// One does not, and the other one does since before that.
    OneTripped,
    /// Neither does, or one of them only since the other one does not.
    Unlike,
}

impl Breakers {
    pub(crate) fn of(both: [Since; 2]) -> Self {
        match both {
            [Since::Passing(_), Since::Passing(_)] => Self::Passing,
            [Since::Passing(since), Since::Tripped(by)] | [Since::Tripped(by), Since::Passing(since)]
                if since.is_none_or(|since| since <= by) =>
            {
                Self::OneTripped
            }
            [Since::Passing(_) | Since::Tripped(_), Since::Tripped(_)]
            | [Since::Tripped(_), Since::Passing(_)] => Self::Unlike,
        }
    }
}
