//! Dataflow in a captured program: what a value is computed from, and which value it is a view of.

use petgraph::graph::NodeIndex;
use tpc_ir::{Graph, InputKind, MapFn, Op, Value};

/// For each node, whether it is `node` or one that `node` depends on.
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

/// Whether an operation only changes the shape or the order of its operand.
pub(super) fn is_view(op: &Op) -> bool {
    matches!(op, Op::Reshape | Op::Map { f: MapFn::Identity, .. })
}

/// Whether a value depends on the data of the step. Parameters and constant tables do not.
pub(super) fn depends_on_data(graph: &Graph, value: Value) -> bool {
    let above = ancestors(graph, value.node);
    graph.inputs().any(|(node, id)| id.kind() == InputKind::Data && above[node.index()])
}

/// The value of which a value is a transpose, a reshape or a broadcast; the value itself if it is none.
pub(super) fn viewed(graph: &Graph, value: Value) -> Value {
    if is_view(graph.op(value)) { viewed(graph, graph.operands(value.node)[0]) } else { value }
}
