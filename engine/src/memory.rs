//! How much memory the process holds and may hold, and what the allocator keeps of it. Decides whether a model still fits.
//! What a proxy has lent of its memory is none of ours, though reading it makes it resident here.

use crate::config::DeviceProbe;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use wire::{DeviceMemory, Health};

/// Of what the control group or the machine has, this much is ours unless somebody says otherwise: the rest is for
/// what a run needs beside what is loaded.
const SHARE: f64 = 0.9;

/// A model takes about so many times the size of its file while it is loaded: as it is read, in the best form so far
/// and in the one that is being tried, and what converting one takes.
const PER_FILE_BYTE: u64 = 4;

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

    /// Whether so much is resident that what the allocator keeps of it might soon be too much.
    pub(crate) fn is_half_used(self) -> bool {
        resident() > self.limit / 2
    }

    /// Whether a model of so many bytes can be loaded beside what is resident already, and what requests may still take.
    pub(crate) fn has_room(self, model_bytes: u64, resident: u64, requests: u64) -> Result<(), String> {
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

/// From now on the allocator keeps what runs give back, because the next run wants as much: a network's intermediate
/// results are tens of megabytes, and pages that are new each time took a sixth of the time of EfficientNet's runs.
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

/// Gives back what is kept: a load has needed more than runs will.
pub(crate) fn give_back() {
    // SAFETY: it may be called at any time.
    unsafe { libc::malloc_trim(0) };
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
        let (root, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            "memory" => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
            _ => return Vec::new(),
        };
        // A limit holds for all below it.
        let above = Path::new(path.trim_start_matches('/')).ancestors();
        above.filter_map(|group| read(&Path::new(root).join(group).join(file))?.trim().parse().ok()).collect()
    });
    limits.chain(machine).min()
}

#[cfg(test)]
mod tests {
    use super::*;
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
        assert_eq!(with_files(&[]), None);
    }

    #[test]
    fn a_model_that_does_not_fit_is_told_by_how_much() {
        let memory = Memory { limit: 100 << 20, available: 200 << 20 };
        assert_eq!(memory.has_room(10 << 20, 30 << 20, 30 << 20), Ok(()));
        let error = memory.has_room(11 << 20, 30 << 20, 30 << 20).unwrap_err();
        let says = "about 44 MiB are needed, 30 of 100 MiB are in use, and requests may take 30 more";
        assert!(error.contains(says), "{error}");
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
