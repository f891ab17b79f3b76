//! TensorFlow Serving's, KServe V1's and TorchServe's clients find what they expect: paths, bodies, statuses, errors.

use harness::{Behaviour, Client, Response, ScriptedEngine, Stack, repository};
use serde_json::{Value, json};

const POLICY: &str = "
models:
  digits:
    labels: {stable: 1, canary: 2}
    split: {weights: {stable: 1}}
";

fn demo() -> Stack {
    Stack::builder().policies(POLICY).start()
}

fn post(client: &Client, path: &str, body: &Value) -> Response {
    client.post(path, &[], body.to_string().as_bytes())
}

fn picture() -> Vec<f64> {
    let file = repository("configs/demo/requests/digit-7.json");
    let request = std::fs::read(file).expect("a sample request");
    let request: Value = serde_json::from_slice(&request).expect("JSON");
    let pixels = request["inputs"][0]["data"].as_array().expect("an array");
    pixels.iter().map(|pixel| pixel.as_f64().expect("a number")).collect()
}

#[test]
fn tensorflow_servings_clients_predict_by_rows_and_by_columns() {
    let stack = demo();
    let client = stack.client();
    let seven = picture();
    let rows = post(&client, "/v1/models/digits:predict", &json!({"instances": [seven, seven]}));
    assert_eq!(rows.status, 200, "{}", rows.text());
    let predictions = rows.json()["predictions"].clone();
    assert_eq!((predictions[1]["digit"].as_i64(), predictions.as_array().unwrap().len()), (Some(7), 2));
    assert_eq!(predictions[0]["probabilities"].as_array().unwrap().len(), 10);
    let named = json!({"signature_name": "serving_default", "instances": [{"pixels": seven}]});
    let one = post(&client, "/v1/models/digits:predict", &named).json()["predictions"].clone();
    assert_eq!(one[0]["digit"], json!(7));
    for inputs in [json!([seven]), json!({"pixels": [seven]})] {
        let columns = post(&client, "/v1/models/digits:predict", &json!({"inputs": inputs})).json();
        assert_eq!(columns["outputs"]["digit"], json!([7]));
        assert_eq!(columns["outputs"]["probabilities"][0], one[0]["probabilities"]);
    }
}

#[test]
fn a_version_or_a_label_in_the_path_beats_the_policy_and_the_answer_says_so() {
    let stack = demo();
    let client = stack.client();
    let body = json!({"instances": [picture()]});
    let v2 = json!({"inputs": [{"name": "pixels", "shape": [1, 64], "datatype": "FP32", "data": picture()}]});
    for (path, body, version, is_pinned) in [
        ("/v1/models/digits:predict", &body, "1", false),
        ("/v1/models/digits/versions/2:predict", &body, "2", true),
        ("/v1/models/digits/labels/stable:predict", &body, "1", true),
        ("/v1/models/digits/labels/canary:predict", &body, "2", true),
        ("/v2/models/digits/labels/canary/infer", &v2, "2", true),
        ("/predictions/digits", &json!({"pixels": picture()}), "1", false),
        ("/predictions/digits/2.0", &json!({"pixels": picture()}), "2", true),
    ] {
        let answer = post(&client, path, body);
        assert_eq!((answer.status, answer.header("x-penstock-version")), (200, version), "{path}");
        let pick = answer.headers.get("x-penstock-pick").map(String::as_str);
        assert_eq!(pick, is_pinned.then_some("pinned"), "{path}");
    }
    let unknown = post(&client, "/v1/models/digits/labels/old:predict", &body);
    let says = "model `digits` has no label `old`, there is `canary`, `stable`";
    assert_eq!((unknown.status, unknown.error().as_str()), (404, says));
    // The policy changes while the client asks: the label is what it says then.
    std::fs::write(&stack.policies, "models: {digits: {labels: {stable: 2}, split: {weights: {stable: 1}}}}")
        .unwrap();
    harness::eventually("the label to be another version's", || {
        let answer = post(&client, "/v1/models/digits/labels/stable:predict", &body);
        (answer.status == 200 && answer.header("x-penstock-version") == "2").then_some(())
    });
}

#[test]
fn models_are_described_in_the_words_of_either_protocol() {
    let stack = demo();
    let client = stack.client();
    assert_eq!(client.get("/v1/models").json(), json!({"models": ["digits"]}));
    let status = client.get("/v1/models/digits").json();
    assert_eq!((&status["name"], &status["ready"]), (&json!("digits"), &json!(true)));
    let available = |version| json!({"version": version, "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}});
    assert_eq!(status["model_version_status"], json!([available("1"), available("2")]));
    let one = client.get("/v1/models/digits/labels/canary").json();
    assert_eq!(one["model_version_status"], json!([available("2")]));
    let metadata = client.get("/v1/models/digits/versions/1/metadata").json();
    assert_eq!(metadata["model_spec"]["version"], "1");
    let signature = &metadata["metadata"]["signature_def"]["signature_def"]["serving_default"];
    assert_eq!(signature["outputs"]["digit"]["dtype"], "DT_INT64");
    assert_eq!(client.get("/v1/models/nothing").status, 404);
    assert_eq!(post(&client, "/v1/models/digits:explain", &json!({})).status, 501);

    assert_eq!(client.get("/ping").json(), json!({"status": "Healthy"}));
    assert_eq!(
        client.get("/models").json(),
        json!({"models": [{"modelName": "digits", "modelUrl": "digits"}]})
    );
    let described = client.get("/models/digits/1").json();
    assert_eq!((&described[0]["modelVersion"], &described[0]["batchSize"]), (&json!("1"), &json!(64)));
    assert_eq!(client.get("/models/digits/all").json().as_array().unwrap().len(), 2);
    let unknown = client.get("/models/nothing");
    assert_eq!((unknown.status, &unknown.json()["type"]), (404, &json!("ModelNotFoundException")));
}

#[test]
fn torchserves_clients_send_json_or_a_form_and_get_json() {
    let stack = demo();
    let client = stack.client();
    let seven = picture();
    let one = post(&client, "/predictions/digits", &json!({"pixels": seven}));
    assert_eq!(one.status, 200, "{}", one.text());
    assert_eq!(one.json()["prediction"], "7");
    assert!(one.json()["confidence"].as_f64().unwrap() > 0.5, "{}", one.text());
    assert_eq!(one.json()["probabilities"].as_array().unwrap().len(), 10);
    let named = client.post(
        "/predictions/digits",
        &[("x-request-id", "r-1")],
        json!({"data": seven}).to_string().as_bytes(),
    );
    assert_eq!((named.header("x-request-id"), named.json()), ("r-1", one.json()));
    assert!(!one.header("x-request-id").is_empty());
    let many = post(&client, "/predictions/digits", &json!([seven, seven])).json();
    assert_eq!(
        (&many[0]["prediction"], &many[1]["prediction"], &many[2]),
        (&json!("7"), &json!("7"), &Value::Null)
    );
    let put = client.put("/predictions/digits", &[], json!({"pixels": seven}).to_string().as_bytes());
    assert_eq!(put.json(), one.json());
    let form = |name: &str, content: &str| {
        let body = format!(
            "--Xy\r\nContent-Disposition: form-data; name=\"{name}\"; filename=\"p.json\"\r\nContent-Type: application/json\r\n\r\n{content}\r\n--Xy--\r\n"
        );
        client.post(
            "/predictions/digits",
            &[("Content-Type", "multipart/form-data; boundary=Xy")],
            body.as_bytes(),
        )
    };
    let pixels = json!(seven).to_string();
    for name in ["data", "body", "pixels"] {
        assert_eq!(form(name, &pixels).json(), one.json(), "{name}");
    }
    let wrong = form("image", &pixels);
    assert_eq!((wrong.status, &wrong.json()["type"]), (400, &json!("BadRequestException")));
}

#[test]
fn each_mistake_is_told_in_the_form_of_its_protocol() {
    let stack = demo();
    let client = stack.client();
    let deep = "[".repeat(1_000_000);
    let predict = "/v1/models/digits:predict";
    for (path, body, status, says) in [
        (predict, "pixels", 400, "expected"),
        (predict, "{}", 400, "neither `instances` nor `inputs`"),
        (predict, r#"{"instances": [1], "inputs": [1]}"#, 400, "both"),
        (predict, r#"{"instances": [[1, 2], [3]]}"#, 400, "rows must be of one size"),
        (predict, r#"{"instances": [{"colour": 1}]}"#, 400, "no input `colour`, there is `pixels`"),
        (predict, r#"{"instances": [["a"]]}"#, 400, "a string does not fit FP32"),
        (predict, r#"{"instances": [{"b64": "AAAA"}]}"#, 400, "no input `b64`"),
        (predict, r#"{"instances": [[1, 2]]}"#, 400, "[-1, 64]"),
        (predict, r#"{"inputs": {"pixels": 1}}"#, 400, "[-1, 64]"),
        (predict, &deep, 400, ""),
        ("/v1/models/nothing:predict", r#"{"instances": [1]}"#, 404, "nothing"),
        ("/v1/models/digits/versions/9:predict", r#"{"instances": [1]}"#, 404, "9"),
        ("/predictions/digits", "pixels=7", 400, "expected"),
        ("/predictions/digits", "", 400, "EOF"),
        ("/predictions/digits", &deep, 400, ""),
        ("/predictions/digits", r#"{"pixels": [1, 2], "pixels": 3}"#, 400, "occurs twice"),
        ("/predictions/nothing", "[1]", 404, "nothing"),
        ("/models/digits", "", 405, "GET"),
        ("/v1/models/digits", "", 405, "GET"),
        ("/models?url=https://example.com/a.mar", "", 400, "not fetched"),
    ] {
        let answer = client.post(path, &[], body.as_bytes());
        let shown = &body[..body.len().min(60)];
        assert_eq!(answer.status, status, "{path} {shown}: {}", answer.text());
        let text = if path.starts_with("/v1") {
            answer.error()
        } else {
            assert_eq!(answer.json()["code"], status, "{path}");
            answer.json()["message"].as_str().unwrap().to_owned()
        };
        assert!(text.contains(says), "{path} {shown}: {text}");
    }
    assert_eq!(post(&client, predict, &json!({"instances": [picture()]})).status, 200);
}

#[test]
fn a_limit_overload_and_a_missed_deadline_can_be_told_apart() {
    let engine = ScriptedEngine::start(&[("m", 1, Behaviour::Answer)]);
    let policy = "
models: {m: {deadline: 300ms}}
limits: [{name: per-user, key: {header: x-user-id}, rate: 1/h, burst: 1}]
";
    let stack = Stack::builder().external_engine(engine.socket()).policies(policy).start();
    let client = stack.client();
    for (path, body) in [("/v1/models/m:predict", r#"{"inputs": [[1]]}"#), ("/predictions/m", "[[1]]")] {
        let ask = |user: &str| client.post(path, &[("x-user-id", user)], body.as_bytes());
        engine.set("m", 1, Behaviour::Answer);
        assert_eq!(ask(path).status, 200);
        let limited = ask(path);
        assert_eq!((limited.status, limited.header("retry-after").parse::<u32>().is_ok()), (429, true));
        engine.set("m", 1, Behaviour::Overloaded);
        let overloaded = ask(&format!("{path}-2"));
        assert_eq!((overloaded.status, overloaded.header("retry-after")), (503, "1"));
        engine.set("m", 1, Behaviour::Hang);
        assert_eq!(ask(&format!("{path}-3")).status, 504);
    }
    engine.set("m", 1, Behaviour::Fail);
    let failed = client.post("/predictions/m", &[], b"[[1]]");
    assert_eq!((failed.status, &failed.json()["type"]), (500, &json!("InternalServerException")));
}

#[test]
fn torchserves_management_loads_and_unloads_and_changes_nothing_else() {
    let stack = demo();
    let client = stack.client();
    let delete = harness::raw_exchange(
        stack.http,
        b"DELETE /models/digits/2 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        false,
    );
    assert!(delete.starts_with("HTTP/1.1 200"), "{delete}");
    assert!(delete.contains(r#"{"status":"Model \"digits\" version 2 unregistered"}"#), "{delete}");
    assert_eq!(client.get("/v1/models/digits/versions/2").json()["ready"], false);
    let register = client.post("/models?url=digits.mar&initial_workers=1", &[], b"");
    assert_eq!(register.json(), json!({"status": "Model \"digits\" registered"}), "{}", register.text());
    assert_eq!(client.get("/v1/models/digits/versions/2").json()["ready"], true);
    for path in ["/models/digits", "/models/digits/2/set-default"] {
        assert_eq!(client.put(path, &[], b"").status, 501, "{path}");
    }
    assert_eq!(client.post("/models?url=nothing", &[], b"").status, 404);
}
