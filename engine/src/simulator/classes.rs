//! Classes of requests beside each other on two lanes, each of a model of its own: what each of them gets in time while runs are
//! now and then several times as slow, while there is too much to do for all, when many come at once, and beside requests that
//! make batches fail.

use super::*;
use crate::curve::Curve;
use poison::Run;

mod poison;

const LANES: usize = 2;
const MAX_ROWS: u32 = 32;
const SECONDS: usize = 20;

/// Milliseconds that so many rows take.
type Service = fn(u32) -> f64;

/// However many rows.
fn flat(_: u32) -> f64 {
    20.0
}

fn affine(rows: u32) -> f64 {
    8.0 + 0.5 * f64::from(rows)
}

fn linear(rows: u32) -> f64 {
    3.5 * f64::from(rows)
}

fn step(rows: u32) -> f64 {
    10.0 * f64::from(rows.div_ceil(8))
}

/// Single sizes are slow.
fn uneven(rows: u32) -> f64 {
    if rows == 5 || rows == 8 { 60.0 } else { 20.0 }
}

/// One row at a time, each of which takes long.
fn long(rows: u32) -> f64 {
    150.0 * f64::from(rows)
}

/// Requests of one row each that come independently of each other.
#[derive(Clone, Copy)]
struct Class {
    service: Service,
    /// Per second.
    rate: f64,
    /// Milliseconds.
    budget: u64,
    criticality: Criticality,
    /// Whose runs it may share: the number of the class whose model it asks.
    model: usize,
}

/// What becomes of runs by chance.
#[derive(Clone, Copy)]
struct Noise {
    /// So many runs of a hundred take so many times as long.
    outliers: f64,
    times: f64,
    /// Seconds in which something else has the cores: all runs take three times as long.
    busy: (f64, f64),
    /// Of the first class, so many requests of a hundred make every run fail that they are in, until so many seconds are over.
    poison: f64,
    until: f64,
    /// For so many seconds so many times fewer requests come.
    quiet: (f64, f64),
    /// So many runs of a hundred fail whoever is in them, and in these seconds all do.
    failures: f64,
    outage: (f64, f64),
}

const QUIET: Noise = Noise {
    outliers: 0.0,
    times: 1.0,
    busy: (0.0, 0.0),
    poison: 0.0,
    until: f64::INFINITY,
    quiet: (0.0, 1.0),
    failures: 0.0,
    outage: (0.0, 0.0),
};

#[derive(Clone, Copy, Default)]
struct Seconds([(usize, usize); SECONDS]);

/// What has become of the requests of a class, but for those that are poison.
#[derive(Clone, Debug, Default)]
struct Tally {
    offered: usize,
    in_time: usize,
    /// Told at once that they would be late.
    too_late: usize,
    hopeless: usize,
    /// Let in, and driven out by others.
    shed: usize,
    /// Let in, and given up when their turn came.
    given_up: usize,
    /// Let in, and late when it was to run again after its batch had failed.
    expired: usize,
    /// Answered when it was too late.
    late: usize,
    runs: usize,
    rows: usize,
    /// Of those who came in each second, how many were answered in time, and all.
    seconds: Seconds,
}

impl Tally {
    fn share(&self) -> f64 {
        self.in_time as f64 / self.offered.max(1) as f64
    }

    fn rows_per_run(&self) -> f64 {
        self.rows as f64 / self.runs.max(1) as f64
    }

    /// Of those who came in these seconds.
    fn share_in(&self, seconds: std::ops::Range<usize>) -> f64 {
        let sum = |sum: (usize, usize), one: &(usize, usize)| (sum.0 + one.0, sum.1 + one.1);
        let (in_time, offered) = self.seconds.0[seconds].iter().fold((0, 0), sum);
        in_time as f64 / offered.max(1) as f64
    }
}

impl std::fmt::Debug for Seconds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("..")
    }
}

#[derive(Clone, Copy)]
struct Job {
    class: usize,
    came: Instant,
    is_poison: bool,
}

struct World<'a> {
    classes: &'a [Class],
    noise: Noise,
    batcher: Batcher<usize>,
    rng: StdRng,
    start: Instant,
    now: Instant,
    /// Those who came before are not counted: it learns from them.
    counted_from: Instant,
    jobs: Vec<Job>,
    running: Vec<Run>,
    wake: Option<Instant>,
    tallies: Vec<Tally>,
}

impl<'a> World<'a> {
    fn new(classes: &'a [Class], noise: Noise) -> Self {
        let now = Instant::now();
        let mut batcher = Batcher::new(Limits::halving(100_000, 200_000), LANES, now);
        for (model, class) in classes.iter().enumerate() {
            let mut curve = Curve::default();
            for rows in [1, 2, 4, 8, 16, 32] {
                (0..5).for_each(|_| curve.observe(rows, us(1e3 * (class.service)(rows))));
            }
            batcher.seed(&bucket(model), curve);
        }
        Self {
            classes,
            noise,
            batcher,
            rng: StdRng::seed_from_u64(5),
            start: now,
            now,
            counted_from: now,
            jobs: Vec::new(),
            running: Vec::new(),
            wake: None,
            tallies: vec![Tally::default(); classes.len()],
        }
    }

    fn push(&mut self, class: usize) {
        let job = self.jobs.len();
        let Noise { poison, until, .. } = self.noise;
        let at = (self.now - self.start).as_secs_f64();
        let is_poison = poison > 0.0 && class == 0 && at < until && self.rng.random_bool(poison / 100.0);
        self.jobs.push(Job { class, came: self.now, is_poison });
        let Class { budget, criticality, model, .. } = self.classes[class];
        let ticket = Ticket {
            connection: 0,
            id: job as u64,
            bucket: bucket(model),
            grouping: Grouping::Together { max_rows: MAX_ROWS },
            lanes: 1,
            at_once: LANES,
            rows: 1,
            bytes: 1,
            run_bytes: 1,
            deadline: Some(self.now + Duration::from_millis(budget)),
            priority: Priority::Normal,
            criticality,
            tenant: 0,
            payload: job,
        };
        let mut shed = Vec::new();
        let refused = self.batcher.push(ticket, &mut shed, self.now).err();
        let second = (self.now - self.start).as_secs() as usize;
        self.note(job, |tally| {
            tally.offered += 1;
            tally.seconds.0[second].1 += 1;
            match refused {
                None => {}
                Some(Refused::Hopeless(_)) => tally.hopeless += 1,
                Some(_) => tally.too_late += 1,
            }
        });
        for job in shed {
            self.note(job, |tally| tally.shed += 1);
        }
    }

    fn note(&mut self, job: usize, what: impl FnOnce(&mut Tally)) {
        let Job { class, came, is_poison } = self.jobs[job];
        if !is_poison && came >= self.counted_from {
            what(&mut self.tallies[class]);
        }
    }

    /// Lets lanes take what there is.
    fn start(&mut self) {
        self.wake = None;
        while self.running.len() < LANES {
            let batch = match self.batcher.next(self.now) {
                Next::Run(batch) => batch,
                Next::Wait(until) => return self.wake = Some(until),
                Next::Idle => return,
            };
            for job in batch.late {
                self.note(job, |tally| tally.given_up += 1);
            }
            let jobs: Vec<usize> = batch.pieces.iter().map(|piece| piece.job).collect();
            if let Some(first) = jobs.first() {
                let tally = &mut self.tallies[self.jobs[*first].class];
                tally.runs += 1;
                tally.rows += jobs.len();
            }
            let back = self.now + self.takes(&jobs);
            self.running.push(Run::new(batch.claim, jobs, back));
        }
    }

    fn takes(&mut self, jobs: &[usize]) -> Duration {
        let Some(first) = jobs.first() else { return Duration::ZERO };
        let Class { service, .. } = self.classes[self.jobs[*first].class];
        us(1e3 * service(jobs.len() as u32) * self.slowness())
    }

    /// So many times as long as it should does a run take that begins now.
    fn slowness(&mut self) -> f64 {
        let Noise { outliers, times, busy, .. } = self.noise;
        let at = (self.now - self.start).as_secs_f64();
        let busy = if (busy.0..busy.1).contains(&at) { 3.0 } else { 1.0 };
        let is_outlier = self.rng.random_bool(outliers / 100.0);
        busy * if is_outlier { times } else { self.rng.random_range(0.97..1.03) }
    }

    fn finish(&mut self) {
        let back: Vec<Run> = self.running.extract_if(.., |run| run.back <= self.now).collect();
        for mut run in back {
            if self.fails(run.jobs()) {
                let until = run.jobs().iter().map(|job| self.due(*job)).max();
                let is_to_divide = run.is_whole() && run.jobs().len() > 1;
                let claim = run.claim.number();
                if is_to_divide {
                    self.batcher.divides(claim, until, self.now);
                }
                run.fail();
            } else {
                run.succeed().into_iter().for_each(|job| self.answer(job));
            }
            let late = run.go_on(|job| self.now > self.due(job));
            late.into_iter().for_each(|job| self.note(job, |tally| tally.expired += 1));
            if run.jobs().is_empty() {
                let (claim, ended) = run.ended();
                self.batcher.finish(claim, ended, self.now);
            } else {
                run.back = self.now + self.takes(run.jobs());
                self.running.push(run);
            }
        }
    }

    fn fails(&mut self, jobs: &[usize]) -> bool {
        let Noise { failures, outage, .. } = self.noise;
        let at = (self.now - self.start).as_secs_f64();
        jobs.iter().any(|job| self.jobs[*job].is_poison)
            || (outage.0..outage.1).contains(&at)
            || failures > 0.0 && self.rng.random_bool(failures / 100.0)
    }

    fn answer(&mut self, job: usize) {
        let second = (self.jobs[job].came - self.start).as_secs() as usize;
        let is_in_time = self.now <= self.due(job);
        self.note(job, |tally| {
            if is_in_time {
                tally.in_time += 1;
                tally.seconds.0[second].0 += 1;
            } else {
                tally.late += 1;
            }
        });
    }

    fn due(&self, job: usize) -> Instant {
        let Job { class, came, .. } = self.jobs[job];
        came + Duration::from_millis(self.classes[class].budget)
    }

    fn run(mut self) -> Vec<Tally> {
        let end = self.start + Duration::from_secs(SECONDS as u64);
        let mean = |class: &Class| Duration::from_secs_f64(1.0 / class.rate);
        let mut next: Vec<Instant> = Vec::new();
        for class in self.classes {
            next.push(self.start + exponential(&mut self.rng, mean(class)));
        }
        loop {
            for (class, next) in next.iter_mut().enumerate() {
                if *next <= self.now && *next < end {
                    self.push(class);
                    let is_quiet = (self.now - self.start).as_secs_f64() < self.noise.quiet.0;
                    let rests = if is_quiet { self.noise.quiet.1 } else { 1.0 };
                    *next = self.now + exponential(&mut self.rng, mean(&self.classes[class]).mul_f64(rests));
                }
            }
            self.finish();
            self.start();
            // Nobody comes after the end, and all get an answer.
            let ends = self.running.iter().map(|run| run.back);
            let comes = next.iter().copied().filter(|next| *next < end);
            let Some(soonest) = ends.chain(comes).chain(self.wake).min() else { return self.tallies };
            self.now = soonest.max(self.now);
        }
    }
}

fn bucket(model: usize) -> Bucket {
    Bucket { version: model as u32, free: Vec::new(), suspect: false }
}

fn simulate(classes: &[Class], noise: Noise) -> Vec<Tally> {
    World::new(classes, noise).run()
}

const NORMAL: Class =
    Class { service: flat, rate: 300.0, budget: 60, criticality: Criticality::Normal, model: 0 };

#[test]
fn runs_that_are_slow_once_in_a_while_make_nobody_refuse_those_who_would_be_in_time() {
    let of = |service, rate, budget| Class { service, rate, budget, ..NORMAL };
    let classes = [
        ("flat", of(flat, 300.0, 60)),
        ("flat", of(flat, 300.0, 80)),
        ("flat", of(flat, 300.0, 160)),
        ("affine", of(affine, 1000.0, 80)),
        ("linear", of(linear, 350.0, 60)),
        ("step", of(step, 800.0, 60)),
    ];
    for (name, class) in classes {
        let quiet = &simulate(&[class], QUIET)[0];
        assert!(quiet.share() >= 0.99, "{name}: {quiet:?}");
        for (outliers, times) in [(1.0, 3.0), (2.0, 3.0), (4.0, 3.0), (4.0, 2.0)] {
            let noisy = &simulate(&[class], Noise { outliers, times, ..QUIET })[0];
            let what = format!("{name}, {} ms, {outliers} % of runs {times} times: {noisy:?}", class.budget);
            println!("{:.3} {what}", noisy.share());
            // Whom such a run hits may be late.
            assert!(noisy.share() >= 0.99 - 2.0 * outliers / 100.0, "{what}");
            assert!(noisy.rows_per_run() >= 0.9 * quiet.rows_per_run(), "{what}");
            assert_eq!(noisy.hopeless, 0, "{what}");
        }
    }
}

#[test]
fn some_seconds_after_a_busy_time_all_is_as_before() {
    for budget in [60, 80, 160] {
        let noise = Noise { outliers: 1.0, times: 3.0, busy: (5.0, 7.0), ..QUIET };
        let tally = &simulate(&[Class { budget, ..NORMAL }], noise)[0];
        let seconds: Vec<f64> = (0..SECONDS).map(|second| tally.share_in(second..second + 1)).collect();
        println!("{budget} ms: {seconds:.2?}");
        assert!(
            tally.share_in(0..5) >= 0.95 && tally.share_in(12..SECONDS) >= 0.95,
            "{budget} ms: {seconds:.2?}"
        );
    }
}

/// Sizes that ran in it look slow beside those that did not, and nobody has time for them.
#[test]
fn a_busy_time_leaves_no_size_behind_that_never_runs_again() {
    let of = |service, rate, budget| Class { service, rate, budget, ..NORMAL };
    let classes = [
        ("flat", 2.0, of(flat, 300.0, 60)),
        ("flat", 3.0, of(flat, 960.0, 60)),
        ("flat", 3.0, of(flat, 2700.0, 80)),
        ("affine", 3.0, of(affine, 2200.0, 80)),
        ("step", 1.0, of(step, 960.0, 60)),
    ];
    for (name, lasts, class) in classes {
        let end = 5.0 + lasts;
        let noise = Noise { outliers: 1.0, times: 3.0, busy: (5.0, end), ..QUIET };
        let tally = &simulate(&[class], noise)[0];
        let seconds: Vec<f64> = (0..SECONDS).map(|second| tally.share_in(second..second + 1)).collect();
        let (before, after) = (tally.share_in(0..5), tally.share_in(end as usize + 4..SECONDS));
        let what = format!("{name}, {}/s, {} ms, {lasts} s: {seconds:.2?}", class.rate, class.budget);
        println!("{what}");
        assert!(before >= 0.95 && after >= 0.95 * before, "{what}");
    }
}

/// They are not what a busy time leaves behind: who is let in because they might be faster is late.
#[test]
fn sizes_that_are_slow_whenever_they_run_are_not_taken_to_be_faster() {
    let class = Class { service: uneven, rate: 640.0, budget: 60, ..NORMAL };
    for (outliers, times, most) in [(0.0, 1.0, 0.116), (5.0, 3.0, 0.178)] {
        let tally = &simulate(&[class], Noise { outliers, times, ..QUIET })[0];
        let late = (tally.late + tally.given_up) as f64 / tally.offered as f64;
        println!("{late:.3} {tally:?}");
        assert!(late <= most, "{outliers} % of runs {times} times: {late:.3} {tally:?}");
    }
}

#[test]
fn who_is_critical_is_answered_whatever_less_critical_ones_ask_for() {
    let critical =
        |service, rate, budget| Class { service, rate, budget, criticality: Criticality::Critical, model: 0 };
    let other = |service, rate, budget, model| Class {
        service,
        rate,
        budget,
        criticality: Criticality::Sheddable,
        model,
    };
    let cases = [
        ("flat beside linear", critical(flat, 30.0, 60), other(linear, 500.0, 60, 1)),
        ("flat beside linear", critical(flat, 30.0, 60), other(linear, 1500.0, 60, 1)),
        ("flat beside hasty linear", critical(flat, 30.0, 60), other(linear, 1500.0, 20, 1)),
        ("patient flat beside linear", critical(flat, 300.0, 500), other(linear, 1500.0, 60, 1)),
        ("linear beside flat", critical(linear, 100.0, 60), other(flat, 9600.0, 60, 1)),
        ("much linear beside flat", critical(linear, 400.0, 60), other(flat, 9600.0, 60, 1)),
        ("linear beside patient flat", critical(linear, 100.0, 60), other(flat, 9600.0, 300, 1)),
        ("patient linear beside flat", critical(linear, 400.0, 500), other(flat, 9600.0, 60, 1)),
        ("long beside linear", critical(long, 4.0, 700), other(linear, 1500.0, 60, 1)),
        ("linear beside long", critical(linear, 100.0, 400), other(long, 40.0, 700, 1)),
        ("one linear model", critical(linear, 100.0, 60), other(linear, 1500.0, 60, 0)),
        ("one flat model", critical(flat, 500.0, 60), other(flat, 9600.0, 60, 0)),
        ("one affine model", critical(affine, 500.0, 100), other(affine, 9000.0, 100, 0)),
    ];
    for noise in [QUIET, Noise { outliers: 2.0, times: 3.0, ..QUIET }] {
        for (name, critical, other) in cases {
            let alone = simulate(&[critical], noise)[0].share();
            let [beside, others] = &simulate(&[critical, other], noise)[..] else { panic!("two classes") };
            println!("{:.3} of {alone:.3} {name}: {beside:?} beside {others:?}", beside.share());
            assert!(beside.share() >= 0.95 * alone, "{name}: {beside:?}, alone {alone}");
            assert!(others.in_time > 0, "{name}: {others:?}");
        }
    }
}

#[test]
fn who_takes_long_and_has_time_does_not_starve_behind_the_hasty_nor_the_other_way_round() {
    let class =
        |service, rate, budget, criticality, model| Class { service, rate, budget, criticality, model };
    let patient = |rate| class(long, rate, 700, Criticality::Normal, 0);
    let quick = class(linear, 100.0, 60, Criticality::Normal, 0);
    // What part of it is answered in time.
    let cases = [
        (0.9, patient(2.0), class(linear, 500.0, 60, Criticality::Sheddable, 1)),
        (0.9, patient(2.0), class(linear, 500.0, 60, Criticality::Normal, 1)),
        (0.85, patient(3.0), class(linear, 700.0, 700, Criticality::Sheddable, 1)),
        (0.85, patient(3.0), class(linear, 700.0, 700, Criticality::Normal, 1)),
        (0.8, patient(3.0), class(linear, 700.0, 60, Criticality::Normal, 1)),
        (0.7, patient(3.0), class(flat, 5000.0, 60, Criticality::Normal, 1)),
        (0.9, quick, class(flat, 9600.0, 60, Criticality::Normal, 1)),
        (0.8, quick, class(flat, 9600.0, 100, Criticality::Normal, 1)),
    ];
    for noise in [QUIET, Noise { outliers: 2.0, times: 3.0, ..QUIET }] {
        for (least, one, other) in cases {
            let [beside, others] = &simulate(&[one, other], noise)[..] else { panic!("two classes") };
            let what = format!(
                "{} ms beside {} ms {:?}: {beside:?} beside {others:?}",
                one.budget, other.budget, other.criticality
            );
            println!("{:.3} {what}", beside.share());
            assert!(beside.share() >= least, "{what}");
        }
    }
}

#[test]
fn of_those_who_come_at_once_after_a_rest_no_more_are_let_in_than_can_be_in_time() {
    for (service, budget) in [(linear as Service, 100), (affine, 60), (long, 700)] {
        let classes = [Class { service, budget, ..NORMAL }];
        let mut world = World::new(&classes, QUIET);
        for many in [1, 40, 300] {
            world.now += Duration::from_millis(1500);
            world.tallies[0] = Tally::default();
            (0..many).for_each(|_| world.push(0));
            world.start();
            while let Some(due) = world.running.iter().map(|run| run.back).min() {
                world.now = due;
                world.finish();
                world.start();
            }
        }
        let tally = &world.tallies[0];
        println!("{budget} ms: {tally:?}");
        assert!(tally.in_time >= 4 && tally.late + tally.given_up <= 15, "{budget} ms: {tally:?}");
    }
}
