//! Limits: what is spent and given back, and what somebody is told who has to wait.

use std::num::NonZeroU32;
use std::thread;

use proptest::prelude::*;

use super::*;
use crate::limiter::{Limited, Quota};

const BEN: [(&str, &str); 1] = [("user", "ben")];

fn limited(limit: &str, milliseconds: u64) -> Result<(), (String, Duration)> {
    Err((limit.into(), ms(milliseconds)))
}

/// What matters of an answer.
fn short<T>(answer: Result<T, Limited>) -> Result<(), (String, Duration)> {
    answer.map(drop).map_err(|limited| (limited.limit.to_string(), limited.retry_after))
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
