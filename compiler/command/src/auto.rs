//! `--plan auto`: the built-in plan whose step is predicted to be the fastest of those that fit.

use crate::{Failure, Outcome, Placement, Terminal, check_executed};
use clap::Args;
use tpc_compiler::plans::{Workload, candidates, fastest};
use tpc_compiler::program::CompileOptions;
use tpc_ir::Mesh;
use tpc_passes::styles::Plan;

/// What `--plan` says where the plan is to be chosen.
pub(crate) const AUTO: &str = "auto";

/// For how many ranks a mesh is chosen.
#[derive(Debug, Args)]
pub struct Auto {
    /// With --plan auto and without --mesh: ranks of the mesh that is chosen [default: the launched processes]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    ranks: Option<u32>,
}

impl Auto {
    /// The ranks of the mesh that will be executed, known before a plan is chosen. What is named is read, so that its errors come early.
    ///
    /// # Errors
    /// As [`Placement::executed_mesh`] and [`Placement::plan`]; `--ranks` for a mesh that is not to be chosen.
    pub(crate) fn executed_ranks(&self, placement: &Placement) -> Outcome<usize> {
        if placement.plan != AUTO {
            placement.plan()?;
        }
        if !self.chooses_mesh(placement)? {
            return Ok(placement.executed_mesh()?.ranks());
        }
        let launched = tpc_runtime::launch::joined().map(|processes| processes.count());
        let Some(ranks) = self.ranks.map(|ranks| ranks as usize).or(launched) else {
            return Err(Failure::new(
                "--plan auto chooses a mesh, too: --ranks says how many ranks it has, or --mesh names one",
            ));
        };
        check_executed(ranks)?;
        Ok(ranks)
    }

    /// Whether the mesh is chosen with the plan.
    fn chooses_mesh(&self, placement: &Placement) -> Outcome<bool> {
        let chooses = placement.plan == AUTO && placement.mesh.is_empty();
        if self.ranks.is_some() && !chooses {
            return Err(Failure::new(
                "--ranks is for --plan auto without --mesh: otherwise the mesh says how many ranks there are",
            ));
        }
        Ok(chooses)
    }

    /// The mesh and the plan: those that were named, or the best ones for a workload.
    ///
    /// # Errors
    /// A mesh that no built-in plan has the axes of; no plan that fits into the memory of the target's ranks.
    pub(crate) fn chosen(
        &self,
        placement: &Placement,
        workload: impl FnOnce() -> Outcome<Workload>,
        options: &CompileOptions,
        terminal: &mut Terminal,
    ) -> Outcome<(Mesh, Plan)> {
        if placement.plan != AUTO {
            return Ok((placement.executed_mesh()?, placement.plan()?));
        }
        let mut all = candidates(self.executed_ranks(placement)?);
        if !self.chooses_mesh(placement)? {
            let mesh = placement.executed_mesh()?;
            all.retain(|candidate| candidate.mesh == mesh);
            if all.is_empty() {
                return Err(Failure::new(format!(
                    "--plan auto: no built-in plan has the axes of --mesh {}; without --mesh and with --ranks {} it chooses a mesh, too",
                    tpc_ir::quote::cut(&placement.mesh),
                    mesh.ranks()
                )));
            }
        }
        let count = all.len();
        let (best, predicted) =
            fastest(&workload()?, all, options).map_err(|error| Failure::new(format!("--plan auto: {error}")))?;
        terminal.note(format!(
            "--plan auto is {}: {:.3} ms a step predicted on {}, the least of {count} plans",
            best.flags(),
            predicted.timeline.seconds * 1e3,
            tpc_ir::quote::cut(&options.target.name)
        ));
        Ok((best.mesh, best.plan))
    }
}
