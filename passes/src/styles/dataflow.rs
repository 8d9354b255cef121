//! What a value of a captured program is computed from, and of which value it is a view.

use petgraph::graph::NodeIndex;
use tpc_ir::{Graph, InputKind, MapFn, Op, Value};

/// Whether each node is `node` or one that it depends on.
pub fn ancestors(graph: &Graph, node: NodeIndex) -> Vec<bool> {
    let mut seen = vec![false; graph.len()];
    let mut stack = vec![node];
    while let Some(n) = stack.pop() {
        if !std::mem::replace(&mut seen[n.index()], true) {
            stack.extend(graph.operands(n).iter().map(|v| v.node));
        }
    }
    seen
}

/// Whether an operation only shows its operand in another shape or order.
pub(super) fn is_view(op: &Op) -> bool {
    matches!(op, Op::Reshape | Op::Map { f: MapFn::Identity, .. })
}

/// Whether a value is computed from the step's data; tables and parameters are not.
pub(super) fn made_from_data(graph: &Graph, value: Value) -> bool {
    let above = ancestors(graph, value.node);
    graph.inputs().any(|(node, id)| id.kind() == InputKind::Data && above[node.index()])
}

/// The value of which another is a transpose, a reshape or a broadcast.
pub(super) fn behind_views(graph: &Graph, value: Value) -> Value {
    if is_view(graph.op(value)) { behind_views(graph, graph.operands(value.node)[0]) } else { value }
}
