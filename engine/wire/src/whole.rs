//! Elements of integer datatypes as numbers that are as wide as any of them. Decides nothing about them.

use crate::Datatype;

/// How an element of a datatype is read, if that is one of whole numbers. It takes exactly [`Datatype::size`] bytes and panics
/// with others.
pub fn whole_of(datatype: Datatype) -> Option<fn(&[u8]) -> i128> {
    fn own<const SIZE: usize>(element: &[u8]) -> [u8; SIZE] {
        element.try_into().expect("an element has its size")
    }
    Some(match datatype {
        Datatype::Uint8 => |element| u8::from_le_bytes(own(element)).into(),
        Datatype::Uint16 => |element| u16::from_le_bytes(own(element)).into(),
        Datatype::Uint32 => |element| u32::from_le_bytes(own(element)).into(),
        Datatype::Uint64 => |element| u64::from_le_bytes(own(element)).into(),
        Datatype::Int8 => |element| i8::from_le_bytes(own(element)).into(),
        Datatype::Int16 => |element| i16::from_le_bytes(own(element)).into(),
        Datatype::Int32 => |element| i32::from_le_bytes(own(element)).into(),
        Datatype::Int64 => |element| i64::from_le_bytes(own(element)).into(),
        Datatype::Bool
        | Datatype::Fp16
        | Datatype::Bf16
        | Datatype::Fp32
        | Datatype::Fp64
        | Datatype::Bytes => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_and_the_largest_are_read_as_they_are() {
        let ones = [0xff; 8];
        for datatype in Datatype::ALL {
            let Some(read) = whole_of(datatype) else { continue };
            let size = datatype.size().unwrap();
            let is_signed = datatype.name().starts_with('I');
            let all_ones = if is_signed { -1 } else { (1_i128 << (8 * size)) - 1 };
            assert_eq!(read(&ones[..size]), all_ones, "{}", datatype.name());
            let mut least = [0; 8];
            least[size - 1] = 0x80;
            let high = 1_i128 << (8 * size - 1);
            assert_eq!(read(&least[..size]), if is_signed { -high } else { high }, "{}", datatype.name());
        }
        assert_eq!(Datatype::ALL.into_iter().filter_map(whole_of).count(), 8);
    }
}
