//! The duration of a matrix product.

use super::program::Ranks;
use crate::Outcome;
use std::fmt::Write as _;
use std::time::Duration;
use tpc_ir::DType;
use tpc_runtime::session::Backend;

/// Rows and columns of the measured products, from one that takes little longer than its launch to one that fills the
/// device. On a CPU, the operands of the last ones do not fit into the caches of a core.
pub(super) fn sizes(backend: Backend) -> &'static [usize] {
    match backend {
        Backend::Cpu => &[4, 128, 384, 768, 1536],
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

/// The products of a layer in a training step: of the forward pass, of the gradient of its input, of that of its weight. They
/// read their operands along different dimensions.
const FORMS: [&str; 3] = ["ab,bc->ac", "ab,cb->ac", "ba,bc->ac"];

/// A program with a chain of products, each of the previous result with the same matrix, in all forms in turn.
fn chain(machine: &Ranks, dtype: DType, size: usize, count: usize) -> String {
    let square = format!("{dtype}[{size}, {size}]");
    let mut text = format!("{}\n", machine.mesh());
    for (i, name) in ["a", "b"].into_iter().enumerate() {
        let _ = writeln!(text, "%{i} = input data \"{name}\" : {square}");
    }
    for i in 0..count {
        let last = if i == 0 { 0 } else { i + 1 };
        let form = FORMS[i % FORMS.len()];
        let _ = writeln!(text, "%{} = einsum \"{form}\" %{last}, %1 : {square}  ; forward", i + 2);
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

/// Bytes of the operands and the result of a product of two square matrices.
pub(super) fn bytes(dtype: DType, size: usize) -> f64 {
    (3 * dtype.bytes() * size * size) as f64
}

/// Seconds of one product on every rank, on average over its forms. A step has many small products, and the cost of starting a
/// step is subtracted.
///
/// # Errors
/// Ranks that cannot be started.
pub(super) fn seconds(machine: &Ranks, dtype: DType, size: usize) -> Outcome<f64> {
    let forms = FORMS.len();
    let count = ((STEP / work(size)) as usize).clamp(forms, MOST).next_multiple_of(forms);
    if count == forms {
        return Ok(step(machine, dtype, size, forms)? / forms as f64);
    }
    let half = Ranks { each: machine.each / 2, ..*machine };
    let (many, few) = (step(&half, dtype, size, count)?, step(&half, dtype, size, forms)?);
    // Because of noise, a few products can seem slower than many.
    Ok(((many - few) / (count - forms) as f64).max(many / count as f64 * 0.1))
}

/// Floating-point operations per second of this many CPU ranks that only compute f32 products. Each rank has its own
/// product, whose matrices fit into the core's caches. The measurement takes the given time.
///
/// # Errors
/// A host that cannot run so many.
pub fn cached_rate(ranks: usize, each: Duration) -> Outcome<f64> {
    const SIZE: usize = 384;
    let machine = Ranks { backend: Backend::Cpu, ranks, each };
    Ok(ranks as f64 * work(SIZE) / step(&machine, DType::F32, SIZE, 1)?)
}
