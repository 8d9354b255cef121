//! Emits the program of one rank: kernels with local shapes, strides, offsets and groups.
//!
//! The operands of a collective of several values are side by side in one buffer. A value that a kernel computes is
//! written there directly; others (views, inputs, operands of several buckets) are copied. An all-reduce overwrites its
//! operand if no other kernel reads it. Under the same condition, a product with an epilogue overwrites the value that
//! the epilogue adds.
//!
//! | question | file |
//! |---|---|
//! | the state of emitting a program | `emitter` |
//! | inputs and outputs | `boundary` |
//! | the views of values in memory | `views` |
//! | results that overwrite the memory of another value | `in_place` |
//! | loops, and the bodies of epilogues | `loops` |
//! | products | `products` |
//! | operations that are kernels on their own | `single` |
//! | attention | `attention` |
//! | collectives and their buffers | `collectives` |

mod attention;
mod boundary;
mod collectives;
mod emitter;
mod in_place;
mod loops;
mod products;
mod single;
mod views;

use super::claims::Claims;
use super::events::{Event, Schedule};
use super::kernel::Kernel;
use emitter::Emitter;
use in_place::{InPlace, in_place, stored};
use tpc_ir::Graph;
use tpc_ir::program::RankProgram;

/// Emits the program of one rank, whose buffers have no offsets yet, and the claims of its steps.
pub(super) fn emit(graph: &Graph, schedule: &Schedule, rank: usize) -> (RankProgram, Claims) {
    let kernels = &schedule.kernels;
    let mut emitter = Emitter::new(graph, kernels, stored(graph, kernels), rank);
    emitter.inputs();
    let in_place = in_place(graph, schedule, &emitter.output_nodes);
    for (k, kernel) in kernels.iter().enumerate() {
        if let Kernel::Collective(nodes) = kernel {
            emitter.allocate_bucket(k, nodes);
        }
    }
    for event in &schedule.order {
        let (Event::Run(k) | Event::Start(k) | Event::Wait(k)) = *event;
        match &kernels[k] {
            Kernel::Collective(nodes) | Kernel::Products { products: nodes, .. } => emitter.enter(nodes),
            kernel => emitter.enter(&[kernel.last()]),
        }
        match (*event, &kernels[k]) {
            (Event::Run(_), kernel) => run(&mut emitter, kernel, &in_place[k]),
            (Event::Start(_), Kernel::Collective(nodes)) => emitter.start(k, nodes),
            (Event::Wait(_), Kernel::Collective(nodes)) => emitter.wait(k, nodes),
            (event, kernel) => unreachable!("{event:?} of {kernel:?}"),
        }
    }
    emitter.outputs();
    (emitter.program, Claims(emitter.claims))
}

/// Emits a kernel that is not a collective.
fn run(emitter: &mut Emitter<'_>, kernel: &Kernel, in_place: &InPlace) {
    match kernel {
        Kernel::Loop(nest) => emitter.fused(nest, in_place),
        Kernel::Products { products, epilogue } => emitter.products(products, epilogue),
        Kernel::Attention { attention, nodes, reads } => emitter.attention(attention, nodes, reads),
        Kernel::Single(node) => emitter.single(*node, in_place),
        Kernel::Collective(_) => unreachable!("a collective starts and is waited for"),
    }
}
