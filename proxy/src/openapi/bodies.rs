//! What bodies look like that are read and written without a type of their own: tensors go straight between JSON and
//! bytes ([`crate::tensor_json`]). Never made, only described.
#![expect(dead_code, reason = "types that are described, not used")]

use serde_json::Value;
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// Why there is no answer.
#[derive(ToSchema)]
pub(super) struct ErrorBody {
    error: String,
}

/// Why there is no answer, for TorchServe's clients.
#[derive(ToSchema)]
pub(super) struct TorchServeError {
    /// The status.
    code: u16,
    /// Such as `ModelNotFoundException`.
    r#type: String,
    message: String,
}

/// A request of the Open Inference Protocol.
#[derive(ToSchema)]
pub(super) struct InferBody {
    /// Comes back in the answer.
    id: Option<String>,
    inputs: Vec<InferInput>,
    /// Those that are wanted; all, if it is not there.
    outputs: Option<Vec<InferOutput>>,
    /// `priority`, `timeout` (µs), `binary_data_output`.
    parameters: Option<BTreeMap<String, Value>>,
}

/// A tensor that is sent.
#[derive(ToSchema)]
pub(super) struct InferInput {
    name: String,
    shape: Vec<u64>,
    /// Such as `FP32`.
    datatype: String,
    parameters: Option<BTreeMap<String, Value>>,
    /// Its elements, flat or nested.
    data: Option<Vec<Value>>,
}

/// A tensor that is wanted.
#[derive(ToSchema)]
pub(super) struct InferOutput {
    name: String,
    parameters: Option<BTreeMap<String, Value>>,
}

/// An answer of the Open Inference Protocol.
#[derive(ToSchema)]
pub(super) struct InferAnswer {
    id: Option<String>,
    model_name: String,
    model_version: String,
    outputs: Vec<AnsweredOutput>,
}

/// A tensor that is answered.
#[derive(ToSchema)]
pub(super) struct AnsweredOutput {
    name: String,
    datatype: String,
    shape: Vec<u64>,
    parameters: Option<BTreeMap<String, Value>>,
    /// Its elements, flat.
    data: Option<Vec<Value>>,
}

/// A request of TensorFlow Serving or KServe V1: either `instances` or `inputs`.
#[derive(ToSchema)]
pub(super) struct PredictBody {
    /// `serving_default`, which is the only one.
    signature_name: Option<String>,
    /// A value for each row, or an object of values by input.
    instances: Option<Vec<Value>>,
    /// A tensor, or an object of tensors by input.
    inputs: Option<Value>,
}

/// An answer of TensorFlow Serving or KServe V1.
#[derive(ToSchema)]
pub(super) struct PredictAnswer {
    /// To `instances`: one for each.
    predictions: Option<Vec<Value>>,
    /// To `inputs`.
    outputs: Option<Value>,
}

/// An answer of TorchServe: for the only row or for each row of a list what the model's author has declared, else the
/// outputs by name.
#[derive(ToSchema)]
#[serde(untagged)]
pub(super) enum TorchServePrediction {
    /// For a single row, or for all as a whole.
    One(BTreeMap<String, Value>),
    /// For each row of a list.
    Each(Vec<BTreeMap<String, Value>>),
}
