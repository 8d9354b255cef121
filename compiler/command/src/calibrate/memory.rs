//! The memory bandwidth of a rank, in bytes per second.

use super::program::Ranks;
use crate::Outcome;
use tpc_runtime::session::Backend;

/// Bytes per second of each rank while all ranks add two arrays that do not fit into any cache.
pub(super) fn rate(machine: &Ranks) -> Outcome<f64> {
    let elements: usize = match machine.backend {
        Backend::Cpu => 8 << 20,
        Backend::Cuda => 64 << 20,
    };
    let array = format!("f32[{elements}]");
    let source = format!(
        "{}\n%0 = input data \"a\" : {array}\n%1 = input data \"b\" : {array}\n\
         %2 = add %0, %1 : {array}  ; forward\noutput result \"c\" %2\n",
        machine.mesh()
    );
    let mut session = machine.launch(&source, 0.5)?;
    Ok((3 * 4 * elements) as f64 / machine.fastest(&mut session, |_, seconds| seconds)?)
}
