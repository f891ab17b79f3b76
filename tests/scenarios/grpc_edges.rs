//! Whatever comes to the gRPC port, it gets an error with the right status, and the process and the next request are as
//! before.

use bytes::Bytes;
use harness::{Behaviour, Client, ScriptedEngine, Stack, grpc_request, raw_exchange};
use protocol::inference::{InferTensorContents, ModelInferRequest, ModelInferResponse};
use tonic::Code;

/// A `ModelInferRequest` whose name may be no text.
#[derive(Clone, PartialEq, prost::Message)]
struct Nameless {
    #[prost(bytes = "bytes", tag = "1")]
    model_name: Bytes,
}

fn good() -> ModelInferRequest {
    grpc_request("digits", "pixels", [1, 64], &[0.0; 64])
}

#[test]
fn each_mistake_gets_its_status_and_its_name() {
    let stack = Stack::builder().start();
    let client = stack.grpc_client();
    let input = |change: fn(&mut ModelInferRequest)| {
        let mut request = good();
        change(&mut request);
        request
    };
    let cases: Vec<(ModelInferRequest, Code, &str)> = vec![
        (input(|r| r.model_name.clear()), Code::InvalidArgument, "model_name"),
        (input(|r| r.model_name = "nothing".into()), Code::NotFound, "nothing"),
        (input(|r| r.model_version = "9".into()), Code::NotFound, "9"),
        (input(|r| r.model_version = "two".into()), Code::NotFound, "two"),
        (input(|r| r.inputs.clear()), Code::InvalidArgument, "pixels"),
        (input(|r| r.inputs[0].name = "pixel".into()), Code::InvalidArgument, "pixels"),
        (input(|r| r.inputs[0].datatype = "FP31".into()), Code::InvalidArgument, "FP31"),
        (input(|r| r.inputs[0].shape = vec![1, 63]), Code::InvalidArgument, "[1, 63] has 63"),
        (input(|r| r.inputs[0].shape = vec![-1, 64]), Code::InvalidArgument, "-1"),
        (input(|r| r.inputs[0].shape = vec![i64::MAX, 64]), Code::InvalidArgument, "overflows"),
        (input(|r| r.inputs[0].contents = None), Code::InvalidArgument, "0 elements"),
        (
            input(|r| r.raw_input_contents = vec![vec![0; 256].into()]),
            Code::InvalidArgument,
            "all inputs or none",
        ),
        (
            input(|r| {
                r.inputs[0].contents = None;
                r.raw_input_contents = vec![vec![0; 255].into()];
            }),
            Code::InvalidArgument,
            "have 255 bytes, FP32 of shape [1, 64] takes 256",
        ),
        (
            input(|r| {
                let contents = InferTensorContents { int_contents: vec![0; 64], ..Default::default() };
                r.inputs[0].contents = Some(contents);
            }),
            Code::InvalidArgument,
            "int_contents",
        ),
        (input(|r| r.outputs = vec![Default::default()]), Code::InvalidArgument, ""),
    ];
    for (request, code, says) in cases {
        let refused = client.infer(request, &[]).unwrap_err();
        assert_eq!(refused.code(), code, "{says}: {refused}");
        assert!(refused.message().contains(says), "{says}: {refused}");
    }
    let odd = Nameless { model_name: Bytes::from_static(b"\xff\xfe") };
    let refused = client.ask::<_, ModelInferResponse>("ModelInfer", odd).unwrap_err();
    assert_eq!(
        (refused.code(), refused.message().contains("UTF-8")),
        (Code::InvalidArgument, true),
        "{refused}"
    );
    assert!(client.infer(good(), &[]).is_ok());
}

#[test]
fn what_is_not_there_is_not_implemented() {
    let engine = ScriptedEngine::start(&[("m", 1, Behaviour::Answer)]);
    let stack = Stack::builder().external_engine(engine.socket()).start();
    let client = stack.grpc_client();
    for (path, says) in [
        ("/inference.GRPCInferenceService/SystemSharedMemoryStatus", "shared memory"),
        ("/inference.GRPCInferenceService/Nothing", "no such method"),
        ("/nowhere.Service/Nothing", "no service `nowhere.Service`"),
        ("/", "no service"),
    ] {
        let asked = client.caller().call::<_, ModelInferResponse>(path, good(), &[]);
        let refused = client.runtime.block_on(asked).unwrap_err();
        assert_eq!(refused.code(), Code::Unimplemented, "{path}: {refused}");
        assert!(refused.message().contains(says), "{path}: {refused}");
    }
    let encoded = client.infer(good(), &[("grpc-encoding", "zstd")]).unwrap_err();
    assert_eq!(encoded.code(), Code::Unimplemented, "{encoded}");
}

#[test]
fn a_message_over_the_limit_costs_only_itself() {
    let engine = ScriptedEngine::start(&[("m", 1, Behaviour::Answer)]);
    let stack =
        Stack::builder().config("requests: {body_mib_max: 2}").external_engine(engine.socket()).start();
    let client = stack.grpc_client();
    let small = || grpc_request("m", "x", [1, 1], &[0.0]);
    let of = |floats: usize| grpc_request("m", "x", [floats, 1], &vec![0.0; floats]);
    let refused = client.infer(of(1 << 20), &[]).unwrap_err();
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::ResourceExhausted, "the message exceeds the limit of 2097152 bytes")
    );
    let refused = client.infer(of(300_000), &[]).unwrap_err();
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::ResourceExhausted, "the data of the tensors exceeds the limit of 1048576 bytes")
    );
    assert!(client.infer(of(200_000), &[]).is_ok());
    let (answers, end) = client.stream(vec![small(), of(1 << 20), small()]);
    end.unwrap();
    let said: Vec<_> = answers.iter().map(|answer| answer.error_message.as_str()).collect();
    assert_eq!(said, ["", "the message exceeds the limit of 2097152 bytes", ""]);
    stack.wait_for_metric("penstock_requests_in_flight", 0.0);
}

#[test]
fn what_is_no_grpc_ends_with_its_connection_and_nothing_else() {
    let engine = ScriptedEngine::start(&[("m", 1, Behaviour::Answer)]);
    let stack = Stack::builder().external_engine(engine.socket()).start();
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    for bytes in [
        b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        vec![0xff; 4096],
        preface[..10].to_vec(),
        [&preface[..], &settings, &[0xff; 100]].concat(),
        // A frame of DATA for a stream that nobody has opened.
        [&preface[..], &settings, &[0, 0, 1, 0, 0, 0, 0, 0, 1, 7]].concat(),
    ] {
        let answer = raw_exchange(stack.grpc, &bytes, true);
        assert!(!answer.contains("200 OK"), "{answer}");
    }
    // HTTP that has come to the wrong port is told so by silence, not by an answer.
    assert!(Client::new(stack.grpc).try_get("/v2/health/live").is_none());
    assert!(stack.grpc_client().infer(grpc_request("m", "x", [1, 1], &[0.0]), &[]).is_ok());
    stack.wait_for_metric("penstock_requests_in_flight", 0.0);
}
