//! When another size than the best known is tried, and that it is found out.

use super::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

impl World {
    /// Jobs that may run 32 together.
    fn push_many(&mut self, ids: std::ops::Range<u64>) {
        for id in ids {
            let grouping = Grouping::Together { max_rows: 32 };
            let ticket = Ticket { grouping, ..self.ticket(id, 0, 0) };
            assert!(self.push(ticket));
        }
    }

    /// Jobs of the largest batch while these run, each batch for so many milliseconds.
    fn largest_of(&mut self, ids: std::ops::Range<u64>, takes: u64) -> usize {
        self.push_plain(&ids.collect::<Vec<_>>(), 0, 0);
        let mut largest = 0;
        loop {
            match self.step() {
                Step::Run(jobs) => {
                    largest = largest.max(jobs.len());
                    self.now += ms(takes);
                    self.finish_all(Ended::Ran);
                }
                Step::Wait(time) => self.now += time,
                _ => return largest,
            }
        }
    }
}

#[test]
fn another_size_is_tried_once_in_a_while_even_if_nothing_is_learned_of_it() {
    let mut world = World::new(1000, 10_000);
    let bucket = Bucket { version: 0, free: vec![0], suspect: false };
    // Twos are as good as ones, and have not run for longer.
    for run in 0..32 {
        let rows = [2, 1][run % 2];
        world.batcher.profile(&bucket).learn(rows, ms(10 * u64::from(rows)));
    }
    world.push_plain(&(0..200).collect::<Vec<_>>(), 0, 0);
    let sizes = (0..66).map(|_| {
        let Step::Run(jobs) = world.step() else { panic!("there is work") };
        world.now += ms(10);
        world.finish_all(Ended::Failed);
        jobs.len()
    });
    assert_eq!(sizes.filter(|rows| *rows > 1).count(), 2, "of 66 runs, all of which failed");
}

#[test]
fn callers_who_come_eight_at_a_time_do_not_keep_it_from_finding_out_that_batches_pay() {
    let mut world = World::new(1000, 10_000);
    // Only one row was ever measured.
    world.learn(0, 0, &[(1, 50)]);
    let mut round = |round: u64| world.largest_of(8 * round..8 * round + 8, 50);
    assert_eq!(round(0), 2, "in proportion it would gain nothing, but it is tried soon");
    (1..20).for_each(|number| assert!(round(number) > 0));
    assert_eq!(round(20), 4, "as many as may run together");
}

#[test]
fn who_always_finds_many_waiting_finds_out_that_fewer_together_do_as_many_rows() {
    let mut world = World::new(1000, 10_000);
    let mut ran = 0;
    world.push_many(0..64);
    let mut run = |_| {
        let Step::Run(jobs) = world.step() else { panic!("many wait") };
        // From eight rows on a row takes as long however many run.
        world.now += ms(10 * jobs.len().max(8) as u64);
        world.finish_all(Ended::Ran);
        let rows = jobs.len() as u64;
        world.push_many(ran + 64..ran + 64 + rows);
        ran += rows;
        jobs.len()
    };
    let sizes: Vec<_> = (0..200).map(&mut run).collect();
    assert_eq!(sizes[..3], [32; 3], "nothing is known");
    let largest = sizes[100..].iter().filter(|size| **size > 16).count();
    assert!(largest <= 5, "{sizes:?}");
}

#[test]
fn what_was_learned_on_a_busy_machine_is_found_to_be_wrong_once_it_is_idle() {
    let mut world = World::new(1000, 10_000);
    // Loaded beside others, asked by lone callers when they were gone, and then by many.
    world.learn(0, 0, &[(1, 500), (2, 850)]);
    let mut asked = 0;
    let mut ask = |many: u64| {
        asked += many;
        world.largest_of(asked - many..asked, 25)
    };
    (0..60).for_each(|_| assert_eq!(ask(1), 1));
    (0..150).for_each(|_| assert!(ask(8) > 0));
    assert_eq!(ask(8), 4, "as many as may run together");
}

#[test]
fn what_was_too_slow_once_is_tried_again() {
    let mut world = World::new(100, 10_000);
    world.learn(0, 0, &[(1, 300), (4, 300)]);
    let hasty = |world: &World, id| Ticket { deadline: Some(world.now + ms(200)), ..world.ticket(id, 0, 0) };
    let ticket = hasty(&world, 1);
    assert!(!world.push(ticket));
    world.now += TRIED_WITHIN;
    let ticket = hasty(&world, 2);
    assert!(world.push(ticket));
    assert_eq!(world.step(), Step::Run(vec![2]));
}

#[test]
fn a_step_in_the_curve_is_not_stepped_over() {
    let mut world = World::new(100, 10_000);
    let mut ids = 0..;
    let mut push = |world: &mut World, count: usize| {
        let ids: Vec<u64> = ids.by_ref().take(count).collect();
        world.push_plain(&ids, 0, 0);
    };
    world.learn(0, 0, &[(1, 10), (2, 10), (3, 10), (4, 40)]);
    push(&mut world, 4);
    assert_eq!(world.step(), Step::Run(vec![0, 1, 2]));
    assert_eq!(world.step(), Step::Run(vec![3]));
}

/// Rows that were done, as a share of what the best size would have done in the time of so many runs of one row, while many always wait.
/// Each run is seen to take 1 to 1.8 times as long as it should, by chance; time is counted as it should be.
fn share_of_the_best(seed: u64, known: &[u32], runs: u32, takes: impl Fn(u32) -> f64) -> f64 {
    let mut dice = StdRng::seed_from_u64(seed);
    let mut took = |rows| {
        let micros = takes(rows) * (1.0 + 0.8 * dice.random::<f64>());
        Duration::from_nanos((1e3 * micros) as u64)
    };
    let mut curve = Curve::default();
    for rows in std::iter::repeat_n(known, 5).flatten() {
        curve.observe(*rows, took(*rows));
    }
    let mut world = World::new(1000, 10_000);
    world.batcher.profile(&Bucket { version: 0, free: vec![0], suspect: false }).seed(curve);
    let (mut ran, mut passed) = (0, 0.0);
    world.push_many(0..64);
    while passed < f64::from(runs) * takes(1) {
        let Step::Run(jobs) = world.step() else { panic!("many wait") };
        let rows = jobs.len() as u64;
        world.push_many(ran + 64..ran + 64 + rows);
        world.now += took(rows as u32);
        world.finish_all(Ended::Ran);
        passed += takes(rows as u32);
        ran += rows;
    }
    let best = (1..=32).map(|rows| f64::from(rows) / takes(rows)).fold(0.0, f64::max);
    ran as f64 / passed / best
}

#[test]
fn a_noisy_machine_does_not_make_slow_sizes_look_fast() {
    for seed in 0..20 {
        // Of the first two it cannot tell which is faster, and large ones are slow.
        let images = share_of_the_best(seed, &[1, 2], 400, |rows| {
            let rows = f64::from(rows);
            40e3 * rows * (1.0 + 0.045 * (rows - 1.0))
        });
        // From eight rows on all are about as good.
        let sentences = share_of_the_best(seed, &[1, 2, 4, 8, 16], 400, |rows| {
            let rows = f64::from(rows);
            9e3 + 2.6e3 * rows + 0.5e3 * (rows - 8.0).max(0.0)
        });
        assert!(images > 0.85 && sentences > 0.9, "seed {seed}: {images} and {sentences}");
    }
}

#[test]
fn beyond_sizes_that_are_slow_one_that_is_fast_is_found() {
    // Four rows take as long as eight, and as 32: of a step nobody has told.
    let share = share_of_the_best(0, &[1, 2], 12_000, |rows| match rows {
        1 => 4e3,
        2 => 5.6e3,
        _ => 20e3,
    });
    assert!(share > 0.5, "{share}");
}
