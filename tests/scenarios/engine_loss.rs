//! The engine dies; the proxy does not. Clients see 503 with advice, and then answers again.

use harness::{Behaviour, ScriptedEngine, Stack, eventually, infer_body, repository};
use rustix::process::{Signal, kill_process, test_kill_process};
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

fn five() -> Vec<u8> {
    std::fs::read(repository("configs/demo/requests/digit-5.json")).expect("a sample request")
}

/// A folder with these of the fixtures.
fn fixtures(names: &[&str]) -> tempfile::TempDir {
    let models = tempfile::tempdir().expect("a folder");
    for name in names {
        std::fs::create_dir(models.path().join(name)).expect("a folder");
        let version = repository(&format!("tests/data/models/{name}/1"));
        std::os::unix::fs::symlink(version, models.path().join(name).join("1")).expect("a link");
    }
    models
}

#[test]
fn a_killed_engine_costs_only_503s_and_comes_back() {
    let stack = Stack::builder().start();
    let first = stack.engine_pid().expect("an engine");
    let stop = AtomicBool::new(false);
    let statuses = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let client = stack.client();
                while !stop.load(Ordering::Relaxed) {
                    let answer = client.infer("digits", &[], &five());
                    if answer.status == 503 {
                        assert!(answer.headers.contains_key("retry-after"));
                    }
                    statuses.lock().expect("unpoisoned").push(answer.status);
                }
            });
        }
        eventually("traffic", || (statuses.lock().expect("unpoisoned").len() > 50).then_some(()));
        kill_process(first, Signal::KILL).expect("it runs");
        eventually("503s", || statuses.lock().expect("unpoisoned").contains(&503).then_some(()));
        let second = eventually("another engine", || stack.engine_pid().filter(|pid| *pid != first));
        eventually("answers again", || {
            (stack.client().infer("digits", &[], &five()).status == 200).then_some(())
        });
        assert_ne!(first, second);
        stop.store(true, Ordering::Relaxed);
    });
    let statuses = statuses.into_inner().expect("unpoisoned");
    assert!(statuses.iter().all(|status| [200, 503].contains(status)), "{statuses:?}");
    assert_eq!(stack.metric("penstock_engine_starts_total"), 2.0);
    assert_eq!(
        stack.metric("penstock_breaker_state{model=\"digits\",version=\"2\"}"),
        0.0,
        "no version is blamed"
    );
}

#[test]
fn readiness_follows_the_engine() {
    let stack = Stack::builder().start();
    kill_process(stack.engine_pid().expect("an engine"), Signal::STOP).expect("it runs");
    kill_process(stack.engine_pid().expect("an engine"), Signal::KILL).expect("it runs");
    let client = stack.client();
    eventually("not ready", || (client.get("/v2/health/ready").status == 503).then_some(()));
    assert_eq!(client.get("/v2/health/live").status, 200);
    eventually("ready again", || (client.get("/v2/health/ready").status == 200).then_some(()));
}

#[test]
fn a_killed_proxy_leaves_no_engine_behind() {
    let mut stack = Stack::builder().start();
    let engine = stack.engine_pid().expect("an engine");
    stack.signal(Signal::KILL);
    stack.wait();
    eventually("the engine to follow", || test_kill_process(engine).is_err().then_some(()));
}

#[test]
fn a_frame_cut_short_fails_its_request_and_the_next_one_connects_anew() {
    let engine = ScriptedEngine::start(&[("m", 1, Behaviour::Answer), ("m", 2, Behaviour::CutFrame)]);
    let stack = Stack::builder().external_engine(engine.socket()).start();
    let client = stack.client();
    let body = infer_body("x", [1, 1], &[0.0]);
    let ask = |version: u32| client.post(&format!("/v2/models/m/versions/{version}/infer"), &[], &body);
    assert_eq!(ask(1).status, 200);
    let cut = ask(2);
    assert_eq!(cut.status, 503);
    assert!(cut.error().contains("the engine closed the connection"), "{}", cut.error());
    assert_eq!(ask(1).status, 200);
}

#[test]
fn a_version_that_takes_the_engine_with_it_each_time_is_left_alone() {
    let engine = ScriptedEngine::start(&[("m", 1, Behaviour::CutFrame), ("n", 1, Behaviour::Answer)]);
    let policy =
        "models: {m: {breaker: {failures: 2, open_for: 1h}}, n: {breaker: {failures: 2, open_for: 1h}}}\n";
    let stack = Stack::builder().policies(policy).external_engine(engine.socket()).start();
    let (client, body) = (stack.client(), infer_body("x", [1, 1], &[0.0]));
    eventually("its breaker to trip", || {
        client.infer("m", &[], &body);
        stack.metrics().contains("penstock_breaker_state{model=\"m\",version=\"1\"} 2").then_some(())
    });
    eventually("the other model to be there", || (client.infer("n", &[], &body).status == 200).then_some(()));
}

#[test]
fn an_engine_that_is_told_to_stop_is_replaced_without_blame() {
    let stack = Stack::builder().start();
    let first = stack.engine_pid().expect("an engine");
    let client = stack.client();
    kill_process(first, Signal::TERM).expect("it runs");
    eventually("another engine", || {
        let answer = client.infer("digits", &[], &five());
        assert!([200, 503].contains(&answer.status), "{}", answer.text());
        stack.engine_pid().filter(|pid| *pid != first)
    });
    eventually("answers again", || (client.infer("digits", &[], &five()).status == 200).then_some(()));
}

#[test]
fn another_penstocks_engine_is_not_used() {
    let first = Stack::builder().start();
    let socket = first.folder().join("engine.sock");
    let second = Stack::builder().models(repository("tests/data/models")).socket(&socket).start_unready();
    let log =
        eventually("the clash to be told", || Some(second.log()).filter(|log| log.contains("engine.sock")));
    assert!(log.contains("listens") || log.contains("listening"), "{log}");
    assert_eq!(second.client().get("/v2/health/ready").status, 503);
    assert_eq!(second.client().infer("digits", &[], &five()).status, 503);
    assert_eq!(first.client().infer("digits", &[], &five()).status, 200);
}

#[test]
fn an_engine_that_leaks_is_replaced_before_its_memory_is_spent_and_no_request_notices() {
    let models = tempfile::tempdir().expect("a folder");
    std::fs::create_dir(models.path().join("leaky")).expect("a folder");
    for version in ["1", "2"] {
        let leaky = repository("tests/data/models/leaky/1");
        std::os::unix::fs::symlink(leaky, models.path().join("leaky").join(version)).expect("a link");
    }
    let stack = Stack::builder().models(models.path()).memory_mib(800).start();
    let order = stack.client().post("/v2/repository/models/leaky/versions/2/unload", &[], b"");
    assert_eq!(order.status, 200, "{}", order.text());
    let first = stack.engine_pid().expect("an engine");
    let ask = |value: f32| {
        let answer = stack.client().infer("leaky", &[], &infer_body("x", [1, 4], &[value; 4]));
        assert_eq!(answer.status, 200, "{}", answer.text());
    };
    eventually("to know what it holds", || {
        (stack.metric("penstock_engine_resident_bytes") > 0.0).then_some(())
    });
    // Each leaves 8 MB behind.
    (0..100).for_each(|_| ask(1000.0));
    let is_gone = || test_kill_process(first).is_err().then_some(());
    eventually("another engine to take over", || {
        ask(1.0);
        is_gone()
    });
    ask(1.0);
    assert_eq!(stack.metric("penstock_engine_starts_total"), 2.0);
    let index = stack.client().post("/v2/repository/index", &[], b"{\"ready\": true}").text();
    assert!(index.contains("\"version\":\"1\"") && !index.contains("\"version\":\"2\""), "unloaded: {index}");
    let log = stack.log();
    assert!(log.contains("800 are allowed: another engine takes over"), "{log}");
    eventually("little memory", || {
        (stack.metric("penstock_engine_resident_bytes") < f64::from(800 << 20)).then_some(())
    });
}

/// Two engines would not fit into the machine, so one ends before the other begins. Whoever has been given to it by then is answered,
/// also if it is still sending; whoever comes in between is told at once when to come again.
#[test]
fn an_engine_beside_which_no_other_has_room_answers_all_it_has_before_it_is_replaced() {
    if !harness::can_hide_memory() {
        eprintln!("not tried: this system lets nobody have mounts of its own");
        return;
    }
    let models = fixtures(&["leaky", "slow"]);
    let builder = || {
        Stack::builder()
            .models(models.path())
            .policies("models: {leaky: {deadline: 10m}, slow: {deadline: 10m}}\n")
    };
    let holds = |stack: &Stack| {
        let mib = || (stack.metric("penstock_engine_resident_bytes") / f64::from(1 << 20)) as u64;
        eventually("to know what it holds", || Some(mib()).filter(|mib| *mib > 0))
    };
    let mib = holds(&builder().start());
    let stack = builder().machine_mib(2 * mib).config("requests: {body_time_max: 10m}").start();
    let first = stack.engine_pid().expect("an engine");
    holds(&stack);
    let body = infer_body("x", [64, 4], &[1.0; 256]);
    let ends = || stack.log().contains("there is no memory for another engine beside it");
    // Until it is told so.
    let ask = || {
        let client = stack.client();
        eventually("to be told", || {
            let answer = client.infer("slow", &[], &body);
            let told = || (answer.status, answer.headers.contains_key("retry-after"), answer.text());
            (answer.status != 200).then(told)
        })
    };
    // One who has sent half of its body when the engine is given up.
    let send = || {
        let mut client = TcpStream::connect(stack.http).expect("it listens");
        let length = body.len();
        let head = format!(
            "POST /v2/models/slow/infer HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n"
        );
        let (first, second) = body.split_at(length / 2);
        client.write_all(&[head.as_bytes(), first].concat()).expect("it reads");
        eventually("the engine to be given up", || ends().then_some(()));
        client.write_all(second).expect("it reads");
        let mut answer = String::new();
        client.read_to_string(&mut answer).expect("an answer");
        answer
    };
    let (told, sent) = std::thread::scope(|scope| {
        // Each is a run of 50 ms, so that there is always a second of work.
        let asked: Vec<_> = (0..40).map(|_| scope.spawn(ask)).collect();
        let sending: Vec<_> = (0..4).map(|_| scope.spawn(send)).collect();
        // Each leaves 8 MB behind.
        let leaks = infer_body("x", [1, 4], &[1000.0; 4]);
        (0..60).for_each(|_| drop(stack.client().infer("leaky", &[], &leaks)));
        eventually("the engine to be gone", || test_kill_process(first).is_err().then_some(()));
        let told: BTreeSet<_> = asked.into_iter().map(|one| one.join().expect("an answer")).collect();
        let sent: Vec<_> = sending.into_iter().map(|one| one.join().expect("an answer")).collect();
        (told, sent)
    });
    assert!(sent.iter().all(|answer| answer.starts_with("HTTP/1.1 200")), "{sent:?}");
    let why = "{\"error\":\"the engine is not available: it is starting or restarting\"}";
    assert_eq!(told, BTreeSet::from([(503, true, why.to_owned())]), "{}", stack.log());
    assert!(
        !stack.metrics().contains("penstock_retries_total{"),
        "nothing came to an engine that was stopping"
    );
    eventually("answers again", || (stack.client().infer("slow", &[], &body).status == 200).then_some(()));
    let log = stack.log();
    assert!(log.contains("engine lost: the engine holds") && !log.contains("takes over"), "{log}");
    assert_eq!(stack.metric("penstock_engine_starts_total"), 2.0);
}

/// Whatever is called before it and takes long.
#[test]
fn what_loads_soonest_answers_first_after_an_engine_that_is_killed() {
    let models = tempfile::tempdir().expect("a folder");
    for (name, of) in [("a", "slow"), ("b", "picky")] {
        std::fs::create_dir(models.path().join(name)).expect("a folder");
        let version = repository(&format!("tests/data/models/{of}/1"));
        std::os::unix::fs::symlink(version, models.path().join(name).join("1")).expect("a link");
    }
    let stack = Stack::builder().models(models.path()).start();
    // A line is written after the version answers.
    let ready = |lines: usize| {
        eventually("lines of what is ready", || {
            let log = stack.log();
            let ready: Vec<_> =
                log.lines().filter(|line| line.contains("ready, ")).map(str::to_owned).collect();
            (ready.len() == lines).then_some(ready)
        })
    };
    ready(2);
    kill_process(stack.engine_pid().expect("an engine"), Signal::KILL).expect("it runs");
    let loaded = ready(4);
    let order: Vec<_> = loaded.iter().map(|line| line.contains("model=\"a\"")).collect();
    assert_eq!(order, [true, false, false, true], "{loaded:?}");
}

/// Nobody knows which of them have run: none is run again, and all are told.
#[test]
fn what_waits_in_an_engine_that_is_killed_is_told_so_and_not_repeated() {
    let models = fixtures(&["slow"]);
    // Whatever a busy machine makes of its first runs, nobody is refused for being late.
    let stack = Stack::builder().policies("models: {slow: {deadline: 10m}}\n").models(models.path()).start();
    let engine = stack.engine_pid().expect("an engine");
    let body = infer_body("x", [64, 4], &[1.0; 256]);
    let is_killed = AtomicBool::new(false);
    // However long it takes to see a queue, there is one.
    let ask = || {
        let client = stack.client();
        loop {
            let status = client.infer("slow", &[], &body).status;
            if is_killed.load(Ordering::Relaxed) || status != 200 {
                return status;
            }
        }
    };
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let asked: Vec<_> = (0..32).map(|_| scope.spawn(ask)).collect();
        eventually("a queue", || (stack.metric("penstock_requests_in_flight") >= 16.0).then_some(()));
        is_killed.store(true, Ordering::Relaxed);
        kill_process(engine, Signal::KILL).expect("it runs");
        asked.into_iter().map(|one| one.join().expect("an answer")).collect()
    });
    assert!(statuses.iter().all(|status| [200, 503].contains(status)), "{statuses:?}");
    let lost = statuses.iter().filter(|status| **status == 503).count();
    assert!(lost >= 4, "two lanes of 50 ms each cannot have answered them: {statuses:?}");
    assert!(!stack.metrics().contains("penstock_retries_total{"), "{}", stack.metrics());
}

/// An engine that gives its place to another one says what it has not run, and that is asked of the other one, within the
/// budget for that.
#[test]
fn who_asks_while_another_engine_takes_over_is_answered_by_one_of_them() {
    let models = fixtures(&["leaky"]);
    let stack = Stack::builder().models(models.path()).memory_mib(800).start();
    let first = stack.engine_pid().expect("an engine");
    let (stop, asked) = (AtomicBool::new(false), Mutex::new(0));
    std::thread::scope(|scope| {
        for leaks in [true, false] {
            let (stack, stop, asked) = (&stack, &stop, &asked);
            scope.spawn(move || {
                let client = stack.client();
                for at in 0.. {
                    // Each of the first hundred of one thread leaves 8 MB behind.
                    let value = if leaks && at < 100 { 1000.0 } else { 1.0 };
                    let answer = client.infer("leaky", &[], &infer_body("x", [1, 4], &[value; 4]));
                    assert_eq!(answer.status, 200, "{}", answer.text());
                    *asked.lock().expect("unpoisoned") += 1;
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                }
            });
        }
        eventually("another engine to take over", || test_kill_process(first).is_err().then_some(()));
        stop.store(true, Ordering::Relaxed);
    });
    let page = stack.metrics();
    let retries = page.lines().filter_map(|line| line.strip_prefix("penstock_retries_total{"));
    let retries = retries.map(|line| {
        assert!(line.contains("reason=\"engine_replaced\",outcome=\"answered\""), "{line}");
        line.rsplit(' ').next().and_then(|count| count.parse::<f64>().ok()).expect("a number")
    });
    let (retries, asked) = (retries.sum::<f64>(), asked.into_inner().expect("unpoisoned"));
    assert!(retries <= 10.0 + f64::from(asked) / 10.0, "{retries} of {asked}");
}

#[test]
fn an_engine_that_does_not_hear_any_more_is_killed_and_who_waits_for_it_is_told() {
    let stack = Stack::builder().policies("models: {digits: {deadline: 10m}}\n").start();
    let engine = stack.engine_pid().expect("an engine");
    kill_process(engine, Signal::STOP).expect("it runs");
    let answer = stack.client().infer("digits", &[], &five());
    assert_eq!(answer.status, 503, "{}", answer.text());
    // Its line comes when the process has ended.
    eventually("a line that says so", || {
        stack.log().contains("engine lost: it has not answered for 10s").then_some(())
    });
    eventually("another engine", || {
        (stack.client().infer("digits", &[], &five()).status == 200).then_some(())
    });
    assert_eq!(stack.metric("penstock_engine_starts_total"), 2.0);
}

/// What it does not come back from.
const STUCK: [f32; 4] = [1000.0; 4];

#[test]
fn a_model_that_hangs_is_named_and_another_engine_answers_for_it_and_for_the_others() {
    let models = fixtures(&["picky", "stuck"]);
    // Whatever a busy machine makes of the others, nobody is refused for being late.
    let stack = Stack::builder()
        .policies("models: {picky: {deadline: 10m}, stuck: {deadline: 10m}}\n")
        .models(models.path())
        .engine_arguments("--run-seconds-max 5")
        .start();
    let first = stack.engine_pid().expect("an engine");
    let ask = |model: &str, row: [f32; 4]| stack.client().infer(model, &[], &infer_body("x", [1, 4], &row));
    assert_eq!(ask("stuck", [1.0; 4]).output("y")[0], 2.0);
    let hung = ask("stuck", STUCK);
    assert_eq!(hung.status, 503, "{}", hung.text());
    assert!(hung.headers.contains_key("retry-after"), "{:?}", hung.headers);
    eventually("another engine", || stack.engine_pid().filter(|pid| *pid != first));
    for model in ["picky", "stuck"] {
        eventually("an answer again", || (ask(model, [1.0; 4]).status == 200).then_some(()));
    }
    let log = stack.log();
    assert!(log.contains("model `stuck` version 1 has not come back for 5 s"), "{log}");
    assert_eq!(stack.metric("penstock_engine_starts_total"), 2.0);
}

/// Whoever has so little time is turned away while nothing comes back, and does not wait for a lane; it is missed all the same.
#[test]
fn where_everybody_else_is_in_haste_what_nobody_waits_for_any_more_holds_up_the_engine_for_seconds() {
    let models = fixtures(&["picky", "stuck"]);
    let stack = Stack::builder()
        .models(models.path())
        .engine_arguments("--run-seconds-max 600 --threads-per-lane 1")
        .start();
    let first = stack.engine_pid().expect("an engine");
    let haste = [("x-request-timeout-ms", "1000")];
    let ask = |model: &str, row: [f32; 4]| {
        stack.client().infer(model, &haste, &infer_body("x", [1, 4], &row)).status
    };
    thread::scope(|scope| {
        for running in [1.0, 2.0] {
            scope.spawn(|| ask("stuck", STUCK));
            stack.wait_for_metric("penstock_engine_running", running);
        }
    });
    eventually("an answer", || (ask("picky", [1.0; 4]) == 200).then_some(()));
    assert_ne!(stack.engine_pid(), Some(first));
    let log = stack.log();
    assert!(log.contains("and nobody waits for it any more"), "{log}");
}

/// No lane ever comes back, so nothing of the queue can have been run.
#[test]
fn what_waits_in_the_queue_leaves_it_with_the_client_that_has_asked() {
    let models = fixtures(&["picky", "stuck"]);
    let stack = Stack::builder()
        .policies("models: {picky: {deadline: 10m}, stuck: {deadline: 10m}}\n")
        .models(models.path())
        .engine_arguments("--run-seconds-max 600 --threads-per-lane 1")
        .start();
    let sent = |model: &str, row: [f32; 4]| {
        let (body, mut client) = (infer_body("x", [1, 4], &row), TcpStream::connect(stack.http).unwrap());
        let length = body.len();
        let head =
            format!("POST /v2/models/{model}/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n");
        client.write_all(&[head.as_bytes(), &body].concat()).expect("it reads");
        client
    };
    let holds = |running: f64, waiting: f64| {
        stack.wait_for_metric("penstock_engine_running", running);
        stack.wait_for_metric("penstock_engine_waiting", waiting);
    };
    let _first = sent("stuck", STUCK);
    holds(1.0, 0.0);
    let _second = sent("stuck", STUCK);
    holds(2.0, 0.0);
    let leaver = sent("picky", [1.0; 4]);
    let _stays = sent("picky", [1.0; 4]);
    holds(2.0, 2.0);
    drop(leaver);
    holds(2.0, 1.0);
    stack.wait_for_metric("penstock_refusals_total{reason=\"client_gone\",model=\"picky\"}", 1.0);
    stack.wait_for_metric("penstock_requests_in_flight", 3.0);
}

#[test]
fn an_engine_that_ends_while_its_successor_loads_is_followed_by_that_one() {
    let models = fixtures(&["leaky", "slow"]);
    let stack = Stack::builder().models(models.path()).memory_mib(800).start();
    let first = stack.engine_pid().expect("an engine");
    let ask = |value: f32| stack.client().infer("leaky", &[], &infer_body("x", [1, 4], &[value; 4])).status;
    // Each leaves 8 MB behind.
    (0..100).for_each(|_| assert_eq!(ask(1000.0), 200));
    eventually("a successor to load", || {
        let log = stack.log();
        let (_, after) = log.split_once("another engine takes over")?;
        // It has the one that is loaded soonest, and not yet the other.
        (after.contains("model=\"leaky\"") && !after.contains("model=\"slow\"")).then_some(())
    });
    kill_process(first, Signal::KILL).expect("it runs");
    eventually("the successor to answer", || (ask(1.0) == 200).then_some(()));
    let log = stack.log();
    // By its signal or by the end of its link, whichever is noticed first.
    assert!(log.contains("engine lost: "), "{log}");
    assert!(log.contains("its successor goes on"), "{log}");
    assert_eq!(stack.metric("penstock_engine_starts_total"), 2.0);
    let slow = || stack.client().infer("slow", &[], &infer_body("x", [1, 4], &[1.0; 4])).status;
    eventually("what was still loading", || (slow() == 200).then_some(()));
}
