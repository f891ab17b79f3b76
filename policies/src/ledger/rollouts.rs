//! Rollouts that requests share: who is told what becomes of them, who looks whether a step is over, and how they begin, go on
//! and end with the policies. What a rollout decides is in `canary.rs`.
//!
//! A pick takes no lock: what it has to know of a rollout is one word, which changes together with what it is made of.

use std::collections::BTreeMap;
use std::mem::offset_of;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use compact_str::CompactString;

use super::{Ledger, TalliesAhead};
use crate::canary::{
    AnswerTimes, Asked, Assignment, Beginnings, Canary, CanaryPolicy, CanaryStatus, Command, Phase, Progress,
    Record, Sight, Stage, Taken, UnderWay,
};
use crate::drift::DriftSight;
use crate::ended::EndedRollouts;
use crate::plan::share_after;
use crate::prefetch::{prefetch, prefetch_start};
use crate::snapshot::{ByModel, Snapshot};
use crate::units::{Millionths, Version};

pub(super) type Rollouts = ByModel<Arc<Rollout>>;

/// A rollout that requests share.
#[derive(Debug)]
#[repr(C)] // what each request needs lies together, and first
pub(super) struct Rollout {
    /// Baseline and candidate.
    pub(super) versions: (Version, Version),
    /// As [`packed`], so that a pick takes no lock.
    stage: AtomicU64,
    /// See [`CanaryPolicy::about`]. Written before the stage and read after it: who knows the beginning of something else knows
    /// that it is something else.
    about: AtomicU64,
    /// Requests that the candidate is asked and that were assigned to it. These three are the canary's, so that what says nothing
    /// else takes no lock.
    pub(super) asked: Arc<Asked>,
    usual: Arc<AnswerTimes>,
    taken: Arc<Taken>,
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
        let (asked, usual, taken) = (canary.asked(), canary.usual(), canary.taken());
        let (versions, canary) = (policy.versions_of_arms(), Mutex::new(canary));
        Self { versions, stage, about, asked, usual, taken, canary }
    }

    /// What is known of it without its lock.
    pub(super) fn prefetch(&self) {
        prefetch_start(self, offset_of!(Self, canary));
    }

    /// Whom it has heard of.
    pub(super) fn prefetch_users(&self) {
        prefetch(&*self.taken);
    }

    fn is_of(&self, policy: &CanaryPolicy) -> bool {
        self.versions == policy.versions_of_arms()
    }

    fn has(&self, version: Version) -> bool {
        version == self.versions.0 || version == self.versions.1
    }

    /// The candidate's share.
    pub(super) fn share(&self) -> Millionths {
        self.stage.load(Ordering::Relaxed) as u32
    }

    /// For a pick by a policy that is about this.
    pub(super) fn stage(&self, about: u64, is_ready: bool) -> Stage {
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
    /// Asks the rollout of these versions that is under way; else the one that the last swap of policies has ended, by which
    /// requests are still answered that came before it.
    pub(super) fn of_rollout<A>(
        &self,
        model: &str,
        arms: (Version, Version),
        ask: impl FnOnce(&Rollout) -> A,
    ) -> Option<A> {
        let of_these = |rollout: &&Arc<Rollout>| rollout.versions == arms;
        if let Some(rollout) = self.tables.load().rollouts.get(model).filter(of_these) {
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
        let tables = self.tables.load();
        let Some(rollout) = tables.rollouts.get(model) else { return };
        if let Some(took) = assigned.commonplace(sight) {
            if rollout.versions == assigned.versions() {
                rollout.usual.hear(took, assigned.brought);
                if let Some(key) = key {
                    rollout.taken.hear(key);
                    rollout.usual.hear_key(key);
                }
            }
            return;
        }
        let breakers = self.standings(model, rollout.versions, now);
        rollout.change(|canary| {
            canary.see_breakers(breakers);
            canary.witness(assigned, key, sight, now);
        });
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
        if let Some(rollout) = self.tables.load().rollouts.get(model) {
            rollout.change(|canary| canary.compared(assigned, key, agrees, now));
        }
    }

    /// Tells how far the tensors of a version have moved from its reference.
    pub fn drifted(&self, model: &str, version: Version, sight: DriftSight, now: Instant) {
        if let Some(rollout) = self.tables.load().rollouts.get(model).filter(|rollout| rollout.has(version)) {
            rollout.change(|canary| canary.drifted(version, sight, now));
        }
    }

    /// Has every rollout look whether its step is over, and gives the verdicts that nobody was told of. Call it a few
    /// times a second.
    pub fn judge(&self, now: Instant) -> Vec<(Arc<str>, Record)> {
        let mut news = std::mem::take(&mut *self.last_news());
        for (model, rollout) in self.tables.load().rollouts.iter() {
            let breakers = self.standings(model, rollout.versions, now);
            let records = rollout.change(|canary| {
                canary.see_breakers(breakers);
                canary.judge(now);
                canary.news()
            });
            news.extend(records.into_iter().map(|record| (Arc::from(model.as_str()), record)));
        }
        news.sort_by(|(one, _), (other, _)| one.cmp(other)); // those of one model stay in their order
        news
    }

    /// These files of a version answer, as a number; 0 where nobody knows which. A rollout that has seen others begins its step
    /// anew, also where that was before a restart; one that is remembered of another candidate is forgotten.
    pub fn made_of(&self, model: &str, version: Version, files: u64, now: Instant) {
        self.remembered().made_of(model, version, files);
        if let Some(rollout) = self.tables.load().rollouts.get(model).filter(|rollout| rollout.has(version)) {
            rollout.change(|canary| canary.made_of(version, files, now));
        }
    }

    /// The same for a rollout that nobody has told of any files of this version.
    pub fn begins_with(&self, model: &str, version: Version, files: u64) {
        if let Some(rollout) = self.tables.load().rollouts.get(model).filter(|rollout| rollout.has(version)) {
            rollout.change(|canary| canary.begins_with(version, files));
        }
    }

    /// Other files of a version answer now than before: a rollout of it, or against it, begins its step anew.
    pub fn replaced(&self, model: &str, version: Version, now: Instant) {
        self.remembered().replaced(model, version);
        if let Some(rollout) = self.tables.load().rollouts.get(model).filter(|rollout| rollout.has(version)) {
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
        let rollouts = Arc::clone(&self.tables.load().rollouts);
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
        let rollouts = Arc::clone(&self.tables.load().rollouts);
        rollouts
            .iter()
            .map(|(model, rollout)| (model.to_string(), rollout.change(|canary| canary.status())))
            .collect()
    }

    /// What is to be kept over a restart.
    pub fn progress(&self, now: Instant) -> BTreeMap<String, Progress> {
        let rollouts = Arc::clone(&self.tables.load().rollouts);
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
            let canary = snapshot.model(model).and_then(|policy| policy.canary.as_deref());
            canary.is_some_and(|canary| canary.versions_of_arms() == progress.versions())
        };
        let (go_on, end): (Vec<_>, Vec<_>) =
            progress.iter().partition(|(model, progress)| goes_on(model, progress));
        for (model, progress) in &end {
            self.remembered().learn_from(model, progress);
        }
        self.roll_out(snapshot, now);
        let rollouts = Arc::clone(&self.tables.load().rollouts);
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

    /// What the candidate of every rollout gets, by model.
    pub(crate) fn shares_of_candidates(&self) -> Vec<(CompactString, Millionths)> {
        let rollouts = Arc::clone(&self.tables.load().rollouts);
        let shares = rollouts.iter().map(|(model, rollout)| (model.clone(), rollout.share()));
        let mut shares: Vec<_> = shares.collect();
        shares.sort_unstable();
        shares
    }

    /// The candidate's share in the rollout that has begun, if that is of these versions; else where one goes on that is remembered.
    pub(crate) fn share_now(&self, model: &str, policy: &CanaryPolicy) -> Option<Millionths> {
        match self.tables.load().rollouts.get(model).filter(|rollout| rollout.is_of(policy)) {
            Some(rollout) => Some(rollout.share()),
            None => self.remembered().of(model, policy).map(|before| before.share(&policy.steps)),
        }
    }

    /// How a rollout was left that goes on with this policy; nothing of one that is under way.
    pub(crate) fn left_as(&self, model: &str, policy: &CanaryPolicy) -> Option<Phase> {
        let is_under_way =
            self.tables.load().rollouts.get(model).is_some_and(|rollout| rollout.is_of(policy));
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
        let before = Arc::clone(&self.tables.load().rollouts);
        self.replace(
            |tables| &mut tables.rollouts,
            |rollouts| {
                let mut rollouts = Rollouts::clone(rollouts);
                for (model, policy) in snapshot.canaries() {
                    let begun = || Arc::new(self.begun(model, policy, now));
                    rollouts.entry((**model).into()).or_insert_with(begun);
                }
                rollouts
            },
        );
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
        let before = Arc::clone(&self.tables.load().rollouts);
        self.begin_and_end(snapshot, now);
        self.tally(snapshot, ahead, now);
        self.forgive_new(&before);
    }

    fn forgive_new(&self, before: &Rollouts) {
        for (model, rollout) in self.tables.load().rollouts.iter() {
            let is_new = before.get(model).is_none_or(|before| !Arc::ptr_eq(before, rollout));
            if is_new {
                self.forgive(model, rollout.versions.1);
            }
        }
    }

    fn begin_and_end(&self, snapshot: &Snapshot, now: Instant) {
        let goes_on = |(model, rollout): &(&CompactString, &Arc<Rollout>)| {
            let canary = snapshot.model(model).and_then(|policy| policy.canary.as_deref());
            canary.is_some_and(|canary| rollout.is_of(canary))
        };
        let ended = |rollouts: &Rollouts| -> Rollouts {
            let ended = rollouts.iter().filter(|one| !goes_on(one));
            ended.map(|(model, rollout)| (model.clone(), Arc::clone(rollout))).collect()
        };
        let ended = Arc::new(ended(&self.tables.load().rollouts));
        self.ended.store(Arc::clone(&ended));
        for (model, rollout) in &*ended {
            let progress = rollout.change(|canary| canary.progress(now));
            self.remembered().learn_from(model, &progress);
        }
        self.replace(
            |tables| &mut tables.rollouts,
            |rollouts| {
                let followed =
                    |(model, policy): (&Arc<str>, &CanaryPolicy)| match rollouts.get_key_value(&**model) {
                        Some((model, rollout)) if rollout.is_of(policy) => {
                            rollout.change(|canary| canary.follow(policy, now));
                            (model.clone(), Arc::clone(rollout))
                        }
                        _ => ((**model).into(), Arc::new(self.begun(model, policy, now))),
                    };
                snapshot.canaries().map(followed).collect::<Rollouts>()
            },
        );
        // Now that nothing is decided about them any more.
        for (model, rollout) in &*ended {
            let (progress, news) = rollout.change(|canary| (canary.progress(now), canary.news()));
            self.remembered().note(model, progress);
            self.last_news().extend(news.into_iter().map(|record| (Arc::from(model.as_str()), record)));
        }
        self.remembered().follow(snapshot);
    }

    fn last_news(&self) -> MutexGuard<'_, Vec<(Arc<str>, Record)>> {
        self.last_news.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
