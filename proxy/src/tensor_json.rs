//! Tensor values between JSON and little-endian bytes, without a tree in between. Decides which JSON values
//! a datatype accepts; never rounds a value into one that it does not hold.
//!
//! JSON has no NaN or Infinity, yet Python's writer emits the bare words and Triton accepts them. They are
//! read here as the strings `"NaN"`, `"Infinity"`, `"-Infinity"`; [`quote_non_finite`] turns the words into
//! these strings for the rare body that has them, so that the strict and fast parser stays the only one.

use serde::de::{DeserializeSeed, Deserializer, Error, SeqAccess, Visitor};
use std::fmt;
use wire::{Datatype, Elements, element_count, push_element};

/// A tensor whose values are being appended to `bytes`.
pub(crate) struct TensorData<'a> {
    /// Where the elements go.
    pub(crate) bytes: &'a mut Vec<u8>,
    /// What each element is.
    pub(crate) datatype: Datatype,
    /// Its declared shape; data may be flat or nested accordingly.
    pub(crate) shape: &'a [u64],
}

impl<'de> DeserializeSeed<'de> for TensorData<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        let elements = element_count(self.shape)
            .ok_or_else(|| D::Error::custom(format_args!("shape {:?} overflows", self.shape)))?;
        let mut values = Values {
            bytes: self.bytes,
            datatype: self.datatype,
            shape: self.shape,
            elements,
            seen: 0,
            depth: 0,
        };
        match deserializer.deserialize_any(&mut values)? {
            Node::Array => {}
            Node::Scalar => return Err(D::Error::custom("data is a single value, expected an array")),
        }
        if values.seen != elements {
            return Err(D::Error::custom(format_args!(
                "data has {} elements, shape {:?} has {elements}",
                values.seen, self.shape
            )));
        }
        Ok(())
    }
}

/// What a JSON value turned out to be.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Node {
    Scalar,
    Array,
}

/// One value after another, each checked against the datatype.
pub(crate) struct Values<'a> {
    bytes: &'a mut Vec<u8>,
    datatype: Datatype,
    shape: &'a [u64],
    elements: usize,
    seen: usize,
    depth: usize,
}

impl<'a> Values<'a> {
    /// Any number of values, wherever they stand: their shape is somebody else's to find out.
    pub(crate) fn anywhere(bytes: &'a mut Vec<u8>, datatype: Datatype) -> Self {
        Self { bytes, datatype, shape: &[], elements: usize::MAX, seen: 0, depth: 0 }
    }
}

impl Values<'_> {
    fn put<E: Error>(&mut self, little_endian: &[u8]) -> Result<Node, E> {
        self.one_more()?;
        self.bytes.extend_from_slice(little_endian);
        Ok(Node::Scalar)
    }

    fn one_more<E: Error>(&mut self) -> Result<(), E> {
        if self.seen == self.elements {
            return Err(E::custom(format_args!(
                "data has more than the {} elements of shape {:?}",
                self.elements, self.shape
            )));
        }
        self.seen += 1;
        Ok(())
    }

    fn refuse<E: Error>(&self, got: impl fmt::Display) -> E {
        let datatype = self.datatype.name();
        match self.datatype {
            Datatype::Fp16 | Datatype::Bf16 => E::custom(format_args!(
                "{datatype} has no JSON form; the Open Inference Protocol takes it as binary data"
            )),
            _ => E::custom(format_args!("{got} does not fit {datatype}")),
        }
    }

    fn put_integer<E, I>(&mut self, value: I) -> Result<Node, E>
    where
        E: Error,
        I: Copy + fmt::Display,
        u8: TryFrom<I>,
        u16: TryFrom<I>,
        u32: TryFrom<I>,
        u64: TryFrom<I>,
        i8: TryFrom<I>,
        i16: TryFrom<I>,
        i32: TryFrom<I>,
        i64: TryFrom<I>,
        f64: FromInteger<I>,
    {
        let misfit = || self.refuse(value);
        match self.datatype {
            Datatype::Uint8 => {
                u8::try_from(value).map_err(|_| misfit()).and_then(|v| self.put(&v.to_le_bytes()))
            }
            Datatype::Uint16 => {
                u16::try_from(value).map_err(|_| misfit()).and_then(|v| self.put(&v.to_le_bytes()))
            }
            Datatype::Uint32 => {
                u32::try_from(value).map_err(|_| misfit()).and_then(|v| self.put(&v.to_le_bytes()))
            }
            Datatype::Uint64 => {
                u64::try_from(value).map_err(|_| misfit()).and_then(|v| self.put(&v.to_le_bytes()))
            }
            Datatype::Int8 => {
                i8::try_from(value).map_err(|_| misfit()).and_then(|v| self.put(&v.to_le_bytes()))
            }
            Datatype::Int16 => {
                i16::try_from(value).map_err(|_| misfit()).and_then(|v| self.put(&v.to_le_bytes()))
            }
            Datatype::Int32 => {
                i32::try_from(value).map_err(|_| misfit()).and_then(|v| self.put(&v.to_le_bytes()))
            }
            Datatype::Int64 => {
                i64::try_from(value).map_err(|_| misfit()).and_then(|v| self.put(&v.to_le_bytes()))
            }
            Datatype::Fp32 => self.put(&(f64::from_integer(value) as f32).to_le_bytes()),
            Datatype::Fp64 => self.put(&f64::from_integer(value).to_le_bytes()),
            Datatype::Bool | Datatype::Fp16 | Datatype::Bf16 | Datatype::Bytes => Err(misfit()),
        }
    }
}

/// Nearest double: what every JSON reader makes of a whole number.
trait FromInteger<I> {
    fn from_integer(value: I) -> f64;
}

impl FromInteger<u64> for f64 {
    fn from_integer(value: u64) -> f64 {
        value as f64
    }
}

impl FromInteger<i64> for f64 {
    fn from_integer(value: i64) -> f64 {
        value as f64
    }
}

impl<'de> DeserializeSeed<'de> for &mut Values<'_> {
    type Value = Node;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for &mut Values<'_> {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} values", self.datatype.name())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Node, E> {
        self.put_integer(value)
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Node, E> {
        self.put_integer(value)
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Node, E> {
        match self.datatype {
            Datatype::Fp64 => self.put(&value.to_le_bytes()),
            Datatype::Fp32 => {
                let single = value as f32;
                if single.is_infinite() && value.is_finite() {
                    Err(self.refuse(format_args!("{value:?}")))
                } else {
                    self.put(&single.to_le_bytes())
                }
            }
            _ => Err(self.refuse(format_args!("{value:?}"))),
        }
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Node, E> {
        match self.datatype {
            Datatype::Bool => self.put(&[u8::from(value)]),
            _ => Err(self.refuse(value)),
        }
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Node, E> {
        if self.datatype == Datatype::Bytes {
            self.one_more()?;
            push_element(self.bytes, value.as_bytes());
            return Ok(Node::Scalar);
        }
        match value {
            "NaN" => self.visit_f64(f64::NAN),
            "Infinity" => self.visit_f64(f64::INFINITY),
            "-Infinity" => self.visit_f64(f64::NEG_INFINITY),
            _ => Err(self.refuse(format_args!("a string"))),
        }
    }

    fn visit_unit<E: Error>(self) -> Result<Node, E> {
        Err(self.refuse("null"))
    }

    /// An array is either all of a (flat) tensor or of an innermost row, or holds one array per index.
    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
        let depth = self.depth;
        let mut kind = None;
        let mut count: u64 = 0;
        self.depth += 1;
        while let Some(node) = items.next_element_seed(&mut *self)? {
            if *kind.get_or_insert(node) != node {
                return Err(A::Error::custom("data mixes values and arrays"));
            }
            count += 1;
        }
        self.depth = depth;
        let dimension = self.shape.get(depth).copied();
        let fits = match kind {
            Some(Node::Array) => Some(count) == dimension,
            Some(Node::Scalar) if depth == 0 => true, // flat: the total is checked at the end
            Some(Node::Scalar) => depth + 1 == self.shape.len() && Some(count) == dimension,
            None => self.elements == 0,
        };
        if !fits {
            return Err(A::Error::custom(format_args!(
                "data nests {count} values at depth {}, shape {:?} does not",
                depth + 1,
                self.shape
            )));
        }
        Ok(Node::Array)
    }
}

/// `body` with the bare words `NaN`, `Infinity` and `-Infinity` put between quotes, or `None` if it has none.
pub(crate) fn quote_non_finite(body: &[u8]) -> Option<Vec<u8>> {
    const WORDS: [&[u8]; 3] = [b"NaN", b"Infinity", b"-Infinity"];
    let mut quoted = Vec::new();
    let mut copied = 0;
    let mut at = 0;
    while at < body.len() {
        match body[at] {
            b'"' => at = end_of_string(body, at),
            b'N' | b'I' | b'-' => match WORDS.iter().find(|word| body[at..].starts_with(word)) {
                Some(word) => {
                    quoted.extend_from_slice(&body[copied..at]);
                    quoted.push(b'"');
                    quoted.extend_from_slice(word);
                    quoted.push(b'"');
                    at += word.len();
                    copied = at;
                }
                None => at += 1,
            },
            _ => at += 1,
        }
    }
    if copied == 0 {
        return None;
    }
    quoted.extend_from_slice(&body[copied..]);
    Some(quoted)
}

/// Index after the string that starts at `start`.
fn end_of_string(body: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while at < body.len() {
        match body[at] {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    body.len()
}

/// Appends the elements of a tensor as a flat JSON array. Non-finite floats become the bare words that
/// Triton writes and its clients read.
///
/// `bytes` holds whole elements: its length was checked against datatype and shape. What is left in `out` after an error
/// is of no use.
pub(crate) fn write_values(out: &mut Vec<u8>, datatype: Datatype, bytes: &[u8]) -> Result<(), NoJson> {
    debug_assert!(datatype.size().is_none_or(|size| bytes.len().is_multiple_of(size)), "whole elements");
    match datatype {
        Datatype::Bool => write_each(out, bytes, |out, [b]: [u8; 1]| {
            out.extend_from_slice(if b == 0 { b"false" } else { b"true" })
        }),
        Datatype::Uint8 => write_each(out, bytes, |out, b| integer(out, u8::from_le_bytes(b))),
        Datatype::Uint16 => write_each(out, bytes, |out, b| integer(out, u16::from_le_bytes(b))),
        Datatype::Uint32 => write_each(out, bytes, |out, b| integer(out, u32::from_le_bytes(b))),
        Datatype::Uint64 => write_each(out, bytes, |out, b| integer(out, u64::from_le_bytes(b))),
        Datatype::Int8 => write_each(out, bytes, |out, b| integer(out, i8::from_le_bytes(b))),
        Datatype::Int16 => write_each(out, bytes, |out, b| integer(out, i16::from_le_bytes(b))),
        Datatype::Int32 => write_each(out, bytes, |out, b| integer(out, i32::from_le_bytes(b))),
        Datatype::Int64 => write_each(out, bytes, |out, b| integer(out, i64::from_le_bytes(b))),
        Datatype::Fp32 => write_each(out, bytes, |out, b| float(out, f32::from_le_bytes(b))),
        Datatype::Fp64 => write_each(out, bytes, |out, b| float(out, f64::from_le_bytes(b))),
        Datatype::Fp16 | Datatype::Bf16 => return Err(NoJson::Datatype(datatype.name())),
        Datatype::Bytes => write_texts(out, bytes)?,
    }
    Ok(())
}

/// Whether [`write_values`] would write no word that JSON lacks: `NaN` and the infinities.
pub(crate) fn is_finite(datatype: Datatype, bytes: &[u8]) -> bool {
    match datatype {
        Datatype::Fp32 => bytes.as_chunks().0.iter().all(|bytes| f32::from_le_bytes(*bytes).is_finite()),
        Datatype::Fp64 => bytes.as_chunks().0.iter().all(|bytes| f64::from_le_bytes(*bytes).is_finite()),
        _ => true,
    }
}

/// Why a tensor cannot be written as JSON; goes after the tensor's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoJson {
    #[error("is {0}, which has no JSON form")]
    Datatype(&'static str),
    #[error("is not UTF-8, and has no JSON form")]
    NotText,
}

fn write_texts(out: &mut Vec<u8>, bytes: &[u8]) -> Result<(), NoJson> {
    out.push(b'[');
    for (index, element) in Elements::of(bytes).enumerate() {
        if index > 0 {
            out.push(b',');
        }
        let text =
            element.ok().and_then(|element| std::str::from_utf8(element).ok()).ok_or(NoJson::NotText)?;
        serde_json::to_writer(&mut *out, text).expect("a string serialises and a Vec takes it");
    }
    out.push(b']');
    Ok(())
}

fn write_each<const N: usize>(out: &mut Vec<u8>, bytes: &[u8], write: impl Fn(&mut Vec<u8>, [u8; N])) {
    out.push(b'[');
    for (index, element) in bytes.as_chunks::<N>().0.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write(out, *element);
    }
    out.push(b']');
}

fn integer(out: &mut Vec<u8>, value: impl itoa::Integer) {
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

fn float(out: &mut Vec<u8>, value: impl ryu::Float + Into<f64> + Copy) {
    let wide: f64 = value.into();
    if wide.is_nan() {
        out.extend_from_slice(b"NaN");
    } else if wide.is_infinite() {
        out.extend_from_slice(if wide > 0.0 { b"Infinity" } else { b"-Infinity" });
    } else {
        out.extend_from_slice(ryu::Buffer::new().format_finite(value).as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(datatype: Datatype, shape: &[u64], json: &str) -> Result<Vec<u8>, String> {
        let mut bytes = Vec::new();
        let mut parser = serde_json::Deserializer::from_str(json);
        TensorData { bytes: &mut bytes, datatype, shape }
            .deserialize(&mut parser)
            .map_err(|error| error.to_string())?;
        Ok(bytes)
    }

    fn floats(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    #[test]
    fn flat_and_nested_data_are_the_same_tensor() {
        let want = Ok(floats(&[1.0, 2.0, 3.0, 4.0]));
        assert_eq!(read(Datatype::Fp32, &[2, 2], "[1, 2.0, 3e0, 4]"), want);
        assert_eq!(read(Datatype::Fp32, &[2, 2], "[[1, 2], [3, 4]]"), want);
        assert_eq!(read(Datatype::Fp32, &[1, 2, 2], "[[[1, 2], [3, 4]]]"), want);
        assert_eq!(read(Datatype::Fp32, &[0, 4], "[]"), Ok(vec![]));
    }

    #[test]
    fn nesting_that_contradicts_the_shape_is_refused() {
        for json in [
            "[[1, 2, 3], [4]]",
            "[[1], [2], [3], [4]]",
            "[1, [2, 3, 4]]",
            "[[1, 2, 3, 4]]",
            "[[[1, 2], [3, 4]]]",
            "1",
            "[[1,2],[]]",
        ] {
            assert!(read(Datatype::Fp32, &[2, 2], json).is_err(), "{json}");
        }
    }

    #[test]
    fn too_few_and_too_many_elements_are_counted() {
        assert!(
            read(Datatype::Int32, &[3], "[1,2]")
                .unwrap_err()
                .contains("data has 2 elements, shape [3] has 3")
        );
        assert!(read(Datatype::Int32, &[3], "[1,2,3,4]").unwrap_err().contains("more than the 3 elements"));
        assert!(read(Datatype::Int32, &[u64::MAX, 2], "[1]").unwrap_err().contains("overflows"));
    }

    #[test]
    fn strings_are_the_elements_of_bytes() {
        let want = [&[2, 0, 0, 0][..], "é".as_bytes(), &[0; 4], &[3, 0, 0, 0], b"NaN"].concat();
        assert_eq!(read(Datatype::Bytes, &[3], r#"["\u00e9", "", "NaN"]"#), Ok(want.clone()));
        assert_eq!(read(Datatype::Bytes, &[3, 1], r#"[["é"], [""], ["NaN"]]"#), Ok(want));
        assert!(read(Datatype::Bytes, &[2], r#"["a"]"#).unwrap_err().contains("data has 1 elements"));
        assert!(
            read(Datatype::Bytes, &[1], r#"["a","b"]"#).unwrap_err().contains("more than the 1 elements")
        );
        let mut json = Vec::new();
        assert_eq!(write_values(&mut json, Datatype::Bytes, &[1, 0, 0, 0, 0xff]), Err(NoJson::NotText));
        assert_eq!(write_values(&mut json, Datatype::Fp16, &[0, 0]), Err(NoJson::Datatype("FP16")));
    }

    #[test]
    fn a_value_that_the_datatype_does_not_hold_is_refused() {
        for (datatype, json) in [
            (Datatype::Uint8, "[-1]"),
            (Datatype::Uint8, "[256]"),
            (Datatype::Uint16, "[65536]"),
            (Datatype::Uint32, "[4294967296]"),
            (Datatype::Uint64, "[-1]"),
            (Datatype::Uint64, "[18446744073709551616]"),
            (Datatype::Int8, "[128]"),
            (Datatype::Int64, "[9223372036854775808]"),
            (Datatype::Int32, "[1.5]"),
            (Datatype::Int32, "[true]"),
            (Datatype::Int32, "[\"NaN\"]"),
            (Datatype::Bool, "[1]"),
            (Datatype::Fp32, "[1e39]"),
            (Datatype::Fp32, "[null]"),
            (Datatype::Fp32, "[\"1\"]"),
            (Datatype::Fp16, "[1]"),
            (Datatype::Bytes, "[1]"),
            (Datatype::Bytes, "[1.5]"),
            (Datatype::Bytes, "[true]"),
            (Datatype::Bytes, "[null]"),
        ] {
            assert!(read(datatype, &[1], json).is_err(), "{} {json}", datatype.name());
        }
    }

    #[test]
    fn non_finite_words_are_read_where_they_are_values_and_nowhere_else() {
        let body = br#"{"name":"NaN -Infinity \" NaN","data":[NaN,-Infinity,Infinity,-1]}"#;
        let quoted = quote_non_finite(body).unwrap();
        assert_eq!(quoted, br#"{"name":"NaN -Infinity \" NaN","data":["NaN","-Infinity","Infinity",-1]}"#);
        assert_eq!(quote_non_finite(br#"{"data":[-1,"NaN"]}"#), None);
        let bytes = read(Datatype::Fp32, &[3], r#"["NaN","-Infinity","Infinity"]"#).unwrap();
        assert_eq!(bytes[4..], floats(&[f32::NEG_INFINITY, f32::INFINITY]));
        assert!(f32::from_le_bytes(bytes[..4].try_into().unwrap()).is_nan());
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(values in prop::collection::vec(any::<f32>(), 0..40)) {
            let mut json = Vec::new();
            write_values(&mut json, Datatype::Fp32, &floats(&values)).unwrap();
            let json = quote_non_finite(&json).unwrap_or(json);
            let bytes = read(Datatype::Fp32, &[values.len() as u64], std::str::from_utf8(&json).unwrap()).unwrap();
            for (got, want) in bytes.chunks(4).zip(&values) {
                let got = f32::from_le_bytes(got.try_into().unwrap());
                prop_assert!(got == *want || (got.is_nan() && want.is_nan()), "{got} {want}");
            }
        }

        #[test]
        fn quoting_never_panics(body in prop::collection::vec(prop::sample::select(b"\"\\NaInfity-[],1".to_vec()), 0..60)) {
            let _ = quote_non_finite(&body);
        }
    }
}
