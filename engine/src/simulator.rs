//! Drives the [`Batcher`] through simulated time: arrivals, lanes that take as long as a service curve says,
//! cancels, failures. Two uses: a hundred thousand random schedules that check what must always hold, and traces
//! that compare the batcher with the best fixed pair of batch limit and delay. No thread, no clock; a failure names
//! its seed.

use crate::batcher::{
    Batcher, Bound, Bucket, Criticality, Ended, Grouping, Limits, Next, Piece, Priority, Refused, Ticket,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

mod classes;
mod mixed;

fn us(us: f64) -> Duration {
    Duration::from_secs_f64(us.max(0.0) / 1e6)
}

/// Time until the next arrival of a Poisson process.
fn exponential(rng: &mut StdRng, mean: Duration) -> Duration {
    mean.mul_f64(-(1.0 - rng.random::<f64>()).ln())
}

mod schedules {
    use super::*;

    const SEEDS: u64 = 100_000;

    /// What is known of a job outside the batcher.
    #[derive(Clone, Debug, PartialEq)]
    struct Job {
        key: (u64, u64),
        bucket: Bucket,
        grouping: Grouping,
        rows: u32,
        deadline: Option<Instant>,
        party: (Criticality, u64),
        run_bytes: usize,
    }

    #[derive(Default)]
    struct Fate {
        rows_run: u32,
        ends: u32,
    }

    struct Schedule {
        rng: StdRng,
        batcher: Batcher<u64>,
        now: Instant,
        jobs: Vec<Job>,
        inside: BTreeMap<u64, Fate>,
        running: Vec<(Instant, crate::batcher::Claim, Vec<Piece<u64>>)>,
        lanes: usize,
        limits: Limits,
    }

    #[test]
    fn a_hundred_thousand_random_schedules_lose_nothing_and_break_no_promise() {
        for seed in 0..SEEDS {
            let _said = Seed(seed);
            if let Err(broken) = Schedule::new(seed).run() {
                panic!("{broken}");
            }
        }
    }

    /// Which one it was, whoever panics.
    struct Seed(u64);

    impl Drop for Seed {
        fn drop(&mut self) {
            if std::thread::panicking() {
                eprintln!("seed {}", self.0);
            }
        }
    }

    macro_rules! must {
        ($holds:expr, $($what:tt)*) => { if !$holds { return Err(format!($($what)*)); } };
    }

    impl Schedule {
        fn new(seed: u64) -> Self {
            let mut rng = StdRng::seed_from_u64(seed);
            let now = Instant::now();
            let lanes = rng.random_range(1..4);
            let limits = Limits { rows: rng.random_range(4..40), bytes: 200, run_bytes: 100 };
            let batcher = Batcher::new(limits, lanes, now);
            Self { rng, batcher, now, jobs: vec![], inside: BTreeMap::new(), running: vec![], lanes, limits }
        }

        fn run(mut self) -> Result<(), String> {
            for _ in 0..self.rng.random_range(5..60) {
                match self.rng.random_range(0..12) {
                    0..6 => self.push()?,
                    6 => self.cancel()?,
                    7 => self.disconnect()?,
                    _ => self.now += us(f64::from(self.rng.random_range(0..8000))),
                }
                self.finish_due();
                self.start()?;
            }
            // Left alone, it ends.
            for _ in 0..10_000 {
                self.finish_due();
                self.start()?;
                if self.batcher.is_empty() && self.running.is_empty() {
                    break;
                }
                self.now += us(500.0);
            }
            must!(self.inside.is_empty(), "never left: {:?}", self.inside.keys());
            must!(!self.batcher.has_next(self.now) && self.batcher.is_empty(), "something is left");
            must!(self.batcher.bytes() == 0, "bytes of nothing");
            must!(self.batcher.backlog(Bound::default(), self.now).is_zero(), "a backlog of nothing");
            Ok(())
        }

        fn push(&mut self) -> Result<(), String> {
            let rng = &mut self.rng;
            let version = rng.random_range(0..3);
            let grouping =
                [Grouping::Together { max_rows: 4 }, Grouping::Alone, Grouping::Serial][version as usize];
            let free = if version == 0 { vec![rng.random_range(0..2)] } else { vec![] };
            let job = Job {
                key: (rng.random_range(0..3), rng.random_range(0..30)),
                bucket: Bucket { version, free, suspect: rng.random_ratio(1, 8) && version == 0 },
                grouping,
                rows: if version == 0 { rng.random_range(1..10) } else { 1 },
                deadline: rng.random_bool(0.6).then(|| self.now + us(f64::from(rng.random_range(0..30_000)))),
                party: (
                    [Criticality::Critical, Criticality::Normal, Criticality::Sheddable]
                        [rng.random_range(0..3)],
                    rng.random_range(0..3),
                ),
                // Some take more than there is room for.
                run_bytes: if rng.random_ratio(1, 8) { 140 } else { rng.random_range(0..60) },
            };
            let payload = self.jobs.len() as u64;
            let ticket = Ticket {
                connection: job.key.0,
                id: job.key.1,
                bucket: job.bucket.clone(),
                grouping,
                lanes: rng.random_range(1..4),
                at_once: rng.random_range(1..4),
                rows: job.rows,
                bytes: rng.random_range(0..40),
                run_bytes: job.run_bytes,
                deadline: job.deadline,
                priority: [Priority::High, Priority::Normal, Priority::Low][rng.random_range(0..3)],
                criticality: job.party.0,
                tenant: job.party.1,
                payload,
            };
            let waits_already = self
                .inside
                .keys()
                .any(|other| self.jobs[*other as usize].key == job.key && self.waits(*other));
            let mut shed = Vec::new();
            let pushed = self.batcher.push(ticket, &mut shed, self.now);
            must!(pushed.is_ok() || shed.is_empty(), "somebody has gone for nothing");
            for victim in shed {
                let other = &self.jobs[victim as usize];
                must!(self.inside.get(&victim).is_some_and(|fate| fate.rows_run == 0), "it has begun to run");
                let other = other.clone();
                self.end(victim)?;
                if other.deadline.is_some_and(|deadline| deadline <= self.now) {
                    continue; // it would not have run
                }
                must!(other.party.0 >= job.party.0, "somebody more critical has gone");
                let own_version = |other: &Job| other.bucket.version == job.bucket.version;
                must!(other.party != job.party || !own_version(&other), "one of its own has gone");
                if other.party.0 > job.party.0 {
                    continue;
                }
                let rows = |is_of: &dyn Fn(&Job) -> bool| -> u64 {
                    let waits = self.inside.iter().filter(|(_, fate)| fate.rows_run == 0);
                    let jobs = waits.map(|(at, _)| &self.jobs[*at as usize]);
                    jobs.filter(|job| is_of(job)).map(|job| u64::from(job.rows)).sum()
                };
                // Tenants are equals, and so are the versions of a tenant.
                let of = |one: &Job| {
                    let (party, version) = (one.party, one.bucket.version);
                    match other.party == job.party {
                        true => rows(&|job| job.party == party && job.bucket.version == version),
                        false => rows(&|job| job.party == party),
                    }
                };
                let share = of(&job) + u64::from(job.rows);
                must!(of(&other) >= share, "an equal is left with less than who it goes for");
            }
            match pushed {
                Ok(()) => {
                    must!(!waits_already, "job {payload} has the key of one that waits");
                    self.inside.insert(payload, Fate::default());
                }
                Err(Refused::Duplicate(got)) => must!(got == payload && waits_already, "no duplicate"),
                Err(Refused::Overloaded { job: got, .. }) => {
                    let is_idle = self.batcher.is_empty() && self.batcher.running() == 0;
                    must!(got == payload && !is_idle, "where nothing waits or runs there is room");
                }
                Err(Refused::TooLarge(got)) => {
                    must!(got == payload && u64::from(job.rows) > self.limits.rows, "not too large");
                }
                Err(Refused::TooLate { job: got, .. } | Refused::Hopeless(got)) => {
                    must!(got == payload && job.deadline.is_some(), "who is in no hurry is not late");
                }
            }
            self.jobs.push(job);
            Ok(())
        }

        /// All of its rows have not yet left the queue.
        fn waits(&self, job: u64) -> bool {
            self.inside
                .get(&job)
                .is_some_and(|fate| fate.ends == 0 && fate.rows_run < self.jobs[job as usize].rows)
        }

        fn cancel(&mut self) -> Result<(), String> {
            let key = (self.rng.random_range(0..3), self.rng.random_range(0..30));
            if let Some(job) = self.batcher.cancel(key.0, key.1) {
                must!(self.jobs[job as usize].key == key && self.waits(job), "cancelled what does not wait");
                self.end(job)?;
            }
            Ok(())
        }

        fn disconnect(&mut self) -> Result<(), String> {
            let connection = self.rng.random_range(0..3);
            for job in self.batcher.cancel_connection(connection) {
                must!(self.jobs[job as usize].key.0 == connection, "cancelled another's");
                self.end(job)?;
            }
            Ok(())
        }

        /// It leaves for good; what runs of it is nobody's business any more.
        fn end(&mut self, job: u64) -> Result<(), String> {
            must!(self.inside.remove(&job).is_some_and(|fate| fate.ends == 0), "job {job} ended twice");
            Ok(())
        }

        fn finish_due(&mut self) {
            let now = self.now;
            for (_, claim, _) in self.running.extract_if(.., |(due, ..)| *due <= now) {
                let divided = Ended::Divided { failed: 1, left: self.rng.random_range(0..2) };
                let ended = [Ended::Ran, Ended::Ran, Ended::Ran, divided, Ended::Failed, Ended::OutOfMemory];
                self.batcher.finish(claim, ended[self.rng.random_range(0..6)], now);
            }
        }

        fn start(&mut self) -> Result<(), String> {
            while self.running.len() < self.lanes {
                let batch = match self.batcher.next(self.now) {
                    Next::Idle => {
                        must!(!self.batcher.has_next(self.now), "there is something to run");
                        return Ok(());
                    }
                    Next::Wait(until) => {
                        must!(until > self.now, "waits for the past");
                        must!(until < self.now + us(60_000.0), "waits for ages");
                        return Ok(());
                    }
                    Next::Run(batch) => batch,
                };
                must!(!batch.pieces.is_empty() || !batch.late.is_empty(), "a batch of nothing");
                for job in batch.late {
                    must!(self.jobs[job as usize].deadline.is_some(), "late without a deadline");
                    self.end(job)?;
                }
                if let Some(first) = batch.pieces.first() {
                    let first = self.jobs[first.job as usize].clone();
                    let rows: u32 = batch.pieces.iter().map(|piece| piece.rows).sum();
                    match first.grouping {
                        Grouping::Together { max_rows } => must!(rows <= max_rows, "{rows} rows in a batch"),
                        Grouping::Alone => must!(batch.pieces.len() == 1, "not alone"),
                        Grouping::Serial => {
                            let busy = |pieces: &[Piece<u64>]| {
                                pieces
                                    .iter()
                                    .any(|piece| self.jobs[piece.job as usize].grouping == Grouping::Serial)
                            };
                            must!(!self.running.iter().any(|(.., pieces)| busy(pieces)), "two at a time");
                        }
                    }
                    for piece in batch.pieces.iter() {
                        let job = &self.jobs[piece.job as usize];
                        must!(job.bucket == first.bucket, "two buckets in a batch");
                        must!(job.deadline.is_none_or(|deadline| deadline > self.now), "an expired job runs");
                        let Some(fate) = self.inside.get_mut(&piece.job) else {
                            return Err(format!("job {} runs after its end", piece.job));
                        };
                        must!(piece.first == fate.rows_run, "rows {} run out of order", piece.job);
                        fate.rows_run += piece.rows;
                        if fate.rows_run == job.rows {
                            self.inside.remove(&piece.job);
                        }
                    }
                }
                let takes = us(f64::from(self.rng.random_range(100..6000)));
                self.running.push((self.now + takes, batch.claim, batch.pieces.to_vec()));
            }
            // One may take more than there is room for, if nothing else takes anything.
            let largest = self.jobs.iter().map(|job| job.run_bytes).max().unwrap_or(0);
            let most = self.limits.bytes + self.limits.run_bytes.max(largest);
            must!(self.batcher.bytes() <= most, "more is held than may be");
            must!(self.inside.len() as u64 <= self.limits.rows, "more waits than may");
            Ok(())
        }
    }
}

mod traces {
    use super::*;
    use crate::curve::Curve;

    /// A service curve, in microseconds by rows.
    type Service = fn(u32) -> f64;

    const CURVES: [(&str, Service); 4] = [
        ("flat", |_| 4000.0),
        ("affine", |rows| 3000.0 + 200.0 * f64::from(rows)),
        ("linear", |rows| 500.0 * f64::from(rows)),
        ("step", |rows| 2500.0 * f64::from(rows.div_ceil(8))),
    ];

    const MAX_ROWS: u32 = 32;
    const SLO: Duration = Duration::from_millis(100);

    /// Jobs of one row each, by number.
    trait Policy {
        /// Whether it may wait.
        fn push(&mut self, job: usize, deadline: Instant, now: Instant) -> bool;
        fn next(&mut self, now: Instant) -> Asked;
        fn finish(&mut self, lane: usize, now: Instant);
    }

    enum Asked {
        Run(Vec<usize>),
        Wait(Instant),
        Idle,
    }

    /// One job in so many is of a tenant who asks little.
    const MODEST: usize = 16;

    struct Ours {
        batcher: Batcher<usize>,
        /// Jobs come in so many shapes, one after the other.
        shapes: usize,
        claims: VecDeque<crate::batcher::Claim>,
    }

    fn shaped(shape: usize) -> Bucket {
        Bucket { version: 0, free: vec![shape as u64], suspect: false }
    }

    impl Policy for Ours {
        fn push(&mut self, job: usize, deadline: Instant, now: Instant) -> bool {
            let ticket = Ticket {
                connection: 0,
                id: job as u64,
                bucket: shaped(job % self.shapes),
                grouping: Grouping::Together { max_rows: MAX_ROWS },
                lanes: 1,
                at_once: 1,
                rows: 1,
                bytes: 1,
                run_bytes: 1,
                deadline: Some(deadline),
                priority: Priority::Normal,
                criticality: Criticality::Normal,
                tenant: u64::from(job.is_multiple_of(MODEST)),
                payload: job,
            };
            self.batcher.push(ticket, &mut Vec::new(), now).is_ok()
        }

        fn next(&mut self, now: Instant) -> Asked {
            match self.batcher.next(now) {
                Next::Idle => Asked::Idle,
                Next::Wait(until) => Asked::Wait(until),
                Next::Run(batch) => {
                    self.claims.push_back(batch.claim);
                    Asked::Run(batch.pieces.iter().map(|piece| piece.job).collect())
                }
            }
        }

        fn finish(&mut self, _lane: usize, now: Instant) {
            let claim = self.claims.pop_front().expect("one lane");
            self.batcher.finish(claim, Ended::Ran, now);
        }
    }

    /// What other servers do: a batch closes when it is full or its oldest job has waited for the delay.
    struct Fixed {
        max_rows: usize,
        delay: Duration,
        waiting: VecDeque<(usize, Instant)>,
    }

    impl Policy for Fixed {
        fn push(&mut self, job: usize, _deadline: Instant, now: Instant) -> bool {
            self.waiting.push_back((job, now));
            true
        }

        fn next(&mut self, now: Instant) -> Asked {
            let Some((_, oldest)) = self.waiting.front() else { return Asked::Idle };
            let closes = *oldest + self.delay;
            if self.waiting.len() < self.max_rows && closes > now {
                return Asked::Wait(closes);
            }
            let rows = self.waiting.len().min(self.max_rows);
            Asked::Run(self.waiting.drain(..rows).map(|(job, _)| job).collect())
        }

        fn finish(&mut self, _lane: usize, _now: Instant) {}
    }

    #[derive(Debug)]
    struct Report {
        p99: Duration,
        mean: Duration,
        mean_batch: f64,
        /// Asked for, per second.
        offered: f64,
        /// Answered in time, per second.
        goodput: f64,
        /// Jobs that were run after their deadline.
        ran_expired: usize,
        /// Which part of its jobs the modest tenant has answered in time.
        modest: f64,
    }

    /// One lane, arrivals at a rate per second that may change over time.
    fn simulate(
        policy: &mut dyn Policy,
        service: Service,
        rate: impl Fn(f64) -> f64,
        slo: Duration,
    ) -> Report {
        const SECONDS: f64 = 30.0;
        /// The batcher learns during the first of them.
        const WARM: f64 = 5.0;
        let mut rng = StdRng::seed_from_u64(7);
        let origin = Instant::now();
        let end = origin + Duration::from_secs_f64(SECONDS);
        let mut now = origin;
        let mut arrivals: Vec<Instant> = Vec::new();
        let mut next_arrival = origin;
        let mut busy: Option<(Instant, Vec<usize>)> = None;
        let mut wake: Option<Instant> = None;
        let (mut latencies, mut batches, mut in_time, mut ran_expired) = (Vec::new(), Vec::new(), 0, 0);
        let mut modest_in_time = 0;
        let counts =
            |job: usize, arrivals: &[Instant]| arrivals[job] > origin + Duration::from_secs_f64(WARM);
        while now < end {
            if next_arrival <= now {
                arrivals.push(now);
                policy.push(arrivals.len() - 1, now + slo, now);
                let mean = Duration::from_secs_f64(1.0 / rate((now - origin).as_secs_f64()));
                next_arrival = now + exponential(&mut rng, mean);
            }
            if let Some((_, jobs)) = busy.take_if(|(due, _)| *due <= now) {
                policy.finish(0, now);
                for job in jobs.into_iter().filter(|job| counts(*job, &arrivals)) {
                    let latency = now - arrivals[job];
                    in_time += usize::from(latency <= slo);
                    modest_in_time += usize::from(latency <= slo && job.is_multiple_of(MODEST));
                    latencies.push(latency);
                }
            }
            if busy.is_none() {
                wake = None;
                match policy.next(now) {
                    Asked::Idle => {}
                    Asked::Wait(until) => wake = Some(until),
                    Asked::Run(jobs) => {
                        ran_expired += jobs.iter().filter(|job| arrivals[**job] + slo <= now).count();
                        if !jobs.is_empty() && counts(jobs[0], &arrivals) {
                            batches.push(jobs.len() as f64);
                        }
                        let noise = if rng.random_ratio(1, 50) { 1.3 } else { rng.random_range(0.97..1.03) };
                        let takes = if jobs.is_empty() { 0.0 } else { service(jobs.len() as u32) * noise };
                        busy = Some((now + us(takes.max(1.0)), jobs));
                    }
                }
            }
            let due = busy.as_ref().map(|(due, _)| *due);
            now =
                [Some(next_arrival), due, wake].into_iter().flatten().min().expect("arrivals go on").max(now);
        }
        let modest = (0..arrivals.len()).step_by(MODEST).filter(|job| counts(*job, &arrivals)).count();
        latencies.sort_unstable();
        if latencies.is_empty() {
            // The queue has grown so long that nobody who came after the first seconds was answered.
            latencies.push(Duration::MAX);
        }
        Report {
            p99: latencies[latencies.len() * 99 / 100],
            mean: latencies.iter().fold(Duration::ZERO, |sum, one| sum.saturating_add(*one))
                / latencies.len() as u32,
            mean_batch: batches.iter().sum::<f64>() / batches.len() as f64,
            offered: (0..arrivals.len()).filter(|job| counts(*job, &arrivals)).count() as f64
                / (SECONDS - WARM),
            goodput: in_time as f64 / (SECONDS - WARM),
            ran_expired,
            modest: modest_in_time as f64 / modest as f64,
        }
    }

    fn ours(service: Service, rate: impl Fn(f64) -> f64, slo: Duration) -> Report {
        ours_of(1, service, rate, slo)
    }

    fn ours_of(shapes: usize, service: Service, rate: impl Fn(f64) -> f64, slo: Duration) -> Report {
        let limits = Limits::halving(100_000, 200_000);
        let (batcher, claims) = (Batcher::new(limits, 1, Instant::now()), VecDeque::new());
        let mut policy = Ours { batcher, shapes, claims };
        for shape in 0..shapes {
            let mut curve = Curve::default();
            let sizes = (1..=MAX_ROWS).chain(1..=MAX_ROWS);
            sizes.for_each(|rows| curve.observe(rows, us(service(rows))));
            policy.batcher.seed(&shaped(shape), curve);
        }
        simulate(&mut policy, service, rate, slo)
    }

    fn fixed(max_rows: usize, delay: Duration, service: Service, rate: impl Fn(f64) -> f64) -> Report {
        simulate(&mut Fixed { max_rows, delay, waiting: VecDeque::new() }, service, rate, SLO)
    }

    /// Rows per second at the best batch size.
    fn capacity(service: Service) -> f64 {
        (1..=MAX_ROWS).map(|rows| f64::from(rows) / service(rows) * 1e6).fold(0.0, f64::max)
    }

    fn pairs() -> impl Iterator<Item = (usize, Duration)> {
        let delays = [0, 1000, 2000, 5000, 10_000, 20_000, 50_000];
        [1, 4, 8, 16, 32]
            .into_iter()
            .flat_map(move |rows| delays.map(|delay| (rows, Duration::from_micros(delay))))
    }

    #[test]
    fn at_seven_tenths_of_capacity_no_fixed_pair_is_better() {
        for (name, service) in CURVES {
            let rate = 0.7 * capacity(service);
            let ours = ours(service, |_| rate, SLO);
            assert!(ours.p99 <= SLO, "{name}: {ours:?}");
            // The best pair is the one whose slowest hundredth is the fastest.
            let best = pairs()
                .map(|(rows, delay)| fixed(rows, delay, service, |_| rate))
                .min_by_key(|pair| pair.p99);
            let best = best.expect("there are pairs");
            println!("{name}: ours {ours:?}, best pair {best:?}");
            // Who is refused or given up would make the rest look good.
            assert!(ours.goodput >= 0.99 * ours.offered, "{name}: {ours:?}");
            // Both draw their arrivals: the same rate is some hundredths of a part more for the one or the other.
            assert!(ours.mean_batch >= 0.99 * best.mean_batch, "{name}: {ours:?} against {best:?}");
            assert!(ours.p99 <= best.p99.mul_f64(1.1), "{name}: {ours:?} against {best:?}");
            assert!(ours.mean <= best.mean.mul_f64(1.1), "{name}: {ours:?} against {best:?}");
        }
    }

    #[test]
    fn at_saturation_it_does_what_the_best_fixed_pair_does() {
        for (name, service) in CURVES {
            // What is in time counts, so a pair that lets the queue grow without bound gets nothing for it: every
            // fixed pair is given exactly what it can do.
            let best = pairs()
                .map(|(rows, _)| f64::from(rows as u32) / service(rows as u32) * 1e6)
                .fold(0.0, f64::max);
            let ours = ours(service, |_| 1.2 * capacity(service), SLO);
            println!("{name}: ours {ours:?}, best pair {best:.0}/s");
            assert!(ours.goodput >= 0.97 * best, "{name}: {ours:?} against {best:.0}/s");
        }
    }

    /// A, B, A, B: in order of arrival every batch would be one row.
    #[test]
    fn two_shapes_in_turn_run_in_batches_as_large_as_one_shape_does() {
        for (name, service) in CURVES {
            let report = |shapes| ours_of(shapes, service, |_| 1.2 * capacity(service), SLO);
            let (one, two) = (report(1), report(2));
            println!("{name}: one {one:?}, two {two:?}");
            assert!(two.mean_batch >= 0.9 * one.mean_batch, "{name}: {two:?} against {one:?}");
            assert!(two.goodput >= 0.9 * one.goodput, "{name}: {two:?} against {one:?}");
        }
    }

    #[test]
    fn three_times_too_much_work_costs_at_most_a_twentieth_of_the_goodput() {
        for (name, service) in CURVES {
            let slo = Duration::from_millis(200);
            let ours = ours(service, |_| 3.0 * capacity(service), slo);
            println!("{name}: {ours:?} of {:.0}/s", capacity(service));
            assert_eq!(ours.ran_expired, 0, "{name}");
            assert!(
                ours.goodput >= 0.95 * capacity(service),
                "{name}: {ours:?} of {:.0}/s",
                capacity(service)
            );
        }
    }

    #[test]
    fn a_tenant_who_asks_for_less_than_its_share_hardly_notices_one_who_floods() {
        for (name, service) in CURVES {
            // A fifth of the capacity, beside three times as much as there is.
            let rate = 0.2 * MODEST as f64 * capacity(service);
            let ours = ours(service, |_| rate, Duration::from_millis(200));
            println!("{name}: {ours:?} of {:.0}/s", capacity(service));
            // Where batches are as large as they may be and take a while, 0.94: what comes at once is more than its share.
            assert!(ours.modest >= 0.93, "{name}: {ours:?}");
            assert!(ours.goodput >= 0.9 * capacity(service), "{name}: {ours:?}");
        }
    }

    #[test]
    fn bursts_and_steps_are_ridden_out() {
        for (name, service) in CURVES {
            let base = 0.4 * capacity(service);
            let bursts = ours(service, |at| if at % 1.0 < 0.1 { 3.0 * base } else { 0.8 * base }, SLO);
            let steps = ours(service, |at| if at < 15.0 { 0.5 * base } else { 2.2 * base }, SLO);
            println!("{name}: bursts {bursts:?}, steps {steps:?}");
            for report in [bursts, steps] {
                assert!(report.p99 <= SLO && report.ran_expired == 0, "{name}: {report:?}");
                assert!(report.goodput >= 0.98 * report.offered, "{name}: {report:?}");
            }
        }
    }
}
