//! Who goes when there is too little room, or too little time. Of those that wait first whoever has no time left anyway, then the
//! least critical. Among equals somebody of the tenant who has most waiting, for another tenant who would still have less; and
//! within a tenant one of the version of which it has most, for another version of which it would still have less. Decides
//! who; never for the sake of somebody less critical, and never for nothing: if all of them together would not be enough, nobody
//! goes.
//!
//! Among equals that is the longest queue drop of Suter, Lakshman, Stiliadis and Choudhury (1998), on two levels: whoever asks for
//! less than an equal share of what there is gets it, whatever the others ask for. A tenant with many versions has no more
//! than one with a single version; and where nobody says whose requests are, versions have equal shares.

use super::before::{Before, Bound};
use super::forecast::Forecast;
use super::{Batcher, Bucket, Criticality, Place, Ticket};
use std::collections::btree_map::Values;
use std::collections::{BTreeMap, BTreeSet};
use std::iter::{Peekable, Rev};
use std::time::{Duration, Instant};

/// So many go for one at most.
const VICTIMS_MAX: usize = 1024;

/// How critical, which tenant's, for which version.
type Whose = (Criticality, u64, u32);

/// Who waits and has not begun to run.
#[derive(Debug, Default)]
pub(super) struct Parties(BTreeMap<Whose, Party>);

#[derive(Debug, Default)]
struct Party {
    rows: u64,
    /// By arrival.
    jobs: BTreeMap<u64, Waits>,
    /// Deadlines, and whose they are.
    due: BTreeSet<(Instant, u64)>,
}

/// One of a party.
#[derive(Clone, Copy, Debug)]
struct Waits {
    key: (u64, u64),
    place: Place,
    rows: u32,
    bytes: usize,
}

/// What is missing.
#[derive(Clone, Copy, Debug)]
pub(super) enum Lack {
    Room {
        rows: u64,
        bytes: usize,
    },
    /// Lane time, of those that stand before this place.
    Time {
        lane: Duration,
        before: Place,
    },
}

impl Parties {
    pub(super) fn join<T>(&mut self, ticket: &Ticket<T>, place: Place) {
        let party = self.0.entry(whose(ticket)).or_default();
        party.due.extend(ticket.deadline.map(|deadline| (deadline, place.arrival)));
        party.rows += u64::from(ticket.rows);
        let key = (ticket.connection, ticket.id);
        party.jobs.insert(place.arrival, Waits { key, place, rows: ticket.rows, bytes: ticket.bytes });
    }

    /// One that has gone, or has begun to run; only the first time counts.
    pub(super) fn leave<T>(&mut self, ticket: &Ticket<T>, place: Place) {
        let whose = whose(ticket);
        let Some(party) = self.0.get_mut(&whose) else { return };
        if party.jobs.remove(&place.arrival).is_some() {
            party.rows -= u64::from(ticket.rows);
            if let Some(deadline) = ticket.deadline {
                party.due.remove(&(deadline, place.arrival));
            }
        }
        // That of all who have no tenant stays: it is needed again at once.
        if party.jobs.is_empty() && ticket.tenant != 0 {
            self.0.remove(&whose);
        }
    }

    /// Nothing waits any more for a version.
    pub(super) fn forget(&mut self, version: u32) {
        self.0.retain(|(_, _, of), party| *of != version || !party.jobs.is_empty());
    }

    /// Rows of all versions of a tenant.
    fn rows_of(&self, criticality: Criticality, tenant: u64) -> u64 {
        let of_tenant = self.0.range((criticality, tenant, 0)..=(criticality, tenant, u32::MAX));
        of_tenant.map(|(_, party)| party.rows).sum()
    }
}

fn whose<T>(ticket: &Ticket<T>) -> Whose {
    (ticket.criticality, ticket.tenant, ticket.bucket.version)
}

impl Party {
    /// Rows of those of these that are of it.
    fn rows_of(&self, gone: &[(u64, u64)]) -> u64 {
        if gone.is_empty() {
            return 0;
        }
        let those = self.jobs.values().filter(|waits| gone.contains(&waits.key));
        those.map(|waits| u64::from(waits.rows)).sum()
    }

    /// Those that have no time left.
    fn expired(&self, now: Instant) -> impl Iterator<Item = &Waits> {
        self.due.range(..=(now, u64::MAX)).map(|(_, arrival)| &self.jobs[arrival])
    }
}

/// A party, as far as it has lost somebody.
struct Losing<'a> {
    whose: Whose,
    /// What it is left with.
    rows: u64,
    /// The newest goes first.
    jobs: Peekable<Rev<Values<'a, u64, Waits>>>,
}

impl<T: Clone> Batcher<T> {
    /// Those that go so that `ticket` has what it lacks, if there are enough of them beside those that have `gone` for it. Where it lacks
    /// time, all who may go if there are not.
    pub(super) fn victims(
        &self,
        ticket: &Ticket<T>,
        mut lack: Lack,
        gone: &[(u64, u64)],
        now: Instant,
    ) -> Option<Vec<(u64, u64)>> {
        if lack.is_nothing() {
            return Some(Vec::new());
        }
        let mut victims = Vec::new();
        let without = |lack: Lack, waits: &Waits| {
            lack.without(waits, || self.lane_time(&self.places[&waits.key].0, waits.rows))
        };
        for waits in self.parties.0.values().flat_map(|party| party.expired(now)).take(VICTIMS_MAX) {
            if lack.is_nothing() {
                break;
            }
            if lack.is_met_by(waits) && !gone.contains(&waits.key) {
                victims.push(waits.key);
                lack = without(lack, waits);
            }
        }
        if lack.is_nothing() {
            return Some(victims);
        }
        let gone = [gone, &victims[..]].concat();
        let Parties(parties) = &self.parties;
        let own = whose(ticket);
        let rows = u64::from(ticket.rows);
        // What the ticket's tenant is going to have, in all and of its version: of equals, nobody is left with less.
        let tenants_share = self.parties.rows_of(own.0, own.1) + rows;
        let versions_share = parties.get(&own).map_or(0, |party| party.rows) + rows;
        // Who is less critical comes later in order.
        let mut others = Vec::new();
        let mut tenants: BTreeMap<(Criticality, u64), u64> = BTreeMap::new();
        for (whose, party) in parties.range((own.0, 0, 0)..) {
            let rows = party.rows - party.rows_of(&gone);
            *tenants.entry((whose.0, whose.1)).or_default() += rows;
            if *whose != own {
                others.push(Losing { whose: *whose, rows, jobs: party.jobs.values().rev().peekable() });
            }
        }
        while !lack.is_nothing() {
            let can_lose = |party: &mut &mut Losing<'_>| {
                let stays = |waits: &&Waits| !lack.is_met_by(waits) || gone.contains(&waits.key);
                while party.jobs.next_if(stays).is_some() {}
                let Some(waits) = party.jobs.peek() else { return false };
                let (criticality, tenant, _) = party.whose;
                let (has, share) = match (criticality, tenant) == (own.0, own.1) {
                    true => (party.rows, versions_share),
                    false => (tenants[&(criticality, tenant)], tenants_share),
                };
                criticality > own.0 || has.saturating_sub(u64::from(waits.rows)) >= share
            };
            let losing = others.iter_mut().filter_map(|mut party| can_lose(&mut party).then_some(party));
            let party = losing.max_by_key(|party| {
                let (criticality, tenant, _) = party.whose;
                (criticality, tenants[&(criticality, tenant)], party.rows)
            });
            let Some(party) = party.filter(|_| victims.len() < VICTIMS_MAX) else {
                // How much time it is that they make, nobody knows exactly.
                return matches!(lack, Lack::Time { .. }).then_some(victims);
            };
            let waits = party.jobs.next().expect("it can lose somebody");
            let (criticality, tenant, _) = party.whose;
            party.rows -= u64::from(waits.rows);
            *tenants.get_mut(&(criticality, tenant)).expect("it has a party") -= u64::from(waits.rows);
            victims.push(waits.key);
            lack = without(lack, waits);
        }
        Some(victims)
    }

    /// All that go so that a job of which this is predicted is in time, if it is without them.
    pub(super) fn make_time(
        &self,
        ticket: &Ticket<T>,
        before: Place,
        forecast: Forecast,
        gone: &[(u64, u64)],
        now: Instant,
    ) -> Option<Vec<(u64, u64)>> {
        let Forecast { waits, answered, alone_slow, .. } = forecast;
        let left = ticket.deadline?.saturating_duration_since(now);
        // When they have gone its run has no rows of theirs either, and takes less time: how much less, a forecast without them says.
        let least = (waits + alone_slow).max(left + (answered - left) / 8) - left;
        let mut before_these = 0;
        for times in [1, 2, 4, 8] {
            let lane = least * times * self.lanes as u32;
            let mut all = self.victims(ticket, Lack::Time { lane, before }, gone, now)?;
            if all.len() == std::mem::replace(&mut before_these, all.len()) {
                continue; // the same ones, which was not enough
            }
            all.extend_from_slice(gone);
            // Whoever takes another lane, or runs while it waits for its version's turn, does not stand in its way.
            if self.forecast(ticket, before, &all, now).is_none_or(|forecast| forecast.answered <= left) {
                return Some(all);
            }
        }
        None
    }

    /// How long a job of this tenant that is so critical, of a version that may have so much, would wait for its turn behind what
    /// runs, and what waits and would not make way for it.
    pub fn backlog_before(
        &self,
        own: Bound,
        criticality: Criticality,
        tenant: u64,
        now: Instant,
    ) -> Duration {
        let Parties(parties) = &self.parties;
        let tenants_share = self.parties.rows_of(criticality, tenant) + 1;
        let own_rows = parties.get(&(criticality, tenant, own.version)).map_or(0, |party| party.rows);
        let stay = |(other, whose, version): Whose, rows: u64| {
            let is_own_tenant = (other, whose) == (criticality, tenant);
            if other > criticality {
                0.0
            } else if other < criticality || (is_own_tenant && version == own.version) {
                rows as f64
            } else if is_own_tenant {
                rows.min(own_rows + 1) as f64
            } else {
                let all = self.parties.rows_of(other, whose).max(1);
                rows as f64 * (tenants_share as f64 / all as f64).min(1.0)
            }
        };
        // Of each version: all rows, and those that stay.
        let mut versions: BTreeMap<u32, (u64, f64)> = BTreeMap::new();
        for (whose, party) in parties {
            let (all, stays) = versions.entry(whose.2).or_default();
            *all += party.rows;
            *stays += stay(*whose, party.rows);
        }
        let mut before = Before::default();
        for (bucket, queue) in self.queues.iter().filter(|(_, queue)| queue.rows > 0) {
            // What has begun to run in pieces is of no party, and stays.
            let stays = match versions.get(&bucket.version) {
                Some((all, stays)) if *all > 0 => stays / *all as f64,
                _ => 1.0,
            };
            if stays > 0.0 {
                let (runs, work) = self.runs(bucket, queue, queue.rows);
                let runs = (runs as f64 * stays).ceil() as u64;
                before.add(queue.bound(bucket.version), runs, work.mul_f64(stays));
            }
        }
        before.wait_behind(own, self.lanes, &self.running, now)
    }

    /// What so many rows of a bucket where something waits would take, at the pace of full batches.
    fn lane_time(&self, bucket: &Bucket, rows: u32) -> Duration {
        let queue = &self.queues[bucket];
        let all = self.work(bucket, queue, queue.rows);
        all.mul_f64(f64::from(rows) / queue.rows.max(1) as f64)
    }
}

impl Lack {
    fn is_nothing(self) -> bool {
        match self {
            Self::Room { rows, bytes } => rows == 0 && bytes == 0,
            Self::Time { lane, .. } => lane.is_zero(),
        }
    }

    /// Whether it would be any less if this one went.
    fn is_met_by(self, waits: &Waits) -> bool {
        match self {
            Self::Room { .. } => true,
            Self::Time { before, .. } => waits.place < before,
        }
    }

    fn without(self, gone: &Waits, time: impl FnOnce() -> Duration) -> Self {
        match self {
            Self::Room { rows, bytes } => Self::Room {
                rows: rows.saturating_sub(u64::from(gone.rows)),
                bytes: bytes.saturating_sub(gone.bytes),
            },
            Self::Time { lane, before } => Self::Time { lane: lane.saturating_sub(time()), before },
        }
    }
}
