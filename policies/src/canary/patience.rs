//! Whether somebody who was left without an answer would have had one of the baseline. Who waits for less says nothing about the
//! candidate; who has waited for longer was failed by it.
//!
//! Whoever brings a deadline is told by it from others, who may ask for something else: those who are in haste ask for what is soon
//! done. So what counts is how the baseline does with requests of about that deadline. Where it answers nine in ten of them, a miss
//! counts against what may fail. Against the baseline it is heard where that has answered some, however many it misses: users who
//! always miss are on one side by chance, and who were heard only where the baseline has few of them would nearly all be the
//! candidate's.
//!
//! Who closes the connection has said nothing before. What counts is the time that nine in ten answers stay below: of the tenth
//! there are those that take long with any version, and few of them must not make everybody else's waiting short.
//!
//! Both can be brought about by whoever sends much of the one to the one side and of the other to the other, and neither knows what
//! a request asks for. So what nobody was answered in is short, which rolls nothing back by a key, see `gate/leavers.rs`.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use super::times::{ANSWERS_MIN, QUARTERS, Times, quarter_of_octave};

/// One in so many answers takes long with any version.
const SLOW_ONE_IN: u32 = 10;

/// So many requests of a deadline halve what is known of it: what was so long ago counts less.
const REQUESTS_MAX: u32 = 1_000;

/// For how long somebody has waited who has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Patience {
    /// The baseline is not known to answer anybody by then.
    Short,
    /// It answers some, perhaps few.
    Middling,
    /// It would have answered, as a rule.
    Long,
}

/// How long the baseline's answers take. Without a lock: it hears of nearly every request.
#[derive(Debug)]
pub(crate) struct AnswerTimes {
    times: Times,
    /// By the deadline that callers have brought.
    brought: [Kept; QUARTERS],
    /// Two of the sticky keys whom they were for, see `gate/few.rs`; 0 is none.
    keys: [AtomicU64; 2],
}

/// Requests of about the same deadline.
#[derive(Debug)]
struct Kept {
    answered: AtomicU32,
    /// In time they were not, or their callers have left before.
    missed: AtomicU32,
}

impl Default for AnswerTimes {
    fn default() -> Self {
        let none = || Kept { answered: AtomicU32::new(0), missed: AtomicU32::new(0) };
        Self { times: Times::default(), brought: std::array::from_fn(|_| none()), keys: Default::default() }
    }
}

impl AnswerTimes {
    /// Of somebody who has left after so long.
    pub(crate) fn of_leaving(&self, waited: Duration) -> Patience {
        let is_long = self.times.all_but_one_in(SLOW_ONE_IN).is_some_and(|usual| waited > usual);
        if is_long { Patience::Long } else { Patience::Short }
    }

    /// Of somebody who has brought this deadline, which has passed.
    pub(crate) fn of_deadline(&self, brought: Duration) -> Patience {
        let (answered, missed) = self.brought[quarter_of_octave(brought)].counts();
        match answered {
            _ if answered < ANSWERS_MIN => Patience::Short,
            _ if missed <= (answered + missed) / SLOW_ONE_IN => Patience::Long,
            _ => Patience::Middling,
        }
    }

    /// There was an answer to a request that has brought this deadline, or none.
    pub(crate) fn hear(&self, took: Duration, brought: Option<Duration>) {
        self.times.hear(took);
        if let Some(brought) = brought {
            let kept = &self.brought[quarter_of_octave(brought)];
            kept.count(&kept.answered);
        }
    }

    /// There was an answer for this key. Two that come at once may be taken for one, until they come again.
    pub(crate) fn hear_key(&self, key: u64) {
        let [first, second] = &self.keys;
        let known = first.load(Ordering::Relaxed);
        let slot = if known == 0 { first } else { second };
        if known != key && slot.load(Ordering::Relaxed) == 0 {
            slot.store(key, Ordering::Relaxed);
        }
    }

    /// For how many keys there was an answer; two are enough.
    pub(crate) fn keys(&self) -> usize {
        self.keys.iter().filter(|key| key.load(Ordering::Relaxed) != 0).count()
    }

    pub(crate) fn forget_keys(&self) {
        self.keys.iter().for_each(|key| key.store(0, Ordering::Relaxed));
    }

    /// There was none to a request that has brought this deadline.
    pub(crate) fn miss(&self, brought: Duration) {
        let kept = &self.brought[quarter_of_octave(brought)];
        kept.count(&kept.missed);
    }

    /// Others answer now.
    pub(crate) fn forget(&self) {
        self.forget_keys();
        self.times.forget();
        self.brought.iter().for_each(Kept::forget);
    }
}

impl Kept {
    fn counts(&self) -> (u32, u32) {
        (self.answered.load(Ordering::Relaxed), self.missed.load(Ordering::Relaxed))
    }

    /// What others count meanwhile may be lost, which is as good as if it had come before.
    fn count(&self, one_more: &AtomicU32) {
        if one_more.fetch_add(1, Ordering::Relaxed) + 1 == REQUESTS_MAX {
            let (answered, missed) = self.counts();
            self.answered.store(answered / 2, Ordering::Relaxed);
            self.missed.store(missed.div_ceil(2), Ordering::Relaxed);
        }
    }

    fn forget(&self) {
        self.answered.store(0, Ordering::Relaxed);
        self.missed.store(0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_for_longer_than_nine_in_ten_answers_take_was_patient() {
        let (times, ms) = (AnswerTimes::default(), Duration::from_millis);
        (0..9).for_each(|_| times.hear(ms(5), None));
        assert_eq!(times.of_leaving(ms(10_000)), Patience::Short, "too little is known");
        (0..91).for_each(|_| times.hear(ms(5), None));
        // Those that take long with any version hide nothing.
        (0..10).for_each(|_| times.hear(ms(900), None));
        assert_eq!(
            [4, 6, 200].map(|waited| times.of_leaving(ms(waited))),
            [Patience::Short, Patience::Long, Patience::Long]
        );
        (0..10_000).for_each(|_| times.hear(ms(40), None));
        assert_eq!([30, 43].map(|waited| times.of_leaving(ms(waited))), [Patience::Short, Patience::Long]);
        times.forget();
        assert_eq!(times.of_leaving(ms(500)), Patience::Short);
    }

    #[test]
    fn a_caller_of_a_deadline_is_patient_where_the_baseline_answers_nine_in_ten_of_that_deadline() {
        let (times, ms) = (AnswerTimes::default(), Duration::from_millis);
        // What others ask for takes longer.
        (0..500).for_each(|_| times.hear(ms(300), None));
        (0..9).for_each(|_| times.hear(ms(5), Some(ms(100))));
        assert_eq!(times.of_deadline(ms(100)), Patience::Short, "too little is known");
        times.hear(ms(5), Some(ms(100)));
        assert_eq!(times.of_deadline(ms(100)), Patience::Long);
        assert_eq!(times.of_deadline(ms(101)), Patience::Long, "about as much");
        assert_eq!(times.of_deadline(ms(50)), Patience::Short, "nobody knows");
        (0..2).for_each(|_| times.miss(ms(100)));
        assert_eq!(times.of_deadline(ms(100)), Patience::Middling);
        for at in 0..100_000 {
            if at % 20 == 0 { times.miss(ms(100)) } else { times.hear(ms(5), Some(ms(100))) }
        }
        assert_eq!(times.of_deadline(ms(100)), Patience::Long, "what was so long ago counts less");
        (0..120).for_each(|_| times.miss(ms(100)));
        assert_eq!(times.of_deadline(ms(100)), Patience::Middling);
        (0..10_000).for_each(|_| times.miss(ms(100)));
        assert_eq!(times.of_deadline(ms(100)), Patience::Short, "nobody was answered for long");
        times.forget();
        assert_eq!(times.brought[quarter_of_octave(ms(100))].counts(), (0, 0));
    }
}
