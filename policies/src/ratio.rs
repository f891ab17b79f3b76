//! Whether counts contradict the shares that somebody has declared for them, asked as often as one likes.
//!
//! Of units that were assigned independently of each other, so many went to each version. The evidence is what bets on other
//! shares have made of 1 so far: each is a Dirichlet-multinomial whose mean is the declared shares, over the multinomial of
//! those (Lindon and Malek, 2022). While the shares are as declared its expectation is 1, so that it ever reaches `1/α` with
//! probability at most `α`, whenever and however often one looks. The bets stray from the declared shares by much or by
//! little and have an equal part of the stake. Only the counts matter, not the order in which they came, so nothing has to
//! be computed when a request comes.

/// How many units each bet takes the declared shares to be worth: one of 10 expects shares that are far off, one of 100,000
/// such that are off by a few in a thousand.
const WORTH: [f64; 5] = [1e1, 1e2, 1e3, 1e4, 1e5];

/// What the bets have made of 1; at least `1/α` means, with a confidence of `1 − α`, that these are not the shares. Each share
/// is above 0, and all add up to 1.
pub(crate) fn evidence(counts: &[u64], shares: &[f64]) -> f64 {
    debug_assert_eq!(counts.len(), shares.len(), "a count for each share");
    let all: u64 = counts.iter().sum();
    let bet = |worth: f64| {
        let one = |(count, share): (&u64, &f64)| {
            let count = *count as f64;
            ln_gamma(worth * share + count) - ln_gamma(worth * share) - count * share.ln()
        };
        let won: f64 = counts.iter().zip(shares).map(one).sum();
        (won + ln_gamma(worth) - ln_gamma(worth + all as f64)).exp()
    };
    WORTH.map(bet).iter().sum::<f64>() / WORTH.len() as f64
}

/// Of a positive number, by Stirling's series, which is exact to twelve digits from 10 on.
fn ln_gamma(number: f64) -> f64 {
    // Γ(x) = Γ(x + 1) / x
    let (mut above, mut product) = (number, 1.0);
    while above < 10.0 {
        product *= above;
        above += 1.0;
    }
    let inverse = 1.0 / above;
    let square = inverse * inverse;
    let rest = inverse * (1.0 / 12.0 - square * (1.0 / 360.0 - square * (1.0 / 1260.0 - square / 1680.0)));
    (above - 0.5) * above.ln() - above + 0.5 * (2.0 * std::f64::consts::PI).ln() + rest - product.ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gamma_is_that_of_the_tables() {
        for (number, expected) in [
            (0.5, 0.572_364_942_924_700_1),
            (1.0, 0.0),
            (2.0, 0.0),
            (1e-5, 11.512_919_692_895_825),
            (10.0, 12.801_827_480_081_469),
            (171.0, 706.573_062_245_787_4),
            (1e6, 12_815_504.569_147_77),
        ] {
            let got = ln_gamma(number);
            assert!((got - expected).abs() <= 1e-11 * f64::abs(expected).max(1.0), "{number}: {got}");
        }
    }

    #[test]
    fn nothing_is_shown_by_nothing_nor_where_there_is_one_version() {
        assert!((evidence(&[0, 0], &[0.9, 0.1]) - 1.0).abs() < 1e-9);
        assert!((evidence(&[1_000_000], &[1.0]) - 1.0).abs() < 1e-6);
    }

    /// Its expectation over all that may come, computed and not drawn.
    #[test]
    fn the_bets_are_fair() {
        for (share, units) in [(0.5_f64, 40), (0.1, 60), (0.001, 30)] {
            let shares = [1.0 - share, share];
            let mut mean = 0.0;
            for of_second in 0..=units {
                let (of_second, units) = (of_second as f64, units as f64);
                let ways =
                    ln_gamma(units + 1.0) - ln_gamma(of_second + 1.0) - ln_gamma(units - of_second + 1.0);
                let chance =
                    (ways + of_second * share.ln() + (units - of_second) * f64::ln(1.0 - share)).exp();
                mean += chance * evidence(&[(units - of_second) as u64, of_second as u64], &shares);
            }
            assert!((mean - 1.0).abs() < 1e-9, "{mean} at a share of {share}");
        }
    }

    #[test]
    fn large_counts_are_judged_as_well() {
        let right = evidence(&[900_000_000_000, 100_000_000_000], &[0.9, 0.1]);
        assert!(right > 0.0 && right < 1e-2, "{right}");
        assert!(evidence(&[901_000_000, 99_000_000], &[0.9, 0.1]) > 1e9);
    }
}
