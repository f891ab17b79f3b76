//! Whether traffic may come, and if not, why. Ready means that whoever is sent here gets an answer: the engine is
//! there, its versions have come up or failed, and every version that the policy sends users to answers.

use crate::directory::{Directory, Models};
use crate::drain::Drain;
use crate::refusal::Refusal;
use crate::route::Target;
use policies::{Ledger, Live, Snapshot, Version};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Asked by both ports.
#[derive(Clone, Debug)]
pub struct Readiness {
    /// A stopping process is not ready.
    pub drain: Arc<Drain>,
    /// What the engine has.
    pub directory: Arc<Directory>,
    /// Whom the policy sends where.
    pub live: Arc<Live>,
    /// How far rollouts are.
    pub ledger: Arc<Ledger>,
}

/// How one version stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VersionReadiness {
    /// Whether it answers. Whether another server is well, its breaker finds out.
    pub is_ready: bool,
    /// Whether the policy sends it requests, be it in place of a version that fails, or copies of them.
    pub is_named: bool,
}

impl Readiness {
    /// Of the whole server; the error says in one line what it lacks.
    pub fn server(&self) -> Result<(), String> {
        let models = self.open()?;
        // What is loaded later is no reason: the others answer.
        if !models.settled
            && let Some(entry) = models.loading().next()
        {
            return Err(format!("version {} of model `{}` is being loaded", entry.version, entry.name));
        }
        let generation = self.live.load();
        let snapshot = &generation.snapshot;
        snapshot.models().try_for_each(|(name, _)| self.model(&models, snapshot, name))
    }

    /// Of a model, or of one of its versions. A model that the engine does not know is a refusal.
    pub fn target(&self, target: Target<'_>) -> Result<Result<(), String>, Refusal> {
        let models = match self.open() {
            Ok(models) => models,
            Err(reason) => return Ok(Err(reason)),
        };
        let generation = self.live.load();
        let snapshot = &generation.snapshot;
        if target.pinned.is_some_and(|number| snapshot.remote(target.model, Version(number)).is_some()) {
            return Ok(Ok(()));
        }
        if snapshot.model(target.model).is_none_or(|policy| !policy.has_remotes()) || target.pinned.is_some()
        {
            models.find(target)?;
        }
        Ok(match target.pinned {
            Some(number) => version(&models, target.model, number),
            None => self.model(&models, snapshot, target.model),
        })
    }

    /// Of every version that the engine has or the policy names, by model and number.
    pub fn versions(&self) -> BTreeMap<(String, u64), VersionReadiness> {
        let (models, generation) = (self.directory.load(), self.live.load());
        let snapshot = &generation.snapshot;
        let is_ready = |name: &str, number: Version| {
            snapshot.remote(name, number).is_some() || models.is_ready(name, number.0)
        };
        let found = models.entries().map(|entry| {
            (
                (entry.name.clone(), entry.version),
                VersionReadiness { is_ready: is_ready(&entry.name, Version(entry.version)), is_named: false },
            )
        });
        let mut all: BTreeMap<_, _> = found.collect();
        for (name, policy) in snapshot.models() {
            let needed = self.ledger.needed(snapshot, name, |number| is_ready(name, number)).into_iter();
            let shares = self.ledger.shares(snapshot, name).into_iter();
            let divided = shares.filter(|share| share.percent > 0.0).map(|share| share.version);
            let others = policy.shadow().map(|shadow| shadow.version()).into_iter().chain(policy.fallback());
            let named: BTreeSet<Version> = needed.chain(divided).chain(others).collect();
            for number in policy.mentioned() {
                let (is_ready, is_named) = (is_ready(name, number), named.contains(&number));
                all.insert((name.to_owned(), number.0), VersionReadiness { is_ready, is_named });
            }
        }
        all
    }

    /// Every model, and every version of it, that the engine has or the policy names.
    pub(crate) fn names(&self) -> BTreeMap<String, BTreeSet<u64>> {
        let (models, generation) = (self.directory.load(), self.live.load());
        let mut names: BTreeMap<String, BTreeSet<u64>> = BTreeMap::new();
        for entry in models.entries() {
            names.entry(entry.name.clone()).or_default().insert(entry.version);
        }
        for (model, policy) in generation.snapshot.models() {
            let mentioned = policy.mentioned().into_iter().map(|number| number.0);
            names.entry(model.to_owned()).or_default().extend(mentioned);
        }
        names
    }

    /// A model is ready when every version to which its policy sends somebody answers, and the highest ready one where it
    /// names none.
    fn model(&self, models: &Models, snapshot: &Snapshot, name: &str) -> Result<(), String> {
        // Whether another server is well, its breaker finds out.
        let is_remote = |number: Version| snapshot.remote(name, number).is_some();
        let is_ready = |number: Version| is_remote(number) || models.is_ready(name, number.0);
        let needed = self.ledger.needed(snapshot, name, is_ready);
        if !needed.is_empty() {
            let mut here = needed.into_iter().filter(|number| !is_remote(*number));
            return here.try_for_each(|number| version(models, name, number.0));
        }
        models.highest_ready(name).map(|_| ()).ok_or_else(|| format!("no version of model `{name}` is ready"))
    }

    fn open(&self) -> Result<Arc<Models>, String> {
        let models = self.directory.load();
        if self.drain.has_begun() {
            Err("stopping".into())
        } else if models.connected {
            Ok(models)
        } else {
            Err("the engine is not connected".into())
        }
    }
}

fn version(models: &Models, name: &str, number: u64) -> Result<(), String> {
    if models.is_ready(name, number) {
        return Ok(());
    }
    let reason = models.entry(name, number).map_or("there is none", |entry| entry.reason.as_str());
    let colon = if reason.is_empty() { "" } else { ": " };
    Err(format!("version {number} of model `{name}` is not ready{colon}{reason}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::{Index, ModelEntry, ModelState};

    fn readiness(policy: &str, versions: &[(u64, ModelState)]) -> Readiness {
        let snapshot = policies::parse(policy, "policies.yaml").unwrap();
        let directory = Directory::default();
        let entry = |(version, state): &(u64, ModelState)| ModelEntry {
            name: "m".into(),
            version: *version,
            state: *state as i32,
            ..ModelEntry::default()
        };
        directory.publish(Index { models: versions.iter().map(entry).collect(), ..Index::default() });
        Readiness {
            drain: Arc::default(),
            directory: Arc::new(directory),
            live: Arc::new(Live::new(snapshot)),
            ledger: Arc::default(),
        }
    }

    const BOTH: &str = "models: {m: {split: {weights: {1: 90, 2: 10}}}}";

    #[test]
    fn every_version_that_users_are_sent_to_must_answer() {
        assert_eq!(readiness(BOTH, &[(1, ModelState::Ready), (2, ModelState::Ready)]).server(), Ok(()));
        let one = readiness(BOTH, &[(1, ModelState::Ready)]);
        assert_eq!(one.server(), Err("version 2 of model `m` is not ready: there is none".into()));
        assert_eq!(one.target(Target { model: "m", pinned: Some(1) }), Ok(Ok(())));
        assert!(one.target(Target { model: "m", pinned: None }).unwrap().is_err());
        assert!(one.target(Target { model: "other", pinned: None }).is_err());
    }

    #[test]
    fn after_a_promotion_the_old_version_is_needed_no_more() {
        let canary = "models: {m: {canary: {baseline: 1, candidate: 2}}}";
        let old = readiness(canary, &[(1, ModelState::Ready)]);
        let new = readiness(canary, &[(2, ModelState::Ready)]);
        for readiness in [&old, &new] {
            readiness.ledger.roll_out(&readiness.live.load().snapshot, std::time::Instant::now());
        }
        assert_eq!(old.server(), Ok(()), "a candidate that is not there gets nothing");
        assert!(new.server().is_err());
        for readiness in [&old, &new] {
            readiness.ledger.command("m", policies::Command::Promote, "", std::time::Instant::now()).unwrap();
        }
        assert_eq!(new.server(), Ok(()));
        assert_eq!(old.server(), Ok(()), "while the candidate is not there the old one answers");
    }

    #[test]
    fn a_promotion_changes_nothing_for_those_whom_the_policy_sends_to_the_old_version() {
        for fixed in [
            "rules: [{when: {header: old, present: true}, use: 1}], canary: {baseline: 1, candidate: 2}",
            "canary: {baseline: 1, candidate: 2, sticky: {header: u}, without_key: '1'}",
        ] {
            let readiness = readiness(&format!("models: {{m: {{{fixed}}}}}"), &[(2, ModelState::Ready)]);
            let now = std::time::Instant::now();
            readiness.ledger.roll_out(&readiness.live.load().snapshot, now);
            readiness.ledger.command("m", policies::Command::Promote, "", now).unwrap();
            assert!(readiness.server().is_err(), "{fixed}");
        }
    }

    #[test]
    fn a_policy_without_a_split_needs_one_version() {
        let policy = "models: {m: {deadline: 1s}}";
        assert_eq!(readiness(policy, &[(1, ModelState::Ready)]).server(), Ok(()));
        assert!(readiness(policy, &[(1, ModelState::Unavailable)]).server().is_err());
    }

    #[test]
    fn a_version_that_failed_does_not_hold_up_the_others_but_a_loading_one_does() {
        let policy = "models: {}";
        assert_eq!(
            readiness(policy, &[(1, ModelState::Ready), (2, ModelState::Unavailable)]).server(),
            Ok(())
        );
        let loading = readiness(policy, &[(1, ModelState::Ready), (2, ModelState::Loading)]);
        assert_eq!(loading.server(), Err("version 2 of model `m` is being loaded".into()));
        let ready = readiness(policy, &[(1, ModelState::Ready)]);
        let entry = |version, state: ModelState| ModelEntry {
            name: "m".into(),
            version,
            state: state as i32,
            ..ModelEntry::default()
        };
        let later = vec![entry(1, ModelState::Ready), entry(2, ModelState::Loading)];
        ready.directory.publish(Index { models: later, revision: 2 });
        assert_eq!(ready.server(), Ok(()), "what is loaded later holds up nobody");
    }

    #[test]
    fn each_version_that_is_there_or_named_is_told_with_whether_it_answers() {
        let rules = "rules: [{when: {header: h, equals: x}, use: 6}]";
        let others = "shadow: {version: 5, percent: 1}, breaker: {fallback: {version: 7}}, labels: {old: 8}";
        let split =
            &format!("models: {{m: {{split: {{weights: {{1: 90, 3: 10, 4: 0}}}}, {rules}, {others}}}}}");
        let told = readiness(split, &[(1, ModelState::Ready), (2, ModelState::Unavailable)]).versions();
        let told: Vec<_> =
            told.iter().map(|((_, number), version)| (*number, version.is_ready, version.is_named)).collect();
        assert_eq!(told[..3], [(1, true, true), (2, false, false), (3, false, true)]);
        let last = [(5, false, true), (6, false, true), (7, false, true), (8, false, false)];
        assert!(told.ends_with(&last), "{told:?}");
        let lost = readiness(BOTH, &[(1, ModelState::Ready)]);
        lost.directory.disconnect();
        assert!(lost.versions().values().all(|version| !version.is_ready));
    }

    #[test]
    fn a_model_is_known_by_its_name_even_if_there_is_no_version_of_it() {
        let policy = "models: {m: {split: {weights: {1: 90, 3: 10}}}, none: {deadline: 1s}}";
        let names = readiness(policy, &[(1, ModelState::Ready), (2, ModelState::Unavailable)]).names();
        assert_eq!(names, [("m".to_owned(), [1, 2, 3].into()), ("none".to_owned(), [].into())].into());
    }

    #[test]
    fn a_lost_engine_is_the_reason_given() {
        let lost = readiness("models: {}", &[(1, ModelState::Ready)]);
        lost.directory.disconnect();
        assert_eq!(lost.server(), Err("the engine is not connected".into()));
    }
}
