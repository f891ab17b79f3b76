//! Predicts when a job that comes now would be answered, from what waits before it, what runs, and how long such runs took.
//! A prediction, not a promise: whoever finds nothing before it gets the benefit of the doubt.

use super::profile::Profile;
use super::{Batcher, Bucket, Grouping, PATIENCE, Queue, Running, Ticket};
use crate::curve::Curve;
use std::time::{Duration, Instant};

/// What is predicted may well take so many times as long when many are waiting.
const MARGIN: f64 = 1.3;

/// From now.
pub(super) struct Forecast {
    pub(super) waits: Duration,
    pub(super) answered: Duration,
}

/// What stands before a job.
#[derive(Default)]
struct Before {
    /// Runs of its own version, one after the other.
    own: Duration,
    /// Lane time of all others.
    others: Duration,
    /// Of that, what is of versions that leave lanes to the rest.
    bounded: Duration,
    /// These, and how many lanes each of them may have.
    bounds: Vec<(u32, usize)>,
    /// Whether there are runs with the share of several lanes.
    is_wide: bool,
}

impl Before {
    /// How long that takes on so many lanes, if so many runs of its own version may be at it.
    fn takes(&self, lanes: usize, at_once: usize) -> Duration {
        let on = |lanes: usize, work: Duration| work / lanes as u32;
        let all = on(lanes, self.others) + on(at_once, self.own);
        // However much waits of versions that may not have all lanes, the others have the rest; unless a wider run is waited for.
        let held: usize = self.bounds.iter().map(|(_, lanes)| lanes).sum();
        match lanes.checked_sub(held) {
            None | Some(0) => all,
            Some(_) if self.is_wide => all,
            Some(left) => {
                let beside = on(left, self.others - self.bounded) + on(left.min(at_once), self.own);
                all.min(beside)
            }
        }
    }
}

/// Whether somebody with so much time need not be told when it would be answered: what is ahead, with what it asks for
/// itself, takes a small part of it at most.
pub(super) fn is_calm(ahead: Duration, budget: Duration) -> bool {
    budget >= PATIENCE && ahead <= budget / 16
}

impl<T: Clone> Batcher<T> {
    /// How long a job that comes now would wait for its turn, as far as that is known.
    pub fn backlog(&self, now: Instant) -> Duration {
        let waiting: Duration =
            self.queues.iter().map(|(bucket, queue)| self.work(bucket, queue, queue.rows)).sum();
        self.per_lane(waiting + self.residual(now))
    }

    /// What so many rows of a bucket that runs so take in a run of their own, and at least if they run with others; nothing where
    /// that is not known.
    pub fn takes(&self, bucket: &Bucket, grouping: Grouping, rows: u32) -> Option<(Duration, Duration)> {
        let profile = self.known(bucket)?;
        match grouping {
            Grouping::Together { max_rows } => {
                let (most, best) = (rows.min(max_rows).max(1), profile.efficient?.min(max_rows));
                let alone = profile.curve.typical(most)?.saturating_mul(rows.div_ceil(most));
                let with_others = profile.curve.typical(best)?.mul_f64(f64::from(rows) / f64::from(best));
                Some((alone, with_others.min(alone)))
            }
            Grouping::Alone | Grouping::Serial => {
                let alone = profile.curve.typical(rows)?;
                Some((alone, alone))
            }
        }
    }

    /// When a job that came now would be answered. Where nothing was seen lately of what it takes itself, it is supposed to take
    /// no time; and so is all else of which nothing was seen. What a slow time has taught refuses nobody then who could teach
    /// better, while what is known to stand before a job still does.
    pub(super) fn forecast(&self, ticket: &Ticket<T>, urgency: Instant, now: Instant) -> Option<Forecast> {
        let own = self.known(&ticket.bucket)?;
        let is_tried = self.is_tried(&ticket.bucket, ticket.grouping.piece(ticket.rows), now);
        let slot = self.slot(urgency);
        let mut before = Before { is_wide: ticket.lanes > 1, ..Before::default() };
        let mut add = |version: u32, lanes: usize, at_once: usize, work: Duration| {
            before.is_wide |= lanes > 1;
            if version == ticket.bucket.version {
                before.own += work / lanes as u32;
                return;
            }
            before.others += work;
            if at_once < self.lanes {
                before.bounded += work;
                if !before.bounds.contains(&(version, at_once)) {
                    before.bounds.push((version, at_once));
                }
            }
        };
        // Of who is not known, it counts only for how long nothing can run for it: who runs may leave a lane to it.
        for Running { bucket, lanes, at_once, back, .. } in self.running.iter().filter(|_| is_tried) {
            let work = back.saturating_duration_since(now) * *lanes as u32;
            add(bucket.version, *lanes, *at_once, work);
        }
        let mut with = 0;
        for (bucket, queue) in &self.queues {
            let rows = queue.rows_until(slot);
            if *bucket == ticket.bucket {
                with = rows;
            } else if rows > 0 && (is_tried || self.is_tried(bucket, 1, now)) {
                add(bucket.version, queue.lanes, queue.at_once, self.work(bucket, queue, rows));
            }
        }
        let (full_batches, last) =
            if is_tried { self.batches(ticket, own, with)? } else { (Duration::ZERO, 0) };
        before.own += full_batches;
        let have_room = (self.lanes / ticket.lanes).max(1);
        let waits = before.takes(self.lanes, ticket.grouping.at_once(ticket.at_once).min(have_room));
        let waits = waits.max(self.until_any_is_back(ticket, now));
        let run = match (is_tried, waits.is_zero()) {
            (false, true) => return None,
            (false, false) => Duration::ZERO,
            // Who finds nothing before it gets the benefit of the doubt.
            (true, true) => own.curve.typical(last)?,
            (true, false) => self.slow(&own.curve, last)?,
        };
        Some(Forecast { waits, answered: waits + run })
    }

    /// The runs of its bucket before the one with the last rows of a job, if so many rows stand before it; and the size of that.
    fn batches(&self, ticket: &Ticket<T>, own: &Profile, with: u64) -> Option<(Duration, u32)> {
        match ticket.grouping {
            Grouping::Together { max_rows } => {
                let full = own.efficient?.min(self.capped(&ticket.bucket, max_rows)).max(1);
                let all = with + u64::from(ticket.rows);
                let last = (all - 1) % u64::from(full) + 1;
                let before = own.curve.typical(full)?.mul_f64((all - last) as f64 / f64::from(full));
                // Where so many wait, its own batch will not be a small one either.
                Some((before, if all == last { last as u32 } else { full }))
            }
            Grouping::Alone | Grouping::Serial => {
                let one = own.curve.typical(ticket.rows)?;
                Some((one.mul_f64(with as f64 / f64::from(ticket.rows)), ticket.rows))
            }
        }
    }

    /// What a run of so many rows may well take.
    pub(super) fn slow(&self, curve: &Curve, rows: u32) -> Option<Duration> {
        let (typical, slow) = (curve.typical(rows)?, curve.slow(rows)?);
        Some(if self.slowness_max.is_finite() { slow.min(typical.mul_f64(self.slowness_max)) } else { slow })
    }

    /// How long nothing can run for a job because all that may run at once does.
    pub(super) fn until_any_is_back(&self, ticket: &Ticket<T>, now: Instant) -> Duration {
        let first_back =
            |running: &mut dyn Iterator<Item = &Running>| running.map(|running| running.left(now)).min();
        let own = || self.running.iter().filter(|running| running.bucket.version == ticket.bucket.version);
        let at_once = ticket.grouping.at_once(ticket.at_once).min(self.lanes);
        let shares: usize = self.running.iter().map(|running| running.lanes).sum();
        let is_full = !self.running.is_empty() && shares + ticket.lanes > self.lanes;
        let lane = if is_full { first_back(&mut self.running.iter()) } else { None };
        let version = if own().count() >= at_once { first_back(&mut own()) } else { None };
        lane.max(version).unwrap_or_default()
    }

    /// Whether all who wait and have a deadline can still be answered in time if something else takes so much lane time first.
    pub(super) fn have_time_after(&self, first: Duration, now: Instant) -> bool {
        let mut due: Vec<(Instant, f64)> = Vec::new();
        for (bucket, queue) in &self.queues {
            let row = self.work(bucket, queue, queue.rows).as_secs_f64() / queue.rows.max(1) as f64;
            due.extend(queue.waiting.values().filter_map(|waiting| {
                let rows = waiting.ticket.rows - waiting.gone;
                Some((waiting.ticket.deadline?, f64::from(rows) * row))
            }));
        }
        due.sort_unstable_by_key(|(deadline, _)| *deadline);
        let mut takes = (self.residual(now) + first).as_secs_f64();
        due.into_iter().all(|(deadline, work)| {
            takes += work;
            takes * MARGIN <= deadline.saturating_duration_since(now).as_secs_f64() * self.lanes as f64
        })
    }

    /// Lane time of so many rows of a queue; nothing where nothing is known.
    pub(super) fn work(&self, bucket: &Bucket, queue: &Queue<T>, rows: u64) -> Duration {
        self.runs(bucket, queue, rows) * queue.lanes as u32
    }

    /// How long runs of so many rows of a queue take, one after the other.
    fn runs(&self, bucket: &Bucket, queue: &Queue<T>, rows: u64) -> Duration {
        if rows == 0 {
            return Duration::ZERO;
        }
        let Some(profile) = self.known(bucket) else { return Duration::ZERO };
        let batch = match queue.grouping {
            Grouping::Together { max_rows } => {
                profile.efficient.map(|full| full.min(self.capped(bucket, max_rows)))
            }
            Grouping::Alone | Grouping::Serial => {
                u32::try_from(queue.rows.div_ceil(queue.waiting.len().max(1) as u64)).ok()
            }
        };
        let Some(batch) = batch.map(|batch| batch.max(1)) else { return Duration::ZERO };
        if rows <= u64::from(batch) {
            return profile.curve.typical(rows as u32).unwrap_or_default();
        }
        profile.curve.typical(batch).unwrap_or_default().mul_f64(rows as f64 / f64::from(batch))
    }

    /// Lane time of what runs.
    pub(super) fn residual(&self, now: Instant) -> Duration {
        let of = |running: &Running| running.back.saturating_duration_since(now) * running.lanes as u32;
        self.running.iter().map(of).sum()
    }

    pub(super) fn per_lane(&self, work: Duration) -> Duration {
        work / self.lanes as u32
    }
}
