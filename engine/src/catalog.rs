//! Which versions there are at one moment, and what has become of each. Decides what a request for one that does not
//! answer is told. Immutable: every change is a new one, sent to whoever watches.
//!
//! ```text
//!   Loading ──▶ Ready ──▶ Unloaded, as it was ordered
//!          └──▶ Unavailable, with the reason
//! ```

use crate::batcher::Grouping;
use crate::job::{Refusal, shortened};
use crate::model::{Rows, Version};
use std::collections::BTreeMap;
use std::sync::Arc;
use wire::{CurvePoint, Index, ModelEntry, ModelState};

/// What exists at one moment.
#[derive(Clone, Default)]
pub(crate) struct Catalog {
    revision: u64,
    models: BTreeMap<String, BTreeMap<u64, State>>,
}

#[derive(Clone)]
pub(crate) enum State {
    Loading {
        /// Why that takes so long, if it does.
        why: String,
    },
    Ready(Arc<Version>),
    Unavailable {
        why: String,
    },
    /// As it was ordered.
    Unloaded,
}

/// Why a version does not answer that was unloaded.
const UNLOADED: &str = "it was unloaded";

impl Catalog {
    /// The version that is to answer.
    pub(crate) fn find(&self, model: &str, version: u64) -> Result<&Arc<Version>, Refusal> {
        let Some(versions) = self.models.get(model) else {
            let known: Vec<_> = self.models.keys().map(|name| format!("`{name}`")).collect();
            let known = if known.is_empty() { "none".into() } else { known.join(", ") };
            return Err(Refusal::UnknownModel { model: shortened(model), known });
        };
        if let Some(State::Ready(found)) = versions.get(&version) {
            return Ok(found);
        }
        let model = model.to_owned();
        let known = versions.keys().map(u64::to_string).collect::<Vec<_>>().join(", ");
        Err(match versions.get(&version) {
            None => Refusal::UnknownVersion { model, version, known },
            Some(State::Unavailable { why }) => {
                Refusal::Unavailable { model, version, why: why.clone(), known }
            }
            Some(State::Unloaded) => Refusal::Unavailable { model, version, why: UNLOADED.into(), known },
            Some(State::Loading { .. } | State::Ready(_)) => Refusal::Loading { model, version, known },
        })
    }

    /// What proxies are told.
    pub(crate) fn index(&self) -> Index {
        let entries = self.models.iter().flat_map(|(name, versions)| {
            versions.iter().map(move |(version, state)| state.to_wire(name, *version))
        });
        Index { models: entries.collect(), revision: self.revision }
    }

    /// Grows with every change that is announced.
    pub(crate) fn revision(&self) -> u64 {
        self.revision
    }

    /// The same under the next revision.
    pub(crate) fn revised(&mut self) -> Self {
        self.revision += 1;
        self.clone()
    }

    /// What has become of one version.
    pub(crate) fn state(&self, name: &str, version: u64) -> Option<&State> {
        self.models.get(name)?.get(&version)
    }

    /// The versions of a model, or of all models.
    pub(crate) fn versions(&self, model: Option<&str>) -> impl Iterator<Item = (&str, u64)> {
        let models = self.models.iter().filter(move |(name, _)| model.is_none_or(|model| model == *name));
        models.flat_map(|(name, versions)| versions.keys().map(move |version| (name.as_str(), *version)))
    }

    /// All that answers.
    pub(crate) fn ready(&self) -> impl Iterator<Item = &Arc<Version>> {
        self.models.values().flat_map(BTreeMap::values).filter_map(|state| match state {
            State::Ready(version) => Some(version),
            State::Loading { .. } | State::Unavailable { .. } | State::Unloaded => None,
        })
    }

    pub(crate) fn set(&mut self, name: &str, version: u64, state: State) {
        self.models.entry(name.to_owned()).or_default().insert(version, state);
    }

    pub(crate) fn remove(&mut self, name: &str, version: u64) {
        if let Some(versions) = self.models.get_mut(name) {
            versions.remove(&version);
            if versions.is_empty() {
                self.models.remove(name);
            }
        }
    }
}

impl State {
    fn to_wire(&self, name: &str, version: u64) -> ModelEntry {
        let blank = ModelEntry { name: name.to_owned(), version, ..ModelEntry::default() };
        match self {
            Self::Loading { why } => {
                ModelEntry { state: ModelState::Loading as i32, reason: why.clone(), ..blank }
            }
            Self::Unavailable { why } => {
                ModelEntry { state: ModelState::Unavailable as i32, reason: why.clone(), ..blank }
            }
            Self::Unloaded => ModelEntry {
                state: ModelState::Unavailable as i32,
                reason: UNLOADED.into(),
                unloaded: true,
                ..blank
            },
            Self::Ready(version) => {
                let spec = version.model.spec();
                let (inputs, examples) = match &version.preprocess {
                    Some(preprocess) => preprocess.to_wire(spec).into_iter().unzip(),
                    None => (spec.inputs.iter().map(|slot| slot.to_wire()).collect(), spec.examples()),
                };
                ModelEntry {
                    state: ModelState::Ready as i32,
                    reason: version.why_alone().to_owned(),
                    load: version.load(),
                    files: version.files,
                    threads: version.way.threads as u32,
                    at_once: version.way.at_once as u32,
                    form: version.form.clone(),
                    curve: version.curve.iter().map(|(rows, took)| CurvePoint::new(*rows, *took)).collect(),
                    inputs,
                    examples,
                    takes: if version.preprocess.is_none() { spec.takes() } else { 0 },
                    outputs: spec.outputs.iter().map(|slot| slot.to_wire()).collect(),
                    postprocess: spec.postprocess.clone(),
                    max_batch: match (version.grouping, &spec.rows) {
                        (Grouping::Together { max_rows }, _) => max_rows,
                        (Grouping::Alone | Grouping::Serial, Rows::UpTo(_)) => 1,
                        (Grouping::Alone | Grouping::Serial, Rows::None { .. }) => 0,
                    },
                    ..blank
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scripted::{Scripted, catalog_of, rows_spec};

    #[test]
    fn proxies_are_told_what_a_version_takes_and_gives() {
        let mut spec = rows_spec(&[("x", 4)], &[("y", 2)], 8);
        spec.outputs[0].labels = vec!["no".into(), "yes".into()];
        let mut catalog = catalog_of("m", 2, Scripted::new(spec, |_| unreachable!("only described")));
        catalog.set("m", 1, State::Unavailable { why: "torn".into() });
        let index = catalog.index().models;
        assert_eq!(
            (index[0].version, index[0].state(), index[0].reason.as_str()),
            (1, ModelState::Unavailable, "torn")
        );
        assert_eq!((index[1].version, index[1].max_batch), (2, 4));
        assert_eq!((index[0].load, index[1].load), (0, 1));
        assert_eq!(
            (&index[1].inputs[0].shape[..], &index[1].outputs[0].labels[..]),
            (&[-1, 4][..], &["no".into(), "yes".into()][..])
        );
        let refusal = catalog.find("m", 1).err().unwrap();
        assert_eq!(refusal.to_string(), "model `m` version 1 is unavailable (torn); known versions are 1, 2");
    }
}
