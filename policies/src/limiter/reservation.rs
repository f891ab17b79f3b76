//! What a request has spent and may yet give back. A reservation is a value: dropping it gives it back, or leaves it spent
//! where it was settled so, whatever became of the request. It knows its bucket, which need not be its caller's: what was taken from the
//! overflow bucket goes back there, though the caller may have a bucket of its own by now. What a request then needs beyond
//! it is taken from its own.
//!
//! Time pays what a bucket owes in the order in which it was spent, so each reservation owns a stretch of the time until the
//! level: `end` is where it stops. Giving one back takes out what is left of its stretch, and those behind it move up:
//!
//! ```text
//!   now      ana's 3            ben's 2     level
//!    │─────────────────────────│───────────│          giving ana's back ──▶ │─ben's 2─│ level
//! ```
//!
//! What time has paid for is not given back. Else whoever reserves and gives back could store what a full bucket has no
//! room for, and have two bursts at once. Time counts as of the last arrival at the limit, so no clock is needed here:
//! what has passed since has let nothing through.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::Arc;

use super::{Limiter, Number};
use crate::gcra::Moment;

/// Which of a limit's buckets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Spot {
    Own(Number),
    Shared,
}

/// Units that were spent at one limit.
#[derive(Debug)]
pub(crate) struct Reservation {
    pub(super) limiter: Arc<Limiter>,
    pub(super) spot: Spot,
    pub(super) ticket: u64,
    pub(super) units: NonZeroU32,
    /// Whether dropping it leaves them spent.
    is_settled: bool,
}

impl Reservation {
    pub(super) fn new(limiter: Arc<Limiter>, (spot, ticket): (Spot, u64), units: NonZeroU32) -> Self {
        Self { limiter, spot, ticket, units, is_settled: false }
    }

    pub(crate) fn is_of(&self, limiter: &Arc<Limiter>) -> bool {
        Arc::ptr_eq(&self.limiter, limiter)
    }

    pub(crate) fn limiter(&self) -> &Limiter {
        &self.limiter
    }

    /// From now on dropping it leaves spent what it has.
    pub(crate) fn settle(&mut self) {
        self.is_settled = true;
    }

    pub(crate) fn give_back(mut self) {
        self.is_settled = false;
    }

    /// Gives back what is more than this.
    pub(crate) fn shrink_to(&mut self, units: NonZeroU32) {
        if units < self.units {
            self.limiter.take_back(self, self.units.get() - units.get());
            self.units = units;
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if !self.is_settled {
            self.limiter.take_back(self, self.units.get());
        }
        self.limiter.forget(self);
    }
}

/// The reservations of one limit that are neither given back nor spent for good, by bucket, in the order of their spending.
#[derive(Debug, Default)]
pub(super) struct Reservations {
    open: HashMap<Spot, Vec<Stretch>>,
    tickets: u64,
}

#[derive(Debug)]
struct Stretch {
    ticket: u64,
    end: Moment,
}

impl Reservations {
    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    pub(super) fn open(&mut self, spot: Spot, end: Moment) -> u64 {
        self.tickets += 1;
        self.open.entry(spot).or_default().push(Stretch { ticket: self.tickets, end });
        self.tickets
    }

    /// Until when time pays for it; `None` once it is all paid for and its bucket gone.
    pub(super) fn end(&self, spot: Spot, ticket: u64) -> Option<Moment> {
        let stretches = self.open.get(&spot)?;
        let at = stretches.binary_search_by_key(&ticket, |stretch| stretch.ticket).ok()?;
        Some(stretches[at].end)
    }

    /// Takes out so much of a stretch, in nanoseconds.
    pub(super) fn take_out(&mut self, spot: Spot, ticket: u64, time: u64) {
        let stretches = self.open.get_mut(&spot).map(Vec::as_mut_slice).unwrap_or_default();
        let behind = stretches.partition_point(|stretch| stretch.ticket < ticket);
        for stretch in &mut stretches[behind..] {
            stretch.end = Moment::new(stretch.end.as_u64().saturating_sub(time));
        }
    }

    pub(super) fn close(&mut self, spot: Spot, ticket: u64) {
        let Some(stretches) = self.open.get_mut(&spot) else { return };
        stretches.retain(|stretch| stretch.ticket != ticket);
        if stretches.is_empty() {
            self.open.remove(&spot);
        }
    }

    /// Of a bucket that owes nothing any more: if its caller comes back, these have nothing to do with that.
    pub(super) fn close_all(&mut self, spot: Spot) {
        self.open.remove(&spot);
    }
}
