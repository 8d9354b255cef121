//! Why a value of a placed program is where it is, why a collective exists, and what the best program without it costs.
//!
//! | question | file |
//! |---|---|
//! | which values a question names | `subject` |
//! | what a value is, from the operation to its causes and its readers | `explained` |
//! | what a reader needs of a value | `need` |
//! | what programs without it cost | `without` |
//!
//! Before: `%26 = all_reduce tp sum %25 ; forward in down why: down.weight is cut along the summed index (plan "down")`.
//! After: the same with what it costs, what computes `%25`, what reads `%26` and why that cannot read terms of a sum, and
//! the cheapest programs that do not have it.

mod explained;
mod need;
mod subject;
mod without;

pub use explained::{Because, Explained, Maker, Reader, Traffic};
pub use need::Need;
pub use subject::{Subject, What, WhatError};
pub use without::{Alternative, Barred, Found, Program, Proof};

use crate::error::Error;
use crate::program::CompileOptions;
use crate::summary::each_step;
use std::cell::OnceCell;
use std::collections::HashMap;
use tpc_ir::program::{Action, RankProgram};
use tpc_ir::{Graph, InputId, Value};
use tpc_passes::egraph::SearchReport;
use tpc_passes::lower::{lower_rank, schedule};
use tpc_passes::simulate::simulate;
use tpc_passes::targets::Target;

/// A collective of the placed program in the simulated step of the first rank.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Flight {
    /// Seconds in which it is in flight.
    seconds: f64,
    /// Seconds that it adds to the step.
    of_step: f64,
    /// The number of values that travel with it, itself included.
    company: usize,
}

/// A compiled program about which one can ask.
pub struct Explainer {
    graph: Graph,
    report: SearchReport,
    options: CompileOptions,
    /// The parameters that are gathered a second time for the backward pass, as far as they are gathered.
    gathered: Vec<InputId>,
    program: Program,
    flights: HashMap<Value, Flight>,
    best: OnceCell<Option<Program>>,
}

impl Explainer {
    /// A placed program in which every operation has a module.
    ///
    /// # Errors
    /// A bug of the compiler.
    pub(crate) fn of(
        graph: Graph,
        report: SearchReport,
        gathered: Vec<InputId>,
        options: CompileOptions,
    ) -> Result<Self, Error> {
        let scheduled = schedule(&graph, &options.target, &options.lower);
        let rank = lower_rank(&graph, &scheduled, 0)?;
        let together = scheduled.collectives().map(|nodes| nodes.iter().copied().map(Value::from).collect());
        let flights = flights(&graph, together, &rank, &options.target);
        let program = Program::of(&graph, &rank, &options.target);
        Ok(Explainer { graph, report, options, gathered, program, flights, best: OnceCell::new() })
    }

    /// The placed program.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// What the program costs.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// What a question names; at least one subject.
    ///
    /// # Errors
    /// The program has nothing of that kind.
    pub fn find(&self, what: &What) -> Result<Vec<Subject>, WhatError> {
        subject::find(&self.graph, what)
    }

    /// All collectives.
    pub fn collectives(&self) -> Vec<Subject> {
        subject::collectives(&self.graph)
    }

    /// From a subject to its causes.
    pub fn explain(&self, subject: &Subject) -> Explained {
        explained::explain(self, subject)
    }

    /// The cheapest programs without a subject that the planner finds.
    ///
    /// # Errors
    /// A bug of the compiler.
    pub fn without(&self, subject: &Subject) -> Result<Vec<Alternative>, Error> {
        without::alternatives(self, subject)
    }

    /// The cheapest program that the planner finds if nothing is forbidden; none if it finds none.
    ///
    /// # Errors
    /// A bug of the compiler.
    pub fn best(&self) -> Result<Option<&Program>, Error> {
        if let Some(best) = self.best.get() {
            return Ok(best.as_ref());
        }
        let found = without::best(self)?;
        Ok(self.best.get_or_init(|| found).as_ref())
    }
}

/// The collectives of a placed program in the simulated step, given the values of each in the order in which they start. Values that travel together share its time by their bytes.
fn flights(
    graph: &Graph,
    together: impl Iterator<Item = Vec<Value>>,
    rank: &RankProgram,
    target: &Target,
) -> HashMap<Value, Flight> {
    let costs = each_step(rank, &simulate(rank, target), target.device.kind);
    let mut by_tag: HashMap<u32, (f64, f64)> = HashMap::new();
    let mut tags = Vec::new();
    for (step, (_, cost)) in rank.steps.iter().zip(costs) {
        let tag = match &step.action {
            Action::Start(collective) => {
                tags.push(collective.tag);
                collective.tag
            }
            Action::Wait { tag } => *tag,
            _ => continue,
        };
        let (seconds, of_step) = by_tag.entry(tag).or_default();
        *seconds += cost.seconds;
        *of_step += cost.of_step;
    }
    let mut flights = HashMap::new();
    for (values, tag) in together.zip(tags) {
        let (seconds, of_step) = by_tag[&tag];
        let bytes = |value: Value| without::full_bytes(graph, value) as f64;
        let total: f64 = values.iter().map(|&value| bytes(value)).sum();
        for &value in &values {
            let share = if total > 0.0 { bytes(value) / total } else { 1.0 / values.len() as f64 };
            flights.insert(value, Flight { seconds: seconds * share, of_step: of_step * share, company: values.len() });
        }
    }
    flights
}
