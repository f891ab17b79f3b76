//! Which versions exist and what has become of each. They are loaded in the background, one after the other, on
//! one thread: the engine listens at once, and a version answers as soon as it has loaded and passed its trial. A
//! broken one is unavailable with a reason and disturbs nobody.
//!
//! ```text
//!   Loading ──▶ Ready         models/NAME/VERSION/model.pt    VERSION an integer from 1
//!          └──▶ Unavailable   models/NAME/VERSION/model.yaml  optional, see manifest.rs
//! ```
//!
//! A [`Catalog`] is immutable; every change is a new one, sent to whoever watches.

use crate::batcher::Grouping;
use crate::job::{Refusal, shortened};
use crate::lane::text_of;
use crate::manifest::Manifest;
use crate::model::{Model, Rows, Version};
use crate::trial;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::watch;
use wire::{Index, ModelEntry, ModelState};

/// More versions than this are a mistake, and every one of them is announced to every proxy.
const VERSIONS_MAX: usize = 1024;

/// More bytes than this are no `model.yaml`.
const MANIFEST_BYTES_MAX: u64 = 1 << 20;

/// A version that may become ready.
pub struct Candidate {
    /// Name of the model.
    pub name: String,
    /// Number of the version, from 1.
    pub version: u64,
    /// Loads it; called once, on the loader's thread. The error is one line.
    pub load: Load,
}

/// How a version is loaded.
pub type Load = Box<dyn FnOnce() -> Result<Box<dyn Model>, String> + Send>;

/// Why a folder cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// It cannot be read.
    #[error("models folder {}: {error}; give the folder that holds NAME/VERSION/model.pt with --models", folder.display())]
    Folder {
        /// Which.
        folder: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// It holds too much.
    #[error("models folder {} holds more than {VERSIONS_MAX} versions; split it over several engines", folder.display())]
    TooMany {
        /// Which.
        folder: PathBuf,
    },
}

/// Finds the versions of a models folder. `load` gets the path of a `model.pt` and what its `model.yaml` says.
pub fn scan<L>(folder: &Path, load: L) -> Result<Vec<Candidate>, ScanError>
where
    L: Fn(&Path, Option<Manifest>) -> Result<Box<dyn Model>, String> + Send + Clone + 'static,
{
    let failed = |error| ScanError::Folder { folder: folder.to_owned(), error };
    let mut found = Vec::new();
    for (name, path) in folders(folder).map_err(failed)? {
        for (number, path) in folders(&path).map_err(failed)? {
            let version =
                number.parse().ok().filter(|version: &u64| *version >= 1 && version.to_string() == number);
            let Some(version) = version else {
                tracing::info!("ignoring {}: a version is an integer from 1", path.display());
                continue;
            };
            if found.len() == VERSIONS_MAX {
                return Err(ScanError::TooMany { folder: folder.to_owned() });
            }
            let load = load.clone();
            let load: Load = Box::new(move || load(&path.join("model.pt"), read_manifest(&path)?));
            found.push(Candidate { name: name.clone(), version, load });
        }
    }
    Ok(found)
}

fn folders(parent: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(parent)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() && !name.starts_with('.') {
            found.push((name, path));
        }
    }
    found.sort();
    Ok(found)
}

fn read_manifest(version: &Path) -> Result<Option<Manifest>, String> {
    let path = version.join("model.yaml");
    let failed = |error: io::Error| format!("model.yaml: {error}");
    match fs::metadata(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(error)),
        Ok(file) if file.len() > MANIFEST_BYTES_MAX => {
            Err(format!("model.yaml: {} bytes are too many", file.len()))
        }
        Ok(_) => {
            let text = fs::read_to_string(&path).map_err(failed)?;
            Manifest::parse(&text).map(Some).map_err(|error| error.to_string())
        }
    }
}

/// What exists at one moment.
#[derive(Clone, Default)]
pub(crate) struct Catalog {
    models: BTreeMap<String, BTreeMap<u64, State>>,
}

#[derive(Clone)]
pub(crate) enum State {
    Loading,
    Ready(Arc<Version>),
    Unavailable { why: String },
}

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
            Some(State::Loading | State::Ready(_)) => Refusal::Loading { model, version, known },
        })
    }

    /// What proxies are told.
    pub(crate) fn index(&self) -> Index {
        let entries = self.models.iter().flat_map(|(name, versions)| {
            versions.iter().map(move |(version, state)| state.to_wire(name, *version))
        });
        Index { models: entries.collect() }
    }

    pub(crate) fn set(&mut self, name: &str, version: u64, state: State) {
        self.models.entry(name.to_owned()).or_default().insert(version, state);
    }
}

impl State {
    fn to_wire(&self, name: &str, version: u64) -> ModelEntry {
        let blank = ModelEntry { name: name.to_owned(), version, ..ModelEntry::default() };
        match self {
            Self::Loading => ModelEntry { state: ModelState::Loading as i32, ..blank },
            Self::Unavailable { why } => {
                ModelEntry { state: ModelState::Unavailable as i32, reason: why.clone(), ..blank }
            }
            Self::Ready(version) => {
                let spec = version.model.spec();
                ModelEntry {
                    state: ModelState::Ready as i32,
                    reason: version.why_alone.clone(),
                    inputs: spec.inputs.iter().map(|slot| slot.to_wire()).collect(),
                    outputs: spec.outputs.iter().map(|slot| slot.to_wire()).collect(),
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

/// Loads the candidates on a thread of its own, which ends early when nobody watches any more.
pub(crate) fn load(candidates: Vec<Candidate>, catalog: Arc<watch::Sender<Arc<Catalog>>>) -> io::Result<()> {
    let mut next = Catalog::default();
    for candidate in &candidates {
        next.set(&candidate.name, candidate.version, State::Loading);
    }
    catalog.send_replace(Arc::new(next.clone()));
    std::thread::Builder::new().name("loader".into()).spawn(move || {
        for (key, candidate) in (0..).zip(candidates) {
            if catalog.is_closed() {
                return;
            }
            let Candidate { name, version, load } = candidate;
            let state = try_load(key, &name, version, load);
            next.set(&name, version, state);
            catalog.send_replace(Arc::new(next.clone()));
        }
    })?;
    Ok(())
}

fn try_load(key: u32, name: &str, number: u64, load: Load) -> State {
    let tried = catch_unwind(AssertUnwindSafe(|| {
        let model = load()?;
        let verdict = trial::run(&*model)?;
        Ok::<_, String>((model, verdict))
    }));
    let tried = tried.unwrap_or_else(|panic| Err(format!("panic while loading: {}", text_of(&*panic))));
    match tried {
        Ok((model, verdict)) => {
            match verdict.grouping {
                Grouping::Together { max_rows } => {
                    tracing::info!(model = name, version = number, "ready, up to {max_rows} rows together");
                }
                Grouping::Alone | Grouping::Serial => {
                    tracing::info!(model = name, version = number, "ready, {}", verdict.why_alone);
                }
            }
            let (grouping, why_alone) = (verdict.grouping, verdict.why_alone);
            State::Ready(Arc::new(Version { key, name: name.to_owned(), number, model, grouping, why_alone }))
        }
        Err(why) => {
            tracing::error!(model = name, version = number, "unavailable: {why}");
            State::Unavailable { why }
        }
    }
}
