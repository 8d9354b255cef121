//! When two lists of axes divide a dimension alike.
//!
//! Each axis of a list cuts the chunk of the axis before it, so the order matters, and an axis of one rank cuts nothing.

use tpc_ir::{AxisId, Mesh};

/// The axes of a list that divide anything: all but those of one rank.
pub(super) fn dividing<'a>(axes: &'a [AxisId], mesh: &'a Mesh) -> impl Iterator<Item = AxisId> + 'a {
    axes.iter().copied().filter(|&axis| mesh.size(axis) > 1)
}

/// Whether two lists of axes give every rank the same part of a dimension.
pub(super) fn same_parts(a: &[AxisId], b: &[AxisId], mesh: &Mesh) -> bool {
    a == b || dividing(a, mesh).eq(dividing(b, mesh))
}
