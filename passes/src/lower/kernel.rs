//! Kernels: operations that run together.

use super::attention::Attention;
use petgraph::graph::NodeIndex;
use std::collections::HashMap;
use tpc_ir::{Graph, Op, Value};

/// An index of an iteration space, along which a dimension may run.
pub type LoopDim = usize;

/// Operations that run as one kernel.
#[derive(Clone, Debug)]
pub enum Kernel {
    /// An operation that is a kernel on its own: a product, a lookup of rows, a concatenation.
    Single(NodeIndex),
    /// Elementwise operations and reductions over one iteration space.
    Loop(Nest),
    /// Products that are added up, and the elementwise operations on their sum (`lower/epilogue.rs`).
    Products {
        /// The products in the order in which they run; often there is only one.
        products: Vec<NodeIndex>,
        /// The elementwise operations on the sum, over the indices of the result of the last product.
        epilogue: Nest,
    },
    /// Attention, or its backward pass.
    Attention {
        /// The attention that the kernel computes.
        attention: Box<Attention>,
        /// The nodes that it computes, in program order.
        nodes: Vec<NodeIndex>,
        /// Every value that it reads, including those that it reads only to recompute scores.
        reads: Vec<Value>,
    },
    /// A collective of several values, in the order in which they are stored side by side.
    Collective(Vec<NodeIndex>),
}

/// Elementwise operations and reductions, and the indices of the iteration space that each of them runs along.
#[derive(Clone, Debug, Default)]
pub struct Nest {
    /// The members, in program order.
    pub nodes: Vec<NodeIndex>,
    /// Members of earlier loops that this one recomputes instead of loading them, in program order
    /// (`lower/recompute.rs`).
    pub recomputed: Vec<NodeIndex>,
    /// For each member, and for each product whose epilogue this is, the loop index of each dimension of its result.
    pub dims: HashMap<NodeIndex, Vec<LoopDim>>,
    /// For each member, the loop index of each of its subscript letters.
    pub letters: HashMap<NodeIndex, Vec<LoopDim>>,
    /// For each loop index, a value and its dimension with this index. They determine the extent of the index.
    pub space: Vec<(Value, usize)>,
    /// The index that reductions within a row reduce.
    pub row: Option<LoopDim>,
}

impl Kernel {
    /// The nodes that it computes, without those that it recomputes, in program order.
    pub fn nodes(&self) -> Vec<NodeIndex> {
        match self {
            Kernel::Single(node) => vec![*node],
            Kernel::Loop(nest) => nest.nodes.clone(),
            Kernel::Products { products, epilogue } => sorted(products.iter().chain(&epilogue.nodes)),
            Kernel::Attention { nodes, .. } | Kernel::Collective(nodes) => nodes.clone(),
        }
    }

    /// The first node that it computes, in program order; for a collective, its first value.
    pub fn first(&self) -> NodeIndex {
        self.ends().0
    }

    /// The last node that it computes, in program order; for a collective, its last value.
    pub fn last(&self) -> NodeIndex {
        self.ends().1
    }

    fn ends(&self) -> (NodeIndex, NodeIndex) {
        let ends = |nodes: &[NodeIndex]| match nodes {
            [only] => (*only, *only),
            [first, .., last] => (*first, *last),
            [] => unreachable!("a kernel computes something"),
        };
        match self {
            Kernel::Single(node) => (*node, *node),
            Kernel::Loop(nest) => ends(&nest.nodes),
            Kernel::Products { .. } => ends(&self.nodes()),
            Kernel::Attention { nodes, .. } | Kernel::Collective(nodes) => ends(nodes),
        }
    }

    /// The values that it reads, including its own ones, but not those that it recomputes.
    pub fn reads(&self, graph: &Graph) -> Vec<Value> {
        match self {
            Kernel::Single(node) => graph.operands(*node),
            Kernel::Loop(nest) => nest.reads(graph),
            Kernel::Products { products, epilogue } => [operands(graph, products), epilogue.reads(graph)].concat(),
            Kernel::Attention { reads, .. } => reads.clone(),
            Kernel::Collective(nodes) => operands(graph, nodes),
        }
    }

    /// The nest, if this is a loop.
    pub fn as_loop(&self) -> Option<&Nest> {
        match self {
            Kernel::Loop(nest) => Some(nest),
            _ => None,
        }
    }

    /// The nest, if this is a loop, to be changed.
    pub fn as_loop_mut(&mut self) -> Option<&mut Nest> {
        match self {
            Kernel::Loop(nest) => Some(nest),
            _ => None,
        }
    }

    /// The nest of a loop or of an epilogue.
    pub fn nest(&self) -> Option<&Nest> {
        match self {
            Kernel::Loop(nest) | Kernel::Products { epilogue: nest, .. } => Some(nest),
            _ => None,
        }
    }

    /// The nodes of a collective, if this is one.
    pub fn as_collective(&self) -> Option<&[NodeIndex]> {
        match self {
            Kernel::Collective(nodes) => Some(nodes),
            _ => None,
        }
    }
}

impl Nest {
    /// Its members and the nodes that it recomputes, in program order.
    pub fn members(&self) -> Vec<NodeIndex> {
        sorted(self.nodes.iter().chain(&self.recomputed))
    }

    /// The values that it reads, including its own ones, but not those that it recomputes.
    pub fn reads(&self, graph: &Graph) -> Vec<Value> {
        let mut all = operands(graph, &self.nodes);
        all.extend(operands(graph, &self.recomputed));
        all.retain(|v| !self.recomputed.contains(&v.node));
        all
    }

    /// The loop indices that a member reduction sums over.
    pub fn reduced(&self, node: NodeIndex) -> Vec<LoopDim> {
        let kept = &self.dims[&node];
        self.letters[&node].iter().copied().filter(|d| !kept.contains(d)).collect()
    }

    /// The loop indices of some subscript letters of a member.
    pub fn along(&self, member: NodeIndex, row: &[u8]) -> Vec<LoopDim> {
        row.iter().map(|&l| self.letters[&member][l as usize]).collect()
    }
}

fn operands(graph: &Graph, nodes: &[NodeIndex]) -> Vec<Value> {
    nodes.iter().flat_map(|&n| graph.operands(n)).collect()
}

fn sorted<'a>(nodes: impl Iterator<Item = &'a NodeIndex>) -> Vec<NodeIndex> {
    let mut all: Vec<NodeIndex> = nodes.copied().collect();
    all.sort_unstable();
    all
}

/// The subscripts of an operation that can be a member of a loop: its own, or elementwise ones.
pub struct Letters {
    /// The letters of each operand.
    pub operands: Vec<Vec<u8>>,
    /// The letters of the result.
    pub result: Vec<u8>,
    /// The number of letters.
    pub count: usize,
}

/// The subscripts of an operation that can be a member of a loop.
pub fn letters(graph: &Graph, node: NodeIndex) -> Letters {
    let rank = graph.node(node).types[0].rank();
    match &graph.node(node).op {
        Op::Map { subs, .. } | Op::Reduce { subs, .. } => {
            Letters { operands: subs.operands.clone(), result: subs.result.clone(), count: subs.letters() }
        }
        op => {
            let all: Vec<u8> = (0..rank as u8).collect();
            let operands = if matches!(op, Op::Random { .. }) { vec![Vec::new()] } else { vec![all.clone()] };
            Letters { operands, result: all, count: rank }
        }
    }
}

impl Letters {
    /// A tensor and its dimension that has a letter.
    pub(super) fn dim_of(&self, operands: &[Value], node: NodeIndex, letter: usize) -> (Value, usize) {
        let position = |ls: &Vec<u8>| ls.iter().position(|&l| l as usize == letter);
        if let Some(d) = position(&self.result) {
            return (node.into(), d);
        }
        let found = operands.iter().zip(&self.operands).find_map(|(&v, ls)| Some((v, position(ls)?)));
        found.unwrap_or((node.into(), 0))
    }
}

/// Whether an operation can be a member of a loop.
pub fn is_loop_op(op: &Op) -> bool {
    matches!(op, Op::Map { .. } | Op::Reduce { .. } | Op::ToPartial { .. } | Op::Random { .. })
}

/// Whether an operation needs no kernel: it is an input, a view of its operand, or computed where it is read.
pub fn is_free(op: &Op) -> bool {
    matches!(
        op,
        Op::Input { .. } | Op::Fill(_) | Op::Iota | Op::ShardSlice { .. } | Op::Index { .. } | Op::Slice { .. }
    )
}
