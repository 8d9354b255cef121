//! The program of one rank: a flat list of kernels and collectives over one planned arena.
//!
//! `tpc-passes` creates rank programs (lower, fuse, schedule, plan memory) and `tpc-runtime` executes them; neither
//! crate depends on the other. Every size, stride and offset is a number, so nothing is decided at run time.

use crate::attention::Attention;
use crate::graph::location;
use crate::input::{InputId, InputKind};
use crate::op::ReduceOp;
use crate::{DType, Mesh, ModulePath, OutputKind, Phase};
use serde::{Deserialize, Serialize};
use std::fmt::Write as _;
use std::ops::Range;
use std::sync::Arc;

pub use crate::instruction::Instruction;
pub use crate::memory::{ALIGNMENT, Buffer, BufferId, View, dense_strides};
pub use crate::rank_programs::{End, HeldBox, PlacedEnds, RankPrograms};

/// A fused loop nest. For every index in all dimensions but the last, the instructions run in order on a row along the
/// last. A loop with no dimensions runs once, on a row of length 1.
///
/// A store may overwrite what an earlier load of the body has read, if both have the same view and strides, none of
/// which is 0. That is an update in place. A loop with any other overlap of a store with another access is executed
/// instruction by instruction on whole rows, which is correct but slow.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Loop {
    /// The sizes, outermost first; the last is the length of a row.
    pub dims: Vec<usize>,
    /// The instructions.
    pub body: Vec<Instruction>,
}

/// One dimension of a contraction: its size, and its stride in each tensor in elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContractDim {
    /// Size.
    pub size: usize,
    /// Stride in the left operand.
    pub left: isize,
    /// Stride in the right operand.
    pub right: isize,
    /// Stride in the result.
    pub out: isize,
}

/// A matrix product with any number of batch, row, column and summed dimensions: `out[batch, m, n] = Σ_k left[batch, m,
/// k] · right[batch, k, n]`, followed by an epilogue (the term of cublasLt and CUTLASS), which is applied to each
/// element before it is written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Contract {
    /// Left operand.
    pub left: View,
    /// Right operand.
    pub right: View,
    /// Result.
    pub out: View,
    /// Dimensions that all three have.
    pub batch: Vec<ContractDim>,
    /// Dimensions of the left operand and the result.
    pub m: Vec<ContractDim>,
    /// Dimensions of the right operand and the result.
    pub n: Vec<ContractDim>,
    /// Dimensions of both operands and not of the result.
    pub k: Vec<ContractDim>,
    /// The factor by which the product is multiplied.
    pub scale: f64,
    /// The epilogue, if it is not empty: a loop body over the dimensions `batch`, `m` and `n` in this order, in which
    /// [`Instruction::Given`] 0 is the scaled product. A device may provide the product with more precision than the
    /// instruction's type. The stores are the results; the last one fills `out`, and none accumulates. There are no
    /// reductions. The body may load the previous elements of `out`, each at its own position (`out += product`).
    pub epilogue: Vec<Instruction>,
}

impl Contract {
    /// The dimensions of the result, in the order of the loop of the epilogue.
    pub fn dims(&self) -> impl Iterator<Item = &ContractDim> {
        self.batch.iter().chain(&self.m).chain(&self.n)
    }

    /// Whether the epilogue reads the previous elements of `out`.
    pub fn is_update(&self) -> bool {
        let of_out = |i: &Instruction| matches!(i, Instruction::Load { view, .. } if view.buffer == self.out.buffer);
        self.epilogue.iter().any(of_out)
    }

    /// The product alone, written to `raw`, which has the shape and strides of `out`.
    pub fn alone(&self, raw: View) -> Contract {
        Contract { out: raw, epilogue: Vec::new(), ..self.clone() }
    }

    /// The epilogue as a loop that runs after the product alone. The product is in `raw`, which has the shape and
    /// strides of `out` and may be `out` itself unless this [`Contract::is_update`].
    pub fn epilogue_loop(&self, raw: &View) -> Loop {
        let strides: Vec<isize> = self.dims().map(|d| d.out).collect();
        let body = self.epilogue.iter().map(|i| match i {
            Instruction::Given { .. } => Instruction::Load { view: raw.clone(), strides: strides.clone() },
            i => i.clone(),
        });
        Loop { dims: self.dims().map(|d| d.size).collect(), body: body.collect() }
    }
}

/// One of the values that a gather or a scatter carries. The shard of rank r of the group is `[outer, lens[r], inner]`,
/// the whole value is `[outer, Σ lens, inner]`; both are dense.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// The product of the dimensions before the sharded one.
    pub outer: usize,
    /// The length of each rank's shard, which may be 0.
    pub lens: Vec<usize>,
    /// The product of the dimensions after the sharded one.
    pub inner: usize,
}

impl Part {
    /// The number of elements in the shard of the rank at a position of the group.
    pub fn shard(&self, position: usize) -> usize {
        self.outer * self.lens[position] * self.inner
    }

    /// The number of elements of the whole value.
    pub fn whole(&self) -> usize {
        self.outer * self.lens.iter().sum::<usize>() * self.inner
    }
}

/// The operation of a collective, without what it carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum CollectiveOp {
    AllReduce,
    AllGather,
    ReduceScatter,
    AllToAll,
}

impl CollectiveOp {
    /// Every operation.
    pub const ALL: [CollectiveOp; 4] =
        [CollectiveOp::AllReduce, CollectiveOp::AllGather, CollectiveOp::ReduceScatter, CollectiveOp::AllToAll];

    /// The mnemonic, `all_reduce` for example.
    pub const fn name(self) -> &'static str {
        match self {
            CollectiveOp::AllReduce => "all_reduce",
            CollectiveOp::AllGather => "all_gather",
            CollectiveOp::ReduceScatter => "reduce_scatter",
            CollectiveOp::AllToAll => "all_to_all",
        }
    }
}

/// The kind of a collective. Buffers are dense; lists have one entry per rank of the group.
///
/// A collective that carries several values has them side by side in `from` and in `to`, each dense,
/// in the order of its parts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum CollectiveKind {
    /// Combines the values of the group element by element. `from` and `to` may be the same buffer.
    AllReduce(ReduceOp),
    /// Joins the shards of every part: `from` holds this rank's shards, `to` the whole values.
    AllGather {
        /// The values, at least one.
        parts: Vec<Part>,
    },
    /// Combines the terms of all ranks and leaves each rank its shards: `from` holds this rank's terms of the whole
    /// values, `to` its shards.
    ReduceScatter {
        /// How terms combine.
        op: ReduceOp,
        /// The values, at least one.
        parts: Vec<Part>,
    },
    /// Cuts the local tensor along `cut`, with a piece of length `cut_lens[r]` for rank r, and joins the pieces that
    /// arrive along `join`, where the piece of rank r has length `join_lens[r]`.
    AllToAll {
        /// The local shape before.
        shape: Vec<usize>,
        /// The dimension that is cut.
        cut: usize,
        /// The dimension that is joined.
        join: usize,
        /// The lengths of the pieces of the cut dimension, one per rank.
        cut_lens: Vec<usize>,
        /// The lengths of the pieces of the joined dimension, one per rank. That of this rank is `shape[join]`.
        join_lens: Vec<usize>,
    },
}

/// A collective over one group of ranks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Collective {
    /// The kind.
    pub kind: CollectiveKind,
    /// The ranks of the group in order.
    pub group: Vec<usize>,
    /// The position of this rank in the group.
    pub position: usize,
    /// Element type.
    pub dtype: DType,
    /// The dense operand that this rank contributes.
    pub from: View,
    /// The dense result that this rank receives.
    pub to: View,
    /// Identifies the collective in the program. It is the same on all ranks of the group.
    pub tag: u32,
    /// The names of the axes, `tp` or `dp,tp`.
    pub axes: Arc<str>,
    /// The phase of the step.
    pub phase: Phase,
    /// The number of values that it carries, at least 1.
    pub values: usize,
    /// The bytes of the whole values together, which is the larger side.
    pub full_bytes: usize,
    /// The reason with the entry of the plan, for error messages. For several values, that of the first one and the
    /// number of others.
    pub why: Arc<str>,
}

impl Collective {
    /// The operation.
    pub fn op(&self) -> CollectiveOp {
        match self.kind {
            CollectiveKind::AllReduce(_) => CollectiveOp::AllReduce,
            CollectiveKind::AllGather { .. } => CollectiveOp::AllGather,
            CollectiveKind::ReduceScatter { .. } => CollectiveOp::ReduceScatter,
            CollectiveKind::AllToAll { .. } => CollectiveOp::AllToAll,
        }
    }

    /// The mnemonic, `all_reduce` for example.
    pub fn name(&self) -> &'static str {
        self.op().name()
    }

    /// The bytes that each rank sends in the ring algorithm: `2(n−1)/n` of the value for an all-reduce, `(n−1)/n` for
    /// the others (Thakur et al., "Optimization of collective communication operations in MPICH").
    pub fn wire_bytes(&self) -> f64 {
        wire_bytes(self.name(), self.full_bytes, self.group.len())
    }
}

/// The bytes that each rank sends in the ring algorithm. `full_bytes` is the size of the whole value; for an
/// all-to-all, of the local value of one rank.
pub fn wire_bytes(name: &str, full_bytes: usize, ranks: usize) -> f64 {
    let share = full_bytes as f64 * (ranks as f64 - 1.0) / ranks as f64;
    if name == "all_reduce" { 2.0 * share } else { share }
}

/// The action of a step of a rank program.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Action {
    /// A fused loop nest.
    Loop(Loop),
    /// A matrix product.
    Contract(Contract),
    /// Softmax attention, forward or backward.
    Attention(Box<Attention>),
    /// `out[t, h…] = table[index[t] − first_row, h…]`, or 0 where the row is not in the table's local chunk. `table` is
    /// `[rows, width]`, `index` is `[count]`, and `out` is `[count, width]`.
    Take {
        /// Local rows.
        table: View,
        /// Global row numbers.
        index: View,
        /// Result.
        out: View,
        /// Global number of the first local row.
        first_row: usize,
    },
    /// `out = 0; out[index[t] − first_row, h…] += update[t, h…]`, skipping rows of other ranks.
    ScatterAdd {
        /// Global row numbers.
        index: View,
        /// Updates, `[count, width]`.
        update: View,
        /// Result, `[rows, width]`.
        out: View,
        /// Global number of the first local row.
        first_row: usize,
    },
    /// `table[index[t] − first_row, h…] = rows[t, h…]` in the order of the index, skipping rows of other ranks. All
    /// other rows keep their contents.
    Put {
        /// Local rows, `[rows, width]`.
        table: View,
        /// Global row numbers, `[count]`.
        index: View,
        /// The new rows, `[count, width]`.
        rows: View,
        /// Global number of the first local row.
        first_row: usize,
    },
    /// Copies elements between two views of the same shape.
    Copy {
        /// Source.
        from: View,
        /// Target.
        to: View,
    },
    /// Inclusive prefix sums of `[outer, n, inner]`.
    CumSum {
        /// Source.
        from: View,
        /// Target.
        to: View,
        /// Dimension.
        dim: usize,
    },
    /// The k largest elements of every row, and their indices.
    TopK {
        /// Source, `[rows, n]`.
        from: View,
        /// Values, `[rows, k]`.
        values: View,
        /// Indices, `[rows, k]`.
        indices: View,
    },
    /// Starts a collective. Until the wait, `from` must not be written and `to` must not be read or written. Every
    /// collective of a program has its own tag and exactly one wait after its start.
    Start(Box<Collective>),
    /// Waits for the collective with a tag.
    Wait {
        /// The collective's tag.
        tag: u32,
    },
}

/// An action with its provenance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// The action.
    pub action: Action,
    /// The phase of the training step.
    pub phase: Phase,
    /// A short name for traces and texts: `einsum`, `loop rms_norm`, …
    pub label: Arc<str>,
    /// The micro-batch that it belongs to; none for what there is once.
    pub micro_batch: Option<usize>,
    /// The module that it computes a part of; the root if it is unknown. A loop belongs to the module of its last
    /// operation, a product to its own module whatever its epilogue does, and a collective of several values to the
    /// innermost module that all of them are in.
    pub module: ModulePath,
}

impl Step {
    /// The micro-batch and the module as text; empty if neither is known.
    pub fn location(&self) -> String {
        location(self.micro_batch, &self.module)
    }
}

/// The box of a global tensor that a rank holds in a buffer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Binding {
    /// The local tensor, dense.
    pub view: View,
    /// The global shape, factored.
    pub global: Vec<usize>,
    /// The first global index in every dimension.
    pub start: Vec<usize>,
    /// The shape as the model knows it. It has the same elements in row-major order as `global`.
    pub layout: Vec<usize>,
}

impl Binding {
    /// Whether the bindings of two programs of one rank have the same elements of a tensor in the same order, so that
    /// both programs may store them in the same bytes. If the rank holds the whole tensor, the programs may factor its
    /// shape differently.
    pub fn holds_the_same(&self, other: &Binding) -> bool {
        let is_whole = |b: &Binding| b.view.shape == b.global;
        let same_box =
            (&self.global, &self.start, &self.view.shape) == (&other.global, &other.start, &other.view.shape);
        (self.view.dtype, &self.layout) == (other.view.dtype, &other.layout)
            && (same_box || is_whole(self) && is_whole(other))
    }
}

/// An input of a program and the buffer that holds it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InputBinding {
    /// The text of its id, unique among the inputs of its kind.
    pub name: String,
    /// The kind of the input.
    pub kind: InputKind,
    /// This rank's box.
    pub binding: Binding,
}

impl InputBinding {
    /// The id of the input.
    pub fn id(&self) -> InputId {
        InputId::read(self.kind, &self.name)
    }
}

/// An output of a program and the buffer that holds it after a step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OutputBinding {
    /// The kind of the output.
    pub kind: OutputKind,
    /// This rank's box.
    pub binding: Binding,
}

/// The program of one rank.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RankProgram {
    /// The mesh.
    pub mesh: Mesh,
    /// This rank.
    pub rank: usize,
    /// The buffers of the arena.
    pub buffers: Vec<Buffer>,
    /// The size of the arena in bytes, which is the exact peak memory of this rank.
    pub arena_bytes: usize,
    /// The inputs. An output `Update` of an input is in the buffer of that input after a step.
    pub inputs: Vec<InputBinding>,
    /// The outputs.
    pub outputs: Vec<OutputBinding>,
    /// The steps, in the order in which they are executed.
    pub steps: Vec<Step>,
}

impl RankProgram {
    /// The box of an input or an output.
    ///
    /// # Panics
    /// If there is no such input or output.
    pub fn binding(&self, end: End) -> &Binding {
        match end {
            End::Input(input) => &self.inputs[input].binding,
            End::Output(output) => &self.outputs[output].binding,
        }
    }

    /// The bytes of the arena that hold an input.
    pub fn bytes_of(&self, input: &InputBinding) -> Range<usize> {
        let buffer = &self.buffers[input.binding.view.buffer.0 as usize];
        buffer.offset..buffer.offset + buffer.bytes
    }

    /// The input of this program that has the same value as an input of another program of the same rank: an input of
    /// the same kind and name, other than data, of which the rank holds the same elements. Each program has its own
    /// data.
    pub fn same_input(&self, theirs: &InputBinding) -> Option<&InputBinding> {
        self.inputs.iter().find(|mine| {
            mine.kind != InputKind::Data
                && (mine.kind, &mine.name) == (theirs.kind, &theirs.name)
                && mine.binding.holds_the_same(&theirs.binding)
        })
    }

    /// Whether an input of this program is in the same bytes in another program of the rank, so that both share its
    /// value.
    pub fn shares(&self, mine: &InputBinding, other: &RankProgram) -> bool {
        other.same_input(mine).is_some_and(|theirs| other.bytes_of(theirs) == self.bytes_of(mine))
    }

    /// Every collective in program order.
    pub fn collectives(&self) -> impl Iterator<Item = &Collective> {
        self.steps.iter().filter_map(|s| match &s.action {
            Action::Start(c) => Some(&**c),
            _ => None,
        })
    }

    /// The `scheduled` text form: buffers, then one action per line with fused bodies indented.
    pub fn to_text(&self) -> String {
        let mut out = format!("{} rank {} arena {} bytes\n", self.mesh, self.rank, self.arena_bytes);
        for (i, b) in self.buffers.iter().enumerate() {
            let kind = if b.persistent { "keep" } else { "temp" };
            let _ = writeln!(out, "b{i} {kind} [{}..{}] {}", b.offset, b.offset + b.bytes, b.label);
        }
        for step in &self.steps {
            let _ = write!(out, "{} {}: ", step.phase.name(), step.label);
            out.push_str(&action_text(&step.action));
        }
        out
    }
}

fn view_text(v: &View) -> String {
    let dense = if v.is_dense() { String::new() } else { format!(" strides {:?}", v.strides) };
    let offset = if v.offset == 0 { String::new() } else { format!("+{}", v.offset) };
    format!("b{}{offset} {}{:?}{dense}", v.buffer.0, v.dtype, v.shape)
}

fn action_text(action: &Action) -> String {
    match action {
        Action::Loop(l) => {
            format!("loop {:?}\n{}", l.dims, body_text(&l.body))
        }
        Action::Contract(c) => {
            let sizes = |d: &[ContractDim]| d.iter().map(|d| d.size).collect::<Vec<_>>();
            format!(
                "contract {} · {} -> {} batch {:?} m {:?} n {:?} k {:?}\n{}",
                view_text(&c.left),
                view_text(&c.right),
                view_text(&c.out),
                sizes(&c.batch),
                sizes(&c.m),
                sizes(&c.n),
                sizes(&c.k),
                body_text(&c.epilogue)
            )
        }
        Action::Attention(a) => a.to_text(&view_text, &instruction_text),
        Action::Take { table, index, out, first_row } => {
            format!("take {} [{}] first {first_row} -> {}\n", view_text(table), view_text(index), view_text(out))
        }
        Action::ScatterAdd { index, update, out, first_row } => {
            format!(
                "scatter_add [{}] {} first {first_row} -> {}\n",
                view_text(index),
                view_text(update),
                view_text(out)
            )
        }
        Action::Put { table, index, rows, first_row } => {
            format!("put {} [{}] first {first_row} -> {}\n", view_text(rows), view_text(index), view_text(table))
        }
        Action::Copy { from, to } => format!("copy {} -> {}\n", view_text(from), view_text(to)),
        Action::CumSum { from, to, dim } => format!("cumsum dim={dim} {} -> {}\n", view_text(from), view_text(to)),
        Action::TopK { from, values, indices } => {
            format!("top_k {} -> {}, {}\n", view_text(from), view_text(values), view_text(indices))
        }
        Action::Start(c) => format!(
            "start #{} {} {} {:?} {} -> {}  ; {}{} bytes  why: {}\n",
            c.tag,
            c.name(),
            c.axes,
            c.group,
            view_text(&c.from),
            view_text(&c.to),
            if c.values > 1 { format!("{} values, ", c.values) } else { String::new() },
            c.full_bytes,
            c.why
        ),
        Action::Wait { tag } => format!("wait #{tag}\n"),
    }
}

/// One instruction per line, indented.
fn body_text(body: &[Instruction]) -> String {
    body.iter().enumerate().map(|(i, ins)| format!("    {}\n", instruction_text(i, ins))).collect()
}

fn instruction_text(i: usize, ins: &Instruction) -> String {
    let at = |v: &View, strides: &[isize]| format!("b{}+{} {} {strides:?}", v.buffer.0, v.offset, v.dtype);
    match ins {
        Instruction::Load { view, strides } => format!("r{i} = load {}", at(view, strides)),
        Instruction::Constant(s, d) => format!("r{i} = {d} {s}"),
        Instruction::Given { index, dtype } => format!("r{i} = {dtype} given {index}"),
        Instruction::Index { dim, offset, dtype } => format!("r{i} = {dtype} index {dim} + {offset}"),
        Instruction::Random { stream, seed, dtype, .. } => {
            format!("r{i} = {dtype} random stream {stream} seed r{seed}")
        }
        Instruction::Map { f, args, dtype } => {
            let args: Vec<_> = args.iter().map(|a| format!("r{a}")).collect();
            format!("r{i} = {dtype} {} {}", f.name(), args.join(", "))
        }
        Instruction::ReduceRow { op, arg, dtype } => format!("r{i} = {dtype} reduce_row {} r{arg}", op.name()),
        Instruction::Store { view, strides, arg, accumulate } => {
            let mode = accumulate.map_or(String::new(), |op| format!(" accumulate {}", op.name()));
            format!("store r{arg} -> {}{mode}", at(view, strides))
        }
    }
}
