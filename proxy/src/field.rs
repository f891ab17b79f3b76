//! One field of a request's body that a policy asks for: a parameter, or the first element of an input. Decides which
//! values are a key, and how one is written; never what it means.
//!
//! It is looked for apart from decoding, so that requests to models whose policies ask for nothing pay nothing.

use crate::decode::InferRequest;
use crate::tensor_json::quote_non_finite;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::collections::HashMap;
use wire::{Datatype, whole_of};

/// A parameter of a request of the Open Inference Protocol, if it is a text, a whole number or a truth value. `json` is the
/// body without binary tensors.
pub(crate) fn parameter(json: &[u8], name: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Head<'a> {
        #[serde(borrow, default)]
        parameters: HashMap<Cow<'a, str>, &'a RawValue>,
    }
    let quoted;
    let head: Head<'_> = match serde_json::from_slice(json) {
        Ok(head) => head,
        // As in decoding: tensors may hold words that JSON lacks.
        Err(_) => {
            quoted = quote_non_finite(json)?;
            serde_json::from_slice(&quoted).ok()?
        }
    };
    match serde_json::from_str(head.parameters.get(name)?.get()).ok()? {
        serde_json::Value::String(text) => Some(text),
        serde_json::Value::Number(number) if !number.is_f64() => Some(number.to_string()),
        serde_json::Value::Bool(truth) => Some(truth.to_string()),
        serde_json::Value::Number(_)
        | serde_json::Value::Null
        | serde_json::Value::Array(_)
        | serde_json::Value::Object(_) => None,
    }
}

/// The first element of an input, if that is a whole number, or BYTES that are a text.
pub(crate) fn first_element(request: &InferRequest, name: &str) -> Option<String> {
    let input = request.inputs.iter().find(|input| input.name == name)?;
    let (datatype, at) = input.locate(&request.payload).ok()?;
    let bytes = &request.payload[at];
    if let Some(whole) = whole_of(datatype) {
        return bytes.get(..datatype.size()?).map(|element| whole(element).to_string());
    }
    if datatype != Datatype::Bytes {
        return None;
    }
    let (length, rest) = bytes.split_first_chunk()?;
    let text = rest.get(..u32::from_le_bytes(*length) as usize)?;
    String::from_utf8(text.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_is_a_text_a_whole_number_or_a_truth_value() {
        let body = br#"{"inputs": [{"data": [1.5, NaN]}], "parameters": {"a": "x", "b": -7, "c": true, "d": 1.5, "e": {}, "f": ""}}"#;
        let of = |name| parameter(body, name);
        assert_eq!(["a", "b", "c"].map(of), [Some("x".into()), Some("-7".into()), Some("true".into())]);
        assert_eq!(["d", "e", "g"].map(of), [None, None, None]);
        assert_eq!(of("f").as_deref(), Some(""), "which the policy takes for none");
        assert_eq!(parameter(b"{}", "a"), None);
        assert_eq!(parameter(b"[", "a"), None);
    }

    #[test]
    fn the_first_element_of_an_input_of_whole_numbers_or_texts_is_a_key() {
        let first = |datatype: &str, data: &str| {
            let body = format!(
                r#"{{"inputs": [{{"name": "x", "shape": [1], "datatype": "FP32", "data": [0.5]}},
                    {{"name": "user", "shape": [2], "datatype": "{datatype}", "data": {data}}}]}}"#
            );
            first_element(&InferRequest::decode(&body.into(), None).unwrap(), "user")
        };
        for datatype in ["INT64", "INT32"] {
            assert_eq!(first(datatype, "[7, 8]").as_deref(), Some("7"), "{datatype}");
        }
        assert_eq!(first("INT64", "[-9007199254740993, 8]").as_deref(), Some("-9007199254740993"));
        assert_eq!(first("BYTES", r#"["ana", "ben"]"#).as_deref(), Some("ana"));
        assert_eq!(first("UINT64", "[18446744073709551615, 8]").as_deref(), Some("18446744073709551615"));
        assert_eq!(first("INT8", "[-1, 8]").as_deref(), Some("-1"));
        assert_eq!(first("FP32", "[7, 8]"), None);
        let empty = r#"{"inputs": [{"name": "user", "shape": [0], "datatype": "INT64", "data": []}]}"#;
        assert_eq!(first_element(&InferRequest::decode(&empty.into(), None).unwrap(), "user"), None);
    }
}
