//! A version is rolled out step by step, or rolled back, by what its requests show; a person can step in.

use harness::{Behaviour, Client, ScriptedEngine, Stack, binary, eventually, infer_body, repository};
use rustix::process::Signal;
use serde_json::Value;
use std::process::{Command, Output};

/// Steps that few requests decide: at most half of them may fail.
fn policy(candidate: u64, dwell: &str) -> String {
    format!(
        "models:\n  m:\n    canary:\n      baseline: 1\n      candidate: {candidate}\n      steps: [20, 60]\n      dwell: {dwell}\n      sticky: {{header: x-user-id}}\n      gates: {{errors: {{at_most: 50}}}}\n"
    )
}

fn versions() -> ScriptedEngine {
    ScriptedEngine::start(&[
        ("m", 1, Behaviour::Answer),
        ("m", 2, Behaviour::Answer),
        ("m", 3, Behaviour::Answer),
    ])
}

fn stack(engine: &ScriptedEngine, policy: &str) -> Stack {
    Stack::builder().policies(policy).external_engine(engine.socket()).config("state: state.json").start()
}

fn ask(client: &Client, user: usize) -> (u16, String) {
    let user = format!("user-{user}");
    let answer = client.infer("m", &[("x-user-id", &user)], &infer_body("x", [1, 1], &[0.0]));
    (answer.status, answer.header("x-penstock-version").to_owned())
}

fn status(stack: &Stack) -> Value {
    Client::new(stack.admin).get("/canaries").json()["m"].clone()
}

/// Of the latest verdict.
fn why(stack: &Stack) -> String {
    status(stack)["verdicts"].as_array().and_then(|verdicts| verdicts.last()).expect("a verdict")["why"]
        .to_string()
}

/// Asks until the rollout is in this phase; who answered everybody after that.
fn until(stack: &Stack, phase: &str) -> Vec<String> {
    let (client, mut user) = (stack.client(), 0);
    eventually(phase, || {
        for _ in 0..20 {
            ask(&client, user);
            user += 1;
        }
        (status(stack)["phase"] == phase).then_some(())
    });
    (0..50).map(|user| ask(&client, user).1).collect()
}

fn told(stack: &Stack, arguments: &[&str]) -> Output {
    let admin = stack.admin.to_string();
    Command::new(binary("penstock")).args(arguments).args(["--admin", &admin]).output().expect("it runs")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("text")
}

/// Over within a few requests, and within less time than there is between two looks at it.
#[test]
fn what_is_shown_of_a_rollout_begins_before_its_first_request() {
    let engine = ScriptedEngine::start(&[("m", 1, Behaviour::Answer), ("m", 2, Behaviour::Fail)]);
    let stack = Stack::builder()
        .policies("models: {m: {split: {weights: {1: 1}}}}\n")
        .external_engine(engine.socket())
        .start();
    let rollout = || Client::new(stack.monitor).get("/status").json()["canaries"]["m"].clone();
    std::fs::write(&stack.policies, policy(2, "1s")).expect("the policy can be written");
    stack.wait_for_metric("penstock_policy_generation", 2.0);
    let begun = rollout();
    assert_eq!(begun["history"]["points"].as_array().map(Vec::len), Some(1), "{begun:#}");
    assert_eq!(stack.metric("penstock_canary_step{model=\"m\",version=\"2\"}"), 1.0);
    until(&stack, "rolled_back");
    let over = eventually("its verdict", || {
        let rollout = rollout();
        (rollout["history"]["marks"].as_array().map(Vec::len) == Some(1)).then_some(rollout)
    });
    let points = over["history"]["points"].as_array().expect("points");
    let evidence = |point: &Value| point["gates"][0][0].as_f64().expect("evidence");
    assert!(evidence(&points[0]) < 0.1 && evidence(&points[points.len() - 1]) >= 1.0, "{over:#}");
}

#[test]
fn a_version_that_does_well_is_rolled_out_to_everybody() {
    let engine = versions();
    let stack = stack(&engine, &policy(2, "100ms"));
    let answered = until(&stack, "promoted");
    assert!(answered.iter().all(|version| version == "2"), "{answered:?}");
    let status = status(&stack);
    let verdicts = status["verdicts"].as_array().unwrap();
    let advanced: Vec<_> = verdicts.iter().filter(|record| record["verdict"] == "advance").collect();
    assert_eq!((advanced.len(), &advanced[0]["percent"]), (2, &Value::from(20.0)));
    assert!(advanced[0]["gates"][0]["rare"].as_f64() >= Some(20.0), "{status:#}");
    assert_eq!(stack.metric("penstock_canary_share{model=\"m\",version=\"2\"}"), 1.0);
    assert!(stack.log().contains("canary advances"), "{}", stack.log());
}

#[test]
fn a_version_that_fails_is_rolled_back_and_stays_so_over_a_restart_and_a_reload() {
    let engine = versions();
    engine.set("m", 2, Behaviour::Fail);
    let mut stack = stack(&engine, &policy(2, "1h"));
    let answered = until(&stack, "rolled_back");
    assert!(answered.iter().all(|version| version == "1"), "{answered:?}");
    let failed = stack.metric("penstock_requests_total{model=\"m\",version=\"2\",outcome=\"failed\"}");
    assert!(failed <= 20.0, "{failed} users met it");
    eventually("the verdict to be told", || stack.log().contains("canary rolled back").then_some(()));
    assert_eq!(stack.metric("penstock_canary_verdicts_total{model=\"m\",verdict=\"roll_back\"}"), 1.0);

    // The same rollout under other steps is still rolled back; another candidate begins at its first step.
    std::fs::write(&stack.policies, policy(2, "2h")).unwrap();
    stack.wait_for_metric("penstock_policy_generation", 2.0);
    assert_eq!(status(&stack)["phase"], "rolled_back");
    eventually("progress to be saved", || {
        let saved = std::fs::read_to_string(stack.folder().join("state.json")).ok()?;
        saved.contains("rolled_back").then_some(())
    });
    let verdicts = status(&stack)["verdicts"].clone();
    assert!(!verdicts.as_array().unwrap().is_empty());
    stack.restart();
    assert_eq!(status(&stack)["phase"], "rolled_back");
    assert_eq!(status(&stack)["verdicts"], verdicts, "why, is known after it as well");
    let shown = told(&stack, &["status"]);
    assert!(text(&shown.stdout).contains("roll back: version 2 fails more often"), "{}", text(&shown.stdout));
    assert!((0..50).all(|user| ask(&stack.client(), user).1 == "1"));
    std::fs::write(&stack.policies, policy(3, "1h")).unwrap();
    eventually("the next candidate to begin", || (status(&stack)["candidate"] == 3).then_some(()));
    assert_eq!((&status(&stack)["phase"], &status(&stack)["percent"]), (&"running".into(), &20.0.into()));
}

#[test]
fn a_stop_loses_nothing_that_the_last_requests_have_shown() {
    let engine = versions();
    let mut stack = stack(&engine, &policy(2, "1h"));
    for user in 0..100 {
        ask(&stack.client(), user);
    }
    let seen = |stack: &Stack| status(stack)["gates"][0]["requests"].as_u64();
    let before = eventually("requests of the candidate to be seen", || {
        let before = seen(&stack);
        (before > Some(5)).then_some(before)
    });
    stack.signal(Signal::TERM);
    assert!(stack.wait().success());
    stack.restart();
    assert!(seen(&stack) >= before);
}

#[test]
fn a_version_that_is_not_there_yet_harms_nobody() {
    let engine = versions();
    let stack = stack(&engine, &policy(9, "100ms"));
    for user in 0..100 {
        assert_eq!(ask(&stack.client(), user), (200, "1".into()));
    }
    let status = status(&stack);
    assert_eq!((&status["phase"], &status["step"]), (&"running".into(), &1.into()), "nor does it advance");
}

#[test]
fn a_version_that_answers_otherwise_is_rolled_back_though_nobody_has_met_it() {
    let engine = versions();
    let policy = policy(2, "1h").replace("steps: [20, 60]", "steps: [0.0001]").replace(
        "gates: {errors: {at_most: 50}}",
        "gates: {disagreement: {at_most: 5}}\n    shadow: {version: 2}",
    );
    let stack = stack(&engine, &policy);
    let answered = until(&stack, "rolled_back");
    assert!(answered.iter().all(|version| version == "1"), "{answered:?}");
    let verdict = why(&stack);
    assert!(verdict.contains("version 2 disagrees with version 1 more often than 5 %"), "{verdict}");
}

#[test]
fn who_has_asked_for_a_version_is_copied_and_is_no_evidence() {
    let engine = versions();
    let policy = policy(2, "1h").replace("steps: [20, 60]", "steps: [0.0001]").replace(
        "gates: {errors: {at_most: 50}}",
        "gates: {disagreement: {at_most: 5}}\n    shadow: {version: 2, in_flight_max: 1000}",
    );
    let stack = stack(&engine, &policy);
    let body = infer_body("x", [1, 1], &[0.0]);
    for _ in 0..50 {
        assert_eq!(stack.client().post("/v2/models/m/versions/1/infer", &[], &body).status, 200);
    }
    let series = "penstock_shadows_total{model=\"m\",version=\"2\",outcome=\"disagreed\"}";
    stack.wait_for_metric(series, 50.0);
    let status = status(&stack);
    assert_eq!((&status["phase"], &status["gates"][1]["requests"]), (&"running".into(), &0.into()));
}

#[test]
fn a_version_that_hangs_is_rolled_back_like_one_that_fails() {
    let engine = versions();
    engine.set("m", 2, Behaviour::Hang);
    let policy = policy(2, "1h").replace("  m:\n", "  m:\n    deadline: 50ms\n");
    let answered = until(&stack(&engine, &policy), "rolled_back");
    assert!(answered.iter().all(|version| version == "1"), "{answered:?}");
}

/// Real models, of which one takes 50 ms: how long an answer takes is measured where it is given.
#[test]
fn a_version_that_is_slow_is_rolled_back_by_its_gate_and_left_alone_by_its_breaker() {
    let models = tempfile::tempdir().expect("a folder");
    std::fs::create_dir(models.path().join("m")).expect("a folder");
    for (version, of) in [("1", "leaky"), ("2", "slow")] {
        let of = repository(&format!("tests/data/models/{of}/1"));
        std::os::unix::fs::symlink(of, models.path().join("m").join(version)).expect("a link");
    }
    let policy = "models: {m: {canary: {baseline: 1, candidate: 2, steps: [50], dwell: 1h, gates: {latency: {over: 10ms, at_most: 50}}}}}\n";
    let stack = Stack::builder().models(models.path()).policies(policy).start();
    let (client, body) = (stack.client(), infer_body("x", [1, 4], &[1.0; 4]));
    let ask = || client.infer("m", &[], &body).status;
    eventually("a verdict", || {
        assert_eq!(ask(), 200);
        (status(&stack)["phase"] == "rolled_back").then_some(())
    });
    let why = why(&stack);
    assert!(why.contains("version 2 is slow more often than version 1"), "{why}");

    for (generation, over, answered) in [(2.0, "1s", 8), (3.0, "10ms", 5)] {
        let policy = format!(
            "models: {{m: {{split: {{weights: {{2: 1}}}}, breaker: {{slow: {{over: {over}, percent: 60}}, of_at_least: 5}}}}}}\n"
        );
        std::fs::write(&stack.policies, policy).expect("the policy can be written");
        stack.wait_for_metric("penstock_policy_generation", generation);
        let statuses: Vec<_> = (0..8).map(|_| ask()).collect();
        let (served, left_alone) = statuses.split_at(answered);
        let is_so =
            served.iter().all(|status| *status == 200) && left_alone.iter().all(|status| *status == 503);
        assert!(is_so, "{over}: {statuses:?}");
    }
}

/// Each failure has a success before it, so that there are never two in a row.
#[test]
fn a_version_of_which_a_part_fails_is_left_alone() {
    let engine = versions();
    let policy = "models: {m: {split: {weights: {1: 1}}, breaker: {failing: 50, of_at_least: 6}}}\n";
    let stack = stack(&engine, policy);
    let client = stack.client();
    let statuses: Vec<_> = (0..8)
        .map(|at| {
            engine.set("m", 1, if at % 2 == 0 { Behaviour::Answer } else { Behaviour::Fail });
            ask(&client, at).0
        })
        .collect();
    assert_eq!(statuses, [200, 500, 200, 500, 200, 500, 503, 503], "{}", stack.log());
}

#[test]
fn a_person_pauses_promotes_aborts_and_resumes_from_the_command_line() {
    let engine = versions();
    let stack = stack(&engine, &policy(2, "1s"));
    let paused = told(&stack, &["canary", "pause", "m", "--reason", "lunch & coffee"]);
    assert!(paused.status.success(), "{}", text(&paused.stderr));
    assert!(text(&paused.stdout).contains("paused by a person: lunch & coffee"), "{}", text(&paused.stdout));
    (0..300).for_each(|user| drop(ask(&stack.client(), user)));
    let shown = told(&stack, &["status"]);
    let first = text(&shown.stdout).lines().next().unwrap();
    assert_eq!(first, "m: version 2 gets 20.0 %, version 1 the rest; paused, step 1 of 2");
    let again = told(&stack, &["canary", "pause", "m"]);
    assert_eq!(
        (again.status.code(), text(&again.stderr)),
        (Some(1), "penstock: cannot pause: the rollout is paused\n")
    );
    let promoted = told(&stack, &["canary", "promote", "m", "--json"]);
    let json: Value = serde_json::from_slice(&promoted.stdout).unwrap();
    assert_eq!((&json["phase"], &json["percent"]), (&"promoted".into(), &100.0.into()));
    assert!((0..50).all(|user| ask(&stack.client(), user).1 == "2"));
    assert!(told(&stack, &["canary", "abort", "m"]).status.success());
    assert!((0..50).all(|user| ask(&stack.client(), user).1 == "1"));
    assert!(text(&told(&stack, &["canary", "resume", "m"]).stdout).contains("begun again by a person"));
    let unknown = told(&stack, &["canary", "abort", "nothing"]);
    assert_eq!(text(&unknown.stderr), "penstock: model `nothing` has no canary\n");
}

#[test]
fn a_person_lets_a_rollout_go_by_one_step_from_the_command_line() {
    let engine = versions();
    let stack = stack(&engine, &policy(2, "1h"));
    let of_candidate = || (0..200).filter(|user| ask(&stack.client(), *user).1 == "2").collect::<Vec<_>>();
    let before = of_candidate();
    let advanced = told(&stack, &["canary", "advance", "m", "--reason", "it is the callers' fault"]);
    let says = text(&advanced.stdout);
    assert!(
        says.starts_with("m: version 2 gets 60.0 %, version 1 the rest; running, step 2 of 2\n"),
        "{says}"
    );
    let why = "  step 1 at 20.0 %: advance: advanced by a person: it is the callers' fault\n";
    assert!(says.ends_with(why), "{says}");
    let after = of_candidate();
    assert!((80..160).contains(&after.len()), "{} of 200", after.len());
    assert!(before.iter().all(|user| after.contains(user)), "nobody changes back: {before:?} {after:?}");
    eventually("it to be told", || stack.log().contains("advanced by a person").then_some(()));
    assert_eq!(stack.metric("penstock_canary_step{model=\"m\",version=\"2\"}"), 2.0);

    // Who has seen the first step, or has not heard that it was done, means no other one.
    let admin = Client::new(stack.admin);
    let late = admin.post("/canaries/m/advance?from=1", &[], b"");
    let why = "cannot advance: the rollout is in step 2, and not in step 1";
    assert_eq!((late.status, late.json()["error"].as_str()), (409, Some(why)));
    let late = told(&stack, &["canary", "advance", "m", "--from", "1"]);
    assert_eq!((late.status.code(), text(&late.stderr)), (Some(1), &*format!("penstock: {why}\n")));
    for (query, why) in [
        ("from=second", "`from` is the number of a step, from 1"),
        ("from=", "`from` is the number of a step, from 1"),
        ("from", "`from` has no value"),
        ("form=2", "`form` is no parameter here; `reason` and `from` can be given"),
        ("from=2&reason=a&from=2", "`from` is given twice"),
    ] {
        let refused = admin.post(&format!("/canaries/m/advance?{query}"), &[], b"");
        assert_eq!((refused.status, refused.json()["error"].as_str()), (400, Some(why)), "{query}");
    }
    assert_eq!(admin.post("/canaries/m/promote?from=1", &[], b"").status, 400);
    assert_eq!(
        admin.post("/canaries/m/advance", &[], b"from=1").status,
        400,
        "nor is what curl calls a form"
    );
    assert_eq!(told(&stack, &["canary", "promote", "m", "--from", "1"]).status.code(), Some(2));
    assert_eq!((&status(&stack)["step"], &status(&stack)["phase"]), (&2.into(), &"running".into()));
    let promoted = admin.post("/canaries/m/advance?from=2", &[], b"").json();
    assert_eq!((&promoted["phase"], &promoted["percent"]), (&"promoted".into(), &100.0.into()));
    assert!((0..50).all(|user| ask(&stack.client(), user).1 == "2"));
    let again = told(&stack, &["canary", "advance", "m"]);
    assert_eq!(
        (again.status.code(), text(&again.stderr)),
        (Some(1), "penstock: cannot advance: the rollout is promoted\n")
    );
}

#[test]
fn a_page_in_a_browser_can_not_tell_it_what_to_do() {
    let engine = versions();
    let stack = stack(&engine, &policy(2, "1h"));
    let admin = Client::new(stack.admin);
    let answer = admin.post("/canaries/m/promote", &[("origin", "http://evil.example")], b"");
    assert_eq!((answer.status, status(&stack)["phase"].as_str()), (403, Some("running")));
    assert_eq!(admin.post("/canaries/m/explode", &[], b"").status, 404);
    let elsewhere = Client::new(stack.http).post("/canaries/m/promote", &[], b"");
    assert_eq!(elsewhere.status, 404, "clients do not reach it");
}

/// Between the request that shows enough and the next one there is nothing: neither time, nor anybody's cookie.
#[test]
fn after_the_request_that_decides_nobody_meets_the_candidate_who_had_it_before() {
    let engine = versions();
    let stack = stack(&engine, &policy(2, "1h"));
    let client = stack.client();
    let of_candidate: Vec<usize> = (0..400).filter(|user| ask(&client, *user).1 == "2").collect();
    assert!(of_candidate.len() > 40, "{of_candidate:?}");
    engine.set("m", 2, Behaviour::Fail);
    let answers: Vec<_> = of_candidate.iter().map(|user| ask(&client, *user)).collect();
    let met = answers.iter().take_while(|(status, _)| *status == 500).count();
    assert!((1..=10).contains(&met), "{met} users met it");
    assert!(answers[met..].iter().all(|answer| *answer == (200, "1".into())), "{answers:?}");
    assert!(
        of_candidate.iter().all(|user| ask(&client, *user) == (200, "1".into())),
        "nor does any come back"
    );
    assert_eq!(status(&stack)["phase"], "rolled_back");
}

#[test]
fn what_a_person_was_told_is_done_outlives_a_kill() {
    let engine = versions();
    let mut stack = stack(&engine, &policy(2, "1h"));
    until(&stack, "running");
    for (word, phase, step) in [("pause", "paused", 1), ("advance", "paused", 2), ("abort", "rolled_back", 2)]
    {
        let done = told(&stack, &["canary", word, "m", "--reason", "it smells"]);
        assert!(done.status.success(), "{}", text(&done.stderr));
        stack.signal(Signal::KILL);
        stack.wait();
        stack.restart();
        let status = status(&stack);
        assert_eq!((&status["phase"], &status["step"]), (&phase.into(), &step.into()), "after {word}");
    }
}

/// Between two policies that a person applies one right after the other nothing is lost: who is taken back and comes again begins anew.
#[test]
fn what_an_applied_policy_has_ended_outlives_a_kill() {
    let engine = versions();
    let mut stack = stack(&engine, &policy(2, "1h"));
    until(&stack, "running");
    assert!(told(&stack, &["canary", "promote", "m"]).status.success());
    let file = stack.folder().join("next.yaml");
    for next in ["models: {m: {split: {weights: {1: 1}}}}".to_owned(), policy(2, "1h")] {
        std::fs::write(&file, next).expect("a file");
        let applied = told(&stack, &["apply", file.to_str().expect("text")]);
        assert!(applied.status.success(), "{}", text(&applied.stderr));
    }
    stack.signal(Signal::KILL);
    stack.wait();
    stack.restart();
    let status = status(&stack);
    assert_eq!((&status["phase"], &status["step"]), (&"running".into(), &1.into()), "{status:#}");
}

#[test]
fn a_state_that_cannot_be_written_is_told_to_who_orders_something() {
    let engine = versions();
    let stack = stack(&engine, &policy(2, "1h"));
    until(&stack, "running");
    // A folder in its place keeps the file from being replaced, whoever asks for it.
    let file = stack.folder().join("state.json");
    std::fs::remove_file(&file).expect("it was saved");
    std::fs::create_dir(&file).expect("its name is free");
    std::fs::write(file.join("in the way"), "").expect("a file");
    let told = told(&stack, &["canary", "abort", "m", "--reason", "it smells"]);
    assert!(!told.status.success());
    let why = text(&told.stderr);
    assert!(why.contains("done, but a restart would not know of it: cannot write"), "{why}");
    assert_eq!(status(&stack)["phase"], "rolled_back");
    assert_eq!(stack.metric("penstock_state_saved"), 0.0);
}

#[test]
fn two_processes_do_not_share_a_state() {
    let engine = versions();
    let first = stack(&engine, &policy(2, "1h"));
    let [http, monitor] = harness::free_addresses();
    let config = first.folder().join("second.yaml");
    let listen = format!("listen: {{http: '{http}', grpc: null, monitor: '{monitor}'}}");
    let rest =
        format!("engine: {{managed: false, socket: '{}'}}\nstate: state.json", engine.socket().display());
    std::fs::write(&config, format!("{listen}\n{rest}\n")).expect("a file");
    let second = Command::new(binary("penstock")).arg("serve").arg("--config").arg(&config).output();
    let second = second.expect("it runs");
    assert!(!second.status.success());
    let why = text(&second.stderr);
    assert!(why.contains("state: another penstock is using it (") && why.contains("is locked"), "{why}");
}
