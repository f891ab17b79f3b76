//! What is told of a rollout and when, and what a person may do with it.

use super::*;

/// What one side alone refuses is heard against the baseline and not of what may be.
#[test]
fn a_verdict_tells_the_numbers_that_it_was_made_of() {
    let mut world = World::new("steps: [10], dwell: 1h", 1);
    (0..30).for_each(|_| world.tell(true, FAST));
    world.tell(false, Sight::Failed);
    while world.canary.phase == Phase::Running {
        world.tell(true, Sight::Refused);
    }
    let record = world.canary.news().pop().unwrap();
    let heard = record.gates[0].heard;
    assert_eq!((record.gates[0].events, heard.all, heard.of_candidate), (0, 5, 4));
    let why = "version 2 fails more often than version 1: 4 of the last 5 failures are its, where its share of the requests makes 0.5";
    assert_eq!(record.why, why);
    let kept = serde_json::to_string(&record).unwrap();
    assert_eq!(serde_json::from_str::<Record>(&kept).unwrap(), record);
}

#[test]
fn what_is_found_is_told_once_however_rarely_anybody_asks_and_anew_after_a_person_stepped_in() {
    let mut world = World::new("steps: [50], dwell: 1m", 3);
    (0..2_000).for_each(|_| world.request(0.5, 0.5));
    assert_eq!(world.work(60), Some(Verdict::Hold));
    for _ in 0..100 {
        assert_eq!(world.wait(600), None, "that nobody asked for a while changes nothing");
        assert_eq!(world.work(1), None);
    }
    for command in [Command::Pause, Command::Resume] {
        world.canary.command(command, "", world.now).unwrap();
    }
    world.canary.news();
    assert_eq!(world.work(60), Some(Verdict::Hold), "a person's word hides nothing");
    for command in [Command::Abort, Command::Resume] {
        world.canary.command(command, "", world.now).unwrap();
    }
    (0..2_000).for_each(|_| world.request(0.5, 0.5));
    world.canary.news();
    assert_eq!(world.work(60), Some(Verdict::Hold));
}

#[test]
fn another_gate_is_another_reason() {
    let mut world = World::new("steps: [50], dwell: 1s, gates: {latency: {over: 200ms, at_most: 5}}", 1);
    (0..50).for_each(|_| [false, true].into_iter().for_each(|arm| world.tell(arm, Sight::Failed)));
    (0..400).for_each(|_| world.tell(true, FAST));
    assert_eq!(world.wait(1), Some(Verdict::Hold));
    assert!(world.canary.history[0].why.starts_with("errors: "));
    (0..20_000).for_each(|_| world.tell(true, FAST));
    (0..2_000).for_each(|_| [false, true].into_iter().for_each(|arm| world.tell(arm, SLOW)));
    assert_eq!(world.wait(1), Some(Verdict::Hold));
    assert!(world.canary.history[1].why.starts_with("latency: "), "{:?}", world.canary.history[1]);
}

#[test]
fn a_person_may_pause_resume_promote_abort_and_begin_again() {
    let mut world = World::new("steps: [10, 50], dwell: 1m", 1);
    let now = world.now;
    let mut say = |command| world.canary.command(command, "why not", now);
    assert_eq!(say(Command::Resume), Err("the rollout is running".into()));
    assert_eq!(say(Command::Pause), Ok(()));
    assert_eq!(say(Command::Pause), Err("the rollout is paused".into()));
    (0..600).for_each(|_| world.tell(true, FAST));
    world.canary.news();
    assert_eq!(world.wait(3600), None, "paused");
    let now = world.now;
    assert_eq!(world.canary.command(Command::Resume, "", now), Ok(()));
    world.canary.news();
    assert_eq!(world.work(59), None, "the step begins again");
    assert_eq!(world.work(1), Some(Verdict::Advance));
    assert_eq!(world.canary.command(Command::Promote, "", now), Ok(()));
    assert_eq!(world.canary.share(), ALL);
    assert_eq!(world.canary.command(Command::Abort, "it smells", now), Ok(()));
    assert_eq!(world.canary.share(), 0);
    assert_eq!(world.canary.news().pop().unwrap().why, "aborted by a person: it smells");
    assert_eq!(world.canary.command(Command::Resume, "", now), Ok(()));
    assert_eq!((percent(world.canary.share()), world.canary.gates[0].requests), (10.0, 0));
}

const ADVANCE: Command = Command::Advance { from: None };

/// What speaks against it stays, and what has passed in one step says nothing of the next one.
#[test]
fn a_person_may_let_a_rollout_go_by_one_step_as_a_verdict_does() {
    let mut world = World::new("steps: [10, 50, 80], dwell: 1m", 1);
    (0..2).for_each(|_| world.tell(true, Sight::Failed));
    (0..600).for_each(|_| world.tell(true, FAST));
    let worse = world.canary.gates[0].worse();
    world.canary.command(ADVANCE, "that was the network", world.now).unwrap();
    let record = world.canary.news().pop().unwrap();
    let why = "advanced by a person: that was the network";
    assert_eq!((record.verdict, record.step, record.percent, &*record.why), (Verdict::Advance, 1, 10.0, why));
    let errors = &world.canary.gates[0];
    assert_eq!((percent(world.canary.share()), errors.requests), (50.0, 0));
    assert!(worse > 1.0 && (errors.worse() - worse).abs() < 1e-9, "{worse} {}", errors.worse());
    assert_eq!(world.wait(60), Some(Verdict::InsufficientData), "each step has to be earned");
    (0..600).for_each(|_| world.tell(true, FAST));
    assert_eq!(world.work(1), Some(Verdict::Advance));
    let by_whom: Vec<_> =
        world.canary.status().verdicts.iter().map(|record| (record.step, record.by_person)).collect();
    assert_eq!(by_whom, [(1, true), (2, false), (2, false)]);
    assert_eq!((percent(world.canary.share()), world.canary.phase.clone()), (80.0, Phase::Running));
    world.canary.command(ADVANCE, "", world.now).unwrap();
    assert_eq!((world.canary.share(), world.canary.phase.clone()), (ALL, Phase::Promoted));
    assert_eq!(world.canary.news().pop().unwrap().why, "advanced by a person");
    for (command, phase) in [(ADVANCE, "promoted"), (Command::Abort, ""), (ADVANCE, "rolled back")] {
        let refused = world.canary.command(command, "", world.now).err();
        assert_eq!(
            refused.unwrap_or_default(),
            if phase.is_empty() { String::new() } else { format!("the rollout is {phase}") }
        );
    }
}

#[test]
fn who_lets_a_paused_rollout_go_by_one_step_has_it_stay_there() {
    let mut world = World::new("steps: [10, 50], dwell: 1m", 1);
    for command in [Command::Pause, ADVANCE] {
        world.canary.command(command, "", world.now).unwrap();
    }
    world.canary.news();
    (0..600).for_each(|_| world.tell(true, FAST));
    assert_eq!(world.work(3600), None);
    assert_eq!((percent(world.canary.share()), world.canary.phase.clone()), (50.0, Phase::Paused));
    world.canary.command(Command::Resume, "", world.now).unwrap();
    world.canary.news();
    assert_eq!((world.work(59), world.work(1)), (None, Some(Verdict::Advance)));
    let mut world = World::new("steps: [10], dwell: 1m", 1);
    for command in [Command::Pause, ADVANCE] {
        world.canary.command(command, "", world.now).unwrap();
    }
    assert_eq!(world.canary.phase, Phase::Promoted, "there is no other step");
}

#[test]
fn who_means_one_step_never_lets_go_the_next_one() {
    let mut world = World::new("steps: [10, 50, 80], dwell: 1m", 1);
    let now = world.now;
    let mut from = |step| world.canary.command(Command::Advance { from: Some(step) }, "", now);
    assert_eq!((from(1), from(1)), (Ok(()), Err("the rollout is in step 2, and not in step 1".into())));
    assert_eq!(
        (from(3), from(0)),
        (
            Err("the rollout is in step 2, and not in step 3".into()),
            Err("the rollout is in step 2, and not in step 0".into())
        )
    );
    assert_eq!((from(2), from(3), from(3)), (Ok(()), Ok(()), Err("the rollout is promoted".into())));
}
