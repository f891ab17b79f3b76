//! Bodies that are compressed on their way, in both directions, and those that only pretend to be.

use flate2::Compression;
use flate2::read::{GzDecoder, ZlibDecoder};
use flate2::write::{GzEncoder, ZlibEncoder};
use harness::{Behaviour, Response, ScriptedEngine, Stack, infer_body, repository};
use std::io::{Read, Write};

fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(plain).expect("a Vec takes everything");
    encoder.finish().expect("a Vec takes everything")
}

fn deflate(plain: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(plain).expect("a Vec takes everything");
    encoder.finish().expect("a Vec takes everything")
}

fn inflated(answer: &Response) -> Vec<u8> {
    let mut plain = Vec::new();
    match answer.header("content-encoding") {
        "gzip" => GzDecoder::new(&answer.body[..]).read_to_end(&mut plain).expect("a gzip stream"),
        "deflate" => ZlibDecoder::new(&answer.body[..]).read_to_end(&mut plain).expect("a zlib stream"),
        other => panic!("{other}"),
    };
    plain
}

/// So many times a seven.
fn sevens(rows: usize) -> Vec<u8> {
    let file = repository("configs/demo/requests/digit-7.json");
    let seven: serde_json::Value =
        serde_json::from_slice(&std::fs::read(file).expect("a sample request")).expect("JSON");
    let pixels = seven["inputs"][0]["data"].as_array().expect("pixels");
    let pixels = pixels.iter().map(|pixel| pixel.as_f64().expect("a number") as f32);
    let pixels: Vec<f32> = pixels.cycle().take(64 * rows).collect();
    infer_body("pixels", [rows, 64], &pixels)
}

#[test]
fn a_compressed_body_says_what_the_plain_one_does() {
    let stack = Stack::builder().start();
    let ask = |encoding, body: &[u8]| stack.client().infer("digits", &[("content-encoding", encoding)], body);
    for rows in [1, 200] {
        let plain = sevens(rows);
        let expected = stack.client().infer("digits", &[], &plain).output("digit");
        assert_eq!(expected.as_array().expect("digits").len(), rows);
        assert_eq!(ask("gzip", &gzip(&plain)).output("digit"), expected);
        assert_eq!(ask("deflate", &deflate(&plain)).output("digit"), expected);
        assert_eq!(ask("identity", &plain).output("digit"), expected);
    }
    let index = stack.client().post(
        "/v2/repository/index",
        &[("content-encoding", "gzip")],
        &gzip(b"{\"ready\": true}"),
    );
    assert_eq!(index.json().as_array().expect("versions").len(), 2);
}

#[test]
fn an_answer_is_compressed_where_that_is_asked_for_and_pays() {
    let stack = Stack::builder().start();
    let body = sevens(50);
    let plain = stack.client().infer("digits", &[("accept-encoding", "identity")], &body);
    assert_eq!(plain.header("vary"), "accept-encoding");
    assert!(!plain.headers.contains_key("content-encoding"));
    for coding in ["gzip", "deflate"] {
        let answer = stack.client().infer("digits", &[("accept-encoding", coding)], &body);
        assert_eq!(answer.header("content-encoding"), coding);
        assert_eq!(answer.header("content-type"), "application/json");
        assert!(answer.body.len() < plain.body.len() / 2);
        assert_eq!(inflated(&answer), plain.body);
    }
    let small = stack.client().infer("digits", &[("accept-encoding", "gzip")], &sevens(1));
    assert!(!small.headers.contains_key("content-encoding") && !small.headers.contains_key("vary"));
    // Triton's asyncio client says that it takes compressed errors, and does not read them.
    let refused = stack.client().infer("digits", &[("accept-encoding", "gzip")], &vec![b'['; 3000]);
    assert_eq!(refused.status, 400);
    assert!(!refused.headers.contains_key("content-encoding"));
}

#[test]
fn bombs_broken_streams_and_unknown_encodings_are_told_apart() {
    let stack = Stack::builder().config("requests: {body_mib_max: 1}").start();
    let ask = |encoding, body: &[u8]| stack.client().infer("digits", &[("content-encoding", encoding)], body);
    let bomb = gzip(&vec![b' '; 64 << 20]);
    assert!(bomb.len() < 1 << 20);
    let answer = ask("gzip", &bomb);
    assert_eq!(
        (answer.status, answer.error()),
        (413, "the inflated body exceeds the limit of 1048576 bytes".into())
    );
    let answer = ask("gzip", b"\x1f\x8b");
    assert_eq!(answer.status, 400);
    assert!(answer.error().starts_with("the body is no gzip stream: "), "{}", answer.error());
    assert_eq!(ask("deflate", &sevens(1)).status, 400);
    assert_eq!(ask("gzip", &gzip(b"{}")).error(), "request body: missing field `inputs` at line 1 column 2");
    let answer = ask("br", b"..");
    assert_eq!(answer.status, 415);
    assert!(answer.error().contains("`br`"), "{}", answer.error());
    assert_eq!(ask("gzip", &gzip(&sevens(1))).status, 200);
    stack.wait_for_metric("penstock_requests_in_flight", 0.0);
}

#[test]
fn many_bombs_at_once_take_the_room_of_bodies_and_no_more() {
    let stack = Stack::builder().config("requests: {in_flight_mib_max: 150}").start();
    let bomb = gzip(&vec![b' '; 65 << 20]);
    let before = stack.peak_bytes();
    for _ in 0..3 {
        std::thread::scope(|scope| {
            for _ in 0..12 {
                scope.spawn(|| {
                    let answer = stack.client().infer("digits", &[("content-encoding", "gzip")], &bomb);
                    assert!([413, 503].contains(&answer.status), "{}", answer.text());
                });
            }
        });
    }
    let took = (stack.peak_bytes() - before) >> 20;
    assert!(took < 200, "{took} MiB where bodies may take 150");
    assert_eq!(stack.client().infer("digits", &[], &sevens(1)).status, 200);
}

#[test]
fn what_falls_back_from_another_server_is_inflated_here() {
    let there_engine = ScriptedEngine::start(&[("m", 7, Behaviour::Answer)]);
    let mut there = Stack::builder().external_engine(there_engine.socket()).start();
    let engine = ScriptedEngine::start(&[("m", 1, Behaviour::Answer)]);
    let policy = format!(
        "models: {{m: {{remote: {{2: {{url: 'http://{}/v2/models/m/infer'}}}}, split: {{weights: {{2: 1}}}}, \
         breaker: {{failures: 1, open_for: 60s, fallback: {{version: 1}}}}}}}}\n",
        there.http
    );
    let stack = Stack::builder().policies(&policy).external_engine(engine.socket()).start();
    let body = gzip(&infer_body("x", [1, 1], &[0.0]));
    let ask = || stack.client().infer("m", &[("content-encoding", "gzip")], &body);
    let answer = ask();
    assert_eq!((answer.status, answer.header("x-penstock-version")), (200, "2"), "{}", answer.text());
    there.signal(rustix::process::Signal::KILL);
    there.wait();
    for _ in ["it cannot be reached", "its breaker is open"] {
        let answer = ask();
        assert_eq!((answer.status, answer.header("x-penstock-version")), (200, "1"), "{}", answer.text());
    }
}
