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
use tokio::sync::watch;

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
/// Time for the engine to finish what it runs after it was told to stop.
const STOP_MAX: Duration = Duration::from_secs(10);

impl Supervisor {
    /// Runs until `stop` turns true, then stops the engine if it is ours.
    pub async fn run(&self, mut stop: watch::Receiver<bool>) {
        let mut pause = Pause::new();
        while !*stop.borrow() {
            let started = Instant::now();
            let ended = self.one_life(&mut stop).await;
            self.directory.disconnect();
            self.metrics.engine_up.set(0);
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
        let link = tokio::select! {
            link = self.connect() => link?,
            status = exit_of(&mut process) => anyhow::bail!("it ended before it listened: {status}"),
            _ = stop.changed() => return Ok("stopped".into()),
        };
        let reason = tokio::select! {
            reason = link.closed() => reason,
            status = exit_of(&mut process) => format!("it ended: {status}"),
            _ = stop.changed() => "stopped".into(),
        };
        if let Some(process) = process {
            end(process).await;
        }
        Ok(reason)
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

    async fn connect(&self) -> anyhow::Result<Link> {
        let deadline = Instant::now() + CONNECT_MAX;
        loop {
            let directory = self.directory.clone();
            let metrics = self.metrics.clone();
            let on_event = move |event| match event {
                Event::Hello(hello) => {
                    tracing::info!("engine {} (pid {}) on {}", hello.release, hello.pid, hello.device)
                }
                Event::Index(index) => {
                    metrics.engine_up.set(1);
                    directory.publish(index);
                }
            };
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
