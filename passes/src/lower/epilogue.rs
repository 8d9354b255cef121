//! Makes elementwise work right after a product a part of it (an *epilogue*, in the terms of cublasLt and CUTLASS):
//! bias, activation, residual, and sums of several products.
//!
//! ```text
//! before                                    after
//! %1 = einsum x, w                          %1 = einsum x, w … given
//! loop: r0 = load %1, r1 = load bias            r0 = given, r1 = load bias
//!       r2 = add r0, r1 ; store r2              r2 = add r0, r1 ; store r2
//! %4 = einsum a, b ; %5 = einsum c, d       %4 = einsum a, b -> out
//! loop: r2 = add %4, %5 ; store r2          %5 = einsum c, d … out += given
//! ```
//!
//! A loop joins the last of the products that it reads if no other kernel reads that product, the loop is elementwise
//! over exactly the dimensions of the product, and everything else that it reads is computed before the product. The
//! product thus keeps its position and can still hide a collective after it. From a loop that does more (a norm), only
//! the sum of several products joins the last of them. Products that are only terms of one sum are added up in the
//! memory of the sum.

use super::depend::{memory, source, updates};
use super::kernel::{Kernel, LoopDim, Nest, is_free, letters};
use super::turn::{Turn, turns};
use petgraph::graph::NodeIndex;
use std::collections::{HashMap, HashSet};
use tpc_ir::{Graph, MapFn, Op, Phase, Value};

/// Joins loops with the products before them. Kernels keep their order.
pub(super) fn join(graph: &Graph, kernels: Vec<Kernel>) -> Vec<Kernel> {
    let mut state = State::new(graph, kernels);
    for k in 0..state.kernels.len() {
        if let Some(found) = state.nest(k).and_then(|nest| state.whole(k, nest)) {
            if let Some(Kernel::Loop(nest)) = state.kernels[k].take() {
                state.merge(k, nest, found);
            }
            continue;
        }
        for sum in state.nest(k).map_or(Vec::new(), |nest| nest.nodes.clone()) {
            let alone = state.nest(k).and_then(|nest| state.alone(k, nest, sum));
            let Some((nest, found)) = alone.and_then(|alone| state.sum(k, &alone).map(|found| (alone, found))) else {
                continue;
            };
            if let Some(Kernel::Loop(rest)) = &mut state.kernels[k] {
                rest.nodes.retain(|&n| n != sum);
                rest.dims.remove(&sum);
                rest.letters.remove(&sum);
            }
            if state.nest(k).is_some_and(|rest| rest.nodes.is_empty()) {
                state.kernels[k] = None;
            }
            state.merge(k, nest, found);
        }
    }
    state.kernels.into_iter().flatten().collect()
}

/// The products that a loop joins, in order, and the dimensions of the loop that the dimensions of the last product
/// are.
struct Found {
    products: Vec<NodeIndex>,
    dims: Vec<LoopDim>,
}

struct State<'a> {
    graph: &'a Graph,
    /// The kernels; `None` for one that was merged into another.
    kernels: Vec<Option<Kernel>>,
    /// The kernel that computes each node.
    kernel_of: Vec<Option<usize>>,
    /// The other kernels that read the memory of each node.
    readers: Vec<HashSet<usize>>,
    /// Whether each node must be in memory, because it is an output or has views.
    kept: Vec<bool>,
    /// The nodes that are updates of inputs, with these inputs.
    updates: HashMap<NodeIndex, NodeIndex>,
    /// When each node runs.
    turns: Vec<Turn>,
}

impl<'a> State<'a> {
    fn new(graph: &'a Graph, kernels: Vec<Kernel>) -> Self {
        let mut state = State {
            graph,
            kernel_of: vec![None; graph.len()],
            readers: vec![HashSet::new(); graph.len()],
            kept: vec![false; graph.len()],
            updates: updates(graph).map(|(input, node)| (node, input)).collect(),
            turns: turns(graph),
            kernels: Vec::new(),
        };
        for (k, kernel) in kernels.iter().enumerate() {
            kernel.nodes().iter().for_each(|n| state.kernel_of[n.index()] = Some(k));
        }
        for (k, kernel) in kernels.iter().enumerate() {
            for v in kernel.reads(graph) {
                let from = source(graph, v.node).index();
                if state.kernel_of[from] != Some(k) {
                    state.readers[from].insert(k);
                }
                state.kept[from] |= is_free(graph.op(v));
            }
        }
        graph.outputs.iter().for_each(|o| state.kept[source(graph, o.value.node).index()] = true);
        state.kernels = kernels.into_iter().map(Some).collect();
        state
    }

    /// The members of a kernel that is a loop.
    fn nest(&self, k: usize) -> Option<&Nest> {
        self.kernels[k].as_ref()?.as_loop()
    }

    /// Whether only loop `k` reads a product.
    fn is_own(&self, k: usize, product: NodeIndex) -> bool {
        let at = product.index();
        let Some(maker) = self.kernel_of[at] else { return false };
        matches!(self.graph.node(product).op, Op::Einsum { .. })
            && self.graph.node(product).types[0].dtype.is_float()
            && matches!(self.kernels[maker], Some(Kernel::Single(_)))
            && !self.kept[at]
            && self.readers[at].len() == 1
            && self.readers[at].contains(&k)
            && self.kernels[k].as_ref().is_some_and(|reader| self.turns[at] == self.turns[reader.first().index()])
    }

    /// Whether a value is in memory before kernel `at` runs.
    fn is_before(&self, v: Value, at: usize) -> bool {
        self.kernel_of[source(self.graph, v.node).index()].is_none_or(|maker| maker < at)
    }

    /// The loop dimensions along which a loop reads a product; `None` if it reads it in several ways.
    fn along(&self, nest: &Nest, product: NodeIndex) -> Option<Vec<LoopDim>> {
        let mut found: Option<Vec<LoopDim>> = None;
        for reader in nest.members() {
            for (v, row) in self.graph.operands(reader).into_iter().zip(letters(self.graph, reader).operands) {
                if v.node != product {
                    continue;
                }
                let dims = nest.along(reader, &row);
                if found.as_ref().is_some_and(|f| *f != dims) {
                    return None;
                }
                found = Some(dims);
            }
        }
        found
    }

    /// The products that loop `k` as a whole can join.
    fn whole(&self, k: usize, nest: &Nest) -> Option<Found> {
        let maps = nest.nodes.iter().all(|n| matches!(self.graph.node(*n).op, Op::Map { .. }));
        let early =
            |n: &NodeIndex| self.graph.node(*n).origin.phase != Phase::Optimizer && !self.updates.contains_key(n);
        (maps && nest.nodes.iter().all(early)).then_some(())?;
        self.found(k, nest)
    }

    /// A sum in loop `k` as a separate loop, if other kernels compute its terms and no other member of the loop reads
    /// them.
    fn alone(&self, k: usize, nest: &Nest, sum: NodeIndex) -> Option<Nest> {
        let n = self.graph.node(sum);
        let operands = self.graph.operands(sum);
        let is_own = |v: &&Value| self.is_own(k, v.node);
        let sums = matches!(n.op, Op::Map { f: MapFn::Add, .. }) && operands.iter().filter(is_own).count() > 1;
        // An operand that the rest of the loop reads as well would be read twice.
        let rest = || nest.members().into_iter().filter(|&m| m != sum).flat_map(|m| self.graph.operands(m));
        if !sums || operands.iter().any(|v| nest.dims.contains_key(&v.node) || rest().any(|r| r == *v)) {
            return None;
        }
        let rank = n.types[0].rank();
        let letters = letters(self.graph, sum);
        let mut along = vec![0; letters.count];
        letters.result.iter().enumerate().for_each(|(d, &l)| along[l as usize] = d);
        Some(Nest {
            nodes: vec![sum],
            dims: HashMap::from([(sum, (0..rank).collect())]),
            letters: HashMap::from([(sum, along)]),
            space: (0..rank).map(|d| (sum.into(), d)).collect(),
            ..Nest::default()
        })
    }

    /// The products that a sum separated from loop `k` can join, at least two.
    fn sum(&self, k: usize, nest: &Nest) -> Option<Found> {
        self.found(k, nest).filter(|found| found.products.len() > 1)
    }

    /// The products that a loop can join. Its members are all or some of those of loop `k`.
    fn found(&self, k: usize, nest: &Nest) -> Option<Found> {
        let graph = self.graph;
        let reads = nest.reads(graph);
        let own: Vec<NodeIndex> = reads.iter().map(|v| v.node).filter(|&p| self.is_own(k, p)).collect();
        let host = own.iter().copied().max_by_key(|p| self.kernel_of[p.index()])?;
        let at = self.kernel_of[host.index()]?;
        let dims = self.along(nest, host)?;
        let all: HashSet<LoopDim> = dims.iter().copied().collect();
        if all.len() != dims.len() || dims.len() != nest.space.len() {
            return None;
        }
        let there = |v: &Value| v.node == host || nest.dims.contains_key(&v.node) || self.is_before(*v, at);
        // Members that other kernels or the rest of loop `k` read are written. Each must have all dimensions of the
        // loop, and one of them takes the place of the product.
        let leaves = |n: &NodeIndex| {
            let reads = |m: &NodeIndex| !nest.nodes.contains(m) && graph.operands(*m).contains(&(*n).into());
            let other = self.readers[n.index()].iter().any(|&r| r != k);
            self.kept[n.index()] || other || self.nest(k).is_some_and(|all| all.nodes.iter().any(reads))
        };
        let written: Vec<NodeIndex> = nest.nodes.iter().copied().filter(leaves).collect();
        if !reads.iter().all(there) || written.iter().any(|n| nest.dims[n].len() != dims.len()) {
            return None;
        }
        let result = result(graph, nest, &written, host, &dims)?;
        let mut products: Vec<NodeIndex> = Vec::new();
        // The other terms of the sum that has the last product as a term.
        let terms = nest.nodes.iter().find(|&&n| {
            matches!(graph.node(n).op, Op::Map { f: MapFn::Add, .. }) && graph.operands(n).contains(&host.into())
        });
        let is_term = |p: NodeIndex| {
            let once = graph.users(p).count() == 1 && self.along(nest, p).as_ref() == Some(&dims);
            // A kernel that overwrites an input must run after all readers of it, so a product that reads the input
            // cannot move past it.
            let reads = |input: NodeIndex| graph.operands(p).iter().any(|v| memory(graph, v.node) == input);
            let updates = |k: &Kernel| k.nodes().iter().filter_map(|n| self.updates.get(n)).any(|&input| reads(input));
            let bars = |k: &Kernel| k.as_collective().is_some() || updates(k);
            let hides = |maker: usize| self.kernels[maker..at].iter().flatten().any(bars);
            // The sum is accumulated in the memory of the result, so their types must be the same.
            let same = [host, result].iter().all(|&n| graph.node(n).types[0].dtype == graph.node(p).types[0].dtype);
            once && same && own.contains(&p) && !self.kernel_of[p.index()].is_some_and(hides)
        };
        if is_term(host) {
            let operands = terms.into_iter().flat_map(|&sum| graph.operands(sum)).map(|v| v.node);
            products.extend(operands.filter(|&p| p != host && is_term(p)));
        }
        products.sort_unstable_by_key(|p| self.kernel_of[p.index()]);
        products.push(host);
        Some(Found { products, dims })
    }

    /// Makes a loop, or a part of loop `k`, the epilogue of the products that it joins.
    fn merge(&mut self, k: usize, mut nest: Nest, found: Found) {
        let graph = self.graph;
        let host = *found.products.last().expect("there is a product");
        let at = self.kernel_of[host.index()].expect("products have kernels");
        for &node in &nest.nodes {
            self.kernel_of[node.index()] = Some(at);
            self.readers[node.index()].remove(&at);
            if self.kernels[k].is_some() {
                self.readers[node.index()].insert(k);
            }
        }
        for v in nest.reads(graph) {
            let readers = &mut self.readers[source(graph, v.node).index()];
            readers.remove(&k);
            readers.insert(at);
        }
        for &product in &found.products {
            let maker = self.kernel_of[product.index()].replace(at).expect("products have kernels");
            self.kernels[maker] = None;
            for v in graph.operands(product) {
                let readers = &mut self.readers[source(graph, v.node).index()];
                readers.remove(&maker);
                readers.insert(at);
            }
            self.readers[product.index()].clear();
            nest.dims.insert(product, found.dims.clone());
        }
        self.kernels[at] = Some(Kernel::Products { products: found.products, epilogue: nest });
    }
}

/// The value of an epilogue that takes the place of the product: the last one that is written with the dimensions of
/// the product in its order, and with its element type or a wider one.
pub(super) fn result(
    graph: &Graph,
    nest: &Nest,
    written: &[NodeIndex],
    product: NodeIndex,
    dims: &[LoopDim],
) -> Option<NodeIndex> {
    let dtype = |n: NodeIndex| graph.node(n).types[0].dtype;
    let wider = |n: NodeIndex| dtype(n).is_float() && dtype(n).bytes() > dtype(product).bytes();
    let holds = |n: &&NodeIndex| dtype(**n) == dtype(product) || wider(**n);
    written.iter().rev().filter(holds).find(|n| nest.dims[n] == dims).copied()
}
