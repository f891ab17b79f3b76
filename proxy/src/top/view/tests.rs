//! Snapshots of the view in three sizes, from one made-up reading.

use super::*;
use crate::fixed::AtRestart;
use crate::histogram::Histogram;
use crate::policy_state::Rejected;
use crate::refused::Recent;
use crate::status::{
    Breaker, Drift, Engine, Gate, Limit, Model, Moved, Outcomes, Policy, Refusals, Share, Times, Traffic,
    Verdict,
};
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use std::time::Duration;

fn version(model: &str, number: u64, served: u64, failed: u64) -> Version {
    let times = |us: f64| {
        let times = Histogram::of_seconds();
        (0..served).for_each(|_| times.observe(us / 1e6));
        times.read(1e6)
    };
    let rows = Histogram::of_rows();
    (0..served).for_each(|_| rows.observe(4.0));
    Version {
        model: model.into(),
        version: number,
        state: "ready".into(),
        outcomes: Outcomes { served, failed, ..Outcomes::default() },
        times: Times { whole: times(1250.0), proxy: times(50.0), queue: times(200.0), run: times(1000.0) },
        batch_rows: rows.read(1.0),
        ..Version::default()
    }
}

fn drifted() -> Drift {
    let tensor = |side: &str, name: &str, bits, least| Moved {
        side: side.into(),
        name: name.into(),
        bits,
        least,
        ..Moved::default()
    };
    let tensors = vec![tensor("input", "pixels\u{1b}[2J", 0.21, 0.13), tensor("output", "digit", 0.02, 0.0)];
    Drift { rows: 2000, has_reference: true, windows: 1, tensors, ..Drift::default() }
}

fn reading() -> Status {
    let share = |version, percent| Share { version, label: None, percent };
    let rolled_out = Model { shares: vec![share(1, 90.0), share(2, 10.0)], ..Model::default() };
    let tripped = Some(Breaker { state: "tripped".into(), retry_after_ms: Some(7000) });
    let gate = Gate {
        gate: "errors".into(),
        worse: 2.0,
        roll_back_at: 20.0,
        rare: 15.0,
        pass_at: 20.0,
        requests: 160,
        events: 3,
        heard: policies::Grounds { all: 20, of_candidate: 3, parts: 0.0, by_share: 2.0 },
    };
    let hold = Verdict {
        verdict: "hold".into(),
        why: "errors: 3 of 160 is not shown to be below 2 %".into(),
        ..Verdict::default()
    };
    let canary = Canary {
        baseline: 1,
        candidate: 2,
        phase: "running".into(),
        step: 1,
        steps: 2,
        percent: 10.0,
        gates: vec![gate],
        verdicts: vec![hold],
        ..Canary::default()
    };
    let limited = Recent {
        reason: "rate_limited".into(),
        model: Some("digits".into()),
        version: Some(1),
        count: 812,
        first_unix_ms: 0,
        last_unix_ms: 97_000,
        says: "limit `per-user`\u{1b}[2J is exhausted, retry in 0.013 s".into(),
    };
    Status {
        unix_ms: 100_000,
        uptime_ms: 10_000,
        engine: Engine {
            connected: true,
            device: "cpu".into(),
            starts: 1,
            under_way: 3,
            resident_bytes: 152_000_000,
            ..Engine::default()
        },
        traffic: Traffic { in_flight: 12, ..Traffic::default() },
        policy: Policy { generation: 4, ..Policy::default() },
        models: [("digits".to_owned(), rolled_out)].into(),
        versions: vec![
            version("digits", 1, 891, 0),
            version("digits", 2, 96, 3),
            Version { breaker: tripped, ..version("sentence-embeddings-multilingual", 1, 0, 0) },
        ],
        canaries: [("digits".to_owned(), canary)].into(),
        refusals: Refusals { recent: vec![limited], by_reason: [("rate_limited".to_owned(), 812)].into() },
        ..Status::default()
    }
}

fn drawn(watched: &Watched, width: u16, height: u16) -> String {
    drawn_at(watched, width, height, Instant::now())
}

fn drawn_at(watched: &Watched, width: u16, height: u16, now: Instant) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| _ = draw(frame, watched, now)).unwrap();
    let buffer = terminal.backend().buffer();
    let line = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>();
    (0..height).map(|y| format!("{}\n", line(y).trim_end())).collect()
}

fn watched(status: Status) -> Watched {
    let mut watched = Watched::new("127.0.0.1:8002");
    watched.take(status);
    watched
}

/// The first lines and the last one; what is between them is empty.
fn check(width: u16, height: u16, expect: &str, keys: &str) {
    check_of(reading(), width, height, expect, keys);
}

fn check_of(status: Status, width: u16, height: u16, expect: &str, keys: &str) {
    let shown = drawn(&watched(status), width, height);
    let (body, last) = shown.trim_end_matches('\n').rsplit_once('\n').unwrap();
    assert_eq!(body.trim_end_matches('\n'), expect.trim_matches('\n'), "\n{shown}");
    assert_eq!((last, shown.lines().count()), (keys, usize::from(height)));
}

#[test]
fn a_wide_terminal_shows_everything() {
    let expect = "
penstock ready  99/s  81/s refused  12 in flight  engine 152 MB  policy 4  up 10 s  3 in the engine  cpu  127.0.0.1:8002
! sentence-embeddings-multilingual 1 keeps failing: its breaker is open, next try in 7 s
! digits 2: input pixels[2J has moved by 0.13 bits since the version was new

VERSION                                   STATE  SHARE     OF     RATE  FAILED    P50    P99  PROXY  QUEUE    RUN  ROWS DRIFT
digits 1                                  ready    90%    90%     89/s      0%  1.3ms  1.4ms   50us  200us  1.0ms   4.0     -
digits 2                                  ready    10%    10%    9.9/s    3.0%  1.3ms  1.4ms   50us  200us  1.0ms   4.0  0.21
sentence-embeddings-multilingual 1      breaker      -      -      0/s       -      -      -      -      -      -     -     -

digits: version 2 gets 10%, version 1 the rest; running, step 1 of 2
  errors       3 of 160           ██████████░░░░░░░░░░ ███████████████████░ worse 10%, well 75%
  hold: errors: 3 of 160 is not shown to be below 2 %

WITHOUT AN ANSWER
    812 rate_limited      3 s ago  digits 1  limit `per-user`[2J is exhausted, retry in 0.013 s
";
    let mut status = reading();
    status.versions[1].drift = Some(drifted());
    check_of(status, 126, 40, expect, "q quits");
}

#[test]
fn what_a_step_waits_for_now_is_shown_in_place_of_what_was_found_first() {
    let mut status = reading();
    for canary in status.canaries.values_mut() {
        canary.waits_for = Some("errors: 9 of 900 is not shown to be below 2 %".into());
    }
    let shown = drawn(&watched(status), 140, 20);
    assert!(shown.contains("  waits: errors: 9 of 900 is not shown to be below 2 %"), "{shown}");
    assert!(!shown.contains("hold: errors: 3 of 160"), "{shown}");
}

#[test]
fn a_usual_terminal_leaves_out_the_stages_before_it_cuts_a_name() {
    let expect = "
penstock ready  99/s  81/s refused  12 in flight  engine 152 MB  policy 4
! sentence-embeddings-multilingual 1 keeps failing: its breaker is open, next
try in 7 s

VERSION                              STATE  SHARE     OF     RATE  FAILED    P99
digits 1                             ready    90%    90%     89/s      0%  1.4ms
digits 2                             ready    10%    10%    9.9/s    3.0%  1.4ms
sentence-embeddings-multil… 1      breaker      -      -      0/s       -      -

digits: version 2 gets 10%, version 1 the rest; running, step 1 of 2
  errors       3 of 160           ██████░░░░░░ ███████████░ worse 10%, well 75%
  hold: errors: 3 of 160 is not shown to be below 2 %

WITHOUT AN ANSWER
    812 rate_limited      3 s ago  digits 1  limit `per-user`[2J is exhausted, …
";
    check(80, 24, expect, "q quits");
}

#[test]
fn twenty_columns_show_who_answers_what_share() {
    let expect = "
ready  99/s
! sentence-embedding
s-multilingual 1…

VERSION        SHARE
digits 1         90%
digits 2         10%
sentence-e… 1      -
";
    check(20, 10, expect, "q quits ↓9");
}

#[test]
fn no_size_is_too_small() {
    for width in 1..60 {
        for height in 1..12 {
            drawn(&watched(reading()), width, height);
        }
    }
}

#[test]
fn a_process_that_is_away_is_said_to_be_and_what_it_said_last_stays() {
    let begun = Instant::now();
    let mut watched = Watched::new("127.0.0.1:8002");
    assert!(drawn(&watched, 60, 5).starts_with("asking 127.0.0.1:8002\n"));
    watched.miss("connection refused".into(), begun);
    watched.miss("connection refused".into(), begun + Duration::from_secs(3));
    let away = drawn_at(&watched, 80, 5, begun + Duration::from_secs(5));
    assert!(away.starts_with("no answer for 5 s, trying again: connection refused\n"), "{away}");
    watched.take(reading());
    watched.miss("connection refused".into(), begun);
    let away = drawn_at(&watched, 100, 5, begun);
    assert!(away.contains("; shown is what it said last\npenstock ready"), "{away}");
    watched.take(reading());
    assert!(drawn(&watched, 100, 5).starts_with("penstock ready"));
}

#[test]
fn what_was_refused_is_a_rate_of_its_own() {
    let refused = |count, unix_ms| {
        let by_reason = [("rate_limited".to_owned(), count), ("not_found".to_owned(), 5)].into();
        Status {
            unix_ms,
            uptime_ms: unix_ms,
            refusals: Refusals { by_reason, recent: Vec::new() },
            ..reading()
        }
    };
    let mut watched = watched(refused(1000, 100_000));
    watched.take(refused(1150, 105_000));
    let shown = drawn(&watched, 80, 24);
    assert!(shown.starts_with("penstock ready  0/s  30/s refused  "), "{shown}");
}

#[test]
fn two_readings_show_what_was_between_them_and_a_new_process_begins_anew() {
    let later = |served, unix_ms, uptime_ms| Status {
        unix_ms,
        uptime_ms,
        versions: vec![version("digits", 1, served, 0)],
        ..reading()
    };
    let mut watched = watched(later(100, 100_000, 10_000));
    watched.take(later(150, 105_000, 15_000));
    assert!(drawn(&watched, 80, 24).contains("  10/s  "), "{}", drawn(&watched, 80, 24));
    watched.take(later(40, 106_000, 1_000));
    assert!(drawn(&watched, 80, 24).contains("  40/s  "), "{}", drawn(&watched, 80, 24));
}

#[test]
fn what_is_wrong_comes_first_and_nothing_obeys_the_words_of_others() {
    let rejected = Some(Rejected { unix_ms: 0, error: "policies.yaml:7: `canry`\u{1b}[31m".into() });
    let status = Status {
        not_ready: Some("the engine is away".into()),
        policy: Policy { rejected, ..reading().policy },
        at_restart: AtRestart { settings: vec!["workers".into()], error: None },
        ..reading()
    };
    let shown = drawn(&watched(status), 100, 20);
    let lines: Vec<&str> = shown.lines().collect();
    assert_eq!(lines[1], "! not ready: the engine is away");
    assert!(lines[2].starts_with(
        "! the policy file is not in force, generation 4 goes on: policies.yaml:7: `canry`[31m"
    ));
    assert!(shown.contains("! workers needs a restart: fixed at start"), "{shown}");
}

#[test]
fn of_another_server_that_keeps_failing_it_is_told_why_it_was_not_reached() {
    let mut status = reading();
    let reason = "http://there/infer, which could not be reached 3 s ago: refused".to_owned();
    let breaker = status.versions[2].breaker.clone();
    status.versions[2] = Version { state: "remote".into(), reason, breaker, ..version("digits", 7, 0, 0) };
    let shown = drawn(&watched(status), 140, 20);
    let says = "! digits 7 keeps failing: its breaker is open, next try in 7 s; http://there/infer, which could not be reached 3 s ago: refused";
    assert_eq!(shown.lines().nth(1), Some(says), "{shown}");
}

#[test]
fn a_version_that_only_a_rule_names_and_that_is_missing_has_a_line_and_comes_first() {
    let mut status = reading();
    let reason = "no such version is loaded; whom a rule sends there is refused".to_owned();
    status.versions.insert(2, Version { state: "missing".into(), reason, ..version("digits", 7, 0, 0) });
    let shown = drawn(&watched(status), 100, 20);
    let lines: Vec<&str> = shown.lines().collect();
    assert_eq!(
        lines[1],
        "! digits 7 is missing: no such version is loaded; whom a rule sends there is refused"
    );
    let row = lines.iter().find(|line| line.starts_with("digits 7 ")).expect("a line");
    assert_eq!(
        row.split_whitespace().skip(2).take(4).collect::<Vec<_>>(),
        ["missing", "0%", "-", "0/s"],
        "{row}"
    );
}

#[test]
fn what_was_unloaded_on_purpose_needs_no_attention_unless_the_policy_sends_it_requests() {
    for named in [false, true] {
        let mut status = reading();
        let reason = "it was unloaded".to_owned();
        let unloaded = Version {
            state: "unavailable".into(),
            unloaded: true,
            named,
            reason,
            ..version("digits", 7, 0, 0)
        };
        status.versions.insert(2, unloaded);
        let shown = drawn(&watched(status), 100, 20);
        assert_eq!(shown.contains("! digits 7 is unavailable: it was unloaded"), named, "{shown}");
        let row = shown.lines().find(|line| line.starts_with("digits 7 ")).expect("a line");
        assert_eq!(row.split_whitespace().nth(2), Some("unloaded"), "{row}");
    }
    let failed = Version { state: "unavailable".into(), ..version("digits", 7, 0, 0) };
    assert!(failed.is_lacking(), "whether or not the policy names what failed to load");
}

#[test]
fn of_each_limit_it_is_shown_what_is_spent_the_nearest_to_its_end_first() {
    let limit = |spent, callers, exhausted, refused| Limit {
        says: "10/s with bursts of 10 per header x-user-id, on every model".into(),
        refused,
        spent,
        allowed: 10,
        callers,
        exhausted,
    };
    let mut status = reading();
    status.limits = [
        ("all".to_owned(), limit(3, 1, 0, 0)),
        ("idle".to_owned(), limit(0, 0, 0, 0)),
        ("per-user\u{1b}[2J".to_owned(), limit(10, 40, 2, 812)),
    ]
    .into();
    let shown = drawn(&watched(status), 100, 24);
    let expect = "
LIMITS, SPENT BY THE BUSIEST CALLER
   100% per-user[2J  40 callers, 2 at the limit  812 refused  10/s with bursts of 10 per header x-u…
    30% all  0 refused  10/s with bursts of 10 per header x-user-id, on every model
     0% idle  0 refused  10/s with bursts of 10 per header x-user-id, on every model
";
    assert!(shown.contains(expect), "{shown}");
}

#[test]
fn more_than_fits_can_be_scrolled_to() {
    let mut status = reading();
    status.versions = (1..=50).map(|number| version("digits", number, 1, 0)).collect();
    let mut watched = watched(status);
    assert!(drawn(&watched, 80, 10).trim_end().ends_with("q quits ↓51"), "{}", drawn(&watched, 80, 10));
    watched.scrolled = 1000;
    assert!(drawn(&watched, 80, 10).contains("rate_limited"), "{}", drawn(&watched, 80, 10));
    let mut terminal = Terminal::new(TestBackend::new(80, 10)).unwrap();
    let mut scrolled = 0;
    terminal.draw(|frame| scrolled = draw(frame, &watched, Instant::now())).unwrap();
    assert_eq!(scrolled, 51, "one line up from the end shows another line");
}

#[test]
fn what_does_not_answer_is_told_before_what_has_drifted() {
    let mut status = reading();
    let drifting = |number| Version { drift: Some(drifted()), ..version("digits", number, 1, 0) };
    status.versions = (1..=20).map(drifting).collect();
    status.versions.push(Version { state: "missing".into(), ..version("z", 1, 0, 0) });
    let shown = drawn(&watched(status), 100, 20);
    assert!(shown.lines().nth(1).unwrap().starts_with("! z 1 is missing"), "{shown}");
}

#[test]
fn of_a_thousand_versions_that_are_missing_a_dozen_are_told_of_before_the_table() {
    let mut status = reading();
    let missing = |number| Version { state: "missing".into(), ..version("digits", number, 0, 0) };
    status.versions = (1..=1000).map(missing).collect();
    let shown = drawn(&watched(status), 100, 20);
    let lines: Vec<&str> = shown.lines().collect();
    assert!(lines[12].starts_with("! digits 12 is missing"), "{shown}");
    assert_eq!(lines[13], "! and 988 more versions are not as they should be", "{shown}");
}
