//! Lets loops recompute values that are cheap to compute, instead of keeping them in memory.
//!
//! If a loop computes a value element by element from values that are in memory anyway, loops that read the value can
//! recompute it. The first loop then writes less, the readers read no more than before, and the value need not live
//! from the forward pass to the backward pass. The partitioner of PyTorch's compiler does this with a minimal cut (He
//! and Yu, "Transcending runtime-memory tradeoffs in checkpointing by being fusion aware"). Here each value is decided
//! separately, in program order, on exact bytes: it is recomputed if fewer bytes are moved and no more are held, or if
//! fewer are held and no more are moved.
//!
//! ```text
//! before                                        after
//! forward:  r2 = add bias, x ; store r2         forward:  r2 = add bias, x ; store r2
//!           r3 = tanh r2     ; store r3                   r3 = tanh r2
//!           r4 = mul r2, r3  ; store r4                   r4 = mul r2, r3  ; store r4
//! backward: r0 = load r2, r1 = load r3, …       backward: r0 = load r2, r1 = tanh r0, …
//! ```
//!
//! The graph does not change: a node that is recomputed is a member of several loops ([`Nest::recomputed`]). Products,
//! collectives, reductions and random numbers are never recomputed. The decisions depend on the shapes of the first
//! rank, so they are the same for all ranks.

use super::depend::{is_input, memory, source};
use super::kernel::{Kernel, LoopDim, Nest, is_free, letters};
use petgraph::graph::NodeIndex;
use std::collections::{HashMap, HashSet};
use tpc_ir::{Graph, MapFn, Op, Phase, Type, Value};

/// The greatest number of functions that a reader may recompute for one value.
const MOST: usize = 16;
/// The number of bytes that could be moved in the time of one `exp` or a similar function.
const MATH: usize = 4;

/// How a loop recomputes a value.
struct Recomputation {
    /// The nodes to compute, with the loop dimensions that they run along.
    nodes: Vec<(NodeIndex, Vec<LoopDim>)>,
    /// The values to load that the loop does not load yet.
    loads: Vec<Value>,
    /// The bytes of these values, plus the cost of the functions for all elements of the loop, in bytes.
    bytes: usize,
}

/// Lets loops recompute values where that saves memory traffic and costs no memory, or the reverse.
pub(super) fn recompute(graph: &Graph, mut kernels: Vec<Kernel>) -> Vec<Kernel> {
    let mut state = State::new(graph, &kernels);
    for node in graph.nodes() {
        state.decide(&mut kernels, node);
    }
    forget(graph, &mut kernels);
    kernels
}

/// Removes members of loops that are no longer read, and loops without members.
fn forget(graph: &Graph, kernels: &mut Vec<Kernel>) {
    let mut wanted: HashSet<NodeIndex> = graph.outputs.iter().map(|o| source(graph, o.value.node)).collect();
    for kernel in kernels.iter_mut().rev() {
        if let Some(nest) = kernel.as_loop_mut() {
            let mut kept: HashSet<NodeIndex> = HashSet::new();
            for &node in nest.members().iter().rev() {
                let reads = |m: &NodeIndex| graph.operands(*m).contains(&node.into());
                if wanted.contains(&node) && !nest.recomputed.contains(&node) || kept.iter().any(reads) {
                    kept.insert(node);
                }
            }
            nest.nodes.retain(|n| kept.contains(n));
            nest.recomputed.retain(|n| kept.contains(n));
            nest.dims.retain(|n, _| kept.contains(n));
            nest.letters.retain(|n, _| kept.contains(n));
            shrink(nest);
        }
        let own: HashSet<NodeIndex> = kernel.nodes().into_iter().collect();
        let reads = kernel.reads(graph).into_iter().filter(|v| !own.contains(&v.node));
        wanted.extend(reads.map(|v| source(graph, v.node)));
    }
    kernels.retain(|kernel| kernel.as_loop().is_none_or(|nest| !nest.nodes.is_empty()));
}

/// Removes the indices of a loop that no member has.
fn shrink(nest: &mut Nest) {
    let used: HashSet<LoopDim> = nest.letters.values().flatten().copied().collect();
    let kept: Vec<LoopDim> = (0..nest.space.len()).filter(|d| used.contains(d)).collect();
    let to: HashMap<LoopDim, LoopDim> = kept.iter().enumerate().map(|(new, &old)| (old, new)).collect();
    nest.space = kept.iter().map(|&d| nest.space[d]).collect();
    nest.row = nest.row.and_then(|row| to.get(&row).copied());
    for dims in nest.dims.values_mut().chain(nest.letters.values_mut()) {
        dims.iter_mut().for_each(|d| *d = to[d]);
    }
}

struct State<'a> {
    graph: &'a Graph,
    /// The kernel that computes each node.
    kernel_of: Vec<Option<usize>>,
    /// Whether a node must be in memory, because kernels other than loops read it or a view of it is read.
    kept: Vec<bool>,
    /// The other loops that load each node.
    readers: Vec<Vec<usize>>,
    /// The values that each loop loads.
    loads: Vec<HashSet<Value>>,
    /// The last kernel that reads each node's memory.
    last: Vec<usize>,
    /// The inputs that are updated, with the first kernel that updates each.
    updated: HashMap<NodeIndex, usize>,
}

impl<'a> State<'a> {
    fn new(graph: &'a Graph, kernels: &[Kernel]) -> Self {
        let mut kernel_of = vec![None; graph.len()];
        for (k, kernel) in kernels.iter().enumerate() {
            kernel.nodes().iter().for_each(|n| kernel_of[n.index()] = Some(k));
        }
        let mut state = State {
            graph,
            kept: vec![false; graph.len()],
            readers: vec![Vec::new(); graph.len()],
            loads: vec![HashSet::new(); kernels.len()],
            last: vec![0; graph.len()],
            updated: HashMap::new(),
            kernel_of,
        };
        for (input, node) in super::depend::updates(graph) {
            let update = state.kernel_of[source(graph, node).index()].unwrap_or(0);
            state.updated.entry(input).and_modify(|k| *k = update.min(*k)).or_insert(update);
        }
        for (k, kernel) in kernels.iter().enumerate() {
            for v in kernel.reads(graph) {
                if state.kernel_of[v.node.index()] == Some(k) {
                    continue;
                }
                let from = source(graph, v.node).index();
                state.last[from] = state.last[from].max(k);
                if kernel.as_loop().is_none() || is_free(graph.op(v)) {
                    state.kept[from] = true;
                } else if !state.readers[from].contains(&k) {
                    state.readers[from].push(k);
                }
                state.loads[k].insert(v);
            }
        }
        for output in &graph.outputs {
            let from = source(graph, output.value.node).index();
            state.kept[from] = true;
            state.last[from] = kernels.len();
        }
        state
    }

    /// The shape of a value on the first rank.
    fn shape(&self, ty: &Type) -> Vec<usize> {
        ty.local_shape(&self.graph.mesh, &self.graph.mesh.coords(0))
    }

    /// The bytes of a value on the first rank.
    fn bytes(&self, ty: &Type) -> usize {
        self.shape(ty).iter().product::<usize>() * ty.dtype.bytes()
    }

    /// The number of iterations of a loop on the first rank.
    fn elements(&self, nest: &Nest) -> usize {
        nest.space.iter().map(|&(v, d)| self.shape(self.graph.ty(v))[d]).product()
    }

    /// The bytes that stay in use while a value is kept: for a view, those of the viewed value; for an input, 0. `None`
    /// for a gathered parameter, because gathers are merged later (`bucket.rs`) and keeping one of them would keep a
    /// whole block.
    fn held(&self, v: Value) -> Option<usize> {
        let node = memory(self.graph, v.node);
        match &self.graph.node(node).op {
            Op::Input { .. } => Some(0),
            Op::AllGather { .. } if is_input(self.graph, self.graph.operands(node)[0].node) => None,
            _ => Some(self.bytes(&self.graph.node(node).types[0])),
        }
    }

    /// Whether, according to the decisions so far, a value is in memory for later kernels to load. A product that a
    /// single loop reads does not count, because it may become a kernel with an epilogue and never be written.
    fn is_stored(&self, kernels: &[Kernel], v: Value) -> bool {
        let node = source(self.graph, v.node);
        let at = node.index();
        match self.kernel_of[at] {
            Some(_) if self.kept[at] => true,
            Some(k) if kernels[k].as_loop().is_some() => !self.readers[at].is_empty(),
            Some(k) if matches!(self.graph.node(node).op, Op::Einsum { .. }) => {
                self.readers[at].len() > 1 || matches!(kernels[k], Kernel::Attention { .. })
            }
            _ => true,
        }
    }

    /// Decides whether the readers of a node recompute it.
    fn decide(&mut self, kernels: &mut [Kernel], node: NodeIndex) {
        let (graph, at) = (self.graph, node.index());
        let Some(maker) = self.kernel_of[at].filter(|&k| kernels[k].as_loop().is_some()) else { return };
        if self.kept[at] || self.readers[at].is_empty() || !matches!(graph.node(node).op, Op::Map { .. }) {
            return;
        }
        let size = self.bytes(&graph.node(node).types[0]);
        let (mut moved, mut held) = (0, 0);
        let mut recomputations = Vec::new();
        let mut new: HashSet<Value> = HashSet::new();
        for &k in &self.readers[at] {
            let Some(recomputation) = self.recomputation(kernels, maker, k, node) else { return };
            moved += recomputation.bytes;
            for &v in &recomputation.loads {
                if !self.is_stored(kernels, v) && new.insert(v) {
                    moved += self.bytes(graph.ty(v));
                    held += self.bytes(graph.ty(v));
                } else if self.last[source(graph, v.node).index()] < k && new.insert(v) {
                    let Some(bytes) = self.held(v) else { return };
                    held += bytes;
                }
            }
            recomputations.push((k, recomputation));
        }
        let kept = size * (1 + recomputations.len());
        if !(moved < kept && held <= size || moved == kept && held < size) {
            return;
        }
        for (k, recomputation) in recomputations {
            let Some(nest) = kernels[k].as_loop_mut() else { continue };
            for (n, dims) in recomputation.nodes {
                let letters = letters(graph, n);
                let mut along = vec![0; letters.count];
                letters.result.iter().zip(&dims).for_each(|(&l, &d)| along[l as usize] = d);
                nest.letters.insert(n, along);
                nest.dims.insert(n, dims);
                nest.recomputed.push(n);
            }
            nest.recomputed.sort_unstable();
            for v in recomputation.loads {
                let from = source(graph, v.node).index();
                self.last[from] = self.last[from].max(k);
                self.loads[k].insert(v);
                if is_free(graph.op(v)) {
                    self.kept[from] = true;
                } else if !self.readers[from].contains(&k) {
                    self.readers[from].push(k);
                }
            }
            self.loads[k].remove(&Value::from(node));
        }
        self.readers[at].clear();
    }

    /// How loop `k` recomputes a node of loop `maker`; `None` if it cannot.
    fn recomputation(&self, kernels: &[Kernel], maker: usize, k: usize, node: NodeIndex) -> Option<Recomputation> {
        let nest = kernels[k].as_loop()?;
        let mut reads = nest.nodes.iter().chain(&nest.recomputed).flat_map(|&reader| {
            let rows = letters(self.graph, reader).operands;
            let of = self.graph.operands(reader).into_iter().zip(rows);
            of.filter(|(v, _)| v.node == node).map(move |(_, row)| (reader, row))
        });
        let dims = |(reader, row): (NodeIndex, Vec<u8>)| nest.along(reader, &row);
        let first = dims(reads.next()?);
        if !reads.all(|read| dims(read) == first) {
            return None;
        }
        let mut recomputation = Recomputation { nodes: Vec::new(), loads: Vec::new(), bytes: 0 };
        let mut stack = vec![(node, first)];
        while let Some((n, dims)) = stack.pop() {
            if let Some((_, known)) = recomputation.nodes.iter().find(|(known, _)| *known == n) {
                if *known != dims {
                    return None;
                }
                continue;
            }
            let Op::Map { f, subs } = &self.graph.node(n).op else { return None };
            if is_math(*f) {
                recomputation.bytes += self.elements(nest) * MATH;
            }
            for (v, row) in self.graph.operands(n).into_iter().zip(&subs.operands) {
                let at = |l: &u8| subs.result.iter().position(|r| r == l).map(|d| dims[d]);
                let of = row.iter().map(at).collect::<Option<Vec<LoopDim>>>()?;
                let op = self.graph.op(v);
                let here = self.kernel_of[v.node.index()] == Some(maker);
                if matches!(op, Op::Fill(_) | Op::Iota) || recomputation.loads.contains(&v) {
                    continue;
                }
                if nest.recomputed.contains(&v.node) {
                    if nest.dims[&v.node] != of {
                        return None;
                    }
                } else if here && matches!(op, Op::Map { .. }) && !self.is_stored(kernels, v) {
                    stack.push((v.node, of));
                } else if self.kernel_of[v.node.index()] == Some(k) || !self.may_wait(kernels, k, v) {
                    return None;
                } else if !self.loads[k].contains(&v) {
                    recomputation.bytes += self.bytes(self.graph.ty(v));
                    recomputation.loads.push(v);
                }
            }
            recomputation.nodes.push((n, dims));
            if recomputation.nodes.len() > MOST {
                return None;
            }
        }
        Some(recomputation)
    }

    /// Whether a value is still unchanged when loop `k` runs. Inputs are updated in place, and a reader must not delay
    /// the update.
    fn may_wait(&self, kernels: &[Kernel], k: usize, v: Value) -> bool {
        let early = |n: &NodeIndex| self.graph.node(*n).origin.phase != Phase::Optimizer;
        let update = self.updated.get(&memory(self.graph, v.node));
        update.is_none_or(|&update| k < update && kernels[k].nodes().iter().all(early))
    }
}

/// Whether a function takes many instructions.
fn is_math(f: MapFn) -> bool {
    use MapFn::{Cos, Erf, Exp, Log, Pow, Rem, Sigmoid, Sin, Tanh};
    matches!(f, Pow | Rem | Exp | Log | Tanh | Erf | Sin | Cos | Sigmoid)
}
