//! Program options of a training step: what a training loop elsewhere does by hand, as graph passes
//! over the unplaced graph.
//!
//! | question | file |
//! |---|---|
//! | which parameters are trained | [`freeze`] |
//! | how large a step's gradient may be | [`clip`] |
//! | in which element types is computed and communicated | [`precision`] |
//! | how many parts of the batch run one after the other | [`accumulate`] |
//!
//! Freezing and clipping rewrite the captured graph, where every gradient is still a value of its
//! own. The others rewrite the canonical graph *after* a plan has been read into annotations: a plan
//! speaks of the model as it was written, with one use per weight and no casts, so the annotations
//! are carried along.

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

/// What is done to a training step besides placing it.
#[derive(Clone, Debug, PartialEq)]
pub struct StepOptions {
    /// The largest L2 norm of all gradients together; larger gradients are scaled down to it.
    pub clip_norm: Option<f64>,
    /// Into how many micro-batches the batch is cut; 1 is the whole batch at once.
    pub micro_batches: usize,
    /// Patterns of parameters and modules that are not trained; `!pattern` takes some back.
    pub freeze: Vec<String>,
    /// Element types of compute and communication; `None` is as captured.
    pub precision: Option<Precision>,
}

impl Default for StepOptions {
    fn default() -> Self {
        StepOptions { clip_norm: None, micro_batches: 1, freeze: Vec::new(), precision: None }
    }
}

impl StepOptions {
    /// What of the options concerns a program without an optimizer: the precision.
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
    /// A norm that nothing can be scaled to.
    #[error("gradients cannot be clipped to a norm of {0}: give a finite number above 0")]
    ClipNorm(f64),
    /// A gradient that is computed from the optimizer's results.
    #[error("the gradient of `{0}` depends on the optimizer: gradients of such a program cannot be clipped")]
    LateGradient(ModulePath),
    /// A result of the model that is called like one of an option's.
    #[error("the model has a result `{0}` of its own: rename it, clipping gives a result of that name")]
    Taken(&'static str),
    /// A freezing pattern that matches nothing.
    #[error("nothing to freeze matches `{}`{}", cut(.pattern), Nearest(.nearest))]
    NoParameter {
        /// The pattern.
        pattern: String,
        /// Existing names like it.
        nearest: Vec<String>,
    },
    /// A freezing pattern that means a parameter by another of its names.
    #[error(
        "nothing to freeze is called `{}`: `{parameter}` is `{shared}` under another name (tied); freeze `{shared}`",
        cut(.pattern)
    )]
    Tied {
        /// The pattern.
        pattern: String,
        /// The parameter by the path that the pattern means.
        parameter: ModulePath,
        /// The same parameter as the program calls it.
        shared: ModulePath,
    },
    /// A freezing pattern that is none.
    #[error("freezing `{}`: {problem}", cut(.pattern))]
    Pattern {
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        problem: PatternError,
    },
    /// A freezing pattern that changes nothing.
    #[error("freezing `{}` changes nothing: {why}; leave it out", cut(.pattern))]
    NoEffect {
        /// The pattern.
        pattern: String,
        /// Why it does not.
        why: &'static str,
    },
    /// Nothing is left to train.
    #[error("every parameter is frozen: nothing is left to train")]
    AllFrozen,
    /// More micro-batches than rows, or none.
    #[error("a batch of {batch} cannot be cut into {micro_batches} micro-batches: use 1 to {batch}")]
    MicroBatches {
        /// Rows of the batch.
        batch: usize,
        /// How many were asked for.
        micro_batches: usize,
    },
}

/// Applies what concerns the captured graph, whose gradients must be outputs: freezing, then clipping.
///
/// # Errors
/// Options that do not fit the program.
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

/// Applies what concerns the canonical graph: precision, then micro-batches. The annotations come
/// back in terms of the new graph.
///
/// # Errors
/// Options that do not fit the program.
pub fn on_logical(
    graph: Graph,
    annotations: Annotations,
    options: &StepOptions,
) -> Result<(Graph, Annotations), OptionError> {
    let (mut graph, mut annotations) = (graph, annotations);
    if let Some(precision) = options.precision {
        // Terms of several micro-batches are added before they are reduced over ranks: in f32.
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
