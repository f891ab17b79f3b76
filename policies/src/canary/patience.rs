//! How long the answers of both versions take, so that whoever leaves without one says something only where an answer would
//! have been there by then. Who waits for less than an answer takes says nothing about the version, however often; who has
//! waited for longer than nearly all answers take was failed by it.
//!
//! What counts is the time that all but one in a hundred answers stay below, by a histogram whose bars are a sixteenth
//! of their place wide. It forgets with what comes after and not with time: where requests are few, what is known stays known.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Bars of an octave.
const PARTS: usize = 1 << PARTS_LOG2;
const PARTS_LOG2: usize = 4;

/// From a microsecond to more than a day, which is the longest deadline.
const BARS: usize = 34 * PARTS;

/// A bar that comes to so much halves all: what was so long ago counts less.
const BAR_MAX: u32 = 1_000;

/// Fewer answers do not show that one is late.
const ANSWERS_MIN: u32 = 10;

/// What is that many times as long as nearly all answers take is blamed on a version where it costs it the rollout.
const FAR: u32 = 2;

/// What it says about a version that somebody has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Patience {
    /// Nothing: neither version is known to have answered by then.
    Short,
    /// One of them would have: the candidate may not get more on it.
    LongForOne,
    /// Either would have, long ago: it is evidence for whoever has not lost it.
    LongForBoth,
}

/// How long the answers of both versions usually take.
#[derive(Debug, Default)]
pub(crate) struct Usual {
    baseline: AnswerTimes,
    candidate: AnswerTimes,
}

impl Usual {
    /// There was an answer.
    pub(crate) fn hear(&self, is_candidate: bool, took: Duration) {
        if is_candidate { &self.candidate } else { &self.baseline }.hear(took);
    }

    /// Others answer now.
    pub(crate) fn forget(&self) {
        [&self.baseline, &self.candidate].into_iter().for_each(AnswerTimes::forget);
    }

    /// Of somebody who has left after so long.
    pub(crate) fn patience(&self, waited: Duration) -> Patience {
        let known = |answers_min| {
            let both = [&self.baseline, &self.candidate].into_iter();
            both.filter_map(move |times| times.of_nearly_all(answers_min))
        };
        // A version that has just begun to answer may well take so long.
        match (known(ANSWERS_MIN).min(), known(1).max()) {
            (Some(_), Some(longer)) if waited > longer * FAR => Patience::LongForBoth,
            (Some(shorter), Some(_)) if waited > shorter => Patience::LongForOne,
            _ => Patience::Short,
        }
    }
}

/// How long the answers of one version take. Without a lock: it hears of nearly every request.
#[derive(Debug)]
struct AnswerTimes([AtomicU32; BARS]);

impl Default for AnswerTimes {
    fn default() -> Self {
        Self([const { AtomicU32::new(0) }; BARS])
    }
}

impl AnswerTimes {
    fn hear(&self, took: Duration) {
        if self.0[bar(took)].fetch_add(1, Ordering::Relaxed) + 1 < BAR_MAX {
            return;
        }
        // What others count meanwhile may be lost, which is as good as if it had come before.
        self.0.iter().for_each(|bar| bar.store(bar.load(Ordering::Relaxed) / 2, Ordering::Relaxed));
    }

    fn forget(&self) {
        self.0.iter().for_each(|bar| bar.store(0, Ordering::Relaxed));
    }

    /// What all but one in a hundred stay below, if so many are known.
    fn of_nearly_all(&self, answers_min: u32) -> Option<Duration> {
        let counts: [u32; BARS] = std::array::from_fn(|at| self.0[at].load(Ordering::Relaxed));
        let all: u32 = counts.iter().sum();
        let mut above = 0;
        let reached = (0..BARS).rev().find(|at| {
            above += counts[*at];
            above > all / 100
        });
        reached.filter(|_| all >= answers_min).map(end_of)
    }
}

/// Below an octave's first number there is a bar for each microsecond.
fn bar(took: Duration) -> usize {
    let micros = took.as_micros().min(u64::MAX.into()) as u64;
    if micros < PARTS as u64 {
        return micros as usize;
    }
    let octave = micros.ilog2() as usize - PARTS_LOG2;
    ((octave + 1) * PARTS + (micros >> octave) as usize % PARTS).min(BARS - 1)
}

/// What the times in a bar stay below.
fn end_of(bar: usize) -> Duration {
    let (octave, part) = (bar / PARTS, (bar % PARTS) as u64);
    let end = if octave == 0 { part + 1 } else { (PARTS as u64 + part + 1) << (octave - 1) };
    Duration::from_micros(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_in_the_bar_that_ends_above_it_by_at_most_a_sixteenth() {
        for micros in (0..100_000).chain((17..36).flat_map(|octave| [(1 << octave) - 1, 1 << octave])) {
            let took = Duration::from_micros(micros);
            let end = end_of(bar(took));
            assert!(took < end && end <= took + took / 16 + Duration::from_micros(1), "{took:?} {end:?}");
            assert_eq!(bar(end), bar(took) + 1, "{took:?}");
        }
        assert_eq!(bar(Duration::MAX), BARS - 1);
        assert!(end_of(BARS - 1) > Duration::from_secs(24 * 60 * 60));
    }

    #[test]
    fn nearly_all_is_all_but_one_in_a_hundred_and_nothing_while_nothing_is_known() {
        let (times, ms) = (AnswerTimes::default(), Duration::from_millis);
        (0..9).for_each(|_| times.hear(ms(5)));
        assert_eq!(times.of_nearly_all(10), None);
        (0..90).for_each(|_| times.hear(ms(5)));
        let near = |want: Duration| {
            let got = times.of_nearly_all(10).unwrap();
            assert!(got > want && got <= want + want / 16, "{got:?}, not {want:?}");
        };
        times.hear(ms(900));
        near(ms(5));
        times.hear(ms(900));
        near(ms(900));
        (0..10_000).for_each(|_| times.hear(ms(40)));
        near(ms(40));
    }

    #[test]
    fn who_waits_for_less_than_one_version_takes_says_less_and_for_less_than_both_nothing() {
        let (usual, ms) = (Usual::default(), Duration::from_millis);
        assert_eq!(usual.patience(ms(10_000)), Patience::Short, "nobody has answered yet");
        (0..20).for_each(|_| usual.hear(false, ms(10)));
        assert_eq!(usual.patience(ms(50)), Patience::LongForBoth, "as far as is known");
        usual.hear(true, ms(100));
        assert_eq!(usual.patience(ms(50)), Patience::LongForOne, "one answer is enough to know better");
        (0..20).for_each(|_| usual.hear(true, ms(100)));
        let says = [5, 50, 150, 500].map(|waited| usual.patience(ms(waited)));
        assert_eq!(
            says,
            [Patience::Short, Patience::LongForOne, Patience::LongForOne, Patience::LongForBoth]
        );
        usual.forget();
        assert_eq!(usual.patience(ms(500)), Patience::Short);
    }
}
