//! Memory that the engine has mapped as well, into which large bodies are read, so that their tensors need not be sent.
//! Decides who may write where and when; never when a body is worth it.
//!
//! A region belongs to one link and ends with it. That is why nothing can be lost: whatever becomes of either process, of a
//! request or of its client, the memory goes with the last who looks at it, and the next link has another region. Within it
//! each body has blocks of its own, see [`blocks`]; where none are free, bodies lie in ordinary memory and are sent.

mod blocks;

use blocks::{Blocks, Run};
use bytes::Bytes;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::io::Interest;
use tokio::net::UnixStream;
use wire::mapping::{Mapping, Writers};
use wire::{Kind, Outbox, Placed};

/// A body has whole blocks: on average half a block of it is wasted, and there are few enough to look through.
const BLOCK_BYTES: usize = 64 << 10;

/// The memory of one link.
#[derive(Debug)]
pub(crate) struct Region {
    payloads: Mapping,
    /// What the engine has given back, by block; it alone writes there.
    returned: Mapping,
    blocks: Mutex<Blocks>,
    /// Whether the engine has mapped it.
    is_shared: AtomicBool,
}

impl Region {
    /// Makes one of so many bytes, or somewhat fewer, and the files that the engine is to get. An error where the system has
    /// no such memory, or none left.
    pub(crate) fn make(bytes: usize) -> io::Result<(Arc<Self>, [OwnedFd; 2])> {
        let blocks = (bytes / BLOCK_BYTES).max(1);
        let (payloads_file, payloads) = Mapping::make(blocks * BLOCK_BYTES, Writers::Maker)?;
        let (returned_file, returned) = Mapping::make(blocks * size_of::<u32>(), Writers::All)?;
        let (blocks, is_shared) = (Mutex::new(Blocks::new(blocks)), AtomicBool::new(false));
        Ok((Arc::new(Self { payloads, returned, blocks, is_shared }), [payloads_file, returned_file]))
    }

    /// Offers it to the engine, as the first that it is told over this socket. After an error, it cannot be told more.
    pub(crate) async fn offer(&self, files: &[OwnedFd; 2], socket: &UnixStream) -> io::Result<()> {
        let said = wire::Region { bytes: self.payloads.bytes() as u64, block_bytes: BLOCK_BYTES as u64 };
        let mut outbox = Outbox::new();
        outbox.push(Kind::Region, 0, &said, Bytes::new());
        let frame = outbox.take().concat();
        let written = socket.async_io(Interest::WRITABLE, || Ok(send(socket, &frame, files)?)).await?;
        if written < frame.len() {
            return Err(io::Error::other("a frame that describes it does not fit into an empty socket"));
        }
        Ok(())
    }

    /// The engine has it.
    pub(crate) fn accept(&self) {
        self.is_shared.store(true, Ordering::Release);
    }

    /// Notes that nobody shares it any more: what an engine that was killed has not given back is nobody's.
    pub(crate) fn end(&self) {
        self.is_shared.store(false, Ordering::Release);
    }

    /// Room for a body; nothing if there is none, or nobody to share it with.
    pub(crate) fn place(self: &Arc<Self>, bytes: usize) -> Option<Place> {
        if !self.is_shared.load(Ordering::Acquire) {
            return None;
        }
        let run = self.blocks().take(bytes.div_ceil(BLOCK_BYTES).max(1), |block| self.count(block))?;
        Some(Place { region: Arc::clone(self), run, bytes })
    }

    /// What the engine is to be told of a payload that lies here; nothing of one that lies elsewhere. It is the engine's
    /// to read until it has given it back, however long that takes.
    pub(crate) fn lend(&self, payload: &Bytes) -> Option<Placed> {
        let offset = (payload.as_ptr() as usize).checked_sub(self.payloads.start().as_ptr() as usize)?;
        if payload.is_empty() || offset >= self.payloads.bytes() {
            return None;
        }
        // Whoever has a slice of what lies here holds its run.
        let run = self.blocks().lend(offset / BLOCK_BYTES);
        Some(Placed { offset: offset as u64, bytes: payload.len() as u64, credit: run.first as u32 })
    }

    /// Bytes that bodies have, and how many they may have: none before the engine has it, nor after.
    pub(crate) fn bytes(&self) -> (usize, usize) {
        if !self.is_shared.load(Ordering::Acquire) {
            return (0, 0);
        }
        (self.blocks().in_use(|block| self.count(block)) * BLOCK_BYTES, self.payloads.bytes())
    }

    fn blocks(&self) -> MutexGuard<'_, Blocks> {
        self.blocks.lock().expect("no panic while it is held, but for a broken invariant")
    }

    /// How often the engine has given back what begins with a block.
    fn count(&self, block: usize) -> u32 {
        // SAFETY: there is a count for each block, at a multiple of its size; it is mapped for as long as `self` is there, and
        // whoever else knows it touches it as an atomic.
        let count = unsafe { self.returned.start().cast::<AtomicU32>().add(block).as_ref() };
        // All that the engine has read, it has read before.
        count.load(Ordering::Acquire)
    }
}

fn send(socket: impl AsFd, frame: &[u8], files: &[OwnedFd; 2]) -> rustix::io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    let files = files.each_ref().map(AsFd::as_fd);
    let fits = beside.push(SendAncillaryMessage::ScmRights(&files));
    debug_assert!(fits, "there is space for two");
    sendmsg(socket, &[IoSlice::new(frame)], &mut beside, SendFlags::NOSIGNAL)
}

/// Room in a region for one body, which nobody else writes or reads.
#[derive(Debug)]
pub(crate) struct Place {
    region: Arc<Region>,
    run: Run,
    bytes: usize,
}

impl Place {
    /// All of it, with whatever lay there before.
    pub(crate) fn as_mut(&mut self) -> &mut [u8] {
        let start = self.run.first * BLOCK_BYTES;
        debug_assert!(self.bytes <= self.run.count * BLOCK_BYTES);
        // SAFETY: the run lies within the mapping, which cannot shrink. It is this place's alone, and the engine has given back
        // whatever was there before; nobody but this process can write there.
        unsafe {
            std::slice::from_raw_parts_mut(self.region.payloads.start().add(start).as_ptr(), self.bytes)
        }
    }

    /// What was written: from now on nobody writes there, until the last slice of it is dropped and the engine has given
    /// back what it was lent.
    pub(crate) fn freeze(self) -> Bytes {
        Bytes::from_owner(Written(self))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.region.blocks().leave(self.run);
    }
}

struct Written(Place);

impl AsRef<[u8]> for Written {
    fn as_ref(&self) -> &[u8] {
        let Place { region, run, bytes } = &self.0;
        // SAFETY: as for `Place::as_mut`, which needs what nobody has any more; the engine can read there and not write.
        unsafe {
            std::slice::from_raw_parts(region.payloads.start().add(run.first * BLOCK_BYTES).as_ptr(), *bytes)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(blocks: usize) -> Arc<Region> {
        let (region, _) = Region::make(blocks * BLOCK_BYTES).unwrap();
        region.accept();
        region
    }

    fn give_back(region: &Region, credit: u32) {
        // SAFETY: as in `count`.
        let count = unsafe { region.returned.start().cast::<AtomicU32>().add(credit as usize).as_ref() };
        count.fetch_add(1, Ordering::Release);
    }

    #[test]
    fn a_body_is_told_by_where_it_lies_and_others_are_not() {
        let region = region(4);
        let _first = region.place(1).unwrap();
        let mut place = region.place(BLOCK_BYTES + 1).unwrap();
        place.as_mut()[BLOCK_BYTES] = 7;
        let body = place.freeze();
        let tensor = body.slice(BLOCK_BYTES..);
        assert_eq!(tensor[..], [7]);
        let placed = region.lend(&tensor).unwrap();
        assert_eq!(placed, Placed { offset: 2 * BLOCK_BYTES as u64, bytes: 1, credit: 1 });
        assert_eq!(region.lend(&Bytes::from_static(b"elsewhere")), None);
        assert_eq!(region.lend(&body.slice(3..3)), None, "there is nothing to lend");
    }

    #[test]
    fn room_is_free_once_nobody_looks_at_it_here_or_there() {
        let region = region(2);
        let body = region.place(2 * BLOCK_BYTES).unwrap().freeze();
        assert!(region.place(1).is_none());
        let placed = region.lend(&body).unwrap();
        let slice = body.slice(..3);
        drop(body);
        assert_eq!(region.bytes(), (2 * BLOCK_BYTES, 2 * BLOCK_BYTES));
        drop(slice);
        assert_eq!(region.bytes().0, 2 * BLOCK_BYTES, "the engine has it");
        give_back(&region, placed.credit);
        assert_eq!(region.bytes().0, 0);
        assert!(region.place(2 * BLOCK_BYTES).is_some());
        assert!(region.place(2 * BLOCK_BYTES + 1).is_none(), "never");
    }

    #[tokio::test]
    async fn a_socket_that_takes_no_offer_is_told_from_a_system_without_such_memory() {
        let (region, files) = Region::make(BLOCK_BYTES).unwrap();
        let (socket, engine) = UnixStream::pair().unwrap();
        region.offer(&files, &socket).await.unwrap();
        drop(engine);
        assert!(region.offer(&files, &socket).await.is_err());
        assert!(Region::make(1 << 62).is_err(), "nobody has as much");
    }

    #[test]
    fn nothing_is_placed_before_the_engine_has_mapped_it() {
        let (region, _) = Region::make(BLOCK_BYTES).unwrap();
        assert!(region.place(1).is_none());
        assert_eq!(region.bytes(), (0, 0));
        region.accept();
        let place = region.place(1);
        assert!(place.is_some());
        assert_eq!(region.bytes(), (BLOCK_BYTES, BLOCK_BYTES));
    }
}
