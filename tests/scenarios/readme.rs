//! The front door opens: every `curl` of the README works against the demo, and says what the README says.

use harness::{Client, Stack, binary, eventually, repository};
use std::process::Command;

fn readme() -> String {
    std::fs::read_to_string(repository("README.md")).expect("a README")
}

/// Lines of `sh` blocks that ask a running demo something.
pub(crate) fn questions() -> Vec<String> {
    let text = readme();
    let blocks = text.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap_or_default());
    blocks.flat_map(str::lines).filter(|line| line.contains("curl ")).map(str::to_owned).collect()
}

/// The same for a stack in the place of the demo.
pub(crate) fn asked_of(stack: &Stack, question: &str) -> String {
    question
        .replace("localhost:8000", &stack.http.to_string())
        .replace("localhost:8002", &stack.monitor.to_string())
}

#[test]
fn every_curl_of_the_readme_works_against_the_demo() {
    let stack = Stack::builder().policy_file(&repository("configs/demo/policies.yaml")).start();
    let questions = questions();
    // Wherever in it they stand: what is in no block of `sh` would be asked by nobody.
    let in_all = ["curl -", "curl http", "curl '"].map(|begins| readme().matches(begins).count());
    assert_eq!((questions.len(), in_all.iter().sum::<usize>()), (6, 6), "{questions:?}");
    for question in questions {
        let here = asked_of(&stack, &question);
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
        } else if question.contains("/predictions/") {
            "{\"prediction\":\"7\",\"confidence\":"
        } else if question.contains(":predict") {
            "{\"predictions\":[{\"digit\":7,"
        } else if question.ends_with(":8000/") {
            "version 1: ready, 90.0 % of the requests, stable"
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

/// The script that the README names, played against a copy of the demo.
#[test]
fn the_rollout_demo_promotes_the_good_version_and_rolls_the_broken_one_back() {
    let demo = tempfile::tempdir().unwrap();
    for version in ["1", "2"] {
        let (from, to) =
            (format!("configs/demo/models/digits/{version}"), format!("models/digits/{version}"));
        std::fs::create_dir_all(demo.path().join(&to)).unwrap();
        for file in ["model.pt", "model.yaml"] {
            let from = repository(&from).join(file);
            std::fs::copy(from, demo.path().join(&to).join(file)).unwrap();
        }
    }
    let policies = demo.path().join("policies.yaml");
    let before = std::fs::read(repository("configs/demo/policies.yaml")).unwrap();
    std::fs::write(&policies, &before).unwrap();
    let stack = Stack::builder().policy_file(&policies).models(demo.path().join("models")).start();
    // Whoever has seen it may want to show it to somebody else.
    for is_again in [false, true] {
        let output = Command::new(repository("configs/demo/rollout.sh"))
            .env("HTTP", stack.http.to_string())
            .env("ADMIN", stack.admin.to_string())
            .env("DEMO", demo.path())
            .env("PENSTOCK", binary("penstock"))
            .output()
            .unwrap();
        let says = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{says}\n{}", String::from_utf8_lossy(&output.stderr));
        for part in [
            "digits: version 2 gets 100.0 %, version 1 the rest; promoted, step 2 of 2",
            "step 2 at 50.0 %: advance: every gate has passed",
            "digits: version 3 gets 0.0 %, version 2 the rest; rolled back, step 1 of 2",
            "roll back: version 3 fails more often than version 2: ",
        ] {
            assert!(says.contains(part), "{part}\n{says}");
        }
        assert_eq!(says.contains("begun again by a person: it is shown once more"), is_again, "{says}");
        assert_eq!(std::fs::read(&policies).unwrap(), before, "everything is as it was");
        assert!(!demo.path().join("models/digits/3").exists());
        eventually("the first policy to be in force", || {
            let status = Client::new(stack.admin).get("/canaries").json();
            status.as_object().is_some_and(serde_json::Map::is_empty).then_some(())
        });
    }
}
