//! What a version does not take that another might have: whether the candidate refuses more than the baseline's refusals explain.
//!
//! Each may be its caller's mistake, so it is no failure of the candidate's. Against the baseline a key counts once (see `gate.rs`), and
//! so a few of them never show that the candidate takes less. They need not show it: as long as more is refused than the share
//! explains and the policy would let fail, the candidate gets no more.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::KEYS_MAX;

/// So many standard deviations are chance.
const DEVIATIONS: f64 = 2.0;

/// Those of this step. Both sides are counted alike: each request without a key, and a key once in each window.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Refusals {
    of_candidate: u64,
    /// So many the candidate would have if it refused what the baseline does.
    by_share: f64,
    /// By how much that may be otherwise by chance, squared.
    #[serde(default)]
    variance: f64,
    /// Which side has refused which keys in this window.
    #[serde(skip)]
    keys: BTreeSet<(bool, u64)>,
}

impl Refusals {
    pub(super) fn hear(&mut self, key: Option<u64>, is_candidate: bool, share: f64) {
        if key.is_some_and(|key| self.keys.len() >= KEYS_MAX || !self.keys.insert((is_candidate, key))) {
            return;
        }
        if is_candidate {
            self.of_candidate += 1;
        } else if share < 1.0 {
            self.by_share += share / (1.0 - share);
            self.variance += (share / (1.0 - share)).powi(2);
        }
    }

    pub(super) fn close_window(&mut self) {
        self.keys.clear();
    }

    /// How many there are, and how many there would be, if that is more than so many above it, and more than chance makes of it.
    pub(super) fn are_more(&self, above: f64) -> Option<(u64, f64)> {
        let refused = self.of_candidate as f64;
        let by_chance = DEVIATIONS * (refused + self.variance).sqrt();
        (refused > self.by_share + above + by_chance).then_some((self.of_candidate, self.by_share))
    }
}
