//! From a placed graph to what each rank executes.
//!
//! 1. [`group`]: loops that share an iteration space become one kernel (softmax, norms, losses and
//!    optimizer updates are found here);
//! 2. kernels are ordered;
//! 3. `emit`: for one rank, local shapes, strides and offsets;
//! 4. `memory`: buffers get places in one arena by their lives.
//!
//! Before: `%4 = mul %2, %3 : f32[16, 256@tp]`, `%5 = reduce_sum "ab->a" %4`.
//! After: `loop [16, 128]`: `r0 = load …`, `r1 = load …`, `r2 = mul r0, r1`,
//! `r3 = reduce_row sum r2`, `store r3 -> …`.

mod emit;
pub mod group;
mod memory;

use tpc_ir::Graph;
use tpc_ir::program::RankProgram;

/// The programs of all ranks of a placed graph.
pub fn lower(graph: &Graph) -> Vec<RankProgram> {
    let kernels = group::kernels(graph);
    (0..graph.mesh.ranks()).map(|rank| lower_rank(graph, &kernels, rank)).collect()
}

/// The program of one rank; `kernels` come from [`group::kernels`] and are the same for all ranks.
pub fn lower_rank(graph: &Graph, kernels: &[group::Kernel], rank: usize) -> RankProgram {
    let mut program = emit::emit(graph, kernels, rank);
    memory::plan(&mut program);
    program
}
