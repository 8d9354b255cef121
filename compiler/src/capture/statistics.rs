//! Norms with running statistics (burn's `BatchNorm`), the one module with state that the forward pass
//! changes.
//!
//! In training mode such a norm writes new statistics into the module while the closure runs. A captured
//! step has no place for that: its ranks would train on, and evaluate with the statistics of the day of the
//! capture. burn refuses the write on the capture device, as it moves statistics that track gradients; that
//! refusal becomes an error with the norms' paths. In evaluation mode the same move would be refused, though
//! nothing is written: there the statistics are left on the side of the device without gradients.

use burn::module::{Flag, Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::Tensor;
use std::collections::HashMap;

use super::error::guarded;
use super::kind;

/// Where a walk through a module is, and what it has seen of the norm that it is in.
#[derive(Default)]
pub(super) struct Walk {
    /// Names from the root, each with the type of the module that holds it.
    path: Vec<(String, String)>,
    /// The norm that was last seen to be in evaluation mode; its mode comes before its statistics.
    evaluating: Option<String>,
}

impl Walk {
    /// Called by `enter_module` with its arguments.
    pub(super) fn enter(&mut self, name: &str, container: &str) {
        let container = container.rsplit(':').next().unwrap_or(container);
        self.path.push((name.to_owned(), container.to_owned()));
    }

    /// Called by `exit_module`.
    pub(super) fn exit(&mut self) {
        self.path.pop();
    }

    /// Called with every flag.
    pub(super) fn flag(&mut self, flag: &Param<Flag>) {
        if self.mode() {
            self.evaluating = (!flag.val().is_enabled()).then(|| self.module());
        }
    }

    /// Whether the tensor that is visited is a statistic of a norm in evaluation mode, which only reads it.
    pub(super) fn is_read_only(&self) -> bool {
        self.norm(&["running_mean", "running_var"]) && self.evaluating.as_ref() == Some(&self.module())
    }

    fn mode(&self) -> bool {
        self.norm(&["training"])
    }

    fn norm(&self, fields: &[&str]) -> bool {
        self.path.last().is_some_and(|(name, container)| container == "BatchNorm" && fields.contains(&name.as_str()))
    }

    /// Path of the module that holds what is visited.
    fn module(&self) -> String {
        let above = self.path.split_last().map_or(&[][..], |(_, above)| above);
        above.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(".")
    }
}

/// Paths of the norms in training mode, in burn's visiting order.
pub(super) fn updated<M: Module>(model: &M) -> Vec<String> {
    let mut visit = Visit::default();
    model.visit(&mut visit);
    visit.found
}

/// Path of a running state of the user's own that the closure has updated.
///
/// burn keeps an update apart until it is wanted, and takes it over when the module is put in evaluation mode. That is
/// done to a copy, which shares its running states with the model. The walk ends at the first tensor that refuses on the
/// capture device: the state itself, or a table that stands before it in a model that is captured by its shapes, where
/// this sees nothing.
pub(super) fn changed<M: Module>(model: &M) -> Option<String> {
    let before = ids(model);
    let copy = model.clone().map(&mut Untrack);
    let _ = guarded(|| copy.valid());
    let after = ids(model);
    let mut changed: Vec<String> = before.into_iter().filter(|(p, id)| after[p] != *id).map(|(p, _)| p).collect();
    changed.sort_unstable();
    changed.into_iter().next()
}

struct Untrack;

impl ModuleMapper for Untrack {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let (id, tensor, mapper) = param.consume();
        Param::from_mapped_value(id, kind::untrack(tensor), mapper)
    }
}

/// The recorded tensors of a module by path.
fn ids<M: Module>(model: &M) -> HashMap<String, u64> {
    let mut visit = Ids::default();
    model.visit(&mut visit);
    visit.found
}

#[derive(Default)]
struct Ids {
    path: Vec<String>,
    found: HashMap<String, u64>,
}

impl ModuleVisitor for Ids {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.found.insert(self.path.join("."), kind::id(&param.base()));
    }
}

#[derive(Default)]
struct Visit {
    walk: Walk,
    found: Vec<String>,
}

impl ModuleVisitor for Visit {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.walk.enter(name, container);
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.walk.exit();
    }

    fn visit_flag(&mut self, flag: &Param<Flag>) {
        if self.walk.mode() && flag.val().is_enabled() {
            self.found.push(self.walk.module());
        }
    }
}
