//! Writing a model directory in Hugging Face's names and layout.

use super::error::ModelError;
use super::python_json;
use super::shard::STRIP;
use super::weight_map::{WeightEntry, WeightMap};
use serde_json::{Map, Value, json};
use std::io::{BufWriter, IntoInnerError, Write};
use std::ops::Range;
use std::path::Path;
use tpc_runtime::output::{self, Output, Writing};

/// Writes `config.json` and `model.safetensors` into `dir`, which is created if need be.
///
/// `values` gives each parameter in the burn module's layout, row-major; it is called once for each, in an order of its own, and
/// only one parameter is held at a time. A reader never sees half of a file.
///
/// # Errors
/// A directory that takes no files; what was there is then as it was.
pub fn save_pretrained(
    dir: &Path,
    config_json: &Value,
    map: &WeightMap,
    values: impl FnMut(&WeightEntry) -> Result<Vec<f32>, ModelError>,
) -> Result<(), ModelError> {
    save_strips(dir, config_json, map, whole(values))
}

/// [`save_pretrained`] of parameters that are only had in strips: see [`write_strips`].
pub fn save_strips<E: From<ModelError>>(
    dir: &Path,
    config_json: &Value,
    map: &WeightMap,
    strip: impl FnMut(&WeightEntry, Range<usize>, &mut [f32]) -> Result<(), E>,
) -> Result<(), E> {
    output::make_dir(dir).map_err(|source| ModelError::Io { file: dir.to_path_buf(), source })?;
    write_strips(at(&dir.join("model.safetensors"))?, map, strip)?;
    let text = python_json::print(&of_f32(config_json)) + "\n";
    Ok(replace(at(&dir.join("config.json"))?, |file| file.write_all(text.as_bytes()))?)
}

/// The configuration of weights that are saved as f32: libraries convert weights to the type that it says.
fn of_f32(config_json: &Value) -> Value {
    let mut config = config_json.clone();
    for key in ["dtype", "torch_dtype"] {
        if let Some(dtype) = config.get_mut(key).filter(|dtype| !dtype.is_null()) {
            *dtype = json!("float32");
        }
    }
    config
}

/// Writes one safetensors file with every parameter of the map, under Hugging Face's names and in its layout.
///
/// `values` is called as in [`save_pretrained`].
pub fn write_weights(
    output: Output,
    map: &WeightMap,
    values: impl FnMut(&WeightEntry) -> Result<Vec<f32>, ModelError>,
) -> Result<(), ModelError> {
    write_strips(output, map, whole(values))
}

/// Strips of parameters that are had as a whole.
fn whole(
    mut values: impl FnMut(&WeightEntry) -> Result<Vec<f32>, ModelError>,
) -> impl FnMut(&WeightEntry, Range<usize>, &mut [f32]) -> Result<(), ModelError> {
    let mut held = Vec::new();
    move |entry, strip, into| {
        if strip.start == 0 {
            let (found, expected) = (values(entry)?, entry.shape.iter().product());
            if found.len() != expected {
                let found = found.len();
                return Err(ModelError::WrongLength { path: entry.burn_path.clone(), expected, found });
            }
            held = entry.to_file_layout(found);
        }
        into.copy_from_slice(&held[strip]);
        Ok(())
    }
}

/// [`write_weights`] of parameters that are only had in strips.
///
/// `strip` fills a range of a parameter's elements in the *file's* layout, row-major: whole rows, [`STRIP`] bytes at most unless one row
/// is longer. It is called in order, from a range that begins with 0 (an empty one for a parameter without elements) to the last.
pub fn write_strips<E: From<ModelError>>(
    output: Output,
    map: &WeightMap,
    mut strip: impl FnMut(&WeightEntry, Range<usize>, &mut [f32]) -> Result<(), E>,
) -> Result<(), E> {
    let tensors = tensors(map);
    let mut header = Map::new();
    header.insert("__metadata__".into(), json!({ "format": "pt" }));
    let mut offset = 0;
    for (name, parts) in &tensors {
        let mut shape = parts[0].file_shape();
        if let [_, _, ..] = parts[..] {
            shape[0] = parts.iter().map(|part| part.file_shape()[0]).sum();
        }
        let end = offset + 4 * shape.iter().product::<usize>();
        header.insert((*name).into(), json!({ "dtype": "F32", "shape": shape, "data_offsets": [offset, end] }));
        offset = end;
    }
    let mut header = Value::Object(header).to_string();
    // Data starts at a multiple of 8.
    header.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(8) - header.len()));

    let mut failure = None;
    let written = replace(output, |file| {
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(header.as_bytes())?;
        let read = read_strips(map, |entry, range, values| {
            if let Err(error) = strip(entry, range, values) {
                failure = Some(error);
                return Err(std::io::Error::other("a parameter could not be had"));
            }
            values.iter().try_for_each(|value| file.write_all(&value.to_le_bytes()))
        });
        read?;
        Ok(())
    });
    match failure {
        Some(error) => Err(error),
        None => Ok(written?),
    }
}

/// Parameters that are rows of one tensor become one tensor again.
fn tensors(map: &WeightMap) -> Vec<(&str, Vec<&WeightEntry>)> {
    let mut tensors: Vec<(&str, Vec<&WeightEntry>)> = Vec::new();
    for entry in &map.entries {
        match tensors.iter_mut().find(|(name, _)| *name == entry.hf_name && entry.rows.is_some()) {
            Some((_, parts)) => parts.push(entry),
            None => tensors.push((&entry.hf_name, vec![entry])),
        }
    }
    for (_, parts) in &mut tensors {
        parts.sort_by_key(|part| part.rows.as_ref().map(|rows| rows.start));
    }
    tensors
}

/// The strips that [`write_strips`] writes, in its order, for whoever has to be there when another process writes them.
///
/// # Errors
/// What `strip` says.
pub fn read_strips<E>(
    map: &WeightMap,
    mut strip: impl FnMut(&WeightEntry, Range<usize>, &mut [f32]) -> Result<(), E>,
) -> Result<(), E> {
    let mut values = Vec::new();
    for entry in tensors(map).iter().flat_map(|(_, parts)| parts) {
        let total: usize = entry.shape.iter().product();
        let row = entry.file_shape().iter().skip(1).product::<usize>().max(1);
        let rows = (STRIP / 4 / row).max(1) * row;
        for first in (0..total.max(1)).step_by(rows) {
            let range = first..total.min(first + rows);
            values.clear();
            values.resize(range.len(), 0.0);
            strip(entry, range, &mut values)?;
        }
    }
    Ok(())
}

/// Writes a file as [`Output`] does.
fn replace(
    output: Output,
    write: impl FnOnce(&mut BufWriter<Writing>) -> std::io::Result<()>,
) -> Result<(), ModelError> {
    let file = output.path().to_path_buf();
    let written = || {
        let mut buffered = BufWriter::with_capacity(1 << 20, output.begin()?);
        write(&mut buffered)?;
        buffered.into_inner().map_err(IntoInnerError::into_error)?.commit()
    };
    written().map(drop).map_err(|source| ModelError::Io { file, source })
}

/// Where a path leads.
fn at(path: &Path) -> Result<Output, ModelError> {
    Output::at(path).map_err(|source| ModelError::Io { file: path.to_path_buf(), source })
}
