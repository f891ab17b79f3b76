//! Stopping loses nothing that is in flight.

use harness::{Behaviour, ScriptedEngine, Stack, eventually, infer_body, repository};
use rustix::process::{Signal, test_kill_process};

#[test]
fn in_flight_requests_finish_and_then_the_process_ends() {
    let engine = ScriptedEngine::start(&[("m", 1, Behaviour::Hold)]);
    let mut stack = Stack::builder().external_engine(engine.socket()).start();
    std::thread::scope(|scope| {
        let asked: Vec<_> = (0..8)
            .map(|_| {
                let client = stack.client();
                scope.spawn(move || client.infer("m", &[], &infer_body("x", [1, 1], &[0.0])))
            })
            .collect();
        stack.wait_for_metric("penstock_requests_in_flight", 8.0);
        stack.signal(Signal::TERM);
        eventually("the listener to close", || {
            std::net::TcpStream::connect(stack.http).is_err().then_some(())
        });
        engine.set("m", 1, Behaviour::Answer);
        for answer in asked {
            let answer = answer.join().expect("no panic");
            assert_eq!(answer.status, 200, "{}", answer.text());
        }
    });
    assert!(stack.wait().success());
}

#[test]
fn the_engine_stops_before_the_proxy() {
    let mut stack = Stack::builder().models(repository("configs/demo/models")).start();
    let engine = stack.engine_pid().expect("an engine");
    stack.signal(Signal::TERM);
    assert!(stack.wait().success());
    assert!(test_kill_process(engine).is_err());
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
    stack.signal(Signal::INT); // enough of waiting
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
