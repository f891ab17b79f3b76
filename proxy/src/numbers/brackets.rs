//! The brackets and commas between the numbers of a nested array, and the sizes that they say. Decides only whether this is
//! an array whose rows are of one size at each depth, as JSON writes it; numbers are somebody else's to read.

/// No tensor that a model takes has more dimensions; a deeper text is for the parser of everything.
const DEPTH_MAX: usize = 16;

/// Arrays that have begun and not ended, and what those before them were like.
#[derive(Default)]
pub(super) struct Brackets {
    depth: usize,
    /// Values of the arrays that have not ended, from the outermost. Numbers are counted by who reads them.
    counts: [u64; DEPTH_MAX],
    /// Of those at each depth, once one has ended.
    sizes: [Option<u64>; DEPTH_MAX],
    /// How many arrays deep numbers stand, once there is one.
    leaf: Option<usize>,
    /// Numbers that came before the innermost array.
    before_row: u64,
}

/// What came last.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Last {
    Nothing,
    Opened,
    Value,
    Comma,
}

impl Brackets {
    /// Goes on from `at`, where `last` has ended and `numbers` have come, to the next number, or to the end of all. `None`
    /// if something else stands there.
    pub(super) fn skip(&mut self, text: &[u8], mut at: usize, mut last: Last, numbers: u64) -> Option<usize> {
        loop {
            match text.get(at) {
                None => return (last == Last::Value && self.depth == 0).then_some(at),
                Some(b' ' | b'\n' | b'\t' | b'\r') => {}
                Some(b',') if last == Last::Value && self.depth > 0 => last = Last::Comma,
                Some(b'[') if last != Last::Value => {
                    self.open(numbers)?;
                    last = Last::Opened;
                }
                Some(b']') if matches!(last, Last::Opened | Last::Value) => {
                    self.close(numbers)?;
                    last = Last::Value;
                }
                Some(_) => {
                    let may_stand_here = matches!(last, Last::Opened | Last::Comma) && self.is_leaf();
                    return may_stand_here.then_some(at);
                }
            }
            at += 1;
        }
    }

    /// Whether numbers stand this deep, and no arrays.
    fn is_leaf(&mut self) -> bool {
        let has_arrays = self.sizes.get(self.depth).is_some_and(Option::is_some);
        !has_arrays && *self.leaf.get_or_insert(self.depth) == self.depth
    }

    fn open(&mut self, numbers: u64) -> Option<()> {
        // Beside a number there are only numbers.
        if self.depth == DEPTH_MAX || self.leaf.is_some_and(|leaf| self.depth >= leaf) {
            return None;
        }
        self.counts[self.depth] = 0;
        self.depth += 1;
        self.before_row = numbers;
        Some(())
    }

    fn close(&mut self, numbers: u64) -> Option<()> {
        let depth = self.depth.checked_sub(1)?;
        let count =
            if self.leaf == Some(self.depth) { numbers - self.before_row } else { self.counts[depth] };
        if *self.sizes[depth].get_or_insert(count) != count {
            return None;
        }
        self.depth = depth;
        if let Some(parent) = depth.checked_sub(1) {
            self.counts[parent] += 1;
        }
        Some(())
    }

    /// The size at each depth, from the outermost.
    pub(super) fn into_sizes(self) -> Vec<u64> {
        self.sizes.into_iter().map_while(|size| size).collect()
    }
}
