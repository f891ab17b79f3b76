//! How far a rollout is, for the process that comes after this one, and what that one goes on with. What was under way is lost with the
//! process that it was under way in.

use std::time::{Duration, Instant};

use super::{Canary, Phase, Progress, Verdict, is_another};
use crate::gate::Event;

/// Verdicts that are kept over a restart.
pub(super) const KEPT: usize = 32;

impl Canary {
    pub(crate) fn progress(&self, now: Instant) -> Progress {
        Progress {
            baseline: self.policy.baseline.version.0,
            candidate: self.candidate().0,
            millionths: self.policy.steps[self.step],
            phase: self.phase.clone(),
            // What is decided lasts, however long.
            dwelt: match self.phase {
                Phase::Running => now.saturating_duration_since(self.entered),
                Phase::Paused | Phase::RolledBack | Phase::Promoted => Duration::ZERO,
            },
            files: self.files,
            hanging: self.hanging.count(now),
            servers: Some(self.policy.servers.names()),
            comparison: self.policy.comparison.clone(),
            gates: self
                .gates
                .iter()
                .map(|gate| (gate.event.gate().to_owned(), gate.kept(self.usual.keys())))
                .collect(),
            verdicts: self.history.iter().skip(self.history.len().saturating_sub(KEPT)).cloned().collect(),
        }
    }

    /// Goes on where an earlier process has stopped, if it is the same rollout.
    pub(crate) fn restore(&mut self, progress: &Progress, now: Instant) {
        let versions = (self.policy.baseline.version.0, self.candidate().0);
        if versions != (progress.baseline, progress.candidate) {
            return;
        }
        self.phase = progress.phase.clone();
        self.files = progress.files;
        self.untold = 0;
        self.history = progress.verdicts.iter().rev().take(KEPT).rev().cloned().collect();
        // What hung has gone with the process, and is not shown to be rare by that.
        let same_step = self.go_to(progress.millionths) && progress.hanging == 0;
        let asked = self.policy.servers.names();
        if let Some(before) = progress.servers.as_ref().filter(|before| **before != asked) {
            return self.ask_others(before[1] != asked[1], now);
        }
        if same_step {
            self.entered = now.checked_sub(progress.dwelt).unwrap_or(now);
        }
        let is_other = is_another(progress.comparison.as_ref(), self.policy.comparison.as_ref());
        for gate in &mut self.gates {
            let kept = progress.gates.get(gate.event.gate());
            if let Some(kept) = kept.filter(|_| !(is_other && gate.event == Event::Disagreement)) {
                gate.restore(kept, same_step);
            }
        }
    }

    /// So far it was when its policy went, and the policy comes back.
    pub(crate) fn come_back(&mut self, progress: &Progress, now: Instant) {
        self.restore(progress, now);
        let why = match self.phase {
            Phase::RolledBack => "it was rolled back before and stays so until a person resumes it",
            Phase::Promoted => "it was promoted before and stays so until a person aborts it",
            Phase::Paused => "it was paused before and stays so until a person resumes it",
            Phase::Running => "it goes on where it was when its policy went: the step begins anew",
        };
        self.note(Verdict::Hold, why.into(), now);
    }
}
