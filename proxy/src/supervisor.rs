//! Keeps an engine at hand: starts it, follows what it says, restarts it with growing pauses when it goes.
//! Decides when to start again; never touches a request (a lost engine fails them through their links).
//!
//! ```text
//!          start ──▶ connect ──▶ follow (Index → directory) ──▶ lost ──▶ pause ─┐
//!            ▲                      │ stop: close its stdin, wait, kill         │
//!            └──────────────────────┴───────────────────────────────────────────┘
//! ```
//!
//! The engine exits when its standard input ends, so that even a killed proxy leaves no orphan.

use crate::directory::Directory;
use crate::link::{Event, Link};
use crate::metrics::Metrics;
use anyhow::Context;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::{mpsc, watch};

/// How to start the engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineCommand {
    /// The `penstock-engine` binary.
    pub binary: PathBuf,
    /// Arguments after `--socket`.
    pub arguments: Vec<String>,
}

/// Owns the engine's process, if it is ours, and the link that carries its events.
#[derive(Debug)]
pub struct Supervisor {
    /// Where the engine listens.
    pub socket: PathBuf,
    /// `None`: somebody else runs it.
    pub command: Option<EngineCommand>,
    /// Where its index goes.
    pub directory: Arc<Directory>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

/// A started engine answers its socket well within this; loading models comes after.
const CONNECT_MAX: Duration = Duration::from_secs(30);
/// How often a connected engine is asked whether it is there.
const PING_EVERY: Duration = Duration::from_secs(1);
/// An engine whose I/O thread has been silent for this long is wedged or stopped. Models run on other threads.
const SILENCE_MAX: Duration = Duration::from_secs(10);
/// Events that wait to be followed.
const EVENTS_MAX: usize = 1024;
/// Time for the engine to finish what it runs after it was told to stop.
const STOP_MAX: Duration = Duration::from_secs(10);

impl Supervisor {
    /// Runs until `stop` turns true, then stops the engine if it is ours.
    pub async fn run(&self, mut stop: watch::Receiver<bool>) {
        let mut pause = Pause::new();
        while !*stop.borrow() {
            let started = Instant::now();
            let ended = self.one_life(&mut stop).await;
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

    /// From start to end of one engine; says why it ended.
    async fn one_life(&self, stop: &mut watch::Receiver<bool>) -> anyhow::Result<String> {
        let mut process = self.command.as_ref().map(|command| self.start(command)).transpose()?;
        let pid = process.as_ref().and_then(|process| process.child.id());
        let (told, mut events) = mpsc::channel(EVENTS_MAX);
        let link = tokio::select! {
            link = self.connect(&told) => link?,
            status = exit_of(&mut process) => anyhow::bail!("it ended before it listened: {status}"),
            _ = stop.changed() => return Ok("stopped".into()),
        };
        let reason = tokio::select! {
            reason = link.closed() => reason,
            reason = self.follow(&link, &mut events, pid) => reason,
            status = exit_of(&mut process) => format!("it ended: {status}"),
            _ = stop.changed() => "stopped".into(),
        };
        link.close(&reason);
        self.directory.disconnect();
        self.metrics.engine_up.set(0);
        if let Some(process) = process {
            end(process).await;
        }
        Ok(reason)
    }

    /// Publishes what the engine says for as long as it answers; returns why it is to be given up.
    async fn follow(&self, link: &Link, events: &mut mpsc::Receiver<Event>, pid: Option<u32>) -> String {
        let mut pings = tokio::time::interval(PING_EVERY);
        let mut heard = Instant::now();
        loop {
            let event = tokio::select! {
                event = events.recv() => event,
                _ = pings.tick() => {
                    if heard.elapsed() > SILENCE_MAX {
                        return format!("it has not answered for {SILENCE_MAX:?}");
                    }
                    link.ping();
                    continue;
                }
            };
            heard = Instant::now();
            match event {
                Some(Event::Hello(hello)) => {
                    if pid.is_some_and(|pid| pid != hello.pid) {
                        return format!(
                            "another engine (pid {}) listens at {}: give each penstock its own engine.socket",
                            hello.pid,
                            self.socket.display()
                        );
                    }
                    tracing::info!("engine {} (pid {}) on {}", hello.release, hello.pid, hello.device);
                }
                Some(Event::Index(index)) => {
                    self.metrics.engine_up.set(1);
                    self.directory.publish(index);
                }
                Some(Event::Pong) => {}
                None => return "its link has ended".into(),
            }
        }
    }

    fn start(&self, command: &EngineCommand) -> anyhow::Result<Process> {
        self.metrics.engine_starts.inc();
        let mut child = Command::new(&command.binary)
            .arg("--socket")
            .arg(&self.socket)
            .args(&command.arguments)
            .arg("--supervised")
            .stdin(Stdio::piped())
            .process_group(0) // Ctrl-C is for the proxy, which drains before it stops the engine
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", command.binary.display()))?;
        let leash = child.stdin.take().expect("it was asked for");
        Ok(Process { child, leash })
    }

    async fn connect(&self, told: &mpsc::Sender<Event>) -> anyhow::Result<Link> {
        let deadline = Instant::now() + CONNECT_MAX;
        loop {
            let told = told.clone();
            // Full: an engine that says so much so fast is given up for its silence.
            let on_event = move |event| drop(told.try_send(event));
            match Link::connect(&self.socket, on_event).await {
                Ok(link) => return Ok(link),
                Err(error) if self.command.is_none() || Instant::now() > deadline => {
                    return Err(error)
                        .with_context(|| format!("cannot connect to {}", self.socket.display()));
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }
}

/// A running engine.
struct Process {
    child: Child,
    /// The engine runs for as long as this is open. Apart from the child, because waiting for that would close it.
    leash: ChildStdin,
}

/// When our process ends; never, if we have none.
async fn exit_of(process: &mut Option<Process>) -> String {
    match process {
        Some(process) => {
            process.child.wait().await.map_or_else(|error| error.to_string(), |status| status.to_string())
        }
        None => std::future::pending().await,
    }
}

/// Tells the engine to stop, and makes sure.
async fn end(Process { mut child, leash }: Process) {
    drop(leash);
    if tokio::time::timeout(STOP_MAX, child.wait()).await.is_err() {
        tracing::warn!("the engine did not stop within {STOP_MAX:?} and is killed");
        if let Err(error) = child.kill().await {
            tracing::error!("the engine could not be killed: {error}");
        }
    }
}

/// Pauses between starts: short at first, doubling while engines keep dying young.
#[derive(Debug)]
struct Pause {
    next: Duration,
}

impl Pause {
    const SHORTEST: Duration = Duration::from_millis(100);
    const LONGEST: Duration = Duration::from_secs(10);
    /// An engine that lived this long did not die of its start.
    const HEALTHY: Duration = Duration::from_secs(30);

    fn new() -> Self {
        Self { next: Self::SHORTEST }
    }

    fn after(&mut self, lived: Duration) -> Duration {
        if lived >= Self::HEALTHY {
            self.next = Self::SHORTEST;
        }
        let pause = self.next;
        self.next = (self.next * 2).min(Self::LONGEST);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_while_engines_die_young_and_shrink_after_a_long_life() {
        let mut pause = Pause::new();
        let young = Duration::from_secs(1);
        let pauses: Vec<u128> = (0..9).map(|_| pause.after(young).as_millis()).collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
        assert_eq!(pause.after(Pause::HEALTHY), Pause::SHORTEST);
    }
}
