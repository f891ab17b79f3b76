//! Connections to other servers, apart by who vouches for the certificates of those servers: the system, or the certificates
//! of a file. Decides when such a file is read again; never where a request goes.
//!
//! A file that is replaced is noticed within a few seconds. One that has become unreadable is told, and the certificates
//! that were read before stay in force: they were right until just now.

use pingora::connectors::ConnectorOptions;
use pingora::connectors::http::Connector;
use pingora::tls::{RootCertStore, load_ca_file_into_store};
use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

/// A file is looked at again after this.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// More files than this are not remembered: policies that change come and go.
const FILES_MAX: usize = 64;

/// Idle connections that are kept to all servers whose certificates the same ones vouch for.
const IDLE_CONNECTIONS_MAX: usize = 128;

/// The ways to other servers; shared by all requests.
#[derive(Default)]
pub(crate) struct Connectors {
    kept: Mutex<HashMap<Option<Arc<Path>>, Kept>>,
}

#[derive(Clone)]
struct Kept {
    connector: Arc<Connector>,
    /// The file, when it was read.
    modified: Option<SystemTime>,
    looked: Instant,
}

impl fmt::Debug for Connectors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connectors").finish_non_exhaustive()
    }
}

impl Connectors {
    /// The way to a server whose certificate those of this file vouch for; without one, those of the system do.
    ///
    /// # Errors
    /// Why there is none.
    pub(crate) async fn of(&self, ca: Option<&Arc<Path>>) -> Result<Arc<Connector>, String> {
        let (key, now) = (ca.cloned(), Instant::now());
        let kept = self.kept.lock().expect("no panic under this lock").get(&key).cloned();
        let is_recent = |kept: &Kept| ca.is_none() || now.duration_since(kept.looked) < LOOK_EVERY;
        if let Some(kept) = kept.as_ref().filter(|kept| is_recent(kept)) {
            return Ok(Arc::clone(&kept.connector));
        }
        // Reads files, and pingora panics where it cannot.
        let (file, before) = (key.clone(), kept.clone());
        let made = tokio::task::spawn_blocking(move || make(file.as_deref(), before, now)).await;
        let made = made.map_err(|_| "the certificates that are trusted cannot be read".to_owned()).flatten();
        let next = match (made, kept) {
            (Ok(made), _) => made,
            (Err(error), Some(kept)) => {
                tracing::error!("the certificates that were read before stay in force: {error}");
                Kept { looked: now, ..kept }
            }
            (Err(error), None) => return Err(error),
        };
        let connector = Arc::clone(&next.connector);
        let mut kept = self.kept.lock().expect("no panic under this lock");
        if kept.len() >= FILES_MAX {
            kept.clear();
        }
        kept.insert(key, next);
        Ok(connector)
    }
}

/// The same as before, if that is what the file still holds.
fn make(ca: Option<&Path>, before: Option<Kept>, now: Instant) -> Result<Kept, String> {
    let Some(ca) = ca else {
        return Ok(Kept { connector: Arc::new(Connector::new(None)), modified: None, looked: now });
    };
    let unreadable = |error: &dyn fmt::Display| format!("{}: {error}", ca.display());
    let modified =
        std::fs::metadata(ca).and_then(|file| file.modified()).map_err(|error| unreadable(&error))?;
    if let Some(before) = before.filter(|before| before.modified == Some(modified)) {
        return Ok(Kept { looked: now, ..before });
    }
    let mut trusted = RootCertStore::empty();
    load_ca_file_into_store(ca, &mut trusted).map_err(|error| unreadable(&error))?;
    if trusted.is_empty() {
        return Err(unreadable(&"it holds no certificate"));
    }
    let file = ca.to_str().ok_or_else(|| unreadable(&"its name is not UTF-8"))?.to_owned();
    let options = ConnectorOptions { ca_file: Some(file), ..ConnectorOptions::new(IDLE_CONNECTIONS_MAX) };
    Ok(Kept { connector: Arc::new(Connector::new(Some(options))), modified: Some(modified), looked: now })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_without_certificates_is_no_way_to_anybody() {
        let folder = tempfile::tempdir().unwrap();
        let file: Arc<Path> = folder.path().join("ca.pem").into();
        let connectors = Connectors::default();
        let why = connectors.of(Some(&file)).await.err().unwrap();
        assert!(why.ends_with("No such file or directory (os error 2)"), "{why}");
        std::fs::write(&file, "").unwrap();
        let why = connectors.of(Some(&file)).await.err().unwrap();
        assert!(why.ends_with("ca.pem: it holds no certificate"), "{why}");
    }
}
