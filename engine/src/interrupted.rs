//! Remembers which versions are being tried out in a file that outlives the process. A trial that a segmentation fault or
//! the kernel cuts short would otherwise be begun again by the next engine, and by the one after that, and take all
//! other models along each time. Decides how long it is left out after that has happened twice: it may have been another one's
//! doing, or nobody's. Never that the version is bad: whoever orders it to be loaded has it tried again at once.
//!
//! Some steps of a trial a version can serve without. Where one of those has ended the engine, it is tried without by the next;
//! where that has happened again, by all that come after it.

use crate::kept::Kept;
use crate::library::Stamp;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// So often a trial may end the engine; the first time may have been an accident.
const TIMES_MAX: u32 = 2;

/// So often that of a version which has passed one with the same files: most of what ends the engine is not its doing.
const TIMES_MAX_PASSED: u32 = 6;

/// So often a step may that a version can serve without; likewise, the first time may have been an accident.
const STEPS_MAX: u32 = 2;

/// Then it is left out for so long, and after each further time twice as long.
const PAUSE: Duration = Duration::from_secs(300);
const PAUSE_MAX: Duration = Duration::from_secs(24 * 3600);

/// Versions that are remembered; beyond it the oldest is forgotten.
const RECORDS_MAX: usize = 64;

/// A step that a version can serve without, and without those after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Step {
    /// It is frozen, to see what its code does.
    Freeze,
    /// It is brought into faster forms.
    Optimise,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Freeze => "freezing it has ended the engine",
            Self::Optimise => "optimising it has ended the engine",
        })
    }
}

/// A trial that does not begin yet.
#[derive(Debug, PartialEq, thiserror::Error)]
#[error(
    "its trial has ended the engine {times} times{}; it is tried again in {} min, and when its files change or somebody loads it",
    .spared.map_or(String::new(), |step| format!(" ({step} first)")), .wait.as_secs() / 60
)]
pub(crate) struct LeftOut {
    times: u32,
    spared: Option<Step>,
    /// When it may, if this process lives for so long.
    pub(crate) wait: Duration,
}

/// The trials that are under way, and those that were when an engine ended. If there was more than one, any of them may have
/// done it, and counts as if it had.
pub(crate) struct Interrupted {
    file: Kept,
    records: Vec<Record>,
    /// Versions that may be tried in any case.
    waited: Vec<(String, u64)>,
}

#[derive(Serialize, Deserialize)]
struct Record {
    model: String,
    version: u64,
    /// Of its files: when they have changed, it is another version.
    stamp: String,
    /// Trials that have begun and not ended.
    times: u32,
    /// What is being done that it could serve without.
    #[serde(default)]
    step: Option<Step>,
    /// The first of those that have ended the engine, and how often any has.
    #[serde(default)]
    ended: Option<Step>,
    #[serde(default)]
    ends: u32,
    /// This trial leaves nothing out.
    #[serde(skip)]
    is_whole: bool,
}

impl Interrupted {
    /// What the engine that listened at `socket` before this one has left.
    pub(crate) fn beside(socket: &Path) -> Self {
        let file = file_of(socket);
        Self { records: file.read(), file, waited: Vec::new() }
    }

    /// Notes that a trial begins of a version that `has_passed` one with these files, or not; gives the step from where on it is
    /// tried without.
    pub(crate) fn begin(
        &mut self,
        model: &str,
        version: u64,
        stamp: &Stamp,
        has_passed: bool,
    ) -> Result<Option<Step>, LeftOut> {
        let stamp = format!("{stamp:?}");
        let known = self.records.iter().find(|record| record.is_of(model, version));
        let known = known.filter(|record| record.stamp == stamp);
        let times = known.map_or(0, |record| record.times);
        let step = known.and_then(|record| record.step);
        let ended = known.and_then(|record| record.ended).into_iter().chain(step).min();
        let ends = known.map_or(0, |record| record.ends) + u32::from(step.is_some());
        let spared = ended.filter(|_| times > 0 || ends >= STEPS_MAX);
        let most = if has_passed { TIMES_MAX_PASSED } else { TIMES_MAX };
        // What has ended it this time is left out the next.
        if times >= most
            && step.is_none()
            && !self.waited.iter().any(|waited| *waited == (model.to_owned(), version))
        {
            let wait = PAUSE.saturating_mul(1 << (times - most).min(16)).min(PAUSE_MAX);
            return Err(LeftOut { times, spared, wait });
        }
        self.records.retain(|record| !record.is_of(model, version));
        let times = times + 1;
        let (model, is_whole) = (model.to_owned(), spared.is_none());
        self.records.push(Record { model, version, stamp, times, step: None, ended, ends, is_whole });
        let many = self.records.len().saturating_sub(RECORDS_MAX);
        self.records.drain(..many);
        self.write();
        Ok(spared)
    }

    /// Notes that a step begins of a trial that has begun of these files, or is over.
    pub(crate) fn note(&mut self, model: &str, version: u64, stamp: &Stamp, step: Option<Step>) {
        let stamp = format!("{stamp:?}");
        let is_meant = |record: &&mut Record| record.is_of(model, version) && record.stamp == stamp;
        if let Some(record) = self.records.iter_mut().find(is_meant) {
            record.step = step;
            self.write();
        }
    }

    /// It was left out for as long as it had to be.
    pub(crate) fn has_waited(&mut self, model: &str, version: u64) {
        self.waited.push((model.to_owned(), version));
    }

    /// It has ended, one way or the other, and the engine lives.
    pub(crate) fn end(&mut self, model: &str, version: u64) {
        excuse_all(&mut self.records, |record| record.is_of(model, version));
        self.waited.retain(|waited| *waited != (model.to_owned(), version));
        self.write();
    }

    /// Lets a model be tried again that somebody asks for.
    pub(crate) fn forgive(&mut self, model: &str) {
        self.records.retain(|record| record.model != model);
        self.write();
    }

    fn write(&self) {
        if self.records.is_empty() {
            return self.file.forget();
        }
        self.file.write(&self.records);
    }
}

impl Record {
    fn is_of(&self, model: &str, version: u64) -> bool {
        (&*self.model, self.version) == (model, version)
    }
}

/// The trials of some count for nothing any more; what is left of them is which steps have ended engines.
fn excuse_all(records: &mut Vec<Record>, which: impl Fn(&Record) -> bool) {
    for record in records.iter_mut().filter(|record| which(record)) {
        (record.times, record.step) = (0, None);
        // Every step was gone through, so that whatever has ended an engine before was none of them.
        if record.is_whole {
            (record.ended, record.ends) = (None, 0);
        }
    }
    records.retain(|record| record.times > 0 || record.ended.is_some());
}

/// The engine that listens at `socket` is told to stop: if that cuts a trial short, it is not the version's doing.
pub(crate) fn excuse(socket: &Path) {
    let mut left = Interrupted::beside(socket);
    excuse_all(&mut left.records, |_| true);
    left.write();
}

/// Shared by the loader and by the trials, which note their steps on threads of their own.
#[derive(Clone)]
pub(crate) struct Notes(Arc<Mutex<Interrupted>>);

impl Notes {
    pub(crate) fn of(interrupted: Interrupted) -> Self {
        Self(Arc::new(Mutex::new(interrupted)))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Interrupted> {
        self.0.lock().expect("no panic while trials are noted")
    }
}

fn file_of(socket: &Path) -> Kept {
    Kept::beside(socket, ".trial")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_that_ends_the_engine_twice_is_left_out_until_it_changes_or_is_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("engine.sock");
        // Each engine is the process that begins a trial and is killed in it.
        let begin =
            |version, stamp| Interrupted::beside(&socket).begin("m", version, &Stamp::made_up(stamp), false);
        assert_eq!((begin(2, 1), begin(2, 1)), (Ok(None), Ok(None)));
        let why = begin(2, 1).unwrap_err().to_string();
        assert!(
            why.starts_with("its trial has ended the engine 2 times; it is tried again in 5 min"),
            "{why}"
        );
        assert_eq!(begin(2, 7), Ok(None), "its files have changed");
        assert_eq!((begin(2, 7), begin(2, 7).is_err()), (Ok(None), true));
        let mut asked = Interrupted::beside(&socket);
        asked.forgive("m");
        assert_eq!(asked.begin("m", 2, &Stamp::made_up(7), false), Ok(None));
        asked.end("m", 2);
        assert_eq!((begin(2, 7), begin(2, 7)), (Ok(None), Ok(None)), "a trial that ended counts for nothing");
        excuse(&socket);
        assert_eq!(begin(2, 7), Ok(None), "one that was told to stop is no accident");
    }

    #[test]
    fn a_version_that_was_left_out_is_tried_again_after_ever_longer_pauses() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("engine.sock");
        let stamp = Stamp::made_up(1);
        let waits = || {
            let mut trials = Interrupted::beside(&socket);
            let left_out = trials.begin("m", 1, &stamp, false).unwrap_err();
            trials.has_waited("m", 1);
            trials.begin("m", 1, &stamp, false).unwrap(); // and ends the engine once more
            left_out.wait.as_secs() / 60
        };
        for _ in 0..TIMES_MAX {
            Interrupted::beside(&socket).begin("m", 1, &stamp, false).unwrap();
        }
        let minutes: Vec<u64> = (0..12).map(|_| waits()).collect();
        assert_eq!(minutes, [5, 10, 20, 40, 80, 160, 320, 640, 1280, 1440, 1440, 1440]);
    }

    #[test]
    fn what_has_passed_a_trial_before_is_rarely_to_blame() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("engine.sock");
        let begin = || Interrupted::beside(&socket).begin("m", 1, &Stamp::made_up(1), true);
        assert!((0..TIMES_MAX_PASSED).all(|_| begin().is_ok()));
        assert!(begin().is_err());
    }

    #[test]
    fn trials_of_others_that_end_well_do_not_make_up_for_it() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("engine.sock");
        let stamp = Stamp::made_up(1);
        // Each engine loads a sound model first, and then one that ends it.
        let engine = || {
            let mut trials = Interrupted::beside(&socket);
            trials.begin("a", 1, &stamp, false).unwrap();
            trials.end("a", 1);
            trials.begin("m", 1, &stamp, false)
        };
        assert_eq!((engine(), engine()), (Ok(None), Ok(None)));
        assert!(engine().is_err());
        let mut trials = Interrupted::beside(&socket);
        for version in 0..2 * RECORDS_MAX as u64 {
            trials.begin("many", version, &stamp, false).unwrap();
        }
        assert_eq!(Interrupted::beside(&socket).records.len(), RECORDS_MAX);
    }

    #[test]
    fn a_step_that_has_ended_the_engine_is_left_out_by_the_next_and_after_the_second_time_by_all() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("engine.sock");
        // Each engine ends in that step, or not.
        let ends_in = |stamp, step| {
            let (mut trials, stamp) = (Interrupted::beside(&socket), Stamp::made_up(stamp));
            let spared = trials.begin("m", 1, &stamp, false)?;
            trials.note("m", 1, &stamp, step);
            Ok::<_, LeftOut>(spared)
        };
        let ends_well = |stamp| {
            let mut trials = Interrupted::beside(&socket);
            let spared = trials.begin("m", 1, &Stamp::made_up(stamp), false);
            trials.end("m", 1);
            spared
        };
        assert_eq!(ends_in(1, Some(Step::Optimise)), Ok(None));
        assert_eq!([ends_well(1), ends_well(1)], [Ok(Some(Step::Optimise)), Ok(None)], "once is no rule");
        assert_eq!(ends_in(1, Some(Step::Freeze)), Ok(None));
        assert_eq!(ends_well(1), Ok(Some(Step::Freeze)), "what went well meanwhile is not blamed");
        assert_eq!(ends_in(1, Some(Step::Freeze)), Ok(None));
        assert_eq!([ends_well(1), ends_well(1)], [Ok(Some(Step::Freeze)), Ok(Some(Step::Freeze))]);
        excuse(&socket);
        assert_eq!(ends_well(1), Ok(Some(Step::Freeze)), "nobody has to find out once more");

        assert_eq!(ends_in(2, Some(Step::Optimise)), Ok(None), "its files have changed");
        assert_eq!(ends_in(2, Some(Step::Freeze)), Ok(Some(Step::Optimise)));
        assert_eq!(
            ends_in(2, None),
            Ok(Some(Step::Freeze)),
            "it was not tried without, though it is the third time"
        );
        let why = ends_in(2, None).unwrap_err().to_string();
        assert!(why.starts_with("its trial has ended the engine 3 times (freezing it has ended"), "{why}");
        let mut asked = Interrupted::beside(&socket);
        asked.forgive("m");
        assert_eq!(asked.begin("m", 1, &Stamp::made_up(2), false), Ok(None));
    }
}
