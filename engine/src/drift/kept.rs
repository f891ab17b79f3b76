//! References that outlive the process: an engine that is replaced every few days would otherwise learn each time anew what is
//! usual, and never see what changes over weeks. Decides whether a file still speaks of the same model, and how many are kept;
//! what is compared with them is [`super::watch`]'s.
//!
//! ```text
//!   FOLDER/NAME/VERSION     written once, when the reference is whole; read when that version is loaded
//! ```
//!
//! A file that is broken, of another form or of other files of the version is no reference, and is written anew.

use super::sketch::Sketch;
use crate::library::Content;
use prost::Message;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Of what is written here. Another one, when features or bins mean something else than they did.
const FORM: u32 = 2;

/// More bytes than this are no reference.
const BYTES_MAX: u64 = 1 << 20;

/// Versions of one model that are remembered; beyond it the oldest file goes.
const VERSIONS_MAX: usize = 64;

/// What was learned of a version.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Kept {
    #[prost(uint32, tag = "1")]
    form: u32,
    /// Of its files, see [`crate::library::Content`].
    #[prost(bytes = "vec", tag = "2")]
    content: Vec<u8>,
    /// Of its tensors.
    #[prost(message, optional, tag = "3")]
    pub(crate) rows: Option<Reference>,
    /// Of the lengths of what came as bytes.
    #[prost(message, optional, tag = "4")]
    pub(crate) lengths: Option<Reference>,
}

/// By feature, in the order in which they are watched.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Reference {
    #[prost(message, repeated, tag = "1")]
    features: Vec<Bins>,
}

#[derive(Clone, PartialEq, Message)]
struct Bins {
    #[prost(double, repeated, tag = "1")]
    edges: Vec<f64>,
    #[prost(uint32, repeated, tag = "2")]
    counts: Vec<u32>,
}

impl Reference {
    pub(crate) fn of(sketches: &[Sketch]) -> Self {
        let bins = |sketch: &Sketch| Bins { edges: sketch.edges().to_vec(), counts: sketch.bins().to_vec() };
        Self { features: sketches.iter().map(bins).collect() }
    }

    /// For so many features; `None` if it is of others.
    pub(crate) fn sketches(&self, features: usize) -> Option<Vec<Sketch>> {
        let sketches: Option<Vec<_>> =
            self.features.iter().map(|bins| Sketch::restored(&bins.edges, &bins.counts)).collect();
        sketches.filter(|sketches| sketches.len() == features)
    }
}

impl Kept {
    pub(crate) fn new(content: Content, rows: Option<Reference>, lengths: Option<Reference>) -> Self {
        Self { form: FORM, content: content.to_vec(), rows, lengths }
    }
}

/// The folder.
#[derive(Clone, Debug)]
pub(crate) struct References(PathBuf);

impl References {
    pub(crate) fn within(folder: PathBuf) -> Self {
        Self(folder)
    }

    /// What is known of a version whose files have this content.
    pub(crate) fn read(&self, model: &str, version: u64, content: Content) -> Option<Kept> {
        let path = self.file(model, version);
        let bytes = match read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::warn!("{} is left aside: {error}", path.display());
                return None;
            }
        };
        match Kept::decode(&bytes[..]) {
            Ok(kept) if kept.form == FORM && kept.content == content => Some(kept),
            Ok(_) => None,
            Err(error) => {
                tracing::warn!("{} is left aside: {error}", path.display());
                None
            }
        }
    }

    /// In the place of what was known of the version.
    pub(crate) fn write(&self, model: &str, version: u64, kept: &Kept) -> io::Result<()> {
        let path = self.file(model, version);
        let folder = self.0.join(model);
        fs::create_dir_all(&folder)?;
        // Two engines may write at the same time, one that goes and one that comes.
        let new = folder.join(format!(".{version}.{}", std::process::id()));
        let _ = fs::remove_file(&new); // of a process that had this number and was killed
        let written = || {
            let mut file = File::create_new(&new)?;
            file.write_all(&kept.encode_to_vec())?;
            file.sync_all()?;
            fs::rename(&new, &path)
        };
        written().inspect_err(|_| drop(fs::remove_file(&new)))?;
        forget_oldest(&folder);
        Ok(())
    }

    fn file(&self, model: &str, version: u64) -> PathBuf {
        self.0.join(model).join(version.to_string())
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > BYTES_MAX { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(bytes) }
}

/// What cannot be looked at or removed stays: somebody else may be at it.
fn forget_oldest(folder: &Path) {
    let written = |entry: fs::DirEntry| Some((entry.metadata().ok()?.modified().ok()?, entry.path()));
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut files: Vec<(SystemTime, PathBuf)> = entries.filter_map(written).collect();
    files.sort_unstable();
    let many = files.len().saturating_sub(VERSIONS_MAX);
    files.drain(..many).for_each(|(_, path)| drop(fs::remove_file(path)));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(content: Content) -> Kept {
        let mut sketch = Sketch::by(&mut vec![1.0, 2.0, f64::INFINITY, f64::NAN]);
        [0.0, 1.0, 2.0, 2.0, f64::NAN].into_iter().for_each(|value| sketch.count(value));
        Kept::new(content, Some(Reference::of(&[sketch])), None)
    }

    const THESE: Content = [7; 16];
    const OTHERS: Content = [8; 16];

    fn folder() -> (tempfile::TempDir, References) {
        let folder = tempfile::tempdir().unwrap();
        let references = References::within(folder.path().join("deep/references"));
        (folder, references)
    }

    #[test]
    fn what_was_learned_is_read_as_it_was_written_for_the_same_files_only() {
        let (_folder, references) = folder();
        assert_eq!(references.read("a model", 3, THESE), None);
        references.write("a model", 3, &kept(THESE)).unwrap();
        let read = references.read("a model", 3, THESE).unwrap();
        assert_eq!(read, kept(THESE));
        let sketches = read.rows.as_ref().unwrap().sketches(1).unwrap();
        assert_eq!((sketches[0].bins(), sketches[0].edges().len()), (&[1, 1, 2, 0, 0, 1][..], 4));
        assert_eq!(references.read("a model", 3, OTHERS), None);
        assert_eq!(references.read("a model", 2, THESE), None);
        references.write("a model", 3, &kept(OTHERS)).unwrap();
        assert!(references.read("a model", 3, OTHERS).is_some());
    }

    #[test]
    fn what_is_broken_or_of_another_form_is_no_reference() {
        let (_folder, references) = folder();
        references.write("m", 1, &kept(THESE)).unwrap();
        let whole = fs::read(references.file("m", 1)).unwrap();
        let put = |bytes: &[u8]| fs::write(references.file("m", 1), bytes).unwrap();
        for broken in [&whole[..whole.len() - 3], b"\xff\xff\xff", &vec![0; BYTES_MAX as usize + 1]] {
            put(broken);
            assert_eq!(references.read("m", 1, THESE), None);
        }
        for form in [1, FORM + 1] {
            put(&Kept { form, ..kept(THESE) }.encode_to_vec());
            assert_eq!(references.read("m", 1, THESE), None, "form {form}: of 1, edges lay on values");
        }
        let bins = |edges: &[f64], counts: &[u32]| Reference {
            features: vec![Bins { edges: edges.to_vec(), counts: counts.to_vec() }],
        };
        assert!(bins(&[1.0, 2.0], &[0, 1, 2, 3]).sketches(1).is_some());
        assert!(bins(&[1.0, 2.0], &[0, 1, 2, 3]).sketches(2).is_none(), "of another number of features");
        for (edges, counts) in [
            (&[2.0, 1.0][..], &[0, 1, 2, 3][..]),
            (&[1.0, f64::NAN], &[0, 1, 2, 3]),
            (&[1.0, 2.0], &[0, 1, 2]),
            (&[0.0; 40], &[0; 42]),
        ] {
            assert!(bins(edges, counts).sketches(1).is_none(), "{edges:?} {counts:?}");
        }
    }

    #[test]
    fn of_many_versions_the_oldest_is_forgotten() {
        let (_folder, references) = folder();
        let versions = 1..=VERSIONS_MAX as u64 + 2;
        for version in versions.clone() {
            references.write("m", version, &kept(THESE)).unwrap();
            let at = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(version);
            File::open(references.file("m", version)).unwrap().set_modified(at).unwrap();
        }
        references.write("m", 7, &kept(THESE)).unwrap();
        let known = |version: &u64| references.read("m", *version, THESE).is_some();
        let left: Vec<u64> = versions.filter(|version| !known(version)).collect();
        assert_eq!(left, [1, 2]);
    }
}
