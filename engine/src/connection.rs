//! One proxy worker's connection: frames in, frames out. This task alone reads; replies leave through the
//! [`Mailbox`]. Work is done per read and per write, not per request: all requests of one read enter the queue
//! under one lock, and all replies of a batch leave in one write.
//!
//! ```text
//!   socket ─▶ read ─▶ Decoder ─▶ check ─▶ orders ─▶ Queue          (one lock for all frames of a read)
//!   socket ◀─ Mailbox ◀─ lanes, refusals, index changes            (one write for all of a batch)
//! ```
//!
//! When either half ends, both do: what the connection had waiting is cancelled and what is running for it is
//! dropped when it is done.

use crate::batcher::{Criticality, Priority};
use crate::catalog::Catalog;
use crate::job::{Job, Refusal, Request, Traced};
use crate::loader::Orders;
use crate::memory::{DeviceGauge, Memory};
use crate::queue::{Order, Queue};
use crate::split;
use bytes::{Buf, Bytes};
use prost::Message;
use std::io::{self, IoSlice};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Notify, watch};
use wire::{
    Control, Decoder, Frame, FrameError, Health, Hello, Infer, Kind, Limits, Outbox, Segments, TraceContext,
};

/// Payloads below this are copied out of the buffer they were read into.
const COPY_BYTES: usize = 4 << 10;

/// Segments of one vectored write; the kernel takes 1024.
const SEGMENTS_MAX: usize = 64;

/// Replies on their way out of one connection. Whoever posts writes to the socket itself as long as that takes no
/// waiting, so that a reply costs no wake-up of another thread; what the socket does not take at once is left to
/// the connection's task.
pub(crate) struct Mailbox {
    /// Unique in the life of the engine.
    pub(crate) connection: u64,
    unread_bytes_max: usize,
    unsent: Mutex<Unsent>,
    left_over: Notify,
    overflown: Notify,
}

struct Unsent {
    outbox: Outbox,
    /// Taken out of the outbox, and not taken by the socket.
    rest: Segments,
    writer: Writer,
    /// None once the connection is over.
    socket: Option<Arc<OwnedWriteHalf>>,
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
    fn new(connection: u64, unread_bytes_max: usize, socket: Arc<OwnedWriteHalf>) -> Self {
        let (outbox, rest) = (Outbox::new(), Segments::default());
        let unsent = Mutex::new(Unsent { outbox, rest, writer: Writer::Nobody, socket: Some(socket) });
        Self { connection, unread_bytes_max, unsent, left_over: Notify::new(), overflown: Notify::new() }
    }

    /// Lets `write` add frames, unless nobody is there to read them. Does not wait.
    pub(crate) fn post(&self, write: impl FnOnce(&mut Outbox)) {
        let mut unsent = self.lock();
        let Some(socket) = unsent.socket.clone() else { return };
        write(&mut unsent.outbox);
        if unsent.outbox.pending_bytes() > self.unread_bytes_max {
            unsent.close();
            // The task may be stuck in a write that never ends.
            return self.overflown.notify_one();
        }
        if unsent.writer != Writer::Nobody {
            return;
        }
        unsent.writer = Writer::Poster;
        let mut segments = unsent.outbox.take();
        drop(unsent);
        // An error is met again, and told, by the task.
        let _ = write_once(&socket, &mut segments);
        let mut unsent = self.lock();
        if segments.has_remaining() || !unsent.outbox.is_empty() {
            (unsent.rest, unsent.writer) = (segments, Writer::Task);
            self.left_over.notify_one();
        } else {
            unsent.writer = Writer::Nobody;
        }
    }

    /// Whether a reply would still reach anybody.
    pub(crate) fn is_open(&self) -> bool {
        self.lock().socket.is_some()
    }

    /// What the task is to write next. Once there is nothing, posters write again.
    fn next(&self) -> Option<Segments> {
        let mut unsent = self.lock();
        if unsent.writer != Writer::Task {
            return None;
        }
        let mut segments = std::mem::take(&mut unsent.rest);
        if !segments.has_remaining() {
            segments = unsent.outbox.take();
        }
        if !segments.has_remaining() {
            unsent.writer = Writer::Nobody;
            return None;
        }
        Some(segments)
    }

    fn close(&self) {
        self.lock().close();
    }

    fn lock(&self) -> MutexGuard<'_, Unsent> {
        self.unsent.lock().expect("no panic while posting")
    }
}

impl Unsent {
    fn close(&mut self) {
        (self.outbox, self.rest, self.socket) = (Outbox::new(), Segments::default(), None);
    }
}

/// Writes as much as the socket takes at once.
fn write_once(socket: &OwnedWriteHalf, segments: &mut Segments) -> io::Result<()> {
    let mut slices = [IoSlice::new(&[]); SEGMENTS_MAX];
    let filled = segments.chunks_vectored(&mut slices);
    let written = socket.try_write_vectored(&slices[..filled])?;
    segments.advance(written);
    Ok(())
}

/// Why a connection is over, other than that the proxy closed it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Ended {
    #[error("{0}")]
    Socket(#[from] io::Error),
    #[error("{0}")]
    Frame(#[from] FrameError),
    #[error("it ended inside a frame")]
    Cut,
    #[error("a proxy does not send {0:?} frames")]
    Direction(Kind),
    #[error("metadata of a frame: {0}")]
    Metadata(#[from] prost::DecodeError),
    #[error("it left more than {most} bytes of replies unread")]
    Unread { most: usize },
}

/// What all connections share.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) queue: Arc<Queue>,
    pub(crate) catalog: watch::Receiver<Arc<Catalog>>,
    pub(crate) loader: Orders,
    pub(crate) memory: Memory,
    pub(crate) device_memory: Option<Arc<DeviceGauge>>,
    pub(crate) hello: Hello,
    pub(crate) frames: Limits,
    pub(crate) unread_bytes_max: usize,
    /// Becomes true when no reply will be added any more.
    pub(crate) drained: watch::Receiver<bool>,
}

/// Serves one connection until it ends.
pub(crate) async fn serve(stream: UnixStream, connection: u64, shared: Shared) -> Result<(), Ended> {
    let (read_half, write_half) = stream.into_split();
    let write_half = Arc::new(write_half);
    let open = Open {
        mailbox: Arc::new(Mailbox::new(connection, shared.unread_bytes_max, Arc::clone(&write_half))),
        queue: Arc::clone(&shared.queue),
    };
    let mut reader = Reader {
        mailbox: Arc::clone(&open.mailbox),
        queue: Arc::clone(&shared.queue),
        catalog: shared.catalog.clone(),
        loader: shared.loader.clone(),
        memory: shared.memory,
        device_memory: shared.device_memory.clone(),
        decoder: Decoder::new(shared.frames),
        orders: Vec::new(),
        refused: Vec::new(),
    };
    tokio::select! {
        read = reader.run(read_half) => read,
        () = open.mailbox.overflown.notified() => Err(Ended::Unread { most: shared.unread_bytes_max }),
        written = write(&write_half, &open.mailbox, &shared) => written,
    }
}

/// However the task ends, what it had waiting goes with it.
struct Open {
    mailbox: Arc<Mailbox>,
    queue: Arc<Queue>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.mailbox.close();
        self.queue.cancel_connection(self.mailbox.connection);
    }
}

struct Reader {
    mailbox: Arc<Mailbox>,
    queue: Arc<Queue>,
    catalog: watch::Receiver<Arc<Catalog>>,
    loader: Orders,
    memory: Memory,
    device_memory: Option<Arc<DeviceGauge>>,
    decoder: Decoder,
    /// Emptied after each read; kept for its memory.
    orders: Vec<Order>,
    /// Likewise.
    refused: Vec<(u64, Refusal)>,
}

impl Reader {
    async fn run(&mut self, mut socket: OwnedReadHalf) -> Result<(), Ended> {
        loop {
            if socket.read_buf(self.decoder.buffer()).await? == 0 {
                return if self.decoder.is_between_frames() { Ok(()) } else { Err(Ended::Cut) };
            }
            let now = Instant::now();
            let catalog = Arc::clone(&self.catalog.borrow());
            while let Some(frame) = self.decoder.decode()? {
                match frame.kind {
                    Kind::Infer => self.take_in(frame, now, &catalog)?,
                    Kind::Cancel => {
                        self.orders.push(Order::Cancel { connection: self.mailbox.connection, id: frame.id })
                    }
                    Kind::Control => {
                        self.loader.give(Control::decode(frame.metadata)?, &self.mailbox, frame.id);
                    }
                    Kind::Ping => self.pong(frame.id),
                    Kind::Hello | Kind::Index | Kind::Reply | Kind::Pong => {
                        return Err(Ended::Direction(frame.kind));
                    }
                }
            }
            self.queue.submit(&mut self.orders, &mut self.refused, now);
            split::refuse(&self.mailbox, &mut self.refused);
        }
    }

    /// Lives, and says how much it holds.
    fn pong(&self, id: u64) {
        let device = self.device_memory.as_ref().and_then(DeviceGauge::read);
        let health = Health { under_way: self.queue.under_way(), device, ..self.memory.health() };
        self.mailbox.post(|outbox| outbox.push(Kind::Pong, id, &health, Bytes::new()));
    }

    fn take_in(&mut self, frame: Frame, now: Instant, catalog: &Catalog) -> Result<(), Ended> {
        let Frame { id, metadata, mut payload, .. } = frame;
        let metadata_bytes = metadata.len();
        let mut infer = Infer::decode(metadata)?;
        let deadline = (infer.budget_us > 0).then(|| now + Duration::from_micros(infer.budget_us));
        let trace = infer.trace.take().map(traced);
        let (caller, tenant) = (infer.caller, infer.tenant);
        let criticality = match infer.criticality {
            1 => Criticality::Critical,
            0 | 2 => Criticality::Normal,
            _ => Criticality::Sheddable,
        };
        let priority = match infer.priority {
            1 => Priority::High,
            0 | 2 => Priority::Normal,
            _ => Priority::Low,
        };
        // A small request that waits would keep the whole buffer of its read alive. Copied out, the buffer can be
        // used for the next read, and is still in the cache.
        if payload.len() < COPY_BYTES {
            payload = Bytes::copy_from_slice(&payload);
        }
        match Request::check(infer, payload, catalog) {
            Ok(request) => {
                let bytes = metadata_bytes + request.payload.len();
                self.orders.push(Order::Run(Arc::new(Job {
                    request,
                    id,
                    mailbox: Arc::clone(&self.mailbox),
                    received: now,
                    deadline,
                    priority,
                    criticality,
                    tenant,
                    caller,
                    trace,
                    bytes,
                    answered: AtomicBool::new(false),
                    done: Mutex::default(),
                })));
            }
            Err(refusal) => self.refused.push((id, refusal)),
        }
        Ok(())
    }
}

fn traced(context: TraceContext) -> Traced {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let copied = |id: Bytes| Bytes::copy_from_slice(&id);
    Traced {
        context: TraceContext { trace_id: copied(context.trace_id), span_id: copied(context.span_id) },
        received_unix_ns: u64::try_from(since.as_nanos()).unwrap_or(0),
    }
}

/// Announces what changes, and writes what posters leave over.
async fn write(socket: &OwnedWriteHalf, mailbox: &Mailbox, shared: &Shared) -> Result<(), Ended> {
    let (mut catalog, mut drained) = (shared.catalog.clone(), shared.drained.clone());
    mailbox.post(|outbox| outbox.push(Kind::Hello, 0, &shared.hello, Bytes::new()));
    catalog.mark_changed();
    let mut may_change = true;
    loop {
        tokio::select! {
            () = mailbox.left_over.notified() => write_rest(socket, mailbox).await?,
            changed = catalog.changed(), if may_change => {
                if changed.is_err() {
                    may_change = false; // the loader is gone
                    continue;
                }
                let index = catalog.borrow_and_update().index();
                mailbox.post(|outbox| outbox.push(Kind::Index, 0, &index, Bytes::new()));
            }
            () = until_true(&mut drained) => return write_rest(socket, mailbox).await,
        }
    }
}

async fn until_true(flag: &mut watch::Receiver<bool>) {
    flag.wait_for(|flag| *flag).await.expect("the engine keeps the sender while it serves");
}

async fn write_rest(socket: &OwnedWriteHalf, mailbox: &Mailbox) -> Result<(), Ended> {
    while let Some(mut segments) = mailbox.next() {
        while segments.has_remaining() {
            socket.writable().await?;
            match write_once(socket, &mut segments) {
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error.into()),
                Ok(()) | Err(_) => {}
            }
        }
    }
    Ok(())
}
