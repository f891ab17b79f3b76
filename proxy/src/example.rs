//! A request that a model answers, as a line of shell, made from what the model takes. Decides what made-up values look
//! like; whether they mean anything to the model nobody knows.
//!
//! | what the model takes                      | the body                                                               |
//! |-------------------------------------------|------------------------------------------------------------------------|
//! | a few values                              | written out, in TorchServe's form                                      |
//! | more                                      | repeated by the shell, in the Open Inference Protocol's form           |
//! | 16-bit floats, which have no form as text | the same; these, and pictures, follow as bytes                         |

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use std::fmt::Write;
use wire::{Datatype, Example, Holds, ModelEntry, TensorSpec};

/// Values that are written out; more are made by the shell.
const WRITTEN_MAX: u64 = 128;

/// A picture of one pixel, as a PNG.
const DOT: &str =
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==";

/// A `curl` of this model at `origin`, such as `http://localhost:8000`; `None` if what it takes is not declared.
pub(crate) fn curl(entry: &ModelEntry, origin: &str) -> Option<String> {
    let inputs = entry.inputs.iter().zip(&entry.examples).map(|(spec, example)| Input::new(spec, example));
    let inputs: Vec<Input<'_>> = inputs.collect::<Option<_>>()?;
    if inputs.len() < entry.inputs.len() {
        return None;
    }
    let elements = inputs.iter().fold(0, |sum: u64, input| sum.saturating_add(input.elements()));
    let model = path_segment(&entry.name);
    if elements > WRITTEN_MAX || inputs.iter().any(|input| is_half(input.datatype)) {
        return Some(Script::of(&inputs, &entry.outputs).curl(&format!("{origin}/v2/models/{model}/infer")));
    }
    let field = |input: &Input<'_>| format!("{}: {}", quoted(input.name), input.nested(input.row()));
    let fields: Vec<String> = inputs.iter().map(field).collect();
    Some(format!("curl {origin}/predictions/{model} -d {}", shell(&format!("{{{}}}", fields.join(", ")))))
}

struct Input<'a> {
    name: &'a str,
    datatype: Datatype,
    holds: Holds,
    /// One row, where it has rows.
    shape: &'a [u64],
    has_rows: bool,
    /// What stands in each place.
    number: &'a str,
}

impl<'a> Input<'a> {
    fn new(spec: &'a TensorSpec, example: &'a Example) -> Option<Self> {
        Some(Self {
            name: &spec.name,
            datatype: Datatype::from_wire(spec.datatype)?,
            holds: example.holds(),
            shape: &example.shape,
            has_rows: spec.shape.first() == Some(&-1),
            number: &example.number,
        })
    }

    fn elements(&self) -> u64 {
        self.shape.iter().fold(1, |product, size| product.saturating_mul(*size))
    }

    /// The shape without the dimension of the batch, which a single row may leave out.
    fn row(&self) -> &[u64] {
        if self.has_rows { &self.shape[1..] } else { self.shape }
    }

    fn nested(&self, shape: &[u64]) -> String {
        match shape {
            [] => self.value(),
            [size, rest @ ..] => format!("[{}]", vec![self.nested(rest); *size as usize].join(", ")),
        }
    }

    fn value(&self) -> String {
        match (self.holds, self.datatype) {
            (Holds::Pictures, _) => format!("{{\"b64\": \"{DOT}\"}}"),
            // Of few tokens, for whatever length a model takes.
            (Holds::Texts, _) | (Holds::Numbers, Datatype::Bytes) => "\"words\"".into(),
            (Holds::Numbers, Datatype::Bool) => "true".into(),
            (Holds::Numbers, _) => self.number.into(),
        }
    }

    /// A command that writes it as bytes, and how many, where it has no form as text.
    fn bytes(&self) -> Option<(String, u64)> {
        // What is repeated is close enough to 1.
        let repeated = |byte: &str| {
            let bytes = self.elements().saturating_mul(2);
            (format!("head -c {bytes} /dev/zero | tr '\\000' '\\{byte}'"), bytes)
        };
        match (self.holds, self.datatype) {
            (Holds::Pictures, _) => {
                let file = BASE64_STANDARD.decode(DOT).expect("it is a constant");
                let length = (file.len() as u32).to_le_bytes();
                let octal = length.iter().chain(&file).fold(String::new(), |mut text, byte| {
                    let _ = write!(text, "\\{byte:03o}");
                    text
                });
                Some((format!("printf '{octal}'"), 4 + file.len() as u64))
            }
            (_, Datatype::Fp16) => Some(repeated("074")),
            (_, Datatype::Bf16) => Some(repeated("077")),
            _ => None,
        }
    }
}

/// Commands that write a request of the Open Inference Protocol.
#[derive(Default)]
struct Script {
    /// Of the JSON part.
    commands: String,
    /// What they write.
    length: u64,
    /// Of bytes that follow.
    bytes: String,
    /// Whether an answer in JSON would be refused.
    answers_bytes: bool,
}

impl Script {
    fn of(inputs: &[Input<'_>], outputs: &[TensorSpec]) -> Self {
        let answers_bytes =
            outputs.iter().any(|output| Datatype::from_wire(output.datatype).is_some_and(is_half));
        let mut script = Self { answers_bytes, ..Self::default() };
        let mut text = String::from("{");
        if answers_bytes {
            text.push_str("\"parameters\": {\"binary_data_output\": true}, ");
        }
        text.push_str("\"inputs\": [");
        for (at, input) in inputs.iter().enumerate() {
            let (separator, name) = (if at == 0 { "" } else { ", " }, quoted(input.name));
            let (datatype, shape) = (input.datatype.name(), input.shape);
            let _ = write!(
                text,
                "{separator}{{\"name\": {name}, \"datatype\": \"{datatype}\", \"shape\": {shape:?}, "
            );
            match input.bytes() {
                Some((command, bytes)) => {
                    let _ = write!(text, "\"parameters\": {{\"binary_data_size\": {bytes}}}}}");
                    let _ = write!(script.bytes, "{command}; ");
                }
                None => {
                    text.push_str("\"data\": [");
                    script.print(&std::mem::take(&mut text));
                    script.repeat(&input.value(), input.elements().saturating_sub(1));
                    let _ = write!(text, "{}]}}", input.value());
                }
            }
        }
        text.push_str("]}");
        script.print(&text);
        script
    }

    fn print(&mut self, text: &str) {
        let _ = write!(self.commands, "printf %s {}; ", shell(text));
        self.length = self.length.saturating_add(text.len() as u64);
    }

    /// As many values, each with a comma.
    fn repeat(&mut self, value: &str, times: u64) {
        if times > 0 {
            // What begins with a minus would be taken for an option.
            let line = format!(" {value},");
            let _ = write!(self.commands, "yes {} | head -n {times}; ", shell(&line));
            self.length = self.length.saturating_add((line.len() as u64 + 1).saturating_mul(times));
        }
    }

    fn curl(self, url: &str) -> String {
        let Self { commands, length, bytes, answers_bytes } = self;
        let output = if answers_bytes { " -o answer.bin" } else { "" };
        if bytes.is_empty() {
            return format!("{{ {commands}}} | curl {url} -d @-{output}");
        }
        format!(
            "{{ {commands}{bytes}}} | curl {url} -H 'Inference-Header-Content-Length: {length}' --data-binary @-{output}"
        )
    }
}

/// Whether it has no JSON form.
fn is_half(datatype: Datatype) -> bool {
    match datatype {
        Datatype::Fp16 | Datatype::Bf16 => true,
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
        | Datatype::Bytes => false,
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

    fn spec(name: &str, datatype: Datatype, shape: &[i64]) -> TensorSpec {
        TensorSpec {
            name: name.into(),
            datatype: datatype as u32,
            shape: shape.to_vec(),
            ..TensorSpec::default()
        }
    }

    /// Of inputs with the sizes that the engine has chosen for its example.
    fn model(inputs: &[(&str, Datatype, &[i64], &[u64])]) -> ModelEntry {
        ModelEntry {
            name: "a model".into(),
            inputs: inputs.iter().map(|(name, datatype, shape, _)| spec(name, *datatype, shape)).collect(),
            examples: inputs
                .iter()
                .map(|(_, _, _, shape)| Example {
                    shape: shape.to_vec(),
                    number: "-1".into(),
                    ..Example::default()
                })
                .collect(),
            ..ModelEntry::default()
        }
    }

    /// What the commands before the `curl` write.
    fn written(script: &str) -> Vec<u8> {
        let (commands, _) = script.split_once("| curl ").unwrap();
        let output = std::process::Command::new("sh").arg("-c").arg(commands).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        output.stdout
    }

    #[test]
    fn a_small_row_is_written_out() {
        let model =
            model(&[("x", Datatype::Fp32, &[-1, 2, 2], &[1, 2, 2]), ("it's", Datatype::Bool, &[-1], &[1])]);
        assert_eq!(
            curl(&model, "http://here").unwrap(),
            r#"curl http://here/predictions/a%20model -d '{"x": [[-1, -1], [-1, -1]], "it'\''s": true}'"#
        );
    }

    #[test]
    fn a_large_one_is_made_by_the_shell() {
        let model = model(&[
            ("x", Datatype::Int8, &[-1, 3, -1, 32], &[1, 3, 8, 32]),
            ("k", Datatype::Int64, &[1], &[1]),
        ]);
        let script = curl(&model, "http://here").unwrap();
        assert!(script.ends_with("| curl http://here/v2/models/a%20model/infer -d @-"), "{script}");
        let body: serde_json::Value = serde_json::from_slice(&written(&script)).unwrap();
        assert_eq!(body["inputs"][0]["shape"], serde_json::json!([1, 3, 8, 32]));
        assert_eq!(body["inputs"][0]["data"], serde_json::json!(vec![-1; 3 * 8 * 32]));
        assert_eq!(body["inputs"][1]["data"], serde_json::json!([-1]));
    }

    #[test]
    fn what_has_no_text_follows_as_bytes() {
        let mut model = model(&[
            ("h", Datatype::Fp16, &[-1, 2], &[1, 2]),
            ("x", Datatype::Fp32, &[-1, 200], &[1, 200]),
            ("b", Datatype::Bf16, &[-1, 3], &[1, 3]),
        ]);
        let script = curl(&model, "http://here").unwrap();
        let (_, length) = script.split_once("Inference-Header-Content-Length: ").unwrap();
        let (length, rest) = length.split_once('\'').unwrap();
        assert_eq!(rest, " --data-binary @-");
        let body = written(&script);
        let (head, bytes) = body.split_at(length.parse().unwrap());
        assert_eq!(bytes, [[0x3c; 2 * 2].as_slice(), &[0x3f; 2 * 3]].concat());
        let head: serde_json::Value = serde_json::from_slice(head).unwrap();
        assert_eq!(head["inputs"][0]["parameters"], serde_json::json!({"binary_data_size": 4}));
        assert_eq!(head["inputs"][1]["data"], serde_json::json!(vec![-1; 200]));
        assert_eq!(head["inputs"][2]["shape"], serde_json::json!([1, 3]));
        assert_eq!(head.get("parameters"), None);
        model.outputs = vec![spec("y", Datatype::Bf16, &[-1])];
        let script = curl(&model, "http://here").unwrap();
        assert!(script.ends_with(" --data-binary @- -o answer.bin"), "{script}");
        assert!(script.contains("binary_data_output"), "{script}");
    }

    #[test]
    fn files_and_texts_are_what_the_model_says_and_not_what_they_are_called() {
        let raw = |holds: Holds| {
            let mut model = model(&[("input", Datatype::Bytes, &[-1], &[1])]);
            model.examples[0].holds = holds as i32;
            model
        };
        let text = curl(&raw(Holds::Texts), "http://here").unwrap();
        assert_eq!(text, r#"curl http://here/predictions/a%20model -d '{"input": "words"}'"#);
        let mut picture = raw(Holds::Pictures);
        assert!(curl(&picture, "http://here").unwrap().contains(r#"{"input": {"b64": "iVBO"#));
        // Beside what is too long to be written out it follows as bytes.
        picture.inputs.push(spec("x", Datatype::Fp32, &[-1, 200]));
        picture.examples.push(Example { shape: vec![1, 200], number: "1".into(), ..Example::default() });
        let script = curl(&picture, "http://here").unwrap();
        let body = written(&script);
        let file = BASE64_STANDARD.decode(DOT).unwrap();
        assert!(body.ends_with(&file));
        let head = &body[..body.len() - file.len() - 4];
        let head: serde_json::Value = serde_json::from_slice(head).unwrap();
        let size = &head["inputs"][0]["parameters"]["binary_data_size"];
        assert_eq!(*size, serde_json::json!(file.len() + 4));
    }

    #[test]
    fn what_is_not_declared_has_no_example() {
        let undeclared = ModelEntry { inputs: vec![TensorSpec::default()], ..ModelEntry::default() };
        assert_eq!(curl(&undeclared, ""), None);
    }
}
