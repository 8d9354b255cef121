//! Finds attention: two products around a softmax. As one kernel, it never has the matrix of scores in memory as a
//! whole.
//!
//! Before: nine operations and five values of `[heads, rows, columns]` in the forward pass alone.
//! ```text
//! %1 = einsum "hri,hci->hrc" %q, %k
//! %2 = select %mask, -1e30, (mul %1, 0.125)
//! %3 = reduce_max %2      %4 = exp (sub %2, %3)      %5 = reduce_sum %4
//! %6 = einsum "hrc,hcw->hrw" (div %4, %5), %v
//! ```
//! After: one kernel that computes `%6` and, for the backward pass, `%3` and `%5`, which have one number per row.
//!
//! **Forward**: the walk begins at a product and follows its elementwise functions. A maximum over one dimension, the
//! exponential of the difference, and the sum of exponentials are a softmax; a product of it that sums over the columns
//! is the end. **Backward**: the walk continues. Everything that is computed from the exponentials, their sum and the
//! gradient `grad_out · value` has a normal form (`polynomial.rs`). A value whose normal form is `p · (g − Σ p · g)` is
//! the gradient of the score, and elementwise functions of it lead to the products that are the gradients of query and
//! key. No other operation may read a value in between; otherwise the program is left as it is. The same holds if the
//! columns are sharded, because the maximum is then reduced over ranks before it is used.
//!
//! The pass uses global types only.

mod action;
mod expression;
mod operand;
mod polynomial;
mod walk;

pub(super) use action::{Rank, Stats, action, tile};

use expression::{Expression, Making};
use operand::Operand;
use petgraph::graph::NodeIndex;
use polynomial::Base;
use std::collections::{BTreeSet, HashSet};
use tpc_ir::{DType, Graph, Op, Value};
use walk::Walk;

/// What an attention kernel computes. Dimensions are those of the result of the first product.
#[derive(Clone, Debug)]
pub struct Attention {
    /// The first product, which identifies the pair of a forward and a backward kernel.
    product: NodeIndex,
    /// The dimensions other than rows and columns, in order.
    batch: Vec<usize>,
    /// `None` if there is a single row.
    rows: Option<usize>,
    columns: usize,
    query: Operand,
    key: Operand,
    value: Operand,
    out: Operand,
    score: Expression,
    weight: Option<Expression>,
    /// The element type of scores: f32 or f64.
    real: DType,
    /// Whether a backward kernel follows.
    keep: bool,
    backward: Option<Backward>,
}

#[derive(Clone, Debug)]
struct Backward {
    grad_out: Operand,
    gradient: Option<Expression>,
    grad_query: Option<Operand>,
    grad_key: Option<Operand>,
    grad_value: Option<Operand>,
}

/// An attention kernel that was found.
pub(super) struct Match {
    /// The nodes that it computes, in program order.
    pub(super) nodes: Vec<NodeIndex>,
    /// The nodes that other kernels read, in program order.
    pub(super) results: Vec<NodeIndex>,
    /// The values that it reads.
    pub(super) reads: Vec<Value>,
    pub(super) attention: Attention,
}

/// The attention kernels of a program.
#[derive(Default)]
pub(super) struct Found {
    pub(super) matches: Vec<Match>,
    /// Other nodes that are no longer needed in memory.
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
        let Some((matches, recomputed)) = attention(graph, product) else { continue };
        if matches.iter().flat_map(|p| &p.nodes).any(|n| taken.contains(n)) {
            continue;
        }
        taken.extend(matches.iter().flat_map(|p| &p.nodes));
        made.extend(recomputed);
        found.matches.extend(matches);
    }
    // A node that the bodies recompute need not be in memory if only attention reads it.
    let read: HashSet<NodeIndex> = found.matches.iter().flat_map(|p| &p.reads).map(|v| v.node).collect();
    for &node in made.iter().rev().filter(|n| !taken.contains(n) && !read.contains(n)) {
        let inside = graph.users(node).all(|(u, _)| taken.contains(&u) || found.absorbed.contains(&u));
        if inside && !graph.outputs.iter().any(|o| o.value.node == node) {
            found.absorbed.insert(node);
        }
    }
    found
}

/// The kernels of the attention that begins with a product, and the other nodes that they recompute.
fn attention(graph: &Graph, product: NodeIndex) -> Option<(Vec<Match>, Vec<NodeIndex>)> {
    let walk = Walk::from(graph, product)?;
    let forward = walk.forward_nodes();
    let backward = walk.backward_nodes(&forward);
    walk.is_closed(&forward, &backward).then_some(())?;
    let double = forward.iter().chain(&backward).any(|&n| graph.node(n).types[0].dtype == DType::F64);
    let real = if double { DType::F64 } else { DType::F32 };
    let mut made = Vec::new();
    let first = forward_half(graph, &walk, real, !backward.is_empty(), &mut made)?;
    let mut matches = vec![matched(&forward, vec![first.out.value.node], first.clone())];
    if !backward.is_empty() {
        let half = backward_half(graph, &walk, &first, &mut made)?;
        let results = [&half.grad_query, &half.grad_key, &half.grad_value].into_iter().flatten();
        let mut results: Vec<NodeIndex> = results.map(|s| s.value.node).collect();
        results.sort_unstable();
        let second = matched(&backward, results, Attention { backward: Some(half), ..first });
        // Everything that the kernel reads must be computed before any of its results is read.
        let first = *second.results.first()?;
        if second.reads.iter().any(|v| v.node >= first) {
            return None;
        }
        matches.push(second);
    }
    made.retain(|n| !forward.contains(n) && !backward.contains(n));
    Some((matches, made))
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

fn matched(nodes: &BTreeSet<NodeIndex>, results: Vec<NodeIndex>, attention: Attention) -> Match {
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
    Match { nodes: nodes.iter().copied().collect(), results, reads, attention }
}
