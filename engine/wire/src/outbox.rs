//! Frames waiting to be written, coalesced: small ones share a buffer, large payloads travel as the slices
//! they are. Decides what one write carries; never writes.

use crate::frame::{Kind, put_head};
use bytes::{Bytes, BytesMut};

/// A queue of encoded frames. Its owner bounds what enters; see [`Outbox::pending_bytes`].
#[derive(Debug, Default)]
pub struct Outbox {
    whole: Vec<Bytes>,
    tail: BytesMut,
    pending: usize,
}

impl Outbox {
    /// Copying fewer bytes than this is cheaper than one more segment of a vectored write.
    const COPY_BYTES: usize = 16 << 10;

    /// An empty outbox.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a frame.
    pub fn push(&mut self, kind: Kind, id: u64, metadata: &impl prost::Message, payload: Bytes) {
        let before = self.tail.len();
        put_head(&mut self.tail, kind, id, metadata, payload.len());
        self.pending += self.tail.len() - before + payload.len();
        if payload.len() < Self::COPY_BYTES {
            self.tail.extend_from_slice(&payload);
        } else {
            self.whole.push(self.tail.split().freeze());
            self.whole.push(payload);
        }
    }

    /// Bytes pushed and not yet taken.
    pub fn pending_bytes(&self) -> usize {
        self.pending
    }

    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.pending == 0
    }

    /// Everything that waits, in order, as the segments of one vectored write.
    pub fn take(&mut self) -> Vec<Bytes> {
        self.pending = 0;
        if !self.tail.is_empty() {
            self.whole.push(self.tail.split().freeze());
        }
        std::mem::take(&mut self.whole)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Hello;

    #[test]
    fn small_frames_share_a_segment_and_large_payloads_are_not_copied() {
        let mut outbox = Outbox::new();
        let large = Bytes::from(vec![1; Outbox::COPY_BYTES]);
        outbox.push(Kind::Hello, 0, &Hello::default(), Bytes::from_static(b"small"));
        outbox.push(Kind::Hello, 0, &Hello::default(), large.clone());
        outbox.push(Kind::Hello, 0, &Hello::default(), Bytes::new());
        let pending = outbox.pending_bytes();
        let segments = outbox.take();
        assert_eq!(segments.len(), 3);
        assert_eq!(segments[1].as_ptr(), large.as_ptr(), "the payload is the slice that was pushed");
        assert_eq!(segments.iter().map(Bytes::len).sum::<usize>(), pending);
        assert!(outbox.is_empty() && outbox.take().is_empty());
    }
}
