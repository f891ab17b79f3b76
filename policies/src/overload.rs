//! Who is turned away first when there is not enough for all: how critical a request is, whose it is, and which part of a
//! room that all share is kept from it. Decides neither when that is nor who in particular: who has the room or the queue
//! does.

use crate::attribute::{Attribute, Attributes, Condition};
use xxhash_rust::xxh3::xxh3_64;

/// How much is lost when a request is turned away. The last of these goes first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Criticality {
    /// More than usual.
    Critical,
    /// As much as usual.
    #[default]
    Normal,
    /// Less than usual: it can be asked again later, or not at all.
    Sheddable,
}

/// A request's place among others when there is not enough for all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// How critical it is.
    pub criticality: Criticality,
    /// Whose it is, as a hash; 0 for all of whom nobody says.
    pub tenant: u64,
}

/// Of a room that all requests share, how much may be taken when one comes in; the rest is for more critical ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    percent: usize,
}

impl Room {
    /// Nothing is kept for others.
    pub const ALL: Self = Self { percent: 100 };
    /// The last tenth is for critical requests.
    const NORMAL: Self = Self { percent: 90 };
    /// The last quarter is not for sheddable ones.
    const SHEDDABLE: Self = Self { percent: 75 };

    /// How much that is of `whole`; something of everything that is not 0.
    pub fn of(self, whole: usize) -> usize {
        (whole as u128 * self.percent as u128).div_ceil(100) as usize
    }
}

/// What the policy says of that.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct OverloadPolicy {
    /// What tells tenants apart.
    pub(crate) tenant: Option<Attribute>,
    /// The first that holds decides.
    pub(crate) criticality: Vec<(Condition, Criticality)>,
}

impl OverloadPolicy {
    pub(crate) fn standing(&self, caller: &impl Attributes) -> Standing {
        let criticality = self.criticality.iter().find(|(when, _)| when.holds(caller));
        let tenant = self.tenant.as_ref().and_then(|tenant| tenant.of(caller));
        Standing {
            criticality: criticality.map_or_else(Criticality::default, |(_, is)| *is),
            // A hash of 0 is as good as any other.
            tenant: tenant.map_or(0, |tenant| xxh3_64(tenant.as_bytes()).max(1)),
        }
    }
}

impl OverloadPolicy {
    /// How much of a room that all share is open to such a request. Nothing is kept where nobody is critical.
    pub(crate) fn room(&self, criticality: Criticality) -> Room {
        let some_are_critical = || self.criticality.iter().any(|(_, is)| *is == Criticality::Critical);
        match criticality {
            Criticality::Normal if some_are_critical() => Room::NORMAL,
            Criticality::Critical | Criticality::Normal => Room::ALL,
            Criticality::Sheddable => Room::SHEDDABLE,
        }
    }
}

impl Criticality {
    /// The word for it in policies.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Critical => "critical",
            Self::Normal => "normal",
            Self::Sheddable => "sheddable",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse;

    #[test]
    fn the_first_that_holds_says_how_critical_a_request_is() {
        let text = "
overload:
  tenant: {header: x-tenant}
  criticality:
    - {when: {header: x-traffic, equals: checkout}, is: critical}
    - {when: {header: x-traffic, present: true}, is: sheddable}
";
        let snapshot = parse(text, "policies.yaml").unwrap();
        let of = |traffic| snapshot.standing(&[("x-traffic", traffic)]).criticality;
        assert_eq!(
            ["checkout", "batch", ""].map(of),
            [Criticality::Critical, Criticality::Sheddable, Criticality::Normal]
        );
        let tenant = |name| snapshot.standing(&[("x-tenant", name)]).tenant;
        assert_eq!((tenant("a"), tenant("")), (tenant("a"), 0));
        assert!(tenant("a") != tenant("b") && tenant("a") != 0);
        assert_eq!(parse("", "policies.yaml").unwrap().standing(&[("x-tenant", "a")]), Standing::default());
    }

    #[test]
    fn less_critical_requests_are_kept_out_of_the_last_of_a_room() {
        let snapshot =
            |criticality: &str| parse(&format!("overload: {{criticality: [{criticality}]}}"), "p").unwrap();
        let rooms = |snapshot: &crate::Snapshot, whole| {
            [Criticality::Critical, Criticality::Normal, Criticality::Sheddable]
                .map(|criticality| snapshot.room(criticality).of(whole))
        };
        let checkout = snapshot("{when: {header: x-traffic, equals: checkout}, is: critical}");
        assert_eq!(rooms(&checkout, 1024), [1024, 922, 768]);
        assert_eq!(rooms(&checkout, 1), [1, 1, 1], "nobody is kept out for good");
        assert_eq!(rooms(&checkout, usize::MAX)[0], usize::MAX);
        let batch = snapshot("{when: {header: x-traffic, equals: batch}, is: sheddable}");
        assert_eq!(rooms(&batch, 1024), [1024, 1024, 768], "nothing is kept for nobody");
        assert_eq!(rooms(&parse("", "p").unwrap(), 1024)[1], 1024);
    }
}
