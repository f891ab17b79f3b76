//! What is counted and set, as Prometheus reads it.

use super::*;
use crate::readiness::VersionReadiness;
use crate::record::Retry;
use Exposition::OpenMetrics;
use policies::Snapshot;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

#[test]
fn a_version_is_resolved_once_and_counted_under_its_labels() {
    let metrics = Metrics::new();
    metrics.version("digits", 2).served.inc();
    metrics.version("digits", 2).served.inc();
    metrics.refuse("rate_limited", "digits");
    let text = metrics.encode(OpenMetrics);
    assert!(
        text.contains(r#"penstock_requests_total{model="digits",version="2",outcome="served"} 2"#),
        "{text}"
    );
    assert!(text.contains(r#"penstock_refusals_total{reason="rate_limited",model="digits"} 1"#), "{text}");
    assert!(text.ends_with("# EOF\n"));
}

#[test]
fn whatever_a_model_is_called_its_series_are_a_line_each() {
    let metrics = Metrics::new();
    metrics.version("a \"b\"\n\\c", 1).served.inc();
    let text = metrics.encode(OpenMetrics);
    let line = r#"penstock_requests_total{model="a \"b\"\n\\c",version="1",outcome="served"} 1"#;
    assert!(text.lines().any(|found| found == line), "{text}");
    assert!(text.lines().all(|line| line.starts_with('#')
        || line.starts_with("penstock_")
        || line.starts_with("process_")
        || line.starts_with("nv_")));
}

#[test]
fn batches_are_counted_once_with_what_was_padding_and_how_long_they_took_against_what_was_expected() {
    let metrics = Metrics::new();
    let phases = wire::Phases { input_ns: 100_000, infer_ns: 800_000, output_ns: 100_000 };
    let run = wire::Run {
        rows: 8,
        phases: Some(phases),
        closed: wire::Closed::Full as i32,
        expected_us: 500,
        padding_millionths: 250_000,
    };
    let unknown = wire::Run { expected_us: 0, padding_millionths: 0, ..run };
    metrics.count_batches(&metrics.version("digits", 2), &[run, unknown]);
    let text = metrics.encode(OpenMetrics);
    for line in [
        r#"penstock_batches_total{closed="full"} 2"#,
        r#"penstock_batch_rows_count{model="digits",version="2"} 2"#,
        r#"penstock_batch_rows_sum{model="digits",version="2"} 16.0"#,
        r#"penstock_batch_padding_ratio_sum{model="digits",version="2"} 0.25"#,
        r#"penstock_batch_padding_ratio_bucket{le="0.0078125",model="digits",version="2"} 1"#,
        r#"penstock_batch_padding_ratio_bucket{le="0.25",model="digits",version="2"} 2"#,
        r#"penstock_engine_run_over_expected_ratio_count{model="digits",version="2"} 1"#,
        r#"penstock_engine_run_over_expected_ratio_bucket{le="1.0",model="digits",version="2"} 0"#,
        r#"penstock_engine_run_over_expected_ratio_bucket{le="2.0",model="digits",version="2"} 1"#,
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in {text}");
    }
}

#[test]
fn limits_are_shown_as_the_policy_has_them_with_what_each_has_refused_and_what_is_spent() {
    let metrics = Metrics::new();
    let policy = "limits: [{name: per-user, key: {header: u}, rate: 90/m, burst: 5, cost: rows}, {name: at-once, in_flight_max: 3}]";
    let policy = policies::parse(policy, "policies.yaml").unwrap();
    let limited = Refusal::Limited { limit: "per-user".into(), retry_after: std::time::Duration::ZERO };
    metrics.refused.note(&limited, (None, None), std::time::SystemTime::now());
    let (ledger, now) = (policies::Ledger::new(), std::time::Instant::now());
    let (head, ()) = http::Request::builder().header("u", "ana").body(()).unwrap().into_parts();
    let caller = crate::caller::Caller::new(&head);
    let _places = ledger.occupy(&policy, "m", &caller).unwrap();
    let admitted = ledger.admit(&policy, "m", &caller, || None, now).unwrap();
    metrics.set_limits(&policy, &ledger.spent(&policy, now));
    drop(admitted);
    let text = metrics.encode(OpenMetrics);
    for line in [
        r#"penstock_limit_rate{limit="per-user",unit="rows"} 1.5"#,
        r#"penstock_limit_burst{limit="per-user",unit="rows"} 5"#,
        r#"penstock_limit_in_flight_max{limit="at-once"} 3"#,
        r#"penstock_limit_refusals_total{limit="per-user"} 1"#,
        r#"penstock_limit_refusals_total{limit="at-once"} 0"#,
        r#"penstock_limit_spent_ratio{limit="per-user"} 0.2"#,
        r#"penstock_limit_callers{limit="per-user"} 1"#,
        r#"penstock_limit_exhausted_callers{limit="per-user"} 0"#,
        r#"penstock_limit_callers{limit="at-once"} 1"#,
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in {text}");
    }
    assert!(!text.contains("ana"), "who a caller is concerns nobody who looks: {text}");
    metrics.set_limits(&Snapshot::default(), &BTreeMap::new());
    assert!(!metrics.encode(OpenMetrics).contains("per-user"), "a limit that is gone");
}

#[test]
fn versions_are_shown_with_whether_they_answer_and_whether_the_policy_names_them() {
    let metrics = Metrics::new();
    let missing = VersionReadiness { is_ready: false, is_named: true };
    metrics.set_versions(&[(("m".to_owned(), 2), missing)].into());
    let text = metrics.encode(OpenMetrics);
    for line in [
        r#"penstock_version_ready{model="m",version="2"} 0"#,
        r#"penstock_version_named{model="m",version="2"} 1"#,
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in {text}");
    }
    metrics.set_versions(&BTreeMap::new());
    assert!(!metrics.encode(OpenMetrics).contains("version_ready"));
}

#[test]
fn refusals_are_counted_by_model_and_begin_at_zero_for_every_model_that_exists() {
    let metrics = Metrics::new();
    let readiness = VersionReadiness { is_ready: true, is_named: false };
    metrics.refuse("overloaded", "m");
    let versions = [(("m".to_owned(), 1), readiness), (("m".to_owned(), 2), readiness)].into();
    metrics.set_versions(&versions);
    metrics.refuse("not_found", "");
    let text = metrics.encode(OpenMetrics);
    for line in [
        r#"penstock_refusals_total{reason="overloaded",model="m"} 1"#,
        r#"penstock_refusals_total{reason="deadline",model="m"} 0"#,
        r#"penstock_refusals_total{reason="not_found",model=""} 1"#,
        r#"penstock_refusals_total{reason="deadline",model=""} 0"#,
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in {text}");
    }
}

#[test]
fn what_was_counted_of_a_version_goes_some_time_after_it_and_begins_anew_should_it_come_back() {
    let (metrics, start) = (Metrics::new(), Instant::now());
    let minutes = |minutes: u64| start + Duration::from_secs(60 * minutes);
    let there = |numbers: &[u64]| [("m".to_owned(), numbers.iter().copied().collect())].into();
    let (all, first, none) = (there(&[1, 2]), there(&[1]), BTreeMap::new());
    let lines = |part: &str| metrics.encode(OpenMetrics).lines().filter(|line| line.contains(part)).count();
    for version in [1, 2] {
        let handles = metrics.version("m", version);
        handles.served.inc();
        handles.latency.observe(0.01, None, None);
        handles.queue.observe(0.01);
        handles.statistics.served(Duration::ZERO, None, std::time::SystemTime::now());
        metrics.count_shadow("m", version, shadow::Outcome::Agreed);
        metrics.count_retry("m", Retry { version, reason: Retry::UNLOADED, is_asked: true }, true);
    }
    metrics.count_verdict("m", Verdict::Advance);
    metrics.refuse("overloaded", "m");
    metrics.forget_gone(&all, start);
    metrics.forget_gone(&first, minutes(4));
    metrics.forget_gone(&none, minutes(5));
    assert_eq!(metrics.version("m", 2).served.get(), 1, "an engine may take that long to come back");
    metrics.forget_gone(&first, minutes(6));
    assert_eq!(lines(r#"model="m",version="2""#) + lines(r#"model="m",reason="OTHER",version="2""#), 0);
    assert!(lines(r#"model="m",version="1""#) > 0 && lines(r#"model="m""#) > 0);
    // No policy names it, and yet somebody asks another server for it.
    let remote = metrics.version("m", 7);
    for minute in 6..20 {
        remote.served.inc();
        metrics.forget_gone(&first, minutes(minute));
    }
    assert_eq!(metrics.version("m", 7).served.get(), 14);
    metrics.forget_gone(&none, minutes(26));
    assert_eq!(
        lines(r#"model="m""#),
        0,
        "the last one takes along what is the model's: {}",
        metrics.encode(OpenMetrics)
    );
    metrics.version("m", 2).served.inc();
    metrics.refuse("deadline", "m");
    assert_eq!(lines(r#"penstock_requests_total{model="m",version="2",outcome="served"} 1"#), 1);
    assert_eq!(lines(r#"penstock_refusals_total{reason="overloaded",model="m"} 0"#), 1);
    assert_eq!(lines(r#"penstock_refusals_total{reason="deadline",model="m"} 1"#), 1);
}

#[test]
fn refusals_of_a_model_that_a_policy_names_without_a_version_go_some_time_after_it() {
    let (metrics, start) = (Metrics::new(), Instant::now());
    let minutes = |minutes: u64| start + Duration::from_secs(60 * minutes);
    let (named, none) = ([("m".to_owned(), BTreeSet::new())].into(), BTreeMap::new());
    let has_series = || metrics.encode(OpenMetrics).contains(r#"model="m""#);
    metrics.refuse("not_ready", "m");
    metrics.refuse("not_found", "");
    metrics.forget_gone(&named, start);
    metrics.forget_gone(&named, minutes(20));
    assert!(has_series(), "the policy names it");
    metrics.forget_gone(&none, minutes(24));
    metrics.refuse("not_ready", "m"); // whose request had begun before
    metrics.forget_gone(&none, minutes(25));
    metrics.forget_gone(&none, minutes(30));
    assert!(has_series(), "it was asked for");
    metrics.forget_gone(&none, minutes(31));
    assert!(!has_series(), "{}", metrics.encode(OpenMetrics));
    let text = metrics.encode(OpenMetrics);
    assert!(text.contains(r#"penstock_refusals_total{reason="not_found",model=""} 1"#), "{text}");
}

/// A scrape holds the series of a metric for as long as it writes them, as whoever reads one of them does.
#[test]
fn a_first_request_during_a_scrape_is_counted_and_makes_nobody_else_wait() {
    let metrics = Arc::new(Metrics::new());
    metrics.version("m", 1);
    let known = VersionLabels { model: "m".to_owned(), version: 1 };
    let scrape = metrics.latency.get(&known).expect("it has been asked");
    let first = std::thread::spawn({
        let metrics = metrics.clone();
        move || metrics.version("m", 2).served.inc()
    });
    let served = OutcomeLabels { model: "m".to_owned(), version: 2, outcome: "served" };
    while metrics.outcomes.get(&served).is_none() {
        std::thread::yield_now(); // some of its series come before the one that it waits for
    }
    let (told, is_told) = std::sync::mpsc::channel();
    let next = std::thread::spawn({
        let metrics = metrics.clone();
        move || told.send(metrics.version("m", 1).served.inc())
    });
    is_told.recv_timeout(Duration::from_secs(10)).expect("whose series are there does not wait");
    assert!(metrics.known("m", 2).is_none(), "whose are not does");
    drop(scrape);
    first.join().unwrap();
    next.join().unwrap().unwrap();
    let text = metrics.encode(OpenMetrics);
    for version in [1, 2] {
        let line = format!(r#"penstock_requests_total{{model="m",version="{version}",outcome="served"}} 1"#);
        assert!(text.lines().any(|found| found == line), "{line} is not in {text}");
    }
}

#[test]
fn a_version_that_is_forgotten_during_a_scrape_makes_nobody_wait_and_whoever_asks_it_then_is_counted() {
    let metrics = Arc::new(Metrics::new());
    for version in [1, 2] {
        metrics.version("m", version);
    }
    let known = VersionLabels { model: "m".to_owned(), version: 1 };
    let scrape = metrics.latency.get(&known).expect("it has been asked");
    let forgets = std::thread::spawn({
        let metrics = metrics.clone();
        move || metrics.forget_version("m", 2)
    });
    let (told, is_told) = std::sync::mpsc::channel();
    let next = std::thread::spawn({
        let metrics = metrics.clone();
        move || {
            while metrics.known("m", 2).is_some() {
                std::thread::yield_now(); // it is about to be
            }
            told.send(metrics.version("m", 1).served.inc())
        }
    });
    is_told.recv_timeout(Duration::from_secs(10)).expect("whose series are there does not wait");
    let again = std::thread::spawn({
        let metrics = metrics.clone();
        move || metrics.version("m", 2).served.inc()
    });
    drop(scrape);
    forgets.join().unwrap();
    next.join().unwrap().unwrap();
    again.join().unwrap();
    let text = metrics.encode(OpenMetrics);
    let line = r#"penstock_requests_total{model="m",version="2",outcome="served"} 1"#;
    assert!(text.lines().any(|found| found == line), "{text}");
}

#[test]
fn names_of_triton_stand_beside_ours_as_they_are() {
    let metrics = Metrics::new();
    assert!(!metrics.encode(OpenMetrics).contains("nv_inference"), "nothing has been asked");
    let counters = metrics.version("digits", 2);
    let timing = wire::Timing { queue_us: 7, rows: 3, ..wire::Timing::default() };
    let took = std::time::Duration::from_micros(90);
    counters.statistics.served(took, Some(&timing), std::time::SystemTime::now());
    counters.statistics.failed(took, crate::statistics::Failure::Rejected);
    let text = metrics.encode(OpenMetrics);
    for line in [
        r#"nv_inference_request_success{model="digits",version="2"} 1"#,
        r#"nv_inference_count{model="digits",version="2"} 3"#,
        r#"nv_inference_exec_count{model="digits",version="2"} 0"#,
        r#"nv_inference_request_duration_us{model="digits",version="2"} 90"#,
        r#"nv_inference_queue_duration_us{model="digits",version="2"} 7"#,
        r#"nv_inference_request_failure{model="digits",reason="REJECTED",version="2"} 1"#,
        r#"nv_inference_request_failure{model="digits",reason="BACKEND",version="2"} 0"#,
        "# TYPE nv_inference_pending_request_count gauge",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in {text}");
    }
}

/// Prometheus' own parser of text 0.0.4, where it is installed or `configs/prometheus/check.sh` has fetched it.
fn promtool() -> Option<std::process::Command> {
    let cache = std::env::var_os("PENSTOCK_CACHE").map(std::path::PathBuf::from);
    let cache =
        cache.or_else(|| Some(std::path::Path::new(&std::env::var_os("HOME")?).join(".cache/penstock")));
    let fetched = cache?.join("promtool/promtool");
    let runs = |name: &std::path::Path| std::process::Command::new(name).arg("--version").output().is_ok();
    let found = ["promtool".into(), fetched].into_iter().find(|name: &std::path::PathBuf| runs(name))?;
    Some(std::process::Command::new(found))
}

#[test]
fn whoever_knows_only_text_gets_all_metrics_in_a_text_that_prometheus_reads() {
    use std::io::Write;
    use std::process::Stdio;
    let metrics = Metrics::new();
    let counters = metrics.version("a } # {", 1);
    counters.latency.observe(0.01, Some(TraceLabel { trace_id: "0af7651916cd43dd".into() }), None);
    counters.served.inc();
    let readiness = VersionReadiness { is_ready: true, is_named: true };
    metrics.set_versions(&[(("m".to_owned(), 2), readiness)].into());
    let limits = "limits: [{name: a, rate: 3/s, burst: 5}, {name: b, in_flight_max: 3}]";
    let limits = policies::parse(limits, "policies.yaml").unwrap();
    metrics.set_limits(&limits, &policies::Ledger::new().spent(&limits, std::time::Instant::now()));
    let (open, text) = (metrics.encode(OpenMetrics), metrics.encode(Exposition::Text));
    assert!(open.contains("# {trace_id=") && open.ends_with("# EOF\n"), "{open}");
    assert!(text.contains("# TYPE penstock_requests_total counter\n"), "{text}");
    assert!(!text.contains("trace_id") && !text.contains("# EOF") && !text.contains("# UNIT"), "{text}");
    let samples = |text: &str| text.lines().filter(|line| !line.starts_with('#')).count();
    assert_eq!(samples(&open), samples(&text));
    let Some(mut promtool) = promtool() else {
        return eprintln!("there is no promtool: what it says of the text is NOT checked");
    };
    promtool.args(["check", "metrics"]).stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut checks = promtool.spawn().unwrap();
    checks.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let checked = checks.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&checked.stderr);
    assert!(!said.contains("error while linting"), "{said}");
    // Names that are Triton's are not ours to choose.
    let ours: Vec<_> = said.lines().filter(|line| line.starts_with("penstock")).collect();
    assert!(ours.is_empty(), "{ours:?}");
}
