//! What a request says about its caller: a header, a cookie or a query parameter, named in a policy and read from the
//! request's head; for rules its path, which tells by which protocol it came; and for the sticky key alone a field of its
//! body, which is known only once that has been read.
//!
//! An empty value is no value. A caller whose user id is "" has no identity, and treating the empty text as one would
//! put all such callers into the same arm.

use std::borrow::Cow;
use std::fmt;

use compact_str::CompactString;

/// Where a request's headers, cookies and path can be read.
pub trait Attributes {
    /// The first value of the header called `name`, which is in lower case.
    fn header(&self, name: &str) -> Option<Cow<'_, str>>;

    /// The first value of the cookie called `name`, matched exactly.
    fn cookie(&self, name: &str) -> Option<Cow<'_, str>>;

    /// The first value of the query parameter called `name`, decoded: there are several ways to write the same.
    fn query(&self, name: &str) -> Option<Cow<'_, str>>;

    /// What was asked for, without the query, decoded. Of a gRPC call it is `/SERVICE/METHOD`.
    fn path(&self) -> Cow<'_, str>;

    /// The value of the one field of the body that the model's sticky key names, see
    /// [`ModelPolicy::asks_of_body`](crate::ModelPolicy::asks_of_body); `None` before the body has been read.
    fn of_body(&self) -> Option<&str> {
        None
    }
}

/// The name of one thing to read from a request.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Attribute {
    /// A header, in lower case.
    Header(CompactString),
    /// A cookie.
    Cookie(CompactString),
    /// A parameter of the query.
    Query(CompactString),
    /// The path, of which there is one.
    Path,
    /// A field of the body.
    Body(Field),
}

/// The name of one thing to read from a request's body.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Field {
    /// A parameter of the request: a text, a whole number, or `true` and `false`.
    Parameter(CompactString),
    /// The first element of an input of whole numbers or BYTES.
    Input(CompactString),
}

impl Attribute {
    /// This attribute's value in `caller`; empty values count as absent.
    pub fn of<'a>(&self, caller: &'a impl Attributes) -> Option<Cow<'a, str>> {
        let value = match self {
            Self::Header(name) => caller.header(name),
            Self::Cookie(name) => caller.cookie(name),
            Self::Query(name) => caller.query(name),
            Self::Path => Some(caller.path()),
            Self::Body(_) => caller.of_body().map(Cow::Borrowed),
        };
        value.filter(|value| !value.is_empty())
    }
}

impl fmt::Display for Attribute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header(name) => write!(f, "header {name}"),
            Self::Cookie(name) => write!(f, "cookie {name}"),
            Self::Query(name) => write!(f, "query parameter {name}"),
            Self::Path => f.write_str("the path"),
            Self::Body(Field::Parameter(name)) => write!(f, "parameter {name}"),
            Self::Body(Field::Input(name)) => write!(f, "first element of input {name}"),
        }
    }
}

/// What a policy asks of a caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Condition {
    pub(crate) attribute: Attribute,
    pub(crate) test: Test,
}

/// What a condition asks of its attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Test {
    Equals(Box<str>),
    StartsWith(Box<str>),
    Present,
    Absent,
}

impl Condition {
    pub(crate) fn holds(&self, caller: &impl Attributes) -> bool {
        let value = self.attribute.of(caller);
        match &self.test {
            Test::Equals(wanted) => value.is_some_and(|value| value == **wanted),
            Test::StartsWith(wanted) => value.is_some_and(|value| value.starts_with(&**wanted)),
            Test::Present => value.is_some(),
            Test::Absent => value.is_none(),
        }
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.attribute)?;
        match &self.test {
            Test::Equals(text) => write!(f, "is `{text}`"),
            Test::StartsWith(text) => write!(f, "starts with `{text}`"),
            Test::Present => f.write_str("is present"),
            Test::Absent => f.write_str("is absent"),
        }
    }
}

/// A caller written down in a test: `("x-user-id", "ana")` is a header, `("cookie:uid", "ana")` a cookie,
/// `("query:uid", "ana")` a parameter, `("path", "/v2")` the path, and `("body", "ana")` what was read of the body.
#[cfg(test)]
impl<const N: usize> Attributes for [(&str, &str); N] {
    fn header(&self, name: &str) -> Option<Cow<'_, str>> {
        self.iter().find(|(written, _)| *written == name).map(|(_, value)| Cow::Borrowed(*value))
    }

    fn cookie(&self, name: &str) -> Option<Cow<'_, str>> {
        let is_its = |written: &str| written.strip_prefix("cookie:") == Some(name);
        self.iter().find(|(written, _)| is_its(written)).map(|(_, value)| Cow::Borrowed(*value))
    }

    fn query(&self, name: &str) -> Option<Cow<'_, str>> {
        let is_its = |written: &str| written.strip_prefix("query:") == Some(name);
        self.iter().find(|(written, _)| is_its(written)).map(|(_, value)| Cow::Borrowed(*value))
    }

    fn path(&self) -> Cow<'_, str> {
        Cow::Borrowed(self.iter().find(|(written, _)| *written == "path").map_or("/", |(_, value)| *value))
    }

    fn of_body(&self) -> Option<&str> {
        self.iter().find(|(written, _)| *written == "body").map(|(_, value)| *value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_value_is_no_identity() {
        let user = Attribute::Header("x-user-id".into());
        assert_eq!(user.of(&[("x-user-id", "ana")]).as_deref(), Some("ana"));
        assert_eq!(user.of(&[("x-user-id", "")]), None);
        assert_eq!(user.of(&[("cookie:x-user-id", "ana")]), None);
        assert_eq!(Attribute::Cookie("uid".into()).of(&[("cookie:uid", "ana")]).as_deref(), Some("ana"));
        assert_eq!(Attribute::Query("uid".into()).of(&[("query:uid", "ana")]).as_deref(), Some("ana"));
        assert_eq!(Attribute::Query("uid".into()).of(&[("cookie:uid", "ana")]), None);
    }

    #[test]
    fn a_condition_looks_at_the_value_or_at_its_presence() {
        let when = |test| Condition { attribute: Attribute::Header("cohort".into()), test };
        let (beta, nobody) = ([("cohort", "beta")], [("cohort", "")]);
        assert!(when(Test::Equals("beta".into())).holds(&beta));
        assert!(!when(Test::Equals("Beta".into())).holds(&beta));
        assert!(when(Test::Present).holds(&beta) && !when(Test::Present).holds(&nobody));
        assert!(when(Test::Absent).holds(&nobody));
    }

    #[test]
    fn a_path_is_looked_at_as_a_whole_or_from_its_beginning() {
        let holds = |test, path| Condition { attribute: Attribute::Path, test }.holds(&[("path", path)]);
        let starts = |path| holds(Test::StartsWith("/predictions/".into()), path);
        assert!(starts("/predictions/digits") && starts("/predictions/digits/2"));
        assert!(!starts("/v2/predictions/digits") && !starts("/predictions"));
        let is = |path| holds(Test::Equals("/inference.GRPCInferenceService/ModelInfer".into()), path);
        assert!(is("/inference.GRPCInferenceService/ModelInfer"));
        assert!(!is("/inference.GRPCInferenceService/ModelInfer/"));
    }
}
