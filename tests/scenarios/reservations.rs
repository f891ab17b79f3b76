//! Rows and bytes are reserved before a request runs, and given back to whoever has had nothing for them.

use harness::{Behaviour, ScriptedEngine, Stack, eventually, infer_body, raw_exchange};
use std::io::Write;
use std::net::TcpStream;

fn stack(engine: &ScriptedEngine, limit: &str, breaker: &str) -> Stack {
    let policy =
        format!("models: {{m: {{split: {{weights: {{1: 1}}}}, breaker: {breaker}}}}}\nlimits: [{limit}]\n");
    Stack::builder().policies(&policy).external_engine(engine.socket()).start()
}

const ROWS: &str = "{name: rows, cost: rows, rate: 10/h}";

fn rows(count: usize) -> Vec<u8> {
    infer_body("x", [count, 1], &vec![0.0; count])
}

#[test]
fn who_was_turned_away_has_spent_nothing_and_who_was_answered_has() {
    let engine = ScriptedEngine::start(&[("m", 1, Behaviour::Stopping)]);
    let stack = stack(&engine, ROWS, "{failures: 1, open_for: 1s}");
    let client = stack.client();
    for behaviour in [Behaviour::Stopping, Behaviour::Overloaded] {
        engine.set("m", 1, behaviour);
        for _ in 0..5 {
            assert_eq!(client.infer("m", &[], &rows(9)).status, 503);
            assert_eq!(client.infer("m", &[], b"{").status, 400);
        }
    }
    engine.set("m", 1, Behaviour::Fail);
    assert_eq!(client.infer("m", &[], &rows(2)).status, 500, "it has run");
    for _ in 0..5 {
        let tripped = client.infer("m", &[], &rows(8));
        assert!(tripped.error().contains("keeps failing"), "{}", tripped.text());
    }
    engine.set("m", 1, Behaviour::Answer);
    let left = eventually("a probe to be let in", || {
        let answer = client.infer("m", &[], &rows(8));
        assert_ne!(answer.status, 429, "{}", answer.text());
        (answer.status == 200).then(|| answer.header("ratelimit").to_owned())
    });
    assert!(left.starts_with("\"rows\";r=0;"), "{left}");
    assert_eq!(client.infer("m", &[], &rows(1)).status, 429);
}

#[test]
fn a_body_that_does_not_come_gives_its_bytes_back_and_one_that_is_too_long_is_not_read() {
    let engine = ScriptedEngine::start(&[("m", 1, Behaviour::Answer)]);
    let stack = stack(&engine, "{name: bytes, cost: bytes, rate: 1000/h}", "{failures: 5}");
    let head =
        |length| format!("POST /v2/models/m/infer HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n");
    let never = raw_exchange(stack.http, head(1001).as_bytes(), false);
    assert!(never.starts_with("HTTP/1.1 413") && never.contains("this request has 1001"), "{never}");
    let mut uploading = TcpStream::connect(stack.http).expect("it listens");
    uploading.write_all(head(950).as_bytes()).expect("it reads");
    let client = stack.client();
    eventually("the bytes to be reserved", || {
        let answer = client.infer("m", &[], &rows(1));
        (answer.status == 429).then(|| assert!(answer.error().contains("`bytes`"), "{}", answer.text()))
    });
    drop(uploading);
    eventually("the bytes to be given back", || {
        (client.infer("m", &[], &rows(1)).status == 200).then_some(())
    });
}

#[test]
fn who_leaves_what_may_be_running_pays_for_it() {
    let engine = ScriptedEngine::start(&[("m", 1, Behaviour::Hang)]);
    let stack = stack(&engine, ROWS, "{failures: 5}");
    let client = stack.client();
    assert_eq!(client.infer("m", &[("x-request-timeout-ms", "50")], &rows(9)).status, 504);
    engine.set("m", 1, Behaviour::Answer);
    assert_eq!(client.infer("m", &[], &rows(2)).status, 429);
    assert_eq!(client.infer("m", &[], &rows(1)).status, 200);
}
