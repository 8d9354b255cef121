//! The duration of a matrix product.

use super::program::Ranks;
use crate::Outcome;
use std::fmt::Write as _;
use std::time::Duration;
use tpc_ir::DType;
use tpc_runtime::session::Backend;

/// Rows and columns of the measured products, from one that takes little longer than its launch to one that fills the
/// device.
pub(super) fn sizes(backend: Backend) -> &'static [usize] {
    match backend {
        Backend::Cpu => &[4, 128, 384, 768],
        Backend::Cuda => &[16, 512, 2048, 8192],
    }
}

/// Floating-point operations of a product of two square matrices.
pub fn work(size: usize) -> f64 {
    2.0 * (size as f64).powi(3)
}

/// Approximate number of operations in a step, chosen so that the cost of starting the step is negligible.
const STEP: f64 = 1e8;

/// Largest number of products in a step.
const MOST: usize = 512;

/// A program with a chain of products, each of the previous result with the same matrix.
fn chain(machine: &Ranks, dtype: DType, size: usize, count: usize) -> String {
    let square = format!("{dtype}[{size}, {size}]");
    let mut text = format!("{}\n", machine.mesh());
    for (i, name) in ["a", "b"].into_iter().enumerate() {
        let _ = writeln!(text, "%{i} = input data \"{name}\" : {square}");
    }
    for i in 0..count {
        let last = if i == 0 { 0 } else { i + 1 };
        let _ = writeln!(text, "%{} = einsum \"ab,bc->ac\" %{last}, %1 : {square}  ; forward", i + 2);
    }
    let _ = writeln!(text, "output result \"c\" %{}", count + 1);
    text
}

/// Seconds of the fastest step with this many products.
fn step(machine: &Ranks, dtype: DType, size: usize, count: usize) -> Outcome<f64> {
    // Values keep their magnitude for any number of products, so there are no infinities or denormal numbers.
    let value = 1.0 / size as f64;
    let mut session = machine.launch(&chain(machine, dtype, size, count), value)?;
    machine.fastest(&mut session, |_, seconds| seconds)
}

/// Seconds of one product on every rank. A step has many small products, and the cost of starting a step is subtracted.
///
/// # Errors
/// Ranks that cannot be started.
pub(super) fn seconds(machine: &Ranks, dtype: DType, size: usize) -> Outcome<f64> {
    let count = ((STEP / work(size)) as usize).clamp(1, MOST);
    if count == 1 {
        return step(machine, dtype, size, 1);
    }
    let half = Ranks { each: machine.each / 2, ..*machine };
    let (many, one) = (step(&half, dtype, size, count)?, step(&half, dtype, size, 1)?);
    // Because of noise, a single product can seem slower than many.
    Ok(((many - one) / (count - 1) as f64).max(many / count as f64 * 0.1))
}

/// Floating-point operations per second of this many CPU ranks that only compute f32 products. Each rank has its own
/// product, whose matrices fit into the core's caches. The measurement takes the given time.
/// # Errors
/// A host that cannot run so many.
pub fn cached_rate(ranks: usize, each: Duration) -> Outcome<f64> {
    const SIZE: usize = 384;
    let machine = Ranks { backend: Backend::Cpu, ranks, each };
    Ok(ranks as f64 * work(SIZE) / step(&machine, DType::F32, SIZE, 1)?)
}
