//! Running states: tensors of a module that the forward pass of a training step updates, such as the running statistics
//! of burn's `BatchNorm`.
//!
//! A module updates such a state while the closure runs. burn stores the update separately until the mode of the module
//! changes; from then on the state holds the recorded tensor that the update computed. That tensor is an output of the
//! captured step and replaces the parameter with the same path, like an update by the optimizer.
//!
//! A `BatchNorm` moves its statistics to the device of its input before it updates them, which burn rejects for
//! autodiff tensors of the capture device. The statistics are therefore tensors without autodiff, for which nothing has
//! to be moved. The update itself is an autodiff tensor, which a norm that runs a second time in one step would move;
//! such a norm is rejected.

use burn::module::{Flag, Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::Tensor;
use std::collections::{BTreeMap, HashSet};

use super::error::guarded;
use super::kind;
use super::position::{self, Position};
use tpc_ir::ModulePath;

/// The current position of a traversal of a module.
#[derive(Default)]
pub(super) struct Walk {
    position: Position,
    /// The types of the modules that contain the entered fields.
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

    /// Whether the visited tensor is a running statistic of a `BatchNorm`.
    pub(super) fn is_statistic(&self) -> bool {
        self.is_field(&["running_mean", "running_var"])
    }

    /// Whether the visited flag is the mode of a `BatchNorm`.
    fn is_mode(&self) -> bool {
        self.is_field(&["training"])
    }

    fn is_field(&self, of_norm: &[&str]) -> bool {
        let of_batch_norm = self.holders.last().is_some_and(|holder| holder == "BatchNorm");
        of_batch_norm && self.position.name().is_some_and(|name| of_norm.contains(&name))
    }

    /// Path of the module that contains the visited field.
    fn holder(&self) -> ModulePath {
        self.path().holder()
    }

    /// Path of the visited field.
    fn path(&self) -> ModulePath {
        self.position.path()
    }
}

/// The tensors of a recorded module, by path.
#[derive(Default)]
pub(super) struct Tensors {
    walk: Walk,
    ids: BTreeMap<ModulePath, u64>,
    /// The paths of the running statistics among them, with those of their norms.
    statistics: BTreeMap<ModulePath, ModulePath>,
}

impl Tensors {
    /// The tensors that a module holds at this moment.
    pub(super) fn of<M: Module>(model: &M) -> Self {
        let mut tensors = Tensors::default();
        model.visit(&mut tensors);
        tensors
    }

    /// Applies the updates of running states, and returns the path and the new tensor of each updated state.
    ///
    /// Changing a module to evaluation mode applies the updates. This is done to a copy, which shares its running
    /// states with the model. burn does not allow the change of mode for a computed tensor, so each traversal ends at
    /// the first state that has an update. If only the shapes of the model are captured, a traversal also ends at a
    /// tensor that is not a parameter; updates of states after that tensor are not found.
    pub(super) fn updated<M: Module>(&self, model: &M) -> BTreeMap<ModulePath, u64> {
        loop {
            let before = Tensors::of(model);
            let copy = model.clone().map(&mut Untrack);
            // The error is expected.
            let _ = guarded(|| copy.valid());
            let after = Tensors::of(model);
            if after.ids == before.ids {
                return after.ids.into_iter().filter(|(path, id)| self.ids[path] != *id).collect();
            }
        }
    }

    /// The norms in training mode, given by `training`, whose statistics are read but for which no update was found.
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

/// Paths of the norms that normalize with the statistics of the batch, in burn's visiting order.
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
