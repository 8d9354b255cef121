//! The files that a run writes while it goes on.

use std::path::PathBuf;
use tpc_runtime::output::Output;

/// Outputs whose places are found before the first step; of several processes the first has them.
#[derive(Default)]
pub(super) struct Outputs {
    pub(super) grads: Option<Output>,
    pub(super) metrics: Option<Output>,
    /// The directory of event files.
    pub(super) events: Option<PathBuf>,
}
