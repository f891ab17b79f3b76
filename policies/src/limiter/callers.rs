//! Where the level of each caller of a limit is. Decides nothing about levels, nor who is to be forgotten.
//!
//! A caller is known by a number of 127 bits that follows from its key (SipHash-1-3) and from what nobody outside this process knows:
//! a key is as long as its sender likes, and of callers that may choose theirs nobody can know whose numbers are near each other.
//!
//! ```text
//!   number …0110 ─▶ chain 6: │ number, level │ number, level │ next ─┼─▶ │ number, level │ … a line of the cache each
//! ```
//!
//! With many callers it is memory that a request waits for. There are as many chains as there ever were callers at once, so that seven
//! in eight are in the first line of theirs, which can be fetched ahead as soon as the key is known, without the lock. With each caller
//! more one more chain is opened, which takes its part of the callers of another one (linear hashing, Litwin 1980): no request
//! waits until all of them are filed anew. What is waited for is new memory, a few times: the part in which a hundred thousand callers end
//! is 4 MB, to be cleared unless it comes so from the system.

use std::hash::{BuildHasher, RandomState};
use std::iter;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use bytemuck::Zeroable;
use siphasher::sip128::SipHasher13;
use smallvec::SmallVec;

use crate::gcra::Moment;
use crate::prefetch::prefetch;

/// By which a caller is known. There are so many that no two callers have the same one. It is not 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Number(u64, u64);

/// The levels of callers. Whoever has the [`Roll`], of which there is one, may find and change them; whoever has not may have them
/// fetched, and see levels of which some may just be on their way from one chain to another.
#[derive(Debug)]
pub(super) struct Callers {
    hash: SipHasher13,
    /// How many chains there are.
    open: AtomicU32,
    chains: Parts<Line>,
    /// Of chains that one line is not enough for.
    further: Parts<Line>,
}

/// Who is remembered.
#[derive(Debug, Default)]
pub(super) struct Roll {
    remembered: u32,
    /// Further lines that a chain has, or had.
    further: u32,
    vacant: Vec<u32>,
    /// The next chain that is looked at.
    hand: u32,
}

/// Part of a chain. Vacant places are only at a chain's end.
#[derive(Debug, Zeroable)]
#[repr(C, align(64))]
struct Line {
    callers: [Caller; 2],
    /// One more than the place of the next further line; 0 is none.
    next: AtomicU32,
}

/// One caller; of nobody, all is 0.
#[derive(Debug, Zeroable)]
#[repr(C)]
pub(super) struct Caller {
    number: [AtomicU64; 2],
    level: AtomicU64,
}

impl Callers {
    pub(super) fn new() -> Self {
        let [one, other] = [(); 2].map(|()| RandomState::new().hash_one(()));
        let hash = SipHasher13::new_with_keys(one, other);
        Self { hash, open: AtomicU32::new(1), chains: Parts::default(), further: Parts::default() }
    }

    pub(super) fn number(&self, key: &str) -> Number {
        let hash = self.hash.hash(key.as_bytes());
        Number(hash.h1 | 1 << 63, hash.h2)
    }

    /// A caller who is remembered.
    pub(super) fn find(&self, _: &Roll, number: Number) -> Option<&Caller> {
        self.lines(self.chain(number)).flat_map(|line| &line.callers).find(|caller| caller.number() == number)
    }

    /// Of a caller that is not remembered.
    pub(super) fn remember(&self, roll: &mut Roll, number: Number, level: Moment) {
        roll.remembered += 1;
        while self.open.load(Ordering::Relaxed) < roll.remembered {
            self.open_chain(roll);
        }
        self.add(roll, number, level.as_u64());
    }

    /// Of a caller that is.
    pub(super) fn forget(&self, roll: &mut Roll, number: Number) {
        roll.remembered -= 1;
        let others =
            self.take_all(roll, self.chain(number)).into_iter().filter(|(other, _)| *other != number);
        others.for_each(|(other, level)| self.add(roll, other, level));
    }

    /// Who owes nothing of the next few callers, as they follow each other from chain to chain, again and again.
    pub(super) fn rested(&self, roll: &mut Roll, callers: usize, now: Moment) -> SmallVec<[Number; 8]> {
        const CHAINS: u32 = 16;
        let open = self.open.load(Ordering::Relaxed);
        let (mut rested, mut seen) = (SmallVec::new(), 0);
        for _ in 0..open.min(CHAINS) {
            if seen >= callers {
                break;
            }
            let chain = self.chains.get(roll.hand);
            roll.hand = (roll.hand + 1) % open;
            let somebody =
                self.lines(chain).flat_map(|line| &line.callers).filter(|caller| !caller.is_nobody());
            for caller in somebody {
                seen += 1;
                if caller.level() <= now {
                    rested.push(caller.number());
                }
            }
        }
        rested
    }

    /// Levels of callers, 0 in vacant places. Whoever looks need not have the roll, but has to know how many further lines it has.
    pub(super) fn levels(&self, further: u32) -> impl Iterator<Item = Moment> {
        let chains = (0..self.open.load(Ordering::Relaxed)).map(|at| self.chains.get(at));
        let lines = chains.chain((0..further).map(|at| self.further.get(at)));
        lines.flat_map(|line| &line.callers).map(Caller::level)
    }

    /// What is read to find a caller, unless its chain is longer than most.
    pub(super) fn prefetch(&self, number: Number) {
        prefetch(self.chain(number));
    }

    fn chain(&self, Number(number, _): Number) -> &Line {
        let (open, number) = (self.open.load(Ordering::Relaxed), number as u32);
        let mask = open.next_power_of_two() - 1;
        let at = number & mask;
        // Callers of chains that are not open yet are in those that will be divided for them.
        self.chains.get(if at < open { at } else { at & (mask >> 1) })
    }

    fn lines<'a>(&'a self, chain: &'a Line) -> impl Iterator<Item = &'a Line> {
        let next = |line: &&'a Line| {
            let next = line.next.load(Ordering::Relaxed).checked_sub(1)?;
            Some(self.further.get(next))
        };
        iter::successors(Some(chain), next)
    }

    fn open_chain(&self, roll: &mut Roll) {
        let new = self.open.load(Ordering::Relaxed);
        let divided = self.chains.get(new - (1 << new.ilog2()));
        let callers = self.take_all(roll, divided);
        self.chains.get(new); // before anybody looks there who has not the lock
        self.open.store(new + 1, Ordering::Relaxed);
        callers.into_iter().for_each(|(number, level)| self.add(roll, number, level));
    }

    /// To the end of its chain.
    fn add(&self, roll: &mut Roll, number: Number, level: u64) {
        let last = self.lines(self.chain(number)).last().expect("a chain has a line");
        let nobody = last.callers.iter().find(|caller| caller.is_nobody()).unwrap_or_else(|| {
            let further = roll.vacant.pop().unwrap_or_else(|| {
                roll.further += 1;
                roll.further - 1
            });
            last.next.store(further + 1, Ordering::Relaxed);
            &self.further.get(further).callers[0]
        });
        nobody.become_caller(number, level);
    }

    /// Who was in a chain, which has nobody in it then, and its first line alone.
    fn take_all(&self, roll: &mut Roll, chain: &Line) -> SmallVec<[(Number, u64); 8]> {
        let mut taken = SmallVec::new();
        let mut line = chain;
        loop {
            for caller in line.callers.iter().filter(|caller| !caller.is_nobody()) {
                taken.push((caller.number(), caller.level().as_u64()));
                caller.become_caller(Number(0, 0), 0);
            }
            let Some(further) = line.next.swap(0, Ordering::Relaxed).checked_sub(1) else { return taken };
            roll.vacant.push(further);
            line = self.further.get(further);
        }
    }
}

impl Roll {
    /// How many.
    pub(super) fn remembered(&self) -> u32 {
        self.remembered
    }

    /// See [`Callers::levels`].
    pub(super) fn further(&self) -> u32 {
        self.further
    }
}

impl Caller {
    pub(super) fn level(&self) -> Moment {
        Moment::new(self.level.load(Ordering::Relaxed))
    }

    /// For whoever has the roll.
    pub(super) fn set_level(&self, _: &mut Roll, level: Moment) {
        self.level.store(level.as_u64(), Ordering::Relaxed);
    }

    fn number(&self) -> Number {
        let [one, other] = &self.number;
        Number(one.load(Ordering::Relaxed), other.load(Ordering::Relaxed))
    }

    fn is_nobody(&self) -> bool {
        self.number[0].load(Ordering::Relaxed) == 0
    }

    fn become_caller(&self, number: Number, level: u64) {
        self.number[0].store(number.0, Ordering::Relaxed);
        self.number[1].store(number.1, Ordering::Relaxed);
        self.level.store(level, Ordering::Relaxed);
    }
}

/// A list that grows without moving what is in it: each part is as long as all before it. What nobody has asked for yet takes no
/// memory.
#[derive(Debug)]
struct Parts<T>([OnceLock<Box<[T]>>; PARTS]);

const FIRST: u32 = 64;
const PARTS: usize = (u32::BITS - FIRST.ilog2() + 1) as usize;

impl<T> Default for Parts<T> {
    fn default() -> Self {
        Self([const { OnceLock::new() }; PARTS])
    }
}

impl<T: Zeroable> Parts<T> {
    fn get(&self, at: u32) -> &T {
        let (part, start) = match at.checked_ilog2() {
            Some(log) if at >= FIRST => ((log - FIRST.ilog2() + 1) as usize, 1 << log),
            Some(_) | None => (0, 0),
        };
        let length = start.max(FIRST) as usize;
        &self.0[part].get_or_init(|| bytemuck::allocation::zeroed_slice_box(length))[(at - start) as usize]
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use super::*;

    #[test]
    fn whoever_is_remembered_is_found_whoever_comes_and_goes() {
        let (callers, mut roll) = (Callers::new(), Roll::default());
        let mut known: HashMap<u64, Moment> = HashMap::new();
        let mut state = 7_u64;
        let mut dice = |sides: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % sides
        };
        for step in 1..300_000_u64 {
            // Many come, then most go, again and again.
            let (caller, leaves) = (dice(20_000), if step / 50_000 % 2 == 0 { 8 } else { 1 });
            let number = callers.number(&caller.to_string());
            let found = callers.find(&roll, number).map(Caller::level);
            assert_eq!(found, known.get(&caller).copied(), "step {step}");
            match callers.find(&roll, number) {
                Some(_) if dice(leaves) == 0 => {
                    callers.forget(&mut roll, number);
                    known.remove(&caller);
                }
                Some(found) => {
                    found.set_level(&mut roll, Moment::new(step));
                    known.insert(caller, Moment::new(step));
                }
                None if leaves > 1 || known.is_empty() => {
                    callers.remember(&mut roll, number, Moment::new(step));
                    known.insert(caller, Moment::new(step));
                }
                None => {}
            }
            assert_eq!(roll.remembered() as usize, known.len());
        }
        let levels = callers.levels(roll.further()).filter(|level| level.as_u64() > 0);
        assert_eq!(levels.count(), known.len());
        for caller in 0..20_000_u64 {
            let found = callers.find(&roll, callers.number(&caller.to_string()));
            assert_eq!(found.map(Caller::level), known.get(&caller).copied());
        }
        while roll.remembered() > 0 {
            let rested = callers.rested(&mut roll, 4, Moment::new(300_000));
            rested.into_iter().for_each(|number| callers.forget(&mut roll, number));
        }
        assert!(callers.levels(roll.further()).all(|level| level.as_u64() == 0));
        assert_eq!(roll.vacant.len(), roll.further() as usize, "no chain has a further line");
    }

    #[test]
    fn each_caller_is_looked_at_in_its_turn() {
        let (callers, mut roll) = (Callers::new(), Roll::default());
        for caller in 0..1_001 {
            callers.remember(&mut roll, callers.number(&caller.to_string()), Moment::new(1 + caller % 2));
        }
        let looks = (0..251).map(|_| callers.rested(&mut roll, 4, Moment::new(1)));
        let rested: HashSet<_> = looks.flatten().collect();
        assert_eq!(rested.len(), 501);
        assert!((0..1_001).step_by(2).all(|caller| rested.contains(&callers.number(&caller.to_string()))));
    }

    #[test]
    fn most_callers_are_in_the_first_line_of_their_chain() {
        let (callers, mut roll) = (Callers::new(), Roll::default());
        let numbers: Vec<_> = (0..100_000).map(|caller| callers.number(&caller.to_string())).collect();
        numbers.iter().for_each(|number| callers.remember(&mut roll, *number, Moment::new(1)));
        let is_first = |number: &&Number| {
            callers.chain(**number).callers.iter().any(|caller| caller.number() == **number)
        };
        let first = numbers.iter().filter(is_first).count();
        assert!(first > 85_000, "{first} of 100,000");
        assert!(roll.further() < 15_000, "{} further lines", roll.further());
    }

    #[test]
    fn callers_of_a_chain_are_in_one_line_of_the_cache() {
        assert_eq!((size_of::<Line>(), align_of::<Line>()), (64, 64));
    }

    #[test]
    fn parts_lie_one_after_the_other() {
        let list = Parts::<AtomicU32>::default();
        (0..1_000).for_each(|at| list.get(at).store(at, Ordering::Relaxed));
        assert!((0..1_000).all(|at| list.get(at).load(Ordering::Relaxed) == at));
        let lengths: Vec<_> = list.0.iter().filter_map(OnceLock::get).map(|part| part.len()).collect();
        assert_eq!(lengths, [64, 64, 128, 256, 512]);
    }
}
