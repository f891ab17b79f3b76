//! Long arrays of floats in a JSON body, read about twice as fast as a parser of everything can: they are most of such a
//! body. [`Skeleton`] finds where they stand and leaves the rest, which is short, to the parser; [`read_floats`] reads one.
//!
//! Never decides what is an error. Whatever is unusual is left alone, and who asks reads the whole body as any other.

use memchr::{memchr2, memmem};

/// Shorter arrays are not worth the search.
const WORTH_CUTTING: usize = 32;

/// A JSON text without the contents of its long arrays of numbers.
pub(crate) struct Skeleton<'a> {
    /// Has `[]` in place of each.
    pub(crate) json: Vec<u8>,
    /// Where that stands, and what stood there.
    cuts: Vec<(usize, &'a [u8])>,
}

impl<'a> Skeleton<'a> {
    /// `None` if there is nothing to leave out. What is taken for an array of numbers may be anything else without a quote.
    pub(crate) fn of(json: &'a [u8]) -> Option<Self> {
        let mut skeleton = Self { json: Vec::new(), cuts: Vec::new() };
        let mut copied = 0;
        for key in memmem::find_iter(json, b"\"data\"") {
            // An escaped quote: this is the inside of a string.
            if key < copied || key > 0 && json[key - 1] == b'\\' {
                continue;
            }
            let Some(start) = after(json, key + b"\"data\"".len(), b':').and_then(|at| after(json, at, b'['))
            else {
                continue;
            };
            let Some(length) = memchr2(b']', b'"', &json[start..]) else { break };
            if length < WORTH_CUTTING || json[start + length] == b'"' {
                continue;
            }
            skeleton.json.extend_from_slice(&json[copied..start]);
            skeleton.cuts.push((skeleton.json.len() - 1, &json[start - 1..=start + length]));
            copied = start + length;
        }
        if skeleton.cuts.is_empty() {
            return None;
        }
        skeleton.json.extend_from_slice(&json[copied..]);
        Some(skeleton)
    }

    /// What was left out of `text`, which is a part of the skeleton that the parser has found to be an array.
    pub(crate) fn cut(&self, text: &str) -> Option<&'a [u8]> {
        let at = (text.as_ptr() as usize).checked_sub(self.json.as_ptr() as usize)?;
        self.cuts.iter().find(|(place, _)| *place == at).map(|(_, numbers)| *numbers)
    }

    /// How many there are.
    pub(crate) fn cuts(&self) -> usize {
        self.cuts.len()
    }
}

/// The place after `byte`, if that is what comes next.
fn after(json: &[u8], at: usize, byte: u8) -> Option<usize> {
    let at = at + json[at..].iter().position(|byte| !is_space(*byte))?;
    (json[at] == byte).then_some(at + 1)
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\n' | b'\t' | b'\r')
}

/// Appends the numbers of an array as FP32, each rounded to the nearest; how many there are. `None` if anything else stands
/// there, or a number that FP32 does not hold: then what was appended is of no use.
pub(crate) fn read_floats(array: &[u8], bytes: &mut Vec<u8>) -> Option<usize> {
    let mut numbers = Numbers { rest: array.strip_prefix(b"[")?.strip_suffix(b"]")? };
    let mut count = 0;
    loop {
        numbers.skip_spaces();
        bytes.extend_from_slice(&numbers.float()?.to_le_bytes());
        count += 1;
        numbers.skip_spaces();
        match numbers.rest.split_first() {
            None => return Some(count),
            Some((b',', rest)) => numbers.rest = rest,
            Some(_) => return None,
        }
    }
}

struct Numbers<'a> {
    rest: &'a [u8],
}

/// 10^0 to 10^22, which are doubles without an error.
const POWERS: [f64; 23] = [
    1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18,
    1e19, 1e20, 1e21, 1e22,
];

/// The nearest doubles to their inverses: dividing takes longer than all the rest.
const INVERSES: [f64; 23] = [
    1e-0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9, 1e-10, 1e-11, 1e-12, 1e-13, 1e-14, 1e-15,
    1e-16, 1e-17, 1e-18, 1e-19, 1e-20, 1e-21, 1e-22,
];

const WHOLE_POWERS: [u64; 9] = [1, 10, 100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000];

/// More do not fit into 64 bits.
const DIGITS_MAX: usize = 19;

impl<'a> Numbers<'a> {
    fn skip_spaces(&mut self) {
        while let [byte, rest @ ..] = self.rest
            && is_space(*byte)
        {
            self.rest = rest;
        }
    }

    /// The next number, as JSON writes them.
    fn float(&mut self) -> Option<f32> {
        let token = self.rest;
        let is_negative = self.take(b'-');
        let mut mantissa = 0;
        let whole = match self.rest {
            // Most are so small.
            [digit @ b'0'..=b'9', b'.', ..] => {
                (mantissa, self.rest) = (u64::from(digit - b'0'), &self.rest[1..]);
                1
            }
            _ => self.digits(&mut mantissa),
        };
        if whole == 0 || whole > 1 && token[usize::from(is_negative)] == b'0' {
            return None;
        }
        let mut fraction = 0;
        if self.take(b'.') {
            fraction = self.digits(&mut mantissa);
            if fraction == 0 {
                return None;
            }
        }
        let exponent = if self.take(b'e') || self.take(b'E') { self.exponent()? } else { 0 };
        let token = &token[..token.len() - self.rest.len()];
        let float = if whole + fraction <= DIGITS_MAX {
            nearest(mantissa, exponent - fraction as i64)
                .map(|float| if is_negative { -float } else { float })
        } else {
            None
        };
        let float = float.or_else(|| std::str::from_utf8(token).ok()?.parse().ok())?;
        float.is_finite().then_some(float)
    }

    fn take(&mut self, byte: u8) -> bool {
        match self.rest {
            [first, rest @ ..] if *first == byte => {
                self.rest = rest;
                true
            }
            _ => false,
        }
    }

    /// Reads digits into `mantissa`, which overflows if there are too many; how many there were.
    fn digits(&mut self, mantissa: &mut u64) -> usize {
        let before = self.rest.len();
        while let Some(text) = self.rest.first_chunk() {
            let (value, digits) = digits_of_eight(*text);
            *mantissa = mantissa.wrapping_mul(WHOLE_POWERS[digits]).wrapping_add(value);
            self.rest = &self.rest[digits..];
            if digits < 8 {
                return before - self.rest.len();
            }
        }
        while let [digit @ b'0'..=b'9', rest @ ..] = self.rest {
            *mantissa = mantissa.wrapping_mul(10).wrapping_add(u64::from(digit - b'0'));
            self.rest = rest;
        }
        before - self.rest.len()
    }

    /// Of ten. Beyond what any number needs it is wrong, and `nearest` takes none of that.
    fn exponent(&mut self) -> Option<i64> {
        let is_negative = self.take(b'-');
        if !is_negative {
            self.take(b'+');
        }
        let mut exponent = 0;
        let digits = self.digits(&mut exponent);
        let exponent = if digits <= 4 { exponent as i64 } else { i64::from(u16::MAX) };
        (digits > 0).then_some(if is_negative { -exponent } else { exponent })
    }
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

/// `mantissa` times ten to the `exponent`, as FP32. It is computed as a double, which is off by less than four of its last
/// places; `None` where that might decide to which side it is rounded, or where the result has fewer places than usual.
fn nearest(mantissa: u64, exponent: i64) -> Option<f32> {
    const DROPPED: u64 = (1 << 29) - 1; // of the 52 places of a double FP32 has 23
    const TIE: u64 = 1 << 28;
    const ERROR: u64 = 4;
    if mantissa == 0 {
        return Some(0.0);
    }
    let powers = if exponent < 0 { &INVERSES } else { &POWERS };
    let power = powers.get(usize::try_from(exponent.unsigned_abs()).ok()?)?;
    let double = mantissa as f64 * power;
    let is_usual = double >= f64::from(f32::MIN_POSITIVE);
    let is_clear = (double.to_bits() & DROPPED).abs_diff(TIE) > ERROR;
    (is_usual && is_clear).then_some(double as f32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Option<Vec<f32>> {
        let mut bytes = Vec::new();
        let count = read_floats(format!("[{text}]").as_bytes(), &mut bytes)?;
        let floats: Vec<_> = bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        assert_eq!(floats.len(), count);
        Some(floats)
    }

    #[test]
    fn numbers_are_those_of_json_and_nothing_else() {
        assert_eq!(
            read(" 1 ,-2.5,\n3e2 , 0,-0.0,1E+2,25e-1\t"),
            Some(vec![1.0, -2.5, 300.0, 0.0, -0.0, 100.0, 2.5])
        );
        for text in [
            "",
            " ",
            "1,",
            ",1",
            "1 2",
            "01",
            "-01",
            "1.",
            ".5",
            "+1",
            "-",
            "1e",
            "1e+",
            "NaN",
            "Infinity",
            "0x1",
            "1,[2]",
            "1]",
            "1_0",
            "\u{661}",
            "null",
            "1e39",
            "1e99999999999999999999",
            "12345678a",
            "1:2345678",
        ] {
            assert_eq!(read(text), None, "{text}");
        }
        assert_eq!(read("1e-99999,0e99999"), Some(vec![0.0, 0.0]), "too small for any place");
    }

    #[test]
    fn every_number_is_rounded_to_the_nearest() {
        for text in [
            "16777217",           // between two floats: to the even one
            "16777217.000000001", // a little more than between
            "16777216.999999999",
            "0.1",
            "3.4028235e38",
            "1.17549435e-38",
            "1.1754942e-38",
            "1e-45",
            "7e-46",
            "9007199254740993",
            "18446744073709551615",
            "184467440737095516150000000000000000000",
            "0.00000000000000000000000000000000000000000000012345678901234567890",
            "123456789012345678901234567890.12345678901234567890",
            "8589973000.5",
            "8.5899735e9",
        ] {
            assert_eq!(read(text), Some(vec![text.parse().unwrap()]), "{text}");
        }
    }

    #[test]
    fn only_the_contents_of_long_arrays_are_left_out() {
        let numbers = (0..20).map(|number| number.to_string()).collect::<Vec<_>>().join(", ");
        let json = format!(
            r#"{{"id": "\"data\": [{numbers}]", "inputs": [{{"data": [1, 2]}}, {{"data" : [{numbers}]}}, {{"data": ["{numbers}"]}}]}}"#
        );
        let skeleton = Skeleton::of(json.as_bytes()).unwrap();
        let want = json.replacen(&format!("\"data\" : [{numbers}]"), "\"data\" : []", 1);
        assert_eq!(std::str::from_utf8(&skeleton.json), Ok(want.as_str()));
        let at = want.find(" : []").unwrap() + 3;
        let text = std::str::from_utf8(&skeleton.json[at..at + 2]).unwrap();
        assert_eq!(skeleton.cut(text), Some(format!("[{numbers}]").as_bytes()));
        assert_eq!(skeleton.cut("[]"), None, "not a part of it");
        assert!(Skeleton::of(br#"{"data": [1, 2]}"#).is_none());
        assert!(Skeleton::of(format!(r#"{{"data": [{numbers}"#).as_bytes()).is_none(), "it does not end");
    }

    proptest! {
        #[test]
        fn whatever_is_written_is_read_as_the_standard_library_reads_it(
            doubles in prop::collection::vec(any::<f64>(), 1..20), floats in prop::collection::vec(any::<f32>(), 1..20),
        ) {
            let texts: Vec<_> = doubles.iter().map(f64::to_string).chain(floats.iter().map(|float| f64::from(*float).to_string()))
                .chain(floats.iter().map(f32::to_string)).chain(doubles.iter().map(|double| format!("{double:e}")))
                .filter(|text| text.parse::<f32>().is_ok_and(f32::is_finite))
                .collect();
            let want: Vec<f32> = texts.iter().map(|text| text.parse().unwrap()).collect();
            if !want.is_empty() {
                let got = read(&texts.join(","));
                prop_assert_eq!(got, Some(want));
            }
        }

        #[test]
        fn nothing_panics(text in prop::collection::vec(prop::sample::select(b"0123456789.-+eE, [\"]data:".to_vec()), 0..80)) {
            let _ = read_floats(&text, &mut Vec::new());
            let _ = Skeleton::of(&text);
        }
    }
}
