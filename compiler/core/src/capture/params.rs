//! The parameters of a module: their paths, and how they move to the capture device.

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

/// A module of the module tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModuleInfo {
    /// Path from the root, which has the empty path.
    pub path: ModulePath,
    /// The name of its type, such as `Linear`, `RmsNorm`, the name of a user-defined struct, `Vec`, `Array` or `Tuple`.
    pub container: String,
    /// Paths of the parameters that it holds directly.
    pub parameters: Vec<ModulePath>,
}

/// The parameters of the recorded module.
#[derive(Clone, Debug)]
pub(super) struct Parameters {
    pub(super) list: Vec<ParameterInfo>,
    /// `(alias, path)`: further paths that hold a parameter.
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
    /// How its initial value is computed, if that was recorded.
    pub(super) initialization: Option<Initialization>,
    /// The unit that it belongs to.
    pub(super) unit: Option<UnitId>,
}

/// The recorded initialization of a parameter.
#[derive(Clone, Copy, Debug)]
pub(super) enum Initialization {
    /// The parameter is lazy: the ids that its initializer recorded.
    Recorded(u64, u64),
    /// The module computed the parameter while it was built: the tensor that the leaf replaced.
    Tensor(u64),
}

/// Replaces every parameter by a placeholder on the capture device, without moving its data.
pub(super) fn with_placeholders<M: Module>(model: M, device: &Device, training: bool) -> M {
    // Parameters first, so that `to_device` moves only other tensors, such as the tables of a positional encoding.
    let mut placeholders =
        Placeholders { device: device.clone(), training, seen: HashMap::new(), trainable: HashMap::new() };
    let model = model.map(&mut placeholders).to_device(device);
    if !training {
        return model;
    }
    model.map(&mut Track { trainable: placeholders.trainable, seen: HashMap::new(), walk: Walk::default() })
}

struct Placeholders {
    device: Device,
    training: bool,
    seen: HashMap<ParamId, Box<dyn Any>>,
    trainable: HashMap<ParamId, bool>,
}

impl Placeholders {
    /// The placeholder of a parameter, one for each id. burn's own `to_device` would untie shared weights.
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

impl ModuleMapper for Placeholders {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if self.training {
            // A plain tensor does not show whether its parameter is frozen; a copy in training mode does.
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

/// Replaces `Module::train`, which rejects captured tensors.
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
        // Tied parameters must be a single leaf of the tape, so that their gradients are summed.
        let tracked = self.seen.entry(id).or_insert_with(|| -> Box<dyn Any> {
            let tensor = kind::Kind::track(tensor);
            Box::new(if trainable { tensor.require_grad() } else { tensor })
        });
        let tensor = tracked.downcast_ref::<Tensor<D>>().expect("tied parameters have one type").clone();
        Param::from_mapped_value(id, tensor, mapper)
    }
}

/// Turns the parameters that a module on the capture device computed while it was built, for example by casting, into
/// leaves. Lazy parameters are already leaves.
///
/// Returns the model and, for each leaf, the tensor that it replaced, if that was recorded.
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

/// Lists the parameters of a module on the capture device and initializes lazy ones. `replaced` is the result of
/// [`make_leaves`].
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

/// The initial values of the wanted parameters of a module on a computing device, by path. Other lazy parameters stay
/// uninitialized.
pub(super) fn values_of<M: Module>(model: &M, wanted: &HashSet<&str>) -> HashMap<String, TensorData> {
    let mut visit = Visit { values: Some(HashMap::new()), wanted: Some(wanted), ..Visit::default() };
    model.visit(&mut visit);
    visit.values.unwrap_or_default()
}

#[derive(Default)]
struct Visit<'a> {
    /// `Some` if the parameters are on the capture device.
    session: Option<&'a Session>,
    /// The tensors that leaves replaced.
    replaced: HashMap<u64, u64>,
    /// The data collected so far, if data is requested.
    values: Option<HashMap<String, TensorData>>,
    /// The parameters whose data is wanted; `None` means all.
    wanted: Option<&'a HashSet<&'a str>>,
    position: Position,
    first: HashMap<ParamId, ModulePath>,
    list: Vec<ParameterInfo>,
    aliases: Vec<(ModulePath, ModulePath)>,
    modules: Vec<ModuleInfo>,
    /// Index of each path in `modules`.
    known: HashMap<ModulePath, usize>,
    /// The module tree with the indices of the parameters in `list`.
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
