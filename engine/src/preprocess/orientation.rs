//! How a camera was held, as EXIF says it. Whatever cannot be understood means upright, as everywhere.

use super::resample::{CHANNELS, Pixels};

/// How the stored picture lies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Orientation {
    #[default]
    Upright,
    Mirrored,
    UpsideDown,
    UpsideDownMirrored,
    /// Its rows are the columns of what was seen, from left to right.
    Transposed,
    /// Lies on its left side: is turned to the right.
    TurnRight,
    /// Its rows are the columns of what was seen, from right to left, and upside down.
    Transversed,
    /// Lies on its right side: is turned to the left.
    TurnLeft,
}

/// Of a tag, its type, how many values it has, and the values or where they stand.
const ENTRY_BYTES: usize = 12;

const ORIENTATION: u16 = 0x0112;

const SHORT: u16 = 3;

impl Orientation {
    /// From an EXIF block, with or without the word that some formats put in front of it.
    pub(crate) fn of_exif(exif: &[u8]) -> Self {
        let tiff = exif.strip_prefix(b"Exif\0\0").unwrap_or(exif);
        let number = match tiff.first_chunk() {
            Some(b"II*\0") => of_tiff(tiff, u16::from_le_bytes, u32::from_le_bytes),
            Some(b"MM\0*") => of_tiff(tiff, u16::from_be_bytes, u32::from_be_bytes),
            _ => None,
        };
        match number {
            Some(2) => Self::Mirrored,
            Some(3) => Self::UpsideDown,
            Some(4) => Self::UpsideDownMirrored,
            Some(5) => Self::Transposed,
            Some(6) => Self::TurnRight,
            Some(7) => Self::Transversed,
            Some(8) => Self::TurnLeft,
            _ => Self::Upright,
        }
    }

    /// What was seen.
    pub(crate) fn turn(self, stored: Pixels) -> Pixels {
        let (right, bottom) = (stored.width - 1, stored.height - 1);
        // Where the pixel that belongs to (x, y) is stored.
        let from: &dyn Fn(usize, usize) -> (usize, usize) = match self {
            Self::Upright => return stored,
            Self::Mirrored => &|x, y| (right - x, y),
            Self::UpsideDown => &|x, y| (right - x, bottom - y),
            Self::UpsideDownMirrored => &|x, y| (x, bottom - y),
            Self::Transposed => &|x, y| (y, x),
            Self::TurnRight => &|x, y| (y, bottom - x),
            Self::Transversed => &|x, y| (right - y, bottom - x),
            Self::TurnLeft => &|x, y| (right - y, x),
        };
        let (width, height) = match self {
            Self::Upright | Self::Mirrored | Self::UpsideDown | Self::UpsideDownMirrored => {
                (stored.width, stored.height)
            }
            Self::Transposed | Self::TurnRight | Self::Transversed | Self::TurnLeft => {
                (stored.height, stored.width)
            }
        };
        let mut bytes = Vec::with_capacity(stored.bytes.len());
        for y in 0..height {
            for x in 0..width {
                let (x, y) = from(x, y);
                bytes.extend_from_slice(&stored.bytes[(y * stored.width + x) * CHANNELS..][..CHANNELS]);
            }
        }
        Pixels { width, height, bytes }
    }
}

/// The number in the first directory of a TIFF head.
fn of_tiff(tiff: &[u8], short: fn([u8; 2]) -> u16, long: fn([u8; 4]) -> u32) -> Option<u16> {
    let short_at = |at: usize| tiff.get(at..)?.first_chunk().map(|bytes| short(*bytes));
    let directory = long(*tiff.get(4..)?.first_chunk()?) as usize;
    let entries = usize::from(short_at(directory)?);
    let entry = (0..entries)
        .map(|number| directory + 2 + number * ENTRY_BYTES)
        .take_while(|entry| *entry < tiff.len())
        .find(|entry| short_at(*entry) == Some(ORIENTATION))?;
    if short_at(entry + 2)? == SHORT { short_at(entry + 8) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Three pixels in two rows: `0 1 2` above `3 4 5`.
    fn turned(number: u8) -> (usize, Vec<u8>) {
        let bytes = (0..6).flat_map(|pixel| [pixel; CHANNELS]).collect();
        let exif = [b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0", &[number, 0, 0][..]].concat();
        let turned = Orientation::of_exif(&exif).turn(Pixels { width: 3, height: 2, bytes });
        (turned.width, turned.bytes.chunks(CHANNELS).map(|pixel| pixel[0]).collect())
    }

    #[test]
    fn each_number_is_what_the_standard_says() {
        assert_eq!(turned(1), (3, vec![0, 1, 2, 3, 4, 5]));
        assert_eq!(turned(2), (3, vec![2, 1, 0, 5, 4, 3]));
        assert_eq!(turned(3), (3, vec![5, 4, 3, 2, 1, 0]));
        assert_eq!(turned(4), (3, vec![3, 4, 5, 0, 1, 2]));
        assert_eq!(turned(5), (2, vec![0, 3, 1, 4, 2, 5]));
        assert_eq!(turned(6), (2, vec![3, 0, 4, 1, 5, 2]));
        assert_eq!(turned(7), (2, vec![5, 2, 4, 1, 3, 0]));
        assert_eq!(turned(8), (2, vec![2, 5, 1, 4, 0, 3]));
        assert_eq!(turned(9).1, [0, 1, 2, 3, 4, 5]);
    }

    proptest! {
        #[test]
        fn no_block_panics(tail in prop::collection::vec(any::<u8>(), 0..60), big in any::<bool>()) {
            let head = if big { b"MM\0*" } else { b"II*\0" };
            Orientation::of_exif(&[&head[..], &tail].concat());
            Orientation::of_exif(&tail);
        }
    }
}
