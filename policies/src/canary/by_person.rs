//! What a person may say about a rollout, and when. What is said is noted among the verdicts, with its reason.

use std::time::Instant;

use super::{Canary, Phase, Verdict, gates};

/// What a person may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Stop where it is.
    Pause,
    /// Go on; after a rollback, begin again.
    Resume,
    /// Give the candidate the next step's share now, and after the last step everything; stay paused where it is.
    Advance {
        /// Only from this step, of which the first is 1: who has looked a while ago, or asks once more because no answer came, means no
        /// other one. Without it, from the step that it is in.
        from: Option<usize>,
    },
    /// Give the candidate everything now.
    Promote,
    /// Give it nothing any more.
    Abort,
}

impl Canary {
    /// What a person says.
    ///
    /// # Errors
    /// Why that cannot be done now.
    pub(crate) fn command(&mut self, command: Command, reason: &str, now: Instant) -> Result<(), String> {
        let because = if reason.is_empty() { String::new() } else { format!(": {reason}") };
        match (command, &self.phase) {
            (Command::Pause, Phase::Running) => {
                self.note(Verdict::Hold, format!("paused by a person{because}"), now);
                self.phase = Phase::Paused;
            }
            (Command::Resume, Phase::Paused) => {
                // How long the baseline's answers take was heard all the while.
                self.note(Verdict::Hold, format!("resumed by a person{because}"), now);
                (self.phase, self.entered) = (Phase::Running, now);
            }
            (Command::Resume, Phase::RolledBack) => {
                // What is still under way was asked of what has failed.
                self.begin_anew();
                (self.phase, self.step, self.entered) = (Phase::Running, 0, now);
                (self.answered, self.failed_since) = (None, 0);
                self.hanging.forget();
                self.gates = gates(&self.policy, &self.taken, now);
                self.drift.iter_mut().for_each(|gate| gate.begin_step(now));
                // Since then only those were heard that were not slow, perhaps of files that are gone.
                self.usual.forget();
                self.note(Verdict::Hold, format!("begun again by a person{because}"), now);
            }
            (Command::Advance { from: Some(step) }, Phase::Running | Phase::Paused)
                if step != self.step + 1 =>
            {
                return Err(format!("the rollout is in step {}, and not in step {step}", self.step + 1));
            }
            (Command::Advance { .. }, Phase::Running | Phase::Paused) => {
                // What speaks against the candidate stays, as after a verdict; what was for a person to say, this one has said.
                self.decide(Verdict::Advance, format!("advanced by a person{because}"), now);
                self.gates.iter_mut().for_each(|gate| gate.forget_asked(now));
            }
            (Command::Promote, Phase::Running | Phase::Paused) => {
                self.note(Verdict::Advance, format!("promoted by a person{because}"), now);
                self.phase = Phase::Promoted;
            }
            (Command::Abort, Phase::Running | Phase::Paused | Phase::Promoted) => {
                self.note(Verdict::RollBack, format!("aborted by a person{because}"), now);
                self.phase = Phase::RolledBack;
            }
            (_, phase) => return Err(format!("the rollout is {phase}")),
        }
        self.history.back_mut().expect("each of them is noted").by_person = true;
        (self.judged, self.passed, self.waits_for) = (None, None, None);
        Ok(())
    }
}
