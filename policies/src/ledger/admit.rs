//! Who may enter, by rate. A request passes every limit that covers it or spends at none.
//!
//! What a request costs is known in two steps. When its head has come it is one request, which is asked and spent at the
//! limits that count those; where rows or bytes count, it is only asked whether any are left. When its body has been
//! read, [`Ledger::charge`] spends those, or gives back what the head has spent.
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
    /// Gives back what the head has spent.
    Refund,
}

enum Ask {
    Nothing,
    /// Whether one would be let through.
    Look,
    Spend(NonZeroU32),
    GiveBack,
}

impl Step {
    fn ask(self, cost: Cost) -> Ask {
        let units = |units: u64| NonZeroU32::new(units.clamp(1, u32::MAX.into()) as u32).expect("at least 1");
        match (self, cost) {
            (Self::Head, Cost::Requests) => Ask::Spend(NonZeroU32::MIN),
            (Self::Head, Cost::Rows | Cost::Bytes) => Ask::Look,
            (Self::Body(usage), Cost::Rows) => Ask::Spend(units(usage.rows)),
            (Self::Body(usage), Cost::Bytes) => Ask::Spend(units(usage.bytes)),
            (Self::Refund, Cost::Requests) => Ask::GiveBack,
            (Self::Body(_), Cost::Requests) | (Self::Refund, Cost::Rows | Cost::Bytes) => Ask::Nothing,
        }
    }
}

impl Ledger {
    /// Asks every limit that covers `model`, and spends at all of them or at none. What is left at the one with the least,
    /// if there is one.
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
    ) -> Result<Option<Quota>, Limited> {
        self.settle_at_all(snapshot, model, caller, Step::Head, now)
    }

    /// Spends what a request costs that was admitted, now that its body is known.
    ///
    /// # Errors
    /// As of [`Ledger::admit`]; what was spent there has then been given back.
    pub fn charge(
        &self,
        snapshot: &Snapshot,
        model: &str,
        caller: &impl Attributes,
        usage: Usage,
        now: Instant,
    ) -> Result<Option<Quota>, Limited> {
        if !snapshot.limits().iter().any(|limit| limit.cost != Cost::Requests && limit.covers(model)) {
            return Ok(None);
        }
        self.settle_at_all(snapshot, model, caller, Step::Body(usage), now).inspect_err(|_| {
            let refunded = self.settle_at_all(snapshot, model, caller, Step::Refund, now);
            debug_assert!(refunded.is_ok(), "nobody refuses what is given back");
        })
    }

    fn settle_at_all(
        &self,
        snapshot: &Snapshot,
        model: &str,
        caller: &impl Attributes,
        step: Step,
        now: Instant,
    ) -> Result<Option<Quota>, Limited> {
        if snapshot.limits().is_empty() {
            return Ok(None);
        }
        let elapsed = now.saturating_duration_since(*self.epoch.get_or_init(|| now));
        self.settle(snapshot.limits(), model, caller, step, elapsed.into(), None)
    }

    /// Locks and asks the first limit, then the others, then spends on the way back.
    fn settle(
        &self,
        limits: &[Arc<LimitPolicy>],
        model: &str,
        caller: &impl Attributes,
        step: Step,
        now: Moment,
        refusal: Option<Limited>,
    ) -> Result<Option<Quota>, Limited> {
        let Some((limit, others)) = limits.split_first() else {
            return refusal.map_or(Ok(None), Err);
        };
        let ask = if limit.covers(model) { step.ask(limit.cost) } else { Ask::Nothing };
        let units = match ask {
            Ask::Nothing => return self.settle(others, model, caller, step, now, refusal),
            Ask::Look | Ask::GiveBack => NonZeroU32::MIN,
            Ask::Spend(units) => units,
        };
        let limiter = self.limiter(limit);
        let bucket = limiter.open(caller, now);
        if matches!(ask, Ask::GiveBack) {
            bucket.give_back();
            return self.settle(others, model, caller, step, now, refusal);
        }
        let limit = &limiter.policy;
        match bucket.arrive(units) {
            Ok(level) => {
                let others = self.settle(others, model, caller, step, now, refusal)?;
                let (level, spends) = match ask {
                    Ask::Spend(_) => (Some(level), true),
                    _ => (bucket.level(), false),
                };
                let quota = quota_at(&limiter, level, now);
                if let (Some(level), true) = (level, spends) {
                    bucket.spend(level);
                }
                Ok(Some(others.filter(|other| other.remaining <= quota.remaining).unwrap_or(quota)))
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
                self.settle(others, model, caller, step, now, Some(refusal))
            }
        }
    }
}

fn quota_at(limiter: &Limiter, level: Option<Moment>, now: Moment) -> Quota {
    let (remaining, reset) = limiter.left(level, now);
    Quota { limit: Arc::clone(&limiter.policy), remaining, reset }
}
