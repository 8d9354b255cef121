//! Trains a burn model sharded: from a model, its optimizer and its batches to the trained model.
//!
//! ```ignore
//! let mut trainer = Trainer::new(move |device| MyModel::new(&config, device), AdamWConfig::new().build())
//!     .mesh([("dp", 2), ("tp", 2)])?
//!     .plan(Plan::new().with("blocks.*.mlp", PairwiseParallel).enable_2d_with_fsdp("dp"))
//!     .lr(CosineAnnealingLrSchedulerConfig::new(3e-4, steps).init()?)
//!     .compile(&example, |model, batch: MyBatch| model.loss(batch))?
//!     .launch()?;
//! for batch in loader.iter() {
//!     let step = trainer.step(&batch?)?;
//! }
//! let mut validation = trainer.evaluation(|model, batch: MyBatch| model.accuracy(batch), &example)?;
//! let accuracy = trainer.evaluate(&mut validation, &batch)?;
//! let model: MyModel = trainer.into_module(&device)?;
//! ```
//!
//! The training step, evaluations and steps on smaller batches are programs of one [session](tpc_runtime::Session):
//! they share the parameters in the ranks' arenas, and the same threads execute them. A program is compiled when it is
//! first needed.
//!
//! | question | file |
//! |---|---|
//! | options before compiling | this one |
//! | the model, and recording its programs | `source` |
//! | model directories, read and written by the ranks | `pretrained` |
//! | a compiled training step | `compiled` |
//! | steps, evaluations, checkpoints | `running` |
//! | which batches a program accepts | `batch` |
//! | learning rates | `rates` |
//! | from parameters to a module, to a file | `module`, `export` |
//! | the optimizer's state as burn's record, and back | `record` |
//! | the explanation of a step | `explain` |
//! | errors | `error` |

mod batch;
mod compiled;
mod error;
mod explain;
mod export;
mod module;
mod pretrained;
mod rates;
mod record;
mod running;
mod source;

pub use compiled::CompiledTrainer;
pub use error::TrainerError;
pub(crate) use rates::Schedule;
pub use running::{Evaluation, RunningTrainer, Step};

use crate::capture::{BatchData, Loss, Results, TrainingOptions};
use crate::error::Error;
use crate::program::CompileOptions;
use crate::target;
use burn::grad_clipping::GradientClippingConfig;
use burn::lr_scheduler::DynLrScheduler;
use burn::lr_scheduler::module_lr_scheduler::ModuleLrScheduler;
use burn::module::{Module, ParamGroup};
use burn::optim::Optimizer;
use burn::tensor::Device;
use rates::Rates;
use source::Source;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tpc_ir::Mesh;
use tpc_ir::mesh::MeshError;
use tpc_passes::egraph::SearchOptions;
use tpc_passes::options::Precision;
use tpc_passes::styles::Plan;
use tpc_passes::targets::Target;
use tpc_runtime::{Backend, LaunchOptions, Processes};

/// A model, its optimizer, and the options of their training before it is compiled.
pub struct Trainer<M, O> {
    source: Source<M>,
    optimizer: O,
    rates: Option<Box<dyn Schedule>>,
    rate_groups: Vec<(ParamGroup, DynLrScheduler)>,
    clipping: TrainingOptions,
    settings: Settings,
}

/// The settings that all programs of a trainer share.
#[derive(Clone)]
struct Settings {
    mesh: Mesh,
    plan: Plan,
    /// Has the target of the backend until [`Trainer::compile`] knows both.
    compile: CompileOptions,
    target: Option<Target>,
    /// The number of ranks for which mesh and plan are to be chosen.
    auto: Option<usize>,
    /// Whether the planner completes the plan.
    complete: bool,
    launch: LaunchOptions,
}

impl<M: Module + 'static, O: Optimizer + 'static> Trainer<M, O> {
    /// Trains the model that `build` returns, from initial values.
    ///
    /// `build` is called on a device that only records, so a model of any size takes no memory here. Each rank draws
    /// the values of its own part of each parameter from the distribution of the parameter's initializer and
    /// [`Trainer::seed`], the same on every mesh. For values that are not drawn element by element (orthogonal,
    /// truncated or scaled ones), `build` is called once on burn's CPU backend, after its generator gets the same seed,
    /// and every rank takes its part of the values. `build` is also called for every program that is compiled, and by
    /// [`RunningTrainer::into_module`] on the user's device; it must always build the same modules.
    pub fn new(build: impl Fn(&Device) -> M + 'static, optimizer: O) -> Self {
        Trainer::from_source(Source::Build(Box::new(build)), optimizer)
    }

    /// Trains a model from its current values, for example after loading or earlier training.
    ///
    /// The model is kept with its values, to record further programs and to build the trained module.
    pub fn of(model: M, optimizer: O) -> Self {
        Trainer::from_source(Source::Module(model), optimizer)
    }

    fn from_source(source: Source<M>, optimizer: O) -> Self {
        let launch = LaunchOptions::default();
        let settings = Settings {
            mesh: Mesh::single(),
            plan: Plan::new(),
            compile: CompileOptions::for_backend(launch.backend),
            target: None,
            auto: None,
            complete: false,
            launch,
        };
        let clipping = TrainingOptions::default();
        Trainer { source, optimizer, rates: None, rate_groups: Vec::new(), clipping, settings }
    }

    /// The mesh of ranks, as axes with their sizes: `[("dp", 2), ("tp", 2)]` are four ranks. The default is one rank.
    ///
    /// # Errors
    /// An invalid or repeated name, or a size of 0.
    pub fn mesh<N: Into<String>>(mut self, axes: impl IntoIterator<Item = (N, usize)>) -> Result<Self, MeshError> {
        self.settings.mesh = Mesh::new(axes)?;
        Ok(self)
    }

    /// [`Trainer::mesh`] with an existing mesh, for example one that [`Mesh::parse`] read from a text.
    #[must_use]
    pub fn on(mut self, mesh: Mesh) -> Self {
        self.settings.mesh = mesh;
        self
    }

    /// Which parameters are sharded along which axis, and the data mode. By default every rank computes everything.
    #[must_use]
    pub fn plan(mut self, plan: impl Into<Plan>) -> Self {
        self.settings.plan = plan.into();
        self
    }

    /// Chooses the mesh of so many ranks and the plan, in place of [`Trainer::mesh`] and [`Trainer::plan`]: of the
    /// built-in plans that fit into the memory of the target's ranks, the one whose step is predicted to be the fastest
    /// ([`plans`](crate::plans)). [`Trainer::compile`] compiles every candidate up to what the first rank executes, and
    /// fails with [`Error::Choice`] if none fits.
    #[must_use]
    pub fn auto(mut self, ranks: usize) -> Self {
        self.settings.auto = Some(ranks);
        self
    }

    /// Has the planner also store the parameters, states and data of which the plan says nothing, so that without a plan it
    /// finds data, tensor, sequence or sharded-data parallelism, or a mixture of them, by itself. Placements are then
    /// planned, as with [`Trainer::search`]. With [`Trainer::auto`], plans that the planner makes for a mesh are
    /// candidates, too. What it finds is in [`CompiledTrainer::plan`].
    #[must_use]
    pub fn complete(mut self) -> Self {
        self.settings.complete = true;
        self
    }

    /// The learning rate: a number, or a burn scheduler, which is asked once before each step. A resumed trainer asks
    /// it for the steps that are already done. Parameters whose rates differ in the first 256 steps form different
    /// groups; if rates within a group diverge later, that step is an error.
    #[must_use]
    pub fn lr(self, scheduler: impl Into<ModuleLrScheduler>) -> Self {
        self.scheduled(Box::new(scheduler.into()))
    }

    /// [`Trainer::lr`] with any schedule.
    pub(crate) fn scheduled(mut self, schedule: Box<dyn Schedule>) -> Self {
        self.rates = Some(schedule);
        self
    }

    /// A separate learning rate for a group of parameters; if a parameter is in several groups, the last one counts.
    /// Unlike a group of a scheduler, a group that matches no parameter is an error of [`Trainer::compile`].
    #[must_use]
    pub fn lr_group(mut self, group: ParamGroup, scheduler: impl Into<DynLrScheduler>) -> Self {
        self.rate_groups.push((group, scheduler.into()));
        self
    }

    /// Whether a learning rate was set.
    #[cfg(feature = "train")]
    pub(crate) fn has_rates(&self) -> bool {
        self.rates.is_some()
    }

    /// The clipping of each gradient.
    #[cfg(feature = "train")]
    pub(crate) fn clipping(&self) -> Option<&GradientClippingConfig> {
        self.clipping.clipping.as_ref()
    }

    /// Scales all gradients down if their global norm is larger than this.
    #[must_use]
    pub fn clip_norm(mut self, norm: f64) -> Self {
        self.settings.compile.step.clip_norm = Some(norm);
        self
    }

    /// Clips each gradient separately, as burn's optimizers do.
    #[must_use]
    pub fn clip_each(mut self, clipping: GradientClippingConfig) -> Self {
        self.clipping.clipping = Some(clipping);
        self
    }

    /// Splits each batch into this many parts, which are computed one after the other: activations need less memory,
    /// and loss and gradients stay the same. Values before a batch norm are kept for all parts, because the norm needs
    /// the statistics of the whole batch.
    #[must_use]
    pub fn micro_batches(mut self, count: usize) -> Self {
        self.settings.compile.step.micro_batches = count;
        self
    }

    /// Does not train the parameters and modules that match a pattern; `!pattern` trains some of them after all.
    #[must_use]
    pub fn freeze<P: Into<String>>(mut self, patterns: impl IntoIterator<Item = P>) -> Self {
        self.settings.compile.step.freeze.extend(patterns.into_iter().map(Into::into));
        self
    }

    /// Computes in bf16 from parameters in f32.
    #[must_use]
    pub fn precision(mut self, precision: Precision) -> Self {
        self.settings.compile.step.precision = Some(precision);
        self
    }

    /// Seed of initial values and of the model's random operations, for example dropout; the default is 0.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.settings.compile.seed = seed;
        self
    }

    /// What executes the ranks; the default is threads on the CPU.
    #[must_use]
    pub fn backend(mut self, backend: Backend) -> Self {
        self.settings.launch.backend = backend;
        self
    }

    /// The target that programs are compiled for: the rates of the devices and of the links between them. The default
    /// is the target of the backend. With these numbers the search weighs computation against communication, and
    /// reduces gradients inside nodes first if the target has nodes and the mesh has separate axes for them.
    #[must_use]
    pub fn target(mut self, target: impl Into<Target>) -> Self {
        self.settings.target = Some(target.into());
        self
    }

    /// What the search for a cheaper program may do: which rules of the e-graph it applies, what they may do to
    /// floating-point results, and whether the planner chooses where values lie. By default values lie where the plan's
    /// styles lead.
    #[must_use]
    pub fn search(mut self, search: SearchOptions) -> Self {
        self.settings.compile.search = search;
        self
    }

    /// The bytes of memory that a step may take on a rank. If it would take more, values of the forward pass are computed a
    /// second time for the backward pass. By default there is no limit.
    #[must_use]
    pub fn memory_limit(mut self, bytes: usize) -> Self {
        self.settings.compile.lower.memory = Some(bytes);
        self
    }

    /// The processes that run one rank each, from [`join`](tpc_runtime::launch::join). Every process makes the same
    /// calls on its trainer. By default all ranks are threads of this process.
    #[must_use]
    pub fn processes(mut self, processes: impl Into<Option<Arc<dyn Processes>>>) -> Self {
        self.settings.launch.processes = processes.into();
        self
    }

    /// The deadline of a collective; the default is one minute.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.settings.launch.deadline = deadline;
        self
    }

    /// Keeps this many of the latest actions of each rank with their times, for
    /// [`Session::trace_json`](tpc_runtime::Session::trace_json); the default is none. GPUs record none.
    #[must_use]
    pub fn trace(mut self, actions: usize) -> Self {
        self.settings.launch.trace = actions;
        self
    }

    /// Records the training step and compiles it for the mesh and the plan.
    ///
    /// Only the names, shapes and element types of `example` matter; it must be a batch of the largest size. The
    /// closure returns the loss, or a pair of the loss and further results, which each step returns as tensors.
    ///
    /// # Errors
    /// No learning rate, or one for a group without parameters; a model, loss or optimizer that cannot be recorded; a
    /// plan that does not fit the model or the mesh; options that do not fit the batch; a CPU target with the backend
    /// [`Backend::Cuda`].
    pub fn compile<B, L, F>(self, example: &B, loss: F) -> Result<CompiledTrainer<M, B, L::Outputs>, Error>
    where
        B: BatchData,
        L: Loss,
        L::Outputs: Results,
        F: Fn(&M, B::Tensors) -> L + 'static,
    {
        let Trainer { source, optimizer, rates, rate_groups, clipping, mut settings } = self;
        let rates = Rates::new(rates.ok_or(TrainerError::NoLearningRate)?, rate_groups);
        let backend = settings.launch.backend;
        let of_backend = || target::of_backend(backend).clone();
        settings.compile.target = settings.target.clone().unwrap_or_else(of_backend);
        target::check(&settings.compile.target, backend)?;
        let source = Rc::new(source);
        let record = source::training(source.clone(), optimizer, clipping, rates.groups(), loss);
        CompiledTrainer::compile(source, record, rates, settings, example)
    }
}
