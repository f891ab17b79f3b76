//! Requests that make every run fail that they are in, and whose callers bring no key by which they could be told: how a lane
//! divides their batches, and what becomes of the others.

use super::*;
use crate::batcher::Claim;

/// A batch on its lane. What has failed is divided as `lane.rs` does.
pub(super) struct Run {
    pub(super) claim: Claim,
    /// When what runs of it is back.
    pub(super) back: Instant,
    /// Those that run, and the parts that are to run after it, the first last.
    jobs: Vec<usize>,
    parts: Vec<Vec<usize>>,
    /// What has failed, the largest first.
    failed: Vec<Vec<usize>>,
    left: Vec<usize>,
    some_ran: bool,
}

impl Run {
    pub(super) fn new(claim: Claim, jobs: Vec<usize>, back: Instant) -> Self {
        Self { claim, back, jobs, parts: Vec::new(), failed: Vec::new(), left: Vec::new(), some_ran: false }
    }

    /// Those that run.
    pub(super) fn jobs(&self) -> &[usize] {
        &self.jobs
    }

    /// Whether nothing of it has run yet as a part of it.
    pub(super) fn is_whole(&self) -> bool {
        self.failed.is_empty()
    }

    /// What ran has failed.
    pub(super) fn fail(&mut self) {
        let jobs = std::mem::take(&mut self.jobs);
        if jobs.len() > 1 {
            let (first, second) = jobs.split_at(jobs.len().div_ceil(2));
            self.parts.extend([second.to_vec(), first.to_vec()]);
        }
        self.failed.push(jobs);
    }

    /// What ran has answers.
    pub(super) fn succeed(&mut self) -> Vec<usize> {
        self.some_ran = true;
        std::mem::take(&mut self.jobs)
    }

    /// The next part is to run, if any is left, without those that are late by now, which it gives.
    pub(super) fn go_on(&mut self, is_late: impl Fn(usize) -> bool) -> Vec<usize> {
        let before = self.left.len();
        while self.jobs.is_empty()
            && let Some(part) = self.parts.pop()
        {
            let (late, jobs) = part.into_iter().partition::<Vec<_>, _>(|job| is_late(*job));
            self.left.extend(late);
            self.jobs = jobs;
        }
        self.left[before..].to_vec()
    }

    pub(super) fn ended(self) -> (Claim, Ended) {
        if !self.some_ran {
            return (self.claim, Ended::Failed);
        }
        if self.failed.is_empty() {
            return (self.claim, Ended::Ran);
        }
        let failed = self.failed.iter().filter(|part| part.len() == 1).count() as u32;
        (self.claim, Ended::Divided { failed, left: self.left.len() as u32 })
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

const CURVES: [(&str, Service, u64); 4] =
    [("flat", flat, 200), ("affine", affine, 200), ("step", step, 200), ("quick", quick, 60)];

#[test]
fn who_has_time_for_a_divided_batch_is_let_in_only_if_it_is_answered_in_time_though_one_in_ten_is_poison() {
    for (name, service, budget) in CURVES {
        for load in [0.7, 1.5, 3.0] {
            let possible = possible(service, OFTEN);
            let rate = load * possible / (1.0 - OFTEN / 100.0);
            let tally = beside(OFTEN, Class { service, rate, budget, ..NORMAL });
            let most = possible.min(tally.per_second(tally.offered));
            let share = tally.per_second(tally.in_time) / most;
            let late = tally.late_share();
            println!("{name}, load {load}: {share:.2} of {most:.0}/s, late {late:.3}, {tally:?}");
            assert!(late <= 0.04, "{name}, load {load}: {tally:?}");
            assert!(share >= 0.85, "{name}, load {load}: {share:.2}, {tally:?}");
        }
    }
}

#[test]
fn beside_rare_poison_as_many_are_in_time_as_when_nobody_reckons_with_it() {
    // Of those in time then.
    for (poison, budget, load, before) in
        [(1.0, 60, 0.7, 1514.0), (1.0, 200, 0.7, 1532.0), (10.0, 60, 0.7, 81.0)]
    {
        let rate = load * possible(flat, 0.0);
        let tally = beside(poison, Class { service: flat, rate, budget, ..NORMAL });
        let in_time = tally.per_second(tally.in_time);
        println!("{poison} %, {budget} ms: {in_time:.0}/s, late {:.3}, {tally:?}", tally.late_share());
        assert!(in_time >= 0.95 * before, "{poison} %, {budget} ms: {in_time:.0}/s, {tally:?}");
    }
}

#[test]
fn of_those_who_come_at_once_few_are_refused_because_of_rare_poison() {
    // Of those in time when nobody reckons with it.
    for (poison, before) in [(0.1, 1.0), (1.0, 0.99), (3.0, 0.60)] {
        let classes = [Class { service: quick, rate: 0.0, budget: 200, ..NORMAL }];
        let mut world = World::new(&classes, Noise { poison, ..QUIET });
        for round in 0..30 {
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
        println!("{poison} %: {:.3}, {tally:?}", tally.share());
        assert!(tally.share() >= before - 0.03, "{poison} %: {:.3}, {tally:?}", tally.share());
    }
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
fn where_poison_ends_batches_are_back_in_the_next_second_but_one() {
    for poison in [10.0, 33.0, 60.0] {
        let class = Class { service: flat, rate: 0.7 * possible(flat, 0.0), budget: 200, ..NORMAL };
        let tally = &simulate(&[class], Noise { poison, until: 8.0, ..QUIET })[0];
        let seconds: Vec<f64> = (0..SECONDS).map(|second| tally.share_in(second..second + 1)).collect();
        println!("{poison} %: {seconds:.2?}");
        assert!(tally.share_in(9..SECONDS) >= 0.98, "{poison} %: {seconds:.2?}");
    }
}

#[test]
fn where_runs_fail_by_chance_batches_are_as_large_as_if_no_request_were_to_blame() {
    // Of those in time when nothing is learned of it; and where next to nobody comes for eight seconds, of those after.
    for (service, load, budget, failures, before) in [
        (affine as Service, 0.7, 60, 5.0, 0.99),
        (affine, 0.7, 200, 20.0, 0.96),
        (affine, 0.2, 200, 30.0, 0.97),
        (flat, 0.5, 200, 30.0, 0.86),
        (affine, 0.5, 200, 30.0, 0.98),
        (step, 0.5, 200, 30.0, 0.93),
    ] {
        for quiet in [(0.0, 1.0), (8.0, 50.0)] {
            let class = Class { service, rate: load * possible(service, 0.0), budget, ..NORMAL };
            let tally = &simulate(&[class], Noise { failures, quiet, ..QUIET })[0];
            let share = tally.share_in(quiet.0 as usize..SECONDS);
            println!("load {load}, {budget} ms, {failures} %, quiet {quiet:?}: {share:.3}, {tally:?}");
            assert!(
                share >= 0.95 * before,
                "load {load}, {budget} ms, {failures} %, quiet {quiet:?}: {tally:?}"
            );
        }
    }
}

#[test]
fn a_model_without_poison_has_its_answers_beside_one_that_has_it() {
    for (name, service, budget) in CURVES {
        for load in [0.5, 1.0, 2.0] {
            let sick = Class { service, rate: load * possible(service, OFTEN), budget, ..NORMAL };
            let well = Class { rate: 0.3 * possible(service, 0.0), model: 1, ..sick };
            let [sick, well] = &simulate(&[sick, well], Noise { poison: OFTEN, ..QUIET })[..] else {
                panic!("two classes")
            };
            println!("{name}, load {load}: late {:.3}, {sick:?} beside {well:?}", sick.late_share());
            assert!(well.share() >= 0.97, "{name}, load {load}: {well:?}");
            assert!(sick.late_share() <= 0.05, "{name}, load {load}: {sick:?}");
        }
    }
}
