//! How long a model takes, by rows: learned from every run, asked before every decision. Sans-IO.
//!
//! Sizes that were seen keep the median of their last runs; between them it is interpolated, and made monotone
//! (pool adjacent violators), because more rows never take less and a table that says so comes from noise. How much
//! slower than typical a run may be is one quantile for the whole curve: neighbours on the machine disturb all
//! sizes alike, and a quantile for each size would take thousands of runs to learn.

use std::collections::BTreeMap;
use std::time::Duration;

/// Runs of one size that its median is taken of.
const RECENT: usize = 15;

/// Runs of all sizes that the slow quantile is taken of.
const RATIOS: usize = 256;

/// Microseconds; nothing is predicted to take longer.
const PREDICTED_MAX: f32 = 3.6e9;

/// Before this many runs nothing is predicted.
const RUNS_MIN: u64 = 3;

/// Until there are [`RATIOS_MIN`], a slow run is supposed to take so much longer than a typical one.
const SLOWNESS_AT_FIRST: f32 = 1.5;
const RATIOS_MIN: usize = 32;

/// Nobody reckons with a run that takes longer than this many typical ones. Those come once in a while, and it costs less that whom
/// they hit is late than that time for them is left by all.
const SLOWNESS_MAX: f32 = 1.5;

/// A batch does as many rows per second as the best one if it does so much of its.
const AS_EFFICIENT: f32 = 0.97;

/// A size that has run less often says nothing: its median would be that of an accident.
pub(crate) const RUNS_SETTLED: usize = 3;

/// A size has to have run so often before a larger batch is left for it.
const RUNS_TRUSTED: usize = 5;

/// So many runs in a row that take less than this share of what was learned say that it is over: the machine was busy then. To wait
/// until the median has turned would be to refuse meanwhile what there is time for.
const OVER: f32 = 0.5;
const OVER_RUNS: usize = 3;

/// So many runs in a row, of any sizes, none of which takes more than this many times what its size does when nothing disturbs the
/// machine, say that nothing does. Fewer happen by chance where every third run is disturbed.
const CALM_RUNS: u64 = 24;
const CALM: f32 = 1.5;

/// So many runs in a row that take more than that say that something disturbs the machine. Those of a size that was set back to what it
/// took undisturbed, and has not shown since that it takes that, do not count: it may be slow of itself.
const BUSY_RUNS: u64 = 3;

/// What a size takes when nothing disturbs the machine is taken to be so many times as much with every run that does not show it: a
/// model may be slower for good.
const FADES: f32 = 1.005;

/// A run of fewer microseconds is not cut: what its first rows would gain is less than what another run costs.
const UNNOTICED: f32 = 1000.0;

/// A batch is cut for a smaller one that is faster by so much: less may be noise.
const CLEARLY_FASTER: f32 = 1.08;

/// Latency of one model version at one shape, as a function of rows.
#[derive(Debug, Default)]
pub struct Curve {
    sizes: BTreeMap<u32, Recent>,
    /// Sizes that were seen; rows and microseconds both rise.
    points: Vec<Point>,
    /// What another shape of the model lets expect of sizes beyond what has run.
    expected: Vec<Point>,
    /// Observed through predicted, of the last runs.
    ratios: Vec<f32>,
    slowness: f32,
    runs: u64,
    /// Of these, the last ones that nothing has disturbed.
    calm: u64,
    /// And the last ones of which each was disturbed, without those of sizes that are restored.
    busy: u64,
}

#[derive(Clone, Copy, Debug)]
struct Point {
    rows: f32,
    /// What it typically takes.
    micros: f32,
    /// It has run often enough that a larger batch may be left for it.
    is_trusted: bool,
}

/// Microseconds of the last runs of one size.
#[derive(Debug, Default)]
struct Recent {
    micros: [f32; RECENT],
    runs: usize,
    median: f32,
    /// Number of its last run among those of all sizes.
    last: u64,
    /// It has not run since it was taken to be faster because another size was.
    is_guessed: bool,
    /// The median when nothing disturbed the machine: the least that it has been, and a little more with every run since.
    undisturbed: f32,
    /// It was taken to be as fast as undisturbed, and neither has shown since that it is nor was the machine disturbed again.
    is_restored: bool,
}

impl Curve {
    /// Learns from one run.
    pub fn observe(&mut self, rows: u32, took: Duration) {
        let micros = took.as_secs_f32() * 1e6;
        // Against what was only expected, a run says nothing of how much runs vary.
        if let Some(typical) = self.micros(rows).filter(|_| self.runs >= RUNS_MIN) {
            let at = self.runs as usize % RATIOS;
            put(&mut self.ratios, at, micros / typical.max(1.0));
        }
        let rows = size_of(rows);
        let size = self.sizes.entry(rows).or_default();
        let mut changed = size.observe(micros);
        let is_undisturbed = micros <= CALM * size.undisturbed;
        size.is_restored &= !is_undisturbed;
        self.busy = if is_undisturbed { 0 } else { self.busy + u64::from(!size.is_restored) };
        self.runs += 1;
        (size.last, size.is_guessed) = (self.runs, false);
        if let Some(micros) = size.much_less() {
            let share = micros / size.median;
            for (other, recent) in &mut self.sizes {
                // Fewer rows never take more.
                if *other <= rows {
                    if OVER * recent.median > micros {
                        recent.begin_anew(micros);
                    }
                // What made this size slow made all slow; those that have not run since cannot tell. Once: else a size that is now
                // fast and now slow would make of one that does not run what it likes.
                } else if recent.last + OVER_RUNS as u64 <= self.runs && !recent.is_guessed {
                    recent.begin_anew((recent.median * share).max(micros));
                    recent.is_guessed = true;
                }
            }
            changed = true;
        }
        self.calm = if is_undisturbed { self.calm + 1 } else { 0 };
        if self.busy == BUSY_RUNS {
            // What is slow in it may be so because of it.
            self.sizes.values_mut().for_each(|recent| recent.is_restored = false);
        }
        if self.calm == CALM_RUNS {
            changed |= self.restore();
        }
        if changed {
            self.points = rising(&self.sizes);
        }
        if self.runs.is_multiple_of(RATIOS_MIN as u64) {
            self.slowness = slowness(&self.ratios);
        }
    }

    /// Sizes that ran while something disturbed the machine look slow beside those that did not. Nobody has time for them, so they do
    /// not run, and would look slow for ever. Once nothing disturbs it any more, they are taken to be as fast as they were: not as
    /// more rows are, for single sizes may be slow.
    fn restore(&mut self) -> bool {
        let mut changed = false;
        for recent in self.sizes.values_mut().filter(|recent| recent.runs >= RUNS_SETTLED) {
            // Once after each busy time: if it is slow then too, that was not the machine.
            if OVER * recent.median > recent.undisturbed && !recent.is_restored {
                recent.begin_anew(recent.undisturbed);
                recent.is_restored = true;
                changed = true;
            }
        }
        changed
    }

    /// Runs that were learned from.
    pub fn runs(&self) -> u64 {
        self.runs
    }

    /// What a run of so many rows takes as a rule. `None` as long as too little is known.
    pub fn typical(&self, rows: u32) -> Option<Duration> {
        self.micros(rows).map(from_micros)
    }

    /// Whether so few rows have run, or fewer, and often enough to count; else a prediction only says what they do not exceed.
    pub fn reaches_down_to(&self, rows: u32) -> bool {
        self.points.first().is_some_and(|point| point.rows <= rows as f32)
    }

    /// What 99 of 100 runs of so many rows take at most, but no more than [`SLOWNESS_MAX`] typical ones.
    pub fn slow(&self, rows: u32) -> Option<Duration> {
        let slowness = if self.slowness == 0.0 { SLOWNESS_AT_FIRST } else { self.slowness };
        self.micros(rows).map(|micros| from_micros(micros * slowness))
    }

    /// The smallest batch, of at most so many rows, that does about as many rows per second as any.
    pub fn efficient(&self, most: u32) -> Option<u32> {
        self.smallest(most, AS_EFFICIENT)
    }

    /// How many of so many waiting rows to run: more only as long as that makes rows faster, because the first ones
    /// wait for the last.
    pub fn fill(&self, waiting: u32) -> u32 {
        let Some(all) = self.speed(waiting) else { return waiting };
        if waiting as f32 / all < UNNOTICED {
            return waiting;
        }
        let smaller = self.points.partition_point(|point| point.rows < waiting as f32);
        let trusted = || self.points[..smaller].iter().filter(|point| point.is_trusted);
        let best = trusted().map(|point| point.speed()).fold(0.0, f32::max);
        let enough = AS_EFFICIENT * if best > CLEARLY_FASTER * all { best } else { all };
        trusted().find(|point| point.speed() >= enough).map_or(waiting, |point| point.rows as u32)
    }

    /// How many of so many waiting rows to run once in a while: of the sizes that did about as many rows per second as
    /// any when they ran undisturbed, the one that has not run for longest. What looked slow in a noisy moment would
    /// otherwise never run again. Beyond the largest size that was seen it goes on only while that pays.
    pub fn explore(&self, waiting: u32) -> u32 {
        let fitting = || self.sizes.range(..=waiting);
        let best = fitting().map(|(rows, recent)| recent.fastest(*rows)).fold(0.0, f32::max);
        let rivals = || fitting().filter(|(rows, recent)| recent.fastest(**rows) >= AS_EFFICIENT * best);
        let largest = self.sizes.keys().next_back().copied().unwrap_or(waiting);
        if largest < waiting && rivals().any(|(rows, _)| *rows == largest) {
            return waiting.min(largest.saturating_mul(2));
        }
        rivals().min_by_key(|(_, recent)| recent.last).map_or(waiting, |(rows, _)| *rows)
    }

    /// The size, of those that so many waiting rows are enough for, that has not run for longest, however slow it was: that may
    /// have been the machine, at a time that is over.
    pub fn oldest(&self, waiting: u32) -> u32 {
        let fitting = self.sizes.range(..=waiting);
        fitting.min_by_key(|(_, recent)| recent.last).map_or(waiting, |(rows, _)| *rows)
    }

    fn smallest(&self, most: u32, share: f32) -> Option<u32> {
        let best = self.sizes_up_to(most).filter_map(|rows| self.speed(rows)).reduce(f32::max)?;
        self.sizes_up_to(most)
            .filter(|rows| self.speed(*rows).is_some_and(|speed| speed >= share * best))
            .min()
    }

    /// Those that have run, and powers of two, of which something may be expected.
    fn sizes_up_to(&self, most: u32) -> impl Iterator<Item = u32> + '_ {
        let powers = std::iter::successors(Some(1u32), |rows| rows.checked_mul(2));
        let powers = powers.take_while(move |rows| *rows < most && !self.expected.is_empty());
        self.sizes.keys().copied().take_while(move |rows| *rows < most).chain(powers).chain([most])
    }

    fn speed(&self, rows: u32) -> Option<f32> {
        self.micros(rows).map(|micros| rows as f32 / micros.max(1.0))
    }

    /// Whether so many rows have run so often that a larger batch may be left for it.
    pub fn trusts(&self, rows: u32) -> bool {
        self.sizes.get(&size_of(rows)).is_some_and(|recent| recent.runs >= RUNS_TRUSTED)
    }

    /// Sizes that were seen, and what they typically take.
    pub fn points(&self) -> impl Iterator<Item = (u32, Duration)> + '_ {
        self.points.iter().map(|point| (point.rows as u32, from_micros(point.micros)))
    }

    /// Lets a shape that has not run be expected to take as long as `other`, whose rows have `share` of this one's values.
    /// That goes by values alone, and is right by a factor; each run corrects it.
    pub fn expect(&mut self, other: &Self, share: f32) {
        let of_values = |point: &Point| Point { rows: point.rows * share, ..*point };
        self.expected = other.points.iter().map(of_values).collect();
    }

    /// Whether more than one size has run, which tells what a run costs and what a row.
    pub fn has_slope(&self) -> bool {
        self.points.len() > 1
    }

    fn micros(&self, rows: u32) -> Option<f32> {
        let rows = rows as f32;
        let known = if self.runs < RUNS_MIN { None } else { self.points.first().zip(self.points.last()) };
        let Some((first, last)) = known else { return on_line(&self.expected, rows) };
        // Beyond what has run, in proportion to what was expected.
        let from = |seen: &Point| {
            let (there, here) = (on_line(&self.expected, seen.rows)?, on_line(&self.expected, rows)?);
            Some(seen.micros * here / there)
        };
        let expected = match rows {
            rows if rows < first.rows => from(first).map(|micros| micros.min(first.micros)),
            rows if rows > last.rows => from(last).map(|micros| micros.max(last.micros)),
            _ => None,
        };
        expected.or_else(|| on_line(&self.points, rows))
    }
}

/// What so many rows take according to points of which rows and microseconds rise.
fn on_line(points: &[Point], rows: f32) -> Option<f32> {
    let (first, last) = (points.first()?, points.last()?);
    let above = points.partition_point(|point| point.rows < rows);
    Some(match above {
        // Nothing smaller was seen: it takes no longer than that.
        0 => first.micros,
        above if above < points.len() => {
            let (low, high) = (points[above - 1], points[above]);
            let share = (rows - low.rows) / (high.rows - low.rows);
            // Rounding must not go beyond it.
            (low.micros + (high.micros - low.micros) * share).min(high.micros)
        }
        // Beyond what was seen: on as before, or in proportion when there is no before.
        _ if first.rows == last.rows => last.micros * rows / last.rows,
        _ => {
            let slope = (last.micros - first.micros) / (last.rows - first.rows);
            last.micros + slope * (rows - last.rows)
        }
    })
}

impl Recent {
    /// Rows per microsecond of the fastest of the last runs.
    fn fastest(&self, rows: u32) -> f32 {
        let fastest = self.micros[..self.runs.min(RECENT)].iter().copied().fold(f32::INFINITY, f32::min);
        rows as f32 / fastest.max(1.0)
    }

    /// What each of the last runs took at most, if that is much less than those before let expect.
    fn much_less(&self) -> Option<f32> {
        let first = self.runs.checked_sub(OVER_RUNS)?;
        let most = (first..self.runs).map(|run| self.micros[run % RECENT]).fold(0.0, f32::max);
        (most < OVER * self.median).then_some(most)
    }

    /// Forgets what it has seen for a few runs of so many microseconds.
    fn begin_anew(&mut self, micros: f32) {
        self.micros[..RUNS_SETTLED].fill(micros);
        (self.runs, self.median) = (RUNS_SETTLED, micros);
    }

    /// Whether the median has moved so much that predictions change.
    fn observe(&mut self, micros: f32) -> bool {
        self.micros[self.runs % RECENT] = micros;
        self.runs += 1;
        let mut sorted = self.micros;
        let sorted = &mut sorted[..self.runs.min(RECENT)];
        let middle = sorted.len() / 2;
        let (_, median, _) = sorted.select_nth_unstable_by(middle, f32::total_cmp);
        let moved = (*median - self.median).abs() > 0.03 * self.median;
        if moved {
            self.median = *median;
        }
        let least = if self.runs == 1 { self.median } else { self.undisturbed * FADES };
        // The median may be a guess that this run refutes.
        self.undisturbed = if micros <= CALM * self.median { least.min(self.median) } else { least };
        moved || self.runs == RUNS_SETTLED || self.runs == RUNS_TRUSTED
    }
}

/// Small sizes each for themselves: models have steps there. Larger ones eight to an octave, rounded up.
pub(crate) fn size_of(rows: u32) -> u32 {
    const EXACT: u32 = 64;
    if rows <= EXACT {
        return rows.max(1);
    }
    let step = 1 << (rows.ilog2() - 3);
    rows.checked_next_multiple_of(step).unwrap_or(rows)
}

/// A ring that grows until it is full.
fn put(ring: &mut Vec<f32>, at: usize, value: f32) {
    if at < ring.len() {
        ring[at] = value;
    } else {
        ring.push(value);
    }
}

/// The medians with every fall pooled away; a size that has hardly run counts only where no other has run more.
fn rising(sizes: &BTreeMap<u32, Recent>) -> Vec<Point> {
    let any_settled = sizes.values().any(|recent| recent.runs >= RUNS_SETTLED);
    let counts = |recent: &Recent| !any_settled || recent.runs >= RUNS_SETTLED;
    let counting = || sizes.iter().filter(|(_, recent)| counts(recent));
    let mut pools: Vec<Pool> = Vec::with_capacity(sizes.len());
    for (_, recent) in counting() {
        let runs = recent.runs.min(RECENT) as f32;
        let mut pool = Pool { micros: recent.median * runs, runs, sizes: 1 };
        while let Some(before) = pools.pop_if(|before| before.mean() >= pool.mean()) {
            pool = Pool {
                micros: pool.micros + before.micros,
                runs: pool.runs + before.runs,
                sizes: pool.sizes + before.sizes,
            };
        }
        pools.push(pool);
    }
    let medians = pools.into_iter().flat_map(|pool| std::iter::repeat_n(pool.mean(), pool.sizes));
    let point = |((rows, recent), micros): ((&u32, &Recent), f32)| Point {
        rows: *rows as f32,
        micros,
        is_trusted: recent.runs >= RUNS_TRUSTED,
    };
    counting().zip(medians).map(point).collect()
}

/// Neighbouring sizes that take the same, as far as is known.
struct Pool {
    /// Of all their runs.
    micros: f32,
    runs: f32,
    sizes: usize,
}

impl Pool {
    fn mean(&self) -> f32 {
        self.micros / self.runs
    }
}

impl Point {
    fn speed(&self) -> f32 {
        self.rows / self.micros.max(1.0)
    }
}

fn slowness(ratios: &[f32]) -> f32 {
    if ratios.len() < RATIOS_MIN {
        return 0.0;
    }
    let mut sorted = ratios.to_vec();
    // Among few runs that would be the slowest, which may have been an accident.
    let at = (sorted.len() * 99 / 100).min(sorted.len() - 2);
    let (_, slow, _) = sorted.select_nth_unstable_by(at, f32::total_cmp);
    slow.clamp(1.0, SLOWNESS_MAX)
}

fn from_micros(micros: f32) -> Duration {
    // Whatever was expected of shapes far apart, it is a time that can be added to another.
    let micros = if micros > 0.0 { micros.min(PREDICTED_MAX) } else { 0.0 };
    Duration::from_secs_f32(micros / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn us(us: u64) -> Duration {
        Duration::from_micros(us)
    }

    fn learned(sizes: &[u32], took: impl Fn(u32) -> u64) -> Curve {
        let mut curve = Curve::default();
        for _ in 0..5 {
            for rows in sizes {
                curve.observe(*rows, us(took(*rows)));
            }
        }
        curve
    }

    fn micros(duration: Option<Duration>) -> u128 {
        duration.expect("enough was learned").as_micros()
    }

    #[test]
    fn nothing_is_predicted_from_next_to_nothing() {
        let mut curve = Curve::default();
        curve.observe(1, us(100));
        curve.observe(1, us(100));
        assert_eq!((curve.typical(1), curve.slow(1), curve.efficient(8)), (None, None, None));
        curve.observe(1, us(100));
        assert_eq!(micros(curve.typical(1)), 100);
    }

    #[test]
    fn between_sizes_it_is_interpolated_and_beyond_them_continued() {
        let curve = learned(&[4, 8], |rows| 100 + 10 * u64::from(rows));
        assert_eq!(micros(curve.typical(6)), 160);
        assert_eq!(micros(curve.typical(16)), 260);
        assert_eq!(micros(curve.typical(1)), 140, "no longer than the smallest that was seen");
        assert_eq!(micros(learned(&[4], |_| 100).typical(8)), 200, "in proportion, to be careful");
    }

    #[test]
    fn a_slow_time_is_over_when_some_runs_in_a_row_are_much_faster() {
        let mut curve = Curve::default();
        let typical = |curve: &Curve| [1, 4, 8].map(|rows| micros(curve.typical(rows)));
        for rows in [1, 4, 8] {
            (0..40).for_each(|_| curve.observe(rows, us(2500)));
        }
        (0..2).for_each(|_| curve.observe(4, us(250)));
        assert_eq!(typical(&curve), [2500; 3], "few may be an accident");
        curve.observe(4, us(240));
        assert_eq!(
            typical(&curve),
            [250; 3],
            "fewer rows take no longer, and more were as slow because of the same"
        );
        (0..RECENT).for_each(|_| [4, 8].iter().for_each(|rows| curve.observe(*rows, us(2500))));
        assert_eq!(typical(&curve)[1], 2500, "and may be slow again");
    }

    #[test]
    fn a_size_that_does_not_run_is_taken_to_be_faster_once_however_often_another_turns_out_to_be() {
        let mut curve = Curve::default();
        for (rows, took) in [(1, 2500), (8, 20_000)] {
            (0..RECENT).for_each(|_| curve.observe(rows, us(took)));
        }
        for _ in 0..3 {
            (0..OVER_RUNS).for_each(|_| curve.observe(1, us(250)));
            assert_eq!([1, 8].map(|rows| micros(curve.typical(rows))), [250, 2000]);
            (0..RECENT).for_each(|_| curve.observe(1, us(2500)));
        }
        (0..OVER_RUNS).for_each(|_| curve.observe(8, us(30_000)));
        (0..OVER_RUNS).for_each(|_| curve.observe(1, us(250)));
        assert_eq!(micros(curve.typical(8)), 3000, "it has run since");
    }

    #[test]
    fn when_nothing_disturbs_runs_any_more_a_size_that_does_not_run_takes_what_it_did() {
        let mut curve = learned(&[1, 2, 4], |rows| 1000 + 100 * u64::from(rows));
        // Twos run in a busy time that spares the others.
        (0..8).for_each(|_| curve.observe(2, us(3600)));
        let calm = |curve: &mut Curve, runs| (0..runs).for_each(|_| curve.observe(1, us(1100)));
        calm(&mut curve, CALM_RUNS - 1);
        curve.observe(1, us(2200));
        calm(&mut curve, CALM_RUNS - 1);
        assert!(micros(curve.typical(2)) > 2000, "one that is disturbed is enough to doubt it");
        calm(&mut curve, 1);
        let predicted = [1, 2, 4].map(|rows| micros(curve.typical(rows)));
        assert_eq!([predicted[0], predicted[2]], [1100, 1400]);
        assert!((1200..1260).contains(&predicted[1]), "{predicted:?}");
        // And after another one again.
        (0..3).for_each(|_| curve.observe(2, us(1200)));
        (0..RECENT).for_each(|_| curve.observe(2, us(3600)));
        calm(&mut curve, CALM_RUNS);
        assert!(micros(curve.typical(2)) < 1400);
    }

    #[test]
    fn a_size_that_is_slow_for_good_is_taken_to_be_faster_once() {
        let mut curve = learned(&[1, 2, 4], |rows| 1000 + 100 * u64::from(rows));
        let (mut taken, mut slow) = (0, 0);
        for _ in 0..100 {
            // Nobody has time for it unless it looks fast.
            while micros(curve.typical(4)) < 2500 {
                curve.observe(4, us(5000));
                slow += 1;
            }
            (0..CALM_RUNS).for_each(|_| curve.observe(1, us(1100)));
            taken += u32::from(micros(curve.typical(4)) < 2500);
        }
        assert_eq!(taken, 1);
        assert!(slow <= 10, "{slow}");
    }

    #[test]
    fn a_size_that_runs_in_busy_times_only_takes_what_it_did_after_each_of_them() {
        let mut curve = learned(&[1, 2, 4], |rows| 1000 + 100 * u64::from(rows));
        for time in 0..3 {
            // Ones run when it begins, then there is too much to do for them.
            (0..4).for_each(|_| curve.observe(1, us(3300)));
            (0..RECENT).for_each(|_| curve.observe(4, us(4200)));
            (0..CALM_RUNS).for_each(|_| curve.observe(1, us(1100)));
            let predicted = [1, 4].map(|rows| micros(curve.typical(rows)));
            assert!(predicted[0] < 1200 && predicted[1] < 2000, "{predicted:?} after {time} others");
        }
    }

    #[test]
    fn sizes_that_are_slow_for_good_are_no_busy_time_to_each_other() {
        let mut curve = learned(&[1, 2, 4, 5, 8], |_| 1000);
        let mut slow = 0;
        for _ in 0..100 {
            while let Some(rows) = [8, 5].into_iter().find(|rows| micros(curve.typical(*rows)) < 2000) {
                curve.observe(rows, us(3000));
                slow += 1;
            }
            // Nor are a few runs that something disturbs.
            (1..BUSY_RUNS).for_each(|_| curve.observe(1, us(3000)));
            (0..CALM_RUNS as u32).for_each(|run| curve.observe(1 << (run % 3), us(1000)));
        }
        assert!(slow <= 30, "{slow}");
    }

    #[test]
    fn a_size_that_is_slow_whenever_it_runs_is_not_taken_to_be_as_fast_as_more_rows_are() {
        let mut curve = learned(&[1, 2, 4], |rows| if rows == 2 { 3000 } else { 1000 });
        let before = micros(curve.typical(2));
        assert!(before > 1500);
        for run in 0..100 * CALM_RUNS as u32 {
            curve.observe(1 + 3 * (run % 2), us(1000));
            assert!(micros(curve.typical(2)) > 1400, "after {run} runs");
        }
    }

    #[test]
    fn what_was_guessed_of_a_size_and_refuted_by_its_next_run_is_not_what_it_took_undisturbed() {
        let mut curve = Curve::default();
        for (rows, took) in [(1, 2500), (8, 20_000)] {
            (0..RECENT).for_each(|_| curve.observe(rows, us(took)));
        }
        (0..OVER_RUNS).for_each(|_| curve.observe(1, us(250)));
        assert_eq!(micros(curve.typical(8)), 2000);
        (0..RECENT).for_each(|_| curve.observe(8, us(20_000)));
        (0..CALM_RUNS).for_each(|_| curve.observe(1, us(250)));
        assert_eq!([1, 8].map(|rows| micros(curve.typical(rows))), [250, 20_000]);
    }

    #[test]
    fn where_every_second_or_third_run_is_disturbed_no_size_is_taken_to_be_what_it_was() {
        for (disturbed, times) in [(3, 2), (3, 3), (2, 2), (2, 3)] {
            let mut curve = learned(&[1, 2, 4, 8, 16, 32], |_| 1000);
            let (mut dice, mut restored) = (7u32, 0);
            for _ in 0..10_000 {
                dice = dice.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let slow = if (dice >> 16) % disturbed == 0 { times } else { 1 };
                curve.observe(1 << ((dice >> 8) % 6), us(1000 * slow));
                restored += u32::from(curve.calm == CALM_RUNS);
            }
            assert!(restored <= 2, "{restored} times where one of {disturbed} takes {times} times as long");
        }
    }

    #[test]
    fn what_takes_now_this_and_now_that_is_not_taken_for_fast() {
        let mut curve = Curve::default();
        let (mut dice, mut fast) = (7u32, 0);
        for _ in 0..10_000 {
            dice = dice.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            // A fifth of them, at random.
            curve.observe(1, us(if dice >> 16 < (1 << 16) / 5 { 100 } else { 1000 }));
            fast += u32::from(curve.typical(1).is_some_and(|typical| typical < us(500)));
        }
        assert!(fast < 600, "for {fast} of 10,000 runs");
    }

    #[test]
    fn a_shape_that_has_not_run_is_expected_to_take_what_as_many_values_of_another_do() {
        let known = learned(&[1, 2, 4, 8], |rows| 100 + 10 * u64::from(rows));
        let mut curve = Curve::default();
        curve.expect(&known, 0.5);
        // Its rows are twice as large.
        assert_eq!([1, 2, 4, 8].map(|rows| micros(curve.typical(rows))), [120, 140, 180, 260]);
        assert!(!curve.reaches_down_to(1), "that is nothing that has run");
        // What has run counts; what has not, in proportion.
        (0..3).for_each(|_| curve.observe(4, us(360)));
        assert_eq!([1, 2, 4, 8].map(|rows| micros(curve.typical(rows))), [240, 280, 360, 520]);
        assert_eq!(curve.efficient(8), Some(8));
        (0..3).for_each(|_| curve.observe(1, us(90)));
        assert_eq!(micros(curve.typical(1)), 90);
    }

    #[test]
    fn shapes_without_proportion_let_nothing_be_expected_that_is_no_time() {
        let known = learned(&[1, 2], |rows| u64::from(rows) * 1_000_000);
        for share in [0.0, f32::MIN_POSITIVE, f32::INFINITY] {
            let mut curve = Curve::default();
            curve.expect(&known, share);
            (0..3).for_each(|_| curve.observe(4, us(0)));
            for rows in [1, 4, u32::MAX] {
                let predicted = [curve.typical(rows), curve.slow(rows)];
                assert!(predicted.into_iter().flatten().all(|time| time < Duration::from_secs(4000)));
            }
        }
    }

    #[test]
    fn one_slow_run_moves_nothing_but_a_change_is_learned() {
        let mut curve = learned(&[1], |_| 100);
        curve.observe(1, us(9000));
        assert_eq!(micros(curve.typical(1)), 100);
        for _ in 0..RECENT {
            curve.observe(1, us(200));
        }
        assert_eq!(micros(curve.typical(1)), 200);
    }

    #[test]
    fn a_new_size_that_is_slow_once_moves_nothing_either() {
        let mut curve = learned(&[1, 2, 4, 8, 16, 32], |rows| 400 + 100 * u64::from(rows));
        curve.observe(3, us(20_000));
        assert_eq!([micros(curve.typical(3)), micros(curve.typical(16))], [700, 2000]);
        for _ in 0..2 {
            curve.observe(3, us(20_000));
        }
        assert!(micros(curve.typical(3)) > 700, "three are no accident");
        let mut large = learned(&[8], |_| 9000);
        large.observe(1, us(100));
        assert!(!large.reaches_down_to(1), "what ones take is not known from one of them");
    }

    #[test]
    fn one_accident_among_few_runs_is_not_how_slow_runs_are() {
        let mut curve = learned(&[1], |_| 100);
        (0..70).for_each(|run| curve.observe(1, us(if run == 7 { 9000 } else { 100 })));
        assert_eq!(micros(curve.slow(1)), 100);
    }

    #[test]
    fn the_slow_quantile_is_that_of_runs_against_what_was_expected() {
        let mut curve = learned(&[1, 2], |rows| 100 * u64::from(rows));
        for run in 0..400 {
            curve.observe(1 + run % 2, us(u64::from(1 + run % 2) * if run % 50 < 2 { 300 } else { 100 }));
        }
        assert_eq!(micros(curve.typical(2)), 200);
        assert_eq!(micros(curve.slow(2)), 300, "and more than half as long again nobody reckons with");
    }

    #[test]
    fn efficiency_knows_flat_linear_and_stepped_models() {
        let sizes: Vec<u32> = (1..=32).collect();
        let flat = learned(&sizes, |_| 1000);
        assert_eq!((flat.efficient(32), flat.fill(20)), (Some(32), 20));
        let linear = learned(&sizes, |rows| 100 * u64::from(rows));
        assert_eq!(
            (linear.efficient(32), linear.fill(20)),
            (Some(1), 1),
            "nothing is gained by waiting for others"
        );
        let stepped = learned(&sizes, |rows| 1000 * u64::from(rows.div_ceil(8)));
        assert_eq!((stepped.efficient(32), stepped.efficient(9)), (Some(8), Some(8)));
        assert_eq!((stepped.fill(7), stepped.fill(9), stepped.fill(17), stepped.fill(24)), (7, 8, 8, 8));
    }

    #[test]
    fn a_size_that_looked_slow_is_tried_again_and_one_that_is_slow_is_not() {
        let mut curve = Curve::default();
        for run in 0..15 {
            // Ones are as good as fours, but were disturbed; twos never were any good.
            curve.observe(1, us(if run % 5 == 0 { 1000 } else { 1400 }));
            curve.observe(2, us(3000));
            curve.observe(4, us(4000));
        }
        assert_eq!(curve.fill(4), 4);
        assert_eq!(curve.explore(4), 1);
        for _ in 0..15 {
            curve.observe(1, us(1000));
        }
        assert_eq!((curve.fill(4), curve.explore(4)), (1, 4), "next it is the others' turn");
        assert_eq!((curve.explore(3), curve.explore(30)), (1, 8), "as long as it pays, twice as many");
        (0..5).for_each(|_| curve.observe(8, us(9000)));
        assert_ne!(curve.explore(30), 16, "eights were no better");
    }

    proptest! {
        #[test]
        fn more_rows_never_take_less(runs in prop::collection::vec((1u32..300, 1u64..5000), 3..200)) {
            let mut curve = Curve::default();
            for (rows, took) in runs {
                curve.observe(rows, us(took));
            }
            let predicted: Vec<_> = (1..400).map(|rows| curve.typical(rows).unwrap()).collect();
            prop_assert!(predicted.is_sorted());
        }

        #[test]
        fn a_large_size_is_rounded_up_by_an_eighth_at_most(rows in 1u32..) {
            let size = size_of(rows);
            prop_assert!(size >= rows && u64::from(size) <= u64::from(rows) * 9 / 8);
        }
    }
}
