//! Sends placed programs from the process that compiles to the other processes.
//!
//! Only one process places a program, so that the processes do not compete for a host's processors, and it sends the result,
//! which is the same for all ranks, to the others. Each process then lowers its own ranks, which are different programs.
//! Programs that were lowered from the same placed program for the same target fit together, which is compared when they
//! are launched.

use crate::error::Error;
use serde_json::Value as Json;
use tpc_ir::{Graph, json};
use tpc_runtime::comm::processes::agree;
use tpc_runtime::{LaunchOptions, RuntimeError};

const SENDING: &str = "launch: send programs";
const LOWERING: &str = "launch: lower programs";

/// Whether this process compiles: the first of several processes, or a single one.
pub(crate) fn compiles(launch: &LaunchOptions) -> bool {
    launch.processes.as_ref().is_none_or(|processes| processes.process() == 0)
}

/// Sends the placed programs of what this process has compiled to the other processes, or the error, and waits until they
/// have lowered them.
pub(crate) fn hand_out<T>(launch: &LaunchOptions, compiled: Result<(T, Vec<Graph>), Error>) -> Result<T, Error> {
    if launch.processes.as_ref().is_none_or(|processes| processes.count() == 1) {
        return compiled.map(|(compiled, _)| compiled);
    }
    let told = match &compiled {
        Ok((_, placed)) => Ok(to_bytes(placed)),
        Err(error) => Err(error.to_string()),
    };
    let sent = all_have(launch, SENDING, told);
    let (compiled, _) = compiled?;
    sent?;
    all_lowered(launch, Ok(compiled))
}

/// Waits until all processes have lowered a program for their ranks.
///
/// # Errors
/// The error of this process, otherwise that of another one.
pub(crate) fn all_lowered<T>(launch: &LaunchOptions, lowered: Result<T, Error>) -> Result<T, Error> {
    let told = lowered.as_ref().map(|_| Vec::new()).map_err(ToString::to_string);
    let agreed = all_have(launch, LOWERING, told);
    let lowered = lowered?;
    agreed.map(|_| lowered)
}

/// Receives the placed programs of the first process, and lowers them.
pub(crate) fn receive<T>(launch: &LaunchOptions, lower: impl FnOnce(&[Graph]) -> Result<T, Error>) -> Result<T, Error> {
    let all = all_have(launch, SENDING, Ok(Vec::new()))?;
    let placed = of_bytes(all.first().map(Vec::as_slice).unwrap_or_default());
    all_lowered(launch, placed.and_then(|placed| lower(&placed)))
}

/// What all processes say about an operation, or the error of one of them.
fn all_have(launch: &LaunchOptions, purpose: &str, told: Result<Vec<u8>, String>) -> Result<Vec<Vec<u8>>, Error> {
    let Some(processes) = &launch.processes else { return Ok(Vec::new()) };
    let agreed = agree(&**processes, purpose, told, launch.deadline)?;
    Ok(agreed.map_err(|(rank, reason)| RuntimeError::Elsewhere { rank, reason })?)
}

/// The error that the first process sent fewer programs than expected.
pub(crate) fn incomplete() -> RuntimeError {
    unreadable("one of them is missing".into())
}

fn unreadable(reason: String) -> RuntimeError {
    RuntimeError::Launch(format!("the programs of rank 0 cannot be read: {reason}"))
}

/// Programs as a list in JSON, which keeps every node of a graph in its place.
fn to_bytes(placed: &[Graph]) -> Vec<u8> {
    Json::Array(placed.iter().map(json::to_json).collect()).to_string().into_bytes()
}

/// The inverse of [`to_bytes`].
fn of_bytes(bytes: &[u8]) -> Result<Vec<Graph>, Error> {
    let all: Vec<Json> = serde_json::from_slice(bytes).map_err(|e| unreadable(e.to_string()))?;
    let graph = |graph| json::from_json(graph).map_err(|e| unreadable(e.to_string()));
    Ok(all.iter().map(graph).collect::<Result<_, _>>()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::{Spec, capture_inference_shapes};
    use crate::models::presets;
    use crate::pretrained::{TokenBatch, capture_forward};
    use crate::program::{CompileOptions, compile_inference};
    use burn::tensor::DType;
    use tpc_ir::Mesh;
    use tpc_passes::lower::lower_some;
    use tpc_passes::styles::Plan;

    /// A process that receives a program lowers exactly the rank programs that the sender would have sent.
    #[test]
    fn received_programs_are_lowered_to_the_same_rank_programs() {
        let tokens = TokenBatch::new(6, 8);
        let model = |name: &str| capture_forward(&presets::named(name).unwrap(), tokens, false).unwrap();
        let x = Spec::<2>::new([6, 1024], DType::F32);
        let mlp = capture_inference_shapes(presets::mlp, x, |mlp, x| mlp.forward(x)).unwrap();
        for (captured, plan, axes) in
            [(model("llama"), "tp-sp", "tp=2"), (mlp, "tp", "tp=4"), (model("gpt"), "fsdp", "dp=3")]
        {
            let (mesh, plan) = (Mesh::parse(axes).unwrap(), Plan::built_in(plan).unwrap());
            let options = CompileOptions::for_cpu();
            let stages = compile_inference(&captured, &mesh, &plan, &options, &str::to_string).unwrap().stages;
            let bytes = to_bytes(&[stages.placed.clone(), stages.logical.clone()]);
            let received = of_bytes(&bytes).unwrap();
            assert!(received == [stages.placed, stages.logical], "{axes}");
            for rank in 0..mesh.ranks() {
                let lowered = lower_some(&received[0], &options.target, &options.lower, rank..rank + 1, &[]).unwrap();
                assert_eq!(lowered[rank], stages.ranks[rank], "{axes}");
            }
            for end in [0, 1, bytes.len() / 2, bytes.len() - 1] {
                assert!(of_bytes(&bytes[..end]).is_err(), "{axes}");
            }
        }
        assert!(of_bytes(&to_bytes(&[])).unwrap().is_empty());
    }
}
