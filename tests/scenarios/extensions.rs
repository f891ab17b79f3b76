//! Triton's extensions at the socket, where an engine that does as it is told shows more than real clients can.

use harness::{Behaviour, ScriptedEngine, Stack, eventually, infer_body};
use serde_json::{Value, json};

fn statistics(stack: &Stack, path: &str) -> Value {
    let answer = stack.client().get(path);
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()["model_stats"].clone()
}

#[test]
fn what_failed_is_counted_by_reason_and_what_waits_is_shown() {
    let engine = ScriptedEngine::start(&[("m", 1, Behaviour::Hold), ("m", 2, Behaviour::Answer)]);
    let stack = Stack::builder().external_engine(engine.socket()).start();
    let path = "/v2/models/m/versions/1/infer";
    let body = infer_body("x", [1, 1], &[0.0]);
    std::thread::scope(|scope| {
        let first = scope.spawn(|| stack.client().post(path, &[], &body).status);
        stack.wait_for_metric("nv_inference_pending_request_count{model=\"m\",version=\"1\"}", 1.0);
        engine.set("m", 1, Behaviour::Answer);
        assert_eq!(first.join().expect("no panic"), 200);
    });
    for (behaviour, status) in [(Behaviour::Fail, 500), (Behaviour::Overloaded, 503)] {
        engine.set("m", 1, behaviour);
        assert_eq!(stack.client().post(path, &[], &body).status, status);
    }
    let series = |name: &str, reason: &str| format!("{name}{{model=\"m\",{reason}version=\"1\"}}");
    stack.wait_for_metric(&series("nv_inference_request_failure", "reason=\"REJECTED\","), 1.0);
    assert_eq!(stack.metric(&series("nv_inference_request_failure", "reason=\"BACKEND\",")), 1.0);
    assert_eq!(stack.metric(&series("nv_inference_request_success", "")), 1.0);
    assert_eq!(stack.metric(&series("nv_inference_pending_request_count", "")), 0.0);
    let told = statistics(&stack, "/v2/models/m/versions/1/stats");
    assert_eq!(told[0]["inference_stats"]["fail"]["count"], 2);
    assert_eq!(told[0]["inference_stats"]["success"]["count"], 1);
    let versions: Vec<_> = statistics(&stack, "/v2/models/stats")
        .as_array()
        .expect("versions")
        .iter()
        .map(|one| one["version"].clone())
        .collect();
    assert_eq!(versions, [json!("1"), json!("2")]);
}

#[test]
fn what_a_shadow_and_another_server_have_done_is_told_of_them() {
    let there_engine = ScriptedEngine::start(&[("m", 7, Behaviour::Answer)]);
    let there = Stack::builder().external_engine(there_engine.socket()).start();
    let engine = ScriptedEngine::start(&[("m", 1, Behaviour::Answer), ("m", 2, Behaviour::Answer)]);
    let policy = format!(
        "models: {{m: {{remote: {{3: {{url: 'http://{}/v2/models/m/infer'}}}}, split: {{weights: {{1: 1}}}}, \
         shadow: {{version: 2, percent: 100}}}}}}\n",
        there.http
    );
    let stack = Stack::builder().policies(&policy).external_engine(engine.socket()).start();
    let body = infer_body("x", [1, 1], &[0.0]);
    assert_eq!(stack.client().infer("m", &[], &body).status, 200);
    let remote = stack.client().post("/v2/models/m/versions/3/infer", &[], &body);
    assert_eq!(remote.status, 200, "{}", remote.text());
    let counts = || {
        let told = statistics(&stack, "/v2/models/m/stats");
        let count =
            |one: &Value| (one["version"].clone(), one["inference_stats"]["success"]["count"].clone());
        told.as_array().expect("versions").iter().map(count).collect::<Vec<_>>()
    };
    // The other server does not say how it batches; that it has answered is known. Both have been copied.
    let expected: Vec<_> =
        [("1", 1), ("2", 2), ("3", 1)].map(|(version, count)| (json!(version), json!(count))).into();
    eventually("all three to be counted", || (counts() == expected).then_some(()));
}
