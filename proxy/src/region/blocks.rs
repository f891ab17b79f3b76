//! Who has which part of a region: runs of blocks, each of one body. Decides where a body lies and when its run is free
//! again, which is when nobody here holds it any more and the engine has given it back as often as it was lent. Touches no
//! memory but its own: what the engine has given back comes in as an argument.
//!
//! ```text
//!   free ──take──▶ held ──leave──▶ left ──given back as often as lent──▶ free
//!                  lend: the engine reads, and so may who holds it; nobody writes
//! ```

/// Blocks one after the other, which belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) first: usize,
    pub(crate) count: usize,
}

impl Run {
    fn end(self) -> usize {
        self.first + self.count
    }
}

/// All blocks of a region.
#[derive(Debug)]
pub(crate) struct Blocks {
    total: usize,
    /// Runs that are not free, in the order in which they lie.
    taken: Vec<Taken>,
    /// How often the run that began with each block was lent, ever; it wraps as the engine's counts do.
    lent: Vec<u32>,
}

#[derive(Clone, Copy, Debug)]
struct Taken {
    run: Run,
    is_held: bool,
}

impl Blocks {
    /// So many, all free.
    pub(crate) fn new(total: usize) -> Self {
        Self { total, taken: Vec::new(), lent: vec![0; total] }
    }

    /// The first run that is long enough, for one holder; nothing if there is none. `returned` is how often the engine has
    /// given back a payload with its credit in a block, ever.
    pub(crate) fn take(&mut self, count: usize, returned: impl Fn(usize) -> u32) -> Option<Run> {
        debug_assert!(count > 0);
        self.sweep(returned);
        let (mut at, mut start) = (0, 0);
        while let Some(next) = self.taken.get(at).filter(|next| next.run.first - start < count) {
            (at, start) = (at + 1, next.run.end());
        }
        let run = Run { first: start, count };
        if run.end() > self.total {
            return None;
        }
        self.taken.insert(at, Taken { run, is_held: true });
        Some(run)
    }

    /// The engine is about to be told of what lies at this block, which somebody holds. Gives the run that it belongs to,
    /// whose first block gets the credit.
    pub(crate) fn lend(&mut self, block: usize) -> Run {
        let at = self.taken.partition_point(|taken| taken.run.end() <= block);
        let Taken { run, is_held } = self.taken[at];
        assert!(is_held && run.first <= block, "what is lent is held");
        self.lent[run.first] = self.lent[run.first].wrapping_add(1);
        run
    }

    /// Nobody here holds a run any more.
    pub(crate) fn leave(&mut self, run: Run) {
        let at = self.taken.partition_point(|taken| taken.run.first < run.first);
        let taken = &mut self.taken[at];
        assert!(taken.run == run && taken.is_held, "a run is left once");
        taken.is_held = false;
    }

    /// How many are not free.
    pub(crate) fn in_use(&mut self, returned: impl Fn(usize) -> u32) -> usize {
        self.sweep(returned);
        self.taken.iter().map(|taken| taken.run.count).sum()
    }

    fn sweep(&mut self, returned: impl Fn(usize) -> u32) {
        let lent = &self.lent;
        self.taken.retain(|Taken { run, is_held }| *is_held || returned(run.first) != lent[run.first]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_body_lies_in_the_first_run_that_is_long_enough() {
        let mut blocks = Blocks::new(6);
        let none = |_| 0;
        let runs = [2, 1, 3].map(|count| blocks.take(count, none).unwrap());
        assert_eq!(runs.map(|run| run.first), [0, 2, 3]);
        assert_eq!(blocks.take(1, none), None);
        blocks.leave(runs[0]);
        blocks.leave(runs[2]);
        assert_eq!(blocks.take(3, none), Some(Run { first: 3, count: 3 }));
        assert_eq!(blocks.take(1, none), Some(Run { first: 0, count: 1 }));
        assert_eq!(blocks.take(2, none), None, "what is left of it is one block");
        assert_eq!(blocks.in_use(none), 5);
    }

    #[test]
    fn a_run_that_was_lent_twice_comes_back_twice() {
        let mut blocks = Blocks::new(1);
        let run = blocks.take(1, |_| 0).unwrap();
        assert_eq!([blocks.lend(0), blocks.lend(0)], [run, run]);
        blocks.leave(run);
        assert_eq!(blocks.take(1, |_| 0), None);
        assert_eq!(blocks.take(1, |_| 1), None);
        assert!(blocks.take(1, |_| 2).is_some());
    }

    #[test]
    fn an_engine_that_gives_back_more_than_it_has_got_loses_the_run_and_nobody_writes_there() {
        let mut blocks = Blocks::new(2);
        let run = blocks.take(1, |_| 0).unwrap();
        blocks.lend(0);
        blocks.leave(run);
        assert_eq!(blocks.take(1, |_| 2), Some(Run { first: 1, count: 1 }));
    }

    /// What may happen, to the n-th of those that are there.
    #[derive(Clone, Debug)]
    enum Event {
        Take(usize),
        Lend(usize),
        Leave(usize),
        GiveBack(usize),
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            (1..6_usize).prop_map(Event::Take),
            any::<usize>().prop_map(Event::Lend),
            any::<usize>().prop_map(Event::Leave),
            any::<usize>().prop_map(Event::GiveBack),
        ]
    }

    proptest! {
        #[test]
        fn a_block_has_one_owner_and_none_is_lost(events in prop::collection::vec(event(), 0..80)) {
            const TOTAL: usize = 12;
            let (mut blocks, mut returned) = (Blocks::new(TOTAL), [0_u32; TOTAL]);
            // Runs that somebody holds, and what the engine has.
            let (mut held, mut lent): (Vec<Run>, Vec<Run>) = (Vec::new(), Vec::new());
            let end = std::iter::repeat_n([Event::Leave(0), Event::GiveBack(0)], events.len());
            for event in events.into_iter().chain(end.flatten()) {
                match event {
                    Event::Take(count) => {
                        let Some(run) = blocks.take(count, |block| returned[block]) else { continue };
                        prop_assert!(run.count == count && run.end() <= TOTAL);
                        for other in held.iter().chain(&lent) {
                            prop_assert!(run.end() <= other.first || other.end() <= run.first);
                        }
                        held.push(run);
                    }
                    Event::Lend(which) if !held.is_empty() => {
                        let run = held[which % held.len()];
                        prop_assert_eq!(blocks.lend(run.end() - 1), run);
                        lent.push(run);
                    }
                    Event::Leave(which) if !held.is_empty() => {
                        let run = held.swap_remove(which % held.len());
                        blocks.leave(run);
                    }
                    Event::GiveBack(which) if !lent.is_empty() => {
                        let run = lent.swap_remove(which % lent.len());
                        returned[run.first] += 1;
                    }
                    Event::Lend(_) | Event::Leave(_) | Event::GiveBack(_) => {}
                }
            }
            prop_assert_eq!((held.len(), lent.len()), (0, 0));
            prop_assert_eq!(blocks.in_use(|block| returned[block]), 0);
            prop_assert!(blocks.take(TOTAL, |block| returned[block]).is_some());
        }
    }
}
