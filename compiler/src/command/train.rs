//! `tpc train`: training steps on a fixed batch or on a text.

use super::data::{Batch, Pending, Text, check_dir, check_file, feed};
use super::launch::{Running, leads};
use super::options::StepArguments;
use super::subject::{Optimizer, executed, not_negative};
use super::{Failure, Outcome, Placement, Terminal};
use crate::models::{ModelConfig, ModelDir, WeightEntry, WeightMap, weight_map, write_weights};
use crate::pretrained::{LoadError, TokenBatch, condition, initialise_model, load_weights, names, save};
use crate::program::{TrainingSession, compile_training};
use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{IsTerminal, Write};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Instant;
use tpc_ir::OutputKind;
use tpc_passes::options::clip::GRAD_NORM;
use tpc_runtime::checkpoint::directory::saved;
use tpc_runtime::checkpoint::{Checkpoint, SaveOptions};
use tpc_runtime::{CheckpointError, Session};

/// Train a model; the result is a model directory again.
#[derive(Debug, Args)]
pub struct Train {
    /// Directory with config.json and safetensors
    #[arg(value_name = "MODEL_DIR")]
    model: PathBuf,
    #[command(flatten)]
    placement: Placement,
    #[command(flatten)]
    pub(super) running: Running,
    #[command(flatten)]
    step: StepArguments,
    /// Global batch, the same at every step: input_ids, labels, attention_mask, token_type_ids
    #[arg(long, value_name = "FILE.safetensors", required_unless_present = "text", conflicts_with = "text")]
    inputs: Option<PathBuf>,
    /// Text to train on, by characters: random windows of --seq characters, --batch of them a step
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Sequences in a batch of --text
    #[arg(long, default_value_t = 8)]
    batch: usize,
    /// Characters in a sequence of --text [default: 128, or as many as the model has positions]
    #[arg(long)]
    seq: Option<usize>,
    /// Steps
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    steps: u64,
    /// Learning rate
    #[arg(long, value_parser = not_negative, default_value = "1e-3")]
    lr: f32,
    #[command(flatten)]
    optimizer: Optimizer,
    /// Begin with fresh values as the model's modules draw them, not with the directory's weights
    #[arg(long)]
    from_scratch: bool,
    /// Seed of the windows of --text, of --from-scratch and of random operations [default: 0, or that of the run that is resumed]
    #[arg(long)]
    seed: Option<u64>,
    /// Directory for checkpoints: parameters, optimizer state and step, to go on from on any mesh; one is written at the end
    #[arg(long, value_name = "DIR")]
    checkpoint: Option<PathBuf>,
    /// Write a checkpoint after every N steps, too
    #[arg(long, value_name = "N", requires = "checkpoint", value_parser = clap::value_parser!(u64).range(1..))]
    save_every: Option<u64>,
    /// Keep only the latest K checkpoints
    #[arg(long, value_name = "K", requires = "checkpoint")]
    keep: Option<NonZeroUsize>,
    /// Go on from the latest checkpoint, up to --steps in all; from the beginning if there is none yet
    #[arg(long, requires = "checkpoint")]
    resume: bool,
    /// Directory for config.json and the trained weights, whole and under the model's own names
    #[arg(long, value_name = "DIR")]
    save: Option<PathBuf>,
    /// File for the first step's gradients, under the model's own names
    #[arg(long, value_name = "FILE.safetensors", conflicts_with = "resume")]
    grads: Option<PathBuf>,
    /// File for one JSON object per step: step, loss, ms, tokens_per_s, and grad_norm with --clip-norm
    #[arg(long, value_name = "FILE.jsonl")]
    metrics: Option<PathBuf>,
}

/// Where batches come from.
enum Source {
    Fixed(Batch),
    Windows(Text, TokenBatch),
}

impl Source {
    fn tokens(&self) -> TokenBatch {
        match self {
            Source::Fixed(batch) => batch.tokens,
            Source::Windows(_, tokens) => *tokens,
        }
    }

    /// Writes the batch of a step, counted from 0; `first` if it is the first of this session.
    fn feed(&self, session: &mut Session, step: usize, first: bool) -> Outcome {
        match self {
            // Inputs keep their contents.
            Source::Fixed(batch) if first => batch.feed(session)?,
            Source::Fixed(_) => {}
            Source::Windows(text, _) => {
                let ids = text.batch(step);
                feed(session, "input_ids", &ids)?;
                feed(session, "labels", &ids)?;
            }
        }
        Ok(())
    }
}

/// A model as it was found: its directory with weights, or only its configuration.
struct Model {
    config: ModelConfig,
    json: serde_json::Value,
    map: WeightMap,
    dir: Option<ModelDir>,
}

impl Train {
    pub(super) fn execute(&self, terminal: &mut Terminal) -> Outcome {
        self.optimizer.check()?;
        let (mesh, plan) = (self.placement.executed_mesh()?, self.placement.plan()?);
        let resumed = self.resumed(terminal)?;
        let seed = self.seed(resumed.as_ref())?;
        if let Some(done) = resumed.as_ref().map(Checkpoint::step).filter(|done| *done >= self.steps) {
            terminal.note(format!("{done} steps are done already; --steps {} counts them, too", self.steps));
        }
        let mut options = self.placement.options(self.grads.is_some(), seed)?;
        options.step = self.step.options(true)?;
        let model = self.open(terminal)?;
        let source = self.source(&model.config, seed)?;
        let TokenBatch { batch, seq, .. } = source.tokens();
        let copies = 1 + self.optimizer.states();
        model.config.check_memory([batch, seq], executed(&self.running, mesh.ranks(), copies))?;
        let dropout = model.config.ignored_dropout();
        if dropout > 0.0 {
            terminal.note(format!("the configuration asks for dropout {dropout}, which is not applied"));
        }
        self.check_outputs()?;
        let capture = self.optimizer.capture(&model.config, source.tokens())?;
        let names = names(&model.config);
        let rename = |path: &str| names.get(path).cloned().unwrap_or_else(|| path.to_string());
        let program =
            compile_training(capture, &mesh, &plan, &options, &rename).map_err(|e| self.placement.failure(e))?;
        let init = program.init.clone();
        let mut training = program.launch(self.running.options())?;
        let begin = |training: &mut TrainingSession| -> Outcome {
            match (&resumed, &model.dir) {
                (Some(checkpoint), _) => _ = training.resume_from(checkpoint)?,
                (None, Some(dir)) => load_weights(training.session(), &model.map, &dir.weights)?,
                (None, None) => initialise_model(training.session(), &init, seed, &model.config)?,
            }
            Ok(())
        };
        begin(&mut training)?;
        self.steps(&mut training, &source, &model.map, terminal, &begin)?;
        if let Some(dir) = &self.save {
            save(training.session(), &model.map, &model.json, dir)?;
            terminal.print(format!("saved {}\n", dir.display()))?;
        }
        Ok(())
    }

    /// The checkpoint to go on from.
    fn resumed(&self, terminal: &mut Terminal) -> Outcome<Option<Checkpoint>> {
        let Some(dir) = &self.checkpoint else { return Ok(None) };
        if !self.resume {
            return match saved(dir)?.last() {
                Some(latest) => Err(Failure::at(
                    dir,
                    format!(
                        "holds checkpoints already, the latest of step {}; go on from it with --resume or choose another directory",
                        latest.step
                    ),
                )),
                None => Ok(None),
            };
        }
        match Checkpoint::latest(dir) {
            Err(nothing @ CheckpointError::NoCheckpoint { .. }) => {
                terminal.note(format!("{nothing}; training starts from the beginning"));
                Ok(None)
            }
            Err(error) => Err(error.into()),
            Ok(checkpoint) => Ok(Some(checkpoint)),
        }
    }

    /// The seed of the run; a run that is resumed keeps its own.
    fn seed(&self, resumed: Option<&Checkpoint>) -> Outcome<u64> {
        match (self.seed, resumed) {
            (Some(seed), Some(checkpoint)) if seed != checkpoint.seed() => Err(Failure::at(
                checkpoint.dir(),
                format!("was written with --seed {}, not {seed}; leave --seed out to go on from it", checkpoint.seed()),
            )),
            (_, Some(checkpoint)) => Ok(checkpoint.seed()),
            (seed, None) => Ok(seed.unwrap_or(0)),
        }
    }

    /// Writes a checkpoint if it is time.
    fn checkpoint(&self, training: &TrainingSession, step: u64, tell: bool, terminal: &mut Terminal) -> Outcome {
        let Some(dir) = &self.checkpoint else { return Ok(()) };
        if step != self.steps && !self.save_every.is_some_and(|every| step.is_multiple_of(every)) {
            return Ok(());
        }
        let options = SaveOptions { keep: self.keep, ..SaveOptions::default() };
        let path = training.save_checkpoint_with(dir, &options)?;
        if tell { terminal.print(format!("checkpoint {}\n", path.display())) } else { Ok(()) }
    }

    fn open(&self, terminal: &mut Terminal) -> Outcome<Model> {
        if !self.from_scratch {
            let dir = ModelDir::open(&self.model)?;
            dir.warnings.iter().for_each(|warning| terminal.note(warning));
            let (config, json, map) = (dir.config.clone(), dir.config_json.clone(), dir.weight_map());
            return Ok(Model { config, json, map, dir: Some(dir) });
        }
        let file = self.model.join("config.json");
        let (config, warnings) = ModelConfig::read_warned(&file)?;
        warnings.iter().for_each(|warning| terminal.note(warning));
        let (json, map) = (config.to_json(), weight_map(&config));
        Ok(Model { config, json, map, dir: None })
    }

    fn source(&self, config: &ModelConfig, seed: u64) -> Outcome<Source> {
        match (&self.inputs, &self.text) {
            (Some(file), _) => {
                let batch = Batch::read(file, config)?;
                if !batch.has_labels() {
                    return Err(Failure::at(file, "no tensor \"labels\": training needs them"));
                }
                Ok(Source::Fixed(batch))
            }
            (None, Some(file)) => {
                let seq = self.seq.unwrap_or(128.min(config.max_positions()));
                let text = Text::read(file, config, self.batch, seq, seed)?;
                Ok(Source::Windows(text, TokenBatch::new(self.batch, seq)))
            }
            (None, None) => Err(Failure::new("training needs data: --inputs or --text")),
        }
    }

    fn check_outputs(&self) -> Outcome {
        if !leads() {
            return Ok(());
        }
        self.save.iter().chain(&self.checkpoint).try_for_each(|dir| check_dir(dir))?;
        self.grads.iter().chain(&self.metrics).try_for_each(|file| check_file(file))
    }

    fn steps(
        &self,
        training: &mut TrainingSession,
        source: &Source,
        map: &WeightMap,
        terminal: &mut Terminal,
        begin: &dyn Fn(&mut TrainingSession) -> Outcome,
    ) -> Outcome {
        let TokenBatch { batch, seq, .. } = source.tokens();
        let done = training.steps_done() as u64;
        let metrics = self.metrics.as_deref().filter(|_| leads());
        let mut metrics = metrics.map(|path| Metrics::new(path, done)).transpose()?;
        let bar = progress(self.steps);
        bar.set_position(done);
        for step in done + 1..=self.steps {
            source.feed(training.session(), step as usize - 1, step == done + 1)?;
            let start = Instant::now();
            let loss = training.step(f64::from(self.lr))?;
            let seconds = start.elapsed().as_secs_f64();
            let rate = (batch * seq) as f64 / seconds;
            // What is read comes from all processes, whoever writes it.
            let norm = self.metrics.as_ref().map_or(Ok(None), |_| norm(training.session()))?;
            if let Some(metrics) = &mut metrics {
                metrics.write(step, loss, seconds * 1e3, rate, norm)?;
            }
            if !loss.is_finite() {
                let first = step == done + 1;
                return Err(if first { no_number(training, map, step, loss, begin)? } else { diverged(step, loss) });
            }
            bar.set_message(format!("loss {loss:.4}  {rate:.0} tokens/s"));
            bar.inc(1);
            if bar.is_hidden() && is_told(step, self.steps) {
                terminal.print(format!("step {step}/{}  loss {loss:.6}  {rate:.0} tokens/s\n", self.steps))?;
            }
            if let (1, Some(file)) = (step, &self.grads) {
                write_gradients(training.session(), map, file)?;
            }
            self.checkpoint(training, step, bar.is_hidden(), terminal)?;
        }
        bar.finish();
        Ok(())
    }
}

/// Why the loss of a session's first step is no number. The weights that it began with are put back and looked at; the learning rate has
/// no part in it.
fn no_number(
    training: &mut TrainingSession,
    map: &WeightMap,
    step: u64,
    loss: f64,
    begin: &dyn Fn(&mut TrainingSession) -> Outcome,
) -> Outcome<Failure> {
    begin(training)?;
    let found = condition(training.session(), map)?;
    Ok(Failure::new(match (found.not_finite, found.largest) {
        (Some((tensor, value)), _) => {
            format!("the loss of step {step} is {loss} because the weights are not finite: {tensor} holds {value}")
        }
        (None, Some((tensor, largest))) => format!(
            "the loss of step {step} is {loss} although all weights are finite: a value in between is too large \
             for its element type; the largest weight is {largest:e}, in {tensor}"
        ),
        (None, None) => format!("the loss of step {step} is {loss}"),
    }))
}

fn diverged(step: u64, loss: f64) -> Failure {
    Failure::new(format!("the loss of step {step} is {loss}; a lower --lr may help"))
}

/// Of many steps, twenty are told.
fn is_told(step: u64, steps: u64) -> bool {
    step == 1 || step == steps || step.is_multiple_of(steps.div_ceil(20))
}

/// A bar on the standard error, hidden if that is no terminal.
fn progress(steps: u64) -> ProgressBar {
    let target = match leads() && std::io::stderr().is_terminal() {
        true => ProgressDrawTarget::stderr(),
        false => ProgressDrawTarget::hidden(),
    };
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len}  {msg}  {eta}");
    let bar = ProgressBar::with_draw_target(Some(steps), target);
    match style {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// A line of JSON for every step, there as soon as the step is done.
struct Metrics<'a> {
    path: &'a Path,
    file: File,
}

impl<'a> Metrics<'a> {
    /// Begins a file, or goes on with one behind the steps that are done.
    fn new(path: &'a Path, done: u64) -> Outcome<Self> {
        let earlier = match done {
            0 => String::new(),
            _ => fs::read_to_string(path).unwrap_or_default(),
        };
        // Steps behind the checkpoint are done again; an interrupted line is none.
        let step = |line: &str| serde_json::from_str::<serde_json::Value>(line).ok()?.get("step")?.as_u64();
        let kept = earlier.lines().filter(|line| step(line).is_some_and(|s| s <= done)).map(|line| format!("{line}\n"));
        Pending::new(path)?.write(kept.collect::<String>().as_bytes())?;
        let file = File::options().append(true).open(path).map_err(|e| Failure::at(path, e))?;
        Ok(Metrics { path, file })
    }

    fn write(&mut self, step: u64, loss: f64, ms: f64, rate: f64, norm: Option<f64>) -> Outcome {
        let mut line = json!({"step": step, "loss": loss, "ms": ms, "tokens_per_s": rate});
        if let Some(norm) = norm {
            line[GRAD_NORM] = norm.into();
        }
        self.file.write_all(format!("{line}\n").as_bytes()).map_err(|e| Failure::at(self.path, e))
    }
}

/// The norm of all gradients before clipping, if they are clipped.
fn norm(session: &Session) -> Outcome<Option<f64>> {
    let kind = OutputKind::Result(GRAD_NORM.into());
    let clipped = session.program(0).outputs.iter().any(|o| o.kind == kind);
    Ok(if clipped { session.read_f64(&kind)?.first().copied() } else { None })
}

/// Writes the gradients of the step that was just done.
fn write_gradients(session: &Session, map: &WeightMap, file: &Path) -> Outcome {
    let mut values: HashMap<String, Vec<f32>> = HashMap::new();
    for output in &session.program(0).outputs {
        if let OutputKind::Gradient(name) = &output.kind {
            let gradient = session.read_f64(&output.kind)?.into_iter().map(|v| v as f32).collect();
            values.insert(name.clone(), gradient);
        }
    }
    let has_gradient = |entry: &&WeightEntry| values.contains_key(&entry.hf_name);
    let entries = map.entries.iter().filter(has_gradient).cloned().collect();
    let write =
        || write_weights(file, &WeightMap { entries }, |entry| Ok(values.remove(&entry.hf_name).unwrap_or_default()));
    let written = if leads() { write().map_err(LoadError::from) } else { Ok(()) };
    session.agree("write gradients", written, |()| Vec::new())?;
    Ok(())
}
