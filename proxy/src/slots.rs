//! Bounds what is being worked on: requests, and the bytes of their bodies. Decides who is turned away when either
//! is full; queues nobody.

use crate::refusal::Refusal;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Room for requests and for their bodies.
#[derive(Debug)]
pub struct Slots {
    requests: AtomicUsize,
    requests_max: usize,
    bytes: AtomicUsize,
    bytes_max: usize,
}

impl Slots {
    /// Room for so many requests, with so many bytes of bodies together.
    pub fn new(requests_max: usize, bytes_max: usize) -> Self {
        Self { requests: AtomicUsize::new(0), requests_max, bytes: AtomicUsize::new(0), bytes_max }
    }

    /// Room for one more request.
    pub fn enter(self: &Arc<Self>) -> Result<Slot, Refusal> {
        let slot = Slot { slots: self.clone(), bytes: 0 };
        if self.requests.fetch_add(1, Ordering::Relaxed) < self.requests_max {
            Ok(slot)
        } else {
            Err(Refusal::Overloaded(format!("{} requests are in flight already", self.requests_max)))
        }
    }
}

/// A request's room; given back when dropped, which is after its answer has been written.
#[derive(Debug)]
pub struct Slot {
    slots: Arc<Slots>,
    bytes: usize,
}

impl Slot {
    /// Room for `bytes` more of its body.
    pub fn reserve(&mut self, bytes: usize) -> Result<(), Refusal> {
        self.bytes += bytes;
        if self.slots.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes <= self.slots.bytes_max {
            return Ok(());
        }
        Err(Refusal::Overloaded(format!("bodies of {} bytes are in flight already", self.slots.bytes_max)))
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

    #[test]
    fn requests_are_bounded_and_given_back() {
        let slots = Arc::new(Slots::new(1, 100));
        let first = slots.enter().unwrap();
        assert!(matches!(slots.enter(), Err(Refusal::Overloaded(_))));
        drop(first);
        assert!(slots.enter().is_ok());
    }

    #[test]
    fn bytes_are_bounded_over_all_requests_and_given_back() {
        let slots = Arc::new(Slots::new(10, 100));
        let (mut one, mut other) = (slots.enter().unwrap(), slots.enter().unwrap());
        assert!(one.reserve(60).is_ok() && one.reserve(40).is_ok());
        assert!(matches!(other.reserve(1), Err(Refusal::Overloaded(_))));
        drop((one, other));
        assert!(slots.enter().unwrap().reserve(100).is_ok());
    }
}
