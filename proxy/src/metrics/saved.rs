//! Whether all that is to outlive the process is on the disk: one number for what several write.

use prometheus_client::metrics::gauge::Gauge;
use std::sync::atomic::{AtomicU8, Ordering};

/// 1 as long as nothing is not saved.
#[derive(Debug)]
pub struct Saved {
    shown: Gauge,
    /// The parts that are not, a bit each.
    unsaved: AtomicU8,
}

/// What somebody writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// How far rollouts are, and the rings of splits.
    Progress = 1,
    /// The policy in force, and those before it.
    Policies = 2,
}

impl Saved {
    pub(super) fn new(shown: Gauge) -> Self {
        shown.set(1);
        Self { shown, unsaved: AtomicU8::new(0) }
    }

    /// Whether the disk has all of this.
    pub(crate) fn set(&self, part: Part, is_saved: bool) {
        let bit = part as u8;
        let unsaved = if is_saved {
            self.unsaved.fetch_and(!bit, Ordering::AcqRel) & !bit
        } else {
            self.unsaved.fetch_or(bit, Ordering::AcqRel) | bit
        };
        self.shown.set((unsaved == 0).into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_part_that_is_saved_does_not_hide_another_that_is_not() {
        let shown = Gauge::default();
        let saved = Saved::new(shown.clone());
        saved.set(Part::Policies, false);
        saved.set(Part::Progress, true);
        assert_eq!(shown.get(), 0);
        saved.set(Part::Policies, true);
        assert_eq!(shown.get(), 1);
    }
}
