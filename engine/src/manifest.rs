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

use crate::model::{Dimension, Form, RANK_MAX, Rows, Slot, Spec};
use serde::Deserialize;
use std::collections::BTreeSet;
use wire::Datatype;

/// What a `model.yaml` says.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    inputs: Vec<Tensor>,
    outputs: Vec<Tensor>,
    #[serde(default)]
    max_batch: MaxBatch,
    tolerance: Option<Tolerance>,
    /// Whether it may compute with floats of 16 bits, if that is faster and within the tolerance.
    #[serde(default)]
    bf16: bool,
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
    min: Option<i64>,
    max: Option<i64>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(try_from = "String")]
struct Name(String);

#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(try_from = "String")]
struct DatatypeName(Datatype);

#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(try_from = "i64")]
struct Size(Dimension);

#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(try_from = "u32")]
struct MaxBatch(u32);

/// How much of the larger value, and of 1, a faster form of the model may differ by.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(try_from = "f64")]
struct Tolerance(f64);

impl TryFrom<f64> for Tolerance {
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
        Datatype::from_name(&name).map(Self).ok_or_else(|| {
            let known = Datatype::ALL.map(Datatype::name).join(", ");
            format!("unknown datatype `{name}`, known are {known}")
        })
    }
}

impl TryFrom<i64> for Size {
    type Error = String;

    fn try_from(size: i64) -> Result<Self, String> {
        match size {
            -1 => Ok(Self(Dimension::Free)),
            1.. => Ok(Self(Dimension::Fixed(size.unsigned_abs()))),
            _ => Err(format!("dimension {size} must be -1 (any size) or at least 1")),
        }
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
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
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
    /// Nothing to return.
    #[error("model.yaml: no outputs are declared")]
    NoOutputs,
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
            tensor.must(tensor.bounds().is_none() || tensor.is_integer(), "min or max", "integers")?;
        }
        for tensor in &manifest.outputs {
            tensor.must(tensor.bounds().is_none(), "min or max", "inputs")?;
        }
        if manifest.outputs.is_empty() {
            return Err(ManifestError::NoOutputs);
        }
        if manifest.bf16 && manifest.tolerance.is_none() {
            return Err(ManifestError::NoTolerance);
        }
        Ok(manifest)
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
        let (mut inputs, mut positions) = (Vec::new(), Vec::new());
        for (position, argument) in signature.arguments.iter().enumerate() {
            match self.inputs.iter().find(|tensor| tensor.name.0 == argument.name) {
                Some(tensor) => {
                    inputs.push(tensor.to_slot());
                    positions.push(position);
                }
                None if argument.has_default => {}
                None => {
                    return Err(ManifestError::Missing { name: argument.name.clone(), signature: shown() });
                }
            }
        }
        let outputs: Vec<Slot> = self.outputs.iter().map(Tensor::to_slot).collect();
        let rows = rows(&inputs, &outputs, self.max_batch.0);
        let tolerance = self.tolerance.map(|tolerance| tolerance.0);
        Ok(Bound { spec: Spec { inputs, outputs, rows, tolerance, bfloat16: self.bf16 }, positions })
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
    Ok(Bound { spec: Spec { inputs, outputs, rows, tolerance: None, bfloat16: false }, positions })
}

/// What an output is called when nobody named it.
pub fn output_name(position: usize) -> String {
    format!("OUTPUT__{position}")
}

fn bare_slot(name: String, optional: bool) -> Slot {
    Slot { name, form: None, labels: Vec::new(), optional, finite: false, bounds: None }
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
    fn to_slot(&self) -> Slot {
        let shape = self.shape.iter().map(|size| size.0).collect();
        Slot {
            name: self.name.0.clone(),
            form: Some(Form { datatype: self.datatype.0, shape }),
            labels: self.labels.clone(),
            optional: false,
            finite: self.finite,
            bounds: self.bounds(),
        }
    }

    fn bounds(&self) -> Option<(i64, i64)> {
        let bounded = self.min.is_some() || self.max.is_some();
        bounded.then(|| (self.min.unwrap_or(i64::MIN), self.max.unwrap_or(i64::MAX)))
    }

    fn is_integer(&self) -> bool {
        match self.datatype.0 {
            Datatype::Uint8 | Datatype::Int8 | Datatype::Int16 | Datatype::Int32 | Datatype::Int64 => true,
            Datatype::Bool | Datatype::Fp16 | Datatype::Bf16 | Datatype::Fp32 | Datatype::Fp64 => false,
        }
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
    fn without_a_declaration_names_are_all_there_is() {
        let arguments = [argument("x", "Tensor", false), argument("mask", "Optional[Tensor]", true)];
        let bound = undeclared(&signature(&arguments, 2)).unwrap();
        assert_eq!(bound.spec.inputs, [bare_slot("x".into(), false), bare_slot("mask".into(), true)]);
        assert_eq!(bound.spec.outputs[1].name, "OUTPUT__1");
        assert!(undeclared(&signature(&[argument("k", "int", false)], 1)).is_err());
    }
}
