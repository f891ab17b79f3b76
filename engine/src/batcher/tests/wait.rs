//! Who is let in and who is refused, by the wait that is expected.

use super::*;

#[test]
fn a_job_that_would_be_late_is_refused_at_once_with_its_wait() {
    let mut world = World::new(100, 10_000);
    world.learn(0, 0, &[(1, 10), (4, 20)]);
    for id in 0..8 {
        world.push_due(id, 0, ms(500));
    }
    // Two batches of 4 stand before it; alone it takes 10 ms, 15 when something goes wrong.
    let late = Ticket { deadline: Some(world.now + ms(50)), ..world.ticket(50, 0, 0) };
    assert!(world.push(late), "a tight deadline goes first");
    let late = Ticket { deadline: Some(world.now + ms(501)), ..world.ticket(51, 0, 0) };
    assert!(world.push(late));
    let late = Ticket { deadline: Some(world.now + ms(9)), ..world.ticket(52, 0, 0) };
    let refused = world.batcher.push(late, &mut world.shed, world.now);
    assert_eq!(
        refused,
        Err(Refused::Hopeless(52)),
        "10 ms of work do not fit into 9, and nothing stands before it"
    );
    assert!(matches!(world.step(), Step::Run(_)));
    let late = Ticket { deadline: Some(world.now + ms(16)), ..world.ticket(53, 0, 0) };
    let Err(Refused::TooLate { job: 53, wait }) = world.batcher.push(late, &mut world.shed, world.now) else {
        panic!("it would fit, if nothing ran")
    };
    assert!(wait >= ms(10), "{wait:?}");
}

#[test]
fn while_nothing_comes_back_nobody_is_let_in_who_would_wait_for_it_in_vain() {
    let mut world = World::new(100, 10_000);
    world.learn(0, 0, &[(1, 10), (4, 20)]);
    world.push_plain(&[1], 0, 0);
    assert_eq!(world.step(), Step::Run(vec![1]));
    let with = |world: &World, id: u64, version: u32, due: Duration| Ticket {
        deadline: Some(world.now + due),
        ..world.ticket(id, version, 0)
    };
    world.now += ms(510);
    let patient = with(&world, 2, 0, ms(550));
    assert!(world.push(patient), "it is late by half a second, and may take as long again");
    // Of whatever model, known or not: there is one lane.
    for (id, version) in [(3, 0), (4, 1)] {
        let refused = world.batcher.push(with(&world, id, version, ms(499)), &mut world.shed, world.now);
        assert_eq!(refused, Err(Refused::TooLate { job: id, wait: ms(500) }));
    }
    assert!(world.shed.is_empty(), "nobody's going would help");
    world.finish_all(Ended::Failed);
    for id in [5, 6] {
        let ticket = with(&world, id, id as u32 - 5, ms(499));
        assert!(world.push(ticket), "it is back");
    }
}

#[test]
fn who_is_refused_though_a_run_would_fit_is_told_to_come_again() {
    let mut world = World::new(100, 10_000);
    world.learn(0, 0, &[(1, 20), (4, 20)]);
    world.push_plain(&[1, 2, 3, 4], 0, 0);
    assert_eq!(world.step(), Step::Run(vec![1, 2, 3, 4]));
    world.now += ms(18);
    let due = |world: &World, due| Ticket { deadline: Some(world.now + ms(due)), ..world.ticket(9, 0, 0) };
    let refused = world.batcher.push(due(&world, 28), &mut world.shed, world.now);
    let Err(Refused::TooLate { job: 9, wait }) = refused else { panic!("{refused:?}") };
    assert_eq!((wait.as_secs_f64() * 1e3).round(), 4.0, "2 ms of a run, and one of 30 ms would be late by 4");
    let refused = world.batcher.push(due(&world, 19), &mut world.shed, world.now);
    assert_eq!(refused, Err(Refused::Hopeless(9)), "it takes 20 ms whenever it comes");
}

#[test]
fn what_a_run_takes_once_in_a_while_is_not_asked_of_those_who_wait_for_a_lane() {
    let mut world = World::new(100, 10_000);
    world.learn(0, 0, &[(1, 20), (4, 20)]);
    let bucket = Bucket { version: 0, free: vec![0], suspect: false };
    for run in 0..256 {
        let took = if run % 32 == 0 { 60 } else { 20 };
        world.batcher.profile(&bucket).learn(1, ms(took));
    }
    world.push_plain(&[1], 0, 0);
    assert_eq!(world.step(), Step::Run(vec![1]));
    let due =
        |world: &World, id, due| Ticket { deadline: Some(world.now + ms(due)), ..world.ticket(id, 0, 0) };
    let ticket = due(&world, 2, 51);
    assert!(world.push(ticket), "20 ms of a run, and half as long again for its own");
    let ticket = due(&world, 3, 49);
    assert!(!world.push(ticket));
}

#[test]
fn a_run_with_the_share_of_several_lanes_is_as_many_that_do_not_come_back() {
    let mut world = World::new(100, 10_000);
    world.batcher = Batcher::new(world.batcher.limits, 4, world.now);
    world.learn(0, 0, &[(1, 10)]);
    let wide = Ticket { lanes: 3, ..world.ticket(1, 0, 0) };
    assert!(world.push(wide));
    assert_eq!(world.step(), Step::Run(vec![1]));
    world.now += ms(510);
    let due = |world: &World, id: u64, lanes: usize| Ticket {
        deadline: Some(world.now + ms(499)),
        lanes,
        ..world.ticket(id, 3, 0)
    };
    let narrow = due(&world, 2, 1);
    assert!(world.push(narrow), "one lane's share is free");
    let refused = world.batcher.push(due(&world, 3, 2), &mut world.shed, world.now);
    assert_eq!(refused, Err(Refused::TooLate { job: 3, wait: ms(500) }));
}

#[test]
fn nobody_waits_for_a_version_that_leaves_a_lane_to_others() {
    let mut world = World::new(1000, 100_000);
    world.batcher = Batcher::new(world.batcher.limits, 2, world.now);
    world.learn(0, 0, &[(1, 10)]);
    // One run at a time, of whatever shape.
    for shape in [0, 7] {
        world.learn(2, shape, &[(1, 400)]);
    }
    world.push_plain(&(0..5).collect::<Vec<_>>(), 2, 0);
    assert_eq!(world.step(), Step::Run(vec![0]));
    let due = |world: &World, id, version, free, due| Ticket {
        deadline: Some(world.now + due),
        priority: Priority::Low,
        ..world.ticket(id, version, free)
    };
    let other = due(&world, 10, 0, 0, ms(800));
    assert!(world.push(other), "a lane is idle, and the five runs of 400 ms before it do not need it");
    let same = due(&world, 11, 2, 7, ms(1900));
    assert!(!world.push(same), "it runs after all five, and not after half of them");
    let same = due(&world, 12, 2, 7, ms(2700));
    assert!(world.push(same));
}

#[test]
fn nobody_is_refused_for_a_long_run_while_a_lane_is_idle() {
    let mut world = with_lanes(2);
    world.learn(0, 0, &[(1, 2)]);
    world.learn(3, 0, &[(1, 2000)]);
    let due = |world: &World, id| Ticket { deadline: Some(world.now + ms(20)), ..world.ticket(id, 0, 0) };
    let first = Ticket { priority: Priority::High, ..world.ticket(1, 3, 0) };
    assert!(world.push(first));
    let ticket = patient(&world, 2, 0, ms(600));
    assert!(world.push(ticket), "what waits before it is one run, which takes one lane");
    world.batcher.cancel(1, 2);
    assert_eq!(world.step(), Step::Run(vec![1]));
    let ticket = due(&world, 3);
    assert!(world.push(ticket), "the other lane has nothing to do");
    assert_eq!(world.step(), Step::Run(vec![3]));
    let ticket = due(&world, 4);
    assert!(world.push(ticket), "it is back in 2 ms");
    world.push_plain(&[5], 3, 0);
    let ticket = patient(&world, 6, 0, ms(900));
    assert!(!world.push(ticket), "the second long run goes before it");
}

#[test]
fn nobody_is_given_up_for_a_long_run_on_another_lane() {
    let mut world = with_lanes(2);
    world.learn(3, 0, &[(1, 400)]);
    world.learn(0, 0, &[(1, 10), (2, 15), (4, 25)]);
    world.push_plain(&[1], 3, 0);
    assert_eq!(world.step(), Step::Run(vec![1]));
    world.push_due(2, 0, ms(20));
    world.push_plain(&(10..20).collect::<Vec<_>>(), 0, 0);
    assert_eq!(world.step(), Step::Run(vec![2]), "in a smaller batch than is of use");
}

#[test]
fn who_finds_no_room_is_told_the_wait_that_those_who_are_let_in_are_reckoned_with() {
    let mut world = with_lanes(2);
    world.batcher = Batcher::new(Limits { rows: 8, ..world.batcher.limits }, 2, world.now);
    world.learn(0, 0, &[(1, 10)]);
    world.learn(2, 0, &[(1, 400)]);
    world.push_plain(&(0..5).collect::<Vec<_>>(), 2, 0);
    assert_eq!(world.step(), Step::Run(vec![0]));
    let wait = |world: &mut World, ticket| {
        let refused = world.batcher.push(ticket, &mut world.shed, world.now);
        let (Err(Refused::Overloaded { wait, .. }) | Err(Refused::TooLate { wait, .. })) = refused else {
            panic!("{refused:?}")
        };
        wait.as_millis()
    };
    let late = patient(&world, 10, 2, ms(1900));
    assert_eq!(wait(&mut world, late), 2000, "one at a time, though two lanes could do it in half of that");
    world.push_plain(&(20..24).collect::<Vec<_>>(), 2, 0);
    let own = world.ticket(30, 2, 0);
    assert_eq!(wait(&mut world, own), 9 * 400, "there is no room for another");
    let other = Ticket { rows: 8, ..world.ticket(31, 0, 0) };
    assert_eq!(wait(&mut world, other), 400, "a lane is idle, but there is no room before the run is back");
}

#[test]
fn versions_that_may_have_one_lane_each_make_nobody_wait_for_all_that_they_have() {
    let mut world = with_lanes(2);
    world.learn(0, 0, &[(1, 10)]);
    world.learn(2, 0, &[(1, 400)]);
    world.learn(5, 0, &[(1, 12)]);
    world.push_plain(&(0..9).collect::<Vec<_>>(), 2, 0);
    world.push_plain(&(10..14).collect::<Vec<_>>(), 5, 0);
    assert_eq!([world.step(), world.step()], [Step::Run(vec![0]), Step::Run(vec![10])]);
    let bound = Bound { version: 0, lanes: 1, at_once: 2 };
    let waits = |criticality| world.batcher.backlog_before(bound, criticality, 0, world.now).as_millis();
    assert_eq!(waits(Criticality::Sheddable), 48);
    assert_eq!(
        waits(Criticality::Normal),
        24,
        "of each version that has more, as many stay as it would have itself"
    );
    let ticket = patient(&world, 20, 0, ms(70));
    assert!(world.push(ticket), "after 48 ms the second has no more");
    let own = patient(&world, 21, 2, ms(3900));
    assert!(!world.push(own), "its own has 3600 ms");
}

#[test]
fn what_is_prepared_first_meets_a_free_lane_as_well() {
    let mut world = with_lanes(2);
    world.learn(2, 0, &[(1, 140)]);
    world.push_plain(&[1, 2, 3, 4], 2, 0);
    assert_eq!(world.step(), Step::Run(vec![1]));
    let before = |world: &World, version, at_once| {
        let bound = Bound { version, lanes: 1, at_once };
        world.batcher.backlog_before(bound, Criticality::Normal, 0, world.now).as_millis()
    };
    assert_eq!(before(&world, 0, 2), 0, "a lane is idle, and stays so");
    assert_eq!(before(&world, 2, 1), 560, "one after the other");
}

#[test]
fn runs_with_the_share_of_several_lanes_wait_until_as_many_are_free() {
    let mut world = with_lanes(3);
    world.learn(0, 0, &[(1, 10)]);
    world.learn(2, 0, &[(1, 100)]);
    world.push_plain(&[1, 2], 2, 0);
    assert_eq!(world.step(), Step::Run(vec![1]));
    let before = |world: &World, lanes| {
        let bound = Bound { version: 0, lanes, at_once: 3 };
        world.batcher.backlog_before(bound, Criticality::Normal, 0, world.now).as_millis()
    };
    assert_eq!([1, 2, 3, 9].map(|lanes| before(&world, lanes)), [0, 0, 200, 200]);
    let narrow_behind = |world: &mut World, lanes: usize| {
        let wide = Ticket { lanes, at_once: 1, ..world.ticket(3, lanes as u32 * 3, 0) };
        assert!(world.push(wide));
        let bound = Bound { version: 12, lanes: 1, at_once: 3 };
        let waits = world.batcher.backlog_before(bound, Criticality::Normal, 0, world.now);
        world.batcher.cancel(1, 3);
        waits.as_millis()
    };
    assert_eq!(narrow_behind(&mut world, 2), 0, "it begins at once, and nothing is known of it");
    assert_eq!(narrow_behind(&mut world, 3), 200, "nothing begins while the wide one waits for the lanes");
    let mut world = with_lanes(3);
    world.learn(6, 0, &[(1, 100)]);
    assert_eq!(narrow_behind(&mut world, 2), 0, "it begins at once, and leaves a lane");
}

#[test]
fn what_runs_and_other_buckets_count_into_the_wait() {
    let mut world = World::new(100, 10_000);
    world.learn(0, 0, &[(1, 10), (4, 20)]);
    world.learn(0, 7, &[(1, 30)]);
    world.push_plain(&[1, 2, 3, 4], 0, 0);
    assert_eq!(world.step(), Step::Run(vec![1, 2, 3, 4]));
    world.push_plain(&[5], 0, 7);
    world.now += ms(5);
    // 15 ms are left of what runs, and 30 stand before a job without haste.
    let bound = Bound { version: 0, lanes: 1, at_once: 1 };
    let backlog = |world: &World| (world.batcher.backlog(bound, world.now).as_secs_f64() * 1e3).round();
    assert_eq!(backlog(&world), 45.0);
    let patient = Ticket { deadline: Some(world.now + PATIENCE), ..world.ticket(6, 0, 0) };
    assert!(world.push(patient));
    world.finish_all(Ended::Failed);
    assert_eq!(backlog(&world), 40.0);
}
