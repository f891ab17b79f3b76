//! Rollouts by the thousand, in simulated time.

mod alike;
mod deadlines;
mod disagreement;
mod drift;
mod few_users;
mod hanging;
mod idle;
mod kept;
mod late_failures;
mod leaving;
mod middling;
mod numbers;
mod outages;
mod refused;
mod verdicts;
mod waiting;
mod witnesses;

use super::*;
use crate::evidence::tests::Dice;
use crate::{Snapshot, parse};

const FAST: Sight = Sight::Answered(Duration::from_millis(10));
const SLOW: Sight = Sight::Answered(Duration::from_millis(300));

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn snapshot(canary: &str) -> Snapshot {
    let text = format!(
        "models: {{digits: {{labels: {{old: 1, new: 2}}, canary: {{baseline: old, candidate: new, {canary}}}}}}}"
    );
    parse(&text, "p.yaml").unwrap_or_else(|errors| panic!("{errors}"))
}

fn policy(canary: &str) -> CanaryPolicy {
    *snapshot(canary).model("digits").unwrap().canary.clone().unwrap()
}

/// A rollout, a clock and dice.
struct World {
    canary: Canary,
    now: Instant,
    dice: Dice,
}

impl World {
    fn new(canary: &str, seed: u64) -> Self {
        let now = Instant::now();
        Self { canary: Canary::new(policy(canary), Beginnings::default(), now), now, dice: Dice(seed) }
    }

    fn assigned(&self, is_candidate: bool) -> Assignment {
        let share = self.canary.share();
        let (baseline, candidate, begun) = (Version(1), Version(2), Some(self.canary.begun));
        Assignment { baseline, candidate, is_candidate, share, begun, slow_over: None, brought: None }
    }

    fn tell(&mut self, is_candidate: bool, sight: Sight) {
        self.canary.witness(self.assigned(is_candidate), None, sight, self.now);
    }

    /// The baseline has answered somebody, and the candidate a copy.
    fn compare(&mut self, key: Option<u64>, agrees: bool) {
        self.canary.compared(self.assigned(false), key, Some(agrees), self.now);
    }

    /// A request of somebody new; the chances are those of a failure.
    fn request(&mut self, of_baseline: f64, of_candidate: f64) {
        let is_candidate = self.dice.falls(percent(self.canary.share()) / 100.0);
        let fails = self.dice.falls(if is_candidate { of_candidate } else { of_baseline });
        self.tell(is_candidate, if fails { Sight::Failed } else { FAST });
    }

    /// Time passes, in which the candidate answers somebody, and the rollout is looked at.
    fn work(&mut self, seconds: u64) -> Option<Verdict> {
        self.now += Duration::from_secs(seconds);
        self.tell(true, FAST);
        self.wait(0)
    }

    fn wait(&mut self, seconds: u64) -> Option<Verdict> {
        self.now += Duration::from_secs(seconds);
        self.canary.judge(self.now);
        self.canary.news().pop().map(|record| record.verdict)
    }
}

#[test]
fn a_candidate_that_does_well_gets_more_step_by_step_and_then_all() {
    let mut world = World::new("steps: [10, 50], dwell: 1m", 1);
    assert_eq!(percent(world.canary.share()), 10.0);
    assert_eq!(world.wait(59), None);
    (0..600).for_each(|_| world.tell(true, FAST));
    assert_eq!(world.wait(1), Some(Verdict::Advance));
    assert_eq!(percent(world.canary.share()), 50.0);
    assert_eq!(world.wait(60), Some(Verdict::InsufficientData), "each step has to be earned");
    (0..600).for_each(|_| world.tell(true, FAST));
    assert_eq!(world.wait(1), Some(Verdict::Advance));
    assert_eq!((world.canary.phase.clone(), world.canary.share()), (Phase::Promoted, ALL));
}

/// When a request ends, after how long, and with what; and what counts it.
type Ending<Counted> = (Instant, Duration, Sight, Counted);

/// What the candidate is asked, and who waits for it.
#[derive(Default)]
struct Traffic {
    /// The next to end is the last.
    under_way: Vec<Ending<UnderWay>>,
}

impl Traffic {
    /// So many a second, to both sides alike, until the candidate has come to the next step; after how many looks, of which there are ten a
    /// second.
    fn flow(
        &mut self,
        world: &mut World,
        (per_second, seconds): (u32, u32),
        sight: impl Fn(&mut Dice) -> (Duration, Sight),
    ) -> Option<u32> {
        let step = world.canary.step;
        for tick in 0..seconds * 10 {
            let due = |tick: u32| tick * per_second / 10;
            self.tick(world, due(tick + 1) - due(tick), &sight);
            if world.canary.step > step {
                return Some(tick);
            }
        }
        None
    }

    /// So many requests come, a tenth of a second passes, and the rollout is looked at.
    fn tick(&mut self, world: &mut World, requests: u32, sight: impl Fn(&mut Dice) -> (Duration, Sight)) {
        for _ in 0..requests {
            let (took, sight) = sight(&mut world.dice);
            self.under_way.push((world.now + took, took, sight, world.canary.asked().begin()));
        }
        world.now += Duration::from_millis(100);
        self.under_way.sort_by_key(|(ends, ..)| std::cmp::Reverse(*ends));
        while let Some((_, took, sight, under_way)) = self.under_way.pop_if(|(ends, ..)| *ends <= world.now) {
            under_way.ended(took, Some(sight));
            [true, false].into_iter().for_each(|arm| world.tell(arm, sight));
        }
        world.canary.judge(world.now);
    }
}

fn answered(millis: u64) -> (Duration, Sight) {
    let took = Duration::from_millis(millis);
    (took, Sight::Answered(took))
}

/// A hundred requests a second of so many users in turn, of whom each is on the side of its number's parity; what becomes of a request
/// of this user on this side, and the deadline that it has brought.
fn ask_by_turns(
    world: &mut World,
    (users, seconds): (u64, u64),
    ends: impl Fn(&mut Dice, u64, bool) -> (Sight, Option<Duration>),
) {
    for tick in 0..seconds * 100 {
        let user = tick * 7 % users;
        let is_candidate = user % 2 == 0;
        let (sight, brought) = ends(&mut world.dice, user, is_candidate);
        let assigned = world.assigned(is_candidate).within(brought.unwrap_or(Duration::MAX), Duration::MAX);
        world.canary.witness(assigned, Some(user), sight, world.now);
        world.now += ms(10);
        if tick % 10 == 0 {
            world.canary.judge(world.now);
        }
    }
}

const KEYED: &str = "steps: [50], dwell: 10s, sticky: {header: user}, gates: {errors: {at_most: 10}}";

#[test]
fn what_its_gates_are_about_changes_and_what_ended_soon_is_not_all_that_is_known() {
    let with = |over: &str| {
        policy(&format!(
            "steps: [10], dwell: 10s, gates: {{errors: {{at_most: 5}}, latency: {{over: {over}, at_most: 5}}}}"
        ))
    };
    let now = Instant::now();
    let mut world = World { canary: Canary::new(with("1s"), Beginnings::default(), now), now, dice: Dice(1) };
    (0..1000).for_each(|_| world.tell(true, FAST));
    world.now += Duration::from_secs(9);
    world.canary.follow(&with("2s"), world.now);
    assert!(world.canary.gates.iter().all(|gate| gate.requests == 0));
    world.now += Duration::from_secs(9);
    world.canary.judge(world.now);
    assert_eq!(world.canary.news().len(), 0, "the step lasts as long as any");
    let told = with("1s").found_anew(&with("2s"));
    assert_eq!(told, ": what its gates are about has changed, and its step begins anew");
    let tighter = policy("steps: [10], gates: {errors: {at_most: 1}, latency: {over: 1s, at_most: 5}}");
    assert_eq!(with("1s").found_anew(&tighter), ", and has to pass errors anew");
}

#[test]
fn without_data_nothing_ever_advances() {
    let mut world = World::new("steps: [50], dwell: 1s", 1);
    assert_eq!(world.wait(1), Some(Verdict::InsufficientData));
    for _ in 0..10_000 {
        world.tell(false, FAST);
        assert_eq!(world.wait(60), None, "and that is told once");
    }
    assert_eq!((world.canary.step, world.canary.phase.clone()), (0, Phase::Running));
}

/// 10,000 rollouts that hear too little of their candidate: by requests or by users of whom some come again, with one or two gates, at
/// any time of any number of steps, beside a baseline that is asked much or little.
#[test]
fn too_little_data_advances_nobody() {
    let policies = [
        "steps: [10], dwell: 1m, gates: {errors: {at_most: 5}}",
        "steps: [1, 50], dwell: 10m, gates: {errors: {at_most: 5}, latency: {over: 1s, at_most: 4}}",
        "steps: [30], dwell: 1m, sticky: {header: user}, gates: {errors: {at_most: 5}}",
        "steps: [5, 20, 50], dwell: 30s, sticky: {header: user}, gates: {errors: {at_most: 3}, latency: {over: 2s, at_most: 5}}",
    ];
    let mut lengths = std::collections::BTreeSet::new();
    for seed in 0..10_000 {
        let mut world = World::new(policies[seed as usize % policies.len()], seed);
        let is_sticky = world.canary.policy.stickiness.is_some();
        let heard = world.dice.below(59) as usize; // 59 of whom none fails would do
        let of_baseline = world.dice.below(300) as usize;
        for at in 0..heard.max(of_baseline) {
            world.now += Duration::from_millis(world.dice.below(2_000));
            for is_candidate in [true, false] {
                if at >= if is_candidate { heard } else { of_baseline } {
                    continue;
                }
                let key = is_sticky.then(|| world.dice.below(200) * 2 + u64::from(is_candidate));
                let took = Duration::from_millis(world.dice.below(900));
                let (assigned, now) = (world.assigned(is_candidate), world.now);
                world.canary.witness(assigned, key, Sight::Answered(took), now);
            }
            if world.dice.falls(0.1) {
                world.canary.judge(world.now);
            }
        }
        for seconds in [60, 600, 86_400] {
            world.wait(seconds);
        }
        let (step, phase) = (world.canary.step, world.canary.phase.clone());
        assert_eq!((step, phase), (0, Phase::Running), "seed {seed}: {heard} and {of_baseline} were heard");
        let last = world.canary.status().verdicts.pop().map(|record| record.verdict);
        assert_eq!(last, Some(Verdict::InsufficientData), "seed {seed}");
        lengths.insert((heard, of_baseline));
    }
    assert!(lengths.len() > 5_000, "{} that differ", lengths.len());
}

/// One request in a thousand fails at the baseline and one in a hundred at the candidate, which a threshold of 5 % lets pass.
#[test]
fn a_candidate_ten_times_as_bad_is_rolled_back_though_it_is_below_every_threshold() {
    let caught = |seed| {
        let mut world = World::new("steps: [10], dwell: 24h, gates: {errors: {at_most: 5}}", seed);
        (0..100_000).for_each(|_| world.request(0.001, 0.01));
        let record = world.canary.news().pop();
        world.canary.phase == Phase::RolledBack
            && record.is_some_and(|record| record.why.contains("fails more often than version 1"))
    };
    let rolled_back = (0..200).filter(|seed| caught(*seed)).count();
    assert!(rolled_back >= 198, "{rolled_back} of 200");
}

#[test]
fn what_was_under_way_when_it_was_rolled_back_says_nothing_once_it_has_begun_again() {
    let mut world = World::new("steps: [10, 50], dwell: 1m", 1);
    let of_before = world.assigned(true);
    (0..100).for_each(|_| world.tell(false, FAST));
    (0..50).for_each(|_| world.tell(true, Sight::Failed));
    assert_eq!(world.canary.phase, Phase::RolledBack);
    let now = world.now;
    world.canary.command(Command::Resume, "mended", now).unwrap();
    (0..50).for_each(|user| world.canary.witness(of_before, Some(user), Sight::Failed, now));
    assert_eq!((world.canary.phase.clone(), world.canary.gates[0].requests), (Phase::Running, 0));
}

#[test]
fn a_candidate_that_fails_more_is_rolled_back_at_once_and_gets_nothing() {
    let mut world = World::new("steps: [10, 50], dwell: 1h", 1);
    for _ in 0..1000 {
        world.request(0.0, 1.0);
    }
    assert_eq!((world.canary.phase.clone(), world.canary.share()), (Phase::RolledBack, 0));
    let record = world.canary.news().pop().unwrap();
    assert_eq!(record.verdict, Verdict::RollBack);
    assert!(record.why.starts_with("version 2 fails more often than version 1: "), "{}", record.why);
    assert!(record.gates[0].worse >= 20.0 && record.gates[0].requests < 10, "{record:?}");
    let snapshot = snapshot("sticky: {header: user}");
    let pick = |share| {
        let stage = Stage { share, ..Stage::NOT_BEGUN };
        snapshot.model("digits").unwrap().pick(&[("user", "ana")], 0, |_| stage).unwrap()
    };
    assert_eq!((pick(ALL).version, pick(0).version), (Version(2), Version(1)), "sticky users as well");
}

#[test]
fn what_fails_everywhere_is_not_the_candidates_fault_and_no_reason_to_advance() {
    let mut world = World::new("steps: [50], dwell: 1s", 3);
    for _ in 0..20_000 {
        world.request(0.5, 0.5);
    }
    assert_eq!(world.wait(1), Some(Verdict::Hold));
    assert_eq!(world.canary.phase, Phase::Running);
}

#[test]
fn a_candidate_that_was_well_for_long_is_still_rolled_back_soon() {
    let mut world = World::new("steps: [10, 50], dwell: 1s", 5);
    for _ in 0..200_000 {
        world.request(0.002, 0.002);
    }
    assert_eq!(world.wait(1), Some(Verdict::Advance));
    let mut needed = 0;
    while world.canary.phase == Phase::Running {
        world.request(0.002, 0.05);
        needed += 1;
    }
    assert!(needed < 2_000, "{needed}");
}

#[test]
fn slow_answers_and_late_ones_are_judged_like_failures() {
    let gates = "steps: [50], dwell: 1s, gates: {latency: {over: 200ms, at_most: 5}}";
    let mut world = World::new(gates, 1);
    for _ in 0..40 {
        world.tell(false, FAST);
        world.tell(true, SLOW);
    }
    assert_eq!(world.canary.phase, Phase::RolledBack);
    assert!(world.canary.news()[0].why.starts_with("version 2 is slow more often"));
    let mut world = World::new("steps: [50], dwell: 1s", 1);
    for _ in 0..20 {
        world.now += Duration::from_millis(100);
        world.tell(true, Sight::Late(Duration::from_secs(1)));
    }
    assert_eq!(world.canary.phase, Phase::RolledBack, "without a gate for latency, late is failed");
}

#[test]
fn faults_have_a_gate_of_their_own_which_overload_and_impatience_do_not_touch() {
    let gates = "steps: [50], dwell: 1s, gates: {errors: {at_most: 50}, faults: {at_most: 0.5}}";
    let mut world = World::new(gates, 1);
    for at in 0..2_000 {
        world.now += Duration::from_millis(100);
        let sight = match at % 10 {
            0 => Sight::Unanswered,
            1 => Sight::Late(Duration::from_secs(1)),
            _ => FAST,
        };
        // Of what goes unanswered together, the first counts.
        let first = at / 10 % 2 == 0;
        [first, !first].into_iter().for_each(|arm| world.tell(arm, sight));
    }
    assert_eq!(world.wait(1), Some(Verdict::Advance));
    let mut world = World::new(gates, 1);
    for at in 0..2_000 {
        let sight = if at % 50 == 0 { Sight::Failed } else { FAST };
        [true, false].into_iter().for_each(|arm| world.tell(arm, sight));
    }
    assert_eq!(world.wait(1), Some(Verdict::Hold));
    let why = &world.canary.history.back().unwrap().why;
    assert_eq!(why, "faults: 40 of 2000 is not shown to be below 0.5 %");
    let mut world = World::new(gates, 1);
    for _ in 0..10 {
        world.now += Duration::from_millis(100);
        world.tell(true, Sight::Lost);
    }
    world.wait(1);
    assert_eq!(world.canary.phase, Phase::RolledBack, "an engine that goes down with it each time");
}

/// A rollout whose answers a shadow compares.
fn compared(at_most: f64, seed: u64) -> World {
    let text = format!(
        "models: {{digits: {{canary: {{baseline: 1, candidate: 2, steps: [10, 50], dwell: 1s,
           gates: {{disagreement: {{at_most: {at_most}}}}}}}, shadow: {{version: 2}}}}}}"
    );
    let policy = parse(&text, "p").unwrap().model("digits").unwrap().canary.clone().unwrap();
    let now = Instant::now();
    World { canary: Canary::new(*policy, Beginnings::default(), now), now, dice: Dice(seed) }
}

#[test]
fn a_candidate_that_has_fallen_silent_does_not_advance_on_what_it_did_before() {
    let mut world = World::new("steps: [10, 50], dwell: 10m", 1);
    (0..600).for_each(|_| world.tell(true, FAST));
    assert_eq!(world.wait(600), Some(Verdict::InsufficientData));
    assert!(world.canary.history[0].why.starts_with("version 2 has answered nobody for 60s"));
    world.tell(true, FAST);
    assert_eq!(world.wait(1), Some(Verdict::Advance));
}

#[test]
fn a_version_that_turns_bad_after_a_long_time_in_one_step_is_found_out_soon() {
    let mut world = World::new("steps: [10], dwell: 24h", 5);
    for _ in 0..1_000_000 {
        world.now += Duration::from_millis(10);
        world.request(0.002, 0.002);
    }
    let mut needed = 0;
    while world.canary.phase == Phase::Running {
        world.now += Duration::from_millis(10);
        world.request(0.002, 0.05);
        needed += 1;
    }
    assert!(needed < 4_000, "{needed}");
}

/// 1 % of the baseline's requests fail and 3 % of the candidate's, which has a tenth of all.
#[test]
fn a_candidate_that_fails_three_times_as_often_is_rolled_back_within_3500_requests() {
    let mut needed: Vec<u32> = (0..1_000)
        .map(|seed| {
            let mut world = World::new("steps: [10, 50], dwell: 24h", seed);
            let is_open = |world: &World| world.canary.phase == Phase::Running;
            (0..100_000).find(|_| {
                world.request(0.01, 0.03);
                !is_open(&world)
            })
        })
        .map(|needed| needed.unwrap_or(u32::MAX))
        .collect();
    needed.sort_unstable();
    assert!(needed[500] <= 3_500, "median {}", needed[500]);
}

/// 10,000 rollouts of a candidate that is as good, under a base rate that drifts, with users who fail in fits.
#[test]
fn a_candidate_that_is_no_worse_is_rolled_back_at_most_once_in_twenty() {
    let mut dice = Dice(17);
    let mut rolled_back = 0;
    for seed in 0..10_000u64 {
        let mut world = World::new("steps: [1, 10, 50], dwell: 1m", seed);
        for step in 0..3 {
            for at in 0..100u64 {
                let rate = 0.02 + 0.1 * at as f64 / 100.0;
                // One user with ten requests: all of them fail, or none.
                let key = seed << 20 | step << 10 | at;
                let assigned = world.assigned(dice.falls(percent(world.canary.share()) / 100.0));
                if dice.falls(rate) {
                    (0..10).for_each(|_| world.canary.witness(assigned, Some(key), Sight::Failed, world.now));
                }
            }
            world.now += Duration::from_secs(60);
            if world.canary.phase == Phase::Running && world.canary.step < 2 {
                world.canary.decide(Verdict::Advance, "the ramp of this test".into(), world.now);
            }
        }
        rolled_back += u32::from(world.canary.phase == Phase::RolledBack);
    }
    assert!(rolled_back <= 500, "{rolled_back} of 10,000");
}

#[test]
fn a_share_is_exact_and_those_who_have_the_candidate_keep_it() {
    let policy = policy("sticky: {header: user}");
    let on_candidate = |share: Millionths| -> Vec<bool> {
        let picks = (0..20_000).map(|user| {
            policy.pick(&[("user", user.to_string().as_str())], 0, Stage { share, ..Stage::NOT_BEGUN })
        });
        picks.map(|pick| pick.version == Version(2)).collect()
    };
    let mut before = on_candidate(0);
    assert!(before.iter().all(|on| !on));
    for share in [10_000, 100_000, 500_000, 999_999, ALL] {
        let now = on_candidate(share);
        assert!(before.iter().zip(&now).all(|(before, now)| !before || *now));
        let got = now.iter().filter(|on| **on).count() as f64 / 20_000.0;
        assert!((got - f64::from(share) / 1e6).abs() < 0.015, "{got} at {share}");
        before = now;
    }
    assert!(before.iter().all(|on| *on));
    let drawn = super::tests::policy("steps: [10]");
    assert_eq!(
        drawn.pick(&[("user", "ana")], u64::MAX, Stage { share: 1, ..Stage::NOT_BEGUN }).version,
        Version(2)
    );
    assert_eq!(
        drawn.pick(&[("user", "ana")], u64::MAX, Stage { share: 0, ..Stage::NOT_BEGUN }).version,
        Version(1)
    );
}

#[test]
fn files_that_are_replaced_have_to_show_everything_anew() {
    let mut world = World::new("steps: [10, 50], dwell: 1m", 1);
    (0..600).for_each(|_| world.tell(true, FAST));
    world.tell(true, Sight::Failed);
    world.wait(59);
    let (late, worse) = (world.assigned(true), world.canary.gates[0].worse());
    assert!(worse > 1.0);
    world.canary.begin_step_anew(Version(2), world.now);
    assert_eq!(world.canary.news()[0].why, "the files of version 2 were replaced: the step begins anew");
    assert_eq!(world.canary.gates[0].worse(), 1.0);
    (0..600).for_each(|_| world.canary.witness(late, None, FAST, world.now));
    assert_eq!(world.canary.gates[0].requests, 0, "these were for the files before");
    (0..600).for_each(|_| world.tell(true, FAST));
    assert_eq!(world.wait(59), None, "nor has it lasted long enough");
    assert_eq!(world.work(1), Some(Verdict::Advance));
    world.canary.begin_step_anew(Version(1), world.now);
    assert_eq!(
        (percent(world.canary.share()), world.canary.gates[0].requests),
        (50.0, 0),
        "it keeps its step"
    );
    world.canary.command(Command::Abort, "", world.now).unwrap();
    world.canary.news();
    world.canary.begin_step_anew(Version(2), world.now);
    assert_eq!((world.canary.phase.clone(), world.canary.news().len()), (Phase::RolledBack, 0));
}
