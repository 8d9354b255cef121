//! Makes one collective of several that are alike and do not depend on each other.
//!
//! Small messages cost their latency; and what is reduced for the optimizer alone can wait. Values
//! of one element type that go through the same operation over the same axes lie side by side in one
//! buffer: a kernel that makes one of them writes it there, and a kernel that reads one reads it there (`emit/collectives.rs`).
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
//! A bucket stands where its last member stood. Members share operation, reduction, element type, axes,
//! phase, and the phase and the micro-batch that read them first: what the next operation waits for is not mixed with
//! what only a later micro-batch or the optimizer wants. (For what the optimizer reads, backward and optimizer are one phase: the
//! gradients of norms and the squares that clipping adds up are one reduction.)
//!
//! No member may depend on another, also not through other buckets. If a reader of one stands before
//! another member it moves behind the bucket: for a bucket that only the optimizer reads, and for
//! collectives that cost more latency than bytes. A larger one does not wait.
//!
//! A bucket is closed as soon as it holds [`LowerOptions::bucket_bytes`] (as PyTorch's
//! `DistributedDataParallel` does, in the order in which gradients are ready), so that early gradients
//! travel while later ones are computed.
//!
//! **Gathers of inputs** (parameters of FSDP) need nothing to be computed first. They are moved to
//! just before their first reader, and those of one unit ([`UnitId`], a block of the model), phase and
//! micro-batch are one gather, at the place of the first; those of no unit are limited by `bucket_bytes`
//! too.
//!
//! **Scatters of gradients** of parameters that are stored in shards (FSDP again) are put together by
//! unit whatever its size: a unit's gradients leave when its backward pass is done, as in
//! `torch.distributed.fsdp.fully_shard`.
//!
//! Shards of inputs lie where the session put them, and are copied side by side first.
//!
//! Memory: an open bucket holds less than `bucket_bytes` plus its last member, per kind; a gather
//! holds the gathered parameters of one unit. All decisions look at global types only, so every
//! rank takes the same ones.

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

/// What members of one bucket have in common.
#[derive(Clone, Debug, PartialEq)]
struct Kind {
    name: String,
    reduce: Option<ReduceOp>,
    dtype: DType,
    axes: Vec<AxisId>,
    phase: Phase,
    /// Part of the step of the first reader that is no collective; its own if there is none.
    reader: Phase,
    /// Of the gather of an input and of the scatter of a parameter's gradient: what the input belongs to.
    home: Option<Home>,
    /// The first micro-batch that waits for it; none if only the optimizer does. Each micro-batch gathers parameters
    /// for itself and frees what it gathered, and no micro-batch waits for a later one.
    micro_batch: Option<usize>,
}

/// What an input belongs to.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Home {
    Unit(UnitId),
    Model,
}

impl Home {
    fn of(graph: &Graph, input: NodeIndex) -> Self {
        graph.unit_of(input).map_or(Home::Model, Home::Unit)
    }
}

/// Place in the list of kernels: before or at the kernel of that index.
type Place = (usize, bool);

struct Bucket {
    kind: Kind,
    /// The kernel that takes in the others.
    first: usize,
    bytes: usize,
    place: Place,
    /// The first reader of any member.
    deadline: Place,
    open: bool,
}

/// Merges collectives; the other kernels keep their order, but for readers that wait for a bucket.
pub(super) fn buckets(graph: &Graph, kernels: Vec<Kernel>, target: &Target, options: &LowerOptions) -> Vec<Kernel> {
    let found = Dependences::new(graph, &kernels);
    let (homes, turns) = (scattered(graph), turns(graph));
    let mut collectives: Vec<(Place, usize)> = Vec::new();
    for k in (0..kernels.len()).filter(|&k| kernels[k].as_collective().is_some()) {
        let reader = found.readers[k].first();
        let place = if gathers_input(graph, &kernels[k]) { reader.map(|&r| (r, false)) } else { None };
        collectives.push((place.unwrap_or((k, true)), k));
    }
    collectives.sort_unstable();
    let mut merged = DependenceOrder::of(&found.needs);
    let mut place: Vec<Place> = (0..kernels.len()).map(|k| (k, true)).collect();
    let mut all: Vec<Bucket> = Vec::new();
    for (at, k) in collectives {
        place[k] = at;
        let Some(kind) = kind(graph, &kernels, &found, k, &homes, &turns) else { continue };
        let bytes = bytes(graph, &kernels[k]);
        let deadline = found.readers[k].first().map_or((kernels.len(), true), |&r| (r, true));
        let mut joined = false;
        for bucket in all.iter_mut().filter(|b| b.open && b.kind == kind) {
            let may_wait =
                kind.reader == Phase::Optimizer || is_latency(bucket.bytes + bytes, &kernels[k], graph, target);
            if !(bucket.first_place() || at < bucket.deadline || may_wait) {
                bucket.open = false;
            } else if !merged.reaches(bucket.first, k) && !merged.reaches(k, bucket.first) {
                merged.merge(bucket.first, k);
                bucket.bytes += bytes;
                bucket.deadline = bucket.deadline.min(deadline);
                if !bucket.first_place() {
                    bucket.place = at;
                }
                bucket.open = bucket.takes_more(options);
                joined = true;
                break;
            }
        }
        if !joined {
            let mut bucket = Bucket { kind, first: k, bytes, place: at, deadline, open: true };
            bucket.open = bucket.takes_more(options);
            all.push(bucket);
        }
    }
    for bucket in &all {
        place[bucket.first] = bucket.place;
    }
    let order = merged.ordered(|k| place[k]);
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
    /// Whether it stands where its first member stood: what it gathers is there from the beginning.
    fn first_place(&self) -> bool {
        self.kind.home.is_some() && self.kind.reduce.is_none()
    }

    /// Whether further members may come.
    fn takes_more(&self, options: &LowerOptions) -> bool {
        let of_unit = matches!(self.kind.home, Some(Home::Unit(_)));
        self.bytes < options.bucket_bytes || of_unit && options.bucket_bytes > 0
    }
}

/// Whether a collective of so many bytes takes less time to send than to begin.
fn is_latency(bytes: usize, kernel: &Kernel, graph: &Graph, target: &Target) -> bool {
    let op = &graph.node(kernel.first()).op;
    let link = target.links.group(&graph.mesh, op.axes());
    wire_bytes(&op.name(), bytes, graph.mesh.group_size(op.axes())) < link.latency * link.bandwidth
}

/// The scatters of gradients of parameters that are stored in shards over the scatter's axes, with what
/// the parameters belong to.
fn scattered(graph: &Graph) -> HashMap<NodeIndex, Home> {
    let mut homes = HashMap::new();
    let inputs = graph.inputs_by_id();
    for output in &graph.outputs {
        let OutputKind::Update(id) = &output.kind else { continue };
        let Some(&input) = inputs.get(id).filter(|_| id.is_parameter()) else { continue };
        let stored = &graph.node(input).types[0].sharding;
        let mut open = vec![output.value.node];
        let mut seen = HashSet::new();
        while let Some(node) = open.pop() {
            let n = graph.node(node);
            // A scalar (the factor of clipping, a rate) depends on everything.
            if n.types[0].shape.is_empty() || !seen.insert(node) {
                continue;
            }
            match &n.op {
                Op::ReduceScatter { axes, .. } if axes.iter().all(|&a| stored.dim_of(a).is_some()) => {
                    homes.insert(node, Home::of(graph, input));
                }
                // Behind the reduction there are at most casts and views.
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
    homes
}

/// Whether a kernel gathers inputs, which are there from the beginning of a step.
pub(super) fn gathers_input(graph: &Graph, kernel: &Kernel) -> bool {
    let gathers = |n| matches!(graph.node(n).op, Op::AllGather { .. }) && is_input(graph, graph.operands(n)[0].node);
    kernel.as_collective().is_some_and(|nodes| nodes.iter().all(|&n| gathers(n)))
}

/// The part of the step to which a kernel belongs.
fn phase(graph: &Graph, kernel: &Kernel) -> Phase {
    graph.node(kernel.last()).origin.phase
}

fn bytes(graph: &Graph, kernel: &Kernel) -> usize {
    let node = kernel.first();
    let n = graph.node(node);
    full_bytes(&n.op, graph.ty(graph.operands(node)[0]), &n.types[0], &graph.mesh)
}

/// What a collective may be merged by; none if it may not.
fn kind(
    graph: &Graph,
    kernels: &[Kernel],
    found: &Dependences,
    k: usize,
    scattered: &HashMap<NodeIndex, Home>,
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
    let home = match gathers_input(graph, kernel) {
        true => Some(Home::of(graph, source(graph, graph.operands(node)[0].node))),
        false => scattered.get(&node).copied(),
    };
    let (name, dtype) = (n.op.name(), n.types[0].dtype);
    let mut reader = found.readers[k].first().copied();
    while let Some(r) = reader.filter(|&r| kernels[r].as_collective().is_some()) {
        reader = found.readers[r].first().copied();
    }
    let reader = reader.map_or(n.origin.phase, |r| phase(graph, &kernels[r]));
    // What only the optimizer reads may come from the backward pass or from the optimizer itself.
    let phase = if reader == Phase::Optimizer { Phase::Optimizer } else { n.origin.phase };
    let micro_batch = turns[node.index()].wanted_by.filter(|_| reader != Phase::Optimizer);
    Some(Kind { name, reduce, dtype, axes, phase, reader, home, micro_batch })
}
