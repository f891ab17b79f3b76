//! The same protocol over gRPC: the same answers, policies, refusals and traces as over HTTP.

use harness::{
    Behaviour, Collector, GrpcClient, ScriptedEngine, Stack, eventually, grpc_request, repository,
};
use protocol::inference::infer_parameter::ParameterChoice;
use protocol::inference::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
use protocol::inference::*;
use serde_json::Value;
use std::collections::HashSet;
use tonic::{Code, Status};

fn digit(number: u32) -> ModelInferRequest {
    let path = repository("configs/demo/requests").join(format!("digit-{number}.json"));
    let json: Value = serde_json::from_slice(&std::fs::read(path).expect("a sample request")).expect("JSON");
    let data = json["inputs"][0]["data"].as_array().expect("data").iter().flat_map(|row| match row {
        Value::Array(row) => row.clone(),
        one => vec![one.clone()],
    });
    let pixels: Vec<f32> = data.map(|pixel| pixel.as_f64().expect("a number") as f32).collect();
    grpc_request("digits", "pixels", [1, 64], &pixels)
}

fn one() -> ModelInferRequest {
    grpc_request("m", "x", [1, 1], &[0.0])
}

/// The numbers of an INT64 output.
fn numbers(answer: &ModelInferResponse, name: &str) -> Vec<i64> {
    let at = answer.outputs.iter().position(|output| output.name == name).expect("the output is there");
    let raw = &answer.raw_output_contents[at];
    raw.chunks(8).map(|number| i64::from_le_bytes(number.try_into().expect("8 bytes"))).collect()
}

#[test]
fn both_kinds_of_contents_get_the_answer_that_http_gives() {
    let stack = Stack::builder().start();
    let client = stack.grpc_client();
    for number in [3, 7] {
        let typed = ModelInferRequest { model_version: "1".into(), id: "a".into(), ..digit(number) };
        let mut raw = typed.clone();
        let contents = raw.inputs[0].contents.take().expect("typed").fp32_contents;
        raw.raw_input_contents =
            vec![contents.iter().flat_map(|pixel| pixel.to_le_bytes()).collect::<Vec<u8>>().into()];
        let (typed, raw) = (client.infer(typed, &[]).unwrap(), client.infer(raw, &[]).unwrap());
        assert_eq!(typed.metadata().get("x-penstock-version").unwrap(), "1");
        assert_eq!(typed.metadata().get("x-penstock-generation").unwrap(), "1");
        assert_eq!(typed.get_ref(), raw.get_ref());
        let answer = typed.get_ref();
        assert_eq!(numbers(answer, "digit"), [i64::from(number)]);
        assert_eq!((answer.model_version.as_str(), answer.id.as_str()), ("1", "a"));
        assert_eq!((answer.outputs.len(), answer.raw_output_contents.len()), (2, 2));
    }
    let outputs = vec![InferRequestedOutputTensor { name: "digit".into(), ..Default::default() }];
    let answer = client.infer(ModelInferRequest { outputs, ..digit(7) }, &[]).unwrap().into_inner();
    assert_eq!((answer.outputs.len(), answer.raw_output_contents.len()), (1, 1));
    stack.wait_for_metric("penstock_requests_total{model=\"digits\",version=\"1\",outcome=\"served\"}", 4.0);
}

#[test]
fn every_datatype_survives_the_round_trip() {
    let stack = Stack::builder().models(repository("tests/data/models")).start_unready();
    eventually("kinds to be ready", || {
        (stack.client().get("/v2/models/kinds/ready").status == 200).then_some(())
    });
    let kinds: [(&str, &str, Vec<u8>); 13] = [
        ("b", "BOOL", vec![1, 0]),
        ("u8", "UINT8", vec![0, 255]),
        ("u16", "UINT16", (252..=255).collect()),
        ("u32", "UINT32", (248..=255).collect()),
        ("u64", "UINT64", (240..=255).collect()),
        ("i8", "INT8", vec![128, 127]),
        ("i16", "INT16", (1..5).collect()),
        ("i32", "INT32", (1..9).collect()),
        ("i64", "INT64", (1..17).collect()),
        ("f16", "FP16", (1..5).collect()),
        ("bf16", "BF16", (1..5).collect()),
        ("f32", "FP32", (1..9).collect()),
        ("f64", "FP64", (1..17).collect()),
    ];
    let inputs = kinds.iter().map(|(name, datatype, _)| InferInputTensor {
        name: (*name).into(),
        datatype: (*datatype).into(),
        shape: vec![1, 2],
        ..InferInputTensor::default()
    });
    let asked = ModelInferRequest {
        model_name: "kinds".into(),
        inputs: inputs.collect(),
        raw_input_contents: kinds.iter().map(|(_, _, bytes)| bytes.clone().into()).collect(),
        ..ModelInferRequest::default()
    };
    let answer = stack.grpc_client().infer(asked, &[]).unwrap().into_inner();
    for (at, (name, datatype, bytes)) in kinds.iter().enumerate() {
        let output = &answer.outputs[at];
        assert_eq!((&output.name, output.datatype.as_str()), (&format!("{name}_out"), *datatype));
        assert_eq!((&output.shape, &answer.raw_output_contents[at]), (&vec![1, 2], &bytes.clone().into()));
    }
}

#[test]
fn it_says_what_it_is_and_what_it_has() {
    let stack = Stack::builder().start();
    let client = stack.grpc_client();
    let ready = |name: &str, version: &str| {
        let asked = ModelReadyRequest { name: name.into(), version: version.into() };
        client.ask::<_, ModelReadyResponse>("ModelReady", asked).unwrap().ready
    };
    assert!(client.ask::<_, ServerLiveResponse>("ServerLive", ServerLiveRequest {}).unwrap().live);
    assert!(client.ask::<_, ServerReadyResponse>("ServerReady", ServerReadyRequest {}).unwrap().ready);
    assert!(ready("digits", "") && ready("digits", "2"));
    assert!(!ready("digits", "9") && !ready("digits", "two") && !ready("nothing", ""));
    let server: ServerMetadataResponse = client.ask("ServerMetadata", ServerMetadataRequest {}).unwrap();
    let extensions = [
        "classification",
        "model_configuration",
        "schedule_policy",
        "statistics",
        "trace",
        "logging",
        "model_repository",
        "model_repository(unload_dependents)",
    ];
    assert_eq!(
        (server.name.as_str(), server.extensions),
        ("penstock", extensions.map(str::to_owned).to_vec())
    );
    let asked = ModelMetadataRequest { name: "digits".into(), version: String::new() };
    let model: ModelMetadataResponse = client.ask("ModelMetadata", asked).unwrap();
    assert_eq!(model.versions, ["1", "2"]);
    assert_eq!((model.inputs[0].datatype.as_str(), &model.inputs[0].shape), ("FP32", &vec![-1, 64]));
    assert_eq!(model.outputs[0].name, "digit");
    let asked = ModelMetadataRequest { name: "nothing".into(), version: String::new() };
    let unknown: Result<ModelMetadataResponse, Status> = client.ask("ModelMetadata", asked);
    assert_eq!(unknown.unwrap_err().code(), Code::NotFound);
}

#[test]
fn models_are_loaded_and_unloaded_where_the_configuration_allows_it() {
    let stack = Stack::builder().start();
    let client = stack.grpc_client();
    let states = || {
        let index: RepositoryIndexResponse =
            client.ask("RepositoryIndex", RepositoryIndexRequest::default()).unwrap();
        index.models.into_iter().map(|model| model.state).collect::<Vec<_>>()
    };
    assert_eq!(states(), ["READY", "READY"]);
    let model_name = || "digits".to_owned();
    let unload = RepositoryModelUnloadRequest { model_name: model_name(), ..Default::default() };
    client.ask::<_, RepositoryModelUnloadResponse>("RepositoryModelUnload", unload).unwrap();
    assert_eq!(states(), ["UNAVAILABLE", "UNAVAILABLE"]);
    let gone = client.infer(digit(1), &[]).unwrap_err();
    assert_eq!(
        (gone.code(), gone.metadata().get("retry-after").unwrap()),
        (Code::Unavailable, &"1".parse().unwrap())
    );
    let load = RepositoryModelLoadRequest { model_name: model_name(), ..Default::default() };
    client.ask::<_, RepositoryModelLoadResponse>("RepositoryModelLoad", load.clone()).unwrap();
    assert_eq!(states(), ["READY", "READY"]);

    let engine = ScriptedEngine::start(&[("m", 1, Behaviour::Answer)]);
    let stack = Stack::builder().external_engine(engine.socket()).start();
    let refused: Result<RepositoryModelLoadResponse, _> =
        stack.grpc_client().ask("RepositoryModelLoad", load);
    assert_eq!(refused.unwrap_err().code(), Code::PermissionDenied);
}

#[test]
fn metadata_are_the_headers_of_policies() {
    let engine = ScriptedEngine::start(&[("m", 1, Behaviour::Answer), ("m", 2, Behaviour::Answer)]);
    let policy = "
models:
  m:
    split: {weights: {1: 50, 2: 50}, sticky: {cookie: uid}}
    rules: [{when: {header: x-cohort, equals: beta}, use: 2}]
limits: [{name: per-user, key: {header: x-user-id}, rate: 1/m, burst: 1}]
";
    let stack = Stack::builder().policies(policy).external_engine(engine.socket()).start();
    let client = stack.grpc_client();
    let users = std::cell::Cell::new(0);
    let version = |name: &str, value: &str| {
        users.set(users.get() + 1); // each has its own bucket
        let metadata = [(name, value), ("x-user-id", &users.get().to_string())];
        numbers(client.infer(one(), &metadata).unwrap().get_ref(), "version")[0]
    };
    assert!((0..20).all(|_| version("x-cohort", "beta") == 2));
    let of_user = |uid: u32| version("cookie", &format!("theme=dark; uid={uid}"));
    let all: HashSet<i64> = (0..40).map(of_user).collect();
    assert_eq!(all, HashSet::from([1, 2]));
    assert!((0..20).all(|_| of_user(7) == of_user(7)));

    let ana = [("x-user-id", "ana")];
    let first = client.infer(one(), &ana).unwrap();
    assert_eq!(first.metadata().get("ratelimit-policy").unwrap(), "\"per-user\";q=1;w=60");
    let refused = client.infer(one(), &ana).unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    let number = |name: &str| {
        let value = refused.metadata().get(name).unwrap_or_else(|| panic!("no {name}")).to_str().unwrap();
        value.parse::<u64>().unwrap()
    };
    let (seconds, pushback) = (number("retry-after"), number("grpc-retry-pushback-ms"));
    assert!((1..=60).contains(&seconds) && pushback.div_ceil(1000) == seconds, "{seconds} s, {pushback} ms");
    assert!(refused.metadata().contains_key("ratelimit"));
    stack.wait_for_metric("penstock_refusals_total{reason=\"rate_limited\",model=\"m\"}", 1.0);
}

#[test]
fn each_refusal_has_its_status() {
    use Behaviour::{Busy, CutFrame, Fail, Hang, Overloaded};
    let engine = ScriptedEngine::start(&[
        ("fails", 1, Fail),
        ("overloaded", 1, Overloaded),
        ("busy", 1, Busy),
        ("hangs", 1, Hang),
        ("cuts", 1, CutFrame),
    ]);
    let stack = Stack::builder().external_engine(engine.socket()).start();
    let client = stack.grpc_client();
    let ask = |model: &str, metadata: &[(&str, &str)]| {
        let refused = client.infer(grpc_request(model, "x", [1, 1], &[0.0]), metadata).unwrap_err();
        (refused.code(), refused.metadata().contains_key("grpc-retry-pushback-ms"))
    };
    assert_eq!(ask("fails", &[]), (Code::Internal, false));
    assert_eq!(ask("overloaded", &[]), (Code::Unavailable, true));
    assert_eq!(ask("busy", &[]), (Code::Unavailable, true));
    assert_eq!(ask("nothing", &[]), (Code::NotFound, false));
    assert_eq!(ask("hangs", &[("x-request-timeout-ms", "50")]), (Code::DeadlineExceeded, false));
    assert_eq!(ask("hangs", &[("x-request-timeout-ms", "soon")]), (Code::InvalidArgument, false));
    let timeout = InferParameter { parameter_choice: Some(ParameterChoice::Int64Param(50_000)) };
    let hangs = ModelInferRequest {
        parameters: [("timeout".to_owned(), timeout)].into(),
        ..grpc_request("hangs", "x", [1, 1], &[0.0])
    };
    assert_eq!(client.infer(hangs, &[]).unwrap_err().code(), Code::DeadlineExceeded);
    assert_eq!(ask("cuts", &[]), (Code::Unavailable, true));
}

#[test]
fn who_hangs_up_cancels() {
    let engine = ScriptedEngine::start(&[("m", 1, Behaviour::Hang)]);
    let stack = Stack::builder().external_engine(engine.socket()).start();
    let client = stack.grpc_client();
    let caller = client.caller();
    let asked = client.runtime.spawn(async move { caller.infer(one(), &[]).await });
    engine.wait_until_asked(1);
    asked.abort();
    assert!(engine.next_cancel().is_some(), "the engine is told");
    stack.wait_for_metric("penstock_requests_in_flight", 0.0);
    stack.wait_for_metric("penstock_refusals_total{reason=\"client_gone\",model=\"m\"}", 1.0);
    stack.wait_for_metric("penstock_requests_total{model=\"m\",version=\"1\",outcome=\"abandoned\"}", 1.0);
    // The client's own deadline: whoever is first to notice, the engine is told.
    let late = client.infer(one(), &[("grpc-timeout", "100m")]).unwrap_err();
    assert!([Code::DeadlineExceeded, Code::Cancelled].contains(&late.code()), "{late}");
    assert!(engine.next_cancel().is_some());
    // A connection that ends takes all of its requests with it.
    let caller = client.caller();
    let asked = client.runtime.spawn(async move { caller.infer(one(), &[]).await });
    engine.wait_until_asked(3);
    drop((asked, client));
    assert!(engine.next_cancel().is_some());
    stack.wait_for_metric("penstock_requests_in_flight", 0.0);
}

#[test]
fn a_stream_is_answered_in_order_and_survives_its_errors() {
    let stack = Stack::builder().start();
    let client = stack.grpc_client();
    let asked: Vec<_> =
        (0..100).map(|at| ModelInferRequest { id: at.to_string(), ..digit(at % 10) }).collect();
    let (answers, end) = client.stream(asked.clone());
    end.unwrap();
    assert_eq!(answers.len(), asked.len());
    for (at, answer) in answers.into_iter().enumerate() {
        let answer = answer.infer_response.expect("an answer");
        assert_eq!(
            (answer.id.as_str(), numbers(&answer, "digit")),
            (at.to_string().as_str(), vec![at as i64 % 10])
        );
    }
    let unknown = ModelInferRequest { model_name: "nothing".into(), id: "lost".into(), ..digit(1) };
    let (answers, end) = client.stream(vec![digit(1), unknown, ModelInferRequest::default(), digit(2)]);
    end.unwrap();
    let said: Vec<_> = answers.iter().map(|answer| answer.error_message.as_str()).collect();
    assert!(said[0].is_empty() && said[3].is_empty(), "{said:?}");
    assert!(said[1].contains("no model `nothing`") && said[2].contains("no model_name"), "{said:?}");
    assert_eq!(answers[1].infer_response.as_ref().expect("the id").id, "lost");
}

#[test]
fn a_stream_that_is_cancelled_cancels_all_of_its_requests() {
    let engine = ScriptedEngine::start(&[("m", 1, Behaviour::Hang)]);
    let stack = Stack::builder().external_engine(engine.socket()).start();
    let client = stack.grpc_client();
    let caller = client.caller();
    let asked =
        client.runtime.spawn(async move { caller.stream(vec![one(), one(), one()]).await?.message().await });
    engine.wait_until_asked(3);
    asked.abort();
    assert!((0..3).all(|_| engine.next_cancel().is_some()));
    stack.wait_for_metric("penstock_requests_in_flight", 0.0);
    stack.wait_for_metric("penstock_refusals_total{reason=\"client_gone\",model=\"m\"}", 3.0);
}

#[test]
fn in_flight_requests_finish_before_the_process_ends() {
    let engine = ScriptedEngine::start(&[("m", 1, Behaviour::Hold)]);
    let mut stack = Stack::builder().external_engine(engine.socket()).start();
    let clients: Vec<GrpcClient> = (0..4).map(|_| stack.grpc_client()).collect();
    let asked: Vec<_> = clients
        .iter()
        .map(|client| {
            let caller = client.caller();
            client.runtime.spawn(async move { caller.infer(one(), &[]).await })
        })
        .collect();
    stack.wait_for_metric("penstock_requests_in_flight", 4.0);
    stack.signal(rustix::process::Signal::TERM);
    eventually("the listener to close", || std::net::TcpStream::connect(stack.grpc).is_err().then_some(()));
    engine.set("m", 1, Behaviour::Answer);
    for (client, asked) in clients.iter().zip(asked) {
        client.runtime.block_on(asked).expect("no panic").expect("an answer");
    }
    assert!(stack.wait().success());
}

#[test]
fn a_trace_goes_on() {
    let collector = Collector::start();
    let config = format!("traces: {{endpoint: 'http://{}', sample: 0}}", collector.address);
    let stack = Stack::builder().config(&config).start();
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    stack.grpc_client().infer(digit(4), &[("traceparent", parent)]).unwrap();
    let spans = eventually("three spans", || Some(collector.spans()).filter(|spans| spans.len() >= 3));
    let server =
        spans.iter().find(|span| span.name == "inference.GRPCInferenceService/ModelInfer").expect("a span");
    assert_eq!(server.parent_span_id, 0xb7ad_6b71_6920_3331_u64.to_be_bytes());
    let words: Vec<_> = server.attributes.iter().map(|attribute| attribute.key.as_str()).collect();
    for word in ["rpc.system.name", "rpc.method", "rpc.response.status_code", "penstock.version"] {
        assert!(words.contains(&word), "{word} in {words:?}");
    }
    assert!(spans.iter().any(|span| span.name == "batch" && span.parent_span_id == server.span_id));
}
