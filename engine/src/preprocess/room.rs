//! How much memory pictures may take while they are decoded, all together: a file of a few kilobytes may unpack to hundreds
//! of megabytes, and there are as many at a time as there are threads. What is large leaves some of it to what is small, which
//! would hold its thread while it waits, and that is the one which is left to what is quick.

use std::sync::{Condvar, Mutex};

/// Of all room, one part of so many is for what needs no more than that.
const FOR_SMALL: u64 = 8;

/// Memory that is taken for a while.
#[derive(Debug)]
pub(crate) struct Room {
    bytes_max: u64,
    taken: Mutex<u64>,
    freed: Condvar,
}

/// Is given back when this is dropped.
#[must_use]
pub(crate) struct Taken<'r> {
    room: &'r Room,
    bytes: u64,
}

impl Room {
    pub(crate) fn new(bytes_max: u64) -> Self {
        Self { bytes_max, taken: Mutex::new(0), freed: Condvar::new() }
    }

    /// Waits until there is so much. What needs more than there is for it gets all of that.
    pub(crate) fn take(&self, bytes: u64) -> Taken<'_> {
        let most = self.most_with(bytes);
        let bytes = bytes.min(most);
        let taken = self.taken.lock().expect("no panic under this lock");
        let mut taken =
            self.freed.wait_while(taken, |taken| *taken + bytes > most).expect("no panic under this lock");
        *taken += bytes;
        Taken { room: self, bytes }
    }

    /// What may be taken in all when so much is taken.
    fn most_with(&self, bytes: u64) -> u64 {
        let for_small = self.bytes_max / FOR_SMALL;
        if bytes > for_small { self.bytes_max - for_small } else { self.bytes_max }
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        *self.room.taken.lock().expect("no panic under this lock") -= self.bytes;
        self.room.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn who_finds_no_room_waits_until_there_is() {
        let room = Room::new(10);
        let first = room.take(7);
        let (told, hears) = mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                told.send("asks").unwrap();
                let _all = room.take(1 << 40);
                told.send("has it").unwrap();
            });
            assert_eq!(hears.recv(), Ok("asks"));
            assert_eq!(hears.try_recv(), Err(mpsc::TryRecvError::Empty));
            drop(first);
            assert_eq!(hears.recv(), Ok("has it"));
        });
        let _again = room.take(10);
    }

    #[test]
    fn what_is_small_does_not_wait_for_what_is_large() {
        let room = Room::new(80);
        let large = room.take(1 << 40);
        assert!(large.bytes + 10 <= room.most_with(10), "10 of 80 are left");
        let _small = room.take(10);
    }
}
