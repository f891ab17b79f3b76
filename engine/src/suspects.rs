//! Who has made batches fail. A caller whose requests fail alone, after a batch failed with them in it, costs its
//! batch-mates a second run each time; after [`STRIKES`] of that its requests run alone for a while. Sans-IO.

use crate::batcher::Grouping;
use crate::job::Job;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// So many failures, each within [`MEMORY`] of the one before.
const STRIKES: u32 = 2;

/// How long a failure is remembered, and how long its author runs alone.
pub(crate) const MEMORY: Duration = Duration::from_secs(60);

/// Callers that are remembered; beyond it nobody new is.
const CALLERS_MAX: usize = 4096;

/// Callers by version and key.
#[derive(Debug, Default)]
pub(crate) struct Suspects {
    strikes: HashMap<(u32, u64), (u32, Instant)>,
}

impl Suspects {
    /// Notes a failure.
    pub(crate) fn convict(&mut self, job: &Job, now: Instant) {
        let Some(key) = key(job) else { return };
        if self.strikes.len() >= CALLERS_MAX {
            self.strikes.retain(|_, (_, last)| now < *last + MEMORY);
        }
        if self.strikes.len() >= CALLERS_MAX && !self.strikes.contains_key(&key) {
            return;
        }
        let (strikes, last) = self.strikes.entry(key).or_insert((0, now));
        *strikes = if now < *last + MEMORY { *strikes + 1 } else { 1 };
        *last = now;
    }

    /// Whether the job is to run alone.
    pub(crate) fn is_suspect(&self, job: &Job, now: Instant) -> bool {
        if self.strikes.is_empty() {
            return false;
        }
        let Grouping::Together { max_rows } = job.request.version.grouping else { return false };
        let found = key(job).and_then(|key| self.strikes.get(&key));
        // Alone is in one run: what needs several has no mates to speak of.
        job.request.rows <= max_rows
            && found.is_some_and(|(strikes, last)| *strikes >= STRIKES && now < *last + MEMORY)
    }
}

fn key(job: &Job) -> Option<(u32, u64)> {
    (job.terms.caller != 0).then_some((job.request.version.key, job.terms.caller))
}
