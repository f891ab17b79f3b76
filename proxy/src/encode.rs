//! The engine's reply as the body of an infer response: JSON, or JSON followed by binary tensors where the
//! client asked for them. Trusts nothing it was sent: a tensor outside the payload is an internal error.

use crate::call::Inferred;
use crate::classification::{Ranked, rank};
use crate::decode::InferRequest;
use crate::refusal::Refusal;
use crate::tensor_json::write_values;
use bytes::Bytes;
use std::borrow::Cow;
use wire::Datatype;

/// A response body and what its headers must say of it.
#[derive(Debug, PartialEq, Eq)]
pub struct Encoded {
    /// All of it.
    pub body: Bytes,
    /// Length of the JSON in front, when binary tensors follow.
    pub json_len: Option<usize>,
}

/// Encodes an ok reply.
pub fn encode(request: &InferRequest, inferred: Inferred<'_>) -> Result<Encoded, Refusal> {
    let Inferred { model, version, reply, payload, entry } = inferred;
    let mut json = Vec::with_capacity(256 + 4 * payload.len().min(1 << 20));
    let mut binary: Vec<Cow<'_, [u8]>> = Vec::new();
    json.extend_from_slice(b"{");
    if let Some(id) = &request.id {
        json.extend_from_slice(b"\"id\":");
        string(&mut json, id);
        json.extend_from_slice(b",");
    }
    json.extend_from_slice(b"\"model_name\":");
    string(&mut json, model);
    json.extend_from_slice(b",\"model_version\":\"");
    json.extend_from_slice(itoa::Buffer::new().format(version).as_bytes());
    json.extend_from_slice(b"\",\"outputs\":[");
    for (index, output) in reply.outputs.iter().enumerate() {
        let (datatype, range) =
            output.locate(payload).map_err(|error| Refusal::Internal(format!("engine reply: {error}")))?;
        let bytes = &payload[range];
        let (datatype, shape, bytes) =
            match request.requested(&output.name).map_or(0, |requested| requested.classes) {
                0 => (datatype, Cow::Borrowed(&output.shape), Cow::Borrowed(bytes)),
                most => {
                    let Ranked { shape, elements } = rank(output, datatype, bytes, entry, most)?;
                    (Datatype::Bytes, Cow::Owned(shape), Cow::Owned(elements))
                }
            };
        if index > 0 {
            json.push(b',');
        }
        json.extend_from_slice(b"{\"name\":");
        string(&mut json, &output.name);
        json.extend_from_slice(b",\"datatype\":\"");
        json.extend_from_slice(datatype.name().as_bytes());
        json.extend_from_slice(b"\",\"shape\":[");
        for (axis, dimension) in shape.iter().enumerate() {
            if axis > 0 {
                json.push(b',');
            }
            json.extend_from_slice(itoa::Buffer::new().format(*dimension).as_bytes());
        }
        json.push(b']');
        if request.is_binary(&output.name) {
            json.extend_from_slice(b",\"parameters\":{\"binary_data_size\":");
            json.extend_from_slice(itoa::Buffer::new().format(bytes.len()).as_bytes());
            json.extend_from_slice(b"}}");
            binary.push(bytes);
        } else {
            json.extend_from_slice(b",\"data\":");
            write_values(&mut json, datatype, &bytes).map_err(|error| {
                Refusal::Invalid(format!("output `{}` {error}: ask for it with binary_data", output.name))
            })?;
            json.push(b'}');
        }
    }
    json.extend_from_slice(b"]}");
    let json_len = (!binary.is_empty()).then_some(json.len());
    for bytes in binary {
        json.extend_from_slice(&bytes);
    }
    Ok(Encoded { body: json.into(), json_len })
}

fn string(json: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(json, text).expect("a string serialises and a Vec takes it");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::RequestedOutput;
    use wire::{ModelEntry, Reply, TensorMeta, TensorSpec, push_element};

    fn reply() -> (Reply, Bytes) {
        let outputs = vec![
            TensorMeta {
                name: "digit".into(),
                datatype: Datatype::Int64 as u32,
                shape: vec![1],
                offset: 0,
                bytes: 0,
            },
            TensorMeta {
                name: "p".into(),
                datatype: Datatype::Fp32 as u32,
                shape: vec![1, 2],
                offset: 64,
                bytes: 0,
            },
        ];
        let mut payload = 7_i64.to_le_bytes().to_vec();
        payload.resize(64, 0);
        payload.extend(0.25_f32.to_le_bytes());
        payload.extend(f32::NAN.to_le_bytes());
        (Reply { outputs, ..Reply::default() }, payload.into())
    }

    fn of_digits<'a>(reply: &'a Reply, payload: &'a Bytes) -> Inferred<'a> {
        Inferred { model: "digits", version: 2, entry: None, reply, payload }
    }

    #[test]
    fn json_by_default_with_the_request_id() {
        let (reply, payload) = reply();
        let request = InferRequest { id: Some("a\"b".into()), ..InferRequest::default() };
        let encoded = encode(&request, of_digits(&reply, &payload)).unwrap();
        assert_eq!(
            std::str::from_utf8(&encoded.body).unwrap(),
            r#"{"id":"a\"b","model_name":"digits","model_version":"2","outputs":[{"name":"digit","datatype":"INT64","shape":[1],"data":[7]},{"name":"p","datatype":"FP32","shape":[1,2],"data":[0.25,NaN]}]}"#
        );
        assert_eq!(encoded.json_len, None);
    }

    #[test]
    fn binary_outputs_follow_the_json_in_order() {
        let (reply, payload) = reply();
        let request = InferRequest {
            binary_outputs: true,
            outputs: vec![RequestedOutput {
                name: "digit".into(),
                binary: Some(false),
                ..RequestedOutput::default()
            }],
            ..InferRequest::default()
        };
        let encoded = encode(&request, of_digits(&reply, &payload)).unwrap();
        let json_len = encoded.json_len.unwrap();
        let json: serde_json::Value = serde_json::from_slice(&encoded.body[..json_len]).unwrap();
        assert_eq!(json["outputs"][0]["data"][0], 7);
        assert_eq!(json["outputs"][1]["parameters"]["binary_data_size"], 8);
        assert_eq!(encoded.body[json_len..], payload[64..]);
    }

    #[test]
    fn classes_go_out_as_strings_or_each_after_its_length() {
        let (reply, payload) = reply();
        let spec = TensorSpec { name: "p".into(), labels: vec!["no".into()], ..TensorSpec::default() };
        let entry = ModelEntry { max_batch: 4, outputs: vec![spec], ..ModelEntry::default() };
        let inferred = Inferred { entry: Some(&entry), ..of_digits(&reply, &payload) };
        let wanted =
            |name: &str, binary| RequestedOutput { name: name.into(), binary: Some(binary), classes: 3 };
        let outputs = vec![wanted("digit", false), wanted("p", true)];
        let encoded = encode(&InferRequest { outputs, ..InferRequest::default() }, inferred).unwrap();
        let (json, binary) = encoded.body.split_at(encoded.json_len.unwrap());
        assert_eq!(
            std::str::from_utf8(json).unwrap(),
            r#"{"model_name":"digits","model_version":"2","outputs":[{"name":"digit","datatype":"BYTES","shape":[1,1],"data":["7:0"]},{"name":"p","datatype":"BYTES","shape":[1,2],"parameters":{"binary_data_size":22}}]}"#
        );
        assert_eq!(binary, b"\x09\0\0\x000.25:0:no\x05\0\0\0NaN:1");
    }

    #[test]
    fn bytes_are_answered_as_text_or_as_binary_data() {
        let text = |elements: &[&[u8]]| {
            let mut payload = Vec::new();
            elements.iter().for_each(|element| push_element(&mut payload, element));
            let (datatype, shape) = (Datatype::Bytes as u32, vec![elements.len() as u64]);
            let meta =
                TensorMeta { name: "t".into(), datatype, shape, offset: 0, bytes: payload.len() as u64 };
            (Reply { outputs: vec![meta], ..Reply::default() }, Bytes::from(payload))
        };
        let (reply, payload) = text(&[b"caf\xc3\xa9 \"\n", b""]);
        let encoded = encode(&InferRequest::default(), of_digits(&reply, &payload)).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&encoded.body).unwrap();
        assert_eq!(json["outputs"][0]["data"], serde_json::json!(["café \"\n", ""]));

        let (reply, payload) = text(&[b"a", b"\xff"]);
        let refusal = encode(&InferRequest::default(), of_digits(&reply, &payload)).unwrap_err();
        let says = "output `t` is not UTF-8, and has no JSON form: ask for it with binary_data";
        assert_eq!(refusal, Refusal::Invalid(says.into()));
        let request = InferRequest { binary_outputs: true, ..InferRequest::default() };
        let encoded = encode(&request, of_digits(&reply, &payload)).unwrap();
        assert_eq!(encoded.body[encoded.json_len.unwrap()..], payload);
    }

    #[test]
    fn a_reply_that_lies_about_its_payload_is_an_internal_error() {
        let (reply, payload) = reply();
        let cut = payload.slice(..70);
        let refusal = encode(&InferRequest::default(), of_digits(&reply, &cut)).unwrap_err();
        assert!(matches!(refusal, Refusal::Internal(_)));
    }
}
