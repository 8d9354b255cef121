//! CUDA's compiler as a library (NVRTC): compiles CUDA C++ to a binary for one architecture, without a GPU or its
//! driver.
//!
//! The functions are looked up at run time, in a library that [`super::search`] finds, so that kernels can be compiled
//! and checked in any build.

use super::error::CudaError;
use super::library::Library;
use super::search;
use super::usage::{self, Usage};
use std::ffi::{CStr, CString, c_char, c_int, c_void};

type Program = *mut c_void;

/// The functions of NVRTC in use.
#[derive(Clone, Copy)]
pub struct Nvrtc {
    version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int,
    create: unsafe extern "C" fn(
        *mut Program,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> c_int,
    compile: unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int,
    log_size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
    log: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    cubin_size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
    cubin: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    destroy: unsafe extern "C" fn(*mut Program) -> c_int,
    error_text: unsafe extern "C" fn(c_int) -> *const c_char,
}

/// Contraction is disabled, so that every result equals the CPU's bit by bit, up to the order of sums.
const OPTIONS: [&str; 4] = ["--std=c++17", "--fmad=false", "--disable-warnings", "--ptxas-options=-v"];

const NAME: &str = "NVRTC";

impl Nvrtc {
    /// Loads the library.
    ///
    /// # Errors
    /// It is missing, or has unexpected contents.
    pub fn load() -> Result<Self, CudaError> {
        let library = search::open(NAME, "nvidia-cuda-nvrtc", "libnvrtc.so.13", &["libnvrtc-builtins.so"])?;
        Self::of(&library).map_err(|reason| CudaError::BrokenLibrary { library: NAME, reason })
    }

    fn of(library: &Library) -> Result<Self, String> {
        // SAFETY: the types are those of nvrtc.h; they have not changed since its first version.
        unsafe {
            Ok(Nvrtc {
                version: library.function("nvrtcVersion")?,
                create: library.function("nvrtcCreateProgram")?,
                compile: library.function("nvrtcCompileProgram")?,
                log_size: library.function("nvrtcGetProgramLogSize")?,
                log: library.function("nvrtcGetProgramLog")?,
                cubin_size: library.function("nvrtcGetCUBINSize")?,
                cubin: library.function("nvrtcGetCUBIN")?,
                destroy: library.function("nvrtcDestroyProgram")?,
                error_text: library.function("nvrtcGetErrorString")?,
            })
        }
    }

    /// Major and minor version.
    pub fn version(&self) -> (i32, i32) {
        let (mut major, mut minor) = (0, 0);
        // SAFETY: both pointers are writable.
        unsafe { (self.version)(&mut major, &mut minor) };
        (major, minor)
    }

    fn checked(&self, code: c_int, call: &str) -> Result<(), CudaError> {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: the function returns a constant text for every number.
        let reason = unsafe { CStr::from_ptr((self.error_text)(code)) }.to_string_lossy().into_owned();
        Err(CudaError::Call { call: call.into(), reason })
    }

    /// Compiles a module for an architecture, for example `sm_90`. Returns its binary and the resources of its kernels.
    ///
    /// # Errors
    /// The source is rejected; the error has the compiler's log.
    pub fn compile(&self, source: &str, arch: &str) -> Result<(Vec<u8>, Vec<Usage>), CudaError> {
        let c =
            |text: &str| CString::new(text).map_err(|e| CudaError::Compile { arch: arch.into(), log: e.to_string() });
        let (source, name, mut program) = (c(source)?, c("tpc.cu")?, std::ptr::null_mut());
        let options = OPTIONS.iter().map(|o| c(o)).chain([c(&format!("--gpu-architecture={arch}"))]);
        let options: Vec<CString> = options.collect::<Result<_, _>>()?;
        let pointers: Vec<*const c_char> = options.iter().map(|o| o.as_ptr()).collect();
        let none = std::ptr::null();
        // SAFETY: the texts end with 0 and live until the program is destroyed.
        let made = unsafe { (self.create)(&mut program, source.as_ptr(), name.as_ptr(), 0, none, none) };
        self.checked(made, "nvrtcCreateProgram")?;
        // SAFETY: the program was created above and is destroyed below.
        let code = unsafe { (self.compile)(program, pointers.len() as c_int, pointers.as_ptr()) };
        let log = self.text(program, self.log_size, self.log, "nvrtcGetProgramLog");
        let log = log.map(|l| String::from_utf8_lossy(&l).trim_end_matches('\0').to_string());
        let result = if code == 0 {
            let binary = self.text(program, self.cubin_size, self.cubin, "nvrtcGetCUBIN");
            binary.and_then(|b| Ok((b, usage::of_log(&log?))))
        } else {
            let log = log.unwrap_or_else(|e| e.to_string());
            Err(CudaError::Compile { arch: arch.into(), log: log.lines().take(20).collect::<Vec<_>>().join("\n") })
        };
        // SAFETY: the program is not used any more.
        unsafe { (self.destroy)(&mut program) };
        result
    }

    fn text(
        &self,
        program: Program,
        size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
        get: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
        call: &str,
    ) -> Result<Vec<u8>, CudaError> {
        let mut len = 0;
        // SAFETY: the program is alive, and the pointer is writable.
        self.checked(unsafe { size(program, &mut len) }, call)?;
        let mut bytes = vec![0u8; len];
        // SAFETY: there is room for as many bytes as the library reported.
        self.checked(unsafe { get(program, bytes.as_mut_ptr().cast()) }, call)?;
        Ok(bytes)
    }
}
