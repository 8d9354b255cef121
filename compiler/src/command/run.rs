//! `tpc run`: a forward pass from files to a file.

use super::data::{Batch, Pending, safetensors};
use super::launch::{Running, leads};
use super::settings::{compare_files, model_files};
use super::{Outcome, Placement, Terminal};
use crate::models::ModelDir;
use crate::pretrained::{capture_forward, load_weights, names};
use crate::program::compile_inference_together;
use clap::Args;
use std::path::PathBuf;
use tpc_ir::OutputKind;
use tpc_runtime::Session;

/// Compute logits, and the loss when labels are given.
#[derive(Debug, Args)]
pub struct Run {
    /// Directory with config.json and safetensors
    #[arg(value_name = "MODEL_DIR")]
    model: PathBuf,
    #[command(flatten)]
    placement: Placement,
    #[command(flatten)]
    pub(super) running: Running,
    /// Global batch: input_ids and, if there are any, labels, attention_mask, token_type_ids
    #[arg(long, value_name = "FILE.safetensors")]
    inputs: PathBuf,
    /// Where to write logits and loss
    #[arg(long, value_name = "FILE.safetensors")]
    output: PathBuf,
}

impl Run {
    /// The files that all processes must have in common, but for large weights.
    pub(super) fn reads(&self) -> Vec<(String, PathBuf)> {
        let inputs = ("--inputs".to_string(), self.inputs.clone());
        model_files(&self.model, true).into_iter().chain([inputs]).collect()
    }

    pub(super) fn execute(&self, terminal: &mut Terminal) -> Outcome {
        let (mesh, plan, options) =
            (self.placement.executed_mesh()?, self.placement.plan()?, self.placement.options(false, 0)?);
        let dir = ModelDir::open(&self.model)?;
        compare_files(&dir.weights.files(), &self.running)?;
        let batch = Batch::read(&self.inputs, &dir.config)?;
        let output = leads().then(|| Pending::new(&self.output)).transpose()?;
        let captured = capture_forward(&dir.config, batch.tokens, batch.has_labels())?;
        let names = names(&dir.config);
        let rename = |path: &str| names.get(path).cloned().unwrap_or_else(|| path.to_string());
        let launch = self.running.options()?;
        let program = compile_inference_together(&captured, &mesh, &plan, &options, &rename, &launch, |_| ())
            .map_err(|e| self.placement.failure(e))?;
        let mut session = program.launch(launch)?;
        load_weights(&mut session, &dir.weight_map(), &dir.weights)?;
        batch.feed(&mut session)?;
        session.step()?;
        let (shape, logits) = result(&session, "logits")?;
        let mut summary = format!("wrote {}: logits {shape:?}", self.output.display());
        let mut tensors = vec![("logits", shape, logits)];
        if batch.has_labels() {
            let (_, loss) = result(&session, "loss")?;
            summary.push_str(&format!(", loss {:.6}", loss[0]));
            tensors.push(("loss", vec![], loss));
        }
        if let Some(output) = output {
            output.write(&safetensors(&tensors)?)?;
        }
        terminal.print(summary + "\n")
    }
}

/// An output of the program in the model's own shape.
fn result(session: &Session, name: &str) -> Outcome<(Vec<usize>, Vec<f32>)> {
    let kind = OutputKind::Result(name.into());
    let values = session.read_f64(&kind)?.into_iter().map(|v| v as f32).collect();
    let output = session.program(0).outputs.iter().find(|o| o.kind == kind);
    Ok((output.map(|o| o.binding.layout.clone()).unwrap_or_default(), values))
}
