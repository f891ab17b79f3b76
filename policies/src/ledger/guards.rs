//! How every version has fared, and who may enter it: one breaker for each that was asked, with its retries and with what another
//! version sends it.
//!
//! A breaker goes on over swaps of policies for as long as it guards the same version under settings that come to the same. A
//! request that still holds an older generation meets the one that is in force, and must not bring back what has changed since.

use std::mem::offset_of;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use compact_str::CompactString;

use super::Ledger;
use crate::breaker::{Breaker, BreakerPolicy, BreakerState, Permit, Standing, Tripped};
use crate::outcome::Outcome;
use crate::prefetch::prefetch_start;
use crate::remote::Remote;
use crate::retry::{NotAgain, RetryBudget};
use crate::snapshot::{ByModel, Fallback, Models, Snapshot};
use crate::units::Version;

#[derive(Clone, Debug, Default)]
pub(super) struct Breakers {
    pub(super) guards: ByModel<Guards>,
    /// As of the last swap of policies, by model; `None` before the first. A request that still holds an older generation
    /// may be the first to enter a version, and must not bring back what has changed since.
    policies: Option<Arc<Models>>,
}

/// Those of one model, in the order of its versions, of which there are few.
type Guards = Arc<[(Version, Arc<Guard>)]>;

/// A breaker that requests share.
#[derive(Debug)]
#[repr(C)] // what each request needs lies together, and first
pub(super) struct Guard {
    /// Where the version is, if another server answers it: elsewhere it is another one.
    remote: Option<Arc<Remote>>,
    /// Requests in it that a failing version has refused.
    diverted: AtomicU32,
    retries: RetryBudget,
    breaker: Mutex<Breaker>,
}

impl Guard {
    pub(super) fn new(policy: BreakerPolicy, remote: Option<&Arc<Remote>>) -> Self {
        let (breaker, retries) = (Mutex::new(Breaker::new(policy)), RetryBudget::default());
        Self { breaker, remote: remote.cloned(), diverted: AtomicU32::new(0), retries }
    }

    /// What each request needs of it.
    pub(super) fn prefetch(&self) {
        const LOCK: usize = 2 * size_of::<u32>();
        prefetch_start(self, offset_of!(Self, breaker) + LOCK + Breaker::NEEDED);
    }

    fn enter(self: Arc<Self>, now: Instant) -> Result<Pass, Tripped> {
        let permit = self.lock().enter(now)?;
        Ok(Pass { admission: Some((self, permit)), diverted: None })
    }

    fn lock(&self) -> MutexGuard<'_, Breaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one breaker does, for metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BreakerStatus {
    /// The model's name.
    pub model: Arc<str>,
    /// The version.
    pub version: Version,
    /// Its state at the moment that was asked about.
    pub state: BreakerState,
}

impl Ledger {
    /// Versions whose breakers are remembered. Beyond it, a further version is not guarded until [`Ledger::retain`]
    /// or a version that has recovered makes room.
    const MOST_BREAKERS: usize = 10_000;

    /// Lets a request into a version, unless that is failing. The pass must come back with an outcome.
    ///
    /// Call it with models and versions that exist, not with what a client asked for: each pair is remembered.
    ///
    /// # Errors
    /// [`Tripped`] with the time after which to try again.
    pub fn enter(
        &self,
        snapshot: &Snapshot,
        model: &str,
        version: Version,
        now: Instant,
    ) -> Result<Pass, Tripped> {
        let guard = self.guard(snapshot, model, version);
        guard.retries.earn();
        guard.enter(now)
    }

    /// Whether a version refuses whoever comes, where the policy names none in its place. Lets nobody in: it is asked before a
    /// request is read, and [`enter`](Self::enter) after that.
    pub fn refuses(
        &self,
        snapshot: &Snapshot,
        model: &str,
        version: Version,
        now: Instant,
    ) -> Option<Tripped> {
        if snapshot.model(model).is_some_and(|policy| policy.fallback.is_some()) {
            return None;
        }
        let guard = self.guard(snapshot, model, version);
        match guard.lock().state(now) {
            BreakerState::Tripped { retry_after } if !retry_after.is_zero() => Some(Tripped { retry_after }),
            BreakerState::Tripped { .. } | BreakerState::Passing | BreakerState::Probing => None,
        }
    }

    /// Lets a request into a version that `from` has not run, within the retries of that.
    ///
    /// # Errors
    /// Why not; then it has cost nothing.
    pub fn enter_again(
        &self,
        snapshot: &Snapshot,
        model: &str,
        (from, to): (Version, Version),
        now: Instant,
    ) -> Result<Pass, NotAgain> {
        let pass = self.guard(snapshot, model, to).enter(now).map_err(|_| NotAgain::Tripped)?;
        // A pass that is dropped gives its probe back.
        if self.guard(snapshot, model, from).retries.spend() { Ok(pass) } else { Err(NotAgain::OverBudget) }
    }

    /// Whether a request to this version may be sent once more, within its retries.
    pub fn may_repeat(&self, snapshot: &Snapshot, model: &str, version: Version) -> bool {
        self.guard(snapshot, model, version).retries.spend()
    }

    /// Lets a request that a failing version has refused into the one that the policy names in its place. `None` if it
    /// names none, or that one is not ready, fails itself, or has as many such requests as it may.
    pub fn fall_back(
        &self,
        snapshot: &Snapshot,
        model: &str,
        from: Version,
        is_ready: impl FnOnce(Version) -> bool,
        now: Instant,
    ) -> Option<(Version, Pass)> {
        let Fallback { version, in_flight_max } = snapshot.model(model)?.fallback?;
        if version == from || !is_ready(version) {
            return None;
        }
        let guard = self.guard(snapshot, model, version);
        let diverted = Diverted::enter(&guard, in_flight_max.get())?;
        let mut pass = guard.enter(now).ok()?;
        pass.diverted = Some(diverted);
        Some((version, pass))
    }

    /// What the breakers of two versions do.
    pub(super) fn standings(
        &self,
        model: &str,
        (one, other): (Version, Version),
        now: Instant,
    ) -> [Standing; 2] {
        let tables = self.tables.load();
        let versions = tables.breakers.guards.get(model);
        [one, other].map(|version| {
            let guard = versions.and_then(|versions| of(versions, version));
            // Nobody has entered it, or nobody since others answer.
            guard.map_or(Standing::FRESH, |guard| guard.lock().standing(now))
        })
    }

    fn guard(&self, snapshot: &Snapshot, model: &str, version: Version) -> Arc<Guard> {
        let remote = snapshot.remote(model, version);
        let tables = self.tables.load();
        let breakers = &tables.breakers;
        match breakers.guard(model, version) {
            Some(guard) if guard.remote.as_ref() == remote => return guard,
            None if breakers.remote(snapshot, model, version) == remote => {}
            // Who came under an older policy asks another server: what that does is nobody's fault here.
            Some(_) | None => return Arc::new(Guard::new(breakers.policy(snapshot, model), remote)),
        }
        drop(tables);
        self.replace(
            |tables| &mut tables.breakers,
            |breakers| {
                let mut breakers = Breakers::clone(breakers);
                // Another policy may have come into force since.
                if breakers.remote(snapshot, model, version) != remote {
                    return breakers;
                }
                if breakers.remembered() >= Self::MOST_BREAKERS {
                    breakers.forget_fresh();
                }
                if breakers.remembered() < Self::MOST_BREAKERS {
                    let policy = breakers.policy(snapshot, model);
                    let versions = breakers.guards.entry(model.into()).or_default();
                    if let Err(place) = versions.binary_search_by_key(&version, |(known, _)| *known) {
                        let (before, after) = versions.split_at(place);
                        let new = (version, Arc::new(Guard::new(policy, remote)));
                        *versions =
                            before.iter().cloned().chain([new]).chain(after.iter().cloned()).collect();
                    }
                }
                breakers
            },
        );
        let breakers = Arc::clone(&self.tables.load().breakers);
        let unguarded = || Arc::new(Guard::new(breakers.policy(snapshot, model), remote));
        let same = breakers.guard(model, version).filter(|guard| guard.remote.as_ref() == remote);
        same.unwrap_or_else(unguarded)
    }

    /// See [`Ledger::retain`]; those that were before.
    pub(super) fn retain_breakers(
        &self,
        snapshot: &Snapshot,
        serves: impl Fn(&str, Version) -> bool,
    ) -> Arc<Breakers> {
        self.replace(
            |tables| &mut tables.breakers,
            |breakers| {
                let kept = |(model, versions): (&CompactString, &Guards)| {
                    let policy = snapshot.breaker(model);
                    let serving = versions.iter().filter(|(version, guard)| match &guard.remote {
                        Some(remote) => snapshot.remote(model, *version) == Some(remote),
                        None => snapshot.remote(model, *version).is_none() && serves(model, *version),
                    });
                    let followed = serving.map(|(version, guard)| {
                        let goes_on = guard.lock().follow(policy);
                        // Passes into the old one settle into the void.
                        let anew = || Arc::new(Guard::new(policy, guard.remote.as_ref()));
                        (*version, if goes_on { Arc::clone(guard) } else { anew() })
                    });
                    let versions: Guards = followed.collect();
                    (!versions.is_empty()).then(|| (model.clone(), versions))
                };
                let guards = breakers.guards.iter().filter_map(kept).collect();
                Breakers { guards, policies: Some(Arc::clone(&snapshot.models)) }
            },
        )
    }

    /// What a version has done before says nothing about the rollout that begins.
    pub(super) fn forgive(&self, model: &str, version: Version) {
        self.replace(
            |tables| &mut tables.breakers,
            |breakers| {
                let mut breakers = Breakers::clone(breakers);
                if let Some(versions) = breakers.guards.get_mut(model) {
                    *versions = versions.iter().filter(|(known, _)| *known != version).cloned().collect();
                }
                breakers
            },
        );
    }

    /// The state of every breaker that has seen a request, ordered by model and version.
    pub fn breakers(&self, now: Instant) -> Vec<BreakerStatus> {
        let breakers = Arc::clone(&self.tables.load().breakers);
        let mut all = Vec::new();
        for (model, versions) in &breakers.guards {
            for (version, guard) in &**versions {
                all.push(BreakerStatus {
                    model: Arc::from(model.as_str()),
                    version: *version,
                    state: guard.lock().state(now),
                });
            }
        }
        all.sort_by(|a, b| (&a.model, a.version).cmp(&(&b.model, b.version)));
        all
    }
}

impl Breakers {
    fn guard(&self, model: &str, version: Version) -> Option<Arc<Guard>> {
        of(self.guards.get(model)?, version).map(Arc::clone)
    }

    fn forget_fresh(&mut self) {
        self.guards.retain(|_, versions| {
            *versions = versions.iter().filter(|(_, guard)| !guard.lock().is_fresh()).cloned().collect();
            !versions.is_empty()
        });
    }

    /// Of a version that nobody has entered yet, for a request that holds `snapshot`.
    fn policy(&self, snapshot: &Snapshot, model: &str) -> BreakerPolicy {
        match &self.policies {
            Some(policies) => policies.get(model).map(|policy| *policy.breaker()).unwrap_or_default(),
            None => snapshot.breaker(model),
        }
    }

    /// Where a version is that another server answers, as far as is known which policy is in force.
    fn remote<'a>(
        &'a self,
        snapshot: &'a Snapshot,
        model: &str,
        version: Version,
    ) -> Option<&'a Arc<Remote>> {
        match &self.policies {
            Some(policies) => policies.get(model)?.remotes.get(&version),
            None => snapshot.remote(model, version),
        }
    }

    fn remembered(&self) -> usize {
        self.guards.values().map(|versions| versions.len()).sum()
    }
}

pub(super) fn of(versions: &[(Version, Arc<Guard>)], version: Version) -> Option<&Arc<Guard>> {
    versions.iter().find(|(known, _)| *known == version).map(|(_, guard)| guard)
}

/// The right to enter a version once. Settle it with the outcome; dropping it means [`Outcome::Abandoned`].
#[must_use = "a dropped pass counts as abandoned; settle it with the outcome"]
#[derive(Debug)]
pub struct Pass {
    /// `None` only between settling and dropping.
    admission: Option<(Arc<Guard>, Permit)>,
    diverted: Option<Diverted>,
}

/// A request's place among those that a failing version has refused.
#[derive(Debug)]
struct Diverted(Arc<Guard>);

impl Diverted {
    fn enter(guard: &Arc<Guard>, most: u32) -> Option<Self> {
        let one_more = |count: u32| (count < most).then_some(count + 1);
        let entered = guard.diverted.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more);
        entered.is_ok().then(|| Self(Arc::clone(guard)))
    }
}

impl Drop for Diverted {
    fn drop(&mut self) {
        self.0.diverted.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Pass {
    /// Whether this request probes a version that has been failing.
    #[cfg(test)]
    pub(super) fn is_probe(&self) -> bool {
        self.admission.as_ref().is_some_and(|(_, permit)| permit.is_probe())
    }

    /// Tells the breaker how the request ended.
    pub fn settle(mut self, outcome: Outcome, now: Instant) {
        if let Some((guard, permit)) = self.admission.take() {
            guard.lock().settle(permit, outcome, now);
        }
        self.diverted = None;
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        if let Some((guard, permit)) = self.admission.take()
            && permit.is_probe()
        {
            guard.lock().abandon(permit);
        }
    }
}

#[cfg(test)]
mod tests;
