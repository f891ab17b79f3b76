//! Tells which servers of versions cannot be reached, and why, in the log and to whoever looks: where a fallback answers in their place,
//! nobody else hears of it. In the log of each server once in a while, however many requests go there. Decides nothing.

use policies::Remote;
use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// The same server is told of again after this.
const TOLD_AGAIN: Duration = Duration::from_secs(60);

/// More servers than this are not remembered: policies that change come and go.
const SERVERS_MAX: usize = 1024;

/// What was last seen of each, by its address.
#[derive(Debug, Default)]
pub(crate) struct Unreachable {
    seen: Mutex<HashMap<String, Seen>>,
}

#[derive(Debug)]
struct Seen {
    /// When the log was told.
    told: Instant,
    /// When it was not reached.
    last: Instant,
    why: String,
}

impl Unreachable {
    /// A request has not reached it.
    pub(crate) fn tell(&self, remote: &Remote, why: &str, now: Instant) {
        let address = remote.address();
        if self.is_news(&address, why, now) {
            tracing::warn!("the server at {address} cannot be reached: {why}");
        }
    }

    fn is_news(&self, address: &str, why: &str, now: Instant) -> bool {
        let mut seen = self.seen.lock().expect("no panic under this lock");
        if let Some(seen) = seen.get_mut(address) {
            let is_news = now.saturating_duration_since(seen.told) >= TOLD_AGAIN;
            let told = if is_news { now } else { seen.told };
            *seen = Seen { told, last: now, why: why.to_owned() };
            return is_news;
        }
        if seen.len() >= SERVERS_MAX {
            seen.clear();
        }
        seen.insert(address.to_owned(), Seen { told: now, last: now, why: why.to_owned() });
        true
    }

    /// How long ago a request has not reached it, and why, unless that was long ago.
    pub(crate) fn lately(&self, remote: &Remote, now: Instant) -> Option<(Duration, String)> {
        let seen = self.seen.lock().expect("no panic under this lock");
        let seen = seen.get(&remote.address())?;
        let ago = now.saturating_duration_since(seen.last);
        (ago < TOLD_AGAIN).then(|| (ago, seen.why.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_server_is_told_of_at_once_and_again_a_minute_later() {
        let (unreachable, start) = (Unreachable::default(), Instant::now());
        let is_news = |address: &str, seconds| {
            unreachable.is_news(address, "gone", start + Duration::from_secs(seconds))
        };
        assert_eq!([0, 1, 59, 60, 61].map(|at| is_news("http://a/", at)), [true, false, false, true, false]);
        assert!(is_news("http://b/", 61));
        (0..2 * SERVERS_MAX).for_each(|at| _ = is_news(&at.to_string(), 62));
        assert!(unreachable.seen.lock().unwrap().len() <= SERVERS_MAX);
    }

    #[test]
    fn who_looks_is_told_the_last_reason_and_how_long_ago_it_was() {
        let policy = "models: {m: {remote: {2: {url: 'http://a/'}}}}";
        let snapshot = policies::parse(policy, "p").unwrap();
        let remote = snapshot.remote("m", policies::Version(2)).unwrap();
        let (unreachable, start) = (Unreachable::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(unreachable.lately(remote, start), None);
        unreachable.tell(remote, "refused", start);
        unreachable.tell(remote, "no route", at(30));
        assert_eq!(unreachable.lately(remote, at(33)), Some((Duration::from_secs(3), "no route".into())));
        assert_eq!(unreachable.lately(remote, at(90)), None);
    }
}
