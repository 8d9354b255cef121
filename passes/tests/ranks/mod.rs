//! Simulation of the ranks of a mesh, one operation at a time, for the validators of the factor table and of the
//! rewrites. It uses only the meaning of operations (`tpc_ir::interpret`), never the tables under test.
#![allow(dead_code)] // every test binary uses its own part

use std::rc::Rc;
use tpc_ir::interpret::{Fault, Options, Site, Tensor, evaluate, redistribute};
use tpc_ir::sharding::Chunk;
use tpc_ir::{AxisId, AxisSet, Mesh, Node, Op, Origin, Partial, ReduceOp, Sharding, Type, random};

/// The local tensor of each rank.
pub type Ranks = Vec<Rc<Tensor>>;

/// For each dimension, the axes that cut it, from major to minor.
pub type Dims = Vec<Vec<AxisId>>;

/// All ways to cut `rank` dimensions by distinct axes of the mesh, in every order.
pub fn cuts(rank: usize, mesh: &Mesh) -> Vec<Dims> {
    let mut all: Vec<Dims> = vec![vec![Vec::new(); rank]];
    for axis in mesh.axis_ids() {
        let mut more = all.clone();
        for dims in &all {
            for (d, own) in dims.iter().enumerate() {
                for at in 0..=own.len() {
                    let mut cut = dims.clone();
                    cut[d].insert(at, axis);
                    more.push(cut);
                }
            }
        }
        all = more;
    }
    all
}

/// The shardings with the given `dims`: first the one that is not partial, then those that are partial over any set of
/// the remaining axes, under each of `ops`.
pub fn partials(dims: &Dims, mesh: &Mesh, ops: &[ReduceOp]) -> Vec<Sharding> {
    let used: AxisSet = dims.iter().flatten().copied().collect();
    let free: Vec<AxisId> = mesh.axis_ids().filter(|&a| !used.contains(a)).collect();
    let mut all = vec![Sharding { dims: dims.clone(), partial: None }];
    for set in 1..1usize << free.len() {
        let axes = free.iter().enumerate().filter(|(i, _)| set >> i & 1 == 1).map(|(_, &a)| a).collect();
        all.extend(ops.iter().map(|&op| Sharding { dims: dims.clone(), partial: Some(Partial { op, axes }) }));
    }
    all
}

/// All placements of a value of `rank` dimensions.
pub fn placements(rank: usize, mesh: &Mesh, ops: &[ReduceOp]) -> Vec<Sharding> {
    cuts(rank, mesh).iter().flat_map(|dims| partials(dims, mesh, ops)).collect()
}

/// All redistributions of a value with two dimensions.
pub fn redistributions(mesh: &Mesh) -> Vec<Op> {
    let lists: Vec<Vec<AxisId>> =
        cuts(1, mesh).into_iter().map(|mut d| d.remove(0)).filter(|l| !l.is_empty()).collect();
    let mut all = Vec::new();
    for list in lists {
        let set: AxisSet = list.iter().copied().collect();
        for op in [ReduceOp::Sum, ReduceOp::Max] {
            all.extend([Op::AllReduce { op, axes: set }, Op::ToPartial { op, axes: set }]);
            all.extend((0..2).map(|dim| Op::ReduceScatter { op, dim, axes: list.clone() }));
        }
        for dim in 0..2 {
            all.push(Op::AllGather { dim, axes: list.clone() });
            all.push(Op::ShardSlice { dim, axes: list.clone() });
            all.push(Op::AllToAll { from: dim, to: 1 - dim, axes: list.clone() });
        }
    }
    all
}

/// The box that covers a whole value.
pub fn whole_box(ty: &Type) -> Vec<Chunk> {
    ty.shape.iter().map(|&len| Chunk { offset: 0, len }).collect()
}

/// The results of an operation on whole tensors.
pub fn logical(op: &Op, types: &[&Type], results: &[Type], operands: &[&Tensor]) -> Result<Vec<Tensor>, Fault> {
    let node = Node { op: op.clone(), types: results.to_vec(), origin: Origin::default() };
    let site = Site {
        operands: types.iter().map(|t| whole_box(t)).collect(),
        results: results.iter().map(whole_box).collect(),
    };
    evaluate(&node, types, operands, &site, &Options::default())
}

/// The local tensors of each result of an operation on every rank.
pub fn local(
    op: &Op,
    types: &[&Type],
    results: &[Type],
    operands: &[&Ranks],
    mesh: &Mesh,
) -> Result<Vec<Ranks>, (usize, Fault)> {
    if op.is_redistribution() {
        return redistribute(op, mesh, operands[0], &Options::default()).map(|r| vec![r]);
    }
    let node = Node { op: op.clone(), types: results.to_vec(), origin: Origin::default() };
    let mut made: Vec<Ranks> = vec![Vec::new(); results.len()];
    for rank in 0..mesh.ranks() {
        let coords = mesh.coords(rank);
        let site = Site {
            operands: types.iter().map(|t| t.local(mesh, &coords)).collect(),
            results: results.iter().map(|t| t.local(mesh, &coords)).collect(),
        };
        let tensors: Vec<&Tensor> = operands.iter().map(|r| &*r[rank]).collect();
        let tensors = evaluate(&node, types, &tensors, &site, &Options::default()).map_err(|fault| (rank, fault))?;
        made.iter_mut().zip(tensors).for_each(|(ranks, t)| ranks.push(Rc::new(t)));
    }
    Ok(made)
}

/// The part of a whole tensor in a box.
pub fn cut(whole: &Tensor, chunks: &[Chunk]) -> Tensor {
    let mut data = Vec::new();
    each(&whole.shape, chunks, |at| data.push(whole.data[at]));
    Tensor { dtype: whole.dtype, shape: chunks.iter().map(|c| c.len).collect(), data }
}

/// Calls `f` with the row-major index in `shape` of every element of a box.
fn each(shape: &[usize], chunks: &[Chunk], mut f: impl FnMut(usize)) {
    let count: usize = chunks.iter().map(|c| c.len).product();
    for i in 0..count {
        let (mut rest, mut at, mut stride) = (i, 0, 1);
        for (c, n) in chunks.iter().zip(shape).rev() {
            at += (c.offset + rest % c.len) * stride;
            rest /= c.len;
            stride *= n;
        }
        f(at);
    }
}

/// The value that local tensors denote under a type; `None` if their shapes do not match or if ranks that hold the same
/// elements disagree.
pub fn denoted(ty: &Type, ranks: &Ranks, mesh: &Mesh) -> Option<Tensor> {
    let reduced = match ty.sharding.partial {
        Some(p) => redistribute(&Op::AllReduce { op: p.op, axes: p.axes }, mesh, ranks, &Options::default()).ok()?,
        None => ranks.clone(),
    };
    let mut whole: Vec<Option<f64>> = vec![None; ty.elements()];
    for (rank, t) in reduced.iter().enumerate() {
        let chunks = ty.local(mesh, &mesh.coords(rank));
        if t.shape != chunks.iter().map(|c| c.len).collect::<Vec<_>>() {
            return None;
        }
        let (mut read, mut agree) = (t.data.iter(), true);
        each(&ty.shape, &chunks, |at| {
            let x = *read.next().expect("as many elements as the box has");
            agree &= near(*whole[at].get_or_insert(x), x, 0.0);
        });
        if !agree {
            return None;
        }
    }
    let data = whole.into_iter().collect::<Option<Vec<f64>>>()?;
    Some(Tensor { dtype: ty.dtype, shape: ty.shape.clone(), data })
}

fn near(a: f64, b: f64, tolerance: f64) -> bool {
    a == b || a.is_nan() && b.is_nan() || (a - b).abs() <= tolerance * a.abs().max(b.abs()).max(1.0)
}

/// Whether two tensors are equal up to a relative tolerance; NaN equals NaN.
pub fn same(a: &Tensor, b: &Tensor, tolerance: f64) -> bool {
    a.shape == b.shape && a.data.iter().zip(&b.data).all(|(&x, &y)| near(x, y, tolerance))
}

/// Whether the local tensors of every rank are equal.
pub fn same_ranks(a: &Ranks, b: &Ranks, tolerance: f64) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(x, y)| same(x, y, tolerance))
}

/// A pseudorandom number below `n` from a seed and an index.
pub fn dice(seed: u64, index: usize, n: usize) -> usize {
    random::philox(seed, 77, index as u64)[0] as usize % n
}

/// The local tensors of a value, and the whole value that they denote. There is a random term for every coordinate of
/// the partial axes, cut according to the sharding. `element(term, index)` returns an element of a term, or `None` for
/// the identity of the reduction, as after a `to_partial`.
pub fn spread(ty: &Type, mesh: &Mesh, element: impl Fn(usize, usize) -> Option<f64>) -> (Ranks, Tensor) {
    let (op, axes) = ty.sharding.partial.map_or((ReduceOp::Sum, AxisSet::EMPTY), |p| (p.op, p.axes));
    let list: Vec<AxisId> = axes.iter().collect();
    let identity = op.identity_of(ty.dtype);
    let terms: Vec<Tensor> = (0..mesh.group_size(axes))
        .map(|term| Tensor::from_fn(ty.dtype, ty.shape.clone(), |i| element(term, i).unwrap_or(identity)))
        .collect();
    let mut whole = terms[0].clone();
    for term in &terms[1..] {
        whole.data.iter_mut().zip(&term.data).for_each(|(a, &b)| *a = op.combine(*a, b));
    }
    whole.data.iter_mut().for_each(|x| *x = ty.dtype.round(*x));
    let ranks = (0..mesh.ranks()).map(|rank| {
        let term = mesh.group(rank, &list).iter().position(|&r| r == rank).expect("a rank is in its group");
        Rc::new(cut(&terms[term], &ty.local(mesh, &mesh.coords(rank))))
    });
    (ranks.collect(), whole)
}
