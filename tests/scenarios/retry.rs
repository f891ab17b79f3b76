//! A request that the engine did not run is asked once more, where that may help.

use harness::{Behaviour, ScriptedEngine, Stack, eventually, infer_body};

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
            "penstock_retries_total{model=\"m\",version=\"2\",reason=\"unloaded\",outcome=\"answered\"}",
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

/// They wait in an engine that gives its place to another one and then says that it has run none of them. All are there before
/// it does, and the other one serves before it says so.
#[test]
fn what_an_engine_that_was_replaced_has_not_run_is_asked_of_the_next_one_within_the_budget() {
    const WAITING: usize = 30;
    let old = ScriptedEngine::start(&[("m", 1, Behaviour::Hold), ("old", 1, Behaviour::Answer)]);
    let stack = stack(&old, "models: {}\n");
    let is_ready =
        |model: &str| stack.client().get(&format!("/v2/models/{model}/versions/1/ready")).status == 200;
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let ask = || {
            let answer = stack.client().infer("m", &[], &body());
            if answer.status == 503 {
                assert_eq!(answer.error(), "the engine is not available: it is stopping");
            }
            answer.status
        };
        let asked: Vec<_> = (0..WAITING).map(|_| scope.spawn(ask)).collect();
        eventually("all to wait", || {
            (stack.metric("penstock_requests_in_flight") == WAITING as f64).then_some(())
        });
        let _new = old.succeeded_by(&[("m", 1, Behaviour::Answer), ("new", 1, Behaviour::Answer)]);
        eventually("the other engine to serve", || (is_ready("new") && !is_ready("old")).then_some(()));
        old.set("m", 1, Behaviour::Stopping);
        asked.into_iter().map(|one| one.join().expect("an answer")).collect()
    });
    let answered = statuses.iter().filter(|status| **status == 200).count();
    assert!(statuses.iter().all(|status| [200, 503].contains(status)), "{statuses:?}");
    // Ten are saved up, and a tenth of the requests.
    assert!((10..=10 + WAITING / 10).contains(&answered), "{answered} of {WAITING} were answered");
    let retries = |outcome: &str| {
        format!(
            "penstock_retries_total{{model=\"m\",version=\"1\",reason=\"engine_replaced\",outcome=\"{outcome}\"}}"
        )
    };
    stack.wait_for_metric(&retries("answered"), answered as f64);
    stack.wait_for_metric(&retries("over_budget"), (WAITING - answered) as f64);
}
