//! Judges how much memory an engine holds. Decides when it is to be replaced; never replaces it.

use wire::{Health, Index, ModelState};

/// Judges how much memory an engine holds. One that holds more than it may is replaced before the kernel kills it, unless
/// that is what its models need: another one would need as much. What its allocator only keeps for the next run is no growth either.
#[derive(Debug, Default)]
pub(super) struct Growth {
    is_loading: bool,
    /// Bytes that were resident once its models were loaded, or were held without what is only kept when that was first told.
    at_first: Option<u64>,
    /// Whether that was told since.
    was_told: bool,
    /// Bytes that have come since, when the models last changed: those are not theirs.
    grown: u64,
    /// Bytes that were held when that was last told, or fewer that have been resident since.
    last: u64,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Outgrown {
    /// Whether there is memory for another one beside it.
    pub(super) beside: bool,
    pub(super) says: String,
}

impl Growth {
    /// Less growth than a quarter is none,
    const GROWN: f64 = 1.25;
    /// unless nearly all is held that there is: then a little more is the end.
    const NEARLY_ALL: f64 = 0.95;
    const GROWN_A_LITTLE: f64 = 1.05;
    /// Of what there is, as much may be held by two engines for a while.
    const FOR_TWO: f64 = 0.95;
    /// And as much before that is judged to be near.
    const IN_TIME: f64 = 0.85;

    pub(super) fn models_changed(&mut self, index: &Index) {
        self.is_loading = is_loading(index);
        if let Some(at_first) = self.at_first.take() {
            self.grown = self.last.saturating_sub(at_first);
        }
    }

    pub(super) fn observe(&mut self, health: Health) -> Option<Outgrown> {
        let Health { resident_bytes: resident, memory_bytes: most, available_bytes: available, .. } = health;
        if self.is_loading {
            return None;
        }
        let Some(at_first) = self.at_first else {
            // What it held before its models changed says nothing.
            self.last = resident;
            (self.at_first, self.was_told) = (Some(resident.saturating_sub(self.grown)), false);
            return None;
        };
        // It may have been some time ago.
        self.last = health.held_bytes.unwrap_or(self.last).min(resident);
        let now = health.held_bytes?.min(resident);
        // Where models have left, what they lay in was not yet given back at first.
        let at_first = if self.was_told { at_first } else { at_first.min(now) };
        (self.at_first, self.was_told) = (Some(at_first), true);
        // As long as there is memory for another one.
        let in_time = Self::IN_TIME * available as f64 - at_first as f64;
        let is_too_much = now > most || now as f64 > in_time.max(Self::GROWN * at_first as f64);
        let is_nearly_all = now as f64 > Self::NEARLY_ALL * available as f64;
        let grown = if is_nearly_all { Self::GROWN_A_LITTLE } else { Self::GROWN };
        if !is_too_much || (now as f64) < grown * at_first as f64 {
            return None;
        }
        let says = format!(
            "the engine holds {} MiB, {} when it had loaded its models; {} are allowed",
            now >> 20,
            at_first >> 20,
            most >> 20
        );
        let both = now.saturating_add(at_first) as f64;
        Some(Outgrown { beside: both <= Self::FOR_TWO * available as f64, says })
    }
}

pub(super) fn is_loading(index: &Index) -> bool {
    index.models.iter().any(|entry| entry.state() == ModelState::Loading)
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::ModelEntry;

    fn health(held: u64, memory: u64, available: u64) -> Health {
        Health {
            resident_bytes: held << 20,
            held_bytes: Some(held << 20),
            memory_bytes: memory << 20,
            available_bytes: available << 20,
            ..Health::default()
        }
    }

    #[test]
    fn what_is_only_kept_for_the_next_run_is_no_growth() {
        let mut growth = Growth::default();
        let says = |resident: u64, held: Option<u64>| Health {
            resident_bytes: resident << 20,
            held_bytes: held.map(|mib| mib << 20),
            ..health(0, 1000, 2000)
        };
        assert_eq!(growth.observe(says(400, Some(1900))), None, "that was while models were loaded");
        assert_eq!(growth.observe(says(1500, None)), None, "nobody knows");
        assert_eq!(growth.observe(says(1500, Some(900))), None);
        assert!(growth.observe(says(1500, Some(1001))).is_some());
        assert_eq!(growth.observe(says(500, Some(1001))), None, "it is held no more");
        // What was held for requests is held no more, and a load is none of what has grown.
        assert_eq!(growth.observe(says(420, None)), None);
        growth.models_changed(&Index::default());
        assert_eq!(growth.observe(says(830, None)), None);
        assert_eq!(growth.observe(says(1001, Some(999))), None);
        assert_eq!(growth.observe(says(1100, Some(1001))), None, "by less than a quarter");
        // A model leaves, and what it lay in goes later.
        growth.models_changed(&Index::default());
        assert_eq!(growth.observe(says(1500, None)), None);
        assert_eq!(growth.observe(says(1000, Some(500))), None);
        assert!(growth.observe(says(1500, Some(1001))).is_some(), "twice what its models need");
        assert_eq!(growth.observe(says(420, Some(400))), None);
        assert_eq!(
            growth.observe(says(620, Some(620))),
            None,
            "what requests need, it may have needed at first"
        );
    }

    #[test]
    fn an_engine_is_replaced_when_it_has_grown_beyond_its_memory() {
        let mut growth = Growth::default();
        assert_eq!(growth.observe(health(400, 1000, 2000)), None);
        assert_eq!(growth.observe(health(1000, 1000, 2000)), None);
        let outgrown = growth.observe(health(1001, 1000, 2000)).unwrap();
        assert!(outgrown.beside);
        assert_eq!(
            outgrown.says,
            "the engine holds 1001 MiB, 400 when it had loaded its models; 1000 are allowed"
        );
        assert!(!growth.observe(health(1001, 1000, 1400)).unwrap().beside, "no memory for two");
        let early = growth.observe(health(800, 1000, 1400)).unwrap();
        assert!(early.beside, "replaced while there is memory for two");
    }

    #[test]
    fn an_engine_whose_models_fill_the_machine_is_replaced_before_the_kernel_kills_it() {
        let mut growth = Growth::default();
        assert_eq!(growth.observe(health(820, 900, 1000)), None);
        assert_eq!(growth.observe(health(940, 900, 1000)), None, "it may be no leak");
        assert!(growth.observe(health(960, 900, 1000)).is_some());
        let mut full = Growth::default();
        assert_eq!(full.observe(health(970, 900, 1000)), None, "another one would hold as much");
        assert_eq!(full.observe(health(990, 900, 1000)), None);
    }

    #[test]
    fn an_engine_whose_models_need_more_than_it_may_hold_is_left_alone() {
        let mut growth = Growth::default();
        assert_eq!(growth.observe(health(1100, 1000, 2000)), None);
        assert_eq!(growth.observe(health(1200, 1000, 2000)), None);
        assert!(growth.observe(health(1400, 1000, 2000)).is_some());
        // Somebody loads another model.
        let loading = ModelEntry { state: ModelState::Loading as i32, ..ModelEntry::default() };
        growth.models_changed(&Index { models: vec![loading], revision: 1 });
        assert_eq!(growth.observe(health(1400, 1000, 2000)), None);
        growth.models_changed(&Index::default());
        assert_eq!(growth.observe(health(2400, 1000, 9000)), None, "it has grown by what was loaded");
        assert!(growth.observe(health(2700, 1000, 9000)).is_some(), "and by what had leaked before");
    }
}
