//! How a version is served, in the form of Triton's model configuration. Decides what of that form is true here; what is
//! not said is Triton's default.

use serde::Serialize;
use std::collections::BTreeMap;
use utoipa::ToSchema;
use wire::{Datatype, ModelEntry, TensorSpec};

/// Triton's `ModelConfig`, whose names these are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct ModelConfig {
    /// Of the model.
    pub name: String,
    /// As in the model's metadata.
    pub platform: &'static str,
    /// Triton's for the same files.
    pub backend: &'static str,
    /// Every version of the folder is served.
    pub version_policy: VersionPolicy,
    /// Rows that run together at most; 0 if the first dimension is not a batch. More rows than this run in pieces.
    pub max_batch_size: u32,
    /// In the order of the model's `forward`.
    pub input: Vec<ConfiguredTensor>,
    /// In the order in which the model returns them.
    pub output: Vec<ConfiguredTensor>,
    /// Present where requests run together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dynamic_batching: Option<DynamicBatching>,
    /// One, of all runs at the same time.
    pub instance_group: Vec<InstanceGroup>,
    /// Name of the file.
    pub default_model_filename: &'static str,
    /// What was found out when it was loaded: `form`, `threads`.
    pub parameters: BTreeMap<&'static str, Parameter>,
}

/// Which versions are served.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct VersionPolicy {
    /// All of them.
    pub all: NoFields,
}

/// `{}`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct NoFields {}

/// An input or output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct ConfiguredTensor {
    /// Its name.
    pub name: String,
    /// Such as `TYPE_FP32`; `TYPE_INVALID` where the model declares none.
    pub data_type: String,
    /// Without the dimension of the batch; −1 where any size goes.
    pub dims: Vec<i64>,
}

/// How requests are put together: as they come, without a delay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct DynamicBatching {
    /// None: it depends on how long runs take.
    pub preferred_batch_size: Vec<u32>,
    /// None is configured.
    pub max_queue_delay_microseconds: u64,
    /// 1 before others, 2 as usual, 3 after them.
    pub priority_levels: u32,
    /// That of who says nothing.
    pub default_priority_level: u32,
}

/// Runs at the same time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct InstanceGroup {
    /// That of the model.
    pub name: String,
    /// `KIND_CPU` or `KIND_GPU`.
    pub kind: &'static str,
    /// How many there are at most.
    pub count: u32,
}

/// A text among the parameters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Parameter {
    /// The text.
    pub string_value: String,
}

/// Where models run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// On the processor.
    Cpu,
    /// On a graphics card.
    Gpu,
}

impl Device {
    /// As the engine calls it: `cpu`, or such as `cuda:0`.
    pub(crate) fn called(name: &str) -> Self {
        if name.starts_with("cuda") { Self::Gpu } else { Self::Cpu }
    }
}

impl ModelConfig {
    /// Of a version that is ready.
    pub fn new(entry: &ModelEntry, device: Device) -> Self {
        let has_rows = entry.max_batch > 0;
        let tensors = |specs: &[TensorSpec]| specs.iter().map(|spec| tensor(spec, has_rows)).collect();
        let text = |string_value| Parameter { string_value };
        Self {
            name: entry.name.clone(),
            platform: "pytorch_libtorch",
            backend: "pytorch",
            version_policy: VersionPolicy::default(),
            max_batch_size: entry.max_batch,
            input: tensors(&entry.inputs),
            output: tensors(&entry.outputs),
            dynamic_batching: (entry.max_batch > 1).then_some(DynamicBatching {
                preferred_batch_size: Vec::new(),
                max_queue_delay_microseconds: 0,
                priority_levels: 3,
                default_priority_level: 2,
            }),
            instance_group: vec![InstanceGroup {
                name: entry.name.clone(),
                kind: match device {
                    Device::Cpu => "KIND_CPU",
                    Device::Gpu => "KIND_GPU",
                },
                count: entry.at_once,
            }],
            default_model_filename: "model.pt",
            parameters: BTreeMap::from([
                ("form", text(entry.form.clone())),
                ("threads", text(entry.threads.to_string())),
            ]),
        }
    }
}

fn tensor(spec: &TensorSpec, has_rows: bool) -> ConfiguredTensor {
    let data_type = match Datatype::from_wire(spec.datatype).map(Datatype::name) {
        Some("BYTES") => "TYPE_STRING".into(),
        Some(name) => format!("TYPE_{name}"),
        None => "TYPE_INVALID".into(),
    };
    let dims = spec.shape.get(usize::from(has_rows)..).unwrap_or_default().to_vec();
    ConfiguredTensor { name: spec.name.clone(), data_type, dims }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn entry(max_batch: u32) -> ModelEntry {
        let input = TensorSpec {
            name: "x".into(),
            datatype: Datatype::Fp32 as u32,
            shape: vec![-1, -1, 64],
            labels: Vec::new(),
        };
        let output = TensorSpec { name: "y".into(), ..TensorSpec::default() };
        ModelEntry {
            name: "m".into(),
            version: 3,
            inputs: vec![input],
            outputs: vec![output],
            max_batch,
            at_once: 2,
            threads: 1,
            form: "frozen".into(),
            ..ModelEntry::default()
        }
    }

    #[test]
    fn a_batched_model_has_dims_without_the_batch() {
        let config = ModelConfig::new(&entry(8), Device::called("cpu"));
        assert_eq!(
            serde_json::to_value(config).unwrap(),
            json!({
                "name": "m", "platform": "pytorch_libtorch", "backend": "pytorch", "version_policy": {"all": {}},
                "max_batch_size": 8,
                "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [-1, 64]}],
                "output": [{"name": "y", "data_type": "TYPE_INVALID", "dims": []}],
                "dynamic_batching": {
                    "preferred_batch_size": [], "max_queue_delay_microseconds": 0,
                    "priority_levels": 3, "default_priority_level": 2,
                },
                "instance_group": [{"name": "m", "kind": "KIND_CPU", "count": 2}],
                "default_model_filename": "model.pt",
                "parameters": {"form": {"string_value": "frozen"}, "threads": {"string_value": "1"}},
            })
        );
    }

    #[test]
    fn what_runs_alone_has_no_dynamic_batching() {
        let alone = ModelConfig::new(&entry(1), Device::called("cuda:1"));
        assert_eq!((alone.dynamic_batching, &alone.input[0].dims[..]), (None, &[-1, 64][..]));
        assert_eq!(alone.instance_group[0].kind, "KIND_GPU");
        let without = ModelConfig::new(&entry(0), Device::Cpu);
        assert_eq!((without.dynamic_batching, &without.input[0].dims[..]), (None, &[-1, -1, 64][..]));
    }
}
