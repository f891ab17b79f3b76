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

/// Different values that have a bin each.
const DISTINCT_MAX: usize = 16;

/// Else each has such a part of the values.
const PARTS: usize = 8;

/// An edge for each of the former, one below, and the bins above and for NaN.
const BINS_MAX: usize = DISTINCT_MAX + 3;

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
        let mut edges = values.clone();
        edges.dedup();
        if edges.len() > DISTINCT_MAX {
            edges = (1..=PARTS).map(|part| values[part * values.len() / PARTS - 1]).collect();
            edges.dedup();
        }
        if let Some(smallest) = values.first() {
            edges.insert(0, smallest.next_down());
        }
        Self { edges, counts: [0; BINS_MAX] }
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
    }
}
