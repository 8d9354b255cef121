//! Running states: tensors of a module that the forward pass of a training step updates, such as the running statistics
//! of burn's `BatchNorm`.
//!
//! A module updates such a state while the closure runs. burn keeps the update apart until the module is put in another
//! mode; then the state holds the recorded tensor that the update computed. That tensor is an output of the captured step
//! which takes the place of the parameter of the same path, as an optimizer's update does.
//!
//! A `BatchNorm` moves its statistics to the device of its input before it updates them, which burn refuses for tensors of
//! the autodiff side of the capture device. So the statistics are on the other side, from which nothing is moved. The
//! update itself is on the autodiff side: a norm that runs a second time in one step would move that, and is refused.

use burn::module::{Flag, Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::Tensor;
use std::collections::{BTreeMap, HashSet};

use super::error::guarded;
use super::kind;
use super::position::{self, Position};
use tpc_ir::ModulePath;

/// Where a walk through a module is.
#[derive(Default)]
pub(super) struct Walk {
    position: Position,
    /// The types of the modules that hold what was entered.
    holders: Vec<String>,
}

impl Walk {
    /// Called by `enter_module` with its arguments.
    pub(super) fn enter(&mut self, name: &str, container: &str) {
        self.position.enter(name, container);
        self.holders.push(position::container(container).1.to_owned());
    }

    /// Called by `exit_module`.
    pub(super) fn exit(&mut self) {
        self.position.exit();
        self.holders.pop();
    }

    /// Whether the tensor that is visited is a running statistic of a `BatchNorm`.
    pub(super) fn is_statistic(&self) -> bool {
        self.is_field(&["running_mean", "running_var"])
    }

    /// Whether the flag that is visited is the mode of a `BatchNorm`.
    fn is_mode(&self) -> bool {
        self.is_field(&["training"])
    }

    fn is_field(&self, of_norm: &[&str]) -> bool {
        let of_batch_norm = self.holders.last().is_some_and(|holder| holder == "BatchNorm");
        of_batch_norm && self.position.name().is_some_and(|name| of_norm.contains(&name))
    }

    /// Path of the module that holds what is visited.
    fn holder(&self) -> ModulePath {
        self.path().holder()
    }

    /// Path of what is visited.
    fn path(&self) -> ModulePath {
        self.position.path()
    }
}

/// The tensors of a recorded module by path.
#[derive(Default)]
pub(super) struct Tensors {
    walk: Walk,
    ids: BTreeMap<ModulePath, u64>,
    /// The running statistics among them, with the paths of their norms.
    statistics: BTreeMap<ModulePath, ModulePath>,
}

impl Tensors {
    /// Those that a module holds at this moment.
    pub(super) fn of<M: Module>(model: &M) -> Self {
        let mut tensors = Tensors::default();
        model.visit(&mut tensors);
        tensors
    }

    /// Takes over the updates of running states, and gives the path and the new tensor of each state that has one.
    ///
    /// Putting a module in evaluation mode takes the updates over. That is done to a copy, which shares its running states
    /// with the model. burn refuses the mode's change of a computed tensor, so that each walk ends at the first state that
    /// has an update. In a model that is captured by its shapes, a walk also ends at a tensor that is no parameter; the
    /// updates of states after that tensor are not found.
    pub(super) fn updated<M: Module>(&self, model: &M) -> BTreeMap<ModulePath, u64> {
        loop {
            let before = Tensors::of(model);
            let copy = model.clone().map(&mut Untrack);
            // The refusal is expected.
            let _ = guarded(|| copy.valid());
            let after = Tensors::of(model);
            if after.ids == before.ids {
                return after.ids.into_iter().filter(|(path, id)| self.ids[path] != *id).collect();
            }
        }
    }

    /// The norms among these, which are in training mode, whose statistics are read without an update that was found.
    pub(super) fn missed(
        &self,
        training: &[ModulePath],
        updated: &BTreeMap<ModulePath, u64>,
        read: &HashSet<u64>,
    ) -> Vec<ModulePath> {
        let missed = |path: &ModulePath| !updated.contains_key(path) && read.contains(&self.ids[path]);
        let norms = self.statistics.iter().filter(|(path, norm)| training.contains(norm) && missed(path));
        let mut norms: Vec<ModulePath> = norms.map(|(_, norm)| norm.clone()).collect();
        norms.dedup();
        norms
    }
}

impl ModuleVisitor for Tensors {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.walk.enter(name, container);
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.walk.exit();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if self.walk.is_statistic() {
            self.statistics.insert(self.walk.path(), self.walk.holder());
        }
        self.ids.insert(self.walk.path(), kind::id(&param.base()));
    }
}

/// Paths of the norms that normalize by the statistics of the batch, in burn's visiting order.
pub(super) fn training<M: Module>(model: &M) -> Vec<ModulePath> {
    let mut modes = Modes::default();
    model.visit(&mut modes);
    modes.training
}

#[derive(Default)]
struct Modes {
    walk: Walk,
    training: Vec<ModulePath>,
}

impl ModuleVisitor for Modes {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.walk.enter(name, container);
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.walk.exit();
    }

    fn visit_flag(&mut self, flag: &Param<Flag>) {
        if self.walk.is_mode() && flag.val().is_enabled() {
            self.training.push(self.walk.holder());
        }
    }
}

struct Untrack;

impl ModuleMapper for Untrack {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let (id, tensor, mapper) = param.consume();
        Param::from_mapped_value(id, kind::untrack(tensor), mapper)
    }
}
