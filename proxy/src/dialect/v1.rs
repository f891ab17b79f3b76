//! What is told of models under `/v1`, as TensorFlow Serving and KServe V1 put it. The two have one path in common: its
//! answer holds what each of them says. Decides no readiness, only how it is called.

use crate::directory::Models;
use crate::refusal::Refusal;
use crate::route::Target;
use serde::Serialize;
use std::collections::BTreeMap;
use utoipa::ToSchema;
use wire::{Datatype, ModelEntry, ModelState, TensorSpec};

/// `GET /v1/models`: KServe's.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ModelNames {
    models: Vec<String>,
}

pub(crate) fn names(models: &Models) -> ModelNames {
    ModelNames { models: models.names().map(str::to_owned).collect() }
}

/// `GET /v1/models/{m}`: the first two fields are KServe's.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ModelStatus {
    name: String,
    ready: bool,
    model_version_status: Vec<VersionStatus>,
}

/// One version, in TensorFlow Serving's words.
#[derive(Debug, Serialize, ToSchema)]
struct VersionStatus {
    version: String,
    /// `LOADING`, `AVAILABLE` or `END`.
    state: &'static str,
    status: StatusProto,
}

#[derive(Debug, Serialize, ToSchema)]
struct StatusProto {
    error_code: &'static str,
    error_message: String,
}

/// The status of the pinned version, or of all.
pub(crate) fn status(models: &Models, target: Target<'_>, is_ready: bool) -> Result<ModelStatus, Refusal> {
    models.find(target)?;
    let versions = models.versions(target.model).into_iter().flat_map(BTreeMap::values);
    let wanted = versions.filter(|entry| target.pinned.is_none_or(|pinned| pinned == entry.version));
    Ok(ModelStatus {
        name: target.model.to_owned(),
        ready: is_ready,
        model_version_status: wanted.map(|entry| version_status(models, entry)).collect(),
    })
}

fn version_status(models: &Models, entry: &ModelEntry) -> VersionStatus {
    let is_ready = models.is_ready(&entry.name, entry.version);
    let (state, error_code) = match entry.state() {
        ModelState::Ready if is_ready => ("AVAILABLE", "OK"),
        // The engine is away, and will load it again.
        ModelState::Ready => ("LOADING", "UNAVAILABLE"),
        ModelState::Loading => ("LOADING", "OK"),
        ModelState::Unavailable => ("END", "UNAVAILABLE"),
    };
    // The reason of a version that is ready is no error.
    let error_message = if is_ready { String::new() } else { entry.reason.clone() };
    let status = StatusProto { error_code, error_message };
    VersionStatus { version: entry.version.to_string(), state, status }
}

/// `GET /v1/models/{m}/metadata`.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct SignatureMetadata {
    model_spec: ModelSpec,
    metadata: Metadata,
}

#[derive(Debug, Serialize, ToSchema)]
struct ModelSpec {
    name: String,
    signature_name: &'static str,
    version: String,
}

#[derive(Debug, Serialize, ToSchema)]
struct Metadata {
    signature_def: SignatureDefMap,
}

#[derive(Debug, Serialize, ToSchema)]
struct SignatureDefMap {
    signature_def: BTreeMap<&'static str, SignatureDef>,
}

#[derive(Debug, Serialize, ToSchema)]
struct SignatureDef {
    inputs: BTreeMap<String, TensorInfo>,
    outputs: BTreeMap<String, TensorInfo>,
    method_name: &'static str,
}

#[derive(Debug, Serialize, ToSchema)]
struct TensorInfo {
    dtype: &'static str,
    tensor_shape: TensorShape,
    name: String,
}

#[derive(Debug, Serialize, ToSchema)]
struct TensorShape {
    dim: Vec<Dim>,
    unknown_rank: bool,
}

#[derive(Debug, Serialize, ToSchema)]
struct Dim {
    /// A number; -1 where any size goes.
    size: String,
    name: &'static str,
}

/// What the pinned version takes and gives, or the one with the highest number.
pub(crate) fn metadata(models: &Models, target: Target<'_>) -> Result<SignatureMetadata, Refusal> {
    let entry = models.find(target)?;
    let infos = |specs: &[TensorSpec]| specs.iter().map(|spec| (spec.name.clone(), info(spec))).collect();
    let signature = SignatureDef {
        inputs: infos(&entry.inputs),
        outputs: infos(&entry.outputs),
        method_name: "tensorflow/serving/predict",
    };
    Ok(SignatureMetadata {
        model_spec: ModelSpec {
            name: entry.name.clone(),
            signature_name: "",
            version: entry.version.to_string(),
        },
        metadata: Metadata {
            signature_def: SignatureDefMap {
                signature_def: BTreeMap::from([("serving_default", signature)]),
            },
        },
    })
}

fn info(spec: &TensorSpec) -> TensorInfo {
    let datatype = Datatype::from_wire(spec.datatype);
    let dim = spec.shape.iter().map(|size| Dim { size: size.to_string(), name: "" }).collect();
    TensorInfo {
        dtype: datatype.map_or("DT_INVALID", dtype),
        tensor_shape: TensorShape { dim, unknown_rank: datatype.is_none() },
        name: spec.name.clone(),
    }
}

fn dtype(datatype: Datatype) -> &'static str {
    match datatype {
        Datatype::Bool => "DT_BOOL",
        Datatype::Uint8 => "DT_UINT8",
        Datatype::Uint16 => "DT_UINT16",
        Datatype::Uint32 => "DT_UINT32",
        Datatype::Uint64 => "DT_UINT64",
        Datatype::Int8 => "DT_INT8",
        Datatype::Int16 => "DT_INT16",
        Datatype::Int32 => "DT_INT32",
        Datatype::Int64 => "DT_INT64",
        Datatype::Fp16 => "DT_HALF",
        Datatype::Bf16 => "DT_BFLOAT16",
        Datatype::Fp32 => "DT_FLOAT",
        Datatype::Fp64 => "DT_DOUBLE",
        Datatype::Bytes => "DT_STRING",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dialect::tf_serving::tests::entry;
    use crate::directory::Directory;
    use serde_json::json;
    use wire::Index;

    fn directory() -> Directory {
        let version = |version, state, reason: &str| ModelEntry {
            version,
            state: state as i32,
            reason: reason.into(),
            ..entry()
        };
        let directory = Directory::default();
        let models = vec![
            version(1, ModelState::Ready, "not batched"),
            version(2, ModelState::Loading, ""),
            version(3, ModelState::Unavailable, "torn"),
        ];
        directory.publish(Index { models, ..Index::default() });
        directory
    }

    #[test]
    fn a_status_says_what_either_protocol_says() {
        let directory = directory();
        let all = status(&directory.load(), Target { model: "m", pinned: None }, true).unwrap();
        let of = |version: &str, state: &str, code: &str, why: &str| json!({"version": version, "state": state, "status": {"error_code": code, "error_message": why}});
        let versions = [
            of("1", "AVAILABLE", "OK", ""),
            of("2", "LOADING", "OK", ""),
            of("3", "END", "UNAVAILABLE", "torn"),
        ];
        let want = json!({"name": "m", "ready": true, "model_version_status": versions});
        assert_eq!(serde_json::to_value(all).unwrap(), want);
        let one = status(&directory.load(), Target { model: "m", pinned: Some(3) }, false).unwrap();
        assert_eq!(serde_json::to_value(one).unwrap()["model_version_status"], json!([versions[2]]));
        assert!(status(&directory.load(), Target { model: "m", pinned: Some(4) }, false).is_err());
    }

    #[test]
    fn metadata_is_a_signature_with_tensorflows_names() {
        let metadata = metadata(&directory().load(), Target { model: "m", pinned: Some(1) }).unwrap();
        let metadata = serde_json::to_value(metadata).unwrap();
        assert_eq!(metadata["model_spec"], json!({"name": "m", "signature_name": "", "version": "1"}));
        let signature = &metadata["metadata"]["signature_def"]["signature_def"]["serving_default"];
        assert_eq!(signature["inputs"]["ids"]["dtype"], "DT_INT32");
        let dims = json!([{"size": "-1", "name": ""}, {"size": "2", "name": ""}]);
        assert_eq!(signature["inputs"]["ids"]["tensor_shape"]["dim"], dims);
        assert_eq!(serde_json::to_value(names(&directory().load())).unwrap(), json!({"models": ["m"]}));
    }
}
