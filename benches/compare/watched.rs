//! What watching costs by itself, without sockets: a line of the access log; the account of one request, which nothing switches
//! off; the text of `/metrics` with many models whose distributions are watched. What it adds to requests over sockets, `paired.rs`
//! measures, each round with its neighbour; a scrape over a socket, `scrapes.rs`.
//!
//! What came of it, in 80 pairs: 1 % of traces and a line for every request in the access log take 1.04 to 1.05 times as much CPU as
//! neither (1.034 to 1.052 in seven runs, 1.031 to 1.057 in 19 of 20 cases); the lines alone 1.03, the traces alone 1.02 to 1.03, and nothing, in a
//! second process, 1.00. `log: {access: 0.1}` writes a tenth of the lines. A line takes its request 0.2 µs, and the account of a request
//! 0.3 µs; a scrape of 1,000 models, 141,000 lines, takes 24 to 26 ms, 61 at most, and 30 as text 0.0.4. Whoever asks for it over a
//! socket has it, 11 MB, after 42 to 43 ms, 246 at most; of three versions each, 31 MB, after 103 to 116.

use policies::{Ledger, Outcome};
use proxy::access::{AccessConfig, AccessLog, Line, Moment, Us};
use proxy::exposition::Exposition;
use proxy::log::Format;
use proxy::metrics::Metrics;
use proxy::record::{Record, Watchers};
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use wire::{Confidence, DriftSide, Phases, Run, TensorDrift, Timing, VersionDrift};

const REQUESTS: u32 = 1_000_000;
const MODELS: u64 = 1000;
const SCRAPES: usize = 21;

/// The time that a request's own account takes: its stages, histograms, counters.
pub(crate) fn account() {
    let metrics = Arc::new(Metrics::new());
    let ledger = Arc::new(Ledger::new());
    let watchers = Watchers { metrics: metrics.clone(), ledger, tracer: None, access: None };
    let phases = Some(Phases { input_ns: 2000, infer_ns: 40_000, output_ns: 3000 });
    let runs = vec![Run { rows: 4, phases, ..Run::default() }];
    let timing = Timing {
        queue_us: 80,
        run_us: 45,
        batch_rows: 4,
        batch_requests: 4,
        rows: 1,
        phases,
        runs,
        ..Timing::default()
    };
    let counted = metrics.version("digits", 1);
    let began = Instant::now();
    for _ in 0..REQUESTS {
        let mut record = Record::begin(&metrics);
        record.version = Some(("digits".to_owned(), 1));
        record.outcome = Some(Outcome::Served);
        record.asked = Some(counted.clone());
        record.timing = Some(timing.clone());
        let now = record.started;
        record.stages.admitted = Some(now);
        record.stages.read = Some(now);
        record.stages.sent = Some(now);
        record.stages.answered = Some(now);
        black_box(&record).close("/v2/models/digits/infer", &watchers);
    }
    let each = began.elapsed() / REQUESTS;
    println!("the account of one request, which nothing switches off: {each:?}");
}

/// The time that a line of the access log takes whoever has answered the request; it is written elsewhere, together with others.
pub(crate) fn line() {
    let log = AccessLog::to(AccessConfig { sample: 1.0, format: Format::Json }, std::io::sink());
    let began = Instant::now();
    for number in 0..REQUESTS {
        log.write(&Line {
            time: Moment(SystemTime::now()),
            request_id: "957ccaacb59c5a74",
            trace_id: None,
            method: "POST",
            route: "/v2/models/{model}/infer",
            path: None,
            status: 200,
            reason: None,
            model: Some("digits"),
            version: Some(1),
            pick: Some("split"),
            instead_of: None,
            retry: None,
            generation: 1,
            duration: Us(u64::from(number % 1000)),
            queue: Some(Us(83)),
            run: Some(Us(41)),
            batch_rows: Some(4),
            remote: None,
        });
    }
    let each = began.elapsed() / REQUESTS;
    println!("\na line of the access log, until it is among those that wait: {each:?}");
}

/// The time of a scrape where each of 1,000 models has been asked, has a breaker's worth of series, and is watched.
pub(crate) fn scrape() {
    let metrics = Metrics::new();
    for at in 0..MODELS {
        let model = format!("model-{at}");
        let version = metrics.version(&model, 1);
        version.served.inc();
        version.latency.observe(0.001, None, None);
        [&version.queue, &version.run].into_iter().for_each(|times| times.observe(0.001));
        version.batch_rows.observe(4.0);
        metrics.drifts.take(vec![watched(&model)]);
    }
    for form in [Exposition::OpenMetrics, Exposition::Text] {
        let mut took: Vec<Duration> = (0..SCRAPES)
            .map(|_| {
                let began = Instant::now();
                black_box(metrics.encode(form));
                began.elapsed()
            })
            .collect();
        took.sort_unstable();
        let text = metrics.encode(form);
        println!(
            "a scrape of {MODELS} models, {form:?}: {:.1?} at the median, {:.1?} at most; {} lines, {} kB",
            took[SCRAPES / 2],
            took[SCRAPES - 1],
            text.lines().count(),
            text.len() / 1000
        );
    }
}

fn watched(model: &str) -> VersionDrift {
    let tensor = |side: DriftSide, name: &str| TensorDrift {
        side: side as i32,
        name: name.into(),
        bits_millionths: 2000,
        most_millionths: 12_000,
        rows: 600,
        ..TensorDrift::default()
    };
    VersionDrift {
        name: model.into(),
        version: 1,
        load: 1,
        seen: 2000,
        has_reference: true,
        windows: 1,
        tensors: vec![
            tensor(DriftSide::Input, "pixels"),
            tensor(DriftSide::Output, "probabilities"),
            tensor(DriftSide::Confidence, "confidence"),
        ],
        confidence: Some(Confidence { tenths: vec![10; 10], sum_millionths: 50_000_000 }),
        ..VersionDrift::default()
    }
}
