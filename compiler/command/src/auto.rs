//! `--plan auto`: the plan with the fastest predicted step among those that fit into memory: the built-in ones, and with
//! `--placements auto` those that the planner makes for a mesh.

use crate::options::Chosen;
use crate::{Failure, Outcome, Placement, Terminal, check_executed};
use clap::Args;
use tpc_compiler::plans::{Workload, candidates, fastest, open_candidates};
use tpc_compiler::program::CompileOptions;
use tpc_ir::Mesh;
use tpc_passes::styles::Plan;

/// The value of `--plan` that has the plan chosen.
pub(crate) const AUTO: &str = "auto";

/// The number of ranks for which a mesh is chosen.
#[derive(Debug, Args)]
pub struct Auto {
    /// With --plan auto and without --mesh: number of ranks of the chosen mesh [default: the number of launched processes]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    ranks: Option<u32>,
}

impl Auto {
    /// The number of ranks that will be executed, which is known before a plan is chosen. A named plan is parsed as well, so that
    /// its errors are reported early.
    ///
    /// # Errors
    /// As [`Placement::executed_mesh`] and [`Placement::plan`]; `--ranks` where no mesh is chosen.
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

    /// Whether the mesh is chosen together with the plan.
    fn chooses_mesh(&self, placement: &Placement) -> Outcome<bool> {
        let chooses = placement.plan == AUTO && placement.mesh.is_empty();
        if self.ranks.is_some() && !chooses {
            return Err(Failure::new(
                "--ranks is for --plan auto without --mesh: otherwise the mesh says how many ranks there are",
            ));
        }
        Ok(chooses)
    }

    /// The mesh and the plan: the named ones, or the best ones for a workload.
    ///
    /// # Errors
    /// A mesh whose axes are those of no built-in plan; no plan that fits into the memory of the target's ranks.
    pub(crate) fn chosen(
        &self,
        placement: &Placement,
        workload: impl FnOnce() -> Outcome<Workload>,
        options: &CompileOptions,
        terminal: &mut Terminal,
    ) -> Outcome<(Mesh, Plan)> {
        if placement.plan != AUTO {
            let mesh = placement.executed_mesh()?;
            let plan = match placement.placements {
                Chosen::Auto => placement.completed(&workload()?, &mesh, options)?,
                Chosen::Given | Chosen::Planned => placement.plan()?,
            };
            return Ok((mesh, plan));
        }
        let ranks = self.executed_ranks(placement)?;
        let mut all = candidates(ranks);
        if placement.placements == Chosen::Auto {
            all.extend(open_candidates(ranks));
        }
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
