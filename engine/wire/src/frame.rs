//! The envelope: a fixed header, metadata, payload. Decides where a frame ends and whether it may exist;
//! never looks into metadata or payload.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Raised when a change of this crate makes old and new sides misread each other.
pub const PROTOCOL_VERSION: u16 = 1;

/// Payloads and the tensors inside them start at multiples of this, which is what vector loads like.
pub const ALIGNMENT: usize = 64;

const MAGIC: u32 = u32::from_le_bytes(*b"PNST");
pub(crate) const HEADER_LEN: usize = 32;

/// What a frame is about; the direction is the proxy's (P) to the engine (E) or back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Kind {
    /// E → P, first frame of a connection: who the engine is. Metadata [`crate::Hello`].
    Hello = 1,
    /// E → P, after `Hello` and at every change: which versions exist. Metadata [`crate::Index`].
    Index = 2,
    /// P → E: run this. Metadata [`crate::Infer`], payload its input tensors.
    Infer = 3,
    /// E → P: the one answer to an `Infer` of the same id. Metadata [`crate::Reply`], payload its outputs.
    Reply = 4,
    /// P → E: nobody waits for this id any more. No metadata; the engine answers nothing.
    Cancel = 5,
    /// P → E: are you there? No metadata.
    Ping = 6,
    /// E → P: yes. Metadata [`crate::Health`].
    Pong = 7,
    /// P → E: load or unload a model. Metadata [`crate::Control`]; answered by a `Reply` of the same id.
    Control = 8,
    /// P → E, first frame of a connection if at all: memory of both, whose descriptors travel beside it; only to an engine
    /// that [takes](crate::Hello::takes_regions) it. Metadata [`crate::Region`].
    /// E → P: it is mapped, and payloads may lie there from now on. No metadata.
    Region = 9,
}

impl Kind {
    fn from_wire(kind: u16) -> Option<Self> {
        [
            Self::Hello,
            Self::Index,
            Self::Infer,
            Self::Reply,
            Self::Cancel,
            Self::Ping,
            Self::Pong,
            Self::Control,
            Self::Region,
        ]
        .into_iter()
        .find(|known| *known as u16 == kind)
    }
}

/// One decoded frame; both byte fields are cheap slices of the receive buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it is about.
    pub kind: Kind,
    /// Chosen by the proxy, unique among its unanswered requests on this connection; 0 where no request is meant.
    pub id: u64,
    /// A prost message, see [`crate::message`].
    pub metadata: Bytes,
    /// Tensor bytes, see [`crate::tensor`].
    pub payload: Bytes,
}

/// The largest frame a side is willing to hold, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest metadata.
    pub metadata_bytes: usize,
    /// Largest payload.
    pub payload_bytes: usize,
}

impl Default for Limits {
    /// 1 MiB of metadata, 256 MiB of payload.
    fn default() -> Self {
        Self { metadata_bytes: 1 << 20, payload_bytes: 256 << 20 }
    }
}

/// Why a byte stream is not a stream of frames.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Not our protocol at all.
    #[error("not a penstock frame: magic {got:#010x}")]
    Magic {
        /// The first four bytes.
        got: u32,
    },
    /// The other side is older or newer.
    #[error(
        "protocol version {got}, this side speaks {PROTOCOL_VERSION}: run penstock and penstock-engine of one release"
    )]
    Version {
        /// The other side's version.
        got: u16,
    },
    /// A kind this version does not have.
    #[error("unknown frame kind {got}")]
    Kind {
        /// The kind's number.
        got: u16,
    },
    /// Reserved bits are set.
    #[error("reserved header field is {got:#x}, not zero")]
    Reserved {
        /// Its value.
        got: u32,
    },
    /// Longer than this side allows.
    #[error("{part} of {got} bytes exceeds the limit of {limit}")]
    TooLong {
        /// `metadata` or `payload`.
        part: &'static str,
        /// Declared length.
        got: u64,
        /// The limit it exceeds.
        limit: usize,
    },
}

struct Header {
    kind: Kind,
    id: u64,
    metadata_len: usize,
    payload_len: usize,
}

impl Header {
    fn parse(mut bytes: &[u8], limits: &Limits) -> Result<Self, FrameError> {
        let magic = bytes.get_u32_le();
        if magic != MAGIC {
            return Err(FrameError::Magic { got: magic });
        }
        let version = bytes.get_u16_le();
        if version != PROTOCOL_VERSION {
            return Err(FrameError::Version { got: version });
        }
        let kind = bytes.get_u16_le();
        let kind = Kind::from_wire(kind).ok_or(FrameError::Kind { got: kind })?;
        let id = bytes.get_u64_le();
        let metadata_len = within("metadata", u64::from(bytes.get_u32_le()), limits.metadata_bytes)?;
        let reserved = bytes.get_u32_le();
        if reserved != 0 {
            return Err(FrameError::Reserved { got: reserved });
        }
        let payload_len = within("payload", bytes.get_u64_le(), limits.payload_bytes)?;
        Ok(Self { kind, id, metadata_len, payload_len })
    }

    fn payload_start(&self) -> usize {
        payload_start(self.metadata_len, self.payload_len)
    }

    fn frame_len(&self) -> usize {
        self.payload_start() + self.payload_len
    }
}

fn within(part: &'static str, got: u64, limit: usize) -> Result<usize, FrameError> {
    usize::try_from(got).ok().filter(|len| *len <= limit).ok_or(FrameError::TooLong { part, got, limit })
}

/// Without a payload nothing needs aligning, and the frame ends with its metadata.
fn payload_start(metadata_len: usize, payload_len: usize) -> usize {
    let end = HEADER_LEN + metadata_len;
    if payload_len == 0 { end } else { end.next_multiple_of(ALIGNMENT) }
}

/// Writes everything of a frame that precedes its payload.
pub(crate) fn put_head(
    out: &mut BytesMut,
    kind: Kind,
    id: u64,
    metadata: &impl prost::Message,
    payload_len: usize,
) {
    let metadata_len = metadata.encoded_len();
    let start = payload_start(metadata_len, payload_len);
    out.reserve(start);
    out.put_u32_le(MAGIC);
    out.put_u16_le(PROTOCOL_VERSION);
    out.put_u16_le(kind as u16);
    out.put_u64_le(id);
    out.put_u32_le(
        u32::try_from(metadata_len).expect("metadata is a few hundred bytes: bounded by its writer"),
    );
    out.put_u32_le(0);
    out.put_u64_le(payload_len as u64);
    metadata.encode(out).expect("reserved above");
    out.put_bytes(0, start - HEADER_LEN - metadata_len);
}

/// Cuts a byte stream into frames. Feed it through [`Decoder::buffer`], then call [`Decoder::decode`] until it
/// gives `None`.
#[derive(Debug)]
pub struct Decoder {
    buffer: BytesMut,
    limits: Limits,
}

impl Decoder {
    /// Reads of small frames share one buffer of this size.
    const READ_BYTES: usize = 64 << 10;

    /// A decoder that refuses what exceeds `limits`.
    pub fn new(limits: Limits) -> Self {
        Self { buffer: BytesMut::new(), limits }
    }

    /// Where the next bytes of the stream go. It has room for what is known to be missing of the current
    /// frame, and for at least one read of small frames otherwise.
    pub fn buffer(&mut self) -> &mut BytesMut {
        let missing = self
            .header()
            .ok()
            .flatten()
            .map_or(0, |header| header.frame_len().saturating_sub(self.buffer.len()));
        self.buffer.reserve(missing.max(Self::READ_BYTES));
        &mut self.buffer
    }

    /// The next whole frame, `None` if it is not all there yet.
    pub fn decode(&mut self) -> Result<Option<Frame>, FrameError> {
        let Some(header) = self.header()? else { return Ok(None) };
        if self.buffer.len() < header.frame_len() {
            return Ok(None);
        }
        let mut bytes = self.buffer.split_to(header.frame_len()).freeze();
        let payload = bytes.split_off(header.payload_start());
        let metadata = bytes.slice(HEADER_LEN..HEADER_LEN + header.metadata_len);
        Ok(Some(Frame { kind: header.kind, id: header.id, metadata, payload }))
    }

    /// Whether the stream could end here without cutting a frame.
    pub fn is_between_frames(&self) -> bool {
        self.buffer.is_empty()
    }

    fn header(&self) -> Result<Option<Header>, FrameError> {
        self.buffer.get(..HEADER_LEN).map(|bytes| Header::parse(bytes, &self.limits)).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Outbox, Status, message::Reply};
    use proptest::prelude::*;

    fn any_kind() -> impl Strategy<Value = Kind> {
        (1..=9_u16).prop_map(|kind| Kind::from_wire(kind).expect("all kinds are numbered from 1"))
    }

    fn any_frame() -> impl Strategy<Value = (Kind, u64, Reply, Vec<u8>)> {
        let payload = prop_oneof![
            Just(Vec::new()),
            prop::collection::vec(any::<u8>(), 0..300),
            prop::collection::vec(any::<u8>(), 20_000..40_000)
        ];
        (any_kind(), any::<u64>(), ".{0,80}", payload).prop_map(|(kind, id, message, payload)| {
            (kind, id, Reply { status: Status::Internal as i32, message, ..Reply::default() }, payload)
        })
    }

    fn decode_all(decoder: &mut Decoder, chunk: &[u8], into: &mut Vec<Frame>) -> Result<(), FrameError> {
        decoder.buffer().extend_from_slice(chunk);
        while let Some(frame) = decoder.decode()? {
            into.push(frame);
        }
        Ok(())
    }

    fn stream_of(frames: &[(Kind, u64, Reply, Vec<u8>)]) -> Vec<u8> {
        let mut outbox = Outbox::new();
        for (kind, id, metadata, payload) in frames {
            outbox.push(*kind, *id, metadata, Bytes::from(payload.clone()));
        }
        outbox.take().concat().into()
    }

    proptest! {
        #[test]
        fn any_split_of_the_stream_decodes_to_the_same_frames(
            frames in prop::collection::vec(any_frame(), 1..6),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        ) {
            let stream = stream_of(&frames);
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len())).collect();
            cuts.extend([0, stream.len()]);
            cuts.sort_unstable();
            let mut decoder = Decoder::new(Limits::default());
            let mut seen = Vec::new();
            for pair in cuts.windows(2) {
                decode_all(&mut decoder, &stream[pair[0]..pair[1]], &mut seen).unwrap();
            }
            prop_assert!(decoder.is_between_frames());
            prop_assert_eq!(seen.len(), frames.len());
            for (frame, (kind, id, metadata, payload)) in seen.iter().zip(&frames) {
                prop_assert_eq!(frame.kind, *kind);
                prop_assert_eq!(frame.id, *id);
                prop_assert_eq!(&frame.payload[..], &payload[..]);
                let decoded = <Reply as prost::Message>::decode(frame.metadata.clone()).unwrap();
                prop_assert_eq!(&decoded, metadata);
            }
        }

        #[test]
        fn a_corrupt_stream_is_an_error_never_a_panic_or_a_large_allocation(
            frame in any_frame(),
            flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        ) {
            let limits = Limits { metadata_bytes: 4 << 10, payload_bytes: 64 << 10 };
            let mut stream = stream_of(&[frame]);
            for (at, value) in flips {
                let at = at.index(stream.len().min(HEADER_LEN));
                stream[at] = value;
            }
            let mut decoder = Decoder::new(limits);
            let _ = decode_all(&mut decoder, &stream, &mut Vec::new());
            let most = HEADER_LEN + ALIGNMENT + limits.metadata_bytes + limits.payload_bytes + Decoder::READ_BYTES + stream.len();
            prop_assert!(decoder.buffer().capacity() <= 2 * most);
        }
    }

    fn refused(change: impl Fn(&mut [u8])) -> FrameError {
        let mut stream = stream_of(&[(Kind::Infer, 7, Reply::default(), vec![1; 100])]);
        change(&mut stream);
        decode_all(&mut Decoder::new(Limits::default()), &stream, &mut Vec::new()).unwrap_err()
    }

    #[test]
    fn each_broken_header_field_is_named() {
        assert_eq!(refused(|s| s[0] = b'X'), FrameError::Magic { got: u32::from_le_bytes(*b"XNST") });
        assert_eq!(refused(|s| s[4] = 9), FrameError::Version { got: 9 });
        assert_eq!(refused(|s| s[6] = 99), FrameError::Kind { got: 99 });
        assert_eq!(refused(|s| s[20] = 1), FrameError::Reserved { got: 1 });
        assert!(matches!(refused(|s| s[19] = 0xff), FrameError::TooLong { part: "metadata", .. }));
        assert!(matches!(refused(|s| s[31] = 0xff), FrameError::TooLong { part: "payload", .. }));
    }

    #[test]
    fn payload_starts_aligned_and_empty_payload_costs_no_padding() {
        let with = stream_of(&[(Kind::Infer, 1, Reply::default(), vec![7; 3])]);
        assert_eq!(with.len() % ALIGNMENT, 3);
        let without = stream_of(&[(Kind::Cancel, 1, Reply::default(), vec![])]);
        assert_eq!(without.len(), HEADER_LEN);
    }
}
