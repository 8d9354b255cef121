//! One rank's kernels: local shapes, strides, offsets, groups.
//!
//! Operands of a collective that carries several values lie side by side. A value that has its own
//! kernel is written there at once; others (views, inputs, what more than one bucket wants) are copied.
//! An all-reduce writes its result over its operand if no other kernel reads the operand, and a product with an
//! epilogue writes over the value that the epilogue adds under the same condition.
//!
//! | question | file |
//! |---|---|
//! | the program while it is being made | `emitter` |
//! | the inputs and outputs of a rank's program | `boundary` |
//! | where a value lies in memory | `views` |
//! | what is written over memory that holds something else | `in_place` |
//! | loops, and the bodies of epilogues | `loops` |
//! | products | `products` |
//! | operations that are a kernel by themselves | `single` |
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
use super::kernel::Kernel;
use super::launches::{Launch, Schedule};
use emitter::Emitter;
use in_place::{InPlace, in_place, stored};
use tpc_ir::Graph;
use tpc_ir::program::RankProgram;

/// Emits the program of one rank with unplaced buffers, and what each of its steps is said to do.
pub(super) fn emit(graph: &Graph, schedule: &Schedule, rank: usize) -> (RankProgram, Claims) {
    let kernels = &schedule.kernels;
    let mut emitter = Emitter::new(graph, kernels, stored(graph, kernels), rank);
    emitter.inputs();
    let in_place = in_place(graph, schedule);
    for (k, kernel) in kernels.iter().enumerate() {
        if let Kernel::Collective(nodes) = kernel {
            emitter.slices(k, nodes);
        }
    }
    for launch in &schedule.order {
        let (Launch::Run(k) | Launch::Start(k) | Launch::Wait(k)) = *launch;
        match &kernels[k] {
            Kernel::Collective(nodes) | Kernel::Products { products: nodes, .. } => emitter.enter(nodes),
            kernel => emitter.enter(&[kernel.last()]),
        }
        match (*launch, &kernels[k]) {
            (Launch::Run(_), kernel) => run(&mut emitter, kernel, &in_place[k]),
            (Launch::Start(_), Kernel::Collective(nodes)) => emitter.start(k, nodes),
            (Launch::Wait(_), Kernel::Collective(nodes)) => emitter.wait(k, nodes),
            (launch, kernel) => unreachable!("{launch:?} of {kernel:?}"),
        }
    }
    emitter.outputs();
    (emitter.program, Claims(emitter.claims))
}

/// Emits what a kernel that runs by itself does.
fn run(emitter: &mut Emitter<'_>, kernel: &Kernel, in_place: &InPlace) {
    match kernel {
        Kernel::Loop(nest) => emitter.fused(nest, in_place),
        Kernel::Products { products, epilogue } => emitter.products(products, epilogue),
        Kernel::Attention { attention, nodes, reads } => emitter.attention(attention, nodes, reads),
        Kernel::Single(node) => emitter.single(*node, in_place),
        Kernel::Collective(_) => unreachable!("a collective starts and is waited for"),
    }
}
