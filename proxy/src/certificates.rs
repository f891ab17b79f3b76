//! Tells of the files of certificates that a policy names and that are not what they are for, before a request finds out: to whoever plans
//! a policy or puts one in force. Decides nothing, and waits for no disk for longer than a moment.

use crate::connectors;
use policies::{Snapshot, Tls, Version};
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::Semaphore;

/// For all files together.
const PATIENCE: Duration = Duration::from_secs(1);

/// Threads that look at files. A disk that hangs keeps those that came to it, and further ones would be of no use.
static LOOKS: Semaphore = Semaphore::const_new(4);

/// Versions of `new` of which `old` did not say the same and whose servers cannot be asked, because of a file: the model, and a sentence.
pub(crate) async fn unreadable(old: &Snapshot, new: &Snapshot) -> Vec<(String, String)> {
    let is_new = |name: &str| old.model(name) != new.model(name);
    let models = new.models().filter(|(name, policy)| policy.has_remotes() && is_new(name));
    let named = models.flat_map(|(name, policy)| {
        policy.remotes().map(move |(version, remote)| (name.to_owned(), version, remote.tls().clone()))
    });
    let named: Vec<_> = named.filter(|(_, _, tls)| *tls != Tls::default()).collect();
    if named.is_empty() {
        return Vec::new();
    }
    let why = faults(named.iter().map(|(_, _, tls)| tls.clone()).collect()).await;
    let line = |(model, version, tls): (String, Version, Tls)| {
        let why = why.get(&tls)?;
        Some((format!("model {model}"), format!("version {version} cannot be asked: {why}")))
    };
    named.into_iter().filter_map(line).collect()
}

/// What is wrong with those with which something is, as far as that is seen in time; nothing is said of what nobody came to look at.
async fn faults(all: HashSet<Tls>) -> HashMap<Tls, String> {
    let Ok(look) = LOOKS.try_acquire() else { return HashMap::new() };
    let seen = Arc::new(Mutex::new(HashMap::new()));
    let noted = Arc::clone(&seen);
    let looking = tokio::task::spawn_blocking(move || {
        let note =
            |tls: &Tls, fault| noted.lock().expect("no panic under this lock").insert(tls.clone(), fault);
        for tls in &all {
            note(tls, Some(format!("its files could not be read within {PATIENCE:?}")));
            note(tls, connectors::check(tls).err());
        }
        drop(look);
    });
    let _ = tokio::time::timeout(PATIENCE, looking).await;
    let seen = seen.lock().expect("no panic under this lock");
    seen.iter().filter_map(|(tls, fault)| Some((tls.clone(), fault.clone()?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(ca: &str) -> Snapshot {
        let version = |number| format!("{number}: {{url: 'https://there/infer', ca: '{ca}'}}");
        let (one, other) = (version(7), version(8));
        policies::parse(&format!("models: {{m: {{remote: {{{one}, {other}}}}}, n: {{deadline: 1s}}}}"), "p")
            .unwrap()
    }

    #[tokio::test]
    async fn who_names_a_file_that_is_none_is_told_of_each_version_once() {
        let told = async |ca: &str| unreadable(&Snapshot::default(), &policy(ca)).await;
        let says = |version: u32, why: &str| {
            ("model m".to_owned(), format!("version {version} cannot be asked: {why}"))
        };
        let gone = "/nowhere/ca.pem: No such file or directory (os error 2)";
        assert_eq!(told("/nowhere/ca.pem").await, [says(7, gone), says(8, gone)]);
        assert_eq!(unreadable(&policy("/nowhere/ca.pem"), &policy("/nowhere/ca.pem")).await, []);
        let endless = "/dev/zero: it is no regular file";
        assert_eq!(told("/dev/zero").await, [says(7, endless), says(8, endless)]);

        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("ca.pem");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR)
            .unwrap();
        let path = pipe.to_str().unwrap();
        let waits = format!("{path}: it is no regular file");
        assert_eq!(told(path).await, [says(7, &waits), says(8, &waits)]);
        std::fs::remove_file(&pipe).unwrap();
        let long = std::fs::File::create(&pipe).unwrap();
        long.set_len(1 << 30).unwrap();
        let long = format!("{path}: it is longer than certificates are");
        assert_eq!(told(path).await, [says(7, &long), says(8, &long)]);
        std::fs::write(&pipe, rcgen::generate_simple_self_signed(vec!["us".to_owned()]).unwrap().cert.pem())
            .unwrap();
        assert_eq!(told(path).await, []);
    }
}
