//! TensorFlow Serving's predict: `instances` (a value or an object for each row) answered by `predictions`, `inputs` (a
//! tensor for each input) answered by `outputs`. Decides which outputs can be told row by row; knows no model.

use crate::call::Inferred;
use crate::columns::{Columns, Each};
use crate::decode::InferRequest;
use crate::dialect::{Form, Output, outputs, string};
use crate::nested::{self, write};
use crate::refusal::Refusal;
use bytes::Bytes;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::borrow::Cow;
use std::fmt;
use wire::ModelEntry;

/// The only signature that a model has here.
const SIGNATURE: &str = "serving_default";

/// Reads a body, and in which form its answer is wanted.
pub(crate) fn decode(body: &[u8], entry: &ModelEntry) -> Result<(InferRequest, Form), Refusal> {
    let empty = Columns::new(entry, &[])?;
    let (columns, each) = nested::parse(body, |parser| {
        let mut columns = empty.clone();
        let each = Body { columns: &mut columns }.deserialize(parser)?;
        Ok((columns, each))
    })?;
    let form = if each == Each::Row { Form::Rows(columns.rows()) } else { Form::Outputs };
    Ok((columns.into_request(each).0, form))
}

struct Body<'c, 'e> {
    columns: &'c mut Columns<'e>,
}

impl<'de> DeserializeSeed<'de> for Body<'_, '_> {
    type Value = Each;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Each, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Body<'_, '_> {
    type Value = Each;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with `instances` or `inputs`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Each, A::Error> {
        let mut each = None;
        while let Some(field) = fields.next_key::<Cow<'de, str>>()? {
            let form = match field.as_ref() {
                "instances" => Each::Row,
                "inputs" => Each::Whole,
                "signature_name" => {
                    let name: Option<Cow<'de, str>> = fields.next_value()?;
                    if let Some(name) = name.filter(|name| !name.is_empty() && name != SIGNATURE) {
                        let error = format_args!("no signature `{name}`, there is `{SIGNATURE}`");
                        return Err(A::Error::custom(error));
                    }
                    continue;
                }
                _ => {
                    fields.next_value::<IgnoredAny>()?;
                    continue;
                }
            };
            match each.replace(form) {
                None => {}
                Some(other) if other == form => {
                    return Err(A::Error::custom(format_args!("`{field}` occurs twice")));
                }
                Some(_) => return Err(A::Error::custom("it has both `instances` and `inputs`")),
            }
            if form == Each::Row {
                fields.next_value_seed(Instances { columns: &mut *self.columns })?;
            } else {
                fields.next_value_seed(self.columns.next())?;
            }
        }
        each.ok_or_else(|| A::Error::custom("it has neither `instances` nor `inputs`"))
    }
}

struct Instances<'c, 'e> {
    columns: &'c mut Columns<'e>,
}

impl<'de> DeserializeSeed<'de> for Instances<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Instances<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of instances")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while let Some(()) = items.next_element_seed(self.columns.next())? {}
        if self.columns.rows() == 0 { Err(A::Error::custom("`instances` is empty")) } else { Ok(()) }
    }
}

/// Writes an answer.
pub(crate) fn encode(form: Form, inferred: &Inferred<'_>) -> Result<Bytes, Refusal> {
    let mut outputs = outputs(inferred)?;
    let mut json = Vec::with_capacity(64 + 4 * inferred.payload.len().min(1 << 20));
    match form {
        Form::Rows(rows) => {
            if let Some(output) = outputs.iter().find(|output| output.shape.first() != Some(&rows)) {
                return Err(Refusal::Invalid(format!(
                    "output `{}` of shape {:?} is not one row for each instance: ask with `inputs`",
                    output.name, output.shape
                )));
            }
            json.extend_from_slice(b"{\"predictions\":[");
            for row in 0..rows {
                if row > 0 {
                    json.push(b',');
                }
                put(&mut json, &mut outputs, 1);
            }
            json.push(b']');
        }
        Form::Row | Form::Outputs => {
            json.extend_from_slice(b"{\"outputs\":");
            put(&mut json, &mut outputs, 0);
        }
    }
    json.push(b'}');
    Ok(json.into())
}

/// Writes the next value of each output, of which the first so many dimensions have been entered: bare if it is the only
/// one, else by name.
fn put(json: &mut Vec<u8>, outputs: &mut [Output<'_>], entered: usize) {
    if let [Output { datatype, shape, bytes, .. }] = outputs {
        write(json, *datatype, &shape[entered..], bytes);
        return;
    }
    by_name(json, outputs, entered);
}

/// Writes the next value of each output by its name.
pub(crate) fn by_name(json: &mut Vec<u8>, outputs: &mut [Output<'_>], entered: usize) {
    json.push(b'{');
    for (index, Output { name, datatype, shape, bytes }) in outputs.iter_mut().enumerate() {
        if index > 0 {
            json.push(b',');
        }
        string(json, name);
        json.push(b':');
        write(json, *datatype, &shape[entered..], bytes);
    }
    json.push(b'}');
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use wire::{Datatype, Layout, Reply, TensorMeta, TensorSpec};

    /// A model of two inputs: `ids`, two of them in each row, and `weight`.
    pub(crate) fn entry() -> ModelEntry {
        let spec = |name: &str, datatype: Datatype, shape: &[i64]| TensorSpec {
            name: name.into(),
            datatype: datatype as u32,
            shape: shape.into(),
            ..TensorSpec::default()
        };
        ModelEntry {
            name: "m".into(),
            inputs: vec![spec("ids", Datatype::Int32, &[-1, 2]), spec("weight", Datatype::Uint8, &[-1])],
            max_batch: 8,
            ..ModelEntry::default()
        }
    }

    /// A reply with these outputs of bytes.
    pub(crate) fn reply(outputs: &[(&str, &[u64], &[u8])]) -> (Reply, Bytes) {
        let mut layout = Layout::default();
        let (mut reply, mut payload) = (Reply::default(), Vec::new());
        for (name, shape, bytes) in outputs {
            let offset = layout.place(bytes.len());
            payload.resize(offset, 0);
            payload.extend_from_slice(bytes);
            let (datatype, shape) = (Datatype::Uint8 as u32, shape.to_vec());
            let (name, offset) = ((*name).to_owned(), offset as u64);
            reply.outputs.push(TensorMeta { name, datatype, shape, offset, ..TensorMeta::default() });
        }
        (reply, payload.into())
    }

    fn answer(form: Form, outputs: &[(&str, &[u64], &[u8])]) -> Result<String, String> {
        let (reply, payload) = reply(outputs);
        let inferred = Inferred { model: "m", version: 1, entry: None, reply: &reply, payload: &payload };
        let body = encode(form, &inferred).map_err(|refusal| refusal.to_string())?;
        Ok(String::from_utf8(body.into()).unwrap())
    }

    fn read(body: &str) -> Result<(InferRequest, Form), String> {
        decode(body.as_bytes(), &entry()).map_err(|refusal| refusal.to_string())
    }

    #[test]
    fn rows_and_columns_are_the_same_tensors() {
        let rows = r#"{"signature_name": "serving_default", "instances": [{"ids": [1, 2], "weight": 5}, {"ids": [3, 4], "weight": 6}]}"#;
        let (rows, form) = read(rows).unwrap();
        assert_eq!(form, Form::Rows(2));
        let (columns, form) =
            read(r#"{"inputs": {"ids": [[1, 2], [3, 4]], "weight": [5, 6]}, "x": {}}"#).unwrap();
        assert_eq!((columns, form), (rows, Form::Outputs));
        let (bare, _) = read(r#"{"instances": [[1, 2], [3, 4]]}"#).unwrap();
        assert_eq!(read(r#"{"inputs": [[1, 2], [3, 4]]}"#).unwrap().0, bare);
        assert_eq!(bare.inputs[0].shape, [2, 2]);
    }

    #[test]
    fn a_body_that_makes_no_sense_says_why() {
        for (body, says) in [
            ("", "EOF"),
            ("[]", "expected an object with `instances` or `inputs`"),
            ("{}", "it has neither `instances` nor `inputs`"),
            (r#"{"instances": [1], "inputs": [1]}"#, "it has both `instances` and `inputs`"),
            (r#"{"instances": [[1, 2]], "instances": [[1, 2]]}"#, "`instances` occurs twice"),
            (r#"{"instances": {}}"#, "expected an array of instances"),
            (r#"{"instances": []}"#, "`instances` is empty"),
            (r#"{"signature_name": "classify", "inputs": [1]}"#, "no signature `classify`"),
            (r#"{"signature_name": 7, "inputs": [1]}"#, "expected a string"),
            (r#"{"instances": [[1, 2], [3]]}"#, "rows must be of one size"),
            (r#"{"instances": [[1, 2]]} x"#, "trailing characters"),
        ] {
            let error = read(body).unwrap_err();
            assert!(error.contains(says), "{body}: {error}");
        }
    }

    #[test]
    fn one_output_is_bare_and_several_have_their_names() {
        let one: (&str, &[u64], &[u8]) = ("y", &[2, 2], &[1, 2, 3, 4]);
        let other: (&str, &[u64], &[u8]) = ("z", &[2], &[5, 6]);
        for (form, outputs, says) in [
            (Form::Rows(2), &[one][..], r#"{"predictions":[[1,2],[3,4]]}"#),
            (Form::Rows(2), &[other], r#"{"predictions":[5,6]}"#),
            (Form::Rows(2), &[one, other], r#"{"predictions":[{"y":[1,2],"z":5},{"y":[3,4],"z":6}]}"#),
            (Form::Outputs, &[one], r#"{"outputs":[[1,2],[3,4]]}"#),
            (Form::Outputs, &[one, other], r#"{"outputs":{"y":[[1,2],[3,4]],"z":[5,6]}}"#),
        ] {
            assert_eq!(answer(form, outputs).as_deref(), Ok(says));
        }
    }

    #[test]
    fn an_output_that_has_no_row_for_each_instance_is_not_told_row_by_row() {
        let outputs: &[(&str, &[u64], &[u8])] = &[("y", &[1], &[1])];
        assert!(answer(Form::Rows(2), outputs).unwrap_err().contains("ask with `inputs`"));
        assert_eq!(answer(Form::Outputs, outputs).as_deref(), Ok(r#"{"outputs":[1]}"#));
    }
}
