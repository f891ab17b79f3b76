//! Those with a sticky key who left, or brought too short a deadline, before the baseline is known to answer: whether more of them are
//! the candidate's than its share explains.
//!
//! Whoever knows its version can bring that about, so it rolls nothing back. But a timeout of clients that the baseline always
//! meets, and the candidate never does, looks the same. So a person has to say which it is, and until then the candidate gets no
//! more; or until nobody leaves it any more: what was heard is forgotten, where nothing comes after it, within twice as long as a
//! question is asked. So that there is always one that has been asked for a while, there are two. Who lets the rollout go on by one step has
//! said it of all who left before.
//!
//! What counts are users, see `sides.rs`: at half of the traffic four hold a rollout where none of the baseline's leaves, as with eight
//! hasty users a candidate does that answers none of them. That they do so again and again says no more: who is always in haste, and
//! whom neither version answers, is on one side for good. So fewer are too few, however long it takes.

use std::collections::BTreeSet;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::burst::Burst;
use super::sides::Sides;
use super::{ASKED_EVERY, KEYS_MAX};
use crate::canary::Grounds;

#[derive(Clone, Debug)]
pub(super) struct Leavers {
    /// The first has heard all that the second has, and more before.
    questions: [Question; 2],
    /// When the newer one, which is the second, was asked.
    asked: Instant,
    /// Who leaves soon after another may have left for the same reason.
    burst: Burst,
}

/// Who has left since it was asked.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Question {
    sides: Sides,
    keys: BTreeSet<u64>,
}

impl Question {
    fn is_news(&self, key: u64) -> bool {
        self.keys.len() < KEYS_MAX && !self.keys.contains(&key)
    }
}

/// What is kept of it over a restart.
pub(super) type Kept = [Question; 2];

impl Leavers {
    pub(super) fn new(now: Instant) -> Self {
        Self { questions: Kept::default(), asked: now, burst: Burst::default() }
    }

    /// Somebody has left one side or the other.
    pub(super) fn hear(&mut self, key: u64, is_candidate: bool, share: f64, now: Instant) {
        self.look(now);
        // Who says nothing new begins no burst that would hide others.
        if self.questions.iter().any(|question| question.is_news(key)) {
            self.burst.hear(Some(key), is_candidate, share, now);
        }
    }

    /// Hears of a burst that is over, and forgets what was long ago.
    pub(super) fn look(&mut self, now: Instant) {
        if let Some(burst) = self.burst.take_if_over(now) {
            for question in &mut self.questions {
                let (news, key) = burst.says(|key| question.is_news(key));
                if let Some(key) = key {
                    question.keys.insert(key);
                    question.sides.hear(news.of_candidate > 0, news.by_share);
                }
            }
        }
        let since = now.saturating_duration_since(self.asked);
        if since >= ASKED_EVERY {
            let newer = std::mem::take(&mut self.questions[1]);
            self.questions[0] = if since < 2 * ASKED_EVERY { newer } else { Question::default() };
            self.asked = now;
        }
    }

    /// What that is made of, if more of them are the candidate's.
    pub(super) fn are_unlike(&self) -> Option<Grounds> {
        let [older, _] = &self.questions;
        older.sides.are_more().then(|| older.sides.grounds())
    }

    pub(super) fn kept(&self) -> Kept {
        self.questions.clone()
    }

    pub(super) fn restore(&mut self, kept: &Kept) {
        self.questions = kept.clone();
    }
}
