//! Versions that are alike, by the ten thousand, with each gate that counts events: at most one rollout in twenty is rolled back
//! for nothing. And beside each what it takes to find one that is not alike.
//!
//! Alike does not mean easy. The base rate rises and falls, keys fail in fits, stalls hit everybody at once, and the candidate's
//! share goes from one in a hundred through a tenth to half.

use super::*;

const ROLLOUTS: u64 = 10_000;

/// In each step, but where there is much to do in each.
const TURNS: u32 = 120;

const LATENCY: &str = "steps: [1, 10, 50], dwell: 1m, gates: {latency: {over: 200ms, at_most: 50}}";
const FAULTS: &str = "steps: [1, 10, 50], dwell: 1m, gates: {errors: {at_most: 50}, faults: {at_most: 50}}";

/// All of them, which share the chance.
fn all_gates(steps: &str) -> CanaryPolicy {
    let gates = "{errors: {at_most: 50}, latency: {over: 200ms, at_most: 50}, faults: {at_most: 50}, disagreement: {at_most: 5}}";
    let text = format!(
        "models: {{digits: {{canary: {{baseline: 1, candidate: 2, {steps}, gates: {gates}}}, shadow: {{version: 2}}}}}}"
    );
    let policy = parse(&text, "p.yaml").unwrap().model("digits").unwrap().canary.clone().unwrap();
    assert_eq!(begun(&policy, 0).canary.gates.len(), 4);
    *policy
}

fn begun(policy: &CanaryPolicy, seed: u64) -> World {
    let now = Instant::now();
    let canary = Canary::new(policy.clone(), Beginnings::default(), now);
    World { canary, now, dice: Dice(seed << 32) }
}

fn ramp(world: &mut World) {
    if world.canary.phase == Phase::Running && world.canary.step + 1 < world.canary.policy.steps.len() {
        world.canary.decide(Verdict::Advance, "the ramp of this test".into(), world.now);
    }
}

/// Three steps, of both versions alike: users who fare badly again and again, requests without a key, and stalls in which
/// everybody fares badly at once. How badly, is one of those that are given; `also` happens each time.
fn rollout_of_the_same(
    policy: &CanaryPolicy,
    (seed, turns): (u64, u32),
    how: &[(Sight, Sight)],
    also: impl Fn(&mut World, u64),
) -> Phase {
    let mut world = begun(policy, seed);
    for step in 0..3 {
        for at in 0..turns {
            world.now += ms(250);
            let rate = 0.02 + 0.2 * f64::from(at) / f64::from(turns);
            let share = percent(world.canary.share()) / 100.0;
            let (user, now) = (step * u64::from(turns) + u64::from(at), world.now);
            let (bad, stalled) = match how {
                [one] => *one,
                several => several[world.dice.below(several.len() as u64) as usize],
            };
            let is_candidate = world.dice.falls(share);
            let assigned = world.assigned(is_candidate);
            if world.dice.falls(rate) {
                (0..5).for_each(|_| world.canary.witness(assigned, Some(user), bad, now));
            }
            let is_candidate = world.dice.falls(share);
            let fares_badly = world.dice.falls(rate);
            world.tell(is_candidate, if fares_badly { bad } else { FAST });
            if world.dice.falls(0.05) {
                for _ in 0..4 {
                    let is_candidate = world.dice.falls(share);
                    world.tell(is_candidate, stalled);
                }
            }
            also(&mut world, user);
        }
        ramp(&mut world);
    }
    world.canary.phase
}

/// The seeds of those that are.
fn rolled_back(run: impl Fn(u64) -> Phase) -> Vec<u64> {
    (0..ROLLOUTS).filter(|seed| run(*seed) == Phase::RolledBack).collect()
}

fn at_most_one_in_twenty(seeds: &[u64]) {
    let first = &seeds[..seeds.len().min(10)];
    println!("{} of {ROLLOUTS} are rolled back, the first by the seeds {first:?}", seeds.len());
    assert!(seeds.len() as u64 * 20 <= ROLLOUTS, "{} of {ROLLOUTS}, by the seeds {first:?}", seeds.len());
}

/// The median of what it takes until a rollout is rolled back, nearly always for this reason.
fn takes(policy: &CanaryPolicy, why: &str, request: impl Fn(&mut World)) -> u32 {
    const RUNS: usize = 200;
    let mut others = Vec::new();
    let mut takes = |seed: u64| {
        let mut world = begun(policy, seed);
        let is_over = |world: &mut World| {
            request(world);
            world.canary.phase == Phase::RolledBack
        };
        let needed = (1..100_000).find(|_| is_over(&mut world)).unwrap_or(u32::MAX);
        let record = world.canary.news().pop();
        if !record.is_some_and(|record| record.why.starts_with(why)) {
            others.push(seed);
        }
        needed
    };
    let mut needed: Vec<u32> = (0..RUNS as u64).map(&mut takes).collect();
    needed.sort_unstable();
    let (median, most) = (needed[RUNS / 2], needed[RUNS - 1]);
    println!("{why}: a median of {median}, {most} at most, for another reason with the seeds {others:?}");
    assert!(others.len() * 20 <= RUNS, "for another reason with the seeds {others:?}");
    median
}

#[test]
fn a_candidate_that_is_as_slow_as_the_baseline_is_rolled_back_at_most_once_in_twenty() {
    let policy = policy(LATENCY);
    at_most_one_in_twenty(&rolled_back(|seed| {
        rollout_of_the_same(&policy, (seed, TURNS), &[(SLOW, Sight::Late(Duration::from_secs(1)))], |_, _| {})
    }));
}

/// 1 % of the baseline's answers are slow and 3 % of the candidate's, which has a tenth of all.
#[test]
fn a_candidate_that_is_slow_three_times_as_often_is_rolled_back() {
    let policy = policy("steps: [10], dwell: 24h, gates: {latency: {over: 200ms, at_most: 50}}");
    let median = takes(&policy, "version 2 is slow more often", |world| {
        let is_candidate = world.dice.falls(0.1);
        let is_slow = world.dice.falls(if is_candidate { 0.03 } else { 0.01 });
        world.tell(is_candidate, if is_slow { SLOW } else { FAST });
    });
    assert!(median <= 4_500, "median {median}");
}

#[test]
fn a_candidate_that_is_as_faulty_as_the_baseline_is_rolled_back_at_most_once_in_twenty() {
    let policy = policy(FAULTS);
    at_most_one_in_twenty(&rolled_back(|seed| {
        rollout_of_the_same(&policy, (seed, TURNS), &[(Sight::Failed, Sight::Lost)], |_, _| {})
    }));
}

/// One in five is turned away by both versions, which hides from the gate of errors what the candidate does wrong.
#[test]
fn a_candidate_with_faults_of_its_own_is_rolled_back_though_overload_hides_them_among_the_errors() {
    let policy = policy("steps: [10], dwell: 24h, gates: {errors: {at_most: 50}, faults: {at_most: 50}}");
    let median = takes(&policy, "version 2 is at fault more often", |world| {
        world.now += ms(200);
        let is_candidate = world.dice.falls(0.1);
        let is_turned_away = world.dice.falls(0.2);
        let is_faulty = world.dice.falls(if is_candidate { 0.03 } else { 0.01 });
        let sight = match (is_turned_away, is_faulty) {
            (true, _) => Sight::Unanswered,
            (false, true) => Sight::Failed,
            (false, false) => FAST,
        };
        world.tell(is_candidate, sight);
    });
    assert!(median <= 6_500, "median {median}");
}

/// As many disagree as may: a third of them users who are always answered otherwise, a third users who are so now and then, and
/// the rest drawn anew.
#[test]
fn a_candidate_that_disagrees_as_often_as_it_may_is_rolled_back_at_most_once_in_twenty() {
    let policy = compared(5.0, 0).canary.policy;
    let run = |seed| {
        let mut world = begun(&policy, seed);
        let always: Vec<bool> = (0..30).map(|_| world.dice.falls(0.05)).collect();
        for _ in 0..10 {
            for (user, always) in (0..).zip(&always) {
                let now_and_then = !world.dice.falls(0.05);
                world.compare(Some(user), !always);
                world.compare(Some(1_000 + user), now_and_then);
                let agrees = !world.dice.falls(0.05);
                world.compare(None, agrees);
            }
            world.now += Duration::from_secs(60);
            ramp(&mut world);
        }
        world.canary.phase
    };
    at_most_one_in_twenty(&rolled_back(run));
}

#[test]
fn a_candidate_that_disagrees_twice_as_often_as_it_may_is_rolled_back() {
    let policy = compared(5.0, 0).canary.policy;
    let median = takes(&policy, "version 2 disagrees", |world| {
        let agrees = !world.dice.falls(0.1);
        world.compare(None, agrees);
    });
    assert!(median <= 500, "median {median}");
}

/// Slow answers, failures and lost engines, of both versions alike, and copies of which as many disagree as may: all gates together
/// are wrong no more often than one.
#[test]
fn with_all_gates_at_once_at_most_one_in_twenty_is_rolled_back() {
    let policy = all_gates("steps: [1, 10, 50], dwell: 1m");
    let how = [
        (SLOW, Sight::Late(Duration::from_secs(1))),
        (Sight::Failed, Sight::Lost),
        (Sight::Failed, Sight::Unanswered),
    ];
    at_most_one_in_twenty(&rolled_back(|seed| {
        rollout_of_the_same(&policy, (seed, TURNS / 3), &how, |world, user| {
            let of_a_user = !world.dice.falls(0.05);
            world.compare(Some(user), of_a_user);
            let agrees = !world.dice.falls(0.05);
            world.compare(None, agrees);
        })
    }));
}

/// 1 % of the baseline's requests fail and 3 % of the candidate's, which has a tenth of all: each gate beside that of errors has its part
/// of the chance to be wrong, and each failure is seen by two of them.
#[test]
fn a_candidate_that_fails_three_times_as_often_is_found_by_four_gates_as_well() {
    let policy = all_gates("steps: [10], dwell: 24h");
    let median = takes(&policy, "version 2", |world| {
        world.request(0.01, 0.03);
        let agrees = !world.dice.falls(0.01);
        world.compare(None, agrees);
    });
    assert!(median <= 5_000, "median {median}");
}
