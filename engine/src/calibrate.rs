//! Measures a model once it has passed its trial: how long runs of each size take, which seeds its [`Curve`], and whether the cores
//! do more of its rows as many lanes of one thread or as fewer lanes of several. Decides by measurement alone; takes a fraction of
//! a second, or few runs of what is slow, and gives up on a size rather than take longer. Ways to use all cores are tried by using
//! all cores, which those feel who are answered meanwhile, and who falsify the result: beside them a version that takes as long as
//! one of the same model keeps that one's way.
//!
//! [`Curve`]: crate::curve::Curve

use crate::batcher::Grouping;
use crate::curve::RUNS_SETTLED;
use crate::model::{Model, Version};
use crate::pace::Pace;
use crate::trial::{MadeUp, MadeUpBatch};
use std::collections::BTreeMap;
use std::time::Duration;

/// Sizes are measured for about so long, all rounds together.
const SIZES_TAKE: Duration = Duration::from_millis(400);

/// Each way to use the cores is measured so often, in turns; its best round counts, which was disturbed least.
const WAY_ROUNDS: usize = 3;

/// When the rounds of all ways have taken so long, there is no third one.
const WAYS_TAKE: Duration = Duration::from_secs(2);

/// A round takes so long, and [`WAY_RUNS`] of each lane at least, unless it takes longer than it may.
const WAY_TAKES: Duration = Duration::from_millis(50);
const WAY_TAKES_MAX: Duration = Duration::from_millis(150);
const WAY_RUNS: u32 = 3;

/// Ways are compared at one row if a run of more takes longer than this.
const SLOW: Duration = Duration::from_millis(20);

/// What is done so soon gains nothing from threads that have to be woken, and would keep all lanes for itself.
const QUICK: Duration = Duration::from_millis(1);

/// A run of one that takes as long as another takes at most so many times as long, or as short.
const ALIKE: f64 = 2.0;

/// Of each size.
const RUNS: usize = 5;

/// Rows at which ways to use the cores are compared.
const TYPICAL_ROWS: u32 = 8;

/// With several threads a batch is done sooner, which is worth so much throughput; and cores that would else be idle have
/// to give as much.
const AS_GOOD: f64 = 0.95;

/// What was measured and decided.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Calibration {
    pub(crate) way: Way,
    /// Rows and how long they took, run after run.
    pub(crate) runs: Vec<(u32, Duration)>,
    /// What the free dimensions were meanwhile.
    pub(crate) free: Vec<u64>,
}

/// How a model uses the cores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Way {
    /// Threads of each run.
    pub(crate) threads: usize,
    /// How many lanes' share of the cores that is.
    pub(crate) lanes: usize,
    /// Runs at the same time, at most.
    pub(crate) at_once: usize,
}

/// A version that has been measured, when it was loaded.
pub(crate) struct Precedent {
    grouping: Grouping,
    way: Way,
    curve: Vec<(u32, Duration)>,
}

impl Precedent {
    pub(crate) fn of(version: &Version) -> Self {
        let Version { grouping, way, ref curve, .. } = *version;
        Self { grouping, way, curve: curve.clone() }
    }
}

/// How a model may use the cores.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cores {
    /// Lanes that there are.
    pub(crate) lanes: usize,
    /// Cores that they have between them.
    pub(crate) cores: usize,
    /// Threads of each run, where the configuration says it.
    pub(crate) threads: Option<usize>,
}

/// Measures a model that runs as `grouping` says; `beside` is a version of it that answers meanwhile.
pub(crate) fn calibrate(
    model: &dyn Model,
    grouping: Grouping,
    cores: Cores,
    beside: Option<&Precedent>,
    pace: &Pace,
) -> Calibration {
    let most = match grouping {
        Grouping::Together { max_rows } => max_rows,
        Grouping::Alone | Grouping::Serial => 1,
    };
    let every_lane = |threads| Way { threads, lanes: 1, at_once: cores.lanes };
    let Some(made_up) = MadeUp::new(model) else {
        return Calibration {
            way: every_lane(cores.threads.unwrap_or(1)),
            runs: Vec::new(),
            free: Vec::new(),
        };
    };
    let timed = |way: Way| {
        model.use_threads(way.threads);
        Calibration { way, runs: time(model, &made_up, most, pace), free: made_up.free() }
    };
    if let Some(threads) = cores.threads {
        return timed(every_lane(threads));
    }
    let beside = beside.filter(|beside| beside.grouping == grouping && pace.others_are_answered());
    if let Some(beside) = beside {
        let kept = timed(beside.way);
        if is_alike(&kept.runs, &beside.curve) {
            return kept;
        }
    }
    let (rows, took) = typical(model, &made_up, most, pace);
    let way = if took.is_some_and(|took| took < QUICK) {
        cores.ways(grouping).next().expect("there is a core")
    } else {
        best_way(model, &made_up, grouping, rows, cores, pace)
    };
    timed(way)
}

/// Whether one row takes about as long.
fn is_alike(runs: &[(u32, Duration)], others: &[(u32, Duration)]) -> bool {
    let (Some((1, one)), Some((1, other))) = (runs.first(), others.first()) else { return false };
    let ratio = one.as_secs_f64() / other.as_secs_f64();
    (1.0 / ALIKE..=ALIKE).contains(&ratio)
}

/// Times runs of each size, in rounds as long as there is time, so that a busy moment of the machine does not hit all runs of
/// one size; the fastest counts as often as it was tried, because other versions may be answering meanwhile, or just so often
/// that it counts at all. Sizes for which the first round's time does not suffice are left out, but for two: what one size
/// takes says nothing about batches.
fn time(model: &dyn Model, made_up: &MadeUp<'_>, most: u32, pace: &Pace) -> Vec<(u32, Duration)> {
    let mut taken = Duration::ZERO;
    let sizes = std::iter::successors(Some(1u32), |rows| rows.checked_mul(2)).take_while(|rows| *rows < most);
    let mut fastest: BTreeMap<u32, Duration> = BTreeMap::new();
    let mut run = |rows: u32, batch: &MadeUpBatch<'_>| {
        let (outputs, took) = pace.run(model, &batch.gathered());
        taken += took;
        if outputs.is_ok() {
            fastest.entry(rows).and_modify(|least| *least = took.min(*least)).or_insert(took);
        }
        outputs.is_ok().then_some(taken)
    };
    let mut batches = Vec::new();
    for rows in sizes.chain([most]) {
        let Some(batch) = made_up.batch(rows) else { break };
        let Some(taken) = run(rows, &batch) else { break };
        batches.push((rows, batch));
        if taken > SIZES_TAKE / RUNS as u32 && batches.len() > 1 {
            break;
        }
    }
    let mut rounds = 1;
    while rounds < RUNS {
        rounds += 1;
        if !batches.iter().all(|(rows, batch)| run(*rows, batch).is_some_and(|taken| taken < SIZES_TAKE)) {
            break;
        }
    }
    let times = rounds.max(RUNS_SETTLED);
    fastest.into_iter().flat_map(|run| std::iter::repeat_n(run, times)).collect()
}

/// Rows at which ways are compared, and what a run of so many takes.
fn typical(model: &dyn Model, made_up: &MadeUp<'_>, most: u32, pace: &Pace) -> (u32, Option<Duration>) {
    let rows = most.min(TYPICAL_ROWS);
    model.use_threads(1);
    let mut fastest: Option<Duration> = None;
    if let Some(batch) = made_up.batch(rows) {
        for _ in 0..WAY_ROUNDS {
            let (outputs, took) = pace.run(model, &batch.gathered());
            if outputs.is_err() {
                break;
            }
            fastest = Some(fastest.map_or(took, |least| least.min(took)));
            if took > SLOW {
                break;
            }
        }
    }
    match fastest {
        Some(took) if took < SLOW => (rows, Some(took)),
        Some(_) | None => (1, None),
    }
}

/// The way that does the most rows per second. One of several threads has to be that twice: a busy moment of the machine must
/// not give all lanes to one model for as long as it serves.
fn best_way(
    model: &dyn Model,
    made_up: &MadeUp<'_>,
    grouping: Grouping,
    rows: u32,
    cores: Cores,
    pace: &Pace,
) -> Way {
    let choose = || {
        let mut ways: Vec<(Way, f64)> = cores.ways(grouping).map(|way| (way, 0.0)).collect();
        let mut taken = Duration::ZERO;
        for round in 1..=WAY_ROUNDS {
            for (way, best) in &mut ways {
                model.use_threads(way.threads);
                let (speed, took) = speed(model, made_up, rows, way.at_once, pace);
                *best = best.max(speed);
                taken += took;
            }
            if taken > WAYS_TAKE && round > 1 {
                break;
            }
        }
        tracing::debug!(rows, ?ways, "ways and runs per second");
        fastest(&ways)
    };
    let chosen = choose();
    if chosen.threads == 1 { chosen } else { std::cmp::min_by_key(chosen, choose(), |way| way.threads) }
}

impl Cores {
    /// All ways to use them; those of more threads come later.
    fn ways(self, grouping: Grouping) -> impl Iterator<Item = Way> {
        let of_a_lane = (self.cores / self.lanes).max(1);
        let threads = std::iter::successors(Some(1), |threads| Some(threads * 2));
        threads.take_while(move |threads| *threads <= self.lanes * of_a_lane).map(move |threads| {
            let lanes = threads.div_ceil(of_a_lane);
            let at_once = if grouping == Grouping::Serial { 1 } else { self.lanes / lanes };
            Way { threads, lanes, at_once }
        })
    }
}

/// Of ways and what each does per second: the last that is as good as the best, because it has the most threads.
fn fastest(ways: &[(Way, f64)]) -> Way {
    let (mut chosen, mut best) = ways[0];
    let mut speed = best;
    for (way, runs) in &ways[1..] {
        let takes_more = way.threads * way.at_once > chosen.threads * chosen.at_once;
        best = best.max(*runs);
        if *runs >= AS_GOOD * best && (!takes_more || *runs * AS_GOOD >= speed) {
            (chosen, speed) = (*way, *runs);
        }
    }
    chosen
}

/// Runs per second of so many at the same time, and how long it took to find out.
fn speed(model: &dyn Model, made_up: &MadeUp<'_>, rows: u32, at_once: usize, pace: &Pace) -> (f64, Duration) {
    let Some(batch) = made_up.batch(rows) else { return (0.0, Duration::ZERO) };
    let inputs = batch.gathered();
    let run = || {
        let (outputs, took) = pace.run(model, &inputs);
        outputs.ok().map(|_| took)
    };
    let one = || {
        // The first runs of a thread set up its pool, which a long one does not notice.
        let mut warmed = run()?;
        if warmed < WAY_TAKES_MAX {
            warmed += run()?;
        }
        let (mut runs, mut taken) = (0, Duration::ZERO);
        while taken < WAY_TAKES || (runs < WAY_RUNS && taken < WAY_TAKES_MAX) {
            taken += run()?;
            runs += 1;
        }
        Some((f64::from(runs) / taken.as_secs_f64(), warmed + taken))
    };
    let lanes: Vec<(f64, Duration)> = std::thread::scope(|scope| {
        let runners: Vec<_> = (0..at_once).map(|_| scope.spawn(one)).collect();
        runners.into_iter().filter_map(|runner| runner.join().ok().flatten()).collect()
    });
    let took = lanes.iter().map(|(_, took)| *took).max().unwrap_or_default();
    (lanes.iter().map(|(speed, _)| speed).sum(), took)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scripted::{Scripted, fp32, output_fp32, rows_spec};
    use std::sync::atomic::{AtomicU64, Ordering};

    fn model(took: fn(u64) -> Duration) -> Scripted {
        Scripted::new(rows_spec(&[("x", 4)], &[("y", 4)], 8), move |inputs| {
            std::thread::sleep(took(inputs[0].shape[0]));
            Ok(vec![output_fp32("y", &inputs[0].shape, &fp32(&inputs[0]))])
        })
    }

    #[test]
    fn every_size_is_timed_and_the_curve_follows() {
        let model = model(|rows| Duration::from_micros(200 * rows));
        let cores = Cores { lanes: 2, cores: 2, threads: Some(1) };
        let calibration = calibrate(&model, Grouping::Together { max_rows: 6 }, cores, None, &Pace::alone());
        let sizes: Vec<u32> = calibration.runs.iter().map(|run| run.0).collect();
        assert_eq!(sizes, [1, 2, 4, 6].map(|rows| [rows; RUNS]).concat());
        assert_eq!(calibration.way, Way { threads: 1, lanes: 1, at_once: 2 });
        assert!(
            calibration.runs.iter().all(|(rows, took)| *took >= Duration::from_micros(u64::from(200 * rows)))
        );
    }

    #[test]
    fn of_a_slow_model_two_sizes_are_timed_once_which_tells_what_a_row_costs() {
        let model = model(|_| SIZES_TAKE / 2);
        let cores = Cores { lanes: 2, cores: 2, threads: Some(1) };
        let calibration = calibrate(&model, Grouping::Together { max_rows: 6 }, cores, None, &Pace::alone());
        let sizes: Vec<u32> = calibration.runs.iter().map(|run| run.0).collect();
        assert_eq!(sizes, [1, 2].map(|rows| [rows; RUNS_SETTLED]).concat());
        let mut curve = crate::curve::Curve::default();
        calibration.runs.iter().for_each(|(rows, took)| curve.observe(*rows, *took));
        assert_eq!(curve.efficient(6), Some(6));
    }

    #[test]
    fn what_gains_nothing_from_more_threads_per_run_still_keeps_every_lane_busy() {
        // Sleeping scales with lanes and not with threads.
        let model = model(|_| Duration::from_millis(1));
        let cores = Cores { lanes: 4, cores: 4, threads: None };
        let way = |grouping| calibrate(&model, grouping, cores, None, &Pace::alone()).way;
        assert_eq!(way(Grouping::Together { max_rows: 8 }), Way { threads: 1, lanes: 1, at_once: 4 });
        assert_eq!(way(Grouping::Serial).at_once, 1);
    }

    #[test]
    fn a_single_lane_may_have_all_cores_if_that_is_faster() {
        let ways = |lanes, cores| {
            let cores = Cores { lanes, cores, threads: None };
            cores.ways(Grouping::Alone).map(|way| (way.threads, way.lanes, way.at_once)).collect::<Vec<_>>()
        };
        assert_eq!(ways(1, 4), [(1, 1, 1), (2, 1, 1), (4, 1, 1)]);
        assert_eq!(ways(4, 4), [(1, 1, 4), (2, 2, 2), (4, 4, 1)]);
        assert_eq!(ways(2, 5), [(1, 1, 2), (2, 1, 2), (4, 2, 1)]);
        assert_eq!(ways(3, 1), [(1, 1, 3), (2, 2, 1)], "more lanes than cores are the configuration's will");
        let threads = |lanes, speeds: &[f64]| {
            let ways =
                Cores { lanes, cores: 4, threads: None }.ways(Grouping::Alone).zip(speeds.iter().copied());
            fastest(&ways.collect::<Vec<_>>()).threads
        };
        assert_eq!(threads(1, &[100.0, 180.0, 300.0]), 4);
        assert_eq!(threads(1, &[100.0, 180.0, 182.0]), 2, "two more cores for nothing");
        assert_eq!(threads(1, &[100.0, 103.0, 98.0]), 1);
        assert_eq!(threads(4, &[400.0, 396.0, 350.0]), 2, "as many cores, and a batch is done sooner");
    }

    #[test]
    fn beside_others_what_takes_as_long_keeps_the_way_of_its_precedent() {
        let model = model(|_| Duration::from_millis(2));
        let grouping = Grouping::Together { max_rows: 8 };
        let way = |answered: bool, one_row: Duration| {
            let before = Precedent {
                grouping,
                way: Way { threads: 2, lanes: 2, at_once: 1 },
                curve: vec![(1, one_row), (8, Duration::from_secs(1))],
            };
            let begun = AtomicU64::new(0);
            let pace = Pace::beside(move || begun.fetch_add(u64::from(answered), Ordering::Relaxed));
            calibrate(&model, grouping, Cores { lanes: 2, cores: 2, threads: None }, Some(&before), &pace).way
        };
        let measured = Way { threads: 1, lanes: 1, at_once: 2 };
        assert_eq!(way(true, Duration::from_millis(2)), Way { threads: 2, lanes: 2, at_once: 1 });
        assert_eq!(way(false, Duration::from_millis(2)), measured, "nobody is disturbed");
        assert_eq!(way(true, Duration::from_millis(30)), measured, "it is another kind of model");
    }
}
