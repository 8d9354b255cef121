//! Safetensors files, read lazily: one tensor, or a part of one, at a time.

use super::error::ModelError;
use super::keys::read_json;
use burn::tensor::{bf16, f16};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};
use tpc_ir::DType;

/// The element types that files use here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileType {
    /// 32-bit float.
    F32,
    /// 16-bit float of IEEE 754.
    F16,
    /// The upper half of a 32-bit float.
    Bf16,
    /// 64-bit float.
    F64,
    /// 64-bit integer.
    I64,
    /// 32-bit integer.
    I32,
    /// A type that is not converted.
    Other,
}

/// Where a tensor lies in its file.
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
    /// The file that errors name when no single one is meant.
    origin: PathBuf,
    files: Vec<(PathBuf, File)>,
    tensors: BTreeMap<String, TensorInfo>,
}

const FLOATS: &str = "F32, F16, BF16 or F64";
/// Read at most this much at once when a slice's runs are short and near each other.
const CHUNK: usize = 1 << 20;
/// A longer header is surely not one.
const LONGEST_HEADER: u64 = 100_000_000;

impl Weights {
    /// Opens one safetensors file.
    pub fn open_file(file: &Path) -> Result<Self, ModelError> {
        let mut weights = Self { origin: file.to_path_buf(), files: Vec::new(), tensors: BTreeMap::new() };
        weights.add_file(file)?;
        Ok(weights)
    }

    /// Opens the weights of a model directory: `model.safetensors`, or the files of `model.safetensors.index.json`.
    pub fn open_dir(dir: &Path) -> Result<Self, ModelError> {
        let single = dir.join("model.safetensors");
        if single.is_file() {
            return Self::open_file(&single);
        }
        let index = dir.join("model.safetensors.index.json");
        if !index.is_file() {
            return Err(ModelError::NoWeights { dir: dir.to_path_buf() });
        }
        let value = read_json(&index)?;
        let bad = |problem: String| ModelError::BadFile { file: index.clone(), problem };
        let map =
            value.get("weight_map").and_then(Value::as_object).ok_or_else(|| bad("no object \"weight_map\"".into()))?;
        let mut weights = Self { origin: index.clone(), files: Vec::new(), tensors: BTreeMap::new() };
        let mut opened: HashMap<&str, usize> = HashMap::new();
        for (tensor, file) in map {
            let file = file
                .as_str()
                .filter(|name| !name.contains(['/', '\\']))
                .ok_or_else(|| bad(format!("weight_map[{tensor:?}] is {file}, not a file name")))?;
            if !opened.contains_key(file) {
                opened.insert(file, weights.files.len());
                weights.add_file(&dir.join(file))?;
            }
            let expected = opened.get(file).copied();
            if weights.tensors.get(tensor).map(|info| info.file) != expected {
                return Err(ModelError::MissingTensor {
                    file: dir.join(file),
                    tensor: tensor.clone(),
                    nearest: weights.nearest(tensor),
                });
            }
        }
        Ok(weights)
    }

    fn add_file(&mut self, path: &Path) -> Result<(), ModelError> {
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
        let header: Value =
            serde_json::from_slice(&header).map_err(|source| bad(format!("its header is not JSON: {source}")))?;
        let header = header.as_object().ok_or_else(|| bad("its header is not an object".into()))?;
        let index = self.files.len();
        let mut end = start;
        for (name, entry) in header.iter().filter(|(name, _)| *name != "__metadata__") {
            let (info, last) =
                parse_entry(entry, index, start).map_err(|problem| bad(format!("tensor {name:?}: {problem}")))?;
            end = end.max(last);
            self.tensors.insert(name.clone(), info);
        }
        if end > length {
            return Err(truncated(end));
        }
        self.files.push((path.to_path_buf(), file));
        Ok(())
    }

    /// The files.
    pub fn files(&self) -> Vec<PathBuf> {
        self.files.iter().map(|(path, _)| path.clone()).collect()
    }

    /// The tensors' names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Whether there is a tensor of this name.
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

    /// An error unless the tensor has this shape.
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

    /// A part of a tensor, one range for each of its dimensions, converted to f32, row-major. Only that part is read.
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
            _ => return Err(self.wrong_type(name, info, "I64 or I32")),
        };
        self.read(name, info, &whole(&info.shape), convert)
    }

    /// The element type of a tensor of floats.
    ///
    /// # Errors
    /// No such tensor, or one of integers.
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
            // Runs that lie within one chunk are read together, gaps included.
            pending.clear();
            pending.push(first);
            while let Some(next) = starts.next_if(|next| (next - first) * width + run <= CHUNK) {
                pending.push(next);
            }
            let last = pending.last().copied().unwrap_or(first);
            let mut remaining = (last - first) * width + run;
            let mut at = info.offset + (first * width) as u64;
            if pending.len() == 1 {
                // A long run is converted piece by piece, so that its bytes are never held whole.
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

    /// Fills `into` with the bytes of a tensor from its byte `first` on. Threads do not wait for each other.
    pub(super) fn read_at(&self, info: &TensorInfo, first: usize, into: &mut [u8]) -> Result<(), ModelError> {
        let Some((path, file)) = self.files.get(info.file) else {
            return Ok(());
        };
        let at = info.offset + first as u64;
        read_exact_at(file, into, at).map_err(|source| ModelError::Io { file: path.clone(), source })
    }

    /// Up to three names that share the most of their dotted parts, from the end or the start.
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

impl FileType {
    fn parse(name: &str) -> Self {
        match name {
            "F32" => Self::F32,
            "F16" => Self::F16,
            "BF16" => Self::Bf16,
            "F64" => Self::F64,
            "I64" => Self::I64,
            "I32" => Self::I32,
            _ => Self::Other,
        }
    }

    /// Bytes of an element.
    fn width(self) -> usize {
        match self {
            Self::F64 | Self::I64 => 8,
            Self::F32 | Self::I32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Other => 1,
        }
    }
}

/// One tensor of a header, and where its data ends in the file.
fn parse_entry(entry: &Value, file: usize, start: u64) -> Result<(TensorInfo, u64), String> {
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
    let [from, to] = numbers("data_offsets")?[..] else {
        return Err("\"data_offsets\" is not a pair".into());
    };
    let dtype = FileType::parse(dtype_name);
    let bytes = shape.iter().try_fold(dtype.width(), |product, size| product.checked_mul(*size));
    let length = to.checked_sub(from);
    if length.is_none() || (dtype != FileType::Other && bytes.map(|b| b as u64) != length) {
        return Err(format!("data_offsets [{from}, {to}] do not fit {dtype_name} {shape:?}"));
    }
    let (offset, end) = match (start.checked_add(from), start.checked_add(to)) {
        (Some(offset), Some(end)) => (offset, end),
        _ => return Err(format!("data_offsets [{from}, {to}] are too large")),
    };
    let info = TensorInfo { dtype, dtype_name: dtype_name.into(), shape, file, offset };
    Ok((info, end))
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
        // The trailing dimensions that are taken whole, and the one before them, form a run.
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

/// Where files cannot be read at a place, a copy of the handle moves the cursor; only one thread at a time may.
#[cfg(not(unix))]
fn read_exact_at(file: &File, into: &mut [u8], at: u64) -> std::io::Result<()> {
    use std::io::{Seek, SeekFrom};
    static ONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let mut file = file.try_clone()?;
    file.seek(SeekFrom::Start(at))?;
    file.read_exact(into)
}

fn whole(shape: &[usize]) -> Vec<Range<usize>> {
    shape.iter().map(|size| 0..*size).collect()
}

fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(bytes);
    array
}
