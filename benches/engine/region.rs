//! Large requests lie where the engine reads them too, as those of a proxy do that has read them from its clients: what a
//! client's bytes cost on their way is not the engine's. They are written once and lent again and again.

use anyhow::ensure;
use bytes::Bytes;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use wire::mapping::{Mapping, Writers};
use wire::{Kind, Outbox, Placed};

/// A proxy sends what is smaller.
const LARGE: usize = 64 << 10;

const BLOCK: usize = 64 << 10;

/// The memory of one connection.
pub(crate) struct Region {
    /// Nobody writes there any more; the engine has it mapped for as long as it reads.
    _payloads: Mapping,
    placed: Vec<Option<Placed>>,
}

impl Region {
    /// Writes what is large of these, and offers it as the first that is said over a socket.
    pub(crate) fn offer(socket: &UnixStream, payloads: &[&Bytes]) -> anyhow::Result<Self> {
        let mut blocks = 0;
        let place = |payload: &&Bytes| {
            let is_large = payload.len() >= LARGE;
            is_large.then(|| {
                let first = blocks;
                blocks += payload.len().div_ceil(BLOCK);
                Placed { offset: (first * BLOCK) as u64, bytes: payload.len() as u64, credit: first as u32 }
            })
        };
        let placed: Vec<Option<Placed>> = payloads.iter().map(place).collect();
        let blocks = blocks.max(1);
        let (file, memory) = Mapping::make(blocks * BLOCK, Writers::Maker)?;
        let (counts, _) = Mapping::make(blocks * size_of::<u32>(), Writers::All)?;
        for (payload, placed) in payloads.iter().zip(&placed) {
            let Some(placed) = placed else { continue };
            // SAFETY: the blocks of each are its own, within the mapping, and nobody else has it yet.
            unsafe {
                let to = memory.start().add(placed.offset as usize).as_ptr();
                to.copy_from_nonoverlapping(payload.as_ptr(), payload.len());
            }
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut beside = SendAncillaryBuffer::new(&mut space);
        let files = [file.as_fd(), counts.as_fd()];
        ensure!(beside.push(SendAncillaryMessage::ScmRights(&files)), "there is space for two");
        let mut outbox = Outbox::new();
        let said = wire::Region { bytes: (blocks * BLOCK) as u64, block_bytes: BLOCK as u64 };
        outbox.push(Kind::Region, 0, &said, Bytes::new());
        let frame = outbox.take().concat();
        let sent = sendmsg(socket, &[IoSlice::new(&frame)], &mut beside, SendFlags::NOSIGNAL)?;
        ensure!(sent == frame.len(), "an empty socket takes a short frame");
        Ok(Self { _payloads: memory, placed })
    }

    /// Where the payload of this number lies, of those that are not sent.
    pub(crate) fn place(&self, at: usize) -> Option<Placed> {
        self.placed[at % self.placed.len()]
    }
}
