//! What a tensor holds of a number. Decides how it is rounded: to the nearest, exactly as the standard library does it, which
//! is asked where the quick way leaves a doubt.

/// A number: `mantissa` divided by ten so many times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Decimal {
    /// Has no sign; this type, because it is the one that converts to a float in one instruction.
    pub(super) mantissa: i64,
    /// How many digits stand after the point.
    pub(super) places: u32,
    pub(super) is_negative: bool,
}

/// A type that tensors have, of `N` bytes.
pub(super) trait Element<const N: usize> {
    /// Whether it is FP32.
    const IS_SINGLE: bool = false;

    /// Its bytes. `None` if it does not hold the number, or that takes longer to find out.
    fn of(decimal: Decimal) -> Option<[u8; N]>;

    /// Its bytes, of a number that is written as JSON writes them. `None` if it does not hold it.
    fn parse(number: &str) -> Option<[u8; N]>;
}

/// More digits after the point are for the standard library.
const PLACES: usize = 32;

/// The nearest doubles to 10^-0 and what follows, and then to their negatives: dividing takes longer than all the rest.
const INVERSES: [f64; 2 * PLACES] = {
    let positive: [f64; PLACES] = [
        1e-0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9, 1e-10, 1e-11, 1e-12, 1e-13, 1e-14, 1e-15,
        1e-16, 1e-17, 1e-18, 1e-19, 1e-20, 1e-21, 1e-22, 1e-23, 1e-24, 1e-25, 1e-26, 1e-27, 1e-28, 1e-29,
        1e-30, 1e-31,
    ];
    let mut both = [0.0; 2 * PLACES];
    let mut at = 0;
    while at < PLACES {
        both[at] = positive[at];
        both[PLACES + at] = -positive[at];
        at += 1;
    }
    both
};

impl Element<4> for f32 {
    const IS_SINGLE: bool = true;

    /// In doubt where the error of the double might decide to which side it is rounded.
    #[inline(always)]
    fn of(Decimal { mantissa, places, is_negative }: Decimal) -> Option<[u8; 4]> {
        const DROPPED: u64 = (1 << 29) - 1; // of the 52 places of a double FP32 has 23
        const TIE: u64 = 1 << 28;
        const ERROR: u64 = 4; // of the last places of the double: it is rounded three times
        if places as usize >= PLACES {
            return None;
        }
        // Of so few places none is too small for FP32's usual form.
        let double = mantissa as f64 * INVERSES[places as usize + PLACES * usize::from(is_negative)];
        let is_clear = (double.to_bits() & DROPPED).wrapping_sub(TIE - ERROR) > 2 * ERROR;
        is_clear.then(|| (double as f32).to_le_bytes())
    }

    fn parse(number: &str) -> Option<[u8; 4]> {
        number.parse::<f32>().ok().filter(|float| float.is_finite()).map(f32::to_le_bytes)
    }
}

impl Element<8> for f64 {
    /// By whole numbers of 128 bits, as Lemire, "Number parsing at a gigabyte per second", section 5; with half of the table,
    /// so that two of the 64 bits are in doubt.
    #[inline(always)]
    fn of(Decimal { mantissa, places, is_negative }: Decimal) -> Option<[u8; 8]> {
        let sign = u64::from(is_negative) << 63;
        if mantissa == 0 {
            return Some(sign.to_le_bytes());
        }
        let (inverse, exponent) = WHOLE_INVERSES.get(places as usize)?;
        let zeros = mantissa.leading_zeros();
        let product = u128::from((mantissa << zeros) as u64) * u128::from(*inverse);
        // The true product lies less than 2 above these 64 bits.
        let upper = (product >> 64) as u64;
        let spare = upper.leading_zeros(); // 0 or 1
        let dropped = 11 - spare;
        let (kept, rest, half) = (upper >> dropped, upper & ((1 << dropped) - 1), 1 << (dropped - 1));
        if rest.abs_diff(half) <= 1 {
            return None;
        }
        let exponent = (1023 + 63 - i64::from(zeros) + i64::from(*exponent) + 1 - i64::from(spare)) as u64;
        // One that is rounded up to the next power of two carries into the exponent, as it should.
        let bits = (exponent << 52) + (kept & ((1 << 52) - 1)) + u64::from(rest > half);
        Some((bits | sign).to_le_bytes())
    }

    fn parse(number: &str) -> Option<[u8; 8]> {
        number.parse::<f64>().ok().filter(|float| float.is_finite()).map(f64::to_le_bytes)
    }
}

/// 10^-0 and what follows, as 64 bits, of which the first is 1 and what follows is cut off, and the power of two that the first stands
/// for.
const WHOLE_INVERSES: [(u64, i32); PLACES] = {
    let mut all = [(1 << 63, 0); PLACES];
    let mut power: u128 = 1;
    let mut places = 1;
    while places < PLACES {
        power *= 10;
        // 2^(63 + bits) / power, which has 64 bits since power has `bits` and is no power of two.
        let bits = 128 - power.leading_zeros();
        all[places] = (divided(63 + bits, power), -(bits as i32));
        places += 1;
    }
    all
};

/// 2^`exponent` / `divisor`, without what is behind the point. It must fit.
const fn divided(exponent: u32, divisor: u128) -> u64 {
    let mut quotient: u64 = 0;
    let mut rest: u128 = 1;
    let mut step = 0;
    while step < exponent {
        rest <<= 1;
        quotient <<= 1;
        if rest >= divisor {
            rest -= divisor;
            quotient |= 1;
        }
        step += 1;
    }
    quotient
}

macro_rules! whole {
    ($($type:ty),*) => {$(
        impl Element<{ size_of::<$type>() }> for $type {
            #[inline(always)]
            fn of(Decimal { mantissa, places, is_negative }: Decimal) -> Option<[u8; size_of::<$type>()]> {
                let whole = mantissa * (1 - 2 * i64::from(is_negative));
                // -0 is not among the whole numbers for serde_json, who reads what is not read here.
                let is_whole = places == 0 && !(is_negative && mantissa == 0);
                <$type>::try_from(whole).ok().filter(|_| is_whole).map(<$type>::to_le_bytes)
            }

            fn parse(number: &str) -> Option<[u8; size_of::<$type>()]> {
                number.parse::<$type>().ok().filter(|_| number != "-0").map(<$type>::to_le_bytes)
            }
        }
    )*};
}

whole!(u8, u16, u32, u64, i8, i16, i32, i64);
