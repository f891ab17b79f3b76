//! What it takes to load a version and to find out about it, made on a thread of its own, which stands to others as the
//! loader's does: a model that hangs holds nobody up but itself. Says for how long it has got nowhere; what follows from that
//! is the loader's.
//!
//! ```text
//!   load ─▶ trial ─▶ code ─▶ golden answers ─▶ faster form ─▶ calibration ─▶ padding ─▶ reference
//! ```
//!
//! Looking at the code and faster forms are work on the module that may end the process, and that a version can serve without:
//! both are noted before they begin, and left out if they have ended an engine before.

use crate::batcher::Grouping;
use crate::calibrate::{Calibration, Cores, Precedent, calibrate};
use crate::golden::{Golden, Reference};
use crate::interrupted::Step;
use crate::lane::text_of;
use crate::library::{Files, Loaded};
use crate::model::{Model, Optimisation};
use crate::optimise::{Report, optimise};
use crate::pace::Pace;
use crate::preprocess::Preprocess;
use crate::trial::{self, Verdict};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

/// A model and what was found out about it.
pub(crate) struct Tried {
    pub(crate) model: Box<dyn Model>,
    pub(crate) verdict: Verdict,
    pub(crate) report: Report,
    /// From which step on it was tried without.
    pub(crate) spared: Option<Step>,
    pub(crate) calibration: Calibration,
    pub(crate) preprocess: Option<Preprocess>,
    /// Why it may not be padded.
    pub(crate) padding: Result<(), String>,
    /// What it was made for, if somebody says so.
    pub(crate) reference: Vec<Reference>,
    /// What it was read from, if that was files.
    pub(crate) files: Option<Files>,
}

/// What it takes to load a model and to find out about it.
pub(crate) struct Attempt {
    pub(crate) load: crate::library::Load,
    pub(crate) cores: Cores,
    pub(crate) beside: Option<Precedent>,
    pub(crate) pace: Pace,
    /// The step from which on it is tried without.
    pub(crate) spared: Option<Step>,
    /// Told that a step begins, or is over.
    pub(crate) note: Note,
}

pub(crate) type Note = Box<dyn Fn(Option<Step>) + Send>;

impl Attempt {
    /// Begins it; `ended` is called when it has ended.
    pub(crate) fn begin(self, ended: impl FnOnce() + Send + 'static) -> Result<Running, String> {
        let Self { load, cores, beside, pace, spared, note } = self;
        let steps = Steps { spared, note };
        let pace = Arc::new(pace);
        let (done, result) = mpsc::channel();
        let own = Arc::clone(&pace);
        let work = move || {
            let tried =
                catch_unwind(AssertUnwindSafe(|| try_out(load, cores, beside.as_ref(), &own, &steps)));
            let tried =
                tried.unwrap_or_else(|panic| Err(format!("panic while loading: {}", text_of(&*panic))));
            let _ = done.send(tried); // nobody waits any more when the engine stops
            ended();
        };
        let started = std::thread::Builder::new().name("trial".into()).spawn(work);
        started.map_err(|error| format!("cannot start a thread: {error}"))?;
        Ok(Running { pace, result, progress: (0, Instant::now()) })
    }
}

/// An attempt that has begun.
pub(crate) struct Running {
    pace: Arc<Pace>,
    result: mpsc::Receiver<Result<Tried, String>>,
    /// Runs that had ended when they were last seen to be more, and when that was.
    progress: (u64, Instant),
}

impl Running {
    /// What came of it; nothing once no run of it has ended for so long.
    pub(crate) fn wait(&mut self, patience: Duration) -> Option<Result<Tried, String>> {
        loop {
            let left =
                patience.checked_sub(self.stands_still(Instant::now())).filter(|left| !left.is_zero())?;
            match self.result.recv_timeout(left) {
                Ok(tried) => return Some(tried),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Some(Err("its thread is gone".into())),
            }
        }
    }

    /// What came of it, if it has ended.
    pub(crate) fn ended(&self) -> Option<Result<Tried, String>> {
        self.result.try_recv().ok()
    }

    /// For how long no run of it has ended, as far as that was looked at.
    pub(crate) fn stands_still(&mut self, now: Instant) -> Duration {
        let runs = self.pace.runs();
        if runs != self.progress.0 {
            self.progress = (runs, now);
        }
        now.saturating_duration_since(self.progress.1)
    }
}

/// Steps that it is tried without, if need be.
struct Steps {
    spared: Option<Step>,
    note: Note,
}

impl Steps {
    /// What comes of a step; nothing if it is left out.
    fn take<T>(&self, step: Step, run: impl FnOnce() -> T) -> Option<T> {
        if self.spared.is_some_and(|spared| spared <= step) {
            return None;
        }
        (self.note)(Some(step));
        let done = run();
        (self.note)(None);
        Some(done)
    }
}

fn try_out(
    load: crate::library::Load,
    cores: Cores,
    beside: Option<&Precedent>,
    pace: &Pace,
    steps: &Steps,
) -> Result<Tried, String> {
    let Loaded { model, golden, preprocess, files } = load()?;
    let verdict = trial::run(&*model, pace)?;
    let verdict = match steps.take(Step::Freeze, || model.code()) {
        Some(code) => verdict.knowing(code),
        None => verdict.knowing_nothing(Step::Freeze),
    };
    golden.as_ref().map_or(Ok(()), |golden| golden.check(&*model, pace))?;
    let best = steps.take(Step::Optimise, || best_form(&*model, &verdict, golden.as_ref(), pace));
    let (model, report) = match best.unwrap_or_default() {
        (Some(form), report) => (form, report),
        (None, _) => (model, Report::default()),
    };
    let calibration = calibrate(&*model, verdict.grouping, cores, beside, pace);
    let padding = trial::padding(&*model, pace);
    let reference = golden.map_or(Ok(Vec::new()), |golden| golden.reference(&*model, pace))?;
    let spared = steps.spared;
    Ok(Tried { model, verdict, report, spared, calibration, preprocess, padding, reference, files })
}

/// The fastest form of those that are as good and pass the same trial, if that is not the model itself. What remembers earlier
/// runs stays as it is.
fn best_form(
    model: &dyn Model,
    verdict: &Verdict,
    golden: Option<&Golden>,
    pace: &Pace,
) -> (Option<Box<dyn Model>>, Report) {
    let most = match verdict.grouping {
        Grouping::Together { max_rows } => max_rows,
        Grouping::Alone => 1,
        Grouping::Serial => return Default::default(),
    };
    let passes = |form: &dyn Model, report: &Report| {
        let again = match report.kept {
            Some(Optimisation::Bfloat16) => trial::run_tolerantly(form, pace),
            _ => trial::run(form, pace),
        };
        again.is_ok_and(|again| again == *verdict)
            && golden.is_none_or(|golden| golden.check(form, pace).is_ok())
    };
    optimise(model, most, pace, &passes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calibrate::Way;
    use crate::pace::world;
    use crate::scripted::{Scripted, fp32, output_fp32, rows_spec};

    #[test]
    fn who_has_waited_in_vain_for_a_model_that_hangs_may_still_hear_of_it() {
        let (release, held) = mpsc::channel::<()>();
        // Stands for a model whose first run does not end.
        let hangs: crate::library::Load = Box::new(move || {
            let _ = held.recv();
            Err("it came back".into())
        });
        let cores = Cores { lanes: 1, cores: 1, threads: None };
        let (spared, note) = (None, Box::new(|_| {}));
        let attempt = Attempt { load: hangs, cores, beside: None, pace: Pace::alone(), spared, note };
        let (told, is_told) = mpsc::channel();
        let mut running = attempt.begin(move || told.send(()).unwrap()).unwrap();
        assert!(running.wait(Duration::from_millis(1)).is_none() && running.ended().is_none());
        release.send(()).unwrap();
        is_told.recv().unwrap();
        let came_back = running.ended().and_then(Result::err);
        assert_eq!(came_back.as_deref(), Some("it came back"));
    }

    /// A model whose runs take so long, in a faster form nine tenths of that.
    fn taking(time: Duration) -> Scripted {
        Scripted::new(rows_spec(&[("x", 4)], &[("y", 4)], 32), move |inputs| {
            world::advance(time);
            Ok(vec![output_fp32("y", &inputs[0].shape, &fp32(&inputs[0]))])
        })
    }

    /// Runs that it takes until such a model is ready.
    fn runs(time: Duration) -> u64 {
        let model = taking(time)
            .with_form(Optimisation::Freeze, move || Ok(taking(time)))
            .with_form(Optimisation::Inference, move || Ok(taking(time * 9 / 10)));
        let load = || Ok(Loaded { model: Box::new(model), golden: None, preprocess: None, files: None });
        let (cores, pace) = (Cores { lanes: 4, cores: 4, threads: None }, Pace::in_a_world());
        let steps = Steps { spared: None, note: Box::new(|_| {}) };
        let tried = try_out(Box::new(load), cores, None, &pace, &steps).ok().unwrap();
        assert_eq!(tried.report.kept, Some(Optimisation::Inference));
        assert_eq!(tried.calibration.way, Way { threads: 1, lanes: 1, at_once: 4 });
        pace.runs()
    }

    #[test]
    fn a_slow_model_is_ready_after_few_runs_and_a_quick_one_is_measured_as_often_as_ever() {
        let [quick, slow, slower] = [30, 300, 3000].map(|millis| runs(Duration::from_millis(millis)));
        // All of them counted by number alone it would be 274, 174 and 174.
        assert!(quick > 250 && slow < 80 && slower < 80, "{quick}, {slow}, {slower}");
    }

    #[test]
    fn a_trial_stands_still_since_a_run_of_it_has_last_ended() {
        let (result, pace) = (mpsc::channel().1, Arc::new(Pace::alone()));
        let (model, now) = (Scripted::new(rows_spec(&[], &[("y", 1)], 8), |_| Ok(vec![])), Instant::now());
        let mut running = Running { pace: Arc::clone(&pace), result, progress: (0, now) };
        let at = |seconds| now + Duration::from_secs(seconds);
        assert_eq!(running.stands_still(at(5)), Duration::from_secs(5));
        let _ = pace.run(&model, &[]);
        assert_eq!(running.stands_still(at(6)), Duration::ZERO);
        assert_eq!(running.stands_still(at(9)), Duration::from_secs(3));
    }
}
