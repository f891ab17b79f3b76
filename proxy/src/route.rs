//! Which question a path asks. Decides by path and method only; never looks at policy or models.

pub mod torchserve;
pub mod v1;

use crate::dialect::Dialect;
use crate::extensions::Extension;
use crate::refusal::Refusal;
use http::Method;
use wire::Action;

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route<'a> {
    /// `GET /`: a page for people.
    Index,
    /// `GET /openapi.json`: all of this, for machines.
    OpenApi,
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
    /// Run a model: `POST /v2/models/{m}[/versions/{v}|/labels/{l}]/infer`, or what says so in another protocol.
    Infer(Dialect, Address<'a>),
    /// `POST /v2/repository/index`.
    Repository,
    /// `POST /v2/repository/models/{m}[/versions/{v}]/{load|unload}`.
    Order(Action, Target<'a>),
    /// Questions of Triton's extensions.
    Extension(Extension<'a>),
    /// TensorFlow Serving's and KServe V1's.
    V1(v1::Question<'a>),
    /// TorchServe's.
    TorchServe(torchserve::Question<'a>),
}

/// Which model, and which version if the path pins one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target<'a> {
    /// Model name.
    pub model: &'a str,
    /// Version in the path; it beats the policy.
    pub pinned: Option<u64>,
}

/// Which model, and which of its versions, in whatever way the path names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address<'a> {
    /// Model name.
    pub model: &'a str,
    /// Its version.
    pub which: Which<'a>,
}

/// A version, as a path names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which<'a> {
    /// The policy decides.
    Any,
    /// By its number; it beats the policy.
    Version(u64),
    /// By a label of the policy's, which beats what else the policy says.
    Label(&'a str),
}

impl<'a> Address<'a> {
    /// The model and the number, where the path has one.
    pub fn target(self) -> Target<'a> {
        let pinned = match self.which {
            Which::Version(number) => Some(number),
            Which::Any | Which::Label(_) => None,
        };
        Target { model: self.model, pinned }
    }

    /// The label, where the path has one.
    pub fn label(self) -> Option<&'a str> {
        match self.which {
            Which::Label(label) => Some(label),
            Which::Any | Which::Version(_) => None,
        }
    }
}

impl<'a> Route<'a> {
    /// Parses `path` (without its query).
    pub fn parse(method: &Method, path: &'a str) -> Result<Self, Refusal> {
        let (route, allow) = match Dialect::of_path(path) {
            Dialect::OpenInference => Self::of_path(path)?,
            Dialect::TfServing => v1::parse(path)?,
            Dialect::TorchServe => torchserve::parse(method, path)?,
        };
        let named = if method == Method::HEAD { "GET" } else { method.as_str() };
        let fits = allow.split(", ").any(|allowed| allowed == named);
        if fits { Ok(route) } else { Err(Refusal::Method { allow }) }
    }

    /// The path with placeholders, for spans and metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Index => "/",
            Self::OpenApi => "/openapi.json",
            Self::Server => "/v2",
            Self::Live => "/v2/health/live",
            Self::Ready => "/v2/health/ready",
            Self::Model(Target { pinned: None, .. }) => "/v2/models/{model}",
            Self::Model(_) => "/v2/models/{model}/versions/{version}",
            Self::ModelReady(Target { pinned: None, .. }) => "/v2/models/{model}/ready",
            Self::ModelReady(_) => "/v2/models/{model}/versions/{version}/ready",
            Self::Infer(Dialect::OpenInference, Address { which, .. }) => match which {
                Which::Any => "/v2/models/{model}/infer",
                Which::Version(_) => "/v2/models/{model}/versions/{version}/infer",
                Which::Label(_) => "/v2/models/{model}/labels/{label}/infer",
            },
            Self::Infer(Dialect::TfServing, Address { which, .. }) => match which {
                Which::Any => "/v1/models/{model}:predict",
                Which::Version(_) => "/v1/models/{model}/versions/{version}:predict",
                Which::Label(_) => "/v1/models/{model}/labels/{label}:predict",
            },
            Self::Infer(Dialect::TorchServe, Address { which, .. }) => match which {
                Which::Any | Which::Label(_) => "/predictions/{model}",
                Which::Version(_) => "/predictions/{model}/{version}",
            },
            Self::Repository => "/v2/repository/index",
            Self::Extension(extension) => extension.name(),
            Self::Order(Action::Unload, Target { pinned: None, .. }) => {
                "/v2/repository/models/{model}/unload"
            }
            Self::Order(Action::Unload, _) => "/v2/repository/models/{model}/versions/{version}/unload",
            Self::Order(_, Target { pinned: None, .. }) => "/v2/repository/models/{model}/load",
            Self::Order(..) => "/v2/repository/models/{model}/versions/{version}/load",
            Self::V1(question) => question.name(),
            Self::TorchServe(question) => question.name(),
        }
    }

    fn of_path(path: &'a str) -> Result<(Self, &'static str), Refusal> {
        let unknown = || unknown(path);
        match path {
            "/" => return Ok((Self::Index, "GET")),
            "/openapi.json" => return Ok((Self::OpenApi, "GET")),
            _ => {}
        }
        let rest = path.strip_prefix("/v2").ok_or_else(unknown)?;
        match rest {
            "" | "/" => return Ok((Self::Server, "GET")),
            "/health/live" => return Ok((Self::Live, "GET")),
            "/health/ready" => return Ok((Self::Ready, "GET")),
            "/repository/index" => return Ok((Self::Repository, "POST")),
            _ => {}
        }
        if rest.starts_with("/systemsharedmemory/") || rest.starts_with("/cudasharedmemory/") {
            return Err(Refusal::Unsupported("shared memory is not supported".into()));
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
        let label = rest.strip_prefix("labels/").and_then(|rest| rest.strip_suffix("/infer"));
        if let (false, false, Some(label)) = (is_repository, model.is_empty(), label) {
            let address = Address { model, which: Which::Label(label) };
            return Ok((Self::Infer(Dialect::OpenInference, address), "POST"));
        }
        let (pinned, rest) = match rest.strip_prefix("versions/") {
            None => (None, rest),
            Some(rest) => {
                let (version, rest) = rest.split_once('/').unwrap_or((rest, ""));
                (Some(self::version(model, version)?), rest)
            }
        };
        if model.is_empty() {
            return Err(unknown());
        }
        let target = Target { model, pinned };
        match (is_repository, rest) {
            (false, "") => Ok((Self::Model(target), "GET")),
            (false, "ready") => Ok((Self::ModelReady(target), "GET")),
            (false, "infer") => {
                let address = Address { model, which: pinned.map_or(Which::Any, Which::Version) };
                Ok((Self::Infer(Dialect::OpenInference, address), "POST"))
            }
            (false, "generate" | "generate_stream") => {
                Err(Refusal::Unsupported("`generate` is not supported: use `infer`".into()))
            }
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

fn unknown(path: &str) -> Refusal {
    Refusal::NotFound(format!("no such path: {path}"))
}

fn version(model: &str, text: &str) -> Result<u64, Refusal> {
    let version: policies::Version = text.parse().map_err(|_| {
        Refusal::NotFound(format!("version `{text}` of model `{model}`: versions are whole numbers"))
    })?;
    Ok(version.0)
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
        let post = |path| Route::parse(&Method::POST, path);
        for (path, which) in [
            ("/v2/models/digits/infer", Which::Any),
            ("/v2/models/digits/versions/2/infer", Which::Version(2)),
            ("/v2/models/digits/labels/stable/infer", Which::Label("stable")),
        ] {
            let address = Address { model: "digits", which };
            assert_eq!(post(path), Ok(Route::Infer(Dialect::OpenInference, address)));
        }
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
            "",
            "/index.html",
            "/v3",
            "/v2/models/",
            "/v2/models//infer",
            "/v2/models/a/b",
            "/v2/models/a/versions/x",
            "/v2x",
            "/v2/models/a/load",
            "/v2/models/a/labels/b",
            "/v2/models//labels/b/infer",
            "/v2/repository/models/a/infer",
            "/v2/repository/models/a",
            "/v2/systemsharedmemory",
        ] {
            assert!(matches!(get(path), Err(Refusal::NotFound(_))), "{path}");
        }
    }
}
