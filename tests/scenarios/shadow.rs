//! Copies for another version: compared, counted, and never noticed by whoever asked.

use harness::{Behaviour, ScriptedEngine, Stack, eventually, infer_body, repository};
use std::time::{Duration, Instant};

fn stack(engine: &ScriptedEngine, shadow: &str) -> Stack {
    let policy =
        format!("models: {{m: {{split: {{weights: {{1: 1}}}}, shadow: {{version: 2, {shadow}}}}}}}\n");
    Stack::builder().policies(&policy).external_engine(engine.socket()).start()
}

fn versions(shadow: Behaviour) -> ScriptedEngine {
    ScriptedEngine::start(&[("m", 1, Behaviour::Answer), ("m", 2, shadow)])
}

fn ask(stack: &Stack, times: usize) {
    let client = stack.client();
    for _ in 0..times {
        let answer = client.infer("m", &[], &infer_body("x", [1, 1], &[0.0]));
        assert_eq!((answer.status, answer.header("x-penstock-version")), (200, "1"));
    }
}

fn series(outcome: &str) -> String {
    format!("penstock_shadows_total{{model=\"m\",version=\"2\",outcome=\"{outcome}\"}}")
}

/// The demo's two versions see the same digit with other probabilities.
#[test]
fn answers_of_real_models_are_compared_as_the_policy_says() {
    let digit = std::fs::read(repository("configs/demo/requests/digit-7.json")).unwrap();
    for (compare, outcome) in [
        ("{}", "disagreed"),
        ("{absolute: 1}", "agreed"),
        ("{argmax: [probabilities]}", "agreed"),
        ("{outputs: {probabilities: {absolute: 1}}}", "agreed"),
        ("{absolute: 1, outputs: {probabilities: {absolute: 0}}}", "disagreed"),
    ] {
        let policy = format!(
            "models: {{digits: {{split: {{weights: {{1: 1}}}}, shadow: {{version: 2, compare: {compare}}}}}}}\n"
        );
        let stack = Stack::builder().policies(&policy).start();
        let series =
            format!("penstock_shadows_total{{model=\"digits\",version=\"2\",outcome=\"{outcome}\"}}");
        for times in 1..=5 {
            assert_eq!(stack.client().infer("digits", &[], &digit).output("digit")[0], 7);
            stack.wait_for_metric(&series, f64::from(times));
        }
        let own = "penstock_requests_total{model=\"digits\",version=\"2\",outcome=\"served\"}";
        assert_eq!(stack.metric(own), 0.0, "a copy is no request");
    }
}

#[test]
fn a_share_of_the_requests_is_copied() {
    let engine = versions(Behaviour::Answer);
    let stack = stack(&engine, "percent: 20, in_flight_max: 1000");
    ask(&stack, 500);
    // 100 expected, σ = 9.
    let copied = ["disagreed", "dropped"].map(|outcome| stack.metric(&series(outcome))).iter().sum::<f64>();
    assert!((50.0..150.0).contains(&copied), "{copied}");
}

#[test]
fn a_shadow_that_hangs_delays_nobody_and_takes_only_its_own_room() {
    let engine = versions(Behaviour::Hang);
    let stack = stack(&engine, "in_flight_max: 3, deadline: 10m");
    let began = Instant::now();
    ask(&stack, 20);
    assert!(began.elapsed() < Duration::from_secs(10), "no request waits for a copy");
    stack.wait_for_metric(&series("dropped"), 17.0);
    // All have their answers while three copies go on waiting for theirs.
    stack.wait_for_metric("penstock_requests_in_flight", 0.0);
    assert_eq!(["agreed", "disagreed", "failed"].map(|outcome| stack.metric(&series(outcome))), [0.0; 3]);
    assert!(engine.next_cancel_within(Duration::ZERO).is_none(), "nor has anybody given them up");
    let engine = versions(Behaviour::Fail);
    let stack = self::stack(&engine, "percent: 100");
    ask(&stack, 1);
    stack.wait_for_metric(&series("failed"), 1.0);
    assert_eq!(stack.metric("penstock_breaker_state{model=\"m\",version=\"2\"}"), 0.0);
}

/// Two lanes, and copies that each take one of them for 50 ms, of answers that take next to nothing. Where those waited for copies,
/// there would be as many of the ones as of the others at any time.
#[test]
fn who_is_answered_by_a_quick_version_does_not_wait_for_copies_that_are_slow() {
    const CLIENTS: usize = 8;
    const EACH: usize = 20;
    let models = tempfile::tempdir().expect("a temporary folder");
    for (version, model) in [("1", "picky"), ("2", "slow")] {
        let to = models.path().join("m").join(version);
        std::fs::create_dir_all(&to).expect("a folder");
        for file in ["model.pt", "model.yaml"] {
            let from = repository("tests/data/models").join(model).join("1").join(file);
            std::fs::copy(from, to.join(file)).expect("a file to copy");
        }
    }
    let policy =
        "models: {m: {split: {weights: {1: 1}}, shadow: {version: 2, in_flight_max: 1000, deadline: 10m}}}\n";
    let stack = Stack::builder().policies(policy).models(models.path()).start();
    // As many rows as a run has: no two copies run together.
    let body = infer_body("x", [64, 4], &[1.0; 256]);
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                let client = stack.client();
                for _ in 0..EACH {
                    let answer = client.infer("m", &[], &body);
                    assert_eq!((answer.status, answer.header("x-penstock-version")), (200, "1"));
                }
            });
        }
    });
    let page = stack.metrics();
    let copies = |page: &str, outcome: &str| {
        let lines = page.lines();
        let count = lines.filter_map(|line| line.strip_prefix(&series(outcome))?.trim().parse::<f64>().ok());
        count.sum::<f64>()
    };
    let all = (CLIENTS * EACH) as f64;
    let compared = ["agreed", "disagreed"].map(|outcome| copies(&page, outcome)).iter().sum::<f64>();
    assert!(compared * 2.0 < all, "all {all} have their answers, and so have {compared} copies");
    eventually("all copies to be counted", || {
        let page = stack.metrics();
        let outcomes = ["agreed", "disagreed", "failed", "dropped"].map(|outcome| copies(&page, outcome));
        (outcomes.iter().sum::<f64>() == all && outcomes[1] > 0.0).then_some(())
    });
}

#[test]
fn who_is_answered_by_the_shadow_itself_is_not_copied() {
    let engine = versions(Behaviour::Answer);
    let stack = stack(&engine, "percent: 100");
    let body = infer_body("x", [1, 1], &[0.0]);
    assert_eq!(stack.client().post("/v2/models/m/versions/2/infer", &[], &body).status, 200);
    ask(&stack, 1);
    stack.wait_for_metric(&series("disagreed"), 1.0);
    // Its copy would have agreed with it, or found no room.
    assert_eq!(["agreed", "failed", "dropped"].map(|outcome| stack.metric(&series(outcome))), [0.0; 3]);
    assert_eq!(engine.told().iter().map(|told| told.version).collect::<Vec<_>>(), [2, 1, 2]);
}

#[test]
fn a_copy_whose_own_time_is_over_has_failed_is_cancelled_and_makes_room_for_the_next() {
    let engine = versions(Behaviour::Hang);
    let stack = stack(&engine, "in_flight_max: 1, deadline: 50ms");
    for times in 1..=3 {
        ask(&stack, 1);
        stack.wait_for_metric(&series("failed"), f64::from(times));
        assert!(engine.next_cancel().is_some(), "the engine need not answer it any more");
    }
    assert_eq!(stack.metric(&series("dropped")), 0.0);
    let told = engine.told();
    let budgets: Vec<_> = told.iter().filter(|told| told.version == 2).map(|told| told.budget_us).collect();
    assert_eq!(budgets, [50_000; 3], "nor for longer than that");
}

#[test]
fn what_a_fallback_answers_is_copied_as_well_unless_the_shadow_itself_is_the_fallback() {
    for (fallback, answered_by_shadow) in [(3, false), (2, true)] {
        let engine = ScriptedEngine::start(&[
            ("m", 1, Behaviour::Fail),
            ("m", 2, Behaviour::Answer),
            ("m", 3, Behaviour::Answer),
        ]);
        let breaker = format!("breaker: {{failures: 1, open_for: 1h, fallback: {{version: {fallback}}}}}");
        let policy =
            format!("models: {{m: {{split: {{weights: {{1: 1}}}}, {breaker}, shadow: {{version: 2}}}}}}\n");
        let stack = Stack::builder().policies(&policy).external_engine(engine.socket()).start();
        let ask = || stack.client().infer("m", &[], &infer_body("x", [1, 1], &[0.0]));
        assert_eq!(ask().status, 500, "with it the breaker trips");
        let answer = ask();
        assert_eq!((answer.status, answer.header("x-penstock-version")), (200, &*fallback.to_string()));
        stack.wait_for_metric("penstock_requests_in_flight", 0.0);
        if !answered_by_shadow {
            stack.wait_for_metric(&series("disagreed"), 1.0);
        }
        let copied =
            ["agreed", "disagreed", "failed", "dropped"].map(|outcome| stack.metric(&series(outcome)));
        assert_eq!(copied.iter().sum::<f64>(), if answered_by_shadow { 0.0 } else { 1.0 });
        // Nothing was copied of what has failed, and nobody is asked twice.
        let asked: Vec<_> = engine.told().iter().map(|told| told.version).collect();
        assert_eq!(asked, if answered_by_shadow { vec![1, 2] } else { vec![1, 3, 2] });
    }
}
