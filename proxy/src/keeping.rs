//! The policy in force and those before it, on their way to the disk, where the next start finds them. Decides what is written and
//! when: the newest, one at a time, and again if the disk has not taken it. A disk that hangs holds up nobody for long, and has one
//! thread at most.

use crate::files;
use crate::metrics::{Metrics, Part};
use crate::revisions::Revisions;
use crate::rollouts::SAVE_MAX;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;

/// Nobody who changes something waits for the disk for longer.
const KEPT_MAX: Duration = Duration::from_secs(1);

/// Where they are kept.
#[derive(Clone, Debug)]
pub struct KeptFiles {
    /// The policy in force.
    pub policy: PathBuf,
    /// Those before it.
    pub history: PathBuf,
}

/// What is to be written.
#[derive(Debug)]
pub struct Keeping {
    /// Nothing is kept where there are none.
    files: Option<KeptFiles>,
    metrics: Arc<Metrics>,
    /// What the disk does not have yet.
    newest: Option<Arc<Revisions>>,
    writing: Option<Writing>,
    /// Whether it was told that something is not kept.
    is_told: bool,
}

#[derive(Debug)]
struct Writing {
    what: Arc<Revisions>,
    work: JoinHandle<anyhow::Result<()>>,
}

impl Keeping {
    /// Nothing is to be written yet.
    pub fn new(files: Option<KeptFiles>, metrics: Arc<Metrics>) -> Self {
        Self { files, metrics, newest: None, writing: None, is_told: false }
    }

    /// For the next start. Returns when it is on the disk, or that has failed or takes too long: then it is tried again.
    pub(crate) async fn keep(&mut self, revisions: &Revisions) {
        if self.files.is_some() {
            self.newest = Some(Arc::new(revisions.clone()));
            self.begin();
            self.wait(KEPT_MAX).await;
        }
    }

    /// Begins to write what the disk does not have, unless something is being written.
    pub(crate) fn begin(&mut self) {
        let (Some(files), Some(newest), None) = (&self.files, &self.newest, &self.writing) else { return };
        let (files, what) = (files.clone(), newest.clone());
        let revisions = what.clone();
        let work = tokio::task::spawn_blocking(move || write(&files, &revisions));
        self.writing = Some(Writing { what, work });
    }

    /// Waits for what is being written, for ever if nothing is, and goes on with what has come since. Safe to cancel.
    pub(crate) async fn settled(&mut self) {
        let Some(writing) = &mut self.writing else { return std::future::pending().await };
        let result = (&mut writing.work).await.map_err(anyhow::Error::from).flatten();
        let what = self.writing.take().map(|writing| writing.what);
        let is_newest = match (&what, &self.newest) {
            (Some(what), Some(newest)) => Arc::ptr_eq(what, newest),
            _ => false,
        };
        match result {
            _ if !is_newest => self.begin(),
            Ok(()) => {
                self.newest = None;
                self.metrics.state_saved.set(Part::Policies, true);
                if std::mem::take(&mut self.is_told) {
                    tracing::info!("the policy in force is kept for the next start now");
                }
            }
            Err(error) => self.tell(&format!("{error:#}")),
        }
    }

    /// A last try before the process ends.
    pub(crate) async fn finish(&mut self) {
        self.begin();
        self.wait(SAVE_MAX).await;
    }

    async fn wait(&mut self, time_max: Duration) {
        let all = async {
            while self.writing.is_some() {
                self.settled().await;
            }
        };
        if tokio::time::timeout(time_max, all).await.is_err() {
            self.tell("the disk takes its time");
        }
    }

    /// Once, until it is kept.
    fn tell(&mut self, why: &str) {
        self.metrics.state_saved.set(Part::Policies, false);
        if !std::mem::replace(&mut self.is_told, true) {
            tracing::error!(
                "the policy in force is not kept for the next start yet: {why}; it is tried again"
            );
        }
    }
}

fn write(files: &KeptFiles, revisions: &Revisions) -> anyhow::Result<()> {
    files::replace(&files.policy, revisions.current().text.as_bytes())?;
    files::replace(&files.history, &revisions.to_file())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exposition::Exposition;
    use std::path::Path;
    use std::time::SystemTime;

    fn keeping(folder: &Path) -> (Keeping, KeptFiles) {
        let files = KeptFiles { policy: folder.join("policy.yaml"), history: folder.join("history.json") };
        (Keeping::new(Some(files.clone()), Arc::new(Metrics::new())), files)
    }

    fn revisions(text: &str) -> Revisions {
        Revisions::new(Vec::new(), text.into(), |_| false, SystemTime::UNIX_EPOCH)
    }

    fn is_shown_as_saved(keeping: &Keeping) -> bool {
        let text = keeping.metrics.encode(Exposition::Text);
        let shown = text.lines().find_map(|line| line.strip_prefix("penstock_state_saved "));
        shown.expect("the metric") == "1"
    }

    fn kept(files: &KeptFiles) -> String {
        std::fs::read_to_string(&files.policy).unwrap()
    }

    #[tokio::test]
    async fn what_a_slow_disk_takes_later_is_the_newest_and_once() {
        let folder = tempfile::tempdir().unwrap();
        let (mut keeping, files) = keeping(folder.path());
        // Something is being written for longer than anybody waits.
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let work = tokio::task::spawn_blocking(move || Ok(ended.recv()?));
        keeping.writing = Some(Writing { what: Arc::new(revisions("one")), work });
        keeping.newest = Some(Arc::new(revisions("two")));
        keeping.wait(Duration::ZERO).await;
        assert!(!is_shown_as_saved(&keeping) && !files.policy.exists());
        keeping.begin();
        end.send(()).unwrap();
        keeping.wait(SAVE_MAX).await;
        assert!(is_shown_as_saved(&keeping));
        assert_eq!(kept(&files), "two");
        std::fs::remove_file(&files.policy).unwrap();
        keeping.finish().await;
        assert!(!files.policy.exists() && files.history.exists(), "it was written already");
    }

    #[tokio::test]
    async fn what_the_disk_has_not_taken_is_tried_again_and_at_the_latest_at_the_end() {
        for at_the_end in [false, true] {
            let folder = tempfile::tempdir().unwrap();
            let missing = folder.path().join("not mounted");
            let (mut keeping, files) = keeping(&missing);
            keeping.keep(&revisions("one")).await;
            keeping.keep(&revisions("two")).await;
            assert!(!is_shown_as_saved(&keeping) && keeping.is_told);
            keeping.begin();
            keeping.wait(SAVE_MAX).await;
            std::fs::create_dir(&missing).unwrap();
            if at_the_end {
                keeping.finish().await;
            } else {
                keeping.begin();
                keeping.wait(SAVE_MAX).await;
            }
            assert_eq!(kept(&files), "two");
            assert!(is_shown_as_saved(&keeping) && !keeping.is_told);
        }
    }

    #[tokio::test]
    async fn a_process_that_keeps_nothing_has_nothing_that_is_not_saved() {
        let mut keeping = Keeping::new(None, Arc::new(Metrics::new()));
        keeping.keep(&revisions("one")).await;
        keeping.finish().await;
        assert!(is_shown_as_saved(&keeping));
    }
}
