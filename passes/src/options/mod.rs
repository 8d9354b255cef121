//! Options of a training step, as passes over the unplaced graph. Elsewhere, training loops implement them by hand.
//!
//! | question | file |
//! |---|---|
//! | which parameters are trained | [`freeze`] |
//! | how large the gradient of a step may be | [`clip`] |
//! | the element types of computation and communication | [`precision`] |
//! | into how many micro-batches the batch is split | [`accumulate`] |
//!
//! Freezing and clipping rewrite the captured graph, where every gradient is still a separate value. The others rewrite
//! the canonical graph *after* the plan has been turned into annotations: a plan refers to the model as it is written,
//! with one use per weight and no casts. The annotations are translated to the new graph.

pub mod accumulate;
pub mod clip;
pub mod freeze;
pub mod precision;

use crate::styles::annotations::Annotations;
use crate::styles::pattern::{Nearest, PatternError};
use std::borrow::Cow;
use tpc_ir::quote::cut;
use tpc_ir::{Graph, ModulePath, OutputKind};

pub use precision::{Held, Precision, Reduction};

/// Options of a training step, apart from its placement.
#[derive(Clone, Debug, PartialEq)]
pub struct StepOptions {
    /// The largest L2 norm of all gradients together; larger gradients are scaled down to it.
    pub clip_norm: Option<f64>,
    /// The number of micro-batches into which the batch is split; 1 for the whole batch at once.
    pub micro_batches: usize,
    /// Patterns of parameters and modules that are not trained; `!pattern` unfreezes what it matches.
    pub freeze: Vec<String>,
    /// The element types of computation and communication; `None` for those of the captured graph.
    pub precision: Option<Precision>,
}

impl Default for StepOptions {
    fn default() -> Self {
        StepOptions { clip_norm: None, micro_batches: 1, freeze: Vec::new(), precision: None }
    }
}

impl StepOptions {
    /// The options that concern a program without an optimizer, which is only the precision.
    #[must_use]
    pub fn of_inference(&self) -> Self {
        StepOptions { precision: self.precision, ..StepOptions::default() }
    }
}

/// Why an option does not fit a program.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum OptionError {
    /// An option about gradients for a program without any.
    #[error("{0} needs a training step with gradients, and this program has none")]
    NoGradients(&'static str),
    /// A norm to which nothing can be scaled.
    #[error("gradients cannot be clipped to a norm of {0}: give a finite number above 0")]
    ClipNorm(f64),
    /// A gradient that is computed from results of the optimizer.
    #[error("the gradient of `{0}` depends on the optimizer: gradients of such a program cannot be clipped")]
    LateGradient(ModulePath),
    /// A result of the model that has the name of the result of an option.
    #[error("the model already has a result `{0}`: rename it, because clipping adds a result with that name")]
    Taken(&'static str),
    /// A freezing pattern that matches nothing.
    #[error("nothing to freeze matches `{}`{}", cut(.pattern), Nearest(.nearest))]
    NoParameter {
        /// The pattern.
        pattern: String,
        /// Similar names that exist.
        nearest: Vec<String>,
    },
    /// A freezing pattern that matches a parameter only by another of its names.
    #[error(
        "nothing to freeze is called `{}`: `{parameter}` is `{shared}` under another name (tied); freeze `{shared}`",
        cut(.pattern)
    )]
    Tied {
        /// The pattern.
        pattern: String,
        /// The path that the pattern matches.
        parameter: ModulePath,
        /// The path of the same parameter in the program.
        shared: ModulePath,
    },
    /// A text that is not a pattern.
    #[error("freezing `{}`: {problem}", cut(.pattern))]
    Pattern {
        /// The pattern.
        pattern: String,
        /// The fault of the pattern.
        problem: PatternError,
    },
    /// A freezing pattern that changes nothing.
    #[error("freezing `{}` changes nothing: {why}; leave it out", cut(.pattern))]
    NoEffect {
        /// The pattern.
        pattern: String,
        /// Why it changes nothing.
        why: &'static str,
    },
    /// Nothing is left to train.
    #[error("every parameter is frozen: nothing is left to train")]
    AllFrozen,
    /// There are more micro-batches than rows, or none.
    #[error("a batch of {batch} cannot be cut into {micro_batches} micro-batches: use 1 to {batch}")]
    MicroBatches {
        /// The number of rows of the batch.
        batch: usize,
        /// The number of micro-batches that were requested.
        micro_batches: usize,
    },
}

/// Applies the options that rewrite the captured graph, whose gradients must be outputs: freezing, then clipping.
///
/// # Errors
/// An option does not fit the program.
pub fn on_captured<'a>(graph: &'a Graph, options: &StepOptions) -> Result<Cow<'a, Graph>, OptionError> {
    let mut graph = Cow::Borrowed(graph);
    if !options.freeze.is_empty() {
        graph = Cow::Owned(freeze::freeze(&graph, &options.freeze)?);
    }
    if let Some(norm) = options.clip_norm {
        graph = Cow::Owned(clip::clip(&graph, norm)?);
    }
    Ok(graph)
}

/// Applies the options that rewrite the canonical graph: precision, then micro-batches. Returns the annotations in
/// terms of the new graph.
///
/// # Errors
/// An option does not fit the program.
pub fn on_logical(
    graph: Graph,
    annotations: Annotations,
    options: &StepOptions,
) -> Result<(Graph, Annotations), OptionError> {
    let (mut graph, mut annotations) = (graph, annotations);
    if let Some(precision) = options.precision {
        // The terms of several micro-batches are added up before they are reduced over ranks, so they are f32.
        let reduce = if options.micro_batches > 1 { Reduction::F32 } else { precision.reduce };
        (graph, annotations) = precision::mixed(&graph, &annotations, Precision { reduce, ..precision });
    }
    if options.micro_batches != 1 {
        (graph, annotations) = accumulate::accumulate(&graph, &annotations, options.micro_batches)?;
    }
    Ok((graph, annotations))
}

/// The parameters that have a gradient, in the order of their outputs.
pub(crate) fn trained(graph: &Graph) -> Vec<ModulePath> {
    let gradient = |o: &tpc_ir::Output| match &o.kind {
        OutputKind::Gradient(path) => Some(path.clone()),
        _ => None,
    };
    graph.outputs.iter().filter_map(gradient).collect()
}
