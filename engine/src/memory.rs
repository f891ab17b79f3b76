//! How much memory the process holds and may hold, and what the allocator keeps of it. Decides whether a model still fits.
//! What a proxy has lent of its memory is none of ours, though reading it makes it resident here.

use crate::config::DeviceProbe;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::oneshot::{self, error::TryRecvError};
use wire::{DeviceMemory, Health};

/// Of what the control group or the machine has, this much is ours unless somebody says otherwise: the rest is for
/// what a run needs beside what is loaded.
const SHARE: f64 = 0.9;

/// A model takes about so many times the size of its file while it is loaded: as it is read, in the best form so far
/// and in the one that is being tried, and what converting one takes.
const PER_FILE_BYTE: u64 = 4;

/// What the allocator keeps goes back so often at most.
const TRIMMED_EVERY: Duration = Duration::from_secs(10);

/// What the process may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Bytes in all.
    pub limit: u64,
    /// What the machine and the control groups that we are in have.
    pub available: u64,
}

impl Memory {
    /// So many bytes, or most of what there is.
    pub fn new(limit: Option<u64>) -> Self {
        let read = |path: &Path| fs::read_to_string(path).ok();
        let available = available(&read).unwrap_or(u64::MAX);
        Self { limit: limit.unwrap_or((available as f64 * SHARE) as u64), available }
    }

    /// What proxies are told: they have an engine replaced that holds more than it may.
    pub(crate) fn health(self) -> Health {
        Health {
            resident_bytes: resident(),
            memory_bytes: self.limit,
            available_bytes: self.available,
            ..Health::default()
        }
    }

    /// Whether a model of so many bytes can be loaded beside what is resident already, at last without what the allocator keeps,
    /// and what requests may still take.
    pub(crate) fn has_room(
        self,
        model_bytes: u64,
        requests: u64,
        resident: impl Fn() -> u64,
        give_back: impl FnOnce(),
    ) -> Result<(), String> {
        self.has_room_beside(resident(), model_bytes, requests).or_else(|_| {
            give_back();
            self.has_room_beside(resident(), model_bytes, requests)
        })
    }

    /// Whether all that is resident once a model has been loaded may be held; of what the allocator keeps, as little as can be.
    pub(crate) fn may_hold(self, resident: u64) -> Result<(), String> {
        if resident <= self.limit {
            return Ok(());
        }
        let (resident, limit) = (resident >> 20, self.limit >> 20);
        Err(format!("it takes too much memory: with it {resident} of {limit} MiB are in use; give more"))
    }

    fn has_room_beside(self, resident: u64, model_bytes: u64, requests: u64) -> Result<(), String> {
        let needed = PER_FILE_BYTE.saturating_mul(model_bytes);
        if resident.saturating_add(requests).saturating_add(needed) <= self.limit {
            return Ok(());
        }
        Err(format!(
            "no memory to load it: about {} MiB are needed, {} of {} MiB are in use, and requests may take {} more; \
             unload a version or give more",
            needed >> 20,
            resident >> 20,
            self.limit >> 20,
            requests >> 20
        ))
    }
}

/// What a GPU said last of its memory. It may take its time to tell, behind what it computes, so it is asked on a thread
/// for such things, one question at a time, and nobody waits for the answer.
pub(crate) struct DeviceGauge {
    probe: DeviceProbe,
    last: Mutex<Option<DeviceMemory>>,
    is_asked: AtomicBool,
}

impl DeviceGauge {
    pub(crate) fn new(probe: DeviceProbe) -> Arc<Self> {
        Arc::new(Self { probe, last: Mutex::default(), is_asked: AtomicBool::new(false) })
    }

    /// As it was when it was last read.
    pub(crate) fn read(self: &Arc<Self>) -> Option<DeviceMemory> {
        if !self.is_asked.swap(true, Ordering::AcqRel) {
            let this = Arc::clone(self);
            tokio::task::spawn_blocking(move || {
                let said = (this.probe)();
                *this.last.lock().expect("no panic under this lock") = said;
                this.is_asked.store(false, Ordering::Release);
            });
        }
        *self.last.lock().expect("no panic under this lock")
    }
}

/// From now on the allocator keeps what runs give back, because the next run wants as much: requests as they are
/// gathered, and what kernels take beside tensors, which lie elsewhere (`torch::prepare`).
pub(crate) fn keep() {
    /// More than this the allocator maps anew each time; it takes no larger number.
    const MAPPED_FROM: i32 = 32 << 20;
    /// A thread's heaps are of this size, and one that is empty goes back unless so much may be spare.
    const SPARE: i32 = 64 << 20;
    for (parameter, value) in
        [(libc::M_MMAP_THRESHOLD, MAPPED_FROM), (libc::M_TRIM_THRESHOLD, i32::MAX), (libc::M_TOP_PAD, SPARE)]
    {
        // SAFETY: it takes numbers, and says whether it likes them.
        let is_taken = unsafe { libc::mallopt(parameter, value) } != 0;
        if !is_taken {
            tracing::debug!(parameter, value, "the allocator takes no advice");
        }
    }
}

/// Gives back what the allocator keeps where much of what there is is resident, and finds out what is held without it: whoever holds too
/// much is replaced, and what is only kept is none of that. Not at each opportunity, because pages that are new cost the runs that come
/// next; and on a thread for such things, because it takes its time.
#[derive(Debug, Default)]
pub(crate) struct Trim {
    last: Option<Instant>,
    /// Says how many bytes are resident once it is done.
    under_way: Option<oneshot::Receiver<u64>>,
}

impl Trim {
    /// Whether it is time for that.
    pub(crate) fn is_due(&mut self, memory: Memory, resident: u64, now: Instant) -> bool {
        let most = memory.limit.min(memory.available);
        let is_time = self.under_way.is_none() && self.last.is_none_or(|last| now >= last + TRIMMED_EVERY);
        let is_due = is_time && resident > most / 2;
        if is_due {
            self.last = Some(now);
        }
        is_due
    }

    /// Gives it back; what is held then, [`Self::take_held`] says.
    pub(crate) fn begin(&mut self) {
        let (tell, under_way) = oneshot::channel();
        self.under_way = Some(under_way);
        tokio::task::spawn_blocking(move || {
            give_back();
            let _ = tell.send(resident()); // nobody asks any more
        });
    }

    /// What was found out, once.
    pub(crate) fn take_held(&mut self) -> Option<u64> {
        let found = self.under_way.as_mut()?.try_recv();
        if found != Err(TryRecvError::Empty) {
            self.under_way = None;
        }
        found.ok()
    }
}

/// Gives back what is kept: a load has needed more than runs will.
pub(crate) fn give_back() {
    // SAFETY: it may be called at any time.
    unsafe { libc::malloc_trim(0) };
    #[cfg(feature = "torch")]
    crate::torch::give_back();
}

/// Bytes of the process that are in memory, without those of memory files: the proxies have made these, keep them for as
/// long as a connection lasts, and are charged for them.
pub fn resident() -> u64 {
    all_resident().saturating_sub(shared())
}

fn all_resident() -> u64 {
    let statm = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
    pages * rustix::param::page_size() as u64
}

/// Resident bytes of memory files; 0 where the system does not tell.
fn shared() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    kib(&status, "RssShmem:").unwrap_or(0)
}

/// What stands in a line of `kB`, in bytes.
fn kib(text: &str, name: &str) -> Option<u64> {
    let number = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(number.trim().strip_suffix(" kB")?.parse::<u64>().ok()? << 10)
}

/// The least of the machine's memory and the limits of all control groups that we are in, of version 1 or 2.
fn available(read: &dyn Fn(&Path) -> Option<String>) -> Option<u64> {
    let machine = read(Path::new("/proc/meminfo")).and_then(|text| kib(&text, "MemTotal:"));
    let groups = read(Path::new("/proc/self/cgroup")).unwrap_or_default();
    let limits = groups.lines().flat_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next().unwrap_or(""), parts.next().unwrap_or("/"));
        let (root, file) = if controllers.is_empty() {
            ("/sys/fs/cgroup", "memory.max")
        } else if controllers.split(',').any(|controller| controller == "memory") {
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
        } else {
            return Vec::new();
        };
        // A limit holds for all below it.
        let above = Path::new(path.trim_start_matches('/')).ancestors();
        above.filter_map(|group| read(&Path::new(root).join(group).join(file))?.trim().parse().ok()).collect()
    });
    limits.chain(machine).min()
}

/// Memory that the allocator keeps.
#[cfg(test)]
pub(crate) mod spare {
    /// So large that the allocator takes them from the heaps that it keeps, and no larger.
    const BLOCK: usize = 64 << 10;
    const BLOCKS: usize = 512;

    pub(crate) struct Spare {
        /// Where they were.
        blocks: Vec<*mut u8>,
        /// What lies before this one in a heap cannot just be cut off it.
        _last: Vec<u8>,
    }

    impl Spare {
        pub(crate) fn new() -> Self {
            let mut blocks: Vec<Vec<u8>> = (0..BLOCKS).map(|_| vec![1; BLOCK]).collect();
            let last = blocks.pop().expect("there are many");
            Self { blocks: blocks.iter_mut().map(|block| block.as_mut_ptr()).collect(), _last: last }
        }

        /// Whether hardly anything of it is in memory any more.
        pub(crate) fn is_gone(&self) -> bool {
            let middles = self.blocks.iter().map(|block| *block as usize + BLOCK / 2);
            middles.filter(|middle| is_resident(*middle)).count() < BLOCKS / 10
        }
    }

    /// Whether the page is in memory that has this address.
    pub(crate) fn is_resident(address: usize) -> bool {
        let page = rustix::param::page_size();
        let (start, mut resident) = (address / page * page, 0u8);
        // SAFETY: it reads no memory, and writes one byte for the one page.
        let known = unsafe { libc::mincore(start as *mut libc::c_void, page, &mut resident) } == 0;
        known && resident & 1 == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use wire::mapping::{Mapping, Writers};

    fn with_files(files: &[(&str, &str)]) -> Option<u64> {
        available(&|path| {
            let found = files.iter().find(|(name, _)| Path::new(name) == path);
            found.map(|(_, text)| (*text).to_owned())
        })
    }

    const MEMINFO: (&str, &str) = ("/proc/meminfo", "MemTotal:       2048 kB\nMemFree: 1 kB\n");

    #[test]
    fn the_tightest_limit_counts() {
        assert_eq!(with_files(&[MEMINFO]), Some(2 << 20));
        let nested = [
            MEMINFO,
            ("/proc/self/cgroup", "0::/outer/inner\n"),
            ("/sys/fs/cgroup/outer/inner/memory.max", "max\n"),
            ("/sys/fs/cgroup/outer/memory.max", "1000000\n"),
        ];
        assert_eq!(with_files(&nested), Some(1_000_000), "limits hold for all below them");
        let old = [
            MEMINFO,
            ("/proc/self/cgroup", "5:cpu:/x\n4:memory:/\n"),
            ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "3000"),
        ];
        assert_eq!(with_files(&old), Some(3000));
        let together = [("/proc/self/cgroup", "4:cpu,memory:/\n"), old[2]];
        assert_eq!(with_files(&together), Some(3000), "controllers that share a hierarchy");
        assert_eq!(with_files(&[]), None);
    }

    #[test]
    fn a_model_that_does_not_fit_is_told_by_how_much() {
        let memory = Memory { limit: 100 << 20, available: 200 << 20 };
        let has_room = |bytes| memory.has_room(bytes, 30 << 20, || 30 << 20, || {});
        assert_eq!(has_room(10 << 20), Ok(()));
        let error = has_room(11 << 20).unwrap_err();
        let says = "about 44 MiB are needed, 30 of 100 MiB are in use, and requests may take 30 more";
        assert!(error.contains(says), "{error}");
    }

    #[test]
    fn whether_a_model_fits_is_judged_without_what_the_allocator_keeps() {
        let memory = Memory { limit: 100 << 20, available: 200 << 20 };
        let (resident, given_back) = (Cell::new(0u64), Cell::new(0));
        // Of what is resident, so much is only kept.
        let has_room = |in_use: u64, kept: u64| {
            resident.set((in_use + kept) << 20);
            given_back.set(0);
            let give_back = || {
                resident.set(in_use << 20);
                given_back.set(given_back.get() + 1);
            };
            (memory.has_room(10 << 20, 0, || resident.get(), give_back), given_back.get())
        };
        assert_eq!(has_room(30, 20), (Ok(()), 0), "it costs the runs that come next, and is not needed");
        assert_eq!(has_room(30, 40), (Ok(()), 1));
        let (refused, given_back) = has_room(70, 20);
        assert!(refused.is_err_and(|why| why.contains("70 of 100 MiB are in use")) && given_back == 1);
    }

    #[test]
    fn much_that_is_resident_has_what_is_kept_given_back_and_not_at_once_again() {
        let (memory, now) = (Memory { limit: 100, available: 200 }, Instant::now());
        let mut trim = Trim::default();
        let mut is_due = |resident, after| trim.is_due(memory, resident, now + after);
        assert!(!is_due(50, Duration::ZERO) && is_due(51, Duration::ZERO));
        assert!(!is_due(90, TRIMMED_EVERY - Duration::from_nanos(1)));
        assert!(!is_due(50, TRIMMED_EVERY) && is_due(51, TRIMMED_EVERY));
        let beyond = Memory { limit: 400, available: 200 };
        assert!(Trim::default().is_due(beyond, 101, now), "it may hold more than there is");
    }

    #[test]
    fn what_the_allocator_keeps_is_given_back() {
        let spare = spare::Spare::new();
        give_back();
        assert!(spare.is_gone());
    }

    #[test]
    fn this_process_is_resident() {
        assert!(resident() > 1 << 20 && resident() < Memory::new(None).limit);
    }

    #[test]
    fn memory_that_a_proxy_has_lent_is_not_ours() {
        const BYTES: usize = 128 << 20;
        const MOST: u64 = 100 << 20;
        let (file, theirs) = Mapping::make(BYTES, Writers::Maker).unwrap();
        // SAFETY: all of it is mapped, and nobody else knows it.
        unsafe { theirs.start().write_bytes(1, BYTES) };
        drop(theirs);
        let lent = Mapping::of(&file, BYTES, Writers::Maker).unwrap();
        // SAFETY: likewise, and nobody writes it any more.
        let read = unsafe { std::slice::from_raw_parts(lent.start().as_ptr(), BYTES) };
        assert!(read.iter().step_by(1024).all(|byte| *byte == 1));
        // Other tests take and give back memory meanwhile.
        let held = resident();
        assert!(shared() >= MOST);
        assert!(held + MOST <= all_resident(), "{held}");
    }
}
