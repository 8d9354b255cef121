//! Styles for pairs of linears: column-wise, then row-wise, without communication in between.

use super::direction::Direction;
use super::error::StyleError;
use super::layout::Layout;
use super::modules::Weight;
use super::pairs::Pair;
use super::prepare::Prepare;
use super::style::{Module, ParallelStyle, Placements};
use tpc_ir::ModulePath;

/// Cuts the pairs of linears of the module, column-wise and then row-wise. Pairs are found in each module from the
/// inside out ([`pairs`](super::pairs)): in a row of linears, the first and the second, the third and the fourth.
/// Query, key and value are thus cut by whole heads, gate and up by columns, and the linears that read their results by
/// rows. A linear without a partner stays replicated, for example the last of an odd number, or a projection before the
/// blocks of a transformer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PairwiseParallel;

/// Like [`PairwiseParallel`], and the input of the module and the outputs of pairs are sharded along the sequence: the
/// first column-wise linears gather their input, and the products of row-wise linears are reduce-scattered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PairwiseSequenceParallel {
    /// The dimension of the output of a row-wise linear that is the sequence.
    pub sequence_dim: isize,
}

impl Default for PairwiseSequenceParallel {
    /// The first dimension, as on PyTorch's reference page.
    fn default() -> Self {
        PairwiseSequenceParallel { sequence_dim: 0 }
    }
}

/// Cuts multi-head attention by whole heads, without changing the module: query, key and value (fused or not) by
/// columns, and the output by rows. The result is that of [`PairwiseParallel`] for an attention module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TensorParallelMultiheadAttention;

/// Cuts pairs. Returns the paths of the row-wise linears.
pub(super) fn cut_pairs(pairs: &[Pair<'_>], module: &Module<'_>, to: &mut Placements) -> Vec<ModulePath> {
    let mut rows = Vec::new();
    for pair in pairs {
        pair.columns.iter().for_each(|weight| to.cut(module, weight, Direction::Columns));
        for weight in &pair.rows {
            to.cut(module, weight, Direction::Rows);
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

    fn may_tell_paths_apart(&self) -> bool {
        false
    }

    fn demand(&self, module: &Module<'_>, to: &mut Placements) -> Result<(), StyleError> {
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

    fn may_tell_paths_apart(&self) -> bool {
        false
    }

    fn demand(&self, module: &Module<'_>, to: &mut Placements) -> Result<(), StyleError> {
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

    fn may_tell_paths_apart(&self) -> bool {
        false
    }

    fn demand(&self, module: &Module<'_>, to: &mut Placements) -> Result<(), StyleError> {
        let levels = module.levels();
        if levels.iter().map(|l| l.1).max() == Some(2) {
            cut_pairs(&module.pairs(), module, to);
        }
        Ok(())
    }
}
