//! `tpc view`: one page that shows what the compiler made of a program, under one plan or under two side by side.
//!
//! | question | file |
//! |---|---|
//! | the data of the page, and how it gets into the page | `page` |
//! | what the page looks like | `page.html`, `page.css` |
//! | what it draws | `script/{totals,step,timeline,modules,operations,tensors,changes,search}.js` |
//! | how it checks itself | `script/check.js` |

mod page;

use crate::compared::Compared;
use crate::files::{self, Files};
use crate::given::Given;
use crate::predicted::{FIRST_RANK, Predicted, Prepared};
use crate::{Failure, Outcome, Placement, Terminal};
use clap::Args;
use page::{Compiled, Page};
use std::path::PathBuf;
use tpc_compiler::program::CompileOptions;
use tpc_runtime::session::Backend;

/// Write a page that shows modules, placements, collectives, the simulated step, memory and the search; nothing is executed
#[derive(Debug, Args)]
pub struct View {
    #[command(flatten)]
    predicted: Predicted,
    /// A plan, as in the other commands: a built-in one or a JSON file; given twice to see two plans side by side
    #[arg(long, value_name = "PLAN", required = true)]
    plan: Vec<String>,
    #[command(flatten)]
    compared: Compared,
    /// File for the page, which any browser opens and which needs no network; --json prints its data instead
    #[arg(long, short, value_name = "FILE.html", required_unless_present = "json", conflicts_with = "json")]
    output: Option<PathBuf>,
}

impl View {
    fn placements(&self) -> Outcome<Vec<Placement>> {
        if self.plan.len() > 2 {
            let plans = self.plan.len();
            return Err(Failure::new(format!("a page shows one or two plans, but --plan is given {plans} times")));
        }
        self.compared.placements(&self.plan)
    }

    pub(crate) fn execute(&self, given: &Given, terminal: &mut Terminal) -> Outcome {
        let placements = self.placements()?;
        // Report all errors in the files, the meshes and the plans before the long part.
        let files = placements.iter().fold(self.predicted.reads(Files::default()), |files, plan| plan.read(files));
        files.writes("--output", &self.output).check()?;
        let output = self.output.as_deref().map(files::output).transpose()?;
        for placement in &placements {
            placement.mesh()?;
            placement.plan()?;
        }
        let prepared = self.predicted.prepare(placements[0].options(Backend::Cpu, false, 0)?, given, terminal)?;
        let compiled = placements.iter().map(|placement| match compiled(placement, &prepared, terminal) {
            Err(Failure::Message(problem)) if placements.len() > 1 => {
                Err(Failure::new(format!("{}: {problem}", placement.flags())))
            }
            other => other,
        });
        let target = &prepared.options.target;
        let page = Page {
            model: self.predicted.name(),
            described: self.predicted.described(&prepared, FIRST_RANK),
            tokens: prepared.tokens,
            memory: self.predicted.memory(target),
            rate: self.predicted.rate(target),
            plans: compiled.collect::<Outcome<_>>()?,
        };
        match output {
            Some(output) => files::write(output, page.html()?.as_bytes()),
            None => terminal.print(page.json()? + "\n"),
        }
    }
}

/// Compiles a plan for the page.
fn compiled(placement: &Placement, prepared: &Prepared, terminal: &mut Terminal) -> Outcome<Compiled> {
    let mesh = placement.mesh()?;
    let options = CompileOptions { search: placement.search()?, lower: placement.lower(), ..prepared.options.clone() };
    let plan = placement.completed(&prepared.workload, &mesh, &options)?;
    placement.note(&mesh, &plan, &options.target, terminal);
    match prepared.workload.view(&mesh, &plan, &options) {
        Ok(view) => Ok(Compiled { flags: placement.flags(), view }),
        Err(error) => Err(placement.failure(error)),
    }
}
