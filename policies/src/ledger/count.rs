//! Splits and rollouts as they are seen: one tally for each model whose requests are divided, begun anew when the declared
//! shares change. Requests only count; whoever looks does so a few times a second.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use super::{Ledger, Tables};
use crate::canary::CanaryPolicy;
use crate::pick::Stickiness;
use crate::snapshot::{ByModel, ModelPolicy, Snapshot};
use crate::tally::{Declared, Drawn, Instead, Mismatch, SplitStatus, Tally};
use crate::units::Version;

pub(super) type Tallies = ByModel<Arc<Tally>>;

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
        if let Some(tally) = self.tables.load().tallies.get(model) {
            tally.count(drawn, key, answered, instead);
        }
    }

    /// Looks whether every model's requests are divided as declared, and gives what has just been found to be otherwise.
    /// Call it a few times a second.
    pub fn mismatches(&self, now: Instant) -> Vec<(Arc<str>, Mismatch)> {
        self.begin_windows(now);
        let tables = self.tables.load();
        let mut found: Vec<(Arc<str>, _)> = tables
            .tallies
            .iter()
            .filter_map(|(model, tally)| Some((Arc::from(model.as_str()), tally.look()?)))
            .collect();
        found.sort_by(|(one, _), (other, _)| one.cmp(other));
        found
    }

    /// How the requests of every model that are divided have been answered.
    pub fn splits(&self, now: Instant) -> BTreeMap<String, SplitStatus> {
        let tables = self.tables.load();
        let divided = tables.tallies.iter().filter(|(_, tally)| tally.is_divided());
        divided.map(|(model, tally)| (model.to_string(), tally.status(now))).collect()
    }

    /// What [`Ledger::tally`] comes to when `snapshot` is in force; changes nothing.
    pub(crate) fn tallies_ahead(&self, snapshot: &Snapshot, now: Instant) -> TalliesAhead {
        let before = Arc::clone(&self.tables.load().tallies);
        let next = self.tallies_after(&before, snapshot, now);
        TalliesAhead { before, next }
    }

    /// Follows a swap of policies, quickly if that was foreseen.
    pub(super) fn tally(&self, snapshot: &Snapshot, ahead: Option<&mut TalliesAhead>, now: Instant) {
        if let Some(TalliesAhead { before, next }) = ahead {
            let before = Arc::clone(before);
            let mut next = std::mem::take(next);
            // Of a rollout nobody knew how far it would be.
            for (model, canary) in snapshot.canaries() {
                let tally = self.tally_of_canary(&before, model, canary, now);
                next.insert((**model).into(), tally);
            }
            let next = Arc::new(next);
            let was = self.tables.rcu(|tables| {
                let is_still = Arc::ptr_eq(&tables.tallies, &before);
                let tallies = Arc::clone(if is_still { &next } else { &tables.tallies });
                Tables { tallies, ..Tables::clone(tables) }
            });
            if Arc::ptr_eq(&was.tallies, &before) {
                return;
            }
        }
        self.replace(|tables| &mut tables.tallies, |tallies| self.tallies_after(tallies, snapshot, now));
    }

    fn tallies_after(&self, tallies: &Tallies, snapshot: &Snapshot, now: Instant) -> Tallies {
        let followed = |(model, policy): (&Arc<str>, &Arc<ModelPolicy>)| {
            let tally = match &policy.canary {
                Some(canary) => self.tally_of_canary(tallies, model, canary, now),
                None => {
                    let split = policy.split.as_ref()?;
                    followed(tallies, model, &split.declared(), split.stickiness(), now)
                }
            };
            Some(((**model).into(), tally))
        };
        snapshot.models.iter().filter_map(followed).collect()
    }

    fn tally_of_canary(
        &self,
        tallies: &Tallies,
        model: &str,
        canary: &CanaryPolicy,
        now: Instant,
    ) -> Arc<Tally> {
        let declared = canary.declared(self.share_now(model, canary).unwrap_or(0));
        followed(tallies, model, &declared, canary.stickiness.as_ref(), now)
    }

    /// A window ends with a step of a rollout, and after a while.
    fn begin_windows(&self, now: Instant) {
        let tables = self.tables.load();
        let declared_now = |model: &str| {
            let rollout = tables.rollouts.get(model)?;
            let (baseline, candidate) = rollout.versions;
            Some(CanaryPolicy::declared_of(baseline, candidate, rollout.share()))
        };
        let is_over = |model: &str, tally: &Tally| {
            tally.is_over(now) || declared_now(model).is_some_and(|declared| declared.mark != tally.mark)
        };
        if !tables.tallies.iter().any(|(model, tally)| is_over(model, tally)) {
            return;
        }
        self.replace(
            |tables| &mut tables.tallies,
            |tallies| {
                let mut next = Tallies::clone(tallies);
                for (model, tally) in &mut next {
                    if is_over(model, tally) {
                        let declared = declared_now(model).unwrap_or_else(|| tally.declared());
                        *tally = Arc::new(tally.anew(&declared, now));
                    }
                }
                next
            },
        );
    }
}

/// Goes on with the same shares of the same users, else begins anew.
fn followed(
    tallies: &Tallies,
    model: &str,
    declared: &Declared,
    sticky: Option<&Stickiness>,
    now: Instant,
) -> Arc<Tally> {
    let key = sticky.map(|sticky| &sticky.key);
    let goes_on = |tally: &&Arc<Tally>| (tally.mark, tally.key.as_ref()) == (declared.mark, key);
    let known = tallies.get(model).filter(goes_on);
    known.map_or_else(|| Arc::new(Tally::new(declared, key.cloned(), now)), Arc::clone)
}

/// The tallies of a policy that is not in force yet, and those that they follow.
#[derive(Debug)]
pub(crate) struct TalliesAhead {
    before: Arc<Tallies>,
    next: Tallies,
}

impl TalliesAhead {
    /// Whether the tally of this model is the same in both.
    #[cfg(test)]
    pub(crate) fn goes_on(&self, other: &Self, model: &str) -> bool {
        Arc::ptr_eq(&self.before[model], &other.before[model])
    }
}
