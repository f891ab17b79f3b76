//! Where there are many models, what a decision waits for is memory: some twenty lines of it, each behind a pointer in the one before.
//! So what is known to be needed is asked for before it is read, and is waited for together; and little else is, because each line
//! takes its time, and the place of another one.
//!
//! ```text
//!   name ─┬─ policy ──── split or canary ──── version, key ─┬─ its breaker
//!         ├─ breakers                                       └─ the user's mark
//!         ├─ tally ───── counts
//!         └─ rollout ─── its users                      a wait for each column, and not for each word
//! ```

use super::Ledger;
use super::guards::of;
use crate::pick::Pick;
use crate::prefetch::prefetch;
use crate::snapshot::{ModelPolicy, Snapshot};

/// What fewer models need is near anyway.
const MANY: usize = 64;

impl Ledger {
    /// What comes of `pick` by the policy of this model, if it has one. Meanwhile the processor fetches what the request will need.
    pub(super) fn looking_ahead(
        &self,
        snapshot: &Snapshot,
        model: &str,
        pick: impl FnOnce(&ModelPolicy) -> Option<Pick>,
    ) -> Option<Pick> {
        let policy = snapshot.model(model)?;
        if snapshot.models.len() < MANY {
            return pick(policy);
        }
        policy.prefetch();
        let (breakers, tallies, rollouts) = (self.breakers.load(), self.tallies.load(), self.rollouts.load());
        let (guards, tally, rollout) = (breakers.guards.get(model), tallies.get(model), rollouts.get(model));
        guards.into_iter().for_each(|guards| prefetch(&**guards));
        tally.into_iter().for_each(|tally| tally.prefetch());
        rollout.into_iter().for_each(|rollout| rollout.prefetch());
        policy.prefetch_arms();
        tally.into_iter().for_each(|tally| tally.prefetch_counts());
        rollout.into_iter().for_each(|rollout| rollout.prefetch_users());

        let pick = pick(policy)?;
        let guard = guards.and_then(|guards| of(guards, pick.version));
        guard.into_iter().for_each(|guard| guard.prefetch());
        if let (Some(tally), Some(key)) = (tally, pick.key) {
            tally.prefetch_user(key);
        }
        Some(pick)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::{Outcome, parse};

    /// Splits, rollouts, and models of which the policy says little.
    const KINDS: [&str; 3] = [
        "split: {weights: {1: 80, 2: 15, 3: 5}, sticky: {header: user}}",
        "canary: {baseline: 1, candidate: 2, steps: [50], dwell: 1h, sticky: {header: user}}",
        "deadline: 2s",
    ];

    #[test]
    fn who_answers_is_the_same_however_many_models_there_are() {
        let now = Instant::now();
        let picks = |models: usize| {
            let model = |at: usize| format!("  m{at}: {{{}}}\n", KINDS[at % KINDS.len()]);
            let policy = format!("models:\n{}", (0..models).map(model).collect::<String>());
            let (snapshot, ledger) = (parse(&policy, "a").unwrap(), Ledger::new());
            ledger.roll_out(&snapshot, now);
            let pick = |at: usize| {
                let (model, user) = (format!("m{}", at % KINDS.len()), at.to_string());
                let pick = ledger.pick(&snapshot, &model, &[("user", &*user)], 0, |_| true)?;
                ledger.enter(&snapshot, &model, pick.version, now).unwrap().settle(Outcome::Served, now);
                ledger.count(&model, pick.drawn?, pick.key, Some(pick.version), None);
                Some(pick)
            };
            assert_eq!(ledger.pick(&snapshot, "unknown", &[("user", "ana")], 0, |_| true), None);
            (0..1_000).map(pick).collect::<Vec<_>>()
        };
        assert_eq!(picks(KINDS.len()), picks(MANY));
    }
}
