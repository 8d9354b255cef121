//! The step whose cost a command predicts, and the memory of the ranks. Nothing runs.

use crate::files::Files;
use crate::given::Given;
use crate::options::{StepArguments, Types};
use crate::subject::{MLP, Optimizer, Shape, Step, Subject};
use crate::{Outcome, Terminal};
use clap::Args;
use serde_json::{Value as Json, json};
use std::path::PathBuf;
use tpc_compiler::plans::Workload;
use tpc_compiler::program::CompileOptions;
use tpc_ir::DType;
use tpc_ir::quote::cut;
use tpc_passes::targets::Target;

/// The step whose cost is predicted.
#[derive(Debug, Args)]
pub struct Predicted {
    /// Directory with a config.json (weights are not needed)
    #[arg(value_name = "MODEL_DIR", required_unless_present = "preset", conflicts_with = "preset")]
    model: Option<PathBuf>,
    /// A model that needs no directory: mlp, llama (those of the comparisons), gpt, gpt-learned
    #[arg(long)]
    preset: Option<String>,
    /// Memory of one rank, such as 80GiB or 80GB [default: the target's]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    memory: Option<f64>,
    #[command(flatten)]
    step: StepArguments,
    #[command(flatten)]
    shape: Shape,
    /// The training step, not the forward pass
    #[arg(long)]
    train: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    optimizer: Optimizer,
}

/// The rank of most predictions, in words.
pub(crate) const FIRST_RANK: &str = "the first rank";

/// A captured step, ready to be compiled for several plans.
pub(crate) struct Prepared {
    /// The step.
    pub(crate) workload: Workload,
    /// The options for compiling it.
    pub(crate) options: CompileOptions,
    /// Number of tokens in the step.
    pub(crate) tokens: usize,
}

impl Predicted {
    /// Captures the step. `options` are those of the plan; those of the step are added.
    ///
    /// # Errors
    /// Options without effect, a model that does not exist or cannot be captured.
    pub(crate) fn prepare(&self, options: CompileOptions, given: &Given, terminal: &mut Terminal) -> Outcome<Prepared> {
        self.optimizer.check_used(self.train, self.preset.as_deref(), given)?;
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
        Ok(Prepared { workload, options: CompileOptions { step, ..options }, tokens: subject.tokens() })
    }

    /// What stands where MODEL_DIR would, in a command whose arguments go on after a preset without it.
    pub(crate) fn after_preset(&self) -> Option<String> {
        let word = || Some(self.model.as_ref()?.display().to_string());
        self.preset.as_ref().and_then(|_| word())
    }

    /// Memory of one rank in bytes.
    pub(crate) fn memory(&self, target: &Target) -> f64 {
        self.memory.unwrap_or(target.device.capacity)
    }

    /// Floating-point operations per second of one device, for the element type of the products.
    pub(crate) fn rate(&self, target: &Target) -> f64 {
        target.device.products.rate(if self.step.precision == Types::Bf16 { DType::BF16 } else { DType::F32 })
    }

    /// The files of the step that are read.
    pub(crate) fn reads(&self, files: Files) -> Files {
        match &self.model {
            Some(dir) => files.reads("MODEL_DIR", &dir.join("config.json")),
            None => files,
        }
    }

    /// The name of the model: of the preset, or of its directory.
    pub(crate) fn name(&self) -> String {
        let dir = || self.model.as_ref().map(|dir| dir.display().to_string());
        self.preset.clone().or_else(dir).unwrap_or_default()
    }

    /// What is predicted, on which target and for whom, in words.
    pub(crate) fn described(&self, prepared: &Prepared, ranks: &str) -> String {
        let step = match (self.train, self.preset.as_deref()) {
            (false, _) => "the forward pass",
            (true, Some(MLP)) => "the forward and backward pass",
            (true, _) => "the training step",
        };
        let Prepared { tokens, options, .. } = prepared;
        let (name, target) = (self.name(), &options.target.name);
        format!("{step} of {} on {tokens} tokens, simulated on {ranks} of the target {}", cut(&name), cut(target))
    }

    /// The same as JSON, the beginning of a report.
    pub(crate) fn report(&self, prepared: &Prepared) -> Json {
        let Prepared { tokens, options, .. } = prepared;
        json!({
            "model": self.name(), "train": self.train, "tokens": tokens,
            "target": options.target.name, "memory": self.memory(&options.target),
        })
    }
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
}
