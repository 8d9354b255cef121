//! A cache of compiled modules on disk, keyed by their sources.
//!
//! A file consists of a line that identifies the format, the length and the hash of the binary, and the binary. It is
//! written under another name and then renamed, so no reader ever sees a partial file. A file that does not match its
//! hash is ignored, and the module is compiled.

use super::emit::fnv;
use super::error::CudaError;
use super::nvrtc::Nvrtc;
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// The environment variable for the directory of the cache; by default `tpc/cuda` in `XDG_CACHE_HOME` or in `~/.cache`.
pub const VARIABLE: &str = "TPC_CUDA_CACHE";

/// Must change with the options of the compiler or the format of the file.
const MAGIC: &[u8] = b"tpc cubin 1\n";

/// The directory of the cache; `None` if there is none.
pub fn folder() -> Option<PathBuf> {
    if let Some(asked) = std::env::var_os(VARIABLE) {
        return Some(asked.into());
    }
    let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let base = base.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?;
    Some(base.join("tpc/cuda"))
}

/// The file of a module. Two hashes of different texts make 128 bits.
fn file(folder: &Path, source: &str, arch: &str) -> PathBuf {
    let low = fnv(source.as_bytes());
    let high = fnv(format!("{arch} {} {low:x}", source.len())
        .bytes()
        .chain(source.bytes().rev())
        .collect::<Vec<_>>()
        .as_slice());
    folder.join(format!("{arch}-{high:016x}{low:016x}.cubin"))
}

fn read(path: &Path) -> Option<Vec<u8>> {
    let bytes = std::fs::read(path).ok()?;
    let rest = bytes.strip_prefix(MAGIC)?;
    let (hash, binary) = rest.split_first_chunk::<8>()?;
    (u64::from_le_bytes(*hash) == fnv(binary)).then(|| binary.to_vec())
}

fn write(path: &Path, binary: &[u8]) -> std::io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    let part = path.with_extension(format!("{}.part", std::process::id()));
    let mut file = std::fs::File::create(&part)?;
    file.write_all(MAGIC)?;
    file.write_all(&fnv(binary).to_le_bytes())?;
    file.write_all(binary)?;
    file.sync_all()?;
    std::fs::rename(&part, path)
}

/// The binary of a module for an architecture, either from the cache or compiled and then cached. NVRTC is only needed
/// for modules that are not in the cache.
///
/// # Errors
/// NVRTC is missing, or refuses the module. A cache that cannot be written is not an error.
pub fn binary(source: &str, arch: &str) -> Result<Vec<u8>, CudaError> {
    binary_in(folder().as_deref(), source, arch, &|| Ok(Nvrtc::load()?.compile(source, arch)?.0))
}

fn binary_in(
    folder: Option<&Path>,
    source: &str,
    arch: &str,
    compile: &dyn Fn() -> Result<Vec<u8>, CudaError>,
) -> Result<Vec<u8>, CudaError> {
    let path = folder.map(|f| file(f, source, arch));
    if let Some(binary) = path.as_deref().and_then(read) {
        return Ok(binary);
    }
    let binary = compile()?;
    if let Some(path) = path {
        // If this fails, the module is compiled again next time.
        let _ = write(&path, &binary);
    }
    Ok(binary)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn a_module_is_compiled_once_and_again_if_its_file_is_damaged() {
        let folder = std::env::temp_dir().join(format!("tpc-cache-{}", std::process::id()));
        let compiled = Cell::new(0);
        let get = |source: &str, arch: &str| {
            let compile = || {
                compiled.set(compiled.get() + 1);
                Ok(format!("{arch} {source}").into_bytes())
            };
            binary_in(Some(&folder), source, arch, &compile).unwrap()
        };
        for _ in 0..2 {
            assert_eq!(get("a", "sm_90"), b"sm_90 a");
            assert_eq!(get("a", "sm_80"), b"sm_80 a");
            assert_eq!(get("b", "sm_90"), b"sm_90 b");
        }
        assert_eq!(compiled.get(), 3);
        let damaged = file(&folder, "a", "sm_90");
        let mut bytes = std::fs::read(&damaged).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&damaged, bytes).unwrap();
        assert_eq!(get("a", "sm_90"), b"sm_90 a");
        assert_eq!(compiled.get(), 4);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
