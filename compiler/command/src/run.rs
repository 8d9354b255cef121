//! `tpc run`: a forward pass from files to a file.

use crate::data::{Batch, safetensors};
use crate::files::{self, Files};
use crate::given::Given;
use crate::launch::{Running, leads};
use crate::notes::note_idle_ranks;
use crate::settings::{compare_files, model_files};
use crate::subject::{executed, initial};
use crate::trace::Traced;
use crate::{Failure, Outcome, Placement, Terminal};
use clap::Args;
use std::path::{Path, PathBuf};
use tpc_compiler::models::ModelDir;
use tpc_compiler::pretrained::{capture_forward, condition, draw_missing, load_weights, names};
use tpc_compiler::program::{InferenceProgram, compile_inference_together};
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
    pub(crate) running: Running,
    /// Global batch: input_ids and optionally labels, attention_mask, token_type_ids
    #[arg(long, value_name = "FILE.safetensors")]
    inputs: PathBuf,
    /// File for the output (logits, hidden states or embeddings) and the loss
    #[arg(long, value_name = "FILE.safetensors")]
    output: PathBuf,
    #[command(flatten)]
    traced: Traced,
}

impl Run {
    /// The files that must be the same for all processes, except for large weights.
    pub(crate) fn reads(&self) -> Vec<(String, PathBuf)> {
        let inputs = ("--inputs".to_string(), self.inputs.clone());
        model_files(&self.model, true).into_iter().chain([inputs]).collect()
    }

    pub(crate) fn execute(&self, _given: &Given, terminal: &mut Terminal) -> Outcome {
        self.placement.refuse_auto()?;
        let (mesh, plan, options) = (
            self.placement.executed_mesh()?,
            self.placement.plan()?,
            self.placement.options(self.running.backend(), false, 0)?,
        );
        let dir = ModelDir::open(&self.model)?;
        dir.warnings.iter().for_each(|warning| terminal.note(warning));
        let weights: Vec<PathBuf> = dir.weights.files().map(Path::to_path_buf).collect();
        compare_files(&weights, &self.running)?;
        let batch = Batch::read(&self.inputs, &dir.config)?;
        dir.config.check_memory([batch.tokens.batch, batch.tokens.seq], executed(&self.running, mesh.ranks(), 1))?;
        let files = Files::default().reads_model(&dir).reads("--inputs", &self.inputs);
        self.traced.writes(self.placement.read(files).writes("--output", [&self.output])).check()?;
        let output = leads().then(|| files::output(&self.output)).transpose()?;
        let trace = self.traced.output()?;
        self.placement.note(&mesh, &plan, &options.target, terminal);
        self.running.note(mesh.ranks(), terminal);
        let captured = capture_forward(&dir.config, batch.tokens, batch.has_labels())?;
        let names = names(&dir.config);
        let rename = |path: &str| names.get(path).cloned().unwrap_or_else(|| path.to_string());
        let launch = self.traced.options(self.running.options()?);
        let note = |program: &InferenceProgram| {
            note_idle_ranks(&program.stages.placed, &plan, 1, terminal);
        };
        let init = initial(&captured, rename);
        let program = compile_inference_together(&captured, &mesh, &plan, &options, &rename, &launch, note)
            .map_err(|e| self.placement.failure(e))?;
        let mut session = program.launch(launch)?;
        load_weights(&mut session, &dir.weight_map(), &dir.weights)?;
        draw_missing(&mut session, &init, 0, &dir.weight_map(), &dir.weights)?;
        batch.feed(&mut session)?;
        session.step()?;
        self.traced.write(&session, trace, terminal)?;
        let name = dir.config.head().output();
        let (mut shape, values) = result(&session, name)?;
        if dir.config.head().is_per_sequence() {
            // One vector per sequence.
            shape.remove(1);
        }
        let mut summary = format!("wrote {}: {name} {shape:?}", self.output.display());
        let finite = values.iter().all(|x| x.is_finite());
        let mut wrong = (!finite).then(|| format!("the {name} are not all finite"));
        let mut tensors = vec![(name, shape, values)];
        if batch.has_labels() {
            let (_, loss) = result(&session, "loss")?;
            summary.push_str(&format!(", loss {:.6}", loss[0]));
            match (loss[0].is_finite(), wrong.take()) {
                (false, _) => wrong = Some(format!("the loss is {}", loss[0])),
                // Positions that the loss ignores may have any value.
                (true, Some(values)) => terminal.note(values),
                (true, None) => {}
            }
            tensors.push(("loss", vec![], loss));
        }
        if let Some(output) = output {
            files::write(output, &safetensors(&tensors)?)?;
        }
        terminal.print(summary + "\n")?;
        let Some(wrong) = wrong else { return Ok(()) };
        Err(Failure::new(match condition(&session, &dir.weight_map())?.not_finite {
            Some((name, _)) => format!("{wrong}, because the weight `{name}` is not finite"),
            None => format!(
                "{wrong}, though all weights are finite: some value of the forward pass is too large for its type"
            ),
        }))
    }
}

/// An output of the program in the shape that the model gives it.
fn result(session: &Session, name: &str) -> Outcome<(Vec<usize>, Vec<f32>)> {
    let kind = OutputKind::Result(name.into());
    let values = session.read_f64(&kind)?.into_iter().map(|v| v as f32).collect();
    let output = session.interface().outputs.iter().find(|o| o.kind == kind);
    Ok((output.map(|o| o.binding.layout.clone()).unwrap_or_default(), values))
}
