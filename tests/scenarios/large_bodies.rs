//! Bodies that are read past pingora, and tensors that lie in memory that proxy and engine share: whatever becomes of either
//! process or of a client, answers stay right and no memory stays taken.

use harness::{Client, Response, Stack, binary, eventually, repository};
use rustix::process::{Pid, Signal, kill_process};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// 200 kB of pixels, each row another one.
const ROWS: usize = 800;

/// The JSON in front of `rows` rows of so many floats each, and these.
fn binary_request(input: &str, rows: usize, floats: usize) -> (String, Vec<u8>) {
    let size = rows * floats * 4;
    let json = format!(
        r#"{{"inputs":[{{"name":"{input}","shape":[{rows},{floats}],"datatype":"FP32","parameters":{{"binary_data_size":{size}}}}}],"parameters":{{"binary_data_output":true}}}}"#
    );
    let value = |at: usize| ((at * 7919) % 17) as f32;
    (json, (0..rows * floats).flat_map(|at| value(at).to_le_bytes()).collect())
}

fn ask(client: &Client, model: &str, (json, tensor): &(String, Vec<u8>)) -> Response {
    let body = [json.as_bytes(), tensor].concat();
    client.infer(model, &[("inference-header-content-length", &json.len().to_string())], &body)
}

fn raw(model: &str, (json, tensor): &(String, Vec<u8>), more: &str) -> Vec<u8> {
    let head = format!(
        "POST /v2/models/{model}/infer HTTP/1.1\r\nHost: x\r\nInference-Header-Content-Length: {}\r\nContent-Length: {}\r\n{more}\r\n",
        json.len(),
        json.len() + tensor.len()
    );
    [head.as_bytes(), json.as_bytes(), tensor].concat()
}

/// Bytes that bodies have of the shared memory, and how many they may have.
fn shared(stack: &Stack) -> (u64, u64) {
    let status = Client::new(stack.monitor).get("/status").json();
    let number = |name: &str| status["traffic"][name].as_u64().expect("a number");
    (number("shared_bytes"), number("shared_bytes_max"))
}

fn wait_until_all_is_free(stack: &Stack) {
    eventually("all shared memory to be free", || (shared(stack).0 == 0).then_some(()));
}

/// The first request opens the link, and is sent over it.
fn warm_up(stack: &Stack) -> Response {
    let (client, request) = (stack.client(), binary_request("pixels", ROWS, 64));
    ask(&client, "digits", &request);
    ask(&client, "digits", &request)
}

/// Bytes of the last output of an answer of so many rows.
const PROBABILITIES: usize = ROWS * 10 * 4;

/// Each engine chooses in which form it runs a model, and forms differ in the last places.
fn is_like(answer: &[u8], right: &[u8]) -> bool {
    let floats = |bytes: &[u8]| -> Vec<f32> {
        bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
    };
    let [(answer, answered), (right, expected)] =
        [answer, right].map(|body| body.split_at(body.len().saturating_sub(PROBABILITIES)));
    let mut pairs = floats(answered).into_iter().zip(floats(expected));
    answer == right && answered.len() == PROBABILITIES && pairs.all(|(a, b)| (a - b).abs() < 1e-5)
}

fn pinned_split() -> &'static str {
    "models: {digits: {split: {weights: {1: 1}}}}\n"
}

#[test]
fn tensors_in_shared_memory_are_answered_as_those_that_are_sent() {
    let sharing = Stack::builder().policies(pinned_split()).start();
    let sending = Stack::builder().policies(pinned_split()).config("requests: {shared_mib: 0}").start();
    let [in_memory, over_the_socket] = [&sharing, &sending].map(warm_up);
    assert_eq!(in_memory.status, 200, "{}", in_memory.text());
    assert!(is_like(&in_memory.body, &over_the_socket.body));
    assert_eq!((shared(&sharing).1, shared(&sending).1), (32 << 20, 0));
    wait_until_all_is_free(&sharing);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let (client, request) = (sharing.client(), binary_request("pixels", 8 * ROWS, 64));
                while !stop.load(Ordering::Relaxed) {
                    // A slow machine has no time for all of them.
                    let answer = ask(&client, "digits", &request);
                    assert!([200, 503, 504].contains(&answer.status), "{}: {}", answer.status, answer.text());
                }
            });
        }
        let seen = || (sharing.metric("penstock_shared_bytes") > 0.0).then_some(());
        eventually("something to lie there", seen);
        stop.store(true, Ordering::Relaxed);
    });
    sharing.wait_for_metric("penstock_shared_bytes", 0.0);
}

#[test]
fn what_finds_no_room_is_sent() {
    let stack = Stack::builder().policies(pinned_split()).config("requests: {shared_mib: 1}").start();
    let right = warm_up(&stack).body;
    std::thread::scope(|scope| {
        for _ in 0..12 {
            scope.spawn(|| {
                let (client, request) = (stack.client(), binary_request("pixels", ROWS, 64));
                for _ in 0..10 {
                    let answer = ask(&client, "digits", &request);
                    assert!(answer.status == 200 && is_like(&answer.body, &right), "{}", answer.text());
                }
            });
        }
    });
    assert_eq!(ask(&stack.client(), "digits", &binary_request("pixels", 10 * ROWS, 64)).status, 200, "2 MB");
    wait_until_all_is_free(&stack);
}

#[test]
fn clients_that_leave_take_nothing_along() {
    let stack = Stack::builder().policies(pinned_split()).start();
    let right = warm_up(&stack).body;
    let whole = raw("digits", &binary_request("pixels", ROWS, 64), "");
    for end in [300, 5_000, 100_000, whole.len() - 1, whole.len()].into_iter().cycle().take(40) {
        let mut stream = TcpStream::connect(stack.http).expect("it listens");
        stream.write_all(&whole[..end]).expect("it reads");
        drop(stream);
    }
    wait_until_all_is_free(&stack);
    assert!(is_like(&ask(&stack.client(), "digits", &binary_request("pixels", ROWS, 64)).body, &right));
}

#[test]
fn a_killed_engine_takes_nothing_along() {
    let stack = Stack::builder().policies(pinned_split()).start();
    let right = warm_up(&stack).body;
    let (stop, statuses) = (AtomicBool::new(false), Mutex::new(Vec::new()));
    let count = |status: u16| statuses.lock().expect("unpoisoned").iter().filter(|s| **s == status).count();
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                let (client, request) = (stack.client(), binary_request("pixels", ROWS, 64));
                while !stop.load(Ordering::Relaxed) {
                    let answer = ask(&client, "digits", &request);
                    assert!(answer.status != 200 || is_like(&answer.body, &right));
                    statuses.lock().expect("unpoisoned").push(answer.status);
                }
            });
        }
        for _ in 0..2 {
            let answered = count(200);
            eventually("answers", || (count(200) > answered + 20).then_some(()));
            let refused = count(503);
            kill_process(stack.engine_pid().expect("an engine"), Signal::KILL).expect("it runs");
            eventually("503s", || (count(503) > refused).then_some(()));
        }
        let answered = count(200);
        eventually("answers again", || (count(200) > answered + 20).then_some(()));
        stop.store(true, Ordering::Relaxed);
    });
    assert!(statuses.into_inner().expect("unpoisoned").iter().all(|status| [200, 503].contains(status)));
    wait_until_all_is_free(&stack);
    assert_eq!(shared(&stack).1, 32 << 20, "that of links which have ended is gone");
}

/// An engine that no proxy has started.
struct OwnEngine(Child);

impl OwnEngine {
    fn start(socket: &Path) -> Self {
        let mut command = Command::new(binary("penstock-engine"));
        command.arg("--socket").arg(socket).arg("--models").arg(repository("configs/demo/models"));
        command.args(["--lanes", "1", "--memory-mib", "8192"]).stdin(Stdio::null()).stderr(Stdio::null());
        Self(command.spawn().expect("the binary starts"))
    }

    /// Memory files that it has mapped.
    fn mapped(&self) -> usize {
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", self.0.id())).expect("it runs");
        maps.lines().filter(|line| line.contains("memfd:penstock")).count()
    }
}

impl Drop for OwnEngine {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_killed_proxy_leaves_nothing_mapped_in_the_engine() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let socket = folder.path().join("engine.sock");
    let engine = OwnEngine::start(&socket);
    let mut stack = Stack::builder().policies(pinned_split()).external_engine(&socket).start();
    let right = warm_up(&stack).body;
    assert!(engine.mapped() > 0);
    let request = raw("digits", &binary_request("pixels", 4 * ROWS, 64), "");
    let streams: Vec<_> = (0..8)
        .map(|_| {
            let mut stream = TcpStream::connect(stack.http).expect("it listens");
            stream.write_all(&request).expect("it reads");
            stream
        })
        .collect();
    stack.signal(Signal::KILL);
    stack.wait();
    drop(streams);
    eventually("nothing to be mapped", || (engine.mapped() == 0).then_some(()));
    stack.restart();
    assert!(is_like(&warm_up(&stack).body, &right));
    assert!(engine.mapped() > 0);
    let engine_pid = Pid::from_child(&engine.0);
    kill_process(engine_pid, Signal::KILL).expect("it runs");
    wait_until_all_is_free(&stack);
}

/// Reads a head and a body with a Content-Length; gives the head, in lower case.
fn read_answer(stream: &mut TcpStream) -> String {
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
    let (mut text, mut byte) = (Vec::new(), [0]);
    while !text.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).expect("an answer");
        text.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&text).to_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    stream.read_exact(&mut vec![0; length.unwrap_or(0)]).expect("the whole body");
    head
}

#[test]
fn a_connection_stays_in_step_however_its_requests_come() {
    let stack = Stack::builder().policies(pinned_split()).start();
    warm_up(&stack);
    let large = raw("digits", &binary_request("pixels", ROWS, 64), "");
    let small = raw("digits", &binary_request("pixels", 1, 64), "");
    let mut stream = TcpStream::connect(stack.http).expect("it listens");
    // Several at once, which end and begin within one read.
    let mixed = [&large, &small, &large, &large, &small].map(|request| request.as_slice()).concat();
    stream.write_all(&mixed).expect("it reads");
    for _ in 0..5 {
        assert!(read_answer(&mut stream).starts_with("http/1.1 200"));
    }
    // Cut where it hurts: within the head, right behind it, and within the JSON.
    let head = large.windows(4).position(|window| window == b"\r\n\r\n").expect("a head") + 4;
    for cut in [10, head - 2, head, head + 10, head + 70_000] {
        stream.write_all(&large[..cut]).expect("it reads");
        std::thread::yield_now();
        stream.write_all(&large[cut..]).expect("it reads");
        let answer = read_answer(&mut stream);
        assert!(answer.starts_with("http/1.1 200") && answer.contains("connection: keep-alive"), "{answer}");
    }
    let expects = raw("digits", &binary_request("pixels", ROWS, 64), "Expect: 100-continue\r\n");
    let head = expects.windows(4).position(|window| window == b"\r\n\r\n").expect("a head") + 4;
    stream.write_all(&expects[..head]).expect("it reads");
    assert!(read_answer(&mut stream).starts_with("http/1.1 100"));
    stream.write_all(&expects[head..]).expect("it reads");
    assert!(read_answer(&mut stream).starts_with("http/1.1 200"));
    wait_until_all_is_free(&stack);
}

#[test]
fn a_large_body_that_stalls_is_told_so_and_ends_its_connection() {
    let stack = Stack::builder().config("requests: {body_time_max: 300ms}").start();
    warm_up(&stack);
    let whole = raw("digits", &binary_request("pixels", ROWS, 64), "");
    let mut stream = TcpStream::connect(stack.http).expect("it listens");
    stream.write_all(&whole[..100_000]).expect("it reads");
    let answer = read_answer(&mut stream);
    assert!(answer.starts_with("http/1.1 408") && answer.contains("connection: close"), "{answer}");
    wait_until_all_is_free(&stack);
    let mut short = TcpStream::connect(stack.http).expect("it listens");
    short.write_all(&whole[..150_000]).expect("it reads");
    short.shutdown(Shutdown::Write).expect("it is open");
    let mut rest = Vec::new();
    let _ = short.read_to_end(&mut rest);
    assert!(rest.is_empty(), "a body that ends early has no answer");
    wait_until_all_is_free(&stack);
}
