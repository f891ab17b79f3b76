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

    let plan = says(&penstock(&stack, &["plan", file]));
    assert_eq!(
        plan,
        "model m\n  - 90 % go to version 1\n  - 10 % go to version 2\n  + 60 % go to version 1\n  + 40 % go to version 2\n  \
         30.0000 % are answered by another version\n"
    );
    assert_eq!(stack.metric("penstock_policy_generation"), 1.0, "nothing has happened yet");

    let before = of_version_2(&stack);
    let applied = says(&penstock(&stack, &["apply", file]));
    assert_eq!(applied, format!("{plan}generation 2 is in force\n"));
    assert!(of_version_2(&stack) > before + 10);
    assert_eq!(std::fs::read_to_string(&stack.policies).unwrap(), AFTER, "it is in the file as well");
    assert_eq!(says(&penstock(&stack, &["apply", file])), "nothing changes\ngeneration 2 is in force\n");

    let back = says(&penstock(&stack, &["rollback"]));
    assert!(back.ends_with("generation 3 is in force\n"), "{back}");
    assert_eq!(of_version_2(&stack), before);
    assert_eq!(std::fs::read_to_string(&stack.policies).unwrap(), BEFORE);
    let history = says(&penstock(&stack, &["history"]));
    let sources: Vec<&str> = history.lines().map(|line| line.rsplit(", ").next().unwrap()).collect();
    assert_eq!(sources, ["start", "admin", "roll back"], "{history}");
    let forth = says(&penstock(&stack, &["rollback", "--to", "2"]));
    assert!(forth.ends_with("generation 4 is in force\n"), "{forth}");
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
    let from_a_page = admin.put("/policy", &[("if-match", &tag), ("origin", "http://evil.example")], b"");
    assert_eq!(from_a_page.status, 403);
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
    std::fs::write(&stack.policies, BEFORE).unwrap();
    stack.wait_for_metric("penstock_policy_generation", 2.0);
    assert!(of_version_2(&stack) < answered);
}
