//! `tpc train`: training steps on a fixed batch or on a text.

use crate::data::{Batch, Kept, Text, feed};
use crate::files::{self, Files, check_dir, unwritable};
use crate::given::Given;
use crate::launch::{Running, leads};
use crate::notes::note_idle_ranks;
use crate::options::StepArguments;
use crate::saving::SaveArgs;
use crate::settings::{compare_files, model_files};
use crate::subject::{Optimizer, executed, not_negative};
use crate::{Failure, Outcome, Placement, Terminal};
use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{IsTerminal, Write};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Instant;
use tpc_compiler::models::{
    Alphabet, ModelConfig, ModelDir, ModelError, WeightEntry, WeightMap, tokenizer, weight_map, write_weights,
};
use tpc_compiler::pretrained::{
    LoadError, TokenBatch, condition, copy_companions, draw_missing, initialise_model, load_weights, names, save_as,
};
use tpc_compiler::program::{TrainingProgram, TrainingSession, compile_training_together};
use tpc_ir::quote::cut;
use tpc_ir::{Mesh, OutputKind};
use tpc_passes::options::clip::GRAD_NORM;
use tpc_runtime::checkpoint::directory::saved;
use tpc_runtime::checkpoint::index::FILE as INDEX;
use tpc_runtime::checkpoint::{Checkpoint, SaveOptions};
use tpc_runtime::launch::stop::{Signal, Stop};
use tpc_runtime::output::{Identity, Output};
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
    pub(crate) running: Running,
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
    /// Let --save replace the model that is read
    #[arg(long, requires = "save")]
    force: bool,
    #[command(flatten)]
    saving: SaveArgs,
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
    /// The characters that its tokens stand for.
    fn alphabet(&self) -> Option<&Alphabet> {
        match self {
            Source::Fixed(_) => None,
            Source::Windows(text, _) => Some(text.alphabet()),
        }
    }

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

/// Outputs whose places are found before the first step.
#[derive(Default)]
struct Outputs {
    grads: Option<Output>,
    metrics: Option<Output>,
}

/// A model as it was found: its directory with weights, or only its configuration.
struct Model {
    config: ModelConfig,
    json: serde_json::Value,
    map: WeightMap,
    dir: Option<ModelDir>,
}

impl Train {
    /// The files that all processes must have in common, but for large weights and checkpoints.
    pub(crate) fn reads(&self) -> Vec<(String, PathBuf)> {
        let data = [("--inputs", &self.inputs), ("--text", &self.text)];
        let data = data.into_iter().filter_map(|(option, file)| Some((option.to_string(), file.clone()?)));
        model_files(&self.model, !self.from_scratch).into_iter().chain(data).collect()
    }

    pub(crate) fn execute(&self, given: &Given, terminal: &mut Terminal) -> Outcome {
        self.optimizer.check(given)?;
        if self.inputs.is_some() {
            given.refuse(&["batch", "seq"], "with --inputs, whose batch is as large as it is")?;
        }
        let (mesh, plan) = (self.placement.executed_mesh()?, self.placement.plan()?);
        let resumed = self.resumed(terminal)?;
        let seed = self.seed(resumed.as_ref())?;
        if let Some(checkpoint) = &resumed {
            let (done, steps) = (checkpoint.step(), self.steps);
            if done > steps {
                let problem =
                    format!("{done} steps are done already, more than --steps {steps}, which counts them, too");
                return Err(Failure::at(checkpoint.dir(), problem));
            }
            if done == steps {
                terminal.note(format!("{done} steps are done already; --steps {steps} counts them, too"));
            }
        }
        let mut options = self.placement.options(self.grads.is_some(), seed)?;
        options.step = self.step.options(true, given)?;
        let model = self.open(terminal)?;
        self.check_files(&model)?;
        self.compare(&model, resumed.as_ref())?;
        let kept = self.kept(&model, resumed.as_ref())?;
        let source = self.source(&model, kept.as_ref(), seed)?;
        let TokenBatch { batch, seq, .. } = source.tokens();
        let copies = 1 + self.optimizer.states();
        model.config.check_memory([batch, seq], executed(&self.running, mesh.ranks(), copies))?;
        let outputs = self.outputs()?;
        self.note(&mesh, given, terminal);
        self.placement.note(&mesh, &plan, terminal)?;
        if let (Source::Windows(text, _), None, false) = (&source, &kept, self.from_scratch && resumed.is_none()) {
            terminal.note(format!(
                "nothing says which characters the tokens of {} stand for: the {} of the text are numbered from 0",
                cut(&resumed.as_ref().map_or(&*self.model, Checkpoint::dir).display().to_string()),
                text.alphabet().len()
            ));
        }
        let dropout = model.config.ignored_dropout();
        if dropout > 0.0 {
            terminal.note(format!("the configuration asks for dropout {dropout}, which is not applied"));
        }
        let capture = self.optimizer.capture(&model.config, source.tokens())?;
        let names = names(&model.config);
        let rename = |path: &str| names.get(path).cloned().unwrap_or_else(|| path.to_string());
        let launch = self.running.options()?;
        let note = |program: &TrainingProgram| {
            note_idle_ranks(&program.steady.placed, &plan, self.step.micro_batches, terminal);
        };
        let program = compile_training_together(capture, &mesh, &plan, &options, &rename, &launch, note)
            .map_err(|e| self.placement.failure(e))?;
        let init = program.init.clone();
        let mut training = program.launch(launch)?;
        let alphabet = source.alphabet().or(kept.as_ref().map(|kept| &kept.alphabet));
        let save_options = SaveOptions {
            keep: self.keep,
            alphabet: alphabet.map(|alphabet| alphabet.characters().to_string()),
            ..SaveOptions::default()
        };
        let begin = |training: &mut TrainingSession| -> Outcome {
            match (&resumed, &model.dir) {
                (Some(checkpoint), _) => _ = training.resume_from(checkpoint)?,
                (None, Some(dir)) => {
                    load_weights(training.session(), &model.map, &dir.weights)?;
                    draw_missing(training.session(), &init, seed, &model.map, &dir.weights)?;
                }
                (None, None) => initialise_model(training.session(), &init, seed, &model.config)?,
            }
            Ok(())
        };
        begin(&mut training)?;
        self.steps(&mut training, &source, &model.map, (outputs, &save_options), terminal, &begin)?;
        if let Some(dir) = &self.save {
            save_as(training.session(), &model.map, &model.json, dir, self.saving.saving())?;
            copy_companions(training.session(), &self.model, dir)?;
            let written = if leads() { Alphabet::save(alphabet, dir).map_err(LoadError::from) } else { Ok(()) };
            training.session().agree("save the alphabet", written, |()| Vec::new())?;
            terminal.print(format!("saved {}\n", dir.display()))?;
        }
        Ok(())
    }

    /// Tells what the options of this run leave undone.
    fn note(&self, mesh: &Mesh, given: &Given, terminal: &mut Terminal) {
        self.running.note(mesh.ranks(), terminal);
        if self.save.is_none() && self.checkpoint.is_none() {
            terminal.note(
                "nothing will be kept of what is trained: --save DIR keeps the model, --checkpoint DIR its state, too",
            );
        }
        if let Some(every) = self.save_every.filter(|&every| every > self.steps) {
            terminal.note(format!(
                "--save-every {every} has no effect: there are only {} steps, and a checkpoint after the last one",
                self.steps
            ));
        }
        if self.lr == 0.0 {
            terminal.note("--lr 0: no step changes any weight");
        }
        if given.has("seed") && self.text.is_none() && !self.from_scratch {
            terminal.note("--seed has no effect: the batch and the weights are given, and nothing else is drawn");
        }
    }

    /// An error if two files of this run are one, or --save would replace the model that is read.
    fn check_files(&self, model: &Model) -> Outcome {
        let replaces = |dir: &PathBuf| Identity::of(dir) == Identity::of(&self.model);
        let replacing = self.save.as_ref().is_some_and(replaces);
        if replacing && !self.force {
            return Err(Failure::at(
                &self.model,
                "--save would replace the model that is read: give another directory, or --force to replace it",
            ));
        }
        if self.force && !replacing {
            return Err(Failure::new(
                "--force has no effect: --save names another directory than the model's; leave it out",
            ));
        }
        let mut files = self.placement.read(Files::default());
        for (option, input) in [("--inputs", &self.inputs), ("--text", &self.text)] {
            files = input.iter().fold(files, |files, path| files.reads(option, path));
        }
        files = match (&model.dir, replacing) {
            (_, true) => files,
            (Some(dir), false) => files.reads_model(dir),
            (None, false) => files.reads("MODEL_DIR", &self.model.join("config.json")),
        };
        let saved =
            |dir: &PathBuf| [dir.clone(), dir.join("config.json"), dir.join("model.safetensors"), Alphabet::file(dir)];
        let saved: Vec<PathBuf> = self.save.iter().flat_map(saved).collect();
        let files = files.writes("--save", &saved).writes("--checkpoint", &self.checkpoint);
        files.writes("--grads", &self.grads).writes("--metrics", &self.metrics).check()
    }

    /// The characters that the model's tokens stand for, if it was trained on a text.
    fn kept(&self, model: &Model, resumed: Option<&Checkpoint>) -> Outcome<Option<Kept>> {
        if let Some(checkpoint) = resumed {
            let way_out = "begin anew with another --checkpoint";
            return match checkpoint.alphabet().map(Alphabet::kept) {
                None => Ok(None),
                Some(Some(alphabet)) => Ok(Some(Kept { alphabet, place: checkpoint.dir().to_path_buf(), way_out })),
                Some(None) => Err(Failure::at(checkpoint.dir(), "a character occurs twice in its alphabet")),
            };
        }
        let (Some(_), Some(alphabet)) = (&model.dir, Alphabet::read(&self.model)?) else { return Ok(None) };
        Ok(Some(Kept { alphabet, place: Alphabet::file(&self.model), way_out: "begin anew with --from-scratch" }))
    }

    /// An error, on all processes, if they do not begin from the same weights or the same checkpoint.
    fn compare(&self, model: &Model, resumed: Option<&Checkpoint>) -> Outcome {
        let weights =
            model.dir.as_ref().map(|dir| dir.weights.files().map(Path::to_path_buf).collect()).unwrap_or_default();
        // An index has the digests of all tensors in it.
        let files = resumed.map_or(weights, |checkpoint| vec![checkpoint.dir().join(INDEX)]);
        compare_files(&files, &self.running)
    }

    /// The checkpoint to go on from.
    fn resumed(&self, terminal: &mut Terminal) -> Outcome<Option<Checkpoint>> {
        let Some(dir) = &self.checkpoint else { return Ok(None) };
        if dir.join(INDEX).is_file() {
            return Err(Failure::at(dir, "is itself a checkpoint: --checkpoint takes the directory that holds it"));
        }
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

    /// Writes a checkpoint if it is time, or if a signal asks for the end: then it is one, and what is kept is told.
    fn checkpoint(
        &self,
        training: &TrainingSession,
        (step, options): (u64, &SaveOptions),
        asked: Option<Signal>,
        tell: bool,
        terminal: &mut Terminal,
    ) -> Outcome {
        let Some(dir) = &self.checkpoint else { return Ok(()) };
        let is_time = step == self.steps || self.save_every.is_some_and(|every| step.is_multiple_of(every));
        if !is_time && asked.is_none() {
            return Ok(());
        }
        let path = training.save_checkpoint_with(dir, options)?;
        let Some(signal) = asked else {
            return if tell { terminal.print(format!("checkpoint {}\n", path.display())) } else { Ok(()) };
        };
        let with = if self.resume { "" } else { " with --resume" };
        let kept = format!(
            "{signal} ended the run after step {step} of {}, which is kept in {}; the same command{with} goes on from there",
            self.steps,
            path.display()
        );
        Err(Failure::Stopped(signal.exit_code(), kept))
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

    fn source(&self, model: &Model, kept: Option<&Kept>, seed: u64) -> Outcome<Source> {
        let config = &model.config;
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
                if let (None, Some(tokenizer)) = (kept, tokenizer(&self.model)) {
                    return Err(Failure::at(
                        &tokenizer,
                        "the model's tokens are those of a tokenizer, but --text numbers characters: encode the text \
                         with the tokenizer and give input_ids and labels as --inputs, or begin a model of characters \
                         with --from-scratch in a directory that holds only a config.json",
                    ));
                }
                let text = Text::read(file, config, [self.batch, seq], seed, kept)?;
                Ok(Source::Windows(text, TokenBatch::new(self.batch, seq)))
            }
            (None, None) => Err(Failure::new("training needs data: --inputs or --text")),
        }
    }

    /// Finds the places of all that is written.
    fn outputs(&self) -> Outcome<Outputs> {
        if !leads() {
            return Ok(Outputs::default());
        }
        self.save.iter().chain(&self.checkpoint).try_for_each(|dir| check_dir(dir))?;
        let [grads, metrics] = [&self.grads, &self.metrics].map(|path| path.as_deref().map(files::output).transpose());
        Ok(Outputs { grads: grads?, metrics: metrics? })
    }

    fn steps(
        &self,
        training: &mut TrainingSession,
        source: &Source,
        map: &WeightMap,
        (outputs, save_options): (Outputs, &SaveOptions),
        terminal: &mut Terminal,
        begin: &dyn Fn(&mut TrainingSession) -> Outcome,
    ) -> Outcome {
        let TokenBatch { batch, seq, .. } = source.tokens();
        let done = training.steps_done() as u64;
        let Outputs { mut grads, metrics } = outputs;
        let mut metrics = metrics.map(|output| Metrics::new(output, done)).transpose()?;
        let bar = progress(self.steps);
        bar.set_position(done);
        // Without a checkpoint there is nothing to finish for.
        let processes = training.session().processes().clone();
        let stop = self.checkpoint.is_some().then(|| Stop::catch(&*processes));
        let deadline = self.running.options()?.deadline;
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
            if step == 1 && self.grads.is_some() {
                write_gradients(training.session(), map, grads.take())?;
            }
            let asked = stop.as_ref().map_or(Ok(None), |stop| stop.asked(deadline))?;
            if asked.is_some() {
                bar.abandon();
            }
            self.checkpoint(training, (step, save_options), asked, bar.is_hidden(), terminal)?;
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
struct Metrics {
    path: PathBuf,
    file: File,
}

impl Metrics {
    /// Begins a file, or goes on with one behind the steps that are done.
    fn new(output: Output, done: u64) -> Outcome<Self> {
        let earlier = match (done, output.replaced()) {
            (0, _) | (_, None) => String::new(),
            (_, Some(file)) => fs::read_to_string(file).unwrap_or_default(),
        };
        // Steps behind the checkpoint are done again; an interrupted line is none.
        let step = |line: &str| serde_json::from_str::<serde_json::Value>(line).ok()?.get("step")?.as_u64();
        let kept = earlier.lines().filter(|line| step(line).is_some_and(|s| s <= done)).map(|line| format!("{line}\n"));
        let (path, kept) = (output.path().to_path_buf(), kept.collect::<String>());
        let begun = || {
            let mut writing = output.begin()?;
            writing.write_all(kept.as_bytes())?;
            writing.commit()
        };
        let file = begun().map_err(|e| unwritable(&path, e))?;
        Ok(Metrics { path, file })
    }

    fn write(&mut self, step: u64, loss: f64, ms: f64, rate: f64, norm: Option<f64>) -> Outcome {
        let mut line = json!({"step": step, "loss": loss, "ms": ms, "tokens_per_s": rate});
        if let Some(norm) = norm {
            line[GRAD_NORM] = norm.into();
        }
        self.file.write_all(format!("{line}\n").as_bytes()).map_err(|e| unwritable(&self.path, e))
    }
}

/// The norm of all gradients before clipping, if they are clipped.
fn norm(session: &Session) -> Outcome<Option<f64>> {
    let kind = OutputKind::Result(GRAD_NORM.into());
    let clipped = session.program(0).outputs.iter().any(|o| o.kind == kind);
    Ok(if clipped { session.read_f64(&kind)?.first().copied() } else { None })
}

/// Writes the gradients of the step that was just done; of several processes one has the output.
fn write_gradients(session: &Session, map: &WeightMap, output: Option<Output>) -> Outcome {
    let mut values: HashMap<String, Vec<f32>> = HashMap::new();
    for output in &session.program(0).outputs {
        if let OutputKind::Gradient(name) = &output.kind {
            let gradient = session.read_f64(&output.kind)?.into_iter().map(|v| v as f32).collect();
            values.insert(name.clone(), gradient);
        }
    }
    let has_gradient = |entry: &&WeightEntry| values.contains_key(entry.name());
    let entries = map.entries.iter().filter(has_gradient).cloned().collect();
    let mut value = |entry: &WeightEntry| Ok::<_, ModelError>(values.remove(entry.name()).unwrap_or_default());
    let write = |output| write_weights(output, &WeightMap { entries }, &mut value).map_err(LoadError::from);
    let written = output.map_or(Ok(()), write);
    session.agree("write gradients", written, |()| Vec::new())?;
    Ok(())
}
