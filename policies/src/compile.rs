//! From spelling to meaning: turns the file as written into a snapshot, or into every fault it has. What each part means stands in the
//! files below; here is what several of them must agree on.
//!
//! Each function returns `None` for a part that could not be understood and notes why, with the field it concerns; the
//! others go on, so that an author sees all faults at once. A snapshot is built only if none was noted.

mod breaker;
mod fault;
mod limits;
mod remotes;
mod rollout;
mod routing;
#[cfg(test)]
mod tenants;

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use garde::error::Path;

use crate::canary::{CanaryPolicy, Servers, SlowPolicy};
use crate::number::Number;
use crate::place::Place;
use crate::remote::Remote;
use crate::schema;
use crate::shadow::ShadowPolicy;
use crate::snapshot::{DEFAULT_DEADLINE, Fallback, ModelPolicy, Snapshot};
use crate::units::{self, Millionths, Version};
pub(crate) use fault::Fault;
use fault::Faults;

/// # Errors
/// Every fault in the file, with its field.
pub(crate) fn compile(file: &schema::File) -> Result<Snapshot, Vec<(Path, Fault)>> {
    let mut faults = Faults::default();
    let mut models = BTreeMap::new();
    let place = Place::new("models");
    let tenant = routing::tenant(file.overload.as_ref(), &mut faults);
    for (name, model) in file.models.iter().flatten() {
        let path = place.join(name.as_str());
        if name.is_empty() {
            faults.note(&path, Fault::Empty);
        }
        if let Some(policy) = model_policy(name, model, &tenant, &path, &mut faults) {
            models.insert(Arc::from(name.as_str()), policy);
        }
    }
    let (limits, crowds) = limits::limit_policies(file.limits.as_deref().unwrap_or_default(), &mut faults);
    let overload = routing::overload(file.overload.as_ref(), tenant, &mut faults);
    if faults.0.is_empty() { Ok(Snapshot::new(models, limits, crowds, overload)) } else { Err(faults.0) }
}

fn model_policy(
    name: &str,
    model: &schema::Model,
    tenant: &routing::Tenant,
    path: &Place<'_>,
    faults: &mut Faults,
) -> Option<ModelPolicy> {
    let labels = routing::labels(&model.labels, &path.join("labels"), faults);
    let mut rules = Vec::new();
    for (at, written) in model.rules.iter().enumerate() {
        rules.extend(routing::rule(written, &labels, tenant, &path.join("rules").join(at), faults));
    }
    let split = optional(model.split.as_ref(), |written| {
        routing::split(name, written, &labels, &path.join("split"), faults)
    });
    let canary = optional(model.canary.as_ref(), |written| {
        rollout::canary(name, written, &labels, &path.join("canary"), faults)
    });
    if model.split.is_some() && model.canary.is_some() {
        faults.note(&path.join("canary"), Fault::SplitAndCanary);
    }
    let deadline = duration_or(model.deadline.as_deref(), DEFAULT_DEADLINE, &path.join("deadline"), faults);
    let in_breaker = path.join("breaker");
    let breaker = breaker::breaker_policy(&model.breaker, deadline, &in_breaker, faults);
    let in_fallback = in_breaker.join("fallback");
    let fallback = optional(model.breaker.fallback.as_ref(), |written| {
        breaker::fallback(written, &labels, &in_fallback, faults)
    });
    let shadow = optional(model.shadow.as_ref(), |written| {
        rollout::shadow(written, &labels, &path.join("shadow"), faults)
    });
    let remotes = remotes::remotes(&model.remote, &path.join("remote"), faults);
    // Without a split or a rollout the highest version answers that is ready, which nobody knows yet; where a part could not be
    // understood it is not known either.
    if let (Some(Some(split)), None, Some(Some(fallback))) = (&split, &model.canary, &fallback)
        && rules.len() == model.rules.len()
        && split
            .versions()
            .chain(rules.iter().map(|rule| rule.target.version))
            .all(|one| one == fallback.version)
    {
        faults.note(&in_fallback.join("version"), Fault::FallbackOfItself(fallback.version));
    }
    let canary = canary.map(|canary| {
        let others = (fallback.flatten(), shadow.as_ref().and_then(Option::as_deref), &remotes);
        canary.map(|canary| among(canary, others, deadline, path, faults))
    });
    Some(ModelPolicy {
        name: name.into(),
        labels,
        rules,
        split: split?.map(Box::new),
        canary: canary?.map(Box::new),
        deadline,
        breaker: breaker?,
        fallback: fallback?,
        shadow: shadow?,
        remotes,
    })
}

/// A rollout among the other parts of its model's policy: the fallback, the shadow, and the versions of other servers.
fn among(
    canary: CanaryPolicy,
    (fallback, shadow, remotes): (Option<Fallback>, Option<&ShadowPolicy>, &BTreeMap<Version, Arc<Remote>>),
    deadline: Duration,
    path: &Place<'_>,
    faults: &mut Faults,
) -> CanaryPolicy {
    let candidate = canary.candidate.version;
    let in_canary = path.join("canary");
    let gates = in_canary.join("gates");
    if canary.disagreeing_at_most.is_some() && shadow.is_none_or(|shadow| shadow.version != candidate) {
        faults.note(&gates.join("disagreement"), Fault::NothingCompared);
    }
    if canary.drifting_at_most.is_some() && remotes.contains_key(&candidate) {
        faults.note(&gates.join("drift"), Fault::RemoteDrift);
    }
    if let Some(SlowPolicy { over, .. }) = canary.slow.filter(|slow| slow.over >= deadline) {
        faults.note(&gates.join("latency").join("over"), Fault::NeverSlow { deadline, over });
    }
    if canary.without_key() == Some(candidate) {
        faults.note(&in_canary.join("without_key"), Fault::KeylessCandidate(candidate));
    }
    if fallback.is_some_and(|fallback| fallback.version == candidate) {
        let in_breaker = path.join("breaker");
        faults.note(&in_breaker.join("fallback").join("version"), Fault::FallbackCandidate(candidate));
    }
    let compared = shadow.filter(|_| canary.disagreeing_at_most.is_some());
    let comparison = compared.map(|shadow| shadow.comparison.clone());
    let servers = Servers {
        baseline: remotes.get(&canary.baseline.version).cloned(),
        candidate: remotes.get(&candidate).cloned(),
    };
    canary.with(servers, comparison)
}

/// `Some(None)`: it is not written, which is fine; `None`: it is, and could not be understood.
fn optional<W, T>(written: Option<W>, read: impl FnOnce(W) -> Option<T>) -> Option<Option<T>> {
    match written {
        Some(written) => read(written).map(Some),
        None => Some(None),
    }
}

/// A percentage above 0 and below 100, with four decimals.
fn millionths(percent: &Number) -> Result<Millionths, Fault> {
    millionths_up_to(99.9999, percent)
}

fn millionths_up_to(most: f64, written: &Number) -> Result<Millionths, Fault> {
    let percent = written.float().unwrap_or(f64::NAN);
    let millionths = (percent * 10_000.0).round();
    if !(1.0..=(most * 10_000.0).round()).contains(&millionths) {
        return Err(Fault::Percent { most, got: written.clone() });
    }
    // As of weights: the round trip holds for exactly the numbers that are written so.
    if millionths / 10_000.0 != percent {
        return Err(Fault::PercentPrecision(percent));
    }
    Ok(millionths as Millionths)
}

fn duration_or(written: Option<&str>, default: Duration, path: &Place<'_>, faults: &mut Faults) -> Duration {
    match written {
        Some(text) => faults.keep(path, units::duration(text)).unwrap_or(default),
        None => default,
    }
}

/// A count from 1, of so many at most.
fn count(written: &Number, most: u32) -> Result<NonZeroU32, Fault> {
    let count = written.whole().filter(|count| *count <= most.into());
    let count = count.and_then(|count| NonZeroU32::new(count as u32));
    count.ok_or_else(|| Fault::Count { most, got: written.clone() })
}

fn count_or(
    written: Option<&Number>,
    (default, most): (NonZeroU32, u32),
    path: &Place<'_>,
    faults: &mut Faults,
) -> Option<NonZeroU32> {
    match written {
        Some(written) => faults.keep(path, count(written, most)),
        None => Some(default),
    }
}
