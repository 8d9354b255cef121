//! Which index of a weight an axis cuts: whole heads, and kv heads like the query heads they serve.
//!
//! Dimensions that the program relates are one index (as in canonicalizing). An axis of n ranks cuts
//! the first index of a weight's output (or input) features that can be cut: with kv heads g and
//! groups r, `[g, r, hd]`, it cuts g if n ≤ g or nothing better divides, g and r by the two parts of
//! the axis if g divides n, r alone if only r is divisible. The inside of a head is never cut: the last
//! of several indices, and every index that a product of two activations sums together with it in the forward
//! pass (the pairs of an interleaved rotary embedding, `[h, pairs, 2]`, which a query and its key are multiplied
//! along). An index that is sliced or indexed (the thirds of q|k|v, the halves of a rotary embedding) cannot be
//! cut. What was decided for one weight holds for every weight that has the index, but an axis cuts one
//! dimension of a weight at most: the first.

use crate::rules::{FactorKind, rule};
use petgraph::graph::NodeIndex;
use petgraph::unionfind::UnionFind;
use std::collections::{HashMap, HashSet};
use tpc_ir::{AxisId, Graph, InputId, Op, Phase, Type, Value};

/// A part of an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// The whole axis.
    Whole,
    /// The major part after a split into this many.
    Major(usize),
    /// The minor part after a split into this many.
    Minor(usize),
}

/// The indices of a program's dimensions.
pub struct Indices {
    first: HashMap<Value, usize>,
    root: Vec<usize>,
    uncuttable: HashSet<usize>,
    /// What each product of two activations in the forward pass sums over.
    summed: Vec<HashSet<Index>>,
}

/// An index: a class of dimensions.
pub type Index = usize;

impl Indices {
    /// Relates dimensions through every operation.
    pub fn of(graph: &Graph) -> Self {
        let mut first = HashMap::new();
        let mut count = 0;
        for node in graph.nodes() {
            for (result, ty) in graph.node(node).types.iter().enumerate() {
                first.insert(Value { node, result: result as u32 }, count);
                count += ty.rank();
            }
        }
        let mut classes = UnionFind::<usize>::new(count);
        let mut whole = Vec::new();
        for node in graph.nodes() {
            let n = graph.node(node);
            let operands = graph.operands(node);
            let types: Vec<&Type> = operands.iter().map(|&v| graph.ty(v)).collect();
            let row = rule(&n.op, &types, &n.types.iter().collect::<Vec<_>>());
            let results = (0..n.types.len() as u32).map(|result| Value { node, result });
            let mut of_factor: HashMap<usize, usize> = HashMap::new();
            for (v, dims) in operands.iter().copied().chain(results).zip(row.operands.iter().chain(&row.results)) {
                for (d, &f) in dims.iter().enumerate() {
                    let var = first[&v] + d;
                    if row.factors[f].kind == FactorKind::Whole {
                        whole.push(var);
                    } else if let Some(&other) = of_factor.get(&f) {
                        classes.union(var, other);
                    } else {
                        of_factor.insert(f, var);
                    }
                }
            }
        }
        let root = classes.into_labeling();
        let uncuttable = whole.into_iter().map(|v| root[v]).collect();
        let mut indices = Indices { first, root, uncuttable, summed: Vec::new() };
        indices.summed = indices.sums_of_activations(graph);
        indices
    }

    fn sums_of_activations(&self, graph: &Graph) -> Vec<HashSet<Index>> {
        let activations = activations(graph);
        let mut sums = Vec::new();
        for node in graph.nodes() {
            let Op::Einsum { subs } = &graph.node(node).op else { continue };
            let operands = graph.operands(node);
            let forward = graph.node(node).origin.phase == Phase::Forward;
            if forward && operands.iter().all(|v| activations[v.node.index()]) {
                let of_operand = |(v, letters): (&Value, &Vec<u8>)| {
                    let first = self.first[v];
                    let summed = (0..letters.len()).filter(|&d| !subs.result.contains(&letters[d]));
                    summed.map(|d| self.root[first + d]).collect::<Vec<Index>>()
                };
                sums.push(operands.iter().zip(&subs.operands).flat_map(of_operand).collect());
            }
        }
        sums
    }

    /// Says that an index lies inside a head, and with it what is summed together with it.
    fn inside_a_head(&mut self, index: Index) {
        let mut found = vec![index];
        while let Some(index) = found.pop() {
            if self.uncuttable.insert(index) {
                found.extend(self.summed.iter().filter(|sum| sum.contains(&index)).flatten());
            }
        }
    }

    /// The index of a dimension of a node's first result.
    pub fn of_dim(&self, node: NodeIndex, dim: usize) -> Index {
        self.root[self.first[&node.into()] + dim]
    }
}

/// Whether each node's value depends on the batch, and not on parameters and constants alone.
fn activations(graph: &Graph) -> Vec<bool> {
    let mut depends = vec![false; graph.len()];
    for node in graph.nodes() {
        let of_data = matches!(&graph.node(node).op, Op::Input { id: InputId::Data(_), .. });
        depends[node.index()] = of_data || graph.operands(node).iter().any(|v| depends[v.node.index()]);
    }
    depends
}

/// Decisions for one axis.
pub struct Cuts<'a> {
    indices: &'a Indices,
    ranks: usize,
    decided: HashMap<Index, Vec<Part>>,
    /// Whether the axis is split, and where.
    pub split: Option<usize>,
}

impl<'a> Cuts<'a> {
    /// No decisions yet for an axis of that many ranks. `heads` lists feature dimension groups of
    /// weights that will be cut; the last of several is inside a head and never cut.
    pub fn new(graph: &Graph, indices: &'a mut Indices, ranks: usize, groups: &[(NodeIndex, Vec<usize>)]) -> Self {
        for (node, dims) in groups.iter().filter(|(_, dims)| dims.len() > 1) {
            let last = dims[dims.len() - 1];
            indices.inside_a_head(indices.of_dim(*node, last));
        }
        let mut cuts = Cuts { indices, ranks, decided: HashMap::new(), split: None };
        // Weights with more indices know more: query heads before kv heads.
        let mut order: Vec<&(NodeIndex, Vec<usize>)> = groups.iter().collect();
        order.sort_by_key(|(node, dims)| (std::cmp::Reverse(dims.len()), *node));
        for (node, dims) in order {
            cuts.decide(graph, *node, dims);
        }
        cuts
    }

    fn decide(&mut self, graph: &Graph, node: NodeIndex, dims: &[usize]) {
        let ty = &graph.node(node).types[0];
        let free: Vec<(Index, usize)> = dims
            .iter()
            .map(|&d| (self.indices.of_dim(node, d), ty.shape[d]))
            .filter(|(i, _)| !self.indices.uncuttable.contains(i))
            .collect();
        if free.iter().any(|(i, _)| self.decided.contains_key(i)) {
            return;
        }
        let n = self.ranks;
        let chosen: Vec<(Index, Vec<Part>)> = match free.as_slice() {
            [] => vec![],
            [(g, extent), (r, group), ..]
                if *extent < n
                    && n.is_multiple_of(*extent)
                    && (self.split.is_none() || self.split == Some(*extent))
                    && group % (n / extent) == 0 =>
            {
                self.split = Some(*extent);
                vec![(*g, vec![Part::Major(*extent)]), (*r, vec![Part::Minor(*extent)])]
            }
            [(g, extent), (r, group), ..] if extent % n != 0 && group % n == 0 => {
                vec![(*g, vec![]), (*r, vec![Part::Whole])]
            }
            [(g, _), ..] => vec![(*g, vec![Part::Whole])],
        };
        self.decided.extend(chosen);
    }

    /// The axes that cut a dimension; `parts` is the axis, or its two parts where it is split.
    pub fn axes(&self, node: NodeIndex, dim: usize, parts: &[AxisId]) -> Vec<AxisId> {
        let one = |part: &Part| match part {
            Part::Whole => parts.to_vec(),
            Part::Major(_) => parts.first().copied().into_iter().collect(),
            Part::Minor(_) => parts.last().copied().into_iter().collect(),
        };
        let decided = self.decided.get(&self.indices.of_dim(node, dim));
        decided.into_iter().flatten().flat_map(one).collect()
    }
}
