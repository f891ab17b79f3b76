//! Splits by the thousand: those that are as declared, and those that are not.

use super::*;
use crate::evidence::tests::Dice;
use crate::ratio::evidence;

const ONE: Version = Version(1);
const TWO: Version = Version(2);

fn declared(percent: &[u64]) -> Declared {
    let parts: Vec<_> = (1..).map(Version).zip(percent.iter().copied()).collect();
    Declared::new(&parts)
}

/// A split of versions 1, 2, … by these percentages, and somebody who asks.
struct World {
    tally: Tally,
    declared: Declared,
    dice: Dice,
    now: Instant,
}

impl World {
    fn new(percent: &[u64], key: Option<&str>, seed: u64) -> Self {
        let (declared, now) = (declared(percent), Instant::now());
        let key = key.map(|name| Attribute::Header(name.into()));
        Self { tally: Tally::new(&declared, key, now), declared, dice: Dice(seed), now }
    }

    fn of_users(percent: &[u64], seed: u64) -> Self {
        Self::new(percent, Some("user"), seed)
    }

    /// Where a user or a draw lies, cut as a split without a history is.
    fn version_at(&self, point: u64) -> Version {
        let (mut place, mut last) = (point as f64 / 2f64.powi(64), ONE);
        for (version, share) in &self.declared.shares {
            (place, last) = (place - share, *version);
            if place < 0.0 {
                break;
            }
        }
        last
    }

    fn drawn(&self, version: Version) -> Drawn {
        self.declared.drawn(version)
    }

    /// A request of a user, which is answered by the version that it is given to.
    fn ask(&self, user: u64) -> Version {
        let point = mixed(user.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let version = self.version_at(point);
        self.tally.count(self.drawn(version), Some(point), Some(version), None);
        version
    }

    fn ask_often(&self, user: u64, times: u32) {
        for _ in 0..times {
            self.ask(user);
        }
    }

    /// A request that draws.
    fn draw(&mut self, share_of_second: f64) {
        let version = if self.dice.falls(share_of_second) { TWO } else { ONE };
        self.tally.count(self.drawn(version), None, Some(version), None);
    }

    fn mismatch(&self) -> Option<(&'static str, String)> {
        self.tally.look();
        self.tally.status(self.now).mismatch.map(|mismatch| (mismatch.cause, mismatch.why))
    }
}

/// Looks as [`Tally::look`] does, at units that come with these chances; after how many of them it has seen this much.
fn seen_after(dice: &mut Dice, chances: &[f64], shares: &[f64], enough: f64, most: u64) -> Option<u64> {
    let (mut counts, mut next) = (vec![0; shares.len()], 1);
    for unit in 1..=most {
        let mut left = 1.0;
        let mut falls = |chance: &f64| {
            let falls = dice.falls(chance / left);
            left -= chance;
            falls
        };
        let at = chances.iter().position(&mut falls).unwrap_or(chances.len() - 1);
        counts[at] += 1;
        if unit >= next {
            next = unit + unit / 32 + 1;
            if evidence(&counts, shares) >= enough {
                return Some(unit);
            }
        }
    }
    None
}

/// 10,000 splits of 1,000 units each, which are looked at 126 times.
#[test]
fn splits_that_are_as_declared_are_called_a_mismatch_as_seldom_as_was_promised() {
    let mut dice = Dice(7);
    let (mut at_promised, mut at_one_in_twenty) = (0, 0);
    for split in 0..10_000 {
        let shares: &[f64] = [&[0.5, 0.5][..], &[0.9, 0.1], &[0.99, 0.01], &[0.8, 0.15, 0.05]][split % 4];
        let before = dice.0;
        let is_seen = |dice: &mut Dice, enough| seen_after(dice, shares, shares, enough, 1_000).is_some();
        if is_seen(&mut dice, 20.0) {
            at_one_in_twenty += 1;
            at_promised += u32::from(is_seen(&mut Dice(before), 1e4));
        }
    }
    assert!(at_promised <= 1, "{at_promised} of 10,000");
    assert!((1..=500).contains(&at_one_in_twenty), "{at_one_in_twenty} of 10,000 at α = 5 %");
}

#[test]
fn a_split_that_sends_52_to_48_is_found_in_half_of_all_cases_within_16000_requests() {
    let mut dice = Dice(3);
    let mut found: Vec<u64> = (0..60)
        .map(|_| seen_after(&mut dice, &[0.52, 0.48], &[0.5, 0.5], 1e4, 60_000).unwrap_or(u64::MAX))
        .collect();
    found.sort_unstable();
    assert!(found[30] <= 16_000, "median {}", found[30]);
    assert!(found[56] <= 32_000, "95 % within {}", found[56]);
}

/// A thousand users, of whom the first makes as many requests as the next two together, and so on; the same counted
/// by request would be called a mismatch.
#[test]
fn users_who_ask_much_are_no_mismatch() {
    let mut by_request = 0;
    for seed in 0..20 {
        let mut world = World::of_users(&[50, 50], seed);
        let mut counts = [0; 2];
        for _ in 0..20_000 {
            let mut rank = 1;
            while rank < 1_000 && !world.dice.falls(0.25 / f64::from(rank).sqrt()) {
                rank += 1;
            }
            let version = world.ask(seed << 32 | u64::from(rank as u32));
            counts[version.0 as usize - 1] += 1;
        }
        assert_eq!(world.mismatch(), None, "{counts:?}");
        by_request += u32::from(evidence(&counts, &[0.5, 0.5]) >= 1e4);
    }
    assert!(by_request >= 10, "{by_request} of 20: the users are not heavy enough to show anything");
}

#[test]
fn a_key_that_is_the_same_for_everybody_is_found_and_named() {
    let world = World::of_users(&[90, 10], 1);
    world.ask_often(5, 900);
    assert_eq!(world.mismatch(), None, "too few to tell");
    world.ask_often(5, 3_000);
    let (cause, why) = world.mismatch().unwrap();
    assert_eq!(cause, "one_key");
    assert!(why.starts_with("one value of header user has made at least 100 % of the requests: "), "{why}");
}

#[test]
fn a_user_who_makes_a_third_of_the_requests_is_not_everybody() {
    let world = World::of_users(&[90, 10], 1);
    for at in 0..60_000 {
        world.ask(if at % 3 == 0 { 0 } else { at });
    }
    assert_eq!(world.mismatch(), None);
}

#[test]
fn the_first_answer_of_a_user_counts_and_no_other() {
    let world = World::of_users(&[50, 50], 1);
    for user in 0..500 {
        world.ask_often(user, 10);
    }
    let status = world.tally.status(world.now);
    assert!((495..=500).contains(&status.units), "{}: users of one bit are one", status.units);
    let given: u64 = status.versions.iter().map(|version| version.given).sum();
    assert_eq!(given, 5_000);
    assert!(status.versions.iter().all(|version| version.answered == version.given && version.replaced == 0));
}

#[test]
fn a_version_in_whose_place_another_one_answers_is_named_and_why() {
    for (instead, words) in
        [(Instead::Fallback, "its breaker had tripped"), (Instead::NotReady, "it was not ready")]
    {
        let mut world = World::new(&[90, 10], None, 1);
        for _ in 0..2_000 {
            let drawn = if world.dice.falls(0.1) { TWO } else { ONE };
            let why = (drawn == TWO).then_some(instead);
            world.tally.count(world.drawn(drawn), None, Some(ONE), why);
        }
        let (cause, why) = world.mismatch().unwrap();
        assert_eq!(cause, instead.as_str());
        assert!(
            why.starts_with("version 2 has answered 0 % of 2000 requests, where 10 % are declared: others"),
            "{why}"
        );
        assert!(why.ends_with(words), "{why}");
    }
}

#[test]
fn a_version_that_leaves_requests_unanswered_is_named() {
    let mut world = World::new(&[50, 50], None, 1);
    for _ in 0..4_000 {
        let drawn = if world.dice.falls(0.5) { TWO } else { ONE };
        let is_lost = drawn == TWO && world.dice.falls(0.3);
        world.tally.count(world.drawn(drawn), None, (!is_lost).then_some(drawn), None);
    }
    let (cause, why) = world.mismatch().unwrap();
    assert_eq!(cause, "unanswered");
    assert!(why.starts_with("version 2 has answered 4") && why.contains("of its requests were not"), "{why}");
    let world = World::of_users(&[50, 50], 1);
    for at in 0..200_u64 {
        let point = mixed(at + 1);
        let drawn = world.version_at(point);
        let answered = (drawn == ONE).then_some(drawn);
        world.tally.count(world.drawn(drawn), Some(point), answered, Some(Instead::NotReady));
    }
    let (cause, why) = world.mismatch().unwrap();
    assert_eq!(cause, "unanswered");
    assert!(why.ends_with("100 % of its requests were not answered, because it was not ready"), "{why}");
}

#[test]
fn users_whom_another_split_by_the_same_key_has_chosen_are_found_out() {
    let world = World::of_users(&[50, 50], 1);
    for point in (0..2_000).map(mixed).filter(|point| *point < u64::MAX / 4 * 3) {
        let version = world.version_at(point);
        world.tally.count(world.drawn(version), Some(point), Some(version), None);
    }
    let (cause, why) = world.mismatch().unwrap();
    assert_eq!(cause, "keys");
    assert!(why.contains("as behind another split by the same key"), "{why}");
}

#[test]
fn what_nothing_explains_is_told_as_well() {
    let mut world = World::new(&[50, 50], None, 1);
    (0..2_000).for_each(|_| world.draw(0.3));
    let (cause, why) = world.mismatch().unwrap();
    assert_eq!(cause, "unknown");
    assert!(why.ends_with("nothing that is counted explains it"), "{why}");
}

#[test]
fn it_is_told_once() {
    let mut world = World::new(&[50, 50], None, 1);
    (0..2_000).for_each(|_| world.draw(0.3));
    assert!(world.tally.look().is_some());
    (0..2_000).for_each(|_| world.draw(0.3));
    assert_eq!(world.tally.look(), None);
    assert!(world.mismatch().is_some(), "it stands");
}

#[test]
fn what_was_found_is_over_once_nothing_speaks_for_it_any_more() {
    let mut world = World::new(&[50, 50], None, 1);
    (0..400).for_each(|_| world.draw(0.3));
    assert!(world.tally.look().is_some());
    for _ in 0..40 {
        (0..2_500).for_each(|_| world.draw(0.5));
        assert_eq!(world.tally.look(), None);
    }
    assert_eq!(world.tally.status(world.now).mismatch, None);
    (0..100_000).for_each(|_| world.draw(0.3));
    assert_eq!(world.tally.look(), None, "it is told once");
    assert!(world.mismatch().is_some(), "and shown again");
}

#[test]
fn what_was_drawn_under_other_shares_does_not_count() {
    let world = World::new(&[50, 50], None, 1);
    world.tally.count(declared(&[60, 40]).drawn(ONE), None, Some(ONE), None);
    world.tally.count(world.drawn(Version(9)), None, Some(ONE), None);
    assert_eq!(world.tally.status(world.now).units, 0);
    assert_eq!(declared(&[50, 50]), world.declared);
}

/// A version outside of the split that answers for one of it takes units away, and is no version of its own.
#[test]
fn a_version_that_has_no_share_and_answers_is_counted_as_replacing() {
    let mut world = World::new(&[50, 50], None, 1);
    for _ in 0..1_000 {
        let drawn = if world.dice.falls(0.5) { TWO } else { ONE };
        let answered = if drawn == TWO { Version(3) } else { ONE };
        let instead = (drawn == TWO).then_some(Instead::Fallback);
        world.tally.count(world.drawn(drawn), None, Some(answered), instead);
    }
    let (cause, _) = world.mismatch().unwrap();
    assert_eq!(cause, "fallback");
    let status = world.tally.status(world.now);
    assert_eq!((status.versions[1].answered, status.versions[1].percent), (0, Some(0.0)));
    assert_eq!(status.versions[1].replaced, status.versions[1].given);
}
