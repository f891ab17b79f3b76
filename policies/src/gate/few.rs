//! A candidate that refuses every user of its own, where the baseline refuses none. Two or three are too few for `sides.rs`, which knows
//! of none but those who were refused: of them alone nobody can tell a version that takes less from clients that are broken. Those who
//! were not refused say more: if clients were broken, it would be chance that all of them are on one side, and nobody else is there.
//!
//! It is not much, and holds no more than a rollout that a person can let go.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::KEYS_MAX;

/// Of fewer on one side nothing is said.
const USERS_MIN: usize = 2;

/// What the users of this step were told.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Few {
    /// Whether the candidate has refused each of its users something.
    of_candidate: BTreeMap<u64, bool>,
    /// Requests of these, and those that it has refused.
    requests: u64,
    refused: u64,
    /// The baseline has refused somebody something.
    baseline_refuses: bool,
    /// So many users it had answered when the process before this one ended.
    of_baseline: usize,
}

/// What is too much.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct All {
    pub(super) users: usize,
    pub(super) refused: u64,
    pub(super) requests: u64,
}

impl Few {
    pub(super) fn refuse(&mut self, key: Option<u64>, is_candidate: bool) {
        match key {
            _ if !is_candidate => self.baseline_refuses = true,
            // Who has no key is counted one by one elsewhere.
            None => {}
            Some(key) => {
                self.requests += 1;
                self.refused += 1;
                self.user(key, true);
            }
        }
    }

    /// For another process: the baseline has answered so many users.
    pub(super) fn knowing(&self, of_baseline: usize) -> Self {
        Self { of_baseline: of_baseline.max(self.of_baseline), ..self.clone() }
    }

    /// The candidate has not refused this.
    pub(super) fn take(&mut self, key: u64) {
        self.requests += 1;
        self.user(key, false);
    }

    fn user(&mut self, key: u64, is_refused: bool) {
        let is_full = self.of_candidate.len() >= KEYS_MAX;
        match self.of_candidate.get_mut(&key) {
            Some(was_refused) => *was_refused |= is_refused,
            // So many are not few: what all of them are refused is told elsewhere.
            None if is_full => {}
            None => _ = self.of_candidate.insert(key, is_refused),
        }
    }

    /// Whether each of the candidate's is refused something, more than such a part of their requests, and none of the baseline's, which
    /// has answered so many.
    pub(super) fn are_all_refused(&self, at_most: f64, of_baseline: usize) -> Option<All> {
        let Self { requests, refused, .. } = *self;
        let (users, of_baseline) = (self.of_candidate.len(), of_baseline.max(self.of_baseline));
        let are_enough = users.min(of_baseline) >= USERS_MIN;
        let is_much = refused as f64 > at_most * requests as f64;
        let are_all = !self.baseline_refuses && self.of_candidate.values().all(|is_refused| *is_refused);
        (are_enough && is_much && are_all).then_some(All { users, refused, requests })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of the candidate's users the first so many, of so many, are refused four of five requests.
    fn of(refused: u64, all: u64) -> Few {
        let mut few = Few::default();
        for at in 0..5 * all {
            let key = at % all;
            if key < refused && at >= all { few.refuse(Some(key), true) } else { few.take(key) }
        }
        few
    }

    #[test]
    fn all_of_two_are_too_many_where_the_baseline_has_two_and_refuses_none() {
        assert_eq!(of(2, 2).are_all_refused(0.05, 2), Some(All { users: 2, refused: 8, requests: 10 }));
        assert_eq!(of(2, 3).are_all_refused(0.05, 2), None, "one of them is not refused");
        assert_eq!(of(1, 1).are_all_refused(0.05, 2), None, "one may be broken");
        assert_eq!(of(2, 2).are_all_refused(0.05, 1), None, "of the baseline's, too");
        assert!(
            of(2, 2).knowing(2).are_all_refused(0.05, 0).is_some(),
            "a process before this one has seen them"
        );
        assert_eq!(of(2, 2).are_all_refused(0.8, 2), None, "so much may fail");
        let mut few = of(2, 2);
        few.refuse(Some(9), false);
        assert_eq!(few.are_all_refused(0.05, 2), None, "the baseline refuses somebody");
    }

    #[test]
    fn no_more_users_are_remembered_than_there_is_room_for() {
        let mut few = Few::default();
        (0..2 * KEYS_MAX as u64).for_each(|key| few.refuse(Some(key), true));
        assert_eq!(few.of_candidate.len(), KEYS_MAX);
    }
}
