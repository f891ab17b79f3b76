//! What outlives reloads and restarts, and what does not.

use super::*;
use crate::canary::restart::KEPT;
use crate::pick::Target;

#[test]
fn progress_survives_a_reload_and_a_restart_of_the_same_rollout_only() {
    let mut world = World::new("steps: [10, 50], dwell: 1m", 1);
    (0..600).for_each(|_| world.tell(true, FAST));
    world.work(60);
    world.canary.follow(&policy("steps: [1, 5, 50, 80], dwell: 2m"), world.now);
    assert_eq!((percent(world.canary.share()), world.canary.step), (50.0, 2));
    let progress = world.canary.progress(world.now + Duration::from_secs(30));

    let later = world.now + Duration::from_secs(3600);
    let mut next = Canary::new(policy("steps: [1, 5, 50, 80], dwell: 2m"), Beginnings::default(), later);
    next.restore(&progress, later);
    let restored = next.progress(later);
    assert_eq!((percent(next.share()), restored.dwelt), (50.0, Duration::from_secs(30)));
    // Another process begins to rise where the step is not the same.
    let mut next = Canary::new(policy("steps: [5, 60, 90], dwell: 2m"), Beginnings::default(), later);
    next.restore(&progress, later);
    assert_eq!((percent(next.share()), next.progress(later).dwelt), (5.0, Duration::ZERO));

    let other =
        CanaryPolicy { candidate: Target { version: Version(3), label: None }, ..policy("steps: [10]") };
    let mut next = Canary::new(other, Beginnings::default(), later);
    next.restore(&progress, later);
    assert_eq!(percent(next.share()), 10.0, "another candidate begins at the beginning");
    let stale = world.assigned(true);
    (0..100).for_each(|_| next.witness(stale, None, Sight::Failed, later));
    assert_eq!(next.phase, Phase::Running, "what another candidate did is not this one's fault");
}

#[test]
fn who_looks_or_saves_often_does_not_make_one_user_many() {
    let looked_at = |looks: usize| {
        let mut world = World::new("steps: [10], dwell: 10m", 1);
        for _ in 0..20 {
            world.canary.witness(world.assigned(true), Some(7), FAST, world.now);
            (0..looks).for_each(|_| drop(world.canary.progress(world.now)));
        }
        (world.canary.progress(world.now).gates, world.canary.gates[0].rare)
    };
    assert_eq!(looked_at(0), looked_at(3));
}

#[test]
fn verdicts_survive_a_restart_in_bounded_number_and_are_not_told_twice() {
    let mut world = World::new("steps: [10, 50], dwell: 1m", 1);
    (0..600).for_each(|_| world.tell(true, FAST));
    assert_eq!(world.wait(60), Some(Verdict::InsufficientData));
    assert_eq!(world.work(1), Some(Verdict::Advance));
    (0..50).for_each(|_| world.tell(true, Sight::Failed));
    let mut told = world.canary.status().verdicts;
    assert_eq!(told.len(), 3);
    let restarted = |world: &mut World| {
        let kept = serde_json::to_string(&world.canary.progress(world.now)).unwrap();
        let mut next = Canary::new(policy("steps: [10, 50], dwell: 1m"), Beginnings::default(), world.now);
        next.restore(&serde_json::from_str(&kept).unwrap(), world.now);
        next
    };
    world.canary = restarted(&mut world);
    assert_eq!(world.canary.status().verdicts, told);
    assert!(world.canary.news().is_empty(), "they were told by the process before");
    for _ in 0..40 {
        for command in [Command::Resume, Command::Abort] {
            world.canary.command(command, "again", world.now).unwrap();
        }
    }
    told = world.canary.status().verdicts;
    world.canary = restarted(&mut world);
    assert_eq!(world.canary.status().verdicts, told[told.len() - KEPT..]);
    let of_another_release = serde_json::to_string(&told[0]).unwrap().replace("errors", "novelty");
    assert_eq!(serde_json::from_str::<Record>(&of_another_release).unwrap().gates[0].gate, "unknown");
}

#[test]
fn a_restart_keeps_no_evidence_about_another_limit() {
    let gates = |errors: u32, over: u32| {
        format!(
            "steps: [10], dwell: 1h, gates: {{errors: {{at_most: {errors}}}, latency: {{over: {over}ms, at_most: 5}}}}"
        )
    };
    let mut world = World::new(&gates(1, 200), 1);
    (0..100).for_each(|_| world.tell(true, FAST));
    (0..2).for_each(|_| world.tell(true, Sight::Failed));
    (0..2).for_each(|_| world.tell(true, SLOW));
    let progress = world.canary.progress(world.now);
    let restarted = |gates: &str| {
        let mut next = Canary::new(policy(gates), Beginnings::default(), world.now);
        next.restore(&progress, world.now);
        next.numbers().iter().map(|gate| (gate.worse > 1.0, gate.requests)).collect::<Vec<_>>()
    };
    assert_eq!(restarted(&gates(1, 200)), [(true, 104), (true, 102)]);
    assert_eq!(
        restarted(&gates(3, 200)),
        [(true, 0), (true, 102)],
        "that it is worse does not depend on the limit"
    );
    assert_eq!(restarted(&gates(1, 400)), [(true, 104), (false, 0)], "another slowness is another event");

    let mut world = compared(2.0, 1);
    (0..3).for_each(|_| world.compare(None, false));
    let progress = world.canary.progress(world.now);
    let mut next = compared(50.0, 1).canary;
    next.restore(&progress, world.now);
    assert_eq!((next.gates[1].worse(), next.gates[1].requests), (1.0, 0), "more may disagree now");
}

/// By which users who had left, and what was refused, were counted before.
#[test]
fn a_state_file_of_other_rules_is_read_and_nothing_is_known_by_those() {
    let mut world = World::new("steps: [10], dwell: 1h, sticky: {header: user}", 1);
    world.tell(true, Sight::Failed);
    let mut kept = serde_json::to_value(world.canary.progress(world.now)).unwrap();
    let errors = kept["gates"]["errors"].as_object_mut().unwrap();
    errors.retain(|name, _| name != "left" && name != "refusing");
    let asked = serde_json::json!({"askings": [], "asked": 1, "ended": 0.0});
    errors.insert("leavers".into(), serde_json::json!([asked, asked]));
    errors.insert(
        "refusals".into(),
        serde_json::json!({"of_candidate": 900, "by_share": 1.0, "variance": 1.0}),
    );
    let keys =
        serde_json::json!({"of_candidate": 9, "all": 9, "by_share": 1.0, "variance": 1.0, "seen": 1.0});
    let refused = serde_json::json!({"refused": 900, "others": 100, "explained": 0.0, "keys": keys});
    errors.insert("refused".into(), refused);
    let (worse, read) = (world.canary.gates[0].worse(), serde_json::from_value(kept).unwrap());
    world.canary = Canary::new(
        policy("steps: [10], dwell: 1h, sticky: {header: user}"),
        Beginnings::default(),
        world.now,
    );
    world.canary.restore(&read, world.now);
    let errors = &world.canary.gates[0];
    // The step begins anew: what was refused in it is not known, and may have held it.
    assert_eq!((errors.worse(), errors.requests), (worse, 0));
    assert_eq!(errors.why_asked(Version(2), Version(1)), None);
    assert_eq!(errors.why_refusing(Version(2), Version(1)), None);
}

#[test]
fn evidence_survives_restarts_even_if_they_come_more_often_than_a_verdict_takes() {
    let mut world = World::new("steps: [10], dwell: 1h", 3);
    for _ in 0..200 {
        for _ in 0..100 {
            world.now += Duration::from_millis(100);
            world.request(0.01, 0.05);
        }
        let progress = world.canary.progress(world.now);
        let (requests, phase) = (world.canary.gates[0].requests, world.canary.phase.clone());
        world.canary = Canary::new(policy("steps: [10], dwell: 1h"), Beginnings::default(), world.now);
        world.canary.restore(&progress, world.now);
        assert_eq!(world.canary.phase, phase);
        assert_eq!(world.canary.gates[0].requests, requests);
    }
    assert_eq!(world.canary.phase, Phase::RolledBack);
}

#[test]
fn a_step_that_a_person_has_let_go_stays_so_over_a_restart() {
    let canary = "steps: [10, 50, 80], dwell: 1m";
    for commands in
        [&[Command::Advance { from: None }][..], &[Command::Pause, Command::Advance { from: Some(1) }]]
    {
        let mut world = World::new(canary, 1);
        (0..600).for_each(|_| world.tell(true, FAST));
        for command in commands {
            world.canary.command(*command, "they said so", world.now).unwrap();
        }
        let before = world.canary.status();
        assert_eq!((before.percent, before.step, before.gates[0].requests), (50.0, 2, 0));
        world.restarted(canary);
        assert_eq!(world.canary.status(), before);
        assert_eq!(before.verdicts.last().unwrap().why, "advanced by a person: they said so");
        assert!(world.canary.news().is_empty(), "they were told by the process before");
    }
}
