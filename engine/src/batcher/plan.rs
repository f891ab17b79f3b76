//! Forms a batch: which of the jobs that wait in a bucket run now, which are late, and whether waiting for more is better.
//! Reads what was learned; moves nothing (that is the parent's).

use super::budget::Room;
use super::profile::{Profile, shared};
use super::{Batcher, Bucket, Grouping, Place, Running};
use std::cell::LazyCell;
use std::time::{Duration, Instant};
use wire::Closed;

/// Waiting for less than this is not worth falling asleep.
const WAIT_MIN: Duration = Duration::from_micros(100);

/// A prediction that has not been tried for so long refuses nobody: what was slow once may be fast again, and only a
/// run can tell.
pub(super) const TRIED_WITHIN: Duration = Duration::from_secs(1);

/// What a batch is made of.
pub(super) struct Plan {
    /// Where its jobs stand, and how many rows of each run.
    pub(super) pieces: Vec<(Place, u32)>,
    /// Connections and ids of those that are told that they are late.
    pub(super) late: Vec<(u64, u64)>,
    /// Why it has no more pieces.
    pub(super) closed: Closed,
    /// It has the size that it has in order to learn how long that takes.
    pub(super) explores: bool,
}

impl<T: Clone> Batcher<T> {
    /// Which jobs run now, with how many rows each, and which are late.
    pub(super) fn plan(&self, bucket: &Bucket, room: Room, now: Instant) -> Plan {
        let queue = &self.queues[bucket];
        let most = match queue.grouping {
            Grouping::Together { max_rows } => self.capped(bucket, max_rows),
            Grouping::Alone | Grouping::Serial => u32::MAX,
        };
        let profile = self.known(bucket);
        let most_jobs = profile.map_or(u32::MAX, Profile::most_jobs);
        let typical = |rows: u32| profile.and_then(|profile| profile.curve.typical(rows)).unwrap_or_default();
        let slow = |rows: u32| profile.and_then(|profile| profile.curve.slow(rows)).unwrap_or_default();
        // More waits than one efficient batch: who has no time for that runs in a smaller one, unless it makes others late.
        // What runs alone has the size of its job, whichever is the fastest.
        let efficient = profile.and_then(|profile| profile.efficient).and_then(|rows| match queue.grouping {
            Grouping::Together { .. } => {
                let rows = rows
                    .min(most)
                    .min(profile.map_or(u32::MAX, |profile| profile.most_rows(|| queue.each())));
                Some(rows).filter(|rows| queue.rows > u64::from(*rows))
            }
            Grouping::Alone | Grouping::Serial => (queue.waiting.len() > 1).then_some(1),
        });
        let is_pressed = LazyCell::new(|| {
            efficient.is_some_and(|rows| {
                let extra = typical(1).saturating_sub(typical(rows) / rows);
                !self.have_time_after(extra * queue.lanes as u32, now)
            })
        });
        let mut plan =
            Plan { pieces: Vec::new(), late: Vec::new(), closed: Closed::Everything, explores: false };
        // After each piece: all rows, and the first deadline.
        let mut sums: Vec<(u32, Option<Instant>)> = Vec::new();
        let mut taken = 0;
        for (place, waiting) in &queue.waiting {
            let (rows, earliest) = sums.last().copied().unwrap_or_default();
            let piece = (waiting.ticket.rows - waiting.gone).min(most);
            // Where there is too much to do, a run that is probably in vain takes the place of another.
            let is_hopeless = |deadline| {
                deadline < now + typical(piece)
                    || efficient.is_some_and(|rows| deadline < now + slow(rows.max(piece))) && *is_pressed
            };
            let is_late =
                |deadline| deadline <= now || (is_hopeless(deadline) && self.is_tried(bucket, piece, now));
            if waiting.ticket.deadline.is_some_and(is_late) {
                plan.late.push((waiting.ticket.connection, waiting.ticket.id));
                continue;
            }
            let has_room = match queue.grouping {
                Grouping::Together { .. } => {
                    rows.saturating_add(piece) <= most && sums.len() < most_jobs as usize
                }
                Grouping::Alone | Grouping::Serial => sums.is_empty(),
            };
            if !has_room {
                plan.closed = match queue.grouping {
                    Grouping::Together { .. } => Closed::Full,
                    Grouping::Alone | Grouping::Serial => Closed::Alone,
                };
                break;
            }
            if !room.has(taken, waiting.needs()) {
                plan.closed = Closed::Full;
                if room.is_rest {
                    continue; // one that has begun needs none
                }
                break;
            }
            taken += waiting.needs();
            let earliest = [earliest, waiting.ticket.deadline].into_iter().flatten().min();
            sums.push((rows + piece, earliest));
            plan.pieces.push((*place, piece));
        }
        let Some((all, _)) = sums.last() else { return plan };
        // Until there is a choice it stays due: callers who come so many at a time may leave none whenever a count says so.
        plan.explores = sums.len() > 1 && profile.is_some_and(Profile::is_to_explore);
        let fill = profile.map_or(*all, |profile| match plan.explores {
            true => profile.explore(*all, *is_pressed),
            false => profile.curve.fill(*all),
        });
        let in_time = |takes: &dyn Fn(u32) -> Duration, (rows, earliest): (u32, Option<Instant>)| {
            earliest.is_none_or(|earliest| now + takes(rows) <= earliest)
        };
        let fits = |takes: &dyn Fn(u32) -> Duration| {
            sums.iter().rposition(|sum| sum.0 <= fill && in_time(takes, *sum))
        };
        let last = if *is_pressed { fits(&typical) } else { fits(&slow).or_else(|| fits(&typical)) };
        let kept = last.unwrap_or(0) + 1;
        match sums.get(kept) {
            Some((rows, _)) if *rows > fill => plan.closed = Closed::Efficient,
            Some(_) => plan.closed = Closed::Deadline,
            None if plan.closed == Closed::Everything && queue.held_since.is_some() => {
                plan.closed = Closed::Waited;
            }
            None => {}
        }
        plan.pieces.truncate(kept);
        plan
    }

    /// Whether what is predicted of so many rows has been seen lately, or is being tried: by a run of as many, or more.
    pub(super) fn is_tried(&self, bucket: &Bucket, rows: u32, now: Instant) -> bool {
        let Some(profile) = self.known(bucket) else { return false };
        let is_trying = |running: &Running| running.rows >= rows && shared(&running.bucket) == shared(bucket);
        let mut ran = profile.ran.range(rows..).map(|(_, ran)| ran);
        ran.any(|ran| now.saturating_duration_since(*ran) < TRIED_WITHIN)
            || self.running.iter().any(is_trying)
    }

    pub(super) fn capped(&self, bucket: &Bucket, max_rows: u32) -> u32 {
        let cap = self.known(bucket).and_then(|profile| profile.cap);
        cap.map_or(max_rows, |cap| cap.min(max_rows))
    }

    /// Until when to wait for more to join what is there, if that is better for all of them together.
    ///
    /// Running `k` jobs now and the next arrival after them costs, in summed latency,
    /// `k·L(R) + L(R) + L(r)`; waiting `w` for it and running all together, `k·(w + L(R+r)) + L(R+r)`. So waiting
    /// pays up to `w = ((k+1)·(L(R) − L(R+r)) + L(r)) / k`, if an arrival is to be expected within it.
    pub(super) fn worth_waiting(&mut self, bucket: &Bucket, now: Instant) -> Option<Instant> {
        let queue = &self.queues[bucket];
        // Somebody else could use the lane.
        if queue.rows < self.rows {
            return None;
        }
        let Grouping::Together { max_rows } = queue.grouping else { return None };
        let profile = self.known(bucket)?;
        let (gap, last) = (profile.arrivals.gap?, profile.arrivals.last?);
        let jobs = queue.waiting.len() as f64;
        let here = u32::try_from(queue.rows).ok()?;
        let one = here.div_ceil(queue.waiting.len() as u32);
        if !profile.curve.reaches_down_to(one) {
            return None;
        }
        if queue.waiting.len() >= profile.most_jobs() as usize {
            return None;
        }
        let joint = here.checked_add(one).filter(|rows| *rows <= self.capped(bucket, max_rows))?;
        let seconds = |rows| profile.curve.typical(rows).map(|typical| typical.as_secs_f64());
        let pays = ((jobs + 1.0) * (seconds(here)? - seconds(joint)?) + seconds(one)?) / jobs;
        let held = queue.held_since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        let left = Duration::try_from_secs_f64(pays).ok()?.checked_sub(held)?;
        // An arrival that is overdue is not coming.
        let expected = (2 * gap).checked_sub(now.saturating_duration_since(last))?;
        let mut wait = left.min(expected);
        let slow = profile.curve.slow(joint)?;
        for waiting in queue.waiting.values() {
            if let Some(deadline) = waiting.ticket.deadline {
                wait = wait.min(deadline.saturating_duration_since(now).saturating_sub(slow));
            }
        }
        if left < gap || wait < WAIT_MIN {
            return None;
        }
        let queue = self.queues.get_mut(bucket).expect("it was just there");
        queue.held_since.get_or_insert(now);
        Some(now + wait)
    }
}
