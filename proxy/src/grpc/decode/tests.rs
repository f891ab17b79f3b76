//! Every kind of contents, both ways to send them, and what must be refused.

use super::*;
use proptest::prelude::*;
use prost::Message;
use protocol::inference::infer_parameter::ParameterChoice;
use protocol::inference::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
use protocol::inference::{InferParameter, InferTensorContents, ModelInferRequest};

fn input(name: &str, datatype: &str, shape: &[i64], contents: InferTensorContents) -> InferInputTensor {
    let contents = (contents != InferTensorContents::default()).then_some(contents);
    let (name, datatype) = (name.into(), datatype.into());
    InferInputTensor { name, datatype, shape: shape.into(), contents, ..InferInputTensor::default() }
}

fn request(inputs: Vec<InferInputTensor>, raw: &[&'static [u8]]) -> ModelInferRequest {
    let raw_input_contents = raw.iter().map(|bytes| Bytes::from_static(bytes)).collect();
    ModelInferRequest { model_name: "m".into(), inputs, raw_input_contents, ..ModelInferRequest::default() }
}

fn decode_it(request: &ModelInferRequest) -> Result<InferRequest, Refusal> {
    let message = Bytes::from(request.encode_to_vec());
    decode(&message, &Names::of(&message)?)
}

fn bytes_of(request: &InferRequest, at: usize) -> &[u8] {
    &request.payload[request.inputs[at].locate(&request.payload).unwrap().1]
}

fn none() -> InferTensorContents {
    InferTensorContents::default()
}

#[test]
fn contents_of_every_datatype_become_the_bytes_that_the_engine_takes() {
    let ints = |values: &[i32]| InferTensorContents { int_contents: values.into(), ..none() };
    let cases: Vec<(&str, InferTensorContents, Vec<u8>)> = vec![
        ("BOOL", InferTensorContents { bool_contents: vec![true, false], ..none() }, vec![1, 0]),
        ("INT8", ints(&[-128, 127]), vec![0x80, 0x7f]),
        ("INT16", ints(&[-32768, 32767]), vec![0, 0x80, 0xff, 0x7f]),
        ("INT32", ints(&[i32::MIN, 5]), vec![0, 0, 0, 0x80, 5, 0, 0, 0]),
        (
            "INT64",
            InferTensorContents { int64_contents: vec![i64::MIN, -2], ..none() },
            [i64::MIN.to_le_bytes(), (-2_i64).to_le_bytes()].concat(),
        ),
        ("UINT8", InferTensorContents { uint_contents: vec![0, 255], ..none() }, vec![0, 255]),
        ("UINT16", InferTensorContents { uint_contents: vec![0, 65535], ..none() }, vec![0, 0, 255, 255]),
        ("UINT32", InferTensorContents { uint_contents: vec![u32::MAX; 2], ..none() }, vec![255; 8]),
        ("UINT64", InferTensorContents { uint64_contents: vec![u64::MAX; 2], ..none() }, vec![255; 16]),
        (
            "FP32",
            InferTensorContents { fp32_contents: vec![-1.5, f32::INFINITY], ..none() },
            [(-1.5_f32).to_le_bytes(), f32::INFINITY.to_le_bytes()].concat(),
        ),
        (
            "FP64",
            InferTensorContents { fp64_contents: vec![0.1, f64::MIN], ..none() },
            [0.1_f64.to_le_bytes(), f64::MIN.to_le_bytes()].concat(),
        ),
    ];
    let all =
        cases.iter().map(|(datatype, contents, _)| input(datatype, datatype, &[1, 2], contents.clone()));
    let decoded = decode_it(&request(all.collect(), &[])).unwrap();
    for (at, (datatype, _, bytes)) in cases.iter().enumerate() {
        assert_eq!(bytes_of(&decoded, at), bytes, "{datatype}");
        assert_eq!((decoded.inputs[at].name.as_str(), &decoded.inputs[at].shape), (*datatype, &vec![1, 2]));
        assert_eq!(decoded.inputs[at].offset % 64, 0, "aligned");
    }
}

#[test]
fn numbers_that_are_not_packed_are_numbers_too() {
    // `shape: 2` and `fp32_contents` as fields of their own, as proto2 would write them.
    let contents = [&[0x35][..], &1.0_f32.to_le_bytes(), &[0x35], &2.0_f32.to_le_bytes()].concat();
    let tensor = [b"\x0a\x01x\x12\x04FP32\x18\x02\x2a\x0a".as_slice(), &contents].concat();
    let message = [b"\x0a\x01m\x2a", &[tensor.len() as u8][..], &tensor].concat();
    let message = Bytes::from(message);
    let decoded = decode(&message, &Names::of(&message).unwrap()).unwrap();
    assert_eq!(decoded.inputs[0].shape, [2]);
    assert_eq!(bytes_of(&decoded, 0), [1.0_f32.to_le_bytes(), 2.0_f32.to_le_bytes()].concat());
}

#[test]
fn raw_contents_of_one_input_are_not_copied_and_those_of_several_are_aligned() {
    let one = request(vec![input("x", "BF16", &[2], none())], &[&[1, 2, 3, 4]]);
    let message = Bytes::from(one.encode_to_vec());
    let decoded = decode(&message, &Names::of(&message).unwrap()).unwrap();
    assert_eq!(decoded.payload, [1, 2, 3, 4][..]);
    assert!(message.as_ptr_range().contains(&decoded.payload.as_ptr()), "a slice of the message");
    let inputs = vec![
        input("a", "FP16", &[2], none()),
        input("b", "UINT8", &[0], none()),
        input("c", "INT16", &[], none()),
    ];
    let several = decode_it(&request(inputs, &[&[1, 2, 3, 4], &[], &[5, 6]])).unwrap();
    assert_eq!(bytes_of(&several, 0), [1, 2, 3, 4]);
    assert!(bytes_of(&several, 1).is_empty());
    assert_eq!(bytes_of(&several, 2), [5, 6]);
    assert_eq!(several.inputs[2].offset, 64);
}

#[test]
fn names_parameters_and_outputs_are_read() {
    let parameter = |choice| InferParameter { parameter_choice: Some(choice) };
    let mut asked = request(vec![], &[]);
    (asked.model_version, asked.id) = ("7".into(), "a".into());
    asked.parameters = [
        ("priority", ParameterChoice::Uint64Param(3)),
        ("timeout", ParameterChoice::Int64Param(1500)),
        ("sequence_id", ParameterChoice::Int64Param(0)),
    ]
    .map(|(key, choice)| (key.to_owned(), parameter(choice)))
    .into();
    asked.outputs = vec![InferRequestedOutputTensor { name: "y".into(), ..Default::default() }];
    let message = Bytes::from(asked.encode_to_vec());
    let names = Names { model: "m".into(), version: Some(7), id: "a".into() };
    assert_eq!(Names::of(&message), Ok(names.clone()));
    let decoded = decode(&message, &names).unwrap();
    assert_eq!(decoded.id.as_deref(), Some("a"));
    assert_eq!((decoded.priority, decoded.timeout), (3, Some(Duration::from_micros(1500))));
    assert!(!decoded.is_of_a_sequence);
    assert_eq!(decoded.outputs, [RequestedOutput { name: "y".into(), binary: None, classes: 0 }]);
    let other = Names { model: "other".into(), ..names };
    assert!(decode(&message, &other).unwrap_err().to_string().contains("another model"));
    for id in [ParameterChoice::StringParam("s".into()), ParameterChoice::Int64Param(7)] {
        let of_a_sequence = ModelInferRequest {
            parameters: [("sequence_id".into(), parameter(id))].into(),
            ..request(vec![], &[])
        };
        assert!(decode_it(&of_a_sequence).unwrap().is_of_a_sequence);
    }
}

#[test]
fn the_beginning_of_a_message_names_the_model_as_soon_as_it_has_come() {
    let asked = request(vec![input("x", "FP32", &[1], none())], &[&[0, 0, 0, 0]]);
    let message = asked.encode_to_vec();
    assert_eq!(Names::of_beginning(&message[..3]), None, "a version might follow");
    let names = Names::of_beginning(&message[..4]);
    assert_eq!(names, Some(Names { model: "m".into(), version: None, id: String::new() }));
    // Whoever writes the name last is read whole.
    let backwards = [&message[3..], &message[..3]].concat();
    assert_eq!(Names::of_beginning(&backwards), None);
    assert_eq!(Names::of(&backwards).unwrap().model, "m");
}

#[test]
fn each_mistake_is_named() {
    let floats = |values: &[f32]| InferTensorContents { fp32_contents: values.into(), ..none() };
    let ints = |values: &[i32]| InferTensorContents { int_contents: values.into(), ..none() };
    let typed =
        |datatype: &str, shape: &[i64], contents| request(vec![input("x", datatype, shape, contents)], &[]);
    let raw =
        |datatype: &str, shape: &[i64], bytes| request(vec![input("x", datatype, shape, none())], &[bytes]);
    let both = request(vec![input("x", "FP32", &[1], floats(&[1.0]))], &[&[0; 4]]);
    let nameless = InferInputTensor { datatype: "FP32".into(), ..InferInputTensor::default() };
    let shared = InferInputTensor {
        parameters: [("shared_memory_region".to_owned(), InferParameter::default())].into(),
        ..input("x", "FP32", &[1], none())
    };
    let parameter = |key: &str, choice| {
        let parameters = [(key.to_owned(), InferParameter { parameter_choice: Some(choice) })].into();
        ModelInferRequest { parameters, ..request(vec![], &[]) }
    };
    let classes = InferRequestedOutputTensor {
        parameters: [("classification".to_owned(), InferParameter::default())].into(),
        ..InferRequestedOutputTensor::default()
    };
    for (asked, says) in [
        (typed("FP32", &[2], floats(&[1.0])), "input `x`: `contents` has 1 elements, shape [2] has 2"),
        (typed("FP32", &[2], floats(&[1.0; 3])), "input `x`: `contents` has more elements, shape [2] has 2"),
        (typed("INT32", &[1], ints(&[1; 1000])), "has more elements"),
        (typed("FP32", &[1], none()), "`contents` has 0 elements"),
        (typed("FP32", &[1], ints(&[1])), "it has int_contents, FP32 is sent as fp32_contents"),
        (typed("INT8", &[1], ints(&[128])), "out of the range of INT8"),
        (typed("INT16", &[1], ints(&[-32769])), "out of the range of INT16"),
        (typed("FP16", &[1], floats(&[1.0])), "FP16 has no `contents`"),
        (typed("BF16", &[1], floats(&[1.0])), "BF16 has no `contents`"),
        (typed("FP31", &[1], floats(&[1.0])), "datatype `FP31` is not one of BOOL, UINT8"),
        (typed("FP32", &[-1], floats(&[1.0])), "a dimension of -1"),
        (typed("FP32", &[1; 65], floats(&[1.0])), "more than 64 dimensions"),
        (typed("FP32", &[1 << 62, 4], none()), "overflows"),
        (typed("FP32", &[i64::MAX, i64::MAX], none()), "overflows"),
        (typed("INT64", &[1 << 40], none()), "the data of the tensors exceeds the limit"),
        (raw("FP32", &[2], &[0; 4]), "have 4 bytes, FP32 of shape [2] takes 8"),
        (raw("FP32", &[1 << 40], &[0; 4]), "have 4 bytes, FP32 of shape [1099511627776] takes"),
        (both, "for all inputs or none"),
        (
            request(vec![input("x", "FP32", &[1], none())], &[&[0; 4], &[0; 4]]),
            "2 raw_input_contents and 1 inputs",
        ),
        (request(vec![], &[&[0; 4]]), "1 raw_input_contents and 0 inputs"),
        (request(vec![nameless], &[]), "an input has no `name`"),
        (request(vec![input("x", "", &[1], none())], &[]), "input `x` has no `datatype`"),
        (request(vec![shared], &[]), "shared memory is not supported"),
        (request(vec![input("x", "FP32", &[0], none()); 1025], &[]), "more than 1024 inputs"),
        (parameter("timeout", ParameterChoice::StringParam("soon".into())), "parameter `timeout`"),
        (parameter("priority", ParameterChoice::Int64Param(-1)), "parameter `priority`"),
        (
            ModelInferRequest { outputs: vec![classes], ..request(vec![], &[]) },
            "parameter `classification` is no number of classes",
        ),
        (ModelInferRequest { model_version: "two".into(), ..request(vec![], &[]) }, "version `two`"),
        (ModelInferRequest::default(), "no model_name"),
    ] {
        let error = decode_it(&asked).unwrap_err().to_string();
        assert!(error.contains(says), "{says}: {error}");
    }
}

#[test]
fn bytes_that_are_no_message_are_refused() {
    for (bytes, says) in [
        (&b"\x0a\x01\xff"[..], "not UTF-8"),
        (b"\x0a\x05m", "does not decode"),
        (b"\x0b", "does not decode"),
        (b"\x02\x01m", "does not decode"),
        (b"\x08\x01", "does not decode"),
        (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "does not decode"),
        (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "does not decode"),
    ] {
        let error = Names::of(bytes).unwrap_err().to_string();
        assert!(error.contains(says), "{bytes:?}: {error}");
    }
}

proptest! {
    #[test]
    fn no_message_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let message = Bytes::from([b"\x0a\x01m", &bytes[..]].concat());
        let _ = Names::of_beginning(&message);
        if let Ok(names) = Names::of(&message) {
            let _ = decode(&message, &names);
        }
    }

    #[test]
    fn no_damaged_request_panics_or_reaches_beyond_its_payload(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let floats = InferTensorContents { fp32_contents: vec![1.0, 2.0], ..none() };
        let mut message = request(vec![input("x", "FP32", &[1, 2], floats)], &[]).encode_to_vec();
        let at = at.index(message.len());
        message[at] = byte;
        let message = Bytes::from(message);
        if let Ok(names) = Names::of(&message) && let Ok(decoded) = decode(&message, &names) {
            for tensor in &decoded.inputs {
                prop_assert!(tensor.locate(&decoded.payload).is_ok());
            }
        }
    }
}
