//! A file beside the socket that outlives the process: what one engine tells the next. Decides that it is whole or not
//! there, and that nothing fails for want of it; never what is in it.

use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};
use std::{fs, io};

/// Where it is.
pub(crate) struct Kept(PathBuf);

impl Kept {
    /// Of the engine that listens at `socket`.
    pub(crate) fn beside(socket: &Path, ending: &str) -> Self {
        Self(with_ending(socket, ending))
    }

    /// What an engine before this one has left, if it can be read.
    pub(crate) fn read<T: DeserializeOwned + Default>(&self) -> T {
        let text = fs::read(&self.0).ok();
        text.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
    }

    /// Replaces it.
    pub(crate) fn write(&self, content: &impl Serialize) {
        let text = serde_json::to_vec(content).expect("names and numbers");
        let new = with_ending(&self.0, ".new");
        self.note(fs::write(&new, text).and_then(|()| fs::rename(&new, &self.0)));
    }

    /// There is nothing to tell.
    pub(crate) fn forget(&self) {
        match fs::remove_file(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            removed => self.note(removed),
        }
    }

    fn note(&self, done: io::Result<()>) {
        if let Err(error) = done {
            tracing::debug!("{}: {error}", self.0.display());
        }
    }
}

fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(ending);
    path.into()
}
