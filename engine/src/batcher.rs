//! Decides which waiting jobs run together, and in which order. Sans-IO: `now` is an argument, jobs are opaque,
//! no thread, no clock, no tensor.
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
//! There is no delay knob: an idle lane takes what is there. While all lanes are busy jobs gather by themselves.

use std::collections::btree_map::Entry as TreeEntry;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

/// A job without a deadline is as urgent as one whose deadline is this long after its arrival, so that neither
/// kind can starve the other.
const PATIENCE: Duration = Duration::from_secs(1);

/// What may wait at most.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Jobs.
    pub requests: usize,
    /// Tensor bytes of all jobs together.
    pub bytes: usize,
}

/// Jobs of one bucket may share a run.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Bucket {
    /// Which model version, by the number the library gave it.
    pub version: u32,
    /// Dimensions that the model leaves free and that must agree within a batch; empty (and free to clone) for
    /// models whose shapes are fixed.
    pub free: Vec<u64>,
}

/// How the jobs of a bucket may run. All jobs of a bucket say the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grouping {
    /// Rows of several jobs in one run, on any number of lanes.
    Together {
        /// Rows of one run at most; no job has more.
        max_rows: u32,
    },
    /// One job per run, on any number of lanes.
    Alone,
    /// One job per run, and one run at a time.
    Serial,
}

/// A job and what the batcher must know about it.
#[derive(Debug)]
pub struct Ticket<T> {
    /// Who asked.
    pub connection: u64,
    /// Its name for the job, unique among its waiting ones.
    pub id: u64,
    /// Whom it may run with.
    pub bucket: Bucket,
    /// How that bucket runs.
    pub grouping: Grouping,
    /// Rows it adds to a batch.
    pub rows: u32,
    /// Bytes it holds while it waits.
    pub bytes: usize,
    /// When its answer becomes worthless.
    pub deadline: Option<Instant>,
    /// The job itself.
    pub payload: T,
}

impl<T> Ticket<T> {
    fn has_expired(&self, now: Instant) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= now)
    }
}

/// Why a job may not wait; it is handed back.
#[derive(Debug)]
pub enum Refused<T> {
    /// As many jobs or bytes wait as may.
    Overloaded(T),
    /// A job of this connection and id waits already.
    Duplicate(T),
}

/// What a lane that asks is to do.
#[derive(Debug)]
pub enum Next<T> {
    /// Run these.
    Run(Batch<T>),
    /// Nothing can run now.
    Idle,
}

/// Jobs that left the queue together.
#[derive(Debug)]
pub struct Batch<T> {
    /// To be run; none when all that was left of a queue had expired.
    pub jobs: Vec<T>,
    /// To be told that their deadline passed.
    pub expired: Vec<T>,
    /// To be given back after the run.
    pub claim: Claim,
}

/// The right to run a batch. A serial bucket stays shut until its claim comes back to [`Batcher::finish`].
#[derive(Debug)]
#[must_use]
pub struct Claim(Option<Bucket>);

/// The waiting jobs.
#[derive(Debug)]
pub struct Batcher<T> {
    limits: Limits,
    queues: HashMap<Bucket, Queue<T>>,
    /// First place of each queue that has one and may run.
    heads: BTreeMap<Place, Bucket>,
    /// Where each job stands, for cancellation.
    places: HashMap<(u64, u64), (Bucket, Place)>,
    bytes: usize,
    pushed: u64,
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
    waiting: BTreeMap<Place, Ticket<T>>,
    /// A claim is out: nothing of this queue may run.
    shut: bool,
}

impl<T> Batcher<T> {
    /// An empty one.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            queues: HashMap::new(),
            heads: BTreeMap::new(),
            places: HashMap::new(),
            bytes: 0,
            pushed: 0,
        }
    }

    /// Lets a job wait.
    pub fn push(&mut self, ticket: Ticket<T>, now: Instant) -> Result<(), Refused<T>> {
        if self.places.len() >= self.limits.requests || ticket.bytes > self.limits.bytes - self.bytes {
            return Err(Refused::Overloaded(ticket.payload));
        }
        let Entry::Vacant(slot) = self.places.entry((ticket.connection, ticket.id)) else {
            return Err(Refused::Duplicate(ticket.payload));
        };
        let place = Place { urgency: ticket.deadline.unwrap_or(now + PATIENCE), arrival: self.pushed };
        slot.insert((ticket.bucket.clone(), place));
        self.pushed += 1;
        self.bytes += ticket.bytes;
        let queue = self.queues.entry(ticket.bucket.clone()).or_insert_with(|| Queue {
            grouping: ticket.grouping,
            waiting: BTreeMap::new(),
            shut: false,
        });
        debug_assert_eq!(queue.grouping, ticket.grouping, "a bucket runs in one way");
        let head = queue.waiting.first_key_value().map(|(head, _)| *head);
        if !queue.shut && head.is_none_or(|head| place < head) {
            if let Some(head) = head {
                self.heads.remove(&head);
            }
            self.heads.insert(place, ticket.bucket.clone());
        }
        queue.waiting.insert(place, ticket);
        Ok(())
    }

    /// What a lane that is idle at `now` is to do: the most urgent job, and with it as many of its bucket, in
    /// their order, as fit.
    pub fn next(&mut self, now: Instant) -> Next<T> {
        let Some((_, bucket)) = self.heads.pop_first() else { return Next::Idle };
        let queue = self.queues.get_mut(&bucket).expect("a head stands in a queue");
        let mut batch = Batch { jobs: Vec::new(), expired: Vec::new(), claim: Claim(None) };
        let mut rows = 0;
        while let Some(first) = queue.waiting.first_entry() {
            let ticket = first.get();
            let expired = ticket.has_expired(now);
            if !expired && !queue.grouping.has_room(batch.jobs.len(), rows, ticket.rows) {
                break;
            }
            let ticket = first.remove();
            self.places.remove(&(ticket.connection, ticket.id));
            self.bytes -= ticket.bytes;
            if expired {
                batch.expired.push(ticket.payload);
            } else {
                rows += ticket.rows;
                batch.jobs.push(ticket.payload);
            }
        }
        if queue.grouping == Grouping::Serial && !batch.jobs.is_empty() {
            queue.shut = true;
            batch.claim = Claim(Some(bucket));
        } else {
            self.reopen(bucket);
        }
        Next::Run(batch)
    }

    /// Takes back the claim of a batch that has run.
    pub fn finish(&mut self, claim: Claim) {
        let Claim(Some(bucket)) = claim else { return };
        self.queues.get_mut(&bucket).expect("a shut queue stays").shut = false;
        self.reopen(bucket);
    }

    /// Removes a waiting job.
    pub fn cancel(&mut self, connection: u64, id: u64) -> Option<T> {
        let (bucket, place) = self.places.remove(&(connection, id))?;
        let queue = self.queues.get_mut(&bucket).expect("a waiting job stands in a queue");
        let TreeEntry::Occupied(found) = queue.waiting.entry(place) else {
            unreachable!("a waiting job stands at its place");
        };
        let ticket = found.remove();
        self.bytes -= ticket.bytes;
        if self.heads.remove(&place).is_some() {
            self.reopen(bucket);
        }
        Some(ticket.payload)
    }

    /// Removes all that one connection has waiting.
    pub fn cancel_connection(&mut self, connection: u64) -> Vec<T> {
        let ids: Vec<u64> = self.places.keys().filter(|key| key.0 == connection).map(|key| key.1).collect();
        ids.into_iter().filter_map(|id| self.cancel(connection, id)).collect()
    }

    /// Jobs that wait.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether no job waits.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Whether [`Batcher::next`] would give something.
    pub fn has_next(&self) -> bool {
        !self.heads.is_empty()
    }

    /// Puts a queue that may run back among the heads; forgets it when nothing waits in it.
    fn reopen(&mut self, bucket: Bucket) {
        let queue = &self.queues[&bucket];
        debug_assert!(!queue.shut, "a shut queue has no head");
        match queue.waiting.first_key_value() {
            Some((head, _)) => {
                self.heads.insert(*head, bucket);
            }
            None => {
                self.queues.remove(&bucket);
            }
        }
    }
}

impl Grouping {
    fn has_room(self, jobs: usize, rows: u32, more: u32) -> bool {
        match self {
            // A job larger than the limit would never leave; alone it may.
            Self::Together { max_rows } => jobs == 0 || rows.saturating_add(more) <= max_rows,
            Self::Alone | Self::Serial => jobs == 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const TOGETHER: Grouping = Grouping::Together { max_rows: 4 };

    /// A batcher and a clock that moves when told to. Jobs are their ids; the bucket decides how they run.
    struct World {
        batcher: Batcher<u64>,
        now: Instant,
        claims: Vec<Claim>,
    }

    #[derive(Debug, PartialEq, Eq)]
    enum Step {
        Run(Vec<u64>),
        RunAfterExpired(Vec<u64>, Vec<u64>),
        Idle,
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    impl World {
        fn new(requests: usize, bytes: usize) -> Self {
            Self {
                batcher: Batcher::new(Limits { requests, bytes }),
                now: Instant::now(),
                claims: Vec::new(),
            }
        }

        fn ticket(&self, id: u64, version: u32, free: u64) -> Ticket<u64> {
            let grouping = [TOGETHER, Grouping::Alone, Grouping::Serial][version as usize % 3];
            Ticket {
                connection: 1,
                id,
                bucket: Bucket { version, free: vec![free] },
                grouping,
                rows: 1,
                bytes: 10,
                deadline: None,
                payload: id,
            }
        }

        fn push(&mut self, ticket: Ticket<u64>) -> bool {
            self.batcher.push(ticket, self.now).is_ok()
        }

        fn push_plain(&mut self, ids: &[u64], version: u32, free: u64) {
            for id in ids {
                let ticket = self.ticket(*id, version, free);
                assert!(self.push(ticket));
            }
        }

        fn push_due(&mut self, id: u64, free: u64, due: Duration) {
            let ticket = Ticket { deadline: Some(self.now + due), ..self.ticket(id, 0, free) };
            assert!(self.push(ticket));
        }

        fn step(&mut self) -> Step {
            match self.batcher.next(self.now) {
                Next::Idle => Step::Idle,
                Next::Run(batch) => {
                    self.claims.push(batch.claim);
                    if batch.expired.is_empty() {
                        Step::Run(batch.jobs)
                    } else {
                        Step::RunAfterExpired(batch.jobs, batch.expired)
                    }
                }
            }
        }

        fn finish_all(&mut self) {
            for claim in self.claims.drain(..) {
                self.batcher.finish(claim);
            }
        }
    }

    #[test]
    fn an_idle_lane_takes_what_is_there_at_once() {
        let mut world = World::new(10, 1000);
        assert_eq!(world.step(), Step::Idle);
        world.push_plain(&[1], 0, 0);
        assert_eq!(world.step(), Step::Run(vec![1]));
        assert_eq!(world.step(), Step::Idle);
    }

    #[test]
    fn a_batch_fills_up_to_the_row_limit_in_order_of_arrival() {
        let mut world = World::new(10, 1000);
        world.push_plain(&[1, 2, 3, 4, 5], 0, 0);
        assert_eq!(world.step(), Step::Run(vec![1, 2, 3, 4]));
        assert_eq!(world.step(), Step::Run(vec![5]));
    }

    #[test]
    fn another_shape_does_not_cut_a_batch_short() {
        let mut world = World::new(10, 1000);
        world.push_plain(&[1], 0, 7);
        world.push_plain(&[2], 0, 8);
        world.push_plain(&[3], 0, 7);
        assert_eq!(world.step(), Step::Run(vec![1, 3]));
        assert_eq!(world.step(), Step::Run(vec![2]));
    }

    #[test]
    fn the_nearest_deadline_leaves_first_and_takes_its_bucket_along() {
        let mut world = World::new(10, 1000);
        world.push_plain(&[1], 0, 7);
        world.push_due(2, 8, ms(900));
        world.push_due(3, 8, ms(20));
        world.push_due(4, 7, ms(50));
        assert_eq!(world.step(), Step::Run(vec![3, 2]));
        assert_eq!(world.step(), Step::Run(vec![4, 1]));
    }

    #[test]
    fn a_job_without_deadline_overtakes_once_it_has_waited_long() {
        let mut world = World::new(10, 1000);
        world.push_plain(&[1], 0, 7);
        world.now += ms(990);
        world.push_due(2, 8, ms(20));
        assert_eq!(world.step(), Step::Run(vec![1]));
    }

    #[test]
    fn expired_jobs_are_handed_back_and_never_run() {
        let mut world = World::new(10, 1000);
        world.push_due(1, 0, ms(5));
        world.push_due(2, 0, ms(50));
        world.push_due(3, 0, ms(6));
        world.now += ms(6);
        assert_eq!(world.step(), Step::RunAfterExpired(vec![2], vec![1, 3]));
        world.push_due(4, 0, ms(1));
        world.now += ms(1);
        assert_eq!(world.step(), Step::RunAfterExpired(vec![], vec![4]));
        assert_eq!(world.step(), Step::Idle);
    }

    #[test]
    fn a_cancelled_job_is_gone_even_from_the_head() {
        let mut world = World::new(10, 1000);
        world.push_plain(&[1, 2], 0, 0);
        assert_eq!(world.batcher.cancel(1, 1), Some(1));
        assert_eq!(world.batcher.cancel(1, 1), None);
        assert_eq!(world.step(), Step::Run(vec![2]));
    }

    #[test]
    fn a_lost_connection_takes_its_jobs_along_and_no_others() {
        let mut world = World::new(10, 1000);
        world.push_plain(&[1, 2], 0, 0);
        let other = Ticket { connection: 2, ..world.ticket(1, 0, 0) };
        assert!(world.push(other));
        let mut gone = world.batcher.cancel_connection(1);
        gone.sort_unstable();
        assert_eq!(gone, [1, 2]);
        assert_eq!(world.step(), Step::Run(vec![1]));
    }

    #[test]
    fn a_full_queue_refuses_by_requests_and_by_bytes() {
        let mut world = World::new(2, 1000);
        world.push_plain(&[1, 2], 0, 0);
        let third = world.ticket(3, 0, 0);
        assert!(matches!(world.batcher.push(third, world.now), Err(Refused::Overloaded(3))));

        let mut world = World::new(10, 25);
        world.push_plain(&[1, 2], 0, 0);
        let third = world.ticket(3, 0, 0);
        assert!(matches!(world.batcher.push(third, world.now), Err(Refused::Overloaded(3))));
        assert_eq!(world.batcher.cancel(1, 2), Some(2));
        world.push_plain(&[3], 0, 0);
    }

    #[test]
    fn an_id_that_waits_already_is_refused() {
        let mut world = World::new(10, 1000);
        world.push_plain(&[1], 0, 0);
        let again = world.ticket(1, 0, 9);
        assert!(matches!(world.batcher.push(again, world.now), Err(Refused::Duplicate(1))));
        assert_eq!(world.batcher.len(), 1);
    }

    #[test]
    fn jobs_that_must_be_alone_run_one_by_one_on_many_lanes() {
        let mut world = World::new(10, 1000);
        world.push_plain(&[1, 2], 1, 0);
        assert_eq!(world.step(), Step::Run(vec![1]));
        assert_eq!(world.step(), Step::Run(vec![2]));
    }

    #[test]
    fn a_serial_bucket_waits_for_its_claim_and_holds_up_nobody_else() {
        let mut world = World::new(10, 1000);
        world.push_plain(&[1, 2], 2, 0);
        assert_eq!(world.step(), Step::Run(vec![1]));
        assert_eq!(world.step(), Step::Idle);
        world.push_plain(&[3], 2, 0);
        world.push_plain(&[4], 0, 0);
        assert_eq!(world.step(), Step::Run(vec![4]));
        world.finish_all();
        assert_eq!(world.step(), Step::Run(vec![2]));
        world.finish_all();
        assert_eq!(world.step(), Step::Run(vec![3]));
        world.finish_all();
        assert!(world.batcher.queues.is_empty() && world.batcher.heads.is_empty());
    }

    #[derive(Clone, Debug)]
    enum Event {
        Push {
            connection: u64,
            id: u64,
            version: u32,
            free: u64,
            rows: u32,
            bytes: usize,
            due_ms: Option<u64>,
        },
        Cancel {
            connection: u64,
            id: u64,
        },
        Disconnect {
            connection: u64,
        },
        Advance {
            ms: u64,
        },
        Next,
        Finish,
    }

    fn any_event() -> impl Strategy<Value = Event> {
        let push = (0..3u64, 0..40u64, 0..6u32, 0..3u64, 1..5u32, 0..40usize, prop::option::of(0..30u64))
            .prop_map(|(connection, id, version, free, rows, bytes, due_ms)| Event::Push {
                connection,
                id,
                version,
                free,
                rows,
                bytes,
                due_ms,
            });
        prop_oneof![
            8 => push,
            1 => (0..3u64, 0..40u64).prop_map(|(connection, id)| Event::Cancel { connection, id }),
            1 => (0..40u64).prop_map(|connection| Event::Disconnect { connection }),
            2 => (0..10u64).prop_map(|ms| Event::Advance { ms }),
            3 => Just(Event::Next),
            2 => Just(Event::Finish),
        ]
    }

    /// What the job was when it was pushed; the payload carries it along.
    #[derive(Clone, Debug, PartialEq, Eq)]
    struct Known {
        number: u64,
        bucket: Bucket,
        grouping: Grouping,
        rows: u32,
        bytes: usize,
        deadline: Option<Instant>,
    }

    proptest! {
        #[test]
        fn every_job_leaves_exactly_once_and_every_batch_is_lawful(events in prop::collection::vec(any_event(), 1..300)) {
            let limits = Limits { requests: 12, bytes: 200 };
            let mut batcher: Batcher<Known> = Batcher::new(limits);
            let mut now = Instant::now();
            let mut inside: BTreeSet<u64> = BTreeSet::new();
            let mut bytes_inside = 0;
            let mut claims = Vec::new();
            let mut running_serially: Vec<Bucket> = Vec::new();
            let leave = |job: &Known, inside: &mut BTreeSet<u64>, bytes: &mut usize| {
                *bytes -= job.bytes;
                inside.remove(&job.number)
            };
            for (number, event) in events.into_iter().enumerate() {
                match event {
                    Event::Push { connection, id, version, free, rows, bytes, due_ms } => {
                        let grouping = [TOGETHER, Grouping::Alone, Grouping::Serial][version as usize % 3];
                        let bucket = Bucket { version, free: vec![free] };
                        let deadline = due_ms.map(|due| now + ms(due));
                        let known = Known { number: number as u64, bucket: bucket.clone(), grouping, rows, bytes, deadline };
                        let full = inside.len() == limits.requests || bytes_inside + bytes > limits.bytes;
                        match batcher.push(Ticket { connection, id, bucket, grouping, rows, bytes, deadline, payload: known }, now) {
                            Ok(()) => {
                                prop_assert!(!full);
                                inside.insert(number as u64);
                                bytes_inside += bytes;
                            }
                            Err(Refused::Overloaded(_)) => prop_assert!(full),
                            Err(Refused::Duplicate(_)) => prop_assert!(!full),
                        }
                    }
                    Event::Cancel { connection, id } => {
                        if let Some(job) = batcher.cancel(connection, id) {
                            prop_assert!(leave(&job, &mut inside, &mut bytes_inside));
                        }
                    }
                    Event::Disconnect { connection } => {
                        for job in batcher.cancel_connection(connection) {
                            prop_assert!(leave(&job, &mut inside, &mut bytes_inside));
                        }
                    }
                    Event::Advance { ms: step } => now += ms(step),
                    Event::Finish => {
                        running_serially.clear();
                        for claim in claims.drain(..) {
                            batcher.finish(claim);
                        }
                    }
                    Event::Next => {
                        let ready = batcher.has_next();
                        let Next::Run(batch) = batcher.next(now) else {
                            prop_assert!(!ready);
                            continue;
                        };
                        prop_assert!(ready);
                        prop_assert!(batch.jobs.len() + batch.expired.len() > 0);
                        claims.push(batch.claim);
                        for job in &batch.expired {
                            prop_assert!(job.deadline.is_some_and(|deadline| deadline <= now));
                            prop_assert!(leave(job, &mut inside, &mut bytes_inside));
                        }
                        for job in &batch.jobs {
                            prop_assert!(job.deadline.is_none_or(|deadline| deadline > now));
                            prop_assert_eq!(&job.bucket, &batch.jobs[0].bucket);
                            prop_assert!(leave(job, &mut inside, &mut bytes_inside));
                        }
                        let Some(first) = batch.jobs.first() else { continue };
                        match first.grouping {
                            Grouping::Together { max_rows } => {
                                prop_assert!(batch.jobs.iter().map(|job| job.rows).sum::<u32>() <= max_rows);
                            }
                            Grouping::Alone => prop_assert_eq!(batch.jobs.len(), 1),
                            Grouping::Serial => {
                                prop_assert_eq!(batch.jobs.len(), 1);
                                prop_assert!(!running_serially.contains(&first.bucket));
                                running_serially.push(first.bucket.clone());
                            }
                        }
                    }
                }
                prop_assert_eq!(batcher.len(), inside.len());
                prop_assert!(inside.len() <= limits.requests && bytes_inside <= limits.bytes);
                prop_assert_eq!(batcher.bytes, bytes_inside);
            }
            // Whatever is left leaves when asked for, and nothing remains.
            for claim in claims {
                batcher.finish(claim);
            }
            while let Next::Run(batch) = batcher.next(now) {
                for job in batch.jobs.iter().chain(&batch.expired) {
                    prop_assert!(leave(job, &mut inside, &mut bytes_inside));
                }
                batcher.finish(batch.claim);
            }
            prop_assert!(inside.is_empty() && batcher.queues.is_empty() && batcher.places.is_empty());
            prop_assert!(batcher.heads.is_empty() && bytes_inside == 0);
        }
    }
}
