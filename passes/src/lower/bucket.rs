//! Makes one collective of several that are alike and do not depend on each other.
//!
//! Small messages cost their latency; and what is reduced for the optimizer alone can wait. Values
//! of one element type that go through the same operation over the same axes lie side by side in one
//! buffer: who makes one writes it there, who reads one reads it there (`emit.rs`).
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
//! A bucket stands where its last member stood, before the first reader of any: nothing else moves, so no
//! cycle can arise. Members share operation, reduction, element type, axes, phase, and the phase that
//! reads them first: what the next operation waits for is not mixed with what only the optimizer
//! wants. (For what the optimizer reads, backward and optimizer are one phase: the gradients of norms
//! and the squares that clipping adds up are one reduction.)
//!
//! A bucket is closed as soon as it holds [`LowerOptions::bucket_bytes`] (as PyTorch's
//! `DistributedDataParallel` does, in the order in which gradients are ready), so that early gradients
//! travel while later ones are computed.
//!
//! **Gathers of inputs** (parameters of FSDP) need nothing to be computed first. They are moved to
//! just before their first reader, and those of one block (`layers.3`, found in the input's name) and
//! phase are one gather, at the place of the first; those of no block are limited by
//! `bucket_bytes` too.
//!
//! Shards of inputs lie where the session put them, and are copied side by side first.
//!
//! Memory: an open bucket holds less than `bucket_bytes` plus its last member, per kind; a gather
//! holds the gathered parameters of one block. All decisions look at global types only, so every
//! rank takes the same ones.

use super::LowerOptions;
use super::depend::{Dependences, is_input, source};
use super::group::Kernel;
use crate::cost::full_bytes;
use crate::reshard::unit;
use tpc_ir::{AxisId, DType, Graph, Op, Phase, ReduceOp};

/// What members of one bucket have in common.
#[derive(Clone, Debug, PartialEq)]
struct Kind {
    name: String,
    reduce: Option<ReduceOp>,
    dtype: DType,
    axes: Vec<AxisId>,
    phase: Phase,
    /// Part of the step of the first reader.
    reader: Option<Phase>,
    /// Of a gather of an input: the block that it belongs to.
    block: Option<String>,
}

/// A place in the list of kernels: before or at the kernel of that index.
type Place = (usize, bool);

struct Bucket {
    kind: Kind,
    members: Vec<usize>,
    bytes: usize,
    place: Place,
    /// The first reader of any member.
    deadline: Place,
    open: bool,
}

/// Merges collectives; the other kernels keep their order.
pub(super) fn buckets(graph: &Graph, kernels: Vec<Kernel>, options: &LowerOptions) -> Vec<Kernel> {
    let found = Dependences::new(graph, &kernels);
    let mut collectives: Vec<(Place, usize)> = Vec::new();
    for (k, kernel) in kernels.iter().enumerate().filter(|(_, kernel)| is_collective(graph, kernel)) {
        let reader = found.readers[k].first();
        let place = if gathers_input(graph, kernel) { reader.map(|&r| (r, false)) } else { None };
        collectives.push((place.unwrap_or((k, true)), k));
    }
    collectives.sort_unstable();
    let mut all: Vec<Bucket> = Vec::new();
    for (place, k) in collectives {
        let reader = found.readers[k].first().copied();
        let deadline = reader.map_or((kernels.len(), true), |r| (r, true));
        let kind = kind(graph, &kernels[k], reader.map(|r| phase(graph, &kernels[r])));
        let bytes = bytes(graph, &kernels[k]);
        let open = all.iter_mut().filter(|b| b.open).find(|b| Some(&b.kind) == kind.as_ref());
        let fits = open.and_then(|b| {
            b.open = b.kind.block.is_some() || place < b.deadline;
            b.open.then_some(b)
        });
        let of_block =
            |kind: &Kind| options.bucket_bytes > 0 && kind.block.as_ref().is_some_and(|block| !block.is_empty());
        match (fits, kind) {
            (Some(bucket), _) => {
                bucket.members.push(k);
                bucket.bytes += bytes;
                bucket.deadline = bucket.deadline.min(deadline);
                if bucket.kind.block.is_none() {
                    bucket.place = place;
                }
                bucket.open = of_block(&bucket.kind) || bucket.bytes < options.bucket_bytes;
            }
            (None, Some(kind)) => {
                let open = of_block(&kind) || bytes < options.bucket_bytes;
                all.push(Bucket { kind, members: vec![k], bytes, place, deadline, open });
            }
            (None, None) => {}
        }
    }
    let mut place: Vec<Place> = (0..kernels.len()).map(|k| (k, true)).collect();
    let mut kernels = kernels;
    for bucket in &all {
        let (&first, others) = bucket.members.split_first().expect("a bucket has members");
        for &other in others {
            let nodes = std::mem::take(&mut kernels[other].nodes);
            kernels[first].nodes.extend(nodes);
        }
        place[first] = bucket.place;
    }
    let mut order: Vec<usize> = (0..kernels.len()).filter(|&k| !kernels[k].nodes.is_empty()).collect();
    order.sort_by_key(|&k| (place[k], k));
    let mut kernels: Vec<Option<Kernel>> = kernels.into_iter().map(Some).collect();
    order.into_iter().filter_map(|k| kernels[k].take()).collect()
}

/// Whether a kernel is a collective.
pub(super) fn is_collective(graph: &Graph, kernel: &Kernel) -> bool {
    kernel.nodes.first().is_some_and(|&n| graph.node(n).op.is_collective())
}

/// Whether a kernel gathers inputs, which are there from the beginning of a step.
pub(super) fn gathers_input(graph: &Graph, kernel: &Kernel) -> bool {
    let gathers = |n| matches!(graph.node(n).op, Op::AllGather { .. }) && is_input(graph, graph.operands(n)[0].node);
    kernel.nodes.iter().all(|&n| gathers(n))
}

/// The part of the step to which a kernel belongs.
fn phase(graph: &Graph, kernel: &Kernel) -> Phase {
    kernel.nodes.last().map_or(Phase::Forward, |&n| graph.node(n).origin.phase)
}

fn bytes(graph: &Graph, kernel: &Kernel) -> usize {
    let node = kernel.nodes[0];
    let n = graph.node(node);
    full_bytes(&n.op, graph.ty(graph.operands(node)[0]), &n.types[0], &graph.mesh)
}

/// What a collective may be merged by; none if it may not.
fn kind(graph: &Graph, kernel: &Kernel, reader: Option<Phase>) -> Option<Kind> {
    let node = kernel.nodes[0];
    let n = graph.node(node);
    let (reduce, axes) = match &n.op {
        Op::AllReduce { op, axes } => (Some(*op), axes.iter().collect()),
        Op::AllGather { axes, .. } => (None, axes.clone()),
        Op::ReduceScatter { op, axes, .. } => (Some(*op), axes.clone()),
        _ => return None,
    };
    let block = gathers_input(graph, kernel).then(|| {
        let name = match &graph.node(source(graph, graph.operands(node)[0].node)).op {
            Op::Input { name, .. } => name.as_str(),
            _ => "",
        };
        unit(name).to_string()
    });
    let (name, dtype) = (n.op.name(), n.types[0].dtype);
    // What only the optimizer reads may come from the backward pass or from the optimizer itself.
    let phase = if reader == Some(Phase::Optimizer) { Phase::Optimizer } else { n.origin.phase };
    Some(Kind { name, reduce, dtype, axes, phase, reader, block })
}
