//! What a state file may hold in the place of a number of the evidence: what no number is, and what no evidence comes to. The rollout
//! then holds, or the file is not read; it never rises by that, and nothing panics.

use serde_json::{Value, json};

use super::*;
use crate::parse;

const FAST: Sight = Sight::Answered(Duration::from_millis(10));
const DWELL: Duration = Duration::from_secs(60);

fn begun(now: Instant) -> Canary {
    let text = "models: {m: {canary: {baseline: 1, candidate: 2, steps: [10, 50], dwell: 1m, gates: {errors: {at_most: 5}, latency: {over: 200ms, at_most: 5}}}}}";
    let snapshot = parse(text, "p.yaml").unwrap_or_else(|errors| panic!("{errors}"));
    Canary::new(*snapshot.model("m").unwrap().canary.clone().unwrap(), Beginnings::default(), now)
}

fn tell(canary: &mut Canary, is_candidate: bool, sight: Sight, now: Instant) {
    let (baseline, candidate, begun) = (Version(1), Version(2), Some(canary.begun));
    let share = canary.share();
    let (slow_over, brought) = (None, None);
    let assigned = Assignment { baseline, candidate, is_candidate, share, begun, slow_over, brought };
    canary.witness(assigned, None, sight, now);
}

/// What is kept of a rollout whose step has lasted long enough, of whose candidate so many were answered and so many failed.
fn kept(answered: u32, failed: u32) -> Value {
    let now = Instant::now();
    let mut canary = begun(now);
    (0..answered).for_each(|_| tell(&mut canary, true, FAST, now));
    (0..failed).for_each(|_| tell(&mut canary, true, Sight::Failed, now));
    serde_json::to_value(canary.progress(now + DWELL)).unwrap()
}

/// What a process makes of this file in which the candidate goes on answering, or why it does not read it.
fn judged(text: &str) -> Result<Verdict, serde_json::Error> {
    let progress: Progress = serde_json::from_str(text)?;
    let now = Instant::now() + 2 * DWELL;
    let mut canary = begun(now);
    canary.restore(&progress, now);
    tell(&mut canary, true, FAST, now);
    canary.judge(now);
    // It can be told and kept once more.
    serde_json::to_string(&canary.progress(now)).unwrap();
    let verdict = canary.news().pop().map_or(Verdict::Hold, |record| record.verdict);
    assert_eq!(canary.step > 0, verdict == Verdict::Advance);
    Ok(verdict)
}

/// The places of all numbers, and of what stands for one.
fn numbers(value: &Value, at: &str, found: &mut Vec<String>) {
    match value {
        Value::Number(_) => found.push(at.to_owned()),
        Value::Array(all) => {
            (0..).zip(all).for_each(|(index, value)| numbers(value, &format!("{at}/{index}"), found));
        }
        Value::Object(all) => {
            all.iter().for_each(|(name, value)| numbers(value, &format!("{at}/{name}"), found))
        }
        Value::Null | Value::Bool(_) | Value::String(_) => {}
    }
}

/// The file with this in the place of the numbers at these places.
fn with(kept: &Value, places: &[String], what: &str) -> String {
    let mut kept = kept.clone();
    places.iter().for_each(|place| *kept.pointer_mut(place).unwrap() = json!("in its place"));
    kept.to_string().replace("\"in its place\"", what)
}

const NO_NUMBERS: [&str; 9] =
    ["null", "NaN", "1e999", "-1e999", "\"NaN\"", "\"inf\"", "Infinity", "1e308", "-1e308"];

fn places(kept: &Value) -> Vec<String> {
    let mut places = Vec::new();
    numbers(&kept["gates"], "/gates", &mut places);
    assert!(places.iter().any(|place| place.contains("/rare/bets/")), "{places:?}");
    assert!(places.iter().any(|place| place.contains("/worse/askings/0/worse/bets/")), "{places:?}");
    places
}

#[test]
fn a_number_that_is_none_lets_no_rollout_rise_that_would_not_without_it() {
    for kept in [kept(50, 0), kept(600, 40)] {
        let before = judged(&kept.to_string()).unwrap();
        assert_ne!(before, Verdict::Advance);
        for place in places(&kept) {
            for what in NO_NUMBERS {
                let verdict = judged(&with(&kept, std::slice::from_ref(&place), what));
                assert_ne!(verdict.ok(), Some(Verdict::Advance), "{place}: {what}");
            }
        }
    }
}

#[test]
fn evidence_of_which_no_number_is_left_is_no_evidence() {
    let kept = kept(600, 0);
    assert_eq!(judged(&kept.to_string()).unwrap(), Verdict::Advance, "as long as it is whole");
    let all = places(&kept);
    for part in ["/rare/bets/", "/worse/askings/", "/worse/ended", "/worse/askings/0/stake", "/"] {
        let places: Vec<String> = all.iter().filter(|place| place.contains(part)).cloned().collect();
        assert!(!places.is_empty(), "{part}");
        for what in NO_NUMBERS {
            // Bets that have lost all are what remains of some.
            let verdict = judged(&with(&kept, &places, what));
            assert_ne!(verdict.ok(), Some(Verdict::Advance), "{part}: {what}");
        }
    }
}

#[test]
fn evidence_that_it_is_worse_does_not_turn_into_what_is_never_enough() {
    // Nothing times what is infinite is no number, and no number is never as much as is needed.
    let kept = kept(600, 0);
    let stakes = ["/gates/errors/worse/askings/0/stake".to_owned()];
    let none = with(&kept, &stakes, "0.0");
    let mut none: Value = serde_json::from_str(&none).unwrap();
    none["gates"]["errors"]["worse"]["askings"][0]["worse"]["bets"][0] = json!(1e308);
    assert_ne!(judged(&none.to_string()).unwrap(), Verdict::Advance);
    let mut owes = kept;
    owes["gates"]["errors"]["worse"]["ended"] = json!(-1e300);
    assert_ne!(judged(&owes.to_string()).unwrap(), Verdict::Advance);
}
