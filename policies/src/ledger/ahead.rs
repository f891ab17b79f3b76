//! Where there are many models, what a decision waits for is memory: some twenty lines of it, each behind a pointer in the one before.
//! So all that can be known to be needed is asked for first, and is waited for together.
//!
//! ```text
//!   name ─┬─ policy ────┬─ ring, arms
//!         ├─ breakers ──┼─ each of the versions'
//!         ├─ tally ─────┼─ counts              a wait for each column, and not for each word
//!         └─ rollout    └─ who gets it first
//! ```

use super::Ledger;
use crate::prefetch::prefetch;
use crate::snapshot::Snapshot;

/// What fewer models need is near anyway.
const MANY: usize = 64;

/// Of a model with more versions, the breakers of the others are read when they are needed.
const VERSIONS: usize = 3;

impl Ledger {
    /// Has the processor fetch what a decision about this model will read. Call it first; it decides nothing.
    pub fn look_ahead(&self, snapshot: &Snapshot, model: &str) {
        if snapshot.models.len() < MANY {
            return;
        }
        let (breakers, tallies, rollouts) = (self.breakers.load(), self.tallies.load(), self.rollouts.load());
        let (policy, guards) = (snapshot.model(model), breakers.guards.get(model));
        let (tally, rollout) = (tallies.get(model), rollouts.get(model));
        policy.into_iter().for_each(prefetch);
        guards.into_iter().for_each(|guards| prefetch(&**guards));
        tally.into_iter().for_each(|tally| prefetch(&**tally));
        rollout.into_iter().for_each(|rollout| rollout.prefetch());
        policy.into_iter().for_each(|policy| policy.prefetch_arms());
        tally.into_iter().for_each(|tally| tally.prefetch_counts());
        for (_, guard) in guards.into_iter().flat_map(|guards| guards.iter()).take(VERSIONS) {
            prefetch(&**guard);
        }
    }
}
