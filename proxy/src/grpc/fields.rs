//! A protobuf message, field by field, without a copy of it. Decides whether its bytes are fields at all; never what they
//! mean. A message of many small parts would take several times its size as structs: here it takes nothing.

use crate::refusal::Refusal;
use bytes::Buf;

/// What a field holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Value<'a> {
    /// An integer or a flag.
    Varint(u64),
    /// A float of 8 bytes.
    Fixed64([u8; 8]),
    /// A float of 4 bytes.
    Fixed32([u8; 4]),
    /// A string, bytes, another message, or several numbers.
    Bytes(&'a [u8]),
}

/// The fields of one message, in the order in which they stand.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Value<'a>), Refusal>;

    fn next(&mut self) -> Option<Self::Item> {
        (!self.0.is_empty()).then(|| {
            let field = self.field();
            if field.is_err() {
                self.0 = &[];
            }
            field
        })
    }
}

impl<'a> Fields<'a> {
    /// The number of the next field, whose value may not have come yet.
    pub(super) fn number(&self) -> Option<u64> {
        let mut rest = self.0;
        varint(&mut rest).ok().map(|key| key >> 3)
    }

    fn field(&mut self) -> Result<(u64, Value<'a>), Refusal> {
        let key = varint(&mut self.0)?;
        let value = match key & 7 {
            0 => Value::Varint(varint(&mut self.0)?),
            1 => Value::Fixed64(*self.take_array()?),
            2 => {
                let len = usize::try_from(varint(&mut self.0)?).map_err(|_| malformed())?;
                Value::Bytes(self.take(len)?)
            }
            5 => Value::Fixed32(*self.take_array()?),
            _ => return Err(malformed()), // groups, which this protocol never had
        };
        match key >> 3 {
            0 => Err(malformed()),
            number => Ok((number, value)),
        }
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], Refusal> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or_else(malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    fn take_array<const N: usize>(&mut self) -> Result<&'a [u8; N], Refusal> {
        let (taken, rest) = self.0.split_first_chunk().ok_or_else(malformed)?;
        self.0 = rest;
        Ok(taken)
    }
}

impl<'a> Value<'a> {
    pub(super) fn bytes(self) -> Result<&'a [u8], Refusal> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            Self::Varint(_) | Self::Fixed64(_) | Self::Fixed32(_) => Err(malformed()),
        }
    }

    pub(super) fn text(self) -> Result<&'a str, Refusal> {
        std::str::from_utf8(self.bytes()?)
            .map_err(|_| Refusal::Invalid("the message has a string that is not UTF-8".into()))
    }
}

/// The next of several numbers.
pub(super) fn varint(bytes: &mut &[u8]) -> Result<u64, Refusal> {
    match bytes.first() {
        Some(byte) if *byte < 0x80 => {
            let value = u64::from(*byte);
            bytes.advance(1);
            Ok(value)
        }
        _ => prost::decode_length_delimiter(bytes).map(|value| value as u64).map_err(|_| malformed()),
    }
}

pub(super) fn malformed() -> Refusal {
    Refusal::Invalid("the message does not decode: it is no protobuf of this method".into())
}
