//! How much there is to do for a request before a model can take it, told from the heads of its elements. It decides whose
//! times a request is expected to take, and whether it leaves a thread to others; never whether a file can be read, and how
//! large it really is: that its decoder says.
//!
//! There is one unit, a pixel of a baseline JPEG, which takes about ten nanoseconds; all else counts as many of them as take
//! about as long. Pixels and not bytes: pictures of as many bytes may differ a hundredfold in what they take.
//!
//! What is long goes by this number too, and not by what runs have taken: it has to be right for the first request of a
//! version, and for one that has not come for long, and it must not change while others of its kind wait or run. It may be
//! wrong by a small factor on one machine or another, and that does little harm: a thread that is left to the others is left by
//! what takes a few milliseconds as well as by what takes a second.
//!
//! Heads are read by the thread that reads frames. So nothing is searched for: a few bytes at known places, of a JPEG those of
//! at most [`SEGMENTS_MAX`] segments, and of at most [`HEADS_MAX`] elements, which the rest is taken to be like; more pictures are
//! long in any case. That is a microsecond for a usual file, and at most some hundred for the worst request.

use wire::Elements;

/// Requests with at least so much leave one of several threads to those with less: about ten milliseconds. A power of two, so
/// that requests that are expected to take as long are all on one side.
const LONG: u64 = 1 << 20;

/// Elements that are looked at; the rest is as much work for each byte.
const HEADS_MAX: usize = 32;

/// Segments before the one that says how large a JPEG is: cameras write about twenty, with a preview in them.
const SEGMENTS_MAX: usize = 64;

/// A progressive JPEG is gone through once for each of its scans, of which encoders make about ten.
const PROGRESSIVE: u64 = 4;

/// What a byte of text takes to become a token.
const TEXT_BYTE: u64 = 32;

/// What a text takes however short it is, in bytes.
const TEXT_BYTES_MIN: u64 = 16;

/// What is to be done for one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Work {
    /// What most of it is.
    pub(crate) kind: Kind,
    /// In pixels, and what takes about as long as so many.
    pub(crate) pixels: u64,
}

/// What takes unlike long for as many pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Jpeg,
    Progressive,
    Png,
    WebP,
    /// Of no format that is read: it is refused as soon as anybody looks at it.
    Unknown,
    Text,
}

impl Kind {
    const ALL: [Self; 6] = [Self::Jpeg, Self::Progressive, Self::Png, Self::WebP, Self::Unknown, Self::Text];
}

impl Work {
    /// Whether it takes so long that others must not wait for it.
    pub(crate) fn is_long(self) -> bool {
        self.pixels >= LONG
    }

    /// Requests of one octave take about as long.
    pub(crate) fn octave(self) -> u32 {
        self.pixels.max(1).ilog2()
    }
}

/// The work of all elements of a request, by kind.
#[derive(Debug, Default)]
pub(super) struct Tally([u64; Kind::ALL.len()]);

impl Tally {
    /// Adds the elements of one tensor, each of which is so much.
    pub(super) fn add(&mut self, tensor: &[u8], of: impl Fn(&[u8]) -> (Kind, u64)) {
        let (mut some, mut seen) = (Self::default(), 0);
        for element in Elements::of(tensor).flatten().take(HEADS_MAX) {
            let (kind, pixels) = of(element);
            let sum = &mut some.0[kind as usize];
            *sum = sum.saturating_add(pixels);
            seen += size_of::<u32>() + element.len();
        }
        for ((sum, pixels), kind) in self.0.iter_mut().zip(some.0).zip(Kind::ALL) {
            let all = u128::from(pixels) * tensor.len() as u128 / seen.max(1) as u128;
            let all = u64::try_from(all).unwrap_or(u64::MAX);
            // What a text takes, its bytes say; behind small pictures there may be any.
            let is_any = pixels > 0 && seen < tensor.len() && kind != Kind::Text;
            *sum = sum.saturating_add(if is_any { all.max(LONG) } else { all });
        }
    }

    pub(super) fn work(self) -> Work {
        let Self(sums) = self;
        let kind = Kind::ALL.into_iter().max_by_key(|kind| sums[*kind as usize]).expect("there are kinds");
        Work { kind, pixels: sums.into_iter().fold(0, u64::saturating_add) }
    }
}

/// The work of a text, whatever becomes of its tokens.
pub(super) fn of_text(text: &[u8]) -> (Kind, u64) {
    (Kind::Text, (text.len() as u64).saturating_add(TEXT_BYTES_MIN).saturating_mul(TEXT_BYTE))
}

/// The work of decoding a picture, as its head has it; one whose size is not found may be of any, and is long. A byte takes as long
/// as a pixel at least, whatever the head says.
pub(super) fn of_picture(file: &[u8]) -> (Kind, u64) {
    let (kind, pixels) = match file {
        [0xff, 0xd8, 0xff, ..] => jpeg(file).unwrap_or((Kind::Jpeg, LONG)),
        [0x89, b'P', b'N', b'G', ..] => (Kind::Png, png(file).unwrap_or(LONG)),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => {
            (Kind::WebP, webp(file).unwrap_or(LONG))
        }
        _ => (Kind::Unknown, 0),
    };
    (kind, pixels.max(file.len() as u64))
}

/// Goes from segment to segment up to that of the frame.
fn jpeg(file: &[u8]) -> Option<(Kind, u64)> {
    let mut at = 2;
    for _ in 0..SEGMENTS_MAX {
        let [0xff, marker, high, low] = *bytes(file, at)? else { return None };
        match marker {
            // One that only fills up.
            0xff => at += 1,
            // Nothing belongs to it.
            0x01 | 0xd0..=0xd9 => at += 2,
            // Of the sixteen numbers of frames three mean something else.
            0xc0..=0xcf if !matches!(marker, 0xc4 | 0xc8 | 0xcc) => {
                let [height, tall, width, wide] = *bytes(file, at + 5)?;
                let side = |high, low| u64::from(u16::from_be_bytes([high, low]));
                let pixels = side(height, tall) * side(width, wide);
                let is_progressive = matches!(marker, 0xc2 | 0xc6 | 0xca | 0xce);
                return Some(match is_progressive {
                    true => (Kind::Progressive, pixels * PROGRESSIVE),
                    false => (Kind::Jpeg, pixels),
                });
            }
            _ => at += 2 + usize::from(u16::from_be_bytes([high, low])),
        }
    }
    None
}

fn png(file: &[u8]) -> Option<u64> {
    let side = |at| Some(u64::from(u32::from_be_bytes(*bytes(file, at)?)));
    (bytes(file, 12)? == b"IHDR").then_some(side(16)?.saturating_mul(side(20)?))
}

fn webp(file: &[u8]) -> Option<u64> {
    let [width, height] = match bytes(file, 12)? {
        b"VP8X" => [24, 27].map(|at| {
            let [low, middle, high] = *bytes(file, at)?;
            Some(u32::from_le_bytes([low, middle, high, 0]) + 1)
        }),
        b"VP8 " => [26, 28].map(|at| Some(u32::from(u16::from_le_bytes(*bytes(file, at)?) & 0x3fff))),
        b"VP8L" => [0, 14].map(|from| Some((u32::from_le_bytes(*bytes(file, 21)?) >> from & 0x3fff) + 1)),
        _ => return None,
    };
    Some(u64::from(width?) * u64::from(height?))
}

fn bytes<const N: usize>(file: &[u8], at: usize) -> Option<&[u8; N]> {
    file.get(at..)?.first_chunk()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preprocess::picture::Opened;
    use proptest::prelude::*;
    use std::path::PathBuf;
    use wire::push_element;

    fn files() -> Vec<(String, Vec<u8>)> {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/data/pictures");
        let files = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path());
        let pictures = files.filter(|path| path.extension().is_some_and(|extension| extension != "rgb"));
        pictures.map(|path| (path.display().to_string(), std::fs::read(path).unwrap())).collect()
    }

    /// One grey, which takes next to no bytes.
    fn plain(side: u32) -> Vec<u8> {
        let mut file = Vec::new();
        let mut encoder = png::Encoder::new(&mut file, side, side);
        encoder.set_color(png::ColorType::Grayscale);
        let pixels = vec![7; (side * side) as usize];
        encoder.write_header().and_then(|mut writer| writer.write_image_data(&pixels)).unwrap();
        file
    }

    fn work(elements: &[&[u8]], of: impl Fn(&[u8]) -> (Kind, u64)) -> Work {
        let (mut tensor, mut tally) = (Vec::new(), Tally::default());
        elements.iter().for_each(|element| push_element(&mut tensor, element));
        tally.add(&tensor, of);
        tally.work()
    }

    #[test]
    fn the_head_of_a_picture_says_what_its_decoder_will() {
        let mut kinds = Vec::new();
        for (name, file) in files() {
            let Ok((_, pixels)) = Opened::head(&file, u64::MAX) else { continue };
            let (kind, told) = of_picture(&file);
            let times = if kind == Kind::Progressive { PROGRESSIVE } else { 1 };
            assert_eq!(told, (pixels * times).max(file.len() as u64), "{name}");
            kinds.extend((!kinds.contains(&kind)).then_some(kind));
        }
        assert_eq!(kinds.len(), 4, "{kinds:?}");
    }

    #[test]
    fn as_many_bytes_are_more_work_where_they_are_more_pixels() {
        let large = plain(3000);
        let small = [plain(10), vec![0; large.len()]].concat();
        let [large, small] = [large, small].map(|file| work(&[&file], of_picture));
        assert!(large.is_long() && !small.is_long(), "{large:?}, {small:?}");
        assert_eq!((large.kind, small.kind), (Kind::Png, Kind::Png));
        assert!(large.octave() > small.octave() + 5, "{large:?}, {small:?}");
    }

    #[test]
    fn many_rows_are_long_together_and_the_first_say_what_all_are_like() {
        let file = plain(100);
        let rows = |count: usize| work(&vec![&file[..]; count], of_picture).pixels;
        assert_eq!([rows(1), rows(10), rows(1000)], [10_000, 100_000, 10_000_000]);
        let text = [b'a'; 1000];
        assert!(!work(&[&text], of_text).is_long());
        assert!(work(&vec![&text[..]; 100], of_text).is_long());
        assert!(work(&vec![&b""[..]; 100_000], of_text).is_long(), "each of them costs something");
        let tiny = plain(1);
        assert!(!work(&[&tiny[..]; HEADS_MAX], of_picture).is_long());
        assert!(work(&[&tiny[..]; HEADS_MAX + 1], of_picture).is_long(), "the last may be of any size");
    }

    #[test]
    fn a_head_without_end_is_left() {
        let mut file = vec![0xff, 0xd8];
        (0..100_000).for_each(|_| file.extend([0xff, 0xe1, 0, 2]));
        file.extend([0xff, 0xc0, 0, 11, 8, 0xff, 0xff, 0xff, 0xff, 1]);
        assert_eq!(of_picture(&file), (Kind::Jpeg, LONG));
        // Decoders are less strict: a byte that does not belong there hides nothing from them.
        assert_eq!(of_picture(b"\xff\xd8\xff\xe1\0\x02\0\xff\xc0"), (Kind::Jpeg, LONG));
    }

    proptest! {
        #[test]
        fn no_head_is_too_hostile(
            before in prop::sample::select(vec![
                &b"\xff\xd8\xff"[..],
                b"\xff\xd8\xff\xc2",
                b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
                b"RIFF\0\0\0\0WEBPVP8 ",
                b"RIFF\0\0\0\0WEBPVP8X",
                b"RIFF\0\0\0\0WEBPVP8L",
            ]),
            after in prop::collection::vec(any::<u8>(), 0..64),
        ) {
            let file = [before, &after].concat();
            let work = work(&[&file[..]; 100], of_picture);
            prop_assert!(work.pixels >= 100 * file.len() as u64);
        }
    }
}
