//! Rollouts that ended rolled back: a policy without them came into force. Decides that whoever brings one back does not
//! thereby trust its candidate again; a person has to say so. Never how a rollout goes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::canary::Progress;
use crate::units::Version;

/// Of one model; of more the oldest is forgotten.
const KEPT: usize = 4;

/// Models of which any are remembered; of more, one is forgotten that has not just been rolled back.
const MODELS: usize = 1_000;

/// By model, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RolledBack(BTreeMap<String, Vec<Progress>>);

impl RolledBack {
    /// How a rollout has ended: remembered if it was rolled back, and else not any more.
    pub(crate) fn note(&mut self, model: &str, progress: Progress) {
        self.forget(model, progress.versions());
        let Some(progress) = progress.if_rolled_back() else { return };
        while self.0.len() >= MODELS && !self.0.contains_key(model) {
            self.0.pop_first();
        }
        let all = self.0.entry(model.to_owned()).or_default();
        all.push(progress);
        all.drain(..all.len().saturating_sub(KEPT));
    }

    /// A person trusts the candidate again.
    pub(crate) fn forget(&mut self, model: &str, versions: (Version, Version)) {
        let Some(all) = self.0.get_mut(model) else { return };
        all.retain(|known| known.versions() != versions);
        if all.is_empty() {
            self.0.remove(model);
        }
    }

    /// How far a rollout of this baseline and this candidate was, if it ended like that.
    pub(crate) fn of(&self, model: &str, versions: (Version, Version)) -> Option<&Progress> {
        self.0.get(model)?.iter().find(|known| known.versions() == versions)
    }
}
