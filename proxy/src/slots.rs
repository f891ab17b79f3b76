//! Bounds what is being worked on: requests, and the bytes of their bodies, then of their answers. Decides who is turned away
//! when either is full, or as full as it may be for such a request; queues nobody.
//!
//! Where tenants are told apart, none may have more than [`TIMES_WHAT_IS_FREE`] times as many requests as there is still room for beside
//! them (Choudhury and Hahne, 1998), and each may have one: whoever has most is turned away first, and the last place is for somebody
//! who has none, however many there are and without anybody's share being known.

use crate::refusal::Refusal;
use policies::Room;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// So a tenant that is alone has four fifths of the room.
const TIMES_WHAT_IS_FREE: usize = 4;

/// Room for requests, for their bodies and for their answers.
#[derive(Debug)]
pub struct Slots {
    requests: AtomicUsize,
    requests_max: usize,
    bytes: AtomicUsize,
    bytes_max: usize,
    /// Requests of each tenant that has any.
    tenants: Mutex<HashMap<u64, usize>>,
}

impl Slots {
    /// Room for so many requests, with so many bytes of bodies and answers together.
    pub fn new(requests_max: usize, bytes_max: usize) -> Self {
        let (requests, bytes) = Default::default();
        Self { requests, requests_max, bytes, bytes_max, tenants: Mutex::default() }
    }

    /// Requests that have a room, and how many may.
    pub fn requests(&self) -> (usize, usize) {
        (self.requests.load(Ordering::Relaxed), self.requests_max)
    }

    /// Bytes of their bodies and answers, and how many may be.
    pub fn bytes(&self) -> (usize, usize) {
        (self.bytes.load(Ordering::Relaxed), self.bytes_max)
    }

    /// Room for one more request, to which `room` is open, of one of the tenants who are told apart.
    pub fn enter_for(self: &Arc<Self>, room: Room, tenant: u64) -> Result<Slot, Refusal> {
        let mut tenants = self.tenants();
        let taken = self.requests.load(Ordering::Relaxed);
        let free = room.of(self.requests_max).saturating_sub(taken);
        let has = tenants.get(&tenant).copied().unwrap_or(0);
        if has > 0 && has >= free.saturating_sub(1).saturating_mul(TIMES_WHAT_IS_FREE) {
            let why = format!("{has} of {taken} requests in flight are this tenant's already");
            return Err(Refusal::Overloaded(why));
        }
        let mut slot = self.enter(room)?;
        *tenants.entry(tenant).or_default() += 1;
        slot.tenant = Some(tenant);
        Ok(slot)
    }

    fn tenants(&self) -> MutexGuard<'_, HashMap<u64, usize>> {
        self.tenants.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Room for one more request, to which `room` is open.
    pub fn enter(self: &Arc<Self>, room: Room) -> Result<Slot, Refusal> {
        let slot = Slot { slots: self.clone(), room, tenant: None, bytes: 0 };
        let most = room.of(self.requests_max);
        if self.requests.fetch_add(1, Ordering::Relaxed) < most {
            Ok(slot)
        } else {
            Err(Refusal::Overloaded(format!("{most} requests are in flight already{}", slot.rest())))
        }
    }
}

/// A request's room; given back when dropped, which is after its answer has been written.
#[derive(Debug)]
pub struct Slot {
    slots: Arc<Slots>,
    room: Room,
    tenant: Option<u64>,
    bytes: usize,
}

impl Slot {
    /// One more in the same room.
    pub fn another(&self) -> Self {
        self.slots.requests.fetch_add(1, Ordering::Relaxed);
        Self { slots: Arc::clone(&self.slots), room: self.room, tenant: None, bytes: 0 }
    }

    /// Room for `bytes` more of its body.
    pub fn reserve(&mut self, bytes: usize) -> Result<(), Refusal> {
        let most = self.room.of(self.slots.bytes_max);
        let with_these = |taken: usize| taken.checked_add(bytes).filter(|taken| *taken <= most);
        // What is refused is not taken meanwhile: others may have room for what they need.
        if self.slots.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, with_these).is_err() {
            let rest = self.rest();
            let why =
                format!("bodies and answers of {most} bytes are in flight, {bytes} more have no room{rest}");
            return Err(Refusal::Overloaded(why));
        }
        self.bytes += bytes;
        Ok(())
    }

    /// Room for its answer, of so many bytes, in place of its body, which is not there any more. Where that is as long, there is
    /// always room.
    pub fn answer(&mut self, bytes: usize) -> Result<(), Refusal> {
        if bytes > self.bytes {
            return self.reserve(bytes - self.bytes);
        }
        self.keep(bytes);
        Ok(())
    }

    /// Gives back what it has beyond so many bytes.
    pub fn keep(&mut self, bytes: usize) {
        let beyond = self.bytes.saturating_sub(bytes);
        self.slots.bytes.fetch_sub(beyond, Ordering::Relaxed);
        self.bytes -= beyond;
    }

    /// Whom the rest is for.
    fn rest(&self) -> &'static str {
        if self.room == Room::ALL { "" } else { ", and the rest of the room is for more critical ones" }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.slots.requests.fetch_sub(1, Ordering::Relaxed);
        self.slots.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        if let Some(tenant) = self.tenant
            && let Entry::Occupied(mut has) = self.slots.tenants().entry(tenant)
        {
            *has.get_mut() -= 1;
            if *has.get() == 0 {
                has.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use policies::Criticality;

    #[test]
    fn requests_are_bounded_and_given_back() {
        let slots = Arc::new(Slots::new(1, 100));
        let first = slots.enter(Room::ALL).unwrap();
        assert!(matches!(slots.enter(Room::ALL), Err(Refusal::Overloaded(_))));
        drop(first);
        assert!(slots.enter(Room::ALL).is_ok());
    }

    #[test]
    fn bytes_are_bounded_over_all_requests_and_given_back() {
        let slots = Arc::new(Slots::new(10, 100));
        let (mut one, mut other) = (slots.enter(Room::ALL).unwrap(), slots.enter(Room::ALL).unwrap());
        assert!(one.reserve(60).is_ok() && one.reserve(40).is_ok());
        assert!(matches!(other.reserve(1), Err(Refusal::Overloaded(_))));
        drop((one, other));
        assert!(slots.enter(Room::ALL).unwrap().reserve(100).is_ok());
    }

    #[test]
    fn an_answer_takes_the_place_of_its_body_and_more_if_there_is_room() {
        let slots = Arc::new(Slots::new(10, 100));
        let (mut one, mut other) = (slots.enter(Room::ALL).unwrap(), slots.enter(Room::ALL).unwrap());
        one.reserve(60).unwrap();
        other.reserve(40).unwrap();
        assert!(other.answer(40).is_ok(), "all is taken, and it is no more than its body");
        assert!(matches!(other.answer(41), Err(Refusal::Overloaded(_))));
        assert_eq!(slots.bytes().0, 100, "what was refused is not taken");
        assert!(one.answer(30).is_ok() && other.answer(70).is_ok());
        assert!(other.answer(71).is_err());
        one.keep(10);
        one.keep(20);
        assert_eq!(slots.bytes().0, 80);
        drop((one, other));
        assert_eq!(slots.bytes().0, 0);
    }

    #[test]
    fn a_tenant_that_takes_all_it_can_leaves_some_of_the_room_and_gets_it_back() {
        let slots = Arc::new(Slots::new(100, 100));
        let flood =
            |tenant| -> Vec<_> { std::iter::from_fn(|| slots.enter_for(Room::ALL, tenant).ok()).collect() };
        let first = flood(1);
        assert_eq!(first.len(), 80);
        let why = slots.enter_for(Room::ALL, 1).unwrap_err().to_string();
        assert_eq!(why, "overloaded: 80 of 80 requests in flight are this tenant's already");
        let others: Vec<_> = (2..5).map(flood).collect();
        assert_eq!(
            others.iter().map(Vec::len).collect::<Vec<_>>(),
            [16, 3, 1],
            "each has a part of what is left, and the last place is for who has none"
        );
        drop((first, others));
        assert_eq!(
            (slots.requests().0, slots.tenants().len()),
            (0, 0),
            "nobody is remembered who has nothing"
        );
    }

    #[test]
    fn of_a_small_room_a_tenant_that_is_alone_has_all_but_one_place() {
        for (whole, has) in [(1, 1), (2, 1), (3, 2), (4, 3), (5, 4), (10, 8)] {
            let slots = Arc::new(Slots::new(whole, 100));
            let taken: Vec<_> = std::iter::from_fn(|| slots.enter_for(Room::ALL, 1).ok()).collect();
            assert_eq!(taken.len(), has);
        }
    }

    #[test]
    fn the_last_of_the_room_is_for_the_most_critical() {
        let text = "overload: {criticality: [{when: {header: a, present: true}, is: critical}]}";
        let snapshot = policies::parse(text, "p").unwrap();
        let [critical, normal, sheddable] =
            [Criticality::Critical, Criticality::Normal, Criticality::Sheddable].map(|is| snapshot.room(is));
        let slots = Arc::new(Slots::new(100, 100));
        let mut taken: Vec<_> = (0..75).map(|_| slots.enter(sheddable).unwrap()).collect();
        let refused = slots.enter(sheddable).unwrap_err().to_string();
        assert_eq!(
            refused,
            "overloaded: 75 requests are in flight already, and the rest of the room is for more critical ones"
        );
        taken.extend((75..90).map(|_| slots.enter(normal).unwrap()));
        assert!(slots.enter(normal).is_err());
        taken.extend((90..100).map(|_| slots.enter(critical).unwrap()));
        assert!(slots.enter(critical).is_err());
        assert!(taken[0].reserve(76).is_err(), "so it is with bodies");
        taken.swap_remove(0);
        assert!(taken[80].reserve(90).is_ok());
    }
}
