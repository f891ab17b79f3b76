//! The command line, and what of it the engine itself needs.

use crate::audit;
use crate::batcher::Limits;
use crate::memory::Memory;
use clap::Parser;
use std::fmt;
use std::num::{NonZeroU64, NonZeroUsize};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;
use wire::DeviceMemory;

/// Batches in flight on a GPU.
const LANES_OF_A_GPU: NonZeroUsize = NonZeroUsize::new(2).expect("2 is not 0");

/// Large models are read from slow disks, and run first when others leave the cores to them; what takes longer than this hangs.
const LOAD_MAX: Duration = Duration::from_secs(600);

/// A version that is slow for good reasons falsifies what others measure beside it, so they are not loaded at once.
const LOAD_PATIENCE: Duration = Duration::from_secs(10);

/// Of the memory, requests have one in so many bytes, and no more than that.
const QUEUE_SHARE: u64 = 8;
const QUEUE_BYTES_MAX: u64 = 512 << 20;

/// Runs models for penstock, over one Unix socket.
#[derive(Clone, Debug, Parser)]
#[command(name = "penstock-engine", version)]
pub struct Config {
    /// Where to listen; at most 107 bytes long.
    #[arg(long, value_name = "PATH")]
    pub socket: PathBuf,

    /// Folder that holds NAME/VERSION/model.pt.
    #[arg(long, value_name = "DIR")]
    pub models: PathBuf,

    /// Where models run: auto, cpu, or cuda:N.
    #[arg(long, default_value = "auto")]
    pub device: Device,

    /// Batches that run at the same time; by default one for each core, and two on a GPU.
    #[arg(long, value_name = "N")]
    pub lanes: Option<NonZeroUsize>,

    /// Cores that one batch may use; by default measured for each model.
    #[arg(long, value_name = "N")]
    pub threads_per_lane: Option<NonZeroUsize>,

    /// Rows that may wait; more are refused as overload.
    #[arg(long, value_name = "N", default_value = "16384")]
    pub queue_rows: NonZeroU64,

    /// Bytes of requests: one half for those that wait or run, one for what runs take beside, which are copies of them and, as
    /// far as these are known, outputs; a request that has more alone is refused. By default an eighth of the memory, 512 MiB at
    /// most.
    #[arg(long, value_name = "BYTES")]
    pub queue_bytes: Option<NonZeroUsize>,

    /// Memory that the engine may hold, in MiB; by default 90 % of what the machine or control group has.
    #[arg(long, value_name = "MIB")]
    pub memory_mib: Option<NonZeroU64>,

    /// Folder for what was learned of versions, so that another engine goes on with it; by default the socket's path with
    /// `.references` after it.
    #[arg(long, value_name = "DIR")]
    pub references: Option<PathBuf>,

    /// A run that takes longer ends the engine: its model is taken to hang. Where nobody waits any more for
    /// what runs, and it holds others up, one does so sooner, if it takes far longer than such runs typically do.
    #[arg(long, value_name = "SECONDS", default_value = "60")]
    pub run_seconds_max: NonZeroU64,

    /// The form of log lines.
    #[arg(long, value_enum, default_value_t)]
    pub log_format: LogFormat,

    /// Stop when standard input ends, so that no engine outlives the process that started it.
    #[arg(long)]
    pub supervised: bool,
}

/// The form of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Pretty,
    /// For programs: an object.
    Json,
}

/// Where models run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// The first GPU if there is one, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// The GPU of this number.
    Cuda(usize),
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            _ => text
                .strip_prefix("cuda:")
                .and_then(|number| number.parse().ok())
                .map(Self::Cuda)
                .ok_or_else(|| format!("`{text}` must be auto, cpu or cuda:N")),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

/// Asks a GPU how much memory it has; nothing where it does not say.
pub type DeviceProbe = Arc<dyn Fn() -> Option<DeviceMemory> + Send + Sync>;

/// What a lane's thread does before anything else.
pub type WarmUp = Arc<dyn Fn() + Send + Sync>;

/// What the engine needs besides its models.
#[derive(Clone)]
pub struct Settings {
    /// Where to listen.
    pub socket: PathBuf,
    /// What proxies are told about where models run.
    pub device: String,
    /// Batches that run at the same time, at least 1.
    pub lanes: usize,
    /// Cores that there are, at least 1.
    pub cores: usize,
    /// Cores that one batch may use, where that is not to be measured.
    pub threads_per_lane: Option<NonZeroUsize>,
    /// A run that takes longer ends the engine.
    pub run_max: Duration,
    /// A version of which no run has ended for so long is not waited for while others are to be loaded.
    pub load_patience: Duration,
    /// A version that takes longer to load is given up.
    pub load_max: Duration,
    /// One batch of each version is looked at again in so long; none where that is not said.
    pub audit_every: Option<Duration>,
    /// What may wait and run.
    pub queue: Limits,
    /// What may be held in all.
    pub memory: Memory,
    /// The memory of the GPU, if models run on one.
    pub device_memory: Option<DeviceProbe>,
    /// What would else be made in the first run of each lane, where there is anything.
    pub warm_up: Option<WarmUp>,
    /// Where what was learned of versions outlives the engine.
    pub references: PathBuf,
    /// Reply bytes that a connection may leave unread before it is closed.
    pub unread_bytes_max: usize,
}

impl Config {
    /// The engine's part, once it is known where models run.
    pub fn settings(
        &self,
        device: Device,
        probe: impl Fn(Device) -> Option<DeviceMemory> + Send + Sync + 'static,
    ) -> Settings {
        let cores = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        let on_gpu = matches!(device, Device::Cuda(_));
        let run_max = Duration::from_secs(self.run_seconds_max.get());
        let memory = Memory::new(self.memory_mib.map(|mib| mib.get() << 20));
        let queue_bytes = (memory.limit / QUEUE_SHARE).min(QUEUE_BYTES_MAX) as usize;
        // A second batch is copied while the GPU computes the first; the CPU's part of either is small.
        let (lanes, threads) = if on_gpu { (LANES_OF_A_GPU, Some(NonZeroUsize::MIN)) } else { (cores, None) };
        let beside = || {
            let mut path = self.socket.clone().into_os_string();
            path.push(".references");
            path.into()
        };
        Settings {
            references: self.references.clone().unwrap_or_else(beside),
            socket: self.socket.clone(),
            device: device.to_string(),
            lanes: self.lanes.unwrap_or(lanes).get(),
            cores: cores.get(),
            threads_per_lane: self.threads_per_lane.or(threads),
            run_max,
            load_patience: LOAD_PATIENCE.min(run_max),
            load_max: LOAD_MAX,
            audit_every: Some(audit::EVERY),
            queue: Limits::halving(
                self.queue_rows.get(),
                self.queue_bytes.map_or(queue_bytes, NonZeroUsize::get),
            ),
            memory,
            device_memory: on_gpu.then(|| Arc::new(move || probe(device)) as DeviceProbe),
            warm_up: None,
            unread_bytes_max: 512 << 20,
        }
    }
}

impl Settings {
    /// Bytes of the largest request: while it runs there is a copy of it.
    pub(crate) fn payload_bytes_max(&self) -> usize {
        wire::Limits::default().payload_bytes.min(self.queue.bytes)
    }

    /// Bytes of requests that are pre-processed, which do not wait yet, and of the tensors that they become.
    pub(crate) fn preparing_bytes_max(&self) -> usize {
        self.queue.bytes
    }

    /// Bytes that all requests may hold: those are not to be had for models.
    pub(crate) fn request_bytes_max(&self) -> u64 {
        self.queue.all_bytes().saturating_add(self.preparing_bytes_max()) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_a_share_of_the_memory_and_no_more_than_they_need() {
        let settings = |arguments: &[&str]| {
            let line = ["penstock-engine", "--socket", "s", "--models", "m"].iter().chain(arguments);
            Config::try_parse_from(line).unwrap().settings(Device::Cpu, |_| None)
        };
        let small = settings(&["--memory-mib", "800"]);
        let held = (small.queue.all_bytes(), small.payload_bytes_max(), small.request_bytes_max());
        assert_eq!(held, (100 << 20, 50 << 20, 150 << 20));
        let large = settings(&["--memory-mib", "80000"]);
        assert_eq!((large.queue.all_bytes(), large.payload_bytes_max()), (512 << 20, 256 << 20));
        let given = settings(&["--memory-mib", "80000", "--queue-bytes", "1000"]);
        assert_eq!((given.queue.bytes, given.queue.run_bytes), (500, 500));
    }

    #[test]
    fn a_gpu_has_two_batches_in_flight_and_one_thread_for_each_unless_somebody_says_otherwise() {
        let settings = |arguments: &[&str]| {
            let line = ["penstock-engine", "--socket", "s", "--models", "m"].iter().chain(arguments);
            Config::try_parse_from(line).unwrap().settings(Device::Cuda(1), |_| None)
        };
        let chosen = |settings: Settings| (settings.lanes, settings.threads_per_lane.map(NonZeroUsize::get));
        assert_eq!(settings(&[]).device, "cuda:1");
        assert!(settings(&[]).device_memory.is_some(), "its memory is told");
        assert_eq!(chosen(settings(&[])), (2, Some(1)));
        assert_eq!(chosen(settings(&["--lanes", "3", "--threads-per-lane", "4"])), (3, Some(4)));
    }

    #[test]
    fn a_device_is_written_as_it_is_read_and_nothing_else_is_taken() {
        for device in [Device::Auto, Device::Cpu, Device::Cuda(3)] {
            assert_eq!(device.to_string().parse(), Ok(device));
        }
        for text in ["gpu", "cuda", "cuda:", "cuda:x", "CPU"] {
            assert!(text.parse::<Device>().is_err(), "{text}");
        }
    }

    #[test]
    fn zero_of_anything_is_refused() {
        for flag in ["--lanes", "--threads-per-lane", "--queue-rows", "--queue-bytes", "--run-seconds-max"] {
            let line = ["penstock-engine", "--socket", "s", "--models", "m", flag, "0"];
            assert!(Config::try_parse_from(line).is_err(), "{flag}");
        }
    }
}
