//! How many requests may be asked once more: a tenth of a version's requests and a few besides. Decides only that; whether
//! asking again makes sense, and whom, others decide. Without a budget, requests that come back would keep a version down that
//! has just lost its engine; with it, they are never more than a tenth of its load (Google's SRE book, chapter 21).

use std::sync::atomic::{AtomicU32, Ordering};

/// What one retry costs, where each request brings 1.
const COST: u32 = 10;

/// No more than ten retries are saved up.
const MOST: u32 = 10 * COST;

/// What is left for retries.
#[derive(Debug)]
pub(crate) struct RetryBudget(AtomicU32);

/// A new one is full.
impl Default for RetryBudget {
    fn default() -> Self {
        Self(AtomicU32::new(MOST))
    }
}

/// Why a request is not asked once more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotAgain {
    /// As many were as may be.
    OverBudget,
    /// Whoever would be asked keeps failing.
    Tripped,
}

impl RetryBudget {
    /// A request came. Threads that find room at the same time may save up a little more than the most.
    pub(crate) fn earn(&self) {
        if self.0.load(Ordering::Relaxed) < MOST {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Takes what a retry costs, if that is there.
    pub(crate) fn spend(&self) -> bool {
        let less = |left: u32| left.checked_sub(COST);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn retries_are_a_tenth_of_the_requests_and_ten_more(steps in prop::collection::vec(prop::bool::ANY, 0..2_000)) {
            let (budget, mut requests, mut retries) = (RetryBudget::default(), 0, 0);
            for is_retry in steps {
                if is_retry {
                    retries += u32::from(budget.spend());
                } else {
                    budget.earn();
                    requests += 1;
                }
                prop_assert!(retries <= 10 + requests / 10);
            }
        }
    }

    #[test]
    fn what_is_saved_up_is_bounded_and_comes_back() {
        let budget = RetryBudget::default();
        (0..10_000).for_each(|_| budget.earn());
        assert_eq!((0..100).filter(|_| budget.spend()).count(), 10);
        (0..9).for_each(|_| budget.earn());
        assert!(!budget.spend());
        budget.earn();
        assert!(budget.spend() && !budget.spend());
    }
}
