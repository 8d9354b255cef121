//! Emits loops, and the bodies of epilogues.

use super::super::claims::{Body, Claim, Content, Named};
use super::super::kernel::{LoopDim, Nest, is_loop_op, letters};
use super::emitter::Emitter;
use super::in_place::InPlace;
use super::views::spread;
use petgraph::graph::NodeIndex;
use std::collections::{HashMap, HashSet};
use tpc_ir::program::{Action, Instruction, Loop, View, dense_strides};
use tpc_ir::{Graph, MapFn, Op, ReduceOp, Scalar, Value};

/// Which results of a body overwrite the memory of another value.
#[derive(Clone, Copy)]
pub(super) enum Writes<'a> {
    /// The body of a loop, of which some members overwrite inputs.
    OverInputs(&'a InPlace),
    /// The epilogue of products. Its result, which is written last, overwrites the sum of the products.
    AfterProducts {
        /// The products, in the order in which they run.
        products: &'a [NodeIndex],
        /// The member that is the result.
        result: NodeIndex,
    },
}

impl<'a> Writes<'a> {
    fn products(self) -> &'a [NodeIndex] {
        match self {
            Writes::OverInputs(_) => &[],
            Writes::AfterProducts { products, .. } => products,
        }
    }
}

impl Emitter<'_> {
    pub(super) fn fused(&mut self, nest: &Nest, in_place: &InPlace) {
        let graph = self.graph;
        let last = *nest.nodes.last().expect("a loop has members");
        let phase = graph.node(last).origin.phase;
        // Operands must have views before the instructions of the loop are built.
        let members = nest.members();
        self.operands(nest, &members, phase);
        let order = loop_order(graph, nest, &self.stored);
        let extent = |d: LoopDim| {
            let (v, i) = nest.space[d];
            self.shape(graph.ty(v))[i]
        };
        let (order, empty): (Vec<LoopDim>, Vec<LoopDim>) = order.into_iter().partition(|&d| extent(d) > 0);
        let dims: Vec<usize> = order.iter().map(|&d| extent(d)).collect();
        debug_assert!(members.iter().all(|&n| is_loop_op(&graph.node(n).op)));
        let made = self.members_without(nest, &members, &empty);
        for &node in members.iter().filter(|n| !made.contains(n)) {
            if self.is_written(nest, node) {
                self.target(node, in_place); // The result has no elements on this rank, but needs a view.
            }
        }
        if !made.is_empty() {
            let (body, claim) = self.body(nest, &made, &order, Writes::OverInputs(in_place));
            let label = loop_label(graph, if empty.is_empty() { &nest.nodes } else { &made });
            self.push(Action::Loop(Loop { dims, body }), Claim::Loop(claim), phase, label);
        }
    }

    /// The members of a loop that a rank computes if some indices of the loop are empty there: the members that the
    /// loop writes and that have none of these indices, and what these members need. Other kernels read such values on
    /// every rank, but a loop with an empty index has no iterations. A reduction over an empty index is the neutral
    /// element of its operation and needs no operand, so the remaining loop runs over the other indices alone.
    fn members_without(&self, nest: &Nest, members: &[NodeIndex], empty: &[LoopDim]) -> Vec<NodeIndex> {
        if empty.is_empty() {
            return members.to_vec();
        }
        let mut needed: HashSet<NodeIndex> = HashSet::new();
        for &node in members.iter().rev() {
            let has_elements = !nest.dims[&node].iter().any(|d| empty.contains(d));
            let written = has_elements && self.is_written(nest, node);
            if !written && !needed.contains(&node) {
                continue;
            }
            needed.insert(node);
            let has_no_terms = nest.letters[&node].iter().any(|d| empty.contains(d));
            if !has_no_terms {
                needed.extend(self.graph.operands(node).iter().map(|v| v.node));
            }
        }
        members.iter().copied().filter(|n| needed.contains(n)).collect()
    }

    /// Whether a loop writes a member to memory.
    fn is_written(&self, nest: &Nest, node: NodeIndex) -> bool {
        self.stored[node.index()] && nest.recomputed.binary_search(&node).is_err()
    }

    /// The view to which a loop writes a member: the input that it updates, or a new buffer.
    pub(super) fn target(&mut self, node: NodeIndex, in_place: &InPlace) -> View {
        let Some(&input) = in_place.get(&node) else { return self.define(node.into()) };
        let view = self.views[&Value::from(input)].clone();
        self.views.insert(node.into(), view.clone());
        view
    }

    /// The instructions of a loop or an epilogue over dimensions in a given order, and their claim.
    pub(super) fn body(
        &mut self,
        nest: &Nest,
        members: &[NodeIndex],
        order: &[LoopDim],
        writes: Writes<'_>,
    ) -> (Vec<Instruction>, Body) {
        let graph = self.graph;
        let position_of = |d: LoopDim| order.iter().position(|&o| o == d).expect("every index has a position");
        let row = order.len().wrapping_sub(1);
        let mut body: Vec<Instruction> = Vec::new();
        let mut registers: HashMap<Value, usize> = HashMap::new();
        let mut loads: HashMap<(Value, Vec<LoopDim>), usize> = HashMap::new();
        let mut stores: Vec<(Instruction, Value)> = Vec::new();
        let mut written: Vec<(usize, Value)> = Vec::new();
        let mut claim = Body::default();
        let mut name = |register: usize, content: Content, along: &[LoopDim]| {
            claim.registers.push(Named { register, content, along: along.to_vec() });
        };
        let (in_place, result) = match writes {
            Writes::OverInputs(in_place) => (in_place, None),
            Writes::AfterProducts { result, .. } => (&InPlace::new(), Some(result)),
        };
        let summed = match writes.products() {
            [] => &[][..],
            [terms @ .., host] => {
                let dtype = graph.node(*host).types[0].dtype;
                let given = push(&mut body, Instruction::Given { index: 0, dtype });
                registers.insert((*host).into(), given);
                let along: Vec<LoopDim> = nest.dims[host].iter().map(|&d| position_of(d)).collect();
                name(given, Content::Value((*host).into()), &along);
                if let (Some(first), Some(result)) = (terms.first(), result) {
                    let view = self.views[&result.into()].clone();
                    let dims: Vec<LoopDim> = nest.dims[&result].iter().map(|&d| position_of(d)).collect();
                    let strides = spread(&view.strides, &dims, order.len());
                    let sum = push(&mut body, Instruction::Load { view, strides });
                    registers.insert((*first).into(), sum);
                    name(sum, Content::Terms(terms.to_vec()), &along);
                }
                // The first term stands for the sum of all terms, so the other terms have no operands.
                terms.get(1..).unwrap_or_default()
            }
        };
        for &node in members {
            let n = graph.node(node);
            let rows = letters(graph, node);
            let at = &nest.letters[&node];
            let value = Value::from(node);
            let dtype = n.types[0].dtype;
            let dims: Vec<LoopDim> = nest.dims[&node].iter().map(|&d| position_of(d)).collect();
            // An index that is not in the order is empty on this rank.
            let has_no_terms = at.iter().any(|d| !order.contains(d));
            let mut args = Vec::new();
            for (v, row_letters) in graph.operands(node).into_iter().zip(&rows.operands) {
                if summed.contains(&v.node) || has_no_terms {
                    continue;
                }
                if let Some(&r) = registers.get(&v) {
                    args.push(r);
                    continue;
                }
                let dims: Vec<LoopDim> = row_letters.iter().map(|&l| position_of(at[l as usize])).collect();
                let r = *loads.entry((v, dims.clone())).or_insert_with(|| {
                    let ins = match graph.op(v) {
                        Op::Fill(_) | Op::Iota => self.computed(v, &dims),
                        _ => {
                            let view = self.views[&v].clone();
                            let strides = spread(&view.strides, &dims, order.len());
                            Instruction::Load { view, strides }
                        }
                    };
                    body.push(ins);
                    name(body.len() - 1, Content::Value(v), &dims);
                    body.len() - 1
                });
                args.push(r);
            }
            let mut accumulate = None;
            let register = match &n.op {
                Op::Reduce { op, .. } if has_no_terms => {
                    push(&mut body, Instruction::Constant(Scalar::of(dtype, op.identity_of(dtype)), dtype))
                }
                Op::Map { f: MapFn::Identity, .. } => args[0],
                Op::Map { f, .. } => push(&mut body, Instruction::Map { f: *f, args, dtype }),
                Op::ToPartial { op, axes } => {
                    let first = axes.iter().all(|a| self.coords[a.0 as usize] == 0);
                    let identity = Instruction::Constant(Scalar::of(dtype, op.identity_of(dtype)), dtype);
                    if first { args[0] } else { push(&mut body, identity) }
                }
                Op::Reduce { op, .. } => {
                    let reduced: Vec<LoopDim> = nest.reduced(node).iter().map(|&d| position_of(d)).collect();
                    // If only the row is reduced, later instructions can use the result. Otherwise the reduction
                    // accumulates in memory, and each iteration of the loop counts once.
                    if reduced == [row] {
                        push(&mut body, Instruction::ReduceRow { op: *op, arg: args[0], dtype })
                    } else {
                        accumulate = (!reduced.is_empty()).then_some(*op);
                        args[0]
                    }
                }
                Op::Random { distribution, stream } => {
                    let local = n.types[0].local(&graph.mesh, &self.coords);
                    let strides = dense_strides(&n.types[0].shape);
                    let index =
                        dims.iter().zip(&local).zip(&strides).map(|((&d, c), &s)| (d, c.offset, s as usize)).collect();
                    let (distribution, stream) = (*distribution, *stream);
                    push(&mut body, Instruction::Random { distribution, stream, seed: args[0], index, dtype })
                }
                op => unreachable!("{} is not a loop operation", op.name()),
            };
            registers.insert(value, register);
            if accumulate.is_none() {
                name(register, Content::Value(value), &dims);
            }
            if self.is_written(nest, node) {
                let view = if result == Some(node) { self.views[&value].clone() } else { self.target(node, in_place) };
                let strides = spread(&view.strides, &dims, order.len());
                let store = Instruction::Store { view, strides, arg: register, accumulate };
                if in_place.is_empty() && result != Some(node) {
                    written.push((push(&mut body, store), value)); // Stored early, so that the register can be freed early.
                } else {
                    stores.push((store, value));
                }
            }
        }
        // A store that overwrites an input, and that of the final result, come after all loads.
        for (store, value) in stores {
            written.push((push(&mut body, store), value));
        }
        claim.stores = written;
        (body, claim)
    }
}

fn push(body: &mut Vec<Instruction>, ins: Instruction) -> usize {
    body.push(ins);
    body.len() - 1
}

/// The loop indices from outermost to innermost: those of the value with most dimensions that is written, in its order,
/// so that writes are contiguous. The row is last.
fn loop_order(graph: &Graph, nest: &Nest, stored: &[bool]) -> Vec<LoopDim> {
    let rank = nest.space.len();
    let mut best: Vec<LoopDim> = Vec::new();
    for &node in &nest.nodes {
        let dims = match &graph.node(node).op {
            // The result of a reduction is small, so the order is that of its operand.
            Op::Reduce { subs, .. } => subs.operands[0].iter().map(|&l| nest.letters[&node][l as usize]).collect(),
            _ if stored[node.index()] => nest.dims[&node].clone(),
            _ => continue,
        };
        if dims.len() > best.len() {
            best = dims;
        }
    }
    best.extend((0..rank).filter(|d| !best.contains(d)).collect::<Vec<_>>());
    if let Some(row) = nest.row {
        best.retain(|&d| d != row);
        best.push(row);
    }
    best
}

/// A label of a loop, made of the functions that characterize it.
pub(super) fn loop_label(graph: &Graph, nodes: &[NodeIndex]) -> String {
    let has = |f: fn(&Op) -> bool| nodes.iter().any(|&n| f(&graph.node(n).op));
    let is_map = |g: MapFn| nodes.iter().any(|&n| matches!(&graph.node(n).op, Op::Map { f, .. } if *f == g));
    let sums = has(|op| matches!(op, Op::Reduce { op: ReduceOp::Sum, .. }));
    let maxes = has(|op| matches!(op, Op::Reduce { op: ReduceOp::Max, .. }));
    let name = match () {
        () if maxes && sums && is_map(MapFn::Exp) => "softmax",
        () if sums && (is_map(MapFn::Rsqrt) || is_map(MapFn::Sqrt)) => "norm",
        () if sums => "reduce",
        () if nodes.len() == 1 => return graph.node(nodes[0]).op.name(),
        () => "map",
    };
    format!("fused {name} ({})", nodes.len())
}
