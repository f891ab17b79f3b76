//! Where the numbers of a text begin and end, found for 64 characters at once, and whether they are of the usual form: a sign
//! or none, digits of which the first is no needless zero, a point between two of them or none; and right behind each a comma.
//! Decides nothing about what else JSON allows (exponents, brackets, space before a comma): blocks that have such are named.

use std::mem::MaybeUninit;
use std::slice;

/// Characters that are looked at together.
pub(super) const BLOCK: usize = 64;

/// As many blocks are looked at before their numbers are read: enough that it is rarely guessed wrong where they end.
pub(super) const BLOCKS: usize = 16;

/// What the processor has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Instructions {
    /// With BMI, FMA and what else came with it.
    Avx2,
    /// Also its parts for bytes. Half as many instructions do.
    Avx512,
}

/// A stretch of the text, and what the one before it has left.
pub(super) struct Blocks {
    /// Where the last block before it begins.
    begin: usize,
    /// Where it ends.
    end: usize,
    /// Where numbers begin and where they end, in turn; so many have been found.
    edges: [MaybeUninit<u32>; BLOCKS * BLOCK + BLOCK],
    count: usize,
    /// Which blocks have anything but usual numbers, commas and white space, the last one before this stretch lowest.
    unusual: u64,
    /// Of those, which have other numbers, or what is none.
    malformed: u64,
    before: Before,
    instructions: Instructions,
}

/// Room for the edges of a block, of which each character may be one.
type Places = [MaybeUninit<u32>; BLOCK];

/// What the last character before a block was: 0 or 1.
#[derive(Clone, Copy, Default)]
struct Before {
    in_number: u64,
    was_point: u64,
    was_minus: u64,
    /// A zero that a number begins with.
    was_first_zero: u64,
    /// Part of the digits after a point.
    was_place: u64,
}

impl Blocks {
    /// Before the first one.
    pub(super) fn new(instructions: Instructions) -> Self {
        let edges = [const { MaybeUninit::uninit() }; BLOCKS * BLOCK + BLOCK];
        let before = Before::default();
        Self { begin: 0, end: 0, edges, count: 0, unusual: 0, malformed: 0, before, instructions }
    }

    /// Looks at what follows in the text, up to [`BLOCKS`].
    #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
    pub(super) fn advance(&mut self, blocks: &[[u8; BLOCK]]) {
        match self.instructions {
            Instructions::Avx2 => self.advance_avx2(blocks),
            // SAFETY: the processor has them, as is said.
            Instructions::Avx512 => unsafe { self.advance_avx512(blocks) },
        }
    }

    #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
    fn advance_avx2(&mut self, blocks: &[[u8; BLOCK]]) {
        self.advance_by(
            blocks,
            |block| avx2::kinds(block),
            |edges, base, places| avx2::store(edges, base, places),
        );
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi2,avx2,bmi1,bmi2,lzcnt,popcnt")]
    fn advance_avx512(&mut self, blocks: &[[u8; BLOCK]]) {
        self.advance_by(
            blocks,
            |block| avx512::kinds(block),
            |edges, base, places| avx512::store(edges, base, places),
        );
    }

    #[inline(always)]
    fn advance_by(
        &mut self,
        blocks: &[[u8; BLOCK]],
        kinds: impl Fn(&[u8; BLOCK]) -> Kinds,
        store: impl Fn(u64, u32, &mut Places),
    ) {
        let one_before = usize::from(self.end > 0);
        let passed = (self.end - self.begin) / BLOCK - one_before;
        self.begin = self.end - one_before * BLOCK;
        let (mut before, mut count, mut unusual, mut malformed) = (self.before, self.count, 0, 0);
        for (number, block) in blocks.iter().enumerate() {
            let mut kinds = kinds(block);
            let others = !(kinds.between | kinds.digits | kinds.points | kinds.minuses);
            let brackets = if others == 0 { 0 } else { brackets(block) };
            kinds.between |= brackets;
            let found = before.then(&kinds);
            unusual |= u64::from(found.misplaced | found.malformed | others != 0) << number;
            malformed |= u64::from(found.malformed | others & !brackets != 0) << number;
            let places = self.edges[count..].first_chunk_mut().expect("there is room for all of a block");
            store(found.edges, (self.end + number * BLOCK) as u32, places);
            count += found.edges.count_ones() as usize;
        }
        self.unusual = self.unusual >> passed | unusual << one_before;
        self.malformed = self.malformed >> passed | malformed << one_before;
        (self.before, self.count) = (before, count);
        self.end += blocks.len() * BLOCK;
    }

    /// Where the next numbers begin and end.
    pub(super) fn numbers(&self) -> &[[u32; 2]] {
        // SAFETY: so many have been stored.
        unsafe { slice::from_raw_parts(self.edges.as_ptr().cast(), self.count / 2) }
    }

    /// Forgets those, but for one that has no end yet.
    pub(super) fn forget(&mut self) {
        let begun = self.count % 2;
        if begun == 1 {
            self.edges[0] = self.edges[self.count - 1];
        }
        self.count = begun;
    }

    /// From where to where the text is not as usual next, not before `at`.
    pub(super) fn unusual(&self, at: usize) -> (usize, usize) {
        let Some(passed) = at.checked_sub(self.begin) else { return (0, self.begin) };
        let left = self.unusual & (u64::MAX << (passed / BLOCK));
        if left == 0 {
            return (usize::MAX, usize::MAX);
        }
        let first = self.begin + left.trailing_zeros() as usize * BLOCK;
        (first, first + BLOCK)
    }

    /// Whether this number is of the usual form.
    pub(super) fn is_well_formed(&self, [begin, end]: [usize; 2]) -> bool {
        begin >= self.begin && {
            let last = (end - self.begin) / BLOCK;
            let malformed = self.malformed & (u64::MAX >> (63 - last));
            malformed >> ((begin - self.begin) / BLOCK) == 0
        }
    }
}

/// What is found in a block.
struct Found {
    /// Where numbers begin, and what stands behind their ends.
    edges: u64,
    /// Ends of numbers without a comma, and other commas.
    misplaced: u64,
    /// What does not belong into a number of the usual form, or behind it.
    malformed: u64,
}

impl Before {
    /// Looks at the block that follows.
    #[inline(always)]
    fn then(&mut self, kinds: &Kinds) -> Found {
        let Kinds { between, commas, digits, points, minuses, zeros } = *kinds;
        let begins = !between & (between << 1 | (self.in_number ^ 1));
        let ends = between & (!between << 1 | self.in_number);
        let first_digits = begins & !minuses | minuses << 1 | self.was_minus;
        let first_zeros = first_digits & zeros;
        let first_places = points << 1 | self.was_point;
        // The carry of an addition runs through the digits behind a point, and comes out at what follows them.
        let (sum, carried) = digits.overflowing_add(first_places & digits);
        let (sum, carried_on) = sum.overflowing_add(self.was_place & digits);
        let second_points = (sum & !digits | self.was_place) & points;
        let malformed = minuses & !begins
            | (first_digits | first_places) & !digits
            | (first_zeros << 1 | self.was_first_zero) & digits
            | second_points;
        *self = Self {
            in_number: !between >> 63,
            was_point: points >> 63,
            was_minus: minuses >> 63,
            was_first_zero: first_zeros >> 63,
            was_place: u64::from(carried | carried_on),
        };
        Found { edges: begins | ends, misplaced: ends ^ commas, malformed }
    }
}

/// What the characters of a block are, the first one lowest.
struct Kinds {
    /// White space, commas and brackets.
    between: u64,
    commas: u64,
    digits: u64,
    points: u64,
    minuses: u64,
    zeros: u64,
}

/// Where brackets are, and perhaps some other characters that are no part of a number. Few blocks have any.
fn brackets(block: &[u8; BLOCK]) -> u64 {
    let is_bracket = |byte: u8| u64::from(matches!(byte, b'[' | b']'));
    (0..).zip(block).map(|(place, byte)| is_bracket(*byte) << place).sum()
}

mod avx2 {
    use super::{BLOCK, Kinds, Places};
    use std::arch::x86_64::*;

    /// Characters of a vector.
    const WIDTH: usize = 32;

    #[target_feature(enable = "avx2")]
    #[inline]
    pub(super) fn kinds(block: &[u8; BLOCK]) -> Kinds {
        // Of all characters with the same lower four bits, one at most is looked for. No character is -1 here, see the instruction.
        let spaces = _mm_setr_epi8(32, -1, -1, -1, -1, -1, -1, -1, -1, 9, 10, -1, 44, 13, -1, -1);
        let spaces = _mm256_broadcastsi128_si256(spaces);
        let (halves, _) = block.as_chunks::<WIDTH>();
        let [low, high] = [&halves[0], &halves[1]].map(|half| {
            // SAFETY: these are as many bytes as are read, and they may stand anywhere.
            let text = unsafe { _mm256_loadu_si256(half.as_ptr().cast()) };
            let all = |byte: u8| _mm256_set1_epi8(byte as i8);
            let is = |byte| _mm256_cmpeq_epi8(text, all(byte));
            let is_between = _mm256_cmpeq_epi8(_mm256_shuffle_epi8(spaces, text), text);
            let digits = _mm256_sub_epi8(text, all(b'0'));
            let is_digit = _mm256_cmpeq_epi8(_mm256_min_epu8(digits, all(9)), digits);
            [is_between, is(b','), is_digit, is(b'.'), is(b'-'), is(b'0')]
                .map(|kind| u64::from(_mm256_movemask_epi8(kind) as u32))
        });
        let [between, commas, digits, points, minuses, zeros] =
            std::array::from_fn(|kind| low[kind] | high[kind] << WIDTH);
        Kinds { between, commas, digits, points, minuses, zeros }
    }

    #[target_feature(enable = "avx2,bmi1")]
    #[inline]
    pub(super) fn store(mut edges: u64, base: u32, places: &mut Places) {
        // More are stored than there are: it is guessed right more often when to stop.
        for eight in places.as_chunks_mut::<8>().0 {
            for place in eight {
                // The compiler would otherwise put eight together before it stores them, which takes longer.
                // SAFETY: it is a reference's.
                unsafe { place.as_mut_ptr().write_volatile(base + edges.trailing_zeros()) };
                edges &= edges.wrapping_sub(1);
            }
            if edges == 0 {
                break;
            }
        }
    }
}

/// Half as many instructions.
mod avx512 {
    use super::{BLOCK, Kinds, Places};
    use std::arch::x86_64::*;

    #[target_feature(enable = "avx512f,avx512bw")]
    #[inline]
    pub(super) fn kinds(block: &[u8; BLOCK]) -> Kinds {
        // SAFETY: these are as many bytes as are read, and they may stand anywhere.
        let text = unsafe { _mm512_loadu_si512(block.as_ptr().cast()) };
        let all = |byte: u8| _mm512_set1_epi8(byte as i8);
        let is = |byte| _mm512_cmpeq_epi8_mask(text, all(byte));
        let spaces = _mm_setr_epi8(32, -1, -1, -1, -1, -1, -1, -1, -1, 9, 10, -1, 44, 13, -1, -1);
        let spaces = _mm512_shuffle_epi8(_mm512_broadcast_i32x4(spaces), text);
        Kinds {
            between: _mm512_cmpeq_epi8_mask(spaces, text),
            commas: is(b','),
            digits: _mm512_cmple_epu8_mask(_mm512_sub_epi8(text, all(b'0')), all(9)),
            points: is(b'.'),
            minuses: is(b'-'),
            zeros: is(b'0'),
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi2")]
    #[inline]
    pub(super) fn store(edges: u64, base: u32, places: &mut Places) {
        const ALL: [u8; BLOCK] = {
            let mut all = [0; BLOCK];
            let mut place = 0;
            while place < BLOCK {
                all[place] = place as u8;
                place += 1;
            }
            all
        };
        // SAFETY: these are as many bytes as are read.
        let all = unsafe { _mm512_loadu_si512(ALL.as_ptr().cast()) };
        let mut found = _mm512_maskz_compress_epi8(edges, all);
        let mut left = edges.count_ones();
        for sixteen in places.as_chunks_mut::<16>().0 {
            let next = _mm512_cvtepu8_epi32(_mm512_castsi512_si128(found));
            let next = _mm512_add_epi32(next, _mm512_set1_epi32(base as i32));
            // SAFETY: these are as many bytes as are written, and they may stand anywhere.
            unsafe { _mm512_storeu_si512(sixteen.as_mut_ptr().cast(), next) };
            if left <= 16 {
                break;
            }
            left -= 16;
            found = _mm512_alignr_epi32::<4>(found, found);
        }
    }
}
