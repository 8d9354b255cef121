//! Layouts of the arguments and results of a module (PyTorch's `PrepareModuleInput`, `PrepareModuleOutput` and
//! `PrepareModuleInputOutput`).

use super::error::StyleError;
use super::layout::Layout;
use super::prepare::Prepare;
use super::style::{Module, ParallelStyle, Placements};
use tpc_ir::ModulePath;

/// Declared and desired layouts of the tensor arguments of a module, in order. `None` does not constrain an argument.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PrepareModuleInput {
    /// The layout that each argument must have.
    pub input_layouts: Vec<Option<Layout>>,
    /// The layout to which each is redistributed.
    pub desired_input_layouts: Vec<Option<Layout>>,
}

/// Declared and desired layouts of the tensor results of a module, in order. `None` does not constrain a result.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PrepareModuleOutput {
    /// The layout that each result must have.
    pub output_layouts: Vec<Option<Layout>>,
    /// The layout to which each is redistributed.
    pub desired_output_layouts: Vec<Option<Layout>>,
}

/// Layouts of the arguments and the results of a module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PrepareModuleInputOutput {
    /// The arguments.
    pub inputs: PrepareModuleInput,
    /// The results.
    pub outputs: PrepareModuleOutput,
}

/// The preparation of every position that has a layout in one of the lists.
fn prepared(declared: &[Option<Layout>], desired: &[Option<Layout>]) -> Vec<(usize, Prepare)> {
    let at = |list: &[Option<Layout>], i: usize| list.get(i).copied().flatten();
    (0..declared.len().max(desired.len()))
        .filter_map(|i| match (at(declared, i), at(desired, i)) {
            (Some(declared), Some(desired)) => Some((i, Prepare::from(declared, desired))),
            (None, Some(layout)) | (Some(layout), None) => Some((i, Prepare::to(layout))),
            (None, None) => None,
        })
        .collect()
}

impl PrepareModuleInput {
    fn demand(&self, path: &ModulePath, to: &mut Placements) {
        for (i, prepare) in prepared(&self.input_layouts, &self.desired_input_layouts) {
            to.argument(path, i, prepare);
        }
    }
}

impl PrepareModuleOutput {
    fn demand(&self, path: &ModulePath, to: &mut Placements) {
        for (i, prepare) in prepared(&self.output_layouts, &self.desired_output_layouts) {
            to.result(path, i, prepare);
        }
    }
}

macro_rules! style {
    ($name:ident, $accepts:literal, |$style:ident, $path:ident, $to:ident| $demand:block) => {
        impl ParallelStyle for $name {
            fn name(&self) -> &'static str {
                stringify!($name)
            }

            fn accepts(&self) -> &'static str {
                $accepts
            }

            fn may_tell_paths_apart(&self) -> bool {
                false
            }

            fn demand(&self, module: &Module<'_>, $to: &mut Placements) -> Result<(), StyleError> {
                let ($style, $path) = (self, module.path());
                $demand
                Ok(())
            }
        }
    };
}

style!(PrepareModuleInput, "a module with tensor arguments, and at least one layout", |style, path, to| {
    style.demand(path, to);
});
style!(PrepareModuleOutput, "a module with tensor results, and at least one layout", |style, path, to| {
    style.demand(path, to);
});
style!(PrepareModuleInputOutput, "a module with tensors, and at least one layout", |style, path, to| {
    style.inputs.demand(path, to);
    style.outputs.demand(path, to);
});
