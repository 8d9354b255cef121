//! The GPU of a process that was launched with others on its host, and NCCL's settings if several processes share one.

use super::context::Context;
use crate::device::cuda::error::CudaError;

/// Settings of NCCL and the driver for ranks that share a GPU, with values that leave room for all of them. They are
/// only set if the user has not set them. By default NCCL 2.30 has room for 2 ranks on one GPU; more ranks need fewer
/// blocks each. Earlier versions refuse to share a GPU.
const SHARING: [(&str, &str); 3] =
    [("NCCL_MULTI_RANK_GPU_ENABLE", "1"), ("NCCL_MAX_CTAS", "2"), ("CUDA_DEVICE_MAX_CONNECTIONS", "32")];

/// A process's share of the GPUs of its host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Number of its GPU.
    pub device: usize,
    /// Whether there are fewer GPUs than processes on the host.
    pub is_shared: bool,
}

impl Share {
    /// The share of a process, given its number on the host and the number of processes on the host.
    ///
    /// # Errors
    /// There is no GPU.
    pub fn of(process: usize, on_host: usize) -> Result<Self, CudaError> {
        Ok(Share::among(process, on_host, Context::count()?))
    }

    fn among(process: usize, on_host: usize, devices: usize) -> Self {
        Share { device: process % devices.max(1), is_shared: on_host > devices }
    }

    /// Sets the environment variables that processes sharing a GPU need, unless they are set.
    pub(crate) fn set_environment(&self) {
        if !self.is_shared {
            return;
        }
        for (name, value) in SHARING {
            if std::env::var_os(name).is_none() {
                // SAFETY: Rust's own readers are locked out. Among other readers, the driver and NCCL read the
                // environment in later calls of this thread, and a program that launches on GPUs promises that no other
                // thread does (`Backend::Cuda`).
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
        // A rank that does not share its GPU also has to pass NCCL the settings of the others.
        assert!(Share::among(1, 3, 2).is_shared);
        assert!(!Share::among(1, 2, 2).is_shared);
    }
}
