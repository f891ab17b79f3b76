//! Numbers of the usual form, read with AVX2, and found with AVX-512 where there is that. First it is found, for some blocks of
//! the text, where numbers begin and end, and which blocks have anything else than such numbers, commas and white space. Then each
//! number is read without a branch that depends on how long it is. Whatever is not so goes to who reads everything.

use super::Reader;
use super::blocks::{BLOCK, BLOCKS, Blocks, Instructions};
use super::decimal::{Decimal, Element};
use super::singles;
use std::arch::x86_64::*;
use std::mem::{self, MaybeUninit};

/// Characters of which a number is read that is not FP32. The longest that Python and JavaScript write of a double fits.
const WINDOW: usize = 32;

/// So far behind its begin may be looked at for a number.
const BEHIND: usize = singles::WINDOW + 1;

/// Places are noted in 32 bits.
pub(super) const TEXT_MAX: usize = u32::MAX as usize - 2 * BLOCK;

/// What [`read`] may be called with on this processor, the best one last.
pub(super) fn instructions() -> &'static [Instructions] {
    let has_avx2 = is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("bmi1")
        && is_x86_feature_detected!("bmi2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("lzcnt")
        && is_x86_feature_detected!("popcnt");
    let has_avx512 = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vbmi2");
    match (has_avx2, has_avx512) {
        (false, _) => &[],
        (true, false) => &[Instructions::Avx2],
        (true, true) => &[Instructions::Avx2, Instructions::Avx512],
    }
}

/// Reads the numbers that `reader` has left, but perhaps the last one.
#[target_feature(enable = "avx2,bmi1,bmi2,fma,lzcnt,popcnt")]
pub(super) fn read<T: Element<N>, const N: usize>(
    reader: &mut Reader<'_, '_, N>,
    instructions: Instructions,
) -> Option<()> {
    if u32::try_from(reader.text.len()).is_err() {
        return Some(());
    }
    let mut blocks = Blocks::new(instructions);
    let (whole, rest) = reader.text.as_chunks();
    let mut last = [b' '; BLOCK];
    last[..rest.len()].copy_from_slice(rest);
    for several in whole.chunks(BLOCKS).chain([&[last][..]]) {
        blocks.advance(several);
        numbers::<T, N>(reader, &blocks)?;
        blocks.forget();
    }
    Some(())
}

/// Where a number begins and ends.
type Edges = [u32; 2];

fn places(edges: &Edges) -> [usize; 2] {
    edges.map(|place| place as usize)
}

/// Reads the numbers that end in these blocks.
#[target_feature(enable = "avx2,bmi1,bmi2,fma,lzcnt,popcnt")]
fn numbers<T: Element<N>, const N: usize>(reader: &mut Reader<'_, '_, N>, blocks: &Blocks) -> Option<()> {
    let last = reader.text.len().saturating_sub(BEHIND);
    let mut left = blocks.numbers();
    while !left.is_empty() {
        let (begin, end) = blocks.unusual(reader.at);
        // The last ones have too little behind them.
        let (begin, end) = if begin < last { (begin, end) } else { (last, usize::MAX) };
        left = usual::<T, N>(reader, left, begin)?;
        while reader.at < end
            && let [number, rest @ ..] = left
        {
            any::<T, N>(reader, blocks, number)?;
            left = rest;
        }
    }
    Some(())
}

/// Reads a number and what stands before it, whatever that is.
#[target_feature(enable = "avx2,bmi1,bmi2,fma,lzcnt,popcnt")]
fn any<T: Element<N>, const N: usize>(
    reader: &mut Reader<'_, '_, N>,
    blocks: &Blocks,
    edges: &Edges,
) -> Option<()> {
    let [begin, end] = places(edges);
    let start = reader.skip()?;
    let is_usual = start == begin && blocks.is_well_formed([begin, end]);
    let from_begin = reader.text[begin..].first_chunk().filter(|_| is_usual);
    let single = from_begin.filter(|_| T::IS_SINGLE).and_then(|from_begin| single(from_begin, end - begin));
    match single {
        Some(number) => reader.put(number, end)?,
        None => reader.number::<T>(start)?,
    }
    // Else there is something behind it that is not looked at as such.
    (reader.at == end).then_some(())
}

/// Reads the numbers that end before `until`, up to which all is as usual, and which is not among the last `BEHIND` characters;
/// those that are left.
#[target_feature(enable = "avx2,bmi1,bmi2,fma,lzcnt,popcnt")]
fn usual<'e, T: Element<N>, const N: usize>(
    reader: &mut Reader<'_, '_, N>,
    mut left: &'e [Edges],
    until: usize,
) -> Option<&'e [Edges]> {
    debug_assert!(until <= reader.text.len().saturating_sub(BEHIND));
    let is_before = |edges: &Edges| places(edges)[1] < until;
    let all = left.last().is_none_or(is_before);
    let mut count = if all { left.len() } else { left.partition_point(is_before) };
    loop {
        let (numbers, behind) = left.split_at(count);
        let room = mem::take(&mut reader.room);
        let mut read = 0;
        for (edges, place) in numbers.iter().zip(&mut *room) {
            let edges = places(edges);
            // SAFETY: a number begins before it ends, and its end is before `until`, from which there are `BEHIND` characters left.
            let from_begin = unsafe { &*reader.text.as_ptr().add(edges[0]).cast() };
            let Some(number) = number::<T, N>(reader.text, from_begin, edges) else { break };
            *place = number.map(MaybeUninit::new);
            read += 1;
        }
        reader.room = &mut room[read..];
        if let Some(last) = read.checked_sub(1) {
            reader.at = places(&numbers[last])[1];
        }
        let Some(_in_doubt) = numbers.get(read) else { return Some(behind) };
        reader.next::<T>()?;
        left = &left[read + 1..];
        count -= read + 1;
    }
}

/// The bytes of a number of the usual form. `None` if it takes more to know them.
#[target_feature(enable = "avx2,bmi1,bmi2,fma,lzcnt,popcnt")]
#[inline]
fn number<T: Element<N>, const N: usize>(
    text: &[u8],
    from_begin: &[u8; BEHIND],
    [begin, end]: [usize; 2],
) -> Option<[u8; N]> {
    if T::IS_SINGLE {
        return single(from_begin, end - begin);
    }
    let sign = signs(from_begin);
    let (mantissa, places) = digits(text, end - begin - sign, end)?;
    T::of(Decimal { mantissa, places, is_negative: sign == 1 })
}

/// Characters of the sign of a number of the usual form. Where two bytes are compared, the compiler may take a register whose former
/// value has to be waited for.
#[inline(always)]
fn signs(from_begin: &[u8; BEHIND]) -> usize {
    // All digits have this bit, and a minus does not.
    usize::from(!from_begin[0] >> 4 & 1)
}

/// The same, of a number of so many characters as FP32.
#[target_feature(enable = "avx2,bmi1,bmi2,fma,lzcnt,popcnt")]
#[inline]
fn single<const N: usize>(from_begin: &[u8; BEHIND], length: usize) -> Option<[u8; N]> {
    let sign = signs(from_begin);
    let bits = singles::bits(from_begin[sign..].first_chunk()?, length - sign, sign)?;
    let bytes = bits.to_le_bytes();
    Some(std::array::from_fn(|place| bytes[place]))
}

/// The digits before `end`, of which so many characters are part, and how many stand behind the point. `None` if there are more than 18.
#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
#[inline]
fn digits(text: &[u8], length: usize, end: usize) -> Option<(i64, u32)> {
    // One more, which moves up where a point is taken out.
    let window: &[u8; WINDOW + 1] = text.get(end.checked_sub(WINDOW + 1)?..end)?.try_into().ok()?;
    if length > WINDOW {
        return None;
    }
    let (before, window) = (load(window.first_chunk()?), load(window.last_chunk()?));
    let is = |byte: u8| _mm256_set1_epi8(byte as i8);
    let digits_of = |text: __m256i| _mm256_sub_epi8(text, is(b'0'));
    let points = _mm256_movemask_epi8(_mm256_cmpeq_epi8(window, is(b'.'))) as u32;
    let point = points & u32::MAX << (WINDOW - length);
    let places = point.leading_zeros();
    let count = length - usize::from(point != 0);

    // What stands before the point moves to where that was, and anything before the number becomes zeros.
    let digits = _mm256_blendv_epi8(digits_of(before), digits_of(window), load(last(places as usize)));
    let digits = _mm256_and_si256(digits, load(last(count)));
    // Each step adds neighbours: ones to tens, then hundreds, then four and four.
    let pairs = _mm256_maddubs_epi16(digits, _mm256_set1_epi16(0x010a));
    let fours = _mm256_madd_epi16(pairs, _mm256_set1_epi32(0x0001_0064));
    let fours = _mm256_packus_epi32(fours, fours);
    let eights = _mm256_madd_epi16(fours, _mm256_set1_epi32(0x0001_2710));
    let upper = (_mm_cvtsi128_si64(_mm256_castsi256_si128(eights)) as u64).rotate_left(32);
    let lower = _mm256_extract_epi64::<2>(eights) as u64;
    if upper > 99 {
        return None;
    }
    let mantissa = upper * 10_000_000_000_000_000 + (lower & 0xffff_ffff) * 100_000_000 + (lower >> 32);
    Some((mantissa as i64, places % 32))
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
