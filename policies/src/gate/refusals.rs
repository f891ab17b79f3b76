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
//! A key has its say when a window is over: with what is refused it as a part of what it has asked, which weighs as much as that,
//! and at most as so many requests. So neither do those who ask much hide the others, nor is what they are refused more or less, on
//! either side, than what others are. How much the baseline takes of each, `canary/taken.rs` knows.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use super::sides::Sides;
use super::{Heard, KEYS_MAX};
use crate::canary::Taken;

/// What a key has asked in a window weighs as so many requests at most.
const OF_KEY_MAX: u32 = 32;

/// What the candidate refuses each key beyond what the baseline does is no chance where it is so many standard deviations. More than
/// elsewhere: it is asked beside whether there are more keys, and both together are to be chance once in twenty times.
const DEVIATIONS_OF_EACH: f64 = 2.2;

/// Those of this step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Refusals {
    /// Requests of the candidate that it has refused, and others, by weight.
    refused: f64,
    others: f64,
    /// So many it would have refused if it refused what the baseline does.
    explained: f64,
    without_key: Sides,
    keys: Sides,
    /// What either side has refused each key, by weight.
    of_candidate: BTreeMap<u64, f64>,
    of_baseline: BTreeMap<u64, f64>,
    /// What has no weight yet: its window is not over.
    #[serde(skip)]
    in_window: HashMap<(bool, u64), InWindow>,
}

/// What one side has refused a key.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct InWindow {
    refused: u32,
    /// Of the baseline: how many the candidate would have refused.
    explained: f64,
}

/// What is too much.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct TooMany {
    pub(super) refused: f64,
    pub(super) explained: f64,
    /// Requests of the candidate.
    pub(super) requests: f64,
}

impl Refusals {
    /// Whether these are numbers that counting comes to, see [`super::Kept::is_evidence`].
    pub(super) fn is_evidence(&self) -> bool {
        let weights = self.of_candidate.values().chain(self.of_baseline.values());
        let mut all = weights.chain([&self.refused, &self.others, &self.explained]);
        all.all(|number| (0.0..1e15).contains(number))
            && self.keys.is_evidence()
            && self.without_key.is_evidence()
    }

    /// Once there is no more room, what this window has shown is to be counted at once.
    pub(super) fn hear(&mut self, key: Option<u64>, is_candidate: bool, share: f64) {
        if share == 0.0 {
            return; // A candidate that is not ready has nobody.
        }
        let explained = if is_candidate || share >= 1.0 { 0.0 } else { share / (1.0 - share) };
        let Some(key) = key else {
            self.without_key.hear(is_candidate, share);
            self.refused += f64::from(u8::from(is_candidate));
            self.explained += explained;
            return;
        };
        if self.is_full() {
            return;
        }
        let keys = if is_candidate { &mut self.of_candidate } else { &mut self.of_baseline };
        if let Entry::Vacant(new) = keys.entry(key) {
            new.insert(0.0);
            self.keys.hear(is_candidate, share);
        }
        let in_window = self.in_window.entry((is_candidate, key)).or_default();
        in_window.refused = in_window.refused.saturating_add(1);
        in_window.explained += explained;
    }

    /// The candidate was asked something without a key that it has not refused.
    pub(super) fn hear_other_without_key(&mut self) {
        self.others += 1.0;
    }

    /// Gives what keys were refused in this window its weight. They have had so much else of the candidate, and of the baseline.
    pub(super) fn count_window(&mut self, heard: &HashMap<u64, Heard>, taken: &Taken) {
        let mut in_window = std::mem::take(&mut self.in_window);
        if in_window.is_empty() && self.is_full() {
            return;
        }
        for (key, Heard { all: others, .. }) in heard {
            let InWindow { refused, .. } = in_window.remove(&(true, *key)).unwrap_or_default();
            self.count_of_candidate(*key, refused, *others);
        }
        for ((is_candidate, key), InWindow { refused, explained }) in in_window {
            if is_candidate {
                self.count_of_candidate(key, refused, 0);
                continue;
            }
            let weight = weight(refused, taken.of(key));
            self.explained += explained * weight;
            *self.of_baseline.entry(key).or_default() += f64::from(refused) * weight;
        }
    }

    fn count_of_candidate(&mut self, key: u64, refused: u32, others: u32) {
        let weight = weight(refused, others);
        self.others += f64::from(others) * weight;
        if refused > 0 {
            let refused = f64::from(refused) * weight;
            self.refused += refused;
            *self.of_candidate.entry(key).or_default() += refused;
        }
    }

    /// What so many keys have shown stays for this step: if one side of what is counted went on without the other, it would say less and
    /// less, or more and more.
    pub(super) fn is_full(&self) -> bool {
        self.of_candidate.len() + self.of_baseline.len() >= KEYS_MAX
    }

    /// Whether there are more than such a part of its requests above what is explained, and more than chance makes of it.
    pub(super) fn are_too_many(&self, at_most: f64) -> Option<TooMany> {
        let Self { refused, explained, .. } = *self;
        let requests = refused + self.others;
        let is_much = refused > explained + at_most * requests;
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

/// Of each of so many requests of a key in a window.
fn weight(refused: u32, others: u32) -> f64 {
    let all = f64::from(refused) + f64::from(others);
    f64::from(OF_KEY_MAX).min(all) / all
}

/// How large numbers are, and how far apart.
#[derive(Clone, Copy, Debug, Default)]
struct Spread {
    count: f64,
    sum: f64,
    squares: f64,
}

impl Spread {
    fn of(keys: &BTreeMap<u64, f64>) -> Self {
        keys.values()
            .fold(Self::default(), |all, one| all.with(Self { count: 1.0, sum: *one, squares: one * one }))
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

    /// Refusals, and what is heard beside them.
    #[derive(Default)]
    struct Counted {
        refusals: Refusals,
        heard: HashMap<u64, Heard>,
        taken: Taken,
    }

    impl Counted {
        /// So many requests of a key, of which so many are refused.
        fn ask(&mut self, key: u64, is_candidate: bool, (refused, all): (u32, u32), share: f64) {
            for _ in 0..refused {
                self.refusals.hear(Some(key), is_candidate, share);
                if self.refusals.is_full() {
                    self.refusals.count_window(&self.heard, &self.taken);
                }
            }
            let others = all - refused;
            if is_candidate && others > 0 {
                self.heard.entry(key).or_default().all += others;
            }
            if !is_candidate {
                (0..others).for_each(|_| self.taken.hear(key));
            }
        }

        fn close_window(&mut self) {
            self.refusals.count_window(&self.heard, &self.taken);
            self.heard.clear();
            self.taken.forget();
        }
    }

    /// So many requests of each in each of ten windows.
    fn refused(dice: &mut Dice, users: &[User], (share, requests): (f64, u32)) -> Refusals {
        let mut counted = Counted::default();
        for _ in 0..10 {
            for (key, (is_candidate, chance)) in (0..).zip(users) {
                let refused = (0..requests).filter(|_| dice.falls(*chance)).count() as u32;
                counted.ask(key, *is_candidate, (refused, requests), share);
            }
            counted.close_window();
        }
        counted.refusals
    }

    /// Of so many rollouts with 40 users, half of them the candidate's, of whom the versions refuse with these chances: those held.
    fn held(rollouts: u64, requests: u32, (of_baseline, of_candidate): (f64, f64)) -> usize {
        let users: Vec<User> =
            (0..40).map(|at| if at % 2 == 0 { (true, of_candidate) } else { (false, of_baseline) }).collect();
        let is_held =
            |seed: &u64| refused(&mut Dice(*seed), &users, (0.5, requests)).are_too_many(AT_MOST).is_some();
        (0..rollouts).filter(is_held).count()
    }

    #[test]
    fn what_may_fail_holds_nobody_and_twice_as_much_does_however_often_users_ask() {
        for requests in [1, 10, 100, 1_000] {
            let rollouts = if requests == 1_000 { 10 } else { 100 };
            for (chances, least, most) in [
                // One in eighty, where one in twenty may fail.
                ((0.0, 0.012), 0, 0),
                ((0.005, 0.012), 0, 0),
                // Alike.
                ((0.012, 0.012), 0, rollouts / 20),
                ((0.1, 0.1), 0, rollouts / 20),
                ((0.6, 0.6), 0, rollouts / 20),
                // Twice as much as may fail, or as much above what the baseline refuses.
                ((0.0, 0.1), rollouts * 9 / 10, rollouts),
                ((0.02, 0.12), rollouts * 3 / 4, rollouts),
                ((0.1, 0.6), rollouts, rollouts),
            ] {
                let held = held(rollouts, requests, chances) as u64;
                let is_right = (least..=most).contains(&held);
                assert!(is_right, "{held} of {rollouts} with {requests} requests of each user: {chances:?}");
            }
        }
    }

    #[test]
    fn who_asks_without_end_hides_nobody_and_holds_nothing_alone() {
        let held = |of_one: Option<(bool, u32)>, of_others: u32| {
            let mut counted = Counted::default();
            for _ in 0..10 {
                for key in 0..80 {
                    let is_candidate = key % 2 == 0;
                    counted.ask(key, is_candidate, (if is_candidate { of_others } else { 0 }, 100), 0.5);
                }
                if let Some((is_candidate, refused)) = of_one {
                    counted.ask(80, is_candidate, (refused, 10_000), 0.5);
                }
                counted.close_window();
            }
            counted.refusals.are_too_many(AT_MOST).is_some()
        };
        for is_candidate in [false, true] {
            for refused in [0, 1_000, 10_000] {
                let of_one = Some((is_candidate, refused));
                assert_eq!([0, 2, 40].map(|others| held(of_one, others)), [false, false, true], "{of_one:?}");
            }
        }
    }

    #[test]
    fn what_as_many_keys_have_shown_as_are_remembered_is_not_forgotten_for_those_that_come_then() {
        // In one window, and in many.
        for in_window in [2 * KEYS_MAX as u64, 7] {
            let mut counted = Counted::default();
            for key in 0..=KEYS_MAX as u64 {
                let is_candidate = key.is_multiple_of(2);
                counted.ask(key, is_candidate, (if is_candidate { 20 } else { 2 }, 30), 0.5);
                if key % in_window == 0 {
                    counted.close_window();
                }
            }
            let shown = counted.refusals.are_too_many(0.05);
            assert!(shown.is_some());
            for key in 0..1_000 {
                counted.ask(key, true, (0, 1_000), 0.5);
                counted.close_window();
            }
            assert_eq!(counted.refusals.are_too_many(0.05), shown);
        }
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
                let held = refusals.are_too_many(AT_MOST).is_some();
                assert_eq!(restored.are_too_many(AT_MOST).is_some(), held);
                held
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
            (0..others).for_each(|_| refusals.hear_other_without_key());
            refusals.are_too_many(AT_MOST)
        };
        assert_eq!(heard(60, 10, 40), Some(TooMany { refused: 60.0, explained: 10.0, requests: 100.0 }));
        assert_eq!(heard(60, 55, 40), None, "chance");
        assert_eq!(heard(60, 10, 940), None, "so much may fail");
    }

    #[test]
    fn no_more_keys_are_remembered_than_there_is_room_for() {
        let mut refusals = Refusals::default();
        (0..2 * KEYS_MAX as u64).for_each(|key| refusals.hear(Some(key), key % 2 == 0, 0.5));
        assert_eq!(refusals.of_candidate.len() + refusals.of_baseline.len(), KEYS_MAX);
        assert_eq!(refusals.in_window.len(), KEYS_MAX);
        refusals.count_window(&HashMap::new(), &Taken::default());
        assert_eq!((refusals.refused, refusals.in_window.len()), (KEYS_MAX as f64 / 2.0, 0));
    }
}
