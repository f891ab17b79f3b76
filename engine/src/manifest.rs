//! `model.yaml`: what a version takes and gives, as its author declares it, compared with what the model's own
//! signature says. Decides what is wrong with either, by name and line; never opens a file or runs a model.
//!
//! ```yaml
//! inputs:
//!   - {name: pixels, datatype: FP32, shape: [-1, 64]}
//! outputs:
//!   - {name: probabilities, datatype: FP32, shape: [-1, 10], labels: ["0", "1"]}
//! max_batch: 64
//! ```

mod error;

pub use error::ManifestError;

use crate::model::{Dimension, Form, Named, RANK_MAX, Rows, Slot, Spec, Tolerance};
use crate::postprocess;
use crate::preprocess::Declared;
use crate::values::integers;
use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::num::NonZeroU64;
use wire::Datatype;

/// What a `model.yaml` says.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    inputs: Vec<Tensor>,
    outputs: Vec<Tensor>,
    #[serde(default)]
    max_batch: MaxBatch,
    tolerance: Option<DeclaredTolerance>,
    /// Whether it may compute with floats of 16 bits, if that is faster and within the tolerance.
    #[serde(default)]
    bf16: bool,
    /// Whether answers depend on earlier requests, which made-up rows may not show.
    #[serde(default)]
    stateful: bool,
    /// What is declared of dimensions that have a name.
    #[serde(default)]
    dimensions: BTreeMap<String, Padding>,
    preprocess: Option<Declared>,
    /// What its outputs mean.
    postprocess: Option<postprocess::Declared>,
}

/// How requests are padded along a dimension.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Padding {
    #[serde(default)]
    pad_to: PadTo,
    #[serde(default = "half")]
    waste_max: Share,
    /// A request that is longer is refused.
    max: Option<NonZeroU64>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(try_from = "Vec<u64>")]
struct PadTo(Vec<u64>);

#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(try_from = "f64")]
struct Share(f64);

/// A number that any of the integer datatypes may hold.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Whole(i128);

impl<'de> Deserialize<'de> for Whole {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl Visitor<'_> for Any {
            type Value = Whole;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number of 64 bits")
            }

            fn visit_i64<E: Error>(self, number: i64) -> Result<Whole, E> {
                Ok(Whole(number.into()))
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<Whole, E> {
                Ok(Whole(number.into()))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

/// Whole numbers up to it are what they are as doubles.
const EXACT_MAX: f64 = 9_007_199_254_740_992.0;

fn half() -> Share {
    Share(0.5)
}

impl TryFrom<Vec<u64>> for PadTo {
    type Error = String;

    fn try_from(sizes: Vec<u64>) -> Result<Self, String> {
        let rises = sizes.is_sorted_by(|one, other| one < other);
        let fit = sizes.iter().all(|size| (1..=1 << 20).contains(size));
        if sizes.is_empty() || !fit || !rises || sizes.len() > 64 {
            return Err(format!("pad_to {sizes:?} must be 1 to 64 rising sizes, from 1 to 1048576"));
        }
        Ok(Self(sizes))
    }
}

impl TryFrom<f64> for Share {
    type Error = String;

    fn try_from(share: f64) -> Result<Self, String> {
        if (0.0..1.0).contains(&share) {
            Ok(Self(share))
        } else {
            Err(format!("waste_max {share} must be at least 0 and less than 1"))
        }
    }
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Tensor {
    name: Name,
    datatype: DatatypeName,
    shape: Vec<Size>,
    #[serde(default)]
    labels: Vec<String>,
    /// Of an output: a row that is not finite is an error.
    #[serde(default)]
    finite: bool,
    /// Of an input of integers, included.
    min: Option<Whole>,
    max: Option<Whole>,
    /// Of an input: the value that is padded with.
    pad: Option<f64>,
    /// Of an input: whether it says what is padding.
    #[serde(default)]
    mask: bool,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(try_from = "String")]
struct Name(String);

#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(try_from = "String")]
struct DatatypeName(Datatype);

/// -1, a size, or a name.
#[derive(Clone, Debug, PartialEq)]
enum Size {
    Number(Dimension),
    Name(String),
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnySize;

        impl Visitor<'_> for AnySize {
            type Value = Size;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("-1, a size or a name (in quotes where YAML knows another word in it, as in `n`)")
            }

            fn visit_i64<E: Error>(self, size: i64) -> Result<Size, E> {
                match size {
                    -1 => Ok(Size::Number(Dimension::Free)),
                    1.. => Ok(Size::Number(Dimension::Fixed(size.unsigned_abs()))),
                    _ => Err(E::custom(format!("dimension {size} must be -1 (any size) or at least 1"))),
                }
            }

            fn visit_u64<E: Error>(self, size: u64) -> Result<Size, E> {
                self.visit_i64(i64::try_from(size).map_err(E::custom)?)
            }

            fn visit_str<E: Error>(self, name: &str) -> Result<Size, E> {
                match name.len() {
                    1..=64 => Ok(Size::Name(name.to_owned())),
                    length => {
                        Err(E::custom(format!("a dimension's name has {length} bytes, must have 1 to 64")))
                    }
                }
            }
        }

        deserializer.deserialize_any(AnySize)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(try_from = "u32")]
struct MaxBatch(u32);

/// How much of the larger value, and of 1, a faster form of the model may differ by.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(try_from = "f64")]
struct DeclaredTolerance(f64);

impl TryFrom<f64> for DeclaredTolerance {
    type Error = String;

    fn try_from(tolerance: f64) -> Result<Self, String> {
        if (0.0..1.0).contains(&tolerance) {
            Ok(Self(tolerance))
        } else {
            Err(format!("tolerance {tolerance} must be at least 0 and less than 1"))
        }
    }
}

impl Default for MaxBatch {
    fn default() -> Self {
        Self(32)
    }
}

impl TryFrom<String> for Name {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        match name.len() {
            1..=128 => Ok(Self(name)),
            length => Err(format!("name has {length} bytes, must have 1 to 128")),
        }
    }
}

impl TryFrom<String> for DatatypeName {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        let numbers = || Datatype::ALL.into_iter().filter(|datatype| datatype.size().is_some());
        numbers().find(|datatype| datatype.name() == name).map(Self).ok_or_else(|| {
            let known = numbers().map(Datatype::name).collect::<Vec<_>>().join(", ");
            format!("unknown datatype `{name}`, known are {known}")
        })
    }
}

impl TryFrom<u32> for MaxBatch {
    type Error = String;

    fn try_from(rows: u32) -> Result<Self, String> {
        match rows {
            1..=65_536 => Ok(Self(rows)),
            _ => Err(format!("max_batch {rows} must be 1 to 65536")),
        }
    }
}

/// The signature of a model's `forward`, without `self`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    /// In order.
    pub arguments: Vec<Argument>,
    /// How many tensors it returns, where its type tells.
    pub returns: Option<usize>,
}

/// One argument of `forward`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Argument {
    /// Its name.
    pub name: String,
    /// Its type, as TorchScript writes it.
    pub type_name: String,
    /// Whether a tensor may be passed; of one element, where the model takes a number.
    pub takes_tensor: bool,
    /// Whether it may be left out.
    pub has_default: bool,
}

/// A model's spec, and for each input its position among the arguments.
#[derive(Clone, Debug, PartialEq)]
pub struct Bound {
    /// What it takes and gives.
    pub spec: Spec,
    /// For each of [`Spec::inputs`].
    pub positions: Vec<usize>,
}

impl Manifest {
    /// Reads a `model.yaml`.
    pub fn parse(text: &str) -> Result<Self, ManifestError> {
        let manifest: Self = serde_saphyr::from_str(text)
            .map_err(|error| ManifestError::Yaml(error.without_snippet().to_string().replace('\n', " ")))?;
        for tensors in [&manifest.inputs, &manifest.outputs] {
            let mut names = BTreeSet::new();
            for Tensor { name: Name(name), shape, .. } in tensors {
                if !names.insert(name) {
                    return Err(ManifestError::Twice { name: name.clone() });
                }
                if shape.len() > RANK_MAX {
                    return Err(ManifestError::Rank { name: name.clone(), rank: shape.len() });
                }
            }
        }
        for tensor in &manifest.inputs {
            tensor.must(!tensor.finite, "finite", "outputs")?;
            let is_bounded = tensor.min.is_some() || tensor.max.is_some();
            tensor.must(!is_bounded || integers(tensor.datatype.0).is_some(), "min or max", "integers")?;
            if let Some((min, max)) = tensor.bounds().filter(|(min, max)| min > max) {
                let datatype = tensor.datatype.0.name();
                return Err(ManifestError::Bounds { name: tensor.name.0.clone(), datatype, min, max });
            }
        }
        for tensor in &manifest.inputs {
            let is_named = tensor.names().next().is_some();
            tensor.must(!tensor.mask || is_named, "mask", "inputs with a named dimension")?;
            tensor.must(tensor.pad.is_none() || is_named, "pad", "inputs with a named dimension")?;
            if let (Some(pad), Some((least, largest))) = (tensor.pad, integers(tensor.datatype.0)) {
                let holds = pad.fract() == 0.0
                    && pad.abs() <= EXACT_MAX
                    && (least..=largest).contains(&(pad as i128));
                if !holds {
                    let (name, datatype) = (tensor.name.0.clone(), tensor.datatype.0.name());
                    return Err(ManifestError::Pad { name, datatype, pad });
                }
            }
            let mut others = tensor.shape.iter().skip(1);
            let is_free = others.any(|size| *size == Size::Number(Dimension::Free));
            tensor.must(!tensor.mask || !is_free, "mask", "inputs whose dimensions have names")?;
        }
        for tensor in &manifest.outputs {
            tensor.must(!tensor.mask && tensor.pad.is_none(), "pad or mask", "inputs")?;
            tensor.must(tensor.min.is_none() && tensor.max.is_none(), "min or max", "inputs")?;
        }
        if manifest.outputs.is_empty() {
            return Err(ManifestError::NoOutputs);
        }
        if manifest.bf16 && manifest.tolerance.is_none() {
            return Err(ManifestError::NoTolerance);
        }
        Ok(manifest)
    }

    /// What is to be done to requests before the model gets them, which is no business of the model's.
    pub(crate) fn take_preprocess(&mut self) -> Option<Declared> {
        self.preprocess.take()
    }

    /// What a `labels.txt` beside it says: a name for each class, one a line.
    pub fn with_labels(mut self, text: &str) -> Result<Self, ManifestError> {
        let Some(postprocess) = &self.postprocess else {
            return Err(ManifestError::Labels(
                "model.yaml has no postprocess that says which output it is for",
            ));
        };
        let output = postprocess.output().map_err(ManifestError::Postprocess)?;
        if let Some(tensor) = self.outputs.iter_mut().find(|tensor| tensor.name.0 == output) {
            if !tensor.labels.is_empty() {
                return Err(ManifestError::Labels("model.yaml has labels as well"));
            }
            tensor.labels = postprocess::labels(text);
        }
        Ok(self)
    }

    /// Compares the declaration with the model.
    pub fn bind(self, signature: &Signature) -> Result<Bound, ManifestError> {
        let shown = || signature.to_string();
        if let Some(returned) = signature.returns
            && returned != self.outputs.len()
        {
            return Err(ManifestError::Outputs { declared: self.outputs.len(), returned });
        }
        for Tensor { name: Name(name), .. } in &self.inputs {
            let Some(argument) = signature.arguments.iter().find(|argument| argument.name == *name) else {
                return Err(ManifestError::Unknown { name: name.clone(), signature: shown() });
            };
            if !argument.takes_tensor {
                return Err(ManifestError::NotATensor { name: name.clone(), signature: shown() });
            }
        }
        let dimensions = self.named()?;
        let (mut inputs, mut positions) = (Vec::new(), Vec::new());
        for (position, argument) in signature.arguments.iter().enumerate() {
            match self.inputs.iter().find(|tensor| tensor.name.0 == argument.name) {
                Some(tensor) => {
                    inputs.push(tensor.to_slot(&dimensions));
                    positions.push(position);
                }
                None if argument.has_default => {}
                None => {
                    return Err(ManifestError::Missing { name: argument.name.clone(), signature: shown() });
                }
            }
        }
        let outputs: Vec<Slot> = self.outputs.iter().map(|tensor| tensor.to_slot(&dimensions)).collect();
        let rows = rows(&inputs, &outputs, self.max_batch.0);
        let tolerance = self.tolerance.map_or(Tolerance::Summation, |it| Tolerance::Of(it.0));
        let rounding = Tolerance::Summation;
        let postprocess = self.postprocess.map(|declared| declared.bind(&outputs)).transpose();
        Ok(Bound {
            spec: Spec {
                postprocess: postprocess.map_err(ManifestError::Postprocess)?,
                inputs,
                outputs,
                rows,
                tolerance,
                rounding,
                bfloat16: self.bf16,
                stateful: self.stateful,
                dimensions,
            },
            positions,
        })
    }

    /// Those that have a name in an input, in the order in which they come.
    fn named(&self) -> Result<Vec<Named>, ManifestError> {
        let failed = |name: &str, why| Err(ManifestError::Dimension { name: name.to_owned(), why });
        let mut named: Vec<Named> = Vec::new();
        for (position, name) in self.inputs.iter().flat_map(Tensor::names) {
            if position == 0 {
                return failed(name, "the first dimension is written -1");
            }
            if !named.iter().any(|known| known.name == *name) {
                let padding = self.dimensions.get(name);
                named.push(Named {
                    name: name.clone(),
                    pad_to: padding.map_or_else(Vec::new, |padding| padding.pad_to.0.clone()),
                    waste_max: padding.map_or(0.0, |padding| padding.waste_max.0),
                    max: padding.and_then(|padding| padding.max).map(NonZeroU64::get),
                });
            }
        }
        for Named { name, pad_to, max, .. } in &named {
            if pad_to.is_empty() && max.is_none() && self.dimensions.contains_key(name) {
                return failed(name, "neither pad_to nor max is said of it");
            }
            if max.is_some_and(|max| pad_to.last().is_some_and(|last| *last > max)) {
                return failed(name, "pad_to goes beyond its max");
            }
        }
        let is_known = |name: &String| named.iter().any(|known| known.name == *name);
        if let Some((_, name)) = self.outputs.iter().flat_map(Tensor::names).find(|(_, name)| !is_known(name))
        {
            return failed(name, "an output has it, and no input");
        }
        if let Some(name) = self.dimensions.keys().find(|name| !is_known(name)) {
            return failed(name, "no input has it");
        }
        Ok(named)
    }
}

/// What can be said of a model that came without a `model.yaml`: names, and nothing about shapes.
pub fn undeclared(signature: &Signature) -> Result<Bound, ManifestError> {
    let (mut inputs, mut positions) = (Vec::new(), Vec::new());
    for (position, argument) in signature.arguments.iter().enumerate() {
        if argument.takes_tensor {
            inputs.push(bare_slot(argument.name.clone(), argument.has_default));
            positions.push(position);
        } else if !argument.has_default {
            let (name, signature) = (argument.name.clone(), signature.to_string());
            return Err(ManifestError::NotATensor { name, signature });
        }
    }
    let outputs = (0..signature.returns.unwrap_or(0)).map(|at| bare_slot(output_name(at), false)).collect();
    let rows = Rows::None { why: "no model.yaml declares its shapes".into() };
    Ok(Bound {
        spec: Spec {
            inputs,
            outputs,
            rows,
            tolerance: Tolerance::Summation,
            rounding: Tolerance::Summation,
            bfloat16: false,
            stateful: false,
            dimensions: Vec::new(),
            postprocess: None,
        },
        positions,
    })
}

/// What an output is called when nobody named it.
pub fn output_name(position: usize) -> String {
    format!("OUTPUT__{position}")
}

fn bare_slot(name: String, optional: bool) -> Slot {
    let labels = Vec::new();
    Slot { name, form: None, labels, optional, finite: false, bounds: None, pad: 0.0, mask: false }
}

fn rows(inputs: &[Slot], outputs: &[Slot], max_batch: u32) -> Rows {
    if inputs.is_empty() {
        return Rows::None { why: "it takes no inputs".into() };
    }
    for (kind, slots) in [("input", inputs), ("output", outputs)] {
        for slot in slots {
            if slot.form.as_ref().is_none_or(|form| !form.starts_free()) {
                return Rows::None { why: format!("{kind} `{}` does not start with -1", slot.name) };
            }
        }
    }
    Rows::UpTo(max_batch)
}

impl Tensor {
    /// Dimensions that have a name, and where they stand.
    fn names(&self) -> impl Iterator<Item = (usize, &String)> {
        self.shape.iter().enumerate().filter_map(|(position, size)| match size {
            Size::Name(name) => Some((position, name)),
            Size::Number(_) => None,
        })
    }

    fn to_slot(&self, dimensions: &[Named]) -> Slot {
        let dimension = |size: &Size| match size {
            Size::Number(dimension) => *dimension,
            Size::Name(name) => {
                let at = dimensions.iter().position(|known| known.name == *name);
                Dimension::Named(at.expect("named() has seen it"))
            }
        };
        let shape = self.shape.iter().map(dimension).collect();
        Slot {
            name: self.name.0.clone(),
            form: Some(Form { datatype: self.datatype.0, shape }),
            labels: self.labels.clone(),
            optional: false,
            finite: self.finite,
            bounds: self.bounds(),
            pad: self.pad.unwrap_or(0.0),
            mask: self.mask,
        }
    }

    /// Those declared, within what the datatype holds.
    fn bounds(&self) -> Option<(i128, i128)> {
        let (least, largest) = integers(self.datatype.0)?;
        let min = self.min.map(|min| least.max(min.0));
        let max = self.max.map(|max| largest.min(max.0));
        (min.is_some() || max.is_some()).then(|| (min.unwrap_or(least), max.unwrap_or(largest)))
    }

    fn must(&self, holds: bool, property: &'static str, owners: &'static str) -> Result<(), ManifestError> {
        let name = || self.name.0.clone();
        if holds { Ok(()) } else { Err(ManifestError::Misplaced { name: name(), property, owners }) }
    }
}

/// As TorchScript writes it: `forward(pixels: Tensor, scale: float = ..)`.
impl std::fmt::Display for Signature {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("forward(")?;
        for (position, argument) in self.arguments.iter().enumerate() {
            let separator = if position == 0 { "" } else { ", " };
            let default = if argument.has_default { " = .." } else { "" };
            write!(f, "{separator}{}: {}{default}", argument.name, argument.type_name)?;
        }
        f.write_str(")")
    }
}

#[cfg(test)]
mod tests;
