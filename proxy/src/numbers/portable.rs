//! One number after another, eight digits at a time, on any processor. Reads every number of JSON; the quicker way, which
//! takes only the usual ones, is [`super::wide`].

use super::decimal::{Decimal, Element};

/// More may not fit into 64 bits.
const DIGITS_MAX: usize = 18;

const POWERS: [u64; 9] = [1, 10, 100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000];

/// Reads the number that `text` begins with; how long it is. `None` if none is there, or one that the type does not hold.
pub(super) fn number<T: Element<N>, const N: usize>(text: &[u8]) -> Option<([u8; N], usize)> {
    let mut rest = text;
    let is_negative = take(&mut rest, b"-");
    let mut mantissa = 0;
    let first = rest;
    let whole = digits(&mut rest, &mut mantissa);
    if whole == 0 || whole > 1 && first[0] == b'0' {
        return None;
    }
    let mut places = 0;
    if take(&mut rest, b".") {
        places = digits(&mut rest, &mut mantissa);
        if places == 0 {
            return None;
        }
    }
    let has_exponent = take(&mut rest, b"eE");
    if has_exponent {
        take(&mut rest, b"+-");
        if digits(&mut rest, &mut 0) == 0 {
            return None;
        }
    }
    let length = text.len() - rest.len();
    let quick = if has_exponent || whole + places > DIGITS_MAX {
        None
    } else {
        T::of(Decimal { mantissa: mantissa as i64, places: places as u32, is_negative })
    };
    let bytes = quick.or_else(|| T::parse(std::str::from_utf8(&text[..length]).ok()?))?;
    Some((bytes, length))
}

/// Whether one of `bytes` came next.
fn take(rest: &mut &[u8], bytes: &[u8]) -> bool {
    match rest.split_first() {
        Some((first, after)) if bytes.contains(first) => {
            *rest = after;
            true
        }
        Some(_) | None => false,
    }
}

/// Reads digits into `mantissa`, which overflows if there are too many; how many there were.
fn digits(rest: &mut &[u8], mantissa: &mut u64) -> usize {
    let before = rest.len();
    while let Some(text) = rest.first_chunk() {
        let (value, digits) = digits_of_eight(*text);
        *mantissa = mantissa.wrapping_mul(POWERS[digits]).wrapping_add(value);
        *rest = &rest[digits..];
        if digits < 8 {
            return before - rest.len();
        }
    }
    while let [digit @ b'0'..=b'9', after @ ..] = *rest {
        *mantissa = mantissa.wrapping_mul(10).wrapping_add(u64::from(digit - b'0'));
        *rest = after;
    }
    before - rest.len()
}

/// The number that eight characters begin with, and how many of them it has. Branches would be guessed wrong: numbers differ
/// in length.
fn digits_of_eight(text: [u8; 8]) -> (u64, usize) {
    // A digit is 0 to 9 now, and lacks the upper bit still when 0x76 is added. What that does to those after the first
    // other character does not matter.
    let digits = u64::from_le_bytes(text) ^ 0x3030_3030_3030_3030;
    let others = (digits.wrapping_add(0x7676_7676_7676_7676) | digits) & 0x8080_8080_8080_8080;
    let count = others.trailing_zeros() / 8;
    // Zeros in front; then each step adds neighbours: ones to tens, then hundreds, then four and four.
    let digits = digits.checked_shl(64 - 8 * count).unwrap_or(0);
    let pairs = (digits.wrapping_mul(10) + (digits >> 8)) & 0x00ff_00ff_00ff_00ff;
    let fours = (pairs.wrapping_mul(100) + (pairs >> 16)) & 0x0000_ffff_0000_ffff;
    ((fours.wrapping_mul(10_000) + (fours >> 32)) & 0xffff_ffff, count as usize)
}
