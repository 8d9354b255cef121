//! Places the tensors that a program keeps from one run to the next and writes rows of: the keys and values of a cache.
//!
//! No plan names them. Each lies like the rows that are written into it, so that a run moves neither the tensor nor the rows:
//! a cache of keys is sharded by heads where the keys are, by the batch where the batch is, and replicated where several
//! ranks compute the same head. The dimension of the rows stays whole, because every run writes other rows.
//!
//! Before: `%0 = input state "attention/keys" : f32[64, 2, 8, 16]`, `%9 = put %0, %slots, %keys` with
//! `%keys : f32[1, 2@dp, 8@tp, 16]`, and nothing said of `attention/keys`.
//! After: an annotation `f32[64, 2@dp, 8@tp, 16]` of that input.

use crate::propagate::propagate_mapped;
use crate::styles::annotations::{Annotation, Annotations};
use crate::targets::Target;
use petgraph::graph::NodeIndex;
use std::collections::HashSet;
use tpc_ir::reason::Demand;
use tpc_ir::{Graph, InputId, InputKind, Op, Output, OutputKind, Sharding, Value};

/// A tensor that is kept, the rows that are written into it, and how many dimensions their numbers have.
struct Written<'a> {
    id: &'a InputId,
    rows: Value,
    numbered: usize,
}

/// The states that a program writes rows of, without those that a plan places.
fn written<'a>(graph: &'a Graph, annotations: &Annotations) -> Vec<Written<'a>> {
    let update = |output: &'a Output| match &output.kind {
        OutputKind::Update(id) => Some(id),
        _ => None,
    };
    let updated: HashSet<&InputId> = graph.outputs.iter().filter_map(update).collect();
    let open =
        |id: &InputId| id.kind() == InputKind::State && updated.contains(id) && !annotations.inputs.contains_key(id);
    let states = graph.inputs().filter(|(_, id)| open(id));
    let rows = states.filter_map(|(input, id)| {
        let is_put = |user: NodeIndex, operand: u32| matches!(graph.node(user).op, Op::Put) && operand == 0;
        let (put, _) = graph.users(input).find(|(user, edge)| is_put(*user, edge.operand))?;
        let operands = graph.operands(put);
        Some(Written { id, rows: operands[2], numbered: graph.ty(operands[1]).rank() })
    });
    rows.collect()
}

/// Annotates every state that rows are written into and that nothing places yet.
pub fn place_kept(graph: &Graph, annotations: &mut Annotations, target: &Target) {
    let written = written(graph, annotations);
    if written.is_empty() {
        return;
    }
    let (placed, mapping) = propagate_mapped(graph, annotations, target);
    for Written { id, rows, numbered } in written {
        let columns = &placed.ty(mapping[&rows]).sharding.dims[numbered..];
        let sharding = Sharding { dims: [&[Vec::new()], columns].concat(), partial: None };
        if !sharding.is_replicated() {
            annotations.inputs.insert(id.clone(), Annotation { sharding, why: Demand::Rows.into() });
        }
    }
}
