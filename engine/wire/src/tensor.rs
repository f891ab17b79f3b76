//! Datatypes, and where tensors lie in a payload. Decides whether a declared tensor can exist (its
//! dimensions multiply without overflow, its bytes lie inside the payload); never touches tensor values.

use crate::frame::ALIGNMENT;

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
}

impl Datatype {
    /// Every datatype that travels.
    pub const ALL: [Self; 10] = [
        Self::Bool,
        Self::Uint8,
        Self::Int8,
        Self::Int16,
        Self::Int32,
        Self::Int64,
        Self::Fp16,
        Self::Bf16,
        Self::Fp32,
        Self::Fp64,
    ];

    /// The protocol's name, such as `FP32`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bool => "BOOL",
            Self::Uint8 => "UINT8",
            Self::Int8 => "INT8",
            Self::Int16 => "INT16",
            Self::Int32 => "INT32",
            Self::Int64 => "INT64",
            Self::Fp16 => "FP16",
            Self::Bf16 => "BF16",
            Self::Fp32 => "FP32",
            Self::Fp64 => "FP64",
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

    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            Self::Bool | Self::Uint8 | Self::Int8 => 1,
            Self::Int16 | Self::Fp16 | Self::Bf16 => 2,
            Self::Int32 | Self::Fp32 => 4,
            Self::Int64 | Self::Fp64 => 8,
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
}

impl TensorMeta {
    /// Datatype and byte range of this tensor, checked against a payload of `payload_len` bytes.
    pub fn locate(&self, payload_len: usize) -> Result<(Datatype, std::ops::Range<usize>), TensorError> {
        let datatype = Datatype::from_wire(self.datatype)
            .ok_or_else(|| TensorError::Datatype { name: self.name.clone(), got: self.datatype })?;
        let bytes = element_count(&self.shape)
            .and_then(|elements| elements.checked_mul(datatype.size()))
            .ok_or_else(|| TensorError::Overflow { name: self.name.clone(), shape: self.shape.clone() })?;
        let end = self.offset.saturating_add(bytes as u64);
        if end > payload_len as u64 {
            return Err(TensorError::Outside { name: self.name.clone(), end, payload: payload_len });
        }
        let start = self.offset as usize;
        Ok((datatype, start..start + bytes))
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
        TensorMeta { name: "x".into(), datatype, shape: shape.into(), offset }
    }

    #[test]
    fn names_and_numbers_round_trip() {
        for datatype in Datatype::ALL {
            assert_eq!(Datatype::from_name(datatype.name()), Some(datatype));
            assert_eq!(Datatype::from_wire(datatype as u32), Some(datatype));
        }
        assert_eq!(Datatype::from_name("BYTES"), None);
        assert_eq!(Datatype::from_wire(0), None);
    }

    #[test]
    fn a_tensor_lies_inside_its_payload_or_is_refused() {
        assert_eq!(meta(9, &[2, 3], 64).locate(88), Ok((Datatype::Fp32, 64..88)));
        assert!(matches!(
            meta(9, &[2, 3], 64).locate(87),
            Err(TensorError::Outside { end: 88, payload: 87, .. })
        ));
        assert!(matches!(meta(9, &[1], u64::MAX).locate(100), Err(TensorError::Outside { .. })));
        assert!(matches!(meta(77, &[1], 0).locate(100), Err(TensorError::Datatype { got: 77, .. })));
    }

    #[test]
    fn dimensions_that_overflow_are_refused_even_beside_a_zero() {
        let huge = [1 << 40, 1 << 40];
        assert!(matches!(meta(9, &huge, 0).locate(8), Err(TensorError::Overflow { .. })));
        assert_eq!(element_count(&[1 << 40, 0, 1 << 40]), None);
        assert_eq!(element_count(&[5, 0]), Some(0));
        assert_eq!(element_count(&[]), Some(1));
    }

    #[test]
    fn layout_aligns_each_tensor() {
        let mut layout = Layout::default();
        assert_eq!((layout.place(3), layout.place(64), layout.place(1)), (0, 64, 128));
    }
}
