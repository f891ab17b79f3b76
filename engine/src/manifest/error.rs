//! What is wrong with a `model.yaml`, or with a model for it, in one line. Decides the words; what is a mistake `manifest.rs` does.

use crate::model::RANK_MAX;

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
