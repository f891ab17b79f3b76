//! Versions of one model that declare different things: who reads a request by what, and what a rollout makes of it.

use harness::{Client, Response, Stack, eventually, infer_body, repository};
use serde_json::{Value, json};
use std::path::Path;

const DECLARED: &str = "inputs: [{name: x, datatype: FP32, shape: [-1, 4]}]\n\
                        outputs: [{name: y, datatype: FP32, shape: [-1, 4]}]\n\
                        max_batch: 4\n";

/// A version `number` of `m`: a model of the fixtures, with this declaration or its own.
fn version(models: &Path, number: u64, of: &str, declared: Option<&str>) {
    let (folder, from) =
        (models.join("m").join(number.to_string()), repository(&format!("tests/data/models/{of}/1")));
    std::fs::create_dir_all(&folder).expect("a folder");
    std::fs::copy(from.join("model.pt"), folder.join("model.pt")).expect("a model");
    match declared {
        Some(text) => std::fs::write(folder.join("model.yaml"), text).expect("a file"),
        None => drop(std::fs::copy(from.join("model.yaml"), folder.join("model.yaml"))),
    }
}

/// The file is found beside the model, and what is wrong with it is told.
#[test]
fn a_version_is_held_against_the_golden_json_beside_it() {
    let models = tempfile::tempdir().expect("a folder");
    let case = |y: f32| {
        let tensor = |name: &str, value: f32| json!({"name": name, "datatype": "FP32", "shape": [1, 4], "data": vec![value; 4]});
        json!({"cases": [{"inputs": [tensor("x", 1.0)], "outputs": [tensor("y", y)]}]}).to_string()
    };
    for (number, golden) in [(1, case(2.0)), (2, case(3.0)), (3, "{\"cases\": [".to_owned())] {
        version(models.path(), number, "picky", None);
        std::fs::write(models.path().join(format!("m/{number}/golden.json")), golden).expect("a file");
    }
    let stack = Stack::builder().models(models.path()).start();
    let index = eventually("all to be tried", || {
        let index = stack.client().post("/v2/repository/index", &[], b"").json();
        let entries = index.as_array().expect("a list").clone();
        let is_tried = |entry: &Value| matches!(entry["state"].as_str(), Some("READY" | "UNAVAILABLE"));
        (entries.len() == 3 && entries.iter().all(is_tried)).then_some(entries)
    });
    let said = |at: usize| (index[at]["state"].as_str(), index[at]["reason"].as_str().unwrap_or_default());
    assert_eq!(said(0).0, Some("READY"), "{index:?}");
    for (at, why) in [(1, "golden.json, case 1: output `y` differs by 1"), (2, "golden.json")] {
        assert_eq!(said(at).0, Some("UNAVAILABLE"), "{index:?}");
        assert!(said(at).1.contains(why), "{index:?}");
    }
    let answer = stack.client().infer("m", &[], &infer_body("x", [1, 4], &[1.0; 4]));
    assert_eq!((answer.status, answer.header("x-penstock-version")), (200, "1"), "{}", answer.text());
}

const CANARY: &str = "models: {m: {canary: {baseline: 1, candidate: 2, steps: [20, 60], dwell: 1h, \
                      sticky: {header: x-user-id}}}}\n";

fn rollout(stack: &Stack) -> Value {
    Client::new(stack.admin).get("/canaries").json()["m"].clone()
}

fn of_user(client: &Client, user: usize, headers: &[(&str, &str)], body: &[u8]) -> Response {
    let user = format!("user-{user}");
    client.infer("m", &[headers, &[("x-user-id", user.as_str())]].concat(), body)
}

/// Bytes without a head are read by what a version declares: the candidate declares nothing, and has to refuse them.
#[test]
fn a_candidate_that_cannot_read_what_the_baseline_reads_is_rolled_back() {
    let models = tempfile::tempdir().expect("a folder");
    version(models.path(), 1, "bare", Some(DECLARED));
    version(models.path(), 2, "bare", None);
    let stack = Stack::builder().models(models.path()).policies(CANARY).start();
    let (client, mut user) = (stack.client(), 0);
    let raw = [1.0f32, 2.0, 3.0, 4.0].map(f32::to_le_bytes).concat();
    let mut refused = 0;
    eventually("it to be rolled back", || {
        for _ in 0..20 {
            user += 1;
            let answer = of_user(&client, user, &[("inference-header-content-length", "0")], &raw);
            refused += usize::from(answer.status == 400);
        }
        (rollout(&stack)["phase"] == "rolled_back").then_some(())
    });
    assert!((1..=40).contains(&refused), "{refused}");
    for user in 0..50 {
        let answer = of_user(&client, user, &[("inference-header-content-length", "0")], &raw);
        assert_eq!((answer.status, answer.header("x-penstock-version")), (200, "1"), "{}", answer.text());
    }
}

/// It takes the same and gives something else: who asks for what the baseline gives is refused.
#[test]
fn a_candidate_that_lacks_an_output_is_rolled_back() {
    let models = tempfile::tempdir().expect("a folder");
    version(models.path(), 1, "bare", Some(DECLARED));
    version(models.path(), 2, "bare", Some(&DECLARED.replace("name: y", "name: z")));
    let stack = Stack::builder().models(models.path()).policies(CANARY).start();
    let (client, mut user) = (stack.client(), 0);
    let mut body: Value = serde_json::from_slice(&infer_body("x", [1, 4], &[1.0; 4])).expect("JSON");
    body["outputs"] = json!([{"name": "y"}]);
    let body = body.to_string();
    eventually("it to be rolled back", || {
        for _ in 0..20 {
            user += 1;
            let status = of_user(&client, user, &[], body.as_bytes()).status;
            assert!([200, 400].contains(&status), "{status}");
        }
        (rollout(&stack)["phase"] == "rolled_back").then_some(())
    });
}

/// What both would refuse is its sender's mistake, whomever it is sent to.
#[test]
fn requests_that_both_versions_refuse_say_nothing_about_either() {
    let models = tempfile::tempdir().expect("a folder");
    version(models.path(), 1, "bare", Some(DECLARED));
    version(models.path(), 2, "bare", Some(DECLARED));
    let stack = Stack::builder().models(models.path()).policies(CANARY).start();
    let client = stack.client();
    let (fine, wrong) = (infer_body("x", [1, 4], &[1.0; 4]), infer_body("x", [1, 3], &[1.0; 3]));
    let mut of_candidate = 0;
    for user in 0..300 {
        let answer = of_user(&client, user, &[], &fine);
        assert_eq!(answer.status, 200, "{}", answer.text());
        // As somebody would who wants to do it harm.
        if answer.header("x-penstock-version") == "2" {
            of_candidate += 1;
            assert_eq!(of_user(&client, user, &[], &wrong).status, 400);
        }
    }
    assert!(of_candidate > 20, "{of_candidate}");
    let rollout = rollout(&stack);
    assert_eq!(
        (&rollout["phase"], &rollout["gates"][0]["events"]),
        (&json!("running"), &json!(0)),
        "{rollout}"
    );
}

/// What was found out is about files, and those may change while nobody looks.
#[test]
fn a_rollout_goes_on_after_a_restart_unless_its_files_are_others() {
    let models = tempfile::tempdir().expect("a folder");
    version(models.path(), 1, "bare", Some(DECLARED));
    version(models.path(), 2, "bare", Some(DECLARED));
    let mut stack =
        Stack::builder().models(models.path()).policies(CANARY).config("state: state.json").start();
    let heard = |stack: &Stack| rollout(stack)["gates"][0]["requests"].as_u64().expect("a number");
    let fine = infer_body("x", [1, 4], &[1.0; 4]);
    let client = stack.client();
    (0..200).for_each(|user| assert_eq!(of_user(&client, user, &[], &fine).status, 200));
    let before = heard(&stack);
    assert!(before > 10, "{before}");
    let stop = |stack: &mut Stack| {
        stack.signal(rustix::process::Signal::TERM);
        assert!(stack.wait().success());
    };
    stop(&mut stack);
    stack.restart();
    let ready = |stack: &Stack| {
        let both = || {
            [1, 2].map(|version| stack.client().get(&format!("/v2/models/m/versions/{version}/ready")).status)
        };
        eventually("both to be ready", || (both() == [200, 200]).then_some(()));
    };
    ready(&stack);
    assert_eq!(heard(&stack), before, "the same files");
    stop(&mut stack);
    version(models.path(), 2, "bare", Some(&DECLARED.replace("max_batch: 4", "max_batch: 2")));
    stack.restart();
    ready(&stack);
    assert_eq!(heard(&stack), 0);
    let says = "the files of version 2 were replaced: the step begins anew";
    eventually("it to be told", || stack.log().contains(says).then_some(()));
}

/// A key in the body is read before anybody knows who answers: by what those declare that may.
#[test]
fn a_version_that_nobody_is_sent_to_does_not_decide_how_requests_are_read() {
    let models = tempfile::tempdir().expect("a folder");
    version(models.path(), 1, "bare", Some(DECLARED));
    version(models.path(), 9, "two", None);
    let policy = "models: {m: {split: {weights: {1: 1}, sticky: {parameter: user}}}}\n";
    let stack = Stack::builder().models(models.path()).policies(policy).start();
    let client = stack.client();
    let raw = [1.0f32, 2.0, 3.0, 4.0].map(f32::to_le_bytes).concat();
    let rows = json!({"instances": [[1.0, 2.0, 3.0, 4.0]]}).to_string();
    let both_are_answered = || {
        let answer = client.infer("m", &[("inference-header-content-length", "0")], &raw);
        assert_eq!((answer.status, answer.header("x-penstock-version")), (200, "1"), "{}", answer.text());
        let answer = client.post("/v1/models/m:predict", &[], rows.as_bytes());
        assert_eq!(answer.text(), r#"{"predictions":[[2.0,4.0,6.0,8.0]]}"#);
    };
    both_are_answered();
    let order = client.post("/v2/repository/models/m/versions/9/unload", &[], b"");
    assert_eq!(order.status, 200, "{}", order.text());
    both_are_answered();
}
