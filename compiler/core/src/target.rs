//! The target that a program is compiled for: the named one, or the default of the backend that runs the ranks.

use tpc_passes::targets::{DeviceKind, Target};
use tpc_runtime::session::Backend;

/// A target that does not describe the backend that runs the ranks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the target `{name}` describes CPUs, but the ranks run on CUDA: leave the target out, name h100-node or h200-node, or give \
     a profile whose device has the kind \"cuda\""
)]
pub struct TargetMismatch {
    /// The name of the target.
    pub name: String,
}

/// The default target of a backend.
pub fn of_backend(backend: Backend) -> &'static Target {
    match backend {
        Backend::Cpu => Target::cpu(),
        Backend::Cuda => Target::h100_node(),
    }
}

/// An error if programs for this target would run on CUDA with the numbers of a CPU. Ranks on a CPU may execute
/// programs that are planned for GPUs, in order to try them out.
///
/// # Errors
/// A CPU target for ranks on CUDA.
pub fn check(target: &Target, backend: Backend) -> Result<(), TargetMismatch> {
    match (target.device.kind, backend) {
        (DeviceKind::Cpu, Backend::Cuda) => Err(TargetMismatch { name: target.name.clone() }),
        _ => Ok(()),
    }
}
