//! The elements of a BYTES tensor: byte strings, each behind its length. Decides where one ends; never what it means.
//!
//! ```text
//!   ├ u32, little-endian: 5 ┤ h e l l o ├ 0 ┤├ 2 ┤ h i      three elements in 19 bytes
//! ```

/// What stands in front of each element, in bytes.
pub const LENGTH_BYTES: usize = size_of::<u32>();

/// Goes through the elements of a tensor, without copying any. Nothing comes after an error.
#[derive(Clone, Debug)]
pub struct Elements<'a> {
    rest: &'a [u8],
}

/// An element reaches beyond its tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an element reaches beyond the end")]
pub struct Torn;

impl<'a> Elements<'a> {
    /// Of all the bytes of a tensor.
    pub fn of(tensor: &'a [u8]) -> Self {
        Self { rest: tensor }
    }

    /// How many there are. Linear in the number of elements; allocates nothing.
    pub fn try_count(self) -> Result<usize, Torn> {
        self.into_iter().try_fold(0, |count, element| element.map(|_| count + 1))
    }
}

impl<'a> Iterator for Elements<'a> {
    type Item = Result<&'a [u8], Torn>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let element = self.rest.split_first_chunk().and_then(|(length, rest)| {
            rest.split_at_checked(usize::try_from(u32::from_le_bytes(*length)).ok()?)
        });
        self.rest = element.map_or(&[], |(_, rest)| rest);
        Some(element.map(|(element, _)| element).ok_or(Torn))
    }
}

/// Appends an element to a tensor.
///
/// # Panics
///
/// With an element of 4 GiB: no payload is nearly as long.
pub fn push_element(tensor: &mut Vec<u8>, element: &[u8]) {
    let length = u32::try_from(element.len()).expect("an element is shorter than its payload");
    tensor.extend_from_slice(&length.to_le_bytes());
    tensor.extend_from_slice(element);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_element_that_reaches_beyond_the_end_is_the_last() {
        for torn in [&[3, 0, 0, 0, b'a', b'b'][..], &[1, 0, 0], &[255; 4]] {
            assert_eq!(Elements::of(torn).collect::<Vec<_>>(), [Err(Torn)], "{torn:?}");
            assert_eq!(Elements::of(torn).try_count(), Err(Torn));
        }
        let one_and_torn = [1, 0, 0, 0, b'a', 9, 0, 0, 0];
        assert_eq!(Elements::of(&one_and_torn).collect::<Vec<_>>(), [Ok(&b"a"[..]), Err(Torn)]);
    }

    proptest! {
        #[test]
        fn what_is_pushed_is_found(elements in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 0..20)) {
            let mut tensor = Vec::new();
            elements.iter().for_each(|element| push_element(&mut tensor, element));
            let found: Result<Vec<_>, _> = Elements::of(&tensor).collect();
            prop_assert_eq!(found.unwrap(), elements.iter().map(Vec::as_slice).collect::<Vec<_>>());
            prop_assert_eq!(Elements::of(&tensor).try_count(), Ok(elements.len()));
        }
    }
}
