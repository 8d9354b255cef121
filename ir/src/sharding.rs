//! Shardings: how the type of a value places it on the mesh.
//!
//! A dimension lists the axes that shard it, major to minor. Each axis cuts the chunk of the axis before it into pieces
//! of rounded-up size (10 over 2×2 is 3, 2, 3, 2). A value can also be *partial* over some axes: each rank then holds a
//! term, and the value is the sum (or maximum, …) of the terms. The notation follows Shardy (`tensor<8@dp, ...>`) and
//! DTensor's `Partial`.

use crate::DType;
use crate::mesh::{AxisId, AxisSet, Mesh};
use crate::op::ReduceOp;
use std::fmt::Write as _;

/// How a value is partial: the axes over which it has to be reduced, and the reduction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Partial {
    /// How the terms of the ranks combine.
    pub op: ReduceOp,
    /// The axes; never empty.
    pub axes: AxisSet,
}

/// How a value is distributed over the mesh.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Sharding {
    /// For each dimension, the axes that shard it, major to minor.
    pub dims: Vec<Vec<AxisId>>,
    /// How the value is partial; `None` if it is not.
    pub partial: Option<Partial>,
}

impl Sharding {
    /// The sharding under which every rank holds the whole value.
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

    /// Whether all ranks along the axis hold the same local value.
    pub fn is_invariant(&self, axis: AxisId) -> bool {
        !self.sharded_axes().union(self.partial_axes()).contains(axis)
    }

    /// The dimension that `axis` shards, if there is one.
    pub fn dim_of(&self, axis: AxisId) -> Option<usize> {
        self.dims.iter().position(|d| d.contains(&axis))
    }

    /// This sharding, but not partial over `axes`.
    #[must_use]
    pub fn reduced(&self, axes: AxisSet) -> Self {
        let rest = self.partial_axes().minus(axes);
        let partial = self.partial.filter(|_| !rest.is_empty()).map(|p| Partial { axes: rest, ..p });
        Sharding { dims: self.dims.clone(), partial }
    }

    /// This sharding, also partial over `axes`. `None` if it is partial under another operator.
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

    /// This sharding without the minor-most axis of `dim`. `None` if that axis is not `axis`.
    pub fn popped(&self, dim: usize, axis: AxisId) -> Option<Self> {
        let mut s = self.clone();
        (s.dims.get_mut(dim)?.pop()? == axis).then_some(s)
    }
}

/// The type of a value: element type, global shape and placement.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Type {
    /// Element type.
    pub dtype: DType,
    /// The global shape, in elements.
    pub shape: Vec<usize>,
    /// The placement on the mesh. In a logical graph, every value is replicated.
    pub sharding: Sharding,
}

/// The range of indices in one dimension that a rank holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// The first global index.
    pub offset: usize,
    /// The number of indices, possibly 0.
    pub len: usize,
}

/// The chunk that the rank at `coords` holds of a dimension of `size` indices that `axes` shard, major to minor.
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

    /// The same type with another placement.
    #[must_use]
    pub fn placed(&self, sharding: Sharding) -> Self {
        Type { sharding, ..self.clone() }
    }

    /// The number of dimensions.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// The number of elements of the whole value.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// The size of the whole value in bytes.
    pub fn bytes(&self) -> usize {
        self.elements() * self.dtype.bytes()
    }

    /// The chunks that the rank at `coords` holds, one per dimension.
    pub fn local(&self, mesh: &Mesh, coords: &[usize]) -> Vec<Chunk> {
        self.shape.iter().zip(&self.sharding.dims).map(|(&n, axes)| chunk(n, axes, mesh, coords)).collect()
    }

    /// The local shape on the rank at `coords`.
    pub fn local_shape(&self, mesh: &Mesh, coords: &[usize]) -> Vec<usize> {
        self.local(mesh, coords).iter().map(|c| c.len).collect()
    }

    /// The largest local shape, which is that of the first rank.
    pub fn max_local_shape(&self, mesh: &Mesh) -> Vec<usize> {
        self.local_shape(mesh, &vec![0; mesh.axes().len()])
    }

    /// The bytes of the largest local tensor.
    pub fn max_local_bytes(&self, mesh: &Mesh) -> usize {
        self.max_local_shape(mesh).iter().product::<usize>() * self.dtype.bytes()
    }

    /// Whether all ranks hold equally many indices of dimension `dim` if `axis` shards it in addition to the axes that
    /// already do.
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

/// The text form of axes: `@tp` for one, `@(tp,dp)` for several, and nothing for none.
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
