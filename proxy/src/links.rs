//! Which link a request takes: each worker thread has its own, so that a request, its frame and its answer stay on one
//! thread. Decides when one is opened and to which engine, and whether it shares memory; what goes over it is [`crate::link`]'s.

use crate::link::{LIMITS, Link, LinkError};
use crate::region::{Place, Region};
use arc_swap::ArcSwap;
use std::cell::{Cell, RefCell};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use wire::Hello;

/// Gives each worker thread its own link to the engine, opened at its first request, after it broke, and when
/// another engine has taken over.
#[derive(Debug)]
pub struct Links {
    /// Where the engine listens.
    socket: ArcSwap<PathBuf>,
    /// Bytes of tensors that the engine takes with one request.
    payload_bytes_max: AtomicUsize,
    /// Where it runs models; empty before it has said so.
    device: ArcSwap<String>,
    /// Bytes of memory that each worker shares with it; 0 where none is to be shared, or the system has none for it.
    shared_bytes: AtomicUsize,
    /// Whether it takes that.
    takes_regions: AtomicBool,
    /// Those of links that are open, and of some that are not.
    regions: Mutex<Vec<Weak<Region>>>,
    /// Engines that have taken over so far; a link is to the one of its time.
    successions: AtomicU64,
    /// Another engine is about to take over: what the present one is told now would be forgotten.
    pub(crate) is_handing_over: AtomicBool,
    /// Workers connect one at a time: a restart of the engine is met by few connects, not by one per request.
    connecting: tokio::sync::Mutex<()>,
}

thread_local! {
    static WORKER_LINK: RefCell<Option<(u64, Link)>> = const { RefCell::new(None) };
    /// Whether a link of this thread has a use for memory of both.
    static SHARES: Cell<bool> = const { Cell::new(false) };
}

impl Links {
    /// Links to the engine that listens at `socket`. One per process: the workers' links are per thread.
    pub fn new(socket: PathBuf) -> Self {
        let socket = ArcSwap::from_pointee(socket);
        Self {
            socket,
            payload_bytes_max: AtomicUsize::new(LIMITS.payload_bytes),
            device: ArcSwap::default(),
            shared_bytes: AtomicUsize::new(0),
            takes_regions: AtomicBool::new(false),
            regions: Mutex::default(),
            successions: AtomicU64::new(0),
            is_handing_over: AtomicBool::new(false),
            connecting: tokio::sync::Mutex::default(),
        }
    }

    /// The same, each of which shares so many bytes of memory with the engine, if that takes it.
    pub fn sharing(self, shared_bytes: usize) -> Self {
        Self { shared_bytes: AtomicUsize::new(shared_bytes), ..self }
    }

    /// From now on requests go to the engine that listens there. Those that are under way stay where they are.
    pub fn succeed(&self, socket: PathBuf) {
        self.socket.store(Arc::new(socket));
        self.successions.fetch_add(1, Ordering::Release);
    }

    /// The engine has said what it takes; it does so before it says that it has a model that could be asked.
    pub(crate) fn heed(&self, hello: &Hello) {
        let most = usize::try_from(hello.payload_bytes_max).ok().filter(|most| *most > 0);
        let most = most.unwrap_or(LIMITS.payload_bytes).min(LIMITS.payload_bytes);
        self.payload_bytes_max.store(most, Ordering::Relaxed);
        self.device.store(Arc::new(hello.device.clone()));
        self.takes_regions.store(hello.takes_regions, Ordering::Relaxed);
    }

    /// Where the engine runs models, as it says; empty before it has.
    pub fn device(&self) -> String {
        String::clone(&self.device.load())
    }

    /// This worker's link.
    pub async fn worker(&self) -> Result<Link, LinkError> {
        let now = self.successions.load(Ordering::Acquire);
        let open = || {
            let is_open = |(of, link): &&(u64, Link)| *of == now && !link.is_closed();
            WORKER_LINK.with_borrow(|link| link.as_ref().filter(is_open).map(|(_, link)| link.clone()))
        };
        if let Some(link) = open() {
            return Ok(link);
        }
        let _turn = self.connecting.lock().await;
        if let Some(link) = open() {
            return Ok(link);
        }
        // The supervisor's own link carries the events.
        let socket = self.socket.load_full();
        let link = match self.region() {
            Some((region, files)) => Link::connect_sharing(&socket, region, files).await,
            None => Link::connect(&socket, |_| {}).await,
        };
        let link = link.map_err(|error| LinkError::Down(error.to_string()))?;
        if let Some(region) = link.region() {
            let mut regions = self.regions();
            regions.retain(|region| region.strong_count() > 0);
            regions.push(Arc::downgrade(region));
        }
        let link = link.up_to(self.payload_bytes_max.load(Ordering::Relaxed));
        WORKER_LINK.set(Some((now, link.clone())));
        Ok(link)
    }

    /// From now on the link of this thread shares memory, since large bodies are read here.
    pub(crate) fn share_here() {
        SHARES.set(true);
    }

    /// Memory for this thread's next link. A system that has none is not asked again.
    fn region(&self) -> Option<(Arc<Region>, [OwnedFd; 2])> {
        let bytes = self.shared_bytes.load(Ordering::Relaxed);
        if bytes == 0 || !SHARES.get() || !self.takes_regions.load(Ordering::Relaxed) {
            return None;
        }
        let made = Region::make(bytes).inspect_err(|error| {
            tracing::warn!("no memory is shared with the engine, which costs time: {error}");
            self.shared_bytes.store(0, Ordering::Relaxed);
        });
        made.ok()
    }

    /// Room for a body in the memory that this worker shares with the engine; nothing where there is none, or no engine.
    pub(crate) fn place(&self, bytes: usize) -> Option<Place> {
        let now = self.successions.load(Ordering::Acquire);
        WORKER_LINK.with_borrow(|link| {
            let (_, link) = link.as_ref().filter(|(of, link)| *of == now && !link.is_closed())?;
            link.region()?.place(bytes)
        })
    }

    /// Bytes that bodies have in the memory that workers share with the engine, and how many they may have.
    pub fn shared_bytes(&self) -> (usize, usize) {
        let regions: Vec<_> = self.regions().iter().filter_map(Weak::upgrade).collect();
        let sum = |(used, most), (also, more)| (used + also, most + more);
        regions.iter().map(|region| region.bytes()).fold((0, 0), sum)
    }

    fn regions(&self) -> MutexGuard<'_, Vec<Weak<Region>>> {
        self.regions.lock().expect("no panic while it is held")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::UnixListener;

    #[tokio::test]
    async fn a_system_without_memory_to_share_is_asked_once_and_its_links_send() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("engine.sock");
        let _listener = UnixListener::bind(&path).unwrap();
        let links = |bytes| {
            let links = Links::new(path.clone()).sharing(bytes);
            links.heed(&Hello { takes_regions: true, ..Hello::default() });
            links
        };
        let (enough, too_much) = (links(1 << 20), links(1 << 62));
        assert!(enough.region().is_none(), "no bodies are read on this thread");
        Links::share_here();
        assert!(enough.region().is_some());
        let link = too_much.worker().await.unwrap();
        assert!(link.region().is_none());
        assert_eq!(too_much.shared_bytes.load(Ordering::Relaxed), 0, "it is not asked again");
    }
}
