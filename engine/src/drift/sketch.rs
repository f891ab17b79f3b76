//! How often the values of one feature fell where: into bins that its first values have set. Decides the bins; the rows that
//! set them are not those that are counted in them, so that chance has its way with both samples alike.
//!
//! ```text
//!   below ┤ 1/8 ┤ 1/8 ┤ 1/8 ┤ 1/8 ┤ 1/8 ┤ 1/8 ┤ 1/8 ┤ 1/8 ├ above   NaN
//!         smallest value seen                         largest value seen
//! ```
//!
//! Where there were few different values, each has a bin of its own: so constants, flags, classes and amounts are all treated
//! alike, and of token ids, which are no amounts, any parts of the vocabulary do.
//!
//! No edge lies on a value. The same input has another answer in its last bits as soon as another form of the model runs, or other
//! rows beside it, and an edge that was its answer would part the one from the other for ever. So values that hardly differ are
//! one, and an edge lies midway from one to the next, but no further than a hundredth above: a flag that turns into a
//! probability is seen.

/// Different values that have a bin each.
const DISTINCT_MAX: usize = 16;

/// Else each has such a part of the values.
const PARTS: usize = 8;

/// An edge for each of the former, one below, and the bins above and for NaN.
const BINS_MAX: usize = DISTINCT_MAX + 3;

/// Values are one that differ by no more than such a part of themselves,
const ALIKE: f64 = 1e-5;

/// or of what values of this feature mostly are: what is nearly 0 is a difference of larger ones, and is rounded as they are.
const ALIKE_TO_USUAL: f64 = 1e-6;

/// An edge lies no further from a value than such a part of it, or of what is usual.
const NEAR: f64 = 0.01;

/// Where all are whole numbers that floats of 32 bits tell apart, neighbours are never one, and edges lie as near as this.
const WHOLE_MAX: f64 = 16_777_216.0;
const NEAR_WHOLE: f64 = 0.05;

/// What is usual where all is 0.
const USUAL_MIN: f64 = 1e-5;

/// The bins of one feature, and what fell into them.
#[derive(Clone, Debug)]
pub(crate) struct Sketch {
    /// Where bins end, themselves included.
    edges: Vec<f64>,
    counts: [u32; BINS_MAX],
}

impl Sketch {
    /// Sets the bins by these values; sorts them.
    pub(crate) fn by(values: &mut Vec<f64>) -> Self {
        values.retain(|value| !value.is_nan());
        values.sort_unstable_by(f64::total_cmp);
        let grain = Grain::of(values);
        let mut ends = grain.ends(values);
        if ends.len() > DISTINCT_MAX {
            let end_of = |at: usize| ends[ends.partition_point(|end| *end < at)];
            ends = (1..=PARTS).map(|part| end_of(part * values.len() / PARTS - 1)).collect();
            ends.dedup();
        }
        let below = values.first().map(|smallest| grain.below(*smallest));
        let above = ends.iter().map(|end| grain.above(values[*end], values.get(end + 1)));
        Self { edges: below.into_iter().chain(above).collect(), counts: [0; BINS_MAX] }
    }

    /// Where this value falls.
    fn bin(&self, value: f64) -> usize {
        if value.is_nan() { self.edges.len() + 1 } else { self.edges.partition_point(|edge| *edge < value) }
    }

    pub(crate) fn count(&mut self, value: f64) {
        self.counts[self.bin(value)] += 1;
    }

    /// What was counted, bin by bin.
    pub(crate) fn bins(&self) -> &[u32] {
        &self.counts[..self.edges.len() + 2]
    }

    /// Where bins end.
    pub(crate) fn edges(&self) -> &[f64] {
        &self.edges
    }

    /// What [`Self::edges`] and [`Self::bins`] have said of one; `None` if these are not of any.
    pub(crate) fn restored(edges: &[f64], bins: &[u32]) -> Option<Self> {
        let is_one = edges.len() + 2 <= BINS_MAX && bins.len() == edges.len() + 2;
        let is_sorted = edges.iter().all(|edge| !edge.is_nan()) && edges.is_sorted();
        if !is_one || !is_sorted {
            return None;
        }
        let mut counts = [0; BINS_MAX];
        counts[..bins.len()].copy_from_slice(bins);
        Some(Self { edges: edges.to_vec(), counts })
    }

    /// Forgets what was counted.
    pub(crate) fn empty(&mut self) {
        self.counts = [0; BINS_MAX];
    }

    /// The same bins, in which nothing was counted.
    pub(crate) fn emptied(&self) -> Self {
        Self { edges: self.edges.clone(), counts: [0; BINS_MAX] }
    }
}

/// How exactly values of one feature are what they are.
struct Grain {
    /// The median of their amounts, without those that are 0.
    usual: f64,
    is_whole: bool,
}

impl Grain {
    fn of(values: &[f64]) -> Self {
        let mut amounts: Vec<f64> = values.iter().map(|value| value.abs()).collect();
        amounts.retain(|amount| *amount > 0.0 && amount.is_finite());
        amounts.sort_unstable_by(f64::total_cmp);
        let usual = amounts.get(amounts.len() / 2).copied().unwrap_or(USUAL_MIN);
        let is_whole = values.iter().all(|value| value.fract() == 0.0 && value.abs() < WHOLE_MAX);
        Self { usual, is_whole }
    }

    /// Of these, which are sorted, where each value that is not one with the next is for the last time.
    fn ends(&self, values: &[f64]) -> Vec<usize> {
        let (mut ends, mut first) = (Vec::new(), 0);
        for at in 1..=values.len() {
            // From the first of them on, so that what lies close together everywhere is still told apart.
            let is_one = |next: &f64| {
                let amount = values[first].abs().max(next.abs());
                *next == values[first] || next - values[first] <= self.alike(amount)
            };
            if !values.get(at).is_some_and(is_one) {
                ends.push(at - 1);
                first = at;
            }
        }
        ends
    }

    fn alike(&self, amount: f64) -> f64 {
        let alike = (amount * ALIKE).max(self.usual * ALIKE_TO_USUAL);
        // Nothing is like what is infinite.
        if amount.is_infinite() { 0.0 } else { self.of_whole(alike) }
    }

    fn near(&self, value: f64) -> f64 {
        self.of_whole(value.abs().max(self.usual) * NEAR)
    }

    fn of_whole(&self, distance: f64) -> f64 {
        if self.is_whole { distance.min(NEAR_WHOLE) } else { distance }
    }

    /// The edge between this value and the next one.
    fn above(&self, value: f64, next: Option<&f64>) -> f64 {
        if value.is_infinite() {
            return value;
        }
        let midway = next.map_or(f64::INFINITY, |next| next / 2.0 - value / 2.0);
        value + midway.min(self.near(value))
    }

    /// The edge below the smallest one.
    fn below(&self, value: f64) -> f64 {
        if value.is_infinite() { value } else { value - self.near(value) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: &[f64]) -> Sketch {
        Sketch::by(&mut values.to_vec())
    }

    #[test]
    fn a_constant_is_told_from_what_is_less_and_what_is_more() {
        let sketch = of(&[3.0; 50]);
        assert_eq!([2.9, 3.0, 3.1, f64::NAN].map(|value| sketch.bin(value)), [0, 1, 2, 3]);
        assert_eq!([f64::NEG_INFINITY, f64::INFINITY].map(|value| sketch.bin(value)), [0, 2]);
        assert_eq!(sketch.bins().len(), 4);
    }

    #[test]
    fn few_values_have_a_bin_each_and_many_share_eight_evenly() {
        let classes = of(&(0..160).map(|at| f64::from(at % 10)).collect::<Vec<_>>());
        assert_eq!(
            (0..10).map(|class| classes.bin(f64::from(class))).collect::<Vec<_>>(),
            (1..11).collect::<Vec<_>>()
        );
        let values: Vec<f64> = (0..800).map(f64::from).collect();
        let mut amounts = of(&values);
        values.iter().for_each(|value| amounts.count(*value));
        assert_eq!(amounts.bins(), [0, 100, 100, 100, 100, 100, 100, 100, 100, 0, 0]);
    }

    #[test]
    fn a_value_that_most_rows_have_does_not_hide_the_others() {
        let mostly: Vec<f64> = (0..400).map(|at| if at % 2 == 0 { 0.0 } else { f64::from(at) }).collect();
        let sketch = of(&mostly);
        assert_eq!((sketch.bin(-0.1), sketch.bin(0.0)), (0, 1));
        assert!(sketch.bin(50.0) > 1 && sketch.bin(399.0) > sketch.bin(50.0));
    }

    #[test]
    fn without_values_there_is_one_bin_and_infinities_set_edges_like_others() {
        let none = of(&[f64::NAN, f64::NAN]);
        assert_eq!((none.bin(1.0), none.bin(-1.0), none.bin(f64::NAN)), (0, 0, 1));
        let infinite = of(&[f64::NEG_INFINITY, f64::INFINITY]);
        assert_eq!([f64::NEG_INFINITY, 0.0, f64::INFINITY].map(|value| infinite.bin(value)), [0, 2, 2]);
        let huge = of(&[f64::MIN, 0.0, f64::MAX]);
        assert_eq!([f64::MIN, 0.0, f64::MAX].map(|value| huge.bin(value)), [1, 2, 3]);
    }

    #[test]
    fn each_edge_lies_midway_to_the_next_value_but_not_far_above_its_own() {
        assert_eq!(of(&[1.0, 1.0, 1.5]).edges(), [0.99, 1.01, 1.515]);
        let close = of(&[0.5, 0.501]);
        assert!((close.edges()[1] - 0.5005).abs() < 1e-9, "{close:?}");
        let flag = of(&[0.0, 1.0, 1.0]);
        assert_eq!([-0.1, 0.0, 0.1, 0.9, 1.0, 1.1].map(|value| flag.bin(value)), [0, 1, 2, 2, 2, 3]);
        let id = of(&[16_000_000.0, 16_000_001.0]);
        assert_eq!([15_999_999.0, 16_000_000.0, 16_000_001.0].map(|value| id.bin(value)), [0, 1, 2]);
        let never = of(&[0.0; 9]);
        assert_eq!([-1e-8, 0.0, -0.0, 1e-8, 1e-3].map(|value| never.bin(value)), [1, 1, 1, 1, 2]);
    }

    /// Of thirty inputs that come again and again, whose values differ in their last bits.
    #[test]
    fn values_that_hardly_differ_are_never_parted() {
        let value = |at: u32| f64::from(at % 30 + 1).sqrt() / 7.0;
        let sketch = of(&(0..256).map(|at| value(at) * (1.0 + f64::from(at) * 1e-8)).collect::<Vec<_>>());
        for at in 0..30 {
            let around = [-2e-6, -1e-7, 0.0, 1e-7, 4e-6].map(|by| sketch.bin(value(at) * (1.0 + by)));
            assert_eq!(around, [around[0]; 5], "value {at} of {sketch:?}");
        }
        let close: Vec<f64> = (0..800).map(|at| 1000.0 + f64::from(at) * 1e-3).collect();
        assert!(of(&close).bins().len() > 8, "they are as different as they are alike to their neighbours");
    }
}
