//! Who may enter, by rate. A request passes every limit that covers it or spends at none.
//!
//! What a request costs is known in steps. When its head has come it is one request, and what it says of its length and one
//! row are reserved where bytes or rows count. When its body has been read, [`Ledger::charge`] makes that what it really
//! is, or gives back all that its head has spent. Before it is given to whoever computes, [`Reserved::settle`] says that it
//! is to be paid for; if it then turns out not to have run, or is dropped before, its rows and bytes are given back. Requests
//! are not: who asks again and again of what is overloaded is whom such limits are for.
//!
//! All limits are locked one after the other, in the order of their names, and only then is anything spent: no other
//! request sees a state in between.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use smallvec::SmallVec;

use super::Ledger;
use crate::attribute::Attributes;
use crate::gcra::{Moment, Refusal};
use crate::limiter::{Bucket, Cost, Limited, Limiter, Quota, Reservation};
use crate::snapshot::Snapshot;

/// What a request has turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Rows that are asked about; at least 1.
    pub rows: u64,
    /// Bytes of its body.
    pub bytes: u64,
}

impl Usage {
    /// What a limit counts of it, once a request has been let in.
    fn units(self, cost: Cost) -> Option<NonZeroU32> {
        let units = match cost {
            Cost::Requests => return None,
            Cost::Rows => self.rows,
            Cost::Bytes => self.bytes,
        };
        Some(NonZeroU32::new(units.clamp(1, u32::MAX.into()) as u32).expect("at least 1"))
    }
}

/// A request that all limits have let through.
#[derive(Debug, Default)]
pub struct Admitted {
    /// What is left at the limit that is nearest to being used up, if there is one.
    pub quota: Option<Quota>,
    reserved: Reserved,
}

/// A request whose cost is known, and reserved.
#[derive(Debug)]
pub struct Charged {
    /// What is left at the limit that is nearest to being used up, of all that it has met.
    pub quota: Option<Quota>,
    /// What it costs.
    pub reserved: Reserved,
}

/// The rows and bytes that a request has reserved. Dropping it gives them back, as far as time has not paid for them, unless
/// it was settled.
#[derive(Debug, Default)]
pub struct Reserved(Vec<Reservation>);

impl Reserved {
    /// They are to be paid for, whatever becomes of the request, unless somebody gives them back all the same.
    pub fn settle(&mut self) {
        self.0.iter_mut().for_each(Reservation::settle);
    }

    /// The request has had nothing for them.
    pub fn give_back(self) {
        self.0.into_iter().for_each(Reservation::give_back);
    }
}

/// Limits that most requests have to pass, or fewer.
const FEW: usize = 4;

/// One step of one request.
struct Arrival<'a, C, S> {
    model: &'a str,
    caller: &'a C,
    step: S,
    now: Moment,
}

/// What a step asks of each limit. Types and not a value: most requests have one step, and nothing to tell it by.
trait Step {
    /// Whether a later step may give back what this one spends.
    const RESERVES: bool;

    fn units(&self, cost: Cost) -> Option<NonZeroU32>;

    /// What an earlier step has spent there.
    fn reserved(&self, limiter: &Arc<Limiter>) -> Option<&Reservation>;
}

/// The head of a request whose body costs nothing.
struct Head;

impl Step for Head {
    const RESERVES: bool = false;

    fn units(&self, _: Cost) -> Option<NonZeroU32> {
        Some(NonZeroU32::MIN)
    }

    fn reserved(&self, _: &Arc<Limiter>) -> Option<&Reservation> {
        None
    }
}

/// The head of one whose body will cost something: this at least.
struct AtLeast(Usage);

impl Step for AtLeast {
    const RESERVES: bool = true;

    fn units(&self, cost: Cost) -> Option<NonZeroU32> {
        Some(self.0.units(cost).unwrap_or(NonZeroU32::MIN))
    }

    fn reserved(&self, _: &Arc<Limiter>) -> Option<&Reservation> {
        None
    }
}

/// The body, of which so much is reserved.
struct Body<'a>(Usage, &'a Reserved);

impl Step for Body<'_> {
    const RESERVES: bool = true;

    fn units(&self, cost: Cost) -> Option<NonZeroU32> {
        self.0.units(cost)
    }

    fn reserved(&self, limiter: &Arc<Limiter>) -> Option<&Reservation> {
        self.1.0.iter().find(|reservation| reservation.is_of(limiter))
    }
}

impl Ledger {
    /// Asks every limit that covers `model`, and spends at all of them or at none. Where bytes count, `length` is asked for
    /// those that the body will have at least, if that is known.
    ///
    /// # Errors
    /// [`Limited`] names the limit with the longest wait: a caller who waits that long is not refused again by
    /// another one, unless somebody shares its buckets. Nothing has then been spent anywhere.
    pub fn admit(
        &self,
        snapshot: &Snapshot,
        model: &str,
        caller: &impl Attributes,
        length: impl FnOnce() -> Option<u64>,
        now: Instant,
    ) -> Result<Admitted, Limited> {
        let (now, mut reserved) = (self.moment(now), Vec::new());
        let quota = if counts_bodies(snapshot, model) {
            let step = AtLeast(Usage { rows: 1, bytes: length().unwrap_or(1) });
            let head = Arrival { model, caller, step, now };
            self.ask_all(snapshot, &head, &mut reserved)?
        } else {
            let head = Arrival { model, caller, step: Head, now };
            self.ask_all(snapshot, &head, &mut reserved)?
        };
        Ok(Admitted { quota, reserved: Reserved(reserved) })
    }

    /// Reserves what a request costs that was admitted, now that its body is known.
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
    ) -> Result<Charged, Limited> {
        let Admitted { quota, mut reserved } = admitted;
        if reserved.0.is_empty() {
            return Ok(Charged { quota, reserved });
        }
        let step = Body(usage, &reserved);
        let body = Arrival { model, caller, step, now: self.moment(now) };
        let mut more = Vec::new();
        match self.ask_all(snapshot, &body, &mut more) {
            Ok(charged) => {
                reserved.0.retain_mut(|reservation| {
                    let units = usage.units(reservation.limiter().policy.cost);
                    if let Some(units) = units {
                        reservation.shrink_to(units);
                    }
                    units.is_some() // what was asked is spent
                });
                reserved.0.extend(more);
                Ok(Charged { quota: nearer(quota, charged), reserved })
            }
            Err(limited) => {
                // A limit that has started afresh meanwhile has not seen it: what is given back is the old one's.
                reserved.give_back();
                Err(limited)
            }
        }
    }

    fn moment(&self, now: Instant) -> Moment {
        now.saturating_duration_since(*self.epoch.get_or_init(|| now)).into()
    }

    /// Asks all limits of `snapshot`, and spends what they let through.
    fn ask_all(
        &self,
        snapshot: &Snapshot,
        arrival: &Arrival<'_, impl Attributes, impl Step>,
        spent: &mut Vec<Reservation>,
    ) -> Result<Option<Quota>, Limited> {
        let tables = self.tables.load();
        let mut asked = SmallVec::<[Asked<'_>; FEW]>::new();
        let mut refusal: Option<Limited> = None;
        for (place, limit) in snapshot.limits().iter().enumerate() {
            if !limit.covers(arrival.model) {
                continue;
            }
            let Some(units) = arrival.step.units(limit.cost) else { continue };
            let Some(limiter) = tables.limiters.get(place, limit) else {
                drop(asked);
                drop(tables);
                self.begin_limit(limit);
                return self.ask_all(snapshot, arrival, spent);
            };
            let reserved = arrival.step.reserved(limiter);
            let bucket = match reserved {
                None => limiter.open(arrival.caller, arrival.now),
                Some(reserved) => limiter.open_again(reserved, arrival.caller, arrival.now),
            };
            let arrived = match reserved {
                None => bucket.arrive(units).map(|level| Some((level, units))),
                Some(reserved) => bucket.grow(reserved, units),
            };
            match arrived {
                Ok(grown) => asked.push(Asked { limiter, cost: limit.cost, bucket, grown }),
                Err(refused) => {
                    let (retry_after, never) = match refused {
                        Refusal::TooSoon(wait) => (wait, None),
                        Refusal::TooMuch => (Duration::MAX, Some(units)),
                    };
                    if refusal.as_ref().is_none_or(|longer| longer.retry_after < retry_after) {
                        let level =
                            reserved.map_or(bucket.level(), |reserved| bucket.level_without(reserved));
                        let (limit, quota) =
                            (Arc::clone(&limiter.policy.name), limiter.quota(level, arrival.now));
                        refusal = Some(Limited { limit, retry_after, never, quota });
                    }
                }
            }
        }
        refusal.map_or_else(|| Ok(spend(&mut asked, arrival, spent)), Err)
    }
}

/// A limit that has let a request through, and is locked; nothing has been spent there yet.
struct Asked<'a> {
    limiter: &'a Arc<Limiter>,
    /// As the request's snapshot has it.
    cost: Cost,
    bucket: Bucket<'a>,
    /// Its level after that, and by how many units, if by any.
    grown: Option<(Moment, NonZeroU32)>,
}

/// Spends at all of them, the last one first; the quota of the one that is nearest to being used up.
fn spend<S: Step>(
    asked: &mut SmallVec<[Asked<'_>; FEW]>,
    arrival: &Arrival<'_, impl Attributes, S>,
    spent: &mut Vec<Reservation>,
) -> Option<Quota> {
    let mut nearest: Option<Quota> = None;
    while let Some(Asked { limiter, cost, bucket, grown }) = asked.pop() {
        let level = grown.map_or(bucket.level(), |(level, _)| Some(level));
        let quota = limiter.quota(level, arrival.now);
        match grown {
            None => {}
            Some((level, _)) if !S::RESERVES => bucket.spend(level),
            Some((level, units)) => {
                let mut reservation = bucket.reserve(limiter, level, units);
                if cost == Cost::Requests {
                    reservation.settle(); // unless another limit refuses it
                }
                spent.push(reservation);
            }
        }
        nearest = nearer(Some(quota), nearest);
    }
    nearest
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

#[cfg(test)]
mod tests;
