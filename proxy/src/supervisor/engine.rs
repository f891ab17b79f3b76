//! One engine: its process, the link that carries what it says, and how it ends. Decides how long is waited for it; whether
//! another one is started is for the [supervisor](super).

use super::REPLACE_EVERY;
use super::growth::{Growth, is_loading};
use super::loads::Loads;
use crate::link::{Event, Link};
use anyhow::Context;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use wire::{Hello, Index};

/// How often a connected engine is asked whether it is there.
pub(super) const PING_EVERY: Duration = Duration::from_secs(1);
/// An engine whose I/O thread has been silent for this long is wedged or stopped. Models run on other threads.
pub(super) const SILENCE_MAX: Duration = Duration::from_secs(10);
/// A successor of which no version has come up or failed for so long is given up.
const LOAD_MAX: Duration = Duration::from_secs(600);
/// A process that ends has closed its links before it says how.
const EXIT_MAX: Duration = Duration::from_millis(200);
/// Requests that are under way to an engine when another takes over reach it within this.
const UNDER_WAY_MAX: Duration = Duration::from_secs(5);
/// And what waits and runs there has so long.
const RETIRE_MAX: Duration = Duration::from_secs(600);
/// Where none has taken over yet, everybody else is turned away meanwhile, so those under way have no longer,
pub(super) const DRAINED_MAX: Duration = Duration::from_secs(2);
/// and it is looked so often whether there are any.
const DRAINED_EVERY: Duration = Duration::from_millis(50);
/// How a run's threads wait for each other is said by any of these; the engine takes it over from us.
const OPENMP_WAITS: [&str; 2] = ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT"];
/// They look so often before they sleep. Left alone they do 300 times as often: beside whoever else uses the cores a run takes
/// eight times as long. Never to look costs a run of two threads 1.8 times as long where nobody else does, and this 1.1 times.
const OPENMP_LOOKS: &str = "1000";
/// Time for the engine to finish what it runs after it was told to stop, and to write its answers: it takes 10 s itself.
const STOP_MAX: Duration = Duration::from_secs(12);

/// How to start the engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineCommand {
    /// The `penstock-engine` binary.
    pub binary: PathBuf,
    /// Arguments after `--socket`.
    pub arguments: Vec<String>,
}

impl EngineCommand {
    /// As a process of its own, which listens at `socket` before long.
    pub(super) fn start(&self, socket: &Path) -> anyhow::Result<Process> {
        let Self { binary, arguments } = self;
        let mut started = Command::new(binary);
        started
            .arg("--socket")
            .arg(socket)
            .args(arguments)
            .arg("--supervised")
            .stdin(Stdio::piped())
            .process_group(0) // Ctrl-C is for the proxy, which drains before it stops the engine
            .kill_on_drop(true);
        if OPENMP_WAITS.iter().all(|name| std::env::var_os(name).is_none()) {
            started.env("GOMP_SPINCOUNT", OPENMP_LOOKS);
        }
        let mut child = started.spawn().with_context(|| format!("cannot start {}", binary.display()))?;
        let leash = child.stdin.take().expect("it was asked for");
        Ok(Process { child, leash })
    }
}

/// An engine that is connected.
pub(super) struct Engine {
    pub(super) socket: PathBuf,
    /// `None`: somebody else runs it.
    pub(super) process: Option<Process>,
    pub(super) pid: Option<u32>,
    pub(super) link: Link,
    pub(super) events: mpsc::Receiver<Event>,
    /// What a successor has said of itself before it took over.
    pub(super) hello: Hello,
    /// And of its versions.
    pub(super) index: Option<Index>,
    pub(super) born: Instant,
    /// It is not replaced before it has served for so long.
    pub(super) patience: Duration,
    pub(super) growth: Growth,
    pub(super) loads: Loads,
}

pub(super) fn is_ours(pid: Option<u32>, hello: &Hello, socket: &Path) -> Result<(), String> {
    if pid.is_some_and(|pid| pid != hello.pid) {
        return Err(format!(
            "another engine (pid {}) listens at {}: give each penstock its own engine.socket",
            hello.pid,
            socket.display()
        ));
    }
    tracing::info!("engine {} (pid {}) on {}", hello.release, hello.pid, hello.device);
    Ok(())
}

impl Engine {
    /// One that has said nothing yet.
    pub(super) fn new(
        socket: PathBuf,
        process: Option<Process>,
        link: Link,
        events: mpsc::Receiver<Event>,
    ) -> Self {
        Self {
            pid: process.as_ref().and_then(|process| process.child.id()),
            socket,
            process,
            link,
            events,
            hello: Hello::default(),
            index: None,
            born: Instant::now(),
            patience: REPLACE_EVERY,
            growth: Growth::default(),
            loads: Loads::default(),
        }
    }

    /// Waits until no version is loading any more.
    pub(super) async fn loaded(&mut self) -> anyhow::Result<Index> {
        let mut pings = tokio::time::interval(PING_EVERY);
        let (mut heard, mut news) = (Instant::now(), Instant::now());
        loop {
            let event = tokio::select! {
                event = self.events.recv() => event,
                _ = pings.tick() => {
                    anyhow::ensure!(heard.elapsed() <= SILENCE_MAX, silent());
                    anyhow::ensure!(news.elapsed() <= LOAD_MAX, "nothing of it has loaded for {LOAD_MAX:?}");
                    self.link.ping();
                    continue;
                }
            };
            heard = Instant::now();
            match event {
                Some(Event::Hello(hello)) => {
                    is_ours(self.pid, &hello, &self.socket).map_err(anyhow::Error::msg)?;
                    self.hello = hello;
                }
                Some(Event::Index(index)) => {
                    news = Instant::now();
                    self.index = Some(index.clone());
                    if !is_loading(&index) {
                        return Ok(index);
                    }
                }
                Some(Event::Pong(_)) => {}
                None => anyhow::bail!("it ended: {}", exit_of(&mut self.process).await),
            }
        }
    }

    /// Waits until nobody else holds what it has said in its `life`, as requests do from when they are decided until they are answered, also
    /// while they send; and it has answered them all. Or until it is gone, or all have had their time. Once told to stop, an engine
    /// turns away what comes, and finishes only what it has.
    pub(super) async fn drained(&mut self, life: Arc<()>) {
        let link = self.link.clone();
        let rest = async {
            while Arc::strong_count(&life) > 1 {
                tokio::time::sleep(DRAINED_EVERY).await;
            }
            // What it has said before says nothing about now.
            while self.events.try_recv().is_ok() {}
            self.at_rest(DRAINED_EVERY).await;
        };
        tokio::select! {
            () = rest => {}
            _ = link.closed() => {}
            () = tokio::time::sleep(DRAINED_MAX) => {}
        }
    }

    /// Waits until nobody waits for it any more, or it is gone. A run that nobody waits for may never end, and take memory all the while.
    pub(super) async fn at_rest(&mut self, ping_every: Duration) {
        let mut pings = tokio::time::interval(ping_every);
        loop {
            tokio::select! {
                event = self.events.recv() => match event {
                    Some(Event::Pong(health)) if health.under_way <= health.given_up => return,
                    Some(_) => {}
                    None => return,
                },
                _ = pings.tick() => self.link.ping(),
            }
        }
    }
}

/// Why an engine is not followed any more.
pub(super) enum Ended {
    /// It has closed its link, and has probably ended.
    Closed(String),
    /// It is gone, or to be given up.
    Lost(String),
    /// It holds more memory than it may.
    Outgrown {
        /// Whether there is memory for another one beside it.
        beside: bool,
        says: String,
    },
}

impl Ended {
    /// In words, with the status of a process that has ended.
    pub(super) async fn reason(self, engine: &mut Engine) -> String {
        match self {
            Self::Lost(reason) | Self::Outgrown { says: reason, .. } => reason,
            Self::Closed(reason) => {
                let status = tokio::time::timeout(EXIT_MAX, exit_of(&mut engine.process)).await;
                status.map_or(reason, |status| format!("it ended: {status}"))
            }
        }
    }
}

pub(super) fn silent() -> String {
    format!("it has not answered for {SILENCE_MAX:?}")
}

/// An engine that nobody is to ask any more, and that may still listen.
pub(super) struct Retiring {
    pub(super) socket: PathBuf,
    pub(super) done: JoinHandle<()>,
}

/// Lets an engine finish what it has, once nothing new comes to it.
pub(super) fn retire(mut engine: Engine) -> Retiring {
    let socket = engine.socket.clone();
    let done = tokio::spawn(async move {
        tokio::time::sleep(UNDER_WAY_MAX).await;
        let _ = tokio::time::timeout(RETIRE_MAX, engine.at_rest(PING_EVERY)).await;
        if let Some(process) = engine.process {
            end(process).await;
        }
        engine.link.close("another engine has taken over");
    });
    Retiring { socket, done }
}

/// Ends a successor that is not needed. That may take its time, for which the old engine does not go unheeded.
pub(super) fn let_go(successor: Engine) -> Retiring {
    let socket = successor.socket.clone();
    Retiring { socket, done: tokio::spawn(async move { dismiss(successor, "it is not needed").await }) }
}

/// Ends an engine that nobody is to ask any more.
pub(super) async fn dismiss(engine: Engine, why: &str) {
    engine.link.close(why);
    if let Some(process) = engine.process {
        end(process).await;
    }
}

/// Stops an engine that nobody asks any more because we stop. It may be about to answer a ping: closed before it is told to stop,
/// the link would be broken for it, and it would say so.
pub(super) async fn stop_and_close(engine: Engine, why: &str) {
    let Engine { link, process, .. } = engine;
    if let Some(process) = process {
        end(process).await;
    }
    link.close(why);
}

/// A running engine.
pub(super) struct Process {
    pub(super) child: Child,
    /// The engine runs for as long as this is open. Apart from the child, because waiting for that would close it.
    pub(super) leash: ChildStdin,
}

impl Process {
    pub(super) fn kill(&mut self) {
        if let Err(error) = self.child.start_kill() {
            tracing::error!("the engine could not be killed: {error}");
        }
    }
}

/// When our process ends; never, if we have none.
pub(super) async fn exit_of(process: &mut Option<Process>) -> String {
    match process {
        Some(process) => {
            process.child.wait().await.map_or_else(|error| error.to_string(), |status| status.to_string())
        }
        None => std::future::pending().await,
    }
}

/// Tells the engine to stop, and makes sure.
pub(super) async fn end(Process { mut child, leash }: Process) {
    drop(leash);
    if tokio::time::timeout(STOP_MAX, child.wait()).await.is_err() {
        tracing::warn!("the engine did not stop within {STOP_MAX:?} and is killed");
        if let Err(error) = child.kill().await {
            tracing::error!("the engine could not be killed: {error}");
        }
    }
}
