//! What the engine says it can answer: the latest index, swapped whole. Never talks to the
//! engine (the supervisor does, and publishes here).

use crate::gate::Gate;
use crate::refusal::Refusal;
use crate::route::Target;
use arc_swap::ArcSwap;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tokio::sync::watch;
use wire::{Index, ModelEntry, ModelState, TensorSpec};

/// The one place where the latest [`Models`] stand.
#[derive(Debug, Default)]
pub struct Directory {
    current: ArcSwap<Models>,
    /// What all has in common that the present engine says.
    life: ArcSwap<()>,
    /// Of the current index; `None` while the engine is away.
    revision: watch::Sender<Option<u64>>,
}

impl Directory {
    /// The latest index.
    pub fn load(&self) -> Arc<Models> {
        self.current.load_full()
    }

    /// The engine has said what it has.
    pub fn publish(&self, index: Index) {
        let mut models: BTreeMap<String, BTreeMap<u64, ModelEntry>> = BTreeMap::new();
        for entry in index.models {
            models.entry(entry.name.clone()).or_default().insert(entry.version, entry);
        }
        let gates = models.iter().map(|(name, versions)| {
            (name.clone(), versions.keys().map(|version| (*version, Gate::default())).collect())
        });
        let gates = gates.collect();
        let is_loading =
            models.values().flat_map(BTreeMap::values).any(|entry| entry.state() == ModelState::Loading);
        let (settled, _life) = (self.current.load().settled || !is_loading, self.life.load_full());
        self.current.store(Arc::new(Models { connected: true, settled, models, gates, _life }));
        self.revision.send_replace(Some(index.revision));
    }

    /// The engine is gone, or about to go. What it had is remembered, so that a known model is "not now" and not "unknown". Gives
    /// what everybody shares who holds something that it has said: who is still under way to it does.
    pub fn disconnect(&self) -> Arc<()> {
        let models = self.load().models.clone();
        self.current.store(Arc::new(Models { models, ..Models::default() }));
        self.revision.send_replace(None);
        self.life.swap(Arc::default())
    }

    /// What is published from now on is said by another engine.
    pub(crate) fn succeed(&self) {
        self.life.store(Arc::default());
    }

    /// Waits until the engine has said something else than what stands in `known`, or is gone.
    pub(crate) async fn changed_since(&self, known: &Arc<Models>) {
        let mut revision = self.revision.subscribe();
        while Arc::ptr_eq(&self.current.load(), known) {
            if revision.changed().await.is_err() {
                return; // we are gone
            }
        }
    }

    /// Waits until the index is at least of this revision; `false` if the engine is gone before.
    pub async fn reached(&self, revision: u64) -> bool {
        let is_there = |now: &Option<u64>| now.is_none_or(|now| now >= revision);
        // An error would mean that we are gone.
        self.revision.subscribe().wait_for(is_there).await.is_ok_and(|now| now.is_some())
    }
}

/// Every version the engine knows, as of one moment.
#[derive(Debug, Default)]
pub struct Models {
    /// Whether the engine is there.
    pub connected: bool,
    /// Whether everything that it found at its start has come up or failed.
    pub(crate) settled: bool,
    models: BTreeMap<String, BTreeMap<u64, ModelEntry>>,
    gates: BTreeMap<String, BTreeMap<u64, Gate>>,
    /// Of the engine that says so. Held and never read; see [`Directory::disconnect`].
    _life: Arc<()>,
}

impl policies::Known for Models {
    fn is_ready(&self, model: &str, version: policies::Version) -> bool {
        self.is_ready(model, version.0)
    }

    fn has(&self, model: &str) -> bool {
        self.has(model)
    }

    fn inputs(&self, model: &str) -> Option<BTreeSet<String>> {
        self.tensors(model, |entry| &entry.inputs)
    }

    fn outputs(&self, model: &str) -> Option<BTreeSet<String>> {
        self.tensors(model, |entry| &entry.outputs)
    }
}

impl Models {
    /// Names of tensors of all versions that are ready; nothing where one declares none, or none is there.
    fn tensors(&self, model: &str, of: impl Fn(&ModelEntry) -> &Vec<TensorSpec>) -> Option<BTreeSet<String>> {
        let entries = self.models.get(model)?.values();
        let ready: Vec<_> = entries.filter(|entry| entry.state() == ModelState::Ready).collect();
        let is_said = !ready.is_empty() && ready.iter().all(|entry| !of(entry).is_empty());
        is_said.then(|| ready.iter().flat_map(|entry| of(entry)).map(|tensor| tensor.name.clone()).collect())
    }

    /// Whether the engine has any version of it.
    pub(crate) fn has(&self, model: &str) -> bool {
        self.models.contains_key(model)
    }

    /// All versions of a model, by number.
    pub fn versions(&self, model: &str) -> Option<&BTreeMap<u64, ModelEntry>> {
        self.models.get(model)
    }

    /// Whether this version answers now.
    pub fn is_ready(&self, model: &str, version: u64) -> bool {
        self.connected && self.entry(model, version).is_some_and(|entry| entry.state() == ModelState::Ready)
    }

    /// What keeps requests that would be late from the engine.
    pub(crate) fn gate(&self, model: &str, version: u64) -> Option<&Gate> {
        self.gates.get(model)?.get(&version)
    }

    /// One version.
    pub fn entry(&self, model: &str, version: u64) -> Option<&ModelEntry> {
        self.models.get(model)?.get(&version)
    }

    /// The version that answers when no policy says otherwise.
    pub fn highest_ready(&self, model: &str) -> Option<u64> {
        let versions = self.models.get(model)?;
        versions.values().rev().find(|entry| entry.state() == ModelState::Ready).map(|entry| entry.version)
    }

    /// All versions of all models.
    pub(crate) fn entries(&self) -> impl Iterator<Item = &ModelEntry> {
        self.models.values().flat_map(BTreeMap::values)
    }

    /// Names of all models.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.models.keys().map(String::as_str)
    }

    /// Versions that have neither come up nor failed yet.
    pub fn loading(&self) -> impl Iterator<Item = &ModelEntry> {
        self.entries().filter(|entry| entry.state() == ModelState::Loading)
    }

    /// The pinned version, else the one with the highest number.
    pub fn find(&self, target: Target<'_>) -> Result<&ModelEntry, Refusal> {
        let Some(versions) = self.models.get(target.model) else {
            return Err(Refusal::NotFound(format!(
                "no model `{}`, there is {}",
                target.model,
                list(self.models.keys())
            )));
        };
        match target.pinned {
            Some(version) => versions.get(&version).ok_or_else(|| {
                let known = list(versions.keys());
                Refusal::NotFound(format!(
                    "model `{}` has no version {version}, there is {known}",
                    target.model
                ))
            }),
            None => Ok(versions.values().next_back().expect("a model is known by its versions")),
        }
    }
}

pub(crate) fn list<T: std::fmt::Display>(names: impl Iterator<Item = T>) -> String {
    let names: Vec<_> = names.map(|name| format!("`{name}`")).collect();
    if names.is_empty() { "none".into() } else { names.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(version: u64, state: ModelState) -> ModelEntry {
        ModelEntry { name: "m".into(), version, state: state as i32, ..ModelEntry::default() }
    }

    #[test]
    fn the_highest_ready_version_answers() {
        let directory = Directory::default();
        assert!(!directory.load().connected);
        directory.publish(Index {
            models: vec![
                entry(1, ModelState::Ready),
                entry(2, ModelState::Ready),
                entry(3, ModelState::Unavailable),
            ],
            ..Index::default()
        });
        let models = directory.load();
        assert_eq!(models.highest_ready("m"), Some(2));
        assert!(models.loading().next().is_none() && models.is_ready("m", 2) && !models.is_ready("m", 3));
    }

    #[test]
    fn a_lost_engine_leaves_its_models_known_but_not_ready() {
        let directory = Directory::default();
        directory.publish(Index { models: vec![entry(1, ModelState::Ready)], ..Index::default() });
        directory.disconnect();
        let models = directory.load();
        assert!(models.entry("m", 1).is_some() && !models.is_ready("m", 1));
    }

    #[tokio::test]
    async fn who_holds_anything_that_an_engine_has_said_is_under_way_to_it_and_to_no_other() {
        let directory = Directory::default();
        directory.publish(Index { revision: 1, ..Index::default() });
        let of_first = directory.load();
        directory.succeed();
        directory.publish(Index { revision: 1, ..Index::default() });
        let early = directory.load();
        directory.publish(Index { revision: 2, ..Index::default() });
        let late = directory.load();
        assert!(directory.reached(2).await);
        let life = directory.disconnect();
        assert!(!directory.reached(3).await, "nobody is there who could say so");
        directory.publish(Index::default());
        let _of_next = directory.load();
        for (held, one) in [(3, early), (2, late), (1, of_first)] {
            assert_eq!(Arc::strong_count(&life), held);
            drop(one);
        }
    }
}
