//! Splits and rollouts as they are seen: one tally for each model whose requests are divided, begun anew when the declared
//! shares change. Requests only count; whoever looks does so a few times a second.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Instant;

use foldhash::fast::RandomState;

use super::Ledger;
use crate::canary::CanaryPolicy;
use crate::pick::Split;
use crate::snapshot::{ModelPolicy, Snapshot};
use crate::tally::{Drawn, Instead, Mismatch, SplitStatus, Tally};
use crate::units::Version;

pub(super) type Tallies = HashMap<Arc<str>, Arc<Tally>, RandomState>;

impl Ledger {
    /// Counts a request that is over, of those that [`Pick::drawn`](crate::Pick) concerns: which version has answered it,
    /// if any, and why that was not the one that was drawn.
    pub fn count(
        &self,
        model: &str,
        drawn: Drawn,
        key: Option<u64>,
        answered: Option<Version>,
        instead: Option<Instead>,
    ) {
        if let Some(tally) = self.tallies.load().get(model) {
            tally.count(drawn, key, answered, instead);
        }
    }

    /// Looks whether every model's requests are divided as declared, and gives what has just been found to be otherwise.
    /// Call it a few times a second.
    pub fn mismatches(&self, now: Instant) -> Vec<(Arc<str>, Mismatch)> {
        self.begin_windows(now);
        let tallies = self.tallies.load();
        let mut found: Vec<_> =
            tallies.iter().filter_map(|(model, tally)| Some((Arc::clone(model), tally.look()?))).collect();
        found.sort_by(|(one, _), (other, _)| one.cmp(other));
        found
    }

    /// How the requests of every model that are divided have been answered.
    pub fn splits(&self, now: Instant) -> BTreeMap<String, SplitStatus> {
        let tallies = self.tallies.load();
        let divided = tallies.iter().filter(|(_, tally)| tally.is_divided());
        divided.map(|(model, tally)| (model.to_string(), tally.status(now))).collect()
    }

    /// Follows a swap of policies.
    pub(super) fn tally(&self, snapshot: &Snapshot, now: Instant) {
        self.tallies.rcu(|tallies| {
            let followed = |(model, policy): (&Arc<str>, &Arc<ModelPolicy>)| {
                let canary = policy.canary.as_ref();
                let declared = match canary {
                    Some(canary) => canary.declared(self.share_now(model, canary).unwrap_or(0)),
                    None => policy.split.as_ref()?.declared(),
                };
                let key = match canary {
                    Some(canary) => canary.stickiness.as_ref(),
                    None => policy.split.as_ref().and_then(Split::stickiness),
                };
                let key = key.map(|sticky| sticky.key.clone());
                let goes_on = |tally: &&Arc<Tally>| (tally.mark, &tally.key) == (declared.mark, &key);
                let tally = match tallies.get(model).filter(goes_on) {
                    Some(tally) => Arc::clone(tally),
                    None => Arc::new(Tally::new(&declared, key, now)),
                };
                Some((Arc::clone(model), tally))
            };
            snapshot.models.iter().filter_map(followed).collect::<Tallies>()
        });
    }

    /// A window ends with a step of a rollout, and after a while.
    fn begin_windows(&self, now: Instant) {
        let rollouts = self.rollouts.load();
        let declared_now = |model: &str| {
            let rollout = rollouts.get(model)?;
            let (baseline, candidate) = rollout.versions;
            Some(CanaryPolicy::declared_of(baseline, candidate, rollout.stage().share))
        };
        let is_over = |model: &str, tally: &Tally| {
            tally.is_over(now) || declared_now(model).is_some_and(|declared| declared.mark != tally.mark)
        };
        if !self.tallies.load().iter().any(|(model, tally)| is_over(model, tally)) {
            return;
        }
        self.tallies.rcu(|tallies| {
            let mut next = Tallies::clone(tallies);
            for (model, tally) in &mut next {
                if is_over(model, tally) {
                    let declared = declared_now(model).unwrap_or_else(|| tally.declared());
                    *tally = Arc::new(tally.anew(&declared, now));
                }
            }
            next
        });
    }
}
