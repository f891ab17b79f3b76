//! The batcher by hand, one decision at a time; `simulator.rs` drives it by the hundred thousand.

mod division;
mod explore;
mod make_way;
mod room;
mod wait;

use super::plan::TRIED_WITHIN;
use super::profile::PROFILES_MAX;
use super::*;
use wire::Closed;

const TOGETHER: Grouping = Grouping::Together { max_rows: 4 };

/// A batcher and a clock that moves when told to. Jobs are their ids; the bucket decides how they run.
struct World {
    batcher: Batcher<u64>,
    now: Instant,
    claims: Vec<Claim>,
    /// Who had to go.
    shed: Vec<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Run(Vec<u64>),
    RunAfterExpired(Vec<u64>, Vec<u64>),
    Wait(Duration),
    Idle,
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

impl World {
    fn new(rows: u64, bytes: usize) -> Self {
        let now = Instant::now();
        Self {
            batcher: Batcher::new(Limits { rows, bytes, run_bytes: bytes }, 1, now),
            now,
            claims: Vec::new(),
            shed: Vec::new(),
        }
    }

    fn ticket(&self, id: u64, version: u32, free: u64) -> Ticket<u64> {
        let grouping = [TOGETHER, Grouping::Alone, Grouping::Serial][version as usize % 3];
        Ticket {
            connection: 1,
            id,
            bucket: Bucket { version, free: vec![free], suspect: false },
            grouping,
            lanes: 1,
            at_once: usize::MAX,
            rows: 1,
            bytes: 10,
            run_bytes: 0,
            deadline: None,
            priority: Priority::Normal,
            criticality: Criticality::Normal,
            tenant: 0,
            payload: id,
        }
    }

    fn push(&mut self, ticket: Ticket<u64>) -> bool {
        self.batcher.push(ticket, &mut self.shed, self.now).is_ok()
    }

    fn push_plain(&mut self, ids: &[u64], version: u32, free: u64) {
        for id in ids {
            let ticket = self.ticket(*id, version, free);
            assert!(self.push(ticket));
        }
    }

    fn push_due(&mut self, id: u64, free: u64, due: Duration) {
        let ticket = Ticket { deadline: Some(self.now + due), ..self.ticket(id, 0, free) };
        assert!(self.push(ticket));
    }

    fn step(&mut self) -> Step {
        match self.batcher.next(self.now) {
            Next::Idle => Step::Idle,
            Next::Wait(until) => Step::Wait(until - self.now),
            Next::Run(batch) => {
                self.claims.push(batch.claim);
                let jobs = batch.pieces.iter().map(|piece| piece.job).collect();
                if batch.late.is_empty() { Step::Run(jobs) } else { Step::RunAfterExpired(jobs, batch.late) }
            }
        }
    }

    fn finish_all(&mut self, ended: Ended) {
        for claim in self.claims.drain(..) {
            self.batcher.finish(claim, ended, self.now);
        }
    }
}

/// One of a version that is in no haste but for its deadline.
fn patient(world: &World, id: u64, version: u32, due: Duration) -> Ticket<u64> {
    let deadline = Some(world.now + due);
    Ticket { deadline, priority: Priority::Low, ..world.ticket(id, version, 0) }
}

fn with_lanes(lanes: usize) -> World {
    let mut world = World::new(1000, 100_000);
    world.batcher = Batcher::new(world.batcher.limits, lanes, world.now);
    world
}

#[test]
fn an_idle_lane_takes_what_is_there_at_once() {
    let mut world = World::new(10, 1000);
    assert_eq!(world.step(), Step::Idle);
    world.push_plain(&[1], 0, 0);
    assert_eq!(world.step(), Step::Run(vec![1]));
    assert_eq!(world.step(), Step::Idle);
}

#[test]
fn a_batch_fills_up_to_the_row_limit_in_order_of_arrival() {
    let mut world = World::new(10, 1000);
    world.push_plain(&[1, 2, 3, 4, 5], 0, 0);
    assert_eq!(world.step(), Step::Run(vec![1, 2, 3, 4]));
    assert_eq!(world.step(), Step::Run(vec![5]));
}

#[test]
fn a_batch_says_why_it_has_no_more_rows() {
    let closed = |world: &mut World| match world.batcher.next(world.now) {
        Next::Run(batch) => {
            world.claims.push(batch.claim);
            batch.closed
        }
        other => panic!("{other:?}"),
    };
    let mut world = World::new(100, 10_000);
    world.push_plain(&[1, 2, 3, 4, 5], 0, 0);
    assert_eq!([closed(&mut world), closed(&mut world)], [Closed::Full, Closed::Everything]);
    world.push_plain(&[6, 7], 1, 0);
    assert_eq!([closed(&mut world), closed(&mut world)], [Closed::Alone, Closed::Everything]);

    let mut world = World::new(100, 10_000);
    world.learn(0, 0, &[(1, 10), (2, 14), (4, 22)]);
    world.push_due(1, 0, ms(25));
    (2..5).for_each(|id| world.push_due(id, 0, ms(400)));
    assert_eq!(closed(&mut world), Closed::Deadline);

    let mut world = World::new(100, 10_000);
    world.learn(0, 0, &[(1, 3), (8, 3), (16, 8), (32, 20)]);
    for id in 0..32 {
        let ticket = Ticket { grouping: Grouping::Together { max_rows: 32 }, ..world.ticket(id, 0, 0) };
        assert!(world.push(ticket));
    }
    assert_eq!(closed(&mut world), Closed::Efficient);
}

#[test]
fn another_shape_does_not_cut_a_batch_short() {
    let mut world = World::new(10, 1000);
    world.push_plain(&[1], 0, 7);
    world.push_plain(&[2], 0, 8);
    world.push_plain(&[3], 0, 7);
    assert_eq!(world.step(), Step::Run(vec![1, 3]));
    assert_eq!(world.step(), Step::Run(vec![2]));
}

#[test]
fn the_nearest_deadline_leaves_first_and_takes_its_bucket_along() {
    let mut world = World::new(10, 1000);
    world.push_plain(&[1], 0, 7);
    world.push_due(2, 8, ms(900));
    world.push_due(3, 8, ms(20));
    world.push_due(4, 7, ms(50));
    assert_eq!(world.step(), Step::Run(vec![3, 2]));
    assert_eq!(world.step(), Step::Run(vec![4, 1]));
}

#[test]
fn who_has_to_begin_first_leaves_first() {
    let mut world = World::new(10, 1000);
    world.learn(0, 7, &[(1, 300)]);
    world.learn(3, 0, &[(1, 10)]);
    let due = |world: &World, id, version, due| Ticket {
        deadline: Some(world.now + ms(due)),
        ..world.ticket(id, version, 7 * u64::from(version == 0))
    };
    for (id, version, left) in [(1, 3, 700), (2, 0, 900)] {
        let ticket = due(&world, id, version, left);
        assert!(world.push(ticket));
    }
    world.push_plain(&[3], 0, 7);
    assert_eq!([world.step(), world.step(), world.step()], [2, 1, 3].map(|id| Step::Run(vec![id])));
}

#[test]
fn a_job_without_deadline_overtakes_once_it_has_waited_long() {
    let mut world = World::new(10, 1000);
    world.push_plain(&[1], 0, 7);
    world.now += ms(990);
    world.push_due(2, 8, ms(20));
    assert_eq!(world.step(), Step::Run(vec![1]));
}

#[test]
fn expired_jobs_are_handed_back_and_never_run() {
    let mut world = World::new(10, 1000);
    world.push_due(1, 0, ms(5));
    world.push_due(2, 0, ms(50));
    world.push_due(3, 0, ms(6));
    world.now += ms(6);
    assert_eq!(world.step(), Step::RunAfterExpired(vec![2], vec![1, 3]));
    world.push_due(4, 0, ms(1));
    world.now += ms(1);
    assert_eq!(world.step(), Step::RunAfterExpired(vec![], vec![4]));
    assert_eq!(world.step(), Step::Idle);
}

#[test]
fn a_cancelled_job_is_gone_even_from_the_head() {
    let mut world = World::new(10, 1000);
    world.push_plain(&[1, 2], 0, 0);
    assert_eq!(world.batcher.cancel(1, 1), Some(1));
    assert_eq!(world.batcher.cancel(1, 1), None);
    assert_eq!(world.step(), Step::Run(vec![2]));
}

#[test]
fn a_lost_connection_takes_its_jobs_along_and_no_others() {
    let mut world = World::new(10, 1000);
    world.push_plain(&[1, 2], 0, 0);
    let other = Ticket { connection: 2, ..world.ticket(1, 0, 0) };
    assert!(world.push(other));
    let mut gone = world.batcher.cancel_connection(1);
    gone.sort_unstable();
    assert_eq!(gone, [1, 2]);
    assert_eq!(world.step(), Step::Run(vec![1]));
}

#[test]
fn an_id_that_waits_already_is_refused() {
    let mut world = World::new(10, 1000);
    world.push_plain(&[1], 0, 0);
    let again = world.ticket(1, 0, 9);
    assert!(matches!(world.batcher.push(again, &mut world.shed, world.now), Err(Refused::Duplicate(1))));
    assert_eq!(world.batcher.len(), 1);
}

#[test]
fn jobs_that_must_be_alone_run_one_by_one_on_many_lanes() {
    let mut world = World::new(10, 1000);
    world.push_plain(&[1, 2], 1, 0);
    assert_eq!(world.step(), Step::Run(vec![1]));
    assert_eq!(world.step(), Step::Run(vec![2]));
}

#[test]
fn a_serial_bucket_waits_for_its_claim_and_holds_up_nobody_else() {
    let mut world = World::new(10, 1000);
    world.push_plain(&[1, 2], 2, 0);
    assert_eq!(world.step(), Step::Run(vec![1]));
    assert_eq!(world.step(), Step::Idle);
    world.push_plain(&[3], 2, 0);
    world.push_plain(&[4], 0, 0);
    assert_eq!(world.step(), Step::Run(vec![4]));
    world.finish_all(Ended::Failed);
    assert_eq!(world.step(), Step::Run(vec![2]));
    world.finish_all(Ended::Failed);
    assert_eq!(world.step(), Step::Run(vec![3]));
    world.finish_all(Ended::Failed);
    assert!(world.batcher.is_empty() && !world.batcher.has_next(world.now));
}

#[test]
fn a_job_larger_than_a_batch_runs_in_pieces_and_its_last_rows_take_others_along() {
    let mut world = World::new(100, 1000);
    let large = Ticket { rows: 9, ..world.ticket(1, 0, 0) };
    assert!(world.push(large));
    world.push_plain(&[2, 3], 0, 0);
    let mut pieces = || match world.batcher.next(world.now) {
        Next::Run(batch) => batch.pieces.iter().map(|piece| (piece.job, piece.first, piece.rows)).collect(),
        Next::Wait(_) | Next::Idle => Vec::new(),
    };
    assert_eq!(pieces(), [(1, 0, 4)]);
    assert_eq!(pieces(), [(1, 4, 4)]);
    assert_eq!(pieces(), [(1, 8, 1), (2, 0, 1), (3, 0, 1)]);
    assert_eq!(pieces(), []);
}

#[test]
fn the_rest_of_a_large_job_can_be_cancelled() {
    let mut world = World::new(100, 1000);
    let large = Ticket { rows: 9, ..world.ticket(1, 0, 0) };
    assert!(world.push(large));
    assert_eq!(world.step(), Step::Run(vec![1]));
    assert_eq!(world.batcher.cancel(1, 1), Some(1));
    assert_eq!((world.step(), world.batcher.rows), (Step::Idle, 0));
    assert_eq!(world.batcher.bytes(), 10, "as long as a part of it runs, all of it is there");
    world.finish_all(Ended::Failed);
    assert_eq!(world.batcher.bytes(), 0);
}

#[test]
fn priority_is_a_head_start_and_no_more() {
    let mut world = World::new(10, 1000);
    let low = Ticket { priority: Priority::Low, ..world.ticket(1, 1, 0) };
    assert!(world.push(low));
    world.push_plain(&[2], 1, 0);
    let high = Ticket { priority: Priority::High, ..world.ticket(3, 1, 0) };
    assert!(world.push(high));
    assert_eq!(world.step(), Step::Run(vec![3]));
    assert_eq!(world.step(), Step::Run(vec![2]));
    world.now += 2 * HEAD_START + ms(1);
    let high = Ticket { priority: Priority::High, ..world.ticket(4, 1, 0) };
    assert!(world.push(high));
    assert_eq!(world.step(), Step::Run(vec![1]), "it has waited longer than the head start");
}

#[test]
fn what_nobody_waits_for_goes_behind_all_who_come_while_it_waits_and_its_deadline_ends_it() {
    let mut world = World::new(10, 1000);
    let copy = |world: &World, id, due| Ticket {
        priority: Priority::Last,
        deadline: Some(world.now + due),
        ..world.ticket(id, 1, 0)
    };
    for (id, due) in [(1, ms(600_000)), (2, ms(3000))] {
        let copy = copy(&world, id, due);
        assert!(world.push(copy));
    }
    world.now += PATIENCE + 2 * HEAD_START + ms(1000);
    let low = Ticket { priority: Priority::Low, ..world.ticket(3, 4, 0) };
    assert!(world.push(low));
    assert_eq!(world.step(), Step::Run(vec![3]), "however long the copies have waited");
    world.now += ms(1000);
    world.push_plain(&[4], 4, 0);
    assert_eq!(world.step(), Step::Run(vec![4]));
    assert_eq!(world.step(), Step::RunAfterExpired(vec![1], vec![2]), "nothing else waits any more");
}

impl World {
    /// What a run of so many rows takes, told often enough to be believed.
    fn learn(&mut self, version: u32, free: u64, took: &[(u32, u64)]) {
        for _ in 0..5 {
            for (rows, took) in took {
                let bucket = Bucket { version, free: vec![free], suspect: false };
                self.batcher.profile(&bucket).learn(*rows, ms(*took));
            }
        }
        let bucket = Bucket { version, free: vec![free], suspect: false };
        for (rows, _) in took {
            self.batcher.profile(&bucket).ran.insert(*rows, self.now);
        }
    }
}

#[test]
fn a_deadline_that_leaves_time_for_less_gets_a_smaller_batch() {
    let mut world = World::new(100, 10_000);
    world.learn(0, 0, &[(1, 10), (2, 14), (4, 22)]);
    world.push_due(1, 0, ms(25));
    for id in 2..5 {
        world.push_due(id, 0, ms(400));
    }
    // Half as long again has to be reckoned with: 21 ms for two rows, 27 for three.
    assert_eq!(world.step(), Step::Run(vec![1, 2]));
}

#[test]
fn who_cannot_be_in_time_any_more_is_told_so_and_not_run() {
    let mut world = World::new(100, 10_000);
    world.push_due(1, 0, ms(20));
    world.push_due(2, 0, ms(200));
    world.learn(0, 0, &[(1, 30), (4, 30)]);
    assert_eq!(world.step(), Step::RunAfterExpired(vec![2], vec![1]));
}

#[test]
fn nobody_is_late_for_the_sake_of_a_batch_that_is_larger_than_is_of_use() {
    let mut world = World::new(100, 10_000);
    for id in 0..40 {
        let grouping = Grouping::Together { max_rows: 32 };
        let ticket = Ticket { grouping, deadline: Some(world.now + ms(7)), ..world.ticket(id, 0, 0) };
        assert!(world.push(ticket));
    }
    // As fast as possible with 8 rows; 32 are no faster, and take 12 ms.
    world.learn(0, 0, &[(1, 3), (8, 3), (16, 6), (24, 9), (32, 12)]);
    assert_eq!(world.step(), Step::Run((0..8).collect()));
}

#[test]
fn a_request_that_takes_longer_than_its_budget_is_refused_by_an_engine_that_does_nothing() {
    let mut world = World::new(10_000, 10_000);
    world.learn(0, 0, &[(1, 40), (4, 40)]);
    let ask = |world: &World, rows| Ticket {
        rows,
        deadline: Some(world.now + ms(2000)),
        ..world.ticket(u64::from(rows), 0, 0)
    };
    let ticket = ask(&world, 1000);
    assert!(!world.push(ticket), "1,000 rows are 250 runs of 40 ms");
    let ticket = ask(&world, 100);
    assert!(world.push(ticket), "100 take a second");
}

#[test]
fn of_what_comes_at_once_to_an_engine_that_does_nothing_no_more_is_taken_than_it_can_do() {
    let mut world = World::new(100, 10_000);
    world.learn(0, 0, &[(1, 500)]);
    let taken = (0..9).filter(|id| {
        let ticket = Ticket { deadline: Some(world.now + ms(2000)), ..world.ticket(*id, 0, 0) };
        world.push(ticket)
    });
    assert_eq!(taken.count(), 3, "the fourth would have a slow run, of 750 ms, after 1.5 s");
}

#[test]
fn many_quick_rows_that_waited_say_nothing_about_slow_ones() {
    let mut world = World::new(10_000, 100_000);
    world.learn(0, 0, &[(1, 1), (4, 4)]);
    world.learn(0, 7, &[(1, 100)]);
    world.push_plain(&(0..100).collect::<Vec<_>>(), 0, 0);
    assert!(matches!(world.step(), Step::Run(_)));
    let taken = (100..200).filter(|id| {
        let ticket = Ticket { deadline: Some(world.now + ms(2000)), ..world.ticket(*id, 0, 7) };
        world.push(ticket)
    });
    assert!((10..20).contains(&taken.count()), "each takes a twentieth of the time that they have");
}

#[test]
fn what_a_long_run_takes_is_believed_as_long_as_one_is_under_way() {
    let mut world = World::new(100, 10_000);
    world.learn(0, 0, &[(1, 3000)]);
    world.push_plain(&[1], 0, 0);
    assert_eq!(world.step(), Step::Run(vec![1]));
    world.now += ms(2000);
    let due = |world: &World, id, due| Ticket { deadline: Some(world.now + due), ..world.ticket(id, 0, 0) };
    let ticket = due(&world, 2, ms(3000));
    assert!(!world.push(ticket), "one second is left of what runs, and it takes three itself");
    let ticket = due(&world, 3, ms(6000));
    assert!(world.push(ticket));
}

#[test]
fn what_makes_way_does_not_stand_before_anybody() {
    let mut world = World::new(1000, 10_000);
    let bucket = Bucket { version: 1, free: vec![0], suspect: false };
    (0..8).for_each(|_| world.batcher.profile(&bucket).learn(1, ms(10)));
    let mut id = 0;
    let mut push = |world: &mut World, many: u64, criticality, tenant| {
        for _ in 0..many {
            id += 1;
            let ticket = Ticket { criticality, tenant, ..world.ticket(id, 1, 0) };
            assert!(world.push(ticket));
        }
    };
    let bound = Bound { version: 1, lanes: 1, at_once: 1 };
    let before = |world: &World, criticality, tenant| {
        world.batcher.backlog_before(bound, criticality, tenant, world.now).as_millis()
    };
    push(&mut world, 4, Criticality::Critical, 1);
    push(&mut world, 10, Criticality::Normal, 1);
    push(&mut world, 2, Criticality::Normal, 2);
    push(&mut world, 6, Criticality::Sheddable, 1);
    assert_eq!(before(&world, Criticality::Sheddable, 1), 220);
    assert_eq!(before(&world, Criticality::Critical, 1), 40);
    assert_eq!(before(&world, Criticality::Normal, 1), 160);
    // Of the first as many stay as it would have itself.
    assert_eq!(before(&world, Criticality::Normal, 2), 40 + 30 + 20);
    assert_eq!(before(&world, Criticality::Normal, 3), 40 + 10 + 10);
}

#[test]
fn what_rows_take_is_known_alone_and_with_others() {
    let mut world = World::new(1000, 10_000);
    let bucket = Bucket { version: 0, free: vec![0], suspect: false };
    assert_eq!(world.batcher.takes(&bucket, TOGETHER, 1), None);
    let profile = world.batcher.profile(&bucket);
    profile.limit(4);
    for rows in [1, 1, 1, 4, 4, 4, 4, 4, 4] {
        profile.learn(rows, ms(10 + 2 * u64::from(rows)));
    }
    let tenths = |takes: Duration| (takes.as_secs_f64() * 1e4).round();
    let takes = |grouping, rows| {
        world.batcher.takes(&bucket, grouping, rows).map(|(alone, other)| [alone, other].map(tenths))
    };
    assert_eq!(takes(TOGETHER, 1), Some([120.0, 45.0]));
    assert_eq!(takes(TOGETHER, 4), Some([180.0, 180.0]));
    assert_eq!(takes(TOGETHER, 9), Some([540.0, 405.0]), "in three runs");
    for grouping in [Grouping::Alone, Grouping::Serial] {
        assert_eq!(takes(grouping, 1), Some([120.0, 120.0]), "there are no others");
        assert_eq!(takes(grouping, 9), Some([280.0, 280.0]), "in one run");
    }
}

#[test]
fn who_runs_alone_is_not_given_up_for_want_of_the_time_that_larger_ones_take() {
    let mut world = World::new(100, 10_000);
    for id in 0..10 {
        let ticket = Ticket { deadline: Some(world.now + ms(50)), ..world.ticket(id, 1, 0) };
        assert!(world.push(ticket));
    }
    // Of those sizes eight rows are the fastest, for each row; but nobody has as many.
    world.learn(1, 0, &[(1, 10), (8, 40), (9, 50), (16, 160)]);
    assert_eq!(world.step(), Step::Run(vec![0]), "it takes 10 ms, and 15 when it is slow");
}

#[test]
fn a_shape_that_has_not_run_is_expected_to_take_what_the_nearest_one_does() {
    let mut world = World::new(100, 10_000);
    world.learn(0, 1, &[(1, 1), (2, 1), (4, 1)]);
    world.learn(0, 10, &[(1, 12), (2, 22), (4, 42)]);
    for id in 1..=4 {
        world.push_due(id, 20, ms(50));
    }
    assert_eq!(
        world.step(),
        Step::Run(vec![1, 2]),
        "22 ms and 20 for each more: three may take longer than 50"
    );
}

#[test]
fn dimensions_that_several_inputs_share_count_once() {
    let mut world = World::new(100, 10_000);
    let bucket = |length: u64| Bucket { version: 0, free: vec![length; 3], suspect: false };
    for rows in [1, 2, 4, 1, 2, 4] {
        world.batcher.profile(&bucket(16)).learn(rows, ms(u64::from(rows)));
    }
    let known = world.batcher.profile(&bucket(512)).curve.typical(1).unwrap();
    assert!((ms(30)..ms(35)).contains(&known), "{known:?} for 32 times as many tokens");
    let far = Bucket { version: 0, free: vec![u64::MAX; 3], suspect: false };
    assert!(world.batcher.profile(&far).curve.typical(u32::MAX).unwrap() < Duration::from_secs(4000));
}

#[test]
fn only_who_has_a_deadline_can_be_late_and_an_urgent_one_not_sooner() {
    let mut world = World::new(100, 10_000);
    world.learn(0, 0, &[(1, 10), (4, 30)]);
    world.push_plain(&[1, 2, 3, 4, 5], 0, 0);
    let deadline = Some(world.now + ms(2030));
    assert!(world.push(Ticket { priority: Priority::High, deadline, ..world.ticket(6, 0, 0) }));
    world.now += ms(2000);
    assert!(world.batcher.have_time_after(ms(10), world.now));
    assert!(!world.batcher.have_time_after(ms(30), world.now));
}

#[test]
fn a_hasty_job_is_not_given_up_for_those_that_have_time() {
    let mut world = World::new(100, 10_000);
    world.learn(0, 0, &[(1, 10), (4, 30)]);
    world.push_plain(&[1, 2, 3, 4, 5], 0, 0);
    world.push_due(10, 0, ms(20));
    assert_eq!(world.step(), Step::Run(vec![10]), "a batch of four would take 30 ms");
    assert_eq!(world.step(), Step::Run(vec![1, 2, 3, 4]));
}

#[test]
fn no_small_batch_is_run_for_a_hasty_job_when_that_would_make_others_late() {
    let mut world = World::new(100, 10_000);
    world.push_due(1, 0, ms(20));
    for id in 2..=6 {
        world.push_due(id, 0, ms(60));
    }
    world.learn(0, 0, &[(1, 10), (4, 30)]);
    assert_eq!(world.step(), Step::RunAfterExpired(vec![2, 3, 4, 5], vec![1]));
}

#[test]
fn nor_when_those_of_another_shape_would_be_late() {
    let mut world = World::new(100, 10_000);
    world.push_due(1, 0, ms(20));
    world.push_plain(&[2, 3, 4, 5, 6], 0, 0);
    world.push_due(7, 9, ms(45));
    world.learn(0, 0, &[(1, 10), (4, 30)]);
    world.learn(0, 9, &[(1, 35)]);
    assert_eq!(world.step(), Step::RunAfterExpired(vec![2, 3, 4, 5], vec![1]));
}

#[test]
fn what_was_not_tried_lately_is_excused_for_its_own_time_and_not_for_what_waits_before_it() {
    let mut world = World::new(1000, 100_000);
    world.learn(0, 0, &[(1, 300), (4, 300)]);
    world.now += TRIED_WITHIN;
    world.learn(1, 0, &[(1, 100)]);
    world.push_plain(&(0..20).collect::<Vec<_>>(), 1, 0);
    let due = |world: &World, id, free, due| Ticket {
        deadline: Some(world.now + due),
        priority: Priority::Low,
        criticality: Criticality::Sheddable,
        ..world.ticket(id, 0, free)
    };
    // One that has not run for long, and one that never has.
    for (id, free) in [(100, 0), (101, 7)] {
        let late = due(&world, id, free, ms(1900));
        let Err(Refused::TooLate { wait, .. }) = world.batcher.push(late, &mut world.shed, world.now) else {
            panic!("two seconds of work stand before it")
        };
        assert_eq!(wait.as_millis(), 2000);
        let in_time = due(&world, id, free, ms(2100));
        assert!(world.push(in_time), "nobody knows that it takes 300 ms");
    }
    let tried = Ticket { deadline: Some(world.now + ms(2100)), ..world.ticket(102, 1, 0) };
    assert!(!world.push(tried), "of what waits itself it is known");
    world.now += TRIED_WITHIN;
    world.batcher.cancel(1, 100);
    let due = due(&world, 103, 0, ms(100));
    assert!(world.push(due), "what waits before it may be faster by now as well");
}

#[test]
fn of_those_who_come_at_once_after_a_rest_only_the_first_are_excused() {
    let mut world = World::new(1000, 100_000);
    world.learn(0, 0, &[(1, 30), (4, 30)]);
    world.now += TRIED_WITHIN;
    let let_in = (0..300).filter(|id| {
        let ticket = Ticket { deadline: Some(world.now + ms(100)), ..world.ticket(*id, 0, 0) };
        world.push(ticket)
    });
    assert_eq!(let_in.count(), 8, "two runs of 30 ms; the third may take 45");
}

#[test]
fn an_idle_lane_waits_for_an_arrival_that_saves_more_than_it_costs() {
    let mut world = World::new(100, 10_000);
    world.learn(0, 0, &[(1, 10), (4, 10)]);
    for id in 0..8 {
        world.push_plain(&[id], 0, 0);
        assert!(matches!(world.step(), Step::Run(_) | Step::Wait(_)));
        world.now += ms(1);
    }
    while world.step() != Step::Idle {
        world.now += ms(1);
    }
    // One every millisecond, 10 ms a run whatever its size: worth two gaps, not the 10 ms that it might be.
    world.push_plain(&[20], 0, 0);
    let Step::Wait(wait) = world.step() else { panic!("waiting pays") };
    assert!(wait > ms(1) && wait < ms(6), "{wait:?}");
    world.now += wait;
    let Next::Run(batch) = world.batcher.next(world.now) else { panic!("nobody came") };
    assert_eq!((batch.pieces[0].job, batch.closed), (20, Closed::Waited));
}

#[test]
fn nobody_waits_for_a_rare_arrival_nor_when_nothing_is_saved_nor_against_a_deadline() {
    let mut world = World::new(100, 10_000);
    world.learn(0, 0, &[(1, 10), (2, 10), (4, 10)]);
    world.learn(3, 0, &[(1, 10), (2, 20), (4, 40)]);
    for id in 0..6 {
        world.push_plain(&[id], 0, 0);
        assert_eq!(world.step(), Step::Run(vec![id]));
        world.now += ms(100);
    }
    for id in 10..30 {
        world.push_plain(&[id], 3, 0);
        assert_eq!(world.step(), Step::Run(vec![id]), "linear");
        world.now += ms(1);
    }
    let mut world = World::new(100, 10_000);
    world.learn(0, 0, &[(1, 10), (2, 10), (4, 10)]);
    for id in 0..8 {
        world.push_due(id, 0, Duration::from_micros(15_050));
        assert_eq!(world.step(), Step::Run(vec![id]), "15 ms are for a slow run");
        world.finish_all(Ended::Failed);
        world.now += ms(1);
    }
}

#[test]
fn nobody_waits_because_of_how_long_much_larger_batches_take() {
    let mut world = World::new(100, 10_000);
    world.learn(0, 0, &[(32, 500)]);
    for id in 0..8 {
        world.push_plain(&[id], 0, 0);
        assert_eq!(world.step(), Step::Run(vec![id]));
        world.now += ms(20);
    }
}

#[test]
fn memory_that_ran_out_halves_the_batch_and_is_tried_again_row_by_row() {
    let mut world = World::new(100, 10_000);
    let mut run = |ended| {
        for id in 0..4 {
            let ticket = world.ticket(id, 0, 0);
            world.push(ticket);
        }
        let Next::Run(batch) = world.batcher.next(world.now) else { panic!("there is work") };
        world.batcher.finish(batch.claim, ended, world.now);
        batch.pieces.len()
    };
    assert_eq!(run(Ended::OutOfMemory), 4);
    assert_eq!(run(Ended::Ran), 2);
    assert_eq!(run(Ended::Ran), 3);
    assert_eq!(run(Ended::OutOfMemory), 4);
    assert_eq!(run(Ended::Failed), 2);
    assert_eq!(run(Ended::Ran), 2);
}

#[test]
fn shapes_without_number_do_not_fill_memory() {
    let mut world = World::new(100, 10_000);
    for free in 0..2 * PROFILES_MAX as u64 {
        world.push_plain(&[free], 0, free);
        assert_eq!(world.step(), Step::Run(vec![free]));
        world.finish_all(Ended::Failed);
    }
    assert_eq!(world.batcher.profiles.len(), PROFILES_MAX);
}

#[test]
fn what_does_not_fit_in_one_shape_may_fit_in_another() {
    let mut world = World::new(100, 10_000);
    world.push_plain(&[1, 2, 3, 4], 0, 512);
    let Next::Run(batch) = world.batcher.next(world.now) else { panic!("there is work") };
    world.batcher.finish(batch.claim, Ended::OutOfMemory, world.now);
    world.push_plain(&[5, 6, 7, 8], 0, 512);
    world.push_plain(&[11, 12, 13, 14], 0, 16);
    assert_eq!(world.step(), Step::Run(vec![5, 6]));
    assert_eq!(world.step(), Step::Run(vec![7, 8]));
    assert_eq!(world.step(), Step::Run(vec![11, 12, 13, 14]));
}

#[test]
fn runs_of_several_threads_share_the_cores_with_others_and_do_not_starve_behind_them() {
    let mut world = World::new(100, 10_000);
    world.batcher = Batcher::new(world.batcher.limits, 2, world.now);
    let wide = |world: &World, id| Ticket { lanes: 2, ..world.ticket(id, 1, 0) };
    world.push_plain(&[1], 0, 0);
    assert_eq!(world.step(), Step::Run(vec![1]));
    let ticket = wide(&world, 2);
    world.push(ticket);
    world.push_plain(&[3], 0, 0);
    assert_eq!(world.step(), Step::Idle, "the wide one is next, and the cores do not suffice for it yet");
    world.finish_all(Ended::Failed);
    assert_eq!(world.step(), Step::Run(vec![2]));
    assert_eq!(world.step(), Step::Idle, "it has both cores");
    world.finish_all(Ended::Failed);
    assert_eq!(world.step(), Step::Run(vec![3]));
}

#[test]
fn more_shapes_than_may_wait_are_refused() {
    let mut world = World::new(10_000, 1_000_000);
    for free in 0..QUEUES_MAX as u64 {
        world.push_plain(&[free], 2, free);
    }
    let (another, known) = (world.ticket(9000, 2, 9000), world.ticket(9001, 2, 0));
    assert!(matches!(
        world.batcher.push(another, &mut world.shed, world.now),
        Err(Refused::Overloaded { job: 9000, .. })
    ));
    assert!(world.push(known), "of a shape that waits already there may be more");
}
