//! Emits the inputs and outputs of a rank program.

use super::super::claims::Claim;
use super::emitter::Emitter;
use tpc_ir::program::{Action, Binding, InputBinding, OutputBinding, View};
use tpc_ir::{Op, OutputKind, Type, Value};

impl Emitter<'_> {
    fn binding(&self, ty: &Type, layout: &[usize], view: View) -> Binding {
        let start = ty.local(&self.graph.mesh, &self.coords).iter().map(|c| c.offset).collect();
        Binding { view, global: ty.shape.clone(), start, layout: layout.to_vec() }
    }

    /// Gives every input a buffer that keeps its contents from step to step.
    pub(super) fn inputs(&mut self) {
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

    /// Binds the outputs. Updates are copied into their inputs last, because other copies may still read the inputs.
    pub(super) fn outputs(&mut self) {
        let inputs = self.graph.inputs_by_id();
        let mut updates = Vec::new();
        for output in &self.graph.outputs {
            let ty = self.graph.ty(output.value);
            let phase = self.graph.node(output.value.node).origin.phase;
            self.enter(&[output.value.node]);
            let mut view = self.dense(output.value, phase);
            let target = match &output.kind {
                OutputKind::Update(id) => inputs.get(id).map(|&input| self.views[&Value::from(input)].clone()),
                _ => None,
            };
            let claim = Claim::Copy(output.value);
            if let Some(to) = target {
                if to.buffer != view.buffer {
                    let copy = Action::Copy { from: view, to: to.clone() };
                    updates.push((self.step(copy, phase, "copy update"), claim));
                }
                view = to;
            } else if self.program.buffers[view.buffer.0 as usize].persistent {
                // The output is an input, which a later update must not change.
                let to = self.buffer(ty, view.shape.clone(), false, "output");
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
}
