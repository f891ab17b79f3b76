//! Tells in the log which servers of versions cannot be reached, and why: where a fallback answers in their place, nobody else hears of it.
//! Of each server once in a while, however many requests go there. Decides nothing.

use policies::Remote;
use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// The same server is told of again after this.
const TOLD_AGAIN: Duration = Duration::from_secs(60);

/// More servers than this are not remembered: policies that change come and go.
const SERVERS_MAX: usize = 1024;

/// When each was last told of, by its address.
#[derive(Debug, Default)]
pub(crate) struct Unreachable {
    told: Mutex<HashMap<String, Instant>>,
}

impl Unreachable {
    /// A request has not reached it.
    pub(crate) fn tell(&self, remote: &Remote, why: &str, now: Instant) {
        let address = remote.address();
        if self.is_news(&address, now) {
            tracing::warn!("the server at {address} cannot be reached: {why}");
        }
    }

    fn is_news(&self, address: &str, now: Instant) -> bool {
        let mut told = self.told.lock().expect("no panic under this lock");
        if told.get(address).is_some_and(|told| now.saturating_duration_since(*told) < TOLD_AGAIN) {
            return false;
        }
        if told.len() >= SERVERS_MAX {
            told.clear();
        }
        told.insert(address.to_owned(), now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_server_is_told_of_at_once_and_again_a_minute_later() {
        let (unreachable, start) = (Unreachable::default(), Instant::now());
        let is_news =
            |address: &str, seconds| unreachable.is_news(address, start + Duration::from_secs(seconds));
        assert_eq!([0, 1, 59, 60, 61].map(|at| is_news("http://a/", at)), [true, false, false, true, false]);
        assert!(is_news("http://b/", 61));
        (0..2 * SERVERS_MAX).for_each(|at| _ = is_news(&at.to_string(), 62));
        assert!(unreachable.told.lock().unwrap().len() <= SERVERS_MAX);
    }
}
