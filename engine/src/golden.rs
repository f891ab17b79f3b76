//! `golden.json`: answers that a version is known to give. Decides whether it still gives them, before it answers
//! anybody; a version that does not stays unavailable.
//!
//! ```json
//! {"tolerance": 1e-3,
//!  "cases": [{"inputs":  [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [[1, 2]]}],
//!             "outputs": [{"name": "y", "datatype": "FP32", "shape": [1], "data": [3]}]}]}
//! ```
//!
//! Tensors are written as in the bodies of requests and answers, so that a case can be made of both. Beside them may stand
//! `"reference": [{"inputs": [..]}, ..]`, rows like those that the version was made for: it answers them when it is loaded, and
//! what it is given later is compared with them (see drift.rs) in place of the first rows that come.

use crate::job::{Given, check_inputs, with_masks};
use crate::model::{Gathered, Model, Output, Rows, Spec, Tolerance};
use crate::pace::Pace;
use crate::values::{apart, width};
use bytes::Bytes;
use half::{bf16, f16};
use serde::Deserialize;
use serde_json::Value;
use wire::{Datatype, Layout, TensorMeta};

/// What a version is known to answer.
#[derive(Debug)]
pub struct Golden {
    tolerance: Option<f64>,
    cases: Vec<Case>,
    reference: Vec<Case>,
}

/// Rows like those that a version was made for, and what it answers.
#[derive(Debug)]
pub(crate) struct Reference {
    pub(crate) given: Vec<Given>,
    pub(crate) payload: Bytes,
    /// 1 where the model's first dimension is not a batch.
    pub(crate) rows: u32,
    pub(crate) outputs: Vec<Output>,
}

/// Fewer rows are no distribution.
const REFERENCE_ROWS_MIN: u32 = 100;

#[derive(Debug)]
struct Case {
    inputs: Vec<TensorMeta>,
    payload: Bytes,
    outputs: Vec<Expected>,
}

#[derive(Debug)]
struct Expected {
    meta: TensorMeta,
    datatype: Datatype,
    bytes: Vec<u8>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawGolden {
    tolerance: Option<f64>,
    #[serde(default)]
    cases: Vec<RawCase>,
    #[serde(default)]
    reference: Vec<RawReference>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawReference {
    inputs: Vec<RawTensor>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCase {
    inputs: Vec<RawTensor>,
    outputs: Vec<RawTensor>,
}

/// Fields that say nothing here, such as `parameters`, may stand in what was copied.
#[derive(Deserialize)]
struct RawTensor {
    name: String,
    datatype: String,
    shape: Vec<u64>,
    data: Value,
}

impl Golden {
    /// Reads a file; the error is one line.
    pub fn parse(text: &str) -> Result<Self, String> {
        let raw: RawGolden = serde_json::from_str(text).map_err(|error| format!("golden.json: {error}"))?;
        if raw.tolerance.is_some_and(|tolerance| !(0.0..1.0).contains(&tolerance)) {
            return Err("golden.json: tolerance must be at least 0 and less than 1".into());
        }
        if raw.cases.is_empty() && raw.reference.is_empty() {
            return Err("golden.json: cases is empty; give at least one, or remove the file".into());
        }
        let cases = (1..).zip(raw.cases).map(|(number, case)| {
            Case::parse(case).map_err(|error| format!("golden.json, case {number}: {error}"))
        });
        let cases = cases.collect::<Result<_, _>>()?;
        let reference = (1..).zip(raw.reference).map(|(number, RawReference { inputs })| {
            Case::of(inputs).map_err(|error| format!("golden.json, reference {number}: {error}"))
        });
        Ok(Self { tolerance: raw.tolerance, cases, reference: reference.collect::<Result<_, _>>()? })
    }

    /// Has the version answer what it was made for; nothing if nobody says what that is.
    pub(crate) fn reference(&self, model: &dyn Model, pace: &Pace) -> Result<Vec<Reference>, String> {
        let answered = (1..).zip(&self.reference).map(|(number, case)| {
            case.answered(model, pace).map_err(|error| format!("golden.json, reference {number}: {error}"))
        });
        let answered = answered.collect::<Result<Vec<_>, _>>()?;
        let rows: u32 = answered.iter().map(|reference| reference.rows).sum();
        if !answered.is_empty() && rows < REFERENCE_ROWS_MIN {
            return Err(format!(
                "golden.json, reference: {rows} rows are no distribution; give at least {REFERENCE_ROWS_MIN}"
            ));
        }
        Ok(answered)
    }

    /// Runs every case; the error names the first that is not answered as it should be.
    pub(crate) fn check(&self, model: &dyn Model, pace: &Pace) -> Result<(), String> {
        let tolerance = self.tolerance.map_or(model.spec().tolerance, Tolerance::Of);
        (1..).zip(&self.cases).try_for_each(|(number, case)| {
            case.check(model, pace, tolerance).map_err(|error| format!("golden.json, case {number}: {error}"))
        })
    }
}

impl Case {
    fn parse(raw: RawCase) -> Result<Self, String> {
        if raw.outputs.is_empty() {
            return Err("it expects no output".into());
        }
        let outputs = raw.outputs.into_iter().map(|tensor| {
            let (meta, datatype, bytes) = tensor.parse("output")?;
            Ok(Expected { meta, datatype, bytes })
        });
        let outputs = outputs.collect::<Result<_, String>>()?;
        Ok(Self { outputs, ..Self::of(raw.inputs)? })
    }

    /// That expects nothing.
    fn of(raw: Vec<RawTensor>) -> Result<Self, String> {
        let (mut inputs, mut payload, mut layout) = (Vec::new(), Vec::new(), Layout::default());
        for tensor in raw {
            let (mut meta, _, bytes) = tensor.parse("input")?;
            meta.offset = layout.place(bytes.len()) as u64;
            payload.resize(meta.offset as usize, 0);
            payload.extend(bytes);
            inputs.push(meta);
        }
        Ok(Self { inputs, payload: payload.into(), outputs: Vec::new() })
    }

    fn check(&self, model: &dyn Model, pace: &Pace, tolerance: Tolerance) -> Result<(), String> {
        let outputs = self.answered(model, pace)?.outputs;
        self.outputs.iter().try_for_each(|expected| expected.compare(&outputs, tolerance))
    }

    fn answered(&self, model: &dyn Model, pace: &Pace) -> Result<Reference, String> {
        let spec = model.spec();
        let given =
            check_inputs(spec, self.inputs.clone(), &self.payload).map_err(|refusal| refusal.to_string())?;
        let (given, payload) =
            with_masks(spec, given, &self.payload).map_err(|refusal| refusal.to_string())?;
        for Given { slot, datatype, bytes, .. } in &given {
            let checked = spec.inputs[*slot].check_values(*datatype, &payload[bytes.clone()]);
            checked.map_err(|refusal| refusal.to_string())?;
        }
        let rows = rows(spec, &given)?;
        let inputs = given.iter().map(|given| Gathered {
            slot: given.slot,
            datatype: given.datatype,
            shape: given.shape.clone(),
            parts: vec![&payload[given.bytes.clone()]],
        });
        let outputs = pace.run(model, &inputs.collect::<Vec<_>>()).0.map_err(|error| error.message)?;
        spec.check_outputs(rows, &outputs).map_err(|wrong| wrong.to_string())?;
        let rows = match spec.rows {
            Rows::UpTo(_) => rows as u32,
            Rows::None { .. } => 1,
        };
        Ok(Reference { given, payload, rows, outputs })
    }
}

fn rows(spec: &Spec, given: &[Given]) -> Result<u64, String> {
    let rows = given.first().and_then(|given| given.shape.first()).copied().unwrap_or(1);
    match &spec.rows {
        Rows::UpTo(most) if rows > u64::from(*most) => {
            Err(format!("it has {rows} rows, at most {most} run together"))
        }
        Rows::UpTo(_) | Rows::None { .. } => Ok(rows),
    }
}

impl Expected {
    fn compare(&self, outputs: &[Output], tolerance: Tolerance) -> Result<(), String> {
        let name = &self.meta.name;
        let Some(output) = outputs.iter().find(|output| output.name == *name) else {
            return Err(format!("the model gives no output `{name}`"));
        };
        if (output.datatype, &output.shape) != (self.datatype, &self.meta.shape) {
            return Err(format!(
                "output `{name}` is {} {:?}, expected is {} {:?}",
                output.datatype.name(),
                output.shape,
                self.datatype.name(),
                self.meta.shape
            ));
        }
        match apart(self.datatype, &self.bytes, &output.bytes, tolerance) {
            (_, false) => Ok(()),
            (largest, true) => {
                Err(format!("output `{name}` differs by {} from what is expected", largest as f32))
            }
        }
    }
}

impl RawTensor {
    fn parse(self, role: &str) -> Result<(TensorMeta, Datatype, Vec<u8>), String> {
        let Self { name, datatype: kind, shape, data } = self;
        let datatype = Datatype::from_name(&kind)
            .filter(|datatype| datatype.size().is_some())
            .ok_or_else(|| format!("{role} `{name}`: no model takes or gives `{kind}`"))?;
        let mut bytes = Vec::new();
        flatten(&data, datatype, &mut bytes)
            .map_err(|value| format!("{role} `{name}`: {value} is no {}", datatype.name()))?;
        let wanted = wire::element_count(&shape);
        let got = bytes.len() / width(datatype);
        if wanted != Some(got) {
            return Err(format!("{role} `{name}`: {got} values do not fill shape {shape:?}"));
        }
        let meta = TensorMeta { name, datatype: datatype as u32, shape, offset: 0, bytes: 0 };
        Ok((meta, datatype, bytes))
    }
}

/// Appends the elements, however the lists are nested; the error is the value that is not one.
fn flatten(data: &Value, datatype: Datatype, into: &mut Vec<u8>) -> Result<(), Value> {
    if let Value::Array(values) = data {
        return values.iter().try_for_each(|value| flatten(value, datatype, into));
    }
    let not_one = || data.clone();
    let integer = || data.as_i64().ok_or_else(not_one);
    let float = || data.as_f64().ok_or_else(not_one);
    match datatype {
        Datatype::Bool => into.push(u8::from(data.as_bool().ok_or_else(not_one)?)),
        Datatype::Uint8 => into.push(u8::try_from(integer()?).map_err(|_| not_one())?),
        Datatype::Uint16 => into.extend(u16::try_from(integer()?).map_err(|_| not_one())?.to_le_bytes()),
        Datatype::Uint32 => into.extend(u32::try_from(integer()?).map_err(|_| not_one())?.to_le_bytes()),
        Datatype::Uint64 => into.extend(data.as_u64().ok_or_else(not_one)?.to_le_bytes()),
        Datatype::Int8 => into.extend(i8::try_from(integer()?).map_err(|_| not_one())?.to_le_bytes()),
        Datatype::Int16 => into.extend(i16::try_from(integer()?).map_err(|_| not_one())?.to_le_bytes()),
        Datatype::Int32 => into.extend(i32::try_from(integer()?).map_err(|_| not_one())?.to_le_bytes()),
        Datatype::Int64 => into.extend(integer()?.to_le_bytes()),
        Datatype::Fp16 => into.extend(f16::from_f64(float()?).to_le_bytes()),
        Datatype::Bf16 => into.extend(bf16::from_f64(float()?).to_le_bytes()),
        Datatype::Fp32 => into.extend((float()? as f32).to_le_bytes()),
        Datatype::Fp64 => into.extend(float()?.to_le_bytes()),
        Datatype::Bytes => return Err(not_one()),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scripted::{Scripted, fp32, output_fp32, rows_spec};

    fn golden(tolerance: &str, y: &str) -> Result<Golden, String> {
        Golden::parse(&format!(
            r#"{{{tolerance} "cases": [{{
                "inputs": [{{"name": "x", "datatype": "FP32", "shape": [2, 2], "data": [[1, 2], [3, 4]]}}],
                "outputs": [{{"name": "y", "datatype": "FP32", "shape": [2, 1], "data": {y}, "parameters": {{}}}}]
            }}]}}"#
        ))
    }

    /// Adds up each row.
    fn check(tolerance: &str, y: &str) -> Result<(), String> {
        let model = Scripted::new(rows_spec(&[("x", 2)], &[("y", 1)], 4), |inputs| {
            let sums: Vec<f32> = fp32(&inputs[0]).chunks(2).map(|row| row.iter().sum()).collect();
            Ok(vec![output_fp32("y", &[sums.len() as u64, 1], &sums)])
        });
        golden(tolerance, y)?.check(&model, &Pace::alone())
    }

    #[test]
    fn answers_are_compared_within_the_tolerance() {
        assert_eq!(check("", "[3, 7]"), Ok(()));
        assert_eq!(check("", "[[3.00001], [7]]"), Ok(()), "nested or flat");
        let off = "golden.json, case 1: output `y` differs by 0.5 from what is expected";
        assert_eq!(check("", "[3, 7.5]"), Err(off.into()));
        assert_eq!(check("\"tolerance\": 0.1,", "[3, 7.5]"), Ok(()));
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let error = |y: &str| check("", y).unwrap_err();
        assert_eq!(error("[1]"), "golden.json, case 1: output `y`: 1 values do not fill shape [2, 1]");
        assert_eq!(error("[1, \"a\"]"), "golden.json, case 1: output `y`: \"a\" is no FP32");
        assert!(golden("\"cases\": [],", "[1]").unwrap_err().starts_with("golden.json: duplicate field"));
        assert!(Golden::parse("{\"cases\": []}").unwrap_err().contains("cases is empty"));
        assert!(golden("\"tolerance\": 2,", "[1, 2]").unwrap_err().contains("less than 1"));
    }

    #[test]
    fn a_reference_is_answered_and_has_to_be_a_distribution() {
        let model = Scripted::new(rows_spec(&[("x", 1)], &[("y", 1)], 64), |inputs| {
            let x = fp32(&inputs[0]);
            Ok(vec![output_fp32("y", &[x.len() as u64, 1], &x.iter().map(|x| 2.0 * x).collect::<Vec<_>>())])
        });
        let reference = |rows: usize| {
            let case = format!(
                r#"{{"inputs": [{{"name": "x", "datatype": "FP32", "shape": [{rows}, 1], "data": {:?}}}]}}"#,
                vec![3; rows]
            );
            let text = format!(r#"{{"reference": [{case}, {case}]}}"#);
            Golden::parse(&text)?.reference(&model, &Pace::alone())
        };
        let answered = reference(60).unwrap();
        assert_eq!((answered.len(), answered[1].rows), (2, 60));
        assert_eq!(answered[1].outputs[0].bytes[..4], 6.0_f32.to_le_bytes());
        assert!(reference(40).unwrap_err().contains("80 rows are no distribution; give at least 100"));
        assert!(reference(65).unwrap_err().contains("reference 1: it has 65 rows, at most 64 run together"));
    }

    #[test]
    fn a_case_must_fit_the_model() {
        let other = Scripted::new(rows_spec(&[("x", 3)], &[("y", 1)], 4), |_| unreachable!("never asked"));
        let error = golden("", "[3, 7]").unwrap().check(&other, &Pace::alone()).unwrap_err();
        assert_eq!(error, "golden.json, case 1: input `x`: shape [2, 2] does not match [-1, 3]");
        let small = Scripted::new(rows_spec(&[("x", 2)], &[("y", 1)], 1), |_| unreachable!("never asked"));
        let error = golden("", "[3, 7]").unwrap().check(&small, &Pace::alone()).unwrap_err();
        assert_eq!(error, "golden.json, case 1: it has 2 rows, at most 1 run together");
    }
}
