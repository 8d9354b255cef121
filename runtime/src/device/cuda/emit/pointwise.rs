//! Loops without sums: every thread computes separate elements.

use super::body::{Body, Level, LoopGraph};
use super::kernels::Launch;
use super::part::{End, LoopPart, reads};
use super::rank::Rank;
use super::space::{Axis, axes, bring_fastest_in, count, cut, index_types};
use std::fmt::Write as _;

/// Threads per block.
const BLOCK: usize = 256;
/// Maximum number of blocks: threads loop over further work, so that values common to all elements are read rarely.
const GRID: usize = 132 * 16;
/// Number of nodes from which packs are halved, so that registers do not run out.
const LARGE: usize = 96;

/// The strides of accesses, then of affine integers.
pub(super) fn strides(graph: &LoopGraph) -> Vec<&[isize]> {
    graph.walks.iter().map(|w| &w.strides[..]).chain(graph.affines.iter().map(|a| &a.1[..])).collect()
}

/// Which of these a part uses.
pub(super) fn used(graph: &LoopGraph, part: &LoopPart) -> Vec<bool> {
    let mut used = vec![false; graph.walks.len()];
    reads(graph, part).into_iter().for_each(|w| used[w] = true);
    part.ends.iter().for_each(|e| used[e.walk] = true);
    used.extend(graph.affines.iter().map(|_| true));
    used
}

/// The weight of an access in the choice of the innermost axis: a store counts twice.
pub(super) fn weights(graph: &LoopGraph, used: &[bool]) -> Vec<usize> {
    let of = |w: &crate::device::nodes::Walk| w.dtype.bytes() * if w.store { 2 } else { 1 };
    let walks = graph.walks.iter().zip(used).map(|(w, &used)| if used { of(w) } else { 0 });
    walks.chain(graph.affines.iter().map(|_| 0)).collect()
}

/// For every node, the dimensions that it depends on, as a bit set.
pub(super) fn masks(graph: &LoopGraph, part: &LoopPart) -> Vec<u64> {
    use crate::device::nodes::Kind;
    let moving = |strides: &[isize]| -> u64 {
        (0..graph.dims.len()).filter(|&d| strides[d] != 0 && graph.dims[d] != 1).map(|d| 1 << d).sum()
    };
    let row = 1u64 << (graph.dims.len() - 1);
    let mut masks = vec![0; graph.nodes.len()];
    for (i, node) in graph.nodes.iter().enumerate() {
        let of_inputs = node.inputs.iter().fold(0, |m, &x| m | masks[x]);
        masks[i] = match &node.kind {
            _ if part.stands_for.contains_key(&i) => moving(&graph.walks[part.stands_for[&i]].strides),
            Kind::Load(w) => moving(&graph.walks[*w].strides),
            Kind::Index(a) => moving(&graph.affines[*a].1),
            Kind::Random { affine, .. } => moving(&graph.affines[*affine].1) | of_inputs,
            Kind::Reduce(_) => of_inputs & !row,
            _ => of_inputs,
        };
    }
    masks
}

/// Emits the kernel of a part without sums.
pub(super) fn emit(rank: &mut Rank<'_>, graph: &LoopGraph, part: &LoopPart) -> Result<Vec<Launch>, String> {
    let used = used(graph, part);
    let row = graph.dims.len() - 1;
    let mut part = part.clone();
    let mut dims = graph.dims.clone();
    if dims[row] == 0 {
        // Values that are common to the whole row are written even if the row is empty.
        part.ends.retain(|e| graph.walks[e.walk].strides[row] == 0 && e.accumulate.is_none());
        dims[row] = 1;
    }
    if dims.contains(&0) || part.ends.is_empty() {
        return Ok(Vec::new());
    }
    let all: Vec<usize> = (0..dims.len()).collect();
    let mut kept: Vec<Axis> = axes(&dims, &all, &strides(graph), &used);
    bring_fastest_in(&mut kept, &weights(graph, &used));
    let mut body = Body::new(graph, kept, Vec::new(), rank.base);
    body.stands_for = part.stands_for.clone();
    for (w, walk) in graph.walks.iter().enumerate() {
        body.read_only[w] = !part.ends.iter().any(|e| graph.walks[e.walk].extent.overlaps(&walk.extent));
    }
    for (level, mask) in body.level.iter_mut().zip(masks(graph, &part)) {
        *level = if mask == 0 { Level::Row } else { Level::Element };
    }
    let walks: Vec<usize> = (0..graph.walks.len()).filter(|&w| used[w]).collect();
    body.choose_vector(&walks, if graph.nodes.len() > LARGE { 4 } else { 8 });
    for end in &part.ends {
        let value = combined(&mut body, graph, end);
        body.store(end.walk, &value, Level::Element);
    }
    let points = count(&body.kept) / body.vector;
    let grid = points.div_ceil(BLOCK).min(GRID);
    let mut text = String::from(index_types([&body.kept, &[]]));
    text.push_str(&body.head);
    text.push_str(&body.row);
    let _ = writeln!(
        text,
        "    for (uq q = blockIdx.x * (uq){BLOCK} + threadIdx.x; q < {points}u; q += gridDim.x * (uq){BLOCK}) {{"
    );
    text.push_str(&cut("q", "k", &body.kept, body.vector, "        "));
    text.push_str(&body.element_text("        "));
    text.push_str("    }\n");
    Ok(vec![rank.launch("map", (grid, BLOCK), false, body.args.values, &text)?])
}

/// The value of a store; a store that accumulates over nothing combines with the identity.
pub(super) fn combined(body: &mut Body<'_>, graph: &LoopGraph, end: &End) -> String {
    let value = body.value(end.value);
    match end.accumulate {
        None => value,
        Some(op) => {
            let lane = graph.nodes[end.value].lane;
            let l = super::body::lane(lane);
            format!("{}::of(({l}){}, {value})", super::body::functor(op), super::body::identity(op, lane))
        }
    }
}
