//! Sequence parallelism of norms and dropout (Korthikanti et al., "Reducing activation recomputation
//! in large transformer models"; `torch.distributed.tensor.parallel.SequenceParallel`).

use super::error::StyleError;
use super::layout::Layout;
use super::modules::Role;
use super::prepare::Prepare;
use super::style::{Module, ParallelStyle, Placements};

/// Runs a module on a shard of the sequence. Its parameters are replicated, and their gradients are reduced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SequenceParallel {
    /// The dimension of the result of the module that is the sequence.
    pub sequence_dim: isize,
}

impl Default for SequenceParallel {
    fn default() -> Self {
        SequenceParallel { sequence_dim: 1 }
    }
}

impl ParallelStyle for SequenceParallel {
    fn name(&self) -> &'static str {
        "SequenceParallel"
    }

    fn accepts(&self) -> &'static str {
        "norms, dropout and other modules without linears"
    }

    fn may_tell_paths_apart(&self) -> bool {
        false
    }

    fn demand(&self, module: &Module<'_>, to: &mut Placements) -> Result<(), StyleError> {
        if module.all_parameters().all(|w| w.role == Role::Vector) {
            to.result(module.path(), 0, Prepare::to(Layout::Shard(self.sequence_dim)));
        }
        Ok(())
    }
}
