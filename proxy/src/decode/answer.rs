//! The body of another server's answer, from bytes to tensors as the engine would give them, so that it can be compared. What
//! is no answer of the Open Inference Protocol is nothing.

use super::{InputsSeed, Payload};
use crate::tensor_json::quote_non_finite;
use bytes::Bytes;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use std::borrow::Cow;
use std::fmt;
use wire::{Datatype, TensorMeta};

/// Outputs, and the bytes in which they lie. `json_len` is how much of the body is JSON, where tensors follow as bytes.
pub(crate) fn outputs(body: &Bytes, json_len: Option<usize>) -> Option<(Vec<TensorMeta>, Bytes)> {
    let json_len = json_len.unwrap_or(body.len());
    let (json, binary) = (body.get(..json_len)?, body.slice(json_len..));
    parse(json, &binary).ok().or_else(|| parse(&quote_non_finite(json)?, &binary).ok())
}

/// Which output of an answer is of a datatype that cannot be read here, be it in JSON or at all.
pub(crate) fn foreign(body: &Bytes, json_len: Option<usize>) -> Option<String> {
    #[derive(Deserialize)]
    struct Head {
        outputs: Vec<Output>,
    }
    #[derive(Deserialize)]
    struct Output {
        name: String,
        datatype: String,
        data: Option<IgnoredAny>,
    }
    let json = body.get(..json_len.unwrap_or(body.len()))?;
    let quoted = || quote_non_finite(json).map(|json| serde_json::from_slice(&json).ok());
    let head: Head = serde_json::from_slice(json).ok().or_else(|| quoted()?)?;
    let mut outputs = head.outputs.into_iter();
    outputs.find_map(|Output { name, datatype, data }| match Datatype::from_name(&datatype) {
        None => Some(format!("output `{name}` is {datatype}")),
        Some(Datatype::Fp16 | Datatype::Bf16) if data.is_some() => {
            Some(format!("output `{name}` is {datatype} in JSON"))
        }
        Some(_) => None,
    })
}

fn parse(json: &[u8], binary: &Bytes) -> Result<(Vec<TensorMeta>, Bytes), serde_json::Error> {
    let mut parser = serde_json::Deserializer::from_slice(json);
    let mut payload = Payload::new(binary.clone());
    let outputs = Answer(&mut payload).deserialize(&mut parser)?;
    parser.end()?;
    Ok((outputs, payload.take()))
}

/// An object with `outputs`, which are written as inputs are.
struct Answer<'p, 's>(&'p mut Payload<'s>);

impl<'de> DeserializeSeed<'de> for Answer<'_, '_> {
    type Value = Vec<TensorMeta>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Answer<'_, '_> {
    type Value = Vec<TensorMeta>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with `outputs`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Self::Value, A::Error> {
        use serde::de::Error;
        let mut outputs = None;
        while let Some(field) = fields.next_key::<Cow<'de, str>>()? {
            if field == "outputs" && outputs.is_none() {
                outputs = Some(fields.next_value_seed(InputsSeed { payload: &mut *self.0 })?);
            } else {
                fields.next_value::<IgnoredAny>()?;
            }
        }
        outputs.ok_or_else(|| A::Error::missing_field("outputs"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::Datatype;

    #[test]
    fn outputs_come_as_json_or_behind_it() {
        let json =
            r#"{"model_name":"m","outputs":[{"name":"y","datatype":"FP32","shape":[1,2],"data":[1.5,NaN]}]}"#;
        let (outputs, payload) = outputs(&Bytes::from(json), None).unwrap();
        assert_eq!((outputs[0].name.as_str(), outputs[0].datatype), ("y", Datatype::Fp32 as u32));
        assert_eq!(payload[..4], 1.5f32.to_le_bytes());
        let head = r#"{"outputs":[{"name":"y","datatype":"INT64","shape":[1],"parameters":{"binary_data_size":8}}]}"#;
        let body = Bytes::from([head.as_bytes(), &7i64.to_le_bytes()].concat());
        let (outputs, payload) = super::outputs(&body, Some(head.len())).unwrap();
        let (_, at) = outputs[0].locate(&payload).unwrap();
        assert_eq!(payload[at], 7i64.to_le_bytes());
        for nothing in ["", "{}", "[7]", r#"{"outputs":7}"#, r#"{"predictions":[7]}"#] {
            assert!(super::outputs(&Bytes::from(nothing), None).is_none(), "{nothing}");
        }
        assert!(super::outputs(&body, Some(body.len() + 1)).is_none());
    }

    #[test]
    fn an_answer_that_cannot_be_read_here_is_told_from_what_is_none() {
        let why = |json: &str| foreign(&Bytes::copy_from_slice(json.as_bytes()), None);
        let fine = r#"{"name":"x","datatype":"FP32","shape":[1],"data":[NaN]}"#;
        let output = |fields: &str| format!(r#"{{"outputs":[{fine},{{"name":"y","shape":[1],{fields}}}]}}"#);
        let unknown = output(r#""datatype":"INT4","data":[7]"#);
        assert_eq!(why(&unknown).as_deref(), Some("output `y` is INT4"));
        let half = output(r#""datatype":"FP16","data":[0.5]"#);
        assert_eq!(why(&half).as_deref(), Some("output `y` is FP16 in JSON"));
        let binary = output(r#""datatype":"FP16","parameters":{"binary_data_size":3}"#);
        for none in [binary.as_str(), "<html>", "{}", r#"{"outputs":[{"name":"y"}]}"#] {
            assert_eq!(why(none), None, "{none}");
        }
    }
}
