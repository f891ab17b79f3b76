//! Tries faster forms of a model before it serves, and keeps the one that is measurably faster and gives the same
//! answers. Decides by measurement at the batch sizes in use, on made-up input; a form that fails, differs or gains
//! nothing is dropped, and the model serves as it was loaded.

use crate::model::{Model, Optimisation, Output, Tolerance};
use crate::pace::Pace;
use crate::trial::MadeUp;
use crate::values::apart;
use std::fmt;
use std::time::Duration;

/// Of each form at each size, taken in turns, so that a busy moment of the machine hits all of them. The shortest
/// counts: it is the one that was disturbed least.
const ROUNDS: usize = 7;

/// When its runs have taken so long, no more are made of a size of which they leave no doubt,
const TAKE: Duration = Duration::from_millis(500);

/// and when they have taken so long, none of any.
const TAKE_MAX: Duration = Duration::from_secs(5);

/// libtorch profiles the first runs and compiles in the next.
const WARM_UPS: usize = 3;

/// A size at which a second run, too, takes longer than this is left out, and so are all larger ones; the first never is.
const SLOW: Duration = Duration::from_millis(100);

/// Below this a gain may be noise.
const GAIN_MIN: f64 = 1.03;

/// No size in use may become slower.
const LOSS_MAX: f64 = 1.0;

/// What came of the attempts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// The form that serves; `None` if it is the one that was loaded.
    pub kept: Option<Optimisation>,
    /// Microseconds per row by batch size: as loaded, and as it serves.
    pub per_row: Vec<(u32, f64, f64)>,
    /// The largest difference between an answer of the two.
    pub error_max: f64,
}

/// The best form of `model` that `passes`, if that is not the model itself; it runs batches of at most `most` rows. Only a form
/// that would be kept is asked to pass, with the report on it.
pub fn optimise(
    model: &dyn Model,
    most: u32,
    pace: &Pace,
    passes: &dyn Fn(&dyn Model, &Report) -> bool,
) -> (Option<Box<dyn Model>>, Report) {
    let Some(made_up) = MadeUp::new(model) else { return Default::default() };
    let sizes = sizes(model, &made_up, most, pace);
    let mut best: (Option<Box<dyn Model>>, Report) = Default::default();
    let may = |optimisation: &Optimisation| *optimisation != Optimisation::Bfloat16 || model.spec().bfloat16;
    for optimisation in Optimisation::ALL.into_iter().filter(may) {
        let tried = model.optimised(optimisation).and_then(|other| {
            let error_max = compare([model, &*other], &made_up, &sizes, pace)?;
            Ok((measure([model, &*other], &made_up, &sizes, pace), other, error_max))
        });
        match tried {
            Ok((per_row, other, error_max)) => {
                let gain = gain(&per_row);
                tracing::debug!(%optimisation, gain, error_max, "tried");
                let gains =
                    gain > GAIN_MIN && per_row.iter().all(|(_, before, after)| before / after >= LOSS_MAX);
                // What each was faster than at its own time tells little of the two.
                let beats = |best: &dyn Model| {
                    self::gain(&measure([best, &*other], &made_up, &sizes, pace)) > GAIN_MIN
                };
                let is_better = gains && best.0.as_deref().is_none_or(beats);
                let report = Report { kept: Some(optimisation), per_row, error_max };
                if is_better && passes(&*other, &report) {
                    best = (Some(other), report);
                }
            }
            Err(why) => tracing::debug!(%optimisation, "not taken: {why}"),
        }
    }
    best
}

/// How many times as fast the other is, over all sizes.
fn gain(per_row: &[(u32, f64, f64)]) -> f64 {
    let all = per_row.iter().map(|(_, before, after)| (before / after).ln());
    (all.sum::<f64>() / per_row.len().max(1) as f64).exp()
}

/// Batch sizes at which forms are compared.
fn sizes(model: &dyn Model, made_up: &MadeUp<'_>, most: u32, pace: &Pace) -> Vec<u32> {
    let mut sizes = Vec::new();
    for rows in
        [1, 8, 32].into_iter().filter(|rows| *rows == 1 || *rows < most).chain((most > 1).then_some(most))
    {
        let Some(batch) = made_up.batch(rows) else { break };
        let takes = || {
            let (outputs, took) = pace.run(model, &batch.gathered());
            outputs.ok().map(|_| took)
        };
        // The first run of a size may be spent on choosing kernels for it.
        let is_fast = |took: Duration| rows == 1 || took <= SLOW;
        match takes() {
            Some(took) if is_fast(took) || takes().is_some_and(is_fast) => sizes.push(rows),
            Some(_) | None => break,
        }
    }
    sizes
}

/// The largest difference between answers to the same rows, if it is tolerable.
fn compare(
    [model, other]: [&dyn Model; 2],
    made_up: &MadeUp<'_>,
    sizes: &[u32],
    pace: &Pace,
) -> Result<f64, String> {
    let tolerance = model.spec().tolerance;
    let mut largest = 0f64;
    for batch in sizes.iter().filter_map(|rows| made_up.batch(*rows)) {
        let expected = pace.run(model, &batch.gathered()).0.map_err(|error| error.message)?;
        for _ in 0..WARM_UPS {
            let got = pace.run(other, &batch.gathered()).0.map_err(|error| error.message)?;
            if got.len() != expected.len() {
                return Err("another number of outputs".into());
            }
            for (expected, got) in expected.iter().zip(&got) {
                largest = largest.max(distance(expected, got, tolerance)?);
            }
        }
    }
    Ok(largest)
}

fn distance(expected: &Output, got: &Output, tolerance: Tolerance) -> Result<f64, String> {
    if (expected.datatype, &expected.shape) != (got.datatype, &got.shape) {
        return Err(format!("output `{}` has another form", expected.name));
    }
    let (largest, exceeds) = apart(expected.datatype, &expected.bytes, &got.bytes, tolerance);
    if exceeds { Err(format!("output `{}` differs by {largest:e}", expected.name)) } else { Ok(largest) }
}

/// Microseconds per row of both, by batch size.
fn measure(
    [model, other]: [&dyn Model; 2],
    made_up: &MadeUp<'_>,
    sizes: &[u32],
    pace: &Pace,
) -> Vec<(u32, f64, f64)> {
    let mut per_row = Vec::new();
    for rows in sizes.iter().copied() {
        let Some(batch) = made_up.batch(rows) else { break };
        let inputs = batch.gathered();
        let mut taken = Duration::ZERO;
        let mut time = |model: &dyn Model| {
            let (outputs, took) = pace.run(model, &inputs);
            taken += took;
            (if outputs.is_ok() { took.as_secs_f64() * 1e6 / f64::from(rows) } else { f64::INFINITY }, taken)
        };
        let (mut before, mut after) = (Times::NONE, Times::NONE);
        for round in 1..=ROUNDS {
            before.note(time(model).0);
            let (last, taken) = time(other);
            after.note(last);
            if taken > TAKE_MAX || (taken > TAKE && round > 1 && leave_no_doubt(before, after)) {
                break;
            }
        }
        per_row.push((rows, before.shortest, after.shortest));
    }
    per_row
}

/// What runs of one form have taken.
#[derive(Clone, Copy)]
struct Times {
    shortest: f64,
    longest: f64,
}

impl Times {
    const NONE: Self = Self { shortest: f64::INFINITY, longest: 0.0 };

    fn note(&mut self, took: f64) {
        (self.shortest, self.longest) = (self.shortest.min(took), self.longest.max(took));
    }
}

/// Whether it does not matter which run of the one is compared with which of the other.
fn leave_no_doubt(before: Times, after: Times) -> bool {
    before.shortest / after.longest > GAIN_MIN || before.longest / after.shortest < GAIN_MIN
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(kept) = self.kept else { return f.write_str("as loaded") };
        write!(f, "{kept}:")?;
        for (rows, before, after) in &self.per_row {
            let gain = before / after;
            let [before, after] = [before, after].map(|micros| micros / 1e3);
            write!(f, " {gain:.2}x at {rows} ({before:.3} to {after:.3} ms per row),")?;
        }
        write!(f, " largest difference {:.1e}", self.error_max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Gathered, ModelError};
    use crate::pace::world;
    use crate::scripted::{Scripted, fp32, output_fp32, rows_spec};
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn model(micros: u64, offset: f32) -> Scripted {
        Scripted::new(rows_spec(&[("x", 4)], &[("y", 4)], 8), move |inputs: &[Gathered<'_>]| {
            std::thread::sleep(Duration::from_micros(micros));
            let y: Vec<f32> = fp32(&inputs[0]).iter().map(|x| x + offset).collect();
            Ok(vec![output_fp32("y", &inputs[0].shape, &y)])
        })
    }

    fn optimise_any(plain: &Scripted) -> (Option<Box<dyn Model>>, Report) {
        optimise(plain, 8, &Pace::alone(), &|_, _| true)
    }

    fn kept(plain: Scripted) -> Option<Optimisation> {
        optimise_any(&plain).1.kept
    }

    #[test]
    fn where_the_fastest_form_does_not_pass_the_next_best_is_kept() {
        use Optimisation::*;
        for (first, last) in [(Freeze, Inference), (Inference, Freeze)] {
            let plain = model(4000, 0.0)
                .with_form(first, || Ok(model(2000, 0.0)))
                .with_form(last, || Ok(model(500, 0.0)));
            let passes = |_: &dyn Model, report: &Report| report.kept != Some(last);
            let (form, report) = optimise(&plain, 8, &Pace::alone(), &passes);
            assert_eq!((form.is_some(), report.kept), (true, Some(first)), "{report}");
        }
    }

    #[test]
    fn of_two_forms_that_is_kept_which_is_faster_at_the_same_time() {
        use Optimisation::*;
        let form = |millis: fn(usize) -> u64| {
            let runs = AtomicUsize::new(0);
            Scripted::new(rows_spec(&[("x", 4)], &[("y", 4)], 1), move |inputs| {
                world::advance(Duration::from_millis(millis(runs.fetch_add(1, Ordering::Relaxed))));
                Ok(vec![output_fp32("y", &inputs[0].shape, &fp32(&inputs[0]))])
            })
        };
        let kept = |plain, freeze: fn(usize) -> u64, inference: fn(usize) -> u64| {
            let plain = form(plain)
                .with_form(Freeze, move || Ok(form(freeze)))
                .with_form(Inference, move || Ok(form(inference)));
            let (_, report) = optimise(&plain, 1, &Pace::in_a_world(), &|_, _| true);
            report.to_string().split_once(" (").unwrap().0.to_owned()
        };
        // The machine is busy while one of them is tried, and happens to disturb the original alone.
        let with_the_first = |run| if run < 4 { 400 } else { 300 };
        assert_eq!(kept(with_the_first, |_| 280, |_| 250), "optimised for inference: 1.20x at 1");
        let with_the_second = |run| if run < 4 { 300 } else { 600 };
        assert_eq!(kept(with_the_second, |_| 250, |_| 280), "frozen: 1.20x at 1");
        assert_eq!(kept(|_| 300, |_| 255, |_| 250), "frozen: 1.18x at 1", "that may be noise");
    }

    #[test]
    fn the_fastest_form_that_gives_the_same_answers_is_kept() {
        use Optimisation::*;
        let plain = model(3000, 0.0)
            .with_form(Freeze, || Ok(model(2000, 0.0)))
            .with_form(Inference, || Ok(model(1000, 0.00001)))
            .with_form(ChannelsLast, || Ok(model(10, 1.0)));
        let (form, report) = optimise_any(&plain);
        assert!(form.is_some());
        assert_eq!((report.kept, report.per_row.len()), (Some(Inference), 2));
        assert!(report.error_max > 0.0 && report.error_max < 1e-4, "{report}");
        let told = Report { kept: Some(Freeze), per_row: vec![(8, 2500.0, 2000.0)], error_max: 3e-6 };
        let words = "freeze: 1.25x at 8 (2.500 to 2.000 ms per row), largest difference 3.0e-6";
        assert!(told.to_string().ends_with(words.split_once(": ").expect("a colon").1), "{told}");
    }

    #[test]
    fn fewer_bits_are_tried_only_where_they_are_allowed() {
        let forms = |allowed: bool| {
            let mut spec = rows_spec(&[("x", 4)], &[("y", 4)], 8);
            (spec.bfloat16, spec.tolerance) = (allowed, Tolerance::Of(0.02));
            let plain = Scripted::new(spec, |inputs| {
                std::thread::sleep(Duration::from_millis(3));
                Ok(vec![output_fp32("y", &inputs[0].shape, &fp32(&inputs[0]))])
            });
            let plain = plain.with_form(Optimisation::Bfloat16, || Ok(model(1000, 0.01)));
            optimise_any(&plain).1.kept
        };
        assert_eq!((forms(true), forms(false)), (Some(Optimisation::Bfloat16), None));
    }

    #[test]
    fn a_slow_form_is_measured_until_there_is_no_doubt() {
        // Runs that take so many milliseconds, one after the other.
        let form = |millis: &'static [u64]| {
            let runs = AtomicUsize::new(0);
            Scripted::new(rows_spec(&[("x", 4)], &[("y", 4)], 1), move |inputs| {
                let run = runs.fetch_add(1, Ordering::Relaxed);
                world::advance(Duration::from_millis(millis[run % millis.len()]));
                Ok(vec![output_fp32("y", &inputs[0].shape, &fp32(&inputs[0]))])
            })
        };
        let rounds = |before, after| {
            let (pace, before, after) = (Pace::in_a_world(), form(before), form(after));
            let made_up = MadeUp::new(&before).unwrap();
            measure([&before, &after], &made_up, &[1], &pace);
            pace.runs() / 2
        };
        assert_eq!(rounds(&[300], &[200]), 2, "it is faster");
        assert_eq!(rounds(&[300, 303], &[299, 302]), 2, "it gains nothing");
        assert_eq!(rounds(&[300, 500], &[290, 480]), ROUNDS as u64, "who knows");
        assert_eq!(rounds(&[300], &[300, 250]), ROUNDS as u64, "who knows");
        assert_eq!(rounds(&[900, 1500], &[870, 1440]), 3, "nobody waits for it for ever");
        assert_eq!(rounds(&[20], &[10]), ROUNDS as u64, "there is time");
    }

    #[test]
    fn nothing_is_kept_that_gains_nothing_or_fails() {
        use Optimisation::*;
        assert_eq!(kept(model(1000, 0.0).with_form(Freeze, || Ok(model(3000, 0.0)))), None);
        assert_eq!(kept(model(1000, 0.0).with_form(Freeze, || Err("cannot be frozen".into()))), None);
        let broken =
            || Ok(Scripted::new(rows_spec(&[("x", 4)], &[("y", 4)], 8), |_| Err(ModelError::new("no"))));
        assert_eq!(kept(model(1000, 0.0).with_form(Inference, broken)), None);
    }
}
