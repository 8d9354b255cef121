//! Pooling hidden states into one vector per sequence, according to the `modules.json` of sentence-transformers.

use super::error::ModelError;
use super::keys::{Keys, read_json};
use burn::tensor::{Int, Tensor};
use std::path::Path;

/// How the hidden states of a sequence become one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pooling {
    /// The pooling mode.
    pub mode: PoolingMode,
    /// Whether the vector is divided by its L2 norm.
    pub normalize: bool,
}

/// How the hidden states of a sequence are combined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolingMode {
    /// Their mean, without padding.
    Mean,
    /// The first one.
    Cls,
    /// The maximum of each element, without padding.
    Max,
}

impl PoolingMode {
    const ALL: [Self; 3] = [Self::Mean, Self::Cls, Self::Max];

    /// The key that selects the mode, and its name in newer files.
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Mean => ("pooling_mode_mean_tokens", "mean"),
            Self::Cls => ("pooling_mode_cls_token", "cls"),
            Self::Max => ("pooling_mode_max_tokens", "max"),
        }
    }
}

/// A module of `modules.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Module {
    Transformer,
    Pooling,
    Normalize,
}

impl Module {
    /// Parses the last part of a module's Python path.
    fn parse(path: &str) -> Option<Self> {
        Some(match path.rsplit('.').next()? {
            "Transformer" => Self::Transformer,
            "Pooling" => Self::Pooling,
            "Normalize" => Self::Normalize,
            _ => return None,
        })
    }
}

/// The file that lists the modules.
pub(super) const MODULES: &str = "modules.json";
/// The negative number that sentence-transformers assigns to padding before it takes the maximum.
const PADDED: f64 = -1e9;
/// Lower bounds of norms and of token counts.
const TINY: (f64, f64) = (1e-12, 1e-9);

impl Pooling {
    /// The pooling of a directory, if it has a `modules.json`.
    ///
    /// # Errors
    /// An unknown module, or an unsupported pooling.
    pub(super) fn read(dir: &Path) -> Result<Option<Self>, ModelError> {
        let file = dir.join(MODULES);
        if !file.is_file() {
            return Ok(None);
        }
        let json = read_json(&file)?;
        let wrong = |expected: &str, found: String| ModelError::WrongValue {
            file: file.clone(),
            key: "type".into(),
            expected: expected.into(),
            found,
        };
        let Some(listed) = json.as_array() else { return Err(wrong("in a list of modules", json.to_string())) };
        let (mut mode, mut normalize) = (None, false);
        for (at, module) in listed.iter().enumerate() {
            let keys = Keys::new(module, &file)?.of_family("sentence-transformers");
            let name = keys.str("type")?;
            let kind = Module::parse(&name).ok_or_else(|| wrong("Transformer, Pooling or Normalize", name.clone()))?;
            match (kind, at, mode) {
                (Module::Transformer, 0, _) => {}
                (Module::Pooling, 1, _) => {
                    mode = Some(read_mode(&dir.join(keys.str_or("path", "")?).join("config.json"))?);
                }
                (Module::Normalize, _, Some(_)) => normalize = true,
                _ => return Err(wrong("in the order Transformer, Pooling, Normalize", name)),
            }
        }
        match mode {
            Some(mode) => Ok(Some(Self { mode, normalize })),
            None => Err(wrong("a list with a Pooling", "none".into())),
        }
    }

    /// Pools hidden states `[batch, seq, width]` into one vector `[batch, 1, width]`; the mask is 1 for tokens and 0
    /// for padding.
    pub(super) fn apply(self, hidden: Tensor<3>, attention_mask: Option<Tensor<2, Int>>) -> Tensor<3> {
        let [batch, seq, width] = hidden.dims();
        let pooled = match (self.mode, attention_mask) {
            (PoolingMode::Cls, _) => hidden.narrow(1, 0, 1),
            (PoolingMode::Mean, None) => hidden.mean_dim(1),
            (PoolingMode::Mean, Some(mask)) => {
                let mask = mask.float().reshape([batch, seq, 1]);
                (hidden * mask.clone()).sum_dim(1) / mask.sum_dim(1).clamp_min(TINY.1)
            }
            (PoolingMode::Max, None) => hidden.max_dim(1),
            (PoolingMode::Max, Some(mask)) => {
                let padded = mask.equal_elem(0).reshape([batch, seq, 1]).expand([batch, seq, width]);
                hidden.mask_fill(padded, PADDED).max_dim(1)
            }
        };
        match self.normalize {
            false => pooled,
            true => {
                let length = pooled.clone().square().sum_dim(2).sqrt().clamp_min(TINY.0);
                pooled / length
            }
        }
    }
}

/// The single mode that a pooling's configuration selects.
fn read_mode(file: &Path) -> Result<PoolingMode, ModelError> {
    let json = read_json(file)?;
    let keys = Keys::new(&json, file)?.of_family("sentence-transformers");
    let known = PoolingMode::ALL.map(|mode| mode.names().1).join(", ");
    if keys.has("pooling_mode") {
        let name = keys.str("pooling_mode")?;
        let found = PoolingMode::ALL.into_iter().find(|mode| mode.names().1 == name);
        return found.ok_or_else(|| keys.wrong("pooling_mode", &format!("one of {known}")));
    }
    let mut asked = Vec::new();
    for key in keys.names().filter(|key| key.starts_with("pooling_mode_")) {
        if keys.bool_or(key, false)? {
            asked.push(key);
        }
    }
    let found = PoolingMode::ALL.into_iter().find(|mode| asked == [mode.names().0]);
    found.ok_or_else(|| {
        let asked = if asked.is_empty() { "nothing".into() } else { asked.join(" and ") };
        keys.inconsistent(format!("it selects {asked}, but exactly one of {known} is supported"))
    })
}
