//! Connections to other servers, apart by who vouches for the certificates of those servers, the system or the certificates
//! of a file, and by the certificate that they are shown. Decides when such files are read again; never where a request goes.
//!
//! A file that is replaced is noticed within a few seconds. One that has become unreadable is told, and the certificates
//! that were read before stay in force: they were right until just now.

use crate::files;
use pingora::connectors::ConnectorOptions;
use pingora::connectors::http::Connector;
use pingora::tls::{ClientConfig, RootCertStore, load_ca_file_into_store, load_certs_and_key_files};
use policies::Tls;
use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

/// A file is looked at again after this.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// The system's own certificates are a twentieth of this.
const FILE_BYTES_MAX: usize = 4 << 20;

/// More files than this are not remembered: policies that change come and go.
const FILES_MAX: usize = 64;

/// Idle connections that are kept to all servers whose certificates the same ones vouch for.
const IDLE_CONNECTIONS_MAX: usize = 128;

/// The ways to other servers; shared by all requests.
#[derive(Default)]
pub(crate) struct Connectors {
    kept: Mutex<HashMap<Tls, Kept>>,
}

#[derive(Clone)]
struct Kept {
    connector: Arc<Connector>,
    /// The files, when they were read.
    modified: Vec<SystemTime>,
    looked: Instant,
}

impl fmt::Debug for Connectors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connectors").finish_non_exhaustive()
    }
}

impl Connectors {
    /// The way to a server that is shown this, and for whose certificate this vouches.
    ///
    /// # Errors
    /// Why there is none.
    pub(crate) async fn of(&self, tls: &Tls) -> Result<Arc<Connector>, String> {
        let (key, now) = (tls.clone(), Instant::now());
        let has_files = *tls != Tls::default();
        let kept = self.kept.lock().expect("no panic under this lock").get(&key).cloned();
        let is_recent = |kept: &Kept| !has_files || now.duration_since(kept.looked) < LOOK_EVERY;
        if let Some(kept) = kept.as_ref().filter(|kept| is_recent(kept)) {
            return Ok(Arc::clone(&kept.connector));
        }
        // Reads files, and pingora panics where it cannot.
        let (file, before) = (key.clone(), kept.clone());
        let made = tokio::task::spawn_blocking(move || make(&file, before, now)).await;
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

/// The same as before, if that is what the files still hold.
fn make(tls: &Tls, before: Option<Kept>, now: Instant) -> Result<Kept, String> {
    let modified = modified(tls)?;
    if let Some(before) = before.filter(|before| before.modified == modified) {
        return Ok(Kept { looked: now, ..before });
    }
    let (ca, own) = read(tls)?;
    let options = (ca.is_some() || own.is_some()).then(|| ConnectorOptions {
        ca_file: ca,
        cert_key_file: own,
        ..ConnectorOptions::new(IDLE_CONNECTIONS_MAX)
    });
    Ok(Kept { connector: Arc::new(Connector::new(options)), modified, looked: now })
}

/// Whether these files are there and hold what they are for.
///
/// # Errors
/// Which does not, and why.
pub(crate) fn check(tls: &Tls) -> Result<(), String> {
    read(tls).map(drop)
}

fn files_of(Tls { ca, own }: &Tls) -> impl Iterator<Item = &Arc<Path>> {
    ca.iter().chain(own.iter().flat_map(|(cert, key)| [cert, key]))
}

fn modified(tls: &Tls) -> Result<Vec<SystemTime>, String> {
    let modified = |file: &Arc<Path>| {
        let modified = std::fs::metadata(file).and_then(|file| file.modified());
        modified.map_err(|error| unreadable(file, &error))
    };
    files_of(tls).map(modified).collect()
}

/// Who reads it afterwards would wait for a pipe, and take a file of any length.
fn is_file(file: &Arc<Path>) -> Result<(), String> {
    let bytes = files::read_file_at_most(file, FILE_BYTES_MAX).map_err(|error| unreadable(file, &error))?;
    let is_short = bytes.len() <= FILE_BYTES_MAX;
    if is_short { Ok(()) } else { Err(unreadable(file, &"it is longer than certificates are")) }
}

type Names = (Option<String>, Option<(String, String)>);

/// The names of files that pingora can read, without a panic.
fn read(tls: &Tls) -> Result<Names, String> {
    files_of(tls).try_for_each(is_file)?;
    let Tls { ca, own } = tls;
    if let Some(ca) = ca {
        let mut trusted = RootCertStore::empty();
        load_ca_file_into_store(ca, &mut trusted).map_err(|error| unreadable(ca, &error))?;
        if trusted.is_empty() {
            return Err(unreadable(ca, &"it holds no certificate"));
        }
    }
    let own = own.as_ref().map(|(cert, key)| pair(cert, key)).transpose()?;
    Ok((ca.as_deref().map(name).transpose()?, own))
}

/// Pingora panics where these do not make a pair.
fn pair(cert: &Path, key: &Path) -> Result<(String, String), String> {
    let (cert_name, key_name) = (name(cert)?, name(key)?);
    let loaded = load_certs_and_key_files(&cert_name, &key_name).map_err(|error| unreadable(cert, &error))?;
    let (certs, own) =
        loaded.ok_or_else(|| unreadable(cert, &"it holds no certificate, or its key no key"))?;
    pingora::tls::install_default_crypto_provider();
    let config = ClientConfig::builder().with_root_certificates(RootCertStore::empty());
    config.with_client_auth_cert(certs, own).map_err(|error| unreadable(key, &error))?;
    Ok((cert_name, key_name))
}

fn name(file: &Path) -> Result<String, String> {
    file.to_str().map(str::to_owned).ok_or_else(|| unreadable(file, &"its name is not UTF-8"))
}

fn unreadable(file: &Path, error: &dyn fmt::Display) -> String {
    format!("{}: {error}", file.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_without_certificates_is_no_way_to_anybody() {
        let folder = tempfile::tempdir().unwrap();
        let file: Arc<Path> = folder.path().join("ca.pem").into();
        let connectors = Connectors::default();
        let tls = Tls { ca: Some(file.clone()), own: None };
        let why = connectors.of(&tls).await.err().unwrap();
        assert!(why.ends_with("No such file or directory (os error 2)"), "{why}");
        assert_eq!(check(&tls), Err(why));
        std::fs::write(&file, "").unwrap();
        let why = connectors.of(&tls).await.err().unwrap();
        assert!(why.ends_with("ca.pem: it holds no certificate"), "{why}");
    }

    #[tokio::test]
    async fn a_key_that_is_not_the_certificates_is_told_and_shown_to_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: String| -> Arc<Path> {
            let file = folder.path().join(name);
            std::fs::write(&file, text).unwrap();
            file.into()
        };
        let made = rcgen::generate_simple_self_signed(vec!["us".to_owned()]).unwrap();
        let other = rcgen::KeyPair::generate().unwrap();
        let cert = file("cert.pem", made.cert.pem());
        let (key, other) =
            (file("key.pem", made.signing_key.serialize_pem()), file("other.pem", other.serialize_pem()));
        let connectors = Connectors::default();
        let of = |key: &Arc<Path>| Tls { ca: None, own: Some((cert.clone(), key.clone())) };
        let why = connectors.of(&of(&other)).await.err().unwrap();
        assert!(why.contains("other.pem: "), "{why}");
        let why = connectors.of(&of(&cert)).await.err().unwrap();
        assert!(why.contains("cert.pem: "), "{why}");
        assert!(connectors.of(&of(&key)).await.is_ok());
        assert_eq!(check(&of(&key)), Ok(()));
        assert!(check(&of(&other)).is_err());
    }
}
