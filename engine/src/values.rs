//! Tests of tensor values, straight from their little-endian bytes: what a model's author declares about them, and
//! whether two answers are the same.

use half::{bf16, f16};
use wire::{Datatype, whole_of};

/// Bytes of one element of a tensor that a model takes or gives.
pub(crate) fn width(datatype: Datatype) -> usize {
    datatype.size().expect("models compute with numbers: manifest.rs and job.rs see to it")
}

/// Whether no element is a NaN or an infinity. Integers never are.
pub(crate) fn all_finite(datatype: Datatype, bytes: &[u8]) -> bool {
    match datatype {
        Datatype::Fp16 => chunks(bytes).all(|bytes| f16::from_le_bytes(*bytes).is_finite()),
        Datatype::Bf16 => chunks(bytes).all(|bytes| bf16::from_le_bytes(*bytes).is_finite()),
        Datatype::Fp32 => chunks(bytes).all(|bytes| f32::from_le_bytes(*bytes).is_finite()),
        Datatype::Fp64 => chunks(bytes).all(|bytes| f64::from_le_bytes(*bytes).is_finite()),
        Datatype::Bool
        | Datatype::Uint8
        | Datatype::Uint16
        | Datatype::Uint32
        | Datatype::Uint64
        | Datatype::Int8
        | Datatype::Int16
        | Datatype::Int32
        | Datatype::Int64
        | Datatype::Bytes => true,
    }
}

/// Integers that may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Allowed {
    /// The least and the largest.
    pub(crate) bounds: (i128, i128),
    /// Another one: what the engine itself fills up with.
    pub(crate) filling: Option<i128>,
}

/// The least and the largest of an integer datatype.
pub(crate) fn integers(datatype: Datatype) -> Option<(i128, i128)> {
    Some(match datatype {
        Datatype::Uint8 => (0, u8::MAX.into()),
        Datatype::Uint16 => (0, u16::MAX.into()),
        Datatype::Uint32 => (0, u32::MAX.into()),
        Datatype::Uint64 => (0, u64::MAX.into()),
        Datatype::Int8 => (i8::MIN.into(), i8::MAX.into()),
        Datatype::Int16 => (i16::MIN.into(), i16::MAX.into()),
        Datatype::Int32 => (i32::MIN.into(), i32::MAX.into()),
        Datatype::Int64 => (i64::MIN.into(), i64::MAX.into()),
        Datatype::Bool
        | Datatype::Fp16
        | Datatype::Bf16
        | Datatype::Fp32
        | Datatype::Fp64
        | Datatype::Bytes => return None,
    })
}

/// The first integer that may not be.
pub(crate) fn out_of_range(datatype: Datatype, bytes: &[u8], allowed: Allowed) -> Option<i128> {
    /// Of what is as wide as this, or less.
    fn first<T: Copy + Ord + Into<i128> + TryFrom<i128>>(
        mut values: impl Iterator<Item = T>,
        Allowed { bounds: (min, max), filling }: Allowed,
    ) -> Option<i128> {
        // Within the datatype, see manifest.rs; a bound beyond it would be none.
        let (min, max) = (T::try_from(min).ok(), T::try_from(max).ok());
        let filling = filling.and_then(|filling| T::try_from(filling).ok());
        let is_out = |value: T| min.is_some_and(|min| value < min) || max.is_some_and(|max| value > max);
        values.find(|value| is_out(*value) && Some(*value) != filling).map(Into::into)
    }
    match datatype {
        Datatype::Uint8 => first(bytes.iter().copied(), allowed),
        Datatype::Uint16 => first(chunks(bytes).map(|bytes| u16::from_le_bytes(*bytes)), allowed),
        Datatype::Uint32 => first(chunks(bytes).map(|bytes| u32::from_le_bytes(*bytes)), allowed),
        Datatype::Uint64 => first(chunks(bytes).map(|bytes| u64::from_le_bytes(*bytes)), allowed),
        Datatype::Int8 => first(chunks(bytes).map(|bytes| i8::from_le_bytes(*bytes)), allowed),
        Datatype::Int16 => first(chunks(bytes).map(|bytes| i16::from_le_bytes(*bytes)), allowed),
        Datatype::Int32 => first(chunks(bytes).map(|bytes| i32::from_le_bytes(*bytes)), allowed),
        Datatype::Int64 => first(chunks(bytes).map(|bytes| i64::from_le_bytes(*bytes)), allowed),
        Datatype::Bool
        | Datatype::Fp16
        | Datatype::Bf16
        | Datatype::Fp32
        | Datatype::Fp64
        | Datatype::Bytes => None,
    }
}

/// By how much floats of two answers may differ, relative to the larger value and 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Tolerance {
    /// By what another order of summation explains.
    Summation,
    /// Also by what factors of 10 bits explain: with them a GPU multiplies in convolutions unless it is told otherwise, and
    /// which runs of which sizes do is its library's choice.
    ShortFactors,
    /// By so much.
    Of(f64),
}

impl Tolerance {
    fn of(self, datatype: Datatype) -> f64 {
        let summation = match datatype {
            Datatype::Fp64 => 1e-6,
            Datatype::Fp32 => 1e-4,
            Datatype::Fp16 => 1e-2,
            Datatype::Bf16 => 5e-2,
            Datatype::Bool
            | Datatype::Uint8
            | Datatype::Uint16
            | Datatype::Uint32
            | Datatype::Uint64
            | Datatype::Int8
            | Datatype::Int16
            | Datatype::Int32
            | Datatype::Int64
            | Datatype::Bytes => return 0.0,
        };
        match self {
            Self::Summation => summation,
            Self::ShortFactors => summation.max(1e-2),
            Self::Of(declared) => declared,
        }
    }
}

/// The largest difference between two tensors, if one exceeds the tolerance, see [`apart`].
pub(crate) fn difference(datatype: Datatype, one: &[u8], other: &[u8], tolerance: Tolerance) -> Option<f64> {
    let (largest, exceeds) = apart(datatype, one, other, tolerance);
    exceeds.then_some(largest)
}

/// Below this, values of a tensor are what is left of larger ones.
const SMALLEST: f64 = 1e-3;

/// The largest difference between two tensors, and whether any exceeds `tolerance`, of what they are themselves and of the largest
/// of the first one's, or of 1 if that is less. Integers have to be equal.
pub(crate) fn apart(datatype: Datatype, one: &[u8], other: &[u8], tolerance: Tolerance) -> (f64, bool) {
    if one == other {
        return (0.0, false);
    }
    if one.len() != other.len() {
        return (f64::INFINITY, true);
    }
    let read_as = if datatype == Datatype::Bool { Datatype::Uint8 } else { datatype };
    if let Some(whole) = whole_of(read_as) {
        // As they are: a double does not tell those beyond 2^53 apart.
        let pairs = one.chunks_exact(width(datatype)).zip(other.chunks_exact(width(datatype)));
        let largest = pairs.map(|(one, other)| whole(one).abs_diff(whole(other))).max();
        return (largest.unwrap_or_default() as f64, true);
    }
    let tolerance = tolerance.of(datatype);
    let magnitude = values(datatype, one).map(f64::abs).filter(|value| value.is_finite()).fold(0.0, f64::max);
    let scale = magnitude.clamp(SMALLEST, 1.0);
    let (mut largest, mut exceeds) = (0.0, false);
    for (one, other) in values(datatype, one).zip(values(datatype, other)) {
        if one == other || (one.is_nan() && other.is_nan()) {
            continue;
        }
        let apart = (one - other).abs();
        exceeds |= apart.is_nan() || apart > tolerance * (scale + one.abs().max(other.abs()));
        largest = if apart > largest || apart.is_nan() { apart } else { largest };
    }
    (largest, exceeds)
}

/// How far the values of two tensors are apart at most, of the largest of the first one's. Integers are as far apart as can be, or
/// not at all, and so is what is no number.
pub(crate) fn apart_of_largest(datatype: Datatype, one: &[u8], other: &[u8]) -> f64 {
    if one == other {
        return 0.0;
    }
    let is_float = matches!(datatype, Datatype::Fp16 | Datatype::Bf16 | Datatype::Fp32 | Datatype::Fp64);
    if one.len() != other.len() || !is_float {
        return f64::INFINITY;
    }
    let largest = values(datatype, one).map(f64::abs).filter(|value| value.is_finite()).fold(0.0, f64::max);
    let apart = |(one, other): (f64, f64)| match (one - other).abs() {
        _ if one == other || (one.is_nan() && other.is_nan()) => 0.0,
        apart if apart.is_finite() => apart / largest.max(f64::MIN_POSITIVE),
        _ => f64::INFINITY,
    };
    values(datatype, one).zip(values(datatype, other)).map(apart).fold(0.0, f64::max)
}

/// The bytes of one element; what its datatype cannot hold is brought within it.
pub(crate) fn element(datatype: Datatype, value: f64) -> Vec<u8> {
    match datatype {
        Datatype::Bool => vec![u8::from(value != 0.0)],
        Datatype::Uint8 => vec![value as u8],
        Datatype::Uint16 => (value as u16).to_le_bytes().into(),
        Datatype::Uint32 => (value as u32).to_le_bytes().into(),
        Datatype::Uint64 => (value as u64).to_le_bytes().into(),
        Datatype::Int8 => (value as i8).to_le_bytes().into(),
        Datatype::Int16 => (value as i16).to_le_bytes().into(),
        Datatype::Int32 => (value as i32).to_le_bytes().into(),
        Datatype::Int64 => (value as i64).to_le_bytes().into(),
        Datatype::Fp16 => f16::from_f64(value).to_le_bytes().into(),
        Datatype::Bf16 => bf16::from_f64(value).to_le_bytes().into(),
        Datatype::Fp32 => (value as f32).to_le_bytes().into(),
        Datatype::Fp64 => value.to_le_bytes().into(),
        Datatype::Bytes => unreachable!("no input of a model is declared as BYTES"),
    }
}

/// All elements of a tensor.
pub(crate) fn values(datatype: Datatype, bytes: &[u8]) -> impl Iterator<Item = f64> {
    bytes.chunks_exact(width(datatype)).map(move |element| value(datatype, element))
}

/// One of them, by its place.
pub(crate) fn value_at(datatype: Datatype, bytes: &[u8], place: usize) -> f64 {
    let width = width(datatype);
    value(datatype, &bytes[place * width..(place + 1) * width])
}

fn value(datatype: Datatype, element: &[u8]) -> f64 {
    let mut low = [0; 8];
    low[..element.len()].copy_from_slice(element);
    let bits = u64::from_le_bytes(low);
    match datatype {
        Datatype::Bool | Datatype::Uint8 => f64::from(bits as u8),
        Datatype::Uint16 => f64::from(bits as u16),
        Datatype::Uint32 => f64::from(bits as u32),
        Datatype::Uint64 => bits as f64,
        Datatype::Int8 => f64::from(bits as i8),
        Datatype::Int16 => f64::from(bits as i16),
        Datatype::Int32 => f64::from(bits as i32),
        Datatype::Int64 => bits as i64 as f64,
        Datatype::Fp16 => f16::from_bits(bits as u16).to_f64(),
        Datatype::Bf16 => bf16::from_bits(bits as u16).to_f64(),
        Datatype::Fp32 => f64::from(f32::from_bits(bits as u32)),
        Datatype::Fp64 => f64::from_bits(bits),
        Datatype::Bytes => unreachable!("it has no width"),
    }
}

fn chunks<const SIZE: usize>(bytes: &[u8]) -> impl Iterator<Item = &[u8; SIZE]> {
    bytes.as_chunks().0.iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_nan_or_infinity_among_many_is_found_in_every_float_type() {
        let floats = |value: f64| -> [(Datatype, Vec<u8>); 4] {
            let padded = |zeros: usize, bytes: &[u8]| [&vec![0; zeros], bytes].concat();
            [
                (Datatype::Fp16, padded(6, &f16::from_f64(value).to_le_bytes())),
                (Datatype::Bf16, padded(6, &bf16::from_f64(value).to_le_bytes())),
                (Datatype::Fp32, padded(12, &(value as f32).to_le_bytes())),
                (Datatype::Fp64, padded(24, &value.to_le_bytes())),
            ]
        };
        for (datatype, bytes) in floats(1.5) {
            assert!(all_finite(datatype, &bytes), "{}", datatype.name());
        }
        for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            for (datatype, bytes) in floats(value) {
                assert!(!all_finite(datatype, &bytes), "{} {value}", datatype.name());
            }
        }
        assert!(all_finite(Datatype::Int32, &[0xff; 8]));
    }

    #[test]
    fn small_values_are_compared_as_what_they_are() {
        let bytes = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>();
        let differ = |one: &[f32], other: &[f32]| {
            difference(Datatype::Fp32, &bytes(one), &bytes(other), Tolerance::Summation).is_some()
        };
        assert!(differ(&[1e-4, 2e-4], &[1e-4, 1.9e-4]), "of rows that are mixed");
        assert!(!differ(&[1.0, 1e-7], &[1.0, 2e-7]), "what a sum of large ones leaves");
        assert!(!differ(&[0.0], &[5e-8]), "or is left where they cancel out");
        assert!(differ(&[0.0, f32::INFINITY], &[1e-3, f32::INFINITY]));
    }

    #[test]
    fn integers_that_a_double_cannot_tell_apart_are_told_apart() {
        let pairs = [
            (Datatype::Int64, (1i64 << 53).to_le_bytes(), ((1i64 << 53) + 1).to_le_bytes()),
            (Datatype::Uint64, (u64::MAX - 1).to_le_bytes(), u64::MAX.to_le_bytes()),
        ];
        for (datatype, one, other) in pairs {
            for tolerance in [Tolerance::Summation, Tolerance::ShortFactors, Tolerance::Of(1.0)] {
                assert_eq!(difference(datatype, &one, &other, tolerance), Some(1.0), "{}", datatype.name());
                assert_eq!(difference(datatype, &one, &one, tolerance), None);
            }
        }
        let (least, largest) = (i64::MIN.to_le_bytes(), i64::MAX.to_le_bytes());
        assert_eq!(
            difference(Datatype::Int64, &least, &largest, Tolerance::Summation),
            Some(u64::MAX as f64)
        );
    }

    #[test]
    fn bounds_are_included_and_signs_respected() {
        let allowed = Allowed { bounds: (-2, 5), filling: Some(9) };
        let find = |datatype, bytes: &[u8]| out_of_range(datatype, bytes, allowed);
        assert_eq!(find(Datatype::Int8, &[0xfe, 5, 0xfd]), Some(-3));
        assert_eq!(find(Datatype::Uint8, &[5, 0xfe]), Some(254));
        assert_eq!(find(Datatype::Int16, &6i16.to_le_bytes()), Some(6));
        assert_eq!(find(Datatype::Int32, &(-2i32).to_le_bytes()), None);
        assert_eq!((find(Datatype::Uint8, &[9]), find(Datatype::Uint8, &[8])), (None, Some(8)));
        assert_eq!(find(Datatype::Uint16, &6u16.to_le_bytes()), Some(6));
        assert_eq!(find(Datatype::Uint32, &9u32.to_le_bytes()), None);
        assert_eq!(find(Datatype::Uint64, &u64::MAX.to_le_bytes()), Some(i128::from(u64::MAX)));
        assert_eq!(find(Datatype::Int64, &i64::MIN.to_le_bytes()), Some(i128::from(i64::MIN)));
    }
}
