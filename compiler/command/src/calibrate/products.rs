//! How long a matrix product takes.

use super::program::Ranks;
use crate::Outcome;
use std::fmt::Write as _;
use std::time::Duration;
use tpc_ir::DType;
use tpc_runtime::session::Backend;

/// Rows and columns of the products that are measured, from one that is hardly more than its launch to one that fills the device.
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

/// About as many operations as a step should have, so that starting it is little beside them.
const STEP: f64 = 1e8;

/// Most products of a step.
const MOST: usize = 512;

/// A program of some products, each of the one before and the same matrix.
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

/// Seconds of the fastest step of some products.
fn step(machine: &Ranks, dtype: DType, size: usize, count: usize) -> Outcome<f64> {
    // What is multiplied stays about what it is, whatever the number of products: no infinities, no denormal numbers.
    let value = 1.0 / size as f64;
    let mut session = machine.launch(&chain(machine, dtype, size, count), value)?;
    machine.fastest(&mut session, |_, seconds| seconds)
}

/// Seconds of one product on every rank. Of small ones a step has many, and what starting a step costs is taken off.
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
    // Noise may make a single product longer than many.
    Ok(((many - one) / (count - 1) as f64).max(many / count as f64 * 0.1))
}

/// Floating-point operations a second of so many ranks of the CPU that do nothing but products in f32, each its own, whose matrices fit
/// into a core's caches; measured for so long.
///
/// # Errors
/// A host that cannot run so many.
pub fn cached_rate(ranks: usize, each: Duration) -> Outcome<f64> {
    const SIZE: usize = 384;
    let machine = Ranks { backend: Backend::Cpu, ranks, each };
    Ok(ranks as f64 * work(SIZE) / step(&machine, DType::F32, SIZE, 1)?)
}
