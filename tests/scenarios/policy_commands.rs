//! The policy is looked at, changed and taken back from the command line and through the admin port, and the last good one is
//! there when the file is not.

use harness::{Behaviour, Client, ScriptedEngine, Stack, binary, eventually, infer_body};
use std::path::PathBuf;
use std::process::{Command, Output};

const BEFORE: &str = "models: {m: {split: {weights: {1: 90, 2: 10}, sticky: {header: x-user-id}}}}\n";
const AFTER: &str = "models: {m: {split: {weights: {1: 60, 2: 40}, sticky: {header: x-user-id}}}}\n";

fn stack(engine: &ScriptedEngine) -> Stack {
    Stack::builder().policies(BEFORE).external_engine(engine.socket()).config("state: state.json").start()
}

fn engine() -> ScriptedEngine {
    ScriptedEngine::start(&[("m", 1, Behaviour::Answer), ("m", 2, Behaviour::Answer)])
}

fn penstock(stack: &Stack, arguments: &[&str]) -> Output {
    let admin = stack.admin.to_string();
    Command::new(binary("penstock")).args(arguments).args(["--admin", &admin]).output().expect("it runs")
}

fn says(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn draft(stack: &Stack, text: &str) -> PathBuf {
    let file = stack.folder().join("draft.yaml");
    std::fs::write(&file, text).expect("the temporary folder takes files");
    file
}

/// How many of a hundred users version 2 answers.
fn of_version_2(stack: &Stack) -> usize {
    let client = stack.client();
    let ask = |user: &usize| {
        let user = format!("user-{user}");
        let answer = client.infer("m", &[("x-user-id", &user)], &infer_body("x", [1, 1], &[0.0]));
        answer.header("x-penstock-version") == "2"
    };
    (0..100).filter(ask).count()
}

#[test]
fn a_policy_is_planned_applied_and_taken_back() {
    let engine = engine();
    let stack = stack(&engine);
    let file = draft(&stack, AFTER);
    let file = file.to_str().unwrap();

    let compared = says(&penstock(&stack, &["plan", file]));
    let (plan, _) = compared.split_once("compared with ").unwrap();
    assert_eq!(
        plan,
        "model m\n  - 90 % go to version 1\n  - 10 % go to version 2\n  + 60 % go to version 1\n  + 40 % go to version 2\n  \
         30.0000 % are answered by another version\nbreakers, limits and rollouts that are not named go on as they are\n"
    );
    let standard_input = std::fs::File::open(file).unwrap();
    let piped = Command::new(binary("penstock"))
        .args(["plan", "-", "--admin", &stack.admin.to_string()])
        .stdin(standard_input)
        .output();
    assert_eq!(says(&piped.unwrap()), compared);
    assert_eq!(stack.metric("penstock_policy_generation"), 1.0, "nothing has happened yet");

    let before = of_version_2(&stack);
    let applied = says(&penstock(&stack, &["apply", file]));
    assert!(applied.starts_with(&format!("{plan}generation 2 is in force: ")), "{applied}");
    assert!(of_version_2(&stack) > before + 10);
    assert_eq!(std::fs::read_to_string(&stack.policies).unwrap(), AFTER, "it is in the file as well");
    let again = says(&penstock(&stack, &["apply", file]));
    assert!(again.starts_with("nothing changes\ngeneration 2 is in force: "), "{again}");

    let back = says(&penstock(&stack, &["rollback"]));
    assert!(back.contains("generation 3 is in force: "), "{back}");
    assert_eq!(of_version_2(&stack), before);
    assert_eq!(std::fs::read_to_string(&stack.policies).unwrap(), BEFORE);
    let history = says(&penstock(&stack, &["history"]));
    let sources: Vec<&str> = history.lines().map(|line| line.rsplit(", ").next().unwrap()).collect();
    assert_eq!(sources, ["start", "admin", "roll back to 1"], "{history}");
    let forth = says(&penstock(&stack, &["rollback", "--to", "2"]));
    assert!(forth.contains("generation 4 is in force: "), "{forth}");
    let nowhere = penstock(&stack, &["rollback", "--to", "77"]);
    assert!(!nowhere.status.success());
}

#[test]
fn a_faulty_policy_is_refused_with_its_place_and_changes_nothing() {
    let engine = engine();
    let stack = stack(&engine);
    let file = draft(&stack, "models:\n  m:\n    split: {weights: {1: 90, nobody: 10}}\n");
    for command in ["plan", "apply"] {
        let refused = penstock(&stack, &[command, file.to_str().unwrap()]);
        let why = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && why.contains("draft.yaml:3:"), "{why}");
    }
    let admin = Client::new(stack.admin);
    let tag = admin.get("/policy").header("etag").to_owned();
    let answer = admin.put("/policy", &[("if-match", &tag)], b"models: {m: {splitt: {}}}");
    assert_eq!(answer.status, 422);
    assert!(answer.error().contains("splitt"), "{}", answer.error());
    assert_eq!(std::fs::read_to_string(&stack.policies).unwrap(), BEFORE);
    assert_eq!(stack.metric("penstock_policy_generation"), 1.0);
}

#[test]
fn two_people_do_not_undo_each_others_work() {
    let engine = engine();
    let stack = stack(&engine);
    let admin = Client::new(stack.admin);
    let tag = admin.get("/policy").header("etag").to_owned();
    assert_eq!(admin.get("/policy").text(), BEFORE);
    assert_eq!(admin.put("/policy", &[], AFTER.as_bytes()).status, 428);
    std::fs::write(&stack.policies, "models: {m: {deadline: 3s}}\n").unwrap();
    stack.wait_for_metric("penstock_policy_generation", 2.0);
    let answer = admin.put("/policy", &[("if-match", &tag)], AFTER.as_bytes());
    assert_eq!(answer.status, 412, "{}", answer.text());
    let tag = admin.get("/policy").header("etag").to_owned();
    std::fs::write(&stack.policies, "models: {m: {dead").unwrap();
    eventually("the mistake to be seen", || stack.log().contains("policy stays as it is").then_some(()));
    let answer = admin.put("/policy", &[("if-match", &tag)], AFTER.as_bytes());
    assert_eq!(
        (answer.status, &answer.json()["generation"]),
        (200, &3.into()),
        "once it is told, it may be mended"
    );
    let any = admin.put("/policy", &[("if-match", "*")], BEFORE.as_bytes());
    assert_eq!(any.status, 200, "{}", any.text());
    let from_a_page = admin.put("/policy", &[("if-match", &tag), ("origin", "http://evil.example")], b"");
    assert_eq!(from_a_page.status, 403);
}

/// The word after this one.
fn word_after(text: &str, before: &str) -> String {
    let after = text.split(before).nth(1).unwrap_or_else(|| panic!("no `{before}` in {text}"));
    after.chars().take_while(char::is_ascii_alphanumeric).collect()
}

#[test]
fn what_was_looked_at_is_what_is_replaced() {
    let engine = engine();
    let stack = stack(&engine);
    let file = draft(&stack, AFTER);
    let file = file.to_str().unwrap();
    let tag = word_after(&says(&penstock(&stack, &["plan", file])), "compared with ");
    std::fs::write(&stack.policies, "models: {m: {deadline: 3s}}\n").unwrap();
    stack.wait_for_metric("penstock_policy_generation", 2.0);
    let refused = penstock(&stack, &["apply", "--if", &tag, file]);
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && why.contains("somebody has changed the policy"), "{why}");
    assert_eq!(stack.metric("penstock_policy_generation"), 2.0);
    let tag = word_after(&says(&penstock(&stack, &["plan", file])), "compared with ");
    assert!(
        says(&penstock(&stack, &["apply", "--if", &tag, file])).contains("generation 3 is in force"),
        "nobody has been there since"
    );
}

#[test]
fn a_draft_that_is_not_in_force_is_kept_when_something_else_is_put_there() {
    let engine = engine();
    let stack = stack(&engine);
    says(&penstock(&stack, &["apply", draft(&stack, AFTER).to_str().unwrap()]));
    let faulty = "models: {m: {splitt: {}}} # hours of work\n";
    std::fs::write(&stack.policies, faulty).unwrap();
    stack.wait_for_metric("penstock_policy_rejected_total", 1.0);
    let said = says(&penstock(&stack, &["rollback"]));
    let beside = PathBuf::from(format!("{}.rejected", stack.policies.display()));
    assert!(said.contains(&format!("it is in {} now", beside.display())), "{said}");
    assert_eq!(std::fs::read_to_string(&beside).unwrap(), faulty);
    assert_eq!(std::fs::read_to_string(&stack.policies).unwrap(), BEFORE);
    let in_force = penstock(&stack, &["rollback", "--to", "3"]);
    assert!(String::from_utf8_lossy(&in_force.stderr).contains("generation 3 is in force"));
}

/// Two people see the same bad policy and take it back, or one does so twice.
#[test]
fn a_bad_policy_does_not_come_back_by_taking_it_back_twice() {
    let engine = engine();
    let stack = stack(&engine);
    let bad = word_after(
        &says(&penstock(&stack, &["apply", draft(&stack, AFTER).to_str().unwrap()])),
        "generation 2 is in force: ",
    );
    let back = says(&penstock(&stack, &["rollback", "--if", &bad]));
    assert!(back.contains("generation 3 is in force: "), "{back}");
    let again = penstock(&stack, &["rollback", "--if", &bad]);
    let why = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(!again.status.success() && why.contains("somebody has changed the policy"), "{why}");
    let further = penstock(&stack, &["rollback"]);
    let why = String::from_utf8_lossy(&further.stderr).into_owned();
    assert!(!further.status.success() && why.contains("there is no such revision"), "{why}");
    assert_eq!(Client::new(stack.admin).post("/policy/rollback", &[], b"").status, 428);
    assert_eq!(std::fs::read_to_string(&stack.policies).unwrap(), BEFORE);
}

#[test]
fn a_policy_is_changed_while_as_much_is_in_flight_as_may_be() {
    let engine = engine();
    engine.set("m", 1, Behaviour::Hold);
    let full = "requests: {in_flight_max: 1}";
    let stack = Stack::builder().policies(BEFORE).external_engine(engine.socket()).config(full).start();
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| {
            let path = "/v2/models/m/versions/1/infer";
            stack.client().post(path, &[], &infer_body("x", [1, 1], &[0.0])).status
        });
        stack.wait_for_metric("penstock_requests_in_flight", 1.0);
        let file = draft(&stack, AFTER);
        for command in ["plan", "apply"] {
            says(&penstock(&stack, &[command, file.to_str().unwrap()]));
        }
        engine.set("m", 1, Behaviour::Answer);
        assert_eq!(asked.join().expect("no panic"), 200);
    });
}

#[test]
fn a_process_starts_from_the_last_good_policy_when_the_file_is_broken() {
    let engine = engine();
    let mut stack = stack(&engine);
    says(&penstock(&stack, &["apply", draft(&stack, AFTER).to_str().unwrap()]));
    let answered = of_version_2(&stack);
    std::fs::write(&stack.policies, "models: {m: {split: nonsense\n").unwrap();
    eventually("the mistake to be told", || stack.log().contains("policy stays as it is").then_some(()));
    stack.restart();
    assert_eq!(of_version_2(&stack), answered);
    assert!(stack.log().contains("starting with the last policy that was in force"), "{}", stack.log());
    says(&penstock(&stack, &["rollback"]));
    assert_eq!(std::fs::read_to_string(&stack.policies).unwrap(), BEFORE, "of the process before");
    stack.wait_for_metric("penstock_policy_generation", 3.0);
    assert!(of_version_2(&stack) < answered);
}

#[test]
fn a_file_of_certificates_that_is_not_there_is_told_to_who_plans_and_in_the_log() {
    let engine = engine();
    let stack = stack(&engine);
    let remote = "remote: {2: {url: 'https://localhost:1/', ca: /nowhere/ca.pem}}";
    let file = draft(&stack, &format!("models: {{m: {{split: {{weights: {{1: 90, 2: 10}}}}, {remote}}}}}\n"));
    let file = file.to_str().unwrap();
    let told = "version 2 cannot be asked: /nowhere/ca.pem: No such file or directory (os error 2)";
    let planned = says(&penstock(&stack, &["plan", file]));
    assert!(planned.contains(told), "{planned}");
    assert!(!stack.log().contains(told), "nothing has happened yet");
    assert!(says(&penstock(&stack, &["apply", file])).contains(told));
    eventually("the log to tell it", || stack.log().contains(told).then_some(()));
}

#[test]
fn what_only_a_restart_changes_is_told_to_who_plans_and_to_who_looks() {
    let engine = engine();
    let stack = stack(&engine);
    let file = draft(&stack, AFTER);
    let plan = || says(&penstock(&stack, &["plan", file.to_str().unwrap()]));
    assert!(!plan().contains("restart"), "{}", plan());
    let config = stack.folder().join("penstock.yaml");
    let started = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, format!("{started}workers: 2\ndrain: {{delay: 1s}}\n")).unwrap();
    let told = "workers and drain need a restart: fixed at start, and changed in the configuration since\n";
    assert!(plan().contains(told), "{}", plan());
    let json: serde_json::Value =
        serde_json::from_str(&says(&penstock(&stack, &["plan", file.to_str().unwrap(), "--json"]))).unwrap();
    assert_eq!(json["at_restart"]["settings"], serde_json::json!(["workers", "drain"]));
    assert!(stack.log().contains(told.trim_end()), "{}", stack.log());
    std::fs::write(&config, format!("{started}wrkers: 2\n")).unwrap();
    stack.signal(rustix::process::Signal::HUP);
    let status = eventually("the mistake to be shown", || {
        let status = says(&penstock(&stack, &["status"]));
        status.contains("a restart would fail").then_some(status)
    });
    assert!(status.contains("wrkers"), "{status}");
    std::fs::write(&config, started).unwrap();
    assert!(!plan().contains("restart"), "{}", plan());
    let misplaced = draft(&stack, "listen: {http: '127.0.0.1:1'}\n");
    let refused = penstock(&stack, &["apply", misplaced.to_str().unwrap()]);
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && why.contains("a change of it needs a restart"), "{why}");
}

/// Programs read what people read: each command that tells something tells it in JSON.
#[test]
fn every_command_has_an_answer_for_programs() {
    let engine = engine();
    let stack = stack(&engine);
    let file = draft(&stack, AFTER);
    let file = file.to_str().unwrap();
    let json = |arguments: &[&str]| -> serde_json::Value {
        let text = says(&penstock(&stack, &[arguments, &["--json"]].concat()));
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {text}"))
    };
    let check = Command::new(binary("penstock")).args(["check", file, "--json"]).output().expect("it runs");
    let check: serde_json::Value = serde_json::from_str(&says(&check)).unwrap();
    assert_eq!(check["valid"], true);
    let plan = json(&["plan", file]);
    assert_eq!(
        (&plan["changes"][0]["of"], &plan["changes"][0]["moved_percent"]),
        (&"model m".into(), &30.0.into())
    );
    assert_eq!(json(&["apply", file])["generation"], 2);
    assert_eq!(json(&["rollback"])["generation"], 3);
    let history = json(&["history"]);
    assert_eq!((history.as_array().unwrap().len(), &history[2]["source"]), (3, &"roll_back".into()));
    assert_eq!(json(&["status"])["policy"]["generation"], 3);
    let rings = json(&["rings"]);
    assert_eq!(rings["m"].as_array().map(Vec::len), Some(2), "{rings}");
    let saved = draft(&stack, &rings.to_string());
    assert_eq!(json(&["rings", saved.to_str().unwrap()])["m"]["agrees"], true);
    let canary =
        draft(&stack, "models: {m: {canary: {baseline: 1, candidate: 2, steps: [10, 20], dwell: 1h}}}\n");
    json(&["apply", canary.to_str().unwrap()]);
    for (word, phase) in [
        ("pause", "paused"),
        ("resume", "running"),
        ("advance", "running"),
        ("promote", "promoted"),
        ("abort", "rolled_back"),
    ] {
        assert_eq!(json(&["canary", word, "m"])["phase"], phase);
    }
    let faulty = draft(&stack, "models: {m: {splitt: {}}}\n");
    let missing = stack.folder().join("nowhere.yaml");
    for (arguments, word) in [
        (vec!["apply", faulty.to_str().unwrap()], "did you mean `split`?"),
        (vec!["plan", missing.to_str().unwrap()], "cannot read"),
        (vec!["canary", "pause", "other"], "other"),
        (vec!["rollback", "--to", "99"], "no such revision"),
    ] {
        let output = penstock(&stack, &[arguments.as_slice(), &["--json"]].concat());
        let told: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let error = told["error"].as_str().unwrap_or_default();
        assert!(!output.status.success() && error.contains(word), "{arguments:?}: {told}");
    }
    let url = format!("http://{}/", stack.admin);
    for (address, is_one) in [(url.as_str(), true), ("nowhere", false), ("http://a:b@c:1", false)] {
        let status = Command::new(binary("penstock")).args(["status", "--admin", address]).output();
        assert_eq!(status.expect("it runs").status.success(), is_one, "{address}");
    }
    let schema = Command::new(binary("penstock")).arg("schema").output().expect("it runs");
    assert!(
        serde_json::from_str::<serde_json::Value>(&says(&schema)).unwrap()["properties"]["models"]
            .is_object()
    );
    let mistaken = draft(&stack, "models: {m: {deadlin: 1s}}\n");
    let check = Command::new(binary("penstock")).arg("check").arg(&mistaken).arg("--json").output();
    let check = check.expect("it runs");
    let told: serde_json::Value = serde_json::from_slice(&check.stdout).expect("it says so in JSON as well");
    let line = told["lines"][0].as_str().unwrap_or_default();
    assert_eq!((check.status.code(), &told["valid"]), (Some(1), &false.into()));
    assert!(line.contains(":1:14: models.m.deadlin: unknown field"), "{told}");
}
