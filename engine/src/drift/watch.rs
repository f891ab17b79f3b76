//! What is known of some features of a version, row by row: the reference, the window that is being counted, and how far
//! apart the last whole window was. Decides when what begins; time is an argument, and rows are whatever the caller says.
//!
//! ```text
//!   256 rows set the bins ─▶ the next 1024 are the reference ─▶ window ─▶ compared ─▶ window ─▶ compared ..
//! ```
//!
//! Only whole windows are compared, each once: looking at one again and again while it grows would give chance as many
//! chances.

use super::divergence::Divergence;
use super::sketch::Sketch;
use std::time::{Duration, Instant};

/// Rows that set the bins of all features.
pub(crate) const BINNED_ROWS: u32 = 256;

/// Rows of the reference after that.
pub(crate) const REFERENCE_ROWS: u32 = 1024;

/// A window has as many rows, and lasts as long, ..
pub(crate) const WINDOW_ROWS: u32 = 512;
const WINDOW: Duration = Duration::from_secs(5);

/// .. or it lasts so long, however few they are.
const WINDOW_MAX: Duration = Duration::from_secs(3600);

/// A window of rows that are the reference's like shows a divergence in one of so many. There are at most 17,280 in a day.
pub(crate) const CHANCE: f64 = 1e-7;

/// Features that are watched together.
#[derive(Debug)]
pub(crate) struct Watch {
    phase: Phase,
    /// Rows that set the bins, and those of the reference.
    first: [u32; 2],
    chance: f64,
    /// Rows in this phase, or window.
    rows: u32,
    began: Option<Instant>,
    latest: Option<Compared>,
    /// All rows so far.
    pub(crate) seen: u64,
    /// Windows that were compared.
    pub(crate) windows: u64,
    /// The reference is whole, and nobody was given it yet.
    is_news: bool,
}

#[derive(Debug)]
enum Phase {
    /// The values by feature.
    Binning(Vec<Vec<f64>>),
    Counting(Vec<Sketch>),
    Comparing {
        reference: Vec<Sketch>,
        window: Vec<Sketch>,
    },
}

/// A whole window.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Compared {
    /// Its rows.
    pub(crate) rows: u32,
    pub(crate) began: Instant,
    pub(crate) ended: Instant,
    /// By feature.
    pub(crate) divergences: Vec<Divergence>,
}

impl Watch {
    /// That nothing is known of so many features. In one of `1 / chance` windows, at most, chance makes any of them seem
    /// to diverge.
    pub(crate) fn new(features: usize, chance: f64) -> Self {
        let values = || Vec::with_capacity(BINNED_ROWS as usize);
        Self {
            phase: Phase::Binning((0..features).map(|_| values()).collect()),
            first: [BINNED_ROWS, REFERENCE_ROWS],
            chance: chance / features.max(1) as f64,
            rows: 0,
            began: None,
            latest: None,
            seen: 0,
            windows: 0,
            is_news: false,
        }
    }

    /// The reference is to be made of so many rows, which somebody else knows.
    pub(crate) fn declare(&mut self, rows: u32) {
        let binned = (rows / 5).clamp(1, BINNED_ROWS);
        self.first = [binned, rows.saturating_sub(binned)];
    }

    /// The value of a feature in the row that is being read; a row may lack some.
    pub(crate) fn put(&mut self, feature: usize, value: f64) {
        match &mut self.phase {
            Phase::Binning(values) => values[feature].push(value),
            Phase::Counting(sketches) | Phase::Comparing { window: sketches, .. } => {
                sketches[feature].count(value);
            }
        }
    }

    /// The row is read.
    pub(crate) fn end_row(&mut self, now: Instant) {
        self.rows += 1;
        self.seen += 1;
        let began = *self.began.get_or_insert(now);
        match &mut self.phase {
            Phase::Binning(values) if self.rows >= self.first[0] => {
                self.phase = Phase::Counting(values.iter_mut().map(Sketch::by).collect());
                (self.rows, self.began) = (0, None);
            }
            Phase::Counting(reference) if self.rows >= self.first[1] => {
                let window = reference.iter().map(Sketch::emptied).collect();
                self.phase = Phase::Comparing { reference: std::mem::take(reference), window };
                (self.rows, self.began) = (0, None);
                self.is_news = true;
            }
            Phase::Comparing { reference, window } if is_whole(self.rows, now - began) => {
                let pairs = reference.iter().zip(window.iter());
                let between = |(one, other): (&Sketch, &Sketch)| {
                    Divergence::between(one.bins(), other.bins(), self.chance)
                };
                let divergences = pairs.map(between).collect();
                self.latest = Some(Compared { rows: self.rows, began, ended: now, divergences });
                window.iter_mut().for_each(Sketch::empty);
                self.windows += 1;
                (self.rows, self.began) = (0, None);
            }
            Phase::Binning(_) | Phase::Counting(_) | Phase::Comparing { .. } => {}
        }
    }

    /// Goes on with a reference that was learned before, of as many features.
    pub(crate) fn go_on(&mut self, reference: Vec<Sketch>) {
        let window = reference.iter().map(Sketch::emptied).collect();
        self.phase = Phase::Comparing { reference, window };
        (self.rows, self.began) = (0, None);
    }

    pub(crate) fn features(&self) -> usize {
        match &self.phase {
            Phase::Binning(values) => values.len(),
            Phase::Counting(sketches) | Phase::Comparing { reference: sketches, .. } => sketches.len(),
        }
    }

    /// The reference, once it is whole.
    pub(crate) fn reference(&self) -> Option<&[Sketch]> {
        match &self.phase {
            Phase::Binning(_) | Phase::Counting(_) => None,
            Phase::Comparing { reference, .. } => Some(reference),
        }
    }

    /// Whether a reference has been learned since this was last asked.
    pub(crate) fn take_news(&mut self) -> bool {
        std::mem::take(&mut self.is_news)
    }

    /// Whether there is a reference.
    pub(crate) fn has_reference(&self) -> bool {
        self.reference().is_some()
    }

    /// What a feature was in the rows that set its bins.
    #[cfg(test)]
    pub(crate) fn values(&self, feature: usize) -> &[f64] {
        match &self.phase {
            Phase::Binning(values) => &values[feature],
            Phase::Counting(_) | Phase::Comparing { .. } => panic!("the bins are set"),
        }
    }

    /// The last whole window.
    pub(crate) fn latest(&self) -> Option<&Compared> {
        self.latest.as_ref()
    }
}

fn is_whole(rows: u32, lasted: Duration) -> bool {
    (rows >= WINDOW_ROWS && lasted >= WINDOW) || lasted >= WINDOW_MAX || rows == u32::MAX
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Splitmix: every test draws the same.
    struct Dice(u64);

    impl Dice {
        fn next(&mut self) -> f64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut bits = self.0;
            bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((bits ^ bits >> 31) >> 11) as f64 / (1_u64 << 53) as f64
        }

        fn normal(&mut self) -> f64 {
            (-2.0 * (1.0 - self.next()).ln()).sqrt() * (std::f64::consts::TAU * self.next()).cos()
        }
    }

    /// A version with one feature whose rows come at this pace.
    struct World {
        watch: Watch,
        now: Instant,
        gap: Duration,
    }

    impl World {
        fn new(chance: f64) -> Self {
            Self {
                watch: Watch::new(1, chance),
                now: Instant::now(),
                gap: WINDOW / WINDOW_ROWS + Duration::from_micros(50),
            }
        }

        fn row(&mut self, value: f64) {
            self.now += self.gap;
            self.watch.put(0, value);
            self.watch.end_row(self.now);
        }

        fn learn(&mut self, mut value: impl FnMut() -> f64) {
            (0..BINNED_ROWS + REFERENCE_ROWS).for_each(|_| self.row(value()));
            assert!(self.watch.has_reference() && self.watch.windows == 0);
        }

        /// The next whole window.
        fn window(&mut self, mut value: impl FnMut() -> f64) -> Divergence {
            let before = self.watch.windows;
            while self.watch.windows == before {
                self.row(value());
            }
            self.watch.latest().unwrap().divergences[0]
        }
    }

    type Kind = fn(&mut Dice) -> f64;

    /// Kinds of features: amounts with long tails, classes, constants, mostly zeros, NaN now and then.
    fn kinds() -> [Kind; 6] {
        [
            |dice| dice.normal(),
            |dice| dice.normal().exp(),
            |dice| (dice.next() * 10.0).floor(),
            |_| 7.0,
            |dice| if dice.next() < 0.6 { 0.0 } else { dice.normal() },
            |dice| if dice.next() < 0.1 { f64::NAN } else { (dice.next() * 30_000.0).floor() },
        ]
    }

    #[test]
    fn rows_like_those_of_the_reference_show_a_divergence_no_more_often_than_declared() {
        let (mut windows, mut shown, mut wrong) = (0, 0, 0);
        for (at, kind) in kinds().into_iter().enumerate() {
            // Each reference meets ten windows only: what differs from an odd one says so again and again.
            for seed in 0..170 {
                let mut dice = Dice(1000 * at as u64 + seed);
                let mut world = World::new(0.01);
                world.learn(|| kind(&mut dice));
                for _ in 0..10 {
                    let found = world.window(|| kind(&mut dice));
                    windows += 1;
                    shown += u32::from(found.least > 0.0);
                    wrong += u32::from(found.most <= 0.0 || found.most > 0.05);
                }
            }
        }
        assert!(windows >= 10_000 && shown <= windows / 100, "{shown} of {windows}");
        assert_eq!(wrong, 0, "of {windows} windows of 512 rows or so");
    }

    #[test]
    fn at_the_chance_in_force_none_of_ten_thousand_windows_does() {
        let mut shown = 0;
        for seed in 0..1000 {
            let mut dice = Dice(seed);
            let mut world = World::new(CHANCE);
            world.learn(|| dice.normal());
            shown += (0..10).filter(|_| world.window(|| dice.normal()).least > 0.0).count();
        }
        assert_eq!(shown, 0);
    }

    #[test]
    fn a_mean_that_has_moved_by_one_standard_deviation_is_found_within_one_window() {
        let found = (0..200).filter(|seed| {
            let mut dice = Dice(*seed);
            let mut world = World::new(CHANCE);
            world.learn(|| dice.normal());
            let found = world.window(|| dice.normal() + 1.0);
            assert!((0.08..0.25).contains(&found.bits), "{found:?}");
            found.least > 0.0
        });
        assert_eq!(found.count(), 200, "each within {WINDOW_ROWS} rows");
    }

    #[test]
    fn the_truth_lies_between_least_and_most() {
        // Of two normal distributions with means one standard deviation apart, seen through eight even bins.
        let mut dice = Dice(1);
        let mut large = World::new(CHANCE);
        large.learn(|| dice.normal());
        let outside = (0..500).filter(|_| {
            let found = large.window(|| dice.normal() + 1.0);
            !(found.least <= 0.15 && 0.15 <= found.most)
        });
        assert!(outside.count() <= 5);
    }

    #[test]
    fn few_rows_say_little_and_say_so() {
        let mut dice = Dice(3);
        let mut world = World { gap: WINDOW_MAX / 20, ..World::new(CHANCE) };
        world.learn(|| dice.normal());
        let found = world.window(|| dice.normal() + 1.0);
        assert!(world.watch.latest().unwrap().rows <= 21);
        assert_eq!(found.least, 0.0, "{found:?}");
        assert!(found.most > 0.3, "{found:?}");
    }

    #[test]
    fn what_was_constant_and_is_not_any_more_and_what_turns_into_nan_is_seen() {
        for (before, after) in
            [(7.0, 7.1), (7.0, -7.0), (0.0, f64::NAN), (1.0, f64::INFINITY), (f64::NAN, 1.0)]
        {
            let mut world = World::new(CHANCE);
            world.learn(|| before);
            assert_eq!(world.window(|| before).least, 0.0, "{before}");
            let found = world.window(|| after);
            assert!(found.least > 0.5, "{before} {after}: {found:?}");
        }
    }

    /// Another form of the model, or another number of rows that run together, gives other last bits.
    #[test]
    fn last_bits_are_no_drift_whatever_the_values_are() {
        let again: [Kind; 5] = [
            |dice| ((dice.next() * 10.0).floor() + 0.5).sqrt() / 4.0,
            |dice| (-(dice.next() * 40.0).floor() / 2.0).exp(),
            |dice| (dice.next() * 3.0).floor() * 1e7,
            |dice| if dice.next() < 0.9 { 0.0 } else { 1.0 },
            |_| 0.0,
        ];
        let bits: [fn(f64, &mut Dice) -> f64; 6] = [
            |value, _| value,
            |value, _| f64::from((value as f32).next_up()),
            |value, _| f64::from((value as f32).next_down()),
            |value, _| value * (1.0 + 1e-6),
            |value, _| value * (1.0 - 1e-6),
            |value, dice| value * (1.0 + (dice.next() - 0.5) * 2e-6),
        ];
        for (at, kind) in kinds().into_iter().chain(again).enumerate() {
            // What was learned is rounded alike, or not.
            for (before, after) in (0..6).flat_map(|after| [(0, after), (5, after)]) {
                let mut dice = Dice(at as u64);
                let mut world = World::new(CHANCE);
                world.learn(|| bits[before](f64::from(kind(&mut dice) as f32), &mut Dice(dice.0)));
                for _ in 0..3 {
                    let found =
                        world.window(|| bits[after](f64::from(kind(&mut dice) as f32), &mut Dice(dice.0)));
                    assert!(found.least == 0.0 && found.bits < 0.05, "{at} {before} {after}: {found:?}");
                }
            }
        }
    }

    #[test]
    fn small_moves_of_what_is_exact_are_found() {
        let flag = |dice: &mut Dice| usize::from(dice.next() < 0.5);
        // To which of two values either is moved.
        for (before, after) in [
            ([0.0, 1.0], [0.1, 0.9]),
            ([200_000.0, 200_001.0], [200_001.0, 200_002.0]),
            ([0.25, 0.25], [0.26, 0.26]),
        ] {
            let (mut dice, mut world) = (Dice(5), World::new(CHANCE));
            world.learn(|| before[flag(&mut dice)]);
            let found = world.window(|| after[flag(&mut dice)]);
            assert!(found.least > 0.05, "{found:?}");
        }
    }

    #[test]
    fn a_window_has_enough_rows_and_lasts_long_enough() {
        let mut world = World::new(CHANCE);
        world.learn(|| 1.0);
        world.gap = Duration::from_micros(100);
        world.window(|| 1.0);
        assert_eq!(world.watch.latest().unwrap().rows, 50_001, "of five seconds");
    }

    proptest! {
        #[test]
        fn any_values_give_numbers_in_order(values in prop::collection::vec(any::<f64>(), 1..40), seed: u64) {
            let mut dice = Dice(seed);
            let mut world = World::new(CHANCE);
            let mut value = || values[(dice.next() * values.len() as f64) as usize];
            world.learn(&mut value);
            let found = world.window(&mut value);
            prop_assert!(0.0 <= found.least && found.least <= found.bits && found.bits <= found.most && found.most <= 1.0, "{:?}", found);
        }
    }
}
