//! Whether two versions have said the same: the same outputs, each within its tolerance. Decides nothing else about them.

use policies::{ShadowPolicy, Tolerance};
use wire::{Datatype, TensorMeta, whole_of};

type Tensors<'a> = (&'a [TensorMeta], &'a [u8]);

/// Whether two versions have said the same: the same outputs, each within its tolerance.
pub(super) fn alike(
    policy: &ShadowPolicy,
    (outputs, payload): Tensors<'_>,
    (others, other_payload): Tensors<'_>,
) -> bool {
    outputs.len() == others.len()
        && outputs.iter().all(|output| {
            let Some(other) = others.iter().find(|other| other.name == output.name) else { return false };
            let (Ok((datatype, at)), Ok((other_datatype, other_at))) =
                (output.locate(payload), other.locate(other_payload))
            else {
                return false;
            };
            if datatype != other_datatype || output.shape != other.shape {
                return false;
            }
            let (one, other) = (&payload[at], &other_payload[other_at]);
            let row = output.shape.last().copied().unwrap_or(1).max(1) as usize;
            let is_by_argmax = policy.is_by_argmax(&output.name);
            let own = policy.tolerance_of(&output.name);
            // Whatever is no floating-point number is compared as it is, unless more is said of it.
            let Some((size, float)) = float_of(datatype) else {
                let Some(whole) = whole_of(datatype) else { return one == other };
                let size = datatype.size().expect("integers have one");
                if is_by_argmax {
                    let largest = |row: &[u8]| {
                        let values = row.chunks_exact(size).map(whole).enumerate();
                        values
                            .reduce(|best, next| if next.1 > best.1 { next } else { best })
                            .map(|(at, _)| at)
                    };
                    let mut pairs =
                        one.chunks(row.saturating_mul(size)).zip(other.chunks(row.saturating_mul(size)));
                    return pairs.all(|(row, other)| largest(row) == largest(other));
                }
                let Some(tolerance) = own else { return one == other };
                let mut pairs = one.chunks_exact(size).map(whole).zip(other.chunks_exact(size).map(whole));
                return pairs.all(|(one, other)| {
                    let larger = one.unsigned_abs().max(other.unsigned_abs());
                    tolerance.allows(one.abs_diff(other) as f64, larger as f64)
                });
            };
            if is_by_argmax {
                let values = |row: &'_ [u8]| row.chunks_exact(size).map(float).collect::<Vec<_>>();
                let mut pairs =
                    one.chunks(row.saturating_mul(size)).zip(other.chunks(row.saturating_mul(size)));
                return pairs.all(|(row, other)| has_same_largest(&values(row), &values(other)));
            }
            let mut pairs = one.chunks_exact(size).map(float).zip(other.chunks_exact(size).map(float));
            let tolerance = own.unwrap_or_else(|| policy.tolerance());
            pairs.all(|(one, other)| is_within(tolerance, one, other))
        })
}

/// Reads an element.
type Read = fn(&[u8]) -> f64;

/// How many bytes an element of a floating-point tensor has, and how it is read.
fn float_of(datatype: Datatype) -> Option<(usize, Read)> {
    match datatype {
        Datatype::Fp64 => Some((8, |b| f64::from_le_bytes(b.try_into().expect("8 bytes")))),
        Datatype::Fp32 => Some((4, |b| f32::from_le_bytes(b.try_into().expect("4 bytes")).into())),
        Datatype::Fp16 => Some((2, |b| half::f16::from_le_bytes(b.try_into().expect("2 bytes")).into())),
        Datatype::Bf16 => Some((2, |b| half::bf16::from_le_bytes(b.try_into().expect("2 bytes")).into())),
        _ => None,
    }
}

fn is_within(tolerance: Tolerance, one: f64, other: f64) -> bool {
    if !one.is_finite() || !other.is_finite() {
        return one == other || (one.is_nan() && other.is_nan());
    }
    tolerance.allows((one - other).abs(), one.abs().max(other.abs()))
}

/// Whether the same value of both rows is the largest, the first where there are several. A NaN is larger than nothing and
/// agrees with nothing but a NaN.
fn has_same_largest(row: &[f64], other: &[f64]) -> bool {
    let larger = |best: (usize, f64), next: (usize, f64)| if next.1 > best.1 { next } else { best };
    let largest = |row: &[f64]| {
        let numbers = row.iter().copied().enumerate().filter(|(_, value)| !value.is_nan());
        numbers.reduce(larger).map(|(at, _)| at)
    };
    let are_nan_alike = row.iter().zip(other).all(|(one, other)| one.is_nan() == other.is_nan());
    are_nan_alike && largest(row) == largest(other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn policy(compare: &str) -> Arc<ShadowPolicy> {
        let text = format!("models: {{m: {{shadow: {{version: 2, compare: {compare}}}}}}}");
        let snapshot = policies::parse(&text, "p").unwrap_or_else(|errors| panic!("{errors}"));
        Arc::clone(snapshot.model("m").unwrap().shadow().unwrap())
    }

    fn output(datatype: Datatype, shape: &[u64]) -> Vec<TensorMeta> {
        vec![TensorMeta {
            name: "y".into(),
            datatype: datatype as u32,
            shape: shape.into(),
            offset: 0,
            bytes: 0,
        }]
    }

    fn fp32(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    #[test]
    fn answers_are_alike_within_the_tolerance_and_not_beyond() {
        let meta = output(Datatype::Fp32, &[1, 3]);
        let says = |compare: &str, one: &[f32], other: &[f32]| {
            alike(&policy(compare), (&meta, &fp32(one)), (&meta, &fp32(other)))
        };
        assert!(says("{}", &[1.0, 2.0, f32::NAN], &[1.000_001, 2.0, f32::NAN]), "by default about 1e-4");
        assert!(!says("{}", &[1.0, 2.0, 3.0], &[1.01, 2.0, 3.0]));
        assert!(says("{relative: 0.02}", &[1.0, 2.0, 3.0], &[1.01, 2.0, 3.0]));
        assert!(says("{absolute: 0.5, relative: 0}", &[0.0, 2.0, 3.0], &[0.5, 2.0, 3.0]));
        assert!(!says("{absolute: 0.5}", &[f32::NAN, 2.0, 3.0], &[0.5, 2.0, 3.0]));
        assert!(!says("{absolute: 0.5}", &[f32::INFINITY, 2.0, 3.0], &[0.5, 2.0, 3.0]));
        assert!(says("{argmax: [y]}", &[0.1, 0.9, 0.2], &[0.3, 0.5, 0.4]));
        assert!(!says("{argmax: [y]}", &[0.1, 0.9, 0.2], &[0.6, 0.5, 0.4]));
        assert!(!says("{argmax: [y]}", &[0.9, 0.1, 0.2], &[f32::NAN; 3]), "a version that has lost its mind");
        assert!(!says("{argmax: [y]}", &[0.1, 0.9, 0.2], &[f32::NAN, 0.9, 0.2]));
        assert!(says("{argmax: [y]}", &[f32::NAN, 0.9, 0.2], &[f32::NAN, 0.8, 0.3]));
        let wide = "{absolute: 0.5, outputs: {z: {absolute: 0}}}";
        assert!(says(wide, &[1.0, 2.0, 3.0], &[1.4, 2.0, 3.0]), "another output has bounds of its own");
        let narrow = "{absolute: 0.5, outputs: {y: {absolute: 0.1}}}";
        assert!(!says(narrow, &[1.0, 2.0, 3.0], &[1.4, 2.0, 3.0]));
        assert!(says("{outputs: {y: {relative: 0.3}}}", &[1.0, 2.0, 3.0], &[1.4, 2.0, 3.0]));
    }

    #[test]
    fn other_shapes_names_and_types_are_no_agreement() {
        let policy = policy("{}");
        let (one, wide) = (output(Datatype::Fp32, &[1, 2]), output(Datatype::Fp32, &[2, 1]));
        let bytes = fp32(&[1.0, 2.0]);
        assert!(alike(&policy, (&one, &bytes), (&one, &bytes)));
        assert!(!alike(&policy, (&one, &bytes), (&wide, &bytes)));
        assert!(!alike(&policy, (&one, &bytes), (&[], &bytes)));
        assert!(!alike(&policy, (&one, &bytes), (&one, &bytes[..4])), "a tensor that is cut");
        let integers = output(Datatype::Int64, &[1]);
        assert!(alike(&policy, (&integers, &7i64.to_le_bytes()), (&integers, &7i64.to_le_bytes())));
        assert!(!alike(&policy, (&integers, &7i64.to_le_bytes()), (&integers, &8i64.to_le_bytes())));
        let near = self::policy("{outputs: {y: {absolute: 1}}}");
        assert!(alike(&near, (&integers, &7i64.to_le_bytes()), (&integers, &8i64.to_le_bytes())));
        assert!(!alike(&near, (&integers, &7i64.to_le_bytes()), (&integers, &9i64.to_le_bytes())));
        let large = |value: i64| (1 << 53) + value;
        let says = |value: i64| {
            alike(&near, (&integers, &large(1).to_le_bytes()), (&integers, &large(value).to_le_bytes()))
        };
        assert!(says(2) && !says(3), "whole numbers of which no float tells the last bit");
        let three = output(Datatype::Uint64, &[1, 3]);
        let bytes = |values: [u64; 3]| values.map(u64::to_le_bytes).concat();
        let largest = self::policy("{argmax: [y]}");
        let (one, other) = (bytes([1, u64::MAX - 1, 4]), bytes([2, u64::MAX, 5]));
        assert!(
            alike(&largest, (&three, &one), (&three, &other))
                && !alike(&policy, (&three, &one), (&three, &other))
        );
        assert!(!alike(&largest, (&three, &one), (&three, &bytes([1, u64::MAX - 1, u64::MAX]))));
        let halves = output(Datatype::Fp16, &[1]);
        let half = |value: f32| half::f16::from_f32(value).to_le_bytes();
        assert!(alike(&policy, (&halves, &half(1.0)), (&halves, &half(1.0))));
        assert!(!alike(&policy, (&halves, &half(1.0)), (&halves, &half(1.1))));
    }
}
