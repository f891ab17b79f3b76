//! Edges of HTTP where the library underneath leaves something to its user, each once met as a bug by somebody.

use harness::{Stack, raw_exchange, repository};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

fn request(extra: &str, body: &str) -> String {
    format!(
        "POST /v2/models/digits/infer HTTP/1.1\r\nHost: x\r\n{extra}Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn seven() -> String {
    std::fs::read_to_string(repository("configs/demo/requests/digit-7.json")).expect("a sample request")
}

/// Reads one response with a Content-Length.
fn read_response(stream: &mut TcpStream) -> String {
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
    let mut text = Vec::new();
    let mut byte = [0];
    while !text.ends_with(b"\r\n\r\n") {
        assert_eq!(
            stream.read(&mut byte).expect("a response"),
            1,
            "closed after {:?}",
            String::from_utf8_lossy(&text)
        );
        text.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&text).to_lowercase();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "))
        .map_or(0, |length| length.parse().expect("a length"));
    let mut body = vec![0; length];
    stream.read_exact(&mut body).expect("the whole body");
    head + &String::from_utf8_lossy(&body)
}

#[test]
fn clients_that_name_no_content_type_are_served() {
    let stack = Stack::builder().start();
    let answer = raw_exchange(stack.http, request("Connection: close\r\n", &seven()).as_bytes(), false);
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"data\":[7]"), "{answer}");
}

#[test]
fn expect_100_continue_is_answered_before_the_body_is_sent() {
    let stack = Stack::builder().start();
    let mut stream = TcpStream::connect(stack.http).expect("it listens");
    let body = seven();
    let whole = request("Expect: 100-continue\r\n", &body);
    let head = &whole[..whole.len() - body.len()];
    stream.write_all(head.as_bytes()).expect("it reads");
    assert!(read_response(&mut stream).starts_with("http/1.1 100"));
    stream.write_all(body.as_bytes()).expect("it reads");
    assert!(read_response(&mut stream).starts_with("http/1.1 200"));
}

#[test]
fn a_refusal_does_not_cost_the_connection() {
    let stack = Stack::builder().start();
    let mut stream = TcpStream::connect(stack.http).expect("it listens");
    for _ in 0..3 {
        let unread = request("", "{}").replace("digits", "nothing"); // refused before its body is read
        stream.write_all(unread.as_bytes()).expect("it reads");
        let answer = read_response(&mut stream);
        assert!(answer.starts_with("http/1.1 404") && answer.contains("connection: keep-alive"), "{answer}");
    }
    stream.write_all(request("", &seven()).as_bytes()).expect("it reads");
    assert!(read_response(&mut stream).starts_with("http/1.1 200"));
}

#[test]
fn a_large_unread_body_is_not_waited_for() {
    let stack = Stack::builder().start();
    let head = "POST /v2/models/nothing/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 10000000\r\n\r\n";
    let answer = raw_exchange(stack.http, head.as_bytes(), false);
    assert!(
        answer.starts_with("HTTP/1.1 404") && answer.to_lowercase().contains("connection: close"),
        "{answer}"
    );
}

#[test]
fn the_clients_wish_to_close_is_respected() {
    let stack = Stack::builder().start();
    let answer = raw_exchange(
        stack.http,
        b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        false,
    );
    assert!(answer.to_lowercase().contains("connection: close"), "{answer}");
    let answer = raw_exchange(stack.http, b"GET /v2/health/live HTTP/1.0\r\n\r\n", false);
    assert!(answer.contains("{\"live\":true}"), "{answer}");
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let stack = Stack::builder().start();
    let mut stream = TcpStream::connect(stack.http).expect("it listens");
    let body = seven();
    let both =
        request("", &body) + &request("", &body.replace("\"inputs\"", "\"id\": \"second\", \"inputs\""));
    stream.write_all(both.as_bytes()).expect("it reads");
    assert!(read_response(&mut stream).contains("\"data\":[7]"));
    assert!(read_response(&mut stream).contains("\"id\":\"second\""));
}

#[test]
fn chunked_bodies_and_split_writes_are_read_whole() {
    let stack = Stack::builder().start();
    let mut stream = TcpStream::connect(stack.http).expect("it listens");
    stream.set_nodelay(true).expect("a socket option");
    let body = seven();
    let (front, back) = body.split_at(40);
    let chunked = format!(
        "POST /v2/models/digits/infer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{front}\r\n{:x}\r\n{back}\r\n0\r\n\r\n",
        front.len(),
        back.len()
    );
    for piece in chunked.as_bytes().chunks(7) {
        stream.write_all(piece).expect("it reads");
    }
    assert!(read_response(&mut stream).contains("\"data\":[7]"));
}

#[test]
fn conflicting_lengths_are_not_smuggled() {
    let stack = Stack::builder().start();
    let smuggle = "POST /v2/models/digits/infer HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\nGET /v2 HTTP/1.1\r\nHost: x\r\n\r\n";
    let answer = raw_exchange(stack.http, smuggle.as_bytes(), false);
    assert!(!answer.contains("\"extensions\""), "the second request must not be seen: {answer}");
    let answer =
        raw_exchange(stack.http, b"POST /v2 HTTP/1.1\r\nHost: x\r\nContent-Length: abc\r\n\r\n", false);
    assert!(!answer.starts_with("HTTP/1.1 2"), "{answer}");
}

#[test]
fn a_half_sent_head_is_not_answered_and_harms_nobody() {
    let stack = Stack::builder().start();
    let mut slow = TcpStream::connect(stack.http).expect("it listens");
    slow.write_all(b"POST /v2/models/dig").expect("it reads");
    assert_eq!(stack.client().infer("digits", &[], seven().as_bytes()).status, 200);
    slow.set_nonblocking(true).expect("a socket option");
    let nothing = slow.read(&mut [0; 1]).expect_err("no answer to half a head");
    assert_eq!(nothing.kind(), std::io::ErrorKind::WouldBlock);
}

#[test]
fn a_head_request_gets_the_head_alone() {
    let stack = Stack::builder().start();
    let answer = stack.client().head("/v2/models/digits");
    assert_eq!((answer.status, answer.body.len()), (200, 0));
    assert!(answer.header("content-length").parse::<usize>().expect("a length") > 100);
}

#[test]
fn percent_encoded_names_are_names() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let version = folder.path().join("my modèle/1");
    std::fs::create_dir_all(&version).expect("a folder");
    for file in ["model.pt", "model.yaml"] {
        std::fs::copy(repository("configs/demo/models/digits/1").join(file), version.join(file))
            .expect("a copy");
    }
    let stack = Stack::builder().models(folder.path()).start();
    let answer = stack.client().infer("my%20mod%C3%A8le", &[], seven().as_bytes());
    assert_eq!(answer.output("digit"), serde_json::json!([7]));
}

#[test]
fn a_refusal_reaches_a_client_that_is_still_sending() {
    let stack = Stack::builder().start();
    let body = vec![b'x'; 8 << 20];
    for _ in 0..5 {
        let answer = stack.client().infer("nothing", &[], &body);
        assert_eq!(answer.status, 404);
    }
}

#[test]
fn an_idle_proxy_is_small() {
    let stack = Stack::builder().start();
    assert_eq!(stack.client().infer("digits", &[], seven().as_bytes()).status, 200);
    // Pages of the binary are those of this build, and shared; what it has asked for is its own.
    let own = stack.anonymous_bytes();
    assert!(own < 24 << 20, "{} MiB of its own", own >> 20);
}
