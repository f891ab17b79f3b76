//! Versions that another server answers: sends a request there as it came, and brings the answer back as it is. Decides
//! which headers pass, and how long to go on; never which version that is, nor what its answer says about it.
//!
//! Connections are kept and used again (pingora's connector, HTTP/1.1). One that turns out to be closed at once and before
//! anything of an answer has come, or on which the server says that it has waited for a request for too long, is replaced once, by a new one;
//! nothing else is sent twice.

use crate::connectors::Connectors;
use crate::deadline::{Deadline, TIMEOUT, header_number};
use crate::growing::Growing;
use crate::refusal::Refusal;
use crate::slots::{Slot, Slots};
use crate::unreachable::Unreachable;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, Method, StatusCode, header};
use pingora::connectors::http::Connector;
use pingora::http::RequestHeader;
use pingora::upstreams::peer::HttpPeer;
use policies::{Remote, Room};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A server that does not even accept a connection within this is not there.
const CONNECT_MAX: Duration = Duration::from_secs(1);

/// Under this key of pingora's no connection is ever kept: who asks by it gets a new one.
const NEVER_KEPT: u64 = 1;

/// An idle connection is kept for so long.
const IDLE_MAX: Duration = Duration::from_secs(60);

/// What a server has said before it closed its connection is there within this.
const SAID_MAX: Duration = Duration::from_millis(100);

/// A name is looked up again after this.
const RESOLVED_FOR: Duration = Duration::from_secs(5);

/// A kept connection that is closed later than so long after a request was sent is not one that was closed as the request came: whoever
/// closes it has had time to begin with that.
const CLOSED_AT_ONCE: Duration = Duration::from_millis(200);

/// More names than this are not remembered: policies that change come and go.
const NAMES_MAX: usize = 1024;

/// Longer answers are refused.
pub(crate) const ANSWER_BYTES_MAX: usize = 256 << 20;

/// All answers together: what they hold is beside what requests may hold.
const ANSWERS_BYTES_MAX: usize = 512 << 20;

/// How many times a request has been passed on, told from one to the next. Anybody may say so.
const HOPS: HeaderName = HeaderName::from_static("x-penstock-hops");

/// Whoever passes on requests to where they came from would do so for ever.
const HOPS_MAX: usize = 8;

/// They concern one connection (RFC 9110, 7.6.1), and pass in neither direction.
const HOP_BY_HOP: [HeaderName; 8] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// They concern the body, whatever `Connection` says of them: without them it is another one.
const OF_THE_BODY: [HeaderName; 3] = [
    header::CONTENT_TYPE,
    header::CONTENT_ENCODING,
    HeaderName::from_static("inference-header-content-length"),
];

/// The way to other servers; shared by all requests.
#[derive(Debug)]
pub struct Remotes {
    connectors: Connectors,
    resolved: Mutex<HashMap<(String, u16), (SocketAddr, Instant)>>,
    answers: Arc<Slots>,
    unreachable: Unreachable,
}

impl Default for Remotes {
    fn default() -> Self {
        let answers = Arc::new(Slots::new(usize::MAX, ANSWERS_BYTES_MAX));
        Self {
            connectors: Connectors::default(),
            resolved: Mutex::default(),
            answers,
            unreachable: Unreachable::default(),
        }
    }
}

impl Remotes {
    /// How long ago a request has not reached this server, and why, unless that was long ago.
    pub(crate) fn unreachable(&self, remote: &Remote, now: Instant) -> Option<(Duration, String)> {
        self.unreachable.lately(remote, now)
    }
}

/// What another server has answered.
#[derive(Debug)]
pub struct Passed {
    /// Whatever it was.
    pub status: StatusCode,
    /// Those that concern the answer and not the connection.
    pub headers: HeaderMap,
    /// All of it.
    pub body: Bytes,
    /// How many times the request had been passed on before, as whoever sent it says.
    pub(crate) hops: usize,
    /// The deadline of whoever asked, where that is less than the policy gives.
    pub(crate) haste: Option<Duration>,
}

impl Passed {
    /// What it says about the version, in our own words; `None` if it is an answer.
    pub fn refusal(&self) -> Option<Refusal> {
        let not_an_answer = |what: &str| Some(Refusal::RemoteFailed(format!("it answered {what}")));
        match self.status.as_u16() {
            200 | 201 | 203 if self.is_of_the_protocol() => None,
            200 | 201 | 203 => not_an_answer("something else than JSON"),
            // Its path is the policy's, not the caller's.
            404 => Some(Refusal::RemoteFailed("it answered 404: the model is not there".into())),
            429 => Some(Refusal::Overloaded("the other server says so".into())),
            // If it goes in circles, the first on the way knows whose fault that is. Here it may be what somebody made up.
            508 if self.hops > 0 => Some(Refusal::Looping { hops: self.hops }),
            400..=499 => Some(Refusal::Invalid("the other server says so".into())),
            // What is asked for and how long is waited for it are the caller's doing, as here.
            501 => Some(Refusal::Unsupported("the other server says so".into())),
            504 if let Some(deadline) = self.haste => {
                Some(Refusal::DeadlineExceeded { deadline, predicted: None })
            }
            // No request for inference has another place to go to, or nothing for an answer.
            status => not_an_answer(&status.to_string()),
        }
    }

    /// Whether it begins as an answer does, as far as can be seen.
    fn is_of_the_protocol(&self) -> bool {
        let first = self.body.iter().find(|byte| !byte.is_ascii_whitespace());
        self.headers.contains_key(header::CONTENT_ENCODING) || matches!(first, Some(b'{' | b'['))
    }
}

/// Bytes, with the room that they take.
struct Held {
    bytes: Bytes,
    _room: Slot,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// How far a request has come over a connection that was kept, and was closed there as it was used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stale {
    /// Not all of it was sent: nothing can have run.
    Unsent,
    /// It was closed at once and nothing of an answer has come, or only that none of it was seen. It may run there.
    Unanswered,
}

/// Why there is no answer.
enum Failed {
    /// There is no connection.
    Unreachable(Box<pingora::Error>),
    Exchange(Box<pingora::Error>),
    Stale(Stale, Box<pingora::Error>),
    Refused(Refusal),
}

impl From<Box<pingora::Error>> for Failed {
    fn from(error: Box<pingora::Error>) -> Self {
        Self::Exchange(error)
    }
}

impl Remotes {
    /// Room for the answer to a client.
    pub(crate) fn room(&self) -> Result<Slot, Refusal> {
        self.answers.enter(Room::ALL)
    }

    /// Sends a request as it came, but for what is said anew of its trace, and waits for all of the answer, which is of so many
    /// bytes at most and takes this room. How long is tried to reach the server is the policy's to say, by its deadline: whoever brings less time is late
    /// when that is over, which says nothing about the server.
    pub(crate) async fn ask(
        &self,
        remote: &Remote,
        (method, headers): (&Method, &HeaderMap),
        body: Bytes,
        (deadline, of_policy, trace): (&Deadline, Duration, Option<[(HeaderName, String); 2]>),
        (bytes_max, mut room): (usize, Slot),
        may_repeat: impl FnOnce(Stale) -> bool,
    ) -> Result<Passed, Refusal> {
        let hops = hops(headers)?;
        let exchange = async {
            let connector = self.connectors.of(remote.tls()).await.map_err(Refusal::RemoteUnreachable)?;
            let peer = self.peer(remote, CONNECT_MAX.min(of_policy / 4)).await?;
            let exchanged = async {
                let mut head =
                    RequestHeader::build(method.clone(), remote.path().as_bytes(), Some(headers.len()))?;
                for (name, value) in headers.iter().filter(|(name, _)| passes(name, headers)) {
                    head.append_header(name.clone(), value.clone())?;
                }
                head.insert_header(header::HOST, remote.authority())?;
                head.insert_header(header::CONTENT_LENGTH, body.len())?;
                // Rounded up: who waits for less there than here would be late before its time.
                let left = deadline.left(Instant::now()).as_nanos().div_ceil(1_000_000).max(1) as u64;
                head.insert_header(TIMEOUT, left)?;
                head.insert_header(HOPS, hops + 1)?;
                for (name, value) in trace.into_iter().flatten() {
                    head.remove_header(&name);
                    if !value.is_empty() {
                        head.insert_header(name, value)?;
                    }
                }
                let reached = || self.unreachable.reached(remote);
                let of_any = (&peer, &peer);
                match exchange(
                    (&connector, reached),
                    of_any,
                    head.clone(),
                    body.clone(),
                    (bytes_max, room.another()),
                )
                .await
                {
                    Err(Failed::Stale(stale, _)) if may_repeat(stale) => {
                        // Others that were kept may be as stale.
                        let of_new = (&never_kept(&peer), &peer);
                        let again =
                            exchange((&connector, reached), of_new, head, body, (bytes_max, room)).await;
                        match (stale, again) {
                            // It may run there all the same.
                            (Stale::Unanswered, Err(Failed::Unreachable(error))) => Err(error.into()),
                            (Stale::Unsent | Stale::Unanswered, again) => again,
                        }
                    }
                    answer => answer,
                }
            };
            let passed = exchanged.await.map_err(|failure| match failure {
                Failed::Unreachable(error) => Refusal::RemoteUnreachable(cause(&error)),
                Failed::Exchange(error) | Failed::Stale(_, error) => Refusal::RemoteFailed(cause(&error)),
                Failed::Refused(Refusal::TooLarge { limit, .. }) => {
                    Refusal::RemoteFailed(format!("its answer is longer than {limit} bytes"))
                }
                Failed::Refused(refusal) => refusal,
            })?;
            Ok(Passed { hops, ..passed })
        };
        let answer = tokio::time::timeout_at(deadline.at.into(), exchange).await;
        if let Ok(Err(Refusal::RemoteUnreachable(why))) = &answer {
            self.unreachable.tell(remote, why, Instant::now());
        }
        answer.map_err(|_| deadline.exceeded())?
    }

    /// `patience` is for its address, for the connection, and for what TLS takes, each: so a quarter of the time is left for another
    /// server.
    async fn peer(&self, remote: &Remote, patience: Duration) -> Result<HttpPeer, Refusal> {
        let name = (remote.host().to_owned(), remote.port());
        let known = self.resolved.lock().expect("no panic under this lock").get(&name).copied();
        let address = match known.filter(|(_, at)| at.elapsed() < RESOLVED_FOR) {
            Some((address, _)) => address,
            None => {
                let unknown = |why: String| Refusal::RemoteUnreachable(format!("`{}`: {why}", name.0));
                let found = tokio::time::timeout(patience, tokio::net::lookup_host(&name)).await;
                let found = found.unwrap_or_else(|late| Err(late.into()));
                let mut found = found.map_err(|error| unknown(error.to_string()))?;
                let address = found.next().ok_or_else(|| unknown("it has no address".into()))?;
                let mut resolved = self.resolved.lock().expect("no panic under this lock");
                if resolved.len() >= NAMES_MAX {
                    resolved.clear();
                }
                resolved.insert(name.clone(), (address, Instant::now()));
                address
            }
        };
        let mut peer = HttpPeer::new(address, remote.is_tls(), name.0);
        peer.options.connection_timeout = Some(patience);
        peer.options.total_connection_timeout = Some(2 * patience);
        peer.options.idle_timeout = Some(IDLE_MAX);
        Ok(peer)
    }
}

/// The same server, over a connection that nobody has used before.
fn never_kept(peer: &HttpPeer) -> HttpPeer {
    HttpPeer { group_key: NEVER_KEPT, ..peer.clone() }
}

/// Asks over a connection of the one peer, which is kept as one of the other; tells when the server has been reached.
async fn exchange(
    (connector, reached): (&Connector, impl Fn()),
    (peer, keep_as): (&HttpPeer, &HttpPeer),
    head: RequestHeader,
    body: Bytes,
    (bytes_max, mut room): (usize, Slot),
) -> Result<Passed, Failed> {
    let mut is_whole = true;
    let session = connector.get_http_session(peer).await;
    let (mut session, is_reused) = session.map_err(Failed::Unreachable)?;
    if !is_reused {
        reached();
    }
    let sent = async {
        session.write_request_header(Box::new(head)).await?;
        session.write_request_body(body, true).await?;
        session.finish_request_body().await
    };
    // Who does not want the rest of a body may have said so before the connection was closed.
    let mut unsent = sent.await.err();
    let (sent_at, mut is_heard) = (Instant::now(), false);
    // What comes before it, such as `103 Early Hints`, is for who wants it.
    let head = loop {
        let read = session.read_response_header();
        let is_stale = |error: &pingora::Error| {
            is_reused && !is_heard && is_of_silence(error) && sent_at.elapsed() < CLOSED_AT_ONCE
        };
        match unsent.take() {
            None => match read.await {
                Ok(_) => {}
                Err(error) if is_stale(&error) => return Err(Failed::Stale(Stale::Unanswered, error)),
                Err(error) => return Err(error.into()),
            },
            Some(unsent) => match tokio::time::timeout(SAID_MAX, read).await {
                Ok(Ok(_)) => is_whole = false,
                Ok(Err(error)) if is_stale(&error) => return Err(Failed::Stale(Stale::Unsent, unsent)),
                Ok(Err(_)) | Err(_) => return Err(unsent.into()),
            },
        }
        let head = session.response_header().expect("it was just read");
        // It has waited for a request, and closes the connection just as one comes. Who keeps it has seen the request.
        let is_of_waiting = head.status == StatusCode::REQUEST_TIMEOUT && names(&head.headers, "close");
        if is_reused && !is_heard && is_of_waiting {
            let why = "it has closed the connection before it saw the request";
            let closed = pingora::Error::explain(pingora::ErrorType::ConnectionClosed, why);
            return Err(Failed::Stale(Stale::Unanswered, closed));
        }
        if !std::mem::replace(&mut is_heard, true) {
            reached(); // over one that was kept as well
        }
        if !head.status.is_informational() {
            break head.clone();
        }
    };
    let mut whole = Growing::up_to(bytes_max, "the answer");
    loop {
        match session.read_response_body().await {
            Ok(Some(chunk)) => whole.append(&chunk, &mut room).map_err(Failed::Refused)?,
            Ok(None) => break,
            // What it says besides may be lost with the rest of what it was sent.
            Err(_) if !is_whole && head.status.is_client_error() => break,
            Err(error) => return Err(error.into()),
        }
    }
    let mut headers = HeaderMap::new();
    for (name, value) in head.headers.iter().filter(|(name, _)| passes(name, &head.headers)) {
        headers.append(name.clone(), value.clone());
    }
    if is_whole {
        connector.release_http_session(session, keep_as, Some(IDLE_MAX)).await;
    }
    let body = Bytes::from_owner(Held { bytes: whole.freeze(), _room: room });
    Ok(Passed { status: head.status, headers, body, hops: 0, haste: None })
}

/// How many times a request has been passed on.
///
/// # Errors
/// As many as it may be, or no number.
pub(crate) fn hops(headers: &HeaderMap) -> Result<usize, Refusal> {
    match header_number(headers, &HOPS)?.unwrap_or(0) {
        hops if hops >= HOPS_MAX => Err(Refusal::Looping { hops }),
        hops => Ok(hops),
    }
}

/// Whether the connection was closed before anything of a head was read. How much was, pingora says in words only: where these are
/// others, something may have come.
fn is_of_silence(error: &pingora::Error) -> bool {
    let context = error.context.as_ref().map(|context| context.as_str());
    context.is_some_and(|context| context.ends_with("bytes already read: 0"))
}

/// Whether a header is for the other end, and not for the connection or told anew.
fn passes(name: &HeaderName, all: &HeaderMap) -> bool {
    const TOLD_ANEW: [HeaderName; 3] = [header::HOST, header::CONTENT_LENGTH, header::EXPECT];
    let is_ours = HOP_BY_HOP.contains(name) || TOLD_ANEW.contains(name);
    !is_ours && (OF_THE_BODY.contains(name) || !names(all, name.as_str()))
}

/// Whether `Connection` has this among what it names.
fn names(headers: &HeaderMap, option: &str) -> bool {
    let named = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    named.flat_map(|value| value.split(',')).any(|named| named.trim().eq_ignore_ascii_case(option))
}

fn cause(error: &pingora::Error) -> String {
    // What it says of itself begins with the chain of its causes; people want the last one. Where the server is callers need
    // not know.
    tracing::debug!("the server of a version: {error}");
    let cause = error.root_etype().as_str();
    let context = error.context.as_ref().map(|context| context.as_str());
    let why = context.filter(|context| !context.contains("addr: "));
    why.map_or_else(|| cause.to_owned(), |why| format!("{cause}: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::sync::atomic::{AtomicUsize, Ordering};

    const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";

    /// A server that answers the first request of a connection, and the next with this, after which it closes the connection; without
    /// this, as soon as a part of that has come. And how many it has seen.
    fn closes_after_one(next: impl Into<Option<&'static [u8]>>) -> (Arc<Remote>, Arc<AtomicUsize>) {
        closes_after(Duration::ZERO, next)
    }

    /// The same, which does something for so long before.
    fn closes_after(
        busy: Duration,
        next: impl Into<Option<&'static [u8]>>,
    ) -> (Arc<Remote>, Arc<AtomicUsize>) {
        let next = next.into();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(AtomicUsize::new(0));
        let counted = seen.clone();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let seen = counted.clone();
                std::thread::spawn(move || {
                    for (answer, busy) in [(Some(ANSWER), Duration::ZERO), (next, busy)] {
                        let mut request = Vec::new();
                        while !request.ends_with(b"body") {
                            let mut part = [0; 4096];
                            match stream.read(&mut part) {
                                Ok(read @ 1..) if answer.is_some() => request.extend(&part[..read]),
                                Ok(_) | Err(_) => return, // or the test is over
                            }
                        }
                        seen.fetch_add(1, Ordering::SeqCst);
                        std::thread::sleep(busy);
                        let _ = stream.write_all(answer.expect("else it has returned"));
                    }
                });
            }
        });
        (remote_at(address), seen)
    }

    fn remote_at(address: std::net::SocketAddr) -> Arc<Remote> {
        let policy = format!("models: {{m: {{remote: {{2: {{url: 'http://{address}/infer'}}}}}}}}");
        let snapshot = policies::parse(&policy, "p").unwrap();
        snapshot.remote("m", policies::Version(2)).unwrap().clone()
    }

    /// What came of it, and for which repeats leave was asked.
    async fn ask(remotes: &Remotes, remote: &Remote) -> (Result<u16, String>, Vec<Stale>) {
        ask_with(Bytes::from_static(b"body"), remotes, remote).await
    }

    async fn ask_with(body: Bytes, remotes: &Remotes, remote: &Remote) -> (Result<u16, String>, Vec<Stale>) {
        let given = Duration::from_secs(60);
        ask_within((given, given), body, remotes, remote).await
    }

    /// By a caller who brings so much time, of what the policy gives.
    async fn ask_within(
        (given, of_policy): (Duration, Duration),
        body: Bytes,
        remotes: &Remotes,
        remote: &Remote,
    ) -> (Result<u16, String>, Vec<Stale>) {
        let mut repeats = Vec::new();
        let deadline = Deadline { at: Instant::now() + given, given };
        let (method, headers) = (Method::POST, HeaderMap::new());
        let may_repeat = |stale| {
            repeats.push(stale);
            true
        };
        let asked = remotes.ask(
            remote,
            (&method, &headers),
            body,
            (&deadline, of_policy, None),
            (ANSWER_BYTES_MAX, remotes.room().unwrap()),
            may_repeat,
        );
        let answer = asked.await.map(|passed| passed.status.as_u16()).map_err(|refusal| refusal.to_string());
        (answer, repeats)
    }

    /// A server that has run something that kills it, which another one would be killed by as well.
    #[tokio::test]
    async fn what_a_server_has_been_busy_with_before_it_closes_the_connection_is_not_sent_again() {
        let (remotes, (remote, seen)) =
            (Remotes::default(), closes_after(2 * CLOSED_AT_ONCE, b"".as_slice()));
        assert_eq!(ask(&remotes, &remote).await, (Ok(200), vec![]));
        let (answer, repeats) = ask(&remotes, &remote).await;
        assert!(answer.is_err(), "{answer:?}");
        assert_eq!((repeats, seen.load(Ordering::SeqCst)), (vec![], 2));
    }

    #[tokio::test]
    async fn a_kept_connection_that_is_closed_without_a_word_is_replaced_by_a_new_one() {
        let (remotes, (remote, seen)) = (Remotes::default(), closes_after_one(b"".as_slice()));
        assert_eq!(ask(&remotes, &remote).await, (Ok(200), vec![]));
        assert_eq!(ask(&remotes, &remote).await, (Ok(200), vec![Stale::Unanswered]));
        assert_eq!(seen.load(Ordering::SeqCst), 3);
        let connector = remotes.connectors.of(remote.tls()).await.unwrap();
        let peer = remotes.peer(&remote, CONNECT_MAX).await.ok().unwrap();
        for (peer, is_kept) in [(never_kept(&peer), false), (peer, true)] {
            let (_, is_reused) = connector.get_http_session(&peer).await.unwrap();
            assert_eq!(is_reused, is_kept, "the one over which it was sent again");
        }
    }

    #[tokio::test]
    async fn what_could_not_be_sent_over_a_kept_connection_is_sent_over_a_new_one() {
        let (remotes, (remote, seen)) = (Remotes::default(), closes_after_one(None));
        let large = Bytes::from([vec![b'x'; 32 << 20], b"body".to_vec()].concat());
        assert_eq!(ask(&remotes, &remote).await, (Ok(200), vec![]));
        assert_eq!(ask_with(large, &remotes, &remote).await, (Ok(200), vec![Stale::Unsent]));
        assert_eq!(seen.load(Ordering::SeqCst), 2);
    }

    /// Reads as many requests over one connection as there are words here, and answers where they say so.
    fn answers_over_one(answers: &'static [bool]) -> Arc<Remote> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let remote = remote_at(listener.local_addr().unwrap());
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            for is_answered in answers {
                let mut request = Vec::new();
                while !request.ends_with(b"body") {
                    let mut part = [0; 4096];
                    let read = stream.read(&mut part).unwrap();
                    request.extend(&part[..read]);
                }
                if *is_answered {
                    stream.write_all(ANSWER).unwrap();
                }
            }
            drop(listener); // before its connection: whoever is told by that finds nobody
        });
        remote
    }

    #[tokio::test]
    async fn a_server_that_has_gone_with_a_request_was_reached() {
        let remote = answers_over_one(&[true, false]);
        let remotes = Remotes::default();
        assert_eq!(ask(&remotes, &remote).await, (Ok(200), vec![]));
        let (answer, repeats) = ask(&remotes, &remote).await;
        assert_eq!(repeats, [Stale::Unanswered]);
        assert!(answer.clone().unwrap_err().starts_with("the server of this version: "), "{answer:?}");
        let (answer, _) = ask(&remotes, &remote).await;
        let says = "the server of this version cannot be reached: ";
        assert!(answer.clone().unwrap_err().starts_with(says), "{answer:?}");
    }

    #[tokio::test]
    async fn a_server_that_answers_over_a_kept_connection_is_not_said_to_be_away() {
        let remote = answers_over_one(&[true, true]);
        let remotes = Remotes::default();
        assert_eq!(ask(&remotes, &remote).await, (Ok(200), vec![]));
        // Another request has found nobody.
        let now = Instant::now();
        remotes.unreachable.tell(&remote, "refused", now);
        assert!(remotes.unreachable.lately(&remote, now).is_some());
        assert_eq!(ask(&remotes, &remote).await, (Ok(200), vec![]));
        assert_eq!(remotes.unreachable.lately(&remote, now), None);
    }

    #[tokio::test]
    async fn a_server_that_accepts_nobody_is_not_there_and_whoever_had_less_time_was_late() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let accepted =
            |_: &usize| std::net::TcpStream::connect_timeout(&address, Duration::from_millis(50)).ok();
        let _full: Vec<_> = (0..10_000).map_while(|at| accepted(&at)).collect();
        let (remotes, remote) = (Remotes::default(), remote_at(address));
        let ask = async |given, of_policy| {
            let times = (Duration::from_millis(given), Duration::from_millis(of_policy));
            ask_within(times, Bytes::new(), &remotes, &remote).await.0.unwrap_err()
        };
        let gone = ask(400, 400).await;
        assert!(gone.starts_with("the server of this version cannot be reached: "), "{gone}");
        let late = ask(40, 400).await;
        assert!(late.contains("deadline"), "{late}");
    }

    #[tokio::test]
    async fn nothing_is_sent_twice_of_whose_answer_a_byte_has_come() {
        for begun in [b"HTTP/1.1 200 OK\r\ncon".as_slice(), b"H", b"HTTP/1.1 103 Early Hints\r\n\r\n"] {
            let (remotes, (remote, seen)) = (Remotes::default(), closes_after_one(begun));
            assert_eq!(ask(&remotes, &remote).await, (Ok(200), vec![]));
            let (answer, repeats) = ask(&remotes, &remote).await;
            assert!(answer.is_err() && repeats.is_empty(), "{answer:?} {repeats:?}");
            assert_eq!(seen.load(Ordering::SeqCst), 2, "{begun:?}");
        }
    }

    #[tokio::test]
    async fn a_server_that_has_waited_too_long_on_a_kept_connection_is_asked_on_a_new_one() {
        let late = b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
        let (remotes, (remote, seen)) = (Remotes::default(), closes_after_one(late.as_slice()));
        assert_eq!(ask(&remotes, &remote).await, (Ok(200), vec![]));
        assert_eq!(ask(&remotes, &remote).await, (Ok(200), vec![Stale::Unanswered]));
        assert_eq!(seen.load(Ordering::SeqCst), 3);
    }

    #[tokio::test]
    async fn what_a_server_calls_late_and_keeps_its_connection_for_is_its_answer() {
        let late = b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\n\r\n";
        let (remotes, (remote, seen)) = (Remotes::default(), closes_after_one(late.as_slice()));
        assert_eq!(ask(&remotes, &remote).await, (Ok(200), vec![]));
        assert_eq!(ask(&remotes, &remote).await, (Ok(408), vec![]));
        assert_eq!(seen.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn what_concerns_one_connection_does_not_pass() {
        let mut headers = HeaderMap::new();
        let named = "close, X-Hop, content-type, Inference-Header-Content-Length";
        headers.insert(header::CONNECTION, named.parse().unwrap());
        for (name, does) in [
            ("content-type", true),
            ("inference-header-content-length", true),
            ("x-hop", false),
            ("connection", false),
            ("transfer-encoding", false),
            ("host", false),
            ("content-length", false),
            ("expect", false),
        ] {
            assert_eq!(passes(&HeaderName::from_static(name), &headers), does, "{name}");
        }
    }

    #[test]
    fn what_the_other_server_says_counts_as_ours_would() {
        let said = |status, body: &'static str| {
            let status = StatusCode::from_u16(status).unwrap();
            let passed =
                Passed { status, headers: HeaderMap::new(), body: body.into(), hops: 0, haste: None };
            passed.refusal().map(|refusal| refusal.reason())
        };
        let of = |status| said(status, "");
        assert_eq!(
            [400, 404, 429, 500, 501, 503, 504].map(of),
            ["invalid", "remote", "overloaded", "remote", "unsupported", "remote", "remote"].map(Some)
        );
        assert_eq!([said(200, "{}"), said(200, " [1]"), said(203, "{}")], [None; 3]);
        for (status, body) in [(200, ""), (200, "<html>"), (204, ""), (206, "{}"), (302, ""), (304, "{}")] {
            assert_eq!(said(status, body), Some("remote"), "{status} {body}");
        }
        let circle = Passed {
            status: StatusCode::LOOP_DETECTED,
            headers: HeaderMap::new(),
            body: Bytes::new(),
            hops: 0,
            haste: None,
        };
        assert_eq!(circle.refusal().map(|refusal| refusal.reason()), Some("remote"), "it begins here");
        let passed_on = Passed { hops: 1, ..circle };
        assert_eq!(passed_on.refusal().map(|refusal| refusal.reason()), Some("loop"));
        let haste = Some(Duration::from_millis(1));
        let late = Passed { status: StatusCode::GATEWAY_TIMEOUT, haste, ..passed_on };
        assert_eq!(late.refusal().map(|refusal| refusal.reason()), Some("deadline"));
    }
}
