//! What part of the requests each version is meant to get: for those who compare it with what it has got. Decides
//! nothing.

use crate::ledger::Ledger;
use crate::snapshot::Snapshot;
use crate::units::{ALL, Label, Version, percent};

/// A version's part of the requests that a split or a rollout divides.
#[derive(Clone, Debug, PartialEq)]
pub struct Share {
    /// Who gets it.
    pub version: Version,
    /// Under which label, if the policy uses one. A version may have several.
    pub label: Option<Label>,
    /// Of the requests about which no rule decides.
    pub percent: f64,
}

impl Ledger {
    /// How `snapshot` divides the requests for `model` at this moment: the weights of its split, or the step of its rollout.
    /// Nothing if it does not.
    pub fn shares(&self, snapshot: &Snapshot, model: &str) -> Vec<Share> {
        let Some(policy) = snapshot.model(model) else { return Vec::new() };
        if let Some(canary) = &policy.canary {
            let gets = self.share_now(model, canary).unwrap_or(0);
            let arms = [(&canary.baseline, ALL - gets), (&canary.candidate, gets)];
            let share = |(target, share): (&crate::pick::Target, _)| Share {
                version: target.version,
                label: target.label.clone(),
                percent: percent(share),
            };
            return arms.map(share).into();
        }
        let share = |(target, share): (&crate::pick::Target, f64)| Share {
            version: target.version,
            label: target.label.clone(),
            percent: share * 100.0,
        };
        policy.split.iter().flat_map(|split| split.shares()).map(share).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::{Command, parse};

    fn percents(ledger: &Ledger, snapshot: &Snapshot, model: &str) -> Vec<(u64, f64)> {
        ledger.shares(snapshot, model).iter().map(|share| (share.version.0, share.percent)).collect()
    }

    #[test]
    fn a_split_is_shared_by_weight_and_a_rollout_by_how_far_it_is() {
        let text = "models: {s: {labels: {old: 1}, split: {weights: {old: 3, 2: 1}}}, c: {canary: {baseline: 1, candidate: 2, steps: [10, 30]}}, none: {deadline: 1s}}";
        let (snapshot, ledger, now) = (parse(text, "p").unwrap(), Ledger::new(), Instant::now());
        assert_eq!(percents(&ledger, &snapshot, "s"), [(1, 75.0), (2, 25.0)]);
        assert_eq!(ledger.shares(&snapshot, "s")[0].label.as_deref(), Some("old"));
        assert_eq!(percents(&ledger, &snapshot, "c"), [(1, 100.0), (2, 0.0)], "nobody has begun it");
        ledger.roll_out(&snapshot, now);
        assert_eq!(percents(&ledger, &snapshot, "c"), [(1, 90.0), (2, 10.0)]);
        ledger.command("c", Command::Advance { from: None }, "", now).unwrap();
        assert_eq!(percents(&ledger, &snapshot, "c"), [(1, 70.0), (2, 30.0)]);
        ledger.command("c", Command::Promote, "", now).unwrap();
        assert_eq!(percents(&ledger, &snapshot, "c"), [(1, 0.0), (2, 100.0)]);
        assert!(ledger.shares(&snapshot, "none").is_empty() && ledger.shares(&snapshot, "other").is_empty());
    }
}
