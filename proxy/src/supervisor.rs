//! Keeps an engine at hand: starts it, follows what it says, restarts it with growing pauses when it goes.
//! Decides when to start again; never touches a request (a lost engine fails them through their links).
//!
//! ```text
//!          start ──▶ connect ──▶ follow (Index → directory) ──▶ lost ──▶ pause ─┐
//!            ▲                      │ stop: close its stdin, wait, kill         │
//!            └──────────────────────┴───────────────────────────────────────────┘
//! ```
//!
//! An engine that holds more memory than it may is replaced by another that has loaded its models first, where there is
//! memory for both, so that no request notices; else it has two seconds for what is under way to it already, is stopped,
//! answers what it can in the time that a stop gives it, and another is started.
//!
//! The engine exits when its standard input ends, so that even a killed proxy leaves no orphan.

mod engine;
mod growth;
mod loads;
mod pause;

use crate::directory::Directory;
use crate::drift;
use crate::link::{Event, Link};
use crate::links::Links;
use crate::metrics::Metrics;
use anyhow::Context;
pub use engine::EngineCommand;
use engine::{
    Ended, Engine, PING_EVERY, Process, Retiring, SILENCE_MAX, dismiss, exit_of, is_ours, let_go, retire,
    silent, stop_and_close,
};
use growth::Outgrown;
use loads::{Loads, News};
use pause::Pause;
use policies::{Ledger, Live, Version};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use wire::{Action, Control, Index, ModelEntry, ModelState, Reply, Status, VersionDrift};

/// Owns the engine's process, if it is ours, and the link that carries its events.
#[derive(Debug)]
pub struct Supervisor {
    /// Where the engine listens.
    pub socket: PathBuf,
    /// `None`: somebody else runs it.
    pub command: Option<EngineCommand>,
    /// Where its index goes.
    pub directory: Arc<Directory>,
    /// Says how breakers are set.
    pub live: Arc<Live>,
    /// Told which versions are gone, and which are others now.
    pub ledger: Arc<Ledger>,
    /// Where requests go.
    pub links: Arc<Links>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

/// A started engine answers its socket well within this; loading models comes after.
const CONNECT_MAX: Duration = Duration::from_secs(30);
/// Events that wait to be followed.
const EVENTS_MAX: usize = 1024;
/// An engine that outgrows its memory sooner is not replaced: the next one would do the same.
const REPLACE_EVERY: Duration = Duration::from_secs(10);
/// What a successor's socket is called more than ours.
pub(crate) const SUCCESSOR: &str = ".2";

impl Supervisor {
    /// Runs until `stop` turns true, then stops the engine if it is ours.
    pub async fn run(&self, mut stop: watch::Receiver<bool>) {
        let (mut pause, mut retiring) = (Pause::new(), None);
        while !*stop.borrow() {
            let started = Instant::now();
            let ended = self.one_life(&mut retiring, &mut stop).await;
            if *stop.borrow() {
                return;
            }
            let wait = pause.after(started.elapsed());
            match ended {
                Ok(reason) => tracing::warn!("engine lost: {reason}; trying again in {wait:?}"),
                Err(error) => tracing::error!("engine: {error:#}; trying again in {wait:?}"),
            }
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                _ = stop.changed() => {}
            }
        }
    }

    /// From start to end of one engine and of those that took over from it; says why the last one ended.
    async fn one_life(
        &self,
        retiring: &mut Option<Retiring>,
        stop: &mut watch::Receiver<bool>,
    ) -> anyhow::Result<String> {
        // Where one still answers what it has, no other can listen.
        let is_taken =
            retiring.as_ref().is_some_and(|old| old.socket == self.socket && !old.done.is_finished());
        let socket = if is_taken { self.other_socket(&self.socket) } else { self.socket.clone() };
        let mut engine = tokio::select! {
            begun = self.begin(socket) => begun?,
            _ = stop.changed() => return Ok("stopped".into()),
        };
        self.links.succeed(engine.socket.clone());
        loop {
            let ended = match self.follow(&mut engine, stop).await {
                Ended::Outgrown { beside: true, says } => {
                    self.links.is_handing_over.store(true, Ordering::Relaxed);
                    let replaced = self.replace(&mut engine, &says, retiring, stop).await;
                    self.links.is_handing_over.store(false, Ordering::Relaxed);
                    match replaced {
                        Ok(Some(successor)) => {
                            *retiring = Some(retire(std::mem::replace(&mut engine, successor)));
                            continue;
                        }
                        Ok(None) => continue,
                        Err(ended) => ended,
                    }
                }
                ended => ended,
            };
            let life = self.lost();
            let ends_alone = matches!(ended, Ended::Outgrown { .. });
            let reason = ended.reason(&mut engine).await;
            if ends_alone {
                tracing::warn!("{reason}: there is no memory for another engine beside it, so it ends first");
                self.links.is_handing_over.store(true, Ordering::Relaxed);
                tokio::select! {
                    () = engine.drained(life) => {}
                    _ = stop.changed() => {}
                }
            }
            if *stop.borrow() {
                stop_and_close(engine, &reason).await;
            } else {
                dismiss(engine, &reason).await;
            }
            self.links.is_handing_over.store(false, Ordering::Relaxed);
            return Ok(reason);
        }
    }

    /// There is no engine any more for those who come. Gives what those before them hold.
    fn lost(&self) -> Arc<()> {
        let life = self.directory.disconnect();
        self.metrics.drifts.clear();
        self.metrics.engine.forget();
        self.metrics.engine_up.set(0);
        life
    }

    /// Starts an engine, if that is ours to do, and connects to it.
    async fn begin(&self, socket: PathBuf) -> anyhow::Result<Engine> {
        let start = |command: &EngineCommand| {
            self.metrics.engine_starts.inc();
            command.start(&socket)
        };
        let mut process = self.command.as_ref().map(start).transpose()?;
        let (told, events) = mpsc::channel(EVENTS_MAX);
        let link = tokio::select! {
            link = self.connect(&socket, told) => link?,
            status = exit_of(&mut process) => anyhow::bail!("it ended before it listened: {status}"),
        };
        Ok(Engine::new(socket, process, link, events))
    }

    /// Tells requests, breakers and rollouts what the engine has: what they have seen of other files says nothing about
    /// these.
    fn publish(&self, index: Index, loads: &mut Loads) {
        let News { same, replaced } = loads.follow(&index);
        for (model, version) in &replaced {
            self.ledger.replaced(model, Version(*version), Instant::now());
        }
        let serves = |model: &str, version: Version| same.contains(&(model.to_owned(), version.0));
        // A policy that is put in force meanwhile must not be followed by the one before it.
        loop {
            let live = self.live.load();
            self.ledger.retain(&live.snapshot, serves);
            if Arc::ptr_eq(&live, &self.live.load()) {
                break;
            }
        }
        let entries = index.models.iter();
        let now: BTreeMap<_, _> =
            entries.map(|entry| ((entry.name.as_str(), entry.version), entry.load)).collect();
        self.metrics.drifts.retain(|model, version, load| now.get(&(model, version)) == Some(&load));
        let files: Vec<_> = index
            .models
            .iter()
            .filter_map(|entry| Some((entry.name.clone(), Version(entry.version), files_of(entry)?)))
            .collect();
        self.directory.publish(index);
        // Only then: a policy that is put in force meanwhile has read either these or others before.
        for (model, version, files) in files {
            self.ledger.made_of(&model, version, files, Instant::now());
        }
    }

    /// Publishes what the engine says for as long as it answers and holds no more memory than it may.
    async fn follow(&self, engine: &mut Engine, stop: &mut watch::Receiver<bool>) -> Ended {
        let Engine { link, process, events, pid, socket, .. } = engine;
        let (born, patience) = (engine.born, engine.patience);
        let (growth, loads) = (&mut engine.growth, &mut engine.loads);
        let mut pings = tokio::time::interval(PING_EVERY);
        let mut heard = Instant::now();
        loop {
            let event = tokio::select! {
                event = events.recv() => event,
                reason = link.closed() => return Ended::Closed(reason),
                status = exit_of(process) => return Ended::Lost(format!("it ended: {status}")),
                _ = stop.changed() => return Ended::Lost("stopped".into()),
                _ = pings.tick() => {
                    if heard.elapsed() > SILENCE_MAX {
                        // It would not hear that it is to stop, and all that wait for it are told now.
                        process.as_mut().map(Process::kill);
                        return Ended::Lost(silent());
                    }
                    link.ping();
                    continue;
                }
            };
            heard = Instant::now();
            match event {
                Some(Event::Hello(hello)) => {
                    if let Err(reason) = is_ours(*pid, &hello, socket) {
                        return Ended::Lost(reason);
                    }
                    self.links.heed(&hello);
                }
                Some(Event::Index(index)) => {
                    growth.models_changed(&index);
                    link.ping(); // what it holds now is what its models need
                    self.metrics.engine_up.set(1);
                    self.publish(index, loads);
                }
                Some(Event::Pong(mut health)) => {
                    self.moved(std::mem::take(&mut health.drifts));
                    self.metrics.engine.hear(health.clone());
                    let outgrown = growth.observe(health).filter(|_| born.elapsed() > patience);
                    if let (Some(Outgrown { beside, says }), Some(_)) = (outgrown, &process) {
                        return Ended::Outgrown { beside, says };
                    }
                }
                None => return Ended::Closed("its link has ended".into()),
            }
        }
    }

    /// Tells rollouts, and those who look, how far tensors have moved.
    fn moved(&self, news: Vec<VersionDrift>) {
        let now = Instant::now();
        for of in &news {
            if let Some(sight) = drift::sight(of, now) {
                self.ledger.drifted(&of.name, Version(of.version), sight, now);
            }
        }
        self.metrics.drifts.take(news);
    }

    /// Another engine, which has the same versions ready and gets all requests from now on; `None` if there is none, and
    /// the old one is to go on. It is followed until then; an error says why it is to be given up.
    async fn replace(
        &self,
        old: &mut Engine,
        says: &str,
        retiring: &mut Option<Retiring>,
        stop: &mut watch::Receiver<bool>,
    ) -> Result<Option<Engine>, Ended> {
        tracing::warn!("{says}: another engine takes over");
        let socket = self.other_socket(&old.socket);
        // Whatever comes of this, it is not tried again at once.
        let lived = old.born.elapsed();
        let patience = if lived < 10 * old.patience { 2 * old.patience } else { REPLACE_EVERY };
        (old.born, old.patience) = (Instant::now(), Duration::MAX);
        let begun = tokio::select! {
            begun = self.begin(socket) => begun,
            ended = self.follow(old, stop) => return Err(ended),
        };
        let failed = |error: anyhow::Error| {
            tracing::error!("its successor failed, the old engine goes on: {error:#}");
            Ok(None)
        };
        let mut successor = match begun {
            Ok(begun) => begun,
            Err(error) => {
                (old.born, old.patience) = (Instant::now(), patience);
                return failed(error);
            }
        };
        let loaded = tokio::select! {
            loaded = self.load_like(&mut successor) => loaded,
            ended = self.follow(old, stop) => {
                if *stop.borrow() {
                    // A trial that is cut short by a kill would count against its version.
                    let _ = let_go(successor).done.await;
                    return Err(ended);
                }
                // What it has loaded by then would have to be loaded again.
                self.lost();
                tracing::warn!("engine lost: {}; its successor goes on", ended.reason(old).await);
                let index = successor.index.take();
                self.hand_over(&mut successor, index, patience);
                return Ok(Some(successor));
            }
        };
        (old.born, old.patience) = (Instant::now(), patience);
        let index = match loaded {
            Ok(index) => index,
            Err(error) => {
                *retiring = Some(let_go(successor));
                return failed(error);
            }
        };
        self.hand_over(&mut successor, Some(index), patience);
        Ok(Some(successor))
    }

    /// From now on the successor answers, as far as it has said what it has.
    fn hand_over(&self, successor: &mut Engine, index: Option<Index>, patience: Duration) {
        (successor.born, successor.patience) = (Instant::now(), patience);
        self.links.heed(&successor.hello);
        self.links.succeed(successor.socket.clone());
        self.metrics.drifts.clear(); // the successor looks at rows anew
        if let Some(index) = index {
            self.metrics.engine_up.set(1);
            successor.growth.models_changed(&index);
            self.directory.succeed();
            self.publish(index, &mut successor.loads);
        }
    }

    /// Waits until an engine has loaded what answers now.
    async fn load_like(&self, engine: &mut Engine) -> anyhow::Result<Index> {
        let index = engine.loaded().await?;
        let index = self.with_the_same(engine, index).await?;
        Ok(index)
    }

    /// Sees that an engine answers for the versions that answer now, and for no others: what was unloaded stays so.
    async fn with_the_same(&self, engine: &mut Engine, mut index: Index) -> anyhow::Result<Index> {
        let now = self.directory.load();
        let is_ready = |index: &Index, name: &str, version| {
            let mut entries = index.models.iter();
            entries.any(|entry| {
                (entry.name.as_str(), entry.version, entry.state()) == (name, version, ModelState::Ready)
            })
        };
        for entry in now.entries().filter(|entry| entry.state() == ModelState::Ready) {
            let (name, version) = (entry.name.as_str(), entry.version);
            anyhow::ensure!(is_ready(&index, name, version), "it has no version {version} of model `{name}`");
        }
        let ready = index.models.clone().into_iter().filter(|entry| entry.state() == ModelState::Ready);
        for entry in ready.filter(|entry| !now.is_ready(&entry.name, entry.version)) {
            let action = Action::Unload as i32;
            let control = Control { action, model: entry.name.clone(), version: entry.version };
            let frame = engine.link.order(&control)?.answer().await?;
            let reply: Reply = prost::Message::decode(frame.metadata)?;
            anyhow::ensure!(reply.status() == Status::Ok, "{}", reply.message);
            while index.revision < reply.revision {
                index = engine.loaded().await?;
            }
        }
        Ok(index)
    }

    /// Two engines of one penstock take turns.
    fn other_socket(&self, socket: &Path) -> PathBuf {
        if socket != self.socket {
            return self.socket.clone();
        }
        let mut other = self.socket.clone().into_os_string();
        other.push(SUCCESSOR);
        other.into()
    }

    async fn connect(&self, socket: &Path, told: mpsc::Sender<Event>) -> anyhow::Result<Link> {
        let deadline = Instant::now() + CONNECT_MAX;
        loop {
            let told = told.clone();
            // Full: an engine that says so much so fast is given up for its silence.
            let on_event = move |event| drop(told.try_send(event));
            match Link::connect(socket, on_event).await {
                Ok(link) => return Ok(link),
                Err(error) if self.command.is_none() || Instant::now() > deadline => {
                    return Err(error).with_context(|| format!("cannot connect to {}", socket.display()));
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }
}

/// Of which files a version is made that is ready, if the engine says so.
pub(crate) fn files_of(entry: &ModelEntry) -> Option<u64> {
    (entry.state() == ModelState::Ready && entry.files != 0).then_some(entry.files)
}

#[cfg(test)]
mod tests {
    use super::engine::DRAINED_MAX;
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use wire::Health;

    fn index(entries: &[(u64, ModelState, u64)]) -> Index {
        let entry = |(version, state, load): &(u64, ModelState, u64)| ModelEntry {
            name: "m".into(),
            version: *version,
            state: *state as i32,
            load: *load,
            ..ModelEntry::default()
        };
        Index { models: entries.iter().map(entry).collect(), revision: 1 }
    }

    /// One that is told of an engine by hand.
    fn supervisor() -> Supervisor {
        let socket = PathBuf::from("engine.sock");
        Supervisor {
            links: Arc::new(Links::new(socket.clone())),
            socket,
            command: None,
            directory: Arc::default(),
            live: Arc::new(Live::new(policies::Snapshot::default())),
            ledger: Arc::default(),
            metrics: Arc::new(Metrics::new()),
        }
    }

    #[test]
    fn an_engine_that_is_lost_leaves_nothing_that_looks_like_one_that_is_there() {
        let supervisor = supervisor();
        supervisor.metrics.engine_up.set(1);
        supervisor.metrics.engine.hear(Health { resident_bytes: 7, under_way: 3, ..Health::default() });
        let shown = || supervisor.metrics.encode(crate::exposition::Exposition::Text);
        let there = shown();
        assert!(there.contains("\npenstock_engine_resident_bytes 7\n"), "{there}");
        assert!(there.contains("\npenstock_engine_up 1\n"), "{there}");
        supervisor.lost();
        let gone = shown();
        assert!(gone.contains("\npenstock_engine_up 0\n"), "{gone}");
        for name in ["resident_bytes", "memory_bytes", "request_bytes", "under_way", "running", "waiting"] {
            assert!(!gone.contains(&format!("penstock_engine_{name}")), "{name}: {gone}");
        }
        assert!(!gone.contains("penstock_device_"), "{gone}");
    }

    #[test]
    fn a_breaker_outlives_its_engine_but_not_the_files_that_it_has_judged() {
        use ModelState::{Loading, Ready, Unavailable};
        use policies::{Outcome, Snapshot};
        let supervisor = supervisor();
        let (ledger, now) = (&supervisor.ledger, Instant::now());
        let trip = |version| {
            for _ in 0..5 {
                let pass = ledger.enter(&Snapshot::default(), "m", Version(version), now).unwrap();
                pass.settle(Outcome::Failed, now);
            }
        };
        let remembered = || ledger.breakers(now).iter().map(|status| status.version.0).collect::<Vec<_>>();
        let mut first = Loads::default();
        supervisor.publish(index(&[(1, Ready, 1), (2, Loading, 0)]), &mut first);
        supervisor.publish(index(&[(1, Ready, 1), (2, Ready, 2)]), &mut first);
        trip(1);
        trip(2);
        supervisor.publish(index(&[(1, Ready, 1), (2, Ready, 2), (3, Ready, 3)]), &mut first);
        assert_eq!(remembered(), [1, 2], "another version is no news of these");
        supervisor.publish(index(&[(1, Ready, 1), (2, Ready, 4), (3, Ready, 3)]), &mut first);
        assert_eq!(remembered(), [1], "its files were mended");
        trip(2);

        let mut second = Loads::default();
        supervisor.directory.disconnect();
        supervisor.publish(index(&[(1, Loading, 0), (2, Loading, 0)]), &mut second);
        supervisor.publish(index(&[(1, Ready, 1), (2, Ready, 2)]), &mut second);
        assert_eq!(remembered(), [1, 2], "another engine has the same files");
        supervisor.publish(index(&[(1, Unavailable, 0), (2, Ready, 2)]), &mut second);
        assert_eq!(remembered(), [2], "it was unloaded");
        supervisor.publish(index(&[]), &mut second);
        assert!(remembered().is_empty(), "its folder is gone");
    }

    #[test]
    fn a_rollout_begins_its_step_anew_when_files_are_replaced_and_for_no_other_news() {
        use ModelState::{Loading, Ready, Unavailable};
        use policies::Sight;
        let supervisor = supervisor();
        let (ledger, now) = (&supervisor.ledger, Instant::now());
        let text = "models: {m: {canary: {baseline: 1, candidate: 2, steps: [50]}}}";
        let policy = policies::parse(text, "p").unwrap();
        ledger.roll_out(&policy, now);
        let (head, ()) = http::Request::new(()).into_parts();
        let caller = crate::caller::Caller::new(&head);
        let answer = || {
            let pick = ledger.pick(&policy, "m", &caller, u64::MAX, |_| true).unwrap();
            let answered = Sight::Answered(Duration::from_millis(1));
            ledger.witness("m", pick.assigned.unwrap(), None, answered, now);
            ledger.rollouts()["m"].gates[0].requests
        };
        let mut loads = Loads::default();
        supervisor.publish(index(&[(1, Ready, 1), (2, Loading, 0)]), &mut loads);
        supervisor.publish(index(&[(1, Ready, 1), (2, Ready, 2)]), &mut loads);
        assert_eq!((answer(), answer()), (1, 2));
        supervisor.publish(index(&[(1, Ready, 1), (2, Ready, 2), (3, Ready, 3)]), &mut loads);
        assert_eq!(answer(), 3, "another version is no news of these");
        supervisor.publish(index(&[(1, Ready, 1), (2, Ready, 4), (3, Ready, 3)]), &mut loads);
        assert_eq!(answer(), 1, "its files were replaced");
        supervisor.publish(index(&[(1, Ready, 1), (2, Unavailable, 0)]), &mut loads);
        assert_eq!(answer(), 2, "who was sent to it before still tells");
        supervisor.publish(index(&[(1, Ready, 1), (2, Ready, 5)]), &mut loads);
        assert_eq!(answer(), 1, "it was unloaded and loaded: whether its files are the same, nobody says");
        supervisor.publish(index(&[(1, Ready, 6), (2, Ready, 5)]), &mut loads);
        assert_eq!(answer(), 1, "those that it is compared with were replaced");
        supervisor.publish(index(&[(1, Ready, 1), (2, Ready, 2)]), &mut Loads::default());
        assert_eq!(answer(), 2, "another engine has the same files");
        let of_files = |files: u64, load: u64| {
            let mut index = index(&[(1, Ready, 6), (2, Ready, load)]);
            index.models[1].files = files;
            index
        };
        supervisor.publish(of_files(7, 2), &mut loads);
        supervisor.publish(of_files(7, 8), &mut loads);
        assert_eq!(answer(), 3, "they were loaded anew and are the same");
        supervisor.publish(of_files(9, 2), &mut Loads::default());
        assert_eq!(answer(), 1, "they were replaced while there was no engine");
    }

    #[tokio::test]
    async fn the_link_of_an_engine_that_stops_with_us_is_closed_once_it_has_ended() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("engine.sock");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let (told, events) = mpsc::channel(4);
        let link = Link::connect(&socket, move |event| drop(told.try_send(event))).await.unwrap();
        let (_stream, _) = listener.accept().await.unwrap();
        // It ends with its standard input, as an engine does.
        let mut command = tokio::process::Command::new("cat");
        let mut child = command.stdin(std::process::Stdio::piped()).spawn().unwrap();
        let (leash, pid) = (child.stdin.take().unwrap(), child.id().unwrap());
        let closing = tokio::spawn({
            let link = link.clone();
            async move {
                link.closed().await;
                Path::new(&format!("/proc/{pid}")).exists()
            }
        });
        let engine = Engine::new(socket, Some(Process { child, leash }), link, events);
        stop_and_close(engine, "stopped").await;
        assert!(!closing.await.unwrap(), "it was still there when its link was closed");
    }

    fn busy() -> [Health; 3] {
        [2, 1, 0].map(|under_way| Health { under_way, ..Health::default() })
    }

    /// Stands for one that says these one after the other, and then ends.
    async fn working(told: [Health; 3]) -> (Engine, tokio::task::JoinHandle<()>) {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("engine.sock");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let working = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut decoder = wire::Decoder::new(wire::Limits::default());
            for health in told {
                while decoder.decode().unwrap().is_none() {
                    stream.read_buf(decoder.buffer()).await.unwrap();
                }
                let mut outbox = wire::Outbox::new();
                outbox.push(wire::Kind::Pong, 0, &health, bytes::Bytes::new());
                stream.write_all_buf(&mut outbox.take()).await.unwrap();
            }
        });
        let (told, events) = mpsc::channel(4);
        let link = Link::connect(&socket, move |event| drop(told.try_send(event))).await.unwrap();
        (Engine::new(socket, None, link, events), working)
    }

    #[tokio::test(start_paused = true)]
    async fn a_retiring_engine_is_left_alone_until_it_has_answered_whoever_waits() {
        let runs_on = Health { under_way: 1, given_up: 1, ..Health::default() };
        let [two, one, _] = busy();
        for told in [busy(), [two, one, runs_on]] {
            let (mut engine, working) = working(told).await;
            engine.at_rest(PING_EVERY).await;
            working.await.unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_engine_that_ends_alone_is_given_time_for_those_who_are_still_sending_but_not_for_ever() {
        let directory = Directory::default();
        for sends_for in [Duration::from_millis(700), Duration::MAX] {
            let (mut engine, working) = working(busy()).await;
            directory.publish(Index::default());
            let (request, began) = (directory.load(), tokio::time::Instant::now());
            directory.publish(Index::default());
            tokio::spawn(async move {
                tokio::time::sleep(sends_for).await;
                drop(request);
            });
            engine.drained(directory.disconnect()).await;
            assert!(began.elapsed() >= sends_for.min(DRAINED_MAX));
            assert_eq!(working.is_finished(), sends_for < DRAINED_MAX);
        }
    }
}
