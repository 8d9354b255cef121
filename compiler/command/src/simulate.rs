//! `tpc simulate`: the time and the memory of a step on all ranks, by kind of rank, and its trace.

use crate::columns::{Unit, aligned, operations, seconds};
use crate::costs::{Total, of_all, too_large};
use crate::files::{self, Files};
use crate::given::Given;
use crate::plans::axes;
use crate::predicted::{Predicted, Prepared};
use crate::{Outcome, Placement, Terminal};
use clap::Args;
use serde_json::{Value as Json, json};
use std::path::PathBuf;
use tpc_compiler::plans::utilization;
use tpc_compiler::program::CompileOptions;
use tpc_compiler::simulation::{Kind, Simulation, trace};
use tpc_runtime::session::Backend;

/// Simulate a step on thousands of ranks: time, exposed communication, MFU and memory by kind of rank; nothing is executed
///
/// Ranks whose programs take the same sizes are of one kind, and one rank of each kind is simulated.
#[derive(Debug, Args)]
pub struct Simulate {
    #[command(flatten)]
    predicted: Predicted,
    #[command(flatten)]
    placement: Placement,
    /// File for a trace of the simulated step of the first rank of each kind, which Perfetto opens (ui.perfetto.dev)
    #[arg(long = "trace", value_name = "FILE.json")]
    trace: Option<PathBuf>,
}

impl Simulate {
    pub(crate) fn execute(&self, given: &Given, terminal: &mut Terminal) -> Outcome {
        // Report all errors in the files, the mesh and the plan before the long part.
        self.placement.read(self.predicted.reads(Files::default())).writes("--trace", &self.trace).check()?;
        let output = self.trace.as_deref().map(files::output).transpose()?;
        let mesh = self.placement.mesh()?;
        self.placement.plan()?;
        // Nothing runs here: a program may be planned for any device.
        let options = self.placement.options(Backend::Cpu, false, 0)?;
        let prepared = self.predicted.prepare(options, given, terminal)?;
        let options = CompileOptions { search: self.placement.search()?, ..prepared.options.clone() };
        let plan = self.placement.completed(&prepared.workload, &mesh, &options)?;
        self.placement.note(&mesh, &plan, &options.target, terminal);
        let simulated = prepared.workload.simulate(&mesh, &plan, &options);
        let simulation = simulated.map_err(|error| self.placement.failure(error))?;
        if let Some(output) = output {
            files::write(output, trace(&simulation).as_bytes())?;
        }
        let report = Report { command: self, prepared: &prepared, simulation: &simulation };
        terminal.print(if self.predicted.json { format!("{:#}\n", report.json()) } else { report.text() })
    }
}

/// The report of the command.
struct Report<'a> {
    command: &'a Simulate,
    prepared: &'a Prepared,
    simulation: &'a Simulation,
}

impl Report<'_> {
    fn memory(&self) -> f64 {
        self.command.predicted.memory(&self.prepared.options.target)
    }

    /// The tokens that all ranks take in a second.
    fn tokens_per_second(&self) -> f64 {
        self.prepared.tokens as f64 / self.simulation.seconds()
    }

    /// The MFU of all ranks, if a step takes so long.
    fn mfu(&self, seconds: f64) -> f64 {
        let rate = self.command.predicted.rate(&self.prepared.options.target);
        utilization(self.simulation.flops, seconds, self.simulation.mesh.ranks(), rate)
    }

    fn text(&self) -> String {
        let Report { command, prepared, simulation } = self;
        let ranks = simulation.mesh.ranks();
        let (took, tokens) = (simulation.seconds(), self.tokens_per_second());
        let rate = command.predicted.rate(&prepared.options.target);
        let too_large = simulation.kinds.iter().map(|kind| {
            let words = format!("the memory of rank {} is", kind.ranks[0]);
            too_large(&words, &kind.summary, self.memory())
        });
        format!(
            "{}\n{}\n\n{} a step, {tokens:.0} tokens/s, {} tokens/s a rank, MFU {:.1}% of {} a rank\n\
             {} of {}\n{}\n{}\n{}\n{}",
            command.predicted.described(prepared, "all ranks"),
            command.placement.flags(),
            seconds(took),
            digits(tokens / ranks as f64),
            100.0 * self.mfu(took),
            operations(rate),
            if ranks == 1 { "1 rank".into() } else { format!("{ranks} ranks") },
            match simulation.kinds.len() {
                1 => "one kind".into(),
                kinds => format!("{kinds} kinds"),
            },
            too_large.collect::<String>(),
            self.kinds_table(),
            self.communication_table(),
            self.memory_table(),
        )
    }

    fn kinds_table(&self) -> String {
        let head = ["first rank", "ranks", "step", "MFU", "kernels", "collectives", "exposed", "sent", "memory"];
        let mut cells = vec![head.map(String::from)];
        for kind in &self.simulation.kinds {
            let Kind { summary, .. } = kind;
            let [step, kernels, exposed, links, _, _, sent, memory] = Total::all(summary);
            let time = |total: &Total| total.unit.text(total.amount);
            cells.push([
                named(kind),
                kind.ranks.len().to_string(),
                time(&step),
                format!("{:.1}%", 100.0 * self.mfu(step.amount)),
                time(&kernels),
                time(&links),
                format!("{} ({:.1}%)", time(&exposed), 100.0 * exposed.amount / step.amount),
                time(&sent),
                time(&memory),
            ]);
        }
        aligned(&cells, &[0])
    }

    fn communication_table(&self) -> String {
        let mut cells = vec![["first rank", "axes", "count", "sent", "time", "exposed"].map(String::from)];
        for kind in &self.simulation.kinds {
            for (axes, cost) in kind.communication() {
                let time = |x| Unit::Seconds.text(x);
                let (count, sent) = (cost.count.to_string(), Unit::Bytes.text(cost.sent));
                cells.push([named(kind), axes.join(","), count, sent, time(cost.seconds), time(cost.of_step)]);
            }
        }
        if cells.len() == 1 { "no collectives\n".into() } else { aligned(&cells, &[0, 1]) }
    }

    fn memory_table(&self) -> String {
        let mut cells = vec![["first rank", "at the peak of memory", "bytes"].map(String::from)];
        for kind in &self.simulation.kinds {
            for (content, bytes) in of_all(&kind.summary.peak) {
                cells.push([named(kind), content.to_string(), Unit::Bytes.text(bytes as f64)]);
            }
        }
        aligned(&cells, &[0, 1])
    }

    fn json(&self) -> Json {
        let Report { command, prepared, simulation } = self;
        let (took, tokens) = (simulation.seconds(), self.tokens_per_second());
        let mut json = command.predicted.report(prepared);
        json["plan"] = json!(command.placement.plan);
        json["mesh"] = axes(&simulation.mesh);
        json["ranks"] = json!(simulation.mesh.ranks());
        json["seconds"] = json!(took);
        json["tokens_per_s"] = json!(tokens);
        json["tokens_per_s_per_rank"] = json!(tokens / simulation.mesh.ranks() as f64);
        json["model_flops"] = json!(simulation.flops);
        json["mfu"] = json!(self.mfu(took));
        json["kinds"] = simulation.kinds.iter().map(|kind| self.kind_json(kind)).collect();
        json
    }

    fn kind_json(&self, kind: &Kind) -> Json {
        let Kind { ranks, program, timeline, summary } = kind;
        let mut json = json!({
            "first_rank": ranks[0], "coordinates": program.mesh.coords(ranks[0]), "ranks": ranks.len(),
            "mfu": self.mfu(timeline.seconds), "fits": summary.arena_bytes as f64 <= self.memory(),
        });
        for Total { key, unit, amount, .. } in Total::all(summary) {
            json[key] = unit.json(amount);
        }
        let communication = kind.communication().into_iter().map(|(axes, cost)| {
            json!({
                "axes": axes, "collectives": cost.count, "sent_bytes": Unit::Bytes.json(cost.sent),
                "seconds": cost.seconds, "exposed_seconds": cost.of_step,
            })
        });
        json["communication"] = communication.collect();
        let held = of_all(&summary.peak).into_iter();
        json["peak"] = held.map(|(content, bytes)| json!({"content": content.to_string(), "bytes": bytes})).collect();
        json
    }
}

/// The first rank of a kind, and its coordinates.
fn named(kind: &Kind) -> String {
    format!("{} {:?}", kind.ranks[0], kind.program.mesh.coords(kind.ranks[0]))
}

/// A number with three digits at least.
fn digits(x: f64) -> String {
    if x < 100.0 { format!("{x:.1}") } else { format!("{x:.0}") }
}
