//! Outputs as classes with names, where a model's author has declared that they are (`postprocess` in `model.yaml`). In
//! the forms that TorchServe's handlers give: `{"tabby": 0.4, ...}`, or `{"prediction", "confidence", "probabilities"}`.
//! Decides nothing about which outputs there are.

use crate::dialect::{Output, string};
use crate::nested::{floats, write};
use wire::{ClassForm, Datatype, ModelEntry, Postprocess};

/// What each row of an output becomes.
#[derive(Debug)]
pub(crate) struct Classes<'a> {
    declared: &'a Postprocess,
    labels: &'a [String],
    /// Of all rows, row by row.
    values: Vec<f32>,
    /// In each row.
    count: usize,
}

impl<'a> Classes<'a> {
    /// Of the output that is declared to hold them; `None` if none is, or it has no row of floats for each of the rows.
    pub(crate) fn find(entry: Option<&'a ModelEntry>, outputs: &[Output<'_>]) -> Option<Self> {
        let declared = entry?.postprocess.as_ref()?;
        let output = outputs.iter().find(|output| output.name == declared.output)?;
        let &[_, count] = output.shape else { return None };
        if count == 0 {
            return None;
        }
        let labels = entry?.outputs.iter().find(|spec| spec.name == declared.output);
        let labels = labels.map_or(&[][..], |spec| &spec.labels[..]);
        Some(Self { declared, labels, values: floats(output.datatype, output.bytes)?, count: count as usize })
    }

    /// Appends what a row is.
    pub(crate) fn write(&self, json: &mut Vec<u8>, row: usize) {
        let mut probabilities = self.values[row * self.count..][..self.count].to_vec();
        if self.declared.softmax {
            softmax(&mut probabilities);
        }
        match self.declared.form() {
            ClassForm::Ranking => self.write_ranking(json, &probabilities),
            ClassForm::Prediction => self.write_prediction(json, &probabilities),
        }
    }

    /// The most probable classes, each once: labels may be the same, keys may not.
    fn write_ranking(&self, json: &mut Vec<u8>, probabilities: &[f32]) {
        let mut written: Vec<&str> = Vec::new();
        json.push(b'{');
        for class in ranked(probabilities, self.declared.top_k as usize) {
            let name = self.labels.get(class).map_or("", String::as_str);
            if !name.is_empty() && written.contains(&name) {
                continue;
            }
            if json.last() != Some(&b'{') {
                json.push(b',');
            }
            match name {
                "" => string(json, itoa::Buffer::new().format(class)),
                name => string(json, name),
            }
            written.push(name);
            json.push(b':');
            float(json, probabilities[class]);
        }
        json.push(b'}');
    }

    fn write_prediction(&self, json: &mut Vec<u8>, probabilities: &[f32]) {
        let Some(class) = ranked(probabilities, 1).next() else { return };
        json.extend_from_slice(b"{\"prediction\":");
        match self.labels.get(class) {
            Some(label) => string(json, label),
            None => json.extend_from_slice(itoa::Buffer::new().format(class).as_bytes()),
        }
        json.extend_from_slice(b",\"confidence\":");
        float(json, probabilities[class]);
        json.extend_from_slice(b",\"probabilities\":");
        let bytes: Vec<u8> = probabilities.iter().flat_map(|value| value.to_le_bytes()).collect();
        write(json, Datatype::Fp32, &[probabilities.len() as u64], &mut &bytes[..]);
        json.push(b'}');
    }
}

/// The places of the largest values, the largest first; of equal ones the first.
fn ranked(values: &[f32], most: usize) -> impl Iterator<Item = usize> {
    let mut places: Vec<usize> = (0..values.len()).collect();
    let before = |one: &usize, other: &usize| values[*other].total_cmp(&values[*one]).then(one.cmp(other));
    if most < places.len() {
        places.select_nth_unstable_by(most, before);
        places.truncate(most);
    }
    places.sort_by(before);
    places.into_iter()
}

/// Logits become probabilities.
fn softmax(values: &mut [f32]) {
    // Relative to the largest, so that none overflows.
    let largest = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let odds: Vec<f64> = values.iter().map(|value| f64::from(value - largest).exp()).collect();
    let sum: f64 = odds.iter().sum();
    for (value, odds) in values.iter_mut().zip(odds) {
        *value = (odds / sum) as f32;
    }
}

fn float(json: &mut Vec<u8>, value: f32) {
    write(json, Datatype::Fp32, &[], &mut &value.to_le_bytes()[..]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::TensorSpec;

    fn written(postprocess: Postprocess, labels: &[&str], rows: &[&[f32]]) -> Option<Vec<String>> {
        let labels = labels.iter().map(|label| (*label).to_owned()).collect();
        let spec = TensorSpec { name: "y".into(), labels, ..TensorSpec::default() };
        let entry =
            ModelEntry { postprocess: Some(postprocess), outputs: vec![spec], ..ModelEntry::default() };
        let bytes: Vec<u8> =
            rows.iter().flat_map(|row| row.iter()).flat_map(|value| value.to_le_bytes()).collect();
        let shape = [rows.len() as u64, rows[0].len() as u64];
        let output = Output { name: "y", datatype: Datatype::Fp32, shape: &shape, bytes: &bytes };
        let classes = Classes::find(Some(&entry), &[output])?;
        let text = |row| {
            let mut json = Vec::new();
            classes.write(&mut json, row);
            String::from_utf8(json).unwrap()
        };
        Some((0..rows.len()).map(text).collect())
    }

    fn of(softmax: bool, top_k: u32, form: ClassForm) -> Postprocess {
        Postprocess { output: "y".into(), softmax, top_k, form: form as i32 }
    }

    #[test]
    fn a_ranking_names_the_most_probable_classes() {
        let rows: &[&[f32]] = &[&[0.25, 0.5, 0.125], &[0.75, 0.0, 0.25]];
        let ranking = written(of(false, 2, ClassForm::Ranking), &["cat", "dog", "fox"], rows).unwrap();
        assert_eq!(ranking, [r#"{"dog":0.5,"cat":0.25}"#, r#"{"cat":0.75,"fox":0.25}"#]);
        let unnamed = written(of(false, 9, ClassForm::Ranking), &[], rows).unwrap();
        assert_eq!(unnamed[0], r#"{"1":0.5,"0":0.25,"2":0.125}"#);
        let crane = written(of(false, 3, ClassForm::Ranking), &["crane", "crane", "fox"], rows).unwrap();
        assert_eq!(crane[0], r#"{"crane":0.5,"fox":0.125}"#, "a key occurs once");
    }

    #[test]
    fn a_prediction_is_the_most_probable_class_with_all_probabilities() {
        let rows: &[&[f32]] = &[&[0.25, 0.75]];
        let named = written(of(false, 5, ClassForm::Prediction), &["cat", "dog"], rows).unwrap();
        assert_eq!(named, [r#"{"prediction":"dog","confidence":0.75,"probabilities":[0.25,0.75]}"#]);
        let unnamed = written(of(false, 5, ClassForm::Prediction), &[], rows).unwrap();
        assert!(unnamed[0].starts_with(r#"{"prediction":1,"#), "{unnamed:?}");
    }

    #[test]
    fn logits_become_probabilities_however_large_they_are() {
        let rows: &[&[f32]] = &[&[1000.0, 1000.0], &[0.0, f32::NEG_INFINITY]];
        let odds = written(of(true, 2, ClassForm::Ranking), &["a", "b"], rows).unwrap();
        assert_eq!(odds, [r#"{"a":0.5,"b":0.5}"#, r#"{"a":1.0,"b":0.0}"#]);
    }

    #[test]
    fn an_output_that_is_no_row_of_floats_has_no_classes() {
        let output = |shape| Output { name: "y", datatype: Datatype::Int64, shape, bytes: &[0; 8] };
        let entry =
            ModelEntry { postprocess: Some(of(false, 1, ClassForm::Ranking)), ..ModelEntry::default() };
        assert!(Classes::find(Some(&entry), &[output(&[1, 1])]).is_none());
        assert!(Classes::find(Some(&entry), &[]).is_none());
        assert!(Classes::find(None, &[]).is_none());
    }
}
