//! Rollouts that ended rolled back: a policy without them came into force. Decides that whoever brings one back does not
//! thereby trust its candidate again; a person has to say so. Never how a rollout goes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::canary::Progress;
use crate::units::Version;

/// Of one model; of more the oldest is forgotten.
const KEPT: usize = 4;

/// Models of which any are remembered.
const MODELS: usize = 1_000;

/// By model, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RolledBack(BTreeMap<String, Vec<Progress>>);

impl RolledBack {
    /// How a rollout has ended: remembered if it was rolled back, and else not any more.
    pub(crate) fn note(&mut self, model: &str, progress: Progress) {
        let mut all = self.0.remove(model).unwrap_or_default();
        all.retain(|known| known.versions() != progress.versions());
        if let Some(progress) = progress.if_rolled_back() {
            all.push(progress);
        }
        all.drain(..all.len().saturating_sub(KEPT));
        if !all.is_empty() && self.0.len() < MODELS {
            self.0.insert(model.to_owned(), all);
        }
    }

    /// How far a rollout of this baseline and this candidate was, if it ended like that.
    pub(crate) fn of(&self, model: &str, versions: (Version, Version)) -> Option<&Progress> {
        self.0.get(model)?.iter().find(|known| known.versions() == versions)
    }
}
