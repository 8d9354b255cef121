//! How ranks of several processes agree on the identifiers of communicators.

use crate::comm::Processes;
use crate::comm::processes::agree;
use crate::device::cuda::error::CudaError;
use crate::error::RuntimeError;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bytes under keys that have not been used before.
pub type Left = Vec<(String, Vec<u8>)>;

/// A place where ranks publish bytes and others read them.
pub trait Rendezvous: Send + Sync {
    /// Publishes this rank's bytes, or the reason why it cannot continue, and waits for the bytes that others publish
    /// under some keys. Returns these in the order of the keys. All ranks call this equally often.
    ///
    /// # Errors
    /// Keys that did not appear in time; errors of the place or of another rank.
    fn share(&self, mine: Result<Left, RuntimeError>, wanted: &[String]) -> Result<Vec<Vec<u8>>, RuntimeError>;
}

fn met(key: &str, reason: String) -> RuntimeError {
    CudaError::Call { call: format!("meeting the other ranks for `{key}`"), reason }.into()
}

/// A directory that all ranks can access, initially empty: for processes on one machine, and for tests.
#[derive(Clone, Debug)]
pub struct Folder {
    /// The directory.
    pub path: PathBuf,
    /// How long to wait.
    pub deadline: Duration,
}

impl Folder {
    fn leave(&self, key: &str, bytes: &[u8]) -> Result<(), RuntimeError> {
        let part = self.path.join(format!("{key}.part"));
        std::fs::create_dir_all(&self.path)
            .and_then(|()| std::fs::write(&part, bytes))
            .and_then(|()| std::fs::rename(&part, self.path.join(key)))
            .map_err(|e| met(key, format!("{}: {e}", part.display())))
    }

    fn find(&self, key: &str) -> Result<Vec<u8>, RuntimeError> {
        let (path, start) = (self.path.join(key), Instant::now());
        loop {
            match std::fs::read(&path) {
                Ok(bytes) => return Ok(bytes),
                Err(e) if start.elapsed() > self.deadline => return Err(met(key, format!("{}: {e}", path.display()))),
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }
}

impl Rendezvous for Folder {
    fn share(&self, mine: Result<Left, RuntimeError>, wanted: &[String]) -> Result<Vec<Vec<u8>>, RuntimeError> {
        mine?.iter().try_for_each(|(key, bytes)| self.leave(key, bytes))?;
        wanted.iter().map(|key| self.find(key)).collect()
    }
}

/// The host sides of the processes of a launched world.
#[derive(Clone, Debug)]
pub struct Hosts {
    /// The processes.
    pub processes: Arc<dyn Processes>,
    /// How long to wait.
    pub deadline: Duration,
}

impl Rendezvous for Hosts {
    fn share(&self, mine: Result<Left, RuntimeError>, wanted: &[String]) -> Result<Vec<Vec<u8>>, RuntimeError> {
        let told = mine.as_ref().map_err(ToString::to_string);
        let told = told.and_then(|left| serde_json::to_vec(left).map_err(|e| e.to_string()));
        let all = agree(&*self.processes, "launch: communicators of NCCL", told, self.deadline)?;
        mine?;
        let all = all.map_err(|(rank, reason)| RuntimeError::Elsewhere { rank, reason })?;
        let mut found: HashMap<String, Vec<u8>> = HashMap::new();
        for bytes in &all {
            let left: Left = serde_json::from_slice(bytes).map_err(|e| met("identifiers", e.to_string()))?;
            found.extend(left);
        }
        wanted.iter().map(|key| found.remove(key).ok_or_else(|| met(key, "no rank published it".into()))).collect()
    }
}
