//! A parser of JSON that rejects repeated keys.
//!
//! Most JSON parsers silently keep one of two equal keys of an object, so a part of a file that a person wrote may have
//! no effect. This parser gives the same values as `serde_json`, but reports the second key as an error.

use crate::quote::{cut, quoted};
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use std::fmt;

/// Why a text is not JSON with unique keys.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum UniqueError {
    /// The text is not JSON.
    #[error("{0}")]
    Syntax(String),
    /// An object has the same key twice.
    #[error("the key {} occurs twice in {} (line {line}, column {column})", quoted(.key), cut(.object))]
    Repeated {
        /// The key.
        key: String,
        /// The object, as the keys and positions that lead to it, or `the outermost object`.
        object: String,
        /// The line of the second key, counted from 1.
        line: usize,
        /// The column of its last character, counted from 1.
        column: usize,
    },
}

/// Parses JSON.
///
/// # Errors
/// The text is not JSON, is nested more than 127 levels deep, or has a key twice in one object.
pub fn parse(text: &str) -> Result<Value, UniqueError> {
    let mut reader = serde_json::Deserializer::from_str(text);
    let mut state = State { path: Vec::new(), repeated: None };
    let read = Seed(&mut state).deserialize(&mut reader).and_then(|value| reader.end().map(|()| value));
    read.map_err(|error| match state.repeated.take() {
        Some((key, object)) => UniqueError::Repeated { key, object, line: error.line(), column: error.column() },
        None => UniqueError::Syntax(cut(&error.to_string()).to_string()),
    })
}

/// One step of the path to a value.
enum Step {
    Key(String),
    Position(usize),
}

struct State {
    path: Vec<Step>,
    /// The second of two equal keys, and the object that it is in.
    repeated: Option<(String, String)>,
}

impl State {
    fn object(&self) -> String {
        let mut object = String::new();
        for step in &self.path {
            match step {
                Step::Key(key) if object.is_empty() => object.push_str(key),
                Step::Key(key) => object.extend([".", key]),
                Step::Position(position) => object.push_str(&format!("[{position}]")),
            }
        }
        if object.is_empty() { "the outermost object".into() } else { format!("`{}`", cut(&object)) }
    }
}

struct Seed<'a>(&'a mut State);

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.into()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        loop {
            self.0.path.push(Step::Position(list.len()));
            let item = items.next_element_seed(Seed(self.0))?;
            self.0.path.pop();
            match item {
                Some(item) => list.push(item),
                None => return Ok(Value::Array(list)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            if map.contains_key(&key) {
                self.0.repeated = Some((key, self.0.object()));
                return Err(A::Error::custom("a key occurs twice"));
            }
            self.0.path.push(Step::Key(key.clone()));
            let value = entries.next_value_seed(Seed(self.0))?;
            self.0.path.pop();
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_those_of_serde_json() {
        for text in
            ["null", "-3", "18446744073709551615", "1.5e3", r#""é\n""#, r#"{"a": [1, {"b": true}, []], "": {}}"#]
        {
            assert_eq!(parse(text).unwrap(), serde_json::from_str::<Value>(text).unwrap(), "{text}");
        }
        for text in ["", "{", "[1,]", "1 2", "nul", "\"\u{1}\""] {
            let expected = serde_json::from_str::<Value>(text).unwrap_err().to_string();
            assert_eq!(parse(text), Err(UniqueError::Syntax(expected)), "{text}");
        }
        // Deep nesting is an error and does not overflow the stack.
        assert!(matches!(parse(&"[".repeat(100_000)), Err(UniqueError::Syntax(_))));
    }

    #[test]
    fn the_second_of_two_equal_keys_is_an_error() {
        for (text, expected) in [
            (r#"{"a": 1, "a": 1}"#, r#"the key "a" occurs twice in the outermost object (line 1, column 12)"#),
            (r#"{"a": [{}, {"b": {}, "\u0062": 2}]}"#, r#"the key "b" occurs twice in `a[1]` (line 1, column 29)"#),
            ("{\"a\": {\"b\": {\"\": 1,\n\"\": 2}}}", "the key \"\" occurs twice in `a.b` (line 2, column 2)"),
        ] {
            assert_eq!(parse(text).unwrap_err().to_string(), expected);
        }
        assert!(parse(r#"{"a": {"a": 1}, "b": {"a": 1}, "A": 1}"#).is_ok());
    }
}
