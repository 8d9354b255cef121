//! Finds attention: two products around a softmax, whose scores then are never in memory as a whole.
//!
//! Before: nine operations and five values of `[heads, rows, columns]`, forward alone.
//! ```text
//! %1 = einsum "hri,hci->hrc" %q, %k
//! %2 = select %mask, -1e30, (mul %1, 0.125)
//! %3 = reduce_max %2      %4 = exp (sub %2, %3)      %5 = reduce_sum %4
//! %6 = einsum "hrc,hcw->hrw" (div %4, %5), %v
//! ```
//! After: one kernel that has `%6`, and for the backward pass one number for each row of `%3` and of `%5`.
//!
//! **Forward**: from a product, its elementwise functions are followed; a maximum over one of its dimensions, the
//! exponential of the difference and the sum make it a softmax, and a product with that, the columns being summed
//! over, ends it. **Backward**: the same walk goes on. What is made of the exponentials, their sum and the
//! gradient `grad_out · value` has a normal form (`polynomial.rs`); where it is `p · (g − Σ p · g)` the softmax ends, and
//! elementwise functions of that lead to the products that give the gradients. In between nobody else may read a
//! value; otherwise nothing is found and everything stays as it is. If the columns are sharded, the maximum is
//! reduced over ranks before it is used, and nothing is found either.
//!
//! All of this looks at global types only.

mod action;
mod expression;
mod polynomial;
mod strand;
mod walk;

pub(super) use action::{Rank, Stats, action, tile};

use expression::{Expression, Making};
use petgraph::graph::NodeIndex;
use polynomial::Base;
use std::collections::{BTreeSet, HashSet};
use strand::Strand;
use tpc_ir::{DType, Graph, Op, Value};
use walk::Walk;

/// What a kernel that is an attention does; dimensions are those of the first product's result.
#[derive(Clone, Debug)]
pub struct Attention {
    /// The first product: the pair of forward and backward kernel has it in common.
    product: NodeIndex,
    /// Without rows and columns, in order.
    batch: Vec<usize>,
    /// Missing if there is a single row.
    rows: Option<usize>,
    columns: usize,
    query: Strand,
    key: Strand,
    value: Strand,
    out: Strand,
    score: Expression,
    weight: Option<Expression>,
    /// f32 or f64.
    real: DType,
    /// Whether a backward kernel follows.
    keep: bool,
    backward: Option<Backward>,
}

#[derive(Clone, Debug)]
struct Backward {
    grad_out: Strand,
    gradient: Option<Expression>,
    grad_query: Option<Strand>,
    grad_key: Option<Strand>,
    grad_value: Option<Strand>,
}

/// A kernel that was found.
pub(super) struct Part {
    /// What it computes, in program order.
    pub(super) nodes: Vec<NodeIndex>,
    /// Those that others read, in program order.
    pub(super) results: Vec<NodeIndex>,
    /// Values that it reads.
    pub(super) reads: Vec<Value>,
    pub(super) attention: Attention,
}

/// All attention of a program.
#[derive(Default)]
pub(super) struct Found {
    pub(super) parts: Vec<Part>,
    /// Nodes that nobody needs in memory any more.
    pub(super) absorbed: HashSet<NodeIndex>,
}

/// Finds the attention of a program.
pub(super) fn find(graph: &Graph) -> Found {
    let mut found = Found::default();
    let mut taken: HashSet<NodeIndex> = HashSet::new();
    let mut made: BTreeSet<NodeIndex> = BTreeSet::new();
    for product in graph.nodes() {
        if !matches!(graph.node(product).op, Op::Einsum { .. }) || taken.contains(&product) {
            continue;
        }
        let Some((parts, again)) = attention(graph, product) else { continue };
        if parts.iter().flat_map(|p| &p.nodes).any(|n| taken.contains(n)) {
            continue;
        }
        taken.extend(parts.iter().flat_map(|p| &p.nodes));
        made.extend(again);
        found.parts.extend(parts);
    }
    // What is made again inside is not needed outside if only attention reads it, which makes it again.
    let read: HashSet<NodeIndex> = found.parts.iter().flat_map(|p| &p.reads).map(|v| v.node).collect();
    for &node in made.iter().rev().filter(|n| !taken.contains(n) && !read.contains(n)) {
        let inside = graph.users(node).all(|(u, _)| taken.contains(&u) || found.absorbed.contains(&u));
        if inside && !graph.outputs.iter().any(|o| o.value.node == node) {
            found.absorbed.insert(node);
        }
    }
    found
}

/// The kernels of the attention that starts with a product, and the nodes outside that they make again.
fn attention(graph: &Graph, product: NodeIndex) -> Option<(Vec<Part>, Vec<NodeIndex>)> {
    let walk = Walk::from(graph, product)?;
    let forward = walk.forward_nodes();
    let backward = walk.backward_nodes(&forward);
    walk.is_closed(&forward, &backward).then_some(())?;
    let double = forward.iter().chain(&backward).any(|&n| graph.node(n).types[0].dtype == DType::F64);
    let real = if double { DType::F64 } else { DType::F32 };
    let mut made = Vec::new();
    let first = forward_half(graph, &walk, real, !backward.is_empty(), &mut made)?;
    let mut parts = vec![part(&forward, vec![first.out.value.node], first.clone())];
    if !backward.is_empty() {
        let half = backward_half(graph, &walk, &first, &mut made)?;
        let results = [&half.grad_query, &half.grad_key, &half.grad_value].into_iter().flatten();
        let mut results: Vec<NodeIndex> = results.map(|s| s.value.node).collect();
        results.sort_unstable();
        let part = part(&backward, results, Attention { backward: Some(half), ..first });
        // Everything it reads is there before anything it makes is read.
        let first = *part.results.first()?;
        if part.reads.iter().any(|v| v.node >= first) {
            return None;
        }
        parts.push(part);
    }
    made.retain(|n| !forward.contains(n) && !backward.contains(n));
    Some((parts, made))
}

fn forward_half(
    graph: &Graph,
    walk: &Walk<'_>,
    real: DType,
    keep: bool,
    made: &mut Vec<NodeIndex>,
) -> Option<Attention> {
    let product = walk.product;
    let (query, key, value, out) = (walk.query.clone(), walk.key.clone(), walk.value()?.clone(), walk.out()?.clone());
    let (rows, columns) = (walk.rows(), walk.columns?);
    let rank = graph.node(product).types[0].rank();
    let batch: Vec<usize> = (0..rank).filter(|&d| Some(d) != rows && d != columns).collect();
    let spanned: Vec<usize> = rows.into_iter().chain([columns]).collect();
    let (score, score_dims) = walk.score()?;
    let is_score = |n| walk.is_score(n);
    let making = Making { graph, given: [(product, 0)].into(), inside: &is_score, spanned: spanned.clone(), real };
    let score = making.body(score, &score_dims, made)?;
    let (weights, factor) = walk.weight()?;
    let factors = weights.iter().filter_map(|(base, power)| match base {
        Base::Other(value, dims) => Some((value, dims, *power)),
        _ => None,
    });
    let weight = if weights.is_empty() && factor == 1.0 {
        None
    } else {
        let making = Making { graph, given: [].into(), inside: &|_| false, spanned, real };
        Some(making.product(factors, factor, made)?)
    };
    let backward = None;
    Some(Attention { product, batch, rows, columns, query, key, value, out, score, weight, real, keep, backward })
}

fn backward_half(graph: &Graph, walk: &Walk<'_>, first: &Attention, made: &mut Vec<NodeIndex>) -> Option<Backward> {
    let gradient = match walk.gradient()? {
        None => None,
        Some((root, dims)) => {
            let mut given = walk.roots();
            given.insert(walk.product, 1);
            let inside = |n| walk.is_score(n) || walk.is_gradient(n);
            let spanned = first.rows.into_iter().chain([first.columns]).collect();
            let making = Making { graph, given, inside: &inside, spanned, real: first.real };
            Some(making.body(root, &dims, made)?)
        }
    };
    let [grad_query, grad_key, grad_value] = walk.gradients();
    Some(Backward { grad_out: walk.grad_out()?.clone(), gradient, grad_query, grad_key, grad_value })
}

fn part(nodes: &BTreeSet<NodeIndex>, results: Vec<NodeIndex>, attention: Attention) -> Part {
    let a = &attention;
    let mut reads = vec![a.query.value, a.key.value, a.value.value];
    reads.extend(a.score.loads());
    reads.extend(a.weight.iter().flat_map(Expression::loads));
    if let Some(b) = &a.backward {
        reads.extend([b.grad_out.value, a.out.value]);
        reads.extend(b.gradient.iter().flat_map(Expression::loads));
    }
    reads.sort_unstable();
    reads.dedup();
    Part { nodes: nodes.iter().copied().collect(), results, reads, attention }
}
