//! Watches the policy file and publishes what it says. Decides when to read; a file that does not compile
//! changes nothing. The one owner of that file: what a person asks of the policy through the admin port ends here too,
//! so that no two changes cross.
//!
//! Events only mean "look": what counts is whether the bytes changed. The folder is watched, not the file,
//! because editors replace files by renaming and Kubernetes replaces a symlink two levels up; a slow poll
//! covers file systems that send no events. The last policy that was in force is kept, so that a process can start from
//! it when the file is broken.

use crate::aside;
use crate::certificates;
use crate::files;
use crate::fixed::Fixed;
use crate::keeping::Keeping;
use crate::metrics::Metrics;
use crate::policy_state::PolicyState;
use crate::readiness::Readiness;
use crate::revisions::{Ask, Asked, Denied, Edit, Revisions, Source};
use crate::rollout_history::RolloutHistory;
use crate::supervisor::files_of;
use anyhow::Context;
use notify::Watcher;
use policies::{Gone, Ledger, Live, Plan, Prepared, Snapshot, Version};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

/// Keeps [`Live`] in step with a file.
#[derive(Debug)]
pub struct Reload {
    /// The policy file.
    pub file: PathBuf,
    /// Where it is published.
    pub live: Arc<Live>,
    /// What was in force before, for as long as requests may have it: none of them is to be the one that frees it. (What the rings
    /// of another process replace is freed by whoever has it last: that is rare.)
    pub before: Option<(Prepared, Gone)>,
    /// Told what is gone.
    pub ledger: Arc<Ledger>,
    /// Knows which versions exist, and whether those that the policy names do.
    pub readiness: Readiness,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Told of rollouts that begin: their evidence grows from the first request on.
    pub courses: Arc<RolloutHistory>,
    /// Told what is in force, and which file is not.
    pub state: Arc<PolicyState>,
    /// What was last read.
    pub seen: Seen,
    /// What was in force before.
    pub revisions: Revisions,
    /// What a person asks.
    pub asked: mpsc::Receiver<Asked>,
    /// Keeps these for the next start.
    pub keeping: Keeping,
    /// What no policy changes.
    pub fixed: Arc<Fixed>,
}

/// What the last look at the file has shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Nobody has looked, or it is to be looked at anew.
    Nothing,
    /// There was no file, and that has been told.
    Missing,
    /// This was its text.
    Text(Vec<u8>),
}

/// A file that reads the same after this has been written.
const SETTLE: Duration = Duration::from_millis(100);
/// The same, once its writer has closed it or it was moved there whole. Some scripts write a file in several goes.
const SETTLE_WHOLE: Duration = Duration::from_millis(10);
/// A thousand models with all that can be said of them take less.
pub(crate) const POLICY_BYTES_MAX: usize = 1 << 20;
/// A file that does not stop changing is read all the same.
const STABLE_MAX: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_secs(5);

/// So much of what a policy names and nobody has is told in the log.
const MISSING_TOLD: usize = 20;

impl Reload {
    /// Watches until `stop` changes, and then sees that the last policy is kept.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let (changed, mut changes) = watch::channel(SETTLE);
        let _watcher = match watcher(&self.file, changed) {
            Ok(watcher) => Some(watcher),
            Err(error) => {
                tracing::warn!("policy file is polled every {POLL:?}: {error:#}");
                None
            }
        };
        let mut hangup = signal(SignalKind::hangup()).expect("signal handlers can be installed at start");
        self.keeping.keep(&self.revisions).await;
        // What is not ready now may be so in a moment; files are there or not.
        tell(certificates::unreadable(&Snapshot::default(), &self.live.load().snapshot).await);
        // One for all turns: whoever asks something every few seconds must not put it off.
        let mut polls = tokio::time::interval(POLL);
        polls.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let mut settle = SETTLE;
            tokio::select! {
                Some(Asked { ask, answer }) = self.asked.recv() => {
                    let _ = answer.send(self.answer(ask).await); // who asked may have left
                    continue;
                }
                Ok(()) = changes.changed() => settle = *changes.borrow_and_update(),
                () = self.keeping.settled() => continue,
                // An error means that whoever would say so is gone.
                _ = stop.changed() => return self.keeping.finish().await,
                _ = polls.tick() => self.keeping.begin(),
                _ = hangup.recv() => {
                    tracing::info!("SIGHUP: reading {}", self.file.display());
                    self.seen = Seen::Nothing; // even the same file is compiled again, so that its errors are told again
                }
            }
            self.look(settle, &mut changes).await;
        }
    }

    async fn look(&mut self, settle: Duration, changes: &mut watch::Receiver<Duration>) {
        let (bytes, ahead) = match self.stable(settle, changes).await {
            Ok(stable) => stable,
            Err(error) => {
                if self.seen != Seen::Missing {
                    let error = format!("cannot read {}: {error}", self.file.display());
                    tracing::error!("policy stays as it is: {error}");
                    self.metrics.policy_rejected.inc();
                    self.state.reject(&error, SystemTime::now());
                    self.seen = Seen::Missing;
                }
                return;
            }
        };
        if matches!(&self.seen, Seen::Text(seen) if *seen == bytes) {
            return;
        }
        let preparing = ahead.unwrap_or_else(|| self.prepare_aside(&bytes, &self.file));
        match preparing.await {
            Ok(next) => self.publish(next, Source::File, None).await,
            Err(error) => {
                tracing::error!("policy stays as it is:\n{error}");
                self.metrics.policy_rejected.inc();
                self.state.reject(&error, SystemTime::now());
            }
        }
        self.seen = Seen::Text(bytes);
    }

    async fn publish(&mut self, next: Next, source: Source, restores: Option<u64>) {
        let Next { mut prepared, text, missing, unreadable } = next;
        let published = self.live.put_in_force(&mut prepared, &self.ledger, Instant::now());
        self.courses.sample(&self.ledger.rollouts(), SystemTime::now());
        let is_written_otherwise = self.revisions.current().text != text;
        self.revisions.note(published.generation, text, source, restores, SystemTime::now());
        self.state.accept();
        if !published.changed {
            if is_written_otherwise {
                self.keeping.keep(&self.revisions).await;
            }
            return;
        }
        let models = self.readiness.directory.load();
        let serves = |model: &str, version: Version| models.entry(model, version.0).is_some();
        let gone = self.ledger.retain(prepared.snapshot(), serves);
        // A rollout that begins now is to know what it is about. Whoever publishes newer files meanwhile is right.
        for (entry, files) in models.entries().filter_map(|entry| Some((entry, files_of(entry)?))) {
            self.ledger.begins_with(&entry.name, Version(entry.version), files);
        }
        if let Some(older) = self.before.replace((prepared, gone)) {
            aside::free(older);
        }
        self.metrics.policy_generation.set(published.generation);
        self.state.changed(SystemTime::now());
        tracing::info!("policy generation {} is in force", published.generation);
        if let Err(reason) = self.readiness.server() {
            tracing::warn!("not ready under this policy: {reason}");
        }
        tell([missing, unreadable].concat());
        self.keeping.keep(&self.revisions).await;
    }

    async fn answer(&mut self, ask: Ask) -> Result<Edit, Denied> {
        let current = self.revisions.current();
        match ask {
            Ask::Show => Ok(Edit::Shown(current.clone())),
            Ask::History => Ok(Edit::History(self.revisions.all().cloned().collect())),
            Ask::Plan { text } => {
                let next = self.prepared(&text).await?;
                let (plan, tag, fixed) = (self.plan(&next), current.tag(), self.fixed.clone());
                aside::free(next);
                let at_restart = tokio::task::spawn_blocking(move || fixed.look()).await.unwrap_or_default();
                Ok(Edit::Planned { plan, tag, at_restart })
            }
            Ask::Adopt { rings } => {
                let text = self.revisions.current().text.clone();
                let compiling = aside::begin(move || compile(text.as_bytes(), Path::new("policy")));
                let snapshot = compiling.await.unwrap_or_else(not_now).map_err(Denied::Faulty)?;
                Ok(Edit::Adopted(self.live.adopt(snapshot, &rings, &self.ledger, Instant::now())))
            }
            Ask::Put { tag, .. } | Ask::RollBack { tag, .. } if !current.is_meant(&tag) => {
                Err(Denied::Changed { tag: current.tag() })
            }
            Ask::Put { text, .. } => self.put(text, Source::Admin, None).await,
            Ask::RollBack { to, .. } => {
                if to == Some(current.generation) {
                    return Err(Denied::InForce { generation: current.generation });
                }
                let earlier = self.revisions.earlier(to).ok_or(Denied::NoSuchRevision)?;
                let (text, first) = (earlier.text.clone(), earlier.first());
                self.put(text, Source::RollBack, Some(first)).await
            }
        }
    }

    /// Into the file first: it is what the next start reads.
    async fn put(&mut self, text: String, source: Source, restores: Option<u64>) -> Result<Edit, Denied> {
        let next = self.prepared(&text).await?;
        let plan = self.plan(&next);
        let seen = self.seen.clone();
        let draft = self.keep_draft(&text).await;
        let replaced = replace(&self.file, &text, move |file| seen.is_still(file)).await;
        if !replaced.map_err(|error| Denied::NotWritten(format!("{error:#}")))? {
            return Err(Denied::FileChanged);
        }
        self.publish(next, source, restores).await;
        self.seen = Seen::Text(text.into_bytes());
        Ok(Edit::Applied { plan, revision: self.revisions.current().clone(), draft })
    }

    /// What stands in the file and is not in force would be lost: a copy beside it, if one could be made.
    async fn keep_draft(&self, text: &str) -> Option<PathBuf> {
        let is_rejected = self.state.read().1.is_some();
        let Seen::Text(draft) = &self.seen else { return None };
        if !is_rejected || draft == text.as_bytes() {
            return None;
        }
        let mut beside = self.file.clone().into_os_string();
        beside.push(".rejected");
        // Of one that is too long no more was read than shows that.
        let (beside, from) = (PathBuf::from(beside), self.file.clone());
        let (file, copy) = (self.file.display(), beside.clone());
        match tokio::task::spawn_blocking(move || std::fs::copy(from, copy).map_err(anyhow::Error::from))
            .await
            .map_err(Into::into)
            .flatten()
        {
            Ok(_) => {
                tracing::warn!("what stood in {file} was not in force; it is in {} now", beside.display());
                Some(beside)
            }
            Err(error) => {
                tracing::warn!("what stood in {file} was not in force, and is not kept: {error:#}");
                None
            }
        }
    }

    fn plan(&self, next: &Next) -> Plan {
        let models = self.readiness.directory.load();
        let mut plan = self.ledger.plan(&self.live.load().snapshot, next.prepared.snapshot(), &*models);
        for change in &mut plan.changes {
            let of_it = next.unreadable.iter().filter(|(of, _)| *of == change.of);
            change.state.extend(of_it.map(|(_, line)| line.clone()));
        }
        plan
    }

    async fn prepared(&self, text: &str) -> Result<Next, Denied> {
        self.prepare_aside(text.as_bytes(), Path::new("policy")).await.map_err(Denied::Faulty)
    }

    /// A large policy takes as long as hundreds of requests: they go first.
    fn prepare_aside(&self, bytes: &[u8], origin: &Path) -> Preparing {
        let (bytes, origin) = (bytes.to_vec(), origin.to_owned());
        let (live, ledger) = (self.live.clone(), self.ledger.clone());
        let directory = Arc::clone(&self.readiness.directory);
        let preparing = aside::begin(move || {
            let snapshot = compile(&bytes, &origin)?;
            let text = String::from_utf8_lossy(&bytes).into_owned();
            let missing = ledger.missing(&live.load().snapshot, &snapshot, &*directory.load());
            let prepared = live.prepare(snapshot, &ledger, Instant::now());
            Ok(Next { prepared, text, missing, unreadable: Vec::new() })
        });
        let before = self.live.load();
        Box::pin(async move {
            let mut next = preparing.await.unwrap_or_else(not_now)?;
            next.unreadable = certificates::unreadable(&before.snapshot, next.prepared.snapshot()).await;
            Ok(next)
        })
    }

    /// The file, once it has stopped changing: whoever writes it needs a moment between truncating and finishing, and
    /// half a policy may well be a policy. What is probably whole is prepared meanwhile, once.
    async fn stable(
        &self,
        mut settle: Duration,
        changes: &mut watch::Receiver<Duration>,
    ) -> io::Result<(Vec<u8>, Option<Preparing>)> {
        let last_look = Instant::now() + STABLE_MAX;
        let mut before = content_aside(&self.file).await;
        let is_new = |bytes: &&Vec<u8>| !matches!(&self.seen, Seen::Text(seen) if seen == *bytes);
        let whole = before.as_ref().ok().filter(is_new).filter(|_| settle == SETTLE_WHOLE);
        let mut ahead = whole.map(|bytes| self.prepare_aside(bytes, &self.file));
        loop {
            let is_nothing_new = before.as_ref().is_ok_and(|bytes| !is_new(&bytes));
            if is_nothing_new || Instant::now() >= last_look {
                return Ok((before?, ahead));
            }
            // What is gone may be on its way under another name.
            let wait = if before.is_ok() { settle } else { SETTLE };
            let changed = tokio::select! {
                Ok(()) = changes.changed() => true,
                () = tokio::time::sleep(wait) => false,
            };
            let now = content_aside(&self.file).await;
            if changed {
                settle = *changes.borrow_and_update();
            }
            let is_same = before.as_ref().ok() == now.as_ref().ok();
            if is_same && !changed {
                return Ok((now?, ahead));
            }
            if !is_same {
                ahead = None;
            }
            before = now;
        }
    }
}

impl Seen {
    /// Whether that is what is there. A file that is gone may be written anew.
    fn is_still(&self, file: &Path) -> io::Result<bool> {
        match content(file) {
            Ok(bytes) => Ok(matches!(self, Self::Text(seen) if *seen == bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
            Err(error) => Err(error),
        }
    }
}

/// No more of it than shows that it is no policy: it may be anything, and of any length.
fn content(file: &Path) -> io::Result<Vec<u8>> {
    files::read_file_at_most(file, POLICY_BYTES_MAX)
}

async fn content_aside(file: &Path) -> io::Result<Vec<u8>> {
    let file = file.to_owned();
    tokio::task::spawn_blocking(move || content(&file)).await?
}

/// Writes a file if `may` says so just before; whether it did. A disk that is slow must not hold up whoever shares this
/// thread: the supervisor of the engine does.
async fn replace(
    file: &Path,
    text: &str,
    may: impl FnOnce(&Path) -> io::Result<bool> + Send + 'static,
) -> anyhow::Result<bool> {
    let (file, text) = (file.to_owned(), text.to_owned());
    tokio::task::spawn_blocking(move || files::replace_if(&file, text.as_bytes(), || may(&file))).await?
}

/// The policy to start with, and the text that it was compiled from: that of the file, or the last that was in force if
/// the file is no good.
pub fn first(
    file: &Path,
    last_good: Option<&Path>,
    state: &PolicyState,
) -> anyhow::Result<(Snapshot, Vec<u8>, Seen)> {
    let content = content(file);
    // What is told now is not told again before it changes; and what is written from now on is read.
    let seen = content.as_ref().map_or(Seen::Missing, |bytes| Seen::Text(bytes.clone()));
    let error = match compiled(content, file) {
        Ok((snapshot, bytes)) => return Ok((snapshot, bytes, seen)),
        Err(error) => error,
    };
    let Some(last_good) = last_good.filter(|file| file.exists()) else { return Err(error) };
    tracing::error!("the policy file is no good: {error:#}");
    state.reject(&format!("{error:#}"), SystemTime::now());
    let (snapshot, bytes) = read(last_good)?;
    tracing::error!("starting with the last policy that was in force, {}", last_good.display());
    Ok((snapshot, bytes, seen))
}

/// Reads a policy, which may come through a pipe, or as `-` from standard input.
pub fn read(file: &Path) -> anyhow::Result<(policies::Snapshot, Vec<u8>)> {
    compiled(files::read_at_most(file, POLICY_BYTES_MAX), file)
}

fn compiled(bytes: io::Result<Vec<u8>>, file: &Path) -> anyhow::Result<(policies::Snapshot, Vec<u8>)> {
    let bytes = bytes.with_context(|| format!("cannot read the policy file {}", file.display()))?;
    let snapshot = compile(&bytes, file).map_err(anyhow::Error::msg)?;
    Ok((snapshot, bytes))
}

/// What a policy names and nobody has.
fn tell(missing: Vec<(String, String)>) {
    for (of, line) in missing.iter().take(MISSING_TOLD) {
        tracing::warn!("{of}: {line}");
    }
    if let more @ 1.. = missing.len().saturating_sub(MISSING_TOLD) {
        tracing::warn!("and {more} more that the policy names and nobody has");
    }
}

/// A policy, the text that says so, and what it names that nobody has.
struct Next {
    prepared: Prepared,
    text: String,
    missing: Vec<(String, String)>,
    /// Likewise, of files.
    unreadable: Vec<(String, String)>,
}

/// What becomes of a policy that is being compiled and prepared, whether or not anybody waits for it.
type Preparing = std::pin::Pin<Box<dyn Future<Output = Result<Next, String>> + Send>>;

fn not_now<T>() -> Result<T, String> {
    Err("it cannot be read now".to_owned())
}

fn compile(bytes: &[u8], file: &Path) -> Result<policies::Snapshot, String> {
    let origin = file.display().to_string();
    if bytes.len() > POLICY_BYTES_MAX {
        return Err(format!("{origin}: it is too long, a policy has at most {POLICY_BYTES_MAX} bytes"));
    }
    let text = std::str::from_utf8(bytes).map_err(|error| format!("{origin}: not UTF-8: {error}"))?;
    if text.trim().is_empty() {
        // What a reader sees between an editor's truncating a file and writing it.
        return Err(format!("{origin}: the file is empty; for no policy at all write `models: {{}}`"));
    }
    policies::parse(text, &origin).map_err(|errors| errors.to_string())
}

/// Tells of every change how long the file has to stay as it is before it counts as written.
fn watcher(file: &Path, changed: watch::Sender<Duration>) -> anyhow::Result<notify::RecommendedWatcher> {
    use notify::event::{AccessKind, AccessMode, EventKind, ModifyKind, RenameMode};
    let own = file.to_owned();
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        let Ok(event) = event else {
            changed.send_replace(SETTLE);
            return;
        };
        let is_own = |path: &PathBuf| path.file_name() == own.file_name();
        let concerns_it = event.need_rescan() || event.paths.iter().any(is_own) || own.is_symlink();
        if !concerns_it {
            return; // another file of its folder
        }
        let settle = match event.kind {
            EventKind::Access(AccessKind::Close(AccessMode::Write)) if event.paths.iter().any(is_own) => {
                SETTLE_WHOLE
            }
            // Of a move, the last path is where to. What a link points to may be several links away.
            EventKind::Modify(ModifyKind::Name(RenameMode::To | RenameMode::Both))
                if own.is_symlink() || event.paths.last().is_some_and(is_own) =>
            {
                SETTLE_WHOLE
            }
            // Reading the file is an event too, and no reason to read it again.
            EventKind::Access(_) => return,
            _ => SETTLE,
        };
        changed.send_replace(settle);
    })?;
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    watcher
        .watch(folder, notify::RecursiveMode::NonRecursive)
        .with_context(|| format!("cannot watch {}", folder.display()))?;
    Ok(watcher)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_file_of_any_length_no_more_is_read_than_a_policy_may_have() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("p.yaml");
        std::fs::File::create(&file).unwrap().set_len(1 << 40).unwrap();
        assert_eq!(content(&file).unwrap().len(), POLICY_BYTES_MAX + 1);
        assert!(read(&file).unwrap_err().to_string().contains("it is too long"));
        std::fs::write(&file, vec![b'#'; POLICY_BYTES_MAX]).unwrap();
        assert_eq!(content(&file).unwrap().len(), POLICY_BYTES_MAX);
    }

    #[test]
    fn a_file_that_is_no_policy_is_told_from_one_by_its_size() {
        let mut text = String::from("models: {}\n");
        let padded = |bytes: usize| " #".repeat(bytes / 2);
        text += &padded(POLICY_BYTES_MAX - text.len() - 1);
        assert!(compile(text.as_bytes(), Path::new("p")).is_ok());
        let large = text.clone() + &padded(9 << 20);
        let error = compile(large.as_bytes(), Path::new("p")).unwrap_err();
        assert_eq!(error, "p: it is too long, a policy has at most 1048576 bytes");
    }
}
