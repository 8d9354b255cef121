//! Removes the noise of a capture before any placement is chosen.
//!
//! Before, as burn records a linear layer on `[b, s, d]`:
//! ```text
//! %2 = reshape %0                       : f32[8, 64]
//! %3 = einsum "ab,bc->ac" %2, %1        : f32[8, 96]
//! %4 = reshape %3                       : f32[2, 4, 3, 32]
//! %5 = identity "abcd->acbd" %4         : f32[2, 3, 4, 32]
//! ```
//! After: `%2 = einsum "abc,cde->abde" %0, %1 : f32[2, 4, 3, 32]`, where the weight has the type `f32[64, 3, 32]` and
//! every user of `%2` reads its dimensions in the order that it needs.

mod factor;
mod pick;
mod simplify;

pub use factor::factor_dimensions;
pub use simplify::simplify;

use tpc_ir::Graph;

/// Factors dimensions, then simplifies until nothing changes.
pub fn canonicalize(graph: &Graph) -> Graph {
    let mut graph = simplify(&factor_dimensions(&simplify(graph)));
    loop {
        let next = simplify(&graph);
        if next.len() == graph.len() {
            return next;
        }
        graph = next;
    }
}
