//! What is on its way out of a connection: replies, and whatever else its proxy is told. Decides who writes, and when so much is
//! unread that the connection is over. Waits for nobody.

use bytes::Buf;
use socket::Socket;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::Notify;
use wire::{Outbox, Segments};

/// Replies on their way out of one connection. Whoever posts writes to the socket itself as long as that takes no
/// waiting, so that a reply costs no wake-up of another thread; what the socket does not take at once is left to
/// the connection's task.
pub(crate) struct Mailbox {
    /// Unique in the life of the engine.
    pub(crate) connection: u64,
    unread_bytes_max: usize,
    /// Where bytes are counted that the socket has not taken, with those of others.
    unread: Arc<AtomicUsize>,
    unsent: Mutex<Unsent>,
    /// Told that something is left to the connection's task,
    pub(crate) left_over: Notify,
    /// and that the connection is over, because too much is unread.
    pub(crate) overflown: Notify,
}

struct Unsent {
    outbox: Outbox,
    /// Taken out of the outbox, and not taken by the socket.
    rest: Segments,
    writer: Writer,
    /// As many bytes of it are counted.
    counted: usize,
    /// None once the connection is over.
    socket: Option<Arc<Socket>>,
}

/// Who writes now, and looks again when done.
#[derive(PartialEq, Eq)]
enum Writer {
    Nobody,
    Poster,
    /// It has been notified.
    Task,
}

impl Mailbox {
    pub(crate) fn new(connection: u64, unread_bytes_max: usize, socket: Arc<Socket>) -> Self {
        let (outbox, rest) = (Outbox::new(), Segments::default());
        let unsent = Unsent { outbox, rest, writer: Writer::Nobody, counted: 0, socket: Some(socket) };
        Self {
            connection,
            unread_bytes_max,
            unread: Arc::default(),
            unsent: Mutex::new(unsent),
            left_over: Notify::new(),
            overflown: Notify::new(),
        }
    }

    /// So many bytes of answers may be unread; the rest is for whoever is told that there was no room for his.
    pub(crate) fn answer_bytes_max(&self) -> usize {
        self.unread_bytes_max - self.unread_bytes_max / 16
    }

    /// Counts what is not read there.
    pub(crate) fn counting(self, unread: Arc<AtomicUsize>) -> Self {
        Self { unread, ..self }
    }

    /// Lets `write` add frames, unless nobody is there to read them. Does not wait.
    pub(crate) fn post(&self, write: impl FnOnce(&mut Outbox)) {
        let mut unsent = self.lock();
        let Some(socket) = unsent.socket.clone() else { return };
        let before = unsent.outbox.pending_bytes();
        write(&mut unsent.outbox);
        if unsent.outbox.pending_bytes() > self.unread_bytes_max {
            self.close_now(&mut unsent);
            // The task may be stuck in a write that never ends.
            return self.overflown.notify_one();
        }
        if unsent.writer != Writer::Nobody {
            let bytes = unsent.counted + unsent.outbox.pending_bytes() - before;
            return self.count(&mut unsent, bytes);
        }
        unsent.writer = Writer::Poster;
        let mut segments = unsent.outbox.take();
        drop(unsent);
        // An error is met again, and told, by the task.
        let _ = socket.try_write(&mut segments);
        let mut unsent = self.lock();
        if segments.has_remaining() || !unsent.outbox.is_empty() {
            (unsent.rest, unsent.writer) = (segments, Writer::Task);
            let bytes = unsent.rest.remaining() + unsent.outbox.pending_bytes();
            self.count(&mut unsent, bytes);
            self.left_over.notify_one();
        } else {
            unsent.writer = Writer::Nobody;
        }
    }

    /// So many bytes of this one are not read by now.
    fn count(&self, unsent: &mut Unsent, bytes: usize) {
        // Nothing of it once the connection is over, whoever still writes.
        let bytes = if unsent.socket.is_some() { bytes } else { 0 };
        match bytes.cmp(&unsent.counted) {
            std::cmp::Ordering::Greater => self.unread.fetch_add(bytes - unsent.counted, Ordering::Relaxed),
            std::cmp::Ordering::Less => self.unread.fetch_sub(unsent.counted - bytes, Ordering::Relaxed),
            std::cmp::Ordering::Equal => return,
        };
        unsent.counted = bytes;
    }

    /// Whether a reply would still reach anybody.
    pub(crate) fn is_open(&self) -> bool {
        self.lock().socket.is_some()
    }

    /// What the task is to write next. Once there is nothing, posters write again.
    pub(crate) fn next(&self) -> Option<Segments> {
        let mut unsent = self.lock();
        if unsent.writer != Writer::Task {
            return None;
        }
        let mut segments = std::mem::take(&mut unsent.rest);
        if !segments.has_remaining() {
            segments = unsent.outbox.take();
        }
        let bytes = segments.remaining() + unsent.outbox.pending_bytes();
        self.count(&mut unsent, bytes);
        if !segments.has_remaining() {
            unsent.writer = Writer::Nobody;
            return None;
        }
        Some(segments)
    }

    /// The connection is over.
    pub(crate) fn close(&self) {
        self.close_now(&mut self.lock());
    }

    fn close_now(&self, unsent: &mut Unsent) {
        (unsent.outbox, unsent.rest, unsent.socket) = (Outbox::new(), Segments::default(), None);
        self.count(unsent, 0);
    }

    fn lock(&self) -> MutexGuard<'_, Unsent> {
        self.unsent.lock().expect("no panic while posting")
    }
}
