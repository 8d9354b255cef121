//! The boundary of a module that contains other modules: the only value that its first modules read, and the only value
//! that leaves it.
//!
//! If a residual or a gate combines the result of the last module with a value that is computed inside, it belongs to
//! the subtree, and the boundary is after it. If it combines the result with a value that the subtree reads, the result
//! of the subtree is unknown, because a module with a residual and a residual around a module are the same program.

use super::dataflow::{ancestors, depends_on_data, viewed};
use petgraph::graph::NodeIndex;
use std::collections::BTreeSet;
use tpc_ir::{Boundary, Graph, MapFn, ModulePath, Op, Phase, Region, Value};

/// The boundary of one call of the module at a path, as far as it is known, given those of the modules inside it. For a
/// norm, only the result is known.
pub(super) fn boundary_of(graph: &Graph, path: &ModulePath, parts: &[&Region]) -> Region {
    // The parameters of a norm do not show what it reads, but its result depends on that.
    let shown = |r: &Region| r.arguments.first().unwrap_or(&r.results[0]).value.node;
    let reads: Vec<Vec<bool>> = parts.iter().map(|r| ancestors(graph, shown(r))).collect();
    let depends = |i: usize, j: usize| i != j && reads[i][parts[j].results[0].value.node.index()];
    let all = || 0..parts.len();
    let first: Vec<usize> = all().filter(|&i| all().all(|j| !depends(i, j))).collect();
    let last: Vec<usize> = all().filter(|&i| all().all(|j| !depends(j, i))).collect();
    let only = |all: Vec<&Boundary>| {
        let distinct: BTreeSet<Value> = all.iter().map(|b| b.value).collect();
        if distinct.len() == 1 { all.first().map(|b| (*b).clone()) } else { None }
    };
    let arguments: Option<Vec<&Boundary>> = first.iter().map(|&i| parts[i].arguments.first()).collect();
    let subtree = Subtree {
        graph,
        read: first.iter().flat_map(|&i| &parts[i].arguments).map(|b| b.value).collect(),
        after_norm: arguments.is_none(),
        inside: parts.iter().map(|r| r.results[0].value).collect(),
    };
    let results = only(last.iter().map(|&i| &parts[i].results[0]).collect()).and_then(|b| subtree.leaves(b.value));
    Region {
        path: path.clone(),
        arguments: arguments.and_then(only).into_iter().collect(),
        results: results.map(|v| Boundary::of(graph, v)).into_iter().collect(),
    }
}

/// The modules inside a module.
struct Subtree<'a> {
    graph: &'a Graph,
    /// The values that its first modules read, as far as they are known.
    read: Vec<Value>,
    /// Whether one of the first modules is a norm, so that what the subtree reads is not known.
    after_norm: bool,
    /// The results of the modules.
    inside: Vec<Value>,
}

/// How an operand relates to a subtree.
#[derive(PartialEq, Eq)]
enum Relation {
    /// Computed from results of the modules of the subtree.
    Inside,
    /// A value that the subtree reads or may read.
    Known,
    /// A value that the subtree cannot read if it has one argument.
    Foreign,
}

impl Subtree<'_> {
    /// The value that leaves the subtree: the result of its last module, or that of the residuals and gates that
    /// combine it with other values of the subtree. `None` if it is combined with a value that the subtree reads, which
    /// may happen inside (a module with a residual) or outside (a residual around a module).
    fn leaves(&self, last: Value) -> Option<Value> {
        let graph = self.graph;
        let (mut result, mut at) = (last, last);
        loop {
            let mut readers: Vec<NodeIndex> = graph.users(at.node).map(|(reader, _)| reader).collect();
            readers.retain(|&n| graph.node(n).origin.phase == Phase::Forward);
            readers.sort_unstable();
            readers.dedup();
            let joins = |n: &NodeIndex| matches!(graph.node(*n).op, Op::Map { f: MapFn::Add | MapFn::Mul, .. });
            let mut inner = None;
            for &reader in readers.iter().filter(|n| joins(n)) {
                for relation in graph.operands(reader).into_iter().filter(|&v| v != at).map(|v| self.relation(v, at)) {
                    match relation {
                        Relation::Known => return None,
                        Relation::Inside => inner = Some(reader),
                        Relation::Foreign => {}
                    }
                }
            }
            // Dropout, scales and activations may come before a residual.
            let next = match readers[..] {
                [one] if matches!(graph.node(one).op, Op::Map { .. } | Op::Reshape) => Some(one),
                _ => None,
            };
            if let Some(join) = inner {
                result = join.into();
            }
            match inner.or(next) {
                Some(next) => at = next.into(),
                None => return Some(result),
            }
        }
    }

    /// How `value` relates to the subtree, unless it depends on `at`.
    fn relation(&self, value: Value, at: Value) -> Relation {
        let above = ancestors(self.graph, value.node);
        if above[at.node.index()] {
            return Relation::Foreign; // This is a residual that begins at `at`.
        }
        if self.inside.iter().any(|v| above[v.node.index()]) {
            return Relation::Inside;
        }
        let same = |v: &Value| viewed(self.graph, *v) == viewed(self.graph, value);
        let reads = |v: &Value| ancestors(self.graph, v.node)[value.node.index()];
        let may_read = self.after_norm && depends_on_data(self.graph, value) && self.inside.iter().any(reads);
        if may_read || self.read.iter().any(same) { Relation::Known } else { Relation::Foreign }
    }
}
