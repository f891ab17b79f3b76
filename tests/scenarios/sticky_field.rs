//! Users who are told apart by what stands in the bodies of their requests.

use harness::{Behaviour, Client, ScriptedEngine, Stack};
use protocol::inference::InferParameter;
use protocol::inference::infer_parameter::ParameterChoice;
use serde_json::{Value, json};

fn stack(engine: &ScriptedEngine, sticky: &str) -> Stack {
    let policy =
        format!("models: {{m: {{split: {{weights: {{1: 1, 2: 1}}, sticky: {sticky}, without_key: 3}}}}}}\n");
    Stack::builder().policies(&policy).external_engine(engine.socket()).start()
}

fn versions() -> ScriptedEngine {
    let version = |version| ("m", version, Behaviour::Answer);
    ScriptedEngine::start(&[version(1), version(2), version(3)])
}

fn ask(client: &Client, parameters: Value, user: Value) -> String {
    let inputs = json!([
        {"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [0.0]},
        {"name": "user", "shape": [1], "datatype": "INT64", "data": [user]},
    ]);
    let body = json!({"parameters": parameters, "inputs": inputs}).to_string();
    let answer = client.infer("m", &[], body.as_bytes());
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.header("x-penstock-version").to_owned()
}

/// Asks as forty users do, each of them twice.
fn check(client: &Client, ask_as: impl Fn(&Client, u64) -> String) {
    let first: Vec<_> = (0..40).map(|user| ask_as(client, user)).collect();
    let again: Vec<_> = (0..40).map(|user| ask_as(client, user)).collect();
    assert_eq!(first, again, "a user stays with a version");
    for version in ["1", "2"] {
        let users = first.iter().filter(|got| *got == version).count();
        assert!((5..=35).contains(&users), "{users} of 40 users have version {version}");
    }
}

#[test]
fn a_parameter_of_the_request_tells_users_apart() {
    let (engine, name) = (versions(), |user: u64| json!({"user_id": format!("user-{user}")}));
    let stack = stack(&engine, "{parameter: user_id}");
    let client = stack.client();
    check(&client, |client, user| ask(client, name(user), json!(0)));
    let (text, number) = (json!({"user_id": "7"}), json!({"user_id": 7}));
    assert_eq!(ask(&client, text, json!(0)), ask(&client, number, json!(0)), "a number is its digits");
    for nobody in [json!({}), json!({"user_id": ""}), json!({"user_id": [1]})] {
        assert_eq!(ask(&client, nobody, json!(0)), "3", "the declared answer where there is no key");
    }
}

#[test]
fn the_same_user_has_the_same_version_over_grpc() {
    let engine = versions();
    let stack = stack(&engine, "{parameter: user_id}");
    let (client, grpc) = (stack.client(), stack.grpc_client());
    let ask_over_grpc = |choice: Option<ParameterChoice>| {
        let mut request = harness::grpc_request("m", "x", [1, 1], &[0.0]);
        request.parameters.extend(
            choice.map(|choice| ("user_id".into(), InferParameter { parameter_choice: Some(choice) })),
        );
        let answer = grpc.infer(request, &[]).expect("an answer");
        answer.metadata().get("x-penstock-version").expect("it says so").to_str().expect("text").to_owned()
    };
    for user in 0..20_i64 {
        let over_http = ask(&client, json!({"user_id": user}), json!(0));
        assert_eq!(ask_over_grpc(Some(ParameterChoice::Int64Param(user))), over_http);
        assert_eq!(ask_over_grpc(Some(ParameterChoice::StringParam(user.to_string()))), over_http);
    }
    for nobody in
        [None, Some(ParameterChoice::DoubleParam(7.0)), Some(ParameterChoice::StringParam(String::new()))]
    {
        assert_eq!(ask_over_grpc(nobody), "3", "the declared answer where there is no key");
    }
}

#[test]
fn the_first_element_of_an_input_tells_users_apart() {
    let engine = versions();
    let stack = stack(&engine, "{input: user}");
    let client = stack.client();
    check(&client, |client, user| ask(client, json!({}), json!(user)));
    let without = harness::infer_body("x", [1, 1], &[0.0]);
    assert_eq!(client.infer("m", &[], &without).header("x-penstock-version"), "3");
    let pinned = client.post("/v2/models/m/versions/2/infer", &[], &without);
    assert_eq!(pinned.header("x-penstock-version"), "2");
    let broken = client.infer("m", &[], b"{\"inputs\": [}");
    assert_eq!(broken.status, 400, "{}", broken.text());
    assert_eq!(client.infer("unknown", &[], &without).status, 404);
}

#[test]
fn a_body_that_only_another_server_understands_has_no_key() {
    let there_engine = ScriptedEngine::start(&[("m", 7, Behaviour::Answer)]);
    let there = Stack::builder().external_engine(there_engine.socket()).start();
    let policy = format!(
        "models: {{m: {{remote: {{2: {{url: 'http://{}/v2/models/m/infer'}}}}, split: {{weights: {{1: 1}}, sticky: {{parameter: u}}, \
         without_key: 2}}}}}}\n",
        there.http
    );
    let engine = versions();
    let stack = Stack::builder().policies(&policy).external_engine(engine.socket()).start();
    let answer = stack.client().infer("m", &[], b"words of its own");
    assert_eq!((answer.status, answer.header("x-penstock-version")), (400, "2"), "{}", answer.text());
    let body = json!({"parameters": {"u": "ana"}, "inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [0.0]}]});
    let answer = stack.client().infer("m", &[], body.to_string().as_bytes());
    assert_eq!((answer.status, answer.header("x-penstock-version")), (200, "1"), "{}", answer.text());
}
