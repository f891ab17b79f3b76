//! How many of the candidate's requests hang: more are under way, over a while, than have begun in it times what a request takes
//! (Little's law). They will be late, and what ends soon must not be heard alone.
//!
//! All that have begun and all that have ended count, however they ended, and all means forget alike: neither growing
//! traffic nor an hour without any looks like hanging, nor does a moment at which few are under way look like none. And what hangs
//! goes on hanging: no more do than have been under way at every look of a while, so that what comes in bursts and is answered is
//! not taken for it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// So long do its means remember, or twice as long as a request takes. The longer one does not take for hanging what comes and
/// goes, the shorter one sees what has begun to hang just now.
const REMEMBERED: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(10)];

/// What hangs is under way for so long at least, or for so many times as long as a request takes, but for no longer than this.
const GOES_ON: Duration = Duration::from_millis(300);
const GOES_ON_TIMES: f64 = 4.0;
const GOES_ON_MAX: Duration = Duration::from_secs(60);

/// The candidate's requests since its rollout began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Requests {
    /// Now.
    pub(crate) under_way: u32,
    pub(crate) begun: u64,
    /// Of which is known what they took, all together.
    pub(crate) ended: u64,
    pub(crate) took: Duration,
}

/// Means over a while.
#[derive(Clone, Debug)]
pub(crate) struct Hanging {
    looked: Instant,
    before: Requests,
    means: [Means; REMEMBERED.len()],
    /// How many were under way at the looks of the last while.
    lately: VecDeque<(Instant, u32)>,
}

/// As sums whose parts weigh less the older they are.
#[derive(Clone, Copy, Debug, Default)]
struct Means {
    seconds: f64,
    /// In request-seconds.
    under_way: f64,
    begun: f64,
    ended: f64,
    took: f64,
}

impl Hanging {
    pub(crate) fn new(now: Instant) -> Self {
        let (before, means, lately) = Default::default();
        Self { looked: now, before, means, lately }
    }

    /// What was before says nothing any more.
    pub(crate) fn begin_anew(&mut self, now: Instant) {
        *self = Self { before: self.before, ..Self::new(now) };
    }

    /// Takes into account what has come since the last look. What comes between two looks is taken for even.
    pub(crate) fn look(&mut self, requests: Requests, now: Instant) {
        let seconds = now.saturating_duration_since(self.looked).as_secs_f64();
        let since = |now: u64, before: u64| now.saturating_sub(before) as f64;
        let new = Means {
            seconds,
            under_way: f64::from(requests.under_way) * seconds,
            begun: since(requests.begun, self.before.begun),
            ended: since(requests.ended, self.before.ended),
            took: requests.took.saturating_sub(self.before.took).as_secs_f64(),
        };
        for (means, remembered) in self.means.iter_mut().zip(REMEMBERED) {
            let remembered = remembered.as_secs_f64().max(2.0 * means.usual());
            means.add(new, (-seconds / remembered).exp());
        }
        (self.looked, self.before) = (now, requests);
        let usual = self.means.iter().map(Means::usual).fold(0.0, f64::max);
        let goes_on = Duration::from_secs_f64((GOES_ON_TIMES * usual).min(GOES_ON_MAX.as_secs_f64()));
        self.lately.push_back((now, requests.under_way));
        let is_over =
            |(looked, _): &mut (Instant, u32)| now.saturating_duration_since(*looked) > goes_on.max(GOES_ON);
        while self.lately.pop_front_if(is_over).is_some() {}
    }

    /// How many hang.
    pub(crate) fn count(&self) -> u32 {
        let on_average = |means: &Means| match means.seconds {
            0.0 => self.before.under_way,
            seconds => ((means.under_way - means.begun * means.usual()) / seconds) as u32,
        };
        let always = self.lately.iter().map(|(_, under_way)| *under_way).min().unwrap_or_default();
        self.means.iter().map(on_average).max().unwrap_or_default().min(always)
    }
}

impl Means {
    fn add(&mut self, new: Self, kept: f64) {
        self.seconds = self.seconds * kept + new.seconds;
        self.under_way = self.under_way * kept + new.under_way;
        self.begun = self.begun * kept + new.begun;
        self.ended = self.ended * kept + new.ended;
        self.took = self.took * kept + new.took;
    }

    /// What a request takes, in seconds.
    fn usual(&self) -> f64 {
        if self.ended > 0.0 { self.took / self.ended } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bursts_that_are_answered_do_not_look_like_hanging_and_what_hangs_among_them_does() {
        for hang in [0, 7] {
            let begin = Instant::now();
            let (mut hanging, mut requests) = (Hanging::new(begin), Requests::default());
            for look in 0..600u32 {
                // Two hundred every three seconds, which one server answers within a second and a half.
                match look % 30 {
                    0 => {
                        (requests.begun, requests.under_way) =
                            (requests.begun + 200, requests.under_way + 200)
                    }
                    at @ 1..=15 => {
                        let answered = if at == 15 { 200 - 14 * 13 } else { 13 };
                        requests.under_way -= answered;
                        requests.ended += u64::from(answered);
                        requests.took += answered * at * Duration::from_millis(100);
                    }
                    _ => {}
                }
                let hung = if look >= 100 { hang } else { 0 };
                let all = Requests {
                    under_way: requests.under_way + hung,
                    begun: requests.begun + u64::from(hung),
                    ..requests
                };
                hanging.look(all, begin + look * Duration::from_millis(100));
                // Two bursts tell what requests take.
                assert!(look < 60 || hanging.count() <= hung, "{} at look {look}", hanging.count());
            }
            assert!(hanging.count() >= hang / 2, "{} of {hang}", hanging.count());
        }
    }
}
