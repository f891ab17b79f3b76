//! When another size than the best known is tried, and that it is found out.

use super::*;

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
    let round = |world: &mut World, round: u64| {
        world.push_plain(&(0..8).map(|caller| 8 * round + caller).collect::<Vec<_>>(), 0, 0);
        let mut largest = 0;
        loop {
            match world.step() {
                Step::Run(jobs) => {
                    largest = largest.max(jobs.len());
                    world.now += ms(50);
                    world.finish_all(Ended::Ran);
                }
                Step::Wait(time) => world.now += time,
                _ => return largest,
            }
        }
    };
    assert_eq!(round(&mut world, 0), 2, "in proportion it would gain nothing, but it is tried soon");
    (1..20).for_each(|number| assert!(round(&mut world, number) > 0));
    assert_eq!(round(&mut world, 20), 4, "as many as may run together");
}

#[test]
fn who_always_finds_many_waiting_finds_out_that_fewer_together_do_as_many_rows() {
    let mut world = World::new(1000, 10_000);
    let (mut pushed, mut ran) = (0, 0);
    let mut run = |_| {
        while pushed < ran + 64 {
            let ticket =
                Ticket { grouping: Grouping::Together { max_rows: 32 }, ..world.ticket(pushed, 0, 0) };
            assert!(world.push(ticket));
            pushed += 1;
        }
        let Step::Run(jobs) = world.step() else { panic!("many wait") };
        // From eight rows on a row takes as long however many run.
        world.now += ms(10 * jobs.len().max(8) as u64);
        world.finish_all(Ended::Ran);
        ran += jobs.len() as u64;
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
    let mut ask = |world: &mut World, many: u64| {
        world.push_plain(&(asked..asked + many).collect::<Vec<_>>(), 0, 0);
        asked += many;
        let mut largest = 0;
        loop {
            match world.step() {
                Step::Run(jobs) => {
                    largest = largest.max(jobs.len());
                    world.now += ms(25);
                    world.finish_all(Ended::Ran);
                }
                Step::Wait(time) => world.now += time,
                _ => return largest,
            }
        }
    };
    (0..60).for_each(|_| assert_eq!(ask(&mut world, 1), 1));
    (0..150).for_each(|_| assert!(ask(&mut world, 8) > 0));
    assert_eq!(ask(&mut world, 8), 4, "as many as may run together");
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
