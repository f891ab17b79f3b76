//! From spelling to meaning: turns the file as written into a snapshot, or into every fault it has.
//!
//! Each function returns `None` for a part that could not be understood and notes why, with the field it concerns; the
//! others go on, so that an author sees all faults at once. A snapshot is built only if none was noted.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use garde::error::Path;

use crate::attribute::{Attribute, Condition, Field, Test};
use crate::breaker::BreakerPolicy;
use crate::canary::{CanaryPolicy, Comparison, Servers, SlowPolicy};
use crate::errors::did_you_mean;
use crate::ledger::CrowdPolicy;
use crate::limiter::{Cost, LimitPolicy};
use crate::overload::{Criticality, OverloadPolicy};
use crate::pick::{Rule, Split, Stickiness, Target, WithoutKey};
use crate::place::Place;
use crate::remote::{FileFault, Remote, Tls};
use crate::ring::Order;
use crate::schema;
use crate::shadow::{ShadowPolicy, Tolerance};
use crate::snapshot::{self, DEFAULT_DEADLINE, Fallback, ModelPolicy, Snapshot};
use crate::units::{self, ALL, Millionths, Rate, UnitError, Version, Weight};

/// Limits that one request may have to pass; the ledger holds a lock per limit while it asks the next.
const MOST_LIMITS: u64 = 256;
/// Arms of one split; keeps the sum of weights far from overflow.
const MOST_ARMS: u64 = 64;
const MOST_PROBES: u64 = 100;
const MOST_STEPS: u64 = 20;
const DEFAULT_COPIES: NonZeroU32 = NonZeroU32::new(8).expect("8 is not 0");
const DEFAULT_TOLERANCE: f64 = 1e-4;
const DEFAULT_DIVERTED: NonZeroU32 = NonZeroU32::new(32).expect("32 is not 0");
/// 1, 5, 25 and 50 %.
const DEFAULT_STEPS: [Millionths; 4] = [10_000, 50_000, 250_000, 500_000];
const DEFAULT_DWELL: Duration = Duration::from_secs(600);
/// 1 %.
const DEFAULT_FAILING: Millionths = 10_000;
const MOST_KEYS: u64 = 10_000_000;
const DEFAULT_KEYS: u32 = 100_000;
/// A bucket's level is a time; beyond a year it is a mistake in the file and not a limit.
const LONGEST_REFILL: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// What is wrong with one field.
#[derive(Debug, PartialEq, thiserror::Error)]
pub(crate) enum Fault {
    #[error(transparent)]
    Unit(#[from] UnitError),
    #[error("must not be empty")]
    Empty,
    #[error("expected at most {most}, got {got}")]
    TooMany { most: u64, got: u64 },
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
    #[error("expected exactly one of `header`, `cookie` and `query`")]
    OneAttribute,
    #[error("expected exactly one of `equals` and `present`")]
    OneTest,
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
    #[error("expected a percentage from 0.0001 to 99.9999, got {0}")]
    Percent(f64),
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
    Bits(f64),
    #[error("expected tolerances that are 0 or more")]
    Tolerance,
    #[error("expected more than the step before, which is {before}, got {got}")]
    NotRising { before: f64, got: f64 },
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
struct Faults(Vec<(Path, Fault)>);

impl Faults {
    fn note(&mut self, place: &Place<'_>, fault: impl Into<Fault>) {
        self.0.push((place.path(), fault.into()));
    }

    fn note_above(&mut self, most: u64, got: u64, path: &Place<'_>) {
        if got > most {
            self.note(path, Fault::TooMany { most, got });
        }
    }

    /// The value, or `None` with its fault noted.
    fn keep<T>(&mut self, path: &Place<'_>, result: Result<T, impl Into<Fault>>) -> Option<T> {
        result.map_err(|fault| self.note(path, fault)).ok()
    }
}

/// # Errors
/// Every fault in the file, with its field.
pub(crate) fn compile(file: &schema::File) -> Result<Snapshot, Vec<(Path, Fault)>> {
    let mut faults = Faults::default();
    let mut models = BTreeMap::new();
    let place = Place::new("models");
    for (name, model) in file.models.iter().flatten() {
        let path = place.join(name.as_str());
        if name.is_empty() {
            faults.note(&path, Fault::Empty);
        }
        if let Some(policy) = model_policy(name, model, &path, &mut faults) {
            models.insert(Arc::from(name.as_str()), policy);
        }
    }
    let (limits, crowds) = limit_policies(file.limits.as_deref().unwrap_or_default(), &mut faults);
    let overload = overload(file.overload.as_ref(), &mut faults);
    if faults.0.is_empty() { Ok(Snapshot::new(models, limits, crowds, overload)) } else { Err(faults.0) }
}

fn model_policy(
    name: &str,
    model: &schema::Model,
    path: &Place<'_>,
    faults: &mut Faults,
) -> Option<ModelPolicy> {
    let labels = labels(&model.labels, &path.join("labels"), faults);
    let mut rules = Vec::new();
    for (at, written) in model.rules.iter().enumerate() {
        rules.extend(rule(written, &labels, &path.join("rules").join(at), faults));
    }
    // `Some(None)`: there is no split, which is fine; `None`: there is one, and it is wrong.
    let split = match &model.split {
        Some(written) => split(name, written, &labels, &path.join("split"), faults).map(Some),
        None => Some(None),
    };
    let mut canary = match &model.canary {
        Some(written) => canary(name, written, &labels, &path.join("canary"), faults).map(Some),
        None => Some(None),
    };
    if model.split.is_some() && model.canary.is_some() {
        faults.note(&path.join("canary"), Fault::SplitAndCanary);
    }
    let deadline = duration_or(model.deadline.as_deref(), DEFAULT_DEADLINE, &path.join("deadline"), faults);
    let breaker = breaker_policy(&model.breaker, deadline, &path.join("breaker"), faults);
    let fallback = match &model.breaker.fallback {
        Some(written) => fallback(written, &labels, &path.join("breaker").join("fallback"), faults).map(Some),
        None => Some(None),
    };
    let shadow = match &model.shadow {
        Some(written) => shadow(written, &labels, &path.join("shadow"), faults).map(Some),
        None => Some(None),
    };
    let remotes = remotes(&model.remote, &path.join("remote"), faults);
    // Without a split or a rollout the highest version answers that is ready, which nobody knows yet; where a part could not be
    // understood it is not known either.
    if let (Some(Some(split)), None, Some(Some(fallback))) = (&split, &model.canary, &fallback)
        && rules.len() == model.rules.len()
        && split
            .versions()
            .chain(rules.iter().map(|rule| rule.target.version))
            .all(|one| one == fallback.version)
    {
        let place = path.join("breaker");
        let place = place.join("fallback");
        faults.note(&place.join("version"), Fault::FallbackOfItself(fallback.version));
    }
    if let Some(Some(canary)) = &canary
        && canary.disagreeing_at_most.is_some()
        && !matches!(&shadow, Some(Some(shadow)) if shadow.version == canary.candidate.version)
    {
        faults.note(&path.join("canary").join("gates").join("disagreement"), Fault::NothingCompared);
    }
    if let Some(Some(canary)) = &canary
        && canary.drifting_at_most.is_some()
        && remotes.contains_key(&canary.candidate.version)
    {
        faults.note(&path.join("canary").join("gates").join("drift"), Fault::RemoteDrift);
    }
    if let Some(Some(canary)) = &mut canary {
        let gates = path.join("canary");
        let gates = gates.join("gates");
        if let Some(SlowPolicy { over, .. }) = canary.slow.filter(|slow| slow.over >= deadline) {
            faults.note(&gates.join("latency").join("over"), Fault::NeverSlow { deadline, over });
        }
        let candidate = canary.candidate.version;
        if canary.without_key() == Some(candidate) {
            faults.note(&path.join("canary").join("without_key"), Fault::KeylessCandidate(candidate));
        }
        if let Some(Some(fallback)) = &fallback
            && fallback.version == candidate
        {
            let place = path.join("breaker");
            faults.note(&place.join("fallback").join("version"), Fault::FallbackCandidate(candidate));
        }
        let compared = shadow.iter().flatten().find(|_| canary.disagreeing_at_most.is_some());
        let comparison = compared.map(|shadow| Comparison {
            tolerance: shadow.tolerance,
            argmax: shadow.argmax.iter().map(|output| output.to_string()).collect(),
        });
        let servers = Servers {
            baseline: remotes.get(&canary.baseline.version).cloned(),
            candidate: remotes.get(&candidate).cloned(),
        };
        *canary = canary.clone().with(servers, comparison);
    }
    Some(ModelPolicy {
        labels,
        rules,
        split: split?,
        canary: canary?,
        deadline,
        breaker: breaker?,
        fallback: fallback?,
        shadow: shadow?,
        remotes,
    })
}

fn remotes(
    written: &BTreeMap<String, schema::Remote>,
    path: &Place<'_>,
    faults: &mut Faults,
) -> BTreeMap<Version, Arc<Remote>> {
    let remote = |(number, written): (&String, &schema::Remote)| {
        let path = path.join(number.as_str());
        let version = faults.keep(&path, number.parse::<Version>());
        let url = Remote::parse(&written.url).ok_or_else(|| Fault::Url(written.url.clone()));
        let remote = faults.keep(&path.join("url"), url)?;
        let tls = tls(&remote, written, &path, faults)?;
        Some((version?, Arc::new(remote.with_tls(tls))))
    };
    written.iter().filter_map(remote).collect()
}

fn tls(remote: &Remote, written: &schema::Remote, path: &Place<'_>, faults: &mut Faults) -> Option<Tls> {
    let mut file = |field: &'static str, name: &String| faults.keep(&path.join(field), remote.file(name));
    let ca = written.ca.as_ref().map(|name| file("ca", name));
    let (cert, key) = (&written.cert, &written.key);
    let cert_and_key = [("cert", cert), ("key", key)].map(|(field, name)| Some(file(field, name.as_ref()?)));
    let own = match cert_and_key {
        [None, None] => None,
        [Some(cert), Some(key)] => Some((cert?, key?)),
        [cert, _] => {
            let alone = if cert.is_some() { "cert" } else { "key" };
            return faults.keep(&path.join(alone), Err(FileFault::Alone));
        }
    };
    let ca = match ca {
        Some(ca) => Some(ca?),
        None => None,
    };
    Some(Tls { ca, own })
}

fn shadow(
    written: &schema::Shadow,
    labels: &BTreeMap<Arc<str>, Version>,
    path: &Place<'_>,
    faults: &mut Faults,
) -> Option<Arc<ShadowPolicy>> {
    let target = target(&written.version, labels, &path.join("version"), faults);
    let share = match written.percent {
        None | Some(100.0) => Some(ALL),
        Some(percent) => faults.keep(&path.join("percent"), millionths(percent)),
    };
    let most = count_or(written.in_flight_max, DEFAULT_COPIES, &path.join("in_flight_max"), faults);
    let deadline = match &written.deadline {
        Some(text) => faults.keep(&path.join("deadline"), units::duration(text)).map(Some),
        None => Some(None),
    };
    let schema::Compare { absolute, relative, argmax } = &written.compare;
    let (absolute, relative) = (absolute.unwrap_or(DEFAULT_TOLERANCE), relative.unwrap_or(DEFAULT_TOLERANCE));
    let tolerance = Tolerance::new(absolute, relative).ok_or(Fault::Tolerance);
    let tolerance = faults.keep(&path.join("compare"), tolerance);
    Some(Arc::new(ShadowPolicy {
        version: target?.version,
        share: share?,
        in_flight_max: most?,
        deadline: deadline?,
        tolerance: tolerance?,
        argmax: argmax.iter().map(|name| Arc::from(name.as_str())).collect(),
    }))
}

fn fallback(
    written: &schema::Fallback,
    labels: &BTreeMap<Arc<str>, Version>,
    path: &Place<'_>,
    faults: &mut Faults,
) -> Option<Fallback> {
    let target = target(&written.version, labels, &path.join("version"), faults);
    let most = count_or(written.in_flight_max, DEFAULT_DIVERTED, &path.join("in_flight_max"), faults);
    Some(Fallback { version: target?.version, in_flight_max: most? })
}

fn canary(
    model: &str,
    written: &schema::Canary,
    labels: &BTreeMap<Arc<str>, Version>,
    path: &Place<'_>,
    faults: &mut Faults,
) -> Option<CanaryPolicy> {
    let baseline = target(&written.baseline, labels, &path.join("baseline"), faults);
    let candidate = target(&written.candidate, labels, &path.join("candidate"), faults);
    if let (Some(baseline), Some(candidate)) = (&baseline, &candidate)
        && baseline.version == candidate.version
    {
        faults.note(&path.join("candidate"), Fault::SameVersion(candidate.version));
    }
    let steps = match &written.steps {
        Some(steps) => rising(steps, &path.join("steps"), faults),
        None => Some(DEFAULT_STEPS.to_vec()),
    };
    let dwell = duration_or(written.dwell.as_deref(), DEFAULT_DWELL, &path.join("dwell"), faults);
    let sticky = (written.sticky.as_ref(), written.without_key.as_deref());
    let stickiness = stickiness(model, sticky, labels, path, faults);
    let gates = path.join("gates");
    let failing_at_most = match &written.gates.errors {
        Some(errors) => faults.keep(&gates.join("errors").join("at_most"), millionths(errors.at_most)),
        None => Some(DEFAULT_FAILING),
    };
    let disagreeing_at_most = match &written.gates.disagreement {
        Some(gate) => {
            faults.keep(&gates.join("disagreement").join("at_most"), millionths(gate.at_most)).map(Some)
        }
        None => Some(None),
    };
    let faulty_at_most = match &written.gates.faults {
        Some(gate) => faults.keep(&gates.join("faults").join("at_most"), millionths(gate.at_most)).map(Some),
        None => Some(None),
    };
    let drifting_at_most = match &written.gates.drift {
        Some(gate) => faults.keep(&gates.join("drift").join("at_most"), of_a_bit(gate.at_most)).map(Some),
        None => Some(None),
    };
    let slow = match &written.gates.latency {
        Some(latency) => {
            let at_most = (latency.at_most, "at_most");
            slow_policy(&latency.over, at_most, &gates.join("latency"), faults).map(Some)
        }
        None => Some(None),
    };
    Some(CanaryPolicy {
        baseline: baseline?,
        candidate: candidate?,
        steps: steps?,
        dwell,
        stickiness: stickiness?,
        failing_at_most: failing_at_most?,
        slow: slow?,
        faulty_at_most: faulty_at_most?,
        disagreeing_at_most: disagreeing_at_most?,
        drifting_at_most: drifting_at_most?,
        servers: Servers::default(),
        comparison: None,
        about: 0,
        order: Order::default(),
    })
}

fn rising(written: &[f64], path: &Place<'_>, faults: &mut Faults) -> Option<Vec<Millionths>> {
    if written.is_empty() {
        faults.note(path, Fault::Empty);
    }
    faults.note_above(MOST_STEPS, written.len() as u64, path);
    let mut steps = Vec::new();
    for (at, percent) in written.iter().enumerate() {
        let step = faults.keep(&path.join(at), millionths(*percent))?;
        if steps.last().is_some_and(|before| *before >= step) {
            faults.note(&path.join(at), Fault::NotRising { before: written[at - 1], got: *percent });
        }
        steps.push(step);
    }
    (!steps.is_empty()).then_some(steps)
}

/// A percentage above 0 and below 100, with four decimals.
fn millionths(percent: f64) -> Result<Millionths, Fault> {
    let millionths = (percent * 10_000.0).round();
    if !(1.0..=999_999.0).contains(&millionths) {
        return Err(Fault::Percent(percent));
    }
    // As of weights: the round trip holds for exactly the numbers that are written so.
    if millionths / 10_000.0 != percent {
        return Err(Fault::PercentPrecision(percent));
    }
    Ok(millionths as Millionths)
}

fn of_a_bit(bits: f64) -> Result<Millionths, Fault> {
    let millionths = (bits * 1e6).round();
    let is_exact = (millionths / 1e6 - bits).abs() < 1e-12;
    if (100.0..=999_900.0).contains(&millionths) && is_exact {
        Ok(millionths as Millionths)
    } else {
        Err(Fault::Bits(bits))
    }
}

fn labels(
    written: &BTreeMap<String, u64>,
    path: &Place<'_>,
    faults: &mut Faults,
) -> BTreeMap<Arc<str>, Version> {
    let mut labels = BTreeMap::new();
    for (label, version) in written {
        let path = path.join(label.as_str());
        if label == "random" {
            faults.note(&path, Fault::ReservedLabel);
        } else if !is_label(label) {
            faults.note(&path, Fault::Label(label.clone()));
        }
        if *version == 0 {
            faults.note(&path, UnitError::Version(version.to_string()));
        }
        labels.insert(Arc::from(label.as_str()), Version(*version));
    }
    labels
}

/// A label starts with a letter: one that looked like a number could be taken for a version.
fn is_label(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text.chars().all(|letter| letter.is_ascii_alphanumeric() || "-_.".contains(letter))
}

fn target(
    name: &str,
    labels: &BTreeMap<Arc<str>, Version>,
    path: &Place<'_>,
    faults: &mut Faults,
) -> Option<Target> {
    let found = snapshot::target(labels, name).ok_or_else(|| {
        let known = labels.keys().map(|label| format!("`{label}` or ")).collect();
        let nearest = did_you_mean(name, labels.keys().map(|label| &**label));
        Fault::UnknownLabel { got: name.to_owned(), known, nearest }
    });
    faults.keep(path, found)
}

fn split(
    model: &str,
    written: &schema::Split,
    labels: &BTreeMap<Arc<str>, Version>,
    path: &Place<'_>,
    faults: &mut Faults,
) -> Option<Split> {
    let weights = path.join("weights");
    faults.note_above(MOST_ARMS, written.weights.len() as u64, &weights);
    let mut arms = Vec::new();
    for (name, weight) in &written.weights {
        let path = weights.join(name.as_str());
        let target = target(name, labels, &path, faults);
        let weight = faults.keep(&path, Weight::try_from(*weight));
        arms.extend(target.zip(weight));
    }
    let complete = arms.len() == written.weights.len();
    let sticky = (written.sticky.as_ref(), written.without_key.as_deref());
    let stickiness = stickiness(model, sticky, labels, path, faults);
    if !complete {
        return None; // Already noted; what is left may not add up to anything.
    }
    faults.keep(&weights, Split::new(arms, stickiness?).ok_or(Fault::NoWeight))
}

/// `Some(None)` if there is no key.
fn stickiness(
    model: &str,
    (sticky, without_key): (Option<&schema::StickyKey>, Option<&str>),
    labels: &BTreeMap<Arc<str>, Version>,
    path: &Place<'_>,
    faults: &mut Faults,
) -> Option<Option<Stickiness>> {
    let fallback = path.join("without_key");
    let Some(key) = sticky else {
        return match without_key {
            Some(_) => faults.keep(&fallback, Err(Fault::KeylessFallback)),
            None => Some(None),
        };
    };
    let key = sticky_key(key, &path.join("sticky"), faults);
    let without_key = match without_key {
        None | Some("random") => Some(WithoutKey::Random),
        Some(name) => target(name, labels, &fallback, faults).map(WithoutKey::Use),
    };
    Some(Some(Stickiness::new(model, key?, without_key?)))
}

fn rule(
    written: &schema::Rule,
    labels: &BTreeMap<Arc<str>, Version>,
    path: &Place<'_>,
    faults: &mut Faults,
) -> Option<Rule> {
    let when = condition(&written.when, &path.join("when"), faults);
    let target = target(&written.choice, labels, &path.join("use"), faults);
    Some(Rule { when: when?, target: target? })
}

fn condition(written: &schema::Condition, path: &Place<'_>, faults: &mut Faults) -> Option<Condition> {
    let attribute = match (&written.header, &written.cookie, &written.query) {
        (Some(name), None, None) => faults.keep(&path.join("header"), header(name)),
        (None, Some(name), None) => faults.keep(&path.join("cookie"), cookie(name)),
        (None, None, Some(name)) => faults.keep(&path.join("query"), query(name)),
        _ => faults.keep(path, Err(Fault::OneAttribute)),
    };
    let test = match (&written.equals, written.present) {
        (Some(text), None) if text.is_empty() => faults.keep(&path.join("equals"), Err(Fault::Empty)),
        (Some(text), None) => Some(Test::Equals(text.as_str().into())),
        (None, Some(true)) => Some(Test::Present),
        (None, Some(false)) => Some(Test::Absent),
        (Some(_), Some(_)) | (None, None) => faults.keep(path, Err(Fault::OneTest)),
    };
    Some(Condition { attribute: attribute?, test: test? })
}

fn overload(written: Option<&schema::Overload>, faults: &mut Faults) -> OverloadPolicy {
    let Some(written) = written else { return OverloadPolicy::default() };
    let path = Place::new("overload");
    let tenant = written.tenant.as_ref().and_then(|tenant| attribute(tenant, &path.join("tenant"), faults));
    let conditions = written.criticality.iter().enumerate();
    let criticality = conditions.filter_map(|(at, class)| {
        let when = condition(&class.when, &path.join("criticality").join(at).join("when"), faults)?;
        Some((when, class.is.into()))
    });
    OverloadPolicy { criticality: criticality.collect(), tenant }
}

impl From<schema::Criticality> for Criticality {
    fn from(written: schema::Criticality) -> Self {
        match written {
            schema::Criticality::Critical => Self::Critical,
            schema::Criticality::Normal => Self::Normal,
            schema::Criticality::Sheddable => Self::Sheddable,
        }
    }
}

fn attribute(written: &schema::Attribute, path: &Place<'_>, faults: &mut Faults) -> Option<Attribute> {
    match written {
        schema::Attribute::Header(name) => faults.keep(&path.join("header"), header(name)),
        schema::Attribute::Cookie(name) => faults.keep(&path.join("cookie"), cookie(name)),
        schema::Attribute::Query(name) => faults.keep(&path.join("query"), query(name)),
    }
}

fn sticky_key(written: &schema::StickyKey, path: &Place<'_>, faults: &mut Faults) -> Option<Attribute> {
    let field = |name: &str, field: fn(Arc<str>) -> Field| {
        if name.is_empty() { Err(Fault::Empty) } else { Ok(Attribute::Body(field(name.into()))) }
    };
    match written {
        schema::StickyKey::Header(name) => faults.keep(&path.join("header"), header(name)),
        schema::StickyKey::Cookie(name) => faults.keep(&path.join("cookie"), cookie(name)),
        schema::StickyKey::Query(name) => faults.keep(&path.join("query"), query(name)),
        schema::StickyKey::Parameter(name) => {
            faults.keep(&path.join("parameter"), field(name, Field::Parameter))
        }
        schema::StickyKey::Input(name) => faults.keep(&path.join("input"), field(name, Field::Input)),
    }
}

fn header(name: &str) -> Result<Attribute, Fault> {
    if !is_token(name) {
        return Err(Fault::HeaderName(name.to_owned()));
    }
    Ok(Attribute::Header(name.to_ascii_lowercase().into()))
}

fn cookie(name: &str) -> Result<Attribute, Fault> {
    if !is_token(name) {
        return Err(Fault::CookieName(name.to_owned()));
    }
    Ok(Attribute::Cookie(name.into()))
}

fn query(name: &str) -> Result<Attribute, Fault> {
    if !is_token(name) || name.contains('&') {
        return Err(Fault::QueryName(name.to_owned()));
    }
    Ok(Attribute::Query(name.into()))
}

/// A token of RFC 9110, section 5.6.2, which header names are, and cookie names by RFC 6265, section 4.1.1.
fn is_token(text: &str) -> bool {
    !text.is_empty()
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

fn breaker_policy(
    written: &schema::Breaker,
    deadline: Duration,
    path: &Place<'_>,
    faults: &mut Faults,
) -> Option<BreakerPolicy> {
    let default = BreakerPolicy::default();
    let failures = count_or(written.failures, default.failures, &path.join("failures"), faults);
    let probes = count_or(written.probes, default.probes, &path.join("probes"), faults);
    let open_for = duration_or(written.open_for.as_deref(), default.open_for, &path.join("open_for"), faults);
    let longest = default.max_open_for.max(open_for);
    let max_open_for =
        duration_or(written.max_open_for.as_deref(), longest, &path.join("max_open_for"), faults);
    let probe_timeout =
        duration_or(written.probe_timeout.as_deref(), deadline, &path.join("probe_timeout"), faults);
    faults.note_above(MOST_PROBES, probes.map_or(0, |probes| probes.get().into()), &path.join("probes"));
    if max_open_for < open_for {
        let fault = Fault::ShorterThanFirst { longest: max_open_for, first: open_for };
        faults.note(&path.join("max_open_for"), fault);
    }
    let window = duration_or(written.window.as_deref(), default.window, &path.join("window"), faults);
    let of_at_least = count_or(written.of_at_least, default.of_at_least, &path.join("of_at_least"), faults);
    let failing = match written.failing {
        Some(percent) => faults.keep(&path.join("failing"), millionths(percent)).map(Some),
        None => Some(None),
    };
    let slow = match &written.slow {
        Some(slow) => {
            slow_policy(&slow.over, (slow.percent, "percent"), &path.join("slow"), faults).map(Some)
        }
        None => Some(None),
    };
    if let Some(Some(SlowPolicy { over, .. })) = slow
        && over >= deadline
    {
        faults.note(&path.join("slow").join("over"), Fault::NeverSlow { deadline, over });
    }
    Some(BreakerPolicy {
        failures: failures?,
        open_for,
        max_open_for,
        probes: probes?,
        probe_timeout,
        window,
        of_at_least: of_at_least?,
        failing: failing?,
        slow: slow?,
    })
}

fn slow_policy(
    over: &str,
    (percent, name): (f64, &'static str),
    path: &Place<'_>,
    faults: &mut Faults,
) -> Option<SlowPolicy> {
    let over = faults.keep(&path.join("over"), units::duration(over));
    let at_most = faults.keep(&path.join(name), millionths(percent));
    over.zip(at_most).map(|(over, at_most)| SlowPolicy { over, at_most })
}

/// Limits of rates, and of requests under way.
fn limit_policies(
    written: &[schema::Limit],
    faults: &mut Faults,
) -> (Vec<Arc<LimitPolicy>>, Vec<Arc<CrowdPolicy>>) {
    let place = Place::new("limits");
    faults.note_above(MOST_LIMITS, written.len() as u64, &place);
    let mut names = BTreeSet::new();
    let (mut limits, mut crowds) = (Vec::new(), Vec::new());
    for (at, limit) in written.iter().enumerate() {
        let path = place.join(at);
        if limit.name.is_empty() {
            faults.note(&path.join("name"), Fault::Empty);
        }
        if !names.insert(limit.name.as_str()) {
            faults.note(&path.join("name"), Fault::DuplicateLimit(limit.name.clone()));
        }
        match (&limit.rate, limit.in_flight_max) {
            (Some(rate), None) => limits.extend(limit_policy(limit, rate, &path, faults).map(Arc::new)),
            (None, Some(most)) => crowds.extend(crowd_policy(limit, most, &path, faults).map(Arc::new)),
            (Some(_), Some(_)) | (None, None) => faults.note(&path, Fault::OneLimit),
        }
    }
    limits.sort_by(|a, b| a.name.cmp(&b.name));
    crowds.sort_by(|a, b| a.name.cmp(&b.name));
    (limits, crowds)
}

fn crowd_policy(
    written: &schema::Limit,
    most: u32,
    path: &Place<'_>,
    faults: &mut Faults,
) -> Option<CrowdPolicy> {
    let of_rates = [
        ("cost", written.cost.is_some()),
        ("burst", written.burst.is_some()),
        ("max_keys", written.max_keys.is_some()),
    ];
    for (name, _) in of_rates.into_iter().filter(|(_, is_written)| *is_written) {
        faults.note(&path.join(name), Fault::OfRates);
    }
    let (key, models) = key_and_models(written, path, faults);
    let most = faults.keep(&path.join("in_flight_max"), units::count(most));
    Some(CrowdPolicy { name: written.name.as_str().into(), key: key?, models: models?, in_flight_max: most? })
}

/// What tells callers apart, and which models are meant.
#[expect(clippy::type_complexity, reason = "two results of two optional fields")]
fn key_and_models(
    written: &schema::Limit,
    path: &Place<'_>,
    faults: &mut Faults,
) -> (Option<Option<Attribute>>, Option<Option<BTreeSet<Arc<str>>>>) {
    let key = match &written.key {
        Some(key) => attribute(key, &path.join("key"), faults).map(Some),
        None => Some(None),
    };
    let models = match &written.models {
        Some(names) if names.is_empty() => faults.keep(&path.join("models"), Err(Fault::Empty)),
        Some(names) => Some(Some(names.iter().map(|name| Arc::from(name.as_str())).collect())),
        None => Some(None),
    };
    (key, models)
}

fn limit_policy(
    written: &schema::Limit,
    rate: &str,
    path: &Place<'_>,
    faults: &mut Faults,
) -> Option<LimitPolicy> {
    let (key, models) = key_and_models(written, path, faults);
    let max_keys = written.max_keys.unwrap_or(DEFAULT_KEYS);
    faults.note_above(MOST_KEYS, max_keys.into(), &path.join("max_keys"));
    let max_keys = faults.keep(&path.join("max_keys"), units::count(max_keys));
    let rate: Option<Rate> = faults.keep(&path.join("rate"), rate.parse());
    let burst = match written.burst {
        Some(burst) => faults.keep(&path.join("burst"), units::count(burst)),
        None => rate.map(|rate| rate.count()),
    };
    let (rate, burst) = rate.zip(burst)?;
    if rate.interval().saturating_mul(burst.get()) > LONGEST_REFILL {
        faults.note(&path.join("burst"), Fault::EndlessRefill { burst, rate });
    }
    Some(LimitPolicy {
        name: written.name.as_str().into(),
        key: key?,
        models: models?,
        cost: match written.cost {
            None | Some(schema::Cost::Requests) => Cost::Requests,
            Some(schema::Cost::Rows) => Cost::Rows,
            Some(schema::Cost::Bytes) => Cost::Bytes,
        },
        rate,
        burst,
        max_keys: max_keys?,
    })
}

fn duration_or(written: Option<&str>, default: Duration, path: &Place<'_>, faults: &mut Faults) -> Duration {
    match written {
        Some(text) => faults.keep(path, units::duration(text)).unwrap_or(default),
        None => default,
    }
}

fn count_or(
    written: Option<u32>,
    default: NonZeroU32,
    path: &Place<'_>,
    faults: &mut Faults,
) -> Option<NonZeroU32> {
    match written {
        Some(number) => faults.keep(path, units::count(number)),
        None => Some(default),
    }
}
