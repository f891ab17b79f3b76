//! Decides when nothing but a new process helps. A model that does not come back holds its lane for good, because
//! nothing can stop a thread inside libtorch; a GPU that has failed stays so for the process that used it. The
//! engine then ends, says why, and its supervisor starts a new one. A run for which somebody may still wait has all the time that
//! any may take. Where everybody has given up all that runs, and others are held up by it, it has some seconds, and many times what
//! such runs typically take.

use crate::model::Version;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// How often it looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A run has been seen for so long to hold others up and to have nobody who waits for it, at each look,
const ABANDONED: Duration = Duration::from_secs(5);

/// and has taken so many times what [`Queue::abandoned`](crate::queue::Queue::abandoned) tells of such runs: then it is taken to hang.
const OUT_OF_THE_QUESTION: u32 = 50;

/// What runs, by lane, and whether that still can.
pub(crate) struct Watchdog {
    lanes: Vec<Mutex<Option<Run>>>,
    lost: OnceLock<String>,
    told: Notify,
}

struct Run {
    version: Arc<Version>,
    since: Instant,
    /// When it was first seen so of all looks since. A process that was held up has seen nothing meanwhile.
    abandoned: Option<Instant>,
}

impl Watchdog {
    pub(crate) fn new(lanes: usize) -> Self {
        let lanes = (0..lanes).map(|_| Mutex::default()).collect();
        Self { lanes, lost: OnceLock::new(), told: Notify::new() }
    }

    /// A lane begins to run a batch.
    pub(crate) fn began(&self, lane: usize, version: &Arc<Version>, now: Instant) {
        *self.lock(lane) = Some(Run { version: Arc::clone(version), since: now, abandoned: None });
    }

    /// It is back.
    pub(crate) fn ended(&self, lane: usize) {
        *self.lock(lane) = None;
    }

    /// Nothing runs on the device any more, for this reason.
    pub(crate) fn device_lost(&self, why: String) {
        let _ = self.lost.set(why); // what came first is the cause
        self.told.notify_one();
    }

    /// Completes with what to say when the device is lost, or a run hangs: takes longer than `most`, or by far too long for one of
    /// which [`Queue::abandoned`](crate::queue::Queue::abandoned) tells.
    pub(crate) async fn beyond_repair(
        &self,
        most: Duration,
        abandoned: impl Fn(usize, Instant) -> Option<Duration>,
    ) -> String {
        loop {
            tokio::select! {
                () = self.told.notified() => {}
                () = tokio::time::sleep(LOOK_EVERY.min(most)) => {}
            }
            if let Some(why) =
                self.lost.get().cloned().or_else(|| self.hanging(most, &abandoned, Instant::now()))
            {
                return why;
            }
        }
    }

    fn hanging(
        &self,
        most: Duration,
        abandoned: &impl Fn(usize, Instant) -> Option<Duration>,
        now: Instant,
    ) -> Option<String> {
        (0..self.lanes.len()).find_map(|lane| {
            let mut run = self.lock(lane);
            let run = run.as_mut()?;
            let took = now.saturating_duration_since(run.since);
            let (name, number) = (&run.version.name, run.version.number);
            if took > most {
                let most = most.as_secs();
                return Some(format!("model `{name}` version {number} has not come back for {most} s"));
            }
            let slow = abandoned(lane, now);
            run.abandoned = slow.and(run.abandoned.or(Some(now)));
            let is_given_up = now.saturating_duration_since(run.abandoned?) >= ABANDONED;
            (is_given_up && took > OUT_OF_THE_QUESTION * slow?).then(|| {
                let took = took.as_secs();
                format!(
                    "model `{name}` version {number} has not come back for {took} s, and nobody waits for it any more"
                )
            })
        })
    }

    fn lock(&self, lane: usize) -> MutexGuard<'_, Option<Run>> {
        self.lanes[lane].lock().expect("no panic while a run is noted")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scripted::{Scripted, catalog_of, rows_spec};

    fn version() -> Arc<Version> {
        let scripted = Scripted::new(rows_spec(&[("x", 1)], &[("y", 1)], 4), |_| unreachable!("never run"));
        Arc::clone(catalog_of("slow", 3, scripted).find("slow", 3).ok().unwrap())
    }

    #[test]
    fn only_a_run_that_takes_too_long_is_named() {
        let (watchdog, now, most) = (Watchdog::new(2), Instant::now(), Duration::from_secs(60));
        watchdog.began(1, &version(), now);
        let hanging = |now| watchdog.hanging(most, &|_, _| None, now);
        assert_eq!(hanging(now + most), None);
        let said = hanging(now + most + Duration::from_millis(1));
        assert_eq!(said.as_deref(), Some("model `slow` version 3 has not come back for 60 s"));
        watchdog.ended(1);
        assert_eq!(hanging(now + 2 * most), None);
    }

    #[test]
    fn a_run_that_everybody_has_given_up_is_named_once_it_takes_far_longer_than_any() {
        let (now, most) = (Instant::now(), Duration::from_secs(60));
        let millis = |millis| Some(Duration::from_millis(millis));
        // It is looked at these seconds; what such runs take, where nobody waits any more.
        let named = |looks: &[u64], abandoned: &dyn Fn(u64) -> Option<Duration>| {
            let watchdog = Watchdog::new(2);
            watchdog.began(1, &version(), now);
            looks.iter().find_map(|second| {
                let abandoned = |lane, _| abandoned(*second).filter(|_| lane == 1);
                watchdog.hanging(most, &abandoned, now + Duration::from_secs(*second))
            })
        };
        let minute: Vec<u64> = (1..60).collect();
        let after = |second| {
            Some(format!(
                "model `slow` version 3 has not come back for {second} s, and nobody waits for it any more"
            ))
        };
        assert_eq!(named(&minute, &|_| millis(10)), after(6));
        assert_eq!(named(&minute, &|_| millis(400)), after(21), "it is slow");
        assert_eq!(named(&minute, &|_| None), None, "somebody waits");
        let for_half_a_minute = |second| millis(10).filter(|_| second >= 30);
        assert_eq!(named(&minute, &for_half_a_minute), after(35), "somebody has waited");
        assert_eq!(named(&[1, 2, 50], &for_half_a_minute), None, "nobody has looked meanwhile");
    }
}
