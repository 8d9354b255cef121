//! `tpc diff`: where the programs of two plans differ, by module: kernels, collectives, and the memory at the peak.

use crate::columns::{Unit, aligned};
use crate::compared::Compared;
use crate::costs::{Total, content_json, cost_json, part_json, program_json, summary, too_large};
use crate::given::Given;
use crate::predicted::{FIRST_RANK, Predicted};
use crate::{Failure, Outcome, Placement, Terminal};
use clap::Args;
use serde_json::{Value as Json, json};
use tpc_compiler::summary::{Content, Cost, Difference, Part, Row, Summary, Work};
use tpc_runtime::session::Backend;

/// List where two plans differ, by module: kernels, collectives, memory at the peak; nothing is executed
#[derive(Debug, Args)]
pub struct Diff {
    #[command(flatten)]
    predicted: Predicted,
    /// A plan, as in the other commands: a built-in one or a JSON file; given twice
    #[arg(long, value_name = "PLAN", required = true)]
    plan: Vec<String>,
    #[command(flatten)]
    compared: Compared,
}

impl Diff {
    /// The two plans on their meshes.
    fn placements(&self) -> Outcome<[Placement; 2]> {
        let two = |plans: usize| {
            let times = if plans == 1 { "once".into() } else { format!("{plans} times") };
            Failure::new(format!("two plans are compared, but --plan is given {times}"))
        };
        if self.plan.len() != 2 {
            return Err(two(self.plan.len()));
        }
        self.compared.placements(&self.plan)?.try_into().map_err(|other: Vec<Placement>| two(other.len()))
    }

    pub(crate) fn execute(&self, given: &Given, terminal: &mut Terminal) -> Outcome {
        let placements = self.placements()?;
        // Report all errors in the meshes and the plans before the long part.
        for placement in &placements {
            placement.mesh()?;
            placement.plan()?;
        }
        let prepared = self.predicted.prepare(placements[0].options(Backend::Cpu, false, 0)?, given, terminal)?;
        let mut of = |placement: &Placement| match summary(placement, &prepared, terminal) {
            Err(Failure::Message(problem)) => Err(Failure::new(format!("{}: {problem}", placement.flags()))),
            other => other,
        };
        let [a, b] = &placements;
        let summaries = [of(a)?, of(b)?];
        let difference = Difference::of(&summaries[0], &summaries[1]);
        let memory = self.predicted.memory(&prepared.options.target);
        if self.predicted.json {
            let mut report = self.predicted.report(&prepared);
            report["a"] = program_json(a, &summaries[0], memory);
            report["b"] = program_json(b, &summaries[1], memory);
            report["rows"] = difference.parts.iter().map(part_row_json).collect();
            report["peak"] = difference.peak.iter().map(content_row_json).collect();
            return terminal.print(format!("{report:#}\n"));
        }
        let mut text =
            format!("{}\nA: {}\nB: {}\n\n", self.predicted.described(&prepared, FIRST_RANK), a.flags(), b.flags());
        text += &totals_table(&summaries);
        for (name, summary) in ["A", "B"].into_iter().zip(&summaries) {
            text += &too_large(&format!("{name} needs"), summary, memory);
        }
        if !difference.parts.is_empty() {
            text += &format!("\n{}", parts_table(&difference));
        }
        if !difference.peak.is_empty() {
            text += &format!("\n{}", peak_table(&difference));
        }
        if difference.is_empty() {
            text += "\nnothing differs\n";
        }
        terminal.print(text)
    }
}

fn part_row_json(row: &Row<Part, [Cost; 2]>) -> Json {
    let mut json = part_json(&row.modules, &row.key);
    (json["a"], json["b"]) = (cost_json(&row.amount[0]), cost_json(&row.amount[1]));
    json
}

fn content_row_json(row: &Row<Content, [usize; 2]>) -> Json {
    let mut json = content_json(&row.modules, row.key);
    (json["a"], json["b"]) = (json!(row.amount[0]), json!(row.amount[1]));
    json
}

fn totals_table(summaries: &[Summary; 2]) -> String {
    let mut cells = vec![["", "A", "B", "difference"].map(String::from)];
    let [a, b] = summaries.each_ref().map(Total::all);
    for (Total { words, unit, amount: a, .. }, Total { amount: b, .. }) in a.into_iter().zip(b) {
        cells.push([words.into(), unit.text(a), unit.text(b), unit.change([a, b])]);
    }
    aligned(&cells, &[0])
}

fn parts_table(difference: &Difference) -> String {
    let mut cells = vec![["module", "phase", "work", "count", "sent", "time", "adds to the step"].map(String::from)];
    for Row { modules, key: Part { phase, work }, amount } in &difference.parts {
        let of = |part: fn(&Cost) -> f64| amount.each_ref().map(part);
        let sent = if *work == Work::Compute { String::new() } else { Unit::Bytes.both(of(|cost| cost.sent)) };
        cells.push([
            modules.to_string(),
            phase.name().into(),
            work.to_string(),
            Unit::Pieces.both(of(|cost| cost.count as f64)),
            sent,
            Unit::Seconds.both(of(|cost| cost.seconds)),
            Unit::Seconds.change(of(|cost| cost.of_step)),
        ]);
    }
    aligned(&cells, &[0, 1, 2])
}

fn peak_table(difference: &Difference) -> String {
    let mut cells = vec![["module", "at the peak of memory", "bytes", "difference"].map(String::from)];
    for Row { modules, key, amount } in &difference.peak {
        let bytes = amount.map(|bytes| bytes as f64);
        let (both, change) = (Unit::Bytes.both(bytes), Unit::Bytes.change(bytes));
        cells.push([modules.to_string(), key.to_string(), both, change]);
    }
    aligned(&cells, &[0, 1])
}
