//! How a module's arguments and results are prepared: the functions of PyTorch's reference page.
//!
//! A value that crosses a module's boundary has a *declared* layout, in which it is taken, and a
//! *desired* one, into which it is brought. Both are constraints on the value; what moves it from
//! one to the other is decided by the compiler. Nothing here touches the backward pass: it is
//! captured, and its redistributions follow from the forward ones.

use super::error::StyleError;
use super::layout::Layout;
use tpc_ir::Mesh;

/// What happens to one value at a module's boundary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prepare {
    /// The layout in which the value is taken; any if absent.
    pub declared: Option<Layout>,
    /// The layout into which it is brought.
    pub desired: Layout,
}

impl Prepare {
    /// From any layout to this one.
    pub const fn to(desired: Layout) -> Self {
        Prepare { declared: None, desired }
    }

    /// From one layout to another.
    pub const fn from(declared: Layout, desired: Layout) -> Self {
        Prepare { declared: Some(declared), desired }
    }

    /// The layouts in order.
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

/// Any placement becomes replicated: the input of a column-wise linear.
///
/// # Errors
/// A mesh of more than one dimension.
pub fn make_input_replicate_1d(mesh: &Mesh) -> Result<Prepare, StyleError> {
    one_dimensional(mesh, "input")?;
    Ok(Prepare::to(Layout::Replicate))
}

/// Sharded on the first dimension, gathered: the input of a pair under sequence parallelism.
///
/// # Errors
/// A mesh of more than one dimension.
pub fn make_input_reshard_replicate(mesh: &Mesh) -> Result<Prepare, StyleError> {
    one_dimensional(mesh, "input")?;
    Ok(Prepare::from(Layout::Shard(0), Layout::Replicate))
}

/// Any placement becomes sharded on a dimension.
///
/// # Errors
/// A mesh of more than one dimension.
pub fn make_input_shard_1d(mesh: &Mesh, dim: isize) -> Result<Prepare, StyleError> {
    one_dimensional(mesh, "input")?;
    Ok(Prepare::to(Layout::Shard(dim)))
}

/// Any placement becomes sharded on the last dimension: the input of a row-wise linear.
///
/// # Errors
/// A mesh of more than one dimension.
pub fn make_input_shard_1d_last_dim(mesh: &Mesh) -> Result<Prepare, StyleError> {
    make_input_shard_1d(mesh, -1)
}

/// A sharded result is gathered, a partial one reduced.
///
/// # Errors
/// A mesh of more than one dimension.
pub fn make_output_replicate_1d(mesh: &Mesh) -> Result<Prepare, StyleError> {
    one_dimensional(mesh, "output")?;
    Ok(Prepare::to(Layout::Replicate))
}

/// A partial result is reduced and scattered along the first dimension.
///
/// # Errors
/// A mesh of more than one dimension.
pub fn make_output_reshard_tensor(mesh: &Mesh) -> Result<Prepare, StyleError> {
    make_output_shard_1d(mesh, 0)
}

/// A partial result is reduced and scattered, a replicated one sliced, one that is sharded elsewhere
/// exchanged.
///
/// # Errors
/// A mesh of more than one dimension.
pub fn make_output_shard_1d(mesh: &Mesh, dim: isize) -> Result<Prepare, StyleError> {
    one_dimensional(mesh, "output")?;
    Ok(Prepare::to(Layout::Shard(dim)))
}

/// A sharded result is gathered, a partial one reduced: what leaves the module is a plain tensor.
///
/// # Errors
/// A mesh of more than one dimension.
pub fn make_output_tensor(mesh: &Mesh) -> Result<Prepare, StyleError> {
    make_output_replicate_1d(mesh)
}

/// The prepare function of that name, for plan files; a dimension stands behind a colon, as in
/// `make_output_shard_1d:1`.
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
