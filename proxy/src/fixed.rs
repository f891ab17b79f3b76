//! What is fixed when the process starts, and what its file says by now. A change of it is not taken over while the process
//! runs, and that is said rather than left to be found out: in the log, in `penstock status`, and to who plans a change of
//! the policy. Reads the file; never changes anything.

use crate::config::{self, Config};
use serde::{Deserialize, Serialize};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// A change of such a file waits for a person in any case.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// The settings that the process has started with.
#[derive(Debug)]
pub struct Fixed {
    running: Config,
    last: Mutex<AtRestart>,
}

/// What another start would make different.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AtRestart {
    /// Settings of the file that are not those that are in force, such as `listen.http`.
    pub settings: Vec<String>,
    /// Why it would fail, if so.
    pub error: Option<String>,
}

impl Fixed {
    /// As they are in force from now on.
    pub fn new(running: Config) -> Self {
        Self { running, last: Mutex::default() }
    }

    /// What the last look at the file has shown.
    pub fn last(&self) -> AtRestart {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Looks at the file; what has changed about it since the last look is told in the log.
    pub fn look(&self) -> AtRestart {
        let now = match Config::read(&self.running.file) {
            Ok(config) => AtRestart { settings: differing(&self.running, &config), error: None },
            Err(error) => AtRestart { settings: Vec::new(), error: Some(format!("{error:#}")) },
        };
        let before =
            std::mem::replace(&mut *self.last.lock().unwrap_or_else(PoisonError::into_inner), now.clone());
        if before != now {
            let file = self.running.file.display();
            match now.in_words() {
                Some(words) => tracing::warn!("{file}: {words}"),
                None => tracing::info!("{file} says again what is in force"),
            }
        }
        now
    }

    /// Looks every now and then, and when somebody hangs up.
    pub(crate) async fn watch(self: std::sync::Arc<Self>) {
        let mut hangup = signal(SignalKind::hangup()).expect("signal handlers can be installed at start");
        loop {
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                _ = hangup.recv() => {}
            }
            let fixed = self.clone();
            let _ = tokio::task::spawn_blocking(move || fixed.look()).await; // it fails only as the process ends
        }
    }
}

impl AtRestart {
    /// Nothing if a restart would change nothing.
    pub fn in_words(&self) -> Option<String> {
        if let Some(error) = &self.error {
            return Some(format!("the configuration is no good, a restart would fail: {error}"));
        }
        let (last, others) = self.settings.split_last()?;
        let (names, need) = match others {
            [] => (last.clone(), "needs"),
            others => (format!("{} and {last}", others.join(", ")), "need"),
        };
        Some(format!("{names} {need} a restart: fixed at start, and changed in the configuration since"))
    }
}

/// By the names that they have in the file.
fn differing(running: &Config, file: &Config) -> Vec<String> {
    let Config {
        file: _,
        http,
        grpc,
        monitor,
        admin,
        workers,
        policies,
        state,
        socket,
        engine,
        control,
        body,
        in_flight_max,
        in_flight_bytes_max,
        shared_bytes,
        log,
        access,
        traces,
        drain,
    } = running;
    // Unless it is named, the socket goes with the port.
    let by_port = |config: &Config| config.socket == config::default_socket(config.http.port());
    let all = [
        ("listen.http", *http != file.http),
        ("listen.grpc", *grpc != file.grpc),
        ("listen.monitor", *monitor != file.monitor),
        ("listen.admin", *admin != file.admin),
        ("workers", *workers != file.workers),
        ("policies", *policies != file.policies),
        ("state", *state != file.state),
        ("engine.socket", *socket != file.socket && !(by_port(running) && by_port(file))),
        ("engine", *engine != file.engine),
        ("engine.control", *control != file.control),
        ("requests.body_mib_max", body.bytes_max != file.body.bytes_max),
        ("requests.body_time_max", body.time_max != file.body.time_max),
        ("requests.in_flight_max", *in_flight_max != file.in_flight_max),
        ("requests.in_flight_mib_max", *in_flight_bytes_max != file.in_flight_bytes_max),
        ("requests.shared_mib", *shared_bytes != file.shared_bytes),
        ("log", *log != file.log || *access != file.access),
        ("traces", *traces != file.traces),
        ("drain", *drain != file.drain),
    ];
    all.into_iter().filter(|(_, differs)| *differs).map(|(name, _)| name.to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_restart_would_change_is_named_until_it_is_put_back() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("penstock.yaml");
        let write = |more: &str| {
            std::fs::write(&file, format!("engine: {{managed: false, socket: e.sock}}\n{more}")).unwrap();
        };
        write("");
        let fixed = Fixed::new(Config::read(&file).unwrap());
        let says = |more: &str| {
            write(more);
            fixed.look().in_words()
        };
        assert_eq!(says(""), None);
        assert_eq!(says("# a comment"), None);
        let since = "fixed at start, and changed in the configuration since";
        assert_eq!(says("workers: 2"), Some(format!("workers needs a restart: {since}")));
        let all = "listen: {http: '127.0.0.1:9000', grpc: null, monitor: '127.0.0.1:9002', admin: '127.0.0.1:9003'}\n\
            workers: 2\npolicies: p.yaml\nstate: s.json\ntraces: {endpoint: 'http://127.0.0.1:4317'}\n\
            requests: {body_mib_max: 1, body_time_max: 1s, in_flight_max: 1, in_flight_mib_max: 1}\n\
            log: {access: 1}\ndrain: {delay: 1s}\n";
        assert_eq!(
            says(all),
            Some(format!(
                "listen.http, listen.grpc, listen.monitor, listen.admin, workers, policies, state, requests.body_mib_max, \
                 requests.body_time_max, requests.in_flight_max, requests.in_flight_mib_max, log, traces and drain need a \
                 restart: {since}"
            ))
        );
        std::fs::write(&file, "engine: {managed: false, socket: other.sock, control: true}").unwrap();
        assert_eq!(fixed.look().settings, ["engine.socket", "engine.control"]);
        assert_eq!(fixed.last().settings, ["engine.socket", "engine.control"]);
        let broken = says("wrkers: 2").unwrap();
        assert!(
            broken.starts_with("the configuration is no good, a restart would fail: ")
                && broken.contains("wrkers")
        );
        assert_eq!(says(""), None);
    }

    #[test]
    fn a_socket_that_goes_with_the_port_is_not_named_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("models")).unwrap();
        std::fs::write(folder.path().join("engine"), "").unwrap();
        let file = folder.path().join("penstock.yaml");
        let engine = "engine: {models: models, binary: engine";
        std::fs::write(&file, format!("{engine}}}")).unwrap();
        let fixed = Fixed::new(Config::read(&file).unwrap());
        std::fs::write(&file, format!("{engine}, lanes: 3}}\nlisten: {{http: '127.0.0.1:9000'}}")).unwrap();
        assert_eq!(fixed.look().settings, ["listen.http", "engine"]);
    }
}
