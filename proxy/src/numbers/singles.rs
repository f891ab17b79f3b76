//! Numbers as FP32 by their first sixteen characters: those that follow decide nothing, but for one number in millions. Each is
//! known to lie between two doubles; where both are rounded to the same float, it is that, and else somebody else finds out.

use std::arch::x86_64::*;

/// Characters that are read.
pub(super) const WINDOW: usize = 16;

/// As 16 digits with a 0 behind them, in which no point stands any more.
const DIGITS: usize = WINDOW - 1;

/// The bits of a number of the usual form, whose sign has so many characters, and whose others are what `text` begins with. `None` if
/// it takes more to know them.
#[target_feature(enable = "avx2,bmi1,fma")]
#[inline]
pub(super) fn bits(text: &[u8; WINDOW], length: usize, sign: usize) -> Option<u32> {
    // SAFETY: these are as many bytes as are read, and they may stand anywhere.
    let text = unsafe { _mm_loadu_si128(text.as_ptr().cast()) };
    let points = _mm_movemask_epi8(_mm_cmpeq_epi8(text, _mm_set1_epi8(b'.' as i8))) as u32;
    let length = length.min(WINDOW + 1);
    // How many digits stand before it, or before the end.
    let point = (points | 1 << length).trailing_zeros() as usize;
    if point > DIGITS {
        return None;
    }
    let form = &FORMS[sign][length][point];
    let digits = _mm_sub_epi8(text, _mm_set1_epi8(b'0' as i8));
    // SAFETY: these are as many bytes as are read, and they may stand anywhere.
    let digits = _mm_shuffle_epi8(digits, unsafe { _mm_loadu_si128(form.order.as_ptr().cast()) });
    // Each step adds neighbours: ones to tens, then hundreds, then four and four.
    let pairs = _mm_maddubs_epi16(digits, _mm_set1_epi16(0x010a));
    let fours = _mm_madd_epi16(pairs, _mm_set1_epi32(0x0001_0064));
    let fours = _mm_packus_epi32(fours, fours);
    let eights = _mm_cvtepi32_pd(_mm_madd_epi16(fours, _mm_set1_epi32(0x0001_2710)));
    // SAFETY: likewise.
    let double = |pair: &[f64; 2]| unsafe { _mm_loadu_pd(pair.as_ptr()) };
    let (upper, lower) = (_mm_unpacklo_pd(eights, eights), _mm_unpackhi_pd(eights, eights));
    let between = _mm_fmadd_pd(lower, double(&form.lower), double(&form.rest));
    let between = _mm_fmadd_pd(upper, double(&form.upper), between);
    let singles = _mm_castps_si128(_mm_cvtpd_ps(between));
    let (least, most) = (_mm_cvtsi128_si32(singles), _mm_extract_epi32::<1>(singles));
    (least == most).then_some(least as u32)
}

/// What is known of a number by its form.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Form {
    /// Which character is which digit.
    order: [u8; WINDOW],
    /// What the upper and the lower eight digits count at least and at most,
    upper: [f64; 2],
    lower: [f64; 2],
    /// and what the characters count that are not read.
    rest: [f64; 2],
}

/// By sign, length, and digits before the point.
static FORMS: [[[Form; WINDOW]; WINDOW + 2]; 2] = {
    const NONE: Form = Form { order: [0; WINDOW], upper: [0.0; 2], lower: [0.0; 2], rest: [0.0; 2] };
    let mut forms = [[[NONE; WINDOW]; WINDOW + 2]; 2];
    let mut length = 0;
    while length < WINDOW + 2 {
        let mut point = 0;
        while point < WINDOW {
            forms[0][length][point] = form(length, point, 1.0);
            forms[1][length][point] = form(length, point, -1.0);
            point += 1;
        }
        length += 1;
    }
    forms
};

const fn form(length: usize, point: usize, sign: f64) -> Form {
    /// More than all roundings together, of the power, the product and the sum, each 2^-53 at most.
    const ERROR: f64 = 1.0 / (1_u64 << 50) as f64;
    const fn about(value: f64) -> [f64; 2] {
        [value * (1.0 - ERROR), value * (1.0 + ERROR)]
    }
    const NO_DIGIT: u8 = 0x80;
    let mut order = [NO_DIGIT; WINDOW];
    let mut digit = 0;
    while digit < DIGITS {
        let place = if digit < point { digit } else { digit + 1 };
        if place < length {
            order[digit] = place as u8;
        }
        digit += 1;
    }
    // Less than one more in the last digit.
    let most = if length > WINDOW { POWERS[point + 1] * (1.0 + ERROR) } else { 0.0 };
    Form {
        order,
        upper: about(sign * POWERS[point + 8]),
        lower: about(sign * POWERS[point]),
        rest: [sign * 0.0, sign * most],
    }
}

/// 10^-16 and what follows.
const POWERS: [f64; WINDOW + 9] = [
    1e-16, 1e-15, 1e-14, 1e-13, 1e-12, 1e-11, 1e-10, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1,
    1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8,
];
