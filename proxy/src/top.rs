//! `penstock top`: what a running process says of itself, in a terminal, renewed every second. Decides when to read, and
//! what to do without a terminal or without an answer; what is shown is `top/view.rs`'s.
//!
//! Another thread reads, so that the keys work while a process does not answer.

mod view;
mod words;

use crate::status::{Outcomes, Status, Version};
use anyhow::Context;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyModifiers};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::collections::VecDeque;
use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

/// Rates and quantiles are of this time.
const WINDOW_MS: u64 = 10_000;
const READ_EVERY: Duration = Duration::from_secs(1);
/// A process that does not answer within this is away.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// Of an answer: a thousand models take about two.
const BYTES_MAX: u64 = 64 << 20;
/// How soon a key is noticed.
const TICK: Duration = Duration::from_millis(100);
/// Columns of a snapshot that goes to no terminal.
const PLAIN_COLUMNS: usize = 120;

/// What is known about a process.
#[derive(Debug)]
pub struct Watched {
    address: String,
    /// Within the window, the newest last.
    readings: VecDeque<Status>,
    /// Why it was not read, and since when.
    away: Option<(String, Instant)>,
    /// Lines that have been scrolled away.
    scrolled: usize,
}

impl Watched {
    /// Nothing yet, of the process that is watched there.
    pub fn new(address: &str) -> Self {
        Self { address: address.to_owned(), readings: VecDeque::new(), away: None, scrolled: 0 }
    }

    /// It has said this.
    pub fn take(&mut self, status: Status) {
        let is_another = self.readings.back().is_some_and(|last| status.uptime_ms < last.uptime_ms);
        if is_another {
            self.readings.clear();
        }
        let since = status.unix_ms.saturating_sub(WINDOW_MS);
        self.readings.retain(|reading| reading.unix_ms >= since);
        self.readings.push_back(status);
        self.away = None;
    }

    /// It has said nothing.
    pub fn miss(&mut self, why: String, now: Instant) {
        let since = self.away.take().map_or(now, |(_, since)| since);
        self.away = Some((why, since));
    }

    fn latest(&self) -> Option<&Status> {
        self.readings.back()
    }

    /// The reading that the window begins with, if that is not the beginning of the process.
    fn earlier(&self) -> Option<&Status> {
        self.readings.front().filter(|_| self.readings.len() > 1)
    }

    /// How long the window is.
    fn seconds(&self) -> f64 {
        let Some(latest) = self.latest() else { return 1.0 };
        let ms =
            self.earlier().map_or(latest.uptime_ms, |earlier| latest.unix_ms.saturating_sub(earlier.unix_ms));
        ms.max(1) as f64 / 1000.0
    }

    /// Requests that got no answer within the window. Of those that a limit turns away no version knows.
    fn refused(&self) -> u64 {
        let sum = |status: &Status| status.refusals.by_reason.values().sum::<u64>();
        self.latest().map_or(0, sum).saturating_sub(self.earlier().map_or(0, sum))
    }

    /// Every version with what has come to it within the window, in place of all that ever has.
    fn fared(&self) -> Vec<Version> {
        let versions = self.latest().map(|latest| latest.versions.as_slice()).unwrap_or_default();
        let fared = |now: &Version| {
            let is_same = |one: &&Version| one.model == now.model && one.version == now.version;
            let Some(old) = self.earlier().and_then(|earlier| earlier.versions.iter().find(is_same)) else {
                return now.clone();
            };
            let mut fared = now.clone();
            let (new, had) = (&now.outcomes, &old.outcomes);
            fared.outcomes = Outcomes {
                served: new.served.saturating_sub(had.served),
                failed: new.failed.saturating_sub(had.failed),
                refused: new.refused.saturating_sub(had.refused),
                abandoned: new.abandoned.saturating_sub(had.abandoned),
            };
            fared.times.whole = now.times.whole.since(&old.times.whole);
            fared.times.proxy = now.times.proxy.since(&old.times.proxy);
            fared.times.queue = now.times.queue.since(&old.times.queue);
            fared.times.run = now.times.run.since(&old.times.run);
            fared.batch_rows = now.batch_rows.since(&old.batch_rows);
            fared
        };
        versions.iter().map(fared).collect()
    }
}

/// Shows the process at `address` until a key ends it. Without a terminal: once.
///
/// # Errors
/// If the terminal does not do what it is told, or there is none and the process does not answer.
pub fn run(address: &str) -> anyhow::Result<()> {
    let mut watched = Watched::new(address);
    if !std::io::stdout().is_terminal() {
        watched.take(read(address)?);
        let _ = std::io::stdout().write_all(plain(&watched).as_bytes()); // who reads it may have read enough
        return Ok(());
    }
    let (says, said) = mpsc::sync_channel(1);
    let asked = address.to_owned();
    std::thread::spawn(move || {
        while says.send(read(&asked)).is_ok() {
            std::thread::sleep(READ_EVERY);
        }
    });
    // Whoever ends it from elsewhere wants the terminal back as it was.
    let is_over = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGHUP, SIGINT] {
        signal_hook::flag::register(signal, Arc::clone(&is_over)).context("signals")?;
    }
    let mut terminal = ratatui::try_init().context("the terminal")?;
    let shown = follow(&mut terminal, &mut watched, &said, &is_over);
    ratatui::restore();
    shown
}

fn follow(
    terminal: &mut ratatui::DefaultTerminal,
    watched: &mut Watched,
    said: &mpsc::Receiver<anyhow::Result<Status>>,
    is_over: &AtomicBool,
) -> anyhow::Result<()> {
    loop {
        let mut scrolled = 0;
        terminal.draw(|frame| scrolled = view::draw(frame, watched, Instant::now()))?;
        watched.scrolled = scrolled;
        // Until there is something else to show.
        loop {
            if is_over.load(Ordering::Relaxed) {
                return Ok(());
            }
            if event::poll(TICK)? {
                match event::read()? {
                    Event::Key(key) if ends(key) => return Ok(()),
                    Event::Key(key) => scroll(watched, key, usize::from(terminal.size()?.height)),
                    _ => {} // another size, or what nobody has asked for
                }
                break;
            }
            match said.try_recv() {
                Ok(Ok(status)) => watched.take(status),
                Ok(Err(error)) => watched.miss(format!("{error:#}"), Instant::now()),
                Err(_) => continue,
            }
            break;
        }
    }
}

fn ends(key: KeyEvent) -> bool {
    match key.code {
        KeyCode::Char('q') | KeyCode::Esc => true,
        KeyCode::Char('c') => key.modifiers.contains(KeyModifiers::CONTROL),
        _ => false,
    }
}

fn scroll(watched: &mut Watched, key: KeyEvent, page: usize) {
    watched.scrolled = match key.code {
        KeyCode::Down | KeyCode::Char('j') => watched.scrolled.saturating_add(1),
        KeyCode::Up | KeyCode::Char('k') => watched.scrolled.saturating_sub(1),
        KeyCode::PageDown | KeyCode::Char(' ') => watched.scrolled.saturating_add(page),
        KeyCode::PageUp => watched.scrolled.saturating_sub(page),
        KeyCode::Home => 0,
        KeyCode::End => usize::MAX,
        _ => watched.scrolled,
    };
}

/// All of it in lines, without colours. Of a single reading, it is about all that the process has done.
pub(crate) fn plain(watched: &Watched) -> String {
    let lines = view::lines(watched, PLAIN_COLUMNS, Instant::now());
    let lines = lines.iter().map(|line| format!("{}\n", line.to_string().trim_end()));
    let since =
        (watched.readings.len() == 1).then(|| "\nShares, rates and times are since the start.\n".to_owned());
    lines.chain(since).collect()
}

/// What the process at this address says of itself.
fn read(address: &str) -> anyhow::Result<Status> {
    let config = ureq::Agent::config_builder().timeout_global(Some(ANSWER_MAX)).build();
    let answer = ureq::Agent::new_with_config(config).get(format!("http://{address}/status")).call();
    let mut answer = answer.with_context(|| format!("no penstock answers at {address}"))?;
    let text = answer.body_mut().with_config().limit(BYTES_MAX).read_to_string()?;
    serde_json::from_str(&text).with_context(|| format!("{address} does not answer like a penstock"))
}
