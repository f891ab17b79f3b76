//! Answers to questions about the server and its models, as JSON. Decides what is advertised: only what works.

use crate::directory::Models;
use crate::refusal::Refusal;
use crate::route::Target;
use policies::Snapshot;
use serde_json::{Value, json};
use wire::{Datatype, ModelEntry, TensorSpec};

/// `GET /v2`.
pub fn server() -> Value {
    json!({"name": "penstock", "version": env!("CARGO_PKG_VERSION"), "extensions": ["binary_tensor_data"]})
}

/// `GET /v2/models/{m}[/versions/{v}]`: of the pinned version, else of the one with the highest number.
pub fn model(models: &Models, target: Target<'_>) -> Result<Value, Refusal> {
    let entry = find(models, target)?;
    let versions: Vec<String> =
        models.versions(target.model).into_iter().flatten().map(|(version, _)| version.to_string()).collect();
    Ok(json!({
        "name": entry.name,
        "versions": versions,
        "platform": "pytorch_libtorch",
        "inputs": entry.inputs.iter().map(tensor).collect::<Vec<_>>(),
        "outputs": entry.outputs.iter().map(tensor).collect::<Vec<_>>(),
    }))
}

/// Whether the server takes traffic: the engine has settled, and every version that the policy sends users to
/// answers.
pub fn is_ready(models: &Models, snapshot: &Snapshot) -> bool {
    models.is_settled() && snapshot.models().all(|(name, _)| is_model_ready(models, snapshot, name))
}

/// Whether a version, or every version that the policy sends users to, answers. A model without a policy is
/// ready when any version is.
pub fn is_target_ready(models: &Models, snapshot: &Snapshot, target: Target<'_>) -> Result<bool, Refusal> {
    find(models, target)?;
    Ok(match target.pinned {
        Some(version) => models.is_ready(target.model, version),
        None => is_model_ready(models, snapshot, target.model),
    })
}

fn is_model_ready(models: &Models, snapshot: &Snapshot, name: &str) -> bool {
    match snapshot.model(name) {
        Some(policy) => policy.versions().all(|version| models.is_ready(name, version.0)),
        None => models.connected && models.highest_ready(name).is_some(),
    }
}

fn find<'m>(models: &'m Models, target: Target<'_>) -> Result<&'m ModelEntry, Refusal> {
    let versions = models
        .versions(target.model)
        .ok_or_else(|| Refusal::NotFound(format!("no model `{}`", target.model)))?;
    match target.pinned {
        Some(version) => versions.get(&version),
        None => versions.values().next_back(),
    }
    .ok_or_else(|| Refusal::NotFound(format!("model `{}` has no such version", target.model)))
}

fn tensor(spec: &TensorSpec) -> Value {
    // A model without a model.yaml declares neither; the protocol has no word for that but an open shape.
    let datatype = Datatype::from_wire(spec.datatype).map_or("", Datatype::name);
    let mut tensor = json!({"name": spec.name, "datatype": datatype, "shape": spec.shape});
    if !spec.labels.is_empty() {
        tensor["labels"] = json!(spec.labels);
    }
    tensor
}
