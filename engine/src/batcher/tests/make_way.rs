//! Who has to go for whom, where there is not room or time enough for all.

use super::*;

#[test]
fn who_matters_less_makes_way_and_nobody_goes_for_nothing() {
    let mut world = World::new(4, 1000);
    let of = |world: &World, id, criticality, rows| Ticket { criticality, rows, ..world.ticket(id, 0, 0) };
    for (id, criticality) in
        [(1, Criticality::Sheddable), (2, Criticality::Normal), (3, Criticality::Sheddable)]
    {
        let ticket = of(&world, id, criticality, 1);
        assert!(world.push(ticket));
    }
    let ticket = of(&world, 4, Criticality::Critical, 4);
    assert!(world.push(ticket), "all three are less critical");
    assert_eq!(world.shed, [3, 1, 2], "the least critical first, and of those the newest");
    world.shed.clear();
    for criticality in [Criticality::Normal, Criticality::Sheddable, Criticality::Critical] {
        let ticket = of(&world, 5, criticality, 1);
        assert!(!world.push(ticket), "{criticality:?}");
    }
    assert!(world.shed.is_empty());
}

#[test]
fn a_tenant_who_asks_for_less_than_its_share_gets_it_whatever_others_ask_for() {
    let mut world = World::new(12, 1000);
    let of = |world: &World, id, tenant| Ticket { tenant, ..world.ticket(id, 0, 0) };
    for id in 0..12 {
        let ticket = of(&world, id, 1);
        assert!(world.push(ticket));
    }
    for id in 100..106 {
        let ticket = of(&world, id, 2);
        assert!(world.push(ticket), "{id}");
    }
    assert_eq!(world.shed, [11, 10, 9, 8, 7, 6], "the newest of who has most");
    for tenant in [1, 2] {
        let ticket = of(&world, 200, tenant);
        assert!(!world.push(ticket), "both have their half");
    }
    let ticket = of(&world, 300, 3);
    assert!(world.push(ticket), "a third one has room for a third");
    assert_eq!(world.shed.len(), 7);
}

#[test]
fn a_version_of_which_little_is_asked_is_not_kept_out_by_the_flood_of_another() {
    let mut world = World::new(12, 1000);
    let of = |world: &World, id, version, tenant| Ticket { tenant, ..world.ticket(id, version, 0) };
    world.push_plain(&(0..12).collect::<Vec<_>>(), 3, 0);
    for id in 100..106 {
        let ticket = of(&world, id, 0, 0);
        assert!(world.push(ticket), "{id}");
    }
    assert_eq!(world.shed, [11, 10, 9, 8, 7, 6], "the newest of the version that has most");
    for version in [0, 3] {
        let ticket = of(&world, 200, version, 0);
        assert!(!world.push(ticket), "both have their half");
    }
    // Another tenant has as much as this one, however many versions this one asks.
    world.shed.clear();
    for id in 300..306 {
        let ticket = of(&world, id, 3, 7);
        assert!(world.push(ticket), "{id}");
    }
    assert_eq!(world.shed.len(), 6);
    assert!(world.shed.iter().all(|id| *id < 300), "{:?}", world.shed);
    for (version, tenant) in [(0, 0), (6, 0), (3, 7)] {
        let ticket = of(&world, 400, version, tenant);
        let is_new = version == 6;
        assert_eq!(world.push(ticket), is_new, "within a tenant a third version has room for a third");
    }
}

#[test]
fn nobody_goes_for_another_version_that_matters_no_more_and_has_as_much() {
    let mut world = World::new(8, 1000);
    let of = |world: &World, id, version, criticality| Ticket { criticality, ..world.ticket(id, version, 0) };
    for id in 0..8 {
        let ticket = of(&world, id, if id < 4 { 0 } else { 3 }, Criticality::Normal);
        assert!(world.push(ticket));
    }
    for version in [0, 3] {
        for criticality in [Criticality::Normal, Criticality::Sheddable] {
            let ticket = of(&world, 100, version, criticality);
            assert!(!world.push(ticket));
        }
    }
    let urgent = Ticket { deadline: Some(world.now + ms(1)), ..world.ticket(101, 3, 0) };
    assert!(!world.push(urgent), "haste is no reason either");
    assert!(world.shed.is_empty());
    let critical = of(&world, 102, 3, Criticality::Critical);
    assert!(world.push(critical));
    assert_eq!(world.shed.len(), 1);
}

#[test]
fn who_has_no_time_left_goes_first_however_critical() {
    let mut world = World::new(3, 1000);
    let due = |world: &World, id, criticality, due| Ticket {
        criticality,
        deadline: Some(world.now + ms(due)),
        ..world.ticket(id, 2, 0)
    };
    for (id, criticality, left) in
        [(1, Criticality::Critical, 5), (2, Criticality::Sheddable, 50), (3, Criticality::Normal, 5)]
    {
        let ticket = due(&world, id, criticality, left);
        assert!(world.push(ticket));
    }
    let ticket = due(&world, 10, Criticality::Sheddable, 50);
    assert!(!world.push(ticket));
    world.now += ms(5);
    for id in [11, 12] {
        let ticket = due(&world, id, Criticality::Sheddable, 50);
        assert!(world.push(ticket));
    }
    assert_eq!(world.shed, [1, 3]);
    let ticket = due(&world, 13, Criticality::Sheddable, 50);
    assert!(!world.push(ticket), "the others have time");
}

#[test]
fn time_is_made_like_room() {
    let mut world = World::new(100, 10_000);
    world.learn(0, 0, &[(1, 10), (4, 10)]);
    let now = world.now;
    let due = |world: &World, id, tenant| Ticket {
        tenant,
        rows: 4,
        deadline: Some(now + ms(75)),
        ..world.ticket(id, 0, 0)
    };
    let mut taken = 0;
    while taken < 100 {
        let ticket = due(&world, taken, 1);
        if !world.push(ticket) {
            break;
        }
        taken += 1;
    }
    assert!(taken >= 3, "{taken} batches of 10 ms fit into 75");
    let ticket = due(&world, 200, 1);
    assert!(!world.push(ticket));
    let ticket = due(&world, 201, 2);
    assert!(world.push(ticket), "another tenant has nothing waiting yet");
    assert_eq!(world.shed, [taken - 1]);
}

#[test]
fn nobody_goes_who_does_not_stand_in_the_way() {
    let mut world = with_lanes(2);
    world.learn(0, 0, &[(1, 100), (4, 400)]);
    world.learn(2, 0, &[(1, 400)]);
    world.push_plain(&[1, 2, 3], 2, 0);
    assert_eq!(world.step(), Step::Run(vec![1]));
    world.push_plain(&(10..20).collect::<Vec<_>>(), 0, 0);
    // After 1200 ms it is its turn, and a slow run takes 600: it lacks less than a row of the others takes.
    let late = patient(&world, 40, 2, ms(1750));
    let refused = world.batcher.push(late, &mut world.shed, world.now);
    assert!(matches!(refused, Err(Refused::TooLate { job: 40, .. })), "{refused:?}");
    assert!(world.shed.is_empty(), "it waits for its own version's turn, and the others use the other lane");
}

#[test]
fn who_makes_room_makes_time_as_well() {
    let mut world = World::new(4, 1000);
    world.learn(0, 0, &[(1, 10), (4, 10)]);
    let due = |world: &World, id, criticality, rows| Ticket {
        criticality,
        rows,
        deadline: Some(world.now + ms(15)),
        ..world.ticket(id, 0, 0)
    };
    let first = due(&world, 1, Criticality::Normal, 4);
    assert!(world.push(first));
    let equal = due(&world, 2, Criticality::Normal, 4);
    assert!(!world.push(equal), "two batches do not fit");
    let critical = due(&world, 3, Criticality::Critical, 4);
    assert!(world.push(critical), "whoever has gone for its room takes no time any more");
    assert_eq!(world.shed, [1]);
}

#[test]
fn as_many_who_matter_less_go_as_it_takes() {
    for (waiting, left) in [(41, 250), (41, 450), (151, 250), (700, 450)] {
        let mut world = World::new(1_000, 100_000);
        world.learn(0, 0, &[(1, 100), (4, 100)]);
        for id in 0..waiting {
            let ticket = Ticket { criticality: Criticality::Sheddable, ..world.ticket(id, 0, 0) };
            assert!(world.push(ticket));
        }
        // By then each of them is more urgent than whoever comes.
        world.now += ms(2_000);
        world.learn(0, 0, &[(1, 100), (4, 100)]);
        let due = |world: &World, id, left| Ticket {
            criticality: Criticality::Critical,
            deadline: Some(world.now + ms(left)),
            ..world.ticket(id, 0, 0)
        };
        let hopeless = due(&world, 1_000, 90);
        assert!(!world.push(hopeless), "alone it takes longer");
        assert!(world.shed.is_empty(), "and nobody goes for nothing");
        let critical = due(&world, 1_001, left);
        assert!(world.push(critical), "{waiting} {left}");
        assert!(world.shed.len() as u64 > waiting - 30, "{} of {waiting}", world.shed.len());
    }
}

#[test]
fn who_makes_way_leaves_a_run_without_its_rows() {
    let mut world = World::new(100, 10_000);
    world.learn(0, 0, &[(1, 10), (4, 34)]);
    let due = |world: &World, id, criticality| Ticket {
        criticality,
        deadline: Some(world.now + ms(75)),
        ..world.ticket(id, 0, 0)
    };
    for id in 0..4 {
        let ticket = due(&world, id, Criticality::Sheddable);
        assert!(world.push(ticket));
    }
    let ticket = due(&world, 10, Criticality::Sheddable);
    assert!(!world.push(ticket), "34 ms, and 51 for another such run");
    let ticket = due(&world, 11, Criticality::Normal);
    assert!(world.push(ticket), "in a run with three of them");
    assert_eq!(world.shed, [3]);
}
