//! A JSON object where one is asked for. What serde derives for a struct takes an array as well, by the order in which its fields
//! are declared; decides nothing else.

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, MapAccess, Visitor};
use std::fmt;
use std::marker::PhantomData;

/// `T`, of an object only.
#[derive(Debug, Default)]
pub(crate) struct Object<T>(pub(crate) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Fields(PhantomData))
    }
}

struct Fields<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for Fields<T> {
    type Value = Object<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<Object<T>, A::Error> {
        T::deserialize(MapAccessDeserializer::new(fields)).map(Object)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_array_is_no_object() {
        #[derive(Debug, Deserialize)]
        struct Named {
            name: String,
        }
        let read = serde_json::from_str::<Object<Named>>;
        assert_eq!(read(r#"{"name": "a"}"#).unwrap().0.name, "a");
        let refused = read(r#"["a"]"#).unwrap_err().to_string();
        assert!(refused.starts_with("invalid type: sequence, expected an object"), "{refused}");
        assert!(read(r#"{"nam": "a"}"#).unwrap_err().to_string().starts_with("missing field `name`"));
    }
}
