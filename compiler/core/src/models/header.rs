//! The header of a safetensors file: its tensors and their offsets.
//!
//! The checks are those of the safetensors library: the tensors' data must fill the file from its beginning to its end,
//! without overlaps or gaps. A file that breaks this rule was not written by any library, and its contents cannot be
//! trusted.

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;
use std::collections::HashSet;
use std::ops::Range;

/// The element types that files use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileType {
    /// 32-bit float.
    F32,
    /// 16-bit IEEE 754 float.
    F16,
    /// The upper half of a 32-bit float.
    Bf16,
    /// 64-bit float.
    F64,
    /// 64-bit integer.
    I64,
    /// 32-bit integer.
    I32,
    /// 16-bit integer.
    I16,
    /// 8-bit integer.
    I8,
    /// Unsigned 64-bit integer.
    U64,
    /// Unsigned 32-bit integer.
    U32,
    /// Unsigned 16-bit integer.
    U16,
    /// Unsigned 8-bit integer.
    U8,
    /// A truth value in a byte.
    Bool,
    /// A type that cannot be converted.
    Other,
}

/// One tensor of a header.
#[derive(Debug, Clone)]
pub(super) struct Described {
    pub(super) name: String,
    pub(super) dtype: FileType,
    pub(super) dtype_name: String,
    pub(super) shape: Vec<usize>,
    /// Its byte range, relative to the end of the header.
    pub(super) bytes: Range<u64>,
}

/// Parses a header. Returns the tensors in the order of their data; the first begins at 0, and each further one where
/// the previous one ends.
pub(super) fn parse(header: &[u8]) -> Result<Vec<Described>, String> {
    let Entries(entries) =
        serde_json::from_slice(header).map_err(|source| format!("its header is not JSON: {source}"))?;
    let mut names = HashSet::new();
    if let Some((twice, _)) = entries.iter().find(|(name, _)| !names.insert(name.as_str())) {
        return Err(format!("its header names {twice:?} twice"));
    }
    let mut tensors = Vec::new();
    for (name, entry) in &entries {
        if name != "__metadata__" {
            tensors.push(describe(name, entry).map_err(|problem| format!("tensor {name:?}: {problem}"))?);
        }
    }
    tensors.sort_by(|a, b| (a.bytes.start, a.bytes.end, &a.name).cmp(&(b.bytes.start, b.bytes.end, &b.name)));
    let mut end = 0;
    let mut before: Option<&Described> = None;
    for tensor in &tensors {
        let Described { name, bytes: Range { start, .. }, .. } = tensor;
        match (start.cmp(&end), before) {
            (std::cmp::Ordering::Less, Some(other)) => {
                return Err(format!(
                    "tensor {name:?} at bytes {start} to {} overlaps tensor {:?} at bytes {} to {}",
                    tensor.bytes.end, other.name, other.bytes.start, other.bytes.end
                ));
            }
            (std::cmp::Ordering::Greater, _) => {
                return Err(format!("bytes {end} to {start}, before tensor {name:?}, belong to no tensor"));
            }
            _ => {}
        }
        end = tensor.bytes.end;
        before = Some(tensor);
    }
    Ok(tensors)
}

fn describe(name: &str, entry: &Value) -> Result<Described, String> {
    let dtype_name = entry.get("dtype").and_then(Value::as_str).ok_or("no \"dtype\"")?;
    let numbers = |key: &str| -> Result<Vec<u64>, String> {
        entry
            .get(key)
            .and_then(Value::as_array)
            .and_then(|values| values.iter().map(Value::as_u64).collect())
            .ok_or_else(|| format!("no list of numbers {key:?}"))
    };
    let shape = numbers("shape")?
        .into_iter()
        .map(|n| usize::try_from(n).map_err(|_| "a dimension is too large".to_string()))
        .collect::<Result<Vec<usize>, _>>()?;
    let [start, end] = numbers("data_offsets")?[..] else {
        return Err("\"data_offsets\" is not a pair".into());
    };
    let dtype = FileType::parse(dtype_name);
    let bytes = shape.iter().try_fold(dtype.width(), |product, size| product.checked_mul(*size));
    let length = end.checked_sub(start);
    if length.is_none() || (dtype != FileType::Other && bytes.map(|b| b as u64) != length) {
        return Err(format!("data_offsets [{start}, {end}] do not match {dtype_name} {shape:?}"));
    }
    Ok(Described { name: name.into(), dtype, dtype_name: dtype_name.into(), shape, bytes: start..end })
}

impl FileType {
    fn parse(name: &str) -> Self {
        match name {
            "F32" => Self::F32,
            "F16" => Self::F16,
            "BF16" => Self::Bf16,
            "F64" => Self::F64,
            "I64" => Self::I64,
            "I32" => Self::I32,
            "I16" => Self::I16,
            "I8" => Self::I8,
            "U64" => Self::U64,
            "U32" => Self::U32,
            "U16" => Self::U16,
            "U8" => Self::U8,
            "BOOL" => Self::Bool,
            _ => Self::Other,
        }
    }

    /// Bytes of an element.
    pub(super) fn width(self) -> usize {
        match self {
            Self::F64 | Self::I64 | Self::U64 => 8,
            Self::F32 | Self::I32 | Self::U32 => 4,
            Self::F16 | Self::Bf16 | Self::I16 | Self::U16 => 2,
            Self::I8 | Self::U8 | Self::Bool | Self::Other => 1,
        }
    }
}

/// The entries of a JSON object, including repeated names, of which a map would silently keep the last.
pub(super) struct Entries(pub(super) Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Entries;

            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(Collect)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(header: &str) -> String {
        parse(header.as_bytes()).unwrap_err()
    }

    #[test]
    fn data_is_without_overlaps_and_holes() {
        let two = |a: &str, b: &str| {
            format!(
                r#"{{"a":{{"dtype":"U8","shape":[4],"data_offsets":{a}}},"b":{{"dtype":"U8","shape":[4],"data_offsets":{b}}}}}"#
            )
        };
        assert_eq!(parse(two("[4,8]", "[0,4]").as_bytes()).unwrap()[0].name, "b");
        assert_eq!(
            refused(&two("[0,4]", "[0,4]")),
            "tensor \"b\" at bytes 0 to 4 overlaps tensor \"a\" at bytes 0 to 4"
        );
        assert_eq!(
            refused(&two("[3,7]", "[0,4]")),
            "tensor \"a\" at bytes 3 to 7 overlaps tensor \"b\" at bytes 0 to 4"
        );
        assert_eq!(refused(&two("[0,4]", "[5,9]")), "bytes 4 to 5, before tensor \"b\", belong to no tensor");
        assert_eq!(refused(&two("[1,5]", "[5,9]")), "bytes 0 to 1, before tensor \"a\", belong to no tensor");
        assert_eq!(refused(&two("[4,0]", "[0,4]")), "tensor \"a\": data_offsets [4, 0] do not match U8 [4]");
        assert_eq!(
            refused(&two("[0,4]", "[18446744073709551612,18446744073709551615]")),
            "tensor \"b\": data_offsets [18446744073709551612, 18446744073709551615] do not match U8 [4]"
        );
    }

    #[test]
    fn a_name_occurs_once() {
        let entry = r#"{"dtype":"F32","shape":[],"data_offsets":[0,4]}"#;
        assert_eq!(refused(&format!(r#"{{"x":{entry},"x":{entry}}}"#)), "its header names \"x\" twice");
        assert!(refused("[]").starts_with("its header is not JSON: invalid type: sequence, expected an object"));
        assert!(parse(b"{}").unwrap().is_empty());
    }

    #[test]
    fn sizes_do_not_overflow() {
        let huge = r#"{"x":{"dtype":"F32","shape":[4294967296,4294967296,4],"data_offsets":[0,0]}}"#;
        assert!(refused(huge).ends_with("do not match F32 [4294967296, 4294967296, 4]"));
        assert!(
            refused(r#"{"x":{"dtype":"F32","shape":[-1],"data_offsets":[0,0]}}"#)
                .ends_with("no list of numbers \"shape\"")
        );
    }
}
