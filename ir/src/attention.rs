//! Attention as one action of a rank. The matrix of scores is never in memory as a whole.
//!
//! ```text
//! product[b, r, c] = Σ_i query[b, r, i] · key[b, c, i]
//! score            = the body `score`, applied to product
//! p[b, r, c]       = exp(score − max_c score) / Σ_c exp(score − max_c score)
//! out[b, r, w]     = Σ_c p · weight · value[b, c, w]
//! ```
//! The backward pass, given the gradient of `out`, follows Dao et al., "FlashAttention: fast and memory-efficient exact
//! attention with IO-awareness". It recomputes the products from `query` and `key`:
//! ```text
//! g[b, r, c]           = Σ_w grad_out[b, r, w] · value[b, c, w] · weight
//! s                    = p · (g − Σ_c p · g)      where Σ_c p · g = Σ_w grad_out · out
//! d[b, r, c]           = the body `gradient`, applied to s and product
//! grad_query[b, r, i]  = Σ_c d · key          grad_key[b, c, i] = Σ_r d · query
//! grad_value[b, c, w]  = Σ_r p · weight · grad_out
//! ```
//! Products, scores and probabilities are f64 if one of them is f64 in the program that attention was recognized in,
//! and f32 otherwise; they are not rounded to narrower types that this program gives them. A device may round `p ·
//! weight` and `d` to the type of the operands before it multiplies them. It may round no other value.

use crate::instruction::Instruction;
use crate::memory::View;
use serde::{Deserialize, Serialize};
use std::fmt::Write as _;

/// An operand or a result: a view that covers it, its stride along each dimension of [`Attention::dims`] (0 where it
/// lacks that dimension), and its strides along the dimensions that the scores do not have.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Operand {
    /// Buffer, element offset and element type. Elements are addressed by the strides below; the shape and the strides
    /// of the view only say which elements it covers.
    pub view: View,
    /// Element stride per dimension of the scores.
    pub dims: Vec<isize>,
    /// Element stride per dimension of [`Attention::inner`] (query, key and their gradients) or of
    /// [`Attention::width`] (value, result and their gradients).
    pub own: Vec<isize>,
}

/// One attention, forward or backward. The [module](self) defines what it computes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attention {
    /// Extents of the scores: any number of batch dimensions, then rows and columns. An operand may lack a batch
    /// dimension (its stride is then 0, as where several heads share a key); its gradient is summed over that
    /// dimension.
    pub dims: Vec<usize>,
    /// Extents of the dimensions that the product of `query` and `key` sums over.
    pub inner: Vec<usize>,
    /// Extents of the dimensions of `value` that are neither batch dimensions nor columns.
    pub width: Vec<usize>,
    /// Has strides along batch dimensions and rows.
    pub query: Operand,
    /// Has strides along batch dimensions and columns.
    pub key: Operand,
    /// Has strides along batch dimensions and columns; its own dimensions are `width`.
    pub value: Operand,
    /// Has strides along batch dimensions and rows; its own dimensions are `width`. The forward pass writes it, the
    /// backward pass reads it.
    pub out: Operand,
    /// The largest score of each row, dense `[batch…, rows]`, f32 or f64. The forward pass writes it, the backward pass
    /// reads it.
    pub max: View,
    /// The sum of exponentials of each row, stored as `max` is.
    pub sum: View,
    /// Whether a backward pass follows and needs `max` and `sum`. If not, they need not be written.
    pub keep: bool,
    /// The body that computes a score: `Given(0)` is the product, and the register of the last instruction is the
    /// result. It has no reductions and no stores, and its loads have a stride per dimension of `dims`.
    pub score: Vec<Instruction>,
    /// The body that computes the factor of a probability (dropout). It has no `Given`. An empty body stands for 1.
    pub weight: Vec<Instruction>,
    /// Scratch memory for blocks of rows, on devices without fast memory of their own: dense `[2, rows of a block,
    /// columns]`, f32 or f64. The forward pass uses only the first half.
    pub tile: View,
    /// `None` in the forward pass.
    pub backward: Option<Backward>,
}

/// The operands, results and scratch memory that only the backward pass has.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Backward {
    /// The gradient of `out`, with the same dimensions as `out`.
    pub grad_out: Operand,
    /// The body that computes the gradient of the product from the gradient of the score (`Given(0)`) and the product
    /// (`Given(1)`). Where the gradient of the score is 0, the result is 0. Empty if only `grad_value` is wanted.
    pub gradient: Vec<Instruction>,
    /// The gradient of `query`, with the same dimensions as `query`. It is written only; `None` if nothing reads it.
    pub grad_query: Option<Operand>,
    /// The gradient of `key`, with the same dimensions as `key`. It is written only; `None` if nothing reads it.
    pub grad_key: Option<Operand>,
    /// The gradient of `value`, with the same dimensions as `value`. It is written only; `None` if nothing reads it.
    pub grad_value: Option<Operand>,
    /// Scratch memory for `Σ_w grad_out · out` of each row, on devices that need it: dense `[batch…, rows]`, f32 or
    /// f64.
    pub delta: View,
    /// Scratch memory for the sums of gradients whose own type is narrower than f32 or f64, on devices that sum in
    /// memory. It holds the sums of query, key and value, of those that need them, one after the other, dense, for one
    /// index of the batch dimensions that query, key and value all have. Each has the shape `[other batch dimensions
    /// that it has…, rows or columns, own…]`.
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

    /// Whether query, key and value all have a batch dimension.
    pub fn is_common(&self, dim: usize) -> bool {
        self.dims[dim] == 1 || [&self.query, &self.key, &self.value].iter().all(|o| o.dims[dim] != 0)
    }

    /// The operands: query, key and value; in the backward pass also the result and its gradient. The loads of the
    /// bodies, `max` and `sum` are not among them.
    pub fn operands(&self) -> Vec<&Operand> {
        let backward = self.backward.iter().flat_map(|b| [&self.out, &b.grad_out]);
        [&self.query, &self.key, &self.value].into_iter().chain(backward).collect()
    }

    /// The results: `out` in the forward pass; in the backward pass the gradients of query, key and value that are
    /// wanted, in this order.
    pub fn results(&self) -> Vec<&Operand> {
        match &self.backward {
            None => vec![&self.out],
            Some(b) => [&b.grad_query, &b.grad_key, &b.grad_value].into_iter().flatten().collect(),
        }
    }

    /// Calls `visit` with every view that is read or written, and whether it is written.
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

    /// The lines of the `scheduled` text: sizes and operands, then the bodies.
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
