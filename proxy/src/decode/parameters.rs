//! The parameters of a request and of its tensors that mean something here. Decides what they may be, and names one that is not;
//! others are let pass.

use serde::de::{Error, IgnoredAny, Visitor};
use serde::{Deserialize, Deserializer};
use std::fmt;

/// Of the request; others are the model's or a future extension's.
#[derive(Deserialize, Default)]
#[serde(default)]
pub(super) struct RequestParameters {
    #[serde(deserialize_with = "binary_data_output")]
    pub(super) binary_data_output: Option<bool>,
    /// Microseconds, as in Triton's schedule policy; 0 means none.
    #[serde(deserialize_with = "timeout")]
    pub(super) timeout: Option<u64>,
    /// As in Triton's schedule policy, where 1 is the highest and 0 means the default.
    #[serde(deserialize_with = "priority")]
    pub(super) priority: Option<u32>,
    /// A number or a text; 0 and the empty one mean none.
    pub(super) sequence_id: serde_json::Value,
}

impl RequestParameters {
    pub(super) fn is_of_a_sequence(&self) -> bool {
        match &self.sequence_id {
            serde_json::Value::Null => false,
            serde_json::Value::String(id) => !id.is_empty(),
            id => *id != 0,
        }
    }
}

#[derive(Deserialize, Default)]
#[serde(default)]
pub(super) struct TensorParameters {
    pub(super) shared_memory_region: Option<IgnoredAny>,
    #[serde(deserialize_with = "binary_data_size")]
    pub(super) binary_data_size: Option<usize>,
    #[serde(deserialize_with = "binary_data")]
    pub(super) binary_data: Option<bool>,
    /// As in Triton, 0 asks for none.
    #[serde(deserialize_with = "classification")]
    pub(super) classification: u32,
}

/// Reads a parameter; a wrong one is told by its name.
macro_rules! parameter {
    ($name:ident: $kind:ty, $expected:literal) => {
        fn $name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<$kind, D::Error> {
            let wrong = |got: &str| {
                D::Error::custom(format_args!(
                    "parameter `{}`: expected {}, got {got}",
                    stringify!($name),
                    $expected
                ))
            };
            let value =
                deserializer.deserialize_any(Scalar).map_err(|_| wrong("an array, an object or no JSON"))?;
            <$kind>::deserialize(&value).map_err(|_| {
                let got = value.to_string();
                wrong(&got[..got.floor_char_boundary(40)])
            })
        }
    };
}

/// What has no parts: a parameter is not to take more memory than its length.
struct Scalar;

impl Visitor<'_> for Scalar {
    type Value = serde_json::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number, a text, true, false or null")
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(serde_json::Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Self::Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Self::Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Self::Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Self::Value, E> {
        Ok(value.into())
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Self::Value, E> {
        Ok(value[..value.floor_char_boundary(64)].into())
    }
}

parameter!(binary_data_output: Option<bool>, "true or false");
parameter!(timeout: Option<u64>, "a whole number of microseconds");
parameter!(priority: Option<u32>, "a whole number from 0 to 4294967295");
parameter!(binary_data_size: Option<usize>, "a whole number of bytes");
parameter!(binary_data: Option<bool>, "true or false");
parameter!(classification: u32, "a whole number from 0 to 4294967295");
