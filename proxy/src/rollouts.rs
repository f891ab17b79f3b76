//! Looks after canaries and splits: asks a few times a second for verdicts on the ones, and whether what is seen of both is
//! what was declared; tells that, and keeps how far canaries are in a file, so that a restart goes on where it was, and with
//! them the rings of splits, so that it moves no user. Decides nothing: verdicts are the core's. A disk that is slow holds
//! up nobody else. At some of these times it has forgotten, as well, what was counted of versions that are gone, and has told
//! what breakers do.

use crate::breakers::Breakers;
use crate::files;
use crate::metrics::{Metrics, Part};
use crate::readiness::Readiness;
use crate::rollout_history::RolloutHistory;
use crate::trace::Tracer;
use anyhow::Context;
use policies::{EndedRollouts, Ledger, Live, Mismatch, Progress, Record, Rings, Verdict};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tracing::Level;

const JUDGE_EVERY: Duration = Duration::from_millis(100);

/// One of which no point is due is looked at again within this.
const SAMPLE_EVERY: Duration = Duration::from_secs(1);

/// How long a step has lasted is saved so often; everything else when it changes.
const SAVE_EVERY: Duration = Duration::from_secs(10);

/// What was counted of versions that are gone is looked for so often; it stays for minutes.
const FORGET_EVERY: Duration = Duration::from_secs(10);

/// Breakers are looked at so often.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A disk that takes longer hangs: nothing waits for it, and that is told.
pub(crate) const SAVE_MAX: Duration = Duration::from_secs(5);

/// What looks after canaries.
#[derive(Debug)]
pub struct Rollouts {
    /// Where they are.
    pub ledger: Arc<Ledger>,
    /// Where splits are.
    pub live: Arc<Live>,
    /// Knows which versions there are.
    pub readiness: Readiness,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Where verdicts go as spans, if traces are on.
    pub tracer: Option<Arc<Tracer>>,
    /// Told how the evidence grows.
    pub history: Arc<RolloutHistory>,
    /// Where progress is kept; `None` forgets it with the process.
    pub file: Option<PathBuf>,
    /// People who wait until what they have ordered outlives the process.
    pub orders: mpsc::Receiver<Saved>,
}

/// Told whether all that was ordered until now is in the file, or why not.
pub type Saved = oneshot::Sender<Result<(), String>>;

/// Orders that may wait for the file.
pub const ORDERS_MAX: usize = 16;

/// Of what is written here. Files from before there was a number have the form of the first.
const FORMAT: u32 = 1;

/// What a restart goes on with.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Kept {
    /// How far canaries are, by model.
    pub canaries: BTreeMap<String, Progress>,
    /// Those whose policies have gone. Called so because releases that remember only what was rolled back read it as well.
    #[serde(default, rename = "rolled_back")]
    pub ended: EndedRollouts,
    /// Whom splits have given to which version.
    #[serde(default)]
    pub rings: Rings,
}

impl Rollouts {
    /// Judges until `stop` turns true, and then once more: what the last requests have shown is kept as well.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let mut ticks = tokio::time::interval(JUDGE_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut kept, mut saving, mut ordered) = (Kept::default(), None, Vec::new());
        let (mut saved, mut sampled, mut generation) = (Instant::now(), Instant::now(), 0);
        let (mut is_wanted, mut forgot) = (false, None::<Instant>);
        let (mut breakers, mut looked) = (Breakers::default(), Instant::now());
        self.history.sample(&self.ledger.rollouts(), SystemTime::now());
        loop {
            let (mut is_last, mut ended) = (false, None);
            tokio::select! {
                _ = ticks.tick() => {}
                Some(order) = self.orders.recv(), if ordered.len() < ORDERS_MAX => ordered.push(order),
                result = ended_of(&mut saving) => ended = Some(result),
                // An error means that whoever would say so is gone.
                _ = stop.wait_for(|stop| *stop) => is_last = true,
            }
            let now = Instant::now();
            if let Some(result) = ended {
                self.end(saving.take(), result, &mut kept);
            }
            if forgot.is_none_or(|forgot| now.duration_since(forgot) >= FORGET_EVERY) {
                self.metrics.forget_gone(&self.readiness.names(), now);
                forgot = Some(now);
            }
            if now.duration_since(looked) >= LOOK_EVERY {
                breakers.tell(&self.ledger.breakers(now));
                looked = now;
            }
            let in_force = self.live.load().number;
            let is_new = self.judge(now, &mut sampled) || in_force != generation;
            generation = in_force;
            is_wanted |= is_new || is_last || !ordered.is_empty() || now.duration_since(saved) >= SAVE_EVERY;
            if is_wanted && saving.is_none() {
                (saved, is_wanted) = (now, false);
                saving = self.begin(&kept, std::mem::take(&mut ordered), now);
            }
            if saving.as_ref().is_some_and(|saving| now.duration_since(saving.since) > SAVE_MAX) {
                self.metrics.state_saved.set(Part::Progress, false);
            }
            if is_last {
                return self.finish(saving, is_wanted, kept).await;
            }
        }
    }

    /// What has been under way before, and then what has come since. A disk that hangs does not keep the process from ending.
    async fn finish(&self, mut saving: Option<Saving>, mut is_wanted: bool, mut kept: Kept) {
        while saving.is_some() {
            let Ok(result) = tokio::time::timeout(SAVE_MAX, ended_of(&mut saving)).await else {
                tracing::error!("the state is not saved: the disk has not answered for {SAVE_MAX:?}");
                return;
            };
            self.end(saving.take(), result, &mut kept);
            if std::mem::take(&mut is_wanted) {
                saving = self.begin(&kept, Vec::new(), Instant::now());
            }
        }
    }

    /// Asks for verdicts and tells them; whether there were any.
    fn judge(&self, now: Instant, sampled: &mut Instant) -> bool {
        let news = self.ledger.judge(now);
        if !news.is_empty()
            || now.duration_since(*sampled) >= SAMPLE_EVERY
            || self.history.is_due(SystemTime::now())
        {
            self.history.sample(&self.ledger.rollouts(), SystemTime::now());
            *sampled = now;
        }
        for (model, record) in &news {
            tell(model, record);
            self.history.mark(model, record, SystemTime::now());
            self.metrics.count_verdict(model, record.verdict);
            if let Some(tracer) = &self.tracer {
                tracer.verdict(model, record);
            }
        }
        for (model, mismatch) in self.ledger.mismatches(now) {
            let Mismatch { cause, why, evidence } = mismatch;
            tracing::warn!(%model, cause, evidence, "the shares are not as declared: {why}");
        }
        !news.is_empty()
    }

    /// Begins to write what has changed since the file held what is `kept`; nothing if nothing has, which `orders` are told.
    fn begin(&self, kept: &Kept, orders: Vec<Saved>, now: Instant) -> Option<Saving> {
        let rings = self.ledger.rings(&self.live.load().snapshot);
        let ended = self.ledger.ended_rollouts();
        let progress = Kept { canaries: self.ledger.progress(now), ended, rings };
        match self.file.clone().filter(|_| progress != *kept) {
            None => {
                tell_saved(orders, &Ok(()));
                None
            }
            Some(file) => {
                let work = tokio::task::spawn_blocking(move || write(&file, &progress).map(|()| progress));
                Some(Saving { work, orders, since: now })
            }
        }
    }

    /// Tells what came of it.
    fn end(&self, saving: Option<Saving>, result: anyhow::Result<Kept>, kept: &mut Kept) {
        self.metrics.state_saved.set(Part::Progress, result.is_ok());
        let result = result.map(|now| *kept = now).map_err(|error| format!("{error:#}"));
        if let Err(error) = &result {
            tracing::error!("the state is not saved: {error}");
        }
        tell_saved(saving.map(|saving| saving.orders).unwrap_or_default(), &result);
    }
}

/// The file is being written.
struct Saving {
    work: JoinHandle<anyhow::Result<Kept>>,
    /// Who waits for it.
    orders: Vec<Saved>,
    since: Instant,
}

/// What came of what is being written; never anything if nothing is.
async fn ended_of(saving: &mut Option<Saving>) -> anyhow::Result<Kept> {
    match saving {
        Some(saving) => (&mut saving.work).await?,
        None => std::future::pending().await,
    }
}

fn tell_saved(orders: Vec<Saved>, result: &Result<(), String>) {
    // Who has ordered it may have left.
    orders.into_iter().for_each(|order| drop(order.send(result.clone())));
}

/// [`Kept`] as it stands in the file.
#[derive(Serialize)]
struct Written<'a> {
    format: u32,
    #[serde(flatten)]
    kept: &'a Kept,
}

fn write(file: &Path, kept: &Kept) -> anyhow::Result<()> {
    files::replace(file, &serde_json::to_vec_pretty(&Written { format: FORMAT, kept })?)
}

/// What an earlier process has kept. A file that cannot be read is an error: beginning anew would give a candidate
/// that was rolled back its share again.
pub fn read(file: &Path) -> anyhow::Result<Kept> {
    let bytes = match std::fs::read(file) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Kept::default()),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", file.display())),
    };
    kept_in(&bytes).with_context(|| {
        format!(
            "{} cannot be gone on with. Without it all canaries begin anew: a candidate that was rolled back or aborted gets \
             its share of the requests again, one that was promoted goes back to its first step, and users of splits may change versions. \
             Take such candidates out of the policy before you remove the file",
            file.display()
        )
    })
}

fn kept_in(bytes: &[u8]) -> anyhow::Result<Kept> {
    #[derive(Deserialize)]
    struct Of {
        format: Option<u32>,
    }
    let Of { format } = serde_json::from_slice(bytes)?;
    let format = format.unwrap_or(FORMAT);
    anyhow::ensure!(
        format == FORMAT,
        "its format is {format}, this penstock reads and writes {FORMAT}: the one that has written it still reads it"
    );
    Ok(serde_json::from_slice(bytes)?)
}

/// The numbers of each gate are fields of their own, so that a log of objects has them as numbers; of a gate that the policy does not
/// have there are none.
fn tell(model: &str, record: &Record) {
    let Record { step, percent, verdict, why, gates, .. } = record;
    let gate = |name: &str| gates.iter().find(|gate| gate.gate == name);
    let [errors, latency, faults] = ["errors", "latency", "faults"].map(gate);
    let [disagreement, drift] = ["disagreement", "drift"].map(gate);
    macro_rules! told {
        ($level:expr, $what:literal) => {
            told!($level, $what, errors, latency, faults, disagreement, drift)
        };
        ($level:expr, $what:literal, $($gate:ident),*) => {
            tracing::event!(
                $level, model, step, percent,
                $(
                    $gate.events = $gate.map(|gate| gate.events),
                    $gate.requests = $gate.map(|gate| gate.requests),
                    $gate.worse = $gate.map(|gate| gate.worse),
                    $gate.rare = $gate.map(|gate| gate.rare),
                )*
                "{}: {why}", $what
            )
        };
    }
    match verdict {
        Verdict::RollBack => told!(Level::ERROR, "canary rolled back"),
        Verdict::Advance => told!(Level::INFO, "canary advances"),
        Verdict::Hold => told!(Level::INFO, "canary holds"),
        Verdict::InsufficientData => told!(Level::INFO, "canary waits for data"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of a process that saves nothing; and who may order something of it.
    fn rollouts(policy: &str) -> (Rollouts, mpsc::Sender<Saved>) {
        let snapshot = policies::parse(policy, "p").unwrap();
        let (ordering, orders) = mpsc::channel(ORDERS_MAX);
        let ledger = Arc::new(Ledger::new());
        ledger.roll_out(&snapshot, Instant::now());
        let live = Arc::new(Live::new(snapshot));
        let readiness = Readiness {
            drain: Arc::default(),
            directory: Arc::default(),
            live: live.clone(),
            ledger: ledger.clone(),
        };
        let rollouts = Rollouts {
            ledger,
            live,
            readiness,
            metrics: Arc::new(Metrics::new()),
            tracer: None,
            history: Arc::default(),
            file: None,
            orders,
        };
        (rollouts, ordering)
    }

    #[tokio::test]
    async fn a_process_that_has_nothing_to_save_ends_at_once() {
        let (rollouts, _ordering) = rollouts("models: {}");
        let (_stop, is_stopped) = watch::channel(true);
        tokio::time::timeout(SAVE_MAX / 2, rollouts.run(is_stopped)).await.expect("nothing to wait for");
    }

    #[tokio::test]
    async fn a_rollout_that_a_process_begins_with_has_a_point_at_once() {
        let text = "models: {m: {canary: {baseline: 1, candidate: 2, steps: [10]}}}";
        let (rollouts, _ordering) = rollouts(text);
        let (_stop, is_stopped) = watch::channel(true);
        let history = rollouts.history.clone();
        rollouts.run(is_stopped).await;
        assert_eq!(history.of("m").points.len(), 1);
    }

    #[tokio::test]
    async fn what_is_gone_is_forgotten_though_nobody_ever_scrapes() {
        let (rollouts, _ordering) = rollouts("models: {}");
        let (_stop, is_stopped) = watch::channel(true);
        let metrics = rollouts.metrics.clone();
        metrics.version("m", 1).served.inc();
        rollouts.run(is_stopped).await;
        metrics.forget_gone(&BTreeMap::new(), Instant::now() + Duration::from_secs(6 * 60));
        assert!(metrics.known("m", 1).is_none(), "it was seen, and not since");
    }

    #[test]
    fn a_verdict_in_a_log_of_objects_has_the_numbers_of_its_gates_as_numbers() {
        #[derive(Clone, Default)]
        struct Log(Arc<std::sync::Mutex<Vec<u8>>>);
        impl std::io::Write for Log {
            fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
                self.0.lock().unwrap().extend_from_slice(line);
                Ok(line.len())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let text = "models: {m: {canary: {baseline: 1, candidate: 2, steps: [10]}}}";
        let (ledger, now) = (Ledger::new(), Instant::now());
        ledger.roll_out(&policies::parse(text, "p").unwrap(), now);
        ledger.command("m", policies::Command::Abort, "it smells", now).unwrap();
        let (model, record) = ledger.judge(now).remove(0);
        let log = Log::default();
        let writer = log.clone();
        let lines = tracing_subscriber::fmt().json().flatten_event(true).with_writer(move || writer.clone());
        tracing::subscriber::with_default(lines.finish(), || tell(&model, &record));
        let line = log.0.lock().unwrap().clone();
        let line: serde_json::Value = serde_json::from_slice(&line).unwrap();
        assert!(line["message"].as_str().unwrap().starts_with("canary rolled back: "), "{line}");
        assert_eq!(
            (&line["model"], &line["step"], &line["errors.events"]),
            (&"m".into(), &1.into(), &0.into())
        );
        assert!(line["errors.worse"].is_f64() && line["errors.rare"].is_f64(), "{line}");
        assert_eq!(line.get("drift.worse"), None, "the policy has no such gate");
    }

    #[test]
    fn progress_comes_back_as_it_was_written_and_nonsense_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("state.json");
        assert_eq!(read(&file).unwrap(), Kept::default());
        let text = "models: {digits: {canary: {baseline: 1, candidate: 2, steps: [10]}}}";
        let (ledger, now) = (Ledger::new(), Instant::now());
        ledger.roll_out(&policies::parse(text, "p").unwrap(), now);
        let split = policies::parse(
            "models: {all: {split: {weights: {1: 1}}}, m: {split: {weights: {1: 2, 2: 1}}}}",
            "p",
        );
        let rings = ledger.rings(&split.unwrap());
        let canaries = ledger.progress(now + Duration::from_secs(3));
        ledger.roll_out(&policies::Snapshot::default(), now);
        let progress = Kept { canaries, ended: ledger.ended_rollouts(), rings };
        assert_ne!(progress.ended, EndedRollouts::default());
        write(&file, &progress).unwrap();
        assert_eq!(read(&file).unwrap(), progress);
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(text.contains("\"rolled_back\": {\n    \"digits\": ["), "releases before read it: {text}");
        let refused = |text: &str| {
            std::fs::write(&file, text).unwrap();
            format!("{:#}", read(&file).unwrap_err())
        };
        assert!(refused(&text[..text.len() / 2]).contains("rolled back or aborted gets its share"));
        let newer = refused(&text.replace("\"format\": 1", "\"format\": 2"));
        assert!(newer.contains("rolled back or aborted gets its share"), "{newer}");
        assert!(newer.contains("its format is 2, this penstock reads and writes 1"), "{newer}");
        std::fs::write(&file, text.replace("\"format\": 1,", "")).unwrap();
        assert_eq!(read(&file).unwrap(), progress, "from before there was a number");
    }
}
