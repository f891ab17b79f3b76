//! Versions that another server answers. That is a second penstock here, in the place of a Triton: it speaks the same
//! protocol, and can be restarted and killed.

use harness::{Behaviour, Client, ScriptedEngine, Stack, eventually, infer_body};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

fn body() -> Vec<u8> {
    infer_body("x", [1, 1], &[0.0])
}

/// A policy in which version 2 is at `there`.
fn policy(there: &Stack, more: &str) -> String {
    format!("models: {{m: {{remote: {{2: {{url: 'http://{}/v2/models/m/infer'}}}}, {more}}}}}\n", there.http)
}

#[test]
fn requests_pass_as_they_came_and_answers_as_they_are() {
    let there_engine = ScriptedEngine::start(&[("m", 7, Behaviour::Answer)]);
    let there = Stack::builder().external_engine(there_engine.socket()).start();
    let engine = ScriptedEngine::start(&[("m", 1, Behaviour::Answer)]);
    let weights = policy(&there, "split: {weights: {1: 1, 2: 1}, sticky: {header: x-user-id}}");
    let stack = Stack::builder().policies(&weights).external_engine(engine.socket()).start();
    let client = stack.client();
    let mut seen = [0; 2];
    for user in 0..40 {
        let user = user.to_string();
        let answer = client.infer("m", &[("x-user-id", &user)], &body());
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.header("content-type"), "application/json");
        let version: usize = answer.header("x-penstock-version").parse().expect("a version");
        // The other server calls its version 7, and has no policy of ours.
        let named = ["\"model_version\":\"1\"", "\"model_version\":\"7\""][version - 1];
        assert!(answer.text().contains(named), "{}", answer.text());
        seen[version - 1] += 1;
    }
    assert!(seen.iter().all(|count| *count >= 8), "{seen:?}");
    let pinned = "/v2/models/m/versions/2/infer";
    let wrong = client.post(pinned, &[], b"{");
    assert_eq!((wrong.status, wrong.header("x-penstock-version")), (400, "2"), "whoever answers says so");
    // What only the other server may understand is its own business: ours takes no compressed bodies.
    let compressed = client.post(pinned, &[("content-encoding", "zstd")], &body());
    assert_eq!((compressed.status, compressed.error().contains("zstd")), (415, true));
    stack.wait_for_metric(
        "penstock_requests_total{model=\"m\",version=\"2\",outcome=\"served\"}",
        f64::from(seen[1]),
    );
    assert_eq!(client.get("/v2/models/m/versions/2/ready").status, 200);
}

#[test]
fn a_server_that_is_gone_trips_its_breaker_and_another_version_answers() {
    let there_engine = ScriptedEngine::start(&[("m", 7, Behaviour::Answer)]);
    let mut there = Stack::builder().external_engine(there_engine.socket()).start();
    let engine = ScriptedEngine::start(&[("m", 1, Behaviour::Answer)]);
    let breaker = "breaker: {failures: 2, open_for: 1s, max_open_for: 1s, fallback: {version: 1}}";
    let all = policy(&there, &format!("split: {{weights: {{2: 1}}}}, {breaker}"));
    let stack = Stack::builder().policies(&all).external_engine(engine.socket()).start();
    let client = stack.client();
    let answered_by = |client: &Client| {
        let answer = client.infer("m", &[], &body());
        (answer.status, answer.header("x-penstock-version").to_owned())
    };
    assert_eq!(answered_by(&client), (200, "2".into()));
    there.restart();
    assert_eq!(answered_by(&client), (200, "2".into()), "a connection that was kept too long is replaced");
    there.signal(rustix::process::Signal::KILL);
    there.wait();
    assert_eq!(answered_by(&client), (200, "1".into()), "nothing was sent, so another one may be asked");
    let answer = client.post("/v2/models/m/versions/2/infer", &[], &body());
    assert_eq!(answer.status, 502, "whoever asks for it by number gets no other: {}", answer.text());
    let says = "the server of this version cannot be reached: ";
    assert!(answer.error().starts_with(says) && !answer.error().contains("127.0.0.1"), "{}", answer.error());
    stack.wait_for_metric("penstock_requests_total{model=\"m\",version=\"1\",outcome=\"served\"}", 1.0);
    let asked_again =
        "penstock_retries_total{model=\"m\",version=\"2\",reason=\"unreachable\",outcome=\"answered\"}";
    assert_eq!(stack.metric(asked_again), 1.0);
    let told = stack.log().matches("cannot be reached: ").count();
    assert_eq!(told, 1, "whoever only reads the log knows, and is told once: {}", stack.log());
    let status = Client::new(stack.monitor).get("/status").json();
    let versions = status["versions"].as_array().expect("a list");
    let remote = versions.iter().find(|one| one["model"] == "m" && one["version"] == 2).expect("the version");
    let reason = remote["reason"].as_str().expect("a text");
    assert!(reason.contains("which could not be reached ") && reason.contains(" s ago: "), "{reason}");
    assert_eq!(
        stack.metric("penstock_breaker_state{model=\"m\",version=\"2\"}"),
        2.0,
        "both are its failures"
    );
    assert_eq!(answered_by(&client), (200, "1".into()));
    assert_eq!(stack.metric(asked_again), 1.0, "it is not even tried");
    let compressed = client.infer("m", &[("content-encoding", "zstd")], &body());
    assert_eq!(
        (compressed.status, compressed.error().contains("zstd")),
        (415, true),
        "the engine here reads none"
    );
    assert_eq!(stack.metric("penstock_breaker_state{model=\"m\",version=\"2\"}"), 2.0);
    there.restart();
    eventually("a probe to succeed", || (answered_by(&client).1 == "2").then_some(()));
}

#[test]
fn a_server_that_is_back_and_hangs_is_no_more_said_not_to_be_reached() {
    let nobody = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port");
    let policy = format!(
        "models: {{m: {{remote: {{2: {{url: 'http://{nobody}/'}}}}, split: {{weights: {{2: 1}}}}, breaker: {{failures: 100}}}}}}\n"
    );
    let engine = ScriptedEngine::start(&[("m", 1, Behaviour::Answer)]);
    let stack = Stack::builder().policies(&policy).external_engine(engine.socket()).start();
    let is_said_to_be_away = || {
        let status = Client::new(stack.monitor).get("/status").json();
        let versions = status["versions"].as_array().expect("a list");
        let remote = versions.iter().find(|one| one["version"] == 2).expect("the version");
        remote["reason"].as_str().is_some_and(|reason| reason.contains("which could not be reached "))
    };
    assert_eq!(stack.client().infer("m", &[], &body()).status, 502);
    assert!(is_said_to_be_away());
    let _hangs = TcpListener::bind(nobody).expect("the port is still free");
    assert_eq!(stack.client().infer("m", &[("x-request-timeout-ms", "1000")], &body()).status, 504);
    assert!(!is_said_to_be_away());
}

/// Whoever has not reached another server is no more welcome than who was refused by a breaker.
#[test]
fn of_those_who_do_not_reach_a_server_as_many_fall_back_at_a_time_as_the_policy_says() {
    let nobody = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port");
    let engine = ScriptedEngine::start(&[("m", 1, Behaviour::Hold)]);
    let policy = format!(
        "models: {{m: {{remote: {{2: {{url: 'http://{nobody}/'}}}}, split: {{weights: {{2: 1}}}}, \
         breaker: {{failures: 100, fallback: {{version: 1, in_flight_max: 1}}}}}}}}\n"
    );
    let stack = Stack::builder().policies(&policy).external_engine(engine.socket()).start();
    let client = stack.client();
    let first = std::thread::spawn(move || client.infer("m", &[], &body()));
    engine.wait_until_asked(1);
    let second = stack.client().infer("m", &[], &body());
    assert_eq!(second.status, 502, "{}", second.text());
    assert!(
        second.error().starts_with("the server of this version cannot be reached: "),
        "{}",
        second.error()
    );
    engine.set("m", 1, Behaviour::Answer);
    let first = first.join().expect("it is answered");
    assert_eq!((first.status, first.header("x-penstock-version")), (200, "1"), "{}", first.text());
    let third = stack.client().infer("m", &[], &body());
    assert_eq!((third.status, third.header("x-penstock-version")), (200, "1"), "the place is free again");
}

#[test]
fn a_server_that_does_not_answer_costs_its_deadline_and_no_more() {
    let there_engine = ScriptedEngine::start(&[("m", 7, Behaviour::Hang)]);
    let there = Stack::builder().external_engine(there_engine.socket()).start();
    let engine = ScriptedEngine::start(&[("other", 1, Behaviour::Answer)]);
    let all = policy(&there, "deadline: 300ms, split: {weights: {2: 1}}, breaker: {failures: 2}");
    let stack = Stack::builder().policies(&all).external_engine(engine.socket()).start();
    for _ in 0..2 {
        let answer = stack.client().infer("m", &[], &body());
        assert_eq!(answer.status, 504, "{}", answer.text());
    }
    let answer = stack.client().infer("m", &[], &body());
    assert_eq!(answer.status, 503, "who hangs is not asked for ever: {}", answer.text());
    stack.wait_for_metric("penstock_requests_total{model=\"m\",version=\"2\",outcome=\"failed\"}", 2.0);
    assert_eq!(stack.client().get("/v2/models/m/ready").status, 200, "the engine here need not know it");
    // It is told how much time there is, so it gives up as well.
    there_engine.next_cancel().expect("a cancelled request");
    stack.wait_for_metric("penstock_requests_in_flight", 0.0);
}

/// Traffic moves to another server step by step, and back at once when that fails.
#[test]
fn a_server_is_rolled_out_to_everybody_or_back_by_what_its_answers_show() {
    let canary = "canary: {baseline: 1, candidate: 2, steps: [20, 60], dwell: 100ms, sticky: {header: x-user-id}, \
                  gates: {errors: {at_most: 50}}}";
    for (behaviour, phase, answers) in
        [(Behaviour::Answer, "promoted", "2"), (Behaviour::Fail, "rolled_back", "1")]
    {
        let there_engine = ScriptedEngine::start(&[("m", 7, behaviour)]);
        let there = Stack::builder().external_engine(there_engine.socket()).start();
        let engine = ScriptedEngine::start(&[("m", 1, Behaviour::Answer)]);
        let stack =
            Stack::builder().policies(&policy(&there, canary)).external_engine(engine.socket()).start();
        let (client, admin, mut user) = (stack.client(), harness::Client::new(stack.admin), 0);
        let mut ask = || {
            user += 1;
            let user = format!("user-{user}");
            client.infer("m", &[("x-user-id", &user)], &body())
        };
        eventually(phase, || {
            (0..20).for_each(|_| drop(ask()));
            (admin.get("/canaries").json()["m"]["phase"] == phase).then_some(())
        });
        for _ in 0..50 {
            let answer = ask();
            assert_eq!((answer.status, answer.header("x-penstock-version")), (200, answers));
        }
        let failed = stack.metric("penstock_requests_total{model=\"m\",version=\"2\",outcome=\"failed\"}");
        assert!(failed <= 20.0, "{failed} users met it");
    }
}

/// Copies go to another server as they came, and come from one whose answers clients get.
#[test]
fn answers_of_another_server_are_compared_with_ours_whichever_of_them_clients_get() {
    let engine = ScriptedEngine::start(&[("m", 1, Behaviour::Answer)]);
    let series = |version: u32, outcome: &str| {
        format!("penstock_shadows_total{{model=\"m\",version=\"{version}\",outcome=\"{outcome}\"}}")
    };
    // What a scripted version answers is its number.
    for (there_version, outcome) in [(1, "agreed"), (7, "disagreed")] {
        let there_engine = ScriptedEngine::start(&[("m", there_version, Behaviour::Answer)]);
        let there = Stack::builder().external_engine(there_engine.socket()).start();
        for (answers, copies) in [(1, 2), (2, 1)] {
            let more = format!("split: {{weights: {{{answers}: 1}}}}, shadow: {{version: {copies}}}");
            let stack =
                Stack::builder().policies(&policy(&there, &more)).external_engine(engine.socket()).start();
            let client = stack.client();
            for asked in 1..=3 {
                let answer = client.infer("m", &[("accept-encoding", "gzip")], &body());
                assert_eq!(answer.status, 200, "{}", answer.text());
                assert_eq!(answer.header("x-penstock-version"), answers.to_string());
                stack.wait_for_metric(&series(copies, outcome), f64::from(asked));
            }
        }
    }
}

#[test]
fn a_server_that_hangs_over_copies_delays_nobody() {
    let there_engine = ScriptedEngine::start(&[("m", 1, Behaviour::Hang)]);
    let there = Stack::builder().external_engine(there_engine.socket()).start();
    let engine = ScriptedEngine::start(&[("m", 1, Behaviour::Answer)]);
    let more = "split: {weights: {1: 1}}, shadow: {version: 2, in_flight_max: 3, deadline: 10m}";
    let stack = Stack::builder().policies(&policy(&there, more)).external_engine(engine.socket()).start();
    let client = stack.client();
    for _ in 0..20 {
        assert_eq!(client.infer("m", &[], &body()).status, 200);
    }
    stack.wait_for_metric("penstock_shadows_total{model=\"m\",version=\"2\",outcome=\"dropped\"}", 17.0);
    stack.wait_for_metric("penstock_requests_in_flight", 0.0);
    // They wait there still; the last of them may be on its way.
    there.wait_for_metric("penstock_requests_in_flight", 3.0);
}

/// What clients got is kept for as long as a copy is under way, and more of it than there is room for is not.
#[test]
fn a_server_that_hangs_over_copies_of_long_answers_takes_nobodys_room() {
    const ANSWER: usize = 30 << 20;
    let text = format!("{{\"outputs\":[],\"rest\":\"{}\"}}", "x".repeat(ANSWER));
    let here = serve_each(move |stream| {
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", text.len());
        let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(text.as_bytes()));
    });
    let there = serve_each(|_| std::thread::park());
    let engine = ScriptedEngine::start(&[("m", 1, Behaviour::Answer)]);
    let policy = format!(
        "models: {{m: {{remote: {{2: {{url: 'http://{here}/infer'}}, 3: {{url: 'http://{there}/infer'}}}}, \
         split: {{weights: {{2: 1}}}}, shadow: {{version: 3, in_flight_max: 1000, deadline: 10m}}}}}}\n"
    );
    let stack = Stack::builder().policies(&policy).external_engine(engine.socket()).start();
    for _ in 0..20 {
        let answer = stack.client().infer("m", &[], &body());
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    stack.wait_for_metric("penstock_shadows_total{model=\"m\",version=\"3\",outcome=\"dropped\"}", 18.0);
}

/// Where a server is that does this with each connection, once a request has come.
fn serve_each(answer: impl Fn(&mut TcpStream) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
    let address = listener.local_addr().expect("it is bound");
    let answer = Arc::new(answer);
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let answer = Arc::clone(&answer);
            std::thread::spawn(move || {
                let mut part = [0; 4096];
                while let Ok(read @ 1..) = stream.read(&mut part) {
                    // The end of its JSON.
                    if part[..read].ends_with(b"}") {
                        answer(&mut stream);
                    }
                }
            });
        }
    });
    address
}

/// Two sidecars with a shadow at each other would copy one request for ever.
#[test]
fn a_copy_is_not_copied_again() {
    let there_engine = ScriptedEngine::start(&[("m", 7, Behaviour::Answer), ("m", 8, Behaviour::Answer)]);
    let copied_there = "models: {m: {split: {weights: {7: 1}}, shadow: {version: 8}}}\n";
    let there = Stack::builder().policies(copied_there).external_engine(there_engine.socket()).start();
    let engine = ScriptedEngine::start(&[("m", 1, Behaviour::Answer)]);
    let more = "split: {weights: {1: 1}}, shadow: {version: 2}";
    let stack = Stack::builder().policies(&policy(&there, more)).external_engine(engine.socket()).start();
    for copies in 1..=20 {
        assert_eq!(stack.client().infer("m", &[], &body()).status, 200);
        let compared = "penstock_shadows_total{model=\"m\",version=\"2\",outcome=\"disagreed\"}";
        stack.wait_for_metric(compared, f64::from(copies));
    }
    assert_eq!(there.client().infer("m", &[], &body()).status, 200);
    there.wait_for_metric("penstock_shadows_total{model=\"m\",version=\"8\",outcome=\"disagreed\"}", 1.0);
    there.wait_for_metric("penstock_requests_total{model=\"m\",version=\"7\",outcome=\"served\"}", 21.0);
}

#[test]
fn a_request_that_goes_round_in_circles_is_told_so() {
    let engine = ScriptedEngine::start(&[("other", 1, Behaviour::Answer)]);
    let stack = Stack::builder().external_engine(engine.socket()).start();
    std::fs::write(&stack.policies, policy(&stack, "split: {weights: {2: 1}}")).expect("its own file");
    let client = stack.client();
    let answer = eventually("the policy to be in force", || {
        let answer = client.infer("m", &[], &body());
        (answer.status != 404).then_some(answer)
    });
    assert_eq!(answer.status, 508, "{}", answer.text());
    assert!(answer.error().contains("passed on 8 times already"), "{}", answer.error());
    stack.wait_for_metric("penstock_requests_total{model=\"m\",version=\"2\",outcome=\"failed\"}", 1.0);
    // What another server has answered is no answer, and is counted as such.
    stack.wait_for_metric("penstock_refusals_total{reason=\"remote\",model=\"m\"}", 1.0);
}

#[test]
fn whoever_says_that_a_request_goes_in_circles_is_told_so_and_harms_nobody() {
    let there_engine = ScriptedEngine::start(&[("m", 7, Behaviour::Answer)]);
    let there = Stack::builder().external_engine(there_engine.socket()).start();
    let engine = ScriptedEngine::start(&[("m", 1, Behaviour::Answer)]);
    let all = policy(&there, "split: {weights: {2: 1}}, breaker: {failures: 2}");
    let stack = Stack::builder().policies(&all).external_engine(engine.socket()).start();
    let client = stack.client();
    for _ in 0..5 {
        for (hops, status) in [("8", 508), ("99", 508), ("abc", 400)] {
            assert_eq!(client.infer("m", &[("x-penstock-hops", hops)], &body()).status, status);
        }
    }
    assert_eq!(client.infer("m", &[], &body()).status, 200);
}

/// A server that stands for those that keep connections for less long than is hoped: it answers one request of each, and closes it
/// as the next one comes.
fn closes_after_one() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                // A head may come before its body.
                let mut request = Vec::new();
                while !request.ends_with(&body()) {
                    let mut part = [0; 4096];
                    match stream.read(&mut part) {
                        Ok(read @ 1..) => request.extend(&part[..read]),
                        Ok(_) | Err(_) => return,
                    }
                }
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}");
                let _ = stream.read(&mut [0; 4096]);
            });
        }
    });
    address
}

#[test]
fn what_is_sent_once_more_to_another_server_is_counted() {
    let there = closes_after_one();
    let engine = ScriptedEngine::start(&[("m", 1, Behaviour::Answer)]);
    let policy = format!(
        "models: {{m: {{remote: {{2: {{url: 'http://{there}/infer'}}}}, split: {{weights: {{2: 1}}}}}}}}\n"
    );
    let stack = Stack::builder().policies(&policy).external_engine(engine.socket()).start();
    let client = stack.client();
    for _ in 0..2 {
        assert_eq!(client.infer("m", &[], &body()).status, 200);
    }
    let series =
        "penstock_retries_total{model=\"m\",version=\"2\",reason=\"connection_closed\",outcome=\"answered\"}";
    stack.wait_for_metric(series, 1.0);
}

/// A server that stands for those that say 500 of what they cannot read, as Triton does, or 503, as TorchServe does, and of what asks for
/// it. It tells what it was asked.
fn fails_at_what_it_cannot_read(failure: u16) -> (SocketAddr, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    let (tell, asked) = channel();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let (mut read, mut part) = (Vec::new(), [0; 4096]);
            let body = loop {
                let Ok(count @ 1..) = stream.read(&mut part) else { break None };
                read.extend_from_slice(&part[..count]);
                let text = String::from_utf8_lossy(&read);
                let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
                let head = head.to_ascii_lowercase();
                let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
                if length.and_then(|length| length.parse().ok()) <= Some(body.len()) {
                    break Some(body.to_owned());
                }
            };
            let Some(body) = body else { continue };
            let fails = serde_json::from_str::<Value>(&body).map_or(true, |body| body["id"] == "fail");
            let (status, said) = if fails { (failure, r#"{"error":"no"}"#) } else { (200, "{}") };
            let length = said.len();
            let answer =
                format!("HTTP/1.1 {status} \r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{said}");
            let _ = stream.write_all(answer.as_bytes()); // it may have left
            let _ = tell.send(String::from_utf8_lossy(&read).into_owned()); // the scenario may be over
        }
    });
    (address, asked)
}

#[test]
fn what_nobody_can_read_is_its_callers_mistake_whatever_another_server_calls_it() {
    for failure in [500, 503] {
        let (there, _asked) = fails_at_what_it_cannot_read(failure);
        let engine = ScriptedEngine::start(&[("m", 1, Behaviour::Answer)]);
        let policy = format!(
            "models: {{m: {{remote: {{2: {{url: 'http://{there}/infer'}}}}, split: {{weights: {{2: 1}}}}, breaker: {{failures: 2}}}}}}\n"
        );
        let stack = Stack::builder().policies(&policy).external_engine(engine.socket()).start();
        let client = stack.client();
        let asking = |id: &str, shape: [u64; 2]| {
            let input = json!({"name": "x", "datatype": "FP32", "shape": shape, "data": [0.5]});
            json!({"id": id, "inputs": [input]}).to_string()
        };
        for _ in 0..3 {
            let bare_word = asking("", [1, 1]).replace("0.5", "NaN");
            // A server that is not there has 503 said of it, whatever it reads.
            let of_500 = (failure == 500).then_some(&*bare_word);
            for malformed in ["{", "", &asking("fail", [1, 2])].into_iter().chain(of_500) {
                let answer = client.infer("m", &[], malformed.as_bytes());
                assert_eq!((answer.status, answer.error()), (failure, "no".into()), "as it is: {malformed}");
            }
        }
        let refused = if failure == 500 { 12.0 } else { 9.0 };
        assert_eq!(client.infer("m", &[], asking("", [1, 1]).as_bytes()).status, 200);
        stack.wait_for_metric(
            "penstock_requests_total{model=\"m\",version=\"2\",outcome=\"refused\"}",
            refused,
        );
        stack.wait_for_metric("penstock_refusals_total{reason=\"invalid\",model=\"m\"}", refused);
        for is_there in [true, true, false] {
            let answer = client.infer("m", &[], asking("fail", [1, 1]).as_bytes());
            let expected =
                if is_there { (failure, "no") } else { (503, "version 2 of model `m` keeps failing") };
            let says = answer.error();
            assert!((answer.status, true) == (expected.0, says.starts_with(expected.1)), "{says}");
        }
    }
}

#[test]
fn another_server_is_told_the_id_of_a_request_and_that_it_is_json() {
    let (there, asked) = fails_at_what_it_cannot_read(500);
    let engine = ScriptedEngine::start(&[("m", 1, Behaviour::Answer)]);
    let policy = format!(
        "models: {{m: {{remote: {{2: {{url: 'http://{there}/infer'}}}}, split: {{weights: {{2: 1}}}}}}}}\n"
    );
    let stack = Stack::builder().policies(&policy).external_engine(engine.socket()).start();
    let as_curl_does = ("content-type", "application/x-www-form-urlencoded");
    for given in [None, Some(("x-request-id", "mine"))] {
        let headers: Vec<_> = given.into_iter().chain([as_curl_does]).collect();
        let answer = stack.client().infer("m", &headers, &body());
        let asked = asked.recv().expect("it was asked").to_ascii_lowercase();
        let has = |line: &str| asked.lines().any(|asked| asked == line);
        assert!(has(&format!("x-request-id: {}", answer.header("x-request-id"))), "{asked}");
        assert!(has("content-type: application/json"), "{asked}");
    }
}

/// A server that stands for those that refuse a large body as soon as they know how long it is.
fn refuses_at_once() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let read = stream.read(&mut [0; 4096]).expect("a request");
            assert!(read > 0, "a request");
            let _ = stream.write_all(b"HTTP/1.1 413 Payload Too Large\r\ncontent-length: 9\r\n\r\ntoo large");
        }
    });
    address
}

#[test]
fn a_server_that_refuses_a_large_body_before_it_has_come_is_heard_and_has_not_failed() {
    let there = refuses_at_once();
    let engine = ScriptedEngine::start(&[("m", 1, Behaviour::Answer)]);
    let policy = format!(
        "models: {{m: {{remote: {{2: {{url: 'http://{there}/infer'}}}}, split: {{weights: {{2: 1}}}}, breaker: {{failures: 2}}}}}}\n"
    );
    let stack = Stack::builder().policies(&policy).external_engine(engine.socket()).start();
    let client = stack.client();
    let large = infer_body("x", [1, 1 << 20], &vec![0.5; 1 << 20]);
    for _ in 0..4 {
        let answer = client.infer("m", &[], &large);
        assert_eq!((answer.status, answer.text()), (413, "too large".into()));
    }
}

/// A server that stands for whatever sends without end, and tells how much of it was taken.
fn endless() -> (SocketAddr, Receiver<usize>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    let (tell, taken) = channel();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let read = stream.read(&mut [0; 4096]).expect("a request");
            assert!(read > 0, "a request");
            let chunk = [b"100000\r\n".as_slice(), &vec![b' '; 1 << 20], b"\r\n"].concat();
            let head =
                b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
            stream.write_all(head).expect("it has asked");
            let chunks = std::iter::repeat_with(|| stream.write_all(&chunk)).take_while(Result::is_ok);
            let _ = tell.send(chunks.count() << 20); // the scenario may be over
        }
    });
    (address, taken)
}

#[test]
fn an_answer_without_end_is_read_as_far_as_one_may_be_long() {
    let (there, taken) = endless();
    let engine = ScriptedEngine::start(&[("m", 1, Behaviour::Answer)]);
    let policy = |more: &str| {
        format!(
            "models: {{m: {{remote: {{2: {{url: 'http://{there}/infer'}}}}, deadline: 80s, \
             split: {{weights: {{1: 1}}}}, {more}}}}}\n"
        )
    };
    let shadow = policy("shadow: {version: 2, deadline: 10m}");
    let stack = Stack::builder().policies(&shadow).external_engine(engine.socket()).start();
    let client = stack.client();
    assert_eq!(client.infer("m", &[], &body()).status, 200);
    stack.wait_for_metric("penstock_shadows_total{model=\"m\",version=\"2\",outcome=\"failed\"}", 1.0);
    // What the sockets between them hold was taken as well.
    let copied = taken.recv().expect("it was asked");
    assert!(copied < 64 << 20, "a copy has read {copied} bytes for an answer of a few");
    let asked = client.post("/v2/models/m/versions/2/infer", &[], &body());
    assert_eq!(asked.status, 502, "{}", asked.text());
    assert!(asked.error().contains("its answer is longer than 268435456 bytes"), "{}", asked.error());
    assert!(taken.recv().expect("it was asked") < 512 << 20);
}
