//! Rollouts whose policies have gone, and what becomes of them when these come back.

use std::collections::BTreeMap;

use super::*;

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
        (
            Some(Command::Advance { from: None }),
            Phase::Running,
            80.0,
            "goes on at 80 %, where it was, and its step begins anew",
        ),
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
