//! `tpc plans`: lists the built-in plans on every mesh with a number of ranks, fastest first.

use crate::given::Given;
use crate::options::{Chosen, StepArguments, Types};
use crate::subject::{Optimizer, Shape, Step, Subject};
use crate::{Failure, Outcome, Terminal, target_named};
use clap::Args;
use serde_json::{Value as Json, json};
use std::path::PathBuf;
use tpc_compiler::plans::{Candidate, Prediction, Ranked, Workload, candidates, ranked};
use tpc_compiler::program::CompileOptions;
use tpc_ir::DType;
use tpc_passes::simulate::Lane;
use tpc_passes::targets::Target;
use tpc_runtime::session::Backend;

/// List the built-in plans on every mesh by the predicted time of a step; nothing is executed
#[derive(Debug, Args)]
pub struct Plans {
    /// Directory with a config.json (weights are not needed)
    #[arg(value_name = "MODEL_DIR", required_unless_present = "preset", conflicts_with = "preset")]
    model: Option<PathBuf>,
    /// A model that needs no directory: mlp, llama (those of the comparisons), gpt, gpt-learned
    #[arg(long)]
    preset: Option<String>,
    /// Number of ranks of every mesh
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    ranks: u32,
    /// Target to plan for: a built-in one (cpu, h100-node, h200-node, ethernet) or a JSON file, as tpc calibrate writes it [default: cpu]
    #[arg(long, value_name = "NAME|FILE")]
    target: Option<String>,
    /// Memory of one rank, such as 80GiB or 80GB [default: the target's]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    memory: Option<f64>,
    /// Who chooses where values lie that the plan says nothing about; planned placements also fit into the memory if they can
    #[arg(long, value_enum, value_name = "WHO", default_value = "given")]
    placements: Chosen,
    #[command(flatten)]
    step: StepArguments,
    #[command(flatten)]
    shape: Shape,
    /// The training step, not the forward pass
    #[arg(long)]
    train: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    optimizer: Optimizer,
}

impl Plans {
    pub(crate) fn execute(&self, given: &Given, terminal: &mut Terminal) -> Outcome {
        self.optimizer.check_used(self.train, self.preset.as_deref(), given)?;
        // Nothing runs here: a program may be planned for any device.
        let target = target_named(self.target.as_deref(), Backend::Cpu)?;
        let subject = Subject::of(self.preset.as_deref(), self.model.as_deref(), self.shape, terminal)?;
        let rename = subject.rename();
        let (workload, has_optimizer) = match self.train {
            false => (Workload::of_inference(&subject.forward()?, &rename)?, false),
            true => match subject.step(&self.optimizer)? {
                Step::Training(step) => (Workload::of_training(&step, &rename)?, true),
                Step::Backward(step) => (Workload::of_inference(&step, &rename)?, false),
            },
        };
        let step = self.step.options(has_optimizer, given)?;
        let mut options = CompileOptions { step, ..CompileOptions::new(target) };
        let memory = self.memory.unwrap_or(options.target.device.capacity);
        options.search.placements = self.placements.into();
        options.search.memory = (self.placements == Chosen::Planned).then_some(memory as usize);
        let all = candidates(self.ranks as usize);
        if all.is_empty() {
            return Err(Failure::new(format!("no mesh of {} ranks has the axes of a built-in plan", self.ranks)));
        }
        let report = Report {
            rows: ranked(&workload, all, &options, memory),
            memory,
            rate: self.rate(&options.target),
            target: &options.target.name,
            tokens: subject.tokens(),
        };
        terminal.print(if self.json { format!("{:#}\n", report.json()) } else { report.table() })
    }

    /// Floating-point operations per second of one device, for the element type of the products.
    fn rate(&self, target: &Target) -> f64 {
        target.device.products.rate(if self.step.precision == Types::Bf16 { DType::BF16 } else { DType::F32 })
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
        let mut text = aligned(&cells);
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
            let axes: serde_json::Map<String, Json> =
                mesh.axes().iter().map(|axis| (axis.name.clone(), json!(axis.size))).collect();
            let mut json = json!({ "plan": name, "mesh": axes });
            match &row.predicted {
                Ok(predicted) => {
                    let Prediction { timeline, arena_bytes, flops } = predicted;
                    json["fits"] = json!(row.fits(self.memory));
                    json["seconds"] = json!(timeline.seconds);
                    json["compute_seconds"] = json!(timeline.busy(Lane::Compute));
                    json["communication_seconds"] = json!(timeline.busy(Lane::Communication));
                    json["exposed_seconds"] = json!(timeline.exposed());
                    json["sent_bytes"] = json!(timeline.sent.round() as u64);
                    json["arena_bytes"] = json!(arena_bytes);
                    json["model_flops"] = json!(flops);
                    json["mfu"] = json!(self.utilization(row, predicted));
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

/// Formats rows as columns. The first and the last column are aligned to the left, the others to the right.
fn aligned<const N: usize>(cells: &[[String; N]]) -> String {
    let width = |at: usize| cells.iter().map(|row| row[at].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let line = |row: &[String; N]| {
        let cell = |at: usize| match at {
            0 => format!("{:<1$}", row[at], widths[at]),
            _ if at + 1 == N => row[at].clone(),
            _ => format!("{:>1$}", row[at], widths[at]),
        };
        (0..N).map(cell).collect::<Vec<_>>().join("  ").trim_end().to_string()
    };
    cells.iter().map(|row| line(row) + "\n").collect()
}

/// Formats a number with three digits and the largest unit that makes it at least 1.
fn scaled(x: f64, units: &[(f64, &str)]) -> String {
    let &(factor, unit) = units.iter().rev().find(|(factor, _)| x >= *factor).unwrap_or(&units[0]);
    let x = x / factor;
    let digits = if x < 10.0 { 2 } else { usize::from(x < 100.0) };
    format!("{x:.digits$} {unit}")
}

pub(crate) fn seconds(x: f64) -> String {
    scaled(x, &[(1e-6, "us"), (1e-3, "ms"), (1.0, "s")])
}

fn bytes(x: f64) -> String {
    scaled(x, &[(1e3, "kB"), (1e6, "MB"), (1e9, "GB"), (1e12, "TB")])
}

/// Parses a number of bytes.
pub(crate) fn size(text: &str) -> Result<f64, String> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let factor: Option<f64> = match unit {
        "" | "B" => Some(1.0),
        "MB" => Some(1e6),
        "GB" => Some(1e9),
        "MiB" => Some(f64::from(1 << 20)),
        "GiB" => Some(f64::from(1 << 30)),
        _ => None,
    };
    let bytes = number.parse::<f64>().ok().zip(factor).map(|(number, factor)| number * factor);
    bytes.filter(|bytes| *bytes > 0.0).ok_or_else(|| "expected a number of bytes such as 80GiB, 80GB or 512MiB".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        assert_eq!(size("80GiB"), Ok(80.0 * 1024.0 * 1024.0 * 1024.0));
        assert_eq!(size("1.5GB"), Ok(1.5e9));
        assert_eq!(size("12"), Ok(12.0));
        for wrong in ["", "GB", "0", "-1GB", "5 GB", "5gb", "1.2.3GB"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn numbers_have_three_digits() {
        assert_eq!(
            [0.0, 2.5e-7, 3.14159e-3, 0.713, 12.34, 123.4].map(seconds),
            ["0.00 us", "0.25 us", "3.14 ms", "713 ms", "12.3 s", "123 s"]
        );
        assert_eq!([0.0, 999.0, 80e9].map(bytes), ["0.00 kB", "1.00 kB", "80.0 GB"]);
    }
}
