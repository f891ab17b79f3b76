//! Decides which waiting jobs run together, when, and which need not wait at all because they would be late.
//! Sans-IO: `now` is an argument, jobs are opaque, no thread, no clock, no tensor.
//!
//! Jobs wait in one queue per [`Bucket`] (a model version and the shape its rows share), most urgent first. A
//! batch is formed at the moment a lane asks, so a job that was cancelled or has expired by then costs nothing
//! and harms nobody, and jobs of another shape never cut a batch short: they stand in another queue.
//!
//! ```text
//!            push ─▶ queue of bucket A: [t=3 ms][t=9 ms]…  ─┐ heads: the most urgent job of each queue
//!            push ─▶ queue of bucket B: [t=1 ms]…          ─┴▶ next: takes from the queue with the first head
//! ```
//!
//! There is no delay to tune. Each bucket has a [`Curve`], learned from its own runs, and four rules use it:
//! - **Size**: as much of what waits as makes rows faster, up to the limit; less if the first deadline leaves no time.
//! - **Waiting**: an idle lane waits for the next arrival only if that is expected to lower the sum of all latencies
//!   (what the joint run saves exceeds what those who are here lose), and no deadline is at stake.
//! - **Giving up**: who has no time for a batch as large as is of use runs in a smaller one, unless that would make others
//!   late, of whatever shape; then it is told that it is late.
//! - **Admission**: a job is refused at once if what stands before it will take too long.
//!
//! Urgency is when a job has to begin, or [`PATIENCE`] where that is sooner, plus [`HEAD_START`] for each step of lower priority: so
//! neither a priority nor a deadline can starve anybody, and no more can those who are hasty and quick one who takes long. Only that
//! for which nobody waits, a copy, goes behind all who come while it does ([`RIGHT_OF_WAY`]). A part
//! of the time that it could wait is kept for what lanes are late by, see `Batcher::turn`. It is reckoned once, when a job comes:
//! what is learned later moves nobody.

mod before;
mod budget;
mod division;
mod forecast;
mod plan;
mod profile;
mod shed;
mod terms;

pub(crate) use before::Before;
pub use before::Bound;
pub use terms::{
    Batch, Bucket, Claim, Criticality, Ended, Grouping, Limits, Next, Piece, Priority, Refused, Ticket,
};

use crate::curve::Curve;
use budget::{Budget, Held, Hold, Room};
use foldhash::fast::RandomState;
use forecast::{Forecast, is_calm};
use plan::Plan;
use profile::Profile;
use shed::{Lack, Parties};
use std::collections::btree_map::Entry as TreeEntry;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// No job is less urgent than one whose deadline is this long after its arrival.
pub const PATIENCE: Duration = Duration::from_secs(1);

/// By so much a job precedes those of the next lower priority.
pub const HEAD_START: Duration = Duration::from_millis(250);

/// By so much everybody precedes that for which nobody waits: whoever comes while it does. It may starve.
pub const RIGHT_OF_WAY: Duration = Duration::from_secs(24 * 3600);

/// Shapes that may wait at the same time: each costs time in every decision.
const QUEUES_MAX: usize = 1024;

/// So many queues stay when nothing waits in them: making one costs as much as all else that a lone job does.
const QUEUES_KEPT: usize = 8;

/// What stands before a job is counted in slots of urgency this wide.
const SLOT: Duration = Duration::from_millis(4);

/// The waiting jobs.
#[derive(Debug)]
pub struct Batcher<T> {
    limits: Limits,
    budget: Budget,
    lanes: usize,
    origin: Instant,
    queues: HashMap<Bucket, Queue<T>, RandomState>,
    /// Where each job stands, for cancellation.
    places: HashMap<(u64, u64), (Bucket, Place), RandomState>,
    parties: Parties,
    profiles: HashMap<Bucket, Profile, RandomState>,
    versions: BTreeMap<u32, Version>,
    /// Where those stand that run in pieces and of which a part waits: they need no room any more.
    begun: BTreeMap<Place, Bucket>,
    /// Claims that are out, and when they are expected back.
    running: Vec<Running>,
    /// Lane time of what runs and waits, at most: what it was when the last batch was formed, and what has come since, each as
    /// if it ran alone. Nobody waits for longer, however little of the lanes its version may have.
    ahead: Duration,
    rows: u64,
    pushed: u64,
    claimed: u64,
}

/// Position in a queue; the arrival number makes it unique.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    urgency: Instant,
    arrival: u64,
}

#[derive(Debug)]
struct Queue<T> {
    grouping: Grouping,
    lanes: usize,
    at_once: usize,
    waiting: BTreeMap<Place, Waiting<T>>,
    rows: u64,
    /// Rows by slot of urgency.
    slots: BTreeMap<u64, u64>,
    /// Since when a lane waits for more.
    held_since: Option<Instant>,
}

#[derive(Debug)]
struct Running {
    number: u64,
    bucket: Bucket,
    rows: u32,
    lanes: usize,
    /// When it is expected.
    back: Instant,
}

impl Running {
    /// What it is expected to take yet: of one that is late, as long again as it has been late.
    fn left(&self, now: Instant) -> Duration {
        self.back.saturating_duration_since(now).max(now.saturating_duration_since(self.back))
    }
}

#[derive(Debug)]
struct Waiting<T> {
    ticket: Ticket<T>,
    /// Rows that have left already, in pieces.
    gone: u32,
    /// What it holds, once there are any.
    share: Option<Arc<Held>>,
}

#[derive(Debug, Default)]
struct Version {
    running: usize,
    /// First place of each of its queues: those of a version that is busy are not looked at one by one.
    heads: BTreeMap<Place, Bucket>,
}

impl<T: Clone> Batcher<T> {
    /// An empty one, for so many lanes.
    pub fn new(limits: Limits, lanes: usize, now: Instant) -> Self {
        Self {
            limits,
            budget: Budget::new(limits),
            lanes,
            origin: now,
            queues: HashMap::default(),
            places: HashMap::default(),
            parties: Parties::default(),
            profiles: HashMap::default(),
            versions: BTreeMap::new(),
            begun: BTreeMap::new(),
            running: Vec::new(),
            ahead: Duration::ZERO,
            rows: 0,
            pushed: 0,
            claimed: 0,
        }
    }

    /// Lets a job wait; adds those to `shed` that have to go for it.
    pub fn push(&mut self, ticket: Ticket<T>, shed: &mut Vec<T>, now: Instant) -> Result<(), Refused<T>> {
        if u64::from(ticket.rows) > self.limits.rows || !self.budget.is_enough_for(ticket.held()) {
            return Err(Refused::TooLarge(ticket.payload));
        }
        if self.places.contains_key(&(ticket.connection, ticket.id)) {
            return Err(Refused::Duplicate(ticket.payload));
        }
        let room = Lack::Room {
            rows: (self.rows + u64::from(ticket.rows)).saturating_sub(self.limits.rows),
            bytes: self.budget.lacks(ticket.bytes),
        };
        let is_one_too_many = self.queues.len() >= QUEUES_MAX && !self.queues.contains_key(&ticket.bucket);
        let Some(mut victims) = self.victims(&ticket, room, &[], now).filter(|_| !is_one_too_many) else {
            return Err(Refused::Overloaded { wait: self.backlog(ticket.bound(), now), job: ticket.payload });
        };
        let profile = self.profile(&ticket.bucket);
        profile.arrivals.observe(now);
        profile.division.forget(now);
        if let Grouping::Together { max_rows } = ticket.grouping {
            profile.limit(max_rows);
        }
        let piece = ticket.grouping.piece(ticket.rows);
        let (run, runs) = (profile.curve.typical(piece).unwrap_or_default(), ticket.rows.div_ceil(piece));
        let ahead = self.ahead + run * runs * ticket.lanes as u32;
        let spare = self.spare(&ticket, run, runs, now);
        let mut turn = spare;
        if let Some(deadline) = ticket.deadline {
            let left = deadline.saturating_duration_since(now);
            // Whatever would go for it, nothing runs before something is back.
            let wait = self.until_any_is_back(&ticket, now);
            if wait > left && !left.is_zero() {
                return Err(Refused::TooLate { job: ticket.payload, wait });
            }
            let last = self.place(&ticket, spare, now);
            let is_calm = is_calm(ahead, left);
            let forecast = if is_calm { None } else { self.forecast(&ticket, last, &victims, now) };
            if let Some(forecast) = forecast
                && forecast.answered > left
            {
                // Nobody has to go because those whom it runs with fail.
                let is_late_anyway = forecast.answered.saturating_sub(forecast.longer) > left;
                let all = if is_late_anyway {
                    self.make_time(&ticket, last, forecast, &victims, now)
                } else {
                    None
                };
                match all {
                    Some(all) => victims = all,
                    None if forecast.alone > left => return Err(Refused::Hopeless(ticket.payload)),
                    None => {
                        let wait = forecast.waits.max(forecast.answered - left);
                        return Err(Refused::TooLate { job: ticket.payload, wait });
                    }
                }
            }
            turn = self.turn(&ticket, spare, forecast);
        }
        let place = self.place(&ticket, turn, now);
        shed.extend(victims.into_iter().filter_map(|(connection, id)| self.cancel(connection, id)));
        self.pushed += 1;
        self.parties.join(&ticket, place);
        self.ahead = ahead;
        self.budget.wait(ticket.held());
        self.rows += u64::from(ticket.rows);
        self.places.insert((ticket.connection, ticket.id), (ticket.bucket.clone(), place));
        let slot = self.slot(place.urgency);
        let queue = self.queues.entry(ticket.bucket.clone()).or_insert_with(|| Queue::new(&ticket));
        // What was found out of a version meanwhile holds for those that wait in this queue as well.
        (queue.grouping, queue.at_once) = (ticket.grouping, ticket.bound().at_once);
        let head = queue.waiting.first_key_value().map(|(head, _)| *head);
        if head.is_none_or(|head| place < head) {
            let heads = &mut self.versions.entry(ticket.bucket.version).or_default().heads;
            if let Some(head) = head {
                heads.remove(&head);
            }
            heads.insert(place, ticket.bucket.clone());
        }
        queue.rows += u64::from(ticket.rows);
        *queue.slots.entry(slot).or_default() += u64::from(ticket.rows);
        queue.waiting.insert(place, Waiting { ticket, gone: 0, share: None });
        Ok(())
    }

    /// What a lane that is idle at `now` is to do: run the most urgent job, and with it others of its bucket, in
    /// their order.
    pub fn next(&mut self, now: Instant) -> Next<T> {
        let (found, waits_for_room) = self.first(now);
        let found = found.map(|(bucket, room)| (bucket.clone(), room));
        self.budget.keep(waits_for_room);
        let Some((bucket, room)) = found else { return Next::Idle };
        if let Some(until) = self.worth_waiting(&bucket, now) {
            return Next::Wait(until);
        }
        Next::Run(self.take(bucket, room, now))
    }

    /// A run is over, and so many of its rows run once more under its claim.
    pub fn extend(&mut self, claim: &mut Claim, rows: u32, now: Instant) {
        claim.ran = Some(now);
        let curve = self.known(&claim.bucket).map(|profile| &profile.curve);
        let back = now + curve.and_then(|curve| curve.typical(rows)).unwrap_or_default();
        let running = self.running.iter_mut().find(|running| running.number == claim.number);
        running.expect("its claim is out").back = back;
    }

    /// The batch of this claim has failed, and its parts are to run; nobody waits for their answers any longer than `until`.
    pub fn divides(&mut self, claim: u64, until: Option<Instant>, now: Instant) {
        let Some(at) = self.running.iter().position(|running| running.number == claim) else { return };
        let Running { bucket, rows, .. } = &self.running[at];
        let again = self.known(bucket).and_then(|profile| profile.division.again(&profile.curve, *rows));
        let Some(back) = again.map(|again| now + again) else { return };
        self.running[at].back = until.map_or(back, |until| back.min(until.max(now)));
    }

    /// Takes back the claim of a batch, and learns from it.
    pub fn finish(&mut self, claim: Claim, ended: Ended, now: Instant) {
        let now = claim.ran.unwrap_or(now);
        self.running.retain(|running| running.number != claim.number);
        self.versions.get_mut(&claim.bucket.version).expect("it ran").running -= 1;
        self.profile(&claim.bucket).end(&claim, ended, now);
        self.budget.give_back(claim.hold);
    }

    /// So many bytes of answers wait to be read by now: they take the room of runs.
    pub fn unread(&mut self, bytes: usize) {
        self.budget.unread(bytes);
    }

    /// Takes over what was learned from runs that were no batches: those of a calibration.
    pub fn seed(&mut self, bucket: &Bucket, curve: Curve) {
        self.profile(bucket).seed(curve);
    }

    /// What 99 of 100 runs of so many rows take at most, see [`Curve::slow`]; nothing unless as many have run often enough.
    pub fn slow(&self, bucket: &Bucket, rows: u32) -> Option<Duration> {
        let curve = &self.known(bucket)?.curve;
        curve.slow(rows).filter(|_| curve.trusts(rows))
    }

    /// What waits of a version runs so from now on, whatever its tickets say, in runs of so many rows at most; gives what would need
    /// more of them.
    pub fn regroup(&mut self, version: u32, (grouping, most): (Grouping, u32), at_once: usize) -> Vec<T> {
        let mut in_pieces = Vec::new();
        for (_, queue) in self.queues.iter_mut().filter(|(bucket, _)| bucket.version == version) {
            (queue.grouping, queue.at_once) = (grouping, grouping.at_once(at_once));
            let waiting = queue.waiting.values().map(|waiting| &waiting.ticket);
            let large = waiting.filter(|ticket| ticket.rows > most);
            in_pieces.extend(large.map(|ticket| (ticket.connection, ticket.id)));
        }
        in_pieces.into_iter().filter_map(|(connection, id)| self.cancel(connection, id)).collect()
    }

    /// Forgets a version of which nothing waits or runs; gives what was learned of it to whoever has the time to free it.
    pub fn forget(&mut self, version: u32) -> impl Sized + use<T> {
        self.versions.remove(&version);
        self.parties.forget(version);
        self.queues.retain(|bucket, _| bucket.version != version);
        self.profiles.extract_if(|bucket, _| bucket.version == version).collect::<Vec<_>>()
    }

    /// The job of this connection and id, if one waits.
    pub fn waiting(&self, connection: u64, id: u64) -> Option<&T> {
        let (bucket, place) = self.places.get(&(connection, id))?;
        Some(&self.queues[bucket].waiting[place].ticket.payload)
    }

    /// Removes a waiting job.
    pub fn cancel(&mut self, connection: u64, id: u64) -> Option<T> {
        let (bucket, place) = self.places.remove(&(connection, id))?;
        let slot = self.slot(place.urgency);
        let queue = self.queues.get_mut(&bucket).expect("a waiting job stands in a queue");
        let TreeEntry::Occupied(found) = queue.waiting.entry(place) else {
            unreachable!("a waiting job stands at its place");
        };
        let Waiting { ticket, gone, share } = found.remove();
        self.parties.leave(&ticket, place);
        let rows = u64::from(ticket.rows - gone);
        queue.leave(slot, rows);
        self.rows -= rows;
        match share {
            None => self.budget.leave(ticket.held()),
            // What becomes of the rest does not end the runs of the other parts.
            Some(share) => {
                self.begun.remove(&place);
                self.budget.let_go(share);
            }
        }
        if self.behead(bucket.version, place) {
            self.reopen(bucket);
        }
        Some(ticket.payload)
    }

    /// Removes all that one connection has waiting.
    pub fn cancel_connection(&mut self, connection: u64) -> Vec<T> {
        let ids: Vec<u64> = self.places.keys().filter(|key| key.0 == connection).map(|key| key.1).collect();
        ids.into_iter().filter_map(|id| self.cancel(connection, id)).collect()
    }

    /// Bytes of what waits and runs, and of what runs take beside.
    pub fn bytes(&self) -> usize {
        self.budget.bytes()
    }

    /// Jobs that wait.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Runs that have not ended.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// What may be held at most.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Whether no job waits.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Whether [`Batcher::next`] would give something, now or soon.
    pub fn has_next(&self, now: Instant) -> bool {
        self.first(now).0.is_some()
    }

    /// The queue of the most urgent job whose version may have another run, and the room for that. There is none while the
    /// cores do not suffice for it: if smaller runs went first, it would wait for ever. While it waits for room, which is told
    /// as well, it is the queue of another that needs less.
    fn first(&self, now: Instant) -> (Option<(&Bucket, Room)>, bool) {
        let may_run = |bucket: &Bucket| self.may_have_more(bucket.version, self.queues[bucket].at_once);
        let heads = || {
            let heads = self.versions.values().filter_map(|version| version.heads.first_key_value());
            heads.filter(|(_, bucket)| may_run(bucket))
        };
        let Some((_, first)) = heads().min_by_key(|(place, _)| *place) else { return (None, false) };
        let (room, rest) = (self.budget.room(), self.budget.rest());
        let waits_for_room = !room.has(0, self.needs(first, now));
        let found = if waits_for_room {
            let begun = self.begun.iter().filter(|(_, bucket)| may_run(bucket));
            let others = heads().filter(|(_, bucket)| rest.has(0, self.needs(bucket, now))).chain(begun);
            others.min_by_key(|(place, _)| *place).map(|(_, bucket)| (bucket, rest))
        } else {
            Some((first, room))
        };
        (found.filter(|(bucket, _)| self.has_lanes(self.queues[*bucket].lanes)), waits_for_room)
    }

    /// Whether somebody waits who is not late. For copies nobody does.
    pub fn is_awaited(&self, now: Instant) -> bool {
        let is_in_time = |ticket: &Ticket<T>| ticket.deadline.is_none_or(|deadline| deadline > now);
        let mut waiting = self.queues.values().flat_map(|queue| queue.waiting.values());
        waiting.any(|Waiting { ticket, .. }| ticket.priority != Priority::Last && is_in_time(ticket))
    }

    /// Whether a version that may have so many runs at once may have another.
    fn may_have_more(&self, version: u32, at_once: usize) -> bool {
        self.versions.get(&version).map_or(0, |version| version.running) < at_once
    }

    /// Whether a run of a version could not begin now, though a lane were free and there were memory for it.
    pub fn lacks_lanes(&self, bound: Bound) -> bool {
        !self.may_have_more(bound.version, bound.at_once) || !self.has_lanes(bound.lanes)
    }

    /// What the most urgent job of a queue needs room for: nothing, if all that is left is to say that it is late.
    fn needs(&self, bucket: &Bucket, now: Instant) -> usize {
        let first = self.queues[bucket].waiting.first_key_value().map(|(_, waiting)| waiting);
        let first = first.filter(|waiting| waiting.ticket.deadline.is_none_or(|deadline| deadline > now));
        first.map_or(0, Waiting::needs)
    }

    /// Whether the cores suffice for another run, of so many lanes.
    fn has_lanes(&self, lanes: usize) -> bool {
        let shares = || self.running.iter().map(|running| running.lanes).chain([lanes]);
        // The lane that asks is free, and so is its own share unless a larger run has taken it.
        let has_room = shares().all(|share| share == 1) || shares().sum::<usize>() <= self.lanes;
        has_room || self.running.is_empty()
    }

    /// Takes a queue out of the heads, if its head stands there.
    fn behead(&mut self, version: u32, head: Place) -> bool {
        self.versions.get_mut(&version).is_some_and(|version| version.heads.remove(&head).is_some())
    }

    /// Puts a queue back among the heads, if anything waits in it.
    fn reopen(&mut self, bucket: Bucket) {
        let are_many = self.queues.len() > QUEUES_KEPT;
        let queue = self.queues.get_mut(&bucket).expect("it was just there");
        match queue.waiting.first_key_value() {
            Some((head, _)) => {
                self.versions.entry(bucket.version).or_default().heads.insert(*head, bucket);
            }
            None if are_many => {
                self.queues.remove(&bucket);
            }
            None => queue.held_since = None,
        }
    }

    /// Forms a batch.
    fn take(&mut self, bucket: Bucket, room: Room, now: Instant) -> Batch<T> {
        let Plan { pieces, late, closed, explores } = self.plan(&bucket, room, now);
        let queue = &self.queues[&bucket];
        let (head, _) = queue.waiting.first_key_value().expect("a head stands in a queue");
        let (head, lanes) = (*head, queue.lanes);
        self.behead(bucket.version, head);
        let late = late.into_iter().filter_map(|(connection, id)| self.cancel(connection, id)).collect();
        let (mut rows, mut hold) = (0, Hold::default());
        let mut pieces: Vec<_> = pieces
            .into_iter()
            .map(|(place, piece)| {
                rows += piece;
                self.take_rows(&bucket, place, piece, &mut hold)
            })
            .collect();
        pieces.sort_by_key(|(connection, _)| *connection);
        let jobs = pieces.len() as u32;
        let pieces = pieces.into_iter().map(|(_, piece)| piece).collect();
        self.queues.get_mut(&bucket).expect("nobody removed it").held_since = None;
        self.reopen(bucket.clone());
        if explores {
            self.profile(&bucket).explores();
        }
        let number = self.claimed;
        self.claimed += 1;
        self.versions.entry(bucket.version).or_default().running += 1;
        let curve = self.known(&bucket).map(|profile| &profile.curve);
        let expected = curve.and_then(|curve| curve.typical(rows));
        let takes = expected.unwrap_or_default();
        let back = now + takes;
        self.running.push(Running { number, bucket: bucket.clone(), rows, lanes, back });
        self.ahead = self.all_work(now);
        Batch {
            pieces,
            late,
            closed,
            expected,
            claim: Claim { bucket, number, jobs, rows, hold, began: now, explores, ran: None },
        }
    }

    /// Takes so many rows of a job out of its queue; gives it with its connection.
    fn take_rows(&mut self, bucket: &Bucket, place: Place, rows: u32, hold: &mut Hold) -> (u64, Piece<T>) {
        let slot = self.slot(place.urgency);
        let queue = self.queues.get_mut(bucket).expect("the plan was made of it");
        let TreeEntry::Occupied(mut found) = queue.waiting.entry(place) else {
            unreachable!("the plan was made of what waits");
        };
        let waiting = found.get_mut();
        let first = waiting.gone;
        waiting.gone += rows;
        self.parties.leave(&waiting.ticket, place);
        let (connection, job) = if waiting.gone == waiting.ticket.rows {
            let Waiting { ticket, share, .. } = found.remove();
            self.places.remove(&(ticket.connection, ticket.id));
            match share {
                None => self.budget.run(ticket.held(), hold),
                Some(share) => {
                    self.begun.remove(&place);
                    hold.share(share);
                }
            }
            (ticket.connection, ticket.payload)
        } else {
            let Waiting { ticket, share, .. } = waiting;
            let share = share.get_or_insert_with(|| {
                self.begun.insert(place, bucket.clone());
                self.budget.begin(ticket.held())
            });
            hold.share(Arc::clone(share));
            (ticket.connection, ticket.payload.clone())
        };
        queue.leave(slot, u64::from(rows));
        self.rows -= u64::from(rows);
        (connection, Piece { job, first, rows })
    }

    /// How long a job that takes so many runs can wait for its turn; one without a deadline, or that has long, [`PATIENCE`]. Who is
    /// critical has half of it: the other half makes good for those who come later, matter less and are in more haste.
    fn spare(&self, ticket: &Ticket<T>, run: Duration, runs: u32, now: Instant) -> Duration {
        let Some(deadline) = ticket.deadline else { return PATIENCE };
        let bound = ticket.bound();
        let at_once = bound.at_once.min(self.lanes / bound.lanes.clamp(1, self.lanes)).max(1);
        let takes = run * runs.div_ceil(u32::try_from(at_once).unwrap_or(u32::MAX));
        let spare = deadline.saturating_duration_since(now).saturating_sub(takes).min(PATIENCE);
        if ticket.criticality == Criticality::Critical { spare / 2 } else { spare }
    }

    /// When a job is to have its turn: halfway between when it would have it if nobody more urgent came, and when it has to. All that
    /// is let in later is let in up to the last moment; who had to begin then as well would be late by whatever lanes are late.
    fn turn(&self, ticket: &Ticket<T>, spare: Duration, forecast: Option<Forecast>) -> Duration {
        match (forecast, ticket.criticality) {
            (Some(forecast), Criticality::Normal | Criticality::Sheddable) => {
                (forecast.waits.min(spare) + spare) / 2
            }
            (None, _) | (_, Criticality::Critical) => spare,
        }
    }

    fn place(&self, ticket: &Ticket<T>, turn: Duration, now: Instant) -> Place {
        Place { urgency: now + turn + ticket.priority.behind(), arrival: self.pushed }
    }

    fn slot(&self, urgency: Instant) -> u64 {
        (urgency.saturating_duration_since(self.origin).as_millis() / SLOT.as_millis()) as u64
    }
}

impl<T> Waiting<T> {
    /// What it needs room for.
    fn needs(&self) -> usize {
        if self.share.is_some() { 0 } else { self.ticket.run_bytes }
    }
}

impl<T> Queue<T> {
    fn new(first: &Ticket<T>) -> Self {
        Self {
            grouping: first.grouping,
            lanes: first.lanes,
            at_once: first.grouping.at_once(first.at_once),
            waiting: BTreeMap::new(),
            rows: 0,
            slots: BTreeMap::new(),
            held_since: None,
        }
    }

    /// What its version may have.
    fn bound(&self, version: u32) -> Bound {
        Bound { version, lanes: self.lanes, at_once: self.at_once }
    }

    /// Rows that a job has, on the average.
    fn each(&self) -> u32 {
        let jobs = self.waiting.len().max(1) as u64;
        u32::try_from((self.rows + jobs / 2) / jobs).unwrap_or(u32::MAX).max(1)
    }

    /// Rows that are at least as urgent.
    fn rows_until(&self, slot: u64) -> u64 {
        self.slots.range(..=slot).map(|(_, rows)| rows).sum()
    }

    fn leave(&mut self, slot: u64, rows: u64) {
        self.rows -= rows;
        let TreeEntry::Occupied(mut found) = self.slots.entry(slot) else {
            unreachable!("rows that wait are counted in their slot");
        };
        *found.get_mut() -= rows;
        if *found.get() == 0 {
            found.remove();
        }
    }
}

#[cfg(test)]
mod tests;
