//! Which versions exist and what has become of each. They are loaded in the background, one after the other, on
//! one thread: the engine listens at once, and a version answers as soon as it has loaded and passed its trial. A
//! broken one is unavailable with a reason and disturbs nobody.
//!
//! ```text
//!   Loading ──▶ Ready         models/NAME/VERSION/model.pt    VERSION an integer from 1
//!          └──▶ Unavailable   models/NAME/VERSION/model.yaml  optional, see manifest.rs
//! ```
//!
//! A `Catalog` is immutable; every change is a new one, sent to whoever watches.

use crate::batcher::{Bucket, Grouping};
use crate::calibrate::{Calibration, Cores, calibrate};
use crate::curve::Curve;
use crate::job::{Refusal, shortened, shortened_to};
use crate::lane::text_of;
use crate::manifest::Manifest;
use crate::model::{Model, Rows, Version};
use crate::optimise::{Report, optimise};
use crate::queue::Queue;
use crate::trial::{self, Verdict};
use prost::Message;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::watch;
use wire::{CurvePoint, Index, Limits, ModelEntry, ModelState};

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
                    threads: version.threads as u32,
                    at_once: version.at_once as u32,
                    form: version.form.clone(),
                    curve: version.curve.iter().map(|(rows, took)| CurvePoint::new(*rows, *took)).collect(),
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
pub(crate) fn load(
    candidates: Vec<Candidate>,
    catalog: Arc<watch::Sender<Arc<Catalog>>>,
    queue: Arc<Queue>,
    cores: Cores,
) -> io::Result<()> {
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
            let state = try_load(key, &name, version, load, &queue, cores);
            next.set(&name, version, state);
            if next.index().encoded_len() > Limits::default().metadata_bytes {
                let why = "its labels do not fit into what proxies are told; shorten them".into();
                next.set(&name, version, State::Unavailable { why });
            }
            catalog.send_replace(Arc::new(next.clone()));
        }
    })?;
    Ok(())
}

/// The fastest form that is as good, if it passes the same trial. What remembers earlier runs stays as it is.
fn in_best_form(model: Box<dyn Model>, verdict: &Verdict) -> (Box<dyn Model>, Report) {
    let most = match verdict.grouping {
        Grouping::Together { max_rows } => max_rows,
        Grouping::Alone => 1,
        Grouping::Serial => return (model, Report::default()),
    };
    match optimise(&*model, most, model.spec().tolerance) {
        (Some(form), report) if trial::run(&*form).is_ok_and(|again| again == *verdict) => (form, report),
        _ => (model, Report::default()),
    }
}

fn try_load(key: u32, name: &str, number: u64, load: Load, queue: &Queue, cores: Cores) -> State {
    let tried = catch_unwind(AssertUnwindSafe(|| {
        let model = load()?;
        let verdict = trial::run(&*model)?;
        let (model, report) = in_best_form(model, &verdict);
        let calibration = calibrate(&*model, verdict.grouping, cores);
        Ok::<_, String>((model, verdict, report, calibration))
    }));
    let tried = tried.unwrap_or_else(|panic| Err(format!("panic while loading: {}", text_of(&*panic))));
    match tried {
        Ok((model, verdict, report, calibration)) => {
            let (grouping, why_alone) = (verdict.grouping, verdict.why_alone);
            let how = match grouping {
                Grouping::Together { max_rows } => format!("up to {max_rows} rows together"),
                Grouping::Alone | Grouping::Serial => why_alone.clone(),
            };
            let Calibration { threads, at_once, runs, free } = calibration;
            let form = report.to_string();
            tracing::info!(model = name, version = number, form, threads, at_once, "ready, {how}");
            let bucket = Bucket { version: key, free, suspect: false };
            queue.learn(&bucket, &runs);
            let mut curve = Curve::default();
            runs.iter().for_each(|(rows, took)| curve.observe(*rows, *took));
            let curve = curve.points().collect();
            State::Ready(Arc::new(Version {
                key,
                name: name.to_owned(),
                number,
                model,
                grouping,
                at_once,
                why_alone,
                threads,
                form,
                curve,
            }))
        }
        Err(why) => {
            tracing::error!(model = name, version = number, "unavailable: {why}");
            State::Unavailable { why: shortened_to(&why, 400) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scripted::{Scripted, catalog_of, rows_spec};

    /// A folder with these version folders, each with this `model.yaml`, if any.
    fn models(versions: &[(&str, Option<&str>)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (version, manifest) in versions {
            fs::create_dir_all(folder.path().join(version)).unwrap();
            if let Some(manifest) = manifest {
                fs::write(folder.path().join(version).join("model.yaml"), manifest).unwrap();
            }
        }
        folder
    }

    /// Loads nothing; says what it was asked to load.
    fn asked(path: &Path, manifest: Option<Manifest>) -> Result<Box<dyn Model>, String> {
        let declared = if manifest.is_some() { "declared" } else { "undeclared" };
        Err(format!("{} {declared}", path.file_name().unwrap().display()))
    }

    #[test]
    fn versions_are_integers_from_one_and_hidden_folders_are_none_of_ours() {
        let folder = models(&[("a/1", None), ("a/12", None), ("a/0", None), ("a/01", None), ("a/+2", None)]);
        for ignored in ["a/x", "a/.3", ".git/1", "empty"] {
            fs::create_dir_all(folder.path().join(ignored)).unwrap();
        }
        fs::write(folder.path().join("README"), "").unwrap();
        let found = scan(folder.path(), asked).unwrap();
        let found: Vec<_> = found.iter().map(|found| (found.name.as_str(), found.version)).collect();
        assert_eq!(found, [("a", 1), ("a", 12)]);
        assert!(scan(&folder.path().join("nowhere"), asked).is_err());
    }

    #[test]
    fn a_manifest_is_read_with_its_version_and_its_mistakes_are_the_versions_own() {
        let sound = "inputs: []\noutputs: [{name: y, datatype: FP32, shape: [1]}]";
        let folder = models(&[("a/1", None), ("a/2", Some(sound)), ("a/3", Some("inputs: 7"))]);
        let results =
            scan(folder.path(), asked).unwrap().into_iter().map(|found| (found.load)().err().unwrap());
        let results: Vec<_> = results.collect();
        assert_eq!(results[..2], ["model.pt undeclared", "model.pt declared"]);
        assert!(results[2].starts_with("model.yaml: "), "{}", results[2]);
    }

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
        assert_eq!(
            (&index[1].inputs[0].shape[..], &index[1].outputs[0].labels[..]),
            (&[-1, 4][..], &["no".into(), "yes".into()][..])
        );
        let refusal = catalog.find("m", 1).err().unwrap();
        assert_eq!(refusal.to_string(), "model `m` version 1 is unavailable (torn); known versions are 1, 2");
    }
}
