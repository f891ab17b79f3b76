//! Breakers: who may enter a version that fails, who answers in its place, and what of that a swap of policies leaves.

use super::*;
use crate::breaker::{BreakerPolicy, BreakerState, Tripped};
use crate::ledger::guards::Guard;
use crate::outcome::Outcome;

#[test]
fn a_breaker_of_another_server_outlives_swaps_and_what_the_engine_loads_but_not_its_address() {
    let policy = |port: u32, limit: u32| {
        let text = format!(
            "models: {{m: {{remote: {{2: {{url: 'http://there:{port}/v2/models/m/infer'}}}}, breaker: {{failures: 1, open_for: 1h}}}}}}\n\
             limits: [{{name: all, rate: {limit}/s, burst: 10}}]"
        );
        crate::parse(&text, "p").unwrap_or_else(|errors| panic!("{errors}"))
    };
    let (ledger, now, engine_has_none) = (Ledger::new(), Instant::now(), |_: &str, _: Version| false);
    let trips = |policy: &Snapshot| ledger.enter(policy, "m", Version(2), now).is_err();
    let first = policy(1, 5);
    ledger.enter(&first, "m", Version(2), now).unwrap().settle(Outcome::Failed, now);
    assert!(trips(&first));
    ledger.retain(&first, engine_has_none);
    assert!(trips(&first), "the engine has loaded something");
    let other_limit = policy(1, 6);
    ledger.retain(&other_limit, engine_has_none);
    assert!(trips(&other_limit), "somebody has changed a limit");
    let elsewhere = policy(2, 6);
    ledger.retain(&elsewhere, engine_has_none);
    assert!(!trips(&elsewhere), "another server");
    // Whoever came under an older policy asks the other one still.
    for _ in 0..3 {
        ledger.enter(&first, "m", Version(2), now).unwrap().settle(Outcome::Failed, now);
    }
    assert!(!trips(&elsewhere));
    let unseen = Ledger::new();
    unseen.retain(&elsewhere, engine_has_none);
    unseen.enter(&first, "m", Version(2), now).unwrap().settle(Outcome::Failed, now);
    assert!(unseen.enter(&elsewhere, "m", Version(2), now).is_ok());
}

/// Status pages, plans, readiness and picks, while the next request would be a probe.
#[test]
fn no_wedge_by_those_who_only_ask_about_a_version_which_takes_no_probe() {
    let text = |slow: &str| {
        format!(
            "models: {{m: {{split: {{weights: {{1: 1}}}}, \
             breaker: {{failures: 1, open_for: 1s, probes: 2{slow}}}}}}}"
        )
    };
    let (snapshot, changed) = (policies(&text("")), policies(&text(", failing: 50")));
    let (ledger, start) = (Ledger::new(), Instant::now());
    ledger.enter(&snapshot, "m", Version(1), start).unwrap().settle(Outcome::Failed, start);
    let now = start + ms(1000);
    let ask = || {
        for _ in 0..10 {
            let _status = (ledger.breakers(now), ledger.rollouts(), ledger.progress(now), ledger.judge(now));
            let _plans = (ledger.plan(&snapshot, &changed, &All), ledger.plan(&snapshot, &snapshot, &All));
            let _ready = (ledger.needed(&snapshot, "m", |_| true), ledger.mostly(&snapshot, "m"));
            let _picked = ledger.pick(&snapshot, "m", &ANA, 0, |_| true);
            ledger.retain(&snapshot, EVERYTHING);
        }
    };
    ask();
    let first = ledger.enter(&snapshot, "m", Version(1), now).expect("nobody has taken a probe");
    ask();
    let second = ledger.enter(&snapshot, "m", Version(1), now).expect("nor the second one");
    ask();
    assert!(ledger.enter(&snapshot, "m", Version(1), now).is_err(), "there are two");
    first.settle(Outcome::Served, now);
    ask();
    second.settle(Outcome::Served, now);
    assert_eq!(ledger.breakers(now)[0].state, BreakerState::Passing);
}

#[test]
fn another_version_answers_for_one_that_fails_as_long_as_it_can() {
    let snapshot =
        policies("models: {m: {breaker: {failures: 1, fallback: {version: 1, in_flight_max: 2}}}}");
    let (ledger, now) = (Ledger::new(), Instant::now());
    ledger.enter(&snapshot, "m", Version(2), now).unwrap().settle(Outcome::Failed, now);
    assert!(ledger.enter(&snapshot, "m", Version(2), now).is_err());
    let fall_back = |from| ledger.fall_back(&snapshot, "m", Version(from), |_| true, now);
    let (version, first) = fall_back(2).unwrap();
    assert_eq!(version, Version(1));
    let second = fall_back(2).unwrap();
    assert!(fall_back(2).is_none(), "no more than two at a time");
    drop(second);
    first.settle(Outcome::Served, now);
    assert!(fall_back(1).is_none(), "nobody falls back to who has just refused");
    assert!(ledger.fall_back(&snapshot, "m", Version(2), |_| false, now).is_none(), "not ready");
    let (_, third) = fall_back(2).unwrap();
    third.settle(Outcome::Failed, now);
    assert!(fall_back(2).is_none(), "it has tripped as well");
    assert!(ledger.fall_back(&snapshot, "other", Version(2), |_| true, now).is_none());
}

#[test]
fn a_tenth_of_a_versions_requests_may_be_asked_again_elsewhere_and_ten_more() {
    let snapshot = policies("models: {m: {breaker: {failures: 1}}}");
    let (ledger, now) = (Ledger::new(), Instant::now());
    let mut again = 0;
    for _ in 0..1_000 {
        ledger.enter(&snapshot, "m", Version(2), now).unwrap().settle(Outcome::Refused, now);
        if let Ok(pass) = ledger.enter_again(&snapshot, "m", (Version(2), Version(1)), now) {
            pass.settle(Outcome::Served, now);
            again += 1;
        }
    }
    assert_eq!(again, 109, "the first ten were saved up, and the last tenth is not whole");
    let over = ledger.enter_again(&snapshot, "m", (Version(2), Version(1)), now).err();
    assert_eq!(over, Some(crate::NotAgain::OverBudget));
    ledger.enter(&snapshot, "m", Version(1), now).unwrap().settle(Outcome::Failed, now);
    (0..10).for_each(|_| drop(ledger.enter(&snapshot, "m", Version(2), now)));
    let tripped = ledger.enter_again(&snapshot, "m", (Version(2), Version(1)), now).err();
    assert_eq!(tripped, Some(crate::NotAgain::Tripped));
    assert!(
        ledger.enter_again(&snapshot, "m", (Version(2), Version(2)), now).is_ok(),
        "that has cost nothing"
    );
}

fn trip(ledger: &Ledger, snapshot: &Snapshot, version: Version, now: Instant) {
    for _ in 0..snapshot.breaker("digits").failures.get() {
        ledger.enter(snapshot, "digits", version, now).unwrap().settle(Outcome::Failed, now);
    }
}

#[test]
fn who_would_be_refused_is_told_beforehand_unless_somebody_answers_instead_and_nobody_enters_so() {
    let policy = |fallback: &str| {
        policies(&format!("models: {{m: {{breaker: {{failures: 1, open_for: 10s{fallback}}}}}}}"))
    };
    let (alone, backed) = (policy(""), policy(", fallback: {version: 1}"));
    let (ledger, now) = (Ledger::new(), Instant::now());
    let refuses = |snapshot, at| ledger.refuses(snapshot, "m", Version(2), now + ms(at));
    assert_eq!(refuses(&alone, 0), None);
    ledger.enter(&alone, "m", Version(2), now).unwrap().settle(Outcome::Failed, now);
    assert_eq!((refuses(&alone, 1000), refuses(&backed, 1000)), (tripped(9000), None));
    assert_eq!((refuses(&alone, 10_000), refuses(&alone, 10_000)), (None, None), "the next may be a probe");
    assert!(ledger.enter(&alone, "m", Version(2), now + ms(10_000)).is_ok(), "and the place is free");
}

fn tripped(milliseconds: u64) -> Option<Tripped> {
    Some(Tripped { retry_after: ms(milliseconds) })
}

#[test]
fn each_version_has_its_own_breaker() {
    let (ledger, snapshot, now) = (Ledger::new(), Snapshot::default(), Instant::now());
    trip(&ledger, &snapshot, Version(2), now);
    assert_eq!(ledger.enter(&snapshot, "digits", Version(2), now).err(), tripped(10_000));
    assert!(ledger.enter(&snapshot, "digits", Version(1), now).is_ok());
    let states: Vec<_> =
        ledger.breakers(now).into_iter().map(|status| (status.version.0, status.state)).collect();
    assert_eq!(
        states,
        [(1, BreakerState::Passing), (2, BreakerState::Tripped { retry_after: Duration::from_secs(10) })]
    );
}

#[test]
fn a_reload_keeps_a_breaker_tripped_unless_its_own_settings_changed() {
    let (ledger, now) = (Ledger::new(), Instant::now());
    let before = policies("models: {digits: {breaker: {failures: 2, open_for: 1s}}}");
    trip(&ledger, &before, Version(2), now);

    let other_split =
        policies("models: {digits: {split: {weights: {2: 1}}, breaker: {failures: 2, open_for: 1s}}}");
    ledger.retain(&other_split, EVERYTHING);
    assert_eq!(ledger.enter(&other_split, "digits", Version(2), now).err(), tripped(1000));

    let other_deadline = policies("models: {digits: {deadline: 3s, breaker: {failures: 2, open_for: 1s}}}");
    ledger.retain(&other_deadline, EVERYTHING);
    assert_eq!(ledger.enter(&other_deadline, "digits", Version(2), now).err(), tripped(1000));
    let later = now + ms(1000);
    let _probe = ledger.enter(&other_deadline, "digits", Version(2), later).unwrap();
    assert_eq!(
        ledger.enter(&other_deadline, "digits", Version(2), later).err(),
        tripped(3000),
        "a probe has the new deadline's time"
    );

    let other_breaker = policies("models: {digits: {breaker: {failures: 3, open_for: 1s}}}");
    ledger.retain(&other_breaker, EVERYTHING);
    assert!(ledger.enter(&before, "digits", Version(2), now).is_ok());
    trip(&ledger, &other_breaker, Version(2), now);
    assert_eq!(ledger.enter(&other_breaker, "digits", Version(2), now).err(), tripped(1000));
}

#[test]
fn a_late_request_that_is_the_first_to_enter_a_version_meets_its_newest_settings() {
    let (ledger, now) = (Ledger::new(), Instant::now());
    let before = policies("models: {digits: {breaker: {failures: 1, open_for: 1s}}}");
    let after = policies("models: {digits: {breaker: {failures: 2, open_for: 3s}}}");
    ledger.retain(&after, EVERYTHING);
    ledger.enter(&before, "digits", Version(1), now).unwrap().settle(Outcome::Failed, now);
    ledger.enter(&after, "digits", Version(1), now).unwrap().settle(Outcome::Failed, now);
    assert_eq!(ledger.enter(&after, "digits", Version(1), now).err(), tripped(3000));
}

#[test]
fn a_version_that_is_gone_is_forgotten() {
    let (ledger, snapshot, now) = (Ledger::new(), Snapshot::default(), Instant::now());
    let pass = ledger.enter(&snapshot, "digits", Version(1), now).unwrap();
    let _ = ledger.enter(&snapshot, "digits", Version(2), now);
    ledger.retain(&snapshot, |_, version| version == Version(2));
    assert_eq!(ledger.breakers(now).len(), 1);
    pass.settle(Outcome::Failed, now); // Into the void, harmlessly.
    assert_eq!(ledger.breakers(now).len(), 1);
}

#[test]
fn a_breaker_is_forgiven_when_a_rollout_begins_again_and_not_when_it_goes_on() {
    let (ledger, now) = (Ledger::new(), Instant::now());
    let snapshot = policies("models: {digits: {canary: {baseline: 1, candidate: 2}}}");
    ledger.roll_out(&snapshot, now);
    trip(&ledger, &snapshot, Version(2), now);
    let say = |command| ledger.command("digits", command, "", now).unwrap();
    say(Command::Pause);
    say(Command::Resume);
    assert_eq!(ledger.enter(&snapshot, "digits", Version(2), now).err(), tripped(10_000));
    say(Command::Abort);
    say(Command::Resume);
    assert!(ledger.enter(&snapshot, "digits", Version(2), now).is_ok());
}

#[test]
fn a_dropped_pass_gives_its_probe_back() {
    let (ledger, snapshot, now) = (Ledger::new(), Snapshot::default(), Instant::now());
    trip(&ledger, &snapshot, Version(1), now);
    let later = now + Duration::from_secs(10);
    let probe = ledger.enter(&snapshot, "digits", Version(1), later).unwrap();
    assert!(probe.is_probe());
    assert_eq!(ledger.enter(&snapshot, "digits", Version(1), later).err(), tripped(10_000));
    drop(probe);
    assert!(ledger.enter(&snapshot, "digits", Version(1), later).is_ok_and(|pass| pass.is_probe()));
}

#[test]
fn the_number_of_breakers_is_bounded() {
    let (ledger, snapshot, now) = (Ledger::new(), Snapshot::default(), Instant::now());
    trip(&ledger, &snapshot, Version(1), now);
    let mut full = Breakers::clone(&ledger.tables.load().breakers);
    let versions = full.guards.get_mut("digits").unwrap();
    let others =
        (2..=10_000).map(|version| (Version(version), Arc::new(Guard::new(BreakerPolicy::default(), None))));
    *versions = versions.iter().cloned().chain(others).collect();
    ledger.replace(|tables| &mut tables.breakers, |_| full.clone());
    assert!(ledger.enter(&snapshot, "digits", Version(10_001), now).is_ok());
    let remembered: Vec<_> = ledger.breakers(now).into_iter().map(|status| status.version.0).collect();
    assert_eq!(remembered, [1, 10_001], "those that had nothing to remember made room");
}
