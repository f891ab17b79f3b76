//! One event of a rollout, watched: failures or slow answers, whether they happen to the candidate more often than its
//! share explains; or answers that are not the baseline's, whether there are more of them than the policy allows. And of
//! each, whether it is rare enough. Decides what counts as a witness of it; what is watched is in `gate/event.rs`, how the question is
//! asked again and again in `gate/worsening.rs`.
//!
//! The tests of [`evidence`](crate::evidence) hold for witnesses that know nothing of each other, so:
//! - A sticky key is one witness. It is on the same side every time, and what fails for it may always fail for it, as
//!   what is answered otherwise may always be. Against the baseline it counts with its first failure, once in each asking,
//!   however much went well before. For what is rare enough it counts once in each window, with the part of its requests in
//!   it to which the event has happened: neither does who asks much hide the others, nor what goes well first what fails
//!   then. So it is counted when the window is over, and not before: what has not failed yet may still. Of copies that are
//!   compared, the first of a key in each window speaks against the candidate.
//! - What goes unanswered together is one witness, see `gate/burst.rs`. Whoever leaves sooner than the baseline answers nearly all
//!   is held up by nothing, and has bursts apart: else one who does so all the time would hide what holds up others. And a key that
//!   says nothing new begins none.
//!
//! While the breaker of one version has tripped, all that goes wrong with both is in bursts, or not compared: see `canary/breakers.rs`.
//!
//! Whoever leaves without an answer is heard against the baseline where it has no key: it did not choose whom to leave. So is who
//! brings a deadline that is sooner than the policy's, and misses it. A key is heard only where the baseline answers some by then, and
//! counts against what the policy allows where it answers nearly all, see `canary/patience.rs`: who knows its version could leave that
//! one alone, at once and for nothing. Where that is not known, more of the candidate's are a matter for a person, see
//! `gate/leavers.rs`.
//!
//! What a version refuses may be its caller's mistake. It is heard against the baseline, where it is heard at all, and counts against
//! nothing that the policy allows; but more of it than the baseline's explains gets the candidate no more, see `gate/refusals.rs`. So it
//! is with the deadlines that callers bring and the baseline misses more than now and then.
//!
//! What was well for long would hide what is not now, so the question is asked anew at every step, and after so many events
//! or so much time.

mod burst;
mod event;
mod few;
mod leavers;
mod refusals;
mod sides;
mod words;
mod worsening;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::canary::{Breakers, Grounds, Patience, Sight, Taken};
use crate::evidence::{KeptRare, Rare};
use crate::units::{ALL, Millionths, share_of_all};

use burst::Burst;
pub(crate) use event::{Event, NAMES};
use few::Few;
use leavers::Leavers;
use refusals::Refusals;
use worsening::Worsening;

/// The chance that a candidate that is no worse is rolled back, in all gates and steps together; and the chance that
/// one that fails too often passes a gate of one step.
pub(crate) const ALPHA: f64 = 0.05;

/// The question is asked anew so often, and after so many witnesses.
const ASKED_EVERY: Duration = Duration::from_secs(600);
const WITNESSES: u32 = 50;

/// Of disagreement those who agree are witnesses as well: after as many as bring so many events where just as many are
/// allowed.
const DISAGREEMENTS: u32 = 10;

/// A sticky key says once in so long how well the candidate does, or once in this part of the least length of a step.
const KEY_WINDOW_MAX: Duration = Duration::from_secs(10);
const KEY_WINDOWS: u32 = 10;

/// Keys that one asking, or one window, remembers. Further ones do not count, whichever version they have.
const KEYS_MAX: usize = 5_000;

/// A request that tells something.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Witness {
    pub(crate) is_candidate: bool,
    /// The candidate's share when it was assigned.
    pub(crate) share: Millionths,
    pub(crate) key: Option<u64>,
    pub(crate) sight: Sight,
    /// Of one that was left without an answer in time, what that says.
    pub(crate) patience: Patience,
    /// What the versions' breakers were when that was known.
    pub(crate) breakers: Breakers,
}

/// The evidence about one event.
#[derive(Clone, Debug)]
pub(crate) struct Gate {
    pub(crate) event: Event,
    at_most: Millionths,
    worse: Worsening,
    asked: Instant,
    pub(crate) rare: Rare,
    /// Requests of the candidate in this step, and those to which the event has happened.
    pub(crate) requests: u64,
    pub(crate) events: u64,
    /// Of disagreement, copies in this step that were not compared.
    pub(crate) missed: u64,
    /// What each key has had of the candidate in this window.
    heard: HashMap<u64, Heard>,
    window: Instant,
    /// A key is heard once in so long.
    pub(crate) window_length: Duration,
    /// Of unanswered requests, and of those who left so soon that nothing need have held them up.
    burst: Burst,
    burst_of_leavers: Burst,
    /// Of whom nobody knows whether the baseline would have answered them.
    leavers: Leavers,
    refusals: Refusals,
    taken: Arc<Taken>,
    few: Few,
    /// Deadlines that callers have brought and that the baseline misses more than now and then: counted as refusals are.
    misses: Refusals,
}

/// Requests of one key.
#[derive(Clone, Copy, Debug, Default)]
struct Heard {
    all: u32,
    events: u32,
}

/// What is kept of the evidence over a restart.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Kept {
    /// What was watched, and how much of it was allowed: evidence is about nothing else.
    #[serde(default)]
    over: Option<Duration>,
    #[serde(default)]
    at_most: Millionths,
    worse: Worsening,
    requests: u64,
    events: u64,
    #[serde(default)]
    missed: u64,
    /// Of processes before this was kept, every request was a witness.
    #[serde(default)]
    rare: Option<KeptRare>,
    /// Of processes that told these apart by other rules, nothing is.
    #[serde(default)]
    left: leavers::Kept,
    /// Nothing in files of before: what they have of refusals was counted by other rules.
    #[serde(default)]
    refusing: Option<Refusals>,
    #[serde(default)]
    few: Few,
    #[serde(default)]
    misses: Refusals,
}

impl Kept {
    /// Whether these are numbers that a gate comes to. Of others its questions would be answered by chance: what is no number is neither
    /// more than anything nor less.
    fn is_evidence(&self) -> bool {
        self.worse.is_evidence()
            && self.rare.as_ref().is_none_or(KeptRare::is_evidence)
            && self.refusing.as_ref().is_none_or(Refusals::is_evidence)
            && self.misses.is_evidence()
    }
}

impl Gate {
    /// In steps that last at least for `dwell`.
    pub(crate) fn new(
        (event, at_most): (Event, Millionths),
        dwell: Duration,
        taken: &Arc<Taken>,
        now: Instant,
    ) -> Self {
        let rare = Rare::new(share_of_all(at_most));
        let mut worse = Worsening::default();
        worse.ask_anew();
        let window_length = (dwell / KEY_WINDOWS).min(KEY_WINDOW_MAX);
        let (heard, requests, events, missed) = (HashMap::new(), 0, 0, 0);
        Self {
            event,
            at_most,
            worse,
            asked: now,
            rare,
            requests,
            events,
            missed,
            heard,
            window: now,
            window_length,
            burst: Burst::default(),
            burst_of_leavers: Burst::default(),
            leavers: Leavers::new(now),
            refusals: Refusals::default(),
            taken: Arc::clone(taken),
            few: Few::default(),
            misses: Refusals::default(),
        }
    }

    /// Goes on as another gate of the same name: what was found out about the candidate stays, what was found about
    /// another limit does not.
    pub(crate) fn become_like(&mut self, other: Self) {
        if self.event != other.event {
            *self = other;
            return;
        }
        self.window_length = other.window_length;
        if self.at_most != other.at_most {
            self.at_most = other.at_most;
            self.forget_step(other.window);
            if !self.event.is_compared_with_the_baseline() {
                (self.worse, self.asked) = (other.worse, other.asked);
            }
        }
    }

    /// Takes a request into account; whether there is evidence, against the candidate or the baseline, that there was not before.
    pub(crate) fn hear(&mut self, witness: Witness, now: Instant) -> bool {
        self.settle(now) | self.hear_one(witness, now)
    }

    /// Hears of bursts that are over; whether there was one. Call it a few times a second.
    pub(crate) fn settle(&mut self, now: Instant) -> bool {
        let over = [&mut self.burst, &mut self.burst_of_leavers].map(|burst| burst.take_if_over(now));
        let over = over.into_iter().flatten().inspect(|burst| self.worse.hear_burst(burst));
        over.count() > 0
    }

    fn hear_one(&mut self, witness: Witness, now: Instant) -> bool {
        let Witness { is_candidate, share, key, sight, patience, breakers } = witness;
        self.missed += u64::from((self.event, sight) == (Event::Disagreement, Sight::NotCompared));
        // A version whose breaker has tripped has nobody whom it could refuse, or who could leave it.
        let both_are_asked = self.event == Event::Error && breakers == Breakers::Passing;
        if let Some(key) = key
            && both_are_asked
            && patience == Patience::Short
        {
            self.leavers.hear(key, is_candidate, share_of_all(share), now);
        }
        if both_are_asked && matches!(sight, Sight::Refused | Sight::Unsendable) {
            self.look(now);
            self.refusals.hear(key, is_candidate, share_of_all(share));
            if self.refusals.is_full() {
                self.refusals.count_window(&self.heard, &self.taken);
            }
            // A candidate that is not ready has nobody.
            if share > 0 {
                self.few.refuse(key, is_candidate);
            }
        }
        if both_are_asked && matches!((sight, patience), (Sight::Late(_), Patience::Middling)) {
            self.look(now);
            self.misses.hear(key, is_candidate, share_of_all(share));
            if self.misses.is_full() {
                self.misses.count_window(&self.heard, &self.taken);
            }
        }
        let Some(happened) = self.event.happened(sight, patience, key) else { return false };
        let is_the_versions = self.event.is_the_versions(sight, patience);
        if let Some(key) = key
            && self.event == Event::Error
            && is_the_versions
            && !is_candidate
        {
            self.taken.hear(key);
        }
        let is_news = is_candidate && is_the_versions && self.is_news(key, happened, now);
        let is_compared = self.event.is_compared_with_the_baseline();
        if !(if is_compared { happened } else { is_news }) {
            return false;
        }
        if is_compared && !self.event.can_be_compared(breakers) {
            return false;
        }
        if self.worse.is_stale(self.witnesses_max())
            || now.saturating_duration_since(self.asked) >= ASKED_EVERY
        {
            self.ask_anew(now);
        }
        if is_compared {
            let share = share_of_all(share);
            let is_in_burst = match breakers {
                Breakers::Passing => sight.comes_in_bursts(),
                // In one with what is turned away.
                Breakers::OneTripped | Breakers::Unlike => true,
            };
            if is_in_burst {
                if key.is_none_or(|key| self.worse.is_news(key)) {
                    self.burst_of(patience, breakers).hear(key, is_candidate, share, now);
                }
                return false;
            }
            self.worse.hear(key, (happened, is_candidate, share), |worse| worse.observe(is_candidate, share));
        } else {
            let at_most = share_of_all(self.at_most);
            self.worse
                .hear(key, (happened, happened, at_most), |worse| worse.observe_rate(happened, at_most));
        }
        happened
    }

    /// The next step begins.
    pub(crate) fn begin_step(&mut self, now: Instant) {
        self.ask_anew(now);
        self.forget_step(now);
    }

    pub(crate) fn forget_step(&mut self, now: Instant) {
        self.rare = Rare::new(share_of_all(self.at_most));
        (self.requests, self.events, self.missed) = (0, 0, 0);
        (self.refusals, self.few, self.misses) = (Refusals::default(), Few::default(), Refusals::default());
        self.begin_window(now);
    }

    /// Counts what keys have had, if their window is over. Call it before asking whether the gate has passed.
    pub(crate) fn look(&mut self, now: Instant) {
        self.leavers.look(now);
        if now.saturating_duration_since(self.window) >= self.window_length {
            self.close_window(now);
        }
    }

    fn close_window(&mut self, now: Instant) {
        self.rare = self.with_window();
        self.refusals.count_window(&self.heard, &self.taken);
        self.misses.count_window(&self.heard, &self.taken);
        self.begin_window(now);
    }

    fn begin_window(&mut self, now: Instant) {
        self.heard.clear();
        // Of the gates, this one alone asks what the baseline takes.
        if self.event == Event::Error {
            self.taken.forget();
        }
        self.window = now;
    }

    /// What is known with what keys have had in this window so far.
    fn with_window(&self) -> Rare {
        let (mut rare, mut well) = (self.rare, 0);
        for Heard { all, events } in self.heard.values() {
            match events {
                0 => well += 1,
                events => rare.observe(f64::from(*events) / f64::from(*all)),
            }
        }
        rare.observe_none(well);
        rare
    }

    fn ask_anew(&mut self, now: Instant) {
        self.worse.ask_anew();
        self.asked = now;
    }

    /// Of one asking, before the next begins.
    fn witnesses_max(&self) -> u32 {
        if self.event.is_compared_with_the_baseline() {
            WITNESSES
        } else {
            DISAGREEMENTS * ALL / self.at_most
        }
    }

    /// Evidence that the candidate is worse: at least `1/α` means so with a confidence of `1 − α`.
    pub(crate) fn worse(&self) -> f64 {
        self.worse.value()
    }

    /// What most of it is made of.
    pub(crate) fn grounds(&self) -> Grounds {
        self.worse.grounds()
    }

    /// A person has said what they were asked, so none of those holds the next step: only who leaves it then does. Where there are too
    /// few to ask anybody, they stay, as after a verdict, and count together with those who leave later.
    pub(crate) fn forget_asked(&mut self, now: Instant) {
        self.leavers.look(now);
        if self.leavers.are_unlike().is_some() {
            self.leavers = Leavers::new(now);
        }
    }

    /// Whether it is shown that the event is rare enough, even if so many requests that hang all end with it: by what keys have had in
    /// windows that are over, in which nothing is still to fail, and with what they have had in this one as well, which is the newest.
    pub(crate) fn has_passed(&self, hanging: u32) -> bool {
        self.is_rare(&self.rare, hanging)
            && (self.heard.is_empty() || self.is_rare(&self.with_window(), hanging))
    }

    fn is_rare(&self, rare: &Rare, hanging: u32) -> bool {
        let is_shown = |rare: &Rare| rare.value() >= 1.0 / ALPHA;
        if hanging == 0 || !self.event.is_compared_with_the_baseline() || !is_shown(rare) {
            return is_shown(rare);
        }
        // Of all, and not after the last of them: where many go well, a few that take long are few.
        let (witnesses, hanging) = (rare.witnesses(), u64::from(hanging));
        let part = self.events as f64 / self.requests.max(1) as f64;
        let events = (part.min(1.0) * witnesses as f64).ceil() as u64;
        is_shown(&Rare::seen(share_of_all(self.at_most), witnesses + hanging, events + hanging))
    }

    /// Whether most of the copies were not compared: what the others show may be true of them alone.
    pub(crate) fn has_missed_most(&self) -> bool {
        self.missed > self.requests
    }

    /// The most that may be, in percent.
    pub(crate) fn percent_at_most(&self) -> f64 {
        share_of_all(self.at_most) * 100.0
    }

    pub(crate) fn kept(&self, of_baseline: usize) -> Kept {
        let (over, at_most, worse) = (self.event.over(), self.at_most, self.worse.clone());
        let rare = Some(self.with_window().kept());
        let Self { requests, events, missed, .. } = *self;
        let (left, mut refusing, mut misses) =
            (self.leavers.kept(), self.refusals.clone(), self.misses.clone());
        refusing.count_window(&self.heard, &self.taken);
        misses.count_window(&self.heard, &self.taken);
        let few = self.few.knowing(of_baseline);
        let refusing = Some(refusing);
        Kept { over, at_most, worse, requests, events, missed, rare, left, refusing, few, misses }
    }

    /// Goes on where an earlier process has stopped, as after a reload; `same_step` where its step, too, goes on.
    pub(crate) fn restore(&mut self, kept: &Kept, same_step: bool) {
        if kept.over != self.event.over() || !kept.is_evidence() {
            return;
        }
        self.leavers.restore(&kept.left);
        let is_same_limit = kept.at_most == self.at_most;
        if is_same_limit || self.event.is_compared_with_the_baseline() {
            self.worse = kept.worse.clone();
        }
        if let Some(refusing) = kept.refusing.as_ref().filter(|_| is_same_limit && same_step) {
            let too_much = share_of_all(self.at_most);
            self.rare = match &kept.rare {
                Some(rare) => Rare::restored(too_much, rare),
                None => Rare::seen(too_much, kept.requests, kept.events),
            };
            (self.requests, self.events, self.missed) = (kept.requests, kept.events, kept.missed);
            (self.refusals, self.few) = (refusing.clone(), kept.few.clone());
            self.misses = kept.misses.clone();
        }
    }

    /// Takes down a request of the candidate; whether it is the first of its key in this window.
    fn is_news(&mut self, key: Option<u64>, happened: bool, now: Instant) -> bool {
        self.requests += 1;
        self.events += u64::from(happened);
        self.look(now);
        let Some(key) = key else {
            self.refusals.hear_other_without_key();
            self.misses.hear_other_without_key();
            self.rare.observe(f64::from(u8::from(happened)));
            return true;
        };
        if self.event == Event::Error {
            self.few.take(key);
        }
        let is_full = self.heard.len() >= KEYS_MAX;
        let heard = match self.heard.entry(key) {
            Entry::Vacant(_) if is_full => return false,
            Entry::Vacant(new) => new.insert(Heard::default()),
            Entry::Occupied(known) => known.into_mut(),
        };
        heard.all = heard.all.saturating_add(1);
        heard.events = heard.events.saturating_add(u32::from(happened)).min(heard.all);
        heard.all == 1
    }

    fn burst_of(&mut self, patience: Patience, breakers: Breakers) -> &mut Burst {
        match (patience, breakers) {
            (Patience::Short | Patience::Middling, Breakers::Passing) => &mut self.burst_of_leavers,
            (Patience::Long, _) | (_, Breakers::OneTripped | Breakers::Unlike) => &mut self.burst,
        }
    }
}
