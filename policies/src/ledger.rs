//! All progress: what every limit has let through, how every version has fared and how far every rollout is. The only mutable
//! state here. Which version answers is decided in this file; who may enter one by rate and by number in `admit.rs` and
//! `occupy.rs`, by how it has fared in `guards.rs`; what becomes of rollouts in `rollouts.rs`.
//!
//! It is keyed by name and not by generation, so it survives a swap of policies: a limit or breaker starts afresh only
//! if its own settings changed. Settings change in [`Ledger::retain`] and nowhere else; a request that still holds an
//! older generation meets the current ones, so two generations in flight never fight over a state.
//!
//! The tables are read with one atomic load and replaced whole when a name is new, which is rare; each entry has its
//! own lock, held for a few instructions. No lock is ever held while another thread is waited for, except that one
//! request locks its limits one after the other, always in the order of their names.

mod admit;
mod ahead;
mod count;
mod guards;
mod occupy;
mod rollouts;
mod spent;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Instant;

use arc_swap::ArcSwap;
use foldhash::fast::RandomState;

pub use admit::{Admitted, Charged, Reserved, Usage};
use count::Tallies;
pub(crate) use count::TalliesAhead;
use guards::Breakers;
pub use guards::{BreakerStatus, Pass};
use occupy::Crowd;
pub use occupy::{CrowdPolicy, Crowded, Places};
pub use rollouts::CommandError;
use rollouts::{Rollout, Rollouts};
pub use spent::Spent;

use crate::attribute::Attributes;
use crate::canary::{Assignment, Beginnings, CanaryPolicy, Record, Stage};
use crate::ended::EndedRollouts;
use crate::limiter::{LimitPolicy, Limiter};
use crate::pick::{Pick, PickReason};
use crate::ring::Parts;
use crate::snapshot::{ModelPolicy, Rings, Snapshot};
use crate::units::{ALL, Version};

/// The state of all limits and breakers.
#[derive(Debug, Default)]
pub struct Ledger {
    /// The first moment anyone asked; limits count from it.
    epoch: OnceLock<Instant>,
    tables: ArcSwap<Tables>,
    crowds: ArcSwap<Crowds>,
    /// Those that the last swap of policies has ended.
    ended: ArcSwap<Rollouts>,
    /// Verdicts about these that nobody was told of.
    last_news: Mutex<Vec<(Arc<str>, Record)>>,
    beginnings: Beginnings,
    /// How far those were whose policies have gone.
    remembered: Mutex<EndedRollouts>,
}

/// What every request looks up, by the names of limits and models: behind one pointer, since to load one is no small part of what a
/// decision takes.
#[derive(Clone, Debug, Default)]
struct Tables {
    limiters: Arc<Limiters>,
    breakers: Arc<Breakers>,
    rollouts: Arc<Rollouts>,
    tallies: Arc<Tallies>,
}

/// By name, in the order of the names, as a snapshot has its limits: at the place that a limit has there, a request finds it at once.
#[derive(Clone, Debug, Default)]
struct Limiters(Vec<(Arc<str>, Arc<Limiter>)>);

impl Limiters {
    /// That of the limit at this place of a snapshot.
    fn get(&self, place: usize, limit: &LimitPolicy) -> Option<&Arc<Limiter>> {
        let here = self.0.get(place).filter(|(name, _)| *name == limit.name);
        here.or_else(|| Some(&self.0[self.place(limit).ok()?])).map(|(_, limiter)| limiter)
    }

    fn place(&self, limit: &LimitPolicy) -> Result<usize, usize> {
        self.0.binary_search_by(|(name, _)| name.cmp(&limit.name))
    }
}

// Their keys are names in the policy: nobody outside chooses them so that they collide.
type Crowds = HashMap<Arc<str>, Arc<Crowd>, RandomState>;

impl Ledger {
    /// A ledger in which nothing has happened yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts another table in the place of one; gives the one that was there. `change` is asked again if any has been replaced meanwhile.
    fn replace<T>(
        &self,
        table: impl Fn(&mut Tables) -> &mut Arc<T>,
        mut change: impl FnMut(&T) -> T,
    ) -> Arc<T> {
        let before = self.tables.rcu(|tables| {
            let mut tables = Tables::clone(tables);
            let table = table(&mut tables);
            *table = Arc::new(change(table));
            tables
        });
        Arc::clone(table(&mut Tables::clone(&before)))
    }

    /// The version that answers this caller by `snapshot`: see [`ModelPolicy`](crate::ModelPolicy). `draw` is any evenly
    /// distributed number. A candidate of a rollout that is not ready gets nothing. `None` if the policy leaves it
    /// open: the highest ready version answers.
    pub fn pick(
        &self,
        snapshot: &Snapshot,
        model: &str,
        caller: &impl Attributes,
        draw: u64,
        is_ready: impl FnOnce(Version) -> bool,
    ) -> Option<Pick> {
        let stage = |policy: &CanaryPolicy| {
            // A rollout that nobody has begun yet gives nothing, whatever another one has come to.
            let now = |rollout: &Rollout| rollout.stage(policy.about, is_ready(rollout.versions.1));
            self.of_rollout(model, policy.versions_of_arms(), now).unwrap_or(Stage::NOT_BEGUN)
        };
        self.looking_ahead(snapshot, model, caller, |policy| policy.pick(caller, draw, stage))
    }

    /// Where a request goes that the policy of `snapshot` has given to a version, for this reason, before its body was read: to
    /// the baseline, if that was the candidate and has lost its share since. What the caller has chosen has no reason, and stays.
    pub fn confirm(
        &self,
        snapshot: &Snapshot,
        model: &str,
        version: Version,
        (reason, assigned): (Option<PickReason>, Option<Assignment>),
    ) -> (Version, Option<Assignment>) {
        let arms = match (assigned, reason) {
            (Some(assigned), _) => Some(assigned.versions()).filter(|_| assigned.is_candidate),
            (None, Some(PickReason::Rule)) => {
                let canary = snapshot.model(model).and_then(|policy| policy.canary.as_deref());
                canary.map(CanaryPolicy::versions_of_arms).filter(|(_, candidate)| *candidate == version)
            }
            // Who has no key never gets the candidate by that, see `compile.rs`.
            (None, Some(PickReason::Sticky | PickReason::Random | PickReason::WithoutKey) | None) => None,
        };
        let is_over =
            |arms: &(Version, Version)| self.of_rollout(model, *arms, |rollout| rollout.share()) == Some(0);
        match arms.filter(is_over) {
            Some((baseline, _)) => (baseline, None),
            None => (version, assigned),
        }
    }

    /// Every version without which somebody would not be answered; none if the policy names none. Of a rollout this is the
    /// baseline, or the candidate once it has everything and is ready: until then the baseline answers in its place.
    pub fn needed(
        &self,
        snapshot: &Snapshot,
        model: &str,
        is_ready: impl FnOnce(Version) -> bool,
    ) -> Vec<Version> {
        let Some(policy) = snapshot.model(model) else { return Vec::new() };
        let arm = policy.canary.as_deref().map(|canary| {
            let (baseline, candidate) = canary.versions_of_arms();
            let has_all = self.share_now(model, canary) == Some(ALL);
            if has_all && is_ready(candidate) { candidate } else { baseline }
        });
        // Whom a rule sends to a candidate that was rolled back, the baseline answers.
        let is_over = |canary: &&CanaryPolicy| self.share_now(model, canary) == Some(0);
        let over = policy.canary.as_deref().filter(is_over).map(|canary| canary.versions_of_arms().1);
        policy.fixed_versions().filter(|fixed| Some(*fixed) != over).chain(arm).collect()
    }

    /// The version that answers most of the requests that name none; nothing where the policy leaves it open.
    pub fn mostly(&self, snapshot: &Snapshot, model: &str) -> Option<Version> {
        let policy = snapshot.model(model)?;
        if let Some(canary) = &policy.canary {
            let (baseline, candidate) = canary.versions_of_arms();
            let has_most = self.share_now(model, canary).is_some_and(|share| share > ALL / 2);
            return Some(if has_most { candidate } else { baseline });
        }
        policy.shares().max_by(|(_, one), (_, other)| one.total_cmp(other)).map(|(version, _)| version)
    }

    /// Who answers at which point by `snapshot`, of every model that has a split or a rollout.
    pub fn rings(&self, snapshot: &Snapshot) -> Rings {
        let ring = |(name, policy): (&str, &ModelPolicy)| Some((name.to_owned(), self.parts(name, policy)?));
        Rings(snapshot.models().filter_map(ring).collect())
    }

    /// The same of one model.
    pub(crate) fn parts(&self, model: &str, policy: &ModelPolicy) -> Option<Parts> {
        match (&policy.canary, &policy.split) {
            (Some(canary), _) => Some(canary.parts(self.share_now(model, canary).unwrap_or(0))),
            (None, split) => split.as_ref().map(|split| split.parts()),
        }
    }

    /// Of a limit of which nobody has asked anything yet.
    #[cold]
    fn begin_limit(&self, limit: &Arc<LimitPolicy>) {
        let new = Arc::new(Limiter::new(Arc::clone(limit)));
        self.replace(
            |tables| &mut tables.limiters,
            |limiters| {
                let mut limiters = Limiters::clone(limiters);
                // Another thread may have been first; its limiter is then the one.
                if let Err(place) = limiters.place(limit) {
                    limiters.0.insert(place, (Arc::clone(&limit.name), Arc::clone(&new)));
                }
                limiters
            },
        );
    }

    /// Follows a swap of policies; call it after each [`Live::publish`](crate::Live::publish), and when versions come
    /// and go. Limits and breakers whose settings changed start afresh, those that are gone are dropped, the others
    /// keep their state. `serves` tells which versions of which models are still what their breakers have seen; where
    /// another server answers, that is so for as long as the policy names the same.
    pub fn retain(&self, snapshot: &Snapshot, serves: impl Fn(&str, Version) -> bool) -> Gone {
        let limiters = self.replace(
            |tables| &mut tables.limiters,
            |limiters| {
                let kept = |(place, limit): (usize, &Arc<LimitPolicy>)| match limiters.get(place, limit) {
                    Some(limiter) if limiter.policy == *limit => Arc::clone(limiter),
                    Some(_) | None => Arc::new(Limiter::new(Arc::clone(limit))),
                };
                let limits = snapshot.limits().iter().enumerate();
                Limiters(limits.map(|limit| (Arc::clone(&limit.1.name), kept(limit))).collect())
            },
        );
        let crowds = self.crowds.rcu(|crowds| {
            let kept = |policy: &Arc<CrowdPolicy>| match crowds.get(&policy.name) {
                Some(crowd) if crowd.policy == *policy => Arc::clone(crowd),
                Some(_) | None => Arc::new(Crowd::new(Arc::clone(policy))),
            };
            snapshot
                .crowds()
                .iter()
                .map(|policy| (Arc::clone(&policy.name), kept(policy)))
                .collect::<Crowds>()
        });
        let breakers = self.retain_breakers(snapshot, serves);
        Gone { limiters, crowds, breakers }
    }
}

/// State that a swap of policies has left behind. Of a limit this is every caller that it knew: whoever keeps it until requests
/// are done with it is the one who frees it.
#[derive(Debug)]
#[expect(dead_code, reason = "held to be dropped")]
pub struct Gone {
    limiters: Arc<Limiters>,
    crowds: Arc<Crowds>,
    breakers: Arc<Breakers>,
}

#[cfg(test)]
mod tests;
