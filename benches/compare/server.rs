//! The processes under measure: how each is started and what CPU it has used. Ends them when dropped.

use anyhow::{Context, ensure};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// What answers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Versions {
    /// The same small linear model twice: what is measured is what stands around a model.
    Linear,
    /// The demo's: one request in ten runs a convolutional network, whose own time comes on top.
    Demo,
    /// One that takes an image of 600 kB and returns eight of its pixels.
    Pixels,
}

/// Who is told of requests, beside what is counted in any case.
#[derive(Clone, Copy, Default)]
pub(crate) struct Watched {
    /// A collector that gets 1 % of the traces.
    pub(crate) traces: Option<SocketAddr>,
    /// Somebody who reads a line for each request, at the other end of a pipe.
    pub(crate) lines: bool,
}

/// One thing under measure.
pub(crate) struct Server {
    pub(crate) name: &'static str,
    pub(crate) address: SocketAddr,
    /// Where it is watched; of penstock only.
    pub(crate) monitor: Option<SocketAddr>,
    /// Sent on each connection again and again.
    pub(crate) request: Vec<u8>,
    process: Child,
    folder: tempfile::TempDir,
}

impl Server {
    /// HAProxy, one thread, answering a constant of our answer's size.
    pub(crate) fn haproxy() -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let address = harness::free_address();
        let file = folder.path().join("haproxy.cfg");
        std::fs::write(
            &file,
            format!(
                "global\n nbthread 1\ndefaults\n mode http\n timeout client 60s\n timeout server 60s\n timeout connect 5s\n\
                 frontend f\n bind {address}\n http-request return status 200 content-type application/json string '{}'\n",
                "x".repeat(330)
            ),
        )?;
        let process = Command::new("haproxy")
            .arg("-f")
            .arg(&file)
            .stderr(Stdio::null())
            .spawn()
            .context("haproxy: install it first (apt-get install haproxy)")?;
        Self { name: "HAProxy", address, monitor: None, request: request(), process, folder }
            .once_it_listens()
    }

    /// Penstock with everything on, and the engine that it starts, splitting 90 to 10 over two versions.
    pub(crate) fn penstock(name: &'static str, versions: Versions, watched: Watched) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let models = folder.path().join("models");
        let (model, sources, request) = match versions {
            Versions::Linear => ("digits", [1, 1], request()),
            Versions::Demo => ("digits", [1, 2], request()),
            Versions::Pixels => ("pixels", [1, 1], image()),
        };
        for (number, source) in (1..).zip(sources) {
            let version = models.join(format!("{model}/{number}"));
            std::fs::create_dir_all(&version)?;
            if versions == Versions::Pixels {
                write_pixels(&version)?;
                continue;
            }
            for file in ["model.pt", "model.yaml"] {
                let from = harness::repository("configs/demo/models").join(format!("digits/{source}/{file}"));
                std::fs::copy(from, version.join(file))?;
            }
        }
        let policies = format!(
            "models:\n  {model}:\n    split:\n      weights: {{1: 90, 2: 10}}\n      sticky: {{header: x-user-id}}\n    \
             breaker: {{failures: 5}}\nlimits:\n  - {{name: all, rate: 1000000/s, burst: 1000000}}\n"
        );
        std::fs::write(folder.path().join("policies.yaml"), policies)?;
        let traces = watched
            .traces
            .map(|collector| format!("traces: {{endpoint: 'http://{collector}', sample: 0.01}}\n"));
        let lines = if watched.lines { "log: {access: 1, format: json}\n" } else { "" };
        let more = format!(
            "policies: policies.yaml\n\
             engine: {{models: models, socket: engine.sock, lanes: 1, threads_per_lane: 1, control: true}}\n{}{lines}",
            traces.unwrap_or_default()
        );
        Self::penstock_with(name, folder, request, &more)
    }

    /// Penstock with an engine that somebody else runs, at this socket, and these policies.
    pub(crate) fn penstock_at(socket: &Path, policies: &str) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        std::fs::write(folder.path().join("policies.yaml"), policies)?;
        let engine = format!("engine: {{managed: false, socket: '{}'}}\n", socket.display());
        Self::penstock_with("penstock", folder, request(), &format!("policies: policies.yaml\n{engine}"))
    }

    fn penstock_with(
        name: &'static str,
        folder: tempfile::TempDir,
        request: Vec<u8>,
        more: &str,
    ) -> anyhow::Result<Self> {
        let [address, monitor] = harness::free_addresses();
        let config = folder.path().join("penstock.yaml");
        std::fs::write(
            &config,
            format!("listen: {{http: '{address}', grpc: '127.0.0.1:0', monitor: '{monitor}'}}\n{more}"),
        )?;
        let mut command = Command::new(beside("penstock")?);
        command.arg("serve").arg("--config").arg(&config).env("PENSTOCK_LOG", "error").stdout(Stdio::piped());
        let mut process = command.spawn()?;
        let mut out = process.stdout.take().context("it was asked for")?;
        std::thread::spawn(move || std::io::copy(&mut out, &mut std::io::sink()));
        let server =
            Self { name, address, monitor: Some(monitor), request, process, folder }.once_it_listens()?;
        harness::eventually("penstock to be ready", || {
            (harness::Client::new(address).get("/v2/health/ready").status == 200).then_some(())
        });
        Ok(server)
    }

    /// MLServer with the demo's linear model, in the form that takes least: one process, nothing logged.
    pub(crate) fn mlserver() -> anyhow::Result<Self> {
        let sources = harness::repository("benches/mlserver");
        let made = Command::new("python3").arg(sources.join("environment.py")).output().context("python3")?;
        ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let python = PathBuf::from(String::from_utf8(made.stdout)?.trim());
        let folder = tempfile::tempdir()?;
        let [address, grpc, metrics] = harness::free_addresses();
        let settings = format!(
            r#"{{"host": "127.0.0.1", "http_port": {}, "grpc_port": {}, "metrics_port": {}, "parallel_workers": 0, "debug": false}}"#,
            address.port(),
            grpc.port(),
            metrics.port()
        );
        std::fs::write(folder.path().join("settings.json"), settings)?;
        let uri = harness::repository("configs/demo/models/digits/1/model.pt");
        let model = format!(
            r#"{{"name": "digits", "implementation": "digits.Digits", "parameters": {{"uri": "{}", "version": "1"}}}}"#,
            uri.display()
        );
        std::fs::write(folder.path().join("model-settings.json"), model)?;
        let process = Command::new(python.with_file_name("mlserver"))
            .arg("start")
            .arg(folder.path())
            .env("PYTHONPATH", sources)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("mlserver")?;
        let server = Self { name: "MLServer", address, monitor: None, request: request(), process, folder }
            .once_it_listens()?;
        harness::eventually("MLServer to have loaded its model", || {
            (harness::Client::new(address).get("/v2/models/digits/ready").status == 200).then_some(())
        });
        Ok(server)
    }

    /// Its own folder: configuration, policies, models.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The process and its children.
    pub(crate) fn pids(&self) -> Vec<u32> {
        family(self.process.id())
    }

    /// CPU time of the process and its children so far, user and system.
    pub(crate) fn cpu(&self) -> anyhow::Result<Duration> {
        self.pids().into_iter().map(cpu_of).sum()
    }

    fn once_it_listens(mut self) -> anyhow::Result<Self> {
        let deadline = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(self.address).is_err() {
            ensure!(self.process.try_wait()?.is_none(), "{} ended at once", self.name);
            ensure!(Instant::now() < deadline, "{} does not listen", self.name);
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(self)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A process and its children.
fn family(pid: u32) -> Vec<u32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let children = tasks
        .filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok())
        .collect::<String>();
    std::iter::once(pid).chain(children.split_whitespace().filter_map(|child| child.parse().ok())).collect()
}

/// In nanoseconds, where `/proc/PID/stat` counts in hundredths of a second.
fn cpu_of(pid: u32) -> anyhow::Result<Duration> {
    let mut clock: libc::clockid_t = 0;
    // SAFETY: it writes to `clock` and nothing else.
    let known = unsafe { libc::clock_getcpuclockid(pid as libc::pid_t, &raw mut clock) };
    ensure!(known == 0, "process {pid} is gone");
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: it writes to `time` and nothing else.
    let told = unsafe { libc::clock_gettime(clock, &raw mut time) };
    ensure!(told == 0, "process {pid} is gone");
    Ok(Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
}

fn beside(name: &str) -> anyhow::Result<PathBuf> {
    let binary = std::env::current_exe()?.with_file_name(name);
    ensure!(Path::new(&binary).is_file(), "{} is missing: `make bench` builds it first", binary.display());
    Ok(binary)
}

/// One digit: 64 floats.
fn request() -> Vec<u8> {
    let data = (0..64).map(|pixel| format!("{}.0", pixel % 17)).collect::<Vec<_>>().join(",");
    let body =
        format!(r#"{{"inputs":[{{"name":"pixels","shape":[1,64],"datatype":"FP32","data":[{data}]}}]}}"#);
    format!("POST /v2/models/digits/infer HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

/// One image, as a binary tensor.
fn image() -> Vec<u8> {
    let pixels: Vec<u8> =
        (0..3 * 224 * 224_u32).flat_map(|at| (at as f32 / 150_528.0).to_le_bytes()).collect();
    let size = pixels.len();
    let json = format!(
        r#"{{"inputs":[{{"name":"image","shape":[1,3,224,224],"datatype":"FP32","parameters":{{"binary_data_size":{size}}}}}]}}"#
    );
    let head = format!(
        "POST /v2/models/pixels/infer HTTP/1.1\r\nHost: bench\r\nContent-Type: application/octet-stream\r\nInference-Header-Content-Length: {}\r\nContent-Length: {}\r\n\r\n",
        json.len(),
        json.len() + size
    );
    [head.as_bytes(), json.as_bytes(), &pixels].concat()
}

fn write_pixels(version: &Path) -> anyhow::Result<()> {
    let model = "def forward(self, image):\n    return image.flatten(1)[:, :8].clone()\n";
    engine::torch::define(&version.join("model.pt"), &[], model).map_err(anyhow::Error::msg)?;
    let yaml = "inputs: [{name: image, datatype: FP32, shape: [-1, 3, 224, 224]}]\n\
                outputs: [{name: pixels, datatype: FP32, shape: [-1, 8]}]\nmax_batch: 32\n";
    Ok(std::fs::write(version.join("model.yaml"), yaml)?)
}
