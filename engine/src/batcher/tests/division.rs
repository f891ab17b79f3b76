//! Batches that fail and are divided, and what those who come then are told.

use super::*;

/// One of four requests fails in each of so many batches, which take 10 ms whatever their size.
fn world_with_poison(batches: u64) -> World {
    world_with_some_poison(batches, 1)
}

/// The same in one of so many of them.
fn world_with_some_poison(batches: u64, one_of: u64) -> World {
    let mut world = World::new(100, 10_000);
    world.learn(0, 0, &[(1, 10), (2, 10), (4, 10)]);
    for batch in 0..batches {
        let first = 1000 + 4 * batch;
        world.push_plain(&[first, first + 1, first + 2, first + 3], 0, 0);
        while let Step::Run(_) = world.step() {
            world.now += ms(10);
            world.finish_all(if batch % one_of == 0 { ONE_FAILED } else { Ended::Ran });
        }
    }
    world
}

const ONE_FAILED: Ended = Ended::Divided { failed: 1, left: 0 };

#[test]
fn where_requests_often_make_batches_fail_two_run_together_until_a_while_later() {
    let run = |world: &mut World| {
        world.push_plain(&[1, 2, 3, 4], 0, 0);
        let step = world.step();
        world.batcher.cancel_connection(1);
        step
    };
    assert_eq!(run(&mut world_with_poison(0)), Step::Run(vec![1, 2, 3, 4]));
    let mut world = world_with_poison(100);
    assert_eq!(run(&mut world), Step::Run(vec![1, 2]));
    world.now += Duration::from_secs(24 * 3600);
    assert_eq!(run(&mut world), Step::Run(vec![1, 2, 3, 4]), "a day later");
}

#[test]
fn what_says_nothing_about_requests_makes_no_smaller_batches() {
    for ended in [Ended::Failed, Ended::Divided { failed: 0, left: 0 }] {
        let mut world = world_with_poison(0);
        for batch in 0..100 {
            world.push_plain(&[4 * batch, 4 * batch + 1, 4 * batch + 2, 4 * batch + 3], 0, 0);
            assert!(matches!(world.step(), Step::Run(jobs) if jobs.len() == 4), "{ended:?}");
            world.now += ms(10);
            world.finish_all(ended);
        }
    }
    // Who is alone makes nobody else fail.
    let mut world = world_with_poison(0);
    for id in 1000..1100 {
        world.push_plain(&[id], 0, 0);
        assert_eq!(world.step(), Step::Run(vec![id]));
        world.finish_all(Ended::Failed);
        world.now += ms(1000);
    }
    world.push_plain(&[1, 2, 3, 4], 0, 0);
    assert_eq!(world.step(), Step::Run(vec![1, 2, 3, 4]));
}

#[test]
fn a_request_of_many_rows_runs_in_one_piece_and_is_one_of_two_though_requests_fail() {
    let mut world = world_with_poison(100);
    let large = |world: &World, id, rows| Ticket { rows, ..world.ticket(id, 0, 0) };
    for (id, rows) in [(1, 3), (2, 1), (3, 4)] {
        let ticket = large(&world, id, rows);
        assert!(world.push(ticket));
    }
    assert_eq!([world.step(), world.step()], [vec![1, 2], vec![3]].map(Step::Run));
}

#[test]
fn one_of_few_rows_behind_those_of_many_waits_for_as_many_runs_as_they_need() {
    let let_in = |batches, due| {
        let mut world = world_with_poison(batches);
        world.push_plain(&[900, 901], 0, 0);
        assert!(matches!(world.step(), Step::Run(_)));
        for id in 10..15 {
            let ticket = Ticket { rows: 4, deadline: Some(world.now + ms(300)), ..world.ticket(id, 0, 0) };
            assert!(world.push(ticket));
        }
        let deadline = Some(world.now + ms(due));
        let ticket = Ticket { deadline, priority: Priority::Low, ..world.ticket(1, 0, 0) };
        world.push(ticket)
    };
    // Six runs, and a seventh of its own; each is of one request, which nobody divides.
    assert_eq!([0, 100].map(|batches| let_in(batches, 90)), [true, true]);
    assert_eq!([0, 100].map(|batches| let_in(batches, 50)), [false, false]);
}

#[test]
fn who_would_wait_for_a_batch_that_may_be_divided_is_refused_if_there_is_no_time_for_that() {
    // How many of twelve are let in that have so much time each and come while a batch runs.
    let let_in = |batches, due| {
        let mut world = world_with_poison(batches);
        world.push_plain(&[104, 105], 0, 0);
        assert!(matches!(world.step(), Step::Run(_)));
        let deadline = Some(world.now + ms(due));
        let tickets: Vec<_> = (0..12).map(|id| Ticket { deadline, ..world.ticket(id, 0, 0) }).collect();
        tickets.into_iter().filter_map(|ticket| world.push(ticket).then_some(())).count()
    };
    // Two take 10 ms, and 30 if they are divided.
    assert_eq!(let_in(0, 70), 12);
    assert_eq!([let_in(100, 70), let_in(100, 100)], [4, 6]);
    assert_eq!(let_in(100, 39), 4, "who has hardly more than that takes the chance that none is");
}

#[test]
fn nobody_has_to_go_because_those_whom_another_runs_with_fail() {
    let mut world = world_with_poison(100);
    world.learn(3, 0, &[(1, 10), (2, 10), (4, 10)]);
    world.push_plain(&[104, 105], 0, 0);
    assert!(matches!(world.step(), Step::Run(_)));
    let due = |world: &World, id, version| Ticket {
        deadline: Some(world.now + ms(55)),
        ..world.ticket(id, version, 0)
    };
    for id in 200..204 {
        let ticket = due(&world, id, 3);
        assert!(world.push(ticket));
    }
    let ticket = due(&world, 1, 0);
    world.push(ticket);
    assert!(world.shed.is_empty());
}

#[test]
fn what_dividing_adds_to_a_forecast_is_no_more_than_the_forecast() {
    let mut added = 0;
    for (at_once, waiting) in (1..5).flat_map(|lanes| [1, 4, 9, 17, 23].map(|waiting| (lanes, waiting))) {
        for (others, due) in
            [5, 15, 63].into_iter().flat_map(|others| [60, 130, 400].map(|due| (others, due)))
        {
            let mut world = world_with_some_poison(100, 3);
            world.batcher.lanes = at_once;
            world.learn(3, 0, &[(1, others), (2, others), (4, others)]);
            (0..at_once as u64).for_each(|id| {
                world.push_plain(&[500 + id], 3, 0);
                assert!(matches!(world.step(), Step::Run(_)));
            });
            let ids: Vec<_> = (0..waiting).collect();
            world.push_plain(&ids, 0, 0);
            let deadline = Some(world.now + ms(due));
            let ticket = Ticket { deadline, at_once, priority: Priority::Low, ..world.ticket(900, 0, 0) };
            let place = world.batcher.place(&ticket, ms(5000), world.now); // behind all of them
            let forecast =
                world.batcher.forecast(&ticket, place, &[], world.now).expect("all of it is known");
            let Forecast { answered, longer, .. } = forecast;
            assert!(
                longer <= answered,
                "{forecast:?}, {at_once} lanes, {waiting} wait, {others} and {due} ms"
            );
            added += u32::from(!longer.is_zero());
        }
    }
    assert!(added > 50, "{added}");
}

#[test]
fn the_parts_of_a_batch_that_is_divided_stand_before_those_who_come_until_nobody_waits_for_them() {
    let let_in = |until: Option<u64>, due| {
        let mut world = world_with_poison(100);
        world.push_plain(&[104, 105], 0, 0);
        assert!(matches!(world.step(), Step::Run(_)));
        world.now += ms(10);
        let until = until.map(|until| world.now + ms(until));
        world.batcher.divides(world.claims[0].number(), until, world.now);
        let ticket = Ticket { deadline: Some(world.now + ms(due)), ..world.ticket(0, 0, 0) };
        world.push(ticket)
    };
    // Its parts take 20 ms, and its own run 10.
    assert_eq!([let_in(None, 25), let_in(None, 40)], [false, true]);
    assert_eq!([let_in(Some(5), 12), let_in(Some(5), 25)], [false, true]);
}
