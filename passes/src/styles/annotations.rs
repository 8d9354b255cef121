//! What a plan demands of a program: where its inputs lie, and through which placements values pass at module boundaries.

use super::layout::OnAxes;
use petgraph::graph::NodeIndex;
use std::collections::{HashMap, HashSet};
use tpc_ir::reason::{Cause, Reason};
use tpc_ir::{AxisId, InputId, Mesh, Sharding, Type};

/// A placement that a plan demands, and the plan entry that demands it.
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

/// A parameter that is stored more finely than it is computed with: it is gathered before the forward
/// and backward pass use it, and the optimizer updates the stored shard (FSDP).
#[derive(Clone, Debug, PartialEq)]
pub struct Storage {
    /// Where the forward and backward pass want it.
    pub compute: Sharding,
    /// The plan entry that stores it so.
    pub why: Reason,
    /// Whether a style cuts it for computing.
    pub style: bool,
}

/// What a plan demands: of inputs that are not listed, that they are replicated; of other values,
/// nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Annotations {
    /// The mesh, with the axes split as far as the placements need.
    pub mesh: Mesh,
    /// Where inputs are stored.
    pub inputs: HashMap<InputId, Annotation>,
    /// Inputs that are computed with elsewhere than they are stored.
    pub gathered: HashMap<InputId, Storage>,
    /// By node of the logical graph: through which placements its result passes, in order.
    pub results: HashMap<NodeIndex, Vec<Constraint>>,
    /// By node and operand of the logical graph: through which placements the operand passes on its
    /// way to this use.
    pub uses: HashMap<(NodeIndex, u32), Vec<Constraint>>,
    /// Nodes of the logical graph that add up what parts of the batch contribute. Terms that are partial sums stay so,
    /// and their sum is reduced.
    pub sums: HashSet<NodeIndex>,
}

impl Annotations {
    /// Where an input of that type lies so far.
    pub(super) fn placement(&self, id: &InputId, ty: &Type) -> Sharding {
        self.inputs.get(id).map_or_else(|| Sharding::replicated(ty.rank()), |a| a.sharding.clone())
    }

    /// A placement that cuts an input along more axes than so far, and why: each axis has the entry that cuts along it.
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
