//! When a version counts as failing, and who answers in its place.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration;

use super::fault::{Fault, Faults};
use super::routing::target;
use super::{count_or, duration_or, millionths, optional};
use crate::breaker::BreakerPolicy;
use crate::canary::SlowPolicy;
use crate::number::Number;
use crate::place::Place;
use crate::schema;
use crate::snapshot::Fallback;
use crate::units::{self, Label, Version};

const MOST_PROBES: u32 = 100;
const DEFAULT_DIVERTED: NonZeroU32 = NonZeroU32::new(32).expect("32 is not 0");

pub(super) fn breaker_policy(
    written: &schema::Breaker,
    deadline: Duration,
    path: &Place<'_>,
    faults: &mut Faults,
) -> Option<BreakerPolicy> {
    let default = BreakerPolicy::default();
    let failures =
        count_or(written.failures.as_ref(), (default.failures, u32::MAX), &path.join("failures"), faults);
    let probes =
        count_or(written.probes.as_ref(), (default.probes, MOST_PROBES), &path.join("probes"), faults);
    let open_for = duration_or(written.open_for.as_deref(), default.open_for, &path.join("open_for"), faults);
    let longest = default.max_open_for.max(open_for);
    let max_open_for =
        duration_or(written.max_open_for.as_deref(), longest, &path.join("max_open_for"), faults);
    let probe_timeout =
        duration_or(written.probe_timeout.as_deref(), deadline, &path.join("probe_timeout"), faults);
    if max_open_for < open_for {
        let fault = Fault::ShorterThanFirst { longest: max_open_for, first: open_for };
        faults.note(&path.join("max_open_for"), fault);
    }
    let window = duration_or(written.window.as_deref(), default.window, &path.join("window"), faults);
    let least = (default.of_at_least, u32::MAX);
    let of_at_least = count_or(written.of_at_least.as_ref(), least, &path.join("of_at_least"), faults);
    let failing =
        optional(written.failing.as_ref(), |percent| faults.keep(&path.join("failing"), millionths(percent)));
    let slow = optional(written.slow.as_ref(), |slow| {
        slow_policy(&slow.over, (&slow.percent, "percent"), &path.join("slow"), faults)
    });
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

pub(super) fn slow_policy(
    over: &str,
    (percent, name): (&Number, &'static str),
    path: &Place<'_>,
    faults: &mut Faults,
) -> Option<SlowPolicy> {
    let over = faults.keep(&path.join("over"), units::duration(over));
    let at_most = faults.keep(&path.join(name), millionths(percent));
    over.zip(at_most).map(|(over, at_most)| SlowPolicy { over, at_most })
}

pub(super) fn fallback(
    written: &schema::Fallback,
    labels: &BTreeMap<Label, Version>,
    path: &Place<'_>,
    faults: &mut Faults,
) -> Option<Fallback> {
    let target = target(&written.version, labels, &path.join("version"), faults);
    let diverted = written.in_flight_max.as_ref();
    let most = count_or(diverted, (DEFAULT_DIVERTED, u32::MAX), &path.join("in_flight_max"), faults);
    Some(Fallback { version: target?.version, in_flight_max: most? })
}
