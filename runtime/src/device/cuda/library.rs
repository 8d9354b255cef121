//! Shared libraries that are loaded at run time, so that nothing links against them.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::Path;

unsafe extern "C" {
    fn dlopen(file: *const c_char, mode: c_int) -> *mut c_void;
    fn dlsym(handle: *mut c_void, symbol: *const c_char) -> *mut c_void;
    fn dlerror() -> *const c_char;
}

const RTLD_NOW: c_int = 2;
const RTLD_GLOBAL: c_int = 0x100;

/// A loaded library. It stays loaded until the process ends, because CUDA's libraries keep threads and handlers that
/// outlive every handle.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Library {
    handle: *mut c_void,
}

// SAFETY: a handle is only a key for `dlsym`, which may be called from any thread.
unsafe impl Send for Library {}
// SAFETY: as above.
unsafe impl Sync for Library {}

fn text(path: &Path) -> Result<CString, String> {
    CString::new(path.to_string_lossy().as_bytes()).map_err(|e| e.to_string())
}

/// The latest error of `dlopen` or `dlsym`.
fn error() -> String {
    // SAFETY: the text is copied before this thread calls either of them again.
    unsafe {
        let e = dlerror();
        if e.is_null() { "unknown error".into() } else { CStr::from_ptr(e).to_string_lossy().into_owned() }
    }
}

impl Library {
    /// Loads a library from a path. `global` makes its symbols, and the library itself under its name, available to
    /// libraries that are loaded later.
    pub(crate) fn open(path: &Path, global: bool) -> Result<Self, String> {
        let file = text(path)?;
        // SAFETY: the path is a text that ends with 0. The library's initialization is as trustworthy as its location.
        let handle = unsafe { dlopen(file.as_ptr(), RTLD_NOW | if global { RTLD_GLOBAL } else { 0 }) };
        if handle.is_null() { Err(error()) } else { Ok(Library { handle }) }
    }

    /// A function of the library.
    ///
    /// # Safety
    /// `F` must be the type of a function pointer, and the type of this function.
    pub(crate) unsafe fn function<F: Copy>(&self, name: &str) -> Result<F, String> {
        assert_eq!(size_of::<F>(), size_of::<*mut c_void>());
        let symbol = CString::new(name).map_err(|e| e.to_string())?;
        // SAFETY: the handle belongs to a loaded library.
        let address = unsafe { dlsym(self.handle, symbol.as_ptr()) };
        if address.is_null() {
            return Err(error());
        }
        // SAFETY: the caller guarantees the type; both are pointers.
        Ok(unsafe { std::mem::transmute_copy(&address) })
    }
}
