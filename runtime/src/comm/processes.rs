//! What the host sides of all processes of a launched world do together.
//!
//! Every process runs the same host program (as JAX's multi-controller does): it compiles all rank programs, holds some of the ranks,
//! and makes the same calls in the same order. Whatever one process has and others need goes through [`Processes::exchange`].

use super::Communicators;
use crate::error::RuntimeError;
use crate::flight::{Flight, FlightRecord};
use std::fmt::Debug;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tpc_ir::program::RankProgram;

/// The processes of a world. One process alone, whose ranks are threads, is such a world, too.
pub trait Processes: Debug + Send + Sync {
    /// Number of processes.
    fn count(&self) -> usize;

    /// This process among them.
    fn process(&self) -> usize;

    /// The ranks of this process, of so many in all.
    ///
    /// # Errors
    /// Another number of ranks than the processes can hold.
    fn local(&self, ranks: usize) -> Result<Range<usize>, RuntimeError>;

    /// Hands bytes to every process and gets what each of them handed over, its own included, in order. `purpose` says what for in
    /// error messages, and must be the same everywhere.
    ///
    /// # Errors
    /// A process that does not come within the deadline, comes for another purpose, has ended or failed.
    fn exchange(&self, purpose: &str, bytes: &[u8], deadline: Duration) -> Result<Vec<Vec<u8>>, RuntimeError>;

    /// Waits until all processes have come.
    ///
    /// # Errors
    /// As [`Processes::exchange`].
    fn barrier(&self, purpose: &str, deadline: Duration) -> Result<(), RuntimeError> {
        self.exchange(purpose, &[], deadline).map(drop)
    }

    /// Tells all ranks that one has failed: they give up. Only the first failure is kept.
    fn fail(&self, rank: usize, reason: &str);

    /// The rank that failed first, and why.
    fn failure(&self) -> Option<(usize, String)>;

    /// The ranks whose processes are known to have ended.
    fn gone(&self) -> Vec<usize>;

    /// This process among those of its host, and how many these are.
    fn on_host(&self) -> (usize, usize);

    /// Where this process wrote the flight record of a failure, if it was the one to do so.
    fn written_record(&self) -> Option<PathBuf>;

    /// Where a rank of this process notes its collectives.
    fn flight(&self, rank: usize) -> &Flight;

    /// The latest collectives of all ranks.
    fn flight_record(&self) -> FlightRecord;

    /// Says that this process is busy with something long: whoever waits for it begins its deadline anew.
    fn progress(&self);

    /// Says what must be removed if this process dies over it; an empty path when that is over.
    fn leftover(&self, path: &Path);

    /// Says what this process does when it is told to end, for `tpc launch`.
    fn set_ending(&self, ending: Ending);

    /// Lets the ranks of programs meet, with new arenas.
    ///
    /// # Errors
    /// Too little memory, a process that does not come.
    fn open(
        &self,
        programs: Arc<[RankProgram]>,
        local: Range<usize>,
        deadline: Duration,
    ) -> Result<Arc<dyn Communicators>, RuntimeError>;
}

/// What a process does when a signal tells it to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It ends at once.
    AtOnce,
    /// It finishes its step and keeps what it has: whoever ends it waits for that.
    AfterStep,
    /// It has done so and ends, which is no failure.
    AsTold,
}

/// What something gave on every process, or the lowest process on which it did not work, and why.
pub type Agreed = Result<Vec<Vec<u8>>, (usize, String)>;

/// Shares whether something worked on every process: what each gave, or the lowest failing process and its text.
///
/// # Errors
/// As [`Processes::exchange`].
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

/// Shares whether something worked on every process.
///
/// # Errors
/// This process's own, otherwise that of the lowest process that has one.
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
