//! How much of each limit is spent at a moment, for those who look. Decides nothing, and tells no caller's key, which may be a
//! person's: how many callers there are, and how much the busiest has spent.

use std::collections::BTreeMap;
use std::time::Instant;

use super::Ledger;
use crate::snapshot::Snapshot;

/// How much of a limit is spent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    /// Units that its busiest caller has spent and time has not brought back; where requests under way count, those.
    pub most: u32,
    /// A caller may have so many at once.
    pub of: u32,
    /// Callers that have spent anything; those that are not told apart are one.
    pub callers: u64,
    /// Those that would be refused one more.
    pub exhausted: u64,
}

impl Ledger {
    /// How much of each limit of `snapshot` is spent, by name. It takes the locks that requests take, each for less than a microsecond.
    pub fn spent(&self, snapshot: &Snapshot, now: Instant) -> BTreeMap<String, Spent> {
        let (tables, crowds) = (self.tables.load(), self.crowds.load());
        // A moment before anybody has asked is none: nothing is spent then.
        let now = self.epoch.get().map(|epoch| now.saturating_duration_since(*epoch).into());
        let of_rates = snapshot.limits().iter().enumerate().map(|(place, limit)| {
            let nothing = Spent { of: limit.burst.get(), ..Spent::default() };
            let spent = tables.limiters.get(place, limit).zip(now).map(|(limiter, now)| limiter.spent(now));
            (limit.name.to_string(), spent.unwrap_or(nothing))
        });
        let of_crowds = snapshot.crowds().iter().map(|crowd| {
            let nothing = Spent { of: crowd.in_flight_max.get(), ..Spent::default() };
            (crowd.name.to_string(), crowds.get(&crowd.name).map_or(nothing, |crowd| crowd.spent()))
        });
        of_rates.chain(of_crowds).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::parse;

    const LIMITS: &str = "limits: [{name: each, key: {header: user}, rate: 1/s, burst: 4}, {name: all, rate: 1/s, burst: 10}, \
                          {name: at-once, key: {header: user}, in_flight_max: 2}]";

    fn spent(most: u32, of: u32, callers: u64, exhausted: u64) -> Spent {
        Spent { most, of, callers, exhausted }
    }

    #[test]
    fn what_is_spent_is_told_by_its_busiest_caller_and_comes_back_with_time() {
        let (snapshot, ledger, now) = (parse(LIMITS, "p").unwrap(), Ledger::new(), Instant::now());
        let told = |after: u64| ledger.spent(&snapshot, now + Duration::from_secs(after));
        assert_eq!(told(0)["each"], spent(0, 4, 0, 0), "nobody has asked");
        let ask = |user: &str| ledger.admit(&snapshot, "m", &[("user", user)], || None, now);
        for user in ["ana", "ana", "ana", "ana", "ben"] {
            ask(user).unwrap();
        }
        assert!(ask("ana").is_err());
        assert_eq!(told(0)["each"], spent(4, 4, 2, 1));
        assert_eq!(told(0)["all"], spent(5, 10, 1, 0), "of everyone together");
        assert_eq!(told(2)["each"], spent(2, 4, 1, 0), "ben has it all back");
        assert_eq!(told(9)["each"], spent(0, 4, 0, 0));
    }

    #[test]
    fn requests_under_way_are_spent_until_they_end() {
        let (snapshot, ledger, now) = (parse(LIMITS, "p").unwrap(), Ledger::new(), Instant::now());
        let enter = |user: &str| ledger.occupy(&snapshot, "m", &[("user", user)]).unwrap();
        let told = || ledger.spent(&snapshot, now)["at-once"];
        assert_eq!(told(), spent(0, 2, 0, 0));
        let places = [enter("ana"), enter("ana"), enter("ben")];
        assert_eq!(told(), spent(2, 2, 2, 1));
        drop(places);
        assert_eq!(told(), spent(0, 2, 0, 0));
    }

    #[test]
    fn callers_who_share_a_bucket_are_one_and_more_callers_than_are_looked_at_once_are_all_seen() {
        let limits = "limits: [{name: each, key: {header: user}, rate: 1/h, burst: 2, max_keys: 3000}]";
        let (snapshot, ledger, now) = (parse(limits, "p").unwrap(), Ledger::new(), Instant::now());
        for user in 0..3000 {
            ledger.admit(&snapshot, "m", &[("user", &*user.to_string())], || None, now).unwrap();
        }
        for stranger in ["x", "y"] {
            ledger.admit(&snapshot, "m", &[("user", stranger)], || None, now).unwrap();
        }
        assert_eq!(ledger.spent(&snapshot, now)["each"], spent(2, 2, 3001, 1));
    }
}
