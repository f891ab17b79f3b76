//! Makes up input: rows of the declared datatypes and shapes, the same in every run, for a trial and for whoever wants to
//! measure a model that has passed it. They are small, and within the bounds that are declared; what a model makes of them
//! is nobody's business here.

use crate::model::{Dimension, Form, Gathered, Model, ModelError, Rows, Slot};
use crate::values::{element, width};
use half::{bf16, f16};
use wire::Datatype;

/// What stands in for free dimensions other than rows: two sizes, because one could be right by chance, and a
/// larger one for models that nothing that small fits through.
pub(super) const FREE_SIZES: [u64; 3] = [8, 12, LAST_RESORT];
pub(super) const LAST_RESORT: u64 = 64;

/// Made-up input is no larger than this, however many rows or dimensions a `model.yaml` allows.
pub(super) const BYTES_MAX: u64 = 64 << 20;

/// What a made-up row is like.
#[derive(Clone, Copy)]
pub(super) struct Like {
    /// Its floats are so many times what they are in others, and its integers lie within that part of what they may be.
    pub(super) scale: f32,
    /// Of its elements, the first one of so many parts; the rest is zero, or masked.
    pub(super) filled: u64,
}

impl Like {
    pub(super) const PLAIN: Self = Self { scale: 1.0, filled: 1 };
}

/// A made-up row: the same one is the same in every run.
#[derive(Clone, Copy)]
pub(super) struct Row {
    pub(super) number: u64,
    pub(super) like: Like,
}

impl Row {
    pub(super) fn plain(number: u64) -> Self {
        Self { number, like: Like::PLAIN }
    }
}

/// Makes rows, with one size for all free dimensions.
pub(super) struct Maker<'a> {
    pub(super) model: &'a dyn Model,
    pub(super) free: u64,
    /// Sizes of the dimensions that have a name, where they are others.
    pub(super) named: Vec<u64>,
    /// `None` where the first dimension is not a batch.
    pub(super) max_rows: Option<u64>,
    /// How large made-up input may be.
    pub(super) bytes_max: u64,
}

impl Maker<'_> {
    /// Bytes of one row of all inputs, if as many rows fit as must be compared.
    pub(super) fn row_bytes(&self) -> Result<u64, ModelError> {
        let slots = &self.model.spec().inputs;
        let bytes = slots.iter().try_fold(0u64, |sum, slot| {
            let elements = wire::element_count(&self.shape(slot, 1))?;
            sum.checked_add(elements.checked_mul(width(datatype_of(slot)))? as u64)
        });
        let rows = self.max_rows.unwrap_or(1).min(2);
        bytes
            .filter(|bytes| bytes.checked_mul(rows).is_some_and(|all| all <= self.bytes_max))
            .ok_or_else(|| ModelError::new(format!("it would be larger than {} bytes", self.bytes_max)))
    }

    pub(super) fn shape(&self, slot: &Slot, rows: u64) -> Vec<u64> {
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
    pub(super) fn make_up(&self, at: u64, slot: &Slot, rows: &[Row]) -> Vec<Vec<u8>> {
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
    maker: Maker<'a>,
}

/// Made-up rows of all inputs.
pub(crate) struct MadeUpBatch<'a> {
    slots: &'a [Slot],
    shapes: Vec<Vec<u64>>,
    rows: Vec<Vec<Vec<u8>>>,
}

impl<'a> MadeUp<'a> {
    /// `None` for a model of which nothing is declared.
    pub(crate) fn new(model: &'a dyn Model) -> Option<Self> {
        let spec = model.spec();
        let max_rows = match spec.rows {
            Rows::UpTo(rows) => Some(u64::from(rows)),
            Rows::None { .. } => None,
        };
        let declared = spec.inputs.iter().all(|slot| slot.form.is_some());
        let named = spec.dimensions.iter().map(|named| named.padded(named.at_most(FREE_SIZES[0]))).collect();
        declared.then_some(Self {
            maker: Maker { model, free: FREE_SIZES[0], named, max_rows, bytes_max: BYTES_MAX },
        })
    }

    /// What stands for the dimensions that are free.
    pub(crate) fn free(&self) -> Vec<u64> {
        let slots = &self.maker.model.spec().inputs;
        let rows = usize::from(self.maker.max_rows.is_some());
        let free = slots.iter().flat_map(|slot| {
            form_of(slot).shape.iter().skip(rows).filter_map(|dimension| match dimension {
                Dimension::Free => Some(self.maker.free),
                Dimension::Named(at) => Some(self.maker.named[*at]),
                Dimension::Fixed(_) => None,
            })
        });
        free.collect()
    }

    /// So many rows; `None` if that would be too large.
    pub(crate) fn batch(&self, rows: u32) -> Option<MadeUpBatch<'a>> {
        let row_bytes = self.maker.row_bytes().ok()?;
        if row_bytes.checked_mul(u64::from(rows))? > self.maker.bytes_max {
            return None;
        }
        let plain: Vec<Row> = (0..u64::from(rows)).map(Row::plain).collect();
        let slots = &self.maker.model.spec().inputs;
        let shapes = slots.iter().map(|slot| self.maker.shape(slot, u64::from(rows))).collect();
        let rows = (0..).zip(slots).map(|(at, slot)| self.maker.make_up(at, slot, &plain)).collect();
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

pub(super) fn datatype_of(slot: &Slot) -> Datatype {
    form_of(slot).datatype
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
