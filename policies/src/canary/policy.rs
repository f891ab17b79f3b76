//! A rollout as the policy states it, and who gets the candidate while it has a share. Knows nothing of what has become of
//! requests, nor how far a rollout is: that is an argument.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use super::Sight;
use crate::attribute::Attributes;
use crate::pick::{Pick, PickReason, Stickiness, Target, WithoutKey};
use crate::remote::Remote;
use crate::ring::{self, Order, Parts};
use crate::shadow::Comparison;
use crate::tally::{self, Declared, Drawn, Instead};
use crate::units::{ALL, Millionths, Version};

/// A rollout as the policy states it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CanaryPolicy {
    pub(crate) baseline: Target,
    pub(crate) candidate: Target,
    /// Shares of the candidate, rising.
    pub(crate) steps: Vec<Millionths>,
    pub(crate) dwell: Duration,
    pub(crate) stickiness: Option<Stickiness>,
    /// Failing requests of the candidate that are too many, of all.
    pub(crate) failing_at_most: Millionths,
    pub(crate) slow: Option<SlowPolicy>,
    /// Requests of which the version's own runner says that it has failed, and which are too many.
    pub(crate) faulty_at_most: Option<Millionths>,
    /// Answers of the candidate that are not the baseline's and are too many, of all that a shadow compares.
    pub(crate) disagreeing_at_most: Option<Millionths>,
    /// Of a bit, by which inputs and answers of the candidate may have moved from its reference.
    pub(crate) drifting_at_most: Option<Millionths>,
    /// Which other servers answer for its versions: evidence is about nothing else.
    pub(crate) servers: Servers,
    /// How answers are compared, if there is a gate on that: its evidence is about nothing else.
    pub(crate) comparison: Option<Comparison>,
    /// What its evidence is about, as a number: what was assigned by a policy of another number says nothing.
    pub(crate) about: u64,
    /// Who gets the candidate first.
    pub(crate) order: Order,
}

/// Where the versions of a rollout are, if not in the engine here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Servers {
    pub(crate) baseline: Option<Arc<Remote>>,
    pub(crate) candidate: Option<Arc<Remote>>,
}

impl Servers {
    /// As it is kept over a restart.
    pub(super) fn names(&self) -> [String; 2] {
        [&self.baseline, &self.candidate]
            .map(|server| server.as_ref().map_or_else(String::new, |server| server.to_string()))
    }
}

/// What answers are slow, and how many may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SlowPolicy {
    pub(crate) over: Duration,
    pub(crate) at_most: Millionths,
}

impl CanaryPolicy {
    /// Leaves as many users as can be with the versions that they have on another ring.
    pub(crate) fn follow(&mut self, old: &Parts) {
        if ring::is_sound(old) {
            self.order = Order::following(old, self.baseline.version, self.candidate.version);
        }
    }

    /// Who answers at which point while the candidate has `share`.
    pub(crate) fn parts(&self, share: Millionths) -> Parts {
        // As it is picked: the first place that is not below.
        let cut = (u128::from(ALL - share) << 64).div_ceil(u128::from(ALL));
        self.order.parts(cut, self.baseline.version, self.candidate.version)
    }

    /// The version that answers this caller at this stage.
    pub(crate) fn pick(&self, caller: &impl Attributes, draw: u64, stage: Stage) -> Pick {
        let (baseline, candidate) = self.versions_of_arms();
        let at = |point: u64, reason, key| {
            let place = u128::from(self.order.place(point));
            let is_drawn = (place * u128::from(ALL)) >> 64 >= u128::from(ALL - stage.share);
            let is_candidate = is_drawn && stage.is_ready;
            let target = if is_candidate { &self.candidate } else { &self.baseline };
            let assigned = Some(Assignment {
                baseline,
                candidate,
                is_candidate,
                share: if stage.is_ready { stage.share } else { 0 },
                begun: stage.begun,
                slow_over: self.slow.map(|slow| slow.over),
                brought: None,
            });
            let drawn = Some(Drawn {
                version: if is_drawn { candidate } else { baseline },
                // One that has everything is the only one.
                place: u32::from(is_drawn && stage.share < ALL),
                mark: tally::mark(&parts_of(baseline, candidate, stage.share)),
            });
            let instead = (is_drawn && !is_candidate).then_some((candidate, Instead::NotReady));
            Pick { key, assigned, drawn, instead, ..target.pick(reason) }
        };
        let Some(sticky) = &self.stickiness else { return at(draw, PickReason::Random, None) };
        match (sticky.key.of(caller), &sticky.without_key) {
            (Some(key), _) => {
                let point = sticky.point(&key);
                at(point, PickReason::Sticky, Some(point))
            }
            (None, WithoutKey::Random) => at(draw, PickReason::Random, None),
            (None, WithoutKey::Use(target)) => target.pick(PickReason::WithoutKey),
        }
    }

    /// The version that answers in place of this one, which a rule names: the baseline, once the candidate was rolled back.
    pub(crate) fn in_place_of(&self, version: Version, stage: impl FnOnce(&Self) -> Stage) -> Option<Pick> {
        let is_over = version == self.candidate.version && stage(self).is_rolled_back;
        let instead = Some((version, Instead::RolledBack));
        is_over.then(|| Pick { instead, ..self.baseline.pick(PickReason::Rule) })
    }

    /// Shares of baseline and candidate while the latter has `share`.
    pub(crate) fn declared(&self, share: Millionths) -> Declared {
        let (baseline, candidate) = self.versions_of_arms();
        Self::declared_of(baseline, candidate, share)
    }

    pub(crate) fn declared_of(baseline: Version, candidate: Version, share: Millionths) -> Declared {
        Declared::new(&parts_of(baseline, candidate, share))
    }

    /// The version that answers when the key is missing, if the policy names one.
    pub(crate) fn without_key(&self) -> Option<Version> {
        self.stickiness.as_ref().and_then(Stickiness::fallback)
    }

    /// Where its versions are, and when answers are the same: both are written elsewhere in a policy.
    pub(crate) fn with(self, servers: Servers, comparison: Option<Comparison>) -> Self {
        let mut hasher = DefaultHasher::new();
        let over = self.slow.map(|slow| slow.over);
        (self.versions_of_arms(), &servers, &comparison, over).hash(&mut hasher);
        Self { servers, comparison, about: hasher.finish(), ..self }
    }

    /// Whether `new` rolls out the same version, and another server answers that.
    pub(crate) fn is_asked_elsewhere(&self, new: &Self) -> bool {
        self.versions_of_arms() == new.versions_of_arms() && self.servers.candidate != new.servers.candidate
    }

    /// What a rollout that goes on as `new` has to find out once more, for a plan.
    pub(crate) fn found_anew(&self, new: &Self) -> String {
        if self.about != new.about {
            return ": what its gates are about has changed, and its step begins anew".to_owned();
        }
        let limits = |policy: &Self| {
            [
                ("errors", Some(policy.failing_at_most)),
                ("latency", policy.slow.map(|slow| slow.at_most)),
                ("faults", policy.faulty_at_most),
                ("disagreement", policy.disagreeing_at_most),
            ]
        };
        let both = limits(self).into_iter().zip(limits(new));
        let changed = both.filter(|((_, old), (_, new))| old != new && new.is_some());
        let changed: Vec<_> = changed.map(|(_, (gate, _))| gate).collect();
        if changed.is_empty() {
            String::new()
        } else {
            format!(", and has to pass {} anew", changed.join(", "))
        }
    }

    /// Baseline and candidate: progress is theirs, whatever else changes.
    pub(crate) fn versions_of_arms(&self) -> (Version, Version) {
        (self.baseline.version, self.candidate.version)
    }
}

fn parts_of(baseline: Version, candidate: Version, share: Millionths) -> [(Version, u64); 2] {
    [(baseline, (ALL - share).into()), (candidate, share.into())]
}

/// What picks know of a rollout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stage {
    /// The candidate's.
    pub(crate) share: Millionths,
    /// Since when the candidate is judged; `None` where this rollout is about something else than the policy that asks.
    pub(crate) begun: Option<u32>,
    /// A candidate that is not ready gets nothing.
    pub(crate) is_ready: bool,
    /// It gets nothing any more, not even by a rule.
    pub(crate) is_rolled_back: bool,
}

impl Stage {
    /// Of a rollout that nobody has begun yet.
    pub(crate) const NOT_BEGUN: Self = Self { share: 0, begun: None, is_ready: true, is_rolled_back: false };
}

/// On which side of a rollout a request was put by chance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Assignment {
    pub(crate) baseline: Version,
    /// The version that was rolled out then.
    pub(crate) candidate: Version,
    pub(crate) is_candidate: bool,
    /// The candidate's share at that moment.
    pub(crate) share: Millionths,
    /// See [`Stage`].
    pub(super) begun: Option<u32>,
    /// An answer that takes longer is slow.
    pub(crate) slow_over: Option<Duration>,
    /// The deadline that its caller has brought, where that is sooner than the policy's.
    pub(crate) brought: Option<Duration>,
}

impl Assignment {
    /// Of a caller who gives it so long, of what the policy gives.
    pub fn within(self, given: Duration, of_policy: Duration) -> Self {
        Self { brought: (given < of_policy).then_some(given), ..self }
    }

    /// Whether there is nothing to be learned but how long it took: the baseline has answered, and soon enough. So most requests
    /// end.
    pub(crate) fn commonplace(&self, sight: Sight) -> Option<Duration> {
        let Sight::Answered(took) = sight else { return None };
        (!self.is_candidate && self.slow_over.is_none_or(|over| took <= over)).then_some(took)
    }

    /// Baseline and candidate.
    pub fn versions(&self) -> (Version, Version) {
        (self.baseline, self.candidate)
    }

    /// Whether a copy that `version` has answered shows how the candidate's answers compare with the baseline's.
    pub(crate) fn is_compared_by(&self, version: Version) -> bool {
        !self.is_candidate && version == self.candidate
    }
}
