//! Column-wise and row-wise parallel linears, embeddings and convolutions: the two kinds of tensor-parallel layers of
//! Megatron-LM (`torch.distributed.tensor.parallel.ColwiseParallel` and `RowwiseParallel`).

use super::direction::Direction;
use super::error::StyleError;
use super::layout::Layout;
use super::modules::{Role, Weight};
use super::prepare::Prepare;
use super::style::{Module, ParallelStyle, Placements};

const ACCEPTS: &str = "a linear, an embedding or a convolution";

/// Shards the output features (of an embedding, the hidden dimension; of a convolution, the output channels) and the
/// bias.
///
/// In PyTorch, the input is replicated and the output is sharded on its last dimension by default. Here the compiler
/// chooses these placements, which are usually the same; a layout that is given is a constraint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ColwiseParallel {
    /// The layout in which the input arrives; the module then replicates it. Without it, the compiler chooses.
    pub input_layouts: Option<Layout>,
    /// The layout to which the output is redistributed.
    pub output_layouts: Option<Layout>,
    /// A prepare function for the input, which replaces `input_layouts`.
    pub prepare_input: Option<Prepare>,
    /// A prepare function for the output, which replaces `output_layouts`.
    pub prepare_output: Option<Prepare>,
}

/// Shards the input features (of an embedding, the rows; of a convolution, the input channels). Each rank then computes a
/// partial sum. The style says no more than that: [`propagate`](mod@crate::propagate) reduces the sum, and the bias is added
/// once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RowwiseParallel {
    /// The layout in which the input arrives. The compiler redistributes it to what the module needs: `Shard(-1)` for a
    /// linear, `Replicate` for an embedding, `Shard(1)`, its channels, for a convolution. Without it, the compiler chooses.
    pub input_layouts: Option<Layout>,
    /// The layout to which the output is redistributed.
    pub output_layouts: Option<Layout>,
    /// A prepare function for the input, which replaces `input_layouts`.
    pub prepare_input: Option<Prepare>,
    /// A prepare function for the output, which replaces `output_layouts`.
    pub prepare_output: Option<Prepare>,
}

/// Cuts the weights of a module, and prepares its only argument and result.
fn cut_module(
    module: &Module<'_>,
    to: &mut Placements,
    direction: Direction,
    input: Option<Prepare>,
    output: Option<Prepare>,
) {
    let before = to.cuts.len();
    // A depthwise convolution has no input channels to cut.
    let has = |w: &&Weight| w.role != Role::Vector && (direction == Direction::Columns || !w.inner.is_empty());
    for weight in module.parameters().filter(has) {
        to.cut(module, weight, direction);
    }
    if to.cuts.len() == before {
        return;
    }
    if let Some(prepare) = input {
        to.argument(module.path(), 0, prepare);
    }
    if let Some(prepare) = output {
        to.result(module.path(), 0, prepare);
    }
}

impl ParallelStyle for ColwiseParallel {
    fn name(&self) -> &'static str {
        "ColwiseParallel"
    }

    fn accepts(&self) -> &'static str {
        ACCEPTS
    }

    fn may_tell_paths_apart(&self) -> bool {
        false
    }

    fn demand(&self, module: &Module<'_>, to: &mut Placements) -> Result<(), StyleError> {
        let input = self.input_layouts.map(|l| Prepare::from(l, Layout::Replicate));
        let output = self.output_layouts.map(Prepare::to);
        cut_module(module, to, Direction::Columns, self.prepare_input.or(input), self.prepare_output.or(output));
        Ok(())
    }
}

impl ParallelStyle for RowwiseParallel {
    fn name(&self) -> &'static str {
        "RowwiseParallel"
    }

    fn accepts(&self) -> &'static str {
        ACCEPTS
    }

    fn may_tell_paths_apart(&self) -> bool {
        false
    }

    fn demand(&self, module: &Module<'_>, to: &mut Placements) -> Result<(), StyleError> {
        let is = |role: Role| module.parameters().any(|w| w.role == role);
        // The rows of a table are looked up by indices that every rank has. Images are `[batch, channels, …]`.
        let desired = match () {
            () if is(Role::Embedding) => Layout::Replicate,
            () if is(Role::Convolution) => Layout::Shard(1),
            () => Layout::Shard(-1),
        };
        let input = self.input_layouts.map(|l| Prepare::from(l, desired));
        let output = self.output_layouts.map(Prepare::to);
        cut_module(module, to, Direction::Rows, self.prepare_input.or(input), self.prepare_output.or(output));
        Ok(())
    }
}
