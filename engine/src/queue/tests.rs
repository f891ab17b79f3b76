//! A queue and its lanes by hand.

use super::*;
use crate::mailbox::Mailbox;
use crate::scripted::{Scripted, catalog_of, one_row, rows_spec, terms};
use crate::suspects::MEMORY;
use socket::Socket;
use wire::{Datatype, TensorMeta};

/// A queue for one lane, and a version of which nothing runs.
struct World {
    queue: Queue,
    version: Arc<Version>,
    mailbox: Arc<Mailbox>,
    _ends: (tokio::runtime::Runtime, tokio::net::UnixStream),
}

impl World {
    fn new() -> Self {
        Self::of_connection(1)
    }

    fn of_connection(number: u64) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        let entered = runtime.enter();
        let (ours, theirs) = tokio::net::UnixStream::pair().unwrap();
        let mailbox = Arc::new(Mailbox::new(number, 1 << 20, Arc::new(Socket::new(ours).unwrap())));
        drop(entered);
        let spec = rows_spec(&[("x", 1)], &[("y", 1)], 4);
        let catalog = catalog_of("m", 1, Scripted::new(spec, |_| unreachable!("nothing runs")));
        let version = Arc::clone(catalog.find("m", 1).ok().unwrap());
        let queue = Queue::new(Limits::halving(10, 2000), 1);
        Self { queue, version, mailbox, _ends: (runtime, theirs) }
    }

    /// A job of one row.
    fn job(&self, id: u64, caller: u64) -> Arc<Job> {
        let terms = Terms { caller, ..terms(id) };
        Arc::new(Job::new(one_row(&self.version, &[0.0]), terms, Arc::clone(&self.mailbox)))
    }

    fn submit(&self, jobs: &[&Arc<Job>], now: Instant) {
        let mut refused = Vec::new();
        let mut orders = jobs.iter().map(|job| Order::Run(Arc::clone(job))).collect();
        self.queue.submit(&mut orders, &mut refused, now);
        assert!(refused.is_empty(), "{refused:?}");
    }

    /// How many jobs the next batch has.
    fn run(&self) -> usize {
        let Batch { pieces, claim, .. } = self.queue.next(0).unwrap();
        self.queue.finish(0, claim, Ended::Failed);
        pieces.len()
    }
}

#[test]
fn a_job_that_is_forgotten_does_not_take_another_of_its_id_along() {
    let world = World::new();
    let (before, after, now) = (world.job(7, 0), world.job(7, 0), Instant::now());
    world.submit(&[&before], now);
    let ran = world.queue.next(0).unwrap();
    // The first has its answer, and whoever has read it asks again under the same id.
    world.submit(&[&after], now);
    world.queue.forget(&before);
    assert_eq!(world.queue.under_way(), 2, "the run, and what waits");
    world.queue.forget(&after);
    assert_eq!(world.queue.under_way(), 1);
    world.queue.finish(0, ran.claim, Ended::Ran);
}

#[test]
fn at_the_moment_a_cancel_is_heard_the_queue_has_lost_what_waited_and_its_bytes() {
    let (world, now) = (World::new(), Instant::now());
    let jobs: Vec<_> = (1..=3).map(|id| world.job(id, 0)).collect();
    world.submit(&jobs.iter().collect::<Vec<_>>(), now);
    let freed: Vec<_> = jobs.iter().map(Arc::downgrade).collect();
    let one = jobs[0].bytes;
    drop(jobs);
    let cancel = |id| {
        let mut orders = vec![Order::Cancel { connection: 1, id }];
        world.queue.submit(&mut orders, &mut Vec::new(), now);
        (world.queue.under_way(), world.queue.bytes())
    };
    assert_eq!((world.queue.under_way(), world.queue.bytes()), (3, 3 * one));
    assert_eq!([cancel(2), cancel(1), cancel(9)], [(2, 2 * one), (1, one), (1, one)]);
    assert_eq!(freed.iter().filter(|job| job.upgrade().is_some()).count(), 1, "nothing leaks");
    assert_eq!(cancel(3), (0, 0));
    assert!(freed.iter().all(|job| job.upgrade().is_none()));
}

#[test]
fn a_connection_that_is_lost_takes_its_thousand_waiting_jobs_along_and_nobody_elses() {
    let (mut world, other, now) = (World::new(), World::of_connection(2), Instant::now());
    world.queue = Queue::new(Limits::halving(1001, 1 << 20), 1);
    let jobs: Vec<_> = (0..1000).map(|id| world.job(id, 0)).collect();
    let theirs = other.job(7, 0);
    world.submit(&jobs.iter().chain([&theirs]).collect::<Vec<_>>(), now);
    let freed: Vec<_> = jobs.iter().map(Arc::downgrade).collect();
    drop(jobs);
    world.queue.cancel_connection(1);
    assert!(freed.iter().all(|job| job.upgrade().is_none()), "nothing leaks");
    assert_eq!((world.queue.under_way(), world.queue.bytes()), (1, theirs.bytes));
    let ran = world.queue.next(0).unwrap();
    assert!(ran.pieces.len() == 1 && Arc::ptr_eq(&ran.pieces[0].job, &theirs));
    world.queue.finish(0, ran.claim, Ended::Ran);
    assert_eq!((world.queue.under_way(), world.queue.bytes()), (0, 0));
}

#[test]
fn what_runs_when_it_is_cancelled_is_answered_no_more_and_its_mates_are() {
    let (world, now) = (World::new(), Instant::now());
    let jobs: Vec<_> = (1..=3).map(|id| world.job(id, 0)).collect();
    world.submit(&jobs.iter().collect::<Vec<_>>(), now);
    let ran = world.queue.next(0).unwrap();
    assert_eq!(ran.pieces.len(), 3);
    let mut orders = vec![Order::Cancel { connection: 1, id: 2 }];
    world.queue.submit(&mut orders, &mut Vec::new(), now);
    assert_eq!(world.queue.under_way(), 1, "the run goes on");
    assert_eq!([true, false, true], [0, 1, 2].map(|at: usize| jobs[at].may_answer()));
    world.queue.finish(0, ran.claim, Ended::Ran);
    assert_eq!((world.queue.under_way(), world.queue.bytes()), (0, 0));
}

#[test]
fn a_run_is_abandoned_once_the_last_of_its_callers_has_gone_or_is_late_if_such_runs_are_known() {
    let (world, now) = (World::new(), Instant::now());
    let (leaver, patient) = (world.job(1, 0), world.job(2, 0));
    let deadline = now + Duration::from_secs(1);
    let late = Job::new(
        one_row(&world.version, &[0.0]),
        Terms { deadline: Some(deadline), ..terms(3) },
        Arc::clone(&world.mailbox),
    );
    world.submit(&[&leaver, &patient, &Arc::new(late)], now);
    let run = world.queue.next(0).unwrap();
    let runs_of = |rows| {
        let mut curve = Curve::default();
        (0..5).for_each(|_| curve.observe(rows, Duration::from_millis(10)));
        world.queue.seed(&bucket_of(&leaver.request, false), curve);
    };
    runs_of(3);
    leaver.cancel();
    let next = world.job(4, 0);
    world.submit(&[&next], now);
    let deadline = deadline + AT_A_STANDSTILL;
    assert_eq!(world.queue.abandoned(0, deadline), None, "one has no deadline, and waits");
    patient.cancel();
    assert_eq!(world.queue.abandoned(0, now), None, "one has time left");
    assert_eq!(world.queue.abandoned(0, deadline), Some(Duration::from_millis(15)));
    world.queue.submit(&mut vec![Order::Cancel { connection: 1, id: 4 }], &mut Vec::new(), now);
    assert_eq!(world.queue.abandoned(0, deadline), None, "nothing else needs the lane");
    let hasty = Job::new(
        one_row(&world.version, &[0.0]),
        Terms { deadline: Some(deadline + Duration::from_millis(1)), ..terms(6) },
        Arc::clone(&world.mailbox),
    );
    let mut refused = Vec::new();
    world.queue.submit(&mut vec![Order::Run(Arc::new(hasty))], &mut refused, deadline);
    assert!(matches!(refused[..], [(6, Refusal::TooLate { .. })]), "{refused:?}");
    assert_eq!(
        world.queue.abandoned(0, deadline + TURNED_AWAY),
        Some(Duration::from_millis(15)),
        "somebody needs it who has no time to wait"
    );
    let later = deadline + TURNED_AWAY_MAX + Duration::from_millis(1);
    assert_eq!(world.queue.abandoned(0, later), None, "and does so no more");
    world.submit(&[&world.job(5, 0)], now);
    runs_of(1);
    assert_eq!(world.queue.abandoned(0, deadline), None, "so many rows have not run");
    world.queue.finish(0, run.claim, Ended::Ran);
    runs_of(3);
    assert_eq!(world.queue.abandoned(0, deadline), None, "it is back");
}

/// A queue for so many lanes, with a narrow version and one that takes two; what one run of either takes at most.
fn narrow_and_wide(lanes: usize) -> (World, World, Option<Duration>) {
    let (mut narrow, mut wide) = (World::new(), World::of_connection(2));
    narrow.queue = Queue::new(Limits::halving(10, 2000), lanes);
    let version = Arc::get_mut(&mut wide.version).expect("nobody else has it");
    (version.key, version.way.lanes, version.way.at_once) = (1, 2, 1);
    for world in [&narrow, &wide] {
        let mut curve = Curve::default();
        (0..5).for_each(|_| curve.observe(1, Duration::from_millis(10)));
        narrow.queue.seed(&bucket_of(&world.job(0, 0).request, false), curve);
    }
    (narrow, wide, Some(Duration::from_millis(15)))
}

impl World {
    fn job_with(&self, terms: Terms) -> Arc<Job> {
        Arc::new(Job::new(one_row(&self.version, &[0.0]), terms, Arc::clone(&self.mailbox)))
    }

    /// A run of this job hangs, and nobody waits for it any more.
    fn abandon(&self, job: &Arc<Job>, lane: usize) -> Claim {
        self.submit(&[job], Instant::now());
        let claim = self.queue.next(lane).unwrap().claim;
        job.cancel();
        claim
    }

    fn leave(&self, connection: u64, id: u64) {
        self.queue.submit(&mut vec![Order::Cancel { connection, id }], &mut Vec::new(), Instant::now());
    }
}

#[test]
fn a_run_that_nobody_waits_for_is_missed_by_who_needs_more_lanes_than_it_leaves() {
    let (narrow, wide, slow) = narrow_and_wide(2);
    let (queue, now) = (&narrow.queue, Instant::now());
    let run = narrow.abandon(&narrow.job(1, 0), 0);
    let deadline = now + Duration::from_secs(60);
    let terms = |id| Terms { deadline: Some(deadline), ..terms(id) };
    let copy = Terms { priority: Priority::Last, ..terms(3) };
    narrow.submit(&[&wide.job_with(copy)], now);
    assert_eq!(queue.abandoned(0, now + 2 * AT_A_STANDSTILL), None, "nobody waits for a copy");
    narrow.submit(&[&wide.job_with(terms(4))], now);
    assert_eq!(queue.abandoned(0, deadline - Duration::from_millis(1)), slow);
    assert_eq!(queue.abandoned(0, deadline), None, "nobody waits for what is late");
    let urgent = Terms { priority: Priority::High, ..terms(5) };
    narrow.submit(&[&narrow.job_with(urgent)], now);
    let other = queue.next(1).unwrap();
    assert_eq!(other.pieces[0].job.terms.id, 5);
    queue.finish(1, other.claim, Ended::Ran);
    assert_eq!(queue.abandoned(0, Instant::now()), None, "others are served");
    queue.finish(0, run, Ended::Ran);
    assert_eq!(queue.abandoned(0, deadline - Duration::from_millis(1)), None, "it is back");
}

#[test]
fn who_is_turned_away_for_want_of_lanes_misses_them_while_nobody_else_is_served() {
    let (narrow, wide, slow) = narrow_and_wide(2);
    let (queue, begun) = (&narrow.queue, Instant::now());
    let turn_away = |of: &World, priority| {
        queue.turn_away(&of.version, priority, Duration::from_secs(60), begun);
    };
    let _run = narrow.abandon(&narrow.job(1, 0), 0);
    let now = begun + 2 * AT_A_STANDSTILL;
    turn_away(&narrow, Priority::Normal);
    assert_eq!(queue.abandoned(0, now), None, "it has a lane, and no time");
    turn_away(&wide, Priority::Last);
    assert_eq!(queue.abandoned(0, now), None, "nobody waits for a copy");
    turn_away(&wide, Priority::Normal);
    assert_eq!(queue.abandoned(0, begun), None, "something has just begun");
    assert_eq!(queue.abandoned(0, now), slow);
    let later = begun + TURNED_AWAY_MAX + Duration::from_millis(1);
    assert_eq!(queue.abandoned(0, later), None, "it is not missed any more");
    narrow.submit(&[&narrow.job(2, 0)], begun);
    let other = queue.next(1).unwrap();
    queue.finish(1, other.claim, Ended::Ran);
    assert_eq!(queue.abandoned(0, now), None, "others are served");
}

#[test]
fn who_is_only_found_late_when_its_turn_comes_misses_what_hangs_as_who_is_told_so_at_once() {
    let (narrow, _, slow) = narrow_and_wide(2);
    let (queue, begun) = (&narrow.queue, Instant::now());
    let _run = narrow.abandon(&narrow.job(1, 0), 0);
    let found_late = |id, priority| {
        // There was time for it then, which has gone by since.
        let (now, before) = (Instant::now(), begun - Duration::from_secs(1));
        let soon = Terms { priority, deadline: Some(before + Duration::from_millis(100)), ..terms(id) };
        narrow.submit(&[&narrow.job_with(soon)], before);
        let found = queue.next(1).unwrap();
        assert_eq!((found.pieces.len(), found.late.len()), (0, 1));
        queue.finish(1, found.claim, Ended::Failed);
        queue.abandoned(0, now + AT_A_STANDSTILL + Duration::from_secs(1))
    };
    assert_eq!(found_late(2, Priority::Last), None, "nobody waits for a copy");
    assert_eq!(found_late(3, Priority::Normal), slow);
}

#[test]
fn who_finds_no_room_beside_what_hangs_misses_it_while_nobody_else_is_served() {
    let (narrow, _, slow) = narrow_and_wide(2);
    let (queue, begun) = (&narrow.queue, Instant::now());
    let large = |id| narrow.job_with(Terms { metadata_bytes: 800, ..terms(id) });
    let _run = narrow.abandon(&large(1), 0);
    let mut refused = Vec::new();
    queue.submit(&mut vec![Order::Run(large(2))], &mut refused, begun);
    assert!(matches!(refused[..], [(2, Refusal::Overloaded { .. })]), "{refused:?}");
    assert_eq!(queue.abandoned(0, begun), None, "something has just begun");
    assert_eq!(queue.abandoned(0, begun + AT_A_STANDSTILL + Duration::from_secs(1)), slow);
    narrow.submit(&[&narrow.job_with(Terms { priority: Priority::Last, ..terms(3) })], begun);
    let copy = queue.next(1).unwrap();
    queue.finish(1, copy.claim, Ended::Ran);
    assert_eq!(
        queue.abandoned(0, begun + AT_A_STANDSTILL + Duration::from_secs(1)),
        slow,
        "copies serve nobody"
    );
    narrow.submit(&[&narrow.job(4, 0)], begun);
    let other = queue.next(1).unwrap();
    queue.finish(1, other.claim, Ended::Ran);
    assert_eq!(
        queue.abandoned(0, begun + AT_A_STANDSTILL + Duration::from_secs(1)),
        None,
        "others are served"
    );
}

#[test]
fn callers_of_a_version_that_hangs_and_may_run_once_at_a_time_end_no_engine_that_serves_others() {
    let (narrow, wide, slow) = narrow_and_wide(3);
    let (queue, begun) = (&narrow.queue, Instant::now());
    let _run = narrow.abandon(&wide.job(1, 0), 0);
    narrow.submit(&[&wide.job(2, 0)], begun);
    assert_eq!(queue.abandoned(0, begun), None);
    assert_eq!(queue.abandoned(0, begun + 2 * AT_A_STANDSTILL), slow, "nobody is served");
    queue.turn_away(&wide.version, Priority::Normal, Duration::ZERO, begun);
    narrow.leave(2, 2);
    assert_eq!(queue.abandoned(0, begun + AT_A_STANDSTILL + Duration::from_secs(1)), slow);
    narrow.submit(&[&wide.job(3, 0), &narrow.job(4, 0)], begun);
    let other = queue.next(1).unwrap();
    assert_eq!(other.pieces[0].job.terms.id, 4);
    queue.finish(1, other.claim, Ended::Ran);
    assert_eq!(queue.abandoned(0, begun + Duration::from_millis(900)), None, "others are");
}

#[test]
fn callers_of_a_version_that_was_found_to_write_while_it_served_are_missed_as_it_runs_now() {
    let (mut narrow, _, slow) = narrow_and_wide(3);
    let version = Arc::get_mut(&mut narrow.version).expect("nobody else has it");
    version.way.at_once = 3;
    version.audit = crate::audit::Audit::of(Some(Duration::ZERO), false);
    let begun = Instant::now();
    let _run = narrow.abandon(&narrow.job(1, 0), 0);
    let turn_away = || narrow.queue.turn_away(&narrow.version, Priority::Normal, Duration::ZERO, begun);
    let later = begun + AT_A_STANDSTILL + Duration::from_secs(1);
    turn_away();
    assert_eq!(narrow.queue.abandoned(0, later), None, "it may run beside itself");
    let writes = Scripted::new(rows_spec(&[("x", 1)], &[("y", 1)], 4), |_| unreachable!()).keeping(|| true);
    assert!(narrow.version.audit.finds_writes(&writes, begun));
    turn_away();
    assert_eq!(narrow.queue.abandoned(0, later), slow);
}

#[test]
fn who_comes_while_a_batch_is_divided_is_refused_if_its_parts_take_too_long() {
    let (world, now) = (World::new(), Instant::now());
    let mut curve = Curve::default();
    (0..5).for_each(|_| [1, 2, 4].iter().for_each(|rows| curve.observe(*rows, Duration::from_secs(1))));
    world.queue.seed(&bucket_of(&world.job(0, 0).request, false), curve);
    let run = |first: u64| {
        let jobs: Vec<_> = (first..first + 2).map(|id| world.job(id, 0)).collect();
        world.submit(&jobs.iter().collect::<Vec<_>>(), now);
        world.queue.next(0).unwrap().claim
    };
    for first in 0..20 {
        let claim = run(100 + 2 * first);
        world.queue.finish(0, claim, Ended::Divided { failed: 1, left: 0 });
    }
    let claim = run(5);
    let ask = |id| {
        let terms = Terms { deadline: Some(Instant::now() + Duration::from_millis(2500)), ..terms(id) };
        let job = Job::new(one_row(&world.version, &[0.0]), terms, Arc::clone(&world.mailbox));
        let mut refused = Vec::new();
        world.queue.submit(&mut vec![Order::Run(Arc::new(job))], &mut refused, Instant::now());
        refused
    };
    assert!(ask(9).is_empty(), "a run is back in a second");
    world.queue.divides(0);
    assert!(matches!(ask(10)[..], [(10, Refusal::TooLate { .. })]), "and its parts in two more");
    world.queue.finish(0, claim, Ended::Divided { failed: 1, left: 0 });
    assert!(ask(11).is_empty());
}

#[test]
fn one_lane_at_a_time_looks_again_and_what_it_does_is_reckoned_with() {
    let (world, now) = (World::new(), Instant::now());
    let queue = Queue::new(Limits::halving(10, 2000), 2);
    let mut orders: Vec<_> = (1..=2).map(|id| Order::Run(world.job(id, 0))).collect();
    let take = |lane, order| {
        queue.submit(&mut vec![order], &mut Vec::new(), now);
        queue.next(lane).unwrap().claim
    };
    let mut first = take(0, orders.remove(0));
    let mut second = take(1, orders.remove(0));
    assert!(queue.may_look(0, &mut first, 1) && !queue.may_look(1, &mut second, 1));
    assert_eq!(queue.running(), 2, "it holds what its batch has claimed");
    queue.finish(0, first, Ended::Ran);
    assert!(queue.may_look(1, &mut second, 1));
    queue.finish(1, second, Ended::Ran);
    let mut third = take(0, Order::Run(world.job(3, 0)));
    queue.stop();
    assert!(!queue.may_look(0, &mut third, 1), "whoever stops it waits");
    queue.finish(0, third, Ended::Ran);
    assert_eq!((queue.under_way(), queue.bytes()), (0, 0));
}

#[test]
fn what_needs_several_runs_is_refused_once_it_is_known_that_rows_depend_on_each_other() {
    let (world, now) = (World::new(), Instant::now());
    let ask = |id| {
        let meta = TensorMeta {
            name: "x".into(),
            datatype: Datatype::Fp32 as u32,
            shape: vec![5, 1],
            ..TensorMeta::default()
        };
        let request = Request::check_for(&world.version, vec![meta], Vec::new(), vec![0; 20].into()).unwrap();
        let job = Arc::new(Job::new(request, terms(id), Arc::clone(&world.mailbox)));
        let mut refused = Vec::new();
        world.queue.submit(&mut vec![Order::Run(job)], &mut refused, now);
        refused
    };
    assert!(ask(1).is_empty(), "it runs in two pieces");
    assert!(world.version.audit.has_miscounted());
    let refused = ask(2);
    assert!(matches!(refused[..], [(2, Refusal::TooManyRows { rows: 5, most: 4 })]), "{refused:?}");
}

/// Until so many lanes sleep, and none is on its way.
fn all_sleep(queue: &Queue, lanes: usize) {
    let sleep = || {
        let state = queue.lock();
        state.idle.len() == lanes && state.called.is_none()
    };
    while !sleep() {
        std::thread::yield_now();
    }
}

#[test]
fn what_is_announced_wakes_one_lane_which_sleeps_again_if_nothing_comes() {
    let World { version, mailbox, _ends, .. } = World::new();
    let queue = Arc::new(Queue::new(Limits::halving(10, 2000), 2));
    let (ran, runs) = std::sync::mpsc::channel();
    let lanes: Vec<_> = (0..2)
        .map(|lane| {
            let (queue, ran) = (Arc::clone(&queue), ran.clone());
            std::thread::spawn(move || {
                while let Some(Batch { pieces, claim, .. }) = queue.next(lane) {
                    ran.send((lane, pieces.len())).unwrap();
                    queue.finish(lane, claim, Ended::Ran);
                }
            })
        })
        .collect();
    for id in 1..100 {
        all_sleep(&queue, 2);
        let announced = queue.announce().expect("both sleep");
        let state = queue.lock();
        // Unless it has waited long enough meanwhile, it is awake or will be, and nobody else is.
        let called = state.called;
        assert_eq!(state.idle.len(), if called.is_some() { 1 } else { 2 });
        drop(state);
        if id % 2 == 0 {
            drop(announced);
            continue; // it was refused before it could wait
        }
        let job = Arc::new(Job::new(one_row(&version, &[0.0]), terms(id), Arc::clone(&mailbox)));
        queue.submit(&mut vec![Order::Run(job)], &mut Vec::new(), Instant::now());
        drop(announced);
        let (lane, pieces) = runs.recv().unwrap();
        assert_eq!(pieces, 1);
        assert!(called.is_none_or(|called| called == lane), "lane {lane} ran in place of {called:?}");
    }
    queue.stop();
    lanes.into_iter().for_each(|lane| lane.join().unwrap());
}

#[test]
fn what_waits_of_a_version_that_miscounts_runs_alone_from_the_moment_that_this_is_known() {
    let (world, now) = (World::new(), Instant::now());
    let jobs: Vec<_> = (1..=3).map(|id| world.job(id, 0)).collect();
    world.submit(&jobs.iter().collect::<Vec<_>>(), now);
    assert!(world.version.audit.has_miscounted());
    world.queue.regroup(&world.version);
    world.submit(&[&world.job(4, 0)], now);
    (0..4).for_each(|_| assert_eq!(world.run(), 1));
}

#[test]
fn what_waits_of_a_version_that_writes_to_its_own_tensors_runs_one_after_the_other() {
    let (world, now) = (World::new(), Instant::now());
    world.submit(&[&world.job(1, 0), &world.job(2, 0)], now);
    let mut state = world.queue.lock();
    state.batcher.regroup(world.version.key, (Grouping::Serial, u32::MAX), usize::MAX);
    let Next::Run(first) = state.batcher.next(now) else { panic!("there is work") };
    assert_eq!(first.pieces.len(), 1);
    assert!(matches!(state.batcher.next(now), Next::Idle), "the first one runs");
    state.batcher.finish(first.claim, Ended::Ran, now);
    assert!(matches!(state.batcher.next(now), Next::Run(_)));
}

#[test]
fn who_has_made_batches_fail_runs_alone_for_a_while_and_with_others_after_it() {
    let (world, now) = (World::new(), Instant::now());
    let (guilty, other) = (world.job(1, 66), world.job(2, 77));
    (0..2).for_each(|_| world.queue.convict(&guilty));
    world.submit(&[&guilty, &other], now);
    assert_eq!([world.run(), world.run()], [1, 1]);
    let convicted_by = Instant::now();
    world.submit(&[&world.job(3, 66), &world.job(4, 77)], convicted_by + MEMORY);
    assert_eq!(world.run(), 2, "it is forgotten");
}
