//! The ledger by hand: limits, breakers and rollouts as requests meet them.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::thread;
use std::time::Duration;

use proptest::prelude::*;

use super::guards::Guard;
use super::*;
use crate::breaker::{BreakerPolicy, BreakerState, Tripped};
use crate::canary::{Command, Phase, Sight, Verdict};
use crate::limiter::{Limited, Quota};
use crate::outcome::Outcome;
use crate::plan::tests::All;
use crate::tally::Instead;
use crate::{Live, parse};

const ANA: [(&str, &str); 1] = [("user", "ana")];
const BEN: [(&str, &str); 1] = [("user", "ben")];
const EVERYTHING: fn(&str, Version) -> bool = |_, _| true;

fn policies(text: &str) -> Snapshot {
    parse(text, "policies.yaml").unwrap()
}

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

fn limited(limit: &str, milliseconds: u64) -> Result<(), (String, Duration)> {
    Err((limit.into(), ms(milliseconds)))
}

/// What matters of an answer.
fn short<T>(answer: Result<T, Limited>) -> Result<(), (String, Duration)> {
    answer.map(drop).map_err(|limited| (limited.limit.to_string(), limited.retry_after))
}

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
fn a_refused_request_spends_nothing_at_any_limit() {
    let snapshot = policies(
        "limits: [{name: all, rate: 10/s, burst: 3}, {name: user, key: {header: user}, rate: 1/s, burst: 1}]",
    );
    let (ledger, now) = (Ledger::new(), Instant::now());
    assert_eq!(short(ledger.admit(&snapshot, "digits", &ANA, || None, now)), Ok(()));
    for _ in 0..100 {
        assert_eq!(short(ledger.admit(&snapshot, "digits", &ANA, || None, now)), limited("user", 1000));
    }
    assert_eq!(
        short(ledger.admit(&snapshot, "digits", &BEN, || None, now)),
        Ok(()),
        "ana's refusals did not drain the total"
    );
    assert_eq!(short(ledger.admit(&snapshot, "digits", &[("user", "cy")], || None, now)), Ok(()));
    assert_eq!(
        short(ledger.admit(&snapshot, "digits", &[("user", "di")], || None, now)),
        limited("all", 100)
    );
    assert_eq!(short(ledger.admit(&snapshot, "digits", &[("user", "di")], || None, now + ms(100))), Ok(()));
}

#[test]
fn the_longest_wait_is_the_one_that_is_told() {
    let snapshot = policies("limits: [{name: a, rate: 10/s, burst: 1}, {name: b, rate: 1/s, burst: 1}]");
    let (ledger, now) = (Ledger::new(), Instant::now());
    assert_eq!(short(ledger.admit(&snapshot, "digits", &ANA, || None, now)), Ok(()));
    assert_eq!(short(ledger.admit(&snapshot, "digits", &ANA, || None, now)), limited("b", 1000));
    assert_eq!(short(ledger.admit(&snapshot, "digits", &ANA, || None, now + ms(1000))), Ok(()));
}

#[test]
fn rows_are_spent_once_they_are_known_and_a_refusal_then_gives_the_request_back() {
    let snapshot = policies(
        "limits: [{name: asks, rate: 1/h, burst: 2}, {name: rows, key: {header: user}, cost: rows, rate: 10/s}]",
    );
    let (ledger, now) = (Ledger::new(), Instant::now());
    let ask = |rows, now| -> Result<_, Limited> {
        let admitted = ledger.admit(&snapshot, "m", &ANA, || None, now)?;
        let mut charged = ledger.charge(&snapshot, "m", &ANA, admitted, Usage { rows, bytes: 1 }, now)?;
        charged.reserved.settle();
        Ok(charged.quota)
    };
    let left = ask(7, now).unwrap().unwrap();
    assert_eq!((&*left.limit.name, left.remaining, left.reset), ("rows", 3, ms(700)));
    let refused = ask(4, now).unwrap_err();
    assert_eq!((&*refused.limit, refused.retry_after, refused.quota.remaining), ("rows", ms(100), 3));
    for _ in 0..10 {
        let never = ask(11, now).unwrap_err();
        assert_eq!(
            (never.never, never.quota.remaining),
            (NonZeroU32::new(11), 3),
            "more than may ever come at once"
        );
    }
    let other = ledger.admit(&snapshot, "m", &BEN, || None, now).unwrap().quota.unwrap();
    assert_eq!((&*other.limit.name, other.remaining), ("asks", 0), "the second of two");
    assert_eq!(short(ask(1, now)), limited("asks", 3_600_000));
    let left = ask(4, now + ms(7_200_000)).unwrap().unwrap();
    assert_eq!((&*left.limit.name, left.remaining), ("asks", 1), "half of them, and six in ten of the rows");
}

#[test]
fn what_time_has_paid_for_is_not_given_back() {
    let snapshot =
        policies("limits: [{name: asks, rate: 1/s, burst: 1}, {name: rows, cost: rows, rate: 10/s}]");
    let (ledger, now) = (Ledger::new(), Instant::now());
    let at = |milliseconds| now + ms(milliseconds);
    let admit = |now| ledger.admit(&snapshot, "m", &ANA, || None, now);
    let too_many = |admitted, now| {
        let usage = Usage { rows: 11, bytes: 1 };
        ledger.charge(&snapshot, "m", &ANA, admitted, usage, now).unwrap_err();
    };
    let slow = admit(at(0)).unwrap();
    let _other = admit(at(20_000)).unwrap();
    too_many(slow, at(20_100));
    assert_eq!(short(admit(at(20_100))), limited("asks", 900), "the other one's second is not over");
    let third = admit(at(21_000)).unwrap();
    too_many(third, at(21_400));
    assert_eq!(short(admit(at(21_400))), Ok(()), "the rest of its second");
    let fourth = admit(at(22_400)).unwrap();
    let afresh =
        policies("limits: [{name: asks, rate: 1/h, burst: 1}, {name: rows, cost: rows, rate: 10/s}]");
    ledger.retain(&afresh, EVERYTHING);
    let _first = admit(at(22_500)).unwrap();
    too_many(fourth, at(22_500));
    assert_eq!(short(admit(at(22_500))), limited("asks", 3_600_000), "it was not spent at the new limit");
}

#[test]
fn of_several_limits_the_one_is_told_of_which_the_smallest_part_is_left() {
    let snapshot =
        policies("limits: [{name: asks, rate: 1/h, burst: 4}, {name: bytes, cost: bytes, rate: 1000/s}]");
    let (ledger, now) = (Ledger::new(), Instant::now());
    let ask = |bytes| {
        let admitted = ledger.admit(&snapshot, "m", &ANA, || None, now).unwrap();
        let mut charged =
            ledger.charge(&snapshot, "m", &ANA, admitted, Usage { rows: 1, bytes }, now).unwrap();
        charged.reserved.settle();
        charged.quota.unwrap()
    };
    let told = |quota: Quota| (quota.limit.name.to_string(), quota.remaining);
    assert_eq!(told(ask(100)), ("asks".into(), 3), "what the body costs does not hide what its head did");
    assert_eq!(told(ask(700)), ("bytes".into(), 200));
    assert_eq!(told(ask(10)), ("bytes".into(), 190));
    assert_eq!(told(ask(1)), ("asks".into(), 0));
}

#[test]
fn what_is_left_is_told_for_the_limit_with_the_least() {
    let snapshot = policies("limits: [{name: a, rate: 10/s}, {name: b, rate: 60/m, burst: 3}]");
    let (ledger, now) = (Ledger::new(), Instant::now());
    let left = ledger.admit(&snapshot, "m", &ANA, || None, now).unwrap().quota.unwrap();
    assert_eq!((&*left.limit.name, left.remaining, left.reset), ("b", 2, ms(1000)));
    assert_eq!(left.limit.field(), "\"b\";q=3;w=3");
    assert_eq!(left.field(), "\"b\";r=2;t=1");
    ledger.admit(&snapshot, "m", &ANA, || None, now).unwrap();
    let left = ledger.admit(&snapshot, "m", &ANA, || None, now + ms(500)).unwrap().quota.unwrap();
    assert_eq!((left.remaining, left.field().as_str()), (0, "\"b\";r=0;t=3"), "half of one is none");
    let refused = ledger.admit(&snapshot, "m", &ANA, || None, now + ms(500)).unwrap_err();
    assert_eq!((refused.quota.field().as_str(), refused.retry_after), ("\"b\";r=0;t=3", ms(500)));
    assert_eq!(ledger.admit(&policies("models: {}"), "m", &ANA, || None, now).unwrap().quota, None);
}

#[test]
fn a_limit_leaves_other_models_alone() {
    let snapshot = policies("limits: [{name: a, models: [digits], rate: 1/h, burst: 1}]");
    let (ledger, now) = (Ledger::new(), Instant::now());
    assert_eq!(short(ledger.admit(&snapshot, "digits", &ANA, || None, now)), Ok(()));
    assert!(ledger.admit(&snapshot, "digits", &ANA, || None, now).is_err());
    assert_eq!(short(ledger.admit(&snapshot, "letters", &ANA, || None, now)), Ok(()));
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
fn only_what_chance_has_given_to_the_baseline_is_compared_with_the_candidate() {
    let snapshot = policies(
        "models: {m: {canary: {baseline: 1, candidate: 2, steps: [50], gates: {disagreement: {at_most: 2}}}, \
         shadow: {version: 2}}}",
    );
    let (ledger, now) = (Ledger::new(), Instant::now());
    ledger.roll_out(&snapshot, now);
    let assigned = |draw| ledger.pick(&snapshot, "m", &ANA, draw, |_| true).unwrap().assigned.unwrap();
    let compared = || ledger.rollouts()["m"].gates[1].requests;
    ledger.compared("m", assigned(u64::MAX), Version(2), None, Some(false), now);
    assert_eq!(compared(), 0, "the client got the candidate's answer");
    ledger.compared("m", assigned(0), Version(3), None, Some(false), now);
    assert_eq!(compared(), 0, "another version's answer");
    ledger.compared("m", assigned(0), Version(2), None, Some(false), now);
    assert_eq!(compared(), 1);
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

#[test]
fn a_reload_keeps_the_limits_that_did_not_change() {
    let ledger = Ledger::new();
    let now = Instant::now();
    let before = policies(
        "limits: [{name: same, rate: 1/h, burst: 1, models: [a]}, {name: new, rate: 1/h, burst: 1, models: [b]}]",
    );
    assert_eq!(short(ledger.admit(&before, "a", &ANA, || None, now)), Ok(()));
    assert_eq!(short(ledger.admit(&before, "b", &ANA, || None, now)), Ok(()));

    let after = policies(
        "limits: [{name: new, rate: 2/h, burst: 1, models: [b]}, {name: same, rate: 1/h, burst: 1, models: [a]}]",
    );
    ledger.retain(&after, EVERYTHING);
    assert_eq!(short(ledger.admit(&after, "a", &ANA, || None, now)), limited("same", 3_600_000));
    assert_eq!(short(ledger.admit(&after, "b", &ANA, || None, now)), Ok(()));
    assert_eq!(
        short(ledger.admit(&before, "b", &ANA, || None, now)),
        limited("new", 1_800_000),
        "a late request meets the new rate"
    );
}

#[test]
fn threads_share_a_burst_exactly() {
    let snapshot = policies("limits: [{name: a, rate: 1/h, burst: 1000}, {name: b, rate: 1/h, burst: 500}]");
    let (ledger, now) = (Ledger::new(), Instant::now());
    let admitted: usize = thread::scope(|scope| {
        let ask =
            || (0..400).filter(|_| ledger.admit(&snapshot, "digits", &ANA, || None, now).is_ok()).count();
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(ask)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!(admitted, 500);
    let only_a = policies("limits: [{name: a, rate: 1/h, burst: 1000}]");
    let rest = (0..1000).filter(|_| ledger.admit(&only_a, "digits", &ANA, || None, now).is_ok()).count();
    assert_eq!(rest, 500, "what `b` refused was not spent at `a`");
}

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

/// A body that comes for long is answered by the policy that it began under, whatever has become of its rollout.
#[test]
fn a_verdict_just_before_a_swap_is_told_and_remembered() {
    let policy = |canary: &str| parse(&format!("models: {{m: {{{canary}}}}}"), "p").unwrap();
    let (ledger, now) = (Ledger::new(), Instant::now());
    let before = policy("canary: {baseline: 1, candidate: 2, steps: [10]}");
    ledger.roll_out(&before, now);
    ledger.command("m", Command::Abort, "", now).unwrap();
    ledger.roll_out(&policy("split: {weights: {1: 1}}"), now);
    let told: Vec<_> = ledger.judge(now).into_iter().map(|(_, record)| record.verdict).collect();
    assert_eq!(told, [crate::Verdict::RollBack]);
    assert_eq!(ledger.judge(now), []);
    ledger.roll_out(&before, now);
    assert_eq!(ledger.rollouts()["m"].phase, crate::Phase::RolledBack);
}

#[test]
fn a_request_counts_as_under_way_until_it_is_over_whatever_becomes_of_its_policy() {
    let policy = |canary: &str| parse(&format!("models: {{m: {{{canary}}}}}"), "p").unwrap();
    let (ledger, now) = (Ledger::new(), Instant::now());
    let rolling = policy("canary: {baseline: 1, candidate: 2, steps: [50]}");
    ledger.roll_out(&rolling, now);
    let picks = [0, u64::MAX].map(|draw| ledger.pick(&rolling, "m", &ANA, draw, |_| true).unwrap());
    let under_way = |ledger: &Ledger| {
        let rollout = ledger.rollouts.load().get("m").cloned();
        rollout.map(|rollout| rollout.asked.under_way())
    };
    let asked: Vec<_> = picks.iter().filter_map(|pick| ledger.ask("m", pick.assigned.unwrap())).collect();
    assert_eq!((asked.len(), under_way(&ledger)), (1, Some(1)), "nobody waits for the baseline's");
    ledger.roll_out(&policy(""), now);
    assert_eq!(under_way(&ledger), None);
    ledger.roll_out(&rolling, now);
    drop(asked);
    assert_eq!(under_way(&ledger), Some(0));
}

#[test]
fn a_rollout_that_a_swap_has_ended_stays_as_it_was_for_those_who_came_before() {
    for (command, version) in [(Command::Promote, 2), (Command::Abort, 1)] {
        let (ledger, now) = (Ledger::new(), Instant::now());
        let before = policies(
            "models: {m: {canary: {baseline: 1, candidate: 2, steps: [50], sticky: {header: user}}}}",
        );
        ledger.roll_out(&before, now);
        // Somebody who is on the candidate's side already.
        let users = (0..100).map(|user| [("user", ["ana", "ben", "eve", "joe"][user % 4])]);
        let pick = |user: &[(&str, &str); 1]| ledger.pick(&before, "m", user, 0, |_| true).unwrap();
        let user = users.clone().find(|user| pick(user).version == Version(2)).unwrap();
        let early = pick(&user);
        ledger.command("m", command, "", now).unwrap();
        ledger.roll_out(&policies("models: {m: {split: {weights: {1: 1, 2: 1}}}}"), now);
        assert!(ledger.rollouts().is_empty());
        assert!(users.into_iter().all(|user| pick(&user).version == Version(version)), "{command:?}");
        assert_eq!(confirmed(&ledger, &before, &early), Version(version), "{command:?}");
        ledger.roll_out(&before, now);
        assert_eq!(pick(&user).version, Version(version), "{command:?}, and then its policy comes back");
    }
}

#[test]
fn verdicts_are_told_in_the_order_of_their_models_and_of_each_as_they_fell() {
    let (ledger, now) = (Ledger::new(), Instant::now());
    let rollout = |at| format!("m{at}: {{canary: {{baseline: 1, candidate: 2, steps: [50]}}}}");
    let all: Vec<_> = (10..40).map(rollout).collect();
    ledger.roll_out(&policies(&format!("models: {{{}}}", all.join(", "))), now);
    let mut expected = Vec::new();
    for model in (10..40).rev().map(|at| format!("m{at}")) {
        for (command, verdict) in [(Command::Pause, Verdict::Hold), (Command::Abort, Verdict::RollBack)] {
            ledger.command(&model, command, "", now).unwrap();
            expected.push((model.clone(), verdict));
        }
    }
    expected.sort_by(|(one, _), (other, _)| one.cmp(other));
    let told = ledger.judge(now).into_iter().map(|(model, record)| (model.to_string(), record.verdict));
    assert_eq!(told.collect::<Vec<_>>(), expected);
}

/// Where a request goes that was picked before its body was read.
fn confirmed(ledger: &Ledger, snapshot: &Snapshot, early: &Pick) -> Version {
    ledger.confirm(snapshot, "m", early.version, (Some(early.reason), early.assigned)).0
}

/// By chance or by a rule, and also where its policy has gone by then.
#[test]
fn who_was_picked_for_a_candidate_that_is_rolled_back_while_the_body_comes_gets_the_baseline() {
    let before = policies(
        "models: {m: {rules: [{when: {header: user, equals: eve}, use: 3}, {when: {header: user, equals: ana}, use: 2}], \
         canary: {baseline: 1, candidate: 2, steps: [50]}}}",
    );
    let after = policies("models: {m: {split: {weights: {1: 1}}}}");
    for swaps in [false, true] {
        let (ledger, now) = (Ledger::new(), Instant::now());
        ledger.roll_out(&before, now);
        let early = ["ana", "ben", "eve"]
            .map(|user| ledger.pick(&before, "m", &[("user", user)], u64::MAX, |_| true).unwrap());
        let to = || early.each_ref().map(|early| confirmed(&ledger, &before, early).0);
        assert_eq!(to(), [2, 2, 3]);
        ledger.command("m", Command::Abort, "", now).unwrap();
        if swaps {
            ledger.roll_out(&after, now);
        }
        assert_eq!(to(), [1, 1, 3]);
        let pinned = ledger.confirm(&before, "m", Version(2), (None, None));
        assert_eq!(pinned, (Version(2), None), "its caller says so");
    }
}

#[test]
fn a_rule_sends_nobody_to_a_candidate_that_was_rolled_back() {
    let (ledger, now) = (Ledger::new(), Instant::now());
    let snapshot = policies(
        "models: {m: {rules: [{when: {header: user, equals: eve}, use: 3}, {when: {header: user, equals: ana}, use: 2}], \
         canary: {baseline: 1, candidate: 2, steps: [50]}}}",
    );
    let pick = |user| {
        let pick = ledger.pick(&snapshot, "m", &[("user", user)], 0, |_| true).unwrap();
        (pick.version.0, pick.reason, pick.instead)
    };
    let by_rule = |version| (version, PickReason::Rule, None);
    assert_eq!(pick("ana"), by_rule(2), "nobody has begun it yet, and a tester may");
    ledger.roll_out(&snapshot, now);
    assert_eq!(pick("ana"), by_rule(2));
    ledger.command("m", Command::Abort, "", now).unwrap();
    assert_eq!(pick("ana"), (1, PickReason::Rule, Some(Instead::RolledBack)));
    assert_eq!(pick("eve"), by_rule(3), "another version than the candidate");
    ledger.command("m", Command::Resume, "", now).unwrap();
    assert_eq!(pick("ana"), by_rule(2));
    ledger.command("m", Command::Promote, "", now).unwrap();
    assert_eq!(pick("ana"), by_rule(2));
}

/// Its answers take no lock, and say how long one waits for nothing.
#[test]
fn who_leaves_is_heard_by_what_the_baseline_takes() {
    let (ledger, mut now) = (Ledger::new(), Instant::now());
    let snapshot = policies("models: {m: {canary: {baseline: 1, candidate: 2, steps: [10]}}}");
    ledger.roll_out(&snapshot, now);
    let assigned = |draw| ledger.pick(&snapshot, "m", &ANA, draw, |_| true).unwrap().assigned.unwrap();
    let mut leave = |waited| {
        for user in 0..10 {
            now += ms(200);
            ledger.witness("m", assigned(u64::MAX), Some(user), Sight::Gone(ms(waited)), now);
        }
        (ledger.rollouts()["m"].phase.clone(), ledger.rollouts()["m"].gates[0].requests)
    };
    assert_eq!(leave(500), (Phase::Running, 0), "nobody has answered yet");
    (0..20).for_each(|_| ledger.witness("m", assigned(0), None, Sight::Answered(ms(5)), Instant::now()));
    assert_eq!(leave(1), (Phase::Running, 0));
    assert_eq!(leave(500).0, Phase::RolledBack);
}

/// Its answers take no lock, and say of how many requests it has refused some.
#[test]
fn what_the_baseline_refuses_is_judged_by_what_it_takes() {
    let (ledger, mut now) = (Ledger::new(), Instant::now());
    let gates = "dwell: 10s, sticky: {header: u}, gates: {errors: {at_most: 10}}";
    let snapshot =
        policies(&format!("models: {{m: {{canary: {{baseline: 1, candidate: 2, steps: [50], {gates}}}}}}}"));
    ledger.roll_out(&snapshot, now);
    let assigned = |draw| ledger.pick(&snapshot, "m", &ANA, draw, |_| true).unwrap().assigned.unwrap();
    // One in twenty of the baseline's, and twelve of the candidate's, of a thousand a second each.
    for _ in 0..20 {
        for at in 0..8_000 {
            let (user, is_candidate) = (at % 8, at % 2 == 0);
            let refused = if is_candidate { 12 } else { 1 };
            let sight = if at / 8 % 20 < refused { Sight::Refused } else { Sight::Answered(ms(5)) };
            ledger.witness("m", assigned(if is_candidate { u64::MAX } else { 0 }), Some(user), sight, now);
        }
        now += ms(1_000);
        ledger.judge(now);
    }
    let waits_for = ledger.rollouts()["m"].waits_for.clone().unwrap();
    let told = "errors: version 2 refuses 60.0 % of what it is asked, where what version 1 refuses makes 5.0 % and 10 % may fail: ";
    assert!(waits_for.starts_with(told), "{waits_for}");
}

/// Who has no key cannot have chosen whom to leave.
#[test]
fn who_leaves_and_has_no_key_is_heard_however_soon_against_the_baseline_alone() {
    let (ledger, mut now) = (Ledger::new(), Instant::now());
    let snapshot = policies("models: {m: {canary: {baseline: 1, candidate: 2, steps: [10]}}}");
    ledger.roll_out(&snapshot, now);
    let assigned = |draw| ledger.pick(&snapshot, "m", &ANA, draw, |_| true).unwrap().assigned.unwrap();
    let gone = Sight::Gone(ms(1));
    for at in 0..10 {
        now += ms(200);
        let draw = if at == 0 { u64::MAX } else { 0 };
        ledger.witness("m", assigned(draw), None, gone, now);
    }
    let status = &ledger.rollouts()["m"];
    assert_eq!(
        (status.phase.clone(), status.gates[0].requests),
        (Phase::Running, 0),
        "one in ten is its share"
    );
    for _ in 0..10 {
        now += ms(200);
        ledger.witness("m", assigned(u64::MAX), None, gone, now);
    }
    assert_eq!(ledger.rollouts()["m"].phase, Phase::RolledBack);
}

/// A version that comes back from another server is what lies here now.
#[test]
fn files_that_were_there_before_another_server_answered_are_forgotten() {
    let policy = |remote: &str| {
        policies(&format!("models: {{m: {{{remote}canary: {{baseline: 1, candidate: 2, steps: [50]}}}}}}"))
    };
    let (here, there) = (policy(""), policy("remote: {2: {url: 'http://there/infer'}}, "));
    let (ledger, now) = (Ledger::new(), Instant::now());
    ledger.roll_out(&here, now);
    ledger.begins_with("m", Version(2), 1);
    ledger.roll_out(&there, now);
    ledger.begins_with("m", Version(2), 2);
    ledger.roll_out(&here, now);
    ledger.begins_with("m", Version(2), 3);
    ledger.judge(now);
    ledger.made_of("m", Version(2), 3, now);
    assert_eq!(ledger.judge(now), []);
    ledger.made_of("m", Version(2), 4, now);
    assert!(ledger.judge(now)[0].1.why.contains("were replaced"));
}

/// What was asked under other circumstances is no evidence: it is of one side only that it would be heard.
#[test]
fn requests_of_an_older_policy_say_nothing_about_what_a_rollout_is_about_now() {
    let policy = |port: u32, gates: &str| {
        policies(&format!(
            "models: {{m: {{remote: {{2: {{url: 'http://there:{port}/infer'}}}}, \
             canary: {{baseline: 1, candidate: 2, steps: [50], gates: {{errors: {{at_most: 90}}{gates}}}}}}}}}"
        ))
    };
    let now = Instant::now();
    let before = policy(1, "");
    let split = policies("models: {m: {split: {weights: {1: 1}}}}");
    let latency = policy(1, ", latency: {over: 200ms, at_most: 90}");
    for (after, between) in [(&latency, None), (&policy(2, ""), None), (&before, Some(&split))] {
        let ledger = Ledger::new();
        let assigned = |snapshot: &Snapshot| {
            let pick = ledger.pick(snapshot, "m", &ANA, u64::MAX, |_| true).unwrap();
            assert_eq!(pick.version, Version(2));
            pick.assigned
        };
        let tell = |assigned: Assignment| {
            for sight in [Sight::Answered(ms(600)), Sight::Failed] {
                ledger.witness("m", assigned, None, sight, now);
            }
        };
        let heard = || -> u64 { ledger.rollouts()["m"].gates.iter().map(|gate| gate.requests).sum() };
        ledger.roll_out(&before, now);
        let early = assigned(&before).unwrap();
        between.into_iter().for_each(|between| ledger.roll_out(between, now));
        ledger.roll_out(after, now);
        tell(early);
        assert_eq!(heard(), 0, "it was asked before");
        if between.is_none() {
            // It came before, and is asked now: its key was in its body.
            tell(assigned(&before).unwrap());
            assert_eq!(heard(), 0);
        }
        tell(assigned(after).unwrap());
        assert!(heard() > 0);
    }
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

/// Who goes back to a policy of the past does not thereby trust a candidate that failed under it.
#[test]
fn a_candidate_that_was_rolled_back_stays_so_when_its_policy_comes_back() {
    let canary = |candidate: u64| {
        policies(&format!(
            "models: {{m: {{canary: {{baseline: 1, candidate: {candidate}, steps: [50, 80]}}}}}}"
        ))
    };
    let (before, other, split) = (canary(2), canary(3), policies("models: {m: {split: {weights: {1: 1}}}}"));
    let now = Instant::now();
    let share = |ledger: &Ledger| ledger.rollouts()["m"].percent;
    let phase = |ledger: &Ledger| ledger.rollouts()["m"].phase.clone();
    for between in [&split, &other] {
        for restarts in [false, true] {
            let mut ledger = Ledger::new();
            ledger.roll_out(&before, now);
            ledger.command("m", Command::Abort, "it smells", now).unwrap();
            ledger.roll_out(between, now);
            if restarts {
                let (kept, progress) = (ledger.ended_rollouts(), ledger.progress(now));
                let kept = serde_json::from_str(&serde_json::to_string(&kept).unwrap()).unwrap();
                ledger = Ledger::new();
                ledger.go_on(between, (&progress, kept), now);
            }
            let plan = ledger.plan(between, &before, &All);
            let says =
                "the rollout of version 2 stays rolled back: `penstock canary resume m` begins it again";
            assert!(plan.changes[0].state.contains(&says.to_owned()), "{plan:?}");
            assert_eq!(ledger.rings(&before).0["m"], [(0, Version(1))]);
            ledger.roll_out(&before, now);
            assert_eq!((share(&ledger), phase(&ledger)), (0.0, crate::Phase::RolledBack));
            let why = ledger.judge(now).pop().unwrap().1.why;
            assert_eq!(why, "it was rolled back before and stays so until a person resumes it");
            // A person trusts it after all, and then another policy takes it back.
            ledger.command("m", Command::Resume, "", now).unwrap();
            let policy = before.model("m").unwrap().canary.as_ref().unwrap();
            assert_eq!((share(&ledger), ledger.ended_rollouts().of("m", policy)), (50.0, None));
            ledger.command("m", Command::Promote, "", now).unwrap();
            ledger.roll_out(between, now);
            ledger.roll_out(&before, now);
            assert_eq!(share(&ledger), 50.0, "it begins at its first step");
        }
    }
}

/// Who takes back a change that has lost a rollout finds it where it was.
#[test]
fn a_rollout_goes_on_where_it_was_when_its_policy_comes_back() {
    let canary = |steps: &str| {
        policies(&format!("models: {{m: {{canary: {{baseline: 1, candidate: 2, steps: {steps}}}}}}}"))
    };
    let (before, other_steps) = (canary("[10, 50, 80]"), canary("[60]"));
    let between = policies("models: {m: {deadline: 1s}}");
    let now = Instant::now();
    for (command, phase, percent, says) in [
        (Some(Command::Promote), Phase::Promoted, 100.0, "stays promoted"),
        (
            Some(Command::Pause),
            Phase::Paused,
            50.0,
            "stays paused at 50 %: with `penstock canary resume m` it goes on",
        ),
        (None, Phase::Running, 50.0, "goes on at 50 %, where it was, and its step begins anew"),
    ] {
        for restarts in [false, true] {
            let mut ledger = Ledger::new();
            // It has come to its second step, and heard of failures.
            let second = canary("[50]");
            ledger.roll_out(&second, now);
            let pick = ledger.pick(&second, "m", &ANA, u64::MAX, |_| true).unwrap();
            ledger.witness("m", pick.assigned.unwrap(), None, Sight::Failed, now);
            ledger.roll_out(&before, now);
            if let Some(command) = command {
                ledger.command("m", command, "", now).unwrap();
            }
            ledger.roll_out(&between, now);
            if restarts {
                let kept = serde_json::to_string(&ledger.ended_rollouts()).unwrap();
                ledger = Ledger::new();
                let kept = serde_json::from_str(&kept).unwrap();
                ledger.go_on(&between, (&BTreeMap::new(), kept), now);
            }
            let plan = ledger.plan(&between, &before, &All);
            assert!(plan.changes[0].state.contains(&format!("the rollout of version 2 {says}")), "{plan:?}");
            let ring = ledger.rings(&before);
            ledger.judge(now);
            ledger.roll_out(&before, now);
            let status = &ledger.rollouts()["m"];
            assert_eq!((&status.phase, status.percent), (&phase, percent), "restarts: {restarts}");
            assert_eq!((status.gates[0].requests, status.gates[0].worse), (0, 1.0), "its evidence is gone");
            assert_eq!(ledger.rings(&before), ring);
            let why = ledger.judge(now).pop().unwrap().1.why;
            assert!(why.contains("it was"), "{why}");
            // Under other steps as a reload would.
            ledger.roll_out(&between, now);
            ledger.roll_out(&other_steps, now);
            let at = if phase == Phase::Promoted { 100.0 } else { 60.0 };
            assert_eq!(ledger.rollouts()["m"].percent, at);
        }
    }
}

#[test]
fn who_gives_a_candidate_less_than_it_had_has_taken_it_back_and_its_rollout_begins_anew() {
    let rollout = policies("models: {m: {canary: {baseline: 1, candidate: 2, steps: [1, 50]}}}");
    let now = Instant::now();
    for (between, percent) in [
        ("split: {weights: {1: 1}}", 1.0),
        ("split: {weights: {1: 1, 2: 99}}", 1.0),
        ("canary: {baseline: 1, candidate: 3}", 1.0),
        ("split: {weights: {2: 1}}", 100.0),
        ("canary: {baseline: 2, candidate: 3}", 100.0),
        ("deadline: 1s", 100.0),
    ] {
        let between = policies(&format!("models: {{m: {{{between}}}}}"));
        for restarts in [false, true] {
            let mut ledger = Ledger::new();
            ledger.roll_out(&rollout, now);
            ledger.command("m", Command::Promote, "", now).unwrap();
            if restarts {
                let progress = ledger.progress(now);
                ledger = Ledger::new();
                ledger.go_on(&between, (&progress, EndedRollouts::default()), now);
            }
            ledger.roll_out(&between, now);
            ledger.roll_out(&rollout, now);
            assert_eq!(ledger.rollouts()["m"].percent, percent, "{between:?} {restarts}");
        }
    }
}

#[test]
fn who_was_rolled_back_or_replaced_in_between_is_not_trusted_for_what_it_had_before() {
    let rollout = |baseline: u64, candidate: u64| {
        policies(&format!(
            "models: {{m: {{canary: {{baseline: {baseline}, candidate: {candidate}, steps: [1, 50]}}}}}}"
        ))
    };
    let now = Instant::now();
    for (between, command, percent) in [
        ((3, 2), Some(Command::Abort), 1.0),
        ((3, 2), None, 1.0),
        ((3, 2), Some(Command::Promote), 100.0),
        ((2, 3), Some(Command::Abort), 100.0),
        ((2, 3), None, 100.0),
        ((2, 3), Some(Command::Promote), 1.0),
    ] {
        let ledger = Ledger::new();
        ledger.roll_out(&rollout(1, 2), now);
        ledger.command("m", Command::Promote, "", now).unwrap();
        ledger.roll_out(&rollout(between.0, between.1), now);
        command.into_iter().for_each(|command| drop(ledger.command("m", command, "", now).unwrap()));
        ledger.roll_out(&rollout(1, 2), now);
        assert_eq!(ledger.rollouts()["m"].percent, percent, "{between:?} {command:?}");
    }
}

/// By its number the candidate is the same, and nothing is known of it.
#[test]
fn a_candidate_that_is_another_when_its_policy_comes_back_begins_at_the_first_step() {
    let canary = |port: Option<u32>| {
        let remote = port.map(|port| format!("remote: {{2: {{url: 'http://there:{port}/infer'}}}}, "));
        let remote = remote.unwrap_or_default();
        policies(&format!("models: {{m: {{{remote}canary: {{baseline: 1, candidate: 2, steps: [10]}}}}}}"))
    };
    let between = policies("models: {m: {deadline: 1s}}");
    let now = Instant::now();
    let files = |ledger: &Ledger, one: u64, other: u64| {
        ledger.made_of("m", Version(1), one, now);
        ledger.made_of("m", Version(2), other, now);
    };
    let comes_back = |command, (before, after): (&Snapshot, &Snapshot), meanwhile: &dyn Fn(&Ledger)| {
        let ledger = Ledger::new();
        ledger.roll_out(before, now);
        files(&ledger, 5, 6);
        ledger.command("m", command, "", now).unwrap();
        ledger.roll_out(&between, now);
        meanwhile(&ledger);
        let kept = serde_json::to_string(&ledger.ended_rollouts()).unwrap();
        let kept = serde_json::from_str(&kept).unwrap();
        ledger.go_on(after, (&BTreeMap::new(), kept), now);
        ledger.rollouts()["m"].percent
    };
    let here = canary(None);
    let promoted = |meanwhile: &dyn Fn(&Ledger)| comes_back(Command::Promote, (&here, &here), meanwhile);
    assert_eq!(promoted(&|ledger| files(ledger, 5, 6)), 100.0);
    assert_eq!(promoted(&|ledger| files(ledger, 5, 7)), 10.0);
    assert_eq!(promoted(&|ledger| ledger.replaced("m", Version(2), now)), 10.0);
    assert_eq!(promoted(&|ledger| files(ledger, 7, 6)), 100.0, "the baseline is not what was promoted");
    let rolled_back = comes_back(Command::Abort, (&here, &here), &|ledger| files(ledger, 5, 7));
    assert_eq!(rolled_back, 0.0, "a person has to say so");
    let (one, other) = (canary(Some(1)), canary(Some(2)));
    let promoted_to = |after| comes_back(Command::Promote, (&one, after), &|ledger| files(ledger, 5, 7));
    assert_eq!([&one, &other, &here].map(promoted_to), [100.0, 10.0, 10.0]);
    let rolled_back = comes_back(Command::Abort, (&one, &other), &|_| {});
    assert_eq!(rolled_back, 0.0);
}

#[test]
fn of_rollouts_whose_policies_have_gone_a_few_are_remembered_and_longest_those_that_were_rolled_back() {
    let canary = |candidate: u64| {
        policies(&format!("models: {{m: {{canary: {{baseline: 1, candidate: {candidate}, steps: [10]}}}}}}"))
    };
    let (ledger, now) = (Ledger::new(), Instant::now());
    let share = |candidate| {
        let policy = canary(candidate);
        ledger.share_now("m", policy.model("m").unwrap().canary.as_ref().unwrap())
    };
    for candidate in 2..8 {
        ledger.roll_out(&canary(candidate), now);
        ledger.command("m", Command::Abort, "", now).unwrap();
    }
    ledger.roll_out(&canary(8), now);
    assert_eq!((2..8).map(share).collect::<Vec<_>>(), [None, None, Some(0), Some(0), Some(0), Some(0)]);
    ledger.command("m", Command::Promote, "", now).unwrap();
    ledger.roll_out(&policies("models: {m: {deadline: 1s}}"), now);
    assert_eq!((share(4), share(8)), (Some(0), None));
}

/// A process may begin with another policy than the one before it ended with.
#[test]
fn a_policy_that_loses_its_rollout_while_nobody_runs_forgets_nothing_of_it() {
    let before = policies("models: {m: {canary: {baseline: 1, candidate: 2, steps: [50]}}}");
    let (ledger, now) = (Ledger::new(), Instant::now());
    ledger.roll_out(&before, now);
    ledger.command("m", Command::Abort, "", now).unwrap();
    let next = Ledger::new();
    let after = policies("models: {m: {split: {weights: {1: 1}}}}");
    next.go_on(&after, (&ledger.progress(now), EndedRollouts::default()), now);
    next.roll_out(&before, now);
    assert_eq!(next.rollouts()["m"].percent, 0.0);
}

/// Answers of another server, or compared in another way, are other answers: before and after a restart.
#[test]
fn evidence_is_about_the_server_that_was_asked_and_the_comparison_that_was_made() {
    let policy = |port: u32, shadow: &str, gates: &str| {
        policies(&format!(
            "models: {{m: {{remote: {{2: {{url: 'http://there:{port}/infer'}}}}, shadow: {{version: 2{shadow}}}, \
             canary: {{baseline: 1, candidate: 2, steps: [50], gates: {{errors: {{at_most: 90}}{gates}}}}}}}}}"
        ))
    };
    let (gate, relative) = (", disagreement: {at_most: 90}", ", compare: {relative: 0.1}");
    let before = policy(1, "", gate);
    // What is known of failures and of comparisons once another policy is in force.
    let known = |after: &Snapshot, restarts: bool| {
        let (mut ledger, now) = (Ledger::new(), Instant::now());
        ledger.roll_out(&before, now);
        let draws = [0, u64::MAX].map(|draw| ledger.pick(&before, "m", &ANA, draw, |_| true).unwrap());
        let of_baseline = draws.iter().find(|pick| pick.version == Version(1)).unwrap();
        for pick in &draws {
            let assigned = pick.assigned.unwrap();
            ledger.witness("m", assigned, None, Sight::Failed, now);
        }
        for files in [7, 8] {
            ledger.made_of("m", Version(2), files, now); // it is another server's, whatever lies here
        }
        ledger.compared("m", of_baseline.assigned.unwrap(), Version(2), None, Some(true), now);
        if restarts {
            let progress = ledger.progress(now);
            ledger = Ledger::new();
            ledger.go_on(after, (&progress, EndedRollouts::default()), now);
        } else {
            ledger.roll_out(after, now);
        }
        let status = ledger.rollouts().remove("m").unwrap();
        let requests = status.gates.iter().map(|gate| (gate.gate, gate.requests)).collect::<Vec<_>>();
        (requests, status.verdicts.into_iter().map(|record| record.why).collect::<Vec<_>>())
    };
    let nothing = Vec::<String>::new();
    let all = vec![("errors", 1), ("disagreement", 1)];
    for restarts in [false, true] {
        assert_eq!(known(&before, restarts), (all.clone(), nothing.clone()));
        let other = "another server answers version 2: it begins at the first step".to_owned();
        let forgotten = vec![("errors", 0), ("disagreement", 0)];
        assert_eq!(known(&policy(2, "", gate), restarts), (forgotten, vec![other]));
        // What is under way then is not heard any more; and what ended soon is not kept alone.
        let failures = u64::from(restarts);
        let of_failures = vec![("errors", failures), ("disagreement", 0)];
        assert_eq!(known(&policy(1, relative, gate), restarts), (of_failures, nothing.clone()));
        assert_eq!(known(&policy(1, relative, ""), restarts), (vec![("errors", failures)], nothing.clone()));
    }
}

/// Under the number of the one before it, as with a policy in between; before and after a restart.
#[test]
fn a_candidate_that_another_server_answers_begins_at_the_first_step() {
    let policy = |port: u32, baseline: u32| {
        policies(&format!(
            "models: {{m: {{remote: {{1: {{url: 'http://base:{baseline}/infer'}}, 2: {{url: 'http://there:{port}/infer'}}}}, \
             canary: {{baseline: 1, candidate: 2, steps: [10, 50]}}}}}}"
        ))
    };
    let now = Instant::now();
    let before = policy(1, 1);
    for (command, phase, percent, says) in [
        (Command::Promote, Phase::Running, 10.0, "begins at 10 %: another server answers it"),
        (Command::Pause, Phase::Paused, 10.0, "begins at 10 %: another server answers it"),
        (
            Command::Abort,
            Phase::RolledBack,
            0.0,
            "stays rolled back, whichever server answers it: `penstock canary resume m` begins it again",
        ),
    ] {
        for restarts in [false, true] {
            let mut ledger = Ledger::new();
            ledger
                .roll_out(&policies("models: {m: {canary: {baseline: 1, candidate: 2, steps: [50]}}}"), now);
            ledger.roll_out(&before, now);
            ledger.command("m", command, "", now).unwrap();
            let as_it_was = ledger.rollouts()["m"].percent;
            let mut follow = |next: &Snapshot| {
                if restarts {
                    let progress = ledger.progress(now);
                    ledger = Ledger::new();
                    ledger.go_on(next, (&progress, EndedRollouts::default()), now);
                } else {
                    let plan = ledger.plan(&before, next, &All);
                    ledger.roll_out(next, now);
                    let fate = plan.changes[0].state.last().cloned().unwrap();
                    return (
                        ledger.rollouts().remove("m").unwrap(),
                        Some((plan.changes[0].moved_percent, fate)),
                    );
                }
                (ledger.rollouts().remove("m").unwrap(), None)
            };
            let (with_another_baseline, _) = follow(&policy(1, 2));
            assert_eq!(with_another_baseline.percent, as_it_was, "{command:?} {restarts}");
            let (status, planned) = follow(&policy(2, 2));
            assert_eq!((&status.phase, status.percent), (&phase, percent), "{command:?} {restarts}");
            if let Some((moved, fate)) = planned {
                assert_eq!(fate, format!("the rollout of version 2 {says}"));
                assert_eq!(moved.map(f64::round), Some((as_it_was - percent).abs()), "{command:?}");
            }
        }
    }
}

/// Three gates roll back at 60, one at 20.
#[test]
fn evidence_that_is_enough_under_fewer_gates_rolls_back_once_they_are_fewer() {
    let policy = |more: &str| {
        policies(&format!(
            "models: {{m: {{canary: {{baseline: 1, candidate: 2, steps: [50], dwell: 1h, gates: {{errors: {{at_most: 90}}{more}}}}}}}}}"
        ))
    };
    let (three, one) = (policy(", latency: {over: 1s, at_most: 90}, faults: {at_most: 90}"), policy(""));
    let now = Instant::now();
    for restarts in [false, true] {
        let mut ledger = Ledger::new();
        ledger.roll_out(&three, now);
        let draws = [0, u64::MAX].map(|draw| ledger.pick(&three, "m", &ANA, draw, |_| true).unwrap());
        let candidates = draws.iter().find(|pick| pick.version == Version(2)).unwrap().assigned.unwrap();
        let worse = |ledger: &Ledger| ledger.rollouts()["m"].gates[0].worse;
        for _ in 0..100 {
            if worse(&ledger) < 25.0 {
                ledger.witness("m", candidates, None, Sight::Refused, now);
            }
        }
        assert!((25.0..60.0).contains(&worse(&ledger)), "{}", worse(&ledger));
        assert_eq!(ledger.judge(now), []);
        if restarts {
            let progress = ledger.progress(now);
            ledger = Ledger::new();
            ledger.go_on(&one, (&progress, EndedRollouts::default()), now);
        } else {
            ledger.roll_out(&one, now);
        }
        let (_, record) = ledger.judge(now).pop().expect("a verdict, long before the step is over");
        assert_eq!((record.verdict, record.gates[0].roll_back_at), (Verdict::RollBack, 20.0));
        assert!(record.why.starts_with("version 2 fails more often than version 1"), "{}", record.why);
        assert_eq!(ledger.rollouts()["m"].percent, 0.0);
    }
}

/// What a rollout had come to that ends with a restart counts as if a swap had ended it.
#[test]
fn a_restart_under_an_earlier_policy_goes_on_as_a_swap_to_it_does() {
    let canary = |baseline: u64, candidate: u64| {
        policies(&format!(
            "models: {{m: {{canary: {{baseline: {baseline}, candidate: {candidate}, steps: [10, 50]}}}}}}"
        ))
    };
    let (earlier, later, now) = (canary(1, 2), canary(2, 3), Instant::now());
    for restarts in [false, true] {
        let mut ledger = Ledger::new();
        for policy in [&earlier, &later] {
            ledger.roll_out(policy, now);
            ledger.command("m", Command::Promote, "", now).unwrap();
        }
        if restarts {
            let (progress, ended) = (ledger.progress(now), ledger.ended_rollouts());
            ledger = Ledger::new();
            ledger.go_on(&earlier, (&progress, ended), now);
        } else {
            ledger.roll_out(&earlier, now);
        }
        let status = &ledger.rollouts()["m"];
        assert_eq!((&status.phase, status.percent), (&Phase::Running, 10.0), "restarts: {restarts}");
    }
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
    let mut full = Breakers::clone(&ledger.breakers.load());
    let versions = full.guards.get_mut("digits").unwrap();
    versions.extend(
        (2..=10_000).map(|version| (Version(version), Arc::new(Guard::new(BreakerPolicy::default(), None)))),
    );
    ledger.breakers.store(Arc::new(full));
    assert!(ledger.enter(&snapshot, "digits", Version(10_001), now).is_ok());
    let remembered: Vec<_> = ledger.breakers(now).into_iter().map(|status| status.version.0).collect();
    assert_eq!(remembered, [1, 10_001], "those that had nothing to remember made room");
}

/// The same limits as a leaky bucket: what a caller owes drains with time, and one more fits if what is owed
/// leaves room for it. Written without GCRA, so that the two can disagree.
#[derive(Default)]
struct Oracle(HashMap<(usize, usize), (u64, u64)>);

impl Oracle {
    /// `limits` are interval and burst; the answer is the index of the limit with the longest wait, and the wait.
    fn admit(&mut self, limits: &[(u64, u64)], user: usize, now: u64) -> Option<(usize, u64)> {
        let mut refusal: Option<(usize, u64)> = None;
        for (limit, (interval, burst)) in limits.iter().enumerate() {
            let (owed, at) = self.0.entry((limit, user)).or_insert((0, now));
            (*owed, *at) = (owed.saturating_sub(now - *at), now);
            let wait = owed.saturating_sub((burst - 1) * interval);
            if wait > refusal.map_or(0, |(_, longest)| longest) {
                refusal = Some((limit, wait));
            }
        }
        if refusal.is_none() {
            for (limit, (interval, _)) in limits.iter().enumerate() {
                self.0.entry((limit, user)).and_modify(|(owed, _)| *owed += interval);
            }
        }
        refusal
    }
}

proptest! {
    #[test]
    fn limits_agree_with_a_leaky_bucket_to_the_nanosecond(
        limits in prop::collection::vec((1..500_u64, 1..5_u64), 1..4),
        arrivals in prop::collection::vec((0..40_000_000_u64, 0..3_usize), 0..200),
    ) {
        let mut text = "limits:".to_owned();
        for (at, (per_second, burst)) in limits.iter().enumerate() {
            text += &format!("\n  - {{name: l{at}, key: {{header: user}}, rate: {per_second}/s, burst: {burst}}}");
        }
        let snapshot = policies(&text);
        let limits: Vec<_> =
            limits.iter().map(|(per_second, burst)| (1_000_000_000_u64.div_ceil(*per_second), *burst)).collect();
        let (ledger, mut oracle, start) = (Ledger::new(), Oracle::default(), Instant::now());
        let mut now = 0;
        for (pause, user) in arrivals {
            now += pause;
            let caller = [("user", ["ana", "ben", "cy"][user])];
            let got = short(ledger.admit(&snapshot, "digits", &caller, || None, start + Duration::from_nanos(now)));
            let expected = match oracle.admit(&limits, user, now) {
                None => Ok(()),
                Some((limit, wait)) => {
                    Err((format!("l{limit}"), Duration::from_nanos(wait)))
                }
            };
            prop_assert_eq!(got, expected);
        }
    }
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
        ledger.count("m", pick.drawn.unwrap(), pick.key, Some(pick.version), pick.instead);
        ledger.witness("m", pick.assigned.unwrap(), pick.key, Sight::Failed, now);
    }
    let (model, mismatch) = ledger.mismatches(now).pop().unwrap();
    assert_eq!((&*model, mismatch.cause), ("m", "not_ready"));
    assert!(ledger.mismatches(now).is_empty(), "it is told once");
    assert_eq!(ledger.rollouts()["m"].percent, 10.0, "it goes on");
}
