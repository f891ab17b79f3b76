//! The front door opens: every `curl` of the README works against the demo, and says what the README says.

use harness::{Stack, repository};
use std::process::Command;

fn readme() -> String {
    std::fs::read_to_string(repository("README.md")).expect("a README")
}

/// Lines of `sh` blocks that ask a running demo something.
fn questions() -> Vec<String> {
    let text = readme();
    let blocks = text.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap_or_default());
    blocks.flat_map(str::lines).filter(|line| line.contains("curl ")).map(str::to_owned).collect()
}

#[test]
fn every_curl_of_the_readme_works_against_the_demo() {
    let stack = Stack::builder().policy_file(&repository("configs/demo/policies.yaml")).start();
    let questions = questions();
    assert!(questions.len() >= 4, "{questions:?}");
    for question in questions {
        let here = question
            .replace("localhost:8000", &stack.http.to_string())
            .replace("localhost:8002", &stack.monitor.to_string());
        let output =
            Command::new("sh").arg("-c").arg(&here).current_dir(repository(".")).output().expect("a shell");
        let says = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && !says.is_empty() && !says.contains("\"error\""),
            "{question}\n{says}"
        );
        let expected = if question.contains("grep x-penstock") {
            "x-penstock-version: "
        } else if question.contains("/repository/") {
            "HTTP/1.1 200 OK"
        } else if question.contains("uniq -c") {
            "\"model_version\":\""
        } else {
            "\"name\":\"digit\",\"datatype\":\"INT64\",\"shape\":[1],\"data\":[7]"
        };
        assert!(says.contains(expected), "{question}\n{says}");
    }
}

#[test]
fn the_policy_of_the_readme_compiles() {
    let text = readme();
    let policy =
        text.split("```yaml\n").nth(1).and_then(|rest| rest.split("```").next()).expect("a yaml block");
    if let Err(errors) = policies::parse(policy, "README.md") {
        panic!("{errors}");
    }
}
