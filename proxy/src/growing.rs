//! A body of which nobody knows how long it will be, because it comes in pieces or was compressed. Decides where its bytes lie
//! meanwhile, so that it takes no more memory than has been made room for; never how much room there is.

use crate::refusal::Refusal;
use crate::slots::Slot;
use bytes::Bytes;
use memmap2::MmapMut;

/// Bytes that are appended to.
#[derive(Debug)]
pub(crate) struct Growing {
    /// Those of a small one, which is moved where there is more place for it.
    small: Vec<u8>,
    /// All, once it is large.
    large: Option<Large>,
    /// So many have been made room for.
    expected: usize,
    what: &'static str,
    bytes_max: usize,
}

/// Longer ones are large, unless they are as long as expected.
const SMALL_MAX: usize = 256 << 10;

impl Growing {
    /// `what` is its name where it is too large.
    pub(crate) fn up_to(bytes_max: usize, what: &'static str) -> Self {
        Self { small: Vec::new(), large: None, expected: 0, what, bytes_max }
    }

    /// So many will come, for which there is room already.
    pub(crate) fn expect(&mut self, bytes: usize) {
        self.small.reserve_exact(bytes);
        self.expected = bytes;
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn len(&self) -> usize {
        self.large.as_ref().map_or(self.small.len(), |large| large.len)
    }

    /// Appends these, for which `slot` makes room if need be.
    pub(crate) fn append(&mut self, piece: &[u8], slot: &mut Slot) -> Result<(), Refusal> {
        let needed = self.len() + piece.len();
        if needed > self.bytes_max {
            return Err(Refusal::TooLarge { what: self.what, limit: self.bytes_max });
        }
        slot.reserve(needed.saturating_sub(self.expected))?;
        self.expected = self.expected.max(needed);
        if self.large.is_none() && needed > self.small.capacity().max(SMALL_MAX) {
            let large = self.large.insert(Large::up_to(self.bytes_max)?);
            large.append(&std::mem::take(&mut self.small));
        }
        match &mut self.large {
            None => self.small.extend_from_slice(piece),
            Some(large) => large.append(piece),
        }
        Ok(())
    }

    pub(crate) fn freeze(self) -> Bytes {
        match self.large {
            None => self.small.into(),
            Some(large) => Bytes::from_owner(large),
        }
    }
}

/// Addresses for the longest body that there may be. They take memory as it grows into them, and give it back at once: an
/// allocator keeps for a while what was freed, which adds up where one large body comes after another.
#[derive(Debug)]
struct Large {
    map: MmapMut,
    len: usize,
}

impl Large {
    fn up_to(bytes_max: usize) -> Result<Self, Refusal> {
        let map = MmapMut::map_anon(bytes_max)
            .map_err(|error| Refusal::Overloaded(format!("no memory for a large body: {error}")))?;
        Ok(Self { map, len: 0 })
    }

    fn append(&mut self, piece: &[u8]) {
        let end = self.len + piece.len();
        self.map[self.len..end].copy_from_slice(piece);
        self.len = end;
    }
}

impl AsRef<[u8]> for Large {
    fn as_ref(&self) -> &[u8] {
        &self.map[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slots::Slots;
    use policies::Room;
    use std::sync::Arc;

    const MIB: usize = 1 << 20;

    #[test]
    fn it_is_what_has_come_however_much_that_is() {
        let slots = Arc::new(Slots::new(10, 4 * MIB));
        for bytes in [0, 1, 1000, SMALL_MAX - 1, SMALL_MAX, SMALL_MAX + 1, 3 * MIB] {
            let whole: Vec<u8> = (0..bytes).map(|at| (at % 251) as u8).collect();
            for expected in [0, bytes] {
                let mut slot = slots.enter(Room::ALL).unwrap();
                let mut body = Growing::up_to(3 * MIB, "the body");
                slot.reserve(expected).unwrap();
                body.expect(expected);
                whole.chunks(64 << 10).for_each(|piece| body.append(piece, &mut slot).unwrap());
                assert_eq!((slots.bytes().0, body.is_empty()), (bytes, bytes == 0));
                assert!(body.freeze() == whole, "{bytes} bytes, {expected} of them expected");
            }
        }
        assert_eq!(slots.bytes().0, 0);
    }

    #[test]
    fn what_is_too_large_or_finds_no_room_is_refused() {
        let slots = Arc::new(Slots::new(10, 3 * MIB));
        let filled = |bytes_max| {
            let mut slot = slots.enter(Room::ALL).unwrap();
            let mut body = Growing::up_to(bytes_max, "the body");
            (0..64).find_map(|_| body.append(&[7; 64 << 10], &mut slot).err())
        };
        assert_eq!(filled(2 * MIB), Some(Refusal::TooLarge { what: "the body", limit: 2 * MIB }));
        assert!(matches!(filled(4 * MIB), Some(Refusal::Overloaded(_))));
        assert_eq!(slots.bytes().0, 0);
    }
}
