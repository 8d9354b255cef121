//! How the arguments and results of a module are prepared: the functions of PyTorch's reference page.
//!
//! A value at the boundary of a module has a *declared* layout, which it must have there, and a *desired* one, to which
//! it is redistributed. Both are constraints on the value; the compiler decides how to redistribute it. The backward
//! pass is not constrained: it is captured, and its redistributions follow from the forward ones.

use super::error::StyleError;
use super::layout::Layout;
use tpc_ir::Mesh;

/// The preparation of one value at the boundary of a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prepare {
    /// The layout that the value must have; `None` for any.
    pub declared: Option<Layout>,
    /// The layout to which it is redistributed.
    pub desired: Layout,
}

impl Prepare {
    /// The preparation from any layout to the desired one.
    pub const fn to(desired: Layout) -> Self {
        Prepare { declared: None, desired }
    }

    /// The preparation from a declared layout to the desired one.
    pub const fn from(declared: Layout, desired: Layout) -> Self {
        Prepare { declared: Some(declared), desired }
    }

    /// The layouts, in order.
    pub fn chain(&self) -> impl Iterator<Item = Layout> {
        self.declared.into_iter().chain([self.desired])
    }
}

fn one_dimensional(mesh: &Mesh, what: &'static str) -> Result<(), StyleError> {
    match mesh.axes().len() {
        0 | 1 => Ok(()),
        dims => Err(StyleError::MeshDims { dims, what }),
    }
}

/// Replicates a value of any placement, as for the input of a column-wise linear.
///
/// # Errors
/// The mesh has more than one dimension.
pub fn make_input_replicate_1d(mesh: &Mesh) -> Result<Prepare, StyleError> {
    one_dimensional(mesh, "input")?;
    Ok(Prepare::to(Layout::Replicate))
}

/// Gathers a value that is sharded on the first dimension, as for the input of a pair under sequence parallelism.
///
/// # Errors
/// The mesh has more than one dimension.
pub fn make_input_reshard_replicate(mesh: &Mesh) -> Result<Prepare, StyleError> {
    one_dimensional(mesh, "input")?;
    Ok(Prepare::from(Layout::Shard(0), Layout::Replicate))
}

/// Shards a value of any placement on a dimension.
///
/// # Errors
/// The mesh has more than one dimension.
pub fn make_input_shard_1d(mesh: &Mesh, dim: isize) -> Result<Prepare, StyleError> {
    one_dimensional(mesh, "input")?;
    Ok(Prepare::to(Layout::Shard(dim)))
}

/// Shards a value of any placement on the last dimension, as for the input of a row-wise linear.
///
/// # Errors
/// The mesh has more than one dimension.
pub fn make_input_shard_1d_last_dim(mesh: &Mesh) -> Result<Prepare, StyleError> {
    make_input_shard_1d(mesh, -1)
}

/// Gathers a sharded result, or reduces a partial one.
///
/// # Errors
/// The mesh has more than one dimension.
pub fn make_output_replicate_1d(mesh: &Mesh) -> Result<Prepare, StyleError> {
    one_dimensional(mesh, "output")?;
    Ok(Prepare::to(Layout::Replicate))
}

/// Reduces a partial result and scatters it along the first dimension.
///
/// # Errors
/// The mesh has more than one dimension.
pub fn make_output_reshard_tensor(mesh: &Mesh) -> Result<Prepare, StyleError> {
    make_output_shard_1d(mesh, 0)
}

/// Reduces and scatters a partial result, slices a replicated one, or redistributes one that is sharded on another
/// dimension.
///
/// # Errors
/// The mesh has more than one dimension.
pub fn make_output_shard_1d(mesh: &Mesh, dim: isize) -> Result<Prepare, StyleError> {
    one_dimensional(mesh, "output")?;
    Ok(Prepare::to(Layout::Shard(dim)))
}

/// Gathers a sharded result, or reduces a partial one, so that the module returns a plain tensor.
///
/// # Errors
/// The mesh has more than one dimension.
pub fn make_output_tensor(mesh: &Mesh) -> Result<Prepare, StyleError> {
    make_output_replicate_1d(mesh)
}

/// The prepare function with a name, for plan files. A dimension follows after a colon, as in `make_output_shard_1d:1`.
pub fn named(name: &str, mesh: &Mesh) -> Option<Result<Prepare, StyleError>> {
    let (name, dim) = match name.split_once(':') {
        Some((name, dim)) => (name, Some(dim.trim().parse::<isize>().ok()?)),
        None => (name, None),
    };
    let shard = dim.unwrap_or(0);
    Some(match (name, dim) {
        ("make_input_shard_1d", _) => make_input_shard_1d(mesh, shard),
        ("make_output_shard_1d", _) => make_output_shard_1d(mesh, shard),
        (_, Some(_)) => return None,
        ("make_input_replicate_1d", _) => make_input_replicate_1d(mesh),
        ("make_input_reshard_replicate", _) => make_input_reshard_replicate(mesh),
        ("make_input_shard_1d_last_dim", _) => make_input_shard_1d_last_dim(mesh),
        ("make_output_replicate_1d", _) => make_output_replicate_1d(mesh),
        ("make_output_reshard_tensor", _) => make_output_reshard_tensor(mesh),
        ("make_output_tensor", _) => make_output_tensor(mesh),
        _ => return None,
    })
}
