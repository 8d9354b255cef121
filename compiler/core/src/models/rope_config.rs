//! Rotary embeddings in `config.json`, in both spellings of transformers.

use super::error::ModelError;
use super::families::facts::Facts;
use super::keys::Keys;
use super::known::Role::Read;
use super::known::{self, Table};
use super::rope::{RopeConfig, RopeScaling};
use super::warning::ModelWarning;
use serde_json::{Value, json};

/// The keys of `rope_parameters` and `rope_scaling`, by their kind.
const ROPE: Table = &[("rope_type", Read), ("type", Read), ("rope_theta", Read), ("partial_rotary_factor", Read)];
const ROPE_FACTOR: Table = &[("factor", Read)];
const ROPE_LLAMA3: Table =
    &[("low_freq_factor", Read), ("high_freq_factor", Read), ("original_max_position_embeddings", Read)];
const ROPE_YARN: Table = &[
    ("attention_factor", Read),
    ("beta_fast", Read),
    ("beta_slow", Read),
    ("truncate", Read),
    ("mscale", Read),
    ("mscale_all_dim", Read),
    ("original_max_position_embeddings", Read),
];
const ROPE_LONG: Table = &[
    ("attention_factor", Read),
    ("short_factor", Read),
    ("long_factor", Read),
    ("original_max_position_embeddings", Read),
];

/// `rope_parameters` of models whose layers with a window have rotary embeddings of their own.
const BY_LAYER_TYPE: &[Table] = &[&[("full_attention", Read), ("sliding_attention", Read)]];

/// The tables of a kind of rotary embedding.
fn tables(scaling: &RopeScaling) -> &'static [Table] {
    match scaling {
        RopeScaling::Default => &[ROPE],
        RopeScaling::Linear { .. } | RopeScaling::Dynamic { .. } => &[ROPE, ROPE_FACTOR],
        RopeScaling::Llama3 { .. } => &[ROPE, ROPE_FACTOR, ROPE_LLAMA3],
        RopeScaling::Yarn { .. } => &[ROPE, ROPE_FACTOR, ROPE_YARN],
        RopeScaling::LongRope { .. } => &[ROPE, ROPE_FACTOR, ROPE_LONG],
    }
}

/// Settings of the configuration itself that apply where the rotary embeddings do not set them.
struct Around {
    theta: f64,
    partial: f64,
    head_dim: usize,
    positions: usize,
    original: Option<usize>,
    /// Whether the only kinds are `default` and `longrope`, which older files call `su` and `yarn`.
    longrope_only: bool,
}

/// Reads the rotary embeddings of all layers, or separately those of layers without and with a window.
pub(super) fn read(
    keys: &Keys,
    facts: &Facts,
    positions: usize,
    head_dim: usize,
    warnings: &mut Vec<ModelWarning>,
) -> Result<(RopeConfig, Option<RopeConfig>), ModelError> {
    let original = keys.opt_size("original_max_position_embeddings")?.or(facts.original_positions);
    let (theta, partial) = (keys.positive_or("rope_theta", facts.theta)?, keys.share_or("partial_rotary_factor", 1.0)?);
    let around = Around { theta, partial, head_dim, positions, original, longrope_only: facts.longrope_only };
    let older = spelled(keys, "rope_scaling")?;
    let Some(local) = facts.local_theta else {
        return Ok((read_both(keys, older, spelled(keys, "rope_parameters")?, &around, warnings)?, None));
    };
    let local = Around { theta: keys.positive_or("rope_local_base_freq", local)?, ..around };
    let Some((_, by_kind)) = spelled(keys, "rope_parameters")? else {
        return Ok((read_both(keys, older, None, &around, warnings)?, Some(local.plain(keys)?)));
    };
    let unknown = known::check(&by_kind, BY_LAYER_TYPE)?;
    warnings.extend(known::unknown(&by_kind, facts.model_type, unknown));
    let full = read_both(keys, older, spelled(&by_kind, "full_attention")?, &around, warnings)?;
    let local = read_both(keys, None, spelled(&by_kind, "sliding_attention")?, &local, warnings)?;
    Ok((full, Some(local)))
}

/// A nested object that is not empty.
fn spelled<'a>(keys: &Keys<'a>, key: &'static str) -> Result<Option<(&'static str, Keys<'a>)>, ModelError> {
    let object = keys.opt_object(key)?.filter(|object| object.names().next().is_some());
    Ok(object.map(|object| (key, object)))
}

/// Both spellings: `rope_parameters` (version 5) and `rope_theta` with `rope_scaling` (version 4).
///
/// If both are given, transformers takes `rope_scaling`, even if it sets less. A base that it does not set comes from
/// the configuration itself, never from the other spelling.
fn read_both(
    keys: &Keys,
    older: Option<(&'static str, Keys)>,
    newer: Option<(&'static str, Keys)>,
    around: &Around,
    warnings: &mut Vec<ModelWarning>,
) -> Result<RopeConfig, ModelError> {
    let Some((taken, nested)) = older.as_ref().or(newer.as_ref()) else {
        return around.plain(keys);
    };
    let rope = around.read(nested)?;
    let kind = nested.str_or("rope_type", &nested.str_or("type", "default")?)?;
    let unknown = known::check(nested, tables(&rope.scaling))?;
    warnings.extend(known::unknown(nested, &format!("rope_type {kind:?}"), unknown));
    if let (Some(_), Some((ignored, other))) = (&older, &newer)
        && !around.read(other).is_ok_and(|other| other == rope)
    {
        let (file, taken, ignored) = (keys.file().to_path_buf(), taken.to_string(), ignored.to_string());
        warnings.push(ModelWarning::Overruled { file, taken, ignored });
    }
    Ok(rope)
}

impl Around {
    /// The rotary embeddings of a configuration without a nested object.
    fn plain(&self, keys: &Keys) -> Result<RopeConfig, ModelError> {
        let rope = RopeConfig { theta: self.theta, scaling: RopeScaling::Default, partial: self.partial };
        self.check_pairs(keys, &rope)?;
        Ok(rope)
    }

    /// The number of rotated pairs.
    fn check_pairs(&self, keys: &Keys, rope: &RopeConfig) -> Result<usize, ModelError> {
        let rotated = rope.rotated(self.head_dim);
        if rotated > 0 && rotated.is_multiple_of(2) {
            return Ok(rotated / 2);
        }
        let (partial, head_dim) = (rope.partial, self.head_dim);
        Err(keys.inconsistent(format!(
            "partial_rotary_factor = {partial} rotates {rotated} of head_dim = {head_dim} elements, but rotary embeddings need pairs"
        )))
    }

    fn read(&self, nested: &Keys) -> Result<RopeConfig, ModelError> {
        let theta = nested.positive_or("rope_theta", self.theta)?;
        let partial = nested.share_or("partial_rotary_factor", self.partial)?;
        let key = match nested.has("rope_type") {
            true => "rope_type",
            false => "type",
        };
        let original = || match self.original {
            Some(original) => Ok(original),
            None => nested.size_or("original_max_position_embeddings", self.positions),
        };
        let rope = RopeConfig { theta, scaling: RopeScaling::Default, partial };
        let pairs = self.check_pairs(nested, &rope)?;
        let scaling = match (nested.str_or(key, "default")?.as_str(), self.longrope_only) {
            ("default", _) => RopeScaling::Default,
            ("longrope", _) | ("su" | "yarn", true) => longrope(nested, original()?, self.positions, pairs)?,
            ("linear", false) => RopeScaling::Linear { factor: nested.positive("factor")? },
            ("dynamic", false) => {
                RopeScaling::Dynamic { factor: nested.positive("factor")?, max_position_embeddings: self.positions }
            }
            ("llama3", false) => llama3(nested, original()?)?,
            ("yarn", false) => yarn(nested, original()?, self.positions)?,
            (_, true) => return Err(nested.wrong(key, "default or longrope")),
            (_, false) => return Err(nested.wrong(key, "one of default, linear, dynamic, yarn, longrope, llama3")),
        };
        Ok(RopeConfig { scaling, ..rope })
    }
}

fn llama3(nested: &Keys, original_max_position_embeddings: usize) -> Result<RopeScaling, ModelError> {
    let (low, high) = (nested.positive("low_freq_factor")?, nested.positive("high_freq_factor")?);
    if low >= high {
        let problem = format!("low_freq_factor = {low} is not below high_freq_factor = {high}");
        return Err(nested.inconsistent(problem));
    }
    Ok(RopeScaling::Llama3 {
        factor: nested.positive("factor")?,
        low_freq_factor: low,
        high_freq_factor: high,
        original_max_position_embeddings,
    })
}

fn yarn(nested: &Keys, original: usize, positions: usize) -> Result<RopeScaling, ModelError> {
    let factor = nested.positive_or("factor", positions as f64 / original as f64)?;
    let scale = |mscale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 };
    let (above, below) = (nested.opt_number("mscale")?, nested.opt_number("mscale_all_dim")?);
    let attention_factor = match (nested.opt_positive("attention_factor")?, above, below) {
        (Some(given), _, _) => given,
        (None, Some(above), Some(below)) if above != 0.0 && below != 0.0 => scale(above) / scale(below),
        (None, _, _) => scale(1.0),
    };
    Ok(RopeScaling::Yarn {
        factor,
        attention_factor,
        beta_fast: nested.positive_or("beta_fast", 32.0)?,
        beta_slow: nested.positive_or("beta_slow", 1.0)?,
        truncate: nested.bool_or("truncate", true)?,
        original_max_position_embeddings: original,
    })
}

fn longrope(nested: &Keys, original: usize, positions: usize, pairs: usize) -> Result<RopeScaling, ModelError> {
    let factors = |key: &str| -> Result<Vec<f64>, ModelError> {
        let factors = nested.positives(key)?;
        match factors.len() == pairs {
            true => Ok(factors),
            false => {
                Err(nested.inconsistent(format!("{key} has {} entries, but {pairs} pairs are rotated", factors.len())))
            }
        }
    };
    let factor = nested.positive_or("factor", positions as f64 / original as f64)?;
    let attention_factor = match nested.opt_positive("attention_factor")? {
        Some(given) => given,
        None if factor <= 1.0 => 1.0,
        None => (1.0 + factor.ln() / (original as f64).ln()).sqrt(),
    };
    Ok(RopeScaling::LongRope {
        short_factor: factors("short_factor")?,
        long_factor: factors("long_factor")?,
        attention_factor,
        original_max_position_embeddings: original,
    })
}

/// Writes both spellings: version 5 reads `rope_parameters`, version 4 the other keys.
pub(super) fn write(config: &RopeConfig, local: Option<&RopeConfig>, value: &mut Value) {
    let (full, scaling) = spelling(config);
    value["rope_theta"] = json!(config.theta);
    value["rope_scaling"] = scaling;
    if config.partial != 1.0 {
        value["partial_rotary_factor"] = json!(config.partial);
    }
    value["rope_parameters"] = match local {
        None => full,
        Some(local) => {
            value["rope_local_base_freq"] = json!(local.theta);
            json!({ "full_attention": full, "sliding_attention": spelling(local).0 })
        }
    };
}

/// The values of `rope_parameters` and `rope_scaling`.
fn spelling(config: &RopeConfig) -> (Value, Value) {
    let scaling = match &config.scaling {
        RopeScaling::Default => Value::Null,
        RopeScaling::Linear { factor } => json!({ "rope_type": "linear", "factor": factor }),
        RopeScaling::Dynamic { factor, .. } => json!({ "rope_type": "dynamic", "factor": factor }),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low_freq_factor,
            "high_freq_factor": high_freq_factor,
            "original_max_position_embeddings": original_max_position_embeddings,
        }),
        RopeScaling::Yarn {
            factor,
            attention_factor,
            beta_fast,
            beta_slow,
            truncate,
            original_max_position_embeddings,
        } => json!({
            "rope_type": "yarn",
            "factor": factor,
            "attention_factor": attention_factor,
            "beta_fast": beta_fast,
            "beta_slow": beta_slow,
            "truncate": truncate,
            "original_max_position_embeddings": original_max_position_embeddings,
        }),
        RopeScaling::LongRope { short_factor, long_factor, attention_factor, original_max_position_embeddings } => {
            json!({
                "rope_type": "longrope",
                "short_factor": short_factor,
                "long_factor": long_factor,
                "attention_factor": attention_factor,
                "original_max_position_embeddings": original_max_position_embeddings,
            })
        }
    };
    let mut rope = json!({ "rope_theta": config.theta });
    match (&mut rope, &scaling) {
        (Value::Object(rope), Value::Object(scaling)) => rope.extend(scaling.clone()),
        _ => rope["rope_type"] = json!("default"),
    }
    if config.partial != 1.0 {
        rope["partial_rotary_factor"] = json!(config.partial);
    }
    (rope, scaling)
}
