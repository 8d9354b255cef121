//! Runs the command inside a test.

use serde_json::Value as Json;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

/// Runs `tpc` with these arguments: exit code, standard output and standard error.
pub fn tpc(arguments: &[&str]) -> (u8, String, String) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let code = tpc_command::run([&["tpc"], arguments].concat(), &mut out, &mut err);
    (code, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
}

/// What `tpc` prints for arguments that are separated by spaces.
///
/// # Panics
/// If it fails or has something to note.
pub fn run(arguments: &str) -> String {
    let (code, out, err) = tpc(&arguments.split(' ').collect::<Vec<_>>());
    assert_eq!((code, &*err), (0, ""), "{out}");
    out
}

/// What `tpc` prints as JSON for arguments that are separated by spaces.
///
/// # Panics
/// As [`run`].
pub fn json(arguments: &str) -> Json {
    serde_json::from_str(&run(&format!("{arguments} --json"))).unwrap()
}

/// A directory for one test, which is removed when it is dropped.
pub struct Scratch(pub PathBuf);

impl Scratch {
    /// An empty directory; the name says whose it is.
    pub fn new(name: &str) -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("tpc-test-{}-{number}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).unwrap();
        Scratch(dir)
    }

    /// The path of a file in it.
    pub fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }

    /// Writes a file and returns its path.
    pub fn write(&self, name: &str, contents: impl AsRef<[u8]>) -> String {
        fs::write(self.0.join(name), contents).unwrap();
        self.path(name)
    }

    /// Removes files from it.
    pub fn remove(&self, names: &[&str]) {
        names.iter().for_each(|name| fs::remove_file(self.0.join(name)).unwrap());
    }

    /// All files in it, to check that nothing remains.
    pub fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.0).unwrap();
        let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
