//! Host memory that a device reads and writes.

use super::context::failed;
use crate::device::cuda::error::CudaError;
use cudarc::driver::{result, sys};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

/// Zeroed host memory that is not paged out.
pub(super) struct Pinned {
    base: NonNull<u8>,
    bytes: usize,
}

// SAFETY: an address and a size; users of the memory order their accesses.
unsafe impl Send for Pinned {}

impl Pinned {
    /// Allocates memory; the context must be current.
    pub(super) fn new(bytes: usize) -> Result<Self, CudaError> {
        // SAFETY: freed when this is dropped.
        let base = unsafe { result::malloc_host(bytes, sys::CU_MEMHOSTALLOC_DEVICEMAP) };
        let base = NonNull::new(base.map_err(failed("cuMemHostAlloc"))?.cast::<u8>());
        let none = || CudaError::Call { call: "cuMemHostAlloc".into(), reason: "it gave no memory".into() };
        let base = base.ok_or_else(none)?;
        // SAFETY: as large as requested.
        unsafe { base.write_bytes(0, bytes) };
        Ok(Pinned { base, bytes })
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The first byte.
    pub(super) fn base(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// The address on the device.
    pub(super) fn on_device(&self) -> Result<sys::CUdeviceptr, CudaError> {
        let mut at = 0;
        // SAFETY: the memory was allocated to be mapped.
        unsafe { sys::cuMemHostGetDevicePointer_v2(&mut at, self.base.as_ptr().cast(), 0) }
            .result()
            .map_err(failed("cuMemHostGetDevicePointer"))?;
        Ok(at)
    }

    fn word(&self, at: usize) -> &AtomicU32 {
        assert!((at + 1) * 4 <= self.bytes, "word {at} of {} bytes", self.bytes);
        // SAFETY: within the memory and aligned, and the device only writes whole words.
        unsafe { &*self.base.as_ptr().cast::<AtomicU32>().add(at) }
    }

    /// Reads a word, which the device may be writing.
    pub(super) fn load(&self, at: usize) -> u32 {
        self.word(at).load(Ordering::Acquire)
    }

    /// Writes a word, which the device may be reading.
    pub(super) fn store(&self, at: usize, value: u32) {
        self.word(at).store(value, Ordering::Release);
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: allocated above; its users have waited.
        let _ = unsafe { result::free_host(self.base.as_ptr().cast()) };
    }
}
