//! The weights of modules, classified by their use in the graph and ordered by dataflow.

use petgraph::graph::NodeIndex;
use std::collections::{BTreeMap, HashMap, HashSet};
use tpc_ir::{Graph, MapFn, ModulePath, Op, Phase};

/// How the forward pass uses a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// An operand of a product.
    Linear,
    /// An operand of one product per tap of a window.
    Convolution,
    /// The table of a lookup.
    Embedding,
    /// Added to or multiplied with an activation.
    Vector,
}

/// A parameter with its first use in the forward pass.
#[derive(Clone, Debug)]
pub struct Weight {
    /// The path of the parameter: the path of its module, and its own name.
    pub name: ModulePath,
    /// Its input node.
    pub input: NodeIndex,
    /// How it is used.
    pub role: Role,
    /// The node that uses it; for a convolution, the product of the first tap.
    pub user: NodeIndex,
    /// The factored dimensions that the product sums over, which are the input features; for a table, the rows.
    pub inner: Vec<usize>,
    /// The dimensions of the output features; for a table, the hidden dimension; for a vector, all dimensions.
    pub outer: Vec<usize>,
}

/// The paths of all modules that have parameters, directly or in modules inside them, in the order of the parameters.
/// Their names do not influence the order.
pub fn paths(graph: &Graph) -> Vec<ModulePath> {
    let (mut all, mut seen) = (Vec::new(), HashSet::new());
    for parameter in graph.inputs().filter_map(|(_, id)| id.parameter()) {
        let mut path = parameter.holder();
        while seen.insert(path.clone()) {
            all.push(path.clone());
            path = path.holder();
        }
    }
    if seen.insert(ModulePath::default()) {
        all.push(ModulePath::default());
    }
    all
}

/// The weights that the forward pass uses, by their paths.
pub fn weights(graph: &Graph) -> BTreeMap<ModulePath, Weight> {
    let mut all = BTreeMap::new();
    for (input, id) in graph.inputs() {
        let Some(name) = id.parameter() else { continue };
        let mut uses: Vec<Weight> = graph
            .users(input)
            .filter(|(user, _)| graph.node(*user).origin.phase == Phase::Forward)
            .map(|(user, edge)| used(graph, name, input, user, edge.operand as usize))
            .collect();
        // A tied embedding counts as a table; its rows are also the columns of the logits.
        uses.sort_by_key(|w| (w.role != Role::Embedding, w.role != Role::Linear, w.user));
        if let Some(first) = uses.into_iter().next() {
            all.insert(name.clone(), first);
        }
    }
    all
}

fn used(graph: &Graph, name: &ModulePath, input: NodeIndex, user: NodeIndex, operand: usize) -> Weight {
    let rank = graph.node(input).types[0].rank();
    let weight = |role, user, inner: Vec<usize>, outer| Weight { name: name.clone(), input, role, user, inner, outer };
    let outside = |inner: &[usize]| (0..rank).filter(|d| !inner.contains(d)).collect();
    match &graph.node(user).op {
        Op::Einsum { subs } => {
            let letters = &subs.operands[operand];
            let inner: Vec<usize> = (0..rank).filter(|&d| !subs.result.contains(&letters[d])).collect();
            let outer = outside(&inner);
            // The only tap of a kernel of size 1 is not indexed, but the layout of the weight has its dimensions.
            let one_tap = |layout: &[usize]| layout.len() > 2 && layout[2..].iter().all(|&n| n == 1);
            let convolves = matches!(&graph.node(input).op, Op::Input { layout, .. } if one_tap(layout));
            weight(if convolves { Role::Convolution } else { Role::Linear }, user, inner, outer)
        }
        Op::Take => weight(Role::Embedding, user, vec![0], outside(&[0])),
        Op::Index { .. } => match tap(graph, input, user) {
            Some((product, inner, outer)) => weight(Role::Convolution, product, inner, outer),
            None => weight(Role::Vector, user, vec![], outside(&[])),
        },
        _ => weight(Role::Vector, user, vec![], outside(&[])),
    }
}

/// The product of one tap of the weight of a convolution, and the remaining dimensions of the weight: those that it
/// sums over, and those that it keeps.
fn tap(graph: &Graph, input: NodeIndex, first: NodeIndex) -> Option<(NodeIndex, Vec<usize>, Vec<usize>)> {
    let mut left: Vec<usize> = (0..graph.node(input).types[0].rank()).collect();
    // The weight has channels on both sides and at least one dimension of taps.
    let kernel = matches!(&graph.node(input).op, Op::Input { layout, .. } if layout.len() > 2);
    let (mut node, mut operand) = (first, 0);
    loop {
        match &graph.node(node).op {
            Op::Index { dim, .. } => {
                left.remove(*dim);
                // The backward pass reads a tap too, but sums over the dimensions that the forward pass keeps.
                let forward = graph.users(node).filter(|(user, _)| graph.node(*user).origin.phase == Phase::Forward);
                let (user, edge) = forward.min_by_key(|(user, _)| *user)?;
                (node, operand) = (user, edge.operand as usize);
            }
            // A depthwise convolution sums only over the taps.
            Op::Einsum { subs } | Op::Map { f: MapFn::Mul, subs } if kernel => {
                let letters = subs.operands[operand].iter().zip(left);
                let (outer, inner): (Vec<_>, Vec<_>) = letters.partition(|(l, _)| subs.result.contains(l));
                let dims = |pairs: Vec<(_, usize)>| pairs.into_iter().map(|(_, d)| d).collect();
                return Some((node, dims(inner), dims(outer)));
            }
            _ => return None,
        }
    }
}

/// The level of every linear in a module. Linears of level 1 read values from outside, those of level k + 1 read
/// results of level k.
pub fn levels<'a>(graph: &Graph, linears: &[&'a Weight]) -> Vec<(&'a Weight, usize)> {
    let mut level = vec![0usize; graph.len()];
    // Of several linears with one user, the first counts.
    let by_user: HashMap<NodeIndex, &Weight> = linears.iter().rev().map(|&w| (w.user, w)).collect();
    let mut result = Vec::new();
    for node in graph.nodes() {
        let below = graph.operands(node).iter().map(|v| level[v.node.index()]).max().unwrap_or(0);
        let found = by_user.get(&node);
        level[node.index()] = below + usize::from(found.is_some());
        result.extend(found.map(|&w| (w, level[node.index()])));
    }
    result
}

/// The vectors of the same module that are added to the product of a weight, or to the sum of the products of its taps.
pub fn biases(graph: &Graph, weights: &BTreeMap<ModulePath, Weight>, weight: &Weight) -> Vec<ModulePath> {
    let home = weight.name.holder();
    let vectors = weights.values().filter(|b| b.role == Role::Vector && b.name.holder() == home);
    vectors.filter(|b| adds_to(graph, b, weight)).map(|b| b.name.clone()).collect()
}

fn adds_to(graph: &Graph, vector: &Weight, weight: &Weight) -> bool {
    let mut open = vec![vector.user];
    while let Some(node) = open.pop() {
        let operands = graph.operands(node);
        if operands.iter().any(|v| v.node == weight.user) {
            return true;
        }
        if weight.role == Role::Convolution {
            open.extend(operands.iter().filter(|v| lays_out_taps(graph.op(**v))).map(|v| v.node));
        }
    }
    false
}

/// Whether an operation may come between the products of the taps of a convolution and its bias: their sum and, for a
/// transposed convolution, the operations that spread them over the image.
fn lays_out_taps(op: &Op) -> bool {
    match op {
        Op::Map { f, .. } => matches!(f, MapFn::Add | MapFn::Select | MapFn::Identity),
        Op::Slice { .. } | Op::Pad { .. } | Op::Index { .. } | Op::Concat { .. } | Op::Reshape => true,
        _ => false,
    }
}
