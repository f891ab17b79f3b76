//! How many requests of one caller may be under way at once. A place is a value: dropping it gives it back, whatever
//! became of the request, so that no count can leak.
//!
//! Only callers that have a request under way are remembered, so memory is bounded by the requests in flight.

use std::collections::{BTreeSet, HashMap};
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Ledger, Spent};
use crate::attribute::{Attribute, Attributes};
use crate::snapshot::Snapshot;

/// A limit of requests under way, as the policy states it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CrowdPolicy {
    /// Its name, unique in a snapshot.
    pub name: Arc<str>,
    /// What tells callers apart; those without it are one. `None`: everyone is.
    pub key: Option<Attribute>,
    /// The models it covers; `None` is every model.
    pub models: Option<BTreeSet<Arc<str>>>,
    /// Requests of a caller at once.
    pub in_flight_max: NonZeroU32,
}

/// As many requests of a caller are under way as may be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("limit `{limit}` lets {most} of a caller's requests be under way at once")]
pub struct Crowded {
    /// Which limit says so.
    pub limit: Arc<str>,
    /// How many may.
    pub most: NonZeroU32,
}

/// A request's places at all limits that count those under way.
#[derive(Debug, Default)]
#[must_use = "dropping it gives the places back"]
pub struct Places(#[expect(dead_code, reason = "held to be dropped")] Vec<Place>);

#[derive(Debug)]
struct Place {
    crowd: Arc<Crowd>,
    key: Arc<str>,
}

/// Who is under way at one limit.
#[derive(Debug)]
pub(super) struct Crowd {
    pub(super) policy: Arc<CrowdPolicy>,
    by_key: Mutex<HashMap<Arc<str>, u32>>,
}

impl Crowd {
    pub(super) fn new(policy: Arc<CrowdPolicy>) -> Self {
        Self { policy, by_key: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, u32>> {
        self.by_key.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many are under way.
    pub(super) fn spent(&self) -> Spent {
        let most = self.policy.in_flight_max.get();
        let mut spent = Spent { of: most, ..Spent::default() };
        for count in self.lock().values() {
            spent.callers += 1;
            spent.exhausted += u64::from(*count >= most);
            spent.most = spent.most.max(*count);
        }
        spent
    }

    fn enter(self: &Arc<Self>, caller: &impl Attributes) -> Option<Place> {
        let key = self.policy.key.as_ref().and_then(|key| key.of(caller)).unwrap_or_default();
        let mut by_key = self.lock();
        let key = match by_key.get_key_value(&*key) {
            Some((key, count)) if *count < self.policy.in_flight_max.get() => Arc::clone(key),
            Some(_) => return None,
            None => Arc::from(key),
        };
        *by_key.entry(Arc::clone(&key)).or_default() += 1;
        Some(Place { crowd: Arc::clone(self), key })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut by_key = self.crowd.lock();
        if let Some(count) = by_key.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                by_key.remove(&self.key);
            }
        }
    }
}

impl Ledger {
    /// Takes a place at every such limit that covers `model`.
    ///
    /// # Errors
    /// [`Crowded`] names one that has none left; then none was taken.
    pub fn occupy(
        &self,
        snapshot: &Snapshot,
        model: &str,
        caller: &impl Attributes,
    ) -> Result<Places, Crowded> {
        let mut places = Vec::new();
        for policy in snapshot.crowds() {
            if policy.models.as_ref().is_some_and(|models| !models.contains(model)) {
                continue;
            }
            // Its settings are the newest, whichever this request holds.
            let crowd = self.crowd(policy);
            let crowded =
                || Crowded { limit: Arc::clone(&crowd.policy.name), most: crowd.policy.in_flight_max };
            places.push(crowd.enter(caller).ok_or_else(crowded)?);
        }
        Ok(Places(places))
    }

    fn crowd(&self, policy: &Arc<CrowdPolicy>) -> Arc<Crowd> {
        if let Some(crowd) = self.crowds.load().get(&policy.name) {
            return Arc::clone(crowd);
        }
        let new = Arc::new(Crowd::new(Arc::clone(policy)));
        self.crowds.rcu(|crowds| {
            let mut crowds = super::Crowds::clone(crowds);
            crowds.entry(Arc::clone(&policy.name)).or_insert_with(|| Arc::clone(&new));
            crowds
        });
        // Another thread may have been first.
        self.crowds.load().get(&policy.name).map_or(new, Arc::clone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse;

    const ANA: [(&str, &str); 1] = [("user", "ana")];
    const BEN: [(&str, &str); 1] = [("user", "ben")];

    #[test]
    fn a_caller_has_so_many_under_way_and_gets_a_place_back_with_each_that_ends() {
        let text = "limits: [{name: a, key: {header: user}, in_flight_max: 2}, {name: all, in_flight_max: 3, models: [m]}]";
        let (snapshot, ledger) = (parse(text, "p").unwrap(), Ledger::new());
        let first = ledger.occupy(&snapshot, "m", &ANA).unwrap();
        let _second = ledger.occupy(&snapshot, "m", &ANA).unwrap();
        let crowded = ledger.occupy(&snapshot, "m", &ANA).unwrap_err();
        assert_eq!(crowded.to_string(), "limit `a` lets 2 of a caller's requests be under way at once");
        let _ben = ledger.occupy(&snapshot, "m", &BEN).unwrap();
        assert_eq!(&*ledger.occupy(&snapshot, "m", &BEN).unwrap_err().limit, "all");
        let elsewhere = ledger.occupy(&snapshot, "other", &BEN).expect("what was refused has left no trace");
        drop((first, elsewhere));
        drop(ledger.occupy(&snapshot, "m", &ANA).unwrap());
        assert_eq!(ledger.crowds.load()["a"].lock().len(), 2);
    }

    #[test]
    fn a_reload_keeps_the_places_of_limits_that_did_not_change() {
        let policy =
            |most: u32| parse(&format!("limits: [{{name: a, in_flight_max: {most}}}]"), "p").unwrap();
        let (ledger, one) = (Ledger::new(), policy(1));
        let place = ledger.occupy(&one, "m", &ANA).unwrap();
        ledger.retain(&policy(1), |_, _| true);
        assert!(ledger.occupy(&one, "m", &ANA).is_err());
        let two = policy(2);
        ledger.retain(&two, |_, _| true);
        let _fresh = ledger.occupy(&two, "m", &ANA).unwrap();
        let late = ledger.occupy(&one, "m", &ANA).unwrap();
        let crowded = ledger.occupy(&one, "m", &ANA).unwrap_err();
        assert_eq!(crowded.most.get(), 2, "a late request is told of the limit that it has met");
        drop(late);
        drop(place);
        assert_eq!(ledger.crowds.load()["a"].lock()[""], 1, "an old place is given back where it was taken");
        assert!(ledger.occupy(&policy(9), "m", &ANA).is_ok());
    }
}
