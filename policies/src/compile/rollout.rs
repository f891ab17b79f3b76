//! How a version is tried: by a rollout with its gates, and by copies that a shadow compares.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use super::breaker::slow_policy;
use super::fault::{Fault, Faults};
use super::routing::{stickiness, target};
use super::{count_or, duration_or, millionths, millionths_up_to, optional};
use crate::canary::{CanaryPolicy, Servers};
use crate::number::Number;
use crate::place::Place;
use crate::ring::Order;
use crate::schema;
use crate::shadow::{Comparison, ShadowPolicy, Tolerance};
use crate::units::{self, ALL, Label, Millionths, Version};

const MOST_STEPS: u64 = 20;
const DEFAULT_COPIES: NonZeroU32 = NonZeroU32::new(8).expect("8 is not 0");
const DEFAULT_TOLERANCE: f64 = 1e-4;
/// 1, 5, 25 and 50 %.
const DEFAULT_STEPS: [Millionths; 4] = [10_000, 50_000, 250_000, 500_000];
const DEFAULT_DWELL: Duration = Duration::from_secs(600);
/// 1 %.
const DEFAULT_FAILING: Millionths = 10_000;

pub(super) fn canary(
    model: &str,
    written: &schema::Canary,
    labels: &BTreeMap<Label, Version>,
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
        Some(errors) => faults.keep(&gates.join("errors").join("at_most"), millionths(&errors.at_most)),
        None => Some(DEFAULT_FAILING),
    };
    let disagreeing_at_most = optional(written.gates.disagreement.as_ref(), |gate| {
        faults.keep(&gates.join("disagreement").join("at_most"), millionths(&gate.at_most))
    });
    let faulty_at_most = optional(written.gates.faults.as_ref(), |gate| {
        faults.keep(&gates.join("faults").join("at_most"), millionths(&gate.at_most))
    });
    let drifting_at_most = optional(written.gates.drift.as_ref(), |gate| {
        faults.keep(&gates.join("drift").join("at_most"), of_a_bit(&gate.at_most))
    });
    let slow = optional(written.gates.latency.as_ref(), |latency| {
        slow_policy(&latency.over, (&latency.at_most, "at_most"), &gates.join("latency"), faults)
    });
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

fn rising(written: &[Number], path: &Place<'_>, faults: &mut Faults) -> Option<Vec<Millionths>> {
    if written.is_empty() {
        faults.note(path, Fault::Empty);
    }
    faults.note_above(MOST_STEPS, written.len() as u64, path);
    let mut steps = Vec::new();
    for (at, percent) in written.iter().enumerate() {
        let step = faults.keep(&path.join(at), millionths(percent))?;
        if steps.last().is_some_and(|before| *before >= step) {
            let (before, got) = (written[at - 1].clone(), percent.clone());
            faults.note(&path.join(at), Fault::NotRising { before, got });
        }
        steps.push(step);
    }
    (!steps.is_empty()).then_some(steps)
}

fn of_a_bit(written: &Number) -> Result<Millionths, Fault> {
    let bits = written.float().unwrap_or(f64::NAN);
    let millionths = (bits * 1e6).round();
    let is_exact = (millionths / 1e6 - bits).abs() < 1e-12;
    if (100.0..=999_900.0).contains(&millionths) && is_exact {
        Ok(millionths as Millionths)
    } else {
        Err(Fault::Bits(written.clone()))
    }
}

pub(super) fn shadow(
    written: &schema::Shadow,
    labels: &BTreeMap<Label, Version>,
    path: &Place<'_>,
    faults: &mut Faults,
) -> Option<Arc<ShadowPolicy>> {
    let target = target(&written.version, labels, &path.join("version"), faults);
    let share = match &written.percent {
        None => Some(ALL),
        Some(percent) => faults.keep(&path.join("percent"), millionths_up_to(100.0, percent)),
    };
    let copies = written.in_flight_max.as_ref();
    let most = count_or(copies, (DEFAULT_COPIES, u32::MAX), &path.join("in_flight_max"), faults);
    let deadline = optional(written.deadline.as_deref(), |text| {
        faults.keep(&path.join("deadline"), units::duration(text))
    });
    let comparison = comparison(&written.compare, &path.join("compare"), faults);
    Some(Arc::new(ShadowPolicy {
        version: target?.version,
        share: share?,
        in_flight_max: most?,
        deadline: deadline?,
        comparison: comparison?,
    }))
}

fn comparison(written: &schema::Compare, path: &Place<'_>, faults: &mut Faults) -> Option<Comparison> {
    let schema::Compare { absolute, relative, argmax, outputs } = written;
    let mut tolerance =
        |path: &Place<'_>, absolute: &Option<Number>, relative: &Option<Number>, else_: f64| {
            let absolute = tolerance_or(else_, absolute.as_ref(), &path.join("absolute"), faults);
            let relative = tolerance_or(else_, relative.as_ref(), &path.join("relative"), faults);
            Some(Tolerance::new(absolute?, relative?))
        };
    let of_others = tolerance(path, absolute, relative, DEFAULT_TOLERANCE);
    let in_outputs = path.join("outputs");
    let own: Vec<_> = outputs
        .iter()
        .map(|(name, own)| {
            let of_it = tolerance(&in_outputs.join(name.as_str()), &own.absolute, &own.relative, 0.0);
            Some((name.clone(), of_it?))
        })
        .collect();
    for name in outputs.keys().filter(|name| argmax.contains(name)) {
        faults.note(&in_outputs.join(name.as_str()), Fault::BoundsOfArgmax);
    }
    Some(Comparison {
        tolerance: of_others?,
        argmax: argmax.clone(),
        outputs: own.into_iter().collect::<Option<_>>()?,
    })
}

/// A number that is finite and not negative.
fn tolerance_or(else_: f64, written: Option<&Number>, path: &Place<'_>, faults: &mut Faults) -> Option<f64> {
    let Some(written) = written else { return Some(else_) };
    let tolerance = written.float().filter(|tolerance| tolerance.is_finite() && *tolerance >= 0.0);
    faults.keep(path, tolerance.ok_or_else(|| Fault::Tolerance(written.clone())))
}
