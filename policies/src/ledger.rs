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
mod count;
mod occupy;
mod spent;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use arc_swap::ArcSwap;
use foldhash::fast::RandomState;

pub use admit::{Admitted, Charged, Reserved, Usage};
use count::Tallies;
pub(crate) use count::TalliesAhead;
use occupy::Crowd;
pub use occupy::{CrowdPolicy, Crowded, Places};
pub use spent::Spent;

use crate::attribute::Attributes;
use crate::breaker::{Breaker, BreakerPolicy, BreakerState, Permit, Tripped};
use crate::canary::{
    AnswerTimes, Asked, Assignment, Beginnings, Canary, CanaryPolicy, CanaryStatus, Command, Phase, Progress,
    Record, Sight, Stage, UnderWay,
};
use crate::drift::DriftSight;
use crate::ended::EndedRollouts;
use crate::limiter::{LimitPolicy, Limiter};
use crate::outcome::Outcome;
use crate::pick::{Pick, PickReason, Split};
use crate::plan::share_after;
use crate::remote::Remote;
use crate::retry::{NotAgain, RetryBudget};
use crate::ring::Parts;
use crate::snapshot::{Fallback, ModelPolicy, Models, Rings, Snapshot};
use crate::units::{ALL, Millionths, Version};

/// The state of all limits and breakers.
#[derive(Debug, Default)]
pub struct Ledger {
    /// The first moment anyone asked; limits count from it.
    epoch: OnceLock<Instant>,
    limiters: ArcSwap<Limiters>,
    crowds: ArcSwap<Crowds>,
    breakers: ArcSwap<Breakers>,
    rollouts: ArcSwap<Rollouts>,
    /// Those that the last swap of policies has ended.
    ended: ArcSwap<Rollouts>,
    /// Verdicts about these that nobody was told of.
    last_news: Mutex<Vec<(Arc<str>, Record)>>,
    beginnings: Beginnings,
    /// How far those were whose policies have gone.
    remembered: Mutex<EndedRollouts>,
    tallies: ArcSwap<Tallies>,
}

// Their keys are names in the policy and in the repository: nobody outside chooses them so that they collide.
type Limiters = HashMap<Arc<str>, Arc<Limiter>, RandomState>;
type Crowds = HashMap<Arc<str>, Arc<Crowd>, RandomState>;
type Rollouts = HashMap<Arc<str>, Arc<Rollout>, RandomState>;

#[derive(Clone, Debug, Default)]
struct Breakers {
    guards: HashMap<Arc<str>, BTreeMap<Version, Arc<Guard>>, RandomState>,
    /// As of the last swap of policies, by model; `None` before the first. A request that still holds an older generation
    /// may be the first to enter a version, and must not bring back what has changed since.
    policies: Option<Arc<Models>>,
}

/// A rollout that requests share.
#[derive(Debug)]
struct Rollout {
    /// Baseline and candidate.
    versions: (Version, Version),
    /// As [`packed`], so that a pick takes no lock.
    stage: AtomicU64,
    /// See [`CanaryPolicy::about`]. Written before the stage and read after it: who knows the beginning of something else knows
    /// that it is something else.
    about: AtomicU64,
    /// Requests that the candidate is asked and that were assigned to it. These two are the canary's, so that what says nothing else
    /// takes no lock.
    asked: Arc<Asked>,
    usual: Arc<AnswerTimes>,
    canary: Mutex<Canary>,
}

/// What may change of a stage, in one word.
fn packed(canary: &Canary) -> u64 {
    u64::from(canary.begun()) << 32 | u64::from(canary.share())
}

impl Rollout {
    fn new(policy: &CanaryPolicy, beginnings: Beginnings, now: Instant) -> Self {
        let canary = Canary::new(policy.clone(), beginnings, now);
        let (stage, about) = (AtomicU64::new(packed(&canary)), AtomicU64::new(canary.about()));
        let (asked, usual) = (canary.asked(), canary.usual());
        Self { versions: policy.versions_of_arms(), stage, about, asked, usual, canary: Mutex::new(canary) }
    }

    fn is_of(&self, policy: &CanaryPolicy) -> bool {
        self.versions == policy.versions_of_arms()
    }

    fn has(&self, version: Version) -> bool {
        version == self.versions.0 || version == self.versions.1
    }

    /// The candidate's share.
    fn share(&self) -> Millionths {
        self.stage.load(Ordering::Relaxed) as u32
    }

    /// For a pick by a policy that is about this.
    fn stage(&self, about: u64, is_ready: bool) -> Stage {
        let packed = self.stage.load(Ordering::Acquire);
        let begun = (packed >> 32) as u32;
        let is_same = self.about.load(Ordering::Relaxed) == about;
        let share = packed as u32;
        Stage { share, begun: is_same.then_some(begun), is_ready, is_rolled_back: share == 0 }
    }

    /// Changes it, and what is picked from now on.
    fn change<T>(&self, change: impl FnOnce(&mut Canary) -> T) -> T {
        let mut canary = self.canary.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = change(&mut canary);
        self.about.store(canary.about(), Ordering::Relaxed);
        self.stage.store(packed(&canary), Ordering::Release);
        changed
    }
}

/// A breaker that requests share.
#[derive(Debug)]
struct Guard {
    breaker: Mutex<Breaker>,
    /// Where the version is, if another server answers it: elsewhere it is another one.
    remote: Option<Arc<Remote>>,
    /// Requests in it that a failing version has refused.
    diverted: AtomicU32,
    retries: RetryBudget,
}

impl Guard {
    fn new(policy: BreakerPolicy, remote: Option<&Arc<Remote>>) -> Self {
        let (breaker, retries) = (Mutex::new(Breaker::new(policy)), RetryBudget::default());
        Self { breaker, remote: remote.cloned(), diverted: AtomicU32::new(0), retries }
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
            let now = |rollout: &Rollout| rollout.stage(policy.about, is_ready(rollout.versions.1));
            self.of_rollout(model, policy.versions_of_arms(), now).unwrap_or(Stage::NOT_BEGUN)
        })
    }

    /// Asks the rollout of these versions that is under way; else the one that the last swap of policies has ended, by which
    /// requests are still answered that came before it.
    fn of_rollout<A>(
        &self,
        model: &str,
        arms: (Version, Version),
        ask: impl FnOnce(&Rollout) -> A,
    ) -> Option<A> {
        let of_these = |rollout: &&Arc<Rollout>| rollout.versions == arms;
        if let Some(rollout) = self.rollouts.load().get(model).filter(of_these) {
            return Some(ask(rollout));
        }
        self.ended.load().get(model).filter(of_these).map(|rollout| ask(rollout))
    }

    /// Notes that a request is asked which a rollout had assigned to its candidate: as long as many of them take far longer than its
    /// answers do, it is not trusted with more.
    pub fn ask(&self, model: &str, assigned: Assignment) -> Option<UnderWay> {
        if !assigned.is_candidate {
            return None;
        }
        self.of_rollout(model, assigned.versions(), |rollout| rollout.asked.begin())
    }

    /// Tells what became of a request that a rollout had assigned.
    pub fn witness(&self, model: &str, assigned: Assignment, key: Option<u64>, sight: Sight, now: Instant) {
        let rollouts = self.rollouts.load();
        let Some(rollout) = rollouts.get(model) else { return };
        if let Some(took) = assigned.commonplace(sight) {
            if rollout.versions == assigned.versions() {
                rollout.usual.hear(took, assigned.brought);
            }
            return;
        }
        rollout.change(|canary| canary.witness(assigned, key, sight, now));
    }

    /// Tells whether a version has answered a copy as the client was answered, of a request that a rollout had assigned; `None`
    /// where nothing was compared: there was no room or time for the copy, or no answer. Who was answered by the candidate
    /// itself, or by somebody's choice, says nothing about it.
    pub fn compared(
        &self,
        model: &str,
        assigned: Assignment,
        version: Version,
        key: Option<u64>,
        agrees: Option<bool>,
        now: Instant,
    ) {
        if !assigned.is_compared_by(version) {
            return;
        }
        if let Some(rollout) = self.rollouts.load().get(model) {
            rollout.change(|canary| canary.compared(assigned, key, agrees, now));
        }
    }

    /// Tells how far the tensors of a version have moved from its reference.
    pub fn drifted(&self, model: &str, version: Version, sight: DriftSight, now: Instant) {
        if let Some(rollout) = self.rollouts.load().get(model).filter(|rollout| rollout.has(version)) {
            rollout.change(|canary| canary.drifted(version, sight, now));
        }
    }

    /// Has every rollout look whether its step is over, and gives the verdicts that nobody was told of. Call it a few
    /// times a second.
    pub fn judge(&self, now: Instant) -> Vec<(Arc<str>, Record)> {
        let mut news = std::mem::take(&mut *self.last_news());
        for (model, rollout) in self.rollouts.load().iter() {
            let records = rollout.change(|canary| {
                canary.judge(now);
                canary.news()
            });
            news.extend(records.into_iter().map(|record| (Arc::clone(model), record)));
        }
        news.sort_by(|(one, _), (other, _)| one.cmp(other)); // those of one model stay in their order
        news
    }

    /// These files of a version answer, as a number; 0 where nobody knows which. A rollout that has seen others begins its step
    /// anew, also where that was before a restart; one that is remembered of another candidate is forgotten.
    pub fn made_of(&self, model: &str, version: Version, files: u64, now: Instant) {
        self.remembered().made_of(model, version, files);
        if let Some(rollout) = self.rollouts.load().get(model).filter(|rollout| rollout.has(version)) {
            rollout.change(|canary| canary.made_of(version, files, now));
        }
    }

    /// The same for a rollout that nobody has told of any files of this version.
    pub fn begins_with(&self, model: &str, version: Version, files: u64) {
        if let Some(rollout) = self.rollouts.load().get(model).filter(|rollout| rollout.has(version)) {
            rollout.change(|canary| canary.begins_with(version, files));
        }
    }

    /// Other files of a version answer now than before: a rollout of it, or against it, begins its step anew.
    pub fn replaced(&self, model: &str, version: Version, now: Instant) {
        self.remembered().replaced(model, version);
        if let Some(rollout) = self.rollouts.load().get(model).filter(|rollout| rollout.has(version)) {
            rollout.change(|canary| canary.begin_step_anew(version, now));
        }
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
            self.remembered().forget(model, rollout.versions);
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

    /// Begins with this policy where an earlier process has stopped: so far its rollouts were, and these had ended before. What the
    /// policy ends of the ones says how far the others still count, as it does where a swap ends them: so it is learned before anything
    /// of `snapshot` begins.
    pub fn go_on(
        &self,
        snapshot: &Snapshot,
        (progress, ended): (&BTreeMap<String, Progress>, EndedRollouts),
        now: Instant,
    ) {
        *self.remembered() = ended;
        let goes_on = |model: &str, progress: &Progress| {
            let canary = snapshot.model(model).and_then(|policy| policy.canary.as_ref());
            canary.is_some_and(|canary| canary.versions_of_arms() == progress.versions())
        };
        let (go_on, end): (Vec<_>, Vec<_>) =
            progress.iter().partition(|(model, progress)| goes_on(model, progress));
        for (model, progress) in &end {
            self.remembered().learn_from(model, progress);
        }
        self.roll_out(snapshot, now);
        let rollouts = self.rollouts.load();
        for (model, progress) in go_on {
            if let Some(rollout) = rollouts.get(&**model) {
                rollout.change(|canary| canary.restore(progress, now));
            }
        }
        for (model, progress) in end {
            self.remembered().note(model, progress.clone());
        }
        self.remembered().follow(snapshot);
    }

    /// Rollouts whose policies have gone, to be kept over a restart.
    pub fn ended_rollouts(&self) -> EndedRollouts {
        self.remembered().clone()
    }

    fn remembered(&self) -> MutexGuard<'_, EndedRollouts> {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where a request goes that the policy of `snapshot` has given to a version, for this reason, before its body was read: to
    /// the baseline, if that was the candidate and has lost its share since. What the caller has chosen has no reason, and stays.
    pub fn confirm(
        &self,
        snapshot: &Snapshot,
        model: &str,
        version: Version,
        (reason, assigned): (Option<PickReason>, Option<Assignment>),
    ) -> (Version, Option<Assignment>) {
        let arms = match (assigned, reason) {
            (Some(assigned), _) => Some(assigned.versions()).filter(|_| assigned.is_candidate),
            (None, Some(PickReason::Rule)) => {
                let canary = snapshot.model(model).and_then(|policy| policy.canary.as_ref());
                canary.map(CanaryPolicy::versions_of_arms).filter(|(_, candidate)| *candidate == version)
            }
            // Who has no key never gets the candidate by that, see `compile.rs`.
            (None, Some(PickReason::Sticky | PickReason::Random | PickReason::WithoutKey) | None) => None,
        };
        let is_over =
            |arms: &(Version, Version)| self.of_rollout(model, *arms, |rollout| rollout.share()) == Some(0);
        match arms.filter(is_over) {
            Some((baseline, _)) => (baseline, None),
            None => (version, assigned),
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
        // Whom a rule sends to a candidate that was rolled back, the baseline answers.
        let is_over = |canary: &&CanaryPolicy| self.share_now(model, canary) == Some(0);
        let over = policy.canary.as_ref().filter(is_over).map(|canary| canary.versions_of_arms().1);
        policy.fixed_versions().filter(|fixed| Some(*fixed) != over).chain(arm).collect()
    }

    /// The version that answers most of the requests that name none; nothing where the policy leaves it open.
    pub fn mostly(&self, snapshot: &Snapshot, model: &str) -> Option<Version> {
        let policy = snapshot.model(model)?;
        if let Some(canary) = &policy.canary {
            let (baseline, candidate) = canary.versions_of_arms();
            let has_most = self.share_now(model, canary).is_some_and(|share| share > ALL / 2);
            return Some(if has_most { candidate } else { baseline });
        }
        policy.shares().max_by(|(_, one), (_, other)| one.total_cmp(other)).map(|(version, _)| version)
    }

    /// Who answers at which point by `snapshot`, of every model that has a split or a rollout.
    pub fn rings(&self, snapshot: &Snapshot) -> Rings {
        let ring = |(name, policy): (&str, &ModelPolicy)| Some((name.to_owned(), self.parts(name, policy)?));
        Rings(snapshot.models().filter_map(ring).collect())
    }

    /// The same of one model.
    pub(crate) fn parts(&self, model: &str, policy: &ModelPolicy) -> Option<Parts> {
        match (&policy.canary, &policy.split) {
            (Some(canary), _) => Some(canary.parts(self.share_now(model, canary).unwrap_or(0))),
            (None, split) => split.as_ref().map(Split::parts),
        }
    }

    /// What the candidate of every rollout gets, by model.
    pub(crate) fn shares_of_candidates(&self) -> Vec<(Arc<str>, Millionths)> {
        let rollouts = self.rollouts.load();
        let shares = rollouts.iter().map(|(model, rollout)| (Arc::clone(model), rollout.share()));
        let mut shares: Vec<_> = shares.collect();
        shares.sort_unstable();
        shares
    }

    /// The candidate's share in the rollout that has begun, if that is of these versions; else where one goes on that is remembered.
    pub(crate) fn share_now(&self, model: &str, policy: &CanaryPolicy) -> Option<Millionths> {
        match self.rollouts.load().get(model).filter(|rollout| rollout.is_of(policy)) {
            Some(rollout) => Some(rollout.share()),
            None => self.remembered().of(model, policy).map(|before| before.share(&policy.steps)),
        }
    }

    /// How a rollout was left that goes on with this policy; nothing of one that is under way.
    pub(crate) fn left_as(&self, model: &str, policy: &CanaryPolicy) -> Option<Phase> {
        let is_under_way = self.rollouts.load().get(model).is_some_and(|rollout| rollout.is_of(policy));
        let remembered = self.remembered();
        remembered.of(model, policy).filter(|_| !is_under_way).map(|before| before.phase().clone())
    }

    /// The candidate's share once `policy` is in force, if `before` is now.
    pub(crate) fn share(
        &self,
        model: &str,
        policy: &CanaryPolicy,
        before: Option<&CanaryPolicy>,
    ) -> Millionths {
        let is_another = before.is_some_and(|before| before.is_asked_elsewhere(policy));
        match self.share_now(model, policy) {
            // As it is.
            Some(now) if before.is_none() => now,
            Some(1..) if is_another => policy.steps[0],
            now => share_after(now, &policy.steps),
        }
    }

    /// Begins rollouts of models that had none, before the policy that has them is in force: its first request finds them.
    pub(crate) fn begin(&self, snapshot: &Snapshot, now: Instant) {
        let before = self.rollouts.load_full();
        self.rollouts.rcu(|rollouts| {
            let mut rollouts = Rollouts::clone(rollouts);
            for (model, policy) in snapshot.canaries() {
                let begun = || Arc::new(self.begun(model, policy, now));
                rollouts.entry(Arc::clone(model)).or_insert_with(begun);
            }
            rollouts
        });
        self.forgive_new(&before);
    }

    fn begun(&self, model: &str, policy: &CanaryPolicy, now: Instant) -> Rollout {
        let rollout = Rollout::new(policy, self.beginnings.clone(), now);
        if let Some(progress) = self.remembered().of(model, policy) {
            rollout.change(|canary| canary.come_back(progress, now));
        }
        rollout
    }

    /// Follows a swap of policies: begins the rollouts that are new, drops those that are gone.
    pub fn roll_out(&self, snapshot: &Snapshot, now: Instant) {
        self.roll_out_with(snapshot, None, now);
    }

    pub(crate) fn roll_out_with(&self, snapshot: &Snapshot, ahead: Option<&mut TalliesAhead>, now: Instant) {
        let before = self.rollouts.load_full();
        self.begin_and_end(snapshot, now);
        self.tally(snapshot, ahead, now);
        self.forgive_new(&before);
    }

    fn forgive_new(&self, before: &Rollouts) {
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
        let goes_on = |(model, rollout): &(&Arc<str>, &Arc<Rollout>)| {
            let canary = snapshot.model(model).and_then(|policy| policy.canary.as_ref());
            canary.is_some_and(|canary| rollout.is_of(canary))
        };
        let ended = |rollouts: &Rollouts| -> Rollouts {
            let ended = rollouts.iter().filter(|one| !goes_on(one));
            ended.map(|(model, rollout)| (Arc::clone(model), Arc::clone(rollout))).collect()
        };
        let ended = Arc::new(ended(&self.rollouts.load()));
        self.ended.store(Arc::clone(&ended));
        for (model, rollout) in &*ended {
            let progress = rollout.change(|canary| canary.progress(now));
            self.remembered().learn_from(model, &progress);
        }
        self.rollouts.rcu(|rollouts| {
            let followed = |(model, policy): (&Arc<str>, &CanaryPolicy)| match rollouts.get_key_value(model) {
                Some((model, rollout)) if rollout.is_of(policy) => {
                    rollout.change(|canary| canary.follow(policy, now));
                    (Arc::clone(model), Arc::clone(rollout))
                }
                _ => (Arc::clone(model), Arc::new(self.begun(model, policy, now))),
            };
            snapshot.canaries().map(followed).collect::<Rollouts>()
        });
        // Now that nothing is decided about them any more.
        for (model, rollout) in &*ended {
            let (progress, news) = rollout.change(|canary| (canary.progress(now), canary.news()));
            self.remembered().note(model, progress);
            self.last_news().extend(news.into_iter().map(|record| (Arc::clone(model), record)));
        }
        self.remembered().follow(snapshot);
    }

    fn last_news(&self) -> MutexGuard<'_, Vec<(Arc<str>, Record)>> {
        self.last_news.lock().unwrap_or_else(PoisonError::into_inner)
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
        guard.retries.earn();
        let permit = guard.lock().enter(now)?;
        Ok(Pass { admission: Some((guard, permit)), diverted: None })
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
        let guard = self.guard(snapshot, model, to);
        let permit = guard.lock().enter(now).map_err(|_| NotAgain::Tripped)?;
        let pass = Pass { admission: Some((guard, permit)), diverted: None };
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
        let permit = guard.lock().enter(now).ok()?;
        Some((version, Pass { admission: Some((guard, permit)), diverted: Some(diverted) }))
    }

    fn guard(&self, snapshot: &Snapshot, model: &str, version: Version) -> Arc<Guard> {
        let remote = snapshot.remote(model, version);
        let breakers = self.breakers.load();
        match breakers.guard(model, version) {
            Some(guard) if guard.remote.as_ref() == remote => return guard,
            None if breakers.remote(snapshot, model, version) == remote => {}
            // Who came under an older policy asks another server: what that does is nobody's fault here.
            Some(_) | None => return Arc::new(Guard::new(breakers.policy(snapshot, model), remote)),
        }
        drop(breakers);
        self.breakers.rcu(|breakers| {
            let mut breakers = Breakers::clone(breakers);
            // Another policy may have come into force since.
            if breakers.remote(snapshot, model, version) != remote {
                return breakers;
            }
            if breakers.remembered() >= Self::MOST_BREAKERS {
                breakers.guards.retain(|_, versions| {
                    versions.retain(|_, guard| !guard.lock().is_fresh());
                    !versions.is_empty()
                });
            }
            if breakers.remembered() < Self::MOST_BREAKERS {
                let policy = breakers.policy(snapshot, model);
                let versions = breakers.guards.entry(snapshot.name_of(model)).or_default();
                versions.entry(version).or_insert_with(|| Arc::new(Guard::new(policy, remote)));
            }
            breakers
        });
        let breakers = self.breakers.load();
        let unguarded = || Arc::new(Guard::new(breakers.policy(snapshot, model), remote));
        let same = breakers.guard(model, version).filter(|guard| guard.remote.as_ref() == remote);
        same.unwrap_or_else(unguarded)
    }

    /// Follows a swap of policies; call it after each [`Live::publish`](crate::Live::publish), and when versions come
    /// and go. Limits and breakers whose settings changed start afresh, those that are gone are dropped, the others
    /// keep their state. `serves` tells which versions of which models are still what their breakers have seen; where
    /// another server answers, that is so for as long as the policy names the same.
    pub fn retain(&self, snapshot: &Snapshot, serves: impl Fn(&str, Version) -> bool) -> Gone {
        let limiters = self.limiters.rcu(|limiters| {
            let kept = |limit: &Arc<LimitPolicy>| match limiters.get(&limit.name) {
                Some(limiter) if limiter.policy == *limit => Arc::clone(limiter),
                Some(_) | None => Arc::new(Limiter::new(Arc::clone(limit))),
            };
            snapshot.limits().iter().map(|limit| (Arc::clone(&limit.name), kept(limit))).collect::<Limiters>()
        });
        let crowds = self.crowds.rcu(|crowds| {
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
        let breakers = self.breakers.rcu(|breakers| {
            let kept = |(model, versions): (&Arc<str>, &BTreeMap<Version, Arc<Guard>>)| {
                let policy = snapshot.breaker(model);
                let serving = versions.iter().filter(|(version, guard)| match &guard.remote {
                    Some(remote) => snapshot.remote(model, **version) == Some(remote),
                    None => snapshot.remote(model, **version).is_none() && serves(model, **version),
                });
                let followed = serving.map(|(version, guard)| {
                    let goes_on = guard.lock().follow(policy);
                    // Passes into the old one settle into the void.
                    let anew = || Arc::new(Guard::new(policy, guard.remote.as_ref()));
                    (*version, if goes_on { Arc::clone(guard) } else { anew() })
                });
                let versions: BTreeMap<_, _> = followed.collect();
                (!versions.is_empty()).then(|| (snapshot.name_of(model), versions))
            };
            let guards = breakers.guards.iter().filter_map(kept).collect();
            Breakers { guards, policies: Some(Arc::clone(&snapshot.models)) }
        });
        Gone { limiters, crowds, breakers }
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
        self.guards.values().map(BTreeMap::len).sum()
    }
}

/// State that a swap of policies has left behind. Of a limit this is every caller that it knew: whoever keeps it until requests
/// are done with it is the one who frees it.
#[derive(Debug)]
#[expect(dead_code, reason = "held to be dropped")]
pub struct Gone {
    limiters: Arc<Limiters>,
    crowds: Arc<Crowds>,
    breakers: Arc<Breakers>,
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
mod tests;
