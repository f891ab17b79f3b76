//! How far apart two distributions are, by how often samples of each fell into the same bins: the Jensen–Shannon
//! divergence, 0 where they are the same and 1 bit where they have nothing in common, and between what it lies. No clock,
//! no tensor.
//!
//! The population stability index, which is more common, is not bounded, is infinite as soon as a bin is empty, and grows
//! by the number of bins over that of the rows where nothing has changed (Yurdakul and Naranjo, Statistical properties of
//! the population stability index, Journal of Risk Model Validation 14(4), 2020): with ten bins and a hundred rows on both
//! sides it is 0.18 on average, of which the rule of thumb says that something has shifted. The divergence is bounded and
//! takes empty bins as they are. It has the same bias, which is known and taken off; and it says nothing unless it is
//! larger than chance would make it, by a bound that holds for any number of rows, however few, and any distribution.

/// How certain `least` and `most` are: standard errors on the scale of the root of the divergence, where these depend on
/// nothing but the number of rows.
const ERRORS_BELOW: f64 = 4.0;
const ERRORS_ABOVE: f64 = 3.0;

/// How far apart two distributions are, in bits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Divergence {
    /// The best guess.
    pub(crate) bits: f64,
    /// It is at least so much; 0 unless it is shown that they differ at all.
    pub(crate) least: f64,
    /// It is at most so much; 1 where nothing is known.
    pub(crate) most: f64,
}

impl Divergence {
    /// Nobody knows.
    pub(crate) const UNKNOWN: Self = Self { bits: 0.0, least: 0.0, most: 1.0 };

    /// Between two samples, by the bins into which they fell. `least` is above 0 by chance in at most one of `1 / chance`
    /// comparisons of samples of the same distribution.
    pub(crate) fn between(one: &[u32], other: &[u32], chance: f64) -> Self {
        let (n, m) = (total(one), total(other));
        if n == 0.0 || m == 0.0 {
            return Self::UNKNOWN;
        }
        // Of two samples of `n` and `m` rows the root of the divergence (nats) has this standard error (delta method).
        let error = ((1.0 / n + 1.0 / m) / 8.0).sqrt();
        let used = one.iter().zip(other).filter(|(one, other)| **one + **other > 0).count();
        let bias = used.saturating_sub(1) as f64 * error * error;
        let shares = |counts: &[u32], total: f64| -> Vec<f64> {
            counts.iter().map(|count| f64::from(*count) / total).collect()
        };
        let found = jensen_shannon(&shares(one, n), &shares(other, m));
        let unbiased = (found - bias).max(0.0);
        let least = match is_beyond_chance(one, other, chance) {
            true => (unbiased.sqrt() - ERRORS_BELOW * error).max(0.0).powi(2),
            false => 0.0,
        };
        let most = (found.sqrt() + ERRORS_ABOVE * error).powi(2);
        let bits = |nats: f64| (nats / std::f64::consts::LN_2).min(1.0);
        Self { bits: bits(unbiased), least: bits(least), most: bits(most) }
    }
}

fn total(counts: &[u32]) -> f64 {
    counts.iter().map(|count| f64::from(*count)).sum()
}

/// In nats, of two distributions over the same bins (Lin, Divergence measures based on the Shannon entropy, 1991).
fn jensen_shannon(one: &[f64], other: &[f64]) -> f64 {
    let term = |share: f64, middle: f64| if share > 0.0 { share * (share / middle).ln() } else { 0.0 };
    let pairs = one.iter().zip(other);
    let sum: f64 = pairs.map(|(p, q)| term(*p, (p + q) / 2.0) + term(*q, (p + q) / 2.0)).sum();
    (sum / 2.0).max(0.0)
}

/// Whether chance alone makes two samples of the same distribution so different in at most one of `1 / chance` cases.
///
/// What is compared is the sum of both samples' relative entropies to what they are together, each times its rows. To what
/// both really come from it could only be larger; and of a sample of `n` rows in `k` bins, `n` times that has a moment
/// generating function of at most `(1 − t)^(1 − k)` (Agrawal, Finite-sample concentration of the multinomial in relative
/// entropy, IEEE Transactions on Information Theory 66(10), 2020, arXiv 1904.02291). Chernoff's bound does the rest. It
/// holds for any number of rows and for empty bins, where the usual χ² needs some rows in each; that takes up to twice as
/// many rows to find the same.
fn is_beyond_chance(one: &[u32], other: &[u32], chance: f64) -> bool {
    let (n, m) = (total(one), total(other));
    let mut entropy = 0.0;
    for (a, b) in one.iter().zip(other).map(|(a, b)| (f64::from(*a), f64::from(*b))) {
        let together = (a + b) / (n + m);
        for (count, rows) in [(a, n), (b, m)] {
            if count > 0.0 {
                entropy += count * (count / rows / together).ln();
            }
        }
    }
    let freedom = 2.0 * one.len().saturating_sub(1) as f64;
    entropy > freedom && entropy - freedom - freedom * (entropy / freedom).ln() > -chance.ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_known_for_what_can_be_computed_by_hand() {
        let same = Divergence::between(&[1000, 1000], &[500, 500], 1e-7);
        assert_eq!((same.bits, same.least), (0.0, 0.0));
        let apart = Divergence::between(&[100_000, 0], &[0, 100_000], 1e-7);
        assert!(apart.bits > 0.9999 && apart.least > 0.95 && apart.most == 1.0, "{apart:?}");
        // Of (1, 0) and (½, ½) it is ½·log2(4/3) + ¼·log2(2/3) + ¼·log2(2) = 0.3113.
        let half = Divergence::between(&[1_000_000, 0], &[500_000, 500_000], 1e-7);
        assert!((half.bits - 0.3113).abs() < 1e-3, "{half:?}");
        assert!(half.least < half.bits && half.bits < half.most, "{half:?}");
    }

    #[test]
    fn nothing_and_next_to_nothing_are_not_known_to_differ() {
        assert_eq!(Divergence::between(&[0, 0], &[5, 5], 1e-7), Divergence::UNKNOWN);
        assert_eq!(Divergence::between(&[5, 5], &[0, 0], 1e-7), Divergence::UNKNOWN);
        for rows in 1..20 {
            let few = Divergence::between(&[1000, 0, 0, 0], &[0, rows, 0, 0], 1e-7);
            assert_eq!(few.least > 0.0, rows > 5, "{rows} rows: {few:?}");
        }
    }
}
