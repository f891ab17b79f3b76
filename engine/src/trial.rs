//! A model's trial before it answers anybody: warms it up, and learns whether its rows are independent, because
//! a model that mixes rows would answer one caller with another's data. Rows of made-up input run alone, together
//! and in another order; whatever differs, or remembers an earlier run, is never batched, and the reason is shown.
//!
//! Only a model whose outputs are not what its `model.yaml` declares is refused. One that fails on made-up input
//! may have good reasons (a token beyond its vocabulary): it answers, one request at a time.

use crate::batcher::Grouping;
use crate::job::{Given, pad};
use crate::model::{
    Dimension, Form, Gathered, Model, ModelError, Named, Output, Rows, Slot, Tolerance, WrongOutput,
};
use crate::pace::Pace;
use crate::padding::crop;
use crate::values::{difference, element, width};
use bytes::Bytes;
use half::{bf16, f16};
use std::cell::Cell;
use std::time::Duration;
use wire::Datatype;

/// What stands in for free dimensions other than rows: two sizes, because one could be right by chance, and a
/// larger one for models that nothing that small fits through.
const FREE_SIZES: [u64; 3] = [8, 12, LAST_RESORT];
const LAST_RESORT: u64 = 64;

/// libtorch profiles the first run, compiles in the second, and from the third on is as fast as it gets.
const WARM_UPS: usize = 3;

/// A batch that takes longer than this is run once: a model that may not answer for minutes is of no use.
const SLOW: Duration = Duration::from_millis(200);

/// Rows that are compared. They are unlike in size, sign and length: what a model does to the order of its rows, or by the
/// largest or the longest of them, it does not show where all are alike.
const ROWS: [Like; 5] = [
    Like::PLAIN,
    Like { scale: 0.25, filled: 2 },
    Like { scale: -1.0, filled: 1 },
    Like { scale: 8.0, filled: 3 },
    Like { scale: -0.5, filled: 2 },
];

/// What a made-up row is like.
#[derive(Clone, Copy)]
struct Like {
    /// Its floats are so many times what they are in others, and its integers lie within that part of what they may be.
    scale: f32,
    /// Of its elements, the first one of so many parts; the rest is zero, or masked.
    filled: u64,
}

impl Like {
    const PLAIN: Self = Self { scale: 1.0, filled: 1 };
}

/// A made-up row: the same one is the same in every run.
#[derive(Clone, Copy)]
struct Row {
    number: u64,
    like: Like,
}

impl Row {
    fn plain(number: u64) -> Self {
        Self { number, like: Like::PLAIN }
    }
}

/// Made-up input is no larger than this, however many rows or dimensions a `model.yaml` allows.
const BYTES_MAX: u64 = 64 << 20;

/// What the trial has shown.
#[derive(Debug, PartialEq)]
pub(crate) struct Verdict {
    pub(crate) grouping: Grouping,
    /// Why it is not batched; empty when it is.
    pub(crate) why_alone: String,
    /// Bytes of all outputs of one row, or of a run of a model without rows; 0 if it has given none.
    pub(crate) output_bytes: u64,
}

enum Finding {
    /// Another model than the declared one.
    Undeclared(WrongOutput),
    /// It does not run on made-up input of this size.
    Fails(ModelError),
    /// It runs, but not as one that may share a batch.
    Unlike(String),
}

/// Runs the trial; an error is why the model cannot be served.
pub(crate) fn run(model: &dyn Model, pace: &Pace) -> Result<Verdict, String> {
    run_within(model, pace, BYTES_MAX, model.spec().rounding)
}

/// The trial of a form that computes less exactly: by how much rows may change when they run together is declared.
pub(crate) fn run_tolerantly(model: &dyn Model, pace: &Pace) -> Result<Verdict, String> {
    run_within(model, pace, BYTES_MAX, model.spec().tolerance)
}

fn run_within(
    model: &dyn Model,
    pace: &Pace,
    bytes_max: u64,
    tolerance: Tolerance,
) -> Result<Verdict, String> {
    let output_bytes = Cell::new(0);
    let (grouping, why_alone) = judge(model, pace, bytes_max, tolerance, &output_bytes)?;
    Ok(Verdict { grouping, why_alone, output_bytes: output_bytes.get() })
}

/// How it may run, and why not together; notes the bytes of the outputs of a row.
fn judge(
    model: &dyn Model,
    pace: &Pace,
    bytes_max: u64,
    tolerance: Tolerance,
    output_bytes: &Cell<u64>,
) -> Result<(Grouping, String), String> {
    let spec = model.spec();
    let serial = |why: String| (Grouping::Serial, format!("not batched: {why}"));
    let alone = |why: &str| (Grouping::Alone, format!("not batched: {why}"));
    let forms: Option<Vec<_>> = spec.inputs.iter().map(|slot| slot.form.as_ref()).collect();
    let max_rows = match (&spec.rows, &forms) {
        (Rows::UpTo(rows), _) => Some(*rows),
        (Rows::None { .. }, Some(_)) => None,
        (Rows::None { why }, None) => return Ok(serial(why.clone())),
    };
    let fixed_from = usize::from(max_rows.is_some());
    let has_free = forms.into_iter().flatten().any(|form| {
        let mut shape = form.shape[fixed_from.min(form.shape.len())..].iter();
        shape.any(|dimension| !matches!(dimension, Dimension::Fixed(_)))
    });
    let mut failure = None;
    let mut passed = false;
    for free in if has_free { &FREE_SIZES[..] } else { &FREE_SIZES[..1] } {
        if passed && *free == LAST_RESORT {
            break;
        }
        let (named, max_rows) = (Vec::new(), max_rows.map(u64::from));
        match (Trial { model, pace, free: *free, named, max_rows, bytes_max, tolerance }).run(output_bytes) {
            Ok(()) => passed = true,
            Err(Finding::Undeclared(wrong)) => return Err(wrong.to_string()),
            Err(Finding::Fails(error)) if is_no_fault(&error) => return Err(error.message),
            Err(Finding::Fails(error)) => failure = Some(error),
            Err(Finding::Unlike(why)) => return Ok(serial(why)),
        }
    }
    if model.remembers() {
        // One after another they may all be right.
        return Ok(serial("it may write to tensors of its own, which two runs at once would share".into()));
    }
    Ok(match (failure, &spec.rows) {
        (Some(error), _) if !passed => serial(format!("it fails on made-up input: {error}")),
        (_, Rows::None { why }) => alone(why),
        (_, Rows::UpTo(1)) => alone("max_batch is 1"),
        (_, Rows::UpTo(max_rows)) => (Grouping::Together { max_rows: *max_rows }, String::new()),
    })
}

/// Whether requests may be padded as declared: rows that are padded give the same answers. An error says why not.
pub(crate) fn padding(model: &dyn Model, pace: &Pace) -> Result<(), String> {
    let spec = model.spec();
    // The most padding that is allowed, at the smallest and at the largest size.
    let most = |to: fn(&Named) -> Option<&u64>| -> Vec<(u64, u64)> {
        let sizes = |named: &Named| {
            let to = to(named).copied().unwrap_or(named.at_most(FREE_SIZES[0]));
            ((1..=to).find(|size| named.padded(*size) == to).unwrap_or(to), to)
        };
        spec.dimensions.iter().map(sizes).collect()
    };
    for sizes in [most(|named| named.pad_to.first()), most(|named| named.pad_to.last())] {
        let (real, to): (Vec<u64>, Vec<u64>) = sizes.into_iter().unzip();
        if real != to {
            padding_to(model, pace, &real, &to)?;
        }
    }
    Ok(())
}

fn padding_to(model: &dyn Model, pace: &Pace, real: &[u64], to: &[u64]) -> Result<(), String> {
    let spec = model.spec();
    let max_rows = match spec.rows {
        Rows::UpTo(rows) => Some(u64::from(rows)),
        Rows::None { .. } => None,
    };
    let named = real.to_vec();
    let trial = Trial {
        model,
        pace,
        free: FREE_SIZES[0],
        named,
        max_rows,
        bytes_max: BYTES_MAX,
        tolerance: spec.rounding,
    };
    let fails = |finding| match finding {
        Finding::Fails(error) => format!("it fails at sizes {real:?}: {error}"),
        Finding::Undeclared(wrong) => wrong.to_string(),
        Finding::Unlike(why) => why,
    };
    let outputs = trial.row_bytes().and_then(|_| trial.compute(&[Row::plain(0)])).map_err(fails)?;
    let (mut inputs, mut payload) = (Vec::new(), Vec::new());
    for (at, slot) in spec.inputs.iter().enumerate() {
        let start = payload.len();
        payload.extend(trial.make_up(at as u64, slot, &[Row::plain(0)]).concat());
        let (shape, bytes) = (trial.shape(slot, 1), start..payload.len());
        inputs.push(Given { slot: at, datatype: datatype_of(slot), shape, bytes });
    }
    let (inputs, payload) =
        pad(spec, inputs, &payload.into(), real, to).map_err(|refusal| refusal.to_string())?;
    let gathered = inputs.iter().map(|given| Gathered {
        slot: given.slot,
        datatype: given.datatype,
        shape: given.shape.clone(),
        parts: vec![&payload[given.bytes.clone()]],
    });
    let padded = pace
        .run(model, &gathered.collect::<Vec<_>>())
        .0
        .map_err(|error| format!("padded, it fails: {error}"))?;
    for (expected, got) in outputs.iter().zip(&padded) {
        let mut shape = got.shape.clone();
        spec.unpad(&got.name, real, &mut shape);
        let name = &expected.name;
        if shape != expected.shape {
            return Err(format!("output `{name}` is {:?}, {:?} when padded", expected.shape, got.shape));
        }
        let mut cropped = Vec::new();
        crop(&got.bytes, &got.shape, &shape, &mut cropped);
        let tolerance = spec.tolerance;
        if let Some(largest) = difference(expected.datatype, &expected.bytes, &cropped, tolerance) {
            return Err(format!("answers change (output `{name}`, largest difference {})", largest as f32));
        }
    }
    Ok(())
}

/// A trial with one size for all free dimensions.
struct Trial<'a> {
    model: &'a dyn Model,
    pace: &'a Pace,
    free: u64,
    /// Sizes of the dimensions that have a name, where they are others.
    named: Vec<u64>,
    /// `None` where the first dimension is not a batch.
    max_rows: Option<u64>,
    /// How large made-up input may be.
    bytes_max: u64,
    /// By how much answers may differ.
    tolerance: Tolerance,
}

impl Trial<'_> {
    fn run(&self, output_bytes: &Cell<u64>) -> Result<(), Finding> {
        let rows_max = self.max_rows.unwrap_or(1).min(self.bytes_max / self.row_bytes()?.max(1));
        let first = self.compute(&[Row::plain(0)])?;
        let bytes = first.iter().map(|output| output.bytes.len() as u64).sum();
        output_bytes.set(output_bytes.get().max(bytes));
        for _ in 1..WARM_UPS {
            self.compare_again(&first)?;
        }
        if rows_max == 1 {
            // A model that remembers may show it only after it has seen something else.
            self.compute(&[Row::plain(1)])?;
            return self.compare_again(&first);
        }
        let alone = (0..).zip(ROWS).take(rows_max as usize).map(|(number, like)| self.alone(number, like));
        let (rows, alone): (Vec<Row>, Vec<Vec<Output>>) = alone.collect::<Result<_, _>>()?;
        let order: Vec<usize> = (0..rows.len()).collect();
        let mut turned = order.clone();
        turned.rotate_left(rows.len() / 2);
        let full = (0..rows_max as usize).map(|at| at % rows.len()).collect();
        for order in [order, turned, vec![0, 1], full] {
            let those: Vec<Row> = order.iter().map(|at| rows[*at]).collect();
            for _ in 0..WARM_UPS {
                let (together, took) = match self.timed(&those) {
                    // Lanes find out how many there is memory for.
                    Err(Finding::Fails(error)) if error.out_of_memory && order.len() > ROWS.len() => break,
                    ran => ran.map_err(as_unlike)?,
                };
                compare_rows(&order, &together, &alone, self.tolerance)?;
                if took > SLOW {
                    break;
                }
            }
        }
        self.compare_again(&first)
    }

    /// What a row is answered alone; a plain one in place of one that the model does not take, which it must not take beside
    /// another either.
    fn alone(&self, number: u64, like: Like) -> Result<(Row, Vec<Output>), Finding> {
        let (row, plain) = (Row { number, like }, Row::plain(number));
        match self.compute(&[row]) {
            Err(Finding::Fails(error)) if !is_no_fault(&error) => {
                let answered = self.compute(&[plain])?;
                match self.compute(&[Row::plain(0), row]) {
                    Err(Finding::Fails(beside)) if !is_no_fault(&beside) => Ok((plain, answered)),
                    Err(finding) => Err(finding),
                    Ok(_) => Err(Finding::Unlike(format!(
                        "it takes a row beside another that it does not take alone: {error}"
                    ))),
                }
            }
            // Others it has answered as declared.
            Err(Finding::Undeclared(wrong)) if number > 0 => Err(Finding::Unlike(wrong.to_string())),
            ran => Ok((row, ran?)),
        }
    }

    /// Bytes of one row of all inputs, if as many rows fit as must be compared.
    fn row_bytes(&self) -> Result<u64, Finding> {
        let slots = &self.model.spec().inputs;
        let bytes = slots.iter().try_fold(0u64, |sum, slot| {
            let elements = wire::element_count(&self.shape(slot, 1))?;
            sum.checked_add(elements.checked_mul(width(datatype_of(slot)))? as u64)
        });
        let rows = self.max_rows.unwrap_or(1).min(2);
        bytes.filter(|bytes| bytes.checked_mul(rows).is_some_and(|all| all <= self.bytes_max)).ok_or_else(
            || Finding::Fails(ModelError::new(format!("it would be larger than {} bytes", self.bytes_max))),
        )
    }

    /// A model that remembers shows it by answering differently the second time.
    fn compare_again(&self, first: &[Output]) -> Result<(), Finding> {
        let again = self.compute(&[Row::plain(0)])?;
        for (before, after) in first.iter().zip(&again) {
            if let Some(largest) = difference(before.datatype, &before.bytes, &after.bytes, self.tolerance) {
                return Err(Finding::Unlike(format!(
                    "the same input gives another answer the next time (output `{}`, largest difference {})",
                    before.name, largest as f32
                )));
            }
        }
        Ok(())
    }

    /// Runs the given rows of made-up input together.
    fn compute(&self, rows: &[Row]) -> Result<Vec<Output>, Finding> {
        self.timed(rows).map(|(outputs, _)| outputs)
    }

    /// And how long that took.
    fn timed(&self, rows: &[Row]) -> Result<(Vec<Output>, Duration), Finding> {
        let slots = &self.model.spec().inputs;
        let made_up: Vec<Vec<Vec<u8>>> =
            (0..).zip(slots).map(|(at, slot)| self.make_up(at, slot, rows)).collect();
        let gathered = slots.iter().zip(&made_up).enumerate().map(|(at, (slot, parts))| Gathered {
            slot: at,
            datatype: datatype_of(slot),
            shape: self.shape(slot, rows.len() as u64),
            parts: parts.iter().map(Vec::as_slice).collect(),
        });
        let (outputs, took) = self.pace.run(self.model, &gathered.collect::<Vec<_>>());
        let mut outputs = outputs.map_err(Finding::Fails)?;
        self.model.spec().check_outputs(rows.len() as u64, &outputs).map_err(Finding::Undeclared)?;
        for output in &mut outputs {
            // It may be memory that the model writes to in its next run.
            output.bytes = Bytes::copy_from_slice(&output.bytes);
        }
        Ok((outputs, took))
    }

    fn shape(&self, slot: &Slot, rows: u64) -> Vec<u64> {
        let form = form_of(slot);
        let mut shape: Vec<u64> = form
            .shape
            .iter()
            .map(|dimension| match dimension {
                Dimension::Free => self.free,
                Dimension::Named(at) => {
                    let named = &self.model.spec().dimensions[*at];
                    self.named.get(*at).copied().unwrap_or_else(|| named.at_most(self.free))
                }
                Dimension::Fixed(size) => *size,
            })
            .collect();
        if self.max_rows.is_some() {
            shape[0] = rows;
        }
        shape
    }

    /// The bytes of each row of one input.
    fn make_up(&self, at: u64, slot: &Slot, rows: &[Row]) -> Vec<Vec<u8>> {
        let datatype = datatype_of(slot);
        let elements: u64 = self.shape(slot, 1).iter().product();
        let make_up = |Row { number, like }: &Row| {
            let filled = elements.div_ceil(like.filled);
            if slot.mask {
                let (one, zero) = (element(datatype, 1.0), element(datatype, 0.0));
                return [one.repeat(filled as usize), zero.repeat((elements - filled) as usize)].concat();
            }
            made_up(datatype, slot.bounds, elements, filled, like.scale, at << 32 | number)
        };
        rows.iter().map(make_up).collect()
    }
}

/// Input like the trial's, for whoever wants to measure a model that has passed it.
pub(crate) struct MadeUp<'a> {
    trial: Trial<'a>,
}

/// Made-up rows of all inputs.
pub(crate) struct MadeUpBatch<'a> {
    slots: &'a [Slot],
    shapes: Vec<Vec<u64>>,
    rows: Vec<Vec<Vec<u8>>>,
}

impl<'a> MadeUp<'a> {
    /// `None` for a model of which nothing is declared.
    pub(crate) fn new(model: &'a dyn Model, pace: &'a Pace) -> Option<Self> {
        let spec = model.spec();
        let max_rows = match spec.rows {
            Rows::UpTo(rows) => Some(u64::from(rows)),
            Rows::None { .. } => None,
        };
        let declared = spec.inputs.iter().all(|slot| slot.form.is_some());
        let named = spec.dimensions.iter().map(|named| named.padded(named.at_most(FREE_SIZES[0]))).collect();
        declared.then_some(Self {
            trial: Trial {
                model,
                pace,
                free: FREE_SIZES[0],
                named,
                max_rows,
                bytes_max: BYTES_MAX,
                tolerance: spec.rounding,
            },
        })
    }

    /// What stands for the dimensions that are free.
    pub(crate) fn free(&self) -> Vec<u64> {
        let slots = &self.trial.model.spec().inputs;
        let rows = usize::from(self.trial.max_rows.is_some());
        let free = slots.iter().flat_map(|slot| {
            form_of(slot).shape.iter().skip(rows).filter_map(|dimension| match dimension {
                Dimension::Free => Some(self.trial.free),
                Dimension::Named(at) => Some(self.trial.named[*at]),
                Dimension::Fixed(_) => None,
            })
        });
        free.collect()
    }

    /// So many rows; `None` if that would be too large.
    pub(crate) fn batch(&self, rows: u32) -> Option<MadeUpBatch<'a>> {
        let row_bytes = self.trial.row_bytes().ok()?;
        if row_bytes.checked_mul(u64::from(rows))? > self.trial.bytes_max {
            return None;
        }
        let plain: Vec<Row> = (0..u64::from(rows)).map(Row::plain).collect();
        let slots = &self.trial.model.spec().inputs;
        let shapes = slots.iter().map(|slot| self.trial.shape(slot, u64::from(rows))).collect();
        let rows = (0..).zip(slots).map(|(at, slot)| self.trial.make_up(at, slot, &plain)).collect();
        Some(MadeUpBatch { slots, shapes, rows })
    }
}

impl MadeUpBatch<'_> {
    /// As a model takes it.
    pub(crate) fn gathered(&self) -> Vec<Gathered<'_>> {
        let inputs = self.slots.iter().zip(&self.shapes).zip(&self.rows).enumerate();
        let gathered = inputs.map(|(slot, ((declared, shape), rows))| Gathered {
            slot,
            datatype: datatype_of(declared),
            shape: shape.clone(),
            parts: rows.iter().map(Vec::as_slice).collect(),
        });
        gathered.collect()
    }
}

fn form_of(slot: &Slot) -> &Form {
    slot.form.as_ref().expect("run() has seen that all are declared")
}

fn datatype_of(slot: &Slot) -> Datatype {
    form_of(slot).datatype
}

/// Whether an error says nothing about the model, and may be over the next time.
fn is_no_fault(error: &ModelError) -> bool {
    error.device_lost || error.out_of_memory
}

/// What is wrong with rows that run together is no reason to refuse the model: alone they ran.
fn as_unlike(finding: Finding) -> Finding {
    match finding {
        Finding::Undeclared(wrong) => Finding::Unlike(wrong.to_string()),
        Finding::Fails(error) if is_no_fault(&error) => Finding::Fails(error),
        Finding::Fails(error) => Finding::Unlike(format!("several rows together fail: {error}")),
        Finding::Unlike(why) => Finding::Unlike(why),
    }
}

/// `alone` are the answers to the rows that `order` counts.
fn compare_rows(
    order: &[usize],
    together: &[Output],
    alone: &[Vec<Output>],
    tolerance: Tolerance,
) -> Result<(), Finding> {
    for (at, row) in order.iter().enumerate() {
        for (whole, single) in together.iter().zip(&alone[*row]) {
            let length = whole.bytes.len() / order.len();
            let part = &whole.bytes[at * length..(at + 1) * length];
            if part.len() != single.bytes.len() {
                return Err(Finding::Unlike(format!(
                    "rows have another shape when they run together (output `{}`)",
                    whole.name
                )));
            }
            if let Some(largest) = difference(whole.datatype, part, &single.bytes, tolerance) {
                return Err(Finding::Unlike(format!(
                    "rows change when they run together (output `{}`, largest difference {})",
                    whole.name, largest as f32
                )));
            }
        }
    }
    Ok(())
}

/// Floats in 0..1 before they are scaled, integers in 0..4 or in a part of that: small and not negative, which most models take,
/// whatever they mean; zero from the element on that is not filled any more.
fn made_up(
    datatype: Datatype,
    bounds: Option<(i128, i128)>,
    elements: u64,
    filled: u64,
    scale: f32,
    seed: u64,
) -> Vec<u8> {
    // Small, so that they are valid indices of most things, unless the author says what is valid.
    let (min, max) = bounds.unwrap_or((0, 3));
    let span = (max - min + 1).max(1);
    let span = ((span as f64 * f64::from(scale.abs().min(1.0))) as i128).clamp(1, span);
    let zero = 0.clamp(min, max);
    let mut bytes = Vec::with_capacity(elements as usize * width(datatype));
    let mut dice = seed;
    for at in 0..elements {
        let (draw, is_filled) = (splitmix(&mut dice), at < filled);
        let float = if is_filled { scale * ((draw >> 40) as f32 / (1u64 << 24) as f32) } else { 0.0 };
        match datatype {
            Datatype::Bool => bytes.push(if is_filled { (draw >> 63) as u8 } else { 0 }),
            Datatype::Uint8
            | Datatype::Uint16
            | Datatype::Uint32
            | Datatype::Uint64
            | Datatype::Int8
            | Datatype::Int16
            | Datatype::Int32
            | Datatype::Int64 => {
                let value = if is_filled { min + i128::from(draw >> 1) % span } else { zero };
                bytes.extend(&value.to_le_bytes()[..width(datatype)]);
            }
            Datatype::Fp16 => bytes.extend(f16::from_f32(float).to_le_bytes()),
            Datatype::Bf16 => bytes.extend(bf16::from_f32(float).to_le_bytes()),
            Datatype::Fp32 => bytes.extend(float.to_le_bytes()),
            Datatype::Fp64 => bytes.extend(f64::from(float).to_le_bytes()),
            Datatype::Bytes => unreachable!("it has no width"),
        }
    }
    bytes
}

/// SplitMix64 (Steele, Lea, Flood, 2014).
fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Spec;
    use crate::scripted::{Scripted, fp32, output_fp32, rows_spec};
    use std::sync::atomic::{AtomicU32, Ordering};

    /// The verdict on a model `x: [-1, 4] → y: [-1, 4]` whose rows are computed by `script`.
    fn verdict(
        script: impl Fn(&[f32], u64) -> Result<(Vec<u64>, Vec<f32>), ModelError> + Send + Sync + 'static,
    ) -> Result<Verdict, String> {
        let spec = rows_spec(&[("x", 4)], &[("y", 4)], 8);
        let model = Scripted::new(spec, move |inputs| {
            let (shape, values) = script(&fp32(&inputs[0]), inputs[0].shape[0])?;
            Ok(vec![output_fp32("y", &shape, &values)])
        });
        run(&model, &Pace::alone())
    }

    fn why(verdict: Result<Verdict, String>) -> String {
        let verdict = verdict.unwrap();
        assert_eq!(verdict.grouping, Grouping::Serial);
        verdict.why_alone
    }

    #[test]
    fn independent_rows_may_run_together() {
        let doubled = verdict(|x, rows| Ok((vec![rows, 4], x.iter().map(|v| v * 2.0).collect())));
        let grouping = Grouping::Together { max_rows: 8 };
        assert_eq!(doubled, Ok(Verdict { grouping, why_alone: String::new(), output_bytes: 16 }));
    }

    #[test]
    fn another_order_of_summation_is_no_difference() {
        let jitter =
            verdict(|x, rows| Ok((vec![rows, 4], x.iter().map(|v| v + rows as f32 * 1e-6).collect())));
        assert_eq!(jitter.unwrap().grouping, Grouping::Together { max_rows: 8 });
    }

    #[test]
    fn rows_that_see_each_other_are_never_batched() {
        let coupled = verdict(|x, rows| Ok((vec![rows, 4], x.iter().map(|v| v + rows as f32).collect())));
        assert_eq!(
            why(coupled),
            "not batched: rows change when they run together (output `y`, largest difference 4)"
        );
    }

    #[test]
    fn rows_that_are_told_apart_by_their_size_or_length_alone_are_never_batched() {
        let by = |key: fn(&[f32]) -> i32| {
            verdict(move |x, rows| {
                let mut sorted: Vec<&[f32]> = x.chunks(4).collect();
                sorted.sort_by_key(|row| key(row));
                Ok((vec![rows, 4], sorted.concat()))
            })
        };
        for key in [
            |row: &[f32]| row.iter().rposition(|v| *v != 0.0).map_or(0, |at| at as i32),
            |row: &[f32]| (row[0] * 8.0).floor() as i32,
            |row: &[f32]| i32::from(row[0] < 0.0),
            |row: &[f32]| i32::from(row.iter().any(|v| *v > 1.0)),
        ] {
            assert!(why(by(key)).contains("rows change when they run together"));
        }
    }

    #[test]
    fn rows_that_are_scaled_by_the_largest_integer_of_all_are_never_batched() {
        for bounds in [None, Some((0, 255))] {
            let mut spec = rows_spec(&[("x", 64)], &[("y", 64)], 8);
            let shape = spec.inputs[0].form.take().unwrap().shape;
            spec.inputs[0].form = Some(Form { datatype: Datatype::Uint8, shape });
            spec.inputs[0].bounds = bounds;
            let model = Scripted::new(spec, |inputs| {
                let x = inputs[0].parts.concat();
                let most = f32::from(x.iter().copied().max().unwrap_or(1).max(1));
                let y: Vec<f32> = x.iter().map(|x| f32::from(*x) / most).collect();
                Ok(vec![output_fp32("y", &inputs[0].shape, &y)])
            });
            assert!(why(run(&model, &Pace::alone())).contains("rows change when they run together"));
        }
    }

    #[test]
    fn what_a_model_does_not_take_alone_it_may_not_take_beside_others() {
        let is_negative = |x: &[f32]| x[0] < 0.0;
        let fussy = verdict(move |x, rows| {
            if x.chunks(4).any(is_negative) {
                return Err(ModelError::new("a pixel is negative"));
            }
            Ok((vec![rows, 4], x.to_vec()))
        });
        assert_eq!(fussy.unwrap().grouping, Grouping::Together { max_rows: 8 }, "it never takes them");
        let drops = verdict(move |x, rows| {
            let mut kept: Vec<&[f32]> = x.chunks(4).filter(|row| !is_negative(row)).collect();
            let Some(last) = kept.last().copied() else { return Err(ModelError::new("no rows are left")) };
            kept.resize(rows as usize, last);
            Ok((vec![rows, 4], kept.concat()))
        });
        assert_eq!(
            why(drops),
            "not batched: it takes a row beside another that it does not take alone: no rows are left"
        );
    }

    #[test]
    fn a_row_that_depends_on_its_place_is_found() {
        let placed = verdict(|x, rows| {
            Ok((
                vec![rows, 4],
                x.iter().enumerate().map(|(at, v)| if at < 4 { *v } else { v + 1.0 }).collect(),
            ))
        });
        assert!(why(placed).contains("rows change when they run together"));
    }

    #[test]
    fn a_model_that_remembers_is_never_batched() {
        let calls = AtomicU32::new(0);
        let stateful = verdict(move |x, rows| {
            let call = calls.fetch_add(1, Ordering::Relaxed) as f32;
            Ok((vec![rows, 4], x.iter().map(|v| v + call).collect()))
        });
        assert!(why(stateful).contains("gives another answer the next time (output `y`"));
    }

    #[test]
    fn what_runs_one_row_at_a_time_may_remember_the_row_before() {
        let before = AtomicU32::new(0);
        let model = Scripted::new(rows_spec(&[("x", 4)], &[("y", 4)], 1), move |inputs| {
            let x = fp32(&inputs[0]);
            let last = f32::from_bits(before.swap(x[0].to_bits(), Ordering::Relaxed));
            let y: Vec<f32> = x.iter().map(|v| v + if last == 0.0 { x[0] } else { last }).collect();
            Ok(vec![output_fp32("y", &inputs[0].shape, &y)])
        });
        assert!(why(run(&model, &Pace::alone())).contains("gives another answer the next time"));
    }

    #[test]
    fn what_is_no_fault_of_the_model_says_nothing_about_it() {
        let failing = |rows_at_most: u64, error: fn() -> ModelError| {
            verdict(
                move |x, rows| {
                    if rows > rows_at_most { Err(error()) } else { Ok((vec![rows, 4], x.to_vec())) }
                },
            )
        };
        let lost = || ModelError { device_lost: true, ..ModelError::new("cuda:0 works no more") };
        let full = || ModelError { out_of_memory: true, ..ModelError::new("out of memory") };
        for rows_at_most in [0, 1] {
            assert_eq!(failing(rows_at_most, lost), Err("cuda:0 works no more".into()));
            assert_eq!(failing(rows_at_most, full), Err("out of memory".into()));
        }
        let few = failing(ROWS.len() as u64, full).unwrap();
        assert_eq!(few.grouping, Grouping::Together { max_rows: 8 }, "lanes find out how many fit");
    }

    #[test]
    fn a_device_that_is_lost_beside_another_row_says_nothing_about_the_row_either() {
        let failing = |beside: fn() -> ModelError| {
            verdict(move |x, rows| match (x.chunks(4).any(|row| row[0] < 0.0), rows) {
                (true, 1) => Err(ModelError::new("a pixel is negative")),
                (true, _) => Err(beside()),
                (false, _) => Ok((vec![rows, 4], x.to_vec())),
            })
        };
        let lost = || ModelError { device_lost: true, ..ModelError::new("cuda:0 works no more") };
        let full = || ModelError { out_of_memory: true, ..ModelError::new("out of memory") };
        assert_eq!(failing(lost), Err("cuda:0 works no more".into()));
        assert_eq!(failing(full), Err("out of memory".into()));
    }

    #[test]
    fn a_wrong_number_of_rows_is_the_reason_that_is_shown() {
        let short = verdict(|x, _| Ok((vec![1, 4], x[..4].to_vec())));
        assert_eq!(why(short), "not batched: output `y` has 1 row, 5 went in");
    }

    #[test]
    fn a_model_that_refuses_made_up_input_still_answers() {
        let fussy = verdict(|_, _| Err(ModelError::new("index out of range")));
        assert_eq!(why(fussy), "not batched: it fails on made-up input: index out of range");
        let lonely = verdict(|x, rows| match rows {
            1 => Ok((vec![1, 4], x.to_vec())),
            _ => Err(ModelError::new("one row only")),
        });
        assert_eq!(why(lonely), "not batched: several rows together fail: one row only");
    }

    #[test]
    fn another_model_than_the_declared_one_is_refused() {
        let other = verdict(|x, rows| Ok((vec![rows, 3], x[..3 * rows as usize].to_vec())));
        assert_eq!(other, Err("output `y`: shape [1, 3] does not match [-1, 4]".into()));
    }

    #[test]
    fn free_dimensions_get_a_size_that_fits() {
        let mut spec = rows_spec(&[("x", 4)], &[("y", 4)], 8);
        let free = Form { datatype: Datatype::Fp32, shape: vec![Dimension::Free, Dimension::Free] };
        spec.inputs[0].form = Some(free.clone());
        spec.outputs[0].form = Some(free);
        let model = Scripted::new(spec, |inputs| {
            if inputs[0].shape[1] < 20 {
                return Err(ModelError::new("too small for the kernel"));
            }
            Ok(vec![output_fp32("y", &inputs[0].shape, &fp32(&inputs[0]))])
        });
        assert_eq!(run(&model, &Pace::alone()).unwrap().grouping, Grouping::Together { max_rows: 8 });
    }

    #[test]
    fn a_declaration_without_measure_is_not_tried_in_full() {
        let most = 1 << 12;
        let tried = |shape: Vec<Dimension>| {
            let mut spec = rows_spec(&[("x", 4)], &[("y", 4)], 65_536);
            spec.inputs[0].form = Some(Form { datatype: Datatype::Fp32, shape });
            let model = Scripted::new(spec, move |inputs| {
                let rows = inputs[0].shape[0];
                assert!(inputs[0].parts.iter().map(|part| part.len() as u64).sum::<u64>() <= most);
                Ok(vec![output_fp32("y", &[rows, 4], &vec![0.0; 4 * rows as usize])])
            });
            run_within(&model, &Pace::alone(), most, Tolerance::Summation)
        };
        let small = tried(vec![Dimension::Free, Dimension::Fixed(4)]);
        assert_eq!(small.unwrap().grouping, Grouping::Together { max_rows: 65_536 });
        let two_do_not_fit = tried(vec![Dimension::Free, Dimension::Fixed(1000)]);
        assert_eq!(
            why(two_do_not_fit),
            "not batched: it fails on made-up input: it would be larger than 4096 bytes"
        );
        assert!(why(tried(vec![Dimension::Free; 16])).contains("larger than"));
    }

    #[test]
    fn what_has_no_rows_runs_alone_and_says_why() {
        let spec = Spec {
            rows: Rows::None { why: "output `y` does not start with -1".into() },
            ..rows_spec(&[("x", 4)], &[("y", 4)], 8)
        };
        let model =
            Scripted::new(spec, |inputs| Ok(vec![output_fp32("y", &inputs[0].shape, &fp32(&inputs[0]))]));
        let verdict = run(&model, &Pace::alone()).unwrap();
        assert_eq!(
            (verdict.grouping, verdict.output_bytes),
            (Grouping::Alone, 12 * 16),
            "of the larger input"
        );
        assert_eq!(verdict.why_alone, "not batched: output `y` does not start with -1");
    }

    #[test]
    fn tolerance_follows_the_datatype() {
        let pair =
            |datatype, one: &[u8], other: &[u8]| difference(datatype, one, other, Tolerance::Summation);
        assert_eq!(pair(Datatype::Int32, &1i32.to_le_bytes(), &2i32.to_le_bytes()), Some(1.0));
        assert_eq!(pair(Datatype::Fp32, &1f32.to_le_bytes(), &1.0001f32.to_le_bytes()), None);
        assert!(pair(Datatype::Fp32, &1f32.to_le_bytes(), &1.001f32.to_le_bytes()).is_some());
        assert_eq!(
            pair(Datatype::Fp16, &f16::from_f32(1.0).to_le_bytes(), &f16::from_f32(1.01).to_le_bytes()),
            None
        );
        assert!(pair(Datatype::Fp32, &f32::NAN.to_le_bytes(), &1f32.to_le_bytes()).is_some_and(f64::is_nan));
        assert_eq!(pair(Datatype::Fp64, &f64::NAN.to_le_bytes(), &(-f64::NAN).to_le_bytes()), None);
    }
}
