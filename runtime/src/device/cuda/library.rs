//! Shared libraries that are loaded at run time, so that nothing links against them.

use libloading::os::unix;
use std::error::Error;
use std::path::Path;

/// A loaded library. It stays loaded until the process ends, because CUDA's libraries keep threads and handlers that
/// outlive every handle.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Library(&'static unix::Library);

/// What the system says of a failure, or what `libloading` says where the system says nothing.
fn text(error: libloading::Error) -> String {
    error.source().map_or_else(|| error.to_string(), ToString::to_string)
}

impl Library {
    /// Loads a library from a path. `global` makes its symbols, and the library itself under its name, available to
    /// libraries that are loaded later.
    pub(crate) fn open(path: &Path, global: bool) -> Result<Self, String> {
        let flags = unix::RTLD_NOW | if global { unix::RTLD_GLOBAL } else { unix::RTLD_LOCAL };
        // SAFETY: the library's initialization is as trustworthy as its location.
        let library = unsafe { unix::Library::open(Some(path), flags) }.map_err(text)?;
        Ok(Library(Box::leak(Box::new(library))))
    }

    /// A function of the library.
    ///
    /// # Safety
    /// `F` must be the type of a function pointer, and the type of this function.
    pub(crate) unsafe fn function<F: Copy>(&self, name: &str) -> Result<F, String> {
        // SAFETY: the caller says what it is.
        unsafe { self.0.get::<F>(name) }.map(|function| *function).map_err(text)
    }
}
