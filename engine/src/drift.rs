//! Watches what a version is given and what it answers: whether that is distributed as it was when the version was new, and
//! how sure it is of its answers. A model whose world has moved on goes on answering, fast and without an error; this is
//! how it is seen. Decides which values are looked at; says how far apart, never what is too far.
//!
//! ```text
//!   a batch is answered ─▶ one row of it, of a thousand batches in a second ─▶ one element of each tensor ─▶ Watch
//! ```
//!
//! - **It costs next to nothing.** A row is read on the lane, after its answer is on its way; a lane never waits for
//!   another one's, and the row is left out instead. Nothing is allocated once the bins are set.
//! - **No row is more likely to be looked at than another of the same time.** Where there are more batches than a thousand in
//!   a second, each is drawn with the same chance: the first ones of bursts would be others than those that follow them.
//! - **A row is one witness.** The elements of a row know of each other, so of each tensor one is drawn, or one of each of a
//!   few columns. What is padding is no element.
//! - Of what comes as bytes, a picture or a text, the lengths are watched where it becomes tensors.
//! - What was learned outlives the engine, see [`kept`]: it is what the same files are compared with later.

mod divergence;
mod kept;
mod sketch;
mod watch;

use crate::batcher::Piece;
use crate::golden::Reference;
use crate::job::Job;
use crate::library::Content;
use crate::model::{Dimension, Form, Output, Rows, Spec};
use crate::values::{value_at, values, width};
use kept::Reference as Learned;
pub(crate) use kept::{Kept, References};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};
use std::time::{Duration, Instant};
use watch::{CHANCE, Watch};
use wire::{Confidence, Datatype, DriftSide, Elements, TensorDrift, TensorMeta, VersionDrift};

/// Inputs, and outputs, that are watched: the first that are declared.
const TENSORS_MAX: usize = 4;

/// Of rows that are no longer, each place is watched by itself: it is a column with a meaning of its own.
const COLUMNS_MAX: u64 = 16;

/// Rows of more classes say nothing of how sure the version is: reading them would take too long.
const CLASSES_MAX: usize = 4096;

/// Rows of one version are looked at so often at most, on average.
const ROW_EVERY_NS: u64 = 1_000_000;

/// How often batches come is an average over so many of them, in which a pause counts as no longer than ten rows take.
const BATCHES: u64 = 64;

/// What is known of one version's files, whenever they were loaded.
pub(crate) struct Drift {
    tensors: Vec<Tensor>,
    /// The output that holds classes.
    classes: Option<Classes>,
    rows: Watched,
    /// Somebody says what it was made for, which is not learned.
    is_declared: bool,
    /// Names of what comes as bytes.
    raw: Vec<String>,
    lengths: Watched,
}

/// Features that are watched together, and which rows are looked at. Counters are read and written apart: what threads that
/// meet there make of them is as good a chance.
struct Watched {
    origin: Instant,
    last_ns: AtomicU64,
    /// Between two batches, on average.
    gap_ns: AtomicU64,
    chance: AtomicU64,
    eyes: Mutex<Eyes>,
}

struct Eyes {
    watch: Watch,
    dice: Dice,
    sure: Sure,
}

/// How probable the most probable classes were.
#[derive(Default)]
struct Sure {
    tenths: [u64; 10],
    sum: f64,
}

/// A tensor that is watched.
#[derive(Debug, PartialEq)]
struct Tensor {
    side: DriftSide,
    name: String,
    /// Among the inputs, or the outputs.
    at: usize,
    /// From the second on, where rows are the first.
    dimensions: Vec<Dimension>,
    has_rows: bool,
    /// Features: its columns, or one.
    features: usize,
    /// The first of them.
    first: usize,
}

struct Classes {
    /// Among the outputs.
    at: usize,
    softmax: bool,
    feature: usize,
}

impl Drift {
    /// Of a model that takes and gives this, and may be sent `raw` inputs in place of its own. It is compared with what it was
    /// made for, if that is known, else with the first rows that come.
    pub(crate) fn of(spec: &Spec, raw: Vec<String>, reference: &[Reference], now: Instant) -> Self {
        let has_rows = matches!(spec.rows, Rows::UpTo(_));
        let (mut tensors, mut features) = (Vec::new(), 0);
        for (side, slots) in [(DriftSide::Input, &spec.inputs), (DriftSide::Output, &spec.outputs)] {
            for (at, slot) in slots.iter().enumerate().take(TENSORS_MAX) {
                let Some(form) = slot.form.as_ref().filter(|_| !slot.mask) else { continue };
                let tensor = Tensor::of(side, slot.name.clone(), at, (form, has_rows), features);
                features += tensor.features;
                tensors.push(tensor);
            }
        }
        let classes = spec.postprocess.as_ref().filter(|_| has_rows).and_then(|declared| {
            let at = spec.outputs.iter().position(|slot| slot.name == declared.output)?;
            Some(Classes { at, softmax: declared.softmax, feature: features })
        });
        features += usize::from(classes.is_some());
        let lengths = Watched::new(Watch::new(raw.len(), CHANCE), now);
        let rows = Watched::new(Watch::new(features, CHANCE), now);
        let drift = Self { tensors, classes, rows, is_declared: !reference.is_empty(), raw, lengths };
        if drift.is_declared {
            drift.learn(reference, now);
        }
        drift
    }

    /// Goes on with what an earlier engine has learned of the same files; what somebody has declared stays.
    pub(crate) fn go_on(&self, kept: &Kept) {
        let rows = (!self.is_declared).then_some((&self.rows, &kept.rows));
        for (watched, reference) in rows.into_iter().chain([(&self.lengths, &kept.lengths)]) {
            let watch = &mut watched.lock().watch;
            let features = watch.features();
            let sketches = reference.as_ref().and_then(|reference| reference.sketches(features));
            sketches.into_iter().for_each(|sketches| watch.go_on(sketches));
        }
    }

    /// What is to be kept for later engines, of files of this content; nothing if that has not become more.
    pub(crate) fn learned(&self, content: Content) -> Option<Kept> {
        let (mut rows, mut lengths) = (self.rows.lock(), self.lengths.lock());
        let is_news = [rows.watch.take_news() && !self.is_declared, lengths.watch.take_news()];
        let learned = |watch: &Watch| watch.reference().map(Learned::of);
        is_news.contains(&true).then(|| {
            let rows = if self.is_declared { None } else { learned(&rows.watch) };
            Kept::new(content, rows, learned(&lengths.watch))
        })
    }

    /// Looks at one of the rows that ran together, if it is drawn.
    pub(crate) fn observe(&self, pieces: &[Piece<Arc<Job>>], outputs: &[Output], now: Instant) {
        if self.tensors.is_empty() {
            return;
        }
        let Some(mut eyes) = self.rows.look(now) else { return };
        let all: u32 = pieces.iter().map(|piece| piece.rows).sum();
        let row = eyes.dice.below(u64::from(all)) as u32;
        let mut before = 0;
        let is_in = |piece: &&Piece<Arc<Job>>| {
            before += piece.rows;
            row < before
        };
        let Some(piece) = pieces.iter().find(is_in) else { return };
        let request = &piece.job.request;
        let own = piece.first + (row + piece.rows - before);
        let given = |slot| {
            let at = request.inputs.iter().position(|given| given.slot == slot)?;
            let given = &request.inputs[at];
            Some((given.datatype, &given.shape[..], request.part(at, own, 1)))
        };
        self.read(&mut eyes, given, (outputs, row), request.real.as_deref());
        eyes.watch.end_row(now);
    }

    /// Looks at all rows of what a version was made for, in no order: what was first in a file may be of one kind.
    fn learn(&self, reference: &[Reference], now: Instant) {
        let mut eyes = self.rows.lock();
        let rows = |of: &'_ Reference| 0..of.rows;
        let mut rows: Vec<(usize, u32)> =
            reference.iter().enumerate().flat_map(|(at, of)| rows(of).map(move |row| (at, row))).collect();
        eyes.watch.declare(rows.len() as u32);
        while !rows.is_empty() {
            let drawn = eyes.dice.below(rows.len() as u64) as usize;
            let (at, row) = rows.swap_remove(drawn);
            let Reference { given, payload, rows, outputs } = &reference[at];
            let given = |slot| {
                let given = given.iter().find(|given| given.slot == slot)?;
                let bytes = &payload[given.bytes.clone()];
                let length = bytes.len() / *rows as usize;
                Some((given.datatype, &given.shape[..], &bytes[row as usize * length..][..length]))
            };
            self.read(&mut eyes, given, (outputs, row), None);
            eyes.watch.end_row(now);
        }
        eyes.watch.seen = 0; // nobody has sent them
        eyes.sure = Sure::default();
    }

    /// Reads a row of each tensor: the inputs as they are `given`, by slot, and that row of the outputs.
    fn read<'r>(
        &self,
        eyes: &mut Eyes,
        given: impl Fn(usize) -> Option<(Datatype, &'r [u64], &'r [u8])>,
        (outputs, row): (&'r [Output], u32),
        real: Option<&[u64]>,
    ) {
        let Eyes { watch, dice, sure } = eyes;
        for tensor in &self.tensors {
            let found = match tensor.side {
                DriftSide::Input => given(tensor.at),
                DriftSide::Output | DriftSide::Confidence => outputs
                    .get(tensor.at)
                    .map(|output| (output.datatype, &output.shape[..], tensor.row(output, row))),
            };
            if let Some((datatype, shape, bytes)) = found {
                tensor.read(datatype, shape, bytes, real, dice, watch);
            }
        }
        let Some(classes) = &self.classes else { return };
        let Some(output) = outputs.get(classes.at) else { return };
        let bytes = output.bytes.len() / output.shape[0] as usize;
        let row = &output.bytes[row as usize * bytes..][..bytes];
        if let Some(probability) = classes.confidence(output.datatype, row) {
            watch.put(classes.feature, probability);
            sure.count(probability);
        }
    }

    /// Notes how long one element is of each of these that is raw, if it is drawn.
    pub(crate) fn observe_lengths(&self, inputs: &[TensorMeta], payload: &[u8], now: Instant) {
        if self.raw.is_empty() {
            return;
        }
        let Some(mut eyes) = self.lengths.look(now) else { return };
        let Eyes { watch, dice, .. } = &mut *eyes;
        for (feature, name) in self.raw.iter().enumerate() {
            let Some(meta) = inputs.iter().find(|meta| meta.name == *name) else { continue };
            let Ok((Datatype::Bytes, range)) = meta.locate(payload) else { continue };
            let mut elements = Elements::of(&payload[range]);
            let count = elements.clone().try_count().unwrap_or(0) as u64;
            if count > 0
                && let Some(Ok(element)) = elements.nth(dice.below(count) as usize)
            {
                watch.put(feature, element.len() as f64);
            }
        }
        watch.end_row(now);
    }

    /// Rows that were looked at so far.
    pub(crate) fn seen(&self) -> u64 {
        self.rows.lock().watch.seen
    }

    /// What proxies are told of it.
    pub(crate) fn to_wire(&self, name: &str, version: u64, load: u64, now: Instant) -> VersionDrift {
        let (rows, lengths) = (self.rows.lock(), self.lengths.lock());
        let mut tensors: Vec<TensorDrift> = Vec::new();
        let mut tell = |side: DriftSide, name: &str, watch: &Watch, features: std::ops::Range<usize>| {
            let Some(compared) = watch.latest() else { return };
            let own = &compared.divergences[features.clone()];
            let worst = own.iter().enumerate().max_by(|(_, one), (_, other)| {
                one.least.total_cmp(&other.least).then(one.bits.total_cmp(&other.bits))
            });
            let Some((column, worst)) = worst else { return };
            let most = own.iter().map(|divergence| divergence.most).fold(0.0, f64::max);
            tensors.push(TensorDrift {
                side: side as i32,
                name: name.to_owned(),
                bits_millionths: millionths(worst.bits),
                least_millionths: millionths(worst.least),
                most_millionths: millionths(most),
                column: (features.len() > 1).then_some(column as u32),
                rows: compared.rows,
            });
        };
        for tensor in &self.tensors {
            tell(tensor.side, &tensor.name, &rows.watch, tensor.first..tensor.first + tensor.features);
        }
        if let Some(classes) = &self.classes {
            tell(DriftSide::Confidence, "confidence", &rows.watch, classes.feature..classes.feature + 1);
        }
        for (feature, name) in self.raw.iter().enumerate() {
            tell(DriftSide::Input, name, &lengths.watch, feature..feature + 1);
        }
        let last = rows.watch.latest();
        let ms = |time: Duration| time.as_millis() as u64;
        VersionDrift {
            name: name.to_owned(),
            version,
            load,
            seen: rows.watch.seen,
            has_reference: rows.watch.has_reference(),
            windows: rows.watch.windows,
            ended_ms: last.map_or(0, |last| ms(now.saturating_duration_since(last.ended))),
            lasted_ms: last.map_or(0, |last| ms(last.ended - last.began)),
            tensors,
            confidence: self.classes.as_ref().map(|_| rows.sure.to_wire()),
        }
    }
}

fn millionths(bits: f64) -> u32 {
    (bits * 1e6).round() as u32
}

impl Sure {
    fn count(&mut self, probability: f64) {
        // What is no probability is counted as the nearest one.
        let probability = probability.clamp(0.0, 1.0);
        self.tenths[((probability * 10.0) as usize).min(9)] += 1;
        self.sum += probability;
    }

    fn to_wire(&self) -> Confidence {
        Confidence { tenths: self.tenths.into(), sum_millionths: (self.sum * 1e6) as u64 }
    }
}

impl Watched {
    fn new(watch: Watch, now: Instant) -> Self {
        // Any odd number will do: who draws a row has nobody to hide it from.
        let eyes = Eyes { watch, dice: Dice(0x9e37_79b9_7f4a_7c15), sure: Sure::default() };
        Self {
            origin: now,
            last_ns: AtomicU64::new(0),
            gap_ns: AtomicU64::new(ROW_EVERY_NS),
            chance: AtomicU64::new(0x2545_f491_4f6c_dd1d),
            eyes: Mutex::new(eyes),
        }
    }

    /// Draws whether a row of this batch is looked at.
    fn is_drawn(&self, now: Instant) -> bool {
        let now = now.saturating_duration_since(self.origin).as_nanos() as u64;
        let gap = now.saturating_sub(self.last_ns.load(Ordering::Relaxed)).min(10 * ROW_EVERY_NS);
        self.last_ns.store(now, Ordering::Relaxed);
        let average = self.gap_ns.load(Ordering::Relaxed);
        let average = average - average / BATCHES + gap / BATCHES;
        self.gap_ns.store(average, Ordering::Relaxed);
        if average >= ROW_EVERY_NS {
            return true;
        }
        let mut dice = Dice(self.chance.load(Ordering::Relaxed));
        let drawn = dice.below(ROW_EVERY_NS);
        self.chance.store(dice.0, Ordering::Relaxed);
        drawn < average
    }

    /// The right to look at a row; nobody waits for it.
    fn look(&self, now: Instant) -> Option<MutexGuard<'_, Eyes>> {
        if !self.is_drawn(now) {
            return None;
        }
        match self.eyes.try_lock() {
            Ok(eyes) => Some(eyes),
            Err(TryLockError::WouldBlock) => None,
            Err(TryLockError::Poisoned(_)) => unreachable!("no panic while a row is looked at"),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Eyes> {
        self.eyes.lock().expect("no panic while a row is looked at")
    }
}

impl Tensor {
    fn of(side: DriftSide, name: String, at: usize, (form, has_rows): (&Form, bool), first: usize) -> Self {
        let dimensions = form.shape[usize::from(has_rows)..].to_vec();
        let features = match &dimensions[..] {
            &[Dimension::Fixed(columns)] if has_rows && columns <= COLUMNS_MAX => columns as usize,
            _ => 1,
        };
        Self { side, name, at, dimensions, has_rows, features, first }
    }

    /// One row of an output.
    fn row<'o>(&self, output: &'o Output, row: u32) -> &'o [u8] {
        if !self.has_rows {
            return &output.bytes;
        }
        let bytes = output.bytes.len() / output.shape[0] as usize;
        &output.bytes[row as usize * bytes..][..bytes]
    }

    /// Looks at a row of it.
    fn read(
        &self,
        datatype: Datatype,
        shape: &[u64],
        row: &[u8],
        real: Option<&[u64]>,
        dice: &mut Dice,
        watch: &mut Watch,
    ) {
        if self.features > 1 {
            for (column, value) in values(datatype, row).take(self.features).enumerate() {
                watch.put(self.first + column, value);
            }
            return;
        }
        let sizes = &shape[usize::from(self.has_rows)..];
        if let Some(place) = self.place(sizes, real, dice)
            && place < row.len() / width(datatype)
        {
            watch.put(self.first, value_at(datatype, row, place));
        }
    }

    /// Draws an element that is no padding.
    fn place(&self, sizes: &[u64], real: Option<&[u64]>, dice: &mut Dice) -> Option<usize> {
        let mut place = 0;
        for (dimension, size) in self.dimensions.iter().zip(sizes) {
            let own = match (dimension, real) {
                (Dimension::Named(at), Some(real)) => real[*at].min(*size),
                (Dimension::Named(_) | Dimension::Free | Dimension::Fixed(_), _) => *size,
            };
            if own == 0 {
                return None;
            }
            place = place * size + dice.below(own);
        }
        Some(place as usize)
    }
}

impl Classes {
    /// How probable the most probable class is; nothing where no class is a number.
    fn confidence(&self, datatype: Datatype, row: &[u8]) -> Option<f64> {
        if row.len() > CLASSES_MAX * width(datatype) {
            return None;
        }
        let largest = values(datatype, row).fold(f64::NEG_INFINITY, f64::max);
        if !largest.is_finite() {
            return None;
        }
        if !self.softmax {
            return Some(largest);
        }
        let numbers = values(datatype, row).filter(|logit| !logit.is_nan());
        let all: f64 = numbers.map(|logit| (logit - largest).exp()).sum();
        Some(1.0 / all)
    }
}

/// Xorshift (Marsaglia, 2003): a row to look at takes no better chance.
struct Dice(u64);

impl Dice {
    /// Below `end`, which is not 0.
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((u128::from(self.0) * u128::from(end)) >> 64) as u64
    }
}

#[cfg(test)]
mod tests;
