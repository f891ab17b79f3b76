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
use crate::job::{Job, Refusal, Request, Terms, Traced};
use crate::mailbox::Mailbox;
use crate::memory::{self, DeviceGauge, Memory, Trim};
use crate::model::Version;
use crate::orders::Orders;
use crate::preparers::{After, Prepared, Preparers, REQUESTS_MAX, Raw};
use crate::queue::{Order, Queue};
use crate::region::{self, Region};
use crate::split;
use bytes::{Buf, Bytes};
use prost::Message;
use socket::Socket;
use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};
use wire::{
    Control, Decoder, Frame, FrameError, Health, Hello, Infer, Kind, Limits, Placed, TensorMeta,
    TraceContext, VersionDrift,
};

/// Payloads below this are copied out of the buffer they were read into.
const COPY_BYTES: usize = 4 << 10;

/// A proxy that takes no byte of its replies for so long does not live.
const STALLED: Duration = Duration::from_secs(10);

/// Versions that one answer to a `Ping` tells the drift of: the rest is told by the next.
const DRIFTS_MAX: usize = 16;

/// Versions of which is remembered what was told.
const TOLD_MAX: usize = 4096;

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
    #[error("{0}")]
    Region(#[from] region::Outside),
    #[error("it left more than {most} bytes of replies unread")]
    Unread { most: usize },
    #[error("it has read none of its replies for {} s", most.as_secs())]
    Stalled { most: Duration },
}

/// What all connections share.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) queue: Arc<Queue>,
    pub(crate) preparers: Arc<Preparers>,
    pub(crate) catalog: watch::Receiver<Arc<Catalog>>,
    pub(crate) loader: Orders,
    pub(crate) memory: Memory,
    pub(crate) request_bytes_max: u64,
    pub(crate) device_memory: Option<Arc<DeviceGauge>>,
    pub(crate) hello: Hello,
    pub(crate) frames: Limits,
    pub(crate) unread_bytes_max: usize,
    /// Becomes true when no reply will be added any more.
    pub(crate) drained: watch::Receiver<bool>,
}

/// Serves one connection until it ends.
pub(crate) async fn serve(stream: UnixStream, connection: u64, shared: Shared) -> Result<(), Ended> {
    let socket = Arc::new(Socket::new(stream)?);
    let open = Open {
        mailbox: Arc::new(
            Mailbox::new(connection, shared.unread_bytes_max, Arc::clone(&socket))
                .counting(shared.queue.unread()),
        ),
        queue: Arc::clone(&shared.queue),
        preparers: Arc::clone(&shared.preparers),
    };
    let (done, prepared) = mpsc::channel(REQUESTS_MAX);
    let mut reader = Reader {
        mailbox: Arc::clone(&open.mailbox),
        queue: Arc::clone(&shared.queue),
        preparers: Arc::clone(&shared.preparers),
        done,
        prepared,
        preparing: HashMap::new(),
        catalog: shared.catalog.clone(),
        loader: shared.loader.clone(),
        memory: shared.memory,
        request_bytes_max: shared.request_bytes_max,
        device_memory: shared.device_memory.clone(),
        decoder: Decoder::new(shared.frames),
        payload_bytes_max: shared.frames.payload_bytes,
        region: None,
        told: HashMap::new(),
        trim: Trim::default(),
        orders: Vec::new(),
        refused: Vec::new(),
    };
    tokio::select! {
        read = reader.run(&socket) => read,
        () = open.mailbox.overflown.notified() => Err(Ended::Unread { most: shared.unread_bytes_max }),
        written = write(&socket, &open.mailbox, &shared) => written,
    }
}

/// However the task ends, what it had waiting goes with it.
struct Open {
    mailbox: Arc<Mailbox>,
    queue: Arc<Queue>,
    preparers: Arc<Preparers>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.mailbox.close();
        self.preparers.cancel_connection(self.mailbox.connection);
        self.queue.cancel_connection(self.mailbox.connection);
    }
}

struct Reader {
    mailbox: Arc<Mailbox>,
    queue: Arc<Queue>,
    preparers: Arc<Preparers>,
    /// Where pre-processed requests come back.
    done: mpsc::Sender<Prepared>,
    prepared: mpsc::Receiver<Prepared>,
    /// By id, those that are being pre-processed, and whether nobody waits for them any more.
    preparing: HashMap<u64, Arc<AtomicBool>>,
    catalog: watch::Receiver<Arc<Catalog>>,
    loader: Orders,
    memory: Memory,
    request_bytes_max: u64,
    device_memory: Option<Arc<DeviceGauge>>,
    decoder: Decoder,
    payload_bytes_max: usize,
    /// Where the proxy lays large payloads, if it does.
    region: Option<Arc<Region>>,
    /// Rows of each version, by key, that had been looked at when its drift was last told.
    told: HashMap<u32, u64>,
    trim: Trim,
    /// Emptied after each read; kept for its memory.
    orders: Vec<Order>,
    /// Likewise.
    refused: Vec<(u64, Refusal)>,
}

impl Reader {
    async fn run(&mut self, socket: &Socket) -> Result<(), Ended> {
        let (read, files) = region::first_read(socket, self.decoder.buffer()).await?;
        if read == 0 {
            return Ok(());
        }
        self.take_in_all(&files)?;
        drop(files);
        loop {
            tokio::select! {
                read = socket.read(self.decoder.buffer()) => {
                    if read? == 0 {
                        return if self.decoder.is_between_frames() { Ok(()) } else { Err(Ended::Cut) };
                    }
                    self.take_in_all(&[])?;
                }
                Some(prepared) = self.prepared.recv() => self.go_on(prepared),
            }
        }
    }

    /// What one read has brought, with the files beside it.
    fn take_in_all(&mut self, files: &[OwnedFd]) -> Result<(), Ended> {
        let now = Instant::now();
        let catalog = Arc::clone(&self.catalog.borrow());
        let (mut announced, mut frames) = (None, 0);
        while let Some(frame) = self.decoder.decode()? {
            frames += 1;
            match frame.kind {
                Kind::Infer => {
                    // Where several have come, a lane would wait for all of them awake.
                    if frames == 1 && self.decoder.is_between_frames() {
                        announced = self.queue.announce();
                    }
                    self.take_in(frame, now, &catalog)?;
                }
                Kind::Cancel => self.cancel(frame.id),
                Kind::Control => {
                    self.loader.give(Control::decode(frame.metadata)?, &self.mailbox, frame.id);
                }
                Kind::Ping => self.pong(frame.id, &catalog),
                Kind::Region => self.adopt(files, &wire::Region::decode(frame.metadata)?),
                Kind::Hello | Kind::Index | Kind::Reply | Kind::Pong => {
                    return Err(Ended::Direction(frame.kind));
                }
            }
        }
        self.submit(now);
        drop(announced);
        Ok(())
    }

    fn adopt(&mut self, files: &[OwnedFd], said: &wire::Region) {
        match Region::adopt(files, said) {
            Ok(region) => {
                self.region = Some(region);
                self.mailbox.post(|outbox| outbox.push(Kind::Region, 0, &(), Bytes::new()));
            }
            // Unless it is told otherwise, the proxy writes everything to the socket.
            Err(error) => tracing::warn!("no memory is shared with the proxy, which costs time: {error}"),
        }
    }

    fn submit(&mut self, now: Instant) {
        self.queue.submit(&mut self.orders, &mut self.refused, now);
        split::refuse(&self.mailbox, &mut self.refused);
    }

    fn cancel(&mut self, id: u64) {
        match self.preparing.remove(&id) {
            Some(cancelled) => {
                cancelled.store(true, Ordering::Relaxed);
                self.preparers.cancel(self.mailbox.connection, id);
            }
            None => self.orders.push(Order::Cancel { connection: self.mailbox.connection, id }),
        }
    }

    /// Lets what is pre-processed into the queue, unless nobody waits for it any more.
    fn go_on(&mut self, first: Prepared) {
        let mut places = Vec::new();
        let mut next = Some(first);
        while let Some(Prepared { terms, result, cancelled, place }) = next {
            places.push(place);
            if !cancelled.load(Ordering::Relaxed) {
                self.preparing.remove(&terms.id);
                match result {
                    Ok(request) => self.enter(request, terms),
                    Err(refusal) => self.refused.push((terms.id, refusal)),
                }
            }
            next = self.prepared.try_recv().ok();
        }
        self.submit(Instant::now());
    }

    fn enter(&mut self, request: Request, terms: Terms) {
        self.orders.push(Order::Run(Arc::new(Job::new(request, terms, Arc::clone(&self.mailbox)))));
    }

    /// Lives, and says how much it holds.
    fn pong(&mut self, id: u64, catalog: &Catalog) {
        let device = self.device_memory.as_ref().and_then(DeviceGauge::read);
        let now = Instant::now();
        if self.trim.is_due(self.memory, memory::resident(), now) {
            self.trim.begin();
        }
        let health = Health {
            held_bytes: self.trim.take_held(),
            under_way: self.preparers.under_way() + self.queue.under_way(),
            running: self.queue.running(),
            given_up: self.queue.given_up(now),
            request_bytes: (self.preparers.bytes() + self.queue.bytes()) as u64,
            request_bytes_max: self.request_bytes_max,
            device,
            drifts: self.drifts(catalog, now),
            ..self.memory.health()
        };
        self.mailbox.post(|outbox| outbox.push(Kind::Pong, id, &health, Bytes::new()));
    }

    /// Of some versions that have been asked since they were last told of; first of those that nobody was told of for
    /// longest, by the rows that have come since.
    fn drifts(&mut self, catalog: &Catalog, now: Instant) -> Vec<VersionDrift> {
        if self.told.len() > TOLD_MAX {
            self.told.clear(); // keys of what was unloaded are never used again
        }
        let mut news: Vec<_> = catalog
            .ready()
            .map(|version| {
                let seen = version.drift.seen();
                (seen - self.told.get(&version.key).copied().unwrap_or(0).min(seen), seen, version)
            })
            .filter(|(new, ..)| *new > 0)
            .collect();
        news.sort_unstable_by_key(|(new, ..)| std::cmp::Reverse(*new));
        let told = news.into_iter().take(DRIFTS_MAX).map(|(_, seen, version)| {
            self.told.insert(version.key, seen);
            version.drift.to_wire(&version.name, version.number, version.load(), now)
        });
        told.collect()
    }

    fn take_in(&mut self, frame: Frame, now: Instant, catalog: &Catalog) -> Result<(), Ended> {
        let Frame { id, metadata, mut payload, .. } = frame;
        let metadata_bytes = metadata.len();
        let mut infer = Infer::decode(metadata)?;
        let terms = terms(id, &mut infer, now, metadata_bytes);
        // A small request that waits would keep the whole buffer of its read alive. Copied out, the buffer can be
        // used for the next read, and is still in the cache.
        if payload.len() < COPY_BYTES {
            payload = Bytes::copy_from_slice(&payload);
        }
        if let Some(placed) = infer.placed.take() {
            payload = self.borrow(placed, &infer.inputs)?;
        }
        if let Err(refusal) = self.let_in(infer, payload, terms, now, catalog) {
            self.refused.push((id, refusal));
        }
        Ok(())
    }

    /// A payload that is not in its frame.
    fn borrow(&self, placed: Placed, inputs: &[TensorMeta]) -> Result<Bytes, Ended> {
        if placed.bytes > self.payload_bytes_max as u64 {
            let (got, limit) = (placed.bytes, self.payload_bytes_max);
            return Err(FrameError::TooLong { part: "payload", got, limit }.into());
        }
        let region = self.region.as_ref().ok_or(region::Outside(placed))?;
        Ok(region::steady(region.borrow(placed)?, inputs))
    }

    fn let_in(
        &mut self,
        infer: Infer,
        payload: Bytes,
        terms: Terms,
        now: Instant,
        catalog: &Catalog,
    ) -> Result<(), Refusal> {
        let version = catalog.find(&infer.model, infer.version)?;
        if self.preparing.contains_key(&terms.id) {
            return Err(Refusal::Duplicate { id: terms.id });
        }
        if version.preprocess.as_ref().is_some_and(|preprocess| preprocess.concerns(&infer.inputs)) {
            return self.prepare(version, infer, payload, terms, now);
        }
        let request = Request::check_for(version, infer.inputs, infer.outputs, payload)?;
        self.enter(request, terms);
        Ok(())
    }

    fn prepare(
        &mut self,
        version: &Arc<Version>,
        infer: Infer,
        payload: Bytes,
        terms: Terms,
        now: Instant,
    ) -> Result<(), Refusal> {
        let preprocess = version.preprocess.as_ref().expect("it concerns this request");
        let needs = preprocess.needs(&infer.inputs, &payload, version)?;
        let (id, cancelled) = (terms.id, Arc::new(AtomicBool::new(false)));
        let raw = Raw {
            version: Arc::clone(version),
            infer,
            payload,
            terms,
            mailbox: Arc::clone(&self.mailbox),
            cancelled: Arc::clone(&cancelled),
        };
        let priority = raw.terms.priority;
        let after = match raw.terms.deadline {
            Some(_) => self.queue.after(version, raw.rows(), &raw.terms, now),
            None => After::default(),
        };
        self.preparers.submit(raw, needs, after, &self.done, now).inspect_err(|refusal| {
            if let Refusal::TooLate { wait } = refusal {
                self.queue.turn_away(version, priority, *wait, now);
            }
        })?;
        self.preparing.insert(id, cancelled);
        Ok(())
    }
}

/// What an `Infer` says beside its tensors.
fn terms(id: u64, infer: &mut Infer, received: Instant, metadata_bytes: usize) -> Terms {
    Terms {
        id,
        received,
        prepared: Duration::ZERO,
        deadline: (infer.budget_us > 0).then(|| received + Duration::from_micros(infer.budget_us)),
        priority: match (infer.is_copy, infer.priority) {
            (true, _) => Priority::Last,
            (false, 1) => Priority::High,
            (false, 0 | 2) => Priority::Normal,
            (false, _) => Priority::Low,
        },
        criticality: match infer.criticality {
            1 => Criticality::Critical,
            0 | 2 => Criticality::Normal,
            _ => Criticality::Sheddable,
        },
        tenant: infer.tenant,
        caller: infer.caller,
        trace: infer.trace.take().map(traced),
        metadata_bytes,
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
async fn write(socket: &Socket, mailbox: &Mailbox, shared: &Shared) -> Result<(), Ended> {
    let (mut catalog, mut drained) = (shared.catalog.clone(), shared.drained.clone());
    mailbox.post(|outbox| outbox.push(Kind::Hello, 0, &shared.hello, Bytes::new()));
    catalog.mark_changed();
    let mut may_change = true;
    loop {
        tokio::select! {
            () = mailbox.left_over.notified() => write_rest(socket, mailbox, &shared.queue, STALLED).await?,
            changed = catalog.changed(), if may_change => {
                if changed.is_err() {
                    may_change = false; // the loader is gone
                    continue;
                }
                let index = catalog.borrow_and_update().index();
                mailbox.post(|outbox| outbox.push(Kind::Index, 0, &index, Bytes::new()));
            }
            () = until_true(&mut drained) => return write_rest(socket, mailbox, &shared.queue, STALLED).await,
        }
    }
}

async fn until_true(flag: &mut watch::Receiver<bool>) {
    flag.wait_for(|flag| *flag).await.expect("the engine keeps the sender while it serves");
}

/// Gives up on a proxy that takes nothing for so long.
async fn write_rest(socket: &Socket, mailbox: &Mailbox, queue: &Queue, most: Duration) -> Result<(), Ended> {
    while let Some(mut segments) = mailbox.next() {
        queue.was_read();
        while segments.has_remaining() {
            let before = segments.remaining();
            match tokio::time::timeout(most, socket.write_all(&mut segments)).await {
                Ok(written) => written?,
                // What it leaves unread takes room that others need.
                Err(_) if segments.remaining() == before => return Err(Ended::Stalled { most }),
                Err(_) => {}
            }
        }
    }
    queue.was_read();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batcher;
    use tokio::io::AsyncReadExt;

    /// The proxy's end of a connection on which more is to be written than a socket takes, and that.
    fn unread() -> (UnixStream, Arc<Socket>, Mailbox, Queue) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let socket = Arc::new(Socket::new(ours).unwrap());
        let queue = Queue::new(batcher::Limits::halving(10, 1000), 1);
        let mailbox = Mailbox::new(1, usize::MAX, Arc::clone(&socket)).counting(queue.unread());
        mailbox.post(|outbox| outbox.push(Kind::Reply, 1, &(), Bytes::from(vec![0; 4 << 20])));
        (theirs, socket, mailbox, queue)
    }

    #[tokio::test]
    async fn a_proxy_that_reads_nothing_is_cut_off_and_one_that_reads_is_not() {
        let (_theirs, socket, mailbox, queue) = unread();
        let ended = write_rest(&socket, &mailbox, &queue, Duration::from_millis(1)).await.unwrap_err();
        assert!(matches!(ended, Ended::Stalled { .. }), "{ended}");
        let (mut theirs, socket, mailbox, queue) = unread();
        let reads = async {
            let mut read = vec![0; 4 << 20];
            theirs.read_exact(&mut read).await.unwrap();
        };
        let (written, ()) = tokio::join!(write_rest(&socket, &mailbox, &queue, STALLED), reads);
        written.unwrap();
        assert_eq!(queue.unread().load(Ordering::Relaxed), 0);
    }
}
