//! The parameters of a module: where they are, and how they get onto the capture device.

use std::any::Any;
use std::collections::{HashMap, HashSet};

use burn::module::{Flag, Module, ModuleMapper, ModuleVisitor, Param, ParamId, Parameter};
use burn::tensor::{Bool, DType, Device, Int, Tensor, TensorData};

use super::kind::{self, Kind};
use super::position::{Position, container};
use super::session::Session;
use super::statistics::Walk;
use super::units::ModuleTree;
use tpc_ir::{ModulePath, UnitId};

/// A module, as the visitor meets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModuleInfo {
    /// Path from the root, which has the empty path.
    pub path: ModulePath,
    /// Name of its type: `Linear`, `RmsNorm`, the name of a user's structure, `Vec`, `Array`, `Tuple`.
    pub container: String,
    /// Paths of the parameters that it holds itself.
    pub parameters: Vec<ModulePath>,
}

/// A parameter of the recorded module.
#[derive(Clone, Debug)]
pub(super) struct Parameters {
    pub(super) list: Vec<ParameterInfo>,
    /// `(alias, path)`: further places that hold a parameter.
    pub(super) aliases: Vec<(ModulePath, ModulePath)>,
    pub(super) modules: Vec<ModuleInfo>,
}

/// One parameter.
#[derive(Clone, Debug)]
pub(super) struct ParameterInfo {
    pub(super) path: ModulePath,
    pub(super) param: ParamId,
    pub(super) tensor: u64,
    pub(super) shape: Vec<usize>,
    pub(super) dtype: DType,
    /// How it gets its first value, where that was recorded.
    pub(super) initialization: Option<Initialization>,
    /// The unit that it belongs to.
    pub(super) unit: Option<UnitId>,
}

/// What a recording holds of a parameter's initialization.
#[derive(Clone, Copy, Debug)]
pub(super) enum Initialization {
    /// It is lazy: the ids of what its initializer recorded.
    Recorded(u64, u64),
    /// The module computed it while it was built: the tensor that was in its place.
    Tensor(u64),
}

/// Replaces every parameter by a placeholder on the capture device, without moving its data.
pub(super) fn place<M: Module>(model: M, device: &Device, training: bool) -> M {
    // Parameters first: `to_device` then moves only what is not a parameter, such as tables of a positional encoding.
    let mut place = Place { device: device.clone(), training, seen: HashMap::new(), trainable: HashMap::new() };
    let model = model.map(&mut place).to_device(device);
    if !training {
        return model;
    }
    model.map(&mut Track { trainable: place.trainable, seen: HashMap::new(), walk: Walk::default() })
}

struct Place {
    device: Device,
    training: bool,
    seen: HashMap<ParamId, Box<dyn Any>>,
    trainable: HashMap<ParamId, bool>,
}

impl Place {
    /// One placeholder for each id: burn's own `to_device` would untie shared weights.
    fn placeholder<const D: usize, K: Kind>(&mut self, id: ParamId, like: &Tensor<D, K>) -> Tensor<D, K> {
        let make = || -> Box<dyn Any> { Box::new(kind::placeholder::<D, K>(like.dims(), like.dtype(), &self.device)) };
        let tensor = self.seen.entry(id).or_insert_with(make);
        tensor.downcast_ref::<Tensor<D, K>>().expect("tied parameters have one type").clone()
    }

    fn replace<const D: usize, K: Kind>(&mut self, param: Param<Tensor<D, K>>) -> Param<Tensor<D, K>>
    where
        Tensor<D, K>: Parameter,
    {
        let (id, tensor, mapper) = param.consume();
        let tensor = self.placeholder(id, &tensor);
        Param::from_mapped_value(id, tensor, mapper)
    }
}

impl ModuleMapper for Place {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if self.training {
            // A plain tensor does not say whether its parameter is frozen; putting a copy in training mode does.
            let trainable = param.clone().train().is_require_grad();
            self.trainable.insert(param.id, trainable);
        }
        self.replace(param)
    }

    fn map_int<const D: usize>(&mut self, param: Param<Tensor<D, Int>>) -> Param<Tensor<D, Int>> {
        self.replace(param)
    }

    fn map_bool<const D: usize>(&mut self, param: Param<Tensor<D, Bool>>) -> Param<Tensor<D, Bool>> {
        self.replace(param)
    }

    fn map_flag(&mut self, flag: Param<Flag>) -> Param<Flag> {
        if self.training { flag.train() } else { flag.valid() }
    }
}

/// Stands for `Module::train`, which refuses captured tensors.
struct Track {
    trainable: HashMap<ParamId, bool>,
    seen: HashMap<ParamId, Box<dyn Any>>,
    walk: Walk,
}

impl ModuleMapper for Track {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.walk.enter(name, container);
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.walk.exit();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if self.walk.is_statistic() {
            return param;
        }
        let (id, tensor, mapper) = param.consume();
        let trainable = self.trainable.get(&id).copied().unwrap_or(false);
        // Tied parameters must be one leaf of the tape, so that their gradients add up.
        let tracked = self.seen.entry(id).or_insert_with(|| -> Box<dyn Any> {
            let tensor = kind::Kind::track(tensor);
            Box::new(if trainable { tensor.require_grad() } else { tensor })
        });
        let tensor = tracked.downcast_ref::<Tensor<D>>().expect("tied parameters have one type").clone();
        Param::from_mapped_value(id, tensor, mapper)
    }
}

/// Makes leaves of the parameters that a module on the capture device has already computed while it was built, for
/// example by casting them; lazy ones are leaves already.
///
/// Gives the model, and for each leaf the tensor that was in its place, if it was recorded.
pub(super) fn make_leaves<M: Module>(model: M, device: &Device) -> (M, HashMap<u64, u64>) {
    let mut leaves =
        Leaves { device: device.clone(), replaced: HashMap::new(), seen: HashMap::new(), walk: Walk::default() };
    let model = model.map(&mut leaves);
    (model, leaves.replaced)
}

struct Leaves {
    device: Device,
    replaced: HashMap<u64, u64>,
    seen: HashMap<ParamId, Box<dyn Any>>,
    walk: Walk,
}

impl ModuleMapper for Leaves {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.walk.enter(name, container);
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.walk.exit();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if !param.is_initialized() {
            return param;
        }
        let is_statistic = self.walk.is_statistic();
        let (id, tensor, mapper) = param.consume();
        let leaf = self.seen.entry(id).or_insert_with(|| -> Box<dyn Any> {
            let leaf = kind::placeholder::<D, burn::tensor::Float>(tensor.dims(), tensor.dtype(), &self.device);
            Box::new(match kind::tracking(&tensor).filter(|_| !is_statistic) {
                None => leaf,
                Some(false) => kind::Kind::track(leaf),
                Some(true) => kind::Kind::track(leaf).require_grad(),
            })
        });
        let leaf = leaf.downcast_ref::<Tensor<D>>().expect("tied parameters have one type").clone();
        if let Some(replaced) = kind::Kind::id(&tensor) {
            self.replaced.insert(kind::id(&leaf), replaced.value());
        }
        Param::from_mapped_value(id, leaf, mapper)
    }
}

/// Lists the parameters of a module on the capture device, initializing those that are lazy. `replaced` is what
/// [`make_leaves`] gave.
pub(super) fn list<M: Module>(model: &M, replaced: HashMap<u64, u64>, session: &Session) -> Parameters {
    let mut visit = Visit { session: Some(session), replaced, ..Visit::default() };
    model.visit(&mut visit);
    let Visit { mut list, aliases, modules, tree, .. } = visit;
    for (unit, parameters) in (0..).map(UnitId).zip(tree.units()) {
        parameters.into_iter().for_each(|parameter| list[parameter].unit = Some(unit));
    }
    Parameters { list, aliases, modules }
}

/// The initial values of the parameters of a module on a computing device, by the text of their paths.
pub(super) fn values<M: Module>(model: &M) -> HashMap<String, TensorData> {
    let mut visit = Visit { values: Some(HashMap::new()), ..Visit::default() };
    model.visit(&mut visit);
    visit.values.unwrap_or_default()
}

/// The initial values of some parameters of a module on a computing device, by path; lazy ones that are not wanted stay so.
pub(super) fn values_of<M: Module>(model: &M, wanted: &HashSet<&str>) -> HashMap<String, TensorData> {
    let mut visit = Visit { values: Some(HashMap::new()), wanted: Some(wanted), ..Visit::default() };
    model.visit(&mut visit);
    visit.values.unwrap_or_default()
}

#[derive(Default)]
struct Visit<'a> {
    /// Present when the parameters are on the capture device.
    session: Option<&'a Session>,
    /// The tensors in whose places leaves are.
    replaced: HashMap<u64, u64>,
    /// Present when the data is wanted.
    values: Option<HashMap<String, TensorData>>,
    /// Whose data is wanted, if not that of all.
    wanted: Option<&'a HashSet<&'a str>>,
    position: Position,
    first: HashMap<ParamId, ModulePath>,
    list: Vec<ParameterInfo>,
    aliases: Vec<(ModulePath, ModulePath)>,
    modules: Vec<ModuleInfo>,
    /// Position of a path in `modules`.
    known: HashMap<ModulePath, usize>,
    /// The parameters of `list` in the modules that hold them.
    tree: ModuleTree,
}

impl Visit<'_> {
    fn parameter<const D: usize, K: Kind>(&mut self, param: &Param<Tensor<D, K>>)
    where
        Tensor<D, K>: Parameter,
    {
        let path = self.position.path();
        if let Some(&module) = self.known.get(&path.holder()) {
            self.modules[module].parameters.push(path.clone());
        }
        if let Some(first) = self.first.get(&param.id) {
            self.aliases.push((path, first.clone()));
            return;
        }
        self.first.insert(param.id, path.clone());
        if let Some(values) = &mut self.values {
            let path = path.to_string();
            if self.wanted.is_none_or(|wanted| wanted.contains(path.as_str())) {
                values.insert(path, param.base().into_data());
            }
            return;
        }
        let Some(session) = self.session else { return };
        let lazy = !param.is_initialized();
        let begin = session.mark();
        let tensor = param.base();
        let id = kind::id(&tensor);
        let initialization = match lazy {
            true => Some(Initialization::Recorded(begin, session.mark())),
            false => self.replaced.get(&id).map(|&tensor| Initialization::Tensor(tensor)),
        };
        let (shape, dtype) = (tensor.dims().to_vec(), tensor.dtype());
        self.tree.parameter(self.list.len());
        self.list.push(ParameterInfo { path, param: param.id, tensor: id, shape, dtype, initialization, unit: None });
    }
}

impl ModuleVisitor for Visit<'_> {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        // burn names the type of the module that holds `name`, not that of `name`.
        let path = self.position.path();
        if !self.known.contains_key(&path) {
            self.known.insert(path.clone(), self.modules.len());
            let container = container(container_type).1.to_owned();
            self.modules.push(ModuleInfo { path, container, parameters: Vec::new() });
        }
        self.position.enter(name, container_type);
        self.tree.enter(container_type);
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.position.exit();
        self.tree.exit();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.parameter(param);
    }

    fn visit_int<const D: usize>(&mut self, param: &Param<Tensor<D, Int>>) {
        self.parameter(param);
    }

    fn visit_bool<const D: usize>(&mut self, param: &Param<Tensor<D, Bool>>) {
        self.parameter(param);
    }
}
