//! The one place where policies are swapped while requests run.
//!
//! Readers take one atomic load and keep what they got; a publisher replaces the pointer. A generation's number says
//! which policy answered a request, so it moves only if the policy did.
//!
//! What takes as long as the policy is large comes before that and changes nothing ([`Live::prepare`]), so that it can be done
//! where requests are not held up; putting it in force takes as long as there are rollouts.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use arc_swap::ArcSwap;
use compact_str::CompactString;
use serde::Serialize;

use crate::ledger::{Ledger, TalliesAhead};
use crate::ring;
use crate::snapshot::{Rings, Snapshot};
use crate::units::Millionths;

/// A snapshot with the number under which it went live.
#[derive(Debug, PartialEq, Eq)]
pub struct Generation {
    /// From 1, or from where an earlier process has ended, one more with every change.
    pub number: u64,
    /// What is decided under this number.
    pub snapshot: Snapshot,
}

/// What publishing did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published {
    /// The number of the generation that is now live.
    pub generation: u64,
    /// Whether it is a new one; equal snapshots keep their number.
    pub changed: bool,
}

/// A policy that has only to be put in force. Once it is, this holds what was in force before: whoever keeps it until requests
/// are done with that is the one who frees it.
#[derive(Debug)]
pub struct Prepared {
    before: Arc<Generation>,
    /// The same, if the policy decides exactly like that.
    next: Arc<Generation>,
    /// How far rollouts were then.
    shares: Vec<(CompactString, Millionths)>,
    tallies: TalliesAhead,
}

impl Prepared {
    /// What is decided once it is in force.
    pub fn snapshot(&self) -> &Snapshot {
        &self.next.snapshot
    }
}

/// The policies in force.
#[derive(Debug)]
pub struct Live {
    current: ArcSwap<Generation>,
    /// Held by a publisher from reading the current generation to replacing it; readers never wait for it.
    publishing: Mutex<()>,
}

impl Live {
    /// Starts with `snapshot` as generation 1.
    pub fn new(snapshot: Snapshot) -> Self {
        Self::going_on(1, snapshot)
    }

    /// Starts with `snapshot` as this generation: an earlier process had those before.
    pub fn going_on(number: u64, snapshot: Snapshot) -> Self {
        Self { current: ArcSwap::from_pointee(Generation { number, snapshot }), publishing: Mutex::new(()) }
    }

    /// The generation in force. Take it once per request and pass it on.
    pub fn load(&self) -> Arc<Generation> {
        self.current.load_full()
    }

    /// Compares `snapshot` with what is in force, and has it follow the rings of that, so that no user moves who need not.
    /// Holds no lock, and changes nothing.
    pub fn prepare(&self, snapshot: Snapshot, ledger: &Ledger, now: Instant) -> Prepared {
        let before = self.load();
        let shares = ledger.shares_of_candidates();
        let snapshot = snapshot.after(&before.snapshot, |model, policy| ledger.parts(model, policy));
        let tallies = ledger.tallies_ahead(&snapshot, now);
        let next = if snapshot == before.snapshot {
            Arc::clone(&before)
        } else {
            Arc::new(Generation { number: before.number + 1, snapshot })
        };
        Prepared { before, next, shares, tallies }
    }

    /// Puts what is prepared in force, unless it decides exactly like the current policy. Rollouts begin with it and end with
    /// it; call [`Ledger::retain`] afterwards. It is prepared once more if something else has come into force since, or
    /// a rollout has gone on.
    pub fn put_in_force(&self, prepared: &mut Prepared, ledger: &Ledger, now: Instant) -> Published {
        let _publishing = self.publishing.lock().unwrap_or_else(PoisonError::into_inner);
        let is_still = Arc::ptr_eq(&prepared.before, &self.load());
        if !is_still || prepared.shares != ledger.shares_of_candidates() {
            *prepared = self.prepare(prepared.next.snapshot.clone(), ledger, now);
        }
        let Prepared { before, next, tallies, .. } = prepared;
        let changed = !Arc::ptr_eq(before, next);
        if changed {
            ledger.begin(&next.snapshot, now);
            self.current.store(Arc::clone(next));
            ledger.roll_out_with(&next.snapshot, Some(tallies), now);
        }
        Published { generation: next.number, changed }
    }

    /// Both at once.
    pub fn publish(&self, snapshot: Snapshot, ledger: &Ledger, now: Instant) -> Published {
        self.put_in_force(&mut self.prepare(snapshot, ledger, now), ledger, now)
    }

    /// Has the policy in force, of which `same` is a copy, divide its requests as another process does that has these rings.
    /// It keeps its number: it says the same as before. By model, of those that both divide, what has come of it.
    pub fn adopt(
        &self,
        same: Snapshot,
        rings: &Rings,
        ledger: &Ledger,
        now: Instant,
    ) -> BTreeMap<String, Adopted> {
        let _publishing = self.publishing.lock().unwrap_or_else(PoisonError::into_inner);
        let current = self.load();
        let before = ledger.rings(&current.snapshot);
        let snapshot = same.follow(&before).follow(rings);
        let next = Arc::new(Generation { number: current.number, snapshot });
        self.current.store(Arc::clone(&next));
        ledger.roll_out(&next.snapshot, now);
        let after = ledger.rings(&next.snapshot);
        let both = after.0.into_iter().filter_map(|(model, now)| {
            let (then, there) = (before.0.get(&model)?, rings.0.get(&model)?);
            let moved = ring::moved(then, &now) as f64 / ring::POINTS as f64;
            Some((model, Adopted { moved_percent: moved * 100.0, agrees: now == *there }))
        });
        both.collect()
    }
}

/// What has come of a ring that another process has.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Adopted {
    /// Percent of the users, or of the requests where each draws anew, that another version answers now.
    pub moved_percent: f64,
    /// Whether everybody is now answered as there; else the shares are others.
    pub agrees: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::EndedRollouts;
    use crate::parse;

    #[test]
    fn an_unchanged_policy_keeps_its_number() {
        let live = Live::new(parse("models: {digits: {split: {weights: {1: 90, 2: 10}}}}", "a").unwrap());
        let before = live.load();
        let same =
            parse("# scaled and reordered\nmodels: {digits: {split: {weights: {2: 100, 1: 900}}}}", "b")
                .unwrap();
        assert_eq!(
            live.publish(same, &Ledger::new(), Instant::now()),
            Published { generation: 1, changed: false }
        );
        assert!(Arc::ptr_eq(&before, &live.load()));
    }

    #[test]
    fn what_did_not_change_is_not_made_anew() {
        let text = |weights: &str| {
            let model = |name: &str, weights: &str| {
                format!("{name}: {{split: {{weights: {weights}, sticky: {{header: u}}}}}}")
            };
            let same = "canary: {baseline: 1, candidate: 2, steps: [10], sticky: {header: u}}";
            parse(
                &format!(
                    "models: {{{}, {}, c: {{{same}}}}}",
                    model("a", "{1: 1, 2: 1}"),
                    model("b", weights)
                ),
                "p",
            )
            .unwrap()
        };
        let (live, ledger, now) = (Live::new(text("{1: 1, 2: 1}")), Ledger::new(), Instant::now());
        ledger.roll_out(&live.load().snapshot, now);
        let (before, tallies) = (live.load(), ledger.tallies_ahead(&live.load().snapshot, now));
        assert!(live.publish(text("{1: 1, 2: 3}"), &ledger, now).changed);
        let after = live.load();
        let is_shared =
            |model: &str| Arc::ptr_eq(&before.snapshot.models[model], &after.snapshot.models[model]);
        assert_eq!(["a", "b", "c"].map(is_shared), [true, false, true]);
        let goes_on = |model| tallies.goes_on(&ledger.tallies_ahead(&after.snapshot, now), model);
        assert_eq!(["a", "b", "c"].map(goes_on), [true, false, true]);
        assert_eq!(ledger.rings(&after.snapshot).0["a"], ledger.rings(&before.snapshot).0["a"]);
    }

    #[test]
    fn what_was_prepared_for_another_moment_is_prepared_once_more() {
        let parsed = |text: &str| parse(text, "p").unwrap();
        let canary =
            "models: {m: {canary: {baseline: 1, candidate: 2, steps: [10, 50], sticky: {header: u}}}}";
        let split = "models: {m: {split: {weights: {1: 10, 2: 50, 3: 40}, sticky: {header: u}}}}";
        let (live, ledger, now) = (Live::new(parsed(canary)), Ledger::new(), Instant::now());
        ledger.roll_out(&live.load().snapshot, now);
        let mut early = live.prepare(parsed(split), &ledger, now);
        let further = Ledger::new();
        further.roll_out(&parsed(&canary.replace("[10, 50]", "[50]")), now);
        ledger.go_on(&live.load().snapshot, (&further.progress(now), EndedRollouts::default()), now);
        let on = |ledger: &Ledger| ledger.rings(&live.load().snapshot).0["m"].clone();
        let halves = on(&ledger);
        assert_eq!(halves, [(0, crate::Version(1)), (1 << 63, crate::Version(2))]);
        assert!(live.put_in_force(&mut early, &ledger, now).changed);
        let moved = ring::moved(&halves, &on(&ledger)) as f64 / ring::POINTS as f64;
        assert!((moved - 0.4).abs() < 1e-9, "{moved}; version 3 takes from version 1 alone");
        let mut late = live.prepare(parsed(split), &ledger, now);
        live.publish(parsed(canary), &ledger, now);
        assert_eq!(
            live.put_in_force(&mut late, &ledger, now),
            Published { generation: 4, changed: true },
            "it was in force when it was prepared, and is no more"
        );
        assert!(ledger.rollouts().is_empty());
    }

    /// One has come to its policy on the way over another, one has begun with it.
    #[test]
    fn a_process_divides_as_another_does_once_it_has_its_rings() {
        let split = |weights: &str| {
            parse(&format!("models: {{m: {{split: {{weights: {weights}, sticky: {{header: u}}}}}}, other: {{split: {{weights: {{1: 1, 2: 1}}}}}}}}"), "a").unwrap()
        };
        let (ledger, now) = (Ledger::new(), Instant::now());
        let (long, fresh) = (Live::new(split("{1: 90, 2: 10}")), Live::new(split("{1: 60, 2: 10, 3: 30}")));
        long.publish(split("{1: 60, 2: 10, 3: 30}"), &ledger, now);
        let users: Vec<_> = (0..1000).map(|user| user.to_string()).collect();
        let of = |live: &Live| -> Vec<_> {
            let snapshot = &live.load().snapshot;
            let pick = |user: &String| ledger.pick(snapshot, "m", &[("u", user.as_str())], 0, |_| true);
            users.iter().map(|user| pick(user).unwrap().version).collect()
        };
        assert_ne!(of(&long), of(&fresh));
        let text = serde_json::to_string(&ledger.rings(&long.load().snapshot)).unwrap();
        let rings: Rings = serde_json::from_str(&text).unwrap();
        let adopted = fresh.adopt(split("{1: 60, 2: 10, 3: 30}"), &rings, &ledger, now);
        assert_eq!(of(&long), of(&fresh));
        assert!(adopted["m"].agrees && adopted["m"].moved_percent > 1.0, "{adopted:?}");
        assert_eq!(adopted["other"], Adopted { moved_percent: 0.0, agrees: true });
        assert_eq!(fresh.load().number, 1);
        let again = fresh.adopt(split("{1: 60, 2: 10, 3: 30}"), &rings, &ledger, now);
        assert_eq!(again["m"], Adopted { moved_percent: 0.0, agrees: true });
        let elsewhere = Live::new(split("{1: 50, 2: 50}"));
        assert!(!elsewhere.adopt(split("{1: 50, 2: 50}"), &rings, &ledger, now)["m"].agrees);
    }

    #[test]
    fn a_request_keeps_the_generation_it_loaded() {
        let live = Live::new(Snapshot::default());
        let pinned = live.load();
        let next = parse("models: {digits: {deadline: 2s}}", "a").unwrap();
        assert_eq!(
            live.publish(next, &Ledger::new(), Instant::now()),
            Published { generation: 2, changed: true }
        );
        assert_eq!((pinned.number, live.load().number), (1, 2));
        assert!(pinned.snapshot.model("digits").is_none());
    }

    /// Whoever loads the new policy at once, while nobody has done anything else, must find it at work.
    #[test]
    fn a_rollout_has_begun_when_its_policy_is_in_force() {
        let parsed = |text: &str| parse(text, "a").unwrap();
        let split = "models: {digits: {split: {weights: {1: 90, 2: 10}, sticky: {header: user}}}}";
        let canary = "models: {digits: {canary: {baseline: 1, candidate: 2, steps: [10], dwell: 1h, sticky: {header: user}}}}";
        let (ledger, live, now) = (Ledger::new(), Live::new(parsed(split)), Instant::now());
        let version = |snapshot: &Snapshot, user: &str| {
            ledger.pick(snapshot, "digits", &[("user", user)], 0, |_| true).unwrap().version
        };
        let users: Vec<_> = (0..500).map(|user| user.to_string()).collect();
        let before: Vec<_> = users.iter().map(|user| version(&live.load().snapshot, user)).collect();
        let next = parsed(canary).follow(&ledger.rings(&live.load().snapshot));
        ledger.begin(&next, now);
        let after: Vec<_> = users.iter().map(|user| version(&next, user)).collect();
        assert_eq!(before, after, "before `roll_out` has ended what is gone");
    }
}
