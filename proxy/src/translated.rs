//! A request whose protocol another server does not speak, in the words of the one that it does: the Open Inference Protocol
//! over HTTP, with Triton's binary tensors. And its answer, as the engine would give it, so that it can be written in any
//! protocol. Decides what such a server is asked; never which server that is.

use crate::call::JSON_LEN;
use crate::refusal::Refusal;
use crate::remote::Passed;
use crate::shadow::Written;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use serde::Deserialize;
use serde_json::json;
use wire::{Infer, Reply};

/// They describe a body, or what its sender can read.
const OF_THE_BODY: [HeaderName; 5] =
    [header::CONTENT_TYPE, header::CONTENT_ENCODING, header::ACCEPT, header::ACCEPT_ENCODING, JSON_LEN];

/// Of what another server says is wrong no more is passed on.
const WORDS_MAX: usize = 1000;

/// What the engine would be asked, for another server. Of `headers` those pass that concern the caller.
pub(crate) fn written(infer: &Infer, payload: &Bytes, headers: &HeaderMap) -> ((Method, HeaderMap), Bytes) {
    let mut tensors = Vec::new();
    let inputs = infer.inputs.iter().filter_map(|input| {
        // Checked when the request was decoded.
        let (datatype, at) = input.locate(payload).ok()?;
        let size = at.len();
        tensors.push(at);
        Some(json!({
            "name": input.name, "datatype": datatype.name(), "shape": input.shape, "parameters": {"binary_data_size": size}
        }))
    });
    let inputs: Vec<_> = inputs.collect();
    let mut json = json!({"inputs": inputs, "parameters": {"binary_data_output": true}});
    if !infer.outputs.is_empty() {
        json["outputs"] = infer.outputs.iter().map(|name| json!({"name": name})).collect();
    }
    if infer.priority > 0 {
        json["parameters"]["priority"] = infer.priority.into();
    }
    let mut body = json.to_string().into_bytes();
    let json_len = body.len();
    for at in tensors {
        body.extend_from_slice(&payload[at]);
    }
    let mut passing = HeaderMap::new();
    let of_grpc = |name: &HeaderName| name.as_str().starts_with("grpc-");
    for (name, value) in headers.iter().filter(|(name, _)| !OF_THE_BODY.contains(name) && !of_grpc(name)) {
        passing.append(name.clone(), value.clone());
    }
    passing.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    passing.insert(JSON_LEN, json_len.into());
    ((Method::POST, passing), body.into())
}

/// What the other server has computed, or why it has not.
pub(crate) fn answer(passed: &Passed) -> Result<(Reply, Bytes), Refusal> {
    match passed.refusal() {
        None => {
            let (outputs, payload) = Written::of(passed).outputs().ok_or_else(|| {
                Refusal::RemoteFailed("its answer is none of the Open Inference Protocol".into())
            })?;
            Ok((Reply { outputs, ..Reply::default() }, payload))
        }
        Some(Refusal::Invalid(why)) => Err(Refusal::Invalid(words(passed).unwrap_or(why))),
        Some(Refusal::Overloaded(why)) => Err(Refusal::Overloaded(words(passed).unwrap_or(why))),
        Some(refusal) => Err(refusal),
    }
}

/// What it says is wrong.
fn words(passed: &Passed) -> Option<String> {
    #[derive(Deserialize)]
    struct Wrong {
        error: String,
    }
    let Wrong { error } = serde_json::from_slice(&passed.body).ok()?;
    Some(error.chars().take(WORDS_MAX).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::InferRequest;
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
        let ((method, passing), body) = written(&infer, &request.payload, &sent);
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
    fn an_answer_is_what_the_other_server_computed_or_says() {
        let passed = |status, body: &str, all: &[(&'static str, &'static str)]| Passed {
            status: StatusCode::from_u16(status).unwrap(),
            headers: headers(all),
            body: body.to_owned().into(),
        };
        let said = |status, body| answer(&passed(status, body, &[])).unwrap_err().to_string();
        let head = r#"{"outputs":[{"name":"y","datatype":"UINT8","shape":[2],"parameters":{"binary_data_size":2}}]}"#;
        let length = head.len().to_string().leak();
        let (reply, payload) =
            answer(&passed(200, &format!("{head}ab"), &[("inference-header-content-length", length)]))
                .unwrap();
        assert_eq!((reply.outputs.len(), &payload[..]), (1, &b"ab"[..]));
        assert!(said(200, "<html>").contains("its answer is none of the Open Inference Protocol"));
        assert!(said(400, r#"{"error": "no such input"}"#).contains("no such input"));
        assert!(said(400, "?").contains("the other server says so"));
        assert!(said(503, "?").contains("503") && said(404, "?").contains("404"));
        assert!(said(429, r#"{"error": "too much"}"#).contains("too much"));
    }
}
