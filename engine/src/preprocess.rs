//! Pre-processing that a model's author declares: what callers send, a file or a text, becomes the tensors that the model
//! takes. Decides which inputs are raw, and what is made of them; where and when that is done is `preparers.rs`'s.
//!
//! ```text
//!   image: BYTES [rows] ─▶ decode ─▶ resize ─▶ crop ─▶ normalise ─▶ FP32 [rows, 3, height, width]
//!   text:  BYTES [rows] ─▶ tokens ─▶ cut ─▶ fill up ─▶ ids, mask, types  [rows, tokens]
//! ```
//!
//! A caller may send the model's own tensors instead: then nothing is done.

pub(crate) mod declared;
mod image;
mod orientation;
mod picture;
mod resample;
mod room;
mod text;
mod work;

use crate::job::{Refusal, shortened_to};
use crate::model::{Spec, Version};
use bytes::Bytes;
pub(crate) use declared::Declared;
use image::Images;
pub(crate) use room::Room;
use std::ops::Range;
use text::Texts;
use wire::{Datatype, Elements, Example, Holds, Layout, Limits, TensorMeta, TensorSpec, element_count};
use work::Tally;
pub(crate) use work::{Kind, Work};

/// What is done to the requests of one model.
#[derive(Debug)]
pub struct Preprocess {
    steps: Vec<Step>,
}

/// What becomes of one raw input.
#[derive(Debug)]
enum Step {
    Images(Images),
    Texts(Box<Texts>),
}

/// A tensor of the model that is made of raw elements.
struct Made {
    name: String,
    datatype: Datatype,
    shape: Vec<u64>,
    bytes: Vec<u8>,
}

/// What a request needs that is to be pre-processed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Needs {
    /// Bytes that its tensors will have at most.
    pub(crate) tensor_bytes: usize,
    pub(crate) work: Work,
}

/// What an element is refused for: said after its input and row.
struct Unfit {
    row: usize,
    why: String,
}

impl Preprocess {
    /// Compares what is declared with the model. `tokenizer` gives what stands in `tokenizer.json`, if there is one. The
    /// error is one line that names the place.
    pub(crate) fn bind(
        declared: Declared,
        spec: &Spec,
        tokenizer: impl FnOnce() -> Result<Option<String>, String>,
    ) -> Result<Self, String> {
        let mut steps = Vec::new();
        if let Some(declared) = declared.image {
            let images = Images::bind(declared, spec);
            steps.push(Step::Images(images.map_err(|why| format!("model.yaml: preprocess.image.{why}"))?));
        }
        if let Some(declared) = declared.text {
            let texts = Texts::bind(declared, spec, tokenizer()?);
            let texts = texts.map_err(|why| format!("model.yaml: preprocess.text.{why}"))?;
            steps.push(Step::Texts(Box::new(texts)));
        }
        let this = Self { steps };
        this.check_names(spec).map_err(|why| format!("model.yaml: preprocess: {why}"))?;
        Ok(this)
    }

    fn check_names(&self, spec: &Spec) -> Result<(), String> {
        if self.steps.is_empty() {
            return Err("neither `image` nor `text` is declared".into());
        }
        for (position, step) in self.steps.iter().enumerate() {
            let (name, before) = (step.input(), &self.steps[..position]);
            if before.iter().any(|other| other.input() == name) {
                return Err(format!("two inputs have the name `{name}`"));
            }
            if let Some(made) =
                step.makes().find(|made| before.iter().any(|step| step.makes().any(|it| it == *made)))
            {
                return Err(format!("input `{made}` of the model is made twice"));
            }
            let is_made = self.steps.iter().any(|step| step.makes().any(|made| made == name));
            if spec.inputs.iter().any(|slot| slot.name == name) && !is_made {
                return Err(format!("`{name}` is another input of the model; give `input` another name"));
            }
        }
        Ok(())
    }

    /// Whether anything has to be done to a request with these inputs.
    pub(crate) fn concerns(&self, inputs: &[TensorMeta]) -> bool {
        inputs.iter().any(|meta| self.step(meta).is_some())
    }

    /// How callers see the model's inputs, each with something that it takes: what is made of a raw one does not have to be sent.
    pub(crate) fn to_wire(&self, spec: &Spec) -> Vec<(TensorSpec, Example)> {
        let mut announced = Vec::new();
        let mut inputs = Vec::new();
        for (slot, example) in spec.inputs.iter().zip(spec.examples()) {
            match self.steps.iter().position(|step| step.makes().any(|made| made == slot.name)) {
                None => inputs.push((slot.to_wire(), example)),
                Some(step) if announced.contains(&step) => {}
                Some(step) => {
                    announced.push(step);
                    let raw = TensorSpec {
                        name: self.steps[step].input().to_owned(),
                        datatype: Datatype::Bytes as u32,
                        shape: vec![-1],
                        labels: Vec::new(),
                    };
                    let holds = match &self.steps[step] {
                        Step::Images(_) => Holds::Pictures,
                        Step::Texts(_) => Holds::Texts,
                    };
                    let example = Example { shape: vec![1], holds: holds as i32, ..Example::default() };
                    inputs.push((raw, example));
                }
            }
        }
        inputs
    }

    /// Names that callers may use, beside those of the model's own inputs.
    pub(crate) fn raw_names(&self) -> Vec<String> {
        self.steps.iter().map(|step| step.input().to_owned()).collect()
    }

    /// The same in words.
    pub(crate) fn names(&self) -> String {
        self.steps.iter().map(|step| format!("`{}`", step.input())).collect::<Vec<_>>().join(", ")
    }

    /// What has to be known before anybody does the work: that all raw inputs are lists of elements, no more of them than
    /// run together, and what they need.
    pub(crate) fn needs(
        &self,
        inputs: &[TensorMeta],
        payload: &[u8],
        version: &Version,
    ) -> Result<Needs, Refusal> {
        let (mut sum, mut tally) = (0usize, Tally::default());
        for (meta, step) in inputs.iter().filter_map(|meta| Some((meta, self.step(meta)?))) {
            let name = || step.input().to_owned();
            let (_, at) = meta.locate(payload)?;
            let rows = element_count(&meta.shape).expect("locate has counted them");
            if rows == 0 {
                return Err(Refusal::Empty { name: name(), position: 0, got: meta.shape.clone() });
            }
            if meta.shape.first() != Some(&(rows as u64)) {
                return Err(Refusal::Shape { name: name(), want: "[-1]".into(), got: meta.shape.clone() });
            }
            version.check_rows(rows as u64)?;
            let bytes = step.bytes_of_row().saturating_mul(rows);
            sum = sum.saturating_add(bytes);
            let most = Limits::default().payload_bytes;
            if sum > most {
                return Err(Refusal::too_many_bytes(sum, most));
            }
            tally.add(&payload[at], |element| step.work(element));
        }
        Ok(Needs { tensor_bytes: sum, work: tally.work() })
    }

    /// The request with the model's own tensors. Slow: milliseconds for each row.
    pub(crate) fn apply(
        &self,
        inputs: Vec<TensorMeta>,
        payload: &Bytes,
        room: &Room,
        is_wanted: &dyn Fn() -> bool,
    ) -> Result<(Vec<TensorMeta>, Bytes), Refusal> {
        let (mut metas, mut tensors, mut layout) = (Vec::new(), Vec::new(), Layout::default());
        let mut add = |name, datatype: Datatype, shape, bytes: &[u8]| {
            let start = layout.place(bytes.len());
            tensors.resize(start, 0);
            tensors.extend_from_slice(bytes);
            metas.push(TensorMeta { name, datatype: datatype as u32, shape, offset: start as u64, bytes: 0 });
        };
        for meta in inputs {
            let (datatype, at) = meta.locate(payload)?;
            let Some(step) = self.step(&meta) else {
                add(meta.name, datatype, meta.shape, &payload[at]);
                continue;
            };
            let made = step.make(elements(payload, at), room, is_wanted).map_err(|unfit| Refusal::Unfit {
                name: meta.name.clone(),
                row: unfit.row,
                why: shortened_to(&unfit.why, 200),
            })?;
            for Made { name, datatype, shape, bytes } in made.ok_or(Refusal::Expired)? {
                add(name, datatype, shape, &bytes);
            }
        }
        Ok((metas, tensors.into()))
    }

    fn step(&self, meta: &TensorMeta) -> Option<&Step> {
        // A tensor of that name may be the model's own.
        let is_raw = meta.datatype == Datatype::Bytes as u32;
        self.steps.iter().find(|step| is_raw && step.input() == meta.name)
    }
}

fn elements(payload: &[u8], at: Range<usize>) -> Vec<&[u8]> {
    Elements::of(&payload[at]).map(|element| element.expect("locate has seen that they are whole")).collect()
}

impl Step {
    fn input(&self) -> &str {
        match self {
            Self::Images(images) => &images.input,
            Self::Texts(texts) => &texts.input,
        }
    }

    /// Inputs of the model.
    fn makes(&self) -> impl Iterator<Item = &str> {
        let (one, several) = match self {
            Self::Images(images) => (Some(images.to.as_str()), None),
            Self::Texts(texts) => (None, Some(texts.makes())),
        };
        one.into_iter().chain(several.into_iter().flatten())
    }

    fn bytes_of_row(&self) -> usize {
        match self {
            Self::Images(images) => images.bytes_of_row(),
            Self::Texts(texts) => texts.bytes_of_row(),
        }
    }

    /// How much there is to do for one row.
    fn work(&self, row: &[u8]) -> (Kind, u64) {
        match self {
            Self::Images(images) => images.work(row),
            Self::Texts(_) => work::of_text(row),
        }
    }

    /// Nothing, as soon as nobody wants it any more.
    fn make(
        &self,
        rows: Vec<&[u8]>,
        room: &Room,
        is_wanted: &dyn Fn() -> bool,
    ) -> Result<Option<Vec<Made>>, Unfit> {
        match self {
            Self::Images(images) => {
                images.make(&rows, room, is_wanted).map(|made| made.map(|made| vec![made]))
            }
            Self::Texts(texts) => texts.make(&rows, is_wanted),
        }
    }
}
