//! Emits operations that are kernels on their own.

use super::super::claims::Claim;
use super::emitter::Emitter;
use super::in_place::InPlace;
use super::views::{flat, part, store};
use petgraph::graph::NodeIndex;
use tpc_ir::program::{Action, Instruction, Loop, View};
use tpc_ir::{Op, Value};

impl Emitter<'_> {
    pub(super) fn single(&mut self, node: NodeIndex, in_place: &InPlace) {
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

    /// Replaces rows of a table: in place if the table is an input that this operation updates, otherwise in a copy.
    fn put(&mut self, node: NodeIndex, in_place: &InPlace) {
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
}
