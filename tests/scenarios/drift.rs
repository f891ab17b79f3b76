//! Pictures that a model was not made for: they are answered like others, and how it is seen that they are others.

use harness::{Client, Stack, eventually, infer_body, repository};
use serde_json::Value;

/// A rollout that has a gate on tensors, and stays in its first step for so long; with limits that refuse nothing, of which the metrics
/// tell.
fn rollout(dwell: &str) -> String {
    format!(
        "models: {{digits: {{canary: {{baseline: 1, candidate: 2, steps: [50], dwell: {dwell},
           gates: {{errors: {{at_most: 10}}, drift: {{at_most: 0.05}}}}}}, shadow: {{version: 2, percent: 5}},
           remote: {{3: {{url: 'http://127.0.0.1:1/nobody'}}}}, rules: [{{when: {{header: x-away, present: true}}, use: 3}}], breaker: {{fallback: {{version: 1}}}}}}}}\n\
         limits: [{{name: all, rate: 1000000/s, burst: 1000000}}, {{name: at-once, in_flight_max: 1000}}]\n"
    )
}

/// Requests of one picture each, black on white or white on black.
struct Pictures {
    rows: Vec<Vec<f32>>,
    drawn: usize,
}

impl Pictures {
    fn new() -> Self {
        let text =
            std::fs::read_to_string(repository("tests/data/digits_held_out.csv")).expect("held-out rows");
        let row = |line: &str| line.split(',').skip(1).map(|pixel| pixel.parse().expect("a pixel")).collect();
        Self { rows: text.lines().map(row).collect(), drawn: 0 }
    }

    fn send(&mut self, client: &Client, version: u64, inverted: bool) {
        self.drawn =
            self.drawn.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let row = &self.rows[(self.drawn >> 33) % self.rows.len()];
        let pixels: Vec<f32> = row.iter().map(|pixel| if inverted { 16.0 - pixel } else { *pixel }).collect();
        let body = infer_body("pixels", [1, 64], &pixels);
        let path = format!("/v2/models/digits/versions/{version}/infer");
        assert_eq!(client.post(&path, &[], &body).status, 200, "an answer is an answer");
    }
}

fn drift(stack: &Stack, version: usize) -> Value {
    let status = Client::new(stack.monitor).get("/status").json();
    status["versions"][version - 1]["drift"].clone()
}

fn pixels(drift: &Value, what: &str) -> f64 {
    let tensors = drift["tensors"].as_array().cloned().unwrap_or_default();
    let tensor = tensors.into_iter().find(|tensor| tensor["name"] == "pixels");
    tensor.and_then(|tensor| tensor[what].as_f64()).unwrap_or(-1.0)
}

/// What changes over weeks is seen by engines that are replaced every few days.
#[test]
fn an_engine_that_follows_a_killed_one_knows_what_pictures_were_like() {
    let policies = "models: {digits: {split: {weights: {1: 50, 2: 50}}}}\n";
    let mut stack = Stack::builder().policies(policies).config("state: state.json").start();
    let (client, mut pictures) = (stack.client(), Pictures::new());
    eventually("a reference", || {
        (0..8).for_each(|_| pictures.send(&client, 1, false));
        (drift(&stack, 1)["has_reference"] == true).then_some(())
    });
    let kept = stack.folder().join("state.references/digits/1");
    eventually("it to be kept", || kept.is_file().then_some(()));
    let first = stack.engine_pid().expect("an engine");
    rustix::process::kill_process(first, rustix::process::Signal::KILL).expect("it runs");
    eventually("another engine", || {
        // Before there is another one, it may not be known yet that the first is gone.
        stack.engine_pid().filter(|pid| *pid != first)?;
        (client.get("/v2/models/digits/versions/1/ready").status == 200).then_some(())
    });
    eventually("inverted pictures to be seen by it, and by what it was not told", || {
        (0..8).for_each(|_| pictures.send(&client, 1, true));
        (pixels(&drift(&stack, 1), "least") > 0.05).then_some(())
    });
    let seen = drift(&stack, 1);
    assert!(seen["windows"].as_u64() == Some(1), "the first window is the first one after the kill: {seen}");
    stack.restart();
    let client = stack.client();
    eventually("a process that has begun anew", || {
        (client.get("/v2/models/digits/versions/1/ready").status == 200).then_some(())
    });
    eventually("it to know, too", || {
        pictures.send(&client, 1, true);
        (drift(&stack, 1)["has_reference"] == true).then_some(())
    });
    assert!(drift(&stack, 1)["rows"].as_u64() < Some(1000), "it has not learned anew");
}

#[test]
fn inverted_pictures_are_seen_and_a_candidate_that_alone_gets_them_is_rolled_back() {
    let stack = Stack::builder().policies(&rollout("24h")).start();
    let (client, mut pictures) = (stack.client(), Pictures::new());
    let mut send = |inverted: [bool; 2]| {
        for _ in 0..4 {
            pictures.send(&client, 1, inverted[0]);
            pictures.send(&client, 2, inverted[1]);
        }
    };
    eventually("the reference of both versions", || {
        send([false, false]);
        (1..=2).all(|version| drift(&stack, version)["has_reference"] == true).then_some(())
    });
    eventually("a window of pictures like those", || {
        send([false, false]);
        (1..=2).all(|version| drift(&stack, version)["windows"].as_u64() > Some(0)).then_some(())
    });
    for version in 1..=2 {
        let drift = drift(&stack, version);
        assert_eq!(pixels(&drift, "least"), 0.0, "{drift}");
        assert!(pixels(&drift, "most") < 0.05, "{drift}");
        assert!(drift["confidence"]["count"].as_u64() > Some(1000), "{drift}");
    }

    eventually("inverted pictures to be seen by both", || {
        send([true, true]);
        (1..=2).all(|version| pixels(&drift(&stack, version), "least") > 0.05).then_some(())
    });
    let series = r#"penstock_drift_least_bits{model="digits",version="2",side="input",tensor="pixels"}"#;
    assert!(stack.metric(series) > 0.05);
    assert!(stack.metric(r#"penstock_confidence_count{model="digits",version="1"}"#) > 1000.0);
    std::fs::write(&stack.policies, rollout("1s")).expect("the temporary folder takes files");
    let canary = || Client::new(stack.monitor).get("/status").json()["canaries"]["digits"].clone();
    let held = |canary: &Value| {
        let verdicts = canary["verdicts"].as_array().cloned().unwrap_or_default();
        verdicts.into_iter().any(|verdict| {
            let why = verdict["why"].as_str().unwrap_or_default();
            verdict["verdict"] == "hold" && why.starts_with("drift: ") && why.contains("and so has")
        })
    };
    // What a version is asked by its number is no evidence of errors, and the other gate has to be passed as well.
    let asked = infer_body("pixels", [1, 64], &[8.0; 64]);
    eventually("the rollout to be held, since a rollback would change nothing", || {
        send([true, true]);
        (0..8).for_each(|_| assert_eq!(client.infer("digits", &[], &asked).status, 200));
        let canary = canary();
        assert_eq!(canary["phase"], "running", "{canary}");
        held(&canary).then_some(())
    });

    eventually("the candidate to be rolled back, who alone gets them", || {
        send([false, true]);
        (canary()["phase"] == "rolled_back").then_some(())
    });
    let last =
        canary()["verdicts"].as_array().and_then(|verdicts| verdicts.last().cloned()).unwrap_or_default();
    let why = last["why"].as_str().unwrap_or_default();
    assert!(
        why.contains("bits at least from its reference") && why.contains("nothing of version 1 has"),
        "{last}"
    );
    assert!(stack.metric(r#"penstock_canary_evidence{model="digits",gate="drift"}"#) > 1.0);
    assert_eq!(client.post("/v2/models/nobody/infer", &[], b"{}").status, 404);
    assert_eq!(client.infer("digits", &[("x-away", "1")], &asked).header("x-penstock-version"), "1");
    let away =
        r#"penstock_retries_total{model="digits",version="3",reason="unreachable",outcome="answered"}"#;
    stack.wait_for_metric(away, 1.0);
    eventually("copies to be counted", || stack.metrics().contains("penstock_shadows_total").then_some(()));
    crate::queries::check(&stack.metrics());
}
