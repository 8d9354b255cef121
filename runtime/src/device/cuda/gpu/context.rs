//! One device and its context.

use crate::device::cuda::error::CudaError;
use crate::device::cuda::search;
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;
use std::ffi::c_int;
use std::sync::Arc;

/// Wraps the error of a failed driver call.
pub(super) fn failed(call: &str) -> impl Fn(DriverError) -> CudaError + '_ {
    move |e| {
        let text = e.error_string().map(|t| t.to_string_lossy().into_owned());
        CudaError::Call { call: call.into(), reason: text.unwrap_or_else(|_| format!("{e:?}")) }
    }
}

/// The primary context of a device.
#[derive(Debug)]
pub struct Context {
    device: sys::CUdevice,
    raw: sys::CUcontext,
    arch: String,
    name: String,
}

// SAFETY: contexts may be used from every thread that makes them current.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    /// The number of devices, at least one.
    ///
    /// # Errors
    /// No driver, or no device.
    pub fn count() -> Result<usize, CudaError> {
        // SAFETY: only checks whether the library can be loaded.
        if !unsafe { sys::is_culib_present() } {
            return Err(CudaError::NoDevice("the driver's library libcuda.so.1 was not found".into()));
        }
        let none = |e: DriverError| CudaError::NoDevice(format!("{:?}", e.0));
        result::init().map_err(none)?;
        match result::device::get_count().map_err(none)? {
            0 => Err(CudaError::NoDevice("the driver reports none".into())),
            count => Ok(count as usize),
        }
    }

    /// Opens a device by its number.
    ///
    /// # Errors
    /// No driver, no such device, or a device that fails.
    pub fn open(ordinal: usize) -> Result<Arc<Self>, CudaError> {
        let count = Context::count()?;
        let none = |e: DriverError| CudaError::NoDevice(format!("{:?}", e.0));
        if ordinal >= count {
            return Err(CudaError::NoDevice(format!("device {ordinal} was requested, but there are only {count}")));
        }
        let device = result::device::get(ordinal as c_int).map_err(none)?;
        use sys::CUdevice_attribute_enum as Attribute;
        // SAFETY: the device was just found.
        let attribute = |a| unsafe { result::device::get_attribute(device, a) }.map_err(none);
        let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        let name = result::device::get_name(device).map_err(none)?;
        // SAFETY: as above; it is released when this is dropped.
        let raw = unsafe { result::primary_ctx::retain(device) }.map_err(none)?;
        let context = Context { device, raw, arch: format!("sm_{major}{minor}"), name };
        context.make_current()?;
        Ok(Arc::new(context))
    }

    /// Makes the context current on this thread.
    ///
    /// # Errors
    /// The device failed.
    pub fn make_current(&self) -> Result<(), CudaError> {
        // SAFETY: the context lives as long as this.
        unsafe { result::ctx::set_current(self.raw) }.map_err(failed("cuCtxSetCurrent"))
    }

    /// The architecture, for example `sm_90`.
    pub fn arch(&self) -> &str {
        &self.arch
    }

    /// The name of the device.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Bytes of free device memory, and of all device memory.
    ///
    /// # Errors
    /// The device failed.
    pub fn memory(&self) -> Result<(usize, usize), CudaError> {
        self.make_current()?;
        result::mem_get_info().map_err(failed("cuMemGetInfo"))
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained when this was created. A failure needs no handling.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}

/// Loads a CUDA library by its absolute path, so that a lookup by name finds it.
pub(super) fn preload(library: &'static str, wheel: &'static str, file: &str) -> Result<(), CudaError> {
    search::open(library, wheel, file, &[]).map(drop)
}
