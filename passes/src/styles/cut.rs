//! Decides which index of a weight an axis cuts. Heads stay whole, and kv heads are cut like the query heads that use
//! them.
//!
//! Dimensions that the program relates are one index, as in canonicalizing. An axis of n ranks cuts the first index of
//! the output (or input) features of a weight that can be cut. Features `[g, r, hd]` are g kv heads with r query heads
//! each:
//! 1. If g < n, g divides n and n/g divides r, the axis is split: its major part cuts g, its minor part r. All weights
//!    share one split; a weight that would need another is cut by the next two rules.
//! 2. If n divides r and not g, the axis cuts r.
//! 3. Otherwise it cuts g.
//!
//! The inside of a head is never cut: that is the last of several indices, and every index that a product of two
//! activations in the forward pass sums over together with it (the pairs of an interleaved rotary embedding,
//! `[h, pairs, 2]`, over which the product of query and key sums). An index that is sliced or indexed (the thirds of
//! q|k|v, the halves of a rotary embedding) cannot be cut. A decision for one weight holds for every weight that has the
//! index, but an axis cuts at most one dimension of a weight, which is the first.

use crate::factors::{FactorKind, row_of};
use petgraph::graph::NodeIndex;
use petgraph::unionfind::UnionFind;
use std::collections::{HashMap, HashSet};
use tpc_ir::{AxisId, Graph, InputId, Op, Phase, Type, Value};

/// An axis, or a part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AxisPart {
    /// The whole axis.
    Whole,
    /// The major part after a split into this many groups.
    Major(usize),
    /// The minor part after a split into this many groups.
    Minor(usize),
}

/// The indices of the dimensions of a program.
pub struct Indices {
    first: HashMap<Value, usize>,
    root: Vec<usize>,
    uncuttable: HashSet<usize>,
    /// The indices that each product of two activations in the forward pass sums over.
    summed: Vec<HashSet<Index>>,
}

/// An index, which is a class of related dimensions.
pub type Index = usize;

impl Indices {
    /// Relates the dimensions of a graph through every operation.
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
            let row = row_of(&n.op, &types, &n.types.iter().collect::<Vec<_>>());
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

    /// Declares that an index is inside a head, and likewise every index that is summed together with it.
    fn inside_a_head(&mut self, index: Index) {
        let mut found = vec![index];
        while let Some(index) = found.pop() {
            if self.uncuttable.insert(index) {
                found.extend(self.summed.iter().filter(|sum| sum.contains(&index)).flatten());
            }
        }
    }

    /// The index of a dimension of the first result of a node.
    pub fn of_dim(&self, node: NodeIndex, dim: usize) -> Index {
        self.root[self.first[&node.into()] + dim]
    }
}

/// For each node, whether it depends on data, and not only on parameters and constants.
fn activations(graph: &Graph) -> Vec<bool> {
    let mut depends = vec![false; graph.len()];
    for node in graph.nodes() {
        let of_data = matches!(&graph.node(node).op, Op::Input { id: InputId::Data(_), .. });
        depends[node.index()] = of_data || graph.operands(node).iter().any(|v| depends[v.node.index()]);
    }
    depends
}

/// The decisions for one axis.
pub struct Cuts<'a> {
    indices: &'a Indices,
    ranks: usize,
    decided: HashMap<Index, Vec<AxisPart>>,
    /// The number of groups into which the axis is split, if it is.
    pub split: Option<usize>,
}

impl<'a> Cuts<'a> {
    /// Decides for an axis of `ranks` ranks. `wanted_dims` has the feature dimensions of each weight that should be cut; the
    /// last of several is inside a head and never cut.
    pub fn new(graph: &Graph, indices: &'a mut Indices, ranks: usize, wanted_dims: &[(NodeIndex, Vec<usize>)]) -> Self {
        for (node, dims) in wanted_dims.iter().filter(|(_, dims)| dims.len() > 1) {
            let last = dims[dims.len() - 1];
            indices.inside_a_head(indices.of_dim(*node, last));
        }
        let mut cuts = Cuts { indices, ranks, decided: HashMap::new(), split: None };
        // Weights with more indices come first, so query heads before kv heads.
        let mut order: Vec<&(NodeIndex, Vec<usize>)> = wanted_dims.iter().collect();
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
        let chosen: Vec<(Index, Vec<AxisPart>)> = match free.as_slice() {
            [] => vec![],
            [(g, extent), (r, group), ..]
                if *extent < n
                    && n.is_multiple_of(*extent)
                    && (self.split.is_none() || self.split == Some(*extent))
                    && group % (n / extent) == 0 =>
            {
                self.split = Some(*extent);
                vec![(*g, vec![AxisPart::Major(*extent)]), (*r, vec![AxisPart::Minor(*extent)])]
            }
            [(g, extent), (r, group), ..] if extent % n != 0 && group % n == 0 => {
                vec![(*g, vec![]), (*r, vec![AxisPart::Whole])]
            }
            [(g, _), ..] => vec![(*g, vec![AxisPart::Whole])],
        };
        self.decided.extend(chosen);
    }

    /// The axes that cut a dimension. `parts` is the axis, or its two parts if it is split.
    pub fn axes(&self, node: NodeIndex, dim: usize, parts: &[AxisId]) -> Vec<AxisId> {
        let one = |part: &AxisPart| match part {
            AxisPart::Whole => parts.to_vec(),
            AxisPart::Major(_) => parts.first().copied().into_iter().collect(),
            AxisPart::Minor(_) => parts.last().copied().into_iter().collect(),
        };
        let decided = self.decided.get(&self.indices.of_dim(node, dim));
        decided.into_iter().flatten().flat_map(one).collect()
    }
}
