//! The trace of a request: who waited for what, and which batch it ran in.

use harness::{Behaviour, Collector, ScriptedEngine, Stack, eventually, infer_body, repository};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::{Link, SpanKind};
use std::collections::HashSet;
use std::process::Command;
use std::time::{Duration, Instant};

fn config(collector: &Collector, sample: f64) -> String {
    format!("traces: {{endpoint: 'http://{}', sample: {sample}}}", collector.address)
}

fn named<'a>(spans: &'a [Span], name: &str) -> Vec<&'a Span> {
    spans.iter().filter(|span| span.name == name).collect()
}

fn number(span: &Span, key: &str) -> i64 {
    let attribute = span
        .attributes
        .iter()
        .find(|attribute| attribute.key == key)
        .unwrap_or_else(|| panic!("{key} in {span:?}"));
    match attribute.value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(Value::IntValue(number)) => *number,
        other => panic!("{key} is {other:?}"),
    }
}

fn text<'a>(span: &'a Span, key: &str) -> &'a str {
    let attribute = span.attributes.iter().find(|attribute| attribute.key == key);
    let value = attribute.and_then(|attribute| attribute.value.as_ref()?.value.as_ref());
    match value {
        Some(Value::StringValue(text)) => text,
        other => panic!("{key} is {other:?}"),
    }
}

fn part(span: &Span, key: &str) -> f64 {
    let attribute = span.attributes.iter().find(|attribute| attribute.key == key);
    let value = attribute.and_then(|attribute| attribute.value.as_ref()?.value.as_ref());
    match value {
        Some(Value::DoubleValue(part)) => *part,
        other => panic!("{key} is {other:?}"),
    }
}

const SERVER_PINNED: &str = "POST /v2/models/{model}/versions/{version}/infer";
const SERVER: &str = "POST /v2/models/{model}/infer";

#[test]
fn a_traced_request_has_a_server_span_a_queue_span_and_a_batch() {
    let collector = Collector::start();
    let stack = Stack::builder().config(&config(&collector, 0.0)).start();
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let body = std::fs::read(repository("configs/demo/requests/digit-4.json")).expect("a sample request");
    assert_eq!(stack.client().infer("digits", &[("traceparent", parent)], &body).status, 200);
    let spans =
        eventually("all spans", || Some(collector.spans()).filter(|spans| !named(spans, "reply").is_empty()));
    let stages: Vec<_> = ["admit", "read", "decode", "reply"].map(|name| named(&spans, name)[0]).into();
    for (before, after) in stages.iter().zip(&stages[1..]) {
        assert!(before.end_time_unix_nano <= after.start_time_unix_nano, "stages follow each other");
    }
    assert!(stages.iter().all(|stage| stage.parent_span_id == named(&spans, SERVER)[0].span_id));
    let server = named(&spans, SERVER)[0];
    let queue = named(&spans, "engine queue")[0];
    let batch = named(&spans, "batch")[0];
    assert_eq!(server.kind, SpanKind::Server as i32);
    assert_eq!(server.parent_span_id, 0xb7ad_6b71_6920_3331_u64.to_be_bytes());
    assert_eq!((number(server, "penstock.version"), number(server, "http.response.status_code")), (2, 200));
    for span in [server, queue, batch] {
        assert_eq!(span.trace_id, 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c_u128.to_be_bytes());
        assert!(span.start_time_unix_nano <= span.end_time_unix_nano);
    }
    assert_eq!((&queue.parent_span_id, &batch.parent_span_id), (&server.span_id, &server.span_id));
    assert_eq!(queue.links[0].span_id, batch.span_id, "the queue links to the batch it waited for");
    assert_eq!(batch.links[0].span_id, server.span_id, "the batch links to its members");
    assert_eq!(number(batch, "penstock.batch.requests"), 1);
    assert_eq!(
        (text(batch, "penstock.batch.closed"), number(queue, "penstock.batch.position")),
        ("everything", 0)
    );
    assert_eq!(batch.links[0].attributes[0].key, "penstock.batch.position");
    let inside: Vec<_> = ["gather", "execute", "split"].map(|name| named(&spans, name)[0]).into();
    assert!(inside.iter().all(|stage| stage.parent_span_id == batch.span_id), "{inside:?}");
    assert_eq!(inside[0].start_time_unix_nano, batch.start_time_unix_nano);
    for (before, after) in inside.iter().zip(&inside[1..]) {
        assert_eq!(before.end_time_unix_nano, after.start_time_unix_nano);
    }
    assert!(inside[2].end_time_unix_nano <= batch.end_time_unix_nano);
    stack.wait_for_metric(r#"penstock_batches_total{closed="everything"}"#, 1.0);
    assert!(queue.end_time_unix_nano <= batch.start_time_unix_nano + 1000);
}

/// All at once, so that they wait for each other: in the queue, and for the thread that serves them all.
#[test]
fn whatever_a_burst_of_requests_waits_for_is_in_a_span_of_each() {
    const BURST: usize = 40;
    let collector = Collector::start();
    let stack = Stack::builder().config(&config(&collector, 1.0)).start();
    let body = std::fs::read(repository("configs/demo/requests/digit-4.json")).expect("a sample request");
    std::thread::scope(|scope| {
        for _ in 0..BURST {
            scope.spawn(|| assert_eq!(stack.client().infer("digits", &[], &body).status, 200));
        }
    });
    // It is the last that is told of a request.
    let spans = eventually("all spans", || {
        Some(collector.spans()).filter(|spans| named(spans, "reply").len() == BURST)
    });
    let servers = named(&spans, SERVER);
    assert_eq!(servers.len(), BURST);
    for server in servers {
        let mut children: Vec<_> =
            spans.iter().filter(|span| span.parent_span_id == server.span_id).collect();
        children.sort_by_key(|span| span.start_time_unix_nano);
        let names: Vec<_> = children.iter().map(|span| &*span.name).collect();
        for name in ["admit", "read", "decode", "link", "engine queue", "reply"] {
            assert!(names.contains(&name), "{name} is not among {names:?}");
        }
        assert!(names.contains(&"engine run") || names.contains(&"batch"), "{names:?}");
        let (mut until, mut gaps) = (server.start_time_unix_nano, 0);
        for child in &children {
            gaps += child.start_time_unix_nano.saturating_sub(until);
            until = until.max(child.end_time_unix_nano);
        }
        gaps += server.end_time_unix_nano.saturating_sub(until);
        let took = server.end_time_unix_nano - server.start_time_unix_nano;
        assert!(gaps * 10 <= took, "{gaps} of {took} ns are in none of {children:?}");
    }
}

/// What a reader does who wants to see traces: two lines of the demo's configuration, and one line of `sh`. In the place of Jaeger
/// stands whoever keeps what it would be sent.
#[test]
fn the_walk_of_the_readme_shows_forty_requests_in_one_trace_and_a_batch_of_several() {
    const AT_ONCE: usize = 40;
    let collector = Collector::start();
    let uncommented = |demo: &str| {
        let lines = [
            ("# traces:\n", "traces:\n".to_owned()),
            ("#   endpoint: http://127.0.0.1:4317\n", format!("  endpoint: http://{}\n", collector.address)),
        ];
        lines.into_iter().fold(demo.to_owned(), |text, (comment, line)| {
            assert_eq!(text.matches(comment).count(), 1, "{comment}");
            text.replace(comment, &line)
        })
    };
    let stack =
        Stack::builder().policy_file(&repository("configs/demo/policies.yaml")).demo(uncommented).start();
    let questions = crate::readme::questions();
    let question = questions.iter().find(|question| question.contains("traceparent")).expect("it has one");
    let question = crate::readme::asked_of(&stack, question);
    let members =
        |spans: &[Span]| named(spans, "batch").into_iter().map(|batch| batch.links.len()).sum::<usize>();
    let mut sent = 0;
    // Which of them meet, the machine decides.
    let spans = eventually("requests that run together", || {
        let output = Command::new("sh").args(["-c", &question]).current_dir(repository(".")).output();
        let says = String::from_utf8(output.expect("a shell").stdout).expect("text");
        let line = says.trim_start();
        assert!(line.starts_with("40 \"model_version\":\"") && says.lines().count() == 1, "{says}");
        sent += AT_ONCE;
        let spans = eventually("all spans", || {
            let has_all = |spans: &Vec<Span>| {
                [SERVER, "engine queue", "reply"].iter().all(|name| named(spans, name).len() == sent)
                    && members(spans) == sent
            };
            Some(collector.spans()).filter(has_all)
        });
        named(&spans, "batch").iter().any(|batch| batch.links.len() > 1).then_some(spans)
    });
    let trace = 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c_u128.to_be_bytes();
    // Of others who ask, whether it is ready, a hundredth is kept as well.
    let spans: Vec<_> = spans.into_iter().filter(|span| span.trace_id == trace).collect();
    assert_eq!(named(&spans, SERVER).len(), sent, "one trace has all");
    let children = |parent: &Span| -> Vec<&str> {
        let children = spans.iter().filter(|span| span.parent_span_id == parent.span_id);
        children.map(|span| &*span.name).collect()
    };
    for server in named(&spans, SERVER) {
        assert_eq!(server.parent_span_id, 0xb7ad_6b71_6920_3331_u64.to_be_bytes());
        let names = children(server);
        for name in ["admit", "read", "decode", "link", "engine queue", "reply"] {
            assert!(names.contains(&name), "{name} is not among {names:?}");
        }
        assert!(names.contains(&"engine run") || names.contains(&"batch"), "{names:?}");
    }
    let batches = named(&spans, "batch");
    for batch in &batches {
        assert_eq!(children(batch), ["gather", "execute", "split"]);
        assert_eq!(number(batch, "penstock.batch.requests"), batch.links.len() as i64);
        assert_eq!(part(batch, "penstock.batch.padding"), 0.0, "images of digits are of one size");
        let closed = text(batch, "penstock.batch.closed");
        let why = ["everything", "waited", "full", "efficient", "deadline", "alone"];
        assert!(why.contains(&closed), "{closed}");
    }
    for waited in named(&spans, "engine queue").into_iter().chain(named(&spans, "engine run")) {
        let batch = &waited.links[0].span_id;
        assert!(batches.iter().any(|told| told.span_id == *batch), "{waited:?}");
    }
}

#[test]
fn requests_that_ran_together_link_to_one_batch() {
    let collector = Collector::start();
    let stack = Stack::builder()
        .models(repository("tests/data/models"))
        .config(&config(&collector, 1.0))
        .start_unready();
    eventually("slow to be ready", || {
        (stack.client().get("/v2/models/slow/ready").status == 200).then_some(())
    });
    let members =
        |spans: &[Span]| named(spans, "batch").into_iter().map(|batch| batch.links.len()).sum::<usize>();
    let mut sent = 0;
    // A busy lane collects requests. How busy it is when they come, the machine decides.
    let spans = eventually("requests that run together", || {
        std::thread::scope(|scope| {
            for _ in 0..12 {
                let client = stack.client();
                scope.spawn(move || {
                    assert_eq!(client.infer("slow", &[], &infer_body("x", [1, 4], &[1.0; 4])).status, 200)
                });
            }
        });
        sent += 12;
        let spans = eventually("all spans", || {
            Some(collector.spans()).filter(|spans| {
                named(spans, SERVER).len() == sent
                    && named(spans, "engine queue").len() == sent
                    && members(spans) == sent
            })
        });
        named(&spans, "batch").iter().any(|batch| batch.links.len() > 1).then_some(spans)
    });
    let batches: HashSet<_> = named(&spans, "batch").into_iter().map(|batch| batch.span_id.clone()).collect();
    for queue in named(&spans, "engine queue") {
        assert!(batches.contains(&queue.links[0].span_id));
    }
    for batch in named(&spans, "batch") {
        let position =
            |link: &Link| match link.attributes[0].value.as_ref().and_then(|value| value.value.as_ref()) {
                Some(Value::IntValue(position)) => *position,
                other => panic!("{other:?}"),
            };
        let positions: HashSet<_> = batch.links.iter().map(position).collect();
        assert_eq!(positions, (0..number(batch, "penstock.batch.rows")).collect(), "of rows that came alone");
        for link in &batch.links {
            let queue =
                named(&spans, "engine queue").into_iter().find(|queue| queue.parent_span_id == link.span_id);
            assert_eq!(queue.map(|queue| number(queue, "penstock.batch.position")), Some(position(link)));
        }
    }
    let runs = named(&spans, "engine run");
    assert_eq!(runs.len() + batches.len(), sent, "whoever does not tell of its batch tells how long it took");
    assert!(runs.iter().all(|run| batches.contains(&run.links[0].span_id)));
}

/// A request that took long, which nobody knew before, beside one whose caller had asked for a trace.
#[test]
fn what_is_kept_at_its_end_links_to_its_batch_and_tells_of_it_where_nobody_else_does() {
    let collector = Collector::start();
    let traces = format!("traces: {{endpoint: 'http://{}', sample: 0, slow: 1ms}}", collector.address);
    let stack = Stack::builder().models(repository("tests/data/models")).config(&traces).start_unready();
    eventually("slow to be ready", || {
        (stack.client().get("/v2/models/slow/ready").status == 200).then_some(())
    });
    let ask = |headers: &[(&str, &str)]| {
        assert_eq!(stack.client().infer("slow", headers, &infer_body("x", [1, 4], &[1.0; 4])).status, 200);
    };
    ask(&[]);
    let spans = eventually("all spans of a lone one", || {
        Some(collector.spans())
            .filter(|spans| !named(spans, "split").is_empty() && !named(spans, SERVER).is_empty())
    });
    let (server, batch) = (named(&spans, SERVER)[0], named(&spans, "batch")[0]);
    assert_eq!((&batch.trace_id, &batch.parent_span_id), (&server.trace_id, &server.span_id));
    assert_eq!(named(&spans, "engine queue")[0].links[0].span_id, batch.span_id);
    assert_eq!(batch.links[0].span_id, server.span_id);
    assert_eq!(named(&spans, "execute")[0].parent_span_id, batch.span_id);

    let traced = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let trace_id = 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c_u128.to_be_bytes();
    let foreign = eventually("one that ran with a traced one", || {
        std::thread::scope(|scope| {
            for at in 0..8 {
                let ask = &ask;
                scope.spawn(move || if at % 4 == 0 { ask(&[("traceparent", traced)]) } else { ask(&[]) });
            }
        });
        let spans = collector.spans();
        let queues = named(&spans, "engine queue").into_iter();
        let mut foreign =
            queues.filter(|queue| queue.trace_id != trace_id && queue.links[0].trace_id == trace_id);
        // On a machine that has no time to send them, spans are lost.
        let batch = foreign.find_map(|queue| {
            let mut batches = named(&spans, "batch").into_iter();
            batches.find(|batch| batch.span_id == queue.links[0].span_id).cloned()
        })?;
        Some((batch, spans))
    });
    let (batch, spans) = foreign;
    assert_eq!(batch.trace_id, trace_id, "it is told once, where it is traced");
    let told = named(&spans, "batch").into_iter().filter(|other| other.span_id == batch.span_id);
    assert_eq!(told.count(), 1);
}

/// The other server is a second penstock, in the place of whatever else takes part in traces.
#[test]
fn another_server_is_asked_in_a_span_of_its_own_and_goes_on_under_it() {
    let collector = Collector::start();
    let there_engine = ScriptedEngine::start(&[("m", 7, Behaviour::Answer)]);
    let there =
        Stack::builder().config(&config(&collector, 0.0)).external_engine(there_engine.socket()).start();
    let engine = ScriptedEngine::start(&[("m", 1, Behaviour::Answer)]);
    let policies = format!(
        "models: {{m: {{remote: {{2: {{url: 'http://{}/v2/models/m/infer?key=secret'}}}}, split: {{weights: {{2: 1}}}}}}}}\n",
        there.http
    );
    let stack = Stack::builder()
        .config(&config(&collector, 0.0))
        .policies(&policies)
        .external_engine(engine.socket())
        .start();
    let traced = [("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")];
    assert_eq!(stack.client().infer("m", &traced, &infer_body("x", [1, 1], &[0.0])).status, 200);
    let spans = eventually("both servers' spans", || {
        Some(collector.spans())
            .filter(|spans| named(spans, "reply").len() == 2 && !named(spans, "POST").is_empty())
    });
    let client = named(&spans, "POST")[0];
    let servers = named(&spans, SERVER);
    let (first, second): (Vec<_>, Vec<_>) =
        servers.into_iter().partition(|server| server.span_id == client.parent_span_id);
    assert_eq!((first.len(), &second[0].parent_span_id), (1, &client.span_id));
    assert_eq!(client.kind, SpanKind::Client as i32);
    assert_eq!(text(client, "url.full"), format!("http://{}/v2/models/m/infer", there.http));
    assert_eq!(number(client, "http.response.status_code"), 200);
    let of_first =
        |name| named(&spans, name).into_iter().find(|span| span.parent_span_id == first[0].span_id);
    let around =
        ["decode", "reply"].map(|name| of_first(name).unwrap_or_else(|| panic!("{name} in {spans:?}")));
    assert_eq!(around[0].end_time_unix_nano, client.start_time_unix_nano, "from the body to the question");
    assert_eq!(around[1].start_time_unix_nano, client.end_time_unix_nano, "from its answer to ours");
}

#[test]
fn the_callers_choice_beats_the_sampling_rate_and_nonsense_counts_as_none() {
    let collector = Collector::start();
    let engine = ScriptedEngine::start(&[("m", 1, Behaviour::Answer), ("m", 2, Behaviour::Fail)]);
    let stack = Stack::builder().config(&config(&collector, 0.0)).external_engine(engine.socket()).start();
    let client = stack.client();
    let ask = |traceparent: &str, version: u32| {
        client
            .post(
                &format!("/v2/models/m/versions/{version}/infer"),
                &[("traceparent", traceparent), ("tracestate", &"a=b,".repeat(1000))],
                &infer_body("x", [1, 1], &[0.0]),
            )
            .status
    };
    assert_eq!(ask("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00", 1), 200); // not sampled
    assert_eq!(ask("00-nonsense", 1), 200);
    assert_eq!(ask("00-00000000000000000000000000000000-0000000000000000-01", 1), 200);
    assert_eq!(ask("00-0af7651916cd43dd8448eb211c80319d-b7ad6b7169203331-01", 2), 500);
    let spans = eventually("the one span", || Some(collector.spans()).filter(|spans| !spans.is_empty()));
    assert_eq!(named(&spans, SERVER_PINNED).len(), 1);
    let server = named(&spans, SERVER_PINNED)[0];
    assert_eq!(server.trace_id, 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319d_u128.to_be_bytes());
    assert_eq!(server.status.as_ref().map(|status| status.code), Some(2), "a failure is marked as one");
}

#[test]
fn what_fails_or_is_refused_or_takes_long_is_kept_whatever_the_sampling_rate() {
    let collector = Collector::start_http();
    let engine = ScriptedEngine::start(&[
        ("m", 1, Behaviour::Answer),
        ("m", 2, Behaviour::Fail),
        ("m", 3, Behaviour::Hang),
    ]);
    let traces = format!(
        "traces: {{endpoint: 'http://{}', protocol: http, sample: 0, slow: 100ms}}",
        collector.address
    );
    let stack = Stack::builder().config(&traces).external_engine(engine.socket()).start();
    let client = stack.client();
    let ask = |version: u32, headers: &[(&str, &str)]| {
        let path = format!("/v2/models/m/versions/{version}/infer");
        client.post(&path, headers, &infer_body("x", [1, 1], &[0.0])).status
    };
    let declined = ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00");
    assert_eq!(ask(1, &[]), 200);
    assert_eq!(ask(2, &[declined, ("x-request-id", "order-7")]), 500);
    assert_eq!(ask(9, &[]), 404);
    assert_eq!(ask(3, &[("x-request-timeout-ms", "150")]), 504);
    let servers = eventually("three server spans", || {
        let spans = collector.spans();
        let servers: Vec<_> = named(&spans, SERVER_PINNED).into_iter().cloned().collect();
        (servers.len() >= 3).then_some(servers)
    });
    let status = |span: &Span| number(span, "http.response.status_code");
    assert_eq!(servers.iter().map(status).collect::<Vec<_>>(), [500, 404, 504], "and not the answer");
    let failed = &servers[0];
    assert_eq!(failed.trace_id, 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c_u128.to_be_bytes());
    assert_eq!(failed.parent_span_id, 0xb7ad_6b71_6920_3331_u64.to_be_bytes());
    assert_eq!(text(failed, "penstock.request_id"), "order-7");
    assert_eq!(text(failed, "feature_flag.result.variant"), "2");
    let late = &servers[2];
    let took = late.end_time_unix_nano - late.start_time_unix_nano;
    assert!(took >= 150_000_000, "it began when its head came: {took} ns");
    stack.wait_for_metric("penstock_spans_lost_total", 0.0);
    assert!(stack.metric("penstock_spans_exported_total") >= 3.0);
}

/// Of each kind one, beside an answer in good time, which is not kept.
#[test]
fn limits_overload_open_breakers_and_slow_answers_are_kept_at_a_rate_of_nothing() {
    const SLOW: Duration = Duration::from_secs(1);
    let collector = Collector::start();
    let traces = format!("traces: {{endpoint: 'http://{}', sample: 0, slow: 1s}}", collector.address);
    let engine = ScriptedEngine::start(&[
        ("m", 1, Behaviour::Answer),
        ("m", 2, Behaviour::Overloaded),
        ("m", 3, Behaviour::Fail),
        ("m", 4, Behaviour::Hold),
    ]);
    let stack = Stack::builder()
        .policies(
            "models: {m: {breaker: {failures: 1, open_for: 1h, max_open_for: 1h}}}\n\
             limits: [{name: each, key: {header: x-user-id}, rate: 1/h, burst: 1}]\n",
        )
        .config(&traces)
        .config("requests: {in_flight_max: 2}")
        .external_engine(engine.socket())
        .start();
    let ask = |version: u32, user: &str| {
        let path = format!("/v2/models/m/versions/{version}/infer");
        let status =
            stack.client().post(&path, &[("x-user-id", user)], &infer_body("x", [1, 1], &[0.0])).status;
        stack.wait_for_metric("penstock_requests_in_flight", 0.0); // else there may be no room for the next
        status
    };
    assert_eq!((ask(1, "ana"), ask(1, "ana")), (200, 429));
    assert_eq!(ask(2, "ben"), 503);
    assert_eq!((ask(3, "cat"), ask(3, "dan")), (500, 503));
    std::thread::scope(|scope| {
        let held = ["eve", "fay"].map(|user| scope.spawn(move || ask(4, user)));
        stack.wait_for_metric("penstock_requests_in_flight", 2.0);
        let began = Instant::now();
        let path = "/v2/models/m/versions/1/infer";
        let crowd = stack.client().post(path, &[("x-user-id", "gus")], &infer_body("x", [1, 1], &[0.0]));
        assert_eq!(crowd.status, 503, "{}", crowd.text());
        std::thread::sleep((SLOW + SLOW / 4).saturating_sub(began.elapsed()));
        engine.set("m", 4, Behaviour::Answer);
        assert_eq!(held.map(|held| held.join().expect("an answer")), [200, 200]);
    });
    let mut kept = eventually("a server span of each", || {
        let spans = collector.spans();
        let told = named(&spans, SERVER_PINNED).into_iter().map(|server| {
            let refusal = server.attributes.iter().any(|attribute| attribute.key == "penstock.refusal");
            let refusal = if refusal { text(server, "penstock.refusal") } else { "" };
            let took = Duration::from_nanos(server.end_time_unix_nano - server.start_time_unix_nano);
            (number(server, "http.response.status_code"), refusal.to_owned(), took >= SLOW)
        });
        let told: Vec<_> = told.collect();
        (told.len() >= 7).then_some(told)
    });
    kept.sort();
    let kept: Vec<_> =
        kept.iter().map(|(status, refusal, is_slow)| (*status, &**refusal, *is_slow)).collect();
    let expected = [
        (200, "", true),
        (200, "", true),
        (429, "rate_limited", false),
        (500, "model_failed", false),
        (503, "breaker", false),
        (503, "overloaded", false),
        (503, "overloaded", false),
    ];
    assert_eq!(kept, expected);
}

#[test]
fn what_the_model_failed_on_shows_where_its_time_went_and_what_its_caller_was_told() {
    let collector = Collector::start();
    let traces = format!("traces: {{endpoint: 'http://{}', sample: 0}}", collector.address);
    let stack = Stack::builder().models(repository("tests/data/models")).config(&traces).start_unready();
    eventually("picky to be ready", || {
        (stack.client().get("/v2/models/picky/ready").status == 200).then_some(())
    });
    let answer = stack.client().infer("picky", &[], &infer_body("x", [2, 4], &[-1.0; 8]));
    assert_eq!(answer.status, 500);
    let spans = eventually("its spans", || {
        Some(collector.spans()).filter(|spans| !named(spans, "engine run").is_empty())
    });
    let (server, run) = (named(&spans, SERVER)[0], named(&spans, "engine run")[0]);
    assert_eq!(text(server, "error.message"), answer.error());
    assert_eq!(run.trace_id, server.trace_id);
    assert_eq!((number(run, "penstock.batch.rows"), number(run, "penstock.batch.requests")), (2, 1));
    assert!(run.end_time_unix_nano > run.start_time_unix_nano);
    assert_eq!(named(&spans, "engine queue")[0].parent_span_id, server.span_id);
    let ran = "penstock_engine_run_duration_seconds_count{model=\"picky\",version=\"1\"}";
    assert_eq!(stack.metric(ran), 1.0);
}

/// What one caller does wrong a thousand times.
#[test]
fn many_mistakes_of_callers_do_not_hide_what_fails_here() {
    let collector = Collector::start();
    let traces = format!("traces: {{endpoint: 'http://{}', sample: 0}}", collector.address);
    let engine = ScriptedEngine::start(&[("m", 2, Behaviour::Fail)]);
    let stack = Stack::builder().config(&traces).external_engine(engine.socket()).start();
    let client = stack.client();
    eventually("so many mistakes that not all are kept", || {
        (0..200).for_each(|_| assert_eq!(client.infer("nobody", &[], b"{}").status, 404));
        (stack.metric("penstock_traces_passed_over_total") > 0.0).then_some(())
    });
    assert_eq!(client.infer("m", &[], &infer_body("x", [1, 1], &[0.0])).status, 500);
    eventually("what has failed", || {
        let spans = collector.spans();
        let status = |span: &&Span| number(span, "http.response.status_code");
        named(&spans, SERVER).iter().any(|span| status(span) == 500).then_some(())
    });
}

/// A caller who has one version for good, and one who asks for a label that nobody has.
#[test]
fn a_span_says_which_version_its_caller_got_and_why_or_why_it_got_no_answer() {
    let collector = Collector::start();
    let engine = ScriptedEngine::start(&[("m", 1, Behaviour::Answer), ("m", 2, Behaviour::Answer)]);
    let stack = Stack::builder()
        .policies(
            "models: {m: {labels: {new: 2}, split: {weights: {new: 100}, sticky: {header: x-user-id}}}}\n\
             limits: [{name: per-user, key: {header: x-user-id}, rate: 1/h, burst: 1}]\n",
        )
        .external_engine(engine.socket())
        .config(&config(&collector, 1.0))
        .start();
    let ask = || stack.client().infer("m", &[("x-user-id", "ana")], &infer_body("x", [1, 1], &[0.0])).status;
    assert_eq!((ask(), ask()), (200, 429));
    let servers = eventually("two server spans", || {
        let servers: Vec<_> = named(&collector.spans(), SERVER).into_iter().cloned().collect();
        (servers.len() == 2).then_some(servers)
    });
    let [answered, refused] = &servers[..] else { panic!("{servers:?}") };
    for (key, value) in [
        ("penstock.model", "m"),
        ("penstock.label", "new"),
        ("penstock.pick", "sticky"),
        ("feature_flag.key", "m"),
        ("feature_flag.provider.name", "penstock"),
        ("feature_flag.result.variant", "2"),
        ("feature_flag.result.reason", "split"),
    ] {
        assert_eq!(text(answered, key), value, "{key}");
    }
    assert_eq!((number(answered, "penstock.version"), number(answered, "penstock.generation")), (2, 1));
    assert_eq!(
        (text(refused, "penstock.refusal"), number(refused, "penstock.generation")),
        ("rate_limited", 1)
    );
    assert_eq!(number(refused, "http.response.status_code"), 429);
    let status = refused.status.as_ref().map_or(0, |status| status.code);
    assert_eq!(status, 0, "what a caller has to mend is no error of the server");
}

#[test]
fn a_trace_that_is_kept_is_an_example_of_its_time() {
    let collector = Collector::start();
    let engine = ScriptedEngine::start(&[("m", 1, Behaviour::Answer)]);
    let stack = Stack::builder().config(&config(&collector, 0.0)).external_engine(engine.socket()).start();
    let body = infer_body("x", [1, 1], &[0.0]);
    let example = "# {trace_id=\"0af7651916cd43dd8448eb211c80319c\"}";
    assert_eq!(stack.client().infer("m", &[], &body).status, 200);
    assert!(!stack.openmetrics().contains("# {trace_id="), "nobody has kept it");
    let parent = ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    assert_eq!(stack.client().infer("m", &[parent], &body).status, 200);
    let page = eventually("the example", || Some(stack.openmetrics()).filter(|page| page.contains(example)));
    let line = page.lines().find(|line| line.contains(example)).unwrap_or_default();
    assert!(line.starts_with("penstock_request_duration_seconds_bucket{le="), "{line}");
    assert!(line.contains(r#"model="m",version="1"} "#), "{line}");
}

/// As many as a head has room for, which is more than the 32 that a vendor has to pass on.
#[test]
fn a_caller_with_a_thousand_other_vendors_is_traced_like_others() {
    let collector = Collector::start();
    let engine = ScriptedEngine::start(&[("m", 1, Behaviour::Answer)]);
    let stack = Stack::builder().config(&config(&collector, 0.0)).external_engine(engine.socket()).start();
    // In one header or in several, which mean the same.
    let several = [
        ("traceparent", "00-1af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("tracestate", "one=1,two=2"),
        ("tracestate", "three=3"),
    ];
    assert_eq!(stack.client().infer("m", &several, &infer_body("x", [1, 1], &[0.0])).status, 200);
    let states = eventually("its span", || {
        named(&collector.spans(), SERVER).first().map(|server| server.trace_state.clone())
    });
    assert_eq!(states, "one=1,two=2,three=3");
    let collector = Collector::start();
    let there = tells_its_heads();
    let elsewhere = format!("models: {{m: {{remote: {{2: {{url: 'http://{}/infer'}}}}}}}}\n", there.0);
    let stack = Stack::builder()
        .config(&config(&collector, 0.0))
        .policies(&elsewhere)
        .external_engine(engine.socket())
        .start();
    let vendors: Vec<String> = (0..1000).map(|vendor| format!("v{vendor}=1")).collect();
    let first = vendors[..32].join(",");
    let headers = [
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("tracestate", &*vendors.join(",")),
    ];
    let pinned = |version: u32| format!("/v2/models/m/versions/{version}/infer");
    let ask = |version: u32, headers: &[(&str, &str)]| {
        let answer = stack.client().post(&pinned(version), headers, &infer_body("x", [1, 1], &[0.0]));
        assert_eq!(answer.status, 200, "{}", answer.text());
    };
    ask(1, &headers);
    let spans = eventually("its span", || {
        Some(collector.spans()).filter(|spans| !named(spans, SERVER_PINNED).is_empty())
    });
    let server = named(&spans, SERVER_PINNED)[0];
    assert_eq!(server.trace_id, 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c_u128.to_be_bytes());
    assert_eq!(server.parent_span_id, 0xb7ad_6b71_6920_3331_u64.to_be_bytes());
    assert_eq!(server.trace_state, first, "the 32 that have to be passed on");
    let children = spans.iter().filter(|span| span.parent_span_id == server.span_id);
    assert!(children.into_iter().all(|span| span.trace_state.is_empty()), "they are said once");

    // Another server is told the same, and what nobody can read not at all.
    let told = || -> Vec<String> {
        let head = there.1.recv().expect("a head").to_lowercase();
        head.lines().filter_map(|line| line.strip_prefix("tracestate: ").map(str::to_owned)).collect()
    };
    ask(2, &headers);
    assert_eq!(told(), [first]);
    ask(2, &several);
    assert_eq!(told(), ["one=1,two=2,three=3"]);
    ask(2, &[headers[0], ("tracestate", "one=1,==")]);
    assert_eq!(told(), [""; 0]);
    let declined = ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00");
    ask(2, &[declined, ("tracestate", "one=1,==")]);
    assert_eq!(told(), ["one=1,=="], "whoever takes no part passes on what came");
}

/// A server that answers everything alike, and tells the heads of what it was asked.
fn tells_its_heads() -> (std::net::SocketAddr, std::sync::mpsc::Receiver<String>) {
    use std::io::{Read, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    let (tells, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut asked = Vec::new();
            // The body comes in one piece with a head, or after it.
            while !asked.ends_with(b"}]}") {
                let mut chunk = [0; 4096];
                let Ok(read @ 1..) = stream.read(&mut chunk) else { break };
                asked.extend_from_slice(&chunk[..read]);
            }
            let _ = tells.send(String::from_utf8_lossy(&asked).into_owned()); // nobody may want it
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}");
        }
    });
    (address, told)
}

/// It takes connections and whatever is sent, and never answers: a process that is stopped, a network that swallows.
#[test]
fn a_collector_that_hangs_costs_its_spans_and_nothing_else() {
    for protocol in ["grpc", "http"] {
        let collector = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback has free ports");
        let address = collector.local_addr().expect("it is bound");
        let engine = ScriptedEngine::start(&[("m", 1, Behaviour::Answer)]);
        let traces = format!("traces: {{endpoint: 'http://{address}', protocol: {protocol}, sample: 1.0}}");
        let mut stack = Stack::builder().config(&traces).external_engine(engine.socket()).start();
        let client = stack.client();
        let ask = |count: u32| {
            let body = infer_body("x", [1, 1], &[0.0]);
            (0..count).for_each(|_| assert_eq!(client.infer("m", &[], &body).status, 200));
        };
        ask(100);
        // It is given up after five seconds.
        eventually("its spans to be given up", || {
            ask(10);
            (stack.metric("penstock_spans_lost_total") >= 100.0).then_some(())
        });
        assert_eq!(stack.metric("penstock_spans_exported_total"), 0.0);
        stack.signal(rustix::process::Signal::TERM);
        assert!(stack.wait().success(), "{protocol}");
    }
}

#[test]
fn a_collector_that_is_away_costs_nothing() {
    let nobody = harness::free_address();
    let engine = ScriptedEngine::start(&[("m", 1, Behaviour::Answer)]);
    let traces = format!("traces: {{endpoint: 'http://{nobody}', sample: 1.0}}");
    let mut stack = Stack::builder().config(&traces).external_engine(engine.socket()).start();
    for _ in 0..200 {
        assert_eq!(stack.client().infer("m", &[], &infer_body("x", [1, 1], &[0.0])).status, 200);
    }
    eventually("lost spans to be counted", || {
        (stack.metric("penstock_spans_lost_total") >= 1.0).then_some(())
    });
    let told = format!("the collector at http://{nobody} takes no spans, they are lost");
    eventually("it to be told", || stack.log().contains(&told).then_some(()));
    stack.signal(rustix::process::Signal::TERM);
    assert!(stack.wait().success());
}

#[test]
fn a_verdict_about_a_canary_is_a_span_with_its_numbers() {
    let collector = Collector::start();
    let engine = ScriptedEngine::start(&[("m", 1, Behaviour::Answer), ("m", 2, Behaviour::Fail)]);
    let stack = Stack::builder()
        .policies("models: {m: {canary: {baseline: 1, candidate: 2, steps: [50]}}}\n")
        .external_engine(engine.socket())
        .config(&config(&collector, 0.0))
        .start();
    let verdict = eventually("a verdict", || {
        stack.client().infer("m", &[], &infer_body("x", [1, 1], &[0.0]));
        named(&collector.spans(), "canary verdict").first().map(|span| Span::clone(span))
    });
    assert_eq!(number(&verdict, "penstock.canary.step"), 1);
    assert!(number(&verdict, "penstock.canary.errors.events") >= 4, "{verdict:?}");
    let said = verdict.attributes.iter().any(|attribute| {
        let value = attribute.value.as_ref().and_then(|value| value.value.as_ref());
        attribute.key == "penstock.canary.verdict" && value == Some(&Value::StringValue("roll_back".into()))
    });
    assert!(said, "{verdict:?}");
}

/// The version is gone as it is asked, and the policy names another one.
#[test]
fn a_request_that_is_asked_once_more_has_a_link_for_each_attempt() {
    let collector = Collector::start();
    let engine = ScriptedEngine::start(&[("m", 1, Behaviour::Answer), ("m", 2, Behaviour::Vanish)]);
    let stack = Stack::builder()
        .policies("models: {}\n")
        .external_engine(engine.socket())
        .config(&config(&collector, 1.0))
        .start();
    let answer = stack.client().infer("m", &[], &infer_body("x", [1, 1], &[0.0]));
    assert_eq!((answer.status, answer.header("x-penstock-version")), (200, "1"), "{}", answer.text());
    let spans =
        eventually("all spans", || Some(collector.spans()).filter(|spans| !named(spans, "reply").is_empty()));
    let resends = |span: &&Span| span.attributes.iter().any(|one| one.key == "http.request.resend_count");
    let (again, first): (Vec<_>, Vec<_>) = named(&spans, "link").into_iter().partition(resends);
    assert_eq!(first.len(), 1, "{first:?}");
    assert!(!again.is_empty() && again.iter().all(|link| number(link, "http.request.resend_count") == 1));
    let decodes = named(&spans, "decode");
    assert_eq!(decodes.len(), 2);
    assert_eq!(decodes[0].end_time_unix_nano, first[0].start_time_unix_nano);
    assert_eq!(decodes[1].start_time_unix_nano, first[0].end_time_unix_nano);
    assert!(decodes[1].end_time_unix_nano <= again[0].start_time_unix_nano);
}
