//! Finds CUDA's libraries: in the directories of an environment variable, in Python wheels, and in the system's
//! directories.

use super::error::CudaError;
use super::library::Library;
use std::path::{Path, PathBuf};

/// The environment variable with the directories to search first, separated by colons.
pub const VARIABLE: &str = "TPC_CUDA_LIBRARIES";

/// The subdirectories of a directory whose names begin with a prefix.
fn below(folder: &Path, prefix: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let named = entries.filter(|e| e.file_name().to_string_lossy().starts_with(prefix));
    let mut found: Vec<PathBuf> = named.map(|e| e.path()).collect();
    found.sort();
    found
}

/// The directories in which Python keeps packages.
fn packages() -> Vec<PathBuf> {
    let home = std::env::var_os("HOME").map(|h| PathBuf::from(h).join(".local"));
    let environment = std::env::var_os("VIRTUAL_ENV").map(PathBuf::from);
    let prefixes = environment.into_iter().chain(home).chain(["/usr/local", "/usr", "/opt/conda"].map(PathBuf::from));
    let pythons = prefixes.flat_map(|p| below(&p.join("lib"), "python3"));
    pythons.flat_map(|p| [p.join("site-packages"), p.join("dist-packages")]).collect()
}

/// The directories that may hold CUDA's libraries, in the order in which they are searched.
pub fn folders() -> Vec<PathBuf> {
    let asked = std::env::var(VARIABLE).unwrap_or_default();
    let asked = asked.split(':').filter(|f| !f.is_empty()).map(PathBuf::from);
    let wheels = packages().into_iter().flat_map(|p| below(&p.join("nvidia"), "")).map(|w| w.join("lib"));
    let system = below(Path::new("/usr/local"), "cuda").into_iter().map(|c| c.join("lib64"));
    asked.chain(wheels).chain(system).filter(|f| f.is_dir()).collect()
}

/// Opens the first library with this name, by its absolute path, so that libraries loaded later find it by its name;
/// `beside` are libraries in the same directory that it needs.
pub(crate) fn open(
    library: &'static str,
    wheel: &'static str,
    file: &str,
    beside: &[&str],
) -> Result<Library, CudaError> {
    let searched = folders();
    let broken = |reason| CudaError::BrokenLibrary { library, reason };
    for folder in &searched {
        let path = folder.join(file);
        if path.is_file() {
            for prefix in beside {
                for needed in below(folder, prefix) {
                    Library::open(&needed, true).map_err(broken)?;
                }
            }
            return Library::open(&path, true).map_err(broken);
        }
    }
    Library::open(Path::new(file), true).map_err(|_| CudaError::NoLibrary { library, wheel, searched })
}
