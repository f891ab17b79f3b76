//! Callers in protocols that another server does not speak are answered by it all the same, as if the version were here. The
//! other server is a second penstock.

use harness::{Behaviour, Client, GrpcClient, Response, ScriptedEngine, Stack, grpc_request, repository};
use protocol::inference::ModelInferRequest;
use protocol::inference::infer_parameter::ParameterChoice;
use protocol::inference::model_infer_request::InferRequestedOutputTensor;
use protocol::inference::{InferParameter, ModelInferResponse};
use rustix::process::Signal;
use serde_json::{Value, json};
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
    assert!(lost.message().starts_with("the server of this version: "), "{}", lost.message());
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

#[test]
fn copies_of_what_came_over_grpc_go_to_another_server_too() {
    let (here, _there) = here_and_there("split: {weights: {2: 1}}, shadow: {version: 9}");
    for copies in 1..=3 {
        assert_eq!(ask(&here.grpc_client(), request("")).model_version, "2");
        let series = "penstock_shadows_total{model=\"digits\",version=\"9\",outcome=\"agreed\"}";
        here.wait_for_metric(series, f64::from(copies));
    }
}
