//! Those with a sticky key who left, or brought too short a deadline, before the baseline is known to answer: whether more of them are
//! the candidate's than its share explains.
//!
//! Whoever knows its version can bring that about, so it rolls nothing back. But a timeout of clients that the baseline always
//! meets, and the candidate never does, looks the same. So a person has to say which it is, and until then the candidate gets no
//! more; or until nobody leaves it any more: what was heard is forgotten, where nothing comes after it, within twice as long as a
//! question is asked. So that there is always one that has been asked for a while, there are two.

use std::time::Instant;

use super::{ALPHA, ASKED_EVERY, WITNESSES, Worsening, goes_on};
use crate::canary::Grounds;

#[derive(Clone, Debug)]
pub(super) struct Leavers {
    questions: [Worsening; 2],
    /// When the newer one, which is the second, was asked.
    asked: Instant,
    /// When the last burst of them began.
    burst: Option<Instant>,
}

/// What is kept of it over a restart.
pub(super) type Kept = [Worsening; 2];

impl Leavers {
    pub(super) fn new(now: Instant) -> Self {
        Self { questions: [(); 2].map(|()| asked()), asked: now, burst: None }
    }

    /// Somebody has left one side or the other.
    pub(super) fn hear(&mut self, key: u64, is_candidate: bool, share: f64, now: Instant) {
        self.look(now);
        for question in &mut self.questions {
            if question.is_stale(WITNESSES) {
                question.ask_anew();
            }
        }
        // Who says nothing new begins no burst that would hide others.
        if !self.questions.iter().any(|question| question.is_news(key)) || goes_on(&mut self.burst, now) {
            return;
        }
        for question in &mut self.questions {
            question.hear(Some(key), (true, is_candidate, share), |worse| worse.observe(is_candidate, share));
        }
    }

    /// Forgets what was long ago.
    pub(super) fn look(&mut self, now: Instant) {
        let since = now.saturating_duration_since(self.asked);
        if since >= ASKED_EVERY {
            let newer = std::mem::replace(&mut self.questions[1], asked());
            self.questions[0] = if since < 2 * ASKED_EVERY { newer } else { asked() };
            self.asked = now;
        }
    }

    /// What that is made of, if more of them are the candidate's. The mean of both questions' evidence is evidence.
    pub(super) fn are_unlike(&self) -> Option<Grounds> {
        let [older, newer] = &self.questions;
        let evidence = f64::midpoint(older.value(), newer.value());
        let most = if newer.value() > older.value() { newer } else { older };
        (evidence >= 1.0 / ALPHA).then(|| most.grounds())
    }

    pub(super) fn kept(&self) -> Kept {
        self.questions.clone()
    }

    pub(super) fn restore(&mut self, kept: &Kept) {
        self.questions = kept.clone();
    }
}

fn asked() -> Worsening {
    let mut question = Worsening::default();
    question.ask_anew();
    question
}
