//! Looks after canaries: asks a few times a second for their verdicts, tells them, and keeps how far they are in a
//! file, so that a restart goes on where it was. Decides nothing: verdicts are the core's. A disk that is slow holds up
//! nobody else.

use crate::files;
use crate::metrics::Metrics;
use anyhow::Context;
use policies::{Ledger, Progress, Record, Verdict};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

const JUDGE_EVERY: Duration = Duration::from_millis(100);

/// How long a step has lasted is saved so often; everything else when it changes.
const SAVE_EVERY: Duration = Duration::from_secs(10);

/// What looks after canaries.
#[derive(Debug)]
pub struct Rollouts {
    /// Where they are.
    pub ledger: Arc<Ledger>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Where progress is kept; `None` forgets it with the process.
    pub file: Option<PathBuf>,
}

impl Rollouts {
    /// Judges for ever.
    pub async fn run(self) {
        let mut ticks = tokio::time::interval(JUDGE_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut saved, mut kept) = (Instant::now(), BTreeMap::new());
        loop {
            ticks.tick().await;
            let now = Instant::now();
            let news = self.ledger.judge(now);
            for (model, record) in &news {
                tell(model, record);
                self.metrics.count_verdict(model, record.verdict);
            }
            if !news.is_empty() || now.duration_since(saved) >= SAVE_EVERY {
                kept = self.save(kept, now).await;
                saved = now;
            }
        }
    }

    /// Writes what has changed; what the file then holds.
    async fn save(&self, kept: BTreeMap<String, Progress>, now: Instant) -> BTreeMap<String, Progress> {
        let Some(file) = self.file.clone() else { return kept };
        let progress = self.ledger.progress(now);
        if progress == kept {
            return kept;
        }
        let written = tokio::task::spawn_blocking(move || {
            let text = serde_json::to_vec_pretty(&progress)?;
            files::replace(&file, &text).map(|()| progress)
        })
        .await;
        written.map_err(anyhow::Error::from).flatten().unwrap_or_else(|error| {
            tracing::error!("progress of canaries is not saved: {error:#}");
            kept
        })
    }
}

/// What an earlier process has kept. A file that cannot be read is an error: beginning anew would give a candidate
/// that was rolled back its share again.
pub fn read(file: &Path) -> anyhow::Result<BTreeMap<String, Progress>> {
    match std::fs::read(file) {
        Ok(bytes) => serde_json::from_slice(&bytes).with_context(|| {
            format!("{} is not what was written there; remove it to begin all canaries anew", file.display())
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(BTreeMap::new()),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", file.display())),
    }
}

fn tell(model: &str, record: &Record) {
    let Record { step, percent, verdict, why, .. } = record;
    let gates = serde_json::to_string(&record.gates).expect("numbers and names");
    match verdict {
        Verdict::RollBack => tracing::error!(model, step, percent, gates, "canary rolled back: {why}"),
        Verdict::Advance => tracing::info!(model, step, percent, gates, "canary advances: {why}"),
        Verdict::Hold => tracing::info!(model, step, percent, gates, "canary holds: {why}"),
        Verdict::InsufficientData => {
            tracing::info!(model, step, percent, gates, "canary waits for data: {why}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_comes_back_as_it_was_written_and_nonsense_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("state.json");
        assert!(read(&file).unwrap().is_empty());
        let text = "models: {digits: {canary: {baseline: 1, candidate: 2, steps: [10]}}}";
        let (ledger, now) = (Ledger::new(), Instant::now());
        ledger.roll_out(&policies::parse(text, "p").unwrap(), now);
        let progress = ledger.progress(now + Duration::from_secs(3));
        files::replace(&file, &serde_json::to_vec(&progress).unwrap()).unwrap();
        assert_eq!(read(&file).unwrap(), progress);
        std::fs::write(&file, "{\"digits\": {").unwrap();
        assert!(read(&file).unwrap_err().to_string().contains("remove it to begin all canaries anew"));
    }
}
