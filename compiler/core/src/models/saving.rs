//! Options for saving weights: their element type, and the maximum size of a file.

use burn::tensor::{bf16, f16};
use std::fmt;
use std::str::FromStr;

/// The element type of saved weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SavedType {
    /// 32 bits: exactly the trained values.
    #[default]
    F32,
    /// 16 bits with the exponent range of f32: rounded to nearest, ties to even.
    Bf16,
    /// 16-bit IEEE floats: rounded in the same way; values beyond 65504 become infinite.
    F16,
}

/// How a model directory is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Saving {
    /// The element type of the weights, which `config.json` then names.
    pub dtype: SavedType,
    /// Maximum bytes of tensors per file; larger models get several files with an index. A tensor that exceeds this has
    /// its own file.
    pub max_shard: ShardSize,
}

impl Default for Saving {
    fn default() -> Self {
        Self { dtype: SavedType::F32, max_shard: ShardSize(5_000_000_000) }
    }
}

/// A number of bytes in the notation of Hugging Face's libraries, with powers of 1000: `5GB`, `500MB`, `200KB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShardSize(pub u64);

impl SavedType {
    /// Bytes of an element.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
        }
    }

    /// The name in a safetensors file.
    pub(super) fn in_file(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::Bf16 => "BF16",
            Self::F16 => "F16",
        }
    }

    /// The name in `config.json`.
    pub(super) fn in_config(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::Bf16 => "bfloat16",
            Self::F16 => "float16",
        }
    }

    /// Appends the encoded elements to `to`.
    pub(super) fn encode(self, values: &[f32], to: &mut Vec<u8>) {
        match self {
            Self::F32 => values.iter().for_each(|x| to.extend(x.to_le_bytes())),
            Self::Bf16 => values.iter().for_each(|x| to.extend(bf16::from_f32(*x).to_le_bytes())),
            Self::F16 => values.iter().for_each(|x| to.extend(f16::from_f32(*x).to_le_bytes())),
        }
    }
}

impl FromStr for SavedType {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "f32" => Ok(Self::F32),
            "bf16" => Ok(Self::Bf16),
            "f16" => Ok(Self::F16),
            _ => Err("it is not one of f32, bf16, f16".into()),
        }
    }
}

impl fmt::Display for SavedType {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
        })
    }
}

impl fmt::Display for ShardSize {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        const UNITS: [(u64, &str); 4] =
            [(1_000_000_000_000, "TB"), (1_000_000_000, "GB"), (1_000_000, "MB"), (1_000, "KB")];
        match UNITS.into_iter().find(|(unit, _)| self.0 >= *unit && self.0.is_multiple_of(*unit)) {
            Some((unit, name)) => write!(f, "{}{name}", self.0 / unit),
            None => write!(f, "{}B", self.0),
        }
    }
}

impl FromStr for ShardSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(end);
        let unit = match unit {
            "" | "B" => 1,
            "KB" => 1_000,
            "MB" => 1_000_000,
            "GB" => 1_000_000_000,
            "TB" => 1_000_000_000_000,
            _ => return Err("it is not a number of bytes such as 5GB, 500MB or 200KB".into()),
        };
        match number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit)).filter(|bytes| *bytes > 0) {
            Some(bytes) => Ok(Self(bytes)),
            None => Err("it is not a number of bytes such as 5GB, 500MB or 200KB".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        let sizes = ["5GB", "500MB", "200KB", "12", "12B"].map(|text| text.parse::<ShardSize>().unwrap().0);
        assert_eq!(sizes, [5_000_000_000, 500_000_000, 200_000, 12, 12]);
        for wrong in ["", "GB", "0", "0MB", "-1GB", "5 GB", "5gb", "5GiB", "1.5GB", "99999999999TB"] {
            assert!(wrong.parse::<ShardSize>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn elements_are_rounded_to_the_nearest() {
        let bits = |dtype: SavedType, x: f32| {
            let mut bytes = Vec::new();
            dtype.encode(&[x], &mut bytes);
            u16::from_le_bytes([bytes[0], bytes[1]])
        };
        // 1 + 2^-8 is halfway between 1 and 1 + 2^-7, and 1 is even.
        assert_eq!(bits(SavedType::Bf16, 1.0 + 2f32.powi(-8)), 0x3f80);
        assert_eq!(bits(SavedType::Bf16, 1.0 + 3.0 * 2f32.powi(-8)), 0x3f82);
        assert_eq!(bits(SavedType::F16, 1.0 + 2f32.powi(-11)), 0x3c00);
        assert_eq!(bits(SavedType::F16, 70000.0), 0x7c00);
        assert!(bf16::from_bits(bits(SavedType::Bf16, f32::NAN)).is_nan());
    }
}
