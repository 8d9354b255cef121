//! Emits fused loops as kernels.
//!
//! A loop is split by its reductions. Stores that need sums over the row, together with elementwise stores, are one
//! kernel whose threads share rows (`rows`). Without such sums they are one kernel with independent threads
//! (`pointwise`). Accumulating stores over other dimensions are one kernel per set of dimensions; the scratch passes
//! sums over rows to them. A loop whose stores overlap its other accesses, other than in place, runs instruction by
//! instruction (`ordered`).
//! instruction by instruction (`ordered`).

use super::body::LoopGraph;
use super::kernels::Launch;
use super::part::{End, LoopPart, reads};
use super::rank::Rank;
use super::{ordered, pointwise, rows};
use crate::device::cpu::vector::LaneType;
use crate::device::extent::Extent;
use crate::device::nodes::{self, Kind, Node, Walk, must_keep_order};
use std::collections::{BTreeMap, HashMap};
use tpc_ir::DType;
use tpc_ir::program::{Loop, dense_strides};

/// Emits the kernels of a loop.
pub(super) fn emit(rank: &mut Rank<'_>, l: &Loop) -> Result<Vec<Launch>, String> {
    let mut scan = rank.scan(l)?;
    let mut dims = l.dims.clone();
    if dims.is_empty() {
        dims.push(1);
        scan.walks.iter_mut().for_each(|w| w.strides.push(0));
        scan.affines.iter_mut().for_each(|a| a.1.push(0));
    }
    if dims.len() > 60 {
        return Err(format!("{} dimensions", dims.len()));
    }
    let row = dims.len() - 1;
    let varies = |strides: &[isize]| dims[row] != 1 && strides[row] != 0;
    let walks_vary: Vec<bool> = scan.walks.iter().map(|w| varies(&w.strides)).collect();
    let affines_vary: Vec<bool> = scan.affines.iter().map(|a| varies(&a.1)).collect();
    let nodes = nodes::build(&l.body, &scan, &walks_vary, &affines_vary)?;
    let strict = must_keep_order(&scan.walks, &dims);
    let mut graph = LoopGraph { dims, nodes, walks: scan.walks, affines: scan.affines };
    let ends = ends(&graph, &walks_vary);
    if !strict && let Some(parts) = cut(&mut graph, &ends, rank) {
        let mut launches = Vec::new();
        for part in &parts {
            let made = if part.reduced == 0 {
                Some(pointwise::emit(rank, &graph, part)?)
            } else {
                rows::emit(rank, &graph, part)?
            };
            match made {
                Some(made) => launches.extend(made),
                None => return ordered::emit(rank, &graph, &walks_vary),
            }
        }
        return Ok(launches);
    }
    ordered::emit(rank, &graph, &walks_vary)
}

/// The stores of a loop. A store that accumulates over the row refers to the node that is summed.
fn ends(graph: &LoopGraph, walks_vary: &[bool]) -> Vec<End> {
    let end = |n: &Node| match n.kind {
        Kind::Store(walk) => Some(End { walk, value: n.inputs[0], accumulate: None }),
        Kind::Accumulate(walk, op) => {
            let x = n.inputs[0];
            let value = if !walks_vary[walk] { graph.nodes[x].inputs[0] } else { x };
            Some(End { walk, value, accumulate: Some(op) })
        }
        _ => None,
    };
    graph.nodes.iter().filter_map(end).collect()
}

/// The reductions over rows that a node needs, outermost first.
fn reductions(nodes: &[Node], node: usize, found: &mut Vec<usize>) {
    if matches!(nodes[node].kind, Kind::Reduce(_)) {
        if !found.contains(&node) {
            found.push(node);
        }
        return;
    }
    for &x in &nodes[node].inputs {
        reductions(nodes, x, found);
    }
}

/// Whether a store writes a different element for each index of the dimensions in which it moves.
fn is_injective(dims: &[usize], strides: &[isize]) -> bool {
    let mut moving: Vec<(usize, usize)> =
        dims.iter().zip(strides).filter(|(n, s)| **n > 1 && **s != 0).map(|(&n, s)| (s.unsigned_abs(), n)).collect();
    moving.sort_unstable();
    let mut reach = 0;
    moving.iter().all(|&(s, n)| {
        let apart = s > reach;
        reach += s * (n - 1);
        apart
    })
}

/// Splits a loop into parts, in an order in which no part overwrites what a later one reads; `None` if there is no such
/// order.
fn cut(graph: &mut LoopGraph, ends: &[End], rank: &mut Rank<'_>) -> Option<Vec<LoopPart>> {
    let row = graph.dims.len() - 1;
    let row_bit = 1u64 << row;
    let mut plain = Vec::new();
    let mut of_rows = Vec::new();
    let mut others: BTreeMap<u64, Vec<End>> = BTreeMap::new();
    for end in ends {
        let walk = &graph.walks[end.walk];
        let mut needs = Vec::new();
        reductions(&graph.nodes, end.value, &mut needs);
        let still = |d: &usize| walk.strides[*d] == 0 && graph.dims[*d] != 1;
        let reduced: u64 = (0..=row).filter(still).map(|d| 1 << d).sum();
        if end.accumulate.is_some() && !is_injective(&graph.dims, &walk.strides) {
            return None;
        }
        if end.accumulate.is_some() && reduced != 0 && reduced != row_bit {
            others.entry(reduced).or_default().push(end.clone());
        } else if !needs.is_empty() || (end.accumulate.is_some() && reduced == row_bit) {
            of_rows.push(end.clone());
        } else {
            plain.push(end.clone());
        }
    }
    // Sums over rows that other parts need are written to the scratch.
    let mut passed: HashMap<usize, usize> = HashMap::new();
    for end in others.values().flatten() {
        let mut needs = Vec::new();
        reductions(&graph.nodes, end.value, &mut needs);
        for node in needs {
            if let std::collections::hash_map::Entry::Vacant(slot) = passed.entry(node) {
                slot.insert(graph.walks.len());
                let walk = scratch_walk(graph, node, rank);
                graph.walks.push(walk);
                for (_, strides) in &mut graph.affines {
                    debug_assert_eq!(strides.len(), graph.dims.len());
                }
            }
        }
    }
    of_rows.extend(passed.iter().map(|(&value, &walk)| End { walk, value, accumulate: None }));
    // In the order of the nodes, so that equal loops have equal texts.
    of_rows.sort_by_key(|e| (e.value, e.walk));
    let mut parts = Vec::new();
    if of_rows.is_empty() {
        if !plain.is_empty() {
            parts.push(LoopPart { ends: plain, ..LoopPart::default() });
        }
    } else {
        plain.extend(of_rows);
        parts.push(LoopPart { reduced: row_bit, ends: plain, reduces: true, ..LoopPart::default() });
    }
    let after_rows = !passed.is_empty();
    for (reduced, ends) in others {
        parts.push(LoopPart { reduced, ends, reduces: false, stands_for: passed.clone() });
    }
    order(graph, parts, after_rows)
}

/// Scratch memory for a reduction of every row.
fn scratch_walk(graph: &LoopGraph, node: usize, rank: &mut Rank<'_>) -> Walk {
    let (_, outer) = graph.dims.split_last().expect("a loop has a row");
    let dtype = match graph.nodes[node].lane {
        LaneType::F32 => DType::F32,
        LaneType::F64 => DType::F64,
        LaneType::I64 => DType::I64,
        LaneType::Bool => DType::Bool,
    };
    let mut strides = dense_strides(outer);
    strides.push(0);
    let bytes = outer.iter().product::<usize>() * dtype.bytes();
    let at = rank.scratch(bytes);
    let extent = Extent { base: at, low: at, high: at + bytes };
    Walk { extent, dtype, strides, store: true, at: usize::MAX - node }
}

/// Moves parts that overwrite elements after the parts that read them.
fn order(graph: &LoopGraph, parts: Vec<LoopPart>, after_rows: bool) -> Option<Vec<LoopPart>> {
    let reading: Vec<Vec<usize>> = parts.iter().map(|p| reads(graph, p)).collect();
    let overwrites = |a: usize, b: usize| {
        parts[a].ends.iter().any(|e| {
            let target = &graph.walks[e.walk].extent;
            reading[b].iter().any(|&w| w != e.walk && graph.walks[w].extent.overlaps(target))
        })
    };
    let before = |a: usize, b: usize| {
        // The first part computes the reductions that other parts load.
        a != b && (overwrites(b, a) || (after_rows && a == 0))
    };
    let mut left: Vec<usize> = (0..parts.len()).collect();
    let mut sorted = Vec::new();
    while !left.is_empty() {
        let next = left.iter().position(|&b| !left.iter().any(|&a| before(a, b)))?;
        sorted.push(left.remove(next));
    }
    let mut parts: Vec<Option<LoopPart>> = parts.into_iter().map(Some).collect();
    Some(sorted.into_iter().filter_map(|i| parts[i].take()).collect())
}
