//! The multiplexed connection to the engine: many requests in flight, writes coalesced, each answer handed to
//! the one that waits for it. Decides nothing about requests; never looks into tensors.
//!
//! A link that breaks fails everything it carries at once and is not repaired: the next request opens a new one, see
//! [`crate::links`]. It may have memory of both, see [`crate::region`]: a payload that lies there is not written, only told of.

use crate::pulse::Pulse;
use crate::region::Region;
use bytes::{Buf, Bytes};
use prost::Message;
use socket::Socket;
use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::net::UnixStream;
use tokio::sync::{Notify, oneshot};
use wire::{Control, Decoder, Frame, Health, Hello, Index, Infer, Kind, Limits, Outbox};

/// Why there was no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// The engine is not there, or went away with the request.
    #[error("{0}")]
    Down(String),
    /// More is waiting to be written than the link may hold.
    #[error("{0} bytes wait to be written to the engine")]
    Backlog(usize),
    /// The request does not fit into a frame; sending it would cost the connection.
    #[error("{what} exceeds the limit of {limit} bytes")]
    TooLong {
        /// Which part of it.
        what: &'static str,
        /// Bytes that it may have.
        limit: usize,
    },
}

/// What the engine sends on its own account.
#[derive(Debug)]
pub enum Event {
    /// First frame.
    Hello(Hello),
    /// Which versions exist, whenever that changes.
    Index(Index),
    /// The answer to [`Link::ping`].
    Pong(Health),
}

/// One connection. Cloning shares it; it ends with the last clone.
#[derive(Clone, Debug)]
pub struct Link {
    open: Arc<Open>,
    /// Bytes of tensors that the engine takes with one request.
    payload_bytes_max: usize,
}

/// What those who use a link have of it; its own tasks do not, so that it can be told when nobody does.
#[derive(Debug)]
struct Open(Arc<Shared>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.close("nobody uses the link any more".into());
    }
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Wakes the writer: there is something to write, or the link has closed.
    wake: Notify,
    /// Wakes those who wait for the end.
    ended: Notify,
    /// Tells requests that they have waited for a while.
    pulse: Pulse,
    region: Option<Arc<Region>>,
}

#[derive(Debug, Default)]
struct State {
    outbox: Outbox,
    waiting: HashMap<u64, oneshot::Sender<Frame>>,
    last_id: u64,
    closed: Option<String>,
}

impl Link {
    /// Frames waiting to be written beyond this are refused: the engine has stopped reading.
    const BACKLOG_BYTES: usize = 256 << 20;

    /// Connects. What the engine says unasked goes to `on_event`, from the link's reader task.
    ///
    /// Must be called on the runtime that is to carry the link.
    pub async fn connect(socket: &Path, on_event: impl Fn(Event) + Send + 'static) -> io::Result<Self> {
        let stream = UnixStream::connect(socket).await?;
        is_trusted(&stream)?;
        Self::over(stream, None, on_event)
    }

    /// The same, with memory of both if the engine maps it.
    pub(crate) async fn connect_sharing(
        socket: &Path,
        region: Arc<Region>,
        files: [OwnedFd; 2],
    ) -> io::Result<Self> {
        let stream = UnixStream::connect(socket).await?;
        is_trusted(&stream)?;
        region.offer(&files, &stream).await?;
        Self::over(stream, Some(region), |_| {})
    }

    fn over(
        stream: UnixStream,
        region: Option<Arc<Region>>,
        on_event: impl Fn(Event) + Send + 'static,
    ) -> io::Result<Self> {
        let socket = Arc::new(Socket::new(stream)?);
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            wake: Notify::new(),
            ended: Notify::new(),
            pulse: Pulse::default(),
            region,
        });
        tokio::spawn(write_frames(socket.clone(), shared.clone()));
        let beating = shared.clone();
        tokio::spawn(async move { beating.pulse.run(|| beating.lock().closed.is_some()).await });
        tokio::spawn(read_frames(socket, shared.clone(), on_event));
        Ok(Self { open: Arc::new(Open(shared)), payload_bytes_max: LIMITS.payload_bytes })
    }

    /// The same link, to an engine that takes so many bytes of tensors with one request.
    pub(crate) fn up_to(self, payload_bytes_max: usize) -> Self {
        Self { payload_bytes_max, ..self }
    }

    /// The memory that it shares with the engine, if it has any.
    pub(crate) fn region(&self) -> Option<&Arc<Region>> {
        self.shared().region.as_ref()
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.open.0
    }

    /// Sends a request. Dropping the returned [`Pending`] before it is answered cancels the request.
    pub fn send(&self, infer: &Infer, payload: Bytes) -> Result<Pending, LinkError> {
        fits("the data of the tensors", payload.len(), self.payload_bytes_max)?;
        let state = self.admit(infer.encoded_len() + PLACED_BYTES_MAX)?;
        // Only what is sure to be told of is lent.
        match self.region().and_then(|region| region.lend(&payload)) {
            Some(placed) => {
                let infer = Infer { placed: Some(placed), ..infer.clone() };
                Ok(self.ask(state, Kind::Infer, &infer, Bytes::new()))
            }
            None => Ok(self.ask(state, Kind::Infer, infer, payload)),
        }
    }

    /// Sends an order to load or unload a model. Dropping the [`Pending`] does not take it back.
    pub fn order(&self, control: &Control) -> Result<Pending, LinkError> {
        Ok(self.ask(self.admit(control.encoded_len())?, Kind::Control, control, Bytes::new()))
    }

    /// Whether something can be asked now.
    fn admit(&self, metadata_bytes: usize) -> Result<MutexGuard<'_, State>, LinkError> {
        fits("what describes the tensors", metadata_bytes, LIMITS.metadata_bytes)?;
        let state = self.shared().lock();
        if let Some(reason) = &state.closed {
            return Err(LinkError::Down(reason.clone()));
        }
        if state.outbox.pending_bytes() > Self::BACKLOG_BYTES {
            return Err(LinkError::Backlog(state.outbox.pending_bytes()));
        }
        Ok(state)
    }

    fn ask(
        &self,
        mut state: MutexGuard<'_, State>,
        kind: Kind,
        metadata: &impl prost::Message,
        payload: Bytes,
    ) -> Pending {
        let (answer, receiver) = oneshot::channel();
        state.last_id += 1; // never reused: a late answer must not find another request under its id
        let id = state.last_id;
        state.waiting.insert(id, answer);
        let idle = state.outbox.is_empty();
        state.outbox.push(kind, id, metadata, payload);
        drop(state);
        if idle {
            self.shared().wake.notify_one();
        }
        Pending { link: self.clone(), id, receiver }
    }

    /// Asks whether the engine is there; the answer comes as an [`Event::Pong`].
    pub fn ping(&self) {
        let mut state = self.shared().lock();
        if state.closed.is_none() {
            state.outbox.push(Kind::Ping, 0, &(), Bytes::new());
            drop(state);
            self.shared().wake.notify_one();
        }
    }

    /// Ends the connection from this side. Nothing that the engine says afterwards is heard.
    pub fn close(&self, reason: &str) {
        self.shared().close(reason.to_owned());
    }

    /// Whether both are the same connection.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.open, &other.open)
    }

    /// Whether the connection has ended.
    pub fn is_closed(&self) -> bool {
        self.shared().lock().closed.is_some()
    }

    /// Waits until the connection ends; says why.
    pub async fn closed(&self) -> String {
        self.shared().closed().await
    }

    fn cancel(&self, id: u64) {
        let mut state = self.shared().lock();
        if state.waiting.remove(&id).is_some() && state.closed.is_none() {
            state.outbox.push(Kind::Cancel, id, &(), Bytes::new());
            drop(state);
            self.shared().wake.notify_one();
        }
    }
}

/// What an engine may say, and what it may be told unless it takes less.
pub(crate) const LIMITS: Limits = Limits { metadata_bytes: 1 << 20, payload_bytes: 256 << 20 };

/// What it takes to say where a payload lies.
const PLACED_BYTES_MAX: usize = 32;

fn fits(what: &'static str, got: usize, limit: usize) -> Result<(), LinkError> {
    if got <= limit { Ok(()) } else { Err(LinkError::TooLong { what, limit }) }
}

/// Tensors go to nobody but ourselves and root, whoever was first to bind the path.
fn is_trusted(stream: &UnixStream) -> io::Result<()> {
    let peer = stream.peer_cred()?.uid();
    if peer == 0 || peer == rustix::process::getuid().as_raw() {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::PermissionDenied,
        format!("the socket belongs to user {peer}, not to us"),
    ))
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while the state is held: it only moves values")
    }

    fn close(&self, reason: String) {
        let mut state = self.lock();
        if state.closed.is_none() {
            state.closed = Some(reason);
            state.waiting.clear(); // their receivers see the link closed
            if let Some(region) = &self.region {
                region.end();
            }
            state.outbox = Outbox::new();
        }
        drop(state);
        self.ended.notify_waiters();
        self.wake.notify_one();
        self.pulse.wake();
    }

    async fn closed(&self) -> String {
        loop {
            let woken = self.ended.notified();
            if let Some(reason) = &self.lock().closed {
                return reason.clone();
            }
            woken.await;
        }
    }
}

/// A request on its way.
#[derive(Debug)]
#[must_use = "dropping it cancels the request"]
pub struct Pending {
    link: Link,
    id: u64,
    receiver: oneshot::Receiver<Frame>,
}

impl Pending {
    /// The reply frame. Safe to cancel and to call again.
    pub async fn answer(&mut self) -> Result<Frame, LinkError> {
        match (&mut self.receiver).await {
            Ok(frame) => Ok(frame),
            Err(_) => {
                let reason = self.link.shared().lock().closed.clone();
                Err(LinkError::Down(reason.unwrap_or_else(|| "the request was dropped".into())))
            }
        }
    }
}

impl Pending {
    /// The reply frame, if it comes within [`SOON`](crate::pulse::SOON) or somewhat sooner, as most do.
    pub(crate) async fn answer_soon(&mut self) -> Option<Result<Frame, LinkError>> {
        let shared = self.link.shared().clone();
        tokio::select! {
            biased;
            answer = self.answer() => Some(answer),
            () = shared.pulse.soon() => None,
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.link.cancel(self.id); // a no-op once answered
    }
}

/// Writes what waits until the link closes. Requests that are submitted while one write is on its way share
/// the next.
async fn write_frames(socket: Arc<Socket>, shared: Arc<Shared>) {
    let mut closed = std::pin::pin!(shared.closed());
    loop {
        let mut segments = {
            let mut state = shared.lock();
            if state.closed.is_some() {
                return;
            }
            state.outbox.take()
        };
        if !segments.has_remaining() {
            shared.wake.notified().await;
            continue;
        }
        tokio::select! {
            biased;
            written = socket.write_all(&mut segments) => if let Err(error) = written {
                return shared.close(format!("writing to the engine failed: {error}"));
            },
            // Whoever does not read any more would keep us, the socket and the frames for ever.
            _ = &mut closed => return,
        }
    }
}

/// Hands out answers until the link closes.
async fn read_frames(socket: Arc<Socket>, shared: Arc<Shared>, on_event: impl Fn(Event)) {
    let mut decoder = Decoder::new(LIMITS);
    let mut closed = std::pin::pin!(shared.closed());
    let reason = loop {
        match decoder.decode() {
            Ok(Some(frame)) => {
                if let Err(error) = deliver(frame, &shared, &on_event) {
                    break error;
                }
            }
            Ok(None) => {
                let read = tokio::select! {
                    biased;
                    read = socket.read(decoder.buffer()) => read,
                    _ = &mut closed => return,
                };
                match read {
                    Ok(0) => break "the engine closed the connection".to_owned(),
                    Ok(_) => {}
                    Err(error) => break format!("reading from the engine failed: {error}"),
                }
            }
            Err(error) => break error.to_string(),
        }
    };
    shared.close(reason);
}

fn deliver(frame: Frame, shared: &Shared, on_event: &impl Fn(Event)) -> Result<(), String> {
    let broken = |error: prost::DecodeError| {
        format!("the engine sent {:?} metadata that does not decode: {error}", frame.kind)
    };
    if shared.lock().closed.is_some() {
        return Err("closed".into());
    }
    match frame.kind {
        Kind::Pong => on_event(Event::Pong(prost::Message::decode(frame.metadata.clone()).map_err(broken)?)),
        Kind::Reply => {
            // No receiver: cancelled while the answer was on its way.
            if let Some(waiting) = shared.lock().waiting.remove(&frame.id) {
                let _ = waiting.send(frame);
            }
        }
        Kind::Hello => {
            on_event(Event::Hello(prost::Message::decode(frame.metadata.clone()).map_err(broken)?))
        }
        Kind::Index => {
            on_event(Event::Index(prost::Message::decode(frame.metadata.clone()).map_err(broken)?))
        }
        Kind::Region => {
            let region =
                shared.region.as_ref().ok_or("the engine has mapped memory that nobody has offered")?;
            region.accept();
        }
        Kind::Infer | Kind::Cancel | Kind::Ping | Kind::Control => {
            return Err(format!("the engine sent {:?}, which only the proxy sends", frame.kind));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;
    use wire::Reply;

    /// The engine's end of a link, driven by the test.
    struct Engine {
        socket: UnixStream,
        decoder: Decoder,
    }

    impl Engine {
        async fn next(&mut self) -> Frame {
            loop {
                if let Some(frame) = self.decoder.decode().unwrap() {
                    return frame;
                }
                assert!(self.socket.read_buf(self.decoder.buffer()).await.unwrap() > 0, "link closed");
            }
        }

        async fn reply(&mut self, id: u64, message: &str) {
            let mut outbox = Outbox::new();
            outbox.push(
                Kind::Reply,
                id,
                &Reply { message: message.into(), ..Reply::default() },
                Bytes::new(),
            );
            self.socket.write_all_buf(&mut outbox.take()).await.unwrap();
        }
    }

    async fn linked() -> (Link, Engine) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("engine.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let link = Link::connect(&path, |_| {}).await.unwrap();
        let (socket, _) = listener.accept().await.unwrap();
        (link, Engine { socket, decoder: Decoder::new(Limits::default()) })
    }

    fn infer(model: &str) -> Infer {
        Infer { model: model.into(), ..Infer::default() }
    }

    async fn message(pending: &mut Pending) -> String {
        let frame = pending.answer().await.unwrap();
        <Reply as prost::Message>::decode(frame.metadata).unwrap().message
    }

    #[tokio::test]
    async fn answers_find_their_requests_in_any_order() {
        let (link, mut engine) = linked().await;
        let mut first = link.send(&infer("a"), Bytes::new()).unwrap();
        let mut second = link.send(&infer("b"), Bytes::from(vec![1; 100_000])).unwrap();
        let (a, b) = (engine.next().await, engine.next().await);
        assert_eq!(b.payload.len(), 100_000);
        engine.reply(b.id, "for b").await;
        engine.reply(a.id, "for a").await;
        assert_eq!(message(&mut first).await, "for a");
        assert_eq!(message(&mut second).await, "for b");
    }

    #[tokio::test]
    async fn a_dropped_request_is_cancelled_and_its_late_answer_reaches_nobody() {
        let (link, mut engine) = linked().await;
        let gone = link.send(&infer("a"), Bytes::new()).unwrap();
        let id = engine.next().await.id;
        drop(gone);
        let cancel = engine.next().await;
        assert_eq!((cancel.kind, cancel.id), (Kind::Cancel, id));
        engine.reply(id, "late").await;
        let mut next = link.send(&infer("b"), Bytes::new()).unwrap();
        let next_id = engine.next().await.id;
        assert_ne!(next_id, id, "ids are never reused");
        engine.reply(next_id, "mine").await;
        assert_eq!(message(&mut next).await, "mine");
    }

    #[tokio::test]
    async fn an_answered_request_is_not_cancelled() {
        let (link, mut engine) = linked().await;
        let mut done = link.send(&infer("a"), Bytes::new()).unwrap();
        let id = engine.next().await.id;
        engine.reply(id, "ok").await;
        message(&mut done).await;
        drop(done);
        let _next = link.send(&infer("b"), Bytes::new()).unwrap();
        assert_eq!(engine.next().await.kind, Kind::Infer);
    }

    #[tokio::test]
    async fn a_lost_engine_fails_everything_in_flight_and_everything_after() {
        let (link, engine) = linked().await;
        let mut pending = link.send(&infer("a"), Bytes::new()).unwrap();
        drop(engine);
        assert!(matches!(pending.answer().await, Err(LinkError::Down(_))));
        link.closed().await;
        assert!(link.is_closed());
        assert!(matches!(link.send(&infer("b"), Bytes::new()), Err(LinkError::Down(_))));
    }

    #[tokio::test]
    async fn a_request_that_fits_no_frame_costs_only_itself() {
        let (link, mut engine) = linked().await;
        let mut mate = link.send(&infer("mate"), Bytes::new()).unwrap();
        let long = link.send(&infer(&"m".repeat(2 << 20)), Bytes::new());
        assert!(matches!(long, Err(LinkError::TooLong { limit: 1_048_576, .. })));
        let id = engine.next().await.id;
        engine.reply(id, "fine").await;
        assert_eq!(message(&mut mate).await, "fine");
    }

    #[tokio::test]
    async fn a_closed_link_hears_nothing_more() {
        let (link, mut engine) = linked().await;
        let mut pending = link.send(&infer("a"), Bytes::new()).unwrap();
        let id = engine.next().await.id;
        link.close("not wanted");
        engine.reply(id, "late").await;
        assert_eq!(pending.answer().await.unwrap_err(), LinkError::Down("not wanted".into()));
    }

    #[tokio::test]
    async fn a_link_that_is_closed_leaves_nothing_behind_though_the_engine_does_not_read() {
        let (link, engine) = linked().await;
        let _pending = link.send(&infer("a"), Bytes::from(vec![1; 8 << 20])).unwrap();
        engine.socket.readable().await.unwrap(); // more is on its way than the socket holds
        link.close("it has not answered");
        let its_tasks_end = async {
            while Arc::strong_count(link.shared()) > 1 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), its_tasks_end).await.expect("they end");
    }

    #[tokio::test]
    async fn a_link_that_nobody_uses_ends() {
        let (link, mut engine) = linked().await;
        let other = link.clone();
        drop(link);
        assert!(!other.is_closed());
        drop(other);
        let mut rest = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(10), engine.socket.read_to_end(&mut rest)).await;
        read.expect("the socket is closed").unwrap();
    }

    #[tokio::test]
    async fn bytes_that_are_no_frames_close_the_link() {
        let (link, mut engine) = linked().await;
        engine.socket.write_all(&[b'?'; 64]).await.unwrap();
        assert!(link.closed().await.contains("not a penstock frame"));
    }
}
