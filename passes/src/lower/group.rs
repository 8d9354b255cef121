//! Groups operations into kernels, and orders these.
//!
//! A loop kernel has an iteration space, which is a list of indices. An elementwise operation or a reduction joins the
//! kernel of one of its operands, or a recent kernel that reads one of its operands, if its own indices are indices of
//! that space. A reduction over a single index makes that index the *row* of the kernel, so that later members can use
//! its result; in this way a softmax or a norm becomes one kernel. Other reductions accumulate into memory, and their
//! readers run later. Attention is found first ([`super::attention`]). The decisions depend on global types only, so
//! they are the same on all ranks.

use super::attention;
use super::dependence_order::DependenceOrder;
use super::kernel::{Kernel, LoopDim, Nest, is_free, is_loop_op, letters};
use super::turn::{Turn, turns};
use petgraph::graph::NodeIndex;
use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap, HashSet};
use tpc_ir::{Graph, Op, Value};

/// The index of a kernel during grouping.
type KernelId = usize;

fn is_reduction(graph: &Graph, node: NodeIndex) -> bool {
    matches!(graph.node(node).op, Op::Reduce { .. })
}

/// Groups the operations of a graph into kernels, in the order of execution. `attention` says whether attention becomes
/// a kernel.
pub fn kernels(graph: &Graph, attention: bool) -> Vec<Kernel> {
    let found = if attention { attention::find(graph) } else { attention::Found::default() };
    let mut kernel_of: HashMap<NodeIndex, usize> = HashMap::new();
    for (i, found) in found.matches.iter().enumerate() {
        kernel_of.extend(found.nodes.iter().map(|&n| (n, i)));
    }
    let (of, turns) = (vec![None; graph.len()], turns(graph));
    let mut state = Grouping {
        graph,
        kernels: Vec::new(),
        of,
        needs: DependenceOrder::default(),
        turns,
        readers: HashMap::new(),
        scalars: Vec::new(),
        recent: 0,
    };
    for node in graph.nodes() {
        match kernel_of.get(&node).map(|&i| &found.matches[i]) {
            // Everything that the kernel reads is defined before its first result.
            Some(found) if found.results.first() == Some(&node) => state.attention(found),
            Some(_) => {}
            None if found.absorbed.contains(&node) => {}
            None => state.assign(node),
        }
    }
    state.ordered()
}

struct Grouping<'a> {
    graph: &'a Graph,
    /// The kernels so far; `None` for one that was merged into another.
    kernels: Vec<Option<Kernel>>,
    /// The kernel of every node; for a view, that of its source.
    of: Vec<Option<KernelId>>,
    /// The kernels that each kernel depends on, and which kernels were merged.
    needs: DependenceOrder,
    /// When each node runs.
    turns: Vec<Turn>,
    /// For each value, the loops that read it, by the numbers that these had at that time.
    readers: HashMap<Value, Vec<KernelId>>,
    /// The loops without indices.
    scalars: Vec<KernelId>,
    /// All kernels from this number on are loops.
    recent: KernelId,
}

impl Grouping<'_> {
    fn attention(&mut self, found: &attention::Match) {
        let id = self.needs.push(self.makers(&found.reads));
        self.kernels.push(Some(Kernel::Attention {
            attention: Box::new(found.attention.clone()),
            nodes: found.nodes.clone(),
            reads: found.reads.clone(),
        }));
        found.nodes.iter().for_each(|n| self.of[n.index()] = Some(id));
        self.recent = id + 1;
    }

    /// The kernel that computes a node; for a view, that of its source.
    fn maker(&self, node: NodeIndex) -> Option<KernelId> {
        self.of[node.index()].map(|k| self.needs.current(k))
    }

    /// The kernels that compute some values.
    fn makers(&self, values: &[Value]) -> Vec<KernelId> {
        values.iter().filter_map(|v| self.maker(v.node)).collect()
    }

    /// The members of a kernel that is a loop.
    fn nest(&self, k: KernelId) -> Option<&Nest> {
        self.kernels[k].as_ref()?.as_loop()
    }

    fn assign(&mut self, node: NodeIndex) {
        let op = &self.graph.node(node).op;
        let operands = self.graph.operands(node);
        if is_free(op) {
            self.of[node.index()] = operands.first().and_then(|v| self.maker(v.node));
            return;
        }
        if is_loop_op(op) && self.join(node, &operands) {
            return;
        }
        let kernel = match op {
            op if is_loop_op(op) => Kernel::Loop(self.alone(node, &operands)),
            op if op.is_collective() => Kernel::Collective(vec![node]),
            _ => Kernel::Single(node),
        };
        let id = self.needs.push(self.makers(&operands));
        match &kernel {
            Kernel::Loop(nest) => {
                self.note_reads(id, &operands);
                self.scalars.extend(nest.space.is_empty().then_some(id));
            }
            _ => self.recent = id + 1,
        }
        self.kernels.push(Some(kernel));
        self.of[node.index()] = Some(id);
    }

    /// A loop with a single member, over the indices of its letters.
    fn alone(&self, node: NodeIndex, operands: &[Value]) -> Nest {
        let letters = letters(self.graph, node);
        let count = letters.count;
        Nest {
            nodes: vec![node],
            dims: HashMap::from([(node, letters.result.iter().map(|&l| l as usize).collect())]),
            letters: HashMap::from([(node, (0..count).collect())]),
            space: (0..count).map(|l| letters.dim_of(operands, node, l)).collect(),
            ..Nest::default()
        }
    }

    /// Tries to add `node` to the kernel of one of its operands. Kernels with more dimensions come first, so that
    /// operations on each row of a loop stay in the loop. Among these, kernels with a reduction come first, because
    /// others can be merged into them but not the reverse; then later ones.
    fn join(&mut self, node: NodeIndex, operands: &[Value]) -> bool {
        let reduces = |nest: &Nest| nest.nodes.iter().any(|&n| is_reduction(self.graph, n));
        let candidates: BTreeSet<Reverse<(usize, bool, KernelId)>> = operands
            .iter()
            .filter(|v| is_loop_op(self.graph.op(**v)))
            .filter_map(|v| self.maker(v.node))
            .filter_map(|k| self.nest(k).map(|nest| Reverse((nest.space.len(), reduces(nest), k))))
            .collect();
        let makers: Vec<KernelId> = candidates.into_iter().map(|Reverse((.., k))| k).collect();
        // Loops that compute no operand of the node but read one of them.
        let readers = std::iter::once_with(|| self.recent_readers(node, operands)).flatten();
        let candidates = makers.iter().copied().chain(readers.filter(|k| !makers.contains(k)));
        for k in candidates {
            let Some((nest, (letters_at, row))) =
                self.nest(k).and_then(|nest| Some((nest, self.fits(k, node, operands)?)))
            else {
                continue;
            };
            if !makers.contains(&k) && letters_at.len() < nest.space.len() {
                continue;
            }
            let mut needs = self.makers(operands);
            needs.retain(|&o| o != k);
            if needs.iter().any(|&o| self.needs.reaches(o, k)) {
                continue;
            }
            self.needs.need(k, needs);
            let letters = letters(self.graph, node);
            if let Some(Kernel::Loop(nest)) = &mut self.kernels[k] {
                nest.dims.insert(node, letters.result.iter().map(|&l| letters_at[l as usize]).collect());
                nest.letters.insert(node, letters_at);
                nest.nodes.push(node);
                nest.row = row;
            }
            self.of[node.index()] = Some(k);
            self.note_reads(k, operands);
            for &v in operands {
                self.absorb(k, node, v);
            }
            return true;
        }
        false
    }

    /// Merges the loop that computes another operand of a member into the kernel of the member, if the loop runs only
    /// over indices that the operand has and no kernel must run between the two.
    fn absorb(&mut self, k: KernelId, reader: NodeIndex, operand: Value) {
        let Some(j) = self.maker(operand.node).filter(|&j| j != k) else { return };
        let (Some(nest), Some(other)) = (self.nest(k), self.nest(j)) else { return };
        let Some(dims) = other.dims.get(&operand.node) else { return };
        let pure = !other.nodes.iter().any(|&n| is_reduction(self.graph, n));
        if !pure || dims.len() != other.space.len() || !self.is_together(other.nodes[0], reader) {
            return;
        }
        // A member that reads a view of the operand needs it in memory.
        let viewed = nest
            .nodes
            .iter()
            .flat_map(|&m| self.graph.operands(m))
            .any(|v| is_free(self.graph.op(v)) && self.maker(v.node) == Some(j));
        if viewed {
            return;
        }
        let between = self.needs.needs(k).any(|n| n != j && self.needs.reaches(n, j));
        if between || self.needs.reaches(j, k) {
            return;
        }
        // The dimensions of the operand relate the indices of the two loops.
        let edge = self.graph.operands(reader).iter().position(|&v| v == operand).unwrap_or(0);
        let mut to = vec![0; dims.len()];
        for (&d, along) in dims.iter().zip(nest.along(reader, &letters(self.graph, reader).operands[edge])) {
            to[d] = along;
        }
        let Some(Kernel::Loop(other)) = self.kernels[j].take() else { return };
        let Some(Kernel::Loop(nest)) = &mut self.kernels[k] else { return };
        let moved = |all: Vec<LoopDim>| all.into_iter().map(|d| to[d]).collect::<Vec<_>>();
        nest.dims.extend(other.dims.into_iter().map(|(n, d)| (n, moved(d))));
        nest.letters.extend(other.letters.into_iter().map(|(n, d)| (n, moved(d))));
        nest.nodes.extend(other.nodes);
        nest.nodes.sort_unstable();
        self.needs.merge(k, j);
    }

    /// The loop index of each letter of `node` in kernel `k`, and the row that the kernel then has. `None` if the node
    /// cannot be a member.
    fn fits(&self, k: KernelId, node: NodeIndex, operands: &[Value]) -> Option<(Vec<LoopDim>, Option<LoopDim>)> {
        let nest = self.nest(k)?;
        let graph = self.graph;
        if !self.is_together(nest.nodes[0], node) {
            return None; // A result that another phase reads would be computed early and live long.
        }
        let letters = letters(graph, node);
        let mut at: Vec<Option<LoopDim>> = vec![None; letters.count];
        let mut row = nest.row;
        for (v, row_letters) in operands.iter().zip(&letters.operands) {
            let Some(dims) = nest.dims.get(&v.node) else {
                // The operand is not a member. If it is a view of one, it is not available before the loop ends.
                if self.maker(v.node) == Some(k) {
                    return None;
                }
                continue;
            };
            if let Op::Reduce { .. } = graph.op(*v) {
                let reduced = nest.reduced(v.node);
                match (reduced.as_slice(), row) {
                    ([d], None) => row = Some(*d),
                    ([d], Some(r)) if *d == r => {}
                    _ => return None,
                }
            }
            for (&l, &d) in row_letters.iter().zip(dims) {
                match at[l as usize] {
                    Some(other) if other != d => return None,
                    _ => at[l as usize] = Some(d),
                }
            }
        }
        // If the loop already reads an operand, that determines the indices of the operand.
        for (v, row_letters) in operands.iter().zip(&letters.operands) {
            if row_letters.iter().all(|&l| at[l as usize].is_some()) {
                continue;
            }
            let Some(dims) = self.reads_along(k, *v) else { continue };
            let agrees = |(&l, &d): (&u8, &LoopDim)| at[l as usize].is_none_or(|other| other == d);
            if row_letters.iter().zip(&dims).all(agrees) {
                row_letters.iter().zip(dims).for_each(|(&l, d)| at[l as usize] = Some(d));
            }
        }
        let at: Vec<LoopDim> = at.into_iter().collect::<Option<_>>()?;
        let distinct: HashSet<_> = at.iter().collect();
        if distinct.len() != at.len() {
            return None;
        }
        if matches!(graph.node(node).op, Op::Reduce { .. }) && at.len() < nest.space.len() {
            // An accumulating reduction would count each element once per iteration of the other indices. A reduction
            // within a row does not.
            let reduced: Vec<LoopDim> =
                (0..at.len()).filter(|l| !letters.result.contains(&(*l as u8))).map(|l| at[l]).collect();
            match (reduced.as_slice(), row) {
                ([d], None) => row = Some(*d),
                ([d], Some(r)) if *d == r => {}
                _ => return None,
            }
        }
        Some((at, row))
    }

    /// The loop dimensions along which a loop first reads a value that it does not compute.
    fn reads_along(&self, k: KernelId, v: Value) -> Option<Vec<LoopDim>> {
        let nest = self.nest(k)?;
        nest.nodes.iter().find_map(|&reader| {
            let edge = self.graph.operands(reader).iter().position(|&o| o == v)?;
            Some(nest.along(reader, &letters(self.graph, reader).operands[edge]))
        })
    }

    /// Whether two nodes have the same turn, so that one kernel may compute both.
    fn is_together(&self, a: NodeIndex, b: NodeIndex) -> bool {
        self.turns[a.index()] == self.turns[b.index()]
    }

    /// Records that a loop reads some values. Scalars are left out, because they say nothing about indices.
    fn note_reads(&mut self, k: KernelId, values: &[Value]) {
        for &v in values.iter().filter(|&&v| self.graph.ty(v).rank() > 0) {
            self.readers.entry(v).or_default().push(k);
        }
    }

    /// The loops after the last kernel of another kind that read an operand of a node, the latest first. Only such a loop
    /// determines the indices of the node. A node without indices fits into any loop without indices.
    fn recent_readers(&self, node: NodeIndex, operands: &[Value]) -> Vec<KernelId> {
        let scalars = if letters(self.graph, node).count == 0 { &self.scalars[..] } else { &[] };
        let reading = operands.iter().filter_map(|v| self.readers.get(v)).flatten();
        let recent = reading.chain(scalars).map(|&k| self.needs.current(k)).filter(|&k| k >= self.recent);
        recent.collect::<BTreeSet<_>>().into_iter().rev().collect()
    }

    /// The kernels in an order that respects their dependences, and otherwise follows the program.
    fn ordered(self) -> Vec<Kernel> {
        // A kernel has the position of its last member. If it ran earlier, its results would live longer.
        let order = self.needs.ordered(|k| self.kernels[k].as_ref().map(Kernel::last));
        let mut kernels = self.kernels;
        order.into_iter().filter_map(|k| kernels[k].take()).collect()
    }
}
