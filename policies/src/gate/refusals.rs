//! What a version does not take that another might have: whether the candidate refuses more than the baseline's refusals explain.
//!
//! Each may be its caller's mistake, so it is no failure of the candidate's. Against the baseline a key counts once (see `gate.rs`), and
//! so a few of them never show that the candidate takes less. They need not show it: while more is refused than the baseline's
//! refusals explain and the policy would let fail, and chance does not, the candidate gets no more.
//!
//! Chance puts a key on one side, so each is one, and what it is refused is what it counts with. There are two ways in which chance does
//! not explain it. More keys are refused something than the candidate's share makes, see `sides.rs`. Or, where users ask so often that
//! either side refuses each of them something, the candidate refuses more of each. A user whose client is broken is one of the first
//! and, of the second, as far from the others as they are apart: alone it never holds a rollout.
//!
//! Of one key so many count in a window, on both sides alike, that those who ask much do not hide the others. Users who are refused more
//! than that by either version are not told apart by it.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use super::KEYS_MAX;
use super::sides::Sides;

/// Requests of a key that count in a window.
const OF_KEY_MAX: u32 = 32;

/// What the candidate refuses each key beyond what the baseline does is no chance where it is so many standard deviations. More than
/// elsewhere: it is asked beside whether there are more keys, and both together are to be chance once in twenty times.
const DEVIATIONS_OF_EACH: f64 = 2.2;

/// Those of this step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Refusals {
    /// Requests of the candidate that it has refused, and others.
    refused: u64,
    others: u64,
    /// So many it would have refused if it refused what the baseline does.
    explained: f64,
    without_key: Sides,
    keys: Sides,
    /// What either side has refused each key.
    of_candidate: BTreeMap<u64, u64>,
    of_baseline: BTreeMap<u64, u64>,
    /// The same in this window.
    #[serde(skip)]
    in_window: HashMap<(bool, u64), u32>,
}

/// What is too much.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct TooMany {
    pub(super) refused: u64,
    pub(super) explained: f64,
    /// Requests of the candidate.
    pub(super) requests: u64,
}

impl Refusals {
    pub(super) fn hear(&mut self, key: Option<u64>, is_candidate: bool, share: f64) {
        match key {
            // A candidate that is not ready has nobody.
            _ if share == 0.0 => return,
            None => self.without_key.hear(is_candidate, share),
            Some(key) => {
                if self.is_full() {
                    return;
                }
                let keys = if is_candidate { &mut self.of_candidate } else { &mut self.of_baseline };
                if !keys.contains_key(&key) {
                    self.keys.hear(is_candidate, share);
                }
                let in_window = self.in_window.entry((is_candidate, key)).or_default();
                if *in_window >= OF_KEY_MAX {
                    return;
                }
                *in_window += 1;
                *keys.entry(key).or_default() += 1;
            }
        }
        if is_candidate {
            self.refused += 1;
        } else if share < 1.0 {
            self.explained += share / (1.0 - share);
        }
    }

    /// The candidate was asked something that it has not refused, so many of this key in this window.
    pub(super) fn hear_other(&mut self, of_key: Option<u32>) {
        let counts = |all| !self.is_full() && all <= OF_KEY_MAX;
        self.others += u64::from(of_key.is_none_or(counts));
    }

    /// What so many keys have shown stays for this step: if one side of what is counted went on without the other, it would say less and
    /// less, or more and more.
    fn is_full(&self) -> bool {
        self.of_candidate.len() + self.of_baseline.len() >= KEYS_MAX
    }

    pub(super) fn close_window(&mut self) {
        self.in_window.clear();
    }

    /// Whether there are more than such a part of its requests above what is explained, and more than chance makes of it.
    pub(super) fn are_too_many(&self, at_most: f64) -> Option<TooMany> {
        let Self { refused, explained, .. } = *self;
        let requests = refused + self.others;
        let is_much = refused as f64 > explained + at_most * requests as f64;
        let is_no_chance = || self.keys.are_more() || self.without_key.are_more() || self.is_more_of_each();
        (is_much && is_no_chance()).then_some(TooMany { refused, explained, requests })
    }

    /// Whether the candidate refuses more of each key of which it refuses anything. The larger of two deviations is chance: of what is
    /// there, put on two sides, and of what is on each of them.
    fn is_more_of_each(&self) -> bool {
        let (candidate, baseline) = (Spread::of(&self.of_candidate), Spread::of(&self.of_baseline));
        if candidate.count < 2.0 || baseline.count < 2.0 {
            return false;
        }
        let all = candidate.with(baseline).variance();
        let put = all / candidate.count + all / baseline.count;
        let apart = candidate.variance() / candidate.count + baseline.variance() / baseline.count;
        candidate.mean() - baseline.mean() > DEVIATIONS_OF_EACH * put.max(apart).sqrt()
    }
}

/// How large numbers are, and how far apart.
#[derive(Clone, Copy, Debug, Default)]
struct Spread {
    count: f64,
    sum: f64,
    squares: f64,
}

impl Spread {
    fn of(keys: &BTreeMap<u64, u64>) -> Self {
        keys.values().fold(Self::default(), |all, refused| {
            let one = *refused as f64;
            all.with(Self { count: 1.0, sum: one, squares: one * one })
        })
    }

    fn with(self, other: Self) -> Self {
        let Self { count, sum, squares } = other;
        Self { count: self.count + count, sum: self.sum + sum, squares: self.squares + squares }
    }

    fn mean(self) -> f64 {
        self.sum / self.count
    }

    /// Of what these are a sample of.
    fn variance(self) -> f64 {
        ((self.squares - self.sum * self.mean()) / (self.count - 1.0)).max(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evidence::tests::Dice;

    const AT_MOST: f64 = 0.05;

    /// A user's side, and with what chance each of its requests is refused there.
    type User = (bool, f64);

    /// So many requests of each in each of ten windows.
    fn refused(dice: &mut Dice, users: &[User], (share, requests): (f64, u32)) -> Refusals {
        let mut refusals = Refusals::default();
        for _ in 0..10 {
            for (key, (is_candidate, chance)) in (0..).zip(users) {
                let mut others = 0;
                for _ in 0..requests {
                    if dice.falls(*chance) {
                        refusals.hear(Some(key), *is_candidate, share);
                    } else if *is_candidate {
                        others += 1;
                        refusals.hear_other(Some(others));
                    }
                }
            }
            refusals.close_window();
        }
        refusals
    }

    #[test]
    fn what_as_many_keys_have_shown_as_are_remembered_is_not_forgotten_for_those_that_come_then() {
        let mut refusals = Refusals::default();
        for key in 0..=KEYS_MAX as u64 {
            let is_candidate = key.is_multiple_of(2);
            (0..if is_candidate { 20 } else { 2 }).for_each(|_| refusals.hear(Some(key), is_candidate, 0.5));
            (1..=10).for_each(|all| refusals.hear_other(Some(all)));
            refusals.close_window();
        }
        let shown = refusals.are_too_many(0.05);
        assert!(shown.is_some());
        (0..1_000_000).for_each(|_| refusals.hear_other(Some(1)));
        assert_eq!(refusals.are_too_many(0.05), shown);
    }

    #[test]
    fn six_in_ten_where_the_baseline_refuses_one_are_too_many_however_often_users_ask() {
        for (users, requests) in [(8, 20), (40, 20), (400, 20), (8, 2), (40, 1), (8, 50)] {
            let more = |seed: &u64| {
                let sides: Vec<User> =
                    (0..users).map(|at| if at % 2 == 0 { (true, 0.6) } else { (false, 0.1) }).collect();
                let refusals = refused(&mut Dice(*seed), &sides, (0.5, requests));
                let kept = serde_json::to_string(&refusals).unwrap();
                let restored: Refusals = serde_json::from_str(&kept).unwrap();
                assert_eq!(restored.are_too_many(AT_MOST), refusals.are_too_many(AT_MOST));
                refusals.are_too_many(AT_MOST).is_some()
            };
            let held = (0..40).filter(more).count();
            assert!(held >= 36, "{held} of 40 of {users} users with {requests} requests each");
        }
    }

    /// Of users of whom some are always refused, and the others as often by either version.
    #[test]
    fn what_both_refuse_alike_is_rarely_too_many() {
        for (users, always, often) in
            [(8, 0.3, 0.1), (40, 0.1, 0.1), (40, 0.3, 0.0), (40, 0.02, 0.3), (200, 0.1, 0.02), (6, 0.5, 0.5)]
        {
            for (share, requests) in [(0.5, 5), (0.1, 5), (0.5, 1)] {
                let mut dice = Dice(users);
                let held = (0..400).filter(|_| {
                    let user =
                        |dice: &mut Dice| (dice.falls(share), if dice.falls(always) { 1.0 } else { often });
                    let users: Vec<User> = (0..users).map(|_| user(&mut dice)).collect();
                    refused(&mut dice, &users, (share, requests)).are_too_many(AT_MOST).is_some()
                });
                let held = held.count();
                assert!(held <= 20, "{held} of 400 of {users} users, {always} {often} {share} {requests}");
            }
        }
    }

    #[test]
    fn a_few_users_whose_clients_are_broken_are_not_too_many() {
        for broken in 0..4 {
            let users: Vec<User> =
                (0..40).map(|at| (at % 2 == 0, f64::from(u8::from(at < 2 * broken)))).collect();
            // Of the baseline's none is.
            let users: Vec<User> = users
                .into_iter()
                .map(|(is_candidate, chance)| (is_candidate, if is_candidate { chance } else { 0.0 }))
                .collect();
            let refusals = refused(&mut Dice(1), &users, (0.5, 1_000));
            assert_eq!(refusals.are_too_many(AT_MOST), None, "{broken}");
        }
        // Beside others who are refused now and then by both.
        let held = (0..100).filter(|seed| {
            let users: Vec<User> = (0..40).map(|at| (at % 2 == 0, if at == 0 { 1.0 } else { 0.1 })).collect();
            refused(&mut Dice(*seed), &users, (0.5, 20)).are_too_many(0.0).is_some()
        });
        assert!(held.count() <= 5);
    }

    #[test]
    fn what_is_refused_without_a_key_is_counted_one_by_one() {
        let heard = |of_candidate: u32, of_baseline: u32, others: u32| {
            let mut refusals = Refusals::default();
            (0..of_candidate).for_each(|_| refusals.hear(None, true, 0.5));
            (0..of_baseline).for_each(|_| refusals.hear(None, false, 0.5));
            (0..others).for_each(|_| refusals.hear_other(None));
            refusals.are_too_many(AT_MOST)
        };
        assert_eq!(heard(60, 10, 40), Some(TooMany { refused: 60, explained: 10.0, requests: 100 }));
        assert_eq!(heard(60, 55, 40), None, "chance");
        assert_eq!(heard(60, 10, 940), None, "so much may fail");
    }

    #[test]
    fn no_more_keys_are_remembered_than_there_is_room_for() {
        let mut refusals = Refusals::default();
        (0..2 * KEYS_MAX as u64).for_each(|key| refusals.hear(Some(key), key % 2 == 0, 0.5));
        assert_eq!(refusals.of_candidate.len() + refusals.of_baseline.len(), KEYS_MAX);
        assert_eq!((refusals.refused, refusals.in_window.len()), (KEYS_MAX as u64 / 2, KEYS_MAX));
    }
}
