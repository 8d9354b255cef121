//! What the built-in plans `tp` and `tp-sp` say of a whole model.

use super::error::StyleError;
use super::modules::{Role, Weight};
use super::pairwise::cut_pairs;
use super::style::{Module, ParallelStyle, Placements};
use super::way::Way;
use std::cmp::Reverse;

/// The [`pairs`](super::pairs) of the whole model, a last linear without a partner column-wise (its logits stay sharded), and
/// the largest embedding by rows. What else is alone stays replicated, such as an embedding of patches. With a sequence
/// dimension, activations between pairs are sharded along it wherever they have one, from the embedding on: that of a
/// table, or of a linear with which the model begins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WholeModel {
    /// Which dimension of activations is the sequence.
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

    fn place(&self, module: &Module<'_>, to: &mut Placements) -> Result<(), StyleError> {
        let pairs = module.pairs();
        let mut spread = cut_pairs(&pairs, module, to);
        let levelled = module.levels();
        let last = levelled.iter().map(|l| l.1).max().unwrap_or(0);
        let is_alone = |weight: &Weight| !pairs.iter().any(|pair| pair.holds(weight));
        for (weight, _) in levelled.iter().filter(|(weight, level)| *level == last && last > 1 && is_alone(weight)) {
            to.cut(module, weight, Way::Columns);
        }
        let tables = module.all_parameters().filter(|w| w.role == Role::Embedding);
        if let Some(table) = tables.max_by_key(|w| (module.rows(w), Reverse(w.input))) {
            to.cut(module, table, Way::Rows);
            spread.push(table.name.holder());
        }
        if let Some(dim) = self.sequence_dim {
            let begins = levelled.iter().filter(|(weight, level)| *level == 1 && level < &last && is_alone(weight));
            spread.extend(begins.map(|(weight, _)| weight.name.holder()));
            spread.iter().for_each(|path| to.sequence(path, dim));
        }
        Ok(())
    }
}
