//! Answers to questions about the server and its models, as JSON. Decides what is advertised: only what works.

use crate::directory::Models;
use crate::refusal::Refusal;
use crate::route::Target;
use serde::Serialize;
use utoipa::ToSchema;
use wire::{Datatype, TensorSpec};

/// Who this server is and which extensions of the protocol it speaks.
#[derive(Debug, Serialize, ToSchema)]
pub struct ServerMetadata {
    pub(crate) name: &'static str,
    pub(crate) version: &'static str,
    pub(crate) extensions: Vec<&'static str>,
}

/// `GET /v2/health/live`: whoever can answer lives.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Live {
    live: bool,
}

/// Alive.
pub(crate) fn live() -> Live {
    Live { live: true }
}

/// `GET /v2`.
pub fn server(control: bool) -> ServerMetadata {
    const ALWAYS: [&str; 7] = [
        "binary_tensor_data",
        "classification",
        "model_configuration",
        "schedule_policy",
        "statistics",
        "trace",
        "logging",
    ];
    const WITH_CONTROL: [&str; 2] = ["model_repository", "model_repository(unload_dependents)"];
    let mut extensions = ALWAYS.to_vec();
    extensions.extend(control.then_some(WITH_CONTROL).into_iter().flatten());
    ServerMetadata { name: "penstock", version: env!("CARGO_PKG_VERSION"), extensions }
}

/// What a model takes and gives.
#[derive(Debug, Serialize, ToSchema)]
pub struct ModelMetadata {
    pub(crate) name: String,
    pub(crate) versions: Vec<String>,
    pub(crate) platform: &'static str,
    pub(crate) inputs: Vec<TensorMetadata>,
    pub(crate) outputs: Vec<TensorMetadata>,
}

/// One input or output. A model without a `model.yaml` declares no datatype; it is empty then.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct TensorMetadata {
    pub(crate) name: String,
    pub(crate) datatype: &'static str,
    pub(crate) shape: Vec<i64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    labels: Vec<String>,
}

/// `GET /v2/models/{m}[/versions/{v}]`: of the pinned version, else of the one with the highest number.
pub fn model(models: &Models, target: Target<'_>) -> Result<ModelMetadata, Refusal> {
    let entry = models.find(target)?;
    Ok(ModelMetadata {
        name: entry.name.clone(),
        versions: models
            .versions(target.model)
            .into_iter()
            .flatten()
            .map(|(version, _)| version.to_string())
            .collect(),
        platform: "pytorch_libtorch",
        inputs: entry.inputs.iter().map(tensor).collect(),
        outputs: entry.outputs.iter().map(tensor).collect(),
    })
}

fn tensor(spec: &TensorSpec) -> TensorMetadata {
    TensorMetadata {
        name: spec.name.clone(),
        datatype: Datatype::from_wire(spec.datatype).map_or("", Datatype::name),
        shape: spec.shape.clone(),
        labels: spec.labels.clone(),
    }
}
