//! `tpc costs`: what a plan costs one rank, by module: kernels, collectives, and the memory at the peak.

use crate::columns::{Unit, aligned};
use crate::given::Given;
use crate::notes::note_recomputed;
use crate::plans::axes;
use crate::predicted::{FIRST_RANK, Predicted, Prepared};
use crate::{Outcome, Placement, Terminal};
use clap::Args;
use serde_json::{Value as Json, json};
use std::collections::BTreeMap;
use tpc_compiler::program::CompileOptions;
use tpc_compiler::summary::{Amount, ByModule, Content, Cost, Modules, Part, Summary, Work, rows};
use tpc_runtime::session::Backend;

/// List what a plan costs one rank, by module: kernels, collectives, memory at the peak; nothing is executed
#[derive(Debug, Args)]
pub struct Costs {
    #[command(flatten)]
    predicted: Predicted,
    #[command(flatten)]
    placement: Placement,
}

impl Costs {
    pub(crate) fn execute(&self, given: &Given, terminal: &mut Terminal) -> Outcome {
        // Report all errors in the mesh and the plan before the long part.
        self.placement.mesh()?;
        self.placement.plan()?;
        // Nothing runs here: a program may be planned for any device.
        let options = self.placement.options(Backend::Cpu, false, 0)?;
        let prepared = self.predicted.prepare(options, given, terminal)?;
        let summary = summary(&self.placement, &prepared, terminal)?;
        let memory = self.predicted.memory(&prepared.options.target);
        if self.predicted.json {
            let mut report = self.predicted.report(&prepared);
            report["plan"] = program_json(&self.placement, &summary, memory);
            let parts = rows(&summary.parts).into_iter().map(|row| {
                let mut json = part_json(&row.modules, &row.key);
                json["cost"] = cost_json(&row.amount);
                json
            });
            report["rows"] = parts.collect();
            let peak = rows(&summary.peak).into_iter().map(|row| {
                let mut json = content_json(&row.modules, row.key);
                json["bytes"] = json!(row.amount);
                json
            });
            report["peak"] = peak.collect();
            return terminal.print(format!("{report:#}\n"));
        }
        let totals = Total::all(&summary).map(|total| [total.words.into(), total.unit.text(total.amount)]);
        terminal.print(format!(
            "{}\n{}\n\n{}{}\n{}\n{}",
            self.predicted.described(&prepared, FIRST_RANK),
            self.placement.flags(),
            aligned(&totals, &[0]),
            too_large("this is", &summary, memory),
            parts_table(&summary),
            peak_table(&summary)
        ))
    }
}

/// Compiles a plan and summarizes its program.
///
/// # Errors
/// A plan or a mesh that does not exist; a plan that does not fit.
pub(crate) fn summary(placement: &Placement, prepared: &Prepared, terminal: &mut Terminal) -> Outcome<Summary> {
    let mesh = placement.mesh()?;
    let options = CompileOptions { search: placement.search()?, lower: placement.lower(), ..prepared.options.clone() };
    let plan = placement.completed(&prepared.workload, &mesh, &options)?;
    placement.note(&mesh, &plan, &options.target, terminal);
    let summary = prepared.workload.summarize(&mesh, &plan, &options).map_err(|error| placement.failure(error))?;
    if let Some(recomputed) = &summary.recomputed {
        note_recomputed(recomputed, terminal);
    }
    Ok(summary)
}

/// A line that begins with these words if a program needs more memory than a rank has.
pub(crate) fn too_large(words: &str, summary: &Summary, memory: f64) -> String {
    let more = summary.arena_bytes as f64 - memory;
    if more <= 0.0 {
        return String::new();
    }
    format!("{words} {} more than the {} of a rank\n", Unit::Bytes.text(more), Unit::Bytes.text(memory))
}

/// A number of a whole program.
pub(crate) struct Total {
    pub(crate) words: &'static str,
    /// Its key in JSON, as in `tpc plans`.
    pub(crate) key: &'static str,
    pub(crate) unit: Unit,
    pub(crate) amount: f64,
}

impl Total {
    pub(crate) fn all(summary: &Summary) -> [Total; 8] {
        let compute = summary.total(|part| part.work == Work::Compute);
        let communication = summary.total(|part| part.work != Work::Compute);
        let total = |words, key, unit, amount| Total { words, key, unit, amount };
        [
            total("step", "seconds", Unit::Seconds, summary.seconds),
            total("time of kernels", "compute_seconds", Unit::Seconds, compute.of_step),
            total("waiting for collectives", "exposed_seconds", Unit::Seconds, communication.of_step),
            total("time of collectives", "communication_seconds", Unit::Seconds, communication.seconds),
            total("kernels", "kernels", Unit::Pieces, compute.count as f64),
            total("collectives", "collectives", Unit::Pieces, communication.count as f64),
            total("sent", "sent_bytes", Unit::Bytes, communication.sent),
            total("memory", "arena_bytes", Unit::Bytes, summary.arena_bytes as f64),
        ]
    }
}

/// A plan and the numbers of its whole program.
pub(crate) fn program_json(placement: &Placement, summary: &Summary, memory: f64) -> Json {
    let fits = summary.arena_bytes as f64 <= memory;
    let mut json = json!({ "plan": placement.plan, "mesh": axes(&summary.mesh), "fits": fits });
    for Total { key, unit, amount, .. } in Total::all(summary) {
        json[key] = unit.json(amount);
    }
    json
}

fn modules_json(modules: &Modules) -> Json {
    let paths = modules.paths().iter().map(ToString::to_string);
    json!({ "module": modules.to_string(), "modules": paths.collect::<Vec<_>>() })
}

/// What a row of the first table is about.
pub(crate) fn part_json(modules: &Modules, Part { phase, work }: &Part) -> Json {
    let mut json = modules_json(modules);
    json["phase"] = json!(phase.name());
    json["work"] = match work {
        Work::Compute => json!("compute"),
        Work::Collective { op, axes } => {
            json["axes"] = json!(axes);
            json!(op.name())
        }
    };
    json
}

/// What a row of the second table is about.
pub(crate) fn content_json(modules: &Modules, content: Content) -> Json {
    let mut json = modules_json(modules);
    json["content"] = json!(content.to_string());
    json
}

pub(crate) fn cost_json(cost: &Cost) -> Json {
    json!({
        "count": cost.count, "sent_bytes": Unit::Bytes.json(cost.sent), "seconds": cost.seconds,
        "seconds_of_step": cost.of_step,
    })
}

/// What the first column says of all modules together.
const ALL: &str = "all modules";

/// The sums over all modules.
pub(crate) fn of_all<K: Clone + Ord, V: Amount>(amounts: &ByModule<K, V>) -> BTreeMap<K, V> {
    let mut sums: BTreeMap<K, V> = BTreeMap::new();
    for ((_, key), amount) in amounts {
        let sum = sums.entry(key.clone()).or_default();
        *sum = sum.plus(amount);
    }
    sums
}

fn parts_table(summary: &Summary) -> String {
    let mut cells = vec![["module", "phase", "work", "count", "sent", "time", "of the step"].map(String::from)];
    let mut add = |module: String, Part { phase, work }: &Part, cost: &Cost| {
        let sent = if *work == Work::Compute { String::new() } else { Unit::Bytes.text(cost.sent) };
        let share = format!("{:.1}%", 100.0 * cost.of_step / summary.seconds);
        let (count, time) = (cost.count.to_string(), Unit::Seconds.text(cost.seconds));
        cells.push([module, phase.name().into(), work.to_string(), count, sent, time, share]);
    };
    of_all(&summary.parts).iter().for_each(|(part, cost)| add(ALL.into(), part, cost));
    rows(&summary.parts).iter().for_each(|row| add(row.modules.to_string(), &row.key, &row.amount));
    aligned(&cells, &[0, 1, 2])
}

fn peak_table(summary: &Summary) -> String {
    let mut cells = vec![["module", "at the peak of memory", "bytes"].map(String::from)];
    let mut add = |module: String, content: Content, bytes: usize| {
        cells.push([module, content.to_string(), Unit::Bytes.text(bytes as f64)]);
    };
    of_all(&summary.peak).iter().for_each(|(content, bytes)| add(ALL.into(), *content, *bytes));
    rows(&summary.peak).iter().for_each(|row| add(row.modules.to_string(), row.key, row.amount));
    aligned(&cells, &[0, 1])
}
