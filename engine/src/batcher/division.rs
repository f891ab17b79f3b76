//! What it costs that some requests make every run fail that they are in, where nobody can tell them by a key. Such a batch is
//! divided on its lane: its halves run again, and their halves, until those requests are alone, which takes several times what was
//! expected of it. So fewer requests share a run then, and where they often fail those who would wait for divided batches are
//! told so: of those batches of its own bucket that wait, and of all that run. As long as none does, nothing here has any say.
//!
//! Learned is which share `q` of the requests fails alone after a batch has failed with them in it. A part of `k` requests fails
//! with probability `1 - (1 - q)^k`, and then both its halves run. A batch that takes `L(n)` as a rule takes, on the average,
//!
//! ```text
//!   L(n)  +  sum over its parts of k requests that may be halved of  2 · (1 - (1 - q)^k) · L(k/2)
//! ```
//!
//! Where runs fail by chance most batches have all their answers in the end, so no request is to blame and `q` is nothing. What was
//! decided never ends of itself what it was learned from: two requests may always share a run.

use crate::curve::Curve;
use std::time::{Duration, Instant};

/// Of so many batches, and of so much time, the share is learned: what was before counts for less and less.
const BATCHES: f32 = 32.0;
const SECONDS: f32 = 4.0;

/// After so long without a batch of several requests nothing is left of it.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(10);

/// So many requests that did not fail are supposed to have run before: few that did say little.
const SUPPOSED: f32 = 8.0;

/// No larger share is believed: two at a time run in any case, and what fails as a whole is to have its batches back soon.
const SHARE_MAX: f32 = 0.25;

/// When no more is left of what has failed than this part of a request, it is forgotten.
const FORGOTTEN: f32 = 0.02;

/// A batch does as many requests per second as the best one if it does so much of its. A smaller one is answered sooner where it
/// is divided.
const AS_FAST: f32 = 0.9;

/// Batches are as large as if no request failed if they do so much of what the best ones do.
const NEARLY_AS_FAST: f32 = 0.95;

/// Once so many requests fail those who would wait for divided batches are told so, until fewer than the second share do. Where
/// fewer fail, more of those who come at once would be refused for nothing than are late.
const REFUSES_FROM: f32 = 0.06;
const REFUSES_UNTIL: f32 = 0.04;

/// Standard deviations beyond which nothing is expected.
const SURE: f32 = 2.0;

/// How many requests fail of late, and what follows from that.
#[derive(Debug, Default)]
pub(super) struct Division {
    /// Of batches of several: their requests, the rows of these, and how many failed alone, or may have.
    requests: f32,
    rows: f32,
    failed: f32,
    /// Batches that failed because a request did, and those all of whose requests had answers in the end: it was the run.
    found: f32,
    acquitted: f32,
    noted: Option<Instant>,
    /// Requests of a batch at most, if that matters: more of them would take longer to divide than they save.
    pub(super) most: Option<u32>,
    /// Whether divided batches are reckoned with.
    refuses: bool,
}

impl Division {
    /// Whether anything of it is known: otherwise no request has failed of late.
    pub(super) fn is_known(&self) -> bool {
        self.noted.is_some()
    }

    /// So many requests ran together as one.
    pub(super) fn ran(&mut self, jobs: u32, rows: u32, now: Instant) {
        self.note([jobs as f32, rows as f32, 0.0, 0.0, 0.0], now);
    }

    /// So many ran in parts, of which so many failed alone, and so many left before they could.
    pub(super) fn divided(&mut self, jobs: u32, rows: u32, (failed, left): (u32, u32), now: Instant) {
        let (ran, failed, found, acquitted) = match (failed, left) {
            (0, 0) => (jobs, 0, 0, 1),
            // One of those who left, or it was the run.
            (0, _) => (jobs.saturating_sub(left) + 1, 1, 0, 0),
            _ => (jobs.saturating_sub(left), failed, 1, 0),
        };
        let [jobs, rows, ran] = [jobs, rows, ran].map(|count| count as f32);
        self.note([ran, rows * ran / jobs, failed as f32, found as f32, acquitted as f32], now);
    }

    fn note(&mut self, [requests, rows, failed, found, acquitted]: [f32; 5], now: Instant) {
        let since = self.noted.map_or(Duration::ZERO, |noted| now.saturating_duration_since(noted));
        let keep = (-1.0 / BATCHES - since.as_secs_f32() / SECONDS).exp();
        self.requests = self.requests * keep + requests;
        self.rows = self.rows * keep + rows;
        self.failed = (self.failed * keep + failed).min(SHARE_MAX * self.requests);
        self.found = self.found * keep + found;
        self.acquitted = self.acquitted * keep + acquitted;
        self.noted = Some(now);
        if self.failed.max(self.acquitted) < FORGOTTEN {
            *self = Self::default();
        }
    }

    /// What is long ago does not count.
    pub(super) fn forget(&mut self, now: Instant) {
        if self.noted.is_some_and(|noted| now.saturating_duration_since(noted) > FORGOTTEN_AFTER) {
            *self = Self::default();
        }
    }

    /// Decides what follows, if a run has room for so many rows.
    pub(super) fn choose(&mut self, curve: &Curve, max_rows: u32) {
        let enough = if self.refuses { REFUSES_UNTIL } else { REFUSES_FROM };
        self.refuses = self.good().is_some_and(|good| good <= 1.0 - enough);
        self.most = self.best(curve, max_rows);
    }

    fn best(&self, curve: &Curve, max_rows: u32) -> Option<u32> {
        let good = self.good()?;
        let most = (max_rows as f32 / self.each()) as u32;
        let speed = |jobs: u32| {
            let jobs = jobs as f32;
            let takes = whole(curve, jobs, self.each())? + parts(curve, jobs, self.each(), good)?;
            Some(jobs / takes.max(f32::MIN_POSITIVE))
        };
        let powers = std::iter::successors(Some(2u32), |jobs| jobs.checked_mul(2));
        let sizes = || powers.clone().take_while(|jobs| *jobs < most);
        let best = sizes().filter_map(speed).fold(0.0, f32::max);
        let all = speed(most)?;
        if all >= NEARLY_AS_FAST * best {
            return None;
        }
        let enough = all.max(AS_FAST * best);
        sizes().find(|jobs| speed(*jobs).is_some_and(|speed| speed >= enough))
    }

    /// What the parts of a batch of so many rows take that has failed, if that is reckoned with.
    pub(super) fn again(&self, curve: &Curve, rows: u32) -> Option<Duration> {
        self.again_of(curve, rows as f32 / self.each(), self.each())
    }

    /// How much longer so many batches of so many rows take because some of them are divided, where requests have so many each, for
    /// somebody who has so much time: no more are, but by chance once in some dozens. Whom a divided one would take most of the
    /// time would be let in nowhere, and takes the chance that none is; who has a little more is told, and may be worse off for it.
    pub(super) fn longer(
        &self,
        curve: &Curve,
        (rows, each): (u32, u32),
        batches: u64,
        left: Duration,
    ) -> Option<Duration> {
        let good = self.often()?;
        let jobs = rows as f32 / each as f32;
        if jobs <= 1.0 {
            return None;
        }
        let (again, batches) = (self.again_of(curve, jobs, each as f32)?, batches as f32);
        if curve.typical(rows)? + again > left * 3 / 4 {
            return None;
        }
        let fails = fails(good, jobs);
        let divided = (batches * fails + SURE * (batches * fails * (1.0 - fails)).sqrt()).min(batches);
        Some(again.mul_f32(divided))
    }

    fn again_of(&self, curve: &Curve, jobs: f32, each: f32) -> Option<Duration> {
        let good = self.often()?;
        let again = parts(curve, jobs, each, good)? / fails(good, jobs.max(1.0)).max(f32::MIN_POSITIVE);
        Duration::try_from_secs_f32(again).ok()
    }

    /// The share that does not fail, if any does. Runs that fail by chance leave a request alone with it about as often as none.
    fn good(&self) -> Option<f32> {
        let sure = (self.found + 1.0 - self.acquitted) / (self.found + 1.0);
        (self.failed > 0.0 && sure > 0.0).then(|| 1.0 - sure * self.failed / (self.requests + SUPPOSED))
    }

    /// The same where that is reckoned with.
    fn often(&self) -> Option<f32> {
        self.good().filter(|_| self.refuses)
    }

    /// Rows of a request.
    fn each(&self) -> f32 {
        (self.rows / self.requests).max(1.0)
    }
}

/// Seconds of a run of so many requests of so many rows.
fn whole(curve: &Curve, jobs: f32, each: f32) -> Option<f32> {
    let rows = (jobs * each).round().max(1.0) as u32;
    curve.typical(rows).map(|typical| typical.as_secs_f32())
}

/// Seconds that the parts of a batch of so many take on the average: most often none.
fn parts(curve: &Curve, all: f32, each: f32, good: f32) -> Option<f32> {
    let (mut part, mut sum) = (all, 0.0);
    while part > 1.0 {
        let half = (part / 2.0).max(1.0);
        sum += all / half * fails(good, part) * whole(curve, half, each)?;
        part = half;
    }
    Some(sum)
}

/// How often a run of so many requests fails.
fn fails(good: f32, jobs: f32) -> f32 {
    1.0 - good.powf(jobs)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX_ROWS: u32 = 32;

    fn curve(micros: impl Fn(u32) -> u64) -> Curve {
        let mut curve = Curve::default();
        for rows in [1, 2, 4, 8, 16, 32] {
            (0..5).for_each(|_| curve.observe(rows, Duration::from_micros(micros(rows))));
        }
        curve
    }

    fn flat() -> Curve {
        curve(|_| 1000)
    }

    /// One of so many requests of so many rows has failed, for a long time.
    fn one_of(requests: u32, rows: u32, now: Instant) -> Division {
        let mut division = Division::default();
        for _ in 0..200 {
            division.divided(requests, requests * rows, (1, 0), now);
        }
        division
    }

    fn most(division: &mut Division, curve: &Curve) -> Option<u32> {
        division.choose(curve, MAX_ROWS);
        division.most
    }

    #[test]
    fn as_long_as_nothing_fails_it_has_no_say_and_some_dozens_of_batches_later_it_has_none_again() {
        let now = Instant::now();
        let mut division = one_of(4, 1, now);
        assert_eq!(most(&mut division, &flat()), Some(2));
        (0..120).for_each(|_| division.ran(2, 2, now));
        assert_eq!(most(&mut division, &flat()), None);
        (0..300).for_each(|_| division.ran(32, 32, now));
        assert!(!division.is_known());
    }

    #[test]
    fn what_is_long_ago_is_forgotten_however_few_have_come_since() {
        let now = Instant::now();
        let mut division = one_of(4, 1, now);
        division.forget(now + FORGOTTEN_AFTER);
        assert!(division.is_known());
        division.forget(now + Duration::from_secs(24 * 3600));
        assert_eq!((most(&mut division, &flat()), division.is_known()), (None, false));
    }

    #[test]
    fn the_more_requests_fail_the_fewer_run_together_but_never_fewer_than_two() {
        let now = Instant::now();
        let linear = curve(|rows| 1000 * u64::from(rows));
        let of =
            |curve: &Curve| [1000, 100, 10, 3, 1].map(|requests| most(&mut one_of(requests, 1, now), curve));
        assert_eq!(of(&flat()), [None, None, Some(4), Some(2), Some(2)]);
        assert_eq!(of(&linear), [Some(2); 5], "where nothing is gained by sharing");
    }

    #[test]
    fn requests_of_many_rows_are_counted_by_requests() {
        let now = Instant::now();
        assert_eq!(most(&mut one_of(10, 2, now), &flat()), Some(4));
        let mut division = one_of(10, 1, now);
        division.ran(1, 2, now);
        assert_eq!(most(&mut division, &flat()), Some(4), "one of two rows changes nothing");
    }

    #[test]
    fn runs_that_fail_by_chance_make_no_smaller_batches() {
        let now = Instant::now();
        // Of two that failed, one fails again in every second batch.
        let mut division = Division::default();
        for batch in 0..200 {
            division.divided(2, 2, (batch % 2, 0), now);
        }
        assert_eq!(most(&mut division, &flat()), None);
        // When all have left before it was known there is one to blame, unless others were not.
        let mut division = Division::default();
        (0..20).for_each(|_| division.divided(32, 32, (0, 28), now));
        assert!(most(&mut division, &flat()).is_some());
        (0..20).for_each(|_| division.divided(32, 32, (0, 0), now));
        assert_eq!(most(&mut division, &flat()), None);
    }

    #[test]
    fn a_batch_that_is_divided_is_expected_to_take_what_its_parts_take() {
        let now = Instant::now();
        let again = |requests, rows| {
            let mut division = one_of(requests, 1, now);
            division.choose(&flat(), MAX_ROWS);
            division.again(&flat(), rows).map(|again| again.as_secs_f32() * 1000.0)
        };
        assert_eq!(again(1000, 32), None, "so few fail that nobody is refused for it");
        let [two, four] = [2, 4].map(|rows| again(10, rows).unwrap_or_default());
        assert!((two - 2.0).abs() < 0.01, "both run again: {two}");
        assert!((4.0..4.5).contains(&four), "both halves, and those of one or of both: {four}");
    }

    #[test]
    fn of_many_batches_no_more_are_expected_to_be_divided_than_by_chance_and_by_who_has_time_for_one() {
        let mut division = one_of(10, 1, Instant::now());
        division.choose(&flat(), MAX_ROWS);
        let longer = |batches, left| {
            let longer = division.longer(&flat(), (4, 1), batches, Duration::from_micros(left));
            longer.map(|longer| {
                longer.as_secs_f32() / division.again(&flat(), 4).unwrap_or_default().as_secs_f32()
            })
        };
        let share = |batches, left| longer(batches, left).unwrap_or_default();
        assert!((0.9..=1.0).contains(&share(1, 10_000)), "{}", share(1, 10_000));
        assert!((30.0..55.0).contains(&share(100, 10_000)), "{}", share(100, 10_000));
        assert_eq!(longer(1, 6000), None, "it takes more than three quarters of that");
    }
}
