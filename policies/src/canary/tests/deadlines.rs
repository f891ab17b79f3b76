//! Callers who bring many deadlines: some that no version meets, some that each meets now and then, and users who always miss theirs.

use super::*;

/// Each is about another deadline than the one before, see `canary/patience.rs`.
const DEADLINES: [u64; 12] = [10, 13, 17, 24, 40, 60, 75, 90, 110, 130, 220, 480];

/// On which side a user is, whether anybody knows, how long it lets a request take, and what it asks for: what that takes, at the median.
#[derive(Clone, Copy)]
struct User {
    is_candidate: bool,
    has_key: bool,
    deadline: Duration,
    usual: Duration,
}

fn one_of(dice: &mut Dice, all: &[u64]) -> Duration {
    let at = (1..all.len()).rev().find(|at| dice.falls(1.0 / (at + 1) as f64));
    ms(all[at.unwrap_or(0)])
}

/// From a fifth of the median to five times as much.
fn around(dice: &mut Dice, usual: Duration) -> Duration {
    let even: f64 = (0..10).map(|bit| if dice.falls(0.5) { 0.5f64.powi(bit + 1) } else { 0.0 }).sum();
    usual.mul_f64(5f64.powf(2.0 * even - 1.0))
}

/// A hundred requests a second of these users in turn. Which of them the candidate does not answer, beside those that neither does in time.
fn ask(world: &mut World, users: &[User], requests: usize, hangs: impl Fn(&User) -> bool) {
    let share = percent(world.canary.share()) / 100.0;
    for tick in 0..requests {
        let at = tick * 7 % users.len();
        let user = users[at];
        let is_candidate = if user.has_key { user.is_candidate } else { world.dice.falls(share) };
        let took = around(&mut world.dice, user.usual);
        let is_late = took >= user.deadline || is_candidate && hangs(&user);
        let sight = if is_late { Sight::Late(user.deadline) } else { Sight::Answered(took) };
        let assigned = world.assigned(is_candidate).within(user.deadline, ms(10_000));
        world.canary.witness(assigned, user.has_key.then_some(at as u64), sight, world.now);
        world.now += ms(10);
        if tick % 10 == 0 {
            world.canary.judge(world.now);
        }
    }
}

/// A crowd of users of whom so many have keys; what they ask for is as if drawn from these.
fn crowd(dice: &mut Dice, users: usize, (share, keyed): (f64, f64), usual: &[u64]) -> Vec<User> {
    let user = |dice: &mut Dice| User {
        is_candidate: dice.falls(share),
        has_key: dice.falls(keyed),
        deadline: one_of(dice, &DEADLINES),
        usual: one_of(dice, usual),
    };
    (0..users).map(|_| user(dice)).collect()
}

/// Requests that are all alike, and users of whom one in ten always misses its deadline.
#[test]
fn whoever_brings_which_deadline_versions_that_do_alike_are_told_apart_at_most_once_in_twenty() {
    let (mut all, mut rolled_back, mut held) = (0, 0, 0);
    for usual in [&[40][..], &[2, 2, 2, 2, 2, 2, 2, 2, 2, 5_000][..]] {
        for keyed in [1.0, 0.5, 0.0] {
            for (share, users) in [(10, 40), (50, 40), (50, 400)] {
                let dwell = format!(
                    "steps: [{share}], dwell: 1h, sticky: {{header: user}}, gates: {{errors: {{at_most: 10}}}}"
                );
                for seed in 0..40 {
                    let mut world = World::new(&dwell, seed);
                    let users = crowd(&mut world.dice, users, (f64::from(share) / 100.0, keyed), usual);
                    ask(&mut world, &users, 4_000, |_| false);
                    all += 1;
                    rolled_back += u32::from(world.canary.phase == Phase::RolledBack);
                    held += u32::from(world.canary.gates[0].why_asked(Version(2), Version(1)).is_some());
                }
            }
        }
    }
    assert!(
        rolled_back * 20 <= all && held * 20 <= all,
        "{rolled_back} rolled back and {held} held of {all}"
    );
}

/// So many deadlines that of each there are few users: where chance has put those who always miss on the candidate's side, the baseline
/// misses nothing.
#[test]
fn users_who_always_miss_their_deadlines_are_no_evidence_where_the_baseline_has_none_of_them() {
    let mut all = 0;
    for (users, missing) in [(160, 0.1), (401, 0.1), (401, 0.2)] {
        let mut rolled_back = 0;
        for seed in 0..200 {
            let mut world = World::new(
                "steps: [50], dwell: 3h, sticky: {header: user}, gates: {errors: {at_most: 10}}",
                seed,
            );
            let users: Vec<User> = (0..users)
                .map(|at| User {
                    is_candidate: world.dice.falls(0.5),
                    has_key: true,
                    deadline: ms(2).mul_f64(2f64.powf((at % 40) as f64 / 4.0)),
                    usual: if world.dice.falls(missing) { ms(600_000) } else { ms(0) },
                })
                .collect();
            ask(&mut world, &users, 4_000, |_| false);
            rolled_back += u32::from(world.canary.phase == Phase::RolledBack);
        }
        all += rolled_back;
    }
    assert!(all <= 30, "{all} of 600");
}

/// Half of them are the candidate's, and leave before the others, and so the baseline, are known to have had an answer.
#[test]
fn eight_hasty_users_of_whom_the_candidate_answers_none_hold_it_and_six_are_too_few() {
    for (hasty, phase) in [(6, Phase::Promoted), (8, Phase::Running), (14, Phase::Running)] {
        let mut world = World::new(KEYED, hasty);
        ask_by_turns(&mut world, (40, 60), |_, user, is_candidate| match (user < hasty, is_candidate) {
            (true, true) => (Sight::Gone(ms(100)), None),
            (true, false) => (answered(5).1, None),
            (false, _) => (answered(300).1, None),
        });
        assert_eq!(world.canary.phase, phase, "{hasty}: {:?}", world.canary.history);
    }
}

/// One in twelve callers brings it. Where the others' deadlines are met it is soon shown; where a third of them are missed now and then,
/// with either version, it is no more than held.
#[test]
fn a_candidate_that_answers_nobody_of_one_deadline_is_rolled_back_soon_and_never_promoted() {
    for (usual, at_most) in [(2, 20), (8, 5)] {
        for keyed in [1.0, 0.5, 0.0] {
            for share in [10, 50] {
                let canary = format!(
                    "steps: [{share}], dwell: 20s, sticky: {{header: user}}, gates: {{errors: {{at_most: {at_most}}}}}"
                );
                for seed in 0..10 {
                    let mut world = World::new(&canary, seed);
                    let of_crowd = (f64::from(share) / 100.0, keyed);
                    let users = crowd(&mut world.dice, 2_000, of_crowd, &[usual]);
                    ask(&mut world, &users, 6_000, |user| user.deadline == ms(110));
                    let (phase, history) = (&world.canary.phase, &world.canary.history);
                    let is_well = match usual {
                        2 => *phase == Phase::RolledBack,
                        _ => *phase != Phase::Promoted,
                    };
                    assert!(is_well, "{usual} {keyed} {share} seed {seed}: {history:?}");
                }
            }
        }
    }
}
