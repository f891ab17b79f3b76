//! Measures a model once it has passed its trial: how long runs of each size take, which seeds its [`Curve`], and
//! whether the cores do more of its rows as many lanes of one thread or as fewer lanes of several. Decides by
//! measurement alone; takes a fraction of a second, and gives up on a size rather than take longer.
//!
//! [`Curve`]: crate::curve::Curve

use crate::batcher::Grouping;
use crate::model::Model;
use crate::trial::{MadeUp, MadeUpBatch};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Sizes are measured for about so long, all rounds together.
const SIZES_TAKE: Duration = Duration::from_millis(400);

/// Each way to use the cores is measured so often, in turns; its best round counts, which was disturbed least.
const WAY_ROUNDS: usize = 3;

/// A round takes so long, and [`WAY_RUNS`] of each lane at least.
const WAY_TAKES: Duration = Duration::from_millis(50);
const WAY_RUNS: u64 = 3;

/// Ways are compared at one row if a run of more takes longer than this.
const SLOW: Duration = Duration::from_millis(20);

/// Of each size.
const RUNS: usize = 5;

/// Rows at which ways to use the cores are compared.
const TYPICAL_ROWS: u32 = 8;

/// With several threads a batch is done sooner, which is worth so much throughput.
const AS_GOOD: f64 = 0.95;

/// What was measured and decided.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Calibration {
    /// Threads of each run.
    pub(crate) threads: usize,
    /// Runs at the same time.
    pub(crate) at_once: usize,
    /// Rows and how long they took, run after run.
    pub(crate) runs: Vec<(u32, Duration)>,
    /// What the free dimensions were meanwhile.
    pub(crate) free: Vec<u64>,
}

/// How a model may use the cores.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cores {
    /// Lanes that there are.
    pub(crate) lanes: usize,
    /// Threads of each run, where the configuration says it.
    pub(crate) threads: Option<usize>,
}

/// Measures a model that runs as `grouping` says.
pub(crate) fn calibrate(model: &dyn Model, grouping: Grouping, cores: Cores) -> Calibration {
    let most = match grouping {
        Grouping::Together { max_rows } => max_rows,
        Grouping::Alone | Grouping::Serial => 1,
    };
    let Some(made_up) = MadeUp::new(model) else {
        let (threads, at_once) = (cores.threads.unwrap_or(1), cores.lanes);
        return Calibration { threads, at_once, runs: Vec::new(), free: Vec::new() };
    };
    let (threads, at_once) = match cores.threads {
        Some(threads) => (threads, cores.lanes),
        None => best_way(model, &made_up, grouping, typical_rows(model, &made_up, most), cores.lanes),
    };
    model.use_threads(threads);
    Calibration { threads, at_once, runs: time(model, &made_up, most), free: made_up.free() }
}

/// Times runs of each size, in rounds, so that a busy moment of the machine does not hit all runs of one size; the fastest
/// counts as often as it was tried, because other versions may be answering meanwhile. Sizes for which the first
/// round's time does not suffice are left out.
fn time(model: &dyn Model, made_up: &MadeUp<'_>, most: u32) -> Vec<(u32, Duration)> {
    let until = Instant::now() + SIZES_TAKE / RUNS as u32;
    let sizes = std::iter::successors(Some(1u32), |rows| rows.checked_mul(2)).take_while(|rows| *rows < most);
    let mut fastest: BTreeMap<u32, Duration> = BTreeMap::new();
    let mut run = |rows: u32, batch: &MadeUpBatch<'_>| {
        let began = Instant::now();
        let ran = model.run(&batch.gathered()).is_ok();
        if ran {
            let took = began.elapsed();
            fastest.entry(rows).and_modify(|least| *least = took.min(*least)).or_insert(took);
        }
        ran
    };
    let mut batches = Vec::new();
    for rows in sizes.chain([most]) {
        let batch = if Instant::now() < until || batches.is_empty() { made_up.batch(rows) } else { None };
        let Some(batch) = batch.filter(|batch| run(rows, batch)) else { break };
        batches.push((rows, batch));
    }
    for _ in 1..RUNS {
        if !batches.iter().all(|(rows, batch)| run(*rows, batch)) {
            break;
        }
    }
    fastest.into_iter().flat_map(|run| [run; RUNS]).collect()
}

fn typical_rows(model: &dyn Model, made_up: &MadeUp<'_>, most: u32) -> u32 {
    let rows = most.min(TYPICAL_ROWS);
    let began = Instant::now();
    let ran = made_up.batch(rows).is_some_and(|batch| model.run(&batch.gathered()).is_ok());
    if ran && began.elapsed() < SLOW { rows } else { 1 }
}

/// Threads of each run, and runs at the same time, that do the most rows per second.
fn best_way(
    model: &dyn Model,
    made_up: &MadeUp<'_>,
    grouping: Grouping,
    rows: u32,
    lanes: usize,
) -> (usize, usize) {
    let threads =
        std::iter::successors(Some(1), |threads| Some(threads * 2)).take_while(|threads| *threads <= lanes);
    let at_once = |threads| if grouping == Grouping::Serial { 1 } else { lanes / threads };
    let mut ways: Vec<(usize, usize, f64)> =
        threads.map(|threads| (threads, at_once(threads), 0.0)).collect();
    for _ in 0..WAY_ROUNDS {
        for (threads, at_once, best) in &mut ways {
            model.use_threads(*threads);
            *best = best.max(speed(model, made_up, rows, *at_once));
        }
    }
    tracing::debug!(rows, ?ways, "threads, runs at once, runs per second");
    let best = ways.iter().map(|way| way.2).fold(0.0, f64::max);
    // The last of those that are as good: it has the most threads.
    let way = ways.iter().rfind(|way| way.2 >= AS_GOOD * best).expect("the best is as good as itself");
    (way.0, way.1)
}

/// Runs per second of so many at the same time.
fn speed(model: &dyn Model, made_up: &MadeUp<'_>, rows: u32, at_once: usize) -> f64 {
    let Some(batch) = made_up.batch(rows) else { return 0.0 };
    let done = AtomicU64::new(0);
    let inputs = batch.gathered();
    // The first runs of a thread set up its pool.
    let warm = || model.run(&inputs).is_ok();
    let began = std::thread::scope(|scope| {
        let runners: Vec<_> = (0..at_once)
            .map(|_| {
                scope.spawn(|| {
                    let is_warm = warm() && warm();
                    let began = Instant::now();
                    let mut own = 0;
                    while is_warm
                        && (own < WAY_RUNS || began.elapsed() < WAY_TAKES)
                        && model.run(&inputs).is_ok()
                    {
                        own += 1;
                    }
                    done.fetch_add(own, Ordering::Relaxed);
                    began
                })
            })
            .collect();
        runners.into_iter().filter_map(|runner| runner.join().ok()).min()
    });
    began.map_or(0.0, |began| done.load(Ordering::Relaxed) as f64 / began.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scripted::{Scripted, fp32, output_fp32, rows_spec};

    fn model(took: fn(u64) -> Duration) -> Scripted {
        Scripted::new(rows_spec(&[("x", 4)], &[("y", 4)], 8), move |inputs| {
            std::thread::sleep(took(inputs[0].shape[0]));
            Ok(vec![output_fp32("y", &inputs[0].shape, &fp32(&inputs[0]))])
        })
    }

    #[test]
    fn every_size_is_timed_and_the_curve_follows() {
        let model = model(|rows| Duration::from_micros(200 * rows));
        let cores = Cores { lanes: 2, threads: Some(1) };
        let calibration = calibrate(&model, Grouping::Together { max_rows: 6 }, cores);
        let sizes: Vec<u32> = calibration.runs.iter().map(|run| run.0).collect();
        assert_eq!(sizes, [1, 2, 4, 6].map(|rows| [rows; RUNS]).concat());
        assert_eq!((calibration.at_once, calibration.threads), (2, 1));
        assert!(
            calibration.runs.iter().all(|(rows, took)| *took >= Duration::from_micros(u64::from(200 * rows)))
        );
    }

    #[test]
    fn what_gains_nothing_from_more_threads_per_run_still_keeps_every_lane_busy() {
        // Sleeping scales with lanes and not with threads.
        let model = model(|_| Duration::from_millis(1));
        let calibration =
            calibrate(&model, Grouping::Together { max_rows: 8 }, Cores { lanes: 4, threads: None });
        assert_eq!((calibration.threads, calibration.at_once), (1, 4));
        let serial = calibrate(&model, Grouping::Serial, Cores { lanes: 4, threads: None });
        assert_eq!(serial.at_once, 1);
    }
}
