//! Who answers whom: shares as they are drawn, and as they are seen.

use super::*;
use crate::Live;

#[test]
fn between_splits_and_rollouts_nobody_moves_who_need_not_nor_does_a_restart_move_anybody() {
    let model = |policy: &str| policies(&format!("models: {{m: {{{policy}, sticky: {{header: user}}}}}}}}"));
    let split = |weights: &str| model(&format!("split: {{weights: {weights}"));
    let canary = |steps: &str| model(&format!("canary: {{baseline: 2, candidate: 1, steps: {steps}"));
    let (ledger, now) = (Ledger::new(), Instant::now());
    let live = Live::new(split("{1: 10, 2: 90}"));
    let on = |ledger: &Ledger, snapshot: &Snapshot| -> Vec<u64> {
        let names = (0..10_000).map(|user| user.to_string());
        names
            .map(|name| {
                ledger.pick(snapshot, "m", &[("user", name.as_str())], 0, |_| true).unwrap().version.0
            })
            .collect()
    };
    let moved = |before: &[u64], after: &[u64]| {
        let moved: Vec<_> = before.iter().zip(after).filter(|(before, after)| before != after).collect();
        moved.len() as f64 / 100.0
    };
    let mut before = on(&ledger, &live.load().snapshot);
    for (next, percent) in [
        (canary("[10, 30]"), 0.0),
        (canary("[30]"), 20.0),
        (split("{1: 30, 2: 70}"), 0.0),
        (split("{1: 20, 2: 70, 3: 10}"), 10.0),
        (canary("[25]"), 10.0),
        (split("{1: 25, 2: 65, 3: 10}"), 10.0),
    ] {
        live.publish(next, &ledger, now);
        let generation = live.load();
        ledger.roll_out(&generation.snapshot, now);
        let after = on(&ledger, &generation.snapshot);
        assert!(
            (moved(&before, &after) - percent).abs() < 1.0,
            "{} %, not {percent}",
            moved(&before, &after)
        );
        before = after;
    }
    live.publish(canary("[40]"), &ledger, now);
    ledger.roll_out(&live.load().snapshot, now);
    let before = on(&ledger, &live.load().snapshot);
    let restarted = Ledger::new();
    let snapshot = canary("[40]").follow(&ledger.rings(&live.load().snapshot));
    restarted.roll_out(&snapshot, now);
    assert_eq!(moved(&before, &on(&restarted, &snapshot)), 0.0);
}

#[test]
fn the_version_that_answers_most_stands_for_its_model() {
    let (ledger, now) = (Ledger::new(), Instant::now());
    let split = policies("models: {m: {split: {weights: {1: 60, 2: 40}}}, open: {deadline: 1s}}");
    assert_eq!(ledger.mostly(&split, "m"), Some(Version(1)));
    assert_eq!((ledger.mostly(&split, "open"), ledger.mostly(&split, "unknown")), (None, None));
    let canary = policies("models: {m: {canary: {baseline: 1, candidate: 2, steps: [10]}}}");
    ledger.roll_out(&canary, now);
    assert_eq!(ledger.mostly(&canary, "m"), Some(Version(1)));
    ledger.command("m", Command::Promote, "", now).unwrap();
    assert_eq!(ledger.mostly(&canary, "m"), Some(Version(2)));
}

/// Requests of new users, each answered by the version that it is given to; how many were counted so far.
fn answer(ledger: &Ledger, snapshot: &Snapshot, users: std::ops::Range<u32>, now: Instant) -> u64 {
    for user in users {
        let user = user.to_string();
        let pick = ledger.pick(snapshot, "m", &[("user", user.as_str())], 0, |_| true).unwrap();
        ledger.count("m", pick.drawn.unwrap(), pick.key, Some(pick.version), None);
    }
    ledger.mismatches(now);
    ledger.splits(now).get("m").map_or(0, |split| split.units)
}

#[test]
fn what_is_seen_of_a_split_is_counted_anew_when_its_shares_change_and_after_a_day() {
    let split = |more: &str| policies(&format!("models: {{m: {{split: {{weights: {more}}}, {REST}"));
    const REST: &str = "deadline: 1s}}";
    let (ledger, now) = (Ledger::new(), Instant::now());
    let first = split("{1: 9, 2: 1}, sticky: {header: user}");
    ledger.roll_out(&first, now);
    assert_eq!(answer(&ledger, &first, 0..100, now), 100);
    let same = split("{1: 90, 2: 10}, sticky: {header: user}");
    ledger.roll_out(&same, now);
    assert_eq!(answer(&ledger, &same, 100..200, now), 200, "another scale is no other share");
    let other = split("{1: 80, 2: 20}, sticky: {header: user}");
    ledger.roll_out(&other, now);
    assert_eq!(answer(&ledger, &first, 200..300, now), 0, "late ones were drawn under other shares");
    assert_eq!(answer(&ledger, &other, 200..300, now), 100);
    let other_key = split("{1: 80, 2: 20}, sticky: {cookie: user}");
    ledger.roll_out(&other_key, now);
    assert_eq!(answer(&ledger, &other_key, 0..10, now), 10, "users are others");
    let day = Duration::from_secs(24 * 60 * 60);
    assert_eq!(answer(&ledger, &other_key, 0..10, now + day - ms(1)), 20);
    ledger.mismatches(now + day);
    assert_eq!(answer(&ledger, &other_key, 0..10, now + day), 10);
    ledger.roll_out(&Snapshot::default(), now);
    assert!(ledger.splits(now).is_empty());
}

#[test]
fn what_is_seen_of_a_rollout_is_counted_anew_in_every_step_and_not_where_one_has_all() {
    let snapshot =
        policies("models: {m: {canary: {baseline: 1, candidate: 2, steps: [50], sticky: {header: user}}}}");
    let (ledger, now) = (Ledger::new(), Instant::now());
    ledger.roll_out(&snapshot, now);
    assert_eq!(answer(&ledger, &snapshot, 0..100, now), 100);
    ledger.command("m", Command::Abort, "", now).unwrap();
    ledger.mismatches(now);
    assert_eq!(answer(&ledger, &snapshot, 100..200, now), 0);
    ledger.command("m", Command::Resume, "", now).unwrap();
    ledger.mismatches(now);
    assert_eq!(answer(&ledger, &snapshot, 200..300, now), 100);
}

#[test]
fn a_candidate_that_is_not_ready_is_a_mismatch_and_no_evidence_against_it() {
    let snapshot = policies("models: {m: {canary: {baseline: 1, candidate: 2, steps: [10]}}}");
    let (ledger, now) = (Ledger::new(), Instant::now());
    ledger.roll_out(&snapshot, now);
    for draw in 0..1_000_u64 {
        let draw = draw.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let pick = ledger.pick(&snapshot, "m", &ANA, draw, |_| false).unwrap();
        assert_eq!(pick.version, Version(1));
        ledger.count(
            "m",
            pick.drawn.unwrap(),
            pick.key,
            Some(pick.version),
            pick.instead.map(|(_, why)| why),
        );
        ledger.witness("m", pick.assigned.unwrap(), pick.key, Sight::Failed, now);
    }
    let (model, mismatch) = ledger.mismatches(now).pop().unwrap();
    assert_eq!((&*model, mismatch.cause), ("m", "not_ready"));
    assert!(ledger.mismatches(now).is_empty(), "it is told once");
    assert_eq!(ledger.rollouts()["m"].percent, 10.0, "it goes on");
}
