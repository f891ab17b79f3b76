//! Whatever a client sends, it gets one JSON error with the right status, and the process, the connection and the
//! next request are as before.

use harness::{Behaviour, ScriptedEngine, Stack, infer_body, raw_exchange, repository};
use serde_json::json;
use std::collections::BTreeSet;

const INFER: &str = "/v2/models/digits/infer";

fn input(fields: serde_json::Value) -> Vec<u8> {
    let mut input = json!({"name": "pixels", "shape": [1, 64], "datatype": "FP32", "data": vec![0; 64]});
    for (key, value) in fields.as_object().expect("fields") {
        if value.is_null() {
            input.as_object_mut().expect("an object").remove(key)
        } else {
            input.as_object_mut().expect("an object").insert(key.clone(), value.clone())
        };
    }
    json!({"inputs": [input]}).to_string().into_bytes()
}

#[test]
fn each_mistake_gets_its_status_and_its_name() {
    let stack = Stack::builder().start();
    let good = infer_body("pixels", [1, 64], &[0.0; 64]);
    let zeros = json!({"name": "pixels", "shape": [1, 64], "datatype": "FP32", "data": vec![0; 64]});
    let twice = json!({"inputs": [zeros.clone(), zeros.clone()]});
    let unknown_output = json!({"inputs": [zeros.clone()], "outputs": [{"name": "colour"}]});
    let with = |mut fields: serde_json::Value| {
        fields["inputs"] = json!([zeros]);
        fields.to_string().into_bytes()
    };
    let shared_output = json!({"outputs": [{"name": "digit", "parameters": {"shared_memory_region": "r", "shared_memory_byte_size": 8}}]});
    let cases: Vec<(&str, Vec<u8>, u16, &str)> = vec![
        (INFER, b"".to_vec(), 400, "EOF"),
        (INFER, b"{\"inputs\":[".to_vec(), 400, "EOF"),
        (INFER, b"not json".to_vec(), 400, "expected"),
        (INFER, b"\xff\xfe".to_vec(), 400, "expected"),
        (INFER, "[".repeat(100_000).into_bytes(), 400, ""),
        (INFER, b"{}".to_vec(), 400, "missing field `inputs`"),
        (INFER, json!({"inputs": []}).to_string().into_bytes(), 400, "pixels"),
        (INFER, input(json!({"name": "pixel"})), 400, "pixels"),
        (INFER, input(json!({"shape": [1, 63], "data": vec![0; 63]})), 400, "[-1, 64]"),
        (INFER, input(json!({"shape": [64]})), 400, "[-1, 64]"),
        (INFER, input(json!({"shape": [0, 64], "data": []})), 400, "empty"),
        (INFER, input(json!({"datatype": "INT32"})), 400, "FP32"),
        (INFER, input(json!({"datatype": "FP31"})), 400, "FP31"),
        (INFER, input(json!({"data": vec![0; 65]})), 400, "64"),
        (INFER, input(json!({"data": ["a"]})), 400, "string"),
        (INFER, input(json!({"data": [null]})), 400, "null"),
        (INFER, input(json!({"shape": [u64::MAX, u64::MAX]})), 400, "overflow"),
        (INFER, input(json!({"shape": [1_u64 << 40, 64]})), 400, "elements"),
        (INFER, input(json!({"shape": null})), 400, "shape"),
        (INFER, input(json!({"shape": [-1, 64]})), 400, "integer `-1`, expected a whole number from 0"),
        (INFER, input(json!({"shape": vec![1; 65]})), 400, "more than 64 dimensions"),
        (INFER, input(json!({"datatype": "F".repeat(1 << 20)})), 400, "…"),
        (INFER, input(json!({"datatype": "INT64", "data": [1.0]})), 400, "1.0 does not fit INT64"),
        (INFER, input(json!({"parameters": [256]})), 400, "expected an object"),
        (INFER, input(json!({"parameters": {"shared_memory_region": "r"}})), 501, "shared memory"),
        (INFER, with(json!({"outputs": [["digit"]]})), 400, "expected an object"),
        (INFER, with(json!({"parameters": [true]})), 400, "expected an object"),
        (INFER, with(json!({"parameters": {"sequence_id": 7}})), 501, "sequences"),
        (INFER, with(shared_output), 501, "shared memory"),
        ("/v2/systemsharedmemory/region/r/register", b"{}".to_vec(), 501, "shared memory"),
        ("/v2/models/digits/generate", good.clone(), 501, "use `infer`"),
        ("/v2/models/digits%2Finfer", good.clone(), 404, "no such path"),
        ("/v2/repository/index", b"[]".to_vec(), 400, "expected an object"),
        (INFER, twice.to_string().into_bytes(), 400, "pixels"),
        (INFER, unknown_output.to_string().into_bytes(), 400, "colour"),
        ("/v2/models/nothing/infer", good.clone(), 404, "nothing"),
        ("/v2/models/digits/versions/9/infer", good.clone(), 404, "9"),
        ("/v2/models/digits/versions/two/infer", good.clone(), 404, "two"),
        ("/v2/nowhere", good.clone(), 404, "nowhere"),
        ("/v2/health/live", good.clone(), 405, "GET"),
    ];
    let client = stack.client();
    for (path, body, status, says) in cases {
        let answer = client.post(path, &[], &body);
        let shown = String::from_utf8_lossy(&body[..body.len().min(120)]).into_owned();
        assert_eq!(answer.status, status, "{path} {shown}: {}", answer.text());
        assert!(answer.error().contains(says), "{path} {shown}: {}", answer.error());
    }
    assert_eq!(client.infer("digits", &[], &good).status, 200);
}

#[test]
fn non_finite_values_are_values() {
    let stack = Stack::builder().start();
    let mut data = vec!["0"; 64];
    (data[0], data[1], data[2]) = ("NaN", "Infinity", "-Infinity");
    let body = format!(
        r#"{{"inputs":[{{"name":"pixels","shape":[1,64],"datatype":"FP32","data":[{}]}}]}}"#,
        data.join(",")
    );
    let answer = stack.client().infer("digits", &[], body.as_bytes());
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(answer.text().contains("NaN"), "what the model makes of it comes back: {}", answer.text());
}

#[test]
fn a_head_that_is_no_http_is_answered_and_ends_its_connection() {
    let stack = Stack::builder().start();
    let many = format!("GET /v2 HTTP/1.1\r\nHost: x\r\n{}\r\n", "a: b\r\n".repeat(1000));
    let cases = [
        ("GET /v2 HTTP/1.1\r\nHost: x\r\nno colon\r\n\r\n", 400, "invalid header name"),
        ("\u{16}\u{3}\u{1} a greeting of TLS\r\n\r\n", 400, "invalid token"),
        ("GET /v2 HTTP/3.0\r\nHost: x\r\n\r\n", 400, "invalid HTTP version"),
        (&many, 400, "too many headers"),
        ("POST /v2 HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400, "Transfer-Encoding"),
        ("GET /v2 HTTP/1.1\r\n\r\n", 400, "the request has no Host header"),
        ("GET /v2 HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, "multiple Host header fields"),
        (
            "POST /v2 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            501,
            "transfer coding `gzip, chunked`; known is chunked",
        ),
        ("CONNECT x:443 HTTP/1.1\r\nHost: x:443\r\n\r\n", 405, "allow: GET, POST"),
    ];
    for (head, status, says) in &cases {
        let answer = harness::raw_exchange(
            stack.http,
            &[head.as_bytes(), b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n"].concat(),
            false,
        );
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{head:?}: {answer}");
        assert!(answer.contains(says) && answer.contains(r#"{"error":""#), "{head:?}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "what follows is not read: {answer}");
    }
    stack.wait_for_metric(r#"penstock_refusals_total{reason="invalid",model=""}"#, 7.0);
}

#[test]
fn an_oversize_body_is_refused_before_it_is_read() {
    let stack = Stack::builder().config("requests: {body_mib_max: 1}").start();
    let head = format!("POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", 2 << 20);
    let answer = harness::raw_exchange(stack.http, head.as_bytes(), false);
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    assert!(answer.contains("1048576 bytes"), "{answer}");
    // Chunked: the length shows only on the way.
    let chunk = "x".repeat(64 << 10);
    let chunked = format!(
        "POST {INFER} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{}",
        format!("10000\r\n{chunk}\r\n").repeat(17)
    );
    let answer = harness::raw_exchange(stack.http, chunked.as_bytes(), false);
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
}

#[test]
fn a_truncated_body_ends_with_its_connection_and_nothing_else() {
    let stack = Stack::builder().config("requests: {body_time_max: 500ms}").start();
    let head = format!("POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{{\"inputs\"");
    let silent = harness::raw_exchange(stack.http, head.as_bytes(), false);
    assert!(silent.starts_with("HTTP/1.1 408"), "{silent}");
    let gone = harness::raw_exchange(stack.http, head.as_bytes(), true);
    assert!(!gone.contains("200 OK"), "{gone}");
    assert_eq!(stack.client().infer("digits", &[], &infer_body("pixels", [1, 64], &[0.0; 64])).status, 200);
    stack.wait_for_metric("penstock_requests_in_flight", 0.0); // nothing leaks
}

#[test]
fn a_body_that_is_not_framed_ends_its_connection() {
    let stack = Stack::builder().start();
    let body = format!("POST {INFER} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n");
    let answer = harness::raw_exchange(stack.http, body.as_bytes(), false);
    assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("Connection: close"), "{answer}");
}

#[test]
fn a_row_that_breaks_the_model_fails_alone() {
    let stack = Stack::builder().models(repository("tests/data/models")).start_unready();
    harness::eventually("picky to be ready", || {
        (stack.client().get("/v2/models/picky/ready").status == 200).then_some(())
    });
    std::thread::scope(|scope| {
        for worker in 0..8 {
            let client = stack.client();
            scope.spawn(move || {
                for _ in 0..20 {
                    let value = if worker == 0 { -1.0 } else { worker as f32 };
                    let answer = client.infer("picky", &[], &infer_body("x", [1, 4], &[value; 4]));
                    if worker == 0 {
                        // Once its breaker opens (these are the version's own failures), 503 is the answer.
                        assert!([500, 503].contains(&answer.status), "{}", answer.text());
                        assert!(
                            answer.status == 503 || answer.error().contains("negative input"),
                            "{}",
                            answer.error()
                        );
                    } else if answer.status == 200 {
                        assert_eq!(answer.output("y"), json!(vec![2.0 * value; 4]));
                    } else {
                        assert_eq!(answer.status, 503, "{}", answer.text());
                    }
                }
            });
        }
    });
}

#[test]
fn a_request_too_long_for_a_frame_fails_alone() {
    let stack = Stack::builder().start();
    let good = infer_body("pixels", [1, 64], &[0.0; 64]);
    let long = "x".repeat(1_200_000);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let client = stack.client();
                (0..50).for_each(|_| assert_eq!(client.infer("digits", &[], &good).status, 200));
            });
        }
        let answer = stack.client().infer("digits", &[], &input(json!({"name": long})));
        assert_eq!(
            (answer.status, answer.error().as_str()),
            (413, "what describes the tensors exceeds the limit of 1048576 bytes")
        );
    });
}

#[test]
fn a_request_that_is_too_long_for_the_engine_costs_nobody_else() {
    let engine = ScriptedEngine::start(&[("m", 1, Behaviour::Hold)]);
    let stack = Stack::builder().external_engine(engine.socket()).start();
    std::thread::scope(|scope| {
        let mate = scope.spawn(|| stack.client().infer("m", &[], &infer_body("x", [1, 1], &[0.0])).status);
        stack.wait_for_metric("penstock_requests_in_flight", 1.0);
        let rows = ScriptedEngine::PAYLOAD_BYTES_MAX / size_of::<f32>() + 1;
        let long = stack.client().infer("m", &[], &infer_body("x", [rows, 1], &vec![0.0; rows]));
        assert_eq!(
            (long.status, long.error()),
            (413, "the data of the tensors exceeds the limit of 1048576 bytes".into())
        );
        engine.set("m", 1, Behaviour::Answer);
        assert_eq!(mate.join().expect("no panic"), 200);
    });
}

/// Whoever makes them up could else make the page of metrics grow until somebody has no memory.
#[test]
fn a_thousand_invented_models_versions_labels_and_methods_make_no_series() {
    let engine = ScriptedEngine::start(&[("m", 1, Behaviour::Answer)]);
    let policy = "models: {m: {labels: {new: 1}, split: {weights: {new: 1}}}}\n\
                  limits: [{name: each, key: {header: x-user-id}, rate: 1000/s}]\n";
    let stack = Stack::builder().policies(policy).external_engine(engine.socket()).start();
    let (client, body) = (stack.client(), infer_body("x", [1, 1], &[0.0]));
    let ask = |at: usize| {
        let (user, number) = (format!("user-{at}"), at + 2);
        for path in [
            format!("/v2/models/invented-{at}/infer"),
            format!("/v2/models/m/versions/{number}/infer"),
            format!("/v2/models/m/labels/label-{at}/infer"),
        ] {
            let answer = client.post(&path, &[("x-user-id", &user), ("x-request-id", &user)], &body);
            assert_eq!(answer.status, 404, "{path}: {}", answer.text());
        }
        let asks =
            format!("INVENTED-{at} /v2/models/m/infer HTTP/1.1\r\nHost: {user}\r\nConnection: close\r\n\r\n");
        let answer = raw_exchange(stack.http, asks.as_bytes(), false);
        assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
    };
    let series = || -> BTreeSet<String> {
        let page = stack.metrics();
        let lines = page.lines().filter(|line| !line.starts_with('#'));
        lines.filter_map(|line| Some(line.rsplit_once(' ')?.0.to_owned())).collect()
    };
    assert_eq!(client.infer("m", &[], &body).status, 200);
    ask(0);
    let before = series();
    (1..=1000).for_each(ask);
    stack.wait_for_metric("penstock_requests_in_flight", 0.0);
    let after = series();
    assert_eq!(after.difference(&before).next(), None, "{} series", before.len());
    assert_eq!(after.len(), before.len());
    stack.wait_for_metric("penstock_refusals_total{reason=\"method\",model=\"\"}", 1001.0);
}
