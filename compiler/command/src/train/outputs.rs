//! The files that a run writes during training.

use std::path::PathBuf;
use tpc_runtime::output::Output;

/// Outputs whose places are resolved before the first step; of several processes, the first has them.
#[derive(Default)]
pub(super) struct Outputs {
    pub(super) grads: Option<Output>,
    pub(super) metrics: Option<Output>,
    /// The directory of event files.
    pub(super) events: Option<PathBuf>,
}
