//! A model's trial before it answers anybody: warms it up, and learns whether its rows are independent, because
//! a model that mixes rows would answer one caller with another's data. Rows of made-up input run alone, together
//! and in another order; whatever differs, or remembers an earlier run, is never batched, and the reason is shown.
//!
//! What made-up rows do not show, its `model.yaml` may say, or the model's code: that it writes to what it keeps, or sets where random numbers begin, in
//! whatever branch. Of the rest, what callers really send is looked at later, by `audit.rs`. That answers which are drawn differ is
//! found as any other difference, and told as what it is; where no difference is seen, they are batched.
//!
//! A model that takes one row at a time gets a request of several in as many runs. Only a model whose outputs are not what its
//! `model.yaml` declares is refused. One that fails on made-up input may have good reasons (a token beyond its vocabulary): it
//! answers, one request at a time.

mod made_up;
mod padding;
mod rows;

pub(crate) use made_up::{MadeUp, MadeUpBatch};
pub(crate) use padding::padding;

use crate::batcher::Grouping;
use crate::model::{Code, Dimension, Model, ModelError, Rows, Tolerance, WrongOutput};
use crate::pace::Pace;
use made_up::{BYTES_MAX, FREE_SIZES, LAST_RESORT, Maker};
use rows::Trial;
use std::cell::Cell;
use std::fmt;

/// What the trial has shown.
#[derive(Debug, PartialEq)]
pub(crate) struct Verdict {
    pub(crate) grouping: Grouping,
    /// Why it is not batched; empty when it is.
    pub(crate) why_alone: String,
    /// Bytes of all outputs of one row, or of a run of a model without rows; 0 if it has given none.
    pub(crate) output_bytes: u64,
    /// Its code draws random numbers.
    pub(crate) draws: bool,
}

/// Of models whose answers may all be right as long as runs follow one another.
const OWN_TENSORS: &str = "it may write to tensors of its own, which two runs at once would share";
const SEEDS: &str = "it sets where random numbers begin, which two runs at once would share";

/// Of one whose made-up rows may show nothing.
const STATEFUL: &str = "model.yaml says that its answers depend on earlier requests";

impl Verdict {
    /// With what the model's code tells, which made-up input may not show.
    pub(crate) fn knowing(self, code: Code) -> Self {
        let serial = |why: &str| (Grouping::Serial, format!("not batched: {why}"));
        let (grouping, why_alone) = match self.grouping {
            Grouping::Together { .. } | Grouping::Alone if code.writes => serial(OWN_TENSORS),
            Grouping::Together { .. } | Grouping::Alone if code.seeds => serial(SEEDS),
            // That is why its answers differ.
            Grouping::Serial if code.draws => {
                (Grouping::Serial, format!("{}; it draws random numbers", self.why_alone))
            }
            grouping => (grouping, self.why_alone),
        };
        Self { grouping, why_alone, draws: code.draws, ..self }
    }

    /// Nobody knows what its code does, because of this.
    pub(crate) fn knowing_nothing(self, why: impl fmt::Display) -> Self {
        match self.grouping {
            Grouping::Serial => self,
            Grouping::Together { .. } | Grouping::Alone => Self {
                grouping: Grouping::Serial,
                why_alone: format!(
                    "not batched: nobody knows whether it writes to tensors of its own: {why}"
                ),
                ..self
            },
        }
    }
}

enum Finding {
    /// Another model than the declared one.
    Undeclared(WrongOutput),
    /// It does not run on made-up input of this size.
    Fails(ModelError),
    /// Each row runs, and several together do not, as where a trace has frozen their number.
    OneByOne(String),
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
    Ok(Verdict { grouping, why_alone, output_bytes: output_bytes.get(), draws: false })
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
    let (mut failure, mut one_by_one) = (None, None);
    let mut passed = false;
    for free in if has_free { &FREE_SIZES[..] } else { &FREE_SIZES[..1] } {
        if passed && *free == LAST_RESORT {
            break;
        }
        let (named, max_rows) = (Vec::new(), max_rows.map(u64::from));
        let maker = Maker { model, free: *free, named, max_rows, bytes_max };
        match (Trial { maker, pace, tolerance }).run(output_bytes) {
            Ok(()) => passed = true,
            Err(Finding::OneByOne(why)) => {
                passed = true;
                one_by_one = Some(why);
            }
            Err(Finding::Undeclared(wrong)) => return Err(wrong.to_string()),
            Err(Finding::Fails(error)) if is_no_fault(&error) => return Err(error.message),
            Err(Finding::Fails(error)) => failure = Some(error),
            Err(Finding::Unlike(why)) => return Ok(serial(why)),
        }
    }
    if spec.stateful {
        return Ok(serial(STATEFUL.into()));
    }
    if model.has_written() {
        return Ok(serial(OWN_TENSORS.into()));
    }
    let together = |max_rows| Grouping::Together { max_rows };
    Ok(match (failure, one_by_one, &spec.rows) {
        (Some(error), ..) if !passed => serial(format!("it fails on made-up input: {error}")),
        (_, Some(why), _) => (together(1), format!("not batched: {why}")),
        (_, None, Rows::None { why }) => (Grouping::Alone, format!("not batched: {why}")),
        (_, None, Rows::UpTo(max_rows)) => (together(*max_rows), String::new()),
    })
}

/// Whether an error says nothing about the model, and may be over the next time.
fn is_no_fault(error: &ModelError) -> bool {
    error.device_lost || error.out_of_memory
}

#[cfg(test)]
mod tests;
