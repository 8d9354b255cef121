//! Determines which axes of a mesh a plan uses: the axis along which its styles shard, and those of its data mode.

use super::data::DataMode;
use super::error::StyleError;
use super::plan::{MeshDim, Plan};
use tpc_ir::mesh::{MeshError, is_name};
use tpc_ir::{AxisId, Mesh};

/// The axes that a plan uses.
pub(super) struct PlanAxes {
    /// The axis along which styles shard.
    pub style: Option<AxisId>,
    /// The axes of the data mode.
    pub data: DataAxes,
}

impl PlanAxes {
    /// Finds the axes of a plan in a mesh. No axis may have both purposes, and each must have one unless the plan
    /// allows unused axes.
    pub fn of(mesh: &Mesh, plan: &Plan) -> Result<Self, StyleError> {
        let (style, data) = (style_axis(mesh, plan)?, data_axes(mesh, plan)?);
        if let Some(both) = style.filter(|a| data.batch.contains(a)) {
            let axis = mesh.name(both).into();
            return Err(StyleError::AxisTwice { axis, first: "its styles", second: "its data mode" });
        }
        let listed = |axis: AxisId| {
            plan.storage.iter().any(|entry| entry.dims.iter().flatten().any(|name| name == mesh.name(axis)))
        };
        let is_used = |axis: &AxisId| style == Some(*axis) || data.batch.contains(axis) || listed(*axis);
        match mesh.axis_ids().find(|axis| !is_used(axis)) {
            Some(unused) if !plan.allow_unused_axes => Err(StyleError::UnusedAxis { axis: mesh.name(unused).into() }),
            _ => Ok(PlanAxes { style, data }),
        }
    }
}

/// The data axes of a plan on a mesh.
#[derive(Default)]
pub(super) struct DataAxes {
    /// The axes that shard the batch, major to minor.
    pub batch: Vec<AxisId>,
    /// The axis over which parameters or their states are sharded.
    pub shard: Option<AxisId>,
}

fn data_axes(mesh: &Mesh, plan: &Plan) -> Result<DataAxes, StyleError> {
    let Some((mode, name)) = plan.data.as_ref().filter(|_| !mesh.axes().is_empty()) else {
        return Ok(DataAxes::default());
    };
    let shard = find_axis(mesh, name)?;
    let mut batch = vec![shard];
    if let DataMode::Hsdp { replicate_axis } = mode {
        let replicas = find_axis(mesh, replicate_axis)?;
        if replicas == shard {
            return Err(StyleError::AxisTwice { axis: name.clone(), first: "its replicas", second: "its shards" });
        }
        batch.insert(0, replicas);
    }
    Ok(DataAxes { batch, shard: Some(shard) })
}

fn find_axis(mesh: &Mesh, name: &str) -> Result<AxisId, StyleError> {
    check_name(name)?;
    mesh.axis(name).ok_or_else(|| StyleError::NoAxis { axis: name.into(), mesh: mesh.to_string() })
}

/// Checks that a plan names an axis as a user may. Only the compiler names parts of axes.
fn check_name(name: &str) -> Result<(), StyleError> {
    if is_name(name) { Ok(()) } else { Err(StyleError::AxisName(MeshError::Name(name.into()))) }
}

/// The axis along which styles shard: the one that the plan names, otherwise `tp`, otherwise the only one that the data
/// mode does not use.
fn style_axis(mesh: &Mesh, plan: &Plan) -> Result<Option<AxisId>, StyleError> {
    if plan.styles.is_empty() {
        return Ok(None);
    }
    if let Some(dim) = &plan.axis {
        if let MeshDim::Name(name) = dim {
            check_name(name)?;
        }
        // On a single rank, an axis that is named need not exist, but a position must.
        if mesh.axes().is_empty() && matches!(dim, MeshDim::Name(_)) {
            return Ok(None);
        }
        let missing = || match dim {
            MeshDim::Name(axis) => StyleError::NoAxis { axis: axis.clone(), mesh: mesh.to_string() },
            &MeshDim::Index(index) => {
                StyleError::NoDimension { index, dims: mesh.axes().len(), mesh: mesh.to_string() }
            }
        };
        return dim.of(mesh).ok_or_else(missing).map(Some);
    }
    if mesh.axes().is_empty() {
        return Ok(None);
    }
    let used = plan.data_axes();
    let free: Vec<AxisId> = mesh.axis_ids().filter(|&a| !used.contains(&mesh.name(a))).collect();
    match (mesh.axis("tp"), free.as_slice()) {
        (Some(tp), _) => Ok(Some(tp)),
        (None, [only]) => Ok(Some(*only)),
        _ => Err(StyleError::NoAxis { axis: "tp".into(), mesh: mesh.to_string() }),
    }
}
