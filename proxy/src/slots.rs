//! Bounds what is being worked on: requests, and the bytes of their bodies, then of their answers. Decides who is turned away
//! when either is full, or as full as it may be for such a request; queues nobody.

use crate::refusal::Refusal;
use policies::Room;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Room for requests, for their bodies and for their answers.
#[derive(Debug)]
pub struct Slots {
    requests: AtomicUsize,
    requests_max: usize,
    bytes: AtomicUsize,
    bytes_max: usize,
}

impl Slots {
    /// Room for so many requests, with so many bytes of bodies and answers together.
    pub fn new(requests_max: usize, bytes_max: usize) -> Self {
        Self { requests: AtomicUsize::new(0), requests_max, bytes: AtomicUsize::new(0), bytes_max }
    }

    /// Requests that have a room, and how many may.
    pub fn requests(&self) -> (usize, usize) {
        (self.requests.load(Ordering::Relaxed), self.requests_max)
    }

    /// Bytes of their bodies and answers, and how many may be.
    pub fn bytes(&self) -> (usize, usize) {
        (self.bytes.load(Ordering::Relaxed), self.bytes_max)
    }

    /// Room for one more request, to which `room` is open.
    pub fn enter(self: &Arc<Self>, room: Room) -> Result<Slot, Refusal> {
        let slot = Slot { slots: self.clone(), room, bytes: 0 };
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
    bytes: usize,
}

impl Slot {
    /// One more in the same room.
    pub fn another(&self) -> Self {
        self.slots.requests.fetch_add(1, Ordering::Relaxed);
        Self { slots: Arc::clone(&self.slots), room: self.room, bytes: 0 }
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
