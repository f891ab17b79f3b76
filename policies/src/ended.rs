//! Rollouts that have ended because a policy without them came into force. Decides that one whose policy comes back goes on where it
//! was, as somebody expects who takes a change of the policy back: what was promoted keeps everything, what was paused stays so,
//! and what was on its way keeps its step. A candidate that was rolled back is not trusted again before a person says so; any
//! other that is made of other files by then, or is another server's, is another candidate, and begins at the first step; and so
//! does one that a policy in between has given less than it had. Never how a rollout goes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::canary::{CanaryPolicy, Progress};
use crate::snapshot::{ModelPolicy, Snapshot};
use crate::units::{ALL, Version};

/// Of one model, each of another baseline or candidate. Of more the oldest is forgotten that was not rolled back, else the
/// oldest; what is forgotten begins at its first step.
const KEPT_MAX: usize = 4;

/// Models of which any are remembered; of more, one is forgotten, if there is one of which nothing was rolled back.
const MODELS_MAX: usize = 1_000;

/// By model, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EndedRollouts(BTreeMap<String, Vec<Progress>>);

impl EndedRollouts {
    /// How a rollout has ended.
    pub(crate) fn note(&mut self, model: &str, progress: Progress) {
        self.forget(model, progress.versions());
        self.learn_from(model, &progress);
        if self.0.len() >= MODELS_MAX && !self.0.contains_key(model) {
            let gives_way = |(_, all): &(&String, &Vec<Progress>)| !all.iter().any(Progress::is_rolled_back);
            let first = self.0.iter().find(gives_way).or_else(|| self.0.iter().next());
            if let Some(first) = first.map(|(model, _)| model.clone()) {
                self.0.remove(&first);
            }
        }
        let all = self.0.entry(model.to_owned()).or_default();
        all.push(progress.of_ended());
        if all.len() > KEPT_MAX {
            let oldest = all.iter().position(|known| !known.is_rolled_back()).unwrap_or(0);
            all.remove(oldest);
        }
    }

    /// A person trusts the candidate again.
    pub(crate) fn forget(&mut self, model: &str, versions: (Version, Version)) {
        self.retain(model, |known| known.versions() != versions);
    }

    /// These files of a version answer now; 0 where nobody knows which.
    pub(crate) fn made_of(&mut self, model: &str, version: Version, files: u64) {
        if files != 0 {
            self.retain(model, |known| known.learn(version, files));
        }
    }

    /// Other files of a version answer now than before.
    pub(crate) fn replaced(&mut self, model: &str, version: Version) {
        self.retain(model, |known| known.is_rolled_back() || !known.has_candidate_here(version));
    }

    /// This policy came into force. Whom its split gives less than a rollout did, or whom its rollout has no arm for, it takes back:
    /// what somebody does who does not want it, and who must not get all of it again at once because an old file comes back.
    pub(crate) fn follow(&mut self, snapshot: &Snapshot) {
        let models: Vec<String> = self.0.keys().cloned().collect();
        for model in models {
            if let Some(policy) = snapshot.model(&model) {
                self.retain(&model, |known| known.is_rolled_back() || !takes_back(policy, known));
            }
        }
    }

    /// This rollout ends. Whom it has given less in the end than another one did, it has taken back. A baseline lends its
    /// users to another candidate, and has lost them once that has all of them.
    pub(crate) fn learn_from(&mut self, model: &str, ended: &Progress) {
        let ((baseline, candidate), share) = (ended.versions(), ended.share_of_step());
        self.retain(model, |known| {
            let (_, version) = known.versions();
            let is_less =
                version == candidate && share < known.share_of_step() || version == baseline && share == ALL;
            known.is_rolled_back() || !is_less
        });
    }

    /// How far the rollout of this policy was, if it goes on from there.
    pub(crate) fn of(&self, model: &str, policy: &CanaryPolicy) -> Option<&Progress> {
        self.0.get(model)?.iter().find(|known| known.is_of(policy))
    }

    fn retain(&mut self, model: &str, is_kept: impl FnMut(&mut Progress) -> bool) {
        let Some(all) = self.0.get_mut(model) else { return };
        all.retain_mut(is_kept);
        if all.is_empty() {
            self.0.remove(model);
        }
    }
}

/// Whether the candidate gets less by this policy than it had. What a rollout in which it has an arm comes to is known at its end.
fn takes_back(policy: &ModelPolicy, known: &Progress) -> bool {
    let (_, candidate) = known.versions();
    if let Some(canary) = &policy.canary {
        let (baseline, tried) = canary.versions_of_arms();
        return candidate != baseline && candidate != tried;
    }
    let Some(split) = &policy.split else { return false };
    let arms = split.shares().filter(|(target, _)| target.version == candidate);
    let share: f64 = arms.map(|(_, share)| share).sum();
    share * f64::from(ALL) < f64::from(known.share_of_step()) - 0.5
}
