//! Which version answers a request: the first rule that holds, else the split.
//!
//! A split is a ring of all 64-bit numbers, cut into one interval per arm in the order of their versions, or into more
//! where it has followed another one (`ring.rs`). A sticky user is a fixed point on the ring (the hash of its key), any
//! other request a random one (the draw):
//!
//! ```text
//!   0                                                     0.9 · 2^64      2^64
//!   ├──────────────────── version 1, stable ────────────────────┼─ 2, canary ─┤
//!                            ▲ user `ana`, always
//! ```
//!
//! Weights enter only as exact ratios, so 90:10 and 900:100 are the same split, a share is right to 2^-64, and a change of
//! weights moves exactly the users it must. The order is that of the version numbers, not of the
//! file: reordering lines or renaming labels moves nobody. The hash is XXH3 (64 bits) of the key's bytes, seeded with
//! the XXH3 of the model's name: the same after a restart, on every replica and architecture, and different for each
//! model, so that the same users are not the canaries of everything.

use std::collections::BTreeMap;

use smallvec::SmallVec;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::attribute::{Attribute, Attributes, Condition};
use crate::canary::Assignment;
use crate::ring::{self, Parts};
use crate::tally::{Declared, Drawn, Instead};
use crate::units::{Label, Version, Weight};

/// The version that answers a request, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pick {
    /// The version.
    pub version: Version,
    /// The label under which it was chosen; `None` if the policy named it by number.
    pub label: Option<Label>,
    /// What decided.
    pub reason: PickReason,
    /// Where the sticky key, if there is one, lies on the ring: the same caller has the same number.
    pub key: Option<u64>,
    /// On which side of a rollout chance has put it.
    pub assigned: Option<Assignment>,
    /// What chance or the sticky key has decided, if they have.
    pub drawn: Option<Drawn>,
    /// In place of which version it answers, which a rule names or was drawn, and why.
    pub instead: Option<(Version, Instead)>,
}

/// What decided which version answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PickReason {
    /// A rule held.
    Rule,
    /// The user's place in the split.
    Sticky,
    /// The draw: the split is not sticky, or its key was missing and the fallback is `random`.
    Random,
    /// The sticky key was missing and the fallback names a version.
    WithoutKey,
}

impl PickReason {
    /// The word for it in spans and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rule => "rule",
            Self::Sticky => "sticky",
            Self::Random => "random",
            Self::WithoutKey => "without_key",
        }
    }
}

/// A version as a policy names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) version: Version,
    pub(crate) label: Option<Label>,
}

impl Target {
    pub(crate) fn pick(&self, reason: PickReason) -> Pick {
        Pick {
            version: self.version,
            label: self.label.clone(),
            reason,
            key: None,
            assigned: None,
            drawn: None,
            instead: None,
        }
    }
}

/// A decision taken before the split.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) when: Condition,
    pub(crate) target: Target,
}

impl Rule {
    pub(crate) fn pick(&self, caller: &impl Attributes) -> Option<Pick> {
        self.when.holds(caller).then(|| self.target.pick(PickReason::Rule))
    }
}

/// How requests are divided between versions.
#[derive(Clone, Debug)]
pub(crate) struct Split {
    stickiness: Option<Stickiness>,
    /// Of its shares.
    mark: u64,
    /// Which arm answers from where on. Not what the policy says, but what has come of it.
    ring: Ring,
    arms: SmallVec<[Arm; FEW]>,
}

/// The usual ones lie in the split itself: nobody has to wait for them once more.
type Ring = SmallVec<[(u64, usize); FEW]>;
const FEW: usize = 3;

/// Two splits are equal if the policies say the same, whatever was before them.
impl PartialEq for Split {
    fn eq(&self, other: &Self) -> bool {
        (&self.arms, &self.stickiness) == (&other.arms, &other.stickiness)
    }
}

impl Eq for Split {}

/// The interval of the ring from `start` to the next arm's start.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Arm {
    start: u64,
    target: Target,
    /// See [`Drawn`].
    place: u32,
}

/// How a user finds its point on the ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stickiness {
    pub(crate) key: Attribute,
    pub(crate) without_key: WithoutKey,
    seed: u64,
}

/// The declared answer when the sticky key is missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum WithoutKey {
    Random,
    Use(Target),
}

impl Stickiness {
    pub(crate) fn new(model: &str, key: Attribute, without_key: WithoutKey) -> Self {
        Self { key, without_key, seed: xxh3_64(model.as_bytes()) }
    }

    pub(crate) fn point(&self, key: &str) -> u64 {
        xxh3_64_with_seed(key.as_bytes(), self.seed)
    }

    /// The version that answers when the key is missing, if the policy names one.
    pub(crate) fn fallback(&self) -> Option<Version> {
        match &self.without_key {
            WithoutKey::Random => None,
            WithoutKey::Use(target) => Some(target.version),
        }
    }
}

impl Split {
    /// `None` if no arm has a positive weight. Arms of weight 0 own no part of the ring.
    pub(crate) fn new(mut arms: Vec<(Target, Weight)>, stickiness: Option<Stickiness>) -> Option<Self> {
        arms.retain(|(_, weight)| weight.millionths() > 0);
        arms.sort_by(|(a, _), (b, _)| (a.version, &a.label).cmp(&(b.version, &b.label)));
        let sum: u128 = arms.iter().map(|(_, weight)| u128::from(weight.millionths())).sum();
        if sum == 0 {
            return None;
        }
        // The sum stays under 2^46 (64 arms of 10^12 millionths), so the product fits. `before < sum` holds for every
        // arm because its own weight is positive, so each start is under 2^64.
        let mut before = 0_u128;
        let arms = arms
            .into_iter()
            .map(|(target, weight)| {
                let start = (before << 64) / sum;
                before += u128::from(weight.millionths());
                Arm { start: u64::try_from(start).expect("every arm starts on the ring"), target, place: 0 }
            })
            .collect();
        let mut split = Self { arms, stickiness, mark: 0, ring: Ring::default() };
        let declared = split.declared();
        split.mark = declared.mark;
        for arm in &mut split.arms {
            arm.place = declared.drawn(arm.target.version).place;
        }
        split.ring = split.ring_of(&ring::in_order(&split.lengths()));
        Some(split)
    }

    /// Leaves as many users as can be with the versions that they have on another ring.
    pub(crate) fn follow(&mut self, old: &Parts) {
        if ring::is_sound(old) && self.parts() != *old {
            self.ring = self.ring_of(&ring::follow(old, &self.lengths()));
        }
    }

    /// Shares of its versions.
    pub(crate) fn declared(&self) -> Declared {
        // Half of all points, or more, would not fit otherwise.
        let half = |(version, length): (Version, u128)| (version, (length / 2) as u64);
        Declared::new(&self.lengths().into_iter().map(half).collect::<Vec<_>>())
    }

    /// Points of each version.
    fn lengths(&self) -> BTreeMap<Version, u128> {
        let mut lengths = BTreeMap::new();
        for (at, arm) in self.arms.iter().enumerate() {
            *lengths.entry(arm.target.version).or_default() += self.length(at);
        }
        lengths
    }

    fn length(&self, at: usize) -> u128 {
        let end = self.arms.get(at + 1).map_or(ring::POINTS, |next| next.start.into());
        end - u128::from(self.arms[at].start)
    }

    /// Divides the parts of each version between its arms, which are one unless it has several labels.
    fn ring_of(&self, parts: &Parts) -> Ring {
        let mut left: Vec<u128> = (0..self.arms.len()).map(|at| self.length(at)).collect();
        let mut ring = Ring::new();
        for ((mut length, version), (start, _)) in ring::with_lengths(parts).zip(parts) {
            let mut start = u128::from(*start);
            for at in (0..self.arms.len()).filter(|at| self.arms[*at].target.version == version) {
                let gets = length.min(left[at]);
                if gets > 0 {
                    ring.push((u64::try_from(start).expect("every part begins on the ring"), at));
                    (start, length, left[at]) = (start + gets, length - gets, left[at] - gets);
                }
            }
        }
        ring
    }

    pub(crate) fn pick(&self, caller: &impl Attributes, draw: u64) -> Pick {
        let drawn = |point: u64, reason, key| {
            let Arm { target, place, .. } = self.at(point);
            let drawn = Some(Drawn { version: target.version, place: *place, mark: self.mark });
            Pick { key, drawn, ..target.pick(reason) }
        };
        let Some(sticky) = &self.stickiness else { return drawn(draw, PickReason::Random, None) };
        match (sticky.key.of(caller), &sticky.without_key) {
            (Some(key), _) => {
                let point = sticky.point(&key);
                drawn(point, PickReason::Sticky, Some(point))
            }
            (None, WithoutKey::Random) => drawn(draw, PickReason::Random, None),
            (None, WithoutKey::Use(target)) => target.pick(PickReason::WithoutKey),
        }
    }

    fn at(&self, point: u64) -> &Arm {
        let next = self.ring.partition_point(|(start, _)| *start <= point);
        &self.arms[self.ring[next - 1].1] // The first part starts at 0, so `next` is at least 1.
    }

    /// Each arm that owns a part of the ring, with its share of 1.
    pub(crate) fn shares(&self) -> impl Iterator<Item = (&Target, f64)> {
        const RING: f64 = 18_446_744_073_709_551_616.0; // 2^64
        self.arms.iter().enumerate().map(|(at, arm)| {
            let end = self.arms.get(at + 1).map_or(RING, |next| next.start as f64);
            (&arm.target, (end - arm.start as f64) / RING)
        })
    }

    /// Who answers from where on.
    pub(crate) fn parts(&self) -> Parts {
        self.ring.iter().map(|(start, at)| (*start, self.arms[*at].target.version)).collect()
    }

    /// Every version that may be picked.
    pub(crate) fn versions(&self) -> impl Iterator<Item = Version> {
        let fallback = self.stickiness.as_ref().and_then(Stickiness::fallback);
        self.arms.iter().map(|arm| arm.target.version).chain(fallback)
    }

    pub(crate) fn stickiness(&self) -> Option<&Stickiness> {
        self.stickiness.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOBODY: [(&str, &str); 0] = [];

    /// Arms of versions 1, 2, 3, ... with these weights.
    fn split(weights: &[f64], stickiness: Option<Stickiness>) -> Split {
        let arms = weights.iter().zip(1..).map(|(weight, version)| {
            let target = Target { version: Version(version), label: None };
            (target, Weight::try_from(*weight).unwrap())
        });
        Split::new(arms.collect(), stickiness).unwrap()
    }

    fn sticky(model: &str, without_key: WithoutKey) -> Option<Stickiness> {
        Some(Stickiness::new(model, Attribute::Header("user".into()), without_key))
    }

    fn version_at(split: &Split, point: u64) -> u64 {
        split.at(point).target.version.0
    }

    #[test]
    fn a_field_of_the_body_is_a_key_like_others_and_its_model_says_that_it_waits_for_it() {
        let text = "
models:
  by_parameter: {split: {weights: {1: 1, 2: 1}, sticky: {parameter: user_id}, without_key: 3}}
  by_input: {canary: {baseline: 1, candidate: 2, sticky: {input: user}}}
  by_header: {split: {weights: {1: 1}, sticky: {header: user_id}}}
";
        let snapshot = crate::parse(text, "p").unwrap();
        let model = |name| snapshot.model(name).unwrap();
        let asks = |name| model(name).asks_of_body().cloned();
        assert_eq!(asks("by_parameter"), Some(crate::Field::Parameter("user_id".into())));
        assert_eq!(asks("by_input"), Some(crate::Field::Input("user".into())));
        assert_eq!(asks("by_header"), None);
        let stage = |_: &crate::canary::CanaryPolicy| crate::canary::Stage::NOT_BEGUN;
        let pick = |value| model("by_parameter").pick(&[("body", value)], 0, stage).unwrap();
        assert_eq!((pick("7").reason, pick("7").key), (PickReason::Sticky, pick("7").key));
        assert_ne!(pick("7").key, pick("8").key);
        assert_eq!((pick("").version, pick("").reason), (Version(3), PickReason::WithoutKey));
    }

    /// Published, so that another implementation can agree: computed with the reference library (xxHash 0.8.3).
    #[test]
    fn a_user_stands_at_the_same_point_everywhere_and_forever() {
        let point = |model: &str, key: &str| {
            Stickiness::new(model, Attribute::Header("user".into()), WithoutKey::Random).point(key)
        };
        assert_eq!(point("digits", "ana"), 0x58f9_054c_7936_2bd7);
        assert_eq!(point("digits", "ben"), 0xc90c_bdb8_8c07_e17d);
        assert_eq!(point("digits", "7f9c2ba4-e88f-4d1d-a1f5-0242ac120002"), 0xaf10_33a0_4d81_66ef);
        assert_eq!(point("digits", "ü"), 0x995e_c80c_93c4_1454);
        assert_eq!(point("digits", &"x".repeat(300)), 0xe1e1_9ab8_466b_3095);
        assert_eq!(point("ranking", "ana"), 0x6631_ac84_4bb5_977a, "another model, another point");
    }

    #[test]
    fn who_gets_the_one_versions_of_one_model_gets_them_of_another_by_chance() {
        let [one, other] =
            ["digits", "ranking"].map(|model| split(&[1.0, 1.0], sticky(model, WithoutKey::Random)));
        let version = |split: &Split, user: &str| split.pick(&[("user", user)], 0).version;
        let alike = (0..10_000)
            .map(|user| user.to_string())
            .filter(|user| version(&one, user) == version(&other, user));
        let alike = alike.count();
        assert!((4_700..5_300).contains(&alike), "{alike} of 10,000"); // six standard deviations
    }

    #[test]
    fn the_ring_is_cut_where_the_weights_say() {
        let split = split(&[50.0, 25.0, 25.0], None);
        assert_eq!(version_at(&split, 0), 1);
        assert_eq!(version_at(&split, (1 << 63) - 1), 1);
        assert_eq!(version_at(&split, 1 << 63), 2);
        assert_eq!(version_at(&split, (3 << 62) - 1), 2);
        assert_eq!(version_at(&split, 3 << 62), 3);
        assert_eq!(version_at(&split, u64::MAX), 3);
    }

    #[test]
    fn a_tenth_of_a_hundred_thousand_users_is_on_the_canary() {
        let split = split(&[90.0, 10.0], sticky("digits", WithoutKey::Random));
        let on_canary =
            |user: &u32| split.pick(&[("user", user.to_string().as_str())], 0).version == Version(2);
        let canaries = (0..100_000).filter(on_canary).count();
        // Four standard deviations of a fair draw.
        assert!((9_621..=10_379).contains(&canaries), "{canaries}");
    }

    #[test]
    fn without_stickiness_the_draw_decides() {
        let split = split(&[90.0, 10.0], None);
        let pick = |draw| split.pick(&[("user", "ana")], draw);
        assert_eq!((pick(0).version, pick(0).reason), (Version(1), PickReason::Random));
        assert_eq!((pick(u64::MAX).version, pick(u64::MAX).reason), (Version(2), PickReason::Random));
    }

    #[test]
    fn a_missing_key_falls_back_as_declared() {
        let random = split(&[90.0, 10.0], sticky("digits", WithoutKey::Random));
        let pick = random.pick(&NOBODY, u64::MAX);
        assert_eq!((pick.version, pick.reason), (Version(2), PickReason::Random));

        let fixed = Target { version: Version(7), label: Some("stable".into()) };
        let fixed = split(&[90.0, 10.0], sticky("digits", WithoutKey::Use(fixed)));
        let pick = fixed.pick(&[("user", "")], u64::MAX);
        assert_eq!((pick.version, pick.reason), (Version(7), PickReason::WithoutKey));
        assert_eq!(pick.label.as_deref(), Some("stable"));
    }

    /// A weight of up to six significant digits.
    fn weight() -> impl Strategy<Value = f64> {
        (1_u32..1_000_000, 0_i32..6).prop_map(|(digits, decimals)| f64::from(digits) / 10_f64.powi(decimals))
    }

    proptest! {
        #[test]
        fn shares_are_exact_to_one_point_of_the_ring(weights in prop::collection::vec(weight(), 1..=64)) {
            let split = split(&weights, None);
            let millionths: Vec<_> =
                weights.iter().map(|weight| u128::from(Weight::try_from(*weight).unwrap().millionths())).collect();
            let sum: u128 = millionths.iter().sum();
            let mut before = 0;
            for (arm, weight) in split.arms.iter().zip(&millionths) {
                let start = u128::from(arm.start);
                prop_assert!(start * sum <= before << 64 && before << 64 < (start + 1) * sum);
                before += weight;
            }
        }

        #[test]
        fn the_scale_of_the_weights_means_nothing(weights in prop::collection::vec(1_u32..1000, 1..8), scale in 1_u32..1000) {
            let as_written: Vec<_> = weights.iter().map(|weight| f64::from(*weight)).collect();
            let scaled: Vec<_> = weights.iter().map(|weight| f64::from(weight * scale)).collect();
            prop_assert_eq!(split(&as_written, None), split(&scaled, None));
        }

        #[test]
        fn the_order_of_the_file_means_nothing(weights in prop::collection::vec(weight(), 2..8)) {
            let mut arms: Vec<_> = (1..).zip(&weights).map(|(version, weight)| {
                (Target { version: Version(version), label: None }, Weight::try_from(*weight).unwrap())
            }).collect();
            let forward = Split::new(arms.clone(), None);
            arms.reverse();
            prop_assert_eq!(forward, Split::new(arms, None));
        }

        /// Between two arms the users that change sides are those between the old and the new cut, and no others.
        #[test]
        fn a_raised_weight_moves_only_the_users_it_must(
            old in (weight(), weight()), new in (weight(), weight()), point: u64,
        ) {
            let (old, new) = (split(&[old.0, old.1], None), split(&[new.0, new.1], None));
            let cuts = [old.arms[1].start, new.arms[1].start];
            let moved = version_at(&old, point) != version_at(&new, point);
            let between = cuts.iter().min() <= Some(&point) && Some(&point) < cuts.iter().max();
            prop_assert_eq!(moved, between);
        }

        #[test]
        fn every_point_of_the_ring_belongs_to_an_arm(weights in prop::collection::vec(weight(), 1..8), point: u64) {
            let split = split(&weights, None);
            prop_assert!((1..=weights.len() as u64).contains(&version_at(&split, point)));
        }
    }
}
