//! How many of the candidate's requests hang: those that are under way for more than twice as long as 99 in 100 of its answers take.
//! They will be late, and what ends soon must not be heard alone.
//!
//! They are counted by when they began, in cohorts, so that at any moment it is known how many are older than that. Neither bursts
//! that are answered, nor traffic that grows, nor an hour without any look like hanging, and nothing that hangs hides behind what
//! has just begun.
//!
//! ```text
//!   the oldest  │ cohort 7 │ cohort 8 │ cohort 9 │ cohort 10, which new requests join
//!   ────────────┴──────────┴──────────┴──────────┴──▶ now        all that ended before `now - hangs_after` hang
//! ```
//!
//! A request remembers its cohort and leaves it without a lock. Cohorts have slots that are used again and again: what is then still
//! under way of the one before joins the oldest.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::Sight;
use super::times::Times;

/// So many times as long as nearly all answers take, and no less than this, is for ever.
const LONGER: u32 = 2;
const HANGS_AFTER_MIN: Duration = Duration::from_millis(250);

/// One in so many answers takes longer than nearly all.
const SLOW_ONE_IN: u32 = 100;

/// A step lasts for so many times as long: of most that began in it is known then whether they hang.
const KNOWN_AFTER: u32 = 4;

/// Cohorts that are told apart, and into how many those are divided that do not hang.
const COHORTS: usize = 128;
const COHORTS_BEFORE: u32 = 16;

/// What the candidate of a rollout is asked.
#[derive(Debug)]
pub(crate) struct Asked {
    /// Each slot has the number of its cohort and how many of it are under way, in one word.
    slots: [AtomicU64; COHORTS],
    newest: AtomicU32,
    /// Of all cohorts that have no slot any more. For a moment, fewer than none.
    oldest: AtomicI64,
    answers: Times,
}

impl Default for Asked {
    fn default() -> Self {
        Self {
            slots: [const { AtomicU64::new(0) }; COHORTS],
            newest: AtomicU32::new(0),
            oldest: AtomicI64::new(0),
            answers: Times::default(),
        }
    }
}

impl Asked {
    pub(crate) fn begin(self: &Arc<Self>) -> UnderWay {
        loop {
            let cohort = self.newest.load(Ordering::Acquire);
            if self.change(cohort, |count| count + 1) {
                return UnderWay { asked: Arc::clone(self), cohort };
            }
        }
    }

    /// Whether this cohort still has its slot; if so, so many are under way of it now.
    fn change(&self, cohort: u32, count: impl Fn(u64) -> u64) -> bool {
        let changed = |slot: u64| {
            let (number, before) = (slot >> 32, slot & u64::from(u32::MAX));
            (number == u64::from(cohort)).then(|| number << 32 | count(before))
        };
        self.slot(cohort).fetch_update(Ordering::AcqRel, Ordering::Acquire, changed).is_ok()
    }

    fn slot(&self, cohort: u32) -> &AtomicU64 {
        &self.slots[cohort as usize % COHORTS]
    }

    /// New requests join another cohort from now on. One place calls this.
    fn begin_cohort(&self) {
        let next = self.newest.load(Ordering::Relaxed).wrapping_add(1);
        let before = self.slot(next).swap(u64::from(next) << 32, Ordering::AcqRel);
        self.oldest.fetch_add((before & u64::from(u32::MAX)) as i64, Ordering::AcqRel);
        self.newest.store(next, Ordering::Release);
    }

    /// Of the cohort that was the newest so many cohorts ago.
    fn under_way_of(&self, ago: u32) -> u32 {
        let cohort = self.newest.load(Ordering::Acquire).wrapping_sub(ago);
        self.slot(cohort).load(Ordering::Acquire) as u32
    }

    fn under_way_of_oldest(&self) -> u32 {
        self.oldest.load(Ordering::Acquire).max(0) as u32
    }

    pub(crate) fn under_way(&self) -> u32 {
        (0..COHORTS as u32).map(|ago| self.under_way_of(ago)).sum::<u32>() + self.under_way_of_oldest()
    }
}

/// A request that a rollout's candidate is asked, until this is dropped. To be dropped after [`Ledger::witness`](crate::Ledger::witness).
#[derive(Debug)]
pub struct UnderWay {
    asked: Arc<Asked>,
    cohort: u32,
}

impl UnderWay {
    /// After so long this has become of it. Only where the version has said something is it known how long that takes.
    pub fn ended(&self, took: Duration, sight: Option<Sight>) {
        match sight {
            Some(Sight::Answered(_) | Sight::Failed | Sight::Refused | Sight::Unsendable) => {
                self.asked.answers.hear(took);
            }
            Some(
                Sight::Lost
                | Sight::Late(_)
                | Sight::Gone(_)
                | Sight::Tripped
                | Sight::Unanswered
                | Sight::Compared { .. }
                | Sight::NotCompared,
            )
            | None => {}
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        if !self.asked.change(self.cohort, |count| count - 1) {
            self.asked.oldest.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

/// When its cohorts were.
#[derive(Debug)]
pub(crate) struct Hanging {
    asked: Arc<Asked>,
    /// When the newest began.
    began: Instant,
    /// When those have ended that have slots, oldest first, and those that have none.
    ended: VecDeque<Instant>,
    oldest_ended: Option<Instant>,
    /// As of the last look.
    hangs_after: Duration,
}

impl Hanging {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            asked: Arc::default(),
            began: now,
            ended: VecDeque::with_capacity(COHORTS),
            oldest_ended: None,
            hangs_after: HANGS_AFTER_MIN,
        }
    }

    /// What requests that are under way are counted in.
    pub(crate) fn asked(&self) -> Arc<Asked> {
        Arc::clone(&self.asked)
    }

    /// Others answer now.
    pub(crate) fn forget(&self) {
        self.asked.answers.forget();
    }

    /// Begins another cohort, if this one has lasted long enough.
    pub(crate) fn look(&mut self, now: Instant) {
        let usual = self.asked.answers.all_but_one_in(SLOW_ONE_IN).unwrap_or_default();
        self.hangs_after = (usual * LONGER).max(HANGS_AFTER_MIN);
        if now.saturating_duration_since(self.began) < self.hangs_after / COHORTS_BEFORE {
            return;
        }
        if self.ended.len() + 1 == COHORTS {
            self.oldest_ended = self.ended.pop_front();
        }
        self.ended.push_back(now);
        self.began = now;
        self.asked.begin_cohort();
    }

    /// How many hang, as of the last look.
    pub(crate) fn count(&self, now: Instant) -> u32 {
        let hang = |ended: &Instant| now.saturating_duration_since(*ended) >= self.hangs_after;
        let cohorts = (1..).zip(self.ended.iter().rev()).filter(|(_, ended)| hang(ended));
        let oldest = self.oldest_ended.filter(hang).map_or(0, |_| self.asked.under_way_of_oldest());
        cohorts.map(|(ago, _)| self.asked.under_way_of(ago)).sum::<u32>() + oldest
    }

    /// What is under way for longer hangs, as of the last look.
    pub(crate) fn hangs_after(&self) -> Duration {
        self.hangs_after
    }

    /// How many there are, whether they hang or not.
    pub(crate) fn under_way(&self) -> u32 {
        self.asked.under_way()
    }

    /// What begins with a step is known after so long.
    pub(crate) fn known_after(&self) -> Duration {
        self.hangs_after * KNOWN_AFTER
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOK: Duration = Duration::from_millis(100);

    #[test]
    fn bursts_that_are_answered_do_not_look_like_hanging_and_what_hangs_among_them_does() {
        for hang in [0, 7] {
            let mut now = Instant::now();
            let mut hanging = Hanging::new(now);
            let asked = hanging.asked();
            let (mut burst, mut hung) = (VecDeque::new(), Vec::new());
            for look in 0..600u32 {
                // Two hundred every three seconds, which one server answers within a second and a half.
                match look % 30 {
                    0 => burst.extend((0..200).map(|_| asked.begin())),
                    at @ 1..=15 => {
                        for request in burst.drain(..burst.len().min(if at == 15 { 200 } else { 13 })) {
                            let took = at * LOOK;
                            request.ended(took, Some(Sight::Answered(took)));
                        }
                    }
                    _ => {}
                }
                if look == 100 {
                    hung.extend((0..hang).map(|_| asked.begin()));
                }
                now += LOOK;
                hanging.look(now);
                // One burst tells what requests take.
                assert!(look < 20 || hanging.count(now) <= hung.len() as u32, "{look}");
                assert!(look < 140 || hanging.count(now) == hang, "{} at look {look}", hanging.count(now));
            }
        }
    }

    #[test]
    fn what_hangs_for_longer_than_there_are_cohorts_is_counted_until_it_ends() {
        let mut now = Instant::now();
        let mut hanging = Hanging::new(now);
        let asked = hanging.asked();
        let mut hung: Vec<_> = (0..5).map(|_| asked.begin()).collect();
        let mut counted = Vec::new();
        for _ in 0..3 * COHORTS {
            let soon = asked.begin();
            now += LOOK;
            hanging.look(now);
            soon.ended(LOOK, Some(Sight::Answered(LOOK)));
            drop(soon);
            counted.push(hanging.count(now));
        }
        assert_eq!(counted[..2], [0, 0]);
        assert!(counted[5..].iter().all(|count| *count == 5), "{counted:?}");
        hung.truncate(2);
        assert_eq!((hanging.count(now), asked.under_way()), (2, 2));
        hung.clear();
        assert_eq!((hanging.count(now), asked.under_way()), (0, 0));
    }

    #[test]
    fn what_is_asked_by_many_at_once_is_counted_exactly() {
        let mut hanging = Hanging::new(Instant::now());
        let asked = hanging.asked();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let mut under_way = VecDeque::new();
                    for _ in 0..20_000 {
                        under_way.push_back(asked.begin());
                        under_way.truncate(300);
                        if under_way.len() == 300 {
                            under_way.drain(..150);
                        }
                    }
                });
            }
            let mut now = Instant::now();
            for _ in 0..10_000 {
                now += HANGS_AFTER_MIN;
                hanging.look(now);
            }
        });
        assert_eq!(asked.under_way(), 0);
    }
}
