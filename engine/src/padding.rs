//! Makes tensors larger and smaller along their dimensions. Decides nothing: how large a tensor is to be is declared in
//! `model.yaml`, and whether that changes the answers is found out by the trial.
//!
//! ```text
//!   pad   [2, 3] → [2, 4]    a b c ┊ d e f      →   a b c · ┊ d e f ·
//!   crop  [2, 4] → [2, 3]    a b c · ┊ d e f ·  →   a b c ┊ d e f
//! ```

/// Appends `bytes`, a tensor of this shape, as one of the larger shape `to`; what is new is `element`.
pub(crate) fn pad(bytes: &[u8], shape: &[u64], to: &[u64], element: &[u8], into: &mut Vec<u8>) {
    if shape == to || bytes.is_empty() {
        return into.extend_from_slice(bytes);
    }
    let each = bytes.len() / shape[0] as usize;
    for part in bytes.chunks_exact(each) {
        pad(part, &shape[1..], &to[1..], element, into);
    }
    let new = (to[0] - shape[0]) * to[1..].iter().product::<u64>();
    into.extend(element.repeat(new as usize));
}

/// Appends the first elements of each dimension of `bytes`, a tensor of this shape, as one of the smaller shape `to`.
pub(crate) fn crop(bytes: &[u8], shape: &[u64], to: &[u64], into: &mut Vec<u8>) {
    if shape == to || bytes.is_empty() {
        return into.extend_from_slice(bytes);
    }
    let each = bytes.len() / shape[0] as usize;
    for part in bytes.chunks_exact(each).take(to[0] as usize) {
        crop(part, &shape[1..], &to[1..], into);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rows_are_padded_each_for_itself() {
        let mut padded = Vec::new();
        pad(&[1, 2, 3, 4, 5, 6], &[2, 3], &[2, 4], &[9], &mut padded);
        assert_eq!(padded, [1, 2, 3, 9, 4, 5, 6, 9]);
        let mut cropped = Vec::new();
        crop(&padded, &[2, 4], &[2, 3], &mut cropped);
        assert_eq!(cropped, [1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn nothing_stays_nothing() {
        let mut cropped = Vec::new();
        crop(&[], &[1, 0, 16], &[1, 0, 8], &mut cropped);
        assert!(cropped.is_empty());
    }

    proptest! {
        #[test]
        fn what_was_padded_is_cropped_to_what_it_was(
            sizes in prop::collection::vec((1u64..5, 0u64..4), 1..4),
            width in 1usize..4,
        ) {
            let shape: Vec<u64> = sizes.iter().map(|size| size.0).collect();
            let to: Vec<u64> = sizes.iter().map(|size| size.0 + size.1).collect();
            let bytes: Vec<u8> = (0..shape.iter().product::<u64>() as usize * width).map(|at| at as u8).collect();
            let (mut padded, mut cropped) = (Vec::new(), Vec::new());
            pad(&bytes, &shape, &to, &vec![255; width], &mut padded);
            prop_assert_eq!(padded.len(), to.iter().product::<u64>() as usize * width);
            crop(&padded, &to, &shape, &mut cropped);
            prop_assert_eq!(cropped, bytes);
        }
    }
}
