//! Whether a model's rows are independent. Made-up rows, unlike each other, run alone, together, in another order, and as many as
//! there may be; a row that is answered otherwise than alone, or otherwise the second time, is a finding. What follows from
//! one is the parent's.

use super::made_up::{Like, Maker, Row, datatype_of};
use super::{Finding, is_no_fault};
use crate::model::{Gathered, Output, Tolerance};
use crate::pace::Pace;
use crate::values::difference;
use bytes::Bytes;
use std::cell::Cell;
use std::time::Duration;

/// libtorch profiles the first run, compiles in the second, and from the third on is as fast as it gets.
const WARM_UPS: usize = 3;

/// A batch that takes longer than this is run once: a model that may not answer for minutes is of no use.
const SLOW: Duration = Duration::from_millis(200);

/// Rows that are compared. They are unlike in size, sign and length: what a model does to the order of its rows, or by the
/// largest or the longest of them, it does not show where all are alike.
pub(super) const ROWS: [Like; 5] = [
    Like::PLAIN,
    Like { scale: 0.25, filled: 2 },
    Like { scale: -1.0, filled: 1 },
    Like { scale: 8.0, filled: 3 },
    Like { scale: -0.5, filled: 2 },
];

/// A trial with one size for all free dimensions.
pub(super) struct Trial<'a> {
    pub(super) maker: Maker<'a>,
    pub(super) pace: &'a Pace,
    /// By how much answers may differ.
    pub(super) tolerance: Tolerance,
}

impl Trial<'_> {
    pub(super) fn run(&self, output_bytes: &Cell<u64>) -> Result<(), Finding> {
        let rows_max = self
            .maker
            .max_rows
            .unwrap_or(1)
            .min(self.maker.bytes_max / self.maker.row_bytes().map_err(Finding::Fails)?.max(1));
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
        let together = self.together(rows_max, &rows, &alone);
        match together {
            Ok(()) => {}
            // Where fewer run together, they may depend on each other.
            Err(Finding::OneByOne(why)) if self.compute(&rows[..2]).is_ok() => {
                return Err(Finding::Unlike(why));
            }
            Err(Finding::OneByOne(_)) => drop(self.compute(&[Row::plain(1)])?),
            Err(finding) => return Err(finding),
        }
        self.compare_again(&first)?;
        together
    }

    /// Runs these rows together, which `alone` are the answers to, in several orders.
    fn together(&self, rows_max: u64, rows: &[Row], alone: &[Vec<Output>]) -> Result<(), Finding> {
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
                    ran => ran.map_err(found_together)?,
                };
                compare_rows(&order, &together, alone, self.tolerance)?;
                if took > SLOW {
                    break;
                }
            }
        }
        Ok(())
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
    pub(super) fn compute(&self, rows: &[Row]) -> Result<Vec<Output>, Finding> {
        self.timed(rows).map(|(outputs, _)| outputs)
    }

    /// And how long that took.
    fn timed(&self, rows: &[Row]) -> Result<(Vec<Output>, Duration), Finding> {
        let slots = &self.maker.model.spec().inputs;
        let made_up: Vec<Vec<Vec<u8>>> =
            (0..).zip(slots).map(|(at, slot)| self.maker.make_up(at, slot, rows)).collect();
        let gathered = slots.iter().zip(&made_up).enumerate().map(|(at, (slot, parts))| Gathered {
            slot: at,
            datatype: datatype_of(slot),
            shape: self.maker.shape(slot, rows.len() as u64),
            parts: parts.iter().map(Vec::as_slice).collect(),
        });
        let (outputs, took) = self.pace.run(self.maker.model, &gathered.collect::<Vec<_>>());
        let mut outputs = outputs.map_err(Finding::Fails)?;
        self.maker.model.spec().check_outputs(rows.len() as u64, &outputs).map_err(Finding::Undeclared)?;
        for output in &mut outputs {
            // It may be memory that the model writes to in its next run.
            output.bytes = Bytes::copy_from_slice(&output.bytes);
        }
        Ok((outputs, took))
    }
}

/// What is wrong with rows that run together is no reason to refuse the model: alone they ran.
fn found_together(finding: Finding) -> Finding {
    match finding {
        Finding::Undeclared(wrong) => Finding::Unlike(wrong.to_string()),
        Finding::Fails(error) if is_no_fault(&error) => Finding::Fails(error),
        Finding::Fails(error) => Finding::OneByOne(format!("several rows together fail: {error}")),
        Finding::OneByOne(_) | Finding::Unlike(_) => finding,
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
