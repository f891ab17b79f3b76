//! Whether more of those to whom something happens are the candidate's than chance makes, where chance has put each on one side, once.
//! However often one of them comes, and however much it asks, it is one: what fails for it may always fail for it.
//!
//! This is for what holds a rollout, which is let go at the first look at which it is not so any more. So one look decides, and no bet
//! is needed that could be looked at all the time. Chance makes it so in at most 6 % of rollouts, if there are four who are all on
//! one side of two, and in fewer else. Fewer than four are never too many, whatever the share: two or three users whose clients are
//! broken hold nothing.

use serde::{Deserialize, Serialize};

use crate::canary::Grounds;

/// So many standard deviations are no chance. A little less than two, which four of four are.
const DEVIATIONS: f64 = 1.95;

/// Whom it has happened to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Sides {
    of_candidate: u32,
    all: u32,
    /// So many would be the candidate's on average.
    by_share: f64,
    /// How far the candidate's may be from that by chance, squared, and how far each of these is.
    variance: f64,
    seen: f64,
}

impl Sides {
    /// One more, which was put on one side when the candidate had this share.
    pub(super) fn hear(&mut self, is_candidate: bool, share: f64) {
        self.all += 1;
        self.of_candidate += u32::from(is_candidate);
        self.by_share += share;
        self.variance += share * (1.0 - share);
        self.seen += (f64::from(u8::from(is_candidate)) - share).powi(2);
    }

    /// Whether these are numbers that hearing comes to.
    pub(super) fn is_evidence(&self) -> bool {
        let most = f64::from(self.all);
        self.of_candidate <= self.all
            && self.all < u32::MAX / 2
            && [self.by_share, self.variance, self.seen].iter().all(|number| (0.0..=most).contains(number))
    }

    /// At a small share the one variance is next to nothing, and at a large one the other.
    pub(super) fn are_more(&self) -> bool {
        let deviation = self.variance.max(self.seen).sqrt();
        let more = f64::from(self.of_candidate) - self.by_share;
        more > 0.0 && more > DEVIATIONS * deviation
    }

    pub(super) fn grounds(&self) -> Grounds {
        let Self { of_candidate, all, by_share, .. } = *self;
        Grounds { all, of_candidate, by_share, ..Grounds::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evidence::tests::Dice;

    fn are_more(of_candidate: u32, of_baseline: u32, share: f64) -> bool {
        let mut sides = Sides::default();
        (0..of_candidate).for_each(|_| sides.hear(true, share));
        (0..of_baseline).for_each(|_| sides.hear(false, share));
        sides.are_more()
    }

    #[test]
    fn four_of_four_are_too_many_and_three_are_not_whatever_the_share() {
        for share in [0.01, 0.1, 0.5] {
            assert_eq!([3, 4].map(|all| are_more(all, 0, share)), [false, true], "{share}");
        }
        assert_eq!([3, 7, 40].map(|all| are_more(all, 0, 0.9)), [false, false, true]);
        assert!(!are_more(0, 0, 0.5) && !are_more(1_000, 0, 1.0), "there is nobody to compare with");
    }

    #[test]
    fn chance_alone_rarely_makes_it_so() {
        for (share, all) in [(0.5, 4), (0.5, 7), (0.5, 60), (0.1, 10), (0.1, 100), (0.01, 300), (0.9, 100)] {
            let mut dice = Dice(all);
            let of_chance = |_: &u32| {
                let mut sides = Sides::default();
                (0..all).for_each(|_| sides.hear(dice.falls(share), share));
                sides.are_more()
            };
            let more = (0..4_000).filter(of_chance).count();
            assert!(more <= 300, "{more} of 4,000 of {all} at {share}");
        }
    }
}
