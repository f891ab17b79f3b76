//! What a process says of itself: `/status`, the page, and both commands that show them. The page in a browser is
//! `tests/dashboard`'s.

use harness::{
    Behaviour, Client, Response, ScriptedEngine, Stack, binary, eventually, infer_body, raw_exchange,
    repository,
};
use serde_json::{Value, json};
use std::process::{Command, Output};

fn body() -> Vec<u8> {
    infer_body("x", [1, 1], &[0.0])
}

fn status(stack: &Stack) -> Value {
    Client::new(stack.monitor).get("/status").json()
}

fn told(arguments: &[&str]) -> Output {
    Command::new(binary("penstock")).args(arguments).output().expect("it runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("text")
}

fn stack(engine: &ScriptedEngine) -> Stack {
    let policy = "models: {m: {labels: {old: 1}, split: {weights: {old: 75, 2: 25}}, breaker: {failures: 2, open_for: 1h}}}\nlimits: [{name: each, key: {header: x-user-id}, rate: 1/h, burst: 2}]\n";
    Stack::builder().policies(policy).external_engine(engine.socket()).start()
}

#[test]
fn the_status_tells_shares_outcomes_times_breakers_limits_and_refusals() {
    let engine = ScriptedEngine::start(&[("m", 1, Behaviour::Answer), ("m", 2, Behaviour::Fail)]);
    let stack = stack(&engine);
    let client = stack.client();
    let ask = |version: u64, user: &str| {
        client.post(&format!("/v2/models/m/versions/{version}/infer"), &[("x-user-id", user)], &body()).status
    };
    assert_eq!(
        [ask(1, "a"), ask(1, "a"), ask(1, "a"), ask(2, "b"), ask(2, "b"), ask(2, "c")],
        [200, 200, 429, 500, 500, 503]
    );
    assert_eq!(client.infer("nothing", &[], &body()).status, 404);
    let said = eventually("all to be counted", || {
        let said = status(&stack);
        (said["refusals"]["by_reason"]["not_found"] == 1).then_some(said)
    });
    let (one, two) = (&said["versions"][0], &said["versions"][1]);
    let shares = json!([{"version": 1, "label": "old", "percent": 75.0}, {"version": 2, "label": null, "percent": 25.0}]);
    assert_eq!(
        (&said["models"]["m"]["decided_by"], &said["models"]["m"]["shares"]),
        (&json!("split"), &shares)
    );
    assert_eq!(one["outcomes"], json!({"served": 2, "failed": 0, "refused": 0, "abandoned": 0}));
    assert_eq!(two["outcomes"]["failed"], 2);
    assert_eq!(one["times"]["whole"]["count"], 2, "{one:#}");
    assert_eq!((&one["breaker"]["state"], &two["breaker"]["state"]), (&json!("passing"), &json!("tripped")));
    assert!(two["breaker"]["retry_after_ms"].as_u64() > Some(3_500_000), "{two:#}");
    let limit = &said["limits"]["each"];
    assert_eq!(limit["refused"], 1);
    let spent = ["spent", "allowed", "callers", "exhausted"].map(|name| limit[name].as_u64().unwrap());
    assert_eq!(spent, [2, 2, 3, 2], "{limit:#}");
    assert_eq!(
        said["refusals"]["by_reason"],
        json!({"rate_limited": 1, "model_failed": 2, "breaker": 1, "not_found": 1})
    );
    let recent = said["refusals"]["recent"].as_array().unwrap();
    let failed = recent.iter().find(|kind| kind["reason"] == "model_failed").unwrap();
    assert_eq!((&failed["model"], &failed["version"], &failed["count"]), (&json!("m"), &json!(2), &json!(2)));
    let unknown = recent.iter().find(|kind| kind["reason"] == "not_found").unwrap();
    assert!(unknown["says"].as_str().unwrap().contains("no model `nothing`"), "{unknown}");
    assert_eq!((&said["policy"]["generation"], &said["policy"]["rejected"]), (&json!(1), &Value::Null));
    assert_eq!((&said["may_change"], &said["admin"]), (&json!(false), &json!(stack.admin.to_string())));
    assert_eq!((&said["engine"]["connected"], &said["traffic"]["in_flight"]), (&json!(true), &json!(0)));
    assert_eq!(Client::new(stack.admin).get("/status").json()["may_change"], true);
}

#[test]
fn the_stages_of_a_request_add_up_to_the_whole() {
    let stack = Stack::builder().start();
    let digit = std::fs::read(repository("configs/demo/requests/digit-7.json")).unwrap();
    assert_eq!(stack.client().post("/v2/models/digits/versions/1/infer", &[], &digit).status, 200);
    let version = eventually("it to be counted", || {
        let version = status(&stack)["versions"][0].clone();
        (version["batch_rows"]["count"] == 1).then_some(version) // counted last
    });
    let sum = |stage: &str| version["times"][stage]["sum"].as_f64().unwrap();
    assert!(sum("run") > 0.0 && sum("proxy") > 0.0, "{version:#}");
    assert!((sum("proxy") + sum("queue") + sum("run") - sum("whole")).abs() < 0.1, "{version:#}");
    assert_eq!(
        (&version["batch_rows"], &version["state"]),
        (&json!({"count": 1, "sum": 1.0, "buckets": [[0.0, 1.0, 1]]}), &json!("ready"))
    );
    assert_eq!(
        stack.metric("penstock_engine_run_duration_seconds_count{model=\"digits\",version=\"1\"}"),
        1.0
    );
    for stage in ["admit", "read", "decode", "link", "reply"] {
        let count = format!("penstock_stage_duration_seconds_count{{stage=\"{stage}\"}}");
        assert_eq!(stack.metric(&count), 1.0, "{stage}");
    }
    let told = stack.metric("process_resident_memory_bytes");
    assert!((0.5..2.0).contains(&(told / stack.resident_bytes() as f64)), "{told}");
}

#[test]
fn what_was_found_out_of_a_version_when_it_was_loaded_is_shown() {
    let stack = Stack::builder().engine_arguments("--threads-per-lane 1").start();
    let said = status(&stack);
    for (at, number) in [(0, 1), (1, 2)] {
        let version = &said["versions"][at];
        assert_eq!((&version["version"], &version["max_batch"]), (&json!(number), &json!(64)), "{version:#}");
        assert_eq!(
            (&version["threads"], &version["at_once"]),
            (&json!(1), &json!(2)),
            "a thread for each of two lanes: {version:#}"
        );
        // It depends on the machine which form is the fastest; what that has gained is told with it.
        let form = version["form"].as_str().expect("text");
        let is_faster = form.contains(" ms per row), largest difference ") && form.contains("x at 1 (");
        assert!(form == "as loaded" || is_faster, "{form}");
        let curve: Vec<_> = version["curve"].as_array().expect("a curve").iter().collect();
        let rows: Vec<_> = curve.iter().map(|point| point["rows"].as_u64().expect("a number")).collect();
        // A busy machine leaves out sizes that take long.
        assert!(rows.first() == Some(&1) && rows.is_sorted() && rows.last() <= Some(&64), "{version:#}");
        assert!(curve.iter().all(|point| point["us"].as_u64() > Some(0)), "{version:#}");
    }
}

#[test]
fn what_was_unloaded_is_told_from_what_has_failed_and_whether_the_policy_sends_it_anything() {
    let policy = "models: {digits: {split: {weights: {1: 1}}}}\n";
    let stack = Stack::builder().policies(policy).start();
    let shown = || {
        let versions = status(&stack)["versions"].clone();
        [0, 1].map(|at| ["state", "unloaded", "named"].map(|field| versions[at][field].clone()))
    };
    let ready = |named: bool| [json!("ready"), json!(false), json!(named)];
    assert_eq!(shown(), [ready(true), ready(false)]);
    let unloaded = stack.client().post("/v2/repository/models/digits/unload", &[], b"");
    assert_eq!(unloaded.status, 200, "{}", unloaded.text());
    let gone = |named: bool| [json!("unavailable"), json!(true), json!(named)];
    assert_eq!(shown(), [gone(true), gone(false)]);
    let top = text(&told(&["top", "--address", &stack.monitor.to_string()]).stdout);
    assert!(top.contains("! digits 1 is unavailable: it was unloaded"), "{top}");
    assert!(!top.contains("! digits 2"), "nobody misses it: {top}");
}

#[test]
fn a_faulty_policy_file_is_shown_until_it_is_put_right() {
    let engine = ScriptedEngine::start(&[("m", 1, Behaviour::Answer), ("m", 2, Behaviour::Answer)]);
    let stack = stack(&engine);
    let good = std::fs::read(&stack.policies).unwrap();
    std::fs::write(&stack.policies, "models: {m: {split: {weights: {nobody: 1}}}}\n").unwrap();
    let said = eventually("the fault to be shown", || {
        let said = status(&stack);
        (!said["policy"]["rejected"].is_null()).then_some(said)
    });
    assert!(said["policy"]["rejected"]["error"].as_str().unwrap().contains("nobody"), "{said:#}");
    assert_eq!(stack.metric("penstock_policy_file_in_force"), 0.0);
    assert_eq!((&said["policy"]["generation"], &said["policy"]["rejected_count"]), (&json!(1), &json!(1)));
    std::fs::write(&stack.policies, good).unwrap();
    eventually("the fault to be gone", || status(&stack)["policy"]["rejected"].is_null().then_some(()));
    assert_eq!(status(&stack)["policy"]["generation"], 1);
    assert_eq!(stack.metric("penstock_policy_file_in_force"), 1.0);
}

fn is_page(answer: &Response) -> bool {
    answer.status == 200
        && answer.header("content-type").starts_with("text/html")
        && answer.text().contains("<title>Penstock")
}

#[test]
fn the_page_is_at_both_ports_and_only_its_own_may_ask_at_the_admin_port() {
    let engine = ScriptedEngine::start(&[("m", 1, Behaviour::Answer), ("m", 2, Behaviour::Answer)]);
    let policy = "models: {m: {canary: {baseline: 1, candidate: 2, steps: [10], dwell: 1h}}}\n";
    let stack = Stack::builder().policies(policy).external_engine(engine.socket()).start();
    let (monitor, admin) = (Client::new(stack.monitor), Client::new(stack.admin));
    assert!(is_page(&monitor.get("/")) && is_page(&admin.get("/")));
    let policy = monitor.get("/").header("content-security-policy").to_owned();
    assert!(
        policy.starts_with("default-src 'none'; ") && policy.contains("frame-ancestors 'none'"),
        "{policy}"
    );
    let origin = format!("http://{}", stack.admin);
    let order = "/canaries/m/pause?reason=lunch";
    let refused: [&[(&str, &str)]; 5] = [
        &[("origin", "http://evil.example"), ("x-penstock-page", "1")],
        &[("origin", "null"), ("x-penstock-page", "1")],
        &[("origin", &origin)],
        &[("origin", &origin), ("x-penstock-page", "1"), ("sec-fetch-site", "cross-site")],
        &[("sec-fetch-site", "same-origin")],
    ];
    for headers in refused {
        let answer = admin.post(order, headers, b"");
        assert_eq!(answer.status, 403, "{headers:?}: {}", answer.text());
    }
    for line in ["GET / HTTP/1.1", "GET /policy HTTP/1.1", "POST /canaries/m/pause HTTP/1.1"] {
        let answer = raw_exchange(
            stack.admin,
            format!("{line}\r\nHost: evil.example\r\nConnection: close\r\n\r\n").as_bytes(),
            false,
        );
        assert!(answer.starts_with("HTTP/1.1 403"), "{line}: {answer}");
    }
    assert_eq!(status(&stack)["canaries"]["m"]["phase"], "running");
    assert_eq!(monitor.post(order, &[], b"").status, 405, "the other port changes nothing");
    let paused = admin.post(
        order,
        &[("origin", &origin), ("x-penstock-page", "1"), ("sec-fetch-site", "same-origin")],
        b"",
    );
    assert_eq!((paused.status, &paused.json()["phase"]), (200, &json!("paused")));
    let canary = eventually("the verdict to be in the history", || {
        let canary = status(&stack)["canaries"]["m"].clone();
        canary["history"]["marks"].as_array().is_some_and(|marks| !marks.is_empty()).then_some(canary)
    });
    assert!(canary["history"]["marks"][0]["why"].as_str().unwrap().contains("lunch"), "{canary:#}");
    assert_eq!((&canary["step_percents"], &canary["dwell_ms"]), (&json!([10.0]), &json!(3_600_000)));
}

#[test]
fn without_a_terminal_top_prints_once_and_a_process_that_is_away_is_an_error() {
    let engine = ScriptedEngine::start(&[("m", 1, Behaviour::Answer), ("m", 2, Behaviour::Answer)]);
    let stack = stack(&engine);
    assert_eq!(stack.client().infer("m", &[], &body()).status, 200);
    let top = told(&["top", "--address", &stack.monitor.to_string()]);
    let shown = text(&top.stdout);
    assert!(top.status.success() && shown.starts_with("penstock ready  "), "{shown}{}", text(&top.stderr));
    assert!(shown.lines().any(|line| line.starts_with("m 1  ") && line.contains(" 75% ")), "{shown}");
    assert!(!shown.contains('\u{1b}'), "nothing for a terminal: {shown}");
    let nobody = harness::free_address().to_string();
    let away = told(&["top", "--address", &nobody]);
    assert_eq!(away.status.code(), Some(1));
    assert!(
        text(&away.stderr).starts_with(&format!("penstock: no penstock answers at {nobody}")),
        "{}",
        text(&away.stderr)
    );
}

#[test]
fn the_status_command_tells_canaries_first_and_then_the_rest_or_all_of_it_in_json() {
    let engine = ScriptedEngine::start(&[("m", 1, Behaviour::Answer), ("m", 2, Behaviour::Answer)]);
    let stack = stack(&engine);
    let admin = stack.admin.to_string();
    let words = text(&told(&["status", "--admin", &admin]).stdout);
    assert!(
        words.starts_with("m: nobody has been answered yet") && words.contains("\n\npenstock ready"),
        "{words}"
    );
    let all: Value = serde_json::from_slice(&told(&["status", "--json", "--admin", &admin]).stdout).unwrap();
    assert_eq!((&all["may_change"], &all["versions"][1]["version"]), (&json!(true), &json!(2)));
}
