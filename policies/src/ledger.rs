//! All progress: what every limit has let through and how every version has fared. The only mutable state here.
//!
//! It is keyed by name and not by generation, so it survives a swap of policies: a limit or breaker starts afresh only
//! if its own settings changed. Settings change in [`Ledger::retain`] and nowhere else; a request that still holds an
//! older generation meets the current ones, so two generations in flight never fight over a state.
//!
//! The tables are read with one atomic load and replaced whole when a name is new, which is rare; each entry has its
//! own lock, held for a few instructions. No lock is ever held while another thread is waited for, except that one
//! request locks its limits one after the other, always in the order of their names.

mod admit;
mod occupy;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use arc_swap::ArcSwap;
use foldhash::fast::RandomState;

pub use admit::{Admitted, Usage};
use occupy::Crowd;
pub use occupy::{CrowdPolicy, Crowded, Places};

use crate::attribute::Attributes;
use crate::breaker::{Breaker, BreakerPolicy, BreakerState, Permit, Tripped};
use crate::canary::{
    ALL, Assignment, Canary, CanaryPolicy, CanaryStatus, Command, Millionths, Progress, Record, Sight,
};
use crate::limiter::{LimitPolicy, Limiter};
use crate::outcome::Outcome;
use crate::pick::Pick;
use crate::plan::share_after;
use crate::snapshot::{Fallback, ModelPolicy, Rings, Snapshot};
use crate::units::Version;

/// The state of all limits and breakers.
#[derive(Debug, Default)]
pub struct Ledger {
    /// The first moment anyone asked; limits count from it.
    epoch: OnceLock<Instant>,
    limiters: ArcSwap<Limiters>,
    crowds: ArcSwap<Crowds>,
    breakers: ArcSwap<Breakers>,
    rollouts: ArcSwap<Rollouts>,
}

// Their keys are names in the policy and in the repository: nobody outside chooses them so that they collide.
type Limiters = HashMap<Arc<str>, Arc<Limiter>, RandomState>;
type Crowds = HashMap<Arc<str>, Arc<Crowd>, RandomState>;
type Rollouts = BTreeMap<Arc<str>, Arc<Rollout>>;

#[derive(Clone, Debug, Default)]
struct Breakers {
    guards: HashMap<Arc<str>, BTreeMap<Version, Arc<Guard>>, RandomState>,
    /// As of the last swap of policies, by model; `None` before the first. A request that still holds an older generation
    /// may be the first to enter a version, and must not bring back what has changed since.
    policies: Option<Arc<HashMap<Arc<str>, BreakerPolicy, RandomState>>>,
}

/// A rollout that requests share.
#[derive(Debug)]
struct Rollout {
    /// Baseline and candidate.
    versions: (Version, Version),
    /// The candidate's, so that a pick takes no lock.
    share: AtomicU32,
    canary: Mutex<Canary>,
}

impl Rollout {
    fn new(policy: &CanaryPolicy, now: Instant) -> Self {
        let canary = Canary::new(policy.clone(), now);
        let share = AtomicU32::new(canary.share());
        Self { versions: policy.versions_of_arms(), share, canary: Mutex::new(canary) }
    }

    fn is_of(&self, policy: &CanaryPolicy) -> bool {
        self.versions == policy.versions_of_arms()
    }

    /// Changes it, and what is picked from now on.
    fn change<T>(&self, change: impl FnOnce(&mut Canary) -> T) -> T {
        let mut canary = self.canary.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = change(&mut canary);
        self.share.store(canary.share(), Ordering::Relaxed);
        changed
    }
}

/// A breaker that requests share.
#[derive(Debug)]
struct Guard {
    breaker: Mutex<Breaker>,
    /// Requests in it that a failing version has refused.
    diverted: AtomicU32,
}

impl Guard {
    fn new(policy: BreakerPolicy) -> Self {
        Self { breaker: Mutex::new(Breaker::new(policy)), diverted: AtomicU32::new(0) }
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

/// Why what a person says is not done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// Nothing of this model is rolled out.
    #[error("model `{0}` has no canary")]
    NoCanary(String),
    /// It makes no sense in the state that the rollout is in.
    #[error("{0}")]
    NotNow(String),
}

impl Ledger {
    /// Versions whose breakers are remembered. Beyond it, a further version is not guarded until [`Ledger::retain`]
    /// or a version that has recovered makes room.
    const MOST_BREAKERS: usize = 10_000;

    /// A ledger in which nothing has happened yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The version that answers this caller by `snapshot`: see [`ModelPolicy`](crate::ModelPolicy). `draw` is any evenly
    /// distributed number. A candidate of a rollout that is not ready gets nothing. `None` if the policy leaves it
    /// open: the highest ready version answers.
    pub fn pick(
        &self,
        snapshot: &Snapshot,
        model: &str,
        caller: &impl Attributes,
        draw: u64,
        is_ready: impl FnOnce(Version) -> bool,
    ) -> Option<Pick> {
        snapshot.model(model)?.pick(caller, draw, |policy| {
            // A rollout that nobody has begun yet gives nothing, whatever another one has come to.
            let rollouts = self.rollouts.load();
            let rollout = rollouts.get(model).filter(|rollout| rollout.is_of(policy));
            let rollout = rollout.filter(|rollout| is_ready(rollout.versions.1));
            rollout.map_or(0, |rollout| rollout.share.load(Ordering::Relaxed))
        })
    }

    /// Tells what became of a request that a rollout had assigned.
    pub fn witness(&self, model: &str, assigned: Assignment, key: Option<u64>, sight: Sight, now: Instant) {
        if assigned.is_commonplace(sight) {
            return;
        }
        if let Some(rollout) = self.rollouts.load().get(model) {
            rollout.change(|canary| canary.witness(assigned, key, sight, now));
        }
    }

    /// Tells whether a version has answered a copy as the client was answered, of a request that a rollout had assigned.
    /// Who was answered by the candidate itself, or by somebody's choice, says nothing about it.
    pub fn compared(
        &self,
        model: &str,
        assigned: Assignment,
        version: Version,
        key: Option<u64>,
        agrees: bool,
        now: Instant,
    ) {
        if !assigned.is_compared_by(version) {
            return;
        }
        if let Some(rollout) = self.rollouts.load().get(model) {
            rollout.change(|canary| canary.compared(assigned, key, agrees, now));
        }
    }

    /// Has every rollout look whether its step is over, and gives the verdicts that nobody was told of. Call it a few
    /// times a second.
    pub fn judge(&self, now: Instant) -> Vec<(Arc<str>, Record)> {
        let mut news = Vec::new();
        for (model, rollout) in self.rollouts.load().iter() {
            let records = rollout.change(|canary| {
                canary.judge(now);
                canary.news()
            });
            news.extend(records.into_iter().map(|record| (Arc::clone(model), record)));
        }
        news
    }

    /// Does with a rollout what a person says; how far it is then.
    ///
    /// # Errors
    /// Why not.
    pub fn command(
        &self,
        model: &str,
        command: Command,
        reason: &str,
        now: Instant,
    ) -> Result<CanaryStatus, CommandError> {
        let rollouts = self.rollouts.load();
        let rollout = rollouts.get(model).ok_or_else(|| CommandError::NoCanary(model.to_owned()))?;
        let obey = |canary: &mut Canary| {
            let begins_again = command == Command::Resume && canary.share() == 0;
            canary.command(command, reason, now).map(|()| (canary.status(), begins_again))
        };
        let (status, begins_again) = rollout.change(obey).map_err(CommandError::NotNow)?;
        if begins_again {
            self.forgive(model, rollout.versions.1);
        }
        Ok(status)
    }

    /// How far every rollout is.
    pub fn rollouts(&self) -> BTreeMap<String, CanaryStatus> {
        let rollouts = self.rollouts.load();
        rollouts
            .iter()
            .map(|(model, rollout)| (model.to_string(), rollout.change(|canary| canary.status())))
            .collect()
    }

    /// What is to be kept over a restart.
    pub fn progress(&self, now: Instant) -> BTreeMap<String, Progress> {
        let rollouts = self.rollouts.load();
        rollouts
            .iter()
            .map(|(model, rollout)| (model.to_string(), rollout.change(|canary| canary.progress(now))))
            .collect()
    }

    /// Goes on where an earlier process has stopped. Call it after [`Ledger::roll_out`].
    pub fn restore(&self, progress: &BTreeMap<String, Progress>, now: Instant) {
        for (model, rollout) in self.rollouts.load().iter() {
            if let Some(progress) = progress.get(&**model) {
                rollout.change(|canary| canary.restore(progress, now));
            }
        }
    }

    /// Where a request goes that a rollout had assigned before its body was read: to the baseline, if the candidate has
    /// lost its share since.
    pub fn confirm(
        &self,
        model: &str,
        version: Version,
        assigned: Option<Assignment>,
    ) -> (Version, Option<Assignment>) {
        let is_over = |assigned: &Assignment| {
            let arms = (assigned.baseline, assigned.candidate);
            assigned.is_candidate
                && self.rollouts.load().get(model).is_some_and(|rollout| {
                    rollout.versions == arms && rollout.share.load(Ordering::Relaxed) == 0
                })
        };
        match assigned {
            Some(assigned) if is_over(&assigned) => (assigned.baseline, None),
            assigned => (version, assigned),
        }
    }

    /// Every version without which somebody would not be answered; none if the policy names none. Of a rollout this is the
    /// baseline, or the candidate once it has everything and is ready: until then the baseline answers in its place.
    pub fn needed(
        &self,
        snapshot: &Snapshot,
        model: &str,
        is_ready: impl FnOnce(Version) -> bool,
    ) -> Vec<Version> {
        let Some(policy) = snapshot.model(model) else { return Vec::new() };
        let arm = policy.canary.as_ref().map(|canary| {
            let (baseline, candidate) = canary.versions_of_arms();
            let has_all = self.share_now(model, canary) == Some(ALL);
            if has_all && is_ready(candidate) { candidate } else { baseline }
        });
        policy.fixed_versions().chain(arm).collect()
    }

    /// Who answers at which point by `snapshot`, of every model that has a split or a rollout.
    pub fn rings(&self, snapshot: &Snapshot) -> Rings {
        let ring = |(name, policy): (&str, &ModelPolicy)| {
            let parts = match (&policy.canary, &policy.split) {
                (Some(canary), _) => canary.parts(self.share_now(name, canary).unwrap_or(0)),
                (None, Some(split)) => split.parts(),
                (None, None) => return None,
            };
            Some((name.to_owned(), parts))
        };
        Rings(snapshot.models().filter_map(ring).collect())
    }

    /// The candidate's share in the rollout that has begun, if that is of these versions.
    fn share_now(&self, model: &str, policy: &CanaryPolicy) -> Option<Millionths> {
        let rollouts = self.rollouts.load();
        let rollout = rollouts.get(model).filter(|rollout| rollout.is_of(policy))?;
        Some(rollout.share.load(Ordering::Relaxed))
    }

    /// The candidate's share once `policy` is in force, if `before` is now.
    pub(crate) fn share(
        &self,
        model: &str,
        policy: &CanaryPolicy,
        before: Option<&CanaryPolicy>,
    ) -> Millionths {
        match self.share_now(model, policy) {
            // As it is.
            Some(now) if before.is_none() => now,
            now => share_after(now, &policy.steps),
        }
    }

    /// Follows a swap of policies: begins the rollouts that are new, drops those that are gone.
    pub fn roll_out(&self, snapshot: &Snapshot, now: Instant) {
        let before = self.rollouts.load_full();
        self.begin_and_end(snapshot, now);
        for (model, rollout) in self.rollouts.load().iter() {
            let is_new = before.get(model).is_none_or(|before| !Arc::ptr_eq(before, rollout));
            if is_new {
                self.forgive(model, rollout.versions.1);
            }
        }
    }

    /// What a version has done before says nothing about the rollout that begins.
    fn forgive(&self, model: &str, version: Version) {
        self.breakers.rcu(|breakers| {
            let mut breakers = Breakers::clone(breakers);
            if let Some(versions) = breakers.guards.get_mut(model) {
                versions.remove(&version);
            }
            breakers
        });
    }

    fn begin_and_end(&self, snapshot: &Snapshot, now: Instant) {
        self.rollouts.rcu(|rollouts| {
            let wanted =
                snapshot.models().filter_map(|(model, policy)| Some((model, policy.canary.as_ref()?)));
            let followed = |(model, policy): (&str, &CanaryPolicy)| match rollouts.get_key_value(model) {
                Some((model, rollout)) if rollout.is_of(policy) => {
                    rollout.change(|canary| canary.follow(policy, now));
                    (Arc::clone(model), Arc::clone(rollout))
                }
                _ => (Arc::from(model), Arc::new(Rollout::new(policy, now))),
            };
            wanted.map(followed).collect::<Rollouts>()
        });
    }

    fn limiter(&self, limit: &Arc<LimitPolicy>) -> Arc<Limiter> {
        if let Some(limiter) = self.limiters.load().get(&limit.name) {
            return Arc::clone(limiter);
        }
        let new = Arc::new(Limiter::new(Arc::clone(limit)));
        self.limiters.rcu(|limiters| {
            let mut limiters = Limiters::clone(limiters);
            limiters.entry(Arc::clone(&limit.name)).or_insert_with(|| Arc::clone(&new));
            limiters
        });
        // Another thread may have been first; its limiter is then the one.
        self.limiters.load().get(&limit.name).map_or(new, Arc::clone)
    }

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
        let permit = guard.lock().enter(now)?;
        Ok(Pass { admission: Some((guard, permit)), diverted: None })
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
        let permit = guard.lock().enter(now).ok()?;
        Some((version, Pass { admission: Some((guard, permit)), diverted: Some(diverted) }))
    }

    fn guard(&self, snapshot: &Snapshot, model: &str, version: Version) -> Arc<Guard> {
        if let Some(guard) = self.breakers.load().guard(model, version) {
            return guard;
        }
        self.breakers.rcu(|breakers| {
            let mut breakers = Breakers::clone(breakers);
            if breakers.remembered() >= Self::MOST_BREAKERS {
                breakers.guards.retain(|_, versions| {
                    versions.retain(|_, guard| !guard.lock().is_fresh());
                    !versions.is_empty()
                });
            }
            if breakers.remembered() < Self::MOST_BREAKERS {
                let policy = breakers.policy(snapshot, model);
                let versions = breakers.guards.entry(Arc::from(model)).or_default();
                versions.entry(version).or_insert_with(|| Arc::new(Guard::new(policy)));
            }
            breakers
        });
        let breakers = self.breakers.load();
        let unguarded = || Arc::new(Guard::new(breakers.policy(snapshot, model)));
        breakers.guard(model, version).unwrap_or_else(unguarded)
    }

    /// Follows a swap of policies; call it after each [`Live::publish`](crate::Live::publish), and when versions come
    /// and go. Limits and breakers whose settings changed start afresh, those that are gone are dropped, the others
    /// keep their state. `serves` tells which versions of which models are still what their breakers have seen.
    pub fn retain(&self, snapshot: &Snapshot, serves: impl Fn(&str, Version) -> bool) {
        self.limiters.rcu(|limiters| {
            let kept = |limit: &Arc<LimitPolicy>| match limiters.get(&limit.name) {
                Some(limiter) if limiter.policy == *limit => Arc::clone(limiter),
                Some(_) | None => Arc::new(Limiter::new(Arc::clone(limit))),
            };
            snapshot.limits().iter().map(|limit| (Arc::clone(&limit.name), kept(limit))).collect::<Limiters>()
        });
        self.crowds.rcu(|crowds| {
            let kept = |policy: &Arc<CrowdPolicy>| match crowds.get(&policy.name) {
                Some(crowd) if crowd.policy == *policy => Arc::clone(crowd),
                Some(_) | None => Arc::new(Crowd::new(Arc::clone(policy))),
            };
            snapshot
                .crowds()
                .iter()
                .map(|policy| (Arc::clone(&policy.name), kept(policy)))
                .collect::<Crowds>()
        });
        let policies = snapshot.models().map(|(model, policy)| (Arc::from(model), *policy.breaker()));
        let policies = Arc::new(policies.collect::<HashMap<_, _, _>>());
        self.breakers.rcu(|breakers| {
            let mut breakers =
                Breakers { policies: Some(Arc::clone(&policies)), ..Breakers::clone(breakers) };
            breakers.guards.retain(|model, versions| {
                versions.retain(|version, _| serves(model, *version));
                let policy = snapshot.breaker(model);
                for guard in versions.values_mut() {
                    let goes_on = guard.lock().follow(policy);
                    // Passes into the old one settle into the void.
                    if !goes_on {
                        *guard = Arc::new(Guard::new(policy));
                    }
                }
                !versions.is_empty()
            });
            breakers
        });
    }

    /// The state of every breaker that has seen a request, ordered by model and version.
    pub fn breakers(&self, now: Instant) -> Vec<BreakerStatus> {
        let breakers = self.breakers.load_full();
        let mut all = Vec::new();
        for (model, versions) in &breakers.guards {
            for (version, guard) in versions {
                all.push(BreakerStatus {
                    model: Arc::clone(model),
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
        self.guards.get(model)?.get(&version).map(Arc::clone)
    }

    /// Of a version that nobody has entered yet, for a request that holds `snapshot`.
    fn policy(&self, snapshot: &Snapshot, model: &str) -> BreakerPolicy {
        match &self.policies {
            Some(policies) => policies.get(model).copied().unwrap_or_default(),
            None => snapshot.breaker(model),
        }
    }

    fn remembered(&self) -> usize {
        self.guards.values().map(BTreeMap::len).sum()
    }
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
    fn is_probe(&self) -> bool {
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
mod tests {
    use std::num::NonZeroU32;
    use std::thread;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::limiter::{Limited, Quota};
    use crate::{Live, parse};

    const ANA: [(&str, &str); 1] = [("user", "ana")];
    const BEN: [(&str, &str); 1] = [("user", "ben")];
    const EVERYTHING: fn(&str, Version) -> bool = |_, _| true;

    fn policies(text: &str) -> Snapshot {
        parse(text, "policies.yaml").unwrap()
    }

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    fn limited(limit: &str, milliseconds: u64) -> Result<(), (String, Duration)> {
        Err((limit.into(), ms(milliseconds)))
    }

    /// What matters of an answer.
    fn short<T>(answer: Result<T, Limited>) -> Result<(), (String, Duration)> {
        answer.map(drop).map_err(|limited| (limited.limit.to_string(), limited.retry_after))
    }

    #[test]
    fn a_refused_request_spends_nothing_at_any_limit() {
        let snapshot = policies(
            "limits: [{name: all, rate: 10/s, burst: 3}, {name: user, key: {header: user}, rate: 1/s, burst: 1}]",
        );
        let (ledger, now) = (Ledger::new(), Instant::now());
        assert_eq!(short(ledger.admit(&snapshot, "digits", &ANA, now)), Ok(()));
        for _ in 0..100 {
            assert_eq!(short(ledger.admit(&snapshot, "digits", &ANA, now)), limited("user", 1000));
        }
        assert_eq!(
            short(ledger.admit(&snapshot, "digits", &BEN, now)),
            Ok(()),
            "ana's refusals did not drain the total"
        );
        assert_eq!(short(ledger.admit(&snapshot, "digits", &[("user", "cy")], now)), Ok(()));
        assert_eq!(short(ledger.admit(&snapshot, "digits", &[("user", "di")], now)), limited("all", 100));
        assert_eq!(short(ledger.admit(&snapshot, "digits", &[("user", "di")], now + ms(100))), Ok(()));
    }

    #[test]
    fn the_longest_wait_is_the_one_that_is_told() {
        let snapshot = policies("limits: [{name: a, rate: 10/s, burst: 1}, {name: b, rate: 1/s, burst: 1}]");
        let (ledger, now) = (Ledger::new(), Instant::now());
        assert_eq!(short(ledger.admit(&snapshot, "digits", &ANA, now)), Ok(()));
        assert_eq!(short(ledger.admit(&snapshot, "digits", &ANA, now)), limited("b", 1000));
        assert_eq!(short(ledger.admit(&snapshot, "digits", &ANA, now + ms(1000))), Ok(()));
    }

    #[test]
    fn rows_are_spent_once_they_are_known_and_a_refusal_then_gives_the_request_back() {
        let snapshot = policies(
            "limits: [{name: asks, rate: 1/h, burst: 2}, {name: rows, key: {header: user}, cost: rows, rate: 10/s}]",
        );
        let (ledger, now) = (Ledger::new(), Instant::now());
        let ask = |rows, now| {
            let admitted = ledger.admit(&snapshot, "m", &ANA, now)?;
            ledger.charge(&snapshot, "m", &ANA, admitted, Usage { rows, bytes: 1 }, now)
        };
        let left = ask(7, now).unwrap().unwrap();
        assert_eq!((&*left.limit.name, left.remaining, left.reset), ("rows", 3, ms(700)));
        let refused = ask(4, now).unwrap_err();
        assert_eq!((&*refused.limit, refused.retry_after, refused.quota.remaining), ("rows", ms(100), 3));
        for _ in 0..10 {
            let never = ask(11, now).unwrap_err();
            assert_eq!(
                (never.never, never.quota.remaining),
                (NonZeroU32::new(11), 3),
                "more than may ever come at once"
            );
        }
        let other = ledger.admit(&snapshot, "m", &BEN, now).unwrap().quota.unwrap();
        assert_eq!((&*other.limit.name, other.remaining), ("asks", 0), "the second of two");
        assert_eq!(short(ask(1, now)), limited("asks", 3_600_000));
        let left = ask(4, now + ms(7_200_000)).unwrap().unwrap();
        assert_eq!(
            (&*left.limit.name, left.remaining),
            ("asks", 1),
            "half of them, and six in ten of the rows"
        );
    }

    #[test]
    fn what_time_has_paid_for_is_not_given_back() {
        let snapshot =
            policies("limits: [{name: asks, rate: 1/s, burst: 1}, {name: rows, cost: rows, rate: 10/s}]");
        let (ledger, now) = (Ledger::new(), Instant::now());
        let at = |milliseconds| now + ms(milliseconds);
        let admit = |now| ledger.admit(&snapshot, "m", &ANA, now);
        let too_many = |admitted, now| {
            let usage = Usage { rows: 11, bytes: 1 };
            ledger.charge(&snapshot, "m", &ANA, admitted, usage, now).unwrap_err();
        };
        let slow = admit(at(0)).unwrap();
        let _other = admit(at(20_000)).unwrap();
        too_many(slow, at(20_100));
        assert_eq!(short(admit(at(20_100))), limited("asks", 900), "the other one's second is not over");
        let third = admit(at(21_000)).unwrap();
        too_many(third, at(21_400));
        assert_eq!(short(admit(at(21_400))), Ok(()), "the rest of its second");
        let fourth = admit(at(22_400)).unwrap();
        let afresh =
            policies("limits: [{name: asks, rate: 1/h, burst: 1}, {name: rows, cost: rows, rate: 10/s}]");
        ledger.retain(&afresh, EVERYTHING);
        let _first = admit(at(22_500)).unwrap();
        too_many(fourth, at(22_500));
        assert_eq!(short(admit(at(22_500))), limited("asks", 3_600_000), "it was not spent at the new limit");
    }

    #[test]
    fn of_several_limits_the_one_is_told_of_which_the_smallest_part_is_left() {
        let snapshot =
            policies("limits: [{name: asks, rate: 1/h, burst: 4}, {name: bytes, cost: bytes, rate: 1000/s}]");
        let (ledger, now) = (Ledger::new(), Instant::now());
        let ask = |bytes| {
            let admitted = ledger.admit(&snapshot, "m", &ANA, now).unwrap();
            ledger.charge(&snapshot, "m", &ANA, admitted, Usage { rows: 1, bytes }, now).unwrap().unwrap()
        };
        let told = |quota: Quota| (quota.limit.name.to_string(), quota.remaining);
        assert_eq!(told(ask(100)), ("asks".into(), 3), "what the body costs does not hide what its head did");
        assert_eq!(told(ask(700)), ("bytes".into(), 200));
        assert_eq!(told(ask(10)), ("bytes".into(), 190));
        assert_eq!(told(ask(1)), ("asks".into(), 0));
    }

    #[test]
    fn what_is_left_is_told_for_the_limit_with_the_least() {
        let snapshot = policies("limits: [{name: a, rate: 10/s}, {name: b, rate: 60/m, burst: 3}]");
        let (ledger, now) = (Ledger::new(), Instant::now());
        let left = ledger.admit(&snapshot, "m", &ANA, now).unwrap().quota.unwrap();
        assert_eq!((&*left.limit.name, left.remaining, left.reset), ("b", 2, ms(1000)));
        assert_eq!(left.limit.field(), "\"b\";q=3;w=3");
        assert_eq!(left.field(), "\"b\";r=2;t=1");
        ledger.admit(&snapshot, "m", &ANA, now).unwrap();
        let left = ledger.admit(&snapshot, "m", &ANA, now + ms(500)).unwrap().quota.unwrap();
        assert_eq!((left.remaining, left.field().as_str()), (0, "\"b\";r=0;t=3"), "half of one is none");
        let refused = ledger.admit(&snapshot, "m", &ANA, now + ms(500)).unwrap_err();
        assert_eq!((refused.quota.field().as_str(), refused.retry_after), ("\"b\";r=0;t=3", ms(500)));
        assert_eq!(ledger.admit(&policies("models: {}"), "m", &ANA, now).unwrap().quota, None);
    }

    #[test]
    fn a_limit_leaves_other_models_alone() {
        let snapshot = policies("limits: [{name: a, models: [digits], rate: 1/h, burst: 1}]");
        let (ledger, now) = (Ledger::new(), Instant::now());
        assert_eq!(short(ledger.admit(&snapshot, "digits", &ANA, now)), Ok(()));
        assert!(ledger.admit(&snapshot, "digits", &ANA, now).is_err());
        assert_eq!(short(ledger.admit(&snapshot, "letters", &ANA, now)), Ok(()));
    }

    #[test]
    fn another_version_answers_for_one_that_fails_as_long_as_it_can() {
        let snapshot =
            policies("models: {m: {breaker: {failures: 1, fallback: {version: 1, in_flight_max: 2}}}}");
        let (ledger, now) = (Ledger::new(), Instant::now());
        ledger.enter(&snapshot, "m", Version(2), now).unwrap().settle(Outcome::Failed, now);
        assert!(ledger.enter(&snapshot, "m", Version(2), now).is_err());
        let fall_back = |from| ledger.fall_back(&snapshot, "m", Version(from), |_| true, now);
        let (version, first) = fall_back(2).unwrap();
        assert_eq!(version, Version(1));
        let second = fall_back(2).unwrap();
        assert!(fall_back(2).is_none(), "no more than two at a time");
        drop(second);
        first.settle(Outcome::Served, now);
        assert!(fall_back(1).is_none(), "nobody falls back to who has just refused");
        assert!(ledger.fall_back(&snapshot, "m", Version(2), |_| false, now).is_none(), "not ready");
        let (_, third) = fall_back(2).unwrap();
        third.settle(Outcome::Failed, now);
        assert!(fall_back(2).is_none(), "it has tripped as well");
        assert!(ledger.fall_back(&snapshot, "other", Version(2), |_| true, now).is_none());
    }

    #[test]
    fn only_what_chance_has_given_to_the_baseline_is_compared_with_the_candidate() {
        let snapshot = policies(
            "models: {m: {canary: {baseline: 1, candidate: 2, steps: [50], gates: {disagreement: {at_most: 2}}}, \
             shadow: {version: 2}}}",
        );
        let (ledger, now) = (Ledger::new(), Instant::now());
        ledger.roll_out(&snapshot, now);
        let assigned = |draw| ledger.pick(&snapshot, "m", &ANA, draw, |_| true).unwrap().assigned.unwrap();
        let compared = || ledger.rollouts()["m"].gates[1].requests;
        ledger.compared("m", assigned(u64::MAX), Version(2), None, false, now);
        assert_eq!(compared(), 0, "the client got the candidate's answer");
        ledger.compared("m", assigned(0), Version(3), None, false, now);
        assert_eq!(compared(), 0, "another version's answer");
        ledger.compared("m", assigned(0), Version(2), None, false, now);
        assert_eq!(compared(), 1);
    }

    #[test]
    fn a_reload_keeps_the_limits_that_did_not_change() {
        let ledger = Ledger::new();
        let now = Instant::now();
        let before = policies(
            "limits: [{name: same, rate: 1/h, burst: 1, models: [a]}, {name: new, rate: 1/h, burst: 1, models: [b]}]",
        );
        assert_eq!(short(ledger.admit(&before, "a", &ANA, now)), Ok(()));
        assert_eq!(short(ledger.admit(&before, "b", &ANA, now)), Ok(()));

        let after = policies(
            "limits: [{name: new, rate: 2/h, burst: 1, models: [b]}, {name: same, rate: 1/h, burst: 1, models: [a]}]",
        );
        ledger.retain(&after, EVERYTHING);
        assert_eq!(short(ledger.admit(&after, "a", &ANA, now)), limited("same", 3_600_000));
        assert_eq!(short(ledger.admit(&after, "b", &ANA, now)), Ok(()));
        assert_eq!(
            short(ledger.admit(&before, "b", &ANA, now)),
            limited("new", 1_800_000),
            "a late request meets the new rate"
        );
    }

    #[test]
    fn threads_share_a_burst_exactly() {
        let snapshot =
            policies("limits: [{name: a, rate: 1/h, burst: 1000}, {name: b, rate: 1/h, burst: 500}]");
        let (ledger, now) = (Ledger::new(), Instant::now());
        let admitted: usize = thread::scope(|scope| {
            let ask = || (0..400).filter(|_| ledger.admit(&snapshot, "digits", &ANA, now).is_ok()).count();
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(ask)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(admitted, 500);
        let only_a = policies("limits: [{name: a, rate: 1/h, burst: 1000}]");
        let rest = (0..1000).filter(|_| ledger.admit(&only_a, "digits", &ANA, now).is_ok()).count();
        assert_eq!(rest, 500, "what `b` refused was not spent at `a`");
    }

    #[test]
    fn between_splits_and_rollouts_nobody_moves_who_need_not_nor_does_a_restart_move_anybody() {
        let model =
            |policy: &str| policies(&format!("models: {{m: {{{policy}, sticky: {{header: user}}}}}}}}"));
        let split = |weights: &str| model(&format!("split: {{weights: {weights}"));
        let canary = |steps: &str| model(&format!("canary: {{baseline: 2, candidate: 1, steps: {steps}"));
        let (ledger, now) = (Ledger::new(), Instant::now());
        let live = Live::new(split("{1: 10, 2: 90}"));
        let on = |ledger: &Ledger, snapshot: &Snapshot| -> Vec<u64> {
            let names = (0..10_000).map(|user| user.to_string());
            names
                .map(|name| {
                    ledger.pick(snapshot, "m", &[("user", name.as_str())], 0, |_| true).unwrap().version.0
                })
                .collect()
        };
        let moved = |before: &[u64], after: &[u64]| {
            let moved: Vec<_> = before.iter().zip(after).filter(|(before, after)| before != after).collect();
            moved.len() as f64 / 100.0
        };
        let mut before = on(&ledger, &live.load().snapshot);
        for (next, percent) in [
            (canary("[10, 30]"), 0.0),
            (canary("[30]"), 20.0),
            (split("{1: 30, 2: 70}"), 0.0),
            (split("{1: 20, 2: 70, 3: 10}"), 10.0),
            (canary("[25]"), 10.0),
            (split("{1: 25, 2: 65, 3: 10}"), 10.0),
        ] {
            live.publish(next, &ledger);
            let generation = live.load();
            ledger.roll_out(&generation.snapshot, now);
            let after = on(&ledger, &generation.snapshot);
            assert!(
                (moved(&before, &after) - percent).abs() < 1.0,
                "{} %, not {percent}",
                moved(&before, &after)
            );
            before = after;
        }
        live.publish(canary("[40]"), &ledger);
        ledger.roll_out(&live.load().snapshot, now);
        let before = on(&ledger, &live.load().snapshot);
        let restarted = Ledger::new();
        let snapshot = canary("[40]").follow(&ledger.rings(&live.load().snapshot));
        restarted.roll_out(&snapshot, now);
        assert_eq!(moved(&before, &on(&restarted, &snapshot)), 0.0);
    }

    fn trip(ledger: &Ledger, snapshot: &Snapshot, version: Version, now: Instant) {
        for _ in 0..snapshot.breaker("digits").failures.get() {
            ledger.enter(snapshot, "digits", version, now).unwrap().settle(Outcome::Failed, now);
        }
    }

    fn tripped(milliseconds: u64) -> Option<Tripped> {
        Some(Tripped { retry_after: ms(milliseconds) })
    }

    #[test]
    fn each_version_has_its_own_breaker() {
        let (ledger, snapshot, now) = (Ledger::new(), Snapshot::default(), Instant::now());
        trip(&ledger, &snapshot, Version(2), now);
        assert_eq!(ledger.enter(&snapshot, "digits", Version(2), now).err(), tripped(10_000));
        assert!(ledger.enter(&snapshot, "digits", Version(1), now).is_ok());
        let states: Vec<_> =
            ledger.breakers(now).into_iter().map(|status| (status.version.0, status.state)).collect();
        assert_eq!(
            states,
            [(1, BreakerState::Passing), (2, BreakerState::Tripped { retry_after: Duration::from_secs(10) })]
        );
    }

    #[test]
    fn a_reload_keeps_a_breaker_tripped_unless_its_own_settings_changed() {
        let (ledger, now) = (Ledger::new(), Instant::now());
        let before = policies("models: {digits: {breaker: {failures: 2, open_for: 1s}}}");
        trip(&ledger, &before, Version(2), now);

        let other_split =
            policies("models: {digits: {split: {weights: {2: 1}}, breaker: {failures: 2, open_for: 1s}}}");
        ledger.retain(&other_split, EVERYTHING);
        assert_eq!(ledger.enter(&other_split, "digits", Version(2), now).err(), tripped(1000));

        let other_deadline =
            policies("models: {digits: {deadline: 3s, breaker: {failures: 2, open_for: 1s}}}");
        ledger.retain(&other_deadline, EVERYTHING);
        assert_eq!(ledger.enter(&other_deadline, "digits", Version(2), now).err(), tripped(1000));
        let later = now + ms(1000);
        let _probe = ledger.enter(&other_deadline, "digits", Version(2), later).unwrap();
        assert_eq!(
            ledger.enter(&other_deadline, "digits", Version(2), later).err(),
            tripped(3000),
            "a probe has the new deadline's time"
        );

        let other_breaker = policies("models: {digits: {breaker: {failures: 3, open_for: 1s}}}");
        ledger.retain(&other_breaker, EVERYTHING);
        assert!(ledger.enter(&before, "digits", Version(2), now).is_ok());
        trip(&ledger, &other_breaker, Version(2), now);
        assert_eq!(ledger.enter(&other_breaker, "digits", Version(2), now).err(), tripped(1000));
    }

    #[test]
    fn a_late_request_that_is_the_first_to_enter_a_version_meets_its_newest_settings() {
        let (ledger, now) = (Ledger::new(), Instant::now());
        let before = policies("models: {digits: {breaker: {failures: 1, open_for: 1s}}}");
        let after = policies("models: {digits: {breaker: {failures: 2, open_for: 3s}}}");
        ledger.retain(&after, EVERYTHING);
        ledger.enter(&before, "digits", Version(1), now).unwrap().settle(Outcome::Failed, now);
        ledger.enter(&after, "digits", Version(1), now).unwrap().settle(Outcome::Failed, now);
        assert_eq!(ledger.enter(&after, "digits", Version(1), now).err(), tripped(3000));
    }

    #[test]
    fn a_version_that_is_gone_is_forgotten() {
        let (ledger, snapshot, now) = (Ledger::new(), Snapshot::default(), Instant::now());
        let pass = ledger.enter(&snapshot, "digits", Version(1), now).unwrap();
        let _ = ledger.enter(&snapshot, "digits", Version(2), now);
        ledger.retain(&snapshot, |_, version| version == Version(2));
        assert_eq!(ledger.breakers(now).len(), 1);
        pass.settle(Outcome::Failed, now); // Into the void, harmlessly.
        assert_eq!(ledger.breakers(now).len(), 1);
    }

    #[test]
    fn a_breaker_is_forgiven_when_a_rollout_begins_again_and_not_when_it_goes_on() {
        let (ledger, now) = (Ledger::new(), Instant::now());
        let snapshot = policies("models: {digits: {canary: {baseline: 1, candidate: 2}}}");
        ledger.roll_out(&snapshot, now);
        trip(&ledger, &snapshot, Version(2), now);
        let say = |command| ledger.command("digits", command, "", now).unwrap();
        say(Command::Pause);
        say(Command::Resume);
        assert_eq!(ledger.enter(&snapshot, "digits", Version(2), now).err(), tripped(10_000));
        say(Command::Abort);
        say(Command::Resume);
        assert!(ledger.enter(&snapshot, "digits", Version(2), now).is_ok());
    }

    #[test]
    fn a_dropped_pass_gives_its_probe_back() {
        let (ledger, snapshot, now) = (Ledger::new(), Snapshot::default(), Instant::now());
        trip(&ledger, &snapshot, Version(1), now);
        let later = now + Duration::from_secs(10);
        let probe = ledger.enter(&snapshot, "digits", Version(1), later).unwrap();
        assert!(probe.is_probe());
        assert_eq!(ledger.enter(&snapshot, "digits", Version(1), later).err(), tripped(10_000));
        drop(probe);
        assert!(ledger.enter(&snapshot, "digits", Version(1), later).is_ok_and(|pass| pass.is_probe()));
    }

    #[test]
    fn the_number_of_breakers_is_bounded() {
        let (ledger, snapshot, now) = (Ledger::new(), Snapshot::default(), Instant::now());
        trip(&ledger, &snapshot, Version(1), now);
        let mut full = Breakers::clone(&ledger.breakers.load());
        let versions = full.guards.get_mut("digits").unwrap();
        versions.extend(
            (2..=10_000).map(|version| (Version(version), Arc::new(Guard::new(BreakerPolicy::default())))),
        );
        ledger.breakers.store(Arc::new(full));
        assert!(ledger.enter(&snapshot, "digits", Version(10_001), now).is_ok());
        let remembered: Vec<_> = ledger.breakers(now).into_iter().map(|status| status.version.0).collect();
        assert_eq!(remembered, [1, 10_001], "those that had nothing to remember made room");
    }

    /// The same limits as a leaky bucket: what a caller owes drains with time, and one more fits if what is owed
    /// leaves room for it. Written without GCRA, so that the two can disagree.
    #[derive(Default)]
    struct Oracle(HashMap<(usize, usize), (u64, u64)>);

    impl Oracle {
        /// `limits` are interval and burst; the answer is the index of the limit with the longest wait, and the wait.
        fn admit(&mut self, limits: &[(u64, u64)], user: usize, now: u64) -> Option<(usize, u64)> {
            let mut refusal: Option<(usize, u64)> = None;
            for (limit, (interval, burst)) in limits.iter().enumerate() {
                let (owed, at) = self.0.entry((limit, user)).or_insert((0, now));
                (*owed, *at) = (owed.saturating_sub(now - *at), now);
                let wait = owed.saturating_sub((burst - 1) * interval);
                if wait > refusal.map_or(0, |(_, longest)| longest) {
                    refusal = Some((limit, wait));
                }
            }
            if refusal.is_none() {
                for (limit, (interval, _)) in limits.iter().enumerate() {
                    self.0.entry((limit, user)).and_modify(|(owed, _)| *owed += interval);
                }
            }
            refusal
        }
    }

    proptest! {
        #[test]
        fn limits_agree_with_a_leaky_bucket_to_the_nanosecond(
            limits in prop::collection::vec((1..500_u64, 1..5_u64), 1..4),
            arrivals in prop::collection::vec((0..40_000_000_u64, 0..3_usize), 0..200),
        ) {
            let mut text = "limits:".to_owned();
            for (at, (per_second, burst)) in limits.iter().enumerate() {
                text += &format!("\n  - {{name: l{at}, key: {{header: user}}, rate: {per_second}/s, burst: {burst}}}");
            }
            let snapshot = policies(&text);
            let limits: Vec<_> =
                limits.iter().map(|(per_second, burst)| (1_000_000_000_u64.div_ceil(*per_second), *burst)).collect();
            let (ledger, mut oracle, start) = (Ledger::new(), Oracle::default(), Instant::now());
            let mut now = 0;
            for (pause, user) in arrivals {
                now += pause;
                let caller = [("user", ["ana", "ben", "cy"][user])];
                let got = short(ledger.admit(&snapshot, "digits", &caller, start + Duration::from_nanos(now)));
                let expected = match oracle.admit(&limits, user, now) {
                    None => Ok(()),
                    Some((limit, wait)) => {
                        Err((format!("l{limit}"), Duration::from_nanos(wait)))
                    }
                };
                prop_assert_eq!(got, expected);
            }
        }
    }
}
