//! Proves that a rank program computes the placed program: memory holds values of the placed program, and is read only
//! as the value that it holds.
//!
//! Lowering claims for each step which values it reads and computes ([`super::Claims`]). This pass goes through the
//! steps and tracks which bytes of the arena hold which value. A step may read a value only from where it is stored at
//! that time, and it computes its results only if it is the claimed operation of the placed program: loops are checked
//! register by register, products and collectives by sizes, strides and groups, views by their offsets. A step that
//! does not run, because one of its loops is empty on this rank, computes nothing. At the end, every output must be
//! where its binding says, and the buffer of every input must hold the input or its update.
//!
//! The proof uses the placed program and the steps alone, and shares no code with the passes that emit them. It trusts
//! the bodies of attention, of which it only checks the operands; the tests execute these with a reference
//! ([`tpc_ir::execute`]).

use super::check_ranks::span;
use super::claims::{Body, Claim, Claims, Content, Named};
use super::memory::each_view;
use petgraph::graph::NodeIndex;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use tpc_ir::program::{
    Action, Binding, Collective, CollectiveKind, Contract, ContractDim, Instruction, Part, RankProgram, View,
    dense_strides,
};
use tpc_ir::sharding::Chunk;
use tpc_ir::{AxisId, Graph, InputId, MapFn, Op, OutputKind, ReduceOp, Scalar, Type, Value};

/// A step of a rank program that does not do what the placed program says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("rank {rank}, step {step} (`{label}`): {fault}")]
pub struct ContentsError {
    /// The rank.
    pub rank: usize,
    /// The index of the step, or the number of steps for inputs and outputs.
    pub step: usize,
    /// A description of the step.
    pub label: String,
    /// The fault.
    pub fault: Fault,
}

/// A fault of a step.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// A value is read from where it is not stored.
    #[error("reads {value} at {view}, where {found}")]
    NotThere {
        /// The value that should be there.
        value: String,
        /// The view through which it is read.
        view: String,
        /// A description of the contents that are there.
        found: String,
    },
    /// A value with elements is written by a loop without iterations, or along fewer dimensions than it has.
    #[error("does not write every element of {0}")]
    NotWritten(String),
    /// A step computes something other than the node that is claimed.
    #[error("is not {node}: {what}")]
    Differs {
        /// The node of the placed program.
        node: String,
        /// The respect in which it differs.
        what: &'static str,
    },
    /// A step overwrites memory that it still reads.
    #[error("overwrites memory that it still reads at {0}")]
    Overlap(String),
    /// The number of claims is not the number of steps, or a claim is of another kind than its step.
    #[error("is not the kind of step that lowering claims")]
    Unclaimed,
}

/// Checks a rank program against the placed program and the claims of lowering.
///
/// # Errors
/// The first step that does not do what is claimed.
pub fn check(graph: &Graph, program: &RankProgram, claims: &Claims) -> Result<(), ContentsError> {
    let claims = &claims.0;
    let mut m = Memory {
        graph,
        program,
        coords: graph.mesh.coords(program.rank),
        stored: BTreeMap::new(),
        starts: HashMap::new(),
        pieces: None,
        in_flight: HashMap::new(),
    };
    let failed = |step: usize, fault: Fault| {
        let label = program.steps.get(step).map_or("inputs and outputs".into(), |s| s.label.to_string());
        ContentsError { rank: program.rank, step, label, fault }
    };
    if claims.len() != program.steps.len() {
        return Err(failed(0, Fault::Unclaimed));
    }
    m.inputs().map_err(|fault| failed(program.steps.len(), fault))?;
    for (i, (step, claim)) in program.steps.iter().zip(claims).enumerate() {
        m.step(&step.action, claim).map_err(|fault| failed(i, fault))?;
    }
    m.outputs().map_err(|fault| failed(program.steps.len(), fault))
}

type Checked = Result<(), Fault>;

/// A range of the arena with known contents.
struct Stored {
    end: usize,
    content: Content,
    view: View,
}

/// The state of the arena between two steps.
struct Memory<'a> {
    graph: &'a Graph,
    program: &'a RankProgram,
    coords: Vec<usize>,
    /// The contents of the arena, by their first byte. Their bytes do not overlap.
    stored: BTreeMap<usize, Stored>,
    /// The first bytes of the ranges that hold each content.
    starts: HashMap<Content, Vec<usize>>,
    /// A value that is being assembled from its operands, its view, and the number of operands that have been copied.
    pieces: Option<(NodeIndex, View, usize)>,
    /// The collectives in flight, by tag: their nodes, and the view for their results.
    in_flight: HashMap<u32, (Vec<NodeIndex>, View)>,
}

impl Memory<'_> {
    fn ty(&self, v: Value) -> &Type {
        self.graph.ty(v)
    }

    fn local(&self, v: Value) -> Vec<Chunk> {
        self.ty(v).local(&self.graph.mesh, &self.coords)
    }

    fn shape(&self, v: Value) -> Vec<usize> {
        self.local(v).iter().map(|c| c.len).collect()
    }

    fn is_empty(&self, v: Value) -> bool {
        self.local(v).iter().any(|c| c.len == 0)
    }

    fn show(&self, v: Value) -> String {
        format!("%{} ({} : {})", v.node.index(), self.graph.op(v).name(), self.ty(v).display(&self.graph.mesh))
    }

    fn show_view(&self, view: &View) -> String {
        let label = &self.program.buffers[view.buffer.0 as usize].label;
        format!("b{}+{} ({label})", view.buffer.0, view.offset)
    }

    fn differs(&self, node: NodeIndex, what: &'static str) -> Fault {
        Fault::Differs { node: self.show(node.into()), what }
    }

    fn expect(&self, holds: bool, node: NodeIndex, what: &'static str) -> Checked {
        if holds { Ok(()) } else { Err(self.differs(node, what)) }
    }

    fn span(&self, view: &View) -> Range<usize> {
        span(self.program, view, &view.shape, &view.strides)
    }

    /// Forgets all contents that overlap some bytes.
    fn forget(&mut self, bytes: &Range<usize>) {
        while let Some((&start, found)) = self.stored.range(..bytes.end).next_back() {
            if found.end <= bytes.start {
                break;
            }
            let found = self.stored.remove(&start).expect("it was found");
            if let Some(starts) = self.starts.get_mut(&found.content) {
                starts.retain(|&p| p != start);
            }
        }
    }

    fn put(&mut self, content: Content, view: View) {
        let bytes = self.span(&view);
        if bytes.is_empty() {
            return;
        }
        self.forget(&bytes);
        self.starts.entry(content.clone()).or_default().push(bytes.start);
        self.stored.insert(bytes.start, Stored { end: bytes.end, content, view });
    }

    /// Records a value that is written with the strides of a view.
    fn put_value(&mut self, v: Value, view: &View) {
        self.put(Content::Value(v), View { shape: self.shape(v), ..view.clone() });
    }

    /// The views that hold a content now, including views of another value.
    fn find(&self, content: &Content) -> Vec<View> {
        let starts = self.starts.get(content).into_iter().flatten();
        let mut all: Vec<View> = starts.map(|p| self.stored[p].view.clone()).collect();
        let Content::Value(v) = *content else { return all };
        let Some(&of) = self.graph.operands(v.node).first() else { return all };
        let shape = self.shape(v);
        let seen = |from: View| -> Option<View> {
            Some(match self.graph.op(v) {
                Op::ShardSlice { dim, .. } => {
                    let first = self.local(v)[*dim].offset - self.local(of)[*dim].offset;
                    let offset = from.offset + first * from.strides[*dim] as usize;
                    View { offset, shape: shape.clone(), ..from }
                }
                Op::Slice { dim, start, step } => {
                    let offset = from.offset + start * from.strides[*dim] as usize;
                    let mut strides = from.strides.clone();
                    strides[*dim] *= *step as isize;
                    View { offset, strides, shape: shape.clone(), ..from }
                }
                Op::Index { dim, index } => {
                    let offset = from.offset + index * from.strides[*dim] as usize;
                    let mut strides = from.strides.clone();
                    strides.remove(*dim);
                    View { offset, strides, shape: shape.clone(), ..from }
                }
                Op::Reshape if from.is_dense() => View { strides: dense_strides(&shape), shape: shape.clone(), ..from },
                _ => return None,
            })
        };
        let is_view =
            matches!(self.graph.op(v), Op::ShardSlice { .. } | Op::Slice { .. } | Op::Index { .. } | Op::Reshape);
        if is_view {
            all.extend(self.find(&Content::Value(of)).into_iter().filter_map(seen));
        }
        all
    }

    fn not_there(&self, v: Value, view: &View) -> Fault {
        let bytes = self.span(view);
        let there = self.stored.range(..bytes.end).next_back().filter(|(_, r)| r.end > bytes.start);
        let found = match there {
            Some((_, Stored { content: Content::Value(v), .. })) => format!("{} is stored", self.show(*v)),
            Some(_) => "something else is stored".into(),
            None => "nothing was written".into(),
        };
        Fault::NotThere { value: self.show(v), view: self.show_view(view), found }
    }

    /// Checks that a view holds a value, or that the value has no elements.
    fn read(&self, v: Value, view: &View) -> Checked {
        let found = self.find(&Content::Value(v)).iter().any(|held| same_elements(held, view));
        if found || self.is_empty(v) && view.elements() == 0 { Ok(()) } else { Err(self.not_there(v, view)) }
    }

    /// Checks that a dense view holds a value, whatever the shape of the view is.
    fn read_flat(&self, v: Value, view: &View) -> Checked {
        let flat = |held: &View| {
            let at = (held.buffer, held.offset, held.dtype) == (view.buffer, view.offset, view.dtype);
            at && held.is_dense() && view.is_dense() && held.elements() == view.elements()
        };
        let found = self.find(&Content::Value(v)).iter().any(flat);
        if found || self.is_empty(v) && view.elements() == 0 { Ok(()) } else { Err(self.not_there(v, view)) }
    }

    fn binding(&self, v: Value, binding: &Binding, layout: &[usize]) -> bool {
        let local = self.local(v);
        let shape: Vec<usize> = local.iter().map(|c| c.len).collect();
        let start: Vec<usize> = local.iter().map(|c| c.offset).collect();
        binding.view.shape == shape
            && binding.view.dtype == self.ty(v).dtype
            && binding.start == start
            && binding.global == self.ty(v).shape
            && binding.layout == layout
            && binding.view.is_dense()
    }

    fn inputs(&mut self) -> Checked {
        let nodes: Vec<_> = self.graph.inputs().map(|(node, id)| (node, id.clone())).collect();
        for (i, (node, id)) in nodes.iter().enumerate() {
            let Op::Input { layout, .. } = &self.graph.node(*node).op else { continue };
            let bound = self.program.inputs.get(i).filter(|b| b.id() == *id);
            let bound = bound.filter(|b| self.binding((*node).into(), &b.binding, layout));
            let Some(bound) = bound else { return Err(self.differs(*node, "its binding")) };
            let view = bound.binding.view.clone();
            self.put_value((*node).into(), &view);
        }
        Ok(())
    }

    fn outputs(&self) -> Checked {
        let mut renewed: HashMap<&InputId, Value> = HashMap::new();
        for (output, bound) in self.graph.outputs.iter().zip(&self.program.outputs) {
            let bindings = bound.kind == output.kind && self.binding(output.value, &bound.binding, &output.layout);
            self.expect(bindings, output.value.node, "the binding of this output")?;
            self.read(output.value, &bound.binding.view)?;
            if let OutputKind::Update(id) = &output.kind {
                renewed.insert(id, output.value);
            }
        }
        for (input, (node, id)) in self.program.inputs.iter().zip(self.graph.inputs()) {
            let value = renewed.get(id).copied().unwrap_or(node.into());
            self.read(value, &input.binding.view)?;
        }
        Ok(())
    }

    /// Checks that an action does not write what it reads.
    fn check_disjoint(&self, action: &Action) -> Checked {
        let (mut reads, mut writes) = (Vec::new(), Vec::new());
        each_view(action, &mut |view, is_written| if is_written { writes.push(view) } else { reads.push(view) });
        for write in writes {
            let bytes = self.span(write);
            if reads.iter().any(|read| overlap(&self.span(read), &bytes)) {
                return Err(Fault::Overlap(self.show_view(write)));
            }
        }
        Ok(())
    }

    fn step(&mut self, action: &Action, claim: &Claim) -> Checked {
        let pieces = self.pieces.take();
        match (action, claim) {
            (Action::Loop(l), Claim::Loop(body)) => self.body(&l.dims, &l.body, body, None),
            (Action::Loop(l), Claim::Border(node)) => {
                let [Instruction::Constant(x, _), Instruction::Store { view, strides, arg: 0, accumulate: None }] =
                    &l.body[..]
                else {
                    return Err(Fault::Unclaimed);
                };
                let Op::Pad { value, .. } = &self.graph.node(*node).op else { return Err(Fault::Unclaimed) };
                let whole = self.whole(*node, view);
                self.expect(x == value, *node, "its border")?;
                self.expect(l.dims == whole.shape && *strides == whole.strides, *node, "the position of its border")?;
                self.forget(&self.span(&whole));
                self.pieces = Some((*node, whole, 0));
                Ok(())
            }
            (Action::Copy { from, to }, Claim::Piece(node, i)) => self.piece(*node, *i, from, to, pieces),
            (Action::Copy { from, to }, Claim::Copy(v)) => {
                self.check_disjoint(action)?;
                self.read(*v, from)?;
                self.expect(from.shape == to.shape && from.dtype == to.dtype, v.node, "the shape of its copy")?;
                self.put(Content::Value(*v), to.clone());
                Ok(())
            }
            (Action::Contract(c), Claim::Terms(terms)) => self.terms(c, terms),
            (Action::Contract(c), Claim::Product(node, body)) => {
                self.product(*node, c)?;
                self.check_disjoint_operands(c)?;
                let dims: Vec<usize> = c.dims().map(|d| d.size).collect();
                self.body(&dims, &c.epilogue, body, Some(*node))
            }
            (action, Claim::Operation(node)) => self.operation(action, *node),
            (Action::Attention(a), Claim::Attention { product, operands, reads, results }) => {
                let found = a.operands();
                self.expect(found.len() == operands.len(), *product, "the number of its operands")?;
                for (&v, operand) in operands.iter().zip(found) {
                    self.read(v, &operand.view)?;
                }
                self.attention(action, *product, reads, results)
            }
            (Action::Start(c), Claim::Start(nodes)) => self.start(c, nodes),
            (Action::Wait { tag }, Claim::Wait) => {
                let Some((nodes, to)) = self.in_flight.remove(tag) else { return Err(Fault::Unclaimed) };
                let mut offset = to.offset;
                for node in nodes {
                    let view = View { offset, ..View::dense(to.buffer, to.dtype, self.shape(node.into())) };
                    offset += view.elements();
                    self.put(Content::Value(node.into()), view);
                }
                Ok(())
            }
            _ => Err(Fault::Unclaimed),
        }
    }

    /// The dense view of a value that begins where another view does.
    fn whole(&self, node: NodeIndex, view: &View) -> View {
        View { offset: view.offset, ..View::dense(view.buffer, self.ty(node.into()).dtype, self.shape(node.into())) }
    }

    /// Checks the copy of one operand of a value that is assembled from several.
    fn piece(
        &mut self,
        node: NodeIndex,
        i: usize,
        from: &View,
        to: &View,
        before: Option<(NodeIndex, View, usize)>,
    ) -> Checked {
        let operands = self.graph.operands(node);
        let extent = |v: &Value, dim: usize| self.shape(*v)[dim];
        let (dim, start) = match &self.graph.node(node).op {
            Op::Concat { dim } => (*dim, operands[..i].iter().map(|v| extent(v, *dim)).sum::<usize>()),
            Op::Pad { dim, low, .. } => (*dim, *low),
            _ => return Err(Fault::Unclaimed),
        };
        let is_concat = matches!(self.graph.node(node).op, Op::Concat { .. });
        let whole = match before.filter(|b| b.0 == node && b.2 == i) {
            Some((_, whole, _)) => whole,
            None if i == 0 && is_concat => self.whole(node, to),
            None => return Err(self.differs(node, "the order of its pieces")),
        };
        self.read(operands[i], from)?;
        let offset = whole.offset + start * whole.strides[dim] as usize;
        let expected = View { offset, shape: self.shape(operands[i]), ..whole.clone() };
        self.expect(same_elements(&expected, to) && from.shape == to.shape, node, "the position of its pieces")?;
        let bytes = self.span(&whole);
        if overlap(&self.span(from), &bytes) {
            return Err(Fault::Overlap(self.show_view(to)));
        }
        self.forget(&bytes);
        if i + 1 < operands.len() {
            self.pieces = Some((node, whole, i + 1));
        } else {
            self.put(Content::Value(node.into()), whole);
        }
        Ok(())
    }

    /// Checks that the dimensions of a product are those of its node, and that its operands are where it reads them.
    fn product(&self, node: NodeIndex, c: &Contract) -> Checked {
        let Op::Einsum { subs } = &self.graph.node(node).op else { return Err(Fault::Unclaimed) };
        let [left, right] = self.graph.operands(node)[..] else { return Err(Fault::Unclaimed) };
        self.read(left, &c.left)?;
        self.read(right, &c.right)?;
        self.expect(c.scale == 1.0, node, "its scale")?;
        let fits = self.shape(node.into()) == c.out.shape;
        self.expect(fits, node, "the shape of its result")?;
        // The expected dimensions: batch, rows, columns and summed ones.
        let mut expected: [Vec<ContractDim>; 4] = Default::default();
        for letter in 0..subs.letters() {
            let at = |row: &Vec<u8>| row.iter().position(|&l| l as usize == letter);
            let (l, r, o) = (at(&subs.operands[0]), at(&subs.operands[1]), at(&subs.result));
            let stride = |v: &View, d: Option<usize>| d.map_or(0, |d| v.strides[d]);
            let size = l.map(|d| c.left.shape[d]).or(r.map(|d| c.right.shape[d]));
            let Some(size) = size else { return Err(self.differs(node, "an index that only its result has")) };
            let group = match (l, r, o) {
                (Some(_), Some(_), Some(_)) => 0,
                (Some(_), None, Some(_)) => 1,
                (None, Some(_), Some(_)) => 2,
                _ => 3,
            };
            let (left, right, out) = (stride(&c.left, l), stride(&c.right, r), stride(&c.out, o));
            expected[group].push(ContractDim { size, left, right, out });
        }
        let sorted = |dims: &[ContractDim]| {
            let mut dims: Vec<_> = dims.iter().map(|d| (d.size, d.left, d.right, d.out)).collect();
            dims.sort_unstable();
            dims
        };
        let found = [&c.batch, &c.m, &c.n, &c.k];
        let same = expected.iter().zip(found).all(|(e, f)| sorted(e) == sorted(f));
        self.expect(same, node, "its dimensions")
    }

    fn check_disjoint_operands(&self, c: &Contract) -> Checked {
        let out = self.span(&c.out);
        let over = [&c.left, &c.right].into_iter().any(|v| overlap(&self.span(v), &out));
        if over { Err(Fault::Overlap(self.show_view(&c.out))) } else { Ok(()) }
    }

    /// Checks a term of a sum of products that is added to the terms before it.
    fn terms(&mut self, c: &Contract, terms: &[NodeIndex]) -> Checked {
        let [before @ .., node] = terms else { return Err(Fault::Unclaimed) };
        self.product(*node, c)?;
        self.check_disjoint_operands(c)?;
        let strides: Vec<isize> = c.dims().map(|d| d.out).collect();
        let adds = match &c.epilogue[..] {
            [] => before.is_empty(),
            [
                Instruction::Given { index: 0, .. },
                Instruction::Load { view, strides: from },
                Instruction::Map { f: MapFn::Add, args, .. },
                Instruction::Store { view: to, strides: into, arg: 2, accumulate: None },
            ] => {
                let held = self.find(&Content::Terms(before.to_vec()));
                let there = c.out.elements() == 0 || held.iter().any(|held| same_elements(held, &c.out));
                there
                    && args == &[0, 1]
                    && [view, to].iter().all(|v| same_elements(v, &c.out))
                    && [from, into].iter().all(|s| **s == strides)
            }
            _ => false,
        };
        self.expect(adds, *node, "how it is added to the terms before it")?;
        self.put(Content::Terms(terms.to_vec()), c.out.clone());
        Ok(())
    }

    fn operation(&mut self, action: &Action, node: NodeIndex) -> Checked {
        let operands = self.graph.operands(node);
        let op = &self.graph.node(node).op;
        self.check_disjoint(action)?;
        let rows = |v: Value| {
            let local = self.local(v);
            (local[0], local[1..].iter().map(|c| c.len).product::<usize>())
        };
        let elements = |v: Value| self.shape(v).iter().product::<usize>();
        match (op, action) {
            (Op::Einsum { .. }, Action::Contract(c)) => {
                self.product(node, c)?;
                self.expect(c.epilogue.is_empty(), node, "an epilogue that it does not have")?;
                self.put(Content::Value(node.into()), c.out.clone());
            }
            (Op::Take, Action::Take { table, index, out, first_row }) => {
                let ((row, width), count) = (rows(operands[0]), elements(operands[1]));
                self.read_flat(operands[0], table)?;
                self.read_flat(operands[1], index)?;
                let fits = table.shape == [row.len, width] && out.shape == [count, width] && index.shape == [count];
                self.expect(fits && *first_row == row.offset && out.is_dense(), node, "its rows")?;
                self.put_value_flat(node.into(), out);
            }
            (Op::ScatterAdd, Action::ScatterAdd { index, update, out, first_row }) => {
                let ((row, width), count) = (rows(node.into()), elements(operands[0]));
                self.read_flat(operands[0], index)?;
                self.read_flat(operands[1], update)?;
                let fits = out.shape == [row.len, width] && update.shape == [count, width] && index.shape == [count];
                self.expect(fits && *first_row == row.offset && out.is_dense(), node, "its rows")?;
                self.put_value_flat(node.into(), out);
            }
            (Op::Put, Action::Put { table, index, rows: replaced, first_row }) => {
                let ((row, width), count) = (rows(node.into()), elements(operands[1]));
                self.read_flat(operands[0], table)?;
                self.read_flat(operands[1], index)?;
                self.read_flat(operands[2], replaced)?;
                let fits =
                    table.shape == [row.len, width] && replaced.shape == [count, width] && index.shape == [count];
                self.expect(fits && *first_row == row.offset && table.is_dense(), node, "its rows")?;
                self.put_value_flat(node.into(), table);
            }
            (Op::CumSum { dim }, Action::CumSum { from, to, dim: along }) => {
                self.read(operands[0], from)?;
                self.expect(dim == along && from.shape == to.shape && to.is_dense(), node, "its dimension")?;
                self.put(Content::Value(node.into()), to.clone());
            }
            (Op::TopK, Action::TopK { from, values, indices }) => {
                self.read(operands[0], from)?;
                for (result, view) in [(0, values), (1, indices)] {
                    let v = Value { node, result };
                    self.expect(self.shape(v) == view.shape && view.is_dense(), node, "its shape")?;
                    self.put(Content::Value(v), view.clone());
                }
            }
            _ => return Err(Fault::Unclaimed),
        }
        Ok(())
    }

    fn put_value_flat(&mut self, v: Value, view: &View) {
        let shape = self.shape(v);
        self.put(Content::Value(v), View { strides: dense_strides(&shape), shape, ..view.clone() });
    }

    /// Checks that an attention reads only the values that are claimed, and records its results.
    fn attention(&mut self, action: &Action, product: NodeIndex, reads: &[Value], results: &[Value]) -> Checked {
        let Action::Attention(a) = action else { return Err(Fault::Unclaimed) };
        let stats = [(&a.max, Content::Max(product)), (&a.sum, Content::Sum(product))];
        let held: Vec<View> = reads.iter().flat_map(|&v| self.find(&Content::Value(v))).collect();
        let backward = a.backward.is_some();
        let mut fault = None;
        let mut written: Vec<View> = Vec::new();
        a.each_view(&mut |view, is_written| {
            let stat = stats.iter().find(|(v, _)| std::ptr::eq(*v, view));
            let there = match stat {
                _ if is_written => {
                    written.push(view.clone());
                    true
                }
                Some((_, content)) => self.find(content).iter().any(|held| same_elements(held, view)),
                None => held.iter().any(|held| same_elements(held, view)),
            };
            if !there && view.elements() > 0 && fault.is_none() {
                fault = Some(self.not_there(product.into(), view));
            }
        });
        if let Some(fault) = fault {
            return Err(fault);
        }
        self.check_disjoint(action)?;
        for view in &written {
            self.forget(&self.span(view));
        }
        let made = a.results();
        self.expect(made.len() == results.len(), product, "the number of its results")?;
        for (&v, operand) in results.iter().zip(made) {
            let view = &operand.view;
            let fits = view.shape == self.shape(v) && view.dtype == self.ty(v).dtype && view.is_dense();
            self.expect(fits, v.node, "the shape of a result of attention")?;
            self.put(Content::Value(v), view.clone());
        }
        if !backward {
            stats.into_iter().for_each(|(view, content)| self.put(content, view.clone()));
        }
        Ok(())
    }

    fn start(&mut self, c: &Collective, nodes: &[NodeIndex]) -> Checked {
        let mesh = &self.graph.mesh;
        let first = nodes[0];
        let axes = |op: &Op| -> Vec<AxisId> {
            match op {
                Op::AllReduce { axes, .. } => axes.iter().collect(),
                Op::AllGather { axes, .. } | Op::ReduceScatter { axes, .. } | Op::AllToAll { axes, .. } => axes.clone(),
                _ => Vec::new(),
            }
        };
        let group = mesh.group(self.program.rank, &axes(&self.graph.node(first).op));
        self.expect(c.group == group, first, "its group")?;
        self.expect(group.get(c.position) == Some(&self.program.rank), first, "its position in the group")?;
        let mut offset = c.from.offset;
        let mut results = 0;
        for (i, &node) in nodes.iter().enumerate() {
            let op = &self.graph.node(node).op;
            let v = self.graph.operands(node)[0];
            self.expect(axes(op) == axes(&self.graph.node(first).op), node, "its axes")?;
            let sent = View { offset, ..View::dense(c.from.buffer, self.ty(v).dtype, self.shape(v)) };
            offset += sent.elements();
            results += self.shape(node.into()).iter().product::<usize>();
            self.read(v, &sent)?;
            let whole_and_lens = |whole: Value, sharded: Value, dim: usize| {
                let shape = self.shape(whole);
                let lens = group.iter().map(|&r| self.ty(sharded).local_shape(mesh, &mesh.coords(r))[dim]);
                let (outer, inner) = (shape[..dim].iter().product(), shape[dim + 1..].iter().product());
                Part { outer, lens: lens.collect(), inner }
            };
            let same = match (op, &c.kind) {
                (Op::AllReduce { op, .. }, CollectiveKind::AllReduce(found)) => op == found,
                (Op::AllGather { dim, .. }, CollectiveKind::AllGather { parts }) => {
                    parts.len() == nodes.len() && parts[i] == whole_and_lens(node.into(), v, *dim)
                }
                (Op::ReduceScatter { op, dim, .. }, CollectiveKind::ReduceScatter { op: found, parts }) => {
                    op == found && parts.len() == nodes.len() && parts[i] == whole_and_lens(v, node.into(), *dim)
                }
                (Op::AllToAll { from, to, .. }, CollectiveKind::AllToAll { shape, cut, join, cut_lens, join_lens }) => {
                    let lens = |of: Value, dim: usize| -> Vec<usize> {
                        group.iter().map(|&r| self.ty(of).local_shape(mesh, &mesh.coords(r))[dim]).collect()
                    };
                    nodes.len() == 1
                        && *shape == self.shape(v)
                        && (cut, join) == (to, from)
                        && *cut_lens == lens(node.into(), *to)
                        && *join_lens == lens(v, *from)
                }
                _ => false,
            };
            self.expect(same, node, "its kind or its sizes")?;
        }
        let fits = c.from.elements() == offset - c.from.offset && c.to.elements() == results;
        self.expect(fits && c.to.is_dense() && c.from.is_dense(), first, "the size of its buffers")?;
        let (from, to) = (self.span(&c.from), self.span(&c.to));
        if overlap(&from, &to) && c.from != c.to {
            return Err(Fault::Overlap(self.show_view(&c.to)));
        }
        self.forget(&to);
        self.in_flight.insert(c.tag, (nodes.to_vec(), c.to.clone()));
        Ok(())
    }

    /// Checks that the instructions of a loop, or of the epilogue of a product, compute the claimed nodes.
    fn body(&mut self, dims: &[usize], body: &[Instruction], claim: &Body, product: Option<NodeIndex>) -> Checked {
        let mut known: Vec<Vec<&Named>> = vec![Vec::new(); body.len()];
        for named in &claim.registers {
            if named.register >= body.len() {
                return Err(Fault::Unclaimed);
            }
            self.register(dims, body, &known, named, product)?;
            known[named.register].push(named);
        }
        // Every store has a claim, and no store overwrites what is read later.
        let mut written = Vec::new();
        let mut claims = claim.stores.iter();
        for (i, instruction) in body.iter().enumerate() {
            let Instruction::Store { view, strides, arg, accumulate } = instruction else { continue };
            let Some(&(at, v)) = claims.next() else { return Err(Fault::Unclaimed) };
            if at != i {
                return Err(Fault::Unclaimed);
            }
            self.store(dims, v, (view, strides), &known[*arg], *accumulate)?;
            self.reads_before(dims, body, i)?;
            written.push((v, View { shape: self.shape(v), strides: self.strides_of(v, view), ..view.clone() }));
        }
        for (v, view) in written {
            self.put(Content::Value(v), view);
        }
        Ok(())
    }

    /// The strides of a value: those of the view if it has the shape of the value, otherwise dense ones.
    fn strides_of(&self, v: Value, view: &View) -> Vec<isize> {
        if view.shape == self.shape(v) { view.strides.clone() } else { dense_strides(&self.shape(v)) }
    }

    /// Checks that the loads of a body read other memory than a store writes, or exactly the elements that the store
    /// then overwrites.
    fn reads_before(&self, dims: &[usize], body: &[Instruction], store: usize) -> Checked {
        let Instruction::Store { view: to, strides: into, .. } = &body[store] else { return Ok(()) };
        let target = span(self.program, to, dims, into);
        for (i, instruction) in body.iter().enumerate() {
            let Instruction::Load { view, strides } = instruction else { continue };
            if !overlap(&span(self.program, view, dims, strides), &target) {
                continue;
            }
            let distinct = dims.iter().zip(into).all(|(&n, &stride)| n <= 1 || stride != 0);
            let same = (view.buffer, view.offset, view.dtype) == (to.buffer, to.offset, to.dtype) && strides == into;
            if !(same && distinct && i < store) {
                return Err(Fault::Overlap(self.show_view(to)));
            }
        }
        Ok(())
    }

    /// Whether the dimensions of a content run along distinct dimensions of the loop with the same sizes.
    fn runs_along(&self, dims: &[usize], shape: &[usize], along: &[usize]) -> bool {
        shape.len() == along.len()
            && shape.iter().zip(along).all(|(&n, &d)| dims.get(d) == Some(&n))
            && along.iter().enumerate().all(|(i, d)| !along[..i].contains(d))
    }

    /// Checks that a register holds the claimed content.
    fn register(
        &self,
        dims: &[usize],
        body: &[Instruction],
        known: &[Vec<&Named>],
        named: &Named,
        product: Option<NodeIndex>,
    ) -> Checked {
        let Named { register, content, along } = named;
        let v = match content {
            Content::Value(v) => *v,
            Content::Terms(terms) if !terms.is_empty() => terms[0].into(),
            _ => return Err(Fault::Unclaimed),
        };
        let shape = self.shape(v);
        self.expect(self.runs_along(dims, &shape, along), v.node, "the loop dimensions that it runs along")?;
        let ty = self.ty(v);
        let op = self.graph.op(v);
        let offsets = || self.local(v).into_iter().map(|c| c.offset);
        match &body[*register] {
            Instruction::Load { view, strides } => {
                let read = |held: &View| {
                    let at = (held.buffer, held.offset, held.dtype) == (view.buffer, view.offset, view.dtype);
                    at && spread(&shape, &held.strides, along, dims) == moving(strides, dims)
                };
                if shape.contains(&0) || self.find(content).iter().any(read) {
                    return Ok(());
                }
                // The register may also be that of the operand, for example of an identity.
                if self.is_identity_of_operand(v, *register, known, along) {
                    return Ok(());
                }
                Err(self.not_there(v, &View { shape, ..view.clone() }))
            }
            _ if self.is_identity_of_operand(v, *register, known, along) => Ok(()),
            Instruction::Given { index: 0, .. } => {
                self.expect(product == Some(v.node), v.node, "the product that is given")
            }
            Instruction::Constant(x, dtype) => {
                let identity = |op: &ReduceOp| *x == Scalar::of(*dtype, op.identity_of(*dtype));
                let holds = match op {
                    Op::Fill(fill) => fill == x,
                    Op::ToPartial { op, axes } => identity(op) && axes.iter().any(|a| self.coords[a.0 as usize] != 0),
                    // A reduction without terms.
                    Op::Reduce { op, .. } => identity(op) && self.is_empty(self.graph.operands(v.node)[0]),
                    _ => false,
                };
                self.expect(holds && *dtype == ty.dtype, v.node, "a constant")
            }
            Instruction::Index { dim, offset, dtype } => {
                let holds = matches!(op, Op::Iota) && along[..] == [*dim] && offsets().eq([*offset]);
                self.expect(holds && *dtype == ty.dtype, v.node, "an index")
            }
            Instruction::Random { distribution, stream, seed, index, dtype } => {
                let global = dense_strides(&ty.shape);
                let expected: Vec<(usize, usize, usize)> = along
                    .iter()
                    .zip(offsets())
                    .zip(&global)
                    .map(|((&d, offset), &stride)| (d, offset, stride as usize))
                    .collect();
                let drawn = matches!(op, Op::Random { distribution: d, stream: s } if d == distribution && s == stream);
                let seeded = known[*seed].iter().any(|n| n.content == Content::Value(self.graph.operands(v.node)[0]));
                self.expect(drawn && seeded && *index == expected && *dtype == ty.dtype, v.node, "random numbers")
            }
            Instruction::Map { f, args, dtype } => {
                let Op::Map { f: expected, subs } = op else { return Err(self.differs(v.node, "a function")) };
                self.expect(f == expected && *dtype == ty.dtype, v.node, "a function")?;
                let mut letters = Letters::default();
                letters.add(&subs.result, along, &shape);
                let mut left: Vec<(Value, &Vec<u8>)> =
                    self.graph.operands(v.node).into_iter().zip(&subs.operands).collect();
                for &arg in args {
                    let ordered = *f != MapFn::Add;
                    let taken = known[arg].iter().find_map(|named| self.take(&left, named, &letters, ordered));
                    let Some(taken) = taken else { return Err(self.differs(v.node, "its operands")) };
                    for position in taken.into_iter().rev() {
                        left.remove(position);
                    }
                }
                self.expect(left.is_empty(), v.node, "the number of its operands")
            }
            Instruction::ReduceRow { op: found, arg, dtype } => {
                let Op::Reduce { op, subs } = op else { return Err(self.differs(v.node, "a reduction")) };
                self.expect(op == found && *dtype == ty.dtype, v.node, "a reduction")?;
                let of = self.graph.operands(v.node)[0];
                let sums = |named: &&&Named| {
                    named.content == Content::Value(of)
                        && self.summed(v, subs, along, named, dims).is_some_and(|summed| {
                            let row = dims.len() - 1;
                            summed == if dims[row] > 1 { vec![row] } else { vec![] }
                        })
                };
                self.expect(known[*arg].iter().any(|n| sums(&n)), v.node, "the row that it reduces")
            }
            _ => Err(Fault::Unclaimed),
        }
    }

    /// The positions of the operands that a register stands for. A sum of products stands for all its terms, another
    /// value for the first operand that it is (for ordered functions, only the next operand counts).
    fn take(&self, left: &[(Value, &Vec<u8>)], named: &Named, letters: &Letters, ordered: bool) -> Option<Vec<usize>> {
        let fits = |v: Value, row: &[u8]| letters.agrees(row, &named.along, &self.shape(v));
        match &named.content {
            Content::Terms(terms) if !ordered => {
                let mut taken: Vec<usize> = Vec::new();
                for &term in terms {
                    let at = (0..left.len()).find(|i| left[*i].0 == term.into() && !taken.contains(i))?;
                    fits(left[at].0, left[at].1).then_some(())?;
                    taken.push(at);
                }
                taken.sort_unstable();
                Some(taken)
            }
            Content::Value(v) => {
                let is = |i: &usize| left[*i].0 == *v && fits(*v, left[*i].1);
                (0..left.len().min(if ordered { 1 } else { usize::MAX })).find(is).map(|i| vec![i])
            }
            _ => None,
        }
    }

    /// The loop dimensions with more than one iteration that a reduction sums over. `None` if the dimensions that it
    /// keeps run along other loop dimensions than those of its operand.
    fn summed(
        &self,
        v: Value,
        subs: &tpc_ir::Subscripts,
        along: &[usize],
        operand: &Named,
        dims: &[usize],
    ) -> Option<Vec<usize>> {
        let mut letters = Letters::default();
        letters.add(&subs.result, along, &self.shape(v));
        let of = self.graph.operands(v.node)[0];
        letters.agrees(&subs.operands[0], &operand.along, &self.shape(of)).then_some(())?;
        let mut summed: Vec<usize> = subs.operands[0]
            .iter()
            .zip(&operand.along)
            .filter(|(l, d)| !subs.result.contains(l) && dims[**d] > 1)
            .map(|(_, &d)| d)
            .collect();
        summed.sort_unstable();
        Some(summed)
    }

    /// Whether a node is the identity on this rank, and the register holds its operand.
    fn is_identity_of_operand(&self, v: Value, register: usize, known: &[Vec<&Named>], along: &[usize]) -> bool {
        let Some(&of) = self.graph.operands(v.node).first() else { return false };
        let mut letters = Letters::default();
        let row: Vec<u8> = (0..self.ty(v).rank() as u8).collect();
        let (operand, result) = match self.graph.op(v) {
            Op::Map { f: MapFn::Identity, subs } => (&subs.operands[0], &subs.result),
            Op::Reduce { subs, .. } if subs.contracted().is_empty() => (&subs.operands[0], &subs.result),
            Op::ToPartial { axes, .. } if axes.iter().all(|a| self.coords[a.0 as usize] == 0) => (&row, &row),
            _ => return false,
        };
        letters.add(result, along, &self.shape(v));
        let holds = |n: &&Named| n.content == Content::Value(of) && letters.agrees(operand, &n.along, &self.shape(of));
        self.ty(of).dtype == self.ty(v).dtype && known[register].iter().any(holds)
    }

    /// Checks that a store writes every element of a value, and that its register holds the value.
    fn store(
        &self,
        dims: &[usize],
        v: Value,
        (view, strides): (&View, &[isize]),
        known: &[&Named],
        accumulate: Option<ReduceOp>,
    ) -> Checked {
        if self.is_empty(v) {
            return Ok(());
        }
        let unwritten = || Fault::NotWritten(self.show(v));
        let own = self.strides_of(v, view);
        let shape = self.shape(v);
        self.expect(view.dtype == self.ty(v).dtype, v.node, "its element type in memory")?;
        let matches_loop = |along: &[usize]| spread(&shape, &own, along, dims) == moving(strides, dims);
        match accumulate {
            None => {
                // Every element is written if the loop has iterations and the dimensions of the value.
                let held = known.iter().find(|n| n.content == Content::Value(v)).ok_or_else(unwritten)?;
                if dims.contains(&0) || !matches_loop(&held.along) { Err(unwritten()) } else { Ok(()) }
            }
            Some(found) => {
                let Op::Reduce { op, subs } = self.graph.op(v) else { return Err(self.differs(v.node, "a reduction")) };
                self.expect(*op == found, v.node, "a reduction")?;
                let of = self.graph.operands(v.node)[0];
                let holds = |n: &&&Named| {
                    let at = |l: &u8| subs.operands[0].iter().position(|o| o == l).map(|i| n.along[i]);
                    let Some(along) = subs.result.iter().map(at).collect::<Option<Vec<usize>>>() else { return false };
                    // Each iteration counts once.
                    let all = (0..dims.len()).all(|d| dims[d] == 1 || n.along.contains(&d));
                    n.content == Content::Value(of) && all && matches_loop(&along)
                };
                if known.iter().any(|n| holds(&n)) { Ok(()) } else { Err(unwritten()) }
            }
        }
    }
}

/// The loop dimension that each letter of a node runs along. A letter of size 1 may run along any.
#[derive(Default)]
struct Letters {
    along: HashMap<u8, usize>,
}

impl Letters {
    fn add(&mut self, row: &[u8], along: &[usize], shape: &[usize]) {
        self.along.extend(row.iter().zip(along).zip(shape).filter(|(_, n)| **n > 1).map(|((&l, &d), _)| (l, d)));
    }

    fn agrees(&self, row: &[u8], along: &[usize], shape: &[usize]) -> bool {
        row.len() == along.len()
            && row.iter().zip(along).zip(shape).all(|((l, d), &n)| n <= 1 || self.along.get(l).is_none_or(|o| o == d))
    }
}

/// The strides of the dimensions of a value, by the loop dimensions that they run along.
fn spread(shape: &[usize], strides: &[isize], along: &[usize], dims: &[usize]) -> Vec<isize> {
    let mut all = vec![0; dims.len()];
    for ((&n, &stride), &d) in shape.iter().zip(strides).zip(along) {
        if n > 1 {
            all[d] = stride;
        }
    }
    all
}

/// The strides of loop dimensions with more than one iteration; 0 for the others.
fn moving(strides: &[isize], dims: &[usize]) -> Vec<isize> {
    strides.iter().zip(dims).map(|(&stride, &n)| if n > 1 { stride } else { 0 }).collect()
}

/// Whether two views have the same elements in the same order.
fn same_elements(a: &View, b: &View) -> bool {
    let strides = || (0..a.shape.len()).all(|d| a.shape[d] <= 1 || a.strides[d] == b.strides[d]);
    (a.buffer, a.offset, a.dtype) == (b.buffer, b.offset, b.dtype) && a.shape == b.shape && strides()
}

fn overlap(a: &Range<usize>, b: &Range<usize>) -> bool {
    a.start < b.end && b.start < a.end
}
