//! Which operations run as one kernel, and in which order.
//!
//! A loop kernel has an iteration space: a list of indices. An elementwise operation or a reduction
//! joins the kernel of one of its operands, or one just before that reads one of its operands, when its own indices are
//! indices of that space. A
//! reduction over a single index makes that index the kernel's *row*: its result can then be used
//! by later members, which is how a softmax or a norm becomes one kernel. Other reductions
//! accumulate into memory, and their readers run later. Attention is found first ([`super::attention`]).
//! The decision looks at global types only, so all ranks take the same one.

use super::attention::{self, Attention};
use super::turn::{Turn, turns};
use petgraph::graph::NodeIndex;
use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashMap, HashSet};
use tpc_ir::{Graph, Op, Value};

/// Index into the list of kernels while grouping.
type KernelId = usize;

/// The index of an iteration space that a dimension runs along.
pub type LoopDim = usize;

/// Operations that run as one kernel.
#[derive(Clone, Debug, Default)]
pub struct Kernel {
    /// Members in program order.
    pub nodes: Vec<NodeIndex>,
    /// For a loop or an epilogue: per member result, the loop index of each of its dimensions. Reductions also list
    /// their operand's indices in `spaces`.
    pub dims: HashMap<NodeIndex, Vec<LoopDim>>,
    /// For a loop or an epilogue: per member, the loop index of each of its subscript letters.
    pub letters: HashMap<NodeIndex, Vec<LoopDim>>,
    /// For a loop or an epilogue: a value and dimension that has each loop index, to find its extent.
    pub space: Vec<(Value, usize)>,
    /// For a loop: the index that is reduced within a row.
    pub row: Option<LoopDim>,
    /// Whether this is a loop.
    pub is_loop: bool,
    /// Of a loop or an epilogue: nodes of earlier loops that it computes again for itself, in program order (`lower/recompute.rs`).
    pub again: Vec<NodeIndex>,
    /// Of products whose sum goes through an epilogue, which are the other members: those products, the last one (often
    /// the only one) last (`lower/epilogue.rs`).
    pub products: Vec<NodeIndex>,
    /// Of an attention: what it does, and every value that it reads, be it again.
    pub attention: Option<Box<(Attention, Vec<Value>)>>,
}

impl Kernel {
    /// The values that it reads, its own ones included, but not those that it computes again.
    pub fn reads(&self, graph: &Graph) -> Vec<Value> {
        match &self.attention {
            Some(attention) => attention.1.clone(),
            None => {
                let all = self.nodes.iter().chain(&self.again).flat_map(|&n| graph.operands(n));
                all.filter(|v| !self.again.contains(&v.node)).collect()
            }
        }
    }

    /// What it computes: its nodes, and those that it computes again, in program order.
    pub fn members(&self) -> Vec<NodeIndex> {
        let mut all: Vec<NodeIndex> = self.nodes.iter().chain(&self.again).copied().collect();
        all.sort_unstable();
        all
    }
}

/// Whether an operation can be part of a loop.
pub fn is_loop_op(op: &Op) -> bool {
    matches!(op, Op::Map { .. } | Op::Reduce { .. } | Op::ToPartial { .. } | Op::Random { .. })
}

/// Whether an operation needs no kernel: it is an input, a view of its operand, or made where it is
/// read.
pub fn is_free(op: &Op) -> bool {
    matches!(
        op,
        Op::Input { .. } | Op::Fill(_) | Op::Iota | Op::ShardSlice { .. } | Op::Index { .. } | Op::Slice { .. }
    )
}

fn is_reduction(graph: &Graph, node: NodeIndex) -> bool {
    matches!(graph.node(node).op, Op::Reduce { .. })
}

/// Groups a graph's operations into kernels, in execution order.
/// `attention` says whether attention is one of them.
pub fn kernels(graph: &Graph, attention: bool) -> Vec<Kernel> {
    let found = if attention { attention::find(graph) } else { attention::Found::default() };
    let mut part_of: HashMap<NodeIndex, usize> = HashMap::new();
    for (i, part) in found.parts.iter().enumerate() {
        part_of.extend(part.nodes.iter().map(|&n| (n, i)));
    }
    let (of, turns) = (vec![None; graph.len()], turns(graph));
    let mut state = Grouping { graph, kernels: Vec::new(), of, needs: Vec::new(), turns };
    for node in graph.nodes() {
        match part_of.get(&node).map(|&i| &found.parts[i]) {
            // Everything it reads is there before its first result is defined.
            Some(part) if part.results.first() == Some(&node) => state.attention(part),
            Some(_) => {}
            None if found.absorbed.contains(&node) => {}
            None => state.assign(node),
        }
    }
    state.ordered()
}

struct Grouping<'a> {
    graph: &'a Graph,
    kernels: Vec<Kernel>,
    /// The kernel of every node that has one; of a view, that of its source.
    of: Vec<Option<KernelId>>,
    /// Kernels that each kernel reads from.
    needs: Vec<BTreeSet<KernelId>>,
    /// When each node runs.
    turns: Vec<Turn>,
}

impl Grouping<'_> {
    fn attention(&mut self, part: &attention::Part) {
        let id = self.kernels.len();
        let attention = Some(Box::new((part.attention.clone(), part.reads.clone())));
        self.needs.push(part.reads.iter().filter_map(|v| self.of[v.node.index()]).filter(|&k| k != id).collect());
        self.kernels.push(Kernel { nodes: part.nodes.clone(), attention, ..Kernel::default() });
        part.nodes.iter().for_each(|n| self.of[n.index()] = Some(id));
    }

    fn assign(&mut self, node: NodeIndex) {
        let op = &self.graph.node(node).op;
        let operands = self.graph.operands(node);
        if is_free(op) {
            self.of[node.index()] = operands.first().and_then(|v| self.of[v.node.index()]);
            return;
        }
        if is_loop_op(op) && self.join(node, &operands) {
            return;
        }
        let mut kernel = Kernel { nodes: vec![node], is_loop: is_loop_op(op), ..Kernel::default() };
        if kernel.is_loop {
            let letters = letters(self.graph, node);
            let count = letters.count;
            kernel.letters.insert(node, (0..count).collect());
            kernel.dims.insert(node, letters.result.iter().map(|&l| l as usize).collect());
            kernel.space = (0..count).map(|l| letters.home(&operands, node, l)).collect();
        }
        let id = self.kernels.len();
        self.needs.push(operands.iter().filter_map(|v| self.of[v.node.index()]).collect());
        self.kernels.push(kernel);
        self.of[node.index()] = Some(id);
    }

    /// Tries to make `node` a member of the kernel of one of its operands: the one with most dimensions first, so that
    /// what happens to each row of a loop stays in the loop; of these one that reduces, as others can be merged into it
    /// and not it into others; then the latest.
    fn join(&mut self, node: NodeIndex, operands: &[Value]) -> bool {
        let reduces = |k: KernelId| self.kernels[k].nodes.iter().any(|&n| is_reduction(self.graph, n));
        let candidates: BTreeSet<Reverse<(usize, bool, KernelId)>> = operands
            .iter()
            .filter(|v| is_loop_op(self.graph.op(**v)))
            .filter_map(|v| self.of[v.node.index()])
            .map(|k| Reverse((self.kernels[k].space.len(), reduces(k), k)))
            .collect();
        let makers: Vec<KernelId> = candidates.into_iter().map(|Reverse((.., k))| k).collect();
        // A loop that is no maker, but reads the same at the same time.
        let beside = self.recent_loops().into_iter().filter(|k| !makers.contains(k));
        for k in makers.iter().copied().chain(beside) {
            if let Some((letters_at, row)) = self.fits(k, node, operands) {
                if !makers.contains(&k) && letters_at.len() < self.kernels[k].space.len() {
                    continue;
                }
                let needs: Vec<KernelId> =
                    operands.iter().filter_map(|v| self.of[v.node.index()]).filter(|&o| o != k).collect();
                if needs.iter().any(|&o| self.reaches(o, k)) {
                    continue;
                }
                self.needs[k].extend(needs);
                let letters = letters(self.graph, node);
                let kernel = &mut self.kernels[k];
                kernel.dims.insert(node, letters.result.iter().map(|&l| letters_at[l as usize]).collect());
                kernel.letters.insert(node, letters_at);
                kernel.nodes.push(node);
                kernel.row = row;
                self.of[node.index()] = Some(k);
                for &v in operands {
                    self.absorb(k, node, v);
                }
                return true;
            }
        }
        false
    }

    /// Merges the loop that made another operand of a member into the member's kernel, if it runs over
    /// indices that the operand has and nothing lies between the two.
    fn absorb(&mut self, k: KernelId, reader: NodeIndex, operand: Value) {
        let Some(j) = self.of[operand.node.index()].filter(|&j| j != k) else { return };
        let other = &self.kernels[j];
        let Some(dims) = other.dims.get(&operand.node) else { return };
        let pure = !other.nodes.iter().any(|&n| is_reduction(self.graph, n));
        if !pure || dims.len() != other.space.len() || !self.is_together(other.nodes[0], reader) {
            return;
        }
        // A member that reads a view of it needs it in memory.
        let viewed = self.kernels[k]
            .nodes
            .iter()
            .flat_map(|&m| self.graph.operands(m))
            .any(|v| is_free(self.graph.op(v)) && self.of[v.node.index()] == Some(j));
        if viewed {
            return;
        }
        let between = self.needs[k].iter().any(|&n| n != j && self.reaches(n, j));
        if between || self.reaches(j, k) {
            return;
        }
        // The operand's dimensions tell which index of one loop is which of the other.
        let edge = self.graph.operands(reader).iter().position(|&v| v == operand).unwrap_or(0);
        let letters = &letters(self.graph, reader).operands[edge];
        let mut to = vec![0; dims.len()];
        for (&d, &l) in dims.iter().zip(letters) {
            to[d] = self.kernels[k].letters[&reader][l as usize];
        }
        let other = std::mem::take(&mut self.kernels[j]);
        let moved = |all: Vec<LoopDim>| all.into_iter().map(|d| to[d]).collect::<Vec<_>>();
        let kernel = &mut self.kernels[k];
        kernel.dims.extend(other.dims.into_iter().map(|(n, d)| (n, moved(d))));
        kernel.letters.extend(other.letters.into_iter().map(|(n, d)| (n, moved(d))));
        other.nodes.iter().for_each(|n| self.of[n.index()] = Some(k));
        kernel.nodes.extend(other.nodes);
        kernel.nodes.sort_unstable();
        // Views of what was merged follow it.
        for of in self.of.iter_mut().filter(|of| **of == Some(j)) {
            *of = Some(k);
        }
        let needs = std::mem::take(&mut self.needs[j]);
        self.needs[k].extend(needs);
        for (i, needs) in self.needs.iter_mut().enumerate() {
            if needs.remove(&j) && i != k {
                needs.insert(k);
            }
        }
        self.needs[k].remove(&k);
    }

    /// The loop index of each letter of `node` in kernel `k`, and the kernel's row then.
    fn fits(&self, k: KernelId, node: NodeIndex, operands: &[Value]) -> Option<(Vec<LoopDim>, Option<LoopDim>)> {
        let kernel = &self.kernels[k];
        let graph = self.graph;
        let first = *kernel.nodes.first()?;
        if !self.is_together(first, node) {
            return None; // an early result of another phase would live long
        }
        let letters = letters(graph, node);
        let mut at: Vec<Option<LoopDim>> = vec![None; letters.count];
        let mut row = kernel.row;
        for (v, row_letters) in operands.iter().zip(&letters.operands) {
            let Some(dims) = kernel.dims.get(&v.node) else {
                // Made elsewhere, but perhaps a view of something made here: not before the loop ends.
                if self.of[v.node.index()] == Some(k) {
                    return None;
                }
                continue;
            };
            if let Op::Reduce { .. } = graph.op(*v) {
                let reduced = reduced_dims(kernel, v.node);
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
        // What the loop reads anyway tells along which of its dimensions.
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
        if matches!(graph.node(node).op, Op::Reduce { .. }) && at.len() < kernel.space.len() {
            // Accumulating would count every iteration of the loop's other indices; within a row it
            // does not.
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

    /// The dimensions of a loop along which it first reads a value that is made elsewhere.
    fn reads_along(&self, k: KernelId, v: Value) -> Option<Vec<LoopDim>> {
        let kernel = &self.kernels[k];
        kernel.nodes.iter().find_map(|&reader| {
            let edge = self.graph.operands(reader).iter().position(|&o| o == v)?;
            let row = &letters(self.graph, reader).operands[edge];
            Some(row.iter().map(|&l| kernel.letters[&reader][l as usize]).collect())
        })
    }

    /// Whether two nodes run at the same time.
    fn is_together(&self, a: NodeIndex, b: NodeIndex) -> bool {
        self.turns[a.index()] == self.turns[b.index()]
    }

    /// Loops since the last kernel of another kind, the latest first.
    fn recent_loops(&self) -> Vec<KernelId> {
        let latest = (0..self.kernels.len()).rev().filter(|&k| !self.kernels[k].nodes.is_empty());
        latest.take_while(|&k| self.kernels[k].is_loop).collect()
    }

    /// Whether kernel `from` depends on `target`.
    fn reaches(&self, from: KernelId, target: KernelId) -> bool {
        let mut seen = HashSet::from([from]);
        let mut stack = vec![from];
        while let Some(k) = stack.pop() {
            if k == target {
                return true;
            }
            stack.extend(self.needs[k].iter().copied().filter(|&n| seen.insert(n)));
        }
        false
    }

    /// Kernels in an order that respects their needs, otherwise that of the program.
    fn ordered(self) -> Vec<Kernel> {
        let n = self.kernels.len();
        let mut users: Vec<Vec<KernelId>> = vec![Vec::new(); n];
        let mut missing: Vec<usize> = self.needs.iter().map(BTreeSet::len).collect();
        for (k, needs) in self.needs.iter().enumerate() {
            for &need in needs {
                users[need].push(k);
            }
        }
        // A kernel is due when its last member is: earlier would keep what it makes alive longer.
        let key = |k: KernelId| Reverse((self.kernels[k].nodes.last().copied().unwrap_or_default(), k));
        let mut ready: BinaryHeap<_> = (0..n).filter(|&k| missing[k] == 0).map(key).collect();
        let mut order = Vec::new();
        while let Some(Reverse((_, k))) = ready.pop() {
            order.push(k);
            for &u in &users[k] {
                missing[u] -= 1;
                if missing[u] == 0 {
                    ready.push(key(u));
                }
            }
        }
        debug_assert_eq!(order.len(), n, "kernels form a cycle");
        let mut kernels: Vec<Option<Kernel>> = self.kernels.into_iter().map(Some).collect();
        order.into_iter().filter_map(|k| kernels[k].take()).filter(|k| !k.nodes.is_empty()).collect()
    }
}

/// The loop indices that a member reduction sums over.
pub fn reduced_dims(kernel: &Kernel, node: NodeIndex) -> Vec<LoopDim> {
    let kept = &kernel.dims[&node];
    kernel.letters[&node].iter().copied().filter(|d| !kept.contains(d)).collect()
}

/// Subscripts of a loop operation: those it has, or elementwise ones.
pub struct Letters {
    /// Per operand.
    pub operands: Vec<Vec<u8>>,
    /// Of the result.
    pub result: Vec<u8>,
    /// How many there are.
    pub count: usize,
}

/// The subscripts of a loop operation.
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
    /// A tensor and dimension that has the letter.
    fn home(&self, operands: &[Value], node: NodeIndex, letter: usize) -> (Value, usize) {
        let position = |ls: &Vec<u8>| ls.iter().position(|&l| l as usize == letter);
        if let Some(d) = position(&self.result) {
            return (node.into(), d);
        }
        let found = operands.iter().zip(&self.operands).find_map(|(&v, ls)| Some((v, position(ls)?)));
        found.unwrap_or((node.into(), 0))
    }
}
