//! Resizing as Pillow does it, to the bit: a separable filter that widens with the scale, in integers of 22 fractional
//! bits, rounded to bytes after the horizontal pass and again after the vertical one (`Resample.c`). Models are trained
//! behind it, and a filter that is nearly the same moves their answers.
//!
//! Only the part that is kept is computed, and the source is gone through once, row by row:
//!
//! ```text
//!   row of the source ─▶ its bytes in the columns kept ─▶ added, weighted, to each row kept that it reaches into
//! ```

use serde::Deserialize;
use std::ops::Range;

/// Of weights; what is left of 32 bits holds a byte, its sign and what filters overshoot.
const FRACTION_BITS: u32 = 22;

/// Bytes of a pixel.
pub(crate) const CHANNELS: usize = 3;

/// How pixels are weighted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Interpolation {
    /// A triangle.
    #[default]
    Bilinear,
    /// Keys' cubic with a = −0.5.
    Bicubic,
}

impl Interpolation {
    /// How far it reaches at full size, in pixels.
    fn support(self) -> f64 {
        match self {
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        const A: f64 = -0.5;
        let x = x.abs();
        match self {
            Self::Bilinear if x < 1.0 => 1.0 - x,
            Self::Bicubic if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
            Self::Bicubic if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
            Self::Bilinear | Self::Bicubic => 0.0,
        }
    }
}

/// An image of [`CHANNELS`] bytes a pixel, row by row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pixels {
    pub(crate) width: usize,
    pub(crate) height: usize,
    pub(crate) bytes: Vec<u8>,
}

/// What is kept of one side of the resized image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Side {
    /// Pixels of the whole side.
    pub(crate) whole: usize,
    /// Those that are kept.
    pub(crate) kept: Range<usize>,
}

/// The source pixels that one pixel is made of.
struct Window {
    first: usize,
    weights: Vec<i32>,
}

/// What is kept of `source` once it is as large as `width` and `height` say.
pub(crate) fn resize(source: &Pixels, width: &Side, height: &Side, interpolation: Interpolation) -> Pixels {
    let columns = windows(source.width, width, interpolation);
    let rows = windows(source.height, height, interpolation);
    let line = columns.len() * CHANNELS;
    let mut sums = vec![HALF; rows.len() * line];
    let mut across = vec![0; line];
    for (y, row) in source.bytes.chunks_exact(source.width * CHANNELS).enumerate() {
        let reached = |window: &Window| (window.first..window.first + window.weights.len()).contains(&y);
        // Windows rise, so those that reach this row stand together.
        let Some(begin) = rows.iter().position(reached) else { continue };
        resize_row(row, &columns, &mut across);
        for (window, sums) in rows[begin..].iter().zip(sums[begin * line..].chunks_exact_mut(line)) {
            if !reached(window) {
                break;
            }
            let weight = window.weights[y - window.first];
            sums.iter_mut().zip(&across).for_each(|(sum, byte)| *sum += weight * i32::from(*byte));
        }
    }
    Pixels { width: columns.len(), height: rows.len(), bytes: sums.into_iter().map(to_byte).collect() }
}

const HALF: i32 = 1 << (FRACTION_BITS - 1);

fn to_byte(sum: i32) -> u8 {
    (sum >> FRACTION_BITS).clamp(0, 255) as u8
}

fn resize_row(row: &[u8], columns: &[Window], into: &mut [u8]) {
    for (window, into) in columns.iter().zip(into.as_chunks_mut::<CHANNELS>().0) {
        let pixels = &row[window.first * CHANNELS..][..window.weights.len() * CHANNELS];
        let mut sums = [HALF; CHANNELS];
        for (pixel, weight) in pixels.as_chunks::<CHANNELS>().0.iter().zip(&window.weights) {
            for (sum, byte) in sums.iter_mut().zip(pixel) {
                *sum += weight * i32::from(*byte);
            }
        }
        *into = sums.map(to_byte);
    }
}

/// `precompute_coeffs` and `normalize_coeffs_8bpc`, of the pixels that are kept.
fn windows(source: usize, side: &Side, interpolation: Interpolation) -> Vec<Window> {
    let scale = source as f64 / side.whole as f64;
    let widened = scale.max(1.0);
    let support = interpolation.support() * widened;
    let window = |at: usize| {
        let center = (at as f64 + 0.5) * scale;
        let first = (center - support + 0.5).max(0.0) as usize;
        let end = ((center + support + 0.5) as usize).min(source);
        let weight = |x: usize| interpolation.weight((x as f64 - center + 0.5) * (1.0 / widened));
        let weights: Vec<f64> = (first..end).map(weight).collect();
        let sum: f64 = weights.iter().sum();
        let share = |weight: &f64| {
            let weight = if sum == 0.0 { *weight } else { weight / sum } * f64::from(1u32 << FRACTION_BITS);
            (if weight < 0.0 { weight - 0.5 } else { weight + 0.5 }) as i32
        };
        Window { first, weights: weights.iter().map(share).collect() }
    };
    side.kept.clone().map(window).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(size: usize) -> Side {
        Side { whole: size, kept: 0..size }
    }

    /// A picture in which no two pixels are alike.
    fn picture(width: usize, height: usize) -> Pixels {
        let bytes = (0..width * height * CHANNELS).map(|at| (at * at * 7 + at * 31) as u8).collect();
        Pixels { width, height, bytes }
    }

    #[test]
    fn the_same_size_is_the_same_picture() {
        let source = picture(7, 5);
        for interpolation in [Interpolation::Bilinear, Interpolation::Bicubic] {
            assert_eq!(resize(&source, &whole(7), &whole(5), interpolation), source);
        }
    }

    #[test]
    fn what_is_kept_is_a_part_of_the_whole() {
        let source = picture(31, 23);
        for (width, height) in [(12, 9), (50, 40), (12, 40)] {
            let all = resize(&source, &whole(width), &whole(height), Interpolation::Bicubic);
            let kept = |whole| Side { whole, kept: 3..8 };
            let part = resize(&source, &kept(width), &kept(height), Interpolation::Bicubic);
            let rows = all.bytes.chunks(width * CHANNELS).skip(3).take(5);
            let want: Vec<u8> = rows.flat_map(|row| &row[3 * CHANNELS..8 * CHANNELS]).copied().collect();
            assert_eq!((part.width, part.height, part.bytes), (5, 5, want));
        }
    }

    #[test]
    fn a_plain_picture_stays_plain() {
        let source = Pixels { width: 9, height: 4, bytes: vec![200; 9 * 4 * CHANNELS] };
        for size in [1, 2, 13] {
            let resized = resize(&source, &whole(size), &whole(size), Interpolation::Bicubic);
            assert!(resized.bytes.iter().all(|byte| *byte == 200), "{size}");
        }
    }
}
