//! The engine's reply as a `ModelInferResponse`: raw contents for every output, as the slices of the payload that they
//! are. Trusts nothing it was sent: a tensor outside the payload is an internal error.

use super::message::{Outgoing, PREFIX, put_prefix};
use crate::call::Inferred;
use crate::classification::rank;
use crate::decode::InferRequest;
use crate::refusal::Refusal;
use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use protocol::inference::infer_parameter::ParameterChoice;
use protocol::inference::model_infer_response::InferOutputTensor;
use protocol::inference::{InferParameter, ModelInferResponse};
use std::collections::{BTreeMap, VecDeque};
use wire::Datatype;

/// Copying fewer bytes than this is cheaper than one more piece.
const COPY_BYTES: usize = 4 << 10;

const RAW_OUTPUT_CONTENTS: u8 = key(6);
const INFER_RESPONSE: u8 = key(2);

/// Where an answer stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// The answer to `ModelInfer`.
    Alone,
    /// One of the answers to `ModelStreamInfer`.
    InStream,
}

/// Encodes an ok reply.
pub(crate) fn encode(
    request: &InferRequest,
    inferred: Inferred<'_>,
    form: Form,
) -> Result<Outgoing, Refusal> {
    let Inferred { model, version, reply, payload, entry } = inferred;
    let mut raw = Vec::with_capacity(reply.outputs.len());
    let mut outputs = Vec::with_capacity(reply.outputs.len());
    for output in &reply.outputs {
        let (datatype, range) =
            output.locate(payload).map_err(|error| Refusal::Internal(format!("engine reply: {error}")))?;
        let classes = request.requested(&output.name).map_or(0, |requested| requested.classes);
        let (datatype, shape) = if classes == 0 {
            raw.push(payload.slice(range));
            (datatype, output.shape.clone())
        } else {
            let ranked = rank(output, datatype, &payload[range], entry, classes)?;
            raw.push(ranked.elements.into());
            (Datatype::Bytes, ranked.shape)
        };
        outputs.push(InferOutputTensor {
            name: output.name.clone(),
            datatype: datatype.name().to_owned(),
            shape: shape.into_iter().map(|dimension| dimension as i64).collect(),
            ..InferOutputTensor::default()
        });
    }
    let head = ModelInferResponse {
        model_name: model.to_owned(),
        model_version: version.to_string(),
        id: request.id.clone().unwrap_or_default(),
        parameters: match form {
            Form::Alone => BTreeMap::new(),
            // Who asks for more than one answer to a request waits for the last.
            Form::InStream => BTreeMap::from([("triton_final_response".to_owned(), flag(true))]),
        },
        outputs,
        raw_output_contents: Vec::new(),
    };
    Ok(write(&head, &raw, form))
}

fn write(head: &ModelInferResponse, raw: &[Bytes], form: Form) -> Outgoing {
    let field = |len: usize| 1 + prost::length_delimiter_len(len) + len;
    let response_len = head.encoded_len() + raw.iter().map(|bytes| field(bytes.len())).sum::<usize>();
    let mut pieces = VecDeque::new();
    let mut bytes = BytesMut::with_capacity(PREFIX + 16 + head.encoded_len() + 16 * raw.len());
    match form {
        Form::Alone => put_prefix(&mut bytes, response_len),
        Form::InStream => {
            put_prefix(&mut bytes, field(response_len));
            put_field(&mut bytes, INFER_RESPONSE, response_len);
        }
    }
    head.encode(&mut bytes).expect("BytesMut grows");
    for tensor in raw {
        put_field(&mut bytes, RAW_OUTPUT_CONTENTS, tensor.len());
        if tensor.len() <= COPY_BYTES {
            bytes.extend_from_slice(tensor);
        } else {
            pieces.extend([bytes.split().freeze(), tensor.clone()]);
        }
    }
    if !bytes.is_empty() {
        pieces.push_back(bytes.freeze());
    }
    Outgoing { pieces }
}

/// A field of bytes, without the bytes.
fn put_field(bytes: &mut BytesMut, key: u8, len: usize) {
    bytes.put_u8(key);
    prost::encode_length_delimiter(len, bytes).expect("BytesMut grows");
}

const fn key(number: u8) -> u8 {
    (number << 3) | 2
}

fn flag(value: bool) -> InferParameter {
    InferParameter { parameter_choice: Some(ParameterChoice::BoolParam(value)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Buf;
    use protocol::inference::ModelStreamInferResponse;
    use wire::{Reply, TensorMeta};

    fn reply(elements: usize) -> (Reply, Bytes) {
        let meta = |name: &str, datatype, shape, offset| TensorMeta {
            name: name.into(),
            datatype: datatype as u32,
            shape,
            offset,
            bytes: 0,
        };
        let outputs = vec![
            meta("digit", Datatype::Int64, vec![1], 0),
            meta("p", Datatype::Bf16, vec![1, elements as u64], 64),
        ];
        let mut payload = 7_i64.to_le_bytes().to_vec();
        payload.resize(64, 0);
        payload.resize(64 + 2 * elements, 3);
        (Reply { outputs, ..Reply::default() }, payload.into())
    }

    fn asked() -> InferRequest {
        InferRequest { id: Some("a".into()), ..InferRequest::default() }
    }

    fn answer(elements: usize, form: Form) -> Outgoing {
        let (reply, payload) = reply(elements);
        let inferred =
            Inferred { model: "digits", version: 2, entry: None, reply: &reply, payload: &payload };
        let answer = encode(&asked(), inferred, form).unwrap();
        let is_slice = |piece: &Bytes| payload.as_ptr_range().contains(&piece.as_ptr());
        assert_eq!(
            answer.pieces.iter().any(is_slice),
            2 * elements > COPY_BYTES,
            "large tensors are not copied"
        );
        answer
    }

    fn body(answer: &Outgoing) -> Bytes {
        let mut bytes: Bytes = answer.pieces.iter().flat_map(|piece| piece.to_vec()).collect();
        assert_eq!(bytes.get_u8(), 0);
        assert_eq!(bytes.get_u32() as usize, bytes.len());
        bytes
    }

    #[test]
    fn every_output_has_raw_contents_and_the_request_its_id() {
        for elements in [3, 100_000] {
            let response = ModelInferResponse::decode(body(&answer(elements, Form::Alone))).unwrap();
            assert_eq!((response.model_name.as_str(), response.model_version.as_str()), ("digits", "2"));
            assert_eq!((response.id.as_str(), response.parameters.len()), ("a", 0));
            let outputs: Vec<_> = response
                .outputs
                .iter()
                .map(|output| (output.name.as_str(), output.datatype.as_str(), output.shape.clone()))
                .collect();
            assert_eq!(outputs, [("digit", "INT64", vec![1]), ("p", "BF16", vec![1, elements as i64])]);
            assert_eq!(response.raw_output_contents[0], 7_i64.to_le_bytes()[..]);
            assert_eq!(response.raw_output_contents[1], vec![3; 2 * elements]);
        }
    }

    #[test]
    fn in_a_stream_it_is_wrapped_and_said_to_be_the_last() {
        for elements in [3, 100_000] {
            let bytes = body(&answer(elements, Form::InStream));
            let stream = ModelStreamInferResponse::decode(bytes).unwrap();
            let response = stream.infer_response.unwrap();
            assert_eq!((stream.error_message.as_str(), response.id.as_str()), ("", "a"));
            assert_eq!(response.parameters["triton_final_response"], flag(true));
            assert_eq!(response.raw_output_contents[1].len(), 2 * elements);
        }
    }

    #[test]
    fn a_reply_that_lies_about_its_payload_is_an_internal_error() {
        let (reply, payload) = reply(4);
        let cut = payload.slice(..70);
        let inferred = Inferred { model: "digits", version: 2, entry: None, reply: &reply, payload: &cut };
        assert!(matches!(encode(&asked(), inferred, Form::Alone), Err(Refusal::Internal(_))));
    }
}
