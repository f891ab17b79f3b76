//! What can be wrong with a policy that is spelled as the schema asks. Decides the words; where each fault lies, whoever finds it knows.

use std::num::NonZeroU32;
use std::time::Duration;

use garde::error::Path;

use crate::number::Number;
use crate::place::Place;
use crate::remote::FileFault;
use crate::units::{Rate, UnitError, Version};

/// What is wrong with one field.
#[derive(Debug, PartialEq, thiserror::Error)]
pub(crate) enum Fault {
    #[error(transparent)]
    Unit(#[from] UnitError),
    #[error("must not be empty")]
    Empty,
    #[error("expected at most {most}, got {got}")]
    TooMany { most: u64, got: u64 },
    #[error("expected a whole number from 1 to {most}, got {got}")]
    Count { most: u32, got: Number },
    #[error("expected a version number from 1 to {most}, got {0}", most = u64::MAX)]
    VersionNumber(Number),
    #[error("a label starts with a letter and goes on with letters, digits, `-`, `_` or `.`, got `{0}`")]
    Label(String),
    #[error("`random` is the word for a draw and cannot be a label")]
    ReservedLabel,
    #[error("expected {known}a version number, got `{got}`{nearest}")]
    UnknownLabel { got: String, known: String, nearest: String },
    #[error("no weight is positive, so nobody would answer")]
    NoWeight,
    #[error("only with `sticky` is there a key that can be missing")]
    KeylessFallback,
    #[error("a header name is letters, digits and !#$%&'*+-.^_`|~, got `{0}`")]
    HeaderName(String),
    #[error("a cookie name is letters, digits and !#$%&'*+-.^_`|~, got `{0}`")]
    CookieName(String),
    #[error("the name of a parameter is letters, digits and !#$%&'*+-.^_`|~ except `&`, got `{0}`")]
    QueryName(String),
    #[error("expected exactly one entry, such as `header: x-user-id`")]
    OneAttribute,
    #[error("expected exactly one of `header`, `cookie`, `query`, `path` and `tenant`")]
    OneCondition,
    #[error("expected exactly one of `equals` and `present`")]
    OneTest,
    #[error("expected exactly one of `equals` and `starts_with`")]
    OnePathTest,
    #[error("beside `{0}`, which has its own, expected neither `equals` nor `present`")]
    TestBeside(&'static str),
    #[error(
        "expected `tenant` under `overload`, such as {{header: x-tenant}}: nothing else tells tenants apart"
    )]
    NoTenants,
    #[error("a path starts with `/` and has neither `?` nor `#`, got `{0}`")]
    Path(String),
    #[error("must be at least `open_for`, which is {first:?}, got {longest:?}")]
    ShorterThanFirst { longest: Duration, first: Duration },
    #[error("must be less than the deadline, which is {deadline:?}, got {over:?}: no answer takes longer")]
    NeverSlow { deadline: Duration, over: Duration },
    #[error(
        "expected `random` or another version than the candidate, got version {0}: no rollback would take it away"
    )]
    KeylessCandidate(Version),
    #[error(
        "expected another version than the candidate of the rollout, got version {0}: no rollback would take it away"
    )]
    FallbackCandidate(Version),
    #[error(
        "expected another version than {0}: nothing else is ever chosen here, and it cannot answer in its own place"
    )]
    FallbackOfItself(Version),
    #[error("expected either `split` or `canary`, got both: a canary is a split that changes by itself")]
    SplitAndCanary,
    #[error("expected another version than the baseline, got version {0} for both")]
    SameVersion(Version),
    #[error("expected a percentage from 0.0001 to {most}, got {got}")]
    Percent { most: f64, got: Number },
    #[error("expected a percentage with at most four decimals, got {0}")]
    PercentPrecision(f64),
    #[error("expected an http or https URL with a host and without a password, got `{0}`")]
    Url(String),
    #[error(transparent)]
    Ca(#[from] FileFault),
    #[error("expected a `shadow` of the candidate beside it, which compares answers")]
    NothingCompared,
    #[error("what another server answers is not looked at, so nobody knows how far it has moved")]
    RemoteDrift,
    #[error("expected 0.0001 to 0.9999 bits, with at most six decimals, got {0}")]
    Bits(Number),
    #[error("expected a number that is 0 or more, got {0}")]
    Tolerance(Number),
    #[error(
        "expected an output that is not under `argmax`: of this one only the place of the largest value counts"
    )]
    BoundsOfArgmax,
    #[error("expected more than the step before, which is {before}, got {got}")]
    NotRising { before: Number, got: Number },
    #[error("expected exactly one of `rate` and `in_flight_max`")]
    OneLimit,
    #[error("only a limit with a `rate` has this")]
    OfRates,
    #[error("a limit called `{0}` exists already")]
    DuplicateLimit(String),
    #[error("a burst of {burst} at {rate} takes more than a year to refill")]
    EndlessRefill { burst: NonZeroU32, rate: Rate },
}

/// The faults found so far, each with the field it concerns.
#[derive(Debug, Default)]
pub(super) struct Faults(pub(super) Vec<(Path, Fault)>);

impl Faults {
    pub(super) fn note(&mut self, place: &Place<'_>, fault: impl Into<Fault>) {
        self.0.push((place.path(), fault.into()));
    }

    pub(super) fn note_above(&mut self, most: u64, got: u64, path: &Place<'_>) {
        if got > most {
            self.note(path, Fault::TooMany { most, got });
        }
    }

    /// The value, or `None` with its fault noted.
    pub(super) fn keep<T>(&mut self, path: &Place<'_>, result: Result<T, impl Into<Fault>>) -> Option<T> {
        result.map_err(|fault| self.note(path, fault)).ok()
    }
}
