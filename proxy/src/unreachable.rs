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

/// What was last seen of each.
#[derive(Debug, Default)]
pub(crate) struct Unreachable {
    seen: Mutex<HashMap<Remote, Seen>>,
}

#[derive(Debug)]
struct Seen {
    /// When the log was told.
    told: Instant,
    /// When it was not reached, and why; nothing once it was.
    last: Option<(Instant, String)>,
}

impl Unreachable {
    /// A request has not reached it.
    pub(crate) fn tell(&self, remote: &Remote, why: &str, now: Instant) {
        if self.is_news(remote, why, now) {
            tracing::warn!("the server at {} cannot be reached: {why}", remote.address());
        }
    }

    fn is_news(&self, remote: &Remote, why: &str, now: Instant) -> bool {
        let mut all = self.seen.lock().expect("no panic under this lock");
        let last = Some((now, why.to_owned()));
        if let Some(seen) = all.get_mut(remote) {
            let is_news = now.saturating_duration_since(seen.told) >= TOLD_AGAIN;
            *seen = Seen { told: if is_news { now } else { seen.told }, last };
            return is_news;
        }
        if all.len() >= SERVERS_MAX {
            all.clear();
        }
        all.insert(remote.clone(), Seen { told: now, last });
        true
    }

    /// One has reached it.
    pub(crate) fn reached(&self, remote: &Remote) {
        let mut all = self.seen.lock().expect("no panic under this lock");
        if let Some(seen) = all.get_mut(remote) {
            seen.last = None;
        }
    }

    /// How long ago the last request has not reached it, and why, unless that was long ago.
    pub(crate) fn lately(&self, remote: &Remote, now: Instant) -> Option<(Duration, String)> {
        let all = self.seen.lock().expect("no panic under this lock");
        let (last, why) = all.get(remote)?.last.as_ref()?;
        let ago = now.saturating_duration_since(*last);
        (ago < TOLD_AGAIN).then(|| (ago, why.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use policies::Version;
    use std::sync::Arc;

    fn remote(url: &str) -> Arc<Remote> {
        let policy = format!("models: {{m: {{remote: {{2: {{url: '{url}'}}}}}}}}");
        policies::parse(&policy, "p").unwrap().remote("m", Version(2)).unwrap().clone()
    }

    #[test]
    fn each_server_is_told_of_at_once_and_again_a_minute_later() {
        let (unreachable, start) = (Unreachable::default(), Instant::now());
        let is_news = |url: &str, seconds| {
            unreachable.is_news(&remote(url), "gone", start + Duration::from_secs(seconds))
        };
        assert_eq!([0, 1, 59, 60, 61].map(|at| is_news("http://a/", at)), [true, false, false, true, false]);
        assert!(is_news("http://b/", 61));
        (0..2 * SERVERS_MAX).for_each(|at| _ = is_news(&format!("http://a{at}/"), 62));
        assert!(unreachable.seen.lock().unwrap().len() <= SERVERS_MAX);
    }

    #[test]
    fn who_looks_is_told_the_last_reason_and_how_long_ago_it_was_until_it_is_reached() {
        let (unreachable, start) = (Unreachable::default(), Instant::now());
        let (here, there) = (remote("http://a/"), remote("http://a/other"));
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(unreachable.lately(&here, start), None);
        unreachable.tell(&here, "refused", start);
        unreachable.tell(&here, "no route", at(30));
        assert_eq!(unreachable.lately(&here, at(33)), Some((Duration::from_secs(3), "no route".into())));
        assert_eq!(unreachable.lately(&there, at(33)), None, "that is another one");
        assert_eq!(unreachable.lately(&here, at(90)), None);
        unreachable.reached(&here);
        assert_eq!(unreachable.lately(&here, at(33)), None);
        assert!(!unreachable.is_news(&here, "refused", at(34)), "the log was told a moment ago");
    }
}
