//! Requests that make every run fail that they are in, and whose callers bring no key by which they could be told: how a lane
//! divides their batches, and what becomes of the others.

use super::*;
use crate::batcher::Claim;

/// A batch on its lane. What has failed is divided as `lane.rs` does.
pub(super) struct Run {
    pub(super) claim: Claim,
    /// When what runs of it is back.
    pub(super) back: Instant,
    all: usize,
    part: Part,
    /// What is to run after it, the first last.
    parts: Vec<Part>,
    /// What has failed and was divided, and who of it has left or failed alone.
    divided: Vec<Vec<usize>>,
    left: Vec<usize>,
    failed: Vec<usize>,
    blames_requests: bool,
    some_ran: bool,
}

#[derive(Default)]
struct Part {
    jobs: Vec<usize>,
    /// If it runs, what has failed is in the next.
    is_first_half: bool,
}

impl Run {
    pub(super) fn new(claim: Claim, jobs: Vec<usize>, back: Instant) -> Self {
        let (all, part) = (jobs.len(), Part { jobs, is_first_half: false });
        Self {
            claim,
            back,
            all,
            part,
            parts: Vec::new(),
            divided: Vec::new(),
            left: Vec::new(),
            failed: Vec::new(),
            blames_requests: false,
            some_ran: false,
        }
    }

    /// Those that run.
    pub(super) fn jobs(&self) -> &[usize] {
        &self.part.jobs
    }

    /// Whether nothing of it has run yet as a part of it.
    pub(super) fn is_whole(&self) -> bool {
        self.divided.is_empty()
    }

    /// What ran has failed; whether requests are known to do so.
    pub(super) fn fail(&mut self, blames_requests: bool) {
        self.blames_requests |= blames_requests;
        let Part { jobs, .. } = std::mem::take(&mut self.part);
        match jobs[..] {
            [job] => self.failed.push(job),
            _ => self.divide(&jobs),
        }
    }

    /// What ran has answers.
    pub(super) fn succeed(&mut self) -> Vec<usize> {
        let Part { jobs, is_first_half } = std::mem::take(&mut self.part);
        self.some_ran = true;
        if self.blames_requests
            && is_first_half
            && let Some(next) = self.parts.pop_if(|next| next.jobs.len() > 1)
        {
            self.divide(&next.jobs);
        }
        jobs
    }

    /// The next part is to run, if any is left, without those that are late by now, which it gives.
    pub(super) fn go_on(&mut self, is_late: impl Fn(usize) -> bool) -> Vec<usize> {
        let mut all_late = Vec::new();
        while self.part.jobs.is_empty()
            && let Some(Part { jobs, is_first_half }) = self.parts.pop()
        {
            let (late, jobs): (Vec<_>, Vec<_>) = jobs.into_iter().partition(|job| is_late(*job));
            self.left.extend(&late);
            self.part = Part { jobs, is_first_half: is_first_half && late.is_empty() };
            all_late.extend(late);
        }
        all_late
    }

    pub(super) fn ended(&self) -> Ended {
        match self.failed.len() {
            0 if self.divided.is_empty() => Ended::Ran,
            failed if failed == self.all && failed > 1 => Ended::Failed,
            failed => {
                let ran = |jobs: &Vec<usize>| {
                    jobs.iter().all(|job| !self.failed.contains(job) && !self.left.contains(job))
                };
                let acquitted = self.divided.iter().any(ran);
                let failed = failed.max(self.left.len().min(1)) as u32;
                Ended::Divided { failed, some_ran: self.some_ran, acquitted }
            }
        }
    }

    fn divide(&mut self, jobs: &[usize]) {
        let (first, second) = jobs.split_at(jobs.len().div_ceil(2));
        self.parts.push(Part { jobs: second.to_vec(), is_first_half: false });
        self.parts.push(Part { jobs: first.to_vec(), is_first_half: true });
        self.divided.push(jobs.to_vec());
    }
}

fn quick(_: u32) -> f64 {
    4.0
}

/// Good requests that can be answered in a second, all of them, in batches of the best size.
fn possible(service: Service, poison: f64) -> f64 {
    let good = 1.0 - poison / 100.0;
    let sizes = (0..=5).map(|power| 1 << power);
    sizes
        .map(|rows| LANES as f64 * 1e3 * good * f64::from(rows) / divided(service, good, rows))
        .fold(0.0, f64::max)
}

/// What a batch takes on the average if all parts of what fails run again.
fn divided(service: Service, good: f64, rows: u32) -> f64 {
    let half = rows / 2;
    let again = match half {
        0 => 0.0,
        half => 2.0 * (divided(service, good, half) - good.powi(rows as i32) * service(half)),
    };
    service(rows) + again
}

/// From two seconds after the first request on.
fn beside(poison: f64, class: Class) -> Tally {
    let classes = [class];
    let mut world = World::new(&classes, Noise { poison, ..QUIET });
    world.counted_from += Duration::from_secs(2);
    world.run().remove(0)
}

impl Tally {
    /// Which part of those who were let in were late.
    fn late_share(&self) -> f64 {
        let late = self.late + self.given_up + self.expired;
        late as f64 / (self.in_time + late).max(1) as f64
    }

    fn per_second(&self, requests: usize) -> f64 {
        requests as f64 / (SECONDS - 2) as f64
    }
}

const OFTEN: f64 = 10.0;

#[test]
fn who_has_time_for_a_divided_batch_is_let_in_only_if_it_is_answered_in_time_though_one_in_ten_is_poison() {
    for (name, service, budget, load) in [
        ("flat", flat as Service, 200, 0.7),
        ("flat", flat, 200, 2.0),
        ("flat", flat, 200, 15.0),
        ("quick", quick, 60, 2.0),
        ("affine", affine, 200, 2.0),
        ("linear", linear, 60, 1.0),
        ("linear", linear, 200, 2.0),
    ] {
        let possible = possible(service, OFTEN);
        let rate = load * possible / (1.0 - OFTEN / 100.0);
        let tally = beside(OFTEN, Class { service, rate, budget, ..NORMAL });
        let most = possible.min(tally.per_second(tally.offered));
        let share = tally.per_second(tally.in_time) / most;
        let late = tally.late_share();
        println!("{name} {budget} ms, load {load}: {share:.2} of {most:.0}/s, late {late:.3}, {tally:?}");
        assert!(late <= 0.02, "{name} {budget} ms, load {load}: {tally:?}");
        assert!(share >= 0.85, "{name} {budget} ms, load {load}: {tally:?}");
    }
}

#[test]
fn who_has_no_time_for_a_divided_batch_takes_the_chance_that_it_runs_as_a_whole() {
    // Of those in time when no batch was expected to be divided.
    for (poison, budget, load, before) in
        [(1.0, 60, 0.7, 1514.0), (1.0, 200, 0.7, 1532.0), (10.0, 60, 0.7, 81.0)]
    {
        let rate = load * possible(flat, 0.0);
        let tally = beside(poison, Class { service: flat, rate, budget, ..NORMAL });
        let in_time = tally.per_second(tally.in_time);
        let late = tally.late_share();
        println!("{poison} %, {budget} ms, load {load}: {in_time:.0}/s, late {late:.3}, {tally:?}");
        assert!(in_time >= 0.95 * before, "{poison} %, {budget} ms, load {load}: {in_time:.0}/s, {tally:?}");
    }
}

#[test]
fn of_those_who_come_at_once_few_are_refused_because_one_in_a_thousand_is_poison() {
    let class = Class { service: quick, rate: 0.0, budget: 200, ..NORMAL };
    let classes = [class];
    let mut world = World::new(&classes, Noise { poison: 0.1, ..QUIET });
    for round in 0..30 {
        // All are in time if no batch is divided, in a third of it.
        (0..600).for_each(|_| world.push(0));
        world.start();
        while let Some(due) = world.running.iter().map(|run| run.back).min() {
            world.now = due;
            world.finish();
            world.start();
        }
        world.now = world.now.max(world.start + Duration::from_millis(500 * (round + 1)));
    }
    let tally = &world.tallies[0];
    println!("{:.3}: {tally:?}", tally.share());
    assert!(tally.share() >= 0.95, "if each batch before them were expected to be divided, half: {tally:?}");
}

#[test]
fn a_model_that_has_failed_for_some_seconds_has_its_batches_back_in_the_next_one() {
    for budget in [60, 200] {
        let class = Class { service: flat, rate: 0.7 * possible(flat, 0.0), budget, ..NORMAL };
        let noise = Noise { outage: (5.0, 8.0), ..QUIET };
        let tally = &simulate(&[class], noise)[0];
        let seconds: Vec<f64> = (0..SECONDS).map(|second| tally.share_in(second..second + 1)).collect();
        println!("{budget} ms: {seconds:.2?}");
        assert!(seconds[5..8].iter().all(|share| *share < 0.2), "{budget} ms: {seconds:.2?}");
        assert!(tally.share_in(9..SECONDS) >= 0.98, "{budget} ms: {seconds:.2?}");
    }
}

#[test]
fn where_runs_fail_by_chance_batches_are_as_large_as_if_no_request_were_to_blame() {
    let class =
        |load, budget| Class { service: affine, rate: load * possible(affine, 0.0), budget, ..NORMAL };
    // Of those in time when nothing was learned of it.
    for (load, budget, failures, before) in
        [(0.7, 60, 5.0, 0.99), (0.7, 200, 20.0, 0.96), (0.2, 200, 50.0, 0.92)]
    {
        let tally = &simulate(&[class(load, budget)], Noise { failures, ..QUIET })[0];
        println!("load {load}, {budget} ms, {failures} %: {:.3}, {tally:?}", tally.share());
        assert!(tally.share() >= 0.95 * before, "load {load}, {budget} ms, {failures} %: {tally:?}");
    }
}
