//! The style of the built-in plans `tp` and `tp-sp` for a whole model.

use super::direction::Direction;
use super::error::StyleError;
use super::modules::{Role, Weight};
use super::pairwise::cut_pairs;
use super::style::{Module, ParallelStyle, Placements};
use std::cmp::Reverse;

/// Cuts the [`pairs`](super::pairs) of the whole model, a last linear without a partner by columns (its logits stay
/// sharded), and the largest embedding by rows. Other linears without a partner stay replicated, such as an embedding
/// of patches. With a sequence dimension, activations between pairs that have this dimension are sharded along it,
/// beginning with the embedding, which is a table or a linear at the beginning of the model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WholeModel {
    /// The dimension of activations that is the sequence.
    pub sequence_dim: Option<isize>,
}

impl ParallelStyle for WholeModel {
    fn name(&self) -> &'static str {
        if self.sequence_dim.is_some() { "plan tp-sp" } else { "plan tp" }
    }

    fn built_in(&self) -> Option<&'static str> {
        Some(if self.sequence_dim.is_some() { "tp-sp" } else { "tp" })
    }

    fn accepts(&self) -> &'static str {
        "linears and embeddings"
    }

    fn may_tell_paths_apart(&self) -> bool {
        false
    }

    fn demand(&self, module: &Module<'_>, to: &mut Placements) -> Result<(), StyleError> {
        let pairs = module.pairs();
        let mut spread = cut_pairs(&pairs, module, to);
        let with_levels = module.levels();
        let last = with_levels.iter().map(|l| l.1).max().unwrap_or(0);
        let is_alone = |weight: &Weight| !pairs.iter().any(|pair| pair.holds(weight));
        for (weight, _) in with_levels.iter().filter(|(weight, level)| *level == last && last > 1 && is_alone(weight)) {
            to.cut(module, weight, Direction::Columns);
        }
        let tables = module.all_parameters().filter(|w| w.role == Role::Embedding);
        if let Some(table) = tables.max_by_key(|w| (module.rows(w), Reverse(w.input))) {
            to.cut(module, table, Direction::Rows);
            spread.push(table.name.holder());
        }
        if let Some(dim) = self.sequence_dim {
            let begins = with_levels.iter().filter(|(weight, level)| *level == 1 && level < &last && is_alone(weight));
            spread.extend(begins.map(|(weight, _)| weight.name.holder()));
            spread.iter().for_each(|path| to.sequence(path, dim));
        }
        Ok(())
    }
}
