//! TorchServe's predictions. Its handlers are Python and take whatever they like; here a body is JSON (the values of the
//! first input, or an object of them by input), or, where the first input is one of bytes, anything else as it is; alone
//! or as a part of a form. Decides how outputs are told without a shape; knows no model.

use crate::call::Inferred;
use crate::columns::{Columns, Each};
use crate::decode::InferRequest;
use crate::dialect::classes::Classes;
use crate::dialect::tf_serving::by_name;
use crate::dialect::{Form, Output, outputs};
use crate::nested;
use crate::refusal::Refusal;
use bytes::Bytes;
use http::{HeaderMap, header};
use serde::de::DeserializeSeed;
use wire::ModelEntry;

mod multipart;

use multipart::Part;

/// What handlers call the one thing that they are sent.
const ALIASES: &[&str] = &["data", "body"];

/// Reads a body, and in which form its answer is wanted.
pub(crate) fn decode(
    headers: &HeaderMap,
    body: &Bytes,
    entry: &ModelEntry,
) -> Result<(InferRequest, Form), Refusal> {
    let mut columns = Columns::new(entry, ALIASES)?;
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    match content_type.filter(|content_type| multipart::is_form(content_type)) {
        None if columns.takes_bytes() && !is_json(content_type, body) => columns.push(body),
        None => columns = whole(&columns, body)?,
        Some(content_type) => {
            let parts = multipart::parts(content_type, body)?;
            if parts.is_empty() {
                return Err(Refusal::Invalid("request body: the form has no part".into()));
            }
            for Part { name, content_type, content } in &parts {
                let is_first = columns.is_first(name);
                if is_first && columns.takes_bytes() && !is_json(content_type.as_deref(), content) {
                    if columns.rows() > 0 {
                        return Err(Refusal::Invalid(format!("request body: a second part is `{name}`")));
                    }
                    columns.push(content);
                    continue;
                }
                columns = if columns.is_alias(name) {
                    whole(&columns, content)?
                } else {
                    nested::parse(content, |parser| {
                        let mut columns = columns.clone();
                        columns.named(name)?.deserialize(parser)?;
                        Ok(columns)
                    })?
                };
            }
        }
    }
    let (request, is_row) = columns.into_request(Each::WholeOrRow);
    let rows = request.inputs.first().and_then(|input| input.shape.first());
    let has_rows = entry.inputs.iter().all(|spec| spec.shape.first() == Some(&-1));
    let form = match rows {
        _ if is_row => Form::Row,
        Some(rows) if has_rows => Form::Rows(*rows),
        _ => Form::Outputs,
    };
    Ok((request, form))
}

/// Whether bytes are written as JSON: if their type says so, or says nothing and they look like it.
fn is_json(content_type: Option<&str>, body: &[u8]) -> bool {
    let media = content_type.and_then(|media| media.split(';').next()).unwrap_or_default().trim();
    match media.to_ascii_lowercase().as_str() {
        // The second is what curl says of everything.
        "" | "application/x-www-form-urlencoded" => {
            matches!(body.trim_ascii_start().first(), Some(b'{' | b'['))
        }
        media => media == "application/json" || media.ends_with("+json"),
    }
}

/// JSON that is a value of the first input, or one for each input by name.
fn whole<'e>(before: &Columns<'e>, json: &[u8]) -> Result<Columns<'e>, Refusal> {
    nested::parse(json, |parser| {
        let mut columns = before.clone();
        columns.next().deserialize(parser)?;
        Ok(columns)
    })
}

/// Writes an answer for the only row, for each row of a list, or for all as a whole: the classes that the model's author
/// has declared, else each output by its name.
pub(crate) fn encode(form: Form, inferred: &Inferred<'_>) -> Result<Bytes, Refusal> {
    let mut outputs = outputs(inferred)?;
    let classes = Classes::find(inferred.entry, &outputs);
    let mut json = Vec::with_capacity(64 + 4 * inferred.payload.len().min(1 << 20));
    let has_rows = |rows: u64| outputs.iter().all(|output| output.shape.first() == Some(&rows));
    let put = |json: &mut Vec<u8>, outputs: &mut [Output<'_>], row: u64| match &classes {
        Some(classes) => classes.write(json, row as usize),
        None => by_name(json, outputs, 1),
    };
    match form {
        Form::Row if has_rows(1) => put(&mut json, &mut outputs, 0),
        Form::Rows(rows) if has_rows(rows) => {
            json.push(b'[');
            for row in 0..rows {
                if row > 0 {
                    json.push(b',');
                }
                put(&mut json, &mut outputs, row);
            }
            json.push(b']');
        }
        Form::Row | Form::Rows(_) | Form::Outputs => by_name(&mut json, &mut outputs, 0),
    }
    Ok(json.into())
}

/// The name that TorchServe's clients know a refusal by.
pub(crate) fn exception(refusal: &Refusal) -> &'static str {
    match refusal {
        Refusal::Invalid(_)
        | Refusal::OutputsTooLarge(_)
        | Refusal::TooLarge { .. }
        | Refusal::Oversized { .. } => "BadRequestException",
        Refusal::NotFound(_) => "ModelNotFoundException",
        Refusal::Forbidden(_) => "ForbiddenException",
        Refusal::Unsupported(_) => "NotImplementedException",
        Refusal::Method { .. } => "MethodNotAllowedException",
        Refusal::Encoding { .. } => "UnsupportedMediaTypeException",
        Refusal::BodyTimeout { .. } | Refusal::DeadlineExceeded { .. } | Refusal::RemoteTimeout { .. } => {
            "RequestTimeoutException"
        }
        Refusal::Limited { .. } | Refusal::Crowded(_) => "TooManyRequestsException",
        Refusal::Overloaded(_)
        | Refusal::Busy { .. }
        | Refusal::Tripped { .. }
        | Refusal::NotReady(_)
        | Refusal::EngineDown(_) => "ServiceUnavailableException",
        Refusal::ModelFailed(_)
        | Refusal::RemoteFailed(_)
        | Refusal::RemoteUnreachable(_)
        | Refusal::Looping { .. }
        | Refusal::Internal(_)
        | Refusal::ClientGone => "InternalServerException",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dialect::tf_serving::tests::{entry, reply};

    fn read(content_type: &str, body: &str) -> Result<(InferRequest, Form), String> {
        let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, content_type.parse().unwrap())]);
        let body = Bytes::copy_from_slice(body.as_bytes());
        decode(&headers, &body, &entry()).map_err(|refusal| refusal.to_string())
    }

    fn form(parts: &[(&str, &str)]) -> String {
        let part = |(name, content): &(&str, &str)| {
            format!(
                "--AbC\r\nContent-Disposition: form-data; name=\"{name}\"; filename=\"f\"\r\n\r\n{content}\r\n"
            )
        };
        parts.iter().map(part).collect::<String>() + "--AbC--\r\n"
    }

    const CURL: &str = "application/x-www-form-urlencoded";
    const FORM: &str = "multipart/form-data; boundary=AbC";

    #[test]
    fn json_is_read_by_name_or_as_the_first_input_whatever_its_type_says() {
        let (request, how) = read(CURL, r#"{"ids": [[1, 2], [3, 4]], "weight": [5, 6]}"#).unwrap();
        assert_eq!((request.inputs[0].shape.as_slice(), how), (&[2, 2][..], Form::Rows(2)));
        let (bare, how) = read("application/json", "[[1, 2], [3, 4]]").unwrap();
        assert_eq!((bare.inputs.len(), how), (1, Form::Rows(2)));
        assert_eq!(read(CURL, r#"{"data": [[1, 2], [3, 4]]}"#).unwrap().0, bare);
        let (row, how) = read(CURL, r#"{"ids": [1, 2], "weight": 5}"#).unwrap();
        assert_eq!((row.inputs[1].shape.as_slice(), how), (&[1][..], Form::Row));
    }

    #[test]
    fn the_parts_of_a_form_are_inputs() {
        let whole = read(CURL, r#"{"ids": [[1, 2]], "weight": [5]}"#);
        assert_eq!(read(FORM, &form(&[("ids", "[[1, 2]]"), ("weight", "[5]")])), whole);
        assert_eq!(read(FORM, &form(&[("data", r#"{"ids": [[1, 2]], "weight": [5]}"#)])), whole);
        assert_eq!(read(FORM, &form(&[("body", "[[1, 2]]")])), read(CURL, "[[1, 2]]"));
    }

    #[test]
    fn bytes_come_as_they_are_or_as_json() {
        let spec = wire::TensorSpec {
            name: "image".into(),
            datatype: wire::Datatype::Bytes as u32,
            shape: vec![-1],
            ..wire::TensorSpec::default()
        };
        let entry = ModelEntry { inputs: vec![spec], ..entry() };
        let read = |content_type: Option<&str>, body: &[u8]| {
            let headers = content_type.map(|media| (header::CONTENT_TYPE, media.parse().unwrap()));
            decode(&HeaderMap::from_iter(headers), &Bytes::copy_from_slice(body), &entry)
        };
        let (whole, form_of) = read(None, b"\xff\xd8").unwrap();
        assert_eq!((&whole.payload[..], form_of), (&b"\x02\0\0\0\xff\xd8"[..], Form::Row));
        assert_eq!((&whole.inputs[0].shape[..], whole.inputs[0].bytes), (&[1][..], 6));
        let part = b"--AbC\r\nContent-Disposition: form-data; name=\"data\"\r\nContent-Type: image/jpeg\r\n\r\n\xff\xd8\r\n--AbC--\r\n";
        let same: [(Option<&str>, &[u8]); 5] = [
            (Some("image/jpeg"), b"\xff\xd8"),
            (Some(FORM), part),
            (Some("application/json"), br#"{"b64": "/9g="}"#),
            (Some(CURL), br#"{"image": {"b64": "/9g="}}"#),
            (None, br#"{"data": {"b64": "/9g="}}"#),
        ];
        for (content_type, body) in same {
            assert_eq!(read(content_type, body).unwrap().0, whole, "{content_type:?}");
        }
        let (text, _) = read(Some("text/plain"), b"[1]").unwrap();
        assert_eq!(&text.payload[4..], b"[1]");
        let (rows, form_of) = read(None, br#"["a", "b"]"#).unwrap();
        assert_eq!((rows.inputs[0].shape[0], form_of), (2, Form::Rows(2)));
        let twice = [&part[..part.len() - 9], &part[..]].concat();
        assert!(read(Some(FORM), &twice).is_err());
    }

    #[test]
    fn a_form_that_makes_no_sense_says_why() {
        for (content_type, body, says) in [
            (FORM, form(&[]), "the form has no part"),
            (FORM, form(&[("image", "[1]")]), "model `m` has no input `image`"),
            (FORM, form(&[("ids", "[1, 2]"), ("ids", "[1, 2]")]), "`ids` occurs twice"),
            (FORM, form(&[("ids", "one")]), "expected"),
            (FORM, "[1, 2]".into(), "form"),
            (FORM, form(&[("ids", "[1]")])[..60].into(), "form"),
            ("multipart/form-data", form(&[("ids", "[1]")]), "boundary"),
            (CURL, "pixels=7".into(), "expected"),
            (CURL, String::new(), "EOF"),
        ] {
            let error = read(content_type, &body).unwrap_err();
            assert!(error.contains(says), "{content_type} {body}: {error}");
        }
    }

    #[test]
    fn outputs_are_told_by_name_row_by_row_where_they_have_rows() {
        let (reply, payload) = reply(&[("y", &[2, 2], &[1, 2, 3, 4]), ("z", &[2], &[5, 6])]);
        let inferred = Inferred { model: "m", version: 1, entry: None, reply: &reply, payload: &payload };
        for (form, says) in [
            (Form::Rows(2), r#"[{"y":[1,2],"z":5},{"y":[3,4],"z":6}]"#),
            (Form::Row, r#"{"y":[[1,2],[3,4]],"z":[5,6]}"#),
            (Form::Outputs, r#"{"y":[[1,2],[3,4]],"z":[5,6]}"#),
        ] {
            assert_eq!(encode(form, &inferred).unwrap(), says);
        }
    }
}
