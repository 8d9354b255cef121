//! Merges collectives that are alike and do not depend on each other into buckets.
//!
//! A small message costs its latency, and a reduction that only the optimizer reads can wait. Values of one element
//! type that go through the same operation over the same axes are stored side by side in one buffer: kernels that
//! compute or read one of them write and read it there (`emit/collectives.rs`).
//!
//! ```text
//! before                                          after
//! %2 = all_reduce tp sum %1    ; norm 2 gradient  %1 is written to b7[0..512]
//! …
//! %9 = all_reduce tp sum %8    ; norm 1 gradient  %8 is written to b7[512..1024]
//! %11 = sub %p2, %2            ; optimizer        start all_reduce tp sum b7[0..1024]; wait
//! %12 = sub %p1, %9                               %11, %12 read b7[0..512], b7[512..1024]
//! ```
//!
//! A bucket has the position of its last member. Its members share operation, reduction, element type, axes and phase,
//! and also the phase and the micro-batch of their first reader: a value that the next operation waits for is not
//! merged with one that only a later micro-batch or the optimizer needs. (For values that the optimizer reads, backward
//! and optimizer count as one phase, so the gradients of norms and the squares that clipping sums are one reduction.)
//!
//! No member may depend on another, even through other buckets. A reader of one member that comes before another member
//! moves after the bucket. This is allowed for a bucket that only the optimizer reads, and for collectives whose
//! latency exceeds the time for their bytes. Readers of larger collectives do not wait.
//!
//! A bucket is closed as soon as it has [`LowerOptions::bucket_bytes`], so that early gradients are sent while later
//! ones are computed. PyTorch's `DistributedDataParallel` does the same, in the order in which gradients are ready.
//!
//! **Gathers of inputs** (parameters under FSDP) do not depend on other kernels. They are moved to just before their
//! first reader. Those of one unit ([`UnitId`], a block of the model), phase and micro-batch are one gather, at the
//! position of the first; those without a unit are limited by `bucket_bytes`.
//!
//! **Scatters of gradients** of parameters that are stored in shards (also FSDP) are merged within a unit. The gradients of a
//! small unit are sent when its backward pass is done, as in `torch.distributed.fsdp.fully_shard`; those of a large one are
//! sent, and their memory is free, before that.
//!
//! Shards of inputs are where the session stores them, so they are first copied side by side.
//!
//! Memory: per kind, an open bucket has at most `bucket_bytes` plus its last member; a gather has the gathered
//! parameters of one unit. Where memory is scarce, fewer collectives are merged ([`Merging`]). All decisions depend on
//! global types only, so they are the same on every rank.

use super::LowerOptions;
use super::depend::{Dependences, is_input, source};
use super::dependence_order::DependenceOrder;
use super::kernel::Kernel;
use super::turn::{Turn, turns};
use crate::cost::full_bytes;
use crate::targets::Target;
use petgraph::graph::NodeIndex;
use std::collections::{HashMap, HashSet};
use tpc_ir::program::wire_bytes;
use tpc_ir::{AxisId, DType, Graph, Op, OutputKind, Phase, ReduceOp, UnitId};

/// How many collectives a bucket has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Merging {
    /// The gathers of the parameters of a unit, whatever their size, and others up to [`LowerOptions::bucket_bytes`].
    Units,
    /// All up to [`LowerOptions::bucket_bytes`].
    Sizes,
    /// Gathers of inputs up to [`LowerOptions::bucket_bytes`], and every other collective alone.
    Gathers,
    /// Every collective alone.
    Nothing,
}

impl Merging {
    /// From the largest buckets to none.
    pub(super) const ALL: [Merging; 4] = [Merging::Units, Merging::Sizes, Merging::Gathers, Merging::Nothing];
}

/// The properties that all members of a bucket share.
#[derive(Clone, Debug, PartialEq)]
struct Kind {
    name: String,
    reduce: Option<ReduceOp>,
    dtype: DType,
    axes: Vec<AxisId>,
    phase: Phase,
    /// The phase of the first reader that is not a collective; the phase of the collective itself if there is none.
    reader: Phase,
    /// For the gather of an input and the scatter of the gradient of a parameter: what the input belongs to.
    owner: Option<Owner>,
    /// The first micro-batch that waits for it; `None` if only the optimizer does. Each micro-batch gathers its own
    /// parameters and frees them, and no micro-batch waits for a later one.
    micro_batch: Option<usize>,
}

/// The owner of an input.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Owner {
    Unit(UnitId),
    Model,
}

impl Owner {
    fn of(graph: &Graph, input: NodeIndex) -> Self {
        graph.unit_of(input).map_or(Owner::Model, Owner::Unit)
    }
}

/// A position in the list of kernels: before the kernel with an index (`false`) or at it (`true`).
type Position = (usize, bool);

struct Bucket {
    kind: Kind,
    /// The kernel into which the others are merged.
    first: usize,
    bytes: usize,
    position: Position,
    /// The first reader of any member.
    deadline: Position,
    open: bool,
}

/// Merges collectives. Other kernels keep their order, except readers that wait for a bucket.
pub(super) fn buckets(
    graph: &Graph,
    kernels: Vec<Kernel>,
    target: &Target,
    options: &LowerOptions,
    merging: Merging,
) -> Vec<Kernel> {
    let found = Dependences::new(graph, &kernels);
    let (owners, turns) = (scattered(graph), turns(graph));
    let mut collectives: Vec<(Position, usize)> = Vec::new();
    for k in (0..kernels.len()).filter(|&k| kernels[k].as_collective().is_some()) {
        let reader = found.readers[k].first();
        let position = if gathers_input(graph, &kernels[k]) { reader.map(|&r| (r, false)) } else { None };
        collectives.push((position.unwrap_or((k, true)), k));
    }
    collectives.sort_unstable();
    let mut merged = DependenceOrder::of(&found.needs);
    let mut position: Vec<Position> = (0..kernels.len()).map(|k| (k, true)).collect();
    let mut all: Vec<Bucket> = Vec::new();
    for (at, k) in collectives {
        position[k] = at;
        let Some(kind) = kind(graph, &kernels, &found, k, &owners, &turns) else { continue };
        let bytes = bytes(graph, &kernels[k]);
        let deadline = found.readers[k].first().map_or((kernels.len(), true), |&r| (r, true));
        let mut joined = false;
        for bucket in all.iter_mut().filter(|b| b.open && b.kind == kind) {
            let may_wait =
                kind.reader == Phase::Optimizer || is_latency(bucket.bytes + bytes, &kernels[k], graph, target);
            if !(bucket.has_first_position() || at < bucket.deadline || may_wait) {
                bucket.open = false;
            } else if !merged.reaches(bucket.first, k) && !merged.reaches(k, bucket.first) {
                merged.merge(bucket.first, k);
                bucket.bytes += bytes;
                bucket.deadline = bucket.deadline.min(deadline);
                if !bucket.has_first_position() {
                    bucket.position = at;
                }
                bucket.open = bucket.takes_more(options, merging);
                joined = true;
                break;
            }
        }
        if !joined {
            let mut bucket = Bucket { kind, first: k, bytes, position: at, deadline, open: true };
            bucket.open = bucket.takes_more(options, merging);
            all.push(bucket);
        }
    }
    for bucket in &all {
        position[bucket.first] = bucket.position;
    }
    let order = merged.ordered(|k| position[k]);
    let mut kernels: Vec<Option<Kernel>> = kernels.into_iter().map(Some).collect();
    for k in 0..kernels.len() {
        let into = merged.current(k);
        if into == k {
            continue;
        }
        if let (Some(Kernel::Collective(more)), Some(Kernel::Collective(nodes))) =
            (kernels[k].take(), &mut kernels[into])
        {
            nodes.extend(more);
        }
    }
    order.into_iter().filter_map(|k| kernels[k].take()).collect()
}

impl Bucket {
    /// Whether it has the position of its first member, because the inputs that it gathers are available from the
    /// beginning.
    fn has_first_position(&self) -> bool {
        self.kind.owner.is_some() && self.kind.reduce.is_none()
    }

    /// Whether it gathers the parameters of a unit.
    fn gathers_unit(&self) -> bool {
        self.has_first_position() && matches!(self.kind.owner, Some(Owner::Unit(_)))
    }

    /// Whether further members may join.
    fn takes_more(&self, options: &LowerOptions, merging: Merging) -> bool {
        let is_small = self.bytes < options.bucket_bytes;
        match merging {
            Merging::Units => is_small || self.gathers_unit() && options.bucket_bytes > 0,
            Merging::Sizes => is_small,
            Merging::Gathers => is_small && self.has_first_position(),
            Merging::Nothing => false,
        }
    }
}

/// Whether sending so many bytes takes less time than the latency.
fn is_latency(bytes: usize, kernel: &Kernel, graph: &Graph, target: &Target) -> bool {
    let op = &graph.node(kernel.first()).op;
    let link = target.links.group(&graph.mesh, op.axes());
    wire_bytes(&op.name(), bytes, graph.mesh.group_size(op.axes())) < link.latency * link.bandwidth
}

/// The scatters of gradients of parameters that are stored in shards over the axes of the scatter, each with what its
/// parameter belongs to.
fn scattered(graph: &Graph) -> HashMap<NodeIndex, Owner> {
    let mut owners = HashMap::new();
    let inputs = graph.inputs_by_id();
    for output in &graph.outputs {
        let OutputKind::Update(id) = &output.kind else { continue };
        let Some(&input) = inputs.get(id).filter(|_| id.is_parameter()) else { continue };
        let stored = &graph.node(input).types[0].sharding;
        let mut open = vec![output.value.node];
        let mut seen = HashSet::new();
        while let Some(node) = open.pop() {
            let n = graph.node(node);
            // A scalar (the factor of clipping, a learning rate) depends on everything.
            if n.types[0].shape.is_empty() || !seen.insert(node) {
                continue;
            }
            match &n.op {
                Op::ReduceScatter { axes, .. } if axes.iter().all(|&a| stored.dim_of(a).is_some()) => {
                    owners.insert(node, Owner::of(graph, input));
                }
                // Only casts and views follow the reduction.
                op => {
                    let operands = graph.operands(node);
                    let passes = matches!(op, Op::Map { .. } if operands.len() == 1) || op.is_collective();
                    if n.origin.phase == Phase::Optimizer || passes {
                        open.extend(operands.iter().map(|v| v.node));
                    }
                }
            }
        }
    }
    owners
}

/// Whether a kernel gathers inputs, which are available from the beginning of a step.
fn gathers_input(graph: &Graph, kernel: &Kernel) -> bool {
    gathers(graph, kernel, is_input)
}

/// Whether a kernel gathers values, all of one kind.
pub(super) fn gathers(graph: &Graph, kernel: &Kernel, is_of_kind: fn(&Graph, NodeIndex) -> bool) -> bool {
    let gathers = |n| matches!(graph.node(n).op, Op::AllGather { .. }) && is_of_kind(graph, graph.operands(n)[0].node);
    kernel.as_collective().is_some_and(|nodes| nodes.iter().all(|&n| gathers(n)))
}

/// The phase to which a kernel belongs.
fn phase(graph: &Graph, kernel: &Kernel) -> Phase {
    graph.node(kernel.last()).origin.phase
}

fn bytes(graph: &Graph, kernel: &Kernel) -> usize {
    let node = kernel.first();
    let n = graph.node(node);
    full_bytes(&n.op, graph.ty(graph.operands(node)[0]), &n.types[0], &graph.mesh)
}

/// The kind of a collective; `None` if it may not be merged.
fn kind(
    graph: &Graph,
    kernels: &[Kernel],
    found: &Dependences,
    k: usize,
    scattered: &HashMap<NodeIndex, Owner>,
    turns: &[Turn],
) -> Option<Kind> {
    let kernel = &kernels[k];
    let node = kernel.first();
    let n = graph.node(node);
    let (reduce, axes) = match &n.op {
        Op::AllReduce { op, axes } => (Some(*op), axes.iter().collect()),
        Op::AllGather { axes, .. } => (None, axes.clone()),
        Op::ReduceScatter { op, axes, .. } => (Some(*op), axes.clone()),
        _ => return None,
    };
    let owner = match gathers_input(graph, kernel) {
        true => Some(Owner::of(graph, source(graph, graph.operands(node)[0].node))),
        false => scattered.get(&node).copied(),
    };
    let (name, dtype) = (n.op.name(), n.types[0].dtype);
    let mut reader = found.readers[k].first().copied();
    while let Some(r) = reader.filter(|&r| kernels[r].as_collective().is_some()) {
        reader = found.readers[r].first().copied();
    }
    let reader = reader.map_or(n.origin.phase, |r| phase(graph, &kernels[r]));
    // A value that only the optimizer reads may come from the backward pass or from the optimizer itself.
    let phase = if reader == Phase::Optimizer { Phase::Optimizer } else { n.origin.phase };
    let micro_batch = turns[node.index()].wanted_by.filter(|_| reader != Phase::Optimizer);
    Some(Kind { name, reduce, dtype, axes, phase, reader, owner, micro_batch })
}
