//! TorchServe's paths, of its inference API and its management API. Decides by path and method only.

use super::{Address, Route, Target, Which, unknown, version};
use crate::dialect::Dialect;
use crate::refusal::Refusal;
use http::Method;

/// What is asked in TorchServe's words, beside predictions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question<'a> {
    /// `GET /ping`: whether traffic may come.
    Ping,
    /// `GET /models`: their names.
    Models,
    /// `GET /models/{m}[/{v}]`: how a version runs.
    Describe(Target<'a>),
    /// `GET /models/{m}/all`: how all versions run.
    DescribeAll(&'a str),
    /// `POST /models`: load the model that the query names.
    Register,
    /// `DELETE /models/{m}[/{v}]`: unload it.
    Unregister(Target<'a>),
}

pub(super) fn parse<'a>(method: &Method, path: &'a str) -> Result<(Route<'a>, &'static str), Refusal> {
    let unknown = || unknown(path);
    let mut parts = path.split('/').skip(1);
    let first = parts.next();
    let model = parts.next();
    if model.is_some_and(str::is_empty) {
        return Err(unknown());
    }
    let question = match (first, model, parts.next(), parts.next(), parts.next()) {
        (Some("ping"), None, ..) => (Question::Ping, "GET"),
        (Some("predictions"), Some(model), number, None, None) => {
            let number = number.map(|number| number_of(model, number)).transpose()?;
            let which = number.map_or(Which::Any, Which::Version);
            return Ok((Route::Infer(Dialect::TorchServe, Address { model, which }), "POST, PUT"));
        }
        (Some("models"), None, ..) if method == Method::POST => (Question::Register, "POST"),
        (Some("models"), None, ..) => (Question::Models, "GET, POST"),
        (Some("models"), Some(model), Some("all"), None, None) => (Question::DescribeAll(model), "GET"),
        (Some("models"), Some(model), number, None, None) => {
            let pinned = number.map(|number| number_of(model, number)).transpose()?;
            let target = Target { model, pinned };
            match *method {
                Method::PUT => return Err(scaling()),
                Method::DELETE => (Question::Unregister(target), "DELETE"),
                _ => (Question::Describe(target), "GET, PUT, DELETE"),
            }
        }
        (Some("models"), Some(_), Some(_), Some("set-default"), None) if method == Method::PUT => {
            return Err(Refusal::Unsupported(
                "which version answers is what the policy says: change its split, or its labels".into(),
            ));
        }
        _ => return Err(unknown()),
    };
    Ok((Route::TorchServe(question.0), question.1))
}

/// Versions are whole numbers here, and `1.0` in TorchServe.
fn number_of(model: &str, text: &str) -> Result<u64, Refusal> {
    version(model, text.strip_suffix(".0").unwrap_or(text))
}

fn scaling() -> Refusal {
    Refusal::Unsupported("how many workers a model has is measured when it is loaded, and not set".into())
}

impl Question<'_> {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Ping => "/ping",
            Self::Models | Self::Register => "/models",
            Self::Describe(Target { pinned: None, .. }) | Self::Unregister(Target { pinned: None, .. }) => {
                "/models/{model}"
            }
            Self::Describe(_) | Self::Unregister(_) => "/models/{model}/{version}",
            Self::DescribeAll(_) => "/models/{model}/all",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn predictions_are_posted_or_put_to_a_model_or_to_one_of_its_versions() {
        let infer = |which| Ok(Route::Infer(Dialect::TorchServe, Address { model: "m", which }));
        for method in [Method::POST, Method::PUT] {
            assert_eq!(Route::parse(&method, "/predictions/m"), infer(Which::Any));
            assert_eq!(Route::parse(&method, "/predictions/m/2"), infer(Which::Version(2)));
            assert_eq!(Route::parse(&method, "/predictions/m/2.0"), infer(Which::Version(2)));
        }
        let get = Route::parse(&Method::GET, "/predictions/m");
        assert_eq!(get, Err(Refusal::Method { allow: "POST, PUT" }));
    }

    #[test]
    fn models_are_listed_described_registered_and_unregistered() {
        let m = |pinned| Target { model: "m", pinned };
        for (method, path, question) in [
            (Method::GET, "/ping", Question::Ping),
            (Method::GET, "/models", Question::Models),
            (Method::POST, "/models", Question::Register),
            (Method::GET, "/models/m", Question::Describe(m(None))),
            (Method::GET, "/models/m/2", Question::Describe(m(Some(2)))),
            (Method::GET, "/models/m/all", Question::DescribeAll("m")),
            (Method::DELETE, "/models/m/1.0", Question::Unregister(m(Some(1)))),
        ] {
            assert_eq!(Route::parse(&method, path), Ok(Route::TorchServe(question)), "{method} {path}");
        }
        for path in ["/models/m", "/models/m/2", "/models/m/2/set-default"] {
            assert!(matches!(Route::parse(&Method::PUT, path), Err(Refusal::Unsupported(_))), "{path}");
        }
        let put = Route::parse(&Method::PUT, "/models");
        assert_eq!(put, Err(Refusal::Method { allow: "GET, POST" }));
    }

    #[test]
    fn anything_else_of_torchserve_is_not_found() {
        for path in
            ["/ping/", "/predictions", "/predictions/", "/predictions/m/x", "/models/", "/models/m/1/2"]
        {
            assert!(matches!(Route::parse(&Method::GET, path), Err(Refusal::NotFound(_))), "{path}");
        }
    }
}
