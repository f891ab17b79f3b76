//! How long the baseline's answers take, so that it is known of whoever leaves without one whether they would have had one of the
//! baseline. Who waits for less says nothing about the candidate; who has waited for longer was failed by it.
//!
//! What counts is the time that nine in ten answers stay below: of the tenth there are those that take long with any version, and
//! few of them must not make everybody else's waiting short.

use std::time::Duration;

use super::times::Times;

/// One in so many answers takes long with any version.
const SLOW_ONE_IN: u32 = 10;

/// For how long somebody has waited who has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Patience {
    /// The baseline is not known to have answered by then.
    Short,
    /// It would have, as a rule.
    Long,
}

/// How long the baseline's answers take. Without a lock: it hears of nearly every request.
#[derive(Debug, Default)]
pub(crate) struct AnswerTimes {
    times: Times,
}

impl AnswerTimes {
    /// Of somebody who has left after so long.
    pub(crate) fn patience(&self, waited: Duration) -> Patience {
        let is_long = self.times.all_but_one_in(SLOW_ONE_IN).is_some_and(|usual| waited > usual);
        if is_long { Patience::Long } else { Patience::Short }
    }

    /// There was an answer.
    pub(crate) fn hear(&self, took: Duration) {
        self.times.hear(took);
    }

    /// Others answer now.
    pub(crate) fn forget(&self) {
        self.times.forget();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_for_longer_than_nine_in_ten_answers_take_was_patient() {
        let (times, ms) = (AnswerTimes::default(), Duration::from_millis);
        (0..9).for_each(|_| times.hear(ms(5)));
        assert_eq!(times.patience(ms(10_000)), Patience::Short, "too little is known");
        (0..91).for_each(|_| times.hear(ms(5)));
        // Those that take long with any version hide nothing.
        (0..10).for_each(|_| times.hear(ms(900)));
        assert_eq!(
            [4, 6, 200].map(|waited| times.patience(ms(waited))),
            [Patience::Short, Patience::Long, Patience::Long]
        );
        (0..10_000).for_each(|_| times.hear(ms(40)));
        assert_eq!([30, 43].map(|waited| times.patience(ms(waited))), [Patience::Short, Patience::Long]);
        times.forget();
        assert_eq!(times.patience(ms(500)), Patience::Short);
    }
}
