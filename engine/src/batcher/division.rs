//! What it costs that some requests make every run fail that they are in. Such a batch is divided on its lane: its halves run
//! again, and their halves, until those requests are alone, which takes several times what was expected of it. So batches have
//! fewer rows then, and of those who have time for that only who is in time though some batches are divided is let in. Learned
//! from how batches end; as long as no request fails, nothing here has any say.
//!
//! Where a share `g` of requests is good, a part of `k` fails with probability `1 - g^k`. Its first half runs again, and so does
//! its second unless that is known to have what failed: because the first has run, and the second is still to be divided.
//! A batch that takes `L(n)` as a rule takes, on the average,
//!
//! ```text
//!   L(n)  +  sum over its parts of k requests that may be halved of (1 - g^k + 1 - g^(k/2)) · L(k/2)
//! ```

use crate::curve::Curve;
use std::time::Duration;

/// Requests that the share is taken of: those before count for less and less.
const RECENT: f32 = 512.0;

/// Of fewer requests than this one that failed says little.
const REQUESTS_MIN: f32 = 64.0;

/// No larger share is believed: nobody shares a run then, and a model that has failed as a whole is to have batches again soon.
const SHARE_MAX: f32 = 1.0 / 3.0;

/// When no more is left of what has failed than this part of a request, it is forgotten.
const FORGOTTEN: f32 = 0.02;

/// Something that failed though nobody in it does makes so many failures of requests doubtful: where runs fail by chance, some that
/// are alone do so too, and smaller batches would only be more runs.
const ACQUITS: f32 = 16.0;

/// Standard deviations beyond which nothing is expected.
const SURE: f32 = 2.0;

/// A batch does as many rows per second as the best one if it does so much of its. A smaller one is answered sooner where it fails.
const AS_FAST: f32 = 0.9;

/// How many requests fail of late, and what follows from that.
#[derive(Debug, Default)]
pub(super) struct Division {
    requests: f32,
    rows: f32,
    failed: f32,
    /// Batches of which something failed though none of its requests did: it was the run.
    acquitted: f32,
    /// Rows of a batch at most, if failures matter: more of them would take longer to divide than they save.
    pub(super) most: Option<u32>,
}

impl Division {
    /// So many requests ran together, of which so many turned out to fail at least.
    pub(super) fn note(&mut self, requests: u32, rows: u32, failed: u32) {
        if failed == 0 && self.failed == 0.0 && self.acquitted == 0.0 {
            return;
        }
        let keep = (-(requests as f32) / RECENT).exp();
        self.requests = self.requests * keep + requests as f32;
        self.rows = self.rows * keep + rows as f32;
        self.failed = (self.failed * keep + failed as f32).min(self.requests * SHARE_MAX);
        self.acquitted *= keep;
        if self.failed.max(self.acquitted) < FORGOTTEN {
            *self = Self::default();
        }
    }

    /// Requests failed together, and then none of them did. To be told before that their batch has ended.
    pub(super) fn acquit(&mut self) {
        self.acquitted += 1.0;
    }

    /// Chooses how many rows a batch has at most.
    pub(super) fn choose(&mut self, curve: &Curve, max_rows: u32) {
        self.most = self.good().and_then(|good| self.best(curve, max_rows, good));
    }

    fn best(&self, curve: &Curve, max_rows: u32, good: f32) -> Option<u32> {
        let whole = |rows: u32| curve.typical(rows).map(|typical| typical.as_secs_f32());
        let takes = |rows: u32| Some(whole(rows)? + self.again(curve, rows, good)?);
        if whole(max_rows)? >= AS_FAST * takes(max_rows)? {
            return None; // it is divided so seldom that it does not matter
        }
        // Nobody is divided who is alone, however many rows that is.
        let one = (self.rows / self.requests).ceil() as u32;
        let powers = std::iter::successors(Some(one), |rows| rows.checked_mul(2));
        let sizes = || powers.clone().take_while(|rows| *rows < max_rows).chain([max_rows]);
        let speed = |rows: u32| takes(rows).map_or(0.0, |takes| rows as f32 / takes);
        let enough = AS_FAST * sizes().map(speed).fold(0.0, f32::max);
        sizes().find(|rows| speed(*rows) >= enough)
    }

    /// What a batch of so many rows takes that has to be divided; nothing as long as none has to be.
    pub(super) fn takes(&self, curve: &Curve, rows: u32) -> Option<Duration> {
        let good = self.good()?;
        let fails = 1.0 - good.powf(self.requests_of(rows));
        let again = Duration::try_from_secs_f32(self.again(curve, rows, good)? / fails).ok()?;
        Some(curve.typical(rows)? + again)
    }

    /// How much longer so many batches of so many rows take because some of them are divided: no more are, but by chance once in
    /// some dozens.
    pub(super) fn takes_longer(&self, curve: &Curve, rows: u32, batches: u64) -> Option<Duration> {
        let good = self.good()?;
        let (fails, batches) = (1.0 - good.powf(self.requests_of(rows)), batches as f32);
        let divided = (batches * fails + SURE * (batches * fails * (1.0 - fails)).sqrt()).min(batches);
        Duration::try_from_secs_f32(self.again(curve, rows, good)? / fails * divided).ok()
    }

    /// The share that is good, if any is not.
    fn good(&self) -> Option<f32> {
        let failed = self.failed - ACQUITS * self.acquitted;
        (failed > 0.0).then(|| 1.0 - failed / self.requests.max(REQUESTS_MIN))
    }

    fn requests_of(&self, rows: u32) -> f32 {
        (rows as f32 * self.requests / self.rows).max(1.0)
    }

    /// Seconds that the parts of a batch of so many rows take, on the average: most often none.
    fn again(&self, curve: &Curve, rows: u32, good: f32) -> Option<f32> {
        let all = self.requests_of(rows);
        let fails = |requests: f32| 1.0 - good.powf(requests);
        let (mut part, mut again) = (all, 0.0);
        while part > 1.0 {
            let half = (part / 2.0).max(1.0);
            // Who is alone runs in any case: only so it is known to fail.
            let second = if half > 1.0 { fails(half) } else { fails(part) };
            let takes = curve.typical((rows as f32 * half / all).ceil() as u32)?.as_secs_f32();
            again += all / half * (fails(part) + second) / 2.0 * takes;
            part = half;
        }
        Some(again)
    }
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

    /// One of so many requests of so many rows has failed, for a long time.
    fn one_of(requests: u32, rows: u32) -> Division {
        let mut division = Division::default();
        for _ in 0..4000 / requests {
            division.note(requests, requests * rows, 1);
        }
        division
    }

    fn most(division: &mut Division, curve: &Curve) -> Option<u32> {
        division.choose(curve, MAX_ROWS);
        division.most
    }

    #[test]
    fn as_long_as_nothing_fails_it_has_no_say_and_some_thousand_requests_later_it_has_none_again() {
        let (mut division, flat) = (Division::default(), curve(|_| 1000));
        division.note(32, 32, 0);
        assert_eq!((most(&mut division, &flat), division.takes(&flat, 32)), (None, None));
        division.note(2, 2, 1);
        assert!(division.takes(&flat, 32).is_some());
        (0..2500).for_each(|_| division.note(1, 1, 0));
        assert_eq!((most(&mut division, &flat), division.takes(&flat, 32)), (None, None));
    }

    #[test]
    fn the_more_requests_fail_the_fewer_run_together_and_where_nothing_is_gained_each_runs_alone() {
        let (flat, linear) = (curve(|_| 1000), curve(|rows| 1000 * u64::from(rows)));
        let of_flat = [1000, 100, 10, 3].map(|requests| most(&mut one_of(requests, 1), &flat));
        assert_eq!(of_flat, [Some(32), Some(32), Some(4), Some(1)]);
        let of_linear = [1000, 100, 10].map(|requests| most(&mut one_of(requests, 1), &linear));
        assert_eq!(
            of_linear,
            [None, Some(1), Some(1)],
            "as long as it is rare, a smaller batch is no better"
        );
    }

    #[test]
    fn a_batch_that_is_divided_is_expected_to_take_what_its_runs_take() {
        let flat = curve(|_| 1000);
        let takes = |division: &Division, rows| {
            division.takes(&flat, rows).map(|takes| takes.as_secs_f32() * 1000.0).unwrap_or_default()
        };
        let (rare, often) = (one_of(1000, 1), one_of(10, 1));
        // Whichever of two fails, both run again.
        assert!((takes(&rare, 2) - 3.0).abs() < 0.01 && (takes(&often, 2) - 3.0).abs() < 0.01);
        // One of four: its half is the first, which has to run to be known, or the second, which need not.
        assert!((takes(&rare, 4) - 4.5).abs() < 0.01, "{}", takes(&rare, 4));
        assert!(takes(&often, 4) > takes(&rare, 4));
        assert!((takes(&often, 1) - 1.0).abs() < 0.01, "nobody is divided who is alone");
    }

    #[test]
    fn of_many_batches_no_more_are_expected_to_be_divided_than_by_chance() {
        let flat = curve(|_| 1000);
        let (rare, often) = (one_of(1000, 1), one_of(10, 1));
        let longer = |division: &Division, rows, batches| {
            let longer = division.takes_longer(&flat, rows, batches).unwrap_or_default();
            let one = division.takes(&flat, rows).unwrap_or_default() - Duration::from_millis(1);
            longer.as_secs_f32() / one.as_secs_f32()
        };
        // 4 % of them, and of one, a fifth and more of a failure.
        assert!((0.2..0.6).contains(&longer(&rare, 32, 1)) && (6.0..12.0).contains(&longer(&rare, 32, 100)));
        assert!(longer(&often, 4, 1) > 0.99 && longer(&often, 4, 100) < 60.0);
        assert_eq!(Division::default().takes_longer(&flat, 32, 10), None);
    }

    #[test]
    fn requests_are_not_divided_however_many_rows_they_have() {
        let flat = curve(|_| 1000);
        let division = one_of(10, 16);
        let takes = |rows| division.takes(&flat, rows).unwrap_or_default();
        assert_eq!(takes(16), Duration::from_millis(1));
        assert!((takes(32).as_secs_f32() - 0.003).abs() < 1e-5);
    }
}
