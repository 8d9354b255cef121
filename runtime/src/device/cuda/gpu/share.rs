//! Which GPU a process has that was launched with others on its host, and what NCCL is told where several have the same one.

use super::context::Context;
use crate::device::cuda::error::CudaError;

/// What NCCL and the driver need where ranks share a GPU, with values that leave room for all of them. Set only if the user has not:
/// 2 ranks on one GPU are what NCCL 2.30 has room for by default, more need fewer blocks each. Earlier versions refuse it.
const SHARING: [(&str, &str); 3] =
    [("NCCL_MULTI_RANK_GPU_ENABLE", "1"), ("NCCL_MAX_CTAS", "2"), ("CUDA_DEVICE_MAX_CONNECTIONS", "32")];

/// A process's part of the GPUs of its host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Number of its GPU.
    pub device: usize,
    /// Whether there are fewer GPUs than processes on the host.
    pub is_shared: bool,
}

impl Share {
    /// The part of a process, by its number among those of its host, and how many these are.
    ///
    /// # Errors
    /// There is no GPU.
    pub fn of(process: usize, on_host: usize) -> Result<Self, CudaError> {
        Ok(Share::among(process, on_host, Context::count()?))
    }

    fn among(process: usize, on_host: usize, devices: usize) -> Self {
        Share { device: process % devices.max(1), is_shared: on_host > devices }
    }

    /// Sets the variables of the environment that processes need which share a GPU, unless they are set.
    pub(crate) fn set_environment(&self) {
        if !self.is_shared {
            return;
        }
        for (name, value) in SHARING {
            if std::env::var_os(name).is_none() {
                // SAFETY: Rust's own readers are locked out; of others, the driver and NCCL read it in calls that this thread makes
                // afterwards, and whoever launches on GPUs promises that no other thread does (`Backend::Cuda`).
                unsafe { std::env::set_var(name, value) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Share;

    #[test]
    fn processes_take_gpus_in_turn_and_share_them_if_there_are_too_few() {
        let devices = |on_host: usize, devices: usize| -> Vec<usize> {
            (0..on_host).map(|p| Share::among(p, on_host, devices).device).collect()
        };
        assert_eq!(devices(4, 8), [0, 1, 2, 3]);
        assert_eq!(devices(5, 2), [0, 1, 0, 1, 0]);
        assert_eq!(devices(2, 1), [0, 0]);
        // The only rank on its GPU, too, has to tell NCCL what the others do.
        assert!(Share::among(1, 3, 2).is_shared);
        assert!(!Share::among(1, 2, 2).is_shared);
    }
}
