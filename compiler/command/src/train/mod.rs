//! `tpc train`: training steps on texts, or on a fixed batch.
//!
//! | question | file |
//! |---|---|
//! | the batches | `data`, `alphabet` |
//! | the learning rate of a step | [`schedule`] |
//! | the steps | `steps` |
//! | the loss on held-out data, the best checkpoint | `evaluation` |
//! | what a checkpoint keeps in addition to the tensors | `state` |
//! | metrics as JSON lines and TensorBoard's events; their files | `metrics`, `events`; `outputs` |
//! | progress and speed | `progress`, `speed` |
//! | gradients in a file | `gradients` |
//! | why a loss is not finite | `failure` |

mod alphabet;
mod data;
mod evaluation;
mod events;
mod failure;
mod gradients;
mod metrics;
mod outputs;
mod progress;
pub mod schedule;
mod speed;
mod state;
mod steps;

use crate::auto::Auto;
use crate::files::{self, Files, check_dir};
use crate::given::Given;
use crate::launch::{Running, leads};
use crate::notes::note_idle_ranks;
use crate::options::StepArguments;
use crate::saving::SaveArgs;
use crate::settings::{compare_files, data_files, model_files};
use crate::subject::{Optimizer, executed};
use crate::trace::Traced;
use crate::{Failure, Outcome, Placement, Terminal};
use alphabet::Kept;
use clap::Args;
use data::{DataArguments, Learner, Source};
use outputs::Outputs;
use schedule::{Schedule, ScheduleArguments};
use speed::Work;
use state::State;
use std::cell::Cell;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};
use tpc_compiler::models::{Alphabet, ModelConfig, ModelDir, WeightMap, weight_map};
use tpc_compiler::plans::Workload;
use tpc_compiler::pretrained::{
    LoadError, TokenBatch, capture_evaluation, copy_companions, draw_missing, initialize_model, load_weights, names,
    save_as,
};
use tpc_compiler::program::{TrainingProgram, TrainingSession, compile_training_together};
use tpc_ir::Mesh;
use tpc_passes::cost::product_flops;
use tpc_runtime::CheckpointError;
use tpc_runtime::checkpoint::directory::saved;
use tpc_runtime::checkpoint::index::FILE as INDEX;
use tpc_runtime::checkpoint::{Checkpoint, SaveOptions};
use tpc_runtime::output::Identity;

/// Train a model; the result is a model directory.
#[derive(Debug, Args)]
pub struct Train {
    /// Directory with config.json and safetensors
    #[arg(value_name = "MODEL_DIR")]
    model: PathBuf,
    #[command(flatten)]
    placement: Placement,
    #[command(flatten)]
    auto: Auto,
    #[command(flatten)]
    pub(crate) running: Running,
    #[command(flatten)]
    step: StepArguments,
    #[command(flatten)]
    data: DataArguments,
    /// Number of steps
    #[arg(long, required_unless_present = "epochs", value_parser = clap::value_parser!(u64).range(1..))]
    steps: Option<u64>,
    /// Number of epochs: passes over --data, which are read once to count the steps
    #[arg(long, value_name = "N", conflicts_with_all = ["steps", "inputs"], value_parser = clap::value_parser!(u64).range(1..))]
    epochs: Option<u64>,
    #[command(flatten)]
    schedule: ScheduleArguments,
    #[command(flatten)]
    optimizer: Optimizer,
    /// Evaluate --eval-data or the --held-out share after every N steps, and after the last one [default: only after
    /// the last one]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    eval_every: Option<u64>,
    /// Evaluate on the first N batches only
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    eval_batches: Option<u64>,
    /// Start with initial values from the model's modules instead of the directory's weights
    #[arg(long)]
    from_scratch: bool,
    /// Seed of the order of --data, of --from-scratch and of random operations [default: 0, or the seed of the resumed
    /// run]
    #[arg(long)]
    seed: Option<u64>,
    /// Directory for checkpoints (parameters, optimizer state, step and position in the data), which resume on any
    /// mesh; one is written at the end, and its directory `best` holds the one of the best evaluation
    #[arg(long, value_name = "DIR")]
    checkpoint: Option<PathBuf>,
    /// Also write a checkpoint after every N steps
    #[arg(long, value_name = "N", requires = "checkpoint", value_parser = clap::value_parser!(u64).range(1..))]
    save_every: Option<u64>,
    /// Keep only the latest K checkpoints
    #[arg(long, value_name = "K", requires = "checkpoint")]
    keep: Option<NonZeroUsize>,
    /// Resume from the latest checkpoint, up to --steps in total; start from the beginning if there is none
    #[arg(long, requires = "checkpoint")]
    resume: bool,
    /// Directory for config.json and the trained weights, whole and under the model's own names
    #[arg(long, value_name = "DIR")]
    save: Option<PathBuf>,
    /// Allow --save to replace the model that is read
    #[arg(long, requires = "save")]
    force: bool,
    #[command(flatten)]
    saving: SaveArgs,
    /// File for the gradients of the first step, under the model's own names
    #[arg(long, value_name = "FILE.safetensors", conflicts_with = "resume")]
    grads: Option<PathBuf>,
    /// File for one JSON object per step: step, loss, ms, tokens_per_s, lr, grad_norm with --clip-norm, epoch with
    /// --data, and eval_loss and eval_perplexity after evaluations
    #[arg(long, value_name = "FILE.jsonl")]
    metrics: Option<PathBuf>,
    /// Directory for the same metrics as TensorBoard event files
    #[arg(long, value_name = "DIR")]
    tensorboard: Option<PathBuf>,
    #[command(flatten)]
    traced: Traced,
}

/// A model: a directory with weights, or only a configuration.
struct Model {
    config: ModelConfig,
    json: serde_json::Value,
    map: WeightMap,
    dir: Option<ModelDir>,
}

/// The settings of a run, once its data are known.
struct Run<'a> {
    train: &'a Train,
    source: &'a Source,
    map: &'a WeightMap,
    /// Total number of steps.
    steps: u64,
    schedule: Schedule,
    work: Work,
    save: SaveOptions,
    /// The command line that resumes from a checkpoint of this run.
    again: String,
}

impl Train {
    /// The files that must be the same for all processes, except for large weights and checkpoints.
    pub(crate) fn reads(&self) -> Vec<(String, PathBuf)> {
        model_files(&self.model, !self.from_scratch).into_iter().chain(data_files(self.data.files())).collect()
    }

    pub(crate) fn execute(&self, given: &Given, terminal: &mut Terminal) -> Outcome {
        self.optimizer.check(given)?;
        if !self.data.evaluates() {
            given.refuse(
                &["eval_every", "eval_batches"],
                "without data to evaluate on: --eval-data FILE or --held-out SHARE",
            )?;
        }
        let ranks = self.auto.executed_ranks(&self.placement)?;
        let resumed = self.resumed(terminal)?;
        let seed = self.seed(resumed.as_ref())?;
        if let Some(steps) = self.steps {
            check_done(resumed.as_ref(), steps, terminal)?;
        }
        let mut options = self.placement.options(self.running.backend(), self.grads.is_some(), seed)?;
        options.step = self.step.options(true, given)?;
        let model = self.open(terminal)?;
        self.check_files(&model)?;
        self.compare(&model, resumed.as_ref())?;
        let state = State::of(resumed.as_ref())?;
        let kept = self.kept(&model, resumed.as_ref())?;
        let now = state.data.as_ref().map_or_else(now, |position| position.made.now);
        let learner = Learner { dir: &self.model, config: &model.config, kept: kept.as_ref(), seed, now };
        let source = self.data.source(&learner, given)?;
        let TokenBatch { batch, seq, .. } = source.tokens();
        let steps = self.count(&source, resumed.as_ref(), terminal)?;
        let schedule = self.schedule.of(steps, given)?;
        let copies = 1 + self.optimizer.states();
        model.config.check_memory([batch, seq], executed(&self.running, ranks, copies))?;
        let names = names(&model.config);
        let rename = |path: &str| names.get(path).cloned().unwrap_or_else(|| path.to_string());
        let workload = || {
            let capture = self.optimizer.capture(&model.config, source.tokens())?;
            Ok(Workload::of_training(&capture, &rename)?)
        };
        let (mesh, plan) = self.auto.chosen(&self.placement, workload, &options, terminal)?;
        let (outputs, trace) = (self.outputs()?, self.traced.output()?);
        self.note(&mesh, steps, given, terminal);
        if let Some(before) = state.steps.filter(|before| *before != steps && schedule.has_end()) {
            terminal.note(format!(
                "the learning rate now ends at step {steps}; so far the run was scheduled for {before} steps"
            ));
        }
        self.placement.note(&mesh, &plan, &options.target, terminal);
        let texts = source.texts();
        texts.iter().flat_map(|texts| &texts.notes).for_each(|note| terminal.note(note));
        let alphabet = texts.and_then(|texts| texts.alphabet.as_ref());
        if let (Some(alphabet), None, false) = (alphabet, &kept, self.from_scratch && resumed.is_none()) {
            terminal.note(format!(
                "the alphabet of {} is unknown: the {} characters of the text are numbered from 0",
                tpc_ir::quote::cut(&resumed.as_ref().map_or(&*self.model, Checkpoint::dir).display().to_string()),
                alphabet.len()
            ));
        }
        let dropout = model.config.ignored_dropout();
        if dropout > 0.0 {
            terminal.note(format!("the configuration has dropout {dropout}, which is not applied"));
        }
        let capture = self.optimizer.capture(&model.config, source.tokens())?;
        let evaluates = texts.is_some_and(|texts| texts.evaluate.is_some());
        let evaluation = evaluates.then(|| capture_evaluation(&model.config, source.tokens())).transpose()?;
        let launch = self.traced.options(self.running.options()?);
        let flops = Cell::new(None);
        let note = |program: &TrainingProgram| {
            flops.set(Some(product_flops(&program.steady.logical)));
            note_idle_ranks(&program.steady.placed, &plan, self.step.micro_batches, terminal);
        };
        let program =
            compile_training_together((capture, evaluation.as_ref()), &mesh, &plan, &options, &rename, &launch, note)
                .map_err(|e| self.placement.failure(e))?;
        let init = program.init.clone();
        let flops = flops.get().filter(|_| texts.is_some());
        let work = Work::of(&self.running, flops, mesh.ranks(), (&options, self.placement.target.is_some()))?;
        let mut training = program.launch(launch)?;
        let alphabet = alphabet.or(kept.as_ref().map(|kept| &kept.alphabet));
        let run = Run {
            train: self,
            source: &source,
            map: &model.map,
            steps,
            schedule,
            work,
            save: SaveOptions {
                keep: self.keep,
                alphabet: alphabet.map(|alphabet| alphabet.characters().to_string()),
                ..SaveOptions::default()
            },
            again: if self.resume { String::new() } else { given.line_with("--resume") },
        };
        let begin = |training: &mut TrainingSession| -> Outcome {
            match (&resumed, &model.dir) {
                (Some(checkpoint), _) => _ = training.resume_from(checkpoint)?,
                (None, Some(dir)) => {
                    load_weights(training.session(), &model.map, &dir.weights)?;
                    draw_missing(training.session(), &init, seed, &model.map, &dir.weights)?;
                }
                (None, None) => initialize_model(training.session(), &init, seed, &model.config)?,
            }
            Ok(())
        };
        begin(&mut training)?;
        run.execute(&mut training, state, outputs, terminal, &begin)?;
        self.traced.write(training.session(), trace, terminal)?;
        if let Some(dir) = &self.save {
            save_as(training.session(), &model.map, &model.json, dir, self.saving.saving())?;
            copy_companions(training.session(), &self.model, dir)?;
            let written = if leads() { Alphabet::save(alphabet, dir).map_err(LoadError::from) } else { Ok(()) };
            training.session().agree("save the alphabet", written, |()| Vec::new())?;
            terminal.print(format!("saved {}\n", dir.display()))?;
        }
        Ok(())
    }

    /// Total number of steps.
    fn count(&self, source: &Source, resumed: Option<&Checkpoint>, terminal: &mut Terminal) -> Outcome<u64> {
        match (self.steps, self.epochs, source.texts()) {
            (Some(steps), ..) => Ok(steps),
            (None, Some(epochs), Some(texts)) => {
                let steps = texts.train.count(epochs)?.div_ceil(texts.tokens.batch as u64);
                check_done(resumed, steps, terminal)?;
                Ok(steps)
            }
            _ => Err(Failure::new("training needs --steps")),
        }
    }

    /// Notes consequences of the options that a user may not expect.
    fn note(&self, mesh: &Mesh, steps: u64, given: &Given, terminal: &mut Terminal) {
        self.running.note(mesh.ranks(), terminal);
        if self.save.is_none() && self.checkpoint.is_none() {
            terminal
                .note("the trained model will be lost: --save DIR keeps the model, --checkpoint DIR also its state");
        }
        if let Some(every) = self.save_every.filter(|&every| every > steps) {
            terminal.note(format!(
                "--save-every {every} has no effect: there are only {steps} steps, and a checkpoint after the last one"
            ));
        }
        if let Some(every) = self.eval_every.filter(|&every| every > steps) {
            terminal.note(format!(
                "--eval-every {every} has no effect: there are only {steps} steps, and an evaluation after the last one"
            ));
        }
        if self.schedule.lr == 0.0 {
            terminal.note("--lr 0: no step changes any weight");
        }
        if given.has("seed") && self.data.data.is_empty() && !self.from_scratch {
            terminal.note("--seed has no effect: the batch and the weights are given, and nothing else is drawn");
        }
    }

    /// An error if two files of this run are the same, or --save would replace the model that is read.
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
        for (option, input) in self.data.files() {
            files = files.reads(option, input);
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
        let files = files.writes("--grads", &self.grads).writes("--metrics", &self.metrics);
        self.traced.writes(files.writes("--tensorboard", &self.tensorboard)).check()
    }

    /// The alphabet of the model, if it was trained on characters.
    fn kept(&self, model: &Model, resumed: Option<&Checkpoint>) -> Outcome<Option<Kept>> {
        if let Some(checkpoint) = resumed {
            let way_out = "begin a new run with another --checkpoint";
            return match checkpoint.alphabet().map(Alphabet::kept) {
                None => Ok(None),
                Some(Some(alphabet)) => Ok(Some(Kept { alphabet, place: checkpoint.dir().to_path_buf(), way_out })),
                Some(None) => Err(Failure::at(checkpoint.dir(), "a character occurs twice in its alphabet")),
            };
        }
        let (Some(_), Some(alphabet)) = (&model.dir, Alphabet::read(&self.model)?) else { return Ok(None) };
        let way_out = "begin with fresh weights by --from-scratch";
        Ok(Some(Kept { alphabet, place: Alphabet::file(&self.model), way_out }))
    }

    /// An error, on all processes, if they do not start from the same weights or the same checkpoint.
    fn compare(&self, model: &Model, resumed: Option<&Checkpoint>) -> Outcome {
        let weights =
            model.dir.as_ref().map(|dir| dir.weights.files().map(Path::to_path_buf).collect()).unwrap_or_default();
        // An index contains the digests of all tensors.
        let files = resumed.map_or(weights, |checkpoint| vec![checkpoint.dir().join(INDEX)]);
        compare_files(&files, &self.running)
    }

    /// The checkpoint to resume from.
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
                        "already holds checkpoints, the latest of step {}; resume from it with --resume or choose another directory",
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

    /// The seed of the run; a resumed run keeps its seed.
    fn seed(&self, resumed: Option<&Checkpoint>) -> Outcome<u64> {
        match (self.seed, resumed) {
            (Some(seed), Some(checkpoint)) if seed != checkpoint.seed() => Err(Failure::at(
                checkpoint.dir(),
                format!(
                    "was written with --seed {}, not {seed}; leave --seed out to resume from it",
                    checkpoint.seed()
                ),
            )),
            (_, Some(checkpoint)) => Ok(checkpoint.seed()),
            (seed, None) => Ok(seed.unwrap_or(0)),
        }
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

    /// Resolves the places of all files that are written.
    fn outputs(&self) -> Outcome<Outputs> {
        if !leads() {
            return Ok(Outputs::default());
        }
        self.save.iter().chain(&self.checkpoint).chain(&self.tensorboard).try_for_each(|dir| check_dir(dir))?;
        let [grads, metrics] = [&self.grads, &self.metrics].map(|path| path.as_deref().map(files::output).transpose());
        Ok(Outputs { grads: grads?, metrics: metrics?, events: self.tensorboard.clone() })
    }
}

/// Seconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// An error if more steps are done than requested, a note if all are done.
fn check_done(resumed: Option<&Checkpoint>, steps: u64, terminal: &mut Terminal) -> Outcome {
    let Some(checkpoint) = resumed else { return Ok(()) };
    let done = checkpoint.step();
    if done > steps {
        let problem = format!("{done} steps are already done, but the total is --steps {steps}");
        return Err(Failure::at(checkpoint.dir(), problem));
    }
    if done == steps {
        terminal.note(format!("{done} steps are already done; --steps {steps} is the total"));
    }
    Ok(())
}
