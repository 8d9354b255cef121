//! Emits collectives and their buffers: an action that starts each of them and one that waits for it, with the views, the
//! group and the sizes of this rank.
//!
//! Before, for the group `[0, 1]` of `tp`: `%26 = all_reduce tp sum %25 : f32[32, 64]`.
//! After: `start #0 all_reduce tp [0, 1] b3 f32[32, 64] -> b3 f32[32, 64]`, …, `wait #0`.

use super::super::claims::Claim;
use super::super::events::why;
use super::emitter::{BufferPosition, Emitter};
use super::views::has_own_buffer;
use petgraph::graph::NodeIndex;
use tpc_ir::program::{Action, Collective, CollectiveKind, Part, View};
use tpc_ir::sharding::chunk;
use tpc_ir::{AxisId, Op, Type, Value};

impl Emitter<'_> {
    /// Allocates the buffer of a bucket, in which the operands of a collective of several values are side by side, and
    /// decides which of them are computed there. `kernel` is the number of the collective in the schedule.
    pub(super) fn allocate_bucket(&mut self, kernel: usize, nodes: &[NodeIndex]) {
        if nodes.len() < 2 {
            return;
        }
        let in_place = matches!(self.graph.node(nodes[0]).op, Op::AllReduce { .. });
        let operands: Vec<Value> = nodes.iter().map(|&n| self.graph.operands(n)[0]).collect();
        let dtype = self.graph.ty(operands[0]).dtype;
        let sizes: Vec<usize> = operands.iter().map(|&v| self.shape(self.graph.ty(v)).iter().product()).collect();
        let label = format!("{} operands of {}", operands.len(), self.graph.node(nodes[0]).op.name());
        let flat = Type::new(dtype, vec![sizes.iter().sum()]);
        let buffer = self.buffer(&flat, flat.shape.clone(), false, &label).buffer;
        let mut offset = 0;
        for (&v, size) in operands.iter().zip(sizes) {
            // A reduction in place destroys its operand, which other readers may need.
            if has_own_buffer(self.graph.op(v)) && (!in_place || self.is_exclusive(v)) {
                self.in_buckets.entry(v).or_insert(BufferPosition { buffer, offset });
            }
            offset += size;
        }
        self.bucket_buffers.insert(kernel, buffer);
    }

    /// Emits the start of a collective, and before it the copies of operands that are not in its buffer yet.
    pub(super) fn start(&mut self, kernel: usize, nodes: &[NodeIndex]) {
        let first = self.graph.node(nodes[0]);
        let phase = first.origin.phase;
        let mesh = &self.graph.mesh;
        let axes: Vec<AxisId> = match &first.op {
            Op::AllReduce { axes, .. } => axes.iter().collect(),
            Op::AllGather { axes, .. } | Op::ReduceScatter { axes, .. } | Op::AllToAll { axes, .. } => axes.clone(),
            op => unreachable!("{} is no collective", op.name()),
        };
        let group = mesh.group(self.rank, &axes);
        let kind = self.collective_kind(nodes, &group);
        let operands: Vec<Value> = nodes.iter().map(|&n| self.graph.operands(n)[0]).collect();
        let reduces = matches!(kind, CollectiveKind::AllReduce(_));
        let from = match self.bucket_buffers.get(&kernel).copied() {
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
        // An all-reduce overwrites its operand if no other kernel reads it.
        let in_place = reduces
            && (operands.len() > 1 || has_own_buffer(self.graph.op(operands[0])) && self.is_exclusive(operands[0]));
        let shapes: Vec<Vec<usize>> = nodes.iter().map(|&n| self.shape(&self.graph.node(n).types[0])).collect();
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
        for (&node, shape) in nodes.iter().zip(shapes) {
            let view = View { offset, ..View::dense(to.buffer, to.dtype, shape) };
            offset += view.elements();
            self.views.insert(node.into(), view);
        }
        let full_bytes = from.elements().max(to.elements()) * to.dtype.bytes();
        let names: Vec<&str> = axes.iter().map(|&a| mesh.name(a)).collect();
        let position = group.iter().position(|&r| r == self.rank).unwrap_or(0);
        let tag = self.started;
        self.started += 1;
        self.tags[kernel] = tag;
        let values = nodes.len();
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
            why: why(self.graph, nodes),
            group,
        };
        let label = label(&collective);
        self.push(Action::Start(Box::new(collective)), Claim::Start(nodes.to_vec()), phase, label);
    }

    /// Emits the wait for a collective that was started.
    pub(super) fn wait(&mut self, kernel: usize, nodes: &[NodeIndex]) {
        let n = self.graph.node(nodes[0]);
        let values = nodes.len();
        let label = if values > 1 { format!("{} ×{values}", n.op.name()) } else { n.op.name() };
        self.push(Action::Wait { tag: self.tags[kernel] }, Claim::Wait, n.origin.phase, label);
    }

    /// The kind of a collective, with the sizes of every rank of the group.
    fn collective_kind(&self, nodes: &[NodeIndex], group: &[usize]) -> CollectiveKind {
        let mesh = &self.graph.mesh;
        // The length of the chunk of one dimension on every rank of the group.
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
}

/// The mnemonic, and the number of values if there are several.
fn label(c: &Collective) -> String {
    if c.values > 1 { format!("{} ×{}", c.name(), c.values) } else { c.name().into() }
}
