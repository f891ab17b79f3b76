//! Lines on their way out: whoever has one lays it with the others and goes on; a thread of its own writes them. Decides when
//! that happens and what is dropped; never looks into a line.
//!
//! ```text
//!   requests ─▶ waiting, at most 1 MiB ─▶ 50 ms after the first line, or once there are 128 KiB: written at once
//! ```
//!
//! A write for each line would cost a request more than all else that watches it: the thread would have to be woken, and the
//! kernel be asked, each time. This way it sleeps until there is a first line, and so many times a second at most; and while
//! lines come, it is woken only when there are enough of them.

use std::io::Write;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

/// Bytes that wait to be written, at most; another so many may be on their way.
const WAITING_MAX: usize = 1 << 20;

/// So many are written without waiting for more: few enough to stay in a core's cache, beside what requests need there.
const ENOUGH: usize = WAITING_MAX / 8;

/// So much is written to a pipe whole or not at all (`PIPE_BUF`): what others write there stands between lines. Where there are
/// others, no more is written at once.
const WHOLE_MAX: usize = 4 << 10;

/// A line is held back for so long at most, if what was before it is written.
const GATHERED_FOR: Duration = Duration::from_millis(50);

/// The way to a writer. Its thread ends when this is closed or dropped, as soon as everything is written.
#[derive(Debug)]
pub(crate) struct Gathered(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    waiting: Mutex<Waiting>,
    /// There is a first line, or enough, or no more will come.
    due: Condvar,
    /// The last line is written.
    ended: Condvar,
    /// Bytes of one write, unless a line is longer.
    at_once_max: usize,
}

#[derive(Debug, Default)]
struct Waiting {
    bytes: Vec<u8>,
    dropped: u64,
    /// Nobody writes before somebody says that there is a first line.
    is_idle: bool,
    closed: bool,
    ended: bool,
}

impl Gathered {
    /// `with_others`: somebody else writes there as well.
    pub(crate) fn to(mut writer: impl Write + Send + 'static, with_others: bool) -> Self {
        let shared = Arc::new(Shared {
            waiting: Mutex::new(Waiting { bytes: Vec::with_capacity(WAITING_MAX), ..Waiting::default() }),
            due: Condvar::new(),
            ended: Condvar::new(),
            at_once_max: if with_others { WHOLE_MAX } else { WAITING_MAX },
        });
        let own = shared.clone();
        let named = thread::Builder::new().name("access-log".into());
        named.spawn(move || own.write_to(&mut writer)).expect("the system has room for a thread");
        Self(shared)
    }

    /// Takes a line with its end; never waits for the writer.
    pub(crate) fn take(&self, line: &[u8]) {
        let mut waiting = self.0.lock();
        let (before, after) = (waiting.bytes.len(), waiting.bytes.len() + line.len());
        if after > WAITING_MAX || waiting.closed {
            waiting.dropped += 1;
            return;
        }
        waiting.bytes.extend_from_slice(line);
        let wakes = std::mem::take(&mut waiting.is_idle) || (before < ENOUGH && after >= ENOUGH);
        drop(waiting);
        if wakes {
            self.0.due.notify_one();
        }
    }

    /// Lines that nobody has.
    pub(crate) fn dropped(&self) -> u64 {
        self.0.lock().dropped
    }

    /// Takes no more lines, and waits until what is here is written, for at most `time_max`.
    pub(crate) fn close(&self, time_max: Duration) {
        let mut waiting = self.0.lock();
        waiting.closed = true;
        self.0.due.notify_one();
        // A writer that is stuck keeps its lines; they are lost with the process.
        drop(self.0.ended.wait_timeout_while(waiting, time_max, |waiting| !waiting.ended));
    }
}

impl Drop for Gathered {
    fn drop(&mut self) {
        self.0.lock().closed = true;
        self.0.due.notify_one();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().expect("no panic while it is held")
    }

    /// Until it is closed and all is written.
    fn write_to(&self, writer: &mut impl Write) {
        let (mut bytes, mut is_cut) = (Vec::with_capacity(WAITING_MAX), false);
        while self.gather(&mut bytes) {
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let (lines, after) = rest.split_at(at_once(rest, self.at_once_max));
                // What was cut does not spoil what follows.
                let end: &[u8] = if is_cut { b"\n" } else { b"" };
                is_cut = writer.write_all(end).and_then(|()| writer.write_all(lines)).is_err();
                if is_cut {
                    self.lock().dropped += count(lines); // one of them may be there in part
                }
                rest = after;
            }
            is_cut |= writer.flush().is_err();
            bytes.clear();
        }
        self.lock().ended = true;
        self.ended.notify_all();
    }

    /// Takes what waits in exchange for the empty `bytes`, once it is due; nothing when there will be no more.
    fn gather(&self, bytes: &mut Vec<u8>) -> bool {
        let no_panic = "no panic while it is held";
        let is_empty = |waiting: &mut Waiting| waiting.bytes.is_empty() && !waiting.closed;
        let is_little = |waiting: &mut Waiting| waiting.bytes.len() < ENOUGH && !waiting.closed;
        let little_for_long = |waiting| {
            let gathered = self.due.wait_timeout_while(waiting, GATHERED_FOR, is_little);
            gathered.expect(no_panic).0
        };
        let mut waiting = little_for_long(self.lock());
        if waiting.bytes.is_empty() && !waiting.closed {
            waiting.is_idle = true;
            let mut first = self.due.wait_while(waiting, is_empty).expect(no_panic);
            first.is_idle = false;
            waiting = little_for_long(first);
        }
        std::mem::swap(&mut waiting.bytes, bytes);
        !bytes.is_empty()
    }
}

/// How much is written at once: whole lines, of one at least.
fn at_once(lines: &[u8], bytes_max: usize) -> usize {
    let is_end = |byte: &u8| *byte == b'\n';
    let most = lines.len().min(bytes_max);
    let within = lines[..most].iter().rposition(is_end);
    let end = within.or_else(|| lines.iter().position(is_end));
    end.map_or(lines.len(), |end| end + 1)
}

fn count(lines: &[u8]) -> u64 {
    lines.iter().filter(|byte| **byte == b'\n').count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

    const LONG: Duration = Duration::from_secs(30);

    /// Each write is one message, and takes until there is room for it.
    struct Pipe(SyncSender<Vec<u8>>);

    impl Write for Pipe {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.send(bytes.to_vec()).map_err(|_| io::ErrorKind::BrokenPipe)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn pipe() -> (Gathered, Receiver<Vec<u8>>) {
        let (pipe, written) = sync_channel(0);
        (Gathered::to(Pipe(pipe), false), written)
    }

    #[test]
    fn lines_that_come_together_are_one_write_and_stay_in_order() {
        let (lines, written) = pipe();
        let all: Vec<String> = (0..1000).map(|number| format!("{number}\n")).collect();
        all.iter().for_each(|line| lines.take(line.as_bytes()));
        let reader = thread::spawn(move || written.iter().collect::<Vec<_>>());
        lines.close(LONG);
        let writes = reader.join().unwrap();
        assert_eq!(writes.concat(), all.concat().as_bytes());
        assert!(writes.len() <= 2, "{} writes of {} lines", writes.len(), all.len());
        assert_eq!(lines.dropped(), 0);
    }

    #[test]
    fn what_is_written_at_once_is_whole_lines_and_fits_a_pipe() {
        let long = [&[b'x'; 5000][..], b"\n"].concat();
        let all = [&b"short\n".repeat(1000)[..], &long, b"short\n"].concat();
        let (mut rest, mut writes) = (&all[..], Vec::new());
        while !rest.is_empty() {
            let (lines, after) = rest.split_at(at_once(rest, WHOLE_MAX));
            writes.push(lines);
            rest = after;
        }
        assert!(writes.iter().all(|lines| lines.ends_with(b"\n")));
        assert!(writes.iter().all(|lines| lines.len() <= WHOLE_MAX || *lines == long));
        assert_eq!(writes.len(), 4, "6,000 bytes, a line that is longer, and the last");
    }

    /// Takes a part of what is written, once.
    struct Full(Arc<Mutex<Vec<u8>>>, Option<usize>);

    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            match self.1.take() {
                Some(0) => Err(io::ErrorKind::WouldBlock.into()),
                Some(room) => {
                    self.1 = Some(0);
                    self.0.lock().unwrap().extend_from_slice(&bytes[..room]);
                    Ok(room)
                }
                None => {
                    self.0.lock().unwrap().extend_from_slice(bytes);
                    Ok(bytes.len())
                }
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_that_was_cut_does_not_spoil_the_next() {
        let written = Arc::new(Mutex::new(Vec::new()));
        let lines = Gathered::to(Full(written.clone(), Some(2)), true);
        lines.take(b"one\n");
        while lines.dropped() == 0 {
            thread::yield_now();
        }
        lines.take(b"two\n");
        lines.close(LONG);
        assert_eq!(*written.lock().unwrap(), b"on\ntwo\n");
        assert_eq!(lines.dropped(), 1);
    }

    #[test]
    fn a_line_is_written_without_others_and_so_is_the_next_one() {
        let (lines, written) = pipe();
        for line in ["one\n", "two\n"] {
            lines.take(line.as_bytes());
            assert_eq!(written.recv_timeout(LONG).unwrap(), line.as_bytes());
        }
    }

    #[test]
    fn a_writer_that_is_stuck_holds_up_nobody_and_what_finds_no_room_is_counted() {
        let (lines, written) = pipe();
        let line = [b'x'; 1 << 10];
        let offered = 3 * (WAITING_MAX / line.len()) as u64;
        (0..offered).for_each(|_| lines.take(&line));
        let dropped = lines.dropped();
        assert!(dropped >= offered / 3, "two of them are room, and one is not: {dropped}");
        lines.close(Duration::ZERO);
        let taken: usize = written.iter().map(|write| write.len()).sum();
        assert_eq!(taken as u64 / line.len() as u64 + dropped, offered, "each is written or counted");
    }

    #[test]
    fn what_a_broken_pipe_does_not_take_is_counted_and_ends_nothing() {
        let (lines, written) = pipe();
        drop(written);
        lines.take(b"one\n");
        lines.take(b"two\n");
        lines.close(LONG);
        assert_eq!(lines.dropped(), 2);
        lines.take(b"three\n");
        assert_eq!(lines.dropped(), 3, "nobody would write it any more");
    }
}
