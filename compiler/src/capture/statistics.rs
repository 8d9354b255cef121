//! Norms with running statistics (burn's `BatchNorm`), the one module with state that the forward pass
//! changes.
//!
//! In training mode such a norm writes new statistics into the module while the closure runs. A captured
//! step has no place for that: its ranks would train on, and evaluate with the statistics of the day of the
//! capture. burn refuses the write on the capture device, as it moves statistics that track gradients; that
//! refusal becomes an error with the norms' paths. In evaluation mode the same move would be refused, though
//! nothing is written: there the statistics are left on the side of the device without gradients.

use burn::module::{Flag, Module, ModuleVisitor, Param};

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
