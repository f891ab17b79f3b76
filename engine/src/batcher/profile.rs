//! What is known of a bucket, whether or not something waits in it: how long runs take, how often rows come, how many fit into
//! memory. Decides what is learned from, and when another size is tried; never what runs.

use super::division::Division;
use super::{Batcher, Bucket, Claim, Ended};
use crate::curve::{Curve, size_of};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Buckets whose curves are kept; beyond it the one that was not used for longest is forgotten.
pub(super) const PROFILES_MAX: usize = 1024;

/// Of runs shorter than this, one in so many is learned from: learning would cost as much as they do.
const SHORT: Duration = Duration::from_millis(1);
const SHORT_SAMPLE: u64 = 8;

/// One run of so many is of a size that may be as good as the one that looks best.
const EXPLORE_EVERY: u64 = 32;

/// Of these, one in so many is of the size that has not run for longest.
const OLDEST_EVERY: u64 = 16;

/// So much sooner at first, and after a size of which little is known has run, or what is known is wrong.
const EXPLORE_AGAIN: u64 = 4;

/// A run that takes so many times as long as expected says that the machine was busy when that was learned.
const MUCH_FASTER: f32 = 0.75;

#[derive(Debug)]
pub(super) struct Profile {
    pub(super) curve: Curve,
    /// Rows of one run at most, as far as anybody has said.
    pub(super) max_rows: u32,
    /// The smallest batch, of those, that is about as good as any.
    pub(super) efficient: Option<u32>,
    pub(super) arrivals: Arrivals,
    /// Rows that memory has room for, if a run has failed for want of it.
    pub(super) cap: Option<u32>,
    pub(super) division: Division,
    used: u64,
    /// Runs that have ended, and those that were learned from.
    ended: u64,
    runs: u64,
    /// When so many have ended, one is to be of a size that is to be learned about.
    explore_at: u64,
    /// How many were.
    explored: u64,
    /// When a run of so many rows last ended.
    pub(super) ran: BTreeMap<u32, Instant>,
}

#[derive(Debug, Default)]
pub(super) struct Arrivals {
    pub(super) last: Option<Instant>,
    pub(super) gap: Option<Duration>,
}

impl Profile {
    fn new() -> Self {
        Self {
            curve: Curve::default(),
            max_rows: u32::MAX,
            efficient: None,
            arrivals: Arrivals::default(),
            cap: None,
            division: Division::default(),
            used: 0,
            ended: 0,
            runs: 0,
            explore_at: EXPLORE_AGAIN,
            explored: 0,
            ran: BTreeMap::new(),
        }
    }

    /// No run has more rows: what is beyond them was not seen, and makes no batch efficient.
    pub(super) fn limit(&mut self, max_rows: u32) {
        if self.max_rows != max_rows {
            self.max_rows = max_rows;
            self.efficient = self.curve.efficient(max_rows);
        }
    }

    /// Takes over what was learned from runs that were no batches.
    pub(super) fn seed(&mut self, curve: Curve) {
        self.runs = curve.runs();
        if self.runs > 0 {
            self.explore_at = EXPLORE_EVERY;
        }
        self.efficient = curve.efficient(self.max_rows);
        self.curve = curve;
    }

    /// Learns from one run.
    pub(super) fn learn(&mut self, rows: u32, took: Duration) {
        self.curve.observe(rows, took);
        self.runs += 1;
        if self.runs < 16 || self.runs.is_multiple_of(16) {
            self.efficient = self.curve.efficient(self.max_rows);
        }
    }

    /// A run is over.
    pub(super) fn end(&mut self, claim: &Claim, ended: Ended, now: Instant) {
        match (ended, &mut self.cap) {
            // A single row says nothing about how many fit.
            (Ended::OutOfMemory, cap) if claim.rows > 1 => {
                *cap = Some((claim.rows / 2).min(cap.unwrap_or(u32::MAX)));
            }
            // What has fitted once may grow; it is halved again if that was too much.
            (Ended::Ran, Some(cap)) if claim.rows >= *cap => *cap = cap.saturating_add(1),
            (Ended::Ran | Ended::Divided { .. } | Ended::Failed | Ended::OutOfMemory, _) => {}
        }
        if claim.rows == 0 {
            return;
        }
        self.ended += 1;
        self.note(claim, ended, now);
        if ended != Ended::Ran {
            return;
        }
        let took = now.saturating_duration_since(claim.began);
        // There are many short runs, and they are much alike. Decided by what was expected: of those that only happened
        // to be long, no more may be learned from than of the others.
        let expected = self.curve.typical(claim.rows).unwrap_or(took);
        let is_short = expected < SHORT;
        if !is_short || claim.explores || self.ended.is_multiple_of(SHORT_SAMPLE) {
            self.ran.insert(size_of(claim.rows), now);
            self.learn(claim.rows, took);
        }
        let is_news = !self.curve.trusts(claim.rows) || took < expected.mul_f32(MUCH_FASTER);
        if claim.explores && is_news {
            self.explore_at = self.ended + EXPLORE_AGAIN;
        }
    }

    /// Learns from how a batch of several has ended how many requests fail.
    fn note(&mut self, claim: &Claim, ended: Ended, now: Instant) {
        if claim.jobs < 2 {
            return;
        }
        match ended {
            Ended::Ran if !self.division.is_known() => return,
            Ended::Ran => self.division.ran(claim.jobs, claim.rows, now),
            Ended::Divided { failed, left } => {
                self.division.divided(claim.jobs, claim.rows, (failed, left), now);
            }
            // The model may be to blame, or their number.
            Ended::Failed | Ended::OutOfMemory => return,
        }
        self.division.choose(&self.curve, self.max_rows);
    }

    /// Jobs that share a run, at most.
    pub(super) fn most_jobs(&self) -> u32 {
        self.division.most.unwrap_or(u32::MAX)
    }

    /// Their rows, if each has so many.
    pub(super) fn most_rows(&self, each: impl FnOnce() -> u32) -> u32 {
        self.division.most.map_or(u32::MAX, |jobs| jobs.saturating_mul(each()))
    }

    /// Whether the next batch that there is a choice for is to have a size that may be as good as the one that looks best.
    pub(super) fn is_to_explore(&self) -> bool {
        self.ended >= self.explore_at
    }

    /// How many of so many rows to run in order to learn how long that takes. Where time is short the others are not to wait for a size
    /// that never ran.
    pub(super) fn explore(&self, waiting: u32, is_pressed: bool) -> u32 {
        match (self.explored + 1) % OLDEST_EVERY {
            0 => self.curve.oldest(waiting),
            // By turns: there may be no requests of which a batch of that size can be made.
            turn if turn % 2 == 1 && !is_pressed => {
                self.curve.between(waiting, turn / 2).unwrap_or_else(|| self.curve.explore(waiting))
            }
            _ => self.curve.explore(waiting),
        }
    }

    /// A run begins whose size is to be learned about.
    pub(super) fn explores(&mut self) {
        self.explore_at = self.ended + EXPLORE_EVERY;
        self.explored += 1;
    }
}

impl Arrivals {
    /// Exponentially weighted mean of the gaps between arrivals.
    pub(super) fn observe(&mut self, now: Instant) {
        if let Some(last) = self.last {
            let gap = now.saturating_duration_since(last);
            self.gap = Some(self.gap.map_or(gap, |mean| (mean * 7 + gap) / 8));
        }
        self.last = Some(now);
    }
}

impl<T: Clone> Batcher<T> {
    pub(super) fn known(&self, bucket: &Bucket) -> Option<&Profile> {
        self.profiles.get(&*shared(bucket))
    }

    /// For a shape of which nothing is known, what the nearest one lets expect.
    fn like_another(&self, bucket: &Bucket) -> Profile {
        let mut new = Profile::new();
        let is_like = |(other, profile): &(&Bucket, &Profile)| {
            other.version == bucket.version
                && other.free.len() == bucket.free.len()
                && profile.curve.has_slope()
        };
        let near = self.profiles.iter().filter(is_like).min_by(|(one, _), (other, _)| {
            let distance = |other| ratio(other, bucket).ln().abs();
            distance(one).total_cmp(&distance(other))
        });
        if let Some((other, profile)) = near {
            new.curve.expect(&profile.curve, ratio(other, bucket));
        }
        new
    }

    /// What is known of a bucket; of a suspect one, what is known of the others.
    pub(super) fn profile(&mut self, bucket: &Bucket) -> &mut Profile {
        let bucket = &*shared(bucket);
        if !self.profiles.contains_key(bucket) {
            if self.profiles.len() >= PROFILES_MAX {
                let oldest = self.profiles.iter().min_by_key(|(_, profile)| profile.used);
                let oldest = oldest.map(|(bucket, _)| bucket.clone()).expect("there are many");
                self.profiles.remove(&oldest);
            }
            self.profiles.insert(bucket.clone(), self.like_another(bucket));
        }
        let used = self.pushed;
        let profile = self.profiles.get_mut(bucket).expect("it is there now");
        profile.used = used;
        profile
    }
}

/// How large rows of one shape are against those of another. Several inputs often share a dimension, of which there is one
/// number each; so it is the mean of the dimensions' ratios and not their product.
fn ratio(one: &Bucket, other: &Bucket) -> f32 {
    let size = |dimension: &u64| (*dimension).max(1) as f32;
    let sum: f32 = one.free.iter().zip(&other.free).map(|(one, other)| (size(one) / size(other)).ln()).sum();
    (sum / one.free.len().max(1) as f32).exp()
}

/// The bucket whose profile is meant: suspects are no slower than others.
pub(super) fn shared(bucket: &Bucket) -> Cow<'_, Bucket> {
    if bucket.suspect {
        Cow::Owned(Bucket { suspect: false, ..bucket.clone() })
    } else {
        Cow::Borrowed(bucket)
    }
}
