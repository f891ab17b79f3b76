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
        let guards = guards.map(|guards| &guards[..guards.len().min(VERSIONS)]);
        guards.into_iter().for_each(prefetch);
        tally.into_iter().for_each(|tally| prefetch(&**tally));
        rollout.into_iter().for_each(|rollout| rollout.prefetch());
        policy.into_iter().for_each(|policy| policy.prefetch_arms());
        tally.into_iter().for_each(|tally| tally.prefetch_counts());
        for (_, guard) in guards.into_iter().flatten() {
            prefetch(&**guard);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::{Outcome, parse};

    /// Splits, rollouts, models of which the policy says little, and one that it does not know.
    #[test]
    fn who_answers_is_the_same_whether_or_not_anybody_has_looked_ahead() {
        let kinds = [
            "split: {weights: {1: 80, 2: 15, 3: 5}, sticky: {header: user}}",
            "canary: {baseline: 1, candidate: 2, steps: [50], dwell: 1h, sticky: {header: user}}",
            "deadline: 2s",
        ];
        let model = |at: usize| format!("  m{at}: {{{}}}\n", kinds[at % kinds.len()]);
        let snapshot = parse(&format!("models:\n{}", (0..MANY).map(model).collect::<String>()), "a").unwrap();
        let now = Instant::now();
        let picks = |looks_ahead: bool| {
            let ledger = Ledger::new();
            ledger.roll_out(&snapshot, now);
            let pick = |at: usize| {
                let (model, user) = (format!("m{}", at % (MANY + 1)), at.to_string());
                if looks_ahead {
                    ledger.look_ahead(&snapshot, &model);
                }
                let pick = ledger.pick(&snapshot, &model, &[("user", &*user)], 0, |_| true)?;
                ledger.enter(&snapshot, &model, pick.version, now).unwrap().settle(Outcome::Served, now);
                ledger.count(&model, pick.drawn?, pick.key, Some(pick.version), None);
                Some(pick)
            };
            (0..1_000).map(pick).collect::<Vec<_>>()
        };
        assert_eq!(picks(true), picks(false));
    }
}
