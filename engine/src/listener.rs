//! The socket: makes it, keeps strangers out, accepts connections, and takes the engine down in order. All I/O
//! is on one tokio thread, which never calls a model.
//!
//! ```text
//!   stop ─▶ accept no more ─▶ refuse what still arrives ─▶ lanes finish what waits ─▶ write replies ─▶ end
//! ```

use crate::calibrate::Cores;
use crate::catalog::Catalog;
use crate::config::Settings;
use crate::connection::{self, Shared};
use crate::drift::{Kept, References};
use crate::interrupted::{self, Interrupted, Notes};
use crate::lane;
use crate::library::{Library, ScanError};
use crate::loader::{self, Setup};
use crate::memory::DeviceGauge;
use crate::model::Version;
use crate::preparers::Preparers;
use crate::queue::Queue;
use crate::ready_first::{self, ReadyFirst};
use crate::watchdog::Watchdog;
use std::future::Future;
use std::io::{self, ErrorKind};
use std::num::NonZeroUsize;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use wire::{Hello, Limits};

/// What `sockaddr_un` holds, less its closing zero.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// One connection per proxy worker: more are a mistake.
const CONNECTIONS_MAX: usize = 256;

/// How long the queue may take to empty once the engine is told to stop.
pub(crate) const DRAIN: Duration = Duration::from_secs(10);

/// How often is looked meanwhile whether anybody still waits for it.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// How often is looked whether something has been learned that is to outlive the engine.
const KEEP_EVERY: Duration = Duration::from_secs(5);

/// Why the engine does not start. Each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Longer than the system allows.
    #[error(
        "socket path has {got} bytes, at most {SOCKET_PATH_BYTES_MAX} work; give a shorter one with --socket"
    )]
    PathTooLong {
        /// Its length.
        got: usize,
    },
    /// Nowhere to put the socket.
    #[error("folder {} of the socket does not exist; create it", folder.display())]
    NoFolder {
        /// Which.
        folder: PathBuf,
    },
    /// The models cannot be looked for.
    #[error("{0}")]
    Models(#[from] ScanError),
    /// Another engine lives.
    #[error("an engine is already listening on {}; stop it or give another --socket", path.display())]
    InUse {
        /// Where.
        path: PathBuf,
    },
    /// Something that is not ours to remove.
    #[error("{} exists and is not a socket; remove it or give another --socket", path.display())]
    NotASocket {
        /// Which.
        path: PathBuf,
    },
    /// Nothing but a new process helps.
    #[error("{why}; the engine has to be replaced")]
    BeyondRepair {
        /// A model that does not come back, or a GPU that has failed.
        why: String,
    },
    /// The system refused.
    #[error("cannot {attempt}: {error}")]
    System {
        /// To do what.
        attempt: String,
        /// What it said.
        error: io::Error,
    },
}

/// A socket that is being listened on.
pub struct Listener {
    socket: UnixListener,
    path: PathBuf,
    owner: u32,
    settings: Settings,
}

impl Listener {
    /// Makes the socket; a stale one is replaced. Must be called within a tokio runtime.
    pub fn bind(settings: Settings) -> Result<Self, StartError> {
        let path = settings.socket.clone();
        make_way(&path)?;
        let failed = |error| StartError::System { attempt: format!("listen on {}", path.display()), error };
        let socket = UnixListener::bind(&path).map_err(failed)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
        let owner = std::fs::metadata(&path).map_err(failed)?.uid();
        Ok(Self { socket, path, owner, settings })
    }

    /// Serves what `library` has until `stop` completes, then finishes what is queued and running.
    pub async fn serve(self, mut library: Library, stop: impl Future<Output = ()>) -> Result<(), StartError> {
        let candidates = library.find(None)?;
        let queue = Arc::new(Queue::new(self.settings.queue, self.settings.lanes));
        let (catalog, watching) = watch::channel(Arc::new(Catalog::default()));
        let (drained, watch_drained) = watch::channel(false);
        let failed = |error| StartError::System { attempt: "start a thread".into(), error };
        let watchdog = Arc::new(Watchdog::new(self.settings.lanes));
        let mut lanes_ended =
            lane::start(self.settings.lanes, &queue, &watchdog, self.settings.warm_up.as_ref())
                .map_err(failed)?;
        // One more than there are cores: what takes long leaves one thread to the rest, and would leave a core idle with it.
        let threads = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN).get() + 1;
        let preparers = Preparers::start(threads, self.settings.preparing_bytes_max()).map_err(failed)?;
        let cores = Cores {
            lanes: self.settings.lanes,
            cores: self.settings.cores,
            threads: self.settings.threads_per_lane.map(NonZeroUsize::get),
        };
        let references = References::within(self.settings.references.clone());
        let (_loader, orders) = loader::start(
            Setup {
                library,
                catalog,
                queue: Arc::clone(&queue),
                watchdog: Arc::clone(&watchdog),
                cores,
                load_patience: self.settings.load_patience,
                load_max: self.settings.load_max,
                audit_every: self.settings.audit_every,
                memory: self.settings.memory,
                request_bytes_max: self.settings.request_bytes_max(),
                device_memory: self.settings.device_memory.clone(),
                interrupted: Notes::of(Interrupted::beside(&self.path)),
                ready_first: ReadyFirst::beside(&self.path),
                references: references.clone(),
            },
            candidates,
        )
        .map_err(failed)?;
        let keeping = tokio::spawn(keep_references(references.clone(), watching.clone()));
        let in_the_end = watching.clone();
        let frames = Limits { payload_bytes: self.settings.payload_bytes_max(), ..Limits::default() };
        let shared = Shared {
            queue: Arc::clone(&queue),
            preparers: Arc::clone(&preparers),
            catalog: watching,
            loader: orders,
            memory: self.settings.memory,
            request_bytes_max: self.settings.request_bytes_max(),
            device_memory: self.settings.device_memory.clone().map(DeviceGauge::new),
            hello: Hello {
                pid: std::process::id(),
                release: env!("CARGO_PKG_VERSION").into(),
                device: self.settings.device.clone(),
                payload_bytes_max: frames.payload_bytes as u64,
                takes_regions: true,
            },
            frames,
            unread_bytes_max: self.settings.unread_bytes_max,
            drained: watch_drained,
        };
        tracing::info!(
            lanes = self.settings.lanes,
            device = self.settings.device,
            "listening on {}",
            self.path.display()
        );

        let mut connections = JoinSet::new();
        let mut stop = std::pin::pin!(stop);
        let abandoned = |lane, now| queue.abandoned(lane, now);
        let mut beyond_repair = std::pin::pin!(watchdog.beyond_repair(self.settings.run_max, abandoned));
        for number in 1.. {
            let stream = tokio::select! {
                () = &mut stop => break,
                why = &mut beyond_repair => return Err(StartError::BeyondRepair { why }),
                accepted = self.accept(&mut connections) => accepted,
            };
            connections.spawn(serve_one(stream, number, shared.clone()));
        }

        let Self { socket, path, .. } = self;
        // In this order: by the time that nobody listens, somebody else may have made a socket of that name.
        let _ = std::fs::remove_file(&path);
        drop(socket);
        tracing::info!("stopping");
        let until = Instant::now() + DRAIN;
        let _ = timeout_at(until, preparers.close()).await;
        queue.stop();
        tokio::select! {
            _ = lanes_ended.recv() => {}
            () = all_given_up(&queue) => tracing::info!("what runs is given up, since nobody waits for it"),
            () = sleep_until(until) => {
                tracing::warn!("requests are left after {} s of waiting", DRAIN.as_secs());
            }
        }
        drained.send_replace(true);
        let _ = timeout_at(until, async { while connections.join_next().await.is_some() {} }).await;
        interrupted::excuse(&path);
        ready_first::forget(&path);
        keeping.abort();
        keep(&references, learned(&in_the_end.borrow()));
        Ok(())
    }

    /// The next connection that may talk to us.
    async fn accept(&self, connections: &mut JoinSet<()>) -> UnixStream {
        loop {
            let accepted = tokio::select! {
                accepted = self.socket.accept() => accepted,
                Some(_) = connections.join_next() => continue,
            };
            let refusal = match accepted.and_then(|(stream, _)| Ok((stream.peer_cred()?.uid(), stream))) {
                Ok((uid, _)) if uid != self.owner && uid != 0 => format!("user {uid} is not ours"),
                Ok(_) if connections.len() >= CONNECTIONS_MAX => format!("{CONNECTIONS_MAX} are open"),
                Ok((_, stream)) => return stream,
                Err(error) => {
                    // Out of descriptors, most likely: without a pause this would spin.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    error.to_string()
                }
            };
            tracing::warn!("connection refused: {refusal}");
        }
    }
}

/// Waits until all that is left are runs that nobody waits for.
async fn all_given_up(queue: &Queue) {
    while queue.under_way() == 0 || queue.under_way() > queue.given_up(Instant::now().into_std()) {
        sleep(LOOK_EVERY).await;
    }
}

/// Keeps what is learned of versions, soon after it is.
async fn keep_references(references: References, catalog: watch::Receiver<Arc<Catalog>>) {
    let mut due = tokio::time::interval(KEEP_EVERY);
    loop {
        due.tick().await;
        let (references, learned) = (references.clone(), learned(&catalog.borrow()));
        if !learned.is_empty() {
            // On a thread of its own: disks are slow, and this one reads requests.
            let _ = tokio::task::spawn_blocking(move || keep(&references, learned)).await;
        }
    }
}

/// What has been learned of which version of which model since this was last asked.
fn learned(catalog: &Catalog) -> Vec<(String, u64, Kept)> {
    let learned = |version: &Arc<Version>| {
        let kept = version.drift.learned(version.content?)?;
        Some((version.name.clone(), version.number, kept))
    };
    catalog.ready().filter_map(learned).collect()
}

fn keep(references: &References, learned: Vec<(String, u64, Kept)>) {
    for (model, version, kept) in learned {
        if let Err(error) = references.write(&model, version, &kept) {
            tracing::warn!(
                model,
                version,
                "what was learned of its tensors is lost with this engine: {error}"
            );
        }
    }
}

async fn serve_one(stream: UnixStream, number: u64, shared: Shared) {
    tracing::debug!(connection = number, "open");
    match connection::serve(stream, number, shared).await {
        Ok(()) => tracing::debug!(connection = number, "closed"),
        Err(ended) => tracing::warn!(connection = number, "closed: {ended}"),
    }
}

/// Sees that a socket can be made at `path`.
fn make_way(path: &Path) -> Result<(), StartError> {
    let got = path.as_os_str().len();
    if got > SOCKET_PATH_BYTES_MAX {
        return Err(StartError::PathTooLong { got });
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    if let Some(folder) = folder.filter(|folder| !folder.is_dir()) {
        return Err(StartError::NoFolder { folder: folder.to_owned() });
    }
    let path = path.to_owned();
    match std::fs::symlink_metadata(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => {
            return Err(StartError::System { attempt: format!("look at {}", path.display()), error });
        }
        Ok(file) if !file.file_type().is_socket() => return Err(StartError::NotASocket { path }),
        Ok(_) => {}
    }
    if BlockingStream::connect(&path).is_ok() {
        return Err(StartError::InUse { path });
    }
    std::fs::remove_file(&path).map_err(|error| StartError::System {
        attempt: format!("remove the stale socket {}", path.display()),
        error,
    })
}
