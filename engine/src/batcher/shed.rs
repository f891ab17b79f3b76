//! Who goes when there is too little room, or too little time: of those that wait the least critical first; among equals
//! those of the tenant who has most waiting, for somebody who would still have less. Decides who; never for the sake of
//! somebody less critical, and never for nothing: if all of them together would not be enough, nobody goes.
//!
//! Among equals that is the longest queue drop of Suter, Lakshman, Stiliadis and Choudhury (1998): whoever asks for less
//! than an equal share of what there is gets it, whatever the others ask for.

use super::before::{Before, Bound};
use super::{Batcher, Bucket, Criticality, Place, Ticket};
use std::collections::BTreeMap;
use std::collections::btree_map::Values;
use std::iter::{Peekable, Rev};
use std::time::{Duration, Instant};

/// So many go for one at most.
const VICTIMS_MAX: usize = 256;

/// Who waits and has not begun to run, by how critical they are and whose.
#[derive(Debug, Default)]
pub(super) struct Parties(BTreeMap<(Criticality, u64), Party>);

#[derive(Debug, Default)]
struct Party {
    rows: u64,
    /// By arrival.
    jobs: BTreeMap<u64, Waits>,
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
        let party = self.0.entry((ticket.criticality, ticket.tenant)).or_default();
        party.rows += u64::from(ticket.rows);
        let key = (ticket.connection, ticket.id);
        party.jobs.insert(place.arrival, Waits { key, place, rows: ticket.rows, bytes: ticket.bytes });
    }

    /// One that has gone, or has begun to run; only the first time counts.
    pub(super) fn leave<T>(&mut self, ticket: &Ticket<T>, place: Place) {
        let key = (ticket.criticality, ticket.tenant);
        let Some(party) = self.0.get_mut(&key) else { return };
        if party.jobs.remove(&place.arrival).is_some() {
            party.rows -= u64::from(ticket.rows);
        }
        // That of all who have no tenant stays: it is needed again at once.
        if party.jobs.is_empty() && ticket.tenant != 0 {
            self.0.remove(&key);
        }
    }
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
}

/// A party, as far as it has lost somebody.
struct Losing<'a> {
    criticality: Criticality,
    /// What it is left with.
    rows: u64,
    /// The newest goes first.
    jobs: Peekable<Rev<Values<'a, u64, Waits>>>,
}

impl<T: Clone> Batcher<T> {
    /// Those that go so that `ticket` has what it lacks, if there are enough of them beside those that have `gone` for it.
    pub(super) fn victims(
        &self,
        ticket: &Ticket<T>,
        mut lack: Lack,
        gone: &[(u64, u64)],
    ) -> Option<Vec<(u64, u64)>> {
        if lack.is_nothing() {
            return Some(Vec::new());
        }
        let Self { parties: Parties(parties), .. } = self;
        let own = (ticket.criticality, ticket.tenant);
        // What the ticket's own party is going to have: of equals, nobody is left with less.
        let share = parties.get(&own).map_or(0, |party| party.rows) + u64::from(ticket.rows);
        // Who is less critical comes later in order.
        let others = parties.range((ticket.criticality, 0)..).filter(|(whose, _)| **whose != own);
        let mut others: Vec<Losing<'_>> = others
            .map(|((criticality, _), party)| Losing {
                criticality: *criticality,
                rows: party.rows - party.rows_of(gone),
                jobs: party.jobs.values().rev().peekable(),
            })
            .collect();
        let mut victims = Vec::new();
        while !lack.is_nothing() {
            let can_lose = |party: &mut &mut Losing<'_>| {
                let stays = |waits: &&Waits| !lack.is_met_by(waits) || gone.contains(&waits.key);
                while party.jobs.next_if(stays).is_some() {}
                let is_less_critical = party.criticality > ticket.criticality;
                let left = |waits: &&Waits| party.rows.saturating_sub(u64::from(waits.rows));
                party.jobs.peek().is_some_and(|waits| is_less_critical || left(waits) >= share)
            };
            let losing = others.iter_mut().filter_map(|mut party| can_lose(&mut party).then_some(party));
            let party = losing.max_by_key(|party| (party.criticality, party.rows))?;
            let gone = party.jobs.next().expect("it can lose somebody");
            party.rows -= u64::from(gone.rows);
            victims.push(gone.key);
            if victims.len() > VICTIMS_MAX {
                return None;
            }
            lack = lack.without(gone, || self.lane_time(&self.places[&gone.key].0, gone.rows));
        }
        Some(victims)
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
        let whose = (criticality, tenant);
        let share = parties.get(&whose).map_or(0, |party| party.rows) + 1;
        let stays = |(other, party): (&(Criticality, u64), &Party)| match other {
            other if *other == whose => party.rows,
            (other, _) if *other > criticality => 0,
            (other, _) if *other == criticality => party.rows.min(share),
            _ => party.rows,
        };
        let all: u64 = parties.values().map(|party| party.rows).sum();
        let stay: u64 = parties.iter().map(stays).sum();
        // What has begun to run in pieces is of no party, and stays.
        let stays = if all == 0 { 1.0 } else { stay as f64 / all as f64 };
        let mut before = Before::default();
        for (bucket, queue) in self.queues.iter().filter(|(_, queue)| queue.rows > 0 && stays > 0.0) {
            let (runs, work) = self.runs(bucket, queue, queue.rows);
            let runs = (runs as f64 * stays).ceil() as u64;
            before.add(queue.bound(bucket.version), runs, work.mul_f64(stays));
        }
        before.wait_behind(own, self.lanes, &self.running, now)
    }

    /// Lane time that these leave to whoever stands at this place.
    pub(super) fn time_left_by(&self, gone: &[(u64, u64)], before: Place) -> Duration {
        let of = |key: &(u64, u64)| {
            let (bucket, place) = self.places.get(key)?;
            let waiting = self.queues[bucket].waiting.get(place)?;
            (*place < before).then(|| self.lane_time(bucket, waiting.ticket.rows))
        };
        gone.iter().filter_map(of).sum()
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
