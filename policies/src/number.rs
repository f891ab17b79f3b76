//! A number as it stands in a policy file, or whatever stands there in its place. What would do, whoever asks for it knows: so what does
//! not is refused with its place and with what was expected there, beside all other mistakes, and reading goes on.

use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// Up to this, whole numbers are told apart that are written with a point or an exponent.
const EXACT_MAX: f64 = 9_007_199_254_740_992.0;

/// What stands where a number is expected.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Number {
    /// A whole one from 0.
    Whole(u64),
    /// Any other, or none that there is.
    Other(f64),
    /// No number, but this.
    Not(String),
}

impl Number {
    /// If it is whole and from 0.
    pub(crate) fn whole(&self) -> Option<u64> {
        match self {
            Self::Whole(number) => Some(*number),
            Self::Other(_) | Self::Not(_) => None,
        }
    }

    pub(crate) fn float(&self) -> Option<f64> {
        match self {
            Self::Whole(number) => Some(*number as f64),
            Self::Other(number) => Some(*number),
            Self::Not(_) => None,
        }
    }
}

impl From<f64> for Number {
    /// `5.0` is `5`.
    fn from(number: f64) -> Self {
        let is_whole = number.fract() == 0.0 && (0.0..=EXACT_MAX).contains(&number);
        if is_whole { Self::Whole(number as u64) } else { Self::Other(number) }
    }
}

/// What came, as its author would say it.
impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole(number) => number.fmt(f),
            // Not with hundreds of digits.
            Self::Other(number) if number.is_finite() && !(1e-9..1e21).contains(&number.abs()) => {
                write!(f, "{number:e}")
            }
            Self::Other(number) => number.fmt(f),
            Self::Not(what) => f.write_str(what),
        }
    }
}

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Anything;

        impl<'de> Visitor<'de> for Anything {
            type Value = Number;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number")
            }

            fn visit_u64<E>(self, number: u64) -> Result<Number, E> {
                Ok(Number::Whole(number))
            }

            fn visit_i64<E>(self, number: i64) -> Result<Number, E> {
                Ok(u64::try_from(number).map_or(Number::Other(number as f64), Number::Whole))
            }

            fn visit_f64<E>(self, number: f64) -> Result<Number, E> {
                Ok(number.into())
            }

            fn visit_bool<E>(self, value: bool) -> Result<Number, E> {
                Ok(Number::Not(format!("`{value}`")))
            }

            fn visit_str<E>(self, text: &str) -> Result<Number, E> {
                Ok(Number::Not(format!("the text `{text}`")))
            }

            fn visit_unit<E>(self) -> Result<Number, E> {
                Ok(Number::Not("nothing".into()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Number, A::Error> {
                while list.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Number::Not("a list".into()))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut mapping: A) -> Result<Number, A::Error> {
                while mapping.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Number::Not("a mapping".into()))
            }
        }

        deserializer.deserialize_any(Anything)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_is_told_as_it_was_written_or_in_fewer_digits() {
        for (text, told) in [
            ("5", "5"),
            ("5.0", "5"),
            ("1e3", "1000"),
            ("-1", "-1"),
            ("0.0001", "0.0001"),
            ("18446744073709551615", "18446744073709551615"),
            ("1e300", "1e300"),
            ("-1e300", "-1e300"),
            ("1e-300", "1e-300"),
            ("\"5\"", "the text `5`"),
            ("null", "nothing"),
            ("true", "`true`"),
            ("[1, [2]]", "a list"),
            ("{\"a\": [1]}", "a mapping"),
        ] {
            let number: Number = serde_json::from_str(text).unwrap();
            assert_eq!(number.to_string(), told, "{text}");
        }
        assert_eq!([5.0, 5.5, -5.0].map(|number| Number::from(number).whole()), [Some(5), None, None]);
    }
}
