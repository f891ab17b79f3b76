//! Which version is to answer: one that the path names, else the policy's pick, else the highest that is ready. And why there is
//! none. Asks no breaker, and spends nothing.

use super::InferPath;
use crate::caller::Caller;
use crate::directory::Models;
use crate::record::Record;
use crate::refusal::Refusal;
use crate::route::Target;
use policies::{Assignment, Drawn, Field, Instead, Label, ModelPolicy, PickReason, Snapshot, Version};
use rand::Rng;
use std::time::Duration;

/// Why a version answers that the path names.
pub(crate) const PINNED: &str = "pinned";

/// Whom a rollout takes a request for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct By {
    /// Who asks, as a hash of the sticky key.
    pub(super) caller: Option<u64>,
    /// On which side of the rollout chance has put it.
    pub(super) assigned: Option<Assignment>,
}

impl By {
    /// Of a caller who gives it so long, of what the policy gives.
    pub(super) fn within(self, given: Duration, of_policy: Duration) -> Self {
        Self { assigned: self.assigned.map(|assigned| assigned.within(given, of_policy)), ..self }
    }
}

/// The version that was chosen, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Chosen {
    pub(crate) number: u64,
    pub(crate) label: Option<Label>,
    pub(crate) reason: &'static str,
    /// What of the policy has decided; nothing where the path has, or the policy leaves it open.
    pub(crate) picked: Option<PickReason>,
    pub(crate) by: By,
    /// What chance or the sticky key has decided, and where that key lies.
    pub(crate) drawn: Option<(Drawn, Option<u64>)>,
    /// In place of which version it answers, which a rule names or was drawn, and why.
    pub(crate) instead: Option<(Version, Instead)>,
}

impl InferPath {
    /// The version that answers.
    pub(super) fn choose(
        &self,
        snapshot: &Snapshot,
        models: &Models,
        target: Target<'_>,
        caller: &Caller<'_>,
        record: &mut Record,
    ) -> Result<Chosen, Refusal> {
        match self.pick(snapshot, models, target, caller) {
            Some(chosen) if is_ready(snapshot, models, target.model, chosen.number) => {
                record.choose(target.model, &chosen);
                Ok(chosen)
            }
            other => {
                if let Some((drawn, key)) = other.as_ref().and_then(|chosen| chosen.drawn) {
                    self.ledger.count(target.model, drawn, key, None, Some(Instead::NotReady));
                }
                Err(unavailable(models, target, other.map(|chosen| chosen.number)))
            }
        }
    }

    /// The version that is pinned by the path, else picked by the policy, else the highest that is ready. Whether the first
    /// two are, is not asked.
    pub(super) fn pick(
        &self,
        snapshot: &Snapshot,
        models: &Models,
        target: Target<'_>,
        caller: &Caller<'_>,
    ) -> Option<Chosen> {
        let is_ready = |version: Version| is_ready(snapshot, models, target.model, version.0);
        let draw = || rand::rng().random();
        let picked = || self.ledger.pick(snapshot, target.model, caller, draw(), is_ready);
        let unassigned = |number, reason| Chosen { number, reason, ..Chosen::default() };
        match target.pinned {
            Some(number) => Some(unassigned(number, PINNED)),
            None => match picked() {
                Some(pick) => Some(Chosen {
                    number: pick.version.0,
                    label: pick.label,
                    reason: pick.reason.as_str(),
                    picked: Some(pick.reason),
                    by: By { caller: pick.key, assigned: pick.assigned },
                    drawn: pick.drawn.map(|drawn| (drawn, pick.key)),
                    instead: pick.instead,
                }),
                None => models.highest_ready(target.model).map(|number| unassigned(number, "highest")),
            },
        }
    }
}

/// What has to be read of the body before a version can be chosen. One in the path is chosen already.
pub(super) fn asks_of_body<'a>(snapshot: &'a Snapshot, target: Target<'_>) -> Option<&'a Field> {
    match target.pinned {
        Some(_) => None,
        None => snapshot.model(target.model)?.asks_of_body(),
    }
}

/// Before a body is read for it, somebody has to be there who might answer.
pub(super) fn must_be_there(snapshot: &Snapshot, models: &Models, target: Target<'_>) -> Result<(), Refusal> {
    let has_remotes = snapshot.model(target.model).is_some_and(ModelPolicy::has_remotes);
    let is_there = has_remotes || models.connected && models.highest_ready(target.model).is_some();
    if is_there { Ok(()) } else { Err(unavailable(models, target, None)) }
}

/// Whether another server is well, its breaker finds out.
pub(super) fn is_ready(snapshot: &Snapshot, models: &Models, model: &str, version: u64) -> bool {
    models.is_ready(model, version) || snapshot.remote(model, Version(version)).is_some()
}

/// Why nothing answers: unknown (404) or not now (503).
pub(super) fn unavailable(models: &Models, target: Target<'_>, version: Option<u64>) -> Refusal {
    let model = target.model;
    if !models.connected {
        return Refusal::EngineDown("it is starting or restarting".into());
    }
    if let Err(unknown) = models.find(target) {
        return unknown;
    }
    let Some(version) = version else {
        return Refusal::NotReady(format!("no version of model `{model}` is ready"));
    };
    match models.entry(model, version) {
        None => Refusal::NotReady(format!(
            "the policy names version {version} of model `{model}`, which is not there"
        )),
        Some(entry) => {
            let reason = if entry.reason.is_empty() { "it is being loaded" } else { &entry.reason };
            Refusal::NotReady(format!("version {version} of model `{model}` is not ready: {reason}"))
        }
    }
}
