//! The memory bandwidth of a rank, in bytes per second, by the bytes that are touched before they are touched again.

use super::program::Ranks;
use crate::Outcome;
use tpc_passes::targets::{Cache, Loops};
use tpc_runtime::session::Backend;

/// Elements of the arrays. On a CPU, all but the last fit into some cache.
fn sizes(backend: Backend) -> &'static [usize] {
    match backend {
        Backend::Cpu => &[48 << 10, 112 << 10, 512 << 10, 4 << 20, 8 << 20, 24 << 20],
        Backend::Cuda => &[64 << 20],
    }
}

/// Number of measurements.
pub(super) fn count(backend: Backend) -> usize {
    sizes(backend).len() + 1
}

/// Bytes of three arrays, two of which are added.
fn bytes(elements: usize) -> f64 {
    (3 * 4 * elements) as f64
}

/// The least time of a step in which all ranks add two arrays.
fn step(machine: &Ranks, elements: usize) -> Outcome<f64> {
    let array = format!("f32[{elements}]");
    let source = format!(
        "{}\n%0 = input data \"a\" : {array}\n%1 = input data \"b\" : {array}\n\
         %2 = add %0, %1 : {array}  ; forward\noutput result \"c\" %2\n",
        machine.mesh()
    );
    let mut session = machine.launch(&source, 0.5)?;
    machine.fastest(&mut session, |_, seconds| seconds)
}

/// The bandwidth of each rank while all ranks add two arrays, smallest arrays first. What `loops` says of the additions is
/// subtracted, and so is the cost of starting a step.
pub(super) fn measure(machine: &Ranks, loops: Option<Loops>) -> Outcome<Vec<Cache>> {
    let start = step(machine, 1)?;
    let measured = sizes(machine.backend).iter().map(|&elements| {
        let seconds = step(machine, elements)?;
        let adding = loops.map_or(0.0, |loops| elements as f64 / loops.arithmetic);
        // However fast the memory is, it takes some of the time.
        let moving = (seconds - start - adding).max(0.2 * seconds);
        Ok(Cache { bytes: bytes(elements), bandwidth: bytes(elements) / moving })
    });
    measured.collect()
}
