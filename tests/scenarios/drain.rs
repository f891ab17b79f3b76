//! Stopping loses nothing that is in flight.

use harness::{Behaviour, ScriptedEngine, Stack, eventually, infer_body, repository};
use rustix::process::{Signal, test_kill_process};

#[test]
fn in_flight_requests_finish_and_then_the_process_ends() {
    let mut stack = Stack::builder().models(repository("tests/data/models")).start_unready();
    eventually("slow to be ready", || {
        (stack.client().get("/v2/models/slow/ready").status == 200).then_some(())
    });
    let engine = stack.engine_pid().expect("an engine");
    let client = stack.client();
    let answer = std::thread::scope(|scope| {
        let asked = scope.spawn(|| client.infer("slow", &[], &infer_body("x", [1, 4], &[1.0; 4])));
        eventually("the request to be in flight", || {
            (stack.metric("penstock_requests_in_flight") == 1.0).then_some(())
        });
        stack.signal(Signal::TERM);
        asked.join().expect("no panic")
    });
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(stack.wait().success());
    assert!(test_kill_process(engine).is_err(), "the engine has stopped first");
}

#[test]
fn readiness_goes_first_and_the_doors_stay_open_for_the_delay() {
    let engine = ScriptedEngine::start(&[("m", 1, Behaviour::Answer)]);
    let mut stack =
        Stack::builder().config("drain: {delay: 1s, timeout: 5s}").external_engine(engine.socket()).start();
    stack.signal(Signal::TERM);
    eventually("not ready", || (stack.client().get("/v2/health/ready").status == 503).then_some(()));
    assert_eq!(stack.client().get("/v2/models/m/ready").status, 503);
    assert_eq!(
        stack.client().infer("m", &[], &infer_body("x", [1, 1], &[0.0])).status,
        200,
        "late comers are served"
    );
    assert!(stack.wait().success());
}

#[test]
fn a_request_that_never_ends_is_given_up_after_the_timeout() {
    let engine = ScriptedEngine::start(&[("m", 1, Behaviour::Hang)]);
    let mut stack =
        Stack::builder().config("drain: {delay: 0s, timeout: 1s}").external_engine(engine.socket()).start();
    let client = stack.client();
    std::thread::scope(|scope| {
        scope.spawn(|| client.try_post("/v2/models/m/infer", &[], &infer_body("x", [1, 1], &[0.0])));
        eventually("the request to be in flight", || {
            (stack.metric("penstock_requests_in_flight") == 1.0).then_some(())
        });
        stack.signal(Signal::INT);
        assert!(stack.wait().success());
    });
    assert!(stack.log().contains("still in flight"), "{}", stack.log());
}
