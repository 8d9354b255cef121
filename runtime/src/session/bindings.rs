//! Requirements on a program's inputs and outputs, and their names in messages.

use crate::device::extent;
use crate::error::RuntimeError;
use tpc_ir::OutputKind;
use tpc_ir::program::RankProgram;

/// Checks that all inputs and outputs are dense boxes in the arena.
pub(super) fn check_bindings(program: &RankProgram) -> Result<(), RuntimeError> {
    let inputs = program.inputs.iter().map(|i| (i.name.clone(), &i.binding));
    let outputs = program.outputs.iter().map(|o| (output_name(&o.kind), &o.binding));
    for (name, b) in inputs.chain(outputs) {
        let fits = b.global.len() == b.start.len()
            && b.global.len() == b.view.shape.len()
            && (0..b.global.len()).all(|d| b.view.shape[d] == 0 || b.start[d] + b.view.shape[d] <= b.global[d])
            && b.layout.iter().product::<usize>() == b.global.iter().product::<usize>();
        let checked = if !fits {
            Err(format!("box {:?} at {:?} of {:?} (layout {:?})", b.view.shape, b.start, b.global, b.layout))
        } else if !b.view.is_dense() {
            Err("its view is not dense".into())
        } else {
            extent::resolve(program.arena_bytes, &program.buffers, &b.view, &b.view.shape, &b.view.strides).map(drop)
        };
        checked.map_err(|e| RuntimeError::Launch(format!("rank {}, `{name}`: {e}", program.rank)))?;
    }
    Ok(())
}

/// The name of an output in messages.
pub(crate) fn output_name(kind: &OutputKind) -> String {
    match kind {
        OutputKind::Result(name) => format!("result {name}"),
        OutputKind::Loss => "loss".into(),
        OutputKind::Gradient(name) => format!("gradient {name}"),
        OutputKind::Update(name) => format!("update {name}"),
    }
}
