//! Outages of both versions and of one of them, with the breakers that they trip: what both have alike is no evidence, whoever trips or
//! comes back first.

use super::*;
use crate::{Ledger, Outcome, Pass};

/// Numbers that look drawn, the same in every run.
struct Draws(u64);

impl Draws {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn part(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// What comes: so many a second, of so many users or of nobody in particular.
#[derive(Clone, Copy, Debug)]
struct Asked {
    share: u32,
    a_second: u32,
    users: u64,
}

/// A request that is under way until then.
struct Sent {
    until: Instant,
    pass: Pass,
    assigned: Assignment,
    key: Option<u64>,
    fails: bool,
}

/// A rollout with its breakers, until it is rolled back or these seconds are over: after so many it was. `fails` says how often each
/// version does, so long after the beginning.
fn rolled_back(
    seed: u64,
    asked: Asked,
    gates: &str,
    seconds: f64,
    fails: impl Fn(bool, f64) -> f64,
) -> Option<f64> {
    let Asked { share, a_second, users } = asked;
    let sticky = if users > 0 { ", sticky: {header: user}" } else { "" };
    let snapshot = snapshot(&format!("steps: [{share}], dwell: 1h{sticky}, gates: {{{gates}}}"));
    let (ledger, begun, mut draws) = (Ledger::new(), Instant::now(), Draws(seed << 32));
    ledger.roll_out(&snapshot, begun);
    let names: Vec<String> = (0..users.max(1)).map(|_| draws.next().to_string()).collect();
    let (mut now, mut looked) = (begun, begun);
    let mut sent = VecDeque::new();
    while now < begun + Duration::from_secs_f64(seconds) {
        now += Duration::from_secs_f64(2.0 * draws.part() / f64::from(a_second));
        while let Some(Sent { until, pass, assigned, key, fails }) =
            sent.pop_front_if(|sent: &mut Sent| sent.until <= now)
        {
            let (outcome, sight) =
                if fails { (Outcome::Failed, Sight::Failed) } else { (Outcome::Served, FAST) };
            pass.settle(outcome, until);
            ledger.witness("digits", assigned, key, sight, until);
        }
        if now >= looked + ms(100) {
            looked = now;
            ledger.judge(now);
        }
        if ledger.shares_of_candidates()[0].1 == 0 {
            return Some((now - begun).as_secs_f64());
        }
        let name = &names[(draws.next() % names.len() as u64) as usize];
        let pick =
            ledger.pick(&snapshot, "digits", &[("user", name.as_str())], draws.next(), |_| true).unwrap();
        let assigned = pick.assigned.unwrap();
        match ledger.enter(&snapshot, "digits", pick.version, now) {
            Ok(pass) => {
                let chance = fails(assigned.is_candidate, (now - begun).as_secs_f64());
                let fails = draws.part() < chance;
                sent.push_back(Sent { until: now + ms(5), pass, assigned, key: pick.key, fails });
            }
            Err(_) => ledger.witness("digits", assigned, pick.key, Sight::Tripped, now),
        }
    }
    None
}

const ERRORS: &str = "errors: {at_most: 50}";

#[test]
fn an_outage_of_both_versions_alike_rolls_nothing_back() {
    for (share, users) in [(1, 0), (1, 300), (10, 0), (10, 300), (50, 0), (50, 300)] {
        for (a_second, rollouts) in [(20, 20), (200, 10)] {
            for outage in [3.0, 25.0] {
                let asked = Asked { share, a_second, users };
                let fails = |_, at| if at < outage { 1.0 } else { 0.0 };
                let all =
                    (0..rollouts).filter_map(|seed| rolled_back(seed, asked, ERRORS, outage + 40.0, fails));
                let all: Vec<_> = all.collect();
                assert!(all.len() <= 1, "{asked:?}, {outage} s: after {all:?}");
            }
        }
    }
}

/// Chance trips one of them, and the other one goes on.
#[test]
fn an_outage_in_which_both_versions_fail_now_and_then_rolls_nothing_back() {
    let (mut rollouts, mut all) = (0, Vec::new());
    for failing in [0.2, 0.35, 0.5, 0.8] {
        for (share, users) in [(1, 0), (10, 300), (50, 0), (50, 300)] {
            for (a_second, outage, seeds) in [(20, 1.0, 10), (20, 120.0, 10), (200, 1.0, 4), (200, 10.0, 4)] {
                let asked = Asked { share, a_second, users };
                let fails = |_, at| if at < outage { failing } else { 0.0 };
                for seed in 0..seeds {
                    let after = rolled_back(seed, asked, ERRORS, outage + 12.0, fails);
                    all.extend(after.map(|after| (failing, asked, outage, seed, after)));
                }
                rollouts += seeds;
            }
        }
    }
    assert!(all.len() as u64 * 50 <= rollouts, "of {rollouts} these: {all:?}");
}

/// What its breaker says is not heard while the baseline may be tripped by chance as well: then it only gets no more.
#[test]
fn a_candidate_that_is_out_beside_a_baseline_that_fails_now_and_then_is_rolled_back_once_that_does_well() {
    for users in [0, 300] {
        let asked = Asked { share: 10, a_second: 50, users };
        let fails = |is_candidate, at| match at {
            at if is_candidate && at >= 5.0 => 1.0,
            at if at < 30.0 => 0.15,
            _ => 0.0,
        };
        for seed in 0..5 {
            let after = rolled_back(seed, asked, ERRORS, 120.0, fails);
            assert!(after.is_some(), "{asked:?}, {seed}");
        }
    }
}

/// Its breaker turns all away, so that of what goes wrong now and then only the candidate's is left.
#[test]
fn an_outage_of_the_baseline_alone_rolls_nothing_back_whatever_goes_wrong_now_and_then() {
    for (share, users) in [(1, 0), (10, 300), (50, 0), (50, 300)] {
        for gates in [ERRORS, "errors: {at_most: 50}, faults: {at_most: 50}"] {
            let asked = Asked { share, a_second: 500, users };
            let fails = |is_candidate, _| if is_candidate { 0.02 } else { 1.0 };
            let all = (0..4).filter_map(|seed| rolled_back(seed, asked, gates, 25.0, fails));
            assert_eq!(all.count(), 0, "{asked:?} {gates}");
        }
    }
}

#[test]
fn a_candidate_that_alone_is_out_is_rolled_back_within_a_second() {
    for (share, a_second) in [(1, 2_000), (10, 200), (50, 100)] {
        for users in [0, 300] {
            let asked = Asked { share, a_second, users };
            let fails = |is_candidate, at| if is_candidate && at >= 1.0 { 1.0 } else { 0.0 };
            for seed in 0..10 {
                // Of 300 users one in a hundred is too few to be told from chance.
                if (share, users) == (1, 300) {
                    continue;
                }
                let after = rolled_back(seed, asked, ERRORS, 20.0, fails);
                assert!(after.is_some_and(|after| after <= 2.0), "{asked:?}: {after:?}");
            }
        }
    }
}

/// Its breaker has to let a request through before anybody can know.
#[test]
fn a_candidate_that_stays_out_when_the_baseline_is_back_is_rolled_back_once_it_has_failed_again() {
    for (share, users) in [(10, 0), (10, 300), (50, 0), (50, 300)] {
        let asked = Asked { share, a_second: 100, users };
        let fails = |is_candidate, at| if is_candidate || at < 3.0 { 1.0 } else { 0.0 };
        for seed in 0..5 {
            let after = rolled_back(seed, asked, ERRORS, 60.0, fails);
            assert!(after.is_some_and(|after| after <= 35.0), "{asked:?}: {after:?}");
        }
    }
}

#[test]
fn a_verdict_tells_of_what_went_unanswered_together_as_the_evidence_has_it() {
    let mut world = World::new("steps: [10], dwell: 1h", 1);
    while world.canary.phase == Phase::Running {
        for is_candidate in [true, true, false, true, false] {
            world.tell(is_candidate, Sight::Unanswered);
        }
        world.wait(1);
    }
    let record = world.canary.history.back().unwrap();
    let Grounds { all, of_candidate, parts, .. } = record.gates[0].heard;
    assert!(of_candidate == 0 && (parts - 0.6 * f64::from(all)).abs() < 1e-9, "{parts} of {all}");
    let told = format!("{parts:.1} of the last {all} failures are its");
    assert!(record.why.contains(&told), "{}", record.why);
}
