//! One rank's kernels: local shapes, strides, offsets, groups.
//!
//! Operands of a collective that carries several values lie side by side. A value that has its own
//! kernel is written there at once; others (views, inputs, what more than one bucket wants) are copied.
//! An all-reduce writes its result over its operand if no other kernel reads the operand, and a product with an
//! epilogue writes over the value that the epilogue adds under the same condition.

use super::attention::{self, Attention, Stats};
use super::claims::{Body, Claim, Claims, Content, Named};
use super::group::{Kernel, LoopDim, is_loop_op, letters, reduced_dims};
use super::schedule::{Launch, Schedule, why};
use super::{depend, epilogue};
use petgraph::graph::NodeIndex;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use tpc_ir::program::{
    Action, Binding, Buffer, BufferId, Collective, CollectiveKind, Contract, ContractDim, InputBinding, Instruction,
    Loop, OutputBinding, Part, RankProgram, Step, View, dense_strides,
};
use tpc_ir::sharding::chunk;
use tpc_ir::{AxisId, Graph, InputId, MapFn, Op, OutputKind, Phase, ReduceOp, Scalar, Type, Value};

/// Emits the program of one rank with unplaced buffers, and what each of its steps is said to do.
pub(super) fn emit(graph: &Graph, schedule: &Schedule, rank: usize) -> (RankProgram, Claims) {
    let kernels = &schedule.kernels;
    let coords = graph.mesh.coords(rank);
    let program = RankProgram { mesh: graph.mesh.clone(), rank, ..RankProgram::default() };
    let mut e = Emitter {
        graph,
        rank,
        coords,
        program,
        claims: Vec::new(),
        module: Arc::default(),
        views: HashMap::new(),
        tags: vec![0; kernels.len()],
        started: 0,
        bundles: HashMap::new(),
        slices: HashMap::new(),
        stored: stored(graph, kernels),
        read_again: depend::read_again(graph, kernels).into_keys().collect(),
        stats: HashMap::new(),
    };
    e.inputs();
    let in_place = in_place(graph, schedule);
    for (k, kernel) in kernels.iter().enumerate() {
        e.slices(k, kernel);
    }
    for launch in &schedule.order {
        let (Launch::Run(k) | Launch::Start(k) | Launch::Wait(k)) = *launch;
        e.module = kernels[k].nodes.last().map(|n| graph.node(*n).origin.place().into()).unwrap_or_default();
        match *launch {
            Launch::Run(k) => e.kernel(&kernels[k], &in_place[k]),
            Launch::Start(k) => e.start(k, &kernels[k]),
            Launch::Wait(k) => e.wait(k, &kernels[k]),
        }
    }
    e.outputs();
    (e.program, Claims(e.claims))
}

/// The values of loop members that someone outside the loop reads.
fn stored(graph: &Graph, kernels: &[Kernel]) -> Vec<bool> {
    let mut stored = vec![false; graph.len()];
    for kernel in kernels {
        let own: HashSet<NodeIndex> = kernel.nodes.iter().copied().collect();
        for v in kernel.reads(graph) {
            stored[depend::source(graph, v.node).index()] |= !own.contains(&v.node);
        }
    }
    graph.outputs.iter().for_each(|o| stored[depend::source(graph, o.value.node).index()] = true);
    stored
}

/// For every kernel the updates it may write straight over their input: it replaces rows of the input, or is a loop over
/// exactly the input's elements that reads the input only at the very elements it writes, and every other reader has run
/// before.
fn in_place(graph: &Graph, schedule: &Schedule) -> Vec<HashMap<NodeIndex, NodeIndex>> {
    let kernels = &schedule.kernels;
    let mut kernel_of = vec![0usize; graph.len()];
    for (k, kernel) in kernels.iter().enumerate() {
        kernel.nodes.iter().for_each(|n| kernel_of[n.index()] = k);
    }
    // Where each node is over, counted from 1: a collective at its wait. Nodes that nobody wants are over at 0.
    let mut position = vec![0usize; graph.len()];
    for (at, launch) in (1..).zip(&schedule.order) {
        let (Launch::Run(k) | Launch::Start(k) | Launch::Wait(k)) = *launch;
        kernels[k].nodes.iter().for_each(|n| position[n.index()] = at);
    }
    // Where a value is read last for what is computed again.
    let last = |readers: Vec<usize>| readers.iter().map(|&k| position[kernels[k].nodes[0].index()]).max();
    let again: HashMap<NodeIndex, Option<usize>> =
        depend::read_again(graph, kernels).into_iter().map(|(node, readers)| (node, last(readers))).collect();
    let inputs: HashMap<&InputId, NodeIndex> = graph.inputs().map(|(n, id)| (id, n)).collect();
    let mut all = vec![HashMap::new(); kernels.len()];
    for output in &graph.outputs {
        let (OutputKind::Update(id), node) = (&output.kind, output.value.node) else { continue };
        let k = kernel_of[node.index()];
        let Some(&input) = inputs.get(id) else { continue };
        let kernel = &kernels[k];
        let one_use = graph.outputs.iter().filter(|o| o.value == output.value).count() == 1;
        let maps = kernel.is_loop && kernel.nodes.contains(&node) && matches!(graph.node(node).op, Op::Map { .. });
        // Written in every iteration of another index, it would be read again.
        let member = maps && kernel.dims[&node].len() == kernel.space.len();
        let at = position[node.index()];
        let again = again.get(&input).is_some_and(|&read| read >= Some(at));
        let replaces = matches!(graph.node(node).op, Op::Put) && graph.operands(node)[0] == Value::from(input);
        if replaces && one_use && !again && others_are_done(graph, &position, node, input) {
            all[k].insert(node, input);
        }
        if member && one_use && !again && readers_are_done(graph, kernel, &position, at, input, &kernel.dims[&node]) {
            all[k].insert(node, input);
        }
    }
    all
}

/// Whether everything but a node that replaces rows of an input, as its first operand, has read the input before.
fn others_are_done(graph: &Graph, position: &[usize], node: NodeIndex, input: NodeIndex) -> bool {
    let at = position[node.index()];
    graph.users(input).all(|(user, edge)| match depend::is_alias(&graph.node(user).op) {
        true => alias_is_done(graph, position, at, user),
        false if user == node => edge.operand == 0,
        false => position[user.index()] < at,
    }) && !is_output(graph, input)
}

fn readers_are_done(
    graph: &Graph,
    kernel: &Kernel,
    position: &[usize],
    at: usize,
    source: NodeIndex,
    written: &[LoopDim],
) -> bool {
    graph.users(source).all(|(user, edge)| {
        if depend::is_alias(&graph.node(user).op) {
            // Its own readers must all be earlier kernels.
            return alias_is_done(graph, position, at, user);
        }
        if position[user.index()] < at {
            return true;
        }
        if position[user.index()] > at || !kernel.letters.contains_key(&user) {
            return false;
        }
        let row = &letters(graph, user).operands[edge.operand as usize];
        row.iter().map(|&l| kernel.letters[&user][l as usize]).eq(written.iter().copied())
    }) && !is_output(graph, source)
}

/// Whether everybody who reads what lies in a node's memory has run.
fn alias_is_done(graph: &Graph, position: &[usize], at: usize, node: NodeIndex) -> bool {
    let done = |user: NodeIndex| match depend::is_alias(&graph.node(user).op) {
        true => alias_is_done(graph, position, at, user),
        false => position[user.index()] < at,
    };
    graph.users(node).all(|(user, _)| done(user)) && !is_output(graph, node)
}

fn is_output(graph: &Graph, node: NodeIndex) -> bool {
    graph.outputs.iter().any(|o| o.value.node == node)
}

struct Emitter<'a> {
    graph: &'a Graph,
    rank: usize,
    coords: Vec<usize>,
    program: RankProgram,
    /// What each step of the program does.
    claims: Vec<Claim>,
    /// The module of what is being emitted.
    module: Arc<str>,
    /// Where values are found in memory.
    views: HashMap<Value, View>,
    /// Tag of every collective that was started, by its kernel.
    tags: Vec<u32>,
    started: u32,
    /// The operands' buffer of every collective of several values, by its kernel.
    bundles: HashMap<usize, BufferId>,
    /// Values that are made where a collective takes them.
    slices: HashMap<Value, Slice>,
    stored: Vec<bool>,
    /// Nodes whose memory other kernels read for what they compute again.
    read_again: HashSet<NodeIndex>,
    /// What the backward half of an attention takes from the forward half, by their first product.
    stats: HashMap<NodeIndex, Stats>,
}

/// A place in the buffer of a collective of several values.
#[derive(Clone, Copy)]
struct Slice {
    buffer: BufferId,
    /// In elements.
    offset: usize,
}

impl Emitter<'_> {
    fn shape(&self, ty: &Type) -> Vec<usize> {
        ty.local_shape(&self.graph.mesh, &self.coords)
    }

    fn buffer(&mut self, ty: &Type, shape: Vec<usize>, persistent: bool, label: &str) -> View {
        let id = BufferId(self.program.buffers.len() as u32);
        let bytes = shape.iter().product::<usize>() * ty.dtype.bytes();
        self.program.buffers.push(Buffer { offset: 0, bytes, persistent, label: label.into() });
        View::dense(id, ty.dtype, shape)
    }

    /// A new buffer for a value.
    fn define(&mut self, value: Value) -> View {
        let ty = self.graph.ty(value).clone();
        let label = self.graph.op(value).name();
        let view = match self.slices.get(&value) {
            Some(slice) => View { offset: slice.offset, ..View::dense(slice.buffer, ty.dtype, self.shape(&ty)) },
            None => self.buffer(&ty, self.shape(&ty), false, &label),
        };
        self.views.insert(value, view.clone());
        view
    }

    fn push(&mut self, action: Action, claim: Claim, phase: Phase, label: impl Into<Arc<str>>) {
        let module = self.module.clone();
        self.program.steps.push(Step { action, phase, label: label.into(), module });
        self.claims.push(claim);
    }

    fn binding(&self, ty: &Type, layout: &[usize], view: View) -> Binding {
        let start = ty.local(&self.graph.mesh, &self.coords).iter().map(|c| c.offset).collect();
        Binding { view, global: ty.shape.clone(), start, layout: layout.to_vec() }
    }

    fn inputs(&mut self) {
        for node in self.graph.nodes() {
            let n = self.graph.node(node);
            let Op::Input { id, layout, .. } = &n.op else { continue };
            let name = id.to_string();
            let view = self.buffer(&n.types[0], self.shape(&n.types[0]), true, &name);
            let binding = self.binding(&n.types[0], layout, view.clone());
            self.views.insert(node.into(), view);
            self.program.inputs.push(InputBinding { name, kind: id.kind(), binding });
        }
    }

    fn outputs(&mut self) {
        let inputs: HashMap<&InputId, NodeIndex> = self.graph.inputs().map(|(n, id)| (id, n)).collect();
        // Copies into inputs must not disturb copies that still read them: they come last.
        let mut updates = Vec::new();
        for output in &self.graph.outputs {
            let ty = self.graph.ty(output.value);
            let origin = &self.graph.node(output.value.node).origin;
            let phase = origin.phase;
            self.module = origin.place().into();
            let mut view = self.dense(output.value, phase);
            let target = match &output.kind {
                OutputKind::Update(id) => inputs.get(id).map(|&input| self.views[&Value::from(input)].clone()),
                _ => None,
            };
            if let Some(to) = target {
                if to.buffer != view.buffer {
                    let claim = Claim::Copy(output.value);
                    self.push(Action::Copy { from: view, to: to.clone() }, claim, phase, "copy update");
                    updates.extend(self.program.steps.pop().zip(self.claims.pop()));
                }
                view = to;
            } else if self.program.buffers[view.buffer.0 as usize].persistent {
                // An output that is an input: later updates must not change it.
                let to = self.buffer(ty, view.shape.clone(), false, "output");
                let claim = Claim::Copy(output.value);
                self.push(Action::Copy { from: view, to: to.clone() }, claim, phase, "copy output");
                view = to;
            }
            let binding = self.binding(ty, &output.layout, view);
            self.program.outputs.push(OutputBinding { kind: output.kind.clone(), binding });
        }
        for (step, claim) in updates {
            self.program.steps.push(step);
            self.claims.push(claim);
        }
    }

    /// Where a value is found, making it if it is a constant.
    fn view(&mut self, value: Value, phase: Phase) -> View {
        if let Some(v) = self.views.get(&value) {
            return v.clone();
        }
        let node = self.graph.node(value.node);
        let operands = self.graph.operands(value.node);
        let ty = &node.types[0];
        let shape = self.shape(ty);
        let view = match &node.op {
            Op::Fill(_) | Op::Iota => {
                let view = self.define(value);
                let body = vec![self.made(value, &[0]), store(&view, view.strides.clone(), 0)];
                let along = (0..shape.len()).collect();
                let made = Named { register: 0, content: Content::Value(value), along };
                let claim = Claim::Loop(Body { registers: vec![made], stores: vec![(1, value)] });
                self.push(Action::Loop(Loop { dims: shape, body }), claim, phase, "fill");
                return view;
            }
            Op::ShardSlice { dim, .. } => {
                let from = self.view(operands[0], phase);
                let before = self.graph.ty(operands[0]).local(&self.graph.mesh, &self.coords)[*dim].offset;
                let start = ty.local(&self.graph.mesh, &self.coords)[*dim].offset - before;
                let offset = from.offset + start * from.strides[*dim] as usize;
                View { offset, shape, ..from }
            }
            Op::Slice { dim, start, step } => {
                let from = self.view(operands[0], phase);
                let offset = from.offset + start * from.strides[*dim] as usize;
                let mut strides = from.strides.clone();
                strides[*dim] *= *step as isize;
                View { offset, shape, strides, ..from }
            }
            Op::Index { dim, index } => {
                let from = self.view(operands[0], phase);
                let offset = from.offset + index * from.strides[*dim] as usize;
                let mut strides = from.strides.clone();
                strides.remove(*dim);
                View { offset, shape, strides, ..from }
            }
            op => unreachable!("{} has no kernel before its reader", op.name()),
        };
        self.views.insert(value, view.clone());
        view
    }

    /// A view without gaps.
    fn dense(&mut self, value: Value, phase: Phase) -> View {
        let view = self.view(value, phase);
        if view.is_dense() {
            return view;
        }
        let ty = self.graph.ty(value).clone();
        let to = self.buffer(&ty, view.shape.clone(), false, "dense");
        self.push(Action::Copy { from: view, to: to.clone() }, Claim::Copy(value), phase, "copy dense");
        to
    }

    /// The instruction that makes a constant or an index in a loop.
    fn made(&self, value: Value, dims: &[LoopDim]) -> Instruction {
        let ty = self.graph.ty(value);
        match self.graph.op(value) {
            Op::Fill(s) => Instruction::Constant(*s, ty.dtype),
            _ => {
                let offset = ty.local(&self.graph.mesh, &self.coords)[0].offset;
                Instruction::Index { dim: dims[0], offset, dtype: ty.dtype }
            }
        }
    }

    fn kernel(&mut self, kernel: &Kernel, in_place: &HashMap<NodeIndex, NodeIndex>) {
        if kernel.is_loop {
            return self.fused(kernel, in_place);
        }
        if !kernel.products.is_empty() {
            return self.products(kernel);
        }
        if let Some(attention) = &kernel.attention {
            return self.attention(kernel, &attention.0, &attention.1);
        }
        let node = kernel.nodes[0];
        let n = self.graph.node(node);
        let (phase, value) = (n.origin.phase, Value::from(node));
        let operands = self.graph.operands(node);
        let label = n.op.name();
        match &n.op {
            Op::Einsum { .. } => {
                let out = self.define(value);
                let (product, _) = self.contract(node, out);
                self.push(Action::Contract(product), Claim::Operation(node), phase, label);
            }
            Op::Take | Op::ScatterAdd => {
                let (rows, width) = {
                    let table = if matches!(n.op, Op::Take) { self.graph.ty(operands[0]) } else { &n.types[0] };
                    let local = table.local(&self.graph.mesh, &self.coords);
                    (local[0], local[1..].iter().map(|c| c.len).product::<usize>())
                };
                let a = self.dense(operands[0], phase);
                let b = self.dense(operands[1], phase);
                let out = self.define(value);
                let action = if matches!(n.op, Op::Take) {
                    let count = b.elements();
                    Action::Take {
                        table: flat(&a, vec![rows.len, width]),
                        index: flat(&b, vec![count]),
                        out: flat(&out, vec![count, width]),
                        first_row: rows.offset,
                    }
                } else {
                    let count = a.elements();
                    Action::ScatterAdd {
                        index: flat(&a, vec![count]),
                        update: flat(&b, vec![count, width]),
                        out: flat(&out, vec![rows.len, width]),
                        first_row: rows.offset,
                    }
                };
                self.push(action, Claim::Operation(node), phase, label);
            }
            Op::Put => self.put(node, in_place),
            Op::Reshape => {
                let from = self.dense(operands[0], phase);
                let view = flat(&from, self.shape(&n.types[0]));
                self.views.insert(value, view);
            }
            Op::Concat { dim } => {
                let out = self.define(value);
                let mut start = 0;
                let pieces: Vec<View> = operands.into_iter().map(|v| self.view(v, phase)).collect();
                for (i, from) in pieces.into_iter().enumerate() {
                    let to = part(&out, *dim, start, &from.shape);
                    start += from.shape[*dim];
                    self.push(Action::Copy { from, to }, Claim::Piece(node, i), phase, label.clone());
                }
            }
            Op::Pad { dim, low, value: border } => {
                let from = self.view(operands[0], phase);
                let out = self.define(value);
                let body = vec![Instruction::Constant(*border, out.dtype), store(&out, out.strides.clone(), 0)];
                let border = Action::Loop(Loop { dims: out.shape.clone(), body });
                self.push(border, Claim::Border(node), phase, "pad border");
                let to = part(&out, *dim, *low, &from.shape);
                self.push(Action::Copy { from, to }, Claim::Piece(node, 0), phase, label);
            }
            Op::CumSum { dim } => {
                let from = self.dense(operands[0], phase);
                let to = self.define(value);
                self.push(Action::CumSum { from, to, dim: *dim }, Claim::Operation(node), phase, label);
            }
            Op::TopK => {
                let from = self.dense(operands[0], phase);
                let values = self.define(value);
                let indices = self.define(Value { node, result: 1 });
                self.push(Action::TopK { from, values, indices }, Claim::Operation(node), phase, label);
            }
            op => unreachable!("{} is not run", op.name()),
        }
    }

    /// Replaces rows of a table: in the table itself if it is an input that this updates, otherwise in a copy.
    fn put(&mut self, node: NodeIndex, in_place: &HashMap<NodeIndex, NodeIndex>) {
        let n = self.graph.node(node);
        let phase = n.origin.phase;
        let operands = self.graph.operands(node);
        let local = n.types[0].local(&self.graph.mesh, &self.coords);
        let (count, width) = (local[0].len, local[1..].iter().map(|c| c.len).product::<usize>());
        let index = self.dense(operands[1], phase);
        let rows = self.dense(operands[2], phase);
        let table = self.view(operands[0], phase);
        let out = self.target(node, in_place);
        if out.buffer != table.buffer {
            self.push(Action::Copy { from: table, to: out.clone() }, Claim::Copy(operands[0]), phase, "copy table");
        }
        let named = index.elements();
        let action = Action::Put {
            table: flat(&out, vec![count, width]),
            index: flat(&index, vec![named]),
            rows: flat(&rows, vec![named, width]),
            first_row: local[0].offset,
        };
        self.push(action, Claim::Operation(node), phase, "put");
    }

    /// A product written to `out`, which lies like its result, and for each dimension of the action's result
    /// which one it is of the node's.
    fn contract(&mut self, node: NodeIndex, out: View) -> (Contract, Vec<usize>) {
        let n = self.graph.node(node);
        let Op::Einsum { subs } = &n.op else { unreachable!("{} is no product", n.op.name()) };
        let operands = self.graph.operands(node);
        let [left, right] = [0, 1].map(|i| self.view(operands[i], n.origin.phase));
        let epilogue = Vec::new();
        let mut c = Contract { left, right, out, batch: vec![], m: vec![], n: vec![], k: vec![], scale: 1.0, epilogue };
        let mut order = [Vec::new(), Vec::new(), Vec::new()];
        let position = |row: &Vec<u8>, l: usize| row.iter().position(|&x| x as usize == l);
        for l in 0..subs.letters() {
            let at = (position(&subs.operands[0], l), position(&subs.operands[1], l), position(&subs.result, l));
            let stride = |v: &View, d: Option<usize>| d.map_or(0, |d| v.strides[d]);
            let size = at.0.map(|d| c.left.shape[d]).or(at.1.map(|d| c.right.shape[d])).unwrap_or(1);
            let dim = ContractDim {
                size,
                left: stride(&c.left, at.0),
                right: stride(&c.right, at.1),
                out: stride(&c.out, at.2),
            };
            let group = match (at.0.is_some(), at.1.is_some(), at.2) {
                (true, true, Some(d)) => (&mut c.batch, Some((0, d))),
                (true, false, Some(d)) => (&mut c.m, Some((1, d))),
                (false, true, Some(d)) => (&mut c.n, Some((2, d))),
                _ => (&mut c.k, None),
            };
            group.0.push(dim);
            if let Some((of, d)) = group.1 {
                order[of].push(d);
            }
        }
        (c, order.concat())
    }

    /// Products whose sum goes through an epilogue: each but the last is added to those before it.
    fn products(&mut self, kernel: &Kernel) {
        let graph = self.graph;
        let [terms @ .., host] = &kernel.products[..] else { unreachable!("there is a product") };
        let phase = graph.node(*host).origin.phase;
        let written: Vec<NodeIndex> =
            kernel.nodes.iter().copied().filter(|n| self.stored[n.index()] && !kernel.products.contains(n)).collect();
        let result = epilogue::result(graph, kernel, &written, *host, &kernel.dims[host]);
        let result = result.expect("an epilogue has a result like the product's");
        let out = match self.outlived(kernel, result).filter(|_| terms.is_empty()) {
            Some(sum) => self.views[&sum].clone(),
            None => self.define(result.into()),
        };
        self.views.insert(result.into(), out.clone());
        for (i, &term) in terms.iter().enumerate() {
            let (mut product, order) = self.contract(term, out.clone());
            if i > 0 {
                let strides: Vec<isize> = order.iter().map(|&d| out.strides[d]).collect();
                let before = Instruction::Load { view: out.clone(), strides: strides.clone() };
                let dtype = out.dtype;
                let sum = Instruction::Map { f: MapFn::Add, args: vec![0, 1], dtype };
                product.epilogue = vec![Instruction::Given { index: 0, dtype }, before, sum, store(&out, strides, 2)];
            }
            let claim = Claim::Terms(terms[..=i].to_vec());
            self.push(Action::Contract(product), claim, phase, graph.node(term).op.name());
        }
        let members: Vec<NodeIndex> = kernel.members().into_iter().filter(|n| !kernel.products.contains(n)).collect();
        self.operands(kernel, &members, phase);
        let (mut product, order) = self.contract(*host, out);
        let order: Vec<LoopDim> = order.iter().map(|&d| kernel.dims[host][d]).collect();
        let (epilogue, body) = self.body(kernel, &members, &order, &HashMap::new(), Some(result));
        product.epilogue = epilogue;
        let made: Vec<NodeIndex> = members.into_iter().filter(|n| !kernel.again.contains(n)).collect();
        let label = format!("{} + {}", graph.node(*host).op.name(), loop_label(graph, &made));
        self.push(Action::Contract(product), Claim::Product(*host, body), phase, label);
    }

    /// A value that an epilogue reads last, element by element as it writes its result: the gradients of a micro-batch
    /// are added to those before it in their own memory.
    fn outlived(&self, kernel: &Kernel, result: NodeIndex) -> Option<Value> {
        let graph = self.graph;
        let ty = &graph.node(result).types[0];
        let reads = |&reader: &NodeIndex| {
            let rows = letters(graph, reader).operands;
            graph.operands(reader).into_iter().zip(rows).map(move |(v, row)| (reader, v, row)).collect::<Vec<_>>()
        };
        let members = kernel.nodes.iter().filter(|n| !kernel.products.contains(n));
        let candidates = members.flat_map(reads).filter(|(reader, v, row)| {
            let along = row.iter().map(|&l| kernel.letters[reader][l as usize]);
            let alone = makes(graph.op(*v)) && self.is_exclusive(*v) && !self.read_again.contains(&v.node);
            let fits = graph.ty(*v).dtype == ty.dtype && graph.ty(*v).sharding == ty.sharding;
            alone && fits && !self.slices.contains_key(v) && along.eq(kernel.dims[&result].iter().copied())
        });
        candidates.map(|(_, v, _)| v).find(|v| self.views.contains_key(v) && !kernel.dims.contains_key(&v.node))
    }

    /// Has everything in memory that the members of a loop or an epilogue read from there.
    fn operands(&mut self, kernel: &Kernel, members: &[NodeIndex], phase: Phase) {
        for v in members.iter().flat_map(|&node| self.graph.operands(node)) {
            let op = self.graph.op(v);
            if !kernel.dims.contains_key(&v.node) && !matches!(op, Op::Fill(_)) && !matches!(op, Op::Iota) {
                self.view(v, phase);
            }
        }
    }

    fn attention(&mut self, kernel: &Kernel, a: &Attention, reads: &[Value]) {
        let graph = self.graph;
        let last = *kernel.nodes.last().expect("an attention has members");
        let phase = graph.node(last).origin.phase;
        for &v in reads {
            self.view(v, phase);
        }
        for v in a.results() {
            self.define(v);
        }
        let product = self.shape(&graph.node(a.pair()).types[0]);
        let rows: Vec<usize> = a.row_dims().iter().map(|d| d.map_or(1, |d| product[d])).collect();
        let real = |shape: &[usize]| Type::new(a.real(), shape.to_vec());
        let row = real(&rows);
        if !a.is_backward() {
            let max = self.buffer(&row, rows.clone(), false, "attention max");
            let sum = self.buffer(&row, rows.clone(), false, "attention sum");
            self.stats.insert(a.pair(), Stats { max, sum });
        }
        let (block, columns) = attention::tile(*rows.last().unwrap_or(&1), product[a.columns()]);
        let tile = real(&[1 + usize::from(a.is_backward()), block, columns]);
        let tile = self.buffer(&tile, tile.shape.clone(), false, "attention tile");
        let room = a.is_backward().then(|| {
            let sums = real(&[a.summed(graph, &product, &|ty| self.shape(ty))]);
            let delta = self.buffer(&row, rows, false, "attention delta");
            [delta, self.buffer(&sums, sums.shape.clone(), false, "attention sums")]
        });
        let stats = &self.stats[&a.pair()];
        let rank = attention::Rank {
            graph,
            view: &|v| self.views[&v].clone(),
            offsets: &|ty| ty.local(&graph.mesh, &self.coords).iter().map(|c| c.offset).collect(),
        };
        let action = attention::action(a, &rank, &product, stats, tile, room);
        let label = if a.is_backward() { "attention backward" } else { "attention" };
        let (operands, results) = (a.operands(), a.results());
        let claim = Claim::Attention { product: a.pair(), operands, reads: reads.to_vec(), results };
        self.push(Action::Attention(Box::new(action)), claim, phase, label);
    }

    /// Gives the operands of a collective of several values their places side by side.
    fn slices(&mut self, k: usize, kernel: &Kernel) {
        if kernel.nodes.len() < 2 || !self.graph.node(kernel.nodes[0]).op.is_collective() {
            return;
        }
        let in_place = matches!(self.graph.node(kernel.nodes[0]).op, Op::AllReduce { .. });
        let operands: Vec<Value> = kernel.nodes.iter().map(|&n| self.graph.operands(n)[0]).collect();
        let dtype = self.graph.ty(operands[0]).dtype;
        let sizes: Vec<usize> = operands.iter().map(|&v| self.shape(self.graph.ty(v)).iter().product()).collect();
        let label = format!("{} operands of {}", operands.len(), self.graph.node(kernel.nodes[0]).op.name());
        let flat = Type::new(dtype, vec![sizes.iter().sum()]);
        let buffer = self.buffer(&flat, flat.shape.clone(), false, &label).buffer;
        let mut offset = 0;
        for (&v, size) in operands.iter().zip(sizes) {
            // What is reduced in place is lost for other readers.
            if makes(self.graph.op(v)) && (!in_place || self.is_exclusive(v)) {
                self.slices.entry(v).or_insert(Slice { buffer, offset });
            }
            offset += size;
        }
        self.bundles.insert(k, buffer);
    }

    /// Whether a value has one reader and is no output.
    fn is_exclusive(&self, value: Value) -> bool {
        self.graph.users(value.node).count() == 1 && !is_output(self.graph, value.node)
    }

    fn start(&mut self, k: usize, kernel: &Kernel) {
        let first = self.graph.node(kernel.nodes[0]);
        let phase = first.origin.phase;
        let mesh = &self.graph.mesh;
        let axes: Vec<AxisId> = match &first.op {
            Op::AllReduce { axes, .. } => axes.iter().collect(),
            Op::AllGather { axes, .. } | Op::ReduceScatter { axes, .. } | Op::AllToAll { axes, .. } => axes.clone(),
            op => unreachable!("{} is no collective", op.name()),
        };
        let group = mesh.group(self.rank, &axes);
        let kind = self.collective_kind(&kernel.nodes, &group);
        let operands: Vec<Value> = kernel.nodes.iter().map(|&n| self.graph.operands(n)[0]).collect();
        let reduces = matches!(kind, CollectiveKind::AllReduce(_));
        let from = match self.bundles.get(&k).copied() {
            None => self.dense(operands[0], phase),
            Some(buffer) => {
                let mut offset = 0;
                let dtype = self.graph.ty(operands[0]).dtype;
                for &v in &operands {
                    let view = self.view(v, phase);
                    let to = View { offset, ..View::dense(buffer, dtype, view.shape.clone()) };
                    offset += view.elements();
                    if (view.buffer, view.offset) != (to.buffer, to.offset) {
                        self.push(Action::Copy { from: view, to }, Claim::Copy(v), phase, "copy operand");
                    }
                }
                View::dense(buffer, dtype, vec![offset])
            }
        };
        // An all-reduce whose operand nobody else wants writes over it.
        let in_place =
            reduces && (operands.len() > 1 || makes(self.graph.op(operands[0])) && self.is_exclusive(operands[0]));
        let shapes: Vec<Vec<usize>> = kernel.nodes.iter().map(|&n| self.shape(&self.graph.node(n).types[0])).collect();
        let to = if operands.len() == 1 {
            if in_place {
                from.clone()
            } else {
                self.buffer(&first.types[0], shapes[0].clone(), false, &first.op.name())
            }
        } else if in_place {
            from.clone()
        } else {
            let flat = Type::new(from.dtype, vec![shapes.iter().map(|s| s.iter().product::<usize>()).sum()]);
            self.buffer(&flat, flat.shape.clone(), false, &format!("{} results of {}", operands.len(), first.op.name()))
        };
        let mut offset = to.offset;
        for (&node, shape) in kernel.nodes.iter().zip(shapes) {
            let view = View { offset, ..View::dense(to.buffer, to.dtype, shape) };
            offset += view.elements();
            self.views.insert(node.into(), view);
        }
        let full_bytes = from.elements().max(to.elements()) * to.dtype.bytes();
        let names: Vec<&str> = axes.iter().map(|&a| mesh.name(a)).collect();
        let position = group.iter().position(|&r| r == self.rank).unwrap_or(0);
        let tag = self.started;
        self.started += 1;
        self.tags[k] = tag;
        let values = kernel.nodes.len();
        let collective = Collective {
            kind,
            position,
            dtype: to.dtype,
            from,
            to,
            tag,
            axes: names.join(",").into(),
            phase,
            values,
            full_bytes,
            why: why(self.graph, kernel),
            group,
        };
        let label = label(&collective);
        self.push(Action::Start(Box::new(collective)), Claim::Start(kernel.nodes.clone()), phase, label);
    }

    fn wait(&mut self, k: usize, kernel: &Kernel) {
        let n = self.graph.node(kernel.nodes[0]);
        let values = kernel.nodes.len();
        let label = if values > 1 { format!("{} ×{values}", n.op.name()) } else { n.op.name() };
        self.push(Action::Wait { tag: self.tags[k] }, Claim::Wait, n.origin.phase, label);
    }

    /// What the collective of these nodes does, with the sizes of every rank of the group.
    fn collective_kind(&self, nodes: &[NodeIndex], group: &[usize]) -> CollectiveKind {
        let mesh = &self.graph.mesh;
        // Chunk of one dimension on every rank of the group.
        let lens = |ty: &Type, dim: usize| -> Vec<usize> {
            group.iter().map(|&r| chunk(ty.shape[dim], &ty.sharding.dims[dim], mesh, &mesh.coords(r)).len).collect()
        };
        let before = |node: NodeIndex| self.graph.ty(self.graph.operands(node)[0]);
        let after = |node: NodeIndex| &self.graph.node(node).types[0];
        let part = |node: NodeIndex, sharded: &Type, dim: usize| {
            let shape = self.shape(before(node));
            Part {
                outer: shape[..dim].iter().product(),
                lens: lens(sharded, dim),
                inner: shape[dim + 1..].iter().product(),
            }
        };
        let parts = || {
            let parts = nodes.iter().map(|&node| match &self.graph.node(node).op {
                Op::AllGather { dim, .. } => part(node, before(node), *dim),
                Op::ReduceScatter { dim, .. } => part(node, after(node), *dim),
                op => unreachable!("{} has no parts", op.name()),
            });
            parts.collect()
        };
        match &self.graph.node(nodes[0]).op {
            Op::AllReduce { op, .. } => CollectiveKind::AllReduce(*op),
            Op::AllGather { .. } => CollectiveKind::AllGather { parts: parts() },
            Op::ReduceScatter { op, .. } => CollectiveKind::ReduceScatter { op: *op, parts: parts() },
            Op::AllToAll { from, to, .. } => CollectiveKind::AllToAll {
                shape: self.shape(before(nodes[0])),
                cut: *to,
                join: *from,
                cut_lens: lens(after(nodes[0]), *to),
                join_lens: lens(before(nodes[0]), *from),
            },
            op => unreachable!("{} is not a collective", op.name()),
        }
    }

    fn fused(&mut self, kernel: &Kernel, in_place: &HashMap<NodeIndex, NodeIndex>) {
        let graph = self.graph;
        let last = *kernel.nodes.last().expect("a kernel has members");
        let phase = graph.node(last).origin.phase;
        // What is read from memory must be there before the loop's instructions are written.
        let members = kernel.members();
        self.operands(kernel, &members, phase);
        let order = loop_order(graph, kernel, &self.stored);
        let extent = |d: LoopDim| {
            let (v, i) = kernel.space[d];
            self.shape(graph.ty(v))[i]
        };
        let (order, empty): (Vec<LoopDim>, Vec<LoopDim>) = order.into_iter().partition(|&d| extent(d) > 0);
        let dims: Vec<usize> = order.iter().map(|&d| extent(d)).collect();
        debug_assert!(members.iter().all(|&n| is_loop_op(&graph.node(n).op)));
        let made = self.made_without(kernel, &members, &empty);
        for &node in members.iter().filter(|n| !made.contains(n)) {
            if self.is_written(kernel, node) {
                self.target(node, in_place); // It has no elements on this rank.
            }
        }
        if !made.is_empty() {
            let (body, claim) = self.body(kernel, &made, &order, in_place, None);
            let label = loop_label(graph, if empty.is_empty() { &kernel.nodes } else { &made });
            self.push(Action::Loop(Loop { dims, body }), Claim::Loop(claim), phase, label);
        }
    }

    /// The members of a loop that a rank computes if some indices of the loop are empty there: what the loop writes
    /// that has none of these indices, and what that needs. A loop over nothing would compute nothing, and other
    /// kernels read such a value on every rank. The reduction over an empty index is the identity of its operation and
    /// needs no operand, so the remaining loop runs over the other indices alone.
    fn made_without(&self, kernel: &Kernel, members: &[NodeIndex], empty: &[LoopDim]) -> Vec<NodeIndex> {
        if empty.is_empty() {
            return members.to_vec();
        }
        let mut needed: HashSet<NodeIndex> = HashSet::new();
        for &node in members.iter().rev() {
            let has_elements = !kernel.dims[&node].iter().any(|d| empty.contains(d));
            let written = has_elements && self.is_written(kernel, node);
            if !written && !needed.contains(&node) {
                continue;
            }
            needed.insert(node);
            let sums_nothing = kernel.letters[&node].iter().any(|d| empty.contains(d));
            if !sums_nothing {
                needed.extend(self.graph.operands(node).iter().map(|v| v.node));
            }
        }
        members.iter().copied().filter(|n| needed.contains(n)).collect()
    }

    /// Whether a loop writes a member to memory.
    fn is_written(&self, kernel: &Kernel, node: NodeIndex) -> bool {
        self.stored[node.index()] && kernel.again.binary_search(&node).is_err()
    }

    /// Where a loop writes a member: over the input that it updates, or to a buffer of its own.
    fn target(&mut self, node: NodeIndex, in_place: &HashMap<NodeIndex, NodeIndex>) -> View {
        let Some(&input) = in_place.get(&node) else { return self.define(node.into()) };
        let view = self.views[&Value::from(input)].clone();
        self.views.insert(node.into(), view.clone());
        view
    }

    /// The instructions of a loop over dimensions in that order, or of the epilogue of a kernel's products, whose result
    /// `result` is written last.
    fn body(
        &mut self,
        kernel: &Kernel,
        members: &[NodeIndex],
        order: &[LoopDim],
        in_place: &HashMap<NodeIndex, NodeIndex>,
        result: Option<NodeIndex>,
    ) -> (Vec<Instruction>, Body) {
        let graph = self.graph;
        let place_of = |d: LoopDim| order.iter().position(|&o| o == d).expect("every index has a place");
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
        let summed = match &kernel.products[..] {
            [] => &[][..],
            [terms @ .., host] => {
                let dtype = graph.node(*host).types[0].dtype;
                let given = push(&mut body, Instruction::Given { index: 0, dtype });
                registers.insert((*host).into(), given);
                let along: Vec<LoopDim> = kernel.dims[host].iter().map(|&d| place_of(d)).collect();
                name(given, Content::Value((*host).into()), &along);
                if let (Some(first), Some(result)) = (terms.first(), result) {
                    let view = self.views[&result.into()].clone();
                    let dims: Vec<LoopDim> = kernel.dims[&result].iter().map(|&d| place_of(d)).collect();
                    let strides = spread(&view.strides, &dims, order.len());
                    let sum = push(&mut body, Instruction::Load { view, strides });
                    registers.insert((*first).into(), sum);
                    name(sum, Content::Terms(terms.to_vec()), &along);
                }
                // The sum of all terms is what the first of them was.
                terms.get(1..).unwrap_or_default()
            }
        };
        for &node in members {
            let n = graph.node(node);
            let rows = letters(graph, node);
            let at = &kernel.letters[&node];
            let value = Value::from(node);
            let dtype = n.types[0].dtype;
            let dims: Vec<LoopDim> = kernel.dims[&node].iter().map(|&d| place_of(d)).collect();
            // An index that the loop does not run over is empty on this rank.
            let sums_nothing = at.iter().any(|d| !order.contains(d));
            let mut args = Vec::new();
            for (v, row_letters) in graph.operands(node).into_iter().zip(&rows.operands) {
                if summed.contains(&v.node) || sums_nothing {
                    continue;
                }
                if let Some(&r) = registers.get(&v) {
                    args.push(r);
                    continue;
                }
                let dims: Vec<LoopDim> = row_letters.iter().map(|&l| place_of(at[l as usize])).collect();
                let r = *loads.entry((v, dims.clone())).or_insert_with(|| {
                    let ins = match graph.op(v) {
                        Op::Fill(_) | Op::Iota => self.made(v, &dims),
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
                Op::Reduce { op, .. } if sums_nothing => {
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
                    let reduced: Vec<LoopDim> = reduced_dims(kernel, node).iter().map(|&d| place_of(d)).collect();
                    // Over the row alone the result can be used again; otherwise it accumulates in
                    // memory, every iteration of the loop once.
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
            if self.is_written(kernel, node) {
                let view = if result == Some(node) { self.views[&value].clone() } else { self.target(node, in_place) };
                let strides = spread(&view.strides, &dims, order.len());
                let store = Instruction::Store { view, strides, arg: register, accumulate };
                if in_place.is_empty() && result != Some(node) {
                    written.push((push(&mut body, store), value)); // early, so that registers die early
                } else {
                    stores.push((store, value));
                }
            }
        }
        // Written over an input, or the last result: only when everything has been read.
        for (store, value) in stores {
            written.push((push(&mut body, store), value));
        }
        claim.stores = written;
        (body, claim)
    }
}

/// Whether an operation writes its result to a buffer of its own, which may be chosen.
fn makes(op: &Op) -> bool {
    is_loop_op(op)
        || matches!(
            op,
            Op::Einsum { .. }
                | Op::Take
                | Op::ScatterAdd
                | Op::Put
                | Op::Concat { .. }
                | Op::Pad { .. }
                | Op::CumSum { .. }
        )
}

/// The mnemonic, and of several values how many.
fn label(c: &Collective) -> String {
    if c.values > 1 { format!("{} ×{}", c.name(), c.values) } else { c.name().into() }
}

fn push(body: &mut Vec<Instruction>, ins: Instruction) -> usize {
    body.push(ins);
    body.len() - 1
}

fn store(view: &View, strides: Vec<isize>, arg: usize) -> Instruction {
    Instruction::Store { view: view.clone(), strides, arg, accumulate: None }
}

/// Strides of a value's dimensions at their places in the loop, 0 elsewhere.
fn spread(strides: &[isize], dims: &[LoopDim], rank: usize) -> Vec<isize> {
    let mut all = vec![0; rank];
    for (&s, &d) in strides.iter().zip(dims) {
        all[d] += s;
    }
    all
}

/// A dense view under another shape.
fn flat(view: &View, shape: Vec<usize>) -> View {
    View { strides: dense_strides(&shape), shape, ..view.clone() }
}

/// The part of a view that starts at `start` of one dimension.
fn part(view: &View, dim: usize, start: usize, shape: &[usize]) -> View {
    View { offset: view.offset + start * view.strides[dim] as usize, shape: shape.to_vec(), ..view.clone() }
}

/// Loop indices from outermost to innermost: the row last, otherwise the order of the largest value
/// that is written, so that writes are contiguous.
fn loop_order(graph: &Graph, kernel: &Kernel, stored: &[bool]) -> Vec<LoopDim> {
    let rank = kernel.space.len();
    let mut best: Vec<LoopDim> = Vec::new();
    for &node in &kernel.nodes {
        let dims = match &graph.node(node).op {
            // A reduction is written small; its operand decides.
            Op::Reduce { subs, .. } => subs.operands[0].iter().map(|&l| kernel.letters[&node][l as usize]).collect(),
            _ if stored[node.index()] => kernel.dims[&node].clone(),
            _ => continue,
        };
        if dims.len() > best.len() {
            best = dims;
        }
    }
    best.extend((0..rank).filter(|d| !best.contains(d)).collect::<Vec<_>>());
    if let Some(row) = kernel.row {
        best.retain(|&d| d != row);
        best.push(row);
    }
    best
}

/// `loop` with the functions that make it recognizable.
fn loop_label(graph: &Graph, nodes: &[NodeIndex]) -> String {
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
