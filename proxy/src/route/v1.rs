//! Paths under `/v1`: TensorFlow Serving's and KServe's. Decides by path only.

use super::{Address, Route, Which, unknown, version};
use crate::dialect::Dialect;
use crate::refusal::Refusal;

/// What is asked of models under `/v1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question<'a> {
    /// `GET /v1/models`: their names.
    Models,
    /// `GET /v1/models/{m}[/versions/{v}|/labels/{l}]`: which versions there are and whether they answer.
    Status(Address<'a>),
    /// `GET /v1/models/{m}[/versions/{v}|/labels/{l}]/metadata`: inputs and outputs.
    Metadata(Address<'a>),
}

pub(super) fn parse(path: &str) -> Result<(Route<'_>, &'static str), Refusal> {
    let unknown = || unknown(path);
    let rest = path.strip_prefix("/v1/models").ok_or_else(unknown)?;
    if rest.is_empty() {
        return Ok((Route::V1(Question::Models), "GET"));
    }
    let rest = rest.strip_prefix('/').ok_or_else(unknown)?;
    let (rest, verb) = rest.rsplit_once(':').map_or((rest, None), |(rest, verb)| (rest, Some(verb)));
    let (rest, is_metadata) = match rest.strip_suffix("/metadata") {
        Some(rest) => (rest, true),
        None => (rest, false),
    };
    let mut parts = rest.split('/');
    let model = parts.next().filter(|model| !model.is_empty()).ok_or_else(unknown)?;
    let which = match (parts.next(), parts.next(), parts.next()) {
        (None, ..) => Which::Any,
        (Some("versions"), Some(number), None) => Which::Version(version(model, number)?),
        (Some("labels"), Some(label), None) => Which::Label(label),
        _ => return Err(unknown()),
    };
    let address = Address { model, which };
    match (verb, is_metadata) {
        (None, false) => Ok((Route::V1(Question::Status(address)), "GET")),
        (None, true) => Ok((Route::V1(Question::Metadata(address)), "GET")),
        (Some("predict"), false) => Ok((Route::Infer(Dialect::TfServing, address), "POST")),
        (Some(verb @ ("explain" | "classify" | "regress")), false) => {
            Err(Refusal::Unsupported(format!("`:{verb}` is not supported: use `:predict`")))
        }
        _ => Err(unknown()),
    }
}

impl Question<'_> {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Models => "/v1/models",
            Self::Status(Address { which: Which::Any, .. }) => "/v1/models/{model}",
            Self::Status(Address { which: Which::Version(_), .. }) => "/v1/models/{model}/versions/{version}",
            Self::Status(Address { which: Which::Label(_), .. }) => "/v1/models/{model}/labels/{label}",
            Self::Metadata(Address { which: Which::Any, .. }) => "/v1/models/{model}/metadata",
            Self::Metadata(Address { which: Which::Version(_), .. }) => {
                "/v1/models/{model}/versions/{version}/metadata"
            }
            Self::Metadata(Address { which: Which::Label(_), .. }) => {
                "/v1/models/{model}/labels/{label}/metadata"
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Method;

    fn get(path: &str) -> Result<Route<'_>, Refusal> {
        Route::parse(&Method::GET, path)
    }

    #[test]
    fn a_model_is_asked_as_a_whole_by_version_or_by_label() {
        let at = |which| Address { model: "digits", which };
        assert_eq!(get("/v1/models"), Ok(Route::V1(Question::Models)));
        for (place, which) in
            [("", Which::Any), ("/versions/2", Which::Version(2)), ("/labels/stable", Which::Label("stable"))]
        {
            let path = format!("/v1/models/digits{place}");
            assert_eq!(get(&path), Ok(Route::V1(Question::Status(at(which)))));
            let metadata = format!("{path}/metadata");
            assert_eq!(get(&metadata), Ok(Route::V1(Question::Metadata(at(which)))));
            let predict = format!("{path}:predict");
            let infer = Ok(Route::Infer(Dialect::TfServing, at(which)));
            assert_eq!(Route::parse(&Method::POST, &predict), infer);
            assert_eq!(get(&predict), Err(Refusal::Method { allow: "POST" }));
            let explain = format!("{path}:explain");
            assert!(matches!(Route::parse(&Method::POST, &explain), Err(Refusal::Unsupported(_))));
        }
    }

    #[test]
    fn anything_else_under_v1_is_not_found() {
        for path in [
            "/v1",
            "/v1/",
            "/v1/models/",
            "/v1/modelsx",
            "/v1/models/:predict",
            "/v1/models/m/predict",
            "/v1/models/m:guess",
            "/v1/models/m/versions/x:predict",
            "/v1/models/m/labels/a/b:predict",
            "/v1/models/m/metadata:predict",
            "/v1/models/m/versions/1/labels/a",
        ] {
            assert!(matches!(Route::parse(&Method::GET, path), Err(Refusal::NotFound(_))), "{path}");
        }
    }
}
