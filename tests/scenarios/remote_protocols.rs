//! Callers in protocols that another server does not speak are answered by it all the same, as if the version were here. The
//! other server is a second penstock.

use harness::{Behaviour, Client, GrpcClient, Response, ScriptedEngine, Stack, grpc_request, repository};
use protocol::inference::ModelInferRequest;
use protocol::inference::infer_parameter::ParameterChoice;
use protocol::inference::model_infer_request::InferRequestedOutputTensor;
use protocol::inference::{InferParameter, ModelInferResponse};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::mpsc::{Receiver, channel};
use tonic::Code;

/// Two stacks that have the same versions; what is version 9 of the first is the second's version 2.
fn here_and_there(more: &str) -> (Stack, Stack) {
    let there = Stack::builder().start();
    let url = format!("http://{}/v2/models/digits/versions/2/infer", there.http);
    let policies = format!("models: {{digits: {{remote: {{9: {{url: '{url}'}}}}, {more}}}}}\n");
    (Stack::builder().policies(&policies).start(), there)
}

fn seven() -> Vec<f32> {
    let file = std::fs::read(repository("configs/demo/requests/digit-7.json")).expect("a sample request");
    let request: Value = serde_json::from_slice(&file).expect("JSON");
    let pixels = request["inputs"][0]["data"].as_array().expect("an array");
    pixels.iter().map(|pixel| pixel.as_f64().expect("a number") as f32).collect()
}

fn request(version: &str) -> ModelInferRequest {
    ModelInferRequest {
        model_version: version.into(),
        id: "a".into(),
        ..grpc_request("digits", "pixels", [1, 64], &seven())
    }
}

fn ask(client: &GrpcClient, request: ModelInferRequest) -> ModelInferResponse {
    client.infer(request, &[]).expect("an answer").into_inner()
}

#[test]
fn callers_over_grpc_get_what_the_other_server_computes() {
    let (here, there) = here_and_there("split: {weights: {9: 1}}");
    let (client, at_home) = (here.grpc_client(), there.grpc_client());
    let answer = client.infer(request(""), &[("x-request-timeout-ms", "20000")]).unwrap();
    assert_eq!(answer.metadata().get("x-penstock-version").unwrap(), "9");
    let want = ModelInferResponse { model_version: "9".into(), ..ask(&at_home, request("2")) };
    assert_eq!((answer.get_ref(), answer.get_ref().id.as_str()), (&want, "a"));
    let parameter = ParameterChoice::Int64Param(3);
    let classes = InferParameter { parameter_choice: Some(parameter) };
    let best = |version: &str| {
        let output = InferRequestedOutputTensor {
            name: "probabilities".into(),
            parameters: [("classification".to_owned(), classes.clone())].into(),
        };
        ModelInferRequest { outputs: vec![output], ..request(version) }
    };
    let (got, want) = (ask(&client, best("9")), ask(&at_home, best("2")));
    assert_eq!((&got.outputs, &got.raw_output_contents), (&want.outputs, &want.raw_output_contents));
    let (answers, end) = client.stream(vec![request("9"), request("1")]);
    assert!(end.is_ok());
    let versions: Vec<_> =
        answers.iter().map(|answer| answer.infer_response.as_ref().unwrap().model_version.as_str()).collect();
    assert_eq!(versions, ["9", "1"]);
    let wrong = client.infer(grpc_request("digits", "pixels", [1, 2], &[0.0, 1.0]), &[]).unwrap_err();
    assert_eq!(wrong.code(), Code::InvalidArgument);
    assert!(wrong.message().contains("[-1, 64]"), "in the other server's words: {}", wrong.message());
    here.wait_for_metric("penstock_requests_total{model=\"digits\",version=\"9\",outcome=\"served\"}", 3.0);
}

#[test]
fn callers_in_other_protocols_are_answered_in_their_own() {
    let (here, there) = here_and_there("split: {weights: {9: 1}}");
    let (client, at_home) = (here.client(), there.client());
    let post =
        |client: &Client, path: &str, body: &Value| client.post(path, &[], body.to_string().as_bytes());
    let rows = json!({"instances": [seven(), seven()]});
    let columns = json!({"inputs": {"pixels": [seven()]}});
    let row = json!({"pixels": seven()});
    for (policy, path, body) in [
        ("/v1/models/digits:predict", "/v1/models/digits/versions/2:predict", &rows),
        ("/v1/models/digits:predict", "/v1/models/digits/versions/2:predict", &columns),
        ("/v1/models/digits/versions/9:predict", "/v1/models/digits/versions/2:predict", &rows),
        ("/predictions/digits", "/predictions/digits/2", &row),
        ("/predictions/digits/9", "/predictions/digits/2", &row),
    ] {
        let (got, want): (Response, Response) = (post(&client, policy, body), post(&at_home, path, body));
        assert_eq!((got.status, got.header("x-penstock-version")), (200, "9"), "{policy}: {}", got.text());
        assert_eq!(got.json(), want.json(), "{policy}");
    }
    let wrong = post(&client, "/v1/models/digits:predict", &json!({"instances": [[1, 2]]}));
    assert_eq!((wrong.status, wrong.error().contains("[-1, 64]")), (400, true), "{}", wrong.text());
    let wrong = post(&client, "/predictions/digits", &json!({"pixels": "x"}));
    assert_eq!((wrong.status, &wrong.json()["type"]), (400, &json!("BadRequestException")));
}

#[test]
fn a_server_that_is_gone_is_told_in_the_words_of_each_protocol() {
    let (here, mut there) = here_and_there("split: {weights: {9: 1}}, breaker: {failures: 2, open_for: 1h}");
    there.signal(Signal::KILL);
    there.wait();
    let lost = here.grpc_client().infer(request(""), &[]).unwrap_err();
    assert_eq!(lost.code(), Code::Unavailable, "{}", lost.message());
    assert!(
        lost.message().starts_with("the server of this version cannot be reached: "),
        "{}",
        lost.message()
    );
    let lost =
        here.client().post("/predictions/digits", &[], json!({"pixels": seven()}).to_string().as_bytes());
    assert_eq!((lost.status, &lost.json()["type"]), (502, &json!("InternalServerException")));
    let tripped = here.grpc_client().infer(request(""), &[]).unwrap_err();
    assert_eq!(tripped.code(), Code::Unavailable, "its breaker counts whoever asks: {}", tripped.message());
    assert!(tripped.metadata().contains_key("retry-after"));
}

/// Who sends no datatypes can only be understood where somebody says what the model takes.
#[test]
fn a_model_that_only_the_other_server_has_is_asked_by_those_who_name_their_tensors() {
    let there = Stack::builder().start();
    let engine = ScriptedEngine::start(&[("other", 1, Behaviour::Answer)]);
    let url = format!("http://{}/v2/models/digits/infer", there.http);
    let policies =
        format!("models: {{digits: {{remote: {{9: {{url: '{url}'}}}}, split: {{weights: {{9: 1}}}}}}}}\n");
    let here = Stack::builder().policies(&policies).external_engine(engine.socket()).start();
    let answer = ask(&here.grpc_client(), request(""));
    assert_eq!((answer.model_version.as_str(), answer.outputs.len()), ("9", 2));
    let body = json!({"instances": [seven()]}).to_string();
    let refused = here.client().post("/v1/models/digits:predict", &[], body.as_bytes());
    assert_eq!((refused.status, refused.error().contains("use /v2")), (501, true), "{}", refused.text());
}

/// Version 1 takes other numbers than version 2, and both take the same words.
#[test]
fn who_sends_no_datatypes_is_understood_as_the_version_that_answers_takes_it() {
    let models = tempfile::tempdir().expect("a folder");
    for (version, datatype) in [("1", "INT64"), ("2", "FP32")] {
        let folder = models.path().join("bare").join(version);
        std::fs::create_dir_all(&folder).expect("a folder");
        std::fs::copy(repository("tests/data/models/bare/1/model.pt"), folder.join("model.pt"))
            .expect("copied");
        let tensor = |name: &str| format!("[{{name: {name}, datatype: {datatype}, shape: [-1, 2]}}]");
        let declared = format!("inputs: {}\noutputs: {}\nmax_batch: 4\n", tensor("x"), tensor("y"));
        std::fs::write(folder.join("model.yaml"), declared).expect("a file");
    }
    let nobody = harness::free_address();
    let policies = format!(
        "models: {{bare: {{remote: {{9: {{url: 'http://{nobody}/infer'}}}}, split: {{weights: {{9: 1}}}}, \
         breaker: {{failures: 1, open_for: 1h, fallback: {{version: 1}}}}}}}}\n"
    );
    let here = Stack::builder().models(models.path()).policies(&policies).start();
    let client = here.client();
    let post = |path: &str, body: &Value| client.post(path, &[], body.to_string().as_bytes());
    let rows = json!({"instances": [[1, 2]]});
    assert_eq!(post("/v1/models/bare/versions/9:predict", &rows).status, 502);
    let whole = post("/v1/models/bare:predict", &rows);
    assert_eq!((whole.status, whole.header("x-penstock-version")), (200, "1"), "{}", whole.text());
    assert_eq!(whole.text(), r#"{"predictions":[[2,4]]}"#);
    let raw = [1i64, 2].map(i64::to_le_bytes).concat();
    let whole = client.post("/v2/models/bare/infer", &[("inference-header-content-length", "0")], &raw);
    assert_eq!((whole.status, whole.header("x-penstock-version")), (200, "1"), "{}", whole.text());
    let broken = post("/v1/models/bare/versions/2:predict", &json!({"instances": [[0.25, 2]]}));
    assert_eq!(broken.json(), json!({"predictions": [[0.5, 4.0]]}));
}

/// A server of a few lines: it answers everybody the same over HTTP, and tells what it was asked.
fn scripted(body: &'static str) -> (SocketAddr, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    let (asked, asks) = channel();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut seen = Vec::new();
            let is_whole = |seen: &[u8]| {
                let text = String::from_utf8_lossy(seen).to_ascii_lowercase();
                let (head, _) = text.split_once("\r\n\r\n")?;
                let length = head.lines().find_map(|line| line.strip_prefix("content-length: "))?;
                let length: usize = length.parse().expect("a number");
                (seen.len() >= head.len() + 4 + length).then_some(())
            };
            while is_whole(&seen).is_none() {
                let mut chunk = [0; 4096];
                let Ok(read @ 1..) = stream.read(&mut chunk) else { break };
                seen.extend_from_slice(&chunk[..read]);
            }
            let length = body.len();
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
            let _ = stream.write_all((head + body).as_bytes()); // it may have left
            let _ = asked.send(String::from_utf8_lossy(&seen).into_owned());
        }
    });
    (address, asks)
}

/// Only another server has the model, and answers everybody with `body`.
fn only_there(body: &'static str) -> (Stack, ScriptedEngine, Receiver<String>) {
    only_there_which(body, "tensors: binary")
}

/// The same of a server of which more is said.
fn only_there_which(body: &'static str, more: &str) -> (Stack, ScriptedEngine, Receiver<String>) {
    let (there, asks) = scripted(body);
    let engine = ScriptedEngine::start(&[("other", 1, Behaviour::Answer)]);
    let policies = format!(
        "models: {{digits: {{remote: {{9: {{url: 'http://{there}/infer', {more}}}}}, split: {{weights: {{9: 1}}}}, \
         breaker: {{failures: 2}}}}}}\n"
    );
    let here = Stack::builder().policies(&policies).external_engine(engine.socket()).start();
    (here, engine, asks)
}

#[test]
fn an_answer_that_grpc_callers_cannot_be_told_is_no_failure_of_the_version() {
    let (here, _engine, _asks) =
        only_there(r#"{"outputs":[{"name":"y","datatype":"INT4","shape":[1],"data":[7]}]}"#);
    for _ in 0..5 {
        let untold = here.grpc_client().infer(request(""), &[]).unwrap_err();
        assert_eq!(untold.code(), Code::Unimplemented, "{}", untold.message());
        assert!(untold.message().contains("output `y` is INT4"), "{}", untold.message());
    }
    let told = here.client().infer("digits", &[], &harness::infer_body("pixels", [1, 1], &[0.0]));
    assert_eq!((told.status, told.json()["outputs"][0]["data"].clone()), (200, json!([7])));
}

#[test]
fn what_grpc_callers_say_beside_their_tensors_reaches_the_other_server() {
    let (here, _engine, asks) = only_there(
        r#"{"outputs":[{"name":"probabilities","datatype":"BYTES","shape":[1,2],"data":["0.9:7:seven","0.1:1:one"]}]}"#,
    );
    let number = |number| InferParameter { parameter_choice: Some(ParameterChoice::Int64Param(number)) };
    let output = InferRequestedOutputTensor {
        name: "probabilities".into(),
        parameters: [("classification".to_owned(), number(2))].into(),
    };
    let parameters = [("sequence_id".to_owned(), number(42))].into();
    let answer =
        ask(&here.grpc_client(), ModelInferRequest { outputs: vec![output], parameters, ..request("") });
    assert_eq!((answer.outputs[0].datatype.as_str(), &answer.outputs[0].shape[..]), ("BYTES", &[1, 2][..]));
    assert_eq!(answer.raw_output_contents[0], b"\x0b\0\0\x000.9:7:seven\x09\0\0\x000.1:1:one"[..]);
    let asked = asks.recv().expect("it was asked");
    assert!(asked.contains(r#""sequence_id":42"#) && asked.contains(r#""classification":2"#), "{asked}");
}

/// As MLServer is, which answers 500 to bytes after the JSON.
#[test]
fn a_server_that_takes_json_only_is_sent_nothing_else_whoever_asks() {
    let (here, _engine, asks) = only_there_which(
        r#"{"outputs":[{"name":"y","datatype":"FP32","shape":[1,1],"data":[7]}]}"#,
        "tensors: json",
    );
    let is_json = |asked: &str| {
        let (head, body) = asked.split_once("\r\n\r\n").expect("a request");
        let head = head.to_ascii_lowercase();
        assert!(
            head.contains("content-type: application/json") && !head.contains("inference-header"),
            "{head}"
        );
        serde_json::from_str::<Value>(body).expect("JSON")
    };
    let said = 7_f32.to_le_bytes();
    let answer = ask(&here.grpc_client(), request(""));
    assert_eq!((answer.id.as_str(), &answer.raw_output_contents[0][..]), ("a", &said[..]));
    let asked = is_json(&asks.recv().expect("it was asked"));
    assert_eq!((&asked["inputs"][0]["data"], asked.get("parameters")), (&json!(seven()), None));
    let input =
        json!({"name": "x", "datatype": "FP32", "shape": [1, 1], "parameters": {"binary_data_size": 4}});
    let head =
        json!({"inputs": [input], "parameters": {"binary_data_output": true, "unit": "mm"}}).to_string();
    let length = ("inference-header-content-length", &*head.len().to_string());
    let answer =
        here.client().infer("digits", &[length], &[head.as_bytes(), &0.5_f32.to_le_bytes()].concat());
    assert_eq!((answer.status, answer.header("x-penstock-version")), (200, "9"), "{}", answer.text());
    assert!(answer.body.ends_with(&said), "in the form that was asked for");
    let asked = is_json(&asks.recv().expect("it was asked"));
    assert_eq!((&asked["inputs"][0]["data"], &asked["parameters"]), (&json!([0.5]), &json!({"unit": "mm"})));
    let plain = harness::infer_body("x", [1, 1], &[0.0]);
    assert_eq!(here.client().infer("digits", &[("content-type", "application/json")], &plain).status, 200);
    let asked = asks.recv().expect("it was asked");
    assert!(asked.as_bytes().ends_with(&plain), "JSON goes there as it came");
}

#[test]
fn classes_that_nobody_has_ranked_are_not_guessed() {
    let (here, _engine, _asks) =
        only_there(r#"{"outputs":[{"name":"p","datatype":"FP32","shape":[2,2],"data":[0.1,0.2,0.3,0.4]}]}"#);
    let parameters = [(
        "classification".to_owned(),
        InferParameter { parameter_choice: Some(ParameterChoice::Int64Param(3)) },
    )];
    let output = InferRequestedOutputTensor { name: "p".into(), parameters: parameters.into() };
    let refused = here
        .grpc_client()
        .infer(ModelInferRequest { outputs: vec![output], ..request("") }, &[])
        .unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented, "{}", refused.message());
}

#[test]
fn copies_of_what_came_over_grpc_go_to_another_server_too() {
    let (here, _there) = here_and_there("split: {weights: {2: 1}}, shadow: {version: 9}");
    for copies in 1..=3 {
        assert_eq!(ask(&here.grpc_client(), request("")).model_version, "2");
        let series = "penstock_shadows_total{model=\"digits\",version=\"9\",outcome=\"agreed\"}";
        here.wait_for_metric(series, f64::from(copies));
    }
}
