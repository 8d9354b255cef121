//! What the built-in plans `tp` and `tp-sp` say of a whole model.

use super::annotate::StyleError;
use super::modules::{Role, module_of};
use super::pairwise::pairs;
use super::style::{Module, ParallelStyle, Placements, Way};
use std::cmp::Reverse;

/// Pairwise linears, a last one without a partner column-wise (its logits stay sharded), and the
/// largest embedding by rows. With a sequence dimension, activations between pairs are sharded
/// along it wherever they have one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WholeModel {
    /// Which dimension of activations is the sequence.
    pub sequence_dim: Option<isize>,
}

impl ParallelStyle for WholeModel {
    fn name(&self) -> &'static str {
        if self.sequence_dim.is_some() { "plan tp-sp" } else { "plan tp" }
    }

    fn accepts(&self) -> &'static str {
        "linears and embeddings"
    }

    fn place(&self, module: &Module<'_>, to: &mut Placements) -> Result<(), StyleError> {
        let mut rows = pairs(module, to);
        let levelled = module.levels();
        let last = levelled.iter().map(|l| l.1).max().unwrap_or(0);
        for (weight, _) in levelled.iter().filter(|l| l.1 == last && last % 2 == 1 && last > 1) {
            to.cut(module, weight, Way::Columns);
        }
        let tables = module.all_parameters().filter(|w| w.role == Role::Embedding);
        if let Some(table) = tables.max_by_key(|w| (module.rows(w), Reverse(w.input))) {
            to.cut(module, table, Way::Rows);
            rows.push(module_of(&table.name).to_string());
        }
        if let Some(dim) = self.sequence_dim {
            rows.iter().for_each(|path| to.sequence(path, dim));
        }
        Ok(())
    }
}
