//! What `penstock` and `penstock-engine` say to whoever looks after them, on standard error. Decides the form of the lines, and that
//! nobody waits for them to be read; never which events there are.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};

/// One line for each event that `filter` lets through: an object, or for people. It begins with its time, as a line of the access
/// log does, since both may end up in one place. For the start of a process.
pub fn start(filter: EnvFilter, as_json: bool) {
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(move || Unhurried { as_json })
        .with_ansi(io::stderr().is_terminal())
        .with_target(false)
        .with_timer(Milliseconds)
        // It would be told on standard error, and end the process if that fails as well.
        .log_internal_errors(false);
    if as_json {
        lines.json().flatten_event(true).with_current_span(false).with_span_list(false).init();
    } else {
        lines.init();
    }
}

/// In RFC 3339, UTC, in milliseconds: as the access log writes it.
struct Milliseconds;

impl FormatTime for Milliseconds {
    fn format_time(&self, out: &mut Writer<'_>) -> fmt::Result {
        /// Of the time, up to its milliseconds.
        const LENGTH: usize = "2025-01-01T00:00:00.000".len();
        let mut micros = String::new();
        SystemTime.format_time(&mut Writer::new(&mut micros))?;
        write!(out, "{}Z", micros.get(..LENGTH).unwrap_or(&micros))
    }
}

/// Standard error, where a line that finds no room is dropped, and one that cannot be written: who logs holds locks, starts
/// engines and ends processes, and a pipe that nobody reads, or a disk that is full, would stop it for good.
struct Unhurried {
    as_json: bool,
}

/// Lines that were dropped since the last that was not.
static DROPPED: AtomicU64 = AtomicU64::new(0);

/// Where there is room in a pipe, there is for so much (`PIPE_BUF`).
const AT_ONCE: usize = 4 << 10;

impl Unhurried {
    /// Whether there was room for all of it.
    fn write_at_once(&self, line: &[u8]) -> io::Result<bool> {
        let mut errors = io::stderr().lock();
        let dropped = DROPPED.load(Ordering::Relaxed);
        if dropped > 0 && has_room() {
            let what = format!("{dropped} lines of this log were dropped, because they could not be written");
            let mut at = String::new();
            let _ = Milliseconds.format_time(&mut Writer::new(&mut at)); // a String takes everything
            if self.as_json {
                writeln!(errors, "{{\"timestamp\":\"{at}\",\"level\":\"WARN\",\"message\":\"{what}\"}}")?;
            } else {
                writeln!(errors, "{at}  WARN {what}")?;
            }
            DROPPED.fetch_sub(dropped, Ordering::Relaxed);
        }
        for piece in line.chunks(AT_ONCE) {
            if !has_room() {
                return Ok(false);
            }
            errors.write_all(piece)?;
        }
        Ok(true)
    }
}

impl Write for Unhurried {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if !self.write_at_once(line).unwrap_or(false) {
            DROPPED.fetch_add(1, Ordering::Relaxed);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_has_its_time_in_milliseconds_as_a_line_of_the_access_log_has() {
        let mut at = String::new();
        Milliseconds.format_time(&mut Writer::new(&mut at)).expect("a String takes everything");
        let form: String =
            at.chars().map(|letter| if letter.is_ascii_digit() { '0' } else { letter }).collect();
        assert_eq!(form, "0000-00-00T00:00:00.000Z", "{at}");
    }
}
