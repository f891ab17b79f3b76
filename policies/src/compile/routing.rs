//! Who is meant, and who answers them: labels, rules, splits and their keys, and who goes first where there is not enough for all.

use std::collections::BTreeMap;

use compact_str::CompactString;

use super::fault::{Fault, Faults};
use crate::attribute::{Attribute, Condition, Field, Test};
use crate::errors::did_you_mean;
use crate::number::Number;
use crate::overload::{Criticality, OverloadPolicy};
use crate::pick::{Rule, Split, Stickiness, Target, WithoutKey};
use crate::place::Place;
use crate::schema;
use crate::snapshot;
use crate::units::{Label, UnitError, Version, Weight};

/// What tells tenants apart; `Some(None)` if nobody said, `None` if that could not be understood.
pub(super) type Tenant = Option<Option<Attribute>>;

/// Arms of one split; keeps the sum of weights far from overflow.
const MOST_ARMS: u64 = 64;

pub(super) fn labels(
    written: &BTreeMap<String, Number>,
    path: &Place<'_>,
    faults: &mut Faults,
) -> BTreeMap<Label, Version> {
    let mut labels = BTreeMap::new();
    for (label, version) in written {
        let path = path.join(label.as_str());
        if label == "random" {
            faults.note(&path, Fault::ReservedLabel);
        } else if !is_label(label) {
            faults.note(&path, Fault::Label(label.clone()));
        }
        let version = version
            .whole()
            .filter(|version| *version > 0)
            .ok_or_else(|| Fault::VersionNumber(version.clone()));
        // Whoever names the label has made no second mistake.
        let version = faults.keep(&path, version).unwrap_or_default();
        labels.insert(Label::from(label.as_str()), Version(version));
    }
    labels
}

/// A label starts with a letter: one that looked like a number could be taken for a version.
fn is_label(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text.chars().all(|letter| letter.is_ascii_alphanumeric() || "-_.".contains(letter))
}

pub(super) fn target(
    name: &str,
    labels: &BTreeMap<Label, Version>,
    path: &Place<'_>,
    faults: &mut Faults,
) -> Option<Target> {
    target_beside(&[], name, labels, path, faults)
}

/// Where these words may stand as well.
fn target_beside(
    words: &[&str],
    name: &str,
    labels: &BTreeMap<Label, Version>,
    path: &Place<'_>,
    faults: &mut Faults,
) -> Option<Target> {
    let found = snapshot::target(labels, name).ok_or_else(|| {
        let known = words.iter().copied().chain(labels.keys().map(|label| &**label));
        let nearest = did_you_mean(name, known.clone());
        let known = known.map(|word| format!("`{word}` or ")).collect();
        Fault::UnknownLabel { got: name.to_owned(), known, nearest }
    });
    faults.keep(path, found)
}

pub(super) fn split(
    model: &str,
    written: &schema::Split,
    labels: &BTreeMap<Label, Version>,
    path: &Place<'_>,
    faults: &mut Faults,
) -> Option<Split> {
    let weights = path.join("weights");
    faults.note_above(MOST_ARMS, written.weights.len() as u64, &weights);
    let mut arms = Vec::new();
    for (name, weight) in &written.weights {
        let path = weights.join(name.as_str());
        let target = target(name, labels, &path, faults);
        let range = || UnitError::WeightRange(weight.to_string());
        let weight = faults.keep(&path, weight.float().ok_or_else(range).and_then(Weight::try_from));
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
pub(super) fn stickiness(
    model: &str,
    (sticky, without_key): (Option<&schema::StickyKey>, Option<&str>),
    labels: &BTreeMap<Label, Version>,
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
        Some(name) => target_beside(&["random"], name, labels, &fallback, faults).map(WithoutKey::Use),
    };
    Some(Some(Stickiness::new(model, key?, without_key?)))
}

pub(super) fn rule(
    written: &schema::Rule,
    labels: &BTreeMap<Label, Version>,
    tenant: &Tenant,
    path: &Place<'_>,
    faults: &mut Faults,
) -> Option<Rule> {
    let when = condition(&written.when, tenant, &path.join("when"), faults);
    let target = target(&written.choice, labels, &path.join("use"), faults);
    Some(Rule { when: when?, target: target? })
}

fn condition(
    written: &schema::Condition,
    tenant: &Tenant,
    path: &Place<'_>,
    faults: &mut Faults,
) -> Option<Condition> {
    let schema::Condition { header: of_header, cookie: of_cookie, query: of_query, .. } = written;
    let has_test = written.equals.is_some() || written.present.is_some();
    let attribute = match (of_header, of_cookie, of_query, &written.path, &written.tenant) {
        (Some(name), None, None, None, None) => faults.keep(&path.join("header"), header(name)),
        (None, Some(name), None, None, None) => faults.keep(&path.join("cookie"), cookie(name)),
        (None, None, Some(name), None, None) => faults.keep(&path.join("query"), query(name)),
        (None, None, None, None, Some(name)) => {
            if has_test {
                faults.note(path, Fault::TestBeside("tenant"));
            }
            let path = path.join("tenant");
            let name = if name.is_empty() { Err(Fault::Empty) } else { Ok(name.as_str().into()) };
            let test = faults.keep(&path, name).map(Test::Equals);
            let attribute = faults.keep(&path, tenant.as_ref()?.clone().ok_or(Fault::NoTenants))?;
            return Some(Condition { attribute, test: test? });
        }
        (None, None, None, Some(of_path), None) => {
            if has_test {
                faults.note(path, Fault::TestBeside("path"));
            }
            let test = path_test(of_path, &path.join("path"), faults)?;
            return Some(Condition { attribute: Attribute::Path, test });
        }
        _ => faults.keep(path, Err(Fault::OneCondition)),
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

fn path_test(written: &schema::PathCondition, path: &Place<'_>, faults: &mut Faults) -> Option<Test> {
    let (name, text, test): (_, _, fn(Box<str>) -> Test) = match (&written.equals, &written.starts_with) {
        (Some(text), None) => ("equals", text, Test::Equals),
        (None, Some(text)) => ("starts_with", text, Test::StartsWith),
        (Some(_), Some(_)) | (None, None) => return faults.keep(path, Err(Fault::OnePathTest)),
    };
    // No path would ever be like any other.
    let is_path = text.starts_with('/') && !text.contains(['?', '#']);
    let text = if is_path { Ok(text.as_str().into()) } else { Err(Fault::Path(text.clone())) };
    faults.keep(&path.join(name), text).map(test)
}

pub(super) fn tenant(written: Option<&schema::Overload>, faults: &mut Faults) -> Tenant {
    match written.and_then(|written| written.tenant.as_ref()) {
        Some(written) => attribute(written, &Place::new("overload").join("tenant"), faults).map(Some),
        None => Some(None),
    }
}

pub(super) fn overload(
    written: Option<&schema::Overload>,
    tenant: Tenant,
    faults: &mut Faults,
) -> OverloadPolicy {
    let Some(written) = written else { return OverloadPolicy::default() };
    let path = Place::new("overload");
    let conditions = written.criticality.iter().enumerate();
    let criticality = conditions.filter_map(|(at, class)| {
        let when = condition(&class.when, &tenant, &path.join("criticality").join(at).join("when"), faults)?;
        Some((when, class.is.into()))
    });
    OverloadPolicy { criticality: criticality.collect(), tenant: tenant.flatten() }
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

pub(super) fn attribute(
    written: &schema::Attribute,
    path: &Place<'_>,
    faults: &mut Faults,
) -> Option<Attribute> {
    match written {
        schema::Attribute::Header(name) => faults.keep(&path.join("header"), header(name)),
        schema::Attribute::Cookie(name) => faults.keep(&path.join("cookie"), cookie(name)),
        schema::Attribute::Query(name) => faults.keep(&path.join("query"), query(name)),
    }
}

fn sticky_key(written: &schema::StickyKey, path: &Place<'_>, faults: &mut Faults) -> Option<Attribute> {
    let field = |name: &str, field: fn(CompactString) -> Field| {
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
