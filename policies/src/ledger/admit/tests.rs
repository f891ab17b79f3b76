//! What requests reserve, pay for and give back.

use super::*;
use crate::parse;

const ANA: [(&str, &str); 1] = [("user", "ana")];
const BEN: [(&str, &str); 1] = [("user", "ben")];

fn policies(text: &str) -> Snapshot {
    parse(text, "policies.yaml").unwrap()
}

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// One policy, and requests under it.
struct World {
    snapshot: Snapshot,
    ledger: Ledger,
    start: Instant,
}

impl World {
    fn new(limits: &str) -> Self {
        let snapshot = policies(&format!("limits: [{limits}]"));
        Self { snapshot, ledger: Ledger::new(), start: Instant::now() }
    }

    fn admit(&self, caller: &[(&str, &str)], length: Option<u64>, at_ms: u64) -> Result<Admitted, Limited> {
        let caller: [(&str, &str); 1] = caller.try_into().unwrap();
        self.ledger.admit(&self.snapshot, "m", &caller, || length, self.start + ms(at_ms))
    }

    fn charge(&self, admitted: Admitted, rows: u64, bytes: u64, at_ms: u64) -> Result<Reserved, Limited> {
        let (usage, now) = (Usage { rows, bytes }, self.start + ms(at_ms));
        let charged = self.ledger.charge(&self.snapshot, "m", &ANA, admitted, usage, now);
        charged.map(|charged| charged.reserved)
    }

    /// What is left to this caller, in units of the nearest limit.
    fn left(&self, caller: &[(&str, &str)], at_ms: u64) -> u32 {
        match self.admit(caller, None, at_ms) {
            // One that was asked for is not among what is left, and comes back at once.
            Ok(admitted) => admitted.quota.as_ref().unwrap().remaining + 1,
            Err(limited) => limited.quota.remaining,
        }
    }
}

#[test]
fn a_long_body_is_refused_by_what_its_head_says() {
    let world = World::new("{name: bytes, cost: bytes, rate: 100/h}");
    let never = world.admit(&ANA, Some(101), 0).unwrap_err();
    assert_eq!(never.never, NonZeroU32::new(101));
    let coming = world.admit(&ANA, Some(60), 0).unwrap();
    let crowded = world.admit(&ANA, Some(60), 0).unwrap_err();
    assert_eq!(crowded.retry_after, Duration::from_secs(20 * 36), "two at once do not overshoot");
    drop(coming);
    assert_eq!(world.left(&ANA, 0), 100, "its client has left");
}

#[test]
fn what_is_settled_is_paid_for_and_may_still_be_given_back() {
    let world = World::new("{name: rows, cost: rows, rate: 10/h}");
    let charged = |rows| world.charge(world.admit(&ANA, None, 0).unwrap(), rows, 1, 0).unwrap();
    drop(charged(8));
    assert_eq!(world.left(&ANA, 0), 10, "it was not run");
    let mut ran = charged(4);
    ran.settle();
    drop(ran);
    assert_eq!(world.left(&ANA, 0), 6);
    let mut turned_away = charged(6);
    turned_away.settle();
    assert_eq!(world.left(&ANA, 0), 0);
    turned_away.give_back();
    assert_eq!(world.left(&ANA, 0), 6);
}

#[test]
fn what_turns_out_to_be_less_than_was_said_is_less() {
    let world = World::new("{name: bytes, cost: bytes, rate: 100/h}");
    let mut ran = world.charge(world.admit(&ANA, Some(90), 0).unwrap(), 1, 30, 0).unwrap();
    ran.settle();
    drop(ran);
    assert_eq!(world.left(&ANA, 0), 70);
}

#[test]
fn who_is_refused_at_one_limit_has_spent_nothing_at_the_others() {
    let world = World::new(
        "{name: asks, rate: 5/h}, {name: bytes, cost: bytes, rate: 100/h}, {name: rows, cost: rows, rate: 10/h}",
    );
    for _ in 0..20 {
        let refused = world.charge(world.admit(&ANA, Some(50), 0).unwrap(), 11, 50, 0).unwrap_err();
        assert_eq!((&*refused.limit, refused.never), ("rows", NonZeroU32::new(11)));
    }
    for _ in 0..5 {
        let mut ran = world.charge(world.admit(&ANA, Some(20), 0).unwrap(), 2, 20, 0).unwrap();
        ran.settle();
    }
    let spent = world.admit(&ANA, Some(1), 0).unwrap_err();
    assert_eq!(spent.quota.remaining, 0);
}

#[test]
fn who_asks_again_and_again_of_what_is_overloaded_has_asked() {
    let world = World::new("{name: asks, rate: 3/h}, {name: rows, cost: rows, rate: 10/h}");
    for _ in 0..3 {
        let shed = world.charge(world.admit(&ANA, None, 0).unwrap(), 9, 1, 0).unwrap();
        shed.give_back();
    }
    assert_eq!(&*world.admit(&ANA, None, 0).unwrap_err().limit, "asks");
}

/// Else whoever fills the places could pay into the bucket that strangers share, and empty it into its own.
#[test]
fn what_was_taken_from_the_overflow_bucket_goes_back_there() {
    let world =
        World::new("{name: rows, cost: rows, key: {header: user}, rate: 10/s, burst: 10, max_keys: 1}");
    let mut ben = world.charge(world.admit(&BEN, None, 0).unwrap(), 1, 1, 0).unwrap();
    ben.settle();
    drop(ben);
    let overflowing = world.charge(world.admit(&ANA, None, 0).unwrap(), 8, 1, 0).unwrap();
    // Ben owes nothing any more, so that Ana gets a place of her own; she owes there the 6.5 rows that time has not paid for.
    let mut own = world.charge(world.admit(&ANA, None, 150).unwrap(), 2, 1, 150).unwrap();
    own.settle();
    drop(own);
    assert_eq!(world.left(&ANA, 150), 1);
    drop(overflowing);
    assert_eq!(world.left(&ANA, 150), 1, "it was not hers");
    assert_eq!(world.left(&[("user", "cy")], 150), 10, "but everybody else's");
}

/// Else a caller could empty two buckets: what it has begun in the one that strangers share, and its own.
#[test]
fn who_gets_a_place_while_its_body_is_read_pays_for_the_rest_of_it_there() {
    let world =
        World::new("{name: bytes, cost: bytes, key: {header: user}, rate: 10/s, burst: 10, max_keys: 1}");
    let mut ben = world.charge(world.admit(&BEN, Some(1), 0).unwrap(), 1, 1, 0).unwrap();
    ben.settle();
    drop(ben);
    let begun = world.admit(&ANA, Some(5), 0).unwrap();
    let mut own = world.charge(world.admit(&ANA, Some(5), 150).unwrap(), 1, 5, 150).unwrap();
    own.settle();
    drop(own);
    assert_eq!(world.left(&ANA, 150), 1, "of ten, five and the 3.5 that time has not paid for are spent");
    let refused = world.charge(begun, 1, 8, 150).unwrap_err();
    assert_eq!(refused.retry_after, ms(650), "five more than it has left fit in once time has paid for them");
    assert_eq!(world.admit(&ANA, Some(8), 799).unwrap_err().retry_after, ms(1));
    assert!(world.admit(&ANA, Some(8), 800).is_ok());
}

/// A bucket of ten that is full cannot be filled further by taking from it and giving back.
#[test]
fn nobody_stores_what_a_full_bucket_has_no_room_for() {
    let world = World::new("{name: rows, cost: rows, rate: 10/s, burst: 10}");
    let held = world.charge(world.admit(&ANA, None, 0).unwrap(), 10, 1, 0).unwrap();
    let mut ran = world.charge(world.admit(&ANA, None, 1000).unwrap(), 10, 1, 1000).unwrap();
    ran.settle();
    drop(ran);
    drop(held);
    assert_eq!(world.left(&ANA, 1000), 0);
}

/// The same limit kept as a list of debts, which time pays in the order in which they were made, whenever somebody asks.
struct Debts {
    interval: u64,
    burst: u64,
    paid_at: u64,
    all: Vec<Debt>,
}

struct Debt {
    of: usize,
    at: u64,
    spent: u64,
    unpaid: u64,
}

impl Debts {
    /// How long a request waits that has all these units and gives back what it has.
    fn wait(&mut self, of: usize, units: u64, more: u64, now: u64) -> Option<u64> {
        if units > self.burst || more > self.burst {
            return Some(u64::MAX);
        }
        if more == 0 {
            return None;
        }
        let mut time = now - self.paid_at;
        self.paid_at = now;
        for debt in &mut self.all {
            let pays = time.min(debt.unpaid);
            (debt.unpaid, time) = (debt.unpaid - pays, time - pays);
        }
        let owed = |is_counted: &dyn Fn(&Debt) -> bool| -> u64 {
            self.all.iter().filter(|debt| is_counted(debt)).map(|debt| debt.unpaid).sum()
        };
        let full = self.burst * self.interval;
        let fits = owed(&|_| true) + more * self.interval <= full;
        (!fits).then(|| owed(&|debt| debt.of != of) + units * self.interval - full)
    }

    fn spend(&mut self, of: usize, units: u64, at: u64) {
        let spent = units * self.interval;
        if spent > 0 {
            self.all.push(Debt { of, at, spent, unpaid: spent });
        }
    }

    fn give_back(&mut self, of: usize) {
        for debt in self.all.iter_mut().filter(|debt| debt.of == of) {
            debt.spent -= std::mem::take(&mut debt.unpaid);
        }
    }

    /// However much was given back, never more than a burst is let through at once.
    fn check_burst(&self) {
        let (mut owed, mut at) = (0_u64, 0);
        for debt in &self.all {
            owed = owed.saturating_sub(debt.at - at) + debt.spent;
            at = debt.at;
            assert!(owed <= self.burst * self.interval);
        }
    }
}

/// Ten thousand schedules of requests that are admitted, charged, run, and given back, in any order.
#[test]
fn reservations_agree_with_a_list_of_debts_to_the_nanosecond() {
    let mut seed = 1_u64;
    let mut dice = |sides: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % sides
    };
    let (mut refusals, mut charges) = (0, 0);
    for schedule in 0..10_000 {
        let (rates, bursts) = ([1 + dice(400), 1 + dice(400)], [1 + dice(8), 1 + dice(8)]);
        let limit = |at: usize, cost| {
            format!("{{name: l{at}, cost: {cost}, rate: {}/s, burst: {}}}", rates[at], bursts[at])
        };
        let world = World::new(&format!("{}, {}", limit(0, "rows"), limit(1, "bytes")));
        let mut oracle = [0, 1].map(|at| {
            let (interval, burst) = (1_000_000_000_u64.div_ceil(rates[at]), bursts[at]);
            Debts { interval, burst, paid_at: 0, all: Vec::new() }
        });
        let longest = |waits: [Option<u64>; 2]| {
            let longer = |(at, wait): &(usize, u64)| (*wait, std::cmp::Reverse(*at));
            let waits = waits.into_iter().enumerate().filter_map(|(at, wait)| Some((at, wait?)));
            waits.max_by_key(longer).map(|(at, wait)| (format!("l{at}"), wait))
        };
        let told = |limited: Limited| {
            let wait = if limited.never.is_some() { u64::MAX } else { limited.retry_after.as_nanos() as u64 };
            (limited.limit.to_string(), wait)
        };
        let (mut now, mut admitted, mut charged) = (0, Vec::new(), Vec::new());
        for of in 0..40 {
            now += dice(4_000_000);
            let at = world.start + Duration::from_nanos(now);
            match dice(4) {
                0 => {
                    let length = 1 + dice(5);
                    let got = world.ledger.admit(&world.snapshot, "m", &ANA, || Some(length), at);
                    let waits =
                        [(0, 1), (1, length)].map(|(at, units)| oracle[at].wait(of, units, units, now));
                    assert_eq!(got.as_ref().err().cloned().map(told), longest(waits), "schedule {schedule}");
                    if let Ok(got) = got {
                        oracle[0].spend(of, 1, now);
                        oracle[1].spend(of, length, now);
                        admitted.push((of, length, got));
                    }
                }
                1 if !admitted.is_empty() => {
                    let (of, length, got) = admitted.swap_remove(dice(admitted.len() as u64) as usize);
                    let (rows, bytes) = (1 + dice(4), length + dice(4));
                    let usage = Usage { rows, bytes };
                    let got = world.ledger.charge(&world.snapshot, "m", &ANA, got, usage, at);
                    let more = [rows - 1, bytes - length];
                    let waits = [0, 1].map(|at| oracle[at].wait(of, [rows, bytes][at], more[at], now));
                    assert_eq!(got.as_ref().err().cloned().map(told), longest(waits), "schedule {schedule}");
                    match got {
                        Ok(got) => {
                            (0..2).for_each(|at| oracle[at].spend(of, more[at], now));
                            charged.push((of, got.reserved));
                            charges += 1;
                        }
                        Err(_) => {
                            oracle.iter_mut().for_each(|debts| debts.give_back(of));
                            refusals += 1;
                        }
                    }
                }
                2 if !admitted.is_empty() => {
                    let (of, _, gone) = admitted.swap_remove(dice(admitted.len() as u64) as usize);
                    drop(gone);
                    oracle.iter_mut().for_each(|debts| debts.give_back(of));
                }
                3 if !charged.is_empty() => {
                    let (of, mut reserved) = charged.swap_remove(dice(charged.len() as u64) as usize);
                    reserved.settle();
                    if dice(2) == 0 {
                        reserved.give_back();
                        oracle.iter_mut().for_each(|debts| debts.give_back(of));
                    }
                }
                _ => {}
            }
        }
        oracle.iter().for_each(Debts::check_burst);
    }
    assert!(refusals > 1_000 && charges > 1_000, "{refusals} refused, {charges} charged");
}

#[test]
fn a_bucket_remembers_no_reservation_that_is_over() {
    let world = World::new("{name: rows, cost: rows, key: {header: user}, rate: 10/s}");
    for user in 0..100 {
        let user = user.to_string();
        let admitted = world.admit(&[("user", user.as_str())], None, 0).unwrap();
        let mut reserved = world.charge(admitted, 3, 1, 0).unwrap();
        if user.ends_with('7') {
            reserved.settle();
        }
    }
    let tables = world.ledger.tables.load();
    assert!(tables.limiters.0[0].1.has_no_reservations());
}
