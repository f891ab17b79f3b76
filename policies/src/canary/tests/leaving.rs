//! Callers who leave, or bring a deadline that is too short: who was failed by the candidate, and who is in haste with any version.

use super::*;

/// Users who ask one thing after the other, each on its side, and do not wait for longer than `patience` says.
fn ask_in_turn(
    world: &mut World,
    (users, seconds): (u64, u32),
    took: impl Fn(&mut Dice, bool) -> Option<Duration>,
    patience: impl Fn(&mut Dice) -> Duration,
) {
    let asked = world.canary.asked();
    let mut under_way: Vec<Option<Ending<Option<UnderWay>>>> = Vec::new();
    under_way.resize_with(users as usize, || None);
    for tick in 0..u64::from(seconds) * 100 {
        for (user, slot) in (0..users).zip(&mut under_way) {
            let is_candidate = user % 2 == 0;
            if let Some((_, took, sight, under_way)) = slot.take_if(|(ends, ..)| *ends <= world.now) {
                world.canary.witness(world.assigned(is_candidate), Some(user), sight, world.now);
                under_way.iter().for_each(|under_way| under_way.ended(took, Some(sight)));
            } else if slot.is_none() && (tick + user) % 10 == 0 {
                let waits = patience(&mut world.dice);
                let took = took(&mut world.dice, is_candidate).filter(|took| *took < waits);
                let (took, sight) =
                    took.map_or((waits, Sight::Gone(waits)), |took| (took, Sight::Answered(took)));
                *slot = Some((world.now + took, took, sight, is_candidate.then(|| asked.begin())));
            }
        }
        world.now += Duration::from_millis(10);
        if tick % 10 == 0 {
            world.canary.judge(world.now);
        }
    }
}

#[test]
fn a_candidate_that_hangs_for_those_who_do_not_wait_gets_no_more() {
    let canary = "steps: [50], dwell: 10s, sticky: {header: user}, gates: {errors: {at_most: 10}}";
    let all = |hangs: f64| {
        move |dice: &mut Dice, is_candidate: bool| (!is_candidate || !dice.falls(hangs)).then_some(ms(5))
    };
    for seed in 0..20 {
        // They bring a deadline, or leave when they have had enough.
        for least in [500, 200] {
            let patience = |dice: &mut Dice| if dice.falls(0.5) { ms(least) } else { ms(500) };
            let mut world = World::new(canary, seed);
            ask_in_turn(&mut world, (8, 120), all(0.6), patience);
            let errors = &world.canary.gates[0];
            assert_ne!(world.canary.phase, Phase::Promoted, "seed {seed}, {:?}", world.canary.history);
            assert!(errors.events * 2 > errors.requests, "{} of {}", errors.events, errors.requests);
            let mut world = World::new(canary, seed);
            ask_in_turn(&mut world, (8, 120), all(0.0), patience);
            assert_eq!(world.canary.phase, Phase::Promoted, "seed {seed}, {:?}", world.canary.history);
        }
        // Nearly all that answers take is nearly all that they wait for.
        let mut world = World::new(canary, seed);
        let narrow = |dice: &mut Dice, is_candidate: bool| {
            let took = if dice.falls(0.5) { ms(380) } else { ms(420) };
            all(0.6)(dice, is_candidate).map(|_| took)
        };
        ask_in_turn(&mut world, (8, 120), narrow, |_| ms(500));
        assert_ne!(world.canary.phase, Phase::Promoted, "seed {seed}, {:?}", world.canary.history);
        let mut world = World::new(canary, seed);
        ask_in_turn(&mut world, (100, 60), all(0.6), |_| ms(500));
        assert_eq!(world.canary.phase, Phase::RolledBack, "with so many users it is shown soon");
    }
}

/// Half of the callers wait for half as long as an answer takes, with either version.
#[test]
fn impatience_alone_holds_up_nothing_and_rolls_back_nothing() {
    let canary = "steps: [50], dwell: 10s, sticky: {header: user}, gates: {errors: {at_most: 10}}";
    for seed in 0..20 {
        let mut world = World::new(canary, seed);
        let took = |dice: &mut Dice, _: bool| Some(if dice.falls(0.5) { ms(90) } else { ms(110) });
        let patience = |dice: &mut Dice| if dice.falls(0.5) { ms(50) } else { ms(1_000) };
        ask_in_turn(&mut world, (40, 120), took, patience);
        assert_eq!(world.canary.phase, Phase::Promoted, "seed {seed}, {:?}", world.canary.history);
    }
}

#[test]
fn a_client_that_chooses_its_version_and_does_not_wait_for_it_rolls_nothing_back() {
    let mut world = World::new("steps: [10], dwell: 1h, sticky: {header: user}", 1);
    let tell = |world: &mut World, is_candidate, user, sight| {
        world.canary.witness(world.assigned(is_candidate), Some(user), sight, world.now);
        world.now += Duration::from_millis(200);
    };
    for user in 0..30 {
        [true, false].into_iter().for_each(|arm| tell(&mut world, arm, user, answered(5).1));
    }
    for user in 100..200 {
        tell(&mut world, true, user, Sight::Gone(ms(1)));
    }
    let errors = &world.canary.gates[0];
    assert_eq!((world.canary.phase.clone(), errors.worse(), errors.requests), (Phase::Running, 1.0, 30));
    for user in 200..206 {
        tell(&mut world, true, user, Sight::Gone(ms(300)));
    }
    assert_eq!(world.canary.phase, Phase::RolledBack, "these would have had an answer from the baseline");
}

/// Seven in ten are in haste and the others are not: what those wait for says nothing about what the hasty would have had.
#[test]
fn a_candidate_that_answers_no_hasty_caller_is_rolled_back_however_long_the_baseline_takes_for_others() {
    for seed in 0..20 {
        let mut world = World::new(KEYED, seed);
        ask_by_turns(&mut world, (40, 60), |_, user, is_candidate| match (user % 10 < 7, is_candidate) {
            (true, true) => (Sight::Late(ms(100)), Some(ms(100))),
            (true, false) => (answered(5).1, Some(ms(100))),
            (false, _) => (answered(300).1, None),
        });
        assert_eq!(world.canary.phase, Phase::RolledBack, "{:?}", world.canary.history);
    }
}

/// A client without a key that waits for nothing, at sixty requests a second on both sides alike, and is answered by the baseline never
/// or hardly ever; beside it the candidate answers nobody, five times a second.
#[test]
fn who_waits_for_nothing_hides_no_candidate_that_answers_nobody() {
    for met in [0.0, 0.02] {
        let mut took: Vec<Duration> = (0..100)
            .map(|seed| {
                let mut world = World::new("steps: [10], dwell: 1h", seed);
                let begin = world.now;
                while world.canary.phase == Phase::Running && world.now < begin + ms(600_000) {
                    world.now += ms(1);
                    if world.dice.falls(0.06) {
                        let is_candidate = world.dice.falls(0.1);
                        let assigned = world.assigned(is_candidate).within(ms(1), ms(1_000));
                        let is_met = !is_candidate && world.dice.falls(met);
                        let sight = if is_met { FAST } else { Sight::Late(ms(1)) };
                        world.canary.witness(assigned, None, sight, world.now);
                    }
                    if world.dice.falls(0.05) {
                        let is_candidate = world.dice.falls(0.1);
                        world.tell(is_candidate, if is_candidate { Sight::Late(ms(1_000)) } else { FAST });
                    }
                }
                world.now - begin
            })
            .collect();
        took.sort_unstable();
        assert!(took[50] <= ms(3_000) && took[99] <= ms(20_000), "{met}: {:?} and {:?}", took[50], took[99]);
    }
}

/// They leave at once as often as nothing holds up either side, both are held up now and then, and some requests fail alone.
#[test]
fn with_clients_who_wait_for_nothing_one_in_twenty_rollouts_at_most_is_rolled_back_for_nothing() {
    let mut rolled_back = 0;
    for seed in 0..1_000 {
        let mut world = World::new("steps: [10], dwell: 1h", seed);
        let mut stalled = false;
        for _ in 0..2_000 {
            world.now += ms(20);
            if world.dice.falls(0.02) {
                stalled = !stalled;
            }
            let is_candidate = world.dice.falls(0.1);
            let assigned = world.assigned(is_candidate);
            let (assigned, sight) = if world.dice.falls(0.3) {
                (assigned.within(ms(1), ms(1_000)), Sight::Late(ms(1)))
            } else if stalled {
                (assigned, Sight::Late(ms(1_000)))
            } else {
                (assigned, if world.dice.falls(0.01) { Sight::Failed } else { FAST })
            };
            world.canary.witness(assigned, None, sight, world.now);
        }
        rolled_back += u32::from(world.canary.phase == Phase::RolledBack);
    }
    assert!(rolled_back <= 50, "{rolled_back} of 1,000");
}

/// One who always ends late, 250 times a second, on the baseline's side.
#[test]
fn a_key_that_says_nothing_new_hides_nobody() {
    let mut world = World::new("steps: [10], dwell: 1h, sticky: {header: user}", 1);
    let mut failed = 0;
    for at in 0..10_000 {
        world.now += ms(4);
        world.canary.witness(world.assigned(false), Some(0), Sight::Late(ms(1_000)), world.now);
        if at % 50 == 49 && world.canary.phase == Phase::Running {
            failed += 1;
            world.canary.witness(world.assigned(true), Some(failed), Sight::Late(ms(1_000)), world.now);
        }
    }
    assert_eq!((world.canary.phase.clone(), failed), (Phase::RolledBack, 4));
}

/// Some of the hasty get an answer from neither version, and some only now and then.
#[test]
fn deadlines_that_both_versions_miss_roll_nothing_back_and_hold_up_nothing_for_good() {
    let (mut rolled_back, mut held) = (0, 0);
    for seed in 0..200 {
        let mut world = World::new(KEYED, seed);
        let missing = 0.2 * (seed % 4) as f64;
        ask_by_turns(&mut world, (40, 60), |dice, user, _| match user % 5 {
            0 => (Sight::Late(ms(30)), Some(ms(30))),
            1 if dice.falls(missing) => (Sight::Late(ms(100)), Some(ms(100))),
            1 => (answered(5).1, Some(ms(100))),
            _ => (answered(5).1, None),
        });
        rolled_back += u32::from(world.canary.phase == Phase::RolledBack);
        held += u32::from(world.canary.phase == Phase::Running);
    }
    assert!(rolled_back <= 10 && held <= 10, "{rolled_back} rolled back and {held} held of 200");
}

/// Who forges users and knows which are the candidate's has it asked for what no version answers within this deadline.
#[test]
fn who_brings_a_deadline_of_which_nothing_is_known_holds_the_rollout_and_rolls_nothing_back() {
    let mut world = World::new(KEYED, 1);
    let well = |world: &mut World| ask_by_turns(world, (40, 10), |_, _, _| (answered(5).1, None));
    let forged = |world: &mut World| {
        for user in 100..120 {
            let assigned = world.assigned(true).within(ms(30), ms(1_000));
            world.canary.witness(assigned, Some(user), Sight::Late(ms(30)), world.now);
            world.now += ms(200);
        }
    };
    well(&mut world);
    forged(&mut world);
    well(&mut world);
    assert_eq!((world.canary.phase.clone(), world.canary.gates[0].worse()), (Phase::Running, 1.0));
    let record = world.canary.news().pop().unwrap();
    let why = "errors: 20 of the last 20 who left sooner than version 1 is known to answer are version 2's, where its share of \
               the requests makes 10.0: a person has to say so";
    assert_eq!((record.verdict, &*record.why), (Verdict::Hold, why));
    // As does a restart, which forgets nothing.
    let kept = serde_json::to_string(&world.canary.progress(world.now)).unwrap();
    world.canary = Canary::new(policy(KEYED), Beginnings::default(), world.now);
    world.canary.restore(&serde_json::from_str(&kept).unwrap(), world.now);
    (0..70).for_each(|_| well(&mut world));
    assert_eq!(world.canary.phase, Phase::Running);
    (0..60).for_each(|_| well(&mut world));
    assert_eq!(world.canary.phase, Phase::Promoted, "nobody has left it for so long");
}

/// Nobody knows what they would have waited for; it is the candidate's all the same.
#[test]
fn a_timeout_of_clients_that_only_the_candidate_exceeds_holds_the_rollout_until_a_person_says_so() {
    for seed in 0..4 {
        let mut world = World::new(KEYED, seed);
        ask_by_turns(&mut world, (40, 1_500), |_, user, is_candidate| match (user % 10 < 7, is_candidate) {
            (true, true) => (Sight::Gone(ms(100)), None),
            (true, false) => (answered(5).1, None),
            (false, _) => (answered(300).1, None),
        });
        assert_eq!(world.canary.phase, Phase::Running, "{:?}", world.canary.history);
        let why = &world.canary.history.back().unwrap().why;
        assert!(why.contains("a person has to say so"), "{why}");
        world.canary.command(Command::Promote, "they have to wait longer", world.now).unwrap();
        assert_eq!(world.canary.phase, Phase::Promoted);
    }
}

const TWO_STEPS: &str = "steps: [40, 50], dwell: 10s, sticky: {header: user}, gates: {errors: {at_most: 10}}";

/// A person has said so of twenty, and is asked once more only where they leave it once more.
#[test]
fn who_has_left_holds_no_step_after_the_one_that_a_person_has_let_go() {
    let well = |world: &mut World| ask_by_turns(world, (40, 12), |_, _, _| (answered(5).1, None));
    let leave = |world: &mut World, users: std::ops::Range<u64>| {
        for user in users {
            let assigned = world.assigned(true).within(ms(30), ms(1_000));
            world.canary.witness(assigned, Some(user), Sight::Late(ms(30)), world.now);
            world.now += ms(200);
        }
    };
    for (restarts, leave_again) in [(false, false), (true, false), (false, true)] {
        let mut world = World::new(TWO_STEPS, 1);
        ask_by_turns(&mut world, (40, 5), |_, _, _| (answered(5).1, None));
        leave(&mut world, 100..120);
        well(&mut world);
        assert!(world.waits_for().contains("a person has to say so"), "{}", world.waits_for());
        let advance = Command::Advance { from: Some(1) };
        world.canary.command(advance, "they have to wait longer", world.now).unwrap();
        assert_eq!(world.waits_for(), "");
        if restarts {
            world.restarted(TWO_STEPS);
        }
        if leave_again {
            leave(&mut world, 100..120);
        }
        well(&mut world);
        let phase = if leave_again { Phase::Running } else { Phase::Promoted };
        assert_eq!(world.canary.phase, phase, "{restarts}: {}", world.waits_for());
        assert_eq!(world.waits_for().contains("a person has to say so"), leave_again);
    }
    // Too few to ask anybody about: with one more they are enough, whoever has let the step go.
    for by_a_person in [false, true] {
        let mut world = World::new(TWO_STEPS, 1);
        leave(&mut world, 100..103);
        if by_a_person {
            world.canary.command(Command::Advance { from: None }, "", world.now).unwrap();
        } else {
            well(&mut world);
        }
        assert_eq!((world.canary.step, world.canary.phase.clone()), (1, Phase::Running), "{by_a_person}");
        leave(&mut world, 103..104);
        well(&mut world);
        assert!(world.waits_for().contains("4 of the last 4 who left sooner"), "{}", world.waits_for());
    }
}

/// Who leaves is held against the candidate by what the baseline takes now.
#[test]
fn a_rollout_that_is_begun_again_learns_anew_how_long_the_baseline_takes_and_one_that_was_paused_knows() {
    let heard = |commands: [Command; 2], took: u64| {
        let mut world = World::new("steps: [10], dwell: 1h, sticky: {header: user}", 1);
        let leave = |world: &mut World| {
            world.canary.witness(world.assigned(true), Some(7), Sight::Gone(ms(100)), world.now);
            world.canary.gates[0].requests
        };
        (0..100).for_each(|_| world.tell(false, answered(5).1));
        assert_eq!(leave(&mut world), 1, "it would have had an answer");
        world.canary.command(commands[0], "", world.now).unwrap();
        world.canary.command(commands[1], "", world.now).unwrap();
        let first = leave(&mut world);
        (0..50).for_each(|_| world.tell(false, answered(took).1));
        (first, leave(&mut world))
    };
    assert_eq!(heard([Command::Abort, Command::Resume], 200), (0, 0), "the baseline takes longer now");
    assert_eq!(heard([Command::Abort, Command::Resume], 5), (0, 1));
    assert_eq!(heard([Command::Pause, Command::Resume], 5), (2, 3));
}
