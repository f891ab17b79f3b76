//! Text to the tensors of a language model, by its author's `tokenizer.json` (Hugging Face's `tokenizers`). Rows of one
//! request have one length: shorter ones are filled up, and the mask says so.

use super::declared::Text;
use super::{Made, Unfit};
use crate::model::{Dimension, Slot, Spec};
use crate::values::element;
use tokenizers::{PostProcessor, Tokenizer, TruncationParams};
use wire::Datatype;

/// What is done to a text.
pub(super) struct Texts {
    pub(super) input: String,
    tokenizer: Tokenizer,
    ids: Target,
    mask: Option<Target>,
    types: Option<Target>,
    length_max: usize,
    truncates: bool,
    bytes_max: usize,
    /// The length that every row has, where the model takes no other.
    length: Option<usize>,
}

/// An input of the model, and what it is filled up with.
#[derive(Debug)]
struct Target {
    name: String,
    datatype: Datatype,
    filling: f64,
}

impl std::fmt::Debug for Texts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Texts").field("input", &self.input).field("ids", &self.ids).finish_non_exhaustive()
    }
}

impl Texts {
    /// The error begins with the property that it is about.
    pub(super) fn bind(declared: Text, spec: &Spec, tokenizer: Option<String>) -> Result<Self, String> {
        let Text { input, ids, mask, types, length_max, truncate, bytes_max } = declared;
        let length_max = length_max.0;
        let text = tokenizer.ok_or("ids: there is no tokenizer.json beside model.yaml")?;
        let mut tokenizer: Tokenizer =
            text.parse().map_err(|error| format!("ids: tokenizer.json: {error}").replace('\n', " "))?;
        let padding = tokenizer.get_padding().map_or(0, |padding| padding.pad_id);
        tokenizer.with_padding(None);
        let added = tokenizer.get_post_processor().map_or(0, |processor| processor.added_tokens(false));
        if length_max <= added {
            return Err(format!(
                "length_max: {length_max} leaves no room beside the {added} tokens that the tokenizer adds"
            ));
        }
        let truncation = TruncationParams { max_length: length_max, ..TruncationParams::default() };
        tokenizer
            .with_truncation(truncate.then_some(truncation))
            .map_err(|error| format!("length_max: tokenizer.json: {error}"))?;

        let find = |name: &str| spec.inputs.iter().find(|slot| slot.name == name);
        let slot = find(&ids).ok_or_else(|| format!("ids: the model has no input `{ids}`"))?;
        // Where the author says what a dimension is filled up with, that holds here as well.
        let is_declared =
            slot.form.iter().flat_map(|form| &form.shape).any(|size| matches!(size, Dimension::Named(_)));
        let (ids, length) = target(slot, if is_declared { slot.pad } else { f64::from(padding) })
            .map_err(|why| format!("ids: {why}"))?;
        let most = slot.form.iter().flat_map(|form| &form.shape).find_map(|size| match size {
            Dimension::Named(at) => spec.dimensions[*at].max,
            Dimension::Free | Dimension::Fixed(_) => None,
        });
        let most = length.or(most.and_then(|most| usize::try_from(most).ok()));
        if most.is_some_and(|most| most < length_max) {
            return Err(format!("length_max: {length_max} tokens do not fit input `{}`", ids.name));
        }
        let other = |property: &str, said: Option<String>, usual: &str| {
            let slot = match &said {
                Some(name) => {
                    Some(find(name).ok_or_else(|| format!("{property}: the model has no input `{name}`"))?)
                }
                None => find(usual),
            };
            let target =
                slot.map(|slot| target(slot, 0.0)).transpose().map_err(|why| format!("{property}: {why}"))?;
            match target {
                Some((target, of_target)) if of_target != length => {
                    Err(format!("{property}: input `{}` has another length than `{}`", target.name, ids.name))
                }
                target => Ok(target.map(|(target, _)| target)),
            }
        };
        let mask = other("mask", mask, "attention_mask")?;
        let types = other("types", types, "token_type_ids")?;
        Ok(Self {
            input: input.0,
            tokenizer,
            ids,
            mask,
            types,
            length_max,
            truncates: truncate,
            bytes_max,
            length,
        })
    }

    fn targets(&self) -> impl Iterator<Item = &Target> {
        std::iter::once(&self.ids).chain(&self.mask).chain(&self.types)
    }

    pub(super) fn makes(&self) -> impl Iterator<Item = &str> {
        self.targets().map(|target| target.name.as_str())
    }

    pub(super) fn bytes_of_row(&self) -> usize {
        self.targets().count() * self.length.unwrap_or(self.length_max) * size_of::<i64>()
    }

    /// The tensors of these texts, one for each row; nothing, if nobody wants them any more.
    pub(super) fn make(
        &self,
        texts: &[&[u8]],
        is_wanted: &dyn Fn() -> bool,
    ) -> Result<Option<Vec<Made>>, Unfit> {
        let mut rows = Vec::with_capacity(texts.len());
        for (row, text) in texts.iter().enumerate() {
            if !is_wanted() {
                return Ok(None);
            }
            rows.push(self.tokens(text).map_err(|why| Unfit { row, why })?);
        }
        let length =
            self.length.unwrap_or_else(|| rows.iter().map(|row| row.get_ids().len()).max().unwrap_or(0));
        let shape = [rows.len() as u64, length as u64];
        let made = |target: &Target, tokens: &dyn Fn(&tokenizers::Encoding) -> Vec<u32>| {
            let filling = element(target.datatype, target.filling);
            let mut bytes = Vec::with_capacity(rows.len() * length * size_of::<i64>());
            for row in &rows {
                let tokens = tokens(row);
                let fill = length - tokens.len();
                bytes.extend(tokens.into_iter().flat_map(|token| element(target.datatype, f64::from(token))));
                bytes.extend(filling.repeat(fill));
            }
            Made { name: target.name.clone(), datatype: target.datatype, shape: shape.into(), bytes }
        };
        let mut all = vec![made(&self.ids, &|row| row.get_ids().into())];
        all.extend(self.mask.iter().map(|mask| made(mask, &|row| vec![1; row.get_ids().len()])));
        all.extend(self.types.iter().map(|types| made(types, &|row| row.get_type_ids().into())));
        Ok(Some(all))
    }

    fn tokens(&self, text: &[u8]) -> Result<tokenizers::Encoding, String> {
        if text.len() > self.bytes_max {
            return Err(format!("has {} bytes, at most {} are read", text.len(), self.bytes_max));
        }
        let text = std::str::from_utf8(text).map_err(|error| format!("is not UTF-8: {error}"))?;
        let tokens = self
            .tokenizer
            .encode_fast(text, true)
            .map_err(|error| format!("is not taken by the tokenizer: {error}"))?;
        match tokens.get_ids().len() {
            0 => Err("has no tokens".into()),
            length if length > self.length_max => {
                debug_assert!(!self.truncates, "it would have been cut");
                Err(format!("has {length} tokens, at most {} are taken", self.length_max))
            }
            _ => Ok(tokens),
        }
    }
}

/// Whether an input takes tokens, and how many where that is fixed.
fn target(slot: &Slot, filling: f64) -> Result<(Target, Option<usize>), String> {
    let name = slot.name.clone();
    let form = slot.form.as_ref().ok_or_else(|| format!("the shape of input `{name}` is not declared"))?;
    match (form.datatype, &form.shape[..]) {
        (Datatype::Int64 | Datatype::Int32, [_, length]) => {
            let length = match length {
                Dimension::Fixed(length) => Some(*length as usize),
                Dimension::Free | Dimension::Named(_) => None,
            };
            Ok((Target { name, datatype: form.datatype, filling }, length))
        }
        (datatype, _) => {
            Err(format!("tokens are INT64 or INT32 [-1, -1], input `{name}` is {} {form}", datatype.name()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Form, Named};
    use crate::preprocess::declared::Declared;
    use crate::scripted::rows_spec;

    /// As BERT has it, with a few words, and with settings of its own that are not ours.
    const TOKENIZER: &str = r###"{
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 1, "pad_type_id": 0, "pad_token": "[PAD]"},
        "added_tokens": [],
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null, "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "[SEP]", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]}, "[SEP]": {"id": "[SEP]", "ids": [3], "tokens": ["[SEP]"]}}},
        "decoder": null,
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
            "vocab": {"[UNK]": 0, "[PAD]": 1, "[CLS]": 2, "[SEP]": 3, "a": 4, "man": 5, "eat": 6, "##s": 7, "bread": 8}}
    }"###;

    fn spec(names: &[&str], length: Dimension) -> Spec {
        let widths: Vec<_> = names.iter().map(|name| (*name, 1)).collect();
        let mut spec = rows_spec(&widths, &[("y", 1)], 4);
        for slot in &mut spec.inputs {
            slot.form = Some(Form { datatype: Datatype::Int64, shape: vec![Dimension::Free, length] });
        }
        spec
    }

    fn bind(yaml: &str, spec: &Spec) -> Result<Texts, String> {
        let declared: Declared = serde_saphyr::from_str(yaml).map_err(|error| error.to_string())?;
        Texts::bind(declared.text.unwrap(), spec, Some(TOKENIZER.into()))
    }

    fn integers(made: &Made) -> Vec<i64> {
        made.bytes.chunks_exact(8).map(|id| i64::from_le_bytes(id.try_into().unwrap())).collect()
    }

    #[test]
    fn rows_are_filled_up_to_the_longest_and_the_mask_says_so() {
        let texts =
            bind("text: {length_max: 8}", &spec(&["attention_mask", "input_ids"], Dimension::Free)).unwrap();
        let made =
            texts.make(&[b"A man eats bread", b"man"], &|| true).map_err(|unfit| unfit.why).unwrap().unwrap();
        let names: Vec<_> = made.iter().map(|made| (made.name.as_str(), &made.shape[..])).collect();
        assert_eq!(names, [("input_ids", &[2, 7][..]), ("attention_mask", &[2, 7][..])]);
        assert_eq!(integers(&made[0]), [2, 4, 5, 6, 7, 8, 3, 2, 5, 3, 1, 1, 1, 1]);
        assert_eq!(integers(&made[1]), [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0]);
    }

    #[test]
    fn what_is_too_long_is_cut_or_refused() {
        let only_ids = spec(&["input_ids"], Dimension::Free);
        let cut = bind("text: {length_max: 4}", &only_ids).unwrap();
        let made = cut.make(&[b"a man eats bread"], &|| true).map_err(|unfit| unfit.why).unwrap().unwrap();
        assert_eq!(integers(&made[0]), [2, 4, 5, 3]);
        let refuses = bind("text: {length_max: 4, truncate: false, bytes_max: 20}", &only_ids).unwrap();
        let why = |text: &[u8]| {
            refuses.make(&[b"a man", text], &|| true).err().map(|unfit| (unfit.row, unfit.why)).unwrap()
        };
        assert_eq!(why(b"a man eats"), (1, "has 6 tokens, at most 4 are taken".into()));
        assert_eq!(why(&[b'a'; 21]), (1, "has 21 bytes, at most 20 are read".into()));
        assert!(why(b"\xff").1.starts_with("is not UTF-8: "));
        assert_eq!(
            refuses.make(&[b""], &|| true).map_err(|unfit| unfit.why).unwrap().unwrap()[0].shape,
            [1, 2]
        );
    }

    #[test]
    fn a_fixed_length_is_always_that_and_a_declared_filling_is_taken() {
        let fixed = spec(&["input_ids", "token_type_ids"], Dimension::Fixed(6));
        let made = bind("text: {length_max: 5}", &fixed)
            .unwrap()
            .make(&[b"man"], &|| true)
            .map_err(|unfit| unfit.why)
            .unwrap()
            .unwrap();
        assert_eq!(integers(&made[0]), [2, 5, 3, 1, 1, 1]);
        assert_eq!((made[1].name.as_str(), integers(&made[1])), ("token_type_ids", vec![0; 6]));
        let mut named = spec(&["input_ids"], Dimension::Named(0));
        named.dimensions = vec![Named { name: "tokens".into(), pad_to: vec![], waste_max: 0.0, max: None }];
        named.inputs[0].pad = 7.0;
        let made = bind("text: {length_max: 5}", &named).unwrap().make(&[b"a man", b"a"], &|| true);
        assert_eq!(integers(&made.map_err(|unfit| unfit.why).unwrap().unwrap()[0]), [2, 4, 5, 3, 2, 4, 3, 7]);
    }

    #[test]
    fn what_does_not_fit_the_model_is_named_with_its_place() {
        let only_ids = spec(&["input_ids"], Dimension::Free);
        for (yaml, says) in [
            ("text: {}", "missing field `length_max`"),
            ("text: {length_max: 0}", "length_max 0 must be 1 to 1048576"),
            (
                "text: {length_max: 2}",
                "length_max: 2 leaves no room beside the 2 tokens that the tokenizer adds",
            ),
            ("text: {length_max: 8, ids: tokens}", "ids: the model has no input `tokens`"),
            ("text: {length_max: 8, mask: seen}", "mask: the model has no input `seen`"),
        ] {
            let error = bind(yaml, &only_ids).err().unwrap();
            assert!(error.contains(says), "{yaml}: {error}");
        }
        let short = spec(&["input_ids"], Dimension::Fixed(4));
        let error = bind("text: {length_max: 5}", &short).err().unwrap();
        assert_eq!(error, "length_max: 5 tokens do not fit input `input_ids`");
        let floats = rows_spec(&[("input_ids", 4)], &[("y", 1)], 4);
        let error = bind("text: {length_max: 4}", &floats).err().unwrap();
        assert_eq!(error, "ids: tokens are INT64 or INT32 [-1, -1], input `input_ids` is FP32 [-1, 4]");
        let declared: Declared = serde_saphyr::from_str("text: {length_max: 4}").unwrap();
        let error = Texts::bind(declared.text.unwrap(), &only_ids, None).err().unwrap();
        assert_eq!(error, "ids: there is no tokenizer.json beside model.yaml");
    }
}
