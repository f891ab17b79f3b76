//! How large the dimensions of a request are that have a name, and the request with these made larger, as its bucket wants them. Masks
//! that were not sent are made as well. Nothing here knows why a size is wanted.

use super::{Given, Refusal};
use crate::model::{Dimension, Slot, Spec};
use crate::padding;
use crate::values::{element, width};
use bytes::Bytes;
use wire::{Datatype, Layout, Limits};

/// The tensors that a model is given, with the masks that were not sent.
pub(crate) fn with_masks(
    spec: &Spec,
    inputs: Vec<Given>,
    payload: &Bytes,
) -> Result<(Vec<Given>, Bytes), Refusal> {
    if spec.dimensions.is_empty() {
        return Ok((inputs, payload.clone()));
    }
    let sizes = sizes(spec, &inputs)?;
    pad(spec, inputs, payload, &sizes, &sizes)
}

/// How large the dimensions are that have a name.
pub(super) fn sizes(spec: &Spec, inputs: &[Given]) -> Result<Box<[u64]>, Refusal> {
    let mut sizes: Vec<Option<(u64, &str)>> = vec![None; spec.dimensions.len()];
    for given in inputs {
        let slot = &spec.inputs[given.slot];
        for (dimension, got) in slot.form.iter().flat_map(|form| &form.shape).zip(&given.shape) {
            let Dimension::Named(at) = dimension else { continue };
            let named = &spec.dimensions[*at];
            if let Some(max) = named.max.filter(|max| got > max) {
                let (dimension, name) = (named.name.clone(), slot.name.clone());
                return Err(Refusal::TooLong { dimension, name, got: *got, max });
            }
            let (size, other) = *sizes[*at].get_or_insert((*got, &slot.name));
            if size != *got {
                return Err(Refusal::SizesDiffer {
                    dimension: named.name.clone(),
                    name: slot.name.clone(),
                    got: *got,
                    other: other.to_owned(),
                    size,
                });
            }
        }
    }
    // Only a mask that was not sent may have one that no other input has.
    Ok(sizes.into_iter().map(|size| size.map_or(1, |(size, _)| size)).collect())
}

/// The inputs with their named dimensions made as large as `to`, and with the masks that were not sent; refused before
/// anything is made where that would be too much.
pub(crate) fn pad(
    spec: &Spec,
    inputs: Vec<Given>,
    payload: &Bytes,
    sizes: &[u64],
    to: &[u64],
) -> Result<(Vec<Given>, Bytes), Refusal> {
    let rows = inputs.first().and_then(|given| given.shape.first()).copied().unwrap_or(1);
    let tensors: Vec<Padded<'_>> = (0..)
        .zip(&spec.inputs)
        .filter_map(|(at, slot)| {
            let given = inputs.iter().find(|given| given.slot == at);
            Padded::of(at, slot, given, rows, sizes, to)
        })
        .collect();
    let bytes = tensors.iter().try_fold(0usize, |sum, tensor| sum.checked_add(tensor.bytes()?));
    let most = Limits::default().payload_bytes;
    if bytes.is_none_or(|bytes| bytes > most) {
        return Err(Refusal::too_many_bytes(bytes.unwrap_or(usize::MAX), most));
    }
    let (mut padded, mut layout) = (Vec::new(), Layout::default());
    let one = |Padded { at, datatype, shape, to, given }: Padded<'_>| {
        let slot = &spec.inputs[at];
        let start = layout.place(to.iter().product::<u64>() as usize * width(datatype));
        padded.resize(start, 0);
        let filling = element(datatype, if slot.mask { 0.0 } else { slot.pad });
        match given {
            Some(given) => padding::pad(&payload[given.bytes.clone()], &shape, &to, &filling, &mut padded),
            None => {
                let ones = element(datatype, 1.0).repeat(shape.iter().product::<u64>() as usize);
                padding::pad(&ones, &shape, &to, &filling, &mut padded);
            }
        }
        Given { slot: at, datatype, shape: to, bytes: start..padded.len() }
    };
    let inputs = tensors.into_iter().map(one).collect();
    Ok((inputs, padded.into()))
}

/// An input, and what is to become of it.
struct Padded<'a> {
    at: usize,
    datatype: Datatype,
    shape: Vec<u64>,
    to: Vec<u64>,
    /// Nothing for a mask that was not sent.
    given: Option<&'a Given>,
}

impl<'a> Padded<'a> {
    /// `None` for what was left out and is no mask.
    fn of(
        at: usize,
        slot: &Slot,
        given: Option<&'a Given>,
        rows: u64,
        sizes: &[u64],
        to: &[u64],
    ) -> Option<Self> {
        let (datatype, shape) = match (given, &slot.form) {
            (Some(given), _) => (given.datatype, given.shape.clone()),
            (None, Some(form)) if slot.mask => {
                let size = |dimension: &Dimension| match dimension {
                    Dimension::Fixed(size) => *size,
                    // Only the first is: manifest.rs has seen to it.
                    Dimension::Free => rows,
                    Dimension::Named(at) => sizes[*at],
                };
                (form.datatype, form.shape.iter().map(size).collect())
            }
            (None, _) => return None,
        };
        let size = |(dimension, size): (&Dimension, &u64)| match dimension {
            Dimension::Named(at) => to[*at],
            Dimension::Free | Dimension::Fixed(_) => *size,
        };
        let to = match &slot.form {
            Some(form) => form.shape.iter().zip(&shape).map(size).collect(),
            None => shape.clone(),
        };
        Some(Self { at, datatype, shape, to, given })
    }

    fn bytes(&self) -> Option<usize> {
        wire::element_count(&self.to)?.checked_mul(width(self.datatype))
    }
}
