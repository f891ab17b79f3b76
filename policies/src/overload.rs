//! Who is turned away first when there is not enough for all: how critical a request is, and whose it is. Decides neither
//! when that is nor who in particular: the engine, which has the queue, does.

use crate::attribute::{Attribute, Attributes, Condition};
use xxhash_rust::xxh3::xxh3_64;

/// How much is lost when a request is turned away. The last of these goes first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
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
}
