//! Decides when nothing but a new process helps. A model that does not come back holds its lane for good, because
//! nothing can stop a thread inside libtorch; a GPU that has failed stays so for the process that used it. The
//! engine then ends, says why, and its supervisor starts a new one.

use crate::model::Version;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// How often it looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What runs, by lane, and whether that still can.
pub(crate) struct Watchdog {
    lanes: Vec<Mutex<Option<Run>>>,
    lost: OnceLock<String>,
    told: Notify,
}

struct Run {
    version: Arc<Version>,
    since: Instant,
}

impl Watchdog {
    pub(crate) fn new(lanes: usize) -> Self {
        let lanes = (0..lanes).map(|_| Mutex::default()).collect();
        Self { lanes, lost: OnceLock::new(), told: Notify::new() }
    }

    /// A lane begins to run a batch.
    pub(crate) fn began(&self, lane: usize, version: &Arc<Version>, now: Instant) {
        *self.lock(lane) = Some(Run { version: Arc::clone(version), since: now });
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

    /// Completes with what to say when the device is lost, or a run takes longer than `most`.
    pub(crate) async fn beyond_repair(&self, most: Duration) -> String {
        loop {
            tokio::select! {
                () = self.told.notified() => {}
                () = tokio::time::sleep(LOOK_EVERY.min(most)) => {}
            }
            if let Some(why) = self.lost.get().cloned().or_else(|| self.hanging(most, Instant::now())) {
                return why;
            }
        }
    }

    fn hanging(&self, most: Duration, now: Instant) -> Option<String> {
        (0..self.lanes.len()).find_map(|lane| {
            let run = self.lock(lane);
            let Run { version, since } = run.as_ref()?;
            (now.saturating_duration_since(*since) > most).then(|| {
                let (name, number) = (&version.name, version.number);
                format!("model `{name}` version {number} has not come back for {} s", most.as_secs())
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

    #[test]
    fn only_a_run_that_takes_too_long_is_named() {
        let scripted = Scripted::new(rows_spec(&[("x", 1)], &[("y", 1)], 4), |_| unreachable!("never run"));
        let catalog = catalog_of("slow", 3, scripted);
        let version = catalog.find("slow", 3).ok().unwrap();
        let (watchdog, now, most) = (Watchdog::new(2), Instant::now(), Duration::from_secs(60));
        watchdog.began(1, version, now);
        assert_eq!(watchdog.hanging(most, now + most), None);
        let said = watchdog.hanging(most, now + most + Duration::from_millis(1));
        assert_eq!(said.as_deref(), Some("model `slow` version 3 has not come back for 60 s"));
        watchdog.ended(1);
        assert_eq!(watchdog.hanging(most, now + 2 * most), None);
    }
}
