//! Bounds what is being worked on: requests, and the bytes of their bodies, then of their answers. Decides who is turned away
//! when either is full, or as full as it may be for such a request; queues nobody.
//!
//! Where tenants are told apart, none has more than [`TIMES_WHAT_IS_FREE`] times as much of either, for requests of one criticality, as
//! there is still room for beside it (Choudhury and Hahne, 1998), and each may have one request: whoever has most is turned away first,
//! and the last place is for somebody who has none, however many there are and without anybody's share being known.

use crate::refusal::Refusal;
use policies::{Criticality, Room, Snapshot, Standing};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// So a tenant that is alone has four fifths of the room.
const TIMES_WHAT_IS_FREE: usize = 4;

/// Fewer places are not divided.
const DIVIDED_FROM: usize = 10;

/// Room for requests, for their bodies and for their answers.
#[derive(Debug)]
pub struct Slots {
    requests: AtomicUsize,
    requests_max: usize,
    bytes: AtomicUsize,
    bytes_max: usize,
    parties: Mutex<HashMap<Party, Has>>,
}

/// A tenant's requests of one criticality.
type Party = (u64, Criticality);

/// What they have, as long as there are any.
#[derive(Debug, Default)]
struct Has {
    requests: usize,
    bytes: usize,
}

impl Slots {
    /// Room for so many requests, with so many bytes of bodies and answers together.
    pub fn new(requests_max: usize, bytes_max: usize) -> Self {
        let (requests, bytes) = Default::default();
        Self { requests, requests_max, bytes, bytes_max, parties: Mutex::default() }
    }

    /// Requests that have a room, and how many may.
    pub fn requests(&self) -> (usize, usize) {
        (self.requests.load(Ordering::Relaxed), self.requests_max)
    }

    /// Bytes of their bodies and answers, and how many may be.
    pub fn bytes(&self) -> (usize, usize) {
        (self.bytes.load(Ordering::Relaxed), self.bytes_max)
    }

    /// Room for one more request of such a standing.
    pub fn enter_as(self: &Arc<Self>, snapshot: &Snapshot, standing: Standing) -> Result<Slot, Refusal> {
        let room = snapshot.room(standing.criticality);
        if !snapshot.tells_tenants_apart() {
            return self.enter(room);
        }
        let party = (standing.tenant, standing.criticality);
        let mut parties = self.parties();
        let (taken, most) = (self.requests.load(Ordering::Relaxed), room.of(self.requests_max));
        let has = parties.get(&party).map_or(0, |has| has.requests);
        if most >= DIVIDED_FROM && has > 0 && taken < most && has >= TIMES_WHAT_IS_FREE * (most - taken - 1) {
            let why = format!("{has} of {taken} requests in flight are this tenant's already");
            return Err(Refusal::Overloaded(why));
        }
        let mut slot = self.enter(room)?;
        parties.entry(party).or_default().requests += 1;
        slot.party = Some(party);
        Ok(slot)
    }

    /// Room for one more request, to which `room` is open.
    pub fn enter(self: &Arc<Self>, room: Room) -> Result<Slot, Refusal> {
        let slot = Slot { slots: self.clone(), room, party: None, bytes: 0, ahead: 0 };
        let most = room.of(self.requests_max);
        if self.requests.fetch_add(1, Ordering::Relaxed) < most {
            Ok(slot)
        } else {
            Err(Refusal::Overloaded(format!("{most} requests are in flight already{}", slot.rest())))
        }
    }

    fn parties(&self) -> MutexGuard<'_, HashMap<Party, Has>> {
        self.parties.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request's room; given back when dropped, which is after its answer has been written.
#[derive(Debug)]
pub struct Slot {
    slots: Arc<Slots>,
    room: Room,
    party: Option<Party>,
    bytes: usize,
    /// Of these, so many are for what will be reserved.
    ahead: usize,
}

impl Slot {
    /// Room for what will be reserved next.
    pub fn reserve_ahead(&mut self, bytes: usize) -> Result<(), Refusal> {
        self.take(bytes)?;
        self.ahead += bytes;
        Ok(())
    }

    /// One more in the same room, which is not divided between tenants, with what this one has reserved ahead.
    pub fn another(&mut self) -> Self {
        debug_assert!(self.party.is_none(), "nobody's share is to be kept");
        self.slots.requests.fetch_add(1, Ordering::Relaxed);
        let ahead = std::mem::take(&mut self.ahead);
        self.bytes -= ahead;
        Self { slots: Arc::clone(&self.slots), room: self.room, party: None, bytes: ahead, ahead }
    }

    /// Room for `bytes` more of its body.
    pub fn reserve(&mut self, bytes: usize) -> Result<(), Refusal> {
        let is_there = bytes.min(self.ahead);
        self.take(bytes - is_there)?;
        self.ahead -= is_there;
        Ok(())
    }

    fn take(&mut self, bytes: usize) -> Result<(), Refusal> {
        match self.party {
            None => self.take_of_all(bytes)?,
            Some(party) => {
                let mut parties = self.slots.parties();
                let has = parties.entry(party).or_default();
                let (taken, most) = (self.slots.bytes().0, self.room.of(self.slots.bytes_max));
                let free = most.saturating_sub(taken).saturating_sub(bytes);
                let is_one_of_several = has.bytes > self.bytes;
                if bytes > 0
                    && is_one_of_several
                    && free > 0
                    && has.bytes + bytes > free.saturating_mul(TIMES_WHAT_IS_FREE)
                {
                    let why = format!(
                        "{} of {taken} bytes of bodies and answers in flight are this tenant's already, {bytes} more have no room",
                        has.bytes
                    );
                    return Err(Refusal::Overloaded(why));
                }
                self.take_of_all(bytes)?;
                has.bytes += bytes;
            }
        }
        self.bytes += bytes;
        Ok(())
    }

    fn take_of_all(&self, bytes: usize) -> Result<(), Refusal> {
        let most = self.room.of(self.slots.bytes_max);
        let with_these = |taken: usize| taken.checked_add(bytes).filter(|taken| *taken <= most);
        // What is refused is not taken meanwhile: others may have room for what they need.
        match self.slots.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, with_these) {
            Ok(_) => Ok(()),
            Err(_) => {
                let rest = self.rest();
                let why = format!(
                    "bodies and answers of {most} bytes are in flight, {bytes} more have no room{rest}"
                );
                Err(Refusal::Overloaded(why))
            }
        }
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
        self.ahead = self.ahead.min(self.bytes);
        if let Some(party) = self.party.filter(|_| beyond > 0)
            && let Some(has) = self.slots.parties().get_mut(&party)
        {
            has.bytes -= beyond;
        }
    }

    /// Whom the rest is for.
    fn rest(&self) -> &'static str {
        if self.room == Room::ALL { "" } else { ", and the rest of the room is for more critical ones" }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.keep(0);
        self.slots.requests.fetch_sub(1, Ordering::Relaxed);
        if let Some(party) = self.party
            && let Entry::Occupied(mut has) = self.slots.parties().entry(party)
        {
            has.get_mut().requests -= 1;
            if has.get().requests == 0 {
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

    fn told_apart(more: &str) -> Snapshot {
        policies::parse(&format!("overload: {{tenant: {{header: t}}{more}}}"), "p").unwrap()
    }

    fn of(tenant: u64, criticality: Criticality) -> Standing {
        Standing { tenant, criticality }
    }

    #[test]
    fn a_tenant_that_takes_all_it_can_leaves_some_of_the_room_and_gets_it_back() {
        let (slots, snapshot) = (Arc::new(Slots::new(100, 100)), told_apart(""));
        let enter = |tenant| slots.enter_as(&snapshot, of(tenant, Criticality::Normal));
        let flood = |tenant| -> Vec<_> { std::iter::from_fn(|| enter(tenant).ok()).collect() };
        let first = flood(1);
        assert_eq!(first.len(), 80);
        let why = enter(1).unwrap_err().to_string();
        assert_eq!(why, "overloaded: 80 of 80 requests in flight are this tenant's already");
        let others: Vec<_> = (2..5).map(flood).collect();
        let theirs: Vec<_> = others.iter().map(Vec::len).collect();
        assert_eq!(
            theirs,
            [16, 3, 1],
            "each has a part of what is left, and the last place is for who has none"
        );
        assert_eq!(enter(2).unwrap_err().to_string(), "overloaded: 100 requests are in flight already");
        drop((first, others));
        assert_eq!(
            (slots.requests().0, slots.parties().len()),
            (0, 0),
            "nobody is remembered who has nothing"
        );
    }

    #[test]
    fn few_places_are_not_divided() {
        for (whole, has) in [(1, 1), (2, 2), (9, 9), (10, 8)] {
            let (slots, snapshot) = (Arc::new(Slots::new(whole, 100)), told_apart(""));
            let enter = || slots.enter_as(&snapshot, of(1, Criticality::Normal)).ok();
            assert_eq!(std::iter::from_fn(enter).collect::<Vec<_>>().len(), has);
        }
    }

    #[test]
    fn what_a_tenant_has_of_less_critical_ones_keeps_its_critical_ones_out_of_nothing() {
        let critical = ", criticality: [{when: {header: a, present: true}, is: critical}]";
        let (slots, snapshot) = (Arc::new(Slots::new(100, 100)), told_apart(critical));
        let enter = |tenant, criticality| slots.enter_as(&snapshot, of(tenant, criticality));
        let flood = |tenant, criticality| -> Vec<_> {
            std::iter::from_fn(|| enter(tenant, criticality).ok()).collect()
        };
        let normal = [1, 2, 3, 4].map(|tenant| flood(tenant, Criticality::Normal));
        assert_eq!(normal.each_ref().map(Vec::len), [72, 14, 3, 1], "nine tenths are theirs");
        let first = flood(1, Criticality::Critical);
        assert_eq!((first.len(), flood(2, Criticality::Critical).len()), (8, 1));
    }

    #[test]
    fn a_tenant_leaves_some_of_the_bytes_but_one_request_may_have_all() {
        let (slots, snapshot) = (Arc::new(Slots::new(100, 1000)), told_apart(""));
        let enter = |tenant| slots.enter_as(&snapshot, of(tenant, Criticality::Normal)).unwrap();
        let mut all: Vec<_> = (0..9).map(|_| enter(1)).collect();
        let taken = all.iter_mut().filter_map(|slot| slot.reserve(100).ok()).count();
        assert_eq!(taken, 8);
        let why = all[8].reserve(100).unwrap_err().to_string();
        assert_eq!(
            why,
            "overloaded: 800 of 800 bytes of bodies and answers in flight are this tenant's already, 100 more have no room"
        );
        assert!(enter(2).reserve(200).is_ok());
        all[0].keep(0);
        assert!(all[8].reserve(100).is_ok(), "what is given back is there for the next");
        assert!(all[8].answer(100).is_ok() && all[8].reserve(0).is_ok());
        all.clear();
        assert!(enter(1).reserve(1000).is_ok());
        assert_eq!((slots.bytes().0, slots.parties().len()), (0, 0));
    }

    #[test]
    fn what_is_reserved_ahead_is_there_for_what_comes() {
        let slots = Arc::new(Slots::new(10, 100));
        let (mut one, mut other) = (slots.enter(Room::ALL).unwrap(), slots.enter(Room::ALL).unwrap());
        one.reserve(30).unwrap();
        one.reserve_ahead(50).unwrap();
        other.reserve(20).unwrap();
        let mut third = one.another();
        assert!(third.reserve(40).is_ok() && third.reserve(10).is_ok() && third.reserve(1).is_err());
        drop((third, other));
        assert!(one.reserve(70).is_ok(), "it had that ahead no more");
        drop(one);
        assert_eq!((slots.bytes().0, slots.requests().0), (0, 0));
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
