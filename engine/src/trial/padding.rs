//! Whether requests may be padded as declared: a made-up row that is padded has to be answered as it is without. It is tried with
//! the most padding that is allowed, at the smallest and at the largest size.

use super::Finding;
use super::made_up::{BYTES_MAX, FREE_SIZES, Maker, Row, datatype_of};
use super::rows::Trial;
use crate::job::{Given, pad};
use crate::model::{Gathered, Model, Named, Rows};
use crate::pace::Pace;
use crate::padding::crop;
use crate::values::difference;

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
    let maker = Maker { model, free: FREE_SIZES[0], named, max_rows, bytes_max: BYTES_MAX };
    let trial = Trial { maker, pace, tolerance: spec.rounding };
    let maker = &trial.maker;
    let fails = |finding| match finding {
        Finding::Fails(error) => format!("it fails at sizes {real:?}: {error}"),
        Finding::Undeclared(wrong) => wrong.to_string(),
        Finding::OneByOne(why) | Finding::Unlike(why) => why,
    };
    let outputs = maker
        .row_bytes()
        .map_err(Finding::Fails)
        .and_then(|_| trial.compute(&[Row::plain(0)]))
        .map_err(fails)?;
    let (mut inputs, mut payload) = (Vec::new(), Vec::new());
    for (at, slot) in spec.inputs.iter().enumerate() {
        let start = payload.len();
        payload.extend(maker.make_up(at as u64, slot, &[Row::plain(0)]).concat());
        let (shape, bytes) = (maker.shape(slot, 1), start..payload.len());
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
