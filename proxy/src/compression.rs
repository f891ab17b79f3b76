//! Bodies that are compressed on their way: gzip, and deflate in zlib's form (RFC 9110, 8.4.1). Decides which of them a
//! body comes in and an answer goes out in; never how large a body may be, which [`crate::body`] is told.
//!
//! A worker has other requests than this one. Nothing is inflated or compressed for longer than a fraction of a
//! millisecond without letting them on.

use crate::body::BodyLimits;
use crate::growing::Growing;
use crate::refusal::Refusal;
use crate::slots::Slot;
use bytes::{Buf, Bytes};
use flate2::Compression;
use flate2::bufread::{MultiGzDecoder, ZlibDecoder};
use flate2::write::{GzEncoder, ZlibEncoder};
use http::{HeaderMap, HeaderName, header};
use std::io::{self, BufRead, ErrorKind, Read, Write};
use tokio::task::yield_now;

/// How a body is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Coding {
    /// RFC 1952, of one member or several.
    Gzip,
    /// RFC 1950, which is what HTTP calls deflate.
    Deflate,
}

/// Bytes that are written, or read before the first of them can be, until others have their turn.
const OUT_AT_ONCE: usize = 64 << 10;
const IN_AT_ONCE: usize = 16 << 10;

/// Shorter answers are sent as they are: compressing them saves no packet.
pub(crate) const WORTH_COMPRESSING: usize = 1 << 10;

impl Coding {
    /// What `Content-Encoding` says; an error names what nobody here can read.
    pub(crate) fn of_body(headers: &HeaderMap) -> Result<Option<Self>, Refusal> {
        let mut found = None;
        for name in words(headers, &header::CONTENT_ENCODING) {
            let coding = Self::from_name(name);
            if name.eq_ignore_ascii_case("identity") {
                continue;
            }
            // A body that is compressed twice is nothing that a client does by mistake.
            if coding.is_none() || found.is_some() {
                return Err(Refusal::Encoding { encoding: name.to_owned() });
            }
            found = coding;
        }
        Ok(found)
    }

    /// What an answer to a request with these headers goes out in, if not as it is: what its client names and does not
    /// want less than the plain answer. Of two that it wants equally it is gzip, which everybody reads alike.
    pub(crate) fn of_answer(headers: &HeaderMap) -> Option<Self> {
        let (mut best, mut plain) = (None, 0);
        for word in words(headers, &header::ACCEPT_ENCODING) {
            let (name, parameters) = word.split_once(';').unwrap_or((word, ""));
            let (name, weight) = (name.trim(), weight(parameters));
            if name.eq_ignore_ascii_case("identity") {
                plain = weight;
            } else if let Some(coding) = Self::from_name(name)
                && best.is_none_or(|(_, most)| weight > most || weight == most && coding == Self::Gzip)
            {
                best = Some((coding, weight));
            }
        }
        best.filter(|(_, weight)| *weight > 0 && *weight >= plain).map(|(coding, _)| coding)
    }

    /// Its name in headers.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Deflate => "deflate",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        match name {
            _ if name.eq_ignore_ascii_case("gzip") || name.eq_ignore_ascii_case("x-gzip") => Some(Self::Gzip),
            _ if name.eq_ignore_ascii_case("deflate") => Some(Self::Deflate),
            _ => None,
        }
    }

    /// What was compressed. Room in `slot` is made as it grows, and beyond the limit of bodies it is refused: how much
    /// comes of a few bytes is not known before.
    pub(crate) async fn inflate(
        self,
        body: Bytes,
        limits: &BodyLimits,
        slot: &mut Slot,
    ) -> Result<Bytes, Refusal> {
        let mut decoder = Decoder::new(self, Portion { rest: body, left: IN_AT_ONCE });
        let mut whole = Growing::up_to(limits.bytes_max, "the inflated body");
        let mut chunk = vec![0; OUT_AT_ONCE];
        loop {
            let read = match decoder.read(&mut chunk) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
                Err(error) => return Err(self.broken(&error.to_string())),
            };
            whole.append(&chunk[..read], slot)?;
            if read == 0 || read == OUT_AT_ONCE {
                decoder.input().left = IN_AT_ONCE;
                yield_now().await;
            }
        }
        if decoder.input().rest.is_empty() {
            Ok(whole.freeze())
        } else {
            Err(self.broken("something follows its end"))
        }
    }

    fn broken(self, why: &str) -> Refusal {
        Refusal::Invalid(format!("the body is no {} stream: {why}", self.name()))
    }

    /// `plain` compressed, fast rather than small; nothing if that makes it no shorter.
    pub(crate) async fn compress(self, plain: &[u8]) -> Option<Vec<u8>> {
        let out = Vec::with_capacity(plain.len() / 4);
        let mut encoder = match self {
            Self::Gzip => Encoder::Gzip(GzEncoder::new(out, Compression::fast())),
            Self::Deflate => Encoder::Deflate(ZlibEncoder::new(out, Compression::fast())),
        };
        for (position, piece) in plain.chunks(OUT_AT_ONCE).enumerate() {
            if position > 0 {
                yield_now().await;
            }
            encoder.write_all(piece).expect("a Vec takes everything");
        }
        let compressed = encoder.finish().expect("a Vec takes everything");
        (compressed.len() < plain.len()).then_some(compressed)
    }
}

/// The words of a header that is a list, over all of its lines.
pub(crate) fn words<'h>(headers: &'h HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'h str> {
    let lines = headers.get_all(name).iter().map(|line| line.to_str().unwrap_or("?"));
    lines.flat_map(|line| line.split(',')).map(str::trim).filter(|word| !word.is_empty())
}

/// In thousandths (RFC 9110, 12.4.2); 0, which is a refusal, if it makes no sense.
pub(crate) fn weight(parameters: &str) -> u16 {
    match parameter(parameters, "q").map(str::parse::<f32>) {
        None => 1000,
        Some(Ok(weight)) if (0.0..=1.0).contains(&weight) => (weight * 1000.0).round() as u16,
        Some(_) => 0,
    }
}

/// The value of one of the parameters of a word, without its quotes.
pub(crate) fn parameter<'p>(parameters: &'p str, name: &str) -> Option<&'p str> {
    parameters.split(';').find_map(|parameter| {
        let (is, value) = parameter.split_once('=')?;
        is.trim().eq_ignore_ascii_case(name).then(|| value.trim().trim_matches('"'))
    })
}

/// A body of which the reader gets so much at a time, so that a stream in which a great deal says nothing keeps nobody
/// waiting.
struct Portion {
    rest: Bytes,
    left: usize,
}

impl Read for Portion {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let read = available.len().min(into.len());
        into[..read].copy_from_slice(&available[..read]);
        self.consume(read);
        Ok(read)
    }
}

impl BufRead for Portion {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.left == 0 && !self.rest.is_empty() {
            return Err(ErrorKind::WouldBlock.into());
        }
        Ok(&self.rest[..self.rest.len().min(self.left)])
    }

    fn consume(&mut self, read: usize) {
        self.rest.advance(read);
        self.left -= read;
    }
}

enum Decoder {
    Gzip(MultiGzDecoder<Portion>),
    Deflate(ZlibDecoder<Portion>),
}

impl Decoder {
    fn new(coding: Coding, body: Portion) -> Self {
        match coding {
            Coding::Gzip => Self::Gzip(MultiGzDecoder::new(body)),
            Coding::Deflate => Self::Deflate(ZlibDecoder::new(body)),
        }
    }

    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Gzip(decoder) => decoder.read(into),
            Self::Deflate(decoder) => decoder.read(into),
        }
    }

    fn input(&mut self) -> &mut Portion {
        match self {
            Self::Gzip(decoder) => decoder.get_mut(),
            Self::Deflate(decoder) => decoder.get_mut(),
        }
    }
}

enum Encoder {
    Gzip(GzEncoder<Vec<u8>>),
    Deflate(ZlibEncoder<Vec<u8>>),
}

impl Encoder {
    fn write_all(&mut self, plain: &[u8]) -> io::Result<()> {
        match self {
            Self::Gzip(encoder) => encoder.write_all(plain),
            Self::Deflate(encoder) => encoder.write_all(plain),
        }
    }

    fn finish(self) -> io::Result<Vec<u8>> {
        match self {
            Self::Gzip(encoder) => encoder.finish(),
            Self::Deflate(encoder) => encoder.finish(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slots::Slots;
    use policies::Room;
    use std::sync::Arc;
    use std::time::Duration;

    const BOTH: [Coding; 2] = [Coding::Gzip, Coding::Deflate];

    fn headers(name: HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, value.parse().unwrap())])
    }

    /// Inflates where a body may have 1 MiB, and all of them together 2.
    fn inflate(coding: Coding, body: &[u8]) -> Result<Bytes, Refusal> {
        let limits = BodyLimits { bytes_max: 1 << 20, time_max: Duration::MAX };
        let mut slot = Arc::new(Slots::new(1, 2 << 20)).enter(Room::ALL).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(coding.inflate(Bytes::copy_from_slice(body), &limits, &mut slot))
    }

    fn compress(coding: Coding, plain: &[u8]) -> Vec<u8> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(coding.compress(plain)).expect("it gets shorter")
    }

    fn text(bytes: usize) -> Vec<u8> {
        (0..).flat_map(|number: u32| format!("{},", number % 7).into_bytes()).take(bytes).collect()
    }

    #[test]
    fn what_is_compressed_is_inflated_again_whatever_its_length() {
        for coding in BOTH {
            for bytes in [100, OUT_AT_ONCE, OUT_AT_ONCE + 1, 700_000] {
                let plain = text(bytes);
                assert_eq!(inflate(coding, &compress(coding, &plain)).unwrap(), plain, "{bytes} bytes");
            }
        }
    }

    #[test]
    fn noise_is_left_as_it_is() {
        let mut state = 1_u64;
        let mut noise = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as u8
        };
        let noise: Vec<u8> = (0..5000).map(|_| noise()).collect();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        assert_eq!(runtime.block_on(Coding::Gzip.compress(&noise)), None);
    }

    #[test]
    fn a_bomb_is_too_large_as_soon_as_it_passes_the_limit() {
        for coding in BOTH {
            let bomb = compress(coding, &vec![0; 8 << 20]);
            assert!(bomb.len() < 256 << 10);
            let refusal = inflate(coding, &bomb).unwrap_err();
            assert_eq!(refusal, Refusal::TooLarge { what: "the inflated body", limit: 1 << 20 });
            assert!(inflate(coding, &compress(coding, &vec![0; 1 << 20])).is_ok(), "the limit itself is let");
        }
    }

    #[test]
    fn room_is_made_for_what_comes_of_it() {
        let slots = Arc::new(Slots::new(1, 100 << 10));
        let limits = BodyLimits { bytes_max: 1 << 20, time_max: Duration::MAX };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let body = Bytes::from(compress(Coding::Gzip, &vec![0; 200 << 10]));
        let mut slot = slots.enter(Room::ALL).unwrap();
        let refusal = runtime.block_on(Coding::Gzip.inflate(body, &limits, &mut slot)).unwrap_err();
        assert!(matches!(refusal, Refusal::Overloaded(_)), "{refusal}");
        drop(slot);
        assert!(slots.enter(Room::ALL).unwrap().reserve(100 << 10).is_ok(), "all of it is given back");
    }

    #[test]
    fn streams_that_are_cut_damaged_or_followed_by_something_are_refused() {
        for coding in BOTH {
            let whole = compress(coding, &text(3000));
            for cut in [1, 5, whole.len() / 2, whole.len() - 1] {
                assert!(matches!(inflate(coding, &whole[..cut]), Err(Refusal::Invalid(_))), "cut at {cut}");
            }
            let mut damaged = whole.clone();
            *damaged.last_mut().unwrap() ^= 1;
            assert!(matches!(inflate(coding, &damaged), Err(Refusal::Invalid(_))), "its checksum is wrong");
            let followed = [&whole[..], b"more"].concat();
            assert!(matches!(inflate(coding, &followed), Err(Refusal::Invalid(_))), "something follows");
            assert!(matches!(inflate(coding, b"{\"inputs\":[]}"), Err(Refusal::Invalid(_))), "it is plain");
        }
        let refusal = inflate(Coding::Gzip, b"").unwrap_err().to_string();
        assert!(refusal.starts_with("the body is no gzip stream: "), "{refusal}");
    }

    #[test]
    fn gzip_may_have_several_members_and_many_that_say_nothing() {
        let one = compress(Coding::Gzip, &text(100));
        let two = inflate(Coding::Gzip, &[&one[..], &one[..]].concat()).unwrap();
        assert_eq!(two, [text(100), text(100)].concat());
        let nothing = GzEncoder::new(Vec::new(), Compression::fast()).finish().unwrap();
        assert_eq!(inflate(Coding::Gzip, &nothing.repeat(10_000)).unwrap(), b"".as_slice());
    }

    #[test]
    fn a_body_says_how_it_is_compressed() {
        let of = |value| {
            Coding::of_body(&headers(header::CONTENT_ENCODING, value)).map_err(|refusal| match refusal {
                Refusal::Encoding { encoding } => encoding,
                other => panic!("{other}"),
            })
        };
        assert_eq!(Coding::of_body(&HeaderMap::new()), Ok(None));
        assert_eq!(
            (of("identity"), of("GZIP"), of("x-gzip")),
            (Ok(None), Ok(Some(Coding::Gzip)), Ok(Some(Coding::Gzip)))
        );
        assert_eq!(of("deflate, identity"), Ok(Some(Coding::Deflate)));
        assert_eq!(
            (of("br"), of("gzip, zstd"), of("gzip, gzip")),
            (Err("br".into()), Err("zstd".into()), Err("gzip".into()))
        );
    }

    #[test]
    fn an_answer_is_compressed_for_those_who_prefer_that() {
        let of = |value| Coding::of_answer(&headers(header::ACCEPT_ENCODING, value));
        for (value, expected) in [
            ("gzip", Some(Coding::Gzip)),
            ("deflate", Some(Coding::Deflate)),
            ("gzip, deflate, br, zstd", Some(Coding::Gzip)),
            ("deflate, gzip, br, zstd", Some(Coding::Gzip)),
            ("gzip;q=0.5, deflate;q=0.8", Some(Coding::Deflate)),
            ("gzip;q=0.5, identity", None),
            ("gzip;q=0.5, identity;q=0.5", Some(Coding::Gzip)),
            ("gzip;q=0", None),
            ("gzip;q=much", None),
            ("gzip ; Q=1.0", Some(Coding::Gzip)),
            ("identity", None),
            ("*", None),
            ("br", None),
            ("", None),
        ] {
            assert_eq!(of(value), expected, "{value}");
        }
        assert_eq!(Coding::of_answer(&HeaderMap::new()), None);
    }
}
