//! One running `penstock` (and the engine it manages, unless told otherwise) with its configuration in a
//! temporary folder. Stops both when dropped, however the scenario ends.

use crate::client::{Client, raw_exchange};
use crate::eventually;
use crate::grpc::GrpcClient;
use rustix::process::{Pid, Signal, kill_process};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

/// A folder of the checkout.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// A binary of this build: the test runs in `target/PROFILE/deps`, binaries stand one folder up.
pub fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a test has a path");
    let folder = test.parent().and_then(Path::parent).expect("cargo's layout");
    let binary = folder.join(name);
    assert!(binary.is_file(), "{} is missing: `make test` builds it before it tests", binary.display());
    binary
}

/// An address on which nobody listens at this moment.
pub fn free_address() -> SocketAddr {
    let [address] = free_addresses();
    address
}

/// Below those that the kernel gives to whoever connects: somebody who does could have one in the moment before it is listened on.
const PORTS: std::ops::Range<u16> = 10_000..32_000;

/// Several, no two the same, and none that this process was given before.
pub fn free_addresses<const N: usize>() -> [SocketAddr; N] {
    static GIVEN: AtomicUsize = AtomicUsize::new(0);
    // Processes that run at the same time begin at different ones.
    let first = std::process::id() as usize * 397;
    let port = || PORTS.start + ((first + GIVEN.fetch_add(1, Ordering::Relaxed)) % PORTS.len()) as u16;
    let free = || (0..PORTS.len()).find_map(|_| TcpListener::bind(("127.0.0.1", port())).ok());
    let listeners = [(); N].map(|()| free().expect("loopback has free ports"));
    listeners.each_ref().map(|listener| listener.local_addr().expect("it is bound"))
}

/// A stack to be.
pub struct StackBuilder {
    folder: tempfile::TempDir,
    policies: String,
    policy_file: Option<PathBuf>,
    models: PathBuf,
    external_engine: Option<PathBuf>,
    socket: Option<PathBuf>,
    memory_mib: u64,
    engine_arguments: String,
    machine_mib: Option<u64>,
    out: Out,
    more: String,
    demo: Option<String>,
}

/// What becomes of standard output and standard error.
#[derive(Clone, Copy, Debug)]
pub enum Out {
    /// Files in the stack's folder.
    File,
    /// A pipe that nobody empties.
    FullPipe,
    /// A pipe of which nobody has the other end.
    ClosedPipe,
    /// A disk without room.
    FullDisk,
}

impl StackBuilder {
    /// The text of the policy file.
    pub fn policies(mut self, text: &str) -> Self {
        self.policies = text.to_owned();
        self
    }

    /// A policy file that the scenario looks after itself.
    pub fn policy_file(mut self, file: &Path) -> Self {
        self.policy_file = Some(file.to_owned());
        self
    }

    /// Another model repository than the demo's.
    pub fn models(mut self, folder: impl Into<PathBuf>) -> Self {
        self.models = folder.into();
        self
    }

    /// An engine that somebody else runs, at this socket.
    pub fn external_engine(mut self, socket: &Path) -> Self {
        self.external_engine = Some(socket.to_owned());
        self
    }

    /// Where its own engine is to listen.
    pub fn socket(mut self, path: &Path) -> Self {
        self.socket = Some(path.to_owned());
        self
    }

    /// How much memory its own engine may hold.
    pub fn memory_mib(mut self, mib: u64) -> Self {
        self.memory_mib = mib;
        self
    }

    /// What its own engine is told beside what the configuration can say.
    pub fn engine_arguments(mut self, arguments: &str) -> Self {
        self.engine_arguments = arguments.to_owned();
        self
    }

    /// Its own engine takes the machine to have so much memory: another `/proc/meminfo` stands for that, which only it sees. See
    /// [`can_hide_memory`].
    pub fn machine_mib(mut self, mib: u64) -> Self {
        self.machine_mib = Some(mib);
        self
    }

    /// What becomes of its standard output and its standard error.
    pub fn out(mut self, out: Out) -> Self {
        self.out = out;
        self
    }

    /// More lines of configuration.
    pub fn config(mut self, lines: &str) -> Self {
        self.more.push_str(lines);
        self.more.push('\n');
        self
    }

    /// The demo's configuration in place of the stack's own, with what a reader has changed in it. Only its addresses and paths
    /// are others: the demo itself may be running.
    pub fn demo(mut self, changed: impl FnOnce(&str) -> String) -> Self {
        let text = std::fs::read_to_string(repository("configs/demo/penstock.yaml")).expect("the demo");
        self.demo = Some(changed(&text));
        self
    }

    /// Starts it and waits until it is ready.
    pub fn start(self) -> Stack {
        let stack = self.start_unready();
        eventually("the stack to be ready", || {
            (stack.client().get("/v2/health/ready").status == 200).then_some(())
        });
        stack
    }

    /// Starts it and waits until it answers at all.
    pub fn start_unready(self) -> Stack {
        let [http, grpc, monitor, admin] = free_addresses();
        let policies = self.policy_file.unwrap_or_else(|| {
            let file = self.folder.path().join("policies.yaml");
            std::fs::write(&file, &self.policies).expect("the temporary folder takes files");
            file
        });
        let engine = match &self.external_engine {
            Some(socket) => format!("{{managed: false, socket: '{}'}}", socket.display()),
            None => format!(
                "{{models: '{}', socket: '{}', binary: '{}', lanes: 2, control: true, memory_mib: {}}}",
                self.models.display(),
                self.socket.unwrap_or_else(|| self.folder.path().join("engine.sock")).display(),
                engine_binary(self.folder.path(), &self.engine_arguments, self.machine_mib).display(),
                self.memory_mib
            ),
        };
        let config = self.folder.path().join("penstock.yaml");
        let text = match self.demo {
            Some(demo) => {
                let here = [
                    ("127.0.0.1:8000", http.to_string()),
                    ("127.0.0.1:8001", grpc.to_string()),
                    ("127.0.0.1:8002", monitor.to_string()),
                    ("127.0.0.1:8003", admin.to_string()),
                    ("policies: policies.yaml", format!("policies: '{}'", policies.display())),
                    ("  models: models\n", format!("  models: '{}'\n", self.models.display())),
                ];
                here.into_iter().fold(demo, |text, (there, here)| {
                    assert_eq!(text.matches(there).count(), 1, "{there}");
                    text.replace(there, &here)
                })
            }
            None => format!(
                "listen: {{http: '{http}', grpc: '{grpc}', monitor: '{monitor}', admin: '{admin}'}}\npolicies: '{}'\nengine: {engine}\n{}",
                policies.display(),
                self.more
            ),
        };
        std::fs::write(&config, text).expect("the temporary folder takes files");
        let log = self.folder.path().join("log");
        let process = launch(self.folder.path(), self.out);
        let mut stack =
            Stack { folder: self.folder, process, out: self.out, http, grpc, monitor, admin, policies, log };
        eventually("penstock to answer", || {
            if let Ok(Some(status)) = stack.process.try_wait() {
                panic!("penstock ended with {status}:\n{}", stack.log());
            }
            stack.answers("/v2/health/live").then_some(())
        });
        stack
    }
}

/// How a process gets mounts of its own: nobody else sees them.
const OWN_MOUNTS: &str = "unshare --map-root-user --mount";

/// Whether [`StackBuilder::machine_mib`] can be had: some containers forbid it.
pub fn can_hide_memory() -> bool {
    let tried = format!("{OWN_MOUNTS} mount --bind /dev/null /proc/meminfo");
    let status = Command::new("sh").args(["-c", &tried]).status();
    status.is_ok_and(|status| status.success())
}

/// The engine's binary; a script that starts it with more arguments, or on a smaller machine, where that is wanted.
fn engine_binary(folder: &Path, arguments: &str, machine_mib: Option<u64>) -> PathBuf {
    let binary = binary("penstock-engine");
    if arguments.is_empty() && machine_mib.is_none() {
        return binary;
    }
    let script = folder.join("engine.sh");
    let smaller = machine_mib.map(|mib| {
        let file = folder.join("meminfo");
        std::fs::write(&file, format!("MemTotal: {} kB\n", mib << 10))
            .expect("the temporary folder takes files");
        format!("{OWN_MOUNTS} sh -c 'mount --bind \"$0\" /proc/meminfo && exec \"$@\"' '{}' ", file.display())
    });
    let text =
        format!("#!/bin/sh\nexec {}'{}' \"$@\" {arguments}\n", smaller.unwrap_or_default(), binary.display());
    std::fs::write(&script, text).expect("the temporary folder takes files");
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o700)).expect("it is ours");
    script
}

/// Starts the binary with the configuration of a folder.
fn launch(folder: &Path, out: Out) -> Child {
    let mut command = Command::new(binary("penstock"));
    command.arg("serve").arg("--config").arg(folder.join("penstock.yaml"));
    let file = |name| std::fs::File::create(folder.join(name)).expect("the temporary folder takes files");
    let to = |name| match out {
        Out::File => file(name).into(),
        Out::FullPipe => Stdio::piped(), // `Child` keeps the other end, and does not read
        Out::ClosedPipe => std::io::pipe().expect("a pipe").1.into(),
        Out::FullDisk => std::fs::File::create("/dev/full").expect("Linux has it").into(),
    };
    command.stdin(Stdio::null()).stdout(to("out")).stderr(to("log"));
    command.process_group(0).spawn().expect("the binary starts")
}

/// A running stack.
pub struct Stack {
    folder: tempfile::TempDir,
    process: Child,
    out: Out,
    /// Where it answers.
    pub http: SocketAddr,
    /// Where it answers over gRPC.
    pub grpc: SocketAddr,
    /// Where it shows metrics.
    pub monitor: SocketAddr,
    /// Where a person tells it what to do.
    pub admin: SocketAddr,
    /// Its policy file.
    pub policies: PathBuf,
    log: PathBuf,
}

impl Stack {
    /// The demo's models, no policy.
    pub fn builder() -> StackBuilder {
        StackBuilder {
            folder: tempfile::tempdir().expect("a temporary folder"),
            policies: "models: {}\n".into(),
            policy_file: None,
            models: repository("configs/demo/models"),
            external_engine: None,
            memory_mib: 8192,
            engine_arguments: String::new(),
            machine_mib: None,
            socket: None,
            out: Out::File,
            more: String::new(),
            demo: None,
        }
    }

    /// A client of its own connection pool.
    pub fn client(&self) -> Client {
        Client::new(self.http)
    }

    /// A client of its own connection.
    pub fn grpc_client(&self) -> GrpcClient {
        GrpcClient::new(self.grpc)
    }

    /// Its folder: policy file, configuration, log.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// What it has written to standard output so far, such as access lines.
    pub fn out(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("out")).unwrap_or_default()
    }

    /// The metrics page.
    pub fn metrics(&self) -> String {
        Client::new(self.monitor).get("/metrics").text()
    }

    /// The same in OpenMetrics text, which has examples.
    pub fn openmetrics(&self) -> String {
        let asks = "GET /metrics HTTP/1.1\r\nhost: x\r\naccept: application/openmetrics-text\r\nconnection: close\r\n\r\n";
        raw_exchange(self.monitor, asks.as_bytes(), false)
    }

    /// One line of the metrics page, as a number; 0 if it is not there yet.
    pub fn metric(&self, series: &str) -> f64 {
        let page = self.metrics();
        let line = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().expect("a number"))
    }

    /// Waits until a line of the metrics page has a value: it is counted after the answer has gone.
    pub fn wait_for_metric(&self, series: &str, value: f64) {
        eventually(&format!("{series} to be {value}"), || (self.metric(series) == value).then_some(()));
    }

    /// Process id of `penstock`.
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.process)
    }

    /// Process id of the engine that it manages at this moment.
    pub fn engine_pid(&self) -> Option<Pid> {
        let pid = self.pid().as_raw_nonzero();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
        let of_thread = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("children")).ok();
        let all = std::fs::read_dir(format!("/proc/{pid}/task"))
            .ok()?
            .flatten()
            .filter_map(of_thread)
            .collect::<String>();
        (children + &all).split_whitespace().next()?.parse().ok().and_then(Pid::from_raw)
    }

    /// Resident memory of `penstock`, bytes.
    pub fn resident_bytes(&self) -> u64 {
        self.bytes_of("VmRSS:")
    }

    /// The most that it has ever been.
    pub fn peak_bytes(&self) -> u64 {
        self.bytes_of("VmHWM:")
    }

    /// What of it is its own, and not pages of files.
    pub fn anonymous_bytes(&self) -> u64 {
        self.bytes_of("RssAnon:")
    }

    fn bytes_of(&self, field: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid().as_raw_nonzero()))
            .expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("Linux tells it");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("it runs");
    }

    /// Kills it, and starts it again with what it has left behind.
    pub fn restart(&mut self) {
        self.process.kill().expect("it runs");
        self.process.wait().expect("it is our child");
        self.process = launch(self.folder.path(), self.out);
        eventually("the stack to be ready again", || self.answers("/v2/health/ready").then_some(()));
    }

    /// Whether each of its ports does: they are opened one after the other.
    fn answers(&self, path: &str) -> bool {
        let ports = [(self.http, path), (self.monitor, path), (self.admin, "/canaries")];
        let status = |(address, path): (SocketAddr, &str)| {
            Client::new(address).try_get(path).map(|response| response.status)
        };
        ports.into_iter().all(|port| status(port) == Some(200))
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        eventually("penstock to end", || self.process.try_wait().expect("it is our child"))
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- log of penstock ---\n{}", self.log());
        }
        // The engine ends by itself when its supervisor is gone.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
