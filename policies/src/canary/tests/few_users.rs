//! Two or three users on each side, of whom the candidate alone refuses nearly everything.

use super::*;
use crate::Ledger;

const CANARY: &str = "steps: [50], dwell: 3s, sticky: {header: user}, gates: {errors: {at_most: 5}}";

/// So many users on each side ask ten times a second, until it is promoted or a minute has passed. Which requests of the first users of
/// each side are refused, by their number.
fn asked(users: u64, (of_baseline, of_candidate): (u64, u64), refused: fn(u64) -> bool) -> (Phase, String) {
    let snapshot = snapshot(CANARY);
    let (ledger, mut now) = (Ledger::new(), Instant::now());
    ledger.roll_out(&snapshot, now);
    let mut sides = [Vec::new(), Vec::new()];
    for user in 0..100 {
        let user = format!("user {user}");
        let pick = ledger.pick(&snapshot, "digits", &[("user", user.as_str())], 0, |_| true).unwrap();
        sides[usize::from(pick.version == Version(2))].push((pick.assigned.unwrap(), pick.key));
    }
    for request in 0..600 {
        for (side, refusing) in sides.iter().zip([of_baseline, of_candidate]) {
            for (at, (assigned, key)) in (0..users).zip(side) {
                let sight = if at < refusing && refused(request) { Sight::Refused } else { FAST };
                ledger.witness("digits", *assigned, *key, sight, now);
            }
        }
        now += ms(100);
        ledger.judge(now);
        let status = &ledger.rollouts()["digits"];
        if status.phase != Phase::Running {
            return (status.phase.clone(), String::new());
        }
    }
    (Phase::Running, ledger.rollouts()["digits"].waits_for.clone().unwrap_or_default())
}

#[test]
fn a_candidate_that_refuses_all_of_its_few_users_nearly_everything_gets_no_more() {
    for users in [2, 3] {
        let (phase, why) = asked(users, (0, users), |request| request % 5 != 0);
        let some = format!("of each of its {users} users some, and version 1 none of its own");
        assert!(phase == Phase::Running && why.contains(&some), "{users}: {phase} {why}");
    }
}

#[test]
fn a_few_users_whose_clients_are_broken_hold_nothing_where_others_are_answered() {
    for sides in [(0, 0), (0, 1), (1, 1), (0, 2)] {
        let (phase, why) = asked(3, sides, |request| request % 5 != 0);
        assert_eq!(phase, Phase::Promoted, "{sides:?}: {why}");
    }
}
