//! `postprocess` in a `model.yaml`: which output holds classes, and how they are told where a protocol has no tensors.
//! Decides whether an output can hold them; the telling is the proxy's.
//!
//! ```yaml
//! postprocess: {softmax: logits, top_k: 5}                              # or
//! postprocess: {probabilities: probabilities, answer: prediction}
//! ```

use crate::model::{Dimension, Slot};
use serde::Deserialize;
use wire::{ClassForm, Datatype, Postprocess};

/// What is declared.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Declared {
    /// The output, if it holds logits.
    softmax: Option<String>,
    /// The output, if it holds probabilities.
    probabilities: Option<String>,
    #[serde(default)]
    top_k: TopK,
    #[serde(default)]
    answer: Answer,
}

#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(try_from = "u32")]
struct TopK(u32);

impl Default for TopK {
    fn default() -> Self {
        Self(5)
    }
}

impl TryFrom<u32> for TopK {
    type Error = String;

    fn try_from(classes: u32) -> Result<Self, String> {
        match classes {
            1..=1000 => Ok(Self(classes)),
            _ => Err(format!("top_k {classes} must be 1 to 1000")),
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Answer {
    #[default]
    Ranking,
    Prediction,
}

impl Declared {
    /// The output that holds classes.
    pub(crate) fn output(&self) -> Result<&str, String> {
        match (&self.softmax, &self.probabilities) {
            (Some(output), None) | (None, Some(output)) => Ok(output),
            (Some(_), Some(_)) => Err("it has both softmax and probabilities".into()),
            (None, None) => Err("it names an output neither under softmax nor under probabilities".into()),
        }
    }

    /// Compares it with the outputs that are declared.
    pub(crate) fn bind(&self, outputs: &[Slot]) -> Result<Postprocess, String> {
        let name = self.output()?;
        let slot = outputs.iter().find(|slot| slot.name == name);
        let slot = slot.ok_or_else(|| format!("there is no output `{name}`"))?;
        let Some(form) = &slot.form else { return Err(format!("output `{name}` is not declared")) };
        let &[_, classes] = &form.shape[..] else {
            return Err(format!("output `{name}` has shape {form}, and classes need rows: [-1, CLASSES]"));
        };
        if !matches!(form.datatype, Datatype::Fp16 | Datatype::Bf16 | Datatype::Fp32 | Datatype::Fp64) {
            return Err(format!("output `{name}` is {}, classes need floats", form.datatype.name()));
        }
        match classes {
            Dimension::Fixed(classes) if !slot.labels.is_empty() && slot.labels.len() as u64 != classes => {
                return Err(format!(
                    "output `{name}` has {classes} classes and {} labels",
                    slot.labels.len()
                ));
            }
            Dimension::Fixed(_) | Dimension::Free | Dimension::Named(_) => {}
        }
        let form = match self.answer {
            Answer::Ranking => ClassForm::Ranking,
            Answer::Prediction => ClassForm::Prediction,
        };
        Ok(Postprocess {
            output: name.to_owned(),
            softmax: self.softmax.is_some(),
            top_k: self.top_k.0,
            form: form as i32,
        })
    }
}

/// The lines of a `labels.txt`, one for each class.
pub(crate) fn labels(text: &str) -> Vec<String> {
    text.lines().map(|line| line.trim().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scripted::rows_spec;

    fn bound(yaml: &str, labels: &[&str]) -> Result<Postprocess, String> {
        let mut spec = rows_spec(&[], &[("logits", 3), ("other", 1)], 1);
        spec.outputs[0].labels = labels.iter().map(|label| (*label).to_owned()).collect();
        spec.outputs[1].form.as_mut().unwrap().datatype = Datatype::Int64;
        let declared: Declared = serde_saphyr::from_str(yaml).map_err(|error| error.to_string())?;
        declared.bind(&spec.outputs)
    }

    #[test]
    fn an_output_of_floats_holds_classes() {
        let want = Postprocess { output: "logits".into(), softmax: true, top_k: 5, form: 0 };
        assert_eq!(bound("softmax: logits", &[]), Ok(want.clone()));
        let prediction = Postprocess { softmax: false, top_k: 2, form: ClassForm::Prediction as i32, ..want };
        let yaml = "{probabilities: logits, top_k: 2, answer: prediction}";
        assert_eq!(bound(yaml, &["a", "b", "c"]), Ok(prediction));
        assert_eq!(labels("a cat\r\n b\n"), ["a cat", "b"]);
    }

    #[test]
    fn what_cannot_be_told_as_classes_is_refused_with_the_reason() {
        for (yaml, names, says) in [
            ("top_k: 3", &[][..], "neither under softmax nor under probabilities"),
            ("{softmax: logits, probabilities: logits}", &[], "both softmax and probabilities"),
            ("softmax: logit", &[], "there is no output `logit`"),
            ("softmax: other", &[], "output `other` is INT64, classes need floats"),
            ("softmax: logits", &["a"], "output `logits` has 3 classes and 1 labels"),
            ("{softmax: logits, top_k: 0}", &[], "top_k 0 must be 1 to 1000"),
            ("{softmax: logits, answer: loud}", &[], "loud"),
            ("{softmax: logits, k: 1}", &[], "unknown field `k`"),
        ] {
            let error = bound(yaml, names).unwrap_err();
            assert!(error.contains(says), "{yaml}: {error}");
        }
    }
}
