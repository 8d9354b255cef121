//! Takes an imported program to where its values can be placed.
//!
//! Before: an imported graph, and a plan. After: the canonical graph, with the options of a step applied, and what the plan
//! demands of it.

use crate::compile_options::CompileOptions;
use crate::error::Error;
use crate::place::Placed;
use crate::shared_session::{SharedSession, parallelize_like};
use tpc_ir::size::addressable;
use tpc_ir::{Graph, Mesh, OutputKind};
use tpc_passes::check::well_formed;
use tpc_passes::kept::place_caches;
use tpc_passes::options::{on_captured, on_logical};
use tpc_passes::styles::{Annotations, Plan, parallelize_module};

/// The stages of a program that all ranks have in common.
pub(crate) struct Planned {
    pub(crate) captured: Graph,
    pub(crate) logical: Graph,
    pub(crate) annotations: Annotations,
    pub(crate) placed: Placed,
}

/// A canonical program, and what a plan demands of it.
pub(crate) struct Prepared {
    pub(crate) captured: Graph,
    pub(crate) logical: Graph,
    pub(crate) annotations: Annotations,
}

/// Takes a program to where its values can be placed.
///
/// # Errors
/// A plan or an option that does not fit; a tensor whose size overflows.
pub(crate) fn prepare(
    captured: Graph,
    mesh: &Mesh,
    plan: &Plan,
    options: &CompileOptions,
    session: &SharedSession<'_>,
) -> Result<Prepared, Error> {
    addressable(&captured)?;
    let mut captured = on_captured(&captured, &options.step)?.into_owned();
    well_formed(&captured)?;
    // The plan needs to know the gradient of each parameter, even if no output reads it.
    let (mut logical, annotations) = match session.placements {
        None => parallelize_module(&captured, mesh, plan.clone(), None)?,
        Some(first) => parallelize_like(first, &captured, mesh, plan)?,
    };
    if !options.gradients {
        captured.outputs.retain(|o| !matches!(o.kind, OutputKind::Gradient(_)));
        logical.outputs.retain(|o| !matches!(o.kind, OutputKind::Gradient(_)));
    }
    let (logical, mut annotations) = on_logical(logical, annotations, &options.step)?;
    well_formed(&logical)?;
    if session.placements.is_none() {
        place_caches(&logical, &mut annotations, &options.target);
    }
    Ok(Prepared { captured, logical, annotations })
}
