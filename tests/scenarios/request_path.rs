//! A request that makes sense gets the right answer from the right version, in the form in which it asked.

use harness::{Stack, repository};
use serde_json::{Value, json};

fn digit(number: u32) -> Vec<u8> {
    std::fs::read(repository("configs/demo/requests").join(format!("digit-{number}.json")))
        .expect("a sample request")
}

/// Held-out rows that no version was trained on: label, then 64 pixels.
fn held_out() -> Vec<(i64, Vec<f32>)> {
    let text = std::fs::read_to_string(repository("tests/data/digits_held_out.csv")).expect("held-out rows");
    text.lines()
        .map(|line| {
            let numbers: Vec<f32> = line.split(',').map(|number| number.parse().expect("a number")).collect();
            (numbers[0] as i64, numbers[1..].to_vec())
        })
        .collect()
}

#[test]
fn every_sample_digit_is_recognised_by_both_versions() {
    let stack = Stack::builder().start();
    for number in 0..10 {
        for version in [1, 2] {
            let answer = stack.client().post(
                &format!("/v2/models/digits/versions/{version}/infer"),
                &[],
                &digit(number),
            );
            assert_eq!(answer.output("digit"), json!([number]));
            assert_eq!(answer.header("x-penstock-version"), version.to_string());
            assert_eq!(answer.header("x-penstock-generation"), "1");
            assert_eq!(answer.json()["model_version"], version.to_string());
        }
    }
}

#[test]
fn served_models_reach_the_accuracy_they_were_trained_to() {
    let stack = Stack::builder().start();
    let promised: Value = serde_json::from_slice(
        &std::fs::read(repository("tests/data/digits_accuracy.json")).expect("figures"),
    )
    .expect("JSON");
    let rows = held_out();
    assert_eq!(promised["rows"], rows.len());
    for version in ["1", "2"] {
        let mut right = 0;
        for batch in rows.chunks(50) {
            let pixels: Vec<f32> = batch.iter().flat_map(|(_, pixels)| pixels.clone()).collect();
            let body = harness::infer_body("pixels", [batch.len(), 64], &pixels);
            let answer =
                stack.client().post(&format!("/v2/models/digits/versions/{version}/infer"), &[], &body);
            let digits = answer.output("digit");
            right += batch
                .iter()
                .zip(digits.as_array().expect("digits"))
                .filter(|((label, _), digit)| **digit == *label)
                .count();
        }
        let accuracy = right as f64 / rows.len() as f64;
        let promised = promised[version].as_f64().expect("a figure");
        assert!(accuracy >= promised - 1e-9, "version {version}: {accuracy} served, {promised} trained");
    }
}

#[test]
fn without_a_policy_the_highest_version_answers() {
    let stack = Stack::builder().start();
    let answer = stack.client().infer("digits", &[], &digit(3));
    assert_eq!((answer.status, answer.header("x-penstock-version")), (200, "2"));
}

#[test]
fn rows_that_run_together_get_the_answers_they_get_alone() {
    let stack = Stack::builder().start();
    std::thread::scope(|scope| {
        for number in 0..10 {
            let client = stack.client();
            scope.spawn(move || {
                for _ in 0..30 {
                    assert_eq!(client.infer("digits", &[], &digit(number)).output("digit"), json!([number]));
                }
            });
        }
    });
}

#[test]
fn binary_tensors_go_in_and_come_out() {
    let stack = Stack::builder().start();
    let (label, pixels) = held_out().swap_remove(7);
    let tensor: Vec<u8> = pixels.iter().flat_map(|pixel| pixel.to_le_bytes()).collect();
    let json = json!({
        "id": "bin-1",
        "inputs": [{"name": "pixels", "shape": [1, 64], "datatype": "FP32", "parameters": {"binary_data_size": 256}}],
        "outputs": [{"name": "digit", "parameters": {"binary_data": true}}, {"name": "probabilities"}],
    })
    .to_string();
    let body = [json.as_bytes(), &tensor].concat();
    let header = json.len().to_string();
    let answer = stack.client().infer("digits", &[("Inference-Header-Content-Length", &header)], &body);
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.header("content-type"), "application/octet-stream");
    let json_len: usize = answer.header("inference-header-content-length").parse().expect("a length");
    let json: Value = serde_json::from_slice(&answer.body[..json_len]).expect("JSON in front");
    assert_eq!(json["id"], "bin-1");
    assert_eq!(json["outputs"][0]["parameters"]["binary_data_size"], 8);
    assert_eq!(json["outputs"][1]["data"].as_array().expect("probabilities as JSON").len(), 10);
    assert_eq!(answer.body[json_len..], label.to_le_bytes());
}

#[test]
fn every_datatype_survives_the_round_trip() {
    let stack = Stack::builder().models(repository("tests/data/models")).start_unready();
    harness::eventually("kinds to be ready", || {
        (stack.client().get("/v2/models/kinds/ready").status == 200).then_some(())
    });
    let float = |name: &str, datatype: &str| json!({"name": name, "shape": [1, 2], "datatype": datatype, "data": [-1.5, "NaN"]});
    let int = |name: &str, datatype: &str, data: Value| json!({"name": name, "shape": [1, 2], "datatype": datatype, "data": data});
    let half = |name: &str, datatype: &str| json!({"name": name, "shape": [1, 2], "datatype": datatype, "parameters": {"binary_data_size": 4}});
    let names = ["b", "u8", "u16", "u32", "u64", "i8", "i16", "i32", "i64", "f16", "bf16", "f32", "f64"];
    let output = |name: &str| json!({"name": format!("{name}_out"), "parameters": {"binary_data": name.ends_with("f16")}});
    let outputs: Vec<Value> = names.into_iter().map(output).collect();
    let json = json!({"inputs": [
        int("b", "BOOL", json!([true, false])), int("u8", "UINT8", json!([0, 255])),
        int("u16", "UINT16", json!([0, u16::MAX])), int("u32", "UINT32", json!([0, u32::MAX])), int("u64", "UINT64", json!([0, u64::MAX])),
        int("i8", "INT8", json!([-128, 127])),
        int("i16", "INT16", json!([-32768, 32767])), int("i32", "INT32", json!([i32::MIN, i32::MAX])), int("i64", "INT64", json!([i64::MIN, i64::MAX])),
        half("f16", "FP16"), half("bf16", "BF16"), float("f32", "FP32"), float("f64", "FP64")],
        "outputs": outputs,
    })
    .to_string();
    let halves = [1_u8, 2, 3, 4, 5, 6, 7, 8];
    let header = json.len().to_string();
    let answer = stack.client().infer(
        "kinds",
        &[("Inference-Header-Content-Length", &header)],
        &[json.as_bytes(), &halves].concat(),
    );
    assert_eq!(answer.status, 200, "{}", answer.text());
    let json_len: usize = answer.header("inference-header-content-length").parse().expect("a length");
    assert_eq!(answer.body[json_len..], halves);
    let text = std::str::from_utf8(&answer.body[..json_len]).expect("text");
    for values in [
        "[true,false]",
        "[0,255]",
        "[0,65535]",
        "[0,4294967295]",
        "[0,18446744073709551615]",
        "[-128,127]",
        "[-32768,32767]",
        "[-2147483648,2147483647]",
        "[-9223372036854775808,9223372036854775807]",
        "[-1.5,NaN]",
    ] {
        assert!(text.contains(values), "{values} in {text}");
    }
}

#[test]
fn models_describe_themselves() {
    let stack = Stack::builder().start();
    let client = stack.client();
    assert_eq!(client.get("/v2").json()["name"], "penstock");
    assert_eq!(client.get("/v2/health/live").json(), json!({"live": true}));
    assert_eq!(client.get("/v2/health/ready").json(), json!({"ready": true}));
    let model = client.get("/v2/models/digits").json();
    assert_eq!(model["versions"], json!(["1", "2"]));
    assert_eq!(model["inputs"], json!([{"name": "pixels", "datatype": "FP32", "shape": [-1, 64]}]));
    assert_eq!(model["outputs"][0]["name"], "digit");
    assert_eq!(
        client.get("/v2/models/digits/versions/1/ready").json(),
        json!({"name": "digits", "ready": true})
    );
    assert_eq!(client.get("/v2/models/digits/versions/9/ready").status, 404);
}
