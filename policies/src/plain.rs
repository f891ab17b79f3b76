//! Reads a policy that is written plainly: mappings, lists, texts and decimal numbers. It says of such a text what serde-saphyr says
//! of it, in half the time, because it looks at each event of the same parser once and keeps no places and no anchors. It never says
//! what is wrong: of a text that is wrong, or written in any other way, it says nothing at all, and serde-saphyr reads that.
//!
//! It rests on the types of `schema.rs`: all of their mappings refuse a key that is there twice, those of fields also one that they
//! do not know, none contains itself, and whoever visits a list or mapping asks until it ends.

use std::borrow::Cow;
use std::fmt;

use granit_parser::{Event, Parser, ScalarStyle, StrInput};
use serde::de::{
    self, Deserialize, DeserializeSeed, Deserializer, EnumAccess, MapAccess, SeqAccess, VariantAccess,
    Visitor,
};
use serde::forward_to_deserialize_any;

/// Where serde-saphyr stops, at 250,000 scalars, lists and mappings, this has stopped before.
const EVENTS_MAX: usize = 200_000;
/// So many bytes never have the 64 MiB of scalars at which it stops as well.
const BYTES_MAX: usize = 1 << 20;
/// A whole number of no more characters is a `u64`.
const NUMBER_MAX: usize = 19;

/// What the text says. `None`: something else has to look at it.
pub(crate) fn read<'de, T: Deserialize<'de>>(text: &'de str) -> Option<T> {
    // A document's prefix, and keys that bring those of another mapping.
    if text.starts_with(['\u{feff}', '%']) || text.contains("<<") || text.len() > BYTES_MAX {
        return None;
    }
    let mut events = Events { parser: Parser::new_from_str(text), seen: 0 };
    events.expect(|event| matches!(event, Event::StreamStart))?;
    events.expect(|event| matches!(event, Event::DocumentStart(_, None)))?;
    let value = T::deserialize(events.node().ok()?).ok()?;
    events.expect(|event| matches!(event, Event::DocumentEnd))?;
    events.expect(|event| matches!(event, Event::StreamEnd))?;
    Some(value)
}

/// It is wrong, or written in another way.
#[derive(Debug)]
struct NotPlain;

impl fmt::Display for NotPlain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not written plainly")
    }
}

impl std::error::Error for NotPlain {}

impl de::Error for NotPlain {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self
    }
}

struct Events<'de> {
    parser: Parser<'de, StrInput<'de>>,
    seen: usize,
}

impl<'de> Events<'de> {
    fn next(&mut self) -> Result<Event<'de>, NotPlain> {
        self.seen += 1;
        match self.parser.next() {
            Some(Ok((event, _))) if self.seen <= EVENTS_MAX => Ok(event),
            _ => Err(NotPlain),
        }
    }

    fn expect(&mut self, is_it: impl Fn(&Event<'de>) -> bool) -> Option<()> {
        self.next().is_ok_and(|event| is_it(&event)).then_some(())
    }

    fn node(&mut self) -> Result<Node<'_, 'de>, NotPlain> {
        let first = self.next()?;
        Ok(Node { first, events: self })
    }
}

/// A scalar, or a list or mapping that has just begun. Where it is the end of one instead, every method refuses it.
struct Node<'a, 'de> {
    first: Event<'de>,
    events: &'a mut Events<'de>,
}

impl<'de> Node<'_, 'de> {
    /// Of a scalar that is something.
    fn text(self) -> Result<Cow<'de, str>, NotPlain> {
        match self.first {
            Event::Scalar(text, ScalarStyle::Plain, 0, None) if !is_nothing(&text) => Ok(text),
            Event::Scalar(text, ScalarStyle::SingleQuoted | ScalarStyle::DoubleQuoted, 0, None) => Ok(text),
            _ => Err(NotPlain),
        }
    }

    /// Of a scalar that is not quoted.
    fn plain(self) -> Result<Cow<'de, str>, NotPlain> {
        match self.first {
            Event::Scalar(text, ScalarStyle::Plain, 0, None) => Ok(text),
            _ => Err(NotPlain),
        }
    }
}

/// Whether a key may be a whole number in another spelling than the usual one: for serde-saphyr `10`, `0xa`, `+10` and `1_0`
/// are the same key. So may some names be, such as `2d`.
fn may_be_spelt_otherwise(key: &Event<'_>) -> bool {
    let Event::Scalar(text, ScalarStyle::Plain, ..) = key else { return false };
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let is_of_numbers = |byte: u8| byte.is_ascii_hexdigit() || b"xXoO_".contains(&byte);
    digits.starts_with(|first: char| first.is_ascii_digit())
        && digits.bytes().all(is_of_numbers)
        && !is_whole(text)
}

fn is_whole(text: &str) -> bool {
    is_digits(text) && (text == "0" || !text.starts_with('0'))
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Whether a scalar that is not quoted stands for nothing.
fn is_nothing(text: &str) -> bool {
    matches!(text, "" | "~" | "null" | "Null" | "NULL")
}

impl<'de> Deserializer<'de> for Node<'_, 'de> {
    type Error = NotPlain;

    /// Asked for where a number is to be, so it makes nothing else of anything.
    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, NotPlain> {
        let text = self.plain()?;
        let (whole, decimals) =
            text.split_once('.').map_or((&*text, None), |(whole, rest)| (whole, Some(rest)));
        if !is_whole(whole) || text.len() > NUMBER_MAX {
            return Err(NotPlain);
        }
        match decimals {
            None => visitor.visit_u64(text.parse().map_err(|_| NotPlain)?),
            Some(decimals) if is_digits(decimals) => visitor.visit_f64(text.parse().map_err(|_| NotPlain)?),
            Some(_) => Err(NotPlain),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, NotPlain> {
        match self.text()? {
            Cow::Borrowed(text) => visitor.visit_borrowed_str(text),
            Cow::Owned(text) => visitor.visit_string(text),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, NotPlain> {
        self.deserialize_str(visitor)
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, NotPlain> {
        self.deserialize_str(visitor)
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, NotPlain> {
        visitor.visit_bool(self.plain()?.parse().map_err(|_| NotPlain)?)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, NotPlain> {
        match &self.first {
            Event::Scalar(text, ScalarStyle::Plain, ..) if is_nothing(text) => Err(NotPlain),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, NotPlain> {
        let Event::SequenceStart(_, 0, None) = self.first else { return Err(NotPlain) };
        visitor.visit_seq(List(self.events))
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, NotPlain> {
        let Event::MappingStart(_, 0, None) = self.first else { return Err(NotPlain) };
        visitor.visit_map(Mapping(self.events))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, NotPlain> {
        self.deserialize_map(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, NotPlain> {
        visitor.visit_enum(self)
    }

    forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char bytes byte_buf unit unit_struct newtype_struct tuple tuple_struct ignored_any
    }
}

struct List<'a, 'de>(&'a mut Events<'de>);

impl<'de> SeqAccess<'de> for List<'_, 'de> {
    type Error = NotPlain;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, NotPlain> {
        match self.0.node()? {
            Node { first: Event::SequenceEnd, .. } => Ok(None),
            node => seed.deserialize(node).map(Some),
        }
    }
}

struct Mapping<'a, 'de>(&'a mut Events<'de>);

impl<'de> MapAccess<'de> for Mapping<'_, 'de> {
    type Error = NotPlain;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, NotPlain> {
        match self.0.node()? {
            Node { first: Event::MappingEnd, .. } => Ok(None),
            Node { first, .. } if may_be_spelt_otherwise(&first) => Err(NotPlain),
            node => seed.deserialize(node).map(Some),
        }
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, NotPlain> {
        seed.deserialize(self.0.node()?)
    }
}

/// A scalar is a variant's name; a mapping has one key, which is that, and its value.
impl<'a, 'de> EnumAccess<'de> for Node<'a, 'de> {
    type Error = NotPlain;
    type Variant = Content<'a, 'de>;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self::Variant), NotPlain> {
        match self.first {
            Event::MappingStart(_, 0, None) => {
                let name = seed.deserialize(self.events.node()?)?;
                Ok((name, Content::Value(self.events)))
            }
            first => Ok((seed.deserialize(Node { first, events: self.events })?, Content::Nothing)),
        }
    }
}

enum Content<'a, 'de> {
    Nothing,
    Value(&'a mut Events<'de>),
}

impl<'de> VariantAccess<'de> for Content<'_, 'de> {
    type Error = NotPlain;

    fn unit_variant(self) -> Result<(), NotPlain> {
        match self {
            Self::Nothing => Ok(()),
            Self::Value(_) => Err(NotPlain),
        }
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, NotPlain> {
        let Self::Value(events) = self else { return Err(NotPlain) };
        let value = seed.deserialize(events.node()?)?;
        match events.next()? {
            Event::MappingEnd => Ok(value),
            _ => Err(NotPlain),
        }
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, _: V) -> Result<V::Value, NotPlain> {
        Err(NotPlain)
    }

    fn struct_variant<V: Visitor<'de>>(self, _: &'static [&'static str], _: V) -> Result<V::Value, NotPlain> {
        Err(NotPlain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse::options;
    use crate::schema::File;
    use proptest::prelude::*;
    use proptest::test_runner::TestRunner;

    /// What both say of a text that is read here. `None`: it is not.
    #[track_caller]
    fn agreed(text: &str) -> Option<String> {
        let here = format!("{:?}", read::<File>(text)?);
        let there = serde_saphyr::from_str_with_options::<File>(text, options());
        assert_eq!(
            here,
            format!("{:?}", there.unwrap_or_else(|error| panic!("{error}: {text:?}"))),
            "{text:?}"
        );
        Some(here)
    }

    /// Of each kind of value that a policy has, in the ways in which they are usually written.
    const WHOLE: &str = "\
# A comment, and two ways of writing a mapping.
---
models:
  digits:
    labels: {stable: 1, \"next\": 2, 'it''s': 3}
    remote:
      4: {url: \"http://triton:8000/v2/models/digits/infer\", tensors: json}
    split: # of what no rule takes
      weights:
        stable: 99.5
        next: 0.5
      sticky: {header: x-user-id}
    canary: {baseline: stable, candidate: next, steps: [1, 2.50, 10], gates: {errors: {at_most: 1}}}
    shadow:
      version: 3
      compare:
        argmax:
        - scores
        - \"a\\tb\"
        outputs: {boxes: {absolute: 2}}
    deadline: 2s
    rules:
      - when: {header: x-beta, present: true}
        use: next
      - when:
          path:
            starts_with: /v2/
        use: 1
    breaker: {failures: 3, failing: 50, slow: {over: 1s, percent: 10}, window: 10s}
  other: {}
  1: {}
  20: {}
limits:
- name: per user
  key:
    cookie: user
  models: [digits, other]
  cost: rows
  rate: 100/s
overload:
  tenant: {query: tenant}
  criticality: [{when: {query: a, equals: 'b: c'}, is: sheddable}]
";

    #[test]
    fn what_is_usual_is_read_and_as_serde_saphyr_reads_it() {
        assert!(agreed(WHOLE).is_some_and(|told| told.contains("it's") && told.contains("a\\tb")));
        for text in [
            "models: {7b-chat: {}, 3d-unet: {}, 1.5: {}}",
            "{}",
            "models: {}",
            "{\"models\": {\"digits\": {\"labels\": {\"a\": 1}}}}",
            "models: {}\n...\n",
        ] {
            assert!(agreed(text).is_some(), "{text}");
        }
    }

    #[test]
    fn what_is_wrong_or_unusual_is_left_to_serde_saphyr() {
        let labels = |number: &str| format!("models: {{m: {{labels: {{a: {number}}}}}}}");
        for number in ["1", "0", "1.5", "9999999999999999999"] {
            assert!(agreed(&labels(number)).is_some(), "{number}");
        }
        for number in [
            "01",
            "+1",
            "-1",
            "1e3",
            "0x1f",
            "0o7",
            "1_000",
            ".5",
            "5.",
            "1.2.3",
            ".inf",
            "'1'",
            "~",
            "[1]",
            "{b: 1}",
            "!!int 1",
            "&a 1",
            "*a",
            "true",
            "99999999999999999999",
        ] {
            assert_eq!(agreed(&labels(number)), None, "{number}");
        }
        for text in [
            "",
            "# nothing",
            "---\n",
            "\u{feff}models: {}",
            "%YAML 1.2\n---\nmodels: {}",
            "models:",
            "models: ~",
            "models: []",
            "[]",
            "models: {}\n---\nmodels: {}",
            "models: {}\nmodels: {}",
            "models: {a: {}, a: {}}",
            "model: {}",
            "models: {a: {}",
            "models: {a: {<<: {}}}",
            "models: {~: {}}",
            "models: {a: {deadline: |\n  2s\n}}",
            "models: !!map {}",
            "models: &a {}",
            "limits: [{name: a, key: {header: a, cookie: b}, rate: 1/s}]",
            "limits: [{name: a, key: {}, rate: 1/s}]",
            "limits: [{name: a, key: header, rate: 1/s}]",
            "limits: [{name: a, cost: {rows: 1}, rate: 1/s}]",
            "models: {a: {shadow: {version: 1, compare: {outputs: {b: {}, b: {}}}}}}",
            "models: {1: {}, 0x1: {}}",
            "models: {1: {}, +1: {}}",
            "models: {10: {}, 1_0: {}}",
            "models: {0: {}, -0: {}}",
            "models: {7: {}, 0o7: {}}",
            "models: {1: {}, 01: {}}",
            "models: {1: {}, 0b1: {}}",
            "models: {1: {}, '1': {}}",
        ] {
            assert_eq!(agreed(text), None, "{text}");
        }
    }

    #[test]
    fn more_values_than_serde_saphyr_reads_are_left_to_it() {
        let models = |count| format!("limits: [{{name: a, rate: 1/s, models: [{}]}}]", "a,".repeat(count));
        assert!(agreed(&models(EVENTS_MAX - 100)).is_some());
        assert_eq!(agreed(&models(EVENTS_MAX)), None);
    }

    /// Not all of what is in a text is where it was: some characters are others, and some lines are elsewhere or there twice.
    fn damaged() -> impl Strategy<Value = String> {
        let alphabet: Vec<char> = "{}[]:,'\"#&*!|>%@`-+_?~ \n\t\\.0129abox<=\u{feff}é".chars().collect();
        let character = prop::sample::select(alphabet);
        let edit = (0..WHOLE.len(), 0..4_usize, prop::collection::vec(character, 0..3));
        let line = (0..WHOLE.lines().count(), 0..WHOLE.lines().count(), any::<bool>());
        (prop::collection::vec(edit, 0..4), prop::collection::vec(line, 0..3)).prop_map(|(edits, lines)| {
            let mut moved: Vec<_> = WHOLE.lines().collect();
            for (from, to, is_copied) in lines {
                let line = moved[from];
                if !is_copied {
                    moved.remove(from);
                }
                moved.insert(to, line);
            }
            let mut text: Vec<char> = (moved.join("\n") + "\n").chars().collect();
            for (at, taken, put) in edits {
                let at = at.min(text.len());
                text.splice(at..(at + taken).min(text.len()), put);
            }
            text.into_iter().collect()
        })
    }

    #[test]
    fn what_is_read_of_a_damaged_text_is_what_serde_saphyr_reads() {
        let (cases, read) = (20_000, std::cell::Cell::new(0));
        let mut runner = TestRunner::new(ProptestConfig::with_cases(cases));
        let compared = runner.run(&damaged(), |text| {
            read.set(read.get() + u32::from(agreed(&text).is_some()));
            Ok(())
        });
        compared.unwrap_or_else(|error| panic!("{error}"));
        assert!(read.get() > cases / 10, "{} of {cases}", read.get());
    }
}
