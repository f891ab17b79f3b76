//! The access log: a line for each request, and the id that ties it to its answer.

use harness::{Behaviour, Client, Out, ScriptedEngine, Stack, eventually, infer_body};
use rustix::process::{Signal, kill_process};
use serde_json::Value;

/// Of infer requests; the harness has asked whether it is ready.
fn lines(stack: &Stack, at_least: usize) -> Vec<Value> {
    eventually("access lines", || {
        let out = stack.out();
        let whole = out.rfind('\n').map_or("", |end| &out[..end]);
        let all = whole.lines().map(|line| serde_json::from_str(line).expect("nothing but objects"));
        let lines: Vec<Value> = all.filter(|line: &Value| line["method"] == "POST").collect();
        (lines.len() >= at_least).then_some(lines)
    })
}

#[test]
fn a_line_an_answer_and_its_request_have_one_id() {
    let engine = ScriptedEngine::start(&[("m", 1, Behaviour::Answer)]);
    let stack =
        Stack::builder().config("log: {format: json, access: 1}").external_engine(engine.socket()).start();
    let client = stack.client();
    let answer = client.infer("m", &[("x-request-id", "order-7")], &infer_body("x", [1, 1], &[0.0]));
    assert_eq!((answer.status, answer.header("x-request-id")), (200, "order-7"));
    let refused = client.infer("m", &[], b"{}");
    let made_up = refused.header("x-request-id").to_owned();
    let lines = lines(&stack, 2);
    let (served, refused) = (&lines[0], &lines[1]);
    assert_eq!(served["request_id"], "order-7");
    assert_eq!(
        (&served["status"], &served["model"], &served["version"]),
        (&200.into(), &"m".into(), &1.into())
    );
    assert_eq!(served["route"], "/v2/models/{model}/infer");
    assert!(served["duration_ms"].as_f64().expect("a number") > 0.0);
    assert_eq!(served.get("reason"), None);
    assert_eq!((&refused["request_id"], &refused["reason"]), (&made_up.into(), &"invalid".into()));
    let log = stack.log();
    let events: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    assert!(events.iter().all(|event| event["level"].is_string() && event["timestamp"].is_string()), "{log}");
}

#[test]
fn a_line_says_how_long_another_server_took() {
    let there_engine = ScriptedEngine::start(&[("m", 7, Behaviour::Answer)]);
    let there = Stack::builder().external_engine(there_engine.socket()).start();
    let engine = ScriptedEngine::start(&[("m", 1, Behaviour::Answer)]);
    let policies = format!(
        "models: {{m: {{remote: {{2: {{url: 'http://{}/v2/models/m/infer'}}}}, split: {{weights: {{2: 1}}}}}}}}\n",
        there.http
    );
    let stack = Stack::builder()
        .config("log: {format: json, access: 1}")
        .policies(&policies)
        .external_engine(engine.socket())
        .start();
    assert_eq!(stack.client().infer("m", &[], &infer_body("x", [1, 1], &[0.0])).status, 200);
    let ms = |name: &str| lines(&stack, 1)[0][name].as_f64().expect("a number");
    assert!(0.0 < ms("remote_ms") && ms("remote_ms") <= ms("duration_ms"), "{:?}", lines(&stack, 1));
}

#[test]
fn a_line_says_in_whose_place_a_version_has_answered_and_why() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    let engine = ScriptedEngine::start(&[("m", 1, Behaviour::Answer)]);
    let policies = format!(
        "models: {{m: {{remote: {{2: {{url: 'http://{}/'}}}}, split: {{weights: {{2: 1}}}}, \
         breaker: {{failures: 2, open_for: 1h, max_open_for: 1h, fallback: {{version: 1}}}}}}}}\n",
        nobody.expect("a port")
    );
    let stack = Stack::builder()
        .config("log: {format: json, access: 1}")
        .policies(&policies)
        .external_engine(engine.socket())
        .start();
    let client = stack.client();
    (0..3).for_each(|_| assert_eq!(client.infer("m", &[], &infer_body("x", [1, 1], &[0.0])).status, 200));
    let lines = lines(&stack, 3);
    for line in &lines {
        assert_eq!((&line["version"], &line["pick"]), (&1.into(), &"fallback".into()), "{line}");
        assert_eq!(line["instead_of"], 2, "{line}");
    }
    let retries: Vec<_> = lines.iter().map(|line| line["retry"].as_str()).collect();
    assert_eq!(retries, [Some("unreachable"), Some("unreachable"), None], "the last one is not even tried");
}

#[test]
fn a_line_says_that_the_baseline_has_answered_for_a_candidate_that_is_not_ready() {
    let engine = ScriptedEngine::start(&[("m", 1, Behaviour::Answer)]);
    let stack = Stack::builder()
        .config("log: {format: json, access: 1}")
        .policies("models: {m: {canary: {baseline: 1, candidate: 2, steps: [99.9], dwell: 1h}}}\n")
        .external_engine(engine.socket())
        .start();
    let client = stack.client();
    (0..5).for_each(|_| assert_eq!(client.infer("m", &[], &infer_body("x", [1, 1], &[0.0])).status, 200));
    let lines = lines(&stack, 5);
    assert!(lines.iter().all(|line| line["version"] == 1), "{lines:?}");
    assert!(lines.iter().any(|line| line["instead_of"] == 2), "{lines:?}");
}

#[test]
fn a_line_says_that_the_baseline_has_answered_for_a_candidate_that_a_rule_names_and_that_was_rolled_back() {
    let engine = ScriptedEngine::start(&[("m", 1, Behaviour::Answer), ("m", 2, Behaviour::Answer)]);
    let stack = Stack::builder()
        .config("log: {format: json, access: 1}")
        .policies(
            "models: {m: {rules: [{when: {header: tester, present: true}, use: 2}], canary: {baseline: 1, candidate: 2, steps: [50], dwell: 1h}}}\n",
        )
        .external_engine(engine.socket())
        .start();
    let client = stack.client();
    let ask =
        || assert_eq!(client.infer("m", &[("tester", "ana")], &infer_body("x", [1, 1], &[0.0])).status, 200);
    ask();
    assert_eq!(Client::new(stack.admin).post("/canaries/m/abort", &[], b"").status, 200);
    ask();
    let lines = lines(&stack, 2);
    assert_eq!((&lines[0]["version"], lines[0].get("instead_of")), (&2.into(), None), "{lines:?}");
    assert_eq!((&lines[1]["version"], &lines[1]["instead_of"]), (&1.into(), &2.into()), "{lines:?}");
    assert!(lines.iter().all(|line| line["pick"] == "rule"), "{lines:?}");
}

#[test]
fn answers_are_sampled_and_refusals_are_not() {
    let engine = ScriptedEngine::start(&[("m", 1, Behaviour::Answer)]);
    let stack =
        Stack::builder().config("log: {format: json, access: 0}").external_engine(engine.socket()).start();
    let client = stack.client();
    for _ in 0..20 {
        assert_eq!(client.infer("m", &[], &infer_body("x", [1, 1], &[0.0])).status, 200);
    }
    assert_eq!(client.infer("nobody", &[], &infer_body("x", [1, 1], &[0.0])).status, 404);
    let lines = lines(&stack, 1);
    assert!(lines.iter().all(|line| line["status"] != 200), "{lines:?}");
    let last = lines.last().expect("a line");
    assert_eq!((&last["reason"], &last["path"]), (&"not_found".into(), &"/v2/models/nobody/infer".into()));
}

#[test]
fn whoever_does_not_read_what_the_process_says_stops_nothing() {
    says_much_to(Out::FullPipe, "pretty");
}

#[test]
fn a_log_that_cannot_be_written_stops_nothing() {
    std::thread::scope(|scope| {
        for (out, format) in [(Out::ClosedPipe, "json"), (Out::FullDisk, "pretty"), (Out::FullDisk, "json")] {
            scope.spawn(move || says_much_to(out, format));
        }
    });
}

/// Has the process and its engine say much, and sees that both go on.
fn says_much_to(out: Out, format: &str) {
    let folder = tempfile::tempdir().expect("the temporary folder takes files");
    let file = folder.path().join("policies.yaml");
    std::fs::write(&file, "models: {}").expect("the temporary folder takes files");
    let log = format!("log: {{format: {format}, access: 1}}");
    let stack = Stack::builder().policy_file(&file).config(&log).out(out).start();
    let client = stack.client();
    // Of each of them much is said; a pipe holds 64 KiB.
    for at in 1..=8 {
        let mistakes: String =
            (0..50).map(|model| format!("  m{model}: {{deadline: '{}'}}\n", "x".repeat(900 + at))).collect();
        std::fs::write(&file, format!("models:\n{mistakes}")).expect("the temporary folder takes files");
        stack.wait_for_metric("penstock_policy_rejected_total", at as f64);
    }
    std::fs::write(&file, "models: {digits: {split: {weights: {2: 1}}}}")
        .expect("the temporary folder takes files");
    let body = infer_body("pixels", [1, 64], &[0.0; 64]);
    let answered_by = || client.infer("digits", &[], &body).header("x-penstock-version").to_owned();
    eventually("the policy to be in force", || (answered_by() == "2").then_some(()));
    kill_process(stack.engine_pid().expect("an engine"), Signal::KILL).expect("it runs");
    stack.wait_for_metric("penstock_engine_starts_total", 2.0);
    eventually("another engine", || (client.infer("digits", &[], &body).status == 200).then_some(()));
}

#[test]
fn whoever_does_not_read_the_lines_holds_up_nobody() {
    let engine = ScriptedEngine::start(&[("m", 1, Behaviour::Answer)]);
    // Stands for a collector that has stopped reading: a disk that is full, a pipe that nobody empties.
    let stack = Stack::builder()
        .config("log: {format: json, access: 1}")
        .out(Out::FullPipe)
        .external_engine(engine.socket())
        .start();
    let client = stack.client();
    let body = infer_body("x", [1, 1], &[0.0]);
    eventually("dropped lines", || {
        for _ in 0..1000 {
            assert_eq!(client.infer("m", &[], &body).status, 200);
        }
        (stack.metric("penstock_access_log_dropped_total") > 0.0).then_some(())
    });
}
