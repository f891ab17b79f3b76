//! One proxy worker's connection: frames in, frames out. A [`Mailbox`] is where lanes leave replies; this task
//! alone touches the socket. Work is done per read and per write, not per request: all requests of one read enter
//! the queue under one lock, and all replies that wait leave in one write.
//!
//! ```text
//!   socket ─▶ read ─▶ Decoder ─▶ check ─▶ orders ─▶ Queue          (one lock for all frames of a read)
//!   socket ◀─ write ◀─ Mailbox ◀─ lanes, refusals, index changes   (one wake-up for all of a batch)
//! ```
//!
//! When either half ends, both do: what the connection had waiting is cancelled and what is running for it is
//! dropped when it is done.

use crate::job::{Job, Request, Traced};
use crate::library::Catalog;
use crate::queue::{Order, Queue};
use crate::split;
use bytes::Bytes;
use prost::Message;
use std::io::{self, IoSlice};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{ReadHalf, WriteHalf};
use tokio::sync::{Notify, watch};
use wire::{Decoder, Frame, FrameError, Hello, Infer, Kind, Limits, Outbox, TraceContext};

/// Payloads below this are copied out of the buffer they were read into.
const COPY_BYTES: usize = 4 << 10;

/// Segments of one vectored write; the kernel takes 1024.
const SEGMENTS_MAX: usize = 64;

/// Replies on their way out of one connection.
pub(crate) struct Mailbox {
    /// Unique in the life of the engine.
    pub(crate) connection: u64,
    unread_bytes_max: usize,
    unsent: Mutex<Unsent>,
    filled: Notify,
    overflown: Notify,
}

struct Unsent {
    outbox: Outbox,
    /// Whether the connection lives. One that does not read must not.
    open: bool,
}

impl Mailbox {
    pub(crate) fn new(connection: u64, unread_bytes_max: usize) -> Self {
        let unsent = Mutex::new(Unsent { outbox: Outbox::new(), open: true });
        Self { connection, unread_bytes_max, unsent, filled: Notify::new(), overflown: Notify::new() }
    }

    /// Lets `write` add frames, unless nobody is there to read them.
    pub(crate) fn post(&self, write: impl FnOnce(&mut Outbox)) {
        let mut unsent = self.unsent.lock().expect("no panic while posting");
        if !unsent.open {
            return;
        }
        let was_empty = unsent.outbox.is_empty();
        write(&mut unsent.outbox);
        if unsent.outbox.pending_bytes() > self.unread_bytes_max {
            (unsent.open, unsent.outbox) = (false, Outbox::new());
            // The writer may be stuck in a write that never ends.
            self.overflown.notify_one();
        }
        drop(unsent);
        // Otherwise the writer was told already and has not yet looked.
        if was_empty {
            self.filled.notify_one();
        }
    }

    /// Whether a reply would still reach anybody.
    pub(crate) fn is_open(&self) -> bool {
        self.unsent.lock().expect("no panic while posting").open
    }

    fn take(&self) -> Vec<Bytes> {
        self.unsent.lock().expect("no panic while posting").outbox.take()
    }

    fn close(&self) {
        let mut unsent = self.unsent.lock().expect("no panic while posting");
        (unsent.open, unsent.outbox) = (false, Outbox::new());
    }
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
    #[error("metadata of an Infer frame: {0}")]
    Metadata(#[from] prost::DecodeError),
    #[error("it left more than {most} bytes of replies unread")]
    Unread { most: usize },
}

/// What all connections share.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) queue: Arc<Queue>,
    pub(crate) catalog: watch::Receiver<Arc<Catalog>>,
    pub(crate) hello: Hello,
    pub(crate) frames: Limits,
    pub(crate) unread_bytes_max: usize,
    /// Becomes true when no reply will be added any more.
    pub(crate) drained: watch::Receiver<bool>,
}

/// Serves one connection until it ends.
pub(crate) async fn serve(mut stream: UnixStream, connection: u64, shared: Shared) -> Result<(), Ended> {
    let open = Open {
        mailbox: Arc::new(Mailbox::new(connection, shared.unread_bytes_max)),
        queue: Arc::clone(&shared.queue),
    };
    let (read_half, write_half) = stream.split();
    let mut reader = Reader {
        mailbox: Arc::clone(&open.mailbox),
        queue: Arc::clone(&shared.queue),
        catalog: shared.catalog.clone(),
        decoder: Decoder::new(shared.frames),
        orders: Vec::new(),
    };
    tokio::select! {
        read = reader.run(read_half) => read,
        () = open.mailbox.overflown.notified() => Err(Ended::Unread { most: shared.unread_bytes_max }),
        written = write(write_half, &open.mailbox, &shared) => written,
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
    decoder: Decoder,
    /// Emptied after each read; kept for its memory.
    orders: Vec<Order>,
}

impl Reader {
    async fn run(&mut self, mut socket: ReadHalf<'_>) -> Result<(), Ended> {
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
                    Kind::Ping => {
                        self.mailbox.post(|outbox| outbox.push(Kind::Pong, frame.id, &(), Bytes::new()));
                    }
                    Kind::Hello | Kind::Index | Kind::Reply | Kind::Pong => {
                        return Err(Ended::Direction(frame.kind));
                    }
                }
            }
            for (job, refusal) in self.queue.submit(&mut self.orders, now) {
                split::refuse(&job.mailbox, job.id, &refusal);
            }
        }
    }

    fn take_in(&mut self, frame: Frame, now: Instant, catalog: &Catalog) -> Result<(), Ended> {
        let Frame { id, metadata, mut payload, .. } = frame;
        let bytes = metadata.len() + payload.len();
        let mut infer = Infer::decode(metadata)?;
        let deadline = (infer.budget_us > 0).then(|| now + Duration::from_micros(infer.budget_us));
        let trace = infer.trace.take().map(traced);
        // A small request that waits would keep the whole buffer of its read alive. Copied out, the buffer can be
        // used for the next read, and is still in the cache.
        if payload.len() < COPY_BYTES {
            payload = Bytes::copy_from_slice(&payload);
        }
        match Request::check(infer, payload, catalog) {
            Ok(request) => {
                let mailbox = Arc::clone(&self.mailbox);
                let job = Job { request, id, mailbox, received: now, deadline, trace, bytes };
                self.orders.push(Order::Run(Box::new(job)));
            }
            Err(refusal) => split::refuse(&self.mailbox, id, &refusal),
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

async fn write(mut socket: WriteHalf<'_>, mailbox: &Mailbox, shared: &Shared) -> Result<(), Ended> {
    let (mut catalog, mut drained) = (shared.catalog.clone(), shared.drained.clone());
    mailbox.post(|outbox| outbox.push(Kind::Hello, 0, &shared.hello, Bytes::new()));
    catalog.mark_changed();
    loop {
        tokio::select! {
            () = mailbox.filled.notified() => {}
            changed = catalog.changed() => {
                changed.expect("the engine keeps the sender while it serves");
                let index = catalog.borrow_and_update().index();
                mailbox.post(|outbox| outbox.push(Kind::Index, 0, &index, Bytes::new()));
            }
            () = until_true(&mut drained) => return write_all(&mut socket, &mailbox.take()).await,
        }
        loop {
            let segments = mailbox.take();
            if segments.is_empty() {
                break;
            }
            write_all(&mut socket, &segments).await?;
        }
    }
}

async fn until_true(flag: &mut watch::Receiver<bool>) {
    flag.wait_for(|flag| *flag).await.expect("the engine keeps the sender while it serves");
}

async fn write_all(socket: &mut WriteHalf<'_>, segments: &[Bytes]) -> Result<(), Ended> {
    for segments in segments.chunks(SEGMENTS_MAX) {
        let mut slices = [IoSlice::new(&[]); SEGMENTS_MAX];
        for (slice, segment) in slices.iter_mut().zip(segments) {
            *slice = IoSlice::new(segment);
        }
        let mut rest = &mut slices[..segments.len()];
        while !rest.is_empty() {
            let written = socket.write_vectored(rest).await?;
            if written == 0 {
                return Err(io::Error::from(io::ErrorKind::WriteZero).into());
            }
            IoSlice::advance_slices(&mut rest, written);
        }
    }
    Ok(())
}
