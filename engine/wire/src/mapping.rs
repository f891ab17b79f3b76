//! Memory that two processes have mapped. Decides that it cannot become smaller while anybody has it mapped, since to touch
//! what is gone ends a process, and who may write it; never reads or writes a byte of it.

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::{NonNull, null_mut};

/// A memory file, mapped as a whole.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<u8>,
    bytes: usize,
}

/// Who may write a memory file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writers {
    /// Who has made it.
    Maker,
    /// Whoever has it.
    All,
}

// SAFETY: it is an address and a length, which are the same for all threads; what they lead to is its user's to guard.
unsafe impl Send for Mapping {}
// SAFETY: likewise.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Makes a memory file of so many bytes, all zero, and maps it for writing. No memory is taken before it is touched.
    /// An error where the system has no such files, or cannot seal them (Linux before 5.1).
    pub fn make(bytes: usize, writers: Writers) -> io::Result<(OwnedFd, Self)> {
        let file = memfd_create("penstock", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&file, bytes as u64)?;
        let mapping = Self::map(&file, bytes, ProtFlags::READ | ProtFlags::WRITE)?;
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        let seals = if writers == Writers::Maker { seals | SealFlags::FUTURE_WRITE } else { seals };
        fcntl_add_seals(&file, seals)?;
        Ok((file, mapping))
    }

    /// Maps a file that somebody else has made, of so many bytes: for reading where only its maker writes. An error if it
    /// is shorter, or could become so.
    pub fn of(file: &OwnedFd, bytes: usize, writers: Writers) -> io::Result<Self> {
        let invalid = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
        if !fcntl_get_seals(file)?.contains(SealFlags::SHRINK) {
            return Err(invalid("the memory file may shrink"));
        }
        if u64::try_from(fstat(file)?.st_size).is_ok_and(|has| has < bytes as u64) {
            return Err(invalid("the memory file is shorter than it is said to be"));
        }
        let access = match writers {
            Writers::Maker => ProtFlags::READ,
            Writers::All => ProtFlags::READ | ProtFlags::WRITE,
        };
        Self::map(file, bytes, access)
    }

    /// Its first byte; it is at the start of a page.
    pub fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// Its length.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn map(file: impl AsFd, bytes: usize, access: ProtFlags) -> io::Result<Self> {
        // SAFETY: the system chooses where, so that nothing is there already.
        let start = unsafe { mmap(null_mut(), bytes, access, MapFlags::SHARED, file, 0) }?;
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::other("mapped at 0"))?;
        Ok(Self { start, bytes })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly this was mapped, and whoever looks into it has borrowed it.
        let unmapped = unsafe { munmap(self.start.as_ptr().cast(), self.bytes) };
        debug_assert!(unmapped.is_ok(), "{unmapped:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_writes_the_other_reads_and_nobody_can_take_it_away() {
        let (file, ours) = Mapping::make(8192, Writers::Maker).unwrap();
        let theirs = Mapping::of(&file, 8192, Writers::Maker).unwrap();
        // SAFETY: both are mapped, and nobody else knows them.
        let read = unsafe {
            ours.start().add(8191).write(7);
            theirs.start().add(8191).read()
        };
        assert_eq!(read, 7);
        assert!(ftruncate(&file, 4096).is_err());
        assert!(Mapping::of(&file, 8192, Writers::All).is_err(), "only its maker writes");
    }

    #[test]
    fn a_file_that_may_shrink_or_is_too_short_is_not_mapped() {
        let (file, _ours) = Mapping::make(4096, Writers::All).unwrap();
        assert!(Mapping::of(&file, 4096, Writers::All).is_ok());
        assert!(Mapping::of(&file, 8192, Writers::All).unwrap_err().to_string().contains("shorter"));
        let file = memfd_create("unsealed", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        ftruncate(&file, 4096).unwrap();
        assert!(Mapping::of(&file, 4096, Writers::All).unwrap_err().to_string().contains("shrink"));
    }
}
