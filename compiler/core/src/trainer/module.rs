//! Copies the ranks' parameters to a module of the user.

use super::error::TrainerError;
use crate::data;
use crate::error::Error;
use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId, Parameter};
use burn::tensor::{Bool, DType as BurnDType, Int, Tensor, TensorData};
use std::collections::{HashMap, HashSet};
use tpc_ir::program::InputBinding;
use tpc_ir::{DType, InputKind, ModulePath};
use tpc_runtime::Session;

use crate::capture::{Kind, Position};

/// Writes every parameter into a module, by path.
pub(super) fn load<M: Module>(
    session: &Session,
    aliases: &[(ModulePath, ModulePath)],
    model: &mut M,
) -> Result<(), Error> {
    check(session, aliases, model)?;
    let mut load = Load { session, aliases, position: Position::default(), read: HashMap::new(), failed: None };
    let loaded = model.clone().map(&mut load);
    match load.failed {
        Some(error) => Err(error),
        None => {
            *model = loaded;
            Ok(())
        }
    }
}

/// The parameters of a session's program.
pub(super) fn parameters(session: &Session) -> impl Iterator<Item = &InputBinding> {
    session.interface().inputs.iter().filter(|input| input.kind == InputKind::Parameter)
}

/// The path of a parameter in the program.
pub(super) fn known<'a>(aliases: &'a [(ModulePath, ModulePath)], path: &'a ModulePath) -> &'a ModulePath {
    aliases.iter().find(|(alias, _)| alias == path).map_or(path, |(_, known)| known)
}

/// Checks that a module has exactly the parameters of the program.
fn check<M: Module>(session: &Session, aliases: &[(ModulePath, ModulePath)], model: &M) -> Result<(), TrainerError> {
    let mut listed = List::default();
    model.visit(&mut listed);
    let other = |problem: String| Err(TrainerError::Architecture(problem));
    let mut found: HashSet<String> = HashSet::new();
    for held in &listed.held {
        let name = known(aliases, &held.path).to_string();
        let Some(trained) = parameters(session).find(|input| input.name == name) else {
            return other(format!("it has a parameter `{}`, which the trained one lacks", held.path));
        };
        found.insert(name);
        let binding = &trained.binding;
        if held.shape != binding.layout || !is_same(held.dtype, binding.view.dtype) {
            let dtype = data::name(held.dtype).unwrap_or("another type");
            let trained = format!("{}{:?}", binding.view.dtype, binding.layout);
            return other(format!("its `{}` is {dtype}{:?}, the trained one is {trained}", held.path, held.shape));
        }
    }
    match parameters(session).find(|input| !found.contains(&input.name)) {
        Some(missing) => other(format!("it has no parameter `{}`, which the trained one has", missing.name)),
        None => Ok(()),
    }
}

fn is_same(burn: BurnDType, dtype: DType) -> bool {
    matches!((burn, dtype), (BurnDType::Bool(_), DType::Bool)) || data::of_burn(burn) == Some(dtype)
}

/// The parameters of a module.
#[derive(Default)]
struct List {
    position: Position,
    held: Vec<Held>,
}

struct Held {
    path: ModulePath,
    shape: Vec<usize>,
    dtype: BurnDType,
}

impl List {
    fn hold<const D: usize, K: Kind>(&mut self, param: &Param<Tensor<D, K>>)
    where
        Tensor<D, K>: Parameter,
    {
        let tensor = param.base();
        self.held.push(Held { path: self.position.path(), shape: tensor.dims().to_vec(), dtype: tensor.dtype() });
    }
}

impl ModuleVisitor for List {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.position.enter(name, container);
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.position.exit();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.hold(param);
    }

    fn visit_int<const D: usize>(&mut self, param: &Param<Tensor<D, Int>>) {
        self.hold(param);
    }

    fn visit_bool<const D: usize>(&mut self, param: &Param<Tensor<D, Bool>>) {
        self.hold(param);
    }
}

/// Replaces the values of a module's parameters.
struct Load<'a> {
    session: &'a Session,
    aliases: &'a [(ModulePath, ModulePath)],
    position: Position,
    /// The values of tied parameters, by their common id, so that all processes read the same tensors.
    read: HashMap<ParamId, TensorData>,
    failed: Option<Error>,
}

impl Load<'_> {
    /// The value of the parameter at the current path.
    fn value(&mut self, id: ParamId) -> Option<TensorData> {
        if let Some(data) = self.read.get(&id) {
            return Some(data.clone());
        }
        let path = self.position.path();
        let name = known(self.aliases, &path).to_string();
        let input = parameters(self.session).find(|input| input.name == name)?;
        match self.session.read_input(input) {
            Ok(bytes) => {
                let data = data::of_bytes(input.binding.view.dtype, &input.binding.layout, bytes);
                if self.aliases.iter().any(|(alias, known)| *alias == path || *known == path) {
                    self.read.insert(id, data.clone());
                }
                Some(data)
            }
            Err(error) => {
                self.failed.get_or_insert(error.into());
                None
            }
        }
    }

    fn replace<const D: usize, K: Kind>(&mut self, param: Param<Tensor<D, K>>) -> Param<Tensor<D, K>>
    where
        Tensor<D, K>: Parameter,
    {
        if self.failed.is_some() {
            return param;
        }
        let Some(data) = self.value(param.id) else { return param };
        let (id, old, mapper) = param.consume();
        let new = K::with_data::<D>(data, &old.device());
        let new = Parameter::set_require_grad(new, Parameter::is_require_grad(&old));
        Param::from_mapped_value(id, new, mapper)
    }
}

impl ModuleMapper for Load<'_> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.position.enter(name, container);
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.position.exit();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        self.replace(param)
    }

    fn map_int<const D: usize>(&mut self, param: Param<Tensor<D, Int>>) -> Param<Tensor<D, Int>> {
        self.replace(param)
    }

    fn map_bool<const D: usize>(&mut self, param: Param<Tensor<D, Bool>>) -> Param<Tensor<D, Bool>> {
        self.replace(param)
    }
}
