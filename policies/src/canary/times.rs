//! How long answers take, as a histogram whose bars are a sixteenth of their place wide. It forgets with what comes after and not
//! with time: where requests are few, what is known stays known. A restart forgets it: ten answers tell enough, and say how long they
//! take now.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

/// Bars of an octave.
const PARTS: usize = 1 << PARTS_LOG2;
const PARTS_LOG2: usize = 4;

/// From a microsecond to more than a day, which is the longest deadline.
const BARS: usize = 34 * PARTS;

/// Of all that the bars reach over.
pub(super) const QUARTERS: usize = BARS / (PARTS / 4);

/// A bar that comes to so much halves all: what was so long ago counts less.
const BAR_MAX: u32 = 1_000;

/// Fewer answers do not show that one is late.
pub(super) const ANSWERS_MIN: u32 = 10;

/// How long answers take. Without a lock: it hears of nearly every request.
#[derive(Debug)]
pub(super) struct Times {
    bars: [AtomicU32; BARS],
    /// Which bars are rounded up when all are halved the next time.
    odd_are_next: AtomicBool,
}

impl Default for Times {
    fn default() -> Self {
        Self { bars: [const { AtomicU32::new(0) }; BARS], odd_are_next: AtomicBool::new(false) }
    }
}

impl Times {
    /// There was an answer.
    pub(super) fn hear(&self, took: Duration) {
        if self.bars[bar(took)].fetch_add(1, Ordering::Relaxed) + 1 == BAR_MAX {
            self.halve();
        }
    }

    /// What others count meanwhile may be lost, which is as good as if it had come before. Every second bar is rounded up, and the
    /// others the next time: what takes long now and then, each time differently, has bars of one answer each, and would be
    /// forgotten by rounding.
    fn halve(&self) {
        let odd = self.odd_are_next.fetch_not(Ordering::Relaxed);
        for (at, bar) in self.bars.iter().enumerate() {
            let rounding = u32::from((at % 2 == 1) == odd);
            bar.store((bar.load(Ordering::Relaxed) + rounding) / 2, Ordering::Relaxed);
        }
    }

    /// Others answer now.
    pub(super) fn forget(&self) {
        self.bars.iter().for_each(|bar| bar.store(0, Ordering::Relaxed));
    }

    /// What all but one in so many stay below, if enough are known.
    pub(super) fn all_but_one_in(&self, parts: u32) -> Option<Duration> {
        let counts: [u32; BARS] = std::array::from_fn(|at| self.bars[at].load(Ordering::Relaxed));
        let all: u32 = counts.iter().sum();
        let mut above = 0;
        let reached = (0..BARS).rev().find(|at| {
            above += counts[*at];
            above > all / parts
        });
        reached.filter(|_| all >= ANSWERS_MIN).map(end_of)
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

/// In which quarter of an octave a time is.
pub(super) fn quarter_of_octave(time: Duration) -> usize {
    bar(time) / (PARTS / 4)
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

    /// Fifteen in a hundred, each of another time: none comes to anything beside the others.
    #[test]
    fn what_takes_long_now_and_then_is_not_forgotten_however_many_answers_are_alike() {
        let times = Times::default();
        let mut known = 0;
        for answer in 0..100_000u64 {
            let place = (answer.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32 % 192;
            let long = Duration::from_secs(1) * 2_u32.pow(place / 16) / 16 * (16 + place % 16);
            times.hear(if answer % 20 < 17 { Duration::from_millis(5) } else { long });
            known +=
                u32::from(times.all_but_one_in(10).is_none_or(|usual| usual > Duration::from_millis(900)));
        }
        assert!(known >= 99_900, "nine in ten never stay below: {known}");
    }
}
