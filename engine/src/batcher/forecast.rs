//! Predicts when a job that comes now would be answered, from what waits before it, what runs, and how long such runs took.
//! A prediction, not a promise: whoever finds nothing before it gets the benefit of the doubt.
//!
//! Who is refused wrongly is lost for certain; who is let in wrongly costs a row of a run, and only if that run is one of the few
//! that are slow. So a job's own run is reckoned with as what it takes as a rule and a margin that is learned, but is half of
//! that at most: with what a hundredth of the runs take, three times as much, whoever finds the lanes busy would be refused,
//! nothing would wait, and every batch would have one row. Batches are closed with the same margin: to keep a deadline from a
//! run that hardly ever happens would cost all batches rows.

use super::before::{Before, Bound};
use super::profile::Profile;
use super::{Batcher, Bucket, Grouping, PATIENCE, Place, Priority, Queue, Running, Ticket, Waiting};
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// What is predicted may well take so many times as long when many are waiting.
const MARGIN: f64 = 1.3;

/// From now.
#[derive(Clone, Copy, Debug)]
pub(super) struct Forecast {
    pub(super) waits: Duration,
    pub(super) answered: Duration,
    /// So much of that because batches may be divided.
    pub(super) longer: Duration,
    /// What a run of no more than its own rows takes, and may well take; nothing if that was not tried lately.
    pub(super) alone: Duration,
    pub(super) alone_slow: Duration,
}

/// Whether somebody with so much time need not be told when it would be answered: what is ahead, with what it asks for
/// itself, takes a small part of it at most.
pub(super) fn is_calm(ahead: Duration, budget: Duration) -> bool {
    budget >= PATIENCE && ahead <= budget / 16
}

impl<T: Clone> Batcher<T> {
    /// What who is refused for want of room is told: how long a job of a version that may have so much would wait for its turn
    /// behind all that runs and waits, as it is reckoned for those who are let in. There is no room before a run is back.
    pub fn backlog(&self, own: Bound, now: Instant) -> Duration {
        let mut before = Before::default();
        for (bucket, queue) in self.queues.iter().filter(|(_, queue)| queue.rows > 0) {
            let (runs, work) = self.runs(bucket, queue, queue.rows);
            before.add(queue.bound(bucket.version), runs, work);
        }
        let first_back = self.running.iter().map(|running| running.left(now)).min();
        before.wait_behind(own, self.lanes, &self.running, now).max(first_back.unwrap_or_default())
    }

    /// Lane time of all that runs and waits, as far as it is known.
    pub(super) fn all_work(&self, now: Instant) -> Duration {
        let running = self.running.iter().map(|running| running.left(now) * running.lanes as u32);
        let waiting = self.queues.iter().map(|(bucket, queue)| self.work(bucket, queue, queue.rows));
        running.chain(waiting).sum()
    }

    /// What so many rows of a bucket that runs so take in a run of their own, and at least if they run with others; nothing where
    /// that is not known.
    pub fn takes(&self, bucket: &Bucket, grouping: Grouping, rows: u32) -> Option<(Duration, Duration)> {
        let profile = self.known(bucket)?;
        match grouping {
            Grouping::Together { max_rows } => {
                let (most, best) = (rows.min(max_rows).max(1), profile.efficient?.min(max_rows));
                let best = best.min(profile.most_rows(|| most));
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

    /// When a job that came now would be answered, once those are `gone` who go for it. Where nothing was seen lately of what it takes
    /// itself, and nothing of its bucket waits before it, it is supposed to take no time; and so is all else of which nothing was
    /// seen. What a slow time has taught refuses nobody then who could teach better, while what is known to stand before a job
    /// still does, and of those who come at once only the first is excused.
    pub(super) fn forecast(
        &self,
        ticket: &Ticket<T>,
        before: Place,
        gone: &[(u64, u64)],
        now: Instant,
    ) -> Option<Forecast> {
        let own = self.known(&ticket.bucket)?;
        let slot = self.slot(before.urgency);
        let mut gone_rows: HashMap<&Bucket, u64> = HashMap::new();
        for (bucket, place) in gone.iter().filter_map(|key| self.places.get(key)) {
            if self.slot(place.urgency) <= slot {
                let rows = self.queues[bucket].waiting[place].ticket.rows;
                *gone_rows.entry(bucket).or_default() += u64::from(rows);
            }
        }
        let rows_before = |bucket: &Bucket, queue: &Queue<T>| {
            queue.rows_until(slot) - gone_rows.get(bucket).copied().unwrap_or_default()
        };
        let with = self.queues.get(&ticket.bucket).map_or(0, |queue| rows_before(&ticket.bucket, queue));
        let piece = ticket.grouping.piece(ticket.rows);
        let is_tried = (with > 0 && own.curve.runs() > 0) || self.is_tried(&ticket.bucket, piece, now);
        let mut before = Before::default();
        for (bucket, queue) in self.queues.iter().filter(|(bucket, _)| **bucket != ticket.bucket) {
            let rows = rows_before(bucket, queue);
            if rows > 0 && (is_tried || self.is_tried(bucket, 1, now)) {
                let (runs, work) = self.runs(bucket, queue, rows);
                before.add(queue.bound(bucket.version), runs, work);
            }
        }
        let own_bound = ticket.bound();
        let left = ticket.deadline.map_or(Duration::ZERO, |deadline| deadline.saturating_duration_since(now));
        // How much longer so many batches take because requests fail, if that is reckoned with.
        let longer = |rows, batches| match ticket.grouping {
            Grouping::Together { .. } if own.division.is_known() => {
                own.division.longer(&own.curve, (rows, self.each(ticket)), batches, left)
            }
            Grouping::Together { .. } | Grouping::Alone | Grouping::Serial => None,
        };
        let (mut last, mut undivided) = (0, None);
        if is_tried {
            let (runs, takes, size) = self.batches(ticket, own, with)?;
            last = size;
            if runs > 0 {
                let ahead = longer(size, runs);
                undivided = ahead.map(|_| {
                    let mut before = before.clone();
                    before.add(own_bound, runs, takes * ticket.lanes as u32);
                    before
                });
                before.add(own_bound, runs, (takes + ahead.unwrap_or_default()) * ticket.lanes as u32);
            }
        }
        let wait_behind = |before: Before| before.wait_behind(own_bound, self.lanes, &self.running, now);
        let waits = wait_behind(before);
        if !is_tried {
            let (alone, longer) = (Duration::ZERO, Duration::ZERO);
            let forecast = Forecast { waits, answered: waits, longer, alone, alone_slow: alone };
            return (!waits.is_zero()).then_some(forecast);
        }
        let (alone, alone_slow) = (own.curve.typical(piece)?, own.curve.slow(piece)?);
        let whole = if waits.is_zero() {
            // Who finds nothing before it gets the benefit of the doubt.
            own.curve.typical(last)?
        } else {
            own.curve.slow(last)?
        };
        let in_parts = if waits.is_zero() { None } else { longer(last, 1) };
        let in_parts = in_parts.and_then(|longer| Some(own.curve.typical(last)? + longer));
        let run = in_parts.map_or(whole, |in_parts| in_parts.max(whole));
        let waits_longer =
            undivided.map_or(Duration::ZERO, |before| waits.saturating_sub(wait_behind(before)));
        let longer = waits_longer + (run - whole);
        Some(Forecast { waits, answered: waits + run, longer, alone, alone_slow })
    }

    /// The runs of its bucket before the one with the last rows of a job, if so many rows stand before it, and how long they take
    /// one after the other; and the size of that.
    fn batches(&self, ticket: &Ticket<T>, own: &Profile, with: u64) -> Option<(u64, Duration, u32)> {
        match ticket.grouping {
            Grouping::Together { max_rows } => {
                let full = self.full(own, &ticket.bucket, max_rows, || self.each(ticket))?;
                let all = with + u64::from(ticket.rows);
                let runs = (all - 1) / u64::from(full);
                let last = (all - 1) % u64::from(full) + 1;
                let before = own.curve.typical(full)?.mul_f64(runs as f64);
                // Where so many wait, its own batch will not be a small one either.
                Some((runs, before, if runs == 0 { last as u32 } else { full }))
            }
            Grouping::Alone | Grouping::Serial => {
                let one = own.curve.typical(ticket.rows)?;
                let runs = with as f64 / f64::from(ticket.rows);
                Some((runs.ceil() as u64, one.mul_f64(runs), ticket.rows))
            }
        }
    }

    /// Rows of those that wait in the bucket of a job, on the average; its own if there are none.
    fn each(&self, ticket: &Ticket<T>) -> u32 {
        let queue = self.queues.get(&ticket.bucket).filter(|queue| queue.rows > 0);
        queue.map_or(ticket.rows, Queue::each)
    }

    /// Rows of the runs of a bucket when many jobs of so many rows wait, as far as they are known: as many as is of use, and as
    /// there is memory for.
    fn full(
        &self,
        profile: &Profile,
        bucket: &Bucket,
        max_rows: u32,
        each: impl FnOnce() -> u32,
    ) -> Option<u32> {
        let full = profile.efficient?.min(self.capped(bucket, max_rows)).min(profile.most_rows(each));
        let one = self.queues.get(bucket).and_then(|queue| queue.waiting.first_key_value());
        let most = one.map(|(_, one)| self.budget.rows(one.ticket.rows, one.ticket.held()));
        Some(most.map_or(full, |most| full.min(most)).max(1))
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
            // Whom nobody waits for may be late.
            let is_waited_for = |waiting: &&Waiting<T>| waiting.ticket.priority != Priority::Last;
            due.extend(queue.waiting.values().filter(is_waited_for).filter_map(|waiting| {
                let rows = waiting.ticket.rows - waiting.gone;
                Some((waiting.ticket.deadline?, f64::from(rows) * row))
            }));
        }
        due.sort_unstable_by_key(|(deadline, _)| *deadline);
        // However long a run takes, it has one lane.
        let left = |run: &Running| run.back.saturating_duration_since(now).as_secs_f64() * MARGIN;
        let running: Vec<_> = self.running.iter().map(|run| (left(run), run.lanes as f64)).collect();
        let mut takes = first.as_secs_f64();
        due.into_iter().all(|(deadline, work)| {
            takes += work;
            let time = deadline.saturating_duration_since(now).as_secs_f64();
            let taken: f64 = running.iter().map(|(left, lanes)| left.min(time) * lanes).sum();
            takes * MARGIN + taken <= time * self.lanes as f64
        })
    }

    /// Lane time of so many rows of a queue; nothing where nothing is known.
    pub(super) fn work(&self, bucket: &Bucket, queue: &Queue<T>, rows: u64) -> Duration {
        self.runs(bucket, queue, rows).1
    }

    /// How many runs so many rows of a queue take, as far as that is known, and the lane time of these.
    pub(super) fn runs(&self, bucket: &Bucket, queue: &Queue<T>, rows: u64) -> (u64, Duration) {
        let unknown = (0, Duration::ZERO);
        if rows == 0 {
            return unknown;
        }
        let Some(profile) = self.known(bucket) else { return unknown };
        let batch = match queue.grouping {
            Grouping::Together { max_rows } => self.full(profile, bucket, max_rows, || queue.each()),
            Grouping::Alone | Grouping::Serial => {
                u32::try_from(queue.rows.div_ceil(queue.waiting.len().max(1) as u64)).ok()
            }
        };
        let Some(batch) = batch.map(|batch| batch.max(1)) else { return unknown };
        let typical = |rows: u32| profile.curve.typical(rows).unwrap_or_default() * queue.lanes as u32;
        if rows <= u64::from(batch) {
            return (1, typical(rows as u32));
        }
        (rows.div_ceil(batch.into()), typical(batch).mul_f64(rows as f64 / f64::from(batch)))
    }
}
