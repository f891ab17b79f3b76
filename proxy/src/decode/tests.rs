//! What bodies are taken, how they are laid out, and what is said of those that are not.

use super::*;
use proptest::prelude::*;

fn decode(json: &str) -> Result<InferRequest, String> {
    InferRequest::decode(&json.to_owned().into(), None).map_err(|refusal| refusal.to_string())
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

#[test]
fn a_wrong_parameter_is_told_by_its_name_and_what_it_takes() {
    let refused = |parameters: &str, of: &str| {
        let input =
            |more: &str| format!(r#"{{"name": "x", "shape": [1], "datatype": "FP32", "data": [1]{more}}}"#);
        let text = match of {
            "request" => format!(r#"{{"inputs": [{}], "parameters": {parameters}}}"#, input("")),
            "input" => {
                format!(r#"{{"inputs": [{}]}}"#, input(&format!(r#", "parameters": {parameters}"#)))
            }
            _ => format!(
                r#"{{"inputs": [{}], "outputs": [{{"name": "y", "parameters": {parameters}}}]}}"#,
                input("")
            ),
        };
        parse(text.as_bytes(), &Bytes::new()).expect_err("it is wrong").to_string()
    };
    for (parameters, of, says) in [
        (
            r#"{"priority": -1}"#,
            "request",
            "`priority`: expected a whole number from 0 to 4294967295, got -1",
        ),
        (r#"{"timeout": "5"}"#, "request", r#"`timeout`: expected a whole number of microseconds, got "5""#),
        (r#"{"binary_data_output": 1}"#, "request", "`binary_data_output`: expected true or false, got 1"),
        (
            r#"{"binary_data_size": "12"}"#,
            "input",
            r#"`binary_data_size`: expected a whole number of bytes, got "12""#,
        ),
        (r#"{"classification": 1.5}"#, "output", "`classification`: expected a whole number from 0"),
        (
            r#"{"timeout": [1]}"#,
            "request",
            "`timeout`: expected a whole number of microseconds, got an array",
        ),
        (r#"{"binary_data": "yes"}"#, "output", r#"`binary_data`: expected true or false, got "yes""#),
    ] {
        let why = refused(parameters, of);
        assert!(why.contains(&format!("parameter {says}")), "{why}");
    }
}

#[test]
fn json_tensors_are_laid_out_aligned_whatever_the_order_of_fields() {
    let request = decode(
        r#"{"id":"a","parameters":{"timeout":1500,"unknown":[1]},"inputs":[
            {"name":"x","shape":[1,2],"datatype":"FP32","data":[1,2]},
            {"data":[[3],[NaN]],"datatype":"FP32","name":"y","extra":{},"shape":[2,1]}],
          "outputs":[{"name":"z","parameters":{"binary_data":true,"classification":3}},{"name":"w"}]}"#,
    )
    .unwrap();
    assert_eq!(request.id.as_deref(), Some("a"));
    assert_eq!(request.timeout, Some(Duration::from_micros(1500)));
    assert_eq!(request.inputs[0].locate(&request.payload).unwrap().1, 0..8);
    assert_eq!(request.inputs[1].locate(&request.payload).unwrap().1, 64..72);
    assert_eq!(request.payload[..8], floats(&[1.0, 2.0]));
    assert_eq!(request.payload[64..68], floats(&[3.0]));
    assert!(request.is_binary("z") && !request.is_binary("w"));
    assert_eq!((request.outputs[0].classes, request.outputs[1].classes), (3, 0));
}

#[test]
fn binary_and_json_tensors_mix() {
    let json = r#"{"inputs":[{"name":"a","shape":[2],"datatype":"FP16","parameters":{"binary_data_size":4}},
        {"name":"b","shape":[1],"datatype":"BOOL","data":[true]},
        {"name":"c","shape":[3],"datatype":"UINT8","parameters":{"binary_data_size":3}}],
        "parameters":{"binary_data_output":true}}"#;
    let body = [json.as_bytes(), &[1, 2, 3, 4, 9, 8, 7]].concat();
    let request = InferRequest::decode(&body.into(), Some(json.len())).unwrap();
    let at = |index: usize| &request.payload[request.inputs[index].locate(&request.payload).unwrap().1];
    assert_eq!((at(0), at(1), at(2)), (&[1, 2, 3, 4][..], &[1][..], &[9, 8, 7][..]));
    assert!(request.is_binary("anything"));
}

#[test]
fn a_binary_tensor_that_is_alone_is_not_copied() {
    let decode = |more: &str| {
        let json = format!(
            r#"{{"inputs":[{{"name":"a","shape":[2],"datatype":"FP16","parameters":{{"binary_data_size":4}}}}{more}]}}"#
        );
        let body = Bytes::from([json.as_bytes(), &[1, 2, 3, 4]].concat());
        let request = InferRequest::decode(&body, Some(json.len())).unwrap();
        assert_eq!(&request.payload[..4], [1, 2, 3, 4]);
        (request.inputs, body.as_ptr_range().contains(&request.payload.as_ptr()))
    };
    assert!(decode("").1);
    let (inputs, is_slice) = decode(r#",{"name":"b","shape":[1],"datatype":"BOOL","data":[true]}"#);
    assert_eq!((inputs[0].offset, inputs[1].offset, is_slice), (0, 64, false));
}

#[test]
fn bytes_come_as_strings_or_as_binary_elements_that_add_up() {
    let request =
        decode(r#"{"inputs":[{"name":"t","shape":[2],"datatype":"BYTES","data":["ab",""]}]}"#).unwrap();
    assert_eq!(request.payload, &b"\x02\0\0\0ab\0\0\0\0"[..]);
    assert_eq!(request.inputs[0].bytes, 10);
    assert!(request.inputs[0].locate(&request.payload).is_ok());

    let binary = |shape: u64, tensor: &[u8]| {
        let size = tensor.len();
        let json = format!(
            r#"{{"inputs":[{{"name":"t","shape":[{shape}],"datatype":"BYTES","parameters":{{"binary_data_size":{size}}}}}]}}"#
        );
        InferRequest::decode(&[json.as_bytes(), tensor].concat().into(), Some(json.len()))
            .map_err(|refusal| refusal.to_string())
    };
    assert_eq!(binary(2, b"\x02\0\0\0ab\0\0\0\0").unwrap(), request);
    assert!(binary(1, b"\x02\0\0\0a").unwrap_err().contains("an element of tensor `t` reaches beyond its 5"));
    assert!(binary(3, &[0; 8]).unwrap_err().contains("tensor `t` has 2 elements, shape [3] has 3"));
    assert!(binary(1, &[]).unwrap_err().contains("tensor `t` has 0 elements, shape [1] has 1"));
    assert!(binary(u64::MAX, &[0; 8]).unwrap_err().contains("tensor `t` has 2 elements"));
}

#[test]
fn each_mistake_is_named() {
    let input = |fields: &str| format!(r#"{{"inputs":[{{{fields}}}]}}"#);
    for (json, says) in [
        ("", "EOF while parsing"),
        ("[]", "expected an object with `inputs`"),
        ("{}", "missing field `inputs`"),
        (r#"{"inputs":3}"#, "expected an array of inputs"),
        (r#"{"inputs":[]} trailing"#, "trailing characters"),
        (&input(r#""shape":[1],"datatype":"FP32","data":[1]"#), "missing field `name`"),
        (&input(r#""name":"x","datatype":"FP32","data":[1]"#), "input `x` has no `shape`"),
        (&input(r#""name":"x","shape":[1],"data":[1]"#), "input `x` has no `datatype`"),
        (&input(r#""name":"x","shape":[1],"datatype":"FP32""#), "input `x` has no `data`"),
        (
            &input(r#""name":"x","shape":[1],"datatype":"STRING","data":["a"]"#),
            "datatype `STRING` is not one of BOOL, UINT8",
        ),
        (
            &input(r#""name":"x","shape":[-1],"datatype":"FP32","data":[1]"#),
            "integer `-1`, expected a whole number from 0",
        ),
        (
            &input(r#""name":"x","shape":[2],"datatype":"FP32","data":[1]"#),
            "input `x`: data has 1 elements, shape [2] has 2",
        ),
        (
            &input(
                r#""name":"x","shape":[1],"datatype":"FP32","data":[1],"parameters":{"binary_data_size":4}"#,
            ),
            "both `data` and",
        ),
        (
            &input(r#""name":"x","shape":[1],"datatype":"FP32","data":[1],"datatype":"INT32""#),
            "`datatype` occurs twice",
        ),
        (&input(r#""name":"x","data":[1],"data":[2]"#), "`data` occurs twice"),
        (r#"{"inputs":[],"inputs":[]}"#, "`inputs` occurs twice"),
        (
            r#"{"inputs":[],"outputs":[{"name":"y","parameters":{"classification":-1}}]}"#,
            "parameter `classification`: expected a whole number from 0 to 4294967295, got -1",
        ),
        (&input(r#""name":"x","shape":[4294967296,4294967296],"datatype":"FP32","data":[1]"#), "overflows"),
        (&input(r#""name":"x","shape":[99999999999],"datatype":"FP32","data":[1]"#), "data has 1 elements"),
    ] {
        let error = decode(json).unwrap_err();
        assert!(error.contains(says), "{json}: {error}");
    }
}

#[test]
fn more_tensors_than_any_model_takes_are_refused() {
    let input = r#"{"name":"x","shape":[0],"datatype":"FP32","data":[]}"#;
    let long = format!(r#"{{"name":"x","shape":[16],"datatype":"FP32","data":[{}1]}}"#, "1,".repeat(15));
    let all = |one: &str, most: usize| vec![one; most].join(",");
    for one in [input, long.as_str()] {
        let decode = |most| decode(&format!(r#"{{"inputs":[{}]}}"#, all(one, most)));
        assert_eq!(decode(1024).unwrap().inputs.len(), 1024);
        assert!(decode(1025).unwrap_err().contains("more than 1024 tensors"));
    }
    let outputs = format!(r#"{{"inputs":[{input}],"outputs":[{}]}}"#, all(r#"{"name":"y"}"#, 1025));
    assert!(decode(&outputs).unwrap_err().contains("more than 1024 tensors"));
}

#[test]
fn binary_sizes_must_add_up_exactly() {
    let json =
        r#"{"inputs":[{"name":"x","shape":[2],"datatype":"FP32","parameters":{"binary_data_size":8}}]}"#;
    let decode =
        |extra: &[u8]| InferRequest::decode(&[json.as_bytes(), extra].concat().into(), Some(json.len()));
    assert!(decode(&[0; 8]).is_ok());
    assert!(decode(&[0; 7]).unwrap_err().to_string().contains("7 bytes of binary data are left"));
    assert!(decode(&[0; 9]).unwrap_err().to_string().contains("1 bytes of binary data belong to no input"));
    let wrong = json.replace(":8}", ":4}");
    let error =
        InferRequest::decode(&[wrong.as_bytes(), &[0; 4]].concat().into(), Some(wrong.len())).unwrap_err();
    assert!(error.to_string().contains("FP32 of shape [2] takes 8 bytes"));
    assert!(
        InferRequest::decode(&Bytes::from_static(b"{}"), Some(3))
            .unwrap_err()
            .to_string()
            .contains("the whole body has 2 bytes")
    );
}

proptest! {
    #[test]
    fn no_body_panics(body in prop::collection::vec(any::<u8>(), 0..200), len in prop::option::of(0usize..300)) {
        let _ = InferRequest::decode(&body.into(), len);
    }

    #[test]
    fn no_damaged_request_panics(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut body = br#"{"id":"a","inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[[1,2.5]]}],"outputs":[{"name":"y"}]}"#.to_vec();
        let at = at.index(body.len());
        body[at] = byte;
        let _ = InferRequest::decode(&body.into(), None);
    }
}
