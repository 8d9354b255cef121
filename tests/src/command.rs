//! Runs the command inside a test.

use std::fs;
use std::path::PathBuf;

/// Runs `tpc` with these arguments: exit code, standard output and standard error.
pub fn tpc(arguments: &[&str]) -> (u8, String, String) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let code = tpc_command::run([&["tpc"], arguments].concat(), &mut out, &mut err);
    (code, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
}

/// A directory for one test, which is removed when it is dropped.
pub struct Scratch(pub PathBuf);

impl Scratch {
    /// Creates an empty directory; `name` must be unique among the tests of the binary.
    pub fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("tpc-test-{}-{name}", std::process::id()));
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
