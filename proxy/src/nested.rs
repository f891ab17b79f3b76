//! Tensors as nested JSON arrays, in protocols that send no shape: it is what the nesting says. Decides only whether
//! arrays that stand beside each other are of one size; what a value may be is decided in [`crate::tensor_json`].
//! BYTES are strings, or `{"b64": ..}` where they are no text.

use crate::dialect::string;
use crate::refusal::Refusal;
use crate::tensor_json::{Values, quote_non_finite, write_values};
use base64::Engine;
use base64::prelude::BASE64_STANDARD as STANDARD;
use half::{bf16, f16};
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::borrow::Cow;
use std::fmt;
use wire::{Datatype, Elements, push_element};

/// The only key of an object that stands for bytes.
pub(crate) const B64: &str = "b64";

/// The values of one tensor, appended in the order in which they come.
#[derive(Clone, Debug)]
pub(crate) struct Nested {
    bytes: Vec<u8>,
    datatype: Datatype,
    /// How many values the arrays at each depth have, once one of them has ended.
    sizes: Vec<Option<u64>>,
    has_values: bool,
}

impl Nested {
    pub(crate) fn new(datatype: Datatype) -> Self {
        Self { bytes: Vec::new(), datatype, sizes: Vec::new(), has_values: false }
    }

    /// Reads a value or an array of them; several in a row must nest alike.
    pub(crate) fn next(&mut self) -> Value<'_> {
        Value { nested: self, depth: 0 }
    }

    /// An element that came as it is.
    pub(crate) fn push(&mut self, element: &[u8]) {
        push_element(&mut self.bytes, element);
        self.has_values = true;
    }

    /// What each element is.
    pub(crate) fn datatype(&self) -> Datatype {
        self.datatype
    }

    /// The size at each depth, and all elements in order.
    pub(crate) fn into_parts(self) -> (Vec<u64>, Vec<u8>) {
        (
            self.sizes
                .into_iter()
                .map(|size| size.expect("every array that was entered has ended"))
                .collect(),
            self.bytes,
        )
    }
}

/// The next value of a [`Nested`], so many arrays deep.
pub(crate) struct Value<'n> {
    nested: &'n mut Nested,
    depth: usize,
}

impl Value<'_> {
    /// Checks that a single value may stand here, and gives what takes it.
    fn single<E: Error>(&mut self) -> Result<Values<'_>, E> {
        if self.nested.sizes.len() != self.depth {
            return Err(E::custom(format_args!("a value stands beside arrays, {} arrays deep", self.depth)));
        }
        self.nested.has_values = true;
        Ok(Values::anywhere(&mut self.nested.bytes, self.nested.datatype))
    }
}

impl<'de> DeserializeSeed<'de> for Value<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Value<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} values", self.nested.datatype.name())
    }

    fn visit_u64<E: Error>(mut self, value: u64) -> Result<(), E> {
        self.single()?.visit_u64(value).map(drop)
    }

    fn visit_i64<E: Error>(mut self, value: i64) -> Result<(), E> {
        self.single()?.visit_i64(value).map(drop)
    }

    fn visit_f64<E: Error>(mut self, value: f64) -> Result<(), E> {
        self.single()?.visit_f64(value).map(drop)
    }

    fn visit_bool<E: Error>(mut self, value: bool) -> Result<(), E> {
        self.single()?.visit_bool(value).map(drop)
    }

    fn visit_str<E: Error>(mut self, value: &str) -> Result<(), E> {
        self.single()?.visit_str(value).map(drop)
    }

    fn visit_unit<E: Error>(mut self) -> Result<(), E> {
        self.single()?.visit_unit().map(drop)
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut fields: A) -> Result<(), A::Error> {
        let misfit = || A::Error::custom("an object does not fit BYTES, unless it is {\"b64\": ..}");
        if self.nested.datatype != Datatype::Bytes {
            let name = self.nested.datatype.name();
            return Err(A::Error::custom(format_args!("an object does not fit {name}")));
        }
        if fields.next_key::<Cow<'de, str>>()?.as_deref() != Some(B64) {
            return Err(misfit());
        }
        let text: Cow<'de, str> = fields.next_value()?;
        if fields.next_key::<IgnoredAny>()?.is_some() {
            return Err(misfit());
        }
        let element = STANDARD.decode(text.as_bytes());
        let element = element.map_err(|error| A::Error::custom(format_args!("b64: {error}")))?;
        self.single::<A::Error>()?;
        push_element(&mut self.nested.bytes, &element);
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let Self { nested, depth } = self;
        if nested.sizes.len() == depth {
            if nested.has_values {
                return Err(A::Error::custom(format_args!(
                    "an array stands beside values, {depth} arrays deep"
                )));
            }
            nested.sizes.push(None);
        }
        let mut count = 0;
        while let Some(()) = items.next_element_seed(Value { nested: &mut *nested, depth: depth + 1 })? {
            count += 1;
        }
        match *nested.sizes[depth].get_or_insert(count) {
            size if size == count => Ok(()),
            size => Err(A::Error::custom(format_args!(
                "an array of {count} stands beside one of {size}: rows must be of one size"
            ))),
        }
    }
}

/// Reads a whole body with `read`; again with the words that JSON lacks between quotes, if it fails and has such.
pub(crate) fn parse<T>(
    body: &[u8],
    read: impl Fn(&mut serde_json::Deserializer<serde_json::de::SliceRead<'_>>) -> serde_json::Result<T>,
) -> Result<T, Refusal> {
    let whole = |body: &[u8]| {
        let mut parser = serde_json::Deserializer::from_slice(body);
        let value = read(&mut parser)?;
        parser.end()?;
        Ok(value)
    };
    match whole(body) {
        Err(error) => match quote_non_finite(body) {
            Some(quoted) => whole(&quoted),
            None => Err(error),
        },
        result => result,
    }
    .map_err(|error: serde_json::Error| Refusal::Invalid(format!("request body: {error}")))
}

/// Appends a tensor of this shape as nested arrays, or as the bare value if it has no dimensions. Its bytes are taken
/// from the front of `bytes`, which must have them.
pub(crate) fn write(out: &mut Vec<u8>, datatype: Datatype, shape: &[u64], bytes: &mut &[u8]) {
    match shape {
        [] => {
            let at = out.len();
            write_row(out, datatype, take(datatype, 1, bytes));
            // A list of one without its brackets.
            out.pop();
            out.remove(at);
        }
        [size] => write_row(out, datatype, take(datatype, *size as usize, bytes)),
        // However large the others are said to be, there is nothing to write.
        _ if shape.contains(&0) => out.extend_from_slice(b"[]"),
        [size, rest @ ..] => {
            out.push(b'[');
            for row in 0..*size {
                if row > 0 {
                    out.push(b',');
                }
                write(out, datatype, rest, bytes);
            }
            out.push(b']');
        }
    }
}

/// Floats of 16 bits have no JSON form of their own; here, where there is no binary one, they become wider.
fn write_row(out: &mut Vec<u8>, datatype: Datatype, bytes: &[u8]) {
    let written = match datatype {
        Datatype::Fp16 | Datatype::Bf16 => {
            let wide = floats(datatype, bytes).into_iter().flatten().flat_map(f32::to_le_bytes);
            write_values(out, Datatype::Fp32, &wide.collect::<Vec<u8>>())
        }
        Datatype::Bytes => {
            write_bytes(out, bytes);
            Ok(())
        }
        Datatype::Bool
        | Datatype::Uint8
        | Datatype::Uint16
        | Datatype::Uint32
        | Datatype::Uint64
        | Datatype::Int8
        | Datatype::Int16
        | Datatype::Int32
        | Datatype::Int64
        | Datatype::Fp32
        | Datatype::Fp64 => write_values(out, datatype, bytes),
    };
    written.expect("all of these have a JSON form");
}

/// Strings where they are text.
fn write_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.push(b'[');
    for (index, element) in Elements::of(bytes).flatten().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        match std::str::from_utf8(element) {
            Ok(text) => string(out, text),
            Err(_) => {
                out.extend_from_slice(b"{\"b64\":");
                string(out, &STANDARD.encode(element));
                out.push(b'}');
            }
        }
    }
    out.push(b']');
}

/// Elements as single floats, where they are floats of any width.
pub(crate) fn floats(datatype: Datatype, bytes: &[u8]) -> Option<Vec<f32>> {
    fn each<const N: usize>(bytes: &[u8], read: impl Fn([u8; N]) -> f32) -> Vec<f32> {
        bytes.as_chunks::<N>().0.iter().map(|element| read(*element)).collect()
    }
    match datatype {
        Datatype::Fp16 => Some(each(bytes, |element| f16::from_le_bytes(element).to_f32())),
        Datatype::Bf16 => Some(each(bytes, |element| bf16::from_le_bytes(element).to_f32())),
        Datatype::Fp32 => Some(each(bytes, f32::from_le_bytes)),
        Datatype::Fp64 => Some(each(bytes, |element| f64::from_le_bytes(element) as f32)),
        Datatype::Bool
        | Datatype::Uint8
        | Datatype::Uint16
        | Datatype::Uint32
        | Datatype::Uint64
        | Datatype::Int8
        | Datatype::Int16
        | Datatype::Int32
        | Datatype::Int64
        | Datatype::Bytes => None,
    }
}

/// The next so many elements.
fn take<'b>(datatype: Datatype, elements: usize, bytes: &mut &'b [u8]) -> &'b [u8] {
    let length = match datatype.size() {
        Some(size) => elements * size,
        None => {
            let lengths = Elements::of(bytes).take(elements).map(|element| element.map_or(0, <[u8]>::len));
            lengths.map(|length| length + wire::elements::LENGTH_BYTES).sum()
        }
    };
    let (taken, rest) = bytes.split_at(length);
    *bytes = rest;
    taken
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(datatype: Datatype, json: &str) -> Result<(Vec<u64>, Vec<u8>), String> {
        let nested = parse(json.as_bytes(), |parser| {
            let mut nested = Nested::new(datatype);
            nested.next().deserialize(parser)?;
            Ok(nested)
        });
        nested.map(Nested::into_parts).map_err(|refusal| refusal.to_string())
    }

    fn written(datatype: Datatype, shape: &[u64], mut bytes: &[u8]) -> String {
        let mut out = Vec::new();
        write(&mut out, datatype, shape, &mut bytes);
        assert!(bytes.is_empty(), "all is written");
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_shape_is_what_the_nesting_says() {
        for (json, shape) in [
            ("7", vec![]),
            ("[]", vec![0]),
            ("[1,2,3]", vec![3]),
            ("[[1,2],[3,4],[5,6]]", vec![3, 2]),
            ("[[[1]],[[2]]]", vec![2, 1, 1]),
        ] {
            let (got, bytes) = read(Datatype::Uint8, json).unwrap();
            assert_eq!(got, shape, "{json}");
            assert_eq!(written(Datatype::Uint8, &got, &bytes), json);
        }
        assert_eq!(read(Datatype::Uint8, "[[],[]]"), Ok((vec![2, 0], vec![])));
        assert_eq!(written(Datatype::Uint8, &[u64::MAX, 0], &[]), "[]");
    }

    #[test]
    fn rows_that_differ_are_refused() {
        for json in
            ["[[1,2],[3]]", "[1,[2]]", "[[1],2]", "[[],1]", "[[[1]],[2]]", "[[],[[]],[1]]", "[[1],[]]"]
        {
            let error = read(Datatype::Uint8, json).unwrap_err();
            assert!(error.contains("stands beside"), "{json}: {error}");
        }
        assert!(
            read(Datatype::Uint8, "[[1,2],[3]]")
                .unwrap_err()
                .contains("an array of 1 stands beside one of 2")
        );
    }

    #[test]
    fn what_is_no_value_of_the_datatype_is_refused_by_name() {
        for json in ["[256]", "[\"a\"]", "[null]", "[{}]", "[true]", "[0.5]"] {
            assert!(read(Datatype::Uint8, json).unwrap_err().contains("does not fit UINT8"), "{json}");
        }
        let deep = format!("{}{}", "[".repeat(1_000_000), "]".repeat(1_000_000));
        assert!(read(Datatype::Uint8, &deep).unwrap_err().contains("recursion limit"));
    }

    #[test]
    fn words_that_json_lacks_are_read_and_written() {
        let (shape, bytes) = read(Datatype::Fp32, "[[NaN,-Infinity]]").unwrap();
        assert_eq!(written(Datatype::Fp32, &shape, &bytes), "[[NaN,-Infinity]]");
    }

    #[test]
    fn floats_of_16_bits_are_written_as_wider_ones() {
        let half = [f16::from_f32(0.5).to_le_bytes(), f16::from_f32(-2.0).to_le_bytes()].concat();
        assert_eq!(written(Datatype::Fp16, &[2, 1], &half), "[[0.5],[-2.0]]");
        assert_eq!(written(Datatype::Bf16, &[], &bf16::from_f32(0.5).to_le_bytes()), "0.5");
    }

    #[test]
    fn bytes_are_strings_or_base64() {
        let (shape, bytes) = read(Datatype::Bytes, r#"[["a", {"b64": "/w=="}], ["", "b"]]"#).unwrap();
        assert_eq!(shape, [2, 2]);
        assert_eq!(written(Datatype::Bytes, &shape, &bytes), r#"[["a",{"b64":"/w=="}],["","b"]]"#);
        for json in
            [r#"{"b64": "?"}"#, r#"{"b64": 7}"#, r#"{"b65": "/w=="}"#, r#"{"b64": "", "x": 1}"#, "{}", "[1]"]
        {
            assert!(read(Datatype::Bytes, json).is_err(), "{json}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(rows in 1_usize..5, columns in 1_usize..5, seed: u32) {
            let values = (0..(rows * columns) as u32).map(|at| seed.wrapping_mul(at + 1) as i32);
            let bytes: Vec<u8> = values.flat_map(i32::to_le_bytes).collect();
            let shape = vec![rows as u64, columns as u64];
            let json = written(Datatype::Int32, &shape, &bytes);
            prop_assert_eq!(read(Datatype::Int32, &json), Ok((shape, bytes)));
        }
    }
}
