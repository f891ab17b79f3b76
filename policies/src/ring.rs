//! Which version answers at which point of the ring of all 64-bit numbers, and how that changes with the shares.
//!
//! ```text
//!   before   ├──── version 1, 80 % ────┼─ version 2, 15 % ─┼ version 3, 5 % ┤
//!   after    ├── 1, 70 % ──┼ 3, 10 % ──┼─ 2, 15 % ─────────┼ 3, 5 % ────────┤     a tenth has moved, which is the least
//! ```
//!
//! A ring that follows another one keeps at every point the version that was there, as far as that version's new share
//! reaches, and gives away only what is left: the part of all users that moves is half the sum of all differences of
//! shares, which is the least that can be. So a ring has a history, which travels with the state of the process; without
//! one it is cut in the order of versions. A rollout changes its shares by itself: instead of parts it has an [`Order`] in
//! which its candidate takes the points of the ring.

use std::collections::BTreeMap;

use smallvec::{SmallVec, smallvec};

use crate::units::Version;

/// The number of points.
pub(crate) const POINTS: u128 = 1 << 64;

/// Parts of one ring; a ring that has been cut into more is cut anew, which moves more users once.
const PARTS_MAX: usize = 1024;

/// Where the part of each version begins, in order; the first begins at 0.
pub(crate) type Parts = Vec<(u64, Version)>;

/// Points for each version, which add up to [`POINTS`], in the order of `old` as far as that can be.
pub(crate) fn follow(old: &Parts, lengths: &BTreeMap<Version, u128>) -> Parts {
    debug_assert_eq!(lengths.values().sum::<u128>(), POINTS, "the shares are of everything");
    let before = lengths_of(old);
    let grows = |version: &Version| lengths.get(version) > before.get(version);
    let mut left = lengths.clone();
    // What stays, and what is free.
    let mut pieces: Vec<(u128, Option<Version>)> = Vec::new();
    for (length, version) in with_lengths(old) {
        let has = left.get_mut(&version);
        let stays = has.map_or(0, |left| {
            let stays = length.min(*left);
            *left -= stays;
            stays
        });
        // What is given away lies beside whoever gets it, where that can be.
        let neighbour = pieces.last().and_then(|(_, version)| *version);
        let mut parts = [(stays, Some(version)), (length - stays, None)];
        if neighbour.is_some_and(|neighbour| grows(&neighbour)) {
            parts.reverse();
        }
        pieces.extend(parts.into_iter().filter(|(length, _)| *length > 0));
    }
    let mut filled: Vec<(u128, Version)> = Vec::new();
    for at in 0..pieces.len() {
        let (mut length, version) = pieces[at];
        if let Some(version) = version {
            filled.push((length, version));
            continue;
        }
        let beside = [filled.last().map(|last| last.1), pieces.get(at + 1).and_then(|next| next.1)];
        let anybody: Vec<Version> = left.keys().copied().collect();
        for version in beside.into_iter().flatten().chain(anybody) {
            let Some(wants) = left.get_mut(&version) else { continue };
            let gets = length.min(*wants);
            if gets > 0 {
                *wants -= gets;
                length -= gets;
                filled.push((gets, version));
            }
        }
        debug_assert_eq!(length, 0, "what is free is wanted by somebody");
    }
    let parts = joined(filled);
    if parts.len() > PARTS_MAX { in_order(lengths) } else { parts }
}

/// A ring without a history.
pub(crate) fn in_order(lengths: &BTreeMap<Version, u128>) -> Parts {
    joined(lengths.iter().map(|(version, length)| (*length, *version)).collect())
}

/// Each part with its length.
pub(crate) fn with_lengths(parts: &Parts) -> impl Iterator<Item = (u128, Version)> {
    let ends = parts.iter().skip(1).map(|(start, _)| u128::from(*start)).chain([POINTS]);
    parts.iter().zip(ends).map(|((start, version), end)| (end.saturating_sub(u128::from(*start)), *version))
}

/// Whether somebody has written these parts down rightly.
pub(crate) fn is_sound(parts: &Parts) -> bool {
    parts.first().is_some_and(|first| first.0 == 0)
        && parts.len() <= PARTS_MAX
        && parts.windows(2).all(|pair| pair[0].0 < pair[1].0)
}

/// Points of each version.
pub(crate) fn lengths_of(parts: &Parts) -> BTreeMap<Version, u128> {
    let mut lengths = BTreeMap::new();
    for (length, version) in with_lengths(parts) {
        *lengths.entry(version).or_default() += length;
    }
    lengths
}

/// The points of a ring in the order in which a rollout's candidate gives them away: those from some place on are its
/// own, so that whoever has it keeps it as its share rises.
#[derive(Clone, Debug)]
pub(crate) struct Order(
    /// Where a part begins on the ring, and at which place of the order.
    SmallVec<[(u64, u64); 1]>,
);

/// That of a ring without a history: the candidate has the end of it.
impl Default for Order {
    fn default() -> Self {
        Self(smallvec![(0, 0)])
    }
}

/// It is not what a policy says, but what has come of it: two policies that differ in nothing else are equal.
impl PartialEq for Order {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Order {}

impl Order {
    /// The candidate takes first what it has, then what others have who get nothing any more, then the baseline's.
    pub(crate) fn following(old: &Parts, baseline: Version, candidate: Version) -> Self {
        let turn = |version: Version| match version {
            version if version == baseline => 0,
            version if version == candidate => 2,
            _ => 1,
        };
        let with_starts = with_lengths(old).zip(old);
        let mut parts: Vec<_> =
            with_starts.map(|((length, version), (start, _))| (turn(version), *start, length)).collect();
        parts.sort_unstable();
        let mut next = 0u128;
        let mut order = SmallVec::new();
        for (_, start, length) in parts {
            order.push((start, u64::try_from(next).expect("every part has a place on the ring")));
            next += length;
        }
        order.sort_unstable();
        Self(order)
    }

    /// The place of a point.
    pub(crate) fn place(&self, point: u64) -> u64 {
        let next = self.0.partition_point(|(start, _)| *start <= point);
        let (start, place) = self.0[next - 1]; // The first part starts at 0, so `next` is at least 1.
        place + (point - start)
    }

    /// Who has which part where the candidate has the places from `cut` on.
    pub(crate) fn parts(&self, cut: u128, baseline: Version, candidate: Version) -> Parts {
        let ends = self.0.iter().skip(1).map(|(start, _)| u128::from(*start)).chain([POINTS]);
        let halves = self.0.iter().zip(ends).flat_map(|((start, place), end)| {
            let length = end - u128::from(*start);
            let before = cut.saturating_sub(u128::from(*place)).min(length);
            [(before, baseline), (length - before, candidate)]
        });
        joined(halves.collect())
    }
}

/// Points at which two rings differ.
pub(crate) fn moved(before: &Parts, after: &Parts) -> u128 {
    let at = |parts: &Parts, point: u64| parts[parts.partition_point(|(start, _)| *start <= point) - 1].1;
    let mut points: Vec<u64> = before.iter().chain(after).map(|(start, _)| *start).collect();
    points.sort_unstable();
    let ends = points.iter().skip(1).map(|end| u128::from(*end)).chain([POINTS]);
    let parts = points.iter().zip(ends);
    parts
        .filter(|(start, _)| at(before, **start) != at(after, **start))
        .map(|(start, end)| end - u128::from(*start))
        .sum()
}

/// From lengths to starts; neighbours of one version become one part.
pub(crate) fn joined(pieces: Vec<(u128, Version)>) -> Parts {
    let mut parts = Parts::new();
    let mut start = 0u128;
    for (length, version) in pieces.into_iter().filter(|(length, _)| *length > 0) {
        if parts.last().is_none_or(|last| last.1 != version) {
            parts.push((u64::try_from(start).expect("every part begins on the ring"), version));
        }
        start += length;
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn lengths(weights: &[u32]) -> BTreeMap<Version, u128> {
        let sum: u128 = weights.iter().map(|weight| u128::from(*weight)).sum();
        let mut before = 0u128;
        let mut lengths = BTreeMap::new();
        for (weight, version) in weights.iter().zip(1..) {
            let after = before + u128::from(*weight);
            let length = (after << 64) / sum - (before << 64) / sum;
            if length > 0 {
                lengths.insert(Version(version), length);
            }
            before = after;
        }
        lengths
    }

    #[test]
    fn two_versions_meet_at_one_cut_whichever_grows() {
        let start = in_order(&lengths(&[90, 10]));
        let more = follow(&start, &lengths(&[80, 20]));
        assert_eq!(more, in_order(&lengths(&[80, 20])));
        assert_eq!(follow(&more, &lengths(&[95, 5])), in_order(&lengths(&[95, 5])));
        assert_eq!(follow(&more, &lengths(&[0, 7])), in_order(&lengths(&[0, 7])));
    }

    #[test]
    fn a_third_version_takes_only_from_the_one_that_gives() {
        let before = in_order(&lengths(&[90, 10]));
        let after = follow(&before, &lengths(&[80, 10, 10]));
        let tenth = moved(&before, &after) as f64 / POINTS as f64;
        assert!((tenth - 0.1).abs() < 1e-15, "{tenth}; a cut in order would move twice as many");
    }

    #[test]
    fn who_moves_is_counted_to_the_point() {
        let (one, other) = (vec![(0, Version(1))], vec![(0, Version(1)), (u64::MAX, Version(2))]);
        assert_eq!((moved(&one, &one), moved(&one, &other), moved(&other, &one)), (0, 1, 1));
        assert_eq!(moved(&one, &vec![(0, Version(2))]), POINTS);
        assert_eq!(moved(&vec![(0, Version(1)), (1 << 63, Version(2))], &other), (1 << 63) - 1);
    }

    #[test]
    fn what_was_written_down_wrongly_is_found_out() {
        let sound = in_order(&lengths(&[1, 2]));
        assert!(is_sound(&sound));
        assert!(!is_sound(&Vec::new()) && !is_sound(&vec![(5, Version(1))]));
        assert!(!is_sound(&vec![(0, Version(1)), (9, Version(2)), (9, Version(1))]));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(10_000))]

        /// 10,000 sequences of rings of up to eight versions.
        #[test]
        fn every_change_moves_exactly_the_least_and_every_share_is_exact(
            changes in prop::collection::vec(prop::collection::vec(0..1000u32, 1..=8), 2..7),
        ) {
            let mut ring: Option<Parts> = None;
            for weights in changes.iter().filter(|weights| weights.iter().any(|weight| *weight > 0)) {
                let wanted = lengths(weights);
                let next = ring.as_ref().map_or_else(|| in_order(&wanted), |ring| follow(ring, &wanted));
                prop_assert!(is_sound(&next));
                prop_assert_eq!(&lengths_of(&next), &wanted);
                if let Some(ring) = &ring {
                    let before = lengths_of(ring);
                    let lost = |(version, had): (&Version, &u128)| had.saturating_sub(wanted.get(version).copied().unwrap_or(0));
                    let least: u128 = before.iter().map(lost).sum();
                    prop_assert_eq!(moved(ring, &next), least);
                }
                ring = Some(next);
            }
        }

        /// The rollout of version 2 in place of version 1, after rings of up to eight versions.
        #[test]
        fn a_rollout_moves_exactly_the_least_and_takes_nobody_back_while_its_share_rises(
            weights in prop::collection::vec(1..1000u32, 1..=8), cuts in prop::array::uniform2(0..=POINTS), point: u64,
        ) {
            // Its versions do not lie in their order.
            let before = follow(&in_order(&lengths(&weights)), &lengths(&weights.iter().rev().copied().collect::<Vec<_>>()));
            let (baseline, candidate) = (Version(1), Version(2));
            let order = Order::following(&before, baseline, candidate);
            let [parts, others] = cuts.map(|cut| order.parts(cut, baseline, candidate));
            let wanted: BTreeMap<_, _> =
                [(baseline, cuts[0]), (candidate, POINTS - cuts[0])].into_iter().filter(|(_, length)| *length > 0).collect();
            prop_assert_eq!(lengths_of(&parts), wanted.clone());
            let lost = |(version, had): (&Version, &u128)| had.saturating_sub(wanted.get(version).copied().unwrap_or(0));
            prop_assert_eq!(moved(&before, &parts), lengths_of(&before).iter().map(lost).sum::<u128>());
            prop_assert_eq!(moved(&parts, &others), cuts[0].abs_diff(cuts[1]));
            let owner = parts[parts.partition_point(|(start, _)| *start <= point) - 1].1;
            prop_assert_eq!(owner == candidate, u128::from(order.place(point)) >= cuts[0]);
        }
    }
}
