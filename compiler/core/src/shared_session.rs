//! A program that a session executes in turn with others, over the same parameters: an evaluation between training
//! steps, or a step on a smaller batch.
//!
//! The program finds parameters and state where the other programs have them. It uses the plan of the session's first
//! program. Entries for modules that the new program does not use are left out, and parameters without an entry stay
//! where they are.

use crate::error::Error;
use crate::feed::{check_memory, feed};
use crate::trainer::TrainerError;
use burn::tensor::TensorData;
use std::collections::HashMap;
use std::ops::Range;
use tpc_ir::program::RankPrograms;
use tpc_ir::reason::Demand;
use tpc_ir::{Graph, InputId, InputKind, Mesh, Type};
use tpc_passes::planner::Aim;
use tpc_passes::styles::annotations::{Annotation, Annotations};
use tpc_passes::styles::{Plan, StyleError, parallelize_module};
use tpc_runtime::{LaunchOptions, ProgramId, Session};

/// The programs of a session that a new program joins; empty for a separate session.
#[derive(Default)]
pub(crate) struct SharedSession<'a> {
    /// Where the first of them has its parameters and states.
    pub(crate) placements: Option<&'a SessionPlacements>,
    /// The constants of these programs, by name.
    pub(crate) constants: HashMap<String, TensorData>,
    /// The rank programs of each.
    pub(crate) programs: Vec<&'a RankPrograms>,
    /// What the planner was to do in one of them.
    pub(crate) aim: Option<Aim>,
    /// The ranks of this process, which are lowered; all ranks if it is not known which process runs which.
    pub(crate) ranks: Option<Range<usize>>,
}

/// The placements of a program's parameters and states.
pub(crate) struct SessionPlacements {
    mesh: Mesh,
    types: HashMap<InputId, Type>,
}

fn is_kept(kind: InputKind) -> bool {
    matches!(kind, InputKind::Parameter | InputKind::State)
}

impl SessionPlacements {
    /// Of a placed program.
    pub(crate) fn of(placed: &Graph) -> Self {
        let inputs = placed.inputs().filter(|(_, id)| id.is_kept());
        let types = inputs.map(|(node, id)| (id.clone(), placed.node(node).types[0].clone()));
        SessionPlacements { mesh: placed.mesh.clone(), types: types.collect() }
    }
}

/// The ranks of this process, if it is one of several.
pub(crate) fn own_ranks(launch: &LaunchOptions, mesh: &Mesh) -> Option<Range<usize>> {
    // A wrong number of processes is an error of the launch.
    launch.processes.as_ref()?.local(mesh.ranks()).ok()
}

impl SharedSession<'_> {
    /// Checks that all parameters and states have the same placements in the new program.
    pub(crate) fn check(&self, ranks: &RankPrograms) -> Result<(), Error> {
        let Some(first) = self.programs.first() else { return Ok(()) };
        for (program, other) in ranks.iter().filter_map(|program| Some((program, first.get(program.rank)?))) {
            let moved = |input: &&tpc_ir::program::InputBinding| is_kept(input.kind) && !program.shares(input, other);
            if let Some(input) = program.inputs.iter().find(moved) {
                return Err(TrainerError::Placement { parameter: input.name.clone() }.into());
            }
        }
        Ok(())
    }
}

/// Adds a program to a session, and writes the constants that only this program has.
///
/// # Errors
/// Too little memory, or a program that conflicts with the others.
pub(crate) fn add(
    session: &mut Session,
    launch: &LaunchOptions,
    ranks: RankPrograms,
    constants: &HashMap<String, TensorData>,
) -> Result<ProgramId, Error> {
    check_memory(&ranks, launch, |rank| session.allocated_bytes(rank))?;
    let program = session.add(ranks)?;
    feed(session, InputKind::Constant, constants)?;
    Ok(program)
}

/// Like [`parallelize_module`], but parameters and states have the placements that the first program of the session gives
/// them, and entries of the plan for modules that the program does not use are left out.
pub(crate) fn parallelize_like(
    first: &SessionPlacements,
    captured: &Graph,
    mesh: &Mesh,
    plan: &Plan,
) -> Result<(Graph, Annotations), StyleError> {
    let mut plan = Plan { allow_unused_axes: true, ..plan.clone() };
    let (logical, mut annotations) = loop {
        match parallelize_module(captured, mesh, plan.clone(), None) {
            Ok(found) => break found,
            Err(error) if !leave_out(&mut plan, &error) => return Err(error),
            Err(_) => {}
        }
    };
    if annotations.mesh == first.mesh {
        for (node, id) in logical.inputs().filter(|(_, id)| id.is_kept()) {
            let like = first.types.get(id).filter(|ty| ty.shape == logical.node(node).types[0].shape);
            let Some(ty) = like else { continue };
            let stays = annotations.inputs.get(id).map_or(ty.sharding.is_replicated(), |a| a.sharding == ty.sharding);
            if !stays {
                let why = Demand::Training(id.kind()).into();
                annotations.inputs.insert(id.clone(), Annotation { sharding: ty.sharding.clone(), why });
                annotations.gathered.remove(id);
            }
        }
    }
    Ok((logical, annotations))
}

/// Removes the entries of a plan for modules that a program does not use; `false` if the error has another cause.
fn leave_out(plan: &mut Plan, error: &StyleError) -> bool {
    let before = plan.styles.len();
    match error {
        StyleError::NoModule { path, .. }
        | StyleError::Nothing { path, .. }
        | StyleError::Absent { path, .. }
        | StyleError::Tied { path, .. } => plan.styles.retain(|entry| entry.path != *path),
        StyleError::NoParameter { path, .. } => {
            let of = plan.storage.len();
            plan.storage.retain(|entry| entry.path() != path);
            return plan.storage.len() < of;
        }
        StyleError::LossParallel => return std::mem::take(&mut plan.loss_parallel),
        _ => {}
    }
    plan.styles.len() < before
}
