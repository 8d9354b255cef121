//! The model of a command, and how it is captured.

use crate::given::Given;
use crate::launch::{Device, Running};
use crate::{Failure, Outcome, Terminal};
use burn::module::{Initializer, Module, Param};
use burn::nn::Linear;
use burn::optim::decay::WeightDecayConfig;
use burn::optim::momentum::MomentumConfig;
use burn::optim::{AdamConfig, AdamWConfig, Optimizer as BurnOptimizer, SgdConfig};
use burn::tensor::{DType, Device as Backend, Tensor};
use clap::{Args, ValueEnum};
use std::collections::HashMap;
use std::path::Path;
use tpc_compiler::capture::{
    Captured, Init, InputKind, OutputKind, Spec, TrainingCapture, TrainingOptions, capture_inference_shapes,
    capture_training_shapes, named,
};
use tpc_compiler::error::Error;
use tpc_compiler::models::{Mlp, ModelConfig, ModelDir, Use, presets};
use tpc_compiler::optimizer::ByDimensions;
use tpc_compiler::pretrained::{TokenBatch, capture_forward, capture_step, names};
use tpc_ir::DType as IrType;
use tpc_ir::size::MOST;
use tpc_passes::shorten::KEPT;
use tpc_runtime::Processes;

/// A model with its batch's shape.
#[derive(Clone, Debug)]
pub enum Subject {
    /// A language model.
    Tokens(Box<ModelConfig>, TokenBatch),
    /// The comparisons' MLP on this many tokens. It has no loss: its training step is the forward pass and the backward
    /// pass from a given output gradient, including the input's gradient.
    Mlp(usize),
}

/// The preset without an optimizer.
pub const MLP: &str = "mlp";

/// The shape of a batch, as arguments.
#[derive(Clone, Copy, Debug, Args)]
pub struct Shape {
    /// Sequences per batch [default: 4]
    #[arg(long)]
    pub batch: Option<usize>,
    /// Tokens per sequence [default: 256, or the number of the model's positions if that is smaller]
    #[arg(long)]
    pub seq: Option<usize>,
}

/// Default number of sequences in a batch, and of tokens in each.
const DEFAULT_BATCH: (usize, usize) = (4, 256);

impl Subject {
    /// The named preset, or the model of a directory that holds at least a `config.json`.
    ///
    /// # Errors
    /// Neither of the two; a directory without a configuration; as [`Subject::preset`].
    pub fn of(preset: Option<&str>, dir: Option<&Path>, shape: Shape, terminal: &mut Terminal) -> Outcome<Self> {
        if let Some(name) = preset {
            return Self::preset(name, shape);
        }
        let Some(dir) = dir else { return Err(Failure::new("a model is needed: MODEL_DIR or --preset")) };
        let (config, warnings) = ModelDir::read_config(dir)?;
        warnings.iter().for_each(|warning| terminal.note(warning));
        Self::of_config(config, shape)
    }

    /// A preset: `mlp`, or a language model by name.
    ///
    /// # Errors
    /// A name that no preset has, or sequences that the model cannot take.
    pub fn preset(name: &str, shape: Shape) -> Outcome<Self> {
        let Shape { batch, seq } = shape;
        if name == MLP {
            return match batch.unwrap_or(2).checked_mul(seq.unwrap_or(256)) {
                Some(0) => Err(Failure::new("a batch needs tokens: --batch times --seq must be at least 1")),
                Some(tokens) if bytes(&[tokens, INNER]).is_some() => Ok(Subject::Mlp(tokens)),
                _ => Err(too_large("--batch times --seq", "the tokens", "")),
            };
        }
        let config = presets::named(name).map_err(|_| {
            Failure::new(format!("there is no preset {name:?}; the presets are mlp, {}", presets::NAMES.join(", ")))
        })?;
        Self::of_config(config, shape)
    }

    fn of_config(config: ModelConfig, Shape { batch, seq }: Shape) -> Outcome<Self> {
        let (b, s) = DEFAULT_BATCH;
        let mut tokens = TokenBatch::new(batch.unwrap_or(b), seq.unwrap_or(s.min(config.max_positions())));
        let encoder = config.takes_token_types();
        (tokens.attention_mask, tokens.token_type_ids) = (encoder, encoder);
        config.check_batch([tokens.batch, tokens.seq], 0)?;
        check_size(&config, [tokens.batch, tokens.seq])?;
        Ok(Subject::Tokens(Box::new(config), tokens))
    }

    /// The same model with few layers, if it has many that are alike; and its configuration.
    pub fn with_few_layers(&self) -> Option<(Subject, &ModelConfig)> {
        let Subject::Tokens(config, tokens) = self else { return None };
        let few = config.with_layers(KEPT).filter(|_| config.layers() > KEPT)?;
        Some((Subject::Tokens(Box::new(few), *tokens), config))
    }

    /// Number of tokens in a batch.
    pub fn tokens(&self) -> usize {
        match self {
            Subject::Tokens(_, tokens) => tokens.batch * tokens.seq,
            Subject::Mlp(tokens) => *tokens,
        }
    }

    /// Maps a parameter's name to the one in plans and files.
    pub fn rename(&self) -> impl Fn(&str) -> String + use<> {
        let names = match self {
            Subject::Tokens(config, _) => names(config),
            Subject::Mlp(_) => HashMap::new(),
        };
        move |path: &str| names.get(path).cloned().unwrap_or_else(|| path.to_string())
    }

    /// The forward pass; for a language model, up to its logits.
    ///
    /// # Errors
    /// An operation that cannot be recorded.
    pub fn forward(&self) -> Outcome<Captured> {
        match self {
            Subject::Tokens(config, tokens) => Ok(capture_forward(config, *tokens, false)?),
            Subject::Mlp(tokens) => {
                let x = named("x", Spec::<2>::new([*tokens, WIDTH], DType::F32));
                Ok(capture_inference_shapes(presets::mlp, x, |mlp, x| named("y", mlp.forward(x)))
                    .map_err(Error::from)?)
            }
        }
    }

    /// One training step.
    ///
    /// # Errors
    /// An operation that cannot be recorded.
    pub fn step(&self, optimizer: &Optimizer) -> Outcome<Step> {
        match self {
            Subject::Tokens(config, tokens) => Ok(Step::Training(Box::new(optimizer.capture(config, *tokens)?))),
            Subject::Mlp(tokens) => Ok(Step::Backward(Box::new(mlp_backward(*tokens)?))),
        }
    }
}

/// Bytes of a tensor with the widest elements, if they fit into a `usize`.
fn bytes(shape: &[usize]) -> Option<usize> {
    let bytes = shape.iter().try_fold(IrType::F64.bytes(), |n, &d| n.checked_mul(d));
    bytes.filter(|&bytes| bytes <= MOST)
}

fn too_large(flags: &str, tensor: &str, shape: &str) -> Failure {
    Failure::new(format!(
        "{flags}: {tensor}{shape} would have more elements than can be addressed; use fewer sequences or shorter ones"
    ))
}

/// An error if a batch is so large that the size of a tensor computed from it overflows.
///
/// # Errors
/// The first such tensor.
pub fn check_size(config: &ModelConfig, [batch, seq]: [usize; 2]) -> Outcome {
    let (heads, inner) = (config.heads(), config.inner_width());
    let tensors: [(&str, &[usize]); 4] = [
        ("the batch", &[batch, seq]),
        ("the attention's scores", &[batch, heads, seq, seq]),
        ("the logits", &[batch, seq, config.vocab_size()]),
        ("the values inside the MLP", &[batch, seq, inner]),
    ];
    match tensors.into_iter().find(|(_, shape)| bytes(shape).is_none()) {
        Some((tensor, shape)) => {
            Err(too_large(&format!("--batch {batch} --seq {seq}"), tensor, &format!(" of shape {shape:?}")))
        }
        None => Ok(()),
    }
}

/// How this host executes a program of this many ranks, each of which keeps `copies` tensors of every parameter's size.
pub(crate) fn executed(running: &Running, ranks: usize, copies: usize) -> Use {
    // The processes of a host share its memory, and each has as many ranks as this one.
    let on_host = |processes: &dyn Processes| Some(processes.local(ranks).ok()?.len() * processes.on_host().1);
    let here = tpc_runtime::launch::joined().and_then(|processes| on_host(&*processes));
    match running.device {
        Device::Cpu => Use::Execute { here: here.map_or(ranks, |here| here.min(ranks)), ranks, copies },
        // The host only holds strips.
        Device::Cuda => Use::Plan,
    }
}

/// A captured training step.
pub enum Step {
    /// With an optimizer: a first and a steady program.
    Training(Box<TrainingCapture>),
    /// Forward and backward only.
    Backward(Box<Captured>),
}

/// How the parameters of a captured program are initialized, by their names in plans and files.
pub fn initial(captured: &Captured, rename: impl Fn(&str) -> String) -> HashMap<String, Init> {
    captured.init.iter().map(|(path, init)| (rename(path), init.clone())).collect()
}

/// Width of the comparisons' MLP.
const WIDTH: usize = 1024;

/// Its inner width.
const INNER: usize = 4096;

/// The comparisons' MLP with its input as a parameter, so that the input gets a gradient.
#[derive(Module, Debug)]
struct MlpStep {
    net1: Linear,
    net2: Linear,
    x: Param<Tensor<2>>,
}

/// Forward and backward pass of the MLP from a given gradient of its output.
fn mlp_backward(tokens: usize) -> Result<Captured, Error> {
    let build = |device: &Backend| {
        let Mlp { net1, net2 } = presets::mlp(device);
        MlpStep { net1, net2, x: Initializer::Zeros.init([tokens, WIDTH], device) }
    };
    let gradient = named("y.grad", Spec::<2>::new([tokens, WIDTH], DType::F32));
    let step = capture_training_shapes(
        build,
        &SgdConfig::new().build(),
        gradient,
        &TrainingOptions::default(),
        |model: &MlpStep, gradient| {
            let mlp = Mlp { net1: model.net1.clone(), net2: model.net2.clone() };
            let y = mlp.forward(model.x.val());
            ((y.clone() * gradient).sum(), named("y", y))
        },
    )?;
    Ok(without_optimizer(step.first, "x"))
}

/// Removes the loss and the optimizer from a step, and makes its parameter `input` data.
pub fn without_optimizer(mut step: Captured, input: &str) -> Captured {
    step.graph.operations.truncate(step.backward_end);
    let keep: Vec<bool> = step
        .outputs
        .iter()
        .map(|o| matches!(o.kind, OutputKind::Output { .. } | OutputKind::Gradient { .. }))
        .collect();
    let mut kept = keep.iter();
    step.outputs.retain(|_| kept.next() == Some(&true));
    let mut kept = keep.iter();
    step.graph.outputs.retain(|_| kept.next() == Some(&true));
    step.inputs.retain(|i| !matches!(i.kind, InputKind::StepScalar { .. }));
    for i in &mut step.inputs {
        if matches!(&i.kind, InputKind::Parameter { path, .. } if *path == input.into()) {
            i.kind = InputKind::Data { name: input.into() };
        }
    }
    for o in &mut step.outputs {
        if matches!(&o.kind, OutputKind::Gradient { path } if *path == input.into()) {
            o.kind = OutputKind::Output { name: format!("{input}.grad") };
        }
    }
    step
}

/// The optimizers of the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OptimizerName {
    /// Adam with decoupled weight decay
    Adamw,
    /// Adam; weight decay is added to the gradient
    Adam,
    /// Gradient descent, with --momentum if given
    Sgd,
}

/// An optimizer with its settings; defaults are PyTorch's.
#[derive(Clone, Debug, Args)]
pub struct Optimizer {
    /// Optimizer
    #[arg(long, value_enum, default_value = "adamw")]
    pub optimizer: OptimizerName,
    /// First beta of adamw and adam
    #[arg(long, value_parser = fraction, default_value = "0.9")]
    pub beta1: f32,
    /// Second beta of adamw and adam
    #[arg(long, value_parser = fraction, default_value = "0.999")]
    pub beta2: f32,
    /// Epsilon of adamw and adam
    #[arg(long, value_parser = not_negative, default_value = "1e-8")]
    pub eps: f32,
    /// Weight decay of all weights except norms and biases [default: 0.01 for adamw, otherwise 0]
    #[arg(long, value_parser = not_negative)]
    pub weight_decay: Option<f32>,
    /// Apply weight decay to norms and biases, too
    #[arg(long)]
    pub decay_all: bool,
    /// Momentum of sgd
    #[arg(long, value_parser = fraction)]
    pub momentum: Option<f32>,
    /// Nesterov momentum of sgd
    #[arg(long, requires = "momentum")]
    pub nesterov: bool,
}

impl Optimizer {
    /// AdamW with the settings of the comparisons.
    pub fn compared() -> Self {
        Optimizer {
            optimizer: OptimizerName::Adamw,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: Some(0.1),
            decay_all: true,
            momentum: None,
            nesterov: false,
        }
    }

    /// The options that select and configure the optimizer.
    pub const OPTIONS: [&str; 8] =
        ["optimizer", "beta1", "beta2", "eps", "weight_decay", "decay_all", "momentum", "nesterov"];

    /// Number of states of a parameter's size that the optimizer keeps per parameter.
    pub fn states(&self) -> usize {
        match self.optimizer {
            OptimizerName::Adamw | OptimizerName::Adam => 2,
            OptimizerName::Sgd => usize::from(self.momentum.is_some()),
        }
    }

    /// An error if a given setting does not belong to the optimizer.
    ///
    /// # Errors
    /// The first such setting.
    pub fn check(&self, given: &Given) -> Outcome {
        match (self.optimizer, self.momentum) {
            (OptimizerName::Adamw | OptimizerName::Adam, Some(_)) => {
                Err(Failure::new("--momentum is a setting of --optimizer sgd; adamw and adam have --beta1"))
            }
            (OptimizerName::Sgd, _) => given.refuse(
                &["beta1", "beta2", "eps"],
                "with --optimizer sgd, whose settings are --weight-decay, --momentum and --nesterov",
            ),
            _ => Ok(()),
        }
    }

    /// [`Optimizer::check`], and an error if a setting was given for a program without an optimizer: a forward pass, or the
    /// step of the MLP.
    ///
    /// # Errors
    /// The first such setting.
    pub fn check_used(&self, train: bool, preset: Option<&str>, given: &Given) -> Outcome {
        self.check(given)?;
        if !train {
            return given
                .refuse(&[&["reduce"][..], &Self::OPTIONS].concat(), "without --train, which has a training step");
        }
        match preset {
            Some(MLP) => given.refuse(&Self::OPTIONS, "on the preset mlp, whose step has no optimizer"),
            _ => Ok(()),
        }
    }

    /// Captures a language model's training step.
    ///
    /// # Errors
    /// An operation that cannot be recorded.
    pub fn capture(&self, config: &ModelConfig, tokens: TokenBatch) -> Result<TrainingCapture, Error> {
        let decay = self.decay();
        let penalty = |decay: f32| (decay != 0.0).then(|| WeightDecayConfig::new(decay));
        match self.optimizer {
            OptimizerName::Adamw => self.capture_with(config, tokens, decay, |decay| {
                AdamWConfig::new()
                    .with_beta_1(self.beta1)
                    .with_beta_2(self.beta2)
                    .with_epsilon(self.eps)
                    .with_weight_decay(decay)
                    .build()
            }),
            OptimizerName::Adam => self.capture_with(config, tokens, decay, |decay| {
                AdamConfig::new()
                    .with_beta_1(self.beta1)
                    .with_beta_2(self.beta2)
                    .with_epsilon(self.eps)
                    .with_weight_decay(penalty(decay))
                    .build()
            }),
            OptimizerName::Sgd => self.capture_with(config, tokens, decay, |decay| {
                let momentum = self.momentum.map(|momentum| MomentumConfig {
                    momentum: f64::from(momentum),
                    dampening: 0.0,
                    nesterov: self.nesterov,
                });
                SgdConfig::new().with_weight_decay(penalty(decay)).with_momentum(momentum).build()
            }),
        }
    }

    /// The weight decay: the given one, or PyTorch's default.
    fn decay(&self) -> f32 {
        self.weight_decay.unwrap_or(if self.optimizer == OptimizerName::Adamw { 0.01 } else { 0.0 })
    }

    /// Captures a step with the optimizer that `make` builds for a weight decay; norms and biases only decay with
    /// --decay-all.
    fn capture_with<O: BurnOptimizer>(
        &self,
        config: &ModelConfig,
        tokens: TokenBatch,
        decay: f32,
        build: impl Fn(f32) -> O,
    ) -> Result<TrainingCapture, Error> {
        match self.decay_all || decay == 0.0 {
            true => capture_step(config, tokens, &build(decay)),
            false => capture_step(config, tokens, &ByDimensions { matrices: build(decay), vectors: build(0.0) }),
        }
    }
}

/// Parses a number in `0..1`.
fn fraction(text: &str) -> Result<f32, String> {
    let number: Option<f32> = text.parse().ok();
    number.filter(|x| (0.0..1.0).contains(x)).ok_or_else(|| "expected a number of at least 0 and below 1".into())
}

/// Parses a finite number that is not negative.
pub fn not_negative(text: &str) -> Result<f32, String> {
    let number: Option<f32> = text.parse().ok();
    number.filter(|x| x.is_finite() && *x >= 0.0).ok_or_else(|| "expected a number of at least 0".into())
}
