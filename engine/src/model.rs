//! What a model is to the rest of the engine: a [`Spec`] and a way to run one batch. Two kinds exist, libtorch's
//! ([`crate::torch`]) and the scripted ones of tests, so lanes, trial and split never see a tensor library.
//!
//! ```text
//!   parts of input 0   ├ job 1: 2 rows ┤├ job 2: 1 row ┤├ job 3: 4 rows ┤     run      output 0   ├── 7 rows ──┤
//!   parts of input 1   ├ job 1: 2 rows ┤├ job 2: 1 row ┤├ job 3: 4 rows ┤   ──────▶    output 1   ├── 7 rows ──┤
//! ```

use crate::audit::Audit;
use crate::batcher::Grouping;
use crate::calibrate::Way;
use crate::drift::Drift;
use crate::library::Content;
use crate::orders::Retirement;
use crate::preprocess::Preprocess;
use crate::values;
pub use crate::values::Tolerance;
use bytes::Bytes;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use wire::{Datatype, Example, Holds, TensorSpec};

/// More dimensions than this no tensor has; libtorch itself stops at 64.
pub const RANK_MAX: usize = 16;

/// Of a dimension that may have any size, in examples.
const EXAMPLE_SIZE: u64 = 8;

/// Something that computes outputs from inputs. Called from several lanes at once unless its trial forbids it.
pub trait Model: Send + Sync {
    /// What it takes and gives.
    fn spec(&self) -> &Spec;

    /// Computes one batch: one [`Gathered`] for each input that is present, in the order of [`Spec::inputs`].
    /// The outputs come in the order of [`Spec::outputs`], or in the model's own where that is empty.
    fn run(&self, inputs: &[Gathered<'_>]) -> Result<Vec<Output>, ModelError>;

    /// The same, and when the inputs were in place, where the model can tell that from its computing.
    fn run_noting(
        &self,
        inputs: &[Gathered<'_>],
        _in_place: &mut Instant,
    ) -> Result<Vec<Output>, ModelError> {
        self.run(inputs)
    }

    /// What can be told from its code. Takes as long as bringing it into another form.
    fn code(&self) -> Code {
        Code::default()
    }

    /// Whether a run has. Cheap, and may be asked while it runs.
    fn has_written(&self) -> bool {
        false
    }

    /// From now on each run uses so many threads.
    fn use_threads(&self, threads: usize);

    /// The same model in another form, which may or may not be faster; an error says why there is none.
    fn optimised(&self, optimisation: Optimisation) -> Result<Box<dyn Model>, String>;
}

/// What runs of a model may do beside computing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Code {
    /// They change what the model keeps from one run to the next.
    pub writes: bool,
    /// They draw random numbers.
    pub draws: bool,
    /// They set where the random numbers begin that are drawn next, by whatever run.
    pub seeds: bool,
}

/// Forms that a model can be brought into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Optimisation {
    /// Weights become constants of the graph, and what is constant is computed ahead.
    Freeze,
    /// Frozen, and operators fused or exchanged for those of the CPU library.
    Inference,
    /// Frozen, with images in channels-last order.
    ChannelsLast,
    /// Frozen, computing with floats of 16 bits: only where the model's author allows it.
    Bfloat16,
}

impl Optimisation {
    /// In the order in which they are tried.
    pub const ALL: [Self; 4] = [Self::Freeze, Self::Inference, Self::ChannelsLast, Self::Bfloat16];
}

impl fmt::Display for Optimisation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Freeze => "frozen",
            Self::Inference => "optimised for inference",
            Self::ChannelsLast => "channels last",
            Self::Bfloat16 => "bfloat16",
        })
    }
}

/// What a model takes and gives.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    /// In the order of the model's arguments.
    pub inputs: Vec<Slot>,
    /// In the order of its results; empty when that is only known once it has run.
    pub outputs: Vec<Slot>,
    /// What the first dimensions mean.
    pub rows: Rows,
    /// By how much another form of the model may differ.
    pub tolerance: Tolerance,
    /// By how much answers to the same row may differ when it runs with others.
    pub rounding: Tolerance,
    /// Whether it may compute with floats of 16 bits.
    pub bfloat16: bool,
    /// Whether its author says that answers depend on earlier requests.
    pub stateful: bool,
    /// Dimensions that have a name.
    pub dimensions: Vec<Named>,
    /// What the outputs mean, where a protocol has no tensors.
    pub postprocess: Option<wire::Postprocess>,
}

/// A dimension of any size that is the same in all tensors of a request. Requests may be padded to fewer sizes, so that
/// more of them run together.
#[derive(Clone, Debug, PartialEq)]
pub struct Named {
    /// As it stands in shapes.
    pub name: String,
    /// Sizes that are padded to, in order.
    pub pad_to: Vec<u64>,
    /// At most this share of a padded dimension may be padding; else it stays as it is. Of an input that is padded in several
    /// dimensions, at most the largest of their shares.
    pub waste_max: f64,
    /// A longer one is refused.
    pub max: Option<u64>,
}

impl Named {
    /// This size, or the largest that there may be.
    pub(crate) fn at_most(&self, size: u64) -> u64 {
        self.max.map_or(size, |max| size.min(max))
    }

    /// What a request of this size is padded to, for all that is known of its other dimensions.
    pub(crate) fn padded(&self, size: u64) -> u64 {
        let next = self.pad_to.iter().copied().find(|to| *to >= size).unwrap_or(size);
        let waste = (next - size) as f64 / next as f64;
        if waste <= self.waste_max { next } else { size }
    }
}

/// What the first dimensions of a model's tensors mean.
#[derive(Clone, Debug, PartialEq)]
pub enum Rows {
    /// Independent rows (as far as anybody declared), of which one run takes so many.
    UpTo(u32),
    /// Something else, for this reason; then a request is the unit.
    None {
        /// One line, such as ``output `y` does not start with -1``.
        why: String,
    },
}

/// One input or output.
#[derive(Clone, Debug, PartialEq)]
pub struct Slot {
    /// Its name on the wire and in JSON.
    pub name: String,
    /// Datatype and shape, where they are declared.
    pub form: Option<Form>,
    /// What the indices of the last dimension mean; usually empty.
    pub labels: Vec<String>,
    /// Whether a request may leave it out.
    pub optional: bool,
    /// Of an output: rows that hold a NaN or an infinity are an error.
    pub finite: bool,
    /// Of an input of integers: the smallest and the largest value that may come.
    pub bounds: Option<(i128, i128)>,
    /// Of an input: the value that is padded with.
    pub pad: f64,
    /// Of an input: 1 where the others hold what the caller sent, 0 where they are padded. Made here if the caller does
    /// not send it.
    pub mask: bool,
}

/// Declared datatype and shape.
#[derive(Clone, Debug, PartialEq)]
pub struct Form {
    /// Of each element.
    pub datatype: Datatype,
    /// From the outermost dimension to the innermost.
    pub shape: Vec<Dimension>,
}

/// One declared dimension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dimension {
    /// Any size, written −1.
    Free,
    /// This size, at least 1.
    Fixed(u64),
    /// That of the dimension at this place of [`Spec::dimensions`].
    Named(usize),
}

/// One input of a batch. Its parts, one for each job, follow each other along the first dimension.
#[derive(Clone, Debug)]
pub struct Gathered<'a> {
    /// Position among [`Spec::inputs`].
    pub slot: usize,
    /// Of each element.
    pub datatype: Datatype,
    /// Of all parts together; no dimension is 0.
    pub shape: Vec<u64>,
    /// Little-endian elements; their lengths add up to what datatype and shape say.
    pub parts: Vec<&'a [u8]>,
}

/// One output of a batch.
#[derive(Clone, Debug)]
pub struct Output {
    /// Its name.
    pub name: String,
    /// Of each element.
    pub datatype: Datatype,
    /// Of all rows together.
    pub shape: Vec<u64>,
    /// Little-endian elements, as many as datatype and shape say.
    pub bytes: Bytes,
}

/// Why a model did not answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ModelError {
    /// One line for the caller.
    pub message: String,
    /// Everything that is known, for the log.
    pub detail: String,
    /// Whether fewer rows might have fitted into memory.
    pub out_of_memory: bool,
    /// Whether nothing will run on the device again for as long as this process lives.
    pub device_lost: bool,
}

impl ModelError {
    /// An error of which there is no more to tell than its one line.
    pub fn new(message: impl Into<String>) -> Self {
        let message = message.into();
        Self { detail: message.clone(), message, out_of_memory: false, device_lost: false }
    }
}

/// A model that answers requests.
pub(crate) struct Version {
    /// Unique among all versions of all models.
    pub(crate) key: u32,
    pub(crate) name: String,
    pub(crate) number: u64,
    pub(crate) model: Arc<dyn Model>,
    pub(crate) grouping: Grouping,
    /// How it uses the cores.
    pub(crate) way: Way,
    /// Why it is not batched, or not padded; empty when it is.
    pub(crate) why_alone: String,
    /// How large its outputs are, as far as that was seen.
    pub(crate) outputs: OutputBytes,
    /// Which files it is made of, see [`Stamp::print`](crate::library::Stamp::print).
    pub(crate) files: u64,
    /// What is done to requests that bring something else than its tensors.
    pub(crate) preprocess: Option<Preprocess>,
    /// Whether requests are padded as declared.
    pub(crate) pads: bool,
    /// Which form of the model runs, and what that gains.
    pub(crate) form: String,
    /// How long runs took when it was loaded, by rows.
    pub(crate) curve: Vec<(u32, Duration)>,
    /// What is watched of its tensors; the same for as long as its files are.
    pub(crate) drift: Arc<Drift>,
    /// Of its files, if anybody is to know them again.
    pub(crate) content: Option<Content>,
    /// What was looked at of its batches.
    pub(crate) audit: Audit,
    /// Last, so that the model is let go before the loader is told.
    pub(crate) retirement: Retirement,
}

/// Bytes of all outputs of a row, or of a request of a model without rows. Where free dimensions decide, they are taken to be as many for
/// each that goes in as were ever seen, and never more than were seen in all: what a small input gives says little about a large one.
#[derive(Debug, Default)]
pub(crate) struct OutputBytes {
    /// As the trial has seen them.
    tried: u64,
    /// The most that came out for 1024 bytes that went in,
    most: AtomicU64,
    /// and the most of one row.
    of_a_row: AtomicU64,
}

impl OutputBytes {
    pub(crate) fn of_trial(tried: u64) -> Self {
        Self { tried, ..Self::default() }
    }

    /// So many bytes went into a run of so many rows, and so many came out.
    pub(crate) fn learn(&self, rows: u32, given: u64, came: u64) {
        let seen = |most: &AtomicU64, now| {
            if now > most.load(Ordering::Relaxed) {
                most.fetch_max(now, Ordering::Relaxed);
            }
        };
        seen(&self.most, came.saturating_mul(1024).div_ceil(given.max(1)));
        seen(&self.of_a_row, came.div_ceil(u64::from(rows.max(1))));
    }

    /// Of a row of so many bytes.
    pub(crate) fn of_row(&self, given: u64) -> u64 {
        let seen = given.saturating_mul(self.most.load(Ordering::Relaxed)).div_ceil(1024);
        seen.min(self.of_a_row.load(Ordering::Relaxed)).max(self.tried)
    }
}

impl Slot {
    /// How many elements of this shape the caller has sent, whose sizes of the dimensions that have a name are `real`.
    pub(crate) fn own_elements(&self, shape: &[u64], real: Option<&[u64]>) -> usize {
        let own = |(at, size): (usize, &u64)| match (self.form.as_ref().map(|form| form.shape[at]), real) {
            (Some(Dimension::Named(named)), Some(real)) => real[named].min(*size),
            _ => *size,
        };
        shape.iter().enumerate().map(own).product::<u64>() as usize
    }
}

impl Version {
    /// Why it is not batched, or not padded; empty when it is.
    pub(crate) fn why_alone(&self) -> &str {
        self.audit.found().map_or(&self.why_alone, |found| found.why)
    }

    /// Which load of its files this is, as proxies are told it.
    pub(crate) fn load(&self) -> u64 {
        u64::from(self.key) + 1
    }

    /// What so many rows took when it was loaded, in a run of their own and at least if they run with others; nothing where
    /// that was not found out.
    pub(crate) fn takes(&self, rows: u32) -> (Duration, Duration) {
        let (least, most) = (self.curve.iter().find(|(size, _)| *size >= rows), self.curve.last());
        let Some((size, took)) = least.or(most) else { return Default::default() };
        // Beyond what one run takes, in several, one after the other.
        let alone = took.saturating_mul(rows.div_ceil((*size).max(1)));
        let row = self.curve.iter().map(|(size, took)| *took / (*size).max(1)).min();
        (alone, row.unwrap_or_default().saturating_mul(rows))
    }

    /// What counts as rows in a run; of a model without rows, a request is one.
    pub(crate) fn rows_of(&self, elements: u64) -> u32 {
        let Rows::UpTo(_) = self.model.spec().rows else { return 1 };
        u32::try_from(elements).unwrap_or(u32::MAX)
    }
}

impl Spec {
    /// What a request is padded to whose dimensions that have a name are so large. Each of them may be padded by its own share;
    /// of what is twice as large in two directions three quarters would be padding. So where an input would have too much of
    /// it, the dimension that is padded most stays as it is.
    pub(crate) fn padded(&self, sizes: &[u64]) -> Box<[u64]> {
        let to = sizes.iter().zip(&self.dimensions).map(|(size, named)| named.padded(*size));
        let mut to: Box<[u64]> = to.collect();
        let named = |slot: &Slot| -> Vec<usize> {
            let of = |dimension: &Dimension| match dimension {
                Dimension::Named(at) => Some(*at),
                Dimension::Free | Dimension::Fixed(_) => None,
            };
            slot.form.iter().flat_map(|form| &form.shape).filter_map(of).collect()
        };
        for named in self.inputs.iter().map(named).filter(|named| named.len() > 1) {
            loop {
                let padded = || named.iter().copied().filter(|at| to[*at] != sizes[*at]);
                let elements = |of: &[u64]| named.iter().map(|at| of[*at] as f64).product::<f64>();
                let waste = (elements(&to) - elements(sizes)) / elements(&to);
                let most = padded().map(|at| self.dimensions[at].waste_max).fold(0.0, f64::max);
                if waste <= most {
                    break;
                }
                let growth = |at: &usize| to[*at] as f64 / sizes[*at] as f64;
                let longest = padded().max_by(|one, other| growth(one).total_cmp(&growth(other)));
                let longest = longest.expect("what is not padded wastes nothing");
                to[longest] = sizes[longest];
            }
        }
        to
    }

    /// Where answers are rounded so, unless the author has said more of it.
    pub(crate) fn round_as(&mut self, rounding: Tolerance) {
        if self.tolerance == self.rounding {
            self.tolerance = rounding;
        }
        self.rounding = rounding;
    }

    /// Brings the shape of an output back to the caller's sizes of the dimensions that have a name.
    pub(crate) fn unpad(&self, output: &str, real: &[u64], shape: &mut [u64]) {
        let form = self.outputs.iter().find(|slot| slot.name == output).and_then(|slot| slot.form.as_ref());
        for (dimension, size) in form.iter().flat_map(|form| &form.shape).zip(shape) {
            if let Dimension::Named(at) = dimension {
                // A model may make it smaller itself.
                *size = real[*at].min(*size);
            }
        }
    }

    /// Whether `outputs` are what is declared. With `rows`, each must have as many of them, or answers would
    /// reach the wrong callers.
    pub(crate) fn check_outputs(&self, rows: u64, outputs: &[Output]) -> Result<(), WrongOutput> {
        if !self.outputs.is_empty() && outputs.len() != self.outputs.len() {
            return Err(WrongOutput::Count { declared: self.outputs.len(), got: outputs.len() });
        }
        for (position, output) in outputs.iter().enumerate() {
            let name = || output.name.clone();
            debug_assert_eq!(
                wire::element_count(&output.shape).map(|elements| elements * values::width(output.datatype)),
                Some(output.bytes.len()),
                "an output has the bytes that its shape says"
            );
            if let Rows::UpTo(_) = self.rows
                && output.shape.first() != Some(&rows)
            {
                return Err(WrongOutput::Rows { name: name(), got: output.shape.first().copied(), rows });
            }
            let Some(form) = self.outputs.get(position).and_then(|slot| slot.form.as_ref()) else { continue };
            if output.datatype != form.datatype {
                let (got, declared) = (output.datatype.name(), form.datatype.name());
                return Err(WrongOutput::Datatype { name: name(), got, declared });
            }
            if !form.fits(&output.shape) {
                let (got, declared) = (output.shape.clone(), form.to_string());
                return Err(WrongOutput::Shape { name: name(), got, declared });
            }
        }
        Ok(())
    }
}

/// How outputs differ from what is declared.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WrongOutput {
    #[error("the model gave {got} outputs, {declared} are declared")]
    Count { declared: usize, got: usize },
    #[error("output `{name}` has {}, {rows} went in", counted(*got))]
    Rows { name: String, got: Option<u64>, rows: u64 },
    #[error("output `{name}` is {got}, declared is {declared}")]
    Datatype { name: String, got: &'static str, declared: &'static str },
    #[error("output `{name}`: shape {got:?} does not match {declared}")]
    Shape { name: String, got: Vec<u64>, declared: String },
}

fn counted(rows: Option<u64>) -> String {
    match rows {
        None => "no rows".into(),
        Some(1) => "1 row".into(),
        Some(rows) => format!("{rows} rows"),
    }
}

impl Form {
    /// Whether a tensor of this shape is one of these.
    pub(crate) fn fits(&self, shape: &[u64]) -> bool {
        self.shape.len() == shape.len()
            && self.shape.iter().zip(shape).all(|(declared, got)| match declared {
                Dimension::Free | Dimension::Named(_) => true,
                Dimension::Fixed(size) => size == got,
            })
    }

    pub(crate) fn starts_free(&self) -> bool {
        self.shape.first() == Some(&Dimension::Free)
    }
}

/// The shape, as it is written in model.yaml.
impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.shape.iter().map(|dimension| dimension.to_wire())).finish()
    }
}

impl Dimension {
    fn to_wire(self) -> i64 {
        match self {
            Self::Free | Self::Named(_) => -1,
            Self::Fixed(size) => i64::try_from(size).expect("read from an i64: see manifest.rs"),
        }
    }
}

impl Spec {
    /// What it takes and can be asked for, as a number that is not 0 unless it declares nothing.
    pub(crate) fn takes(&self) -> u64 {
        if self.inputs.iter().any(|slot| slot.form.is_none()) {
            return 0;
        }
        let mut hasher = DefaultHasher::new();
        let Self { inputs, outputs, rows, dimensions, postprocess, .. } = self;
        format!("{inputs:?} {outputs:?} {rows:?} {dimensions:?} {postprocess:?}").hash(&mut hasher);
        hasher.finish().max(1)
    }

    /// For each input, something that it takes.
    pub(crate) fn examples(&self) -> Vec<Example> {
        let size = |(at, dimension): (usize, &Dimension)| match (at, *dimension) {
            (_, Dimension::Fixed(size)) => size,
            (0, Dimension::Free | Dimension::Named(_)) => 1,
            (_, Dimension::Free) => EXAMPLE_SIZE,
            (_, Dimension::Named(named)) => self.dimensions[named].at_most(EXAMPLE_SIZE),
        };
        let example = |slot: &Slot| Example {
            shape: slot.form.iter().flat_map(|form| form.shape.iter().enumerate().map(size)).collect(),
            // One is an id that most vocabularies have, and in a mask it hides nothing.
            number: slot.bounds.map_or(1, |(min, max)| 1.clamp(min, max)).to_string(),
            holds: Holds::Numbers as i32,
        };
        self.inputs.iter().map(example).collect()
    }
}

impl Slot {
    /// As it is announced to proxies.
    pub(crate) fn to_wire(&self) -> TensorSpec {
        TensorSpec {
            name: self.name.clone(),
            datatype: self.form.as_ref().map_or(0, |form| form.datatype as u32),
            shape: self
                .form
                .iter()
                .flat_map(|form| form.shape.iter().map(|dimension| dimension.to_wire()))
                .collect(),
            labels: self.labels.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scripted::{output_fp32, rows_spec};

    #[test]
    fn examples_are_within_bounds_and_no_longer_than_may_be() {
        let mut spec = rows_spec(&[("x", 4), ("ids", 1)], &[("y", 2)], 8);
        let named = |max| Named { name: "length".into(), pad_to: Vec::new(), waste_max: 0.5, max };
        spec.dimensions = vec![named(Some(3)), named(None)];
        let shape = [Dimension::Free, Dimension::Free, Dimension::Named(0), Dimension::Named(1)];
        let ids = &mut spec.inputs[1];
        ids.form = Some(Form { datatype: Datatype::Uint64, shape: shape.into() });
        ids.bounds = Some((i128::from(u64::MAX), i128::from(u64::MAX)));
        let example = |shape: &[u64], number: u64| Example {
            shape: shape.into(),
            number: number.to_string(),
            ..Example::default()
        };
        assert_eq!(spec.examples(), [example(&[1, 4], 1), example(&[1, 8, 3, 8], u64::MAX)]);
    }

    #[test]
    fn an_output_that_is_not_what_was_declared_is_named() {
        let spec = rows_spec(&[("x", 4)], &[("y", 2)], 8);
        let check = |rows, outputs: &[Output]| {
            spec.check_outputs(rows, outputs).map_err(|wrong| wrong.to_string()).unwrap_err()
        };
        assert_eq!(spec.check_outputs(3, &[output_fp32("y", &[3, 2], &[0.0; 6])]), Ok(()));
        assert_eq!(check(4, &[output_fp32("y", &[1, 2], &[0.0; 2])]), "output `y` has 1 row, 4 went in");
        assert_eq!(check(1, &[output_fp32("y", &[], &[0.0])]), "output `y` has no rows, 1 went in");
        assert_eq!(
            check(1, &[output_fp32("y", &[1, 3], &[0.0; 3])]),
            "output `y`: shape [1, 3] does not match [-1, 2]"
        );
        assert_eq!(check(1, &[]), "the model gave 0 outputs, 1 are declared");
        let other = Output { datatype: Datatype::Int32, ..output_fp32("y", &[1, 2], &[0.0; 2]) };
        assert_eq!(check(1, &[other]), "output `y` is INT32, declared is FP32");
    }

    #[test]
    fn what_is_padded_in_several_dimensions_wastes_no_more_than_in_one() {
        let named =
            |name: &str, waste_max| Named { name: name.into(), pad_to: vec![8, 16], waste_max, max: None };
        let padded = |inputs: &[&[usize]], shares: [f64; 2], sizes: [u64; 2]| {
            let names: Vec<_> = inputs.iter().map(|_| ("x", 1)).collect();
            let mut spec = crate::scripted::rows_spec(&names, &[("y", 1)], 4);
            for (slot, dimensions) in spec.inputs.iter_mut().zip(inputs) {
                let named = dimensions.iter().map(|at| Dimension::Named(*at));
                slot.form.as_mut().unwrap().shape = [Dimension::Free].into_iter().chain(named).collect();
            }
            spec.dimensions = vec![named("height", shares[0]), named("width", shares[1])];
            let to: Vec<u64> = spec.padded(&sizes).into();
            to
        };
        let image: &[&[usize]] = &[&[0, 1]];
        assert_eq!(padded(image, [0.5, 0.5], [4, 4]), [8, 4], "not four times as large");
        assert_eq!(padded(image, [0.5, 0.5], [6, 5]), [8, 5], "the larger part of the padding is left out");
        assert_eq!(padded(image, [0.5, 0.5], [6, 7]), [8, 8]);
        assert_eq!(padded(image, [0.5, 0.75], [4, 4]), [8, 8], "as much as the more lavish one may");
        assert_eq!(padded(image, [0.5, 0.5], [3, 20]), [3, 20]);
        assert_eq!(padded(&[&[0], &[1]], [0.5, 0.5], [4, 4]), [8, 8], "each input for itself");
        assert_eq!(padded(&[&[0, 0], &[1]], [0.5, 0.5], [4, 4]), [4, 8], "it is padded in both directions");
        assert_eq!(padded(&[&[0, 0], &[1]], [0.5, 0.5], [6, 4]), [8, 8]);
        assert_eq!(padded(&[&[0]], [0.3, 0.5], [6, 1]), [8, 1]);
    }

    #[test]
    fn outputs_are_taken_to_be_as_large_for_their_inputs_as_any_that_were_seen() {
        let outputs = OutputBytes::of_trial(500);
        assert_eq!(outputs.of_row(1_000_000), 500, "nothing but the trial was seen");
        outputs.learn(8, 8 * 1_000, 8 * 20_000);
        assert_eq!([500, 1_000, 2_000, 1].map(|given| outputs.of_row(given)), [10_000, 20_000, 20_000, 500]);
        outputs.learn(1, 1_000, 10);
        outputs.learn(1, 0, 0);
        assert_eq!(outputs.of_row(1_000), 20_000);
        // A small input gives as much as a large one: nothing is said of ones that are larger still.
        outputs.learn(1, 12, 4_000);
        assert_eq!(outputs.of_row(12_000_000), 20_000);
        outputs.learn(0, 1, u64::MAX);
        assert_eq!(outputs.of_row(u64::MAX), u64::MAX.div_ceil(1024));
    }
}
