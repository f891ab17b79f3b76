//! Writes an answer for as long as its client takes of it. Decides who is cut off: whoever has taken nothing for a while, however
//! long the answer, or so little in all that others would wait for days for the room that it has; never who reads slowly.
//!
//! That a write ends says little of this. A connection holds megabytes which nobody has taken yet, and makes room for more only
//! once a third of them has been: so it is asked what the other end has acknowledged. Where that is not known, each piece has
//! the time that all of it would have.

use crate::service::STALL_MAX;
use bytes::Bytes;
use pingora::ErrorType::WriteTimedout;
use pingora::http::ResponseHeader;
use pingora::protocols::http::ServerSession;
use std::pin::pin;
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// Bytes that are written at once.
const PIECE: usize = 256 << 10;

/// How often it is looked whether a client that has not taken everything has taken something.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// So many bytes in a second are slow, and not as good as nothing.
const SLOWEST: f64 = (16 << 10) as f64;

/// Writes a head and all of the body.
pub(crate) async fn write(
    session: &mut ServerSession,
    head: ResponseHeader,
    mut body: Bytes,
) -> pingora::Result<()> {
    let socket = session.digest().and_then(|digest| digest.socket_digest.clone());
    let taken = || Some(socket.as_ref()?.tcp_info()?.tcpi_bytes_acked);
    let began = (Instant::now(), taken());
    while_taken(session.write_response_header(Box::new(head)), taken, began).await?;
    loop {
        let piece = body.split_to(body.len().min(PIECE));
        let is_last = body.is_empty();
        while_taken(session.write_response_body(piece, is_last), taken, began).await?;
        if is_last {
            return Ok(());
        }
    }
}

/// Goes on with `writing` for as long as what is `taken` changes now and then, and is not too little since the answer `began`.
async fn while_taken(
    writing: impl Future<Output = pingora::Result<()>>,
    taken: impl Fn() -> Option<u64>,
    (began, at_first): (Instant, Option<u64>),
) -> pingora::Result<()> {
    let mut writing = pin!(writing);
    // Most answers are written before it is worth looking.
    let (mut seen, mut since) = (None, Instant::now());
    loop {
        if let Ok(written) = timeout(LOOK_EVERY, writing.as_mut()).await {
            return written;
        }
        let (so_far, now) = (taken(), Instant::now());
        if let (Some(at_first), Some(so_far)) = (at_first, so_far) {
            let least = (now - began).saturating_sub(2 * STALL_MAX).as_secs_f64() * SLOWEST;
            if (so_far.saturating_sub(at_first) as f64) < least {
                return pingora::Error::e_explain(
                    WriteTimedout,
                    "its client takes next to nothing of the answer",
                );
            }
        }
        if seen != Some(so_far) {
            (seen, since) = (Some(so_far), now);
        } else if now - since >= STALL_MAX {
            return pingora::Error::e_explain(WriteTimedout, "its client takes nothing of the answer");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pingora::protocols::l4::stream::Stream;
    use std::cell::Cell;
    use tokio::io::AsyncWriteExt;
    use tokio::net::{TcpListener, TcpStream};

    /// Whether a write is waited for that takes so long, and for how long if not, where its client takes something this often.
    async fn is_written(takes: Duration, every: Option<Duration>) -> Result<(), Duration> {
        let began = Instant::now();
        let taken = || {
            Some(
                every.map_or(7, |every| (began.elapsed().as_secs() / every.as_secs()) * PIECE as u64 * 4 + 7),
            )
        };
        let writing = async {
            tokio::time::sleep(takes).await;
            Ok(())
        };
        while_taken(writing, taken, (began, Some(7))).await.map_err(|_| began.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_something_now_and_then_is_waited_for_and_who_takes_nothing_is_not() {
        let (hour, second) = (Duration::from_secs(3600), Duration::from_secs(1));
        assert_eq!(is_written(hour, Some(25 * second)).await, Ok(()));
        assert_eq!(is_written(hour, Some(second)).await, Ok(()));
        assert_eq!(is_written(25 * second, None).await, Ok(()));
        let given_up = is_written(hour, None).await.unwrap_err();
        assert!((STALL_MAX..=STALL_MAX + LOOK_EVERY + second).contains(&given_up), "{given_up:?}");
        assert!(is_written(hour, Some(50 * second)).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_a_few_bytes_now_and_then_is_not_waited_for_without_end() {
        let began = Instant::now();
        let taken = || Some(began.elapsed().as_secs() * 1000);
        assert!(while_taken(std::future::pending(), taken, (began, Some(0))).await.is_err());
        assert!((2 * STALL_MAX..4 * STALL_MAX).contains(&began.elapsed()), "{:?}", began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_known_to_be_taken_has_its_time_for_each_piece() {
        let looks = Cell::new(0);
        let unknown = || {
            looks.set(looks.get() + 1);
            None
        };
        let began = Instant::now();
        assert!(while_taken(std::future::pending(), unknown, (began, None)).await.is_err());
        assert!(began.elapsed() < STALL_MAX + 2 * LOOK_EVERY && looks.get() > 2);
    }

    /// Virtual time goes on while both ends wait.
    #[tokio::test(start_paused = true)]
    async fn a_client_that_reads_nothing_is_cut_off_however_long_its_answer() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        client.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let mut session = ServerSession::new_http1(Box::new(Stream::from(stream)));
        assert!(session.read_request().await.unwrap());
        let body = Bytes::from(vec![0; 64 << 20]);
        let mut head = ResponseHeader::build(200, Some(1)).unwrap();
        head.set_content_length(body.len()).unwrap();
        let began = Instant::now();
        assert!(write(&mut session, head, body).await.is_err());
        let waited = began.elapsed();
        assert!((STALL_MAX..=STALL_MAX + 2 * LOOK_EVERY).contains(&waited), "{waited:?}");
    }
}
