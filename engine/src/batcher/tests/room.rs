//! What the queue holds, in rows and bytes, and what runs may take beside that.

use super::*;
use wire::Closed;

#[test]
fn a_full_queue_refuses_by_rows_and_by_bytes() {
    let mut world = World::new(2, 1000);
    world.push_plain(&[1, 2], 0, 0);
    let third = world.ticket(3, 0, 0);
    assert!(matches!(
        world.batcher.push(third, &mut world.shed, world.now),
        Err(Refused::Overloaded { job: 3, .. })
    ));

    let mut world = World::new(10, 25);
    world.push_plain(&[1, 2], 0, 0);
    let third = world.ticket(3, 0, 0);
    assert!(matches!(
        world.batcher.push(third, &mut world.shed, world.now),
        Err(Refused::Overloaded { job: 3, .. })
    ));
    assert_eq!(world.batcher.cancel(1, 2), Some(2));
    world.push_plain(&[3], 0, 0);
}

#[test]
fn what_runs_is_held_until_its_run_has_ended() {
    let mut world = World::new(10, 25);
    world.push_plain(&[1, 2], 0, 0);
    assert_eq!(world.step(), Step::Run(vec![1, 2]));
    let third = world.ticket(3, 0, 0);
    assert!(!world.push(third), "nothing waits, and a batch of 20 bytes runs");
    world.finish_all(Ended::Failed);
    world.push_plain(&[3], 0, 0);
    world.push_due(4, 0, ms(5));
    world.now += ms(6);
    assert_eq!(world.step(), Step::RunAfterExpired(vec![3], vec![4]));
    world.push_plain(&[5], 0, 0);
    let sixth = world.ticket(6, 0, 0);
    assert!(!world.push(sixth));
}

/// A world of one lane in which runs may take 50 bytes beside what they run.
fn with_room_for_runs() -> World {
    let mut world = World::new(100, 10_000);
    world.batcher = Batcher::new(Limits { run_bytes: 50, ..world.batcher.limits }, 1, world.now);
    world
}

fn takes(world: &World, id: u64, version: u32, run_bytes: usize) -> Ticket<u64> {
    Ticket { run_bytes, ..world.ticket(id, version, 0) }
}

#[test]
fn what_waits_holds_no_outputs_and_a_batch_has_as_many_jobs_as_there_is_room_for() {
    let mut world = with_room_for_runs();
    for id in 0..24 {
        let ticket = takes(&world, id, 0, 22);
        assert!(world.push(ticket), "{id}");
    }
    let small = takes(&world, 30, 3, 2);
    assert!(world.push(small), "a small one beside them is not refused");
    assert_eq!(world.batcher.bytes(), 250);
    let Next::Run(batch) = world.batcher.next(world.now) else { panic!("there is work") };
    assert_eq!((batch.pieces.len(), batch.closed), (2, Closed::Full));
    assert_eq!(world.batcher.bytes(), 250 + 2 * 22);
    assert_eq!(world.step(), Step::Run(vec![30]), "it has what is left");
    assert_eq!(world.step(), Step::Idle);
    world.batcher.finish(batch.claim, Ended::Ran, world.now);
    world.finish_all(Ended::Ran);
    let mut ran = batch.pieces.len();
    while let Step::Run(jobs) = world.step() {
        ran += jobs.len();
        world.finish_all(Ended::Ran);
    }
    assert_eq!((ran, world.batcher.bytes()), (24, 0));
}

#[test]
fn answers_that_nobody_has_read_yet_take_the_room_of_runs() {
    let mut world = with_room_for_runs();
    for (id, run_bytes) in [(1, 22), (2, 22), (3, 60)] {
        let ticket = takes(&world, id, id as u32, run_bytes);
        assert!(world.push(ticket));
    }
    world.batcher.unread(30);
    assert_eq!(world.step(), Step::Idle);
    world.batcher.unread(28);
    assert_eq!(world.step(), Step::Run(vec![1]));
    world.finish_all(Ended::Ran);
    world.batcher.unread(1);
    assert_eq!(world.step(), Step::Run(vec![2]));
    world.finish_all(Ended::Ran);
    assert_eq!(world.step(), Step::Run(vec![3]), "who never reads keeps nobody waiting who has to be alone");
}

#[test]
fn who_waits_for_room_past_its_deadline_keeps_it_from_nobody() {
    let mut world = with_room_for_runs();
    let held = takes(&world, 1, 1, 30);
    assert!(world.push(held));
    assert_eq!(world.step(), Step::Run(vec![1]));
    let deadline = Some(world.now + ms(100));
    let urgent = Ticket { deadline, ..takes(&world, 2, 2, 40) };
    assert!(world.push(urgent));
    let late = takes(&world, 3, 3, 20);
    world.batcher.unread(15);
    assert!(world.push(late));
    assert_eq!(world.step(), Step::Idle, "neither finds room");
    world.batcher.unread(0);
    assert_eq!(world.step(), Step::Idle, "what is given back is kept for the most urgent");
    world.now += ms(101);
    assert!(world.batcher.has_next(world.now));
    assert_eq!(world.step(), Step::RunAfterExpired(vec![], vec![2]));
    assert_eq!(world.step(), Step::Run(vec![3]));
}

#[test]
fn what_takes_more_than_there_is_room_for_runs_once_nothing_else_does() {
    let mut world = with_room_for_runs();
    for (id, version, run_bytes) in [(1, 1, 20), (2, 1, 70), (3, 4, 20)] {
        let ticket = takes(&world, id, version, run_bytes);
        assert!(world.push(ticket));
    }
    let too_large = takes(&world, 4, 1, 10_050);
    assert_eq!(
        world.batcher.push(too_large, &mut world.shed, world.now),
        Err(Refused::TooLarge(4)),
        "more than there is in all"
    );
    assert_eq!(world.step(), Step::Run(vec![1]));
    assert_eq!(world.step(), Step::Run(vec![3]), "for this one there is room meanwhile");
    let claims: Vec<Claim> = world.claims.drain(..).collect();
    for claim in claims {
        assert_eq!(world.step(), Step::Idle);
        world.batcher.finish(claim, Ended::Ran, world.now);
    }
    assert_eq!(world.step(), Step::Run(vec![2]));
    world.finish_all(Ended::Ran);
    assert_eq!(world.batcher.bytes(), 0);
}

#[test]
fn who_waits_for_room_has_it_in_the_end_however_many_small_ones_come() {
    let mut world = with_room_for_runs();
    let large = takes(&world, 0, 1, 40);
    let small = |world: &World, id| takes(world, id, 4, 10);
    for id in 1..=3 {
        let ticket = small(&world, id);
        assert!(world.push(ticket));
        assert_eq!(world.step(), Step::Run(vec![id]));
    }
    assert!(world.push(large));
    let mut ran = 3;
    for id in 4..20 {
        let ticket = small(&world, id);
        assert!(world.push(ticket));
        match world.step() {
            Step::Run(jobs) if jobs == [0] => {
                assert!((4..=6).contains(&ran), "{ran} small ones were first");
                return;
            }
            Step::Run(_) => ran += 1,
            step => assert_eq!(step, Step::Idle),
        }
        let first = world.claims.remove(0);
        world.batcher.finish(first, Ended::Ran, world.now);
    }
    panic!("it waits for ever");
}

#[test]
fn what_has_begun_in_pieces_holds_its_outputs_to_the_end_and_waits_for_nobody_who_waits_for_these() {
    let mut world = with_room_for_runs();
    let large = Ticket { rows: 9, ..takes(&world, 1, 0, 30) };
    assert!(world.push(large));
    assert_eq!(world.step(), Step::Run(vec![1]));
    world.finish_all(Ended::Ran);
    assert_eq!(world.batcher.bytes(), 40, "its first rows are kept until it is answered");
    let hasty = Ticket { priority: Priority::High, ..takes(&world, 2, 0, 30) };
    assert!(world.push(hasty));
    assert_eq!([world.step(), world.step()], [Step::Run(vec![1]), Step::Run(vec![1])]);
    assert_eq!(world.step(), Step::Idle);
    let first = world.claims.remove(0);
    world.batcher.finish(first, Ended::Ran, world.now);
    assert_eq!(world.step(), Step::Idle, "a part of it runs");
    world.finish_all(Ended::Ran);
    assert_eq!(world.step(), Step::Run(vec![2]));
}

#[test]
fn admission_reckons_with_batches_as_small_as_room_makes_them() {
    let mut world = with_room_for_runs();
    world.learn(0, 0, &[(1, 100), (4, 100)]);
    for id in 0..10 {
        let ticket = Ticket { priority: Priority::High, ..takes(&world, id, 0, 50) };
        assert!(world.push(ticket));
    }
    let late = Ticket { run_bytes: 50, ..patient(&world, 20, 0, ms(950)) };
    let refused = world.batcher.push(late, &mut world.shed, world.now);
    let Err(Refused::TooLate { wait, .. }) = refused else { panic!("{refused:?}") };
    assert_eq!(wait.as_millis(), 1000, "one after the other");
}
