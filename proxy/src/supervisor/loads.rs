//! What an index says about the versions of the one before. Decides which of them answer by other files; whom that concerns
//! others know.

use std::collections::{BTreeMap, BTreeSet};
use wire::{Index, ModelState};

/// Which load of each version answers, in the life of one engine. Another engine counts its loads anew, and most likely has
/// the same files: a breaker outlives the engine that its version has failed in, and finds out by its own probes.
#[derive(Debug, Default)]
pub(super) struct Loads(BTreeMap<(String, u64), Load>);

/// Of one version; 0 is none.
#[derive(Clone, Copy, Debug)]
struct Load {
    now: u64,
    /// The last that has answered.
    last: u64,
}

/// What an index says about the versions of the one before.
#[derive(Debug, Default)]
pub(super) struct News {
    /// They are there and as they were: neither loaded anew nor unloaded.
    pub(super) same: BTreeSet<(String, u64)>,
    /// They answer by another load than the last that has answered.
    pub(super) replaced: Vec<(String, u64)>,
}

impl Loads {
    pub(super) fn follow(&mut self, index: &Index) -> News {
        let mut news = News::default();
        for entry in &index.models {
            let version = (entry.name.clone(), entry.version);
            let is_settled = match entry.state() {
                ModelState::Loading => false, // nothing has become of it yet
                ModelState::Ready | ModelState::Unavailable => true,
            };
            let was = self.0.get(&version).copied().filter(|_| is_settled);
            let last = was.map_or(0, |was| was.last);
            // Where its files are told, those say it.
            if entry.load != 0 && last != 0 && entry.load != last && entry.files == 0 {
                news.replaced.push(version.clone());
            }
            if is_settled {
                let last = if entry.load != 0 { entry.load } else { last };
                self.0.insert(version.clone(), Load { now: entry.load, last });
            }
            if was.is_none_or(|was| was.now == entry.load) {
                news.same.insert(version);
            }
        }
        news
    }
}
