//! What a request asks for, checked. Whatever gets past [`Request::check_for`] has datatypes, ranks, dimensions and
//! byte lengths that fit its model, so that nothing below ever has to doubt them: libtorch reads memory by the
//! shape it is given. Every refusal is one line that names the input, what was expected and what came.

mod refusal;
mod sizes;

use crate::batcher::{Criticality, Grouping, Priority};
use crate::mailbox::Mailbox;
use crate::model::{Dimension, Output, RANK_MAX, Rows, Slot, Spec, Version};
use crate::values::{Allowed, out_of_range, width};
use bytes::Bytes;
pub(crate) use refusal::{Refusal, shortened, shortened_to};
use sizes::sizes;
pub(crate) use sizes::{pad, with_masks};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use wire::{Datatype, Run, TensorMeta, TraceContext};

/// A request on its way through the engine.
pub(crate) struct Job {
    /// What to compute.
    pub(crate) request: Request,
    pub(crate) terms: Terms,
    /// Where the answer goes.
    pub(crate) mailbox: Arc<Mailbox>,
    /// What it holds in memory, names included.
    pub(crate) bytes: usize,
    /// What it holds beside from its run on until it is answered: the copy that the run is made from, and its outputs.
    pub(crate) run_bytes: usize,
    /// Whether it has been answered, which happens once also to a request that runs in pieces; or need not be.
    pub(crate) answered: AtomicBool,
    /// What has run of it, if it runs in pieces.
    pub(crate) done: Mutex<Done>,
}

/// What a request brings beside its tensors.
pub(crate) struct Terms {
    /// The proxy's name for it.
    pub(crate) id: u64,
    pub(crate) received: Instant,
    /// How long after that its tensors were there, if they had to be made.
    pub(crate) prepared: Duration,
    pub(crate) deadline: Option<Instant>,
    pub(crate) priority: Priority,
    pub(crate) criticality: Criticality,
    /// Whose it is, as a hash; 0 if nobody says.
    pub(crate) tenant: u64,
    /// Who asks, as a hash; 0 if nobody says.
    pub(crate) caller: u64,
    pub(crate) trace: Option<Traced>,
    pub(crate) metadata_bytes: usize,
}

/// The pieces of a request that have run.
#[derive(Default)]
pub(crate) struct Done {
    pub(crate) pieces: Vec<(u32, Vec<Output>)>,
    pub(crate) rows: u64,
    pub(crate) bytes: usize,
    /// Runs of which its answer is to tell.
    pub(crate) runs: Vec<Run>,
}

impl Job {
    pub(crate) fn new(request: Request, terms: Terms, mailbox: Arc<Mailbox>) -> Self {
        let bytes = terms.metadata_bytes.saturating_add(request.payload.len());
        let run_bytes = bytes.saturating_add(request.output_bytes());
        let (answered, done) = (AtomicBool::new(false), Mutex::default());
        Self { request, terms, mailbox, bytes, run_bytes, answered, done }
    }

    /// Whether anybody still waits for its answer.
    pub(crate) fn is_wanted(&self) -> bool {
        !self.is_answered() && self.mailbox.is_open()
    }

    /// Whether its deadline has passed.
    pub(crate) fn has_expired(&self, now: Instant) -> bool {
        self.terms.deadline.is_some_and(|deadline| deadline <= now)
    }

    /// Nobody wants its answer any more.
    pub(crate) fn cancel(&self) {
        self.answered.store(true, Ordering::Relaxed);
    }

    /// Whether it has its answer, or needs none.
    pub(crate) fn is_answered(&self) -> bool {
        self.answered.load(Ordering::Relaxed)
    }

    /// The right to answer, which is given once.
    pub(crate) fn may_answer(&self) -> bool {
        !self.answered.swap(true, Ordering::Relaxed)
    }
}

/// What only traced requests carry.
pub(crate) struct Traced {
    pub(crate) context: TraceContext,
    pub(crate) received_unix_ns: u64,
}

/// A request that fits its model.
pub(crate) struct Request {
    pub(crate) version: Arc<Version>,
    /// One for each input that is present, in the order of the spec.
    pub(crate) inputs: Vec<Given>,
    /// At least 1; 1 where the model's first dimension is not a batch.
    pub(crate) rows: u32,
    pub(crate) payload: Bytes,
    /// Names of the outputs wanted; empty for all.
    pub(crate) wanted: Vec<String>,
    /// What the caller's sizes of [`Spec::dimensions`] are, where they were padded.
    pub(crate) real: Option<Box<[u64]>>,
}

/// One input and where its bytes are.
#[derive(Debug)]
pub(crate) struct Given {
    pub(crate) slot: usize,
    pub(crate) datatype: Datatype,
    pub(crate) shape: Vec<u64>,
    pub(crate) bytes: Range<usize>,
}

impl Request {
    /// Checks everything that can be checked without reading whole tensors; [`Self::check_values`] does the rest.
    pub(crate) fn check_for(
        version: &Arc<Version>,
        inputs: Vec<TensorMeta>,
        wanted: Vec<String>,
        payload: Bytes,
    ) -> Result<Self, Refusal> {
        let spec = version.model.spec();
        let mut inputs = check_inputs(spec, inputs, &payload).map_err(|refusal| refusal.with_raw(version))?;
        let rows = match &spec.rows {
            Rows::UpTo(_) => version.check_rows(inputs[0].shape[0])?,
            Rows::None { .. } => 1,
        };
        check_wanted(&wanted, &spec.outputs)?;
        let (mut payload, mut real) = (payload, None);
        if !spec.dimensions.is_empty() {
            let sizes = sizes(spec, &inputs)?;
            let to = if version.pads { spec.padded(&sizes) } else { sizes.clone() };
            if to != sizes || inputs.len() < spec.inputs.len() {
                (inputs, payload) = pad(spec, inputs, &payload, &sizes, &to)?;
                real = (to != sizes).then_some(sizes);
            }
        }
        Ok(Self { version: Arc::clone(version), inputs, rows, payload, wanted, real })
    }

    /// Whether it needs no more than one run, where it may not run in pieces.
    pub(crate) fn fits_one_run(&self) -> Result<(), Refusal> {
        match self.version.grouping {
            Grouping::Together { max_rows: most } if self.rows > most => {
                Err(Refusal::TooManyRows { rows: self.rows.into(), most })
            }
            Grouping::Together { .. } | Grouping::Alone | Grouping::Serial => Ok(()),
        }
    }

    /// Whether some of its rows have only values that the model takes. It reads all of them.
    pub(crate) fn check_values(&self, first: u32, rows: u32) -> Result<(), Refusal> {
        let slots = &self.version.model.spec().inputs;
        self.inputs.iter().enumerate().try_for_each(|(position, given)| {
            slots[given.slot].check_values(given.datatype, self.part(position, first, rows))
        })
    }

    /// Bytes that so many of its rows have of all inputs.
    pub(crate) fn input_bytes(&self, rows: u32) -> u64 {
        let whole: usize = self.inputs.iter().map(|given| given.bytes.len()).sum();
        whole as u64 * u64::from(rows) / u64::from(self.rows)
    }

    /// The bytes of some rows of one of its inputs.
    pub(crate) fn part(&self, position: usize, first: u32, rows: u32) -> &[u8] {
        let whole = &self.payload[self.inputs[position].bytes.clone()];
        let row = whole.len() / self.rows as usize;
        &whole[first as usize * row..(first + rows) as usize * row]
    }

    /// Bytes that a run gives for it, as far as that is known: what is declared, at its own sizes of the dimensions that have a
    /// name; where that is not all, what was seen of others, if it is more. All outputs are computed, whichever are wanted.
    fn output_bytes(&self) -> usize {
        let spec = self.version.model.spec();
        let has_rows = usize::from(matches!(spec.rows, Rows::UpTo(_)));
        let (mut row, mut is_all) = (0u64, !spec.outputs.is_empty());
        for slot in &spec.outputs {
            let Some(form) = &slot.form else {
                is_all = false;
                continue;
            };
            let mut bytes = width(form.datatype) as u64;
            for dimension in form.shape.iter().skip(has_rows) {
                bytes = bytes.saturating_mul(match dimension {
                    Dimension::Fixed(size) => *size,
                    Dimension::Named(_) => self.size(dimension),
                    Dimension::Free => {
                        is_all = false;
                        1
                    }
                });
            }
            row = row.saturating_add(bytes);
        }
        let row = if is_all { row } else { row.max(self.version.outputs.of_row(self.input_bytes(1))) };
        usize::try_from(row.saturating_mul(self.rows.into())).unwrap_or(usize::MAX)
    }

    /// How large a dimension is that has a name; 1 where no input has it.
    fn size(&self, named: &Dimension) -> u64 {
        let slots = &self.version.model.spec().inputs;
        let mut sizes = self.inputs.iter().filter_map(|given| {
            let form = slots[given.slot].form.as_ref()?;
            let at = form.shape.iter().position(|dimension| dimension == named)?;
            Some(given.shape[at])
        });
        sizes.next().unwrap_or(1)
    }

    /// The dimensions that must agree with those of others to run with them.
    pub(crate) fn free_dimensions(&self) -> Vec<u64> {
        let spec = self.version.model.spec();
        let (slots, rows) = (&spec.inputs, usize::from(matches!(spec.rows, Rows::UpTo(_))));
        let mut free = Vec::new();
        for given in &self.inputs {
            let Some(form) = &slots[given.slot].form else {
                free.extend(&given.shape);
                continue;
            };
            for (declared, got) in form.shape.iter().zip(&given.shape).skip(rows) {
                match declared {
                    Dimension::Free | Dimension::Named(_) => free.push(*got),
                    Dimension::Fixed(_) => {}
                }
            }
        }
        free
    }
}

impl Version {
    /// Whether a request may have so many rows; of a model without rows, elements to pre-process.
    pub(crate) fn check_rows(&self, rows: u64) -> Result<u32, Refusal> {
        let (most, splits) = match self.model.spec().rows {
            Rows::UpTo(most) => (most, matches!(self.grouping, Grouping::Together { .. })),
            Rows::None { .. } => (ELEMENTS_MAX, false),
        };
        let fits = |rows: &u32| splits || *rows <= most;
        u32::try_from(rows).ok().filter(fits).ok_or(Refusal::TooManyRows { rows, most })
    }
}

/// Nobody else says how many are too many for a model without rows.
const ELEMENTS_MAX: u32 = 64;

impl Given {
    fn check(slot: usize, declared: &Slot, meta: TensorMeta, payload: &Bytes) -> Result<Self, Refusal> {
        let name = || declared.name.clone();
        if meta.datatype == Datatype::Bytes as u32 {
            return Err(Refusal::NoNumbers { name: name() });
        }
        let rank = meta.shape.len();
        if let Some(form) = &declared.form {
            if rank != form.shape.len() && rank > RANK_MAX {
                return Err(Refusal::Rank { name: name(), rank, want: form.shape.len().to_string() });
            }
            if !form.fits(&meta.shape) {
                return Err(Refusal::Shape { name: name(), want: form.to_string(), got: meta.shape });
            }
        } else if rank > RANK_MAX {
            return Err(Refusal::Rank { name: name(), rank, want: format!("at most {RANK_MAX}") });
        }
        if let Some(position) = meta.shape.iter().position(|size| *size == 0) {
            return Err(Refusal::Empty { name: name(), position, got: meta.shape });
        }
        let (datatype, bytes) = meta.locate(payload)?;
        if let Some(form) = &declared.form
            && form.datatype != datatype
        {
            return Err(Refusal::Datatype { name: name(), want: form.datatype.name(), got: datatype.name() });
        }
        Ok(Self { slot, datatype, shape: meta.shape, bytes })
    }
}

impl Slot {
    /// Whether a tensor for it has only values that it takes.
    pub(crate) fn check_values(&self, datatype: Datatype, bytes: &[u8]) -> Result<(), Refusal> {
        let name = || self.name.clone();
        // C++ reads a bool as one bit of truth: a byte of 2 would be neither.
        if datatype == Datatype::Bool
            && let Some(got) = bytes.iter().copied().find(|byte| *byte > 1)
        {
            return Err(Refusal::Bool { name: name(), got });
        }
        let Some((min, max)) = self.bounds else { return Ok(()) };
        let allowed = Allowed { bounds: (min, max), filling: self.filling() };
        match out_of_range(datatype, bytes, allowed) {
            Some(got) => Err(Refusal::Bounds { name: name(), got, min, max }),
            None => Ok(()),
        }
    }

    /// With what it is padded, if it may be.
    fn filling(&self) -> Option<i128> {
        let is_named = |dimension: &Dimension| matches!(dimension, Dimension::Named(_));
        let may_be = self.form.as_ref().is_some_and(|form| form.shape.iter().any(is_named));
        // Of integers it is one, and of those that a double holds: manifest.rs sees to it.
        may_be.then_some(if self.mask { 0 } else { self.pad as i128 })
    }
}

/// The tensors that a model is given, each checked, in the order of the model's own; with rows, there is at least one,
/// and all have as many.
pub(crate) fn check_inputs(
    spec: &Spec,
    metas: Vec<TensorMeta>,
    payload: &Bytes,
) -> Result<Vec<Given>, Refusal> {
    let mut inputs: Vec<Given> = Vec::with_capacity(spec.inputs.len());
    for meta in metas {
        let Some(slot) = spec.inputs.iter().position(|slot| slot.name == meta.name) else {
            return Err(Refusal::UnknownInput { name: shortened(&meta.name), known: names(&spec.inputs) });
        };
        if inputs.iter().any(|given| given.slot == slot) {
            return Err(Refusal::InputTwice { name: meta.name });
        }
        inputs.push(Given::check(slot, &spec.inputs[slot], meta, payload)?);
    }
    inputs.sort_unstable_by_key(|given| given.slot);
    if inputs.len() < spec.inputs.len() {
        let present = |slot| inputs.iter().any(|given| given.slot == slot);
        let missing =
            spec.inputs.iter().enumerate().find(|(at, slot)| !slot.optional && !slot.mask && !present(*at));
        if let Some((_, slot)) = missing {
            return Err(Refusal::InputMissing { name: slot.name.clone() });
        }
    }
    if let Rows::UpTo(_) = spec.rows {
        check_rows(&spec.inputs, &inputs)?;
    }
    Ok(inputs)
}

fn check_rows(slots: &[Slot], inputs: &[Given]) -> Result<(), Refusal> {
    let first = inputs.first().expect("a model with rows has inputs, and none of them is optional");
    let rows = first.shape[0];
    for given in inputs {
        let got = given.shape[0];
        if got != rows {
            let (name, other) = (slots[given.slot].name.clone(), slots[first.slot].name.clone());
            return Err(Refusal::RowsDiffer { name, got, other, rows });
        }
    }
    Ok(())
}

fn check_wanted(wanted: &[String], outputs: &[Slot]) -> Result<(), Refusal> {
    for (position, name) in wanted.iter().enumerate() {
        // A model whose outputs are only known once it has run is asked again by split.
        if !outputs.is_empty() && !outputs.iter().any(|slot| slot.name == *name) {
            return Err(Refusal::UnknownOutput { name: shortened(name), known: names(outputs) });
        }
        if wanted[..position].contains(name) {
            return Err(Refusal::OutputTwice { name: shortened(name) });
        }
        if position >= OUTPUTS_MAX {
            return Err(Refusal::UnknownOutput {
                name: shortened(name),
                known: format!("at most {OUTPUTS_MAX}"),
            });
        }
    }
    Ok(())
}

/// Of one request to a model that does not declare any.
const OUTPUTS_MAX: usize = 256;

fn names(slots: &[Slot]) -> String {
    slots.iter().map(|slot| format!("`{}`", slot.name)).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Form, Named};
    use crate::scripted::{Scripted, catalog_of, rows_spec};
    use wire::Infer;

    fn meta(name: &str, datatype: Datatype, shape: &[u64], offset: u64) -> TensorMeta {
        TensorMeta { name: name.into(), datatype: datatype as u32, shape: shape.into(), offset, bytes: 0 }
    }

    /// Two inputs, the second of any width, with 4 rows at most; and a payload of 256 bytes of value 1.
    fn check(change: impl Fn(&mut Infer)) -> Result<Request, String> {
        let mut spec = rows_spec(&[("a", 3), ("b", 1)], &[("y", 2), ("z", 1)], 4);
        spec.inputs[1].form =
            Some(Form { datatype: Datatype::Bool, shape: vec![Dimension::Free, Dimension::Free] });
        check_against(spec, change)
    }

    fn check_against(spec: Spec, change: impl Fn(&mut Infer)) -> Result<Request, String> {
        let catalog = catalog_of("m", 3, Scripted::new(spec, |_| unreachable!("only checked")));
        let mut infer = Infer {
            model: "m".into(),
            version: 3,
            inputs: vec![meta("b", Datatype::Bool, &[2, 5], 64), meta("a", Datatype::Fp32, &[2, 3], 0)],
            ..Infer::default()
        };
        change(&mut infer);
        let check = |infer: Infer| {
            let version = catalog.find(&infer.model, infer.version)?;
            Request::check_for(version, infer.inputs, infer.outputs, Bytes::from(vec![1; 256]))
        };
        check(infer).map_err(|refusal| refusal.to_string())
    }

    fn refusal(change: impl Fn(&mut Infer)) -> String {
        check(change).err().expect("must be refused")
    }

    #[test]
    fn a_request_that_fits_is_put_in_the_order_of_the_model() {
        let request = check(|_| {}).ok().unwrap();
        assert_eq!((request.inputs[0].slot, request.inputs[0].bytes.clone()), (0, 0..24));
        assert_eq!((request.inputs[1].slot, request.inputs[1].bytes.clone()), (1, 64..74));
        assert_eq!((request.rows, request.free_dimensions()), (2, vec![5]));
    }

    #[test]
    fn each_refusal_names_the_input_what_was_expected_and_what_came() {
        assert_eq!(refusal(|i| i.model = "x".into()), "no model `x`; there are `m`");
        assert_eq!(refusal(|i| i.version = 9), "model `m` has no version 9; there are 3");
        assert_eq!(refusal(|i| i.inputs[0].name = "c".into()), "unknown input `c`; the model takes `a`, `b`");
        assert_eq!(
            refusal(|i| i.inputs[0].name = "a".into()),
            "input `a`: shape [2, 5] does not match [-1, 3]"
        );
        assert_eq!(refusal(|i| i.inputs[0] = i.inputs[1].clone()), "input `a` is given twice");
        assert_eq!(refusal(|i| drop(i.inputs.remove(0))), "input `b` is missing");
        assert_eq!(
            refusal(|i| i.inputs[1].shape = vec![2, 4]),
            "input `a`: shape [2, 4] does not match [-1, 3]"
        );
        assert_eq!(refusal(|i| i.inputs[1].shape = vec![6]), "input `a`: shape [6] does not match [-1, 3]");
        assert_eq!(refusal(|i| i.inputs[1].shape = vec![1; 99]), "input `a` has 99 dimensions, 2 expected");
        assert_eq!(
            refusal(|i| i.inputs[1].datatype = Datatype::Int32 as u32),
            "input `a`: INT32 given, FP32 expected"
        );
        assert_eq!(
            refusal(|i| i.inputs[1].shape = vec![0, 3]),
            "input `a`: dimension 0 of [0, 3] is 0; empty tensors are not run"
        );
        assert_eq!(
            refusal(|i| i.inputs[1].offset = 250),
            "input tensor `a` ends at byte 274 of a payload of 256 bytes"
        );
        assert_eq!(refusal(|i| i.inputs[1].datatype = 77), "input tensor `a` has unknown datatype 77");
        assert_eq!(refusal(|i| i.inputs[0].shape = vec![1, 5]), "input `b` has 1 rows, input `a` has 2");
        assert_eq!(refusal(|i| i.outputs = vec!["q".into()]), "unknown output `q`; the model gives `y`, `z`");
        assert_eq!(refusal(|i| i.outputs = vec!["y".into(), "y".into()]), "output `y` is requested twice");
    }

    #[test]
    fn a_request_is_known_to_give_what_is_declared_at_its_own_sizes() {
        let mut spec = rows_spec(&[("a", 3), ("b", 1)], &[("y", 1000), ("z", 1)], 4);
        let [rows, length] = [Dimension::Free, Dimension::Named(0)];
        spec.dimensions = vec![Named { name: "length".into(), pad_to: vec![8], waste_max: 1.0, max: None }];
        spec.inputs[1].form = Some(Form { datatype: Datatype::Bool, shape: vec![rows, length] });
        spec.outputs[1].form = Some(Form { datatype: Datatype::Int64, shape: vec![rows, length, length] });
        let request = check_against(spec, |_| {}).ok().unwrap();
        // Padded from 5 to 8.
        assert_eq!(request.output_bytes(), 2 * (1000 * 4 + 8 * 8 * 8));
    }

    #[test]
    fn a_bool_is_0_or_1() {
        let mut spec = rows_spec(&[("a", 1)], &[("y", 1)], 4);
        spec.inputs[0].form = Some(Form { datatype: Datatype::Bool, shape: vec![Dimension::Free] });
        let catalog = catalog_of("m", 1, Scripted::new(spec, |_| unreachable!("only checked")));
        let inputs = vec![meta("a", Datatype::Bool, &[3], 0)];
        let version = catalog.find("m", 1).ok().unwrap();
        let request = Request::check_for(version, inputs, vec![], Bytes::from_static(&[0, 1, 2]));
        let request = request.ok().unwrap();
        assert_eq!(request.check_values(0, 2), Ok(()));
        let refusal = request.check_values(2, 1).unwrap_err();
        assert_eq!(refusal.to_string(), "input `a`: a BOOL byte is 2, only 0 and 1 are");
    }

    #[test]
    fn an_undeclared_model_takes_any_shape_and_may_miss_what_is_optional() {
        let slot = |name: &str, optional| Slot {
            name: name.into(),
            form: None,
            labels: vec![],
            optional,
            finite: false,
            bounds: None,
            pad: 0.0,
            mask: false,
        };
        let spec = Spec {
            inputs: vec![slot("a", false), slot("b", true)],
            outputs: vec![],
            rows: Rows::None { why: "undeclared".into() },
            tolerance: crate::model::Tolerance::Summation,
            rounding: crate::model::Tolerance::Summation,
            bfloat16: false,
            stateful: false,
            dimensions: Vec::new(),
            postprocess: None,
        };
        let request = check_against(spec.clone(), |i| {
            i.inputs.remove(0);
            i.inputs[0].shape = vec![];
            i.outputs = vec!["anything".into()];
        });
        assert_eq!(request.ok().unwrap().inputs[0].bytes, 0..4);
        let refused = check_against(spec.clone(), |i| i.inputs[1].datatype = Datatype::Bytes as u32);
        assert_eq!(
            refused.err().unwrap(),
            "input `a`: BYTES given, and no `preprocess` of its model.yaml makes numbers of them"
        );
        let refused = check_against(spec, |i| i.inputs[0].shape = vec![1; 17]);
        assert_eq!(refused.err().unwrap(), "input `b` has 17 dimensions, at most 16 expected");
    }

    #[test]
    fn a_name_as_long_as_a_book_does_not_come_back_whole() {
        let refusal = refusal(|i| i.inputs[0].name = "n".repeat(100_000));
        assert!(refusal.len() < 200, "{}", refusal.len());
    }
}
