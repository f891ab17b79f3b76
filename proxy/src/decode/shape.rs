//! The shape of a tensor as JSON has it: read by hand, so that what is wrong with one is told in the words of the protocol, and a
//! long one is refused before it is held.

use serde::Deserialize;
use serde::de::{Deserializer, Error, SeqAccess, Visitor};
use std::fmt;

/// libtorch knows no tensor of more dimensions.
pub(crate) const DIMENSIONS_MAX: usize = 64;

/// Sizes along the dimensions of a tensor.
pub(super) struct Shape(pub(super) Vec<u64>);

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(ShapeVisitor)
    }
}

struct ShapeVisitor;

impl<'de> Visitor<'de> for ShapeVisitor {
    type Value = Shape;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a shape, which is an array of whole numbers")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sizes: A) -> Result<Shape, A::Error> {
        let mut shape = Vec::new();
        while let Some(Size(size)) = sizes.next_element()? {
            if shape.len() == DIMENSIONS_MAX {
                return Err(A::Error::custom(format_args!(
                    "a shape has more than {DIMENSIONS_MAX} dimensions"
                )));
            }
            shape.push(size);
        }
        Ok(Shape(shape))
    }
}

struct Size(u64);

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_u64(SizeVisitor)
    }
}

struct SizeVisitor;

impl Visitor<'_> for SizeVisitor {
    type Value = Size;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a whole number from 0")
    }

    fn visit_u64<E: Error>(self, size: u64) -> Result<Size, E> {
        Ok(Size(size))
    }
}
