//! Sends rank programs from the process that compiles to the other processes.
//!
//! Every process needs the programs of all ranks, which are the same for all processes. Only one process compiles them,
//! so that the processes do not compete for a host's processors. The received programs are compared when they are
//! launched, like programs that every process compiles itself.

use crate::error::Error;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tpc_runtime::comm::processes::agree;
use tpc_runtime::{LaunchOptions, RuntimeError};

const PURPOSE: &str = "launch: send programs";

/// Whether this process compiles: the first of several processes, or a single one.
pub(crate) fn compiles(launch: &LaunchOptions) -> bool {
    launch.processes.as_ref().is_none_or(|processes| processes.process() == 0)
}

/// Sends the compiled programs to the other processes, or the error.
pub(crate) fn hand_out<T, R: Serialize>(
    launch: &LaunchOptions,
    compiled: Result<T, Error>,
    programs: impl FnOnce(&T) -> &R,
) -> Result<T, Error> {
    let Some(processes) = launch.processes.as_ref().filter(|processes| processes.count() > 1) else { return compiled };
    let told = match &compiled {
        Ok(compiled) => postcard::to_stdvec(programs(compiled)).map_err(|e| e.to_string()),
        Err(error) => Err(error.to_string()),
    };
    let agreed = agree(&**processes, PURPOSE, told, launch.deadline)?;
    let compiled = compiled?;
    agreed.map_err(|(rank, reason)| RuntimeError::Elsewhere { rank, reason })?;
    Ok(compiled)
}

/// Receives the programs of the first process.
pub(crate) fn receive<R: DeserializeOwned>(launch: &LaunchOptions) -> Result<R, Error> {
    let unreadable = |reason: String| RuntimeError::Launch(format!("the programs of rank 0 cannot be read: {reason}"));
    let processes = launch.processes.as_ref().ok_or_else(|| unreadable("there is no other process".into()))?;
    let agreed = agree(&**processes, PURPOSE, Ok(Vec::new()), launch.deadline)?;
    let all = agreed.map_err(|(rank, reason)| RuntimeError::Elsewhere { rank, reason })?;
    let first = all.first().map(Vec::as_slice).unwrap_or_default();
    Ok(postcard::from_bytes(first).map_err(|e| unreadable(e.to_string()))?)
}

#[cfg(test)]
mod tests {
    use crate::capture::{Spec, capture_inference_shapes};
    use crate::models::presets;
    use crate::pretrained::{TokenBatch, capture_forward};
    use crate::program::{CompileOptions, compile_inference};
    use burn::tensor::DType;
    use tpc_ir::Mesh;
    use tpc_ir::program::RankProgram;
    use tpc_passes::styles::Plan;

    /// Every number of a program arrives unchanged, including floats.
    #[test]
    fn programs_arrive_as_they_were() {
        let tokens = TokenBatch::new(6, 8);
        let model = |name: &str| capture_forward(&presets::named(name).unwrap(), tokens, false).unwrap();
        let x = Spec::<2>::new([6, 1024], DType::F32);
        let mlp = capture_inference_shapes(presets::mlp, x, |mlp, x| mlp.forward(x)).unwrap();
        for (captured, plan, axes) in
            [(model("llama"), "tp-sp", "tp=2"), (mlp, "tp", "tp=4"), (model("gpt"), "fsdp", "dp=3")]
        {
            let (mesh, plan) = (Mesh::parse(axes).unwrap(), Plan::built_in(plan).unwrap());
            let options = CompileOptions::for_cpu();
            let program = compile_inference(&captured, &mesh, &plan, &options, &str::to_string).unwrap();
            let ranks = program.stages.ranks;
            let bytes = postcard::to_stdvec(&ranks).unwrap();
            let received: Vec<RankProgram> = postcard::from_bytes(&bytes).unwrap();
            assert_eq!(received, ranks, "{axes}");
            assert!(postcard::from_bytes::<Vec<RankProgram>>(&bytes[..bytes.len() / 2]).is_err());
        }
    }
}
