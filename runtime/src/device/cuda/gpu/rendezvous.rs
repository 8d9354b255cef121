//! How ranks of several processes agree on the identifier of a communicator.

use std::path::PathBuf;
use std::time::{Duration, Instant};

/// A place where one rank leaves bytes and others find them.
pub trait Rendezvous: Send + Sync {
    /// Leaves bytes under a key that nobody has used before.
    ///
    /// # Errors
    /// What is wrong with the place.
    fn leave(&self, key: &str, bytes: &[u8]) -> Result<(), String>;

    /// Waits for the bytes of a key.
    ///
    /// # Errors
    /// They did not come in time.
    fn find(&self, key: &str) -> Result<Vec<u8>, String>;
}

/// A folder that all ranks see, empty at first: for processes of one machine, and for tests.
#[derive(Clone, Debug)]
pub struct Folder {
    /// The folder.
    pub path: PathBuf,
    /// How long to wait.
    pub deadline: Duration,
}

impl Rendezvous for Folder {
    fn leave(&self, key: &str, bytes: &[u8]) -> Result<(), String> {
        let part = self.path.join(format!("{key}.part"));
        std::fs::create_dir_all(&self.path)
            .and_then(|()| std::fs::write(&part, bytes))
            .and_then(|()| std::fs::rename(&part, self.path.join(key)))
            .map_err(|e| format!("{}: {e}", part.display()))
    }

    fn find(&self, key: &str) -> Result<Vec<u8>, String> {
        let (path, start) = (self.path.join(key), Instant::now());
        loop {
            match std::fs::read(&path) {
                Ok(bytes) => return Ok(bytes),
                Err(e) if start.elapsed() > self.deadline => return Err(format!("{}: {e}", path.display())),
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }
}
