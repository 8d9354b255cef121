//! Pairs of linears: column-wise, then row-wise, with nothing in between.

use super::annotate::StyleError;
use super::layout::Layout;
use super::modules::module_of;
use super::prepare::Prepare;
use super::style::{Module, ParallelStyle, Placements, Way};

/// The linears of the subtree, levelled by dataflow: odd levels are column-wise, even ones row-wise, a
/// last odd level stays replicated. So query, key and value are cut by whole heads,
/// gate and up by columns, and what follows them by rows.
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

/// Cuts the pairs and gives the paths of the row-wise linears.
pub(super) fn pairs(module: &Module<'_>, to: &mut Placements) -> Vec<String> {
    let levelled = module.levels();
    let last = levelled.iter().map(|l| l.1).max().unwrap_or(0);
    let mut rows = Vec::new();
    for (weight, level) in levelled {
        if level % 2 == 1 && level < last {
            to.cut(module, weight, Way::Columns);
        } else if level % 2 == 0 {
            to.cut(module, weight, Way::Rows);
            rows.push(module_of(&weight.name).to_string());
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
        pairs(module, to);
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
        let rows = pairs(module, to);
        if !rows.is_empty() {
            for (weight, _) in module.levels().into_iter().filter(|(_, level)| *level == 1) {
                to.argument(module_of(&weight.name), 0, Prepare::from(shard, Layout::Replicate));
            }
        }
        for path in rows {
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
            pairs(module, to);
        }
        Ok(())
    }
}
