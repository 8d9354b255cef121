//! Writing a model directory with Hugging Face's names and layout.

use super::error::ModelError;
use super::python_json;
use super::saving::{SavedType, Saving};
use super::shard::STRIP;
use super::weight_map::{WeightEntry, WeightMap};
use serde_json::{Map, Value, json};
use std::io::{BufWriter, IntoInnerError, Write};
use std::ops::Range;
use std::path::Path;
use tpc_runtime::output::{self, Output, Writing};

/// Writes `config.json` and `model.safetensors` into `dir`, which is created if needed; beyond a size, several files
/// and their index.
///
/// `values` returns each parameter in the burn module's layout, row-major; it is called once per parameter, in any
/// order, and only one parameter is held at a time. A reader never sees a partial file.
///
/// # Errors
/// A directory that rejects files; its previous contents are then unchanged.
pub fn save_pretrained(
    dir: &Path,
    config_json: &Value,
    map: &WeightMap,
    values: impl FnMut(&WeightEntry) -> Result<Vec<f32>, ModelError>,
) -> Result<(), ModelError> {
    save_strips(dir, config_json, map, Saving::default(), whole(values))
}

/// [`save_pretrained`] for parameters that are only available in strips, with an element type and a maximum file size:
/// see [`write_strips`].
///
/// # Errors
/// The errors of [`save_pretrained`] and of `strip`.
pub fn save_strips<E: From<ModelError>>(
    dir: &Path,
    config_json: &Value,
    map: &WeightMap,
    saving: Saving,
    mut strip: impl FnMut(&WeightEntry, Range<usize>, &mut [f32]) -> Result<(), E>,
) -> Result<(), E> {
    output::make_dir(dir).map_err(|source| ModelError::Io { file: dir.to_path_buf(), source })?;
    let files = files(&tensors(map), saving);
    for (name, tensors) in &files {
        write_tensors(at(&dir.join(name))?, tensors, saving.dtype, &mut strip)?;
    }
    let index = dir.join(INDEX);
    if let [_, _, ..] = &files[..] {
        let text = python_json::print(&index_of(&files, saving.dtype)) + "\n";
        replace(at(&index)?, |file| file.write_all(text.as_bytes()))?;
    }
    let text = python_json::print(&of_type(config_json, saving.dtype)) + "\n";
    replace(at(&dir.join("config.json"))?, |file| file.write_all(text.as_bytes()))?;
    Ok(remove_others(dir, &files)?)
}

/// The file of a small model, and the index of the files of a large one.
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// A file's name and its tensors.
type FileOf<'a> = (String, Vec<Tensor<'a>>);

/// Assigns tensors to files in order, beginning a new file where the limit would be exceeded.
fn files<'a>(tensors: &[Tensor<'a>], saving: Saving) -> Vec<FileOf<'a>> {
    let mut shards: Vec<(u64, Vec<Tensor>)> = Vec::new();
    for tensor in tensors {
        let bytes = (tensor.elements() * saving.dtype.bytes()) as u64;
        match shards.last_mut() {
            Some((held, shard)) if *held + bytes <= saving.max_shard.0 => {
                *held += bytes;
                shard.push(tensor.clone());
            }
            _ => shards.push((bytes, vec![tensor.clone()])),
        }
    }
    let count = shards.len();
    let name = |at: usize| match count {
        0 | 1 => SINGLE.to_string(),
        _ => format!("model-{:05}-of-{count:05}.safetensors", at + 1),
    };
    match count {
        0 => vec![(SINGLE.into(), Vec::new())],
        _ => shards.into_iter().enumerate().map(|(at, (_, shard))| (name(at), shard)).collect(),
    }
}

fn index_of(files: &[FileOf], dtype: SavedType) -> Value {
    let all = || files.iter().flat_map(|(file, tensors)| tensors.iter().map(move |tensor| (file, tensor)));
    let elements: usize = all().map(|(_, tensor)| tensor.elements()).sum();
    let map: Map<String, Value> = all().map(|(file, tensor)| (tensor.name.to_string(), json!(file))).collect();
    json!({ "metadata": { "total_parameters": elements, "total_size": elements * dtype.bytes() }, "weight_map": map })
}

/// Removes weight files of an earlier model: readers would prefer a single file to an index, and would read copies as
/// weights.
fn remove_others(dir: &Path, files: &[FileOf]) -> Result<(), ModelError> {
    let io = |file: &Path| {
        let file = file.to_path_buf();
        move |source| ModelError::Io { file, source }
    };
    let sharded = files.len() > 1;
    for entry in std::fs::read_dir(dir).map_err(io(dir))? {
        let entry = entry.map_err(io(dir))?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        let stale = match name {
            SINGLE => sharded,
            INDEX => !sharded,
            name => is_shard(name) && !files.iter().any(|(file, _)| file == name),
        };
        if stale {
            std::fs::remove_file(entry.path()).map_err(io(&entry.path()))?;
        }
    }
    Ok(())
}

/// Whether a name has the form `model-00001-of-00002.safetensors`.
fn is_shard(name: &str) -> bool {
    let numbers = name.strip_prefix("model-").and_then(|rest| rest.strip_suffix(".safetensors"));
    let is_number = |text: &str| text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
    numbers.and_then(|numbers| numbers.split_once("-of-")).is_some_and(|(at, of)| is_number(at) && is_number(of))
}

/// Sets the type of the weights in the configuration, under its existing key: libraries convert weights to this type.
fn of_type(config_json: &Value, dtype: SavedType) -> Value {
    let mut config = config_json.clone();
    let says = |key: &&str| config.get(*key).is_some_and(|value| !value.is_null());
    let mut keys: Vec<&str> = ["dtype", "torch_dtype"].into_iter().filter(says).collect();
    if keys.is_empty() {
        keys.push("dtype");
    }
    for key in keys {
        config[key] = json!(dtype.in_config());
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

/// Cuts parameters that are available as a whole into strips.
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

/// [`write_weights`] for parameters that are only available in strips.
///
/// `strip` fills a range of a parameter's elements in the *file's* layout, row-major: whole rows, with at most
/// [`STRIP`] bytes unless one row is longer. It is called in order, from a range that begins with 0 (an empty one for a
/// parameter without elements) to the last.
pub fn write_strips<E: From<ModelError>>(
    output: Output,
    map: &WeightMap,
    mut strip: impl FnMut(&WeightEntry, Range<usize>, &mut [f32]) -> Result<(), E>,
) -> Result<(), E> {
    write_tensors(output, &tensors(map), SavedType::F32, &mut strip)
}

/// Writes one file with these tensors.
fn write_tensors<E: From<ModelError>>(
    output: Output,
    tensors: &[Tensor],
    dtype: SavedType,
    strip: &mut impl FnMut(&WeightEntry, Range<usize>, &mut [f32]) -> Result<(), E>,
) -> Result<(), E> {
    let mut header = Map::new();
    header.insert("__metadata__".into(), json!({ "format": "pt" }));
    let mut offset = 0;
    for tensor in tensors {
        let end = offset + dtype.bytes() * tensor.elements();
        let described = json!({ "dtype": dtype.in_file(), "shape": tensor.shape(), "data_offsets": [offset, end] });
        header.insert(tensor.name.into(), described);
        offset = end;
    }
    let mut header = Value::Object(header).to_string();
    // Data starts at a multiple of 8.
    header.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(8) - header.len()));

    let mut failure = None;
    let written = replace(output, |file| {
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(header.as_bytes())?;
        let mut bytes = Vec::new();
        read_tensors(tensors, |entry, range, values| {
            if let Err(error) = strip(entry, range, values) {
                failure = Some(error);
                return Err(std::io::Error::other("a parameter could not be read"));
            }
            bytes.clear();
            dtype.encode(values, &mut bytes);
            file.write_all(&bytes)
        })
    });
    match failure {
        Some(error) => Err(error),
        None => Ok(written?),
    }
}

/// A tensor of a file, and the parameters that are its rows: usually only one.
#[derive(Clone)]
struct Tensor<'a> {
    name: &'a str,
    parts: Vec<&'a WeightEntry>,
}

impl Tensor<'_> {
    fn shape(&self) -> Vec<usize> {
        let mut shapes = self.parts.iter().map(|part| part.file_shape());
        let mut shape = shapes.next().unwrap_or_default();
        for more in shapes {
            shape[0] += more[0];
        }
        shape
    }

    fn elements(&self) -> usize {
        self.shape().iter().product()
    }
}

/// Joins parameters that are rows of one tensor.
fn tensors(map: &WeightMap) -> Vec<Tensor<'_>> {
    let mut tensors: Vec<Tensor> = Vec::new();
    for entry in &map.entries {
        match tensors.iter_mut().find(|tensor| tensor.name == entry.hf_name && entry.rows.is_some()) {
            Some(tensor) => tensor.parts.push(entry),
            None => tensors.push(Tensor { name: &entry.hf_name, parts: vec![entry] }),
        }
    }
    for tensor in &mut tensors {
        tensor.parts.sort_by_key(|part| part.rows.as_ref().map(|rows| rows.start));
    }
    tensors
}

/// Calls `strip` for the strips that [`write_strips`] and [`save_strips`] write, in the same order, and writes nothing.
/// Every process has to take part in reading a strip; processes that do not write the file call this.
///
/// # Errors
/// The errors of `strip`.
pub fn read_strips<E>(
    map: &WeightMap,
    strip: impl FnMut(&WeightEntry, Range<usize>, &mut [f32]) -> Result<(), E>,
) -> Result<(), E> {
    read_tensors(&tensors(map), strip)
}

fn read_tensors<E>(
    tensors: &[Tensor],
    mut strip: impl FnMut(&WeightEntry, Range<usize>, &mut [f32]) -> Result<(), E>,
) -> Result<(), E> {
    let mut values = Vec::new();
    for entry in tensors.iter().flat_map(|tensor| &tensor.parts) {
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

/// Writes a file with [`Output`].
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

/// Resolves a path to write.
fn at(path: &Path) -> Result<Output, ModelError> {
    Output::at(path).map_err(|source| ModelError::Io { file: path.to_path_buf(), source })
}
