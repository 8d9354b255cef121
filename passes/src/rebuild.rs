//! The framework of passes: builds a new graph node by node from an old one.

use petgraph::graph::NodeIndex;
use rustc_hash::FxHashMap;
use tpc_ir::{Boundary, Graph, Mesh, Output, Region, Value};

/// The new value of each old value.
pub type Mapping = FxHashMap<Value, Value>;

/// Builds a new graph on `mesh`. `visit` is called for every live node of `old` in order, with its operands already
/// translated. It adds nodes to the new graph and returns the new value of each result.
pub fn rebuild(
    old: &Graph,
    mesh: Mesh,
    mut visit: impl FnMut(&mut Graph, NodeIndex, Vec<Value>) -> Vec<Value>,
) -> (Graph, Mapping) {
    let mut new = Graph::with_room_for(mesh, old);
    let mut map = Mapping::default();
    let live = live(old);
    for node in old.nodes().filter(|n| live[n.index()]) {
        let operands = old.operands(node).iter().map(|v| map[v]).collect();
        for (result, value) in visit(&mut new, node, operands).into_iter().enumerate() {
            map.insert(Value { node, result: result as u32 }, value);
        }
    }
    new.outputs = old.outputs.iter().map(|o| Output { value: map[&o.value], ..o.clone() }).collect();
    let moved = |all: &[Boundary]| all.iter().map(|b| Boundary { value: map[&b.value], ..b.clone() }).collect();
    new.regions = old
        .regions
        .iter()
        .map(|r| Region { path: r.path.clone(), arguments: moved(&r.arguments), results: moved(&r.results) })
        .collect();
    (new, map)
}

/// Copies a node unchanged.
pub fn copy(new: &mut Graph, old: &Graph, node: NodeIndex, operands: &[Value]) -> Vec<Value> {
    let n = old.node(node);
    let id = new.add(n.op.clone(), operands, n.types.clone(), n.origin.clone());
    (0..n.types.len() as u32).map(|result| Value { node: id, result }).collect()
}

/// For each node, whether an output or a module region depends on it. Inputs are always live, because they belong to
/// the signature of the program.
pub fn live(graph: &Graph) -> Vec<bool> {
    let mut live = vec![false; graph.len()];
    for (node, _) in graph.inputs() {
        live[node.index()] = true;
    }
    let regions = graph.regions.iter().flat_map(Region::values);
    for v in graph.outputs.iter().map(|o| o.value).chain(regions) {
        live[v.node.index()] = true;
    }
    for node in (0..graph.len()).rev().map(NodeIndex::new) {
        if live[node.index()] {
            for v in graph.operands(node) {
                live[v.node.index()] = true;
            }
        }
    }
    live
}
