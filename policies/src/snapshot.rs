//! What a policy file means: compiled, immutable and comparable.
//!
//! A snapshot holds no lock, no counter and no time. Two snapshots are equal if they decide alike, not if their files
//! read alike: comments, order, the scale of weights do not count.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::BuildHasher;
use std::mem::offset_of;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use compact_str::CompactString;
use foldhash::fast::RandomState;
use hashbrown::HashTable;
use serde::{Deserialize, Serialize};

use crate::attribute::{Attribute, Attributes, Field};
use crate::breaker::BreakerPolicy;
use crate::canary::{CanaryPolicy, Stage};
use crate::ledger::CrowdPolicy;
use crate::limiter::LimitPolicy;
use crate::overload::{Criticality, OverloadPolicy, Room, Standing};
use crate::pick::{Pick, Rule, Split, Target};
use crate::prefetch::{prefetch, prefetch_start};
use crate::remote::Remote;
use crate::ring::{self, Parts};
use crate::shadow::ShadowPolicy;
use crate::units::{Label, Version};

/// Time for a request that brings no deadline, to a model whose policy names none.
pub(crate) const DEFAULT_DEADLINE: Duration = Duration::from_secs(10);

/// Rings by the names of their models, see [`Ledger::rings`](crate::Ledger::rings): what the next policy, process or
/// replica follows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rings(pub(crate) BTreeMap<String, Parts>);

impl Rings {
    /// A model whose ring nobody can follow.
    pub fn unsound(&self) -> Option<&str> {
        self.0.iter().find(|(_, ring)| !ring::is_sound(ring)).map(|(model, _)| model.as_str())
    }
}

/// Policies by the names of their models.
pub(crate) type Models = BTreeMap<Arc<str>, Arc<ModelPolicy>>;

/// What requests look up by their models. The usual names, of up to 24 bytes, lie in the table: of many models it is memory that
/// a decision waits for. They are names in the policy or the repository: nobody outside chooses them so that they collide.
pub(crate) type ByModel<T> = HashMap<CompactString, T, RandomState>;

/// All policies at one moment. The default is no policy at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    pub(crate) models: Arc<Models>,
    by_name: ByName,
    /// Whether another server answers any version: where none does, no request has to look.
    has_remotes: bool,
    /// Those of which a version is rolled out.
    canaries: Vec<(Arc<str>, Arc<ModelPolicy>)>,
    /// In the order of their names: the order in which the ledger locks them.
    pub(crate) limits: Vec<Arc<LimitPolicy>>,
    /// Likewise: limits of requests under way.
    crowds: Vec<Arc<CrowdPolicy>>,
    pub(crate) overload: OverloadPolicy,
}

impl Snapshot {
    pub(crate) fn new(
        models: BTreeMap<Arc<str>, ModelPolicy>,
        limits: Vec<Arc<LimitPolicy>>,
        crowds: Vec<Arc<CrowdPolicy>>,
        overload: OverloadPolicy,
    ) -> Self {
        let models = models.into_iter().map(|(name, policy)| (name, Arc::new(policy))).collect();
        Self::found(models, limits, crowds, overload)
    }

    /// With what requests find models by.
    fn found(
        models: Models,
        limits: Vec<Arc<LimitPolicy>>,
        crowds: Vec<Arc<CrowdPolicy>>,
        overload: OverloadPolicy,
    ) -> Self {
        let by_name = ByName::new(&models);
        let has_remotes = models.values().any(|policy| policy.has_remotes());
        let canaries = models.iter().filter(|(_, policy)| policy.has_canary());
        let canaries = canaries.map(|(name, policy)| (Arc::clone(name), Arc::clone(policy))).collect();
        Self { models: Arc::new(models), by_name, has_remotes, canaries, limits, crowds, overload }
    }

    /// Leaves as many users as can be with the versions that they have on these rings.
    #[must_use]
    pub fn follow(self, rings: &Rings) -> Self {
        let (mut models, limits, crowds, overload) = self.apart();
        for (name, policy) in &mut models {
            if let Some(ring) = rings.0.get(&**name) {
                Arc::make_mut(policy).follow(ring);
            }
        }
        Self::found(models, limits, crowds, overload)
    }

    /// As it takes the place of `before`: a model about which both say the same keeps all that it has, of the others each
    /// follows the ring that it has had.
    pub(crate) fn after(self, before: &Self, ring: impl Fn(&str, &ModelPolicy) -> Option<Parts>) -> Self {
        let (models, limits, crowds, overload) = self.apart();
        let after = |(name, mut policy): (Arc<str>, Arc<ModelPolicy>)| {
            let Some((name, was)) = before.models.get_key_value(&name) else { return (name, policy) };
            if *was == policy {
                policy = Arc::clone(was);
            } else if let Some(ring) = ring(name, was) {
                Arc::make_mut(&mut policy).follow(&ring);
            }
            (Arc::clone(name), policy)
        };
        Self::found(models.into_iter().map(after).collect(), limits, crowds, overload)
    }

    /// Its models are nobody else's, if nobody else has a copy of it.
    fn apart(self) -> (Models, Vec<Arc<LimitPolicy>>, Vec<Arc<CrowdPolicy>>, OverloadPolicy) {
        let Self { models, by_name, has_remotes: _, canaries, limits, crowds, overload } = self;
        drop((by_name, canaries));
        (Arc::unwrap_or_clone(models), limits, crowds, overload)
    }

    /// The policy of the model called `name`. `None` means that its highest ready version answers, with the default
    /// deadline and breaker; limits that cover every model still apply.
    pub fn model(&self, name: &str) -> Option<&ModelPolicy> {
        self.by_name.get(name)
    }

    /// Has the processor fetch what is read first of the policy of `name`, in all likelihood.
    pub(crate) fn prefetch(&self, name: &str) {
        self.by_name.likely(name).into_iter().for_each(ModelPolicy::prefetch);
    }

    /// Every model that has a policy, in the order of their names.
    pub fn models(&self) -> impl Iterator<Item = (&str, &ModelPolicy)> {
        self.models.iter().map(|(name, policy)| (name.as_ref(), &**policy))
    }

    /// What is rolled out, in the order of the models' names.
    pub(crate) fn canaries(&self) -> impl Iterator<Item = (&Arc<str>, &CanaryPolicy)> {
        self.canaries.iter().filter_map(|(name, policy)| Some((name, policy.canary.as_deref()?)))
    }

    /// The limits of rates, in the order of their names.
    pub fn limits(&self) -> &[Arc<LimitPolicy>] {
        &self.limits
    }

    /// The limits of requests under way, in the order of their names.
    pub fn crowds(&self) -> &[Arc<CrowdPolicy>] {
        &self.crowds
    }

    /// A request's place when there is not enough for all.
    pub fn standing(&self, caller: &impl Attributes) -> Standing {
        self.overload.standing(caller)
    }

    /// Whether requests say whose they are.
    pub fn tells_tenants_apart(&self) -> bool {
        self.overload.tenant.is_some()
    }

    /// How much of a room that all requests share is open to such a one.
    pub fn room(&self, criticality: Criticality) -> Room {
        self.overload.room(criticality)
    }

    /// Where this version is, if another server answers it.
    pub fn remote(&self, model: &str, version: Version) -> Option<&Arc<Remote>> {
        if self.has_remotes { self.model(model)?.remotes.get(&version) } else { None }
    }

    /// The deadline of requests to `model` that bring none.
    pub fn deadline(&self, model: &str) -> Duration {
        self.model(model).map_or(DEFAULT_DEADLINE, ModelPolicy::deadline)
    }

    /// The breaker of every version of `model`.
    pub fn breaker(&self, model: &str) -> BreakerPolicy {
        self.model(model).map_or_else(BreakerPolicy::default, |policy| *policy.breaker())
    }
}

/// The same policies, to be found by every request. A place takes eight bytes, so that all of them stay near: the name is read with
/// the policy.
#[derive(Clone, Debug, Default)]
struct ByName {
    hash: RandomState,
    places: HashTable<Arc<ModelPolicy>>,
}

/// It says nothing of its own.
impl PartialEq for ByName {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for ByName {}

impl ByName {
    fn new(models: &Models) -> Self {
        let (hash, mut places) = (RandomState::default(), HashTable::with_capacity(models.len()));
        let of = |policy: &Arc<ModelPolicy>| hash.hash_one(&*policy.name);
        for policy in models.values() {
            places.insert_unique(of(policy), Arc::clone(policy), of);
        }
        Self { hash, places }
    }

    fn get(&self, name: &str) -> Option<&ModelPolicy> {
        let policy = self.places.find(self.hash.hash_one(name), |policy| *policy.name == *name);
        policy.map(|policy| &**policy)
    }

    /// In all likelihood the policy of this name; it is not read to make sure.
    fn likely(&self, name: &str) -> Option<&ModelPolicy> {
        self.places.find(self.hash.hash_one(name), |_| true).map(|policy| &**policy)
    }
}

/// The policy of one model.
#[derive(Clone, Debug, PartialEq, Eq)]
#[repr(C)] // what each request needs lies together, and first
pub struct ModelPolicy {
    /// The model's.
    pub(crate) name: CompactString,
    pub(crate) rules: Vec<Rule>,
    /// In place of a split.
    pub(crate) canary: Option<Box<CanaryPolicy>>,
    pub(crate) split: Option<Box<Split>>,
    pub(crate) deadline: Duration,
    /// Versions that other servers answer.
    pub(crate) remotes: BTreeMap<Version, Arc<Remote>>,
    pub(crate) shadow: Option<Arc<ShadowPolicy>>,
    pub(crate) fallback: Option<Fallback>,
    pub(crate) breaker: BreakerPolicy,
    pub(crate) labels: BTreeMap<Label, Version>,
}

/// Who answers in place of a version that has tripped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fallback {
    pub(crate) version: Version,
    /// Such requests at a time.
    pub(crate) in_flight_max: NonZeroU32,
}

impl ModelPolicy {
    /// See [`Snapshot::follow`].
    fn follow(&mut self, ring: &Parts) {
        self.split.iter_mut().for_each(|split| split.follow(ring));
        self.canary.iter_mut().for_each(|canary| canary.follow(ring));
    }

    /// What is needed to choose a version.
    pub(crate) fn prefetch(&self) {
        prefetch_start(self, offset_of!(Self, deadline));
    }

    /// And who answers whom.
    pub(crate) fn prefetch_arms(&self) {
        self.split.iter().for_each(|split| prefetch(&**split));
        self.canary.iter().for_each(|canary| prefetch(&**canary));
    }

    /// Names that the policy gives to versions, in the order of the alphabet.
    pub fn labels(&self) -> impl Iterator<Item = (&str, Version)> {
        self.labels.iter().map(|(label, version)| (&**label, *version))
    }

    /// The versions of the split with their shares of 1; none while there is no split.
    pub fn shares(&self) -> impl Iterator<Item = (Version, f64)> {
        self.split.iter().flat_map(|split| split.shares()).map(|(target, share)| (target.version, share))
    }

    /// The version that a label stands for.
    pub fn labelled(&self, label: &str) -> Option<Version> {
        self.labels.get(label).copied()
    }

    /// Versions that other servers answer, and where those are.
    pub fn remotes(&self) -> impl Iterator<Item = (Version, &Arc<Remote>)> {
        self.remotes.iter().map(|(version, remote)| (*version, remote))
    }

    /// Whether a version is rolled out.
    pub fn has_canary(&self) -> bool {
        self.canary.is_some()
    }

    /// Whether a rule may decide before the split or rollout does.
    pub fn has_rules(&self) -> bool {
        !self.rules.is_empty()
    }

    /// Whether other servers answer some of its versions.
    pub fn has_remotes(&self) -> bool {
        !self.remotes.is_empty()
    }

    /// The version that answers this caller: the first rule that holds, else its place in the split or rollout, which is
    /// at this stage. A rule gives nobody a candidate that was rolled back. `draw` is any evenly distributed number; it decides
    /// only where the policy says that chance does.
    ///
    /// `None` if no rule holds and there is neither: the highest ready version answers.
    pub(crate) fn pick(
        &self,
        caller: &impl Attributes,
        draw: u64,
        stage: impl FnOnce(&CanaryPolicy) -> Stage,
    ) -> Option<Pick> {
        for rule in &self.rules {
            if let Some(pick) = rule.pick(caller) {
                let canary = self.canary.as_deref();
                let instead = canary.and_then(|canary| canary.in_place_of(pick.version, stage));
                return Some(instead.unwrap_or(pick));
            }
        }
        match &self.canary {
            Some(canary) => Some(canary.pick(caller, draw, stage(canary))),
            None => self.split.as_ref().map(|split| split.pick(caller, draw)),
        }
    }

    /// The field of a request's body that decides which version answers; the choice has to wait for it.
    pub fn asks_of_body(&self) -> Option<&Field> {
        let canary = || self.canary.as_deref()?.stickiness.as_ref();
        let sticky = self.split.as_ref().and_then(|split| split.stickiness()).or_else(canary)?;
        match &sticky.key {
            Attribute::Body(field) => Some(field),
            Attribute::Header(_) | Attribute::Cookie(_) | Attribute::Query(_) | Attribute::Path => None,
        }
    }

    /// Every version to which somebody is sent, however far a rollout is; perhaps more than once.
    pub(crate) fn fixed_versions(&self) -> impl Iterator<Item = Version> {
        let rules = self.rules.iter().map(|rule| rule.target.version);
        let split = self.split.iter().flat_map(|split| split.versions());
        rules.chain(split).chain(self.canary.as_deref().and_then(CanaryPolicy::without_key))
    }

    /// Every version that it mentions, for whatever purpose.
    pub fn mentioned(&self) -> BTreeSet<Version> {
        let arms = self.canary.iter().flat_map(|canary| <[Version; 2]>::from(canary.versions_of_arms()));
        let named = self.labels.values().chain(self.remotes.keys()).copied();
        let others = self.fallback().into_iter().chain(self.shadow.as_ref().map(|shadow| shadow.version));
        self.fixed_versions().chain(arms).chain(named).chain(others).collect()
    }

    /// The version that answers in place of one that has tripped.
    pub fn fallback(&self) -> Option<Version> {
        self.fallback.map(|fallback| fallback.version)
    }

    /// Whether no request gets another version, unless it names that.
    pub(crate) fn chooses_only(&self, version: Version) -> bool {
        let mut chosen = self.fixed_versions().chain(self.fallback());
        self.split.is_some() && chosen.all(|chosen| chosen == version)
    }

    /// Whether a rule, the split or a rollout may give somebody this version.
    pub fn may_choose(&self, version: Version) -> bool {
        let is_arm = |canary: &CanaryPolicy| {
            let (baseline, candidate) = canary.versions_of_arms();
            version == baseline || version == candidate
        };
        self.fixed_versions().any(|fixed| fixed == version) || self.canary.as_deref().is_some_and(is_arm)
    }

    /// The deadline of requests that bring none.
    pub fn deadline(&self) -> Duration {
        self.deadline
    }

    /// Which requests another version gets a copy of.
    pub fn shadow(&self) -> Option<&Arc<ShadowPolicy>> {
        self.shadow.as_ref()
    }

    /// When a version of this model counts as failing.
    pub fn breaker(&self) -> &BreakerPolicy {
        &self.breaker
    }
}

/// What `name` stands for: a label, or a version number, which need not be mentioned in the policy; whether it exists is
/// the engine's to say. A label never looks like a number (`compile.rs` refuses it), so the two cannot be confused.
pub(crate) fn target(labels: &BTreeMap<Label, Version>, name: &str) -> Option<Target> {
    match labels.get_key_value(name) {
        Some((label, version)) => Some(Target { version: *version, label: Some(label.clone()) }),
        None => name.parse().ok().map(|version| Target { version, label: None }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse;
    use crate::pick::PickReason;

    fn digits() -> Snapshot {
        let text = "
models:
  digits:
    labels: {stable: 1, canary: 2}
    rules:
      - when: {header: x-cohort, equals: beta}
        use: canary
      - when: {header: x-cohort, present: true}
        use: 3
    split: {weights: {stable: 1}}
  letters:
    deadline: 2s
";
        parse(text, "policies.yaml").unwrap()
    }

    #[test]
    fn the_first_rule_that_holds_decides_and_the_split_is_last() {
        let snapshot = digits();
        let pick = |caller: &[(&str, &str); 1]| {
            snapshot.model("digits").unwrap().pick(caller, 0, |_| Stage::NOT_BEGUN).unwrap()
        };
        let canary = pick(&[("x-cohort", "beta")]);
        assert_eq!((canary.version, canary.reason), (Version(2), PickReason::Rule));
        assert_eq!(canary.label.as_deref(), Some("canary"));
        let by_number = pick(&[("x-cohort", "gamma")]);
        assert_eq!((by_number.version, by_number.label), (Version(3), None));
        assert_eq!(pick(&[("x-other", "beta")]).version, Version(1));
    }

    #[test]
    fn without_a_split_the_policy_leaves_the_choice_open() {
        let snapshot = digits();
        assert_eq!(
            snapshot.model("letters").unwrap().pick(&[("x-cohort", "beta")], 0, |_| Stage::NOT_BEGUN),
            None
        );
        assert!(snapshot.model("words").is_none());
    }

    #[test]
    fn a_name_is_a_label_or_a_number() {
        let snapshot = digits();
        let labels = &snapshot.model("digits").unwrap().labels;
        let version = |name| target(labels, name).map(|target| target.version);
        assert_eq!(version("canary"), Some(Version(2)));
        assert_eq!(version("17"), Some(Version(17)));
        assert_eq!(version("Canary"), None);
        assert_eq!(version("0"), None);
    }

    #[test]
    fn a_model_without_a_policy_has_the_defaults() {
        let snapshot = digits();
        assert_eq!(snapshot.deadline("letters"), Duration::from_secs(2));
        assert_eq!(snapshot.deadline("words"), Duration::from_secs(10));
        assert_eq!(snapshot.breaker("words"), BreakerPolicy::default());
        assert_eq!(
            snapshot.breaker("letters").probe_timeout,
            Duration::from_secs(2),
            "a probe has the deadline's time"
        );
    }
}
