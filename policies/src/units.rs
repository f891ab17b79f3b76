//! The quantities a policy is written in: versions, weights, rates, durations.
//!
//! Each is parsed once, into a type that cannot hold a wrong value; nothing downstream checks again. What does not
//! fit is refused with the text that came and an example of what would do. Nothing is rounded into place silently.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::time::Duration;

use compact_str::CompactString;
use serde::{Deserialize, Serialize};

/// A version of a model: an integer from 1, as on the wire and in the repository's folder names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Version(pub u64);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Version {
    type Err = UnitError;

    /// Reads the one spelling of a version: decimal digits, no sign, no leading zero, at least 1.
    fn from_str(text: &str) -> Result<Self, UnitError> {
        let refused = || UnitError::Version(text.to_owned());
        if text.starts_with('0') || !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(refused());
        }
        text.parse().map(Version).map_err(|_| refused())
    }
}

/// A name that a policy gives to a version. The usual ones, of up to 24 bytes, lie where they are used: a request that passes one
/// on counts nobody's references.
pub type Label = CompactString;

/// A share of the requests, in millionths.
pub(crate) type Millionths = u32;

/// All of them.
pub(crate) const ALL: Millionths = 1_000_000;

pub(crate) fn share_of_all(share: Millionths) -> f64 {
    f64::from(share) / f64::from(ALL)
}

/// As people read it.
pub(crate) fn percent(share: Millionths) -> f64 {
    f64::from(share) / 10_000.0
}

/// An arm's part of a split before it is divided by the sum of all weights, in millionths.
///
/// Either 0 or from 0.000001 to 1,000,000, with at most six significant digits. Kept as an integer so that shares are
/// exact and a sum of weights cannot overflow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Weight(u64);

impl Weight {
    const LARGEST: f64 = 1e6;

    pub(crate) fn millionths(self) -> u64 {
        self.0
    }
}

impl TryFrom<f64> for Weight {
    type Error = UnitError;

    fn try_from(number: f64) -> Result<Self, UnitError> {
        if !(0.0..=Self::LARGEST).contains(&number) {
            return Err(UnitError::WeightRange(number.to_string()));
        }
        // Division rounds correctly, so the round trip holds for exactly the numbers that are written with at most six
        // decimals: both sides are the double next to the same decimal.
        let millionths = (number * 1e6).round();
        if millionths / 1e6 != number {
            return Err(UnitError::WeightPrecision(number));
        }
        let millionths = millionths as u64;
        let mut digits = millionths;
        while digits >= 1_000_000 && digits.is_multiple_of(10) {
            digits /= 10;
        }
        if digits >= 1_000_000 {
            return Err(UnitError::WeightPrecision(number));
        }
        Ok(Self(millionths))
    }
}

/// How often something may happen: a count per second, minute or hour, written `100/s`, `6000/m` or `10/h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    count: NonZeroU32,
    per: Period,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Period {
    Second,
    Minute,
    Hour,
}

impl Rate {
    /// The number before the slash.
    pub fn count(&self) -> NonZeroU32 {
        self.count
    }

    /// The time from one arrival to the next at exactly this rate, rounded up to a whole nanosecond so that the rate
    /// is never exceeded.
    pub fn interval(&self) -> Duration {
        Duration::from_nanos((self.seconds() * 1_000_000_000).div_ceil(u64::from(self.count.get())))
    }

    /// How many these are in a second, for those who look.
    pub fn per_second(&self) -> f64 {
        f64::from(self.count.get()) / self.seconds() as f64
    }

    fn seconds(&self) -> u64 {
        match self.per {
            Period::Second => 1,
            Period::Minute => 60,
            Period::Hour => 3600,
        }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = match self.per {
            Period::Second => "s",
            Period::Minute => "m",
            Period::Hour => "h",
        };
        write!(f, "{}/{unit}", self.count)
    }
}

impl FromStr for Rate {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let refused = || UnitError::Rate(text.to_owned());
        let (count, unit) = text.split_once('/').ok_or_else(refused)?;
        if !count.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(refused());
        }
        let per = match unit {
            "s" => Period::Second,
            "m" => Period::Minute,
            "h" => Period::Hour,
            _ => return Err(refused()),
        };
        if count.is_empty() {
            return Err(refused());
        }
        let count = count.parse().map_err(|_| UnitError::RateRange(text.to_owned()))?;
        let count = NonZeroU32::new(count).ok_or_else(|| UnitError::Zero(text.to_owned()))?;
        Ok(Self { count, per })
    }
}

/// Reads a duration from 1ms to 24h: a whole number and `ms`, `s`, `m` or `h`.
///
/// # Errors
/// [`UnitError::Duration`] for another spelling, [`UnitError::DurationRange`] for zero and for more than a day.
pub fn duration(text: &str) -> Result<Duration, UnitError> {
    const DAY_MS: u64 = 24 * 60 * 60 * 1000;
    let refused = || UnitError::Duration(text.to_owned());
    let unit_at = text.find(|letter: char| !letter.is_ascii_digit()).ok_or_else(refused)?;
    let (number, unit) = text.split_at(unit_at);
    let unit_ms: u64 = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60 * 1000,
        "h" => 60 * 60 * 1000,
        _ => return Err(refused()),
    };
    let number: u64 = number.parse().map_err(|_| refused())?;
    match number.saturating_mul(unit_ms) {
        ms @ 1..=DAY_MS => Ok(Duration::from_millis(ms)),
        _ => Err(UnitError::DurationRange(text.to_owned())),
    }
}

/// Why a quantity was refused; each message says what was expected and what came.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum UnitError {
    /// Not a version number.
    #[error("expected a version number from 1, got `{0}`")]
    Version(String),
    /// Negative, too large or not a number.
    #[error("expected a weight from 0 to 1000000, got {0}")]
    WeightRange(String),
    /// More digits than are kept.
    #[error("expected a weight with at most six significant digits and six decimals, got {0}")]
    WeightPrecision(f64),
    /// Not a rate.
    #[error("expected a rate such as `100/s`, `6000/m` or `10/h`, got `{0}`")]
    Rate(String),
    /// More than is counted.
    #[error("expected at most {max} in the unit of a rate, got `{0}`", max = u32::MAX)]
    RateRange(String),
    /// Not a duration.
    #[error("expected a duration such as `500ms`, `2s`, `1m` or `1h`, got `{0}`")]
    Duration(String),
    /// Zero, or longer than a day.
    #[error("expected a duration from 1ms to 24h, got `{0}`")]
    DurationRange(String),
    /// A zero where nothing would ever pass.
    #[error("must be at least 1, got `{0}`")]
    Zero(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_has_one_spelling() {
        assert_eq!("2".parse(), Ok(Version(2)));
        assert_eq!(Version(2).to_string(), "2");
        for text in ["0", "02", "+2", "-1", "", "2.0", "v2", "18446744073709551616"] {
            assert_eq!(text.parse::<Version>(), Err(UnitError::Version(text.to_owned())));
        }
    }

    #[test]
    fn weights_are_exact_decimals() {
        for (number, millionths) in [
            (0.0, 0),
            (90.0, 90_000_000),
            (0.1, 100_000),
            (0.000001, 1),
            (12.3456, 12_345_600),
            (1e6, 1_000_000_000_000),
        ] {
            assert_eq!(Weight::try_from(number), Ok(Weight(millionths)));
        }
        for number in [0.0000001, 1.0 / 3.0, 123456.7] {
            assert_eq!(Weight::try_from(number), Err(UnitError::WeightPrecision(number)));
        }
        for number in [-1.0, 1e6 + 1.0, f64::INFINITY] {
            assert_eq!(Weight::try_from(number), Err(UnitError::WeightRange(number.to_string())));
        }
        assert!(Weight::try_from(f64::NAN).is_err());
    }

    #[test]
    fn a_rate_is_never_exceeded_by_rounding() {
        let rate: Rate = "3/s".parse().unwrap();
        assert_eq!(rate.interval(), Duration::from_nanos(333_333_334));
        assert_eq!("6000/m".parse::<Rate>().unwrap().interval(), Duration::from_millis(10));
        assert_eq!("10/h".parse::<Rate>().unwrap().to_string(), "10/h");
    }

    #[test]
    fn a_rate_of_nothing_is_refused() {
        assert_eq!("0/s".parse::<Rate>(), Err(UnitError::Zero("0/s".to_owned())));
        for text in ["100", "/s", "1.5/s", "-1/s", "+1/s", "1/d", "1/s "] {
            assert_eq!(text.parse::<Rate>(), Err(UnitError::Rate(text.to_owned())));
        }
        let too_many = "4294967296/s".parse::<Rate>().unwrap_err().to_string();
        assert_eq!(too_many, "expected at most 4294967295 in the unit of a rate, got `4294967296/s`");
    }

    #[test]
    fn durations_name_their_unit() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("2s"), Ok(Duration::from_secs(2)));
        assert_eq!(duration("24h"), Ok(Duration::from_secs(86_400)));
        for text in ["2", "s", "", "1.5s", "2 s", "2sec", "99999999999999999999s"] {
            assert_eq!(duration(text), Err(UnitError::Duration(text.to_owned())));
        }
        for text in ["0s", "25h"] {
            assert_eq!(duration(text), Err(UnitError::DurationRange(text.to_owned())));
        }
    }
}
