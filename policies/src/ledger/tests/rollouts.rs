//! Rollouts that are under way: whose requests they hear of, and what they are about.

use super::*;
use crate::canary::Verdict;
use crate::tally::Instead;

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
        let rollout = ledger.tables.load().rollouts.get("m").cloned();
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
    assert_eq!(pick("ana"), (1, PickReason::Rule, Some((Version(2), Instead::RolledBack))));
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
