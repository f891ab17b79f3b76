//! The inputs of a model, filled by name, in protocols that say neither datatype nor shape: the datatype is the
//! declared one, the shape is what the values nest like. Decides which input a value is for; whether its shape fits is
//! the engine's to say.

use crate::decode::InferRequest;
use crate::nested::{B64, Nested};
use crate::refusal::Refusal;
use serde::de::value::{
    BoolDeserializer, F64Deserializer, I64Deserializer, MapAccessDeserializer, MapDeserializer,
    StrDeserializer, U64Deserializer, UnitDeserializer,
};
use serde::de::{DeserializeSeed, Deserializer, Error, IntoDeserializer, MapAccess, SeqAccess, Visitor};
use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt;
use wire::{Datatype, Layout, ModelEntry, TensorMeta};

/// What has come for each input of a model.
#[derive(Clone, Debug)]
pub(crate) struct Columns<'e> {
    entry: &'e ModelEntry,
    /// Other names of the first input.
    aliases: &'static [&'static str],
    columns: Vec<Nested>,
    /// Values that have come for each: one for each row, or one whole tensor.
    came: Vec<u64>,
    rows: u64,
}

/// What one of the values that came for an input is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Each {
    /// A row; together they are the tensor.
    Row,
    /// The tensor.
    Whole,
    /// The tensor, or the only row of it.
    WholeOrRow,
}

impl<'e> Columns<'e> {
    /// Nothing has come yet. An error if the model declares no datatypes.
    pub(crate) fn new(entry: &'e ModelEntry, aliases: &'static [&'static str]) -> Result<Self, Refusal> {
        let declared = entry.inputs.iter().map(|spec| Datatype::from_wire(spec.datatype).map(Nested::new));
        let columns = declared.collect::<Option<Vec<_>>>().ok_or_else(|| {
            Refusal::Invalid(format!(
                "model `{0}` has no model.yaml that says what it takes: send tensors to /v2/models/{0}/infer",
                entry.name
            ))
        })?;
        let came = vec![0; columns.len()];
        Ok(Self { entry, aliases, columns, came, rows: 0 })
    }

    /// Reads one value for each input, as an object by their names, or a bare one for the first.
    pub(crate) fn next(&mut self) -> Given<'_, 'e> {
        Given { columns: self }
    }

    /// Reads the next value of the input of this name.
    pub(crate) fn named<E: Error>(&mut self, name: &str) -> Result<Of<'_, 'e>, E> {
        let at = self.position(name)?;
        Ok(Of { columns: self, at })
    }

    /// Whether the first input is one of bytes.
    pub(crate) fn takes_bytes(&self) -> bool {
        self.columns.first().is_some_and(|first| first.datatype() == Datatype::Bytes)
    }

    /// A value of the first input that came as it is.
    pub(crate) fn push(&mut self, element: &[u8]) {
        self.columns[0].push(element);
        self.came[0] += 1;
        self.rows += 1;
    }

    /// Whether an object of this key is a value of the first input, and not an object of values by name.
    fn is_b64(&self, key: &str) -> bool {
        key == B64 && self.takes_bytes() && !self.entry.inputs.iter().any(|spec| spec.name == key)
    }

    /// Whether it is a name of the first input.
    pub(crate) fn is_first(&self, name: &str) -> bool {
        self.is_alias(name) || self.entry.inputs.first().is_some_and(|spec| spec.name == name)
    }

    /// Whether it is another name of the first input.
    pub(crate) fn is_alias(&self, name: &str) -> bool {
        self.aliases.contains(&name) && !self.entry.inputs.iter().any(|spec| spec.name == name)
    }

    /// Rows that have come.
    pub(crate) fn rows(&self) -> u64 {
        self.rows
    }

    /// The request, and whether its tensors are single rows to which the dimension of the batch was added.
    pub(crate) fn into_request(self, each: Each) -> (InferRequest, bool) {
        let mut request = InferRequest::default();
        let mut payload = Vec::new();
        let mut layout = Layout::default();
        let mut is_row = true;
        for ((spec, nested), came) in self.entry.inputs.iter().zip(self.columns).zip(self.came) {
            if came == 0 {
                continue; // it may be one that the engine makes itself
            }
            let datatype = nested.datatype();
            let (mut shape, bytes) = nested.into_parts();
            let lacks_rows = spec.shape.first() == Some(&-1) && spec.shape.len() == shape.len() + 1;
            match each {
                Each::Row => shape.insert(0, self.rows),
                Each::WholeOrRow if lacks_rows => shape.insert(0, 1),
                Each::Whole | Each::WholeOrRow => is_row = false,
            }
            let offset = layout.place(bytes.len());
            let length = if datatype == Datatype::Bytes { bytes.len() as u64 } else { 0 };
            if offset == 0 {
                payload = bytes;
            } else {
                payload.resize(offset, 0);
                payload.extend_from_slice(&bytes);
            }
            let (name, offset) = (spec.name.clone(), offset as u64);
            let datatype = datatype as u32;
            request.inputs.push(TensorMeta { name, datatype, shape, offset, bytes: length });
        }
        request.payload = payload.into();
        (request, is_row)
    }

    fn position<E: Error>(&self, name: &str) -> Result<usize, E> {
        let named = self.entry.inputs.iter().position(|spec| spec.name == name);
        let first = || (self.aliases.contains(&name) && !self.columns.is_empty()).then_some(0);
        named.or_else(first).ok_or_else(|| {
            let known: Vec<_> = self.entry.inputs.iter().map(|spec| format!("`{}`", spec.name)).collect();
            let known = if known.is_empty() { "none".into() } else { known.join(", ") };
            E::custom(format_args!("model `{}` has no input `{name}`, there is {known}", self.entry.name))
        })
    }

    /// Reads the next value of the input at this place.
    fn read<'de, D: Deserializer<'de>>(&mut self, at: usize, value: D) -> Result<(), D::Error> {
        let name = || &self.entry.inputs[at].name;
        match self.came[at].cmp(&self.rows) {
            Ordering::Equal => {}
            Ordering::Greater => return Err(D::Error::custom(format_args!("`{}` occurs twice", name()))),
            Ordering::Less => {
                return Err(D::Error::custom(format_args!(
                    "{} has `{}`, others lack it",
                    self.row(),
                    name()
                )));
            }
        }
        self.came[at] += 1;
        let read = self.columns[at].next().deserialize(value);
        read.map_err(|error| D::Error::custom(format_args!("input `{}`: {error}", name())))
    }

    fn end_row<E: Error>(&mut self) -> Result<(), E> {
        if let Some(at) = self.came.iter().position(|came| (1..=self.rows).contains(came)) {
            let name = &self.entry.inputs[at].name;
            return Err(E::custom(format_args!("{} lacks `{name}`, others have it", self.row())));
        }
        self.rows += 1;
        Ok(())
    }

    fn row(&self) -> String {
        format!("the value at index {}", self.rows)
    }
}

/// The next value of each input.
pub(crate) struct Given<'c, 'e> {
    columns: &'c mut Columns<'e>,
}

impl Given<'_, '_> {
    /// A value without a name.
    fn bare<'de, D: Deserializer<'de>>(self, value: D) -> Result<(), D::Error> {
        if self.columns.columns.is_empty() {
            let name = &self.columns.entry.name;
            return Err(D::Error::custom(format_args!("model `{name}` takes no inputs")));
        }
        self.columns.read(0, value)?;
        self.columns.end_row()
    }
}

impl<'de> DeserializeSeed<'de> for Given<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Given<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("values, or an object of them by input")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<(), A::Error> {
        while let Some(name) = fields.next_key::<Cow<'de, str>>()? {
            if self.columns.is_b64(&name) {
                let text: Cow<'de, str> = fields.next_value()?;
                let value = MapDeserializer::<_, A::Error>::new(std::iter::once((B64, text.as_ref())));
                self.columns.read(0, MapAccessDeserializer::new(value))?;
                continue;
            }
            fields.next_value_seed(self.columns.named(&name)?)?;
        }
        self.columns.end_row()
    }

    fn visit_seq<A: SeqAccess<'de>>(self, items: A) -> Result<(), A::Error> {
        self.bare(serde::de::value::SeqAccessDeserializer::new(items))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        self.bare::<U64Deserializer<E>>(value.into_deserializer())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<(), E> {
        self.bare::<I64Deserializer<E>>(value.into_deserializer())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<(), E> {
        self.bare::<F64Deserializer<E>>(value.into_deserializer())
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<(), E> {
        self.bare::<BoolDeserializer<E>>(value.into_deserializer())
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<(), E> {
        self.bare::<StrDeserializer<'_, E>>(value.into_deserializer())
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        self.bare::<UnitDeserializer<E>>(().into_deserializer())
    }
}

/// The next value of one input.
pub(crate) struct Of<'c, 'e> {
    columns: &'c mut Columns<'e>,
    at: usize,
}

impl<'de> DeserializeSeed<'de> for Of<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        self.columns.read(self.at, deserializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dialect::tf_serving::tests::entry;
    use crate::nested::parse;

    /// Each JSON text is one value for each input.
    fn read(each: Each, texts: &[&str]) -> Result<(InferRequest, bool), String> {
        let entry = entry();
        let mut columns = Columns::new(&entry, &["data"]).unwrap();
        for text in texts {
            let mut parser = serde_json::Deserializer::from_str(text);
            columns.next().deserialize(&mut parser).map_err(|error| error.to_string())?;
        }
        Ok(columns.into_request(each))
    }

    fn shapes(request: &InferRequest) -> Vec<(&str, &[u64], u64)> {
        request.inputs.iter().map(|input| (input.name.as_str(), &input.shape[..], input.offset)).collect()
    }

    #[test]
    fn rows_are_put_together_and_whole_tensors_are_as_they_came() {
        let rows = [r#"{"ids": [1, 2], "weight": 7}"#, r#"{"weight": 8, "ids": [3, 4]}"#];
        let (request, _) = read(Each::Row, &rows).unwrap();
        assert_eq!(shapes(&request), [("ids", &[2, 2][..], 0), ("weight", &[2][..], 64)]);
        assert_eq!(request.payload[..16], [1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0]);
        assert_eq!(request.payload[64..], [7, 8]);
        let (whole, is_row) = read(Each::Whole, &[r#"{"weight": [7, 8], "ids": [[1, 2], [3, 4]]}"#]).unwrap();
        assert_eq!((whole, is_row), (request, false));
    }

    #[test]
    fn a_value_without_a_name_is_the_first_inputs() {
        let (request, _) = read(Each::Row, &["[1, 2]", "[3, 4]"]).unwrap();
        assert_eq!(shapes(&request), [("ids", &[2, 2][..], 0)]);
        let (alias, _) = read(Each::Row, &[r#"{"data": [1, 2]}"#, r#"{"ids": [3, 4]}"#]).unwrap();
        assert_eq!(alias, request);
    }

    #[test]
    fn a_single_row_gets_its_dimension_where_it_may_be_left_out() {
        let (request, is_row) = read(Each::WholeOrRow, &[r#"{"ids": [1, 2], "weight": 7}"#]).unwrap();
        assert_eq!(
            (shapes(&request), is_row),
            (vec![("ids", &[1, 2][..], 0), ("weight", &[1][..], 64)], true)
        );
        let (request, is_row) = read(Each::WholeOrRow, &["[[1, 2], [3, 4]]"]).unwrap();
        assert_eq!((shapes(&request), is_row), (vec![("ids", &[2, 2][..], 0)], false));
        let (request, is_row) = read(Each::Whole, &["[1, 2]"]).unwrap();
        assert_eq!((shapes(&request), is_row), (vec![("ids", &[2][..], 0)], false));
    }

    #[test]
    fn what_does_not_agree_with_the_model_or_itself_is_named() {
        for (texts, says) in [
            (&[r#"{"idz": [1]}"#][..], "model `m` has no input `idz`, there is `ids`, `weight`"),
            (&[r#"{"ids": [1], "ids": [2]}"#], "`ids` occurs twice"),
            (&[r#"{"ids": [1], "data": [2]}"#], "`ids` occurs twice"),
            (&[r#"{"ids": [1]}"#, r#"{"weight": 1}"#], "the value at index 1 has `weight`, others lack it"),
            (&[r#"{"ids": [1], "weight": 1}"#, "[2]"], "the value at index 1 lacks `weight`, others have it"),
            (&["[1, 2]", "[3]"], "input `ids`: an array of 1 stands beside one of 2"),
            (&[r#"{"ids": {"b": 1}}"#], "input `ids`: an object does not fit INT32"),
            (&["null"], "input `ids`: null does not fit INT32"),
        ] {
            let error = read(Each::Row, texts).unwrap_err();
            assert!(error.contains(says), "{texts:?}: {error}");
        }
        let undeclared = ModelEntry { inputs: vec![wire::TensorSpec::default()], ..entry() };
        let refusal = Columns::new(&undeclared, &[]).unwrap_err().to_string();
        assert!(refusal.contains("has no model.yaml"), "{refusal}");
        let none = ModelEntry { inputs: vec![], ..entry() };
        let refusal = parse(b"[1]", |parser| Columns::new(&none, &[]).unwrap().next().deserialize(parser));
        assert!(refusal.unwrap_err().to_string().contains("model `m` takes no inputs"));
    }
}
