//! Remembers which requests got no answer, and why: counts by reason and limit, and the latest of each kind. Decides
//! what is one kind: the same reason, version and limit. Never asked about a request that is answered.
//!
//! Bounded: as many kinds as [`KINDS_MAX`], the one that was not seen for longest makes room. What a client has sent
//! appears in the words of a refusal, and nowhere else.

use crate::refusal::Refusal;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::fmt::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

/// Kinds of refusals that are remembered.
const KINDS_MAX: usize = 64;
/// Limits whose refusals are counted; the policy may name others every time that it changes.
const LIMITS_MAX: usize = 1000;
/// Of the words of a refusal.
const BYTES_MAX: usize = 240;
/// The words of a kind are renewed so often.
const RENEW_MS: u64 = 1000;

/// What was refused since the process began.
#[derive(Debug, Default)]
pub struct Refused(Mutex<Tally>);

#[derive(Debug, Default)]
struct Tally {
    by_reason: BTreeMap<&'static str, u64>,
    by_limit: HashMap<Arc<str>, u64>,
    kinds: Vec<Kind>,
}

#[derive(Debug)]
struct Kind {
    limit: Option<Arc<str>>,
    /// When its words were last renewed.
    said_unix_ms: u64,
    shown: Recent,
}

/// The refusals of one kind, as a reader gets them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recent {
    /// In the word of the metric.
    pub reason: String,
    /// Whose request it was, if one was found.
    pub model: Option<String>,
    /// And which version was to answer, if one was chosen.
    pub version: Option<u64>,
    /// How many there were since `first_unix_ms`.
    pub count: u64,
    /// When the first of them was.
    pub first_unix_ms: u64,
    /// And the last.
    pub last_unix_ms: u64,
    /// What a client was told, not always the last one.
    pub says: String,
}

impl Refused {
    /// Counts one.
    pub fn note(&self, refusal: &Refusal, (model, version): (Option<&str>, Option<u64>), now: SystemTime) {
        let (reason, limit, now) = (refusal.reason(), refusal.limit(), unix_ms(now));
        let mut tally = self.lock();
        *tally.by_reason.entry(reason).or_default() += 1;
        if let Some(limit) = limit {
            tally.count_limit(limit);
        }
        let is_alike = |kind: &&mut Kind| {
            kind.shown.reason == reason
                && kind.limit.as_ref() == limit
                && kind.shown.version == version
                && kind.shown.model.as_deref() == model
        };
        if let Some(kind) = tally.kinds.iter_mut().find(is_alike) {
            kind.shown.count += 1;
            kind.shown.last_unix_ms = now;
            if now.saturating_sub(kind.said_unix_ms) >= RENEW_MS {
                (kind.said_unix_ms, kind.shown.says) = (now, words(refusal));
            }
            return;
        }
        if tally.kinds.len() >= KINDS_MAX {
            let last = |at: &usize| tally.kinds[*at].shown.last_unix_ms;
            let oldest = (0..tally.kinds.len()).min_by_key(last).expect("it is full");
            tally.kinds.swap_remove(oldest);
        }
        let shown = Recent {
            reason: reason.to_owned(),
            model: model.map(str::to_owned),
            version,
            count: 1,
            first_unix_ms: now,
            last_unix_ms: now,
            says: words(refusal),
        };
        tally.kinds.push(Kind { limit: limit.cloned(), said_unix_ms: now, shown });
    }

    /// How many there were of each reason.
    pub fn by_reason(&self) -> BTreeMap<String, u64> {
        self.lock().by_reason.iter().map(|(reason, count)| ((*reason).to_owned(), *count)).collect()
    }

    /// How many a limit has refused.
    pub fn by_limit(&self, name: &str) -> u64 {
        self.lock().by_limit.get(name).copied().unwrap_or(0)
    }

    /// The latest of each kind, the newest first.
    pub fn recent(&self) -> Vec<Recent> {
        let mut recent: Vec<_> = self.lock().kinds.iter().map(|kind| kind.shown.clone()).collect();
        recent.sort_by_key(|kind| std::cmp::Reverse(kind.last_unix_ms));
        recent
    }

    fn lock(&self) -> MutexGuard<'_, Tally> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tally {
    fn count_limit(&mut self, name: &Arc<str>) {
        if let Some(count) = self.by_limit.get_mut(name) {
            *count += 1;
        } else if self.by_limit.len() < LIMITS_MAX {
            self.by_limit.insert(Arc::clone(name), 1);
        }
    }
}

/// Milliseconds since 1970.
pub(crate) fn unix_ms(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

/// What the client is told, cut off where it gets long.
fn words(refusal: &Refusal) -> String {
    let mut text = Bounded(String::new());
    if write!(text, "{refusal}").is_err() {
        text.0.push('…');
    }
    text.0
}

/// Takes no more than [`BYTES_MAX`].
struct Bounded(String);

impl Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let left = BYTES_MAX.saturating_sub(self.0.len());
        let fits = text.floor_char_boundary(left);
        self.0.push_str(&text[..fits]);
        if fits < text.len() { Err(fmt::Error) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn refusals_of_a_kind_are_counted_together_and_the_newest_comes_first() {
        let refused = Refused::default();
        let limited =
            |name: &str| Refusal::Limited { limit: name.into(), retry_after: Duration::from_secs(1) };
        for second in 1..=3 {
            refused.note(&limited("a"), (Some("m"), Some(1)), at(second));
        }
        refused.note(&limited("b"), (Some("m"), Some(1)), at(4));
        refused.note(&Refusal::NotFound("no model `x`".into()), (None, None), at(5));
        refused.note(&limited("a"), (Some("m"), Some(2)), at(6));
        let recent = refused.recent();
        assert_eq!(recent.iter().map(|kind| kind.count).collect::<Vec<_>>(), [1, 1, 1, 3]);
        assert_eq!((recent[0].version, recent[1].says.as_str()), (Some(2), "no model `x`"));
        assert_eq!((recent[3].first_unix_ms, recent[3].last_unix_ms), (1000, 3000));
        assert_eq!((refused.by_limit("a"), refused.by_limit("b"), refused.by_limit("c")), (4, 1, 0));
        assert_eq!(refused.by_reason(), [("not_found".to_owned(), 1), ("rate_limited".to_owned(), 5)].into());
    }

    #[test]
    fn a_flood_of_kinds_pushes_out_the_oldest_and_long_words_are_cut() {
        let refused = Refused::default();
        for version in 0..200 {
            refused.note(&Refusal::ModelFailed("é".repeat(1000)), (Some("m"), Some(version)), at(version));
        }
        let recent = refused.recent();
        assert_eq!((recent.len(), recent[0].version, recent[63].version), (64, Some(199), Some(136)));
        assert!(recent[0].says.len() <= BYTES_MAX + '…'.len_utf8() && recent[0].says.ends_with('…'));
        for name in 0..2000 {
            let limit = name.to_string().into();
            refused.note(&Refusal::Limited { limit, retry_after: Duration::ZERO }, (None, None), at(1));
        }
        assert_eq!((refused.by_limit("5"), refused.by_limit("1999")), (1, 0));
    }
}
