//! Lays the elements of a request's tensors side by side, as the wire wants them, and deals out the binary data behind the JSON. Decides
//! where each tensor begins; what its name, shape and type are has been read before.

use super::parameters::TensorParameters;
use crate::numbers;
use crate::skeleton::Skeleton;
use crate::tensor_json::TensorData;
use bytes::Bytes;
use serde::de::{DeserializeSeed, Error};
use serde_json::value::RawValue;
use wire::elements::LENGTH_BYTES;
use wire::{Datatype, Layout, element_count};

/// What this server does not have. To go on as if it had not been asked for would be an answer to another question.
pub(crate) const SHARED_MEMORY: &str = "parameter `shared_memory_region`: shared memory is not supported";

/// Tensors laid out so far, and the binary data not yet claimed by an input.
pub(super) struct Payload<'s> {
    pub(super) bytes: Vec<u8>,
    /// In place of them: all binary data, which is one tensor and goes on as it came. Large tensors come like that.
    as_it_came: Option<Bytes>,
    layout: Layout,
    pub(super) binary: Bytes,
    /// What the body is read from, if that lacks its numbers; and how many arrays of them have been found again.
    pub(super) skeleton: Option<&'s Skeleton<'s>>,
    pub(super) filled: usize,
    /// Why it is not read, if that is because of what this server does not have.
    pub(super) unsupported: Option<&'static str>,
}

impl Payload<'_> {
    pub(super) fn new(binary: Bytes) -> Self {
        let (bytes, layout) = (Vec::new(), Layout::default());
        Self { bytes, as_it_came: None, layout, binary, skeleton: None, filled: 0, unsupported: None }
    }

    pub(super) fn supports<E: Error>(&mut self, parameters: &TensorParameters) -> Result<(), E> {
        if parameters.shared_memory_region.is_none() {
            return Ok(());
        }
        self.unsupported = Some(SHARED_MEMORY);
        Err(E::custom(SHARED_MEMORY))
    }

    pub(super) fn laid_out(&self) -> &[u8] {
        self.as_it_came.as_deref().unwrap_or(&self.bytes)
    }

    pub(super) fn take(&mut self) -> Bytes {
        self.as_it_came.take().unwrap_or_else(|| std::mem::take(&mut self.bytes).into())
    }

    /// Appends the values of a tensor that were kept as text.
    pub(super) fn fill(
        &mut self,
        text: &RawValue,
        datatype: Datatype,
        shape: &[u64],
    ) -> Result<(), serde_json::Error> {
        let cut = self.skeleton.and_then(|skeleton| skeleton.cut(text.get()));
        self.filled += usize::from(cut.is_some());
        if let Some(numbers) = cut
            && datatype != Datatype::Bool
        {
            let unusual = || Error::custom("unusual");
            // An element takes two characters or more.
            let elements = element_count(shape).filter(|elements| *elements <= numbers.len() / 2);
            let elements = elements.ok_or_else(unusual)?;
            let sizes = numbers::read(numbers, datatype, elements, &mut self.bytes);
            // What is wrong with it, a second reading finds out.
            return match sizes.as_deref() {
                Some([all]) if *all == elements as u64 => Ok(()),
                Some(sizes) if sizes == shape => Ok(()),
                Some(_) | None => Err(unusual()),
            };
        }
        let text = cut.unwrap_or(text.get().as_bytes());
        let mut parser = serde_json::Deserializer::from_slice(text);
        TensorData { bytes: &mut self.bytes, datatype, shape }.deserialize(&mut parser)?;
        parser.end()
    }

    /// Aligns the payload for the next tensor and returns its offset.
    pub(super) fn begin<E: Error>(&mut self, datatype: Datatype, shape: &[u64]) -> Result<u64, E> {
        if let Some(first) = self.as_it_came.take() {
            self.bytes = first.into();
        }
        let offset = self.layout.place(0);
        self.bytes.resize(offset, 0);
        // A hint only.
        if let Some(elements) = element_count(shape) {
            self.bytes
                .reserve(elements.saturating_mul(datatype.size().unwrap_or(LENGTH_BYTES)).min(64 << 10));
        }
        Ok(offset as u64)
    }

    pub(super) fn claim_binary<E: Error>(
        &mut self,
        name: &str,
        datatype: Datatype,
        shape: &[u64],
        size: usize,
    ) -> Result<u64, E> {
        let expected = match datatype.size() {
            Some(element) => element_count(shape).and_then(|elements| elements.checked_mul(element)),
            None => Some(size),
        };
        if expected != Some(size) {
            return Err(E::custom(format_args!(
                "input `{name}`: binary_data_size is {size}, {} of shape {shape:?} takes {}",
                datatype.name(),
                expected
                    .map_or_else(|| "more than memory holds".to_owned(), |bytes| format!("{bytes} bytes")),
            )));
        }
        if size > self.binary.len() {
            return Err(E::custom(format_args!(
                "input `{name}`: binary_data_size is {size}, {} bytes of binary data are left",
                self.binary.len()
            )));
        }
        let claimed = self.binary.split_to(size);
        if self.binary.is_empty() && self.laid_out().is_empty() {
            self.as_it_came = Some(claimed);
            return Ok(0);
        }
        let offset = self.begin::<E>(datatype, shape)?;
        self.bytes.extend_from_slice(&claimed);
        Ok(offset)
    }

    pub(super) fn end(&mut self) {
        let start = self.layout.place(0);
        self.layout.place(self.laid_out().len() - start);
    }
}
