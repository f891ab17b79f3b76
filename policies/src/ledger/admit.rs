//! Who may enter, by rate. A request passes every limit that covers it or spends at none.
//!
//! What a request costs is known in two steps. When its head has come it is one request, which is asked and spent at the
//! limits that count those; where rows or bytes count, it is only asked whether any are left. When its body has been
//! read, [`Ledger::charge`] spends those, or gives back what the head has spent and time has not paid for.
//!
//! All limits are locked one after the other, in the order of their names, and the spending happens on the way back: no
//! other request sees a state in between.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Ledger;
use crate::attribute::Attributes;
use crate::gcra::{Moment, Refusal};
use crate::limiter::{Cost, LimitPolicy, Limited, Limiter, Quota};
use crate::snapshot::Snapshot;

/// What a request has turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Rows that are asked about; at least 1.
    pub rows: u64,
    /// Bytes of its body.
    pub bytes: u64,
}

/// What is asked of every limit.
#[derive(Clone, Copy)]
enum Step {
    Head,
    Body(Usage),
}

enum Ask {
    Nothing,
    /// Whether one would be let through.
    Look,
    Spend(NonZeroU32),
}

impl Step {
    fn ask(self, cost: Cost) -> Ask {
        let units = |units: u64| NonZeroU32::new(units.clamp(1, u32::MAX.into()) as u32).expect("at least 1");
        match (self, cost) {
            (Self::Head, Cost::Requests) => Ask::Spend(NonZeroU32::MIN),
            (Self::Head, Cost::Rows | Cost::Bytes) => Ask::Look,
            (Self::Body(usage), Cost::Rows) => Ask::Spend(units(usage.rows)),
            (Self::Body(usage), Cost::Bytes) => Ask::Spend(units(usage.bytes)),
            (Self::Body(_), Cost::Requests) => Ask::Nothing,
        }
    }
}

/// A request that all limits have let through.
#[derive(Debug, Default)]
pub struct Admitted {
    /// What is left at the limit that is nearest to being used up, if there is one.
    pub quota: Option<Quota>,
    /// What may have to be given back when its body is known.
    spent: Vec<Spent>,
}

/// A unit that was spent at one limit.
#[derive(Debug)]
struct Spent {
    limiter: Arc<Limiter>,
    /// What it made of the level.
    level: Moment,
}

/// One step of one request.
struct Arrival<'a, C> {
    model: &'a str,
    caller: &'a C,
    step: Step,
    now: Moment,
    /// Whether a later step may give back what this one spends.
    is_refundable: bool,
}

impl Ledger {
    /// Asks every limit that covers `model`, and spends at all of them or at none.
    ///
    /// # Errors
    /// [`Limited`] names the limit with the longest wait: a caller who waits that long is not refused again by
    /// another one, unless somebody shares its buckets. Nothing has then been spent anywhere.
    pub fn admit(
        &self,
        snapshot: &Snapshot,
        model: &str,
        caller: &impl Attributes,
        now: Instant,
    ) -> Result<Admitted, Limited> {
        let (now, is_refundable) = (self.moment(now), counts_bodies(snapshot, model));
        let head = Arrival { model, caller, step: Step::Head, now, is_refundable };
        let mut spent = Vec::new();
        let quota = self.settle(snapshot.limits(), &head, &mut spent, None)?;
        Ok(Admitted { quota, spent })
    }

    /// Spends what a request costs that was admitted, now that its body is known. What is left at the limit that is nearest
    /// to being used up, of all that it has met.
    ///
    /// # Errors
    /// As of [`Ledger::admit`]; what was spent there has then been given back, as far as time has not paid for it.
    pub fn charge(
        &self,
        snapshot: &Snapshot,
        model: &str,
        caller: &impl Attributes,
        admitted: Admitted,
        usage: Usage,
        now: Instant,
    ) -> Result<Option<Quota>, Limited> {
        let Admitted { quota, spent } = admitted;
        if !counts_bodies(snapshot, model) {
            return Ok(quota);
        }
        let now = self.moment(now);
        let body = Arrival { model, caller, step: Step::Body(usage), now, is_refundable: false };
        match self.settle(snapshot.limits(), &body, &mut Vec::new(), None) {
            Ok(charged) => Ok(nearer(quota, charged)),
            Err(limited) => {
                // A limit that has started afresh meanwhile has not seen it: what is given back is the old one's.
                for Spent { limiter, level } in spent {
                    limiter.open(caller, now).give_back(level);
                }
                Err(limited)
            }
        }
    }

    fn moment(&self, now: Instant) -> Moment {
        now.saturating_duration_since(*self.epoch.get_or_init(|| now)).into()
    }

    /// Locks and asks the first limit, then the others, then spends on the way back.
    fn settle(
        &self,
        limits: &[Arc<LimitPolicy>],
        arrival: &Arrival<'_, impl Attributes>,
        spent: &mut Vec<Spent>,
        refusal: Option<Limited>,
    ) -> Result<Option<Quota>, Limited> {
        let Some((limit, others)) = limits.split_first() else {
            return refusal.map_or(Ok(None), Err);
        };
        let ask = if limit.covers(arrival.model) { arrival.step.ask(limit.cost) } else { Ask::Nothing };
        let (units, spends) = match ask {
            Ask::Nothing => return self.settle(others, arrival, spent, refusal),
            Ask::Look => (NonZeroU32::MIN, false),
            Ask::Spend(units) => (units, true),
        };
        let (limiter, now) = (self.limiter(limit), arrival.now);
        let bucket = limiter.open(arrival.caller, now);
        let limit = &limiter.policy;
        match bucket.arrive(units) {
            Ok(level) => {
                let others = self.settle(others, arrival, spent, refusal)?;
                let quota = quota_at(&limiter, if spends { Some(level) } else { bucket.level() }, now);
                if spends {
                    bucket.spend(level);
                }
                if spends && arrival.is_refundable {
                    spent.push(Spent { limiter: Arc::clone(&limiter), level });
                }
                Ok(nearer(Some(quota), others))
            }
            Err(refused) => {
                let (retry_after, never) = match refused {
                    Refusal::TooSoon(wait) => (wait, None),
                    Refusal::TooMuch => (Duration::MAX, Some(units)),
                };
                let quota = quota_at(&limiter, bucket.level(), now);
                let refusal = match refusal {
                    Some(longer) if longer.retry_after >= retry_after => longer,
                    Some(_) | None => Limited { limit: Arc::clone(&limit.name), retry_after, never, quota },
                };
                self.settle(others, arrival, spent, Some(refusal))
            }
        }
    }
}

/// Whether a request's body costs something.
fn counts_bodies(snapshot: &Snapshot, model: &str) -> bool {
    snapshot.limits().iter().any(|limit| limit.cost != Cost::Requests && limit.covers(model))
}

fn nearer(quota: Option<Quota>, other: Option<Quota>) -> Option<Quota> {
    match (quota, other) {
        (Some(quota), Some(other)) => Some(if other.is_as_near_as(&quota) { other } else { quota }),
        (quota, other) => quota.or(other),
    }
}

fn quota_at(limiter: &Limiter, level: Option<Moment>, now: Moment) -> Quota {
    let (remaining, reset) = limiter.left(level, now);
    Quota { limit: Arc::clone(&limiter.policy), remaining, reset }
}
