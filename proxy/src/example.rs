//! A request that a model answers, as a line of shell, made from what the model takes. Decides what made-up values look
//! like; whether they mean anything to the model nobody knows.

use std::fmt::Write;
use wire::{Datatype, ModelEntry, TensorSpec};

/// Values that are written out; more are made by the shell.
const WRITTEN_MAX: usize = 128;

/// A picture of one pixel, as a PNG.
const DOT: &str = "{\"b64\": \"iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==\"}";

/// The size of a dimension that may have any.
const FREE: usize = 8;

/// A `curl` of this model at `origin`, such as `http://localhost:8000`; `None` if what it takes is not declared or
/// cannot be written as text.
pub(crate) fn curl(entry: &ModelEntry, origin: &str) -> Option<String> {
    let inputs = entry.inputs.iter().enumerate().map(|(at, spec)| {
        // One is an id that most vocabularies have, and in a mask it hides nothing.
        Input::new(spec, entry.examples.get(at).copied().unwrap_or(1))
    });
    let inputs: Vec<Input<'_>> = inputs.collect::<Option<_>>()?;
    let elements: usize = inputs.iter().map(Input::elements).sum();
    let model = path_segment(&entry.name);
    if elements <= WRITTEN_MAX {
        let fields: Vec<String> = inputs
            .iter()
            .map(|input| format!("{}: {}", quoted(input.name), input.nested(input.row())))
            .collect();
        let body = shell(&format!("{{{}}}", fields.join(", ")));
        return Some(format!("curl {origin}/predictions/{model} -d {body}"));
    }
    let mut script = String::from("{ printf %s '{\"inputs\": ['; ");
    for (at, input) in inputs.iter().enumerate() {
        let separator = if at == 0 { "" } else { ", " };
        let head = format!(
            "{separator}{{\"name\": {}, \"datatype\": \"{}\", \"shape\": {:?}, \"data\": [",
            quoted(input.name),
            input.datatype.name(),
            input.shape
        );
        let value = input.value();
        let _ = write!(
            script,
            "printf %s {}; yes {} | head -n {}; printf %s {}; ",
            shell(&head),
            shell(&format!("{value},")),
            input.elements() - 1,
            shell(&format!("{value}]}}"))
        );
    }
    let _ = write!(script, "printf %s ']}}'; }} | curl {origin}/v2/models/{model}/infer -d @-");
    Some(script)
}

struct Input<'a> {
    name: &'a str,
    datatype: Datatype,
    /// One row, where it has rows.
    shape: Vec<usize>,
    has_rows: bool,
    /// What stands in each place.
    number: i64,
}

impl<'a> Input<'a> {
    fn new(spec: &'a TensorSpec, number: i64) -> Option<Self> {
        let datatype = Datatype::from_wire(spec.datatype).filter(|datatype| has_text(*datatype))?;
        let has_rows = spec.shape.first() == Some(&-1);
        let size = |(at, size): (usize, &i64)| match (at, usize::try_from(*size)) {
            (_, Ok(size)) => size,
            (0, Err(_)) => 1,
            (_, Err(_)) => FREE,
        };
        let shape = spec.shape.iter().enumerate().map(size).collect();
        Some(Self { name: &spec.name, datatype, shape, has_rows, number })
    }

    fn elements(&self) -> usize {
        self.shape.iter().fold(1, |product, size| product.saturating_mul(*size))
    }

    /// The shape without the dimension of the batch, which a single row may leave out.
    fn row(&self) -> &[usize] {
        if self.has_rows { &self.shape[1..] } else { &self.shape }
    }

    fn nested(&self, shape: &[usize]) -> String {
        match shape {
            [] => self.value(),
            [size, rest @ ..] => format!("[{}]", vec![self.nested(rest); *size].join(", ")),
        }
    }

    fn value(&self) -> String {
        match self.datatype {
            Datatype::Bool => "true".into(),
            Datatype::Bytes if self.name.contains("image") => DOT.into(),
            Datatype::Bytes => "\"a few words\"".into(),
            Datatype::Uint8
            | Datatype::Uint16
            | Datatype::Uint32
            | Datatype::Uint64
            | Datatype::Int8
            | Datatype::Int16
            | Datatype::Int32
            | Datatype::Int64
            | Datatype::Fp16
            | Datatype::Bf16
            | Datatype::Fp32
            | Datatype::Fp64 => self.number.to_string(),
        }
    }
}

fn has_text(datatype: Datatype) -> bool {
    match datatype {
        Datatype::Fp16 | Datatype::Bf16 => false,
        Datatype::Bool
        | Datatype::Uint8
        | Datatype::Uint16
        | Datatype::Uint32
        | Datatype::Uint64
        | Datatype::Int8
        | Datatype::Int16
        | Datatype::Int32
        | Datatype::Int64
        | Datatype::Fp32
        | Datatype::Fp64
        | Datatype::Bytes => true,
    }
}

fn quoted(text: &str) -> String {
    serde_json::to_string(text).expect("a string serialises")
}

/// One word of a POSIX shell.
fn shell(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

fn path_segment(text: &str) -> String {
    use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
    const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
    utf8_percent_encode(text, PLAIN).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(inputs: &[(&str, Datatype, &[i64])]) -> ModelEntry {
        let spec = |(name, datatype, shape): &(&str, Datatype, &[i64])| TensorSpec {
            name: (*name).into(),
            datatype: *datatype as u32,
            shape: shape.to_vec(),
            ..TensorSpec::default()
        };
        ModelEntry {
            name: "a model".into(),
            inputs: inputs.iter().map(spec).collect(),
            ..ModelEntry::default()
        }
    }

    #[test]
    fn a_small_row_is_written_out() {
        let model = model(&[("x", Datatype::Fp32, &[-1, 2, 2]), ("it's", Datatype::Bool, &[-1])]);
        assert_eq!(
            curl(&model, "http://here").unwrap(),
            r#"curl http://here/predictions/a%20model -d '{"x": [[1, 1], [1, 1]], "it'\''s": true}'"#
        );
    }

    #[test]
    fn a_large_one_is_made_by_the_shell() {
        let model = model(&[("x", Datatype::Uint8, &[-1, 3, -1, 32]), ("k", Datatype::Int64, &[1])]);
        let script = curl(&model, "http://here")
            .unwrap()
            .replace("| curl http://here/v2/models/a%20model/infer -d @-", "");
        let output = std::process::Command::new("sh").arg("-c").arg(script).output().unwrap();
        let body: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(body["inputs"][0]["shape"], serde_json::json!([1, 3, 8, 32]));
        assert_eq!(body["inputs"][0]["data"], serde_json::json!(vec![1; 3 * 8 * 32]));
        assert_eq!(body["inputs"][1]["data"], serde_json::json!([1]));
    }

    #[test]
    fn what_is_not_declared_or_has_no_text_has_no_example() {
        assert_eq!(curl(&model(&[("x", Datatype::Fp16, &[-1, 2])]), ""), None);
        let undeclared = ModelEntry { inputs: vec![TensorSpec::default()], ..ModelEntry::default() };
        assert_eq!(curl(&undeclared, ""), None);
    }
}
