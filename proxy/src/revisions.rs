//! The policies that were in force, and what a person may ask of them: show, plan, put, roll back. Decides what is
//! remembered and how a revision is told from another; carried out is it by `reload.rs`.

use crate::files;
use crate::fixed::AtRestart;
use policies::{Plan, Rings};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use tokio::sync::oneshot;
use xxhash_rust::xxh3::xxh3_64;

/// Revisions that are remembered.
const REVISIONS_MAX: usize = 16;

/// Bytes of the texts that are remembered over a restart: of longer ones fewer.
const KEPT_BYTES_MAX: usize = 2 << 20;

/// A text that was in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revision {
    /// The generation that it was, or that decided alike.
    pub generation: u64,
    /// Since when, in seconds since 1970.
    pub since_unix_s: u64,
    /// Where it came from.
    pub source: Source,
    /// Of one that somebody has gone back to: the generation that it was first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restores: Option<u64>,
    /// The text.
    #[serde(skip)]
    pub text: String,
}

impl Revision {
    /// The same for the same text, for `ETag` and `If-Match`.
    pub fn tag(&self) -> String {
        format!("\"{:016x}\"", xxh3_64(self.text.as_bytes()))
    }

    /// Whether an `If-Match` says that it is to be replaced (RFC 9110, section 13.1.1).
    pub(crate) fn is_meant(&self, if_match: &str) -> bool {
        if_match.split(',').map(str::trim).any(|tag| tag == "*" || tag == self.tag())
    }

    /// The generation that it was before anybody went back to it.
    pub(crate) fn first(&self) -> u64 {
        self.restores.unwrap_or(self.generation)
    }
}

/// Where a revision came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// It was there at the start, and not at the end before.
    Start,
    /// Somebody has changed the file.
    File,
    /// Somebody has put it through the admin port.
    Admin,
    /// Somebody has gone back to it.
    RollBack,
}

/// The last few, oldest first; never empty.
#[derive(Clone, Debug)]
pub struct Revisions(VecDeque<Revision>);

impl Revisions {
    /// Begins with what is in force at the start, after those of an earlier process. `decides_alike` says whether its last one is
    /// the same policy, written otherwise.
    pub fn new(
        earlier: Vec<Revision>,
        text: String,
        decides_alike: impl FnOnce(&str) -> bool,
        now: SystemTime,
    ) -> Self {
        let mut revisions = Self(earlier.into());
        let many = revisions.0.len().saturating_sub(REVISIONS_MAX);
        revisions.0.drain(..many);
        match revisions.0.back_mut() {
            Some(last) if last.text == text => {}
            Some(last) if decides_alike(&last.text) => last.text = text,
            last => {
                let generation = last.map_or(1, |last| last.generation.saturating_add(1));
                revisions.note(generation, text, Source::Start, None, now);
            }
        }
        revisions
    }

    /// As a file that [`read`] reads.
    pub(crate) fn to_file(&self) -> Vec<u8> {
        let mut bytes = 0;
        let newest = self.0.iter().rev().take_while(|revision| {
            bytes += revision.text.len();
            bytes <= KEPT_BYTES_MAX
        });
        let mut kept: Vec<(&Revision, &str)> = newest.map(|one| (one, one.text.as_str())).collect();
        kept.reverse();
        serde_json::to_vec(&kept).expect("numbers and texts")
    }

    /// Another text is in force, that of generation `restores` if somebody has gone back to it.
    pub(crate) fn note(
        &mut self,
        generation: u64,
        text: String,
        source: Source,
        mut restores: Option<u64>,
        now: SystemTime,
    ) {
        let last = self.0.back();
        if last.is_some_and(|last| last.generation == generation && last.text == text) {
            return;
        }
        // Another text that decides alike is the same revision, written otherwise.
        if let Some(same) = self.0.pop_back_if(|last| last.generation == generation) {
            restores = restores.or(same.restores);
        }
        let since_unix_s = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let revision = Revision { generation, since_unix_s, source, restores, text };
        if self.0.len() == REVISIONS_MAX {
            self.0.pop_front();
        }
        self.0.push_back(revision);
    }

    pub(crate) fn current(&self) -> &Revision {
        self.0.back().expect("it begins with one")
    }

    /// The one of this generation, or the one before the current. Who goes back and back again goes further back: before
    /// a revision that was gone back to comes what came before it when it was new, not what was just left.
    pub(crate) fn earlier(&self, generation: Option<u64>) -> Option<&Revision> {
        let mut earlier = self.0.iter().rev().skip(1);
        let first = self.current().first();
        match generation {
            Some(generation) => earlier.find(|revision| revision.generation == generation),
            None => earlier.find(|revision| revision.generation < first),
        }
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Revision> {
        self.0.iter()
    }
}

/// Those that an earlier process has kept; none if they cannot be read, which is told.
pub fn read(file: &Path) -> Vec<Revision> {
    let kept = match files::read_file_at_most(file, 8 * KEPT_BYTES_MAX) {
        Ok(kept) => kept,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            tracing::warn!(
                "the policies before this start cannot be gone back to: {}: {error}",
                file.display()
            );
            return Vec::new();
        }
    };
    let kept = serde_json::from_slice::<Vec<(Revision, String)>>(&kept).unwrap_or_else(|error| {
        tracing::warn!("the policies before this start cannot be gone back to: {}: {error}", file.display());
        Vec::new()
    });
    kept.into_iter().map(|(revision, text)| Revision { text, ..revision }).collect()
}

/// A question, and where its answer goes.
#[derive(Debug)]
pub struct Asked {
    pub(crate) ask: Ask,
    pub(crate) answer: oneshot::Sender<Result<Edit, Denied>>,
}

/// What a person may ask.
#[derive(Debug)]
pub(crate) enum Ask {
    Show,
    History,
    /// What this text would change.
    Plan {
        text: String,
    },
    /// Put it in force, if nobody has changed what had this tag.
    Put {
        text: String,
        tag: String,
    },
    /// Go back to the revision before, or to that of a generation, if what has this tag is still in force.
    RollBack {
        to: Option<u64>,
        tag: String,
    },
    /// Divide requests as another process does.
    Adopt {
        rings: Rings,
    },
}

/// What came of it.
#[derive(Debug)]
pub(crate) enum Edit {
    Shown(Revision),
    History(Vec<Revision>),
    Planned {
        plan: Plan,
        /// Of what it was compared with.
        tag: String,
        /// What is not changed by it, nor by anything but a restart.
        at_restart: AtRestart,
    },
    Applied {
        plan: Plan,
        revision: Revision,
        /// Where what stood in the file is now, if that was not in force.
        draft: Option<PathBuf>,
    },
    Adopted(BTreeMap<String, policies::Adopted>),
}

/// Why nothing came of it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Denied {
    #[error("{0}")]
    Faulty(String),
    #[error("somebody has changed the policy meanwhile: it is {tag} now; look at it and try again")]
    Changed { tag: String },
    #[error("somebody is changing the policy file: look at it and try again")]
    FileChanged,
    #[error("there is no such revision, or not any more; `penstock history` shows those that there are")]
    NoSuchRevision,
    #[error("generation {generation} is in force")]
    InForce { generation: u64 },
    #[error("{0}; nothing has changed")]
    NotWritten(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: SystemTime = SystemTime::UNIX_EPOCH;

    #[test]
    fn the_last_few_are_remembered_and_those_that_decide_alike_are_one() {
        let mut revisions = Revisions::new(Vec::new(), "one".into(), |_| false, NOW);
        assert!(revisions.earlier(None).is_none());
        revisions.note(1, "# one\none".into(), Source::File, None, NOW);
        assert!(revisions.earlier(None).is_none());
        for generation in 2..40 {
            revisions.note(generation, format!("text {generation}"), Source::Admin, None, NOW);
        }
        assert_eq!(revisions.all().count(), REVISIONS_MAX);
        assert_eq!(revisions.earlier(None).unwrap().text, "text 38");
        assert_eq!(revisions.earlier(Some(30)).unwrap().text, "text 30");
        assert!(revisions.earlier(Some(2)).is_none(), "forgotten");
        assert_ne!(revisions.current().tag(), revisions.earlier(None).unwrap().tag());
    }

    #[test]
    fn another_process_goes_on_with_them_and_counts_on() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("history.json");
        assert_eq!(read(&file), []);
        let mut revisions = Revisions::new(read(&file), "old".into(), |_| false, NOW);
        revisions.note(2, "good".into(), Source::Admin, None, NOW);
        revisions.note(3, "old".into(), Source::RollBack, Some(1), NOW);
        std::fs::write(&file, revisions.to_file()).unwrap();
        let same = Revisions::new(read(&file), "old".into(), |_| false, NOW);
        assert!(same.all().eq(revisions.all()));
        let other = Revisions::new(read(&file), "edited meanwhile".into(), |_| false, NOW);
        assert_eq!((other.current().generation, other.current().source), (4, Source::Start));
        assert_eq!(other.earlier(None).unwrap().text, "old");
        assert_eq!(other.earlier(Some(2)).unwrap().text, "good");
        let otherwise = Revisions::new(read(&file), "# old".into(), |before| before == "old", NOW);
        assert_eq!((otherwise.current().generation, &*otherwise.current().text), (3, "# old"));
        assert_eq!(otherwise.earlier(None), revisions.earlier(None), "it is the same revision");
        // The newest of what is long.
        let mut long = Revisions::new(Vec::new(), "a".repeat(KEPT_BYTES_MAX), |_| false, NOW);
        long.note(2, "b".into(), Source::File, None, NOW);
        std::fs::write(&file, long.to_file()).unwrap();
        assert_eq!(read(&file).iter().map(|one| one.generation).collect::<Vec<_>>(), [2]);
        for nonsense in ["", "[", "[7]", "{}"] {
            std::fs::write(&file, nonsense).unwrap();
            assert_eq!(read(&file), []);
        }
    }

    #[test]
    fn who_goes_back_twice_does_not_come_to_what_was_left() {
        let mut revisions = Revisions::new(Vec::new(), "old".into(), |_| false, NOW);
        revisions.note(2, "good".into(), Source::Admin, None, NOW);
        revisions.note(3, "bad".into(), Source::Admin, None, NOW);
        let mut generation = 3;
        let mut go_back = |revisions: &mut Revisions, to| {
            let Revision { text, restores, generation: was, .. } = revisions.earlier(to)?.clone();
            generation += 1;
            revisions.note(generation, text.clone(), Source::RollBack, restores.or(Some(was)), NOW);
            Some(text)
        };
        assert_eq!(go_back(&mut revisions, None).as_deref(), Some("good"));
        revisions.note(4, "# good\ngood".into(), Source::File, None, NOW);
        assert_eq!(go_back(&mut revisions, None).as_deref(), Some("old"), "and not what is bad");
        assert_eq!(go_back(&mut revisions, None), None);
        assert_eq!(go_back(&mut revisions, Some(3)).as_deref(), Some("bad"), "who wants that may say so");
        assert_eq!(go_back(&mut revisions, None).as_deref(), Some("good"));
    }
}
