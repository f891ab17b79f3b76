//! What it takes to load a version and to find out about it, made on a thread of its own: a model that hangs holds nobody up
//! but itself. Decides when that is so: where no run of it ends for so long.
//!
//! ```text
//!   load ─▶ trial ─▶ golden answers ─▶ faster form ─▶ calibration ─▶ padding
//! ```

use crate::batcher::Grouping;
use crate::calibrate::{Calibration, Cores, Precedent, calibrate};
use crate::golden::Golden;
use crate::lane::text_of;
use crate::library::Loaded;
use crate::model::{Model, Optimisation};
use crate::optimise::{Report, optimise};
use crate::pace::Pace;
use crate::preprocess::Preprocess;
use crate::schedule;
use crate::trial::{self, Verdict};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, mpsc};
use std::time::Duration;

/// A model and what was found out about it.
pub(crate) struct Tried {
    pub(crate) model: Box<dyn Model>,
    pub(crate) verdict: Verdict,
    pub(crate) report: Report,
    pub(crate) calibration: Calibration,
    pub(crate) preprocess: Option<Preprocess>,
    /// Why it may not be padded.
    pub(crate) padding: Result<(), String>,
}

/// What it takes to load a model and to find out about it.
pub(crate) struct Attempt {
    pub(crate) load: crate::library::Load,
    pub(crate) cores: Cores,
    pub(crate) beside: Option<Precedent>,
    pub(crate) pace: Pace,
}

impl Attempt {
    /// Makes it on a thread of its own: a model that hangs holds nobody up but itself. It has, where no run of it ends
    /// for so long.
    pub(crate) fn within(self, run_max: Duration) -> Result<Tried, GivenUp> {
        let Self { load, cores, beside, pace } = self;
        let pace = Arc::new(pace);
        let (done, trial) = mpsc::channel();
        let own = Arc::clone(&pace);
        let work = move || {
            schedule::in_the_background();
            let tried = catch_unwind(AssertUnwindSafe(|| try_out(load, cores, beside.as_ref(), &own)));
            let tried =
                tried.unwrap_or_else(|panic| Err(format!("panic while loading: {}", text_of(&*panic))));
            let _ = done.send(tried); // nobody waits any more: it was given up
        };
        std::thread::Builder::new()
            .name("trial".into())
            .spawn(work)
            .map_err(|error| GivenUp::Failed(format!("cannot start a thread: {error}")))?;
        loop {
            let runs = pace.runs();
            match trial.recv_timeout(run_max) {
                Ok(tried) => return tried.map_err(GivenUp::Failed),
                Err(_) if pace.runs() != runs => {}
                Err(_) => {
                    let seconds = run_max.as_secs();
                    let why = format!(
                        "no run of its trial has ended within {seconds} s; its thread runs on until the engine ends"
                    );
                    return Err(GivenUp::Hangs { why, trial });
                }
            }
        }
    }
}

/// Why an attempt came to nothing.
pub(crate) enum GivenUp {
    Failed(String),
    /// What it sends, should it end after all.
    Hangs {
        why: String,
        trial: mpsc::Receiver<Result<Tried, String>>,
    },
}

fn try_out(
    load: crate::library::Load,
    cores: Cores,
    beside: Option<&Precedent>,
    pace: &Pace,
) -> Result<Tried, String> {
    let Loaded { model, golden, preprocess } = load()?;
    let verdict = trial::run(&*model, pace)?;
    golden.as_ref().map_or(Ok(()), |golden| golden.check(&*model, pace))?;
    let (model, report) = in_best_form(model, &verdict, golden.as_ref(), pace);
    let calibration = calibrate(&*model, verdict.grouping, cores, beside, pace);
    let padding = trial::padding(&*model, pace);
    Ok(Tried { model, verdict, report, calibration, preprocess, padding })
}

/// The fastest form of those that are as good and pass the same trial. What remembers earlier runs stays as it is.
fn in_best_form(
    model: Box<dyn Model>,
    verdict: &Verdict,
    golden: Option<&Golden>,
    pace: &Pace,
) -> (Box<dyn Model>, Report) {
    let most = match verdict.grouping {
        Grouping::Together { max_rows } => max_rows,
        Grouping::Alone => 1,
        Grouping::Serial => return (model, Report::default()),
    };
    let passes = |form: &dyn Model, report: &Report| {
        let again = match report.kept {
            Some(Optimisation::Bfloat16) => trial::run_tolerantly(form, pace),
            _ => trial::run(form, pace),
        };
        again.is_ok_and(|again| again == *verdict)
            && golden.is_none_or(|golden| golden.check(form, pace).is_ok())
    };
    match optimise(&*model, most, pace, &passes) {
        (Some(form), report) => (form, report),
        (None, _) => (model, Report::default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_that_hangs_in_its_trial_is_given_up_and_named() {
        let (_hold, held) = mpsc::channel::<()>();
        // Stands for a model whose first run does not end.
        let hangs: crate::library::Load = Box::new(move || {
            let _ = held.recv();
            Err("it came back".into())
        });
        let cores = Cores { lanes: 1, cores: 1, threads: None };
        let attempt = Attempt { load: hangs, cores, beside: None, pace: Pace::alone() };
        let Err(GivenUp::Hangs { why, trial }) = attempt.within(Duration::from_millis(1)) else {
            panic!("it must be given up");
        };
        assert!(why.starts_with("no run of its trial has ended within"), "{why}");
        assert!(matches!(trial.try_recv(), Err(mpsc::TryRecvError::Empty)), "it still runs");
    }
}
