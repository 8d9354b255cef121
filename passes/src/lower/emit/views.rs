//! The views of values in memory.

use super::super::claims::{Body, Claim, Content, Named};
use super::super::kernel::{LoopDim, Nest, is_loop_op};
use super::emitter::Emitter;
use petgraph::graph::NodeIndex;
use tpc_ir::program::{Action, Instruction, Loop, View, dense_strides};
use tpc_ir::{Op, Phase, Value};

impl Emitter<'_> {
    /// The view of a value. A constant or an iota is written to memory first.
    pub(super) fn view(&mut self, value: Value, phase: Phase) -> View {
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
                let body = vec![self.computed(value, &[0]), store(&view, view.strides.clone(), 0)];
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

    /// A dense view of a value, which is copied if necessary.
    pub(super) fn dense(&mut self, value: Value, phase: Phase) -> View {
        let view = self.view(value, phase);
        if view.is_dense() {
            return view;
        }
        let ty = self.graph.ty(value).clone();
        let to = self.buffer(&ty, view.shape.clone(), false, "dense");
        self.push(Action::Copy { from: view, to: to.clone() }, Claim::Copy(value), phase, "copy dense");
        to
    }

    /// The instruction that computes a constant or an iota in a loop.
    pub(super) fn computed(&self, value: Value, dims: &[LoopDim]) -> Instruction {
        let ty = self.graph.ty(value);
        match self.graph.op(value) {
            Op::Fill(s) => Instruction::Constant(*s, ty.dtype),
            _ => {
                let offset = ty.local(&self.graph.mesh, &self.coords)[0].offset;
                Instruction::Index { dim: dims[0], offset, dtype: ty.dtype }
            }
        }
    }

    /// Ensures that everything that the members of a loop or an epilogue load has a view.
    pub(super) fn operands(&mut self, nest: &Nest, members: &[NodeIndex], phase: Phase) {
        for v in members.iter().flat_map(|&node| self.graph.operands(node)) {
            let op = self.graph.op(v);
            if !nest.dims.contains_key(&v.node) && !matches!(op, Op::Fill(_)) && !matches!(op, Op::Iota) {
                self.view(v, phase);
            }
        }
    }
}

/// Whether an operation writes its result to a new buffer, which may be chosen.
pub(super) fn has_own_buffer(op: &Op) -> bool {
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

pub(super) fn store(view: &View, strides: Vec<isize>, arg: usize) -> Instruction {
    Instruction::Store { view: view.clone(), strides, arg, accumulate: None }
}

/// The strides of the dimensions of a value by loop dimension; 0 for loop dimensions that it lacks.
pub(super) fn spread(strides: &[isize], dims: &[LoopDim], rank: usize) -> Vec<isize> {
    let mut all = vec![0; rank];
    for (&s, &d) in strides.iter().zip(dims) {
        all[d] += s;
    }
    all
}

/// A dense view with another shape.
pub(super) fn flat(view: &View, shape: Vec<usize>) -> View {
    View { strides: dense_strides(&shape), shape, ..view.clone() }
}

/// The part of a view that starts at `start` of one dimension.
pub(super) fn part(view: &View, dim: usize, start: usize, shape: &[usize]) -> View {
    View { offset: view.offset + start * view.strides[dim] as usize, shape: shape.to_vec(), ..view.clone() }
}
