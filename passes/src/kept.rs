//! Places tensors that a program keeps from one run to the next and of which it writes rows, such as the keys and
//! values of a cache.
//!
//! Plans do not name such tensors. Each is placed like the rows that are written into it, so that a run moves neither
//! the tensor nor the rows: a cache of keys is sharded by heads if the keys are, by the batch if the batch is, and
//! replicated if several ranks compute the same head. The dimension of the rows stays whole, because every run writes
//! different rows.
//!
//! Before: `%0 = input state "attention/keys" : f32[64, 2, 8, 16]`, `%9 = put %0, %slots, %keys` with `%keys : f32[1,
//! 2@dp, 8@tp, 16]`, and no annotation of `attention/keys`. After: an annotation of this input, `f32[64, 2@dp, 8@tp,
//! 16]`.

use crate::propagate::propagate_mapped;
use crate::styles::annotations::{Annotation, Annotations};
use crate::targets::Target;
use petgraph::graph::NodeIndex;
use std::collections::HashSet;
use tpc_ir::reason::Demand;
use tpc_ir::{Graph, InputId, InputKind, Op, Output, OutputKind, Sharding, Value};

/// A tensor that is kept, the rows that are written into it, and the number of dimensions of the row numbers.
struct Written<'a> {
    id: &'a InputId,
    rows: Value,
    numbered: usize,
}

/// The states of which a program writes rows, except those that a plan places.
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

/// Annotates every state of which rows are written and that has no annotation yet.
pub fn place_caches(graph: &Graph, annotations: &mut Annotations, target: &Target) {
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
