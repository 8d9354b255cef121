//! The demands of a plan on a program: the placements of its inputs, and placements that values must have at module
//! boundaries.

use super::layout::OnAxes;
use petgraph::graph::NodeIndex;
use std::collections::{HashMap, HashSet};
use std::slice;
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
        let id_of = |graph: &Graph, node: NodeIndex| match &graph.node(node).op {
            Op::Input { id, .. } => Some(id.clone()),
            _ => None,
        };
        let of_inputs = |node: NodeIndex| id_of(short, node).and_then(|id| self.inputs.get(&id));
        let of_gathered = |node: NodeIndex| id_of(short, node).and_then(|id| self.gathered.get(&id));
        let inputs = long.continued(|node| of_inputs(node).map_or(&[], slice::from_ref), |said| &mut said.why);
        let gathered = long.continued(|node| of_gathered(node).map_or(&[], slice::from_ref), |said| &mut said.why);
        let id = |node: NodeIndex| id_of(&long.graph, node);
        let results = long.continued(|node| self.results.get(&node).map_or(&[], Vec::as_slice), |said| &mut said.why);
        let operands = self.uses.keys().map(|&(_, operand)| operand + 1).max().unwrap_or(0);
        let uses = (0..operands).flat_map(|operand| {
            let of = |node| self.uses.get(&(node, operand)).map_or(&[][..], Vec::as_slice);
            let uses = long.continued(of, |said| &mut said.why).into_iter();
            uses.map(move |(node, said)| ((node, operand), said))
        });
        Annotations {
            mesh: self.mesh.clone(),
            inputs: inputs.into_iter().filter_map(|(node, said)| Some((id(node)?, said.into_iter().next()?))).collect(),
            gathered: gathered
                .into_iter()
                .filter_map(|(node, said)| Some((id(node)?, said.into_iter().next()?)))
                .collect(),
            results: results.into_iter().collect(),
            uses: uses.collect(),
            sums: long.copies().filter(|(_, source)| self.sums.contains(source)).map(|(node, _)| node).collect(),
        }
    }

    /// The same with the numbers of lines for nodes, so that the demands on two graphs of the same lines are comparable.
    /// Where a scalar constant is in the list of nodes does not matter.
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
