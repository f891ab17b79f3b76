//! Which requests another version gets a copy of, and how its answers are compared.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::units::{Millionths, Version};

/// A shadow as the policy states it.
#[derive(Debug, PartialEq, Eq)]
pub struct ShadowPolicy {
    pub(crate) version: Version,
    /// Of the answered requests.
    pub(crate) share: Millionths,
    pub(crate) in_flight_max: NonZeroU32,
    pub(crate) deadline: Option<Duration>,
    pub(crate) comparison: Comparison,
}

/// When two answers are the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Comparison {
    /// Of outputs that nothing else is said of.
    pub(crate) tolerance: Tolerance,
    /// Outputs of which only the place of the largest value counts.
    pub(crate) argmax: Vec<String>,
    /// Outputs that have a tolerance of their own.
    #[serde(default)]
    pub(crate) outputs: BTreeMap<String, Tolerance>,
}

/// By how much two numbers may differ: absolutely, plus relative to the larger one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Tolerance {
    /// Bits of a finite number that is not negative, so that policies can be compared.
    absolute: u64,
    relative: u64,
}

impl Tolerance {
    pub(crate) fn new(absolute: f64, relative: f64) -> Self {
        // A negative zero is zero.
        let bits = |number: f64| (number + 0.0).to_bits();
        Self { absolute: bits(absolute), relative: bits(relative) }
    }

    /// In the unit of the output.
    pub fn absolute(self) -> f64 {
        f64::from_bits(self.absolute)
    }

    /// As a part of the larger value.
    pub fn relative(self) -> f64 {
        f64::from_bits(self.relative)
    }

    /// Whether two numbers may differ by so much, of which the larger one is `larger`, whatever its sign.
    pub fn allows(self, difference: f64, larger: f64) -> bool {
        difference <= self.absolute() + self.relative() * larger
    }
}

impl ShadowPolicy {
    /// The version that gets the copies.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Whether a request with this draw is copied; draws are evenly distributed.
    pub fn takes(&self, draw: u64) -> bool {
        (u128::from(draw) * 1_000_000) >> 64 < u128::from(self.share)
    }

    /// Copies under way at a time.
    pub fn in_flight_max(&self) -> u32 {
        self.in_flight_max.get()
    }

    /// How long a copy may take; else as long as its request.
    pub fn deadline(&self) -> Option<Duration> {
        self.deadline
    }

    /// By how much numbers with a fraction may differ, of an output that nothing else is said of.
    pub fn tolerance(&self) -> Tolerance {
        self.comparison.tolerance
    }

    /// By how much the numbers of this output may differ, whole ones as well, if it has bounds of its own.
    pub fn tolerance_of(&self, output: &str) -> Option<Tolerance> {
        self.comparison.outputs.get(output).copied()
    }

    /// Whether of this output only the place of the largest value counts.
    pub fn is_by_argmax(&self, output: &str) -> bool {
        self.comparison.argmax.iter().any(|name| name == output)
    }
}
