//! Callers that meet at a version that is tried again: every order of the steps in which they touch what they share.
//!
//! [`Ledger::enter`] takes two: it finds the guard, in one load or one swap of the whole table, and then asks it under its lock; an
//! outcome takes one more under the same lock. Nobody sees half of a step, so all orders of them are all that can happen, and they are
//! walked here as they are, on the real ledger. (A model checker for threads would need its own lock and its own atomics in the
//! place of those that the ledger is made of.) That a first load and the swap after it lose nobody is left to real threads, below.

use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use super::super::*;
use crate::parse;

const WAIT: Duration = Duration::from_secs(10);
const TIMEOUT: Duration = Duration::from_secs(5);

fn policies(probes: u32, failures: u32) -> Snapshot {
    let text = format!(
        "models: {{m: {{breaker: {{failures: {failures}, open_for: 10s, max_open_for: 20s, probes: {probes}, probe_timeout: 5s}}}}}}"
    );
    parse(&text, "p.yaml").unwrap_or_else(|errors| panic!("{errors}"))
}

/// How a request ends.
#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    By(Outcome),
    /// Cancelled: nobody says how.
    Dropped,
    /// Nobody ever hears of it.
    Leaked,
    /// Once it is given up.
    Late(Outcome),
}

impl End {
    /// To find the guard, to enter, to end, and before that to wait.
    fn steps(self) -> usize {
        match self {
            Self::By(_) | Self::Dropped | Self::Leaked => 3,
            Self::Late(_) => 4,
        }
    }
}

struct Caller {
    end: End,
    step: usize,
    found: Option<Arc<Guard>>,
    pass: Option<Pass>,
    entered: Instant,
}

impl Caller {
    fn new(end: End, now: Instant) -> Self {
        Self { end, step: 0, found: None, pass: None, entered: now }
    }

    /// Whether it is a probe that counts.
    fn is_out(&self, now: Instant) -> bool {
        self.pass.as_ref().is_some_and(Pass::is_probe) && now < self.entered + TIMEOUT
    }

    fn is_into(&self, guard: &Arc<Guard>) -> bool {
        let into = self.pass.as_ref().and_then(|pass| pass.admission.as_ref());
        into.is_some_and(|(into, _)| Arc::ptr_eq(into, guard))
    }
}

/// A version that has tripped and may be tried again, and who comes to it.
struct World {
    ledger: Ledger,
    snapshot: Snapshot,
    /// What comes into force, if anything does.
    next: Option<Snapshot>,
    callers: Vec<Caller>,
    now: Instant,
}

impl World {
    fn new(snapshot: &Snapshot, next: Option<&Snapshot>, ends: &[End]) -> Self {
        let (ledger, start) = (Ledger::new(), Instant::now());
        let trip = ledger.enter(snapshot, "m", Version(1), start).unwrap();
        trip.settle(Outcome::Failed, start);
        let now = start + WAIT;
        let callers = ends.iter().map(|end| Caller::new(*end, now)).collect();
        Self { ledger, snapshot: snapshot.clone(), next: next.cloned(), callers, now }
    }

    fn in_force(&self) -> Arc<Guard> {
        self.ledger.tables.load().breakers.guard("m", Version(1)).expect("it was entered")
    }

    fn state(&self) -> BreakerState {
        self.in_force().lock().state(self.now)
    }

    /// The next step of a caller; beyond all of them the swap of policies.
    fn step(&mut self, who: usize) {
        let Some(caller) = self.callers.get_mut(who) else {
            self.snapshot = self.next.take().expect("it comes once");
            return drop(self.ledger.retain(&self.snapshot, |_, _| true));
        };
        caller.step += 1;
        match (caller.step, caller.end) {
            (1, _) => caller.found = Some(self.ledger.guard(&self.snapshot, "m", Version(1))),
            (2, _) => {
                caller.entered = self.now;
                caller.pass = caller.found.take().expect("found before").enter(self.now).ok();
            }
            (3, End::Late(_)) => self.now += TIMEOUT,
            (_, end) => {
                let Some(pass) = caller.pass.take() else { return };
                let (is_probe, before) = (pass.is_probe(), self.state());
                match end {
                    End::By(outcome) | End::Late(outcome) => pass.settle(outcome, self.now),
                    End::Dropped => drop(pass),
                    End::Leaked => std::mem::forget(pass),
                }
                let is_harmless = match end {
                    End::Late(_) => is_probe,
                    End::Dropped | End::Leaked => true,
                    End::By(_) => false,
                };
                assert!(!is_harmless || self.state() == before, "{end:?}: {before:?}, {:?}", self.state());
            }
        }
    }

    /// No guard has more probes out than slots, nor has one that is in force heard of what went into another.
    fn check(&self, probes: usize) {
        let guard = self.in_force();
        let of = |is_in_force: bool| {
            let out = self.callers.iter().filter(|caller| caller.is_out(self.now));
            out.filter(|caller| caller.is_into(&guard) == is_in_force).count()
        };
        assert!(of(true) <= probes && of(false) <= probes, "{} and {} are out", of(true), of(false));
    }

    /// A version that is healthy from now on passes again.
    fn recover(mut self) {
        self.now += TIMEOUT;
        for _ in 0..10 {
            if self.state() == BreakerState::Passing {
                return;
            }
            match self.ledger.enter(&self.snapshot, "m", Version(1), self.now) {
                Ok(pass) => pass.settle(Outcome::Served, self.now),
                Err(tripped) => self.now += tripped.retry_after,
            }
        }
        panic!("it stays as it is: {:?}", self.state());
    }
}

/// All orders of so many steps each.
fn orders(left: &mut [usize], order: &mut Vec<usize>, visit: &mut impl FnMut(&[usize])) {
    if left.iter().all(|left| *left == 0) {
        return visit(order);
    }
    for who in 0..left.len() {
        if left[who] > 0 {
            left[who] -= 1;
            order.push(who);
            orders(left, order, visit);
            order.pop();
            left[who] += 1;
        }
    }
}

/// Runs all of them; how many there are, and in how many a probe was let in and another caller refused.
fn walk(probes: u32, next: Option<&Snapshot>, ends: &[End]) -> (u32, u32) {
    let snapshot = policies(probes, 1);
    let mut left: Vec<usize> = ends.iter().map(|end| end.steps()).collect();
    left.extend(next.map(|_| 1));
    let (mut all, mut contended) = (0, 0);
    orders(&mut left, &mut Vec::new(), &mut |order| {
        let mut world = World::new(&snapshot, next, ends);
        let mut was_refused = false;
        for who in order {
            world.step(*who);
            world.check(probes as usize);
            was_refused |=
                world.callers.get(*who).is_some_and(|caller| caller.step == 2 && caller.pass.is_none());
        }
        world.recover();
        all += 1;
        contended += u32::from(was_refused);
    });
    (all, contended)
}

const SOON: [End; 5] = [
    End::By(Outcome::Served),
    End::By(Outcome::Failed),
    End::By(Outcome::Refused),
    End::Dropped,
    End::Leaked,
];
const LATE: [End; 2] = [End::Late(Outcome::Served), End::Late(Outcome::Failed)];

#[test]
fn in_every_order_of_steps_no_more_probes_than_slots_are_let_in_and_it_is_left_again() {
    let (mut all, mut contended) = (0, 0);
    let mut walk = |probes, ends: &[End]| {
        let (orders, refused) = walk(probes, None, ends);
        (all, contended) = (all + orders, contended + refused);
    };
    for one in SOON.into_iter().chain(LATE) {
        for other in SOON.into_iter().chain(LATE) {
            walk(1, &[one, other]);
        }
    }
    // Of three callers, those ways that change what the others meet.
    let three = [End::By(Outcome::Served), End::By(Outcome::Failed), End::Dropped];
    for (at, one) in three.into_iter().enumerate() {
        for (next, other) in three.into_iter().enumerate().skip(at) {
            three[next..].iter().for_each(|third| walk(2, &[one, other, *third]));
            LATE.iter().for_each(|late| walk(2, &[one, other, *late]));
        }
    }
    assert!(all > 60_000 && contended > all / 10, "{contended} of {all} orders");
}

#[test]
fn in_every_order_of_steps_a_swap_of_policies_lets_nobody_in_who_would_be_too_many() {
    // One that comes to the same, and one under which the breaker begins anew.
    for next in [policies(1, 1), policies(2, 3)] {
        for one in SOON.into_iter().chain(LATE) {
            SOON.iter().for_each(|other| assert!(walk(1, Some(&next), &[one, *other]).0 >= 140));
        }
    }
}

#[test]
fn threads_that_come_to_a_version_at_once_meet_at_one_breaker() {
    const THREADS: usize = 4;
    for (probes, round) in [1, 2, 3].into_iter().flat_map(|probes| (0..50).map(move |round| (probes, round)))
    {
        let (ledger, snapshot) = (Ledger::new(), policies(probes, THREADS as u32));
        let start = Instant::now();
        let all = |then: &(dyn Fn() + Sync)| {
            let barrier = Barrier::new(THREADS);
            thread::scope(|scope| {
                for _ in 0..THREADS {
                    scope.spawn(|| {
                        barrier.wait();
                        then();
                    });
                }
            });
        };
        // Nobody has been there before: each of these failures has to be heard.
        all(&|| ledger.enter(&snapshot, "m", Version(1), start).unwrap().settle(Outcome::Failed, start));
        assert_eq!(ledger.breakers(start).len(), 1);
        assert!(ledger.enter(&snapshot, "m", Version(1), start).is_err(), "round {round}");
        let (now, let_in) = (start + WAIT, Mutex::new(Vec::new()));
        all(&|| {
            let pass = ledger.enter(&snapshot, "m", Version(1), now);
            let_in.lock().unwrap().extend(pass);
        });
        let let_in = let_in.into_inner().unwrap();
        assert!(let_in.iter().all(Pass::is_probe) && let_in.len() == probes as usize, "round {round}");
        let passes = Mutex::new(let_in);
        all(&|| {
            let pass = passes.lock().unwrap().pop();
            pass.into_iter().for_each(|pass| pass.settle(Outcome::Served, now));
        });
        assert_eq!(ledger.breakers(now)[0].state, BreakerState::Passing, "round {round}");
    }
}
