//! How much memory pictures may take while they are decoded, all together: a file of a few kilobytes may unpack to hundreds
//! of megabytes, and there are as many at a time as there are threads.

use std::sync::{Condvar, Mutex};

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

    /// Waits until there is so much. What needs more than there is gets all of it.
    pub(crate) fn take(&self, bytes: u64) -> Taken<'_> {
        let bytes = bytes.min(self.bytes_max);
        let taken = self.taken.lock().expect("no panic under this lock");
        let mut taken = self
            .freed
            .wait_while(taken, |taken| *taken + bytes > self.bytes_max)
            .expect("no panic under this lock");
        *taken += bytes;
        Taken { room: self, bytes }
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
}
