//! Datatypes, and where tensors lie in a payload. Decides whether a declared tensor can exist (its
//! dimensions multiply without overflow, its bytes lie inside the payload, and where elements have lengths of their own,
//! these add up); never touches tensor values.

use crate::elements::Elements;
use crate::frame::ALIGNMENT;
use std::ops::Range;

/// Element type of a tensor, with the Open Inference Protocol's names. Elements are little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Datatype {
    /// One byte, 0 or 1.
    Bool = 1,
    /// Unsigned, 1 byte.
    Uint8 = 2,
    /// Signed, 1 byte.
    Int8 = 3,
    /// Signed, 2 bytes.
    Int16 = 4,
    /// Signed, 4 bytes.
    Int32 = 5,
    /// Signed, 8 bytes.
    Int64 = 6,
    /// IEEE half, 2 bytes.
    Fp16 = 7,
    /// bfloat16, 2 bytes.
    Bf16 = 8,
    /// IEEE single, 4 bytes.
    Fp32 = 9,
    /// IEEE double, 8 bytes.
    Fp64 = 10,
    /// A string of bytes, any number of them: see [`Elements`].
    Bytes = 11,
    /// Unsigned, 2 bytes.
    Uint16 = 12,
    /// Unsigned, 4 bytes.
    Uint32 = 13,
    /// Unsigned, 8 bytes.
    Uint64 = 14,
}

impl Datatype {
    /// Every datatype that travels.
    pub const ALL: [Self; 14] = [
        Self::Bool,
        Self::Uint8,
        Self::Uint16,
        Self::Uint32,
        Self::Uint64,
        Self::Int8,
        Self::Int16,
        Self::Int32,
        Self::Int64,
        Self::Fp16,
        Self::Bf16,
        Self::Fp32,
        Self::Fp64,
        Self::Bytes,
    ];

    /// The protocol's name, such as `FP32`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bool => "BOOL",
            Self::Uint8 => "UINT8",
            Self::Uint16 => "UINT16",
            Self::Uint32 => "UINT32",
            Self::Uint64 => "UINT64",
            Self::Int8 => "INT8",
            Self::Int16 => "INT16",
            Self::Int32 => "INT32",
            Self::Int64 => "INT64",
            Self::Fp16 => "FP16",
            Self::Bf16 => "BF16",
            Self::Fp32 => "FP32",
            Self::Fp64 => "FP64",
            Self::Bytes => "BYTES",
        }
    }

    /// The inverse of [`Datatype::name`].
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|datatype| datatype.name() == name)
    }

    /// The inverse of `datatype as u32`.
    pub fn from_wire(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|datatype| *datatype as u32 == number)
    }

    /// Bytes of one element; `None` where each has its own length.
    pub const fn size(self) -> Option<usize> {
        match self {
            Self::Bool | Self::Uint8 | Self::Int8 => Some(1),
            Self::Uint16 | Self::Int16 | Self::Fp16 | Self::Bf16 => Some(2),
            Self::Uint32 | Self::Int32 | Self::Fp32 => Some(4),
            Self::Uint64 | Self::Int64 | Self::Fp64 => Some(8),
            Self::Bytes => None,
        }
    }
}

/// One tensor of a payload, as declared by the sender: unchecked until [`TensorMeta::locate`].
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct TensorMeta {
    /// Input or output name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// [`Datatype`] as a number.
    #[prost(uint32, tag = "2")]
    pub datatype: u32,
    /// Dimensions, none negative.
    #[prost(uint64, repeated, tag = "3")]
    pub shape: Vec<u64>,
    /// First byte within the payload.
    #[prost(uint64, tag = "4")]
    pub offset: u64,
    /// How many bytes it has. Has to be said of BYTES only, since nothing else tells; of others 0 will do.
    #[prost(uint64, tag = "5")]
    pub bytes: u64,
}

/// Why a declared tensor cannot exist.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TensorError {
    /// A number that is no datatype.
    #[error("tensor `{name}` has unknown datatype {got}")]
    Datatype {
        /// Whose.
        name: String,
        /// The number.
        got: u32,
    },
    /// The dimensions multiply beyond what memory can address.
    #[error("shape {shape:?} of tensor `{name}` overflows")]
    Overflow {
        /// Whose.
        name: String,
        /// Its shape.
        shape: Vec<u64>,
    },
    /// The tensor reaches beyond the payload.
    #[error("tensor `{name}` ends at byte {end} of a payload of {payload} bytes")]
    Outside {
        /// Whose.
        name: String,
        /// Where it would end.
        end: u64,
        /// What there is.
        payload: usize,
    },
    /// Another length than datatype and shape give.
    #[error("tensor `{name}` is said to have {got} bytes, its shape says {want}")]
    Length {
        /// Whose.
        name: String,
        /// What is said.
        got: u64,
        /// What the shape says.
        want: usize,
    },
    /// An element reaches beyond the tensor.
    #[error("an element of tensor `{name}` reaches beyond its {bytes} bytes")]
    Torn {
        /// Whose.
        name: String,
        /// What it has.
        bytes: u64,
    },
    /// Another number of elements than the shape gives.
    #[error("tensor `{name}` has {got} elements, shape {shape:?} has {want}")]
    Count {
        /// Whose.
        name: String,
        /// How many there are.
        got: usize,
        /// Its shape.
        shape: Vec<u64>,
        /// How many the shape gives.
        want: usize,
    },
}

impl TensorMeta {
    /// Datatype and byte range of this tensor within `payload`, checked; elements that have lengths of their own are
    /// all inside, and as many as the shape says. Linear in their number; allocates nothing.
    pub fn locate(&self, payload: &[u8]) -> Result<(Datatype, Range<usize>), TensorError> {
        let name = || self.name.clone();
        let datatype = Datatype::from_wire(self.datatype)
            .ok_or_else(|| TensorError::Datatype { name: name(), got: self.datatype })?;
        let overflow = || TensorError::Overflow { name: name(), shape: self.shape.clone() };
        let elements = element_count(&self.shape).ok_or_else(overflow)?;
        let Some(size) = datatype.size() else {
            let range = self.range(self.bytes, payload)?;
            self.check_elements(&payload[range.clone()], elements)?;
            return Ok((datatype, range));
        };
        let bytes = elements.checked_mul(size).ok_or_else(overflow)?;
        if self.bytes != 0 && self.bytes != bytes as u64 {
            return Err(TensorError::Length { name: name(), got: self.bytes, want: bytes });
        }
        Ok((datatype, self.range(bytes as u64, payload)?))
    }

    fn range(&self, bytes: u64, payload: &[u8]) -> Result<Range<usize>, TensorError> {
        let end = self.offset.saturating_add(bytes);
        if end > payload.len() as u64 {
            return Err(TensorError::Outside { name: self.name.clone(), end, payload: payload.len() });
        }
        Ok(self.offset as usize..end as usize)
    }

    fn check_elements(&self, tensor: &[u8], want: usize) -> Result<(), TensorError> {
        let name = || self.name.clone();
        let torn = |_| TensorError::Torn { name: name(), bytes: self.bytes };
        match Elements::of(tensor).try_count().map_err(torn)? {
            got if got == want => Ok(()),
            got => Err(TensorError::Count { name: name(), got, shape: self.shape.clone(), want }),
        }
    }
}

/// Product of the dimensions; 1 for a scalar; `None` when it overflows (even if another dimension is 0).
pub fn element_count(shape: &[u64]) -> Option<usize> {
    let mut product: usize = 1;
    let mut empty = false;
    for dimension in shape {
        match usize::try_from(*dimension).ok()? {
            0 => empty = true,
            dimension => product = product.checked_mul(dimension)?,
        }
    }
    Some(if empty { 0 } else { product })
}

/// Hands out aligned places in a payload that is being laid out.
#[derive(Clone, Copy, Debug, Default)]
pub struct Layout {
    end: usize,
}

impl Layout {
    /// The offset at which the next tensor, of `bytes` bytes, starts.
    pub fn place(&mut self, bytes: usize) -> usize {
        let start = self.end.next_multiple_of(ALIGNMENT);
        self.end = start + bytes;
        start
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta(datatype: u32, shape: &[u64], offset: u64) -> TensorMeta {
        TensorMeta { name: "x".into(), datatype, shape: shape.into(), offset, bytes: 0 }
    }

    #[test]
    fn names_and_numbers_round_trip() {
        for datatype in Datatype::ALL {
            assert_eq!(Datatype::from_name(datatype.name()), Some(datatype));
            assert_eq!(Datatype::from_wire(datatype as u32), Some(datatype));
        }
        assert_eq!(Datatype::from_name("STRING"), None);
        assert_eq!(Datatype::from_wire(0), None);
    }

    #[test]
    fn a_tensor_lies_inside_its_payload_or_is_refused() {
        assert_eq!(meta(9, &[2, 3], 64).locate(&[0; 88]), Ok((Datatype::Fp32, 64..88)));
        assert!(matches!(
            meta(9, &[2, 3], 64).locate(&[0; 87]),
            Err(TensorError::Outside { end: 88, payload: 87, .. })
        ));
        assert!(matches!(meta(9, &[1], u64::MAX).locate(&[0; 100]), Err(TensorError::Outside { .. })));
        assert!(matches!(meta(77, &[1], 0).locate(&[0; 100]), Err(TensorError::Datatype { got: 77, .. })));
    }

    #[test]
    fn dimensions_that_overflow_are_refused_even_beside_a_zero() {
        let huge = [1 << 40, 1 << 40];
        assert!(matches!(meta(9, &huge, 0).locate(&[0; 8]), Err(TensorError::Overflow { .. })));
        assert_eq!(element_count(&[1 << 40, 0, 1 << 40]), None);
        assert_eq!(element_count(&[5, 0]), Some(0));
        assert_eq!(element_count(&[]), Some(1));
    }

    #[test]
    fn a_tensor_may_say_its_length_and_then_says_the_right_one() {
        let with = |bytes| TensorMeta { bytes, ..meta(9, &[2, 3], 0) }.locate(&[0; 30]);
        assert_eq!(with(24), Ok((Datatype::Fp32, 0..24)));
        assert!(matches!(with(23), Err(TensorError::Length { got: 23, want: 24, .. })));
    }

    #[test]
    fn elements_of_bytes_lie_inside_their_tensor_and_are_as_many_as_its_shape_says() {
        let mut payload = vec![0; 64];
        ["a", "", "cat"].iter().for_each(|element| crate::push_element(&mut payload, element.as_bytes()));
        let end = payload.len();
        payload.extend([0; 8]);
        let of = |shape: &[u64], bytes: usize| TensorMeta { bytes: bytes as u64, ..meta(11, shape, 64) };
        assert_eq!(of(&[3], end - 64).locate(&payload), Ok((Datatype::Bytes, 64..end)));
        assert_eq!(of(&[3, 1], end - 64).locate(&payload).map(|(_, at)| at), Ok(64..end));
        assert_eq!(of(&[0, 2], 0).locate(&payload), Ok((Datatype::Bytes, 64..64)));
        assert!(matches!(
            of(&[2], end - 64).locate(&payload),
            Err(TensorError::Count { got: 3, want: 2, .. })
        ));
        assert!(matches!(of(&[3], end - 65).locate(&payload), Err(TensorError::Torn { .. })));
        assert!(matches!(of(&[3], end + 9).locate(&payload), Err(TensorError::Outside { .. })));
        assert!(matches!(of(&[1 << 40, 1 << 40], 0).locate(&payload), Err(TensorError::Overflow { .. })));
        assert!(matches!(
            TensorMeta { bytes: u64::MAX, ..of(&[1], 0) }.locate(&payload),
            Err(TensorError::Outside { .. })
        ));
    }

    #[test]
    fn layout_aligns_each_tensor() {
        let mut layout = Layout::default();
        assert_eq!((layout.place(3), layout.place(64), layout.place(1)), (0, 64, 128));
    }
}
