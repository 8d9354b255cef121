//! Turns layouts at module boundaries into constraints on values and their uses.

use super::annotations::{Annotation, Annotations, Constraint};
use super::cut::Cuts;
use super::dataflow::ancestors;
use super::demands::{Demands, Want, Wanted};
use super::direction::Direction;
use super::error::StyleError;
use super::layout::{Layout, OnAxes, factored};
use super::modules::Weight;
use std::collections::BTreeMap;
use tpc_ir::reason::{Demand, Reason, Side};
use tpc_ir::{AxisId, Boundary, Graph, InputKind, MapFn, ModulePath, Op, Phase, Region, Sharding, Value};

/// Everything that is needed to place values at boundaries.
pub(super) struct Site<'a> {
    pub graph: &'a Graph,
    pub cuts: &'a Cuts<'a>,
    pub parts: &'a [AxisId],
    pub demands: &'a Demands,
    pub weights: &'a BTreeMap<ModulePath, Weight>,
}

impl Site<'_> {
    /// Adds the constraints for what a plan entry wants at a boundary.
    pub fn constrain(&self, wanted: &Wanted, found: &mut Annotations) -> Result<(), StyleError> {
        let regions: Vec<&Region> = self.graph.regions.iter().filter(|r| r.path == wanted.path).collect();
        let side = |r: &Region| match wanted.side {
            Side::Arguments => r.arguments.clone(),
            Side::Results => r.results.clone(),
        };
        let mut met = false;
        for region in regions {
            let boundaries = side(region);
            if boundaries.is_empty() {
                continue; // This region was inferred from the other side.
            }
            met = true;
            let Some(boundary) = boundaries.get(wanted.position) else {
                return Err(StyleError::Position {
                    entry: wanted.pattern.clone(),
                    side: wanted.side.one(),
                    position: wanted.position,
                    module: wanted.path.clone(),
                    count: boundaries.len(),
                });
            };
            for layout in self.layouts(wanted, boundary) {
                self.constrain_one(wanted, region, boundary, layout, found)?;
            }
        }
        if met || matches!(wanted.want, Want::Sequence(_)) { Ok(()) } else { Err(wanted.unmarked()) }
    }

    fn layouts(&self, wanted: &Wanted, boundary: &Boundary) -> Vec<Layout> {
        match wanted.want {
            Want::Layouts(prepare) => prepare.chain().collect(),
            Want::Sequence(dim) => {
                let rank = boundary.layout.len() as isize;
                if rank < 2 { Vec::new() } else { vec![Layout::Shard(dim.min(rank - 2))] }
            }
        }
    }

    /// Adds the constraint for one of the layouts that a plan entry wants at a boundary.
    fn constrain_one(
        &self,
        wanted: &Wanted,
        region: &Region,
        boundary: &Boundary,
        layout: Layout,
        found: &mut Annotations,
    ) -> Result<(), StyleError> {
        let no_dimension = |_| StyleError::Dimension {
            entry: wanted.pattern.clone(),
            layout,
            tensor: format!("{} {}", wanted.side.one(), wanted.position),
            module: wanted.path.clone(),
            shape: boundary.layout.clone(),
        };
        let dim = layout.dim(boundary.layout.len()).map_err(no_dimension)?;
        let value = boundary.value;
        let mut dims = vec![Vec::new(); self.graph.ty(value).rank()];
        if let Some(dim) = dim {
            let runs = factored(&boundary.layout, &self.graph.ty(value).shape);
            let run = runs.map_or(0..0, |r| r[dim].clone());
            // Features that are heads are cut into whole heads. A dimension of extent 1 stays whole.
            let decided: Vec<usize> =
                run.clone().filter(|&d| !self.cuts.axes(value.node, d, self.parts).is_empty()).collect();
            if decided.is_empty() {
                run.take(1).for_each(|d| dims[d].extend(self.parts));
            }
            for d in decided {
                let axes = self.cuts.axes(value.node, d, self.parts);
                if !axes.iter().any(|axis| dims.iter().flatten().any(|other| other == axis)) {
                    dims[d] = axes;
                }
            }
        }
        let dim = match layout {
            Layout::Replicate => None,
            Layout::Shard(dim) => Some(dim),
        };
        let (entry, side, position) = (wanted.entry.clone(), wanted.side, wanted.position);
        let why = Demand::Layout { entry, side, position, dim }.into();
        let at = OnAxes { axes: self.parts.to_vec(), dims };
        match wanted.side {
            Side::Results => self.result(value, &at, &why, found),
            Side::Arguments => self.argument(region, value, &at, &why, found),
        }
        Ok(())
    }

    fn result(&self, value: Value, at: &OnAxes, why: &Reason, found: &mut Annotations) {
        let (source, seen) = through_view(self.graph, value);
        let read = self.graph.users(value.node).next().is_some()
            || self.graph.outputs.iter().any(|o| o.value.node == value.node);
        let (node, at) = if read || source == value { (value.node, at.clone()) } else { (source.node, seen(at)) };
        // The product of a row-wise linear is reduced to the placement of the result, before the bias is added.
        if let Op::Map { f: MapFn::Add, subs } = &self.graph.node(node).op {
            for (operand, letters) in self.graph.operands(node).iter().zip(&subs.operands) {
                let rows = |w: &Weight| {
                    w.user == operand.node
                        && self
                            .demands
                            .directions
                            .get(&w.name)
                            .is_some_and(|(direction, _)| *direction == Direction::Rows)
                };
                if self.weights.values().any(rows) {
                    let of =
                        |l: &u8| subs.result.iter().position(|r| r == l).map_or(Vec::new(), |d| at.dims[d].clone());
                    let at = OnAxes { axes: at.axes.clone(), dims: letters.iter().map(of).collect() };
                    found.results.entry(operand.node).or_default().push(Constraint { at, why: why.clone() });
                }
            }
        }
        found.results.entry(node).or_default().push(Constraint { at, why: why.clone() });
    }

    fn argument(&self, region: &Region, value: Value, at: &OnAxes, why: &Reason, found: &mut Annotations) {
        let graph = self.graph;
        if let Op::Input { id, .. } = graph.op(value)
            && id.kind() == InputKind::Data
            && !found.inputs.contains_key(id)
        {
            let sharding = Sharding { dims: at.dims.clone(), partial: None };
            found.inputs.insert(id.clone(), Annotation { sharding, why: why.clone() });
        }
        let mut inside = vec![region.results.is_empty(); graph.len()];
        for result in &region.results {
            for (i, above) in ancestors(graph, result.value.node).into_iter().enumerate() {
                inside[i] |= above;
            }
        }
        let (source, seen) = through_view(graph, value);
        let views =
            if source == value { vec![(value, at.clone())] } else { vec![(value, at.clone()), (source, seen(at))] };
        for (read, at) in views {
            for (user, edge) in graph.users(read.node).filter(|(_, e)| e.result == read.result) {
                if graph.node(user).origin.phase == Phase::Forward && inside[user.index()] && user != value.node {
                    let constraint = Constraint { at: at.clone(), why: why.clone() };
                    found.uses.entry((user, edge.operand)).or_default().push(constraint);
                }
            }
        }
    }
}

/// The value under transposes and broadcasts, and a function from a placement of the view to one of this value.
fn through_view(graph: &Graph, value: Value) -> (Value, impl Fn(&OnAxes) -> OnAxes + use<>) {
    let mut source = value;
    let mut dims: Vec<usize> = (0..graph.ty(value).rank()).collect();
    while let Op::Map { f: MapFn::Identity, subs } = graph.op(source) {
        let of = |l: &u8| subs.result.iter().position(|r| r == l);
        let Some(read) = subs.operands[0].iter().map(of).collect::<Option<Vec<usize>>>() else { break };
        dims = read.into_iter().map(|d| dims[d]).collect();
        source = graph.operands(source.node)[0];
    }
    let seen =
        move |at: &OnAxes| OnAxes { axes: at.axes.clone(), dims: dims.iter().map(|&d| at.dims[d].clone()).collect() };
    (source, seen)
}
