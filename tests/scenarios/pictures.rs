//! A model that declares pre-processing takes files as they are: over REST they are elements of BYTES, and what cannot be
//! decoded is its sender's mistake and nobody else's.

use harness::{Stack, repository};
use serde_json::json;
use std::fs;

/// A shape, the files, and what the refusal says.
type Case<'a> = (&'a [usize], Vec<&'a [u8]>, &'a str);

const INFER: &str = "/v2/models/channels/infer";

fn stack() -> (Stack, tempfile::TempDir) {
    let models = tempfile::tempdir().expect("a folder");
    let version = models.path().join("channels/1");
    fs::create_dir_all(&version).expect("a folder");
    for file in ["model.pt", "model.yaml"] {
        fs::copy(repository("tests/data/models/channels/1").join(file), version.join(file)).expect("copied");
    }
    (Stack::builder().models(models.path()).policies("models: {}").start(), models)
}

fn picture(name: &str) -> Vec<u8> {
    fs::read(repository("tests/data/pictures").join(name)).expect("a picture")
}

/// Each file behind its length, behind the JSON that says so; and how long that JSON is.
fn binary(shape: &[usize], files: &[&[u8]]) -> (Vec<u8>, String) {
    let lengths = files.iter().map(|file| (file.len() as u32).to_le_bytes());
    let tensor: Vec<u8> =
        lengths.zip(files).flat_map(|(length, file)| [&length[..], file].concat()).collect();
    let parameters = json!({"binary_data_size": tensor.len()});
    let input = json!({"name": "image", "shape": shape, "datatype": "BYTES", "parameters": parameters});
    let head = json!({"inputs": [input]}).to_string();
    let length = head.len().to_string();
    ([head.into_bytes(), tensor].concat(), length)
}

#[test]
fn files_are_decoded_before_the_model_gets_them() {
    let (stack, _models) = stack();
    let client = stack.client();
    let metadata = client.get("/v2/models/channels").json();
    assert_eq!(metadata["inputs"], json!([{"name": "image", "datatype": "BYTES", "shape": [-1]}]));

    let names = ["baseline.jpg", "progressive.jpg", "rgb.png", "lossy.webp", "grey.jpg"];
    let files: Vec<Vec<u8>> = names.iter().map(|name| picture(name)).collect();
    let files: Vec<&[u8]> = files.iter().map(Vec::as_slice).collect();
    let (body, length) = binary(&[5], &files);
    let answer = client.post(INFER, &[("inference-header-content-length", &length)], &body);
    let means = answer.output("mean");
    for (row, name) in names.iter().enumerate() {
        let pixels = picture(&format!("{name}.rgb"));
        for colour in 0..3 {
            let sum: f64 = pixels.iter().skip(colour).step_by(3).map(|level| f64::from(*level)).sum();
            let want = sum / (40.0 * 40.0) / 255.0;
            let got = means[row * 3 + colour].as_f64().expect("a number");
            assert!((got - want).abs() < 0.002, "{name}: {got} for {want}");
        }
    }

    let pixels = json!({"name": "x", "shape": [1, 3, 40, 40], "datatype": "FP32", "data": vec![0.5; 4800]});
    let answer = client.post(INFER, &[], json!({"inputs": [pixels]}).to_string().as_bytes());
    assert_eq!(answer.output("mean"), json!([0.5, 0.5, 0.5]), "the model's own tensor is taken as well");
}

#[test]
fn what_cannot_be_decoded_is_told_by_its_row_and_harms_nobody() {
    let (stack, _models) = stack();
    let client = stack.client();
    let good = picture("grey.jpg");
    let huge = [
        &b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\x9c\x40\0\0\x61\xa8\x08\0\0\0\0"[..],
        &0x8bd9_932f_u32.to_be_bytes(),
    ]
    .concat();
    let half = &good[..good.len() / 2];
    let cases: [Case<'_>; 7] = [
        (&[2], vec![&good, half], "input `image`, row 1 is a broken JPEG image"),
        (&[1], vec![b"text"], "row 0 is no JPEG, PNG or WebP image"),
        (&[1], vec![b""], "row 0 has no pixels"),
        (&[1], vec![&huge], "row 0 has 40000×25000 pixels, at most 50000000 are read"),
        (&[2], vec![&good], "tensor `image` has 1 elements, shape [2] has 2"),
        (&[0], vec![], "empty tensors are not run"),
        (&[1, 2], vec![&good, &good], "shape [1, 2] does not match [-1]"),
    ];
    for (shape, files, says) in cases {
        let (body, length) = binary(shape, &files);
        let answer = client.post(INFER, &[("inference-header-content-length", &length)], &body);
        assert_eq!(answer.status, 400, "{says}: {}", answer.text());
        assert!(answer.error().contains(says), "{says}: {}", answer.error());
    }
    let text = json!({"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": ["text"]}]});
    let answer = client.post(INFER, &[], text.to_string().as_bytes());
    assert_eq!((answer.status, answer.error().contains("is no JPEG")), (400, true), "{}", answer.text());
    let other = json!({"inputs": [{"name": "x", "shape": [1], "datatype": "BYTES", "data": ["text"]}]});
    let answer = client.post(INFER, &[], other.to_string().as_bytes());
    assert_eq!((answer.status, answer.error().contains("BYTES given")), (400, true), "{}", answer.text());

    let (body, length) = binary(&[1], &[&good]);
    assert_eq!(client.post(INFER, &[("inference-header-content-length", &length)], &body).status, 200);
}
