//! The policy's shares are the shares that users see.

use harness::{Behaviour, ScriptedEngine, Stack, binary, infer_body};
use std::process::Command;

const POLICY: &str = "models:\n  m:\n    labels: {stable: 1, canary: 2}\n    split:\n      weights: {stable: 90, canary: 10}\n      sticky: {header: x-user-id}\n    rules:\n      - {when: {header: x-cohort, equals: beta}, use: canary}\n      - {when: {cookie: staff, present: true}, use: canary}\n      - {when: {query: tenant, equals: acme}, use: canary}\n      - {when: {tenant: acme}, use: canary}\n      - {when: {path: {starts_with: /v1/}}, use: canary}\noverload: {tenant: {header: x-tenant}}\n";

fn two_versions() -> (ScriptedEngine, Stack) {
    let engine = ScriptedEngine::start(&[("m", 1, Behaviour::Answer), ("m", 2, Behaviour::Answer)]);
    let stack = Stack::builder().policies(POLICY).external_engine(engine.socket()).start();
    (engine, stack)
}

fn version(client: &harness::Client, headers: &[(&str, &str)]) -> String {
    let answer = client.infer("m", headers, &infer_body("x", [1, 1], &[0.0]));
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(
        answer.output("version")[0].to_string(),
        answer.header("x-penstock-version"),
        "the header tells who answered"
    );
    answer.header("x-penstock-version").to_owned()
}

#[test]
fn a_thousand_requests_split_within_binomial_bounds() {
    let (_engine, stack) = two_versions();
    let client = stack.client();
    let canary = (0..1000).filter(|_| version(&client, &[]) == "2").count() as f64;
    // 100 expected, σ = √(1000 · 0.1 · 0.9) = 9.5; five of them are exceeded once in a million runs.
    assert!((canary - 100.0).abs() < 47.5, "{canary} of 1000 went to the canary");
    stack.wait_for_metric("penstock_requests_total{model=\"m\",version=\"2\",outcome=\"served\"}", canary);
}

#[test]
fn a_user_stays_with_a_version_and_users_split_as_declared() {
    let (_engine, stack) = two_versions();
    let client = stack.client();
    let mut canary = 0;
    for user in 0..500 {
        let user = format!("user-{user}");
        let first = version(&client, &[("x-user-id", &user)]);
        assert_eq!(version(&client, &[("x-user-id", &user)]), first);
        canary += usize::from(first == "2");
    }
    assert!((20..=85).contains(&canary), "{canary} of 500 users are on the canary"); // 50 expected, σ = 6.7
}

#[test]
fn rules_come_before_the_split_and_a_pinned_version_before_both() {
    let (_engine, stack) = two_versions();
    let client = stack.client();
    for _ in 0..20 {
        assert_eq!(version(&client, &[("x-cohort", "beta")]), "2");
        assert_eq!(version(&client, &[("cookie", "a=b; staff=1")]), "2");
        assert_eq!(version(&client, &[("x-tenant", "acme")]), "2");
        let by_path = client.post("/v1/models/m:predict", &[], b"{\"instances\": [[0.0]]}");
        assert_eq!(by_path.header("x-penstock-version"), "2", "{}", by_path.text());
        let body = infer_body("x", [1, 1], &[0.0]);
        let of_acme = client.post("/v2/models/m/infer?debug=1&tenant=acme", &[], &body);
        assert_eq!(of_acme.header("x-penstock-version"), "2");
        let pinned = client.post(
            "/v2/models/m/versions/1/infer",
            &[("x-cohort", "beta")],
            &infer_body("x", [1, 1], &[0.0]),
        );
        assert_eq!(pinned.header("x-penstock-version"), "1");
    }
}

fn status(stack: &Stack) -> String {
    let admin = stack.admin.to_string();
    let output = Command::new(binary("penstock")).args(["status", "--admin", &admin]).output();
    String::from_utf8(output.expect("it runs").stdout).expect("text")
}

#[test]
fn a_split_whose_users_are_all_the_same_one_is_told_to_be_so_and_one_with_many_users_is_not() {
    let (_engine, stack) = two_versions();
    let client = stack.client();
    for user in 0..500 {
        version(&client, &[("x-user-id", &format!("user-{user}"))]);
        version(&client, &[("x-cohort", "beta")]);
    }
    // A request is counted after its answer has gone.
    let shown = harness::eventually("500 users", || {
        let shown = status(&stack);
        (shown.starts_with("m: of 49")
            || shown.starts_with("m: of 500 users or requests without a key, version 1 has "))
        .then_some(shown)
    });
    assert!(!shown.contains("not as declared"), "rules are no part of it: {shown}");
    for _ in 0..2_500 {
        version(&client, &[("x-user-id", "null")]);
    }
    stack.wait_for_metric("penstock_split_mismatch{model=\"m\",cause=\"one_key\"}", 1.0);
    let shown = status(&stack);
    assert!(shown.contains("\n  not as declared: one value of header x-user-id has made "), "{shown}");
    let log = stack.log();
    assert_eq!(log.matches("the shares are not as declared: one value of").count(), 1, "{log}");
    let page = harness::Client::new(stack.monitor).get("/status").json();
    assert_eq!(page["splits"]["m"]["mismatch"]["cause"], "one_key", "{page:#}");
}

#[test]
fn a_version_of_a_split_that_is_not_there_is_told_to_be_missing() {
    let engine = ScriptedEngine::start(&[("m", 1, Behaviour::Answer)]);
    let policy = "models: {m: {split: {weights: {1: 1, 2: 1}}}}\n";
    let stack = Stack::builder().policies(policy).external_engine(engine.socket()).start_unready();
    let client = stack.client();
    let body = infer_body("x", [1, 1], &[0.0]);
    harness::eventually("version 1 to answer", || {
        (client.infer("m", &[], &body).status == 200).then_some(())
    });
    (0..100).for_each(|_| drop(client.infer("m", &[], &body)));
    stack.wait_for_metric("penstock_split_mismatch{model=\"m\",cause=\"unanswered\"}", 1.0);
    assert!(stack.metric("penstock_split_evidence{model=\"m\"}") >= 1.0);
    assert_eq!(stack.metric("penstock_split_share{model=\"m\",version=\"2\"}"), 0.5);
    let shown = status(&stack);
    assert!(shown.contains("version 2 has answered 0 % of "), "{shown}");
    assert!(shown.contains("100 % of its requests were not answered, because it was not ready\n"), "{shown}");
}

/// Users by a cookie among others, and by a parameter of the address.
#[test]
fn a_cookie_or_the_address_tells_users_apart_as_well() {
    let engine = ScriptedEngine::start(&[("m", 1, Behaviour::Answer), ("m", 2, Behaviour::Answer)]);
    let body = infer_body("x", [1, 1], &[0.0]);
    for sticky in ["cookie", "query"] {
        let policy = format!(
            "models: {{m: {{split: {{weights: {{1: 1, 2: 1}}, sticky: {{{sticky}: uid}}, without_key: 1}}}}}}\n"
        );
        let stack = Stack::builder().policies(&policy).external_engine(engine.socket()).start();
        let client = stack.client();
        let ask = |user: Option<usize>, other: usize| {
            let user = user.map(|user| format!("uid=user-{user}")).unwrap_or_default();
            let (path, cookie) = match sticky {
                "cookie" => ("/v2/models/m/infer".into(), format!("theme={other}; {user}; last={other}")),
                _ => (format!("/v2/models/m/infer?debug={other}&{user}"), format!("uid=user-{other}")),
            };
            let answer = client.post(&path, &[("cookie", &cookie)], &body);
            assert_eq!(answer.status, 200, "{}", answer.text());
            answer.header("x-penstock-version").to_owned()
        };
        let mut of_2 = 0;
        for user in 0..100 {
            let first = ask(Some(user), 1);
            assert!((2..5).all(|other| ask(Some(user), other) == first), "{sticky} {user}");
            of_2 += usize::from(first == "2");
        }
        assert!((20..=80).contains(&of_2), "{of_2} of 100 users by {sticky}"); // 50 expected, σ = 5
        assert!((0..20).all(|other| ask(None, other) == "1"), "nobody is nobody");
    }
}
