//! What cannot start says why in one line and ends; what can start in part does.

use harness::{Stack, binary, eventually, free_address, free_addresses, repository};
use std::process::{Command, Output};

fn penstock(arguments: &[&str]) -> Output {
    Command::new(binary("penstock")).args(arguments).output().expect("the binary starts")
}

fn serve(config: &str) -> (Option<i32>, String) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("penstock.yaml");
    let [http, monitor] = free_addresses();
    let listen = format!("listen: {{http: '{http}', grpc: null, monitor: '{monitor}'}}\n");
    let config = if config.contains("listen:") { config.to_owned() } else { listen + config };
    std::fs::write(&file, config).expect("a file");
    let output = penstock(&["serve", "--config", file.to_str().expect("a path")]);
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn models() -> String {
    repository("configs/demo/models").display().to_string()
}

#[test]
fn a_port_in_use_is_told_before_anything_starts() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("it is bound");
    let (code, says) = serve(&format!(
        "listen: {{http: '{address}', grpc: null, monitor: '{}'}}\nengine: {{models: '{}'}}",
        free_address(),
        models()
    ));
    assert_eq!(code, Some(1));
    assert!(says.contains(&format!("listen.http: cannot listen on {address}")), "{says}");
}

#[test]
fn what_is_missing_or_wrong_is_named() {
    for (config, word) in [
        ("engine: {models: /nowhere}".to_owned(), "/nowhere is not a folder"),
        (
            format!("engine: {{models: '{}', socket: '/tmp/{}'}}", models(), "x".repeat(120)),
            "at most 105 can be used",
        ),
        (format!("engine: {{models: '{}'}}\npolicies: gone.yaml", models()), "cannot read the policy file"),
        (format!("engine: {{models: '{}'}}\npolices: p.yaml", models()), "polices"),
    ] {
        let (code, says) = serve(&config);
        assert_eq!(code, Some(1), "{config}: {says}");
        assert!(says.contains(word), "{config}: {says}");
    }
    let missing = penstock(&["serve", "--config", "/nowhere.yaml"]);
    assert!(String::from_utf8_lossy(&missing.stderr).contains("cannot read the configuration /nowhere.yaml"));
}

#[test]
fn check_explains_a_good_file_and_locates_the_mistakes_of_a_bad_one() {
    let good = penstock(&["check", repository("configs/demo/policies.yaml").to_str().expect("a path")]);
    let says = String::from_utf8_lossy(&good.stdout).into_owned();
    assert!(
        good.status.success() && says.contains("digits") && says.contains("90") && says.contains("x-user-id"),
        "{says}"
    );
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("bad.yaml");
    std::fs::write(&file, "models:\n  m:\n    labels: {stable: 1}\n    split:\n      weights: {stabel: 1}\n")
        .expect("a file");
    let bad = penstock(&["check", file.to_str().expect("a path")]);
    let says = String::from_utf8_lossy(&bad.stderr).into_owned();
    assert_eq!(bad.status.code(), Some(1));
    assert!(says.contains("bad.yaml:5:") && says.contains("stabel") && says.contains("stable"), "{says}");
}

#[test]
fn a_broken_model_is_reported_and_disturbs_no_other() {
    let stack = Stack::builder().models(repository("tests/data/models")).start_unready();
    let client = stack.client();
    eventually("two to be ready", || (client.get("/v2/models/two/ready").status == 200).then_some(()));
    eventually("broken to have failed", || {
        let answer = client.infer("broken", &[], b"{\"inputs\":[]}");
        (answer.status == 503 && !answer.error().contains("being loaded")).then_some(())
    });
    let answer = client.infer("broken", &[], b"{\"inputs\":[]}");
    assert!(answer.error().contains("broken"), "{}", answer.error());
}

#[test]
fn an_engine_that_cannot_start_leaves_a_proxy_that_says_so() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let stack = Stack::builder().external_engine(&folder.path().join("nobody.sock")).start_unready();
    let client = stack.client();
    assert_eq!(client.get("/v2/health/ready").status, 503);
    let answer = client.infer("digits", &[], b"{}");
    assert_eq!((answer.status, answer.header("retry-after")), (503, "1"));
    assert!(answer.error().contains("engine"), "{}", answer.error());
}
