//! The options of a training step as arguments, shared by every command that has one.

use crate::given::Given;
use crate::{Failure, Outcome};
use clap::{Args, ValueEnum};
use tpc_passes::egraph::FloatingPoint;
use tpc_passes::options::{Precision, Reduction, StepOptions};
use tpc_passes::planner::PlacementSource;

/// Element types of compute and communication.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Types {
    /// The element types of the model
    F32,
    /// bf16 compute and communication, f32 parameters and optimizer
    Bf16,
}

/// Element type of gradient reductions with bf16 compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Reduce {
    /// f32
    F32,
    /// bf16
    Bf16,
}

/// What rewrite rules may do to floating-point results.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Fp {
    /// Keep every bit
    Exact,
    /// Also take sums in another order
    Reassociate,
    /// Also compute in another precision, which no rule does yet
    Relaxed,
}

impl Fp {
    /// Its name on the command line.
    pub fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_string()).unwrap_or_default()
    }
}

impl From<Fp> for FloatingPoint {
    fn from(fp: Fp) -> Self {
        match fp {
            Fp::Exact => FloatingPoint::Exact,
            Fp::Reassociate => FloatingPoint::Reassociate,
            Fp::Relaxed => FloatingPoint::Relaxed,
        }
    }
}

/// What decides the placements that a plan leaves open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Chosen {
    /// They follow from the placements that the plan gives
    Given,
    /// The planner, which may also overrule the plan inside the program; parameters and results stay where the plan has them
    Planned,
    /// The planner, which also stores the parameters, states and data of which the plan says nothing
    Auto,
}

impl Chosen {
    /// Its name on the command line.
    pub fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_string()).unwrap_or_default()
    }

    /// The source of placements.
    pub fn source(self) -> PlacementSource {
        match self {
            Chosen::Given => PlacementSource::Given,
            Chosen::Planned | Chosen::Auto => PlacementSource::Planned,
        }
    }
}

/// Changes to the training step other than its placement.
#[derive(Debug, Args)]
pub struct StepArguments {
    /// Scale all gradients down to this global L2 norm; metrics then include grad_norm
    #[arg(long, value_name = "X")]
    pub clip_norm: Option<f64>,
    /// Number of micro-batches that run one after the other and whose gradients are added
    #[arg(long, value_name = "K", default_value_t = 1)]
    pub micro_batches: usize,
    /// Parameters or modules that are not trained, with globs per path segment (`*` matches everything); !GLOB trains
    /// some of them after all; may be repeated
    #[arg(long, value_name = "GLOB")]
    pub freeze: Vec<String>,
    /// Element type of compute and communication; parameters and optimizer state keep their type
    #[arg(long, value_enum, default_value = "f32")]
    pub precision: Types,
    /// With --precision bf16: element type of gradient reductions; f32 with micro-batches
    #[arg(long, value_enum, value_name = "TYPE", default_value = "bf16", hide_default_value = true)]
    pub reduce: Reduce,
}

impl StepArguments {
    /// The options for the compiler, for a program with or without an optimizer.
    ///
    /// # Errors
    /// Options that only a training step has, for another program; an option that has no effect in combination with the
    /// others.
    pub fn options(&self, training: bool, given: &Given) -> Outcome<StepOptions> {
        if !training && (self.clip_norm.is_some() || self.micro_batches != 1 || !self.freeze.is_empty()) {
            return Err(Failure::new(
                "--clip-norm, --micro-batches and --freeze need a training step with an optimizer",
            ));
        }
        if self.precision == Types::F32 {
            given
                .refuse(&["reduce"], "without --precision bf16: gradients are then reduced in the model's own type")?;
        }
        if self.micro_batches > 1 && self.reduce == Reduce::Bf16 {
            given.refuse(&["reduce"], "with --micro-batches: their gradients are added and then reduced in f32")?;
        }
        let reduce = match self.reduce {
            Reduce::F32 => Reduction::F32,
            Reduce::Bf16 => Reduction::Compute,
        };
        Ok(StepOptions {
            clip_norm: self.clip_norm,
            micro_batches: self.micro_batches,
            freeze: self.freeze.clone(),
            precision: (self.precision == Types::Bf16).then_some(Precision { reduce, ..Precision::default() }),
        })
    }
}
