//! Limits and breakers as a client meets them.

use harness::{Behaviour, ScriptedEngine, Stack, eventually, infer_body, raw_exchange, repository};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const ROW: [f32; 1] = [0.0];

fn body() -> Vec<u8> {
    infer_body("x", [1, 1], &ROW)
}

/// A request of which nobody has read the answer yet: whoever drops it leaves. Headers end in a line break.
fn sent(stack: &Stack, model: &str, headers: &str) -> TcpStream {
    let mut client = TcpStream::connect(stack.http).expect("it listens");
    let length = body().len();
    let head = format!(
        "POST /v2/models/{model}/infer HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: {length}\r\n\r\n"
    );
    client.write_all(&[head.as_bytes(), &body()].concat()).expect("it reads");
    client
}

#[test]
fn a_spent_limit_says_when_to_come_back_and_to_whom_it_applies() {
    let engine = ScriptedEngine::start(&[("m", 1, Behaviour::Answer)]);
    let policy = "limits:\n  - {name: per-user, key: {header: x-user-id}, rate: 2/m, burst: 2}\n";
    let stack = Stack::builder().policies(policy).external_engine(engine.socket()).start();
    let client = stack.client();
    let (ana, began) = ([("x-user-id", "ana")], Instant::now());
    let first = client.infer("m", &ana, &body());
    assert_eq!((first.status, first.header("ratelimit-policy")), (200, "\"per-user\";q=2;w=60"));
    assert!(first.header("ratelimit").starts_with("\"per-user\";r=1;t="), "{}", first.header("ratelimit"));
    assert_eq!(client.infer("m", &ana, &body()).status, 200);
    let refused = client.infer("m", &ana, &body());
    assert_eq!(refused.status, 429);
    assert!(refused.header("ratelimit").starts_with("\"per-user\";r=0;t="));
    assert!(refused.error().contains("per-user"), "{}", refused.error());
    let wait: u64 = refused.header("retry-after").parse().expect("seconds");
    let exact = whole_seconds(Duration::from_secs(30), began);
    assert!(exact.contains(&wait), "{wait} s at two a minute, and not {exact:?}");
    assert_eq!(client.infer("m", &[("x-user-id", "ben")], &body()).status, 200, "others are not touched");
    stack.wait_for_metric("penstock_refusals_total{reason=\"rate_limited\",model=\"m\"}", 1.0);
}

/// What is left of so long a time that began then, or a little later: in whole seconds, rounded up, and never none.
fn whole_seconds(time: Duration, began: Instant) -> RangeInclusive<u64> {
    let up = |time: Duration| time.as_nanos().div_ceil(1_000_000_000).max(1) as u64;
    up(time.saturating_sub(began.elapsed()))..=up(time)
}

/// Every unit takes its part of the period to come back, and a bucket holds a burst of them: whoever wants more than there is waits
/// for what is missing, and it is full again once all are back. The body of whom nothing is left is not read: it waits for one row.
#[test]
fn whoever_is_limited_is_told_exactly_when_to_come_back_and_when_all_is_there_again() {
    // Units of a period of so many seconds, as many in a burst, those that were spent, those that are wanted then, and for how many
    // of these there is to wait.
    let cases = [
        ("2/m", (2, 60), 2, &[1, 1][..], 1, 1),
        ("7/m", (7, 60), 7, &[7], 1, 1),
        ("100/h", (100, 3600), 1, &[1], 1, 1),
        ("1/h", (1, 3600), 3, &[1, 2], 2, 1),
        ("10/h", (10, 3600), 10, &[8], 3, 1),
        ("5/m", (5, 60), 20, &[18], 7, 5),
        ("3/m", (3, 60), 100, &[64, 26], 64, 54),
    ];
    let engine = ScriptedEngine::start(&[("m", 1, Behaviour::Answer)]);
    for (rate, (units, seconds), burst, spent, wanted, missing) in cases {
        let policy = format!("limits: [{{name: rows, cost: rows, rate: {rate}, burst: {burst}}}]\n");
        let stack = Stack::builder().policies(&policy).external_engine(engine.socket()).start();
        let client = stack.client();
        let ask = |rows: usize| client.infer("m", &[], &infer_body("x", [rows, 1], &vec![0.0; rows]));
        let interval = Duration::from_nanos((seconds * 1_000_000_000_u64).div_ceil(units));
        let (began, mut taken) = (Instant::now(), 0);
        let is_told = |answer: &harness::Response, taken: u32| {
            let field = answer.header("ratelimit").to_owned();
            let told = field.strip_prefix("\"rows\";r=").and_then(|rest| rest.split_once(";t="));
            let (left, until) = told.unwrap_or_else(|| panic!("{field}"));
            let number = |text: &str| text.parse::<u64>().unwrap_or_else(|_| panic!("{field}"));
            let all = whole_seconds(interval * taken, began);
            assert!(all.contains(&number(until)), "{rate} after {taken}: {field}, and not {all:?}");
            // Time may have brought some back.
            let back = (began.elapsed().as_nanos() / interval.as_nanos()) as u64;
            let least = u64::from(burst - taken);
            assert!((least..=least + back).contains(&number(left)), "{rate} after {taken}: {field}");
        };
        for rows in spent {
            let answer = ask(*rows as usize);
            assert_eq!(answer.status, 200, "{rate}: {}", answer.text());
            taken += rows;
            is_told(&answer, taken);
        }
        let refused = ask(wanted as usize);
        assert_eq!(refused.status, 429, "{rate}: {}", refused.text());
        let exact = whole_seconds(interval * missing, began);
        let wait: u64 = refused.header("retry-after").parse().expect("seconds");
        assert!(exact.contains(&wait), "{rate} after {taken}: {wait}, and not {exact:?}");
        is_told(&refused, taken);
    }
}

#[test]
fn rows_are_counted_where_the_policy_counts_rows() {
    let engine = ScriptedEngine::start(&[("m", 1, Behaviour::Answer)]);
    let policy = "limits: [{name: asks, rate: 3/h}, {name: rows, cost: rows, rate: 10/h}]\n";
    let stack = Stack::builder().policies(policy).external_engine(engine.socket()).start();
    let client = stack.client();
    let ask = |rows: usize| client.infer("m", &[], &infer_body("x", [rows, 1], &vec![0.0; rows]));
    assert_eq!(ask(8).status, 200);
    let refused = ask(3);
    assert_eq!(refused.status, 429);
    assert!(refused.error().contains("limit `rows`"), "{}", refused.error());
    let never = ask(11);
    assert_eq!(
        (never.status, never.error().as_str()),
        (413, "limit `rows` lets at most 10 through at once, this request has 11")
    );
    assert_eq!(ask(2).status, 200, "the two that were refused have not spent the second of three asks");
    assert_eq!(ask(1).status, 429);
}

#[test]
fn a_caller_with_as_many_requests_under_way_as_may_be_gets_a_429_until_one_ends() {
    let engine = ScriptedEngine::start(&[("hangs", 1, Behaviour::Hang), ("m", 1, Behaviour::Answer)]);
    let policy = "limits: [{name: each, key: {header: x-user-id}, in_flight_max: 1}]\n";
    let stack = Stack::builder().policies(policy).external_engine(engine.socket()).start();
    let (client, ana) = (stack.client(), [("x-user-id", "ana")]);
    let waits = sent(&stack, "hangs", "X-User-Id: ana\r\n");
    engine.wait_until_asked(1);
    let crowded = client.infer("m", &ana, &body());
    assert_eq!(crowded.status, 429);
    assert_eq!(
        crowded.error(),
        "limit `each` lets 1 of a caller's requests be under way at once, and as many are"
    );
    assert_eq!(crowded.header("retry-after"), "1");
    assert_eq!(client.infer("m", &[("x-user-id", "ben")], &body()).status, 200, "others are not touched");
    drop(waits);
    eventually("the place to be free", || (client.infer("m", &ana, &body()).status == 200).then_some(()));
}

#[test]
fn a_failing_version_is_left_alone_then_probed_then_trusted_again() {
    let engine = ScriptedEngine::start(&[("m", 1, Behaviour::Fail), ("m", 2, Behaviour::Answer)]);
    let policy = "models: {m: {split: {weights: {1: 1}}, breaker: {failures: 3, open_for: 2s}}}\n";
    let stack = Stack::builder().policies(policy).external_engine(engine.socket()).start();
    let client = stack.client();
    assert_eq!([(); 3].map(|()| client.infer("m", &[], &body()).status), [500; 3]);
    let refused = client.infer("m", &[], &body());
    assert_eq!(refused.status, 503);
    assert!(refused.error().contains("version 1 of model `m` keeps failing"), "{}", refused.error());
    assert_eq!(refused.header("retry-after"), "2");
    assert_eq!(stack.metric("penstock_breaker_state{model=\"m\",version=\"1\"}"), 2.0);
    let other = client.post("/v2/models/m/versions/2/infer", &[], &body());
    assert_eq!(other.status, 200, "another version's breaker is its own");
    engine.set("m", 1, Behaviour::Answer);
    eventually("a probe to succeed", || (client.infer("m", &[], &body()).status == 200).then_some(()));
    assert_eq!(client.infer("m", &[], &body()).status, 200);
    assert_eq!(stack.metric("penstock_breaker_state{model=\"m\",version=\"1\"}"), 0.0);
}

#[test]
fn another_version_answers_for_one_that_fails_but_not_where_it_was_asked_for_by_number() {
    let engine = ScriptedEngine::start(&[("m", 1, Behaviour::Answer), ("m", 2, Behaviour::Fail)]);
    let policy = "models: {m: {split: {weights: {2: 1}}, breaker: {failures: 2, open_for: 1h, max_open_for: 1h, fallback: {version: 1}}}}\n";
    let stack = Stack::builder().policies(policy).external_engine(engine.socket()).start();
    let client = stack.client();
    assert_eq!([(); 2].map(|()| client.infer("m", &[], &body()).status), [500, 500]);
    for _ in 0..10 {
        let answer = client.infer("m", &[], &body());
        assert_eq!((answer.status, answer.header("x-penstock-version")), (200, "1"));
    }
    assert_eq!(client.post("/v2/models/m/versions/2/infer", &[], &body()).status, 503);
    stack.wait_for_metric("penstock_requests_total{model=\"m\",version=\"1\",outcome=\"served\"}", 10.0);
}

#[test]
fn mistakes_of_callers_and_overload_do_not_trip_a_breaker() {
    let engine = ScriptedEngine::start(&[("m", 1, Behaviour::Overloaded)]);
    let policy = "models: {m: {split: {weights: {1: 1}}, breaker: {failures: 2}}}\n";
    let stack = Stack::builder().policies(policy).external_engine(engine.socket()).start();
    let client = stack.client();
    for _ in 0..5 {
        let answer = client.infer("m", &[], &body());
        assert_eq!((answer.status, answer.header("retry-after")), (503, "1"));
        assert_eq!(client.infer("m", &[], b"{}").status, 400);
    }
    engine.set("m", 1, Behaviour::Answer);
    assert_eq!(client.infer("m", &[], &body()).status, 200);
}

#[test]
fn what_the_engine_has_no_time_for_is_turned_away_without_asking_again_for_a_while() {
    let engine = ScriptedEngine::start(&[("m", 1, Behaviour::Busy)]);
    let stack = Stack::builder().external_engine(engine.socket()).start();
    let client = stack.client();
    let hasty = [("x-request-timeout-ms", "1000")];
    let answer = client.infer("m", &hasty, &body());
    assert_eq!((answer.status, answer.header("retry-after")), (503, "2"), "{}", answer.text());
    engine.set("m", 1, Behaviour::Answer);
    // The body is not even looked at.
    let answer = client.infer("m", &hasty, b"no JSON");
    assert_eq!((answer.status, answer.header("retry-after")), (503, "1"), "{}", answer.text());
    assert_eq!(client.infer("m", &[], &body()).status, 200, "with more time it may try");
    eventually("the gate to open", || (client.infer("m", &hasty, &body()).status == 200).then_some(()));
}

/// The head of a request whose body never comes, and what is answered to that.
fn without_its_body(stack: &Stack, model: &str, headers: &str) -> String {
    let head = format!(
        "POST /v2/models/{model}/infer HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: 10000000\r\n\r\n"
    );
    raw_exchange(stack.http, head.as_bytes(), false)
}

#[test]
fn who_is_refused_anyway_is_told_before_the_body_has_come() {
    let engine = ScriptedEngine::start(&[("m", 1, Behaviour::Busy)]);
    let policy = "limits: [{name: each, key: {header: x-user-id}, rate: 1/h, burst: 1}]\nmodels: {m: {breaker: {failures: 1, open_for: 1h, max_open_for: 1h}}}\n";
    let stack = Stack::builder().policies(policy).external_engine(engine.socket()).start();
    let ask = |user: &str| {
        let headers = [("x-user-id", user), ("x-request-timeout-ms", "1000")];
        stack.client().infer("m", &headers, &body()).status
    };
    assert_eq!(ask("ana"), 503);
    let late = without_its_body(&stack, "m", "X-User-Id: ben\r\nX-Request-Timeout-Ms: 1000\r\n");
    assert!(late.starts_with("HTTP/1.1 503 ") && late.contains("more waits than can be answered"), "{late}");
    assert!(late.to_lowercase().contains("\r\nretry-after: "), "{late}");
    let spent = without_its_body(&stack, "m", "X-User-Id: ana\r\n");
    assert!(spent.starts_with("HTTP/1.1 429 ") && spent.contains("limit `each`"), "{spent}");
    engine.set("m", 1, Behaviour::Fail);
    eventually("the gate to open", || {
        (ask(&format!("{:?}", std::time::Instant::now())) == 500).then_some(())
    });
    let failing = without_its_body(&stack, "m", "X-User-Id: cat\r\n");
    assert!(failing.starts_with("HTTP/1.1 503 ") && failing.contains("keeps failing"), "{failing}");
    assert!(failing.to_lowercase().contains("\r\nretry-after: "), "{failing}");
}

/// Each run takes 50 ms, of 64 rows at most, which each of these callers has: together they keep the lanes busy for seconds.
#[test]
fn what_a_busy_engine_predicts_is_told_before_the_body_has_come() {
    let stack = Stack::builder().models(repository("tests/data/models")).start_unready();
    eventually("slow to be ready", || {
        (stack.client().get("/v2/models/slow/ready").status == 200).then_some(())
    });
    let (rows, is_over) = (infer_body("x", [64, 4], &[1.0; 256]), AtomicBool::new(false));
    let early = std::thread::scope(|scope| {
        for _ in 0..128 {
            scope.spawn(|| {
                let client = stack.client();
                while !is_over.load(Ordering::Relaxed) {
                    let answer = client.infer("slow", &[("x-request-timeout-ms", "30000")], &rows);
                    assert!(matches!(answer.status, 200 | 503 | 504), "{}", answer.text());
                }
            });
        }
        // One who is in haste finds out; it is silent to whoever is let in after that, as the body may come.
        let ask = || {
            let hasty = stack.client().infer("slow", &[("x-request-timeout-ms", "300")], &rows);
            let is_refused = hasty.status == 503;
            is_refused.then(|| without_its_body(&stack, "slow", "X-Request-Timeout-Ms: 200\r\n"))
        };
        let early = (0..60).filter_map(|_| ask()).find(|answer| !answer.is_empty());
        is_over.store(true, Ordering::Relaxed);
        early
    });
    let early = early.expect("it was overloaded for a while");
    assert!(early.starts_with("HTTP/1.1 503 "), "{early}");
    assert!(early.contains("more waits than can be answered in time"), "{early}");
    assert!(early.to_lowercase().contains("\r\nretry-after: 1\r\n"), "it is asked again soon: {early}");
    eventually("the gate to open", || {
        let answer = stack.client().infer("slow", &[("x-request-timeout-ms", "10000")], &rows);
        (answer.status == 200).then_some(())
    });
}

#[test]
fn a_deadline_is_kept_and_the_engine_is_told() {
    let engine = ScriptedEngine::start(&[("m", 1, Behaviour::Hang)]);
    let stack = Stack::builder().external_engine(engine.socket()).start();
    let late = stack.client().infer("m", &[("x-request-timeout-ms", "50")], &body());
    assert_eq!(late.status, 504);
    assert!(late.error().contains("0.050 s"), "{}", late.error());
    assert!(engine.next_cancel().is_some());
    let parameter =
        String::from_utf8(body()).expect("text").replacen('{', "{\"parameters\":{\"timeout\":30000},", 1);
    let late = stack.client().infer("m", &[], parameter.as_bytes());
    assert!(late.status == 504 && late.error().contains("0.030 s"), "{}", late.text());
}

#[test]
fn a_client_that_leaves_takes_its_request_along() {
    let engine = ScriptedEngine::start(&[("m", 1, Behaviour::Hang)]);
    let stack = Stack::builder().external_engine(engine.socket()).start();
    let client = sent(&stack, "m", "");
    engine.wait_until_asked(1);
    drop(client);
    assert!(engine.next_cancel().is_some());
    stack.wait_for_metric("penstock_requests_in_flight", 0.0);
    stack.wait_for_metric("penstock_refusals_total{reason=\"client_gone\",model=\"m\"}", 1.0);
}

#[test]
fn more_requests_than_fit_are_refused_at_once() {
    let engine = ScriptedEngine::start(&[("m", 1, Behaviour::Hold), ("m", 2, Behaviour::Answer)]);
    let stack =
        Stack::builder().config("requests: {in_flight_max: 2}").external_engine(engine.socket()).start();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            let client = stack.client();
            scope.spawn(move || client.post("/v2/models/m/versions/1/infer", &[], &body()));
        }
        stack.wait_for_metric("penstock_requests_in_flight", 2.0);
        let refused = stack.client().post("/v2/models/m/versions/2/infer", &[], &body());
        assert_eq!((refused.status, refused.header("retry-after")), (503, "1"));
        let asked = stack.client().post("/v2/repository/index", &[], b"");
        assert_eq!(asked.status, 200, "who looks after models has room of their own: {}", asked.text());
        engine.set("m", 1, Behaviour::Answer);
    });
    assert_eq!(stack.client().infer("m", &[], &body()).status, 200);
}

#[test]
fn when_there_is_hardly_room_the_less_critical_are_refused_first() {
    let engine = ScriptedEngine::start(&[("hangs", 1, Behaviour::Hang), ("m", 1, Behaviour::Answer)]);
    let policy = "overload:\n  criticality:\n    - {when: {header: x-is, equals: critical}, is: critical}\n    - {when: {header: x-is, equals: batch}, is: sheddable}\n";
    let stack = Stack::builder()
        .policies(policy)
        .config("requests: {in_flight_max: 8}")
        .external_engine(engine.socket())
        .start();
    let ask = |is: &str| stack.client().infer("m", &[("x-is", is)], &body());
    let hang = || sent(&stack, "hangs", "X-Is: critical\r\n");
    let mut hanging: Vec<_> = (0..6).map(|_| hang()).collect();
    engine.wait_until_asked(6);
    let refused = ask("batch");
    assert_eq!(refused.status, 503);
    assert!(refused.error().contains("the rest of the room is for more critical ones"), "{}", refused.text());
    assert_eq!((ask("").status, ask("critical").status), (200, 200));
    hanging.push(hang());
    engine.wait_until_asked(9);
    assert_eq!((ask("").status, ask("critical").status), (200, 200), "a tenth of eight is less than one");
    drop(hanging);
    eventually("the room to be free", || (ask("batch").status == 200).then_some(()));
}

#[test]
fn impatient_callers_and_slow_uploads_trip_no_breaker() {
    let engine = ScriptedEngine::start(&[("m", 1, Behaviour::Hang)]);
    let policy = "models: {m: {split: {weights: {1: 1}}, deadline: 200ms, breaker: {failures: 2}}}\n";
    let stack = Stack::builder().policies(policy).external_engine(engine.socket()).start();
    let client = stack.client();
    assert_eq!([(); 3].map(|()| client.infer("m", &[], &body()).status), [504; 3]);
    engine.set("m", 1, Behaviour::Answer);
    let body = body();
    let mut slow = TcpStream::connect(stack.http).expect("it listens");
    let head =
        format!("POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len());
    slow.write_all(&[head.as_bytes(), &body[..10]].concat()).expect("it reads");
    // Other requests pass while this one is being uploaded for longer than the deadline.
    let started = std::time::Instant::now();
    while started.elapsed() < std::time::Duration::from_millis(300) {
        assert_eq!(client.infer("m", &[], &body).status, 200);
    }
    slow.write_all(&body[10..]).expect("it reads");
    let mut answer = [0; 12];
    slow.read_exact(&mut answer).expect("an answer");
    assert_eq!(&answer, b"HTTP/1.1 200", "the deadline is the model's, not the network's");
}

/// Nobody waits for the breaker of files that are not there any more.
#[test]
fn a_version_that_is_mended_and_loaded_again_answers_at_once() {
    let models = tempfile::tempdir().expect("a temporary folder");
    let version = models.path().join("m/1");
    std::fs::create_dir_all(&version).expect("a folder");
    let put = |model: &str| {
        for file in ["model.pt", "model.yaml"] {
            let from = repository("tests/data/models").join(model).join("1").join(file);
            std::fs::copy(from, version.join(file)).expect("a file to copy");
        }
    };
    put("picky");
    let policy = "models: {m: {breaker: {failures: 2, open_for: 60s}}}\n";
    let stack = Stack::builder().policies(policy).models(models.path()).start();
    let (client, negative) = (stack.client(), infer_body("x", [1, 4], &[-1.0; 4]));
    let ask = || client.infer("m", &[], &negative).status;
    assert_eq!([ask(), ask(), ask()], [500, 500, 503]);
    let state = "penstock_breaker_state{model=\"m\",version=\"1\"}";
    assert_eq!(stack.metric(state), 2.0, "it has tripped");
    put("leaky");
    assert_eq!(client.post("/v2/repository/models/m/load", &[], b"").status, 200);
    assert_eq!(ask(), 200);
    assert_eq!(stack.metric(state), 0.0);
}

/// What becomes of it in the queue is the engine's own test: here it learns who asks.
#[test]
fn the_engine_is_told_whose_request_it_is_and_how_much_that_matters() {
    let engine = ScriptedEngine::start(&[("m", 1, Behaviour::Answer)]);
    let policy = "overload:\n  tenant: {header: x-tenant}\n  criticality:\n    - {when: {header: x-is, equals: critical}, is: critical}\n    - {when: {header: x-is, equals: batch}, is: sheddable}\n";
    let stack = Stack::builder().policies(policy).external_engine(engine.socket()).start();
    let client = stack.client();
    let standing = |headers: &[(&str, &str)]| {
        assert_eq!(client.infer("m", headers, &body()).status, 200);
        let told = *engine.told().last().expect("it was asked");
        (told.tenant, told.criticality)
    };
    let (acme, batch) =
        (standing(&[("x-tenant", "acme")]), standing(&[("x-tenant", "acme"), ("x-is", "batch")]));
    let (other, nobody) = (standing(&[("x-tenant", "other"), ("x-is", "critical")]), standing(&[]));
    assert_eq!((acme.1, batch.1, other.1, nobody.1), (2, 3, 1, 2));
    assert!(acme.0 == batch.0 && acme.0 != other.0 && acme.0 != 0, "{acme:?} {batch:?} {other:?}");
    assert_ne!(nobody.0, acme.0, "who names none is none of them");
}
