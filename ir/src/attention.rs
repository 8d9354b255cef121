//! Attention as one action of a rank: the scores are never in memory as a whole.
//!
//! ```text
//! product[b, r, c] = Σ_i query[b, r, i] · key[b, c, i]
//! score            = the body `score` of product
//! p[b, r, c]       = exp(score − max_c score) / Σ_c exp(score − max_c score)
//! out[b, r, w]     = Σ_c p · weight · value[b, c, w]
//! ```
//! and backward, given the gradient of `out` (Dao et al., "FlashAttention: fast and memory-efficient exact
//! attention with IO-awareness"; the products are computed again from `query` and `key`):
//! ```text
//! g[b, r, c]           = Σ_w grad_out[b, r, w] · value[b, c, w] · weight
//! s                    = p · (g − Σ_c p · g)      where Σ_c p · g = Σ_w grad_out · out
//! d[b, r, c]           = the body `gradient` of s and product
//! grad_query[b, r, i]  = Σ_c d · key          grad_key[b, c, i] = Σ_r d · query
//! grad_value[b, c, w]  = Σ_r p · weight · grad_out
//! ```
//! Products, scores and probabilities are f32, or f64 if one of them is in the program; narrower types in the program that
//! this came from are not rounded to. A device may round `p · weight` and `d` to the operands' type before it
//! multiplies them, and no other value.

use crate::instruction::Instruction;
use crate::memory::View;
use serde::{Deserialize, Serialize};
use std::fmt::Write as _;

/// An operand or result: a view of the whole of it, the stride of each dimension of [`Attention::dims`] (0 where it
/// does not have it) and of its own dimensions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Operand {
    /// Buffer, element offset, element type; its shape and strides only say what it covers.
    pub view: View,
    /// Element stride per dimension of the scores.
    pub dims: Vec<isize>,
    /// Element stride per summed dimension (query, key and their gradients) or per dimension of the value.
    pub own: Vec<isize>,
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attention {
    /// Extents of the scores: any number of batch dimensions, rows, columns. An operand may lack a batch
    /// dimension (stride 0: the heads that share a key); the gradient of such an operand is summed over it.
    pub dims: Vec<usize>,
    /// Extents of what `query` and `key` are summed over.
    pub inner: Vec<usize>,
    /// Extents of `value`'s own dimensions.
    pub width: Vec<usize>,
    /// Has no columns.
    pub query: Operand,
    /// Has no rows.
    pub key: Operand,
    /// Has no rows; own dimensions are `width`.
    pub value: Operand,
    /// Has no columns; own dimensions are `width`. Written forward, read backward.
    pub out: Operand,
    /// The largest score of each row, dense `[batch…, rows]`, f32 or f64. Written forward, read backward.
    pub max: View,
    /// The sum of exponentials of each row, as `max`.
    pub sum: View,
    /// Whether a backward pass follows, which needs `max` and `sum`; otherwise they need not be written.
    pub keep: bool,
    /// Scores: `Given(0)` is the product. The last instruction's register is the result. No reductions, no stores; loads
    /// have a stride per dimension of `dims`.
    pub score: Vec<Instruction>,
    /// What a probability is multiplied by (dropout); has no `Given`. Empty for 1.
    pub weight: Vec<Instruction>,
    /// Room for blocks of rows on devices without fast memory of their own, dense `[2, rows of a block, columns]`
    /// (forward only the first half is used), f32 or f64.
    pub tile: View,
    /// None in the forward pass.
    pub backward: Option<Backward>,
}

/// What the backward pass has besides.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Backward {
    /// Has no columns; own dimensions are `width`.
    pub grad_out: Operand,
    /// From the gradient of the score, `Given(0)`, to that of the product; `Given(1)` is the product; 0 where
    /// the former is 0. Empty if only `grad_value` is wanted.
    pub gradient: Vec<Instruction>,
    /// As `query`, not read; none if nobody wants it.
    pub grad_query: Option<Operand>,
    /// As `key`.
    pub grad_key: Option<Operand>,
    /// As `value`.
    pub grad_value: Option<Operand>,
    /// Room for `Σ_w grad_out · out` of each row, dense `[batch…, rows]`, f32 or f64, on devices that need it.
    pub delta: View,
    /// Room for gradients that are narrower than the sums they are made of, on devices that sum in memory: dense f32
    /// or f64, those of query, key and value (that are such) one after the other, each for one index of the batch
    /// dimensions that query, key and value all have: `[other batch dimensions that it has…, rows or columns, own…]`.
    pub sums: View,
}

impl Attention {
    /// Number of batch dimensions.
    pub fn batch(&self) -> usize {
        self.dims.len() - 2
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.dims[self.dims.len() - 2]
    }

    /// Number of columns.
    pub fn columns(&self) -> usize {
        self.dims[self.dims.len() - 1]
    }

    /// Whether a batch dimension is one that query, key and value all have.
    pub fn is_common(&self, dim: usize) -> bool {
        self.dims[dim] == 1 || [&self.query, &self.key, &self.value].iter().all(|o| o.dims[dim] != 0)
    }

    /// What it reads beside the loads of its bodies and the numbers of each row: query, key and value, backward also the
    /// result and its gradient.
    pub fn operands(&self) -> Vec<&Operand> {
        let backward = self.backward.iter().flat_map(|b| [&self.out, &b.grad_out]);
        [&self.query, &self.key, &self.value].into_iter().chain(backward).collect()
    }

    /// What it makes for others: forward the result, backward the gradients that are wanted of query, key and value, in
    /// that order.
    pub fn results(&self) -> Vec<&Operand> {
        match &self.backward {
            None => vec![&self.out],
            Some(b) => [&b.grad_query, &b.grad_key, &b.grad_value].into_iter().flatten().collect(),
        }
    }

    /// Calls `visit` with every view that is touched, and whether it is written.
    pub fn each_view<'a>(&'a self, visit: &mut dyn FnMut(&'a View, bool)) {
        let forward = self.backward.is_none();
        for operand in [&self.query, &self.key, &self.value] {
            visit(&operand.view, false);
        }
        visit(&self.out.view, forward);
        visit(&self.max, forward);
        visit(&self.sum, forward);
        visit(&self.tile, true);
        let gradient = self.backward.iter().flat_map(|b| &b.gradient);
        for instruction in self.score.iter().chain(&self.weight).chain(gradient) {
            if let Instruction::Load { view, .. } = instruction {
                visit(view, false);
            }
        }
        let Some(b) = &self.backward else { return };
        visit(&b.grad_out.view, false);
        visit(&b.delta, true);
        visit(&b.sums, true);
        for operand in [&b.grad_query, &b.grad_key, &b.grad_value].into_iter().flatten() {
            visit(&operand.view, true);
        }
    }

    /// For the `scheduled` text: sizes and operands, then the bodies.
    pub(crate) fn to_text(
        &self,
        view: &dyn Fn(&View) -> String,
        instruction: &dyn Fn(usize, &Instruction) -> String,
    ) -> String {
        let operand =
            |o: &Operand| format!("b{}+{} {} {:?}{:?}", o.view.buffer.0, o.view.offset, o.view.dtype, o.dims, o.own);
        let mut text = format!("attention {:?} inner {:?} width {:?}\n", self.dims, self.inner, self.width);
        let mut line = |name: &str, what: String| {
            let _ = writeln!(text, "    {name} {what}");
        };
        line("query", operand(&self.query));
        line("key", operand(&self.key));
        line("value", operand(&self.value));
        line("out", operand(&self.out));
        line("max", view(&self.max));
        line("sum", view(&self.sum));
        line("tile", view(&self.tile));
        if let Some(b) = &self.backward {
            line("grad out", operand(&b.grad_out));
            line("delta", view(&b.delta));
            line("sums", view(&b.sums));
            let results = [("query", &b.grad_query), ("key", &b.grad_key), ("value", &b.grad_value)];
            for (name, result) in results {
                if let Some(result) = result {
                    line(&format!("grad {name} ->"), operand(result));
                }
            }
        }
        let mut body = |name: &str, body: &[Instruction]| {
            for (i, ins) in body.iter().enumerate() {
                let _ = writeln!(text, "    {name} {}", instruction(i, ins));
            }
        };
        body("score", &self.score);
        body("weight", &self.weight);
        if let Some(b) = &self.backward {
            body("gradient", &b.gradient);
        }
        text
    }
}
