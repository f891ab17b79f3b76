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

/// Where that many times as many rows have run as may be enough, there may be a better size between.
const FAR_APART: f32 = 3.0;

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
        let known = waiting.min(self.known_up_to());
        let Some((micros, all)) = self.micros(waiting).zip(self.speed(known)) else { return waiting };
        if micros < UNNOTICED {
            return waiting;
        }
        let waiting = known;
        let smaller = self.points.partition_point(|point| point.rows < waiting as f32);
        let trusted = || self.points[..smaller].iter().filter(|point| point.is_trusted);
        let best = trusted().map(|point| point.speed()).fold(0.0, f32::max);
        let enough = AS_EFFICIENT * if best > CLEARLY_FASTER * all { best } else { all };
        trusted().find(|point| point.speed() >= enough).map_or(waiting, |point| point.rows as u32)
    }

    /// What more rows than that take is a guess, which is off by a lot where two sizes close to each other have run: larger ones wait
    /// until one half as large has, here or, as many values, in the shape that this one is expected to be like.
    fn known_up_to(&self) -> u32 {
        let points = self.points.last().into_iter().chain(self.expected.last());
        let largest = points.map(|point| point.rows.ceil() as u32).max();
        largest.map_or(u32::MAX, |rows| rows.saturating_mul(2))
    }

    /// How many of so many waiting rows to run once in a while: of the sizes that did about as many rows per second as
    /// any when they ran undisturbed, the one that has not run for longest. What looked slow in a noisy moment would
    /// otherwise never run again. Beyond the largest size that was seen it goes on only while that pays.
    pub fn explore(&self, waiting: u32) -> u32 {
        let fitting = || self.fitting(waiting);
        let best = fitting().map(|(rows, recent)| recent.fastest(*rows)).fold(0.0, f32::max);
        let rivals = || fitting().filter(|(rows, recent)| recent.fastest(**rows) >= AS_EFFICIENT * best);
        let largest = self.sizes.keys().next_back().copied().unwrap_or(waiting);
        if largest < waiting && rivals().any(|(rows, _)| *rows == largest) {
            return waiting.min(largest.saturating_mul(2));
        }
        rivals().min_by_key(|(_, recent)| recent.last).map_or(waiting, |(rows, _)| waiting.min(*rows))
    }

    /// How many of so many waiting rows might do as many rows per second as any size does while fewer wait for each other: where there is
    /// room for that between two sizes that were seen, or below the smallest. Each `turn` another of them.
    pub fn between(&self, waiting: u32, turn: u64) -> Option<u32> {
        let waiting_or_more = self.sizes.range(size_of(waiting)..).next();
        let speeds = self
            .fitting(waiting)
            .chain(waiting_or_more)
            .map(|(rows, recent)| recent.fastest(waiting.min(*rows)));
        let enough = AS_EFFICIENT * speeds.fold(0.0, f32::max);
        // From so many rows on they can be as good: more take no less, unless that was an accident.
        let after = self.fitting(waiting).map(|(rows, recent)| match recent.runs {
            ..RUNS_SETTLED => *rows as f32,
            _ => (*rows as f32).max(enough / recent.fastest(1)),
        });
        let (rows, smallest) = self.sizes.first_key_value()?;
        let before = if smallest.fastest(waiting.min(*rows)) >= enough { 1.0 } else { f32::INFINITY };
        let up_to = self.sizes.keys().map(|rows| waiting.min(*rows) as f32);
        let gaps =
            std::iter::once(before).chain(after).zip(up_to).filter(|(from, to)| *to >= FAR_APART * from);
        let middles = gaps.map(|(from, to)| (from * to).sqrt() as u32);
        let unseen: Vec<_> = middles.filter(|rows| !self.sizes.contains_key(&size_of(*rows))).collect();
        let at = turn.checked_rem(unseen.len() as u64)?;
        Some(unseen[at as usize])
    }

    /// Sizes that so many rows are enough for.
    fn fitting(&self, waiting: u32) -> impl Iterator<Item = (&u32, &Recent)> {
        self.sizes.range(..=size_of(waiting))
    }

    /// The size, of those that so many waiting rows are enough for, that has not run for longest, however slow it was: that may
    /// have been the machine, at a time that is over. Or a larger one than any, which never did: beyond one that is slow may be some that
    /// are not.
    pub fn oldest(&self, waiting: u32) -> u32 {
        if let Some(largest) = self.sizes.keys().next_back().filter(|largest| **largest < waiting) {
            return waiting.min(largest.saturating_mul(2));
        }
        let oldest = self.fitting(waiting).min_by_key(|(_, recent)| recent.last);
        oldest.map_or(waiting, |(rows, _)| waiting.min(*rows))
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
mod tests;
