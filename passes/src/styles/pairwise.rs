//! Pairs of linears: column-wise, then row-wise, with nothing in between.

use super::error::StyleError;
use super::layout::Layout;
use super::modules::Weight;
use super::pairs::Pair;
use super::prepare::Prepare;
use super::style::{Module, ParallelStyle, Placements};
use super::way::Way;
use tpc_ir::ModulePath;

/// The linears of the subtree in pairs, column-wise and then row-wise, found in each module from the inside out
/// ([`pairs`](super::pairs)): in a row of linears the first and the second, the third and the fourth. So query, key and
/// value are cut by whole heads, gate and up by columns, and what follows them by rows. A linear without a partner
/// stays replicated: the last of an odd number, or a projection in front of the blocks of a transformer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PairwiseParallel;

/// The same, and what enters the module and leaves each pair is sharded along the sequence: the first
/// column-wise linears gather, the last row-wise product is reduce-scattered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PairwiseSequenceParallel {
    /// Which dimension of a row-wise linear's output is the sequence.
    pub sequence_dim: isize,
}

impl Default for PairwiseSequenceParallel {
    /// The first dimension, as on PyTorch's reference page.
    fn default() -> Self {
        PairwiseSequenceParallel { sequence_dim: 0 }
    }
}

/// Multi-head attention by whole heads, the user's module unchanged: query, key and value (fused or
/// not) by columns, the output by rows. What [`PairwiseParallel`] makes of an attention module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TensorParallelMultiheadAttention;

/// Cuts pairs and gives the paths of the row-wise linears.
pub(super) fn cut_pairs(pairs: &[Pair<'_>], module: &Module<'_>, to: &mut Placements) -> Vec<ModulePath> {
    let mut rows = Vec::new();
    for pair in pairs {
        pair.columns.iter().for_each(|weight| to.cut(module, weight, Way::Columns));
        for weight in &pair.rows {
            to.cut(module, weight, Way::Rows);
            rows.push(weight.name.holder());
        }
    }
    rows
}

impl ParallelStyle for PairwiseParallel {
    fn name(&self) -> &'static str {
        "PairwiseParallel"
    }

    fn accepts(&self) -> &'static str {
        "pairs of linears that follow each other"
    }

    fn place(&self, module: &Module<'_>, to: &mut Placements) -> Result<(), StyleError> {
        cut_pairs(&module.pairs(), module, to);
        Ok(())
    }
}

impl ParallelStyle for PairwiseSequenceParallel {
    fn name(&self) -> &'static str {
        "PairwiseSequenceParallel"
    }

    fn accepts(&self) -> &'static str {
        "pairs of linears that follow each other"
    }

    fn place(&self, module: &Module<'_>, to: &mut Placements) -> Result<(), StyleError> {
        let shard = Layout::Shard(self.sequence_dim);
        let pairs = module.pairs();
        let columns: Vec<&Weight> = pairs.iter().flat_map(|pair| pair.columns.iter().copied()).collect();
        for weight in module.first_of(&columns) {
            to.argument(&weight.name.holder(), 0, Prepare::from(shard, Layout::Replicate));
        }
        for path in cut_pairs(&pairs, module, to) {
            to.result(&path, 0, Prepare::to(shard));
        }
        Ok(())
    }
}

impl ParallelStyle for TensorParallelMultiheadAttention {
    fn name(&self) -> &'static str {
        "TensorParallelMultiheadAttention"
    }

    fn accepts(&self) -> &'static str {
        "an attention: query, key and value linears (or one of all three) and an output linear"
    }

    fn place(&self, module: &Module<'_>, to: &mut Placements) -> Result<(), StyleError> {
        let levels = module.levels();
        if levels.iter().map(|l| l.1).max() == Some(2) {
            cut_pairs(&module.pairs(), module, to);
        }
        Ok(())
    }
}
