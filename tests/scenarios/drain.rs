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
    std::thread::scope(|scope| {
        let asked: Vec<_> = (0..8)
            .map(|_| {
                let client = stack.client();
                scope.spawn(move || client.infer("slow", &[], &infer_body("x", [2, 4], &[1.0; 8])))
            })
            .collect();
        eventually("requests to be in flight", || {
            (stack.metric("penstock_requests_in_flight") >= 2.0).then_some(())
        });
        stack.signal(Signal::TERM);
        for answer in asked {
            let answer = answer.join().expect("no panic");
            assert_eq!(answer.status, 200, "{}", answer.text());
        }
    });
    assert!(stack.wait().success());
    assert!(test_kill_process(engine).is_err(), "the engine has stopped first");
}

#[test]
fn readiness_goes_first_and_the_doors_stay_open_for_the_delay() {
    let engine = ScriptedEngine::start(&[("m", 1, Behaviour::Answer)]);
    let mut stack =
        Stack::builder().config("drain: {delay: 10m, timeout: 5s}").external_engine(engine.socket()).start();
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

#[test]
fn clients_that_keep_their_connections_are_told_to_close_and_lose_nothing() {
    let engine = ScriptedEngine::start(&[("m", 1, Behaviour::Answer)]);
    let mut stack =
        Stack::builder().config("drain: {delay: 2s, timeout: 5s}").external_engine(engine.socket()).start();
    let stack_ref = &stack;
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(move || {
                let client = stack_ref.client();
                let body = infer_body("x", [1, 1], &[0.0]);
                loop {
                    let answer =
                        client.try_post("/v2/models/m/infer", &[], &body).expect("no request is lost");
                    assert_eq!(answer.status, 200, "{}", answer.text());
                    if answer.header("connection") == "close" {
                        return;
                    }
                }
            });
        }
        eventually("traffic", || {
            (stack_ref.metric("penstock_requests_total{model=\"m\",version=\"1\",outcome=\"served\"}")
                > 100.0)
                .then_some(())
        });
        stack_ref.signal(Signal::TERM);
    });
    assert!(stack.wait().success());
}
