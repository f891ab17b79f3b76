//! Frames waiting to be written, coalesced: small ones share a buffer, large payloads travel as the slices
//! they are. Decides what one write carries; never writes.

use crate::frame::{Kind, put_head};
use bytes::{Buf, Bytes, BytesMut};
use std::collections::VecDeque;
use std::io::IoSlice;

/// A queue of encoded frames. Its owner bounds what enters; see [`Outbox::pending_bytes`].
#[derive(Debug, Default)]
pub struct Outbox {
    whole: VecDeque<Bytes>,
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
            self.whole.push_back(self.tail.split().freeze());
            self.whole.push_back(payload);
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

    /// Everything that waits, in order.
    pub fn take(&mut self) -> Segments {
        if !self.tail.is_empty() {
            self.whole.push_back(self.tail.split().freeze());
        }
        Segments { segments: std::mem::take(&mut self.whole), bytes: std::mem::take(&mut self.pending) }
    }
}

/// Bytes for vectored writes. As a [`Buf`] it knows how much of it has been written.
#[derive(Debug, Default)]
pub struct Segments {
    segments: VecDeque<Bytes>,
    bytes: usize,
}

impl Segments {
    /// All in one piece.
    pub fn concat(mut self) -> Bytes {
        self.copy_to_bytes(self.remaining())
    }
}

impl Buf for Segments {
    fn remaining(&self) -> usize {
        self.bytes
    }

    fn chunk(&self) -> &[u8] {
        self.segments.front().map_or(&[], Bytes::as_ref)
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        for (slice, segment) in slices.iter_mut().zip(&self.segments) {
            *slice = IoSlice::new(segment);
        }
        slices.len().min(self.segments.len())
    }

    fn advance(&mut self, mut written: usize) {
        self.bytes -= written;
        while let Some(first) = self.segments.front_mut() {
            if written < first.len() {
                return first.advance(written);
            }
            written -= first.len();
            self.segments.pop_front();
        }
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
        assert_eq!(segments.segments.len(), 3);
        assert_eq!(segments.segments[1].as_ptr(), large.as_ptr(), "the payload is the slice that was pushed");
        assert_eq!(segments.remaining(), pending);
        assert!(outbox.is_empty() && !outbox.take().has_remaining());
    }

    #[test]
    fn short_writes_lose_and_repeat_nothing() {
        let mut outbox = Outbox::new();
        for id in 0..3 {
            outbox.push(Kind::Infer, id, &Hello::default(), Bytes::from(vec![id as u8; Outbox::COPY_BYTES]));
        }
        let mut whole = outbox.take();
        let expected: Vec<u8> = whole.segments.iter().flat_map(|segment| segment.to_vec()).collect();
        let mut written = Vec::new();
        for most in [1, 31, 40, Outbox::COPY_BYTES, 5].into_iter().cycle() {
            let mut slices = [IoSlice::new(&[]); 2];
            let filled = whole.chunks_vectored(&mut slices);
            let bytes: Vec<u8> =
                slices[..filled].iter().flat_map(|slice| slice.to_vec()).take(most).collect();
            if bytes.is_empty() {
                break;
            }
            whole.advance(bytes.len());
            written.extend(bytes);
        }
        assert_eq!(written, expected);
    }
}
