//! What a tally shows: whether the shares that are seen contradict those that were declared, and what has most likely come
//! between. Looks a few times a second and not when requests come, and never changes who answers.
//!
//! The alarm is raised once in a window, and stands until nothing speaks for it any more, or for the rest of the window. Two
//! things raise it: units that are not divided as declared (see `ratio.rs`); and one user who has made most of the requests,
//! which says nothing against the split, but the shares that people then see are those of that user.

use std::sync::atomic::Ordering;
use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::{Column, Instead, Tally};
use crate::ratio::evidence;
use crate::units::Version;

/// The chance that a split which is as declared is called a mismatch within one window.
const ALPHA: f64 = 1e-4;

/// What has most likely come between the declared shares and those that are seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Cause {
    /// One user has made most of the requests.
    OneKey,
    /// Others have answered in the place of a version.
    Instead(Instead),
    /// A version has answered less of what it got than others have.
    Unanswered,
    /// Users are not spread over the versions by their keys.
    Keys,
    /// Nothing that is counted explains it.
    Unknown,
}

impl Cause {
    fn as_str(self) -> &'static str {
        match self {
            Self::OneKey => "one_key",
            Self::Instead(instead) => instead.as_str(),
            Self::Unanswered => "unanswered",
            Self::Keys => "keys",
            Self::Unknown => "unknown",
        }
    }
}

/// That the shares which are seen are not those that were declared.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Mismatch {
    /// `one_key`, `not_ready`, `fallback`, `rolled_back`, `retry`, `unanswered`, `keys` or `unknown`.
    pub cause: &'static str,
    /// What is seen, and the most likely cause, in words.
    pub why: String,
    /// The evidence when it was found.
    pub evidence: f64,
}

/// What one split, or step of a rollout, shows of itself.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SplitStatus {
    /// What identifies a user; nothing where each request draws anew.
    pub key: Option<String>,
    /// How long this window has lasted.
    pub since: Duration,
    /// Users, or requests that drew, that were answered by the versions below.
    pub units: u64,
    /// Evidence that the shares of those are not as declared; a mismatch from `mismatch_at` on.
    pub evidence: f64,
    /// See there.
    pub mismatch_at: f64,
    /// What was found in this window, if anything, for as long as anything speaks for it.
    pub mismatch: Option<Mismatch>,
    /// In the order of their numbers.
    pub versions: Vec<VersionShare>,
}

/// What one version has of a split.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct VersionShare {
    /// Which.
    pub version: u64,
    /// Percent that the policy declares.
    pub declared_percent: f64,
    /// Percent of the units that it has answered; nothing before there is any.
    pub percent: Option<f64>,
    /// Requests that were given to it.
    pub given: u64,
    /// Of those, requests that it has answered itself.
    pub answered: u64,
    /// Of those, requests that others have answered in its place.
    pub replaced: u64,
}

/// What was last found.
#[derive(Debug)]
pub(super) struct Look {
    /// Units that make it worth looking again.
    next: u64,
    evidence: f64,
    mismatch: Option<Mismatch>,
    /// One was found in this window, whether or not it is over.
    is_told: bool,
}

impl Default for Look {
    fn default() -> Self {
        Self { next: 1, evidence: 1.0, mismatch: None, is_told: false }
    }
}

impl Tally {
    /// Looks whether the shares are as declared, if more than a few units have come since the last look; what has just been
    /// found. Requests that are counted meanwhile may be seen by half, which is one unit among the thousands that it takes.
    pub(crate) fn look(&self) -> Option<Mismatch> {
        if !self.is_divided() {
            return None;
        }
        let mut look = self.lock_look();
        let seen = self.units.columns();
        let units: u64 = seen.iter().sum();
        if units >= look.next {
            look.next = units + units / 32 + 1;
            look.evidence = evidence(&seen, &self.shares());
        }
        let majority = self.majority.lock().unwrap_or_else(PoisonError::into_inner).percent();
        if let Some(found) = &look.mismatch {
            // Whether one user makes most of the requests may change with each of them.
            if look.evidence <= 1.0 && found.cause != Cause::OneKey.as_str() {
                look.mismatch = None;
            }
            return None;
        }
        let cause = if look.evidence >= 1.0 / ALPHA {
            self.cause(&seen)
        } else if majority.is_some() {
            Cause::OneKey
        } else {
            return None;
        };
        let why = self.in_words(cause, &seen, majority);
        look.mismatch = Some(Mismatch { cause: cause.as_str(), why, evidence: finite(look.evidence) });
        look.mismatch.clone().filter(|_| !std::mem::replace(&mut look.is_told, true))
    }

    /// What explains it.
    fn cause(&self, seen: &[u64]) -> Cause {
        if evidence(&self.units.answered_by_row(), &self.shares()) < 1.0 / ALPHA {
            // As it was given, it is as declared.
            let counts = self.instead.iter().map(|count| count.load(Ordering::Relaxed));
            let most = Instead::ALL.into_iter().zip(counts).max_by_key(|(_, count)| *count);
            return most.map_or(Cause::Unknown, |(instead, _)| Cause::Instead(instead));
        }
        let short = self.short(seen);
        let others: Vec<usize> = (0..seen.len()).filter(|row| *row != short).collect();
        let expected = seen.iter().sum::<u64>() as f64 * self.versions[short].1;
        let missing = 1.0 - seen[short] as f64 / expected;
        if self.unanswered(&[short]) - self.unanswered(&others) >= missing / 2.0 {
            Cause::Unanswered
        } else if self.key.is_some() {
            Cause::Keys
        } else {
            Cause::Unknown
        }
    }

    fn in_words(&self, cause: Cause, seen: &[u64], majority: Option<f64>) -> String {
        let units: u64 = seen.iter().sum();
        let row = self.short(seen);
        let (version, share) = self.versions[row];
        let seen_of = roughly(seen[row] as f64 / units.max(1) as f64);
        let of = if self.key.is_some() { "users" } else { "requests" };
        let seen = format!(
            "version {version} has answered {seen_of} % of {units} {of}, where {} % are declared",
            in_percent(share)
        );
        let key = self.key.as_ref().map_or_else(String::new, ToString::to_string);
        match cause {
            Cause::OneKey => {
                let least = majority.unwrap_or_default().floor();
                format!(
                    "one value of {key} has made at least {least:.0} % of the requests: so few users are no sample of shares"
                )
            }
            Cause::Instead(instead) => {
                let (replaced, why) = (self.replaced(row), instead.in_words());
                format!("{seen}: others have answered {replaced} of its requests, because {why}")
            }
            Cause::Unanswered => {
                let unanswered = roughly(self.unanswered(&[row]));
                let not_ready = self.instead[Instead::NotReady as usize].load(Ordering::Relaxed);
                let why = if 2 * not_ready >= self.nobody(row) { ", because it was not ready" } else { "" };
                format!("{seen}: {unanswered} % of its requests were not answered{why}")
            }
            Cause::Keys => format!(
                "{seen}: the values of {key} are not spread like those of all users, as behind another split by the same key"
            ),
            Cause::Unknown => format!("{seen}: nothing that is counted explains it"),
        }
    }

    /// The version that falls shortest of what is declared.
    fn short(&self, seen: &[u64]) -> usize {
        let units = seen.iter().sum::<u64>() as f64;
        let short = |row: &usize| {
            let expected = units * self.versions[*row].1;
            (expected - seen[*row] as f64) / expected.sqrt().max(1e-9)
        };
        (0..seen.len()).max_by(|one, other| short(one).total_cmp(&short(other))).expect("there are versions")
    }

    pub(crate) fn status(&self, now: Instant) -> SplitStatus {
        let look = self.lock_look();
        let seen = self.units.columns();
        let units: u64 = seen.iter().sum();
        let version = |(row, (version, share)): (usize, &(Version, f64))| {
            let own = Column::Version(row);
            VersionShare {
                version: version.0,
                declared_percent: share * 100.0,
                percent: (units > 0).then(|| seen[row] as f64 / units as f64 * 100.0),
                given: self.given(row),
                answered: self.units.at(row, own) + self.others.at(row, own),
                replaced: self.replaced(row),
            }
        };
        SplitStatus {
            key: self.key.as_ref().map(ToString::to_string),
            since: now.saturating_duration_since(self.began),
            units,
            evidence: finite(look.evidence),
            mismatch_at: 1.0 / ALPHA,
            mismatch: look.mismatch.clone(),
            versions: self.versions.iter().enumerate().map(version).collect(),
        }
    }

    fn lock_look(&self) -> MutexGuard<'_, Look> {
        self.look.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// JSON knows no infinity.
fn finite(evidence: f64) -> f64 {
    evidence.min(1e12)
}

/// A part of 1, with up to four decimals and no zeros at the end.
fn in_percent(part: f64) -> String {
    let text = format!("{:.4}", part * 100.0);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// The same of what was counted, of which more than one decimal says nothing, unless it is small.
fn roughly(part: f64) -> String {
    if part < 0.01 { in_percent(part) } else { in_percent((part * 1_000.0).round() / 1_000.0) }
}
