//! Triton's extensions that only tell something, or set it, as messages. What is told and what may be set is decided in
//! [`crate::extensions`], for REST as well.

use super::Grpc;
use super::message::Outgoing;
use super::methods::target;
use crate::extensions;
use crate::model_config::{
    ConfiguredTensor, DynamicBatching, InstanceGroup, ModelConfig, NoFields, VersionPolicy,
};
use crate::refusal::Refusal;
use crate::settings::{LogSettings, TraceSettings};
use crate::statistics::{BatchStatistics, InferStatistics, ModelStatistics, StatisticDuration};
use protocol::inference;
use protocol::inference::log_settings_request::setting_value::ParameterChoice as AskedLog;
use protocol::inference::log_settings_response::setting_value::ParameterChoice as ToldLog;
use protocol::inference::model_config::SchedulingChoice;
use protocol::inference::model_instance_group::Kind;
use protocol::inference::model_version_policy::{All, PolicyChoice};
use protocol::inference::{log_settings_response, trace_setting_response};
use serde_json::{Map, Value};

impl Grpc {
    /// `ModelConfig`.
    pub(super) fn model_config(&self, asked: &inference::ModelConfigRequest) -> Result<Outgoing, Refusal> {
        let models = self.path.directory.load();
        let target = self.path.typical(&models, target(&asked.name, &asked.version)?);
        let config = extensions::config(&self.path.links.device(), &models, target)?;
        Ok(Outgoing::of(&inference::ModelConfigResponse { config: Some(configured(config)) }))
    }

    /// `ModelStatistics`.
    pub(super) fn model_statistics(
        &self,
        asked: &inference::ModelStatisticsRequest,
    ) -> Result<Outgoing, Refusal> {
        let target = match (asked.name.as_str(), asked.version.as_str()) {
            ("", "") => None,
            ("", version) => {
                return Err(Refusal::Invalid(format!("version `{version}` is asked for, but of no model")));
            }
            (model, version) => Some(target(model, version)?),
        };
        let all = extensions::statistics(&self.watchers.metrics, &self.path.directory.load(), target)?;
        let model_stats = all.model_stats.into_iter().map(counted).collect();
        Ok(Outgoing::of(&inference::ModelStatisticsResponse { model_stats }))
    }

    /// `TraceSetting`.
    pub(super) fn trace_setting(&self, asked: inference::TraceSettingRequest) -> Result<Outgoing, Refusal> {
        let model = Some(asked.model_name.as_str()).filter(|model| !model.is_empty());
        let settings = asked.settings.into_iter().map(|(name, setting)| (name, texts(setting.value)));
        let (tracer, control) = (self.watchers.tracer.as_deref(), self.repository.control);
        let told = extensions::trace_settings(
            &self.path.directory.load(),
            model,
            &settings.collect(),
            tracer,
            control,
        )?;
        Ok(Outgoing::of(&traced(told)))
    }
}

/// `LogSettings`.
pub(super) fn log_settings(asked: inference::LogSettingsRequest) -> Result<Outgoing, Refusal> {
    let value = |choice| match choice {
        None => Value::Null,
        Some(AskedLog::BoolParam(value)) => value.into(),
        Some(AskedLog::Uint32Param(value)) => value.into(),
        Some(AskedLog::StringParam(value)) => value.into(),
    };
    let settings = asked.settings.into_iter().map(|(name, setting)| (name, value(setting.parameter_choice)));
    let settings: Map<String, Value> = settings.collect();
    Ok(Outgoing::of(&logged(extensions::log_settings(&settings)?)))
}

/// A setting as REST's clients send it: over gRPC each is a list, and an empty one means null.
fn texts(mut texts: Vec<String>) -> Value {
    match texts.len() {
        0 => Value::Null,
        1 => texts.remove(0).into(),
        _ => texts.into(),
    }
}

fn traced(settings: TraceSettings) -> inference::TraceSettingResponse {
    let TraceSettings { trace_level, trace_rate, trace_count, trace_mode } = settings;
    let settings = [
        ("trace_level", trace_level.into_iter().map(str::to_owned).collect()),
        ("trace_rate", vec![trace_rate]),
        ("trace_count", vec![trace_count.to_owned()]),
        ("trace_mode", vec![trace_mode.to_owned()]),
    ];
    let setting =
        |(name, value): (&str, _)| (name.to_owned(), trace_setting_response::SettingValue { value });
    inference::TraceSettingResponse { settings: settings.into_iter().map(setting).collect() }
}

fn logged(settings: LogSettings) -> inference::LogSettingsResponse {
    let LogSettings { log_file, log_info, log_warning, log_error, log_verbose_level } = settings;
    let settings = [
        ("log_file", ToldLog::StringParam(log_file.to_owned())),
        ("log_info", ToldLog::BoolParam(log_info)),
        ("log_warning", ToldLog::BoolParam(log_warning)),
        ("log_error", ToldLog::BoolParam(log_error)),
        ("log_verbose_level", ToldLog::Uint32Param(log_verbose_level)),
    ];
    let setting = |(name, choice): (&str, _)| {
        (name.to_owned(), log_settings_response::SettingValue { parameter_choice: Some(choice) })
    };
    inference::LogSettingsResponse { settings: settings.into_iter().map(setting).collect() }
}

fn counted(statistics: ModelStatistics) -> inference::ModelStatistics {
    let ModelStatistics {
        name,
        version,
        last_inference,
        inference_count,
        execution_count,
        inference_stats,
        batch_stats,
    } = statistics;
    inference::ModelStatistics {
        name,
        version,
        last_inference,
        inference_count,
        execution_count,
        inference_stats: Some(by_request(inference_stats)),
        batch_stats: batch_stats.into_iter().map(by_run).collect(),
        memory_usage: Vec::new(),
        response_stats: [].into(),
    }
}

fn by_request(sums: InferStatistics) -> inference::InferStatistics {
    let InferStatistics {
        success,
        fail,
        queue,
        compute_input,
        compute_infer,
        compute_output,
        cache_hit,
        cache_miss,
    } = sums;
    inference::InferStatistics {
        success: duration(success),
        fail: duration(fail),
        queue: duration(queue),
        compute_input: duration(compute_input),
        compute_infer: duration(compute_infer),
        compute_output: duration(compute_output),
        cache_hit: duration(cache_hit),
        cache_miss: duration(cache_miss),
    }
}

fn by_run(sums: BatchStatistics) -> inference::InferBatchStatistics {
    let BatchStatistics { batch_size, compute_input, compute_infer, compute_output } = sums;
    inference::InferBatchStatistics {
        batch_size: batch_size.into(),
        compute_input: duration(compute_input),
        compute_infer: duration(compute_infer),
        compute_output: duration(compute_output),
    }
}

/// Present, even if it is 0.
fn duration(StatisticDuration { count, ns }: StatisticDuration) -> Option<inference::StatisticDuration> {
    Some(inference::StatisticDuration { count, ns })
}

fn configured(config: ModelConfig) -> inference::ModelConfig {
    let ModelConfig {
        name,
        platform,
        backend,
        version_policy: VersionPolicy { all: NoFields {} },
        max_batch_size,
        input,
        output,
        dynamic_batching,
        instance_group,
        default_model_filename,
        parameters,
    } = config;
    let parameter = |string_value| inference::ModelParameter { string_value };
    let parameters =
        parameters.into_iter().map(|(name, text)| (name.to_owned(), parameter(text.string_value)));
    inference::ModelConfig {
        name,
        platform: platform.into(),
        backend: backend.into(),
        version_policy: Some(inference::ModelVersionPolicy {
            policy_choice: Some(PolicyChoice::All(All {})),
        }),
        max_batch_size: signed(max_batch_size),
        input: input.into_iter().map(taken).collect(),
        output: output.into_iter().map(given).collect(),
        instance_group: instance_group.into_iter().map(at_once).collect(),
        default_model_filename: default_model_filename.into(),
        parameters: parameters.collect(),
        scheduling_choice: dynamic_batching.map(batching).map(SchedulingChoice::DynamicBatching),
    }
}

fn taken(tensor: ConfiguredTensor) -> inference::ModelInput {
    let data_type = number(&tensor.data_type);
    inference::ModelInput { name: tensor.name, data_type, dims: tensor.dims }
}

fn given(tensor: ConfiguredTensor) -> inference::ModelOutput {
    let data_type = number(&tensor.data_type);
    inference::ModelOutput { name: tensor.name, data_type, dims: tensor.dims }
}

/// Of a datatype, whose name in JSON is that of the number.
fn number(data_type: &str) -> i32 {
    inference::DataType::from_str_name(data_type).unwrap_or(inference::DataType::TypeInvalid).into()
}

fn batching(batching: DynamicBatching) -> inference::ModelDynamicBatching {
    let DynamicBatching {
        preferred_batch_size,
        max_queue_delay_microseconds,
        priority_levels,
        default_priority_level,
    } = batching;
    inference::ModelDynamicBatching {
        preferred_batch_size: preferred_batch_size.into_iter().map(signed).collect(),
        max_queue_delay_microseconds,
        priority_levels: priority_levels.into(),
        default_priority_level: default_priority_level.into(),
    }
}

fn at_once(group: InstanceGroup) -> inference::ModelInstanceGroup {
    let InstanceGroup { name, kind, count } = group;
    let kind = Kind::from_str_name(kind).unwrap_or(Kind::Auto).into();
    inference::ModelInstanceGroup { name, kind, count: signed(count) }
}

/// Triton counts with a sign.
fn signed(count: u32) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model_config::Device;
    use wire::{Datatype, ModelEntry, TensorSpec};

    #[test]
    fn every_datatype_and_device_has_its_number() {
        let spec = |datatype: Datatype| TensorSpec { datatype: datatype as u32, ..TensorSpec::default() };
        let mut inputs: Vec<_> = Datatype::ALL.into_iter().map(spec).collect();
        inputs.push(TensorSpec::default());
        let entry = ModelEntry { inputs, at_once: 2, ..ModelEntry::default() };
        for (device, kind) in [(Device::Cpu, Kind::Cpu), (Device::Gpu, Kind::Gpu)] {
            let config = configured(ModelConfig::new(&entry, device));
            assert_eq!((config.instance_group[0].kind(), config.instance_group[0].count), (kind, 2));
            let numbers: Vec<_> = config.input.iter().map(|input| input.data_type).collect();
            assert_eq!(numbers, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 14, 11, 12, 13, 0]);
        }
    }

    #[test]
    fn a_list_of_one_is_that_one_and_an_empty_one_is_null() {
        let of = |texts_of: &[&str]| texts(texts_of.iter().map(|text| (*text).to_owned()).collect());
        assert_eq!(of(&[]), Value::Null);
        assert_eq!(of(&["5"]), Value::from("5"));
        assert_eq!(of(&["5", "6"]), Value::from(vec!["5", "6"]));
    }
}
