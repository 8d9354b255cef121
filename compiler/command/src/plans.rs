//! `tpc plans`: lists the built-in plans on every mesh with a number of ranks, fastest first.

use crate::columns::{aligned, bytes, seconds};
use crate::given::Given;
use crate::options::Chosen;
use crate::predicted::{Predicted, Prepared};
use crate::report;
use crate::{Failure, Outcome, Terminal, target_named};
use clap::Args;
use serde_json::{Value as Json, json};
use std::path::{Path, PathBuf};
use tpc_compiler::plans::{Candidate, Prediction, Ranked, candidates, open_candidates, ranked};
use tpc_compiler::program::CompileOptions;
use tpc_ir::Mesh;
use tpc_passes::simulate::Lane;
use tpc_passes::styles::placements_json;
use tpc_runtime::session::Backend;

/// List the built-in plans on every mesh by the predicted time of a step; nothing is executed
#[derive(Debug, Args)]
pub struct Plans {
    /// Number of ranks of every mesh
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    ranks: u32,
    /// Target to plan for: a built-in one (cpu, h100-node, h200-node, ethernet) or a JSON file, as tpc calibrate writes it [default: cpu]
    #[arg(long, value_name = "NAME|FILE")]
    target: Option<String>,
    /// What decides the placements that a plan leaves open; a planned program also has to fit into the memory
    #[arg(long, value_enum, value_name = "WHO", default_value = "given")]
    placements: Chosen,
    /// Write every plan of the list to a plan file in this directory; --plan FILE with the mesh and the placements of the
    /// list compiles the same program
    #[arg(long, value_name = "DIR")]
    export: Option<PathBuf>,
    #[command(flatten)]
    predicted: Predicted,
}

/// Writes every plan that can be compiled to a file whose name has its rank in the list, its name and its mesh.
fn export(dir: &Path, rows: &[Ranked]) -> Outcome {
    std::fs::create_dir_all(dir).map_err(|error| Failure::at(dir, error))?;
    for (i, row) in rows.iter().enumerate().filter(|(_, row)| row.predicted.is_ok()) {
        let Candidate { name, plan, mesh, .. } = &row.candidate;
        let axes = mesh.axes().iter().map(|axis| format!("-{}{}", axis.name, axis.size)).collect::<String>();
        let mut json = json!({ "extends": name });
        if !plan.storage.is_empty() {
            json["placements"] = placements_json(&plan.storage);
        }
        let path = dir.join(format!("{:02}-{name}{axes}.json", i + 1));
        std::fs::write(&path, format!("{json:#}\n")).map_err(|error| Failure::at(&path, error))?;
    }
    Ok(())
}

impl Plans {
    pub(crate) fn execute(&self, given: &Given, terminal: &mut Terminal) -> Outcome {
        // Nothing runs here: a program may be planned for any device.
        let target = target_named(self.target.as_deref(), Backend::Cpu)?;
        let Prepared { workload, mut options, tokens } =
            self.predicted.prepare(CompileOptions::new(target), given, terminal)?;
        let memory = self.predicted.memory(&options.target);
        options.search.placements = self.placements.source();
        if self.placements != Chosen::Given {
            options.lower.memory = Some(memory as usize);
        }
        let mut all = candidates(self.ranks as usize);
        if self.placements == Chosen::Auto {
            all.extend(open_candidates(self.ranks as usize));
        }
        if all.is_empty() {
            return Err(Failure::new(format!("no mesh of {} ranks has the axes of a built-in plan", self.ranks)));
        }
        let report = Report {
            rows: ranked(&workload, all, &options, memory),
            memory,
            rate: self.predicted.rate(&options.target),
            target: &options.target.name,
            tokens,
        };
        if let Some(dir) = &self.export {
            export(dir, &report.rows)?;
        }
        terminal.print(if self.predicted.json { format!("{:#}\n", report.json()) } else { report.table() })
    }
}

/// The report of the command.
struct Report<'a> {
    /// Best first.
    rows: Vec<Ranked>,
    /// Memory of one rank in bytes.
    memory: f64,
    /// Floating-point operations per second of one device.
    rate: f64,
    target: &'a str,
    /// Number of tokens in a step.
    tokens: usize,
}

impl Report<'_> {
    fn utilization(&self, row: &Ranked, predicted: &Prediction) -> f64 {
        predicted.utilization(row.candidate.mesh.ranks(), self.rate)
    }

    fn table(&self) -> String {
        let head = ["plan and mesh", "step", "waiting", "tokens/s", "MFU", "sent a rank", "memory a rank", ""];
        let mut cells: Vec<[String; 8]> = vec![head.map(String::from)];
        for row in &self.rows {
            let Ok(predicted) = &row.predicted else { continue };
            let Prediction { timeline, arena_bytes, .. } = predicted;
            cells.push([
                row.candidate.flags(),
                seconds(timeline.seconds),
                format!("{:.1}%", 100.0 * timeline.exposed() / timeline.seconds),
                format!("{:.0}", self.tokens as f64 / timeline.seconds),
                format!("{:.1}%", 100.0 * self.utilization(row, predicted)),
                bytes(timeline.sent),
                bytes(*arena_bytes as f64),
                if row.fits(self.memory) { String::new() } else { "does not fit".into() },
            ]);
        }
        let mut text = aligned(&cells, &[0, 7]);
        let memory = bytes(self.memory);
        let impossible =
            |row: &Ranked| row.predicted.as_ref().err().map(|error| (row.candidate.flags(), error.to_string()));
        for (flags, error) in self.rows.iter().filter_map(impossible) {
            text.push_str(&format!("{flags} is not possible: {error}\n"));
        }
        let least = self.rows.iter().filter_map(|row| Some((row, row.predicted.as_ref().ok()?.arena_bytes)));
        text.push_str(&match (self.rows.first(), least.min_by_key(|(_, bytes)| *bytes)) {
            (Some(best), _) if best.fits(self.memory) => {
                format!("fastest on {} with {memory} a rank: {}\n", self.target, best.candidate.flags())
            }
            (_, Some((row, least))) => format!(
                "nothing fits in {memory} a rank: the least is {}, {} more, with {}; use a smaller batch, --micro-batches, or more ranks\n",
                bytes(least as f64),
                bytes(least as f64 - self.memory),
                row.candidate.flags()
            ),
            _ => String::new(),
        });
        text
    }

    fn json(&self) -> Json {
        let row = |row: &Ranked| {
            let Candidate { name, mesh, .. } = &row.candidate;
            let mut json = json!({ "plan": name, "mesh": axes(mesh) });
            if row.candidate.open {
                json["placements"] = placements_json(&row.candidate.plan.storage);
            }
            match &row.predicted {
                Ok(predicted) => {
                    let Prediction { timeline, arena_bytes, flops, recomputed } = predicted;
                    json["fits"] = json!(row.fits(self.memory));
                    json["seconds"] = json!(timeline.seconds);
                    json["compute_seconds"] = json!(timeline.busy(Lane::Compute));
                    json["communication_seconds"] = json!(timeline.busy(Lane::Communication));
                    json["exposed_seconds"] = json!(timeline.exposed());
                    json["sent_bytes"] = json!(timeline.sent.round() as u64);
                    json["arena_bytes"] = json!(arena_bytes);
                    json["model_flops"] = json!(flops);
                    json["mfu"] = json!(self.utilization(row, predicted));
                    if let Some(report) = recomputed {
                        json["recomputed"] = report::recomputed(report);
                    }
                }
                Err(error) => json["error"] = json!(error.to_string()),
            }
            json
        };
        json!({
            "target": self.target,
            "memory": self.memory,
            "tokens": self.tokens,
            "plans": self.rows.iter().map(row).collect::<Vec<_>>(),
        })
    }
}

/// The sizes of a mesh's axes by their names.
pub(crate) fn axes(mesh: &Mesh) -> Json {
    let axes = mesh.axes().iter().map(|axis| (axis.name.clone(), json!(axis.size)));
    Json::Object(axes.collect())
}
