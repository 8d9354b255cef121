//! What one rank executes: a flat list of kernels and collectives over one planned arena.
//!
//! A rank program is made by `tpc-passes` (lower, fuse, schedule, plan memory) and executed by
//! `tpc-runtime`; neither knows the other. Every size, stride and offset in it is a number: nothing
//! is decided at run time.

use crate::attention::Attention;
use crate::graph::place;
use crate::input::{InputId, InputKind};
use crate::op::ReduceOp;
use crate::{DType, Mesh, ModulePath, OutputKind, Phase};
use serde::{Deserialize, Serialize};
use std::fmt::Write as _;
use std::ops::Range;
use std::sync::Arc;

pub use crate::instruction::Instruction;
pub use crate::memory::{ALIGNMENT, Buffer, BufferId, View, dense_strides};

/// A fused loop nest: for every index of all dimensions but the last, the instructions run in order
/// on a row of the last. A program with 0 dimensions runs once on a row of one.
///
/// A store may overwrite what a load of the same view, strides and dimensions (none of stride 0) has
/// read earlier in the body: an update in place. Any other overlap of a store with another access is
/// executed instruction by instruction on whole rows, correct but slow.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Loop {
    /// Sizes, outermost first; the last is the row.
    pub dims: Vec<usize>,
    /// The instructions.
    pub body: Vec<Instruction>,
}

/// One loop of a contraction: its size and the stride it has in each operand, in elements.
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

/// A matrix product with any number of batch, row, column and summed dimensions:
/// `out[batch, m, n] = Σ_k left[batch, m, k] · right[batch, k, n]`, and what is done with each of its elements
/// before it is written (cublasLt and CUTLASS call that the epilogue).
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
    /// Multiplies the product.
    pub scale: f64,
    /// If there are any, what is done with every element: a loop body over the dimensions `batch`, `m`, `n` in that
    /// order, whose [`Instruction::Given`] 0 is the scaled product. A device may give it more precisely than
    /// the instruction's type. The stores are the results; the last one fills `out`, and none accumulates.
    /// Nothing is reduced. The body may load what `out` holds before, element by element (`out += product`).
    pub epilogue: Vec<Instruction>,
}

impl Contract {
    /// The dimensions of the result, in the order in which an epilogue counts them.
    pub fn dims(&self) -> impl Iterator<Item = &ContractDim> {
        self.batch.iter().chain(&self.m).chain(&self.n)
    }

    /// Whether the epilogue reads what `out` holds before.
    pub fn is_update(&self) -> bool {
        let of_out = |i: &Instruction| matches!(i, Instruction::Load { view, .. } if view.buffer == self.out.buffer);
        self.epilogue.iter().any(of_out)
    }

    /// The product alone, written to `raw`, which has the shape and strides of `out`.
    pub fn alone(&self, raw: View) -> Contract {
        Contract { out: raw, epilogue: Vec::new(), ..self.clone() }
    }

    /// The epilogue as a loop that runs after the product alone, whose result is in `raw` with the shape and strides of `out`;
    /// that may be `out` itself unless this [`Contract::is_update`].
    pub fn epilogue_loop(&self, raw: &View) -> Loop {
        let strides: Vec<isize> = self.dims().map(|d| d.out).collect();
        let body = self.epilogue.iter().map(|i| match i {
            Instruction::Given { .. } => Instruction::Load { view: raw.clone(), strides: strides.clone() },
            i => i.clone(),
        });
        Loop { dims: self.dims().map(|d| d.size).collect(), body: body.collect() }
    }
}

/// One of the values that a gather or a scatter carries: on rank r of the group its shard is
/// `[outer, lens[r], inner]`, the whole is `[outer, Σ lens, inner]`, both dense.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Product of the dimensions before the one that is cut.
    pub outer: usize,
    /// Length of each rank's shard; may be 0.
    pub lens: Vec<usize>,
    /// Product of the dimensions after it.
    pub inner: usize,
}

impl Part {
    /// Elements of the shard of the rank at that position of the group.
    pub fn shard(&self, position: usize) -> usize {
        self.outer * self.lens[position] * self.inner
    }

    /// Elements of the whole value.
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

/// What a collective does. Buffers are dense; lists have one entry per rank of the group.
///
/// A collective that carries several values has them side by side in `from` and in `to`, each dense,
/// in the order of its parts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum CollectiveKind {
    /// Element by element over the group. `from` and `to` may be the same buffer.
    AllReduce(ReduceOp),
    /// The shards of every part are joined: `from` holds this rank's shards, `to` the wholes.
    AllGather {
        /// The values, at least one.
        parts: Vec<Part>,
    },
    /// The parts of all ranks are combined, and each rank keeps its shards: `from` holds this rank's
    /// terms of the wholes, `to` its shards.
    ReduceScatter {
        /// How terms combine.
        op: ReduceOp,
        /// The values, at least one.
        parts: Vec<Part>,
    },
    /// The local `shape` is cut along `cut` in pieces of `cut_lens[r]` for rank r; the pieces that
    /// arrive are joined along `join`, `join_lens[r]` from rank r.
    AllToAll {
        /// Local shape before.
        shape: Vec<usize>,
        /// Dimension that is cut.
        cut: usize,
        /// Dimension that is joined.
        join: usize,
        /// Pieces of the cut dimension, one per rank.
        cut_lens: Vec<usize>,
        /// Pieces of the joined dimension, one per rank; this rank's own is `shape[join]`.
        join_lens: Vec<usize>,
    },
}

/// A collective over one group of ranks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Collective {
    /// What it does.
    pub kind: CollectiveKind,
    /// The ranks of the group in order.
    pub group: Vec<usize>,
    /// Position of this rank in the group.
    pub position: usize,
    /// Element type.
    pub dtype: DType,
    /// What this rank contributes. Dense.
    pub from: View,
    /// What this rank receives. Dense.
    pub to: View,
    /// Equal on all ranks of the group: identifies the collective in the program.
    pub tag: u32,
    /// Name of the axes, `tp` or `dp,tp`.
    pub axes: Arc<str>,
    /// Part of the step.
    pub phase: Phase,
    /// How many values it carries, at least 1.
    pub values: usize,
    /// Bytes of the whole values together (the larger side).
    pub full_bytes: usize,
    /// The plan line and reason, for error messages; of several values the first one's, and how many
    /// more there are.
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

    /// Bytes that each rank sends under the ring algorithm: `2(n−1)/n` of the value for an
    /// all-reduce, `(n−1)/n` for the others (Thakur et al., "Optimization of collective
    /// communication operations in MPICH").
    pub fn wire_bytes(&self) -> f64 {
        wire_bytes(self.name(), self.full_bytes, self.group.len())
    }
}

/// Bytes sent per rank by the ring algorithm; `full_bytes` is the size of the whole value, for an
/// all-to-all of one rank's part.
pub fn wire_bytes(name: &str, full_bytes: usize, ranks: usize) -> f64 {
    let share = full_bytes as f64 * (ranks as f64 - 1.0) / ranks as f64;
    if name == "all_reduce" { 2.0 * share } else { share }
}

/// One entry of the flat list that a rank executes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Action {
    /// A fused loop nest.
    Loop(Loop),
    /// A matrix product.
    Contract(Contract),
    /// Softmax attention, forward or backward.
    Attention(Box<Attention>),
    /// `out[t, h…] = table[index[t] − first_row, h…]`, or 0 where the row is not in the table's
    /// local chunk. `table` is `[rows, width]`, `index` `[count]`, `out` `[count, width]`.
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
    /// `table[index[t] − first_row, h…] = rows[t, h…]` in the order of the index, skipping rows of other ranks. The other
    /// rows stay as they are.
    Put {
        /// Local rows, `[rows, width]`.
        table: View,
        /// Global row numbers, `[count]`.
        index: View,
        /// What the rows become, `[count, width]`.
        rows: View,
        /// Global number of the first local row.
        first_row: usize,
    },
    /// Copies elements between views of one shape.
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
    /// The k largest of every row and their indices.
    TopK {
        /// Source, `[rows, n]`.
        from: View,
        /// Values, `[rows, k]`.
        values: View,
        /// Indices, `[rows, k]`.
        indices: View,
    },
    /// Starts a collective: its operands must not be touched until the wait. Every collective of a
    /// program has a tag of its own and exactly one wait after its start.
    Start(Box<Collective>),
    /// Waits for the collective of that tag.
    Wait {
        /// The collective's tag.
        tag: u32,
    },
}

/// An action with its provenance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// What to do.
    pub action: Action,
    /// Part of the training step.
    pub phase: Phase,
    /// Short name for traces and plans: `einsum`, `loop rms_norm`, …
    pub label: Arc<str>,
    /// The micro-batch that it belongs to; none for what there is once.
    pub micro_batch: Option<usize>,
    /// The module that it computes a part of; the root if it is unknown. A loop belongs to the module of its last
    /// operation, a product to its own module whatever its epilogue does, and a collective of several values to the
    /// innermost module that all of them are in.
    pub module: ModulePath,
}

impl Step {
    /// The micro-batch and the module in words; empty if neither is known.
    pub fn place(&self) -> String {
        place(self.micro_batch, &self.module)
    }
}

/// The box of a global tensor that a rank holds in a buffer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Binding {
    /// Where it lies. Dense.
    pub view: View,
    /// Global shape (factored).
    pub global: Vec<usize>,
    /// First global index of every dimension.
    pub start: Vec<usize>,
    /// Shape as the model knows it: the same row-major elements as `global`.
    pub layout: Vec<usize>,
}

impl Binding {
    /// Whether two bindings of programs of one rank are the same elements of a tensor, in the same order: then both programs may find them
    /// at one place. What a rank holds as a whole may be cut in dimensions in different ways.
    pub fn holds_the_same(&self, other: &Binding) -> bool {
        let is_whole = |b: &Binding| b.view.shape == b.global;
        let same_box =
            (&self.global, &self.start, &self.view.shape) == (&other.global, &other.start, &other.view.shape);
        (self.view.dtype, &self.layout) == (other.view.dtype, &other.layout)
            && (same_box || is_whole(self) && is_whole(other))
    }
}

/// A program input and where it goes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InputBinding {
    /// Its text, unique among the inputs of its kind.
    pub name: String,
    /// What it is.
    pub kind: InputKind,
    /// This rank's box.
    pub binding: Binding,
}

impl InputBinding {
    /// Which input of the graph it is.
    pub fn id(&self) -> InputId {
        InputId::read(self.kind, &self.name)
    }
}

/// A program output and where it is found after a step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OutputBinding {
    /// What it is.
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
    /// Pieces of the arena.
    pub buffers: Vec<Buffer>,
    /// Size of the arena in bytes: this rank's exact peak memory.
    pub arena_bytes: usize,
    /// What is fed in. `Update` outputs of the same name share the input's buffer after a step.
    pub inputs: Vec<InputBinding>,
    /// What comes out.
    pub outputs: Vec<OutputBinding>,
    /// What is executed, in order.
    pub steps: Vec<Step>,
}

impl RankProgram {
    /// The bytes of the arena in which an input lies.
    pub fn place(&self, input: &InputBinding) -> Range<usize> {
        let buffer = &self.buffers[input.binding.view.buffer.0 as usize];
        buffer.offset..buffer.offset + buffer.bytes
    }

    /// The input of this program that has the value of an input of another program of the same rank: a parameter, a state, a constant or a
    /// number of the step of the same name, of which the rank holds the same elements. Data are each program's own.
    pub fn same_input(&self, theirs: &InputBinding) -> Option<&InputBinding> {
        self.inputs.iter().find(|mine| {
            mine.kind != InputKind::Data
                && (mine.kind, &mine.name) == (theirs.kind, &theirs.name)
                && mine.binding.holds_the_same(&theirs.binding)
        })
    }

    /// Whether an input of this program lies where another program of the rank has it, so that both have one value.
    pub fn shares(&self, mine: &InputBinding, other: &RankProgram) -> bool {
        other.same_input(mine).is_some_and(|theirs| other.place(theirs) == self.place(mine))
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
