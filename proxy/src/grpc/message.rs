//! Messages as they travel: five bytes that say whether one is compressed and how long it is, then the message. Decides
//! how much of one may be held; never looks inside.
//!
//! ```text
//! ├ compressed? ┤ length, big-endian ┤ message … ┤     in DATA frames that may be cut anywhere
//! ```
//!
//! A message that comes in one piece is not copied, and neither are the tensors of an answer.

use crate::growing::Growing;
use crate::refusal::Refusal;
use crate::slots::Slot;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use flate2::Compression;
use flate2::bufread::{GzDecoder, ZlibDecoder};
use flate2::write::{GzEncoder, ZlibEncoder};
use http::{HeaderMap, HeaderName};
use http_body::Body;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{Read, Write};
use std::pin::Pin;

/// Bytes in front of a message.
pub(crate) const PREFIX: usize = 5;

/// How messages are compressed, where their prefix says that they are.
pub(crate) const ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");

/// What one side understands of it.
pub(crate) const ACCEPT_ENCODING: HeaderName = HeaderName::from_static("grpc-accept-encoding");

/// What this side understands.
pub(crate) const ACCEPTED: &str = "identity,gzip,deflate";

/// A way to compress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Coding {
    Gzip,
    /// The zlib format, as in HTTP.
    Deflate,
}

impl Coding {
    /// How the messages of a request are compressed.
    pub(crate) fn of_request(headers: &HeaderMap) -> Result<Option<Self>, Refusal> {
        let Some(encoding) = headers.get(ENCODING) else { return Ok(None) };
        match encoding.as_bytes() {
            b"identity" => Ok(None),
            b"gzip" => Ok(Some(Self::Gzip)),
            b"deflate" => Ok(Some(Self::Deflate)),
            other => Err(Refusal::Encoding { encoding: String::from_utf8_lossy(other).into_owned() }),
        }
    }

    /// How its answers are: as the request, where the client takes that. Clients say that they take everything, and on
    /// one machine compressing costs more than it saves, so nobody gets what he does not use himself.
    pub(crate) fn of_answer(request: Option<Self>, headers: &HeaderMap) -> Option<Self> {
        let mut accepted = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
        request.filter(|coding| accepted.any(|value| value.split(',').any(|one| one.trim() == coding.name())))
    }

    /// Its name in headers.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Deflate => "deflate",
        }
    }

    /// Inflates a message to at most `bytes_max`; `slot` makes room on the way.
    fn inflate(self, message: &[u8], bytes_max: usize, slot: &mut Slot) -> Result<Bytes, Refusal> {
        let mut reader: Box<dyn Read + '_> = match self {
            Self::Gzip => Box::new(GzDecoder::new(message)),
            Self::Deflate => Box::new(ZlibDecoder::new(message)),
        };
        let mut whole = Growing::up_to(bytes_max, "the message");
        let mut piece = [0; 16 << 10];
        loop {
            let read = reader
                .read(&mut piece)
                .map_err(|error| Refusal::Invalid(format!("the message is not {}: {error}", self.name())))?;
            if read == 0 {
                return Ok(whole.freeze());
            }
            whole.append(&piece[..read], slot)?;
        }
    }

    fn deflate(self, pieces: &VecDeque<Bytes>) -> Vec<u8> {
        let start = vec![0; PREFIX];
        let written = match self {
            Self::Gzip => write_all(GzEncoder::new(start, Compression::fast()), pieces, GzEncoder::finish),
            Self::Deflate => {
                write_all(ZlibEncoder::new(start, Compression::fast()), pieces, ZlibEncoder::finish)
            }
        };
        written.expect("a Vec takes whatever is written")
    }
}

fn write_all<W: Write>(
    mut writer: W,
    pieces: &VecDeque<Bytes>,
    finish: impl FnOnce(W) -> std::io::Result<Vec<u8>>,
) -> std::io::Result<Vec<u8>> {
    pieces.iter().try_for_each(|piece| writer.write_all(piece))?;
    finish(writer)
}

/// What stands in front of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Prefix {
    is_compressed: bool,
    len: usize,
}

/// The messages of one request, from its body.
pub(crate) struct Messages<B> {
    body: B,
    /// What has come and is not taken yet.
    left: Bytes,
    coding: Option<Coding>,
}

impl<B: Body<Data = Bytes> + Unpin> Messages<B> {
    /// None has been read yet.
    pub(crate) fn new(body: B, coding: Option<Coding>) -> Self {
        Self { body, left: Bytes::new(), coding }
    }

    /// What stands in front of the next message; `None` at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<Prefix>, Refusal> {
        while self.left.len() < PREFIX {
            match self.piece().await? {
                Some(piece) if self.left.is_empty() => self.left = piece,
                Some(piece) => self.left = [&self.left[..], &piece].concat().into(),
                None if self.left.is_empty() => return Ok(None),
                None => return Err(Refusal::Invalid("the body ends within the prefix of a message".into())),
            }
        }
        let is_compressed = match self.left.get_u8() {
            0 => false,
            1 => true,
            flag => {
                return Err(Refusal::Invalid(format!("the body is no gRPC message: it begins with {flag}")));
            }
        };
        Ok(Some(Prefix { is_compressed, len: self.left.get_u32() as usize }))
    }

    /// What has come of a message so far, if it can be read already, and whether that is all of it.
    pub(crate) fn arrived(&self, prefix: Prefix) -> Option<(&[u8], bool)> {
        let arrived = &self.left[..self.left.len().min(prefix.len)];
        (!prefix.is_compressed).then_some((arrived, arrived.len() == prefix.len))
    }

    /// All of a message for which `slot` has made room.
    pub(crate) async fn rest(
        &mut self,
        prefix: Prefix,
        bytes_max: usize,
        slot: &mut Slot,
    ) -> Result<Bytes, Refusal> {
        let message = self.take(prefix.len).await?;
        match (prefix.is_compressed, self.coding) {
            (false, _) => Ok(message),
            (true, Some(coding)) => coding.inflate(&message, bytes_max, slot),
            (true, None) => {
                Err(Refusal::Invalid("the message is compressed, but grpc-encoding is not set".into()))
            }
        }
    }

    /// Reads a message that nobody wants, so that the next one is found.
    pub(crate) async fn skip(&mut self, prefix: Prefix) -> Result<(), Refusal> {
        let mut missing = prefix.len;
        loop {
            let here = self.left.len().min(missing);
            self.left.advance(here);
            missing -= here;
            if missing == 0 {
                return Ok(());
            }
            self.left = self.piece().await?.ok_or_else(cut)?;
        }
    }

    async fn take(&mut self, len: usize) -> Result<Bytes, Refusal> {
        if self.left.len() >= len {
            return Ok(self.left.split_to(len)); // most come in one piece
        }
        let mut whole = BytesMut::with_capacity(len);
        whole.extend_from_slice(&self.left);
        self.left = Bytes::new();
        while whole.len() < len {
            let mut piece = self.piece().await?.ok_or_else(cut)?;
            let own = piece.split_to(piece.len().min(len - whole.len()));
            whole.extend_from_slice(&own);
            self.left = piece;
        }
        Ok(whole.freeze())
    }

    /// More of the body, never empty.
    async fn piece(&mut self) -> Result<Option<Bytes>, Refusal> {
        loop {
            match poll_fn(|context| Pin::new(&mut self.body).poll_frame(context)).await {
                None => return Ok(None),
                // Reset, or the connection is gone.
                Some(Err(_)) => return Err(Refusal::ClientGone),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(piece) if !piece.is_empty() => return Ok(Some(piece)),
                    Ok(_) | Err(_) => {} // trailers of a request say nothing
                },
            }
        }
    }
}

impl Prefix {
    /// Bytes of the message, as it comes.
    pub(crate) fn len(self) -> usize {
        self.len
    }

    /// Whether a message may be so long.
    pub(crate) fn fits(self, bytes_max: usize) -> Result<(), Refusal> {
        if self.len <= bytes_max {
            return Ok(());
        }
        Err(Refusal::TooLarge { what: "the message", limit: bytes_max })
    }

    /// Makes room for it.
    pub(crate) fn reserve(self, bytes_max: usize, slot: &mut Slot) -> Result<(), Refusal> {
        self.fits(bytes_max)?;
        slot.reserve(self.len)
    }
}

fn cut() -> Refusal {
    Refusal::Invalid("the body ends within a message".into())
}

/// A message to be written, in pieces of which the first begins with the prefix.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Outgoing {
    pub(crate) pieces: VecDeque<Bytes>,
}

impl Outgoing {
    /// A small one.
    pub(crate) fn of(message: &impl prost::Message) -> Self {
        let len = message.encoded_len();
        let mut bytes = BytesMut::with_capacity(PREFIX + len);
        put_prefix(&mut bytes, len);
        message.encode(&mut bytes).expect("reserved above");
        Self { pieces: VecDeque::from([bytes.freeze()]) }
    }

    /// Of all pieces.
    pub(crate) fn len(&self) -> usize {
        self.pieces.iter().map(Bytes::len).sum()
    }

    /// The same, compressed.
    pub(crate) fn compressed(mut self, coding: Coding) -> Self {
        if let Some(first) = self.pieces.front_mut() {
            first.advance(PREFIX);
        }
        let mut bytes = coding.deflate(&self.pieces);
        let len = bytes.len() - PREFIX;
        bytes[0] = 1;
        (&mut bytes[1..PREFIX]).put_u32(len as u32);
        Self { pieces: VecDeque::from([bytes.into()]) }
    }
}

/// Writes what stands in front of a message that is not compressed.
pub(crate) fn put_prefix(bytes: &mut BytesMut, len: usize) {
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(len).expect("an answer of the engine has a few hundred MiB at most"));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slots::Slots;
    use http_body::Frame;
    use policies::Room;
    use std::convert::Infallible;
    use std::sync::Arc;
    use std::task::{Context, Poll};

    struct Pieces(VecDeque<Bytes>);

    impl Body for Pieces {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            Poll::Ready(self.0.pop_front().map(|piece| Ok(Frame::data(piece))))
        }
    }

    fn of(bytes: &[u8], piece: usize, coding: Option<Coding>) -> Messages<Pieces> {
        Messages::new(Pieces(bytes.chunks(piece).map(Bytes::copy_from_slice).collect()), coding)
    }

    fn slot() -> Slot {
        Arc::new(Slots::new(1, 1 << 20)).enter(Room::ALL).unwrap()
    }

    async fn read(messages: &mut Messages<Pieces>, bytes_max: usize) -> Result<Option<Bytes>, Refusal> {
        let Some(prefix) = messages.next().await? else { return Ok(None) };
        let mut slot = slot();
        prefix.reserve(bytes_max, &mut slot)?;
        messages.rest(prefix, bytes_max, &mut slot).await.map(Some)
    }

    const TWO: &[u8] = &[0, 0, 0, 0, 3, 1, 2, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 8, 9];

    #[tokio::test]
    async fn messages_are_found_however_the_body_is_cut() {
        for piece in 1..=TWO.len() {
            let mut messages = of(TWO, piece, None);
            for expected in [&[1, 2, 3][..], &[], &[8, 9]] {
                assert_eq!(read(&mut messages, 3).await.unwrap().unwrap(), expected, "pieces of {piece}");
            }
            assert_eq!(read(&mut messages, 3).await, Ok(None));
            let mut skipped = of(TWO, piece, None);
            let first = skipped.next().await.unwrap().unwrap();
            skipped.skip(first).await.unwrap();
            assert_eq!(read(&mut skipped, 3).await.unwrap().unwrap(), &[][..]);
        }
    }

    #[tokio::test]
    async fn what_is_no_message_is_refused() {
        let too_large = Refusal::TooLarge { what: "the message", limit: 2 };
        assert_eq!(read(&mut of(TWO, 9, None), 2).await, Err(too_large));
        for (bytes, says) in [
            (&[0, 0, 0][..], "ends within the prefix"),
            (&[0, 0, 0, 0, 3, 1], "ends within a message"),
            (&[2, 0, 0, 0, 0], "begins with 2"),
            (&[1, 0, 0, 0, 1, 1], "grpc-encoding is not set"),
        ] {
            let error = read(&mut of(bytes, 2, None), 9).await.unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }

    #[tokio::test]
    async fn compressed_messages_come_back_and_do_not_outgrow_the_limit() {
        let mut prefixed = BytesMut::new();
        put_prefix(&mut prefixed, 100_000);
        prefixed.extend_from_slice(&[7; 100_000]);
        let plain = Outgoing { pieces: VecDeque::from([prefixed.freeze()]) };
        for coding in [Coding::Gzip, Coding::Deflate] {
            let small = plain.clone().compressed(coding);
            assert!(small.len() < 1000, "{}", small.len());
            let bytes = &small.pieces[0];
            let message = read(&mut of(bytes, 100, Some(coding)), 100_000).await.unwrap().unwrap();
            assert!(message.len() == 100_000 && message.iter().all(|byte| *byte == 7));
            let bomb = read(&mut of(bytes, 100, Some(coding)), 99_999).await;
            assert_eq!(bomb, Err(Refusal::TooLarge { what: "the message", limit: 99_999 }));
            let torn = read(&mut of(&[1, 0, 0, 0, 2, 9, 9], 100, Some(coding)), 9).await.unwrap_err();
            assert!(torn.to_string().starts_with("the message is not"), "{torn}");
        }
    }

    #[test]
    fn an_answer_is_compressed_as_its_request_if_the_client_takes_that() {
        let headers = |encoding: &str, accepted: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(ENCODING, encoding.parse().unwrap());
            headers.insert(ACCEPT_ENCODING, accepted.parse().unwrap());
            headers
        };
        let answer = |headers: HeaderMap| Coding::of_answer(Coding::of_request(&headers).unwrap(), &headers);
        assert_eq!(answer(headers("gzip", "identity, deflate, gzip")), Some(Coding::Gzip));
        assert_eq!(answer(headers("identity", "identity, deflate, gzip")), None);
        assert_eq!(answer(headers("gzip", "identity")), None);
        assert!(Coding::of_request(&headers("br", "")).is_err());
    }
}
