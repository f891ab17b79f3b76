//! Numbers of the usual form, read 32 characters at a time with AVX2: a sign or none, digits with a point among them or none,
//! and between two of them a comma, or a comma and a space. The longest that Python and JavaScript write of a double fits.
//!
//! First it is found where numbers end, for 64 characters at once. Then each is read from its end, where its last digit
//! always has the same place, without a branch that depends on how long it is. Whatever is not so goes to who reads everything.

use super::Reader;
use super::decimal::{Decimal, Element};
use std::arch::x86_64::*;

/// Characters that are looked at together to find where numbers end.
const BLOCK: usize = 64;

/// Characters of which a number is read.
const WINDOW: usize = 32;

/// Whether [`read`] may be called.
pub(super) fn is_available() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("bmi1") && is_x86_feature_detected!("lzcnt")
}

/// Reads the numbers that `reader` has left, but perhaps the last one.
#[target_feature(enable = "avx2,bmi1,lzcnt")]
pub(super) fn read<T: Element<N>, const N: usize>(reader: &mut Reader<'_, '_, N>) -> Option<()> {
    let text = reader.text;
    let (blocks, rest) = text.as_chunks();
    let mut padded = [b' '; BLOCK];
    padded[..rest.len()].copy_from_slice(rest);
    let mut was_in_number = 0;
    for (at, block) in blocks.iter().chain([&padded]).enumerate() {
        let between = between_numbers(block);
        let mut ends = between & (!between << 1 | was_in_number);
        was_in_number = !between >> 63;
        while ends != 0 {
            let end = at * BLOCK + ends.trailing_zeros() as usize;
            ends &= ends - 1;
            match usual::<T, N>(text, reader.at, end) {
                Some(number) => {
                    *reader.room.next()? = number;
                    reader.at = end;
                }
                None => reader.next::<T>()?,
            }
        }
    }
    Some(())
}

/// Where white space, commas and brackets are, the first character lowest.
#[target_feature(enable = "avx2")]
#[inline]
fn between_numbers(block: &[u8; BLOCK]) -> u64 {
    let halves = block.as_chunks::<WINDOW>().0;
    let [low, high] = [&halves[0], &halves[1]].map(|half| {
        let text = load(half);
        let is = |byte: u8| _mm256_set1_epi8(byte as i8);
        let is_space = _mm256_cmpeq_epi8(_mm256_max_epu8(text, is(b' ')), is(b' '));
        let is_comma = _mm256_cmpeq_epi8(text, is(b','));
        // These two are alike but for two bits; some other characters that are no number are, too.
        let is_bracket = _mm256_cmpeq_epi8(_mm256_or_si256(text, is(b'[' ^ b']')), is(b'[' | b']'));
        u64::from(
            _mm256_movemask_epi8(_mm256_or_si256(_mm256_or_si256(is_space, is_comma), is_bracket)) as u32
        )
    });
    low | high << 32
}

/// The number that ends at `end`, if after the one that ends at `after` there is nothing else.
#[target_feature(enable = "avx2,bmi1,lzcnt")]
#[inline]
fn usual<T: Element<N>, const N: usize>(text: &[u8], after: usize, end: usize) -> Option<[u8; N]> {
    // One more, which moves up where a point is taken out.
    let window: &[u8; WINDOW + 1] = text.get(end.checked_sub(WINDOW + 1)?..end)?.try_into().ok()?;
    let distance = end - after;
    if !(2..=WINDOW).contains(&distance) || window[WINDOW + 1 - distance] != b',' {
        return None;
    }
    let length = distance - 1 - usize::from(window[WINDOW + 2 - distance] == b' ');
    let first = (WINDOW - length) % WINDOW;
    let is_negative = window[first + 1] == b'-';
    let leads_with_zero = || text[end - length + usize::from(is_negative)] == b'0';
    let (before, window) = (load(window.first_chunk()?), load(window.last_chunk()?));
    let is = |byte: u8| _mm256_set1_epi8(byte as i8);
    let digits_of = |text: __m256i| _mm256_add_epi8(text, is(0_u8.wrapping_sub(b'0')));

    let digits = digits_of(window);
    let is_digit = _mm256_cmpeq_epi8(_mm256_min_epu8(digits, is(9)), digits);
    let is_point = _mm256_movemask_epi8(_mm256_cmpeq_epi8(window, is(b'.'))) as u32;
    let others = !_mm256_movemask_epi8(is_digit) as u32 & u32::MAX << first;
    // But for a sign in front, all that is no digit is one point.
    let point = others ^ u32::from(is_negative) << first;
    let count = (length as u32).wrapping_sub(u32::from(is_negative) + u32::from(point != 0));
    let places = point.leading_zeros() % 32;
    let whole = count.wrapping_sub(places) as i32;
    let is_usual = point & !is_point == 0
        && point & point.wrapping_sub(1) == 0
        && point >> 31 == 0
        && (whole == 1 || whole > 1 && !leads_with_zero());
    if !is_usual {
        return None;
    }

    // What stands before the point moves to where that was, and anything before the number becomes zeros.
    let after_point = load(last(point.leading_zeros() as usize));
    let digits = _mm256_blendv_epi8(digits_of(before), digits, after_point);
    let digits = _mm256_and_si256(digits, load(last(count as usize)));
    // Each step adds neighbours: ones to tens, then hundreds, then four and four.
    let pairs = _mm256_maddubs_epi16(digits, _mm256_set1_epi16(0x010a));
    let fours = _mm256_madd_epi16(pairs, _mm256_set1_epi32(0x0001_0064));
    let fours = _mm256_packus_epi32(fours, fours);
    let eights = _mm256_madd_epi16(fours, _mm256_set1_epi32(0x0001_2710));
    if T::IS_SHORTER_THAN_A_DOUBLE {
        return T::of_double(together(eights), places, is_negative);
    }
    let upper = (_mm_cvtsi128_si64(_mm256_castsi256_si128(eights)) as u64).rotate_left(32);
    let lower = _mm256_extract_epi64::<2>(eights) as u64;
    // More than 18 digits.
    if upper > 99 {
        return None;
    }
    let mantissa = upper * 10_000_000_000_000_000 + (lower & 0xffff_ffff) * 100_000_000 + (lower >> 32);
    let mantissa = mantissa as i64;
    T::of(Decimal { mantissa, places, is_negative })
}

/// Four times eight digits as one double.
#[target_feature(enable = "avx2")]
#[inline]
fn together(eights: __m256i) -> f64 {
    let eights = _mm256_castsi256_si128(_mm256_permute4x64_epi64::<0b1000>(eights));
    let parts = _mm256_mul_pd(_mm256_cvtepi32_pd(eights), _mm256_setr_pd(1e24, 1e16, 1e8, 1.0));
    let halves = _mm_add_pd(_mm256_castpd256_pd128(parts), _mm256_extractf128_pd::<1>(parts));
    _mm_cvtsd_f64(_mm_add_sd(halves, _mm_unpackhi_pd(halves, halves)))
}

/// A mask of the last so many characters of a window, up to all.
#[inline]
fn last(count: usize) -> &'static [u8; WINDOW] {
    const MASKS: [u8; 3 * WINDOW] = {
        let mut masks = [0; 3 * WINDOW];
        let mut at = WINDOW;
        while at < 2 * WINDOW {
            masks[at] = 0xff;
            at += 1;
        }
        masks
    };
    debug_assert!(count <= WINDOW);
    MASKS[count % (2 * WINDOW)..].first_chunk().expect("there are as many more")
}

#[target_feature(enable = "avx2")]
#[inline]
fn load(bytes: &[u8; WINDOW]) -> __m256i {
    // SAFETY: these are as many bytes as are read, and they may stand anywhere.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}
