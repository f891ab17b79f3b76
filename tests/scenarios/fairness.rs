//! Two tenants where there is not enough for both: who floods a model, or the room for requests, is turned away first, and who asks
//! for little is answered. The queue is the engine's own.

use harness::{Behaviour, ScriptedEngine, Stack, eventually, infer_body, repository};
use std::io::Write;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

const FLOODING: usize = 64;
const QUIET: usize = 6;

#[test]
fn a_tenant_that_floods_is_turned_away_before_one_that_asks_for_little() {
    let models = tempfile::tempdir().expect("a folder");
    std::fs::create_dir(models.path().join("slow")).expect("a folder");
    std::os::unix::fs::symlink(repository("tests/data/models/slow/1"), models.path().join("slow/1"))
        .expect("a link");
    let policy = "models: {slow: {deadline: 2s}}\noverload: {tenant: {header: x-tenant}}\n";
    let stack = Stack::builder().models(models.path()).policies(policy).start();
    // Two runs of 50 ms each, of which 40 in a second are what two cores can do.
    let much = infer_body("x", [128, 4], &[1.0; 512]);
    let little = infer_body("x", [1, 4], &[1.0; 4]);
    let (is_over, turned_away, answered) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    let quiet: Vec<u16> = std::thread::scope(|scope| {
        for _ in 0..FLOODING {
            scope.spawn(|| {
                let client = stack.client();
                while !is_over.load(Ordering::Relaxed) {
                    let answer = client.infer("slow", &[("x-tenant", "flooding")], &much);
                    let count = match answer.status {
                        200 => &answered,
                        503 | 504 => &turned_away,
                        other => panic!("{other}: {}", answer.text()),
                    };
                    count.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        eventually("more than the engine can do", || {
            let [away, answered] = [&turned_away, &answered].map(|count| count.load(Ordering::Relaxed));
            (away >= FLOODING && answered >= QUIET).then_some(())
        });
        let ask = |_| stack.client().infer("slow", &[("x-tenant", "quiet")], &little).status;
        let quiet = (0..QUIET).map(ask).collect();
        is_over.store(true, Ordering::Relaxed);
        quiet
    });
    // Where the machine gets slower meanwhile, some may still be late.
    let of_quiet = quiet.iter().filter(|status| **status == 200).count();
    assert!(of_quiet >= QUIET - 2, "{quiet:?}");
    let (turned_away, answered) = (turned_away.into_inner(), answered.into_inner());
    assert!(turned_away > answered, "{turned_away} turned away, {answered} answered");
}

/// Bodies that do not come hold a place each. Who says nothing is one tenant, too.
#[test]
fn a_tenant_that_begins_very_many_requests_leaves_room_for_another_one() {
    let engine = ScriptedEngine::start(&[("m", 1, Behaviour::Answer)]);
    let stack = Stack::builder()
        .policies("models: {}\noverload: {tenant: {header: x-tenant}}\n")
        .config("requests: {in_flight_max: 20}")
        .external_engine(engine.socket())
        .start();
    let begin = |tenant: &str| {
        let head =
            format!("POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\n{tenant}Content-Length: 100\r\n\r\n");
        let mut stream = TcpStream::connect(stack.http).expect("it listens");
        stream.write_all(head.as_bytes()).expect("it reads");
        stream
    };
    let mut held: Vec<_> = (0..30).map(|_| begin("x-tenant: flooding\r\n")).collect();
    stack.wait_for_metric("penstock_refusals_total{reason=\"overloaded\",model=\"m\"}", 14.0);
    stack.wait_for_metric("penstock_requests_in_flight", 16.0);
    let ask = |headers: &[(&str, &str)]| stack.client().infer("m", headers, &infer_body("x", [1, 1], &[0.0]));
    for _ in 0..20 {
        assert_eq!(ask(&[("x-tenant", "quiet")]).status, 200);
    }
    held.extend((0..30).map(|_| begin("")));
    stack.wait_for_metric("penstock_requests_in_flight", 19.0);
    assert_eq!(ask(&[("x-tenant", "quiet")]).status, 200);
    let refused = ask(&[("x-tenant", "flooding")]);
    assert_eq!(
        (refused.status, refused.error().contains("this tenant's already")),
        (503, true),
        "{}",
        refused.text()
    );
}
