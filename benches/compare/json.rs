//! What it takes to read a large tensor that comes as JSON, against reading it into `serde_json::Value` first. Checks that
//! both read the same; never touches a socket.

use proxy::decode::InferRequest;
use serde_json::Value;
use std::time::{Duration, Instant};

const ROUNDS: usize = 20;

/// Prints the ratio of two medians, taken in turn.
pub(crate) fn compare() {
    // As Python and JavaScript write random floats of 32 bits that are printed as doubles.
    let values = (0..3 * 224 * 224_u32).map(|at| f64::from(at.wrapping_mul(2_654_435_761) as f32 / 4e9));
    let data = values.map(|value| value.to_string()).collect::<Vec<_>>().join(",");
    let body = format!(
        r#"{{"inputs":[{{"name":"image","shape":[1,3,224,224],"datatype":"FP32","data":[{data}]}}]}}"#
    );
    let body = bytes::Bytes::from(body);
    let (mut ours, mut through_values) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let (took, decoded) = timed(|| InferRequest::decode(&body, None).expect("it is well-formed").payload);
        ours.push(took);
        let (took, read) = timed(|| through_value(&body));
        through_values.push(took);
        assert_eq!(decoded, read, "both read the same");
    }
    let [ours, through_values] = [ours, through_values].map(|mut all| {
        all.sort_unstable();
        all[all.len() / 2]
    });
    println!(
        "the same image as {} kB of JSON is decoded in {ours:.1?}, through serde_json::Value in {through_values:.1?}: {:.1} times as fast",
        body.len() >> 10,
        through_values.as_secs_f64() / ours.as_secs_f64()
    );
}

fn timed<T>(work: impl FnOnce() -> T) -> (Duration, T) {
    let began = Instant::now();
    let result = work();
    (began.elapsed(), result)
}

fn through_value(body: &[u8]) -> Vec<u8> {
    let request: Value = serde_json::from_slice(body).expect("it is well-formed");
    let data = request["inputs"][0]["data"].as_array().expect("it is a list");
    let floats = data.iter().map(|value| value.as_f64().expect("it is a number") as f32);
    floats.flat_map(f32::to_le_bytes).collect()
}
