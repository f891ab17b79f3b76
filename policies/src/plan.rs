//! What would change if one policy took another's place: what `penstock plan` prints before anything is applied.
//!
//! A model's answers are a ring of all 64-bit numbers cut between versions (see `pick.rs`). Two policies cut it in two
//! ways, and a user moves if the versions at its point differ; how many do is the length of those parts, exactly. Where
//! every request draws anew there are no users to move, and what counts is by how much the shares differ. How many users
//! rules decide about, and how many bring no key, the policies do not say: where these differ, the number is told to leave
//! them out.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fmt;

use serde::Serialize;

use crate::attribute::{Attribute, Condition};
use crate::canary::{Phase, step_of};
use crate::ledger::Ledger;
use crate::missing::{Known, missing_lines, missing_models};
use crate::pick::Stickiness;
use crate::ring::{self, Parts};
use crate::snapshot::{ModelPolicy, Snapshot};
use crate::units::{ALL, Millionths, Version, percent};

/// The differences between two policies.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Plan {
    /// By name of the model or limit, in order: models first, what concerns all of them last.
    pub changes: Vec<Change>,
}

/// What is different about one model or limit.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Change {
    /// `model digits`, `limit per-user` or `overload`.
    pub of: String,
    /// What will not be so any more, in words.
    pub removed: Vec<String>,
    /// What will be so.
    pub added: Vec<String>,
    /// Percent of the users, or of the requests where each draws anew, that another version will answer; `None` where
    /// the policy leaves it open who answers.
    pub moved_percent: Option<f64>,
    /// What has changed as well and is not in that number, by its name in the policy.
    pub besides: Vec<&'static str>,
    /// What becomes of breakers, limits and rollouts.
    pub state: Vec<String>,
}

impl Ledger {
    /// What would change if `new`, which follows it, took the place of `old`, which is in force. A candidate of a rollout
    /// that is not ready gets nothing.
    pub fn plan(&self, old: &Snapshot, new: &Snapshot, known: &impl Known) -> Plan {
        let names: BTreeMap<&str, ()> =
            old.models().chain(new.models()).map(|(name, _)| (name, ())).collect();
        let models = names.into_keys().filter_map(|name| {
            let (before, after) = (old.model(name), new.model(name));
            if before == after {
                return None;
            }
            let lines =
                |policy: Option<&ModelPolicy>| policy.map(|policy| policy.lines()).unwrap_or_default();
            let (removed, added) = apart(&lines(before), &lines(after));
            let is_ready = |policy: Option<&ModelPolicy>, version: Version| {
                policy.is_some_and(|policy| policy.remotes.contains_key(&version))
                    || known.is_ready(name, version)
            };
            let rings = (
                self.ring(name, before, None, |version| is_ready(before, version)),
                self.ring(name, after, before, |version| is_ready(after, version)),
            );
            let (moved_percent, besides) = match rings {
                (Some(one), Some(other)) => (Some(one.moved(&other) * 100.0), besides(before, after)),
                _ => (None, Vec::new()),
            };
            let mut state = Vec::new();
            if !old.breaker(name).counts_like(&new.breaker(name)) {
                state.push("its breakers start afresh".into());
            }
            state.extend(other_servers(before, after));
            state.extend(self.fate_of_rollout(name, before, after));
            let [old_canary, new_canary] =
                [before, after].map(|policy| policy.and_then(|policy| policy.canary.as_deref()));
            let share = new_canary.map_or(0, |new| self.share(name, new, old_canary));
            state.extend(after.into_iter().flat_map(|policy| missing_lines(name, policy, share, known)));
            Some(Change { of: format!("model {name}"), removed, added, moved_percent, besides, state })
        });
        let (before, after) = (old.limit_lines(), new.limit_lines());
        let names: BTreeMap<&String, ()> = before.keys().chain(after.keys()).map(|name| (name, ())).collect();
        let limits = names.into_keys().filter(|name| before.get(*name) != after.get(*name)).map(|name| {
            let lines = |lines: &BTreeMap<String, String>| lines.get(name).cloned().into_iter().collect();
            let starts = before.contains_key(name) && after.contains_key(name);
            let afresh = starts.then(|| "it starts afresh: what was spent is forgotten".to_owned());
            let state = afresh.into_iter().chain(missing_models(name, new, known));
            Change {
                of: format!("limit {name}"),
                removed: lines(&before),
                added: lines(&after),
                moved_percent: None,
                besides: Vec::new(),
                state: state.collect(),
            }
        });
        let overload = || {
            let (removed, added) = apart(&old.overload_lines(), &new.overload_lines());
            let (moved_percent, besides, state) = (None, Vec::new(), Vec::new());
            Change { of: "overload".into(), removed, added, moved_percent, besides, state }
        };
        let overload = (old.overload != new.overload).then(overload);
        Plan { changes: models.chain(limits).chain(overload).collect() }
    }

    fn fate_of_rollout(
        &self,
        model: &str,
        before: Option<&ModelPolicy>,
        after: Option<&ModelPolicy>,
    ) -> Option<String> {
        let (before, after) = (
            before.and_then(|policy| policy.canary.as_deref()),
            after.and_then(|policy| policy.canary.as_deref()),
        );
        match (before, after) {
            (None, None) => None,
            (Some(old), None) => Some(format!("the rollout of version {} ends", old.candidate.version)),
            (before, Some(new)) => {
                let version = new.candidate.version;
                if let Some(phase) = self.left_as(model, new) {
                    let at = percent(self.share(model, new, before));
                    let how = match phase {
                        Phase::RolledBack => {
                            format!("stays rolled back: `penstock canary resume {model}` begins it again")
                        }
                        Phase::Promoted => "stays promoted".to_owned(),
                        Phase::Paused => {
                            format!(
                                "stays paused at {at} %: with `penstock canary resume {model}` it goes on"
                            )
                        }
                        Phase::Running => {
                            format!("goes on at {at} %, where it was, and its step begins anew")
                        }
                    };
                    return Some(format!("the rollout of version {version} {how}"));
                }
                let is_another = before.is_some_and(|old| old.is_asked_elsewhere(new));
                let share = self.share(model, new, before);
                if is_another {
                    let at = percent(share);
                    let how = if share == 0 {
                        format!(
                            "stays rolled back, whichever server answers it: `penstock canary resume {model}` begins it again"
                        )
                    } else {
                        format!("begins at {at} %: another server answers it")
                    };
                    return Some(format!("the rollout of version {version} {how}"));
                }
                let same = before.filter(|old| old.versions_of_arms() == new.versions_of_arms());
                let does = if same.is_some() { "goes on" } else { "begins" };
                let is_decided = share == 0 || share == ALL;
                let anew = same.filter(|_| !is_decided).map_or_else(String::new, |old| old.found_anew(new));
                Some(format!("the rollout of version {version} {does} at {} %{anew}", percent(share)))
            }
        }
    }

    fn ring(
        &self,
        model: &str,
        policy: Option<&ModelPolicy>,
        before: Option<&ModelPolicy>,
        is_ready: impl Fn(Version) -> bool,
    ) -> Option<Ring> {
        let policy = policy?;
        if let Some(canary) = &policy.canary {
            let share = if is_ready(canary.candidate.version) {
                self.share(model, canary, before.and_then(|policy| policy.canary.as_deref()))
            } else {
                0
            };
            let key = canary.stickiness.as_ref().map(|sticky| sticky.key.clone());
            return Some(Ring { key, parts: canary.parts(share) });
        }
        let split = policy.split.as_ref()?;
        Some(Ring { key: split.stickiness().map(|sticky| sticky.key.clone()), parts: split.parts() })
    }
}

/// What decides about some users before the ring does, or in its place, and is not the same.
fn besides(before: Option<&ModelPolicy>, after: Option<&ModelPolicy>) -> Vec<&'static str> {
    // Under which label a version answers moves nobody.
    fn rules(policy: Option<&ModelPolicy>) -> impl Iterator<Item = (&Condition, Version)> {
        let rules = policy.into_iter().flat_map(|policy| &policy.rules);
        rules.map(|rule| (&rule.when, rule.target.version))
    }
    let without_key = |policy: Option<&ModelPolicy>| {
        let canary = policy?.canary.as_deref().and_then(|canary| canary.stickiness.as_ref());
        let split = || policy?.split.as_ref()?.stickiness();
        canary.or_else(split).and_then(Stickiness::fallback)
    };
    let mut besides = Vec::new();
    if rules(before).ne(rules(after)) {
        besides.push("rules");
    }
    if without_key(before) != without_key(after) {
        besides.push("without_key");
    }
    besides
}

/// Who answers at which point.
#[derive(Debug)]
struct Ring {
    /// What identifies a user; `None` where each request draws anew.
    key: Option<Attribute>,
    parts: Parts,
}

impl Ring {
    /// The part of all users, or requests, that get another version.
    fn moved(&self, other: &Self) -> f64 {
        let share = |points: u128| points as f64 / ring::POINTS as f64;
        let (before, after) = (ring::lengths_of(&self.parts), ring::lengths_of(&other.parts));
        let then = |version| after.get(version).copied().unwrap_or(0);
        match (&self.key, &other.key) {
            (Some(one), Some(other_key)) if one == other_key => share(ring::moved(&self.parts, &other.parts)),
            (None, None) => {
                share(before.iter().map(|(version, had)| had.saturating_sub(then(version))).sum())
            }
            // Users find other points: who stays does so by chance.
            _ => 1.0 - before.iter().map(|(version, had)| share(*had) * share(then(version))).sum::<f64>(),
        }
    }
}

/// Lines that are to go and lines that come, so that the one becomes the other: where only the order is another, the fewest
/// that must move.
fn apart(before: &[String], after: &[String]) -> (Vec<String>, Vec<String>) {
    let mut places: HashMap<&str, VecDeque<usize>> = HashMap::new();
    for (place, line) in after.iter().enumerate() {
        places.entry(line).or_default().push_back(place);
    }
    // The first of equal lines is the first of them there, and so on.
    let place_of = |line: &String| places.get_mut(line.as_str())?.pop_front();
    let there: Vec<Option<usize>> = before.iter().map(place_of).collect();
    let stay = longest_rising(&there);
    let kept_there: BTreeSet<usize> = stay.iter().filter_map(|place| there[*place]).collect();
    let but = |lines: &[String], stay: &BTreeSet<usize>| -> Vec<String> {
        let others = lines.iter().enumerate().filter(|(place, _)| !stay.contains(place));
        others.map(|(_, line)| line.clone()).collect()
    };
    (but(before, &stay), but(after, &kept_there))
}

/// Places of the most numbers that rise from one to the next, by patience sorting.
fn longest_rising(numbers: &[Option<usize>]) -> BTreeSet<usize> {
    // Of each length, the place of the smallest number with which so many may end; and of each place the one before it.
    let (mut ends, mut befores) = (Vec::<usize>::new(), vec![None; numbers.len()]);
    for (place, number) in numbers.iter().enumerate() {
        if number.is_none() {
            continue;
        }
        let length = ends.partition_point(|end| numbers[*end] < *number);
        befores[place] = length.checked_sub(1).map(|shorter| ends[shorter]);
        match ends.get_mut(length) {
            Some(end) => *end = place,
            None => ends.push(place),
        }
    }
    std::iter::successors(ends.last().copied(), |place| befores[*place]).collect()
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.changes.is_empty() {
            return writeln!(f, "nothing changes");
        }
        for Change { of, removed, added, moved_percent, besides, state } in &self.changes {
            writeln!(f, "{of}")?;
            removed.iter().try_for_each(|line| writeln!(f, "  - {line}"))?;
            added.iter().try_for_each(|line| writeln!(f, "  + {line}"))?;
            match moved_percent {
                Some(moved) if besides.is_empty() => {
                    writeln!(f, "  {moved:.4} % are answered by another version")?
                }
                Some(moved) => {
                    let besides = besides.join(" and ");
                    writeln!(
                        f,
                        "  {moved:.4} % are answered by another version, besides {besides}, which changed"
                    )?
                }
                None if of.starts_with("model") => {
                    writeln!(f, "  who answers depends on which versions are ready")?
                }
                None => {}
            }
            state.iter().try_for_each(|line| writeln!(f, "  {line}"))?;
        }
        writeln!(f, "breakers, limits and rollouts that are not named go on as they are")
    }
}

/// Of versions that another server answers than before, or one in place of the engine here or the other way round.
fn other_servers(before: Option<&ModelPolicy>, after: Option<&ModelPolicy>) -> Vec<String> {
    let (Some(before), Some(after)) = (before, after) else { return Vec::new() };
    let versions: BTreeSet<_> = before.remotes.keys().chain(after.remotes.keys()).collect();
    let is_another = |version: &&Version| before.remotes.get(version) != after.remotes.get(version);
    let afresh = |version| format!("the breaker of version {version} starts afresh: another server is asked");
    versions.into_iter().filter(is_another).map(afresh).collect()
}

/// The candidate's share once a rollout follows this policy.
pub(crate) fn share_after(now: Option<Millionths>, steps: &[Millionths]) -> Millionths {
    match now {
        // Decided: nobody, or everybody.
        Some(share @ (0 | ALL)) => share,
        Some(share) => steps[step_of(share, steps)],
        None => steps[0],
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::canary::Command;
    use crate::parse;
    use std::time::Instant;

    /// Whatever a policy names.
    pub(crate) struct All;

    impl Known for All {
        fn is_ready(&self, _: &str, _: Version) -> bool {
            true
        }

        fn has(&self, _: &str) -> bool {
            true
        }

        fn inputs(&self, _: &str) -> Option<BTreeSet<String>> {
            None
        }

        fn outputs(&self, _: &str) -> Option<BTreeSet<String>> {
            None
        }
    }

    /// The first version of each model.
    struct First;

    impl Known for First {
        fn is_ready(&self, _: &str, version: Version) -> bool {
            version == Version(1)
        }

        fn has(&self, _: &str) -> bool {
            true
        }

        fn inputs(&self, _: &str) -> Option<BTreeSet<String>> {
            None
        }

        fn outputs(&self, _: &str) -> Option<BTreeSet<String>> {
            None
        }
    }

    fn plan(before: &str, after: &str) -> Plan {
        let policy = |text| parse(text, "p").unwrap_or_else(|errors| panic!("{errors}"));
        let before = policy(before);
        let ledger = Ledger::new();
        let after = policy(after).follow(&ledger.rings(&before));
        ledger.plan(&before, &after, &All)
    }

    fn moved(before: &str, after: &str) -> f64 {
        let model = |split: &str| format!("models: {{m: {{{split}}}}}");
        let moved = plan(&model(before), &model(after)).changes[0].moved_percent.unwrap();
        (moved * 1e6).round() / 1e6
    }

    #[test]
    fn it_counts_who_moves_to_the_point() {
        let by_user = |weights: &str| format!("split: {{weights: {weights}, sticky: {{header: u}}}}");
        assert_eq!(moved(&by_user("{1: 90, 2: 10}"), &by_user("{1: 75, 2: 25}")), 15.0);
        assert_eq!(
            moved("split: {weights: {1: 90, 2: 10}}", "split: {weights: {1: 80, 2: 10, 3: 10}}"),
            10.0
        );
        assert_eq!(moved(&by_user("{1: 90, 2: 10}"), &by_user("{1: 80, 2: 10, 3: 10}")), 10.0);
        let other = "split: {weights: {1: 50, 2: 50}, sticky: {cookie: u}}";
        assert_eq!(moved(&by_user("{1: 50, 2: 50}"), other), 50.0, "who stays does so by chance");
        let canary = "canary: {baseline: 1, candidate: 2, steps: [10], sticky: {header: u}}";
        assert_eq!(moved(&by_user("{1: 90, 2: 10}"), canary), 0.0, "the same tenth");
        let other_way_round = "canary: {baseline: 2, candidate: 1, steps: [10], sticky: {header: u}}";
        assert_eq!(moved(&by_user("{1: 10, 2: 90}"), other_way_round), 0.0, "wherever it lies");
    }

    #[test]
    fn it_says_what_changes_and_what_is_forgotten() {
        let before = "
models: {m: {split: {weights: {1: 90, 2: 10}}}, same: {deadline: 1s}}
limits: [{name: users, key: {header: u}, rate: 5/s}, {name: old, rate: 1/s}]";
        let after = "
models: {m: {split: {weights: {1: 50, 2: 50}}, breaker: {failures: 9}}, same: {deadline: 1s}}
limits: [{name: users, key: {header: u}, rate: 7/s}]";
        let plan = plan(before, after);
        assert_eq!(plan.changes.len(), 3);
        let text = plan.to_string();
        for part in [
            "model m\n  - 90 % go to version 1\n",
            "  + 50 % go to version 1\n",
            "  40.0000 % are answered by another version\n  its breakers start afresh\n",
            "limit old\n  - 1/s",
            "limit users\n",
            "  it starts afresh: what was spent is forgotten\n",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
        assert!(!text.contains("same"), "{text}");
        let deadline = super::tests::plan("models: {m: {deadline: 1s}}", "models: {m: {deadline: 2s}}");
        assert_eq!(
            deadline.changes[0].state,
            Vec::<String>::new(),
            "breakers go on, and probes get its time"
        );
        assert_eq!(super::tests::plan(before, before).to_string(), "nothing changes\n");
    }

    #[test]
    fn a_rollout_goes_on_under_other_steps_and_begins_for_another_candidate() {
        let policy = |candidate: u64, steps: &str| {
            let text =
                format!("models: {{m: {{canary: {{baseline: 1, candidate: {candidate}, steps: {steps}}}}}}}");
            parse(&text, "p").unwrap()
        };
        let (ledger, now) = (Ledger::new(), Instant::now());
        let running = policy(2, "[5, 50]");
        ledger.roll_out(&running, now);
        let state = |new: &Snapshot| ledger.plan(&running, new, &All).changes[0].state.join(", ");
        assert_eq!(state(&policy(2, "[1, 4, 60]")), "the rollout of version 2 goes on at 4 %");
        assert_eq!(state(&policy(3, "[1, 4]")), "the rollout of version 3 begins at 1 %");
        assert_eq!(state(&Snapshot::default()), "the rollout of version 2 ends");
        ledger.command("m", Command::Promote, "", now).unwrap();
        assert_eq!(state(&policy(2, "[1, 4]")), "the rollout of version 2 goes on at 100 %");
    }

    #[test]
    fn what_the_number_leaves_out_is_said() {
        let policy = |rules: &str, without_key: &str| {
            format!(
                "models: {{m: {{labels: {{b: 2}}, rules: [{rules}], split: {{weights: {{1: 1, 2: 1}}, sticky: {{header: u}}, \
                 without_key: {without_key}}}}}}}"
            )
        };
        let (beta, staff) =
            ("{when: {header: c, equals: beta}, use: 2}", "{when: {header: staff, present: true}, use: 1}");
        let both = policy(&format!("{beta}, {staff}"), "1");
        let text = plan(&policy(beta, "1"), &both).to_string();
        assert!(
            text.contains("  0.0000 % are answered by another version, besides rules, which changed\n"),
            "{text}"
        );
        let swapped = plan(&both, &policy(&format!("{staff}, {beta}"), "2")).to_string();
        let (beta, staff) = ("if header c is `beta`, version 2", "if header staff is present, version 1");
        for part in [
            &format!("model m\n  - {beta} answers\n"),
            &format!("  + {beta} answers\n"),
            "besides rules and without_key, which changed",
        ] {
            assert!(swapped.contains(part), "{part}\n{swapped}");
        }
        assert!(!swapped.contains(staff), "{swapped}");
        let renamed = both.replace("b: 2", "c: 2");
        assert!(plan(&both, &renamed).changes.iter().all(|change| change.besides.is_empty()));
    }

    #[test]
    fn a_candidate_that_is_not_ready_gets_nothing_yet() {
        let policy = |text: &str| parse(&format!("models: {{m: {{{text}}}}}"), "p").unwrap();
        let split = policy("split: {weights: {1: 90, 2: 10}, sticky: {header: u}}");
        let canary = policy("canary: {baseline: 1, candidate: 2, steps: [10], sticky: {header: u}}");
        let plan = Ledger::new().plan(&split, &canary, &First);
        let moved = plan.changes[0].moved_percent.unwrap();
        assert_eq!((moved * 1e6).round() / 1e6, 10.0, "until it is there");
        assert_eq!(
            plan.changes[0].state.last().unwrap(),
            "version 2 is not ready: until it is, version 1 answers for it"
        );
        let remote = policy("remote: {2: {url: 'http://there/infer'}}, split: {weights: {1: 1}}");
        let canary = policy(
            "remote: {2: {url: 'http://there/infer'}}, canary: {baseline: 1, candidate: 2, steps: [10]}",
        );
        let plan = Ledger::new().plan(&remote, &canary, &First);
        assert_eq!(plan.changes[0].moved_percent, Some(10.0), "another server is asked at once");
        let bare = policy("canary: {baseline: 1, candidate: 2, steps: [10]}");
        for (before, after) in [(&bare, &canary), (&canary, &bare)] {
            let plan = Ledger::new().plan(before, after, &First);
            assert_eq!(plan.changes[0].moved_percent, Some(10.0), "it comes or goes with its server");
        }
    }

    #[test]
    fn what_a_shadow_compares_is_seen() {
        let shadow = |more: &str| format!("models: {{m: {{shadow: {{version: 2{more}}}}}}}");
        let text =
            plan(&shadow(""), &shadow(", deadline: 1s, compare: {relative: 0.5, argmax: [y]}")).to_string();
        let expected = "model m
  - its numbers may differ by 0.0001 and by 0.0001 times the larger one
  + a copy has 1s
  + its numbers may differ by 0.0001 and by 0.5 times the larger one
  + of its output y only the place of the largest number counts
";
        assert!(text.starts_with(expected), "{text}");
    }

    #[test]
    fn of_lines_in_another_order_the_fewest_move() {
        let lines = |text: &str| text.chars().map(String::from).collect::<Vec<_>>();
        let check = |before: &str, after: &str, removed: &str, added: &str| {
            assert_eq!(
                apart(&lines(before), &lines(after)),
                (lines(removed), lines(added)),
                "{before} {after}"
            );
        };
        check("abc", "abc", "", "");
        check("abcd", "bcda", "a", "a");
        check("abc", "axc", "b", "x");
        check("aab", "ab", "a", "");
        check("", "ab", "", "ab");
    }
}
