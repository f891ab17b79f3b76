//! `preprocess` of a `model.yaml`, as its author writes it. Decides what can be written; whether that fits the model is
//! found out in `image.rs` and `text.rs`.
//!
//! ```yaml
//! preprocess:
//!   image: {input: image, to: x, resize: 256, crop: 224, interpolation: bilinear,
//!           mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225], pixels_max: 50000000}
//!   text: {input: text, ids: input_ids, mask: attention_mask, types: token_type_ids, length_max: 128, truncate: true}
//! ```

use super::resample::Interpolation;
use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::fmt;

/// What is declared; each is one raw input.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Declared {
    pub(super) image: Option<Image>,
    pub(super) text: Option<Text>,
}

/// Defaults are those of torchvision's transforms for ImageNet.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Image {
    /// What callers send.
    pub(super) input: RawName,
    /// The model's input; may be left out if it has but one.
    pub(super) to: Option<String>,
    pub(super) resize: Resize,
    /// Height and width of the middle that is kept; that of the model's input unless it is said.
    pub(super) crop: Option<Sides>,
    pub(super) interpolation: Interpolation,
    pub(super) mean: [f32; 3],
    pub(super) std: Deviations,
    /// A file with more is refused by its head.
    pub(super) pixels_max: u64,
}

impl Default for Image {
    fn default() -> Self {
        Self {
            input: RawName("image".into()),
            to: None,
            resize: Resize::ShorterSide(256),
            crop: None,
            interpolation: Interpolation::Bilinear,
            mean: [0.485, 0.456, 0.406],
            std: Deviations([0.229, 0.224, 0.225]),
            pixels_max: 50_000_000,
        }
    }
}

/// Defaults are the names that transformers gives to the inputs of its models.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Text {
    /// What callers send.
    #[serde(default = "text")]
    pub(super) input: RawName,
    /// Inputs of the model. The latter two are made if the model has them.
    #[serde(default = "input_ids")]
    pub(super) ids: String,
    pub(super) mask: Option<String>,
    pub(super) types: Option<String>,
    /// Tokens, with those that stand for the beginning and the end.
    pub(super) length_max: Length,
    /// Whether what is longer is cut, or refused.
    #[serde(default = "yes")]
    pub(super) truncate: bool,
    /// A longer text is refused before anything is done with it.
    #[serde(default = "bytes_max")]
    pub(super) bytes_max: usize,
}

fn text() -> RawName {
    RawName("text".into())
}

fn input_ids() -> String {
    "input_ids".into()
}

fn yes() -> bool {
    true
}

fn bytes_max() -> usize {
    256 << 10
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct RawName(pub(super) String);

impl TryFrom<String> for RawName {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        match name.len() {
            1..=128 => Ok(Self(name)),
            length => Err(format!("input has a name of {length} bytes, must have 1 to 128")),
        }
    }
}

/// Positive: pixels are divided by them.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(try_from = "[f32; 3]")]
pub(super) struct Deviations(pub(super) [f32; 3]);

impl TryFrom<[f32; 3]> for Deviations {
    type Error = String;

    fn try_from(std: [f32; 3]) -> Result<Self, String> {
        if std.iter().all(|value| value.is_finite() && *value > 0.0) {
            Ok(Self(std))
        } else {
            Err(format!("std {std:?} must be above 0"))
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(try_from = "u64")]
pub(super) struct Length(pub(super) usize);

impl TryFrom<u64> for Length {
    type Error = String;

    fn try_from(length: u64) -> Result<Self, String> {
        match length {
            1..=1_048_576 => Ok(Self(length as usize)),
            _ => Err(format!("length_max {length} must be 1 to 1048576")),
        }
    }
}

/// Pixels of a height and a width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sides {
    pub(super) height: usize,
    pub(super) width: usize,
}

/// How large an image is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Resize {
    /// Its proportions are kept.
    ShorterSide(usize),
    /// They are not.
    To(Sides),
}

/// No side is larger.
const SIDE_MAX: u64 = 4096;

fn side<E: Error>(pixels: u64) -> Result<usize, E> {
    match pixels {
        1..=SIDE_MAX => Ok(pixels as usize),
        _ => Err(E::custom(format!("{pixels} pixels must be 1 to {SIDE_MAX}"))),
    }
}

/// A number, or a height and a width.
enum Numbers {
    One(usize),
    Two(Sides),
}

impl<'de> Deserialize<'de> for Numbers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrTwo;

        impl<'de> Visitor<'de> for OneOrTwo {
            type Value = Numbers;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of pixels, or [height, width]")
            }

            fn visit_u64<E: Error>(self, pixels: u64) -> Result<Numbers, E> {
                side(pixels).map(Numbers::One)
            }

            fn visit_i64<E: Error>(self, pixels: i64) -> Result<Numbers, E> {
                self.visit_u64(u64::try_from(pixels).unwrap_or(0))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Numbers, A::Error> {
                let mut next = |at| items.next_element()?.ok_or_else(|| A::Error::invalid_length(at, &self));
                let (height, width) = (side(next(0)?)?, side(next(1)?)?);
                match items.next_element::<u64>()? {
                    None => Ok(Numbers::Two(Sides { height, width })),
                    Some(_) => Err(A::Error::invalid_length(3, &self)),
                }
            }
        }

        deserializer.deserialize_any(OneOrTwo)
    }
}

impl<'de> Deserialize<'de> for Resize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Numbers::deserialize(deserializer).map(|numbers| match numbers {
            Numbers::One(shorter) => Self::ShorterSide(shorter),
            Numbers::Two(sides) => Self::To(sides),
        })
    }
}

impl<'de> Deserialize<'de> for Sides {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Numbers::deserialize(deserializer).map(|numbers| match numbers {
            Numbers::One(side) => Self { height: side, width: side },
            Numbers::Two(sides) => sides,
        })
    }
}
