//! The keys and values of earlier tokens, which attention keeps from run to run.
//!
//! A cache is slot-major, `[slots, batch, kv_heads, head_dim]`: a run writes the rows of its slots in place, and the
//! first slots of a long cache are a view.

use super::mask::Mask;
use crate::capture::{After, Before, Kept};
use burn::tensor::{DType, IndexingUpdateOp, Int, Tensor};
use std::cell::RefCell;
use std::rc::Rc;

/// The cache of one attention.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheShape {
    /// The path of the attention's module.
    pub owner: String,
    /// Number of key-value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
}

impl CacheShape {
    /// The keys and values of this many sequences, in this many slots, as entries of a batch.
    pub fn kept(&self, batch: usize, slots: usize) -> (Kept<4>, Kept<4>) {
        let kept = |name| Kept::new(&self.owner, name, [slots, batch, self.kv_heads, self.head_dim], DType::F32);
        (kept("keys"), kept("values"))
    }
}

/// The inputs of a causal model in a run with a cache: `t` tokens of each of `b` sequences, which use the same slots.
#[derive(Debug, Clone)]
pub struct CachedInputs {
    /// Token numbers, `[b, t]`.
    pub input_ids: Tensor<2, Int>,
    /// The position of each token in its sequence, `[b, t]`.
    pub position_ids: Tensor<2, Int>,
    /// The slot of each column, `[t]`.
    pub slots: Tensor<1, Int>,
    /// The first slot of each sequence, `[b]`; the slots before it are masked for the sequence.
    pub first: Tensor<1, Int>,
    /// Number of visible slots, which include the last slot of the run.
    pub seen: usize,
}

/// Keys and values of one attention, before a run.
pub type LayerCache = (Before<4>, Before<4>);
/// Keys and values of one attention, after a run.
pub type NextCache = (After<4>, After<4>);

/// The caches of a run. Every attention extends its own cache, in the order of the forward pass.
#[derive(Debug, Clone)]
pub struct Cache {
    positions: Tensor<2, Int>,
    slots: Tensor<1, Int>,
    first: Tensor<1, Int>,
    seen: usize,
    /// Number of slots.
    all: usize,
    layers: Rc<RefCell<Layers>>,
}

#[derive(Debug)]
struct Layers {
    before: std::vec::IntoIter<LayerCache>,
    after: Vec<NextCache>,
}

impl Cache {
    /// The caches before a run.
    pub fn new(inputs: &CachedInputs, layers: Vec<LayerCache>) -> Self {
        let all = layers.first().map_or(0, |(keys, _)| keys.tensor.dims()[0]);
        let layers = Layers { before: layers.into_iter(), after: Vec::new() };
        let CachedInputs { position_ids, slots, first, seen, .. } = inputs.clone();
        Cache { positions: position_ids, slots, first, seen, all, layers: Rc::new(RefCell::new(layers)) }
    }

    /// Number of slots, and therefore of positions.
    pub fn slots(&self) -> usize {
        self.all
    }

    /// The position of each token of the run in its sequence, `[b, t]`.
    pub fn positions(&self) -> Tensor<2, Int> {
        self.positions.clone()
    }

    /// Writes the keys and values `[b, t, kv, hd]` of the run into the next cache, and returns those of all visible
    /// slots, `[b, seen, kv, hd]`.
    ///
    /// # Panics
    /// If there are more attentions than caches.
    pub fn extend(&self, keys: Tensor<4>, values: Tensor<4>) -> (Tensor<4>, Tensor<4>) {
        let mut layers = self.layers.borrow_mut();
        let before = layers.before.next().expect("every attention has a cache");
        let written = |before: &Before<4>, rows: Tensor<4>| {
            let (table, slots) = (before.tensor.clone(), self.slots.clone());
            table.select_assign(0, slots, rows.swap_dims(0, 1), IndexingUpdateOp::Assign)
        };
        let (keys, values) = (written(&before.0, keys), written(&before.1, values));
        layers.after.push((before.0.becomes(keys.clone()), before.1.becomes(values.clone())));
        let seen = |table: Tensor<4>| table.narrow(0, 0, self.seen).swap_dims(0, 1);
        (seen(keys), seen(values))
    }

    /// The mask of the run: a query sees the slots of its own sequence up to its own slot, at most `window` of them.
    pub fn mask(&self, window: Option<usize>) -> Mask {
        let ([batch], [seq]) = (self.first.dims(), self.slots.dims());
        let keys = Tensor::<1, Int>::arange(0..self.seen as i64, &self.slots.device()).reshape([1, 1, 1, self.seen]);
        let queries = self.slots.clone().reshape([1, 1, seq, 1]);
        let mut hidden = keys.clone().greater(queries.clone());
        if let Some(window) = window.filter(|window| *window < self.seen) {
            hidden = hidden.bool_or(keys.clone().lower_equal(queries.sub_scalar(window as i64)));
        }
        Mask::of_slots(hidden.bool_or(keys.lower(self.first.clone().reshape([batch, 1, 1, 1]))))
    }

    /// The caches after the run.
    pub fn after(self) -> Vec<NextCache> {
        std::mem::take(&mut self.layers.borrow_mut().after)
    }
}
