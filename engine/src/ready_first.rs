//! Remembers which versions are ready in a file that outlives the process. An engine that follows one that was ended loads
//! these first, what took least before what took longer: what was answered is answered again before anything is tried that
//! is slow, hangs, or never was any good. Decides nothing but that order.

use crate::kept::Kept;
use crate::library::{Candidate, Stamp};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::time::Duration;

/// Versions that are ready, or were when an engine ended and have not been tried again.
pub(crate) struct ReadyFirst {
    file: Kept,
    records: Vec<Record>,
}

#[derive(Serialize, Deserialize)]
struct Record {
    model: String,
    version: u64,
    /// Of its files.
    stamp: String,
    /// Milliseconds from the beginning of its trial until it was ready.
    took: u64,
}

impl ReadyFirst {
    /// What the engine that listened at `socket` before this one has left.
    pub(crate) fn beside(socket: &Path) -> Self {
        let file = file_of(socket);
        Self { records: file.read(), file }
    }

    /// Brings them into the order in which they are to be loaded.
    pub(crate) fn sort(&self, candidates: &mut [Candidate]) {
        let took = |candidate: &Candidate| {
            let record = self.records.iter().find(|record| record.is_of(&candidate.name, candidate.version));
            record.map_or(u64::MAX, |record| record.took)
        };
        candidates.sort_by_cached_key(took);
    }

    /// Whether a version of these files was ready.
    pub(crate) fn knows(&self, model: &str, version: u64, stamp: &Stamp) -> bool {
        let stamp = format!("{stamp:?}");
        self.records.iter().any(|record| record.is_of(model, version) && record.stamp == stamp)
    }

    /// Notes that a version of these files is ready, and how long that took.
    pub(crate) fn note(&mut self, model: &str, version: u64, stamp: &Stamp, took: Duration) {
        self.records.retain(|record| !record.is_of(model, version));
        let took = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        self.records.push(Record { model: model.to_owned(), version, stamp: format!("{stamp:?}"), took });
        self.file.write(&self.records);
    }

    /// Forgets what is not even being loaded any more.
    pub(crate) fn retain(&mut self, is_wanted: impl Fn(&str, u64) -> bool) {
        let before = self.records.len();
        self.records.retain(|record| is_wanted(&record.model, record.version));
        if self.records.len() < before {
            self.file.write(&self.records);
        }
    }
}

impl Record {
    fn is_of(&self, model: &str, version: u64) -> bool {
        (&*self.model, self.version) == (model, version)
    }
}

/// The engine that listens at `socket` is told to stop: nobody is in a hurry for the next one.
pub(crate) fn forget(socket: &Path) {
    file_of(socket).forget();
}

fn file_of(socket: &Path) -> Kept {
    Kept::beside(socket, ".ready")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(ready: &ReadyFirst, names: &[&str]) -> Vec<String> {
        let candidate = |name: &&str| Candidate {
            name: (*name).to_owned(),
            version: 1,
            stamp: Stamp::made_up(1),
            bytes: 0,
            load: Box::new(|| Err("nobody loads it".into())),
        };
        let mut candidates: Vec<_> = names.iter().map(candidate).collect();
        ready.sort(&mut candidates);
        candidates.into_iter().map(|candidate| candidate.name).collect()
    }

    #[test]
    fn what_was_ready_comes_first_and_what_took_least_before_all() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("engine.sock");
        let mut ready = ReadyFirst::beside(&socket);
        assert_eq!(order(&ready, &["a", "b", "c"]), ["a", "b", "c"]);
        let stamp = Stamp::made_up(1);
        ready.note("c", 1, &stamp, Duration::from_secs(9));
        ready.note("d", 1, &stamp, Duration::from_secs(1));
        ready.note("b", 2, &stamp, Duration::from_secs(1));
        let mut next = ReadyFirst::beside(&socket);
        assert!(next.knows("b", 2, &stamp) && !next.knows("b", 1, &stamp));
        assert!(!next.knows("b", 2, &Stamp::made_up(2)), "its files have changed");
        assert_eq!(order(&next, &["a", "b", "c", "d"]), ["d", "c", "a", "b"]);
        next.retain(|name, _| name != "d");
        assert_eq!(order(&ReadyFirst::beside(&socket), &["a", "b", "c", "d"]), ["c", "a", "b", "d"]);
        forget(&socket);
        assert_eq!(order(&ReadyFirst::beside(&socket), &["a", "c"]), ["a", "c"]);
    }
}
