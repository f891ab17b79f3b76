//! Which question a path asks. Decides by path and method only; never looks at policy or models.

use crate::extensions::Extension;
use crate::refusal::Refusal;
use http::Method;
use wire::Action;

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route<'a> {
    /// `GET /v2`: who is this server.
    Server,
    /// `GET /v2/health/live`.
    Live,
    /// `GET /v2/health/ready`.
    Ready,
    /// `GET /v2/models/{m}[/versions/{v}]`: inputs and outputs.
    Model(Target<'a>),
    /// `GET /v2/models/{m}[/versions/{v}]/ready`.
    ModelReady(Target<'a>),
    /// `POST /v2/models/{m}[/versions/{v}]/infer`.
    Infer(Target<'a>),
    /// `POST /v2/repository/index`.
    Repository,
    /// `POST /v2/repository/models/{m}[/versions/{v}]/{load|unload}`.
    Order(Action, Target<'a>),
    /// Questions of Triton's extensions.
    Extension(Extension<'a>),
}

/// Which model, and which version if the path pins one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target<'a> {
    /// Model name.
    pub model: &'a str,
    /// Version in the path; it beats the policy.
    pub pinned: Option<u64>,
}

impl<'a> Route<'a> {
    /// Parses `path` (without its query).
    pub fn parse(method: &Method, path: &'a str) -> Result<Self, Refusal> {
        let (route, allow) = Self::of_path(path)?;
        let asked = if method == Method::HEAD { "GET" } else { method.as_str() };
        let fits = allow.split(", ").any(|one| one == asked);
        if fits { Ok(route) } else { Err(Refusal::Method { allow }) }
    }

    /// The path with placeholders, for spans and metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Server => "/v2",
            Self::Live => "/v2/health/live",
            Self::Ready => "/v2/health/ready",
            Self::Model(Target { pinned: None, .. }) => "/v2/models/{model}",
            Self::Model(_) => "/v2/models/{model}/versions/{version}",
            Self::ModelReady(Target { pinned: None, .. }) => "/v2/models/{model}/ready",
            Self::ModelReady(_) => "/v2/models/{model}/versions/{version}/ready",
            Self::Infer(Target { pinned: None, .. }) => "/v2/models/{model}/infer",
            Self::Infer(_) => "/v2/models/{model}/versions/{version}/infer",
            Self::Repository => "/v2/repository/index",
            Self::Order(Action::Unload, _) => "/v2/repository/models/{model}/unload",
            Self::Order(..) => "/v2/repository/models/{model}/load",
            Self::Extension(extension) => extension.name(),
        }
    }

    fn of_path(path: &'a str) -> Result<(Self, &'static str), Refusal> {
        let unknown = || Refusal::NotFound(format!("no such path: {path}"));
        let rest = path.strip_prefix("/v2").ok_or_else(unknown)?;
        match rest {
            "" | "/" => return Ok((Self::Server, "GET")),
            "/health/live" => return Ok((Self::Live, "GET")),
            "/health/ready" => return Ok((Self::Ready, "GET")),
            "/repository/index" => return Ok((Self::Repository, "POST")),
            _ => {}
        }
        if let Some((extension, allow)) = Extension::of_path(rest) {
            return Ok((Self::Extension(extension), allow));
        }
        let (is_repository, rest) = match rest.strip_prefix("/repository") {
            Some(rest) => (true, rest),
            None => (false, rest),
        };
        let rest = rest.strip_prefix("/models/").ok_or_else(unknown)?;
        let (model, rest) = rest.split_once('/').unwrap_or((rest, ""));
        let (pinned, rest) = match rest.strip_prefix("versions/") {
            None => (None, rest),
            Some(rest) => {
                let (version, rest) = rest.split_once('/').unwrap_or((rest, ""));
                let version: policies::Version = version.parse().map_err(|_| {
                    Refusal::NotFound(format!(
                        "version `{version}` of model `{model}`: versions are whole numbers"
                    ))
                })?;
                (Some(version.0), rest)
            }
        };
        if model.is_empty() {
            return Err(unknown());
        }
        let target = Target { model, pinned };
        match (is_repository, rest) {
            (false, "") => Ok((Self::Model(target), "GET")),
            (false, "ready") => Ok((Self::ModelReady(target), "GET")),
            (false, "infer") => Ok((Self::Infer(target), "POST")),
            (true, "load") => Ok((Self::Order(Action::Load, target), "POST")),
            (true, "unload") => Ok((Self::Order(Action::Unload, target), "POST")),
            (false, rest) => {
                let (extension, allow) = Extension::of_model(target, rest).ok_or_else(unknown)?;
                Ok((Self::Extension(extension), allow))
            }
            (true, _) => Err(unknown()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(path: &str) -> Result<Route<'_>, Refusal> {
        Route::parse(&Method::GET, path)
    }

    #[test]
    fn paths_name_their_question() {
        let digits = |pinned| Target { model: "digits", pinned };
        assert_eq!(get("/v2"), Ok(Route::Server));
        assert_eq!(get("/v2/health/live"), Ok(Route::Live));
        assert_eq!(get("/v2/health/ready"), Ok(Route::Ready));
        assert_eq!(get("/v2/models/digits"), Ok(Route::Model(digits(None))));
        assert_eq!(get("/v2/models/digits/versions/2"), Ok(Route::Model(digits(Some(2)))));
        assert_eq!(get("/v2/models/digits/versions/2/ready"), Ok(Route::ModelReady(digits(Some(2)))));
        let infer = Route::parse(&Method::POST, "/v2/models/digits/infer");
        assert_eq!(infer, Ok(Route::Infer(digits(None))));
        let post = |path| Route::parse(&Method::POST, path);
        assert_eq!(post("/v2/repository/index"), Ok(Route::Repository));
        let load = post("/v2/repository/models/digits/load");
        assert_eq!(load, Ok(Route::Order(Action::Load, digits(None))));
        let unload = post("/v2/repository/models/digits/versions/2/unload");
        assert_eq!(unload, Ok(Route::Order(Action::Unload, digits(Some(2)))));
    }

    #[test]
    fn extensions_have_paths_of_their_own() {
        let digits = |pinned| Target { model: "digits", pinned };
        let extension = |path| match get(path) {
            Ok(Route::Extension(extension)) => extension,
            other => panic!("{path}: {other:?}"),
        };
        assert_eq!(extension("/v2/models"), Extension::Models);
        assert_eq!(extension("/v2/models/stats"), Extension::Statistics(None));
        assert_eq!(extension("/v2/models/digits/stats"), Extension::Statistics(Some(digits(None))));
        assert_eq!(extension("/v2/models/digits/versions/2/config"), Extension::Config(digits(Some(2))));
        assert_eq!(extension("/v2/models/digits/trace/setting"), Extension::Trace(Some("digits")));
        for path in ["/v2/trace/setting", "/v2/logging"] {
            assert_eq!(Route::parse(&Method::POST, path), get(path));
            assert_eq!(Route::parse(&Method::PUT, path), Err(Refusal::Method { allow: "GET, POST" }));
        }
        assert_eq!(Route::parse(&Method::POST, "/v2/models"), Err(Refusal::Method { allow: "GET" }));
        assert!(matches!(get("/v2/models/digits/versions/1/trace/setting"), Err(Refusal::NotFound(_))));
    }

    #[test]
    fn a_wrong_method_says_the_right_one() {
        assert_eq!(get("/v2/models/digits/infer"), Err(Refusal::Method { allow: "POST" }));
        assert_eq!(Route::parse(&Method::POST, "/v2"), Err(Refusal::Method { allow: "GET" }));
        assert_eq!(Route::parse(&Method::HEAD, "/v2/health/live"), Ok(Route::Live));
    }

    #[test]
    fn anything_else_is_not_found() {
        for path in [
            "/",
            "/v3",
            "/v2/models/",
            "/v2/models//infer",
            "/v2/models/a/b",
            "/v2/models/a/versions/x",
            "/v2x",
            "/v2/models/a/load",
            "/v2/repository/models/a/infer",
            "/v2/repository/models/a",
        ] {
            assert!(matches!(get(path), Err(Refusal::NotFound(_))), "{path}");
        }
    }
}
