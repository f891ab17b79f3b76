//! Arrays of numbers in a JSON body, which are most of such a body where there are any: read several times as fast as by a
//! parser of everything, into the very bytes of a tensor, and rounded exactly.
//!
//! Never decides what is an error. Whatever is unusual is left alone, and who asks reads the whole body as any other.

#[cfg(target_arch = "x86_64")]
mod blocks;
mod brackets;
mod decimal;
mod portable;
#[cfg(target_arch = "x86_64")]
mod singles;
#[cfg(target_arch = "x86_64")]
mod wide;

use brackets::{Brackets, Last};
use decimal::Element;
use std::mem::{self, MaybeUninit};
use wire::Datatype;

/// Reads the numbers of an array, which may be nested, as so many elements of this datatype, and appends them to `bytes`; the
/// size of the arrays at each depth. `None` if there are more or fewer, or anything else stands there, or a number that the
/// datatype does not hold: then nothing is appended.
pub(crate) fn read(
    text: &[u8],
    datatype: Datatype,
    elements: usize,
    bytes: &mut Vec<u8>,
) -> Option<Vec<u64>> {
    let size = elements * datatype.size()?;
    bytes.reserve_exact(size);
    let sizes = into(text, datatype, &mut bytes.spare_capacity_mut()[..size])?;
    // SAFETY: so many bytes more have been written there, else there would be no sizes.
    unsafe { bytes.set_len(bytes.len() + size) };
    Some(sizes)
}

/// The same, into `room` for exactly so many, which is full if there are sizes.
fn into(text: &[u8], datatype: Datatype, room: &mut [MaybeUninit<u8>]) -> Option<Vec<u64>> {
    match datatype {
        Datatype::Uint8 => all::<u8, 1>(text, room),
        Datatype::Uint16 => all::<u16, 2>(text, room),
        Datatype::Uint32 => all::<u32, 4>(text, room),
        Datatype::Uint64 => all::<u64, 8>(text, room),
        Datatype::Int8 => all::<i8, 1>(text, room),
        Datatype::Int16 => all::<i16, 2>(text, room),
        Datatype::Int32 => all::<i32, 4>(text, room),
        Datatype::Int64 => all::<i64, 8>(text, room),
        Datatype::Fp32 => all::<f32, 4>(text, room),
        Datatype::Fp64 => all::<f64, 8>(text, room),
        Datatype::Bool | Datatype::Fp16 | Datatype::Bf16 | Datatype::Bytes => None,
    }
}

fn all<T: Element<N>, const N: usize>(text: &[u8], room: &mut [MaybeUninit<u8>]) -> Option<Vec<u64>> {
    let mut reader = Reader::new(text, room);
    #[cfg(target_arch = "x86_64")]
    if let Some(instructions) = wide::instructions().last()
        && text.len() <= wide::TEXT_MAX
    {
        // SAFETY: the processor has them.
        unsafe { wide::read::<T, N>(&mut reader, *instructions) }?;
    }
    reader.rest::<T>()
}

/// How far an array has been read.
struct Reader<'a, 'b, const N: usize> {
    text: &'a [u8],
    brackets: Brackets,
    /// Where the last number has ended.
    at: usize,
    /// For the numbers that are to come.
    room: &'b mut [[MaybeUninit<u8>; N]],
    /// How many there are in all.
    elements: usize,
}

impl<'a, 'b, const N: usize> Reader<'a, 'b, N> {
    fn new(text: &'a [u8], room: &'b mut [MaybeUninit<u8>]) -> Self {
        let room = room.as_chunks_mut().0;
        let elements = room.len();
        Self { text, brackets: Brackets::default(), at: 0, room, elements }
    }

    /// Reads the numbers that are left, to the end of the array.
    fn rest<T: Element<N>>(mut self) -> Option<Vec<u64>> {
        loop {
            let start = self.skip()?;
            if start == self.text.len() {
                return self.room.is_empty().then(|| self.brackets.into_sizes());
            }
            self.number::<T>(start)?;
        }
    }

    /// Reads one number, whatever stands before it.
    fn next<T: Element<N>>(&mut self) -> Option<()> {
        let start = self.skip()?;
        self.number::<T>(start)
    }

    /// Where the next number begins, or the end.
    fn skip(&mut self) -> Option<usize> {
        let count = self.elements - self.room.len();
        let last = if count == 0 { Last::Nothing } else { Last::Value };
        self.brackets.skip(self.text, self.at, last, count as u64)
    }

    fn number<T: Element<N>>(&mut self, start: usize) -> Option<()> {
        let (number, length) = portable::number::<T, N>(&self.text[start..])?;
        self.put(number, start + length)
    }

    /// The next number, and where it ends.
    fn put(&mut self, number: [u8; N], end: usize) -> Option<()> {
        let (place, room) = mem::take(&mut self.room).split_first_mut()?;
        (*place, self.room, self.at) = (number.map(MaybeUninit::new), room, end);
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    /// Whatever the processor has, all ways of reading must agree.
    fn read<T: Element<N>, const N: usize>(text: &str) -> Option<(Vec<u64>, Vec<u8>)> {
        let numbers =
            text.split(',').filter(|part| part.contains(|each: char| each.is_ascii_digit())).count();
        let mut bytes = room(N * numbers);
        let sizes = Reader::new(text.as_bytes(), &mut bytes).rest::<T>();
        #[cfg(target_arch = "x86_64")]
        for instructions in wide::instructions() {
            let mut quick = room(N * numbers);
            let mut reader = Reader::new(text.as_bytes(), &mut quick);
            // SAFETY: the processor has them.
            let rest = unsafe { wide::read::<T, N>(&mut reader, *instructions) };
            assert_eq!(sizes, rest.and_then(|()| reader.rest::<T>()), "{text} with {instructions:?}");
            assert!(sizes.is_none() || filled(&quick) == filled(&bytes), "{text} with {instructions:?}");
        }
        let sizes = sizes?;
        if text.len() < 1000 {
            for other in [numbers + 1, numbers.saturating_sub(1)] {
                let sizes = all::<T, N>(text.as_bytes(), &mut room(N * other));
                assert!(sizes.is_none() || other == numbers, "room for {other}: {text}");
            }
        }
        Some((sizes, filled(&bytes)))
    }

    fn room(bytes: usize) -> Vec<MaybeUninit<u8>> {
        vec![MaybeUninit::new(0); bytes]
    }

    fn filled(room: &[MaybeUninit<u8>]) -> Vec<u8> {
        // SAFETY: it was before it was written.
        room.iter().map(|byte| unsafe { byte.assume_init() }).collect()
    }

    fn floats(text: &str) -> Option<Vec<f32>> {
        let (_, bytes) = read::<f32, 4>(text)?;
        Some(bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
    }

    /// Enough before and after that no number is near an end.
    fn between(text: &str) -> String {
        let others = ["0.5"; 30].join(", ");
        format!("[{others}, {text},{others}]")
    }

    #[test]
    fn numbers_are_those_of_json_and_nothing_else() {
        assert_eq!(
            floats("[ 1 ,-2.5,\n3e2 , 0,-0.0,1E+2,25e-1\t]"),
            Some(vec![1.0, -2.5, 300.0, 0.0, -0.0, 100.0, 2.5])
        );
        for number in ["1", "-2.5", "3e2", " 7", "-0.0", "1E+2", "25e-1 ", "0.10", "100.25", "\n1", " \t-1\r"]
        {
            let got = floats(&between(number)).unwrap();
            assert_eq!((got.len(), got[30]), (61, number.trim().parse().unwrap()), "{number}");
        }
        for text in [
            "",
            " ",
            "1,",
            ",1",
            "1 2",
            "1  2",
            "01",
            "-01",
            "01.5",
            "-00.5",
            "1.",
            "-1.",
            ".5",
            "-.5",
            "+1",
            "-",
            "--1",
            "1-",
            "1-1",
            "1e",
            "1e+",
            "e1",
            "1.5.5",
            "1..5",
            "NaN",
            "Infinity",
            "0x1",
            "1]",
            "[1",
            "1_0",
            "Y",
            "\u{661}",
            "null",
            "true",
            "1e39",
            "1e99999999999999999999",
            "12345678a",
            "1:2345678",
            "123456789/12345678",
            "1;2",
            "1\u{0}2",
            "\u{1}1",
            "1\u{b}",
        ] {
            assert_eq!(floats(&between(text)), None, "{text}");
            if !text.trim().is_empty() {
                assert_eq!(floats(&format!("[{text}]")), None, "{text}");
            }
        }
        assert_eq!(floats("[1e-99999,0e99999]"), Some(vec![0.0, 0.0]), "too small for any place");
    }

    #[test]
    fn it_does_not_matter_where_a_number_stands() {
        let after = |spaces: usize, text: &str| {
            let others = ["0.5"; 30].join(", ");
            format!("[{others}, {}{text},{others}]", " ".repeat(spaces))
        };
        for spaces in 0..70 {
            for number in [
                "0",
                "-7",
                "0.125",
                "-12.75",
                "1e2",
                "-1.5e-1",
                "4194304.5",
                "0.1000000000000000055511151231257827",
            ] {
                let got = floats(&after(spaces, number)).unwrap();
                assert_eq!((got.len(), got[30]), (61, number.parse().unwrap()), "{number} after {spaces}");
            }
            for text in [
                "1.", "-", "-.5", ".5", "01", "-01", "1.2.3", "1..2", "1-2", "1 2", "", "1 ,", "1[", "]1",
                "1e", "\u{1}1",
            ] {
                assert_eq!(floats(&after(spaces, text)), None, "{text} after {spaces}");
            }
        }
    }

    #[test]
    fn the_sizes_are_what_the_nesting_says() {
        let sizes = |text: &str| read::<u8, 1>(text).map(|(sizes, _)| sizes);
        for (text, want) in [
            ("[]", &[0][..]),
            (" [ ] ", &[0]),
            ("[1,2,3]", &[3]),
            ("[[1,2],[3,4],[5,6]]", &[3, 2]),
            ("[ [1, 2 ] ,\n[3, 4]\t,[ 5,6 ] ]", &[3, 2]),
            ("[[[1]],[[2]]]", &[2, 1, 1]),
            ("[[],[]]", &[2, 0]),
        ] {
            assert_eq!(sizes(text).as_deref(), Some(want), "{text}");
        }
        for text in [
            "7",
            "[",
            "]",
            "[1",
            "1]",
            "[1]]",
            "[1][2]",
            "[1],",
            ",[1]",
            "[[1,2],[3]]",
            "[1,[2]]",
            "[[1],2]",
            "[[],1]",
            "[[[1]],[2]]",
            "[[],[[]],[1]]",
            "[[1],[]]",
            "[[1][2]]",
            "[[1],,[2]]",
            "[[1] 2]",
            "[1 [2]]",
            "[[1,],[2]]",
            "[,[1]]",
            "[[1],]",
        ] {
            assert_eq!(sizes(text), None, "{text}");
        }
        let deep = |depth| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert_eq!(sizes(&deep(16)).map(|sizes| sizes.len()), Some(16));
        assert_eq!(sizes(&deep(17)), None);
        assert_eq!(sizes(&deep(1_000_000)), None);
    }

    #[test]
    fn long_rows_are_counted_wherever_they_end() {
        for columns in 1..80 {
            let row = vec!["0.125"; columns].join(",");
            let text = format!("[[{row}],[{row}], [{row}]]");
            let (sizes, bytes) = read::<f32, 4>(&text).unwrap();
            assert_eq!((sizes, bytes.len()), (vec![3, columns as u64], 12 * columns));
            assert_eq!(read::<f32, 4>(&format!("[[{row}],[{row},1]]")), None);
        }
    }

    #[test]
    fn whole_numbers_are_in_range_or_nothing() {
        assert_eq!(read::<u8, 1>(&between("7")), None, "0.5 is none of them");
        let whole = |text: &str| format!("[{0}{text},{0}7]", "0, 1,".repeat(20));
        let last = |bytes: Vec<u8>, size: usize| bytes[bytes.len() - 2 * size..bytes.len() - size].to_vec();
        for number in [
            i64::MIN,
            i64::MIN + 1,
            -1_000_000_000_000_000_000,
            -1,
            0,
            9,
            10,
            999_999_999_999_999_999,
            i64::MAX,
        ] {
            let (_, bytes) = read::<i64, 8>(&whole(&number.to_string())).unwrap();
            assert_eq!(bytes[40 * 8..41 * 8], number.to_le_bytes(), "{number}");
        }
        let (_, bytes) = read::<i16, 2>(&format!("[{}-32768]", "1,".repeat(40))).unwrap();
        assert_eq!(last([&bytes[..], &[0, 0]].concat(), 2), (-32768_i16).to_le_bytes());
        for (text, fits) in
            [("255", true), ("256", false), ("-1", false), ("-0", false), ("1.0", false), ("1e1", false)]
        {
            assert_eq!(read::<u8, 1>(&whole(text)).is_some(), fits, "{text}");
        }
        assert_eq!(read::<i64, 8>(&whole("9223372036854775808")), None);
        assert_eq!(read::<i8, 1>(&whole("-129")), None);
        assert_eq!(read::<i32, 4>(&whole("2147483648")), None);
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
            "9007199254740993", // the same for doubles
            "9007199254740993.0000000001",
            "9007199254740992.9999999999",
            "18446744073709551615",
            "184467440737095516150000000000000000000",
            "0.00000000000000000000000000000000000000000000012345678901234567890",
            "123456789012345678901234567890.12345678901234567890",
            "8589973000.5",
            "8.5899735e9",
            "0.0000000000000000000000000000001",
            "0.00000000000000000000000000000000001",
        ] {
            compare(&[text.to_owned()]);
            compare(&vec![text.to_owned(); 9]);
        }
    }

    /// All numbers as both kinds of floats, with what the standard library reads.
    fn compare(numbers: &[String]) {
        let singles: Vec<f32> = numbers.iter().map(|number| number.parse().unwrap()).collect();
        let doubles: Vec<f64> = numbers.iter().map(|number| number.parse().unwrap()).collect();
        let text = format!("[{}]", numbers.join(", "));
        if singles.iter().all(|single| single.is_finite()) {
            let (_, bytes) = read::<f32, 4>(&text).unwrap();
            for ((got, want), number) in bytes.as_chunks().0.iter().zip(singles).zip(numbers) {
                assert_eq!(f32::from_le_bytes(*got).to_bits(), want.to_bits(), "{number} as FP32");
            }
        }
        let (_, bytes) = read::<f64, 8>(&text).unwrap();
        for ((got, want), number) in bytes.as_chunks().0.iter().zip(doubles).zip(numbers) {
            assert_eq!(f64::from_le_bytes(*got).to_bits(), want.to_bits(), "{number} as FP64");
        }
    }

    /// What one is tried on: random values as they are usually written, digits of all lengths, and texts that lie at, just
    /// below or just above the middle between two floats, where rounding is hardest.
    fn number(random: &mut StdRng) -> String {
        let single = loop {
            let single = f32::from_bits(random.random());
            if single.is_finite() && (single == 0.0 || (1e-12..1e12).contains(&single.abs())) {
                break single;
            }
        };
        match random.random_range(0..8) {
            0 => f64::from(single).to_string(),
            1 => single.to_string(),
            2 => random.random::<f64>().to_string(),
            3 => format!("{:e}", f64::from_bits(random.random::<u64>() & !(3 << 61))),
            4 => format!("{:.*}", random.random_range(0..20), random.random_range(-1000.0..1000.0)),
            5 => {
                let digits = random.random_range(1..26);
                let mut text: String =
                    (0..digits).map(|_| char::from(random.random_range(b'0'..=b'9'))).collect();
                text.insert(random.random_range(0..digits), '.');
                let text = text.trim_start_matches('0');
                let sign = if random.random() { "-" } else { "" };
                let zero = if text.starts_with('.') { "0" } else { "" };
                format!("{sign}{zero}{text}0")
            }
            6 => {
                let next = f32::from_bits(single.to_bits() + 1);
                close_to(f64::from(single).midpoint(f64::from(next)), random)
            }
            _ => {
                // A whole number of 54 bits, of which the last one is set, lies between two doubles.
                let middle = random.random_range(1_u64 << 53..1 << 54) | 1;
                let place = random.random_range(0..40);
                close_to_text(&exactly(middle, place), random)
            }
        }
    }

    fn close_to(value: f64, random: &mut StdRng) -> String {
        close_to_text(&format!("{value:.*}", random.random_range(1..25)), random)
    }

    /// The text, or one of its neighbours in the last digit.
    fn close_to_text(text: &str, random: &mut StdRng) -> String {
        let (rest, last) = text.split_at(text.len() - 1);
        let digit = last.parse::<u8>().unwrap() as i8 + random.random_range(-1..=1);
        if (0..10).contains(&digit) { format!("{rest}{digit}") } else { text.to_owned() }
    }

    /// `whole` divided by two so many times, as the first 18 digits or a few less.
    fn exactly(whole: u64, place: u32) -> String {
        let scaled = (u128::from(whole) * 10_u128.pow(18)) >> place;
        let text = format!("{scaled:019}");
        let (front, back) = text.split_at(text.len() - 18);
        let keep = 19_usize.saturating_sub(front.len()).clamp(1, 18);
        format!("{front}.{}", &back[..keep])
    }

    #[test]
    fn a_million_numbers_are_read_as_the_standard_library_reads_them() {
        let mut random = StdRng::seed_from_u64(20_261_126);
        for _ in 0..1000 {
            let numbers: Vec<_> = (0..1000).map(|_| number(&mut random)).collect();
            compare(&numbers);
        }
    }

    proptest! {
        #[test]
        fn nothing_panics_and_all_ways_agree(text in prop::collection::vec(prop::sample::select(b"0123456789.-+eE, [\n]".to_vec()), 0..200)) {
            let text = String::from_utf8(text).unwrap();
            let _ = read::<f32, 4>(&text);
            let _ = read::<f64, 8>(&between(&text));
            let _ = read::<i32, 4>(&format!("[{}{text}]", "1,".repeat(40)));
        }
    }
}
