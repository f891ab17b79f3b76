//! A request whose protocol another server does not speak, in the words of the one that it does: the Open Inference Protocol
//! over HTTP, with Triton's binary tensors, or with JSON alone. And its answer, as the engine would give it, so that it can be written in any
//! protocol. Decides what such a server is asked; never which server that is.

use crate::call::JSON_LEN;
use crate::decode::InferRequest;
use crate::refusal::Refusal;
use crate::remote::Passed;
use crate::shadow::{AT_ONCE_BYTES, Written};
use crate::tensor_json::{is_finite, quote_non_finite, write_values};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use policies::Tensors;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::fmt::Display;
use wire::{Datatype, Infer, Reply};

/// They describe a body, or what its sender can read.
const OF_THE_BODY: [HeaderName; 5] =
    [header::CONTENT_TYPE, header::CONTENT_ENCODING, header::ACCEPT, header::ACCEPT_ENCODING, JSON_LEN];

/// Of what another server says is wrong no more is passed on.
const WORDS_MAX: usize = 1000;

/// What a request says beside its tensors: of itself, and of each input and output in their order.
#[derive(Debug, Default)]
pub struct Parameters {
    pub(crate) of_request: Map<String, Value>,
    pub(crate) of_inputs: Vec<Map<String, Value>>,
    pub(crate) of_outputs: Vec<Map<String, Value>>,
}

impl Parameters {
    /// Those in the JSON of a request that was read. How its tensors came and are wanted is not the other server's business.
    pub(crate) fn of_json(json: &[u8]) -> Self {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Tensor {
            parameters: Map<String, Value>,
        }
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Request {
            parameters: Map<String, Value>,
            inputs: Vec<Tensor>,
            outputs: Vec<Tensor>,
        }
        // What is not JSON for the words that it lacks was read all the same.
        let read = serde_json::from_slice(json).ok();
        let read = read.or_else(|| serde_json::from_slice(&quote_non_finite(json)?).ok());
        let Request { parameters, inputs, outputs } = read.unwrap_or_default();
        let others = |parameters: Map<String, Value>| -> Map<String, Value> {
            parameters.into_iter().filter(|(name, _)| !name.starts_with("binary_data")).collect()
        };
        let of_each =
            |tensors: Vec<Tensor>| tensors.into_iter().map(|tensor| others(tensor.parameters)).collect();
        Self { of_request: others(parameters), of_inputs: of_each(inputs), of_outputs: of_each(outputs) }
    }
}

/// What the engine would be asked, for another server, and what the engine is not told. Of `headers` those pass that concern
/// the caller.
///
/// # Errors
/// A tensor that has no form that the server takes.
pub(crate) fn written(
    (infer, payload): (&Infer, &Bytes),
    parameters: Parameters,
    headers: &HeaderMap,
    form: Tensors,
) -> Result<((Method, HeaderMap), Bytes), Refusal> {
    let Parameters { mut of_request, of_inputs, of_outputs } = parameters;
    let (mut of_inputs, mut of_outputs) = (of_inputs.into_iter(), of_outputs.into_iter());
    let (mut body, mut binary) = (b"{\"inputs\":[".to_vec(), Vec::new());
    for (index, input) in infer.inputs.iter().enumerate() {
        // Checked when the request was decoded.
        let Ok((datatype, at)) = input.locate(payload) else { continue };
        let bytes = &payload[at];
        let mut parameters = of_inputs.next().unwrap_or_default();
        if form == Tensors::Binary {
            parameters.insert("binary_data_size".into(), bytes.len().into());
        }
        let mut head = json!({"name": input.name, "datatype": datatype.name(), "shape": input.shape});
        if !parameters.is_empty() {
            head["parameters"] = parameters.into();
        }
        if index > 0 {
            body.push(b',');
        }
        body.extend_from_slice(head.to_string().as_bytes());
        match form {
            Tensors::Binary => binary.push(bytes),
            Tensors::Json => {
                body.truncate(body.len() - 1);
                body.extend_from_slice(b",\"data\":");
                let has_none = |why: &dyn Display| {
                    let name = &input.name;
                    Refusal::Unsupported(format!("input `{name}` {why}, and the other server takes no other"))
                };
                if !is_finite(datatype, bytes) {
                    return Err(has_none(&"has NaN or infinite values, which have no JSON form"));
                }
                write_values(&mut body, datatype, bytes).map_err(|error| has_none(&error))?;
                body.push(b'}');
            }
        }
    }
    body.push(b']');
    if form == Tensors::Binary {
        of_request.insert("binary_data_output".into(), true.into());
    }
    if infer.priority > 0 {
        of_request.insert("priority".into(), infer.priority.into());
    }
    if !of_request.is_empty() {
        body.extend_from_slice(format!(",\"parameters\":{}", Value::from(of_request)).as_bytes());
    }
    if !infer.outputs.is_empty() {
        let outputs = infer.outputs.iter().map(|name| match of_outputs.next() {
            Some(parameters) if !parameters.is_empty() => json!({"name": name, "parameters": parameters}),
            Some(_) | None => json!({"name": name}),
        });
        body.extend_from_slice(format!(",\"outputs\":{}", Value::from_iter(outputs)).as_bytes());
    }
    body.push(b'}');
    let json_len = body.len();
    binary.into_iter().for_each(|bytes| body.extend_from_slice(bytes));
    let mut passing = HeaderMap::new();
    let of_grpc = |name: &HeaderName| name.as_str().starts_with("grpc-");
    for (name, value) in headers.iter().filter(|(name, _)| !OF_THE_BODY.contains(name) && !of_grpc(name)) {
        passing.append(name.clone(), value.clone());
    }
    let media = match form {
        Tensors::Binary => {
            passing.insert(JSON_LEN, json_len.into());
            "application/octet-stream"
        }
        Tensors::Json => "application/json",
    };
    passing.insert(header::CONTENT_TYPE, HeaderValue::from_static(media));
    Ok(((Method::POST, passing), body.into()))
}

/// What the other server has computed, or why it has not. A long answer is read on another thread: on this one, clients wait.
pub(crate) async fn answer(passed: Passed) -> Result<(Reply, Bytes), Refusal> {
    if passed.body.len() <= AT_ONCE_BYTES {
        return read(&passed);
    }
    let reading = tokio::task::spawn_blocking(move || read(&passed)).await;
    reading.unwrap_or_else(|error| Err(Refusal::Internal(format!("another server's answer: {error}"))))
}

fn read(passed: &Passed) -> Result<(Reply, Bytes), Refusal> {
    match passed.refusal() {
        None => {
            let written = Written::of(passed);
            let (outputs, payload) = written.outputs().ok_or_else(|| match written.foreign() {
                // To those whom it is passed on to it may be of use: the version has not failed.
                Some(why) => {
                    let why: String = why.chars().take(WORDS_MAX).collect();
                    Refusal::Unsupported(format!(
                        "the other server's answer cannot be told in this protocol: {why}"
                    ))
                }
                None => Refusal::RemoteFailed("its answer is none of the Open Inference Protocol".into()),
            })?;
            Ok((Reply { outputs, ..Reply::default() }, payload))
        }
        Some(Refusal::Invalid(why)) => Err(Refusal::Invalid(words(passed).unwrap_or(why))),
        Some(Refusal::Unsupported(why)) => Err(Refusal::Unsupported(words(passed).unwrap_or(why))),
        Some(Refusal::Overloaded(why)) => Err(Refusal::Overloaded(words(passed).unwrap_or(why))),
        Some(refusal) => Err(refusal),
    }
}

/// Classes that the other server has ranked go on as they are: it knows how. What it has not ranked is ranked here if the
/// model is known here, for else nobody knows what its rows are.
pub(crate) fn settle_classes(
    request: &mut InferRequest,
    reply: &Reply,
    is_known: bool,
) -> Result<(), Refusal> {
    for wanted in request.outputs.iter_mut().filter(|wanted| wanted.classes > 0) {
        let is_ranked = |datatype: u32| datatype == Datatype::Bytes as u32;
        if reply.outputs.iter().any(|output| output.name == wanted.name && is_ranked(output.datatype)) {
            wanted.classes = 0;
        } else if !is_known {
            let name = &wanted.name;
            return Err(Refusal::Unsupported(format!(
                "the other server has not ranked the classes of output `{name}`, and nobody here knows the model"
            )));
        }
    }
    Ok(())
}

/// What it says is wrong: the protocol's `error`, else all that it says, as MLServer has a `detail` with the place. A page is for
/// people.
fn words(passed: &Passed) -> Option<String> {
    #[derive(Deserialize)]
    struct Wrong {
        error: String,
    }
    let wrong = serde_json::from_slice(&passed.body).map(|Wrong { error }| error);
    let said = wrong.ok().or_else(|| Some(str::from_utf8(&passed.body).ok()?.trim().to_owned()))?;
    let is_said = !said.is_empty() && !said.starts_with('<');
    is_said.then(|| said.chars().take(WORDS_MAX).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::RequestedOutput;
    use http::StatusCode;

    fn headers(all: &[(&'static str, &'static str)]) -> HeaderMap {
        all.iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    #[test]
    fn what_is_written_is_the_same_request() {
        let json = r#"{"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [0.5, -1]},
            {"name": "t", "shape": [2], "datatype": "BYTES", "data": ["a", ""]}], "outputs": [{"name": "y"}], "parameters": {"priority": 3}}"#;
        let request = InferRequest::decode(&json.into(), None).unwrap();
        let infer = Infer {
            inputs: request.inputs.clone(),
            outputs: vec!["y".into()],
            priority: request.priority,
            ..Infer::default()
        };
        let sent = headers(&[
            ("x-user-id", "ana"),
            ("content-type", "application/grpc"),
            ("grpc-timeout", "1S"),
            ("grpc-accept-encoding", "gzip"),
            ("content-encoding", "gzip"),
        ]);
        let written =
            |tensors| written((&infer, &request.payload), Parameters::default(), &sent, tensors).unwrap();
        let ((_, passing), body) = written(Tensors::Json);
        assert_eq!((passing.len(), passing[header::CONTENT_TYPE].as_bytes()), (2, &b"application/json"[..]));
        assert_eq!(InferRequest::decode(&body, None).unwrap(), request);
        let ((method, passing), body) = written(Tensors::Binary);
        assert_eq!(
            (method, passing.len(), &passing["x-user-id"]),
            (Method::POST, 3, &HeaderValue::from_static("ana"))
        );
        let json_len = passing[JSON_LEN].to_str().unwrap().parse().unwrap();
        let read = InferRequest::decode(&body, Some(json_len)).unwrap();
        assert!(read.binary_outputs);
        assert_eq!(read, InferRequest { binary_outputs: true, ..request });
    }

    #[test]
    fn what_has_no_form_that_the_other_server_takes_is_not_guessed() {
        let asked = |datatype: Datatype, bytes: &[u8], form| {
            let input = wire::TensorMeta {
                name: "x".into(),
                datatype: datatype as u32,
                shape: vec![1],
                bytes: bytes.len() as u64,
                ..wire::TensorMeta::default()
            };
            let infer = Infer { inputs: vec![input], ..Infer::default() };
            let payload = Bytes::copy_from_slice(bytes);
            written((&infer, &payload), Parameters::default(), &HeaderMap::new(), form).map(drop)
        };
        let (nan, infinite) = (f32::NAN.to_le_bytes(), f64::NEG_INFINITY.to_le_bytes());
        for (datatype, bytes, is) in [
            (Datatype::Fp16, &b"ab"[..], "is FP16, which has no JSON form"),
            (Datatype::Bytes, b"\x01\0\0\0\xff", "is not UTF-8, and has no JSON form"),
            (Datatype::Fp32, &nan, "has NaN or infinite values, which have no JSON form"),
            (Datatype::Fp64, &infinite, "has NaN or infinite values, which have no JSON form"),
        ] {
            assert_eq!(asked(datatype, bytes, Tensors::Binary), Ok(()));
            let says = format!("input `x` {is}, and the other server takes no other");
            assert_eq!(asked(datatype, bytes, Tensors::Json), Err(Refusal::Unsupported(says)));
        }
        assert_eq!(asked(Datatype::Fp32, &f32::MAX.to_le_bytes(), Tensors::Json), Ok(()));
    }

    #[test]
    fn what_json_says_beside_its_tensors_is_kept_but_for_the_form_that_they_have() {
        let json = br#"{"id": "a", "parameters": {"binary_data_output": true, "unit": "mm"},
            "inputs": [{"name": "x", "parameters": {"binary_data_size": 4}}, {"name": "y", "data": [NaN], "parameters": {"k": 1}}],
            "outputs": [{"name": "z", "parameters": {"binary_data": false, "classification": 3}}]}"#;
        let Parameters { of_request, of_inputs, of_outputs } = Parameters::of_json(json);
        let said = json!([of_request, of_inputs, of_outputs]);
        assert_eq!(said, json!([{"unit": "mm"}, [{}, {"k": 1}], [{"classification": 3}]]));
    }

    #[test]
    fn parameters_go_with_what_they_are_of() {
        let one = |name: &str, value: Value| Map::from_iter([(name.to_owned(), value)]);
        let parameters = Parameters {
            of_request: one("sequence_id", 7.into()),
            of_inputs: vec![Map::new(), one("unit", "mm".into())],
            of_outputs: vec![one("classification", 3.into())],
        };
        let input = |name: &str| wire::TensorMeta {
            name: name.into(),
            datatype: Datatype::Uint8 as u32,
            shape: vec![1],
            ..wire::TensorMeta::default()
        };
        let (inputs, outputs) = (vec![input("a"), input("b")], vec!["y".into(), "z".into()]);
        let infer = Infer { inputs, outputs, ..Infer::default() };
        let tensors = (&infer, &Bytes::from_static(b"x"));
        let (_, body) = written(tensors, parameters, &HeaderMap::new(), Tensors::Binary).unwrap();
        let json: Value = serde_json::from_slice(&body[..body.len() - 2]).unwrap();
        assert_eq!(json["parameters"], json!({"sequence_id": 7, "binary_data_output": true}));
        assert_eq!(json["inputs"][0]["parameters"], json!({"binary_data_size": 1}));
        assert_eq!(json["inputs"][1]["parameters"], json!({"binary_data_size": 1, "unit": "mm"}));
        let outputs = json!([{"name": "y", "parameters": {"classification": 3}}, {"name": "z"}]);
        assert_eq!(json["outputs"], outputs);
    }

    #[test]
    fn classes_are_ranked_by_who_knows_how() {
        let reply = |datatype: Datatype| Reply {
            outputs: vec![wire::TensorMeta {
                name: "y".into(),
                datatype: datatype as u32,
                ..wire::TensorMeta::default()
            }],
            ..Reply::default()
        };
        let settle = |datatype, is_known| {
            let wanted = RequestedOutput { name: "y".into(), classes: 3, ..RequestedOutput::default() };
            let mut request = InferRequest { outputs: vec![wanted], ..InferRequest::default() };
            settle_classes(&mut request, &reply(datatype), is_known).map(|()| request.outputs[0].classes)
        };
        assert_eq!((settle(Datatype::Bytes, false), settle(Datatype::Bytes, true)), (Ok(0), Ok(0)));
        assert_eq!(settle(Datatype::Fp32, true), Ok(3));
        assert!(matches!(settle(Datatype::Fp32, false), Err(Refusal::Unsupported(_))));
    }

    #[test]
    fn an_answer_is_what_the_other_server_computed_or_says() {
        let passed = |status, body: &str, all: &[(&'static str, &'static str)]| Passed {
            status: StatusCode::from_u16(status).unwrap(),
            headers: headers(all),
            body: body.to_owned().into(),
            hops: 0,
            haste: None,
        };
        let said = |status, body| read(&passed(status, body, &[])).unwrap_err().to_string();
        let head = r#"{"outputs":[{"name":"y","datatype":"UINT8","shape":[2],"parameters":{"binary_data_size":2}}]}"#;
        let length = head.len().to_string().leak();
        let (reply, payload) =
            read(&passed(200, &format!("{head}ab"), &[("inference-header-content-length", length)])).unwrap();
        assert_eq!((reply.outputs.len(), &payload[..]), (1, &b"ab"[..]));
        let foreign = r#"{"outputs":[{"name":"y","datatype":"INT4","shape":[1],"data":[7]}]}"#;
        let compressed = [("content-encoding", "gzip")];
        for foreign in [passed(200, foreign, &[]), passed(200, "?", &compressed)] {
            assert!(matches!(read(&foreign), Err(Refusal::Unsupported(_))), "{foreign:?}");
        }
        assert!(said(200, "[]").contains("its answer is none of the Open Inference Protocol"));
        assert!(said(200, "<html>").contains("something else than JSON"));
        assert!(said(400, r#"{"error": "no such input"}"#).contains("no such input"));
        assert!(
            said(422, r#"{"detail": [{"loc": ["body", "inputs"], "msg": "Field required"}]}"#)
                .contains("Field required")
        );
        assert!(said(413, "too large").contains("too large"));
        assert!(said(400, " ").contains("the other server says so"));
        assert!(said(400, "<html>").contains("the other server says so"), "that is no sentence");
        assert!(said(503, "?").contains("503") && said(404, "?").contains("404"));
        assert!(said(429, r#"{"error": "too much"}"#).contains("too much"));
    }

    #[tokio::test]
    async fn a_long_answer_is_not_read_where_clients_wait() {
        let passed = |elements: usize| {
            let data = vec!["1"; elements].join(",");
            let body = format!(
                r#"{{"outputs":[{{"name":"y","datatype":"UINT8","shape":[{elements}],"data":[{data}]}}]}}"#
            );
            Passed {
                status: StatusCode::OK,
                headers: HeaderMap::new(),
                body: body.into(),
                hops: 0,
                haste: None,
            }
        };
        for (elements, is_at_once) in [(10, true), (1 << 20, false)] {
            let mut reading = std::pin::pin!(answer(passed(elements)));
            let first =
                std::future::poll_fn(|context| std::task::Poll::Ready(reading.as_mut().poll(context)));
            let first = first.await;
            assert_eq!(first.is_ready(), is_at_once, "{elements}");
            let read = match first {
                std::task::Poll::Ready(read) => read,
                std::task::Poll::Pending => reading.await,
            };
            assert_eq!(read.unwrap().1.len(), elements);
        }
    }
}
