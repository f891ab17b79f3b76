//! Memory that a proxy shares, in which the payloads of its large requests lie. Decides whether it is safe to map and whether
//! a payload lies within it, and gives each back exactly once, when nothing of the engine looks at it any more; never writes
//! there but to its counts.
//!
//! The proxy is the same user's process, and does not write what it has lent. One that does harms its own requests: all that
//! is read from here are values of tensors, once by the check of values and once by the copy into a batch, and lengths are
//! never read from here.

use bytes::{Bytes, BytesMut};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use socket::Socket;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use wire::mapping::{Mapping, Writers};
use wire::{Datatype, Placed, TensorMeta};

/// No proxy has a use for more, and address space is all that it takes.
const BYTES_MAX: u64 = 64 << 30;

/// No block is smaller.
const BLOCK_BYTES_MIN: u64 = 4096;

/// The memory of one connection.
#[derive(Debug)]
pub(crate) struct Region {
    payloads: Mapping,
    /// How many payloads with their credit in a block were given back.
    returned: Mapping,
    blocks: usize,
}

/// A payload that is outside of the region that it should be in: a proxy that writes such is not to be spoken with.
#[derive(Debug, thiserror::Error)]
#[error("a payload at {}, of {} bytes with its credit in block {}, is outside of the memory that is shared", .0.offset, .0.bytes, .0.credit)]
pub(crate) struct Outside(pub(crate) Placed);

impl Region {
    /// Maps what has travelled beside a frame that says so much of it.
    pub(crate) fn adopt(files: &[OwnedFd], said: &wire::Region) -> io::Result<Arc<Self>> {
        let invalid = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
        let [payloads, returned] = files else {
            return Err(invalid("two memory files belong to it"));
        };
        let wire::Region { bytes, block_bytes } = *said;
        if !(BLOCK_BYTES_MIN..=BYTES_MAX).contains(&block_bytes)
            || bytes == 0
            || bytes > BYTES_MAX
            || !bytes.is_multiple_of(block_bytes)
        {
            return Err(invalid("its size is not one of blocks"));
        }
        let blocks = (bytes / block_bytes) as usize;
        Ok(Arc::new(Self {
            payloads: Mapping::of(payloads, bytes as usize, Writers::Maker)?,
            returned: Mapping::of(returned, blocks * size_of::<u32>(), Writers::All)?,
            blocks,
        }))
    }

    /// A payload that lies here. It goes back when the last slice of it is dropped.
    pub(crate) fn borrow(self: &Arc<Self>, placed: Placed) -> Result<Bytes, Outside> {
        let end = placed.offset.checked_add(placed.bytes);
        let is_inside = end.is_some_and(|end| end <= self.payloads.bytes() as u64);
        if !is_inside || placed.credit as usize >= self.blocks {
            return Err(Outside(placed));
        }
        let range = placed.offset as usize..(placed.offset + placed.bytes) as usize;
        Ok(Bytes::from_owner(Borrowed { region: Arc::clone(self), range, credit: placed.credit as usize }))
    }

    fn count(&self, block: usize) -> &AtomicU32 {
        debug_assert!(block < self.blocks);
        // SAFETY: there is a count for each block, at a multiple of its size; it is mapped for as long as `self` is there, and
        // whoever else knows it touches it as an atomic.
        unsafe { self.returned.start().cast::<AtomicU32>().add(block).as_ref() }
    }
}

/// A payload that the proxy has lent.
struct Borrowed {
    region: Arc<Region>,
    /// Within the payloads of the region.
    range: Range<usize>,
    credit: usize,
}

impl AsRef<[u8]> for Borrowed {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: the range is inside of what is mapped, as `borrow` has seen, and what is mapped cannot shrink. The proxy
        // does not write it before it is given back, which dropping this does.
        unsafe {
            let start = self.region.payloads.start().add(self.range.start);
            std::slice::from_raw_parts(start.as_ptr(), self.range.len())
        }
    }
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        // All reads are over before the proxy sees this.
        self.region.count(self.credit).fetch_add(1, Ordering::Release);
    }
}

/// A payload that may be read as often as its readers like: one with lengths in it is copied, since these are read twice.
pub(crate) fn steady(payload: Bytes, inputs: &[TensorMeta]) -> Bytes {
    let has_lengths = inputs.iter().any(|input| input.datatype == Datatype::Bytes as u32);
    if has_lengths { Bytes::copy_from_slice(&payload) } else { payload }
}

/// The first read of a connection, and the files that have travelled beside it: any other read would lose these. Gives how
/// many bytes were read; 0 at the end of the stream.
pub(crate) async fn first_read(socket: &Socket, into: &mut BytesMut) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut bytes = [0; 4096];
    let mut files = Vec::new();
    let read = socket
        .read_with(|stream| {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
            let mut beside = RecvAncillaryBuffer::new(&mut space);
            let mut places = [IoSliceMut::new(&mut bytes)];
            let received = recvmsg(stream, &mut places, &mut beside, RecvFlags::CMSG_CLOEXEC)?;
            for message in beside.drain() {
                if let RecvAncillaryMessage::ScmRights(received) = message {
                    files.extend(received);
                }
            }
            Ok(received.bytes)
        })
        .await?;
    into.extend_from_slice(&bytes[..read]);
    Ok((read, files))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: usize = 4096;

    /// The proxy's view of a region of four blocks, and the engine's.
    fn shared() -> (Mapping, Mapping, Arc<Region>) {
        let (payloads, ours) = Mapping::make(4 * BLOCK, Writers::Maker).unwrap();
        let (returned, counts) = Mapping::make(16, Writers::All).unwrap();
        let said = wire::Region { bytes: 4 * BLOCK as u64, block_bytes: BLOCK as u64 };
        (ours, counts, Region::adopt(&[payloads, returned], &said).unwrap())
    }

    fn placed(offset: u64, bytes: u64, credit: u32) -> Placed {
        Placed { offset, bytes, credit }
    }

    #[test]
    fn a_payload_is_read_where_it_lies_and_goes_back_with_its_last_slice() {
        let (ours, counts, region) = shared();
        // SAFETY: nobody reads there yet.
        unsafe { ours.start().add(BLOCK + 5).write(9) };
        let payload = region.borrow(placed(BLOCK as u64, 10, 1)).unwrap();
        let part = payload.slice(5..6);
        // SAFETY: the count of block 1 is four bytes in; nobody writes it now.
        let count = || unsafe { counts.start().cast::<u32>().add(1).read() };
        drop(payload);
        assert_eq!((&part[..], count()), (&[9][..], 0));
        drop(region); // the connection has ended meanwhile
        drop(part);
        assert_eq!(count(), 1);
    }

    #[test]
    fn nothing_outside_is_touched() {
        let (_ours, _counts, region) = shared();
        assert!(region.borrow(placed(0, 4 * BLOCK as u64, 3)).is_ok());
        for (offset, bytes, credit) in [
            (1, 4 * BLOCK as u64, 0),
            (u64::MAX, 2, 0),
            (4 * BLOCK as u64 + 1, 0, 0),
            (0, 1, 4),
            (0, 1, u32::MAX),
        ] {
            assert!(region.borrow(placed(offset, bytes, credit)).is_err(), "{offset} {bytes} {credit}");
        }
    }

    #[test]
    fn what_is_not_as_it_is_said_to_be_is_not_mapped() {
        let files = |bytes: usize, counts: usize| {
            [(bytes, Writers::Maker), (counts, Writers::All)].map(|(b, w)| Mapping::make(b, w).unwrap().0)
        };
        let said = |bytes, block_bytes| wire::Region { bytes, block_bytes };
        let block = BLOCK as u64;
        assert!(Region::adopt(&files(BLOCK, 4), &said(block, block)).is_ok());
        for (files, said) in [
            (files(BLOCK, 4), said(2 * block, block)),
            (files(BLOCK, 4), said(block, 0)),
            (files(BLOCK, 4), said(block, 1)),
            (files(BLOCK, 4), said(0, block)),
            (files(BLOCK, 4), said(u64::MAX, block)),
        ] {
            assert!(Region::adopt(&files, &said).is_err(), "{said:?}");
        }
        assert!(Region::adopt(&files(BLOCK, 4)[..1], &said(block, block)).is_err());
    }

    #[test]
    fn what_has_lengths_in_it_is_copied_first() {
        let payload = Bytes::from_static(b"abc");
        let input = |datatype: Datatype| [TensorMeta { datatype: datatype as u32, ..TensorMeta::default() }];
        let is_same = |datatype| steady(payload.clone(), &input(datatype)).as_ptr() == payload.as_ptr();
        assert!(is_same(Datatype::Fp32) && !is_same(Datatype::Bytes));
    }
}
