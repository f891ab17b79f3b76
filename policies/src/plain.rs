//! Reads a file that uses no more of YAML than most policies do: mappings, lists, texts, numbers, `true` and `false`. serde-saphyr
//! reads any file; on top of the same scanner it takes twice as long, and a large policy is swapped while requests go on.
//!
//! What is not as plain as that (an anchor, a tag, `null`, a key that is there twice, a number that somebody may read
//! otherwise) is not decided here, and neither is any mistake: there is nothing then, and serde-saphyr says what it is. What is
//! read here is what it would read, which is tested.

use std::borrow::Cow;
use std::collections::BTreeSet;

use granit_parser::{Event, Parser, ScalarStyle, StrInput};
use serde::Deserialize;
use serde::de::value::{CowStrDeserializer, StrDeserializer};
use serde::de::{DeserializeSeed, Deserializer, EnumAccess, MapAccess, SeqAccess, VariantAccess, Visitor};
use serde::forward_to_deserialize_any;

/// A value, if the text says it plainly.
pub(crate) fn read<'de, T: Deserialize<'de>>(text: &'de str) -> Option<T> {
    let mut reader = Reader { events: Parser::new_from_str(text), ahead: None };
    reader.begin().ok()?;
    let value = T::deserialize(&mut reader).ok()?;
    reader.end().ok()?;
    Some(value)
}

/// Somebody else has to read it.
#[derive(Debug, thiserror::Error)]
#[error("not plain")]
struct NotPlain;

impl serde::de::Error for NotPlain {
    fn custom<T: std::fmt::Display>(_: T) -> Self {
        Self
    }
}

struct Reader<'de> {
    events: Parser<'de, StrInput<'de>>,
    /// What was looked at and not taken.
    ahead: Option<Node<'de>>,
}

enum Node<'de> {
    Scalar(Scalar<'de>),
    List,
    Mapping,
    /// Of a list or mapping.
    End,
}

struct Scalar<'de> {
    text: Cow<'de, str>,
    is_quoted: bool,
}

impl<'de> Scalar<'de> {
    fn text(self) -> Result<Cow<'de, str>, NotPlain> {
        let is_null = matches!(&*self.text, "" | "~" | "null" | "Null" | "NULL");
        if is_null && !self.is_quoted { Err(NotPlain) } else { Ok(self.text) }
    }

    /// Digits as everybody writes them, with or without a fraction.
    fn number<T: std::str::FromStr>(&self) -> Result<T, NotPlain> {
        let (whole, fraction) = self.text.split_once('.').unwrap_or((&self.text, "0"));
        let is_plain = is_whole_number(whole) && fraction.bytes().all(|digit| digit.is_ascii_digit());
        if self.is_quoted || !is_plain || fraction.is_empty() {
            return Err(NotPlain);
        }
        self.text.parse().map_err(|_| NotPlain)
    }
}

fn is_whole_number(text: &str) -> bool {
    !text.is_empty()
        && text.bytes().all(|digit| digit.is_ascii_digit())
        && (text == "0" || !text.starts_with('0'))
}

impl<'de> Reader<'de> {
    fn event(&mut self) -> Result<Event<'de>, NotPlain> {
        let (event, _) = self.events.next().ok_or(NotPlain)?.map_err(|_| NotPlain)?;
        Ok(event)
    }

    fn begin(&mut self) -> Result<(), NotPlain> {
        match (self.event()?, self.event()?) {
            (Event::StreamStart, Event::DocumentStart(_, None)) => Ok(()),
            _ => Err(NotPlain),
        }
    }

    fn end(&mut self) -> Result<(), NotPlain> {
        match (self.event()?, self.event()?) {
            (Event::DocumentEnd, Event::StreamEnd) => Ok(()),
            _ => Err(NotPlain),
        }
    }

    fn next(&mut self) -> Result<Node<'de>, NotPlain> {
        if let Some(node) = self.ahead.take() {
            return Ok(node);
        }
        match self.event()? {
            Event::Scalar(text, ScalarStyle::Plain, 0, None) => {
                Ok(Node::Scalar(Scalar { text, is_quoted: false }))
            }
            Event::Scalar(text, ScalarStyle::SingleQuoted | ScalarStyle::DoubleQuoted, 0, None) => {
                Ok(Node::Scalar(Scalar { text, is_quoted: true }))
            }
            Event::SequenceStart(_, 0, None) => Ok(Node::List),
            Event::MappingStart(_, 0, None) => Ok(Node::Mapping),
            Event::SequenceEnd | Event::MappingEnd => Ok(Node::End),
            _ => Err(NotPlain),
        }
    }

    fn peek(&mut self) -> Result<&Node<'de>, NotPlain> {
        let node = self.next()?;
        Ok(self.ahead.insert(node))
    }

    fn scalar(&mut self) -> Result<Scalar<'de>, NotPlain> {
        match self.next()? {
            Node::Scalar(scalar) => Ok(scalar),
            Node::List | Node::Mapping | Node::End => Err(NotPlain),
        }
    }

    /// Whether a list or mapping ends here; then that is taken.
    fn ends(&mut self) -> Result<bool, NotPlain> {
        let ends = matches!(self.peek()?, Node::End);
        if ends {
            self.ahead = None;
        }
        Ok(ends)
    }
}

impl<'de> Deserializer<'de> for &mut Reader<'de> {
    type Error = NotPlain;

    /// Whoever does not say what is expected leaves it to the text.
    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, NotPlain> {
        Err(NotPlain)
    }

    forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u8 u16 u128 f32 char bytes byte_buf unit unit_struct tuple tuple_struct identifier ignored_any
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, NotPlain> {
        let scalar = self.scalar()?;
        match &*scalar.text {
            "true" if !scalar.is_quoted => visitor.visit_bool(true),
            "false" if !scalar.is_quoted => visitor.visit_bool(false),
            _ => Err(NotPlain),
        }
    }

    fn deserialize_u32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, NotPlain> {
        visitor.visit_u32(self.scalar()?.number()?)
    }

    fn deserialize_u64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, NotPlain> {
        visitor.visit_u64(self.scalar()?.number()?)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, NotPlain> {
        visitor.visit_f64(self.scalar()?.number()?)
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, NotPlain> {
        match self.scalar()?.text()? {
            Cow::Borrowed(text) => visitor.visit_borrowed_str(text),
            Cow::Owned(text) => visitor.visit_string(text),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, NotPlain> {
        self.deserialize_str(visitor)
    }

    /// What might be `null` is not plain, so there is something.
    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, NotPlain> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, NotPlain> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, NotPlain> {
        match self.next()? {
            Node::List => visitor.visit_seq(Items(self)),
            Node::Scalar(_) | Node::Mapping | Node::End => Err(NotPlain),
        }
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, NotPlain> {
        match self.next()? {
            Node::Mapping => visitor.visit_map(Entries { reader: self, keys: Some(BTreeSet::new()) }),
            Node::Scalar(_) | Node::List | Node::End => Err(NotPlain),
        }
    }

    /// It sees to it by itself that no field is there twice.
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, NotPlain> {
        match self.next()? {
            Node::Mapping => visitor.visit_map(Entries { reader: self, keys: None }),
            Node::Scalar(_) | Node::List | Node::End => Err(NotPlain),
        }
    }

    /// `name`, or `{name: value}`.
    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, NotPlain> {
        match self.next()? {
            Node::Scalar(name) => {
                let name = name.text()?;
                visitor.visit_enum(StrDeserializer::<NotPlain>::new(&name))
            }
            Node::Mapping => {
                let value = visitor.visit_enum(Variant(self))?;
                if self.ends()? { Ok(value) } else { Err(NotPlain) }
            }
            Node::List | Node::End => Err(NotPlain),
        }
    }
}

struct Items<'a, 'de>(&'a mut Reader<'de>);

impl<'de> SeqAccess<'de> for Items<'_, 'de> {
    type Error = NotPlain;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, NotPlain> {
        if self.0.ends()? { Ok(None) } else { seed.deserialize(&mut *self.0).map(Some) }
    }
}

struct Entries<'a, 'de> {
    reader: &'a mut Reader<'de>,
    /// Those so far, where anything may be a key.
    keys: Option<BTreeSet<Cow<'de, str>>>,
}

impl<'de> MapAccess<'de> for Entries<'_, 'de> {
    type Error = NotPlain;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, NotPlain> {
        if self.reader.ends()? {
            return Ok(None);
        }
        let key = key(self.reader.scalar()?)?;
        if let Some(keys) = &mut self.keys
            && !keys.insert(key.clone())
        {
            return Err(NotPlain);
        }
        seed.deserialize(CowStrDeserializer::<NotPlain>::new(key)).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, NotPlain> {
        seed.deserialize(&mut *self.reader)
    }
}

/// A merge is not plain, and a number that can be written in two ways may be there twice.
fn key(scalar: Scalar<'_>) -> Result<Cow<'_, str>, NotPlain> {
    let text = scalar.text()?;
    let may_be_number = text.starts_with(|first: char| first.is_ascii_digit() || "+-.".contains(first));
    if text == "<<" || may_be_number && !is_whole_number(&text) { Err(NotPlain) } else { Ok(text) }
}

struct Variant<'a, 'de>(&'a mut Reader<'de>);

impl<'de> EnumAccess<'de> for Variant<'_, 'de> {
    type Error = NotPlain;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), NotPlain> {
        let name = key(self.0.scalar()?)?;
        Ok((seed.deserialize(CowStrDeserializer::<NotPlain>::new(name))?, self))
    }
}

impl<'de> VariantAccess<'de> for Variant<'_, 'de> {
    type Error = NotPlain;

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, NotPlain> {
        seed.deserialize(self.0)
    }

    fn unit_variant(self) -> Result<(), NotPlain> {
        Err(NotPlain)
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, _: V) -> Result<V::Value, NotPlain> {
        Err(NotPlain)
    }

    fn struct_variant<V: Visitor<'de>>(self, _: &'static [&'static str], _: V) -> Result<V::Value, NotPlain> {
        Err(NotPlain)
    }
}

#[cfg(test)]
mod tests;
