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
                f.write_str("-1, a size or a name")
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

/// Why a version cannot be served.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ManifestError {
    /// Not the YAML that is expected.
    #[error("model.yaml: {0}")]
    Yaml(String),
    /// Two tensors of one name.
    #[error("model.yaml: `{name}` is declared twice")]
    Twice {
        /// Which.
        name: String,
    },
    /// Too many dimensions.
    #[error("model.yaml: `{name}` has {rank} dimensions, at most {RANK_MAX} are supported")]
    Rank {
        /// Whose.
        name: String,
        /// How many.
        rank: usize,
    },
    /// Not where it belongs.
    #[error("model.yaml: `{name}`: {property} is for {owners} only")]
    Misplaced {
        /// Of which tensor.
        name: String,
        /// What.
        property: &'static str,
        /// Who may have it.
        owners: &'static str,
    },
    /// No number is within them.
    #[error("model.yaml: `{name}`: no {datatype} lies between {min} and {max}")]
    Bounds {
        /// Of which tensor.
        name: String,
        /// What it should hold.
        datatype: &'static str,
        /// The least.
        min: i128,
        /// The most.
        max: i128,
    },
    /// It would not be what it says.
    #[error("model.yaml: `{name}`: cannot be padded with {pad}, which is no {datatype} or beyond 2^53")]
    Pad {
        /// Which tensor.
        name: String,
        /// What it holds.
        datatype: &'static str,
        /// What was declared.
        pad: f64,
    },
    /// Nothing to return.
    #[error("model.yaml: no outputs are declared")]
    NoOutputs,
    /// A name that is of no use.
    #[error("model.yaml: dimension `{name}`: {why}")]
    Dimension {
        /// Which.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Fewer bits are less exact than any default allows.
    #[error("model.yaml: bf16 needs a tolerance, such as `tolerance: 0.02`")]
    NoTolerance,
    /// Not an argument of the model.
    #[error("model.yaml: input `{name}` is no argument of {signature}")]
    Unknown {
        /// Which.
        name: String,
        /// What the model has.
        signature: String,
    },
    /// An argument for which neither a tensor nor a number can be passed.
    #[error("argument `{name}` of {signature} is neither a tensor nor a number")]
    NotATensor {
        /// Which.
        name: String,
        /// What the model has.
        signature: String,
    },
    /// A required argument that is not declared.
    #[error("model.yaml: input `{name}` of {signature} is not declared")]
    Missing {
        /// Which.
        name: String,
        /// What the model has.
        signature: String,
    },
    /// Another number of outputs.
    #[error("model.yaml: {declared} outputs are declared, the model returns {returned}")]
    Outputs {
        /// In model.yaml.
        declared: usize,
        /// By the model's type.
        returned: usize,
    },
    /// Classes that cannot be told.
    #[error("model.yaml: postprocess: {0}")]
    Postprocess(String),
    /// Names of classes that nobody knows what for.
    #[error("labels.txt: {0}")]
    Labels(&'static str),
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
mod tests {
    use super::*;

    const DIGITS: &str = "
inputs:
  - {name: pixels, datatype: FP32, shape: [-1, 64]}
outputs:
  - {name: digit, datatype: INT64, shape: [-1]}
  - {name: odds, datatype: FP32, shape: [-1, 2], labels: [\"0\", \"1\"]}
";

    fn argument(name: &str, type_name: &str, has_default: bool) -> Argument {
        Argument {
            name: name.into(),
            type_name: type_name.into(),
            takes_tensor: type_name.contains("Tensor"),
            has_default,
        }
    }

    fn signature(arguments: &[Argument], returns: usize) -> Signature {
        Signature { arguments: arguments.into(), returns: Some(returns) }
    }

    fn refusal(yaml: &str, signature: &Signature) -> String {
        Manifest::parse(yaml).and_then(|manifest| manifest.bind(signature)).unwrap_err().to_string()
    }

    #[test]
    fn a_declaration_that_fits_gives_the_spec_in_the_order_of_the_arguments() {
        let yaml = "
inputs:
  - {name: b, datatype: INT64, shape: [-1, -1]}
  - {name: a, datatype: FP32, shape: [-1, 3]}
outputs:
  - {name: y, datatype: FP32, shape: [-1]}
max_batch: 5
";
        let arguments = [
            argument("a", "Tensor", false),
            argument("scale", "float", true),
            argument("b", "Tensor", false),
        ];
        let bound = Manifest::parse(yaml).unwrap().bind(&signature(&arguments, 1)).unwrap();
        assert_eq!(bound.positions, [0, 2]);
        assert_eq!(bound.spec.inputs[0].name, "a");
        assert_eq!(bound.spec.inputs[1].form.as_ref().unwrap().to_string(), "[-1, -1]");
        assert_eq!(bound.spec.rows, Rows::UpTo(5));
    }

    #[test]
    fn max_batch_is_32_unless_said_otherwise() {
        let bound = Manifest::parse(DIGITS)
            .unwrap()
            .bind(&signature(&[argument("pixels", "Tensor", false)], 2))
            .unwrap();
        assert_eq!(bound.spec.rows, Rows::UpTo(32));
        assert_eq!(bound.spec.outputs[1].labels, ["0", "1"]);
    }

    #[test]
    fn a_tensor_that_does_not_start_free_means_there_are_no_rows() {
        let yaml = DIGITS.replace("INT64, shape: [-1]", "INT64, shape: [10]");
        let bound = Manifest::parse(&yaml)
            .unwrap()
            .bind(&signature(&[argument("pixels", "Tensor", false)], 2))
            .unwrap();
        assert_eq!(bound.spec.rows, Rows::None { why: "output `digit` does not start with -1".into() });
    }

    #[test]
    fn a_mistake_is_named_with_its_place() {
        let fits = signature(&[argument("pixels", "Tensor", false)], 2);
        let with = |from: &str, to: &str| refusal(&DIGITS.replace(from, to), &fits);
        let line3 = |message: String| {
            assert!(message.starts_with("model.yaml: ") && message.contains("line 3"), "{message}");
            assert!(!message.contains('\n'), "{message}");
            message
        };
        assert!(
            line3(with("FP32, shape: [-1, 64]", "FLOAT, shape: [-1, 64]"))
                .contains("unknown datatype `FLOAT`")
        );
        assert!(line3(with("[-1, 64]", "[-1, 0]")).contains("dimension 0 must be"));
        assert!(line3(with("name: pixels,", "name: pixels, size: 3,")).contains("unknown field `size`"));
        assert!(refusal(&format!("{DIGITS}max_batch: 0"), &fits).contains("max_batch 0 must be 1 to 65536"));
        assert_eq!(with("name: odds", "name: digit"), "model.yaml: `digit` is declared twice");
        let empty = with("FP32, shape: [-1, 64]", "INT64, shape: [-1, 64], min: 99, max: 0");
        assert_eq!(empty, "model.yaml: `pixels`: no INT64 lies between 99 and 0");
        let beyond = with("FP32, shape: [-1, 64]", "UINT16, shape: [-1, 64], min: 65536");
        assert_eq!(beyond, "model.yaml: `pixels`: no UINT16 lies between 65536 and 65535");
    }

    #[test]
    fn a_declaration_of_another_model_says_what_this_one_has() {
        let two = signature(&[argument("image", "Tensor", false), argument("k", "int", true)], 2);
        assert_eq!(
            refusal(DIGITS, &two),
            "model.yaml: input `pixels` is no argument of forward(image: Tensor, k: int = ..)"
        );
        let more = signature(&[argument("pixels", "Tensor", false), argument("mask", "Tensor", false)], 2);
        assert_eq!(
            refusal(DIGITS, &more),
            "model.yaml: input `mask` of forward(pixels: Tensor, mask: Tensor) is not declared"
        );
        assert_eq!(
            refusal(DIGITS, &signature(&[argument("pixels", "int", false)], 2)),
            "argument `pixels` of forward(pixels: int) is neither a tensor nor a number"
        );
        assert_eq!(
            refusal(DIGITS, &signature(&[argument("pixels", "Tensor", false)], 3)),
            "model.yaml: 2 outputs are declared, the model returns 3"
        );
    }

    #[test]
    fn names_of_classes_stand_in_the_declaration_or_beside_it() {
        let fits = signature(&[argument("pixels", "Tensor", false)], 2);
        let unnamed = DIGITS.replace(", labels: [\"0\", \"1\"]", "") + "postprocess: {softmax: odds}";
        let spec = |yaml: &str, text| {
            let manifest = Manifest::parse(yaml).and_then(|manifest| manifest.with_labels(text));
            manifest.and_then(|manifest| manifest.bind(&fits)).map_err(|error| error.to_string())
        };
        let spec_of = spec(&unnamed, "no\nyes\n").unwrap().spec;
        assert_eq!(spec_of.outputs[1].labels, ["no", "yes"]);
        assert_eq!(spec_of.postprocess.unwrap().output, "odds");
        for (yaml, says) in [
            (DIGITS.to_owned(), "labels.txt: model.yaml has no postprocess"),
            (format!("{DIGITS}postprocess: {{softmax: odds}}"), "labels.txt: model.yaml has labels as well"),
            (
                unnamed.replace("softmax: odds", "softmax: digit"),
                "postprocess: output `digit` has shape [-1]",
            ),
            (unnamed.replace("softmax: odds", "top_k: 1"), "neither under softmax"),
        ] {
            assert!(spec(&yaml, "no\nyes\n").unwrap_err().contains(says), "{yaml}");
        }
        assert!(spec(&unnamed, "one").unwrap_err().contains("has 2 classes and 1 labels"));
    }

    #[test]
    fn without_a_declaration_names_are_all_there_is() {
        let arguments = [argument("x", "Tensor", false), argument("mask", "Optional[Tensor]", true)];
        let bound = undeclared(&signature(&arguments, 2)).unwrap();
        assert_eq!(bound.spec.inputs, [bare_slot("x".into(), false), bare_slot("mask".into(), true)]);
        assert_eq!(bound.spec.outputs[1].name, "OUTPUT__1");
        assert!(undeclared(&signature(&[argument("k", "int", false)], 1)).is_err());
    }

    #[test]
    fn a_dimension_with_a_name_is_the_same_in_all_tensors_and_may_be_padded() {
        const TEXT: &str = "
dimensions: {tokens: {pad_to: [16, 32], max: 64}}
inputs:
  - {name: ids, datatype: INT64, shape: [-1, tokens], pad: 1}
  - {name: seen, datatype: INT64, shape: [-1, tokens], mask: true}
outputs:
  - {name: y, datatype: FP32, shape: [-1, tokens, 4]}";
        let argument = |name: &str| Argument {
            name: name.into(),
            type_name: "Tensor".into(),
            takes_tensor: true,
            has_default: false,
        };
        let signature = Signature { arguments: vec![argument("ids"), argument("seen")], returns: Some(1) };
        let bind = |text: &str| {
            let bound = Manifest::parse(text).and_then(|manifest| manifest.bind(&signature));
            bound.map_err(|error| error.to_string())
        };
        let spec = bind(TEXT).unwrap().spec;
        assert_eq!(
            spec.dimensions,
            [Named { name: "tokens".into(), pad_to: vec![16, 32], waste_max: 0.5, max: Some(64) }]
        );
        assert_eq!((spec.inputs[0].pad, spec.inputs[1].mask), (1.0, true));
        let padded = |size| spec.dimensions[0].padded(size);
        assert_eq!([7, 8, 16, 17, 33].map(padded), [7, 16, 16, 32, 33]);
        for (from, to, says) in [
            ("[16, 32]", "[32, 16]", "must be 1 to 64 rising sizes"),
            ("[16, 32], max: 64}", "[16], waste_max: 1}", "waste_max 1 must be at least 0 and less than 1"),
            (
                "{tokens: {pad_to: [16, 32], max: 64}}",
                "{t: {pad_to: [16]}}",
                "dimension `t`: no input has it",
            ),
            ("max: 64", "max: 31", "dimension `tokens`: pad_to goes beyond its max"),
            ("{pad_to: [16, 32], max: 64}", "{}", "dimension `tokens`: neither pad_to nor max is said of it"),
            ("pad: 1", "pad: 0.5", "`ids`: cannot be padded with 0.5, which is no INT64"),
            ("pad: 1", "pad: 9007199254740994", "or beyond 2^53"),
            (
                "datatype: INT64, shape: [-1, tokens], pad: 1",
                "datatype: UINT8, shape: [-1, tokens], pad: 256",
                "no UINT8",
            ),
            ("[-1, tokens, 4]", "[-1, token, 4]", "dimension `token`: an output has it, and no input"),
            ("[-1, tokens], pad: 1", "[tokens, 1], pad: 1", "the first dimension is written -1"),
            ("[-1, tokens], mask", "[-1, 4], mask", "`seen`: mask is for inputs with a named dimension only"),
            ("tokens, 4]}", "tokens, 4], pad: 1}", "`y`: pad or mask is for inputs only"),
        ] {
            let text = TEXT.replacen(from, to, 1);
            assert_ne!(text, TEXT, "{from}");
            let error = bind(&text).unwrap_err();
            assert!(error.contains(says), "{text}\n{error}");
        }
    }
}
