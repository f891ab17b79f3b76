//! Triton's classification extension: in place of an output, its largest elements, best first, each as
//! `value:index[:label]`. Decides their order and how they are written; never whether somebody wants them.
//!
//! Equal values stand in the order of their indices. A NaN is no value that anything can be better than: it comes last,
//! and is written as one. Values are written so that reading them gives the same number again.

use crate::refusal::Refusal;
use half::{bf16, f16};
use std::cmp::Ordering;
use std::fmt::Display;
use std::io::Write;
use wire::{Datatype, ModelEntry, TensorMeta};

/// An output's best classes, as a tensor of datatype BYTES: each element after its length in four bytes, little-endian.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ranked {
    /// `[rows, classes]`, or `[classes]` of a model without rows.
    pub(crate) shape: Vec<u64>,
    pub(crate) elements: Vec<u8>,
}

/// An output of which classes are wanted.
#[derive(Clone, Copy)]
pub(crate) struct Output<'a> {
    pub(crate) datatype: Datatype,
    /// Whole elements, as many as the shape has.
    pub(crate) bytes: &'a [u8],
    /// Each row is ranked for itself; `None` if the model has no rows.
    pub(crate) rows: Option<u64>,
    /// What the indices within a row mean. Those beyond the last label have none.
    pub(crate) labels: &'a [String],
}

impl Output<'_> {
    /// The `most` largest elements of each row, or all if there are fewer; `None` if this datatype has no order.
    pub(crate) fn rank(self, most: u32) -> Option<Ranked> {
        Some(match self.datatype {
            Datatype::Uint8 => self.rank_as(most, u8::from_le_bytes, Ord::cmp),
            Datatype::Uint16 => self.rank_as(most, u16::from_le_bytes, Ord::cmp),
            Datatype::Uint32 => self.rank_as(most, u32::from_le_bytes, Ord::cmp),
            Datatype::Uint64 => self.rank_as(most, u64::from_le_bytes, Ord::cmp),
            Datatype::Int8 => self.rank_as(most, i8::from_le_bytes, Ord::cmp),
            Datatype::Int16 => self.rank_as(most, i16::from_le_bytes, Ord::cmp),
            Datatype::Int32 => self.rank_as(most, i32::from_le_bytes, Ord::cmp),
            Datatype::Int64 => self.rank_as(most, i64::from_le_bytes, Ord::cmp),
            Datatype::Fp16 => self.rank_as(most, |bytes| f16::from_le_bytes(bytes).to_f32(), by_value),
            Datatype::Bf16 => self.rank_as(most, |bytes| bf16::from_le_bytes(bytes).to_f32(), by_value),
            Datatype::Fp32 => self.rank_as(most, f32::from_le_bytes, by_value),
            Datatype::Fp64 => self.rank_as(most, f64::from_le_bytes, by_value),
            Datatype::Bool | Datatype::Bytes => return None,
        })
    }

    fn rank_as<const N: usize, T: Copy + Display>(
        self,
        most: u32,
        read: fn([u8; N]) -> T,
        order: fn(&T, &T) -> Ordering,
    ) -> Ranked {
        let elements = self.bytes.as_chunks::<N>().0;
        let rows = self.rows.map_or(1, |rows| rows as usize);
        let classes = elements.len().checked_div(rows).unwrap_or(0);
        let most = classes.min(most as usize);
        let mut ranked = Ranked { shape: self.rows.into_iter().collect(), elements: Vec::new() };
        ranked.shape.push(most as u64);
        let mut places: Vec<usize> = Vec::with_capacity(classes);
        for row in elements.chunks_exact(classes.max(1)) {
            let best_first =
                |one: &usize, other: &usize| order(&read(row[*other]), &read(row[*one])).then(one.cmp(other));
            places.clear();
            places.extend(0..classes);
            if (1..classes).contains(&most) {
                places.select_nth_unstable_by(most - 1, best_first);
            }
            places.truncate(most);
            places.sort_unstable_by(best_first);
            for place in &places {
                ranked.write(read(row[*place]), *place, self.labels.get(*place));
            }
        }
        ranked
    }
}

impl Ranked {
    fn write(&mut self, value: impl Display, place: usize, label: Option<&String>) {
        const LENGTH: usize = size_of::<u32>();
        let start = self.elements.len();
        self.elements.extend_from_slice(&[0; LENGTH]);
        write!(self.elements, "{value}:{place}").expect("a Vec takes everything");
        if let Some(label) = label.filter(|label| !label.is_empty()) {
            write!(self.elements, ":{label}").expect("a Vec takes everything");
        }
        let length = (self.elements.len() - start - LENGTH) as u32; // a label fits a frame of 1 MiB
        self.elements[start..start + LENGTH].copy_from_slice(&length.to_le_bytes());
    }
}

/// The `most` best classes of an output, in its place.
pub(crate) fn rank(
    output: &TensorMeta,
    datatype: Datatype,
    bytes: &[u8],
    entry: Option<&ModelEntry>,
    most: u32,
) -> Result<Ranked, Refusal> {
    let spec = entry.and_then(|entry| entry.outputs.iter().find(|spec| spec.name == output.name));
    let rows = output.shape.first().filter(|_| entry.is_some_and(|entry| entry.max_batch > 0));
    let labels = spec.map_or(&[][..], |spec| &spec.labels);
    let ranked = Output { datatype, bytes, rows: rows.copied(), labels }.rank(most);
    ranked.ok_or_else(|| {
        let (name, datatype) = (&output.name, datatype.name());
        Refusal::Invalid(format!("output `{name}` is {datatype}, of which there are no classes"))
    })
}

/// Of two numbers the larger one; a NaN is smaller than all numbers.
fn by_value<T: PartialOrd>(one: &T, other: &T) -> Ordering {
    let is_number = |value: &T| value.partial_cmp(value).is_some();
    one.partial_cmp(other).unwrap_or_else(|| is_number(one).cmp(&is_number(other)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::Elements;

    fn rank(datatype: Datatype, bytes: &[u8], rows: Option<u64>, most: u32) -> (Vec<u64>, Vec<String>) {
        let labels = ["no".to_owned(), String::new(), "yes".to_owned()];
        let ranked = Output { datatype, bytes, rows, labels: &labels }.rank(most).expect("it has an order");
        let texts = Elements::of(&ranked.elements);
        let texts = texts.map(|text| str::from_utf8(text.unwrap()).unwrap().to_owned()).collect();
        (ranked.shape, texts)
    }

    fn floats(values: &[f32], rows: Option<u64>, most: u32) -> (Vec<u64>, Vec<String>) {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        rank(Datatype::Fp32, &bytes, rows, most)
    }

    fn texts(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn the_best_come_first_with_their_labels_where_they_have_one() {
        let row = [0.25, 0.5, 0.75, 0.125];
        assert_eq!(floats(&row, Some(1), 2), (vec![1, 2], texts(&["0.75:2:yes", "0.5:1"])));
        assert_eq!(floats(&row, None, 4), (vec![4], texts(&["0.75:2:yes", "0.5:1", "0.25:0:no", "0.125:3"])));
    }

    #[test]
    fn each_row_is_ranked_for_itself() {
        let (shape, classes) = floats(&[1.0, 2.0, 4.0, 3.0], Some(2), 1);
        assert_eq!((shape, classes), (vec![2, 1], texts(&["2:1", "4:0:no"])));
    }

    #[test]
    fn ties_stand_in_order_and_a_nan_comes_last() {
        let row = [f32::NAN, 1.0, -0.0, 0.0, 1.0, f32::NAN, f32::NEG_INFINITY, f32::INFINITY];
        let places = |most| -> Vec<usize> {
            let (_, classes) = floats(&row, None, most);
            classes.iter().map(|class| class.split(':').nth(1).unwrap().parse().unwrap()).collect()
        };
        let all = [7, 1, 4, 2, 3, 6, 0, 5];
        for most in 1..=8 {
            assert_eq!(places(most), all[..most as usize], "the best {most}");
        }
        assert_eq!(floats(&row, None, 1).1, texts(&["inf:7"]));
        assert_eq!(floats(&[f32::NAN], None, 1).1, texts(&["NaN:0:no"]));
    }

    #[test]
    fn more_than_there_are_is_all_and_none_of_nothing() {
        assert_eq!(floats(&[1.0, 2.0], Some(1), u32::MAX), (vec![1, 2], texts(&["2:1", "1:0:no"])));
        assert_eq!(floats(&[], Some(0), 3), (vec![0, 0], vec![]));
        assert_eq!(floats(&[1.0], Some(1), 0), (vec![1, 0], vec![]));
    }

    #[test]
    fn whole_numbers_are_compared_exactly_and_truths_not_at_all() {
        let values = [i64::MAX - 1, i64::MAX, i64::MIN];
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let (_, classes) = rank(Datatype::Int64, &bytes, None, 2);
        assert_eq!(classes, texts(&["9223372036854775807:1", "9223372036854775806:0:no"]));
        let half: Vec<u8> = [0.5, 2.0].iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect();
        assert_eq!(rank(Datatype::Fp16, &half, None, 1).1, texts(&["2:1"]));
        assert_eq!(Output { datatype: Datatype::Bool, bytes: &[1], rows: None, labels: &[] }.rank(1), None);
    }

    #[test]
    fn a_value_is_read_as_it_was() {
        for value in [0.1_f32, 1e-9, 3e30, f32::MIN_POSITIVE, -1.000_000_1] {
            let (_, classes) = floats(&[value], None, 1);
            let text = classes[0].split(':').next().unwrap();
            assert_eq!(text.parse::<f32>().unwrap().to_bits(), value.to_bits(), "{text}");
        }
    }
}
