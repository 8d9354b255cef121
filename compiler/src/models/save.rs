//! Writing a model directory in Hugging Face's names and layout.

use super::error::ModelError;
use super::weight_map::{WeightEntry, WeightMap};
use serde_json::{Map, Value, json};
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// Writes `config.json` and `model.safetensors` into `dir`, which is created if need be.
///
/// `values` gives each parameter in the burn module's layout, row-major; it is called once for each, in an order of its own, and
/// only one parameter is held at a time. Each file is written under a temporary name and then renamed, so that a reader never sees
/// half of one.
pub fn save_pretrained(
    dir: &Path,
    config_json: &Value,
    map: &WeightMap,
    values: impl FnMut(&WeightEntry) -> Result<Vec<f32>, ModelError>,
) -> Result<(), ModelError> {
    fs::create_dir_all(dir).map_err(|source| ModelError::Io { file: dir.to_path_buf(), source })?;
    write_weights(&dir.join("model.safetensors"), map, values)?;
    replace(&dir.join("config.json"), |file| {
        serde_json::to_writer_pretty(&mut *file, config_json)?;
        file.write_all(b"\n")?;
        Ok(())
    })
}

/// Writes one safetensors file with every parameter of the map, under Hugging Face's names and in its layout.
///
/// `values` is called as in [`save_pretrained`].
pub fn write_weights(
    path: &Path,
    map: &WeightMap,
    mut values: impl FnMut(&WeightEntry) -> Result<Vec<f32>, ModelError>,
) -> Result<(), ModelError> {
    // Parameters that are rows of one tensor become one tensor again.
    let mut tensors: Vec<(&str, Vec<&WeightEntry>)> = Vec::new();
    for entry in &map.entries {
        match tensors.iter_mut().find(|(name, _)| *name == entry.hf_name && entry.rows.is_some()) {
            Some((_, parts)) => parts.push(entry),
            None => tensors.push((&entry.hf_name, vec![entry])),
        }
    }
    let mut header = Map::new();
    header.insert("__metadata__".into(), json!({ "format": "pt" }));
    let mut offset = 0;
    for (name, parts) in &mut tensors {
        parts.sort_by_key(|part| part.rows.as_ref().map(|rows| rows.start));
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
    let written = replace(path, |file| {
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(header.as_bytes())?;
        for entry in tensors.iter().flat_map(|(_, parts)| parts) {
            let expected = entry.shape.iter().product::<usize>();
            let result = values(entry).and_then(|values| match values.len() == expected {
                true => Ok(entry.to_file_layout(values)),
                false => Err(ModelError::WrongLength { path: entry.burn_path.clone(), expected, found: values.len() }),
            });
            match result {
                Ok(values) => {
                    for value in values {
                        file.write_all(&value.to_le_bytes())?;
                    }
                }
                Err(error) => {
                    failure = Some(error);
                    return Err(std::io::Error::other("a parameter could not be had"));
                }
            }
        }
        Ok(())
    });
    match failure {
        Some(error) => Err(error),
        None => written,
    }
}

/// Writes a file under a temporary name beside `path`, then renames it.
fn replace(path: &Path, write: impl FnOnce(&mut BufWriter<File>) -> std::io::Result<()>) -> Result<(), ModelError> {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary: PathBuf = path.with_file_name(name);
    let result = File::create(&temporary).and_then(|file| {
        let mut file = BufWriter::with_capacity(1 << 20, file);
        write(&mut file)?;
        file.flush()?;
        file.get_ref().sync_all()?;
        fs::rename(&temporary, path)
    });
    result.map_err(|source| {
        // Nothing more can be done if this fails, too.
        let _ = fs::remove_file(&temporary);
        ModelError::Io { file: path.to_path_buf(), source }
    })
}
