//! Two questions about an event, such as a failure, that can be asked after every request without being fooled by
//! asking often: does it happen to the candidate more than to the baseline, or than it may; and is it rare enough?
//!
//! Both are e-processes: products of fair bets whose value has expectation 1 as long as the answer is no, so that it
//! ever reaches `1/α` with probability at most `α`, however often one looks and whenever one stops.
//!
//! [`Worse`] bets on labels: of events in requests that were assigned at random, the candidate has its share, whatever
//! the base rate is and however it drifts. It needs no variance and no minimum of traffic (Lindon and Malek, 2022).
//! Where the event cannot happen to the baseline, it bets on the candidate's requests alone, against a rate that somebody
//! has declared to be too much; and so does [`Rare`], the other way round.

use serde::{Deserialize, Serialize};

use crate::gate::ALPHA;

/// How many times as often as to the baseline, or as it may, the event might happen to the candidate.
const RATIOS: [f64; 6] = [1.25, 1.5, 2.0, 3.0, 5.0, 10.0];

/// Where the rate might lie, as parts of the declared one.
const PARTS: [f64; 4] = [0.0, 0.1, 0.25, 0.5];

/// What a bet of [`Rare`] may come to. What was well for long would hide for as long what is not now: so a bet keeps ten times
/// what would do if it were alone, and stays fair.
const BET_MAX: f64 = 10.0 * PARTS.len() as f64 / ALPHA;

/// Evidence that an event happens to the candidate more often than to the baseline, or than it may: one of both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Worse {
    /// Natural logarithms of what each bet has made of 1.
    bets: [f64; RATIOS.len()],
}

impl Worse {
    /// The event happened; `share` of the requests went to the candidate at that time.
    pub(crate) fn observe(&mut self, to_candidate: bool, share: f64) {
        self.observe_part(f64::from(u8::from(to_candidate)), share);
    }

    /// It happened to several at once, to so many of which the candidate's belong. A bet is a line between what it is worth for none
    /// and for all, so that it is fair for every mean.
    pub(crate) fn observe_part(&mut self, of_candidate: f64, share: f64) {
        for (bet, ratio) in self.bets.iter_mut().zip(RATIOS) {
            let won = of_candidate * ratio + 1.0 - of_candidate;
            *bet += won.ln() - (share * ratio + 1.0 - share).ln();
        }
    }

    /// The event happened to a request of the candidate, or not; `too_much` is a share of requests, above 0 and below 1.
    /// Each bet is on a rate that is so many times as high, and loses in the long run at every rate that is not above
    /// `too_much`.
    pub(crate) fn observe_rate(&mut self, happened: bool, too_much: f64) {
        for (bet, ratio) in self.bets.iter_mut().zip(RATIOS) {
            let rate = (too_much * ratio).min((1.0 + too_much) / 2.0);
            *bet += if happened { rate / too_much } else { (1.0 - rate) / (1.0 - too_much) }.ln();
        }
    }

    /// At least `1/α` means: with a confidence of `1 − α`, yes.
    pub(crate) fn value(&self) -> f64 {
        mean(&self.bets)
    }

    /// Whether each bet is a number.
    pub(crate) fn is_evidence(&self) -> bool {
        self.bets.iter().all(|bet| bet.is_finite())
    }
}

/// Evidence that an event happens to fewer of the candidate's requests than is declared to be too much.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Rare {
    bets: [f64; PARTS.len()],
    /// What each bet wins when the event does not happen.
    wins: [f64; PARTS.len()],
    witnesses: u64,
}

/// What is kept of it: how many were heard, and what each bet has made of them; none has lost all.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct KeptRare {
    witnesses: u64,
    bets: [Option<f64>; PARTS.len()],
}

impl KeptRare {
    /// Whether each bet has come to what one can come to; what was written may be read with another last digit.
    pub(crate) fn is_evidence(&self) -> bool {
        self.bets.iter().flatten().all(|bet| *bet < BET_MAX.ln() + 1e-6)
    }
}

impl Rare {
    /// `too_much` is a share of requests, above 0 and below 1.
    pub(crate) fn new(too_much: f64) -> Self {
        let wins = PARTS.map(|part| (1.0 - part * too_much) / (1.0 - too_much));
        Self { bets: [0.0; PARTS.len()], wins, witnesses: 0 }
    }

    /// After so many witnesses, to so many of whom the event has happened.
    pub(crate) fn seen(too_much: f64, witnesses: u64, events: u64) -> Self {
        let mut rare = Self { witnesses, ..Self::new(too_much) };
        let events = events.min(witnesses);
        for ((bet, part), wins) in rare.bets.iter_mut().zip(PARTS).zip(rare.wins) {
            // Nothing times the logarithm of 0 is no number.
            let lost = if events == 0 { 0.0 } else { events as f64 * part.ln() };
            *bet = ((witnesses - events) as f64 * wins.ln() + lost).min(BET_MAX.ln());
        }
        rare
    }

    /// Goes on with what was kept.
    pub(crate) fn restored(too_much: f64, kept: &KeptRare) -> Self {
        let bets = kept.bets.map(|bet| bet.unwrap_or(f64::NEG_INFINITY));
        Self { bets, witnesses: kept.witnesses, ..Self::new(too_much) }
    }

    pub(crate) fn kept(&self) -> KeptRare {
        // JSON knows no infinity.
        let bets = self.bets.map(|bet| bet.is_finite().then_some(bet));
        KeptRare { witnesses: self.witnesses, bets }
    }

    /// A witness of the candidate: to which part of its requests the event has happened. A bet is a line between what it
    /// wins at 0 and what is left of it at 1, so that it is fair for every mean, and not of coins alone.
    pub(crate) fn observe(&mut self, part_of_requests: f64) {
        debug_assert!((0.0..=1.0).contains(&part_of_requests), "it is a part");
        self.witnesses += 1;
        for ((bet, part), wins) in self.bets.iter_mut().zip(PARTS).zip(self.wins) {
            // The bet on "never" is lost for good with the first witness to whom nothing else has happened.
            *bet = (*bet + (wins + (part - wins) * part_of_requests).ln()).min(BET_MAX.ln());
        }
    }

    /// So many witnesses to whom it has not happened.
    pub(crate) fn observe_none(&mut self, witnesses: u64) {
        self.witnesses += witnesses;
        for (bet, wins) in self.bets.iter_mut().zip(self.wins) {
            *bet = (*bet + wins.ln() * witnesses as f64).min(BET_MAX.ln());
        }
    }

    /// At least `1/α` means: with a confidence of `1 − α`, yes.
    pub(crate) fn value(&self) -> f64 {
        mean(&self.bets)
    }

    /// Witnesses that it takes at least, all without the event, before the answer can be yes.
    pub(crate) fn needs(&self, alpha: f64) -> u64 {
        let after = |witnesses: u64| mean(&self.wins.map(|wins| wins.ln() * witnesses as f64)) >= 1.0 / alpha;
        let (mut low, mut high) = (0, 1);
        while !after(high) {
            (low, high) = (high, high * 2);
        }
        while low + 1 < high {
            let middle = low.midpoint(high);
            if after(middle) { high = middle } else { low = middle }
        }
        high
    }

    pub(crate) fn witnesses(&self) -> u64 {
        self.witnesses
    }
}

/// Of what the bets have made of 1; it is huge before it is infinite, and both are enough.
fn mean(bets: &[f64]) -> f64 {
    bets.iter().map(|bet| bet.exp()).sum::<f64>() / bets.len() as f64
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A fair coin of any bias, the same in every run.
    pub(crate) struct Dice(pub(crate) u64);

    impl Dice {
        pub(crate) fn falls(&mut self, chance: f64) -> bool {
            self.draw() <= chance
        }

        pub(crate) fn below(&mut self, most: u64) -> u64 {
            (self.draw() * most as f64) as u64
        }

        fn draw(&mut self) -> f64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut mixed = self.0;
            mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1u64 << 53) as f64
        }
    }

    /// Events until `Worse` says so at α = 5 %, if it does within `most` of them.
    fn caught_after(dice: &mut Dice, share: f64, ratio: f64, most: u32) -> Option<u32> {
        let mut worse = Worse::default();
        let chance = share * ratio / (share * ratio + 1.0 - share);
        (1..=most).find(|_| {
            worse.observe(dice.falls(chance), share);
            worse.value() >= 20.0
        })
    }

    #[test]
    fn versions_that_are_alike_are_told_apart_at_most_once_in_twenty() {
        for (share, most) in [(0.01, 300), (0.1, 300), (0.5, 1000)] {
            let mut dice = Dice(7);
            let alarms = (0..10_000).filter(|_| caught_after(&mut dice, share, 1.0, most).is_some()).count();
            assert!(alarms <= 500, "{alarms} of 10,000 at a share of {share}");
        }
    }

    /// Failures of 1 % of the baseline's and 3 % of the candidate's requests, a tenth of all: 3,500 requests hold 42.
    #[test]
    fn a_candidate_that_fails_three_times_as_often_is_caught_within_3500_requests() {
        let mut dice = Dice(7);
        let mut caught: Vec<u32> =
            (0..10_000).map(|_| caught_after(&mut dice, 0.1, 3.0, 10_000).unwrap_or(u32::MAX)).collect();
        caught.sort_unstable();
        let requests = f64::from(caught[5_000]) / (0.9 * 0.01 + 0.1 * 0.03);
        assert!(requests <= 3_500.0, "median {requests}");
    }

    #[test]
    fn what_happens_too_often_is_called_rare_at_most_once_in_twenty() {
        let mut dice = Dice(11);
        let is_fooled = |dice: &mut Dice| {
            let mut rare = Rare::new(0.01);
            (0..5_000).any(|_| {
                rare.observe(f64::from(u8::from(dice.falls(0.01))));
                rare.value() >= 20.0
            })
        };
        let fooled = (0..10_000).filter(|_| is_fooled(&mut dice)).count();
        assert!(fooled <= 500, "{fooled} of 10,000");
    }

    /// Users of ten requests, of which one in ten is too much: some fail always, some half of the time, some late.
    #[test]
    fn nor_is_what_happens_too_often_in_parts() {
        let mut dice = Dice(19);
        let is_fooled = |dice: &mut Dice| {
            let mut rare = Rare::new(0.1);
            (0..1_000).any(|_| {
                let chance = if dice.falls(0.05) { 1.0 } else { 0.05 / 0.95 };
                let failed = (0..10).filter(|_| dice.falls(chance)).count();
                rare.observe(failed as f64 / 10.0);
                rare.value() >= 20.0
            })
        };
        // So close to 5 % that three standard deviations of chance are to be left to it.
        let fooled = (0..10_000).filter(|_| is_fooled(&mut dice)).count();
        assert!(fooled <= 565, "{fooled} of 10,000");
        let mut rare = Rare::new(0.1);
        (0..1_000).for_each(|_| rare.observe(if dice.falls(0.2) { 0.1 } else { 0.0 }));
        assert!(rare.value() >= 20.0, "2 % is rare where 10 may be");
        let kept = serde_json::to_string(&rare.kept()).unwrap();
        assert_eq!(Rare::restored(0.1, &serde_json::from_str(&kept).unwrap()), rare);
        rare.observe(1.0);
        let kept = serde_json::to_string(&rare.kept()).unwrap();
        assert_eq!(Rare::restored(0.1, &serde_json::from_str(&kept).unwrap()), rare);
    }

    #[test]
    fn nothing_is_shown_by_nothing_and_enough_by_enough() {
        assert_eq!(Worse::default().value(), 1.0);
        let mut rare = Rare::new(0.01);
        assert_eq!(rare.value(), 1.0);
        let needs = rare.needs(0.05);
        assert!((300..500).contains(&needs), "{needs}");
        for _ in 1..needs {
            rare.observe(0.0);
        }
        assert!(rare.value() < 20.0);
        rare.observe(0.0);
        assert!(rare.value() >= 20.0);
        let mut at_once = Rare::new(0.01);
        at_once.observe_none(needs);
        assert!((at_once.value() / rare.value() - 1.0).abs() < 1e-9);
        rare.observe(1.0);
        assert!(rare.value() < 20.0 && rare.value() > 0.0, "one failure costs, but not everything");
    }

    #[test]
    fn what_is_allowed_is_called_often_at_most_once_in_twenty_and_twice_as_much_soon() {
        let mut dice = Dice(13);
        let mut called = |rate: f64| {
            let mut worse = Worse::default();
            (0..5_000).find(|_| {
                worse.observe_rate(dice.falls(rate), 0.02);
                worse.value() >= 20.0
            })
        };
        let fooled = (0..10_000).filter(|_| called(0.02).is_some()).count();
        assert!(fooled <= 500, "{fooled} of 10,000");
        let mut needed: Vec<_> = (0..1_000).map(|_| called(0.04).unwrap_or(u32::MAX as usize)).collect();
        needed.sort_unstable();
        assert!(needed[500] < 1_000, "median {}", needed[500]);
    }

    #[test]
    fn alone_there_is_nothing_to_compare_with() {
        let mut worse = Worse::default();
        (0..1000).for_each(|_| worse.observe(true, 1.0));
        assert!((worse.value() - 1.0).abs() < 1e-9);
    }
}
