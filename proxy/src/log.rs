//! What the process says to whoever looks after it. Decides the form of the lines, and that nobody waits for them to be read; never
//! which events there are.

use anyhow::Context;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use tracing_subscriber::EnvFilter;

/// The form of a line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// For people.
    #[default]
    Pretty,
    /// For programs: an object.
    Json,
}

impl Format {
    /// As configurations and command lines have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pretty => "pretty",
            Self::Json => "json",
        }
    }
}

/// One line for each event, on standard error; without times where it is for people, since whoever collects the lines adds
/// them. Level from `PENSTOCK_LOG`, such as `debug` or `info,proxy=debug`; the engine inherits it.
pub fn start(format: Format) -> anyhow::Result<()> {
    // Pingora logs a line per start of each service, and an error for every client that leaves.
    let default = "info,pingora=warn,pingora_core=warn,pingora_core::apps=off";
    let filter = std::env::var("PENSTOCK_LOG").unwrap_or_else(|_| default.to_owned());
    let filter = EnvFilter::try_new(&filter).with_context(|| format!("PENSTOCK_LOG=`{filter}`"))?;
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(move || Unhurried(format))
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false);
    match format {
        Format::Pretty => lines.without_time().init(),
        Format::Json => {
            lines.json().flatten_event(true).with_current_span(false).with_span_list(false).init()
        }
    }
    Ok(())
}

/// Standard error, where a line that finds no room is dropped: who logs holds locks, starts engines and ends processes, and a pipe
/// that nobody reads would stop it for good.
struct Unhurried(Format);

/// Lines that were dropped since the last that was not.
static DROPPED: AtomicU64 = AtomicU64::new(0);

/// Where there is room in a pipe, there is for so much (`PIPE_BUF`).
const AT_ONCE: usize = 4 << 10;

impl Write for Unhurried {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut errors = io::stderr().lock();
        if has_room() {
            let dropped = DROPPED.swap(0, Ordering::Relaxed);
            if dropped > 0 {
                let what = format!("{dropped} lines of this log were dropped, because nobody read it");
                match self.0 {
                    Format::Pretty => writeln!(errors, " WARN {what}")?,
                    Format::Json => writeln!(errors, "{{\"level\":\"WARN\",\"message\":\"{what}\"}}")?,
                }
            }
        }
        for piece in line.chunks(AT_ONCE) {
            if !has_room() {
                DROPPED.fetch_add(1, Ordering::Relaxed);
                break;
            }
            errors.write_all(piece)?;
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Whether a write would not have to wait. Of files and terminals that is always so.
fn has_room() -> bool {
    let errors = io::stderr();
    let mut asked = [PollFd::new(&errors, PollFlags::OUT)];
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut asked, Some(&at_once)).is_ok() && asked[0].revents().contains(PollFlags::OUT)
}
