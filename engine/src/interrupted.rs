//! Remembers which version is being tried out in a file that outlives the process. A trial that a segmentation fault or
//! the kernel cuts short would otherwise be begun again by the next engine, and by the one after that, and take all
//! other models along each time. Decides that twice is enough; never that the version is bad: whoever orders it to be
//! loaded has it tried again.

use crate::library::Stamp;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::{fs, io};

/// So often a trial may end the engine; the first time may have been an accident.
const TIMES_MAX: u32 = 2;

/// The trial that is under way, or that was when the last engine ended.
pub(crate) struct Interrupted {
    path: PathBuf,
    last: Option<Record>,
}

#[derive(Serialize, Deserialize)]
struct Record {
    model: String,
    version: u64,
    /// Of its files: when they have changed, it is another version.
    stamp: String,
    /// Trials that have begun and not ended.
    times: u32,
}

impl Interrupted {
    /// What the engine that listened at `socket` before this one has left.
    pub(crate) fn beside(socket: &Path) -> Self {
        let path = file_of(socket);
        let last = fs::read(&path).ok().and_then(|text| serde_json::from_slice(&text).ok());
        Self { path, last }
    }

    /// Notes that a trial begins; an error says why it does not.
    pub(crate) fn begin(&mut self, model: &str, version: u64, stamp: &Stamp) -> Result<(), String> {
        let stamp = format!("{stamp:?}");
        let is_same = |last: &&Record| (&*last.model, last.version, &last.stamp) == (model, version, &stamp);
        let times = self.last.as_ref().filter(is_same).map_or(0, |last| last.times);
        if times >= TIMES_MAX {
            return Err(format!(
                "its trial has ended the engine {times} times; it is tried again when its files change or somebody loads it"
            ));
        }
        self.last = Some(Record { model: model.to_owned(), version, stamp, times: times + 1 });
        if let Err(error) = self.write() {
            tracing::debug!("{}: {error}", self.path.display());
        }
        Ok(())
    }

    /// It has ended, one way or the other, and the engine lives.
    pub(crate) fn end(&mut self) {
        self.last = None;
        forget(&self.path);
    }

    /// Lets a version be tried again that somebody asks for.
    pub(crate) fn forgive(&mut self, model: &str) {
        if self.last.as_ref().is_some_and(|last| last.model == model) {
            self.end();
        }
    }

    fn write(&self) -> io::Result<()> {
        fs::write(&self.path, serde_json::to_vec(&self.last)?)
    }
}

/// The engine that listens at `socket` is told to stop: if that cuts a trial short, it is not the version's doing.
pub(crate) fn excuse(socket: &Path) {
    forget(&file_of(socket));
}

fn file_of(socket: &Path) -> PathBuf {
    let mut path = socket.as_os_str().to_owned();
    path.push(".trial");
    path.into()
}

fn forget(path: &Path) {
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::debug!("{}: {error}", path.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_that_ends_the_engine_twice_is_left_out_until_it_changes_or_is_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("engine.sock");
        // Each engine is the process that begins a trial and is killed in it.
        let begin = |version, stamp| Interrupted::beside(&socket).begin("m", version, &Stamp::made_up(stamp));
        assert_eq!((begin(2, 1), begin(2, 1)), (Ok(()), Ok(())));
        let why = begin(2, 1).unwrap_err();
        assert!(why.starts_with("its trial has ended the engine 2 times"), "{why}");
        assert_eq!(begin(2, 7), Ok(()), "its files have changed");
        assert_eq!((begin(2, 7), begin(2, 7).is_err()), (Ok(()), true));
        let mut asked = Interrupted::beside(&socket);
        asked.forgive("m");
        assert_eq!(asked.begin("m", 2, &Stamp::made_up(7)), Ok(()));
        asked.end();
        assert_eq!((begin(2, 7), begin(2, 7)), (Ok(()), Ok(())), "a trial that ended counts for nothing");
        excuse(&socket);
        assert_eq!(begin(2, 7), Ok(()), "one that was told to stop is no accident");
    }
}
