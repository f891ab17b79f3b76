//! Many shapes on two lanes, as sentences of mixed lengths are: what is answered in time from the first second of an
//! overload on, and what becomes of hasty jobs beside others that have time.

use super::*;
use crate::curve::Curve;

/// Tokens of the sentences that come, one after the other.
const LENGTHS: [u64; 10] = [8, 16, 16, 24, 24, 32, 48, 64, 96, 128];
const LANES: usize = 2;

/// Of those who are in no hurry.
const IN_FLIGHT: usize = 320;
const MAX_ROWS: u32 = 32;

/// About what MiniLM-L6 takes on one core.
fn service(rows: u32, length: u64) -> Duration {
    us(4000.0 + 290.0 * f64::from(rows) * length as f64)
}

/// What a row takes in a batch as large as may be.
fn work(length: u64) -> Duration {
    service(MAX_ROWS, length) / MAX_ROWS
}

/// Rows per second when all are answered.
fn capacity(lengths: &[u64]) -> f64 {
    let all: Duration = lengths.iter().map(|length| work(*length)).sum();
    (LANES * lengths.len()) as f64 / all.as_secs_f64()
}

fn bucket(length: u64) -> Bucket {
    Bucket { version: 0, free: vec![length], suspect: false }
}

struct Job {
    came: Instant,
    budget: Option<Duration>,
    length: u64,
}

struct World {
    batcher: Batcher<usize>,
    rng: StdRng,
    now: Instant,
    jobs: Vec<Job>,
    running: Vec<(Instant, crate::batcher::Claim, Vec<usize>)>,
    lengths: &'static [u64],
    tally: Tally,
}

/// What has become of the jobs of a phase.
#[derive(Debug, Default)]
struct Tally {
    in_time: usize,
    /// What those who were answered in time take in large batches.
    work_in_time: Duration,
    too_late: usize,
    /// Let in, and given up when their turn came.
    given_up: usize,
    /// Of those without a deadline.
    patient: usize,
}

impl World {
    fn new(lengths: &'static [u64]) -> Self {
        let now = Instant::now();
        let limits = Limits::halving(100_000, 200_000);
        let mut batcher = Batcher::new(limits, LANES, now);
        // What a calibration measures: sizes of one shape.
        let mut curve = Curve::default();
        for rows in [1, 2, 4, 8, 16] {
            (0..5).for_each(|_| curve.observe(rows, service(rows, 16)));
        }
        batcher.seed(&bucket(16), curve);
        Self {
            batcher,
            rng: StdRng::seed_from_u64(11),
            now,
            jobs: Vec::new(),
            running: Vec::new(),
            lengths,
            tally: Tally::default(),
        }
    }

    fn push(&mut self, length: u64, budget: Option<Duration>) -> bool {
        let job = self.jobs.len();
        self.jobs.push(Job { came: self.now, budget, length });
        let ticket = Ticket {
            connection: 0,
            id: job as u64,
            bucket: bucket(length),
            grouping: Grouping::Together { max_rows: MAX_ROWS },
            lanes: 1,
            at_once: LANES,
            rows: 1,
            bytes: 1,
            run_bytes: 1,
            deadline: budget.map(|budget| self.now + budget),
            priority: Priority::Normal,
            criticality: Criticality::Normal,
            tenant: 0,
            payload: job,
        };
        self.batcher.push(ticket, &mut Vec::new(), self.now).is_ok()
    }

    /// Until nothing is left.
    fn drain(&mut self) {
        while !self.batcher.is_empty() || !self.running.is_empty() {
            self.step(self.now + Duration::from_secs(1));
        }
    }

    /// Lets lanes take what there is.
    fn start(&mut self) {
        while self.running.len() < LANES {
            let Next::Run(batch) = self.batcher.next(self.now) else { return };
            self.tally.given_up += batch.late.len();
            let jobs: Vec<usize> = batch.pieces.iter().map(|piece| piece.job).collect();
            let takes = jobs.first().map_or(Duration::ZERO, |first| {
                let noise =
                    if self.rng.random_ratio(1, 50) { 1.3 } else { self.rng.random_range(0.97..1.03) };
                service(jobs.len() as u32, self.jobs[*first].length).mul_f64(noise)
            });
            self.running.push((self.now + takes, batch.claim, jobs));
        }
    }

    /// Goes on to the next end of a run, or to `until`.
    fn step(&mut self, until: Instant) {
        self.start();
        let due = self.running.iter().map(|(due, ..)| *due).min();
        self.now = due.map_or(until, |due| due.min(until)).max(self.now);
        for (_, claim, jobs) in self.running.extract_if(.., |(due, ..)| *due <= self.now) {
            self.batcher.finish(claim, Ended::Ran, self.now);
            for job in jobs {
                let Job { came, budget, length } = self.jobs[job];
                match budget {
                    None => self.tally.patient += 1,
                    Some(budget) if self.now <= came + budget => {
                        self.tally.in_time += 1;
                        self.tally.work_in_time += work(length);
                    }
                    Some(_) => self.tally.too_late += 1,
                }
            }
        }
    }

    /// So many jobs wait or run at any time, for a while; those have no deadline. Beside them `rate` jobs per second come
    /// that have so much time each.
    fn phase(&mut self, in_flight: usize, rate: f64, budget: Duration, takes: Duration) -> Tally {
        self.tally = Tally::default();
        let end = self.now + takes;
        let gap = if rate > 0.0 { Duration::from_secs_f64(1.0 / rate) } else { takes };
        let mut next = self.now + gap;
        let mut patient = 0;
        let mut number = 0;
        while self.now < end {
            while patient < in_flight {
                let length = self.lengths[number % self.lengths.len()];
                number += 1;
                patient += usize::from(self.push(length, None));
            }
            while next <= self.now && rate > 0.0 {
                let length = self.lengths[number % self.lengths.len()];
                number += 1;
                self.push(length, Some(budget));
                next += gap;
            }
            let before = self.tally.patient;
            self.step(next.min(end));
            patient = patient.saturating_sub(self.tally.patient - before);
        }
        std::mem::take(&mut self.tally)
    }
}

/// Three times more than can be done, 200 ms each: second by second, which part of it is made good use of.
fn overloaded(lengths: &'static [u64], saturated_before: u64) -> (Vec<f64>, Tally) {
    const SECOND: Duration = Duration::from_secs(1);
    let mut world = World::new(lengths);
    // Whoever is in no hurry has large batches alone: what small ones take is not seen.
    world.phase(IN_FLIGHT, 0.0, Duration::ZERO, saturated_before as u32 * SECOND);
    world.drain();
    let capacity = capacity(lengths);
    let mut all = Tally::default();
    let one = |_| {
        let tally = world.phase(0, 3.0 * capacity, Duration::from_millis(200), SECOND);
        all.in_time += tally.in_time;
        all.too_late += tally.too_late;
        all.given_up += tally.given_up;
        tally.work_in_time.as_secs_f64() / LANES as f64
    };
    ((0..10).map(one).collect(), all)
}

#[test]
fn too_much_work_of_lengths_that_nobody_has_seen_is_done_as_well_from_the_first_second_on() {
    for lengths in [&LENGTHS[..], &[16], &[16, 24], &[128], &[48, 64, 96, 128]] {
        for saturated_before in [0, 1, 10] {
            let (seconds, all) = overloaded(lengths, saturated_before);
            println!("{lengths:?} after {saturated_before} s: {seconds:.2?} {all:?}");
            let least = seconds.iter().copied().fold(f64::INFINITY, f64::min);
            let mean = seconds.iter().sum::<f64>() / seconds.len() as f64;
            // In 200 ms there is no time for batches as large as may be of all lengths.
            assert!(least >= 0.75, "{lengths:?} after {saturated_before} s: {seconds:.2?}");
            assert!(seconds[0] >= 0.9 * mean, "{lengths:?} after {saturated_before} s: {seconds:.2?}");
            assert!(all.too_late * 50 <= all.in_time, "{all:?}");
            assert!(all.given_up * 10 <= all.in_time, "{all:?}");
        }
    }
}

#[test]
fn who_is_let_in_with_little_time_is_answered_though_others_who_have_time_wait() {
    for (lengths, in_flight) in [(&[16][..], 40), (&[16, 16, 24], 64)] {
        let mut world = World::new(lengths);
        let alone = world.phase(in_flight, 0.0, Duration::ZERO, Duration::from_secs(10));
        for budget in [100, 200, 300] {
            let beside = world.phase(in_flight, 20.0, Duration::from_millis(budget), Duration::from_secs(10));
            println!("{lengths:?} {budget} ms: {beside:?}");
            assert!(beside.in_time >= 90, "{lengths:?} {budget} ms: {beside:?}");
            assert!((beside.too_late + beside.given_up) * 10 <= beside.in_time, "{beside:?}");
            assert!(beside.patient as f64 >= 0.85 * alone.patient as f64, "{beside:?} against {alone:?}");
        }
    }
}
