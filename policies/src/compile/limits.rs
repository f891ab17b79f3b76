//! Limits of rates, and of requests under way.

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use super::fault::{Fault, Faults};
use super::routing::attribute;
use super::{count, count_or, optional};
use crate::attribute::Attribute;
use crate::ledger::CrowdPolicy;
use crate::limiter::{Cost, LimitPolicy};
use crate::number::Number;
use crate::place::Place;
use crate::schema;
use crate::units::Rate;

/// Limits that one request may have to pass; the ledger holds a lock per limit while it asks the next.
const MOST_LIMITS: u64 = 256;
const MOST_KEYS: u32 = 10_000_000;
const DEFAULT_KEYS: NonZeroU32 = NonZeroU32::new(100_000).expect("100,000 is not 0");
/// A bucket's level is a time; beyond a year it is a mistake in the file and not a limit.
const LONGEST_REFILL: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// Limits of rates, and of requests under way.
pub(super) fn limit_policies(
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
        match (&limit.rate, &limit.in_flight_max) {
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
    most: &Number,
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
    let most = faults.keep(&path.join("in_flight_max"), count(most, u32::MAX));
    Some(CrowdPolicy { name: written.name.as_str().into(), key: key?, models: models?, in_flight_max: most? })
}

/// What tells callers apart, and which models are meant.
#[expect(clippy::type_complexity, reason = "two results of two optional fields")]
fn key_and_models(
    written: &schema::Limit,
    path: &Place<'_>,
    faults: &mut Faults,
) -> (Option<Option<Attribute>>, Option<Option<BTreeSet<Arc<str>>>>) {
    let key = optional(written.key.as_ref(), |key| attribute(key, &path.join("key"), faults));
    let models = optional(written.models.as_ref(), |names| {
        if names.is_empty() {
            return faults.keep(&path.join("models"), Err(Fault::Empty));
        }
        Some(names.iter().map(|name| Arc::from(name.as_str())).collect())
    });
    (key, models)
}

fn limit_policy(
    written: &schema::Limit,
    rate: &str,
    path: &Place<'_>,
    faults: &mut Faults,
) -> Option<LimitPolicy> {
    let (key, models) = key_and_models(written, path, faults);
    let max_keys = written.max_keys.as_ref();
    let max_keys = count_or(max_keys, (DEFAULT_KEYS, MOST_KEYS), &path.join("max_keys"), faults);
    let rate: Option<Rate> = faults.keep(&path.join("rate"), rate.parse());
    let burst = match &written.burst {
        Some(burst) => faults.keep(&path.join("burst"), count(burst, u32::MAX)),
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
