//! Triton's extensions over gRPC: they tell what they tell over HTTP, and what may be set there may be set here.

use harness::{Behaviour, ScriptedEngine, Stack, grpc_request};
use protocol::inference::log_settings_request::setting_value::ParameterChoice;
use protocol::inference::model_config::SchedulingChoice;
use protocol::inference::model_instance_group::Kind;
use protocol::inference::*;
use serde_json::{Map, Value, json};
use tonic::{Code, Status};

fn statistics(stack: &Stack, name: &str, version: &str) -> Result<Vec<ModelStatistics>, Status> {
    let asked = ModelStatisticsRequest { name: name.into(), version: version.into() };
    let answer: Result<ModelStatisticsResponse, _> = stack.grpc_client().ask("ModelStatistics", asked);
    answer.map(|answer| answer.model_stats)
}

/// As REST's body has it.
fn as_json(statistics: &ModelStatistics) -> Value {
    let sum = |sum: &Option<StatisticDuration>| {
        let StatisticDuration { count, ns } = sum.expect("it is there, even if it is 0");
        json!({"count": count, "ns": ns})
    };
    let by_request = statistics.inference_stats.as_ref().expect("it is there");
    let by_run = |run: &InferBatchStatistics| {
        json!({
            "batch_size": run.batch_size,
            "compute_input": sum(&run.compute_input),
            "compute_infer": sum(&run.compute_infer),
            "compute_output": sum(&run.compute_output),
        })
    };
    json!({
        "name": statistics.name,
        "version": statistics.version,
        "last_inference": statistics.last_inference,
        "inference_count": statistics.inference_count,
        "execution_count": statistics.execution_count,
        "inference_stats": {
            "success": sum(&by_request.success),
            "fail": sum(&by_request.fail),
            "queue": sum(&by_request.queue),
            "compute_input": sum(&by_request.compute_input),
            "compute_infer": sum(&by_request.compute_infer),
            "compute_output": sum(&by_request.compute_output),
            "cache_hit": sum(&by_request.cache_hit),
            "cache_miss": sum(&by_request.cache_miss),
        },
        "batch_stats": statistics.batch_stats.iter().map(by_run).collect::<Vec<_>>(),
    })
}

#[test]
fn statistics_are_those_that_http_tells() {
    let stack = Stack::builder().start();
    let client = stack.grpc_client();
    for rows in [1, 3] {
        let asked = ModelInferRequest {
            model_version: "2".into(),
            ..grpc_request("digits", "pixels", [rows, 64], &vec![0.0; rows * 64])
        };
        client.infer(asked, &[]).unwrap();
    }
    let misshapen = ModelInferRequest {
        model_version: "1".into(),
        ..grpc_request("digits", "pixels", [1, 63], &[0.0; 63])
    };
    assert_eq!(client.infer(misshapen, &[]).unwrap_err().code(), Code::InvalidArgument);
    stack.wait_for_metric("nv_inference_request_success{model=\"digits\",version=\"2\"}", 2.0);
    let failures = "nv_inference_request_failure{model=\"digits\",reason=\"OTHER\",version=\"1\"}";
    stack.wait_for_metric(failures, 1.0);

    for (name, version, path) in [
        ("", "", "/v2/models/stats"),
        ("digits", "", "/v2/models/digits/stats"),
        ("digits", "2", "/v2/models/digits/versions/2/stats"),
    ] {
        let told: Vec<_> = statistics(&stack, name, version).unwrap().iter().map(as_json).collect();
        assert_eq!(json!({"model_stats": told}), stack.client().get(path).json(), "{path}");
    }
    let told = statistics(&stack, "digits", "2").unwrap();
    assert_eq!((told.len(), told[0].inference_count, told[0].execution_count), (1, 4, 2));
    let failed = statistics(&stack, "digits", "1").unwrap();
    assert_eq!(failed[0].inference_stats.unwrap().fail.unwrap().count, 1);
    for (name, version, code) in [
        ("nothing", "", Code::NotFound),
        ("digits", "9", Code::NotFound),
        ("digits", "two", Code::NotFound),
        ("", "2", Code::InvalidArgument),
    ] {
        assert_eq!(statistics(&stack, name, version).unwrap_err().code(), code, "{name} {version}");
    }
}

#[test]
fn the_configuration_is_that_which_http_tells() {
    let stack = Stack::builder().start();
    let client = stack.grpc_client();
    let ask = |name: &str, version: &str| {
        let asked = ModelConfigRequest { name: name.into(), version: version.into() };
        client.ask::<_, ModelConfigResponse>("ModelConfig", asked)
    };
    let config = ask("digits", "").unwrap().config.expect("it is there");
    let told = stack.client().get("/v2/models/digits/config").json();
    assert_eq!(
        (json!(config.name), json!(config.platform)),
        (told["name"].clone(), told["platform"].clone())
    );
    assert_eq!(
        (json!(config.backend), json!(config.default_model_filename)),
        (told["backend"].clone(), told["default_model_filename"].clone())
    );
    assert_eq!(json!(config.max_batch_size), told["max_batch_size"]);
    let tensor = |name: &str, data_type: DataType, dims: &[i64]| json!({"name": name, "data_type": data_type.as_str_name(), "dims": dims});
    let inputs: Vec<_> =
        config.input.iter().map(|input| tensor(&input.name, input.data_type(), &input.dims)).collect();
    let outputs: Vec<_> =
        config.output.iter().map(|output| tensor(&output.name, output.data_type(), &output.dims)).collect();
    assert_eq!((json!(inputs), json!(outputs)), (told["input"].clone(), told["output"].clone()));
    assert_eq!(inputs, [tensor("pixels", DataType::TypeFp32, &[64])]);
    let Some(SchedulingChoice::DynamicBatching(batching)) = config.scheduling_choice else {
        panic!("requests to the demo's model run together");
    };
    assert_eq!(json!(batching.priority_levels), told["dynamic_batching"]["priority_levels"]);
    assert_eq!(json!(batching.default_priority_level), told["dynamic_batching"]["default_priority_level"]);
    let group = &config.instance_group[0];
    assert_eq!((group.kind(), json!(group.count)), (Kind::Cpu, told["instance_group"][0]["count"].clone()));
    let parameters: Map<String, Value> = config
        .parameters
        .into_iter()
        .map(|(name, parameter)| (name, json!({"string_value": parameter.string_value})))
        .collect();
    assert_eq!(json!(parameters), told["parameters"]);
    assert_eq!(ask("digits", "9").unwrap_err().code(), Code::NotFound);
    assert_eq!(ask("", "").unwrap_err().code(), Code::NotFound);
}

#[test]
fn what_is_unloaded_has_no_configuration() {
    let stack = Stack::builder().start();
    let client = stack.grpc_client();
    let unload = RepositoryModelUnloadRequest { model_name: "digits".into(), ..Default::default() };
    client.ask::<_, RepositoryModelUnloadResponse>("RepositoryModelUnload", unload).unwrap();
    let asked = ModelConfigRequest { name: "digits".into(), version: String::new() };
    let refused = client.ask::<_, ModelConfigResponse>("ModelConfig", asked).unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
}

/// Asks to set texts; a list of none is null.
fn trace(stack: &Stack, model: &str, settings: &[(&str, &[&str])]) -> Result<Value, Status> {
    use trace_setting_request::SettingValue;
    let setting = |(name, texts): &(&str, &[&str])| {
        let value = texts.iter().map(|text| (*text).to_owned()).collect();
        ((*name).to_owned(), SettingValue { value })
    };
    let asked =
        TraceSettingRequest { settings: settings.iter().map(setting).collect(), model_name: model.into() };
    let told: TraceSettingResponse = stack.grpc_client().ask("TraceSetting", asked)?;
    let one = |(name, setting): (String, trace_setting_response::SettingValue)| (name, json!(setting.value));
    Ok(told.settings.into_iter().map(one).collect::<Map<_, _>>().into())
}

fn rate(settings: Result<Value, Status>) -> String {
    settings.expect("they are told")["trace_rate"][0].as_str().expect("a text").to_owned()
}

#[test]
fn the_rate_of_traces_is_set_for_both_protocols() {
    let stack = Stack::builder().config("traces: {endpoint: 'http://127.0.0.1:9', sample: 0.01}").start();
    let over_http = || stack.client().get("/v2/trace/setting").json();
    let told = trace(&stack, "", &[]).unwrap();
    assert_eq!(
        told,
        json!({"trace_level": ["TIMESTAMPS"], "trace_rate": ["100"], "trace_count": ["-1"], "trace_mode": ["opentelemetry"]})
    );
    let as_told: [(&str, &[&str]); 2] = [("trace_level", &["TIMESTAMPS"]), ("trace_rate", &["100"])];
    assert_eq!(
        trace(&stack, "", &as_told).unwrap(),
        told,
        "what is sent back as it was told changes nothing"
    );
    assert_eq!(rate(trace(&stack, "", &[("trace_rate", &["5"])])), "5");
    assert_eq!(over_http()["trace_rate"], "5");
    assert_eq!(rate(trace(&stack, "digits", &[])), "5");
    assert_eq!(rate(trace(&stack, "", &[("trace_rate", &[]), ("trace_level", &[])])), "100");
    for (model, name, texts, says) in [
        ("digits", "trace_rate", &["5"][..], "those of all models"),
        ("", "trace_rate", &["often"], "no whole number"),
        ("", "trace_rate", &["5", "6"], "no whole number"),
        ("", "trace_level", &["OFF"], "trace_level cannot be changed"),
        ("", "trace_file", &["/tmp/trace"], "no setting `trace_file`"),
    ] {
        let refused = trace(&stack, model, &[(name, texts)]).unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        assert!(refused.message().contains(says), "{refused}");
    }
    assert_eq!(over_http()["trace_rate"], "100", "a refused change is none");
    assert_eq!(trace(&stack, "nothing", &[]).unwrap_err().code(), Code::NotFound);

    let engine = ScriptedEngine::start(&[("m", 1, Behaviour::Answer)]);
    let stack = Stack::builder().external_engine(engine.socket()).start();
    let refused = trace(&stack, "", &[("trace_rate", &["5"])]).unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "it takes no orders: {refused}");
}

#[test]
fn the_log_is_told_and_stays_as_it_is() {
    use log_settings_request::SettingValue;
    let engine = ScriptedEngine::start(&[("m", 1, Behaviour::Answer)]);
    let stack = Stack::builder().external_engine(engine.socket()).start();
    let ask = |settings: &[(&str, Option<ParameterChoice>)]| -> Result<Value, Status> {
        use log_settings_response::setting_value::ParameterChoice;
        let setting = |(name, choice): &(&str, Option<_>)| {
            ((*name).to_owned(), SettingValue { parameter_choice: choice.clone() })
        };
        let asked = LogSettingsRequest { settings: settings.iter().map(setting).collect() };
        let told: LogSettingsResponse = stack.grpc_client().ask("LogSettings", asked)?;
        let value = |choice| match choice {
            ParameterChoice::BoolParam(value) => json!(value),
            ParameterChoice::Uint32Param(value) => json!(value),
            ParameterChoice::StringParam(value) => json!(value),
        };
        let one = |(name, setting): (String, log_settings_response::SettingValue)| {
            (name, value(setting.parameter_choice.expect("each has a value")))
        };
        Ok(told.settings.into_iter().map(one).collect::<Map<_, _>>().into())
    };
    let told = ask(&[]).unwrap();
    assert_eq!(told, stack.client().get("/v2/logging").json());
    let as_told = [
        ("log_file", Some(ParameterChoice::StringParam(String::new()))),
        ("log_error", Some(ParameterChoice::BoolParam(true))),
        ("log_verbose_level", Some(ParameterChoice::Uint32Param(0))),
        ("log_info", None),
    ];
    assert_eq!(ask(&as_told).unwrap(), told);
    for (name, choice, says) in [
        ("log_verbose_level", ParameterChoice::Uint32Param(1), "PENSTOCK_LOG"),
        ("log_error", ParameterChoice::BoolParam(false), "PENSTOCK_LOG"),
        ("log_format", ParameterChoice::StringParam("ISO8601".into()), "no setting `log_format`"),
    ] {
        let refused = ask(&[(name, Some(choice))]).unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        assert!(refused.message().contains(says), "{refused}");
    }
}
