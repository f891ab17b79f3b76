//! Long answers: they take the room of bodies for as long as they are written, whoever reads them or does not.

use harness::{Behaviour, Client, ScriptedEngine, Stack, eventually, grpc_request, infer_body};
use protocol::inference::ModelInferRequest;
use std::io::{Read, Write};
use std::net::TcpStream;
use tonic::Code;

/// Room for two long answers, and not for a third.
const ROOM: &str = "requests: {in_flight_mib_max: 60}";

/// Asks for the output as bytes.
fn binary() -> Vec<u8> {
    let mut body: serde_json::Value = serde_json::from_slice(&infer_body("x", [1, 1], &[0.0])).expect("JSON");
    body["parameters"] = serde_json::json!({"binary_data_output": true});
    body.to_string().into_bytes()
}

fn one() -> ModelInferRequest {
    grpc_request("m", "x", [1, 1], &[0.0])
}

/// A client that has an answer, and reads nothing of it but its first line.
fn unread(stack: &Stack) -> TcpStream {
    let mut stream = TcpStream::connect(stack.http).expect("it listens");
    let body = binary();
    let head =
        format!("POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all(&[head.as_bytes(), &body].concat()).expect("it reads");
    let mut line = [0; 15];
    stream.read_exact(&mut line).expect("an answer");
    assert_eq!(&line, b"HTTP/1.1 200 OK");
    stream
}

#[test]
fn answers_that_nobody_reads_take_the_room_of_bodies_and_no_more() {
    let engine =
        ScriptedEngine::start(&[("m", 1, Behaviour::AnswerAtLength), ("small", 1, Behaviour::Answer)]);
    let stack = Stack::builder().config(ROOM).external_engine(engine.socket()).start();
    let (client, grpc) = (stack.client(), stack.grpc_client());
    assert_eq!(client.infer("m", &[], &binary()).body.len() >> 20, ScriptedEngine::LONG_BYTES >> 20);
    let clients = [unread(&stack), unread(&stack)];
    for _ in 0..3 {
        let refused = client.infer("m", &[], &binary());
        assert_eq!((refused.status, refused.header("retry-after")), (503, "1"));
        assert!(refused.error().starts_with("overloaded: bodies and answers of "), "{}", refused.error());
        let refused = grpc.infer(one(), &[]).unwrap_err();
        assert_eq!(
            (refused.code(), refused.metadata().contains_key("retry-after")),
            (Code::Unavailable, true)
        );
        let (answers, end) = grpc.stream(vec![one()]);
        end.unwrap();
        assert!(answers[0].error_message.starts_with("overloaded: "), "{}", answers[0].error_message);
    }
    assert_eq!(client.infer("small", &[], &binary()).status, 200, "for small ones there is room");
    let refused = "penstock_refusals_total{reason=\"overloaded\",model=\"m\"}";
    stack.wait_for_metric(refused, 9.0);
    drop(clients);
    stack.wait_for_metric("penstock_requests_in_flight", 0.0);
    for _ in 0..3 {
        assert_eq!(client.infer("m", &[], &binary()).status, 200);
        grpc.infer(one(), &[]).expect("there is room");
    }
}

#[test]
fn so_do_those_that_nobody_reads_over_grpc() {
    let engine = ScriptedEngine::start(&[("m", 1, Behaviour::AnswerAtLength)]);
    let stack = Stack::builder().config(ROOM).external_engine(engine.socket()).start();
    let grpc = stack.grpc_client();
    let ask = || stack.client().infer("m", &[], &binary()).status;
    let room_of = |answers: usize| {
        let status = Client::new(stack.monitor).get("/status").json();
        let bytes = status["traffic"]["body_bytes"].as_u64().expect("a number") as usize;
        (bytes / ScriptedEngine::LONG_BYTES == answers).then_some(())
    };
    let stream = grpc.runtime.block_on(grpc.caller().stream(vec![one(), one(), one()])).expect("it begins");
    eventually("two answers to be there", || room_of(2));
    assert_eq!(ask(), 503);
    drop(stream);
    eventually("their room to come back", || room_of(0));
    assert_eq!(ask(), 200);
    stack.wait_for_metric("penstock_requests_in_flight", 0.0);
}

#[test]
fn an_answer_that_is_passed_on_has_its_room_already() {
    let there_engine = ScriptedEngine::start(&[("m", 7, Behaviour::AnswerAtLength)]);
    let there = Stack::builder().external_engine(there_engine.socket()).start();
    let engine = ScriptedEngine::start(&[("m", 1, Behaviour::AnswerAtLength)]);
    let url = format!("http://{}/v2/models/m/infer", there.http);
    let policy = format!("models: {{m: {{remote: {{2: {{url: '{url}'}}}}}}}}\n");
    let room = "requests: {in_flight_mib_max: 8}";
    let stack = Stack::builder().config(room).policies(&policy).external_engine(engine.socket()).start();
    let ask =
        |version| stack.client().post(&format!("/v2/models/m/versions/{version}/infer"), &[], &binary());
    assert_eq!([1, 2].map(|version| ask(version).status), [503, 200]);
    let refused = grpc_request("m", "x", [1, 1], &[0.0]);
    let refused = stack.grpc_client().infer(ModelInferRequest { model_version: "2".into(), ..refused }, &[]);
    assert_eq!(refused.unwrap_err().code(), Code::Unavailable, "what is written anew has none yet");
}
