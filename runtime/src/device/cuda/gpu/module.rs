//! Kernels as functions of a device.

use super::context::{Context, failed};
use crate::device::cuda::cache;
use crate::device::cuda::emit::Kernels;
use crate::device::cuda::error::CudaError;
use cudarc::driver::{result, sys};
use std::ffi::CString;
use std::sync::Arc;

/// Number of kernels that are compiled together: enough to make the prelude negligible, few enough to keep all cores
/// busy.
const TOGETHER: usize = 48;

/// Loaded modules and the functions of all kernels.
pub(super) struct Functions {
    context: Arc<Context>,
    modules: Vec<sys::CUmodule>,
    functions: Vec<sys::CUfunction>,
}

// SAFETY: functions and modules may be used from any thread in which the context is current.
unsafe impl Send for Functions {}
// SAFETY: as above; it is immutable.
unsafe impl Sync for Functions {}

impl Functions {
    /// Compiles kernels for a device, or takes them from the cache, and loads them.
    pub(super) fn load(context: &Arc<Context>, kernels: &Kernels) -> Result<Self, CudaError> {
        let count = kernels.list().len();
        let starts: Vec<usize> = (0..count).step_by(TOGETHER).collect();
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(starts.len().max(1));
        let arch = context.arch();
        let compile = |first: usize| {
            let source = kernels.source_of(first..(first + TOGETHER).min(count));
            cache::binary(&source, arch)
        };
        let mut binaries: Vec<Option<Result<Vec<u8>, CudaError>>> = starts.iter().map(|_| None).collect();
        std::thread::scope(|scope| {
            for chunk in (0..threads).zip(binaries.chunks_mut(starts.len().div_ceil(threads).max(1))) {
                let (thread, slots) = chunk;
                let first = thread * starts.len().div_ceil(threads).max(1);
                let (starts, compile) = (&starts, &compile);
                scope.spawn(move || {
                    for (slot, &start) in slots.iter_mut().zip(&starts[first..]) {
                        *slot = Some(compile(start));
                    }
                });
            }
        });
        context.make_current()?;
        let mut loaded = Functions { context: context.clone(), modules: Vec::new(), functions: Vec::new() };
        for (binary, &first) in binaries.into_iter().flatten().zip(&starts) {
            let binary = binary?;
            // SAFETY: a binary for this architecture, which the driver copies.
            let module =
                unsafe { result::module::load_data(binary.as_ptr().cast()) }.map_err(failed("cuModuleLoadData"))?;
            loaded.modules.push(module);
            for kernel in &kernels.list()[first..(first + TOGETHER).min(count)] {
                let name = CString::new(kernel.name.as_str()).unwrap_or_default();
                // SAFETY: the module stays loaded as long as this exists.
                let function = unsafe { result::module::get_function(module, name) };
                let function = function.map_err(failed(&format!("cuModuleGetFunction `{}`", kernel.name)))?;
                if kernel.shared > 0 {
                    let most = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
                    // SAFETY: a function of the module that was loaded above.
                    unsafe { result::function::set_function_attribute(function, most, kernel.shared as i32) }
                        .map_err(failed(&format!("shared memory of `{}`", kernel.name)))?;
                }
                loaded.functions.push(function);
            }
        }
        Ok(loaded)
    }

    /// The function of a kernel.
    pub(super) fn of(&self, kernel: usize) -> sys::CUfunction {
        self.functions[kernel]
    }
}

impl Drop for Functions {
    fn drop(&mut self) {
        if self.context.make_current().is_ok() {
            for &module in &self.modules {
                // SAFETY: nothing of the module runs any more, because callers have waited for their launches.
                let _ = unsafe { result::module::unload(module) };
            }
        }
    }
}
