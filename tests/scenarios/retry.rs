//! A request that the engine did not run is asked once more, where that may help.

use harness::{Behaviour, ScriptedEngine, Stack, infer_body};

fn body() -> Vec<u8> {
    infer_body("x", [1, 1], &[0.0])
}

fn stack(engine: &ScriptedEngine, policy: &str) -> Stack {
    Stack::builder().policies(policy).external_engine(engine.socket()).start()
}

#[test]
fn a_version_that_goes_while_a_request_comes_is_replaced_by_whichever_the_policy_names_then() {
    for policy in [
        "models: {}\n",
        "models: {m: {canary: {baseline: 1, candidate: 2, steps: [99.9999]}}}\n", // who is not ready gets nothing
    ] {
        let engine = ScriptedEngine::start(&[("m", 1, Behaviour::Answer), ("m", 2, Behaviour::Vanish)]);
        let stack = stack(&engine, policy);
        let answer = stack.client().infer("m", &[], &body());
        assert_eq!((answer.status, answer.header("x-penstock-version")), (200, "1"), "{}", answer.text());
        stack.wait_for_metric(
            "penstock_retries_total{model=\"m\",reason=\"unloaded\",outcome=\"answered\"}",
            1.0,
        );
    }
}

#[test]
fn a_version_in_the_path_is_not_replaced_nor_does_the_same_engine_change_its_mind() {
    let engine = ScriptedEngine::start(&[
        ("m", 1, Behaviour::Answer),
        ("m", 2, Behaviour::Vanish),
        ("stops", 1, Behaviour::Stopping),
        ("busy", 1, Behaviour::Busy),
        ("fails", 1, Behaviour::Fail),
    ]);
    let stack = stack(&engine, "models: {}\n");
    let client = stack.client();
    let pinned = client.post("/v2/models/m/versions/2/infer", &[], &body());
    assert_eq!((pinned.status, pinned.error().as_str()), (503, "it is gone"));
    assert_eq!(client.infer("stops", &[], &body()).status, 503);
    assert_eq!(client.infer("busy", &[], &body()).status, 503);
    assert_eq!(client.infer("fails", &[], &body()).status, 500);
    stack.wait_for_metric("penstock_requests_total{model=\"fails\",version=\"1\",outcome=\"failed\"}", 1.0);
    assert!(!stack.metrics().contains("penstock_retries_total{"), "{}", stack.metrics());
}
