//! Cooperation of the host sides of all processes of a launched world.
//!
//! Every process runs the same host program (as in multi-controller JAX): it holds some of the ranks, has their programs,
//! and makes the same calls in the same order. Data that one process has and others need goes through
//! [`Processes::exchange`].

use super::Communicators;
use crate::error::RuntimeError;
use crate::flight::{Flight, FlightRecord};
use std::fmt::Debug;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tpc_ir::program::RankPrograms;

/// The processes of a world. A single process whose ranks are threads is also such a world.
pub trait Processes: Debug + Send + Sync {
    /// Number of processes.
    fn count(&self) -> usize;

    /// The index of this process.
    fn process(&self) -> usize;

    /// The ranks of this process, given the total number of ranks.
    ///
    /// # Errors
    /// A number of ranks that the processes cannot hold.
    fn local(&self, ranks: usize) -> Result<Range<usize>, RuntimeError>;

    /// Passes bytes to every process and returns the bytes of all processes, including this one, in order. `purpose`
    /// appears in error messages and must be the same on all processes.
    ///
    /// # Errors
    /// A process that does not arrive within the deadline, arrives for another purpose, has ended or has failed.
    fn exchange(&self, purpose: &str, bytes: &[u8], deadline: Duration) -> Result<Vec<Vec<u8>>, RuntimeError>;

    /// Waits until all processes have arrived.
    ///
    /// # Errors
    /// The errors of [`Processes::exchange`].
    fn barrier(&self, purpose: &str, deadline: Duration) -> Result<(), RuntimeError> {
        self.exchange(purpose, &[], deadline).map(drop)
    }

    /// Tells all ranks that one has failed, so that they give up. Only the first failure is kept.
    fn fail(&self, rank: usize, reason: &str);

    /// The rank that failed first, and why.
    fn failure(&self) -> Option<(usize, String)>;

    /// The ranks whose processes are known to have ended.
    fn gone(&self) -> Vec<usize>;

    /// The index of this process on its host, and the number of processes on its host.
    fn on_host(&self) -> (usize, usize);

    /// The path of the flight record, if this process wrote it after a failure.
    fn written_record(&self) -> Option<PathBuf>;

    /// The flight record of a rank of this process.
    fn flight(&self, rank: usize) -> &Flight;

    /// The latest collectives of all ranks.
    fn flight_record(&self) -> FlightRecord;

    /// Reports that this process is doing long work: the deadlines of the processes that wait for it restart.
    fn progress(&self);

    /// Records a path to remove if this process dies; an empty path cancels this.
    fn leftover(&self, path: &Path);

    /// Records what this process does when a signal asks it to end, for `tpc launch`.
    fn set_ending(&self, ending: Ending);

    /// Opens the communication of the ranks of programs, with new arenas.
    ///
    /// # Errors
    /// Too little memory, or a process that does not respond.
    fn open(
        &self,
        programs: Arc<RankPrograms>,
        local: Range<usize>,
        deadline: Duration,
    ) -> Result<Arc<dyn Communicators>, RuntimeError>;
}

/// What a process does when a signal asks it to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It ends immediately.
    AtOnce,
    /// It finishes its step and keeps its results, and the launcher waits for that.
    AfterStep,
    /// It has finished and ends, which is not a failure.
    AsTold,
}

/// The results of all processes, or the lowest process that failed, with its error.
pub type Agreed = Result<Vec<Vec<u8>>, (usize, String)>;

/// Shares whether an operation worked on every process. Returns the results of all processes, or the lowest failing
/// process and its error.
///
/// # Errors
/// The errors of [`Processes::exchange`].
pub fn agree(
    processes: &dyn Processes,
    purpose: &str,
    mine: Result<Vec<u8>, String>,
    deadline: Duration,
) -> Result<Agreed, RuntimeError> {
    if processes.count() == 1 {
        return Ok(mine.map(|bytes| vec![bytes]).map_err(|text| (processes.process(), text)));
    }
    let message = match mine {
        Ok(mut bytes) => {
            bytes.push(1);
            bytes
        }
        Err(text) => [text.into_bytes(), vec![0]].concat(),
    };
    let mut all = processes.exchange(purpose, &message, deadline)?;
    for (process, bytes) in all.iter_mut().enumerate() {
        if bytes.pop() != Some(1) {
            return Ok(Err((process, String::from_utf8_lossy(bytes).into_owned())));
        }
    }
    Ok(Ok(all))
}

/// Shares whether an operation worked on every process.
///
/// # Errors
/// The error of this process, otherwise the error of the lowest process that has one.
pub(crate) fn together<T>(
    processes: &dyn Processes,
    purpose: &str,
    mine: Result<T, RuntimeError>,
    deadline: Duration,
) -> Result<T, RuntimeError> {
    let told = mine.as_ref().map(|_| Vec::new()).map_err(ToString::to_string);
    let all = agree(processes, purpose, told, deadline)?;
    let mine = mine?;
    all.map_err(|(rank, reason)| RuntimeError::Elsewhere { rank, reason })?;
    Ok(mine)
}
