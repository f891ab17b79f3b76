//! What goes unanswered together: one stalled run makes many requests late, one full queue turns many away, and neither says more than
//! once what it says. So all of a burst is one witness, heard when the burst is over, with the part of it that is the candidate's: which
//! came first says how soon a side fails, and not how often. Of the keys in it, each of which is heard once, one stands for all, so that
//! the others are there for the bursts to come; which one is as good as drawn, and knows nothing of sides.
//!
//! What one side fails at within less than [`BURST`] of the other is in the same burst. Requests that come in batches further apart
//! than that, and of which one side fails so much later, are two bursts: that sides differ so much in when they fail at the same thing
//! cannot be told from that they fail at different things, and a candidate that fails is to be gone within a second.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::KEYS_MAX;
use crate::canary::Grounds;

/// A burst lasts for so long from its first request on. Three or four of them are enough to be sure of a candidate that fails always.
const BURST: Duration = Duration::from_millis(100);

/// One that goes on, if any does.
#[derive(Clone, Debug, Default)]
pub(super) struct Burst {
    began: Option<Instant>,
    /// Requests that have no key.
    others: Grounds,
    /// On which side each key was, and the candidate's share then.
    keys: BTreeMap<u64, (bool, f64)>,
}

impl Burst {
    /// One request of it, which is the first one of another if none goes on.
    pub(super) fn hear(&mut self, key: Option<u64>, is_candidate: bool, share: f64, now: Instant) {
        self.began.get_or_insert(now);
        match key {
            None => self.others.hear(is_candidate, share),
            Some(key) if self.keys.len() < KEYS_MAX => {
                self.keys.entry(key).or_insert((is_candidate, share));
            }
            Some(_) => {}
        }
    }

    /// That which is over, if so.
    pub(super) fn take_if_over(&mut self, now: Instant) -> Option<Self> {
        let is_over = |began| now.saturating_duration_since(began) >= BURST;
        self.began.is_some_and(is_over).then(|| std::mem::take(self))
    }

    /// What it says to somebody to whom these keys are news, and which of them stands for the others.
    pub(super) fn says(&self, is_news: impl Fn(u64) -> bool) -> (Grounds, Option<u64>) {
        let mut grounds = self.others;
        let news = self.keys.iter().filter(|(key, _)| is_news(**key));
        let drawn = news.min_by_key(|(key, _)| scattered(**key));
        if let Some((_, (is_candidate, share))) = drawn {
            grounds.hear(*is_candidate, *share);
        }
        (grounds, drawn.map(|(key, _)| *key))
    }
}

/// A number that goes by all bits of the key, and not by where it stands on a ring (the finalizer of MurmurHash3).
fn scattered(key: u64) -> u64 {
    let mixed = (key ^ (key >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let mixed = (mixed ^ (mixed >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    mixed ^ (mixed >> 33)
}
