//! Shards the batch over the data axes, and parameters and states as far as the mode demands it.
//!
//! A dimension that a style already shards gets the data axis as its minor one, so two-dimensional parallelism needs no
//! separate code. A parameter is sharded along the dimension for which its largest shard is smallest. Of several, it is
//! the outermost, whose shards are contiguous.

use super::annotations::{Annotations, Storage};
use super::axes::DataAxes;
use super::data::DataMode;
use super::layout::factored;
use super::like_parameters::parameter_shapes;
use std::collections::HashMap;
use tpc_ir::reason::{Axes, Demand, Reason};
use tpc_ir::{AxisId, Graph, InputId, Mesh, ModulePath, Op, Sharding, Type};

/// Shards the batch, and parameters and states as far as the mode demands it.
pub(super) fn data_placements(graph: &Graph, mesh: &Mesh, mode: &DataMode, data: &DataAxes, found: &mut Annotations) {
    let fine = |axis: &AxisId| found.mesh.parts(mesh.name(*axis));
    let batch: Vec<AxisId> = data.batch.iter().filter(|&&a| mesh.size(a) > 1).flat_map(fine).collect();
    let shard: Vec<AxisId> = data.shard.iter().filter(|&&a| mesh.size(a) > 1).flat_map(fine).collect();
    let names = |axes: &[AxisId]| Axes(axes.iter().map(|&a| mesh.name(a).into()).collect());
    let shapes = parameter_shapes(graph);
    let stored = names(&data.shard.into_iter().collect::<Vec<_>>());
    let why: Reason = Demand::Mode(mode.kind(), stored).into();
    let mut storage: HashMap<&ModulePath, Sharding> = HashMap::new();
    for (node, id) in graph.inputs() {
        let ty = &graph.node(node).types[0];
        let now = found.placement(id, ty);
        match id {
            InputId::Data(_) if !batch.is_empty() => {
                let Op::Input { layout, .. } = &graph.node(node).op else { continue };
                let rows = factored(layout, &ty.shape).and_then(|r| r.first().cloned()).filter(|r| !r.is_empty());
                let Some(rows) = rows else { continue };
                let mut sharding = now;
                // The data axes are the major ones, because a style may shard the batch too.
                sharding.dims[rows.start].splice(0..0, batch.iter().copied());
                let placed = found.also(id, sharding, &Demand::Batch(names(&data.batch)).into());
                found.inputs.insert(id.clone(), placed);
            }
            InputId::Parameter(path) if !shard.is_empty() && mode.shards_state() => {
                let at = sharded(ty, &now, &shard, &found.mesh);
                if mode.shards_parameters() && at != now {
                    let placed = found.also(id, at.clone(), &why);
                    let style = found.inputs.insert(id.clone(), placed).is_some();
                    found.gathered.insert(id.clone(), Storage { compute: now, why: why.clone(), style });
                }
                storage.insert(path, at);
            }
            _ => {}
        }
    }
    if shard.is_empty() || !mode.shards_state() {
        return;
    }
    for (node, id) in graph.inputs() {
        let ty = &graph.node(node).types[0];
        let InputId::State { owner: parameter, .. } = id else { continue };
        if !shapes.contains_key(parameter) {
            continue; // A module keeps this state, which is placed like what is written into it.
        }
        let like = storage.get(parameter).filter(|_| shapes.get(parameter) == Some(&&ty.shape)).cloned();
        let sharding = like.unwrap_or_else(|| {
            let now = found.placement(id, ty);
            sharded(ty, &now, &shard, &found.mesh)
        });
        let placed = found.also(id, sharding, &why);
        found.inputs.insert(id.clone(), placed);
    }
}

/// A placement that is also sharded by `axes`, along the dimension for which the largest shard is smallest.
fn sharded(ty: &Type, at: &Sharding, axes: &[AxisId], mesh: &Mesh) -> Sharding {
    let cut = |dim: usize| axes.iter().fold(at.clone(), |s, &a| s.pushed(dim, a));
    let size = |s: &Sharding| ty.placed(s.clone()).max_local_shape(mesh).iter().product::<usize>();
    let best = (0..ty.rank()).map(|d| (size(&cut(d)), d)).min();
    match best {
        Some((smallest, dim)) if smallest < size(at) => cut(dim),
        _ => at.clone(),
    }
}
