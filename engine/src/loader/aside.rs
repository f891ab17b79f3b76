//! What is set aside: attempts that get nowhere, while others are loaded in place of waiting for them. One that ends after all is
//! taken in like any other; one that does not is given up, and remembered for as long as its thread runs, which nothing can stop.

use super::{Shelf, hangs};
use crate::attempt::Running;
use crate::catalog::State;
use crate::library::Stamp;
use crate::orders::Answer;
use std::sync::Arc;
use std::time::Instant;

/// Attempts that others do not wait for. When there are as many, the next one that gets nowhere is given up.
pub(super) const ASIDE_MAX: usize = 4;

/// When there are as many, nothing is tried any more: each takes a core.
const HANGING_MAX: usize = 16;

/// An attempt that has begun.
pub(super) struct Aside {
    pub(super) name: String,
    pub(super) number: u64,
    pub(super) stamp: Stamp,
    /// Of its `model.pt`.
    pub(super) bytes: u64,
    pub(super) attempt: Running,
    pub(super) since: Instant,
    /// Orders that it is a part of.
    pub(super) answers: Vec<Arc<Answer>>,
    /// Whatever comes of it, nobody wants it.
    pub(super) is_given_up: bool,
}

impl Aside {
    fn is_of(&self, name: &str, number: u64) -> bool {
        self.name == name && self.number == number
    }
}

impl Shelf {
    /// Others are loaded in place of waiting for it.
    pub(super) fn set_aside(&mut self, aside: Aside) {
        let seconds = self.setup.load_patience.as_secs();
        let why = format!("no run of its trial has ended for {seconds} s; others are loaded meanwhile");
        tracing::warn!(model = aside.name, version = aside.number, "{why}");
        if !matches!(self.catalog.state(&aside.name, aside.number), Some(State::Ready(_))) {
            self.catalog.set(&aside.name, aside.number, State::Loading { why });
            self.announce();
        }
        self.aside.push(aside);
    }

    /// Takes in what has ended of what was set aside, and gives up what gets nowhere.
    pub(super) fn look_aside(&mut self) {
        let (now, most) = (Instant::now(), self.setup.load_max);
        let mut at = 0;
        while let Some(aside) = self.aside.get_mut(at) {
            if let Some(tried) = aside.attempt.ended() {
                let aside = self.aside.swap_remove(at);
                if !aside.is_given_up {
                    let number = aside.number;
                    let (answers, result) = self.end(aside, tried);
                    self.tell(answers, number, result);
                }
                continue;
            }
            if !aside.is_given_up && aside.attempt.stands_still(now) >= most {
                // Whoever has ordered it is told.
                let _ = self.give_up(at, &hangs(most));
            }
            at += 1;
        }
    }

    /// Nobody waits for it any more. Nothing can stop its thread: it is remembered until it ends.
    pub(super) fn give_up(&mut self, at: usize, why: &str) -> Result<(), String> {
        let aside = &mut self.aside[at];
        aside.is_given_up = true;
        let answers = std::mem::take(&mut aside.answers);
        let (name, number, stamp) = (aside.name.clone(), aside.number, aside.stamp.clone());
        self.setup.interrupted.lock().end(&name, number);
        let result = self.settle(name, number, stamp, Err(why.to_owned()));
        self.tell(answers, number, result.clone());
        result
    }

    /// Gives up what was set aside of a version, if anything was.
    pub(super) fn take_aside(&mut self, name: &str, number: u64, why: &str) {
        let is_meant = |aside: &Aside| aside.is_of(name, number) && !aside.is_given_up;
        if let Some(at) = self.aside.iter().position(is_meant) {
            let _ = self.give_up(at, why);
        }
    }

    pub(super) fn aside_of(&mut self, name: &str, number: u64) -> Option<&mut Aside> {
        self.aside.iter_mut().find(|aside| aside.is_of(name, number) && !aside.is_given_up)
    }

    /// A trial that was given up and still runs holds memory: another one of the same files would do the same.
    pub(super) fn does_not_hang(&self, name: &str, number: u64, stamp: &Stamp) -> Result<(), String> {
        if self.aside.iter().any(|aside| aside.is_of(name, number) && aside.stamp == *stamp) {
            return Err("its last trial has not ended, and still runs; other files are tried".into());
        }
        if self.aside.len() >= HANGING_MAX {
            return Err(format!("{HANGING_MAX} other trials have not ended, and still run"));
        }
        Ok(())
    }
}
