//! Where a value lies on the mesh: the placement part of its type.
//!
//! A dimension lists the axes that shard it, major to minor, each axis cutting its parent's chunk
//! in ceil-sized pieces (10 over 2×2 is 3, 2, 3, 2). A value can also be *partial* over some axes:
//! each rank then holds a term, and the value is their sum (or maximum, ...). The notation follows
//! Shardy (`tensor<8@dp, ...>`) and DTensor's `Partial`.

use crate::DType;
use crate::mesh::{AxisId, AxisSet, Mesh};
use crate::op::ReduceOp;
use std::fmt::Write as _;

/// The axes over which a value is still to be reduced, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Partial {
    /// How the ranks' terms combine.
    pub op: ReduceOp,
    /// Over which axes; never empty.
    pub axes: AxisSet,
}

/// How a value is distributed: per dimension the axes that shard it, and the partial axes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Sharding {
    /// For every dimension the axes that shard it, major to minor.
    pub dims: Vec<Vec<AxisId>>,
    /// The axes over which the value is an unreduced partial.
    pub partial: Option<Partial>,
}

impl Sharding {
    /// Every rank holds the whole value.
    pub fn replicated(rank: usize) -> Self {
        Sharding { dims: vec![Vec::new(); rank], partial: None }
    }

    /// Whether every rank holds the whole value.
    pub fn is_replicated(&self) -> bool {
        self.partial.is_none() && self.dims.iter().all(Vec::is_empty)
    }

    /// The axes that shard some dimension.
    pub fn sharded_axes(&self) -> AxisSet {
        self.dims.iter().flatten().copied().collect()
    }

    /// The axes over which the value is partial.
    pub fn partial_axes(&self) -> AxisSet {
        self.partial.map_or(AxisSet::EMPTY, |p| p.axes)
    }

    /// Whether every rank of the axis holds the same local value.
    pub fn is_invariant(&self, axis: AxisId) -> bool {
        !self.sharded_axes().union(self.partial_axes()).contains(axis)
    }

    /// The dimension that `axis` shards.
    pub fn dim_of(&self, axis: AxisId) -> Option<usize> {
        self.dims.iter().position(|d| d.contains(&axis))
    }

    /// This sharding, no longer partial over `axes`.
    #[must_use]
    pub fn reduced(&self, axes: AxisSet) -> Self {
        let rest = self.partial_axes().minus(axes);
        let partial = self.partial.filter(|_| !rest.is_empty()).map(|p| Partial { axes: rest, ..p });
        Sharding { dims: self.dims.clone(), partial }
    }

    /// This sharding, partial over `axes` too. `None` if it is partial under another operator.
    pub fn with_partial(&self, op: ReduceOp, axes: AxisSet) -> Option<Self> {
        if axes.is_empty() {
            return Some(self.clone());
        }
        if self.partial.is_some_and(|p| p.op != op) {
            return None;
        }
        let axes = axes.union(self.partial_axes());
        Some(Sharding { dims: self.dims.clone(), partial: Some(Partial { op, axes }) })
    }

    /// This sharding with `axis` as the new minor-most axis of dimension `dim`.
    #[must_use]
    pub fn pushed(&self, dim: usize, axis: AxisId) -> Self {
        let mut s = self.clone();
        s.dims[dim].push(axis);
        s
    }

    /// This sharding without the minor-most axis of `dim`, if that axis is `axis`.
    pub fn popped(&self, dim: usize, axis: AxisId) -> Option<Self> {
        let mut s = self.clone();
        (s.dims.get_mut(dim)?.pop()? == axis).then_some(s)
    }
}

/// The type of a value: element type, global shape, placement.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Type {
    /// Element type.
    pub dtype: DType,
    /// Global shape, in elements.
    pub shape: Vec<usize>,
    /// Placement on the mesh. Of a logical (unplaced) graph: replicated.
    pub sharding: Sharding,
}

/// The piece of one dimension that a rank holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// First global index.
    pub offset: usize,
    /// Number of indices, possibly 0.
    pub len: usize,
}

/// The chunk that a rank holds of a dimension of `size` elements sharded by `axes`, major to minor.
pub fn chunk(size: usize, axes: &[AxisId], mesh: &Mesh, coords: &[usize]) -> Chunk {
    axes.iter().fold(Chunk { offset: 0, len: size }, |c, &axis| {
        let step = c.len.div_ceil(mesh.size(axis));
        let start = (coords[axis.0 as usize] * step).min(c.len);
        Chunk { offset: c.offset + start, len: step.min(c.len - start) }
    })
}

impl Type {
    /// A replicated type.
    pub fn new(dtype: DType, shape: impl Into<Vec<usize>>) -> Self {
        let shape = shape.into();
        let sharding = Sharding::replicated(shape.len());
        Type { dtype, shape, sharding }
    }

    /// The same type, placed elsewhere.
    #[must_use]
    pub fn placed(&self, sharding: Sharding) -> Self {
        Type { sharding, ..self.clone() }
    }

    /// Number of dimensions.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// Number of elements of the whole value.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Size of the whole value in bytes.
    pub fn bytes(&self) -> usize {
        self.elements() * self.dtype.bytes()
    }

    /// The chunk of every dimension that the rank at `coords` holds.
    pub fn local(&self, mesh: &Mesh, coords: &[usize]) -> Vec<Chunk> {
        self.shape.iter().zip(&self.sharding.dims).map(|(&n, axes)| chunk(n, axes, mesh, coords)).collect()
    }

    /// The local shape at `coords`.
    pub fn local_shape(&self, mesh: &Mesh, coords: &[usize]) -> Vec<usize> {
        self.local(mesh, coords).iter().map(|c| c.len).collect()
    }

    /// The local shape of the rank that holds most: every dimension's first chunk.
    pub fn max_local_shape(&self, mesh: &Mesh) -> Vec<usize> {
        self.local_shape(mesh, &vec![0; mesh.axes().len()])
    }

    /// Bytes of the largest local piece.
    pub fn max_local_bytes(&self, mesh: &Mesh) -> usize {
        self.max_local_shape(mesh).iter().product::<usize>() * self.dtype.bytes()
    }

    /// Whether every rank of `axes` holds equal pieces of dimension `dim` when it is cut by them in
    /// addition to the axes that already cut it.
    pub fn divides(&self, dim: usize, axis: AxisId, mesh: &Mesh) -> bool {
        let cut: usize = self.sharding.dims[dim].iter().map(|&a| mesh.size(a)).product();
        self.shape[dim].is_multiple_of(cut * mesh.size(axis))
    }

    /// The text form: `f32[8@dp, 4096@(tp,dp), 64] +sum@tp`.
    pub fn display(&self, mesh: &Mesh) -> String {
        let mut s = format!("{}[", self.dtype);
        for (i, (n, axes)) in self.shape.iter().zip(&self.sharding.dims).enumerate() {
            let _ = write!(s, "{}{n}", if i > 0 { ", " } else { "" });
            s.push_str(&axes_text(axes, mesh));
        }
        s.push(']');
        if let Some(p) = self.sharding.partial {
            let axes: Vec<_> = p.axes.iter().collect();
            let _ = write!(s, " +{}{}", p.op.name(), axes_text(&axes, mesh));
        }
        s
    }
}

/// `@tp` for one axis, `@(tp,dp)` for several, nothing for none.
pub fn axes_text(axes: &[AxisId], mesh: &Mesh) -> String {
    match axes {
        [] => String::new(),
        [a] => format!("@{}", mesh.name(*a)),
        _ => format!("@({})", axes.iter().map(|&a| mesh.name(a)).collect::<Vec<_>>().join(",")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_nest_and_the_last_ranks_get_less() {
        let mesh = Mesh::parse("a=2,b=2").unwrap();
        let axes = [AxisId(0), AxisId(1)];
        let lens: Vec<_> = (0..4).map(|r| chunk(10, &axes, &mesh, &mesh.coords(r)).len).collect();
        assert_eq!(lens, [3, 2, 3, 2]);
        let four = Mesh::parse("a=4").unwrap();
        let chunks: Vec<_> = (0..4).map(|r| chunk(6, &axes[..1], &four, &[r])).collect();
        assert_eq!(chunks.iter().map(|c| c.len).collect::<Vec<_>>(), [2, 2, 2, 0]);
        assert_eq!(chunks[3].offset, 6);
    }

    #[test]
    fn types_print_with_their_placement() {
        let mesh = Mesh::parse("dp=2,tp=4").unwrap();
        let (dp, tp) = (AxisId(0), AxisId(1));
        let t = Type::new(DType::F32, [8, 4096, 64]);
        let s = t.sharding.pushed(0, dp).pushed(1, tp);
        assert_eq!(t.placed(s).display(&mesh), "f32[8@dp, 4096@tp, 64]");
        let s = t.sharding.pushed(1, tp).pushed(1, dp);
        assert_eq!(t.placed(s).display(&mesh), "f32[8, 4096@(tp,dp), 64]");
        let s = t.sharding.with_partial(ReduceOp::Sum, AxisSet::one(tp)).unwrap();
        assert_eq!(t.placed(s).display(&mesh), "f32[8, 4096, 64] +sum@tp");
    }
}
