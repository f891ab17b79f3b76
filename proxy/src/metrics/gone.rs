//! Forgets what was counted of versions and models that are gone: those that come and go under ever new names would fill the
//! memory. Decides when: once something was neither there nor asked for long enough. Whoever keeps the process in order calls it every
//! now and then, whether or not anybody looks.

use super::{
    Metrics, OUTCOMES, OutcomeLabels, RefusalCounters, RefusalLabels, RetryLabels, VerdictLabels,
    VersionLabels,
};
use crate::record::Retry;
use crate::refusal::Refusal;
use crate::shadow;
use policies::Verdict;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// Series stay for so long without what they are of. So far back does Prometheus look for the last value of one; and an engine that
/// is started again has its versions back by then.
const GONE_MAX: Duration = Duration::from_secs(5 * 60);

/// Versions and models that may have series.
#[derive(Debug, Default)]
pub(super) struct Present {
    versions: Kind<(String, u64)>,
    models: Kind<String>,
}

#[derive(Debug)]
struct Kind<K>(BTreeMap<K, Seen>);

/// When something was last there, or asked.
#[derive(Debug)]
struct Seen {
    at: Instant,
    /// Requests that were counted by then.
    counted: u64,
}

impl<K: Ord> Default for Kind<K> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord> Kind<K> {
    fn is_there(&mut self, what: K, now: Instant) {
        self.0.entry(what).or_insert(Seen { at: now, counted: 0 }).at = now;
    }

    /// So many requests of it were counted until now. Fewer than before are those of a version that was forgotten.
    fn was_asked(&mut self, what: K, counted: u64, now: Instant) {
        let seen = self.0.entry(what).or_insert(Seen { at: now, counted });
        if counted > seen.counted {
            seen.at = now;
        }
        seen.counted = counted;
    }

    fn take_gone(&mut self, now: Instant) -> impl Iterator<Item = K> {
        let gone = self.0.extract_if(.., move |_, seen| now.duration_since(seen.at) > GONE_MAX);
        gone.map(|(what, _)| what)
    }
}

impl Metrics {
    /// Forgets versions and models that are not among these, and that nobody has asked either, for long enough. A path may name another
    /// server's version to which the policy sends nobody; and a policy a model of which there is no version.
    pub(crate) fn forget_gone(&self, there: &BTreeMap<String, BTreeSet<u64>>, now: Instant) {
        let mut present = self.present.lock().expect("no panic under this lock");
        let Present { versions, models } = &mut *present;
        for (model, numbers) in there {
            models.is_there(model.clone(), now);
            numbers.iter().for_each(|number| versions.is_there((model.clone(), *number), now));
        }
        let mut asked = self.refused_by_model();
        for (version, counted) in self.asked_by_version() {
            *asked.entry(version.0.clone()).or_default() += counted;
            versions.was_asked(version, counted, now);
        }
        asked.into_iter().for_each(|(model, counted)| models.was_asked(model, counted, now));
        versions.take_gone(now).for_each(|(model, version)| self.forget_version(&model, version));
        models.take_gone(now).for_each(|model| self.forget_model(&model));
    }

    /// How many requests of each version are counted.
    fn asked_by_version(&self) -> Vec<((String, u64), u64)> {
        let known = self.versions.read().expect("never poisoned: no panic while held");
        let all = known.iter().flat_map(|(model, versions)| {
            versions.iter().map(move |(number, version)| {
                let outcomes = [&version.served, &version.failed, &version.refused, &version.abandoned];
                ((model.clone(), *number), outcomes.map(|outcome| outcome.get()).iter().sum())
            })
        });
        all.collect()
    }

    /// How many refusals of each model are.
    fn refused_by_model(&self) -> BTreeMap<String, u64> {
        let known = self.refused_models.read().expect("never poisoned: no panic while held");
        let of_models = known.iter().filter(|(model, _)| !model.is_empty());
        let count = |(model, counters): (&String, &RefusalCounters)| {
            (model.clone(), counters.iter().map(|counter| counter.get()).sum())
        };
        of_models.map(count).collect()
    }

    /// A version has gone, and its series go with it. Should it come back, they begin anew.
    pub(super) fn forget_version(&self, model: &str, version: u64) {
        let _changing = self.changing();
        let mut known = self.versions.write().expect("never poisoned: no panic while held");
        if let Some(versions) = known.get_mut(model) {
            versions.remove(&version);
            if versions.is_empty() {
                known.remove(model);
            }
        }
        drop(known);
        let labels = VersionLabels { model: model.to_owned(), version };
        self.latency.remove(&labels);
        for family in [&self.queue, &self.run, &self.batch_rows, &self.batch_padding, &self.over_expected] {
            family.remove(&labels);
        }
        let of = |outcome| OutcomeLabels { model: model.to_owned(), version, outcome };
        for outcome in OUTCOMES {
            self.outcomes.remove(&of(outcome));
        }
        for outcome in shadow::Outcome::ALL {
            self.shadows.remove(&of(outcome.as_str()));
        }
        for reason in Retry::REASONS {
            for outcome in Retry::OUTCOMES {
                self.retries.remove(&RetryLabels { model: model.to_owned(), version, reason, outcome });
            }
        }
    }

    /// A model has gone, and its series go with it.
    fn forget_model(&self, model: &str) {
        let _changing = self.changing();
        self.refused_models.write().expect("never poisoned: no panic while held").remove(model);
        let model = || model.to_owned();
        for reason in Refusal::REASONS {
            self.refusals.remove(&RefusalLabels { reason, model: model() });
        }
        for verdict in Verdict::ALL {
            self.canary_verdicts.remove(&VerdictLabels { model: model(), verdict: verdict.as_str() });
        }
    }
}
