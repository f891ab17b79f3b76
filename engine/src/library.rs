//! The models folder: which versions it holds and whether their files are still the same. Decides what counts as a
//! version; loads none (that is the loader's).
//!
//! ```text
//!   models/NAME/VERSION/model.pt      VERSION an integer from 1
//!   models/NAME/VERSION/model.yaml    optional, see manifest.rs
//!   models/NAME/VERSION/labels.txt    optional, see postprocess.rs
//!   models/NAME/VERSION/golden.json   optional, see golden.rs
//!   models/NAME/VERSION/tokenizer.json   of a model that takes text, see preprocess.rs
//! ```

use crate::golden::Golden;
use crate::manifest::Manifest;
use crate::model::Model;
use crate::preprocess::Preprocess;
use std::fs;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::Xxh3;

/// More versions than this are a mistake, and every one of them is announced to every proxy.
const VERSIONS_MAX: usize = 1024;

/// More bytes than this are no `model.yaml`.
const MANIFEST_BYTES_MAX: u64 = 1 << 20;

/// More bytes than this are no `labels.txt`.
const LABELS_BYTES_MAX: u64 = 1 << 20;

/// More bytes than this are no `golden.json`.
const GOLDEN_BYTES_MAX: u64 = 64 << 20;

/// More bytes than this are no `tokenizer.json`.
const TOKENIZER_BYTES_MAX: u64 = 64 << 20;

/// So often a version is read whose files change meanwhile.
const READS_MAX: usize = 3;

/// Why a version is not loaded whose files were never the same for as long as it took to read them.
const CHANGED: &str = "its files changed while they were read; load it again";

const FILES: [&str; 5] = ["model.pt", "model.yaml", "labels.txt", "golden.json", "tokenizer.json"];

/// Where versions come from; asked again whenever somebody wants a model loaded.
pub struct Library {
    find: Box<Find>,
}

/// Finds versions; of the model of this name an error matters.
type Find = dyn FnMut(Option<&str>) -> Result<Vec<Candidate>, ScanError> + Send;

impl Library {
    /// A models folder. `load` gets the path of a `model.pt` and what its `model.yaml` says.
    pub fn folder<L>(folder: PathBuf, load: L) -> Self
    where
        L: Fn(&Path, Option<Manifest>) -> Result<Box<dyn Model>, String> + Send + Clone + 'static,
    {
        Self { find: Box::new(move |wanted| scan(&folder, wanted, &load)) }
    }

    /// Whatever `find` finds.
    pub fn new(mut find: impl FnMut() -> Result<Vec<Candidate>, ScanError> + Send + 'static) -> Self {
        Self { find: Box::new(move |_| find()) }
    }

    /// All versions that are there now, by name and number; but of other models than `wanted` none where they cannot be read.
    pub(crate) fn find(&mut self, wanted: Option<&str>) -> Result<Vec<Candidate>, ScanError> {
        (self.find)(wanted)
    }
}

/// A version that may become ready.
pub struct Candidate {
    /// Name of the model.
    pub name: String,
    /// Number of the version, from 1.
    pub version: u64,
    /// Changes with its files.
    pub stamp: Stamp,
    /// Size of its `model.pt`.
    pub bytes: u64,
    /// Loads it; called once, on the thread of an attempt. The error is one line.
    pub load: Load,
}

/// How a version is loaded.
pub type Load = Box<dyn FnOnce() -> Result<Loaded, String> + Send>;

/// A model as its files describe it.
pub struct Loaded {
    /// What runs.
    pub model: Box<dyn Model>,
    /// What it is known to answer.
    pub golden: Option<Golden>,
    /// What is done to requests that bring something else than its tensors.
    pub preprocess: Option<Preprocess>,
    /// What it was read from, if that was files.
    pub files: Option<Files>,
}

/// The files of a version as they were read, which may not be those that were found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// To be known again within this machine.
    pub stamp: Stamp,
    /// And anywhere; nothing if they could not be read once more.
    pub content: Option<Content>,
}

/// What tells a version's files from others, wherever they lie and whenever they were written.
pub type Content = [u8; 16];

/// Of a long file only so much of the beginning and of the end: a model is an archive, at whose end the checksums of all that
/// is in it stand.
const ENDS: u64 = 1 << 20;

/// Of the files in a version's folder.
fn content_of(version: &Path) -> io::Result<Content> {
    let mut hash = Xxh3::new();
    for name in FILES {
        let mut file = match fs::File::open(version.join(name)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                hash.update(&[0]);
                continue;
            }
            Err(error) => return Err(error),
        };
        let length = file.metadata()?.len();
        hash.update(&[1]);
        hash.update(&length.to_le_bytes());
        let mut bytes = Vec::new();
        (&file).take(ENDS).read_to_end(&mut bytes)?;
        if length > ENDS {
            file.seek(SeekFrom::Start((length - ENDS).max(ENDS)))?;
            (&file).take(ENDS).read_to_end(&mut bytes)?;
        }
        hash.update(&bytes);
    }
    Ok(hash.digest128().to_le_bytes())
}

/// Of each file of a version, what changes when somebody writes to it or puts another in its place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stamp(Vec<Option<[i64; 4]>>);

impl Stamp {
    /// Of files that a test makes up.
    #[cfg(test)]
    pub(crate) fn made_up(number: i64) -> Self {
        Self(vec![Some([number; 4])])
    }

    /// The same for the same files, also in another process and after they were moved; not 0.
    pub(crate) fn print(&self) -> u64 {
        let mut hash = Xxh3::new();
        for file in &self.0 {
            hash.update(&[u8::from(file.is_some())]);
            for number in file.iter().flat_map(|[_inode, rest @ ..]| rest) {
                hash.update(&number.to_le_bytes());
            }
        }
        hash.digest().max(1)
    }

    /// Of the files in a version's folder.
    fn of(version: &Path) -> Self {
        let file = |name: &&str| {
            let file = fs::metadata(version.join(name)).ok()?;
            Some([file.ino() as i64, file.size() as i64, file.mtime(), file.mtime_nsec()])
        };
        Self(FILES.iter().map(file).collect())
    }
}

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
    /// The folder of a model cannot be read.
    #[error("{}: {error}", folder.display())]
    Model {
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

fn scan<L>(folder: &Path, wanted: Option<&str>, load: &L) -> Result<Vec<Candidate>, ScanError>
where
    L: Fn(&Path, Option<Manifest>) -> Result<Box<dyn Model>, String> + Send + Clone + 'static,
{
    let failed = |error| ScanError::Folder { folder: folder.to_owned(), error };
    let mut found = Vec::new();
    for (name, path) in folders(folder).map_err(failed)? {
        let versions = match folders(&path) {
            Ok(versions) => versions,
            // Somebody has just taken it away.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            // What cannot be read is not gone.
            Err(error) if wanted == Some(&*name) => return Err(ScanError::Model { folder: path, error }),
            Err(error) => {
                tracing::warn!("ignoring {}: {error}", path.display());
                continue;
            }
        };
        for (number, path) in versions {
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
            let bytes = fs::metadata(path.join("model.pt")).map_or(0, |file| file.len());
            let stamp = Stamp::of(&path);
            let load: Load = Box::new(move || read_unchanged(&path, &load));
            found.push(Candidate { name: name.clone(), version, stamp, bytes, load });
        }
    }
    Ok(found)
}

/// A version as its files are now, which may not be what was found: it may have waited for others. But files that are replaced
/// while they are read may be of two minds, and one that is missing for a moment is not what its author means.
fn read_unchanged<L>(path: &Path, load: &L) -> Result<Loaded, String>
where
    L: Fn(&Path, Option<Manifest>) -> Result<Box<dyn Model>, String>,
{
    for _ in 0..READS_MAX {
        let stamp = Stamp::of(path);
        let loaded = read_version(path, &stamp, load);
        if Stamp::of(path) == stamp {
            return loaded;
        }
    }
    Err(CHANGED.into())
}

fn read_version<L>(path: &Path, stamp: &Stamp, load: &L) -> Result<Loaded, String>
where
    L: Fn(&Path, Option<Manifest>) -> Result<Box<dyn Model>, String>,
{
    // Of a pipe there is no end. A model that does not end is one on a disk that hangs: the loader goes on without it.
    for name in &FILES[1..] {
        if fs::metadata(path.join(name)).is_ok_and(|file| !file.is_file()) {
            return Err(format!("{name} is no file"));
        }
    }
    let golden = read(path, "golden.json", GOLDEN_BYTES_MAX)?.map(|text| Golden::parse(&text));
    let manifest = read(path, "model.yaml", MANIFEST_BYTES_MAX)?;
    let labels = read(path, "labels.txt", LABELS_BYTES_MAX)?;
    let parse = |text: String| {
        let manifest = Manifest::parse(&text)?;
        labels.iter().try_fold(manifest, |manifest, labels| manifest.with_labels(labels))
    };
    let manifest = manifest.map(parse).transpose();
    let mut manifest = manifest.map_err(|error| error.to_string())?;
    let declared = manifest.as_mut().and_then(Manifest::take_preprocess);
    let golden = golden.transpose()?;
    let model = load(&path.join("model.pt"), manifest)?;
    let tokenizer = || read(path, "tokenizer.json", TOKENIZER_BYTES_MAX);
    let bind = |declared| Preprocess::bind(declared, model.spec(), tokenizer);
    let files = Files { stamp: stamp.clone(), content: content_of(path).ok() };
    Ok(Loaded { preprocess: declared.map(bind).transpose()?, golden, model, files: Some(files) })
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

/// A small file of a version; `None` if there is none.
fn read(version: &Path, name: &str, bytes_max: u64) -> Result<Option<String>, String> {
    let path = version.join(name);
    let failed = |error: io::Error| format!("{name}: {error}");
    match fs::metadata(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(error)),
        Ok(file) if file.len() > bytes_max => Err(format!("{name}: {} bytes are too many", file.len())),
        Ok(_) => fs::read_to_string(&path).map(Some).map_err(failed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

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
        let found = scan(folder.path(), None, &asked).unwrap();
        let found: Vec<_> = found.iter().map(|found| (found.name.as_str(), found.version)).collect();
        assert_eq!(found, [("a", 1), ("a", 12)]);
        assert!(scan(&folder.path().join("nowhere"), None, &asked).is_err());
    }

    #[test]
    fn the_same_files_are_known_again_elsewhere_and_others_are_not() {
        let folder = models(&[("a/1", None), ("a/2", None)]);
        let [one, other] = ["a/1", "a/2"].map(|version| folder.path().join(version));
        let long: Vec<u8> = (0..3 * ENDS as usize).map(|at| (at / 7) as u8).collect();
        let put = |version: &Path, model: &[u8]| fs::write(version.join("model.pt"), model).unwrap();
        put(&one, &long);
        put(&other, &long);
        let content = content_of(&one).unwrap();
        assert_eq!(content_of(&other).unwrap(), content);
        for change in [0, long.len() - 1] {
            let mut changed = long.clone();
            changed[change] ^= 1;
            put(&other, &changed);
            assert_ne!(content_of(&other).unwrap(), content, "byte {change}");
        }
        put(&other, &long[..long.len() - 1]);
        assert_ne!(content_of(&other).unwrap(), content, "it is shorter");
        put(&other, &long);
        fs::write(other.join("labels.txt"), "").unwrap();
        assert_ne!(content_of(&other).unwrap(), content, "there is another file");
        fs::rename(other.join("labels.txt"), other.join("model.yaml")).unwrap();
        assert_ne!(content_of(&other).unwrap(), content);
    }

    #[test]
    fn a_manifest_is_read_with_its_version_and_its_mistakes_are_the_versions_own() {
        let sound = "inputs: []\noutputs: [{name: y, datatype: FP32, shape: [1]}]";
        let folder = models(&[("a/1", None), ("a/2", Some(sound)), ("a/3", Some("inputs: 7"))]);
        let results =
            scan(folder.path(), None, &asked).unwrap().into_iter().map(|found| (found.load)().err().unwrap());
        let results: Vec<_> = results.collect();
        assert_eq!(results[..2], ["model.pt undeclared", "model.pt declared"]);
        assert!(results[2].starts_with("model.yaml: "), "{}", results[2]);
    }

    #[test]
    fn a_model_that_cannot_be_read_costs_no_other() {
        use std::os::unix::fs::PermissionsExt;
        let folder = models(&[("a/1", None), ("lost+found/1", None)]);
        let lost = folder.path().join("lost+found");
        fs::set_permissions(&lost, fs::Permissions::from_mode(0o000)).unwrap();
        let (others, itself) =
            (scan(folder.path(), Some("a"), &asked), scan(folder.path(), Some("lost+found"), &asked));
        fs::set_permissions(&lost, fs::Permissions::from_mode(0o700)).unwrap();
        let others = others.unwrap();
        assert_eq!(others[0].name, "a");
        // Whoever may do everything reads that as well.
        let may_do_everything = others.len() == 2;
        assert_eq!(itself.is_err(), !may_do_everything, "what cannot be read is not gone");
    }

    #[test]
    fn what_is_no_file_is_not_waited_for() {
        for name in &FILES[1..] {
            let folder = models(&[("a/1", None)]);
            let fifo = folder.path().join("a/1").join(name);
            assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
            let found = scan(folder.path(), None, &asked).unwrap().remove(0);
            assert_eq!((found.load)().err().unwrap(), format!("{name} is no file"));
        }
    }

    const SOUND: &str = "inputs: []\noutputs: [{name: y, datatype: FP32, shape: [1]}]";

    /// The same bytes, in another file of that name.
    fn replace(file: &Path) {
        let other = file.with_extension("new");
        fs::copy(file, &other).unwrap();
        fs::rename(other, file).unwrap();
    }

    #[test]
    fn what_was_replaced_while_it_waited_for_others_is_loaded_as_it_is_then() {
        let folder = models(&[("a/1", Some(SOUND)), ("a/2", Some(SOUND))]);
        let found = scan(folder.path(), None, &asked).unwrap();
        replace(&folder.path().join("a/1/model.yaml"));
        fs::remove_file(folder.path().join("a/2/model.yaml")).unwrap();
        let told: Vec<_> = found.into_iter().map(|found| (found.load)().err().unwrap()).collect();
        assert_eq!(told, ["model.pt declared", "model.pt undeclared"]);
    }

    #[test]
    fn what_changes_while_it_is_read_is_read_again_and_told_if_it_does_not_end() {
        for (changes, told) in [(READS_MAX - 1, "model.pt declared"), (READS_MAX, CHANGED)] {
            let folder = models(&[("a/1", Some(SOUND))]);
            let reads = Arc::new(AtomicUsize::new(0));
            let counted = Arc::clone(&reads);
            let load = move |path: &Path, manifest: Option<Manifest>| {
                if counted.fetch_add(1, Ordering::Relaxed) < changes {
                    replace(&path.with_file_name("model.yaml"));
                }
                asked(path, manifest)
            };
            let found = scan(folder.path(), None, &load).unwrap().remove(0);
            assert_eq!((found.load)().err().unwrap(), told);
            assert_eq!(reads.load(Ordering::Relaxed), READS_MAX);
        }
    }

    #[test]
    fn a_stamp_changes_with_what_is_written_and_with_nothing_else() {
        let folder = models(&[("a/1", Some("x: 1"))]);
        let version = folder.path().join("a/1");
        let before = Stamp::of(&version);
        assert_eq!(Stamp::of(&version), before);
        fs::write(version.join("notes.txt"), "mine").unwrap();
        assert_eq!(Stamp::of(&version), before);
        fs::write(version.join("model.yaml"), "x: 12").unwrap();
        assert_ne!(Stamp::of(&version), before, "another size");
        let before = Stamp::of(&version);
        fs::write(version.join("new"), "x: 34").unwrap();
        fs::rename(version.join("new"), version.join("model.yaml")).unwrap();
        assert_ne!(Stamp::of(&version), before, "another file of the same size");
    }
}
