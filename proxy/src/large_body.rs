//! Reads a large body straight from its connection to where it is to lie. Decides whether that can be done with a request;
//! never how long it may take or how large it may be.
//!
//! Pingora reads bodies through a buffer of 64 KiB and hands out copies of that, which are to be put together: each byte is
//! copied three times. So that it does not, it is told that the body ends where what it has read already ends, which it finds
//! in the head of the request when it begins with the body. From there to the real end, the connection is read here.
//!
//! ```text
//!   head of the request │ read along with the head │ rest of the body           │ next request
//!   pingora                pingora: the body          we, from the connection     pingora
//! ```

use crate::links::Links;
use crate::refusal::Refusal;
use crate::service::STALL_MAX;
use async_trait::async_trait;
use bytes::BufMut;
use http::header;
use pingora::apps::ServerApp;
use pingora::protocols::http::ServerSession;
use pingora::protocols::http::v1::server::HttpSession;
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, Stream,
    TimingDigest, UniqueID, UniqueIDType,
};
use pingora::server::ShutdownWatch;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::time::timeout;

/// Shorter bodies are read as pingora reads them, in one or two portions.
pub(crate) const LARGE_BYTES: usize = 64 << 10;

/// As much of a head pingora reads at once, of one that begins in an empty buffer.
const HEAD_READ_BYTES: usize = 4096;

/// A body whose rest can be read from its connection.
#[derive(Debug)]
pub(crate) struct LargeBody {
    bytes: usize,
    /// Of them, those that were read along with the head.
    with_head: usize,
    /// How long the connection was to be kept before. Meanwhile it is not: pingora believes that the body has been read.
    keepalive: Option<u64>,
}

impl LargeBody {
    /// Takes over the body of a request, of `bytes` bytes, that nobody has begun to read. Nothing where that cannot be done:
    /// then it is there to be read as any other.
    pub(crate) fn begin(session: &mut ServerSession, bytes: usize) -> Option<Self> {
        let ServerSession::H1(session) = session else { return None };
        let with_head = connection(session)?.read_beyond(&session.get_headers_raw_bytes())?;
        if bytes < LARGE_BYTES || with_head >= bytes {
            return None;
        }
        let declared = session.get_header(header::CONTENT_LENGTH)?.clone();
        let head = session.req_header_mut();
        head.insert_header(header::CONTENT_LENGTH, with_head).ok()?;
        // This is when pingora looks.
        let is_done = session.is_body_done();
        session.req_header_mut().insert_header(header::CONTENT_LENGTH, declared).ok()?;
        debug_assert_eq!(is_done, with_head == 0, "somebody has begun to read this body");
        if is_done != (with_head == 0) {
            return None;
        }
        let keepalive = session.get_keepalive_timeout();
        session.set_server_keepalive(None);
        Some(Self { bytes, with_head, keepalive })
    }

    /// Reads all of it into `room`, which has as much left. Whoever gives up before the end costs the client its connection.
    pub(crate) async fn read(
        self,
        session: &mut ServerSession,
        room: &mut (impl BufMut + Send),
    ) -> Result<(), Refusal> {
        let ServerSession::H1(session) = session else { return Err(Refusal::ClientGone) };
        debug_assert_eq!(room.remaining_mut(), self.bytes);
        // Pingora would have closed, had it had to ask for a body of which it had a part.
        let is_last = self.with_head > 0 && session.response_written().is_some();
        let mut with_head = 0;
        while with_head < self.with_head {
            let Ok(Some(chunk)) = session.read_body_bytes().await else { return Err(Refusal::ClientGone) };
            room.put_slice(&chunk);
            with_head += chunk.len();
        }
        let connection = connection(session).ok_or(Refusal::ClientGone)?;
        let mut left = self.bytes - with_head;
        while left > 0 {
            connection.unread.store(left, Ordering::Relaxed);
            match timeout(STALL_MAX, Straight(connection).read_buf(room)).await {
                Ok(Ok(read @ 1..)) => left -= read,
                Ok(Ok(0) | Err(_)) => return Err(Refusal::ClientGone),
                Err(_) => return Err(Refusal::BodyTimeout { waited: STALL_MAX }),
            }
        }
        connection.unread.store(0, Ordering::Relaxed);
        if !is_last {
            session.set_server_keepalive(self.keepalive);
        }
        Ok(())
    }
}

/// Reads on for a while where somebody has given up in the middle of a large body; says how much.
pub(crate) async fn skip(session: &ServerSession, bytes_max: usize, silence_max: Duration) -> usize {
    let ServerSession::H1(session) = session else { return 0 };
    let Some(connection) = connection(session) else { return 0 };
    let most = connection.unread.swap(0, Ordering::Relaxed).min(bytes_max);
    if most == 0 {
        return 0;
    }
    let (mut unwanted, mut skipped) = (vec![0; 4096], 0);
    while skipped < most {
        match timeout(silence_max, Straight(connection).read(&mut unwanted)).await {
            Ok(Ok(read @ 1..)) => skipped += read,
            Ok(Ok(0) | Err(_)) | Err(_) => break,
        }
    }
    skipped
}

/// The connection of a request, if it is one of [`Downstream`]'s.
fn connection(session: &HttpSession) -> Option<&Connection> {
    (**session.stream()).as_any().downcast_ref()
}

/// An application whose large bodies can be read.
#[derive(Debug)]
pub(crate) struct Downstream<A>(pub(crate) Arc<A>);

#[async_trait]
impl<A: ServerApp + Send + Sync + 'static> ServerApp for Downstream<A> {
    async fn process_new(self: &Arc<Self>, stream: Stream, shutdown: &ShutdownWatch) -> Option<Stream> {
        Links::share_here();
        let stream = Mutex::new(stream);
        let connection = Connection { stream, reads: 0, first: Vec::new(), unread: AtomicUsize::new(0) };
        self.0.process_new(Box::new(connection), shutdown).await
    }

    async fn cleanup(&self) {
        self.0.cleanup().await;
    }
}

/// A connection that can be read while pingora has it. Pingora itself has it for itself, and never waits for the lock.
#[derive(Debug)]
struct Connection {
    stream: Mutex<Stream>,
    /// How often pingora has read since it has last written, and so since the last request has ended. More than once, too,
    /// if one read has brought more than it reads of a head.
    reads: u32,
    /// What the first of these reads has brought, if there was one only; never more than [`HEAD_READ_BYTES`].
    first: Vec<u8>,
    /// Bytes of a large body that were to come when it was last looked at.
    unread: AtomicUsize,
}

impl Connection {
    /// How much was read along with this head, of its body. Known only if one read has brought both, as they came: this is
    /// about where requests end, and in doubt pingora is to say.
    ///
    /// A head may have begun in what pingora had left from the request before, which took no read. Then the read has brought
    /// its last bytes and, if it begins with a copy of the head, these come once more within it. They end in an empty line,
    /// and the head would have ended there; but not if they are nothing but the end of that line, or if the empty line is one
    /// of those that a head may begin with. So heads that begin with the end of a line are not for us.
    fn read_beyond(&self, head: &[u8]) -> Option<usize> {
        let begins_in_doubt = matches!(head.first(), None | Some(b'\r' | b'\n'));
        let beyond = self.first.strip_prefix(head)?;
        (self.reads == 1 && !begins_in_doubt).then_some(beyond.len())
    }

    fn own(&mut self) -> &mut Stream {
        self.stream.get_mut().expect("no panic while it is read")
    }

    fn lock(&self) -> MutexGuard<'_, Stream> {
        self.stream.lock().expect("no panic while it is read")
    }

    fn written(&mut self) {
        self.reads = 0;
    }
}

/// Reads past pingora.
struct Straight<'c>(&'c Connection);

impl AsyncRead for Straight<'_> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.lock()).poll_read(context, into)
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        let result = Pin::new(self.own()).poll_read(context, into);
        if result.is_ready() {
            let brought = &into.filled()[before..];
            self.reads = self.reads.saturating_add(if brought.len() <= HEAD_READ_BYTES { 1 } else { 2 });
            self.first.clear();
            if self.reads == 1 {
                self.first.extend_from_slice(brought);
            }
        }
        result
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        from: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.written();
        Pin::new(self.own()).poll_write(context, from)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        from: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.written();
        Pin::new(self.own()).poll_write_vectored(context, from)
    }

    fn is_write_vectored(&self) -> bool {
        self.lock().is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.own()).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.own()).poll_shutdown(context)
    }
}

#[async_trait]
impl Shutdown for Connection {
    async fn shutdown(&mut self) {
        self.own().shutdown().await;
    }
}

#[async_trait]
impl Peek for Connection {
    async fn try_peek(&mut self, into: &mut [u8]) -> io::Result<bool> {
        self.own().try_peek(into).await
    }
}

impl UniqueID for Connection {
    fn id(&self) -> UniqueIDType {
        self.lock().id()
    }
}

impl Ssl for Connection {
    fn selected_alpn_proto(&self) -> Option<ALPN> {
        self.lock().selected_alpn_proto()
    }
}

impl GetTimingDigest for Connection {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        self.lock().get_timing_digest()
    }

    fn get_read_pending_time(&self) -> Duration {
        self.lock().get_read_pending_time()
    }

    fn get_write_pending_time(&self) -> Duration {
        self.lock().get_write_pending_time()
    }
}

impl GetProxyDigest for Connection {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        self.lock().get_proxy_digest()
    }

    fn set_proxy_digest(&mut self, digest: ProxyDigest) {
        self.own().set_proxy_digest(digest);
    }
}

impl GetSocketDigest for Connection {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.lock().get_socket_digest()
    }

    fn set_socket_digest(&mut self, digest: SocketDigest) {
        self.own().set_socket_digest(digest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pingora::apps::{HttpPersistentSettings, ReusedHttpStream};
    use pingora::http::ResponseHeader;
    use pingora::protocols::l4::stream::Stream as L4Stream;
    use tokio::io::AsyncWriteExt;
    use tokio::net::{TcpListener, TcpStream};

    /// A client, and pingora's session with it.
    async fn connected() -> (TcpStream, ServerSession) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let stream = Mutex::new(Box::new(L4Stream::from(stream)) as Stream);
        let connection = Connection { stream, reads: 0, first: Vec::new(), unread: AtomicUsize::new(0) };
        (client, ServerSession::new_http1(Box::new(connection)))
    }

    fn head(bytes: usize) -> String {
        format!("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: {bytes}\r\n\r\n")
    }

    fn body(bytes: usize) -> Vec<u8> {
        (0..bytes).map(|at| at as u8).collect()
    }

    async fn read(session: &mut ServerSession, bytes: usize) -> Option<Vec<u8>> {
        let large = LargeBody::begin(session, bytes)?;
        let mut whole = bytes::BytesMut::with_capacity(bytes);
        large.read(session, &mut (&mut whole).limit(bytes)).await.unwrap();
        Some(whole.to_vec())
    }

    #[tokio::test]
    async fn a_body_is_read_to_its_end_and_the_next_request_begins_there() {
        for together in [true, false] {
            let (mut client, mut session) = connected().await;
            let sent = body(200_000);
            let (with_head, rest) = sent.split_at(if together { 1000 } else { 0 });
            client.write_all(&[head(sent.len()).as_bytes(), with_head].concat()).await.unwrap();
            let rest = [rest, head(3).as_bytes()].concat();
            assert!(session.read_request().await.unwrap());
            let writing = tokio::spawn(async move {
                client.write_all(&rest).await.unwrap();
                client
            });
            let keepalive = session.get_keepalive();
            let got = read(&mut session, sent.len()).await.expect("it came in one read");
            assert!(got == sent);
            assert_eq!(session.get_header(header::CONTENT_LENGTH).unwrap(), "200000", "as it was");
            assert!(session.is_body_done() && keepalive.is_some());
            assert_eq!(session.get_keepalive(), keepalive);
            assert!(session.read_request().await.unwrap(), "the next");
            assert_eq!(session.get_header(header::CONTENT_LENGTH).unwrap(), "3");
            drop(writing.await.unwrap());
        }
    }

    #[tokio::test]
    async fn a_client_that_was_told_to_go_on_keeps_its_connection_unless_it_had_begun() {
        for begun in [0, 1000] {
            let (mut client, mut session) = connected().await;
            let sent = body(LARGE_BYTES);
            let (with_head, rest) = sent.split_at(begun);
            client.write_all(&[head(sent.len()).as_bytes(), with_head].concat()).await.unwrap();
            assert!(session.read_request().await.unwrap());
            let large = LargeBody::begin(&mut session, sent.len()).unwrap();
            session.write_continue_response().await.unwrap();
            let rest = rest.to_vec();
            let writing = tokio::spawn(async move { client.write_all(&rest).await.map(|()| client) });
            let mut whole = bytes::BytesMut::with_capacity(sent.len());
            large.read(&mut session, &mut (&mut whole).limit(sent.len())).await.unwrap();
            assert!(whole == sent);
            assert_eq!(session.get_keepalive().is_some(), begun == 0);
            drop(writing.await.unwrap().unwrap());
        }
    }

    #[tokio::test]
    async fn no_connection_keeps_a_copy_of_a_body() {
        let (mut client, mut session) = connected().await;
        let sent = body(LARGE_BYTES - 1);
        client.write_all(head(sent.len()).as_bytes()).await.unwrap();
        assert!(session.read_request().await.unwrap());
        session.write_continue_response().await.unwrap();
        let writing = tokio::spawn(async move { client.write_all(&sent).await.map(|()| client) });
        while session.read_request_body().await.unwrap().is_some() {}
        drop(writing.await.unwrap().unwrap());
        let ServerSession::H1(session) = &session else { unreachable!("it speaks HTTP/1") };
        assert!(connection(session).unwrap().first.capacity() <= HEAD_READ_BYTES);
    }

    /// Answers, and gives the session for the next request on the connection.
    async fn answered(mut session: ServerSession) -> ServerSession {
        let mut answer = ResponseHeader::build(200, None).unwrap();
        answer.insert_header(header::CONTENT_LENGTH, 0).unwrap();
        session.write_response_header(Box::new(answer)).await.unwrap();
        let settings = HttpPersistentSettings::for_session(&session);
        let stream = session.finish().await.unwrap().expect("it is kept");
        let (stream, settings) = ReusedHttpStream::from_reusable_stream(stream, settings).consume();
        let mut next = ServerSession::new_http1(stream);
        settings.unwrap().apply_to_session(&mut next);
        next
    }

    #[tokio::test]
    async fn a_head_that_began_behind_the_request_before_is_not_taken_for_its_copy_in_the_body() {
        let (mut client, mut session) = connected().await;
        let begun = "\r\nPOST /v2/models/m/infer HTTP/1.1\r\nHost: h\r\nContent-Length: 100000\r\n";
        let first = format!("GET /v2/health/live HTTP/1.1\r\nHost: h\r\n\r\n{begun}");
        client.write_all(first.as_bytes()).await.unwrap();
        assert!(session.read_request().await.unwrap());
        session.set_pipelining_enabled(true);
        let mut session = answered(session).await;
        // The first two bytes end the head. The rest is a body that begins with a copy of it, without the first two.
        let rest = format!("{begun}\r\n");
        client.write_all(rest.as_bytes()).await.unwrap();
        assert!(session.read_request().await.unwrap());
        assert_eq!(session.get_header(header::CONTENT_LENGTH).unwrap(), "100000");
        assert!(LargeBody::begin(&mut session, 100_000).is_none());
        let sent = [&rest.as_bytes()[2..], &body(100_000)].concat()[..100_000].to_vec();
        let left = sent[rest.len() - 2..].to_vec();
        let writing = tokio::spawn(async move { client.write_all(&left).await.map(|()| client) });
        let mut whole = Vec::new();
        while let Some(chunk) = session.read_request_body().await.unwrap() {
            whole.extend_from_slice(&chunk);
        }
        assert!(whole == sent);
        drop(writing.await.unwrap().unwrap());
    }

    #[tokio::test]
    async fn whoever_writes_its_head_in_pieces_is_read_as_ever() {
        let (mut client, mut session) = connected().await;
        let (sent, head) = (body(LARGE_BYTES), head(LARGE_BYTES));
        let (one, other) = head.split_at(20);
        client.write_all(one.as_bytes()).await.unwrap();
        let mut reading = Box::pin(session.read_request());
        assert!(timeout(Duration::ZERO, &mut reading).await.is_err());
        client.write_all(other.as_bytes()).await.unwrap();
        assert!(reading.await.unwrap());
        assert!(LargeBody::begin(&mut session, sent.len()).is_none());
        let writing = tokio::spawn(async move { client.write_all(&sent).await.map(|()| (client, sent)) });
        let mut whole = Vec::new();
        while let Some(chunk) = session.read_request_body().await.unwrap() {
            whole.extend_from_slice(&chunk);
        }
        assert!(whole == writing.await.unwrap().unwrap().1);
    }

    #[tokio::test]
    async fn a_client_that_leaves_or_is_given_up_in_the_middle_is_not_spoken_with_again() {
        let (mut client, mut session) = connected().await;
        client.write_all(head(LARGE_BYTES).as_bytes()).await.unwrap();
        assert!(session.read_request().await.unwrap());
        let large = LargeBody::begin(&mut session, LARGE_BYTES).unwrap();
        assert_eq!(session.get_keepalive(), None, "whoever stops here ends it");
        let mut room = bytes::BytesMut::with_capacity(LARGE_BYTES).limit(LARGE_BYTES);
        {
            let mut reading = Box::pin(large.read(&mut session, &mut room));
            assert!(timeout(Duration::ZERO, &mut reading).await.is_err());
        }
        assert_eq!(session.get_keepalive(), None);
        client.write_all(&[7; 1000]).await.unwrap();
        drop(client);
        assert!(skip(&session, usize::MAX, Duration::from_secs(10)).await >= 1000);
        assert_eq!(skip(&session, usize::MAX, Duration::from_secs(10)).await, 0, "once");
    }
}
