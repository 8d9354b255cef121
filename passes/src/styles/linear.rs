//! Column-wise and row-wise parallel linears, embeddings and convolutions (Megatron-LM's two kinds of
//! tensor-parallel layer; `torch.distributed.tensor.parallel.ColwiseParallel` and `RowwiseParallel`).

use super::error::StyleError;
use super::layout::Layout;
use super::modules::{Role, Weight};
use super::prepare::Prepare;
use super::style::{Module, ParallelStyle, Placements};
use super::way::Way;

const ACCEPTS: &str = "a linear, an embedding or a convolution";

/// Output features (of an embedding the hidden dimension, of a convolution the output channels) are
/// sharded, and the bias with them.
///
/// PyTorch's defaults, a replicated input and an output sharded on its last dimension, are what
/// costs nothing here; a layout that is given is a constraint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ColwiseParallel {
    /// Layout in which the input is taken; it is then replicated.
    pub input_layouts: Option<Layout>,
    /// Layout into which the output is brought.
    pub output_layouts: Option<Layout>,
    /// Instead of the input's layout: one of the prepare functions.
    pub prepare_input: Option<Prepare>,
    /// Instead of the output's layout: one of the prepare functions.
    pub prepare_output: Option<Prepare>,
}

/// Input features (of an embedding the rows, of a convolution the input channels) are sharded; the
/// result is a partial sum, reduced, and the bias is added once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RowwiseParallel {
    /// Layout in which the input is taken; it is then sharded on its last dimension (of an embedding:
    /// replicated; of a convolution: sharded on its channels, `Shard(1)`).
    pub input_layouts: Option<Layout>,
    /// Layout into which the output is brought.
    pub output_layouts: Option<Layout>,
    /// Instead of the input's layout: one of the prepare functions.
    pub prepare_input: Option<Prepare>,
    /// Instead of the output's layout: one of the prepare functions.
    pub prepare_output: Option<Prepare>,
}

/// Cuts the module's own weights and prepares its only argument and result.
fn place(module: &Module<'_>, to: &mut Placements, way: Way, input: Option<Prepare>, output: Option<Prepare>) {
    let before = to.cuts.len();
    // A depthwise convolution has no input channels to cut.
    let has = |w: &&Weight| w.role != Role::Vector && (way == Way::Columns || !w.inner.is_empty());
    for weight in module.parameters().filter(has) {
        to.cut(module, weight, way);
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

    fn place(&self, module: &Module<'_>, to: &mut Placements) -> Result<(), StyleError> {
        let input = self.input_layouts.map(|l| Prepare::from(l, Layout::Replicate));
        let output = self.output_layouts.map(Prepare::to);
        place(module, to, Way::Columns, self.prepare_input.or(input), self.prepare_output.or(output));
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

    fn place(&self, module: &Module<'_>, to: &mut Placements) -> Result<(), StyleError> {
        let is = |role: Role| module.parameters().any(|w| w.role == role);
        // The rows of a table are looked up by indices that every rank has. Images are `[batch, channels, …]`.
        let desired = match () {
            () if is(Role::Embedding) => Layout::Replicate,
            () if is(Role::Convolution) => Layout::Shard(1),
            () => Layout::Shard(-1),
        };
        let input = self.input_layouts.map(|l| Prepare::from(l, desired));
        let output = self.output_layouts.map(Prepare::to);
        place(module, to, Way::Rows, self.prepare_input.or(input), self.prepare_output.or(output));
        Ok(())
    }
}
