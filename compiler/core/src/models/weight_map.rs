//! The map between the tensors of a weight file and parameters with their layouts, as data.

use super::error::ModelError;
use super::weights::Weights;
use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Tensor, TensorData};
use std::collections::HashMap;
use std::ops::Range;

/// One parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightEntry {
    /// The parameter's path in the burn module: `model.layers.0.self_attn.q_proj.weight`.
    pub burn_path: String,
    /// The tensor's name in Hugging Face's files.
    pub hf_name: String,
    /// Whether the file holds the transpose of the parameter.
    pub transpose: bool,
    /// The parameter's shape in the burn module.
    pub shape: Vec<usize>,
    /// The rows of the file's tensor that are the parameter, if it is not the whole tensor (before `transpose`
    /// applies).
    pub rows: Option<Range<usize>>,
    /// Whether the parameter is initialized if a file does not have it.
    pub drawable: bool,
    /// Tensors that replace this one in a file that does not have it: the other tensor of a tied pair.
    pub stands_for: Vec<String>,
}

/// All parameters of a model, in the order of the module's fields.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WeightMap {
    /// The parameters.
    pub entries: Vec<WeightEntry>,
}

/// Parts of names in older files, and their current spelling.
const OLD_NAMES: [(&str, &str); 2] = [("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta")];
/// Prefixes that files of a model without its head omit, and that files of a model with a head put before a bare
/// model's names.
const PREFIXES: [&str; 3] = ["model.", "transformer.", "bert."];

impl WeightEntry {
    /// The name of the parameter in programs, plans and checkpoints: that of the tensor in files or, if several
    /// parameters are rows of one tensor, that of the module.
    pub fn name(&self) -> &str {
        match self.rows {
            None => &self.hf_name,
            Some(_) => &self.burn_path,
        }
    }

    /// The shape of the parameter in the file (of its rows, if it has [`WeightEntry::rows`]).
    pub fn file_shape(&self) -> Vec<usize> {
        let mut shape = self.shape.clone();
        if self.transpose {
            shape.reverse();
        }
        shape
    }

    /// The name of this parameter in `weights`: the current one, an older spelling, one without the model's prefix, or
    /// the name of a tensor that replaces it.
    pub fn name_in(&self, weights: &Weights) -> String {
        let names = std::iter::once(&self.hf_name).chain(&self.stands_for);
        names.filter_map(|name| found_as(name, weights)).next().unwrap_or_else(|| self.hf_name.clone())
    }

    /// Whether the parameter is initialized, because `weights` do not have it and need not have it.
    pub fn is_drawn(&self, weights: &Weights) -> bool {
        self.drawable && found_as(&self.hf_name, weights).is_none()
    }

    /// Checks that the tensor exists and has the right shape, or that the parameter is initialized.
    pub fn check(&self, weights: &Weights) -> Result<(), ModelError> {
        if self.is_drawn(weights) {
            return Ok(());
        }
        let name = self.name_in(weights);
        let mut expected = self.file_shape();
        if let Some(rows) = &self.rows {
            // The other rows belong to other parameters, so this can only check that there are enough rows.
            let found = &weights.info(&name)?.shape;
            expected[0] = match found.first() {
                Some(found) if *found >= rows.end => *found,
                _ => rows.end,
            };
        }
        weights.expect_shape(&name, &expected)
    }

    /// Reads the whole parameter in the burn module's layout.
    pub fn read(&self, weights: &Weights) -> Result<Vec<f32>, ModelError> {
        let whole: Vec<Range<usize>> = self.shape.iter().map(|size| 0..*size).collect();
        self.read_slice(weights, &whole)
    }

    /// Reads a part of the parameter, given by one range per dimension of the burn module's layout, row-major in that
    /// layout. Only this part is read from the file and held.
    pub fn read_slice(&self, weights: &Weights, slice: &[Range<usize>]) -> Result<Vec<f32>, ModelError> {
        self.check(weights)?;
        let mut file_slice = slice.to_vec();
        if self.transpose {
            file_slice.reverse();
        }
        if let (Some(rows), Some(first)) = (&self.rows, file_slice.first_mut()) {
            *first = first.start + rows.start..first.end + rows.start;
        }
        let values = weights.read_f32_slice(&self.name_in(weights), &file_slice)?;
        Ok(match (self.transpose, slice) {
            (true, [rows, columns]) => transposed(&values, columns.len(), rows.len()),
            _ => values,
        })
    }

    /// Converts values from the burn module's layout to the file's.
    pub fn to_file_layout(&self, values: Vec<f32>) -> Vec<f32> {
        match (self.transpose, &self.shape[..]) {
            (true, [rows, columns]) => transposed(&values, *rows, *columns),
            _ => values,
        }
    }

    /// Converts values from the file's layout to the burn module's.
    pub fn to_burn_layout(&self, values: Vec<f32>) -> Vec<f32> {
        match (self.transpose, &self.shape[..]) {
            (true, [rows, columns]) => transposed(&values, *columns, *rows),
            _ => values,
        }
    }
}

/// The name of a tensor in `weights`: its own name, an older spelling, or one without the model's prefix.
pub(super) fn found_as(name: &str, weights: &Weights) -> Option<String> {
    let bare = PREFIXES.iter().filter_map(|prefix| name.strip_prefix(prefix)).map(str::to_string);
    let within = PREFIXES.iter().map(|prefix| format!("{prefix}{name}"));
    std::iter::once(name.to_string()).chain(bare).chain(within).find_map(|name| {
        let older = OLD_NAMES.iter().filter_map(|(new, old)| Some(format!("{}{old}", name.strip_suffix(new)?)));
        std::iter::once(name.clone()).chain(older).find(|name| weights.contains(name))
    })
}

impl WeightMap {
    /// The map of a module whose fields have Hugging Face's names. Its parameters are not initialized.
    ///
    /// `gamma` and `beta` of norms become `weight` and `bias`, a field `self_` becomes `self`, and the weights of
    /// `Linear` are transposed in the file if `linear_is_transposed` (for every family except GPT-2).
    pub fn of<M: Module>(module: &M, linear_is_transposed: bool) -> Self {
        let mut collect = Collect { linear_is_transposed, ..Collect::default() };
        module.visit(&mut collect);
        Self { entries: collect.entries }
    }

    /// Makes parameters rows of one tensor of the files, in this order: `module` and `parts` are paths, and `leaf` is
    /// `weight` or `bias`. Parameters that the model does not have are left out.
    pub(super) fn fuse(&mut self, module: &str, parts: &[String], leaf: &str) {
        let mut first = 0;
        for part in parts {
            let path = format!("{part}.{leaf}");
            let Some(entry) = self.entries.iter_mut().find(|entry| entry.burn_path == path) else { continue };
            let rows = entry.file_shape().first().copied().unwrap_or(0);
            entry.hf_name = format!("{module}.{leaf}");
            entry.rows = Some(first..first + rows);
            first += rows;
        }
    }

    /// The entry of a burn path.
    pub fn by_burn_path(&self, path: &str) -> Option<&WeightEntry> {
        self.entries.iter().find(|entry| entry.burn_path == path)
    }

    /// The entry of a Hugging Face name (the first, if several parameters are rows of one tensor).
    pub fn by_hf_name(&self, name: &str) -> Option<&WeightEntry> {
        self.entries.iter().find(|entry| entry.hf_name == name)
    }

    /// The same map for a file that puts `prefix` before every name.
    pub fn with_prefix(&self, prefix: &str) -> Self {
        let mut map = self.clone();
        for entry in &mut map.entries {
            entry.hf_name.insert_str(0, prefix);
            entry.stands_for.iter_mut().for_each(|name| name.insert_str(0, prefix));
        }
        map
    }

    /// Total number of elements.
    pub fn parameters(&self) -> usize {
        self.entries.iter().map(|entry| entry.shape.iter().product::<usize>()).sum()
    }

    /// Checks every tensor's presence and shape without reading any data.
    pub fn check(&self, weights: &Weights) -> Result<(), ModelError> {
        self.entries.iter().try_for_each(|entry| entry.check(weights))
    }

    /// Replaces every parameter of `module` by the file's values; initialized parameters are unchanged. The parameters
    /// keep their ids and devices.
    pub fn load<M: Module>(&self, module: M, weights: &Weights) -> Result<M, ModelError> {
        self.check(weights)?;
        let mut load = Load {
            entries: self.entries.iter().map(|e| (e.burn_path.as_str(), e)).collect(),
            weights,
            path: Vec::new(),
            error: None,
        };
        let module = module.map(&mut load);
        match load.error {
            Some(error) => Err(error),
            None => Ok(module),
        }
    }
}

/// The Hugging Face path of a burn module or parameter path.
pub fn hf_path(burn_path: &str) -> String {
    let parts: Vec<&str> = burn_path
        .split('.')
        .map(|part| match part {
            "self_" => "self",
            part => part,
        })
        .collect();
    parts.join(".")
}

/// The burn path of a Hugging Face module path.
pub fn burn_path(hf_path: &str) -> String {
    let parts: Vec<&str> = hf_path
        .split('.')
        .map(|part| match part {
            "self" => "self_",
            part => part,
        })
        .collect();
    parts.join(".")
}

/// Transposes `[rows, columns]`.
pub(crate) fn transposed(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    const TILE: usize = 32;
    let mut result = vec![0.0; values.len()];
    for row in (0..rows).step_by(TILE) {
        for column in (0..columns).step_by(TILE) {
            for r in row..rows.min(row + TILE) {
                for c in column..columns.min(column + TILE) {
                    result[c * rows + r] = values[r * columns + c];
                }
            }
        }
    }
    result
}

#[derive(Default)]
struct Collect {
    linear_is_transposed: bool,
    path: Vec<String>,
    containers: Vec<String>,
    entries: Vec<WeightEntry>,
}

impl ModuleVisitor for Collect {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.push(name.into());
        self.containers.push(container.into());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
        self.containers.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let burn_path = self.path.join(".");
        let container = self.containers.last().map(String::as_str);
        let norm = matches!(container, Some("Struct:RmsNorm" | "Struct:LayerNorm"));
        let hf = hf_path(&burn_path);
        let hf_name = match hf.rsplit_once('.') {
            Some((module, "gamma")) if norm => format!("{module}.weight"),
            Some((module, "beta")) if norm => format!("{module}.bias"),
            _ => hf,
        };
        self.entries.push(WeightEntry {
            burn_path,
            hf_name,
            transpose: self.linear_is_transposed && D == 2 && container == Some("Struct:Linear"),
            shape: param.lazy_shape().to_vec(),
            rows: None,
            drawable: false,
            stands_for: Vec::new(),
        });
    }
}

struct Load<'a> {
    entries: HashMap<&'a str, &'a WeightEntry>,
    weights: &'a Weights,
    path: Vec<String>,
    error: Option<ModelError>,
}

impl ModuleMapper for Load<'_> {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.into());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if self.error.is_some() {
            return param;
        }
        let path = self.path.join(".");
        let values = match self.entries.get(path.as_str()) {
            None => Err(ModelError::Unmapped(path)),
            Some(entry) if entry.is_drawn(self.weights) => return param,
            Some(entry) => entry.read(self.weights).map(|values| TensorData::new(values, entry.shape.clone())),
        };
        match values {
            Ok(data) => {
                let value = Tensor::from_data(data, &param.lazy_device());
                let id = param.id;
                param.transform_for_load(value, id)
            }
            Err(error) => {
                self.error = Some(error);
                param
            }
        }
    }
}
