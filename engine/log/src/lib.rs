//! What `penstock` and `penstock-engine` say to whoever looks after them, on standard error. Decides the form of the lines, and that
//! nobody waits for them to be read; never which events there are.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};

/// One line for each event that `filter` lets through: an object, or for people, without times, since whoever collects the lines
/// adds them. For the start of a process.
pub fn start(filter: EnvFilter, as_json: bool) {
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(move || Unhurried { as_json })
        .with_ansi(io::stderr().is_terminal())
        .with_target(false);
    if as_json {
        lines.json().flatten_event(true).with_current_span(false).with_span_list(false).init();
    } else {
        lines.without_time().init();
    }
}

/// Standard error, where a line that finds no room is dropped: who logs holds locks, starts engines and ends processes, and a pipe
/// that nobody reads would stop it for good.
struct Unhurried {
    as_json: bool,
}

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
                if self.as_json {
                    let mut at = String::new();
                    let _ = SystemTime.format_time(&mut Writer::new(&mut at)); // a String takes everything
                    writeln!(errors, "{{\"timestamp\":\"{at}\",\"level\":\"WARN\",\"message\":\"{what}\"}}")?;
                } else {
                    writeln!(errors, " WARN {what}")?;
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
