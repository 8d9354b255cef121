//! Safetensors files, read lazily: one tensor, or a part of one, at a time.

use super::error::ModelError;
use super::header::{self, Described, Entries, FileType};
use super::keys::{check_lfs, read_text};
use burn::tensor::{bf16, f16};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};
use tpc_ir::DType;

/// The location and type of a tensor in its file.
#[derive(Debug, Clone)]
pub struct TensorInfo {
    /// Its element type.
    pub dtype: FileType,
    /// Its element type's name in the file.
    pub dtype_name: String,
    /// Its shape in the file.
    pub shape: Vec<usize>,
    file: usize,
    offset: u64,
}

/// All the tensors of one file, or of several files with an index.
#[derive(Debug)]
pub struct Weights {
    /// The file that errors name if no single file is responsible.
    origin: PathBuf,
    files: Vec<(PathBuf, File)>,
    tensors: BTreeMap<String, TensorInfo>,
    /// Tensors that the index assigns to another file, with the file that holds the copy.
    copies: Vec<(PathBuf, String)>,
}

/// `model.safetensors.index.json`.
#[derive(Deserialize)]
struct Index {
    weight_map: Option<Entries>,
}

const FLOATS: &str = "F32, F16, BF16 or F64";
const INTEGERS: &str = "BOOL, or an integer of 8 to 64 bits";
/// Maximum bytes to read at once if a slice's runs are short and close to each other.
const CHUNK: usize = 1 << 20;
/// Maximum length of a header; a longer one is invalid.
const LONGEST_HEADER: u64 = 100_000_000;

impl Weights {
    /// Opens one safetensors file.
    pub fn open_file(file: &Path) -> Result<Self, ModelError> {
        let mut weights = Self::empty(file);
        let tensors = weights.add_file(file)?;
        weights.tensors.extend(tensors);
        Ok(weights)
    }

    /// Opens the weights of a model directory: `model.safetensors`, or the files of `model.safetensors.index.json`.
    ///
    /// The index decides which file a tensor comes from, because another file may hold an older copy of it. A tensor
    /// that the index does not name is found if only one file holds it.
    pub fn open_dir(dir: &Path) -> Result<Self, ModelError> {
        let single = dir.join("model.safetensors");
        if single.is_file() {
            return Self::open_file(&single);
        }
        let index = dir.join("model.safetensors.index.json");
        if !index.is_file() {
            let other = ["pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5", "flax_model.msgpack"];
            let other = other.into_iter().find(|name| dir.join(name).is_file());
            return Err(ModelError::NoWeights { dir: dir.to_path_buf(), other });
        }
        let map = read_index(&index)?;
        let mut weights = Self::empty(&index);
        let mut opened: BTreeMap<&str, HashMap<String, TensorInfo>> = BTreeMap::new();
        for file in map.values() {
            if !opened.contains_key(file.as_str()) {
                opened.insert(file, weights.add_file(&dir.join(file))?.into_iter().collect());
            }
        }
        // Tensors that the index does not name, and copies of tensors that it names.
        let mut unnamed: BTreeMap<&str, Vec<&TensorInfo>> = BTreeMap::new();
        for (file, tensors) in &opened {
            for (name, info) in tensors {
                match map.get(name) {
                    None => unnamed.entry(name).or_default().push(info),
                    Some(chosen) if chosen.as_str() != *file => weights.copies.push((dir.join(file), name.clone())),
                    Some(_) => {}
                }
            }
        }
        weights.copies.sort();
        let alone = unnamed.into_iter().filter(|(_, found)| found.len() == 1);
        weights.tensors.extend(alone.map(|(name, found)| (name.to_string(), found[0].clone())));
        let mut missing = None;
        for (tensor, file) in &map {
            match opened.get(file.as_str()).and_then(|tensors| tensors.get(tensor)) {
                Some(info) => drop(weights.tensors.insert(tensor.clone(), info.clone())),
                None => missing = missing.or(Some((tensor, file))),
            }
        }
        match missing {
            None => Ok(weights),
            Some((tensor, file)) => Err(ModelError::MissingTensor {
                file: dir.join(file),
                tensor: tensor.clone(),
                nearest: weights.nearest(tensor),
            }),
        }
    }

    /// The files that are open.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|(path, _)| &**path)
    }

    fn empty(origin: &Path) -> Self {
        let (files, tensors, copies) = (Vec::new(), BTreeMap::new(), Vec::new());
        Self { origin: origin.to_path_buf(), files, tensors, copies }
    }

    /// Opens a file and reads its header.
    fn add_file(&mut self, path: &Path) -> Result<Vec<(String, TensorInfo)>, ModelError> {
        let io = |source| ModelError::Io { file: path.to_path_buf(), source };
        let bad = |problem: String| ModelError::BadFile { file: path.to_path_buf(), problem };
        let mut file = File::open(path).map_err(io)?;
        let length = file.metadata().map_err(io)?.len();
        let truncated = |expected| ModelError::Truncated { file: path.to_path_buf(), expected, found: length };
        if length < 8 {
            return Err(truncated(8));
        }
        let mut size = [0; 8];
        file.read_exact(&mut size).map_err(io)?;
        check_lfs(path, &size)?;
        let size = u64::from_le_bytes(size);
        if size > LONGEST_HEADER {
            return Err(bad(format!("its header would have {size} bytes")));
        }
        let start = 8 + size;
        if length < start {
            return Err(truncated(start));
        }
        let mut header = vec![0; size as usize];
        file.read_exact(&mut header).map_err(io)?;
        let described = header::parse(&header).map_err(bad)?;
        let end = described.last().map_or(0, |last| last.bytes.end);
        match start.checked_add(end) {
            None => return Err(bad(format!("data_offsets up to {end} are too large"))),
            Some(end) if end > length => return Err(truncated(end)),
            Some(end) if end < length => {
                return Err(bad(format!("{} bytes after the last tensor belong to no tensor", length - end)));
            }
            Some(_) => {}
        }
        let index = self.files.len();
        self.files.push((path.to_path_buf(), file));
        let info = |Described { name, dtype, dtype_name, shape, bytes }| {
            (name, TensorInfo { dtype, dtype_name, shape, file: index, offset: start + bytes.start })
        };
        Ok(described.into_iter().map(info).collect())
    }

    /// The file, or the index of several files.
    pub fn origin(&self) -> &Path {
        &self.origin
    }

    /// Tensors that are not read because the index assigns them to another file, each with the file that holds the
    /// copy.
    pub fn copies(&self) -> &[(PathBuf, String)] {
        &self.copies
    }

    /// The tensors' names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Whether there is a tensor with this name.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Shape and type of a tensor.
    pub fn info(&self, name: &str) -> Result<&TensorInfo, ModelError> {
        self.tensors.get(name).ok_or_else(|| ModelError::MissingTensor {
            file: self.origin.clone(),
            tensor: name.into(),
            nearest: self.nearest(name),
        })
    }

    /// The file that holds a tensor.
    pub fn file_of(&self, info: &TensorInfo) -> &Path {
        match self.files.get(info.file) {
            Some((path, _)) => path,
            None => &self.origin,
        }
    }

    /// An error if the tensor does not have this shape.
    pub fn expect_shape(&self, name: &str, expected: &[usize]) -> Result<(), ModelError> {
        let info = self.info(name)?;
        match info.shape == expected {
            true => Ok(()),
            false => Err(ModelError::WrongShape {
                file: self.file_of(info).to_path_buf(),
                tensor: name.into(),
                expected: expected.to_vec(),
                found: info.shape.clone(),
            }),
        }
    }

    /// A whole tensor, converted to f32.
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>, ModelError> {
        let whole = whole(&self.info(name)?.shape);
        self.read_f32_slice(name, &whole)
    }

    /// A part of a tensor, given by one range per dimension, converted to f32, row-major. Only that part is read.
    pub fn read_f32_slice(&self, name: &str, slice: &[Range<usize>]) -> Result<Vec<f32>, ModelError> {
        let info = self.info(name)?;
        let convert: fn(&[u8]) -> f32 = match info.dtype {
            FileType::F32 => |b| f32::from_le_bytes(array(b)),
            FileType::F16 => |b| f16::from_le_bytes(array(b)).to_f32(),
            FileType::Bf16 => |b| bf16::from_le_bytes(array(b)).to_f32(),
            FileType::F64 => |b| f64::from_le_bytes(array(b)) as f32,
            _ => return Err(self.wrong_type(name, info, FLOATS)),
        };
        self.read(name, info, slice, convert)
    }

    /// A whole tensor, converted to f64.
    pub fn read_f64(&self, name: &str) -> Result<Vec<f64>, ModelError> {
        let info = self.info(name)?;
        match info.dtype {
            FileType::F64 => self.read(name, info, &whole(&info.shape), |b| f64::from_le_bytes(array(b))),
            _ => Ok(self.read_f32(name)?.into_iter().map(f64::from).collect()),
        }
    }

    /// A whole tensor of integers.
    pub fn read_i64(&self, name: &str) -> Result<Vec<i64>, ModelError> {
        let info = self.info(name)?;
        let convert: fn(&[u8]) -> i64 = match info.dtype {
            FileType::I64 => |b| i64::from_le_bytes(array(b)),
            FileType::I32 => |b| i64::from(i32::from_le_bytes(array(b))),
            FileType::I16 => |b| i64::from(i16::from_le_bytes(array(b))),
            FileType::I8 => |b| i64::from(i8::from_le_bytes(array(b))),
            // A number that does not fit into an i64 is outside of every allowed range, and so is the maximum.
            FileType::U64 => |b| i64::try_from(u64::from_le_bytes(array(b))).unwrap_or(i64::MAX),
            FileType::U32 => |b| i64::from(u32::from_le_bytes(array(b))),
            FileType::U16 => |b| i64::from(u16::from_le_bytes(array(b))),
            FileType::U8 => |b| i64::from(b[0]),
            FileType::Bool => |b| i64::from(b[0] != 0),
            _ => return Err(self.wrong_type(name, info, INTEGERS)),
        };
        self.read(name, info, &whole(&info.shape), convert)
    }

    /// Whether two tensors of floats have the same shape and the same elements. They are read in pieces.
    pub fn equal(&self, a: &str, b: &str) -> Result<bool, ModelError> {
        let shape = &self.info(a)?.shape;
        if *shape != self.info(b)?.shape || self.float_type(a).is_err() || self.float_type(b).is_err() {
            return Ok(false);
        }
        let mut same = true;
        for rows in pieces(shape) {
            same = same && self.read_f32_slice(a, &rows)? == self.read_f32_slice(b, &rows)?;
        }
        Ok(same)
    }

    /// The names that are not in this set, sorted.
    pub fn others(&self, read: &BTreeSet<String>) -> Vec<String> {
        self.tensors.keys().filter(|name| !read.contains(*name)).cloned().collect()
    }

    /// The element type of a tensor of floats.
    ///
    /// # Errors
    /// No such tensor, or a tensor of integers.
    pub fn float_type(&self, name: &str) -> Result<DType, ModelError> {
        let info = self.info(name)?;
        match info.dtype {
            FileType::F32 => Ok(DType::F32),
            FileType::F16 => Ok(DType::F16),
            FileType::Bf16 => Ok(DType::BF16),
            FileType::F64 => Ok(DType::F64),
            _ => Err(self.wrong_type(name, info, FLOATS)),
        }
    }

    fn wrong_type(&self, name: &str, info: &TensorInfo, expected: &'static str) -> ModelError {
        ModelError::WrongType {
            file: self.file_of(info).to_path_buf(),
            tensor: name.into(),
            expected,
            found: info.dtype_name.clone(),
        }
    }

    fn read<T>(
        &self,
        name: &str,
        info: &TensorInfo,
        slice: &[Range<usize>],
        convert: impl Fn(&[u8]) -> T,
    ) -> Result<Vec<T>, ModelError> {
        let inside = slice.len() == info.shape.len()
            && slice.iter().zip(&info.shape).all(|(range, size)| range.start <= range.end && range.end <= *size);
        if !inside {
            return Err(ModelError::BadSlice {
                file: self.file_of(info).to_path_buf(),
                tensor: name.into(),
                shape: info.shape.clone(),
                slice: format!("{slice:?}"),
            });
        }
        let total: usize = slice.iter().map(ExactSizeIterator::len).product();
        let mut values = Vec::with_capacity(total);
        if total == 0 {
            return Ok(values);
        }
        let width = info.dtype.width();
        let runs = Runs::new(&info.shape, slice);
        let mut chunk: Vec<u8> = Vec::new();
        let mut pending: Vec<usize> = Vec::new();
        let run = runs.length * width;
        let mut starts = runs.peekable();
        while let Some(first) = starts.next() {
            // Runs within one chunk are read together, including the gaps.
            pending.clear();
            pending.push(first);
            while let Some(next) = starts.next_if(|next| (next - first) * width + run <= CHUNK) {
                pending.push(next);
            }
            let last = pending.last().copied().unwrap_or(first);
            let mut remaining = (last - first) * width + run;
            let mut at = info.offset + (first * width) as u64;
            if pending.len() == 1 {
                // A long run is converted piece by piece, so that its bytes are never held as a whole.
                while remaining > 0 {
                    let piece = remaining.min(CHUNK);
                    self.read_bytes(info, at, piece, &mut chunk)?;
                    values.extend(chunk.chunks_exact(width).map(&convert));
                    at += piece as u64;
                    remaining -= piece;
                }
            } else {
                self.read_bytes(info, at, remaining, &mut chunk)?;
                for start in &pending {
                    let from = (start - first) * width;
                    values.extend(chunk[from..from + run].chunks_exact(width).map(&convert));
                }
            }
        }
        Ok(values)
    }

    fn read_bytes(&self, info: &TensorInfo, at: u64, length: usize, into: &mut Vec<u8>) -> Result<(), ModelError> {
        into.resize(length, 0);
        let first = at.saturating_sub(info.offset) as usize;
        self.read_at(info, first, into)
    }

    /// Fills `into` with the bytes of a tensor, from byte `first` on. Threads do not wait for each other.
    pub(super) fn read_at(&self, info: &TensorInfo, first: usize, into: &mut [u8]) -> Result<(), ModelError> {
        let Some((path, file)) = self.files.get(info.file) else {
            return Ok(());
        };
        let at = info.offset + first as u64;
        read_exact_at(file, into, at).map_err(|source| ModelError::Io { file: path.clone(), source })
    }

    /// Up to three names that share the most dotted parts with this one, from the end or the start.
    fn nearest(&self, name: &str) -> Vec<String> {
        let parts: Vec<&str> = name.split('.').collect();
        let mut scored: Vec<(usize, &String)> = self
            .tensors
            .keys()
            .map(|other| {
                let others: Vec<&str> = other.split('.').collect();
                let same = |a: &mut dyn Iterator<Item = (&&str, &&str)>| a.take_while(|(x, y)| x == y).count();
                let front = same(&mut parts.iter().zip(&others));
                let back = same(&mut parts.iter().rev().zip(others.iter().rev()));
                (front + back, other)
            })
            .filter(|(score, _)| *score > 0)
            .collect();
        scored.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(b.1)));
        scored.into_iter().take(3).map(|(_, name)| name.clone()).collect()
    }
}

/// The first elements of a slice's contiguous runs, in order.
struct Runs {
    length: usize,
    counts: Vec<usize>,
    strides: Vec<usize>,
    base: usize,
    next: usize,
    total: usize,
}

impl Runs {
    fn new(shape: &[usize], slice: &[Range<usize>]) -> Self {
        let mut strides = vec![1; shape.len()];
        for d in (1..shape.len()).rev() {
            strides[d - 1] = strides[d] * shape[d];
        }
        let base = slice.iter().zip(&strides).map(|(r, s)| r.start * s).sum();
        // The trailing dimensions that are taken completely, and the one before them, form a run.
        let mut outer = shape.len();
        let mut length = 1;
        while outer > 0 {
            outer -= 1;
            length *= slice[outer].len();
            if slice[outer].len() != shape[outer] {
                break;
            }
        }
        let counts: Vec<usize> = slice[..outer].iter().map(ExactSizeIterator::len).collect();
        strides.truncate(outer);
        Self { length, total: counts.iter().product(), counts, strides, base, next: 0 }
    }
}

impl Iterator for Runs {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        if self.next == self.total {
            return None;
        }
        let mut rest = self.next;
        self.next += 1;
        let mut start = self.base;
        for (count, stride) in self.counts.iter().zip(&self.strides).rev() {
            start += rest % count * stride;
            rest /= count;
        }
        Some(start)
    }
}

#[cfg(unix)]
fn read_exact_at(file: &File, into: &mut [u8], at: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, into, at)
}

/// If the system cannot read files at an offset, a copy of the handle moves the cursor; only one thread at a time may
/// do this.
#[cfg(not(unix))]
fn read_exact_at(file: &File, into: &mut [u8], at: u64) -> std::io::Result<()> {
    use std::io::{Seek, SeekFrom};
    static ONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let mut file = file.try_clone()?;
    file.seek(SeekFrom::Start(at))?;
    file.read_exact(into)
}

/// Reads the `weight_map` of an index: the file of every tensor.
fn read_index(index: &Path) -> Result<BTreeMap<String, String>, ModelError> {
    let bad = |problem: String| ModelError::BadFile { file: index.to_path_buf(), problem };
    let parsed: Index = serde_json::from_str(&read_text(index)?)
        .map_err(|source| ModelError::Json { file: index.to_path_buf(), source })?;
    let Some(Entries(entries)) = parsed.weight_map else { return Err(bad("no object \"weight_map\"".into())) };
    let mut map = BTreeMap::new();
    for (tensor, file) in entries {
        let name = file.as_str().filter(|name| !name.contains(['/', '\\']));
        let name = name.ok_or_else(|| bad(format!("weight_map[{tensor:?}] is {file}, not a file name")))?;
        if map.insert(tensor.clone(), name.to_string()).is_some() {
            return Err(bad(format!("weight_map names {tensor:?} twice")));
        }
    }
    Ok(map)
}

/// Slices that make up a tensor, each with whole rows and about [`CHUNK`] elements.
fn pieces(shape: &[usize]) -> Vec<Vec<Range<usize>>> {
    let Some((&rows, rest)) = shape.split_first() else { return vec![Vec::new()] };
    let row = rest.iter().fold(1usize, |product, n| product.saturating_mul(*n));
    let step = (CHUNK / row.max(1)).max(1);
    let slice =
        |first: usize| std::iter::once(first..rows.min(first + step)).chain(rest.iter().map(|n| 0..*n)).collect();
    (0..rows).step_by(step).map(slice).collect()
}

fn whole(shape: &[usize]) -> Vec<Range<usize>> {
    shape.iter().map(|size| 0..*size).collect()
}

fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(bytes);
    array
}
