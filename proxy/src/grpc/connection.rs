//! One client's connection: HTTP/2 over TCP, many requests at once. Decides when a connection has to go: when we stop,
//! when its client is gone without a word, and when it does not take what it has asked for.

use super::Grpc;
use super::answer::PORTION;
use crate::service::STALL_MAX;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use std::collections::HashMap;
use std::convert::Infallible;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::sync::watch;

/// Requests of one connection at once. Clients keep more to themselves until there is room.
const STREAMS_MAX: u32 = 256;

/// What may come before somebody reads it: of one request, and of all.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;

/// Portions of a request: larger ones mean fewer of them.
const FRAME_BYTES: u32 = 64 << 10;

/// What may wait to be written, of each answer.
const SEND_BYTES: usize = 256 << 10;

/// What has been handed over of an answer and may not have been taken, which takes so long at 16 KiB a second. That nothing of
/// it is taken cannot be seen.
const TAIL_MAX: Duration = Duration::from_secs(((SEND_BYTES + PORTION) / (16 << 10)) as u64);

/// Metadata of one request.
const HEADERS_BYTES: u32 = 16 << 10;

/// A client is asked this often whether it is there, and has so long to answer.
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_MAX: Duration = Duration::from_secs(20);

/// How often it is looked whether a connection has to go.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Who connects has something to ask, or nobody looks after the connection.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// What is known of a connection beside its bytes.
#[derive(Debug, Default)]
pub(super) struct Connection {
    has_asked: AtomicBool,
    writing: Mutex<Writing>,
}

#[derive(Debug, Default)]
struct Writing {
    last: u64,
    /// Until when more should have been taken of each message that is being written.
    until: HashMap<u64, Instant>,
    /// When anything was taken of any of them: they take turns.
    moved: Option<Instant>,
}

impl Connection {
    /// A message is about to be written.
    pub(super) fn writing(self: &Arc<Self>, now: Instant) -> Overdue {
        let mut writing = self.lock();
        writing.last += 1;
        let id = writing.last;
        writing.until.insert(id, now + STALL_MAX);
        Overdue { connection: self.clone(), id }
    }

    fn is_silent(&self, opened: Instant, now: Instant) -> bool {
        !self.has_asked.load(Ordering::Relaxed) && now > opened + SILENCE_MAX
    }

    fn is_stuck(&self, now: Instant) -> bool {
        let writing = self.lock();
        let is_still = writing.moved.is_none_or(|moved| now.saturating_duration_since(moved) > STALL_MAX);
        is_still && writing.until.values().any(|until| *until < now)
    }

    fn lock(&self) -> MutexGuard<'_, Writing> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A message that is being written; dropped when all of it has been, or nobody wants it any more.
#[derive(Debug)]
pub(super) struct Overdue {
    connection: Arc<Connection>,
    id: u64,
}

impl Overdue {
    /// There was place for one more portion of it, which may be the last.
    pub(super) fn go_on(&self, is_last: bool, now: Instant) {
        let time = STALL_MAX + if is_last { TAIL_MAX } else { Duration::ZERO };
        let mut writing = self.connection.lock();
        writing.until.insert(self.id, now + time);
        writing.moved = Some(now);
    }
}

impl Drop for Overdue {
    fn drop(&mut self) {
        self.connection.lock().until.remove(&self.id);
    }
}

/// Serves a connection until either side ends it. Once `closing` is set, what runs is finished, and the client is told
/// to ask elsewhere.
pub(super) async fn serve(stream: TcpStream, grpc: Arc<Grpc>, mut closing: watch::Receiver<bool>) {
    // An answer goes out in one write; waiting for more to send would only delay it.
    let _ = stream.set_nodelay(true);
    let connection = Arc::new(Connection::default());
    let served = connection.clone();
    let service = service_fn(move |request| {
        served.has_asked.store(true, Ordering::Relaxed);
        let (grpc, connection) = (grpc.clone(), served.clone());
        async move { Ok::<_, Infallible>(grpc.answer(request, connection).await) }
    });
    let http2 = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .auto_date_header(false)
        .max_concurrent_streams(STREAMS_MAX)
        // A client may leave all of its calls at once without losing the next ones.
        .max_pending_accept_reset_streams(STREAMS_MAX as usize)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME_BYTES)
        .max_send_buf_size(SEND_BYTES)
        .max_header_list_size(HEADERS_BYTES)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_MAX)
        .serve_connection(TokioIo::new(stream), service);
    let mut http2 = pin!(http2);
    let opened = Instant::now();
    let mut look = tokio::time::interval(LOOK_EVERY);
    let mut is_closing = false;
    loop {
        tokio::select! {
            ended = &mut http2 => {
                if let Err(error) = ended {
                    tracing::debug!("a gRPC connection ended: {error}"); // the client's doing, and counted with its requests
                }
                return;
            }
            _ = closing.changed(), if !is_closing => {
                is_closing = true;
                http2.as_mut().graceful_shutdown();
            }
            _ = look.tick() => {
                let is_silent = connection.is_silent(opened, Instant::now());
                // Who does not even hear that we close does not speak HTTP/2.
                if connection.is_stuck(Instant::now()) || is_silent && is_closing {
                    return;
                }
                if is_silent {
                    is_closing = true;
                    http2.as_mut().graceful_shutdown();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_goes_when_a_message_is_not_taken_in_time() {
        let (connection, now) = (Arc::new(Connection::default()), Instant::now());
        let later = now + SILENCE_MAX + Duration::from_secs(1);
        assert!(!connection.is_silent(now, now + SILENCE_MAX) && connection.is_silent(now, later));
        connection.has_asked.store(true, Ordering::Relaxed);
        assert!(!connection.is_silent(now, later), "it has asked");
        let (one, other) = (connection.writing(now), connection.writing(now));
        let late = now + STALL_MAX + Duration::from_secs(1);
        assert!(!connection.is_stuck(now + STALL_MAX) && connection.is_stuck(late));
        drop(one);
        assert!(connection.is_stuck(late), "the other is left");
        other.go_on(false, now + STALL_MAX);
        assert!(
            !connection.is_stuck(late),
            "who takes some of it has time for the rest, however much that is"
        );
        assert!(!connection.is_stuck(now + 2 * STALL_MAX) && connection.is_stuck(late + STALL_MAX));
        other.go_on(true, now + STALL_MAX);
        assert!(!connection.is_stuck(late + STALL_MAX), "what was handed over before takes its time");
        assert!(connection.is_stuck(late + STALL_MAX + TAIL_MAX));
        drop(other);
        assert!(!connection.is_stuck(late + STALL_MAX + TAIL_MAX));
    }
}
