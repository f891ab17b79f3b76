//! Whether an event happens to the candidate more often than its share explains, or than may be. The question is asked anew again and
//! again, and the stakes of all askings add up to 1: their sum may be looked at like a single test. Decides who is a witness to which
//! asking, and never when the next one begins.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::KEYS_MAX;
use super::burst::Burst;
use crate::canary::Grounds;
use crate::evidence::Worse;

/// Askings that go on; the least promising of more ends with what it has come to.
const ASKINGS_MAX: usize = 6;

/// Whether the candidate is worse, asked again and again.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Worsening {
    askings: Vec<Asking>,
    /// So far.
    asked: u32,
    /// What those that have ended have made of their stakes.
    ended: f64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Asking {
    stake: f64,
    witnesses: u32,
    /// To be told. Of processes before this was kept, nothing is.
    #[serde(default)]
    heard: Grounds,
    worse: Worse,
    /// To which the event has happened.
    keys: BTreeSet<u64>,
}

impl Asking {
    fn value(&self) -> f64 {
        self.stake * self.worse.value()
    }
}

impl Worsening {
    /// Whether its value is a number, and not below 0.
    pub(super) fn is_evidence(&self) -> bool {
        let is_one =
            |asking: &Asking| asking.stake > 0.0 && asking.stake <= 1.0 && asking.worse.is_evidence();
        self.ended.is_finite() && self.ended >= 0.0 && self.askings.iter().all(is_one)
    }

    pub(super) fn ask_anew(&mut self) {
        if self.askings.len() == ASKINGS_MAX {
            let least = (0..ASKINGS_MAX)
                .min_by(|one, other| self.askings[*one].value().total_cmp(&self.askings[*other].value()))
                .expect("there are some");
            self.ended += self.askings.remove(least).value();
        }
        let stake = staked(self.asked + 1) - staked(self.asked);
        self.asked += 1;
        self.askings.push(Asking { stake, ..Asking::default() });
    }

    /// Whether an asking has not heard of this key yet.
    pub(super) fn is_news(&self, key: u64) -> bool {
        self.askings.iter().any(|asking| asking.keys.len() < KEYS_MAX && !asking.keys.contains(&key))
    }

    pub(super) fn is_stale(&self, witnesses_max: u32) -> bool {
        self.askings.last().is_none_or(|newest| newest.witnesses >= witnesses_max)
    }

    /// Has every asking observe a witness: whether the event has happened, whether that speaks against the candidate, and how
    /// likely it would if the candidate were no worse. A key to which the event has happened says nothing more to the same
    /// asking.
    pub(super) fn hear(
        &mut self,
        key: Option<u64>,
        (happened, speaks_against, by_share): (bool, bool, f64),
        observe: impl Fn(&mut Worse),
    ) {
        for asking in &mut self.askings {
            let is_new = match key {
                None => true,
                Some(key) if happened => asking.keys.len() < KEYS_MAX && asking.keys.insert(key),
                Some(key) => !asking.keys.contains(&key),
            };
            if is_new {
                observe(&mut asking.worse);
                asking.witnesses += 1;
                asking.heard.hear(speaks_against, by_share);
            }
        }
    }

    /// Has every asking observe what went unanswered together, as one witness.
    pub(super) fn hear_burst(&mut self, burst: &Burst) {
        for asking in &mut self.askings {
            let keys = &mut asking.keys;
            let (news, key) = burst.says(|key| keys.len() < KEYS_MAX && !keys.contains(&key));
            keys.extend(key);
            if news.all > 0 {
                let all = f64::from(news.all);
                let (part, share) = (f64::from(news.of_candidate) / all, news.by_share / all);
                asking.worse.observe_part(part, share);
                asking.witnesses += 1;
                asking.heard.hear_part(part, share);
            }
        }
    }

    /// Of the asking that has come to most.
    pub(super) fn grounds(&self) -> Grounds {
        let most = self.askings.iter().max_by(|one, other| one.value().total_cmp(&other.value()));
        most.map_or_else(Grounds::default, |asking| asking.heard)
    }

    /// What is not staked yet is still there.
    pub(super) fn value(&self) -> f64 {
        self.ended + self.askings.iter().map(Asking::value).sum::<f64>() + 1.0 - staked(self.asked)
    }
}

/// What the first askings stake together: the first three quarters, all others the rest.
fn staked(askings: u32) -> f64 {
    if askings == 0 { 0.0 } else { 1.0 - 0.25 / f64::from(askings) }
}
