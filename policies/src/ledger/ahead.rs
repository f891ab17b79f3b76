//! Where there are many models, what a decision waits for is memory: some twenty lines of it, each behind a pointer in the one before.
//! So what is known to be needed is asked for before it is read, and is waited for together; and little else is, because each line
//! takes its time, and the place of another one.
//!
//! ```text
//!   name ──┬─ policy ──── split or canary ──── version, key ─┬─ its breaker
//!          ├─ breakers                                       ├─ the user's mark
//!          ├─ tally                                          └─ the count
//!          └─ rollout ─── its users
//!   caller ── bucket                                     a wait for each column, and not for each word
//! ```

use std::sync::Arc;

use super::Ledger;
use super::guards::of;
use crate::attribute::Attributes;
use crate::limiter::LimitPolicy;
use crate::pick::Pick;
use crate::prefetch::prefetch;
use crate::snapshot::{ModelPolicy, Snapshot};

/// What fewer models need is near anyway.
const MANY: usize = 64;

/// Of more limits that tell callers apart, the first ones.
const LIMITS: usize = 2;

impl Ledger {
    /// What comes of `pick` by the policy of this model, if it has one. Meanwhile the processor fetches what the request will need.
    pub(super) fn looking_ahead(
        &self,
        snapshot: &Snapshot,
        model: &str,
        caller: &impl Attributes,
        pick: impl FnOnce(&ModelPolicy) -> Option<Pick>,
    ) -> Option<Pick> {
        if snapshot.models.len() < MANY {
            return pick(snapshot.model(model)?);
        }
        snapshot.prefetch(model);
        let tables = self.tables.load();
        let tells_apart =
            |(_, limit): &(usize, &Arc<LimitPolicy>)| limit.key.is_some() && limit.covers(model);
        for (place, limit) in snapshot.limits().iter().enumerate().filter(tells_apart).take(LIMITS) {
            tables.limiters.get(place, limit).into_iter().for_each(|limiter| limiter.prefetch(caller));
        }
        let (guards, tally) = (tables.breakers.guards.get(model), tables.tallies.get(model));
        let rollout = tables.rollouts.get(model);
        guards.into_iter().for_each(|guards| prefetch(&**guards));
        tally.into_iter().for_each(|tally| tally.prefetch());
        rollout.into_iter().for_each(|rollout| rollout.prefetch());

        let policy = snapshot.model(model)?;
        policy.prefetch_arms();
        rollout.into_iter().for_each(|rollout| rollout.prefetch_users());

        let pick = pick(policy)?;
        let guard = guards.and_then(|guards| of(guards, pick.version));
        guard.into_iter().for_each(|guard| guard.prefetch());
        if let (Some(tally), Some(drawn)) = (tally, pick.drawn) {
            tally.prefetch_counts(drawn, pick.key);
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
