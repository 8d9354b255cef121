//! The demands of a plan on a program: the placements of its inputs, and placements that values must have at module
//! boundaries.

use super::layout::OnAxes;
use petgraph::graph::NodeIndex;
use std::collections::{BTreeMap, HashMap, HashSet};
use tpc_ir::block::Resized;
use tpc_ir::reason::{Cause, Reason};
use tpc_ir::{AxisId, Graph, InputId, Mesh, Op, Sharding, Type, text};

/// A placement that a plan demands of an input, and the plan entry that demands it.
#[derive(Clone, Debug, PartialEq)]
pub struct Annotation {
    /// The placement.
    pub sharding: Sharding,
    /// The plan entry.
    pub why: Reason,
}

/// A placement of a value on some axes that a plan demands, and the plan entry that demands it.
#[derive(Clone, Debug, PartialEq)]
pub struct Constraint {
    /// The placement.
    pub at: OnAxes,
    /// The plan entry.
    pub why: Reason,
}

/// How a parameter is used that is stored in smaller shards than computations need (FSDP): it is gathered before the
/// forward and backward pass use it, and the optimizer updates the stored shard.
#[derive(Clone, Debug, PartialEq)]
pub struct Storage {
    /// The placement that the forward and backward pass need.
    pub compute: Sharding,
    /// The plan entry that demands the storage.
    pub why: Reason,
    /// Whether a style also shards the parameter.
    pub style: bool,
}

/// The demands of a plan. Inputs that are not listed are replicated; other values that are not listed are free.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Annotations {
    /// The mesh, with the axes split as far as the placements need.
    pub mesh: Mesh,
    /// The placements in which inputs are stored.
    pub inputs: HashMap<InputId, Annotation>,
    /// The inputs that are gathered before they are used.
    pub gathered: HashMap<InputId, Storage>,
    /// For nodes of the logical graph, the placements that the result must have, one after the other.
    pub results: HashMap<NodeIndex, Vec<Constraint>>,
    /// For nodes of the logical graph and their operands, the placements that the operand must have before this use,
    /// one after the other.
    pub uses: HashMap<(NodeIndex, u32), Vec<Constraint>>,
    /// The nodes of the logical graph that add up terms from parts of the batch. Terms that are partial stay partial,
    /// and only their sum is reduced.
    pub sums: HashSet<NodeIndex>,
}

impl Annotations {
    /// The demands on a program that was made longer: every node has those of the node that it copies.
    pub fn lengthened(&self, short: &Graph, long: &Resized) -> Annotations {
        let copies = || long.graph.nodes().zip(&long.source).filter_map(|(node, source)| Some((node, (*source)?)));
        let id_of = |graph: &Graph, node: NodeIndex| match &graph.node(node).op {
            Op::Input { id, .. } => Some(id.clone()),
            _ => None,
        };
        let input = |node: NodeIndex| id_of(short, node).and_then(|id| self.inputs.get(&id));
        let whys = long.reasons(|node| input(node).map(|a| a.why.clone()).unwrap_or_default());
        let storage = |node: NodeIndex| id_of(short, node).and_then(|id| self.gathered.get(&id));
        let storage_whys = long.reasons(|node| storage(node).map(|s| s.why.clone()).unwrap_or_default());
        let mut found = Annotations { mesh: self.mesh.clone(), ..Annotations::default() };
        for (node, source) in copies() {
            let Some(id) = id_of(&long.graph, node) else { continue };
            if let Some(annotation) = input(source) {
                let why = whys[node.index()].clone();
                found.inputs.insert(id.clone(), Annotation { why, ..annotation.clone() });
            }
            if let Some(storage) = storage(source) {
                let why = storage_whys[node.index()].clone();
                found.gathered.insert(id, Storage { why, ..storage.clone() });
            }
        }
        found.results = continued(long, |node| self.results.get(&node)).collect();
        let operands = self.uses.keys().map(|&(_, operand)| operand + 1).max().unwrap_or(0);
        for operand in 0..operands {
            let uses = continued(long, |node| self.uses.get(&(node, operand)));
            found.uses.extend(uses.map(|(node, constraints)| ((node, operand), constraints)));
        }
        found.sums = copies().filter(|(_, source)| self.sums.contains(source)).map(|(node, _)| node).collect();
        found
    }

    /// The same with the numbers of lines for nodes, so that the demands on two graphs of the same lines are comparable. Where a
    /// scalar constant is in the list of nodes does not matter.
    #[must_use]
    pub fn by_line(&self, graph: &Graph) -> Annotations {
        let lines = text::number(graph);
        let line = |node: NodeIndex| lines.get(&node).map_or(node, |&line| NodeIndex::new(line));
        let uses = self.uses.iter().map(|(&(node, operand), c)| ((line(node), operand), c.clone()));
        Annotations {
            results: self.results.iter().map(|(&node, c)| (line(node), c.clone())).collect(),
            uses: uses.collect(),
            sums: self.sums.iter().map(|&node| line(node)).collect(),
            ..self.clone()
        }
    }

    /// The placement of an input according to the demands so far.
    pub(super) fn placement(&self, id: &InputId, ty: &Type) -> Sharding {
        self.inputs.get(id).map_or_else(|| Sharding::replicated(ty.rank()), |a| a.sharding.clone())
    }

    /// An annotation that shards an input along more axes than so far. Its reason has, for each axis, the entry that
    /// shards along it.
    pub(super) fn also(&self, id: &InputId, sharding: Sharding, why: &Reason) -> Annotation {
        let before = self.inputs.get(id).filter(|a| !a.sharding.is_replicated());
        let Some(before) = before else { return Annotation { sharding, why: why.clone() } };
        let on = |axis: AxisId| {
            let named = self.mesh.user_name(axis);
            let entry = if before.sharding.dim_of(axis).is_some() { &before.why } else { why };
            Some(Cause::On { axis: named.into(), demand: entry.demand(named)?.clone() })
        };
        let causes = sharding.sharded_axes().iter().filter_map(on).collect::<Vec<_>>();
        let why = causes.into_iter().fold(Reason::default(), |why, cause| why.and(cause));
        Annotation { sharding, why }
    }
}

/// The constraints on the nodes of a program that was made longer, from those on the nodes that they copy.
fn continued<'c>(
    long: &Resized,
    of: impl Fn(NodeIndex) -> Option<&'c Vec<Constraint>>,
) -> impl Iterator<Item = (NodeIndex, Vec<Constraint>)> {
    let sources = || long.graph.nodes().zip(&long.source).filter_map(|(node, source)| Some((node, of((*source)?)?)));
    let mut found: BTreeMap<NodeIndex, Vec<Constraint>> =
        sources().map(|(node, constraints)| (node, constraints.clone())).collect();
    let most = found.values().map(Vec::len).max().unwrap_or(0);
    for i in 0..most {
        let whys = long.reasons(|node| of(node).and_then(|c| c.get(i)).map(|c| c.why.clone()).unwrap_or_default());
        for (node, constraints) in &mut found {
            constraints.iter_mut().skip(i).take(1).for_each(|c| c.why = whys[node.index()].clone());
        }
    }
    found.into_iter()
}
