//! The parameters of a `ModelInferRequest`, as JSON for another server that is asked over HTTP. Decides which of them are for
//! it; never what they mean.

use super::decode::{Choice, parameter};
use super::fields::{Fields, Value};
use crate::refusal::Refusal;
use crate::translated::Parameters;
use serde_json::{Map, Number};

/// More than this are no request but an attack on memory.
const PARAMETERS_MAX: usize = 1024;

/// Those of a message that has been decoded.
pub(super) fn parameters(message: &[u8]) -> Result<Parameters, Refusal> {
    let (mut all, mut room) = (Parameters::default(), PARAMETERS_MAX);
    for field in Fields(message) {
        match field? {
            (4, value) => put(value, &mut all.of_request, &mut room)?,
            (5, value) => all.of_inputs.push(of_tensor(value, 4, &mut room)?),
            (6, value) => all.of_outputs.push(of_tensor(value, 2, &mut room)?),
            _ => {}
        }
    }
    Ok(all)
}

/// Those of an input or an output, which are the field of this number.
fn of_tensor(
    value: Value<'_>,
    number: u64,
    room: &mut usize,
) -> Result<Map<String, serde_json::Value>, Refusal> {
    let mut all = Map::new();
    for field in Fields(value.bytes()?) {
        let (field, value) = field?;
        if field == number {
            put(value, &mut all, room)?;
        }
    }
    Ok(all)
}

fn put(value: Value<'_>, to: &mut Map<String, serde_json::Value>, room: &mut usize) -> Result<(), Refusal> {
    let too_many = || Refusal::Invalid(format!("more than {PARAMETERS_MAX} parameters"));
    *room = room.checked_sub(1).ok_or_else(too_many)?;
    let (name, choice) = parameter(value)?;
    // How tensors are written over HTTP is not said over gRPC, and `triton_` is refused from any client there.
    if !name.starts_with("binary_data")
        && !name.starts_with("triton_")
        && let Some(value) = json(choice)
    {
        to.insert(name.to_owned(), value);
    }
    Ok(())
}

/// `None` of what JSON has no form for.
fn json(choice: Choice<'_>) -> Option<serde_json::Value> {
    match choice? {
        (1, Value::Varint(truth)) => Some((truth != 0).into()),
        (2, Value::Varint(number)) => Some((number as i64).into()),
        (3, text) => text.text().ok().map(Into::into),
        (4, Value::Fixed64(bytes)) => Number::from_f64(f64::from_le_bytes(bytes)).map(Into::into),
        (5, Value::Varint(number)) => Some(number.into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;
    use protocol::inference::infer_parameter::ParameterChoice;
    use protocol::inference::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
    use protocol::inference::{InferParameter, ModelInferRequest};
    use serde_json::json;
    use std::collections::BTreeMap;

    fn some(all: Vec<(&str, ParameterChoice)>) -> BTreeMap<String, InferParameter> {
        let all = all.into_iter();
        all.map(|(name, choice)| (name.to_owned(), InferParameter { parameter_choice: Some(choice) }))
            .collect()
    }

    #[test]
    fn each_kind_is_what_it_is_in_json() {
        let request = ModelInferRequest {
            parameters: some(vec![
                ("sequence_id", ParameterChoice::Int64Param(-7)),
                ("sequence_start", ParameterChoice::BoolParam(true)),
                ("who", ParameterChoice::StringParam("ana".into())),
                ("heat", ParameterChoice::DoubleParam(0.5)),
                ("nothing", ParameterChoice::DoubleParam(f64::NAN)),
                ("large", ParameterChoice::Uint64Param(u64::MAX)),
                ("binary_data_output", ParameterChoice::BoolParam(false)),
                ("triton_enable_empty_final_response", ParameterChoice::BoolParam(true)),
            ]),
            inputs: vec![
                InferInputTensor::default(),
                InferInputTensor {
                    parameters: some(vec![("unit", ParameterChoice::StringParam("mm".into()))]),
                    ..InferInputTensor::default()
                },
            ],
            outputs: vec![InferRequestedOutputTensor {
                name: "y".into(),
                parameters: some(vec![("classification", ParameterChoice::Int64Param(3))]),
            }],
            ..ModelInferRequest::default()
        };
        let all = parameters(&request.encode_to_vec()).unwrap();
        let large = json!(u64::MAX);
        let want =
            json!({"sequence_id": -7, "sequence_start": true, "who": "ana", "heat": 0.5, "large": large});
        assert_eq!(serde_json::Value::Object(all.of_request), want);
        let of_inputs: Vec<_> = all.of_inputs.into_iter().map(serde_json::Value::Object).collect();
        assert_eq!(of_inputs, [json!({}), json!({"unit": "mm"})]);
        assert_eq!(serde_json::Value::Object(all.of_outputs[0].clone()), json!({"classification": 3}));
    }

    #[test]
    fn there_may_be_many_and_not_any_number() {
        let request = |count: usize| ModelInferRequest {
            parameters: (0..count).map(|number| (number.to_string(), InferParameter::default())).collect(),
            ..ModelInferRequest::default()
        };
        assert!(parameters(&request(1024).encode_to_vec()).is_ok());
        assert!(parameters(&request(1025).encode_to_vec()).is_err());
    }
}
