//! What is fixed when the process starts: addresses, the engine, limits, traces. Two types: the YAML as users
//! write it, and [`Config`], checked, with every path made absolute and every default filled in. Which version
//! answers whom is not here but in the policy file, which changes while the process runs.

use crate::access::AccessConfig;
use crate::body::BodyLimits;
use crate::drain::DrainTimes;
use crate::export::{Collector, Otlp};
use crate::log::Format;
use crate::supervisor::{EngineCommand, SUCCESSOR};
use crate::trace::TraceConfig;
use anyhow::{Context, ensure};
use garde::Validate;
use serde::de::Error as _;
use serde::de::value::MapDeserializer;
use serde::{Deserialize, Deserializer};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use xxhash_rust::xxh3::xxh3_64;

/// Settings of one process, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Where they were read.
    pub file: PathBuf,
    /// Where clients come.
    pub http: SocketAddr,
    /// Where clients come that speak gRPC; `None` means nowhere.
    pub grpc: Option<SocketAddr>,
    /// Where metrics and health are read.
    pub monitor: SocketAddr,
    /// Where a person may change things while the process runs.
    pub admin: Option<SocketAddr>,
    /// Threads that serve clients.
    pub workers: usize,
    /// The policy file, watched; `None` means no policy.
    pub policies: Option<PathBuf>,
    /// Where progress of canaries is kept.
    pub state: Option<PathBuf>,
    /// Where the engine listens.
    pub socket: PathBuf,
    /// How to start the engine; `None` if somebody else runs it.
    pub engine: Option<EngineCommand>,
    /// Whether clients may have models loaded and unloaded.
    pub control: bool,
    /// Limits of request bodies.
    pub body: BodyLimits,
    /// Requests being worked on at once.
    pub in_flight_max: usize,
    /// Bytes of their bodies and of their answers together.
    pub in_flight_bytes_max: usize,
    /// Bytes of memory that each worker shares with the engine, for large bodies; 0 for none.
    pub shared_bytes: usize,
    /// The form of log lines.
    pub log: Format,
    /// Which requests leave a line, if any.
    pub access: Option<AccessConfig>,
    /// Where traces go, if anywhere.
    pub traces: Option<TraceConfig>,
    /// How to stop.
    pub drain: DrainTimes,
}

#[derive(Deserialize, Validate)]
#[serde(deny_unknown_fields)]
struct RawConfig {
    #[serde(default)]
    #[garde(skip)]
    listen: RawListen,
    #[serde(default = "one")]
    // The engine serves 256 connections. HTTP and gRPC have so many threads each, and others may share it.
    #[garde(range(min = 1, max = 120))]
    workers: usize,
    #[serde(default, deserialize_with = "given")]
    #[garde(skip)]
    policies: Option<PathBuf>,
    #[serde(default, deserialize_with = "given")]
    #[garde(skip)]
    state: Option<PathBuf>,
    #[garde(dive)]
    engine: RawEngine,
    #[serde(default)]
    #[garde(dive)]
    requests: RawRequests,
    #[serde(default)]
    #[garde(dive)]
    log: RawLog,
    #[serde(default, deserialize_with = "traces")]
    #[garde(dive)]
    traces: Option<RawTraces>,
    #[serde(default)]
    #[garde(skip)]
    drain: RawDrain,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawListen {
    http: SocketAddr,
    grpc: Option<SocketAddr>,
    monitor: SocketAddr,
    #[serde(deserialize_with = "given")]
    admin: Option<SocketAddr>,
}

impl Default for RawListen {
    fn default() -> Self {
        Self {
            http: SocketAddr::from(([127, 0, 0, 1], 8000)),
            grpc: Some(SocketAddr::from(([127, 0, 0, 1], 8001))),
            monitor: SocketAddr::from(([127, 0, 0, 1], 8002)),
            admin: None,
        }
    }
}

impl RawListen {
    /// Each must be free when the process starts, which the second of two is not.
    fn must_differ(&self) -> anyhow::Result<()> {
        let named = [
            ("http", Some(self.http)),
            ("grpc", self.grpc),
            ("monitor", Some(self.monitor)),
            ("admin", self.admin),
        ];
        let all: Vec<_> = named.into_iter().filter_map(|(name, address)| Some((name, address?))).collect();
        // An address of all interfaces is one of each; that of IPv6 takes IPv4 as well.
        let covers = |all: &SocketAddr, one: &SocketAddr| {
            all.ip() == one.ip() || all.ip().is_unspecified() && (all.is_ipv6() || one.is_ipv4())
        };
        let collide = |one: &SocketAddr, other: &SocketAddr| {
            one.port() == other.port() && one.port() != 0 && (covers(one, other) || covers(other, one))
        };
        for (at, (name, address)) in all.iter().enumerate() {
            if let Some((other, _)) = all[..at].iter().find(|(_, other)| collide(address, other)) {
                anyhow::bail!("listen.{other} and listen.{name} take the same address");
            }
        }
        Ok(())
    }
}

#[derive(Deserialize, Validate)]
#[serde(deny_unknown_fields)]
struct RawEngine {
    #[serde(default = "yes")]
    #[garde(skip)]
    managed: bool,
    #[serde(default, deserialize_with = "given")]
    #[garde(skip)]
    socket: Option<PathBuf>,
    #[serde(default, deserialize_with = "given")]
    #[garde(skip)]
    binary: Option<PathBuf>,
    #[serde(default, deserialize_with = "given")]
    #[garde(skip)]
    models: Option<PathBuf>,
    #[serde(default, deserialize_with = "given")]
    #[garde(skip)]
    device: Option<String>,
    #[serde(default, deserialize_with = "given")]
    #[garde(range(min = 1, max = 1024))]
    lanes: Option<usize>,
    #[serde(default, deserialize_with = "given")]
    #[garde(range(min = 1, max = 1024))]
    threads_per_lane: Option<usize>,
    #[serde(default, deserialize_with = "given")]
    #[garde(range(min = 1, max = 1 << 32))]
    memory_mib: Option<u64>,
    #[serde(default)]
    #[garde(skip)]
    control: bool,
}

#[derive(Deserialize, Validate)]
#[serde(deny_unknown_fields, default)]
struct RawRequests {
    #[garde(range(min = 1, max = 255))]
    body_mib_max: usize,
    #[serde(deserialize_with = "duration")]
    #[garde(skip)]
    body_time_max: Duration,
    #[garde(range(min = 1, max = 1_000_000))]
    in_flight_max: usize,
    #[garde(range(min = 1, max = 1_000_000))]
    in_flight_mib_max: usize,
    #[garde(range(max = 65_536))]
    shared_mib: usize,
}

impl Default for RawRequests {
    fn default() -> Self {
        Self {
            body_mib_max: 64,
            body_time_max: Duration::from_secs(30),
            in_flight_max: 1024,
            in_flight_mib_max: 512,
            shared_mib: 32,
        }
    }
}

#[derive(Deserialize, Validate, Default)]
#[serde(deny_unknown_fields, default)]
struct RawLog {
    #[garde(skip)]
    format: Format,
    #[serde(deserialize_with = "given")]
    #[garde(inner(custom(is_share)))]
    access: Option<f64>,
}

#[derive(Deserialize, Validate)]
#[serde(deny_unknown_fields)]
struct RawTraces {
    #[garde(custom(is_http_url))]
    endpoint: String,
    #[serde(default)]
    #[garde(skip)]
    protocol: Otlp,
    #[serde(default = "one_second", deserialize_with = "duration")]
    #[garde(skip)]
    slow: Duration,
    #[serde(default = "one_percent")]
    #[garde(custom(is_share))]
    sample: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawDrain {
    #[serde(deserialize_with = "duration_or_zero")]
    delay: Duration,
    #[serde(deserialize_with = "duration")]
    timeout: Duration,
}

impl Default for RawDrain {
    fn default() -> Self {
        Self { delay: Duration::ZERO, timeout: Duration::from_secs(30) }
    }
}

/// Another file of the process whose state file this is.
fn beside(state: &Path, what: &str) -> PathBuf {
    let mut name = if state.extension().is_some_and(|extension| extension == "json") {
        state.with_extension("").into_os_string()
    } else {
        state.as_os_str().to_owned() // `penstock.blue` and `penstock.green` are two
    };
    name.push(".");
    name.push(what);
    name.into()
}

impl Config {
    /// What else is kept where the state is, under this name.
    pub(crate) fn beside_state(&self, what: &str) -> Option<PathBuf> {
        self.state.as_deref().map(|state| beside(state, what))
    }

    /// Reads and checks a file. Relative paths in it are relative to its folder.
    pub fn read(file: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(file)
            .with_context(|| format!("cannot read the configuration {}", file.display()))?;
        let raw: RawConfig = serde_saphyr::from_str_valid(&text)
            .map_err(|error| anyhow::anyhow!("{}: {error}", file.display()))?;
        Self::check(raw, std::path::absolute(file)?).with_context(|| format!("in {}", file.display()))
    }

    fn check(raw: RawConfig, file: PathBuf) -> anyhow::Result<Self> {
        let folder = file.parent().unwrap_or(Path::new(""));
        raw.listen.must_differ()?;
        if let Some(admin) = raw.listen.admin {
            ensure!(
                admin.ip().is_loopback(),
                "listen.admin: {admin} is not on loopback, and who reaches it may do everything; give such as 127.0.0.1:8003"
            );
        }
        let socket = match raw.engine.socket.clone() {
            Some(socket) => folder.join(socket),
            None if raw.engine.managed => default_socket(raw.listen.http.port()),
            None => anyhow::bail!(
                "engine.socket: required with `managed: false`, the path at which the engine listens"
            ),
        };
        let length = socket.as_os_str().len();
        let most = SOCKET_PATH_MAX - if raw.engine.managed { SUCCESSOR.len() } else { 0 };
        ensure!(
            length <= most,
            "engine.socket: {} is {length} bytes long, at most {most} can be used",
            socket.display()
        );
        let state = raw.state.map(|path| folder.join(path));
        // What engines learn is for all that come after: those that take turns, and those of a later start. Another folder of
        // models may be served at the same port later.
        let references = match &state {
            Some(state) => beside(state, "references"),
            None => {
                let mut beside = socket.clone().into_os_string();
                let models = folder.join(raw.engine.models.as_deref().unwrap_or(Path::new("")));
                let models = models.canonicalize().unwrap_or(models);
                let of = xxh3_64(models.as_os_str().as_encoded_bytes()) as u32;
                beside.push(format!(".{of:08x}.references"));
                beside.into()
            }
        };
        Ok(Self {
            engine: engine_command(&raw.engine, raw.log.format, folder, &references)?,
            policies: raw.policies.map(|path| folder.join(path)),
            state,
            file,
            http: raw.listen.http,
            grpc: raw.listen.grpc,
            monitor: raw.listen.monitor,
            admin: raw.listen.admin,
            workers: raw.workers,
            control: raw.engine.control,
            socket,
            body: BodyLimits {
                bytes_max: raw.requests.body_mib_max << 20,
                time_max: raw.requests.body_time_max,
            },
            in_flight_max: raw.requests.in_flight_max,
            in_flight_bytes_max: raw.requests.in_flight_mib_max << 20,
            shared_bytes: raw.requests.shared_mib << 20,
            log: raw.log.format,
            access: raw.log.access.map(|sample| AccessConfig { sample, format: raw.log.format }),
            traces: raw.traces.map(|traces| TraceConfig {
                collector: Collector { endpoint: traces.endpoint, protocol: traces.protocol },
                sample: traces.sample,
                slow: traces.slow,
            }),
            drain: DrainTimes { delay: raw.drain.delay, timeout: raw.drain.timeout },
        })
    }
}

/// `sun_path` holds 108 bytes, the last of them a zero.
const SOCKET_PATH_MAX: usize = 107;

/// Stable per port, so that what a killed process leaves behind is found and replaced by the next.
pub(crate) fn default_socket(port: u16) -> PathBuf {
    let folder = std::env::var_os("XDG_RUNTIME_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    folder.join(format!("penstock-{port}.sock"))
}

fn engine_command(
    raw: &RawEngine,
    format: Format,
    folder: &Path,
    references: &Path,
) -> anyhow::Result<Option<EngineCommand>> {
    if !raw.managed {
        let own = [
            ("binary", raw.binary.is_some()),
            ("models", raw.models.is_some()),
            ("device", raw.device.is_some()),
            ("lanes", raw.lanes.is_some()),
            ("threads_per_lane", raw.threads_per_lane.is_some()),
            ("memory_mib", raw.memory_mib.is_some()),
        ];
        if let Some((name, _)) = own.iter().find(|(_, present)| *present) {
            anyhow::bail!(
                "engine.{name}: says how to start an engine, but `managed: false` says that somebody else does"
            );
        }
        return Ok(None);
    }
    let models =
        raw.models.as_ref().context("engine.models: missing, the folder with NAME/VERSION/model.pt")?;
    let models = folder.join(models);
    ensure!(models.is_dir(), "engine.models: {} is not a folder", models.display());
    let binary = match &raw.binary {
        Some(binary) => folder.join(binary),
        None => std::env::current_exe()?.with_file_name("penstock-engine"),
    };
    ensure!(binary.is_file(), "engine.binary: {} does not exist", binary.display());
    let mut arguments = vec!["--models".to_owned(), models.display().to_string()];
    let mut option = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            arguments.extend([name.to_owned(), value]);
        }
    };
    option("--device", raw.device.clone());
    option("--lanes", raw.lanes.map(|lanes| lanes.to_string()));
    option("--threads-per-lane", raw.threads_per_lane.map(|threads| threads.to_string()));
    option("--memory-mib", raw.memory_mib.map(|mib| mib.to_string()));
    option("--references", Some(references.display().to_string()));
    option("--log-format", Some(format.as_str().to_owned()));
    Ok(Some(EngineCommand { binary, arguments }))
}

/// What is off, or as usual, where its key is not there. A key with nothing after it, which may still be commented out, would be the
/// same without a word.
fn given<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    let given = Option::deserialize(deserializer)?;
    given.map(Some).ok_or_else(|| D::Error::custom("expected a value; without one, leave the key out"))
}

/// Likewise; what it lacks is named.
fn traces<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<RawTraces>, D::Error> {
    let nothing = || MapDeserializer::new(std::iter::empty::<((), ())>());
    Option::deserialize(deserializer)?.map_or_else(|| RawTraces::deserialize(nothing()), Ok).map(Some)
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    policies::parse_duration(&text).map_err(D::Error::custom)
}

fn duration_or_zero<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text == "0s" { Ok(Duration::ZERO) } else { policies::parse_duration(&text).map_err(D::Error::custom) }
}

/// Which `.nan` is not.
fn is_share(share: &f64, _: &()) -> garde::Result {
    if (0.0..=1.0).contains(share) {
        return Ok(());
    }
    Err(garde::Error::new(format!("expected a share from 0 to 1, got {share}")))
}

fn is_http_url(url: &str, _: &()) -> garde::Result {
    let uri: Result<http::Uri, _> = url.parse();
    match uri {
        Ok(uri) if uri.scheme_str() == Some("http") && uri.host().is_some() => Ok(()),
        _ => Err(garde::Error::new(format!(
            "expected a collector such as `http://127.0.0.1:4317`, got `{url}`"
        ))),
    }
}

fn one() -> usize {
    1
}

fn yes() -> bool {
    true
}

fn one_second() -> Duration {
    Duration::from_secs(1)
}

fn one_percent() -> f64 {
    0.01
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Config, String> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("models")).unwrap();
        std::fs::write(folder.path().join("engine"), "").unwrap();
        let file = folder.path().join("penstock.yaml");
        std::fs::write(&file, text).unwrap();
        Config::read(&file).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn defaults_are_tritons_ports_on_loopback() {
        let config = read("engine: {models: models, binary: engine}").unwrap();
        assert_eq!(
            (config.http.to_string(), config.monitor.to_string()),
            ("127.0.0.1:8000".into(), "127.0.0.1:8002".into())
        );
        assert_eq!(config.grpc.map(|address| address.to_string()).as_deref(), Some("127.0.0.1:8001"));
        assert_eq!(config.traces, None);
        let engine = config.engine.unwrap();
        assert!(engine.arguments[1].ends_with("/models") && Path::new(&engine.arguments[1]).is_absolute());
    }

    #[test]
    fn what_engines_learn_is_for_all_that_come_after_and_lies_with_the_state_if_there_is_one() {
        let references = |more: &str| {
            let engine = format!("engine: {{models: models, binary: engine, socket: e.sock}}\n{more}");
            let arguments = read(&engine).unwrap().engine.unwrap().arguments;
            let at = arguments.iter().position(|argument| argument == "--references").unwrap();
            Path::new(&arguments[at + 1]).file_name().unwrap().to_owned()
        };
        let beside = references("").into_string().unwrap();
        assert!(beside.starts_with("e.sock.") && beside.ends_with(".references"), "{beside}");
        assert_eq!(references("state: state.json"), "state.references");
    }

    #[test]
    fn grpc_can_be_turned_off() {
        let config = read("engine: {models: models, binary: engine}\nlisten: {grpc: null}").unwrap();
        assert_eq!(config.grpc, None);
    }

    #[test]
    fn ports_on_different_addresses_and_ports_that_the_system_gives_may_be_the_same() {
        let engine = "engine: {models: models, binary: engine}\n";
        for listen in [
            "{http: '10.0.0.1:1', monitor: '127.0.0.1:1'}",
            "{http: '127.0.0.1:0', monitor: '127.0.0.1:0', admin: '127.0.0.1:0'}",
            "{http: '0.0.0.0:1', admin: '[::1]:1'}",
        ] {
            read(&format!("{engine}listen: {listen}")).unwrap();
        }
    }

    #[test]
    fn durations_and_shares_are_read_and_bounded() {
        let config = read(
            "engine: {managed: false, socket: /run/e.sock}\ntraces: {endpoint: 'http://[::1]:4317', sample: 0.5}\ndrain: {delay: 0s, timeout: 5s}",
        )
        .unwrap();
        assert_eq!(config.engine, None);
        assert_eq!(config.drain, DrainTimes { delay: Duration::ZERO, timeout: Duration::from_secs(5) });
        assert_eq!(config.traces.unwrap().sample, 0.5);
    }

    #[test]
    fn each_mistake_is_named() {
        let engine = "engine: {models: models, binary: engine}\n";
        for (text, says) in [
            ("{}", "missing field `engine`"),
            ("engine: {}", "engine.models: missing"),
            ("engine: {models: nowhere, binary: engine}", "nowhere is not a folder"),
            ("engine: {models: models, binary: none}", "none does not exist"),
            ("engine: {managed: false}", "engine.socket: required"),
            ("engine: {managed: false, socket: s, models: models}", "engine.models: says how to start"),
            (
                &format!("engine: {{managed: false, socket: /{}}}", "x".repeat(107)),
                "108 bytes long, at most 107 can be used",
            ),
            (&format!("{engine}listen: {{http: 'localhost'}}"), "line 2"),
            (
                &format!("{engine}listen: {{admin: '0.0.0.0:8003'}}"),
                "listen.admin: 0.0.0.0:8003 is not on loopback",
            ),
            (&format!("{engine}workers: 0"), "workers"),
            (&format!("{engine}traces: {{endpoint: 'https://x:1'}}"), "such as `http://127.0.0.1:4317`"),
            (&format!("{engine}traces: {{endpoint: 'http://x:1', sample: 2}}"), "sample"),
            (&format!("{engine}log: {{access: .nan}}"), "expected a share from 0 to 1, got NaN"),
            (
                &format!("{engine}traces: {{endpoint: 'http://x:1', protocol: udp}}"),
                "expected one of grpc, http",
            ),
            (&format!("{engine}traces: {{endpoint: 'http://x:1', slow: 1}}"), "slow"),
            (&format!("{engine}log: {{format: xml}}"), "expected one of pretty, json"),
            (&format!("{engine}log: {{access: 2}}"), "access"),
            (&format!("{engine}drain: {{timeout: soon}}"), "got `soon`"),
            (&format!("{engine}lisen: {{}}"), "lisen"),
            (
                &format!("{engine}traces:\n#  endpoint: http://x:1\n"),
                "line 2 column 1: missing field `endpoint`",
            ),
            (&format!("{engine}state:\n"), "expected a value; without one, leave the key out"),
            (&format!("{engine}policies: null\n"), "expected a value"),
            (&format!("{engine}log: {{access: }}"), "expected a value"),
            (&format!("{engine}listen: {{admin: ~}}"), "expected a value"),
            ("engine: {models: models, binary: engine, lanes: }", "expected a value"),
            ("engine: {models: models, binary: engine, device: }", "expected a value"),
            (&format!("{engine}requests:\n"), "expected mapping"),
            (
                &format!("{engine}listen: {{http: '127.0.0.1:1', monitor: '127.0.0.1:1'}}"),
                "listen.http and listen.monitor take the same address",
            ),
            (
                &format!("{engine}listen: {{http: '127.0.0.1:8001'}}"),
                "listen.http and listen.grpc take the same address",
            ),
            (
                &format!("{engine}listen: {{http: '0.0.0.0:1', admin: '127.0.0.1:1'}}"),
                "listen.http and listen.admin take the same address",
            ),
            (
                &format!("{engine}listen: {{monitor: '[::]:1', admin: '127.0.0.1:1'}}"),
                "listen.monitor and listen.admin take the same address",
            ),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(says), "{text}\n→ {error}");
        }
    }
}
